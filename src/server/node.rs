//! What one worker answers: routes, and sources in their order. It never waits.
//!
//! A request that cannot be answered at once becomes a [`Pending`]: what was wished for, which source is being asked, and
//! what it waits for. A source that does not have it passes it on to the next; after the last one it is 404.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use memchr::memmem;
use rustix::io::Errno;

use super::access::{Access, Scope};
use super::access_log::Recorder;
use super::browse::{Browser, Visit};
use super::directory::{CacheInfoReader, Directory};
use super::figures::NodeFigures;
use super::layouts::WalkNews;
use super::live_store::{Awaited, LiveStore};
use super::lookup::{Known, SharedStore};
use super::metrics::{Format, Metrics};
use super::page::{self, index::base_url};
use super::plane::{Demand, Interest, Plane, Planes, Toolbox};
use super::refusal::{Failure, not_allowed, not_found, overloaded};
use super::representation::{CACHE_INFO_TYPE, Conditions, Content, Made, Representation, TEXT_TYPE};
use super::request::{Damaged, Message, Stage, Step, Terms, Wish};
use super::scribe::Scribe;
use super::topic::Subject;
use super::uploads::Uploads;

use crate::codec::cache_file::CacheFile;
use crate::codec::http::field::{accepts_coding, names_media_type};
use crate::codec::http::request::Request;
use crate::codec::http::response::{CacheControl, Fields};
use crate::codec::http::route::{Look, Route};
use crate::codec::http::{Method, Status};
use crate::codec::store_path::HashPart;
use crate::ring::inbox::Mailbox;
use crate::ring::op::{ConnectionId, OpenedFile};
use crate::ring::reactor;
use crate::ring::service::{Answer, Called, Caller, Effects, Node, Reply, ReplyBody, Service, Witness};
use crate::store::catalog::NarKey;
use crate::store::fault;

/// One worker's answers.
pub struct CacheNode {
    sources: Vec<Source>,
    pending: HashMap<ConnectionId, Pending>,
    terms: Arc<Terms>,
    overview: Arc<Overview>,
    access: Access,
    recorder: Recorder,
    /// None where nothing is written to.
    uploads: Option<Uploads>,
    means: Means,
}

/// What a worker works with.
pub struct Means {
    /// Where work goes that may wait.
    pub planes: Planes,
    /// Where what comes of it is said.
    pub mailbox: Mailbox<reactor::Message<Message>>,
    /// What it counts.
    pub figures: Arc<NodeFigures>,
    /// Who writes its log.
    pub scribe: Arc<Scribe>,
    /// What its choice of requests for the access log follows from.
    pub seed: u64,
    /// Says whether this worker looks after what all share.
    pub is_first: bool,
}

/// Where paths come from.
pub enum Source {
    /// A live Nix store.
    Store(Box<LiveStore>),
    /// A directory in the layout of `nix copy --to file://…`.
    Directory(Directory),
}

/// What is told of the server itself.
pub struct Overview {
    /// The stores that `/health` asks.
    pub stores: Vec<Arc<SharedStore>>,
    /// What `/metrics` says.
    pub metrics: Metrics,
    /// Who shows people around, unless nobody is to look.
    pub browser: Option<Browser>,
}

/// A request that waits.
struct Pending {
    wish: Wish,
    source: usize,
    stage: Stage,
}

impl Source {
    fn directory(&self) -> Option<&Directory> {
        match self {
            Self::Directory(directory) => Some(directory),
            Self::Store(_) => None,
        }
    }
}

impl CacheNode {
    /// A node that asks `sources` in this order.
    pub fn new(
        sources: Vec<Source>,
        terms: Arc<Terms>,
        overview: Arc<Overview>,
        uploads: Option<Uploads>,
        means: Means,
    ) -> Self {
        let (scribe, figures) = (Arc::clone(&means.scribe), Arc::clone(&means.figures));
        let access = Access::new(terms.access.clone(), terms.proxies.clone(), Arc::clone(&figures));
        let recorder = Recorder::new(terms.access_log, scribe, figures, means.seed);
        Self { sources, pending: HashMap::new(), terms, overview, access, recorder, uploads, means }
    }

