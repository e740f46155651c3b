//! narwire beside nginx that serves the same bytes as static files, in one run on one machine.
//!
//! Each server has one worker, alone on core 0; the clients are one thread on core 1. Servers take turns (A B C A B C …), so
//! that whatever else the machine does falls on all of them. The figure that counts is CPU time of the serving process per
//! request or per GB: it hardly depends on the clients. Throughput and waits follow it, and are those of this machine.
//!
//! `cargo bench --bench peers -- --help` lists the flags.

#![expect(clippy::cast_precision_loss, reason = "numbers for people")]

#[path = "../harness/mod.rs"]
mod harness;

use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::thread::CpuSet;

use harness::bare::{self, Sendfile};
use harness::fixture::{self, Fixture};
use harness::load::{self, Group, Outcome, Reading, Until};
use harness::report::{self, median};
use harness::server::{self, Kind, Server};

const HELP: &str = "\
cargo bench --bench peers -- [FLAGS]
  --quick         about a minute: fewer paths, a smaller file, shorter and fewer rounds
  --record        write the report to benches/record/<date>-<commit>.txt as well
  --only WORD     only rows whose name contains WORD (also: memory)
  --paths N       paths in the database [20000]
  --large-mib N   size of the large file [256]
  --rounds N      rounds per row [5]
  --seconds S     measured time of one round [1.5]
Needs nginx (Debian: apt-get install nginx-light) and two cores.";

const SERVERS: [Kind; 3] = [Kind::Narwire, Kind::Nginx, Kind::NginxCaching];
/// Neither more connections nor more readers than the common limit of 1,024 descriptors allows; ours are raised to it.
const IDLE_CONNECTIONS: usize = 1000;
const STALLED_READERS: usize = 200;
const STREAMS: usize = 8;
/// The clients of an answer that is not long.
const MANY_CONNECTIONS: usize = 64;

struct Flags {
    record: bool,
    only: Option<String>,
    paths: usize,
    large_mib: usize,
    rounds: usize,
    measured: Duration,
}

/// What a row is judged by.
#[derive(Clone, Copy)]
enum Figure {
    MicrosecondsPerRequest,
    SecondsPerGb,
    /// The wait that 99 of 100 requests of the first group stay below.
    Wait99,
}

struct Row<'a> {
    name: &'static str,
    figure: Figure,
    groups: Vec<Group<'a>>,
    /// Requests after which a round ends; `None`: when its time is over.
    requests: Option<usize>,
    /// The least that the same bytes can cost.
    floor: Option<Sendfile>,
}

/// One server's measurements of one row.
#[derive(Default)]
struct Measured {
    figures: Vec<f64>,
    requests_per_s: Vec<f64>,
    mb_per_s: Vec<f64>,
    wait50_us: Vec<f64>,
    wait99_us: Vec<f64>,
    server_busy: Vec<f64>,
    generator_busy: Vec<f64>,
}

fn main() -> anyhow::Result<()> {
    let Some(flags) = Flags::parse(std::env::args().skip(1))? else {
        println!("{HELP}");
        return Ok(());
    };
    let nginx = server::nginx_version()?;
    if thread::available_parallelism()?.get() < 2 {
        bail!("one core for the servers and one for the clients are needed");
    }
    let begin = Instant::now();
    let fixture = Fixture::create(flags.paths, flags.large_mib, flags.rounds)?;
    eprintln!("fixture made in {:.1} s", begin.elapsed().as_secs_f64());

    let mut report = report::heading("peers", &nginx)?;
    writeln!(
        report,
        "{} paths, large file {} MiB; medians of {} rounds of {:.1} s; ratio: narwire's CPU (or p99) by the other's\n",
        flags.paths,
        flags.large_mib,
        flags.rounds,
        flags.measured.as_secs_f64(),
    )?;
    // All workers of the fixture's server had their cores; from here on this thread has its own.
    let mut core = CpuSet::new();
    core.set(1);
    rustix::thread::sched_setaffinity(None, &core)?;
    measure_rows(&fixture, &flags, &mut report)?;
    if flags.wants("memory") {
        write!(report, "\n{}", memory(&fixture)?)?;
    }
    println!("{report}");
    eprintln!("done in {:.0} s", begin.elapsed().as_secs_f64());
    if flags.record { report::record(&report, ".txt") } else { Ok(()) }
}

