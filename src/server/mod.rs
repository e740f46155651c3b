//! Layer 2: policy. What is served, from where, and the life of the process.
//!
//! [`run`] is the life of the process. [`node`] answers requests on each worker, out of [`live_store`]s and
//! [`directory`]s; what may wait happens on the threads of a [`plane`], for live stores in [`lookup`]. What it finds out about
//! a path is a [`known_path`]. What is [`uploads`]' business goes into one of the directories.

pub mod access;
pub mod access_log;
pub mod browse;
pub mod config;
pub mod directory;
mod encoder;
pub mod figures;
mod known_path;
pub mod layouts;
pub mod listen;
pub mod live_store;
pub mod lookup;
pub mod machine;
pub mod metrics;
pub mod nar_body;
pub mod nar_cache;
pub mod node;
pub mod page;
pub mod plane;
pub mod proxy;
pub mod refusal;
pub mod representation;
pub mod request;
pub mod sandbox;
pub mod scribe;
#[cfg(test)]
mod sim;
pub mod systemd;
pub mod topic;
pub mod uploads;

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::fs::{Mode, OFlags};
use tracing::{error, info, warn};

use self::browse::{Browser, Place};
use self::config::{Config, ConnectionBounds, ReadAgain, Rules, SourceConfig};
use self::directory::Directory;
use self::figures::{NodeFigures, ReloadFigures, SharedFigures, WorkerFigures};
use self::listen::Listener;
use self::live_store::LiveStore;
use self::lookup::SharedStore;
use self::machine::{Signal, abort_on_panic, connections_max, notice_signals, pin, raise_descriptor_limit};
use self::metrics::process::ProcessFiles;
use self::metrics::{Metrics, Sources};
use self::nar_cache::NarCache;
use self::node::{CacheNode, Means, Overview, Source};
use self::page::index::{Index, Profile, UploadPolicy};
use self::plane::{Plane, Planes};
use self::proxy::TrustedProxies;
use self::request::{Message, Terms};
use self::scribe::Scribe;
use self::uploads::{OtherSource, SharedUploads, Uploads};
use crate::codec::cache_info::CacheInfo;
use crate::codec::store_path::StoreDir;
use crate::limits::{
    BREAK_OFF_WAIT, ENCODE_NICE, ENCODE_THREADS, LOOKUP_THREADS, METRICS_THREADS, TEXT_THREADS, WALK_NICE,
    WALK_THREADS,
};
use crate::ring::admission::Admission;
use crate::ring::capability::{Capabilities, ProbeError};
use crate::ring::descriptor::Descriptor;
use crate::ring::inbox::{Inbox, Mailbox, inbox};
use crate::ring::reactor::{self, Peers, Reactor};
use crate::ring::sys;
use crate::ring::uring::Uring;
use crate::store::StoreError;
use crate::store::change::ChangeCounter;
use crate::store::keys::SigningKeys;
use crate::store::upload::{Neighbour, UploadFolder};

/// Why the server is not running any more, by what the caller has to do about it.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Nothing was ever served: the configuration or the machine has to change first.
    #[error("{0:#}")]
    Start(anyhow::Error),
    /// The server ran, and broke.
    #[error("{0:#}")]
    Serve(anyhow::Error),
}

/// What the main thread waits for.
enum Event {
    /// A worker's ring is set up, or cannot be.
    Started(anyhow::Result<()>),
    /// A signal has come.
    Signal(Signal),
    /// A worker has ended.
    Ended(io::Result<()>),
}

/// Serves until a signal ends it. `scribe` writes the log. `on_ready` is called once, when every listener accepts.
///
/// SIGTERM and SIGINT drain: no more connections, answers under way are finished, for as long as the configuration allows.
/// A second one ends at once. SIGHUP has `read_again` called, which gives the rules that are in force from then on, or says why those
/// of before stay. A panic of any thread ends the process by SIGABRT.
pub fn run(
    config: Config,
    scribe: &Arc<Scribe>,
    read_again: impl FnMut() -> Result<ReadAgain, String>,
    on_ready: impl FnOnce(&[Listener]),
) -> Result<(), RunError> {
    abort_on_panic(Arc::clone(scribe));
    let serve = || {
        let server = Server::start(&config, scribe).map_err(RunError::Start)?;
        drop(config);
        on_ready(&server.listeners);
        systemd::ready();
        server.watch(read_again).map_err(RunError::Serve)
    };
    let result = serve();
    scribe.flush();
    result
}

