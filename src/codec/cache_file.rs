//! The small files of a binary cache: all but NARs, by the names that Nix gives them (`src/libstore/binary-cache-store.cc`).

use std::fmt::{self, Display, Formatter};

use crate::codec::build_id::BuildId;
use crate::codec::realisation::{DrvOutput, OutputName};
use crate::codec::store_path::{HashPart, StorePath};

/// A small file of a binary cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheFile {
    /// `nix-cache-info`
    CacheInfo,
    /// `<hash part>.narinfo`
    NarInfo(HashPart),
    /// `<hash part>.ls`
    Listing(HashPart),
    /// `log/<base name of a derivation>`; older clients ask for an output path as well.
    Log(StorePath),
    /// `realisations/sha256:<hex>!<output>.doi` (Nix 2.4 to 2.34)
    Realisation(DrvOutput),
    /// `build-trace-v2/<base name of a derivation>/<output>.doi` (Nix 2.35 and later)
    BuildTrace {
        /// The derivation.
        derivation: StorePath,
        /// The output.
        output: OutputName,
    },
    /// `debuginfo/<build id>.debug`, or without the suffix
    DebugInfo {
        /// The build id.
        build_id: BuildId,
        /// Whether the name ends in `.debug`, as Nix writes it.
        has_suffix: bool,
    },
}

/// The name, relative to the cache.
impl Display for CacheFile {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::CacheInfo => formatter.write_str("nix-cache-info"),
            Self::NarInfo(hash_part) => write!(formatter, "{hash_part}.narinfo"),
            Self::Listing(hash_part) => write!(formatter, "{hash_part}.ls"),
            Self::Log(derivation) => write!(formatter, "log/{}", derivation.base_name()),
            Self::Realisation(id) => write!(formatter, "realisations/{id}.doi"),
            Self::BuildTrace { derivation, output } => {
                write!(formatter, "build-trace-v2/{}/{}.doi", derivation.base_name(), output.as_str())
            }
            Self::DebugInfo { build_id, has_suffix } => {
                let suffix = if *has_suffix { ".debug" } else { "" };
                write!(formatter, "debuginfo/{}{suffix}", build_id.as_str())
            }
        }
    }
}
