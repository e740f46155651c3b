//! What is asked of a live store, on threads that may wait: the plane's half of [`super::live_store`].

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};

use bytes::Bytes;
use tracing::{error, info, warn};

use super::encoder::Encoders;
use super::figures::{Query, SharedFigures};
use super::known_path::{KnownPath, Renderer, nar_url};
use super::nar_cache::{NarCache, Seen, View};
use super::plane::{Demand, Toolbox};
use super::refusal::Failure;
use super::representation::{JSON_TYPE, Made, MadeContent, NARINFO_CACHE_CONTROL, TEXT_TYPE};
use crate::codec::build_id::BuildId;
use crate::codec::http::route::NarCompression;
use crate::codec::nar::listing;
use crate::codec::narinfo::PathInfo;
use crate::codec::realisation::{DrvOutput, OutputName};
use crate::codec::signature::SecretKey;
use crate::codec::store_path::{HashPart, StorePath};
use crate::limits::MADE_LEN_MAX;
use crate::store::change::{ChangeCounter, Stamp};
use crate::store::db::Database;
use crate::store::debuginfo::DebugIndex;
use crate::store::log::{self, BuildLog};
use crate::store::walk::{self, Kept};
use crate::store::{LocalStore, StoreError, fault};
use crate::tally::Tally as _;

/// One live store, as all threads share it.
pub struct SharedStore {
    /// Its place among the sources.
    index: usize,
    places: LocalStore,
    renderer: RwLock<Arc<Renderer>>,
    counter: Mutex<Arc<ChangeCounter>>,
    /// Counts the counters, of which a database that was replaced gets a new one, and the renderers, of which new keys get one.
    epoch: AtomicU64,
    debug_index: Mutex<DebugIndex>,
    /// Whether the database was replaced by one that cannot be opened.
    is_lost: AtomicBool,
    /// Whether the shared index was removed under this process, which goes on with the one of before.
    is_stale: AtomicBool,
    /// Texts that were made and are being sent.
    texts: TextRoom,
    encoders: Encoders,
    /// Where its NARs are kept encoded.
    nar_cache: Option<Arc<NarCache>>,
    figures: Arc<SharedFigures>,
}

/// The state of everything that an answer follows from. What was found out in another one is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Of the database.
    pub stamp: Stamp,
    /// [`SharedStore::epoch`] then.
    pub epoch: u64,
}

/// What is known of a hash part, and in which state that was so.
#[derive(Clone, Debug)]
pub struct Known {
    /// The state.
    pub state: State,
    /// The path, if there is one.
    pub path: Option<Arc<KnownPath>>,
    /// When the NAR cache was asked about it last, and whether the path is damaged. What the cache has changes far more often than
    /// what it has of one path, so a worker notes here that the answer is still right.
    pub seen: Cell<Seen>,
}

impl Known {
    /// The path, if there is one that may be served.
    pub fn present_path(&self) -> Option<&Arc<KnownPath>> {
        self.path.as_ref().filter(|_| !self.seen.get().is_damaged)
    }
}

impl SharedStore {
    /// The store whose database `counter` has open. It must have been opened while this process had all of its rights.
    pub fn new(
        index: usize,
        places: LocalStore,
        counter: ChangeCounter,
        secret_keys: Arc<[SecretKey]>,
        nar_cache: Option<Arc<NarCache>>,
        figures: Arc<SharedFigures>,
    ) -> Self {
        let renderer = Renderer::new(places.store_dir.clone(), secret_keys, Arc::clone(&figures));
        Self {
            index,
            renderer: RwLock::new(Arc::new(renderer)),
            places,
            counter: Mutex::new(Arc::new(counter)),
            epoch: AtomicU64::new(0),
            debug_index: Mutex::new(DebugIndex::new()),
            is_lost: AtomicBool::new(false),
            is_stale: AtomicBool::new(false),
            texts: TextRoom::new(MADE_LEN_MAX, Arc::clone(&figures)),
            encoders: Encoders::default(),
            nar_cache,
            figures,
        }
    }