impl Flags {
    /// `None` when help is wanted.
    fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Option<Self>> {
        let mut flags = Self {
            record: false,
            only: None,
            paths: 20_000,
            large_mib: 256,
            rounds: 5,
            measured: Duration::from_millis(1500),
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} wants a value"));
            match argument.as_str() {
                "--help" | "-h" => return Ok(None),
                // Cargo's own.
                "--bench" => {}
                "--quick" => {
                    (flags.paths, flags.large_mib, flags.rounds) = (4_000, 64, 2);
                    flags.measured = Duration::from_millis(300);
                }
                "--record" => flags.record = true,
                "--only" => flags.only = Some(value()?),
                "--paths" => flags.paths = value()?.parse()?,
                "--large-mib" => flags.large_mib = value()?.parse()?,
                "--rounds" => flags.rounds = value()?.parse()?,
                "--seconds" => flags.measured = Duration::try_from_secs_f64(value()?.parse()?)?,
                other => bail!("what is {other}?\n{HELP}"),
            }
        }
        if flags.paths == 0 || flags.large_mib == 0 || !(1..=100).contains(&flags.rounds) {
            bail!("paths, mebibytes and rounds begin at 1; rounds end at 100");
        }
        Ok(Some(flags))
    }

    fn wants(&self, row: &str) -> bool {
        self.only.as_ref().is_none_or(|only| row.contains(only.as_str()))
    }
}

fn measure_rows(fixture: &Fixture, flags: &Flags, report: &mut String) -> anyhow::Result<()> {
    let servers: Vec<_> =
        SERVERS.iter().map(|kind| Server::start(*kind, fixture, 1, "0")).collect::<anyhow::Result<_>>()?;
    let (small, large) = (fixture.small.request(), fixture.large.request());
    let firsts: Vec<_> = fixture.many.iter().map(fixture::Nar::request).collect();
    let (range_0, range_99) = (fixture.many[0].range(0, 4096), fixture.many[0].range(99, 4096));
    let once = fixture.narinfos.len();

    writeln!(
        report,
        "{:<42} {:<10} {:>15} {:>7} {:>9} {:>8} {:>9} {:>9} {:>7} {:>7}",
        "", "", "CPU", "ratio", "req/s", "MB/s", "p50 µs", "p99 µs", "server", "clients"
    )?;
    let short = |name, requests, status, count| Row {
        name,
        figure: Figure::MicrosecondsPerRequest,
        groups: vec![Group::new(MANY_CONNECTIONS, requests, status, Reading::Copy)],
        requests: count,
        floor: None,
    };
    let long = |name, requests, reading, count| Row {
        name,
        figure: Figure::SecondsPerGb,
        groups: vec![Group::new(1, requests, 200, reading)],
        requests: count,
        floor: None,
    };
    let ranges = |name, requests| Row {
        name,
        figure: Figure::MicrosecondsPerRequest,
        groups: vec![Group::new(8, requests, 206, Reading::Copy)],
        requests: None,
        floor: None,
    };
    // The first two can only be done once per path, in this order.
    let mut first_narinfos =
        short("narinfo, each of all hashes, first time", &fixture.narinfos, 200, Some(once));
    first_narinfos.groups[0].connections = MANY_CONNECTIONS.min(once);
    measure(&first_narinfos, &servers, flags, 1, report)?;
    if flags.wants("NAR of 20,000 files, first time") {
        let mut measured = [Measured::default(), Measured::default(), Measured::default()];
        let mut row = long("NAR of 20,000 files, first time", &firsts[0], Reading::Discard, Some(1));
        for requests in &firsts {
            row.groups[0].requests = requests;
            for (server, measured) in servers.iter().zip(&mut measured) {
                measured.add(&row, &run(&row, server.address, &|| server.time(), flags)?);
            }
        }
        write_row(&row, &measured, report)?;
        let bare = (0..flags.rounds)
            .map(|_| Ok(bare::read_files(&fixture.many_files)?.as_secs_f64() * 1e9))
            .map(|time: anyhow::Result<_>| Ok(time? / fixture.many[0].len_bytes as f64))
            .collect::<anyhow::Result<Vec<_>>>()?;
        write_floor("open+pread+close", median(&bare), &measured, report)?;
    }
    let rows = [
        short("narinfo, hot, 64 connections", &fixture.narinfos[..1], 200, None),
        short("narinfo, all hashes in turn, warm", &fixture.narinfos, 200, None),
        short("narinfo 404", &fixture.missing, 404, None),
        short("NAR of 848 B, 64 connections", &small, 200, None),
        long("NAR of 20,000 files, again", &firsts[0], Reading::Discard, None),
        Row {
            floor: Some(Sendfile::start(&fixture.large.file(fixture))?),
            ..long("NAR of one large file, discarded", &large, Reading::Discard, None)
        },
        Row {
            floor: Some(Sendfile::start(&fixture.large.file(fixture))?),
            ..long("NAR of one large file, read", &large, Reading::Copy, None)
        },
        ranges("Range of 4 KiB at 0 %, 20,000 files", &range_0),
        ranges("Range of 4 KiB at 99 %, 20,000 files", &range_99),
        Row {
            name: "narinfo wait while 8 large NARs stream",
            figure: Figure::Wait99,
            groups: vec![
                Group::new(4, &fixture.narinfos[..1], 200, Reading::Copy),
                Group::new(STREAMS, &large, 200, Reading::Discard),
            ],
            requests: None,
            floor: None,
        },
        Row {
            name: "narinfo wait while 8 many-file NARs stream",
            figure: Figure::Wait99,
            groups: vec![
                Group::new(4, &fixture.narinfos[..1], 200, Reading::Copy),
                Group::new(STREAMS, &firsts[0], 200, Reading::Discard),
            ],
            requests: None,
            floor: None,
        },
    ];
    for row in &rows {
        measure(row, &servers, flags, flags.rounds, report)?;
    }
    Ok(())
}

