//! narinfo beside what it could cost at least: the same answer to whatever arrives, by a bare ring and by glommio.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;

use crate::Flags;
use crate::any_server::{AnyServer, BareProcess};
use crate::harness::fixture::Fixture;
use crate::harness::load::{Reading, Until, connect, fetch};
use crate::harness::report::median;
use crate::harness::server::{Kind, Server};

const CONNECTIONS: usize = 64;
/// narwire's goal: at most this much of the bare ring's CPU time.
const GOAL: f64 = 1.15;

/// One server's figures, by round.
#[derive(Default)]
struct Measured {
    cpu_us: Vec<f64>,
    requests_per_s: Vec<f64>,
}

pub fn report(flags: &Flags) -> anyhow::Result<String> {
    let fixture = Fixture::create(100, 1, 1)?;
    let request = &fixture.narinfos[..1];
    let narwire = Server::start(Kind::Narwire, &fixture, 1, "0")?;
    let response = whole_answer(narwire.address, &request[0])?;
    let file = fixture.site.root().join("response");
    fs::write(&file, &response)?;
    let ring = BareProcess::start("ring-echo", &file)?;
    let mut servers =
        vec![("bare ring echo", AnyServer::Bare(ring)), ("narwire, narinfo", AnyServer::Narwire(&narwire))];
    match BareProcess::start("glommio-echo", &file) {
        Ok(glommio) => servers.push(("glommio echo", AnyServer::Bare(glommio))),
        Err(error) => eprintln!("glommio is left out: {error:#}"),
    }
    let mut measured: Vec<_> = servers.iter().map(|_| Measured::default()).collect();
    let until = Until::Time { warm_up: flags.measured / 5, measured: flags.measured };
    for _ in 0..flags.rounds {
        for ((_, server), measured) in servers.iter().zip(&mut measured) {
            let outcome = server.load(CONNECTIONS, request, Reading::Copy, until)?;
            let requests = outcome.groups[0].requests as f64;
            measured.cpu_us.push(outcome.server.as_secs_f64() * 1e6 / requests);
            measured.requests_per_s.push(requests / outcome.elapsed.as_secs_f64());
        }
    }
    let mut text = format!(
        "narinfo, hot: CPU per request; {CONNECTIONS} connections, answers of {} B, medians of {} rounds of {:.1} s\n\
         Compared with the bare ring: one receive that goes on, one send per request, nothing parsed; goal: at most {GOAL}\n\n",
        response.len(),
        flags.rounds,
        flags.measured.as_secs_f64()
    );
    for ((name, ..), own) in servers.iter().zip(&measured) {
        let ratios: Vec<_> =
            own.cpu_us.iter().zip(&measured[0].cpu_us).map(|(own, bare)| own / bare).collect();
        writeln!(
            text,
            "{name:<20} {:>8.2} µs {:>6.2}x {:>9.0} req/s",
            median(&own.cpu_us),
            median(&ratios),
            median(&own.requests_per_s)
        )?;
    }
    Ok(text)
}

/// Head and body as they are sent.
fn whole_answer(address: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = connect(address)?;
    let body = fetch(&socket, request, 200)?;
    socket.write_all(request)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.ends_with(&body) {
        let len = socket.read(&mut buffer)?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&buffer[..len]);
    }
    Ok(answer)
}
