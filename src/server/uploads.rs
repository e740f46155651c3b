//! Uploads as one worker sees them: who may begin one, where each of them is, and what its client is told.
//!
//! An upload rests here while its client sends; with each piece of its body it goes to a thread, which looks into it, and comes
//! back. So a slow client keeps no thread, and no worker hashes, decompresses or asks a disk. What is refused before its body
//! was asked for is not read at all.
//!
//! How many there are at once is bounded for each worker, and those that come meanwhile stand in line. No upload has more than
//! one job at a time, so each job finds a place in the queue of the plane.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rustix::io::Errno;
use tracing::{debug, error};

use super::figures::PlaneFigures;
use super::lookup::SharedStore;
use super::plane::{Plane, Toolbox};
use super::refusal::{Failure, not_allowed, not_found, overloaded};
use super::request::Message;
use crate::codec::hash::Sha256Digest;
use crate::codec::http::request::{BodyLength, Request};
use crate::codec::http::route::Route;
use crate::codec::http::{Method, Status};
use crate::codec::narinfo::Compression;
use crate::codec::signature::PublicKey;
use crate::codec::store_path::StorePath;
use crate::limits::{
    REASON_LEN_MAX, REFERENCE_TRIES_MAX, SHORT_UPLOADS_MAX, SHORT_UPLOADS_PER_WORKER_MIN, UPLOAD_NICE,
    UPLOAD_THREADS, UPLOADS_MAX, UPLOADS_PER_WORKER_MIN, UPLOADS_WAITING_MAX,
};
use crate::ring::descriptor::Descriptor;
use crate::ring::inbox::Mailbox;
use crate::ring::op::ConnectionId;
use crate::ring::reactor;
use crate::ring::service::{Answer, Effects, Reply};
use crate::store::upload::{Accepted, Neighbour, Refusal, Target, Upload, UploadFolder};
use crate::store::{DatabaseFault, StoreError, is_no_room};
use crate::tally::{Count, Tally as _, classes};

/// What all workers share of uploads.
pub struct SharedUploads {
    folder: Arc<UploadFolder>,
    others: Vec<OtherSource>,
    plane: Plane,
    places: Places,
    counts: Arc<UploadCounts>,
}

/// A source that is not written to. Nix takes what any source answers for present, and does not upload it.
pub enum OtherSource {
    /// A live store.
    Store(Arc<SharedStore>),
    /// Another directory.
    Directory(Neighbour),
}

/// What has become of uploads since the process began.
#[derive(Debug, Default)]
pub struct UploadCounts {
    under_way: AtomicU64,
    waiting: AtomicU64,
    received_bytes: Count,
    stored: Count,
    broken_off: Count,
    refused: [Count; Class::ALL.len()],
    /// Those for which there was not even room in line.
    turned_away: Count,
}

classes! {
    /// Why something is not taken: the reasons of [`Refusal`], and one more.
    Class {
        /// It is not what it should be, whatever is in the cache.
        Malformed = "malformed",
        /// It is not what its name, or a narinfo, says.
        Mismatch = "mismatch",
        /// It does not go with what is in the cache.
        Conflict = "conflict",
        /// No key that is required has signed it.
        Unsigned = "unsigned",
        /// It is in a coding that cannot be looked into.
        UnknownCoding = "unknown_coding",
        /// It is longer than is allowed, or than there is memory for now.
        TooLarge = "too_large",
        /// There is no room on the disk for it.
        NoRoom = "no_room",
        /// The disk, or a database, has failed.
        Failed = "failed",
        /// Too many wait already, or a database does not answer at the moment.
        Overloaded = "overloaded",
    }
}

/// Uploads at once on one worker, by kind.
#[derive(Clone, Copy, Debug)]
struct Places {
    long: usize,
    short: usize,
}

/// The uploads of one worker.
pub struct Uploads {
    shared: Arc<SharedUploads>,
    mailbox: Mailbox<reactor::Message<Message>>,
    states: HashMap<ConnectionId, State>,
    long: Admission,
    short: Admission,
}

/// Who may begin.
#[derive(Debug)]
struct Admission {
    free_places: usize,
    line: VecDeque<ConnectionId>,
}

/// Two kinds that do not wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A NAR, or several.
    Long,
    /// Anything else.
    Short,
}

/// Where an upload is.
enum State {
    /// In line: there is nothing of it.
    Waiting(Order),
    /// With a thread, which begins it or looks at a piece.
    Away,
    /// Here: its client sends.
    Resting(Kind, Box<Upload>),
    /// With a thread, which gives it its name.
    Finishing,
}

/// What is to be begun.
#[derive(Debug)]
struct Order {
    target: Target,
    coding: Option<Box<str>>,
    len: Option<u64>,
}

/// What a thread says of an upload.
#[derive(Debug)]
pub struct News {
    id: ConnectionId,
    kind: Kind,
    event: Event,
}

