//! A cache directory that is written to: what is sent is looked at while it comes, and gets its name when all of it is right.
//!
//! An upload is a value that goes from thread to thread: begun, given piece after piece, finished or dropped. Until it is
//! finished nobody sees anything of it, and whatever becomes of it, nothing stays that is not whole.
//!
//! ```text
//! nix-cache-info, <hash part>.narinfo, <hash part>.ls, nar/, log/, realisations/, build-trace-v2/, debuginfo/
//! .narwire-uploads/<a folder of each process>/<drafts>, .narwire-uploads/quarantine/
//! ```
//!
//! **Whenever the process ends**, every file that has its name here is the one before or the one after. A NAR comes into being as: file
//! in the folder of this process, to the disk, renamed, the name to the disk; only then its narinfo is taken, in the same way. So a
//! narinfo names a NAR that is there, was looked into and is what the narinfo says, and the narinfos of all that it refers to
//! are there or served from elsewhere. What a crash leaves is in the folder of the process, which the next one removes.
//!
//! A file in `nar/` whose name is a hash, and not its own, is moved to the quarantine when that is found: while it is there, whoever
//! could send it again is told that it need not. Nothing else is ever removed. What takes the place of a narinfo or a realisation
//! says the same of the path, with more signatures; `nix-cache-info` stays as it is; of listings, logs and debug links the last one
//! counts.

mod import;
mod nar;
mod narinfo;
mod small;
mod staging;
mod text;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use quick_cache::sync::Cache;
use rustix::fs::{Access, AtFlags, CWD};

use self::import::Import;
use self::nar::{KnownNar, NarUpload};
use self::staging::{STAGING_NAME, Staging};
use self::text::{Memory, Text, parse_coding};
use super::directory::{Directory, Obstacle};
use super::fault;
use super::nar_cache::{NAR_NAME, OWN_NAME, read_cache_info};
use crate::codec::cache_file::CacheFile;
#[cfg(any(test, fuzzing))]
use crate::codec::hash::Sha256;
use crate::codec::hash::Sha256Digest;
use crate::codec::nar::verify::{NarFacts, VerifyError};
use crate::codec::narinfo::Compression;
#[cfg(any(test, fuzzing))]
use crate::codec::narinfo::NarInfo;
use crate::codec::plain::is_plain;
use crate::codec::signature::PublicKey;
use crate::codec::store_path::{StoreDir, StorePath};
use crate::limits::{
    CACHE_INFO_LEN_MAX, CACHED_NARINFO_LEN_MAX, FREE_SHARE_DEFAULT, LOG_LEN_MAX, NAR_FACTS_MAX,
    REASON_LEN_MAX, UPLOAD_LOCKS, UPLOADED_JSON_LEN_MAX, UPLOADED_TEXTS_LEN_MAX,
};
use crate::store::StoreError;

/// What may be uploaded, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadSettings {
    /// The cache directory.
    pub directory: PathBuf,
    /// The store directory of its paths.
    pub store_dir: StoreDir,
    /// Longest file, and longest NAR. Bytes.
    pub len_max: u64,
    /// What stays free on the file system; `None`: a part of it, as for the NAR cache. Bytes.
    pub free_min: Option<u64>,
}

/// What is uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A small file.
    File(CacheFile),
    /// `nar/<SHA-256 of the file>.nar[.<suffix>]`. A flat one may be gzip: Nix gives that no suffix.
    Nar {
        /// The SHA-256 of the file.
        file_hash: Sha256Digest,
        /// By the suffix.
        compression: Compression,
    },
    /// Several store paths as `nix-store --export` writes them.
    Export,
}

/// Why something is not taken. The text is for whoever sent it: one sentence without a line end, of at most [`REASON_LEN_MAX`] bytes.
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
    /// There is no memory for it at the moment.
    #[error("{0}")]
    Busy(String),
    /// The disk, or a database, has failed: nothing that whoever sent it could mend.
    #[error(transparent)]
    Failed(StoreError),
}

