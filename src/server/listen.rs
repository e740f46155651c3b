//! Binding: from addresses to listening sockets, or one line that says why not.
//!
//! Every listener is blocking: an io_uring accept on a socket with O_NONBLOCK completes with EAGAIN instead of waiting.

use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, ipproto, sockopt,
};

use super::config::{Config, ListenAddress};
use crate::limits::LISTEN_BACKLOG;

/// Who may connect to a unix socket: everybody who can reach its directory. Access is a matter of that directory's
/// mode, as with every other thing the cache serves in public.
const UNIX_SOCKET_MODE: u32 = 0o666;

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    /// Blocking, close-on-exec, listening.
    pub descriptor: OwnedFd,
    /// Where it listens in truth: port 0 has become the port that the kernel chose.
    pub address: ListenAddress,
}

impl Listener {
    /// Where to connect.
    pub fn url(&self) -> impl fmt::Display {
        match &self.address {
            ListenAddress::Tcp(address) => format!("http://{address}"),
            ListenAddress::Unix(path) => format!("unix:{}", path.display()),
        }
    }
}

/// Why a socket does not listen: the cause, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// EADDRINUSE.
    #[error(
        "{address} is in use by another process; find it with `ss -ltnp 'sport = :{port}'`, or choose another port"
    )]
    PortInUse {
        /// As configured.
        address: SocketAddr,
        /// Of `address`.
        port: u16,
    },
    /// Another process answers on the unix socket.
    #[error("{} is in use by another process; find it with `ss -lxp`, or choose another path", .0.display())]
    SocketInUse(PathBuf),
    /// Something that is no socket has this name.
    #[error("{} exists and is no socket; it is left alone: remove it or choose another path", .0.display())]
    NoSocket(PathBuf),
    /// EACCES or EPERM on TCP: a privileged port.
    #[error("no permission for {0}; choose a port from 1024 up, or grant CAP_NET_BIND_SERVICE")]
    Privileged(SocketAddr),
    /// EADDRNOTAVAIL.
    #[error("no interface of this machine has the address of {0}")]
    NoSuchAddress(SocketAddr),
    /// Anything else that the kernel says.
    #[error("cannot listen on {address}: {source}")]
    System {
        /// As configured.
        address: ListenAddress,
        /// From socket(2), bind(2), listen(2) or chmod(2).
        source: io::Error,
    },
    /// What systemd handed over cannot be served.
    #[error("inherited descriptor number {index} cannot be served: {cause}")]
    Inherited {
        /// Counted from 0 in the order of LISTEN_FDS.
        index: usize,
        /// In words.
        cause: String,
    },
}

/// Binds every address, or takes the sockets that systemd handed over (LISTEN_FDS) in the place of all of them.
///
/// To be called before the first thread starts: taking the sockets changes the process's environment.
pub fn bind_all(config: &Config) -> Result<Vec<Listener>, ListenError> {
    let inherited = inherited(&mut ListenFd::from_env())?;
    if !inherited.is_empty() {
        return Ok(inherited);
    }
    config.listen.iter().map(|address| bind(address, &config.listen)).collect()
}

fn bind(address: &ListenAddress, all: &[ListenAddress]) -> Result<Listener, ListenError> {
    match address {
        ListenAddress::Tcp(tcp) => bind_tcp(*tcp, all),
        ListenAddress::Unix(path) => bind_unix(path),
    }
}

fn bind_tcp(address: SocketAddr, all: &[ListenAddress]) -> Result<Listener, ListenError> {
    // `[::]` takes IPv4 as well, unless somebody listens to IPv4 at that port by name.
    let v4_everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    let v6_only = all.contains(&ListenAddress::Tcp(v4_everywhere));
    match listening_tcp_socket(address, v6_only) {
        Ok(descriptor) => adopt(descriptor).map_err(|error| system(ListenAddress::Tcp(address), error)),
        // A kernel without IPv6 still has all of its own addresses: the IPv4 ones.
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) if is_v6_everywhere(address) && !v6_only => {
            bind_tcp(v4_everywhere, all)
        }
        Err(Errno::ADDRINUSE) => Err(ListenError::PortInUse { address, port: address.port() }),
        Err(Errno::ACCESS | Errno::PERM) => Err(ListenError::Privileged(address)),
        Err(Errno::ADDRNOTAVAIL) => Err(ListenError::NoSuchAddress(address)),
        Err(error) => Err(system(ListenAddress::Tcp(address), error)),
    }
}