/// The floor of a row: narwire's ratio to what the kernel alone takes.
fn write_floor(name: &str, figure: f64, measured: &[Measured], report: &mut String) -> anyhow::Result<()> {
    let ratio = median(&measured[0].figures) / figure;
    writeln!(report, "{:<42} {name:<17} {figure:>1.3}   s/GB {ratio:>7.2}", "")?;
    Ok(())
}

fn measure(
    row: &Row<'_>,
    servers: &[Server],
    flags: &Flags,
    rounds: usize,
    report: &mut String,
) -> anyhow::Result<()> {
    if !flags.wants(row.name) {
        return Ok(());
    }
    eprintln!("{}", row.name);
    let mut measured = [Measured::default(), Measured::default(), Measured::default()];
    let mut floor = Measured::default();
    for _ in 0..rounds {
        for (server, measured) in servers.iter().zip(&mut measured) {
            measured.add(row, &run(row, server.address, &|| server.time(), flags)?);
        }
        if let Some(bare) = &row.floor {
            floor.add(row, &run(row, bare.address, &|| bare.time(), flags)?);
        }
    }
    write_row(row, &measured, report)?;
    if row.floor.is_some() {
        write_floor("sendfile loop", median(&floor.figures), &measured, report)?;
    }
    Ok(())
}

fn run(
    row: &Row<'_>,
    address: SocketAddr,
    time: &dyn Fn() -> io::Result<Duration>,
    flags: &Flags,
) -> anyhow::Result<Outcome> {
    let until = match row.requests {
        Some(requests) => Until::Requests(requests, Duration::from_mins(1)),
        None => Until::Time { warm_up: flags.measured / 5, measured: flags.measured },
    };
    load::run(address, &row.groups, until, time).with_context(|| format!("{} ({address})", row.name))
}

impl Measured {
    fn add(&mut self, row: &Row<'_>, outcome: &Outcome) {
        let seconds = outcome.elapsed.as_secs_f64();
        let asked = &outcome.groups[0];
        let gb = outcome.groups.iter().map(|seen| seen.bytes).sum::<u64>() as f64 / 1e9;
        let wait_us = |percent: usize| {
            let index = asked.waits_ns.len() * percent / 100;
            asked.waits_ns.get(index).or(asked.waits_ns.last()).map_or(0.0, |wait| *wait as f64 / 1e3)
        };
        let server = outcome.server.as_secs_f64();
        self.figures.push(match row.figure {
            Figure::MicrosecondsPerRequest => server * 1e6 / asked.requests as f64,
            Figure::SecondsPerGb => server / gb,
            Figure::Wait99 => wait_us(99),
        });
        self.requests_per_s.push(asked.requests as f64 / seconds);
        self.mb_per_s.push(gb * 1e3 / seconds);
        self.wait50_us.push(wait_us(50));
        self.wait99_us.push(wait_us(99));
        self.server_busy.push(server / seconds * 100.0);
        self.generator_busy.push(outcome.generator.as_secs_f64() / seconds * 100.0);
    }
}

