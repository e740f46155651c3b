//! Layer 2c: uploads what a local store has to a binary cache that takes PUT.
//!
//! 1. [`closure`] asks the database for all that a path refers to.
//! 2. The cache is asked which of it it lacks: one HEAD each, over a few connections ([`client`]).
//! 3. A few threads take what is next from the [`schedule`]. A NAR is read and compressed ([`nar`]), compared with the database, and sent
//!    unless the cache has that file; a narinfo goes out when its NAR and all that it refers to are there.
//!
//! Nothing is remembered between two runs: whoever was interrupted asks again. What fails does not keep the rest from being uploaded,
//! unless the rest would fail alike ([`client::ClientError::is_general`]). Memory does not grow with the length of a NAR, and by some 200
//! bytes with each path.
//!
//! The threads are never waited for when somebody interrupts: what they hold goes away with the process, temporary files included.

pub mod address;
pub mod client;
pub mod closure;
pub mod credentials;
mod hosts;
pub mod nar;
pub mod netrc;
pub mod resolve;
pub mod retry;
pub mod schedule;
mod watch;
mod worker;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::codec::signature::SecretKey;
use crate::codec::store_path::{HashPart, StorePath};
use crate::limits::{PUSH_NAMES_MAX, PUSH_QUERIES_MAX, PUSH_TICK, WATCH_KNOWN_MAX};
use crate::store::db::Database;
use crate::store::{LocalStore, StoreError};
use address::narinfo_name;
use client::{Cache, ClientError, Wait};
use closure::{Closure, Wanted};
use nar::Encoding;
use resolve::ResolveError;
use worker::{Done, Upload};

/// What is uploaded from where to where, and how.
pub struct Settings {
    /// Whose paths.
    pub store: LocalStore,
    /// To where.
    pub cache: Cache,
    /// Sign what is uploaded, beside the signatures that the database has.
    pub secret_keys: Arc<[SecretKey]>,
    /// How NARs are compressed.
    pub encoding: Encoding,
    /// How many uploads at once; at least 1.
    pub jobs: usize,
    /// For temporary files.
    pub spool: PathBuf,
    /// Whether nothing is to be changed.
    pub is_rehearsal: bool,
    /// Set by somebody who wants it to end.
    pub interrupted: Arc<AtomicBool>,
}

/// Why no more was uploaded.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The database cannot be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cache wants nothing, or is none.
    #[error(transparent)]
    Cache(ClientError),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// Somebody wanted it to end.
    #[error("interrupted; what was uploaded stays, and the same command goes on with the rest")]
    Interrupted,
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Paths that were to be there in the end.
    pub paths: u64,
    /// Those that were there before.
    pub present: u64,
    /// Those that were not.
    pub missing: Names,
    /// Length of the NARs of those. Bytes.
    pub missing_bytes: u64,
    /// Those that are there now and were not before.
    pub uploaded: Names,
    /// Length of the NARs of those. Bytes.
    pub nar_bytes: u64,
    /// Length of the files that were sent. Bytes.
    pub sent_bytes: u64,
    /// Those that went away meanwhile.
    pub gone: u64,
    /// Those that are not there, and why. All of them, and of a watch those of the last try.
    pub failed: BTreeMap<String, String>,
}

/// Some store paths: all are counted, and no more than [`PUSH_NAMES_MAX`] named.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// How many.
    pub count: u64,
    /// The first of them.
    pub names: Vec<String>,
}

/// What happens, for somebody who watches.
#[derive(Debug)]
pub enum Event<'a> {
    /// So many paths are to be there in the end, as far as it is known.
    Gathered(usize),
    /// It is known of so many, of so many, whether they are there.
    Asked(usize, usize),
    /// A path is there now.
    Uploaded {
        /// Its full name.
        path: &'a str,
        /// Length of the NAR. Bytes.
        nar_size: u64,
        /// Length of the file. Bytes.
        file_size: u64,
    },
    /// A path will not be there.
    Failed {
        /// Its full name.
        path: &'a str,
        /// In words.
        reason: &'a str,
    },
    /// Some time has gone by.
    Progress(&'a Progress<'a>),
    /// A watch has to wait, for this reason.
    Waiting {
        /// Until it is tried again.
        delay: Duration,
        /// In words.
        reason: &'a str,
    },
}

/// How far the uploads are.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Paths that are done with.
    pub done: usize,
    /// Paths that were missing.
    pub total: usize,
    /// Length of the NARs that are there, and of the parts of others. Bytes.
    pub done_bytes: u64,
    /// Length of the NARs of all that were missing. Bytes.
    pub total_bytes: u64,
    /// What is being done now; one for each thread.
    pub lanes: &'a [Option<Lane>],
}

