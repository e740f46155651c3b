//! What the NAR cache has, in one mapped file that every worker reads without asking anybody.
//!
//! A file of fixed length: a page of header, then buckets of sixteen records of 128 bytes ([`record`]). A key belongs to one
//! bucket, and a lookup looks at all of it, so removing leaves nothing behind that lookups must step over. The file is sparse:
//! what no record was ever in takes no room.
//!
//! **One writer, many readers.** The writer writes the file with pwrite(2), and then what readers see: a private mapping of the
//! file, whose pages become this process's own when there is a record in them ([`map`]). A store to pages that are shared with the
//! file cannot fail with an error: on a full disk, or one that has become read-only, the process would get a signal. A load from
//! them can end so as well, or wait for the disk, once the kernel has dropped a page that nobody looked at; our own pages stay. A
//! reader copies a record and believes it if its CRC is right; one that is just being written, that a crash has torn, or that is
//! damaged, counts as absent. The catalog is never the only one that knows: the files and their narinfos can fill it again.
//!
//! Whoever looks at the catalog of another process ([`Catalog::open_beside`]) must see what that one writes, and so maps the file's
//! own pages: it bears the risk, and it is a command that somebody runs, and no server.
//!
//! **What only this process knows** lies beside it in memory: which buckets have ever had a record (a lookup in another one does
//! not touch the file), when each record was used last ([`Catalog::keep_uses`] writes that to the file), and a word per
//! record that counts its readers.
//!
//! **Leases.** Nothing is taken away that somebody is about to open. A slot's word holds the count of its readers, and a bit
//! that says that the slot is closed:
//!
//! - a reader adds one; if the word was closed, it takes that back and the record is absent. Else it reads the record again.
//! - the writer exchanges zero for *closed*; if that fails, there are readers, and the record stays. Else it clears the record,
//!   and then takes the bit away.
//!
//! Proof that no record with a lease is taken. All changes of one word happen in one order. If the reader's addition comes
//! before the exchange, the exchange finds no zero and fails, as long as the lease lasts. If it comes while the word is
//! closed, the reader sees that. If it comes after the bit was taken away, it reads (acquire) what that wrote (release), so
//! the cleared record is what the reader then reads, or a record that was put there later, whose key it compares.
//!
//! The file must not be truncated by others while it is mapped: a load behind its end is a signal. Other narwires are
//! kept away by the folder's lock, and it lies in a hidden directory that belongs to narwire alone. narwire itself never
//! truncates it: a damaged catalog is replaced by another file.

mod file;
mod map;
mod record;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use self::file::{
    BUCKET_LEN_BYTES, NAME, create, file_len_bytes, has_header, offset_of, offset_of_bucket, survey,
};
use self::map::{FileWords, ProcessWords, Sharing};
use self::record::{EMPTY, KEY_OFFSET, KIND_OFFSET, LAST_USED_OFFSET, RecordBytes};
use super::nar_cache::Coding;
use crate::codec::hash::Sha256Digest;
use crate::codec::store_path::HashPart;
use crate::limits::{CATALOG_BUCKET_RECORDS, CATALOG_RECORDS};
use crate::store::{StoreError, is_no_room};

/// One NAR: a path, and the contents that it had.
pub type NarKey = (HashPart, Sha256Digest);

/// An encoded NAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// How it is encoded.
    pub coding: Coding,
    /// Hash of the file.
    pub file_hash: Sha256Digest,
    /// Size of the file. Bytes.
    pub file_size: u64,
    /// Size of the NAR in it. Bytes.
    pub nar_size: u64,
    /// What it took to make. Microseconds.
    pub fill_us: u32,
}

/// A store path's root as it was when its tree was found damaged: one that was mended has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootMark {
    /// The inode.
    pub inode: u64,
    /// When it was changed last. Seconds.
    pub changed_s: i64,
    /// The rest of that. Nanoseconds.
    pub changed_ns: u32,
}

/// What the catalog says of a NAR. There can be one of each [`Kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It is in a file.
    Stored(Stored),
    /// The tree that it would be made of is damaged.
    Damaged(RootMark),
}

/// What tells the entries of one NAR apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`Entry::Stored`] in this coding.
    Stored(Coding),
    /// [`Entry::Damaged`].
    Damaged,
}

