//! What the process asks of the machine: a core for each worker, descriptors, signals.

use std::io::{self, IsTerminal as _};
use std::thread;

use rustix::process::Resource;
use rustix::thread::CpuSet;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::warn;

use crate::limits::CONNECTIONS_MAX;

/// Keeps the calling thread on one of the cores that the process may use.
pub fn pin(index: usize) {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return };
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
    let Some(&core) = cores.get(index % cores.len().max(1)) else { return };
    let mut set = CpuSet::new();
    set.set(core);
    if let Err(errno) = rustix::thread::sched_setaffinity(None, &set) {
        warn!("cannot keep worker {index} on core {core} ({errno}); it goes where the kernel puts it");
    }
}

/// Lowers the priority of the calling thread by `nice`, of which Linux has one for each thread (nice(2)).
pub fn be_nice(nice: i32) {
    // Without it the thread only gets in the way of others.
    let _ = rustix::process::nice(nice);
}

/// Raises the limit of open files as far as this process may, and says how many there can be: every connection and every
/// file under way is one, and the usual limit is for programs that use select(2).
pub fn raise_descriptor_limit() -> usize {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    if let Err(errno) = rustix::process::setrlimit(Resource::Nofile, limit) {
        warn!("cannot raise the limit of open files ({errno})");
        limit.current = before;
    }
    limit.current.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX)
}

/// The connections that a worker takes: a quarter of the descriptors is left for files, so that those who are connected
/// can be served.
pub fn connections_max(descriptors_max: usize, workers: usize) -> usize {
    (descriptors_max / 4 * 3 / workers.max(1)).clamp(1, CONNECTIONS_MAX)
}

/// What somebody wants of a process by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// That it ends.
    End,
    /// That it reads again what may have changed.
    Reload,
}

/// Calls `notice` for each SIGTERM, SIGINT and SIGHUP, on a thread of its own, until it says that nobody listens any more.
///
/// SIGHUP has two meanings. Whoever sends it by hand wants the process to reload; the kernel sends it when the terminal is closed that
/// the process was started in, and then it should end as other programs do.
pub fn notice_signals(notice: impl Fn(Signal) -> bool + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let has_terminal = io::stderr().is_terminal();
    let forward = move || {
        for signal in signals.forever() {
            let is_hung_up = || has_terminal && !io::stderr().is_terminal();
            let wanted = if signal == SIGHUP && !is_hung_up() { Signal::Reload } else { Signal::End };
            if !notice(wanted) {
                return;
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(forward).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_keep_a_share_of_the_descriptors() {
        assert_eq!(connections_max(20_000, 2), 7_500);
        assert_eq!(connections_max(usize::MAX, 1), CONNECTIONS_MAX);
        assert_eq!(connections_max(4, 64), 1);
    }
}
