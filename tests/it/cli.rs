//! The other commands, `demo`, `check` and `key generate`, and what the machine may refuse.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::client::request_head;
use crate::support::fixture::LARGE_LEN;
use crate::support::nix::{Key, hash_part};
use crate::support::server::{BINARY, command, command_of};
use crate::support::{Narwire, Nix, Store, assert_same_bytes, eventually, fixture, printed, run, text};

/// A demo on a free port that keeps its store in a folder of the test's own.
struct Demo {
    server: Narwire,
    temporary: TempDir,
}

impl Demo {
    fn start(folder: Option<&Path>) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut command = plain_command();
        command.arg("demo").args(folder).args(["-p", "0"]).env("TMPDIR", temporary.path());
        let server = Narwire::spawn(&mut command);
        // Two streams: neither waits for the other.
        server.wait_for("\n    /nix/store/");
        server.wait_for("listening on ");
        Self { server, temporary }
    }

    /// The key that its instructions tell clients to trust.
    fn key(&self) -> Key {
        let output = self.server.output();
        let after = output.split_once("trusted-public-keys '").unwrap().1;
        Key { secret_file: PathBuf::new(), public: after.split_once('\'').unwrap().0.to_owned() }
    }

    /// The store path that its instructions copy.
    fn path(&self) -> String {
        let output = self.server.output();
        output.lines().find(|line| line.starts_with("    /nix/store/")).unwrap().trim().to_owned()
    }

    fn is_tidy(&self) -> bool {
        fs::read_dir(self.temporary.path()).unwrap().next().is_none()
    }
}

/// `narwire` with nothing but its name: the commands beside `serve` take no capabilities away.
fn plain_command() -> Command {
    let mut command = Command::new(BINARY);
    command.stdin(Stdio::null());
    command
}

#[test]
fn the_commands_that_a_demo_prints_work_as_they_are() {
    let demo = Demo::start(None);
    let output = demo.server.output();
    let commands: Vec<&str> = output.lines().filter(|line| line.starts_with("  curl ")).collect();
    assert!(commands.len() >= 3, "{output}");
    for line in commands {
        let said = run(Command::new("sh").args(["-c", line]));
        assert!(!said.is_empty() && !said.contains("not found"), "{line}: {said}");
    }
}

#[test]
fn nix_copies_from_a_demo_with_the_key_that_it_prints() {
    let demo = Demo::start(None);
    for nix in Nix::all() {
        let destination = Store::new(nix);
        destination.copy_from(&demo.server.url(), &demo.key(), &[&demo.path()]);
        assert!(destination.real(&demo.path()).exists());
        destination.verify(&demo.key());
    }
    // The paths of a demo are addressed by their contents, so Nix never had to look at a signature for them.
    let narinfo = format!("/{}.narinfo", hash_part(&demo.path()));
    assert!(demo.server.get(&narinfo).expect(200).text().contains("\nSig: narwire-demo-1:"));
}

#[test]
fn a_demo_serves_the_entries_of_a_folder_and_leaves_the_folder_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("tree")).unwrap();
    fs::write(folder.path().join("tree/file"), "the contents").unwrap();
    let demo = Demo::start(Some(folder.path()));
    assert!(demo.path().ends_with("-tree"), "{}", demo.path());
    let destination = Store::new(Nix::installed());
    destination.copy_from(&demo.server.url(), &demo.key(), &[&demo.path()]);
    assert_eq!(fs::read_to_string(destination.real(&demo.path()).join("file")).unwrap(), "the contents");
    drop(demo);
    assert_eq!(fs::read_to_string(folder.path().join("tree/file")).unwrap(), "the contents");
}

#[test]
fn a_demo_of_nothing_is_served_and_one_of_a_missing_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Narwire::spawn(plain_command().args(["demo", "-p", "0"]).arg(folder.path()));
    server.wait_for("listening on ");
    server.get("/nix-cache-info").expect(200);
    let missing = folder.path().join("missing");
    let said = refused(plain_command().args(["demo", "-p", "0"]).arg(&missing));
    assert!(said.contains(text(&missing)), "{said}");
}

