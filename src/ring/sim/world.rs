//! A worker in a simulated world: connections, a service whose answers follow from the request alone, and the oracle that
//! knows, without a ring, what every peer has to hear.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CString;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::LazyLock;

use bytes::Bytes;
use rustix::io::Errno;

use super::{CreatedFile, Creator, End, Faults, Peer, Random, Sim, SimulatedFile, Socket};
use crate::codec::http::body::{BadBody, BodyDecoder};
use crate::codec::http::request::{self, BodyLength, Parsed, Request};
use crate::codec::http::response::{CONTINUE, Fields};
use crate::codec::http::{Method, Status, Version};
use crate::limits::{
    INTAKE_BUFFERS_MAX, INTAKE_PIECE_LEN_BYTES, PACK_BUFFERS_MAX, SENDFILE_LEN_MAX, SENDFILE_LEN_MIN,
};
use crate::ring::Driver as _;
use crate::ring::body::{Body, FileBody, FilePiece, FileSource, Lookup, Piece};
use crate::ring::connection::{Connection, Context};
use crate::ring::descriptor::Descriptor;
use crate::ring::ledger::{Farewell, Ledger, Topic, Truncation, Way, total};
use crate::ring::op::{Completion, ConnectionId, FileKind, OpenedFile, Submission, Token};
use crate::ring::pool::Pool;
use crate::ring::service::{Answer, Called, Caller, Ending, Reply, ReplyBody, Service};
use crate::tally::Tally as _;

/// What requests are about.
const GET: Topic = Topic(1);
const PUT: Topic = Topic(2);

/// Turns after which a world that still moves is taken to go round in circles.
const TURNS_MAX: usize = 20_000;
/// Longer than every deadline together. Seconds.
const PATIENCE_S: u64 = 3_000;

const DATE: &[u8; 29] = b"Sun, 06 Nov 1994 08:49:37 GMT";

/// Lengths of the files there are: about every bound that a transfer has.
const FILE_LENS: [usize; 10] = [1, 90, 4_096, 30_000, 131_071, 131_072, 200_000, 262_144, 270_000, 700_000];

/// Bytes that look alike nowhere, from which all contents are cut.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random(1);
    (0..1usize << 17).flat_map(|_| random.draw().to_ne_bytes()).collect()
});

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    Nothing,
    Missing,
    /// It is longer than was said.
    Longer,
    /// It ends in the middle although it is as long as was said.
    Shrunk,
    /// It cannot be read from the middle on.
    Damaged,
    Directory,
}

const FLAWS: [Flaw; 6] =
    [Flaw::Nothing, Flaw::Missing, Flaw::Longer, Flaw::Shrunk, Flaw::Damaged, Flaw::Directory];

/// One of the files there are.
#[derive(Clone, Copy, Debug)]
struct File {
    index: usize,
    flaw: Flaw,
}

impl File {
    fn path(self) -> CString {
        CString::new(format!("{}/{:?}", self.index, self.flaw)).unwrap_or_default()
    }

    /// Its length before anything went wrong. Bytes.
    fn len(self) -> usize {
        FILE_LENS[self.index]
    }

    fn contents(self) -> &'static [u8] {
        &PATTERN[1_009 * self.index..][..self.len()]
    }

    /// The file as the disk has it.
    fn simulated(self) -> SimulatedFile {
        let half = &self.contents()[..self.len() / 2];
        let kind = if self.flaw == Flaw::Directory { FileKind::Directory } else { FileKind::Regular };
        let (len, contents) = match self.flaw {
            Flaw::Nothing | Flaw::Missing | Flaw::Directory => (self.len(), self.contents()),
            Flaw::Longer => (self.len() + 1, &PATTERN[1_009 * self.index..][..=self.len()]),
            Flaw::Shrunk | Flaw::Damaged => (self.len(), half),
        };
        SimulatedFile { kind, len_bytes: len as u64, contents, is_damaged: self.flaw == Flaw::Damaged }
    }

    /// Whether nobody can send these bytes of it.
    fn breaks(self, range: &Range<usize>) -> bool {
        match self.flaw {
            Flaw::Nothing => false,
            Flaw::Missing | Flaw::Longer | Flaw::Directory => true,
            // Of what is not long, all is read that follows.
            Flaw::Shrunk | Flaw::Damaged => {
                range.end > self.len() / 2 || ((self.len() - range.start) as u64) < SENDFILE_LEN_MIN
            }
        }
    }
}

/// A run of bytes of a body.
#[derive(Clone, Debug)]
enum Segment {
    /// From [`PATTERN`].
    Bytes(Range<usize>),
    File(File, Range<usize>),
}

impl Segment {
    fn contents(&self) -> &'static [u8] {
        match self {
            Self::Bytes(range) => &PATTERN[range.clone()],
            Self::File(file, range) => &file.contents()[range.clone()],
        }
    }
}

/// When an answer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timing {
    Now,
    Later,
}

/// What is answered to a target.
#[derive(Clone, Debug)]
enum Content {
    Bytes(Range<usize>),
    Stream {
        segments: Vec<Segment>,
        /// What of them is sent.
        range: Range<usize>,
        /// Whether it is said before how much that is. If not it is all of them.
        is_measured: bool,
        /// From here on the body is broken.
        broken_at: Option<usize>,
        /// The body learns of its pieces one after another.
        is_lazy: bool,
    },
    /// A file that the connection opens.
    Opened(File),
}

/// What the service does with a request: a function of the seed and the target.
#[derive(Clone, Debug)]
struct Plan {
    timing: Timing,
    content: Content,
    /// Whether it asks for the body of a PUT before it answers.
    taking: Option<Taking>,
}

/// What the service does with a body.
#[derive(Clone, Copy, Debug)]
struct Taking {
    timing: Timing,
    has_file: bool,
    /// What the file has room for, if that is bounded. Bytes.
    room: Option<usize>,
    /// It has heard enough when it has looked at so many bytes, at least one.
    refused_at: Option<usize>,
}

impl Taking {
    fn drawn(random: &mut Random, timing: Timing) -> Self {
        let len_max = random.pick(&[10, 100_000, 600_000]);
        let bound = random.chance(30).then(|| 1 + random.below(len_max));
        let has_file = random.chance(60);
        let (room, refused_at) = if has_file && random.chance(50) { (bound, None) } else { (None, bound) };
        Self { timing, has_file, room, refused_at }
    }

