//! Thousands of small worlds, and the cases that deserve a name.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;

use super::world::{Disturbance, World, check};
use super::*;
use crate::codec::http::Status;
use crate::codec::http::request::Request;
use crate::codec::http::response::Fields;
use crate::limits::{
    HEAD_TIMEOUT_S, IDLE_TIMEOUT_S, INPUT_LEN_MAX, LINGER_TIMEOUT_S, PACK_BUFFERS_MAX, PROGRESS_TIMEOUT_S,
};
use crate::ring::body::{Body, Lookup};
use crate::ring::inbox::{Mailbox, inbox};
use crate::ring::op::ConnectionId;
use crate::ring::reactor::{Message, Peers, Reactor};
use crate::ring::service::{Answer, Caller, Effects, Node, Reply, ReplyBody, Service};

/// Worlds of one run.
const SEEDS: u64 = 1_500;

fn peer(says: impl Into<Vec<u8>>) -> Peer {
    let ending = Ending::HalfClose;
    Peer { says: says.into(), ending, reading: Reading::Eager, resets_at: None, is_polite: true }
}

/// Requests as a seed wants them: mostly good ones.
fn says(random: &mut Random) -> Vec<u8> {
    let mut says = Vec::new();
    for _ in 0..random.below(12) {
        let method = random.pick(&["GET", "GET", "GET", "HEAD"]);
        let version = ["HTTP/1.1", "HTTP/1.0"][random.below(10) / 9];
        let fields = match random.below(40) {
            0 => "Connection: close\r\n",
            1 => "Content-Length: 5\r\n",
            2..=9 => "Connection: keep-alive\r\n",
            _ => "",
        };
        let target = random.below(1_000);
        says.extend(format!("{method} /{target} {version}\r\nHost: here\r\n{fields}\r\n").into_bytes());
    }
    match random.below(20) {
        0 => says.extend_from_slice(b"GET / HTTP/9.9\r\n\r\nand more"),
        1 => says.extend_from_slice(b"\x16\x03\x01"),
        2 => says.extend_from_slice(b"GET /half HTTP/1.1\r\nHos"),
        _ => {}
    }
    says
}

fn drawn_peer(random: &mut Random) -> Peer {
    Peer {
        says: says(random),
        ending: if random.chance(50) { Ending::HalfClose } else { Ending::Silence },
        reading: match random.below(10) {
            0 => Reading::UpTo(random.below(500_000)),
            1..=3 => Reading::Slow(5_000 + random.below(200_000)),
            _ => Reading::Eager,
        },
        resets_at: random.chance(10).then(|| random.below(300_000)),
        is_polite: random.chance(80),
    }
}

/// One world: everything in it follows from the seed.
fn run(seed: u64) {
    let mut random = Random(seed);
    let mut world = World::new(seed, Faults::drawn(&mut random));
    for _ in 0..=random.below(4) {
        world.connect(drawn_peer(&mut random));
    }
    world.live(&mut random);
    world.end();
}

