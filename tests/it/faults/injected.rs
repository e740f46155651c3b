//! System calls that fail: each kind in turn, on a running server and while one starts. What comes is right, or an honest failure.
//!
//! What goes through the ring is no system call and does not fail here; `disks.rs` has disks that do.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::nar_cache::{Nar, compressed, unpack};
use crate::support::nix::hash_part;
use crate::support::server::{BINARY, traced};
use crate::support::upload::{Package, Packing, UploadDir};
use crate::support::{Connection, Narwire, Nix, Reply, Store, eventually};

/// Calls that fail while the server serves, and how.
///
/// Not fcntl(2): SQLite unlocks with it, and an unlocking that fails leaves a lock for as long as the process lives. No disk does that.
const SERVING: [&str; 20] = [
    "openat:error=EMFILE",
    "openat:error=ENFILE",
    "openat:error=EIO",
    "openat2:error=EIO",
    "openat2:error=ENOMEM",
    "pread64:error=EIO",
    "preadv2:error=EIO",
    "getdents64:error=EIO",
    "getdents64:error=ENOMEM",
    "newfstatat,fstat,statx:error=EIO",
    "fstatfs:error=EIO",
    "readlinkat,readlink:error=EIO",
    "mmap:error=ENOMEM",
    "sendfile:error=EIO",
    "sendfile:error=ENOMEM",
    "fsync,fdatasync:error=EIO",
    "fallocate:error=ENOSPC",
    "rename,renameat,renameat2:error=ENOSPC",
    "unlink,unlinkat:error=EROFS",
    "lseek,ftruncate,pwrite64:error=EIO",
];

/// Which of these calls fail, counted for each thread: the first three, every third from the second on.
const WHEN: [&str; 2] = ["1..3", "2..40+3"];

/// Calls that fail while the server starts.
const STARTING: [&str; 14] = [
    "openat:error=EMFILE",
    "openat:error=EIO",
    "pread64:error=EIO",
    "newfstatat,fstat,statx:error=EIO",
    "getdents64:error=EIO",
    "mmap:error=ENOMEM",
    "clone3:error=EAGAIN",
    "socket:error=EMFILE",
    "bind:error=EADDRINUSE",
    "listen:error=EADDRINUSE",
    "eventfd2:error=EMFILE",
    "io_uring_setup:error=ENOMEM",
    "io_uring_register:error=ENOMEM",
    "mkdirat,mkdir,flock:error=EROFS",
];

/// What is asked in each round: a path of which nothing is known yet, a NAR of the directory, and an upload.
struct Scenario {
    store: Store,
    nars: Vec<Nar>,
    directory: UploadDir,
    there: Package,
    next: AtomicUsize,
}

impl Scenario {
    fn new(paths: usize) -> Self {
        let store = Store::new(Nix::installed());
        let added = (0..paths)
            .map(|index| store.add_folder("asked", 1 + index % 3, [3000, 50_000, 300_000][index % 3]));
        let nars = added.map(|path| Nar::of(&store, &path)).collect();
        let there = Package::new('0', &vec![7; 200_000], Packing::Zstd);
        Self { store, nars, directory: UploadDir::new(), there, next: AtomicUsize::new(0) }
    }

    fn flags(&self) -> Vec<String> {
        let more = ["--with-store", "--workers", "2"].map(str::to_owned).to_vec();
        [self.directory.flags(), self.store.flags(), more].concat()
    }

    /// Asks for everything, once; all that comes whole is right. False when something failed.
    fn run(&self, server: &Narwire, what: &str) -> bool {
        let round = self.next.fetch_add(1, Ordering::Relaxed);
        let nar = &self.nars[round % self.nars.len()];
        let (out, target) = (nar.hash_part(), &nar.targets()[0]);
        let mut is_well = true;
        let mut get =
            |target: &str, fields: &[(&str, &str)], refusals: &[u16], is_right: &dyn Fn(&Reply) -> bool| {
                let reply = Connection::try_open(server.address())
                    .and_then(|mut connection| connection.try_request("GET", target, fields));
                // Without an answer the connection was ended, and nobody takes that for one.
                match reply {
                    Some(reply) if [200, 206].contains(&reply.status) && reply.complete => {
                        assert!(
                            is_right(&reply),
                            "{what}: {target}: a wrong answer of {} bytes",
                            reply.body.len()
                        );
                    }
                    Some(reply) if [200, 206].contains(&reply.status) => is_well = false,
                    Some(reply) => {
                        assert!(refusals.contains(&reply.status), "{what}: {target}: {reply:?}");
                        is_well = false;
                    }
                    None => is_well = false,
                }
            };
        // Damage is as good as absence; but nobody may hear of a path that it is absent because a disk fails.
        let (failed, absent) = ([500, 503], [404, 500, 503]);
        let narinfo = |reply: &Reply| reply.text().contains(&format!("StorePath: {}\n", nar.path));
        get(&format!("/{out}.narinfo"), &[], &failed, &narinfo);
        get(target, &[], &absent, &|reply| reply.body == nar.bytes);
        get(target, &[("Range", "bytes=1000-1999")], &absent, &|reply| {
            reply.status == 206 && reply.body == nar.bytes[1000..2000]
        });
        get(&compressed(target), &[], &absent, &|reply| unpack(&reply.body) == nar.bytes);
        get(&format!("/{out}.ls"), &[], &absent, &|reply| reply.text().contains("\"version\":1"));
        get(&self.there.narinfo_target(), &[], &failed, &|reply| reply.text() == self.there.narinfo());
        get(&self.there.nar_target(), &[], &failed, &|reply| reply.body == self.there.file);
        get("/health", &[], &[503], &|reply| reply.text().starts_with("OK"));
        is_well & self.upload(server, round, what)
    }

