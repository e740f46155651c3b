//! The image of `deploy/oci`, in containers without any right that can be taken away, under the profile that is shipped beside it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::support::client::request_head;
use crate::support::container::{Container, Image, Running, USER, build, profile, shipped};
use crate::support::fixture::LARGE_LEN;
use crate::support::nar_cache::Nar;
use crate::support::nix::hash_part;
use crate::support::nix_upload::create_token;
use crate::support::upload::{Package, Packing};
use crate::support::{Connection, Nix, PlainCache, Store, assert_same_bytes, eventually, fixture, printed};

/// What Docker, podman and Kubernetes start containers with.
const RUNTIMES: [&str; 2] = ["crun", "runc"];

/// Only root may make containers in the ways that are tested here.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Shows the store of the tests where every machine has its own, so that no flag is needed to name it.
fn with_store(container: Container) -> Container {
    let store = &fixture().store;
    let container = container.mount(&store.real("/nix/store"), "/nix/store", "ro");
    container.mount(store.database().parent().unwrap(), "/nix/var/nix/db", "ro")
}

#[test]
fn the_image_is_the_program_and_a_folder_for_what_is_temporary_and_the_same_each_time() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let archives = ["first.tar", "second.tar"].map(|name| folder.path().join(name));
    for archive in &archives {
        build(archive);
    }
    let [first, second] = archives.map(|archive| fs::read(archive).unwrap());
    assert_same_bytes(&first, &second, "the image made again");

    let image = Image::get();
    assert_eq!(image.files(), ["bin/narwire", "tmp"]);
    let (process, said) = (&image.config()["process"], &image.config()["annotations"]);
    assert_eq!(process["args"], json!(["/bin/narwire"]));
    assert_eq!(process["user"], json!({ "uid": USER, "gid": USER }));
    assert_eq!(said["org.opencontainers.image.exposedPorts"], "5000/tcp");
    assert_eq!(said["org.opencontainers.image.stopSignal"], "SIGTERM");
    assert_eq!(said["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
}

/// A server of all that there is, in a container that may do nothing else.
struct Site {
    running: Running,
    /// What the file of its tokens is to the machine.
    tokens: PathBuf,
    uploads: PathBuf,
    _folder: TempDir,
}

impl Site {
    fn start(runtime: &'static str) -> Self {
        let folder =
            tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
        let tokens = folder.path().join("tokens");
        create_token(&tokens, "nobody", "read");
        fs::set_permissions(&tokens, fs::Permissions::from_mode(0o644)).unwrap();
        // What was taken away for the test is no reason not to start.
        let sandbox = if std::env::var_os("NARWIRE_TEST_WITHOUT").is_none() { "require" } else { "on" };
        let flags =
            ["--sandbox", sandbox, "--cache-policy", "all", "--secret-key-file", "/run/secrets/cache.key"];
        let uploads = ["--with-store", "/srv/cache", "--upload-token-file", "/etc/narwire/tokens"];
        let room = ["--cache-dir", "/var/cache/narwire", "--cache-min-free", "0", "--upload-min-free", "0"];
        let container = Image::get().server(runtime, &[&flags[..], &uploads[..], &room[..]].concat());
        let container = with_store(container).mount(folder.path(), "/etc/narwire", "ro");
        let container = container.mount_secret(&fixture().key.secret_file, "/run/secrets/cache.key");
        let (container, _) = container.mount_new("/var/cache/narwire");
        let (container, uploads) = container.mount_new("/srv/cache");
        // What systemd, and so Docker, gives everybody.
        let mut container = container.limit("RLIMIT_MEMLOCK", 8 << 20);
        // Docker lets programs gain privileges unless it is told otherwise, and then sets the profile before it gives up its own.
        container.config["process"]["noNewPrivileges"] = json!(runtime == "crun");
        Self { running: container.start(), tokens, uploads, _folder: folder }
    }
}

#[test]
fn a_real_client_copies_from_a_container_that_may_do_nothing_else() {
    if !is_root() {
        return;
    }
    let fixture = fixture();
    for runtime in RUNTIMES {
        let Site { running, .. } = &Site::start(runtime);
        assert!(running.status("NSpid").ends_with("\t1"), "it is the first process there");
        assert_eq!(running.status("CapEff"), "0000000000000000");
        assert_eq!((&*running.status("NoNewPrivs"), &*running.status("Seccomp_filters")), ("1", "3"));

        let destination = Store::new(Nix::installed());
        let paths = ["large", "odd", "program-1.0"].map(|name| fixture.path(name));
        destination.copy_from(&running.server.url(), &fixture.key, &paths);
        let nars = paths.map(|path| Nar::of(&fixture.store, path));
        for nar in &nars {
            assert_same_bytes(&destination.dump(&nar.path), &nar.bytes, &nar.path);
        }
        running.server.assert_serves(&nars);
        running.server.wait_until_compressed(&nars);
        running.server.assert_serves(&nars);
        let said = running.server.output();
        assert!(!said.contains("WARN"), "{said}");
    }
}

#[test]
fn a_container_takes_uploads_and_reads_its_tokens_again() {
    if !is_root() {
        return;
    }
    for runtime in RUNTIMES {
        let site = Site::start(runtime);
        let package = Package::new('1', b"contents", Packing::Zstd);
        let login = format!("Bearer {}", create_token(&site.tokens, "ci", "write"));
        let put = |target: &str, body: &[u8]| {
            let mut connection = site.running.server.connect();
            connection.upload("PUT", target, &[("Authorization", &login)], body).status
        };
        assert_eq!(put(&package.nar_target(), &package.file), 401, "the token is not known yet");
        site.running.signal(Signal::HUP);
        eventually("the tokens are read again", || put(&package.nar_target(), &package.file) == 201);
        assert_eq!(put(&package.narinfo_target(), package.narinfo().as_bytes()), 201);
        site.running.server.get(&package.narinfo_target()).expect(200);
        assert!(site.uploads.join(&package.narinfo_target()[1..]).is_file());
    }
}

/// A server in a container, and a client that has read the head of an answer that no buffer holds.
fn with_a_download_on_its_way(runtime: &'static str) -> (Running, Connection) {
    let running = with_store(Image::get().server(runtime, &[])).start();
    let mut connection = running.server.connect();
    let target = running.server.nar_target(hash_part(fixture().path("large")));
    connection.send(request_head("GET", &target, &[]));
    connection.head().unwrap().expect(200);
    running.signal(Signal::TERM);
    running.server.wait_for("draining");
    (running, connection)
}

#[test]
fn a_container_that_is_stopped_finishes_what_is_on_its_way_and_ends_well() {
    if !is_root() {
        return;
    }
    for runtime in RUNTIMES {
        let (mut running, mut connection) = with_a_download_on_its_way(runtime);
        let wanted = fixture().store.dump(fixture().path("large"));
        assert_same_bytes(&connection.rest(), &wanted, "what was on its way");
        assert_eq!(running.server.exit().code(), Some(0), "{}", running.server.output());
    }
}

#[test]
fn a_second_signal_ends_the_first_process_of_a_container_too() {
    if !is_root() {
        return;
    }
    let (mut running, mut connection) = with_a_download_on_its_way("crun");
    assert!(!running.server.has_exited(), "a download is on its way");
    running.signal(Signal::TERM);
    running.server.exit();
    assert!(connection.rest().len() < LARGE_LEN);
}

/// Docker's own profile, to which io_uring is none of the calls that are allowed: they fail with EPERM.
#[test]
fn where_the_profile_forbids_io_uring_it_says_which_flag_is_missing() {
    if !is_root() {
        return;
    }
    for runtime in RUNTIMES {
        let mut container = with_store(Image::get().container(runtime, &[]));
        let calls = ["io_uring_setup", "io_uring_enter", "io_uring_register"];
        let profile = &mut container.config["linux"]["seccomp"]["syscalls"];
        let names = profile[0]["names"].as_array_mut().unwrap();
        let len = names.len();
        names.retain(|name| !calls.contains(&name.as_str().unwrap()));
        assert_eq!(names.len(), len - calls.len());
        let refused = json!({ "names": calls, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 });
        profile.as_array_mut().unwrap().push(refused);
        let output = container.command().output().unwrap();
        let said = printed(&output);
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{runtime}: {said}");
        assert!(said.contains("io_uring is forbidden") && said.contains("--security-opt seccomp="), "{said}");
    }
}

/// Docker 20.10 reads no `defaultErrnoRet`: there all other calls fail with EPERM.
#[test]
fn a_runtime_that_does_not_read_all_of_the_profile_runs_every_thread() {
    if !is_root() {
        return;
    }
    for runtime in RUNTIMES {
        let mut container = with_store(Image::get().container(runtime, &["check"]));
        container.config["linux"]["seccomp"].as_object_mut().unwrap().remove("defaultErrnoRet").unwrap();
        let output = container.command().output().unwrap();
        assert!(output.status.success(), "{runtime}: {}", printed(&output));
    }
}

#[test]
fn without_a_store_it_says_what_is_missing() {
    if !is_root() {
        return;
    }
    let output = Image::get().container("crun", &[]).command().output().unwrap();
    let said = printed(&output);
    assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
    assert!(said.contains("/nix/"), "{said}");
}

/// What containers get where nobody has said otherwise: little on old machines. How much of it io_uring takes depends on the kernel.
#[test]
fn with_little_memory_that_may_be_locked_it_serves_or_says_what_to_raise() {
    if !is_root() {
        return;
    }
    let container = Image::get().server("crun", &["--cache-dir", "/var/cache/narwire"]);
    let container = with_store(container).limit("RLIMIT_MEMLOCK", 64 << 10);
    let (container, _) = container.mount_new("/var/cache/narwire");
    let mut running = container.start_or_end();
    if running.server.has_exited() {
        let said = running.server.output();
        assert_eq!((running.server.exit().code(), said.lines().count()), (Some(2), 1), "{said}");
        assert!(said.contains("limit of locked memory"), "{said}");
    } else {
        running.server.get("/nix-cache-info").expect(200);
        let health = running.server.get("/health").expect(200);
        assert!(
            health.text().contains("NAR cache: off") && health.text().contains("RLIMIT_MEMLOCK"),
            "{health:?}"
        );
    }
}

#[test]
fn few_descriptors_are_enough_for_a_few_clients() {
    if !is_root() {
        return;
    }
    let (fixture, path) = (fixture(), fixture().path("many"));
    let container = with_store(Image::get().server("crun", &[]));
    let running = container.limit("RLIMIT_NOFILE", 256).start();
    assert_same_bytes(&running.server.nar(hash_part(path)).expect(200).body, &fixture.store.dump(path), path);
}

#[test]
fn a_container_pushes_what_it_is_shown() {
    if !is_root() {
        return;
    }
    let (fixture, cache) = (fixture(), PlainCache::start());
    // By name, so that one is looked up.
    let url = cache.url().replace("127.0.0.1", "localhost");
    let paths = [fixture.path("program-1.0"), fixture.path("large")];
    let container = Image::get().container("crun", &[&["push", "--to", &url], &paths[..]].concat());
    let container = with_store(container).mount(Path::new("/etc/hosts"), "/etc/hosts", "ro");
    let (container, _) = container.mount_new("/tmp");
    let output = container.command().output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    for path in paths {
        cache.narinfo(path);
    }
}

/// The program confines itself to a list of its own. What that lets through has to come through the profile as well.
#[test]
fn the_profile_allows_what_the_sandbox_does() {
    let source = fs::read_to_string(shipped("src/server/sandbox/calls.rs")).unwrap();
    let (lists, _) = source.split_once("#[cfg(test)]\n").unwrap();
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let wanted: BTreeSet<&str> = lists
        .split("libc::SYS_")
        .skip(1)
        .map(|rest| rest.split(|letter| !is_of_name(letter)).next().unwrap())
        .collect();
    assert!(wanted.len() > 100, "{wanted:?}");
    let profile = profile();
    let rules = profile["syscalls"].as_array().unwrap().iter();
    let allowed: BTreeSet<&str> =
        rules.flat_map(|rule| rule["names"].as_array().unwrap()).map(|name| name.as_str().unwrap()).collect();
    let missing: Vec<_> = wanted.difference(&allowed).collect();
    assert!(missing.is_empty(), "deploy/oci/seccomp.json lacks {missing:?}");
}
