//! Memory of fresh servers: at rest, with idle connections, with readers that hardly read.

use std::fmt::Write as _;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{RecvFlags, SendFlags};

use crate::flags::Flags;
use crate::harness::load::connect;
use crate::harness::server::{Kind, Server};
use crate::row::Results;
use crate::works::Works;

pub const IDLE: &str = "memory at rest";
pub const IDLE_CONNECTIONS: &str = "memory with idle connections";
pub const SLOW_LARGE: &str = "memory with slow readers of a large file";
pub const SLOW_MANY: &str = "memory with slow readers of 20,000 files";

const SERVERS: [Kind; 2] = [Kind::Narwire, Kind::Nginx];
/// A server that works less than this in such a time has done what it can for its clients.
const SETTLED_BELOW: Duration = Duration::from_millis(5);
const SETTLING_STEP: Duration = Duration::from_millis(200);
const SETTLING_TIMEOUT: Duration = Duration::from_secs(6);
/// How often a slow reader takes a little, and how much.
const SIPS: usize = 2;
const SIP_LEN: usize = 64 * 1024;
/// What the kernel keeps for a client: little, so that it is the server that waits.
const CLIENT_BUFFER_LEN: usize = 64 * 1024;

/// What a server and the kernel hold. KiB.
#[derive(Clone, Copy)]
struct Held {
    user: f64,
    sockets: Option<f64>,
}

/// Measures and writes the section.
pub fn measure(works: &Works, flags: &Flags, results: &mut Results) -> anyhow::Result<String> {
    let fixture = &works.fixture;
    let mut text = format!(
        "Memory: Pss of all processes. In brackets what their sockets' buffers hold, each: what sendfile queues is the\n\
         page cache's own and is counted too\n\n{:<54}",
        ""
    );
    for kind in SERVERS {
        write!(text, " {:>38}", kind.name())?;
    }
    let (idle, slow) = (flags.idle_connections, flags.slow_readers);
    let (narinfo, large, many) =
        (&fixture.narinfos[0], &fixture.large.request()[0], &fixture.many[0].request()[0]);
    for (row, request, connections, sips) in [
        (IDLE, narinfo, 1, 0),
        (IDLE_CONNECTIONS, narinfo, idle, 0),
        (SLOW_LARGE, large, slow, SIPS),
        (SLOW_MANY, many, slow, SIPS),
    ] {
        eprintln!("{row}");
        write!(text, "\n{:<54}", format!("{row} ({connections})"))?;
        for kind in SERVERS {
            let server = Server::start(kind, fixture, 1, "0")?;
            let held = hold(&server, narinfo, request, connections, sips);
            let [rest, with] = held.map_err(|error| server.explain(error))?;
            results.add(row, kind.name(), vec![with.user]);
            let each = |with: f64, rest: f64| (with - rest) / connections as f64;
            let sockets = match (with.sockets, rest.sockets) {
                (Some(with), Some(rest)) => format!("{:.1}", each(with, rest)),
                _ => "?".to_owned(),
            };
            let cell = if row == IDLE {
                format!("{:.1} MiB", with.user / 1024.0)
            } else {
                format!(
                    "{:.1} MiB = {:.1} KiB each [{sockets} KiB]",
                    with.user / 1024.0,
                    each(with.user, rest.user)
                )
            };
            write!(text, " {cell:>38}")?;
        }
    }
    text.push('\n');
    Ok(text)
}

/// Memory of the server after one narinfo, and then with connections that each have asked for something.
fn hold(
    server: &Server,
    narinfo: &[u8],
    request: &[u8],
    connections: usize,
    sips: usize,
) -> anyhow::Result<[Held; 2]> {
    let first = ask(server, narinfo)?;
    let rest = held(server)?;
    drop(first);
    let sockets = (0..connections).map(|_| ask(server, request)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut buffer = vec![0; SIP_LEN];
    for _ in 0..sips {
        settle(server)?;
        for socket in &sockets {
            // What has not come yet is not waited for: it is the server that is measured.
            let _ = rustix::net::recv(socket, &mut buffer, RecvFlags::DONTWAIT);
        }
    }
    let with = held(server)?;
    Ok([rest, with])
}

fn ask(server: &Server, request: &[u8]) -> anyhow::Result<TcpStream> {
    let socket = connect(server.address)?;
    set_socket_recv_buffer_size(&socket, CLIENT_BUFFER_LEN)?;
    rustix::net::send(&socket, request, SendFlags::NOSIGNAL)?;
    Ok(socket)
}

/// Waits until the server has nothing more to do.
fn settle(server: &Server) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut before = server.time()?;
    while start.elapsed() < SETTLING_TIMEOUT {
        thread::sleep(SETTLING_STEP);
        let now = server.time()?;
        if now.saturating_sub(before) < SETTLED_BELOW {
            break;
        }
        before = now;
    }
    Ok(())
}

fn held(server: &Server) -> anyhow::Result<Held> {
    settle(server)?;
    let sockets = server.socket_memory_kib().map(|kib| kib as f64);
    Ok(Held { user: server.memory_kib()? as f64, sockets })
}
