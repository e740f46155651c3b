//! Scrubbing: everything that is served is read from the disk and compared with what it must be.
//!
//! Store paths come first, in the order of the database, then cached files, in the order of their names. How far a pass has come is
//! kept in the cache's folder, so that it goes on there after it was killed, if the database is still the same one. The plane makes
//! one pass after another, slowly; `narwire scrub` makes one as fast as it can.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::check::{CheckedFile, CheckedPath, Stop, check_file, check_path};
use super::direct::Disks;
use super::executor;
use super::tree::SinkError;
use super::workshop::{DatabaseDesk, Workshop};
use crate::codec::narinfo::PathInfo;
use crate::codec::store_path::{StoreDir, StorePath};
use crate::limits::{
    SCRUB_BATCH, SCRUB_FINDINGS_MAX, SCRUB_INTERVAL, SCRUB_KEEP_INTERVAL, SCRUB_RESUMED_MAX,
    SCRUB_STATE_LEN_MAX,
};
use crate::store::catalog::{Entry, Record, RootMark, Stored};
use crate::store::change::identity;
use crate::store::db::RowId;
use crate::store::nar_cache::{CacheFolder, CacheFolderError};
use crate::store::{LocalStore, StoreError, fault, now_s};
use crate::tally::Tally as _;

/// How far a pass has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What is looked at.
    pub phase: Phase,
    /// Store paths or files of this phase that were looked at.
    pub done: u64,
    /// How many there are, about.
    pub total: u64,
    /// How much of them was read. Bytes.
    pub done_bytes: u64,
    /// How much there is, about. Bytes.
    pub total_bytes: u64,
    /// The store path or file that is being read.
    pub current: &'a str,
}

/// What a pass looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Store paths, compared with the database.
    #[default]
    StorePaths,
    /// Cached files, compared with the catalog.
    CachedFiles,
}

/// What a pass has found, from its beginning, however often it was killed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Store paths that were read to their ends.
    pub paths: u64,
    /// Cached files that were read to their ends, or have a wrong length.
    pub files: u64,
    /// What was read. Bytes.
    pub bytes: u64,
    /// Whether the beginning was done by a pass that was killed.
    #[serde(skip)]
    pub is_resumed: bool,
    /// Store paths whose trees are not what the database says.
    pub damaged_paths: Findings,
    /// Cached files that were damaged, and were put aside.
    pub quarantined_files: Findings,
    /// What could not be read, each with its reason.
    pub unreadable: Findings,
}

/// Things that were found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// How many.
    pub count: u64,
    /// Their names (store paths in full, files relative to the cache): at most [`SCRUB_FINDINGS_MAX`] of them.
    pub names: Vec<String>,
}

/// Why nothing, or not everything, could be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// The database cannot be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The NAR cache cannot be opened.
    #[error(transparent)]
    Cache(#[from] CacheFolderError),
}

impl Findings {
    fn add(&mut self, name: String) {
        self.count = self.count.saturating_add(1);
        if self.names.len() < SCRUB_FINDINGS_MAX {
            self.names.push(name);
        }
    }
}