/// What a thread does.
#[derive(Debug, Clone)]
pub struct Lane {
    /// For whom.
    pub path: StorePath,
    /// What.
    pub doing: Doing,
    /// How far. Bytes.
    pub done_bytes: u64,
    /// Of how much. Bytes; never 0.
    pub total_bytes: u64,
    /// Length of the NAR. Bytes.
    pub nar_size: u64,
}

/// See [`Lane`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doing {
    /// Its NAR is read and compressed.
    Encoding,
    /// Its NAR is sent.
    Sending,
    /// Another try will be made; this is why.
    Waiting(String),
}

/// Uploads, once or again and again.
pub struct Pusher {
    settings: Arc<Settings>,
    database: Database,
    /// Paths that are in the cache, as far as that is remembered.
    known: HashSet<HashPart>,
    /// Whether the cache was found to be one.
    is_greeted: bool,
    /// All that came of it so far.
    pub outcome: Outcome,
}

impl Pusher {
    /// Opens the database; asks the cache nothing yet.
    pub fn new(settings: Settings) -> Result<Self, PushError> {
        let database = Database::open(&settings.store)?;
        Ok(Self {
            settings: Arc::new(settings),
            database,
            known: HashSet::new(),
            is_greeted: false,
            outcome: Outcome::default(),
        })
    }

    /// The valid store path that somebody means by `typed`.
    pub fn resolve(&mut self, typed: &Path) -> Result<StorePath, ResolveError> {
        resolve::resolve(&self.settings.store, &mut self.database, typed)
    }

