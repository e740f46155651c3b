//! What the background plane says of itself.

use std::fmt;

/// How the NAR cache is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// As it should.
    Working,
    /// Nothing more fits in, for this reason, and nothing of what is there may go.
    Full(String),
    /// It cannot be written, with the reason; tried again after a while.
    Failing(String),
}

/// What was done, counted since the start, and what there is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How it is doing.
    pub state: State,
    /// Hints that were taken.
    pub hints_taken: u64,
    /// Hints that were dropped because too many waited.
    pub hints_dropped: u64,
    /// NARs that were encoded and are there.
    pub fills_done: u64,
    /// NARs that could not be encoded: they cannot be read, or their files not be written. Each try counts.
    pub fills_failed: u64,
    /// NARs that could not be encoded because their trees are damaged.
    pub fills_damaged: u64,
    /// NARs that are too long, or for which there was no room.
    pub fills_refused: u64,
    /// All that was encoded, as NARs. Bytes.
    pub filled_bytes: u64,
    /// What that has become. Bytes of files.
    pub stored_bytes: u64,
    /// Files that were removed to make room, or because their path is gone.
    pub evictions: u64,
    /// Length of these. Bytes.
    pub evicted_bytes: u64,
    /// Store paths that were compared with the database.
    pub scrubbed_paths: u64,
    /// Cached files that were compared with the catalog.
    pub scrubbed_files: u64,
    /// What was read for that. Bytes.
    pub scrubbed_bytes: u64,
    /// Passes over everything that have ended.
    pub scrubs: u64,
    /// When the last one ended, this process' or one of before: seconds since 1970.
    pub scrub_ended_s: Option<u64>,
    /// How far the pass under way has come; all of it between two passes. Millionths.
    pub scrub_progress_ppm: u64,
    /// Cached files that were found damaged and put aside.
    pub quarantined_files: u64,
    /// Valid paths whose trees are damaged, now.
    pub damaged_paths: u64,
    /// Length of all cached files, now. Bytes.
    pub used_bytes: u64,
    /// What they may take. Bytes.
    pub len_max: u64,
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Working => formatter.write_str("working"),
            Self::Full(reason) => write!(formatter, "full: {reason}"),
            Self::Failing(reason) => write!(formatter, "failing: {reason}"),
        }
    }
}
