//! What all tasks of the plane share, and the room that they make for each other.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_lite::future;
use glommio::sync::Semaphore;
use tracing::{debug, error, info, warn};

use super::direct::Disks;
use super::executor::Runtime;
use super::order::{self, Pressure};
use super::report::State;
use super::room::{Bounds, Need, Promise, Room};
use super::settings::FillSettings;
use super::shared::Shared;
use crate::codec::narinfo::PathInfo;
use crate::codec::store_path::HashPart;
use crate::limits::{
    FILL_ROOM_LEN_BYTES, FILLS_MAX, FREE_SHARE_DEFAULT, LEFT_ALONE_FOR, LEFT_ALONE_MAX, LEN_SHARE_DEFAULT,
};
use crate::store::catalog::{Catalog, Entry, Kind, NarKey, Record, RootMark};
use crate::store::db::Database;
use crate::store::keys::SigningKeys;
use crate::store::nar_cache::{CacheFolder, Evicted};
use crate::store::{LocalStore, StoreError, now_s};
use crate::tally::Tally as _;

/// What all tasks share. They run on one thread, one at a time.
pub struct Workshop {
    pub disks: Rc<Disks>,
    pub settings: FillSettings,
    pub folder: Arc<CacheFolder>,
    pub places: Arc<LocalStore>,
    pub signing_keys: Arc<SigningKeys>,
    pub database: DatabaseDesk,
    pub shared: Arc<Shared>,
    /// What is queued or being encoded: nothing is encoded twice.
    claimed: RefCell<HashSet<HashPart>>,
    /// What could not be encoded, or did not have to be, and when.
    left_alone: RefCell<HashMap<HashPart, Instant>>,
    /// Paths whose trees are damaged, as the catalog says it.
    pub damaged: RefCell<HashMap<NarKey, RootMark>>,
    /// Written and not yet published. Bytes.
    drafted_len: Cell<u64>,
    /// Promised and not yet written. Bytes.
    pub promised_len: Cell<u64>,
    /// Whether a path that nobody has asked for did not fit in; said once in each pass over the database.
    pub is_spare_room_gone: Cell<bool>,
    /// Whether one that was asked for did not, since it was last looked.
    pub has_lacked_room: Cell<bool>,
    /// Why a NAR could not be made, the last time; empty when one was made since.
    pub failure: RefCell<String>,
    /// How many fills wait because the cache is in the way.
    pub stuck: Cell<usize>,
    /// Held by whoever makes room, so that two do not make it for one.
    making_room: Semaphore,
    /// One unit for each fill under way; all of them for one that must know what there is without the others.
    pub filling: Semaphore,
}

/// A connection to the database, which tasks take turns at.
#[derive(Clone)]
pub struct DatabaseDesk {
    runtime: Runtime,
    places: Arc<LocalStore>,
    database: Arc<Mutex<Option<Database>>>,
}

impl DatabaseDesk {
    /// Opens the database with the first question.
    pub fn new(runtime: Runtime, places: Arc<LocalStore>) -> Self {
        Self { runtime, places, database: Arc::default() }
    }

    /// Asks the database.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (places, database) = (Arc::clone(&self.places), Arc::clone(&self.database));
        let job = move || {
            let mut database = database.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *database {
                Some(database) => question(database),
                None => question(database.insert(Database::open(&places)?)),
            }
        };
        self.runtime.wait_for(job).await
    }

    /// What the database knows of a path.
    pub async fn path_info(&self, hash_part: HashPart) -> Result<Option<PathInfo>, StoreError> {
        self.ask(move |database| database.path_info(hash_part)).await
    }

    /// Whether a path is still valid with these contents.
    pub async fn is_still_valid(&self, info: &PathInfo) -> Result<bool, StoreError> {
        let now = self.path_info(info.path.hash_part()).await?;
        Ok(now.is_some_and(|now| now.nar_hash == info.nar_hash && now.nar_size == info.nar_size))
    }
}

impl Workshop {
    pub fn new(
        disks: Rc<Disks>,
        settings: FillSettings,
        folder: Arc<CacheFolder>,
        places: LocalStore,
        signing_keys: Arc<SigningKeys>,
        shared: Arc<Shared>,
    ) -> Rc<Self> {
        let places = Arc::new(places);
        let damaged = folder.catalog().records().filter_map(|record| match record.entry {
            Entry::Damaged(mark) => Some((record.nar, mark)),
            Entry::Stored(_) => None,
        });
        let damaged: HashMap<_, _> = damaged.collect();
        shared.counters.damaged_paths.set(damaged.len() as u64);
        shared.counters.len_max.set(settings.len_max.unwrap_or_default());
        Rc::new(Self {
            database: DatabaseDesk::new(disks.runtime(), Arc::clone(&places)),
            disks,
            settings,
            folder,
            places,
            signing_keys,
            shared,
            claimed: RefCell::default(),
            left_alone: RefCell::default(),
            damaged: RefCell::new(damaged),
            drafted_len: Cell::new(0),
            promised_len: Cell::new(0),
            is_spare_room_gone: Cell::new(false),
            has_lacked_room: Cell::new(false),
            failure: RefCell::default(),
            stuck: Cell::new(0),
            making_room: Semaphore::new(1),
            filling: Semaphore::new(FILLS_MAX as u64),
        })
    }

