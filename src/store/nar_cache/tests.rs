use std::fs::{self, File};
use std::io::Write as _;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::codec::hash::Sha256;
use crate::codec::narinfo::PathInfo;
use crate::codec::store_path::StorePath;
use crate::limits::QUARANTINED_FILES_MAX;
use crate::store::catalog::RootMark;
use crate::store::fault::children;

fn store_dir() -> StoreDir {
    StoreDir::parse("/nix/store").unwrap()
}

/// Opens a cache. A test that starts a process lets it inherit the locks of all others for a moment, so one refusal is none.
fn open(path: &Path) -> Result<CacheFolder, CacheFolderError> {
    for _ in 0..1000 {
        match CacheFolder::open(path, &store_dir(), 30) {
            Err(CacheFolderError::InUse(_)) => std::thread::sleep(Duration::from_millis(5)),
            opened => return opened,
        }
    }
    panic!("{} stays in use", path.display());
}

fn new_cache() -> (TempDir, CacheFolder) {
    let temp = tempfile::tempdir().unwrap();
    let folder = open(temp.path()).unwrap();
    (temp, folder)
}

fn reconcile(folder: &CacheFolder) -> Reconciled {
    folder.reconcile(&mut || true).unwrap()
}

/// Bytes that stand for a NAR; each number has its own.
fn contents(number: u64) -> Vec<u8> {
    format!("the contents of number {number}\n").repeat(200).into_bytes()
}

fn key(number: u64) -> NarKey {
    (HashPart::parse(format!("{number:032}").as_bytes()).unwrap(), Sha256::digest(&contents(number)))
}

fn encode(number: u64, coding: Coding) -> Vec<u8> {
    match coding {
        Coding::Flat => contents(number),
        Coding::Zstd => zstd::encode_all(&contents(number)[..], 3).unwrap(),
    }
}

fn stored(number: u64, coding: Coding) -> Stored {
    let (file, nar) = (encode(number, coding), contents(number));
    let (file_size, nar_size) = (file.len() as u64, nar.len() as u64);
    Stored { coding, file_hash: Sha256::digest(&file), file_size, nar_size, fill_us: 0 }
}

fn narinfo(number: u64, coding: Coding) -> String {
    let (nar, stored) = (key(number), stored(number, coding));
    let info = PathInfo {
        path: StorePath::parse_base_name(&format!("{}-number-{number}", nar.0)).unwrap(),
        nar_hash: nar.1,
        nar_size: stored.nar_size,
        references: Vec::new(),
        deriver: None,
        signatures: Vec::new(),
        ca: None,
    };
    let url = CacheFolder::file_name(&nar, coding);
    let narinfo = NarInfo::new(info, url, coding.compression(), stored.file_hash, stored.file_size);
    let mut text = String::new();
    narinfo.write(&store_dir(), &mut text);
    text
}

fn draft(folder: &CacheFolder, bytes: &[u8]) -> Result<Draft, StoreError> {
    let draft = folder.draft()?;
    let mut file = File::from(draft.as_fd().try_clone_to_owned().unwrap());
    file.write_all(bytes).map_err(|error| StoreError::io("write", folder.path(), error))?;
    Ok(draft)
}

fn publish(folder: &CacheFolder, number: u64, coding: Coding) -> Result<(), StoreError> {
    let draft = draft(folder, &encode(number, coding))?;
    let narinfo = narinfo(number, coding);
    folder.publish(&key(number), draft, &stored(number, coding), &narinfo, number).map(|_| ())
}

fn record(number: u64, coding: Coding) -> Record {
    Record { nar: key(number), entry: Entry::Stored(stored(number, coding)), last_used_s: 0 }
}

fn narinfo_at(folder: &Path, number: u64) -> Option<NarInfo> {
    let text = fs::read_to_string(folder.join(narinfo_name(key(number).0))).ok()?;
    Some(NarInfo::parse(&text, &store_dir()).unwrap())
}