#[test]
fn a_demo_removes_its_store_when_a_signal_ends_it() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut demo = Demo::start(None);
        assert!(!demo.is_tidy(), "the store is where the test looks for it");
        demo.server.signal(signal);
        assert_eq!(demo.server.exit().code(), Some(0));
        assert!(demo.is_tidy(), "{signal:?}");
    }
}

#[test]
fn a_demo_that_a_second_signal_ends_at_once_removes_its_store_as_well() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("large"), vec![b'x'; LARGE_LEN]).unwrap();
    let mut demo = Demo::start(Some(folder.path()));
    let mut connection = demo.server.connect();
    let target = demo.server.nar_target(hash_part(&demo.path()));
    connection.send(request_head("GET", &target, &[]));
    connection.head().unwrap().expect(200);
    demo.server.signal(Signal::INT);
    demo.server.wait_for("draining");
    demo.server.signal(Signal::INT);
    demo.server.exit();
    assert!(demo.is_tidy());
}

#[test]
fn a_demo_that_cannot_listen_removes_its_store_as_well() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, temporary) = (taken.local_addr().unwrap().port().to_string(), tempfile::tempdir().unwrap());
    let said = refused(plain_command().args(["demo", "-p", &port]).env("TMPDIR", temporary.path()));
    assert!(said.contains(&port), "{said}");
    assert!(fs::read_dir(temporary.path()).unwrap().next().is_none());
}

/// Runs to the end and gives what was printed; nothing may have listened meanwhile.
fn finished(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(!printed(&output).contains("listening on"), "{}", printed(&output));
    output
}

