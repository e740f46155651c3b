//! The service directory of `deploy/s6`, under s6-svscan itself.

use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::client::request_head;
use crate::support::container::shipped;
use crate::support::nix::hash_part;
use crate::support::nix_upload::create_token;
use crate::support::server::command_of_nobody;
use crate::support::{Connection, Reply, assert_same_bytes, eventually, fixture, run, text};

/// The user that all of this runs as: nobody.
const USER: u32 = 65534;

/// Only root may make a service run as somebody else, which the service directory does.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// s6-svscan with one service. Dropping it ends both.
struct Supervised {
    svscan: Child,
    address: SocketAddr,
    /// That of a token which it knows from the start.
    login: String,
    folder: TempDir,
    _binary: TempDir,
}

impl Supervised {
    /// A service that is ready.
    fn start() -> Self {
        let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
        let [scan, log, tokens] = ["scan", "log", "tokens"].map(|name| folder.path().join(name));
        for folder in [&scan, &log] {
            fs::create_dir(folder).unwrap();
        }
        chown(&log, Some(USER), Some(USER)).unwrap();
        let login = login(&tokens, "first");
        fs::set_permissions(&tokens, Permissions::from_mode(0o644)).unwrap();
        // What s6 keeps of a service is in its directory.
        run(Command::new("cp").arg("-r").arg(shipped("deploy/s6/narwire")).arg(&scan));
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (binary, _) = command_of_nobody();
        let config = folder.path().join("narwire.toml");
        let mut svscan = Command::new("s6-svscan");
        svscan.arg(&scan).stdin(Stdio::null()).env("NARWIRE", binary.path().join("narwire"));
        svscan.env("NARWIRE_CONFIG", &config).env("NARWIRE_HEALTH", format!("http://{address}/health"));
        svscan.env("NARWIRE_USER", "nobody").env("NARWIRE_LOG", &log).env("NARWIRE_LOG_USER", "nobody");
        fs::write(config, settings(address)).unwrap();
        let supervised = Self { svscan: svscan.spawn().unwrap(), address, login, folder, _binary: binary };
        eventually("s6-svscan has found the service", || {
            supervised.service().join("supervise/control").exists()
        });
        supervised.wait("-U");
        supervised
    }

    fn service(&self) -> PathBuf {
        self.folder.path().join("scan/narwire")
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("narwire.toml")
    }

    /// `s6-svwait`, bounded.
    fn wait(&self, what: &str) {
        run(Command::new("s6-svwait").args([what, "-t", "100000"]).arg(self.service()));
    }

    /// `s6-svc`.
    fn control(&self, what: &[&str]) {
        run(Command::new("s6-svc").args(what).arg(self.service()));
    }

    /// The process, if there is one: s6 calls none -1.
    fn pid(&self) -> Option<Pid> {
        let pid = run(Command::new("s6-svstat").args(["-o", "pid"]).arg(self.service()));
        pid.parse().ok().filter(|&pid| pid > 0).and_then(Pid::from_raw)
    }

    /// A request for the narinfo of a large file.
    fn narinfo(&self, login: &str) -> Reply {
        let target = format!("/{}.narinfo", hash_part(fixture().path("large")));
        Connection::open(self.address).request("GET", &target, &[("Authorization", login)])
    }

    /// Waits until another process than this one is ready.
    fn wait_for_another(&self, before: Pid) {
        eventually("there is a new process", || self.pid().is_some_and(|pid| pid != before));
        self.wait("-U");
        self.narinfo(&self.login).expect(200);
    }

    /// What the logger has written since it began.
    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log/current")).unwrap_or_default()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the service said:\n{}---", self.log());
        }
        // The service gets as long as timeout-kill says.
        let _told = kill_process(Pid::from_child(&self.svscan), Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(100);
        while let Ok(None) = self.svscan.try_wait() {
            if Instant::now() > deadline {
                let _gone = self.svscan.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A new token, as clients send it.
fn login(tokens: &Path, name: &str) -> String {
    format!("Bearer {}", create_token(tokens, name, "read"))
}

/// A live store, and tokens that can be read again.
fn settings(address: SocketAddr) -> String {
    let store = &fixture().store;
    let capabilities_off: Vec<String> = std::env::var("NARWIRE_TEST_WITHOUT").into_iter().collect();
    let (real, database) = (store.real("/nix/store"), store.database());
    let (real, database) = (text(&real), text(&database));
    format!(
        "listen = [\"{address}\"]\nreal-store = \"{real}\"\ndb = \"{database}\"\nwithout = {capabilities_off:?}\n\
         private = true\nupload-token-file = \"tokens\"\n"
    )
}

#[test]
fn it_is_ready_when_it_answers_and_reads_its_tokens_again_on_a_signal() {
    if !is_root() {
        return;
    }
    let supervised = Supervised::start();
    supervised.narinfo(&supervised.login).expect(200);
    let pid = supervised.pid().unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid())).unwrap();
    assert!(status.contains(&format!("\nUid:\t{USER}\t{USER}\t{USER}\t{USER}\n")), "{status}");

    let second = login(&supervised.folder.path().join("tokens"), "second");
    supervised.narinfo(&second).expect(401);
    supervised.control(&["-h"]);
    eventually("the tokens are read again", || supervised.narinfo(&second).status == 200);
    assert_eq!(supervised.pid(), Some(pid), "it is the same process");
    eventually("the log is written", || supervised.log().contains("listening on "));
}

#[test]
fn a_restart_finishes_what_is_on_its_way_and_a_crash_is_mended() {
    if !is_root() {
        return;
    }
    let (supervised, path) = (Supervised::start(), fixture().path("large"));
    let pid = supervised.pid().unwrap();
    let narinfo = supervised.narinfo(&supervised.login).expect(200);
    let url = narinfo.text().lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
    let mut connection = Connection::open(supervised.address);
    connection.send(request_head("GET", &format!("/{url}"), &[("Authorization", &supervised.login)]));
    connection.head().unwrap().expect(200);
    supervised.control(&["-r"]);
    eventually("it drains", || supervised.log().contains("draining"));
    assert_eq!(supervised.pid(), Some(pid), "a download is on its way");
    assert_same_bytes(&connection.rest(), &fixture().store.dump(path), "what was on its way");
    supervised.wait_for_another(pid);

    let pid = supervised.pid().unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    supervised.wait_for_another(pid);
}

#[test]
fn with_a_bad_configuration_it_stays_down_and_says_so_until_it_is_told_to_start() {
    if !is_root() {
        return;
    }
    let supervised = Supervised::start();
    let settings = fs::read_to_string(supervised.config()).unwrap();
    fs::write(supervised.config(), "unheard-of = 1\n").unwrap();
    supervised.control(&["-r"]);
    eventually("why is in the log", || {
        let log = supervised.log();
        log.contains("unheard-of") && log.contains("narwire stays down")
    });
    // It is down for good: s6 does not want it up any more.
    supervised.wait("-D");
    assert_eq!(supervised.pid(), None);
    let wanted = run(Command::new("s6-svstat").args(["-o", "wantedup"]).arg(supervised.service()));
    assert_eq!(wanted, "false");

    fs::write(supervised.config(), settings).unwrap();
    supervised.control(&["-u"]);
    supervised.wait("-U");
    supervised.narinfo(&supervised.login).expect(200);
}