    /// What is answered to a body that was taken to its end.
    fn created(body: &[u8]) -> (Status, String) {
        (Status::Created, format!("{} bytes, {:08x}\n", body.len(), crc32fast::hash(body)))
    }

    /// What is answered to a body that has this at its beginning, if that is not the same as to one that is shorter.
    fn refusal(self, body: &[u8]) -> Option<(Status, String)> {
        if self.refused_at.is_some_and(|at| body.len() >= at) {
            return Some((Status::UnprocessableContent, "that is enough\n".to_owned()));
        }
        let is_full = self.room.is_some_and(|room| body.len() > room);
        is_full.then(|| (Status::InsufficientStorage, "no room\n".to_owned()))
    }
}

impl Plan {
    fn of(seed: u64, target: &[u8]) -> Self {
        let mixed = target.iter().fold(seed, |mixed, &byte| mixed.wrapping_mul(31).wrapping_add(byte.into()));
        let mut random = Random(mixed);
        let timing = if random.chance(25) { Timing::Later } else { Timing::Now };
        let content = match random.below(10) {
            0..=4 => Content::Bytes(bytes_of(&mut random, 300)),
            5 => Content::Bytes(bytes_of(&mut random, 100_000)),
            6 => Content::Opened(file_of(&mut random, 20)),
            _ => stream_of(&mut random),
        };
        let taking = random.chance(85).then(|| Taking::drawn(&mut random, timing));
        Self { timing, content, taking }
    }

    /// What a peer hears: all of it, or none when it cannot all be sent.
    fn body(&self) -> Expected {
        match &self.content {
            Content::Bytes(range) => Expected::whole(Status::Ok, PATTERN[range.clone()].to_vec()),
            Content::Opened(file) => match file.flaw {
                Flaw::Missing | Flaw::Directory => Expected::text(Status::NotFound, "no such file\n"),
                Flaw::Longer => Expected::whole(Status::Ok, file.simulated().contents.to_vec()),
                Flaw::Nothing | Flaw::Shrunk | Flaw::Damaged => Expected {
                    breaks: file.breaks(&(0..file.len())),
                    ..Expected::whole(Status::Ok, file.contents().to_vec())
                },
            },
            Content::Stream { segments, range, is_measured, broken_at, .. } => {
                let mut body = Vec::new();
                let mut breaks = broken_at.is_some_and(|at| at < range.end && !range.is_empty());
                // Instead of its end, perhaps.
                breaks |= !is_measured && broken_at.is_some();
                for segment in segments {
                    let start = body.len();
                    body.extend_from_slice(segment.contents());
                    // The part of the segment that is wanted.
                    let (from, to) = (range.start.max(start), range.end.min(body.len()));
                    if let Segment::File(file, of) = segment
                        && from < to
                    {
                        breaks |= file.breaks(&(of.start + (from - start)..of.start + (to - start)));
                    }
                }
                let bounds = if *is_measured { Bounds::Length } else { Bounds::Chunks };
                Expected { bounds, breaks, ..Expected::whole(Status::Ok, body[range.clone()].to_vec()) }
            }
        }
    }
}

fn bytes_of(random: &mut Random, len_max: usize) -> Range<usize> {
    let start = random.below(PATTERN.len() - len_max);
    start..start + 1 + random.below(len_max)
}

fn file_of(random: &mut Random, flawed_percent: usize) -> File {
    let flaw = if random.chance(flawed_percent) { FLAWS[1 + random.below(5)] } else { Flaw::Nothing };
    // The longest ones are rarer: they are slow.
    let index = random.below(FILE_LENS.len()).min(random.below(FILE_LENS.len() + 3));
    File { index, flaw }
}

fn stream_of(random: &mut Random) -> Content {
    let flawed_percent = if random.chance(20) { 10 } else { 0 };
    let count_max = random.pick(&[3, 12, 150]);
    let is_measured = random.chance(70);
    let count = usize::from(is_measured) + random.below(count_max);
    let of_files = random.below(101);
    let mut segments = Vec::with_capacity(count);
    let mut len = 0;
    for _ in 0..count {
        let segment = if random.chance(of_files) && len < 1 << 20 {
            let file = file_of(random, flawed_percent);
            let start = if random.chance(20) { random.below(file.len()) } else { 0 };
            Segment::File(file, start..file.len())
        } else {
            let len_max = random.pick(&[8, 200, 50_000]);
            Segment::Bytes(bytes_of(random, len_max))
        };
        len += segment.contents().len();
        segments.push(segment);
    }
    let range = if is_measured && random.chance(30) {
        let start = random.below(len);
        start..start + random.below(len - start + 1)
    } else {
        0..len
    };
    let broken_at = random.chance(10).then(|| random.below(len + usize::from(!is_measured)));
    Content::Stream { segments, range, is_measured, broken_at, is_lazy: random.chance(30) }
}

/// A body whose pieces are known only so far.
struct SegmentBody {
    segments: Vec<(usize, Segment, CString)>,
    directory: Descriptor,
    broken_at: usize,
    known: Rc<Cell<usize>>,
    /// Where it ends, when that is not said before.
    end: Option<usize>,
    /// The piece of such a body that is not forgotten.
    remembered: Range<usize>,
}

impl Body for SegmentBody {
    fn piece_at(&mut self, position: u64) -> Lookup<'_> {
        let position = usize::try_from(position).unwrap_or(usize::MAX);
        if self.end.is_some() {
            let Range { start, end } = self.remembered;
            assert!(
                (start..=end).contains(&position),
                "{position} was asked for with {start}..{end} at hand"
            );
        }
        if position >= self.broken_at {
            return Lookup::Broken;
        }
        if self.end == Some(position) {
            return Lookup::End;
        }
        if position >= self.known.get() {
            return Lookup::NotYet;
        }
        let index = self.segments.partition_point(|(start, ..)| *start <= position) - 1;
        let (start, segment, path) = &self.segments[index];
        let skipped = position - start;
        let len = (segment.contents().len() - skipped).min(self.broken_at - position);
        if position == self.remembered.end {
            self.remembered = position..position + len;
        }
        Lookup::Piece(match segment {
            Segment::Bytes(_) => Piece::Bytes(&segment.contents()[skipped..][..len]),
            Segment::File(file, range) => Piece::File(FilePiece {
                source: FileSource::Beneath {
                    directory: &self.directory,
                    path,
                    len_bytes: file.len() as u64,
                },
                offset: (range.start + skipped) as u64,
                len: len as u64,
            }),
        })
    }
}

