//! narinfo: what a client must know of a store path before it downloads it.
//!
//! Reading ([`NarInfo::parse`]), writing ([`NarInfo::write`]) and telling it in JSON ([`NarInfo::to_json`]) have a file each.

mod json;
mod parse;
mod write;

pub use parse::{FieldError, NarInfoError};

use super::hash::Sha256Digest;
use super::signature::{SecretKey, Signature, fingerprint};
use super::store_path::{StoreDir, StorePath};

/// What a Nix store knows of one of its paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The path itself.
    pub path: StorePath,
    /// Hash of the path as a NAR.
    pub nar_hash: Sha256Digest,
    /// Size of the path as a NAR. Bytes; in a narinfo never zero.
    pub nar_size: u64,
    /// What the path refers to, itself included where it does; sorted, each once.
    pub references: Vec<StorePath>,
    /// The derivation it was built from, where that is known.
    pub deriver: Option<StorePath>,
    /// Who vouches for it.
    pub signatures: Vec<Signature>,
    /// The content address, for a path that is named after its content: `text:…` or `fixed:…`. Only clients
    /// look into it.
    pub ca: Option<String>,
}

/// A narinfo: the path, and the file in which the cache keeps its NAR. The second half is not signed, and no
/// client verifies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// What the signatures vouch for.
    pub info: PathInfo,
    /// Where the NAR is: relative to the cache, or absolute. Not empty, one line.
    pub url: String,
    /// How the file is compressed.
    pub compression: Compression,
    /// Hash of the file as it is downloaded.
    pub file_hash: Option<Sha256Digest>,
    /// Size of the file as it is downloaded. Bytes.
    pub file_size: Option<u64>,
}

/// How a NAR is compressed: every name that some version of Nix writes or reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the name of the format or of its tool")]
pub enum Compression {
    None,
    Br,
    Bzip2,
    Compress,
    Grzip,
    Gzip,
    Lrzip,
    Lz4,
    Lzip,
    Lzma,
    Lzop,
    Xz,
    Zstd,
}

impl PathInfo {
    /// What a signature of this path signs.
    pub fn fingerprint(&self, store_dir: &StoreDir) -> String {
        fingerprint(store_dir, &self.path, &self.nar_hash, self.nar_size, &self.references)
    }

    /// Adds a signature by each of `keys`, unless that very signature is there already.
    pub fn sign(&mut self, store_dir: &StoreDir, keys: &[SecretKey]) {
        let fingerprint = self.fingerprint(store_dir);
        for signature in keys.iter().map(|key| key.sign(&fingerprint)) {
            if !self.signatures.contains(&signature) {
                self.signatures.push(signature);
            }
        }
    }
}

impl NarInfo {
    /// The narinfo of a path whose NAR is in this file: where it is, how it is compressed, its hash, and its size in bytes.
    pub fn new(
        info: PathInfo,
        url: String,
        compression: Compression,
        file_hash: Sha256Digest,
        file_size: u64,
    ) -> Self {
        Self { info, url, compression, file_hash: Some(file_hash), file_size: Some(file_size) }
    }
}

impl Compression {
    /// What Nix puts behind `.nar` in the name of a file that is compressed like this: for some nothing, as if it were flat
    /// (`src/libstore/binary-cache-store.cc`).
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Br => ".br",
            Self::Bzip2 => ".bz2",
            Self::Lz4 => ".lz4",
            Self::Lzip => ".lzip",
            Self::Xz => ".xz",
            Self::Zstd => ".zst",
            Self::None
            | Self::Compress
            | Self::Grzip
            | Self::Gzip
            | Self::Lrzip
            | Self::Lzma
            | Self::Lzop => "",
        }
    }

    /// The compression by what stands behind `.nar`. Without anything it is none, as far as the name says.
    pub fn of_suffix(suffix: &str) -> Option<Self> {
        // The first one, which is none, is the first one without a suffix.
        Self::ALL.into_iter().find(|compression| compression.suffix() == suffix)
    }

    const ALL: [Self; 13] = [
        Self::None,
        Self::Br,
        Self::Bzip2,
        Self::Compress,
        Self::Grzip,
        Self::Gzip,
        Self::Lrzip,
        Self::Lz4,
        Self::Lzip,
        Self::Lzma,
        Self::Lzop,
        Self::Xz,
        Self::Zstd,
    ];

    /// The value of the `Compression` field.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Br => "br",
            Self::Bzip2 => "bzip2",
            Self::Compress => "compress",
            Self::Grzip => "grzip",
            Self::Gzip => "gzip",
            Self::Lrzip => "lrzip",
            Self::Lz4 => "lz4",
            Self::Lzip => "lzip",
            Self::Lzma => "lzma",
            Self::Lzop => "lzop",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }

    /// The compression of that name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|compression| compression.as_str() == text)
    }
}

/// Whatever is taken for a narinfo is read back alike once it is written.
#[cfg(any(test, fuzzing))]
pub fn fuzz_narinfo(data: &[u8]) {
    let (Ok(text), Ok(store_dir)) = (str::from_utf8(data), StoreDir::parse("/nix/store")) else { return };
    if let Ok(narinfo) = NarInfo::parse(text, &store_dir) {
        let mut written = String::new();
        narinfo.write(&store_dir, &mut written);
        assert_eq!(NarInfo::parse(&written, &store_dir), Ok(narinfo));
    }
}

#[cfg(test)]
mod tests;