#[derive(Debug)]
enum Event {
    /// It has begun, and this is where its pieces are to be written.
    Begun(Box<Upload>, Option<OwnedFd>),
    /// A piece was looked at.
    Looked(Box<Upload>),
    /// It is in the cache.
    Finished(Accepted),
    /// It is not taken, and nothing is left of it.
    Refused(Reason),
    /// Nothing is left of one whose client has gone.
    Dropped,
}

/// Why something is not taken.
#[derive(Debug)]
struct Reason {
    class: Class,
    text: String,
}

impl UploadCounts {
    /// Uploads that have begun and not ended.
    pub fn under_way(&self) -> u64 {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Uploads that wait for a place.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Bytes of the bodies of all that have begun.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.get()
    }

    /// How many were refused because too many wait.
    pub fn turned_away(&self) -> u64 {
        self.turned_away.get()
    }

    /// What can come of an upload, in the order of [`UploadCounts::results`].
    pub fn result_names() -> Vec<&'static str> {
        Self::default().results().map(|(result, _)| result).collect()
    }

    /// How many were stored, broken off by their clients, and refused for which reason.
    pub fn results(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let refused = Class::ALL.into_iter().map(|class| (class.label(), &self.refused[class as usize]));
        let counts = [("stored", &self.stored), ("broken_off", &self.broken_off)].into_iter().chain(refused);
        counts.map(|(result, count)| (result, count.get()))
    }
}

impl Class {
    fn status(self) -> Status {
        match self {
            Self::Malformed => Status::BadRequest,
            Self::Mismatch => Status::UnprocessableContent,
            Self::Conflict => Status::Conflict,
            Self::Unsigned => Status::Forbidden,
            Self::UnknownCoding => Status::UnsupportedMediaType,
            Self::TooLarge => Status::ContentTooLarge,
            Self::NoRoom => Status::InsufficientStorage,
            Self::Failed => Status::InternalServerError,
            Self::Overloaded => Status::ServiceUnavailable,
        }
    }
}

impl Reason {
    fn new(class: Class, text: impl Into<String>) -> Self {
        Self { class, text: text.into() }
    }

    /// What is said to the client. What it cannot mend is for the log.
    fn of(refusal: &Refusal) -> Self {
        let class = match refusal {
            Refusal::Malformed(_) => Class::Malformed,
            Refusal::Mismatch(_) => Class::Mismatch,
            Refusal::Conflict(_) => Class::Conflict,
            Refusal::Unsigned(_) => Class::Unsigned,
            Refusal::UnknownCoding(_) => Class::UnknownCoding,
            // Too large for now: whoever is told so does not come again by itself.
            Refusal::TooLarge(_) | Refusal::Busy(_) => Class::TooLarge,
            Refusal::NoRoom(_) => Class::NoRoom,
            Refusal::Failed(error) => {
                return match Failure::log(error) {
                    Failure::Busy => Self::new(
                        Class::Conflict,
                        "what the cache has cannot be looked at now: upload it again",
                    ),
                    Failure::Damaged | Failure::Broken => Self::failed(),
                };
            }
        };
        Self::new(class, refusal.to_string())
    }

    /// The same before anything was read. Later nobody is asked to come again: clients before Nix 2.33 cannot send a body twice.
    fn at_first(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Busy(_) => Self::overloaded(),
            Refusal::Failed(error) => match Failure::log(error) {
                Failure::Busy => Self::overloaded(),
                Failure::Damaged | Failure::Broken => Self::failed(),
            },
            refusal => Self::of(refusal),
        }
    }

    fn overloaded() -> Self {
        Self::new(Class::Overloaded, "there is too much to do")
    }

    /// The disk has failed, which was logged.
    fn failed() -> Self {
        Self::new(Class::Failed, "the cache cannot be written; see its log")
    }

    fn reply(self) -> Reply {
        if self.class == Class::Overloaded {
            return overloaded();
        }
        let mut text = self.text;
        text.truncate(text.floor_char_boundary(REASON_LEN_MAX));
        text.push('\n');
        Reply::text(self.class.status(), text)
    }
}

impl SharedUploads {
    /// Uploads into `folder` on so many workers, beside other sources. Starts the threads.
    pub fn start(
        folder: UploadFolder,
        others: Vec<OtherSource>,
        workers: usize,
    ) -> std::io::Result<Arc<Self>> {
        let places = Places {
            long: (UPLOADS_MAX / workers).max(UPLOADS_PER_WORKER_MIN),
            short: (SHORT_UPLOADS_MAX / workers).max(SHORT_UPLOADS_PER_WORKER_MIN),
        };
        let plane = Plane::start_for("upload", UPLOAD_THREADS, UPLOAD_NICE, places.jobs_max(workers))?;
        Ok(Self::new(folder, others, plane, places))
    }

