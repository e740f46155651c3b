//! The table of HTTP cases, against a connection on the simulated ring: whole, byte by byte, cut at every offset, and through faults.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rustix::io::Errno;

use super::{End, Ending, Faults, Peer, Random, Reading, Sim};
use crate::codec::http::body::fuzz_body;
use crate::codec::http::request::{BodyLength, Request, fuzz_head};
use crate::codec::http::response::Fields;
use crate::codec::http::{Method, Status};
use crate::limits::SENDFILE_LEN_MAX;
use crate::ring::Driver as _;
use crate::ring::connection::{Connection, Context};
use crate::ring::ledger::Ledger;
use crate::ring::op::{Completion, ConnectionId, OpenedFile, Submission, Token};
use crate::ring::pool::Pool;
use crate::ring::service::{Answer, Called, Caller, Reply, Service};

#[path = "../../../tests/it/conformance/cases.rs"]
mod cases;

use cases::{CANARY, Case, SONG, cases};

const ID: ConnectionId = ConnectionId { slot: 0, generation: 1 };

/// Turns in which every case comes to its end.
const TURNS_MAX: usize = 20_000;

/// A request longer than this is not cut everywhere: most of it is one letter.
const CUT_EVERYWHERE_LEN_MAX: usize = 600;

/// Answers as the server does to these requests.
#[derive(Default)]
struct Policy {
    /// Whether a piece of a body waits to be looked at.
    has_piece: bool,
}

impl Policy {
    fn reply(request: &Request<'_>) -> Option<Reply> {
        let not_allowed =
            || Reply::text_with(Status::MethodNotAllowed, Fields::new().allow("GET, HEAD"), "no\n");
        let path = request.target.split(|&byte| byte == b'?').next().unwrap_or_default();
        Some(match (request.method, path) {
            (Method::Other, _) => Reply::text(Status::NotImplemented, "what?\n"),
            (Method::Get | Method::Head, b"/") => Reply::text(Status::Ok, "here\n"),
            (Method::Get | Method::Head, b"/version") => Reply::text(Status::Ok, SONG),
            (Method::Get | Method::Head, _) => Reply::text(Status::NotFound, "no\n"),
            (Method::Put, path) if path.starts_with(b"/log/") => match request.body_length() {
                _ if request.content_range.is_some() => Reply::text(Status::BadRequest, "a part\n"),
                BodyLength::None => Reply::text(Status::LengthRequired, "how much?\n"),
                BodyLength::Length(len) if len > 1 << 20 => {
                    Reply::text(Status::ContentTooLarge, "so much!\n")
                }
                BodyLength::Length(_) | BodyLength::Chunked => return None,
            },
            _ => not_allowed(),
        })
    }
}

impl Service for Policy {
    fn call(&mut self, _: &Caller<'_>, request: &Request<'_>) -> Called {
        Self::reply(request).map_or(Answer::Receive { file: None }, Answer::Reply).into()
    }

    fn opened(&mut self, _: ConnectionId, _: Result<OpenedFile, Errno>) -> Answer {
        unreachable!("nothing is opened")
    }

    fn body(&mut self, _: ConnectionId, _: Bytes) {
        assert!(!std::mem::replace(&mut self.has_piece, true), "one piece at a time");
    }

    fn received(&mut self, _: ConnectionId) -> Answer {
        Answer::Reply(Reply::text(Status::Created, "thank you\n"))
    }

    fn unwritten(&mut self, _: ConnectionId, _: Errno) -> Answer {
        unreachable!("nothing is written")
    }

    fn gone(&mut self, _: ConnectionId) {}
}

/// A connection and its peer, who says the pieces one after another: each when the one before it was taken.
struct Bench {
    sim: Sim,
    policy: Policy,
    pool: Pool,
    ledger: Ledger,
    submissions: Vec<Submission>,
    connection: Option<Connection>,
}

impl Bench {
    fn new(seed: u64, faults: Faults) -> Self {
        let mut sim = Sim::new(seed, faults);
        let (says, ending) = (Vec::new(), Ending::Silence);
        let socket =
            sim.connect(Peer { says, ending, reading: Reading::Eager, resets_at: None, is_polite: true });
        let mut bench = Self {
            sim,
            policy: Policy::default(),
            pool: Pool::default(),
            ledger: Ledger::new(Arc::default(), Instant::now()),
            submissions: Vec::new(),
            connection: None,
        };
        let mut context =
            Self::context(&mut bench.policy, &mut bench.submissions, &mut bench.pool, &mut bench.ledger);
        bench.connection = Some(Connection::new(ID, socket, &mut context));
        bench
    }

