//! Uploads what appears in the database, until somebody interrupts.
//!
//! Paths are followed by their rows, whose numbers only rise, so nothing is missed between two looks. While the cache cannot be reached,
//! the place in the rows is all that has to be remembered. What fails for a reason of its own is tried again, less and less often.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::closure::Wanted;
use super::{Event, PushError, Pusher, retry, sleep};
use crate::codec::store_path::StorePath;
use crate::limits::{PUSH_BATCH, WATCH_BACKOFF_MIN, WATCH_INTERVAL, WATCH_PENDING_MAX};
use crate::store::change::{ChangeCounter, Stamp};
use crate::store::db::RowId;
use crate::store::{LocalStore, StoreError};

/// How far a watch is.
struct Watch {
    counter: Option<ChangeCounter>,
    /// The state of the database in which there was nothing more to do.
    done_with: Option<Stamp>,
    /// All paths up to this row were uploaded, or are pending.
    last_row: RowId,
    /// Paths that could not be uploaded.
    pending: BTreeSet<StorePath>,
    retry: Retry,
}

/// When what failed is tried again.
#[derive(Debug, Default)]
struct Retry {
    /// `None` while nothing has failed.
    at: Option<Instant>,
    /// How often in a row.
    failures: u32,
}

impl Pusher {
    /// Uploads what is registered from now on, and what is `wanted` beside, until it is interrupted. The first contact has to show that
    /// the cache is one; from then on nothing but an interruption ends it.
    pub fn watch(
        &mut self,
        wanted: Option<Wanted>,
        report: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), PushError> {
        let last_row = match wanted {
            Some(Wanted::All) => RowId::default(),
            _ => self.database.last_row()?,
        };
        let pending = match wanted {
            Some(Wanted::These(paths) | Wanted::Appeared(paths)) => paths.into_iter().collect(),
            Some(Wanted::All) | None => BTreeSet::new(),
        };
        let at = (!pending.is_empty()).then(Instant::now);
        let retry = Retry { at, ..Retry::default() };
        let mut watch = Watch { counter: None, done_with: None, last_row, pending, retry };
        loop {
            match self.greet().and_then(|()| self.round(&mut watch, report)) {
                Ok(()) => {}
                Err(PushError::Interrupted) => return Ok(()),
                Err(error) if !self.is_greeted && !error.is_transient() => return Err(error),
                Err(error) => {
                    let delay = watch.retry.later(Instant::now());
                    report(Event::Waiting { delay, reason: &error.to_string() });
                    if !sleep(delay, &[&self.settings.interrupted]) {
                        return Ok(());
                    }
                }
            }
            if !sleep(WATCH_INTERVAL, &[&self.settings.interrupted]) {
                return Ok(());
            }
        }
    }

    /// Uploads what there is to upload now. An error leaves everything to the next round.
    fn round(&mut self, watch: &mut Watch, report: &mut dyn FnMut(Event<'_>)) -> Result<(), PushError> {
        let mut is_due = watch.retry.is_due(Instant::now());
        // Read before the rows: what comes in between is found again.
        let stamp = watch.stamp(&self.settings.store)?;
        if watch.done_with == Some(stamp) && !is_due {
            return Ok(());
        }
        // Another database has taken its place.
        watch.last_row = watch.last_row.min(self.database.last_row()?);
        loop {
            let rows = self.database.valid_paths(watch.last_row, PUSH_BATCH)?;
            let is_last = rows.len() < PUSH_BATCH as usize;
            let last_row = rows.last().map_or(watch.last_row, |(row, _)| *row);
            let mut wanted = Vec::new();
            for (_, path) in rows {
                match path {
                    Ok(path) => wanted.push(path),
                    Err(error) => {
                        report(Event::Failed { path: "a row of the database", reason: &error.to_string() });
                    }
                }
            }
            if is_due {
                // All that failed is looked at again.
                self.outcome.failed.clear();
                wanted.extend(watch.pending.iter().cloned());
            }
            let wanted = Wanted::Appeared(wanted);
            self.push(&wanted, report)?;
            watch.last_row = last_row;
            watch.settle(&wanted, is_due, |path| {
                self.outcome.failed.contains_key(&path.full(&self.settings.store.store_dir))
            });
            is_due = false;
            if is_last {
                watch.done_with = Some(stamp);
                return Ok(());
            }
        }
    }
}

impl Watch {
    fn stamp(&mut self, store: &LocalStore) -> Result<Stamp, StoreError> {
        let current = self.counter.take().filter(ChangeCounter::still_current);
        let counter = current.map_or_else(|| ChangeCounter::open(store), Ok)?;
        let stamp = counter.stamp();
        self.counter = Some(counter);
        Ok(stamp)
    }

