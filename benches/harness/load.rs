//! The clients: keep-alive connections on one thread, each with one request under way.

use std::cell::Cell;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{RecvFlags, SendFlags};
use rustix::time::{ClockId, Timespec};

/// Without any byte for this long, the server is taken for dead.
const STALL_TIMEOUT_S: u32 = 15;
/// What one call takes from a socket at most.
const READ_LEN_MAX: usize = 512 * 1024;
const HEAD_LEN_MAX: usize = 4096;

/// Connections that ask for the same things in the same way.
pub struct Group<'a> {
    pub connections: usize,
    /// Whole request heads, asked one after another, by whichever connection is free.
    pub requests: &'a [Vec<u8>],
    /// Requests asked so far: a later round goes on where the last one ended, so that all are asked in the end.
    pub asked: Cell<usize>,
    pub status: u16,
    pub reading: Reading,
}

impl<'a> Group<'a> {
    pub fn new(connections: usize, requests: &'a [Vec<u8>], status: u16, reading: Reading) -> Self {
        Self { connections, requests, asked: Cell::new(0), status, reading }
    }
}

/// What becomes of a body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Copied out of the kernel, as a client does.
    Copy,
    /// Thrown away inside the kernel (MSG_TRUNC), so that the server's side is what is measured.
    Discard,
}

/// When a load ends.
#[derive(Clone, Copy)]
pub enum Until {
    /// This long after a warm-up.
    Time { warm_up: Duration, measured: Duration },
    /// After so many requests, at the latest after so long.
    Requests(usize, Duration),
}

/// What a group saw.
#[derive(Clone, Default)]
pub struct Seen {
    pub requests: u64,
    /// Of bodies.
    pub bytes: u64,
    /// From a request to the first byte of its answer. Nanoseconds, sorted.
    pub waits_ns: Vec<u64>,
}

impl Seen {
    /// The wait that so many percent of the requests stay below. Microseconds.
    pub fn wait_us(&self, percent: usize) -> f64 {
        let index = self.waits_ns.len() * percent / 100;
        self.waits_ns.get(index).or(self.waits_ns.last()).map_or(0.0, |wait| *wait as f64 / 1e3)
    }
}

/// What all groups saw, and what it cost.
pub struct Outcome {
    pub groups: Vec<Seen>,
    pub elapsed: Duration,
    /// CPU time of the server.
    pub server: Duration,
    /// CPU time of this thread.
    pub generator: Duration,
}

struct Client {
    socket: TcpStream,
    group: usize,
    asked: Instant,
    phase: Phase,
}

enum Phase {
    Head(Vec<u8>),
    Body { left: u64 },
}

/// Runs the groups side by side against `address`; `server_time` reads the CPU time that the server has used.
pub fn run(
    address: SocketAddr,
    groups: &[Group<'_>],
    until: Until,
    server_time: &dyn Fn() -> io::Result<Duration>,
) -> io::Result<Outcome> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut clients = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        for _ in 0..group.connections {
            let socket = connect(address)?;
            socket.set_nonblocking(true)?;
            epoll::add(&epoll, &socket, EventData::new_u64(clients.len() as u64), EventFlags::IN)?;
            let phase = Phase::Head(Vec::new());
            clients.push(Client { socket, group: index, asked: Instant::now(), phase });
        }
    }
    let mut seen = vec![Seen::default(); groups.len()];
    let mut left = match until {
        Until::Time { .. } => usize::MAX,
        Until::Requests(requests, _) => requests,
    };
    let mut expected = 0u64;
    let (mut start, mut server, mut generator) = (Instant::now(), server_time()?, thread_time());
    for client in &mut clients {
        if left > 0 {
            left -= 1;
            expected += 1;
            client.ask(&groups[client.group])?;
        }
    }
    let (mut is_warm, limit) = match until {
        Until::Time { warm_up, measured } => (warm_up.is_zero(), warm_up + measured),
        Until::Requests(_, limit) => (true, limit),
    };
    let beginning = start;
    let mut events = Vec::with_capacity(256);
    let mut buffer = vec![0; READ_LEN_MAX];
    loop {
        let now = Instant::now();
        if now - beginning >= limit {
            break;
        }
        if let Until::Time { warm_up, .. } = until
            && !is_warm
            && now - beginning >= warm_up
        {
            is_warm = true;
            seen.fill(Seen::default());
            (start, server, generator) = (now, server_time()?, thread_time());
        }
        events.clear();
        let patience = Timespec { tv_sec: STALL_TIMEOUT_S.into(), tv_nsec: 0 };
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&patience))?;
        if events.is_empty() {
            return Err(io::Error::other(format!("{address} has sent nothing for {STALL_TIMEOUT_S} s")));
        }
        for event in &events {
            let client = &mut clients[usize::try_from(event.data.u64()).unwrap_or(usize::MAX)];
            let group = &groups[client.group];
            if client.read(group, &mut buffer, &mut seen[client.group])? {
                seen[client.group].requests += 1;
                if left > 0 {
                    left -= 1;
                    expected += 1;
                    client.ask(group)?;
                }
            }
        }
        if left == 0 && seen.iter().map(|seen| seen.requests).sum::<u64>() == expected {
            break;
        }
    }
    let outcome = Outcome {
        elapsed: start.elapsed(),
        server: server_time()?.saturating_sub(server),
        generator: thread_time().saturating_sub(generator),
        groups: seen,
    };
    drop(clients);
    Ok(sorted(outcome))
}