/// The service.
struct Planner {
    seed: u64,
    directory: Descriptor,
    /// Who waits for an answer.
    asked: HashSet<ConnectionId>,
    /// Answers that a message will bring.
    pending: Vec<(ConnectionId, Next)>,
    /// Bodies that are being taken.
    uploads: HashMap<ConnectionId, Upload>,
    /// Pieces that are being looked at.
    looking: Vec<(ConnectionId, Bytes)>,
    creator: Creator,
    /// Bodies that do not know all of themselves, and how long they are.
    lazy: Vec<(ConnectionId, Rc<Cell<usize>>, usize)>,
    /// What was asked on each connection, and how it ended.
    witnessed: Rc<RefCell<BTreeMap<u32, Vec<Witnessed>>>>,
}

/// A request, and what its witness was told.
#[derive(Clone, Copy)]
struct Witnessed {
    topic: Topic,
    ending: Option<Ending>,
}

/// What the service says when a message comes.
#[derive(Clone, Debug)]
enum Next {
    Answer(Plan),
    Take(Taking),
    Say(Status, String),
}

/// A body that the service gets.
struct Upload {
    taking: Taking,
    body: Vec<u8>,
    file: Option<CreatedFile>,
}

impl Planner {
    /// Says it, now or later.
    fn at(&mut self, id: ConnectionId, timing: Timing, next: Next) -> Answer {
        assert!(self.asked.contains(&id), "answered once");
        if timing == Timing::Later {
            self.pending.push((id, next));
            return Answer::Pending;
        }
        self.say(id, next)
    }

    fn say(&mut self, id: ConnectionId, next: Next) -> Answer {
        match next {
            Next::Answer(plan) => self.answer(id, &plan),
            Next::Take(taking) => {
                let file = CreatedFile { room: taking.room, ..CreatedFile::default() };
                let descriptor = taking.has_file.then(|| self.creator.create(file.clone()));
                let file = taking.has_file.then_some(file);
                let upload = Upload { taking, body: Vec::new(), file };
                assert!(self.uploads.insert(id, upload).is_none(), "one body at a time");
                Answer::Receive { file: descriptor }
            }
            Next::Say(status, text) => {
                assert!(self.asked.remove(&id), "answered once");
                self.uploads.remove(&id);
                Answer::Reply(Reply::text(status, text))
            }
        }
    }

    /// Has looked at a piece; an answer when that was enough.
    fn look(&mut self, id: ConnectionId) -> Option<Answer> {
        let upload = self.uploads.get(&id)?;
        upload.taking.refused_at?;
        let (status, text) = upload.taking.refusal(&upload.body)?;
        Some(self.say(id, Next::Say(status, text)))
    }

    fn answer(&mut self, id: ConnectionId, plan: &Plan) -> Answer {
        assert!(self.asked.contains(&id), "answered once");
        let body = match &plan.content {
            Content::Opened(file) => {
                return Answer::Open { directory: self.directory.clone(), path: file.path() };
            }
            Content::Bytes(range) => ReplyBody::Bytes(Bytes::from_static(&PATTERN[range.clone()])),
            Content::Stream { segments, range, is_measured, broken_at, is_lazy } => {
                let mut at = 0;
                let mut placed = Vec::with_capacity(segments.len());
                for segment in segments {
                    let path = match segment {
                        Segment::File(file, _) => file.path(),
                        Segment::Bytes(_) => CString::default(),
                    };
                    placed.push((at, segment.clone(), path));
                    at += segment.contents().len();
                }
                let known = Rc::new(Cell::new(if *is_lazy { 0 } else { at }));
                if *is_lazy {
                    self.lazy.push((id, Rc::clone(&known), at));
                }
                let body = SegmentBody {
                    segments: placed,
                    directory: self.directory.clone(),
                    broken_at: broken_at.unwrap_or(usize::MAX),
                    known,
                    end: (!is_measured).then_some(at),
                    remembered: 0..0,
                };
                if *is_measured {
                    ReplyBody::Stream { body: Box::new(body), range: range.start as u64..range.end as u64 }
                } else {
                    ReplyBody::Unbounded(Box::new(body))
                }
            }
        };
        self.asked.remove(&id);
        let len = match &body {
            ReplyBody::Empty => 0,
            ReplyBody::Bytes(bytes) => bytes.len() as u64,
            ReplyBody::Stream { range, .. } => range.end - range.start,
            ReplyBody::Unbounded(_) => {
                let fields = Fields::new().unfinished();
                return Answer::Reply(Reply { status: Status::Ok, fields, body });
            }
            ReplyBody::Rendered { .. } => unreachable!("made below"),
        };
        let fields = Fields::new().content_length(len).finish();
        let (fields, body) = match body {
            // Half of them as answers that are kept in one piece.
            ReplyBody::Bytes(bytes) if len.is_multiple_of(2) => {
                let text = Arc::new([&*fields, &*bytes].concat());
                (Bytes::new(), ReplyBody::Rendered { text, fields_len: fields.len() })
            }
            body => (fields, body),
        };
        Answer::Reply(Reply { status: Status::Ok, fields, body })
    }
}

impl Service for Planner {
    fn call(&mut self, caller: &Caller<'_>, request: &Request<'_>) -> Called {
        let id = caller.id;
        assert!(self.asked.insert(id), "one request at a time");
        let plan = Plan::of(self.seed, request.target);
        let next = match plan.taking {
            Some(taking) if request.method == Method::Put => Next::Take(taking),
            _ => Next::Answer(plan.clone()),
        };
        let topic = if request.method == Method::Put { PUT } else { GET };
        let witnessed = Rc::clone(&self.witnessed);
        let index = {
            let mut witnessed = witnessed.borrow_mut();
            let asked = witnessed.entry(id.slot).or_default();
            asked.push(Witnessed { topic, ending: None });
            asked.len() - 1
        };
        let witness = move |ending: &Ending| {
            let asked = &mut witnessed.borrow_mut();
            asked.get_mut(&id.slot).expect("it has asked")[index].ending = Some(*ending);
        };
        Called { topic, witness: Some(Box::new(witness)), answer: self.at(id, plan.timing, next) }
    }

