use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicBool;

use tempfile::TempDir;

use super::*;
use crate::codec::base32::ALPHABET;
use crate::codec::hash::Sha256;

/// Four buckets: everything that can happen happens soon.
const RECORDS: usize = 64;

/// A catalog in a directory of its own.
struct Fixture {
    folder: TempDir,
    catalog: Arc<Catalog>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (catalog, soundness) = open(folder.path()).unwrap();
        assert_eq!(soundness, Soundness::New);
        Self { folder, catalog: Arc::new(catalog) }
    }

    /// Closes it, lets `change` look after the file, and opens it again.
    fn reopen(&mut self, change: impl FnOnce(&File)) -> Soundness {
        let file = File::options().read(true).write(true).open(self.folder.path().join(NAME)).unwrap();
        change(&file);
        let (catalog, soundness) = open(self.folder.path()).unwrap();
        self.catalog = Arc::new(catalog);
        soundness
    }
}

fn open(folder: &Path) -> Result<(Catalog, Soundness), StoreError> {
    Catalog::open_sized(File::open(folder).unwrap().as_fd(), folder, RECORDS)
}

/// Numbers that look random and are the same each time (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }
}

pub(super) fn key(number: u64) -> NarKey {
    let digest = Sha256::digest(&number.to_le_bytes());
    let digits = digest.0.map(|byte| ALPHABET[usize::from(byte % 32)]);
    (HashPart::parse(&digits).unwrap(), digest)
}

/// What only this version of this NAR has: whatever is mixed of two is none.
pub(super) fn stored(nar: &NarKey, coding: Coding, version: u64) -> Stored {
    let file_hash = Sha256::digest(&[nar.1.0.as_slice(), &version.to_le_bytes()].concat());
    let fill_us = u32::try_from(version % 1000).unwrap();
    Stored { coding, file_hash, file_size: version, nar_size: 2 * version, fill_us }
}

fn mark(number: u64) -> RootMark {
    RootMark { inode: number, changed_s: -i64::try_from(number).unwrap(), changed_ns: 7 }
}

const KINDS: [Kind; 3] = [Kind::Stored(Coding::Flat), Kind::Stored(Coding::Zstd), Kind::Damaged];

fn entry(nar: &NarKey, kind: Kind, version: u64) -> Entry {
    match kind {
        Kind::Stored(coding) => Entry::Stored(stored(nar, coding, version)),
        Kind::Damaged => Entry::Damaged(mark(version)),
    }
}

fn look_up(catalog: &Catalog, nar: &NarKey, kind: Kind) -> Option<Entry> {
    match kind {
        Kind::Stored(coding) => catalog.stored(nar, coding).map(Entry::Stored),
        Kind::Damaged => catalog.damaged(nar).map(Entry::Damaged),
    }
}

/// Keys that have their place in the same bucket.
fn keys_of_one_bucket(catalog: &Catalog, count: usize) -> Vec<NarKey> {
    (0..).map(key).filter(|nar| catalog.bucket_of(nar) == 0).take(count).collect()
}

type Twin = HashMap<(NarKey, Kind), Entry>;

fn assert_same(catalog: &Catalog, twin: &Twin, keys: &[NarKey]) {
    for (nar, kind) in keys.iter().flat_map(|nar| KINDS.map(|kind| (nar, kind))) {
        assert_eq!(look_up(catalog, nar, kind), twin.get(&(*nar, kind)).copied());
    }
    let records: Twin =
        catalog.records().map(|record| ((record.nar, record.entry.kind()), record.entry)).collect();
    assert_eq!(records, *twin);
    let len_bytes = twin.values().map(Entry::file_size).sum::<u64>();
    assert_eq!(catalog.stored_len_bytes(), len_bytes);
}

