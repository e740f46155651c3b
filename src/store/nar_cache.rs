//! The NAR cache on disk: a binary cache in the layout of `nix copy --to file://…`, and beside it what narwire keeps for itself.
//!
//! ```text
//! nix-cache-info
//! <hash part>.narinfo                     names the compressed file if there is one, else the flat one
//! nar/<hash part>-<NAR hash>.nar.zst
//! nar/<hash part>-<NAR hash>.nar
//! .narwire/lock, catalog, tmp/, quarantine/
//! ```
//!
//! **Whenever the process ends**, every file that has its name here is whole. A NAR comes into being as: file in `tmp/`, to the disk,
//! renamed, the name to the disk; its narinfo in the same way; only then its record. It goes in the opposite order: record,
//! narinfo, file. So a narinfo names a file that is there, and a record stands for both. What a crash can leave is a file
//! without a record, and after a power cut a record that had been taken away: [`CacheFolder::reconcile`] mends both.
//!
//! Nothing is ever deleted but files whose names are made as ours are, narinfos that name such a file and nothing else, and what is
//! in `.narwire`.

mod reconcile;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

pub use self::reconcile::Reconciled;
use self::reconcile::Repair;
use super::catalog::{Catalog, Entry, Kind, NarKey, Record, Soundness, Stored, Taken};
use super::directory::{Directory, NARINFO_SUFFIX, narinfo_name};
use super::draft::{Draft, Drafts};
use super::fault;
use crate::codec::cache_info::CacheInfo;
use crate::codec::hash::Sha256Digest;
use crate::codec::narinfo::{Compression, NarInfo, PathInfo};
use crate::codec::store_path::{HashPart, StoreDir};
use crate::limits::CACHE_INFO_LEN_MAX;
use crate::store::StoreError;

/// How a NAR is encoded in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// As it is.
    Flat,
    /// As one zstd frame.
    Zstd,
}

/// The cache's directory, open. There is one in the process, and [`CacheFolder::open`] makes sure that no other process has one.
///
/// All changes wait for each other, so that any thread may make them.
pub struct CacheFolder {
    role: Role,
    root: Directory,
    nar: Directory,
    own: Directory,
    drafts: Drafts,
    quarantine: Directory,
    catalog: Arc<Catalog>,
    soundness: Soundness,
    store_dir: StoreDir,
    changing: Mutex<()>,
}

/// Whether a NAR could be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicted {
    /// It is gone.
    Removed,
    /// A reader holds it.
    Held,
}

/// Room. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What all encoded NARs take together.
    pub used: u64,
    /// What is left on the file system for this process's user.
    pub free: u64,
    /// What the file system has.
    pub total: u64,
}

/// Why a directory cannot be the NAR cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheFolderError {
    /// It has files, and was not made by narwire.
    #[error("{} is not empty and is no NAR cache of narwire (it has no .narwire in it): choose an empty one", .0.display())]
    Foreign(PathBuf),
    /// Another process has it.
    #[error("another narwire uses the NAR cache {}", .0.display())]
    InUse(PathBuf),
    /// It was filled from a store with another store directory.
    #[error("the NAR cache {} is one of the store {found}, not of {wanted}", path.display())]
    OtherStore {
        /// The cache.
        path: PathBuf,
        /// The store directory of its paths.
        found: StoreDir,
        /// The one that is served.
        wanted: StoreDir,
    },
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] StoreError),
}

/// What a directory is that is to be the NAR cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prospect {
    /// It would be made.
    Missing,
    /// It is empty.
    Empty,
    /// It is one already.
    Cache,
}

/// What this process may do to the folder.
enum Role {
    /// Everything: it holds the lock, for as long as the descriptor is open.
    Owner { _lock: OwnedFd },
    /// Read, and move damaged files away.
    Beside,
}

pub(super) const CACHE_INFO_NAME: &str = "nix-cache-info";
pub(super) const NAR_NAME: &str = "nar";
pub(super) const OWN_NAME: &str = ".narwire";
const LOCK_NAME: &str = "lock";
const TEMPORARY_NAME: &str = "tmp";
pub(super) const QUARANTINE_NAME: &str = "quarantine";

