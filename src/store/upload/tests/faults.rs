//! Uploads while the process ends, the disk fails, is full, or somebody else is at it.

use std::io::Read as _;
use std::ops::ControlFlow;
use std::process::{Command, Stdio};
use std::sync::Barrier;

use super::*;
use crate::codec::realisation::DrvOutput;
use crate::store::fault::children;

const CHILD: &str = "store::upload::tests::faults::child";
const STAGING: &str = ".narwire-uploads";
const OTHER: &str = "0000000000000000000000000000000f-other";

fn open(path: &Path) -> Arc<UploadFolder> {
    Arc::new(UploadFolder::open(settings(path)).unwrap())
}

fn put(folder: &Arc<UploadFolder>, target: Target, body: &[u8]) -> Result<Accepted, Refusal> {
    begin_and_push(folder, target, None, body, 1000)?.finish(&mut |_| Ok(false))
}

fn signed(file: &NarFile, number: u8) -> String {
    let mut narinfo = file.narinfo(OUT, &[OUT]);
    sign(&mut narinfo, &key(number));
    text_of(&narinfo)
}

fn realisation(number: u8) -> (Target, String) {
    let id = format!("sha256:{}!out", "ab".repeat(32));
    let id = DrvOutput::parse(&id).unwrap();
    let realisation = crate::codec::realisation::Realisation {
        out_path: StorePath::parse_base_name(OUT).unwrap(),
        signatures: vec![key(number).sign("x")],
        dependent_realisations: BTreeMap::new(),
    };
    (Target::File(CacheFile::Realisation(id.clone())), realisation.to_keyed_json(&id))
}

