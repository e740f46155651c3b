//! Narinfos, as paths are registered.

use std::time::Duration;

use crate::curves::{Axes, Curves};
use crate::harness::load::{self, Group, Outcome, Reading, Until};
use crate::harness::report::median;
use crate::harness::server::{Kind, Server};
use crate::harness::site::{Site, narinfo_requests};

const CPU: Axes =
    Axes { title: "narinfo: server CPU per request", across: "paths in the database", unit: "µs" };
const MEMORY: Axes = Axes {
    title: "server memory after all narinfos were sent",
    across: "paths in the database",
    unit: "MiB",
};
const CONNECTIONS: usize = 64;
/// Those that are asked for more often than the others.
const HOT_PATHS: usize = 1000;
const ROUNDS: usize = 3;
/// For asking for each once.
const PASS_TIMEOUT: Duration = Duration::from_secs(90);
const TIMED: Until =
    Until::Time { warm_up: Duration::from_millis(200), measured: Duration::from_millis(800) };

/// The same site grows; each size has a fresh server.
pub fn measure(largest: usize, curves: &mut Curves) -> anyhow::Result<()> {
    let site = Site::create()?;
    let mut requests = Vec::new();
    for size in [1_000, 10_000, 100_000, 1_000_000].into_iter().filter(|size| *size <= largest) {
        requests.extend(narinfo_requests(&site.add_paths(requests.len()..size)?));
        let server = Server::start(Kind::Narwire, &site, 1, "0")?;
        let all = group(&requests);
        curves.add(CPU, "first time", size, ask(&server, &all, Until::Requests(size, PASS_TIMEOUT))?);
        let memory = server.memory_kib()? as f64 / 1024.0;
        // Each round goes on where the one before it ended: what was asked for longest ago is asked for next.
        for (series, group) in
            [("again in turn", &all), ("again 1000 of them", &group(&requests[..HOT_PATHS]))]
        {
            let rounds =
                (0..ROUNDS).map(|_| ask(&server, group, TIMED)).collect::<anyhow::Result<Vec<_>>>()?;
            curves.add(CPU, series, size, median(&rounds));
        }
        curves.add(MEMORY, Kind::Narwire.name(), size, memory);
    }
    Ok(())
}

fn group(requests: &[Vec<u8>]) -> [Group<'_>; 1] {
    [Group::new(CONNECTIONS, requests, 200, Reading::Copy)]
}

/// Server CPU per request. Microseconds.
fn ask(server: &Server, groups: &[Group<'_>], until: Until) -> anyhow::Result<f64> {
    let outcome = load::run(server.address, groups, until, &|| server.time());
    Ok(cpu_us(&outcome.map_err(|error| server.explain(error.into()))?))
}

/// Microseconds per request.
pub fn cpu_us(outcome: &Outcome) -> f64 {
    outcome.server.as_secs_f64() * 1e6 / outcome.groups[0].requests as f64
}