/// Makes one pass over a store and a cache, or over one of them, and waits for it. A server may run beside it. A pass over the cache
/// that was killed goes on where it was, unless that is long ago.
///
/// `cache` is its directory, and the store directory of the paths in it. Damaged files in it are put aside.
pub fn scrub(
    store: Option<&LocalStore>,
    cache: Option<(&Path, &StoreDir)>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Outcome, ScrubError> {
    let folder = cache.map(|(path, store_dir)| CacheFolder::open_beside(path, store_dir)).transpose()?;
    let places = store.cloned().map(Arc::new);
    executor::run(async |runtime| {
        let folder = folder.map(Arc::new);
        let database = places.as_ref().and_then(|places| identity(&places.database));
        let kept = Kept::load(folder.as_ref(), COMMAND_STATE_NAME);
        let kept = kept.filter(|kept| !kept.is_finished && kept.is_recent());
        let mut pass = Pass {
            disks: Disks::new(runtime),
            store: places.map(|places| (DatabaseDesk::new(runtime, Arc::clone(&places)), places)),
            folder,
            state_name: COMMAND_STATE_NAME,
            meter: Meter::new(kept, database, Listener::Command(progress)),
        };
        match pass.run().await {
            Ok(()) | Err(Stop::Ended) => Ok(pass.meter.kept.outcome),
            Err(Stop::Store(error)) => Err(error.into()),
        }
    })
}

/// Makes one slow pass after another, until the plane ends.
pub async fn scrub_for_ever(workshop: Rc<Workshop>) {
    let counters = &workshop.shared.counters;
    if workshop.settings.scrub_rate == 0 {
        // Nothing is said to have begun.
        return counters.scrub_progress_ppm.set(WHOLE_PPM);
    }
    let mut kept = Kept::load(Some(&workshop.folder), PLANE_STATE_NAME);
    loop {
        let last_ended_s = kept.as_ref().map_or(0, |kept| kept.last_ended_s);
        counters.scrub_ended_s.set(last_ended_s);
        let ended = kept.take_if(|kept| kept.is_finished);
        if ended.is_some() {
            counters.scrub_progress_ppm.set(WHOLE_PPM);
        }
        let waited_s = ended.map(|ended| now_s().saturating_sub(ended.began_s));
        let left = waited_s.map(|waited_s| SCRUB_INTERVAL.saturating_sub(Duration::from_secs(waited_s)));
        if !workshop.pause(left.unwrap_or_default()).await {
            return;
        }
        let places = Arc::clone(&workshop.places);
        let database = workshop.disks.runtime().wait_for(move || identity(&places.database)).await;
        let mut pass = Pass {
            disks: Rc::clone(&workshop.disks),
            store: Some((workshop.database.clone(), Arc::clone(&workshop.places))),
            folder: Some(Arc::clone(&workshop.folder)),
            state_name: PLANE_STATE_NAME,
            meter: Meter::new(
                kept.take(),
                database,
                Listener::Plane(&workshop, Pace::new(workshop.settings.scrub_rate)),
            ),
        };
        pass.meter.kept.last_ended_s = last_ended_s;
        match pass.run().await {
            Ok(()) => {
                counters.scrubs.add(1);
                let Outcome { paths, files, damaged_paths, quarantined_files, .. } = &pass.meter.kept.outcome;
                let (damaged, quarantined) = (damaged_paths.count, quarantined_files.count);
                info!(
                    "scrubbed {paths} store paths ({damaged} damaged), {files} cached files ({quarantined} damaged)"
                );
            }
            Err(Stop::Ended) => return,
            Err(Stop::Store(error)) => {
                warn!("the scrub cannot go on, and waits: {error}");
                if !workshop.pause(SCRUB_RETRY).await {
                    return;
                }
            }
        }
        kept = Some(pass.meter.kept);
    }
}

/// How long a scrub waits that could not ask the database.
const SCRUB_RETRY: Duration = Duration::from_mins(5);

/// The plane's own pass, and the one of the command. They go on beside each other.
const PLANE_STATE_NAME: &str = "scrub.json";
const COMMAND_STATE_NAME: &str = "scrub-command.json";

/// Where a pass stands, as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// Seconds since 1970.
    began_s: u64,
    /// Device and inode of the database that the rows are of.
    database: Option<(u64, u64)>,
    is_finished: bool,
    phase: Phase,
    /// The last store path that was looked at.
    row: RowId,
    /// The last file that was looked at.
    file: String,
    /// Of this phase.
    done: u64,
    done_bytes: u64,
    outcome: Outcome,
    /// When a pass ended the last time, this one or one before it. Seconds since 1970; 0 if none has.
    #[serde(default)]
    last_ended_s: u64,
}

/// All of something that is told in millionths.
const WHOLE_PPM: u64 = 1_000_000;

impl Kept {
    /// What was kept; none also if nobody can make sense of it, for then a pass begins anew.
    fn load(folder: Option<&Arc<CacheFolder>>, name: &str) -> Option<Self> {
        let text = folder?.kept(name, SCRUB_STATE_LEN_MAX).ok()??;
        serde_json::from_str(&text).ok()
    }

    // What was kept may say anything, such as that there is no greater number.

    fn count_bytes(&mut self, len: u64) {
        self.done_bytes = self.done_bytes.saturating_add(len);
        self.outcome.bytes = self.outcome.bytes.saturating_add(len);
    }

    fn count_one(&mut self) {
        self.done = self.done.saturating_add(1);
    }

    fn count_path(&mut self) {
        self.outcome.paths = self.outcome.paths.saturating_add(1);
    }

    fn count_file(&mut self) {
        self.outcome.files = self.outcome.files.saturating_add(1);
    }

    /// How much was read of a pass whose present phase reads so many bytes, and whose later one so many. Millionths.
    fn progress_ppm(&self, phase_bytes: u64, later_bytes: u64) -> u64 {
        let done = u128::from(self.outcome.bytes);
        let earlier = done.saturating_sub(u128::from(self.done_bytes));
        let all = (earlier + u128::from(phase_bytes) + u128::from(later_bytes)).max(done).max(1);
        u64::try_from(done * u128::from(WHOLE_PPM) / all).unwrap_or(WHOLE_PPM)
    }

