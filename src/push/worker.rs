//! The threads that upload: each takes what is next, does it, and says how it went.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::address::{nar_name, narinfo_name};
use super::client::{self, ClientError, Kind};
use super::closure::{Closure, Entry};
use super::nar::{EncodeError, EncodedNar};
use super::schedule::{Next, Schedule, Task};
use super::{Doing, Lane, PushError, Settings, lock, sleep, spawn};
use crate::codec::hash::Sha256Digest;
use crate::codec::narinfo::{NarInfo, PathInfo};
use crate::store::StoreError;
use crate::store::db::Database;
use crate::store::walk;

/// How a task went.
#[derive(Debug)]
pub enum Done {
    /// A file of this length was sent. Bytes.
    Sent {
        /// Its length.
        file_size: u64,
    },
    /// The path is there.
    Uploaded {
        /// In the closure.
        position: u32,
        /// Length of its file. Bytes.
        file_size: u64,
    },
    /// The path cannot be there.
    Failed {
        /// In the closure.
        position: u32,
        /// In words.
        reason: String,
    },
    /// Nothing more can be uploaded.
    Ended(PushError),
}

/// A closure that is being uploaded.
pub struct Upload {
    settings: Arc<Settings>,
    closure: Closure,
    progress: Mutex<Progress>,
    /// The schedule may have something for whoever waits.
    changed: Condvar,
    lanes: Box<[Mutex<Option<Lane>>]>,
    is_ended: AtomicBool,
}

struct Progress {
    schedule: Schedule,
    /// Of paths whose NAR is there and whose narinfo is not: what it will say.
    files: HashMap<u32, NarFile>,
}

/// The file of a NAR that is in the cache.
#[derive(Debug, Clone, Copy)]
struct NarFile {
    nar_hash: Sha256Digest,
    file_hash: Sha256Digest,
    file_size: u64,
}

/// Why a task was not done.
#[derive(Debug, thiserror::Error)]
enum TaskError {
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("it is no valid path of the store any more")]
    Gone,
    #[error("it is valid, and its files are not there; `nix-store --repair-path` may mend it")]
    Lost,
    #[error("it was made anew meanwhile")]
    Changed,
}

impl Upload {
    /// Nothing is begun yet.
    pub fn new(settings: Arc<Settings>, closure: Closure, is_there: &[bool]) -> Arc<Self> {
        let references = closure.entries.iter().map(|entry| &entry.references[..]);
        let schedule = Schedule::new(&references, |position| is_there[position as usize]);
        let lanes = (0..settings.jobs.max(1)).map(|_| Mutex::new(None)).collect();
        let progress = Mutex::new(Progress { schedule, files: HashMap::new() });
        Arc::new(Self {
            settings,
            closure,
            progress,
            changed: Condvar::new(),
            lanes,
            is_ended: AtomicBool::new(false),
        })
    }

    /// Starts threads, no more than there are paths `missing`. One message comes for each of those, unless it ends earlier.
    pub fn begin(self: &Arc<Self>, missing: usize) -> Result<Receiver<Done>, PushError> {
        let (results, received) = channel();
        for (position, entry) in (0..).zip(&self.closure.entries) {
            if let Some(problem) = &entry.problem {
                self.fail(position, problem.to_string(), &results);
            }
        }
        for lane in 0..self.lanes.len().min(missing) {
            let (upload, results) = (Arc::clone(self), results.clone());
            let work = move || Worker { upload: &upload, lane, results, database: None }.run();
            // Those that were started would go on beside whatever is done next.
            spawn("upload", work).inspect_err(|_| self.end())?;
        }
        Ok(received)
    }

    /// Begins nothing more, and ends what is easily ended.
    pub fn end(&self) {
        // With the lock, so that nobody is between looking and waiting, and would not be woken.
        let progress = lock(&self.progress);
        self.is_ended.store(true, Ordering::Relaxed);
        drop(progress);
        self.changed.notify_all();
    }

    /// What is uploaded.
    pub fn entry(&self, position: u32) -> &Entry {
        &self.closure.entries[position as usize]
    }

    /// What the threads do now.
    pub fn lanes(&self) -> Vec<Option<Lane>> {
        self.lanes.iter().map(|lane| lock(lane).clone()).collect()
    }

    fn fail(&self, position: u32, reason: String, results: &Sender<Done>) {
        let store_dir = &self.settings.store.store_dir;
        // It may have failed already, because it needs what did.
        let Some(needing) = lock(&self.progress).schedule.failed(position) else { return };
        self.changed.notify_all();
        // Nobody may be listening any more.
        let _ = results.send(Done::Failed { position, reason });
        for (position, cause) in needing {
            let reason = format!("it needs {}, which is not there", self.entry(cause).path.full(store_dir));
            let _ = results.send(Done::Failed { position, reason });
        }
    }

    fn is_interrupted(&self) -> bool {
        self.is_ended.load(Ordering::Relaxed) || self.settings.interrupted.load(Ordering::Relaxed)
    }
}

/// One thread.
struct Worker<'a> {
    upload: &'a Upload,
    lane: usize,
    results: Sender<Done>,
    database: Option<Database>,
}

