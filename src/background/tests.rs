//! The plane over a throw-away store, with real files.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::fill::{Filled, Order};
use super::room::{Need, Room};
use super::scrub::{Outcome, Phase};
use super::settings::{Format, Policy};
use super::*;
use crate::codec::hash::Sha256;
use crate::codec::narinfo::{NarInfo, PathInfo};
use crate::codec::signature::{KeyName, SecretKey};
use crate::codec::store_path::StorePath;
use crate::limits::{HINTS_LEN_MAX, NAR_DEPTH_MAX};

use crate::store::catalog::{Entry, Kind, NarKey, Record, Stored};
use crate::store::db::{Database, RowId};
use crate::store::demo::DemoStore;
use crate::store::keys::SigningKeys;
use crate::store::nar_cache::Coding;
use crate::store::now_s;

/// A store, and a cache of it.
struct Site {
    demo: DemoStore,
    folder: Arc<CacheFolder>,
    signing_keys: Arc<SigningKeys>,
    _root: TempDir,
}

impl Site {
    fn new() -> Self {
        let demo = DemoStore::create(None, &mut |_| {}).unwrap();
        // In the folder of the build, because the one for temporary files may be in memory.
        let root = tempfile::tempdir_in(concat!(env!("CARGO_MANIFEST_DIR"), "/target")).unwrap();
        let folder = CacheFolder::open(&root.path().join("cache"), &demo.store.store_dir, 30).unwrap();
        let key_name = KeyName::parse("cache.example.org-1").unwrap();
        let signing_keys = SigningKeys::new([SecretKey::from_seed(key_name, &[7; 32])].into());
        Self { demo, folder: Arc::new(folder), signing_keys, _root: root }
    }

    fn settings(policy: Policy, format: Format) -> FillSettings {
        FillSettings { policy, format, level: 3, len_max: Some(1 << 30), free_min: Some(0), scrub_rate: 0 }
    }

    fn start(&self, settings: FillSettings) -> Background {
        let (folder, keys) = (Arc::clone(&self.folder), Arc::clone(&self.signing_keys));
        Background::start(settings, folder, self.demo.store.clone(), keys).unwrap()
    }

    /// Lets `work` use what the tasks share, without the tasks.
    fn with_workshop<T>(&self, settings: FillSettings, work: impl AsyncFnOnce(&Rc<Workshop>) -> T) -> T {
        let (_end, ended) = async_channel::bounded(1);
        let shared = Arc::new(Shared::new(ended));
        executor::make().unwrap().run(async {
            let disks = Disks::new(Runtime::Executor);
            let (folder, keys) = (Arc::clone(&self.folder), Arc::clone(&self.signing_keys));
            work(&Workshop::new(disks, settings, folder, self.demo.store.clone(), keys, shared)).await
        })
    }

    fn path(&self, name: &str) -> StorePath {
        self.demo.paths.iter().find(|path| path.base_name().ends_with(name)).unwrap().clone()
    }

    fn info(&self, name: &str) -> PathInfo {
        let mut database = Database::open(&self.demo.store).unwrap();
        database.path_info(self.path(name).hash_part()).unwrap().unwrap()
    }

    fn nar(&self, name: &str) -> NarKey {
        let info = self.info(name);
        (info.path.hash_part(), info.nar_hash)
    }

    fn order(&self, name: &str) -> Order {
        Order { hash_part: self.path(name).hash_part(), has_small_files: false, need: Need::Wanted }
    }

    fn real(&self, name: &str) -> PathBuf {
        self.demo.store.real_store.join(self.path(name).base_name())
    }

    fn file(&self, name: &str, coding: Coding) -> PathBuf {
        self.folder.path().join(CacheFolder::file_name(&self.nar(name), coding))
    }

    fn record(&self, name: &str, coding: Coding) -> Option<Record> {
        let nar = self.nar(name);
        self.folder
            .catalog()
            .records()
            .find(|record| record.nar == nar && record.entry.kind() == Kind::Stored(coding))
    }

    /// The file in the cache is the NAR of the path, and all that is said of it is true.
    fn check_file(&self, name: &str, coding: Coding) {
        let (info, bytes) = (self.info(name), fs::read(self.file(name, coding)).unwrap());
        let stored = self.folder.catalog().stored(&self.nar(name), coding).unwrap();
        let Stored { file_hash, file_size, nar_size, .. } = stored;
        assert_eq!((file_hash, file_size), (Sha256::digest(&bytes), bytes.len() as u64), "{name}");
        let nar = match coding {
            Coding::Flat => bytes,
            Coding::Zstd => zstd::decode_all(&bytes[..]).unwrap(),
        };
        assert_eq!((Sha256::digest(&nar), nar.len() as u64), (info.nar_hash, info.nar_size), "{name}");
        assert_eq!(nar_size, info.nar_size);
    }