    /// Answers a request that would change something.
    fn change(&mut self, caller: &Caller<'_>, request: &Request<'_>) -> Answer {
        // Who may not read is not told either that nothing can be written.
        let scope = if self.uploads.is_some() { Scope::Write } else { Scope::Read };
        if let Err(reply) = self.access.check(caller, request, scope) {
            return Answer::Reply(reply);
        }
        match &mut self.uploads {
            Some(uploads) => uploads.call(caller.id, request),
            None => Answer::Reply(not_allowed("GET, HEAD", "this cache is read-only\n")),
        }
    }

    /// Asks the sources, beginning with the one at `source`.
    fn ask(&mut self, id: ConnectionId, wish: Wish, source: usize) -> Answer {
        for index in source..self.sources.len() {
            let step = match &mut self.sources[index] {
                Source::Store(store) => store.ask(id, &wish),
                Source::Directory(directory) => directory.ask(&wish.route),
            };
            match step {
                Step::Absent => {}
                step => return self.settle(id, wish, index, step),
            }
        }
        Answer::Reply(not_found())
    }

    /// Turns what a source said into an answer.
    fn settle(&mut self, id: ConnectionId, wish: Wish, source: usize, step: Step) -> Answer {
        match step {
            Step::Reply(reply) => Answer::Reply(reply),
            Step::Absent => self.ask(id, wish, source + 1),
            Step::Wait(stage) => {
                self.pending.insert(id, Pending { wish, source, stage });
                Answer::Pending
            }
            Step::Open { directory, path, stage } => {
                self.pending.insert(id, Pending { wish, source, stage });
                Answer::Open { directory, path }
            }
        }
    }

    /// Goes on with those who have waited for what is known of a hash part.
    fn take_known(
        &mut self,
        source: usize,
        hash_part: HashPart,
        result: &Result<Known, Failure>,
        effects: &mut Effects,
    ) {
        let Source::Store(store) = &mut self.sources[source] else { return };
        let waiting = store.take_known(hash_part, result.as_ref().ok().cloned());
        for (id, is_answered) in waiting {
            let Some(Pending { wish, stage: Stage::Store(awaited), .. }) = self.pending.remove(&id) else {
                continue;
            };
            let Source::Store(store) = &mut self.sources[source] else { return };
            let step = match result {
                Ok(_) if !is_answered => store.ask_again(id, hash_part, awaited),
                Ok(known) => store.informed(id, &wish, awaited, known.present_path().cloned()),
                Err(failure) => refused(*failure),
            };
            let answer = self.settle(id, wish, source, step);
            effects.answers.push((id, answer));
        }
    }

    /// Goes on with those who have waited for a walk to begin.
    fn take_walk(
        &mut self,
        source: usize,
        key: NarKey,
        demand: &Demand,
        news: WalkNews,
        effects: &mut Effects,
    ) {
        let Source::Store(store) = &mut self.sources[source] else { return };
        let Some(told) = store.take_walk(key, demand, news) else { return };
        effects.resume.extend_from_slice(&told.readers);
        for id in told.waiting {
            let Some(pending) = self.pending.remove(&id) else { continue };
            let Stage::Store(Awaited::Layout(path, root)) = pending.stage else { continue };
            let Source::Store(store) = &mut self.sources[source] else { return };
            let step = store.laid_out(id, &pending.wish, &path, root, told.outcome.clone());
            let answer = self.settle(id, pending.wish, source, step);
            effects.answers.push((id, answer));
        }
    }

    /// `/nix-cache-info`: what a cache directory says of itself, completed; else what this server was told to say.
    fn cache_info(&mut self, id: ConnectionId, wish: Wish) -> Answer {
        let Some(Source::Directory(directory)) = self.sources.first() else {
            let mut text = String::new();
            self.terms.cache_info.write(&mut text);
            return Answer::Reply(plain(CACHE_INFO_TYPE, text, &wish));
        };
        let (reader, terms) = (directory.cache_info_reader(), Arc::clone(&self.terms));
        let question = move |_: &mut Toolbox, _: &Demand| {
            Ok(Some(Made::fresh(CACHE_INFO_TYPE, reader.read(&terms.cache_info)?)))
        };
        self.make(id, wish, |planes| &planes.walks, question)
    }