#[test]
fn a_catalog_answers_as_its_naive_twin() {
    for seed in 1..=20 {
        let mut random = Random(seed);
        let mut fixture = Fixture::new();
        let keys: Vec<NarKey> = (0..40).map(key).collect();
        let mut twin = Twin::new();
        let mut leases = HashMap::new();
        for step in 0..600 {
            let nar = &keys[random.index(keys.len())];
            let kind = KINDS[random.index(KINDS.len())];
            let catalog = &fixture.catalog;
            match random.below(16) {
                0..8 => {
                    let generation = catalog.generation();
                    match catalog.insert(nar, entry(nar, kind, step), step) {
                        Ok(displaced) => {
                            twin.insert((*nar, kind), entry(nar, kind, step));
                            if let Some(record) = displaced {
                                let gone = (record.nar, record.entry.kind());
                                assert_eq!(twin.remove(&gone), Some(record.entry));
                                assert!(!leases.contains_key(&gone));
                                assert_ne!(gone.1, Kind::Damaged);
                            }
                            assert!(catalog.generation() > generation);
                        }
                        Err(error) => assert_eq!(error.io_kind(), Some(io::ErrorKind::ResourceBusy)),
                    }
                }
                8..10 => {
                    let was_there = twin.remove(&(*nar, kind)).is_some();
                    assert_eq!(catalog.remove(nar, kind).unwrap(), was_there);
                    leases.remove(&(*nar, kind));
                }
                10..12 => {
                    let expected = match twin.contains_key(&(*nar, kind)) {
                        true if leases.contains_key(&(*nar, kind)) => Taken::Leased,
                        true => Taken::Taken,
                        false => Taken::Absent,
                    };
                    assert_eq!(catalog.take_unless_leased(nar, kind).unwrap(), expected);
                    if expected == Taken::Taken {
                        twin.remove(&(*nar, kind));
                    }
                }
                12..14 => {
                    if let Kind::Stored(coding) = kind {
                        let leased = catalog.lease(nar, coding, step);
                        let expected = twin.get(&(*nar, kind)).copied();
                        assert_eq!(leased.as_ref().map(|(stored, _)| Entry::Stored(*stored)), expected);
                        if let Some((_, lease)) = leased {
                            leases.insert((*nar, kind), lease);
                        }
                    }
                }
                14 => {
                    leases.remove(&(*nar, kind));
                }
                _ if random.below(20) == 0 => {
                    leases.clear();
                    assert_eq!(fixture.reopen(|_| ()), Soundness::Sound);
                }
                _ => {}
            }
            if step % 50 == 0 {
                assert_same(&fixture.catalog, &twin, &keys);
            }
        }
        drop(leases);
        fixture.reopen(|_| ());
        assert_same(&fixture.catalog, &twin, &keys);
    }
}

#[test]
fn damage_makes_absent_and_never_wrong() {
    let len_bytes = file_len_bytes(RECORDS) as u64;
    for seed in 1..=200 {
        let mut random = Random(seed);
        let mut fixture = Fixture::new();
        let keys: Vec<NarKey> = (0..30).map(key).collect();
        let mut twin = Twin::new();
        for (nar, kind) in keys.iter().flat_map(|nar| KINDS.map(|kind| (nar, kind))) {
            if fixture.catalog.insert(nar, entry(nar, kind, seed), 1).unwrap().is_none() {
                twin.insert((*nar, kind), entry(nar, kind, seed));
            }
        }
        let soundness = fixture.reopen(|file| {
            let mut flip = |offset| {
                let mut byte = [0];
                file.read_exact_at(&mut byte, offset).unwrap();
                byte[0] ^= 1 << random.below(8);
                file.write_all_at(&byte, offset).unwrap();
            };
            if seed % 10 == 0 {
                flip(seed / 10);
            } else {
                (0..seed % 60).for_each(|step| flip(32 + (step * 7919 + seed * 104_729) % (len_bytes - 32)));
            }
        });
        // What lies beside the 32 bytes of the header is not read.
        assert_eq!(soundness, if seed % 10 == 0 { Soundness::Rebuilt } else { Soundness::Sound });
        let mut intact = 0;
        for (nar, kind) in keys.iter().flat_map(|nar| KINDS.map(|kind| (nar, kind))) {
            if let Some(found) = look_up(&fixture.catalog, nar, kind) {
                assert_eq!(found, entry(nar, kind, seed));
                intact += 1;
            }
        }
        assert_eq!(intact > 0, soundness == Soundness::Sound);
        assert_eq!(fixture.catalog.records().count(), intact);
        // What is damaged is room for others.
        for nar in &keys {
            fixture.catalog.insert(nar, entry(nar, Kind::Damaged, 9), 2).unwrap();
            assert_eq!(fixture.catalog.damaged(nar), Some(mark(9)));
        }
    }
}