    /// Uploads what the cache lacks of what is wanted. Whether single paths failed is said by the outcome, which has what was done even
    /// if an error ends it.
    pub fn push(&mut self, wanted: &Wanted, report: &mut dyn FnMut(Event<'_>)) -> Result<(), PushError> {
        self.greet()?;
        let interrupted = Arc::clone(&self.settings.interrupted);
        let gathered = Closure::gather(&mut self.database, wanted, &mut |count| {
            report(Event::Gathered(count));
            !interrupted.load(Ordering::Relaxed)
        })?;
        let closure = gathered.ok_or(PushError::Interrupted)?;
        self.outcome.paths += (closure.entries.len() + closure.bad_rows.len()) as u64;
        for error in &closure.bad_rows {
            let (row, reason) = match error {
                StoreError::Damaged { subject, reason } => (subject.clone(), reason.clone()),
                other => ("a row of the database".to_owned(), other.to_string()),
            };
            self.outcome.fail(&row, &reason, report);
        }
        let is_there = self.ask(&closure, report)?;
        let missing = |position: &usize| !is_there[*position] && closure.entries[*position].problem.is_none();
        for entry in (0..closure.entries.len()).filter(missing).map(|position| &closure.entries[position]) {
            self.outcome.missing.add(entry.path.full(&self.settings.store.store_dir));
            add(&mut self.outcome.missing_bytes, entry.nar_size);
        }
        if self.settings.is_rehearsal {
            for entry in &closure.entries {
                if let Some(problem) = &entry.problem {
                    let path = entry.path.full(&self.settings.store.store_dir);
                    self.outcome.fail(&path, &problem.to_string(), report);
                }
            }
            return Ok(());
        }
        self.upload(closure, &is_there, !matches!(wanted, Wanted::These(_)), report)
    }

    /// Asks once whether the cache is one.
    fn greet(&mut self) -> Result<(), PushError> {
        if self.is_greeted {
            return Ok(());
        }
        let (settings, (answer, answers)) = (Arc::clone(&self.settings), channel());
        let greet = move || {
            let Settings { cache, store, is_rehearsal, interrupted, .. } = &*settings;
            let wait = |delay, _: &ClientError| sleep(delay, &[interrupted]);
            // Nobody may be listening any more.
            let _ = answer.send(cache.greet(&store.store_dir, *is_rehearsal, &wait));
        };
        // Whoever interrupts does not wait for a server that says nothing.
        spawn("greet", greet)?;
        loop {
            if let Some(answer) = receive(&answers, &self.settings.interrupted)? {
                self.is_greeted = answer.is_ok();
                return Ok(answer?);
            }
        }
    }

    /// Which paths of the closure are in the cache.
    fn ask(&mut self, closure: &Closure, report: &mut dyn FnMut(Event<'_>)) -> Result<Vec<bool>, PushError> {
        let mut is_there: Vec<bool> =
            closure.entries.iter().map(|entry| self.known.contains(&entry.path.hash_part())).collect();
        let is_unknown =
            |position: &usize| !is_there[*position] && closure.entries[*position].problem.is_none();
        let questions: Vec<(usize, HashPart)> = (0..closure.entries.len())
            .filter(is_unknown)
            .map(|position| (position, closure.entries[position].path.hash_part()))
            .collect();
        self.outcome.present += is_there.iter().filter(|is_there| **is_there).count() as u64;
        let total = questions.len();
        let answers = Questions::ask(&self.settings, questions)?;
        let mut asked = 0;
        report(Event::Asked(asked, total));
        while asked < total {
            let answer = receive(&answers, &self.settings.interrupted)?;
            let Some((position, answer)) = answer else { continue };
            asked += 1;
            if answer? {
                is_there[position] = true;
                self.outcome.present += 1;
                self.remember(closure.entries[position].path.hash_part());
            }
            report(Event::Asked(asked, total));
        }
        Ok(is_there)
    }

    fn upload(
        &mut self,
        closure: Closure,
        is_there: &[bool],
        spares_the_gone: bool,
        report: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), PushError> {
        let total_bytes = closure
            .entries
            .iter()
            .zip(is_there)
            .filter(|(_, is_there)| !**is_there)
            .fold(0_u64, |total, (entry, _)| total.saturating_add(entry.nar_size));
        let total = is_there.iter().filter(|is_there| !**is_there).count();
        let upload = Upload::new(Arc::clone(&self.settings), closure, is_there);
        let results = upload.begin(total)?;
        let (mut done, mut done_bytes) = (0, 0_u64);
        let mut last_shown = Instant::now();
        while done < total {
            let result = receive(&results, &self.settings.interrupted);
            if result.is_err() {
                upload.end();
            }
            match result? {
                Some(Done::Uploaded { position, file_size }) => {
                    let entry = upload.entry(position);
                    (done, done_bytes) = (done + 1, done_bytes.saturating_add(entry.nar_size));
                    let path = entry.path.full(&self.settings.store.store_dir);
                    self.outcome.failed.remove(&path);
                    report(Event::Uploaded { path: &path, nar_size: entry.nar_size, file_size });
                    self.outcome.uploaded.add(path);
                    add(&mut self.outcome.nar_bytes, entry.nar_size);
                    self.remember(entry.path.hash_part());
                }
                Some(Done::Sent { file_size }) => self.outcome.sent_bytes += file_size,
                Some(Done::Failed { position, reason }) => {
                    let entry = upload.entry(position);
                    (done, done_bytes) = (done + 1, done_bytes.saturating_add(entry.nar_size));
                    // What somebody relied on may be gone: it is asked for again.
                    self.known.clear();
                    let info = self.database.path_info(entry.path.hash_part());
                    if spares_the_gone && matches!(info, Ok(None)) {
                        self.outcome.gone += 1;
                    } else {
                        self.outcome.fail(&entry.path.full(&self.settings.store.store_dir), &reason, report);
                    }
                }
                Some(Done::Ended(error)) => {
                    upload.end();
                    return Err(error);
                }
                None => {}
            }
            if last_shown.elapsed() >= PUSH_TICK || done == total {
                let lanes = upload.lanes();
                let begun = lanes.iter().flatten().map(Lane::sent_of_nar);
                let done_bytes = begun.fold(done_bytes, u64::saturating_add);
                report(Event::Progress(&Progress { done, total, done_bytes, total_bytes, lanes: &lanes }));
                last_shown = Instant::now();
            }
        }
        Ok(())
    }

    /// Only a hint that saves questions, so forgetting all at once will do.
    fn remember(&mut self, hash_part: HashPart) {
        if self.known.len() >= WATCH_KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(hash_part);
    }
}

/// A database that is damaged may claim more than can be counted.
fn add(total_bytes: &mut u64, len_bytes: u64) {
    *total_bytes = total_bytes.saturating_add(len_bytes);
}

impl Outcome {
    fn fail(&mut self, path: &str, reason: &str, report: &mut dyn FnMut(Event<'_>)) {
        report(Event::Failed { path, reason });
        self.failed.insert(path.to_owned(), reason.to_owned());
    }
}

impl Names {
    fn add(&mut self, name: String) {
        self.count += 1;
        if self.names.len() < PUSH_NAMES_MAX {
            self.names.push(name);
        }
    }
}

impl Lane {
    /// How much of the NAR has reached the cache, if its file compressed equally well everywhere. Bytes.
    fn sent_of_nar(&self) -> u64 {
        if self.doing != Doing::Sending {
            return 0;
        }
        let sent =
            u128::from(self.nar_size) * u128::from(self.done_bytes) / u128::from(self.total_bytes.max(1));
        u64::try_from(sent).unwrap_or(self.nar_size).min(self.nar_size)
    }
}

impl From<ClientError> for PushError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Interrupted => Self::Interrupted,
            error => Self::Cache(error),
        }
    }
}

