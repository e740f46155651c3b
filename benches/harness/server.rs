//! The servers: started on the core they are measured on, asked what they cost, ended by their process id.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Resource, Signal, getrlimit};

use super::load::connect;
use super::site::Site;

/// How long a server may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of the log of a server that fails.
const LOG_LINES_SHOWN: usize = 20;

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Narwire,
    /// narwire with the files that nginx serves as a cache directory.
    NarwireDirectory,
    /// narwire that keeps the NARs of the store encoded.
    NarwireCache,
    /// Static files as a cautious administrator serves them: what changes on disk is seen at once, as with narwire.
    Nginx,
    /// The same with `open_file_cache`: faster, and blind to changes for a minute.
    NginxCaching,
    /// narwire that anybody may upload to.
    NarwireUploads,
    /// narwire that logs one request in a hundred, to a file.
    NarwireSampling,
    /// narwire that logs every request, to /dev/null: what the lines cost without the file.
    NarwireLoggingNowhere,
    /// narwire that logs every request, to a file.
    NarwireLogging,
    /// nginx that takes files: WebDAV.
    NginxDav,
}

/// A running server.
pub struct Server {
    child: Child,
    /// The process that serves: of nginx, the worker.
    serving: u32,
    logs: Vec<PathBuf>,
    pub kind: Kind,
    pub address: SocketAddr,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Narwire => "narwire",
            Self::NarwireDirectory => "narwire-dir",
            Self::NarwireCache => "narwire-cache",
            Self::Nginx => "nginx",
            Self::NginxCaching => "nginx+ofc",
            Self::NarwireUploads => "narwire-uploads",
            Self::NginxDav => "nginx-dav",
            Self::NarwireSampling => "log 1 in 100",
            Self::NarwireLoggingNowhere => "log to nowhere",
            Self::NarwireLogging => "log to a file",
        }
    }

    /// Of which requests it logs a line.
    fn access_log(self) -> &'static str {
        match self {
            Self::NarwireSampling => "1/100",
            Self::NarwireLoggingNowhere | Self::NarwireLogging => "full",
            _ => "off",
        }
    }
}

impl Server {
    /// Starts a server with `workers` workers that may use `cores` (in the notation of `taskset -c`).
    pub fn start(kind: Kind, site: &impl AsRef<Site>, workers: usize, cores: &str) -> anyhow::Result<Self> {
        let site = site.as_ref();
        let port = free_port()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let log = site.root().join(format!("{}-{port}.log", kind.name()));
        let mut logs = vec![log.clone()];
        // Should this bench be killed, the server is told to end as well.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "taskset", "-c", cores]);
        let uploads = site.uploads().join(kind.name());
        match kind {
            Kind::Narwire
            | Kind::NarwireDirectory
            | Kind::NarwireCache
            | Kind::NarwireUploads
            | Kind::NarwireSampling
            | Kind::NarwireLoggingNowhere
            | Kind::NarwireLogging => {
                command.arg(env!("CARGO_BIN_EXE_narwire")).args([
                    "--listen",
                    &address.to_string(),
                    "--workers",
                    &workers.to_string(),
                    "--access-log",
                    kind.access_log(),
                ]);
                if kind == Kind::NarwireDirectory {
                    command.arg(&site.flat);
                } else if kind == Kind::NarwireUploads {
                    fs::create_dir_all(&uploads)?;
                    command.arg(&uploads).args(["--allow-anonymous-upload", "--upload-min-free", "0"]);
                } else {
                    command
                        .args(["--store-dir", "/nix/store"])
                        .arg("--real-store")
                        .arg(&site.store.real_store)
                        .arg("--db")
                        .arg(&site.store.database)
                        .arg("--secret-key-file")
                        .arg(&site.secret_key_file);
                }
                if kind == Kind::NarwireCache {
                    command.arg("--cache-dir").arg(&site.nar_cache);
                    command.args(["--cache-format", "both", "--cache-min-free", "0", "--scrub-rate", "0"]);
                }
            }
            Kind::Nginx | Kind::NginxCaching | Kind::NginxDav => {
                let mut folder = site.root().join(format!("{}-{port}", kind.name()));
                let (mut root, mut more) = (&site.flat, Cow::Borrowed(""));
                if kind == Kind::NginxCaching {
                    // The cache keeps its files open; half of the descriptors are left to connections.
                    let files = descriptors() / 2;
                    more = format!("open_file_cache max={files} inactive=600s; open_file_cache_valid 60s;")
                        .into();
                } else if kind == Kind::NginxDav {
                    // Bodies are written beside where they will be, so that they are renamed and not copied.
                    folder = site.uploads().join("nginx");
                    root = &uploads;
                    fs::create_dir_all(root)?;
                    more = "dav_methods PUT; create_full_put_path on; client_max_body_size 0; \
                        client_body_buffer_size 256k;"
                        .into();
                }
                fs::create_dir_all(&folder)?;
                let configuration = folder.join("nginx.conf");
                fs::write(&configuration, nginx_conf(port, workers, &more, &folder, root))?;
                command.arg("nginx").arg("-p").arg(&folder).arg("-c").arg(configuration);
                logs.push(folder.join("error.log"));
            }
        }
        let is_log_kept = kind != Kind::NarwireLoggingNowhere;
        let log = if is_log_kept { File::create(log)? } else { File::create("/dev/null")? };
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let child = child.context("cannot run setpriv (util-linux)")?;
        let serving = child.id();
        let mut server = Self { child, serving, logs, kind, address };
        match server.wait_until_it_serves() {
            Ok(()) => Ok(server),
            Err(error) => Err(server.explain(error)),
        }
    }

