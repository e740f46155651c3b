//! Layer 0, pure: bytes and values in, bytes and values out. No file, socket, clock, ring or log.

pub mod base32;
pub mod build_id;
pub mod cache_file;
pub mod cache_info;
pub mod content_address;
pub mod decompress;
pub mod export;
pub mod exposition;
pub mod hash;
pub mod http;
pub mod nar;
pub mod narinfo;
pub mod plain;
pub mod realisation;
pub mod search;
pub mod signature;
pub mod store_path;
pub mod token;
pub mod zstd;
