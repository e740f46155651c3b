//! Nodes behind a load balancer, each on a machine of its own. The addresses are those of `deploy/haproxy.cfg` and
//! `deploy/nginx.conf`, which are used as they are.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::netns::{Machine, Switch};
use super::nix::{Key, Store};
use super::server::Narwire;
use super::{eventually, run, text};

const BALANCER: &str = "192.0.2.1";
const NODES: [&str; 3] = ["192.0.2.11", "192.0.2.12", "192.0.2.13"];
const PORT: u16 = 5000;

/// What clients call the load balancer.
pub const URL: &str = "https://192.0.2.1";

/// A load balancer as Debian packages it, with the configuration that is shipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    HaProxy,
    Nginx,
}

/// Whether this test may make networks.
pub fn is_possible() -> bool {
    rustix::process::geteuid().is_root()
}

/// A load balancer, three nodes, a place for a writer, and a client whose connection is slow. All ends with the value.
pub struct Fleet {
    kind: Kind,
    balancer: Child,
    folder: TempDir,
    switch: Switch,
    pub nodes: Vec<Node>,
    pub writer: Node,
    client: Machine,
}

/// A node, with or without a server at the moment.
pub struct Node {
    pub machine: Machine,
    flags: Vec<String>,
    /// As the socket unit holds it, whatever becomes of the server.
    listener: Option<TcpListener>,
    server: Option<Narwire>,
}

/// What the load balancer answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Of HTTP.
    pub version: String,
    /// The node that it came from, by the name that the load balancer has for it.
    pub node: String,
    pub retry_after: String,
}

impl Fleet {
    /// Nodes that all serve with these flags, and no writer.
    pub fn start(kind: Kind, flags: &[String]) -> Self {
        Self::start_each(kind, &[0, 1, 2].map(|_| flags.to_owned()), None)
    }

    /// Nodes, each with its own flags, and a writer.
    pub fn start_each(kind: Kind, flags: &[Vec<String>; 3], writer: Option<Vec<String>>) -> Self {
        let folder = tempfile::Builder::new().prefix("fleet-").tempdir().unwrap();
        let mut switch = Switch::new(BALANCER);
        let nodes =
            NODES.iter().zip(flags).map(|(address, flags)| Node::new(switch.connect(address), flags.clone()));
        let mut nodes: Vec<_> = nodes.collect();
        nodes.iter_mut().for_each(Node::power_on);
        let is_written = writer.is_some();
        let mut writer = Node::new(switch.connect("192.0.2.20"), writer.unwrap_or_default());
        if is_written {
            writer.power_on();
        }
        let client = switch.connect_slowly("192.0.2.2", "200mbit");
        write_configuration(kind, folder.path());
        let balancer = start_balancer(kind, &switch.machine, folder.path());
        let mut fleet = Self { kind, balancer, folder, switch, nodes, writer, client };
        eventually("the load balancer answers", || {
            assert!(fleet.balancer.try_wait().unwrap().is_none(), "{kind:?} has ended:\n{}", fleet.log());
            fleet
                .curl(&["--output", "/dev/null", &format!("{URL}/nix-cache-info")])
                .output()
                .unwrap()
                .status
                .success()
        });
        fleet
    }

    /// Asks for one after another over one connection, with HTTP/2.
    pub fn ask<T: AsRef<str>>(&self, targets: impl IntoIterator<Item = T>) -> Vec<Answer> {
        let list = self.folder.path().join("targets");
        let lines = targets.into_iter().map(|target| {
            let url = format!("{URL}/{}", target.as_ref());
            format!("url = \"{url}\"\noutput = \"/dev/null\"\n")
        });
        fs::write(&list, lines.collect::<String>()).unwrap();
        let form = "%{http_code}\t%{http_version}\t%header{x-node}\t%header{retry-after}\n";
        let printed = run(&mut self.curl(&["--write-out", form, "--config", text(&list)]));
        printed.lines().map(Answer::parse).collect()
    }

    pub fn ask_one(&self, target: &str) -> Answer {
        self.ask([target]).remove(0)
    }

    /// The node that answers each, by the name that the load balancer has for it.
    pub fn places<T: AsRef<str>>(&self, targets: impl IntoIterator<Item = T>) -> Vec<String> {
        self.ask(targets).into_iter().map(|answer| answer.node).collect()
    }

    /// What the load balancer calls a node.
    pub fn name(&self, node: usize) -> String {
        match self.kind {
            Kind::HaProxy => format!("node{}", node + 1),
            Kind::Nginx => format!("{}:{PORT}", NODES[node]),
        }
    }

