//! A live Nix store as one worker sees it: what it knows of paths, and the NARs that it sends.
//!
//! Answers, hits and misses, hold until the database changes: each is kept with the stamp of the state in which it was
//! found, and the present stamp costs two loads of memory wherever SQLite shares its index ([`crate::store::change`]). So a
//! path registered a moment ago is found by the next request, and one that was deleted is gone.
//!
//! What needs the database or a directory walk is asked of the lookup plane ([`super::lookup`]), and once for all who want
//! it. A NAR goes through: what is known of the path → its root is opened, which keeps the garbage collector away → is it
//! still valid? → its layout → reply. When everything is known, no other thread is asked.

use std::collections::HashMap;
use std::ffi::CString;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::unsync::Cache;
use rustix::io::Errno;
use tracing::error;

use super::encoder::{EncodedBody, Order, Workshop};
use super::figures::{NodeFigures, NodeLimit};
use super::known_path::KnownPath;
use super::layouts::{Found, Layouts, Told, WalkNews, key_of};
use super::lookup::{Known, SharedStore, State};
use super::nar_body::{NarBody, Root, SharedLayout};
use super::nar_cache::CachedNar;
use super::plane::{Demand, Full, Interest, Plane, Planes, Toolbox};
use super::refusal::{Failure, not_found, overloaded};
use super::representation::{
    Conditions, Content, IMMUTABLE_CACHE_CONTROL, Made, NAR_TYPE, NARINFO_CACHE_CONTROL, Representation,
};
use super::request::{Damaged, Message, Stage, Step, Wish};
use crate::codec::cache_file::CacheFile;
use crate::codec::hash::Sha256Digest;
use crate::codec::http::Status;
use crate::codec::http::field::ETag;
use crate::codec::http::response::{CacheControl, Fields};
use crate::codec::http::route::{NarCompression, NarRequest, Route};
use crate::codec::store_path::HashPart;
use crate::limits::{INLINE_BODY_LEN_MAX, KNOWN_PATHS_LEN_MAX};
use crate::ring::descriptor::Descriptor;
use crate::ring::inbox::Mailbox;
use crate::ring::op::{ConnectionId, FileKind, OpenedFile};
use crate::ring::reactor;
use crate::ring::service::{Reply, ReplyBody};
use crate::store::StoreError;
use crate::store::catalog::{Lease, NarKey, Stored};
use crate::store::change::{ChangeCounter, Stamp};
use crate::store::nar_cache::{CacheFolder, Coding};
use crate::store::walk::{self, Kept, Walked, WholeHash};
use crate::tally::Tally as _;

/// The store, seen by one worker.
pub struct LiveStore {
    shared: Arc<SharedStore>,
    counter: Arc<ChangeCounter>,
    epoch: u64,
    /// The directory of all store paths.
    directory: Descriptor,
    known: Cache<HashPart, Known, KnownWeighter>,
    /// Who waits for what is being looked up.
    asked: HashMap<HashPart, Vec<Asker>>,
    layouts: Layouts,
    /// The directory of the NAR cache, once it was needed.
    cache_directory: Option<Descriptor>,
    planes: Planes,
    mailbox: Mailbox<reactor::Message<Message>>,
    figures: Arc<NodeFigures>,
}

/// Somebody who waits for what is known of a hash part.
struct Asker {
    id: ConnectionId,
    /// The state when it joined a question that was under way; none for whom the question was put.
    joined: Option<State>,
}

/// What a request waits for.
pub enum Awaited {
    /// What is known of the path.
    Knowledge,
    /// The file of its NAR in the NAR cache to be opened.
    Cached(Arc<KnownPath>, Cached),
    /// Its root to be opened.
    Root(Arc<KnownPath>),
    /// Whether it is still valid now that its root is open.
    Validity(Arc<KnownPath>, Root),
    /// The beginning of its layout.
    Layout(Arc<KnownPath>, Root),
}

/// A file that the catalog of the NAR cache has.
pub struct Cached {
    stored: Stored,
    /// Keeps the file from being evicted.
    lease: Lease,
}

/// What a worker remembers of a hash part.
enum Knowledge {
    /// It holds in the present state of the database: there is this path, or none.
    Now(Option<Arc<KnownPath>>),
    /// Nothing, or nothing that still holds for certain.
    Outdated,
}

impl LiveStore {
    /// The store for one worker, whose mailbox gets the answers.
    pub fn new(
        shared: Arc<SharedStore>,
        directory: Descriptor,
        planes: Planes,
        mailbox: Mailbox<reactor::Message<Message>>,
        figures: Arc<NodeFigures>,
    ) -> Self {
        // In this order: a counter that is newer than its epoch is looked up again.
        let epoch = shared.epoch();
        Self {
            epoch,
            counter: shared.counter(),
            shared,
            directory,
            known: Cache::with_weighter(1024, KNOWN_PATHS_LEN_MAX, KnownWeighter),
            asked: HashMap::new(),
            layouts: Layouts::default(),
            cache_directory: None,
            planes,
            mailbox,
            figures,
        }
    }

