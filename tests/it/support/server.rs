//! The server under test: the real binary in its own process, on a port of its own.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::nix_upload::contents_beneath;
use super::{Connection, PATIENCE, Reply, eventually, run};

pub const BINARY: &str = env!("CARGO_BIN_EXE_narwire");

/// What the server says once it listens, before the address.
const LISTENING: &str = "listening on ";

/// A running server. Dropping it ends the process.
pub struct Narwire {
    child: Child,
    output: Arc<Mutex<String>>,
}

impl Narwire {
    /// A server on a free port of the loopback, ready to answer.
    pub fn start<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Self {
        let server = Self::spawn(command().args(arguments).args(["--listen", "127.0.0.1:0"]));
        server.wait_for(LISTENING);
        server
    }

    /// The same where the server may end before it listens; whether it does is the caller's to ask.
    pub fn start_or_end<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Self {
        let mut server = Self::spawn(command().args(arguments).args(["--listen", "127.0.0.1:0"]));
        eventually("the server listens or ends", || {
            server.output().contains(LISTENING) || server.has_exited()
        });
        server
    }

    /// The same in a mount namespace of its own, in which `mount` was carried out before: a line of shell, to which
    /// `directory` is `$0`.
    pub fn start_mounted(directory: &Path, mount: &str, flags: &[String]) -> Self {
        let server = Self::spawn_mounted(directory, mount, flags);
        server.wait_for(LISTENING);
        server
    }

    /// The same; the caller waits for what it needs.
    pub fn spawn_mounted(directory: &Path, mount: &str, flags: &[String]) -> Self {
        let mut command = Command::new("unshare");
        command.arg(if rustix::process::geteuid().is_root() { "-m" } else { "-rm" });
        command.args(["sh", "-c", &format!("{mount} && exec \"$@\"")]).arg(directory).arg(BINARY).args(flags);
        if let Some(capabilities) = std::env::var_os("NARWIRE_TEST_WITHOUT") {
            command.arg("--without").arg(capabilities);
        }
        Self::spawn(command.args(["--listen", "127.0.0.1:0"]))
    }

