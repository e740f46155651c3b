//! One row: the same work done by each server in turn, and what it cost.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context as _;

use crate::flags::Flags;
use crate::harness::bare::{Files, Sendfile};
use crate::harness::load::{self, Group, Outcome, Until};
use crate::harness::report::median;
use crate::harness::server::{Kind, Server};

/// A round that ends with its requests takes no longer than this.
const ROUND_TIMEOUT: Duration = Duration::from_mins(1);

/// What a row is judged by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    MicrosecondsPerRequest,
    SecondsPerGb,
    /// The wait that half of the requests of the first group stay below. Milliseconds.
    Wait50,
    /// The wait that 99 of 100 requests of the first group stay below. Microseconds.
    Wait99,
}

/// When a round ends, and what it asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// When its time is over. Everything has been asked for before.
    Timed,
    /// There is one round, and it ends when each request was answered.
    All,
    /// Each round asks for the next of the requests, and ends with its answer: so each is asked for once.
    Next,
}

/// The least that the same bytes can cost.
pub enum Floor {
    Sendfile(Sendfile),
    /// Reading the files of a NAR, of which this is the length.
    Read(Files, u64),
}

pub struct Row<'a> {
    pub name: &'static str,
    pub figure: Figure,
    pub ending: Ending,
    pub groups: Vec<Group<'a>>,
    pub servers: &'a [Kind],
    pub floor: Option<Floor>,
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

/// What all rows have brought, by the names of row and server (or floor).
#[derive(Default)]
pub struct Results(BTreeMap<(&'static str, &'static str), Measured>);

impl Results {
    /// Keeps the figures of the rounds.
    pub fn add(&mut self, row: &'static str, server: &'static str, figures: Vec<f64>) {
        self.0.insert((row, server), Measured { figures, ..Measured::default() });
    }

    /// The median of a row's rounds.
    pub fn figure(&self, row: &'static str, server: &'static str) -> Option<f64> {
        self.0.get(&(row, server)).map(|measured| median(&measured.figures))
    }

    /// The median wait for the first byte.
    pub fn wait50_us(&self, row: &'static str, server: &'static str) -> Option<f64> {
        self.0.get(&(row, server)).map(|measured| median(&measured.wait50_us))
    }

    /// The median of the ratios of two servers in the same round.
    pub fn ratio(&self, row: &'static str, server: &'static str, other: &'static str) -> Option<f64> {
        let (own, others) = (self.0.get(&(row, server))?, self.0.get(&(row, other))?);
        let pairs = own.figures.iter().zip(&others.figures);
        Some(median(&pairs.map(|(own, other)| own / other).collect::<Vec<_>>()))
    }
}

/// What all rows have in common.
pub struct Bench<'a> {
    pub flags: &'a Flags,
    pub servers: Vec<Server>,
    pub results: Results,
    pub report: String,
}