    fn context<'a>(
        policy: &'a mut Policy,
        submissions: &'a mut Vec<Submission>,
        pool: &'a mut Pool,
        ledger: &'a mut Ledger,
    ) -> Context<'a> {
        let (date, now_s) = (b"Sun, 06 Nov 1994 08:49:37 GMT", 0);
        let sendfile_len_max = SENDFILE_LEN_MAX;
        Context { service: policy, submissions, pool, ledger, date, now_s, sendfile_len_max }
    }

    fn turn(&mut self) {
        self.submissions.drain(..).for_each(|submission| self.sim.submit(submission));
        let waited_since = self.sim.wait(None).unwrap();
        self.ledger.turn(waited_since, self.sim.time().instant, self.sim.take_traffic());
        while let Some(connection) = &mut self.connection {
            let Some(Completion { token, outcome }) = self.sim.next_completion() else { break };
            let Token::Connection(ID, purpose) = token else { panic!("{token:?}") };
            let Self { policy, submissions, pool, ledger, .. } = self;
            connection.complete(purpose, outcome, &mut Self::context(policy, submissions, pool, ledger));
            while std::mem::take(&mut policy.has_piece) {
                connection.looked_at(&mut Self::context(policy, submissions, pool, ledger));
            }
            if connection.is_closed() {
                self.connection.take().unwrap().bury(&mut self.pool, &self.ledger);
            }
        }
    }

    /// What is answered to all pieces, until the connection ends.
    fn answers(mut self, pieces: &[&[u8]]) -> Vec<u8> {
        let mut turns = 0..TURNS_MAX;
        for piece in pieces {
            let socket = self.sim.socket_mut(0);
            socket.peer.says.extend_from_slice(piece);
            // All of it at once.
            socket.said_len = socket.peer.says.len();
            while self.sim.socket(0).taken_len < self.sim.socket(0).said_len && self.connection.is_some() {
                turns.next().expect("it takes what is said");
                self.turn();
            }
        }
        self.sim.socket_mut(0).peer.ending = Ending::HalfClose;
        while self.sim.socket(0).end().is_none() {
            turns.next().expect("it ends");
            self.turn();
        }
        assert_eq!(self.sim.socket(0).end(), Some(End::Orderly));
        self.sim.assert_at_rest();
        assert_eq!((self.pool.packs.out(), self.pool.intakes.out()), (0, 0), "all buffers are back");
        self.ledger.figures().assert_at_rest();
        self.sim.socket(0).sent().to_vec()
    }
}

fn judge(case: &Case, how: &str, pieces: &[&[u8]], seed: u64, faults: Faults) {
    let answers = Bench::new(seed, faults).answers(pieces);
    if let Err(fault) = case.judge(&answers) {
        panic!(
            "{}, {how}: {fault}\nsaid: {}\nheard: {}",
            case.name,
            pieces.concat().escape_ascii(),
            answers.escape_ascii()
        );
    }
}

/// The request and the canary behind it.
fn says(case: &Case) -> Vec<u8> {
    [case.request(0), CANARY.into()].concat()
}

/// Where it is cut: everywhere, or where something that is long begins and ends, and sometimes between.
fn cuts(len: usize) -> impl Iterator<Item = usize> {
    let is_wanted = move |&cut: &usize| {
        len <= CUT_EVERYWHERE_LEN_MAX || cut < 100 || len - cut < 200 || cut.is_multiple_of(509)
    };
    (1..len).filter(is_wanted)
}

#[test]
fn every_case_is_answered_right() {
    for case in cases() {
        judge(&case, "whole", &[&says(&case)], 0, Faults::default());
    }
}

#[test]
fn every_case_is_answered_alike_byte_by_byte() {
    for case in cases() {
        let says = says(&case);
        let pieces: Vec<_> = says.chunks(if says.len() > CUT_EVERYWHERE_LEN_MAX { 7 } else { 1 }).collect();
        judge(&case, "byte by byte", &pieces, 0, Faults::default());
    }
}

#[test]
fn every_case_is_answered_alike_cut_anywhere() {
    for case in cases() {
        let says = says(&case);
        for cut in cuts(says.len()) {
            judge(&case, &format!("cut at {cut}"), &[&says[..cut], &says[cut..]], 0, Faults::default());
        }
    }
}

#[test]
fn every_case_is_answered_alike_through_faults() {
    for case in cases() {
        let says = says(&case);
        for seed in 0..6 {
            let mut random = Random(seed);
            let faults = Faults::drawn(&mut random);
            let pieces: Vec<_> = says.chunks(1 + random.below(says.len())).collect();
            judge(&case, &format!("seed {seed}"), &pieces, seed, faults);
        }
    }
}

/// What is in the table, and what is a byte or two beside it, is what the oracles of the codecs begin with.
#[test]
fn every_case_is_read_as_the_oracles_read_it() {
    let mut random = Random(1);
    for case in cases() {
        let says = case.request(0);
        for changes in 0..40 {
            let mut says = says.clone();
            for _ in 0..changes.min(3) {
                let at = random.below(says.len());
                match random.below(3) {
                    0 => says[at] = random.pick(b"\r\n\t :;,=\"/0aH\0\x7f\xff"),
                    1 => says.insert(at, random.pick(b"\r\n\t :;,=\"/0aH\0\x7f\xff")),
                    _ => drop(says.remove(at)),
                }
            }
            fuzz_head(&says);
            let body = memchr::memmem::find(&says, b"\r\n\r\n").map_or(0, |head_len| head_len + 4);
            fuzz_body(&[&[3], &says[body..]].concat());
        }
    }
}

#[test]
fn the_judge_sees_what_is_wrong() {
    let cases = cases();
    let case = |name: &str| cases.iter().find(|case| case.name == name).unwrap();
    let answers = |name: &str| Bench::new(0, Faults::default()).answers(&[&says(case(name))]);
    for (name, other) in [
        ("plain", "lf-before"),
        ("lf-before", "plain"),
        ("lf-before", "close"),
        ("close", "plain"),
        ("plain", "close"),
        ("pipeline", "plain"),
        ("plain", "pipeline"),
        ("head", "plain"),
        ("expect-continue", "length"),
        ("length", "expect-continue"),
    ] {
        assert!(case(name).judge(&answers(name)).is_ok());
        assert!(case(name).judge(&answers(other)).is_err(), "{name} is not {other}");
    }
    let (mut doubled, cut) = (answers("plain"), answers("plain"));
    doubled.extend_from_within(..);
    assert!(case("plain").judge(&doubled).is_err() && case("plain").judge(&cut[..cut.len() - 1]).is_err());
}