    fn opened(&mut self, id: ConnectionId, result: Result<OpenedFile, Errno>) -> Answer {
        assert!(self.asked.remove(&id), "answered once");
        Answer::Reply(match result {
            Ok(OpenedFile { file, status }) if status.kind == FileKind::Regular => {
                let len_bytes = status.len_bytes;
                let fields = Fields::new().content_length(len_bytes).finish();
                let body = Box::new(FileBody { file, len_bytes });
                Reply { status: Status::Ok, fields, body: ReplyBody::Stream { body, range: 0..len_bytes } }
            }
            _ => Reply::text(Status::NotFound, "no such file\n"),
        })
    }

    fn body(&mut self, id: ConnectionId, piece: Bytes) {
        assert!(self.asked.contains(&id), "nothing comes behind the answer");
        assert!((1..=INTAKE_PIECE_LEN_BYTES).contains(&piece.len()));
        assert!(self.looking.iter().all(|(other, _)| *other != id), "one piece at a time");
        self.uploads.get_mut(&id).expect("it was asked for").body.extend_from_slice(&piece);
        self.looking.push((id, piece));
    }

    fn received(&mut self, id: ConnectionId) -> Answer {
        assert!(self.looking.iter().all(|(other, _)| *other != id), "all of it was looked at");
        let upload = &self.uploads[&id];
        if let Some(file) = &upload.file {
            assert!(*file.contents.borrow() == upload.body, "all of it is in the file");
        }
        let (timing, (status, text)) = (upload.taking.timing, Taking::created(&upload.body));
        self.at(id, timing, Next::Say(status, text))
    }

    fn unwritten(&mut self, id: ConnectionId, errno: Errno) -> Answer {
        assert_eq!(errno, Errno::NOSPC);
        let upload = &self.uploads[&id];
        let (status, text) = upload.taking.refusal(&upload.body).expect("there was room");
        self.at(id, upload.taking.timing, Next::Say(status, text))
    }

    fn gone(&mut self, id: ConnectionId) {
        assert!(self.asked.remove(&id), "told only what was not answered");
        self.pending.retain(|(pending, _)| *pending != id);
        self.uploads.remove(&id);
    }
}

/// One answer as the peer has to hear it.
#[derive(Debug)]
struct Expected {
    status: Status,
    fields: Bytes,
    body: Vec<u8>,
    /// How the peer hears of its end.
    bounds: Bounds,
    /// It can only be begun.
    breaks: bool,
    /// Whether it comes depends on the time.
    is_optional: bool,
    /// `100 Continue` comes before it.
    is_awaited: bool,
    /// What is said instead, if the service was faster.
    otherwise: Option<Box<Expected>>,
}

/// How a peer hears where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bounds {
    /// From the head.
    Length,
    /// From the last chunk.
    Chunks,
    /// From the end of the connection.
    Close,
}

impl Expected {
    fn whole(status: Status, body: Vec<u8>) -> Self {
        let fields = Fields::new().content_length(body.len() as u64).finish();
        Self {
            status,
            fields,
            body,
            bounds: Bounds::Length,
            breaks: false,
            is_optional: false,
            is_awaited: false,
            otherwise: None,
        }
    }

    /// The answer to a body, how far it comes, and whether something can follow.
    fn to_body(taking: Taking, body: &[u8], end: &BodyEnd) -> (Self, bool) {
        let of = |(status, text): (Status, String)| Self::text(status, &text);
        let refusal = taking.refusal(body).map(of);
        match (refusal, end) {
            (Some(refusal), BodyEnd::Here) => (refusal, false),
            (None, BodyEnd::Here) => (of(Taking::created(body)), true),
            (refusal, BodyEnd::Bad(bad)) => {
                let otherwise = refusal.map(Box::new);
                (Self { otherwise, ..Self::text(bad.status(), &format!("{bad}\n")) }, false)
            }
            (refusal, BodyEnd::Missing) => {
                let otherwise = refusal.map(Box::new);
                let late = Self::text(Status::RequestTimeout, "the body did not arrive in time\n");
                (Self { is_optional: true, otherwise, ..late }, false)
            }
        }
    }

    fn text(status: Status, text: &str) -> Self {
        let fields = Reply::text(status, text.to_owned()).fields;
        Self { fields, ..Self::whole(status, text.into()) }
    }

    /// The same for this request.
    fn of(mut self, request: &Request<'_>) -> Self {
        if self.bounds == Bounds::Chunks {
            self.fields = match request.version {
                Version::Http11 => Bytes::from_static(b"Transfer-Encoding: chunked\r\n\r\n"),
                Version::Http10 => Bytes::from_static(b"\r\n"),
            };
            if request.version == Version::Http10 {
                self.bounds = Bounds::Close;
            }
        }
        if request.method == Method::Head {
            self.body.clear();
            self.bounds = Bounds::Length;
            self.breaks = false;
        }
        self
    }

    /// What of its body is at the start of `sent`, and how long that is there, once it has ended.
    fn decode(&self, sent: &[u8]) -> (Vec<u8>, Option<usize>) {
        let len = self.body.len();
        match self.bounds {
            Bounds::Length => (sent[..len.min(sent.len())].to_vec(), (sent.len() >= len).then_some(len)),
            Bounds::Close => (sent.to_vec(), (sent.len() >= len).then_some(sent.len())),
            Bounds::Chunks => {
                let (mut decoder, mut body, mut rest) =
                    (BodyDecoder::new(BodyLength::Chunked), Vec::new(), sent);
                while !rest.is_empty() && !decoder.is_finished() {
                    let decoded = decoder.decode(rest).expect("chunks");
                    body.extend_from_slice(decoded.data);
                    rest = &rest[decoded.consumed_len..];
                }
                (body, decoder.is_finished().then_some(sent.len() - rest.len()))
            }
        }
    }

