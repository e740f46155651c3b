//! Uploading with `narwire push`, to a cache that is a plain directory behind PUT.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::support::nix::Key;
use crate::support::plain_cache::Fault;
use crate::support::server::BINARY;
use crate::support::upload::UploadDir;
use crate::support::{Narwire, Nix, PlainCache, Store, eventually, fixture, printed, run, text};

/// `narwire push` of a store, in an environment that says nothing, with a folder of its own for temporary files.
struct Push {
    command: Command,
    spool: TempDir,
}

/// How it went.
struct Pushed {
    status: Option<i32>,
    lines: Vec<String>,
    /// On standard error.
    said: String,
}

impl Push {
    fn new(store: &Store, url: &str) -> Self {
        let spool = tempfile::tempdir().unwrap();
        let mut command = Command::new(BINARY);
        command.arg("push").args(store.flags()).args(["--to", url, "--level", "1"]);
        command
            .args(["--netrc-file", "/dev/null"])
            .env_clear()
            .env("TMPDIR", spool.path())
            .stdin(Stdio::null());
        Self { command, spool }
    }

    fn args<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.command.args(arguments);
        self
    }

    fn run(mut self) -> Pushed {
        let output = self.command.output().unwrap();
        assert_eq!(fs::read_dir(self.spool.path()).unwrap().count(), 0, "temporary files are left");
        Pushed {
            status: output.status.code(),
            lines: String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect(),
            said: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The same where the test decides when it ends.
    fn start(mut self) -> Running {
        Running { process: Narwire::spawn(&mut self.command), spool: self.spool }
    }
}

struct Running {
    process: Narwire,
    spool: TempDir,
}

impl Running {
    fn signal(&mut self, signal: Signal) -> ExitStatus {
        self.process.signal(signal);
        let status = self.process.exit();
        assert_eq!(fs::read_dir(self.spool.path()).unwrap().count(), 0, "temporary files are left");
        status
    }
}

impl Pushed {
    #[track_caller]
    fn expect(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "{:?}\n{}", self.lines, self.said);
        self
    }

    fn uploaded(&self) -> BTreeSet<&str> {
        self.lines
            .iter()
            .filter_map(|line| line.strip_prefix("uploaded /"))
            .map(|line| &line[..line.find(' ').unwrap()])
            .collect()
    }
}

/// A store of so many small paths of their own.
fn store_of(count: usize) -> (Store, Vec<String>) {
    let store = Store::new(Nix::installed());
    let scratch = tempfile::tempdir().unwrap();
    let sources: Vec<String> = (0..count)
        .map(|number| {
            let source = scratch.path().join(format!("path-{number:04}"));
            fs::write(&source, format!("{number}").repeat(100 + number)).unwrap();
            text(&source).to_owned()
        })
        .collect();
    let arguments: Vec<&str> = ["--add"].into_iter().chain(sources.iter().map(String::as_str)).collect();
    let paths = store.nix_store(&arguments).lines().map(str::to_owned).collect();
    (store, paths)
}

/// A store with a text that refers to another, and one that stands alone: the one, the other, the third.
fn store_of_three() -> (Store, [String; 3]) {
    let store = Store::new(Nix::installed());
    let evaluate = |expression: &str| {
        let arguments = ["--store", store.uri(), "--eval", "--read-write-mode", "--expr", expression];
        store.nix.run("nix-instantiate", &arguments).trim_matches('"').to_owned()
    };
    let needed = evaluate(r#"builtins.toFile "needed" "words""#);
    let needing = evaluate(r#"builtins.toFile "needing" "see ${builtins.toFile "needed" "words"}""#);
    let alone = store.add_bytes("alone", b"nothing to see");
    (store, [needing, needed, alone])
}

/// Changes a file of the store behind Nix's back, and leaves its length.
fn damage(store: &Store, path: &str) {
    let file = store.real(path);
    let mut contents = fs::read(&file).unwrap();
    contents[0] ^= 1;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, contents).unwrap();
}

#[test]
fn what_is_uploaded_is_what_every_nix_copies_back() {
    let fixture = fixture();
    for compression in ["none", "zstd"] {
        let cache = PlainCache::start();
        let push = Push::new(&fixture.store, &cache.url()).args(["--all", "--compression", compression]);
        // Level 1 is said for zstd alone.
        let push = if compression == "none" { without_level(push) } else { push };
        let pushed = push.args(["--secret-key-file", text(&fixture.key.secret_file)]).run().expect(0);
        assert_eq!(pushed.uploaded().len(), fixture.paths().len());
        cache.assert_kept_its_promises();
        assert!(cache.narinfo(fixture.path("odd")).contains(&format!("\nCompression: {compression}\n")));
        for nix in Nix::all() {
            let destination = Store::new(nix);
            destination.copy_from(&cache.file_url(), &fixture.key, &but_many(&fixture.paths()));
            destination.verify(&fixture.key);
        }
    }
}

/// Without the tree that takes Nix longest to write.
fn but_many<'a>(paths: &[&'a str]) -> Vec<&'a str> {
    paths.iter().copied().filter(|path| !path.ends_with("-many")).collect()
}