    /// Waits; false when the plane ends meanwhile.
    pub async fn pause(&self, duration: Duration) -> bool {
        let slept = async {
            self.disks.runtime().sleep(duration).await;
            true
        };
        let ended = async {
            self.shared.end().await;
            false
        };
        future::or(ended, slept).await
    }

    /// The cache does what it is to do, as far as somebody can see who has just used it.
    pub fn found_working(&self) {
        // Those know better that wait for it, or have found it full a moment ago.
        if self.stuck.get() == 0 && !self.has_lacked_room.get() {
            self.shared.enter(State::Working);
        }
    }

    /// There is no room for what was asked for, or none to spare.
    pub fn found_full(&self, need: Need, reason: String) {
        match need {
            Need::Wanted => {
                self.has_lacked_room.set(true);
                self.shared.enter(State::Full(reason));
            }
            Need::Spare if self.is_spare_room_gone.replace(true) => {}
            Need::Spare => {
                warn!("of the paths that nobody has asked for, not all fit into the NAR cache: {reason}");
            }
        }
    }

    /// A NAR could not be made for a reason of the store. Said once in a row: a database that is away is in the way of all of them.
    pub fn found_failing(&self, reason: String) {
        self.shared.counters.fills_failed.add(1);
        let is_news = *self.failure.borrow() != reason;
        if is_news {
            warn!("a NAR is not cached: {reason}");
            self.failure.replace(reason);
        }
    }

    pub fn catalog(&self) -> &Arc<Catalog> {
        self.folder.catalog()
    }

    /// Claims a path for encoding. False when that is done already, or it is left alone.
    pub fn claim(&self, hash_part: HashPart) -> bool {
        let since = self.left_alone.borrow().get(&hash_part).copied();
        if since.is_some_and(|since| since.elapsed() < LEFT_ALONE_FOR) {
            return false;
        }
        self.claimed.borrow_mut().insert(hash_part)
    }

    /// Gives a claim back.
    pub fn release(&self, hash_part: HashPart) {
        self.claimed.borrow_mut().remove(&hash_part);
    }

    /// Leaves a path alone for a while, however often it is asked for.
    pub fn leave_alone(&self, hash_part: HashPart) {
        let mut left_alone = self.left_alone.borrow_mut();
        if left_alone.len() >= LEFT_ALONE_MAX {
            left_alone.retain(|_, since| since.elapsed() < LEFT_ALONE_FOR);
        }
        if left_alone.len() < LEFT_ALONE_MAX {
            left_alone.insert(hash_part, Instant::now());
        }
    }

    /// Counts what was written to a draft, and no longer what was counted before.
    pub fn count_draft(&self, grown: u64, shrunk: u64) {
        self.drafted_len.set((self.drafted_len.get() + grown).saturating_sub(shrunk));
    }

    /// Whether the cache's directory is still the one at its path.
    pub async fn look_there(&self) -> Result<(), String> {
        let folder = Arc::clone(&self.folder);
        if self.disks.runtime().wait_for(move || folder.is_there()).await {
            return Ok(());
        }
        let path = self.folder.path().display();
        Err(format!("{path} was removed or replaced: restart narwire to use what is there now"))
    }

    /// How things stand.
    pub async fn bounds(&self) -> Result<Bounds, StoreError> {
        let folder = Arc::clone(&self.folder);
        let space = self.disks.runtime().wait_for(move || folder.space()).await?;
        let len_max = self.settings.len_max.unwrap_or(space.total / LEN_SHARE_DEFAULT);
        self.shared.counters.len_max.set(len_max);
        Ok(Bounds {
            len_max,
            free_min: self.settings.free_min.unwrap_or(space.total / FREE_SHARE_DEFAULT),
            free: space.free,
            used: space.used,
            drafted: self.drafted_len.get(),
            promised: self.promised_len.get(),
        })
    }

    /// Sees to it that `len` bytes more can be written within the bounds.
    pub async fn make_room(self: &Rc<Self>, len: u64, need: Need) -> Result<Room, StoreError> {
        // Refused only by a semaphore that was closed, and nobody closes this one.
        let _permit = self.making_room.acquire_permit(1).await.ok();
        loop {
            let Some(lack) = self.bounds().await?.lack(len) else {
                return Ok(Room::Made(Promise::new(self, len)));
            };
            if need == Need::Spare || self.evict(lack.len, lack.pressure).await? == 0 {
                return Ok(Room::None(lack.reason));
            }
        }
    }

    /// Makes room on a disk that was full before the bounds were reached: others write there too.
    pub async fn give_way(&self) -> Result<(), StoreError> {
        let _permit = self.making_room.acquire_permit(1).await.ok();
        self.evict(FILL_ROOM_LEN_BYTES, Pressure::Disk).await.map(drop)
    }

