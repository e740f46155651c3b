//! What is served, and the rows of the table.

use std::time::Instant;

use crate::flags::Flags;
use crate::harness::bare::{Files, Sendfile};
use crate::harness::fixture::Fixture;
use crate::harness::load::{Group, Reading};
use crate::harness::server::Kind;
use crate::harness::site::Nar;
use crate::harness::trees::{self, FILES_PER_DIRECTORY};
use crate::row::{Bench, Ending, Figure, Floor, Row};

/// The clients of an answer that is not long.
pub const MANY_CONNECTIONS: usize = 64;
/// Those that ask for narinfos while NARs stream.
pub const FEW_CONNECTIONS: usize = 4;
const STREAMS: usize = 8;
const HUGE_FILE_LEN: u64 = 10_000_000_000;
const RANGE_LEN: u64 = 4096;
/// Entries of the trees of which the first byte is waited for.
const FIRST_BYTE_FILES: usize = 50_000;

pub const NARINFO_HOT: &str = "narinfo, hot, 64 connections";
pub const NARINFO_ALL: &str = "narinfo, all hashes in turn, warm";
pub const NARINFO_MISSING: &str = "narinfo 404";
pub const LARGE_DISCARDED: &str = "NAR of one large file, discarded";
pub const LARGE_READ: &str = "NAR of one large file, read";
pub const MANY_FIRST_DISCARDED: &str = "NAR of 20,000 files, first time, discarded";
pub const MANY_FIRST_READ: &str = "NAR of 20,000 files, first time, read";
pub const FIRST_BYTE_ONE: &str = "first byte, 50,000 files in one directory";
pub const FIRST_BYTE_MANY: &str = "first byte, 50,000 files in 200 directories";
pub const RANGE_MANY: [&str; 2] =
    ["Range of 4 KiB at 0 %, 20,000 files", "Range of 4 KiB at 99 %, 20,000 files"];
pub const RANGE_HUGE: [&str; 2] = ["Range of 4 KiB at 0 %, 10 GB file", "Range of 4 KiB at 99 %, 10 GB file"];
pub const NARINFO_WHILE_LARGE: &str = "narinfo wait while 8 large NARs stream";
pub const NARINFO_WHILE_MANY: &str = "narinfo wait while 8 many-file NARs stream";

/// Every server, and those that serve what must not be asked for twice.
const ALL: &[Kind] = &[Kind::Narwire, Kind::NarwireDirectory, Kind::Nginx, Kind::NginxCaching];
const BESIDE_NGINX: &[Kind] = &[Kind::Narwire, Kind::Nginx, Kind::NginxCaching];

/// The servers of this run.
pub fn servers(flags: &Flags) -> &'static [Kind] {
    if flags.is_quick { &ALL[..3] } else { ALL }
}

/// All that is served.
pub struct Works {
    pub fixture: Fixture,
    /// Part of the Rust toolchain, in as many copies as it is asked for the first time.
    pub toolchain: Vec<Nar>,
    toolchain_files: Files,
    many_files: Files,
    huge: Nar,
    /// For the wait for the first byte: all files in one directory, and in 200.
    in_one: Vec<Nar>,
    in_many: Vec<Nar>,
}

impl Works {
    pub fn create(flags: &Flags) -> anyhow::Result<Self> {
        let begin = Instant::now();
        let step = |what: &str| eprintln!("{:>5.1} s: {what}", begin.elapsed().as_secs_f64());
        step("files, narinfos and their database");
        // Each round takes two that nobody has asked for, one discarded and one read; so does the cold page cache.
        let first_times = 2 * flags.rounds;
        let fixture = Fixture::create(flags.paths, flags.large_mib, first_times + crate::cold::ROUNDS)?;
        let site = &fixture.site;
        step("the Rust toolchain's tree");
        let toolchain = site
            .add_tree("toolchain", first_times, |path| trees::write_toolchain(path, flags.toolchain_part))?;
        step("trees of 50,000 files");
        let pool = Some(fixture.many_files.as_path());
        let in_one = site.add_tree("in-one-directory", flags.rounds, |path| {
            trees::write_many(path, FIRST_BYTE_FILES, FIRST_BYTE_FILES, pool)
        })?;
        let in_many = site.add_tree("in-200-directories", flags.rounds, |path| {
            trees::write_many(path, FIRST_BYTE_FILES, FIRST_BYTE_FILES / 200, pool)
        })?;
        let huge = site.add_tree("huge", 1, |path| trees::write_sparse(path, HUGE_FILE_LEN))?.remove(0);
        trees::write_sparse(&site.file(&huge), huge.len_bytes)?;
        step("the same NARs as files");
        site.flatten(&[], &[&toolchain[0], &in_one[0], &in_many[0]])?;
        step("done");
        let toolchain_files = Files::of(&site.tree(&toolchain[0]))?;
        let many_files = Files::of(&fixture.many_files)?;
        Ok(Self { fixture, toolchain, toolchain_files, many_files, huge, in_one, in_many })
    }

    pub fn many_files(&self) -> usize {
        self.many_files.len()
    }

    /// Sizes, for the report.
    pub fn describe(&self) -> String {
        let (longest, total) = self.toolchain_files.len_bytes();
        format!(
            "toolchain: {} files, {} MB, mean {} KB, longest {} MB; {} small files in directories of {FILES_PER_DIRECTORY}",
            self.toolchain_files.len(),
            total / 1_000_000,
            total / 1000 / self.toolchain_files.len().max(1) as u64,
            longest / 1_000_000,
            self.many_files.len(),
        )
    }
}