    fn new(folder: UploadFolder, others: Vec<OtherSource>, plane: Plane, places: Places) -> Arc<Self> {
        Arc::new(Self { folder: Arc::new(folder), others, plane, places, counts: Arc::default() })
    }

    /// What has become of uploads.
    pub fn counts(&self) -> Arc<UploadCounts> {
        Arc::clone(&self.counts)
    }

    /// What is counted of its threads.
    pub fn plane_figures(&self) -> Arc<PlaneFigures> {
        self.plane.figures()
    }

    /// See [`UploadFolder::require`].
    pub fn require(&self, keys: Arc<[PublicKey]>) {
        self.folder.require(keys);
    }

    /// Whether a path that the folder does not have is served all the same.
    fn is_served(&self, toolbox: &mut Toolbox, path: &StorePath) -> Result<bool, StoreError> {
        for other in &self.others {
            if other.has_patiently(toolbox, path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Places {
    /// Jobs that there can be at once on so many workers: one of each upload.
    fn jobs_max(self, workers: usize) -> usize {
        workers * (self.long + self.short)
    }
}

/// For simulations.
#[cfg(test)]
impl SharedUploads {
    /// Uploads into `folder` on one worker that has so many places, and the jobs that somebody has to do.
    pub fn by_hand(
        folder: UploadFolder,
        others: Vec<OtherSource>,
        (long, short): (usize, usize),
    ) -> (Arc<Self>, std::sync::mpsc::Receiver<super::plane::Job>) {
        let places = Places { long, short };
        let (plane, jobs) = Plane::queue("upload", places.jobs_max(1));
        (Self::new(folder, others, plane, places), jobs)
    }
}

/// For simulations.
#[cfg(test)]
impl Uploads {
    /// Checks that nothing is under way.
    pub fn assert_at_rest(&self) {
        assert!(self.states.is_empty(), "{} uploads are left", self.states.len());
        let Places { long, short } = self.shared.places;
        for (admission, places) in [(&self.long, long), (&self.short, short)] {
            assert!(admission.line.is_empty(), "somebody stands in line");
            assert_eq!(admission.free_places, places, "a place was lost, or given twice");
        }
        let counts = &self.shared.counts;
        assert_eq!((counts.under_way(), counts.waiting()), (0, 0), "uploads are counted");
    }
}

impl OtherSource {
    /// Asks a database that is busy several times: the upload that is about to be finished may be one that cannot be sent again.
    fn has_patiently(&self, toolbox: &mut Toolbox, path: &StorePath) -> Result<bool, StoreError> {
        for _ in 1..REFERENCE_TRIES_MAX {
            match self.has(toolbox, path) {
                Err(StoreError::Database { fault: DatabaseFault::Busy, .. }) => {}
                answer => return answer,
            }
        }
        self.has(toolbox, path)
    }

    fn has(&self, toolbox: &mut Toolbox, path: &StorePath) -> Result<bool, StoreError> {
        match self {
            Self::Store(store) => store.has(toolbox, path),
            Self::Directory(directory) => directory.has(path),
        }
    }
}

impl Uploads {
    /// No uploads yet.
    pub fn new(shared: Arc<SharedUploads>, mailbox: Mailbox<reactor::Message<Message>>) -> Self {
        let admission = |free_places| Admission { free_places, line: VecDeque::new() };
        let (long, short) = (admission(shared.places.long), admission(shared.places.short));
        Self { shared, mailbox, states: HashMap::new(), long, short }
    }

    /// The methods that a resource has.
    pub fn methods(route: &Route) -> &'static str {
        match route {
            Route::Import => "POST",
            route if target_of(route).is_some_and(|target| target.is_ok()) => "GET, HEAD, PUT",
            _ => "GET, HEAD",
        }
    }

    /// Answers all methods that could change something, and OPTIONS, which is not offered.
    pub fn call(&mut self, id: ConnectionId, request: &Request<'_>) -> Answer {
        let route = Route::parse(request.target);
        let target = match (request.method, &route) {
            (Method::Options, _) => None,
            (_, Route::NotFound) => return Answer::Reply(not_found()),
            (Method::Post, Route::Import) => Some(Ok(Target::Export)),
            (Method::Put, route) => target_of(route),
            _ => None,
        };
        let target = match target {
            None => return Answer::Reply(not_allowed(Self::methods(&route), refusal_of(request.method))),
            Some(Err(text)) => return self.refuse(Reason::new(Class::Malformed, text)),
            Some(Ok(target)) => target,
        };
        let len = match request.body_length() {
            BodyLength::Length(len) => Some(len),
            BodyLength::Chunked => None,
            BodyLength::None => {
                let text =
                    "an upload has a body, and says how long with Content-Length, or sends it in chunks\n";
                return Answer::Reply(Reply::text(Status::LengthRequired, text));
            }
        };
        // A part must not take the place of the whole (RFC 9110 section 14.5).
        if request.content_range.is_some() {
            let text = "uploads in parts (Content-Range) are not taken";
            return self.refuse(Reason::new(Class::Malformed, text));
        }
        // To take it as if it had none could replace what must not be replaced.
        if request.if_none_match.is_some() {
            let text = "uploads with conditions are not implemented\n";
            return Answer::Reply(Reply::text(Status::NotImplemented, text));
        }
        // What is no text is no coding that anybody knows either.
        let coding = request.content_encoding.map(|coding| String::from_utf8_lossy(coding).into());
        self.admit(id, Order { target, coding, len })
    }

    /// Begins an upload, or puts it in line.
    fn admit(&mut self, id: ConnectionId, order: Order) -> Answer {
        let kind = order.kind();
        let admission = self.admission(kind);
        if admission.free_places > 0 {
            self.begin(id, order);
        } else if admission.line.len() < UPLOADS_WAITING_MAX {
            admission.line.push_back(id);
            self.shared.counts.waiting.fetch_add(1, Ordering::Relaxed);
            self.states.insert(id, State::Waiting(order));
        } else {
            self.shared.counts.turned_away.add(1);
            return self.refuse(Reason::overloaded());
        }
        Answer::Pending
    }

    fn begin(&mut self, id: ConnectionId, order: Order) {
        let kind = order.kind();
        self.admission(kind).free_places -= 1;
        self.shared.counts.under_way.fetch_add(1, Ordering::Relaxed);
        self.states.insert(id, State::Away);
        let folder = Arc::clone(&self.shared.folder);
        self.desk(id, kind).submit(move |_| {
            let begun = folder.begin(order.target, order.coding.as_deref(), order.len);
            let upload = match begun {
                Ok(upload) => Box::new(upload),
                Err(refusal) => return Event::Refused(Reason::at_first(&refusal)),
            };
            match upload.file().map(|file| file.try_clone_to_owned()).transpose() {
                Ok(file) => Event::Begun(upload, file),
                Err(error) => {
                    error!("an upload cannot be received: {error}");
                    Event::Refused(Reason::overloaded())
                }
            }
        });
    }

    /// The next piece of a body.
    pub fn body(&mut self, id: ConnectionId, piece: Bytes) {
        self.shared.counts.received_bytes.add(piece.len() as u64);
        if let Some((kind, upload)) = self.send_away(id, State::Away) {
            self.desk(id, kind).look_at(upload, piece);
        }
    }

    /// The body is over.
    pub fn received(&mut self, id: ConnectionId) -> Answer {
        if let Some((kind, upload)) = self.send_away(id, State::Finishing) {
            let shared = Arc::clone(&self.shared);
            self.desk(id, kind).submit(move |toolbox| {
                match upload.finish(&mut |path| shared.is_served(toolbox, path)) {
                    Ok(accepted) => Event::Finished(accepted),
                    Err(refusal) => Event::Refused(Reason::of(&refusal)),
                }
            });
        }
        Answer::Pending
    }

    /// A piece could not be written.
    pub fn unwritten(&mut self, id: ConnectionId, errno: Errno) -> Answer {
        error!("an upload cannot be written: {errno}");
        // Who brings back what is away finds nobody.
        if let Some(State::Resting(kind, upload)) = self.states.remove(&id) {
            self.discard(id, kind, upload);
        }
        self.refuse(if is_no_room(&errno.into()) {
            Reason::new(Class::NoRoom, "there is no room left on the disk of the cache")
        } else {
            Reason::failed()
        })
    }

    /// A connection has gone.
    pub fn gone(&mut self, id: ConnectionId) {
        let Some(state) = self.states.remove(&id) else { return };
        self.shared.counts.broken_off.add(1);
        match state {
            State::Waiting(order) => {
                self.admission(order.kind()).line.retain(|waiting| *waiting != id);
                self.shared.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            }
            State::Resting(kind, upload) => self.discard(id, kind, upload),
            // Who brings it back finds nobody. What is all there is kept: somebody else may want it.
            State::Away | State::Finishing => {}
        }
    }

    /// Takes what a thread says.
    pub fn take(&mut self, news: News, effects: &mut Effects) {
        let News { id, kind, event } = news;
        match event {
            Event::Begun(upload, file) => {
                if self.rest(id, kind, upload) {
                    effects.answers.push((id, Answer::Receive { file: file.map(Descriptor::from) }));
                }
            }
            Event::Looked(upload) => {
                if self.rest(id, kind, upload) {
                    effects.looked_at.push(id);
                }
            }
            Event::Finished(accepted) => {
                if self.states.remove(&id).is_some() {
                    self.shared.counts.stored.add(1);
                    let status = if accepted.is_new { Status::Created } else { Status::Ok };
                    effects.answers.push((id, Answer::Reply(Reply::text(status, accepted.text))));
                }
                self.leave(kind);
            }
            Event::Refused(reason) => {
                if self.states.remove(&id).is_some() {
                    effects.answers.push((id, self.refuse(reason)));
                }
                self.leave(kind);
            }
            Event::Dropped => self.leave(kind),
        }
    }

    /// Takes an upload back from a thread, if its client is still there.
    fn rest(&mut self, id: ConnectionId, kind: Kind, upload: Box<Upload>) -> bool {
        if let Some(state @ State::Away) = self.states.get_mut(&id) {
            *state = State::Resting(kind, upload);
            return true;
        }
        self.discard(id, kind, upload);
        false
    }

    /// Takes an upload that rests here, for a thread.
    fn send_away(&mut self, id: ConnectionId, state: State) -> Option<(Kind, Box<Upload>)> {
        match std::mem::replace(self.states.get_mut(&id)?, state) {
            State::Resting(kind, upload) => Some((kind, upload)),
            State::Waiting(_) | State::Away | State::Finishing => {
                debug_assert!(false, "a connection goes on when it is told to");
                None
            }
        }
    }

    /// Has a thread drop what nobody wants any more: that removes a file.
    fn discard(&self, id: ConnectionId, kind: Kind, upload: Box<Upload>) {
        self.desk(id, kind).submit(move |_| {
            drop(upload);
            Event::Dropped
        });
    }

    /// Gives the place of an upload of which nothing is left to the next in line.
    fn leave(&mut self, kind: Kind) {
        self.shared.counts.under_way.fetch_sub(1, Ordering::Relaxed);
        let admission = self.admission(kind);
        admission.free_places += 1;
        let Some(id) = admission.line.pop_front() else { return };
        if let Some(State::Waiting(order)) = self.states.remove(&id) {
            self.shared.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            self.begin(id, order);
        }
    }

    fn refuse(&self, reason: Reason) -> Answer {
        debug!("an upload is refused: {}: {}", reason.class.label(), reason.text);
        self.shared.counts.refused[reason.class as usize].add(1);
        Answer::Reply(reason.reply())
    }

    fn admission(&mut self, kind: Kind) -> &mut Admission {
        match kind {
            Kind::Long => &mut self.long,
            Kind::Short => &mut self.short,
        }
    }

    fn desk(&self, id: ConnectionId, kind: Kind) -> Desk {
        Desk { plane: self.shared.plane.clone(), mailbox: self.mailbox.clone(), id, kind }
    }
}

/// Where an upload is worked at, and who is told of it.
#[derive(Clone)]
struct Desk {
    plane: Plane,
    mailbox: Mailbox<reactor::Message<Message>>,
    id: ConnectionId,
    kind: Kind,
}

impl Desk {
    /// Has a thread do something, and say what came of it.
    fn submit(self, job: impl FnOnce(&mut Toolbox) -> Event + Send + 'static) {
        let desk = self.clone();
        self.queue(move |toolbox| desk.say(job(toolbox)));
    }

    /// Has a piece looked at.
    fn look_at(self, mut upload: Box<Upload>, mut piece: Bytes) {
        let desk = self.clone();
        self.queue(move |_| match upload.push(&mut piece) {
            Ok(()) if piece.is_empty() => {
                // An empty piece still has its buffer, which is filled again as soon as nobody has it.
                drop(piece);
                desk.say(Event::Looked(upload));
            }
            // It was a long time already: who waits for a thread comes first.
            Ok(()) => desk.look_at(upload, piece),
            Err(refusal) => {
                drop(upload);
                desk.say(Event::Refused(Reason::of(&refusal)));
            }
        });
    }

    fn queue(&self, job: impl FnOnce(&mut Toolbox) + Send + 'static) {
        if self.plane.submit(job).is_err() {
            debug_assert!(false, "there is a place in the queue for each upload");
            self.say(Event::Refused(Reason::overloaded()));
        }
    }

    fn say(&self, event: Event) {
        let news = News { id: self.id, kind: self.kind, event };
        // To a worker that has ended nothing matters any more.
        let _ = self.mailbox.send(reactor::Message::Node(Message::Upload(news)));
    }
}

impl Order {
    fn kind(&self) -> Kind {
        match self.target {
            Target::Nar { .. } | Target::Export => Kind::Long,
            Target::File(_) => Kind::Short,
        }
    }
}

/// Why this method changes nothing here.
fn refusal_of(method: Method) -> &'static str {
    match method {
        Method::Put => "it cannot be uploaded\n",
        Method::Post => "nothing is taken with POST but exports, at /import\n",
        Method::Delete => {
            "nothing is deleted over HTTP: whoever runs the cache deletes files where they are\n"
        }
        _ => "no such method here\n",
    }
}

/// What is uploaded with PUT to a route, or what is wrong with its name. `None` where nothing can be.
fn target_of(route: &Route) -> Option<Result<Target, &'static str>> {
    match route {
        Route::File(file) => Some(Ok(Target::File(file.clone()))),
        Route::Nar(_) => Some(Err(NAR_NAMES)),
        Route::NarFile(name) => Some(nar_target(name.as_str()).ok_or(NAR_NAMES)),
        Route::Index
        | Route::Import
        | Route::Version
        | Route::Health
        | Route::Metrics
        | Route::Look(_)
        | Route::NotFound => None,
    }
}

const NAR_NAMES: &str = "a NAR is uploaded as nar/HASH.nar, with .xz, .bz2, .zst or .br behind it if it is compressed like that, where \
    HASH is the SHA-256 of the file in 52 base-32 digits";

/// What a file in `nar/` is by its name: the hash of the file, and how it is compressed.
fn nar_target(name: &str) -> Option<Target> {
    let (stem, suffix) = name.strip_prefix("nar/")?.split_once(".nar")?;
    let file_hash = Sha256Digest::from_nix32(stem.as_bytes())?;
    let compression = Compression::of_suffix(suffix)?;
    Some(Target::Nar { file_hash, compression })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::codec::hash::Sha256;
    use crate::codec::http::request::{Parsed, parse};
    use crate::codec::nar::naive::{Tree, nar};
    use crate::codec::store_path::StoreDir;
    use crate::ring::inbox::{Inbox, inbox};
    use crate::ring::service::ReplyBody;
    use crate::store::upload::UploadSettings;

    const LOG: &str = "/log/0c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz-x.drv";

    const OUT: &str = "0c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz";
    const HASH: &str = "0r5q1kfn4s2ay6y8wk2sd1mp6hkrlgpzqdl4hqq0rqsdhn9k3zlj";
    const HEX: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    const BUILD_ID: &str = "0123456789abcdef0123456789abcdef01234567";

    /// One worker's uploads.
    struct Bench {
        folder: TempDir,
        uploads: Uploads,
        inbox: Inbox<reactor::Message<Message>>,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let settings = UploadSettings {
                directory: folder.path().to_path_buf(),
                store_dir: StoreDir::parse("/nix/store").unwrap(),
                len_max: 1 << 20,
                free_min: Some(0),
            };
            let shared = SharedUploads::start(UploadFolder::open(settings).unwrap(), Vec::new(), 1).unwrap();
            let (mailbox, inbox) = inbox().unwrap();
            Self { folder, uploads: Uploads::new(shared, mailbox), inbox }
        }

        /// The head of a PUT.
        fn call(&mut self, id: ConnectionId, target: &str, len: usize) -> Answer {
            let head = format!("PUT {target} HTTP/1.1\r\nHost: here\r\nContent-Length: {len}\r\n\r\n");
            let Parsed::Complete { request, .. } = parse(head.as_bytes(), 0).unwrap() else {
                panic!("a whole head")
            };
            self.uploads.call(id, &request)
        }

        /// Waits for a thread and takes what it says.
        fn news(&mut self) -> Effects {
            for _ in 0..100_000 {
                if let Some(reactor::Message::Node(Message::Upload(news))) = self.inbox.next() {
                    let mut effects = Effects::default();
                    self.uploads.take(news, &mut effects);
                    return effects;
                }
                thread::sleep(Duration::from_millis(1));
            }
            panic!("the threads say nothing")
        }

        /// Takes all that the threads still say.
        fn settle(&mut self) {
            while self.uploads.shared.counts.under_way() > 0 {
                let effects = self.news();
                assert!(effects.answers.is_empty() && effects.looked_at.is_empty(), "to nobody");
            }
        }

        fn count(&self, result: &str) -> u64 {
            self.uploads.shared.counts.results().find(|(name, _)| *name == result).unwrap().1
        }

        /// Files on their way.
        fn staged(&self) -> usize {
            let own = fs::read_dir(self.folder.path().join(".narwire-uploads")).unwrap();
            let folders = own.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
            folders.map(|folder| fs::read_dir(folder).unwrap().count()).sum()
        }
    }