    fn narinfo(&self, name: &str) -> NarInfo {
        let path = self.folder.path().join(format!("{}.narinfo", self.path(name).hash_part()));
        NarInfo::parse(&fs::read_to_string(path).unwrap(), &self.demo.store.store_dir).unwrap()
    }

    fn scrub(&self) -> Outcome {
        let cache = (self.folder.path(), &self.demo.store.store_dir);
        scrub::scrub(Some(&self.demo.store), Some(cache), &mut |_| {}).unwrap()
    }
}

/// Waits until something is so.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_mins(1), "waited for: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Changes the last byte of a file, of which nothing else changes.
fn damage(file: &Path) {
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
    let mut contents = fs::read(file).unwrap();
    *contents.last_mut().unwrap() ^= 1;
    fs::write(file, contents).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o444)).unwrap();
}

#[test]
fn a_nar_that_many_ask_for_is_encoded_once() {
    let site = Site::new();
    let plane = site.start(Site::settings(Policy::Hot, Format::Both));
    let hint = Hint { hash_part: site.path("numbers.txt").hash_part(), has_small_files: false };
    plane.asked(hint);
    for _ in 0..300 {
        plane.asked(hint);
    }
    wait_until("the fill", || plane.report().fills_done == 1);
    for _ in 0..300 {
        plane.asked(hint);
    }
    let other = Hint { hash_part: site.path("many-small-files").hash_part(), has_small_files: true };
    plane.asked(other);
    wait_until("the other fill", || plane.report().fills_done == 2);
    let report = plane.report();
    drop(plane);
    assert_eq!(report.state, State::Working);
    assert_eq!((report.fills_failed, report.fills_refused, report.hints_dropped), (0, 0, 0));
    let sizes: u64 = ["numbers.txt", "many-small-files"].map(|name| site.info(name).nar_size).iter().sum();
    assert_eq!(report.filled_bytes, sizes);
    assert_eq!((report.stored_bytes, report.len_max), (report.used_bytes, 1 << 30));
    for name in ["numbers.txt", "many-small-files"] {
        site.check_file(name, Coding::Flat);
        site.check_file(name, Coding::Zstd);
    }
}

#[test]
fn small_files_are_wanted_at_once_and_others_when_they_are_asked_for_again() {
    let site = Site::new();
    let plane = site.start(Site::settings(Policy::Hot, Format::Auto));
    let asked =
        |name, has_small_files| plane.asked(Hint { hash_part: site.path(name).hash_part(), has_small_files });
    asked("numbers.txt", false);
    asked("many-small-files", true);
    wait_until("the fill", || plane.report().fills_done == 1);
    assert!(site.record("numbers.txt", Coding::Zstd).is_none());
    asked("numbers.txt", false);
    wait_until("the other fill", || plane.report().fills_done == 2);
    drop(plane);
    site.check_file("numbers.txt", Coding::Zstd);
    site.check_file("many-small-files", Coding::Zstd);
    site.check_file("many-small-files", Coding::Flat);
    assert!(site.record("numbers.txt", Coding::Flat).is_none(), "one long file is sent well from its tree");
}

#[test]
fn the_narinfo_names_the_compressed_file_and_is_signed() {
    let site = Site::new();
    site.with_workshop(Site::settings(Policy::Hot, Format::Both), async |workshop| {
        assert!(matches!(fill::fill(workshop, site.order("hello-1.0")).await, Filled::Done));
    });
    let narinfo = site.narinfo("hello-1.0");
    let stored = site.folder.catalog().stored(&site.nar("hello-1.0"), Coding::Zstd).unwrap();
    assert_eq!(narinfo.url, CacheFolder::file_name(&site.nar("hello-1.0"), Coding::Zstd));
    assert_eq!((narinfo.file_hash, narinfo.file_size), (Some(stored.file_hash), Some(stored.file_size)));
    let mut signed = site.info("hello-1.0");
    signed.sign(&site.demo.store.store_dir, &site.signing_keys.current());
    assert_eq!(narinfo.info, signed);
    assert_eq!(signed.signatures.len(), 1);
}

