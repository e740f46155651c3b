//! Memory that others write while it is read: the catalog's file, and what the process knows of its records.
#![allow(unsafe_code)] // loads from mapped memory
#![allow(clippy::cast_ptr_alignment)] // a mapping starts at a page

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapMut, MmapOptions, MmapRaw};

/// A file, mapped for reading only. It is written with pwrite(2), which the kernel keeps coherent with its mappings.
///
/// A store to a mapped page can end the process with a signal where a write fails: on a full or read-only file system, or a
/// failing disk. Loads can do so too, but only if somebody truncates the file, or if the kernel has dropped a page and
/// can no longer read it.
pub(super) struct FileWords(MmapRaw);

/// Words of this process alone, zero at first. They take memory from when they are touched.
pub(super) struct ProcessWords(MmapRaw);

impl FileWords {
    /// Maps the first `len_bytes` of a file that is at least that long.
    pub fn map(file: &OwnedFd, len_bytes: usize) -> io::Result<Self> {
        MmapOptions::new().len(len_bytes).map_raw_read_only(file).map(Self)
    }

    /// The word at `index`, as it is in the file at that moment. It carries no order: who needs one has another word for it.
    ///
    /// # Panics
    /// When it lies outside of the mapping.
    pub fn load(&self, index: usize) -> u32 {
        assert!(index < self.0.len() / size_of::<AtomicU32>(), "a word outside of the mapped file");
        // SAFETY: the mapping starts at a page and `index` is within its length, so the pointer is aligned and points to four
        // mapped bytes for as long as `self` lives. No reference to plain memory is ever made from this mapping: this is the
        // only access, so that whatever writes the file meanwhile (this process with pwrite, the kernel for another one)
        // races with atomic loads alone. A relaxed load of four bytes is an ordinary `mov`, fit for read-only memory.
        unsafe { (*self.0.as_ptr().cast::<AtomicU32>().add(index)).load(Ordering::Relaxed) }
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
