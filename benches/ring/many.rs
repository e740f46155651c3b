//! NARs of many small files: narwire, which walks, reads, frames and sends them, beside a loop that only reads them.

use std::fmt::Write as _;
use std::time::Duration;

use crate::Flags;
use crate::any_server::AnyServer;
use crate::harness::bare::Files;
use crate::harness::load::{Reading, Until};
use crate::harness::process::empty_page_cache;
use crate::harness::report::median;
use crate::harness::server::{Kind, Server};
use crate::harness::site::{Nar, Site};
use crate::harness::trees;

const ROWS: [&str; 3] = ["open, pread, close one after another", "narwire, first request", "narwire, again"];
const TIMEOUT: Duration = Duration::from_secs(30);

/// What one round took, per file: of each row.
type Round = [Cost; ROWS.len()];

#[derive(Clone, Copy, Default)]
struct Cost {
    cpu_us: f64,
    wall_us: f64,
}

pub fn report(flags: &Flags) -> anyhow::Result<String> {
    let files = if flags.is_quick { 4_000 } else { trees::DISTINCT_FILES };
    let rounds = flags.rounds.min(3);
    let site = Site::create()?;
    // Each round needs one that was never asked for, hot and cold.
    let nars = site.add_tree("many", 2 * rounds, |path| {
        trees::write_many(path, files, trees::FILES_PER_DIRECTORY, None)
    })?;
    let server = Server::start(Kind::Narwire, &site, 1, "0")?;
    let (hot, cold) = nars.split_at(rounds);
    let hot =
        hot.iter().map(|nar| round(&site, &server, nar, || Ok(()))).collect::<anyhow::Result<Vec<_>>>()?;
    let mut text = format!(
        "NAR of {files} files of {} B: per file, medians of {rounds} rounds; compared with the first line, which sends nothing\n\n\
         {:<38} {:>20} {:>20}\n",
        trees::MANY_FILE_LEN,
        "",
        "hot, CPU µs",
        "cold, wall µs"
    );
    let cold = match empty_page_cache() {
        Ok(()) => cold
            .iter()
            .map(|nar| round(&site, &server, nar, empty_page_cache))
            .collect::<anyhow::Result<_>>()?,
        Err(error) => {
            writeln!(text, "(cold left out, for emptying the page cache needs root: {error:#})")?;
            Vec::new()
        }
    };
    for (row, name) in ROWS.into_iter().enumerate() {
        let cell = |rounds: &[Round], figure: fn(&Cost) -> f64| {
            let values: Vec<_> = rounds.iter().map(|round| figure(&round[row])).collect();
            let ratios: Vec<_> = rounds.iter().map(|round| figure(&round[row]) / figure(&round[0])).collect();
            format!("{:>12.2} {:>6.2}x", median(&values), median(&ratios))
        };
        writeln!(text, "{name:<38} {} {}", cell(&hot, |cost| cost.cpu_us), cell(&cold, |cost| cost.wall_us))?;
    }
    Ok(text)
}

/// Reads and asks, each after `prepare`.
fn round(
    site: &Site,
    server: &Server,
    nar: &Nar,
    prepare: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<Round> {
    let files = Files::of(&site.tree(nar))?;
    let cost = |cpu: Duration, wall: Duration| {
        let per_file_us = |time: Duration| time.as_secs_f64() * 1e6 / files.len() as f64;
        Cost { cpu_us: per_file_us(cpu), wall_us: per_file_us(wall) }
    };
    prepare()?;
    let read = files.read()?;
    let mut costs = [cost(read.cpu, read.wall), Cost::default(), Cost::default()];
    for asked in &mut costs[1..] {
        prepare()?;
        let until = Until::Requests(1, TIMEOUT);
        let outcome = AnyServer::Narwire(server).load(1, &nar.request(), Reading::Discard, until)?;
        *asked = cost(outcome.server, outcome.elapsed);
    }
    Ok(costs)
}