/// An entry, and what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The NAR.
    pub nar: NarKey,
    /// What is known of it.
    pub entry: Entry,
    /// When a reader asked for it, or else when it was made. Seconds since 1970.
    pub last_used_s: u64,
}

/// How the catalog was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Soundness {
    /// As it was left.
    Sound,
    /// It was not there, and is empty now.
    New,
    /// Its header was damaged or of another version. Another file has taken its place, and is empty.
    Rebuilt,
}

/// Whether a record could be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is gone.
    Taken,
    /// A reader holds it.
    Leased,
    /// There was none.
    Absent,
}

/// The catalog. One for the process, shared by all threads. Away from the counts of who shares it, which change with each lease,
/// while readers load what is in it all the time.
#[repr(align(128))]
pub struct Catalog {
    file: File,
    /// For messages.
    path: PathBuf,
    words: FileWords,
    /// Two words for each record: its readers, and when it was used last as far as this process has seen.
    slots: ProcessWords,
    /// One bit for each bucket that has had a record. Of others not even zeros are read: a page of them would take memory, and on a
    /// full tmpfs, where it also takes room, a load is a signal.
    touched: Box<[AtomicU64]>,
    buckets: usize,
    generation: AtomicU64,
    /// Length of all files that are stored. Bytes.
    stored_len_bytes: AtomicU64,
    /// Held by the writer. There is one by design; two would have to wait.
    writing: Mutex<()>,
}

/// A promise that a record, and so its file, is not taken away. Given back when it is dropped.
pub struct Lease {
    catalog: Arc<Catalog>,
    slot: usize,
}

/// The bit of a slot's word that is set while no reader may have its record; beneath it are the readers.
const CLOSED: u32 = 1 << 31;

const WORD_LEN_BYTES: usize = size_of::<u32>();
impl Entry {
    /// What tells it from other entries of the same NAR.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Stored(stored) => Kind::Stored(stored.coding),
            Self::Damaged(_) => Kind::Damaged,
        }
    }

    /// Length of its file. Bytes.
    pub fn file_size(&self) -> u64 {
        match self {
            Self::Stored(stored) => stored.file_size,
            Self::Damaged(_) => 0,
        }
    }
}

impl Catalog {
    /// Opens the file `catalog` of the directory, or makes it. `directory_path` is for messages.
    ///
    /// Reads all of what is there once, so that a disk that cannot be read is an error here and no signal later.
    pub fn open(directory: BorrowedFd<'_>, directory_path: &Path) -> Result<(Self, Soundness), StoreError> {
        Self::open_sized(directory, directory_path, CATALOG_RECORDS)
    }

    fn open_sized(
        directory: BorrowedFd<'_>,
        directory_path: &Path,
        records: usize,
    ) -> Result<(Self, Soundness), StoreError> {
        let path = directory_path.join(NAME);
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match rustix::fs::openat(directory, NAME, flags, Mode::empty()) {
            Ok(file) => Some(File::from(file)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(StoreError::io("open", path, error)),
        };
        let soundness = if found.is_some() { Soundness::Rebuilt } else { Soundness::New };
        if let Some(file) = found
            && has_header(&file, records).map_err(|error| StoreError::io("read", &path, error))?
        {
            return Ok((Self::over(file, path, records, Sharing::Own)?, Soundness::Sound));
        }
        let file = create(directory, records).map_err(|error| StoreError::io("create", &path, error))?;
        Ok((Self::over(file, path, records, Sharing::Own)?, soundness))
    }

    /// Opens the catalog of another process, which goes on writing it. Of records that are put into a bucket that was empty when
    /// this was called it knows nothing, and nobody knows of its leases.
    pub fn open_beside(directory: BorrowedFd<'_>, directory_path: &Path) -> Result<Self, StoreError> {
        let path = directory_path.join(NAME);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, NAME, flags, Mode::empty())
            .map_err(|error| StoreError::io("open", &path, error))?;
        let file = File::from(file);
        if !has_header(&file, CATALOG_RECORDS).map_err(|error| StoreError::io("read", &path, error))? {
            return Err(StoreError::damaged(path.display().to_string(), "it has no header of this version"));
        }
        Self::over(file, path, CATALOG_RECORDS, Sharing::Other)
    }

