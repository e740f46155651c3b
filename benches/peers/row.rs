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
    /// The first is the narwire that the others are compared with.
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
    fn measured(&mut self, row: &'static str, server: &'static str) -> &mut Measured {
        self.0.entry((row, server)).or_default()
    }

    /// Keeps what one round brought.
    pub fn add_round(&mut self, row: &'static str, server: &'static str, figure: Figure, outcome: &Outcome) {
        self.measured(row, server).add(figure, outcome);
    }

    /// Keeps the figures of the rounds.
    pub fn add(&mut self, row: &'static str, server: &'static str, figures: Vec<f64>) {
        self.measured(row, server).figures = figures;
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
        self.ratio_between((row, server), (row, other))
    }

    /// The same for any two, each given by row and server; the rows have been measured in turns.
    pub fn ratio_between(
        &self,
        one: (&'static str, &'static str),
        other: (&'static str, &'static str),
    ) -> Option<f64> {
        let (own, others) = (self.0.get(&one)?, self.0.get(&other)?);
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

    /// Measures those rows that are wanted, in turns, so that they can be compared; writes their lines.
    pub fn measure(&mut self, rows: &[Row<'_>]) -> anyhow::Result<()> {
        let rows: Vec<_> = rows.iter().filter(|row| self.flags.wants(row.name)).collect();
        for row in &rows {
            eprintln!("{}", row.name);
            if row.ending == Ending::Timed {
                for server in &self.servers {
                    if row.servers.contains(&server.kind) {
                        let once = Until::Requests(row.groups[0].requests.len(), ROUND_TIMEOUT);
                        ask(server, row, &row.groups[..1], once)?;
                    }
                }
            }
        }
        for round in 0..self.flags.rounds {
            for row in &rows {
                if row.ending != Ending::All || round == 0 {
                    self.measure_round(row, round)?;
                }
            }
        }
        rows.iter().try_for_each(|row| self.write(row))
    }

    /// One round of each server, and of the floor.
    fn measure_round(&mut self, row: &Row<'_>, round: usize) -> anyhow::Result<()> {
        let timed = Until::Time { warm_up: self.flags.measured / 5, measured: self.flags.measured };
        for server in self.servers.iter().filter(|server| row.servers.contains(&server.kind)) {
            let outcome = match row.ending {
                Ending::Timed => ask(server, row, &row.groups, timed)?,
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
            self.results.add_round(row.name, server.kind.name(), row.figure, &outcome);
        }
        match &row.floor {
            None => {}
            Some(floor @ Floor::Sendfile(bare)) => {
                let outcome = load::run(bare.address, &row.groups, timed, &|| bare.time())?;
                self.results.add_round(row.name, floor.name(), row.figure, &outcome);
            }
            Some(floor @ Floor::Read(files, nar_len_bytes)) => {
                let figure = files.read()?.cpu.as_secs_f64() / (*nar_len_bytes as f64 / 1e9);
                self.results.measured(row.name, floor.name()).figures.push(figure);
            }
        }
        Ok(())
    }

    /// A line for each server of a row.
    fn write(&mut self, row: &Row<'_>) -> anyhow::Result<()> {
        self.write_lines(row.name, row.figure, row.servers, row.floor.as_ref().map(Floor::name))
    }

    /// A line for each server, the first of which is the narwire that the others are compared with; ratios are medians over the
    /// rounds of narwire's figure by the server's in the same round.
    pub fn write_lines(
        &mut self,
        row: &'static str,
        figure: Figure,
        servers: &[Kind],
        floor: Option<&'static str>,
    ) -> anyhow::Result<()> {
        let unit = match figure {
            Figure::MicrosecondsPerRequest => "µs/req",
            Figure::SecondsPerGb => "s/GB",
            Figure::Wait50 => "ms p50",
            Figure::Wait99 => "µs p99",
        };
        let own = servers[0];
        let mut name = row;
        for kind in servers {
            let Some(measured) = self.results.0.get(&(row, kind.name())) else { continue };
            let ratio = match self.results.ratio(row, own.name(), kind.name()) {
                Some(ratio) if *kind != own => format!("{ratio:.2}"),
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
            name = "";
        }
        if let Some(name) = floor {
            let figure = self.results.figure(row, name).unwrap_or(f64::NAN);
            let ratio = self.results.ratio(row, own.name(), name).unwrap_or(f64::NAN);
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