    fn is_recent(&self) -> bool {
        let age_s = now_s().checked_sub(self.began_s);
        age_s.is_some_and(|age_s| age_s <= SCRUB_RESUMED_MAX.as_secs())
    }
}

/// One pass.
struct Pass<'a> {
    disks: Rc<Disks>,
    store: Option<(DatabaseDesk, Arc<LocalStore>)>,
    folder: Option<Arc<CacheFolder>>,
    state_name: &'static str,
    meter: Meter<'a>,
}

impl Pass<'_> {
    async fn run(&mut self) -> Result<(), Stop> {
        if self.meter.kept.phase == Phase::StorePaths {
            self.scrub_paths().await?;
            let kept = &mut self.meter.kept;
            (kept.phase, kept.done, kept.done_bytes) = (Phase::CachedFiles, 0, 0);
        }
        self.scrub_files().await?;
        let kept = &mut self.meter.kept;
        (kept.is_finished, kept.last_ended_s) = (true, now_s());
        self.keep().await;
        Ok(())
    }

    async fn scrub_paths(&mut self) -> Result<(), Stop> {
        let Some((database, places)) = self.store.clone() else { return Ok(()) };
        let totals = database.ask(|database| Ok((database.count()?, database.nar_sizes()?)));
        (self.meter.total, self.meter.total_bytes) = totals.await?;
        self.meter.later_bytes = self.folder.as_ref().map_or(0, |folder| folder.catalog().stored_len_bytes());
        loop {
            let after = self.meter.kept.row;
            let paths = database.ask(move |database| database.valid_paths(after, SCRUB_BATCH)).await?;
            if paths.is_empty() {
                return Ok(());
            }
            for (row, path) in paths {
                match self.scrub_row(&database, &places, path).await {
                    // One damaged row must not hide what comes behind it.
                    Err(Stop::Store(error @ StoreError::Damaged { .. })) => {
                        self.meter.found_unreadable(error.to_string());
                    }
                    other => other?,
                }
                self.meter.kept.row = row;
                self.meter.finish_one();
                self.keep_sometimes().await;
            }
        }
    }

    async fn scrub_row(
        &mut self,
        database: &DatabaseDesk,
        places: &Arc<LocalStore>,
        path: Result<StorePath, StoreError>,
    ) -> Result<(), Stop> {
        // Asked for now, because the batch may be hours old.
        match database.path_info(path?.hash_part()).await? {
            Some(info) => self.scrub_path(database, places, &info).await,
            None => Ok(()),
        }
    }

    async fn scrub_path(
        &mut self,
        database: &DatabaseDesk,
        places: &Arc<LocalStore>,
        info: &PathInfo,
    ) -> Result<(), Stop> {
        let full = info.path.full(&places.store_dir);
        self.meter.begin(&full);
        let meter = &mut self.meter;
        let checked =
            check_path(&self.disks, database, places, info, &mut async |len| meter.read(len).await).await?;
        if matches!(checked, CheckedPath::Sound | CheckedPath::Damaged(..)) {
            self.meter.kept.count_path();
            if let Listener::Plane(workshop, _) = &self.meter.listener {
                workshop.shared.counters.scrubbed_paths.add(1);
            }
        }
        match checked {
            CheckedPath::Sound => self.meter.found_sound(info).await,
            CheckedPath::Damaged(mark, reason) => self.meter.found_damaged(info, mark, full, &reason).await,
            CheckedPath::Gone | CheckedPath::Unserved => {}
            CheckedPath::Unreadable(reason) => self.meter.found_unreadable(format!("{full}: {reason}")),
        }
        Ok(())
    }

    async fn scrub_files(&mut self) -> Result<(), Stop> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        let mut files: Vec<_> = folder
            .catalog()
            .records()
            .filter_map(|record| match record.entry {
                Entry::Stored(stored) => {
                    Some((CacheFolder::file_name(&record.nar, stored.coding), record, stored))
                }
                Entry::Damaged(_) => None,
            })
            .collect();
        files.sort_by(|(left, ..), (right, ..)| left.cmp(right));
        self.meter.total = files.len() as u64;
        // A record can say anything as well.
        self.meter.total_bytes =
            files.iter().fold(0, |sum: u64, (.., stored)| sum.saturating_add(stored.file_size));
        self.meter.later_bytes = 0;
        let first = files.partition_point(|(name, ..)| *name <= self.meter.kept.file);
        for (name, record, stored) in files.drain(first..) {
            self.scrub_file(&folder, &name, record, &stored).await?;
            self.meter.kept.file = name;
            self.meter.finish_one();
            self.keep_sometimes().await;
        }
        Ok(())
    }

    async fn scrub_file(
        &mut self,
        folder: &Arc<CacheFolder>,
        name: &str,
        record: Record,
        stored: &Stored,
    ) -> Result<(), Stop> {
        if let Listener::Plane(workshop, _) = self.meter.listener {
            // Nobody is told of a path that is no longer valid, so its file only takes room.
            let info = match workshop.database.path_info(record.nar.0).await {
                // It was looked at among the store paths.
                Err(StoreError::Damaged { .. }) => return Ok(()),
                info => info?,
            };
            if info.is_none_or(|info| info.nar_hash != record.nar.1) {
                workshop.forget(record).await;
                return Ok(());
            }
        }
        self.meter.begin(name);
        let meter = &mut self.meter;
        let mut watch = async |len| meter.read(len).await;
        let checked = check_file(&self.disks, folder, &record.nar, stored, &mut watch).await?;
        if matches!(checked, CheckedFile::Sound | CheckedFile::Damaged(_)) {
            self.meter.kept.count_file();
            if let Listener::Plane(workshop, _) = self.meter.listener {
                workshop.shared.counters.scrubbed_files.add(1);
            }
        }
        // What was replaced or evicted while it was read says nothing.
        let is_the_same = folder.catalog().stored(&record.nar, stored.coding) == Some(*stored);
        match checked {
            CheckedFile::Damaged(reason) if is_the_same => {
                self.quarantine(folder, name, record, &reason).await;
            }
            CheckedFile::Missing if is_the_same => match self.meter.listener {
                Listener::Plane(workshop, _) => workshop.missed(record).await,
                // Only who owns the cache can take the record away.
                Listener::Command(_) => self.meter.found_unreadable(format!("{name}: it is missing")),
            },
            CheckedFile::Unreadable(reason) => self.meter.found_unreadable(format!("{name}: {reason}")),
            CheckedFile::Sound | CheckedFile::Damaged(_) | CheckedFile::Missing => {}
        }
        Ok(())
    }

    async fn quarantine(&mut self, folder: &Arc<CacheFolder>, name: &str, record: Record, reason: &str) {
        let quarantined = match self.meter.listener {
            Listener::Plane(workshop, _) => workshop.quarantine(record, reason).await,
            Listener::Command(_) => {
                let of = Arc::clone(folder);
                self.disks.runtime().wait_for(move || of.quarantine(&record)).await
            }
        };
        match quarantined {
            Ok(()) => self.meter.kept.outcome.quarantined_files.add(name.to_owned()),
            Err(error) => {
                self.meter.found_unreadable(format!("{name} is damaged ({reason}) and stays: {error}"));
            }
        }
    }

    async fn keep_sometimes(&mut self) {
        if self.meter.kept_at.elapsed() >= SCRUB_KEEP_INTERVAL {
            self.keep().await;
        }
    }

    async fn keep(&mut self) {
        self.meter.kept_at = Instant::now();
        let Some(folder) = self.folder.clone() else { return };
        let (name, kept) = (self.state_name, self.meter.kept.clone());
        let job = move || {
            fault::point("scrub: keep").map_err(|source| StoreError::Io {
                path: folder.path().join(name),
                operation: "keep",
                source,
            })?;
            let text = serde_json::to_string(&kept).unwrap_or_default();
            folder.keep(name, &text)
        };
        if let Err(error) = self.disks.runtime().wait_for(job).await {
            // Then it is looked at again.
            debug!("how far the scrub has come cannot be kept: {error}");
        }
    }
}