    /// A server that is handed its socket, as a service manager does; the socket stays when the server goes.
    pub fn start_activated<A: AsRef<OsStr>>(
        socket: &TcpListener,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        // The shell hands its standard input on as descriptor 3, and its own process identity to the server.
        let script = r#"exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@""#;
        let mut server = command();
        server.args(arguments);
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh", BINARY]).args(server.get_args());
        let server = Self::spawn(shell.stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap()))));
        server.wait_for(LISTENING);
        server
    }

    /// Any command that becomes a server; the caller waits for what it needs.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        collect(child.stdout.take().unwrap(), Arc::clone(&output));
        collect(child.stderr.take().unwrap(), Arc::clone(&output));
        Self { child, output }
    }

    /// Waits until the server has printed `words`.
    pub fn wait_for(&self, words: &str) {
        let pid = self.child.id();
        let deadline = Instant::now() + PATIENCE;
        while !self.output().contains(words) {
            assert!(Instant::now() < deadline, "process {pid} never said {words:?}:\n{}", self.output());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Everything the server has printed so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Every address the server says it listens on, in order, without the scheme.
    pub fn addresses(&self) -> Vec<String> {
        let output = self.output();
        let after = output.lines().filter_map(|line| line.split_once(LISTENING)).map(|(_, after)| after);
        after
            // A line of JSON says it in quotation marks.
            .map(|after| after.split(['"', ' ']).next().unwrap().trim_start_matches("http://").to_owned())
            .collect()
    }

    pub fn address(&self) -> SocketAddr {
        let addresses = self.addresses();
        addresses
            .iter()
            .find_map(|address| address.parse().ok())
            .unwrap_or_else(|| panic!("no address in {addresses:?}"))
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn connect(&self) -> Connection {
        Connection::open(self.address())
    }

    pub fn get(&self, target: &str) -> Reply {
        self.connect().get(target)
    }

    /// The same of a server that may end meanwhile.
    pub fn try_get(&self, target: &str) -> Option<Reply> {
        Connection::try_open(self.address())?.try_request("GET", target, &[])
    }

    pub fn request(&self, method: &str, target: &str, fields: &[(&str, &str)]) -> Reply {
        self.connect().request(method, target, fields)
    }

    /// The NAR of a store path, by the URL that its narinfo gives.
    pub fn nar(&self, hash_part: &str) -> Reply {
        self.get(&self.nar_target(hash_part))
    }

    pub fn nar_target(&self, hash_part: &str) -> String {
        let narinfo = self.get(&format!("/{hash_part}.narinfo")).expect(200);
        let url = narinfo.text().lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
        format!("/{url}")
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// How many descriptors the process has open, without those of the database: threads that look things up open it
    /// when they are first needed.
    pub fn descriptors(&self) -> usize {
        self.open_files().iter().filter(|file| !file.contains("db.sqlite")).count()
    }

    /// How many of them are sockets: connections, listeners, and the two that signals come by.
    pub fn sockets(&self) -> usize {
        self.open_files().iter().filter(|file| file.starts_with("socket:")).count()
    }

    /// What each descriptor of the process is.
    pub fn open_files(&self) -> Vec<String> {
        let opened = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let files = opened.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        files.map(|file| file.to_string_lossy().into_owned()).collect()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub fn has_exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for the end of the process.
    pub fn exit(&mut self) -> ExitStatus {
        eventually("the server ends", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap()
    }
}

impl Drop for Narwire {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the server said:\n{}---", self.output());
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while let Ok(None) = self.child.try_wait() {
            let signal = if Instant::now() < deadline { Signal::TERM } else { Signal::KILL };
            let _gone = kill_process(self.pid(), signal);
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// `narwire` in an environment that says nothing, with the capabilities that this run of the suite allows.
pub fn command() -> Command {
    command_of(BINARY)
}

/// The same for another name of the binary.
pub fn command_of(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for variable in [
        "NIX_SECRET_KEY_FILE",
        "SIGN_KEY_PATHS",
        "NIX_SERVE_PORT",
        "NIX_SERVE_STORE_DIR",
        "CACHE_DIRECTORY",
        "NOTIFY_SOCKET",
        "RUST_LOG",
        "JOURNAL_STREAM",
    ] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    if let Some(capabilities) = std::env::var_os("NARWIRE_TEST_WITHOUT") {
        command.arg("--without").arg(capabilities);
    }
    command
}

/// `narwire` as the user nobody, who may read and not write, in a copy that everybody may run for as long as the folder is there. For
/// root, who alone may become somebody else.
pub fn command_of_nobody() -> (tempfile::TempDir, Command) {
    let readable = Permissions::from_mode(0o755);
    let folder = tempfile::Builder::new().permissions(readable).tempdir_in("/tmp").unwrap();
    let binary = folder.path().join("narwire");
    // By another process: a file that this one still has open for writing, in a child that another test has just made, could not be run.
    run(Command::new("cp").arg(BINARY).arg(&binary));
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary).stdin(Stdio::null());
    if let Some(capabilities) = std::env::var_os("NARWIRE_TEST_WITHOUT") {
        command.arg("--without").arg(capabilities);
    }
    (folder, command)
}

/// A command that runs what is added to it under strace, with its system calls tampered with; the process is the program's own. What
/// was tampered with goes to `log`, a line for each call that begins with the thread.
pub fn traced(log: &Path, injections: &[&str]) -> Command {
    let calls: Vec<_> = injections.iter().filter_map(|injection| injection.split(':').next()).collect();
    let mut command = Command::new("strace");
    // Detached, so that signals and the exit status are the program's; only what is tampered with stops at the tracer.
    command.args(["-D", "-f", "--seccomp-bpf", "-qqq", "-e", "signal=none", "-o"]).arg(log);
    command.arg("-e").arg(format!("trace={}", calls.join(",")));
    for injection in injections {
        command.arg("-e").arg(format!("inject={injection}"));
    }
    command
}

/// The names of the fault points in those files of the source whose names beneath it are `wanted`.
pub fn fault_points(wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut points = BTreeSet::new();
    for (name, text) in contents_beneath(&source) {
        if wanted(&name) && !name.ends_with("fault.rs") {
            let text = String::from_utf8(text).unwrap();
            let names = text.split("point(\"").skip(1).filter_map(|rest| rest.split_once('"'));
            points.extend(names.map(|(name, _)| name.to_owned()));
        }
    }
    points
}

fn collect(stream: impl Read + Send + 'static, output: Arc<Mutex<String>>) {
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let mut output = output.lock().unwrap();
            output.push_str(&line);
            output.push('\n');
        }
    });
}
