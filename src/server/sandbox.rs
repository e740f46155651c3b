//! What the process gives up once it has all that it needs, so that whoever gets hold of it gets little.
//!
//! | given up                                   | by             | since Linux |
//! |--------------------------------------------|----------------|-------------|
//! | all files but those of its [`policy`]      | [`files`]      | 5.13, 5.19 where it writes |
//! | binding and connecting TCP sockets         | [`files`]      | 6.7         |
//! | signals and abstract sockets of others     | [`files`]      | 6.12        |
//! | system calls that it does not make         | [`calls`]      | 3.17        |
//! | privileges of programs, memory dumps       | [`process`]    | 3.5         |
//! | operations that its rings do not make      | `ring::restriction` | 5.10   |
//!
//! **Order.** Files and system calls are given up by a thread for itself and those that it starts. So [`enter`] comes when nothing
//! but the main thread runs, and makes sure of that; after it come all threads, and all that a peer says.
//!
//! What the kernel does not know is left out with a warning, or is the reason not to start ([`SandboxMode`]).

mod calls;
mod files;
mod policy;
mod process;

use std::fmt;
use std::thread;

use anyhow::{anyhow, bail};
use tracing::warn;

use self::policy::Policy;
use super::config::{Config, SandboxMode};
use super::systemd;
use crate::ring::capability::{Capabilities, Capability};

/// Something that could not be given up, and what would change that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// There is no Landlock.
    #[error(
        "files and TCP are not confined, because there is no Landlock (Linux 5.13; it may be missing in lsm= on the kernel's \
         command line, or a container's seccomp profile may hide landlock_create_ruleset)"
    )]
    Landlock,
    /// It is too old for something.
    #[error("{what} not confined (Linux {since} can)")]
    Old {
        /// With its verb.
        what: &'static str,
        /// The first version that can.
        since: &'static str,
    },
    /// It is there and says no.
    #[error("files are not confined: {0}")]
    Files(String),
    /// System calls cannot be filtered.
    #[error(
        "system calls are not filtered: {0} (CONFIG_SECCOMP_FILTER; a container's seccomp profile may refuse seccomp(2))"
    )]
    Calls(String),
    /// The kernel refuses to change an attribute of the process.
    #[error("{what}: {cause}")]
    Process {
        /// Which.
        what: &'static str,
        /// From prctl(2) or setrlimit(2).
        cause: String,
    },
    /// [`Capability::Restrictions`] is not there, or was taken away.
    #[error(
        "rings of io_uring are not restricted (Linux 5.10 can; --without restrictions keeps it from that)"
    )]
    Rings,
}

/// How much was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// Nothing: that was asked for.
    Off,
    /// All but this.
    On(Vec<Lack>),
}

/// For people who ask what would be.
impl fmt::Display for Sandbox {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => formatter.write_str("off"),
            Self::On(lacks) if lacks.is_empty() => formatter.write_str("on"),
            Self::On(lacks) => write!(formatter, "on, but {}", joined(lacks)),
        }
    }
}

/// What a ring is to do without: with the sandbox off nothing is restricted.
#[must_use]
pub fn capabilities_off(off: Capabilities, mode: SandboxMode) -> Capabilities {
    match mode {
        SandboxMode::Off => off.with(Capability::Restrictions),
        SandboxMode::On | SandboxMode::Require => off,
    }
}

/// Gives up what the process does not need from here on. For the main thread, while there is no other.
///
/// # Errors
/// Where something could not be given up and all of it is required; where threads run already, which would keep all rights.
pub fn enter(config: &Config, capabilities: Capabilities) -> anyhow::Result<Sandbox> {
    if config.sandbox == SandboxMode::Off {
        return Ok(Sandbox::Off);
    }
    let threads = process::threads();
    if threads > 1 {
        bail!("a bug: {threads} threads run already when the sandbox begins, and would stay outside");
    }
    let mut lacks = process::confine(process::is_readable_needed(config));
    lacks.extend(confine_thread(config));
    let sandbox = judge(config, capabilities, lacks)?;
    if let Sandbox::On(lacks) = &sandbox {
        // Whoever types --without wants that.
        let unwanted: Vec<_> =
            lacks.iter().filter(|lack| **lack != Lack::Rings || !are_rings_free(config)).collect();
        if !unwanted.is_empty() {
            warn!("the sandbox is not whole: {} (--sandbox=off is silent)", joined(unwanted));
        }
    }
    Ok(sandbox)
}

