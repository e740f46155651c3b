//! NARs that are kept encoded: what sending them costs, what encoding them costs, and whether anybody notices the latter.

use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::harness::load::{self, Group, Reading, Until, connect, fetch, request, thread_time};
use crate::harness::process;
use crate::harness::server::{Kind, Server};
use crate::harness::site::{Nar, narinfo_target};
use crate::row::{Bench, Ending, Figure, Row};
use crate::works::{FEW_CONNECTIONS, Works};

/// Each of them as it is, discarded and read, and compressed.
pub const MANY: [&str; 3] = [
    "NAR of 20,000 files, from the NAR cache, discarded",
    "NAR of 20,000 files, from the NAR cache, read",
    "NAR of 20,000 files, .zst from the NAR cache",
];
pub const TOOLCHAIN: [&str; 3] = [
    "toolchain NAR, from the NAR cache, discarded",
    "toolchain NAR, from the NAR cache, read",
    "toolchain NAR, .zst from the NAR cache",
];
pub const LARGE: [&str; 3] = [
    "one large file, from the NAR cache, discarded",
    "one large file, from the NAR cache, read",
    "one large file, .zst from the NAR cache",
];
/// At rest, and while the cache is filled: by a background that shares the worker's core, or has another.
pub const NARINFO_ONE_CORE: [&str; 2] =
    ["narinfo wait, one core, background at rest", "narinfo wait, one core, while the NAR cache is filled"];
pub const NARINFO_TWO_CORES: [&str; 2] =
    ["narinfo wait, two cores, background at rest", "narinfo wait, two cores, while the NAR cache is filled"];
pub const FILL: &str = "NAR cache: a NAR of 20,000 files is encoded";
pub const FILL_ALLOWED: &str = "twice a live answer, and zstd";

const BESIDE_NGINX: &[Kind] = &[Kind::NarwireCache, Kind::Nginx];
/// How long it may take to encode what a row needs.
const PATIENCE: Duration = Duration::from_mins(3);
/// Between two looks at whether something was encoded.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Where every server's only worker is; the load is on the next core.
const WORKER_CORE: &str = "0";
/// What the server's own thread for this is called.
const BACKGROUND_THREAD: &str = "background";
/// The default of `--cache-level`.
const ZSTD_LEVEL: i32 = 3;

/// Measures all of it; the servers of `bench` stay at work beside it.
pub fn measure(works: &Works, bench: &mut Bench<'_>) -> anyhow::Result<()> {
    measure_fill(works, bench)?;
    measure_sending(works, bench)?;
    measure_waits(works, bench)
}

/// What the background takes for a tree of small files, beside what a live answer and zstd alone take.
fn measure_fill(works: &Works, bench: &mut Bench<'_>) -> anyhow::Result<()> {
    if !bench.flags.wants(FILL) {
        return Ok(());
    }
    eprintln!("{FILL}");
    let (fixture, server) = (&works.fixture, start(works, WORKER_CORE)?);
    let flat = fs::read(fixture.site.file(&fixture.many[0]))?;
    let (mut taken, mut allowed) = (Vec::new(), Vec::new());
    for nar in &fixture.many[..bench.flags.rounds] {
        let begin = thread_time();
        black_box(zstd::bulk::compress(&flat, ZSTD_LEVEL)?);
        let zstd = thread_time().saturating_sub(begin);
        let (background, all) = (background_time(&server)?, server.time()?);
        ask(&server, nar)?;
        let all = server.time()?.saturating_sub(all);
        let live = all.saturating_sub(background_time(&server)?.saturating_sub(background));
        wait_until_compressed(&server, nar)?;
        taken.push(background_time(&server)?.saturating_sub(background).as_secs_f64());
        allowed.push((2 * live + zstd).as_secs_f64());
    }
    for (name, seconds) in [(Kind::NarwireCache.name(), taken), (FILL_ALLOWED, allowed)] {
        bench.results.add(FILL, name, seconds);
        let seconds = bench.results.figure(FILL, name).unwrap_or(f64::NAN);
        writeln!(bench.report, "{FILL:<46} {name:<28} {:>7.1} ms CPU", seconds * 1e3)?;
    }
    Ok(())
}

