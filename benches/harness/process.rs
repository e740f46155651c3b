//! This process: its core, its descriptors, and its end, which comes in time.

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Keeps this thread, and those it starts from now on, on one core.
pub fn pin(core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}

/// How many cores there are, whichever of them this thread is kept on.
pub fn cores() -> io::Result<usize> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    Ok(cpuinfo.lines().filter(|line| line.starts_with("processor")).count())
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

/// Ends this process after `limit`. Its servers end with it, and its files are removed, as when it is killed.
pub fn end_within(limit: Duration) -> io::Result<()> {
    let timer = move || {
        thread::sleep(limit);
        eprintln!("not done after {} s", limit.as_secs());
        std::process::exit(1);
    };
    thread::Builder::new().spawn(timer).map(drop)
}
