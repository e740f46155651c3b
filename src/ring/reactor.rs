//! The loop of one worker: submit, wait, dispatch. It owns everything it touches and shares a counter or two.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use slab::Slab;
use tracing::warn;

use super::admission::{Admission, Place, Visit};
use super::connection::{Connection, Context};
use super::descriptor::Descriptor;
use super::inbox::{Inbox, Mailbox};
use super::ledger::{Farewell, Figures, Ledger, RingLimit};
use super::op::{Completion, ConnectionId, Op, Outcome, Submission, Token};
use super::pool::Pool;
use super::service::{Effects, Node};
use super::{Driver, Time};
use crate::codec::http::date::format_imf_fixdate;
use crate::limits::{COMPLAINT_INTERVAL_S, EVICTION_BATCH, SENDFILE_ALONE_LEN_MAX, SENDFILE_LEN_MAX};
use crate::tally::Tally as _;

/// The time between two looks at the deadlines.
const TICK: Duration = Duration::from_secs(1);

/// What is said to a connection beyond those that its address may have. It is not read first.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nCache-Control: no-store\r\n\
    Content-Type: text/plain; charset=utf-8\r\nContent-Length: 44\r\n\r\ntoo many connections come from your address\n";

/// What other threads tell a worker.
#[derive(Debug)]
pub enum Message<M> {
    /// Another worker has accepted this connection and has more to do than this one.
    Adopt(OwnedFd, Place),
    /// Another worker needs so many places and has no idle connections.
    MakeRoom(usize),
    /// Accept no more, finish what is under way, end.
    Drain,
    /// End all connections as they are. For a worker that drains.
    BreakOff,
    /// For the service.
    Node(M),
}

/// One worker: a driver, a service, and what is between them.
pub struct Reactor<D, N: Node> {
    // It goes before the ring, which takes its time: what is sent to a worker that has ended has to come back to the sender.
    inbox: Inbox<Message<N::Message>>,
    driver: D,
    bell: Descriptor,
    worker: Worker<N>,
}

/// Everything of a worker that a completion can concern; apart from the driver, which lends completions out.
struct Worker<N: Node> {
    node: N,
    listeners: Vec<Listener>,
    connections: Slab<Seated>,
    /// How many connections there have been.
    generation: u64,
    /// Connections that were accepted and have no place: the kernel accepts some more before it hears that it should not.
    lobby: VecDeque<(Descriptor, Visit)>,
    evictions: Evictions,
    /// Whether a connection has gone in this turn.
    has_freed: bool,
    shortage: Complaint,
    crowding: Complaint,
    submissions: Vec<Submission>,
    pool: Pool,
    ledger: Ledger,
    effects: Effects,
    clock: Clock,
    /// Most that one connection sends of a file in one step of this turn: more while it is alone. Bytes.
    sendfile_len_max: usize,
    peers: Peers<N::Message>,
    phase: Phase,
    is_drain_wanted: bool,
}

/// A connection, and the place that it has.
struct Seated {
    connection: Connection,
    _place: Place,
}

/// Connections that make room for others.
#[derive(Default)]
struct Evictions {
    /// Those that were idle longest when it was looked, longest first.
    idle: VecDeque<ConnectionId>,
    /// When that was, if there were no others. Seconds of the worker's clock.
    exhausted_s: Option<u64>,
    /// Connections that were told to go and have not gone, about.
    under_way: usize,
    /// When the other workers were asked, last.
    asked_s: Option<u64>,
}

/// Something that happens often when it happens, and is logged now and then.
#[derive(Default)]
struct Complaint {
    said_s: Option<u64>,
    unsaid: u64,
}

struct Listener {
    /// None while the worker drains: who comes then is refused at once, not left waiting.
    socket: Option<Descriptor>,
    is_armed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
}

/// The workers, as one of them sees them: for an even spread of connections.
///
/// All workers accept from the same listeners, which is the only way with a socket inherited from systemd. The kernel
/// wakes whom it likes, so a connection goes to the worker that has fewest. That costs two atomic additions a connection
/// and nothing a request; PERF.md has the comparison with `SO_REUSEPORT`.
pub struct Peers<M> {
    /// Which of them this one is.
    pub index: usize,
    /// Who may be connected, and how many connections each has.
    pub admission: Arc<Admission>,
    /// How to reach each.
    pub mailboxes: Vec<Mailbox<Message<M>>>,
    /// When each last looked at its deadlines, in ticks: a worker that hangs stands still.
    pub pulses: Arc<[AtomicU64]>,
    /// What this one counts.
    pub figures: Arc<Figures>,
}