impl Coding {
    /// What a narinfo calls it.
    pub fn compression(self) -> Compression {
        match self {
            Self::Flat => Compression::None,
            Self::Zstd => Compression::Zstd,
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Flat => ".nar",
            Self::Zstd => ".nar.zst",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Flat => Self::Zstd,
            Self::Zstd => Self::Flat,
        }
    }
}

impl CacheFolder {
    /// Opens the cache at `path`, and makes what of it is missing. What an earlier process has left half done is removed.
    ///
    /// The catalog may not agree with the files: call [`CacheFolder::reconcile`] before anything is published.
    pub fn open(path: &Path, store_dir: &StoreDir, priority: u32) -> Result<Self, CacheFolderError> {
        std::fs::create_dir_all(path).map_err(|error| StoreError::io("create", path, error))?;
        let root = Directory::open(path)?;
        if !is_ours(&root)? {
            return Err(CacheFolderError::Foreign(path.to_path_buf()));
        }
        let own = root.beneath_or_new(OWN_NAME)?;
        let lock = own.open_file(LOCK_NAME, OFlags::CREATE)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(CacheFolderError::InUse(path.to_path_buf())),
            Err(error) => return Err(StoreError::io("lock", own.path().join(LOCK_NAME), error).into()),
        }
        let temporary = own.beneath_or_new(TEMPORARY_NAME)?;
        for name in temporary.names()? {
            let name = name?;
            if temporary.file(&name)?.is_some() {
                temporary.remove(&name)?;
            }
        }
        let nar = root.beneath_or_new(NAR_NAME)?;
        let quarantine = own.beneath_or_new(QUARANTINE_NAME)?;
        let (catalog, soundness) = Catalog::open(own.as_fd(), own.path())?;
        let folder = Self {
            role: Role::Owner { _lock: lock },
            root,
            nar,
            own,
            drafts: Drafts::new(temporary),
            quarantine,
            catalog: Arc::new(catalog),
            soundness,
            store_dir: store_dir.clone(),
            changing: Mutex::new(()),
        };
        folder.keep_cache_info(priority)?;
        Ok(folder)
    }

    /// Whether the directory at `path` can be opened as the NAR cache of a store, as far as can be seen without changing anything.
    pub fn look(path: &Path, store_dir: &StoreDir) -> Result<Prospect, CacheFolderError> {
        let root = match Directory::open(path) {
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => return Ok(Prospect::Missing),
            root => root?,
        };
        if !is_ours(&root)? {
            return Err(CacheFolderError::Foreign(path.to_path_buf()));
        }
        own_cache_info(&root, store_dir)?;
        match root.beneath(OWN_NAME) {
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => Ok(Prospect::Empty),
            own => own.map(|_| Prospect::Cache).map_err(Into::into),
        }
    }

    /// Whether the directory at `path` is a NAR cache, of whatever store.
    pub fn is_at(path: &Path) -> bool {
        path.join(OWN_NAME).exists()
    }

    /// Opens the cache at `path` while another process may have it. Of all changes only [`CacheFolder::quarantine`] is then possible,
    /// and it only moves the file away: the process that has the cache finds it missing.
    pub fn open_beside(path: &Path, store_dir: &StoreDir) -> Result<Self, CacheFolderError> {
        let root = Directory::open(path)?;
        let own = match root.beneath(OWN_NAME) {
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => {
                return Err(CacheFolderError::Foreign(path.to_path_buf()));
            }
            own => own?,
        };
        let nar = root.beneath(NAR_NAME)?;
        Ok(Self {
            role: Role::Beside,
            drafts: Drafts::new(own.beneath(TEMPORARY_NAME)?),
            quarantine: own.beneath(QUARANTINE_NAME)?,
            catalog: Arc::new(Catalog::open_beside(own.as_fd(), own.path())?),
            soundness: Soundness::Sound,
            store_dir: store_dir.clone(),
            changing: Mutex::new(()),
            root,
            nar,
            own,
        })
    }

    /// What it has.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// How the catalog was found.
    pub fn soundness(&self) -> Soundness {
        self.soundness
    }

    /// Where it is; for messages.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// The directory that [`CacheFolder::file_name`] is relative to.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Whether the directory that is open is still the one at its path. If not, somebody has removed or replaced it, and what is
    /// done here is seen by nobody.
    pub fn is_there(&self) -> bool {
        self.root.is_at(self.root.path())
            && self.nar.is_in(&self.root, NAR_NAME)
            && self.own.is_in(&self.root, OWN_NAME)
    }

    /// `nar/<hash part>-<NAR hash>.nar[.zst]`: a file's name in the cache, and its URL in a narinfo.
    pub fn file_name(nar: &NarKey, coding: Coding) -> String {
        format!("{NAR_NAME}/{}", base_name(nar, coding))
    }

    /// Begins a file.
    pub fn draft(&self) -> Result<Draft, StoreError> {
        self.drafts.begin()
    }

    /// Makes a NAR visible whose file is written. `narinfo` is the text that names this file; one that names a compressed file of the
    /// same NAR stays instead. Returns the record that had to make room in the catalog; its file is gone as well.
    ///
    /// Fails as [`io::ErrorKind::ResourceBusy`] when a reader holds the same NAR in the same coding, or all that could make room. After
    /// an error the NAR is not there in this coding, or as it was before.
    pub fn publish(
        &self,
        nar: &NarKey,
        draft: Draft,
        stored: &Stored,
        narinfo: &str,
        now_s: u64,
    ) -> Result<Option<Record>, StoreError> {
        let _changing = self.begin_change("publish in")?;
        let name = base_name(nar, stored.coding);
        let path = self.nar.path().join(&name);
        self.point("publish: begun")?;
        let len = draft.facts()?.size;
        if len != stored.file_size {
            let reason = format!("{len} bytes were written, and {} announced", stored.file_size);
            return Err(StoreError::damaged(path.display().to_string(), reason));
        }
        draft.sync()?;
        self.point("publish: file written")?;
        // An older file of that name goes in the usual order, so that nothing ever describes it wrongly.
        let has_older = self.catalog.stored(nar, stored.coding).is_some();
        if self.retire(nar, stored.coding, Place::Nowhere)? == Evicted::Held {
            return Err(StoreError::io("replace", path, Errno::BUSY));
        }
        if has_older {
            // Its record must not come back after a power cut and tell of the new file.
            self.catalog.sync()?;
        }
        self.point("publish: older file out")?;
        let published = self.publish_steps(nar, draft, stored, narinfo, now_s);
        if published.is_err() {
            // The first error is the one to tell of. What cannot be undone now is found by `reconcile`.
            let _ = self.catalog.remove(nar, Kind::Stored(stored.coding));
            let _ = self.remove_files(nar, stored.coding, Place::Nowhere);
        }
        published
    }

    fn publish_steps(
        &self,
        nar: &NarKey,
        draft: Draft,
        stored: &Stored,
        narinfo: &str,
        now_s: u64,
    ) -> Result<Option<Record>, StoreError> {
        draft.give_name(&self.nar, &base_name(nar, stored.coding))?;
        self.point("publish: file renamed")?;
        self.nar.sync()?;
        self.point("publish: name of the file written")?;
        if stored.coding == Coding::Zstd || self.catalog.stored(nar, Coding::Zstd).is_none() {
            self.write_narinfo(nar.0, narinfo)?;
            self.point("publish: narinfo written")?;
        }
        let displaced = self.catalog.insert(nar, Entry::Stored(*stored), now_s)?;
        self.point("publish: record in")?;
        if let Some(Record { nar, entry: Entry::Stored(stored), .. }) = &displaced {
            self.remove_files(nar, stored.coding, Place::Nowhere)?;
            self.point("publish: displaced file out")?;
        }
        self.catalog.sync()?;
        self.point("publish: record written")?;
        Ok(displaced)
    }

    /// Takes a NAR out of the cache, unless a reader holds it. If it stays in another coding, its narinfo then names that file.
    pub fn evict(&self, record: &Record) -> Result<Evicted, StoreError> {
        let _changing = self.begin_change("evict from")?;
        match record.entry {
            Entry::Stored(stored) => self.retire(&record.nar, stored.coding, Place::Nowhere),
            Entry::Damaged(_) => self.catalog.remove(&record.nar, Kind::Damaged).map(|_| Evicted::Removed),
        }
    }

    /// Takes a NAR out of the cache whose file is damaged, whoever reads it, and keeps the file aside. After
    /// [`QUARANTINED_FILES_MAX`](crate::limits::QUARANTINED_FILES_MAX) of them it is deleted.
    pub fn quarantine(&self, record: &Record) -> Result<(), StoreError> {
        let Entry::Stored(stored) = record.entry else { return Ok(()) };
        let name = base_name(&record.nar, stored.coding);
        if matches!(self.role, Role::Beside) {
            return self.nar.move_aside(&name, &self.quarantine);
        }
        let _changing = self.begin_change("quarantine in")?;
        self.point("quarantine: begun")?;
        // To this process the record is gone whatever the disk says, and so the file goes too if the disk lets it.
        let removed = self.catalog.remove(&record.nar, Kind::Stored(stored.coding));
        self.point("quarantine: record out")?;
        self.remove_files(&record.nar, stored.coding, Place::Quarantine)?;
        removed.map(|_| ())
    }

    /// What is used and what is free.
    pub fn space(&self) -> Result<Space, StoreError> {
        let status = rustix::fs::fstatvfs(&self.root)
            .map_err(|error| StoreError::io("examine", self.root.path(), error))?;
        let bytes = |blocks: u64| blocks.saturating_mul(status.f_frsize);
        Ok(Space {
            used: self.catalog.stored_len_bytes(),
            free: bytes(status.f_bavail),
            total: bytes(status.f_blocks),
        })
    }

    /// Keeps a text in `.narwire` under this name, in the place of an earlier one: after a crash one of the two is there.
    pub fn keep(&self, name: &str, text: &str) -> Result<(), StoreError> {
        self.drafts.write(text.as_bytes(), &self.own, name)
    }

    /// The text that was kept under this name, if it is no longer than `len_max` bytes.
    pub fn kept(&self, name: &str, len_max: usize) -> Result<Option<String>, StoreError> {
        self.own.read_text(name, len_max)
    }

    /// Takes out record, narinfo and file of a NAR in one coding, as far as they are there.
    fn retire(&self, nar: &NarKey, coding: Coding, place: Place) -> Result<Evicted, StoreError> {
        self.point("evict: begun")?;
        if self.catalog.take_unless_leased(nar, Kind::Stored(coding))? == Taken::Leased {
            return Ok(Evicted::Held);
        }
        self.point("evict: record out")?;
        self.remove_files(nar, coding, place)?;
        Ok(Evicted::Removed)
    }

    /// Removes the file of a NAR in one coding, and before that its name from the narinfo.
    fn remove_files(&self, nar: &NarKey, coding: Coding, place: Place) -> Result<(), StoreError> {
        let name = base_name(nar, coding);
        if let Some(narinfo) = self.read_narinfo(nar.0)?
            && narinfo.url == CacheFolder::file_name(nar, coding)
        {
            self.renounce(nar, narinfo, self.catalog.stored(nar, coding.other()))?;
            self.root.sync()?;
            self.point("evict: narinfo out")?;
        }
        match place {
            Place::Nowhere => self.nar.remove(&name)?,
            Place::Quarantine => self.nar.move_aside(&name, &self.quarantine)?,
        }
        self.point("evict: file out")
    }

    /// Lets a narinfo name what remains of its NAR, or removes it.
    fn renounce(
        &self,
        nar: &NarKey,
        narinfo: NarInfo,
        remaining: Option<Stored>,
    ) -> Result<Repair, StoreError> {
        // One that contradicts itself is of no use.
        let is_ours = (narinfo.info.path.hash_part(), narinfo.info.nar_hash) == *nar;
        if let Some(stored) = remaining.filter(|_| is_ours) {
            match self.write_narinfo(nar.0, &self.narinfo_text(narinfo.info, &stored)) {
                Ok(()) => return Ok(Repair::NarInfoRewritten),
                // What is evicted to make room must go even if there is none for a new narinfo.
                Err(error) if error.is_no_room() => {}
                Err(error) => return Err(error),
            }
        }
        self.root.remove(&narinfo_name(nar.0))?;
        Ok(Repair::NarInfoRemoved)
    }

    /// The text of the narinfo of a path that names its NAR in this file.
    pub fn narinfo_text(&self, info: PathInfo, stored: &Stored) -> String {
        let url = Self::file_name(&(info.path.hash_part(), info.nar_hash), stored.coding);
        let Stored { coding, file_hash, file_size, .. } = *stored;
        let mut text = String::new();
        NarInfo::new(info, url, coding.compression(), file_hash, file_size).write(&self.store_dir, &mut text);
        text
    }

    /// The narinfo of a path, if there is one that can be read.
    fn read_narinfo(&self, hash_part: HashPart) -> Result<Option<NarInfo>, StoreError> {
        self.root.narinfo(hash_part, &self.store_dir)
    }

    fn write_narinfo(&self, hash_part: HashPart, text: &str) -> Result<(), StoreError> {
        self.drafts.write(text.as_bytes(), &self.root, &narinfo_name(hash_part))
    }

    fn keep_cache_info(&self, priority: u32) -> Result<(), CacheFolderError> {
        let wanted = CacheInfo { store_dir: self.store_dir.clone(), want_mass_query: true, priority };
        if own_cache_info(&self.root, &self.store_dir)?.as_ref() != Some(&wanted) {
            let mut text = String::new();
            wanted.write(&mut text);
            self.drafts.write(text.as_bytes(), &self.root, CACHE_INFO_NAME)?;
        }
        Ok(())
    }

    /// Waits for other changes. An error for who does not own the cache.
    fn begin_change(&self, operation: &'static str) -> Result<MutexGuard<'_, ()>, StoreError> {
        match self.role {
            Role::Owner { .. } => Ok(self.changing.lock().unwrap_or_else(PoisonError::into_inner)),
            Role::Beside => Err(StoreError::io(operation, self.path(), Errno::PERM)),
        }
    }

    fn point(&self, name: &str) -> Result<(), StoreError> {
        fault::point(name).map_err(|error| StoreError::io("change", self.path(), error))
    }
}

