//! The limits of this kernel, and the choices made within them, side by side in one run.
//!
//! `cargo bench --bench ring -- --help` lists the flags.

#![expect(clippy::cast_precision_loss, reason = "numbers for people")]

#[path = "../harness/mod.rs"]
mod harness;
mod spread;

use harness::fixture::Fixture;
use harness::report;

const HELP: &str = "\
cargo bench --bench ring -- [FLAGS]
  --trials N   how often connections are spread [10]
  --record     write the report to benches/record/<date>-<commit>-ring.txt as well";

fn main() -> anyhow::Result<()> {
    let mut trials = 10;
    let mut is_recorded = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {}
            "--record" => is_recorded = true,
            "--trials" => trials = arguments.next().unwrap_or_default().parse()?,
            _ => {
                println!("{HELP}");
                return Ok(());
            }
        }
    }
    let fixture = Fixture::create(100, 1, 1)?;
    let text = report::heading("ring", "")? + "\n" + &spread::report(&fixture, trials)?;
    println!("{text}");
    if is_recorded { report::record(&text, "-ring.txt") } else { Ok(()) }
}