impl<D: Driver, N: Node> Reactor<D, N> {
    /// A worker on the calling thread.
    pub fn new(
        driver: D,
        node: N,
        inbox: Inbox<Message<N::Message>>,
        listeners: Vec<OwnedFd>,
        peers: Peers<N::Message>,
    ) -> Result<Self, Errno> {
        let listeners = listeners
            .into_iter()
            .map(|socket| Listener { socket: Some(Descriptor::from(socket)), is_armed: false })
            .collect();
        let bell = Descriptor::from(inbox.bell()?);
        let time = driver.time();
        let worker = Worker {
            node,
            listeners,
            connections: Slab::new(),
            generation: 0,
            lobby: VecDeque::new(),
            evictions: Evictions::default(),
            has_freed: false,
            shortage: Complaint::default(),
            crowding: Complaint::default(),
            submissions: Vec::new(),
            pool: Pool::sharing(peers.admission.exemptions()),
            ledger: Ledger::new(Arc::clone(&peers.figures), time.instant),
            effects: Effects::default(),
            clock: Clock::new(time),
            sendfile_len_max: SENDFILE_LEN_MAX,
            peers,
            phase: Phase::Serving,
            is_drain_wanted: false,
        };
        Ok(Self { inbox, driver, bell, worker })
    }

    /// Serves until it is told to end.
    pub fn run(mut self) -> io::Result<()> {
        self.begin();
        while self.turn()? {}
        Ok(())
    }

    /// Listens: to connections, and to other threads.
    pub fn begin(&mut self) {
        self.worker.await_inbox(&self.bell);
        self.worker.accept();
    }

    /// Submits, waits and dispatches once; false when the worker has ended.
    pub fn turn(&mut self) -> io::Result<bool> {
        // Before the end as well: how the last connections are closed is among them.
        for submission in self.worker.submissions.drain(..) {
            self.driver.submit(submission);
        }
        if self.worker.is_finished() {
            // Another worker may have handed over a connection before it knew.
            self.worker.read_inbox(&self.inbox);
            if self.worker.is_finished() {
                return Ok(false);
            }
        }
        let waited_since = self.driver.wait(Some(TICK))?;
        let time = self.driver.time();
        self.worker.ledger.turn(waited_since, time.instant, self.driver.take_traffic());
        self.worker.clock.advance(time);
        self.dispatch();
        self.worker.feed();
        if std::mem::take(&mut self.worker.has_freed) {
            self.worker.admit();
        }
        if self.worker.clock.ticked() {
            self.worker.tick();
        }
        Ok(true)
    }

    /// Gives every completion to whom it concerns.
    fn dispatch(&mut self) {
        let mut served = 0;
        while let Some(Completion { token, outcome }) = self.driver.next_completion() {
            match (token, outcome) {
                (Token::Connection(id, purpose), outcome) => {
                    served += 1;
                    self.worker
                        .with(id, |connection, context| connection.complete(purpose, outcome, context));
                }
                (Token::Listener(index), Outcome::Accepted { result, armed }) => {
                    self.worker.accepted(index, result, armed);
                }
                (Token::Listener(_), _) => {}
                (Token::Inbox, _) => {
                    self.worker.read_inbox(&self.inbox);
                    self.worker.await_inbox(&self.bell);
                }
            }
        }
        // Not before what has come with the word: a request that was received is answered.
        if self.worker.phase == Phase::Serving && self.worker.is_drain_wanted {
            self.worker.drain();
        }
        self.worker.sendfile_len_max = if served > 1 { SENDFILE_LEN_MAX } else { SENDFILE_ALONE_LEN_MAX };
    }
}

/// For simulations.
#[cfg(test)]
impl<D: Driver, N: Node> Reactor<D, N> {
    /// What carries operations out.
    pub fn driver_mut(&mut self) -> &mut D {
        &mut self.driver
    }