    fn id(slot: u32) -> ConnectionId {
        ConnectionId { slot, generation: 1 }
    }

    fn status(answer: &Answer) -> u16 {
        let Answer::Reply(reply) = answer else { panic!("a reply") };
        reply.status.code()
    }

    /// A NAR, and where it is uploaded.
    fn file() -> (Bytes, String) {
        let nar = nar(&Tree::Regular { executable: false, contents: vec![7; 100_000] });
        let target = format!("/nar/{}.nar", Sha256::digest(&nar).to_nix32());
        (nar.into(), target)
    }

    #[test]
    fn an_upload_rests_here_between_two_threads() {
        let mut bench = Bench::new();
        let (nar, target) = file();
        assert!(matches!(bench.call(id(1), &target, nar.len()), Answer::Pending));
        let answer = bench.news().answers.pop().unwrap();
        let (1, Answer::Receive { file: Some(file) }) = (answer.0.slot, answer.1) else {
            panic!("it is received, and written")
        };
        for start in (0..nar.len()).step_by(60_000) {
            let piece = nar.slice(start..nar.len().min(start + 60_000));
            rustix::io::pwrite(file.borrow(), &piece, start as u64).unwrap();
            bench.uploads.body(id(1), piece);
            assert_eq!(bench.news().looked_at, [id(1)]);
        }
        assert!(matches!(bench.uploads.received(id(1)), Answer::Pending));
        assert_eq!(status(&bench.news().answers[0].1), 201);
        assert_eq!(fs::read(bench.folder.path().join(&target[1..])).unwrap(), nar);
        let counts = &bench.uploads.shared.counts;
        assert_eq!((counts.under_way(), counts.received_bytes()), (0, nar.len() as u64));
        assert_eq!((bench.count("stored"), bench.uploads.states.len()), (1, 0));
    }

