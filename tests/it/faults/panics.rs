//! A thread that panics takes the process down at once, with one message that names it; the next process finds nothing wrong.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::Signal;

use crate::support::client::request_head;
use crate::support::nar_cache::{CacheDir, Nar, compressed};
use crate::support::server::BINARY;
use crate::support::upload::{Package, Packing, UploadDir};
use crate::support::{Connection, Narwire, Nix, Store, eventually, fixture};

/// A server with a thread of every kind: a live store, a NAR cache, a directory of uploads.
struct Household<'a> {
    store: &'a Store,
    nar: &'a Nar,
    cache: CacheDir,
    uploads: UploadDir,
}

impl<'a> Household<'a> {
    fn new(store: &'a Store, nar: &'a Nar) -> Self {
        Self { store, nar, cache: CacheDir::new(), uploads: UploadDir::new() }
    }

    /// As a service manager starts it; of a crash no core is kept.
    fn serve(&self, more: &[&str]) -> Narwire {
        let mut command = Command::new("prlimit");
        command.args(["--core=0", BINARY, "--with-store", "--listen", "127.0.0.1:0"]);
        command.args(self.uploads.flags()).args(self.store.flags()).args(self.cache.flags("hot", "both"));
        let server = Narwire::spawn(command.args(more).env("RUST_BACKTRACE", "0"));
        server.wait_for("listening on");
        server
    }

    /// What is asked of each kind of thread.
    fn ask(&self, server: &Narwire, thread: &str) {
        let target = &self.nar.targets()[0];
        match thread {
            "worker-" => drop(server.try_get("/health")),
            "lookup-" => drop(server.try_get(&format!("/{}.narinfo", self.nar.hash_part()))),
            "text-" => drop(server.try_get(&format!("/log/{}.drv", &self.nar.path["/nix/store/".len()..]))),
            "encode-" => drop(server.try_get(&compressed(target))),
            "upload-" => {
                let package = Package::new('1', b"contents", Packing::Zstd);
                let connection = Connection::try_open(server.address());
                let _broken_off =
                    connection.unwrap().try_upload("PUT", &package.nar_target(), &[], &package.file);
            }
            // The second request is reason enough to keep it.
            _ => (0..2).for_each(|_| drop(server.try_get(target))),
        }
    }
}

#[test]
fn whichever_thread_panics_the_process_aborts_and_the_next_one_goes_on() {
    let store = Store::new(Nix::installed());
    let nar = Nar::of(&store, &store.add_folder("served", 10, 1_000_000));
    for (thread, point) in [
        ("worker-", "worker: health asked"),
        ("lookup-", "lookup: path asked"),
        ("text-", "text: log asked"),
        ("encode-", "encode: begun"),
        ("upload-", "draft: begun"),
        ("background", "background: order taken"),
        ("", "publish: file written"),
    ] {
        let house = Household::new(&store, &nar);
        let mut server = house.serve(&["--fault", &format!("panic@{point}")]);
        // Somebody who is in the middle of a download when it happens, unless the download is what it happens to.
        let mut reader = server.connect();
        if thread != "lookup-" {
            reader.send(request_head("GET", &nar.targets()[0], &[]));
            assert_eq!(reader.head().unwrap().status, 200, "{point}");
        }
        house.ask(&server, thread);
        let status = server.exit();
        let output = server.output();
        assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{point}: {status}\n{output}");
        let bugs: Vec<_> = output.lines().filter(|line| line.contains("BUG")).collect();
        assert_eq!(bugs.len(), 1, "{output}");
        for words in
            [&*format!("thread {thread}"), " panicked at src/", &format!("{point:?}"), "please report"]
        {
            assert!(bugs[0].contains(words), "{words:?} in {}", bugs[0]);
        }
        assert!(reader.rest().len() < nar.bytes.len(), "{point}: the download came to its end");
        drop(server);

        let next = house.serve(&[]);
        eventually("the NAR cache is open", || next.output().contains("the NAR cache has"));
        assert!(house.uploads.staged().is_empty(), "{:?}", house.uploads.staged());
        house.cache.assert_sound();
        next.assert_serves(std::slice::from_ref(&nar));
        next.get("/health").expect(200);
    }
}

#[test]
fn a_full_log_that_nobody_reads_keeps_no_panic_from_ending_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    mkfifoat(CWD, &log, Mode::RUSR | Mode::WUSR).unwrap();
    // Opened in both ways, so that neither side waits for the other.
    let mut pipe = File::options().read(true).write(true).open(&log).unwrap();
    let mut command = Command::new("prlimit");
    command.args(["--core=0", "sh", "-c", "exec \"$@\" 2>\"$0\""]).arg(&log).arg(BINARY);
    command.args(fixture().store.flags()).args(["--listen", "127.0.0.1:0"]);
    let mut server = Narwire::spawn(command.args(["--fault", "panic@worker: health asked"]));
    let (mut said, mut buffer) = (String::new(), [0; 4096]);
    let address = loop {
        let len = pipe.read(&mut buffer).unwrap();
        said.push_str(str::from_utf8(&buffer[..len]).unwrap());
        let address = said.split_once("listening on http://").and_then(|(_, rest)| rest.split_once('\n'));
        if let Some((address, _)) = address {
            break address.split_whitespace().next().unwrap().parse().unwrap();
        }
    };
    let has_room = |pipe: &File| {
        rustix::event::poll(&mut [PollFd::new(pipe, PollFlags::OUT)], Some(&Timespec::default())).unwrap() > 0
    };
    while has_room(&pipe) {
        pipe.write_all(&[b'x'; 4096]).unwrap();
    }
    Connection::open(address).send(request_head("GET", "/health", &[]));
    assert_eq!(server.exit().signal(), Some(Signal::ABORT.as_raw()));
}