    /// What answers.
    pub fn node(&self) -> &N {
        &self.worker.node
    }

    /// Where buffers come from.
    pub fn pool_mut(&mut self) -> &mut Pool {
        &mut self.worker.pool
    }

    /// How many are connected.
    pub fn connection_count(&self) -> usize {
        self.worker.connections.len()
    }
}

impl<N: Node> Worker<N> {
    fn await_inbox(&mut self, bell: &Descriptor) {
        let op = Op::AwaitInbox { eventfd: bell.clone() };
        self.submissions.push(Submission { token: Token::Inbox, op });
    }

    fn read_inbox(&mut self, inbox: &Inbox<Message<N::Message>>) {
        while let Some(message) = inbox.next() {
            self.message(message);
        }
    }

    fn is_finished(&self) -> bool {
        match self.phase {
            Phase::Serving => false,
            // A listener is closed when the last operation on it has completed.
            Phase::Draining => {
                self.connections.is_empty() && !self.listeners.iter().any(|listener| listener.is_armed)
            }
        }
    }

    /// Lets a connection take an event, and removes it when that was its last.
    fn with(&mut self, id: ConnectionId, event: impl FnOnce(&mut Connection, &mut Context<'_>)) {
        let slot = id.slot as usize;
        let Some(Seated { connection, .. }) = self.connections.get_mut(slot) else { return };
        if connection.id() != id {
            return;
        }
        let mut context = Context {
            service: &mut self.node,
            submissions: &mut self.submissions,
            pool: &mut self.pool,
            ledger: &mut self.ledger,
            date: &self.clock.date,
            now_s: self.clock.now_s,
            sendfile_len_max: self.sendfile_len_max,
        };
        event(connection, &mut context);
        if connection.is_closed() {
            self.connections.remove(slot).connection.bury(&mut self.pool, &self.ledger);
            self.evictions.under_way = self.evictions.under_way.saturating_sub(1);
            self.has_freed = true;
        }
    }

    /// Gives those who wait for a place theirs, and lets others in if nobody has to wait.
    fn admit(&mut self) {
        self.seat();
        self.accept();
    }

    /// Arms every listener that is not, unless somebody waits for a place.
    fn accept(&mut self) {
        if self.phase != Phase::Serving || !self.lobby.is_empty() {
            return;
        }
        for (index, listener) in (0u16..).zip(&mut self.listeners) {
            if let (false, Some(socket)) = (listener.is_armed, &listener.socket) {
                listener.is_armed = true;
                let op = Op::Accept { listener: socket.clone() };
                self.submissions.push(Submission { token: Token::Listener(index), op });
            }
        }
    }

    fn stop_accepting(&mut self) {
        for (index, listener) in (0u16..).zip(&self.listeners) {
            if listener.is_armed {
                let op = Op::Cancel(Token::Listener(index));
                self.submissions.push(Submission { token: Token::Listener(index), op });
            }
        }
    }

    fn accepted(&mut self, index: u16, result: Result<Descriptor, Errno>, armed: bool) {
        if let Some(listener) = self.listeners.get_mut(usize::from(index)) {
            listener.is_armed = armed;
        }
        match result {
            Ok(socket) => {
                self.ledger.figures().accepted.add(1);
                self.welcome(socket);
            }
            // The peer has gone before it was accepted.
            Err(Errno::CONNABORTED | Errno::CANCELED | Errno::INTR | Errno::AGAIN) => {}
            // No descriptors or no memory: it is tried again when a connection has gone, or with the next tick, and until then the
            // backlog waits.
            Err(errno) => {
                self.ledger.hit(RingLimit::Descriptors);
                if let Some(unsaid) = self.shortage.is_due(self.clock.now_s) {
                    warn!(
                        "cannot accept connections ({errno}); they wait until others have gone ({unsaid} times before)"
                    );
                }
                self.make_room(1);
                return;
            }
        }
        if !self.lobby.is_empty() {
            self.stop_accepting();
        } else if !armed {
            self.accept();
        }
    }

    /// Takes a connection that was accepted.
    fn welcome(&mut self, socket: Descriptor) {
        let admission = &self.peers.admission;
        let address = if admission.asks_for_addresses() {
            // Who has gone counts for nobody.
            socket.peer_address().unwrap_or_default()
        } else {
            None
        };
        let Some(visit) = admission.visit(address) else {
            self.ledger.figures().turned_away.add(1);
            if let (Some(unsaid), Some(address)) = (self.crowding.is_due(self.clock.now_s), address) {
                warn!(
                    "refused a connection from {address}, which has too many ({unsaid} from anywhere before)"
                );
            }
            let op = Op::TurnAway { socket, answer: TOO_MANY };
            return self.submissions.push(Submission { token: Token::Inbox, op });
        };
        self.lobby.push_back((socket, visit));
        self.seat();
        if !self.lobby.is_empty() {
            self.ledger.hit(RingLimit::Connections);
        }
    }

    /// Gives those who wait a place, first come, first served. While draining, nobody has to wait.
    fn seat(&mut self) {
        let (index, admission) = (self.peers.index, Arc::clone(&self.peers.admission));
        while let Some((socket, visit)) = self.lobby.pop_front() {
            if self.phase == Phase::Draining {
                // The other workers may be gone any moment.
                self.adopt(socket, admission.last_place(visit, index));
                continue;
            }
            match admission.place(visit, index) {
                Ok(place) => self.place(socket, place),
                Err(visit) => {
                    self.lobby.push_front((socket, visit));
                    return self.make_room(self.lobby.len());
                }
            }
        }
    }

    /// Gives a new connection to the worker that it has a place with.
    fn place(&mut self, socket: Descriptor, place: Place) {
        let index = place.worker();
        if index == self.peers.index {
            return self.adopt(socket, place);
        }
        let Some(socket) = socket.into_owned() else { return };
        if let Err(Message::Adopt(socket, mut place)) =
            self.peers.mailboxes[index].send(Message::Adopt(socket, place))
        {
            place.move_to(self.peers.index);
            self.adopt(Descriptor::from(socket), place);
        }
    }

    /// Sees to it that `wanted` connections go: those that have been idle longest, here or with the other workers. Who asked for
    /// something keeps its place; so does, until the next second, who has just come and may be about to ask.
    fn make_room(&mut self, wanted: usize) {
        let missing = self.evict(wanted.saturating_sub(self.evictions.under_way));
        if missing > 0 && self.evictions.asked_s != Some(self.clock.now_s) {
            self.evictions.asked_s = Some(self.clock.now_s);
            for (index, mailbox) in self.peers.mailboxes.iter().enumerate() {
                if index != self.peers.index {
                    // One that has ended has no connections.
                    let _ = mailbox.send(Message::MakeRoom(missing));
                }
            }
        }
    }

    /// Ends up to `wanted` idle connections; says how many are missing to that.
    fn evict(&mut self, wanted: usize) -> usize {
        for done in 0..wanted {
            let Some(id) = self.next_idle() else { return wanted - done };
            self.evictions.under_way += 1;
            self.with(id, |connection, context| connection.terminate(Farewell::Evicted, context));
        }
        0
    }

    /// The connection that is idle longest. They are looked for many at a time, so that a table full of them is not read for each.
    fn next_idle(&mut self) -> Option<ConnectionId> {
        let now_s = self.clock.now_s;
        let idle_s = |seated: &Seated| seated.connection.idle_s(now_s).filter(|idle_s| *idle_s > 0);
        loop {
            while let Some(id) = self.evictions.idle.pop_front() {
                let seated = self.connections.get(id.slot as usize);
                if seated.is_some_and(|seated| seated.connection.id() == id && idle_s(seated).is_some()) {
                    return Some(id);
                }
            }
            // There were no others in this second, and who is idle since then is too young.
            if self.evictions.exhausted_s == Some(now_s) {
                return None;
            }
            let idle = self.connections.iter();
            let mut idle: Vec<_> =
                idle.filter_map(|(_, seated)| Some((idle_s(seated)?, seated.connection.id()))).collect();
            self.evictions.exhausted_s = (idle.len() <= EVICTION_BATCH).then_some(now_s);
            let longest_first = |(idle_s, _): &(u64, ConnectionId)| Reverse(*idle_s);
            if idle.len() > EVICTION_BATCH {
                idle.select_nth_unstable_by_key(EVICTION_BATCH, longest_first);
                idle.truncate(EVICTION_BATCH);
            }
            idle.sort_unstable_by_key(longest_first);
            self.evictions.idle.extend(idle.into_iter().map(|(_, id)| id));
        }
    }

    fn adopt(&mut self, socket: Descriptor, place: Place) {
        self.generation += 1;
        let entry = self.connections.vacant_entry();
        let Ok(slot) = u32::try_from(entry.key()) else { return };
        let id = ConnectionId { slot, generation: self.generation };
        let mut context = Context {
            service: &mut self.node,
            submissions: &mut self.submissions,
            pool: &mut self.pool,
            ledger: &mut self.ledger,
            date: &self.clock.date,
            now_s: self.clock.now_s,
            sendfile_len_max: self.sendfile_len_max,
        };
        entry.insert(Seated { connection: Connection::new(id, socket, &mut context), _place: place });
        if self.phase == Phase::Draining {
            // It was on its way when the end began: if it asks for something now, it gets that answer.
            self.with(id, |connection, _| connection.make_last());
        }
    }

    fn message(&mut self, message: Message<N::Message>) {
        match message {
            Message::Adopt(socket, place) => self.adopt(Descriptor::from(socket), place),
            Message::MakeRoom(wanted) => drop(self.evict(wanted)),
            Message::Drain => self.is_drain_wanted = true,
            // What is left are bodies that cannot be finished, and requests without an answer.
            Message::BreakOff => {
                self.each(|connection, context| connection.terminate(Farewell::BrokenBody, context));
            }
            Message::Node(message) => {
                let mut effects = std::mem::take(&mut self.effects);
                self.node.message(message, &mut effects);
                for (id, answer) in effects.answers.drain(..) {
                    self.with(id, |connection, context| connection.answer(answer, context));
                }
                for id in effects.resume.drain(..) {
                    self.with(id, Connection::resume);
                }
                for id in effects.looked_at.drain(..) {
                    self.with(id, Connection::looked_at);
                }
                self.effects = effects;
            }
        }
    }

    fn drain(&mut self) {
        self.phase = Phase::Draining;
        self.stop_accepting();
        for listener in &mut self.listeners {
            listener.socket = None;
        }
        self.each(Connection::drain);
        self.seat();
    }

    /// Gives buffers that have become free to those who wait for one.
    fn feed(&mut self) {
        loop {
            if let Some(id) = self.pool.next_fed() {
                self.with(id, Connection::feed);
            } else if let Some(id) = self.pool.next_keeper() {
                self.with(id, Connection::surrender);
            } else {
                return;
            }
        }
    }

    fn tick(&mut self) {
        self.peers.pulses[self.peers.index].fetch_add(1, Ordering::Relaxed);
        self.each(Connection::tick);
        self.node.tick();
        self.admit();
    }

    fn each(&mut self, mut event: impl FnMut(&mut Connection, &mut Context<'_>)) {
        // An event can remove its connection, so they are found one by one.
        for slot in 0..self.connections.capacity() {
            if let Some(id) = self.connections.get(slot).map(|seated| seated.connection.id()) {
                self.with(id, &mut event);
            }
        }
    }
}

impl Complaint {
    /// Whether to say something about it now, and how often it has happened since the last time.
    fn is_due(&mut self, now_s: u64) -> Option<u64> {
        if self.said_s.is_some_and(|said_s| now_s - said_s < COMPLAINT_INTERVAL_S) {
            self.unsaid += 1;
            return None;
        }
        self.said_s = Some(now_s);
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// What the worker knows of time: read once a turn.
struct Clock {
    start: Instant,
    /// Seconds since the worker began.
    now_s: u64,
    /// The last tick, in the same seconds.
    ticked_s: u64,
    wall_s: u64,
    date: [u8; 29],
}

impl Clock {
    fn new(time: Time) -> Self {
        let mut clock =
            Self { start: time.instant, now_s: 0, ticked_s: 0, wall_s: 0, date: format_imf_fixdate(0) };
        clock.advance(time);
        clock
    }

    fn advance(&mut self, time: Time) {
        self.now_s = time.instant.saturating_duration_since(self.start).as_secs();
        if time.wall_s != self.wall_s {
            self.wall_s = time.wall_s;
            self.date = format_imf_fixdate(time.wall_s);
        }
    }

    fn ticked(&mut self) -> bool {
        let has_ticked = self.now_s != self.ticked_s;
        self.ticked_s = self.now_s;
        has_ticked
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::codec::http::Status;
    use crate::codec::http::request::Request;
    use crate::limits::{EXEMPT_BODY_LEN_MIN, EXEMPTIONS_MAX, PROGRESS_TIMEOUT_S};
    use crate::ring::inbox::inbox;
    use crate::ring::op::OpenedFile;
    use crate::ring::service::{Answer, Called, Caller, Reply, Service};
    use crate::ring::sim::{End, Ending, Faults, Peer, Reading, Sim};

    /// Answers at once, but `/later` only when it is told to; `/long` with a body that is worth an exemption.
    #[derive(Default)]
    struct Greeter {
        waiting: Vec<ConnectionId>,
    }

    impl Service for Greeter {
        fn call(&mut self, caller: &Caller<'_>, request: &Request<'_>) -> Called {
            if request.target == b"/later" {
                self.waiting.push(caller.id);
                return Answer::Pending.into();
            }
            let len = usize::try_from(EXEMPT_BODY_LEN_MIN).unwrap();
            let reply = match request.target {
                b"/long" => Reply::text(Status::Ok, vec![b'x'; len]),
                b"/shorter" => Reply::text(Status::Ok, vec![b'x'; len - 1]),
                _ => Reply::text(Status::Ok, "hello\n"),
            };
            Answer::Reply(reply).into()
        }

        fn opened(&mut self, _: ConnectionId, _: Result<OpenedFile, Errno>) -> Answer {
            unreachable!("nothing is opened")
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

        fn gone(&mut self, _: ConnectionId) {}
    }

    impl Node for Greeter {
        type Message = ();

        fn message(&mut self, (): (), effects: &mut Effects) {
            let reply = || Answer::Reply(Reply::text(Status::Ok, "at last\n"));
            effects.answers.extend(self.waiting.drain(..).map(|id| (id, reply())));
        }

        fn tick(&mut self) {}
    }

    /// A worker on the simulated ring that has room for so many, and what reaches it.
    struct Bench {
        reactor: Reactor<Sim, Greeter>,
        mailbox: Mailbox<Message<()>>,
        peers: usize,
    }

    impl Bench {
        fn new(all_max: usize) -> Self {
            let (mailbox, inbox) = inbox().unwrap();
            let peers = Peers {
                index: 0,
                admission: Admission::new(1, all_max, None),
                mailboxes: vec![mailbox.clone()],
                pulses: Arc::new([AtomicU64::new(0)]),
                figures: Arc::default(),
            };
            // Any descriptor does: the simulated ring accepts without it.
            let listener = std::fs::File::open("/dev/null").unwrap().into();
            let sim = Sim::new(1, Faults::default());
            let mut reactor = Reactor::new(sim, Greeter::default(), inbox, vec![listener], peers).unwrap();
            reactor.begin();
            Self { reactor, mailbox, peers: 0 }
        }

        /// A peer that asks for this and then waits; says which it is.
        fn dial(&mut self, target: &str) -> usize {
            let says = match target {
                "" => Vec::new(),
                target => format!("GET {target} HTTP/1.1\r\nHost: here\r\n\r\n").into_bytes(),
            };
            // Who is not told to go on has heard the head of a long answer, and stops there.
            let reading = if target == "/long" { Reading::UpTo(1) } else { Reading::Eager };
            let ending = Ending::Silence;
            self.reactor.driver.dial(Peer { says, ending, reading, resets_at: None, is_polite: true });
            self.settle();
            self.peers += 1;
            self.peers - 1
        }

        /// Until nothing can happen but that time passes.
        fn settle(&mut self) {
            loop {
                assert!(self.reactor.turn().unwrap());
                if self.reactor.driver.is_stuck() {
                    return;
                }
            }
        }

        fn pass(&mut self, seconds: u64) {
            self.reactor.driver.pass(seconds);
            self.settle();
        }

        fn is_answered(&self, peer: usize) -> bool {
            self.reactor.driver.sockets().get(peer).is_some_and(|socket| !socket.sent().is_empty())
        }

        fn end(&self, peer: usize) -> Option<End> {
            self.reactor.driver.socket(peer).end()
        }

        fn figures(&self) -> &Figures {
            &self.reactor.worker.peers.figures
        }

        /// The reasons why connections have ended, and how often each.
        fn farewells(&self) -> Vec<(Farewell, u64)> {
            let counts =
                Farewell::ALL.map(|farewell| (farewell, self.figures().closed[farewell as usize].get()));
            counts.into_iter().filter(|(_, count)| *count > 0).collect()
        }
    }

    #[test]
    fn who_is_idle_longest_makes_room_for_who_comes() {
        let mut bench = Bench::new(3);
        for target in ["/", "", "/"] {
            bench.dial(target);
            bench.pass(1);
        }
        let all = bench.reactor.worker.peers.admission.clone();
        assert!(all.is_full());
        for (leaver, newcomer) in [(0, 3), (1, 4), (2, 5)] {
            assert_eq!(bench.dial("/"), newcomer);
            assert!(bench.is_answered(newcomer));
            assert_eq!((bench.end(leaver), bench.end(newcomer)), (Some(End::Orderly), None));
            bench.pass(1);
        }
        assert_eq!(all.taken(), 3);
        assert_eq!(bench.farewells(), [(Farewell::Evicted, 3)]);
        let figures = bench.figures();
        assert_eq!((figures.accepted.get(), figures.opened.get()), (6, 6));
        assert_eq!(figures.limits[RingLimit::Connections as usize].get(), 3);
    }

    #[test]
    fn each_connection_ends_for_one_reason() {
        let ask = |target: &str, fields: &str| format!("GET {target} HTTP/1.1\r\nHost: here\r\n{fields}\r\n");
        let long_len = usize::try_from(EXEMPT_BODY_LEN_MIN).unwrap();
        let cases = [
            (ask("/", ""), Ending::HalfClose, Reading::Eager, None, Farewell::Peer),
            (ask("/long", ""), Ending::HalfClose, Reading::Eager, None, Farewell::Peer),
            (ask("/", ""), Ending::Silence, Reading::Eager, None, Farewell::Idle),
            (String::new(), Ending::Silence, Reading::Eager, None, Farewell::Idle),
            (ask("/", "Connection: close\r\n"), Ending::Silence, Reading::Eager, None, Farewell::LastAnswer),
            ("GET / HTTP/1.1\r\nHos".to_owned(), Ending::Silence, Reading::Eager, None, Farewell::Timeout),
            ("what?\r\n\r\n".to_owned(), Ending::Silence, Reading::Eager, None, Farewell::Malformed),
            (ask("/later", ""), Ending::Silence, Reading::Eager, Some(30), Farewell::Reset),
            (ask("/long", ""), Ending::Silence, Reading::Slow(9_000), Some(long_len / 2), Farewell::Reset),
            (ask("/long", ""), Ending::Silence, Reading::UpTo(1), None, Farewell::Slow),
        ];
        for (says, ending, reading, resets_at, farewell) in cases {
            let mut bench = Bench::new(3);
            let says = says.into_bytes();
            bench.reactor.driver.dial(Peer { says, ending, reading, resets_at, is_polite: true });
            bench.settle();
            while bench.reactor.connection_count() > 0 {
                bench.pass(1);
            }
            assert_eq!(bench.farewells(), [(farewell, 1)]);
            bench.figures().assert_at_rest();
        }
    }

    #[test]
    fn who_has_asked_for_something_keeps_its_place_and_others_wait() {
        let mut bench = Bench::new(2);
        let busy = [bench.dial("/later"), bench.dial("/later")];
        bench.pass(1);
        let (first, second) = (bench.dial("/"), bench.dial("/"));
        bench.pass(10);
        assert!(!bench.is_answered(first) && busy.iter().all(|peer| bench.end(*peer).is_none()));
        bench.mailbox.send(Message::Node(())).unwrap();
        bench.settle();
        assert!(busy.iter().all(|peer| bench.is_answered(*peer)));
        // They are idle now, and have a second for another request.
        bench.pass(1);
        bench.pass(1);
        assert!(bench.is_answered(first) && bench.is_answered(second));
        assert!(busy.iter().all(|peer| bench.end(*peer) == Some(End::Orderly)));
    }

    #[test]
    fn a_request_that_does_not_end_makes_room_as_well() {
        let mut bench = Bench::new(1);
        let (ending, reading) = (Ending::Silence, Reading::Eager);
        let says = b"GET /half".to_vec();
        bench.reactor.driver.dial(Peer { says, ending, reading, resets_at: None, is_polite: true });
        bench.peers += 1;
        bench.settle();
        bench.pass(1);
        let newcomer = bench.dial("/");
        assert!(bench.is_answered(newcomer) && bench.end(0).is_some());
    }

    #[test]
    fn many_make_room_for_many_the_longest_idle_first() {
        let count = 3 * EVICTION_BATCH;
        let mut bench = Bench::new(count);
        for half in 0..2 {
            for _ in 0..count / 2 {
                bench.reactor.driver.dial(Peer {
                    says: Vec::new(),
                    ending: Ending::Silence,
                    reading: Reading::Eager,
                    resets_at: None,
                    is_polite: true,
                });
            }
            bench.pass(1 + half);
        }
        bench.peers = count;
        for _ in 0..count / 2 {
            let newcomer = bench.dial("/");
            assert!(bench.is_answered(newcomer));
        }
        let gone = |peer: &usize| bench.end(*peer).is_some();
        assert_eq!((0..count / 2).filter(gone).count(), count / 2);
        assert_eq!((count / 2..bench.peers).filter(gone).count(), 0);
    }

    #[test]
    fn another_worker_is_given_room_if_there_is_any() {
        let mut bench = Bench::new(10);
        let (idle, busy) = (bench.dial("/"), bench.dial("/later"));
        bench.pass(1);
        bench.mailbox.send(Message::MakeRoom(5)).unwrap();
        bench.settle();
        assert_eq!((bench.end(idle), bench.end(busy)), (Some(End::Orderly), None));
    }

    #[test]
    fn who_waits_for_a_place_when_the_end_begins_is_answered() {
        let mut bench = Bench::new(1);
        let busy = bench.dial("/later");
        let waits = bench.dial("/");
        assert!(!bench.is_answered(waits));
        bench.mailbox.send(Message::Drain).unwrap();
        bench.settle();
        assert!(bench.is_answered(waits) && !bench.is_answered(busy));
        bench.mailbox.send(Message::Node(())).unwrap();
        while bench.reactor.turn().unwrap() {}
        assert!(bench.is_answered(busy));
    }

    #[test]
    fn the_first_who_are_sent_much_are_exempt_until_they_end() {
        let mut bench = Bench::new(2 * EXEMPTIONS_MAX);
        let is_exempt =
            |bench: &mut Bench, peer: usize| bench.reactor.driver_mut().sockets()[peer].is_exempt();
        for target in ["/", "/shorter"] {
            let peer = bench.dial(target);
            assert!(bench.is_answered(peer) && !is_exempt(&mut bench, peer), "{target}");
        }
        for _ in 0..EXEMPTIONS_MAX {
            let peer = bench.dial("/long");
            assert!(is_exempt(&mut bench, peer));
        }
        let late = bench.dial("/long");
        assert!(!is_exempt(&mut bench, late));
        bench.pass(PROGRESS_TIMEOUT_S + 1);
        bench.settle();
        assert_eq!(bench.end(late), Some(End::Reset));
        let afterwards = bench.dial("/long");
        assert!(is_exempt(&mut bench, afterwards));
    }

    #[test]
    fn a_complaint_is_made_now_and_then_and_all_are_counted() {
        let mut complaint = Complaint::default();
        assert_eq!(complaint.is_due(5), Some(0));
        for now_s in 5..5 + COMPLAINT_INTERVAL_S {
            assert_eq!(complaint.is_due(now_s), None);
        }
        assert_eq!(complaint.is_due(5 + COMPLAINT_INTERVAL_S), Some(COMPLAINT_INTERVAL_S));
    }
}