fn without_level(push: Push) -> Push {
    let arguments: Vec<_> = push.command.get_args().map(ToOwned::to_owned).collect();
    let level = arguments.iter().position(|argument| argument == "--level").unwrap();
    let mut command = Command::new(BINARY);
    command
        .args(&arguments[..level])
        .args(&arguments[level + 2..])
        .env_clear()
        .env("TMPDIR", push.spool.path());
    command.stdin(Stdio::null());
    Push { command, spool: push.spool }
}

#[test]
fn a_closure_goes_up_with_its_references_and_nothing_else() {
    let (store, [needing, needed, alone]) = store_of_three();
    let cache = PlainCache::start();
    Push::new(&store, &cache.url()).args([&*needing]).run().expect(0);
    cache.assert_kept_its_promises();
    assert_eq!(cache.narinfos().len(), 2);
    assert!(cache.narinfo(&needing).contains(&needed["/nix/store/".len()..]));
    assert!(cache.put("").contains(&"nix-cache-info".to_owned()), "an empty directory becomes a cache");
    // What is there is not sent again.
    let before = cache.put("").len();
    let pushed = Push::new(&store, &cache.url()).args([&*needing]).run().expect(0);
    assert_eq!((cache.put("").len(), pushed.uploaded().len()), (before, 0));
    let pushed = Push::new(&store, &cache.url()).args([&*needing, &alone]).run().expect(0);
    assert_eq!(pushed.uploaded(), BTreeSet::from([&alone[1..]]));
}

#[test]
fn a_path_may_be_a_link_to_one_or_inside_of_one() {
    let (store, [needing, _, alone]) = store_of_three();
    let cache = PlainCache::start();
    let folder = tempfile::tempdir().unwrap();
    let result = folder.path().join("result");
    symlink(&alone, &result).unwrap();
    let inside = format!("{needing}/what/ever");
    Push::new(&store, &cache.url()).args([text(&result), &inside]).run().expect(0);
    assert_eq!(cache.narinfos().len(), 3);

    let unknown = "/nix/store/00000000000000000000000000000000-unknown";
    for typed in ["/etc/passwd", unknown, text(folder.path())] {
        let pushed = Push::new(&store, &cache.url()).args([typed]).run().expect(2);
        assert!(pushed.said.contains(typed) && pushed.said.lines().count() == 1, "{}", pushed.said);
    }
}

#[test]
fn what_a_busy_cache_refuses_is_tried_again() {
    let (store, paths) = store_of(20);
    let cache = PlainCache::start();
    let failed = Mutex::new(BTreeSet::new());
    cache.fail(move |request| {
        // The first try of each kind of request for each file fails in one way or another.
        let is_first = failed.lock().unwrap().insert((request.method.clone(), request.name.clone()));
        let kind = request.name.bytes().map(usize::from).sum::<usize>() % 4;
        let fault = [
            Fault::Status(503, Some("1")),
            Fault::Status(429, None),
            Fault::Reset,
            Fault::Status(408, Some("soon")),
        ];
        is_first.then(|| fault[kind].clone())
    });
    let pushed = Push::new(&store, &cache.url()).args(["--all", "--jobs", "64"]).run().expect(0);
    assert_eq!((pushed.uploaded().len(), cache.narinfos().len()), (paths.len(), paths.len()));
    cache.assert_kept_its_promises();
}