/// Names in a directory, sorted.
fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every file of ours is whole, every narinfo names a file and describes it.
fn assert_files_are_whole(path: &Path) {
    for name in names(&path.join("nar")) {
        let file = path.join("nar").join(&name);
        let Some((nar, coding)) = parse_base_name(&name).filter(|_| file.is_file()) else { continue };
        let bytes = fs::read(file).unwrap();
        let bytes = match coding {
            Coding::Flat => bytes,
            Coding::Zstd => zstd::decode_all(&bytes[..]).unwrap(),
        };
        assert_eq!(Sha256::digest(&bytes), nar.1, "{name}");
    }
}

fn assert_narinfos_are_true(path: &Path, is_meant: impl Fn(&str) -> bool) {
    for name in names(path).iter().filter(|name| name.ends_with(NARINFO_SUFFIX) && is_meant(name)) {
        let text = fs::read_to_string(path.join(name)).unwrap();
        let narinfo = NarInfo::parse(&text, &store_dir()).unwrap();
        let file = fs::read(path.join(&narinfo.url)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(narinfo.file_size, Some(file.len() as u64), "{name}");
        assert_eq!(narinfo.file_hash, Some(Sha256::digest(&file)), "{name}");
    }
}

/// Whoever serves what the records say serves the right bytes. Where a file is missing, its NAR is made live.
fn assert_nothing_wrong_is_served(folder: &CacheFolder) {
    assert_files_are_whole(folder.path());
    for record in folder.catalog().records() {
        let Entry::Stored(stored) = record.entry else { continue };
        let name = CacheFolder::file_name(&record.nar, stored.coding);
        if let Ok(file) = fs::read(folder.path().join(&name)) {
            let found = (Sha256::digest(&file), file.len() as u64);
            assert_eq!(found, (stored.file_hash, stored.file_size), "{name}");
        }
    }
}

fn assert_records_have_files(folder: &CacheFolder) {
    for record in folder.catalog().records() {
        let Entry::Stored(stored) = record.entry else { continue };
        let name = CacheFolder::file_name(&record.nar, stored.coding);
        assert!(folder.path().join(&name).is_file(), "{name} has a record and is not there");
    }
}

/// What holds after each start.
fn assert_sound(folder: &CacheFolder) {
    reconcile(folder);
    let path = folder.path();
    assert_nothing_wrong_is_served(folder);
    assert_narinfos_are_true(path, |_| true);
    assert_records_have_files(folder);
    let files = names(&path.join("nar"));
    let files = files.iter().filter(|name| path.join("nar").join(name).is_file());
    for (nar, coding) in files.filter_map(|name| parse_base_name(name)) {
        assert!(folder.catalog().stored(&nar, coding).is_some(), "a file without a record");
    }
    assert_eq!(names(&path.join(".narwire/tmp")), Vec::<String>::new());
    let again = reconcile(folder);
    assert_eq!(
        Reconciled { looked_at: 0, ..again },
        Reconciled::default(),
        "the second time nothing is left"
    );
}

#[test]
fn what_is_published_is_there_now_and_later() {
    let (temp, folder) = new_cache();
    publish(&folder, 1, Coding::Zstd).unwrap();
    publish(&folder, 1, Coding::Flat).unwrap();
    let nar = key(1);
    let flat = format!("{}-{}.nar", nar.0, nar.1.to_nix32());
    assert_eq!(names(&temp.path().join("nar")), [flat.clone(), format!("{flat}.zst")]);
    let expected =
        [".narwire".to_owned(), narinfo_name(nar.0), "nar".to_owned(), "nix-cache-info".to_owned()];
    assert_eq!(names(temp.path()), expected);
    assert_eq!(
        fs::read_to_string(temp.path().join("nix-cache-info")).unwrap(),
        "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"
    );
    let used = stored(1, Coding::Flat).file_size + stored(1, Coding::Zstd).file_size;
    let space = folder.space().unwrap();
    assert!(space.used == used && space.free > 0 && space.total > space.free);
    assert_sound(&folder);
    drop(folder);
    let folder = open(temp.path()).unwrap();
    assert_eq!(folder.soundness(), Soundness::Sound);
    assert_eq!(reconcile(&folder), Reconciled { looked_at: 5, ..Reconciled::default() });
    for coding in [Coding::Flat, Coding::Zstd] {
        assert_eq!(folder.catalog().stored(&nar, coding), Some(stored(1, coding)));
    }
}

#[test]
fn a_directory_that_is_not_ours_is_refused_and_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("thesis.txt"), "x").unwrap();
    assert!(matches!(open(temp.path()), Err(CacheFolderError::Foreign(_))));
    assert!(matches!(CacheFolder::open_beside(temp.path(), &store_dir()), Err(CacheFolderError::Foreign(_))));
    assert_eq!(names(temp.path()), ["thesis.txt"]);
    fs::rename(temp.path().join("thesis.txt"), temp.path().join("lost+found")).unwrap();
    open(temp.path()).unwrap();
}

