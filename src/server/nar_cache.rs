//! The NAR cache as the server sees it: what is there, and who is told what was asked for.
//!
//! It is opened before anything is served. If that cannot be, it is tried again from time to time: the process that this one takes
//! over from may still hold it. Until then everything is answered live.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use tracing::{info, warn};

use super::config::NarCacheConfig;
use super::known_path::KnownPath;
use crate::background::{Background, Hint, Report};
use crate::codec::signature::SecretKey;
use crate::limits::CACHE_OPEN_INTERVAL;
use crate::ring::body::{Body, Fault, FileBody, Lookup};
use crate::ring::descriptor::Descriptor;
use crate::store::catalog::{Catalog, Lease, NarKey, Stored};
use crate::store::keys::SigningKeys;
use crate::store::nar_cache::{CacheFolder, CacheFolderError, Coding};
use crate::store::{LocalStore, now_s};

/// The NAR cache of this server, shared by all of its threads. Away from the counts of who shares it, which change with each file
/// that is sent, while each narinfo reads what is in it.
#[repr(align(128))]
pub struct NarCache {
    open: OnceLock<Open>,
    /// Why it is not open.
    trouble: Mutex<String>,
    /// Sign the narinfos in it.
    signing_keys: Arc<SigningKeys>,
}

/// A cache that is in use.
struct Open {
    folder: Arc<CacheFolder>,
    background: Background,
}

/// How the cache is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is not open, for this reason.
    Closed(String),
    /// It is open, and this is what the background plane says.
    Open(Report),
}

/// What the cache says of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Its compressed NAR.
    pub compressed: Option<Stored>,
    /// The rest.
    pub seen: Seen,
}

/// That part of a [`View`] which is remembered beside what was rendered by the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// [`NarCache::generation`] then.
    pub generation: u64,
    /// Whether the path's tree was found damaged.
    pub is_damaged: bool,
}

/// What is needed to open the cache.
struct Opener {
    config: NarCacheConfig,
    priority: u32,
    store: LocalStore,
    signing_keys: Arc<SigningKeys>,
}

impl NarCache {
    /// Opens the cache, or goes on trying to.
    pub fn start(
        config: NarCacheConfig,
        priority: u32,
        store: LocalStore,
        signing_keys: Arc<SigningKeys>,
    ) -> std::io::Result<Arc<Self>> {
        let cache = Arc::new(Self {
            open: OnceLock::new(),
            trouble: Mutex::default(),
            signing_keys: Arc::clone(&signing_keys),
        });
        let opener = Opener { config, priority, store, signing_keys };
        if !cache.open(&opener) {
            let opened = Arc::clone(&cache);
            let open = move || {
                while !opened.open(&opener) {
                    thread::sleep(CACHE_OPEN_INTERVAL);
                }
            };
            thread::Builder::new().name("cache-opener".to_owned()).spawn(open)?;
        }
        Ok(cache)
    }

    /// From now on `keys` sign what is filled in. What was there keeps its signatures.
    pub fn sign_with(&self, keys: Arc<[SecretKey]>) {
        self.signing_keys.replace(keys);
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.open.get().is_some()
    }

    /// Rises when the cache has something else than before. Nothing but loads.
    pub fn generation(&self) -> u64 {
        // Not open is a generation of its own.
        self.open.get().map_or(0, |open| 1 + open.catalog().generation())
    }

    /// What the cache says of a NAR.
    pub fn view(&self, nar: &NarKey) -> View {
        let Some(open) = self.open.get() else { return View::default() };
        // Before what it labels: what is seen can be newer than its label, and never older.
        let generation = self.generation();
        let catalog = open.catalog();
        let (compressed, damage) = (catalog.stored(nar, Coding::Zstd), catalog.damaged(nar));
        View { compressed, seen: Seen { generation, is_damaged: damage.is_some() } }
    }

    /// The encoded NAR, if there is one, which stays as long as somebody holds the lease.
    pub fn lease(&self, nar: &NarKey, coding: Coding) -> Option<(Stored, Lease)> {
        let open = self.open.get()?;
        open.folder.catalog().lease(nar, coding, now_s())
    }