#[test]
fn a_long_upload_that_is_reset_begins_again() {
    let fixture = fixture();
    let cache = PlainCache::start();
    let resets = Mutex::new(2);
    cache.fail(move |request| {
        let mut resets = resets.lock().unwrap();
        let is_next = request.method == "PUT" && request.name.starts_with("nar/") && *resets > 0;
        is_next.then(|| {
            *resets -= 1;
            Fault::Reset
        })
    });
    let large = fixture.path("large");
    Push::new(&fixture.store, &cache.url()).args([large]).run().expect(0);
    assert_eq!(cache.put(".nar.zst").len(), 3);
    let destination = Store::new(Nix::installed());
    destination.copy_from(&cache.file_url(), &fixture.key, &[large]);
}

#[test]
fn what_a_cache_refuses_for_good_is_listed_and_the_rest_goes_on() {
    let (store, [needing, needed, alone]) = store_of_three();
    let cache = PlainCache::start();
    let name = format!("{}.narinfo", crate::support::nix::hash_part(&needed));
    cache.fail(move |request| {
        (request.method == "PUT" && request.name == name).then_some(Fault::Status(422, None))
    });
    let pushed = Push::new(&store, &cache.url()).args(["--all"]).run().expect(1);
    assert_eq!(pushed.uploaded(), BTreeSet::from([&alone[1..]]));
    let failed =
        |path: &str| pushed.lines.iter().find(|line| line.starts_with(&format!("failed {path}: "))).unwrap();
    assert!(failed(&needed).contains("422 the test wants 422"), "{:?}", pushed.lines);
    assert!(failed(&needing).contains(&needed), "{:?}", pushed.lines);
    assert!(pushed.said.contains("2 store paths were not uploaded"), "{}", pushed.said);
    assert_eq!(cache.put(".narinfo").len(), 2, "a refusal is not tried again");
}

#[test]
fn a_damaged_path_never_leaves_the_machine_and_the_others_do() {
    let (store, [needing, needed, alone]) = store_of_three();
    damage(&store, &needed);
    for compression in ["none", "zstd"] {
        let cache = PlainCache::start();
        let push =
            without_level(Push::new(&store, &cache.url())).args(["--all", "--compression", compression]);
        let pushed = push.run().expect(1);
        assert_eq!(pushed.uploaded(), BTreeSet::from([&alone[1..]]));
        let of = |path: &str| {
            pushed.lines.iter().find(|line| line.starts_with(&format!("failed {path}: "))).unwrap()
        };
        assert!(of(&needed).contains("damaged") && of(&needing).contains(&needed), "{:?}", pushed.lines);
        assert_eq!(cache.narinfos(), [format!("{}.narinfo", crate::support::nix::hash_part(&alone))]);
        cache.assert_kept_its_promises();
    }
}

#[test]
fn sizes_that_cannot_be_counted_fail_their_paths_alone() {
    let (store, _) = store_of(3);
    let alone = store.add_bytes("alone", b"the only one whose size is true");
    let database = rusqlite::Connection::open(store.database()).unwrap();
    database.execute("update ValidPaths set narSize = ?1 where path <> ?2", (i64::MAX, &alone)).unwrap();
    let cache = PlainCache::start();
    let pushed = Push::new(&store, &cache.url()).args(["--all", "--dry-run"]).run().expect(0);
    assert!(pushed.lines.last().unwrap().starts_with("4 of 4 store paths are missing"), "{:?}", pushed.lines);
    let pushed = Push::new(&store, &cache.url()).args(["--all"]).run().expect(1);
    assert_eq!(pushed.uploaded(), BTreeSet::from([&alone[1..]]));
    assert_eq!(pushed.lines.iter().filter(|line| line.contains("is shorter than")).count(), 3);
}

#[test]
fn files_that_are_gone_are_a_failure_of_their_path_alone() {
    let (store, [needing, needed, alone]) = store_of_three();
    fs::remove_file(store.real(&needing)).unwrap();
    let cache = PlainCache::start();
    let pushed = Push::new(&store, &cache.url()).args([&*needing, &alone]).run().expect(1);
    assert_eq!(pushed.uploaded(), BTreeSet::from([&needed[1..], &alone[1..]]));
}

