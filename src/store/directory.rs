//! An open directory: all that is done to the NAR cache and to a directory of uploads is done relative to one of these.
//!
//! A directory that was renamed or removed meanwhile is still the one that was opened, and a link that somebody puts in the place of
//! a file is an error.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Statx, StatxFlags};
use rustix::io::Errno;
use tracing::warn;

use crate::codec::narinfo::NarInfo;
use crate::codec::store_path::{HashPart, StoreDir};
use crate::limits::CACHED_NARINFO_LEN_MAX;
use crate::limits::QUARANTINED_FILES_MAX;
use crate::store::StoreError;

/// An open directory, and its path for messages.
#[derive(Debug)]
pub struct Directory {
    descriptor: OwnedFd,
    path: PathBuf,
}

/// A regular file, as its directory tells of it. One that was replaced or written to since has others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileFacts {
    /// The file system that it is on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Length. Bytes.
    pub size: u64,
    /// When its contents were written. Seconds since 1970.
    pub modified_s: u64,
    /// The same, nanoseconds within that second.
    pub modified_ns: u32,
}

/// What can be in the place of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// A link, wherever it leads.
    #[error("it is a symbolic link")]
    Link,
    /// Neither a link nor a directory.
    #[error("it is no directory")]
    File,
    /// A directory of another file system, or of another mount of the same.
    #[error("it is on another file system, or a mount of its own")]
    Mount,
}

