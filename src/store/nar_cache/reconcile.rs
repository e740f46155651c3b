//! Records, files and narinfos brought into agreement, after a crash or with a catalog that is new.
//!
//! 1. Each record whose file is missing or has another length goes.
//! 2. Each file of ours without a record is taken in if the narinfo of its path vouches for it, else it is what a crash has left and
//!    is deleted, as is one for whose record there is no place. Without a narinfo nobody who reads the cache as files could find
//!    it, so making it again is better than keeping it.
//! 3. Each narinfo that names a missing file of ours names what remains of its NAR, or goes.

use std::io;

use super::{
    CacheFolder, Coding, NAR_NAME, NARINFO_SUFFIX, NarKey, Stored, base_name, narinfo_name, parse_base_name,
};
use crate::codec::hash::Sha256Digest;
use crate::codec::narinfo::NarInfo;
use crate::codec::store_path::HashPart;
use crate::store::StoreError;
use crate::store::catalog::{Entry, Kind, Record};
use crate::store::directory::FileFacts;
use crate::store::nar_cache::Place;

/// What was done to let records, files and narinfos agree: what [`Reconciled`] counts.
pub(super) enum Repair {
    RecordDropped,
    FileTaken,
    FileRemoved,
    NarInfoRewritten,
    NarInfoRemoved,
}

/// How much was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Records, files and narinfos that were looked at.
    pub looked_at: u64,
    /// Records that stood for a file that is missing or has another length.
    pub records_dropped: u64,
    /// Files without a record that got one.
    pub files_taken: u64,
    /// Files that nothing vouches for, and that were deleted.
    pub files_removed: u64,
    /// Narinfos that name another file of their NAR now, or the same as it is.
    pub narinfos_rewritten: u64,
    /// Narinfos that named a missing file, and were deleted.
    pub narinfos_removed: u64,
}

/// Why it came to an end.
enum Stop {
    /// It goes on no longer.
    Asked,
    Failed(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl CacheFolder {
    /// Lets records, files and narinfos agree. Call it after each start, before anything is published; other changes wait for it.
    ///
    /// Asked after each thing that was looked at, `goes_on` can end the work early. It must not change the folder itself.
    pub fn reconcile(&self, goes_on: &mut dyn FnMut() -> bool) -> Result<Reconciled, StoreError> {
        let _changing = self.begin_change("reconcile")?;
        let mut work = Work { folder: self, goes_on, done: Reconciled::default() };
        match work.run() {
            Ok(()) | Err(Stop::Asked) => Ok(work.done),
            Err(Stop::Failed(error)) => Err(error),
        }
    }
}

struct Work<'a> {
    folder: &'a CacheFolder,
    goes_on: &'a mut dyn FnMut() -> bool,
    done: Reconciled,
}

impl Work<'_> {
    fn run(&mut self) -> Result<(), Stop> {
        let folder = self.folder;
        folder.point("reconcile: begun")?;
        for record in folder.catalog.records() {
            if let Entry::Stored(stored) = record.entry {
                let repair = self.record(&record, &stored)?;
                self.count(repair.as_ref())?;
            }
        }
        folder.point("reconcile: records seen")?;
        for name in folder.nar.names()? {
            let name = name?;
            if let Some((nar, coding)) = parse_base_name(&name) {
                let repair = self.file(&name, &nar, coding)?;
                self.count(repair.as_ref())?;
            }
        }
        folder.point("reconcile: files seen")?;
        for name in folder.root.names()? {
            let name = name?;
            let hash_part = name.strip_suffix(NARINFO_SUFFIX);
            if let Some(hash_part) = hash_part.and_then(|digits| HashPart::parse(digits.as_bytes())) {
                let repair = self.narinfo(hash_part)?;
                self.count(repair.as_ref())?;
            }
        }
        folder.point("reconcile: narinfos seen")?;
        folder.root.sync()?;
        folder.catalog.sync()?;
        Ok(())
    }

    fn record(&mut self, record: &Record, stored: &Stored) -> Result<Option<Repair>, StoreError> {
        let file = self.folder.nar.file(&base_name(&record.nar, stored.coding))?;
        if file.is_some_and(|file| file.size == stored.file_size) {
            return Ok(None);
        }
        self.folder.catalog.remove(&record.nar, Kind::Stored(stored.coding))?;
        self.folder.point("reconcile: record out")?;
        Ok(Some(Repair::RecordDropped))
    }

