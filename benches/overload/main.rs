//! What hostile clients cost: memory of the server and of the kernel, and what a well-behaved client notices meanwhile.
//!
//! One worker on core 0, the well-behaved client on core 1, the hostile ones on core 2, all in a network namespace of their own.
//!
//! `cargo bench --bench overload -- --help` lists the flags.

#![expect(clippy::cast_precision_loss, reason = "numbers for people")]

mod attacks;
#[path = "../harness/mod.rs"]
mod harness;
mod probe;
mod sockets;

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use harness::{process, report};

const HELP: &str = "\
cargo bench --bench overload -- [FLAGS]
  --only WORD  only the loads whose names contain WORD, or `sockets`: what socket options cost and save
  --record     write the report to benches/record/<date>-<commit>-overload.txt as well
Needs root (for a network namespace), iproute2, util-linux, three cores, 20,000 descriptors, 2 GB of disk in the build directory.";

/// Whatever happens, there is an end.
const TIMEOUT: Duration = Duration::from_mins(10);
/// Of this process and of the server.
const DESCRIPTORS: u64 = 20_000;
/// Says that this process has its namespace.
const INSIDE: &str = "NARWIRE_BENCH_INSIDE";

fn main() -> anyhow::Result<()> {
    let (mut only, mut is_recorded) = (None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {}
            "--record" => is_recorded = true,
            "--only" => only = Some(arguments.next().context("--only wants a word")?),
            _ => {
                println!("{HELP}");
                return Ok(());
            }
        }
    }
    if std::env::var_os(INSIDE).is_none() {
        // Settings and counts of the network are those of this namespace, and so are its ports.
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]);
        command.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1");
        return Err(command.exec()).context("cannot run unshare (util-linux)");
    }
    let begin = Instant::now();
    process::end_within(TIMEOUT)?;
    process::raise_descriptors(DESCRIPTORS)?;
    let heading = report::heading("overload", &format!("{DESCRIPTORS} descriptors"))?;
    let mut text = heading;
    if only.as_deref().is_none_or(|only| only == "sockets") {
        text += &sockets::measure()?;
    }
    if only.as_deref() != Some("sockets") {
        text += &attacks::measure(only.as_deref().unwrap_or_default())?;
    }
    println!("{text}");
    eprintln!("done in {:.0} s", begin.elapsed().as_secs_f64());
    if is_recorded {
        report::record(&text, "-overload.txt")?;
    }
    Ok(())
}