impl fmt::Debug for CacheFolder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CacheFolder").field("path", &self.path()).finish_non_exhaustive()
    }
}

/// Where a file goes that is taken out.
#[derive(Clone, Copy)]
enum Place {
    Nowhere,
    Quarantine,
}

/// What the cache says of itself, if it is of use; it must be a cache of this store directory.
fn own_cache_info(root: &Directory, store_dir: &StoreDir) -> Result<Option<CacheInfo>, CacheFolderError> {
    match read_cache_info(root, store_dir)? {
        Some(found) if found.store_dir != *store_dir => Err(CacheFolderError::OtherStore {
            path: root.path().to_path_buf(),
            found: found.store_dir,
            wanted: store_dir.clone(),
        }),
        found => Ok(found),
    }
}

/// What a binary cache says of itself, if that can be read. Where it does not name its store directory, it is this one.
pub(super) fn read_cache_info(
    root: &Directory,
    store_dir: &StoreDir,
) -> Result<Option<CacheInfo>, StoreError> {
    let len_max = usize::try_from(CACHE_INFO_LEN_MAX).unwrap_or(usize::MAX);
    let text = root.read_text(CACHE_INFO_NAME, len_max)?;
    Ok(text.and_then(|text| CacheInfo::parse(&text, store_dir).ok()))
}

/// Whether narwire made this directory, or may make it its own: nothing is in it. (A file system of its own has `lost+found`.)
fn is_ours(root: &Directory) -> Result<bool, StoreError> {
    let mut is_empty = true;
    for name in root.names()? {
        match name?.as_str() {
            OWN_NAME => return Ok(true),
            "lost+found" => {}
            _ => is_empty = false,
        }
    }
    Ok(is_empty)
}

fn base_name((hash_part, nar_hash): &NarKey, coding: Coding) -> String {
    format!("{hash_part}-{}{}", nar_hash.to_nix32(), coding.suffix())
}

/// The NAR whose file has this name in `nar/`; none when it is no name of ours.
fn parse_base_name(name: &str) -> Option<(NarKey, Coding)> {
    let (stem, coding) = match name.strip_suffix(Coding::Zstd.suffix()) {
        Some(stem) => (stem, Coding::Zstd),
        None => (name.strip_suffix(Coding::Flat.suffix())?, Coding::Flat),
    };
    let (hash_part, nar_hash) = stem.split_once('-')?;
    let nar = (HashPart::parse(hash_part.as_bytes())?, Sha256Digest::from_nix32(nar_hash.as_bytes())?);
    Some((nar, coding))
}

#[cfg(test)]
mod tests;
