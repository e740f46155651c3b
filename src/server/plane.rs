//! Plain threads that may wait for a disk or a database, so that no worker ever does.
//!
//! The queue of each plane is bounded. When it is full the question is not taken, and the client is told to come again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Instant;

use super::figures::PlaneFigures;
use super::machine::be_nice;
use crate::limits::PLANE_QUEUE_LEN_MAX;
use crate::store::db::Database;
use crate::store::{LocalStore, StoreError};
use crate::tally::Tally as _;

/// A question; it sends its answer itself.
pub type Job = Box<dyn FnOnce(&mut Toolbox) + Send>;

/// Threads behind a bounded queue.
#[derive(Clone)]
pub struct Plane {
    queue: SyncSender<Job>,
    figures: Arc<PlaneFigures>,
}

/// The planes of a server. There are several, so that a slow disk does not delay those who ask a database, and nobody waits for
/// what takes long to compute.
#[derive(Clone)]
pub struct Planes {
    /// For databases: short questions.
    pub lookups: Plane,
    /// For what a NAR waits for, and whether the server is well: walks.
    pub walks: Plane,
    /// For listings, logs and links to debug symbols. Each costs a walk, or a file, and anybody can ask for many: they wait for one
    /// another, and no NAR for them.
    pub texts: Plane,
    /// For compression.
    pub encodes: Plane,
    /// For `/metrics`, which are wanted most when all others are busy.
    pub metrics: Plane,
}

/// Held for as long as somebody waits for what a job brings.
#[derive(Debug, Default)]
pub struct Interest(Arc<()>);

/// What a job asks whether somebody still waits: a client that has gone must not keep a thread busy.
#[derive(Clone, Debug)]
pub struct Demand(Weak<()>);

impl Interest {
    /// For the job.
    pub fn demand(&self) -> Demand {
        Demand(Arc::downgrade(&self.0))
    }
}

impl Demand {
    /// Whether somebody still waits.
    pub fn is_there(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Whether it is this one who waits. No two are ever taken for each other while one of their demands is there.
    pub fn is_of(&self, interest: &Interest) -> bool {
        self.0.as_ptr() == Arc::as_ptr(&interest.0)
    }
}

/// The queue is full.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// What a thread keeps between two jobs.
#[derive(Default)]
pub struct Toolbox {
    /// Open databases, by source.
    databases: HashMap<usize, Database>,
}

impl Plane {
    /// Starts `threads` threads, named after `name`, that leave the machine to others as far as `nice` says.
    pub fn start(name: &'static str, threads: usize, nice: i32) -> io::Result<Self> {
        Self::start_for(name, threads, nice, PLANE_QUEUE_LEN_MAX)
    }

    /// The same with a queue for `jobs_max` jobs, for who knows how many there can be.
    pub fn start_for(name: &'static str, threads: usize, nice: i32, jobs_max: usize) -> io::Result<Self> {
        let (plane, jobs) = Self::queue(name, jobs_max);
        let jobs = Arc::new(Mutex::new(jobs));
        for index in 0..threads {
            let jobs = Arc::clone(&jobs);
            thread::Builder::new().name(format!("{name}-{index}")).spawn(move || {
                be_nice(nice);
                work(&jobs);
            })?;
        }
        Ok(plane)
    }

    /// A plane and the end of its queue, for who does the jobs: threads, or a simulation.
    pub fn queue(name: &'static str, jobs_max: usize) -> (Self, Receiver<Job>) {
        let (queue, jobs) = mpsc::sync_channel(jobs_max);
        (Self { queue, figures: Arc::new(PlaneFigures::new(name, jobs_max)) }, jobs)
    }

    /// Queues a job.
    pub fn submit(&self, job: impl FnOnce(&mut Toolbox) + Send + 'static) -> Result<(), Full> {
        let (figures, queued_at) = (Arc::clone(&self.figures), Instant::now());
        let job = move |toolbox: &mut Toolbox| {
            figures.waited.observe(queued_at.elapsed());
            job(toolbox);
        };
        let queued = self.queue.try_send(Box::new(job));
        let count = if queued.is_ok() { &self.figures.queued } else { &self.figures.refused };
        count.add(1);
        queued.map_err(|_| Full)
    }

    /// What is counted of it.
    pub fn figures(&self) -> Arc<PlaneFigures> {
        Arc::clone(&self.figures)
    }
}

impl Planes {
    /// What is counted of each.
    pub fn figures(&self) -> [Arc<PlaneFigures>; 5] {
        [&self.lookups, &self.walks, &self.texts, &self.encodes, &self.metrics].map(Plane::figures)
    }

    /// With a thread each.
    #[cfg(test)]
    pub fn few() -> Self {
        let [lookups, walks, texts, encodes, metrics] =
            ["l", "w", "t", "e", "m"].map(|name| Plane::start(name, 1, 0).unwrap());
        Self { lookups, walks, texts, encodes, metrics }
    }
}

impl Toolbox {
    /// This thread's connection to the database of a source.
    pub fn database(&mut self, source: usize, store: &LocalStore) -> Result<&mut Database, StoreError> {
        match self.databases.entry(source) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => Ok(entry.insert(Database::open(store)?)),
        }
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    let mut toolbox = Toolbox::default();
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        job(&mut toolbox);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_done_and_a_full_queue_refuses() {
        let plane = Plane::start("test", 1, 0).unwrap();
        let (started, has_started) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        plane
            .submit(move |_| started.send(()).and(released.recv().map_err(|_| mpsc::SendError(()))).unwrap())
            .unwrap();
        has_started.recv().unwrap();
        let (done, is_done) = mpsc::channel();
        for _ in 0..PLANE_QUEUE_LEN_MAX {
            let done = done.clone();
            plane.submit(move |_| done.send(()).unwrap()).unwrap();
        }
        assert_eq!(plane.submit(|_| {}), Err(Full));
        let figures = plane.figures();
        assert_eq!(figures.queue_len(), PLANE_QUEUE_LEN_MAX as u64);
        assert_eq!((figures.refused.get(), figures.waited.read().count()), (1, 1));
        release.send(()).unwrap();
        assert_eq!(is_done.iter().take(PLANE_QUEUE_LEN_MAX).count(), PLANE_QUEUE_LEN_MAX);
        let taken = 1 + PLANE_QUEUE_LEN_MAX as u64;
        assert_eq!((figures.queue_len(), figures.waited.read().count()), (0, taken));
    }
}