    /// Answers a request, or says what it waits for.
    pub fn ask(&mut self, id: ConnectionId, wish: &Wish) -> Step {
        match &wish.route {
            Route::File(file) => self.file(id, wish, file),
            Route::Nar(request) => {
                let hash_part = request.address.hash_part();
                match self.recalled(hash_part) {
                    Knowledge::Now(path) => self.find_nar(id, wish, request, path),
                    Knowledge::Outdated => self.look_up(id, hash_part, Awaited::Knowledge),
                }
            }
            Route::NarFile(_)
            | Route::Index
            | Route::Import
            | Route::Version
            | Route::Health
            | Route::Metrics
            | Route::Look(_)
            | Route::NotFound => Step::Absent,
        }
    }

    fn file(&mut self, id: ConnectionId, wish: &Wish, file: &CacheFile) -> Step {
        match file {
            CacheFile::NarInfo(hash_part) => match self.recalled(*hash_part) {
                Knowledge::Now(path) => Self::narinfo(wish, path),
                Knowledge::Outdated => self.look_up(id, *hash_part, Awaited::Knowledge),
            },
            CacheFile::Listing(hash_part) => match self.recalled(*hash_part) {
                Knowledge::Now(path) => self.list(id, path),
                Knowledge::Outdated => self.look_up(id, *hash_part, Awaited::Knowledge),
            },
            CacheFile::Log(derivation) => {
                let derivation = derivation.clone();
                self.make(id, |planes| &planes.texts, move |shared, _, _| shared.build_log(&derivation))
            }
            CacheFile::DebugInfo { build_id, .. } => {
                let build_id = *build_id;
                self.make(
                    id,
                    |planes| &planes.texts,
                    move |shared, toolbox, _| shared.debug_info(toolbox, build_id),
                )
            }
            CacheFile::Realisation(output) => {
                let output = output.clone();
                self.make(
                    id,
                    |planes| &planes.lookups,
                    move |shared, toolbox, _| shared.realisation(toolbox, &output),
                )
            }
            CacheFile::BuildTrace { derivation, output } => {
                let (derivation, output) = (derivation.clone(), output.clone());
                let ask = move |shared: &SharedStore, toolbox: &mut Toolbox, _: &Demand| {
                    shared.build_trace(toolbox, &derivation, &output)
                };
                self.make(id, |planes| &planes.lookups, ask)
            }
            CacheFile::CacheInfo => Step::Absent,
        }
    }

    /// Goes on after [`Message::Known`].
    pub fn informed(
        &mut self,
        id: ConnectionId,
        wish: &Wish,
        stage: Awaited,
        path: Option<Arc<KnownPath>>,
    ) -> Step {
        match (&wish.route, stage) {
            (Route::File(CacheFile::NarInfo(_)), _) => Self::narinfo(wish, path),
            (Route::File(CacheFile::Listing(_)), _) => self.list(id, path),
            (Route::Nar(_), Awaited::Validity(opened, root)) => {
                self.opened_valid(id, wish, opened, root, path)
            }
            (Route::Nar(request), _) => self.find_nar(id, wish, request, path),
            _ => Step::Absent,
        }
    }

    /// Goes on after a file was opened.
    pub fn opened(
        &mut self,
        id: ConnectionId,
        wish: &Wish,
        awaited: Awaited,
        result: Result<OpenedFile, Errno>,
    ) -> Step {
        match awaited {
            Awaited::Cached(path, cached) => self.cached_opened(wish, path, cached, result),
            Awaited::Root(path) => self.root_opened(id, wish, path, result),
            Awaited::Knowledge | Awaited::Validity(..) | Awaited::Layout(..) => Step::Absent,
        }
    }