    #[test]
    fn who_goes_leaves_nothing_at_whatever_moment_that_is() {
        let (nar, target) = file();
        let places = Bench::new().uploads.long.free_places;
        for moment in 0..4 {
            let mut bench = Bench::new();
            bench.call(id(1), &target, nar.len());
            if moment > 0 {
                assert!(matches!(bench.news().answers[0].1, Answer::Receive { .. }));
                assert_eq!(bench.staged(), 1);
            }
            if moment > 1 {
                bench.uploads.body(id(1), nar.slice(..1000));
            }
            if moment > 2 {
                bench.news();
            }
            bench.uploads.gone(id(1));
            bench.settle();
            assert_eq!((bench.staged(), bench.count("broken_off")), (0, 1), "{moment}");
            assert_eq!((bench.uploads.states.len(), bench.uploads.long.free_places), (0, places));
        }
    }

    #[test]
    fn what_is_all_there_is_kept_even_if_its_client_has_gone() {
        let mut bench = Bench::new();
        bench.call(id(1), LOG, 4);
        bench.news();
        bench.uploads.body(id(1), Bytes::from_static(b"text"));
        bench.news();
        bench.uploads.received(id(1));
        bench.uploads.gone(id(1));
        bench.settle();
        assert_eq!(fs::read(bench.folder.path().join(&LOG[1..])).unwrap(), b"text");
    }

