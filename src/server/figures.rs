//! What the server counts beside its rings, and where the metrics find all of it.

use std::sync::Arc;

use crate::ring::ledger;
use crate::tally::{Count, Histogram, OwnCount, classes};

/// What one worker counts.
#[derive(Debug, Default)]
pub struct WorkerFigures {
    /// Of its ring and its connections.
    pub ring: Arc<ledger::Figures>,
    /// Of what it answers.
    pub node: Arc<NodeFigures>,
}

/// What one worker counts of its answers. Its thread alone writes.
#[derive(Debug, Default)]
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
}

/// What all threads count together, seldom.
#[derive(Debug, Default)]
pub struct SharedFigures {
    /// How long questions to databases took, by [`Query`].
    pub queries: [Histogram<Count>; Query::ALL.len()],
    /// Questions that failed.
    pub query_errors: Count,
    /// Signatures that were made. How many, and how long each took.
    pub signing: Histogram<Count>,
    /// Long texts that were refused, because too many were being sent.
    pub texts_refused: Count,
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
    /// Lines that were written, by [`Severity`], but for those of the access log.
    pub lines: [Count; Severity::ALL.len()],
    /// Lines of the access log that were written.
    pub access_lines: Count,
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