#[test]
fn credentials_are_sent_and_without_them_there_is_one_clear_line() {
    let (store, [_, _, alone]) = store_of_three();
    let cache = PlainCache::start();
    let accepted = ["Bearer ci.c2VjcmV0", "Basic dXNlcjpzZWNyZXQ="];
    cache.fail(move |request| {
        let is_known = request.authorization.as_deref().is_some_and(|sent| accepted.contains(&sent));
        (!is_known).then_some(Fault::Status(401, None))
    });
    let folder = tempfile::tempdir().unwrap();
    let (token, netrc) = (folder.path().join("token"), folder.path().join("netrc"));
    fs::write(&token, "the token is\nci.c2VjcmV0\n").unwrap();
    fs::write(&netrc, "machine 127.0.0.1 login user password secret\n").unwrap();

    let pushed = Push::new(&store, &cache.url()).args([&*alone]).run().expect(2);
    assert!(pushed.said.contains("--token-file") && pushed.said.lines().count() == 1, "{}", pushed.said);
    assert_eq!((cache.requests().len(), pushed.lines.len()), (1, 0), "nothing else is tried");

    let with_login = cache.url().replace("http://", "http://user:secret@");
    let push = |url: &str| Push::new(&store, url).args([&*alone]);
    push(&with_login).args(["--dry-run"]).run().expect(0);
    push(&cache.url()).args(["--dry-run", "--token-file", text(&token)]).run().expect(0);
    let mut named = push(&cache.url()).args(["--dry-run"]);
    let arguments: Vec<_> = named
        .command
        .get_args()
        .map(|argument| if argument == "/dev/null" { netrc.as_os_str() } else { argument }.to_owned())
        .collect();
    let mut command = Command::new(BINARY);
    command.args(arguments).env_clear();
    named.command = command;
    named.run().expect(0);

    // A wrong one is no better than none, and is not shown.
    let wrong = cache.url().replace("http://", "http://user:hunter2@");
    let pushed = push(&wrong).run().expect(2);
    assert!(!pushed.said.contains("hunter2"), "{}", pushed.said);
}

#[test]
fn nobody_is_followed_to_another_place_with_what_is_secret() {
    let (store, [_, _, alone]) = store_of_three();
    for status in [301, 302, 303, 307, 308] {
        for method in ["GET", "HEAD", "PUT"] {
            let (cache, elsewhere) = (PlainCache::start(), PlainCache::start());
            let url = elsewhere.url();
            cache.fail(move |request| {
                (request.method == method).then(|| Fault::Moved(status, format!("{url}/{}", request.name)))
            });
            let with_login = cache.url().replace("http://", "http://user:hunter2@");
            let pushed = Push::new(&store, &with_login).args([&*alone]).run().expect(2);
            assert!(pushed.said.contains(&elsewhere.url()), "{method} {status}: {}", pushed.said);
            assert!(!pushed.said.contains("hunter2"), "{}", pushed.said);
            assert_eq!(elsewhere.requests().len(), 0, "{method} {status}");
        }
    }
}

