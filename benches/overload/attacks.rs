//! The hostile loads, one after another, each on a fresh server.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use rustix::net::{RecvFlags, SendFlags};

use crate::harness::load::{connect, fetch, request};
use crate::harness::process;
use crate::harness::server::{Kind, Server};
use crate::harness::site::{Site, narinfo_requests, narinfo_target};
use crate::harness::trees;
use crate::probe::{Probe, failed, wait_ms};

/// How long a load goes on once it stands.
const HELD: Duration = Duration::from_secs(5);
/// How long is looked before it, for comparison.
const IDLE: Duration = Duration::from_secs(3);
/// The steps in which is looked when all is as before, and how long that may take.
const WINDOW: Duration = Duration::from_millis(250);
const RECOVERY_MAX: Duration = Duration::from_secs(30);
/// All is as before when the p99 of a window is no more than so many times that of the idle server.
const RECOVERED_RATIO: f64 = 2.0;
/// What a slow reader's kernel keeps for it: little, so that it is the server that waits.
const READER_BUFFER_LEN: usize = 32 * 1024;
const NAR_LEN: u64 = 1 << 30;
const IDLE_CONNECTIONS: usize = 10_000;
const READERS: usize = 5_000;
const DRIPPING: usize = 5_000;
const PIPELINED: usize = 100_000;
const PIPELINES: usize = 50;
/// Beyond the 15,000 that a server with 20,000 descriptors takes.
const SILENT: usize = 18_000;

/// What all loads need.
struct Field {
    address: SocketAddr,
    narinfo: Vec<u8>,
    nar: Vec<u8>,
    /// Targets of which each answer is made in another way.
    mixed: Vec<Vec<u8>>,
}

/// A load: stands it up, and returns what goes on then, a step at a time.
type Attack = fn(&Field) -> anyhow::Result<Box<dyn FnMut()>>;

const ATTACKS: [(&str, Attack); 7] = [
    ("10,000 idle connections", idle),
    ("5,000 readers at 1 KB/s", readers),
    ("5,000 dripping heads", dripping),
    ("50 x 100,000 pipelined narinfos", pipelined),
    ("50 x 100,000 pipelined, all kinds", pipelined_mixed),
    ("connect and close", connect_and_close),
    ("18,000 say nothing, 15,000 places", silent),
];

/// Memory. MiB.
#[derive(Clone, Copy, Default)]
struct Held {
    user: f64,
    /// Buffers of the server's sockets, and what all sockets of the machine take.
    sockets: f64,
    machine: f64,
}

impl Held {
    fn now(server: &Server) -> anyhow::Result<Self> {
        let sockstat = fs::read_to_string("/proc/net/sockstat")?;
        let pages = sockstat.lines().find_map(|line| line.strip_prefix("TCP:")).and_then(|line| {
            let mut words = line.split_whitespace().skip_while(|word| *word != "mem");
            words.nth(1)?.parse::<f64>().ok()
        });
        Ok(Self {
            user: server.memory_kib()? as f64 / 1024.0,
            sockets: server.socket_memory_kib().unwrap_or(0) as f64 / 1024.0,
            machine: pages.unwrap_or(f64::NAN) / 256.0,
        })
    }
}

/// Runs those whose names contain `only`; the report.
pub fn measure(only: &str) -> anyhow::Result<String> {
    let site = Site::create()?;
    let paths = site.add_paths(0..100)?;
    let large = site.add_tree("large", 1, |path| trees::write_sparse(path, NAR_LEN))?;
    let mut text = format!(
        "\nHostile loads, {} s each. Memory in MiB: of the server (Pss) before, during and after; of its sockets (ss), and of all\n\
         sockets of the machine (sockstat, before and during). A well-behaved client asks for a narinfo each millisecond: waits in\n\
         ms, requests without an answer. The last column: seconds until the p99 of {} ms is within {RECOVERED_RATIO} x the idle one.\n\n\
         {:<36} {:>21} {:>8} {:>13} {:>15} {:>15} {:>7} {:>13} {:>6}\n",
        HELD.as_secs(),
        WINDOW.as_millis(),
        "",
        "server",
        "sockets",
        "machine",
        "idle p50  p99",
        "hostile p50 p99",
        "ratio",
        "failed of",
        "back",
    );
    for (name, attack) in ATTACKS.iter().filter(|(name, _)| name.contains(only)) {
        eprintln!("{name}");
        let server = Server::start(Kind::Narwire, &site, 1, "0")?;
        let line = one(&server, &paths, &large[0], *attack).map_err(|error| server.explain(error))?;
        writeln!(text, "{name:<36} {line}")?;
    }
    if only.is_empty() {
        text += &ticks(&site)?;
    }
    Ok(text)
}