    #[test]
    fn what_cannot_be_written_is_refused_while_it_rests_and_while_it_is_away() {
        let (nar, target) = file();
        for is_away in [false, true] {
            for (errno, expected) in [(Errno::NOSPC, 507), (Errno::DQUOT, 507), (Errno::IO, 500)] {
                let mut bench = Bench::new();
                bench.call(id(1), &target, nar.len());
                bench.news();
                if is_away {
                    bench.uploads.body(id(1), nar.slice(..1000));
                }
                assert_eq!(status(&bench.uploads.unwritten(id(1), errno)), expected);
                bench.uploads.gone(id(1));
                bench.settle();
                assert_eq!((bench.staged(), bench.uploads.states.len()), (0, 0));
                assert_eq!(
                    (bench.count("no_room") + bench.count("failed"), bench.count("broken_off")),
                    (1, 0)
                );
            }
        }
    }

    #[test]
    fn who_finds_no_place_waits_in_line_and_beyond_its_end_is_sent_away() {
        let mut bench = Bench::new();
        bench.uploads.short.free_places = 1;
        let (nar, target) = file();
        bench.call(id(0), LOG, 4);
        assert!(matches!(bench.news().answers[0].1, Answer::Receive { .. }));
        let end = u32::try_from(UPLOADS_WAITING_MAX).unwrap();
        for slot in 1..=end {
            assert!(matches!(bench.call(id(slot), LOG, 4), Answer::Pending));
        }
        assert_eq!(bench.uploads.shared.counts.waiting(), u64::from(end));
        assert_eq!(status(&bench.call(id(end + 1), LOG, 4)), 503);
        // Who leaves the line makes room in it, and others do not stand in it at all.
        bench.uploads.gone(id(1));
        assert!(matches!(bench.call(id(end + 1), LOG, 4), Answer::Pending));
        bench.call(id(end + 2), &target, nar.len());
        let answers = bench.news().answers;
        assert!(
            matches!(answers[..], [(ConnectionId { slot, .. }, Answer::Receive { .. })] if slot == end + 2)
        );
        // One after another, in their order.
        bench.uploads.gone(id(0));
        for slot in 2..=end + 1 {
            let answers = loop {
                let answers = bench.news().answers;
                if !answers.is_empty() {
                    break answers;
                }
            };
            assert!(
                matches!(answers[..], [(ConnectionId { slot: next, .. }, Answer::Receive { .. })] if next == slot)
            );
            bench.uploads.gone(id(slot));
        }
        bench.uploads.gone(id(end + 2));
        bench.settle();
        assert_eq!((bench.uploads.short.free_places, bench.uploads.shared.counts.waiting()), (1, 0));
    }