/// A line for each server; ratios are medians over the rounds of narwire's figure by the server's in the same round.
fn write_row(row: &Row<'_>, measured: &[Measured], report: &mut String) -> anyhow::Result<()> {
    for (index, (kind, server)) in SERVERS.iter().zip(measured).enumerate() {
        let unit = match row.figure {
            Figure::MicrosecondsPerRequest => "µs/req",
            Figure::SecondsPerGb => "s/GB",
            Figure::Wait99 => "µs p99",
        };
        let ratios: Vec<_> =
            measured[0].figures.iter().zip(&server.figures).map(|(own, other)| own / other).collect();
        let name = if index == 0 { row.name } else { "" };
        let ratio = if index == 0 { String::new() } else { format!("{:.2}", median(&ratios)) };
        writeln!(
            report,
            "{name:<42} {:<10} {:>8.3} {unit:>6} {ratio:>7} {:>9.0} {:>8.0} {:>9.0} {:>9.0} {:>5.0} % {:>5.0} %",
            kind.name(),
            median(&server.figures),
            median(&server.requests_per_s),
            median(&server.mb_per_s),
            median(&server.wait50_us),
            median(&server.wait99_us),
            median(&server.server_busy),
            median(&server.generator_busy),
        )?;
    }
    Ok(())
}

/// Memory of fresh servers: at rest, with idle connections, with readers that do not read.
fn memory(fixture: &Fixture) -> anyhow::Result<String> {
    eprintln!("memory");
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: descriptors.maximum, maximum: descriptors.maximum },
    )?;
    let mut text = format!(
        "Memory (Pss of all processes; without the kernel's socket buffers)\n\n\
         {:<10} {:>12} {:>28} {:>28}\n",
        "", "idle", "per idle connection", "per stalled reader"
    );
    for kind in [Kind::Narwire, Kind::Nginx] {
        let server = Server::start(kind, fixture, 1, "0")?;
        let ask = |request: &[u8]| -> anyhow::Result<TcpStream> {
            let socket = TcpStream::connect(server.address)?;
            socket.set_nodelay(true)?;
            rustix::net::send(&socket, request, rustix::net::SendFlags::NOSIGNAL)?;
            Ok(socket)
        };
        let settled = || -> anyhow::Result<f64> {
            thread::sleep(Duration::from_millis(700));
            Ok(server.memory_kib()? as f64)
        };
        drop(ask(&fixture.narinfos[0])?);
        let rest = settled()?;
        let narinfo = &fixture.narinfos[0];
        let idle = (0..IDLE_CONNECTIONS).map(|_| ask(narinfo)).collect::<anyhow::Result<Vec<_>>>()?;
        let with_idle = settled()?;
        drop(idle);
        let before = settled()?;
        let nar = &fixture.large.request()[0];
        let stalled = (0..STALLED_READERS).map(|_| ask(nar)).collect::<anyhow::Result<Vec<_>>>()?;
        let with_stalled = settled()?;
        let many = &fixture.many[0].request()[0];
        drop(stalled);
        let before_many = settled()?;
        let stalled = (0..STALLED_READERS).map(|_| ask(many)).collect::<anyhow::Result<Vec<_>>>()?;
        let with_many = settled()?;
        drop(stalled);
        writeln!(
            text,
            "{:<10} {:>8.1} MiB {:>21.1} KiB x {IDLE_CONNECTIONS} {:>10.1} KiB (large file), {:.1} KiB (20,000 files) x {STALLED_READERS}",
            kind.name(),
            rest / 1024.0,
            (with_idle - rest) / IDLE_CONNECTIONS as f64,
            (with_stalled - before) / STALLED_READERS as f64,
            (with_many - before_many) / STALLED_READERS as f64,
        )?;
    }
    Ok(text)
}
