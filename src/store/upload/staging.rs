//! Where uploads lie until they are whole: `.narwire-uploads/<a folder of this process>/`, in the directory itself, because a file gets
//! its name only within one file system.
//!
//! Each process holds a lock on its own folder. Two of them may write into one directory for a while, when one takes over from
//! the other, and neither may remove what the other receives. A folder whose lock can be had belongs to nobody any more.

use std::io;
use std::os::fd::AsFd as _;

use rustix::fs::FlockOperation;
use rustix::io::{Errno, retry_on_intr};
use tracing::warn;

use crate::store::directory::Directory;
use crate::store::draft::Drafts;
use crate::store::nar_cache::QUARANTINE_NAME;
use crate::store::{StoreError, fault};

/// Begins with a dot, so that nobody can ask for it.
pub(super) const STAGING_NAME: &str = ".narwire-uploads";
/// Where damaged files go.
pub(super) const QUARANTINE_PATH: &str = ".narwire-uploads/quarantine";

/// The folder of this process. Removed when it is dropped.
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) drafts: Drafts,
    folders: Directory,
    name: String,
}

impl Staging {
    /// Makes a folder, and removes those of processes that have ended.
    pub(super) fn open(root: &Directory) -> Result<Self, StoreError> {
        let folders = root.beneath_or_new(STAGING_NAME)?;
        let failed = |operation, error: Errno| StoreError::io(operation, folders.path(), error);
        // One process at a time: a folder without a lock must not be one that somebody is about to lock.
        retry_on_intr(|| rustix::fs::flock(&folders, FlockOperation::LockExclusive))
            .map_err(|error| failed("lock", error))?;
        let made = point(&folders, "staging: begun")
            .and_then(|()| remove_abandoned(&folders))
            .and_then(|()| make_folder(&folders));
        let unlocked = rustix::fs::flock(&folders, FlockOperation::Unlock);
        unlocked.map_err(|error| failed("unlock", error))?;
        let (folder, name) = made?;
        Ok(Self { drafts: Drafts::new(folder), folders, name })
    }

    /// Where damaged files go. All processes share it, and none of them removes what is in it.
    pub(super) fn quarantine(&self) -> Result<Directory, StoreError> {
        self.folders.beneath_or_new(QUARANTINE_NAME)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // With something in it, it stays until somebody opens the directory again.
        let _ = self.folders.remove_directory(&self.name);
    }
}

/// A new folder, locked for as long as it is open.
fn make_folder(folders: &Directory) -> Result<(Directory, String), StoreError> {
    let mut number = 0_u64;
    loop {
        // Beside this one there may be another of the same process, or of a process that has the same number in another container.
        let name = format!("{}-{number}", std::process::id());
        if !folders.has(&name)? {
            let folder = folders.beneath_or_new(&name)?;
            point(folders, "staging: folder made")?;
            rustix::fs::flock(folder.as_fd(), FlockOperation::NonBlockingLockExclusive)
                .map_err(|error| StoreError::io("lock", folder.path(), error))?;
            return Ok((folder, name));
        }
        number += 1;
    }
}

/// Removes the folders that nobody has locked, with the files in them, and nothing else.
fn remove_abandoned(folders: &Directory) -> Result<(), StoreError> {
    for name in folders.names()? {
        let name = name?;
        // One that cannot be removed harms nobody.
        if let Err(error) = remove_if_abandoned(folders, &name) {
            warn!("what an earlier process has left stays: {error}");
        }
    }
    Ok(())
}

fn remove_if_abandoned(folders: &Directory, name: &str) -> Result<(), StoreError> {
    if name == QUARANTINE_NAME {
        return Ok(());
    }
    let folder = match folders.beneath(name) {
        Ok(folder) => folder,
        Err(error) if error.io_kind() == Some(io::ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(folder.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(()),
        Err(error) => return Err(StoreError::io("lock", folder.path(), error)),
    }
    for file in folder.names()? {
        let file = file?;
        if folder.file(&file)?.is_some() {
            folder.remove(&file)?;
            point(folders, "staging: file out")?;
        }
    }
    folders.remove_directory(name)
}

fn point(folders: &Directory, name: &str) -> Result<(), StoreError> {
    fault::point(name).map_err(|error| StoreError::io("change", folders.path(), error))
}