/// What a worker does each second for connections that want nothing.
fn ticks(site: &Site) -> anyhow::Result<String> {
    let server = Server::start(Kind::Narwire, site, 1, "0")?;
    let worker_ns = || server.thread_times_ns("worker").map(|times| times.iter().sum::<u64>());
    let each_s = || -> anyhow::Result<f64> {
        thread::sleep(Duration::from_secs(1));
        let before = worker_ns()?;
        thread::sleep(HELD);
        Ok((worker_ns()? - before) as f64 / 1e3 / HELD.as_secs_f64())
    };
    let alone = each_s()?;
    let sockets = (0..IDLE_CONNECTIONS).map(|_| connect(server.address));
    let sockets = sockets.collect::<std::io::Result<Vec<_>>>()?;
    let with = each_s()?;
    drop(sockets);
    Ok(format!(
        "\nCPU of a worker that nobody asks: {alone:.0} us a second, with {IDLE_CONNECTIONS} connections {with:.0}\n"
    ))
}

fn one(
    server: &Server,
    paths: &[narwire::codec::store_path::StorePath],
    large: &crate::harness::site::Nar,
    attack: Attack,
) -> anyhow::Result<String> {
    let narinfos = narinfo_requests(paths);
    let field = Field {
        address: server.address,
        narinfo: narinfos[0].clone(),
        nar: large.request()[0].clone(),
        mixed: vec![
            narinfos[1].clone(),
            request(&format!("{}.ls", large.path.hash_part()), ""),
            request("00000000000000000000000000000000.narinfo", ""),
            request("nowhere", ""),
            String::from_utf8_lossy(&narinfos[2]).replacen("GET", "HEAD", 1).into_bytes(),
            request(&narinfo_target(&paths[3]), "If-None-Match: \"x\"\r\n"),
            large.request()[0].clone(),
        ],
    };
    // What is asked for is known before.
    let first = connect(server.address)?;
    for narinfo in &narinfos {
        fetch(&first, narinfo, 200)?;
    }
    drop(first);
    process::pin(2)?;
    let probe = Probe::start(server.address, narinfos[0].clone());
    let before = Held::now(server)?;
    let start = Instant::now();
    thread::sleep(IDLE);
    let idle = probe.between(start, Instant::now());
    let begin = Instant::now();
    let mut during = Held::default();
    {
        let mut step = attack(&field)?;
        let stands = Instant::now();
        let mut looked = Instant::now();
        while stands.elapsed() < HELD {
            step();
            if looked.elapsed() > Duration::from_secs(1) {
                looked = Instant::now();
                let now = Held::now(server)?;
                during.user = during.user.max(now.user);
                during.sockets = during.sockets.max(now.sockets);
                during.machine = during.machine.max(now.machine);
            }
        }
    }
    let end = Instant::now();
    let hostile = probe.between(begin, end);
    let idle_p99 = wait_ms(&idle, 99);
    let mut back = None;
    let mut window = end;
    while back.is_none() && end.elapsed() < RECOVERY_MAX {
        thread::sleep(WINDOW);
        let samples = probe.between(window, Instant::now());
        let is_back = samples.len() > 10
            && failed(&samples) == 0
            && wait_ms(&samples, 99) <= RECOVERED_RATIO * idle_p99;
        back = is_back.then(|| window - end);
        window = Instant::now();
    }
    let after = Held::now(server)?;
    let hostile_p99 = wait_ms(&hostile, 99);
    Ok(format!(
        "{:>6.1} {:>6.1} {:>6.1}  {:>7.1} {:>6.0} {:>6.0} {:>8.2} {:>6.2} {:>8.2} {:>6.2} {:>7.1} {:>5} {:>7} {:>6}",
        before.user,
        during.user,
        after.user,
        during.sockets,
        before.machine,
        during.machine,
        wait_ms(&idle, 50),
        idle_p99,
        wait_ms(&hostile, 50),
        hostile_p99,
        hostile_p99 / idle_p99,
        failed(&hostile),
        hostile.len(),
        back.map_or("never".to_owned(), |back| format!("{:.2}", back.as_secs_f64())),
    ))
}

