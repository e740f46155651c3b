//! What the process asks of the machine: a core for each worker, descriptors, signals; and how it ends when it is broken.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::panic::{self, PanicHookInfo};
use std::process;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Resource;
use rustix::thread::CpuSet;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::warn;

use super::scribe::Scribe;
use crate::limits::{CONNECTIONS_MAX, LAST_WORDS_PIECE_LEN, LAST_WORDS_WAIT};
use crate::ring::sys::raise_limit;

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
    let max = raise_limit(Resource::Nofile);
    max.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX)
}

/// The connections that there is room for: a quarter of the descriptors is left for files, so that those who are connected can be
/// served.
pub fn connections_max(descriptors_max: usize, wanted_max: Option<usize>) -> usize {
    let room = (descriptors_max / 4 * 3).clamp(1, CONNECTIONS_MAX);
    wanted_max.map_or(room, |wanted_max| wanted_max.min(room))
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

/// From now on a panic of any thread ends the process at once, by SIGABRT, after one message that names the thread.
///
/// A panic is a broken invariant. If only its thread ended, clients would wait for ever for what that thread owed them, while the service
/// manager takes the process for well. A release build has nothing else to do (`panic = "abort"`); with this every build does the same,
/// and says who it was. What was logged before comes first.
pub fn abort_on_panic(scribe: Arc<Scribe>) {
    panic::set_hook(Box::new(move |panic| {
        scribe.flush();
        say_at_last(&last_words(panic, &Backtrace::capture()));
        process::abort();
    }));
}

fn last_words(panic: &PanicHookInfo<'_>, backtrace: &Backtrace) -> String {
    let thread = thread::current();
    let name = thread.name().unwrap_or("without a name");
    let place = panic.location().map_or_else(String::new, |place| format!(" at {place}"));
    // On one line, so that it is one entry of a log.
    let text =
        panic.payload_as_str().unwrap_or("of no text").split_whitespace().collect::<Vec<_>>().join(" ");
    let version = env!("CARGO_PKG_VERSION");
    let mut words = format!(
        "narwire: BUG: thread {name} panicked{place}: {text}; the process ends at once, so that it is started anew; \
         please report this line, version {version}, and what was asked last (RUST_BACKTRACE=1 says more)\n"
    );
    if backtrace.status() == BacktraceStatus::Captured {
        words.push_str(&backtrace.to_string());
    }
    words
}

/// Writes to standard error without its lock, which another thread may hold, and without waiting long for whoever should read it.
pub fn say_at_last(words: &str) {
    let stderr = io::stderr();
    let deadline = Instant::now() + LAST_WORDS_WAIT;
    let mut rest = words.as_bytes();
    while !rest.is_empty() {
        let wait = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        let mut polled = [PollFd::new(&stderr, PollFlags::OUT)];
        let is_ready = wait
            .is_some_and(|wait| rustix::event::poll(&mut polled, Some(&wait)).is_ok_and(|ready| ready > 0));
        if !is_ready {
            return;
        }
        // A pipe that is ready has room for so much. There is nobody left to tell of an error.
        let piece = &rest[..rest.len().min(LAST_WORDS_PIECE_LEN)];
        let Ok(len @ 1..) = rustix::io::write(stderr.as_fd(), piece) else { return };
        rest = &rest[len..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_keep_a_share_of_the_descriptors() {
        assert_eq!(connections_max(20_000, None), 15_000);
        assert_eq!(connections_max(usize::MAX, None), CONNECTIONS_MAX);
        assert_eq!(connections_max(3, None), 1);
        assert_eq!(connections_max(20_000, Some(10)), 10);
        assert_eq!(connections_max(20_000, Some(19_000)), 15_000);
    }
}