    /// The head, as it may be: what it says of the connection depends on what happens to it.
    fn heads(&self) -> impl Iterator<Item = Vec<u8>> {
        ["", "Connection: close\r\n", "Connection: keep-alive\r\n"].into_iter().map(|connection| {
            let date = str::from_utf8(DATE).unwrap_or_default();
            let mut head = format!("{}Date: {date}\r\n{connection}", self.status.line()).into_bytes();
            head.extend_from_slice(&self.fields);
            head
        })
    }
}

/// Where a body ends.
enum BodyEnd {
    Here,
    /// Not in what there is.
    Missing,
    Bad(BadBody),
}

/// Takes a body from the start of `rest`.
fn take_body(rest: &mut &[u8], length: BodyLength) -> (Vec<u8>, BodyEnd) {
    let (mut decoder, mut body) = (BodyDecoder::new(length), Vec::new());
    while !decoder.is_finished() && !rest.is_empty() {
        match decoder.decode(rest) {
            Ok(decoded) => {
                body.extend_from_slice(decoded.data);
                *rest = &rest[decoded.consumed_len..];
            }
            Err(bad) => return (body, BodyEnd::Bad(bad)),
        }
    }
    (body, if decoder.is_finished() { BodyEnd::Here } else { BodyEnd::Missing })
}

/// What must be answered to these bytes, in this order.
fn expected(seed: u64, says: &[u8]) -> Vec<Expected> {
    let mut answers = Vec::new();
    let mut rest = says;
    while !rest.is_empty() {
        match request::parse(rest, 0) {
            Ok(Parsed::Partial { .. }) => {
                let text = "the request did not arrive in time\n";
                let is_optional = true;
                answers.push(Expected { is_optional, ..Expected::text(Status::RequestTimeout, text) });
                break;
            }
            Ok(Parsed::Complete { request, head_len }) => {
                rest = &rest[head_len..];
                let plan = Plan::of(seed, request.target);
                let (answer, goes_on) = match plan.taking {
                    Some(taking) if request.method == Method::Put => {
                        let (body, end) = take_body(&mut rest, request.body_length());
                        let (answer, goes_on) = Expected::to_body(taking, &body, &end);
                        (Expected { is_awaited: request.expects_continue(), ..answer }, goes_on)
                    }
                    _ => {
                        let has_body =
                            !matches!(request.body_length(), BodyLength::None | BodyLength::Length(0));
                        (plan.body().of(&request), !has_body)
                    }
                };
                let is_last = answer.breaks || answer.bounds == Bounds::Close;
                answers.push(answer);
                if is_last || !request.keep_alive() || !goes_on {
                    break;
                }
            }
            Err(bad) => {
                answers.push(Expected::text(bad.status(), &format!("{bad}\n")));
                break;
            }
        }
    }
    answers
}

/// What happened to a connection besides the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disturbance {
    /// Nothing: every request must be answered.
    Nothing,
    /// It was asked to end: what is answered is answered whole.
    Drained,
    /// It was ended, or the peer does not read or resets: answers may be cut.
    Cut,
}

/// What a peer heard.
#[derive(Default)]
pub struct Heard {
    /// Answers that are whole, and how long they are. Bytes.
    answers: Vec<(Status, usize)>,
    /// What there is of one behind them. Bytes.
    rest_len: usize,
}

/// Checks what a peer heard, and says what it was.
pub fn check(seed: u64, says: &[u8], sent: &[u8], end: Option<End>, disturbance: Disturbance) -> Heard {
    let mut rest = sent;
    let answers = expected(seed, says);
    let mut is_over = false;
    let mut heard = Heard::default();
    for (index, answer) in answers.iter().enumerate() {
        if !rest.is_empty()
            && let Some(whole) = take(&mut rest, answer, index, &mut is_over)
        {
            heard.answers.push(whole);
            continue;
        }
        heard.rest_len = rest.len();
        match disturbance {
            Disturbance::Cut => {}
            Disturbance::Drained if rest.is_empty() => {}
            _ if answer.breaks && !is_over => {
                assert_eq!(end, Some(End::Reset), "a broken answer ends in a reset");
            }
            Disturbance::Drained => panic!("answer {index} is cut"),
            Disturbance::Nothing => {
                let count = answers.len();
                assert!(
                    answer.is_optional && rest.is_empty(),
                    "answer {index} of {count} is missing ({} bytes of it are there): {end:?} after {} to {}",
                    rest.len(),
                    sent.len(),
                    says.escape_ascii(),
                );
                assert_eq!(end, Some(End::Orderly));
            }
        }
        return heard;
    }
    assert!(rest.is_empty(), "{} bytes after the last answer", rest.len());
    if disturbance == Disturbance::Nothing {
        assert_eq!(end, Some(End::Orderly));
    }
    heard
}

/// Takes an answer from the start of `rest`, and says how long it was; none when it is not whole, and then `rest` is what there is of it.
fn take(rest: &mut &[u8], answer: &Expected, index: usize, is_over: &mut bool) -> Option<(Status, usize)> {
    assert!(!*is_over, "answer {index} after the last one");
    if answer.is_awaited {
        let Some(after) = rest.strip_prefix(CONTINUE) else {
            assert!(CONTINUE.starts_with(rest), "answer {index} comes before the body");
            return None;
        };
        *rest = after;
    }
    let answers = std::iter::successors(Some(answer), |answer| answer.otherwise.as_deref());
    for (answer, head) in answers.flat_map(|answer| answer.heads().map(move |head| (answer, head))) {
        if rest.len() < head.len() && head.starts_with(rest) {
            return None;
        }
        let Some(sent) = rest.strip_prefix(&head[..]) else { continue };
        let (body, sent_len) = answer.decode(sent);
        assert!(answer.body.starts_with(&body), "answer {index} has other bytes");
        // Only the reset tells that one without bounds is not whole.
        if answer.breaks && answer.bounds == Bounds::Close {
            return None;
        }
        let sent_len = sent_len?;
        assert!(!answer.breaks, "answer {index} cannot be whole");
        assert_eq!(body.len(), answer.body.len(), "answer {index} has another length");
        *is_over = memchr::memmem::find(&head, b"Connection: close").is_some();
        assert!(
            *is_over || answer.bounds != Bounds::Close,
            "answer {index} does not say that it ends like that"
        );
        *rest = &sent[sent_len..];
        return Some((answer.status, head.len() + sent_len));
    }
    panic!("answer {index} has another head: {}", rest[..rest.len().min(300)].escape_ascii());
}