    fn root_opened(
        &mut self,
        id: ConnectionId,
        wish: &Wish,
        path: Arc<KnownPath>,
        result: Result<OpenedFile, Errno>,
    ) -> Step {
        let name = path.base_name();
        let root = match result {
            Ok(OpenedFile { status, .. }) if status.kind == FileKind::Other => {
                error!("{name} is valid and is neither a directory nor a file nor a link; it is not served");
                return Step::Absent;
            }
            Ok(opened) => Root::Open(opened),
            // It is not followed; the walk reads it.
            Err(Errno::LOOP) => Root::Unneeded,
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
                error!("cannot open {name}: {errno}");
                return Step::Reply(overloaded());
            }
            Err(errno) => {
                // Deleted between the two is no fault; valid and not there is one.
                if let Knowledge::Now(Some(_)) = self.known(path.hash_part()) {
                    error!("{name} is valid and cannot be opened: {errno}; it is not served");
                }
                return Step::Absent;
            }
        };
        // The garbage collector spares what is open, unless it had looked before. What is valid after the opening is gone
        // within moments or stays; in the first case the download breaks off.
        let hash_part = path.hash_part();
        match self.known(hash_part) {
            Knowledge::Now(known) => self.opened_valid(id, wish, path, root, known),
            Knowledge::Outdated => self.look_up(id, hash_part, Awaited::Validity(path, root)),
        }
    }

    /// Goes on when it is known what is valid after the opening: the same contents, or what was opened is not what is
    /// known now.
    fn opened_valid(
        &mut self,
        id: ConnectionId,
        wish: &Wish,
        opened: Arc<KnownPath>,
        root: Root,
        now: Option<Arc<KnownPath>>,
    ) -> Step {
        match now {
            Some(now) if now.nar_hash == opened.nar_hash => self.lay_out(id, wish, opened, root),
            _ => Step::Absent,
        }
    }

    /// Goes on after a walk has begun, or ended.
    pub fn laid_out(
        &self,
        id: ConnectionId,
        wish: &Wish,
        path: &Arc<KnownPath>,
        root: Root,
        outcome: Result<Rc<SharedLayout>, Failure>,
    ) -> Step {
        match outcome {
            Ok(layout) if layout.is_sound() => Step::Reply(self.nar_reply(id, wish, path, root, layout)),
            Ok(_) | Err(Failure::Damaged | Failure::Broken) => Step::Absent,
            Err(failure @ Failure::Busy) => Step::Reply(failure.reply()),
        }
    }

    /// Takes what was found out about a hash part; says who has waited for it, and whether it answers them.
    ///
    /// Somebody who has joined a question may have done so after the database was read. It is an answer to them only if
    /// all was then in the state of the answer; else they have to ask again.
    pub fn take_known(&mut self, hash_part: HashPart, known: Option<Known>) -> Vec<(ConnectionId, bool)> {
        let state = known.as_ref().map(|known| known.state);
        if let Some(known) = known {
            self.known.insert(hash_part, known);
        }
        let askers = self.asked.remove(&hash_part).unwrap_or_default();
        let is_answered = |asker: &Asker| asker.joined.is_none() || state.is_none() || asker.joined == state;
        askers.into_iter().map(|asker| (asker.id, is_answered(&asker))).collect()
    }

    /// Asks for a hash part again, for somebody whom [`LiveStore::take_known`] has not answered.
    pub fn ask_again(&mut self, id: ConnectionId, hash_part: HashPart, awaited: Awaited) -> Step {
        self.look_up(id, hash_part, awaited)
    }

    /// Takes what a walk has found; says whom it concerns.
    pub fn take_walk(&mut self, key: NarKey, demand: &Demand, news: WalkNews) -> Option<Told> {
        self.layouts.take(key, demand, news)
    }

    /// Forgets somebody who has waited for a walk to begin, and has gone.
    pub fn leave_walk(&mut self, path: &KnownPath, id: ConnectionId) {
        self.layouts.leave(&key_of(path), id);
    }

    /// Takes what was found out while a NAR was sent.
    pub fn take_damage(&mut self, key: NarKey, stamp: Stamp) {
        self.layouts.remember_damage(key, stamp);
    }

    /// Looks after walks, and on the worker that is the first also after the database file; called about once a second.
    pub fn tick(&mut self, is_first: bool) {
        self.layouts.tick();
        if !is_first {
            return;
        }
        let shared = Arc::clone(&self.shared);
        // When the plane is busy, the next second will do.
        let _ = self.planes.lookups.submit(move |_| shared.refresh());
    }

    /// The present state.
    fn state(&mut self) -> State {
        let epoch = self.shared.epoch();
        if epoch != self.epoch {
            self.epoch = epoch;
            self.counter = self.shared.counter();
        }
        State { stamp: self.counter.stamp(), epoch }
    }

    /// What is known of a hash part that a request is about.
    fn recalled(&mut self, hash_part: HashPart) -> Knowledge {
        let known = self.known(hash_part);
        let NodeFigures { answer_hits, answer_misses, .. } = &*self.figures;
        let count = if matches!(known, Knowledge::Now(_)) { answer_hits } else { answer_misses };
        count.add(1);
        known
    }

    /// What is known of a hash part.
    fn known(&mut self, hash_part: HashPart) -> Knowledge {
        let state = self.state();
        match self.known.get(&hash_part) {
            Some(known) if known.state == state && self.is_seen(known) => {
                Knowledge::Now(known.present_path().cloned())
            }
            _ => Knowledge::Outdated,
        }
    }

    /// Whether the NAR cache still says what it said when this was rendered.
    fn is_seen(&self, known: &Known) -> bool {
        let (Some(cache), Some(path)) = (self.shared.nar_cache(), &known.path) else { return true };
        if cache.generation() == known.seen.get().generation {
            return true;
        }
        let view = cache.view(&key_of(path));
        let is_right = path.tells_of(view.compressed.as_ref());
        // Not noted of an answer that is wrong: whoever asks before it was rendered again must find that out as well.
        if is_right {
            known.seen.set(view.seen);
        }
        is_right
    }

    fn narinfo(wish: &Wish, path: Option<Arc<KnownPath>>) -> Step {
        path.map_or(Step::Absent, |path| Step::Reply(path.reply(&wish.conditions)))
    }

    /// The path, if its contents are the ones that were asked for. Another NAR is never sent in its place.
    fn wanted(request: &NarRequest, path: Option<Arc<KnownPath>>) -> Option<Arc<KnownPath>> {
        path.filter(|path| request.address.nar_hash().is_none_or(|nar_hash| nar_hash == path.nar_hash))
    }

    /// Answers from memory, or has the cached NAR opened, or the root of the path.
    fn find_nar(
        &mut self,
        id: ConnectionId,
        wish: &Wish,
        request: &NarRequest,
        path: Option<Arc<KnownPath>>,
    ) -> Step {
        let Some(path) = Self::wanted(request, path) else { return Step::Absent };
        let is_flat = request.compression == NarCompression::None;
        let whole = self.layouts.whole(&key_of(&path));
        // What is here to its last byte is sent from memory, unless it would have to be compressed and is in a file already.
        if (!is_flat || whole.is_none())
            && let Some(step) = self.open_cached(request.compression, &path)
        {
            return step;
        }
        if !is_flat && wish.conditions.is_resumption() {
            return self.refuse_rest();
        }
        match whole {
            // No file will be read, so nothing has to be kept from the garbage collector.
            Some(layout) => {
                self.figures.layout_hits.add(1);
                Step::Reply(self.nar_reply(id, wish, &path, Root::Unneeded, layout))
            }
            None => self.open_root(path),
        }
    }

    /// What is said to somebody who wants the rest of a compressed file that is not here: made anew it may have other bytes. Nix
    /// takes its absence for a reason to ask the next cache. A cache that is just being opened may have it.
    fn refuse_rest(&self) -> Step {
        match self.shared.nar_cache() {
            Some(cache) if !cache.is_open() => Step::Reply(overloaded()),
            _ => Step::Absent,
        }
    }

    /// Has the file of the NAR opened, if the NAR cache has one.
    fn open_cached(&mut self, compression: NarCompression, path: &Arc<KnownPath>) -> Option<Step> {
        let (cache, coding) = (self.shared.nar_cache()?, coding(compression));
        let (stored, lease) = cache.lease(&key_of(path), coding)?;
        if self.cache_directory.is_none() {
            self.cache_directory = cache.directory().map(Descriptor::from);
        }
        let directory = self.cache_directory.clone()?;
        // Nothing in such a name is a NUL.
        let name = CString::new(CacheFolder::file_name(&key_of(path), coding)).ok()?;
        let stage = Stage::Store(Awaited::Cached(Arc::clone(path), Cached { stored, lease }));
        Some(Step::Open { directory, path: name, stage })
    }

    /// Goes on after the file of a NAR was opened. What is not as the catalog says is made live.
    fn cached_opened(
        &mut self,
        wish: &Wish,
        path: Arc<KnownPath>,
        cached: Cached,
        result: Result<OpenedFile, Errno>,
    ) -> Step {
        let (Cached { stored, lease }, nar) = (cached, key_of(&path));
        let (Some(cache), Route::Nar(request)) = (self.shared.nar_cache(), &wish.route) else {
            return Step::Absent;
        };
        match result {
            Ok(OpenedFile { file, status })
                if status.kind == FileKind::Regular && status.len_bytes == stored.file_size =>
            {
                let body = CachedNar::new(file, (&stored, lease), nar, Arc::clone(cache));
                let content = Content::Body(Box::new(body), stored.file_size);
                let reply = representation(request, stored.file_hash, content).reply(&wish.conditions);
                if matches!(reply.status, Status::Ok | Status::PartialContent) {
                    self.figures.nar_hits.add(1);
                }
                Step::Reply(reply)
            }
            // The root could not be opened either.
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
                error!("cannot open a file of the NAR cache: {errno}");
                Step::Reply(overloaded())
            }
            _ => {
                cache.doubt(nar, stored.coding);
                if stored.coding == Coding::Zstd && wish.conditions.is_resumption() {
                    return self.refuse_rest();
                }
                self.open_root(path)
            }
        }
    }

    fn open_root(&self, path: Arc<KnownPath>) -> Step {
        // A base name has no NUL.
        let Ok(name) = CString::new(path.base_name()) else { return Step::Absent };
        Step::Open { directory: self.directory.clone(), path: name, stage: Stage::Store(Awaited::Root(path)) }
    }

    fn lay_out(&mut self, id: ConnectionId, wish: &Wish, path: Arc<KnownPath>, root: Root) -> Step {
        let stamp = self.counter.stamp();
        match self.layouts.find(&key_of(&path), root.status(), id, stamp) {
            Found::Layout(layout) => {
                self.figures.layout_hits.add(1);
                return Step::Reply(self.nar_reply(id, wish, &path, root, layout));
            }
            Found::Damaged => return Step::Absent,
            Found::Joined => {}
            Found::Busy => return Step::Reply(overloaded()),
            Found::Unknown => {
                if !self.layouts.has_room() {
                    self.figures.limits[NodeLimit::Layouts as usize].add(1);
                    return Step::Reply(overloaded());
                }
                let interest = Interest::default();
                if self.walk(&path, &root, interest.demand()).is_err() {
                    return Step::Reply(overloaded());
                }
                self.layouts.begin(Arc::clone(&path), root.status(), id, stamp, interest);
            }
        }
        self.figures.layout_misses.add(1);
        Step::Wait(Stage::Store(Awaited::Layout(path, root)))
    }

    /// Has the tree walked whose root is open, not one that may have taken its name meanwhile, for as long as it is in demand.
    fn walk(&self, path: &Arc<KnownPath>, root: &Root, demand: Demand) -> Result<(), Full> {
        let (shared, mailbox, path) = (Arc::clone(&self.shared), self.mailbox.clone(), Arc::clone(path));
        let (source, key) = (shared.index(), key_of(&path));
        let wanted = demand.clone();
        let tell = move |news| {
            let message = reactor::Message::Node(Message::Walk { source, key, demand: demand.clone(), news });
            // A worker that has ended wants to know nothing any more.
            if mailbox.send(message).is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let root = match root {
            Root::Open(opened) => Some(opened.file.duplicate()),
            // The ring does not open links.
            Root::Unneeded => None,
        };
        let work = move |_: &mut Toolbox| {
            let is_wanted = || wanted.is_there();
            if !is_wanted() {
                return;
            }
            let walked = match root {
                None => walk::open_root(shared.places(), &path.store_path()).and_then(|root| {
                    root.ok_or_else(|| StoreError::Damaged {
                        subject: path.base_name().to_owned(),
                        reason: "it is not there".to_owned(),
                    })
                }),
                Some(descriptor) => {
                    let name = shared.places().real_store.join(path.base_name());
                    let duplicated = descriptor.map_err(|errno| StoreError::Io {
                        path: name.clone(),
                        operation: "open",
                        source: errno.into(),
                    });
                    duplicated.and_then(|descriptor| walk::Root::new(descriptor, name))
                }
            };
            let mut whole_hash = WholeHash::default();
            let mut tell_part = |part| {
                whole_hash.add(&part);
                tell(WalkNews::Part(part))
            };
            let walked =
                walked.and_then(|root| walk::walk_while(&is_wanted, &root, Kept::Tiny, &mut tell_part));
            let _ = match walked {
                Ok(Walked::Complete { last_part, len_bytes }) => {
                    if let Some(part) = &last_part {
                        whole_hash.add(part);
                    }
                    // What is answered from memory for as long as it is there has to be right. A length that is wrong is
                    // found by whoever takes the news.
                    let hash = whole_hash.finish().filter(|_| len_bytes == path.nar_size);
                    if hash.is_some_and(|hash| hash != path.nar_hash) {
                        let name = path.base_name();
                        error!("{name} is damaged: its NAR has not the hash that the database says");
                        tell(WalkNews::Failed(Failure::Damaged))
                    } else {
                        tell(WalkNews::Complete(last_part, len_bytes))
                    }
                }
                Ok(Walked::Stopped) => ControlFlow::Break(()),
                Err(error) => tell(WalkNews::Failed(Failure::log(&error))),
            };
        };
        self.planes.walks.submit(work)
    }

    fn list(&mut self, id: ConnectionId, path: Option<Arc<KnownPath>>) -> Step {
        let Some(path) = path else { return Step::Absent };
        self.make(id, |planes| &planes.texts, move |shared, _, demand| shared.listing(&path, demand))
    }

    fn nar_reply(
        &self,
        id: ConnectionId,
        wish: &Wish,
        path: &Arc<KnownPath>,
        root: Root,
        layout: Rc<SharedLayout>,
    ) -> Reply {
        let Route::Nar(request) = &wish.route else { return not_found() };
        let has_small_files = layout.has_small_files();
        let reply = match request.compression {
            NarCompression::Zstd => self.encoded_reply(id, request, path, &root, layout),
            NarCompression::None => flat_reply(request, &wish.conditions, path, root, layout),
        };
        // What fits into an answer with its head is not cached.
        if matches!(reply.status, Status::Ok | Status::PartialContent)
            && path.nar_size > INLINE_BODY_LEN_MAX as u64
            && let Some(cache) = self.shared.nar_cache()
        {
            self.figures.nar_misses.add(1);
            // The rest of one that was asked for before is no second request of it.
            if reply.status == Status::Ok {
                cache.asked(path, has_small_files);
            }
        }
        reply
    }

    /// A NAR that is compressed on its way. Nobody knows its length, and another answer may have other bytes: it has no entity tag, so
    /// there is no condition that it can meet, and no range of it that goes with one of another answer.
    fn encoded_reply(
        &self,
        id: ConnectionId,
        request: &NarRequest,
        path: &Arc<KnownPath>,
        root: &Root,
        layout: Rc<SharedLayout>,
    ) -> Reply {
        let Some(admission) = self.shared.encoders().admit() else {
            self.figures.limits[NodeLimit::Encoders as usize].add(1);
            return overloaded();
        };
        let order = match Order::new(Arc::clone(path), Arc::clone(&self.shared), root, admission) {
            Ok(order) => order,
            Err(errno) => {
                error!("cannot encode {}: {errno}", path.base_name());
                return overloaded();
            }
        };
        let workshop = Workshop {
            plane: self.planes.encodes.clone(),
            mailbox: self.mailbox.clone(),
            id,
            damaged: Damaged { source: self.shared.index(), key: key_of(path), stamp: self.counter.stamp() },
        };
        let body = EncodedBody::new(order, layout, workshop);
        let fields = Fields::new().cache_control(cache_control(request)).content_type(NAR_TYPE).unfinished();
        Reply { status: Status::Ok, fields, body: ReplyBody::Unbounded(Box::new(body)) }
    }

    fn look_up(&mut self, id: ConnectionId, hash_part: HashPart, stage: Awaited) -> Step {
        let state = self.state();
        if let Some(askers) = self.asked.get_mut(&hash_part) {
            askers.push(Asker { id, joined: Some(state) });
            return Step::Wait(Stage::Store(stage));
        }
        let (shared, mailbox) = (Arc::clone(&self.shared), self.mailbox.clone());
        let previous = self.known.peek(&hash_part).and_then(|known| known.path.clone());
        let work = move |toolbox: &mut Toolbox| {
            let result = shared.look_up(toolbox, hash_part, previous.as_ref());
            let message = Message::Known { source: shared.index(), hash_part, result };
            let _ = mailbox.send(reactor::Message::Node(message));
        };
        if self.planes.lookups.submit(work).is_err() {
            return Step::Reply(overloaded());
        }
        self.asked.insert(hash_part, vec![Asker { id, joined: None }]);
        Step::Wait(Stage::Store(stage))
    }

    /// Has something made for one request.
    fn make(
        &self,
        id: ConnectionId,
        plane: impl Fn(&Planes) -> &Plane,
        question: impl FnOnce(&SharedStore, &mut Toolbox, &Demand) -> Result<Option<Made>, Failure>
        + Send
        + 'static,
    ) -> Step {
        let (shared, mailbox, interest) =
            (Arc::clone(&self.shared), self.mailbox.clone(), Interest::default());
        let demand = interest.demand();
        let work = move |toolbox: &mut Toolbox| {
            if !demand.is_there() {
                return;
            }
            let result = question(&shared, toolbox, &demand);
            let _ = mailbox.send(reactor::Message::Node(Message::Made { id, result }));
        };
        match plane(&self.planes).submit(work) {
            Ok(()) => Step::Wait(Stage::Made(interest)),
            Err(_) => Step::Reply(overloaded()),
        }
    }
}

