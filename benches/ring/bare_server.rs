//! Servers that do nothing but what cannot be left out, one for each way of doing it. Each is a process until it is ended.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::bail;
use rustix::fs::Advice;
use rustix::net::SendFlags;

use crate::bare_ring::{BareRing, Done, Parts};
use crate::glommio_echo;

const REQUEST_LEN_MAX: usize = 4096;
/// The tag of the listener; sockets have their descriptors' numbers.
const LISTENER: u32 = u32::MAX;

/// Serves until the process is ended. The address goes to standard output, one line.
pub fn serve(name: &str, of: &Path) -> anyhow::Result<()> {
    match name {
        "ring-echo" => Ok(ring_echo(fs::read(of)?)?),
        "glommio-echo" => glommio_echo::serve(fs::read(of)?),
        "sendfile" => Ok(one_by_one(of, SendFile)?),
        _ => match name.split_once('-') {
            Some(("copy", len)) => Ok(one_by_one(of, Copy { buffer: vec![0; len.parse()?] })?),
            Some(("ahead", len)) => {
                Ok(one_by_one(of, Ahead { ring: RingCopy::new(1)?, piece_len: len.parse()? })?)
            }
            Some(("ring", len)) => Ok(one_by_one(of, RingCopy::new(len.parse()?)?)?),
            _ => bail!("there is no bare server {name:?}"),
        },
    }
}

/// Tells who started this where it listens.
pub fn announce(address: impl std::fmt::Display) -> io::Result<()> {
    let mut output = io::stdout();
    writeln!(output, "{address}")?;
    output.flush()
}

/// One receive that goes on, and one send of the same bytes for whatever arrives.
fn ring_echo(response: Vec<u8>) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    announce(listener.local_addr()?)?;
    let len = response.len();
    let mut ring = BareRing::new(Parts {
        buffers: vec![response.into()],
        kernel_threads: 1,
        receives: true,
        ..Parts::default()
    })?;
    let mut sockets = HashMap::<u32, OwnedFd>::new();
    ring.accept(listener.as_fd(), LISTENER)?;
    loop {
        ring.wait()?;
        while let Some((tag, done)) = ring.next() {
            match done {
                Ok(Done::Accepted(socket)) => {
                    rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
                    let tag = std::os::fd::AsRawFd::as_raw_fd(&socket).cast_unsigned();
                    ring.receive(socket.as_fd(), tag)?;
                    sockets.insert(tag, socket);
                }
                Ok(Done::Received { len_bytes: 1.., armed: true }) => {
                    ring.send(sockets[&tag].as_fd(), (0, 0..len), 0, tag)?;
                }
                Ok(Done::Sent(_)) => {}
                // The client has gone, or the buffers have run out, for which there are too many.
                _ => drop(sockets.remove(&tag)),
            }
        }
    }
}

/// A way of sending a file behind a head.
trait Way {
    fn send(&mut self, socket: &TcpStream, file: &File, len: u64) -> io::Result<()>;
}

/// One connection at a time, and for each request the next file of a folder.
fn one_by_one(folder: &Path, mut way: impl Way) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let file = File::open(entry?.path())?;
        files.push((file.metadata()?.len(), file));
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    announce(listener.local_addr()?)?;
    let mut next = files.iter().cycle();
    let mut request = [0; REQUEST_LEN_MAX];
    for socket in listener.incoming() {
        let mut socket = socket?;
        socket.set_nodelay(true)?;
        // A client that goes away in the middle is how every round ends.
        while let (Ok(1..), Some((len, file))) = (socket.read(&mut request), next.next()) {
            if way.send(&socket, file, *len).is_err() {
                break;
            }
        }
    }
    Ok(())
}

fn head(len: u64) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/x-nix-nar\r\nContent-Length: {len:>20}\r\n\r\n")
}

/// sendfile(2), as much as it takes at once.
struct SendFile;

