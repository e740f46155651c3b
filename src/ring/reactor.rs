//! The loop of one worker: submit, wait, dispatch. It owns everything it touches and shares a counter or two.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use slab::Slab;
use tracing::warn;

use super::connection::{Connection, Context};
use super::descriptor::Descriptor;
use super::inbox::{Inbox, Mailbox};
use super::op::{Completion, ConnectionId, Op, Outcome, Submission, Token};
use super::pool::Pool;
use super::service::{Effects, Node};
use super::{Driver, Time};
use crate::codec::http::date::format_imf_fixdate;
use crate::limits::{SENDFILE_ALONE_LEN_MAX, SENDFILE_LEN_MAX};

/// The time between two looks at the deadlines.
const TICK: Duration = Duration::from_secs(1);

/// What other threads tell a worker.
#[derive(Debug)]
pub enum Message<M> {
    /// Another worker has accepted this connection and has more to do than this one.
    Adopt(OwnedFd),
    /// Accept no more, finish what is under way, end.
    Drain,
    /// For the service.
    Node(M),
}

/// One worker: a driver, a service, and what is between them.
pub struct Reactor<D, N: Node> {
    driver: D,
    inbox: Inbox<Message<N::Message>>,
    bell: Descriptor,
    worker: Worker<N>,
}

/// Everything of a worker that a completion can concern; apart from the driver, which lends completions out.
struct Worker<N: Node> {
    node: N,
    listeners: Vec<Listener>,
    connections: Slab<Connection>,
    /// How many connections there have been.
    generation: u32,
    submissions: Vec<Submission>,
    pool: Pool,
    effects: Effects,
    clock: Clock,
    /// Most that one connection sends of a file in one step of this turn: more while it is alone. Bytes.
    sendfile_len_max: usize,
    peers: Peers<N::Message>,
    phase: Phase,
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
    /// Connections that each takes; more wait in the kernel's backlog.
    pub connections_max: usize,
    /// The connections of each.
    pub loads: Arc<[AtomicUsize]>,
    /// How to reach each.
    pub mailboxes: Vec<Mailbox<Message<M>>>,
    /// When each last looked at its deadlines, in ticks: a worker that hangs stands still.
    pub pulses: Arc<[AtomicU64]>,
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
        let worker = Worker {
            node,
            listeners,
            connections: Slab::new(),
            generation: 0,
            submissions: Vec::new(),
            pool: Pool::default(),
            effects: Effects::default(),
            clock: Clock::new(driver.time()),
            sendfile_len_max: SENDFILE_LEN_MAX,
            peers,
            phase: Phase::Serving,
        };
        Ok(Self { driver, inbox, bell, worker })
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
        self.driver.wait(Some(TICK))?;
        self.worker.clock.advance(self.driver.time());
        self.dispatch();
        self.worker.feed();
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
        self.worker.sendfile_len_max = if served > 1 { SENDFILE_LEN_MAX } else { SENDFILE_ALONE_LEN_MAX };
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
        let Some(connection) = self.connections.get_mut(slot).filter(|connection| connection.id() == id)
        else {
            return;
        };
        let mut context = Context {
            service: &mut self.node,
            submissions: &mut self.submissions,
            pool: &mut self.pool,
            date: &self.clock.date,
            now_s: self.clock.now_s,
            sendfile_len_max: self.sendfile_len_max,
        };
        event(connection, &mut context);
        if connection.is_closed() {
            self.connections.remove(slot).bury(&mut self.pool);
            self.peers.loads[self.peers.index].fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Arms every listener that is not, while there is room for connections.
    fn accept(&mut self) {
        if self.phase != Phase::Serving || self.connections.len() >= self.peers.connections_max {
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
            Ok(socket) => self.place(socket),
            // The peer has gone before it was accepted.
            Err(Errno::CONNABORTED | Errno::CANCELED | Errno::INTR | Errno::AGAIN) => {}
            // No descriptors or no memory: the next tick tries again, and until then the backlog waits.
            Err(errno) => {
                warn!("cannot accept connections ({errno}); trying again in a second");
                return;
            }
        }
        if self.connections.len() >= self.peers.connections_max {
            self.stop_accepting();
        } else if !armed {
            self.accept();
        }
    }

    /// Gives a new connection to the worker that has fewest. While draining, the others may be gone any moment.
    fn place(&mut self, socket: Descriptor) {
        if self.phase == Phase::Draining {
            self.peers.loads[self.peers.index].fetch_add(1, Ordering::Relaxed);
            return self.adopt(socket);
        }
        let loads = self.peers.loads.iter().map(|load| load.load(Ordering::Relaxed));
        let least = loads.enumerate().min_by_key(|&(index, load)| (load, index != self.peers.index));
        let index = least.map_or(self.peers.index, |(index, _)| index);
        self.peers.loads[index].fetch_add(1, Ordering::Relaxed);
        if index == self.peers.index {
            return self.adopt(socket);
        }
        let Some(socket) = socket.into_owned() else { return };
        if let Err(Message::Adopt(socket)) = self.peers.mailboxes[index].send(Message::Adopt(socket)) {
            self.peers.loads[index].fetch_sub(1, Ordering::Relaxed);
            self.peers.loads[self.peers.index].fetch_add(1, Ordering::Relaxed);
            self.adopt(Descriptor::from(socket));
        }
    }

    fn adopt(&mut self, socket: Descriptor) {
        self.generation = self.generation.wrapping_add(1) & 0xff_ffff;
        let entry = self.connections.vacant_entry();
        let Ok(slot) = u32::try_from(entry.key()) else { return };
        let id = ConnectionId { slot, generation: self.generation };
        let mut context = Context {
            service: &mut self.node,
            submissions: &mut self.submissions,
            pool: &mut self.pool,
            date: &self.clock.date,
            now_s: self.clock.now_s,
            sendfile_len_max: self.sendfile_len_max,
        };
        entry.insert(Connection::new(id, socket, &mut context));
        if self.phase == Phase::Draining {
            // It was on its way when the end began: if it asks for something now, it gets that answer.
            self.with(id, |connection, _| connection.make_last());
        }
    }

    fn message(&mut self, message: Message<N::Message>) {
        match message {
            Message::Adopt(socket) => self.adopt(Descriptor::from(socket)),
            Message::Drain => self.drain(),
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
        self.accept();
    }

    fn each(&mut self, mut event: impl FnMut(&mut Connection, &mut Context<'_>)) {
        // An event can remove its connection, so they are found one by one.
        for slot in 0..self.connections.capacity() {
            if let Some(id) = self.connections.get(slot).map(Connection::id) {
                self.with(id, &mut event);
            }
        }
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