impl Client {
    fn ask(&mut self, group: &Group<'_>) -> io::Result<()> {
        let asked = group.asked.get();
        let request = &group.requests[asked % group.requests.len()];
        group.asked.set(asked + 1);
        self.asked = Instant::now();
        let sent = rustix::net::send(&self.socket, request, SendFlags::NOSIGNAL)?;
        if sent == request.len() { Ok(()) } else { Err(io::Error::other("a request was sent in part")) }
    }

    /// Takes what has come; true when the answer is complete.
    fn read(&mut self, group: &Group<'_>, buffer: &mut [u8], seen: &mut Seen) -> io::Result<bool> {
        match &mut self.phase {
            Phase::Head(head) => {
                // Little is read with a head, so that the body can be thrown away unread.
                let len = match group.reading {
                    Reading::Copy => buffer.len(),
                    Reading::Discard => HEAD_LEN_MAX,
                };
                let len = receive(&self.socket, &mut buffer[..len], RecvFlags::empty())?;
                if head.is_empty() {
                    seen.waits_ns.push(u64::try_from(self.asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
                }
                let piece = &buffer[..len];
                // Nearly always the head has come in one piece.
                let whole: &[u8] = if head.is_empty() {
                    piece
                } else {
                    head.extend_from_slice(piece);
                    head
                };
                let Some((head_len, body_len)) = parse_head(whole, group.status)? else {
                    if head.is_empty() {
                        head.extend_from_slice(piece);
                    }
                    return Ok(false);
                };
                let of_body = (whole.len() - head_len) as u64;
                seen.bytes += of_body;
                self.phase = Phase::Body { left: body_len - of_body };
            }
            Phase::Body { left } => {
                let flags = match group.reading {
                    Reading::Copy => RecvFlags::empty(),
                    Reading::Discard => RecvFlags::TRUNC,
                };
                let len = receive(&self.socket, buffer, flags)?;
                *left -= len as u64;
                seen.bytes += len as u64;
            }
        }
        let is_complete = matches!(self.phase, Phase::Body { left: 0 });
        if is_complete {
            self.phase = Phase::Head(Vec::new());
        }
        Ok(is_complete)
    }
}

/// Receives at least one byte.
fn receive(socket: &TcpStream, buffer: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
    match rustix::net::recv(socket, buffer, flags) {
        Ok((_, 0)) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok((_, len)) => Ok(len),
        Err(errno) => Err(errno.into()),
    }
}

/// The lengths of head and body, once the head has come.
fn parse_head(bytes: &[u8], status: u16) -> io::Result<Option<(usize, u64)>> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    let head_len = match response.parse(bytes).map_err(io::Error::other)? {
        httparse::Status::Complete(head_len) => head_len,
        httparse::Status::Partial => return Ok(None),
    };
    if response.code != Some(status) {
        return Err(io::Error::other(format!("status {:?} instead of {status}", response.code)));
    }
    let body_len = response
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("content-length"))
        .and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok())
        .ok_or_else(|| io::Error::other("an answer without Content-Length"))?;
    Ok(Some((head_len, body_len)))
}

fn sorted(mut outcome: Outcome) -> Outcome {
    for seen in &mut outcome.groups {
        seen.waits_ns.sort_unstable();
    }
    outcome
}

/// CPU time of the calling thread.
pub fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// A request head; `fields` are whole lines.
pub fn request(target: &str, fields: &str) -> Vec<u8> {
    format!(
        "GET /{target} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: curl/8.13.0 Nix/2.26.3\r\nAccept: */*\r\n\
         Accept-Encoding: zstd, br, gzip, deflate, bzip2, xz\r\n{fields}\r\n"
    )
    .into_bytes()
}

/// A connection that blocks, though not for ever.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(STALL_TIMEOUT_S.into())))?;
    Ok(socket)
}

/// Asks once and waits for the whole body. `socket` blocks.
pub fn fetch(socket: &TcpStream, request: &[u8], status: u16) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    fetch_into(socket, request, status, &mut body)?;
    Ok(body)
}

/// Asks once and writes the whole body to `sink`. `socket` blocks.
pub fn fetch_into(socket: &TcpStream, request: &[u8], status: u16, sink: &mut impl Write) -> io::Result<()> {
    rustix::net::send(socket, request, SendFlags::NOSIGNAL)?;
    let mut head = Vec::new();
    let mut buffer = vec![0; READ_LEN_MAX];
    let (head_len, body_len) = loop {
        let len = receive(socket, &mut buffer, RecvFlags::empty())?;
        head.extend_from_slice(&buffer[..len]);
        if let Some(lens) = parse_head(&head, status)? {
            break lens;
        }
    };
    sink.write_all(&head[head_len..])?;
    let mut left = body_len - (head.len() - head_len) as u64;
    while left > 0 {
        let len = receive(socket, &mut buffer, RecvFlags::empty())?;
        sink.write_all(&buffer[..len])?;
        left -= len as u64;
    }
    Ok(())
}
