//! What a running server has given up, as the kernel tells it, and that it serves all the same.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::support::nix::hash_part;
use crate::support::server::{BINARY, command, command_of_nobody, traced};
use crate::support::{Narwire, PATIENCE, assert_same_bytes, fixture, text};

/// The user that some tests run as: nobody.
const USER: u32 = 65534;

/// One line of `/proc/<pid>/task/<task>/status` of each thread that carries out the program.
fn of_each_thread(server: &Narwire, name: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid().as_raw_pid())).unwrap();
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    let of_program = statuses.filter(|status| !status.starts_with("Name:\tiou-"));
    let values = of_program.map(|status| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        value.unwrap_or_else(|| panic!("{name} is missing in {status}")).to_owned()
    });
    values.collect()
}

/// A server of everything: a live store, a NAR cache, and a directory that takes uploads.
fn of_everything(folder: &Path, more: &[&str]) -> Narwire {
    let fixture = fixture();
    let uploads = folder.join("uploads");
    fs::create_dir_all(&uploads).unwrap();
    let cache = folder.join("cache");
    let mut flags = fixture.store.flags();
    flags.extend(
        ["--with-store", "--allow-anonymous-upload", "--cache-dir", text(&cache), text(&uploads)]
            .map(str::to_owned),
    );
    flags.extend(more.iter().map(|&flag| flag.to_owned()));
    Narwire::start(flags)
}

#[test]
fn every_thread_is_confined() {
    let folder = tempfile::tempdir().unwrap();
    let server = of_everything(folder.path(), &[]);
    // So that threads which begin with the first question have begun.
    let path = fixture().path("large");
    server.nar(hash_part(path)).expect(200);
    let filters = of_each_thread(&server, "Seccomp");
    assert!(filters.len() > 10, "{filters:?}");
    assert!(filters.iter().all(|mode| mode == "2"), "{filters:?}");
    assert!(of_each_thread(&server, "NoNewPrivs").iter().all(|value| value == "1"));
    if std::env::var_os("NARWIRE_TEST_WITHOUT").is_none() {
        assert!(server.output().contains("sandbox=on\n"), "{}", server.output());
    }
    // The second one refuses new rings.
    let counts = of_each_thread(&server, "Seccomp_filters");
    assert!(counts.iter().all(|count| count == "2"), "{counts:?}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid().as_raw_pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");
}

#[test]
fn off_is_off() {
    let folder = tempfile::tempdir().unwrap();
    let server = of_everything(folder.path(), &["--sandbox", "off"]);
    assert!(of_each_thread(&server, "Seccomp").iter().all(|mode| mode == "0"));
    assert!(server.output().contains("sandbox=off"), "{}", server.output());
    assert!(!server.output().contains("restrictions"), "{}", server.output());
}

#[test]
fn what_was_taken_away_is_no_warning_but_a_reason_not_to_start_where_all_is_required() {
    let folder = tempfile::tempdir().unwrap();
    let without = |mode| {
        let mut narwire = Command::new(BINARY);
        narwire.args(["--without", "restrictions", "--listen", "127.0.0.1:0", "--sandbox", mode]);
        narwire.arg(folder.path());
        narwire
    };
    let server = Narwire::spawn(&mut without("on"));
    server.wait_for("listening on ");
    assert!(!server.output().contains("WARN"), "it was wanted: {}", server.output());
    let refusal = without("require").output().unwrap();
    let said = String::from_utf8(refusal.stderr).unwrap();
    assert_eq!((refusal.status.code(), said.lines().count()), (Some(2), 1), "{said}");
    assert!(said.contains("--sandbox=require") && said.contains("io_uring"), "{said}");
}

/// The same program on a kernel without one of the two, as strace makes it seem.
#[test]
fn a_kernel_that_lacks_something_is_one_warning_and_where_all_is_required_a_reason_not_to_start() {
    let fixture = fixture();
    let folder = tempfile::tempdir().unwrap();
    // How many filters each thread has: one is of strace.
    for (lack, name, filters_len) in [
        ("landlock_create_ruleset:error=ENOSYS", "Landlock", "3"),
        ("landlock_create_ruleset:error=EOPNOTSUPP", "Landlock", "3"),
        ("seccomp:error=EINVAL", "system calls are not filtered", "1"),
    ] {
        let start = |mode: &str| {
            let mut command = traced(&folder.path().join("log"), &[lack]);
            command.arg(BINARY).args(["--listen", "127.0.0.1:0", "--sandbox", mode]);
            command.args(fixture.store.flags());
            Narwire::spawn(&mut command)
        };
        let server = start("on");
        server.wait_for("listening on ");
        let warnings: Vec<_> =
            server.output().lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(name), "{warnings:?}");
        let path = fixture.path("large");
        assert_same_bytes(&server.nar(hash_part(path)).expect(200).body, &fixture.store.dump(path), path);
        let filters = of_each_thread(&server, "Seccomp_filters");
        assert!(filters.iter().all(|count| count == filters_len), "{lack}: {filters:?}");
        let mut refusal = start("require");
        assert_eq!(refusal.exit().code(), Some(2), "{}", refusal.output());
        refusal.wait_for("--sandbox=require");
        assert!(refusal.output().contains(name), "{}", refusal.output());
        assert_eq!(refusal.output().lines().count(), 1, "{}", refusal.output());
    }
}