/// Counts what a pass does, tells of it, and lets it take its time.
struct Meter<'a> {
    kept: Kept,
    kept_at: Instant,
    /// Of this phase.
    total: u64,
    total_bytes: u64,
    /// Of the phase behind it.
    later_bytes: u64,
    current: String,
    listener: Listener<'a>,
}

/// Whose pass it is.
enum Listener<'a> {
    Command(&'a mut dyn FnMut(Progress<'_>)),
    Plane(&'a Rc<Workshop>, Pace),
}

impl<'a> Meter<'a> {
    /// Goes on from what was kept of the same database, or begins.
    fn new(kept: Option<Kept>, database: Option<(u64, u64)>, listener: Listener<'a>) -> Self {
        let kept = kept.filter(|kept| kept.database == database);
        let is_resumed = kept.is_some();
        let mut kept = kept.unwrap_or_else(|| Kept { began_s: now_s(), database, ..Kept::default() });
        kept.outcome.is_resumed = is_resumed;
        let kept_at = Instant::now();
        Self { kept, kept_at, total: 0, total_bytes: 0, later_bytes: 0, current: String::new(), listener }
    }

    fn begin(&mut self, current: &str) {
        current.clone_into(&mut self.current);
        self.tell();
    }

    async fn read(&mut self, len: u64) -> Result<(), SinkError> {
        self.kept.count_bytes(len);
        if let Listener::Plane(workshop, pace) = &mut self.listener {
            workshop.shared.counters.scrubbed_bytes.add(len);
            let early = pace.spend(len);
            if workshop.shared.is_ending() || (early > PACE_STEP && !workshop.pause(early).await) {
                return Err(SinkError::Ended);
            }
        }
        self.tell();
        Ok(())
    }