impl Worker<'_> {
    fn run(&mut self) {
        while let Some(task) = self.next() {
            let done = match task {
                Task::Nar(position) => self.nar(position).map(|file| {
                    let mut progress = lock(&self.upload.progress);
                    progress.files.insert(position, file);
                    progress.schedule.nar_is_there(position);
                }),
                Task::Narinfo(position) => self.narinfo(position).map(|file_size| {
                    lock(&self.upload.progress).schedule.narinfo_is_there(position);
                    let _ = self.results.send(Done::Uploaded { position, file_size });
                }),
            };
            *lock(&self.upload.lanes[self.lane]) = None;
            let (Task::Nar(position) | Task::Narinfo(position)) = task;
            match done {
                Ok(()) => self.upload.changed.notify_all(),
                // Then it says nothing about the path.
                Err(_) if self.upload.is_interrupted() => {}
                Err(TaskError::Client(error)) if error.is_general() => {
                    let _ = self.results.send(Done::Ended(error.into()));
                    self.upload.end();
                }
                Err(error) => self.upload.fail(position, error.to_string(), &self.results),
            }
        }
    }

    /// What is to be done next, once there is something.
    fn next(&self) -> Option<Task> {
        let mut progress = lock(&self.upload.progress);
        loop {
            if self.upload.is_interrupted() {
                return None;
            }
            match progress.schedule.take() {
                Next::Task(task) => return Some(task),
                Next::Done => return None,
                Next::Wait => {
                    progress = self.upload.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Sees to it that the NAR is in the cache.
    fn nar(&mut self, position: u32) -> Result<NarFile, TaskError> {
        let upload = self.upload;
        let Settings { store, cache, encoding, spool, .. } = &*upload.settings;
        let Entry { path, nar_size, .. } = upload.entry(position);
        self.show(position, Doing::Encoding, *nar_size);
        // While its root is open the garbage collector spares the path; it may have decided before.
        let root = walk::open_root(store, path)?;
        let info = self.path_info(position)?;
        let root = root.ok_or(TaskError::Lost)?;
        let mut nar = EncodedNar::new(&root, &info, *encoding, spool, &|read_bytes| {
            self.advance(read_bytes);
            !upload.is_interrupted()
        })?;
        drop(root);
        let (file_hash, file_size) = (nar.file_hash, nar.file_size);
        let name = nar_name(&file_hash, encoding.compression());
        let wait = |delay, error: &ClientError| self.wait(delay, error);
        if !cache.has(&name, &wait)? {
            self.show(position, Doing::Sending, file_size);
            cache.put(&name, Kind::Nar, &mut Sending { nar: &mut nar, worker: self }, &wait)?;
            let _ = self.results.send(Done::Sent { file_size });
        }
        Ok(NarFile { nar_hash: info.nar_hash, file_hash, file_size })
    }

    /// Says in the cache that the path is there. Gives the length of its file.
    fn narinfo(&mut self, position: u32) -> Result<u64, TaskError> {
        let upload = self.upload;
        let Settings { store, cache, secret_keys, encoding, .. } = &*upload.settings;
        let Some(file) = lock(&upload.progress).files.remove(&position) else {
            return Err(TaskError::Changed);
        };
        // Asked again, for it may have been signed meanwhile.
        let mut info = self.path_info(position)?;
        if info.nar_hash != file.nar_hash {
            return Err(TaskError::Changed);
        }
        info.sign(&store.store_dir, secret_keys);
        let name = narinfo_name(info.path.hash_part());
        let compression = encoding.compression();
        let url = nar_name(&file.file_hash, compression);
        let mut text = String::new();
        NarInfo::new(info, url, compression, file.file_hash, file.file_size)
            .write(&store.store_dir, &mut text);
        self.show(position, Doing::Sending, text.len() as u64);
        let wait = |delay, error: &ClientError| self.wait(delay, error);
        cache.put(&name, Kind::NarInfo, &mut text.as_bytes(), &wait)?;
        Ok(file.file_size)
    }

    /// What the database knows of the path now.
    fn path_info(&mut self, position: u32) -> Result<PathInfo, TaskError> {
        let path = &self.upload.entry(position).path;
        let database = match &mut self.database {
            Some(database) => database,
            none => none.insert(Database::open(&self.upload.settings.store)?),
        };
        let info = database.path_info(path.hash_part())?;
        info.filter(|info| info.path == *path).ok_or(TaskError::Gone)
    }

    fn show(&self, position: u32, doing: Doing, total_bytes: u64) {
        let Entry { path, nar_size, .. } = self.upload.entry(position);
        let lane = Lane {
            path: path.clone(),
            doing,
            done_bytes: 0,
            total_bytes: total_bytes.max(1),
            nar_size: *nar_size,
        };
        *lock(&self.upload.lanes[self.lane]) = Some(lane);
    }

    fn advance(&self, done_bytes: u64) {
        if let Some(lane) = &mut *lock(&self.upload.lanes[self.lane]) {
            lane.done_bytes = done_bytes;
        }
    }

    /// Waits before another try; false when there is to be none.
    fn wait(&self, delay: Duration, error: &ClientError) -> bool {
        let set = |doing| {
            lock(&self.upload.lanes[self.lane]).as_mut().map(|lane| std::mem::replace(&mut lane.doing, doing))
        };
        let before = set(Doing::Waiting(error.to_string()));
        let slept = sleep(delay, &[&self.upload.is_ended, &self.upload.settings.interrupted]);
        before.map(set);
        slept
    }
}

/// A NAR on its way.
struct Sending<'a> {
    nar: &'a mut EncodedNar,
    worker: &'a Worker<'a>,
}

impl client::Upload for Sending<'_> {
    fn len_bytes(&self) -> u64 {
        self.nar.file_size
    }

    fn open(&mut self) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(Meter { reader: self.nar.rewound()?, worker: self.worker, read_bytes: 0 }))
    }
}

/// Counts what is read.
struct Meter<'a, R> {
    reader: R,
    worker: &'a Worker<'a>,
    read_bytes: u64,
}

impl<R: Read> Read for Meter<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.worker.upload.is_interrupted() {
            return Err(io::Error::other("interrupted"));
        }
        let len = self.reader.read(buffer)?;
        self.read_bytes += len as u64;
        self.worker.advance(self.read_bytes);
        Ok(len)
    }
}
