//! The NAR cache on disk: a binary cache in the layout of `nix copy --to file://…`, and beside it what narwire keeps for itself.

use crate::codec::narinfo::Compression;

/// How a NAR is encoded in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// As it is.
    Flat,
    /// As one zstd frame.
    Zstd,
}

impl Coding {
    /// What a narinfo calls it.
    pub fn compression(self) -> Compression {
        match self {
            Self::Flat => Compression::None,
            Self::Zstd => Compression::Zstd,
        }
    }
}