#[test]
fn a_file_of_another_length_is_replaced_and_not_cut() {
    for len_bytes in [0, 1, 31, 4096, file_len_bytes(RECORDS) - 1, file_len_bytes(RECORDS) + 1] {
        let mut fixture = Fixture::new();
        fixture.catalog.insert(&key(1), entry(&key(1), Kind::Damaged, 1), 1).unwrap();
        let before = Arc::clone(&fixture.catalog);
        let bytes = std::fs::read(fixture.folder.path().join(NAME)).unwrap();
        // A copy, for the mapping of the first one is still looked at.
        let copy = fixture.folder.path().join("copy");
        std::fs::write(&copy, &bytes).unwrap();
        File::options().write(true).open(&copy).unwrap().set_len(len_bytes as u64).unwrap();
        std::fs::rename(&copy, fixture.folder.path().join(NAME)).unwrap();
        assert_eq!(fixture.reopen(|_| ()), Soundness::Rebuilt, "{len_bytes}");
        assert_eq!(fixture.catalog.records().count(), 0);
        assert_eq!(before.damaged(&key(1)), Some(mark(1)));
    }
}

#[test]
fn a_full_bucket_gives_up_what_was_used_least_recently() {
    let fixture = Fixture::new();
    let catalog = &fixture.catalog;
    let keys = keys_of_one_bucket(catalog, CATALOG_BUCKET_RECORDS + 3);
    let insert = |index: usize, now_s| {
        catalog.insert(&keys[index], entry(&keys[index], Kind::Stored(Coding::Flat), now_s), now_s)
    };
    for index in 0..CATALOG_BUCKET_RECORDS {
        assert_eq!(insert(index, 100 + index as u64).unwrap(), None);
    }
    drop(catalog.lease(&keys[0], Coding::Flat, 1000).unwrap());
    let held = catalog.lease(&keys[1], Coding::Flat, 50).unwrap();
    let displaced = insert(CATALOG_BUCKET_RECORDS, 2000).unwrap().unwrap();
    assert_eq!((displaced.nar, displaced.last_used_s), (keys[2], 102));
    assert_eq!(catalog.stored(&keys[1], Coding::Flat), Some(held.0));
    // Nothing is left that could make room.
    let others: Vec<_> = keys
        .iter()
        .filter_map(|nar| catalog.lease(nar, Coding::Flat, 3000))
        .map(|(_, lease)| lease)
        .collect();
    let error = insert(CATALOG_BUCKET_RECORDS + 1, 4000).unwrap_err();
    assert_eq!(error.io_kind(), Some(io::ErrorKind::ResourceBusy));
    assert_eq!(catalog.stored(&keys[CATALOG_BUCKET_RECORDS + 1], Coding::Flat), None);
    drop(others);
    assert!(insert(CATALOG_BUCKET_RECORDS + 1, 4000).unwrap().is_some());
}

#[test]
fn a_mark_of_damage_makes_room_for_nothing() {
    let fixture = Fixture::new();
    let catalog = &fixture.catalog;
    let keys = keys_of_one_bucket(catalog, CATALOG_BUCKET_RECORDS + 2);
    let insert =
        |index: usize, kind, now_s| catalog.insert(&keys[index], entry(&keys[index], kind, now_s), now_s);
    // The oldest of all but one are marks.
    for index in 1..CATALOG_BUCKET_RECORDS {
        insert(index, Kind::Damaged, 100).unwrap();
    }
    insert(0, Kind::Stored(Coding::Flat), 200).unwrap();
    let displaced = insert(CATALOG_BUCKET_RECORDS, Kind::Damaged, 300).unwrap().unwrap();
    assert_eq!(displaced.nar, keys[0]);
    for kind in KINDS {
        let error = insert(CATALOG_BUCKET_RECORDS + 1, kind, 400).unwrap_err();
        assert_eq!(error.io_kind(), Some(io::ErrorKind::ResourceBusy));
    }
    for nar in &keys[1..=CATALOG_BUCKET_RECORDS] {
        assert!(catalog.damaged(nar).is_some());
    }
    // One that is mended gives its place back, and one that is damaged anew keeps it.
    insert(1, Kind::Damaged, 500).unwrap();
    assert!(catalog.remove(&keys[1], Kind::Damaged).unwrap());
    assert_eq!(insert(CATALOG_BUCKET_RECORDS + 1, Kind::Stored(Coding::Zstd), 600).unwrap(), None);
}