/// For simulations.
#[cfg(test)]
impl LiveStore {
    /// The same with these bounds of its layouts.
    #[must_use]
    pub fn with_layouts(self, layouts: Layouts) -> Self {
        Self { layouts, ..self }
    }

    /// Checks that nothing is under way.
    pub fn assert_at_rest(&self) {
        assert!(self.asked.is_empty(), "questions are left");
        self.layouts.assert_at_rest();
        self.shared.assert_at_rest();
    }
}

fn flat_reply(
    request: &NarRequest,
    conditions: &Conditions,
    path: &KnownPath,
    root: Root,
    layout: Rc<SharedLayout>,
) -> Reply {
    let content = if let Some(nar) = layout.short(INLINE_BODY_LEN_MAX) {
        Content::Bytes(nar)
    } else {
        let body = NarBody::new(path.store_path(), root, layout);
        Content::Body(Box::new(body), path.nar_size)
    };
    representation(request, path.nar_hash, content).reply(conditions)
}

/// A NAR of known length, whichever way it is made: as it is, it has the same bytes and the same entity tag from the store and from
/// a file; of a compressed one each file has its own.
fn representation(request: &NarRequest, file_hash: Sha256Digest, content: Content) -> Representation {
    Representation {
        content_type: NAR_TYPE,
        cache_control: cache_control(request),
        etag: ETag::new(file_hash.to_nix32().as_bytes()),
        content,
    }
}