#[test]
fn the_service_manager_is_told_from_inside() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = command();
    command.env("NOTIFY_SOCKET", &socket).args(["--listen", "127.0.0.1:0"]).arg(folder.path());
    let mut server = Narwire::spawn(&mut command);
    let hear = || {
        let mut said = [0; 64];
        let len = manager.recv(&mut said).unwrap();
        String::from_utf8_lossy(&said[..len]).trim_end().to_owned()
    };
    assert_eq!(hear(), "READY=1");
    server.signal(Signal::TERM);
    assert_eq!(hear(), "STOPPING=1");
    assert_eq!(server.exit().code(), Some(0));
}

/// A server that runs as [`USER`], which owns what it serves, with these flags; and whether that user sees what it has open.
fn is_seen_by_its_user(flags: &[String]) -> bool {
    let (_folder, mut command) = command_of_nobody();
    let server = Narwire::spawn(command.args(flags).args(["--listen", "127.0.0.1:0"]));
    server.wait_for("listening on ");
    let mut look = Command::new("setpriv");
    look.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    look.args(["ls", "-l", &format!("/proc/{}/fd/", server.pid().as_raw_pid())]);
    let output = look.output().unwrap();
    let is_refused = String::from_utf8_lossy(&output.stderr).contains("Permission denied");
    assert_eq!(output.status.success(), !is_refused, "{output:?}");
    !is_refused
}

#[test]
fn a_collector_of_the_same_user_sees_what_is_open_and_nobody_else_may_look() {
    if !rustix::process::geteuid().is_root() {
        return; // nobody else can be run as
    }
    let folder =
        tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir_in("/tmp").unwrap();
    let directory = [text(folder.path()).to_owned()];
    assert!(!is_seen_by_its_user(&directory), "there is no store, so nobody has to see it");
    let store = crate::support::Store::new(crate::support::Nix::installed());
    store.add_bytes("served", b"contents");
    assert!(!is_seen_by_its_user(&store.flags()), "root owns the store, and its collector sees everything");
    chown(store.real("/nix/store"), Some(USER), Some(USER)).unwrap();
    assert!(is_seen_by_its_user(&store.flags()), "the collector runs as the owner of the store");
}

/// Each writable mapping of the process: what smaps says of it, and what is in it.
fn memory(server: &Narwire) -> Vec<(String, Vec<u8>)> {
    let process = format!("/proc/{}", server.pid().as_raw_pid());
    let file = fs::File::open(format!("{process}/mem")).unwrap();
    let smaps = fs::read_to_string(format!("{process}/smaps")).unwrap();
    let mut found: Vec<(String, Vec<u8>)> = Vec::new();
    let mut is_of_interest = false;
    for line in smaps.lines() {
        let range = line.split(' ').next().unwrap().split_once('-');
        if let Some((start, end)) = range {
            let address = |text| u64::from_str_radix(text, 16).unwrap();
            let (start, end) = (address(start), address(end));
            is_of_interest = line.contains(" rw-p ") && end - start < 64 << 20;
            if is_of_interest {
                let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
                // What the kernel keeps for itself cannot be read.
                let is_read = file.read_exact_at(&mut bytes, start).is_ok();
                found.push((String::new(), if is_read { bytes } else { Vec::new() }));
            }
        } else if is_of_interest && line.starts_with("VmFlags:") {
            line.clone_into(&mut found.last_mut().unwrap().0);
        }
    }
    found
}

#[test]
fn a_key_is_kept_where_no_dump_and_no_swap_finds_it_and_its_text_is_gone() {
    let fixture = fixture();
    let server = fixture.store.serve_signed(&fixture.key);
    server.get(&format!("/{}.narinfo", hash_part(fixture.path("large")))).expect(200);
    let file = fs::read_to_string(&fixture.key.flags()[1]).unwrap();
    let secret = file.trim_end().split_once(':').unwrap().1;
    let pair = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, secret).unwrap();
    let memory = memory(&server);
    let flags_around = |bytes: &[u8]| -> Vec<&str> {
        let finder = memchr::memmem::Finder::new(bytes);
        memory.iter().filter(|(_, memory)| finder.find(memory).is_some()).map(|(flags, _)| &**flags).collect()
    };
    assert!(!flags_around(fixture.key.public.as_bytes()).is_empty(), "what is public is found");
    assert_eq!(flags_around(secret.as_bytes()), [""; 0], "the text of the secret key");
    let around = flags_around(&pair[..32]);
    assert!(around.iter().any(|flags| flags.contains(" dd") && flags.contains(" lo")), "{around:?}");
}