    /// `/health`: whether every source answers, and in a second line how the NAR cache is: without it everything is still served.
    fn health(&mut self, id: ConnectionId, wish: Wish) -> Answer {
        fault::may_panic("worker: health asked");
        let overview = Arc::clone(&self.overview);
        let readers: Vec<_> =
            self.sources.iter().filter_map(Source::directory).map(Directory::cache_info_reader).collect();
        let question = move |toolbox: &mut Toolbox, _: &Demand| {
            let stores = overview.stores.iter().try_for_each(|store| store.probe(toolbox));
            let probed = stores.and_then(|()| readers.iter().try_for_each(CacheInfoReader::probe));
            // Whatever it is, a load balancer should ask somebody else and come again.
            probed.map_err(|_| Failure::Busy)?;
            let text = format!("OK\nNAR cache: {}\n", overview.metrics.nar_cache());
            Ok(Some(Made::fresh(TEXT_TYPE, text)))
        };
        self.make(id, wish, |planes| &planes.walks, question)
    }

    /// What people look at.
    fn browse(&mut self, caller: &Caller<'_>, look: Look, wish: Wish, request: &Request<'_>) -> Answer {
        let leave = match self.overview.browser.as_ref().map(Browser::admit) {
            None => return Answer::Reply(self.unknown(request)),
            Some(Err(failure)) => return Answer::Reply(failure.reply()),
            Some(Ok(leave)) => leave,
        };
        let overview = Arc::clone(&self.overview);
        let is_page = names_media_type(request.accept, "text/html");
        let base_url = base_url(request, self.is_proxy_trusted(caller, request));
        let terms = Arc::clone(&self.terms);
        let question = move |toolbox: &mut Toolbox, demand: &Demand| {
            let _leave = leave;
            let public_keys = terms.index.public_keys();
            let visit = Visit { is_page, base_url: &base_url, public_keys, demand };
            overview.browser.as_ref().map_or(Ok(None), |browser| browser.show(&look, &visit, toolbox))
        };
        self.make(caller.id, wish, |planes| &planes.texts, question)
    }

    /// The answer to what only a person could have meant: no Nix client asks for it, and none says that it takes pages.
    fn unknown(&self, request: &Request<'_>) -> Reply {
        if !names_media_type(request.accept, "text/html") {
            return not_found();
        }
        page::reply(Status::NotFound, page::fields(), page::missing(None, self.overview.browser.is_some()))
    }

    /// Whether what a request says of the way that it has come can be believed.
    fn is_proxy_trusted(&self, caller: &Caller<'_>, request: &Request<'_>) -> bool {
        // Who says nothing of a proxy need not be one.
        let is_forwarded = request.x_forwarded_host.or(request.x_forwarded_proto).is_some();
        // Who has gone may have come from anywhere.
        is_forwarded && caller.address().is_ok_and(|peer| self.terms.proxies.is_trusted(peer))
    }

    /// Has something made that belongs to no one source.
    fn make(
        &mut self,
        id: ConnectionId,
        wish: Wish,
        plane: impl Fn(&Planes) -> &Plane,
        question: impl FnOnce(&mut Toolbox, &Demand) -> Result<Option<Made>, Failure> + Send + 'static,
    ) -> Answer {
        let (mailbox, interest) = (self.means.mailbox.clone(), Interest::default());
        let demand = interest.demand();
        let work = move |toolbox: &mut Toolbox| {
            if !demand.is_there() {
                return;
            }
            let result = question(toolbox, &demand);
            let _ = mailbox.send(reactor::Message::Node(Message::Made { id, result }));
        };
        match plane(&self.means.planes).submit(work) {
            Ok(()) => self.settle(id, wish, self.sources.len(), Step::Wait(Stage::Made(interest))),
            Err(_) => Answer::Reply(overloaded()),
        }
    }