/// What [`enter`] would do here, found out by a thread that gives up its own rights and ends.
///
/// # Errors
/// As [`enter`].
pub fn try_out(config: &Config, capabilities: Capabilities) -> anyhow::Result<Sandbox> {
    if config.sandbox == SandboxMode::Off {
        return Ok(Sandbox::Off);
    }
    let tried = thread::scope(|scope| scope.spawn(|| confine_thread(config)).join());
    judge(config, capabilities, tried.map_err(|_| anyhow!("the sandbox cannot be tried"))?)
}

fn judge(config: &Config, capabilities: Capabilities, mut lacks: Vec<Lack>) -> anyhow::Result<Sandbox> {
    if !capabilities.has(Capability::Restrictions) {
        lacks.push(Lack::Rings);
    }
    if config.sandbox == SandboxMode::Require && !lacks.is_empty() {
        bail!("--sandbox=require, but {}; --sandbox=on goes without", joined(&lacks));
    }
    Ok(Sandbox::On(lacks))
}

impl Sandbox {
    /// For a log that has had the warning.
    pub fn in_brief(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On(lacks) if lacks.is_empty() => "on",
            Self::On(_) => "on in part",
        }
    }

    /// Gives up making rings as well, in all threads: those that are there are restricted, and a new one would not be. For when
    /// nobody is going to make another.
    pub fn seal(&self) {
        let Self::On(lacks) = self else { return };
        if lacks.iter().any(|lack| matches!(lack, Lack::Calls(_))) {
            return;
        }
        if let Err(error) = calls::refuse_new_rings() {
            warn!("new rings of io_uring are not refused: {error}");
        }
    }
}

fn confine_thread(config: &Config) -> Vec<Lack> {
    let mut policy = Policy::of(config, systemd::is_listening());
    policy.grants.extend(policy::behind_links(config));
    let mut lacks = files::confine(&policy.grants);
    // The last, because it refuses what the others are done with.
    lacks.extend(calls::confine(&policy).err().map(|error| Lack::Calls(error.to_string())));
    lacks
}

/// Whether restrictions were taken away by name.
fn are_rings_free(config: &Config) -> bool {
    let off = Capabilities::parse(config.capabilities_off.iter().map(String::as_str));
    off.is_ok_and(|off| off.has(Capability::Restrictions))
}

