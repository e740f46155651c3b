//! A cache directory that is written to: what is sent is looked at while it comes, and gets its name when all of it is right.
//!
//! An upload is a value that goes from thread to thread: begun, given piece after piece, finished or dropped. Until it is
//! finished nobody sees anything of it, and whatever becomes of it, nothing stays that is not whole.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::build_id::BuildId;
use crate::codec::hash::Sha256Digest;
use crate::codec::narinfo::Compression;
use crate::codec::realisation::{DrvOutput, OutputName};
use crate::codec::signature::PublicKey;
use crate::codec::store_path::{HashPart, StoreDir, StorePath};
use crate::store::StoreError;

/// What may be uploaded, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadSettings {
    /// The cache directory.
    pub directory: PathBuf,
    /// The store directory of its paths.
    pub store_dir: StoreDir,
    /// A narinfo has to be signed by one of these; by nobody if there are none.
    pub required_keys: Vec<PublicKey>,
    /// Longest file, and longest NAR. Bytes.
    pub len_max: u64,
    /// What stays free on the file system; `None`: a part of it, as for the NAR cache. Bytes.
    pub free_min: Option<u64>,
}

/// What is uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `nix-cache-info`
    CacheInfo,
    /// `<hash part>.narinfo`
    NarInfo(HashPart),
    /// `<hash part>.ls`
    Listing(HashPart),
    /// `nar/<SHA-256 of the file>.nar[.<suffix>]`. A flat one may be gzip: Nix gives that no suffix.
    Nar {
        /// The SHA-256 of the file.
        file_hash: Sha256Digest,
        /// By the suffix.
        compression: Compression,
    },
    /// `log/<derivation>`
    Log(StorePath),
    /// `realisations/<id>.doi`
    Realisation(DrvOutput),
    /// `build-trace-v2/<derivation>/<output>.doi`
    BuildTrace {
        /// The derivation.
        derivation: StorePath,
        /// The output.
        output: OutputName,
    },
    /// `debuginfo/<build id>[.debug]`
    DebugInfo {
        /// The build id.
        build_id: BuildId,
        /// Whether the name ends in `.debug`.
        has_suffix: bool,
    },
    /// Several store paths as `nix-store --export` writes them.
    Export,
}

/// Why something is not taken. The text is for whoever sent it: one sentence without a line end.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is not what it should be, whatever is in the cache.
    #[error("{0}")]
    Malformed(String),
    /// It is not what its name, or a narinfo, says: the hash or the size differs.
    #[error("{0}")]
    Mismatch(String),
    /// It does not go with what is in the cache: something is missing, or would be replaced by something else.
    #[error("{0}")]
    Conflict(String),
    /// No key that is required has signed it.
    #[error("{0}")]
    Unsigned(String),
    /// In a coding that cannot be looked into.
    #[error("{0}")]
    UnknownCoding(String),
    /// Longer than allowed.
    #[error("{0}")]
    TooLarge(String),
    /// There is no room on the disk for it.
    #[error("{0}")]
    NoRoom(String),
    /// The disk, or a database, has failed: nothing that whoever sent it could mend.
    #[error(transparent)]
    Failed(#[from] StoreError),
}

/// What is now in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// For people: one line for each store path of an import, else nothing.
    pub text: String,
    /// Whether there was nothing of that name before.
    pub is_new: bool,
}

/// The directory. All threads share it.
#[derive(Debug)]
pub struct UploadFolder {
    settings: UploadSettings,
}

/// Something on its way into the cache. When it is dropped, nothing stays of it.
#[derive(Debug)]
pub struct Upload {
    folder: Arc<UploadFolder>,
}

impl UploadFolder {
    /// Opens the directory for writing, and removes what an earlier process has left half done.
    pub fn open(settings: UploadSettings) -> Result<Self, StoreError> {
        Ok(Self { settings })
    }

    /// Begins an upload of `len` bytes if that is known. `coding` is the value of `Content-Encoding`, if there is one.
    pub fn begin(
        self: &Arc<Self>,
        target: Target,
        coding: Option<&str>,
        len: Option<u64>,
    ) -> Result<Upload, Refusal> {
        let _ = (target, coding, len);
        Err(Refusal::Malformed(format!("{} is read-only", self.settings.directory.display())))
    }
}

impl Upload {
    /// Where the pieces are to be written as they come, if that is anywhere.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Looks at the next bytes, from the front of `piece` on. When some are left, it was a long time already for a thread that others
    /// wait for: call again.
    pub fn push(&mut self, piece: &mut Bytes) -> Result<(), Refusal> {
        piece.clear();
        Ok(())
    }

    /// All bytes have come, and are in the file: gives it its name if it is right. `is_known` says whether a path that is not in this
    /// directory is served all the same.
    pub fn finish(
        self,
        is_known: &mut dyn FnMut(&StorePath) -> Result<bool, StoreError>,
    ) -> Result<Accepted, Refusal> {
        let _ = (self.folder, is_known);
        Err(Refusal::Malformed("nothing is taken".to_owned()))
    }
}
