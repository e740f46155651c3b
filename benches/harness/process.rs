//! This process: its core, its descriptors, and its end, which comes in time.

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::site;

/// Keeps this thread, and those it starts from now on, on one core.
pub fn pin(core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}

/// Raises the limit of descriptors for this process and those it starts, as far as allowed towards `wanted`; says how many.
pub fn raise_descriptors(wanted: u64) -> io::Result<u64> {
    let maximum = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let limit = |maximum: u64| Rlimit { current: Some(maximum), maximum: Some(maximum) };
    // Only root may have more than the maximum.
    let raised = wanted.max(maximum);
    if maximum < wanted && setrlimit(Resource::Nofile, limit(raised)).is_ok() {
        return Ok(raised);
    }
    setrlimit(Resource::Nofile, limit(maximum))?;
    Ok(maximum)
}

/// Drops all that is clean, of the whole machine: pages, and what is known of names and files. For root only.
pub fn empty_page_cache() -> anyhow::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("/proc/sys/vm/drop_caches")
}

/// Ends this process in order when it is told to, or after `limit`: what it wrote is removed; its servers end with it.
pub fn end_within(limit: Duration) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::spawn(move || {
        signals.forever().next();
        end("told to end");
    });
    thread::spawn(move || {
        thread::sleep(limit);
        end(&format!("not done after {} s", limit.as_secs()));
    });
    Ok(())
}

fn end(reason: &str) -> ! {
    eprintln!("{reason}: removing the files");
    site::remove_own();
    std::process::exit(1)
}
