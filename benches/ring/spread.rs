//! How connections spread over two workers: narwire's shared listener with hand-over to the worker that has fewest, and
//! beside it a bare pair of `SO_REUSEPORT` listeners, where the kernel decides by a hash of the addresses.

use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::set_socket_reuseport;
use rustix::net::{AddressFamily, SocketType};

use crate::Flags;
use crate::harness::fixture::Fixture;
use crate::harness::load::fetch;
use crate::harness::server::{Kind, Server};

/// Connections that a client opens; 25 is Nix's `http-connections`.
const CONNECTIONS: [usize; 4] = [2, 4, 8, 25];
/// Requests by which a connection shows on whose CPU time it runs.
const REQUESTS: usize = 32;

#[derive(Clone, Copy)]
enum Opening {
    /// Each has had an answer before the next is opened.
    OneAfterAnother,
    AtOnce,
}

/// The section of the report.
pub fn report(flags: &Flags) -> anyhow::Result<String> {
    let trials = if flags.is_quick { 2 } else { 10 };
    let fixture = Fixture::create(100, 1, 1)?;
    let server = Server::start(Kind::Narwire, &fixture, 2, "0,1")?;
    let mut text = format!(
        "Connections on the fuller of 2 workers: mean and worst of {trials} trials (SO_REUSEPORT: of {})\n\n\
         {:>11}  {:>6}  {:>24}  {:>24}  {:>24}\n",
        100 * trials,
        "connections",
        "even",
        "narwire, one by one",
        "narwire, all at once",
        "SO_REUSEPORT pair"
    );
    for connections in CONNECTIONS {
        let mut cells = String::new();
        for opening in [Opening::OneAfterAnother, Opening::AtOnce] {
            let trial = || fuller_worker(&server, &fixture.missing[0], connections, opening);
            write!(cells, "  {:>24}", summary(&repeat(trials, trial)?))?;
        }
        let bare = repeat(100 * trials, || Ok(fuller_listener(connections)?))?;
        writeln!(text, "{connections:>11}  {:>6}{cells}  {:>24}", connections.div_ceil(2), summary(&bare))?;
    }
    Ok(text)
}

fn repeat(trials: usize, trial: impl Fn() -> anyhow::Result<usize>) -> anyhow::Result<Vec<usize>> {
    (0..trials).map(|_| trial()).collect()
}

fn summary(counts: &[usize]) -> String {
    let mean = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    format!("{mean:.2}, worst {}", counts.iter().max().unwrap_or(&0))
}

/// Opens connections to narwire, and finds for each the worker whose CPU time grows when it asks.
fn fuller_worker(
    server: &Server,
    request: &[u8],
    connections: usize,
    opening: Opening,
) -> anyhow::Result<usize> {
    let mut sockets = Vec::new();
    for _ in 0..connections {
        let socket = TcpStream::connect(server.address)?;
        socket.set_nodelay(true)?;
        if matches!(opening, Opening::OneAfterAnother) {
            fetch(&socket, request, 404)?;
        }
        sockets.push(socket);
    }
    let mut counts = [0, 0];
    for socket in &sockets {
        fetch(socket, request, 404)?;
        let before = server.thread_times_ns("worker-")?;
        for _ in 0..REQUESTS {
            fetch(socket, request, 404)?;
        }
        let after = server.thread_times_ns("worker-")?;
        anyhow::ensure!(before.len() == 2 && after.len() == 2, "narwire has not two threads named worker-…");
        counts[usize::from(after[1] - before[1] > after[0] - before[0])] += 1;
    }
    drop(sockets);
    // The next trial begins when the workers have seen the ends of these.
    thread::sleep(Duration::from_millis(200));
    Ok(counts[0].max(counts[1]))
}

/// Opens connections to two listeners at one port, and counts what each gets.
fn fuller_listener(connections: usize) -> io::Result<usize> {
    let first = reuseport_listener(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address = first.local_addr()?;
    let second = reuseport_listener(address)?;
    let sockets = (0..connections).map(|_| TcpStream::connect(address)).collect::<io::Result<Vec<_>>>()?;
    let count = |listener: &TcpListener| std::iter::from_fn(|| listener.accept().ok()).count();
    let (of_first, of_second) = (count(&first), count(&second));
    drop(sockets);
    assert_eq!(of_first + of_second, connections, "a connection got lost");
    Ok(of_first.max(of_second))
}

fn reuseport_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 128)?;
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}
