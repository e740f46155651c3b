//! The limits of this kernel, and the choices made within them, side by side in one run.
//!
//! `cargo bench --bench ring -- --help` lists the flags.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "numbers for people, and small ones"
)]

mod any_server;
mod bare_ring;
mod bare_server;
mod bodies;
mod echo;
mod glommio_echo;
#[path = "../harness/mod.rs"]
mod harness;
mod many;
mod small_files;
mod spread;

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};

use harness::{process, report};

/// However slow the machine is.
const TIME_MAX: Duration = Duration::from_mins(20);

const HELP: &str = "\
cargo bench --bench ring -- [FLAGS]
  --quick      under a minute: fewer files and sizes, fewer and shorter rounds
  --record     write the report to benches/record/<date>-<commit>-ring.txt as well
  --only WORD  only sections whose name contains WORD: small-files-hot, small-files-cold,
               small-files-narwire, narinfo, bodies-hot, bodies-cold, listeners
  --rounds N   rounds of everything, of what takes long at most 3 [5]
  --seconds S  measured time of one round; a quarter of it for a file [1.5]
Needs two cores; cold caches need root.";

type Section = fn(&Flags) -> anyhow::Result<String>;

const SECTIONS: [(&str, Section); 7] = [
    ("small-files-hot", small_files::hot),
    ("small-files-cold", small_files::cold),
    ("small-files-narwire", many::report),
    ("narinfo", echo::report),
    ("bodies-hot", bodies::hot),
    ("bodies-cold", bodies::cold),
    ("listeners", spread::report),
];

struct Flags {
    is_quick: bool,
    is_recorded: bool,
    only: Option<String>,
    rounds: usize,
    measured: Duration,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    // How this program starts itself as a bare server.
    if let [serve, name, of] = &arguments[..]
        && serve == "--serve"
    {
        return bare_server::serve(name, Path::new(of));
    }
    let Some(flags) = Flags::parse(arguments.into_iter())? else {
        println!("{HELP}");
        return Ok(());
    };
    if thread::available_parallelism()?.get() < 2 {
        bail!("one core for the servers and one for the clients are needed");
    }
    process::end_within(TIME_MAX)?;
    let mut text = report::heading("ring", "")?;
    for (name, section) in SECTIONS {
        if flags.wants(name) {
            eprintln!("{name}");
            let section = section(&flags)?;
            println!("{section}");
            text.push('\n');
            text.push_str(&section);
        }
    }
    if flags.is_recorded { report::record(&text, "-ring.txt") } else { Ok(()) }
}

impl Flags {
    /// `None` when help is wanted.
    fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Option<Self>> {
        let mut flags = Self {
            is_quick: false,
            is_recorded: false,
            only: None,
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
                    (flags.is_quick, flags.rounds, flags.measured) = (true, 2, Duration::from_millis(400));
                }
                "--record" => flags.is_recorded = true,
                "--only" => flags.only = Some(value()?),
                "--rounds" => flags.rounds = value()?.parse()?,
                "--seconds" => flags.measured = Duration::try_from_secs_f64(value()?.parse()?)?,
                other => bail!("what is {other}?\n{HELP}"),
            }
        }
        if !(1..=100).contains(&flags.rounds) {
            bail!("rounds begin at 1 and end at 100");
        }
        Ok(Some(flags))
    }

    fn wants(&self, section: &str) -> bool {
        self.only.as_ref().is_none_or(|only| section.contains(only.as_str()))
    }
}

/// Does the work on a thread that keeps to one core.
fn on_core<T: Send>(core: usize, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    let pinned = || {
        process::pin(core)?;
        anyhow::Ok(work())
    };
    thread::scope(|scope| scope.spawn(pinned).join().unwrap_or_else(|_| bail!("a measurement panicked")))
}
