//! NARs, as their trees have more files.

use std::time::Duration;

use crate::curves::{Axes, Curves};
use crate::harness::load::{self, Group, Outcome, Reading, Until};
use crate::harness::server::{Kind, Server};
use crate::harness::site::{Nar, Site};
use crate::harness::trees::{self, DISTINCT_FILES, FILES_PER_DIRECTORY};

const ACROSS: &str = "files in the NAR";
const CPU: Axes = Axes { title: "NAR: server CPU per file", across: ACROSS, unit: "µs" };
const WAIT: Axes = Axes { title: "NAR: wait for the first byte", across: ACROSS, unit: "ms" };
const MEMORY: Axes = Axes { title: "server memory after this NAR", across: ACROSS, unit: "MiB" };
/// A NAR of few files is sent for the first time so often, as several paths, that its cost can be told.
const COPIES_MAX: usize = 64;
/// A NAR is sent again until so many files were sent, or so often.
const FILES_AGAIN: usize = 200_000;
const AGAIN_MAX: usize = 2000;
const TIMEOUT: Duration = Duration::from_mins(1);

/// Each size has a fresh server.
pub fn measure(largest: usize, curves: &mut Curves) -> anyhow::Result<()> {
    let site = Site::create()?;
    let pool = site.root().join("pool");
    trees::write_many(&pool, DISTINCT_FILES, FILES_PER_DIRECTORY, None)?;
    for size in [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000].into_iter().filter(|size| *size <= largest) {
        let copies = (DISTINCT_FILES / size).clamp(1, COPIES_MAX);
        let nars = site.add_tree(&format!("files-{size}"), copies, |path| {
            trees::write_many(path, size, FILES_PER_DIRECTORY, Some(&pool))
        })?;
        let server = Server::start(Kind::Narwire, &site, 1, "0")?;
        let first = ask(&server, &nars, copies)?;
        let memory = server.memory_kib()? as f64 / 1024.0;
        let again = ask(&server, &nars[..1], (FILES_AGAIN / size).clamp(1, AGAIN_MAX))?;
        for (series, outcome) in [("first time", &first), ("again", &again)] {
            let seen = &outcome.groups[0];
            let files = seen.requests as f64 * size as f64;
            curves.add(CPU, series, size, outcome.server.as_secs_f64() * 1e6 / files);
            curves.add(WAIT, series, size, seen.wait_us(50) / 1e3);
        }
        curves.add(MEMORY, Kind::Narwire.name(), size, memory);
    }
    Ok(())
}

fn ask(server: &Server, nars: &[Nar], times: usize) -> anyhow::Result<Outcome> {
    let requests: Vec<_> = nars.iter().flat_map(Nar::request).collect();
    let group = Group::new(1, &requests, 200, Reading::Discard);
    let outcome = load::run(server.address, &[group], Until::Requests(times, TIMEOUT), &|| server.time());
    outcome.map_err(|error| server.explain(error.into()))
}