#[test]
fn a_leased_record_stays_until_its_last_lease_ends() {
    let fixture = Fixture::new();
    let catalog = &fixture.catalog;
    let (nar, kind) = (key(1), Kind::Stored(Coding::Zstd));
    catalog.insert(&nar, entry(&nar, kind, 5), 1).unwrap();
    let first = catalog.lease(&nar, Coding::Zstd, 2).unwrap();
    let second = catalog.lease(&nar, Coding::Zstd, 3).unwrap();
    assert_eq!(catalog.take_unless_leased(&nar, kind).unwrap(), Taken::Leased);
    drop(first);
    assert_eq!(catalog.take_unless_leased(&nar, kind).unwrap(), Taken::Leased);
    drop(second);
    assert_eq!(catalog.take_unless_leased(&nar, kind).unwrap(), Taken::Taken);
    assert_eq!(catalog.take_unless_leased(&nar, kind).unwrap(), Taken::Absent);
    assert!(catalog.lease(&nar, Coding::Zstd, 4).is_none());
}

#[test]
fn uses_are_kept_when_they_were_written() {
    let mut fixture = Fixture::new();
    let nar = key(1);
    fixture.catalog.insert(&nar, entry(&nar, Kind::Stored(Coding::Flat), 5), 10).unwrap();
    drop(fixture.catalog.lease(&nar, Coding::Flat, 20));
    let last_used_s = |catalog: &Catalog| catalog.records().next().unwrap().last_used_s;
    assert_eq!(last_used_s(&fixture.catalog), 20);
    fixture.reopen(|_| ());
    assert_eq!(last_used_s(&fixture.catalog), 10);
    drop(fixture.catalog.lease(&nar, Coding::Flat, 20));
    fixture.catalog.keep_uses().unwrap();
    fixture.reopen(|_| ());
    assert_eq!(last_used_s(&fixture.catalog), 20);
}

/// What stands for a disk that no longer gives what was written: the file has other bytes.
#[test]
fn what_is_known_is_not_read_from_the_disk_again() {
    let mut fixture = Fixture::new();
    let keys: Vec<NarKey> = (0..6).map(key).collect();
    let stored = |nar: &NarKey| entry(nar, Kind::Stored(Coding::Flat), 5);
    let (found, new) = keys.split_at(3);
    for nar in found {
        fixture.catalog.insert(nar, stored(nar), 1).unwrap();
    }
    fixture.reopen(|_| ());
    let catalog = &fixture.catalog;
    for nar in new {
        catalog.insert(nar, stored(nar), 1).unwrap();
    }
    let file = File::options().write(true).open(fixture.folder.path().join(NAME)).unwrap();
    file.write_all_at(&vec![0xff; file_len_bytes(RECORDS)], 0).unwrap();
    for nar in &keys {
        assert_eq!(look_up(catalog, nar, Kind::Stored(Coding::Flat)), Some(stored(nar)));
    }
    assert_eq!(catalog.records().count(), keys.len());
    assert!(catalog.remove(&keys[0], Kind::Stored(Coding::Flat)).unwrap());
    assert_eq!(catalog.stored(&keys[0], Coding::Flat), None);
}

#[test]
fn a_catalog_beside_another_sees_what_it_writes() {
    let folder = tempfile::tempdir().unwrap();
    let directory = File::open(folder.path()).unwrap();
    let (catalog, _) = Catalog::open(directory.as_fd(), folder.path()).unwrap();
    let nar = key(1);
    catalog.insert(&nar, entry(&nar, Kind::Damaged, 5), 10).unwrap();
    let beside = Catalog::open_beside(directory.as_fd(), folder.path()).unwrap();
    assert_eq!(beside.damaged(&nar), Some(mark(5)));
    catalog.remove(&nar, Kind::Damaged).unwrap();
    assert_eq!(beside.damaged(&nar), None);
    assert!(beside.insert(&nar, entry(&nar, Kind::Damaged, 6), 10).is_err());
    assert_eq!(beside.damaged(&nar), None);
}