/// A worker, as [`crate::ring::reactor`] has it, but with a clock that is turned by hand.
pub struct World {
    /// The kernel.
    pub sim: Sim,
    /// Where buffers come from.
    pub pool: Pool,
    ledger: Ledger,
    seed: u64,
    random: Random,
    planner: Planner,
    connections: BTreeMap<u32, Connection>,
    submissions: Vec<Submission>,
    now_s: u64,
    /// What the peers say, and what was done to them.
    peers: Vec<(Vec<u8>, Disturbance)>,
    /// How many buffers somebody else has: for packing, and for bodies that come.
    reserved: [usize; 2],
    /// Whether messages wait for [`World::settle`].
    pub is_silent: bool,
}

impl World {
    /// An empty world.
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut sim = Sim::new(seed ^ 1, faults);
        for index in 0..FILE_LENS.len() {
            for flaw in FLAWS.into_iter().filter(|&flaw| flaw != Flaw::Missing) {
                let file = File { index, flaw };
                sim.add_file(file.path(), file.simulated());
            }
        }
        let planner = Planner {
            seed,
            directory: sim.directory(),
            asked: HashSet::new(),
            pending: Vec::new(),
            uploads: HashMap::new(),
            looking: Vec::new(),
            creator: sim.creator(),
            lazy: Vec::new(),
            witnessed: Rc::default(),
        };
        let ledger = Ledger::new(Arc::default(), sim.time().instant);
        Self {
            sim,
            pool: Pool::default(),
            ledger,
            seed,
            random: Random(seed ^ 2),
            planner,
            connections: BTreeMap::new(),
            submissions: Vec::new(),
            now_s: 0,
            peers: Vec::new(),
            reserved: [0; 2],
            is_silent: false,
        }
    }

    /// Takes so many pack buffers out of use.
    pub fn reserve(&mut self, count: usize) {
        self.reserved[0] += self.pool.packs.withhold(count);
    }

    /// Takes so many buffers for bodies that come out of use.
    pub fn reserve_intakes(&mut self, count: usize) {
        self.reserved[1] += self.pool.intakes.withhold(count);
    }

    /// Puts all of them into use again.
    pub fn unreserve(&mut self) {
        let [packs, intakes] = std::mem::take(&mut self.reserved);
        (0..packs).for_each(|_| self.pool.packs.lost());
        (0..intakes).for_each(|_| self.pool.intakes.lost());
    }

    /// A peer connects; its index.
    pub fn connect(&mut self, peer: Peer) -> usize {
        let index = self.peers.len();
        let is_cut = peer.resets_at.is_some() || matches!(peer.reading, super::Reading::UpTo(_));
        let disturbance = if is_cut { Disturbance::Cut } else { Disturbance::Nothing };
        self.peers.push((peer.says.clone(), disturbance));
        let socket = self.sim.connect(peer);
        let slot = u32::try_from(index).unwrap_or(u32::MAX);
        let id = ConnectionId { slot, generation: 1 };
        let mut context = Context {
            service: &mut self.planner,
            submissions: &mut self.submissions,
            pool: &mut self.pool,
            ledger: &mut self.ledger,
            date: DATE,
            now_s: self.now_s,
            sendfile_len_max: SENDFILE_LEN_MAX,
        };
        self.connections.insert(slot, Connection::new(id, socket, &mut context));
        index
    }

    /// A peer goes on talking.
    #[cfg(test)]
    pub fn say(&mut self, index: usize, says: &[u8]) {
        self.peers[index].0.extend_from_slice(says);
        self.sim.socket_mut(index).say(says);
    }

    /// How long the body is that is answered at once to `/<target>`, when it can be sent and nothing delays it.
    #[cfg(test)]
    pub fn answer_len(seed: u64, target: u32) -> Option<usize> {
        let plan = Plan::of(seed, format!("/{target}").as_bytes());
        let is_small = |segment: &Segment| !matches!(segment, Segment::File(file, _) if file.index > 5);
        let is_small = match &plan.content {
            Content::Stream { segments, .. } => segments.iter().all(is_small),
            Content::Bytes(_) | Content::Opened(_) => false,
        };
        let expected = plan.body();
        (plan.timing == Timing::Now && is_small && !expected.breaks).then_some(expected.body.len())
    }

    /// Whether a message brings the answer to `/<target>`.
    #[cfg(test)]
    pub fn answers_later(seed: u64, target: u32) -> bool {
        Plan::of(seed, format!("/{target}").as_bytes()).timing == Timing::Later
    }

    /// Whether the body of a PUT of `/<target>` is taken to its end, and into a file.
    #[cfg(test)]
    pub fn takes(seed: u64, target: usize) -> bool {
        let plan = Plan::of(seed, format!("/{target}").as_bytes());
        plan.taking
            .is_some_and(|taking| taking.has_file && taking.room.is_none() && taking.refused_at.is_none())
    }

    /// Whether a PUT of `/<target>` is answered at once, and shortly.
    #[cfg(test)]
    pub fn refuses(seed: u64, target: usize) -> bool {
        let plan = Plan::of(seed, format!("/{target}").as_bytes());
        plan.taking.is_none() && plan.timing == Timing::Now && matches!(plan.content, Content::Bytes(_))
    }

    /// Whether everybody has gone.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// The indexes of the peers that are connected.
    pub fn connected(&self) -> Vec<usize> {
        self.connections.keys().map(|&slot| slot as usize).collect()
    }

    /// One turn of the worker's loop, and perhaps a message.
    pub fn turn(&mut self) {
        for submission in self.submissions.drain(..) {
            self.sim.submit(submission);
        }
        let waited_since = self.sim.wait(None).expect("a simulation does not fail");
        self.ledger.turn(waited_since, self.sim.time().instant, self.sim.take_traffic());
        while let Some(Completion { token, outcome }) = self.sim.next_completion() {
            let Token::Connection(id, purpose) = token else { panic!("{token:?} was not asked for") };
            let Some(connection) = self.connections.get_mut(&id.slot) else {
                panic!("{id:?} was dropped early")
            };
            let mut context = Context {
                service: &mut self.planner,
                submissions: &mut self.submissions,
                pool: &mut self.pool,
                ledger: &mut self.ledger,
                date: DATE,
                now_s: self.now_s,
                sendfile_len_max: SENDFILE_LEN_MAX,
            };
            connection.complete(purpose, outcome, &mut context);
            self.remove_closed(id.slot);
        }
        self.feed();
        if !self.is_silent && self.random.chance(40) {
            self.message();
        }
    }

    /// As the reactor does it.
    fn feed(&mut self) {
        loop {
            if let Some(id) = self.pool.next_fed() {
                self.with(id.slot, Connection::feed);
            } else if let Some(id) = self.pool.next_keeper() {
                self.with(id.slot, Connection::surrender);
            } else {
                return;
            }
        }
    }

    fn with(&mut self, slot: u32, event: impl FnOnce(&mut Connection, &mut Context<'_>)) {
        let Some(connection) = self.connections.get_mut(&slot) else { return };
        let mut context = Context {
            service: &mut self.planner,
            submissions: &mut self.submissions,
            pool: &mut self.pool,
            ledger: &mut self.ledger,
            date: DATE,
            now_s: self.now_s,
            sendfile_len_max: SENDFILE_LEN_MAX,
        };
        event(connection, &mut context);
        self.remove_closed(slot);
    }

    fn remove_closed(&mut self, slot: u32) {
        if self.connections.get(&slot).is_some_and(Connection::is_closed)
            && let Some(connection) = self.connections.remove(&slot)
        {
            connection.bury(&mut self.pool, &self.ledger);
        }
    }

    /// An answer that was awaited, a piece that was looked at, or a body that knows more. False when nobody waits for a message.
    pub fn message(&mut self) -> bool {
        let Planner { pending, looking, lazy, .. } = &mut self.planner;
        let (pending_len, looking_len) = (pending.len(), looking.len());
        let count = pending_len + looking_len + lazy.len();
        if count == 0 {
            return false;
        }
        let index = self.random.below(count);
        if index < pending_len {
            let (id, next) = pending.swap_remove(index);
            let answer = self.planner.say(id, next);
            self.with(id.slot, |connection, context| connection.answer(answer, context));
        } else if index < pending_len + looking_len {
            let (id, piece) = looking.swap_remove(index - pending_len);
            drop(piece);
            match self.planner.look(id) {
                Some(answer) => self.with(id.slot, |connection, context| connection.answer(answer, context)),
                None => self.with(id.slot, Connection::looked_at),
            }
        } else {
            let (id, known, len) = lazy.swap_remove(index - pending_len - looking_len);
            let more = self.random.pick(&[1, 5_000, len]);
            known.set(len.min(known.get() + more));
            if known.get() < len && Rc::strong_count(&known) > 1 {
                self.planner.lazy.push((id, known, len));
            }
            self.with(id.slot, Connection::resume);
        }
        true
    }

    /// Goes on until nothing can happen unless time passes.
    pub fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            self.turn();
            if self.submissions.is_empty() && self.sim.is_stuck() {
                let is_held_back =
                    self.reserved[0] == 0 && self.sim.sockets().iter().any(Socket::is_held_back);
                assert!(!is_held_back, "a peer waits for what was sent");
                if !self.message() {
                    return;
                }
            }
        }
        panic!("it goes round in circles");
    }

    /// Time passes.
    pub fn pass(&mut self, seconds: u64) {
        self.now_s += seconds;
        self.sim.pass(seconds);
        let slots: Vec<_> = self.connections.keys().copied().collect();
        for slot in slots {
            self.with(slot, Connection::tick);
        }
    }

    /// The worker ends.
    pub fn drain(&mut self) {
        let slots: Vec<_> = self.connections.keys().copied().collect();
        for slot in slots {
            self.disturb(slot as usize, Disturbance::Drained);
            self.with(slot, Connection::drain);
        }
    }

    /// A connection is ended at once.
    pub fn terminate(&mut self, index: usize) {
        self.disturb(index, Disturbance::Cut);
        let farewell = if self.random.chance(50) { Farewell::Reset } else { Farewell::Evicted };
        let slot = u32::try_from(index).unwrap_or(u32::MAX);
        self.with(slot, |connection, context| connection.terminate(farewell, context));
    }

    fn disturb(&mut self, index: usize, disturbance: Disturbance) {
        let of_peer = &mut self.peers[index].1;
        *of_peer = disturbance.max(*of_peer);
    }

    /// Some of a life: buffers may be rare, and connections may be ended at any moment.
    pub fn live(&mut self, random: &mut Random) {
        if random.chance(40) {
            self.reserve(PACK_BUFFERS_MAX - 1 - random.below(2));
        }
        if random.chance(40) {
            self.reserve_intakes(INTAKE_BUFFERS_MAX - 1 - random.below(2));
        }
        let ends_early = random.chance(30);
        for _ in 0..random.below(300) {
            self.turn();
            match random.below(100) {
                0 if ends_early => self.drain(),
                1..=2 if ends_early && !self.is_empty() => self.terminate(random.pick(&self.connected())),
                3 => self.pass(0),
                _ => {}
            }
        }
    }

    /// Lets time pass until everybody has gone, and checks that nothing is left and everybody heard what they should.
    pub fn end(mut self) {
        let mut waited_s = 0;
        self.settle();
        while !self.is_empty() {
            assert!(waited_s < PATIENCE_S, "{:?} wait for nothing", self.connected());
            self.pass(50);
            waited_s += 50;
            self.settle();
        }
        assert!(self.planner.asked.is_empty() && self.planner.pending.is_empty(), "nobody was told");
        self.unreserve();
        assert!(self.planner.uploads.is_empty(), "bodies are being taken");
        assert_eq!(self.pool.packs.out(), 0, "pack buffers are out");
        assert_eq!(self.pool.intakes.out(), 0, "buffers for bodies are out");
        for submission in self.submissions.drain(..) {
            self.sim.submit(submission);
        }
        let witnessed = self.planner.witnessed.take();
        drop(self.planner);
        self.sim.assert_at_rest();
        // What is handed to the kernel last is seen when the turn ends.
        self.ledger.turn(self.sim.time().instant, self.sim.time().instant, self.sim.take_traffic());
        let mut heard = Vec::new();
        for (index, (says, disturbance)) in self.peers.iter().enumerate() {
            let socket = self.sim.socket(index);
            heard.push(check(self.seed, says, socket.sent(), socket.end(), *disturbance));
            let asked = witnessed.get(&u32::try_from(index).unwrap_or(u32::MAX));
            check_endings(asked.map_or(&[], Vec::as_slice), &heard[index], *disturbance);
        }
        check_figures(&self.ledger, &self.sim, &self.peers, &heard, &witnessed);
    }
}