#[test]
fn all_valid_paths_are_encoded_if_that_is_the_policy() {
    let site = Site::new();
    let plane = site.start(Site::settings(Policy::All, Format::Zstd));
    let all = site.demo.paths.len() as u64;
    wait_until("all fills", || plane.report().fills_done == all);
    drop(plane);
    for path in &site.demo.paths {
        site.check_file(path.base_name(), Coding::Zstd);
    }
}

#[test]
fn a_damaged_tree_is_marked_and_not_cached_until_it_is_mended() {
    let site = Site::new();
    let settings = Site::settings(Policy::Hot, Format::Both);
    let victim = site.real("hello-1.0").join("bin/hello");
    let sound = fs::read(&victim).unwrap();
    damage(&victim);
    let nar = site.nar("hello-1.0");
    site.with_workshop(settings.clone(), async |workshop| {
        assert!(matches!(fill::fill(workshop, site.order("hello-1.0")).await, Filled::Damaged));
        assert!(matches!(fill::fill(workshop, site.order("hello-1.0")).await, Filled::Damaged));
        check::look_again(workshop).await.unwrap();
        assert_eq!(workshop.shared.report(0).damaged_paths, 1);
    });
    let mark = site.folder.catalog().damaged(&nar).unwrap();
    site.with_workshop(settings.clone(), async |workshop| {
        // One that could not be written down, or had to leave its place, comes back: by a fill, or while house is kept.
        let catalog = site.folder.catalog();
        assert!(catalog.remove(&nar, Kind::Damaged).unwrap());
        assert!(matches!(fill::fill(workshop, site.order("hello-1.0")).await, Filled::Damaged));
        assert_eq!(catalog.damaged(&nar), Some(mark));
        assert!(catalog.remove(&nar, Kind::Damaged).unwrap());
        workshop.keep_marks().await.unwrap();
        assert_eq!(catalog.damaged(&nar), Some(mark));
    });
    assert!(site.folder.catalog().records().all(|record| matches!(record.entry, Entry::Damaged(_))));
    assert_eq!(fs::read_dir(site.folder.path().join("nar")).unwrap().count(), 0);

    // Whoever mends a path makes another root, or at least changes it.
    let root = site.real("hello-1.0");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    site.with_workshop(settings.clone(), async |workshop| {
        check::look_again(workshop).await.unwrap();
        assert_eq!(workshop.shared.report(0).damaged_paths, 1, "known from before, and still damaged");
    });
    assert_ne!(site.folder.catalog().damaged(&nar), Some(mark));
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&victim, sound).unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o555)).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o555)).unwrap();
    site.with_workshop(settings, async |workshop| {
        check::look_again(workshop).await.unwrap();
        assert_eq!(workshop.shared.report(0).damaged_paths, 0);
        assert!(matches!(fill::fill(workshop, site.order("hello-1.0")).await, Filled::Done));
    });
    assert_eq!(site.folder.catalog().damaged(&nar), None);
    site.check_file("hello-1.0", Coding::Zstd);
}

#[test]
fn a_tree_of_another_size_is_damaged_and_a_path_that_is_gone_is_nothing() {
    let site = Site::new();
    let note = site.real("note.txt");
    fs::set_permissions(&note, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&note, "longer than it was, by some words").unwrap();
    site.with_workshop(Site::settings(Policy::Hot, Format::Zstd), async |workshop| {
        assert!(matches!(fill::fill(workshop, site.order("note.txt")).await, Filled::Damaged));
        assert!(site.folder.catalog().damaged(&site.nar("note.txt")).is_some());
        let gone = Order {
            hash_part: HashPart::parse(&[b'0'; 32]).unwrap(),
            has_small_files: true,
            need: Need::Wanted,
        };
        assert!(matches!(fill::fill(workshop, gone).await, Filled::Nothing));
        fs::remove_file(site.real("link")).unwrap();
        assert!(matches!(fill::fill(workshop, site.order("link")).await, Filled::Failed(_)));
        assert!(site.folder.catalog().damaged(&site.nar("link")).is_none(), "there is no root to mark");
    });
}

