//! What the server counts beside its rings, and where the metrics find all of it.

use std::sync::Arc;
use std::time::Instant;

use crate::ring::ledger;
use crate::store::{StoreError, now_s};
use crate::tally::{Count, Gauge, Histogram, OwnCount, Tally as _, classes};

/// What one worker counts.
#[derive(Clone, Debug, Default)]
pub struct WorkerFigures {
    /// Of its ring and its connections.
    pub ring: Arc<ledger::Figures>,
    /// Of what it answers.
    pub node: Arc<NodeFigures>,
}

/// What one worker counts of its answers. Its thread alone writes, in cache lines that no other worker writes.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct NodeFigures {
    /// Questions about a path that were answered from what the worker remembers.
    pub answer_hits: OwnCount,
    /// Those for which the database had to be asked.
    pub answer_misses: OwnCount,
    /// NARs whose layout was known.
    pub layout_hits: OwnCount,
    /// Those whose tree had to be walked.
    pub layout_misses: OwnCount,
    /// NARs that were sent from the NAR cache.
    pub nar_hits: OwnCount,
    /// NARs that were made of their trees, although there is a NAR cache.
    pub nar_misses: OwnCount,
    /// Lines of the access log for which there was no room.
    pub access_dropped: OwnCount,
    /// What was refused because of one of these, by [`NodeLimit`].
    pub limits: [OwnCount; NodeLimit::ALL.len()],
}

/// What all threads count together, seldom.
#[derive(Debug, Default)]
pub struct SharedFigures {
    /// How long questions to databases took, by [`Query`].
    pub queries: [Histogram<Count>; Query::ALL.len()],
    /// Questions that failed.
    pub query_errors: Count,
    /// How long it took to sign a narinfo with all keys.
    pub signing: Histogram<Count>,
    /// Signatures that were made.
    pub signatures: Count,
    /// Long texts that were refused, because too many were being sent.
    pub texts_refused: Count,
    /// Searches, and looks into long NARs, that were refused, because too many take long.
    pub looks_refused: Count,
    /// Requests of people who look around that were refused, because too many of them wait.
    pub browsing_refused: Count,
}

/// What is counted of one plane.
#[derive(Debug)]
pub struct PlaneFigures {
    /// As metrics name it.
    pub name: &'static str,
    /// How many jobs its queue has room for.
    pub queue_len_max: usize,
    /// Jobs that were queued.
    pub queued: Count,
    /// How long those waited that a thread has taken up.
    pub waited: Histogram<Count>,
    /// Jobs for which there was no room.
    pub refused: Count,
}

/// How reading the settings again went.
#[derive(Debug, Default)]
pub struct ReloadFigures {
    /// 1 if the last time went well, else 0.
    pub is_successful: Gauge,
    /// When it last went well: seconds since 1970.
    pub succeeded_s: Gauge,
    /// 1 if the settings were well, but wait for a restart.
    pub is_restart_pending: Gauge,
}

impl SharedFigures {
    /// Asks a database, and notes how long that took and whether it failed.
    pub fn time<T>(
        &self,
        query: Query,
        ask: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let answer = ask();
        self.queries[query as usize].observe(began.elapsed());
        if answer.is_err() {
            self.query_errors.add(1);
        }
        answer
    }
}

impl PlaneFigures {
    /// None yet of a plane with this name.
    pub fn new(name: &'static str, queue_len_max: usize) -> Self {
        Self {
            name,
            queue_len_max,
            queued: Count::default(),
            waited: Histogram::default(),
            refused: Count::default(),
        }
    }

    /// How many jobs wait.
    pub fn queue_len(&self) -> u64 {
        // In this order, and one can still be taken up before it is counted as queued.
        let taken = self.waited.read().count();
        self.queued.get().saturating_sub(taken)
    }
}

impl ReloadFigures {
    /// Of a process that has just read its settings for the first time.
    pub fn begin() -> Self {
        let figures = Self::default();
        figures.note(Some(false));
        figures
    }

    /// They were read again, and wait for a restart or not; `None` if they could not be read.
    pub fn note(&self, is_restart_pending: Option<bool>) {
        self.is_successful.set(u64::from(is_restart_pending.is_some()));
        if let Some(is_restart_pending) = is_restart_pending {
            self.is_restart_pending.set(u64::from(is_restart_pending));
            self.succeeded_s.set(now_s());
        }
    }
}

classes! {
    /// A question to the database.
    Query {
        /// What is known of a path.
        PathInfo = "path_info",
        /// A realisation.
        Realisation = "realisation",
        /// The same in its later form.
        BuildTrace = "build_trace",
        /// Where debug symbols are.
        DebugInfo = "debuginfo",
        /// Paths by the beginning of their names.
        Search = "search",
        /// What refers to a path.
        Referrers = "referrers",
        /// Whether it answers.
        Probe = "probe",
    }
}

/// What is counted of the log, by who writes it.
#[derive(Debug, Default)]
pub struct LogFigures {
    /// Lines, by [`Severity`], but for those of the access log.
    pub lines: [Count; Severity::ALL.len()],
    /// Those that were left out, because one place in the program had too many of them.
    pub suppressed: [Count; Severity::ALL.len()],
    /// Those of `lines` for which there was no room, or that could not be written.
    pub dropped: Count,
    /// Lines of the access log that were written.
    pub access_lines: Count,
    /// Those that could not be. For which there was no room, workers count ([`NodeFigures::access_dropped`]).
    pub access_dropped: Count,
}

classes! {
    /// How bad it is what a line of the log says.
    Severity {
        /// Something does not work.
        Error = "error",
        /// Something is not as it should be.
        Warning = "warn",
        /// Something has happened.
        Information = "info",
    }
}

classes! {
    /// What there is only so much of on a worker, beside what its ring has.
    NodeLimit {
        /// NARs that are compressed on their way: one was refused.
        Encoders = "encoders",
        /// Memory for layouts: a NAR whose tree would have had to be walked was refused.
        Layouts = "layouts",
        /// Wrong tokens of one client: it was told to come later.
        WrongTokens = "wrong_tokens",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_timed_whether_it_fails_or_not() {
        let figures = SharedFigures::default();
        assert_eq!(figures.time(Query::Probe, || Ok(7)).unwrap(), 7);
        let failed = figures.time(Query::Search, || Err::<(), _>(broken()));
        assert!(failed.is_err());
        let counts = figures.queries.each_ref().map(|query| query.read().count());
        assert_eq!(counts, Query::ALL.map(|query| u64::from(matches!(query, Query::Probe | Query::Search))));
        assert_eq!(figures.query_errors.get(), 1);
    }

    fn broken() -> StoreError {
        StoreError::Damaged { subject: "x".to_owned(), reason: "y".to_owned() }
    }

    #[test]
    fn what_was_read_without_success_leaves_the_time_of_the_last_success() {
        let figures = ReloadFigures::begin();
        assert_eq!(figures.is_successful.get(), 1);
        figures.succeeded_s.set(5);
        figures.note(None);
        assert_eq!((figures.is_successful.get(), figures.succeeded_s.get()), (0, 5));
        figures.note(Some(true));
        assert!(figures.is_successful.get() == 1 && figures.succeeded_s.get() > 5);
    }
}