    /// `curl` on the client's machine, which trusts the load balancer and speaks HTTP/2.
    pub fn curl(&self, arguments: &[&str]) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--http2", "--max-time", "120", "--cacert"])
            .arg(self.certificate());
        self.client.command(curl.args(arguments))
    }

    /// `nix` on the client's machine.
    pub fn nix(&self, mut command: Command) -> Command {
        self.client.command(command.env("NIX_SSL_CERT_FILE", self.certificate()))
    }

    /// `nix copy` of a path with its closure into a store, signatures checked.
    pub fn copy_to(&self, store: &Store, trusted: &Key, path: &str) -> Copy {
        let mut copy = store.nix.command("nix");
        copy.args(["copy", "--from", URL, "--to", store.uri(), "--option", "trusted-public-keys"]);
        copy.args([&trusted.public, path]);
        let log = self.folder.path().join("copy.log");
        let child = self.nix(copy).stdout(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        Copy { child, log, sent: self.sent() }
    }

    /// The node that is sending a long NAR, one of `among`. What else a node has to send is shorter than this, and what is left of the NAR
    /// is more than buffers hold.
    pub fn sender(&self, copy: &mut Copy, among: &[usize]) -> usize {
        let mut sender = None;
        eventually("a node sends a long NAR", || {
            assert!(
                copy.child.try_wait().unwrap().is_none(),
                "the copy has ended too early:\n{}",
                copy.log()
            );
            let sent = self.sent();
            for &node in among {
                match sent[node] - copy.sent[node] {
                    0..3_000_000 => {}
                    3_000_000..12_000_000 => sender = Some(node),
                    // It was looked at too late.
                    _ => copy.sent[node] = sent[node],
                }
            }
            sender.is_some()
        });
        copy.sent = self.sent();
        sender.unwrap()
    }

    fn sent(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.machine.sent_bytes()).collect()
    }

    /// Says something to HAProxy's own socket.
    pub fn tell(&self, words: &str) -> String {
        let mut socket = UnixStream::connect(self.folder.path().join("run/haproxy/admin.sock")).unwrap();
        socket.write_all(format!("{words}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A command on the load balancer's machine.
    pub fn beside_the_balancer(&self, command: &Command) -> Command {
        self.switch.machine.command(command)
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("etc/narwire.crt")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {:?} said:\n{}---", self.kind, self.log());
        }
        let _gone = kill_process(Pid::from_child(&self.balancer), Signal::TERM);
        let _ended = self.balancer.wait();
    }
}

impl Node {
    fn new(machine: Machine, flags: Vec<String>) -> Self {
        Self { machine, flags, listener: None, server: None }
    }

    /// Socket and server.
    pub fn power_on(&mut self) {
        self.listener = Some(self.machine.listen(PORT));
        self.serve();
    }

    /// Ends the server without a word, and nobody listens any more.
    pub fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.signal(Signal::KILL);
        server.exit();
        self.listener = None;
    }

    /// As `systemctl restart`: the old server finishes what it has begun, the socket stays, and a new server takes it.
    pub fn restart(&mut self) {
        let mut server = self.server.take().unwrap();
        server.signal(Signal::TERM);
        assert_eq!(server.exit().code(), Some(0), "{}", server.output());
        self.serve();
    }

    fn serve(&mut self) {
        // As the unit runs it: the socket is one of the node's network, the process needs none.
        self.server = Some(Narwire::start_activated(self.listener.as_ref().unwrap(), &self.flags));
    }
}

/// A `nix copy` under way.
pub struct Copy {
    child: Child,
    log: PathBuf,
    /// What each node had sent, in bytes, when it was last looked at.
    sent: Vec<u64>,
}

impl Copy {
    /// Waits for its success; gives what it said.
    #[track_caller]
    pub fn succeed(mut self) -> String {
        eventually("nix copy ends", || self.child.try_wait().unwrap().is_some());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "nix copy: {status}:\n{}", self.log());
        self.log()
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // A test that failed has not waited for it.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

impl Answer {
    fn parse(line: &str) -> Self {
        let mut words = line.split('\t').map(str::to_owned);
        let mut next = || words.next().unwrap_or_default();
        let (status, version) = (next().parse().unwrap(), next());
        // nginx names those first that could not answer.
        let node = next().rsplit(", ").next().unwrap_or_default().to_owned();
        Self { status, version, node, retry_after: next() }
    }
}

/// What the file says it needs: itself, and a certificate, which here is its own authority.
fn write_configuration(kind: Kind, folder: &Path) {
    let (etc, shipped) = (folder.join("etc"), Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy"));
    fs::create_dir_all(&etc).unwrap();
    let name = match kind {
        Kind::HaProxy => "haproxy.cfg",
        Kind::Nginx => "nginx.conf",
    };
    fs::copy(shipped.join(name), etc.join(name)).unwrap();
    let certify = format!(
        "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -subj /CN=cache \
         -addext subjectAltName=IP:{BALANCER} -keyout narwire.key -out narwire.crt"
    );
    run(Command::new("openssl").current_dir(&etc).args(certify.split_whitespace()));
    let [certificate, key] =
        ["narwire.crt", "narwire.key"].map(|name| fs::read_to_string(etc.join(name)).unwrap());
    fs::write(etc.join("narwire.pem"), certificate + &key).unwrap();
}

/// Checks the configuration, and starts with it, where it sees it at the place at which it is installed, and writes nowhere else on
/// this machine than into the folder.
fn start_balancer(kind: Kind, machine: &Machine, folder: &Path) -> Child {
    let (folders, check, serve) = match kind {
        Kind::HaProxy => (
            "mkdir -p $0/run/haproxy && mount --bind $0/etc /etc/haproxy",
            "haproxy -c -f /etc/haproxy/haproxy.cfg",
            "haproxy -db -f /etc/haproxy/haproxy.cfg",
        ),
        Kind::Nginx => (
            "mkdir -p $0/run && mount --bind $0/etc /etc/nginx && mount -t tmpfs none /var/lib/nginx && mount -t tmpfs none /var/log/nginx",
            "nginx -t",
            "nginx -e stderr -g 'daemon off;'",
        ),
    };
    let script = format!("set -e; {folders}; mount --bind $0/run /run; {check}; exec {serve}");
    let log = File::create(folder.join("log")).unwrap();
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "sh", "-c", &script]).arg(folder);
    let mut command = machine.command(&shell);
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().expect("nsenter of util-linux")
}