#[test]
fn what_cannot_be_written_is_absent_all_the_same() {
    let mut fixture = Fixture::new();
    let nar = key(1);
    let kind = Kind::Stored(Coding::Flat);
    fixture.catalog.insert(&nar, entry(&nar, kind, 5), 10).unwrap();
    // A descriptor that is open for reading stands for a disk that takes nothing any more.
    let read_only = File::open(fixture.folder.path().join(NAME)).unwrap();
    let path = fixture.folder.path().join(NAME);
    let catalog = Catalog::over(read_only, path, RECORDS, Sharing::Own).unwrap();
    assert!(catalog.insert(&key(2), entry(&key(2), kind, 5), 10).is_err());
    assert!(catalog.take_unless_leased(&nar, kind).is_err());
    assert_eq!((catalog.stored(&nar, Coding::Flat).is_some(), catalog.stored_len_bytes()), (true, 5));
    assert!(catalog.remove(&nar, kind).is_err());
    assert!(catalog.remove(&nar, kind).is_err());
    assert!(catalog.take_unless_leased(&nar, kind).is_err());
    assert_eq!((catalog.stored(&nar, Coding::Flat), catalog.stored_len_bytes()), (None, 0));
    assert_eq!(catalog.records().count(), 0);
    fixture.reopen(|_| ());
    assert!(fixture.catalog.stored(&nar, Coding::Flat).is_some());
}

/// Readers look up and lease while the writer inserts, takes and removes. An answer is one that was written in one piece, and
/// what a lease holds is not taken.
#[test]
fn readers_never_see_what_was_not_written() {
    const KEYS: usize = 80;
    let fixture = Fixture::new();
    let keys: Vec<NarKey> = (0..KEYS as u64).map(key).collect();
    // What stands for the files: there from before the record is, until the record is taken.
    let files: Vec<AtomicBool> = (0..KEYS).map(|_| AtomicBool::new(false)).collect();
    let is_over = AtomicBool::new(false);
    let index_of: HashMap<NarKey, usize> =
        keys.iter().enumerate().map(|(index, nar)| (*nar, index)).collect();
    std::thread::scope(|scope| {
        for seed in 1..=3 {
            let (catalog, keys, files, is_over) = (&fixture.catalog, &keys, &files, &is_over);
            scope.spawn(move || {
                let mut random = Random(seed);
                while !is_over.load(Ordering::Relaxed) {
                    let index = random.index(KEYS);
                    let nar = &keys[index];
                    if let Some(found) = catalog.stored(nar, Coding::Flat) {
                        assert_eq!(found, stored(nar, Coding::Flat, found.file_size));
                    }
                    if let Some((found, lease)) = catalog.lease(nar, Coding::Flat, random.below(1000)) {
                        assert_eq!(found, stored(nar, Coding::Flat, found.file_size));
                        assert!(files[index].load(Ordering::Acquire), "the file of a leased record is gone");
                        drop(lease);
                    }
                    for record in catalog.records().take(5) {
                        assert_eq!(
                            record.entry,
                            entry(&record.nar, record.entry.kind(), record.entry.file_size())
                        );
                    }
                }
            });
        }
        let mut random = Random(99);
        for version in 0..40_000 {
            let index = random.index(KEYS);
            let (nar, kind) = (&keys[index], Kind::Stored(Coding::Flat));
            if random.below(3) == 0 {
                if fixture.catalog.take_unless_leased(nar, kind).unwrap() == Taken::Taken {
                    files[index].store(false, Ordering::Release);
                }
            } else {
                let was_there = files[index].swap(true, Ordering::AcqRel);
                match fixture.catalog.insert(nar, entry(nar, kind, version), random.below(1000)) {
                    Ok(Some(record)) => files[index_of[&record.nar]].store(false, Ordering::Release),
                    Ok(None) => {}
                    Err(_) => files[index].store(was_there, Ordering::Release),
                }
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn any_bytes_are_a_catalog_or_damaged() {
    let mut random = Random(5);
    fuzz_catalog(&[]);
    for _ in 0..50 {
        let len = random.index(6000);
        let bytes: Vec<u8> = (0..len).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
        fuzz_catalog(&bytes);
        // Real records, in any order and anywhere.
        let records: Vec<u8> = (0..random.below(40))
            .flat_map(|_| {
                let nar = key(random.below(20));
                record::encode(&nar, &entry(&nar, KINDS[random.index(3)], random.below(50)), 1)
            })
            .collect();
        fuzz_catalog(&[&[0], &records[..]].concat());
    }
}