#[test]
fn a_cache_has_one_owner_and_one_store() {
    let (temp, folder) = new_cache();
    let second = CacheFolder::open(temp.path(), &store_dir(), 30);
    assert!(matches!(second, Err(CacheFolderError::InUse(_))));
    drop(folder);
    drop(open(temp.path()).unwrap());
    let other = StoreDir::parse("/gnu/store").unwrap();
    let refused = loop {
        match CacheFolder::open(temp.path(), &other, 30) {
            Err(CacheFolderError::InUse(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(refused, Err(CacheFolderError::OtherStore { found, .. }) if found == store_dir()));
    let info = temp.path().join("nix-cache-info");
    fs::write(&info, "StoreDir: /nix/store\nPriority: 77\n").unwrap();
    open(temp.path()).unwrap();
    let text = fs::read_to_string(info).unwrap();
    assert!(text.contains("WantMassQuery: 1\nPriority: 30"), "{text}");
}

#[test]
fn a_draft_is_gone_when_it_is_dropped_and_when_the_process_was_killed() {
    let (temp, folder) = new_cache();
    let temporary = temp.path().join(".narwire/tmp");
    let first = draft(&folder, b"x").unwrap();
    assert_eq!(names(&temporary).len(), 1);
    let again = fs::read(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&first.as_fd())));
    assert_eq!(again.unwrap(), b"x");
    drop(first);
    assert_eq!(names(&temporary).len(), 0);
    fs::write(temporary.join("77-1"), "left behind").unwrap();
    drop(folder);
    open(temp.path()).unwrap();
    assert_eq!(names(&temporary).len(), 0);
}

#[test]
fn a_draft_of_another_length_is_not_published() {
    let (temp, folder) = new_cache();
    let draft = draft(&folder, b"short").unwrap();
    let error =
        folder.publish(&key(1), draft, &stored(1, Coding::Flat), &narinfo(1, Coding::Flat), 1).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert_eq!(names(&temp.path().join("nar")).len(), 0);
    assert_sound(&folder);
}

#[test]
fn a_narinfo_names_what_remains_until_nothing_does() {
    let (temp, folder) = new_cache();
    publish(&folder, 1, Coding::Zstd).unwrap();
    publish(&folder, 1, Coding::Flat).unwrap();
    assert_eq!(folder.evict(&record(1, Coding::Zstd)).unwrap(), Evicted::Removed);
    let narinfo_left = narinfo_at(temp.path(), 1).unwrap();
    assert_eq!(narinfo_left, NarInfo::parse(&narinfo(1, Coding::Flat), &store_dir()).unwrap());
    assert_sound(&folder);
    assert_eq!(folder.evict(&record(1, Coding::Flat)).unwrap(), Evicted::Removed);
    assert_eq!(narinfo_at(temp.path(), 1), None);
    assert_eq!(names(&temp.path().join("nar")).len(), 0);
    assert_eq!(folder.space().unwrap().used, 0);
    assert_sound(&folder);
}

#[test]
fn a_flat_file_has_a_narinfo_once_no_other_has() {
    let (temp, folder) = new_cache();
    publish(&folder, 1, Coding::Zstd).unwrap();
    publish(&folder, 1, Coding::Flat).unwrap();
    let named = || narinfo_at(temp.path(), 1).unwrap().url;
    assert_eq!(named(), CacheFolder::file_name(&key(1), Coding::Zstd));
    // It goes while the flat one is made anew.
    let flat = draft(&folder, &encode(1, Coding::Flat)).unwrap();
    for coding in [Coding::Flat, Coding::Zstd] {
        assert_eq!(folder.evict(&record(1, coding)).unwrap(), Evicted::Removed);
    }
    folder.publish(&key(1), flat, &stored(1, Coding::Flat), &narinfo(1, Coding::Flat), 2).unwrap();
    assert_eq!(named(), CacheFolder::file_name(&key(1), Coding::Flat));
    publish(&folder, 1, Coding::Zstd).unwrap();
    assert_eq!(named(), CacheFolder::file_name(&key(1), Coding::Zstd));
    assert_sound(&folder);
}

#[test]
fn what_a_reader_holds_is_neither_evicted_nor_replaced() {
    let (temp, folder) = new_cache();
    publish(&folder, 1, Coding::Flat).unwrap();
    let lease = folder.catalog().lease(&key(1), Coding::Flat, 5).unwrap();
    assert_eq!(folder.evict(&record(1, Coding::Flat)).unwrap(), Evicted::Held);
    let error = publish(&folder, 1, Coding::Flat).unwrap_err();
    assert_eq!(error.io_kind(), Some(io::ErrorKind::ResourceBusy));
    assert!(temp.path().join(CacheFolder::file_name(&key(1), Coding::Flat)).exists());
    assert_sound(&folder);
    drop(lease);
    publish(&folder, 1, Coding::Flat).unwrap();
    assert_eq!(folder.evict(&record(1, Coding::Flat)).unwrap(), Evicted::Removed);
}

#[test]
fn damaged_files_are_set_aside_up_to_a_number() {
    let (temp, folder) = new_cache();
    for number in 0..QUARANTINED_FILES_MAX as u64 + 2 {
        publish(&folder, number, Coding::Zstd).unwrap();
        publish(&folder, number, Coding::Flat).unwrap();
        // That somebody reads it is no reason to go on with it.
        let _lease = folder.catalog().lease(&key(number), Coding::Flat, 1).unwrap();
        folder.quarantine(&record(number, Coding::Flat)).unwrap();
        assert_eq!(folder.catalog().stored(&key(number), Coding::Flat), None);
    }
    assert_sound(&folder);
    assert_eq!(names(&temp.path().join(".narwire/quarantine")).len(), QUARANTINED_FILES_MAX);
    assert!(narinfo_at(temp.path(), 0).is_some());
    assert_eq!(folder.catalog().records().count(), QUARANTINED_FILES_MAX + 2);
}

#[test]
fn marks_of_damaged_trees_have_no_file() {
    let (_temp, folder) = new_cache();
    let entry = Entry::Damaged(RootMark { inode: 1, changed_s: 2, changed_ns: 3 });
    folder.catalog().insert(&key(1), entry, 1).unwrap();
    assert_sound(&folder);
    let record = Record { nar: key(1), entry, last_used_s: 1 };
    folder.quarantine(&record).unwrap();
    assert_eq!(folder.evict(&record).unwrap(), Evicted::Removed);
    assert_eq!(folder.catalog().damaged(&key(1)), None);
}

/// A cache as a crash, or somebody who tidied up, may have left it; `catalog` says what became of the catalog.
fn disorder(path: &Path, catalog: impl FnOnce(&Path)) {
    let folder = open(path).unwrap();
    for number in 1..=6 {
        publish(&folder, number, Coding::Zstd).unwrap();
    }
    publish(&folder, 1, Coding::Flat).unwrap();
    let file = |number, coding| path.join(CacheFolder::file_name(&key(number), coding));
    publish(&folder, 7, Coding::Flat).unwrap();
    fs::remove_file(file(1, Coding::Zstd)).unwrap(); // the flat one remains
    fs::remove_file(file(2, Coding::Zstd)).unwrap();
    for number in [3, 7] {
        fs::remove_file(path.join(narinfo_name(key(number).0))).unwrap();
    }
    File::options().write(true).open(file(4, Coding::Zstd)).unwrap().set_len(10).unwrap();
    fs::write(path.join("nar/notes.txt"), "x").unwrap();
    fs::write(path.join("nar/short-name.nar"), "x").unwrap();
    fs::create_dir(path.join("nar").join(base_name(&key(8), Coding::Flat))).unwrap();
    fs::write(path.join("mine.narinfo"), "x").unwrap();
    fs::write(path.join(narinfo_name(key(9).0)), "no narinfo").unwrap();
    drop(folder);
    catalog(&path.join(".narwire/catalog"));
}

fn assert_order(path: &Path) {
    for name in ["nar/notes.txt", "nar/short-name.nar", "mine.narinfo"] {
        assert!(path.join(name).exists(), "{name}");
    }
    assert!(path.join(narinfo_name(key(9).0)).exists());
    for number in [2, 4] {
        assert_eq!(narinfo_at(path, number), None);
    }
    assert!(narinfo_at(path, 5).is_some() && narinfo_at(path, 6).is_some());
    fs::remove_file(path.join("mine.narinfo")).unwrap();
    fs::remove_file(path.join(narinfo_name(key(9).0))).unwrap();
}

#[test]
fn a_new_catalog_is_filled_from_files_and_narinfos() {
    let damage = |path: &Path| File::options().write(true).open(path).unwrap().write_all_at(b"?", 3).unwrap();
    for (is_damaged, soundness) in [(false, Soundness::New), (true, Soundness::Rebuilt)] {
        let temp = tempfile::tempdir().unwrap();
        disorder(temp.path(), |path| if is_damaged { damage(path) } else { fs::remove_file(path).unwrap() });
        let folder = open(temp.path()).unwrap();
        assert_eq!(folder.soundness(), soundness);
        let mut findings = 0;
        let reconciled = folder.reconcile(&mut || {
            findings += 1;
            true
        });
        let reconciled = reconciled.unwrap();
        let expected = Reconciled {
            looked_at: findings,
            records_dropped: 0,
            files_taken: 3,        // 1 flat, 5 and 6 compressed
            files_removed: 3,      // 3 and 7, which have no narinfo; 4, which is cut
            narinfos_rewritten: 1, // of 1
            narinfos_removed: 2,   // of 2 and 4
        };
        assert_eq!(reconciled, expected);
        assert_order(temp.path());
        assert_sound(&folder);
    }
}

#[test]
fn records_without_their_files_go() {
    let temp = tempfile::tempdir().unwrap();
    disorder(temp.path(), |_| ());
    let folder = open(temp.path()).unwrap();
    let reconciled = reconcile(&folder);
    assert_eq!((reconciled.records_dropped, reconciled.files_removed), (3, 1), "{reconciled:?}");
    assert_eq!((reconciled.narinfos_rewritten, reconciled.narinfos_removed), (1, 2), "{reconciled:?}");
    // What has a record needs no narinfo.
    assert!(folder.catalog().stored(&key(7), Coding::Flat).is_some());
    assert_order(temp.path());
    assert_sound(&folder);
}

#[test]
fn reconciling_ends_when_it_is_asked_to() {
    let temp = tempfile::tempdir().unwrap();
    disorder(temp.path(), |_| ());
    let folder = open(temp.path()).unwrap();
    let reconciled = folder.reconcile(&mut || false).unwrap();
    assert_eq!(reconciled.looked_at, 1);
}

#[test]
fn beside_a_server_damaged_files_are_only_moved_away() {
    let (temp, folder) = new_cache();
    publish(&folder, 1, Coding::Zstd).unwrap();
    let beside = CacheFolder::open_beside(temp.path(), &store_dir()).unwrap();
    let found = beside.catalog().records().next().unwrap();
    assert!(publish(&beside, 2, Coding::Zstd).is_err() && beside.evict(&found).is_err());
    assert!(beside.reconcile(&mut || true).is_err());
    beside.keep("scrub.json", "{}").unwrap();
    assert_eq!(folder.kept("scrub.json", 10).unwrap().as_deref(), Some("{}"));
    assert_eq!((folder.kept("scrub.json", 1).unwrap(), folder.kept("other", 1).unwrap()), (None, None));
    beside.quarantine(&found).unwrap();
    beside.quarantine(&found).unwrap();
    assert_eq!(names(&temp.path().join(".narwire/quarantine")).len(), 1);
    // The server finds the file missing, and evicts what is left of it.
    assert!(folder.catalog().stored(&key(1), Coding::Zstd).is_some());
    assert_eq!(folder.evict(&found).unwrap(), Evicted::Removed);
    assert_sound(&folder);
}

#[test]
fn a_directory_that_somebody_removes_is_missed() {
    let (temp, folder) = new_cache();
    publish(&folder, 1, Coding::Zstd).unwrap();
    assert!(folder.is_there());
    let nar = temp.path().join("nar");
    fs::rename(&nar, temp.path().join("nar.old")).unwrap();
    assert!(!folder.is_there());
    fs::rename(temp.path().join("nar.old"), &nar).unwrap();
    assert!(folder.is_there());
    fs::remove_dir_all(temp.path()).unwrap();
    assert!(!folder.is_there());
    assert_eq!(folder.draft().err().unwrap().io_kind(), Some(io::ErrorKind::NotFound));
    assert_eq!(folder.keep("x", "y").unwrap_err().io_kind(), Some(io::ErrorKind::NotFound));
    // What was known of the files goes, without a word about those that are gone.
    assert_eq!(reconcile(&folder).records_dropped, 1);
    fs::create_dir(temp.path()).unwrap();
    assert!(!folder.is_there());
}

#[test]
fn only_names_of_ours_are_parsed() {
    for coding in [Coding::Flat, Coding::Zstd] {
        let name = base_name(&key(1), coding);
        assert_eq!(parse_base_name(&name), Some((key(1), coding)));
        for other in [format!("{name}.part"), format!(".{name}"), name[1..].to_owned(), name.to_uppercase()] {
            assert_eq!(parse_base_name(&other), None, "{other}");
        }
    }
}

/// What the child processes do: each kind of change, in a cache in disorder.
fn live_through_everything(path: &Path, expect: &mut dyn FnMut(Result<(), StoreError>)) {
    let folder = match open(path) {
        Ok(folder) => folder,
        Err(CacheFolderError::Io(error)) => return expect(Err(error)),
        Err(error) => panic!("{error}"),
    };
    expect(folder.reconcile(&mut || true).map(|_| ()));
    expect(publish(&folder, 10, Coding::Flat));
    expect(publish(&folder, 10, Coding::Zstd));
    expect(publish(&folder, 11, Coding::Zstd));
    expect(publish(&folder, 11, Coding::Flat));
    expect(publish(&folder, 10, Coding::Zstd));
    expect(folder.evict(&record(10, Coding::Zstd)).map(|_| ()));
    expect(folder.evict(&record(10, Coding::Flat)).map(|_| ()));
    expect(folder.quarantine(&record(11, Coding::Flat)));
    expect(folder.quarantine(&record(11, Coding::Zstd)));
    expect(publish(&folder, 12, Coding::Zstd));
    expect(folder.keep("scrub.json", "{}"));
    expect(folder.catalog().keep_uses());
    assert_nothing_wrong_is_served(&folder);
}

/// A child process of the tests below; by itself it does nothing.
#[test]
fn child() {
    let Some((path, Some(fault))) = children::asked() else { return };
    fault::plan(&fault).unwrap();
    let (path, is_killed) = (&*path, fault.starts_with("kill"));
    live_through_everything(path, &mut |result| {
        if let Err(error) = result {
            assert!(!is_killed, "{error}");
        }
    });
    if fault.contains("@publish") {
        // What could not be published is undone: nothing is left to mend.
        assert_narinfos_are_true(path, |name| (10..=12).any(|own| name == narinfo_name(key(own).0)));
        let left = reconcile(&open(path).unwrap());
        assert_eq!(Reconciled { looked_at: 0, ..left }, Reconciled::default());
    }
}

/// Runs [`child`].
fn run_child(path: &Path, fault: &str) -> bool {
    children::run("store::nar_cache::tests::child", path, fault)
}

/// A cache in disorder without a catalog, and nothing in it that is not ours.
fn disordered() -> TempDir {
    let temp = tempfile::tempdir().unwrap();
    disorder(temp.path(), |path| fs::remove_file(path).unwrap());
    let cut = CacheFolder::file_name(&key(4), Coding::Zstd);
    for name in ["mine.narinfo", "nix-cache-info", &narinfo_name(key(9).0), &cut] {
        fs::remove_file(temp.path().join(name)).unwrap();
    }
    temp
}

/// Directories and files, but for those in `.narwire`.
fn copy(from: &Path, to: &Path) {
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
            if name != OWN_NAME {
                copy(&from, &to);
            }
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

#[test]
fn a_kill_at_any_step_leaves_whole_files_and_a_sound_cache() {
    let disordered = disordered();
    let points = children::check_each(|number| {
        let temp = tempfile::tempdir().unwrap();
        copy(disordered.path(), temp.path());
        let is_over = run_child(temp.path(), &format!("kill@{}", number + 1));
        let folder = open(temp.path()).unwrap();
        assert_nothing_wrong_is_served(&folder);
        // The order of the steps is such that even before anything is mended, records and narinfos of its own have their files.
        assert_records_have_files(&folder);
        assert_narinfos_are_true(temp.path(), |name| (10..=12).any(|own| name == narinfo_name(key(own).0)));
        assert_sound(&folder);
        if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(points > 80, "{points}");
}

/// Every point there is.
const POINTS: [&str; 28] = [
    "catalog: file renamed",
    "catalog: file written",
    "evict: begun",
    "evict: file out",
    "evict: narinfo out",
    "evict: record out",
    "publish: begun",
    "publish: displaced file out",
    "publish: file renamed",
    "publish: file written",
    "publish: name of the file written",
    "publish: narinfo written",
    "publish: older file out",
    "publish: record in",
    "publish: record written",
    "quarantine: begun",
    "quarantine: record out",
    "reconcile: begun",
    "reconcile: file out",
    "reconcile: files seen",
    "reconcile: narinfo mended",
    "reconcile: narinfos seen",
    "reconcile: record in",
    "reconcile: record out",
    "reconcile: records seen",
    "text: begun",
    "text: file renamed",
    "text: file written",
];

#[test]
fn an_error_at_any_step_leaves_whole_files_and_a_sound_cache() {
    let disordered = disordered();
    children::check_each(|number| {
        let Some(point) = POINTS.get(number) else { return ControlFlow::Break(()) };
        let temp = tempfile::tempdir().unwrap();
        copy(disordered.path(), temp.path());
        let error = ["ENOSPC", "EIO", "EROFS"][number % 3];
        let times = if number % 2 == 0 { "" } else { ":2" };
        assert!(run_child(temp.path(), &format!("{error}@{point}{times}")));
        assert_sound(&open(temp.path()).unwrap());
        ControlFlow::Continue(())
    });
}

/// A disk that is really full: nothing ends the process, what is there stays right, and what is evicted makes room.
#[test]
fn child_on_a_full_disk() {
    let Some((path, None)) = children::asked() else { return };
    let folder = open(&path).unwrap();
    assert!(folder.space().unwrap().total < 1 << 20, "this is no small disk");
    let mut published = 0;
    let full = loop {
        match publish(&folder, published, Coding::Flat) {
            Ok(()) => published += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full.io_kind(), Some(io::ErrorKind::StorageFull), "{full}");
    assert!(published > 5);
    // To the last byte. Then records cannot be put where no record has been.
    let mut filler = File::create(path.join(".narwire/filler")).unwrap();
    while filler.write(&[1; 512]).is_ok() {}
    let mark = Entry::Damaged(RootMark { inode: 1, changed_s: 1, changed_ns: 1 });
    let mut refused = 0;
    for number in 1000..1200 {
        match folder.catalog().insert(&key(number), mark, 1) {
            Ok(_) => assert!(folder.catalog().damaged(&key(number)).is_some()),
            Err(error) => {
                assert_eq!(error.io_kind(), Some(io::ErrorKind::StorageFull), "{error}");
                assert_eq!(folder.catalog().damaged(&key(number)), None);
                refused += 1;
            }
        }
    }
    assert!(refused > 100, "{refused}");
    for number in 0..published {
        let leased = folder.catalog().lease(&key(number), Coding::Flat, 5);
        assert_eq!(leased.map(|(stored, _)| stored), Some(stored(number, Coding::Flat)));
    }
    assert_nothing_wrong_is_served(&folder);
    for number in 0..published {
        assert_eq!(folder.evict(&record(number, Coding::Flat)).unwrap(), Evicted::Removed);
    }
    publish(&folder, 500, Coding::Zstd).unwrap();
    assert_sound(&folder);
}

#[test]
fn a_full_disk_is_an_error_and_no_end() {
    let temp = tempfile::tempdir().unwrap();
    if !children::run_on_small_disk("store::nar_cache::tests::child_on_a_full_disk", temp.path()) {
        eprintln!("SKIPPED: no file system can be mounted here");
    }
}