    #[test]
    fn what_is_refused_gives_its_place_back() {
        let mut bench = Bench::new();
        let places = bench.uploads.long.free_places;
        let (nar, target) = file();
        bench.call(id(1), &target, 1 << 21);
        assert_eq!(status(&bench.news().answers[0].1), 413);
        bench.call(id(1), &target, nar.len());
        bench.news();
        bench.uploads.body(id(1), Bytes::from_static(b"no NAR, and no gzip either"));
        assert_eq!(status(&bench.news().answers[0].1), 400);
        bench.call(id(1), &target, 0);
        bench.news();
        bench.uploads.received(id(1));
        assert!([400, 422].contains(&status(&bench.news().answers[0].1)));
        assert_eq!((bench.uploads.states.len(), bench.uploads.long.free_places), (0, places));
        assert_eq!((bench.staged(), bench.uploads.shared.counts.under_way()), (0, 0));
    }

    fn route(target: &str) -> Route {
        let target = target.replace("OUT", OUT).replace("HASH", HASH).replace("HEX", HEX);
        Route::parse(target.replace("ID", BUILD_ID).as_bytes())
    }

    #[test]
    fn whatever_nix_writes_into_a_cache_can_be_uploaded() {
        for target in [
            "/nix-cache-info",
            "/OUT.narinfo",
            "/OUT.ls",
            "/nar/HASH.nar",
            "/nar/HASH.nar.xz",
            "/nar/HASH.nar.bz2",
            "/nar/HASH.nar.zst",
            "/nar/HASH.nar.br",
            "/nar/HASH.nar.lzip",
            "/nar/HASH.nar.lz4",
            "/log/OUT-x.drv",
            "/realisations/sha256:HEX!out.doi",
            "/realisations/sha256:HEX%21out.doi",
            "/build-trace-v2/OUT-x.drv/out.doi",
            "/debuginfo/ID.debug",
            "/debuginfo/ID",
        ] {
            let route = route(target);
            assert!(matches!(target_of(&route), Some(Ok(_))), "{target}: {:?}", target_of(&route));
            assert_eq!(Uploads::methods(&route), "GET, HEAD, PUT");
        }
    }