    fn finish_one(&mut self) {
        self.kept.count_one();
        self.tell();
    }

    fn tell(&mut self) {
        let progress = match &mut self.listener {
            Listener::Command(progress) => progress,
            Listener::Plane(workshop, _) => {
                let progress_ppm = self.kept.progress_ppm(self.total_bytes, self.later_bytes);
                return workshop.shared.counters.scrub_progress_ppm.set(progress_ppm);
            }
        };
        progress(Progress {
            phase: self.kept.phase,
            done: self.kept.done,
            total: self.total.max(self.kept.done),
            done_bytes: self.kept.done_bytes,
            total_bytes: self.total_bytes.max(self.kept.done_bytes),
            current: &self.current,
        });
    }

    async fn found_sound(&self, info: &PathInfo) {
        let nar = (info.path.hash_part(), info.nar_hash);
        if let Listener::Plane(workshop, _) = &self.listener
            && workshop.damaged.borrow().contains_key(&nar)
        {
            workshop.found_mended(nar).await;
        }
    }

    async fn found_damaged(&mut self, info: &PathInfo, mark: RootMark, full: String, reason: &str) {
        if let Listener::Plane(workshop, _) = &self.listener {
            workshop.found_damaged(info, mark, reason).await;
        }
        self.kept.outcome.damaged_paths.add(full);
    }

    fn found_unreadable(&mut self, what: String) {
        if matches!(self.listener, Listener::Plane(..)) {
            warn!("cannot scrub {what}");
        }
        self.kept.outcome.unreadable.add(what);
    }
}

/// Keeps to a rate.
struct Pace {
    /// Bytes a second.
    rate: u64,
    began: Instant,
    spent: u64,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { rate, began: Instant::now(), spent: 0 }
    }

    /// Takes `len` bytes; says how long it is until it is time for more.
    fn spend(&mut self, len: u64) -> Duration {
        self.spent += len.max(PACE_LEN_MIN);
        let due_ns = u128::from(self.spent) * 1_000_000_000 / u128::from(self.rate);
        let due = Duration::from_nanos(u64::try_from(due_ns).unwrap_or(u64::MAX));
        let elapsed = self.began.elapsed();
        if elapsed > due + PACE_FORGET {
            // What was not used is not made up for.
            (self.began, self.spent) = (Instant::now(), 0);
        }
        due.saturating_sub(elapsed)
    }
}

/// What a piece counts at least. Bytes: however short a file is, a disk reads a page of it, and finds it before.
const PACE_LEN_MIN: u64 = 4096;
/// How far ahead of its rate a scrub may be before it waits: thousands of small files are not waited for one by one.
const PACE_STEP: Duration = Duration::from_millis(20);
/// How far a scrub may fall behind and catch up.
const PACE_FORGET: Duration = Duration::from_secs(1);

/// Whatever is taken for the state of a pass is read back alike once it is written, and a pass can go on from there.
#[cfg(any(test, fuzzing))]
pub fn fuzz_scrub_state(data: &[u8]) {
    if let Ok(mut kept) = serde_json::from_slice::<Kept>(data) {
        let text = serde_json::to_string(&kept).expect("a state is JSON");
        assert_eq!(serde_json::from_str::<Kept>(&text).ok().as_ref(), Some(&kept));
        assert!(!kept.is_recent() || kept.began_s <= now_s());
        let before = kept.outcome.clone();
        kept.count_bytes(u64::MAX);
        kept.count_one();
        kept.count_path();
        kept.count_file();
        let findings = &mut kept.outcome.damaged_paths;
        findings.add("a path".to_owned());
        assert!(findings.count >= before.damaged_paths.count && kept.outcome.paths >= before.paths);
        let names_len_max = SCRUB_FINDINGS_MAX.max(before.damaged_paths.names.len());
        assert!(kept.outcome.damaged_paths.names.len() <= names_len_max);
    }
}