/// Checks what the witnesses of a connection's requests were told.
fn check_endings(asked: &[Witnessed], heard: &Heard, disturbance: Disturbance) {
    let is_cut = disturbance == Disturbance::Cut;
    for (index, Witnessed { ending, .. }) in asked.iter().enumerate() {
        let ending = ending.expect("each is told once");
        match (heard.answers.get(index), ending.status) {
            (Some(&(status, len)), _) => {
                assert_eq!((ending.status, ending.sent_len_bytes), (Some(status), len as u64));
                // Perhaps the last byte was taken when it was given up.
                assert!(ending.is_whole || is_cut, "{ending:?} of a whole answer");
            }
            (None, None) => assert_eq!((ending.sent_len_bytes, ending.is_whole), (0, false)),
            // It was put behind others, and went as far as they did.
            (None, Some(_)) if ending.is_whole => assert!(is_cut, "{ending:?} was not heard"),
            (None, Some(_)) => {
                let is_next = index == heard.answers.len();
                assert_eq!(ending.sent_len_bytes, if is_next { heard.rest_len as u64 } else { 0 });
            }
        }
    }
}

/// Checks what was counted: against what peers have heard, and what witnesses were told.
fn check_figures(
    ledger: &Ledger,
    sim: &Sim,
    peers: &[(Vec<u8>, Disturbance)],
    heard: &[Heard],
    witnessed: &BTreeMap<u32, Vec<Witnessed>>,
) {
    let figures = ledger.figures();
    figures.assert_at_rest();
    assert_eq!(figures.opened.get(), peers.len() as u64);
    let is_cut = peers.iter().any(|(_, disturbance)| *disturbance == Disturbance::Cut);
    let is_equal = |counted: u64, heard: u64| if is_cut { counted >= heard } else { counted == heard };

    let sent_len: u64 = sim.sockets().iter().map(|socket| socket.sent().len() as u64).sum();
    assert_eq!(figures.sends.iter().map(|way| way.sent_bytes.get()).sum::<u64>(), sent_len);
    assert_eq!(figures.sends[Way::SendFile as usize].sent_bytes.get(), sim.file_sent_len);
    let cold_reads = figures.cold_reads.get();
    // Who is being closed does not read.
    assert!(if is_cut { cold_reads <= sim.cold_count } else { cold_reads == sim.cold_count });
    assert!(sim.cold_count > 0 || figures.sends[Way::Read as usize].count.get() == 0);
    let answers_len: u64 = figures.topics.iter().map(|topic| topic.sent_bytes.get()).sum();
    assert!(is_equal(answers_len, sent_len), "{answers_len} bytes of answers in {sent_len}");

    let asked = || witnessed.values().flatten();
    for status in Status::ALL {
        let counted = |topic: Topic| figures.topics[usize::from(topic.0)].statuses[status.index()].get();
        for topic in [GET, PUT] {
            let is_it = |asked: &&Witnessed| {
                asked.topic == topic && asked.ending.is_some_and(|ending| ending.status == Some(status))
            };
            assert_eq!(counted(topic), asked().filter(is_it).count() as u64, "{status:?} of {topic:?}");
        }
        // What is answered without having been asked of the service is no request.
        let refused = heard.iter().enumerate().flat_map(|(index, heard)| {
            let asked = witnessed.get(&u32::try_from(index).unwrap_or(u32::MAX)).map_or(0, Vec::len);
            heard.answers.iter().skip(asked).filter(|(heard, _)| *heard == status)
        });
        assert!(is_equal(counted(Topic::MALFORMED), refused.count() as u64), "{status:?} of no request");
    }
    let malformed = total(&figures.topics[usize::from(Topic::MALFORMED.0)].statuses);
    assert_eq!(figures.begun.get(), malformed + asked().count() as u64);

    let truncated = asked().filter_map(|asked| asked.ending);
    let truncated = truncated.filter(|ending| ending.status.is_some() && !ending.is_whole).count() as u64;
    assert_eq!(total(&figures.truncated), truncated);
    let closed = |farewell: Farewell| figures.closed[farewell as usize].get();
    assert_eq!(figures.truncated[Truncation::Body as usize].get(), closed(Farewell::BrokenBody));
    if !is_cut {
        // Nothing but a body that is broken ends anything early then.
        assert_eq!(closed(Farewell::BrokenBody), truncated);
        let resets = sim.sockets().iter().filter(|socket| socket.end() == Some(End::Reset)).count();
        assert_eq!(closed(Farewell::BrokenBody), resets as u64);
        let others = [Farewell::Reset, Farewell::Slow, Farewell::Evicted];
        assert_eq!(others.map(closed), [0; 3]);
    }
}

/// Whatever a peer says is answered as the oracle says, and leaves nothing behind.
pub fn fuzz_connection(data: &[u8]) {
    let Some((seed, says)) = data.split_first_chunk() else { return };
    let seed = u64::from_ne_bytes(*seed);
    let mut random = Random(seed);
    let mut world = World::new(seed, Faults::drawn(&mut random));
    world.connect(Peer {
        says: says.to_vec(),
        ending: if random.chance(50) { super::Ending::HalfClose } else { super::Ending::Silence },
        reading: super::Reading::Eager,
        resets_at: None,
        is_polite: random.chance(50),
    });
    world.live(&mut random);
    world.end();
}