    /// Answers any request.
    fn respond(&mut self, caller: &Caller<'_>, request: &Request<'_>, route: Route) -> Answer {
        let id = caller.id;
        match request.method {
            Method::Get | Method::Head => {}
            Method::Other => return Answer::Reply(Reply::text(Status::NotImplemented, "no such method\n")),
            Method::Put | Method::Post | Method::Delete | Method::Options => {
                return self.change(caller, request);
            }
        }
        let wish = Wish { route, conditions: Conditions::of(request) };
        // A load balancer has no token.
        if wish.route != Route::Health
            && let Err(reply) = self.access.check(caller, request, Scope::Read)
        {
            return Answer::Reply(reply);
        }
        match wish.route {
            Route::NotFound => Answer::Reply(self.unknown(request)),
            Route::Import if self.uploads.is_some() => {
                Answer::Reply(not_allowed(Uploads::methods(&wish.route), IMPORT_TEXT))
            }
            Route::Index => {
                let base_url = base_url(request, self.is_proxy_trusted(caller, request));
                Answer::Reply(self.terms.index.reply(request, &base_url))
            }
            Route::Version => {
                Answer::Reply(plain(TEXT_TYPE, concat!("narwire ", env!("CARGO_PKG_VERSION"), "\n"), &wish))
            }
            Route::Health => self.health(id, wish),
            Route::Metrics => {
                // On a thread: who counts may be asked in a way that waits.
                let (overview, format) = (Arc::clone(&self.overview), Format::accepted(request.accept));
                let is_gzipped = accepts_coding(request.accept_encoding, "gzip");
                let asked = Instant::now();
                let question = move |_: &mut Toolbox, _: &Demand| {
                    let text = overview.metrics.text_since(asked, format, is_gzipped);
                    let fields = Fields::new().vary("Accept, Accept-Encoding");
                    let fields = if is_gzipped { fields.content_encoding("gzip") } else { fields };
                    Ok(Some(Made { fields, ..Made::fresh(format.media_type(), text) }))
                };
                self.make(id, wish, |planes| &planes.metrics, question)
            }
            Route::File(CacheFile::CacheInfo) => self.cache_info(id, wish),
            Route::Look(ref look) => self.browse(caller, look.clone(), wish, request),
            _ => self.ask(id, wish, 0),
        }
    }

    /// Keeps proxies from giving an answer of a private cache to everybody.
    fn seal(&self, answer: &mut Answer) {
        if let Answer::Reply(reply) = answer
            && self.access.is_private()
        {
            keep_private(reply);
        }
    }
}

/// For simulations.
#[cfg(test)]
impl CacheNode {
    /// Checks that nobody waits, and nothing is under way.
    pub fn assert_at_rest(&self) {
        assert!(self.pending.is_empty(), "{} requests are left", self.pending.len());
        for source in &self.sources {
            if let Source::Store(store) = source {
                store.assert_at_rest();
            }
        }
        if let Some(uploads) = &self.uploads {
            uploads.assert_at_rest();
        }
    }
}

impl Service for CacheNode {
    fn call(&mut self, caller: &Caller<'_>, request: &Request<'_>) -> Called {
        let route = Route::parse(request.target);
        let topic = Subject::of(request.method, &route).topic();
        let witness = self.recorder.witness(caller, Some(request), &self.terms.proxies);
        let mut answer = self.respond(caller, request, route);
        self.seal(&mut answer);
        Called { topic, witness, answer }
    }

    fn misunderstood(&mut self, caller: &Caller<'_>) -> Option<Witness> {
        self.recorder.witness(caller, None, &self.terms.proxies)
    }

    fn opened(&mut self, id: ConnectionId, result: Result<OpenedFile, Errno>) -> Answer {
        let Some(Pending { wish, source, stage }) = self.pending.remove(&id) else {
            return Answer::Reply(not_found());
        };
        let step = match (&mut self.sources[source], stage) {
            (Source::Store(store), Stage::Store(awaited)) => store.opened(id, &wish, awaited, result),
            (Source::Directory(directory), Stage::File) => directory.opened(&wish, result),
            _ => Step::Absent,
        };
        let mut answer = self.settle(id, wish, source, step);
        self.seal(&mut answer);
        answer
    }

    fn body(&mut self, id: ConnectionId, piece: Bytes) {
        if let Some(uploads) = &mut self.uploads {
            uploads.body(id, piece);
        }
    }

    fn received(&mut self, id: ConnectionId) -> Answer {
        self.uploads.as_mut().map_or_else(|| Answer::Reply(not_found()), |uploads| uploads.received(id))
    }

    fn unwritten(&mut self, id: ConnectionId, errno: Errno) -> Answer {
        let uploads = self.uploads.as_mut();
        uploads.map_or_else(|| Answer::Reply(not_found()), |uploads| uploads.unwritten(id, errno))
    }

    fn gone(&mut self, id: ConnectionId) {
        if let Some(Pending { source, stage: Stage::Store(Awaited::Layout(path, _)), .. }) =
            self.pending.remove(&id)
            && let Source::Store(store) = &mut self.sources[source]
        {
            store.leave_walk(&path, id);
        }
        if let Some(uploads) = &mut self.uploads {
            uploads.gone(id);
        }
    }
}

