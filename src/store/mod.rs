//! Layer 1a: state on disk, blocking and synchronous; the caller decides on which thread.
//!
//! Nothing here knows a socket. "Absent" is an `Option`, never an error, and an error is never turned into "absent":
//! a client remembers a 404 for an hour, so a locked database must not look like a missing path.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;

use crate::codec::store_path::StoreDir;

pub mod cache_index;
pub mod catalog;
pub mod change;
pub mod db;
pub mod debuginfo;
pub mod demo;
pub mod directory;
pub mod draft;
pub mod fault;
pub mod inside;
pub mod keys;
pub mod log;
pub mod nar_cache;
pub mod nar_file;
pub mod tokens;
pub mod upload;
pub mod walk;

/// The set of places that make one local Nix store. Plain values, decided by the configuration.
#[derive(Debug, Clone)]
pub struct LocalStore {
    /// The store directory that clients see and that the database names, usually `/nix/store`.
    pub store_dir: StoreDir,
    /// The directory where the files really lie; differs from `store_dir` for a chroot store.
    pub real_store: PathBuf,
    /// Nix's database, usually `/nix/var/nix/db/db.sqlite`.
    pub database: PathBuf,
    /// The folder of build logs, usually `/nix/var/log/nix/drvs`.
    pub log_dir: PathBuf,
}

impl LocalStore {
    /// The store beneath `root` in the layout of `nix-store --store <root>`: its files are in `<root>/nix/store`
    /// and the database speaks of `/nix/store`.
    pub fn beneath(root: &Path, store_dir: StoreDir) -> Self {
        Self {
            store_dir,
            real_store: root.join("nix/store"),
            database: root.join("nix/var/nix/db/db.sqlite"),
            log_dir: root.join("nix/var/log/nix/drvs"),
        }
    }
}

/// What can go wrong with state on disk, by cause.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite reported a fault; `fault` says whether trying again can help.
    #[error("database {}: {fault}: {source}", path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// What to make of it.
        fault: DatabaseFault,
        /// SQLite's own words.
        source: rusqlite::Error,
    },
    /// The database is readable and is none that this program understands.
    #[error("database {}: {reason}", path.display())]
    Schema {
        /// The database file.
        path: PathBuf,
        /// What was expected and found.
        reason: String,
    },
    /// A row, a file or a tree contradicts what it must be.
    #[error("{subject} is damaged: {reason}")]
    Damaged {
        /// The store path, file or row.
        subject: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tree that may well be what the database says, and of which no NAR can be made that clients take.
    #[error("{subject} cannot be served: {reason}")]
    Unservable {
        /// The store path.
        subject: String,
        /// Which bound it is beyond.
        reason: String,
    },
    /// The operating system refused.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The verb of the sentence "cannot … <path>".
        operation: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// Classes of SQLite faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseFault {
    /// Somebody held a lock for longer than [`crate::limits::DATABASE_BUSY_TIMEOUT_MS`]; a later try can succeed.
    Busy,
    /// The file is damaged, or is no database.
    Corrupt,
    /// The file cannot be opened or read: missing, permissions, a failing disk.
    Unreadable,
    /// Anything else.
    Other,
}

impl std::fmt::Display for DatabaseFault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Busy => "busy",
            Self::Corrupt => "corrupt",
            Self::Unreadable => "cannot be read",
            Self::Other => "failed",
        })
    }
}

/// Whether an error says that there is no room: the disk is full, or this user may not have more of it. Then removing something helps.
pub fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl StoreError {
    /// What the operating system said, if it was asked.
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Database { .. } | Self::Schema { .. } | Self::Damaged { .. } | Self::Unservable { .. } => {
                None
            }
        }
    }

    /// The kind of that.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        self.io_error().map(io::Error::kind)
    }

    /// Whether the operating system refused because there is no room: see [`is_no_room`].
    pub fn is_no_room(&self) -> bool {
        self.io_error().is_some_and(is_no_room)
    }

    /// Whether it says something about this moment, not about what was asked for: trying again can help.
    pub fn is_passing(&self) -> bool {
        const PASSING: [Errno; 5] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INTR, Errno::AGAIN];
        match self {
            Self::Database { fault, .. } => *fault == DatabaseFault::Busy,
            Self::Io { source, .. } => {
                Errno::from_io_error(source).is_some_and(|errno| PASSING.contains(&errno))
            }
            Self::Schema { .. } | Self::Damaged { .. } | Self::Unservable { .. } => false,
        }
    }

    fn damaged(subject: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Damaged { subject: subject.into(), reason: reason.to_string() }
    }

    fn io(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io { path: path.into(), operation, source: source.into() }
    }
}

/// Seconds since 1970; before that everything happens at once.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// The folder that a file is in, by its name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_used_quota_are_no_room() {
        for (errno, expected) in [(Errno::NOSPC, true), (Errno::DQUOT, true), (Errno::IO, false)] {
            assert_eq!(StoreError::io("write", "x", errno).is_no_room(), expected, "{errno}");
        }
        assert!(!StoreError::damaged("x", "full").is_no_room());
    }
}