    /// Takes note of which of `wanted` have failed.
    fn settle(&mut self, wanted: &Wanted, was_due: bool, has_failed: impl Fn(&StorePath) -> bool) {
        let Wanted::Appeared(paths) = wanted else { return };
        for path in paths {
            if !has_failed(path) {
                self.pending.remove(path);
            } else if self.pending.len() < WATCH_PENDING_MAX {
                self.pending.insert(path.clone());
            }
        }
        if self.pending.is_empty() {
            self.retry = Retry::default();
        } else if was_due || self.retry.at.is_none() {
            self.retry.later(Instant::now());
        }
    }
}

impl Retry {
    fn is_due(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }

    /// Doubles the wait, and gives it.
    fn later(&mut self, now: Instant) -> Duration {
        let chance = getrandom::u32().unwrap_or_default();
        let delay = retry::doubled(WATCH_BACKOFF_MIN, self.failures, chance);
        self.failures = self.failures.saturating_add(1);
        self.at = Some(now + delay);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PUSH_BACKOFF_MAX;

    fn path(number: usize) -> StorePath {
        StorePath::parse_base_name(&format!("{}-{number}", "0".repeat(32))).unwrap()
    }

    fn watch() -> Watch {
        Watch {
            counter: None,
            done_with: None,
            last_row: RowId::default(),
            pending: BTreeSet::new(),
            retry: Retry::default(),
        }
    }

    fn settle(watch: &mut Watch, paths: &[usize], was_due: bool, failed: &[usize]) {
        let wanted = Wanted::Appeared(paths.iter().copied().map(path).collect());
        watch.settle(&wanted, was_due, |found| failed.iter().any(|number| path(*number) == *found));
    }

    #[test]
    fn what_failed_is_pending_until_it_is_there() {
        let mut watch = watch();
        settle(&mut watch, &[1, 2, 3], false, &[2, 3]);
        assert_eq!(watch.pending, BTreeSet::from([path(2), path(3)]));
        let first = watch.retry.at.unwrap();
        assert!(!watch.retry.is_due(Instant::now()) && watch.retry.is_due(first));
        // What else fails meanwhile does not put it off.
        settle(&mut watch, &[4], false, &[4]);
        assert_eq!((watch.retry.at, watch.retry.failures), (Some(first), 1));
        settle(&mut watch, &[2, 3, 4], true, &[3]);
        assert_eq!((&watch.pending, watch.retry.failures), (&BTreeSet::from([path(3)]), 2));
        settle(&mut watch, &[3], true, &[]);
        assert_eq!((watch.pending.len(), watch.retry.at, watch.retry.failures), (0, None, 0));
    }

    #[test]
    fn no_more_is_pending_than_there_is_room_for() {
        let mut watch = watch();
        let all: Vec<usize> = (0..WATCH_PENDING_MAX + 5).collect();
        let wanted = Wanted::Appeared(all.into_iter().map(path).collect());
        watch.settle(&wanted, false, |_| true);
        assert_eq!(watch.pending.len(), WATCH_PENDING_MAX);
    }

    #[test]
    fn the_longer_it_fails_the_longer_is_waited() {
        let mut retry = Retry::default();
        let now = Instant::now();
        let delays: Vec<Duration> = (0..40).map(|_| retry.later(now)).collect();
        assert!(delays[0] >= WATCH_BACKOFF_MIN / 2 && delays[39] >= PUSH_BACKOFF_MAX / 2);
        assert!(delays.iter().all(|delay| *delay <= PUSH_BACKOFF_MAX));
    }
}