/// Seeds decide everything. `NARWIRE_SIM_SEED` runs one of them again.
#[test]
fn every_request_is_answered_whole_or_not_at_all() {
    let seeds = match std::env::var("NARWIRE_SIM_SEED") {
        Ok(seed) => {
            let seed = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => 0..SEEDS,
    };
    for seed in seeds {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("NARWIRE_SIM_SEED={seed} runs this again");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Requests in which bytes were changed: what the fuzzer begins with.
#[test]
fn whatever_a_peer_says_is_answered_as_the_oracle_says() {
    for seed in 0..SEEDS / 3 {
        let mut random = Random(seed);
        let mut data = seed.to_ne_bytes().to_vec();
        data.extend(says(&mut random));
        for _ in 0..random.below(3) {
            let at = random.below(data.len());
            data[at] = random.pick(b"\r\n :/\0G1,\xff");
        }
        fuzz_connection(&data);
    }
}

/// A world without a fault.
fn calm() -> World {
    World::new(0, Faults::default())
}

/// Requests for these targets.
fn gets(targets: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let get = |target| format!("GET /{target} HTTP/1.1\r\nHost: here\r\n\r\n").into_bytes();
    targets.into_iter().flat_map(get).collect()
}

fn silent(says: impl Into<Vec<u8>>) -> Peer {
    Peer { ending: Ending::Silence, ..peer(says) }
}

#[test]
fn what_was_asked_before_the_peer_ended_its_side_is_answered() {
    for count in 0..40 {
        let mut world = calm();
        world.connect(peer(gets(0..count)));
        world.settle();
        assert!(world.is_empty(), "no deadline is needed");
        world.end();
    }
}

#[test]
fn after_a_bad_request_the_end_of_our_side_comes_before_the_close() {
    let mut world = calm();
    let index = world
        .connect(Peer { is_polite: false, ..silent("GET / HTTP/9.9\r\n\r\nand what else it has to say") });
    world.settle();
    let socket = world.sim.socket(index);
    assert!(socket.is_shut() && socket.end().is_none(), "it lingers");
    assert!(socket.sent().starts_with(b"HTTP/1.1 505 "));
    world.pass(LINGER_TIMEOUT_S);
    assert!(!world.is_empty());
    world.pass(1);
    world.settle();
    assert!(world.is_empty());
    world.end();
}

#[test]
fn a_peer_that_closes_ends_the_lingering() {
    let mut world = calm();
    world.connect(silent("GET / HTTP/9.9\r\n\r\n"));
    world.settle();
    assert!(world.is_empty());
    world.end();
}

#[test]
fn an_idle_connection_is_closed() {
    let mut world = calm();
    let index = world.connect(silent(gets([1])));
    world.settle();
    world.pass(IDLE_TIMEOUT_S);
    assert!(!world.is_empty());
    world.pass(1);
    world.settle();
    assert_eq!(world.sim.socket(index).end(), Some(End::Orderly));
    world.end();
}

#[test]
fn a_head_that_does_not_end_is_answered_408_however_it_drips() {
    let mut world = calm();
    let index = world.connect(silent("GET /half"));
    world.settle();
    for _ in 0..HEAD_TIMEOUT_S {
        world.pass(1);
        world.say(index, b"f");
        world.settle();
        assert!(world.sim.socket(index).sent().is_empty());
    }
    world.pass(1);
    world.settle();
    assert!(world.sim.socket(index).sent().starts_with(b"HTTP/1.1 408 "));
    assert!(world.is_empty());
    world.end();
}

/// The first target whose answer is longer than a socket's buffers, streamed from memory or small files.
fn long_target() -> u32 {
    (0..10_000)
        .find(|&target| World::answer_len(0, target).is_some_and(|len| len > 2 * SOCKET_BUFFER_LEN))
        .unwrap()
}

#[test]
fn a_peer_that_stops_reading_is_reset() {
    let mut world = calm();
    let index = world.connect(Peer { reading: Reading::UpTo(1_000), ..silent(gets([long_target()])) });
    world.settle();
    world.pass(PROGRESS_TIMEOUT_S);
    world.settle();
    assert!(!world.is_empty());
    world.pass(1);
    world.settle();
    assert!(world.is_empty());
    world.settle();
    assert_eq!(world.sim.socket(index).end(), Some(End::Reset));
    world.end();
}

#[test]
fn more_transfers_than_buffers_all_end() {
    let mut world = calm();
    for _ in 0..3 * PACK_BUFFERS_MAX {
        world.connect(Peer { reading: Reading::Slow(100_000), ..peer(gets([long_target()])) });
    }
    world.settle();
    assert!(world.is_empty(), "no deadline is needed");
    world.end();
}

#[test]
fn a_peer_that_talks_while_it_waits_for_a_buffer_stands_in_the_queue_once() {
    let mut world = calm();
    world.reserve(PACK_BUFFERS_MAX);
    let index = world.connect(silent(gets([long_target()])));
    for _ in 0..10 {
        world.settle();
        world.say(index, &gets([1]));
    }
    world.unreserve();
    assert!(world.pool.next_fed().is_some());
    assert_eq!(world.pool.next_fed(), None);
}

#[test]
fn peers_that_do_not_read_keep_no_buffer_from_others() {
    let mut world = calm();
    for _ in 0..2 * PACK_BUFFERS_MAX {
        world.connect(Peer { reading: Reading::UpTo(0), ..silent(gets([long_target()])) });
    }
    world.settle();
    let index = world.connect(peer(gets([long_target()])));
    world.settle();
    assert!(world.sim.socket(index).end().is_some(), "it needs no deadline of the others");
    world.end();
}

/// A receive can fail although the connection could still send: the peer must not take half an answer for a whole one.
#[test]
fn half_an_answer_ends_in_a_reset_when_receiving_fails() {
    let mut world = calm();
    let reading = Reading::UpTo(1_000);
    let index = world.connect(Peer { reading, ..silent(gets([long_target()])) });
    world.settle();
    world.sim.socket_mut(index).fail_receive();
    world.settle();
    assert_eq!(world.sim.socket(index).end(), Some(End::Reset));
    world.end();
}

#[test]
fn pipelined_requests_are_received_as_far_as_there_is_room() {
    for seed in 0..3 {
        let mut world = World::new(seed, Faults::default());
        world.is_silent = true;
        let waits = (0..100).find(|&target| World::answers_later(seed, target)).unwrap();
        let index = world.connect(peer(gets(std::iter::once(waits).chain(std::iter::repeat_n(3, 2_000)))));
        for _ in 0..500 {
            world.turn();
        }
        // What is on its way when the kernel is told to stop.
        let on_its_way = 8 * RECEIVE_LEN_MAX;
        assert!(world.sim.socket(index).taken_len() < INPUT_LEN_MAX + on_its_way);
        world.is_silent = false;
        world.settle();
        assert!(world.is_empty(), "all of them are answered");
        world.end();
    }
}

#[test]
#[should_panic(expected = "other bytes")]
fn the_oracle_sees_a_byte_that_is_wrong() {
    let mut world = calm();
    let says = gets([1, 2, 3]);
    let index = world.connect(peer(says.clone()));
    world.settle();
    let mut sent = world.sim.socket(index).sent().to_vec();
    *sent.last_mut().unwrap() ^= 1;
    check(0, &says, &sent, Some(End::Orderly), Disturbance::Cut);
}

#[test]
#[should_panic(expected = "is missing")]
fn the_oracle_sees_an_answer_that_is_cut() {
    let mut world = calm();
    let says = gets([1, 2, 3]);
    let index = world.connect(peer(says.clone()));
    world.settle();
    let sent = world.sim.socket(index).sent();
    check(0, &says, &sent[..sent.len() - 1], Some(End::Orderly), Disturbance::Nothing);
}

/// Answers everything at once, but `/broken`: that has a body which breaks some messages later. When it has answered
/// enough it has its worker drained.
struct Breaker {
    mailbox: Mailbox<Message<u32>>,
    unanswered: usize,
    broken: Option<ConnectionId>,
    is_known: Rc<Cell<bool>>,
}

/// Nothing is known of it, until it is known that there is nothing.
struct BrokenBody {
    is_known: Rc<Cell<bool>>,
}

impl Body for BrokenBody {
    fn piece_at(&mut self, _position: u64) -> Lookup<'_> {
        if self.is_known.get() { Lookup::Broken } else { Lookup::NotYet }
    }
}

impl Service for Breaker {
    fn call(&mut self, caller: &Caller<'_>, request: &Request<'_>) -> Answer {
        let id = caller.id;
        self.unanswered -= 1;
        if self.unanswered == 0 {
            self.mailbox.send(Message::Drain).unwrap();
            self.mailbox.send(Message::Node(20)).unwrap();
        }
        if request.target != b"/broken" {
            return Answer::Reply(Reply::text(Status::Ok, "ok"));
        }
        self.broken = Some(id);
        let body = Box::new(BrokenBody { is_known: Rc::clone(&self.is_known) });
        let fields = Fields::new().content_length(9).finish();
        Answer::Reply(Reply { status: Status::Ok, fields, body: ReplyBody::Stream { body, range: 0..9 } })
    }

    fn opened(&mut self, _id: ConnectionId, _result: Result<OpenedFile, Errno>) -> Answer {
        panic!("nothing was to be opened");
    }

    fn body(&mut self, _: ConnectionId, _: Bytes) {
        unreachable!("no body is asked for")
    }

    fn received(&mut self, _: ConnectionId) -> Answer {
        unreachable!("no body is asked for")
    }

    fn unwritten(&mut self, _: ConnectionId, _: Errno) -> Answer {
        unreachable!("no body is asked for")
    }

    fn gone(&mut self, _id: ConnectionId) {}
}

impl Node for Breaker {
    type Message = u32;

    fn message(&mut self, rest: u32, effects: &mut Effects) {
        if rest > 0 {
            self.mailbox.send(Message::Node(rest - 1)).unwrap();
            return;
        }
        self.is_known.set(true);
        effects.resume.extend(self.broken);
    }

    fn tick(&mut self) {}
}

/// A whole worker: its last connection breaks while it drains, and that still ends in a reset.
#[test]
fn a_worker_ends_when_its_last_connection_has_been_reset() {
    for seed in 0..50 {
        let mut random = Random(seed);
        let mut sim = Sim::new(seed, Faults::drawn(&mut random));
        for _ in 0..9 {
            sim.dial(peer(gets([1, 2, 3])));
        }
        sim.dial(peer("GET /broken HTTP/1.1\r\nHost: here\r\n\r\n"));
        let (mailbox, inbox) = inbox().unwrap();
        let node =
            Breaker { mailbox: mailbox.clone(), unanswered: 28, broken: None, is_known: Rc::default() };
        let peers = Peers {
            connections_max: usize::MAX,
            index: 0,
            loads: Arc::new([AtomicUsize::new(0)]),
            mailboxes: vec![mailbox],
            pulses: Arc::new([AtomicU64::new(0)]),
        };
        let loads = Arc::clone(&peers.loads);
        // Any descriptor does: the simulated ring accepts without it.
        let listener = std::fs::File::open("/dev/null").unwrap().into();
        Reactor::new(&mut sim, node, inbox, vec![listener], peers).unwrap().run().unwrap();
        sim.wait(None).unwrap();
        assert_eq!(loads[0].load(Ordering::Relaxed), 0);
        for index in 0..9 {
            assert_eq!(sim.socket(index).end(), Some(End::Orderly), "seed {seed}");
            assert_eq!(memchr::memmem::find_iter(sim.socket(index).sent(), "HTTP/1.1 200 ").count(), 3);
        }
        assert_eq!(sim.socket(9).end(), Some(End::Reset), "seed {seed}");
    }
}