fn open(field: &Field, buffer_len: usize) -> anyhow::Result<TcpStream> {
    let socket = connect(field.address)?;
    set_socket_recv_buffer_size(&socket, buffer_len)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn send(socket: &TcpStream, bytes: &[u8]) {
    let _ = rustix::net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

fn idle(field: &Field) -> anyhow::Result<Box<dyn FnMut()>> {
    let sockets = (0..IDLE_CONNECTIONS).map(|_| {
        let socket = connect(field.address)?;
        fetch(&socket, &field.narinfo, 200)?;
        Ok(socket)
    });
    let sockets = sockets.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Box::new(move || {
        let _ = &sockets;
        thread::sleep(Duration::from_millis(100));
    }))
}

fn readers(field: &Field) -> anyhow::Result<Box<dyn FnMut()>> {
    let sockets = (0..READERS).map(|_| {
        let socket = open(field, READER_BUFFER_LEN)?;
        send(&socket, &field.nar);
        Ok(socket)
    });
    let sockets = sockets.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Box::new(move || {
        let start = Instant::now();
        let mut buffer = [0; 1024];
        for socket in &sockets {
            let _ = rustix::net::recv(socket, &mut buffer, RecvFlags::DONTWAIT);
        }
        thread::sleep(Duration::from_secs(1).saturating_sub(start.elapsed()));
    }))
}

fn dripping(field: &Field) -> anyhow::Result<Box<dyn FnMut()>> {
    let sockets = (0..DRIPPING).map(|_| {
        let socket = open(field, READER_BUFFER_LEN)?;
        send(&socket, b"GET /nix-cache-info HTTP/1.1\r\nX: ");
        Ok(socket)
    });
    let sockets = sockets.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Box::new(move || {
        for socket in &sockets {
            send(socket, b"x");
        }
        thread::sleep(Duration::from_millis(200));
    }))
}

/// Says on each connection as much of these as it takes, and reads nothing.
fn pipelines(field: &Field, requests: &[u8]) -> anyhow::Result<Box<dyn FnMut()>> {
    let (len, requests) = (requests.len(), requests.to_vec());
    let sockets = (0..PIPELINES).map(|_| Ok((open(field, READER_BUFFER_LEN)?, 0)));
    let mut sockets = sockets.collect::<anyhow::Result<Vec<(TcpStream, usize)>>>()?;
    Ok(Box::new(move || {
        for (socket, said) in &mut sockets {
            if let Ok(sent) = socket.write(&requests[*said..len.min(*said + (1 << 16))]) {
                *said += sent;
            }
        }
        thread::sleep(Duration::from_millis(1));
    }))
}

fn pipelined(field: &Field) -> anyhow::Result<Box<dyn FnMut()>> {
    pipelines(field, &field.narinfo.repeat(PIPELINED))
}

fn pipelined_mixed(field: &Field) -> anyhow::Result<Box<dyn FnMut()>> {
    pipelines(field, &field.mixed.concat().repeat(PIPELINED / field.mixed.len()))
}

fn connect_and_close(field: &Field) -> anyhow::Result<Box<dyn FnMut()>> {
    // Whether there is anybody.
    drop(TcpStream::connect(field.address)?);
    let (address, narinfo) = (field.address, field.narinfo.clone());
    Ok(Box::new(move || {
        for number in 0..64 {
            let Ok(socket) = TcpStream::connect(address) else { return };
            // Half of them ask for something first. A reset leaves no port waiting.
            if number % 2 == 0 {
                send(&socket, &narinfo);
            }
            let _ = set_socket_linger(&socket, Some(Duration::ZERO));
        }
    }))
}

fn silent(field: &Field) -> anyhow::Result<Box<dyn FnMut()>> {
    let sockets = (0..SILENT).map(|_| Ok(TcpStream::connect(field.address)?));
    let mut sockets = sockets.collect::<anyhow::Result<Vec<_>>>()?;
    let address = field.address;
    let mut oldest = 0;
    // Who was sent away comes again.
    Ok(Box::new(move || {
        for _ in 0..64 {
            let index = oldest % SILENT;
            oldest += 1;
            if let Ok((_, 0)) = rustix::net::recv(&sockets[index], &mut [0; 1], RecvFlags::DONTWAIT)
                && let Ok(socket) = TcpStream::connect(address)
            {
                sockets[index] = socket;
            }
        }
        thread::sleep(Duration::from_millis(1));
    }))
}
