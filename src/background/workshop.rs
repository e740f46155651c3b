//! What all tasks of the plane share, and the room that they make for each other.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_lite::future;
use glommio::sync::Semaphore;
use tracing::{debug, error};

use super::direct::Disks;
use super::executor::Runtime;
use super::order::{self, Pressure};
use super::settings::FillSettings;
use super::shared::Shared;
use crate::codec::narinfo::PathInfo;
use crate::codec::signature::SecretKey;
use crate::codec::store_path::HashPart;
use crate::limits::{EVICTION_SLACK, FREE_SHARE_DEFAULT, LEFT_ALONE_FOR, LEFT_ALONE_MAX, LEN_SHARE_DEFAULT};
use crate::store::catalog::{Catalog, Entry, Kind, NarKey, Record, RootMark};
use crate::store::db::Database;
use crate::store::nar_cache::{CacheFolder, Evicted, Space};
use crate::store::{LocalStore, StoreError};

/// What all tasks share. They run on one thread, one at a time.
pub struct Workshop {
    pub disks: Rc<Disks>,
    pub settings: FillSettings,
    pub folder: Arc<CacheFolder>,
    pub places: Arc<LocalStore>,
    pub secret_keys: Arc<[SecretKey]>,
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
    /// Whether a path that nobody has asked for did not fit in; said once.
    pub is_spare_room_gone: Cell<bool>,
    /// How many fills wait because the cache is in the way.
    pub stuck: Cell<usize>,
    /// Held by whoever makes room, so that two do not make it for one.
    making_room: Semaphore,
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

/// What room is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// For what nobody has asked for: nothing goes for it.
    Spare,
    /// For what was asked for, or to keep within the bounds.
    Wanted,
    /// For what the disk did not take.
    Refused,
}

/// Whether there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// There is.
    Made,
    /// There is not, and nothing more may go.
    None,
}

impl Workshop {
    pub fn new(
        disks: Rc<Disks>,
        settings: FillSettings,
        folder: Arc<CacheFolder>,
        places: LocalStore,
        secret_keys: Arc<[SecretKey]>,
        shared: Arc<Shared>,
    ) -> Rc<Self> {
        let places = Arc::new(places);
        let damaged = folder.catalog().records().filter_map(|record| match record.entry {
            Entry::Damaged(mark) => Some((record.nar, mark)),
            Entry::Stored(_) => None,
        });
        let damaged: HashMap<_, _> = damaged.collect();
        shared.counters.damaged_paths.set(damaged.len() as u64);
        Rc::new(Self {
            database: DatabaseDesk::new(disks.runtime(), Arc::clone(&places)),
            disks,
            settings,
            folder,
            places,
            secret_keys,
            shared,
            claimed: RefCell::default(),
            left_alone: RefCell::default(),
            damaged: RefCell::new(damaged),
            drafted_len: Cell::new(0),
            is_spare_room_gone: Cell::new(false),
            stuck: Cell::new(0),
            making_room: Semaphore::new(1),
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

    /// Counts what was written to a draft; negative lengths are given back.
    pub fn count_draft(&self, grown: u64, shrunk: u64) {
        self.drafted_len.set((self.drafted_len.get() + grown).saturating_sub(shrunk));
    }

    /// What all files may take together. Bytes.
    pub fn len_max(&self, space: &Space) -> u64 {
        self.settings.len_max.unwrap_or(space.total / LEN_SHARE_DEFAULT)
    }

    /// How the space is.
    pub async fn space(&self) -> Result<Space, StoreError> {
        let folder = Arc::clone(&self.folder);
        self.disks.runtime().wait_for(move || folder.space()).await
    }

    /// Sees to it that `len` bytes more can be written within the bounds.
    pub async fn make_room(&self, len: u64, need: Need) -> Result<Room, StoreError> {
        let Ok(_permit) = self.making_room.acquire_permit(1).await else { return Ok(Room::None) };
        let mut is_disk_full = need == Need::Refused;
        loop {
            let space = self.space().await?;
            let len_max = self.len_max(&space);
            let free_min = self.settings.free_min.unwrap_or(space.total / FREE_SHARE_DEFAULT);
            let drafted = self.drafted_len.get();
            let too_long = space.used.saturating_add(drafted).saturating_add(len).saturating_sub(len_max);
            let too_little = free_min.saturating_add(len).saturating_sub(space.free);
            let too_little = if is_disk_full { too_little.max(len) } else { too_little };
            if too_long == 0 && too_little == 0 {
                return Ok(Room::Made);
            }
            if need == Need::Spare {
                return Ok(Room::None);
            }
            // Somewhat more, so that not every fill has to look at all records.
            let pressure = if too_little > 0 { Pressure::Disk } else { Pressure::Size };
            let wanted = too_long.max(too_little).saturating_add(len_max / EVICTION_SLACK);
            if self.evict(wanted, pressure).await? == 0 {
                return Ok(Room::None);
            }
            is_disk_full = false;
        }
    }

    /// Removes files until `wanted` bytes are gone or none may go; says how many bytes went.
    async fn evict(&self, wanted: u64, pressure: Pressure) -> Result<u64, StoreError> {
        let mut records: Vec<_> = self.catalog().records().collect();
        order::sort(&mut records, pressure, now_s());
        let mut evicted = 0;
        for record in records {
            if evicted >= wanted || self.shared.is_ending() {
                break;
            }
            if self.evict_one(record).await? {
                evicted += record.entry.file_size();
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

    /// Takes a record away whose file, or whose path, is gone.
    pub async fn missed(&self, record: Record) {
        if let Err(error) = self.evict_one(record).await {
            debug!("a record without use cannot be taken away: {error}");
        }
    }

    /// Remembers that the tree of a path is damaged, and says so the first time. Workers no longer serve it.
    pub fn found_damaged(&self, info: &PathInfo, mark: RootMark, reason: &str) {
        let nar = (info.path.hash_part(), info.nar_hash);
        let previous = self.damaged.borrow_mut().insert(nar, mark);
        self.count_damaged();
        if previous == Some(mark) {
            return;
        }
        let path = info.path.full(&self.places.store_dir);
        error!(
            "{path} is damaged: {reason}; it is no longer served. `nix-store --repair-path {path}` mends it"
        );
        match self.catalog().insert(&nar, Entry::Damaged(mark), now_s()) {
            Ok(None) => {}
            Ok(Some(displaced)) => self.drop_displaced(&displaced),
            Err(error) => error!("that {path} is damaged cannot be written down: {error}"),
        }
    }

    /// Forgets that a tree is damaged.
    pub fn found_mended(&self, nar: &NarKey) {
        self.damaged.borrow_mut().remove(nar);
        self.count_damaged();
        if let Err(error) = self.catalog().remove(nar, Kind::Damaged) {
            error!("a mark of damage cannot be taken away: {error}");
        }
    }

    fn count_damaged(&self) {
        self.shared.counters.damaged_paths.set(self.damaged.borrow().len() as u64);
    }

    /// Removes the file of a record that had to leave its place in the catalog.
    fn drop_displaced(&self, record: &Record) {
        if let Err(error) = self.folder.evict(record) {
            error!("a cached file cannot be removed: {error}");
        }
    }
}

/// Whether an error says that a disk is full.
pub fn is_disk_full(error: &StoreError) -> bool {
    error.is_no_room()
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}