fn is_v6_everywhere(address: SocketAddr) -> bool {
    address.ip() == Ipv6Addr::UNSPECIFIED
}

fn listening_tcp_socket(address: SocketAddr, v6_only: bool) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let descriptor = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    // Connections of the last run that linger in TIME_WAIT must not keep the port from the next one.
    sockopt::set_socket_reuseaddr(&descriptor, true)?;
    if address.is_ipv6() {
        // The default is a sysctl of the machine; what was asked for must not depend on it.
        sockopt::set_ipv6_v6only(&descriptor, v6_only)?;
    }
    net::bind(&descriptor, &address)?;
    net::listen(&descriptor, LISTEN_BACKLOG)?;
    Ok(descriptor)
}

fn bind_unix(path: &Path) -> Result<Listener, ListenError> {
    let address = ListenAddress::Unix(path.to_path_buf());
    let failed = |error: Errno| system(address.clone(), error);
    let name = SocketAddrUnix::new(path).map_err(failed)?;
    remove_stale_socket(path, &name)?;
    let descriptor = unix_socket(SocketFlags::empty()).map_err(failed)?;
    net::bind(&descriptor, &name).map_err(|error| match error {
        Errno::ADDRINUSE => ListenError::SocketInUse(path.to_path_buf()),
        other => failed(other),
    })?;
    fs::set_permissions(path, fs::Permissions::from_mode(UNIX_SOCKET_MODE))
        .map_err(|source| ListenError::System { address: address.clone(), source })?;
    net::listen(&descriptor, LISTEN_BACKLOG).map_err(failed)?;
    Ok(Listener { descriptor, address })
}

/// The file of a unix socket outlives its process. One that nobody answers is removed; one that somebody answers, and
/// any other kind of file, is not.
fn remove_stale_socket(path: &Path, name: &SocketAddrUnix) -> Result<(), ListenError> {
    let failed =
        |source: io::Error| ListenError::System { address: ListenAddress::Unix(path.to_path_buf()), source };
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(ListenError::NoSocket(path.to_path_buf())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    // Not blocking: a listener whose backlog is full is alive, and says so with EAGAIN.
    let probe = unix_socket(SocketFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
    match net::connect(&probe, name) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(failed),
        Ok(()) | Err(Errno::AGAIN) => Err(ListenError::SocketInUse(path.to_path_buf())),
        Err(error) => Err(failed(error.into())),
    }
}

fn unix_socket(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | flags, None)
}

fn inherited(descriptors: &mut ListenFd) -> Result<Vec<Listener>, ListenError> {
    (0..descriptors.len())
        .map(|index| {
            let refused = |cause: String| ListenError::Inherited { index, cause };
            let descriptor =
                take_stream_socket(descriptors, index).map_err(|error| refused(error.to_string()))?;
            let descriptor = descriptor.ok_or_else(|| refused("it was taken before".to_owned()))?;
            match sockopt::socket_acceptconn(&descriptor) {
                Ok(true) => adopt(descriptor).map_err(|error| refused(error.to_string())),
                Ok(false) => Err(refused("it does not listen; use Accept=no in the socket unit".to_owned())),
                Err(error) => Err(refused(error.to_string())),
            }
        })
        .collect()
}

fn take_stream_socket(descriptors: &mut ListenFd, index: usize) -> io::Result<Option<OwnedFd>> {
    match descriptors.take_tcp_listener(index) {
        Ok(listener) => Ok(listener.map(OwnedFd::from)),
        Err(_) => Ok(descriptors.take_unix_listener(index)?.map(OwnedFd::from)),
    }
}

/// Makes a listening descriptor blocking, and asks the kernel where it listens.
fn adopt(descriptor: OwnedFd) -> Result<Listener, Errno> {
    let flags = rustix::fs::fcntl_getfl(&descriptor)?;
    rustix::fs::fcntl_setfl(&descriptor, flags - OFlags::NONBLOCK)?;
    let name = net::getsockname(&descriptor)?;
    let address = match SocketAddr::try_from(name.clone()) {
        Ok(address) => ListenAddress::Tcp(address),
        Err(_) => ListenAddress::Unix(unix_path(&name)),
    };
    Ok(Listener { descriptor, address })
}

/// The path of a unix socket's name; `@…` for one in the abstract namespace, as `ss` shows it.
fn unix_path(name: &SocketAddrAny) -> PathBuf {
    let Ok(name) = SocketAddrUnix::try_from(name.clone()) else { return PathBuf::new() };
    if let Some(path) = name.path() {
        return PathBuf::from(path.to_string_lossy().into_owned());
    }
    let abstract_name = name.abstract_name().unwrap_or_default();
    PathBuf::from(format!("@{}", String::from_utf8_lossy(abstract_name)))
}