/// Runs to exit code 2; gives the one line that says why.
#[track_caller]
fn refused(command: &mut Command) -> String {
    let output = finished(command);
    assert_eq!(output.status.code(), Some(2), "{}", printed(&output));
    assert!(output.stdout.is_empty(), "{}", printed(&output));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

/// The three ways to meet a refusal: at once, by the word, and when only asking.
fn ways_to_serve() -> [Command; 3] {
    ["", "serve", "check"].map(|word| {
        let mut command = Command::new("timeout");
        command.args(["30", BINARY]).args(Some(word).filter(|word| !word.is_empty())).stdin(Stdio::null());
        command
    })
}

#[test]
fn check_says_what_would_be_served() {
    let fixture = fixture();
    let folder = tempfile::tempdir().unwrap();
    let mut check = plain_command();
    check.arg("check").args(fixture.store.flags()).args(fixture.key.flags()).arg("--with-store");
    check.arg(folder.path()).args(["--priority", "17", "--listen", "127.0.0.1:5999"]);
    let output = finished(&mut check);
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    assert!(output.stderr.is_empty(), "{}", printed(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    let paths = format!("{} paths", fixture.paths().len());
    for word in [&paths, text(folder.path()), "/nix/store", &fixture.key.public, "17", "127.0.0.1:5999"] {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
}

#[test]
fn check_says_how_many_may_be_connected() {
    let folder = tempfile::tempdir().unwrap();
    for (flags, words) in [
        (&[][..], "clients    at most 750, three quarters of the files that may be open here\n"),
        (&["--max-connections", "900"], "clients    at most 750, three quarters"),
        (&["--max-connections", "9"], "clients    at most 9\n"),
        (&["--max-connections-per-address", "8"], "may be open here; 8 from one address\n"),
    ] {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -n 1000; exec \"$@\"", "sh", BINARY, "check"]);
        let said = run(shell.arg(folder.path()).args(flags));
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn check_says_how_nars_are_kept_and_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("nars");
    let mut check = plain_command();
    check.arg("check").args(fixture().store.flags()).args(["--cache-dir", text(&cache)]);
    let said = run(check.args(["--cache-policy", "all", "--cache-level", "7", "--cache-size", "10G"]));
    let line = said.lines().find(|line| line.contains("nar cache")).unwrap_or_else(|| panic!("{said}"));
    for word in
        [text(&cache), "to be made", "policy all", "format auto", "level 7", "10.00 GiB", "8.00 MiB/s"]
    {
        assert!(line.contains(word), "{word:?} is not in {line}");
    }
    assert!(!cache.exists());
}

#[test]
fn the_cache_directory_of_a_service_is_taken_under_both_names() {
    let (folder, links) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cache = folder.path().join("nars");
    let mut check = plain_command();
    check.arg("check").args(fixture().store.flags()).env("CACHE_DIRECTORY", format!("{}:/x", text(&cache)));
    assert!(run(&mut check).contains(text(&cache)));
    // A service that serves directories alone has no use for it, and no fault.
    let mut check = plain_command();
    check.arg("check").arg(folder.path()).env("CACHE_DIRECTORY", &cache);
    assert!(!run(&mut check).contains("nar cache"));

    let program = links.path().join("nix-serve");
    std::os::unix::fs::symlink(BINARY, &program).unwrap();
    let mut command = command_of(&program);
    // Inside of the store it is refused, so it was taken.
    let flags = fixture().store.flags();
    command.args(&flags).env("CACHE_DIRECTORY", format!("{}/nars", flags[3]));
    assert!(refused(&mut command).contains("--cache-dir"));
}

#[test]
fn a_live_store_without_a_nar_cache_hints_at_it_once() {
    let hint = "there is no NAR cache: with --cache-dir";
    let server = fixture().store.serve();
    server.wait_for(hint);
    assert_eq!(server.output().matches(hint).count(), 1, "{}", server.output());
    let folder = tempfile::tempdir().unwrap();
    let mut server = Narwire::start([folder.path()]);
    server.signal(Signal::TERM);
    server.exit();
    assert!(!server.output().contains(hint), "{}", server.output());
}

#[test]
fn what_serving_would_refuse_check_refuses_in_the_same_words() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name| folder.path().join(name);
    let [config, key, garbage, missing] = ["narwire.toml", "key", "db.sqlite", "missing"].map(place);
    fs::write(&config, "priority = 1\nprioritty = 2\n").unwrap();
    fs::copy(&fixture().key.secret_file, &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&garbage, "no database").unwrap();
    let (directory, flags) = (text(folder.path()), fixture().store.flags());
    let store = ["--real-store", &flags[3]];
    let inside = format!("{}/nars", flags[3]);
    let mut in_the_store: Vec<&str> = flags.iter().map(String::as_str).collect();
    let in_a_foreign_folder = [&in_the_store[..], &["--cache-dir", directory]].concat();
    in_the_store.extend(["--cache-dir", &inside]);
    for (arguments, words) in [
        (vec![directory, "--config", text(&config)], vec![text(&config), "2", "prioritty"]),
        (vec![directory, "--secret-key-file", text(&key)], vec![text(&key), "chmod 0640"]),
        (vec!["--db", text(&missing)], vec![text(&missing), "narwire demo"]),
        ([&store[..], &["--db", text(&garbage)]].concat(), vec![text(&garbage)]),
        (vec![text(&garbage)], vec![text(&garbage), "cache directory"]),
        (vec![text(&missing)], vec![text(&missing), "cache directory"]),
        (vec![directory, "--secret-key-file", text(&missing)], vec![text(&missing)]),
        (vec![directory, "--without", "gravity"], vec!["gravity"]),
        (vec![directory, "--cache-dir", text(&missing)], vec!["--cache-dir", "--with-store"]),
        (vec!["--cache-policy", "all"], vec!["--cache-policy", "--cache-dir"]),
        (vec!["--cache-dir", text(&missing), "--cache-level", "20"], vec!["cache-level", "1 to 19"]),
        (vec!["--cache-dir", text(&missing), "--cache-size", "10"], vec!["cache-size", "10G"]),
        (vec!["--cache-dir", text(&missing), "--cache-size", "10X"], vec!["--cache-size", "10G"]),
        (in_the_store, vec![&flags[3], "--cache-dir"]),
        (in_a_foreign_folder, vec![directory, "not empty", ".narwire"]),
    ] {
        let said = ways_to_serve().map(|mut command| refused(command.args(&arguments)));
        for word in words {
            assert!(said[0].contains(word), "{word:?} is not in {}", said[0]);
        }
        assert!(said.iter().all(|line| *line == said[0]), "{said:?}");
    }
}

#[test]
fn a_key_open_to_everybody_is_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    fs::copy(&fixture().key.secret_file, &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o604)).unwrap();
    let mut check = plain_command();
    let said = refused(check.arg("check").arg(folder.path()).arg("--secret-key-file").arg(&key));
    let secret = fs::read_to_string(&key).unwrap();
    assert!(!said.contains(secret.split_once(':').unwrap().1.trim()), "{said}");
}