#[test]
fn what_is_too_long_is_refused_and_what_is_there_makes_room() {
    let site = Site::new();
    let numbers = site.info("numbers.txt").nar_size;
    let small = FillSettings { len_max: Some(numbers - 1), ..Site::settings(Policy::Hot, Format::Flat) };
    site.with_workshop(small.clone(), async |workshop| {
        assert!(matches!(fill::fill(workshop, site.order("numbers.txt")).await, Filled::Refused));
        assert!(matches!(fill::fill(workshop, site.order("many-small-files")).await, Filled::Done));
        assert!(matches!(fill::fill(workshop, site.order("hello-1.0")).await, Filled::Done));
        let len = site.folder.catalog().stored_len_bytes();
        let room = async |len| workshop.make_room(len, Need::Spare).await.unwrap();
        assert!(matches!(room(numbers - 1 - len).await, Room::Made(_)));
        assert!(matches!(room(numbers - len).await, Room::None(_)));
        // What is promised is promised to one alone.
        let promised = room(numbers - 1 - len).await;
        assert!(matches!(room(1).await, Room::None(_)));
        drop(promised);
        assert!(matches!(room(1).await, Room::Made(_)));
    });
    let just_enough = FillSettings { len_max: Some(numbers), ..small };
    site.with_workshop(just_enough.clone(), async |workshop| {
        // A file that somebody reads stays, and so there is no room.
        let nar = site.nar("many-small-files");
        let lease = site.folder.catalog().lease(&nar, Coding::Flat, now_s()).unwrap();
        let filled = fill::fill(workshop, site.order("numbers.txt")).await;
        assert!(matches!(filled, Filled::NoRoom(_)), "{filled:?}");
        let spare = Order { need: Need::Spare, ..site.order("numbers.txt") };
        assert!(matches!(fill::fill(workshop, spare).await, Filled::NoRoom(_)));
        assert!(site.record("many-small-files", Coding::Flat).is_some());
        assert!(site.record("hello-1.0", Coding::Flat).is_none());
        drop(lease);
        assert!(matches!(fill::fill(workshop, site.order("numbers.txt")).await, Filled::Done));
        assert_eq!(workshop.shared.report(0).evictions, 2);
    });
    site.check_file("numbers.txt", Coding::Flat);
    assert_eq!(site.folder.catalog().stored_len_bytes(), numbers);
    assert_eq!(fs::read_dir(site.folder.path().join("nar")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(site.folder.path().join(".narwire/tmp")).unwrap().count(), 0);
}

#[test]
fn nothing_goes_for_what_would_not_fit_in_anyway() {
    let site = Site::new();
    let numbers = site.info("numbers.txt").nar_size;
    let settings =
        FillSettings { len_max: Some(2 * numbers - 1), ..Site::settings(Policy::Hot, Format::Both) };
    site.with_workshop(settings.clone(), async |workshop| {
        assert!(matches!(fill::fill(workshop, site.order("note.txt")).await, Filled::Done));
        let filled = fill::fill(workshop, site.order("numbers.txt")).await;
        assert!(matches!(filled, Filled::Refused), "{filled:?}");
        assert_eq!(workshop.shared.report(0).evictions, 0);
    });
    let no_disk = FillSettings { free_min: Some(u64::MAX / 2), len_max: Some(u64::MAX), ..settings.clone() };
    site.with_workshop(no_disk, async |workshop| {
        let filled = fill::fill(workshop, site.order("numbers.txt")).await;
        assert!(matches!(filled, Filled::Refused), "{filled:?}");
        assert_eq!(workshop.shared.report(0).evictions, 0);
    });
    let both = FillSettings { len_max: Some(2 * numbers), ..settings };
    site.with_workshop(both, async |workshop| {
        assert!(matches!(fill::fill(workshop, site.order("numbers.txt")).await, Filled::Done));
    });
}

#[test]
fn a_full_cache_is_said_once_and_holds_nobody() {
    let site = Site::new();
    let numbers = site.info("numbers.txt").nar_size;
    let settings = FillSettings { len_max: Some(numbers), ..Site::settings(Policy::Hot, Format::Flat) };
    site.with_workshop(settings, async |workshop| {
        assert!(tasks::carry_out(workshop, site.order("note.txt")).await);
        let lease = site.folder.catalog().lease(&site.nar("note.txt"), Coding::Flat, now_s()).unwrap();
        assert!(tasks::carry_out(workshop, site.order("numbers.txt")).await);
        assert!(!workshop.claim(site.order("numbers.txt").hash_part), "it is left alone for a while");
        let is_full =
            || matches!(workshop.shared.state(), State::Full(reason) if reason.contains("--cache-size"));
        assert!(is_full());
        // What is short still fits in, and that is no news of what is long.
        assert!(tasks::carry_out(workshop, site.order("hello-1.0")).await);
        tasks::keep_house_once(workshop).await.unwrap();
        assert!(is_full());
        tasks::keep_house_once(workshop).await.unwrap();
        assert_eq!(workshop.shared.state(), State::Working);
        let spare = Order { need: Need::Spare, ..site.order("many-small-files") };
        drop(lease);
        let rest = workshop.make_room(numbers - site.folder.catalog().stored_len_bytes(), Need::Spare);
        let Room::Made(_rest) = rest.await.unwrap() else { panic!() };
        assert!(tasks::carry_out(workshop, spare).await);
        assert_eq!(workshop.shared.state(), State::Working, "nobody has asked for it");
        assert!(workshop.claim(spare.hash_part), "whoever asks for it gets it");
        let report = workshop.shared.report(0);
        assert_eq!((report.fills_done, report.fills_refused, report.evictions), (2, 2, 0));
    });
}

#[test]
fn two_fills_at_once_keep_to_the_bounds_and_wait_for_each_other() {
    let site = Site::new();
    let names = ["numbers.txt", "many-small-files"];
    let longest = names.map(|name| site.info(name).nar_size).into_iter().max().unwrap();
    let settings = FillSettings { len_max: Some(longest), ..Site::settings(Policy::Hot, Format::Flat) };
    site.with_workshop(settings, async |workshop| {
        let [one, other] = names.map(|name| tasks::carry_out(workshop, site.order(name)));
        assert_eq!(futures_lite::future::zip(one, other).await, (true, true));
        let report = workshop.shared.report(0);
        assert_eq!((report.fills_done, report.fills_refused, report.evictions), (2, 0, 1));
        let bounds = workshop.bounds().await.unwrap();
        assert_eq!((bounds.promised, bounds.drafted), (0, 0));
    });
}

#[test]
fn a_path_is_left_alone_until_it_is_evicted_or_put_aside() {
    let site = Site::new();
    site.with_workshop(Site::settings(Policy::Hot, Format::Zstd), async |workshop| {
        let order = site.order("note.txt");
        assert!(workshop.claim(order.hash_part) && !workshop.claim(order.hash_part));
        assert!(matches!(fill::fill(workshop, order).await, Filled::Done));
        workshop.release(order.hash_part);
        assert!(workshop.claim(order.hash_part));
        workshop.leave_alone(order.hash_part);
        workshop.release(order.hash_part);
        assert!(!workshop.claim(order.hash_part));
        assert!(workshop.evict_one(site.record("note.txt", Coding::Zstd).unwrap()).await.unwrap());
        assert!(workshop.claim(order.hash_part));
        assert!(matches!(fill::fill(workshop, order).await, Filled::Done));
        workshop.leave_alone(order.hash_part);
        workshop.release(order.hash_part);
        let record = site.record("note.txt", Coding::Zstd).unwrap();
        workshop.quarantine(record, "it is put aside").await.unwrap();
        assert!(workshop.claim(order.hash_part));
    });
}

#[test]
fn a_folder_that_is_removed_is_a_failing_cache_and_nothing_worse() {
    let site = Site::new();
    let own = site.folder.path().join(".narwire");
    let aside = own.with_file_name("aside");
    site.with_workshop(Site::settings(Policy::Hot, Format::Zstd), async |workshop| {
        fs::rename(&own, &aside).unwrap();
        let filled = fill::fill(workshop, site.order("note.txt")).await;
        assert!(matches!(filled, Filled::Stuck(_)), "{filled:?}");
        tasks::keep_house_once(workshop).await.unwrap();
        assert!(
            matches!(workshop.shared.state(), State::Failing(reason) if reason.contains("restart narwire"))
        );
        fs::rename(&aside, &own).unwrap();
        tasks::keep_house_once(workshop).await.unwrap();
        assert_eq!(workshop.shared.state(), State::Working);
        fs::remove_dir(own.join("tmp")).unwrap();
        let filled = fill::fill(workshop, site.order("note.txt")).await;
        assert!(matches!(filled, Filled::Stuck(_)), "{filled:?}");
    });
}

#[test]
fn a_scrub_finds_flipped_bits() {
    let site = Site::new();
    let names = ["hello-1.0", "numbers.txt", "many-small-files"];
    site.with_workshop(Site::settings(Policy::Hot, Format::Both), async |workshop| {
        for name in names {
            assert!(matches!(fill::fill(workshop, site.order(name)).await, Filled::Done));
        }
    });
    let sound = site.scrub();
    let counted = (sound.paths, sound.files, sound.damaged_paths.count, sound.quarantined_files.count);
    assert_eq!(counted, (site.demo.paths.len() as u64, 6, 0, 0), "{sound:?}");

    damage(&site.file("numbers.txt", Coding::Zstd));
    damage(&site.file("hello-1.0", Coding::Flat));
    fs::write(site.file("many-small-files", Coding::Zstd), "short").unwrap();
    damage(&site.real("many-small-files").join("file-499"));
    let found = site.scrub();
    assert_eq!(found.damaged_paths.names, [site.path("many-small-files").full(&site.demo.store.store_dir)]);
    assert_eq!((found.damaged_paths.count, found.quarantined_files.count), (1, 3), "{found:?}");
    assert_eq!(found.unreadable.count, 0);
    assert!(!site.file("numbers.txt", Coding::Zstd).exists());
    assert_eq!(fs::read_dir(site.folder.path().join(".narwire/quarantine")).unwrap().count(), 3);
    site.check_file("numbers.txt", Coding::Flat);
}

#[test]
fn a_tree_of_which_there_can_be_no_nar_is_not_called_damaged() {
    let site = Site::new();
    let folder = site.real("many-small-files");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(folder.join("d/".repeat(NAR_DEPTH_MAX))).unwrap();
    site.with_workshop(Site::settings(Policy::Hot, Format::Both), async |workshop| {
        let filled = fill::fill(workshop, site.order("many-small-files")).await;
        assert!(matches!(filled, Filled::Refused), "{filled:?}");
        assert_eq!(workshop.shared.report(0).damaged_paths, 0);
    });
    let found = site.scrub();
    assert_eq!((found.damaged_paths.count, found.unreadable.count), (0, 0), "{found:?}");
    assert_eq!(found.paths, site.demo.paths.len() as u64 - 1);
}

#[test]
fn a_scrub_misses_files_that_are_gone() {
    let site = Site::new();
    let settings = FillSettings { scrub_rate: u64::MAX, ..Site::settings(Policy::Off, Format::Zstd) };
    site.with_workshop(settings, async |workshop| {
        for name in ["hello-1.0", "numbers.txt"] {
            assert!(matches!(fill::fill(workshop, site.order(name)).await, Filled::Done));
        }
    });
    fs::remove_file(site.file("numbers.txt", Coding::Zstd)).unwrap();
    let found = site.scrub();
    assert_eq!((found.files, found.quarantined_files.count), (1, 0), "{found:?}");
    let name = CacheFolder::file_name(&site.nar("numbers.txt"), Coding::Zstd);
    assert_eq!(found.unreadable.names, [format!("{name}: it is missing")]);
}

#[test]
fn a_scrub_passes_over_damaged_rows() {
    let site = Site::new();
    damage(&site.real("many-small-files").join("file-499"));
    let connection = rusqlite::Connection::open(&site.demo.store.database).unwrap();
    let change = |set: &str, name: &str| {
        let path = site.path(name).full(&site.demo.store.store_dir);
        connection.execute(&format!("update ValidPaths set {set} where path = ?1"), [path]).unwrap();
    };
    change("narSize = 0", "hello-1.0");
    change("path = '/elsewhere/x'", "numbers.txt");
    let found = site.scrub();
    assert_eq!((found.paths, found.unreadable.count), (site.demo.paths.len() as u64 - 2, 2), "{found:?}");
    assert_eq!(found.damaged_paths.count, 1);
    let rows = Database::open(&site.demo.store).unwrap().valid_paths(RowId::default(), 100).unwrap();
    let good = rows.iter().filter(|(_, path)| path.is_ok()).count() as u64;
    let plane = site.start(Site::settings(Policy::All, Format::Zstd));
    // All but the one without a size and the damaged one.
    wait_until("all other fills", || plane.report().fills_done == good - 2);
}

#[test]
fn the_slow_scrub_marks_what_is_damaged_and_removes_what_is_gone() {
    let site = Site::new();
    let settings = FillSettings { scrub_rate: u64::MAX, ..Site::settings(Policy::Off, Format::Zstd) };
    site.with_workshop(settings.clone(), async |workshop| {
        for name in ["hello-1.0", "numbers.txt", "note.txt"] {
            assert!(matches!(fill::fill(workshop, site.order(name)).await, Filled::Done));
        }
    });
    damage(&site.file("numbers.txt", Coding::Zstd));
    damage(&site.real("hello-1.0").join("share/doc/README"));
    let (gone, note) = (site.nar("note.txt"), site.path("note.txt").full(&site.demo.store.store_dir));
    let connection = rusqlite::Connection::open(&site.demo.store.database).unwrap();
    connection.execute("delete from ValidPaths where path = ?1", [note]).unwrap();
    let plane = site.start(settings.clone());
    let is_over = |report: &Report| {
        report.scrub_progress_ppm == 1_000_000
            && report.scrub_ended_s.is_some_and(|ended_s| now_s() - ended_s < 60)
    };
    assert!(!is_over(&plane.report()), "none has ended before");
    wait_until("the pass", || plane.report().scrubs == 1 && is_over(&plane.report()));
    let report = plane.report();
    drop(plane);
    let plane = site.start(settings);
    wait_until("it to be known after a restart", || plane.report().scrubs == 0 && is_over(&plane.report()));
    drop(plane);
    assert_eq!((report.scrubbed_files, report.quarantined_files, report.evictions), (2, 1, 1));
    assert_eq!((report.damaged_paths, report.scrubbed_paths), (1, site.demo.paths.len() as u64 - 1));
    let catalog = site.folder.catalog();
    assert!(catalog.damaged(&site.nar("hello-1.0")).is_some());
    assert!(catalog.stored(&site.nar("numbers.txt"), Coding::Zstd).is_none());
    assert!(catalog.stored(&gone, Coding::Zstd).is_none());
}

#[test]
fn a_file_that_cannot_be_sent_is_looked_into() {
    let site = Site::new();
    site.with_workshop(Site::settings(Policy::Hot, Format::Both), async |workshop| {
        for name in ["numbers.txt", "hello-1.0"] {
            assert!(matches!(fill::fill(workshop, site.order(name)).await, Filled::Done));
        }
    });
    fs::remove_file(site.file("numbers.txt", Coding::Zstd)).unwrap();
    fs::write(site.file("hello-1.0", Coding::Zstd), "short").unwrap();
    let plane = site.start(Site::settings(Policy::Off, Format::Both));
    // What was missing or shorter when the plane began was found then.
    wait_until("all to agree", || site.folder.catalog().records().count() == 2);
    fs::remove_file(site.file("numbers.txt", Coding::Flat)).unwrap();
    damage(&site.file("hello-1.0", Coding::Flat));
    plane.doubt(site.nar("numbers.txt"), Coding::Flat);
    plane.doubt(site.nar("numbers.txt"), Coding::Zstd);
    plane.doubt(site.nar("hello-1.0"), Coding::Flat);
    wait_until("both to go", || site.folder.catalog().records().count() == 0);
    wait_until("the quarantine", || plane.report().quarantined_files == 1);
}

#[test]
fn a_scrub_goes_on_where_it_was_killed() {
    let site = Site::new();
    site.with_workshop(Site::settings(Policy::Hot, Format::Zstd), async |workshop| {
        assert!(matches!(fill::fill(workshop, site.order("note.txt")).await, Filled::Done));
    });
    let rows = Database::open(&site.demo.store).unwrap().valid_paths(RowId::default(), 100).unwrap();
    let metadata = fs::metadata(&site.demo.store.database).unwrap();
    let (device, database) = (metadata.dev(), metadata.ino());
    let row = serde_json::to_string(&rows[rows.len() - 2].0).unwrap();
    let outcome = r#"{"paths":7,"files":0,"bytes":1,"damaged_paths":{"count":1,"names":["x"]},
        "quarantined_files":{"count":0,"names":[]},"unreadable":{"count":0,"names":[]}}"#;
    let kept = |began_s: u64, database: u64| {
        format!(
            r#"{{"began_s":{began_s},"database":[{device},{database}],"is_finished":false,"phase":"store-paths",
            "row":{row},"file":"","done":7,"done_bytes":1,"outcome":{outcome}}}"#
        )
    };
    site.folder.keep("scrub-command.json", &kept(now_s(), database)).unwrap();
    let mut seen = Vec::new();
    let cache = (site.folder.path(), &site.demo.store.store_dir);
    let found = scrub::scrub(Some(&site.demo.store), Some(cache), &mut |progress| {
        seen.push((progress.phase, progress.current.to_owned()));
    });
    let found = found.unwrap();
    assert!(found.is_resumed);
    assert_eq!((found.paths, found.files, found.damaged_paths.count), (8, 1, 1));
    let last = rows.last().unwrap().1.as_ref().unwrap().full(&site.demo.store.store_dir);
    assert!(seen.iter().all(|(phase, path)| *phase == Phase::CachedFiles || *path == last), "{seen:?}");
    // A pass that was finished is not gone on with.
    assert_eq!(site.scrub().paths, rows.len() as u64);
    let day_s = 24 * 3600;
    // And neither is one that is old, one whose beginning is yet to come, one of another database, and what nobody understands.
    let others = [
        kept(now_s() - day_s - 1, database),
        kept(now_s() + day_s, database),
        kept(now_s(), database + 1),
        kept(now_s(), database).replace("database", "else"),
        "{".to_owned(),
    ];
    for other in others {
        site.folder.keep("scrub-command.json", &other).unwrap();
        let found = site.scrub();
        assert_eq!((found.paths, found.is_resumed), (rows.len() as u64, false), "{other}");
    }
}