/// What is now in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// For people: one line for each store path of an import, else nothing.
    pub text: String,
    /// Whether there was nothing of that name before.
    pub is_new: bool,
}

/// Why a directory cannot be uploaded to.
#[derive(Debug, thiserror::Error)]
pub enum UploadFolderError {
    /// The NAR cache manages its files itself, and would remove others.
    #[error("{} is a NAR cache (it has .narwire in it): uploads need another directory", .0.display())]
    NarCache(PathBuf),
    /// Paths of another store would be of no use to its clients.
    #[error("{} is a cache of the store {found}, not of {wanted}", path.display())]
    OtherStore {
        /// The directory.
        path: PathBuf,
        /// The store directory of its paths.
        found: StoreDir,
        /// That of what would be uploaded.
        wanted: StoreDir,
    },
    /// Nothing that is whole could be given its name there.
    #[error(
        "nothing can be uploaded into {}: {obstacle}; put a directory in its place that is on the file system of the cache directory",
        path.display()
    )]
    Blocked {
        /// What should be a directory in the cache directory.
        path: PathBuf,
        /// What it is.
        obstacle: Obstacle,
    },
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] StoreError),
}

/// The directory. All threads share it.
pub struct UploadFolder {
    settings: UploadSettings,
    /// See [`UploadFolder::require`].
    required_keys: RwLock<Arc<[PublicKey]>>,
    root: Directory,
    staging: Staging,
    free_min: u64,
    memory: Arc<Memory>,
    /// What is known of files in `nar/`, or what is wrong with them, for as long as they are as they were then.
    known_nars: Cache<KnownNar, Result<NarFacts, VerifyError>>,
    locks: Box<[Mutex<()>]>,
    /// Those in it that were opened, so that their names are brought to the disk once.
    subdirectories: Mutex<BTreeMap<&'static str, Arc<Directory>>>,
}

/// Another cache directory, which is not written to, and asked whether it has a path.
#[derive(Debug)]
pub struct Neighbour {
    root: Directory,
    store_dir: StoreDir,
}

/// Something on its way into the cache. When it is dropped, nothing stays of it.
#[derive(Debug)]
pub struct Upload {
    // It goes before the folder that it lies in.
    kind: Kind,
    folder: Arc<UploadFolder>,
}

#[derive(Debug)]
enum Kind {
    Nar(Box<NarUpload>),
    Export(Box<Import>),
    File(CacheFile, Box<Text>),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        if error.is_no_room() {
            return Self::NoRoom("there is no room left on the disk of the cache".to_owned());
        }
        Self::Failed(error)
    }
}

impl Refusal {
    /// The same in other words, if it is in words.
    fn map_text(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Malformed(text) => Self::Malformed(change(text)),
            Self::Mismatch(text) => Self::Mismatch(change(text)),
            Self::Conflict(text) => Self::Conflict(change(text)),
            Self::Unsigned(text) => Self::Unsigned(change(text)),
            Self::UnknownCoding(text) => Self::UnknownCoding(change(text)),
            Self::TooLarge(text) => Self::TooLarge(change(text)),
            Self::NoRoom(text) => Self::NoRoom(change(text)),
            Self::Busy(text) => Self::Busy(change(text)),
            Self::Failed(error) => Self::Failed(error),
        }
    }
}

impl UploadFolder {
    /// Opens the directory for writing, and removes what an earlier process has left half done.
    pub fn open(settings: UploadSettings) -> Result<Self, UploadFolderError> {
        let root = open_root(&settings)?;
        let staging = Staging::open(&root)?;
        let free_min = match settings.free_min {
            Some(free_min) => free_min,
            None => space(&root)?.1 / FREE_SHARE_DEFAULT,
        };
        Ok(Self {
            settings,
            required_keys: RwLock::new(Arc::from([])),
            root,
            staging,
            free_min,
            memory: Arc::new(Memory::new(UPLOADED_TEXTS_LEN_MAX)),
            known_nars: Cache::new(NAR_FACTS_MAX),
            locks: (0..UPLOAD_LOCKS).map(|_| Mutex::default()).collect(),
            subdirectories: Mutex::default(),
        })
    }