/// `narwire key generate NAME --output FILE`; gives the new pair.
fn generated(folder: &Path) -> Key {
    let secret_file = folder.join("cache.key");
    let mut generate = plain_command();
    generate.args(["key", "generate", "cache.example.org-1", "--output"]).arg(&secret_file);
    let public = run(&mut generate);
    Key { secret_file, public }
}

#[test]
fn a_generated_key_is_private_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let key = generated(folder.path());
    assert!(
        key.public.starts_with("cache.example.org-1:") && key.public.lines().count() == 1,
        "{}",
        key.public
    );
    assert_eq!(fs::metadata(&key.secret_file).unwrap().permissions().mode() & 0o7777, 0o600);
    let before = fs::read(&key.secret_file).unwrap();
    let mut again = plain_command();
    again.args(["key", "generate", "cache.example.org-1", "--output"]).arg(&key.secret_file);
    assert!(refused(&mut again).contains(text(&key.secret_file)));
    assert_eq!(fs::read(&key.secret_file).unwrap(), before);
}

#[test]
fn a_generated_key_signs_what_nix_verifies() {
    let (folder, fixture) = (tempfile::tempdir().unwrap(), fixture());
    let key = generated(folder.path());
    let server = fixture.store.serve_signed(&key);
    for nix in Nix::all() {
        let destination = Store::new(nix);
        destination.copy_from(&server.url(), &key, &[fixture.path("program-1.0")]);
        destination.verify(&key);
    }
}

#[test]
fn a_generated_key_is_one_that_nix_itself_signs_with() {
    let (folder, fixture) = (tempfile::tempdir().unwrap(), fixture());
    let key = generated(folder.path());
    for nix in Nix::all() {
        let secret = fs::File::open(&key.secret_file).unwrap();
        let public = run(nix.command("nix").args(["key", "convert-secret-to-public"]).stdin(secret));
        assert_eq!(public, key.public);
        let destination = Store::new(nix);
        let cache = format!("file://{}/cache?secret-key={}", text(folder.path()), text(&key.secret_file));
        let path = fixture.path("library-1.0");
        destination.nix.run("nix", &["copy", "--from", fixture.store.uri(), "--to", &cache, path]);
        let server = Narwire::start([folder.path().join("cache")]);
        destination.copy_from(&server.url(), &key, &[path]);
    }
}

#[test]
fn without_a_file_both_halves_of_a_key_are_printed() {
    let printed = run(plain_command().args(["key", "generate", "cache.example.org-1"]));
    let halves: Vec<&str> = printed.lines().filter(|line| line.starts_with("cache.example.org-1:")).collect();
    let [secret, public] = halves[..] else { panic!("{printed}") };
    assert!(secret.len() > public.len());
    for name in ["", "a:b", "a b"] {
        refused(plain_command().args(["key", "generate", name]));
    }
}

#[test]
fn without_io_uring_it_says_what_to_change() {
    let folder = tempfile::tempdir().unwrap();
    for (error, words) in [
        ("EPERM", ["sysctl", "kernel.io_uring_disabled", "seccomp"]),
        ("ENOSYS", ["5.15", "CONFIG_IO_URING", "seccomp"]),
    ] {
        for word in ["serve", "check"] {
            let mut strace = Command::new("strace");
            strace.args(["--follow-forks", "--output", "/dev/null"]);
            strace.arg(format!("--inject=io_uring_setup:error={error}")).args([BINARY, word]);
            if let Some(off) = command().get_args().nth(1) {
                strace.arg("--without").arg(off);
            }
            strace.arg(folder.path()).args(["--listen", "127.0.0.1:0"]).stdin(Stdio::null());
            let said = refused(&mut strace);
            assert!(words.iter().all(|word| said.contains(word)), "{error}: {said}");
        }
    }
}