    /// Removes files until `wanted` bytes are gone or none may go; says how many bytes went.
    async fn evict(&self, wanted: u64, pressure: Pressure) -> Result<u64, StoreError> {
        let mut records: Vec<_> = self.catalog().records().collect();
        order::sort(&mut records, pressure, now_s());
        let mut evicted = 0_u64;
        for record in records {
            if evicted >= wanted || self.shared.is_ending() {
                break;
            }
            if self.evict_one(record).await? {
                evicted = evicted.saturating_add(record.entry.file_size());
            }
        }
        Ok(evicted)
    }

    /// Removes a file unless a reader holds it; says whether it is gone.
    pub async fn evict_one(&self, record: Record) -> Result<bool, StoreError> {
        let folder = Arc::clone(&self.folder);
        let evicted = self.disks.runtime().wait_for(move || folder.evict(&record)).await?;
        if evicted == Evicted::Held {
            return Ok(false);
        }
        // From now on there is something to encode again.
        self.left_alone.borrow_mut().remove(&record.nar.0);
        self.shared.counters.evictions.add(1);
        self.shared.counters.evicted_bytes.add(record.entry.file_size());
        Ok(true)
    }

    /// Puts a damaged file aside.
    pub async fn quarantine(&self, record: Record, reason: &str) -> Result<(), StoreError> {
        let folder = Arc::clone(&self.folder);
        self.disks.runtime().wait_for(move || folder.quarantine(&record)).await?;
        // From now on there is something to encode again.
        self.left_alone.borrow_mut().remove(&record.nar.0);
        self.shared.counters.quarantined_files.add(1);
        if let Entry::Stored(stored) = record.entry {
            let name = CacheFolder::file_name(&record.nar, stored.coding);
            error!("the cached file {name} is damaged and was put aside: {reason}");
        }
        Ok(())
    }

    /// Takes a record away whose file is gone, and says so.
    pub async fn missed(&self, record: Record) {
        if let Entry::Stored(stored) = record.entry {
            let name = CacheFolder::file_name(&record.nar, stored.coding);
            info!("the cached file {name} is gone, and is forgotten");
        }
        self.forget(record).await;
    }

    /// Takes a record away that is of no use, and its file if it has one.
    pub async fn forget(&self, record: Record) {
        if let Err(error) = self.evict_one(record).await {
            debug!("a record without use cannot be taken away: {error}");
        }
    }

    /// Remembers that the tree of a path is damaged, and says so the first time. Workers no longer serve it.
    pub async fn found_damaged(&self, info: &PathInfo, mark: RootMark, reason: &str) {
        let nar = (info.path.hash_part(), info.nar_hash);
        let is_news = self.damaged.borrow_mut().insert(nar, mark) != Some(mark);
        self.count_damaged();
        let written = self.mark_damaged(nar, mark).await;
        if !is_news {
            return;
        }
        let path = info.path.full(&self.places.store_dir);
        let consequence = match written {
            Ok(()) => "it is no longer served".to_owned(),
            Err(error) => format!("it is served until that can be written down ({error})"),
        };
        error!("{path} is damaged: {reason}; {consequence}. `nix-store --repair-path {path}` mends it");
    }

    /// Lets the catalog say of every damaged path that it is: for some that could not be written down.
    pub async fn keep_marks(&self) -> Result<(), StoreError> {
        let marks: Vec<_> = self.damaged.borrow().iter().map(|(nar, mark)| (*nar, *mark)).collect();
        for (nar, mark) in marks {
            self.mark_damaged(nar, mark).await?;
        }
        Ok(())
    }

    /// Lets the catalog say that a path is damaged.
    async fn mark_damaged(&self, nar: NarKey, mark: RootMark) -> Result<(), StoreError> {
        if self.catalog().damaged(&nar) == Some(mark) {
            return Ok(());
        }
        let folder = Arc::clone(&self.folder);
        let job = move || match folder.catalog().insert(&nar, Entry::Damaged(mark), now_s())? {
            // Its record is gone already, and its file goes too.
            Some(displaced) => folder.evict(&displaced).map(drop),
            None => Ok(()),
        };
        let written = self.disks.runtime().wait_for(job).await;
        let is_mended = !self.damaged.borrow().contains_key(&nar);
        if is_mended {
            // Found meanwhile, and the two may have been written in the other order.
            self.found_mended(nar).await;
        }
        written
    }

    /// Forgets that a tree is damaged.
    pub async fn found_mended(&self, nar: NarKey) {
        self.damaged.borrow_mut().remove(&nar);
        self.count_damaged();
        let folder = Arc::clone(&self.folder);
        let job = move || folder.catalog().remove(&nar, Kind::Damaged);
        if let Err(error) = self.disks.runtime().wait_for(job).await {
            error!("a mark of damage cannot be taken away: {error}");
        }
    }

    fn count_damaged(&self) {
        self.shared.counters.damaged_paths.set(self.damaged.borrow().len() as u64);
    }
}