impl Directory {
    /// Opens the directory at `path`, which may be a link to one.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|error| StoreError::io("open", path, error))?;
        Ok(Self { descriptor, path: path.to_path_buf() })
    }

    /// A directory that is open already; `path` is for messages.
    pub fn new(descriptor: OwnedFd, path: PathBuf) -> Self {
        Self { descriptor, path }
    }

    /// Opens a directory in this one.
    pub fn beneath(&self, name: &str) -> Result<Self, StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor = rustix::fs::openat(&self.descriptor, name, flags, Mode::empty())
            .map_err(|error| self.failed("open", name, error))?;
        Ok(Self { descriptor, path: self.path.join(name) })
    }

    /// Opens a directory in this one, if there is one of that name.
    pub fn beneath_if_there(&self, name: &str) -> Result<Option<Self>, StoreError> {
        match self.beneath(name) {
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => Ok(None),
            directory => directory.map(Some),
        }
    }

    /// Opens a directory in this one, and makes it if it is not there. Its name is on the disk then.
    pub fn beneath_or_new(&self, name: &str) -> Result<Self, StoreError> {
        match rustix::fs::mkdirat(&self.descriptor, name, Mode::from_raw_mode(0o755)) {
            // Who made what is there may not have come to that: another thread is about to, and a process may have been killed. (Making
            // comes first in that order: on a read-only file system, what is there is said to be there.)
            Ok(()) | Err(Errno::EXIST) => self.sync()?,
            Err(error) => return Err(self.failed("create", name, error)),
        }
        self.beneath(name)
    }

    /// The path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file for reading and writing; `new` flags say what to do if it is there or not.
    pub fn open_file(&self, name: &str, new: OFlags) -> Result<OwnedFd, StoreError> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | new;
        rustix::fs::openat(&self.descriptor, name, flags, Mode::from_raw_mode(0o644))
            .map_err(|error| self.failed("open", name, error))
    }

    /// The text of a file. `None` when there is no such file, or when it is longer than `len_max` bytes, no text, or no regular file.
    pub fn read_text(&self, name: &str, len_max: usize) -> Result<Option<String>, StoreError> {
        let Some(file) = self.open_to_read(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(len_max as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| StoreError::io("read", self.path.join(name), error))?;
        Ok(if bytes.len() > len_max { None } else { String::from_utf8(bytes).ok() })
    }

    /// Opens a regular file for reading. `None` when there is none of that name.
    pub fn open_to_read(&self, name: &str) -> Result<Option<File>, StoreError> {
        // To open what is none can do something.
        if self.file(name)?.is_none() {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.descriptor, name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.failed("open", name, error)),
        }
    }

    /// Opens a regular file by the names that lead to it, none of which may be a link. `None` when there is none.
    pub fn open_beneath(&self, name: &str) -> Result<Option<OwnedFd>, StoreError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = match rustix::fs::openat2(&self.descriptor, name, flags, Mode::empty(), resolve) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(None),
            Err(error) => return Err(self.failed("open", name, error)),
        };
        let status = rustix::fs::fstat(&file).map_err(|error| self.failed("examine", name, error))?;
        Ok(FileType::from_raw_mode(status.st_mode).is_file().then_some(file))
    }

    /// The narinfo of a path in a cache directory, if there is one that can be read.
    pub fn narinfo(&self, hash_part: HashPart, store_dir: &StoreDir) -> Result<Option<NarInfo>, StoreError> {
        let name = narinfo_name(hash_part);
        let Some(text) = self.read_text(&name, CACHED_NARINFO_LEN_MAX)? else { return Ok(None) };
        // Clients are sent it as it is, and say what they make of it.
        let parsed = NarInfo::parse(&text, store_dir);
        Ok(parsed
            .inspect_err(|error| warn!("{} is no narinfo: {error}", self.path.join(name).display()))
            .ok())
    }

    /// A regular file. `None` when there is none of that name.
    pub fn file(&self, name: &str) -> Result<Option<FileFacts>, StoreError> {
        let status = match rustix::fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => status,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(self.failed("examine", name, error)),
        };
        Ok(FileType::from_raw_mode(status.st_mode).is_file().then(|| FileFacts::from(&status)))
    }

    /// Whether there is anything of that name.
    pub fn has(&self, name: &str) -> Result<bool, StoreError> {
        match rustix::fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(self.failed("examine", name, error)),
        }
    }

    /// What of that name keeps files from being moved there: they can be moved into a directory that is in the same mount. `None` when
    /// there is such a one, or nothing.
    pub fn obstacle(&self, name: &str) -> Result<Option<Obstacle>, StoreError> {
        let examine = |name| {
            let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
            rustix::fs::statx(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW, wanted)
        };
        let found = match examine(name) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(self.failed("examine", name, error)),
        };
        let own = examine(".").map_err(|error| StoreError::io("examine", &self.path, error))?;
        let mount = |status: &Statx| {
            // Linux before 5.8 does not know it.
            let is_known = status.stx_mask & StatxFlags::MNT_ID.bits() != 0;
            (status.stx_dev_major, status.stx_dev_minor, is_known.then_some(status.stx_mnt_id))
        };
        Ok(match FileType::from_raw_mode(u32::from(found.stx_mode)) {
            FileType::Directory => (mount(&found) != mount(&own)).then_some(Obstacle::Mount),
            FileType::Symlink => Some(Obstacle::Link),
            _ => Some(Obstacle::File),
        })
    }

    /// Removes a file. It may be gone already.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        match rustix::fs::unlinkat(&self.descriptor, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failed("remove", name, error)),
        }
    }

    /// Removes a directory in this one. It stays if there is something in it, and may be gone already.
    pub fn remove_directory(&self, name: &str) -> Result<(), StoreError> {
        match rustix::fs::unlinkat(&self.descriptor, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => Ok(()),
            Err(error) => Err(self.failed("remove", name, error)),
        }
    }

    /// Gives a file another directory and name, in the place of what has that name.
    pub fn rename(&self, name: &str, target: &Self, target_name: &str) -> Result<(), StoreError> {
        rustix::fs::renameat(&self.descriptor, name, &target.descriptor, target_name)
            .map_err(|error| target.failed("create", target_name, error))
    }

    /// Moves a damaged file away, for somebody to look at; it may be gone already. When there are [`QUARANTINED_FILES_MAX`] of them it is
    /// deleted. Who has it open goes on.
    pub fn move_aside(&self, name: &str, quarantine: &Self) -> Result<(), StoreError> {
        let kept = quarantine.names()?.take(QUARANTINED_FILES_MAX).count();
        if kept == QUARANTINED_FILES_MAX {
            return self.remove(name);
        }
        match self.rename(name, quarantine, name) {
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => Ok(()),
            moved => moved,
        }
    }

    /// Waits until the names are on the disk.
    pub fn sync(&self) -> Result<(), StoreError> {
        rustix::fs::fsync(&self.descriptor).map_err(|error| StoreError::io("write", &self.path, error))
    }

    /// The names in it, without `.` and `..` and those that are no text.
    pub fn names(&self) -> Result<impl Iterator<Item = Result<String, StoreError>> + '_, StoreError> {
        let failed = |error: Errno| StoreError::io("read", &self.path, error);
        let entries = Dir::read_from(&self.descriptor).map_err(failed)?;
        Ok(entries.filter_map(move |entry| match entry {
            Ok(entry) => {
                let name = entry.file_name().to_str().ok()?;
                (name != "." && name != "..").then(|| Ok(name.to_owned()))
            }
            Err(error) => Some(Err(failed(error))),
        }))
    }

    /// Whether this is the directory that a path leads to now.
    pub fn is_at(&self, path: &Path) -> bool {
        self.is(rustix::fs::statat(CWD, path, AtFlags::empty()))
    }

    /// Whether this is the directory of that name in another one now.
    pub fn is_in(&self, parent: &Self, name: &str) -> bool {
        self.is(rustix::fs::statat(&parent.descriptor, name, AtFlags::SYMLINK_NOFOLLOW))
    }

    fn is(&self, found: rustix::io::Result<Stat>) -> bool {
        match (found, rustix::fs::fstat(&self.descriptor)) {
            (Ok(found), Ok(own)) => (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino),
            _ => false,
        }
    }

    /// That something could not be done to a file in it.
    pub fn failed(&self, operation: &'static str, name: &str, error: impl Into<io::Error>) -> StoreError {
        StoreError::io(operation, self.path.join(name), error)
    }
}

impl FileFacts {
    /// Those of an open file.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        Ok(Self::from(&rustix::fs::fstat(file)?))
    }
}

impl From<&Stat> for FileFacts {
    fn from(status: &Stat) -> Self {
        Self {
            device: status.st_dev,
            inode: status.st_ino,
            size: u64::try_from(status.st_size).unwrap_or(0),
            modified_s: u64::try_from(status.st_mtime).unwrap_or(0),
            modified_ns: u32::try_from(status.st_mtime_nsec).unwrap_or(0),
        }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The name of the narinfo of a path in a cache directory.
pub(super) fn narinfo_name(hash_part: HashPart) -> String {
    format!("{hash_part}{NARINFO_SUFFIX}")
}

/// How it ends.
pub(super) const NARINFO_SUFFIX: &str = ".narinfo";
