//! The few system calls that are made at once and not through the ring. None of them waits for a peer or a disk.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use socket2::SockRef;

use super::op::{FileKind, FileStatus};
use crate::limits::UNSENT_LEN_MAX;

/// What `fstat` says of an open file.
pub fn status(file: BorrowedFd<'_>) -> Result<FileStatus, Errno> {
    let stat = rustix::fs::fstat(file)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        _ => FileKind::Other,
    };
    Ok(FileStatus {
        kind,
        len_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        inode: stat.st_ino,
        modified_s: stat.st_mtime,
        modified_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        changed_s: stat.st_ctime,
        changed_ns: u32::try_from(stat.st_ctime_nsec).unwrap_or(0),
    })
}

/// Tells the peer that nothing more follows.
pub fn shutdown_write(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::net::shutdown(socket, rustix::net::Shutdown::Write)
}

/// Makes close send a reset instead of an orderly end (socket(7), `SO_LINGER` with a time of zero).
pub fn reset_on_close(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO))
}

/// Sends small answers at once (Nagle's algorithm delays the second of two by a round trip). No-op on unix sockets.
pub fn no_delay(socket: BorrowedFd<'_>) {
    // A unix socket refuses, which is as good: it never delays.
    let _ = rustix::net::sockopt::set_tcp_nodelay(socket, true);
}

/// Lets the kernel take no more than [`UNSENT_LEN_MAX`] beyond what is on its way to the peer (tcp(7), `TCP_NOTSENT_LOWAT`): a peer that
/// stops reading holds that much, and not megabytes, of what all sockets of the machine share. No-op on unix sockets.
pub fn bound_unsent(socket: BorrowedFd<'_>) {
    let _unix_sockets_refuse = SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_LEN_MAX);
}

/// Takes back what [`bound_unsent`] has said.
pub fn exempt(socket: BorrowedFd<'_>) {
    // Zero is what the machine has for all sockets, which is no bound.
    let _unix_sockets_refuse = SockRef::from(&socket).set_tcp_notsent_lowat(0);
}

/// Says something to a peer that is not listened to. What it has said already is read and dropped, as far as it would be a short request:
/// closing on unread bytes is a reset, which can take the answer with it.
pub fn turn_away(socket: BorrowedFd<'_>, answer: &[u8]) {
    use rustix::net::{RecvFlags, SendFlags, recv, send};
    // A new socket has room for it; who has gone does not mind.
    let _ = send(socket, answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    let _ = recv(socket, &mut [0; 4096], RecvFlags::DONTWAIT);
}

/// The address of a socket's peer: `None` on a unix socket, an error when the connection has gone. An IPv4 peer of an IPv6 socket
/// has its IPv4 address.
pub fn peer_address(socket: BorrowedFd<'_>) -> Result<Option<IpAddr>, Errno> {
    let address = rustix::net::getpeername(socket)?;
    let address = address.and_then(|address| SocketAddr::try_from(address).ok());
    Ok(address.map(|address| address.ip().to_canonical()))
}

/// Raises a limit as far as this process may, and says what it is then; none is no limit.
pub fn raise_limit(resource: Resource) -> Option<u64> {
    let limit = rustix::process::getrlimit(resource);
    // What is refused here shows in what is in force afterwards.
    let _ = rustix::process::setrlimit(resource, Rlimit { current: limit.maximum, ..limit });
    rustix::process::getrlimit(resource).current
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn status_tells_files_from_directories() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(status(file.as_fd()).unwrap().kind, FileKind::Regular);
        let directory = std::fs::File::open("/").unwrap();
        assert_eq!(status(directory.as_fd()).unwrap().kind, FileKind::Directory);
    }

    #[test]
    fn accepted_sockets_have_the_bound_of_their_listener_until_they_are_exempt() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        bound_unsent(listener.as_fd());
        let _peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        assert_eq!(SockRef::from(&socket).tcp_notsent_lowat().unwrap(), UNSENT_LEN_MAX);
        exempt(socket.as_fd());
        assert_eq!(SockRef::from(&socket).tcp_notsent_lowat().unwrap(), 0);
        assert_eq!(SockRef::from(&listener).tcp_notsent_lowat().unwrap(), UNSENT_LEN_MAX);
    }

    #[test]
    fn who_has_gone_is_not_taken_for_a_peer_on_this_machine() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        assert_eq!(peer_address(socket.as_fd()), Ok(Some("127.0.0.1".parse().unwrap())));
        reset_on_close(peer.as_fd()).unwrap();
        drop(peer);
        // Returns when the reset has come.
        std::io::Read::read(&mut socket, &mut [0]).unwrap_err();
        assert_eq!(peer_address(socket.as_fd()), Err(Errno::NOTCONN));

        let (local, other) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(other);
        assert_eq!(peer_address(local.as_fd()), Ok(None));
    }
}
