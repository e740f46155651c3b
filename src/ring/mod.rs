//! Layer 1b: the kernel. It knows HTTP framing and no Nix.
//!
//! [`op`] is the seam: everything above it is logic that can be run against the real ring ([`uring`]) or a simulated one,
//! everything below it is system calls. [`reactor`] is the loop of one worker, [`connection`] one peer, [`transfer`] one
//! body on its way out, [`intake`] one on its way in; [`admission`] is who may be connected, [`service`] how policy is asked,
//! [`ledger`] what is counted of all that.

pub mod admission;
pub mod body;
pub mod buffer_ring;
pub mod capability;
pub mod connection;
pub mod descriptor;
pub mod inbox;
pub mod intake;
pub mod ledger;
pub mod op;
pub mod pool;
pub mod reactor;
pub mod restriction;
pub mod service;
#[cfg(any(test, fuzzing))]
pub mod sim;
pub mod sys;
pub mod transfer;
pub mod uring;

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use op::{Completion, Submission};

/// What carries operations out: the kernel's ring, or a simulation.
pub trait Driver {
    /// Takes an operation. Nothing of it happens before [`Driver::wait`], save what needs no waiting.
    fn submit(&mut self, submission: Submission);

    /// Hands what was submitted to the kernel and waits until something completes or the time is over. Says when the waiting began,
    /// which is after whatever had to be done at once.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Instant>;

    /// The next completion, if there is one. What it lends is valid until the next call.
    fn next_completion(&mut self) -> Option<Completion<'_>>;

    /// What time it is. Asked once a turn.
    fn time(&self) -> Time;

    /// What has gone in and come out since this was asked before. Asked once a turn, behind [`Driver::wait`].
    fn take_traffic(&mut self) -> Traffic;
}

/// What has gone into a ring, and come out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Entries handed to it.
    pub submissions: u64,
    /// Completions taken from it.
    pub completions: u64,
    /// Whether there were more of them than it has room for.
    pub has_overflowed: bool,
}

/// What time it is.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// For deadlines.
    pub instant: Instant,
    /// For people: seconds since 1970.
    pub wall_s: u64,
}

impl Time {
    /// As the kernel's clocks say.
    pub fn now() -> Self {
        let wall_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        Self { instant: Instant::now(), wall_s }
    }
}

/// A driver that somebody else looks at afterwards.
#[cfg(test)]
impl<D: Driver> Driver for &mut D {
    fn submit(&mut self, submission: Submission) {
        (**self).submit(submission);
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Instant> {
        (**self).wait(timeout)
    }

    fn next_completion(&mut self) -> Option<Completion<'_>> {
        (**self).next_completion()
    }

    fn time(&self) -> Time {
        (**self).time()
    }

    fn take_traffic(&mut self) -> Traffic {
        (**self).take_traffic()
    }
}