fn system(address: ListenAddress, error: Errno) -> ListenError {
    ListenError::System { address, source: error.into() }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpStream;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn tcp(text: &str) -> ListenAddress {
        text.parse().unwrap()
    }

    fn bind_one(address: &ListenAddress) -> Result<Listener, ListenError> {
        bind(address, std::slice::from_ref(address))
    }

    fn port(listener: &Listener) -> u16 {
        match &listener.address {
            ListenAddress::Tcp(address) => address.port(),
            ListenAddress::Unix(path) => panic!("{} is no TCP address", path.display()),
        }
    }

    #[test]
    fn port_zero_becomes_the_port_that_answers() {
        let listener = bind_one(&tcp("127.0.0.1:0")).unwrap();
        assert_ne!(port(&listener), 0);
        TcpStream::connect(("127.0.0.1", port(&listener))).unwrap();
        assert_eq!(listener.url().to_string(), format!("http://127.0.0.1:{}", port(&listener)));
    }

    #[test]
    fn a_listener_blocks_and_is_not_inherited_by_children() {
        let listener = bind_one(&tcp("127.0.0.1:0")).unwrap();
        assert!(!rustix::fs::fcntl_getfl(&listener.descriptor).unwrap().contains(OFlags::NONBLOCK));
        let flags = rustix::io::fcntl_getfd(&listener.descriptor).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn everywhere_answers_on_ipv4() {
        let listener = bind_one(&ListenAddress::everywhere(0)).unwrap();
        TcpStream::connect(("127.0.0.1", port(&listener))).unwrap();
    }

    #[test]
    fn both_families_can_be_named_at_one_port() {
        let first = bind_one(&tcp("0.0.0.0:0")).unwrap();
        let all = [first.address.clone(), ListenAddress::everywhere(port(&first))];
        match bind(&all[1], &all) {
            Ok(second) => assert_eq!(port(&second), port(&first)),
            // A machine without IPv6 cannot do what was asked for, and must not pretend.
            Err(error) => {
                assert!(matches!(error, ListenError::System { .. } | ListenError::NoSuchAddress(_)));
            }
        }
    }

    #[test]
    fn a_port_in_use_is_named_with_the_way_to_its_owner() {
        let first = bind_one(&tcp("127.0.0.1:0")).unwrap();
        let line = bind_one(&first.address).unwrap_err().to_string();
        assert!(line.contains(&format!("127.0.0.1:{}", port(&first))), "{line}");
        assert!(line.contains(&format!("ss -ltnp 'sport = :{}'", port(&first))), "{line}");
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        // 192.0.2.0/24 is for documentation (RFC 5737): no interface has it.
        let error = bind_one(&tcp("192.0.2.1:0")).unwrap_err();
        assert!(matches!(error, ListenError::NoSuchAddress(_)), "{error}");
    }

    #[test]
    fn a_unix_socket_is_for_everybody_and_replaces_only_a_stale_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let address = ListenAddress::Unix(path.clone());

        let listener = bind_one(&address).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, UNIX_SOCKET_MODE);
        assert!(matches!(bind_one(&address).unwrap_err(), ListenError::SocketInUse(_)));

        drop(listener);
        assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        bind_one(&address).unwrap();
    }

    #[test]
    fn a_file_in_the_place_of_a_unix_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "data").unwrap();
        let error = bind_one(&ListenAddress::Unix(path.clone())).unwrap_err();
        assert!(matches!(error, ListenError::NoSocket(_)), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_an_error() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        assert!(matches!(bind_one(&ListenAddress::Unix(path)), Err(ListenError::System { .. })));
    }

    #[test]
    fn an_adopted_socket_becomes_blocking_and_knows_its_address() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let unix = UnixListener::bind(&path).unwrap();
        unix.set_nonblocking(true).unwrap();
        let listener = adopt(unix.into()).unwrap();
        assert!(!rustix::fs::fcntl_getfl(&listener.descriptor).unwrap().contains(OFlags::NONBLOCK));
        assert_eq!(listener.address, ListenAddress::Unix(path));
    }

    #[test]
    fn without_systemd_nothing_is_inherited() {
        assert!(inherited(&mut ListenFd::empty()).unwrap().is_empty());
    }
}