    /// Opens the database, and has the store.
    #[cfg(test)]
    pub(super) fn open(places: LocalStore, nar_cache: Option<Arc<NarCache>>) -> Result<Self, StoreError> {
        let counter = ChangeCounter::open(&places)?;
        Ok(Self::new(0, places, counter, Arc::from([]), nar_cache, Arc::default()))
    }

    /// Where its NARs are kept encoded, if they are.
    pub fn nar_cache(&self) -> Option<&Arc<NarCache>> {
        self.nar_cache.as_ref()
    }

    /// Where it is.
    pub fn places(&self) -> &LocalStore {
        &self.places
    }

    /// Those of its NARs that are compressed on their way.
    pub fn encoders(&self) -> &Encoders {
        &self.encoders
    }

    /// Its place among the sources.
    pub fn index(&self) -> usize {
        self.index
    }

    /// From now on `secret_keys` sign, and no others.
    pub fn sign_with(&self, secret_keys: Arc<[SecretKey]>) {
        let (store_dir, figures) = (self.places.store_dir.clone(), Arc::clone(&self.figures));
        let renderer = Arc::new(Renderer::new(store_dir, Arc::clone(&secret_keys), figures));
        {
            let mut present = self.renderer.write().unwrap_or_else(PoisonError::into_inner);
            if renderer.signs_like(&present) {
                return;
            }
            *present = renderer;
        }
        if let Some(nar_cache) = &self.nar_cache {
            nar_cache.sign_with(secret_keys);
        }
        // After it: what was rendered before bears an older label.
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// How many keys sign.
    pub fn keys_count(&self) -> usize {
        self.renderer.read().unwrap_or_else(PoisonError::into_inner).keys_count()
    }

    /// Whether the database is not the one that is there: it was replaced by one that cannot be opened, or its index was removed.
    pub fn is_behind(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed) || self.is_stale.load(Ordering::Relaxed)
    }