#[test]
fn a_thread_alone_scrubs_as_well() {
    let site = Site::new();
    damage(&site.real("many-small-files").join("file-000"));
    let disks = Disks::new(Runtime::Thread);
    for (name, is_sound) in [("many-small-files", false), ("numbers.txt", true)] {
        let info = site.info(name);
        let tree = tree::Tree::open(&site.demo.store, &info).unwrap().unwrap();
        let verdict = futures_lite::future::block_on(tree.verify(&disks, &info, &mut async |_| Ok(())));
        assert_eq!(matches!(verdict.unwrap(), tree::Verdict::Sound), is_sound, "{name}");
    }
}

#[test]
fn a_walk_that_nobody_follows_any_more_comes_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("tree")).unwrap();
    for index in 0..3000 {
        fs::write(folder.path().join(format!("tree/{index}")), "x").unwrap();
    }
    let demo = DemoStore::create(Some(folder.path()), &mut |_| {}).unwrap();
    let mut database = Database::open(&demo.store).unwrap();
    let info = database.path_info(demo.paths[0].hash_part()).unwrap().unwrap();
    let stopped = executor::run(async |runtime| {
        let tree = tree::Tree::open(&demo.store, &info).unwrap().unwrap();
        let mut watch = async |_| Err(tree::SinkError::Ended);
        tree.verify(&Disks::new(runtime), &info, &mut watch).await
    });
    assert!(matches!(stopped, Err(tree::TreeError::Sink(tree::SinkError::Ended))));
}