    /// The catalog in a file of the right length.
    fn over(file: File, path: PathBuf, records: usize, sharing: Sharing) -> Result<Self, StoreError> {
        let failed = |operation, error| StoreError::io(operation, &path, error);
        let words = FileWords::map(&file, file_len_bytes(records), sharing);
        let words = words.map_err(|error| failed("map", error))?;
        let slots = ProcessWords::zeroed(2 * records).map_err(|error| failed("map", error))?;
        let buckets = records / CATALOG_BUCKET_RECORDS;
        let touched: Box<[AtomicU64]> = (0..buckets.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let (generation, stored_len_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let writing = Mutex::new(());
        let catalog =
            Self { file, path, words, slots, touched, buckets, generation, stored_len_bytes, writing };
        survey(&catalog.file, buckets, &mut |bucket| catalog.touch(bucket))
            .map_err(|error| StoreError::io("read", &catalog.path, error))?;
        catalog.records().for_each(|record| catalog.count(&record));
        Ok(catalog)
    }

    /// Rises with each insertion and removal. Who remembers an answer reads it *before* asking; an answer is then newer than its
    /// label at worst.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The NAR in that coding.
    pub fn stored(&self, nar: &NarKey, coding: Coding) -> Option<Stored> {
        match self.find(nar, Kind::Stored(coding))?.1.entry {
            Entry::Stored(stored) => Some(stored),
            Entry::Damaged(_) => None,
        }
    }

    /// The root whose tree is damaged.
    pub fn damaged(&self, nar: &NarKey) -> Option<RootMark> {
        match self.find(nar, Kind::Damaged)?.1.entry {
            Entry::Stored(_) => None,
            Entry::Damaged(mark) => Some(mark),
        }
    }

    /// The NAR in that coding, which stays until the lease is dropped. It counts as used at `now_s`, seconds since 1970.
    pub fn lease(self: &Arc<Self>, nar: &NarKey, coding: Coding, now_s: u64) -> Option<(Stored, Lease)> {
        let (slot, _) = self.find(nar, Kind::Stored(coding))?;
        let before = self.readers(slot).fetch_add(1, Ordering::Acquire);
        let lease = Lease { catalog: Arc::clone(self), slot };
        if before & CLOSED != 0 {
            return None;
        }
        let record = self.read(slot).filter(|record| record.nar == *nar)?;
        match record.entry {
            Entry::Stored(stored) if stored.coding == coding => {
                self.used(slot).store(clamp_seconds(now_s), Ordering::Relaxed);
                Some((stored, lease))
            }
            Entry::Stored(_) | Entry::Damaged(_) => None,
        }
    }

    /// All records, in no order that means anything. What is inserted or removed meanwhile may be among them or not.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let buckets = (0..self.buckets).filter(|&bucket| self.is_touched(bucket));
        let slots = buckets.flat_map(slots_of).filter(|&slot| !self.is_closed(slot));
        // One that lies in a bucket that is not its own cannot be found by its key: it is damage.
        slots.filter_map(|slot| {
            let record = self.read(slot)?;
            (self.bucket_of(&record.nar) == slot / CATALOG_BUCKET_RECORDS).then_some(record)
        })
    }

    /// Length of all files that are stored. Bytes.
    pub fn stored_len_bytes(&self) -> u64 {
        self.stored_len_bytes.load(Ordering::Relaxed)
    }

    /// Puts an entry in, in the place of one of the same NAR and kind. If its bucket is full, the record that was used
    /// least recently goes and is returned; its file is the caller's to remove. A mark of damage never goes for another entry: what
    /// it forbids would be served again.
    ///
    /// Fails as [`io::ErrorKind::ResourceBusy`] when all records of the bucket are leased or marks of damage, and as the disk does. Then
    /// all is as before.
    pub fn insert(&self, nar: &NarKey, entry: Entry, now_s: u64) -> Result<Option<Record>, StoreError> {
        let failed = |error| StoreError::io("write", &self.path, error);
        let _writing = self.begin_writing();
        let place = self.place_for(nar, entry.kind()).ok_or_else(|| failed(Errno::BUSY.into()))?;
        let (slot, previous) = match place {
            Place::Free(slot) => (slot, None),
            Place::Same(slot, record) | Place::Taken(slot, record) => (slot, Some(record)),
        };
        let now_s = clamp_seconds(now_s);
        let written = self.write(slot, &record::encode(nar, &entry, now_s));
        if written.is_ok() {
            if let Some(previous) = &previous {
                self.discount(previous);
            }
            self.count(&Record { nar: *nar, entry, last_used_s: 0 });
            self.used(slot).store(now_s, Ordering::Relaxed);
        }
        if written.is_ok() || matches!(place, Place::Taken(..)) {
            self.open_slot(slot);
        }
        self.generation.fetch_add(1, Ordering::Release);
        written.map_err(failed)?;
        Ok(match place {
            Place::Taken(_, record) => Some(record),
            Place::Free(_) | Place::Same(..) => None,
        })
    }

    /// Takes an entry away, whoever reads it. From now on it is absent to this process, even if the disk could not be written;
    /// that is an error, and another process would find the entry again. False when there was none.
    pub fn remove(&self, nar: &NarKey, kind: Kind) -> Result<bool, StoreError> {
        let _writing = self.begin_writing();
        let mut was_there = false;
        let mut written = Ok(());
        for (slot, record) in self.all_of(nar, kind) {
            if self.readers(slot).fetch_or(CLOSED, Ordering::AcqRel) & CLOSED == 0 {
                was_there = true;
                self.discount(&record);
            }
            written = written.and(self.clear_closed(slot));
        }
        written.map_err(|error| StoreError::io("write", &self.path, error))?;
        Ok(was_there)
    }

    /// Takes an entry away unless a reader holds it. On an error it stays, unless the disk is full: then it is absent to this process,
    /// for it is taken away to make room.
    pub fn take_unless_leased(&self, nar: &NarKey, kind: Kind) -> Result<Taken, StoreError> {
        let _writing = self.begin_writing();
        let mut taken = Taken::Absent;
        for (slot, record) in self.all_of(nar, kind) {
            // One that is closed could not be cleared when it was taken away: it stays absent whatever happens now.
            let is_present = !self.is_closed(slot);
            if is_present {
                if !self.try_close(slot) {
                    return Ok(Taken::Leased);
                }
                self.discount(&record);
                taken = Taken::Taken;
            }
            match self.clear_closed(slot) {
                Ok(()) => {}
                Err(error) if is_no_room(&error) => {}
                Err(error) => {
                    if is_present {
                        self.count(&record);
                        self.open_slot(slot);
                        self.generation.fetch_add(1, Ordering::Release);
                    }
                    return Err(StoreError::io("write", &self.path, error));
                }
            }
        }
        Ok(taken)
    }

    /// Writes to the file when records were used; until then only this process knows it. What is lost by a crash is the order of
    /// eviction.
    pub fn keep_uses(&self) -> Result<(), StoreError> {
        let _writing = self.begin_writing();
        for slot in (0..self.buckets).filter(|&bucket| self.is_touched(bucket)).flat_map(slots_of) {
            let used_s = self.used(slot).load(Ordering::Relaxed);
            let kept_s = u32::from_le(self.words.load(word_of(slot, LAST_USED_OFFSET)));
            if used_s > kept_s && self.read(slot).is_some() {
                let offset = (offset_of(slot) + LAST_USED_OFFSET) as u64;
                self.file
                    .write_all_at(&used_s.to_le_bytes(), offset)
                    .map_err(|error| StoreError::io("write", &self.path, error))?;
                self.words.store(word_of(slot, LAST_USED_OFFSET), used_s.to_le());
            }
        }
        Ok(())
    }

    /// Waits until all that was written is on the disk.
    pub fn sync(&self) -> Result<(), StoreError> {
        rustix::fs::fdatasync(&self.file).map_err(|error| StoreError::io("write", &self.path, error))
    }

    // Readers.

    fn find(&self, nar: &NarKey, kind: Kind) -> Option<(usize, Record)> {
        self.all_of(nar, kind).find(|(slot, _)| !self.is_closed(*slot))
    }

    /// Every slot that has this record, closed ones too. More than one only after damage.
    fn all_of<'a>(&'a self, nar: &'a NarKey, kind: Kind) -> impl Iterator<Item = (usize, Record)> + 'a {
        let bucket = self.bucket_of(nar);
        let slots = if self.is_touched(bucket) { slots_of(bucket) } else { 0..0 };
        let number = record::kind_number(kind);
        let key = record::key_bytes(nar);
        let first_word = u32::from_le_bytes([key[0], key[1], key[2], key[3]]);
        slots.filter_map(move |slot| {
            // Two words tell most others apart before anything is copied.
            let is_likely = u32::from_le(self.words.load(word_of(slot, KIND_OFFSET))) == number
                && u32::from_le(self.words.load(word_of(slot, KEY_OFFSET))) == first_word;
            let record = if is_likely { self.read(slot)? } else { return None };
            (record.nar == *nar && record.entry.kind() == kind).then_some((slot, record))
        })
    }

    /// The record of a slot, closed or not.
    fn read(&self, slot: usize) -> Option<Record> {
        let mut bytes = EMPTY;
        let first_word = word_of(slot, 0);
        for (index, word) in bytes.as_chunks_mut::<WORD_LEN_BYTES>().0.iter_mut().enumerate() {
            *word = self.words.load(first_word + index).to_ne_bytes();
        }
        let mut record = record::decode(&bytes)?;
        record.last_used_s = record.last_used_s.max(u64::from(self.used(slot).load(Ordering::Relaxed)));
        Some(record)
    }

    fn bucket_of(&self, nar: &NarKey) -> usize {
        // Both halves count: many paths can have the same contents.
        crc32fast::hash(&record::key_bytes(nar)) as usize % self.buckets
    }

    fn readers(&self, slot: usize) -> &AtomicU32 {
        self.slots.get(2 * slot)
    }

    fn used(&self, slot: usize) -> &AtomicU32 {
        self.slots.get(2 * slot + 1)
    }

    fn is_closed(&self, slot: usize) -> bool {
        self.readers(slot).load(Ordering::Acquire) & CLOSED != 0
    }

    fn is_touched(&self, bucket: usize) -> bool {
        self.touched[bucket / 64].load(Ordering::Relaxed) >> (bucket % 64) & 1 == 1
    }

    // The writer. All of these are called by the one who holds `writing`.

    fn begin_writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where an entry goes: over the one of its kind, else where no record is, else over the file that was used least recently.
    fn place_for(&self, nar: &NarKey, kind: Kind) -> Option<Place> {
        // A closed slot's record is still in the file if the disk was full: two of a kind must never be there.
        if let Some((slot, record)) = self.all_of(nar, kind).next() {
            let is_closed = self.is_closed(slot);
            return Some(if is_closed { Place::Free(slot) } else { Place::Same(slot, record) });
        }
        let bucket = self.bucket_of(nar);
        if !self.is_touched(bucket) {
            return Some(Place::Free(bucket * CATALOG_BUCKET_RECORDS));
        }
        let mut records = Vec::with_capacity(CATALOG_BUCKET_RECORDS);
        for slot in slots_of(bucket) {
            match self.read(slot).filter(|_| !self.is_closed(slot)) {
                Some(record @ Record { entry: Entry::Stored(_), .. }) => records.push((slot, record)),
                Some(Record { entry: Entry::Damaged(_), .. }) => {}
                None => return Some(Place::Free(slot)),
            }
        }
        records.sort_by_key(|(_, record)| record.last_used_s);
        let (slot, record) = records.into_iter().find(|(slot, _)| self.try_close(*slot))?;
        Some(Place::Taken(slot, record))
    }

    /// Keeps a bucket in memory that has a record, and says so. A reader that does not know it yet finds none there, as a moment ago.
    fn touch(&self, bucket: usize) -> io::Result<()> {
        let offset = usize::try_from(offset_of_bucket(bucket)).unwrap_or(usize::MAX);
        self.words.keep(offset, BUCKET_LEN_BYTES)?;
        self.touched[bucket / 64].fetch_or(1 << (bucket % 64), Ordering::Relaxed);
        Ok(())
    }

    /// Closes a slot that has no readers.
    fn try_close(&self, slot: usize) -> bool {
        self.readers(slot).compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn open_slot(&self, slot: usize) {
        self.readers(slot).fetch_and(!CLOSED, Ordering::Release);
    }

    /// Clears the record of a closed slot, and opens the slot if that succeeds.
    fn clear_closed(&self, slot: usize) -> io::Result<()> {
        let written = self.write(slot, &EMPTY);
        if written.is_ok() {
            self.used(slot).store(0, Ordering::Relaxed);
            self.open_slot(slot);
        }
        self.generation.fetch_add(1, Ordering::Release);
        written
    }

    fn count(&self, record: &Record) {
        let len_bytes = self.stored_len_bytes().saturating_add(record.entry.file_size());
        self.stored_len_bytes.store(len_bytes, Ordering::Relaxed);
    }

    fn discount(&self, record: &Record) {
        let len_bytes = self.stored_len_bytes().saturating_sub(record.entry.file_size());
        self.stored_len_bytes.store(len_bytes, Ordering::Relaxed);
    }

    /// Writes a record to the file, and then for readers. On an error they see what was there.
    fn write(&self, slot: usize, bytes: &RecordBytes) -> io::Result<()> {
        self.file.write_all_at(bytes, offset_of(slot) as u64)?;
        let bucket = slot / CATALOG_BUCKET_RECORDS;
        if !self.is_touched(bucket) {
            // Not before the file is written: on some file systems even a load from where nothing was written needs room.
            self.touch(bucket)?;
        }
        let first_word = word_of(slot, 0);
        for (index, word) in bytes.as_chunks::<WORD_LEN_BYTES>().0.iter().enumerate() {
            self.words.store(first_word + index, u32::from_ne_bytes(*word));
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.catalog.readers(self.slot).fetch_sub(1, Ordering::Release);
    }
}

/// Where an entry goes.
#[derive(Clone, Copy)]
enum Place {
    /// No record is there that anybody can read.
    Free(usize),
    /// Over the entry of the same NAR and kind.
    Same(usize, Record),
    /// Over another record; its slot is closed.
    Taken(usize, Record),
}

fn slots_of(bucket: usize) -> Range<usize> {
    bucket * CATALOG_BUCKET_RECORDS..(bucket + 1) * CATALOG_BUCKET_RECORDS
}

fn word_of(slot: usize, offset_in_record: usize) -> usize {
    (offset_of(slot) + offset_in_record) / WORD_LEN_BYTES
}

/// Records have room for times until 2106.
fn clamp_seconds(seconds: u64) -> u32 {
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Any bytes as a catalog's file: it opens, or is found damaged and replaced. Whatever it then has is found by its key, can be
/// removed, and is gone; and what is put in is found.
#[cfg(any(test, fuzzing))]
pub fn fuzz_catalog(data: &[u8]) {
    const RECORDS: usize = 2 * CATALOG_BUCKET_RECORDS;
    let Some((&choice, data)) = data.split_first() else { return };
    let folder = tempfile::tempdir().expect("the fuzzer has a disk");
    let directory = File::open(folder.path()).expect("the fuzzer has a disk");
    let mut bytes = data.to_vec();
    if choice % 2 == 0 {
        // Past the header, so that it is the records that are looked at.
        bytes = file::header(RECORDS).to_vec();
        bytes.resize(file::HEADER_LEN_BYTES, 0);
        bytes.extend_from_slice(data);
        bytes.resize(file_len_bytes(RECORDS), 0);
    }
    std::fs::write(folder.path().join(NAME), bytes).expect("the fuzzer has a disk");
    let opened = Catalog::open_sized(std::os::fd::AsFd::as_fd(&directory), folder.path(), RECORDS);
    let (catalog, _) = opened.expect("damage is no error");
    let catalog = Arc::new(catalog);
    for record in catalog.records().collect::<Vec<_>>() {
        let kind = record.entry.kind();
        if let Kind::Stored(coding) = kind {
            drop(catalog.lease(&record.nar, coding, 1));
        }
        // Damage could have left two of a kind; both go at once.
        let was_there = catalog.find(&record.nar, kind).is_some();
        assert_eq!(catalog.remove(&record.nar, kind).ok(), Some(was_there));
        assert!(catalog.find(&record.nar, kind).is_none());
    }
    assert_eq!(catalog.records().count(), 0);
    assert_eq!(catalog.keep_uses().ok(), Some(()));
    let nar = (HashPart::parse(&[b'0'; 32]).expect("digits"), Sha256Digest([choice; 32]));
    let entry = Entry::Damaged(RootMark { inode: 1, changed_s: 2, changed_ns: 3 });
    assert_eq!(catalog.insert(&nar, entry, 1).ok(), Some(None));
    assert_eq!(catalog.find(&nar, Kind::Damaged).map(|(_, record)| record.entry), Some(entry));
}

#[cfg(test)]
mod tests;