    /// Asks the database of this store, on a thread that has `toolbox`.
    pub fn ask<T>(
        &self,
        toolbox: &mut Toolbox,
        query: Query,
        question: impl FnOnce(&mut Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.figures.time(query, || toolbox.database(self.index, &self.places).and_then(question))
    }

    /// Rises when [`SharedStore::counter`] is another one, and when other keys sign. One load.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Tells whether the database has changed.
    pub fn counter(&self) -> Arc<ChangeCounter> {
        Arc::clone(&self.counter.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Follows a database that was replaced.
    pub fn refresh(&self) {
        if self.counter().still_current() {
            // What was taken away may have been put back.
            self.is_lost.store(false, Ordering::Relaxed);
            self.is_stale.store(false, Ordering::Relaxed);
            return;
        }
        match ChangeCounter::open(&self.places) {
            Ok(counter) if counter.lacks_index_of(&self.counter()) => {
                if !self.is_stale.swap(true, Ordering::Relaxed) {
                    error!(
                        "the shared index of the database {} (-shm) was removed while it was in use: this process goes on to see \
                         the old one, and no path that was registered since; start narwire anew",
                        self.places.database.display()
                    );
                }
            }
            Ok(counter) => {
                info!("the database {} was replaced; following the new one", self.places.database.display());
                *self.counter.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(counter);
                self.epoch.fetch_add(1, Ordering::Release);
                self.is_lost.store(false, Ordering::Relaxed);
                self.is_stale.store(false, Ordering::Relaxed);
            }
            // Asked every second; said once.
            Err(error) if !self.is_lost.swap(true, Ordering::Relaxed) => {
                warn!("the database was replaced, and the new one cannot be opened: {error}");
            }
            Err(_) => {}
        }
    }

    /// What is to be said of a hash part, of which `previous` was said in an earlier state of the database.
    pub fn look_up(
        &self,
        toolbox: &mut Toolbox,
        hash_part: HashPart,
        previous: Option<&Arc<KnownPath>>,
    ) -> Result<Known, Failure> {
        fault::may_panic("lookup: path asked");
        // Before the query, and before the keys are looked up: see `store::change` for why.
        let epoch = self.epoch();
        let state = State { stamp: self.counter().stamp(), epoch };
        let info = self.ask_database(toolbox, Query::PathInfo, |database| database.path_info(hash_part))?;
        let Some(info) = info else {
            return Ok(Known { state, path: None, seen: Cell::default() });
        };
        let nar = (info.path.hash_part(), info.nar_hash);
        let view = self.nar_cache.as_ref().map_or_else(View::default, |cache| cache.view(&nar));
        let renderer = Arc::clone(&self.renderer.read().unwrap_or_else(PoisonError::into_inner));
        let path = renderer.render(info, view.compressed.as_ref(), previous);
        Ok(Known { state, path: Some(path), seen: Cell::new(view.seen) })
    }

    /// What the database says of a path that is served, for who wants no narinfo of it. Damage is as good as absence.
    pub fn path_info(&self, toolbox: &mut Toolbox, hash_part: HashPart) -> Result<Option<PathInfo>, Failure> {
        let info = self.ask_database(toolbox, Query::PathInfo, |database| database.path_info(hash_part))?;
        Ok(info.filter(|info| !self.is_damaged(info)))
    }

    fn is_damaged(&self, info: &PathInfo) -> bool {
        let nar = (info.path.hash_part(), info.nar_hash);
        self.nar_cache.as_ref().is_some_and(|cache| cache.view(&nar).seen.is_damaged)
    }

    /// Whether a path is served.
    pub fn has(&self, toolbox: &mut Toolbox, path: &StorePath) -> Result<bool, StoreError> {
        let info = self.ask(toolbox, Query::PathInfo, |database| database.path_info(path.hash_part()));
        match info {
            Ok(Some(info)) => Ok(info.path == *path && !self.is_damaged(&info)),
            Ok(None) | Err(StoreError::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The `.ls` of a path, unless nobody wants it any more.
    pub fn listing(&self, path: &KnownPath, demand: &Demand) -> Result<Option<Made>, Failure> {
        let root = walk::open_root(&self.places, &path.store_path());
        let Some(root) = root.map_err(|error| Failure::log(&error))? else { return Ok(None) };
        let layout = walk::layout_while(&|| demand.is_there(), &root, Kept::Nothing);
        let Some(layout) = layout.map_err(|error| Failure::log(&error))? else { return Ok(None) };
        if layout.len_bytes() != Some(path.nar_size) {
            error!("{} is damaged: its NAR has another size than the database says", path.base_name());
            return Err(Failure::Damaged);
        }
        match listing::from_layout(&layout) {
            Ok(text) => Ok(Some(Made::immutable(JSON_TYPE, self.texts.claim(text.into_bytes())?))),
            Err(error) => {
                error!("{} cannot be listed: {error}", path.base_name());
                Err(Failure::Damaged)
            }
        }
    }

    /// The build log of a derivation.
    pub fn build_log(&self, derivation: &StorePath) -> Result<Option<Made>, Failure> {
        fault::may_panic("text: log asked");
        let content = match log::open(&self.places, derivation).map_err(|error| Failure::log(&error))? {
            None => return Ok(None),
            Some(BuildLog::Plain { file, len_bytes }) => MadeContent::File(file, len_bytes),
            Some(BuildLog::Decompressed(text)) => MadeContent::Bytes(self.texts.claim(text)?),
        };
        Ok(Some(Made { content, ..Made::immutable(TEXT_TYPE, Bytes::new()) }))
    }

    /// Asks the database.
    pub fn ask_database<T>(
        &self,
        toolbox: &mut Toolbox,
        query: Query,
        question: impl FnOnce(&mut Database) -> Result<T, StoreError>,
    ) -> Result<T, Failure> {
        self.ask(toolbox, query, question).map_err(|error| Failure::log(&error))
    }

    /// Where the debug symbols of a build id are (`src/libstore/binary-cache-store.cc` of Nix).
    pub fn debug_info(&self, toolbox: &mut Toolbox, build_id: BuildId) -> Result<Option<Made>, Failure> {
        // Whoever asks first may have to look at every path; the others do not wait for it on a thread each.
        let mut index = match self.debug_index.try_lock() {
            Ok(index) => index,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(Failure::Busy),
        };
        let find = |database: &mut Database| index.find(&self.places, database, build_id);
        let found = self.ask_database(toolbox, Query::DebugInfo, find)?;
        Ok(found.map(|found| {
            let link = serde_json::json!({
                "archive": format!("../{}", nar_url(&found.info, NarCompression::None)),
                "member": found.member,
            });
            Made { cache_control: NARINFO_CACHE_CONTROL, ..Made::immutable(JSON_TYPE, link.to_string()) }
        }))
    }

    /// A realisation as Nix 2.4 to 2.34 ask for it.
    pub fn realisation(&self, toolbox: &mut Toolbox, id: &DrvOutput) -> Result<Option<Made>, Failure> {
        let found = self.ask_database(toolbox, Query::Realisation, |database| database.realisation(id))?;
        Ok(found.map(|found| Made::immutable(JSON_TYPE, found.to_keyed_json(id))))
    }

    /// A realisation as Nix 2.35 and later ask for it.
    pub fn build_trace(
        &self,
        toolbox: &mut Toolbox,
        derivation: &StorePath,
        output: &OutputName,
    ) -> Result<Option<Made>, Failure> {
        let ask = |database: &mut Database| database.build_trace(derivation, output);
        let found = self.ask_database(toolbox, Query::BuildTrace, ask)?;
        Ok(found.map(|found| Made::immutable(JSON_TYPE, found.to_build_trace_json())))
    }

    /// Whether the database and the directory answer.
    pub fn probe(&self, toolbox: &mut Toolbox) -> Result<(), Failure> {
        if let Err(error) = std::fs::metadata(&self.places.real_store) {
            error!("the store directory {} does not answer: {error}", self.places.real_store.display());
            return Err(Failure::Broken);
        }
        if self.is_stale.load(Ordering::Relaxed) {
            return Err(Failure::Broken);
        }
        self.ask_database(toolbox, Query::Probe, Database::probe)
    }
}

/// For simulations.
#[cfg(test)]
impl SharedStore {
    /// Checks that nothing is being sent.
    pub fn assert_at_rest(&self) {
        assert_eq!(self.texts.made_len.load(Ordering::Relaxed), 0, "long texts are left");
        assert_eq!(self.encoders.count(), 0, "encoders are left");
    }
}

/// Room for texts that are made as a whole and sent by and by.
pub struct TextRoom {
    /// Those that are being sent. Bytes.
    made_len: Arc<AtomicUsize>,
    len_max: usize,
    figures: Arc<SharedFigures>,
}

impl TextRoom {
    /// For so many bytes.
    pub fn new(len_max: usize, figures: Arc<SharedFigures>) -> Self {
        Self { made_len: Arc::default(), len_max, figures }
    }

    /// A text that can be long, unless too many are being sent: those who ask for them and read slowly must not take all
    /// memory.
    pub fn claim(&self, text: Vec<u8>) -> Result<Bytes, Failure> {
        let len = text.len();
        let claimed = Claimed { text, made_len: Arc::clone(&self.made_len) };
        if self.made_len.fetch_add(len, Ordering::Relaxed) + len > self.len_max {
            warn!("too many long texts are being sent; one is refused");
            self.figures.texts_refused.add(1);
            return Err(Failure::Busy);
        }
        Ok(Bytes::from_owner(claimed))
    }
}

/// A text that counts while somebody holds it.
struct Claimed {
    text: Vec<u8>,
    made_len: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Claimed {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.made_len.fetch_sub(self.text.len(), Ordering::Relaxed);
    }
}