    #[test]
    fn the_name_of_a_nar_says_its_hash_and_its_compression() {
        let file_hash = Sha256Digest::from_nix32(HASH.as_bytes()).unwrap();
        for (suffix, compression) in
            [("", Compression::None), (".xz", Compression::Xz), (".zst", Compression::Zstd)]
        {
            let target = target_of(&route(&format!("/nar/HASH.nar{suffix}")));
            assert_eq!(target, Some(Ok(Target::Nar { file_hash, compression })));
        }
        for target in [
            "/nar/OUT.nar",
            "/nar/OUT-HASH.nar",
            "/nar/HASH.nar?hash=OUT",
            "/nar/HASH",
            "/nar/HASH.nar.",
            "/nar/HASH.nar.zst.zst",
            "/nar/HASH.nar.nar",
            "/nar/HASH.nar.exe",
            "/nar/xHASH.nar",
            "/nar/x.nar.zst",
        ] {
            assert_eq!(target_of(&route(target)), Some(Err(NAR_NAMES)), "{target}");
            assert_eq!(Uploads::methods(&route(target)), "GET, HEAD");
        }
    }

    #[test]
    fn nothing_else_can_be_uploaded() {
        for target in ["/", "/version", "/health", "/metrics", "/import", "/nar/../x", "/nar/.x", "/x/y"] {
            assert_eq!(target_of(&route(target)), None, "{target}");
        }
        assert_eq!(Uploads::methods(&Route::Import), "POST");
    }

    #[test]
    fn nobody_is_asked_to_send_again_what_was_read_already() {
        let full = Refusal::Busy("there is no memory for it at the moment".to_owned());
        assert_eq!(Reason::at_first(&full).reply().status, Status::ServiceUnavailable);
        let later = Reason::of(&full).reply();
        assert_eq!(later.status, Status::ContentTooLarge);
        let ReplyBody::Bytes(text) = later.body else { panic!("a text") };
        assert!(text.starts_with(b"there is no memory"));

        let busy = || StoreError::Database {
            path: "db.sqlite".into(),
            fault: DatabaseFault::Busy,
            source: rusqlite::Error::InvalidQuery,
        };
        assert_eq!(Reason::at_first(&busy().into()).reply().status, Status::ServiceUnavailable);
        assert_eq!(Reason::of(&busy().into()).reply().status, Status::Conflict);
    }

    #[test]
    fn reasons_are_short_enough_for_nix_to_show_them() {
        let reply = Reason::new(Class::Malformed, "ä".repeat(REASON_LEN_MAX)).reply();
        let ReplyBody::Bytes(text) = reply.body else { panic!("a text") };
        assert_eq!((reply.status, text.len()), (Status::BadRequest, REASON_LEN_MAX + 1));
        assert!(str::from_utf8(&text).unwrap().ends_with("ä\n"));
    }
}