    /// Whether the directory can be opened, as far as can be seen without changing anything.
    pub fn look(settings: &UploadSettings) -> Result<(), UploadFolderError> {
        open_root(settings)?;
        let path = &settings.directory;
        rustix::fs::accessat(CWD, path, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
            .map_err(|error| StoreError::io("write into", path, error).into())
    }

    /// From now on a narinfo has to be signed by one of these; by nobody if there are none, as at first.
    pub fn require(&self, keys: Arc<[PublicKey]>) {
        *self.required_keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    fn required_keys(&self) -> Arc<[PublicKey]> {
        Arc::clone(&self.required_keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where it is; for messages.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Begins an upload of `len` bytes if that is known. `coding` is the value of `Content-Encoding`, if there is one.
    pub fn begin(
        self: &Arc<Self>,
        target: Target,
        coding: Option<&str>,
        len: Option<u64>,
    ) -> Result<Upload, Refusal> {
        let kind = match target {
            Target::Nar { file_hash, compression } => {
                Kind::Nar(Box::new(NarUpload::begin(self, file_hash, compression, coding, len)?))
            }
            Target::File(file) => {
                let text = self.begin_text(coding, len, len_max(&file))?;
                Kind::File(file, Box::new(text))
            }
            Target::Export => Kind::Export(Box::new(Import::begin(self, coding)?)),
        };
        Ok(Upload { kind, folder: Arc::clone(self) })
    }

    /// Gives a file its name if it is right, and says whether there was none of that name.
    fn take(
        &self,
        file: &CacheFile,
        text: &[u8],
        is_known: &mut dyn FnMut(&StorePath) -> Result<bool, StoreError>,
    ) -> Result<bool, Refusal> {
        match file {
            CacheFile::CacheInfo => self.take_cache_info(text),
            CacheFile::NarInfo(hash_part) => self.take_narinfo(*hash_part, text, is_known),
            CacheFile::Listing(hash_part) => self.take_listing(*hash_part, text),
            CacheFile::Log(derivation) => self.take_log(derivation, text),
            CacheFile::Realisation(id) => self.take_realisation(id, text),
            CacheFile::BuildTrace { derivation, output } => self.take_build_trace(derivation, output, text),
            CacheFile::DebugInfo { build_id, has_suffix } => {
                self.take_debug_info(*build_id, *has_suffix, text)
            }
        }
    }

    fn begin_text(&self, coding: Option<&str>, len: Option<u64>, len_max: usize) -> Result<Text, Refusal> {
        let text = Text::begin(&self.memory, parse_coding(coding)?, len, len_max)?;
        self.check_room(len.unwrap_or(0))?;
        Ok(text)
    }

    /// Waits until nobody else compares a file of that name with what is there, or replaces it.
    fn lock(&self, name: &str) -> MutexGuard<'_, ()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(name);
        let index = usize::try_from(hash % self.locks.len() as u64).unwrap_or_default();
        self.locks[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A directory in the cache, made if it is not there. Its name is on the disk, so that what gets a name in it can be found again.
    fn subdirectory(&self, name: &'static str) -> Result<Arc<Directory>, StoreError> {
        let mut opened = self.subdirectories.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have removed it, or put another one in its place. The number of one that is open is given to no other.
        if let Some(directory) = opened.get(name)
            && directory.is_in(&self.root, name)
        {
            return Ok(Arc::clone(directory));
        }
        self.point("directory: begun")?;
        let directory = Arc::new(self.root.beneath_or_new(name)?);
        self.point("directory: name written")?;
        opened.insert(name, Arc::clone(&directory));
        Ok(directory)
    }

    /// What is left on the file system for this process's user. Bytes.
    fn free(&self) -> Result<u64, StoreError> {
        space(&self.root).map(|(free, _)| free)
    }

    fn point(&self, name: &str) -> Result<(), StoreError> {
        fault::point(name).map_err(|error| StoreError::io("change", self.path(), error))
    }
}

impl Neighbour {
    /// The cache directory at `path`, of that store directory.
    pub fn open(path: &Path, store_dir: &StoreDir) -> Result<Self, StoreError> {
        Ok(Self { root: Directory::open(path)?, store_dir: store_dir.clone() })
    }

    /// Whether it has the path. Another one of that hash part is not it.
    pub fn has(&self, path: &StorePath) -> Result<bool, StoreError> {
        let found = self.root.narinfo(path.hash_part(), &self.store_dir)?;
        Ok(found.is_some_and(|narinfo| narinfo.info.path == *path))
    }
}

impl Upload {
    /// Where the pieces are to be written as they come, if that is anywhere.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Nar(nar) => Some(nar.draft.as_fd()),
            _ => None,
        }
    }

    /// Looks at the next bytes, from the front of `piece` on. When some are left, it was a long time already for a thread that others
    /// wait for: call again.
    pub fn push(&mut self, piece: &mut Bytes) -> Result<(), Refusal> {
        match &mut self.kind {
            Kind::Nar(nar) => nar.push(&self.folder, piece),
            Kind::Export(import) => import.push(&self.folder, piece),
            Kind::File(_, text) => text.push(piece),
        }
    }

    /// All bytes have come, and are in the file: gives it its name if it is right. `is_known` says whether a path that is not in this
    /// directory is served all the same.
    pub fn finish(
        self,
        is_known: &mut dyn FnMut(&StorePath) -> Result<bool, StoreError>,
    ) -> Result<Accepted, Refusal> {
        let Self { kind, folder } = self;
        let is_new = match kind {
            Kind::Nar(nar) => nar.finish(&folder),
            Kind::Export(import) => return import.finish(),
            Kind::File(file, text) => folder.take(&file, &text.finish()?.bytes, is_known),
        };
        Ok(Accepted { text: String::new(), is_new: is_new? })
    }
}

impl fmt::Debug for UploadFolder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("UploadFolder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The directories that files are moved into, or from.
const SUBDIRECTORIES: [&str; 7] = [
    NAR_NAME,
    LOG_NAME,
    REALISATIONS_NAME,
    BUILD_TRACE_NAME,
    DEBUG_INFO_NAME,
    STAGING_NAME,
    staging::QUARANTINE_PATH,
];
const LOG_NAME: &str = "log";
const REALISATIONS_NAME: &str = "realisations";
const BUILD_TRACE_NAME: &str = "build-trace-v2";
const DEBUG_INFO_NAME: &str = "debuginfo";

/// Opens the directory, if it is one that may be uploaded to.
fn open_root(settings: &UploadSettings) -> Result<Directory, UploadFolderError> {
    let path = &settings.directory;
    let root = Directory::open(path)?;
    if root.has(OWN_NAME)? {
        return Err(UploadFolderError::NarCache(path.clone()));
    }
    for name in SUBDIRECTORIES {
        // Whoever uploads would learn of it when all of that has come.
        if let Some(obstacle) = root.obstacle(name)? {
            return Err(UploadFolderError::Blocked { path: path.join(name), obstacle });
        }
    }
    match read_cache_info(&root, &settings.store_dir)? {
        Some(info) if info.store_dir != settings.store_dir => Err(UploadFolderError::OtherStore {
            path: path.clone(),
            found: info.store_dir,
            wanted: settings.store_dir.clone(),
        }),
        _ => Ok(root),
    }
}

/// The longest that a file may be. Bytes.
fn len_max(file: &CacheFile) -> usize {
    let bounded = |len_max: u64| usize::try_from(len_max).unwrap_or(usize::MAX);
    match file {
        CacheFile::CacheInfo => bounded(CACHE_INFO_LEN_MAX),
        CacheFile::NarInfo(_) => CACHED_NARINFO_LEN_MAX,
        CacheFile::Listing(_) | CacheFile::Log(_) => bounded(LOG_LEN_MAX),
        CacheFile::Realisation(_) | CacheFile::BuildTrace { .. } | CacheFile::DebugInfo { .. } => {
            UPLOADED_JSON_LEN_MAX
        }
    }
}

/// What is free on a file system for this process's user, and what there is of it. Bytes.
fn space(directory: &Directory) -> Result<(u64, u64), StoreError> {
    let status = rustix::fs::fstatvfs(directory)
        .map_err(|error| StoreError::io("examine", directory.path(), error))?;
    let bytes = |blocks: u64| blocks.saturating_mul(status.f_frsize);
    Ok((bytes(status.f_bavail), bytes(status.f_blocks)))
}

/// A reason on one line, and short enough to be shown, whatever of it the peer has written.
fn reason(text: impl Display) -> String {
    let mut line = String::new();
    for character in text.to_string().chars() {
        if is_plain(character) {
            line.push(character);
        } else {
            line.extend(character.escape_default());
        }
        if line.len() >= REASON_LEN_MAX {
            break;
        }
    }
    line.truncate(line.floor_char_boundary(REASON_LEN_MAX));
    line
}

/// The beginning of something that the peer has written, fit to be shown.
fn quoted(text: &str) -> String {
    format!("{:?}", &text[..text.floor_char_boundary(QUOTED_LEN_MAX)])
}

/// As much of it as is shown. Bytes.
const QUOTED_LEN_MAX: usize = 100;

/// Any bytes as an upload of any kind, cut anywhere, into a cache that has one NAR: what is refused changes nothing, what is accepted is
/// there and is what it says, the same again changes nothing, and no draft stays.
#[cfg(any(test, fuzzing))]
pub fn fuzz_upload(data: &[u8]) {
    let Some((&[kind, coding, cut], body)) = data.split_first_chunk() else { return };
    let temp = tempfile::tempdir().expect("the fuzzer has a disk");
    let folder = Arc::new(check::folder(temp.path()));
    let nar = crate::codec::nar::naive::nar(&crate::codec::nar::naive::Tree::Symlink(b"target".to_vec()));
    let nar_target = Target::Nar { file_hash: Sha256::digest(&nar), compression: Compression::None };
    check::upload(&folder, &nar_target, None, &nar, 64).expect("a NAR is taken");
    let Some(target) = check::target(kind, body) else { return };
    let coding = ["identity", "zstd", "xz", "gzip", "bzip2", "br"].get(usize::from(coding));
    let before = check::files(temp.path());
    let piece_len = usize::from(cut) + 1;
    let outcome = check::upload(&folder, &target, coding.copied(), body, piece_len);
    let after = check::files(temp.path());
    match outcome {
        Err(Refusal::Failed(error)) => panic!("{error}"),
        // Each path of an import is on its own.
        Err(_) if target == Target::Export => {}
        Err(refusal) => {
            assert!(before == after, "{refusal}, and yet something changed");
            let text = refusal.to_string();
            assert!(!text.is_empty() && text.len() <= REASON_LEN_MAX && text.lines().count() == 1, "{text}");
        }
        Ok(_) => {
            check::upload(&folder, &target, coding.copied(), body, usize::MAX).expect("it was taken before");
            assert!(check::files(temp.path()) == after, "the second time it is another one");
        }
    }
    for (name, content) in before {
        assert!(after.get(&name) == Some(&content), "{name} was there before");
    }
    for (name, content) in after {
        let text = str::from_utf8(&content);
        if let Some(digits) = name.strip_prefix("nar/").and_then(|name| name.get(..52)) {
            assert_eq!(Sha256::digest(&content).to_nix32(), digits);
        } else if let Some(hash_part) = name.strip_suffix(".narinfo") {
            let narinfo = text.ok().and_then(|text| NarInfo::parse(text, &folder.settings.store_dir).ok());
            let narinfo = narinfo.expect("a narinfo");
            assert_eq!(narinfo.info.path.hash_part().as_str(), hash_part);
            let file = std::fs::read(temp.path().join(&narinfo.url)).expect("the NAR of a narinfo is there");
            assert_eq!(narinfo.file_hash, Some(Sha256::digest(&file)));
            assert_eq!(narinfo.file_size, Some(file.len() as u64));
        } else {
            assert!(!name.starts_with(".narwire-uploads/"), "a draft: {name}");
        }
    }
}

/// What fuzzing looks at a cache directory with.
#[cfg(any(test, fuzzing))]
mod check {
    use super::{
        Accepted, Arc, BTreeMap, Bytes, CacheFile, Compression, Path, Refusal, Sha256, StoreDir, StorePath,
        Target, UploadFolder, UploadSettings,
    };
    use crate::codec::build_id::BuildId;
    use crate::codec::realisation::{DrvOutput, OutputName};
    use crate::codec::store_path::HashPart;

    pub fn folder(path: &Path) -> UploadFolder {
        let settings = UploadSettings {
            directory: path.to_path_buf(),
            store_dir: StoreDir::parse("/nix/store").expect("a store directory"),
            len_max: 1 << 20,
            free_min: Some(0),
        };
        UploadFolder::open(settings).expect("the fuzzer has a disk")
    }

    /// A target of each kind; names that must go with the content do so where there is one.
    pub fn target(kind: u8, body: &[u8]) -> Option<Target> {
        let path = StorePath::parse_base_name("0000000000000000000000000000000a-a.drv").expect("a path");
        let hash_part = memchr::memmem::find(body, b"StorePath: /nix/store/")
            .and_then(|at| HashPart::parse(body.get(at + 22..at + 54)?))
            .unwrap_or(path.hash_part());
        let compressions = [
            Compression::None,
            Compression::Zstd,
            Compression::Xz,
            Compression::Gzip,
            Compression::Bzip2,
            Compression::Br,
        ];
        let build_id = BuildId::parse(&[b'a'; 40]).expect("a build id");
        Some(match kind {
            0 => Target::File(CacheFile::CacheInfo),
            1 => Target::File(CacheFile::NarInfo(hash_part)),
            2 => Target::File(CacheFile::Listing(hash_part)),
            3 => Target::File(CacheFile::Log(path)),
            4 => Target::File(CacheFile::Realisation(
                DrvOutput::parse(&format!("sha256:{}!out", "0".repeat(64))).expect("an id"),
            )),
            5 => Target::File(CacheFile::BuildTrace {
                derivation: path,
                output: OutputName::parse("out").expect("a name"),
            }),
            6..=7 => Target::File(CacheFile::DebugInfo { build_id, has_suffix: kind == 7 }),
            8 => Target::Export,
            kind => Target::Nar {
                file_hash: Sha256::digest(body),
                compression: *compressions.get(usize::from(kind - 9))?,
            },
        })
    }

    pub fn upload(
        folder: &Arc<UploadFolder>,
        target: &Target,
        coding: Option<&str>,
        body: &[u8],
        piece_len: usize,
    ) -> Result<Accepted, Refusal> {
        let len = (!body.len().is_multiple_of(3)).then_some(body.len() as u64);
        let mut upload = folder.begin(target.clone(), coding, len)?;
        let mut offset = 0;
        for piece in body.chunks(piece_len) {
            if let Some(file) = upload.file() {
                rustix::io::pwrite(file, piece, offset).expect("the fuzzer has a disk");
            }
            offset += piece.len() as u64;
            let mut piece = Bytes::copy_from_slice(piece);
            while !piece.is_empty() {
                upload.push(&mut piece)?;
            }
        }
        upload.finish(&mut |_| Ok(false))
    }

    /// All files with their contents, by their names in the directory.
    pub fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let (mut files, mut folders) = (BTreeMap::new(), vec![path.to_path_buf()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let entry = entry.expect("an entry").path();
                if entry.is_dir() {
                    folders.push(entry);
                    continue;
                }
                let name = entry.strip_prefix(path).expect("beneath it").display().to_string();
                files.insert(name, std::fs::read(&entry).expect("a file"));
            }
        }
        files
    }
}

#[cfg(test)]
mod tests;