    /// A descriptor of the directory in which the encoded NARs are.
    pub fn directory(&self) -> Option<OwnedFd> {
        let directory = self.open.get()?.folder.directory().try_clone_to_owned();
        directory.inspect_err(|error| warn!("cannot duplicate a descriptor: {error}")).ok()
    }

    /// Notes that a NAR was asked for that is not here.
    pub fn asked(&self, path: &KnownPath, has_small_files: bool) {
        if let Some(open) = self.open.get() {
            open.background.asked(Hint { hash_part: path.hash_part(), has_small_files });
        }
    }

    /// Notes that the file of an encoded NAR is not what the catalog says.
    pub fn doubt(&self, nar: NarKey, coding: Coding) {
        if let Some(open) = self.open.get() {
            open.background.doubt(nar, coding);
        }
    }

    /// A cache in `directory` in which nothing is encoded and nothing is scrubbed.
    #[cfg(test)]
    pub(super) fn start_idle(directory: &std::path::Path, store: &LocalStore) -> Arc<Self> {
        use crate::background::settings::{FillSettings, Format, Policy};
        let (policy, format) = (Policy::Off, Format::Auto);
        let fill = FillSettings { policy, format, level: 1, len_max: None, free_min: Some(0), scrub_rate: 0 };
        let config = NarCacheConfig { directory: directory.to_path_buf(), fill };
        Self::start(config, 30, store.clone(), SigningKeys::new(Arc::from([]))).unwrap()
    }

    /// The folder of a cache that is open.
    #[cfg(test)]
    pub(super) fn folder(&self) -> &CacheFolder {
        &self.open.get().expect("the cache is open").folder
    }

    /// How it is.
    pub fn status(&self) -> Status {
        match self.open.get() {
            Some(open) => Status::Open(open.background.report()),
            None => Status::Closed(self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        }
    }

    /// Opens the cache if that is possible. What is in the way is said when it is something else than before.
    fn open(&self, opener: &Opener) -> bool {
        match opener.open() {
            Ok(open) => {
                info!(directory = %open.folder.path().display(), "the NAR cache is open");
                // Nobody else sets it.
                let _ = self.open.set(open);
                true
            }
            Err(trouble) => {
                let is_news = {
                    let mut before = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                    std::mem::replace(&mut *before, trouble.clone()) != trouble
                };
                if is_news {
                    warn!("there is no NAR cache for now, and all NARs are made live: {trouble}");
                }
                false
            }
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(trouble) => write!(formatter, "off: {trouble}"),
            Self::Open(report) => report.state.fmt(formatter),
        }
    }
}

impl Open {
    fn catalog(&self) -> &Catalog {
        self.folder.catalog()
    }
}

impl Opener {
    fn open(&self) -> Result<Open, String> {
        let NarCacheConfig { directory, fill } = &self.config;
        let folder = CacheFolder::open(directory, &self.store.store_dir, self.priority)
            .map_err(|error: CacheFolderError| error.to_string())?;
        let folder = Arc::new(folder);
        let (store, signing_keys) = (self.store.clone(), Arc::clone(&self.signing_keys));
        let background = Background::start(fill.clone(), Arc::clone(&folder), store, signing_keys);
        let background = background.map_err(|error| error.to_string())?;
        Ok(Open { folder, background })
    }
}

/// A file of the NAR cache on its way to one client. It is not evicted meanwhile.
pub struct CachedNar {
    file: FileBody,
    _lease: Lease,
    nar: NarKey,
    coding: Coding,
    cache: Arc<NarCache>,
}

impl CachedNar {
    /// What is in `file`, which is as the catalog says.
    pub fn new(
        file: Descriptor,
        (stored, lease): (&Stored, Lease),
        nar: NarKey,
        cache: Arc<NarCache>,
    ) -> Self {
        let file = FileBody { file, len_bytes: stored.file_size };
        Self { file, _lease: lease, nar, coding: stored.coding, cache }
    }
}

impl Body for CachedNar {
    fn piece_at(&mut self, position: u64) -> Lookup<'_> {
        self.file.piece_at(position)
    }

    fn broke(&mut self, fault: Fault) {
        self.file.broke(fault);
        self.cache.doubt(self.nar, self.coding);
    }
}