impl PushError {
    /// Whether the same may succeed later, without that anybody changes anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(_) | Self::Thread(_) => true,
            Self::Cache(error) => error.is_transient(),
            Self::Interrupted => false,
        }
    }
}

/// A position of a closure, and whether the path is in the cache.
type HasAnswer = (usize, Result<bool, ClientError>);

/// What the cache is asked for, by a few threads.
struct Questions {
    settings: Arc<Settings>,
    /// Positions and what to ask.
    list: Vec<(usize, HashPart)>,
    next: AtomicUsize,
}

impl Questions {
    /// Begins to ask. An answer comes for each, in any order.
    fn ask(settings: &Arc<Settings>, list: Vec<(usize, HashPart)>) -> Result<Receiver<HasAnswer>, PushError> {
        let threads = list.len().min(PUSH_QUERIES_MAX);
        let questions = Arc::new(Self { settings: Arc::clone(settings), list, next: AtomicUsize::new(0) });
        let (answer, answers) = channel();
        for _ in 0..threads {
            let (questions, answer) = (Arc::clone(&questions), answer.clone());
            let ask = move || {
                let interrupted = &*questions.settings.interrupted;
                let wait = |delay, _: &ClientError| sleep(delay, &[interrupted]);
                let wait: &Wait<'_> = &wait;
                let next = || questions.list.get(questions.next.fetch_add(1, Ordering::Relaxed));
                while let Some((position, hash_part)) =
                    next().filter(|_| !interrupted.load(Ordering::Relaxed))
                {
                    let found = questions.settings.cache.has(&narinfo_name(*hash_part), wait);
                    // Nobody listens any more.
                    if answer.send((*position, found)).is_err() {
                        break;
                    }
                }
            };
            spawn("query", ask)?;
        }
        Ok(answers)
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), PushError> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop).map_err(PushError::Thread)
}

/// The next message, or none after a while. What came before an interruption still counts.
fn receive<T>(messages: &Receiver<T>, interrupted: &AtomicBool) -> Result<Option<T>, PushError> {
    if let Ok(message) = messages.try_recv() {
        return Ok(Some(message));
    }
    if interrupted.load(Ordering::Relaxed) {
        return Err(PushError::Interrupted);
    }
    match messages.recv_timeout(PUSH_TICK) {
        Ok(message) => Ok(Some(message)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => {
            Err(PushError::Thread(io::Error::other("all of them have ended too early")))
        }
    }
}

/// False when one of `ends` was set meanwhile.
fn sleep(delay: Duration, ends: &[&AtomicBool]) -> bool {
    let deadline = Instant::now() + delay;
    loop {
        if ends.iter().any(|end| end.load(Ordering::Relaxed)) {
            return false;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        thread::sleep(left.min(PUSH_TICK));
    }
}

/// What a thread that has panicked leaves is as good as before: each change is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_counts_as_much_as_its_share_of_the_nar() {
        let path = StorePath::parse_base_name(&format!("{}-a", "0".repeat(32))).unwrap();
        let lane = |doing, done_bytes, total_bytes| Lane {
            path: path.clone(),
            doing,
            done_bytes,
            total_bytes,
            nar_size: 1000,
        };
        for (doing, done_bytes, total_bytes, expected) in [
            (Doing::Sending, 0, 10, 0),
            (Doing::Sending, 5, 10, 500),
            (Doing::Sending, 10, 10, 1000),
            (Doing::Sending, 11, 10, 1000),
            (Doing::Sending, u64::MAX, 1, 1000),
            (Doing::Sending, 0, 0, 0),
            (Doing::Encoding, 5, 10, 0),
            (Doing::Waiting(String::new()), 5, 10, 0),
        ] {
            assert_eq!(lane(doing.clone(), done_bytes, total_bytes).sent_of_nar(), expected, "{doing:?}");
        }
    }

    #[test]
    fn lists_are_bounded_and_numbers_are_not() {
        let mut names = Names::default();
        (0..PUSH_NAMES_MAX + 3).for_each(|number| names.add(number.to_string()));
        assert_eq!((names.count, names.names.len()), (PUSH_NAMES_MAX as u64 + 3, PUSH_NAMES_MAX));
    }

    #[test]
    fn whoever_sleeps_wakes_when_it_is_to_end() {
        let (no, yes) = (AtomicBool::new(false), AtomicBool::new(true));
        assert!(sleep(Duration::from_millis(1), &[&no]));
        assert!(!sleep(Duration::from_hours(1), &[&no, &yes]));
    }
}