    fn wait_until_it_serves(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                bail!("it has ended ({status})");
            }
            let serving = match self.kind {
                Kind::Nginx | Kind::NginxCaching | Kind::NginxDav => self.children()?.first().copied(),
                _ => Some(self.child.id()),
            };
            if let Some(serving) = serving
                && connect(self.address).is_ok()
            {
                self.serving = serving;
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("it does not answer")
    }

    /// What went wrong, with the end of what the server has to say about it.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let mut text = format!("{} at {}", self.kind.name(), self.address);
        for log in &self.logs {
            let log = fs::read_to_string(log).unwrap_or_default();
            for line in log.lines().skip(log.lines().count().saturating_sub(LOG_LINES_SHOWN)) {
                text.push_str("\n  | ");
                text.push_str(line);
            }
        }
        error.context(text)
    }

    /// As [`socket_memory_kib`], of the server's port.
    pub fn socket_memory_kib(&self) -> Option<u64> {
        socket_memory_kib(self.address.port())
    }

    /// CPU time that the serving process has used, of all its threads, the ended ones too.
    pub fn time(&self) -> io::Result<Duration> {
        process_time(self.serving)
    }

    /// Memory of all processes, shared pages divided by the number of their users. KiB.
    pub fn memory_kib(&self) -> anyhow::Result<u64> {
        let mut total = 0;
        for process in [vec![self.child.id()], self.children()?].concat() {
            let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
            let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
            total += pss.trim().trim_end_matches(" kB").parse::<u64>()?;
        }
        Ok(total)
    }

    /// CPU time of every thread whose name begins with `prefix`, in the order of their names. Nanoseconds.
    pub fn thread_times_ns(&self, prefix: &str) -> anyhow::Result<Vec<u64>> {
        let mut threads = Vec::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.serving))? {
            let task = task?.path();
            let name = fs::read_to_string(task.join("comm"))?;
            if name.starts_with(prefix) {
                let statistics = fs::read_to_string(task.join("schedstat"))?;
                let time = statistics.split(' ').next().unwrap_or_default().parse::<u64>()?;
                threads.push((name, time));
            }
        }
        threads.sort();
        Ok(threads.into_iter().map(|(_, time)| time).collect())
    }

    fn children(&self) -> anyhow::Result<Vec<u32>> {
        let process = self.child.id();
        let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"))?;
        Ok(children.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx passes SIGTERM on to its worker; narwire drains, for which its clients have gone.
        if let Some(process) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process(process, Signal::TERM);
        }
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the kernel holds for the ends at a port of all connections: buffers, without the sockets themselves. Bytes that
/// sendfile has queued are counted although they are the page cache's own. KiB; `None` without `ss`.
pub fn socket_memory_kib(port: u16) -> Option<u64> {
    let port = format!("sport = :{port}");
    let output = Command::new("ss").args(["-tmnH", &port]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // skmem:(r<received>,rb…,t<sent>,tb…,f<reserved>,w<queued>,o…,bl…,d…)
    let bytes =
        text.lines().filter_map(|line| line.split_once("skmem:(")?.1.split_once(')')).map(|(fields, _)| {
            let field = |name: &str| {
                let mut values =
                    fields.split(',').filter_map(|field| field.strip_prefix(name)?.parse::<u64>().ok());
                values.next().unwrap_or(0)
            };
            field("r") + field("w") + field("f")
        });
    output.status.success().then(|| bytes.sum::<u64>() / 1024)
}

/// What nginx is and how to get it; an error when it is not there.
pub fn nginx_version() -> anyhow::Result<String> {
    let output = Command::new("nginx").arg("-v").output();
    let output = output.context("nginx is not installed; on Debian: apt-get install nginx-light")?;
    Ok(String::from_utf8_lossy(&output.stderr).trim().replace("nginx version: ", ""))
}

/// More than the hard limit nobody may have.
fn descriptors() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20).min(1 << 20)
}

/// `more` are directives of the block `http`.
fn nginx_conf(port: u16, workers: usize, more: &str, folder: &Path, root: &Path) -> String {
    let (folder, root, descriptors) = (folder.display(), root.display(), descriptors());
    // A worker that changes its user could not read a temporary folder of root's.
    let user = if rustix::process::geteuid().is_root() { "user root root;" } else { "" };
    format!(
        "daemon off; {user} worker_processes {workers}; worker_rlimit_nofile {descriptors}; pid {folder}/pid;
error_log {folder}/error.log crit;
events {{ use epoll; worker_connections 16384; multi_accept on; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; server_tokens off;
  keepalive_timeout 300s; keepalive_requests 1000000000; {more}
  client_body_temp_path {folder}/t; proxy_temp_path {folder}/t; fastcgi_temp_path {folder}/t;
  uwsgi_temp_path {folder}/t; scgi_temp_path {folder}/t;
  types {{ text/x-nix-narinfo narinfo; application/x-nix-nar nar; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; root {root}; }}
}}
"
    )
}

/// A port that nobody had a moment ago.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The CPU clock of a process, which counts nanoseconds where /proc/PID/stat counts hundredths of a second.
#[expect(unsafe_code, reason = "no safe wrapper takes the clock of another process")]
pub fn process_time(process: u32) -> io::Result<Duration> {
    let mut clock = 0;
    // SAFETY: `clock` is a place for the answer.
    let error = unsafe { libc::clock_getcpuclockid(process.cast_signed(), &raw mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a place for the answer.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0)))
}
