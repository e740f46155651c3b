//! Memory that others write while it is read: the catalog's file, and what the process knows of its records.
#![allow(unsafe_code)] // loads from mapped memory, and stores to it
#![allow(clippy::cast_ptr_alignment)] // a mapping starts at a page

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw};

/// A mapped file. It is written with pwrite(2): a store to a page that is shared with the file can end the process with a signal
/// where a write fails, on a full or read-only file system, or a failing disk.
///
/// So can a load, if the kernel has dropped the page and can no longer read it; and if it can, whoever loads waits for the disk.
/// A page that was [kept](FileWords::keep) is never dropped: it is a copy that belongs to the process like all its memory, and
/// whoever writes the file writes there as well.
pub(super) struct FileWords {
    map: MmapRaw,
    sharing: Sharing,
}

/// Whose the file is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// This process's: nobody else writes it, and pages can be kept.
    Own,
    /// Another process's, which goes on writing it. Pages are as they are in the file.
    Other,
}

/// Words of this process alone, zero at first. They take memory from when they are touched.
pub(super) struct ProcessWords(MmapRaw);

impl FileWords {
    /// Maps the first `len_bytes` of a file that is at least that long.
    pub fn map(file: &File, len_bytes: usize, sharing: Sharing) -> io::Result<Self> {
        let mut options = MmapOptions::new();
        options.len(len_bytes);
        let map = match sharing {
            // SAFETY: a mapping is no reference yet, and the copy that `MmapMut` could give one to is taken apart at once. All
            // access goes through `load` and `store`, which are atomic, so that it does not matter who writes the file.
            Sharing::Own => unsafe { options.map_copy(file) }?.into(),
            Sharing::Other => options.map_raw_read_only(file)?,
        };
        Ok(Self { map, sharing })
    }

    /// Makes pages the process's own that bytes from `offset` on lie in; a page that is one stays as it is. What another process
    /// writes is not kept.
    ///
    /// # Errors
    /// When there is no memory for them, or the file cannot be read.
    pub fn keep(&self, offset: usize, len_bytes: usize) -> io::Result<()> {
        match self.sharing {
            // As a store would, but a page that cannot be read is an error and no signal.
            Sharing::Own => self.map.advise_range(Advice::PopulateWrite, offset, len_bytes),
            Sharing::Other => Ok(()),
        }
    }

    /// The word at `index`: what [`FileWords::store`] put there, or else as it is in the file. It carries no order: who needs one has
    /// another word for it.
    ///
    /// # Panics
    /// When it lies outside of the mapping.
    pub fn load(&self, index: usize) -> u32 {
        self.word(index).load(Ordering::Relaxed)
    }

    /// Sets a word of a page that was kept; the file is not changed.
    ///
    /// # Panics
    /// When it lies outside of the mapping, or the file is another process's.
    pub fn store(&self, index: usize, word: u32) {
        assert!(self.sharing == Sharing::Own, "a mapping of another process's file cannot be written");
        self.word(index).store(word, Ordering::Relaxed);
    }

    fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.map.len() / size_of::<AtomicU32>(), "a word outside of the mapped file");
        // SAFETY: the mapping starts at a page and `index` is within its length, so the pointer is aligned and points to four
        // mapped bytes for as long as `self` lives, which the returned reference borrows. No reference to plain memory is ever
        // made from this mapping: this is the only access, so that whatever writes the file meanwhile (this process with
        // pwrite, the kernel for another one) races with atomic accesses alone. A relaxed load of four bytes is an ordinary
        // `mov`, fit for read-only memory; `store` is kept from that.
        unsafe { &*self.map.as_mut_ptr().cast::<AtomicU32>().add(index) }
    }
}

impl ProcessWords {
    /// So many words.
    pub fn zeroed(words: usize) -> io::Result<Self> {
        MmapMut::map_anon(words * size_of::<AtomicU32>()).map(|map| Self(map.into()))
    }

    /// The word at `index`.
    ///
    /// # Panics
    /// When there is none.
    pub fn get(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.0.len() / size_of::<AtomicU32>(), "a word that is not there");
        // SAFETY: the mapping is private, anonymous, readable and writable, starts at a page and lives as long as `self`, which
        // the returned reference borrows; `index` is within its length. It is reached through this function alone, so
        // nothing but atomic accesses touches it, and zero bytes are a valid `AtomicU32`.
        unsafe { &*self.0.as_mut_ptr().cast::<AtomicU32>().add(index) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Runs in Miri, too (tests/sanitize).
    #[test]
    fn words_of_the_process_are_zero_and_shared_by_its_threads() {
        let words = ProcessWords::zeroed(3).unwrap();
        assert!((0..3).all(|index| words.get(index).load(Ordering::Relaxed) == 0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| words.get(2).fetch_add(7, Ordering::Relaxed));
            }
        });
        assert_eq!([0, 1, 2].map(|index| words.get(index).load(Ordering::Relaxed)), [0, 0, 28]);
    }
}