/// What the child processes do: each kind of upload, some of them twice.
fn live_through_everything(path: &Path, expect: &mut dyn FnMut(Result<(), Refusal>)) {
    let folder = match UploadFolder::open(settings(path)) {
        Ok(folder) => Arc::new(folder),
        Err(UploadFolderError::Io(error)) => return expect(Err(error.into())),
        Err(error) => panic!("{error}"),
    };
    let file = NarFile::new("a", Compression::Zstd);
    let narinfo = Target::File(CacheFile::NarInfo(HashPart::parse(&OUT.as_bytes()[..32]).unwrap()));
    let listing = Target::File(CacheFile::Listing(HashPart::parse(&OUT.as_bytes()[..32]).unwrap()));
    let log = Target::File(CacheFile::Log(StorePath::parse_base_name(OUT).unwrap()));
    let mut try_to_put = |target: Target, body: &[u8]| expect(put(&folder, target, body).map(|_| ()));
    try_to_put(Target::File(CacheFile::CacheInfo), b"StoreDir: /nix/store\n");
    try_to_put(file.target(), &file.bytes);
    try_to_put(narinfo.clone(), signed(&file, 1).as_bytes());
    try_to_put(file.target(), &file.bytes);
    try_to_put(narinfo, signed(&file, 2).as_bytes());
    try_to_put(listing, br#"{"version":1,"root":{"type":"regular","size":50}}"#);
    try_to_put(log.clone(), b"first\n");
    try_to_put(log, b"second\n");
    for number in [1, 2] {
        let (target, text) = realisation(number);
        try_to_put(target, text.as_bytes());
    }
    try_to_put(Target::Export, &export(&[(DEPENDENCY, b"first", &[]), (OTHER, b"second", &[DEPENDENCY])]));
}

/// What holds whenever it is looked: what has a name is whole and true, and is what some upload has said.
fn assert_true(path: &Path) {
    let file = NarFile::new("a", Compression::Zstd);
    let is_there = |name: &str| path.join(name).exists();
    if is_there("nar") {
        for name in names(&path.join("nar")) {
            let bytes = fs::read(path.join("nar").join(&name)).unwrap();
            assert_eq!(name, format!("{}.nar.zst", Sha256::digest(&bytes).to_nix32()));
        }
    }
    let mut found = names(path);
    found.retain(|name| !["nar", "log", "realisations", STAGING].contains(&&**name));
    for name in found {
        let text = fs::read_to_string(path.join(&name)).unwrap();
        match name.rsplit_once('.') {
            None => assert_eq!(text, "StoreDir: /nix/store\n"),
            Some((_, "ls")) => listing_check(&text),
            Some((hash_part, "narinfo")) => {
                let narinfo = NarInfo::parse(&text, &StoreDir::parse("/nix/store").unwrap()).unwrap();
                for reference in &narinfo.info.references {
                    assert!(is_there(&format!("{}.narinfo", reference.hash_part())), "{reference}");
                }
                if hash_part == &OUT[..32] {
                    let (first, second) = (signed(&file, 1), signed(&file, 2));
                    let last_line = |text: &str| format!("{}\n", text.lines().last().unwrap());
                    let states = [
                        first.clone(),
                        second.clone(),
                        first.clone() + &last_line(&second),
                        second.clone() + &last_line(&first),
                    ];
                    assert!(states.contains(&text), "{text}");
                    assert!(is_there(&narinfo.url));
                } else {
                    let contents: &[u8] = if hash_part == &OTHER[..32] { b"second" } else { b"first" };
                    assert_whole(path, narinfo.info.path.base_name(), contents);
                }
            }
            Some(other) => panic!("{other:?}"),
        }
    }
    if let Ok(log) = fs::read_to_string(path.join("log").join(OUT)) {
        assert!(["first\n", "second\n"].contains(&&*log), "{log}");
    }
    if is_there("realisations") {
        for name in names(&path.join("realisations")) {
            let text = fs::read_to_string(path.join("realisations").join(name)).unwrap();
            let (_, parsed) = crate::codec::realisation::Realisation::parse_keyed_json(&text).unwrap();
            assert!((1..=2).contains(&parsed.signatures.len()));
        }
    }
}

fn listing_check(text: &str) {
    crate::codec::nar::listing::check(text.as_bytes()).unwrap();
}

/// What holds after a start: the same, and nothing is left of what was before.
fn assert_sound(path: &Path) {
    assert_true(path);
    let folder = open(path);
    let [own] = &names(&path.join(STAGING))[..] else { panic!("{:?}", names(&path.join(STAGING))) };
    assert_eq!(names(&path.join(STAGING).join(own)), Vec::<String>::new());
    // And all of it can be uploaded.
    drop(folder);
    live_through_everything(path, &mut |result| result.unwrap());
    assert_true(path);
    assert_whole(path, DEPENDENCY, b"first");
    assert_whole(path, OTHER, b"second");
    let text = fs::read_to_string(path.join(format!("{}.narinfo", &OUT[..32]))).unwrap();
    assert_eq!(text.matches("Sig: ").count(), 2);
    assert_eq!(fs::read_to_string(path.join("log").join(OUT)).unwrap(), "second\n");
    assert_eq!(names(&path.join(STAGING)), Vec::<String>::new(), "a folder goes with its process");
}

/// A child process of the tests below; by itself it does nothing.
#[test]
fn child() {
    let Some((path, Some(fault))) = children::asked() else { return };
    fault::plan(&fault).unwrap();
    live_through_everything(&path, &mut |result| match result {
        Ok(()) => {}
        Err(Refusal::NoRoom(_)) => assert!(fault.starts_with("ENOSPC")),
        Err(Refusal::Failed(error)) => {
            assert!(fault.starts_with('E') && !fault.starts_with("ENOSPC"), "{error}");
        }
        // What could not be stored is missed by what needs it.
        Err(Refusal::Conflict(text)) => {
            assert!(fault.starts_with('E') && text.contains("not in the cache"), "{text}");
        }
        Err(error) => panic!("{error}"),
    });
    // A folder that could not even be made goes with the next start.
    if !fault.starts_with("kill") && !fault.contains("@staging") {
        assert_eq!(names(&path.join(STAGING)), Vec::<String>::new(), "nothing is left of what failed");
    }
}

#[test]
fn a_kill_at_any_step_leaves_what_was_or_what_will_be() {
    let points = children::check_each(|number| {
        let temp = tempfile::tempdir().unwrap();
        let is_over = children::run(CHILD, temp.path(), &format!("kill@{}", number + 1));
        if !is_over {
            // And in the middle of mending that.
            children::run(CHILD, temp.path(), "kill@2");
        }
        assert_sound(temp.path());
        if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(points > 70, "{points}");
}

/// Every point there is.
const POINTS: [&str; 18] = [
    "directory: begun",
    "directory: name written",
    "draft: begun",
    "import: nar kept",
    "import: path kept",
    "import: path packed",
    "import: write",
    "nar: begun",
    "nar: file renamed",
    "nar: file written",
    "nar: name written",
    "narinfo: checked",
    "room: asked",
    "staging: begun",
    "staging: folder made",
    "text: begun",
    "text: file renamed",
    "text: file written",
];

#[test]
fn an_error_at_any_step_is_told_and_leaves_what_was_or_what_will_be() {
    children::check_each(|number| {
        let Some(point) = POINTS.get(number / 3) else { return ControlFlow::Break(()) };
        let temp = tempfile::tempdir().unwrap();
        let error = ["ENOSPC", "EIO", "EROFS"][number % 3];
        let times = if (number / 3) % 2 == 0 { "" } else { ":2" };
        assert!(children::run(CHILD, temp.path(), &format!("{error}@{point}{times}")));
        fs::create_dir_all(temp.path().join(STAGING)).unwrap();
        assert_sound(temp.path());
        ControlFlow::Continue(())
    });
}

#[test]
fn each_of_these_points_is_passed() {
    children::check_each(|number| {
        let Some(point) = POINTS.get(number) else { return ControlFlow::Break(()) };
        let temp = tempfile::tempdir().unwrap();
        // In a process of its own, for a plan is made once.
        assert!(children::run(CHILD_THAT_MUST_FAIL, temp.path(), &format!("EIO@{point}")), "{point}");
        ControlFlow::Continue(())
    });
}

const CHILD_THAT_MUST_FAIL: &str = "store::upload::tests::faults::child_that_must_fail";

/// A child process of the test above.
#[test]
fn child_that_must_fail() {
    let Some((path, Some(fault))) = children::asked() else { return };
    fault::plan(&fault).unwrap();
    let mut failures = 0;
    live_through_everything(&path, &mut |result| {
        failures += usize::from(matches!(result, Err(Refusal::Failed(_))));
    });
    assert!(failures > 0, "nothing passes {fault}");
}

/// A child process of the test below.
#[test]
fn child_whose_disk_fails_once() {
    let Some((path, Some(fault))) = children::asked() else { return };
    let folder = open(&path);
    fault::plan(&fault).unwrap();
    let log = Target::File(CacheFile::Log(StorePath::parse_base_name(OUT).unwrap()));
    // It is there, and nobody knows whether it is on the disk.
    fs::create_dir(path.join("log")).unwrap();
    for _ in 0..2 {
        let refused = put(&folder, log.clone(), b"text");
        assert!(matches!(refused, Err(Refusal::Failed(_))), "{refused:?}");
        assert_eq!(names(&path.join("log")), Vec::<String>::new());
    }
    for _ in 0..2 {
        put(&folder, log.clone(), b"text").unwrap();
    }
}

#[test]
fn nothing_is_kept_in_a_directory_before_that_is_on_the_disk() {
    let temp = tempfile::tempdir().unwrap();
    let test = "store::upload::tests::faults::child_whose_disk_fails_once";
    assert!(children::run(test, temp.path(), "EIO@directory: name written:2"));
}

/// A disk that is really full: nothing ends the process, and what is there stays right.
#[test]
fn child_on_a_full_disk() {
    let Some((path, None)) = children::asked() else { return };
    let folder = open(&path);
    assert!(space(&folder.root).unwrap().1 < 1 << 20, "this is no small disk");
    // Of a length that is known: there is room for it or it is refused before anything of it has come.
    let refused = folder.begin(NarFile::new("a", Compression::Zstd).target(), None, Some(10 << 20));
    assert_refused!(refused, NoRoom, "there is no room for");
    let noise = |number: u64| {
        let mut state = number;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..30_000).map(|_| next()).collect::<Vec<u8>>()
    };
    let file = |number| {
        let nar = naive::nar(&Tree::Regular { executable: false, contents: noise(number) });
        NarFile::of(nar, Compression::None)
    };
    let mut stored = Vec::new();
    let full = loop {
        let number = stored.len() as u64;
        let file = file(number);
        match put(&folder, file.target(), &file.bytes) {
            Ok(_) => stored.push(file),
            Err(refusal) => break refusal,
        }
    };
    assert!(matches!(full, Refusal::NoRoom(_)), "{full}");
    assert!(stored.len() > 5);
    // To the last byte: then there is none for a text, nor for what an import packs.
    let mut filler = File::create(path.join("filler")).unwrap();
    while filler.write(&[1; 512]).is_ok() {}
    let narinfo = text_of(&stored[0].narinfo(OUT, &[]));
    let target = Target::File(CacheFile::NarInfo(HashPart::parse(&OUT.as_bytes()[..32]).unwrap()));
    assert!(matches!(put(&folder, target.clone(), narinfo.as_bytes()), Err(Refusal::NoRoom(_))));
    let body = export(&[(DEPENDENCY, &noise(1000), &[])]);
    assert!(matches!(put(&folder, Target::Export, &body), Err(Refusal::NoRoom(_))));
    for file in &stored {
        assert_eq!(fs::read(path.join(file.url())).unwrap(), file.bytes);
    }
    for own in names(&path.join(STAGING)) {
        assert_eq!(names(&path.join(STAGING).join(own)), Vec::<String>::new());
    }
    fs::remove_file(path.join("filler")).unwrap();
    fs::remove_file(path.join(stored.pop().unwrap().url())).unwrap();
    put(&folder, target, narinfo.as_bytes()).unwrap();
}

/// What is mounted there is another file system, or a mount of the same.
#[test]
fn child_with_a_mount() {
    let Some((path, None)) = children::asked() else { return };
    let mount = Directory::open(path.parent().unwrap()).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert_eq!(mount.obstacle(name).unwrap(), Some(Obstacle::Mount));
    fs::create_dir_all(path.join("cache/nar")).unwrap();
    fs::create_dir(path.join("cache/other")).unwrap();
    let bound = |from: &str, to: &str| {
        let mut bind = Command::new("mount");
        bind.arg("--bind").arg(path.join(from)).arg(path.join(to)).status().unwrap().success()
    };
    UploadFolder::look(&settings(&path.join("cache"))).unwrap();
    assert!(bound("cache/other", "cache/nar"));
    let refused = UploadFolder::look(&settings(&path.join("cache"))).unwrap_err().to_string();
    assert!(refused.contains("cache/nar: it is on another file system, or a mount"), "{refused}");
}

#[test]
fn a_mount_in_the_cache_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    if !children::run_on_small_disk("store::upload::tests::faults::child_with_a_mount", temp.path()) {
        eprintln!("SKIPPED: no file system can be mounted here");
    }
}

#[test]
fn a_full_disk_is_a_refusal_and_no_end() {
    let temp = tempfile::tempdir().unwrap();
    if !children::run_on_small_disk("store::upload::tests::faults::child_on_a_full_disk", temp.path()) {
        eprintln!("SKIPPED: no file system can be mounted here");
    }
}

#[test]
fn many_race_on_one_path_and_all_of_them_win() {
    let fixture = Fixture::new();
    let number_of_threads = 8;
    let barrier = Barrier::new(number_of_threads);
    std::thread::scope(|scope| {
        for number in 0..number_of_threads {
            let (fixture, barrier) = (&fixture, &barrier);
            scope.spawn(move || {
                let compression = [Compression::Zstd, Compression::Xz][number % 2];
                let file = NarFile::new("a", compression);
                let mut narinfo = file.narinfo(OUT, &[]);
                sign(&mut narinfo, &key(u8::try_from(number).unwrap()));
                barrier.wait();
                fixture.put_nar(&file).unwrap();
                fixture.put_narinfo(&narinfo).unwrap();
            });
        }
    });
    let narinfo = fixture.narinfo(OUT);
    let mut names: Vec<_> =
        narinfo.info.signatures.iter().map(|signature| signature.key_name.as_str()).collect();
    names.sort_unstable();
    let expected: Vec<_> = (0..number_of_threads).map(|number| format!("key-{number}")).collect();
    assert_eq!(names, expected);
    let text = fs::read(fixture.path().join(&narinfo.url)).unwrap();
    assert_eq!(Some(Sha256::digest(&text)), narinfo.file_hash);
    fixture.assert_no_drafts();
}

#[test]
fn of_two_that_are_different_one_wins_and_the_other_is_told() {
    for _ in 0..20 {
        let fixture = Fixture::new();
        let files = [NarFile::new("a", Compression::Zstd), NarFile::new("b", Compression::Zstd)];
        let barrier = Barrier::new(2);
        let results = std::thread::scope(|scope| {
            let threads = files.each_ref().map(|file| {
                let (fixture, barrier) = (&fixture, &barrier);
                scope.spawn(move || {
                    fixture.put_nar(file).unwrap();
                    barrier.wait();
                    fixture.put_narinfo(&file.narinfo(OUT, &[]))
                })
            });
            threads.map(|thread| thread.join().unwrap())
        });
        let [first, second] = results;
        let winner = if first.is_ok() { &files[0] } else { &files[1] };
        let loser = if first.is_ok() { second } else { first };
        assert_refused!(loser, Conflict, "another NarHash");
        assert_eq!(fixture.narinfo(OUT), winner.narinfo(OUT, &[]));
    }
}

#[test]
fn what_one_receives_another_that_opens_the_directory_leaves_alone() {
    let fixture = Fixture::new();
    let file = NarFile::new("a", Compression::Zstd);
    let upload = begin_and_push(&fixture.folder, file.target(), None, &file.bytes, 1000).unwrap();
    let beside = open(fixture.path());
    assert_eq!(names(&fixture.path().join(STAGING)).len(), 2);
    upload.finish(&mut |_| Ok(false)).unwrap();
    let narinfo = file.narinfo(OUT, &[]);
    // What the one has stored the other reads.
    let target = Target::File(CacheFile::NarInfo(narinfo.info.path.hash_part()));
    put(&beside, target, text_of(&narinfo).as_bytes()).unwrap();
    assert_eq!(fixture.narinfo(OUT), narinfo);
    drop(beside);
    assert_eq!(names(&fixture.path().join(STAGING)).len(), 1);
}

/// A child process of the test below: receives, and waits.
#[test]
fn child_that_waits() {
    let Some((path, None)) = children::asked() else { return };
    let folder = open(&path);
    let file = NarFile::new("a", Compression::Zstd);
    let _upload = begin_and_push(&folder, file.target(), None, &file.bytes, 1000).unwrap();
    println!("ready");
    std::thread::sleep(std::time::Duration::from_mins(10));
}

#[test]
fn the_folder_of_a_process_stays_until_that_has_ended() {
    let temp = tempfile::tempdir().unwrap();
    let staging = temp.path().join(STAGING);
    let mut child = children::command("store::upload::tests::faults::child_that_waits", temp.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    let mut output = child.stdout.take().unwrap();
    while !said.ends_with(b"ready\n") {
        let mut byte = [0];
        assert_eq!(output.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
    let own = names(&staging).pop().unwrap();
    assert_eq!(names(&staging.join(&own)).len(), 1);
    fs::write(staging.join("a file"), "of somebody").unwrap();
    fs::create_dir_all(staging.join("a folder/in it")).unwrap();
    drop(open(temp.path()));
    assert_eq!(names(&staging.join(&own)).len(), 1, "it lives");
    child.kill().unwrap();
    child.wait().unwrap();
    drop(open(temp.path()));
    // What is not made as drafts are is not removed either.
    assert_eq!(names(&staging), ["a file", "a folder"]);
}
