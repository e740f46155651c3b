//! What the plane and the rest of the process share.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use async_channel::Receiver;
use concurrent_queue::ConcurrentQueue;
use tracing::{info, warn};

use super::report::{Report, State};
use super::{Doubt, Hint};
use crate::limits::{DOUBTS_LEN_MAX, HINTS_LEN_MAX, WORKERS_MAX};
use crate::tally::{Count, Gauge, Tally as _};

/// Numbers, a state, and whether the plane is to end.
pub struct Shared {
    pub counters: Counters,
    pub hints: Inbox<Hint>,
    pub doubts: Inbox<Doubt>,
    state: Mutex<State>,
    /// Closed when the plane is to end; nothing is ever sent.
    end: Receiver<Infallible>,
}

/// See [`Report`].
#[derive(Default)]
pub struct Counters {
    pub hints_taken: Count,
    pub hints_dropped: Count,
    pub fills_done: Count,
    pub fills_failed: Count,
    pub fills_damaged: Count,
    pub fills_refused: Count,
    pub filled_bytes: Count,
    pub stored_bytes: Count,
    pub evictions: Count,
    pub evicted_bytes: Count,
    pub scrubbed_paths: Count,
    pub scrubbed_files: Count,
    pub scrubbed_bytes: Count,
    pub scrubs: Count,
    /// Seconds since 1970; 0 before the first.
    pub scrub_ended_s: Gauge,
    pub scrub_progress_ppm: Gauge,
    pub quarantined_files: Count,
    pub damaged_paths: Gauge,
    pub len_max: Gauge,
}

/// What workers put in and the plane takes out. No lock: the plane may be kept from its core for long at any place, and a worker
/// that puts something in must not wait for it.
pub struct Inbox<T> {
    queue: ConcurrentQueue<T>,
    len_max: usize,
}

impl<T> Inbox<T> {
    /// One with `len_max` places.
    fn new(len_max: usize) -> Self {
        // In a queue that is full, who puts something in waits for who is just taking something out. So it never is: beyond these
        // places there is one for each worker that has seen one of them free.
        Self { queue: ConcurrentQueue::bounded(len_max + WORKERS_MAX), len_max }
    }

    /// Puts something in; false when there is no place.
    pub fn put(&self, item: T) -> bool {
        self.queue.len() < self.len_max && self.queue.push(item).is_ok()
    }

    /// Takes out what was put in first.
    pub fn take(&self) -> Option<T> {
        self.queue.pop().ok()
    }
}

impl Shared {
    pub fn new(end: Receiver<Infallible>) -> Self {
        Self {
            counters: Counters::default(),
            hints: Inbox::new(HINTS_LEN_MAX),
            doubts: Inbox::new(DOUBTS_LEN_MAX),
            state: Mutex::new(State::Working),
            end,
        }
    }

    /// Whether the plane is to end.
    pub fn is_ending(&self) -> bool {
        self.end.is_closed()
    }

    /// Comes when the plane is to end.
    pub async fn end(&self) {
        // Nothing is ever sent, so this is the channel's end.
        let _ = self.end.recv().await;
    }

    /// Enters a state, and says so if it is another kind than before; whether it has.
    pub fn enter(&self, state: State) -> bool {
        let is_news = {
            let mut present = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let is_news = std::mem::discriminant(&*present) != std::mem::discriminant(&state);
            *present = state;
            is_news
        };
        if is_news {
            // Only the plane enters states, one after the other.
            match self.state() {
                State::Working => info!("the NAR cache works again"),
                state @ State::Full(_) => warn!("the NAR cache is {state}; NARs are served live"),
                state @ State::Failing(_) => {
                    warn!("the NAR cache is {state}; NARs are served live, and it is tried again");
                }
            }
        }
        is_news
    }

    /// The present state.
    pub fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn report(&self, used_bytes: u64) -> Report {
        let counters = &self.counters;
        Report {
            state: self.state(),
            hints_taken: counters.hints_taken.get(),
            hints_dropped: counters.hints_dropped.get(),
            fills_done: counters.fills_done.get(),
            fills_failed: counters.fills_failed.get(),
            fills_damaged: counters.fills_damaged.get(),
            fills_refused: counters.fills_refused.get(),
            filled_bytes: counters.filled_bytes.get(),
            stored_bytes: counters.stored_bytes.get(),
            evictions: counters.evictions.get(),
            evicted_bytes: counters.evicted_bytes.get(),
            scrubbed_paths: counters.scrubbed_paths.get(),
            scrubbed_files: counters.scrubbed_files.get(),
            scrubbed_bytes: counters.scrubbed_bytes.get(),
            scrubs: counters.scrubs.get(),
            scrub_ended_s: Some(counters.scrub_ended_s.get()).filter(|ended_s| *ended_s > 0),
            scrub_progress_ppm: counters.scrub_progress_ppm.get(),
            quarantined_files: counters.quarantined_files.get(),
            damaged_paths: counters.damaged_paths.get(),
            used_bytes,
            len_max: counters.len_max.get(),
        }
    }
}