    fn upload(&self, server: &Narwire, round: usize, what: &str) -> bool {
        let package = Package::new('1', format!("{round}").repeat(20_000).as_bytes(), Packing::Zstd);
        let reply = Connection::try_open(server.address()).and_then(|mut connection| {
            connection.try_upload("PUT", &package.nar_target(), &[], &package.file)
        });
        let Some(reply) = reply else { return false };
        assert!([200, 201, 409, 413, 500, 503, 507].contains(&reply.status), "{what}: {reply:?}");
        if ![200, 201].contains(&reply.status) {
            return false;
        }
        let file = self.directory.path().join(&package.nar_target()[1..]);
        assert!(
            fs::read(file).is_ok_and(|there| there == package.file),
            "{what}: acknowledged, and not there"
        );
        true
    }

    /// Has the database change, so that what was found out is found out again.
    fn commit(&self) {
        let database = rusqlite::Connection::open(self.store.database()).unwrap();
        database.busy_timeout(crate::support::PATIENCE).unwrap();
        database.execute("update ValidPaths set registrationTime = registrationTime + 1", []).unwrap();
    }
}

/// A tracer that is at work on a running process, until it is dropped.
struct Tracer(Child);

impl Tracer {
    fn attach(pid: Pid, injection: &str) -> Self {
        let calls = injection.split(':').next().unwrap();
        let mut command = Command::new("strace");
        command.args(["-f", "-e", "signal=none", "-o", "/dev/null", "-p", &pid.as_raw_nonzero().to_string()]);
        command.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={injection}")]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "{injection}: {line}");
        // It goes on to speak of threads that come and go.
        thread::spawn(move || said.lines().for_each(drop));
        Self(child)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _gone = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

fn each_fails_on_a_running_server(injections: &[&str]) {
    let scenario = Scenario::new(24);
    let mut server = Narwire::start(scenario.flags());
    scenario.there.put(&mut server.connect());
    assert!(scenario.run(&server, "before"), "{}", server.output());
    let mut failed = 0;
    for injection in injections {
        for when in WHEN {
            let what = format!("{injection}:when={when}");
            scenario.commit();
            let tracer = Tracer::attach(server.pid(), &what);
            failed += usize::from(!scenario.run(&server, &what));
            drop(tracer);
            assert!(!server.has_exited(), "{what}: {}", server.output());
            // What a fault has left a mark on is looked at again when the database changes.
            eventually(&format!("after {what} all is well"), || {
                scenario.commit();
                scenario.run(&server, &what)
            });
            scenario.directory.assert_sound();
        }
    }
    eventually("nothing is staged", || scenario.directory.staged().is_empty());
    assert!(
        failed > injections.len() / 2,
        "{failed} of {} runs saw a failure",
        WHEN.len() * injections.len()
    );
}

#[test]
fn calls_that_fail_on_a_running_server() {
    each_fails_on_a_running_server(&SERVING[..8]);
}

#[test]
fn more_calls_that_fail_on_a_running_server() {
    each_fails_on_a_running_server(&SERVING[8..15]);
}

#[test]
fn calls_that_fail_during_uploads_and_others() {
    each_fails_on_a_running_server(&SERVING[15..]);
}

#[test]
fn calls_that_fail_while_the_server_starts() {
    let scenario = Scenario::new(6);
    scenario.there.put(&mut Narwire::start(scenario.flags()).connect());
    let (mut ended, mut started) = (0, 0);
    let folder = tempfile::tempdir().unwrap();
    for injection in STARTING {
        for when in [1, 2, 5] {
            let what = format!("{injection}:when={when}");
            let mut command = traced(&folder.path().join("log"), &[&what]);
            command.arg(BINARY).args(scenario.flags()).args(["--listen", "127.0.0.1:0"]);
            let mut server = Narwire::spawn(&mut command);
            eventually(&format!("{what}: it listens or ends"), || {
                server.output().contains("listening on ") || server.has_exited()
            });
            if server.has_exited() {
                ended += 1;
                let status = server.exit();
                let output = server.output();
                // The loader, and the runtime that makes a thread, fail in their own ways when there is no memory.
                let lines: Vec<_> = output.lines().filter(|line| line.starts_with("narwire: ")).collect();
                let is_runtime = lines.is_empty() || output.contains("failed to allocate");
                assert!(
                    is_runtime || (status.code() == Some(2) && lines.len() == 1),
                    "{what}: {status}: {output}"
                );
                assert!(is_runtime || !output.contains("panicked"), "{what}: {output}");
                continue;
            }
            started += 1;
            for _ in 0..2 {
                scenario.run(&server, &what);
            }
            assert!(!server.has_exited(), "{what}: {}", server.output());
        }
    }
    assert!(ended > 5 && started > 5, "{ended} ended, {started} started");
    let server = scenario.directory.serve();
    server.get(&format!("/{}.narinfo", hash_part(&scenario.nars[0].path))).expect_absent();
    scenario.directory.assert_sound();
}