#[test]
fn a_plane_that_ends_in_the_middle_leaves_nothing_half_done() {
    let site = Site::new();
    for delay in (0..40).step_by(4).map(Duration::from_millis) {
        let plane = site.start(Site::settings(Policy::All, Format::Both));
        thread::sleep(delay);
        drop(plane);
        assert_eq!(fs::read_dir(site.folder.path().join(".narwire/tmp")).unwrap().count(), 0, "{delay:?}");
        for path in &site.demo.paths {
            for coding in [Coding::Flat, Coding::Zstd] {
                if site.record(path.base_name(), coding).is_some() {
                    site.check_file(path.base_name(), coding);
                }
            }
        }
    }
}

#[test]
fn what_waits_for_the_plane_is_bounded() {
    let shared = Shared::new(async_channel::bounded(1).1);
    let hint = Hint { hash_part: HashPart::parse(&[b'0'; 32]).unwrap(), has_small_files: true };
    let taken = (0..2 * HINTS_LEN_MAX).filter(|_| shared.hints.put(hint)).count();
    assert_eq!(taken, HINTS_LEN_MAX);
    assert_eq!(shared.hints.take(), Some(hint));
    assert!(shared.hints.put(hint) && !shared.hints.put(hint));
}

#[test]
fn a_state_is_entered_once_and_left_again() {
    let shared = Shared::new(async_channel::bounded(1).1);
    let (failing, full) =
        (|reason: &str| State::Failing(reason.into()), |reason: &str| State::Full(reason.into()));
    for (state, is_news) in [
        (State::Working, false),
        (failing("x"), true),
        (failing("y"), false),
        (full("z"), true),
        (full("z"), false),
        (State::Working, true),
        (State::Working, false),
    ] {
        assert_eq!(shared.enter(state.clone()), is_news, "{state}");
        assert_eq!(shared.report(3).state, state);
    }
    assert_eq!(shared.report(3).used_bytes, 3);
    assert!(shared.is_ending(), "nobody is there to end it");
}