fn coding(compression: NarCompression) -> Coding {
    match compression {
        NarCompression::None => Coding::Flat,
        NarCompression::Zstd => Coding::Zstd,
    }
}

/// How long others may keep a NAR.
fn cache_control(request: &NarRequest) -> CacheControl {
    match request.address.nar_hash() {
        Some(_) => IMMUTABLE_CACHE_CONTROL,
        // The URL names the path, whose contents may be others tomorrow.
        None => NARINFO_CACHE_CONTROL,
    }
}

/// The memory of what is known of a path.
#[derive(Clone)]
struct KnownWeighter;

impl Weighter<HashPart, Known> for KnownWeighter {
    fn weight(&self, _: &HashPart, known: &Known) -> u64 {
        // Beside the entry, the cache keeps two links, a state, and five bytes in a table that is half empty at worst.
        const ENTRY_LEN: usize = size_of::<(HashPart, Known)>() + 32;
        (ENTRY_LEN + known.path.as_ref().map_or(0, |path| path.memory_len())) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use super::*;
    use crate::ring::inbox::{Inbox, inbox};
    use crate::server::known_path::tests::typical;
    use crate::server::nar_cache::NarCache;
    use crate::server::representation::Conditions;
    use crate::store::catalog::{Entry, Kind, RootMark};
    use crate::store::demo::DemoStore;

    const FIRST: ConnectionId = ConnectionId { slot: 0, generation: 1 };
    const SECOND: ConnectionId = ConnectionId { slot: 1, generation: 2 };

    struct Bench {
        demo: DemoStore,
        store: LiveStore,
        inbox: Inbox<reactor::Message<Message>>,
    }

    impl Bench {
        fn new() -> Self {
            Self::with(|_| None)
        }

        /// A store whose NARs are kept in `folder`, where nothing is encoded.
        fn with_cache(folder: &std::path::Path) -> Self {
            Self::with(|demo| Some(NarCache::start_idle(folder, &demo.store)))
        }

        fn with(cache: impl FnOnce(&DemoStore) -> Option<Arc<NarCache>>) -> Self {
            let demo = DemoStore::create(None, &mut |_| {}).unwrap();
            let cache = cache(&demo);
            let shared = Arc::new(SharedStore::open(demo.store.clone(), cache).unwrap());
            let directory = OwnedFd::from(File::open(&demo.store.real_store).unwrap());
            let planes = Planes::few();
            let (mailbox, inbox) = inbox().unwrap();
            let store = LiveStore::new(shared, Descriptor::from(directory), planes, mailbox, Arc::default());
            Self { demo, store, inbox }
        }

        /// What the plane says next.
        fn message(&self) -> Message {
            for _ in 0..10_000 {
                if let Some(reactor::Message::Node(message)) = self.inbox.next() {
                    return message;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            panic!("the plane says nothing");
        }

        /// The answers to those who have waited for `hash_part`.
        fn take_known(&mut self, hash_part: HashPart) -> Vec<(ConnectionId, bool)> {
            let Message::Known { result, .. } = self.message() else { panic!("a look-up was asked for") };
            self.store.take_known(hash_part, result.ok())
        }

        fn commit(&self) {
            let database = rusqlite::Connection::open(&self.demo.store.database).unwrap();
            database.execute("update ValidPaths set registrationTime = registrationTime + 1", []).unwrap();
        }
    }

    fn wish(hash_part: HashPart) -> Wish {
        Wish { route: Route::File(CacheFile::NarInfo(hash_part)), conditions: Conditions::default() }
    }

    #[test]
    fn who_joins_a_question_in_the_same_state_is_answered_by_it() {
        let mut bench = Bench::new();
        let hash_part = HashPart::parse(&[b'0'; 32]).unwrap();
        assert!(matches!(bench.store.ask(FIRST, &wish(hash_part)), Step::Wait(_)));
        assert!(matches!(bench.store.ask(SECOND, &wish(hash_part)), Step::Wait(_)));
        assert_eq!(bench.take_known(hash_part), [(FIRST, true), (SECOND, true)]);
        assert!(matches!(bench.store.ask(FIRST, &wish(hash_part)), Step::Absent), "it is remembered");
        bench.commit();
        assert!(
            matches!(bench.store.ask(FIRST, &wish(hash_part)), Step::Wait(_)),
            "until the database changes"
        );
    }

    /// Otherwise a path could be 404 for somebody who asks after it was registered, and Nix remembers that for an hour.
    #[test]
    fn who_joins_a_question_after_a_commit_asks_again() {
        let mut bench = Bench::new();
        let hash_part = HashPart::parse(&[b'0'; 32]).unwrap();
        assert!(matches!(bench.store.ask(FIRST, &wish(hash_part)), Step::Wait(_)));
        let Message::Known { result, .. } = bench.message() else { panic!("a look-up was asked for") };
        // The database was read, and the worker has not seen the answer yet.
        bench.commit();
        assert!(matches!(bench.store.ask(SECOND, &wish(hash_part)), Step::Wait(_)));
        assert_eq!(bench.store.take_known(hash_part, result.ok()), [(FIRST, true), (SECOND, false)]);
        assert!(matches!(bench.store.ask_again(SECOND, hash_part, Awaited::Knowledge), Step::Wait(_)));
        assert_eq!(bench.take_known(hash_part), [(SECOND, true)]);
    }

    /// Nix commits all day long, and hardly ever to what is asked for.
    #[test]
    fn what_a_commit_does_not_concern_is_answered_as_before() {
        let mut bench = Bench::new();
        let path = bench.demo.paths[0].clone();
        let hash_part = path.hash_part();
        let ask = |bench: &mut Bench| {
            assert!(matches!(bench.store.ask(FIRST, &wish(hash_part)), Step::Wait(_)));
            assert_eq!(bench.take_known(hash_part), [(FIRST, true)]);
            let Knowledge::Now(Some(path)) = bench.store.known(hash_part) else { panic!("it is valid") };
            path
        };
        let first = ask(&mut bench);
        bench.commit();
        let second = ask(&mut bench);
        assert!(Arc::ptr_eq(&first, &second));
        let change = |bench: &Bench, statement: &str| {
            let database = rusqlite::Connection::open(&bench.demo.store.database).unwrap();
            assert_eq!(database.execute(statement, [path.full(&bench.demo.store.store_dir)]).unwrap(), 1);
        };
        change(&bench, "update ValidPaths set narSize = narSize + 8 where path = ?1");
        let third = ask(&mut bench);
        assert_eq!(third.nar_size, first.nar_size + 8);
        assert!(third.narinfo().contains(&format!("NarSize: {}\n", third.nar_size)));
        change(&bench, "delete from ValidPaths where path = ?1");
        assert!(matches!(bench.store.ask(FIRST, &wish(hash_part)), Step::Wait(_)));
        bench.take_known(hash_part);
        assert!(
            matches!(bench.store.ask(FIRST, &wish(hash_part)), Step::Absent),
            "nothing outlives its path"
        );
    }

    #[test]
    fn an_answer_is_outdated_for_all_until_it_tells_of_what_the_cache_has() {
        let folder = tempfile::tempdir().unwrap();
        let mut bench = Bench::with_cache(folder.path());
        let cache = Arc::clone(bench.store.shared.nar_cache().unwrap());
        let hash_part = bench.demo.paths[0].hash_part();
        let ask = |bench: &mut Bench, id| bench.store.ask(id, &wish(hash_part));
        assert!(matches!(ask(&mut bench, FIRST), Step::Wait(_)));
        bench.take_known(hash_part);
        let Knowledge::Now(Some(path)) = bench.store.known(hash_part) else { panic!("it is valid") };
        let stored = Stored {
            coding: Coding::Zstd,
            file_hash: Sha256Digest([9; 32]),
            file_size: 0,
            nar_size: path.nar_size,
            fill_us: 0,
        };
        let folder = cache.folder();
        let narinfo = path.narinfo();
        folder.publish(&key_of(&path), folder.draft().unwrap(), &stored, narinfo, 0).unwrap();
        // The second one asks while the first one waits, and must not get what was found wrong for the first.
        for id in [FIRST, SECOND] {
            assert!(matches!(ask(&mut bench, id), Step::Wait(_)));
        }
        assert_eq!(bench.take_known(hash_part), [(FIRST, true), (SECOND, true)]);
        let Knowledge::Now(Some(path)) = bench.store.known(hash_part) else {
            panic!("it was rendered again")
        };
        assert!(path.tells_of(Some(&stored)));
        let mark = RootMark { inode: 1, changed_s: 1, changed_ns: 1 };
        folder.catalog().insert(&key_of(&path), Entry::Damaged(mark), 0).unwrap();
        assert!(matches!(ask(&mut bench, FIRST), Step::Absent), "what is damaged is absent at once");
        folder.catalog().remove(&key_of(&path), Kind::Damaged).unwrap();
        assert!(matches!(ask(&mut bench, FIRST), Step::Reply(_)), "and there again when it was mended");
    }

    #[test]
    fn a_hundred_thousand_paths_are_remembered() {
        let mut bench = Bench::new();
        let known = Known { state: bench.store.state(), path: Some(typical()), seen: Cell::default() };
        let hash_parts: Vec<_> =
            (0..100_000).map(|index| HashPart::parse(format!("{index:032}").as_bytes()).unwrap()).collect();
        for hash_part in &hash_parts {
            bench.store.known.insert(*hash_part, known.clone());
        }
        assert!(hash_parts.iter().all(|hash_part| bench.store.known.peek(hash_part).is_some()));
        let spare = KNOWN_PATHS_LEN_MAX - bench.store.known.weight();
        assert!(spare > KNOWN_PATHS_LEN_MAX / 20, "{spare} bytes to spare");
    }
}