/// Each NAR by each server, whose files are the same.
fn measure_sending(works: &Works, bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let fixture = &works.fixture;
    let kept = [(MANY, &fixture.many[0]), (TOOLCHAIN, &works.toolchain[0]), (LARGE, &fixture.large)];
    let wanted: Vec<_> =
        kept.into_iter().filter(|(names, _)| names.iter().any(|name| bench.flags.wants(name))).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let server = start(works, WORKER_CORE)?;
    for (names, nar) in &wanted {
        eprintln!("{} is encoded", names[0]);
        // What was asked for twice is kept.
        ask(&server, nar)?;
        ask(&server, nar)?;
        wait_until_compressed(&server, nar)?;
        fs::hard_link(fixture.site.encoded(nar), fixture.site.file(nar).with_extension("nar.zst"))?;
    }
    drop(server);
    // One that has not made them has nothing of them in memory.
    bench.servers.push(Server::start(Kind::NarwireCache, fixture, 1, WORKER_CORE)?);
    for (names, nar) in wanted {
        let (flat, compressed) = (nar.request(), vec![request(&nar.compressed_target(), "")]);
        let kinds = [(&flat, Reading::Discard), (&flat, Reading::Copy), (&compressed, Reading::Discard)];
        for (name, (requests, reading)) in names.into_iter().zip(kinds) {
            bench.measure(&[Row {
                name,
                figure: Figure::SecondsPerGb,
                ending: Ending::Timed,
                groups: vec![Group::new(1, requests, 200, reading)],
                servers: BESIDE_NGINX,
                floor: None,
            }])?;
        }
    }
    bench.servers.pop();
    Ok(())
}

/// Whether those who ask for narinfos notice that the background is at work.
fn measure_waits(works: &Works, bench: &mut Bench<'_>) -> anyhow::Result<()> {
    measure_waits_on(works, bench, NARINFO_ONE_CORE, WORKER_CORE)?;
    // The load is on the second one.
    if process::cores()? > 2 {
        measure_waits_on(works, bench, NARINFO_TWO_CORES, "0,2")?;
    }
    Ok(())
}

fn measure_waits_on(
    works: &Works,
    bench: &mut Bench<'_>,
    [at_rest, while_filling]: [&'static str; 2],
    cores: &str,
) -> anyhow::Result<()> {
    if !bench.flags.wants(while_filling) {
        return Ok(());
    }
    bench.servers.push(start(works, cores)?);
    bench.measure(&[narinfo_row(works, at_rest)])?;
    let Some(server) = bench.servers.last() else { return Ok(()) };
    // A tree of small files is encoded when it was asked for once. These are more than there will be time for.
    let nars: Vec<_> = works.toolchain.iter().chain(&works.fixture.many).collect();
    nars.iter().try_for_each(|nar| ask(server, nar))?;
    let (begin, began) = (background_time(server)?, Instant::now());
    bench.measure(&[narinfo_row(works, while_filling)])?;
    let took = began.elapsed();
    let Some(server) = bench.servers.pop() else { return Ok(()) };
    let taken = background_time(&server)?.saturating_sub(begin);
    let mut left = 0;
    for nar in nars {
        left += usize::from(!is_compressed(&server, nar)?);
    }
    ensure!(left > 0, "all was encoded before the waits were measured");
    writeln!(
        bench.report,
        "{:<46} meanwhile the background took {:.2} of {:.2} s CPU, and left {left} NARs",
        "",
        taken.as_secs_f64(),
        took.as_secs_f64()
    )?;
    Ok(())
}

fn narinfo_row<'a>(works: &'a Works, name: &'static str) -> Row<'a> {
    Row {
        name,
        figure: Figure::Wait99,
        ending: Ending::Timed,
        groups: vec![Group::new(FEW_CONNECTIONS, &works.fixture.narinfos[..1], 200, Reading::Copy)],
        servers: &BESIDE_NGINX[..1],
        floor: None,
    }
}

/// A server with an empty cache.
fn start(works: &Works, cores: &str) -> anyhow::Result<Server> {
    let site = &works.fixture.site;
    if site.nar_cache.exists() {
        fs::remove_dir_all(&site.nar_cache)?;
    }
    let server = Server::start(Kind::NarwireCache, site, 1, cores)?;
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE && server.thread_times_ns(BACKGROUND_THREAD)?.is_empty() {
        thread::sleep(LOOK_INTERVAL);
    }
    Ok(server)
}

fn ask(server: &Server, nar: &Nar) -> anyhow::Result<()> {
    let requests = nar.request();
    let groups = [Group::new(1, &requests, 200, Reading::Discard)];
    load::run(server.address, &groups, Until::Requests(1, PATIENCE), &|| server.time())
        .map(drop)
        .map_err(|error| server.explain(error.into()))
}

fn wait_until_compressed(server: &Server, nar: &Nar) -> anyhow::Result<()> {
    let begin = Instant::now();
    while !is_compressed(server, nar)? {
        ensure!(begin.elapsed() < PATIENCE, "{} was never encoded", nar.path);
        thread::sleep(LOOK_INTERVAL);
    }
    Ok(())
}

fn is_compressed(server: &Server, nar: &Nar) -> anyhow::Result<bool> {
    let narinfo = fetch(&connect(server.address)?, &request(&narinfo_target(&nar.path), ""), 200)?;
    Ok(String::from_utf8(narinfo)?.contains("\nCompression: zstd\n"))
}

fn background_time(server: &Server) -> anyhow::Result<Duration> {
    Ok(Duration::from_nanos(server.thread_times_ns(BACKGROUND_THREAD)?.iter().sum()))
}
