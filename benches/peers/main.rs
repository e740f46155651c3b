//! narwire beside nginx that serves the same bytes as static files, in one run on one machine.
//!
//! Each server has one worker, alone on core 0; the clients are one thread on core 1. Servers take turns (A B C A B C …), so
//! that whatever else the machine does falls on all of them. The figure that counts is CPU time of the serving process per
//! request or per GB: it hardly depends on the clients. Throughput and waits follow it, and are those of this machine.
//!
//! `cargo bench --bench peers -- --help` lists the flags.

#![expect(clippy::cast_precision_loss, reason = "numbers for people")]

mod access_log;
mod cached;
mod cold;
mod flags;
mod goals;
#[path = "../harness/mod.rs"]
mod harness;
mod memory;
mod row;
mod upload;
mod works;

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;

use flags::{Flags, HELP};
use harness::server::{self, Server};
use harness::{process, report};
use row::{Bench, Results};
use works::Works;

/// Whatever happens, there is an end.
const TIMEOUT: Duration = Duration::from_mins(25);
/// Of this process and of each server: for 10,000 idle connections, and for what a server has open beside them.
const DESCRIPTORS: u64 = 20_000;

fn main() -> anyhow::Result<()> {
    let Some(flags) = Flags::parse(std::env::args().skip(1))? else {
        println!("{HELP}");
        return Ok(());
    };
    let nginx = server::nginx_version()?;
    ensure!(
        thread::available_parallelism()?.get() >= 2,
        "one core for the servers and one for the clients are needed"
    );
    let begin = Instant::now();
    process::end_within(TIMEOUT)?;
    let flags = flags.within(process::raise_descriptors(DESCRIPTORS)?);
    let heading = report::heading("peers", &nginx)?;
    let works = Works::create(&flags)?;
    // All workers of the fixture's server had their cores; from here on this thread has its own.
    process::pin(1)?;
    let report = measure(&works, &flags, heading)?;
    println!("{report}");
    drop(works);
    eprintln!("done in {:.0} s", begin.elapsed().as_secs_f64());
    if flags.is_recorded { report::record(&report, ".txt") } else { Ok(()) }
}

fn measure(works: &Works, flags: &Flags, heading: String) -> anyhow::Result<String> {
    let servers = works::servers(flags)
        .iter()
        .map(|kind| Server::start(*kind, &works.fixture, 1, "0"))
        .collect::<anyhow::Result<_>>()?;
    let mut bench = Bench { flags, servers, results: Results::default(), report: heading };
    writeln!(
        bench.report,
        "{} paths, large file {} MiB; {}\n\
         medians of {} rounds of {:.1} s; ratio: narwire's figure by the other's\n",
        flags.paths,
        flags.large_mib,
        works.describe(),
        flags.rounds,
        flags.measured.as_secs_f64(),
    )?;
    works::measure(works, &mut bench)?;
    access_log::measure(works, &mut bench)?;
    cached::measure(works, &mut bench)?;
    upload::measure(works, &mut bench)?;
    let Bench { servers, mut results, mut report, .. } = bench;
    drop(servers);
    if flags.wants("cold") {
        write!(report, "\n{}", cold::measure(works, &mut results)?)?;
    }
    if flags.wants("memory") {
        write!(report, "\n{}", memory::measure(works, flags, &mut results)?)?;
    }
    write!(report, "\n{}", goals::table(&results, flags))?;
    Ok(report)
}