impl Bench<'_> {
    pub fn write_heading(&mut self) -> anyhow::Result<()> {
        writeln!(
            self.report,
            "{:<46} {:<16} {:>15} {:>7} {:>9} {:>8} {:>9} {:>9} {:>7} {:>7}",
            "", "", "figure", "ratio", "req/s", "MB/s", "p50 µs", "p99 µs", "server", "clients"
        )?;
        Ok(())
    }

    /// Measures a row, if it is wanted, and writes its lines.
    pub fn measure(&mut self, row: &Row<'_>) -> anyhow::Result<()> {
        if !self.flags.wants(row.name) {
            return Ok(());
        }
        eprintln!("{}", row.name);
        let servers: Vec<_> =
            self.servers.iter().filter(|server| row.servers.contains(&server.kind)).collect();
        if row.ending == Ending::Timed {
            for server in &servers {
                let once = Until::Requests(row.groups[0].requests.len(), ROUND_TIMEOUT);
                ask(server, row, &row.groups[..1], once)?;
            }
        }
        let mut measured: Vec<_> = servers.iter().map(|_| Measured::default()).collect();
        let mut floor = Vec::new();
        let rounds = if row.ending == Ending::All { 1 } else { self.flags.rounds };
        for round in 0..rounds {
            for (server, measured) in servers.iter().zip(&mut measured) {
                let outcome = match row.ending {
                    Ending::Timed => ask(server, row, &row.groups, self.timed())?,
                    Ending::All => {
                        let requests = row.groups[0].requests.len();
                        ask(server, row, &row.groups, Until::Requests(requests, ROUND_TIMEOUT))?
                    }
                    Ending::Next => {
                        let group = &row.groups[0];
                        let requests = &group.requests[round..=round];
                        let next = [Group::new(group.connections, requests, group.status, group.reading)];
                        ask(server, row, &next, Until::Requests(1, ROUND_TIMEOUT))?
                    }
                };
                measured.add(row.figure, &outcome);
            }
            match &row.floor {
                None => {}
                Some(Floor::Sendfile(bare)) => {
                    let mut measured = Measured::default();
                    let time = || bare.time();
                    measured.add(row.figure, &load::run(bare.address, &row.groups, self.timed(), &time)?);
                    floor.extend(measured.figures);
                }
                Some(Floor::Read(files, nar_len_bytes)) => {
                    floor.push(files.read()?.cpu.as_secs_f64() / (*nar_len_bytes as f64 / 1e9));
                }
            }
        }
        let kinds: Vec<_> = servers.iter().map(|server| server.kind).collect();
        self.write(row, &kinds, measured, floor)
    }

    fn timed(&self) -> Until {
        Until::Time { warm_up: self.flags.measured / 5, measured: self.flags.measured }
    }

    /// A line for each server; ratios are medians over the rounds of narwire's figure by the server's in the same round.
    fn write(
        &mut self,
        row: &Row<'_>,
        kinds: &[Kind],
        measured: Vec<Measured>,
        floor: Vec<f64>,
    ) -> anyhow::Result<()> {
        let unit = match row.figure {
            Figure::MicrosecondsPerRequest => "µs/req",
            Figure::SecondsPerGb => "s/GB",
            Figure::Wait50 => "ms p50",
            Figure::Wait99 => "µs p99",
        };
        let own = Kind::Narwire.name();
        for (kind, measured) in kinds.iter().zip(measured) {
            self.results.0.insert((row.name, kind.name()), measured);
        }
        for (index, kind) in kinds.iter().enumerate() {
            let Some(measured) = self.results.0.get(&(row.name, kind.name())) else { continue };
            let name = if index == 0 { row.name } else { "" };
            let ratio = match self.results.ratio(row.name, own, kind.name()) {
                Some(ratio) if *kind != Kind::Narwire => format!("{ratio:.2}"),
                _ => String::new(),
            };
            writeln!(
                self.report,
                "{name:<46} {:<16} {:>8.3} {unit:>6} {ratio:>7} {:>9.0} {:>8.0} {:>9.0} {:>9.0} {:>5.0} % {:>5.0} %",
                kind.name(),
                median(&measured.figures),
                median(&measured.requests_per_s),
                median(&measured.mb_per_s),
                median(&measured.wait50_us),
                median(&measured.wait99_us),
                median(&measured.server_busy),
                median(&measured.generator_busy),
            )?;
        }
        if let Some(bare) = &row.floor {
            let name = bare.name();
            self.results.add(row.name, name, floor);
            let figure = self.results.figure(row.name, name).unwrap_or(f64::NAN);
            let ratio = self.results.ratio(row.name, own, name).unwrap_or(f64::NAN);
            writeln!(self.report, "{:<46} {name:<16} {figure:>8.3} {unit:>6} {ratio:>7.2}", "")?;
        }
        Ok(())
    }
}

impl Floor {
    pub const SENDFILE: &str = "sendfile loop";
    pub const READ: &str = "open+read+close";

    fn name(&self) -> &'static str {
        match self {
            Self::Sendfile(_) => Self::SENDFILE,
            Self::Read(..) => Self::READ,
        }
    }
}

fn ask(server: &Server, row: &Row<'_>, groups: &[Group<'_>], until: Until) -> anyhow::Result<Outcome> {
    let outcome = load::run(server.address, groups, until, &|| server.time());
    outcome.map_err(|error| server.explain(error.into())).context(row.name)
}

impl Measured {
    fn add(&mut self, figure: Figure, outcome: &Outcome) {
        let seconds = outcome.elapsed.as_secs_f64();
        let asked = &outcome.groups[0];
        let gb = outcome.groups.iter().map(|seen| seen.bytes).sum::<u64>() as f64 / 1e9;
        let server = outcome.server.as_secs_f64();
        self.figures.push(match figure {
            Figure::MicrosecondsPerRequest => server * 1e6 / asked.requests as f64,
            Figure::SecondsPerGb => server / gb,
            Figure::Wait50 => asked.wait_us(50) / 1e3,
            Figure::Wait99 => asked.wait_us(99),
        });
        self.requests_per_s.push(asked.requests as f64 / seconds);
        self.mb_per_s.push(gb * 1e3 / seconds);
        self.wait50_us.push(asked.wait_us(50));
        self.wait99_us.push(asked.wait_us(99));
        self.server_busy.push(server / seconds * 100.0);
        self.generator_busy.push(outcome.generator.as_secs_f64() / seconds * 100.0);
    }
}