/// A server whose workers run.
struct Server {
    listeners: Vec<Listener>,
    mailboxes: Vec<Mailbox<reactor::Message<Message>>>,
    pulses: Arc<[AtomicU64]>,
    events: Receiver<Event>,
    origins: Arc<Vec<Origin>>,
    uploads: Option<Arc<SharedUploads>>,
    reloads: Arc<ReloadFigures>,
    ground: Ground,
    drain_timeout: Duration,
}

impl Server {
    fn start(config: &Config, scribe: &Arc<Scribe>) -> anyhow::Result<Self> {
        let off = Capabilities::parse(config.capabilities_off.iter().map(String::as_str))
            .map_err(anyhow::Error::msg)?;
        let capabilities = Capabilities::probe(sandbox::capabilities_off(off, config.sandbox))?;
        let descriptors_max = raise_descriptor_limit();
        let listeners = listen::bind_all(config)?;
        for listener in &listeners {
            // Accepted sockets inherit both. Some will be exempt from the second (`Op::Exempt`).
            let socket = rustix::fd::AsFd::as_fd(&listener.descriptor);
            sys::no_delay(socket);
            sys::bound_unsent(socket);
        }
        let counters = open_databases(config)?;
        make_nar_cache(config);
        let process = ProcessFiles::open();
        // Before it nothing is started, and nothing read that a peer has sent; after it nothing is opened but what is served.
        let sandbox = sandbox::enter(config, capabilities)?;
        // From here on nobody waits for who reads the log.
        scribe.start().context("cannot start threads")?;
        let shared_figures: Arc<SharedFigures> = Arc::default();
        let origins = open_origins(config, counters, &shared_figures)?;
        let uploads = start_uploads(config, &origins)?;
        let ground = Ground {
            store_dir: config.store_dir.clone(),
            takes_uploads: uploads.is_some(),
            is_store_first: matches!(origins.first(), Some(Origin::Store { .. })),
            is_browsable: config.is_browsable,
        };
        let terms = Arc::new(ground.terms(&config.rules));
        let planes = Planes {
            lookups: Plane::start("lookup", LOOKUP_THREADS, 0).context("cannot start threads")?,
            walks: Plane::start("walk", WALK_THREADS, WALK_NICE).context("cannot start threads")?,
            texts: Plane::start("text", TEXT_THREADS, WALK_NICE).context("cannot start threads")?,
            encodes: Plane::start("encode", ENCODE_THREADS, ENCODE_NICE).context("cannot start threads")?,
            metrics: Plane::start("metrics", METRICS_THREADS, WALK_NICE).context("cannot start threads")?,
        };
        let (sender, events) = mpsc::channel();
        // Before anybody is answered: whoever was may send one, and it would end the process.
        let of_signals = sender.clone();
        notice_signals(move |signal| of_signals.send(Event::Signal(signal)).is_ok())
            .context("cannot take signals")?;
        let (mailboxes, inboxes): (Vec<_>, Vec<_>) = (0..config.workers)
            .map(|_| inbox())
            .collect::<Result<Vec<_>, _>>()
            .context("cannot make an eventfd")?
            .into_iter()
            .unzip();
        let ConnectionBounds { all_max, per_address_max } = config.connections;
        let all_max = connections_max(descriptors_max, all_max);
        let admission = Admission::new(config.workers, all_max, per_address_max);
        let pulses: Arc<[AtomicU64]> = (0..config.workers).map(|_| AtomicU64::new(0)).collect();
        let figures: Vec<WorkerFigures> = (0..config.workers).map(|_| WorkerFigures::default()).collect();
        let stores: Vec<_> = origins.iter().filter_map(Origin::store).collect();
        let browser = config.is_browsable.then(|| browser(config, &origins, &shared_figures)).transpose()?;
        let reloads = Arc::new(ReloadFigures::begin());
        let metrics = Metrics::new(Sources {
            workers: figures.clone(),
            shared: shared_figures,
            planes: planes
                .figures()
                .into_iter()
                .chain(uploads.as_deref().map(SharedUploads::plane_figures))
                .collect(),
            stores: stores.clone(),
            uploads: uploads.as_deref().map(SharedUploads::counts),
            nar_cache: origins.iter().find_map(Origin::nar_cache).map(ask_status),
            log: Arc::clone(scribe.figures()),
            connections_max: all_max,
            reloads: Arc::clone(&reloads),
            process,
        });
        let overview = Arc::new(Overview { stores, metrics, browser });
        let origins = Arc::new(origins);
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let seed = Seed {
                index,
                capabilities,
                inbox,
                listeners: duplicate(&listeners)?,
                peers: Peers {
                    index,
                    admission: Arc::clone(&admission),
                    mailboxes: mailboxes.clone(),
                    pulses: Arc::clone(&pulses),
                    figures: Arc::clone(&figures[index].ring),
                },
                figures: Arc::clone(&figures[index].node),
                scribe: Arc::clone(scribe),
                origins: Arc::clone(&origins),
                terms: Arc::clone(&terms),
                overview: Arc::clone(&overview),
                uploads: uploads.clone(),
                planes: planes.clone(),
            };
            let sender = sender.clone();
            let name = format!("worker-{index}");
            thread::Builder::new()
                .name(name)
                .spawn(move || seed.grow(&sender))
                .context("cannot start threads")?;
        }
        let mut workers_left = config.workers;
        let mut early = Vec::new();
        while workers_left > 0 {
            match events.recv().context("all workers have ended")? {
                Event::Started(result) => {
                    result?;
                    workers_left -= 1;
                }
                other => early.push(other),
            }
        }
        for event in early {
            // Its turn comes now that all of them run. There is somebody who receives it: this very value.
            let _received = sender.send(event);
        }
        // A NAR cache that another process has will be opened later, with rings of its own.
        if origins.iter().filter_map(Origin::nar_cache).all(|nar_cache| nar_cache.is_open()) {
            sandbox.seal();
        }
        info!(
            workers = config.workers,
            capabilities = capabilities.names().collect::<Vec<_>>().join(","),
            sandbox = %sandbox.in_brief(),
            "serving"
        );
        let drain_timeout = config.rules.drain_timeout;
        Ok(Self { listeners, mailboxes, pulses, events, origins, uploads, reloads, ground, drain_timeout })
    }

    /// Waits for signals, tells the service manager that all is well while every worker goes round, and ends.
    fn watch(mut self, mut read_again: impl FnMut() -> Result<ReadAgain, String>) -> anyhow::Result<()> {
        let watchdog = systemd::watchdog_interval();
        let mut pulses = self.read_pulses();
        let mut last = Instant::now();
        loop {
            let event = match watchdog {
                None => self.events.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some(interval) => self.events.recv_timeout(interval.saturating_sub(last.elapsed())),
            };
            // Also when there is always something else to do.
            if watchdog.is_some_and(|interval| last.elapsed() >= interval) {
                let now = self.read_pulses();
                if now.iter().zip(&pulses).all(|(now, before)| now != before) {
                    systemd::alive();
                }
                (pulses, last) = (now, Instant::now());
            }
            match event {
                Ok(Event::Started(_)) | Err(mpsc::RecvTimeoutError::Timeout) => {}
                Ok(Event::Signal(Signal::Reload)) => self.reload(&mut read_again),
                Ok(Event::Signal(Signal::End)) => return self.drain(),
                Ok(Event::Ended(result)) => return result.context("a worker has failed"),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn drain(mut self) -> anyhow::Result<()> {
        systemd::stopping();
        // Whoever comes now is refused at once and asks another node, instead of waiting in a backlog.
        self.listeners.clear();
        info!("draining: no more connections, answers under way are finished (a second signal ends at once)");
        self.tell_all(|| reactor::Message::Drain);
        let deadline = Instant::now() + self.drain_timeout;
        let mut running = self.mailboxes.len();
        while running > 0 {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                // Answers that are under way were asked for when the rules of then were in force.
                Ok(Event::Started(_) | Event::Signal(Signal::Reload)) => {}
                Ok(Event::Signal(Signal::End)) => {
                    warn!("ending at once");
                    break;
                }
                Ok(Event::Ended(result)) => {
                    result.context("a worker has failed")?;
                    running -= 1;
                }
                Err(_) => {
                    warn!("answers are still under way after {:?}; they are broken off", self.drain_timeout);
                    break;
                }
            }
        }
        self.break_off(running);
        Ok(())
    }

    /// Has workers that still run end their answers as they are, so that who wants to know how is told: the access log.
    fn break_off(&self, mut running: usize) {
        self.tell_all(|| reactor::Message::BreakOff);
        let deadline = Instant::now() + BREAK_OFF_WAIT;
        while running > 0 {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Ended(_)) => running -= 1,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// Puts new rules in force. Those of before stay if they cannot be read, for half of them would be none that anybody has wanted.
    fn reload(&mut self, read_again: &mut dyn FnMut() -> Result<ReadAgain, String>) {
        systemd::reloading();
        let read = read_again();
        self.reloads.note(read.as_ref().ok().map(|read| read.is_restart_pending));
        match read {
            Ok(ReadAgain { rules, is_restart_pending }) => {
                self.obey(&rules);
                let (keys, tokens) = (rules.secret_keys.len(), rules.access.tokens.len());
                if is_restart_pending {
                    info!(keys, tokens, "read keys and tokens again; settings wait for a restart");
                } else {
                    info!(keys, tokens, "read settings, keys and tokens again");
                }
            }
            Err(error) => error!("{error}; what was in force before stays in force"),
        }
        systemd::ready();
    }

    fn obey(&mut self, rules: &Rules) {
        self.drain_timeout = rules.drain_timeout;
        for store in self.origins.iter().filter_map(Origin::store) {
            store.sign_with(Arc::clone(&rules.secret_keys));
        }
        if let Some(uploads) = &self.uploads {
            uploads.require(Arc::clone(&rules.required_keys));
        }
        let terms = Arc::new(self.ground.terms(rules));
        self.tell_all(|| reactor::Message::Node(Message::Terms(Arc::clone(&terms))));
    }

    fn tell_all(&self, message: impl Fn() -> reactor::Message<Message>) {
        for mailbox in &self.mailboxes {
            // A worker that has ended has drained.
            let _ = mailbox.send(message());
        }
    }

    fn read_pulses(&self) -> Vec<u64> {
        self.pulses.iter().map(|pulse| pulse.load(Ordering::Relaxed)).collect()
    }
}

/// What a worker is made of, on its way to its thread.
struct Seed {
    index: usize,
    capabilities: Capabilities,
    inbox: Inbox<reactor::Message<Message>>,
    listeners: Vec<OwnedFd>,
    peers: Peers<Message>,
    figures: Arc<NodeFigures>,
    scribe: Arc<Scribe>,
    origins: Arc<Vec<Origin>>,
    terms: Arc<Terms>,
    overview: Arc<Overview>,
    uploads: Option<Arc<SharedUploads>>,
    planes: Planes,
}

impl Seed {
    /// Runs the worker on the calling thread until it ends.
    fn grow(self, events: &Sender<Event>) {
        pin(self.index);
        let reactor = match self.reactor() {
            Ok(reactor) => {
                let _ = events.send(Event::Started(Ok(())));
                reactor
            }
            Err(error) => return drop(events.send(Event::Started(Err(error)))),
        };
        let _ = events.send(Event::Ended(reactor.run()));
    }

    fn reactor(self) -> anyhow::Result<Reactor<Uring, CacheNode>> {
        let mailbox = self.peers.mailboxes[self.index].clone();
        let sources = self
            .origins
            .iter()
            .map(|origin| origin.source(&self.planes, &mailbox, &self.figures))
            .collect::<Result<_, _>>()?;
        let uploads = self.uploads.map(|shared| Uploads::new(shared, mailbox.clone()));
        let Self { planes, figures, scribe, .. } = self;
        let seed = RandomState::new().hash_one(self.index);
        let means = Means { planes, mailbox, figures, scribe, seed, is_first: self.index == 0 };
        let node = CacheNode::new(sources, self.terms, self.overview, uploads, means);
        let driver = Uring::new(self.capabilities).map_err(|error| ProbeError::setup(&error))?;
        Reactor::new(driver, node, self.inbox, self.listeners, self.peers).context("cannot set up a worker")
    }
}

/// An opened source, as all workers share it.
enum Origin {
    Store { store: Arc<SharedStore>, directory: OwnedFd },
    Directory(Arc<OwnedFd>),
}

impl Origin {
    fn store(&self) -> Option<Arc<SharedStore>> {
        match self {
            Self::Store { store, .. } => Some(Arc::clone(store)),
            Self::Directory(_) => None,
        }
    }

    fn nar_cache(&self) -> Option<&Arc<NarCache>> {
        match self {
            Self::Store { store, .. } => store.nar_cache(),
            Self::Directory(_) => None,
        }
    }

    /// The source for one worker.
    fn source(
        &self,
        planes: &Planes,
        mailbox: &Mailbox<reactor::Message<Message>>,
        figures: &Arc<NodeFigures>,
    ) -> io::Result<Source> {
        Ok(match self {
            Self::Store { store, directory } => {
                let directory = Descriptor::from(directory.try_clone()?);
                Source::Store(Box::new(LiveStore::new(
                    Arc::clone(store),
                    directory,
                    planes.clone(),
                    mailbox.clone(),
                    Arc::clone(figures),
                )))
            }
            Self::Directory(directory) => Source::Directory(Directory::new(Arc::clone(directory))?),
        })
    }
}

/// Who shows people around in all sources.
fn browser(config: &Config, origins: &[Origin], figures: &Arc<SharedFigures>) -> io::Result<Browser> {
    let place = |(source, origin): (&SourceConfig, &Origin)| {
        Ok(match (source, origin) {
            (_, Origin::Store { store, .. }) => Place::Store(Arc::clone(store)),
            (SourceConfig::Directory(path), Origin::Directory(directory)) => {
                Place::directory(directory.try_clone()?, path.clone())
            }
            (SourceConfig::Store(places), Origin::Directory(directory)) => {
                Place::directory(directory.try_clone()?, places.real_store.clone())
            }
        })
    };
    let places = config.sources.iter().zip(origins).map(place).collect::<io::Result<_>>()?;
    Ok(Browser::new(places, config.store_dir.clone(), Arc::clone(figures)))
}

/// Opens the database of each store, with all rights that the process has: SQLite's shared index is made if there is none, and
/// threads that open the database later share it. Without the right to write, each answer would cost two questions to the file
/// system as long as nobody else has the database open.
fn open_databases(config: &Config) -> Result<VecDeque<ChangeCounter>, StoreError> {
    let stores = config.sources.iter().filter_map(|source| match source {
        SourceConfig::Store(places) => Some(ChangeCounter::open(places)),
        SourceConfig::Directory(_) => None,
    });
    stores.collect()
}

/// Makes the directory of the NAR cache, so that it can be named to the sandbox. Why it cannot be made is said by who opens it.
fn make_nar_cache(config: &Config) {
    if let Some(nar_cache) = &config.nar_cache {
        let _ = std::fs::create_dir_all(&nar_cache.directory);
    }
}

fn open_origins(
    config: &Config,
    mut counters: VecDeque<ChangeCounter>,
    figures: &Arc<SharedFigures>,
) -> anyhow::Result<Vec<Origin>> {
    let Rules { secret_keys, priority, .. } = &config.rules;
    let mut origin = |(index, source): (usize, &SourceConfig)| {
        Ok(match source {
            SourceConfig::Store(places) => {
                let counter = counters.pop_front().context("a bug: a store whose database is not open")?;
                let directory = open_directory(&places.real_store)?;
                let signing_keys = || SigningKeys::new(Arc::clone(secret_keys));
                let nar_cache = config
                    .nar_cache
                    .clone()
                    .map(|nar_cache| NarCache::start(nar_cache, *priority, places.clone(), signing_keys()));
                let nar_cache = nar_cache.transpose().context("cannot start threads")?;
                let keys = Arc::clone(secret_keys);
                let store =
                    SharedStore::new(index, places.clone(), counter, keys, nar_cache, Arc::clone(figures));
                Origin::Store { store: Arc::new(store), directory }
            }
            SourceConfig::Directory(path) => Origin::Directory(Arc::new(open_directory(path)?)),
        })
    };
    config.sources.iter().enumerate().map(&mut origin).collect()
}

/// Opens the directory that uploads are written to, if there is one.
fn start_uploads(config: &Config, origins: &[Origin]) -> anyhow::Result<Option<Arc<SharedUploads>>> {
    let Some(settings) = config.uploads.clone() else { return Ok(None) };
    let is_own = |source: &SourceConfig| matches!(source, SourceConfig::Directory(path) if *path == settings.directory);
    let others = config.sources.iter().zip(origins).filter(|(source, _)| !is_own(source));
    let others = others.filter_map(|(source, origin)| match (source, origin) {
        (_, Origin::Store { store, .. }) => Some(Ok(OtherSource::Store(Arc::clone(store)))),
        (SourceConfig::Directory(path), _) => {
            Some(Neighbour::open(path, &config.store_dir).map(OtherSource::Directory))
        }
        (SourceConfig::Store(_), Origin::Directory(_)) => None,
    });
    let others = others.collect::<Result<_, _>>()?;
    let folder = UploadFolder::open(settings)?;
    folder.require(Arc::clone(&config.rules.required_keys));
    SharedUploads::start(folder, others, config.workers).map(Some).context("cannot start threads")
}

/// Asks how a NAR cache is.
fn ask_status(nar_cache: &Arc<NarCache>) -> Box<dyn Fn() -> nar_cache::Status + Send + Sync> {
    let nar_cache = Arc::clone(nar_cache);
    Box::new(move || nar_cache.status())
}

fn open_directory(path: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("cannot open {}", path.display()))
}

fn duplicate(listeners: &[Listener]) -> anyhow::Result<Vec<OwnedFd>> {
    let duplicates = listeners.iter().map(|listener| listener.descriptor.try_clone());
    duplicates.collect::<io::Result<_>>().context("cannot duplicate a socket")
}

/// What of the terms stays as long as the process does.
struct Ground {
    store_dir: StoreDir,
    takes_uploads: bool,
    /// A directory that is asked first has a `nix-cache-info` of its own.
    is_store_first: bool,
    is_browsable: bool,
}

impl Ground {
    fn terms(&self, rules: &Rules) -> Terms {
        let Rules { secret_keys, required_keys, access, .. } = rules;
        let uploads = match (self.takes_uploads, access.is_upload_anonymous) {
            (false, _) => UploadPolicy::Nobody,
            (true, false) => UploadPolicy::WithToken,
            (true, true) => UploadPolicy::Everybody,
        };
        let mut public_keys: Vec<_> = secret_keys.iter().map(|key| key.public().to_string()).collect();
        // What was uploaded under this rule is signed by one of them.
        let required = required_keys.iter().map(ToString::to_string);
        public_keys.extend(required.filter(|_| self.takes_uploads));
        public_keys.dedup();
        let profile = Profile {
            store_dir: self.store_dir.clone(),
            priority: self.is_store_first.then_some(rules.priority),
            public_keys,
            is_private: access.is_private,
            uploads,
            is_browsable: self.is_browsable,
        };
        Terms {
            index: Index::new(&profile),
            cache_info: CacheInfo {
                store_dir: self.store_dir.clone(),
                want_mass_query: true,
                priority: rules.priority,
            },
            access: access.clone(),
            proxies: TrustedProxies::new(Arc::clone(&rules.trusted_proxies)),
            access_log: rules.access_log,
        }
    }
}