fn joined<'a>(lacks: impl IntoIterator<Item = &'a Lack>) -> String {
    lacks.into_iter().map(Lack::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::path::Path;
    use std::process::Command;

    use memmap2::MmapMut;
    use rustix::io::Errno;
    use seccompiler::{
        SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    };
    use tempfile::TempDir;

    use super::policy::tests::config;
    use super::*;
    use crate::background::settings::{FillSettings, Format, Policy as FillPolicy};
    use crate::server::config::{NarCacheConfig, SourceConfig};

    /// Does something on a thread that nobody else is on: what it gives up, the others keep.
    fn aside<T: Send>(does: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| scope.spawn(does).join().unwrap())
    }

    /// What a kernel without this call says of it.
    fn forget_call(call: i64, rules: Vec<SeccompRule>, errno: Errno) {
        let answer = SeccompAction::Errno(errno.raw_os_error().unsigned_abs());
        let architecture = std::env::consts::ARCH.try_into().unwrap();
        let rules = BTreeMap::from([(call, rules)]);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, architecture).unwrap();
        let program: seccompiler::BpfProgram = filter.try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
    }

    /// A served directory and a NAR cache, each with a file.
    fn places() -> (TempDir, Config) {
        let folder = tempfile::tempdir().unwrap();
        let (served, cache) = (folder.path().join("served"), folder.path().join("cache"));
        for directory in [&served, &cache, &cache.join("tmp")] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("file"), "contents").unwrap();
        }
        fs::write(folder.path().join("secret"), "secret").unwrap();
        let fill = FillSettings {
            policy: FillPolicy::Off,
            format: Format::Auto,
            level: 3,
            len_max: None,
            free_min: None,
            scrub_rate: 0,
        };
        let nar_cache = Some(NarCacheConfig { directory: cache, fill });
        let config = Config { nar_cache, ..config(vec![SourceConfig::Directory(served)]) };
        (folder, config)
    }

    #[track_caller]
    fn assert_refused<T>(result: io::Result<T>, by: Errno, what: &str) {
        let error = result.err().unwrap_or_else(|| panic!("{what} is not refused"));
        assert_eq!(Errno::from_io_error(&error), Some(by), "{what}: {error}");
    }

    #[test]
    fn nothing_is_opened_but_what_is_served_and_nothing_written_but_the_cache() {
        let (folder, config) = places();
        aside(|| {
            assert_eq!(confine_thread(&config), []);
            let (served, cache) = (folder.path().join("served"), folder.path().join("cache"));
            assert_eq!(fs::read(served.join("file")).unwrap(), b"contents");
            fs::write(cache.join("new"), "contents").unwrap();
            fs::rename(cache.join("tmp/file"), cache.join("file")).unwrap();
            fs::remove_file(cache.join("new")).unwrap();
            fs::create_dir(cache.join("directory")).unwrap();
            for path in [folder.path().join("secret"), "/etc/passwd".into(), "/proc/self/environ".into()] {
                assert_refused(fs::read(&path), Errno::ACCESS, path.to_str().unwrap());
            }
            assert_refused(fs::read_dir(folder.path()), Errno::ACCESS, "listing what is around");
            assert_refused(fs::write(served.join("file"), ""), Errno::ACCESS, "writing what is served");
            assert_refused(fs::write(served.join("new"), ""), Errno::ACCESS, "adding to what is served");
            assert_refused(fs::remove_file(served.join("file")), Errno::ACCESS, "removing what is served");
            assert_refused(
                fs::rename(cache.join("file"), served.join("new")),
                // Landlock's answer to a rename into a directory that it would gain rights in.
                Errno::ACCESS,
                "moving something to what is served",
            );
            assert_refused(UnixStream::connect(folder.path().join("none")), Errno::NOSYS, "a stream socket");
        });
        assert_eq!(fs::read(folder.path().join("secret")).unwrap(), b"secret", "others keep their rights");
    }

    #[test]
    fn no_call_is_made_that_a_server_does_not_make() {
        let (_folder, config) = places();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        aside(|| {
            let mut memory = Some(MmapMut::map_anon(4096).unwrap());
            assert_eq!(confine_thread(&config), []);
            assert_refused(TcpListener::bind("127.0.0.1:0"), Errno::NOSYS, "listening");
            assert_refused(TcpStream::connect(address), Errno::NOSYS, "connecting");
            assert_refused(UnixDatagram::unbound(), Errno::NOSYS, "a socket where nobody is notified");
            assert_refused(Command::new("/bin/true").spawn(), Errno::NOSYS, "another program");
            assert_refused(rustix::process::chroot("/").map_err(io::Error::from), Errno::NOSYS, "chroot(2)");
            let mode = rustix::fs::Mode::from_raw_mode(0o777);
            let changed = rustix::fs::chmod(Path::new("/nonexistent"), mode).map_err(io::Error::from);
            assert_refused(changed, Errno::NOSYS, "chmod(2)");
            assert_refused(memory.take().unwrap().make_exec(), Errno::NOSYS, "memory that is carried out");
            // What std and the C library do goes on.
            aside(|| assert_eq!(MmapMut::map_anon(1 << 20).unwrap().len(), 1 << 20));
        });
    }

    #[test]
    fn who_notifies_has_a_datagram_socket_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let manager = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        aside(|| {
            let policy = Policy { grants: Vec::new(), notifies: true, removes: false };
            assert_eq!(files::confine(&policy.grants), []);
            calls::confine(&policy).unwrap();
            let socket = UnixDatagram::unbound().unwrap();
            socket.connect(folder.path().join("notify")).unwrap();
            socket.send(b"READY=1").unwrap();
            assert_refused(
                UnixStream::connect(folder.path().join("notify")),
                Errno::NOSYS,
                "a stream socket",
            );
            assert_refused(std::net::UdpSocket::bind("127.0.0.1:0"), Errno::NOSYS, "UDP");
        });
        let mut said = [0; 16];
        assert_eq!(manager.recv(&mut said).unwrap(), 7);
    }

    #[test]
    fn a_socket_that_is_there_cannot_be_bound_to_a_port() {
        aside(|| {
            let socket = |()| {
                rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)
            };
            let (binds, connects) = (socket(()).unwrap(), socket(()).unwrap());
            assert_eq!(files::confine(&[]), []);
            let address: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
            assert_eq!(rustix::net::bind(&binds, &address), Err(Errno::ACCESS));
            let address: std::net::SocketAddr = ([127, 0, 0, 1], 9).into();
            assert_eq!(rustix::net::connect(&connects, &address), Err(Errno::ACCESS));
        });
    }

    /// What is sent for opening a connection asks Landlock of no Linux so far, and a listener that was shut down can do it.
    #[test]
    fn nothing_that_is_sent_opens_a_connection() {
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = elsewhere.local_addr().unwrap();
        let (_folder, config) = places();
        aside(|| {
            let [listening, listener] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
            rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
            assert_eq!(confine_thread(&config), []);
            for how in [rustix::net::Shutdown::Both, rustix::net::Shutdown::Read] {
                assert_eq!(rustix::net::shutdown(&listening, how), Err(Errno::NOSYS));
            }
            let flags = rustix::net::SendFlags::from_bits_retain(libc::MSG_FASTOPEN.unsigned_abs());
            let sent = rustix::net::sendto(&listener, b"out", flags, &address);
            assert_eq!(sent, Err(Errno::NOSYS));
            let parts = [io::IoSlice::new(b"out")];
            let mut nothing = rustix::net::SendAncillaryBuffer::default();
            let sent = rustix::net::sendmsg_addr(&listener, &address, &parts, &mut nothing, flags);
            assert_eq!(sent, Err(Errno::NOSYS));
        });
    }

    #[test]
    fn nobody_is_reached_over_a_pair_of_sockets_and_no_descriptor_gets_an_owner() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("manager");
        let _manager = UnixDatagram::bind(&name).unwrap();
        let (_places, config) = places();
        aside(|| {
            let (before, _) = UnixDatagram::pair().unwrap();
            assert_eq!(confine_thread(&config), []);
            assert_refused(UnixDatagram::pair(), Errno::NOSYS, "a pair that can send to others");
            assert_refused(before.send_to(b"out", &name), Errno::NOSYS, "a message to others");
            let (ours, _theirs) = UnixStream::pair().unwrap();
            rustix::io::ioctl_fionbio(&ours, true).unwrap();
            rustix::io::fcntl_dupfd_cloexec(&ours, 0).unwrap();
            // F_SETOWN has no name in rustix; whatever is not in the list is refused alike.
            assert_eq!(rustix::fs::fcntl_add_seals(&ours, rustix::fs::SealFlags::SEAL), Err(Errno::NOSYS));
        });
    }

    #[test]
    fn once_sealed_nobody_makes_a_ring() {
        let (_folder, config) = places();
        aside(|| {
            assert_eq!(confine_thread(&config), []);
            let ring = io_uring::IoUring::new(8).unwrap();
            // As `refuse_new_rings`, for this thread: the others of this process are other tests.
            calls::tests::seal_thread();
            assert_refused(io_uring::IoUring::new(8), Errno::NOSYS, "a new ring");
            ring.submitter().submit().unwrap();
        });
    }

    #[test]
    fn a_kernel_without_landlock_is_said_so_and_the_rest_is_given_up() {
        let (folder, config) = places();
        aside(|| {
            forget_call(libc::SYS_landlock_create_ruleset, Vec::new(), Errno::NOSYS);
            assert_eq!(confine_thread(&config), [Lack::Landlock]);
            fs::read(folder.path().join("secret")).unwrap();
            assert_refused(TcpListener::bind("127.0.0.1:0"), Errno::NOSYS, "listening");
        });
    }

    #[test]
    fn a_kernel_without_filters_is_said_so_and_the_rest_is_given_up() {
        let (folder, config) = places();
        aside(|| {
            forget_call(libc::SYS_seccomp, Vec::new(), Errno::INVAL);
            let lacks = confine_thread(&config);
            assert!(matches!(lacks[..], [Lack::Calls(_)]), "{lacks:?}");
            assert_refused(fs::read(folder.path().join("secret")), Errno::ACCESS, "a file");
        });
    }

    #[test]
    fn a_kernel_without_restrictions_of_rings_is_said_so() {
        const REGISTER_RESTRICTIONS: u64 = 11;
        let (_folder, config) = places();
        aside(|| {
            let opcode =
                SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, REGISTER_RESTRICTIONS);
            let rule = SeccompRule::new(vec![opcode.unwrap()]).unwrap();
            forget_call(libc::SYS_io_uring_register, vec![rule], Errno::INVAL);
            let capabilities = Capabilities::probe(Capabilities::default()).unwrap();
            assert_eq!(try_out(&config, capabilities).unwrap(), Sandbox::On(vec![Lack::Rings]));
            let required = Config { sandbox: SandboxMode::Require, ..config };
            let refusal = try_out(&required, capabilities).unwrap_err().to_string();
            assert!(refusal.contains("--sandbox=require") && refusal.contains("io_uring"), "{refusal}");
            assert_eq!(refusal.lines().count(), 1);
        });
    }

    #[test]
    fn off_is_off() {
        let (folder, config) = places();
        let config = Config { sandbox: SandboxMode::Off, ..config };
        aside(|| {
            assert_eq!(enter(&config, Capabilities::default()).unwrap(), Sandbox::Off);
            fs::read(folder.path().join("secret")).unwrap();
        });
        let off = capabilities_off(Capabilities::default(), SandboxMode::Off);
        assert!(off.has(Capability::Restrictions));
    }

    #[test]
    fn it_is_not_entered_while_other_threads_run() {
        let (folder, config) = places();
        aside(|| {
            let error = enter(&config, Capabilities::default()).unwrap_err().to_string();
            assert!(error.contains("threads run already"), "{error}");
            fs::read(folder.path().join("secret")).unwrap();
        });
    }
}
