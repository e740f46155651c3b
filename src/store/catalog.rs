//! What the NAR cache has, in one mapped file that every worker reads without asking anybody.

use super::nar_cache::Coding;
use crate::codec::hash::Sha256Digest;
use crate::codec::store_path::HashPart;

/// One NAR: a path, and the contents that it had.
pub type NarKey = (HashPart, Sha256Digest);

/// An encoded NAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// How it is encoded.
    pub coding: Coding,
    /// Hash of the file.
    pub file_hash: Sha256Digest,
    /// Size of the file. Bytes.
    pub file_size: u64,
    /// Size of the NAR in it. Bytes.
    pub nar_size: u64,
    /// What it took to make. Microseconds.
    pub fill_us: u32,
}

/// A store path's root as it was when its tree was found damaged: one that was mended has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootMark {
    /// The inode.
    pub inode: u64,
    /// When it was changed last. Seconds.
    pub changed_s: i64,
    /// The rest of that. Nanoseconds.
    pub changed_ns: u32,
}