impl Way for SendFile {
    fn send(&mut self, socket: &TcpStream, file: &File, len: u64) -> io::Result<()> {
        rustix::net::send(socket, head(len).as_bytes(), SendFlags::MORE | SendFlags::NOSIGNAL)?;
        let mut offset = 0;
        while offset < len {
            let rest = usize::try_from(len - offset).unwrap_or(usize::MAX);
            if rustix::fs::sendfile(socket, file, Some(&mut offset), rest)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

/// read(2) into a buffer that is used again, and send(2).
struct Copy {
    buffer: Vec<u8>,
}

impl Way for Copy {
    fn send(&mut self, mut socket: &TcpStream, file: &File, len: u64) -> io::Result<()> {
        let head = head(len);
        self.buffer[..head.len()].copy_from_slice(head.as_bytes());
        let (mut filled, mut offset) = (head.len(), 0);
        while offset < len {
            let room = usize::try_from(len - offset).unwrap_or(usize::MAX).min(self.buffer.len() - filled);
            file.read_exact_at(&mut self.buffer[filled..filled + room], offset)?;
            socket.write_all(&self.buffer[..filled + room])?;
            offset += room as u64;
            filled = 0;
        }
        Ok(())
    }
}

/// The same by entries of a ring.
struct RingCopy {
    ring: BareRing,
    len_bytes: usize,
}

impl RingCopy {
    fn new(len_bytes: usize) -> io::Result<Self> {
        let buffers = vec![vec![0; len_bytes].into()];
        let ring = BareRing::new(Parts { buffers, kernel_threads: 1, ..Parts::default() })?;
        Ok(Self { ring, len_bytes })
    }

    /// Waits for the only entry under way.
    fn finish(&mut self) -> io::Result<usize> {
        loop {
            self.ring.wait()?;
            match self.ring.next() {
                Some((_, Ok(Done::Read(len) | Done::Sent(len)))) if len > 0 => return Ok(len),
                Some((_, Err(error))) => return Err(error),
                Some(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                None => {}
            }
        }
    }
}

impl Way for RingCopy {
    fn send(&mut self, socket: &TcpStream, file: &File, len: u64) -> io::Result<()> {
        let head = head(len);
        self.ring.fill(0, head.as_bytes());
        let (mut filled, mut offset) = (head.len(), 0);
        while offset < len {
            let room = usize::try_from(len - offset).unwrap_or(usize::MAX).min(self.len_bytes - filled);
            self.ring.read(file.as_fd(), offset, (0, filled..filled + room), 0)?;
            let read = self.finish()?;
            offset += read as u64;
            // The kernel goes on by itself until all is sent.
            self.ring.send(socket.as_fd(), (0, 0..filled + read), libc::MSG_WAITALL, 0)?;
            self.finish()?;
            filled = 0;
        }
        Ok(())
    }
}

/// Sendfile without waiting for a disk in it: what follows is asked for early, and a ring waits for the last byte of a piece.
struct Ahead {
    ring: RingCopy,
    piece_len: u64,
}

/// Pieces that the disk is asked for before the first of them is there.
const PIECES_AHEAD: u64 = 4;

impl Way for Ahead {
    fn send(&mut self, socket: &TcpStream, file: &File, len: u64) -> io::Result<()> {
        rustix::net::send(socket, head(len).as_bytes(), SendFlags::MORE | SendFlags::NOSIGNAL)?;
        let (mut offset, mut asked) = (0, 0);
        while offset < len {
            let end = len.min(offset + self.piece_len);
            while asked < len.min(offset + PIECES_AHEAD * self.piece_len) {
                rustix::fs::fadvise(
                    file,
                    asked,
                    std::num::NonZeroU64::new(self.piece_len),
                    Advice::WillNeed,
                )?;
                asked += self.piece_len;
            }
            self.ring.ring.read(file.as_fd(), end - 1, (0, 0..1), 0)?;
            self.ring.finish()?;
            while offset < end {
                let rest = usize::try_from(end - offset).unwrap_or(usize::MAX);
                if rustix::fs::sendfile(socket, file, Some(&mut offset), rest)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        Ok(())
    }
}
