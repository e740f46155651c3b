//! Files that get their name when they are whole: drafts.
//!
//! What is on disk must be right whenever the process ends. So a file is written where nobody looks for it, brought to the disk,
//! renamed, and its new name brought to the disk. Whatever stays of a draft is removed with the directory of drafts.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;

use super::directory::{Directory, FileFacts};
use super::fault;
use crate::store::StoreError;

/// A directory of drafts. Any thread may begin one.
#[derive(Debug)]
pub struct Drafts {
    directory: Arc<Directory>,
    /// Makes their names differ.
    begun: AtomicU64,
}

/// A file that is being written, and has no name that anybody looks for. Removed when it is dropped.
///
/// Its descriptor is open for reading and writing.
#[derive(Debug)]
pub struct Draft {
    file: OwnedFd,
    directory: Arc<Directory>,
    name: String,
}

impl Drafts {
    /// Drafts in that directory, which is on the same file system as those that they go to.
    pub fn new(directory: Directory) -> Self {
        Self { directory: Arc::new(directory), begun: AtomicU64::new(0) }
    }

    /// Begins a file.
    pub fn begin(&self) -> Result<Draft, StoreError> {
        // Neither this process uses the name nor one beside it.
        let name = format!("{}-{}", std::process::id(), self.begun.fetch_add(1, Ordering::Relaxed));
        let file = self.directory.open_file(&name, OFlags::CREATE | OFlags::EXCL)?;
        Ok(Draft { file, directory: Arc::clone(&self.directory), name })
    }

    /// Writes a file that is either there as a whole or not at all, in the place of an earlier one.
    pub fn write(&self, text: &[u8], directory: &Directory, name: &str) -> Result<(), StoreError> {
        let point = |point| fault::point(point).map_err(|error| directory.failed("write", name, error));
        point("text: begun")?;
        let draft = self.begin()?;
        draft.append(text)?;
        draft.sync()?;
        point("text: file written")?;
        draft.give_name(directory, name)?;
        point("text: file renamed")?;
        directory.sync()
    }
}

impl Draft {
    /// Writes behind what was written with this.
    pub fn append(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let written = Appender(self.file.as_fd()).write_all(bytes);
        written.map_err(|error| self.failed("write", error))
    }

    /// What is known of it. Another name changes none of that.
    pub fn facts(&self) -> Result<FileFacts, StoreError> {
        FileFacts::of(&self.file).map_err(|error| self.failed("examine", error))
    }

    /// That something could not be done to it.
    pub fn failed(&self, operation: &'static str, error: impl Into<io::Error>) -> StoreError {
        self.directory.failed(operation, &self.name, error)
    }

    /// Waits until it is on the disk.
    pub fn sync(&self) -> Result<(), StoreError> {
        rustix::fs::fsync(&self.file).map_err(|error| self.failed("write", error))
    }

    /// Gives it a directory and a name, in the place of what has that name. The name is on the disk after [`Directory::sync`].
    pub fn give_name(mut self, directory: &Directory, name: &str) -> Result<(), StoreError> {
        self.directory.rename(&self.name, directory, name)?;
        self.name.clear();
        Ok(())
    }
}

impl AsFd for Draft {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // One that was given a name has another one.
        if !self.name.is_empty() {
            // Whatever stays is removed with the directory, or when it is opened again.
            let _ = self.directory.remove(&self.name);
            // What it takes of the disk is given back here, where that may wait, and not by who still has it open and closes it last:
            // that may be a worker. A name that is left may be the one it was to get.
            if rustix::fs::fstat(&self.file).is_ok_and(|status| status.st_nlink == 0) {
                let _ = rustix::fs::ftruncate(&self.file, 0);
            }
        }
    }
}

/// A descriptor that is written to.
struct Appender<'a>(BorrowedFd<'a>);

impl io::Write for Appender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd as _;

    use rustix::fs::fstat;

    use super::*;

    #[test]
    fn what_is_dropped_takes_nothing_of_the_disk_even_if_somebody_has_it_open() {
        let folder = tempfile::tempdir().unwrap();
        let drafts = Drafts::new(Directory::open(folder.path()).unwrap());
        let draft = drafts.begin().unwrap();
        draft.append(&vec![7; 100_000]).unwrap();
        let open = draft.as_fd().try_clone_to_owned().unwrap();
        drop(draft);
        let status = fstat(&open).unwrap();
        assert_eq!((status.st_nlink, status.st_size), (0, 0));
    }

    #[test]
    fn what_has_another_name_by_now_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let drafts = Drafts::new(Directory::open(folder.path()).unwrap());
        let draft = drafts.begin().unwrap();
        draft.append(b"text").unwrap();
        // As if the disk had said that this failed, and done it.
        fs::rename(folder.path().join(&draft.name), folder.path().join("name")).unwrap();
        drop(draft);
        assert_eq!(fs::read(folder.path().join("name")).unwrap(), b"text");
    }
}
