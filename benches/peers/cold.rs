//! Many small files that are not in memory: how long until the last byte.

use std::fmt::Write as _;
use std::time::Duration;

use crate::harness::bare::Files;
use crate::harness::load::{self, Group, Reading, Until};
use crate::harness::process::empty_page_cache;
use crate::harness::server::{Kind, Server};
use crate::harness::site::Nar;
use crate::row::Results;
use crate::works::Works;

/// Each takes a NAR that was never asked for.
pub const ROUNDS: usize = 2;
pub const ROW: &str = "cold page cache: NAR of 20,000 files";
pub const ONE_BY_ONE: &str = "open+read+close one after another";
const AGAIN: &str = "narwire, again";
const TIMEOUT: Duration = Duration::from_mins(1);

/// Measures and writes the section; a reason instead, where the page cache cannot be emptied.
pub fn measure(works: &Works, results: &mut Results) -> anyhow::Result<String> {
    eprintln!("{ROW}");
    if let Err(error) = empty_page_cache() {
        return Ok(format!("{ROW}: left out, for emptying it needs root ({error:#})\n"));
    }
    let site = &works.fixture.site;
    let (narwire, nginx) = (Kind::Narwire, Kind::Nginx);
    let servers = [Server::start(narwire, site, 1, "0")?, Server::start(nginx, site, 1, "0")?];
    let columns = [ONE_BY_ONE, narwire.name(), AGAIN, nginx.name()];
    let mut seconds = columns.map(|_| Vec::new());
    for nar in works.fixture.many.iter().rev().take(ROUNDS) {
        let files = Files::of(&site.tree(nar))?;
        empty_page_cache()?;
        seconds[0].push(files.read()?.wall.as_secs_f64());
        for (column, server) in [(1, &servers[0]), (2, &servers[0]), (3, &servers[1])] {
            empty_page_cache()?;
            seconds[column].push(fetch(server, nar)?);
        }
    }
    let mut text = format!("{ROW}, wall time\n\n");
    for (name, seconds) in columns.into_iter().zip(seconds) {
        results.add(ROW, name, seconds);
        let ratio = results.ratio(ROW, ONE_BY_ONE, name).unwrap_or(f64::NAN);
        let seconds = results.figure(ROW, name).unwrap_or(f64::NAN);
        let per_file_us = seconds * 1e6 / works.many_files() as f64;
        writeln!(
            text,
            "{name:<36} {seconds:>7.3} s {per_file_us:>7.1} µs per file  {ratio:>6.2} times as fast"
        )?;
    }
    Ok(text)
}

/// The seconds that one request takes.
fn fetch(server: &Server, nar: &Nar) -> anyhow::Result<f64> {
    let requests = nar.request();
    let group = Group::new(1, &requests, 200, Reading::Discard);
    let until = Until::Requests(1, TIMEOUT);
    let outcome = load::run(server.address, &[group], until, &|| server.time());
    Ok(outcome.map_err(|error| server.explain(error.into()))?.elapsed.as_secs_f64())
}