    fn file(&mut self, name: &str, nar: &NarKey, coding: Coding) -> Result<Option<Repair>, StoreError> {
        let folder = self.folder;
        let Some(file) = folder.nar.file(name)? else { return Ok(None) };
        if folder.catalog.stored(nar, coding).is_some() {
            return Ok(None);
        }
        let narinfo = folder.read_narinfo(nar.0)?;
        if let Some(stored) = narinfo.and_then(|narinfo| vouched_for(&narinfo, nar, coding, &file)) {
            match folder.catalog.insert(nar, Entry::Stored(stored), file.modified_s) {
                Ok(displaced) => {
                    folder.point("reconcile: record in")?;
                    if let Some(Record { nar, entry: Entry::Stored(stored), .. }) = displaced {
                        folder.remove_files(&nar, stored.coding, Place::Nowhere)?;
                    }
                    return Ok(Some(Repair::FileTaken));
                }
                // Where a record cannot be, a file is of no use.
                Err(error) if error.io_kind() == Some(io::ErrorKind::ResourceBusy) => {}
                Err(error) => return Err(error),
            }
        }
        folder.nar.remove(name)?;
        folder.point("reconcile: file out")?;
        Ok(Some(Repair::FileRemoved))
    }

    fn narinfo(&mut self, hash_part: HashPart) -> Result<Option<Repair>, StoreError> {
        let folder = self.folder;
        let Some(narinfo) = folder.read_narinfo(hash_part)? else { return Ok(None) };
        let base_name = narinfo.url.strip_prefix(NAR_NAME).and_then(|rest| rest.strip_prefix('/'));
        let Some((nar, coding)) = base_name.and_then(parse_base_name) else { return Ok(None) };
        // What is ours has one path in name, URL and text, and one NAR in URL and text.
        let is_ours = narinfo.info.path.hash_part() == hash_part && nar == (hash_part, narinfo.info.nar_hash);
        let named = folder.catalog.stored(&nar, coding);
        let repair = match named {
            Some(stored) if !is_ours || describes(&narinfo, &stored) => return Ok(None),
            Some(stored) => folder.renounce(&nar, narinfo, Some(stored))?,
            None if folder.nar.file(&super::base_name(&nar, coding))?.is_some() => return Ok(None),
            None if is_ours => folder.renounce(&nar, narinfo, folder.catalog.stored(&nar, coding.other()))?,
            None => {
                folder.root.remove(&narinfo_name(hash_part))?;
                Repair::NarInfoRemoved
            }
        };
        folder.point("reconcile: narinfo mended")?;
        Ok(Some(repair))
    }

    fn count(&mut self, repair: Option<&Repair>) -> Result<(), Stop> {
        self.done.looked_at += 1;
        match repair {
            None => {}
            Some(Repair::RecordDropped) => self.done.records_dropped += 1,
            Some(Repair::FileTaken) => self.done.files_taken += 1,
            Some(Repair::FileRemoved) => self.done.files_removed += 1,
            Some(Repair::NarInfoRewritten) => self.done.narinfos_rewritten += 1,
            Some(Repair::NarInfoRemoved) => self.done.narinfos_removed += 1,
        }
        if (self.goes_on)() { Ok(()) } else { Err(Stop::Asked) }
    }
}

/// The record of a file, as far as a narinfo of its path knows it. A compressed file must be the one that the narinfo describes; a flat one
/// is known by the NAR that it is.
fn vouched_for(narinfo: &NarInfo, nar: &NarKey, coding: Coding, file: &FileFacts) -> Option<Stored> {
    let nar_size = narinfo.info.nar_size;
    if (narinfo.info.path.hash_part(), narinfo.info.nar_hash) != *nar {
        return None;
    }
    let file_hash: Sha256Digest = match coding {
        Coding::Flat => (file.size == nar_size).then_some(nar.1)?,
        Coding::Zstd => {
            let is_this = narinfo.url == CacheFolder::file_name(nar, coding);
            (is_this && narinfo.file_size == Some(file.size)).then_some(narinfo.file_hash?)?
        }
    };
    Some(Stored { coding, file_hash, file_size: file.size, nar_size, fill_us: 0 })
}

fn describes(narinfo: &NarInfo, stored: &Stored) -> bool {
    narinfo.compression == stored.coding.compression()
        && narinfo.file_hash == Some(stored.file_hash)
        && narinfo.file_size == Some(stored.file_size)
}