impl Node for CacheNode {
    type Message = Message;

    fn message(&mut self, message: Message, effects: &mut Effects) {
        match message {
            Message::Known { source, hash_part, result } => {
                self.take_known(source, hash_part, &result, effects);
            }
            Message::Walk { source, key, demand, news } => {
                self.take_walk(source, key, &demand, news, effects);
            }
            Message::Made { id, result } => {
                let Some(Pending { wish, source, stage: Stage::Made(_) }) = self.pending.remove(&id) else {
                    return;
                };
                let step = match result {
                    Ok(Some(made)) => Step::Reply(made.reply(&wish.conditions)),
                    Ok(None) => Step::Absent,
                    Err(failure) => refused(failure),
                };
                let answer = self.settle(id, wish, source, step);
                effects.answers.push((id, answer));
            }
            Message::Encoded { id, damaged } => {
                if let Some(Damaged { source, key, stamp }) = damaged
                    && let Source::Store(store) = &mut self.sources[source]
                {
                    store.take_damage(key, stamp);
                }
                effects.resume.push(id);
            }
            Message::Upload(news) => {
                if let Some(uploads) = &mut self.uploads {
                    uploads.take(news, effects);
                }
            }
            Message::Terms(terms) => {
                self.access.change(terms.access.clone(), terms.proxies.clone());
                self.recorder.change(terms.access_log);
                self.terms = terms;
            }
        }
        for (_, answer) in &mut effects.answers {
            self.seal(answer);
        }
    }

    fn tick(&mut self) {
        self.access.tick();
        for source in &mut self.sources {
            if let Source::Store(store) = source {
                store.tick(self.means.is_first);
            }
        }
    }
}

const IMPORT_TEXT: &str = "what nix-store --export writes is posted here\n";

/// A text that is made on the spot and not to be kept.
fn plain(content_type: &'static str, text: impl Into<Bytes>, wish: &Wish) -> Reply {
    let text = text.into();
    Representation {
        content_type,
        cache_control: CacheControl::NoStore,
        etag: None,
        content: Content::Bytes(text),
    }
    .reply(&wish.conditions)
}

/// Says of what may be kept that only its client may keep it. Some proxies give what has a `max-age` to everybody, also what was
/// asked for with a token.
fn keep_private(reply: &mut Reply) {
    if let ReplyBody::Rendered { text, fields_len } = &reply.body {
        let (fields, body) = (**text).as_ref().split_at(*fields_len);
        reply.fields = [&reply.fields, fields].concat().into();
        reply.body = ReplyBody::Bytes(Bytes::copy_from_slice(body));
    }
    if let Some(at) = memmem::find(&reply.fields, b"max-age=") {
        let (before, after) = reply.fields.split_at(at);
        reply.fields = [before, b"private, ", after].concat().into();
    }
}

