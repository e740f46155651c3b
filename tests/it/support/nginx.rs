//! nginx in front of a server, as people put it there: for TLS, and with its own ideas of what to do with a body.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{eventually, run, text};

/// A reverse proxy. Dropping it ends it.
pub struct Nginx {
    child: Child,
    folder: TempDir,
    plain: SocketAddr,
    tls: SocketAddr,
}

impl Nginx {
    /// Passes on all requests: those that come in the clear after their bodies have come whole, over HTTP/1.0, and those over TLS
    /// while their bodies come, over HTTP/1.1.
    pub fn start(server: SocketAddr) -> Self {
        let folder = tempfile::Builder::new().prefix("nginx-").tempdir().unwrap();
        let root = text(folder.path());
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [plain, tls] = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        // One certificate that is its own authority.
        let certify = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -subj /CN=localhost \
            -addext subjectAltName=DNS:localhost -keyout key.pem -out certificate.pem";
        run(Command::new("openssl").current_dir(folder.path()).args(certify.split_whitespace()));
        // A worker that changes its user could not write to a temporary folder of root's.
        let user = if rustix::process::geteuid().is_root() { "user root root;" } else { "" };
        let configuration = format!(
            "daemon off; {user} worker_processes 1; pid {root}/pid; error_log {root}/error.log warn;
events {{ worker_connections 256; }}
http {{
  access_log off; client_max_body_size 0;
  client_body_temp_path {root}/body; proxy_temp_path {root}/t; fastcgi_temp_path {root}/t;
  uwsgi_temp_path {root}/t; scgi_temp_path {root}/t;
  proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
  server {{ listen {plain}; location / {{ proxy_pass http://{server}; }} }}
  server {{
    listen {tls} ssl http2; ssl_certificate {root}/certificate.pem; ssl_certificate_key {root}/key.pem;
    location / {{
      proxy_pass http://{server}; proxy_http_version 1.1; proxy_set_header Connection \"\";
      proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto $scheme;
      proxy_request_buffering off; proxy_buffering off;
    }}
  }}
}}
"
        );
        fs::write(folder.path().join("nginx.conf"), configuration).unwrap();
        let mut nginx = Self { child: spawn(folder.path(), listeners), folder, plain, tls };
        let pid = nginx.folder.path().join("pid");
        // It is written when nginx has taken both addresses over.
        eventually("nginx listens", || {
            assert!(nginx.child.try_wait().unwrap().is_none(), "nginx has ended:\n{}", nginx.log());
            pid.exists()
        });
        nginx
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.plain)
    }

    pub fn tls_url(&self) -> String {
        format!("https://localhost:{}", self.tls.port())
    }

    /// What clients have to trust.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    fn log(&self) -> String {
        ["output.log", "error.log"]
            .map(|name| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default())
            .concat()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- nginx said:\n{}---", self.log());
        }
        let _gone = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ended = self.child.wait();
    }
}

/// nginx takes over sockets as from an older nginx that it replaces, so nobody else can come to have their addresses. What a new
/// process has open are its standard streams.
fn spawn(folder: &Path, [first, second]: [TcpListener; 2]) -> Child {
    // Debian keeps it where only root looks for programs.
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let log = File::create(folder.join("output.log")).unwrap();
    let mut command = Command::new("nginx");
    command.env("PATH", path).arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf"));
    command.env("NGINX", "0;1;").stdin(OwnedFd::from(first)).stdout(OwnedFd::from(second)).stderr(log);
    command.spawn().expect("nginx: tests/run installs it")
}