/// `narwire scrub` of a store.
fn scrub(store: &Store) -> Command {
    let mut command = plain_command();
    command.arg("scrub").args(store.flags()).env_remove("CACHE_DIRECTORY");
    command
}

/// What a scrub prints as JSON, and its exit code.
fn scrubbed(store: &Store) -> (serde_json::Value, Option<i32>) {
    let output = scrub(store).arg("--json").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    (serde_json::from_str(&said).unwrap(), output.status.code())
}

#[test]
fn a_sound_store_is_said_to_be_sound_in_one_line() {
    let fixture = fixture();
    let output = finished(&mut scrub(&fixture.store));
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    assert!(output.stderr.is_empty(), "quiet in a pipe: {}", printed(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("sound") && said.lines().count() == 1, "{said}");
    assert!(said.contains(&format!("{} store paths", fixture.paths().len())), "{said}");

    let (json, code) = scrubbed(&fixture.store);
    assert_eq!((&json["storePaths"], code), (&fixture.paths().len().into(), Some(0)));
    assert_eq!((&json["damagedPaths"], &json["resumed"]), (&serde_json::json!([]), &false.into()));
    assert!(json["bytes"].as_u64().unwrap() > 0, "{json}");
}

#[test]
fn a_damaged_path_is_named_with_what_mends_it() {
    let store = Store::in_place(Nix::installed());
    let (sound, damaged) = (store.add_bytes("sound", b"as it was"), store.add_bytes("damaged", b"as it was"));
    let file = store.real(&damaged);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, "as it is").unwrap();

    let output = finished(&mut scrub(&store));
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains(&format!("nix-store --repair-path {damaged}")), "{said}");
    assert!(!said.contains(&sound), "{said}");
    let (json, code) = scrubbed(&store);
    assert_eq!((&json["damagedPaths"], code), (&serde_json::json!([damaged]), Some(1)));
}

#[test]
fn what_cannot_be_scrubbed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("narwire.toml");
    fs::write(&config, "directories = [\".\"]\n").unwrap();
    let said = refused(plain_command().args(["scrub", "--config", text(&config)]));
    assert!(said.contains("no live store"), "{said}");
    let missing = folder.path().join("missing");
    let said = refused(plain_command().args(["scrub", "--db", text(&missing)]));
    assert!(said.contains(text(&missing)), "{said}");
    let said = refused(scrub(&fixture().store).args(["--cache-dir", text(&missing)]));
    assert!(said.contains(text(&missing)) && said.contains("no NAR cache"), "{said}");
    assert!(!missing.exists());
}

#[test]
fn a_damaged_cached_file_is_put_aside_while_a_server_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, store) = (folder.path().join("nars"), Store::new(Nix::installed()));
    let path = store.add_bytes("path", &[b'x'; 4096]);
    let flags =
        ["--cache-dir", text(&cache), "--cache-policy", "all", "--scrub-rate", "0"].map(str::to_owned);
    let server = Narwire::start([store.flags(), flags.to_vec()].concat());
    // Its narinfo is there a moment before its record, and without that no scrub looks at its file.
    let stored = "narwire_nar_cache_fills_total{result=\"stored\"}";
    eventually("the path is cached", || server.count(stored) == Some(1));
    let narinfo = fs::read_to_string(cache.join(format!("{}.narinfo", hash_part(&path)))).unwrap();
    let file = cache.join(narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap());
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();

    let output = finished(scrub(&store).args(["--cache-dir", text(&cache)]));
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(printed(&output).contains(name) && !file.exists(), "{}", printed(&output));
    let nar = server.get(&format!("/nar/{}.nar", hash_part(&path))).expect(200);
    assert_same_bytes(&nar.body, &store.dump(&path), &path);
}
