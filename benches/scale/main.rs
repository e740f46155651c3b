//! What things cost as the work grows: paths in the database, connections, files in a NAR.
//!
//! As in the bench `peers`, servers have one worker on core 0, the clients are one thread on core 1, and what counts is CPU
//! time of the server. `benches/draw` makes a picture of what `--record` keeps.
//!
//! `cargo bench --bench scale -- --help` lists the flags.

#![expect(clippy::cast_precision_loss, reason = "numbers for people")]

mod connections;
mod curves;
mod files;
#[path = "../harness/mod.rs"]
mod harness;
mod paths;

use std::time::{Duration, Instant};

use anyhow::Context as _;

use curves::Curves;
use harness::{process, report, server};

const HELP: &str = "\
cargo bench --bench scale -- [FLAGS]
  --quick      up to 100,000 paths and files instead of 1,000,000
  --only WORD  only what grows with WORD: paths, connections, or files
  --record     write the tables and the points to benches/record/<date>-<commit>-scale.txt and .csv as well
Needs nginx (Debian: apt-get install nginx-light), two cores, and 3 GB of disk in the build directory (--quick: 0.5 GB).";

/// Whatever happens, there is an end.
const TIMEOUT: Duration = Duration::from_mins(15);
/// Of this process and of each server: one per connection, and some for files.
const DESCRIPTORS: u64 = 20_000;

struct Flags {
    is_quick: bool,
    is_recorded: bool,
    only: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let Some(flags) = Flags::parse(std::env::args().skip(1))? else {
        println!("{HELP}");
        return Ok(());
    };
    let nginx = server::nginx_version()?;
    let begin = Instant::now();
    process::end_within(TIMEOUT)?;
    let descriptors = process::raise_descriptors(DESCRIPTORS)?;
    let heading = report::heading("scale", &nginx)?;
    process::pin(1)?;
    let largest = if flags.is_quick { 100_000 } else { 1_000_000 };
    let mut curves = Curves::default();
    if flags.wants("paths") {
        paths::measure(largest, &mut curves)?;
    }
    if flags.wants("connections") {
        connections::measure(descriptors, &mut curves)?;
    }
    if flags.wants("files") {
        files::measure(largest, &mut curves)?;
    }
    let text = format!("{heading}\n{}", curves.text());
    println!("{text}");
    eprintln!("done in {:.0} s", begin.elapsed().as_secs_f64());
    if flags.is_recorded {
        report::record(&text, "-scale.txt")?;
        report::record(&curves.csv(&heading), "-scale.csv")?;
    }
    Ok(())
}

impl Flags {
    /// `None` when help is wanted.
    fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Option<Self>> {
        let mut flags = Self { is_quick: false, is_recorded: false, only: None };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => {}
                "--quick" => flags.is_quick = true,
                "--record" => flags.is_recorded = true,
                "--only" => flags.only = Some(arguments.next().context("--only wants a word")?),
                _ => return Ok(None),
            }
        }
        Ok(Some(flags))
    }

    fn wants(&self, what: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == what)
    }
}