/// Measures every row.
pub fn measure(works: &Works, bench: &mut Bench<'_>) -> anyhow::Result<()> {
    bench.write_heading()?;
    measure_firsts(works, bench)?;
    measure_narinfos(works, bench)?;
    measure_nars(works, bench)?;
    measure_ranges(works, bench)?;
    measure_waits(works, bench)
}

/// What can be done only once per path.
fn measure_firsts(works: &Works, bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let fixture = &works.fixture;
    let connections = MANY_CONNECTIONS.min(fixture.narinfos.len());
    bench.measure(&[Row {
        name: "narinfo, each of all hashes, first time",
        figure: Figure::MicrosecondsPerRequest,
        ending: Ending::All,
        groups: vec![Group::new(connections, &fixture.narinfos, 200, Reading::Copy)],
        servers: BESIDE_NGINX,
        floor: None,
    }])?;
    let rounds = bench.flags.rounds;
    for (name, figure, nars, reading, files) in [
        (FIRST_BYTE_ONE, Figure::Wait50, &works.in_one[..], Reading::Discard, None),
        (FIRST_BYTE_MANY, Figure::Wait50, &works.in_many[..], Reading::Discard, None),
        (
            MANY_FIRST_DISCARDED,
            Figure::SecondsPerGb,
            &fixture.many[..rounds],
            Reading::Discard,
            Some(&works.many_files),
        ),
        (
            MANY_FIRST_READ,
            Figure::SecondsPerGb,
            &fixture.many[rounds..],
            Reading::Copy,
            Some(&works.many_files),
        ),
        (
            "toolchain NAR, first time, discarded",
            Figure::SecondsPerGb,
            &works.toolchain[..rounds],
            Reading::Discard,
            Some(&works.toolchain_files),
        ),
        (
            "toolchain NAR, first time, read",
            Figure::SecondsPerGb,
            &works.toolchain[rounds..],
            Reading::Copy,
            Some(&works.toolchain_files),
        ),
    ] {
        let requests: Vec<_> = nars.iter().flat_map(Nar::request).collect();
        bench.measure(&[Row {
            name,
            figure,
            ending: Ending::Next,
            groups: vec![Group::new(1, &requests, 200, reading)],
            servers: BESIDE_NGINX,
            floor: files.map(|files| Floor::Read(files.clone(), nars[0].len_bytes)),
        }])?;
    }
    Ok(())
}

fn measure_narinfos(works: &Works, bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let fixture = &works.fixture;
    let small = fixture.small.request();
    let rows = [
        (NARINFO_HOT, &fixture.narinfos[..1], 200),
        (NARINFO_ALL, &fixture.narinfos[..], 200),
        (NARINFO_MISSING, &fixture.missing[..], 404),
        ("NAR of 848 B, 64 connections", &small[..], 200),
    ]
    .map(|(name, requests, status)| Row {
        name,
        figure: Figure::MicrosecondsPerRequest,
        ending: Ending::Timed,
        groups: vec![Group::new(MANY_CONNECTIONS, requests, status, Reading::Copy)],
        servers: ALL,
        floor: None,
    });
    bench.measure(&rows)
}

fn measure_nars(works: &Works, bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let fixture = &works.fixture;
    let (many, toolchain, large) = (&fixture.many[0], &works.toolchain[0], &fixture.large);
    let sendfile = || Some(fixture.site.file(large));
    for (name, nar, reading, servers, floor) in [
        ("NAR of 20,000 files, again, discarded", many, Reading::Discard, BESIDE_NGINX, None),
        ("NAR of 20,000 files, again, read", many, Reading::Copy, BESIDE_NGINX, None),
        ("toolchain NAR, again, discarded", toolchain, Reading::Discard, BESIDE_NGINX, None),
        ("toolchain NAR, again, read", toolchain, Reading::Copy, BESIDE_NGINX, None),
        (LARGE_DISCARDED, large, Reading::Discard, ALL, sendfile()),
        (LARGE_READ, large, Reading::Copy, ALL, sendfile()),
    ] {
        bench.measure(&[Row {
            name,
            figure: Figure::SecondsPerGb,
            ending: Ending::Timed,
            groups: vec![Group::new(1, &nar.request(), 200, reading)],
            servers,
            floor: floor.map(|file| Sendfile::start(&file).map(Floor::Sendfile)).transpose()?,
        }])?;
    }
    Ok(())
}

fn measure_ranges(works: &Works, bench: &mut Bench<'_>) -> anyhow::Result<()> {
    for (names, nar) in [(RANGE_MANY, &works.fixture.many[0]), (RANGE_HUGE, &works.huge)] {
        let requests = [0, 99].map(|percent| nar.range(percent, RANGE_LEN));
        let row = |index: usize| Row {
            name: names[index],
            figure: Figure::MicrosecondsPerRequest,
            ending: Ending::Timed,
            // One at a time: the wait is that of a request, not of a queue.
            groups: vec![Group::new(1, &requests[index], 206, Reading::Copy)],
            servers: BESIDE_NGINX,
            floor: None,
        };
        bench.measure(&[row(0), row(1)])?;
    }
    Ok(())
}

fn measure_waits(works: &Works, bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let fixture = &works.fixture;
    for (name, nar) in [(NARINFO_WHILE_LARGE, &fixture.large), (NARINFO_WHILE_MANY, &fixture.many[0])] {
        bench.measure(&[Row {
            name,
            figure: Figure::Wait99,
            ending: Ending::Timed,
            groups: vec![
                Group::new(FEW_CONNECTIONS, &fixture.narinfos[..1], 200, Reading::Copy),
                Group::new(STREAMS, &nar.request(), 200, Reading::Discard),
            ],
            servers: BESIDE_NGINX,
            floor: None,
        }])?;
    }
    Ok(())
}