/// What a failure of one source means: damage is as good as absence, and another source may have it.
fn refused(failure: Failure) -> Step {
    match failure {
        Failure::Damaged => Step::Absent,
        Failure::Busy | Failure::Broken => Step::Reply(failure.reply()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use super::*;
    use crate::codec::cache_info::CacheInfo;
    use crate::ring::admission::Admission;
    use crate::ring::capability::{Capabilities, Capability};
    use crate::ring::descriptor::Descriptor;
    use crate::ring::inbox::inbox;
    use crate::ring::reactor::{Peers, Reactor};
    use crate::ring::uring::Uring;
    use crate::server::config::{AccessConfig, AccessLog};
    use crate::server::nar_cache::NarCache;
    use crate::server::page::index::Index;
    use crate::server::proxy::TrustedProxies;
    use crate::store::demo::DemoStore;

    const ROUNDS: usize = 500;

    /// A worker on a throw-away store, and where it listens. `None` where a receive needs a buffer of its own.
    fn worker(
        demo: &DemoStore,
        cache: Option<Arc<NarCache>>,
    ) -> Option<(Reactor<Uring, CacheNode>, SocketAddr)> {
        let capabilities = Capabilities::probe(Capabilities::default()).unwrap();
        if !capabilities.has(Capability::BufferRing) {
            return None;
        }
        let planes = Planes::few();
        let (mailbox, inbox) = inbox().unwrap();
        let shared = Arc::new(SharedStore::open(demo.store.clone(), cache).unwrap());
        let directory = Descriptor::from(OwnedFd::from(File::open(&demo.store.real_store).unwrap()));
        let store = LiveStore::new(shared, directory, planes.clone(), mailbox.clone(), Arc::default());
        let cache_info =
            CacheInfo { store_dir: demo.store.store_dir.clone(), want_mass_query: true, priority: 30 };
        let metrics = Metrics::default();
        let terms = Terms {
            index: Index::default(),
            cache_info,
            access: AccessConfig::default(),
            proxies: TrustedProxies::new(Arc::default()),
            access_log: AccessLog::Off,
        };
        let overview = Arc::new(Overview { stores: Vec::new(), metrics, browser: None });
        let sources = vec![Source::Store(Box::new(store))];
        let (scribe, figures) = Default::default();
        let means = Means { planes, mailbox: mailbox.clone(), figures, scribe, seed: 1, is_first: false };
        let node = CacheNode::new(sources, Arc::new(terms), overview, None, means);
        let peers = Peers {
            index: 0,
            admission: Admission::new(1, 8, None),
            mailboxes: vec![mailbox],
            pulses: Arc::from([AtomicU64::new(0)]),
            figures: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ring = Uring::new(capabilities).unwrap();
        let mut reactor = Reactor::new(ring, node, inbox, vec![listener.into()], peers).unwrap();
        reactor.begin();
        Some((reactor, address))
    }

    /// The length of the answers to `requests`: behind the last one the worker closes.
    fn answers_len(address: SocketAddr, requests: &[u8]) -> usize {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(requests).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut answers = Vec::new();
        socket.read_to_end(&mut answers).unwrap();
        assert!(answers.starts_with(b"HTTP/1.1 "));
        answers.len()
    }

    /// What the worker's thread allocates while a client repeats `requests`, which are sent together.
    fn allocations(reactor: &mut Reactor<Uring, CacheNode>, address: SocketAddr, requests: &[u8]) -> u64 {
        let (is_warm, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        let mut counted = 0;
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                let mut answers = vec![0; answers_len(address, requests)];
                let mut socket = TcpStream::connect(address).unwrap();
                for round in 0..=2 * ROUNDS {
                    is_warm.store(round >= ROUNDS, Ordering::Relaxed);
                    // The last round only wakes the worker, which counts no more.
                    is_over.store(round == 2 * ROUNDS, Ordering::Relaxed);
                    socket.write_all(requests).unwrap();
                    socket.read_exact(&mut answers).unwrap();
                }
            });
            // A client that fails must not leave the worker waiting.
            let is_over = || is_over.load(Ordering::Relaxed) || client.is_finished();
            while !is_warm.load(Ordering::Relaxed) && !is_over() {
                reactor.turn().unwrap();
            }
            let allocated = allocation_counter::measure(|| {
                while !is_over() {
                    reactor.turn().unwrap();
                }
            });
            counted = allocated.count_total;
            while !client.is_finished() {
                reactor.turn().unwrap();
            }
        });
        counted
    }

    #[test]
    fn an_answer_from_memory_allocates_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let demo = DemoStore::create(None, &mut |_| {}).unwrap();
        for cache in [None, Some(NarCache::start_idle(folder.path(), &demo.store))] {
            let Some((mut reactor, address)) = worker(&demo, cache) else { return };
            let get = |method: &str, hash_part: &str| {
                let fields = "Host: cache.example.org\r\nUser-Agent: curl/8.13.0 Nix/2.26.3\r\nAccept: */*\r\n\
                    Accept-Encoding: zstd, br, gzip, deflate, bzip2, xz\r\n";
                format!("{method} /{hash_part}.narinfo HTTP/1.1\r\n{fields}\r\n")
            };
            let hash_part = demo.paths[0].hash_part();
            let (present, absent) = (get("GET", hash_part.as_str()), get("GET", &"0".repeat(32)));
            let head = get("HEAD", hash_part.as_str());
            let cases = [
                present.clone(),
                absent.clone(),
                head.clone(),
                present.repeat(16),
                present + &absent + &head,
            ];
            for requests in cases {
                assert_eq!(allocations(&mut reactor, address, requests.as_bytes()), 0, "{requests}");
            }
            let made =
                allocations(&mut reactor, address, b"GET /nix-cache-info HTTP/1.1\r\nHost: here\r\n\r\n");
            assert!(made >= ROUNDS as u64, "what is made on the spot is counted: {made}");
        }
    }
}
