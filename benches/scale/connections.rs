//! A narinfo, as connections ask for it.

use std::time::Duration;

use crate::curves::{Axes, Curves};
use crate::harness::load::{self, Group, Reading, Until};
use crate::harness::report::median;
use crate::harness::server::{Kind, Server};
use crate::harness::site::{Site, narinfo_requests};
use crate::paths::cpu_us;

const CPU: Axes = Axes { title: "narinfo: server CPU per request", across: "connections", unit: "µs" };
const WAIT: Axes = Axes { title: "narinfo: wait p99", across: "connections", unit: "ms" };
const SIZES: [usize; 4] = [1, 64, 1_000, 10_000];
const SERVERS: [Kind; 2] = [Kind::Narwire, Kind::Nginx];
const ROUNDS: usize = 3;
const UNTIL: Until =
    Until::Time { warm_up: Duration::from_millis(400), measured: Duration::from_millis(800) };
/// Of each process, for other things than connections.
const DESCRIPTORS_KEPT: u64 = 500;

/// The servers take turns.
pub fn measure(descriptors: u64, curves: &mut Curves) -> anyhow::Result<()> {
    let site = Site::create()?;
    let paths = site.add_paths(0..1)?;
    site.flatten(&paths, &[])?;
    let requests = narinfo_requests(&paths);
    let servers =
        SERVERS.iter().map(|kind| Server::start(*kind, &site, 1, "0")).collect::<anyhow::Result<Vec<_>>>()?;
    for size in SIZES {
        if size as u64 + DESCRIPTORS_KEPT > descriptors {
            eprintln!("{size} connections are left out: only {descriptors} descriptors are allowed");
            continue;
        }
        let mut rounds = SERVERS.map(|_| (Vec::new(), Vec::new()));
        for _ in 0..ROUNDS {
            for (server, (cpu, wait)) in servers.iter().zip(&mut rounds) {
                let group = Group::new(size, &requests, 200, Reading::Copy);
                let outcome = load::run(server.address, &[group], UNTIL, &|| server.time());
                let outcome = outcome.map_err(|error| server.explain(error.into()))?;
                cpu.push(cpu_us(&outcome));
                wait.push(outcome.groups[0].wait_us(99) / 1e3);
            }
        }
        for (kind, (cpu, wait)) in SERVERS.iter().zip(rounds) {
            curves.add(CPU, kind.name(), size, median(&cpu));
            curves.add(WAIT, kind.name(), size, median(&wait));
        }
    }
    Ok(())
}