#[test]
fn a_cache_that_may_only_be_read_is_asked_to_take_one_thing() {
    let (store, paths) = store_of(30);
    let cache = PlainCache::start();
    fs::write(cache.directory().join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    for (status, code) in [(405, 2), (403, 2), (507, 2)] {
        cache.fail(move |request| (request.method == "PUT").then_some(Fault::Status(status, None)));
        let before = cache.put("").len();
        let pushed = Push::new(&store, &cache.url()).args(["--all", "--jobs", "2"]).run().expect(code);
        assert!(pushed.said.contains(&status.to_string()), "{}", pushed.said);
        assert!(cache.put("").len() - before < paths.len() / 2, "the others would be refused as well");
    }
}

#[test]
fn what_is_no_cache_for_this_store_is_not_uploaded_to() {
    let (store, [_, _, alone]) = store_of_three();
    let cache = PlainCache::start();
    for (contents, word) in
        [("StoreDir: /gnu/store\n", "/gnu/store"), ("<html>Welcome</html>", "no binary cache")]
    {
        fs::write(cache.directory().join("nix-cache-info"), contents).unwrap();
        let pushed = Push::new(&store, &cache.url()).args([&*alone]).run().expect(2);
        assert!(pushed.said.contains(word) && pushed.said.lines().count() == 1, "{}", pushed.said);
    }
    assert_eq!(cache.put(""), [""; 0]);
}

#[test]
fn a_dry_run_changes_nothing() {
    let (store, paths) = store_of(5);
    let cache = PlainCache::start();
    let pushed = Push::new(&store, &cache.url()).args(["--all", "--dry-run"]).run().expect(0);
    let missing: BTreeSet<_> = pushed.lines.iter().filter_map(|line| line.strip_prefix("missing ")).collect();
    assert_eq!(missing, paths.iter().map(String::as_str).collect());
    assert_eq!(cache.put(""), [""; 0]);
    assert_eq!(fs::read_dir(cache.directory()).unwrap().count(), 0);
}

#[test]
fn programs_get_one_object_and_nothing_else() {
    let (store, [needing, needed, alone]) = store_of_three();
    damage(&store, &needed);
    let cache = PlainCache::start();
    let pushed = Push::new(&store, &cache.url()).args(["--all", "--json"]).run().expect(1);
    let [line] = &pushed.lines[..] else { panic!("{:?}", pushed.lines) };
    let object: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!((&object["storePaths"], &object["failedCount"]), (&3.into(), &2.into()));
    assert_eq!(object["uploaded"], serde_json::json!([alone]));
    let failed: BTreeSet<_> =
        object["failed"].as_array().unwrap().iter().map(|failed| failed["path"].as_str().unwrap()).collect();
    assert_eq!(failed, BTreeSet::from([&*needing, &*needed]));
    assert_eq!(pushed.said.lines().count(), 1, "{}", pushed.said);
}

#[test]
fn in_a_pipe_each_path_is_a_line() {
    let (store, paths) = store_of(7);
    let cache = PlainCache::start();
    let pushed = Push::new(&store, &cache.url()).args(["--all"]).run().expect(0);
    assert_eq!(pushed.lines.len(), paths.len() + 1, "{:?}", pushed.lines);
    assert_eq!(pushed.uploaded(), paths.iter().map(|path| &path[1..]).collect());
    assert!(pushed.lines[paths.len()].starts_with("uploaded 7 of 7 store paths, "), "{:?}", pushed.lines);
    assert_eq!(pushed.said, "", "no bars");
}

#[test]
fn whoever_was_killed_half_way_uploads_only_the_rest() {
    let (store, paths) = store_of(300);
    let cache = PlainCache::start();
    let jobs = 4;
    let push = || Push::new(&store, &cache.url()).args(["--all", "--jobs", "4"]);
    // The second half of the narinfos is never answered.
    let half = Mutex::new(0);
    cache.fail(move |request| {
        let mut half = half.lock().unwrap();
        *half += usize::from(request.method == "PUT" && request.name.ends_with(".narinfo"));
        (*half > 150).then_some(Fault::Silence)
    });
    let mut running = push().start();
    eventually("half of it is there", || cache.put(".narinfo").len() > 150);
    running.signal(Signal::KILL);
    let first: BTreeSet<String> = cache.narinfos().into_iter().collect();
    assert_eq!(first.len(), 150);
    let nars_before = cache.put(".nar.zst").len();

    cache.fail(|_| None);
    let requests_before = cache.requests().len();
    let pushed = push().run().expect(0);
    assert_eq!(pushed.uploaded().len(), paths.len() - first.len());
    assert_eq!(cache.narinfos().len(), paths.len());
    let later = &cache.requests()[requests_before..];
    let again = later.iter().filter(|request| request.method == "PUT" && first.contains(&request.name));
    assert_eq!(again.count(), 0, "what was there is not sent again");
    // Each NAR once, but for those that were on their way.
    assert!(cache.put(".nar.zst").len() <= paths.len() + jobs, "{nars_before}");
    cache.assert_kept_its_promises();
}

#[test]
fn an_interruption_ends_it_at_once_whatever_the_cache_does() {
    let (store, paths) = store_of(20);
    for silent in ["nix-cache-info", ".narinfo", ".nar.zst"] {
        let cache = PlainCache::start();
        cache.fail(move |request| request.name.ends_with(silent).then_some(Fault::Silence));
        let mut running = Push::new(&store, &cache.url()).args(["--all"]).start();
        eventually("the cache is silent", || {
            cache.requests().iter().any(|request| request.name.ends_with(silent))
        });
        assert_eq!(running.signal(Signal::INT).code(), Some(1));
        running.process.wait_for("interrupted; what was uploaded stays, and the same command goes on");
        cache.fail(|_| None);
        Push::new(&store, &cache.url()).args(["--all"]).run().expect(0);
        assert_eq!(cache.narinfos().len(), paths.len());
    }
}

#[test]
fn who_interrupts_twice_does_not_wait_for_who_reads() {
    let (store, [_, _, alone]) = store_of_three();
    let cache = PlainCache::start();
    let (_reader, writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while (&writer).write(&[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    let Push { mut command, spool: _spool } = Push::new(&store, &cache.url()).args([&*alone]);
    let mut push = command.stdout(writer).stderr(Stdio::null()).spawn().unwrap();
    eventually("it has something to say", || !cache.narinfos().is_empty());
    eventually("it ends", || {
        // Two that come at once may count as one.
        let _ = rustix::process::kill_process(Pid::from_child(&push), Signal::INT);
        push.try_wait().unwrap().is_some()
    });
    assert_eq!(push.wait().unwrap().code(), Some(1));
}

#[test]
fn nobody_listens_is_said_once() {
    let (store, _) = store_of(3);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let pushed = Push::new(&store, &url).args(["--all"]).run().expect(1);
    assert!(pushed.said.contains(&url) && pushed.said.lines().count() == 1, "{}", pushed.said);
}

#[test]
fn a_watch_uploads_what_appears_and_ends_when_it_is_told() {
    let (store, [needing, _, alone]) = store_of_three();
    let cache = PlainCache::start();
    let mut running = Push::new(&store, &cache.url()).args(["--watch", &*alone]).start();
    let has = |path: &str| {
        cache.directory().join(format!("{}.narinfo", crate::support::nix::hash_part(path))).exists()
    };
    running.process.wait_for(&format!("uploaded {alone} "));
    let first = store.add_bytes("first", b"the first thing that appears");
    running.process.wait_for(&format!("uploaded {first} "));
    let others: Vec<String> =
        (0..5).map(|number| store.add_bytes(&format!("other-{number}"), &[number; 100])).collect();
    for other in &others {
        running.process.wait_for(&format!("uploaded {other} "));
    }
    assert!(has(&others[4]) && !has(&needing), "what was there before was not asked for");
    assert!(running.signal(Signal::TERM).success());
    cache.assert_kept_its_promises();
}

#[test]
fn a_watch_goes_on_over_failures() {
    let (store, [needing, needed, alone]) = store_of_three();
    let cache = PlainCache::start();
    let refused = Mutex::new(0);
    cache.fail(move |request| {
        let mut refused = refused.lock().unwrap();
        let is_refused = request.method == "PUT" && request.name.ends_with(".narinfo") && *refused < 2;
        is_refused.then(|| {
            *refused += 1;
            Fault::Status(400, None)
        })
    });
    let mut running = Push::new(&store, &cache.url()).args(["--watch", "--all"]).start();
    running.process.wait_for("400 the test wants 400");
    for path in [needing, needed, alone] {
        running.process.wait_for(&format!("uploaded {path} "));
    }
    assert!(running.signal(Signal::INT).success());
    cache.assert_kept_its_promises();
}

#[test]
fn the_hook_uploads_what_nix_has_built() {
    for nix in Nix::all() {
        let store = Store::new(nix);
        let cache = PlainCache::start();
        let folder = tempfile::tempdir().unwrap();
        symlink(BINARY, folder.path().join("narwire")).unwrap();
        let conf = folder.path().join("push.conf");
        let (flags, path) = (store.flags().join(" "), std::env::var("PATH").unwrap());
        let path = format!("PATH={}:{path}; export PATH", text(folder.path()));
        let to = format!("NARWIRE_PUSH_TO={}", cache.url());
        fs::write(&conf, format!("{path}\n{to}\nNARWIRE_PUSH_FLAGS='{flags}'\n")).unwrap();
        // The shipped script has its settings in a place that a test must not touch.
        let hook = folder.path().join("hook");
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/post-build-hook");
        let script = format!("#!/bin/sh\nNARWIRE_PUSH_CONF={} exec {}\n", text(&conf), text(&shipped));
        fs::write(&hook, script).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();

        let build = |name: &str| {
            let derivation = store.instantiate(&format!(
                r#"derivation {{
                    name = "{name}";
                    system = builtins.currentSystem;
                    builder = "/bin/sh";
                    args = [ "-c" "echo {name} > $out" ];
                }}"#
            ));
            store.build(&derivation, &["--option", "post-build-hook", text(&hook)])
        };
        let built = build("built");
        assert!(cache.narinfo(&built[0]).contains("-built\n"));
        // A cache that is not there does not fail the build.
        fs::write(&conf, format!("{path}\nNARWIRE_PUSH_TO=nowhere\n")).unwrap();
        build("other");
    }
}

#[test]
fn whatever_is_wrong_with_the_hook_it_fails_no_build() {
    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("push.conf");
    let hook = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/post-build-hook");
    // Nothing is found: neither narwire nor Nix.
    let run = |settings: &str, out_paths: &str| {
        fs::write(&conf, format!("PATH=/nowhere\n{settings}\n")).unwrap();
        let variables =
            [("NARWIRE_PUSH_CONF", text(&conf)), ("OUT_PATHS", out_paths), ("DRV_PATH", "/x.drv")];
        let output = Command::new("/bin/sh").arg(&hook).env_clear().envs(variables).output().unwrap();
        assert!(output.status.success(), "{settings}: {}", printed(&output));
        String::from_utf8(output.stderr).unwrap()
    };
    for settings in ["", "NARWIRE_PUSH_TO='unclosed", "NARWIRE_PUSH_TO=$UNSET", "false; exit 100"] {
        let said = run(settings, "/nix/store/a /nix/store/b");
        assert!(said.contains("not all of /nix/store/a /nix/store/b was uploaded"), "{settings}: {said}");
    }
    assert!(run("", "").contains("not all of /x.drv was uploaded"));
}

#[test]
fn signatures_of_the_database_go_along() {
    let fixture = fixture();
    let (store, [needing, needed, _]) = store_of_three();
    let sign = [
        "store",
        "sign",
        "--store",
        store.uri(),
        "--key-file",
        text(&fixture.other_key.secret_file),
        &needing,
    ];
    store.nix.run("nix", &sign);
    let cache = PlainCache::start();
    Push::new(&store, &cache.url())
        .args(["--secret-key-file", text(&fixture.key.secret_file), &*needing])
        .run()
        .expect(0);
    let signers = |path: &str| {
        let narinfo = cache.narinfo(path);
        let signatures = narinfo.lines().filter_map(|line| line.strip_prefix("Sig: "));
        signatures.map(|signature| signature.split_once(':').unwrap().0.to_owned()).collect::<BTreeSet<_>>()
    };
    let name = |key: &Key| key.public.split_once(':').unwrap().0.to_owned();
    assert_eq!(signers(&needing), [name(&fixture.key), name(&fixture.other_key)].into());
    assert_eq!(signers(&needed), [name(&fixture.key)].into());
}

#[test]
fn narwire_serves_what_was_pushed_to_a_directory() {
    let fixture = fixture();
    let cache = PlainCache::start();
    let path = fixture.path("program-1.0");
    Push::new(&fixture.store, &cache.url())
        .args(["--secret-key-file", text(&fixture.key.secret_file), path])
        .run()
        .expect(0);
    let server = Narwire::start([text(cache.directory())]);
    let destination = Store::new(Nix::installed());
    destination.substitute(&server.url(), &fixture.key, path);
    destination.verify(&fixture.key);
}

/// Tokens for a server, and the flags with which it knows them.
struct Tokens {
    folder: TempDir,
}

impl Tokens {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str) -> String {
        text(&self.folder.path().join(name)).to_owned()
    }

    /// A file with what the command has printed, all of it.
    fn create(&self, name: &str, scope: &str) -> String {
        let arguments = ["token", "create", "--file", &self.file("tokens"), "--name", name, "--scope", scope];
        fs::write(self.file(name), run(Command::new(BINARY).args(arguments))).unwrap();
        self.file(name)
    }
}

#[test]
fn a_private_narwire_takes_all_of_it_and_every_nix_gets_it_back() {
    let fixture = fixture();
    let (directory, tokens) = (UploadDir::new(), Tokens::new());
    let (writer, reader) = (tokens.create("ci", "read,write"), tokens.create("guest", "read"));
    let server =
        Narwire::start([text(directory.path()), "--upload-token-file", &tokens.file("tokens"), "--private"]);
    let push = |token: &[&str]| {
        let push = Push::new(&fixture.store, &server.url()).args(["--all"]).args(token.iter().copied());
        push.args(["--secret-key-file", text(&fixture.key.secret_file)])
    };
    let refused = push(&[]).run().expect(2);
    assert!(refused.said.contains("401") && refused.said.contains("--token-file"), "{}", refused.said);
    let refused = push(&["--token-file", &reader]).run().expect(2);
    assert!(refused.said.contains("403") && refused.said.contains("--scope read,write"), "{}", refused.said);

    let pushed = push(&["--token-file", &writer]).run().expect(0);
    assert_eq!(pushed.uploaded().len(), fixture.paths().len());
    let secret = fs::read_to_string(&writer).unwrap().lines().last().unwrap().to_owned();
    let netrc = tokens.file("netrc");
    fs::write(&netrc, format!("machine 127.0.0.1 login ci password {secret}\n")).unwrap();
    for nix in Nix::all() {
        let destination = Store::new(nix.configured(&format!("netrc-file = {netrc}")));
        destination.copy_from(&server.url(), &fixture.key, &but_many(&fixture.paths()));
        destination.verify(&fixture.key);
    }
    let again = push(&["--token-file", &writer]).run().expect(0);
    assert_eq!(again.uploaded().len(), 0);
}

#[test]
fn a_narwire_that_wants_signatures_gets_them_or_takes_nothing() {
    let fixture = fixture();
    let (store, paths) = store_of(3);
    let directory = UploadDir::new();
    let server = directory.serve_with(&["--require-signature", &fixture.key.public]);
    let pushed = Push::new(&store, &server.url()).args(["--all"]).run().expect(1);
    assert!(
        pushed.lines.iter().filter(|line| line.contains("403")).count() == paths.len(),
        "{:?}",
        pushed.lines
    );
    let key = text(&fixture.key.secret_file);
    Push::new(&store, &server.url()).args(["--all", "--secret-key-file", key]).run().expect(0);
    // The NARs were there already.
    let destination = Store::new(Nix::installed());
    destination.copy_from(&server.url(), &fixture.key, &[&*paths[0]]);
}

#[test]
fn pushing_goes_on_when_either_side_was_killed() {
    let (store, paths) = store_of(300);
    let directory = UploadDir::new();
    // Nobody else uses this address, so nobody takes the port while the server is gone. But the kernel may be slow to take back what a
    // killed process had in its rings.
    let serve = |address: &str| {
        let flags = [directory.flags(), vec!["--listen".to_owned(), address.to_owned()]].concat();
        let mut listening = None;
        eventually("the address is free", || {
            let mut server = Narwire::spawn(crate::support::server::command().args(&flags));
            eventually("it listens or ends", || {
                server.output().contains("listening on ") || server.has_exited()
            });
            let is_listening = !server.has_exited();
            listening = Some(server).filter(|_| is_listening);
            is_listening
        });
        listening.unwrap()
    };
    let mut server = serve("127.77.0.1:0");
    let address = server.address().to_string();
    let push = || Push::new(&store, &format!("http://{address}")).args(["--all", "--jobs", "2"]);
    let narinfos = || directory.files().iter().filter(|file| file.ends_with(".narinfo")).count();

    let mut running = push().start();
    eventually("some of it is there", || narinfos() > 50);
    running.signal(Signal::KILL);
    let before = narinfos();
    assert!(before < paths.len(), "the test was too slow to kill it");

    let mut running = push().start();
    eventually("more of it is there", || narinfos() > before);
    server.signal(Signal::KILL);
    server.exit();
    let _server = serve(&address);
    assert!(running.process.exit().success());
    assert_eq!(narinfos(), paths.len());
    assert_eq!(push().run().expect(0).uploaded().len(), 0);
}

#[test]
fn the_help_names_what_the_environment_can_say() {
    let help = run(Command::new(BINARY).args(["push", "--help"]));
    for word in ["NARWIRE_PUSH_TO", "NIX_SSL_CERT_FILE", "--token-file", "--netrc-file", "--watch"] {
        assert!(help.contains(word), "{word}");
    }
    let nowhere = Command::new(BINARY).args(["push", "--all"]).env_clear().output().unwrap();
    assert!(printed(&nowhere).contains("--to") && nowhere.status.code() == Some(2));
}
