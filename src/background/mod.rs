//! The background plane: what makes and keeps the NAR cache, on one glommio executor that stands back behind everything else.
//!
//! Workers tell it what was asked for ([`Background::asked`]), and never wait for it nor wake it: it looks by itself. What it has made
//! they read in the catalog ([`crate::store::catalog`]). This is the only module that names glommio.
//!
//! ```text
//! workers ── hints ──▶ listen ── orders ──▶ fill, fill ──▶ folder, catalog
//! database ─────────▶ follow ── orders ──┘      ▲
//!                                keep house ────┘ room, marks of damage        scrub
//! ```
//!
//! Tasks have shares: filling before scrubbing before keeping house. All of them work in pieces of a millisecond or so, at high
//! levels of zstd longer. What cannot be done in pieces, because it waits for a disk or a database, is done on a few threads beside.

mod check;
mod direct;
mod executor;
mod fill;
mod order;
mod priority;
mod report;
mod room;
pub mod scrub;
pub mod settings;
mod shared;
mod tasks;
mod tree;
mod workshop;

use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use async_channel::Sender;
use glommio::{Latency, Shares, Task, TaskQueueHandle};
use tracing::{debug, warn};

use self::direct::Disks;
use self::executor::Runtime;
pub use self::report::{Report, State};
use self::settings::FillSettings;
use self::shared::Shared;
use self::workshop::Workshop;
use crate::codec::store_path::HashPart;
use crate::limits::{BACKGROUND_END_MAX, BACKGROUND_END_POLL, FILL_QUEUE_LEN_MAX, FILLS_MAX};
use crate::store::LocalStore;
use crate::store::catalog::NarKey;
use crate::store::keys::SigningKeys;
use crate::store::nar_cache::{CacheFolder, Coding};
use crate::tally::Tally as _;

/// The running plane. It ends when this is dropped, which waits for that a while.
pub struct Background {
    shared: Arc<Shared>,
    folder: Arc<CacheFolder>,
    /// Closed to end the plane.
    end: Sender<Infallible>,
    thread: Option<JoinHandle<()>>,
}

/// A NAR was answered from its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// Whose.
    pub hash_part: HashPart,
    /// Whether it is of small files: then making it again costs most.
    pub has_small_files: bool,
}

/// A file that was not what the catalog says.
type Doubt = (NarKey, Coding);

/// Why the plane cannot run. The server serves without it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A sentence.
    #[error("the background plane cannot run: {0}")]
    Executor(String),
    /// There is no thread for it.
    #[error("the background plane cannot have a thread: {0}")]
    Thread(#[from] io::Error),
}

impl Background {
    /// Starts the plane. The folder must be this process's own; records and files are brought into agreement before anything is
    /// published. `places` is the store that NARs are made of, `signing_keys` sign their narinfos.
    pub fn start(
        settings: FillSettings,
        folder: Arc<CacheFolder>,
        places: LocalStore,
        signing_keys: Arc<SigningKeys>,
    ) -> Result<Self, StartError> {
        let (end, ended) = async_channel::bounded(1);
        let shared = Arc::new(Shared::new(ended));
        let (started, has_started) = std::sync::mpsc::sync_channel(1);
        let (of, sharing) = (Arc::clone(&folder), Arc::clone(&shared));
        let run = move || {
            // Before there are threads that inherit it.
            if let Err(error) = priority::stand_back() {
                warn!("the background plane cannot stand back behind the workers: {error}");
            }
            let executor = match executor::make() {
                Ok(executor) => executor,
                Err(reason) => return drop(started.send(Err(reason))),
            };
            drop(started.send(Ok(())));
            executor.run(async move {
                let disks = Disks::new(Runtime::Executor);
                work(Workshop::new(disks, settings, of, places, signing_keys, sharing)).await;
            });
        };
        let thread = thread::Builder::new().name("background".to_owned()).spawn(run)?;
        let reason = match has_started.recv() {
            Ok(Ok(())) => return Ok(Self { shared, folder, end, thread: Some(thread) }),
            Ok(Err(reason)) => reason,
            Err(_) => "its thread has ended".to_owned(),
        };
        // It has the folder until its end, and who tries again would find that in use. A panic has been told of.
        let _ = thread.join();
        Err(StartError::Executor(reason))
    }

    /// Tells the plane that a NAR was answered from its tree. Never waits: if the plane is far behind, it is not told.
    pub fn asked(&self, hint: Hint) {
        let counters = &self.shared.counters;
        let counter =
            if self.shared.hints.put(hint) { &counters.hints_taken } else { &counters.hints_dropped };
        counter.add(1);
    }

    /// Tells the plane that the file of an encoded NAR is missing, or ends too early. It looks for itself. Never waits.
    pub fn doubt(&self, nar: NarKey, coding: Coding) {
        // If there is no place, whoever wants to send it next tells of it again.
        self.shared.doubts.put((nar, coding));
    }

    /// How it is doing.
    pub fn report(&self) -> Report {
        self.shared.report(self.folder.catalog().stored_len_bytes())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.end.close();
        let Some(thread) = self.thread.take() else { return };
        // It stands back behind everybody, so on a machine that is busy it may not get the core that it needs to end.
        let began = Instant::now();
        while !thread.is_finished() && began.elapsed() < BACKGROUND_END_MAX {
            thread::sleep(BACKGROUND_END_POLL);
        }
        if thread.is_finished() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Runs all tasks until the plane is to end.
async fn work(workshop: Rc<Workshop>) {
    if !tasks::reconcile(&workshop).await {
        return;
    }
    let queue = |shares, name| {
        glommio::executor().create_task_queue(Shares::Static(shares), Latency::NotImportant, name)
    };
    let (filling, scrubbing, housekeeping) = (queue(1000, "fill"), queue(200, "scrub"), queue(50, "evict"));
    let (asked, orders) = async_channel::bounded(FILL_QUEUE_LEN_MAX);
    let (followed, more_orders) = async_channel::bounded(1);
    let mut running = vec![
        spawn(tasks::listen(Rc::clone(&workshop), asked), filling),
        spawn(tasks::follow(Rc::clone(&workshop), followed), filling),
        spawn(scrub::scrub_for_ever(Rc::clone(&workshop)), scrubbing),
        spawn(tasks::keep_house(Rc::clone(&workshop)), housekeeping),
        spawn(tasks::look_into(Rc::clone(&workshop)), filling),
    ];
    for _ in 0..FILLS_MAX {
        running.push(spawn(tasks::fill(Rc::clone(&workshop), orders.clone(), more_orders.clone()), filling));
    }
    for task in running.into_iter().flatten() {
        task.await;
    }
    // What readers used since it was last written down.
    if let Err(error) = workshop.catalog().keep_uses() {
        debug!("when cached files were used cannot be written down: {error}");
    }
}

/// Only a queue that does not exist is refused.
fn spawn(task: impl Future<Output = ()> + 'static, queue: TaskQueueHandle) -> Option<Task<()>> {
    glommio::spawn_local_into(task, queue).ok()
}

#[cfg(test)]
mod tests;
