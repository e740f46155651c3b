//! A ring without a kernel: sockets and files in memory, and a seed that decides everything the kernel may decide.
//!
//! It carries out the same operations as [`super::uring`], and is as nasty as a kernel may be: it answers in any order
//! and as late as it likes, sends and reads less than it was asked to, runs out of buffers, ends what should go on, and
//! cancels too late. Like the kernel it owns an operation until it is completed, and like the kernel it does what it
//! likes meanwhile with a buffer that is read into. The same seed makes the same run.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::io;
use std::os::fd::RawFd;
#[cfg(test)]
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Buf as _;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::body::Fault;
use super::descriptor::Descriptor;
use super::op::{
    Completion, FileKind, FileStatus, Op, OpenedFile, Outcome, SendFileError, Submission, Token,
};
use super::{Driver, Time, Traffic};

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;
mod world;

mod disk;

pub use disk::{Disk, DiskFaults};
pub use world::fuzz_connection;

/// What a receive brings at most, as in the real ring. Bytes.
const RECEIVE_LEN_MAX: usize = 4096;
/// What the simulated kernel holds for a socket, in each direction. Bytes.
const SOCKET_BUFFER_LEN: usize = 160 * 1024;
/// A socket with less room than this is not called writable: as in Linux, nobody is woken for a few bytes. Bytes.
const WRITABLE_ROOM_MIN: usize = SOCKET_BUFFER_LEN / 3;
/// The longest time in which a peer does nothing. Turns.
const PAUSE_TURNS_MAX: usize = 20;
/// After so many turns in which nothing completes nothing ever will, unless time passes or somebody else acts.
const STUCK_TURNS: usize = 200;

/// So often a socket is called writable that is not: without a bound, a peer that never reads would keep a world going.
const SPURIOUS_WAKES_MAX: usize = 50;

/// When a simulation begins: the example of RFC 9110. Seconds since 1970.
const WALL_START_S: u64 = 784_111_777;

const DIRECTORY_NUMBER: RawFd = 7;
const SOCKET_NUMBER_MIN: RawFd = 1_000;
const FILE_NUMBER_MIN: RawFd = 1_000_000;
const CREATED_NUMBER_MIN: RawFd = 100_000_000;

/// Numbers from a seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.draw() % bound as u64).unwrap_or(0)
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// True so many times out of a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Runs worlds of a test: `NARWIRE_SEED` of them one again, `NARWIRE_SEEDS` so many as that says, and otherwise `count`. Threads
/// share them; each prepares itself once. A seed that fails is printed.
#[cfg(test)]
pub fn for_each_seed<R: FnMut(u64)>(test: &str, count: u64, prepare: impl Fn() -> R + Sync) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("NARWIRE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("NARWIRE_SEEDS").unwrap_or(count),
    };
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut run = prepare();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let result = std::panic::catch_unwind(AssertUnwindSafe(|| run(seed)));
                    if let Err(panic) = result {
                        eprintln!(
                            "seed {seed} has failed; again: NARWIRE_SEED={seed} cargo test --lib {test}"
                        );
                        next.store(seeds.end, Ordering::Relaxed);
                        std::panic::resume_unwind(panic);
                    }
                }
            });
        }
    });
}

/// How often the simulated kernel does what it may do. Percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// An operation is looked at in a later turn.
    pub late: usize,
    /// Less is sent, received or written at once than could be.
    pub short: usize,
    /// A socket that has room says that it has none; one that has none is called writable.
    pub spurious: usize,
    /// There is no buffer to receive into.
    pub no_buffers: usize,
    /// What should go on ends.
    pub unarmed: usize,
    /// A file is not in memory.
    pub cold: usize,
    /// A send, or a receive into a buffer, is interrupted.
    pub interrupted: usize,
    /// A peer cannot be accepted at the moment, or has gone.
    pub refused: usize,
}

impl Faults {
    /// Faults as frequent as the seed wants them.
    pub fn drawn(random: &mut Random) -> Self {
        let mut percent = || random.pick(&[0, 5, 30, 60]);
        Self {
            late: percent(),
            short: percent(),
            spurious: percent(),
            no_buffers: percent(),
            unarmed: percent(),
            cold: percent(),
            interrupted: percent(),
            refused: percent() / 2,
        }
    }
}

/// The other side of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What it sends, in pieces.
    pub says: Vec<u8>,
    /// What it does when it has said everything.
    pub ending: Ending,
    /// How it reads.
    pub reading: Reading,
    /// It resets the connection when it has sent and read this much together.
    pub resets_at: Option<usize>,
    /// It closes when the server has ended its side.
    pub is_polite: bool,
}

/// What a peer does after its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It waits.
    Silence,
    /// It ends its side, and reads on.
    HalfClose,
}

/// How a peer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// All there is, at once.
    Eager,
    /// At most so many bytes at a time.
    Slow(usize),
    /// So many bytes, and no more.
    UpTo(usize),
}

/// How the server closed a connection, as the peer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything that was sent arrives.
    Orderly,
    /// As [`Op::ResetOnClose`] asked for.
    Reset,
    /// A reset because the server had not read everything, which can destroy what the peer has not read.
    UnreadReset,
}

/// A connection in memory.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each side ends, fails and resets on its own")]
pub struct Socket {
    peer: Peer,
    open_count: Rc<Cell<usize>>,
    /// How much of what the peer says has arrived. `taken_len <= said_len <= peer.says.len()`
    said_len: usize,
    /// How much of that the server has received.
    taken_len: usize,
    peer_ended: bool,
    peer_reset: bool,
    paused_until: u64,
    /// The kernel cannot receive any more.
    fails_receive: bool,
    /// What the server sent. `read_len <= sent.len()`
    sent: Vec<u8>,
    /// The kernel was told that more follows, and holds a part of that back.
    is_held_back: bool,
    /// How much of that the peer has read.
    read_len: usize,
    /// The server has ended its side.
    is_shut: bool,
    resets_on_close: bool,
    is_exempt: bool,
    end: Option<End>,
}

impl Socket {
    /// Everything that the server sent.
    pub fn sent(&self) -> &[u8] {
        &self.sent
    }

    /// As [`Op::Exempt`] asked for.
    pub fn is_exempt(&self) -> bool {
        self.is_exempt
    }

    /// How much of what the peer says has arrived. Bytes.
    pub fn said_len(&self) -> usize {
        self.said_len
    }

    /// The peer goes on talking.
    pub fn say(&mut self, says: &[u8]) {
        self.peer.says.extend_from_slice(says);
    }

    /// How much the server has received. Bytes.
    pub fn taken_len(&self) -> usize {
        self.taken_len
    }

    /// Whether the server has ended its side.
    pub fn is_shut(&self) -> bool {
        self.is_shut
    }

    /// How it was closed.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// From now on nothing can be received, for want of memory.
    #[cfg(test)]
    pub fn fail_receive(&mut self) {
        self.fails_receive = true;
    }

    /// Whether the peer waits for bytes that the kernel holds back for others that do not come.
    pub fn is_held_back(&self) -> bool {
        self.is_held_back && self.room() >= WRITABLE_ROOM_MIN && self.end.is_none() && !self.peer_reset
    }

    fn room(&self) -> usize {
        SOCKET_BUFFER_LEN - (self.sent.len() - self.read_len)
    }

    /// One turn of the peer.
    fn advance(&mut self, turn: u64, random: &mut Random) {
        if self.open_count.get() == 0 {
            let is_unread = self.taken_len < self.said_len;
            self.end.get_or_insert(match (self.resets_on_close, is_unread) {
                (true, _) => End::Reset,
                (false, true) => End::UnreadReset,
                (false, false) => End::Orderly,
            });
            return;
        }
        if self.peer_reset || turn < self.paused_until {
            return;
        }
        if self.peer.resets_at.is_some_and(|at| self.said_len + self.read_len >= at) {
            self.peer_reset = true;
            return;
        }
        self.read(random);
        self.talk(random);
        if random.chance(5) {
            self.paused_until = turn + 1 + random.below(PAUSE_TURNS_MAX) as u64;
        }
    }

    fn read(&mut self, random: &mut Random) {
        let unread = self.sent.len() - self.read_len;
        self.read_len += match self.peer.reading {
            Reading::Eager => unread,
            Reading::Slow(len) => unread.min(1 + random.below(len)),
            Reading::UpTo(len) => unread.min(len.saturating_sub(self.read_len)),
        };
    }

    fn talk(&mut self, random: &mut Random) {
        let unsaid = self.peer.says.len() - self.said_len;
        let room = SOCKET_BUFFER_LEN - (self.said_len - self.taken_len);
        if unsaid > 0 {
            let len = match random.below(4) {
                0 => 1,
                1 => 1 + random.below(100),
                _ => unsaid,
            };
            self.said_len += len.min(unsaid).min(room);
        } else if self.peer.ending == Ending::HalfClose || self.is_shut && self.peer.is_polite {
            self.peer_ended = true;
        }
    }
}

/// A file in memory.
#[derive(Clone, Copy, Debug)]
pub struct SimulatedFile {
    /// What kind of thing it is.
    pub kind: FileKind,
    /// What `fstat` says. Bytes.
    pub len_bytes: u64,
    /// What is there to read; shorter than `len_bytes` when the file shrank after it was opened.
    pub contents: &'static [u8],
    /// Whether reading at the end of `contents` fails, instead of saying that the file ends there.
    pub is_damaged: bool,
}

/// A file in memory that is written.
#[derive(Clone, Debug, Default)]
pub struct CreatedFile {
    /// What was written.
    pub contents: Rc<RefCell<Vec<u8>>>,
    /// There is no room behind this. Bytes.
    pub room: Option<usize>,
}

/// Makes files to be written.
#[derive(Clone, Debug, Default)]
pub struct Creator {
    /// By their number.
    created: Rc<RefCell<Vec<CreatedFile>>>,
    open_count: Rc<Cell<usize>>,
}

impl Creator {
    /// The file, open.
    pub fn create(&self, file: CreatedFile) -> Descriptor {
        let mut created = self.created.borrow_mut();
        let number = CREATED_NUMBER_MIN + RawFd::try_from(created.len()).unwrap_or(RawFd::MAX);
        created.push(file);
        Descriptor::simulated(number, &self.open_count)
    }
}

/// The ring.
pub struct Sim {
    random: Random,
    faults: Faults,
    turn: u64,
    start: Instant,
    /// Seconds since then.
    now_s: u64,
    is_stuck: bool,
    /// Whether it is known by now if the bell rings.
    was_bell_asked: bool,
    /// How often a socket was called writable that was not.
    spurious_wakes: usize,
    sockets: Vec<Socket>,
    /// Peers that were not accepted yet.
    backlog: VecDeque<Peer>,
    /// By their path beneath the only directory.
    files: HashMap<CString, SimulatedFile>,
    /// By their number; the same file can be open several times.
    opened: Vec<SimulatedFile>,
    creator: Creator,
    /// For files that are real.
    pub disk: Disk,
    /// Of files and directories.
    open_count: Rc<Cell<usize>>,
    in_flight: Vec<InFlight>,
    ready: VecDeque<(Token, Ready)>,
    /// What the last completion lends.
    lent: Vec<u8>,
    traffic: Traffic,
    /// What was sent of files without copying. Bytes.
    file_sent_len: u64,
    /// How often that could not be, because the file was not in memory.
    cold_count: u64,
}

/// An operation that the ring owns.
struct InFlight {
    token: Token,
    op: Op,
    is_canceled: bool,
}

/// A completion that was not taken yet.
enum Ready {
    Received { result: Result<Vec<u8>, Errno>, armed: bool },
    Other(Outcome<'static>),
}

impl Sim {
    /// A ring that this seed decides.
    pub fn new(seed: u64, faults: Faults) -> Self {
        let creator = Creator::default();
        Self {
            random: Random(seed),
            faults,
            turn: 0,
            start: Instant::now(),
            now_s: 0,
            is_stuck: false,
            was_bell_asked: false,
            spurious_wakes: 0,
            sockets: Vec::new(),
            backlog: VecDeque::new(),
            files: HashMap::new(),
            opened: Vec::new(),
            open_count: Rc::clone(&creator.open_count),
            creator,
            disk: Disk::default(),
            in_flight: Vec::new(),
            ready: VecDeque::new(),
            lent: Vec::new(),
            traffic: Traffic::default(),
            file_sent_len: 0,
            cold_count: 0,
        }
    }

    /// Puts a file into the directory.
    pub fn add_file(&mut self, path: CString, file: SimulatedFile) {
        self.files.insert(path, file);
    }

    /// The directory.
    pub fn directory(&self) -> Descriptor {
        Descriptor::simulated(DIRECTORY_NUMBER, &self.open_count)
    }

    /// What makes files to be written.
    pub fn creator(&self) -> Creator {
        self.creator.clone()
    }

    /// A connection with this peer, accepted already; it is the next in [`Sim::socket`].
    pub fn connect(&mut self, peer: Peer) -> Descriptor {
        self.is_stuck = false;
        let open_count = Rc::default();
        let number = SOCKET_NUMBER_MIN + RawFd::try_from(self.sockets.len()).unwrap_or(RawFd::MAX);
        let descriptor = Descriptor::simulated(number, &open_count);
        self.sockets.push(Socket {
            peer,
            open_count,
            said_len: 0,
            taken_len: 0,
            peer_ended: false,
            peer_reset: false,
            paused_until: 0,
            fails_receive: false,
            sent: Vec::new(),
            is_held_back: false,
            read_len: 0,
            is_shut: false,
            resets_on_close: false,
            is_exempt: false,
            end: None,
        });
        descriptor
    }

    /// A peer that waits to be accepted.
    pub fn dial(&mut self, peer: Peer) {
        self.is_stuck = false;
        self.backlog.push_back(peer);
    }

    /// The connection of this index.
    pub fn socket(&self, index: usize) -> &Socket {
        &self.sockets[index]
    }

    /// The connection of this index.
    pub fn socket_mut(&mut self, index: usize) -> &mut Socket {
        self.is_stuck = false;
        &mut self.sockets[index]
    }

    /// Time passes.
    pub fn pass(&mut self, seconds: u64) {
        self.now_s += seconds;
    }

    /// Whether nothing can happen until somebody submits an operation or touches a peer.
    pub fn is_stuck(&self) -> bool {
        self.is_stuck
    }

    /// The connections.
    pub fn sockets(&self) -> &[Socket] {
        &self.sockets
    }

    /// Everything was given back: no operation is in flight, and nothing is open.
    pub fn assert_at_rest(&mut self) {
        self.advance_peers();
        // A worker that has ended does not wait for its bell any more; the kernel forgets it with the ring.
        self.in_flight.retain(|in_flight| in_flight.token != Token::Inbox);
        let in_flight: Vec<_> = self.in_flight.iter().map(|in_flight| in_flight.token).collect();
        assert!(in_flight.is_empty(), "in flight: {in_flight:?}");
        assert!(self.ready.is_empty(), "completions that nobody took");
        assert_eq!(self.open_count.get(), 0, "files and directories are open");
        assert!(self.sockets.iter().all(|socket| socket.end.is_some()), "sockets are open");
    }

    fn advance_peers(&mut self) {
        self.turn += 1;
        for socket in &mut self.sockets {
            socket.advance(self.turn, &mut self.random);
        }
    }

    /// Looks at every operation once, about, in any order.
    fn attempt_all(&mut self) {
        for _ in 0..self.in_flight.len() {
            if self.in_flight.is_empty() {
                return;
            }
            let index = self.random.below(self.in_flight.len());
            let is_of_disk = matches!(
                self.in_flight[index].op,
                Op::Open { .. } | Op::Read { .. } | Op::ReadFile { .. } | Op::Write { .. }
            );
            let late =
                if is_of_disk { self.faults.late.max(self.disk.faults.slow) } else { self.faults.late };
            if self.random.chance(late) {
                continue;
            }
            let in_flight = self.in_flight.swap_remove(index);
            let token = in_flight.token;
            match self.attempt(in_flight) {
                Attempt::Waits(in_flight) => self.in_flight.push(in_flight),
                Attempt::Done(outcome) => self.ready.push_back((token, Ready::Other(outcome))),
                Attempt::Received(result, rest) => {
                    self.ready.push_back((token, Ready::Received { result, armed: rest.is_some() }));
                    self.in_flight.extend(rest);
                }
                Attempt::Accepted(result, rest) => {
                    let outcome = Outcome::Accepted { result, armed: rest.is_some() };
                    self.ready.push_back((token, Ready::Other(outcome)));
                    self.in_flight.extend(rest);
                }
            }
        }
    }

    fn attempt(&mut self, in_flight: InFlight) -> Attempt {
        let InFlight { token, op, is_canceled } = in_flight;
        match op {
            Op::Receive { socket } => {
                self.receive(InFlight { token, op: Op::Receive { socket }, is_canceled })
            }
            Op::ReceiveInto { socket, mut buffer, range } => {
                if let Some(result) = self.receive_into(&socket, &mut buffer[range.clone()], is_canceled) {
                    return Attempt::Done(Outcome::ReceivedInto { result, buffer });
                }
                Attempt::Waits(InFlight { token, op: Op::ReceiveInto { socket, buffer, range }, is_canceled })
            }
            Op::Send { socket, buffer, range, more, wait } => {
                let result = if is_canceled && self.random.chance(50) {
                    Some(Err(Errno::CANCELED))
                } else {
                    self.send(&socket, &buffer[range.clone()], wait, is_canceled)
                };
                self.sockets[index_of(&socket, SOCKET_NUMBER_MIN)].is_held_back = more;
                match result {
                    Some(result) => Attempt::Done(Outcome::Sent { result, buffer, range }),
                    None => Attempt::Waits(InFlight {
                        token,
                        op: Op::Send { socket, buffer, range, more, wait },
                        is_canceled,
                    }),
                }
            }
            Op::AwaitWritable { socket } => {
                let state = &self.sockets[index_of(&socket, SOCKET_NUMBER_MIN)];
                let is_writable = state.room() >= WRITABLE_ROOM_MIN || state.peer_reset;
                let is_spurious =
                    self.spurious_wakes < SPURIOUS_WAKES_MAX && self.random.chance(self.faults.spurious);
                self.spurious_wakes += usize::from(!is_writable && is_spurious);
                if is_writable || is_spurious {
                    Attempt::Done(Outcome::Writable(Ok(())))
                } else if is_canceled {
                    Attempt::Done(Outcome::Writable(Err(Errno::CANCELED)))
                } else {
                    Attempt::Waits(InFlight { token, op: Op::AwaitWritable { socket }, is_canceled })
                }
            }
            Op::Open { directory, path } => {
                if let Some(directory) = directory.real() {
                    let opened = self.disk.open(directory, &path, &mut self.random);
                    let opened = opened.map(|(file, status)| OpenedFile {
                        file: Descriptor::simulated_file(file, &self.open_count),
                        status,
                    });
                    return Attempt::Done(Outcome::Opened(opened));
                }
                assert_eq!(directory.raw(), DIRECTORY_NUMBER, "opened beneath the directory");
                Attempt::Done(Outcome::Opened(self.open(&path)))
            }
            Op::Read { file, offset, mut buffer } => {
                if let Some(file) = file.real() {
                    let result = self.disk.read(file, offset, &mut buffer, &mut self.random);
                    return Attempt::Done(Outcome::Read { result, buffer });
                }
                let file = self.file_of(&file);
                let result = match read(&file, offset, &mut buffer) {
                    Ok(len) if len == buffer.len() => Ok(()),
                    Ok(_) => Err(Fault::Changed),
                    Err(errno) => Err(Fault::File(errno)),
                };
                Attempt::Done(Outcome::Read { result, buffer })
            }
            Op::ReadFile { directory, path, offset, mut buffer } => {
                if let Some(directory) = directory.real() {
                    let result = self.disk.read_file(directory, &path, offset, &mut buffer, &mut self.random);
                    return Attempt::Done(Outcome::Read { result, buffer });
                }
                assert_eq!(directory.raw(), DIRECTORY_NUMBER, "read beneath the directory");
                let result = match self.files.get(&path) {
                    None => Err(Errno::NOENT),
                    Some(file) if file.kind != FileKind::Regular => Err(Errno::ISDIR),
                    Some(file) => read(file, offset, &mut buffer),
                };
                let result = match result {
                    Ok(len) if len + 1 == buffer.len() => Ok(()),
                    Ok(_) => Err(Fault::Changed),
                    Err(errno) => Err(Fault::File(errno)),
                };
                Attempt::Done(Outcome::Read { result, buffer })
            }
            Op::Write { file, offset, mut bytes } => match self.write(&file, offset, &bytes) {
                Ok(len) if len < bytes.len() => {
                    bytes.advance(len);
                    let op = Op::Write { file, offset: offset + len as u64, bytes };
                    Attempt::Waits(InFlight { token, op, is_canceled })
                }
                result => Attempt::Done(Outcome::Written(result.map(drop))),
            },
            Op::Accept { listener } => {
                self.accept(InFlight { token, op: Op::Accept { listener }, is_canceled })
            }
            Op::AwaitInbox { eventfd } => {
                // The bell is the kernel's own, also here. Nobody rings it while the ring is waited for: it is all one thread.
                if std::mem::replace(&mut self.was_bell_asked, true) {
                    return Attempt::Waits(InFlight { token, op: Op::AwaitInbox { eventfd }, is_canceled });
                }
                let bell = eventfd.borrow();
                let is_ringing = rustix::event::poll(
                    &mut [PollFd::new(&bell, PollFlags::IN)],
                    Some(&Timespec { tv_sec: 0, tv_nsec: 0 }),
                );
                if is_ringing == Ok(0) {
                    return Attempt::Waits(InFlight { token, op: Op::AwaitInbox { eventfd }, is_canceled });
                }
                rustix::io::read(bell, &mut [0; 8]).expect("it rings");
                Attempt::Done(Outcome::InboxRung)
            }
            Op::SendFile { .. }
            | Op::Cancel(_)
            | Op::ShutdownWrite { .. }
            | Op::TurnAway { .. }
            | Op::Exempt { .. }
            | Op::ResetOnClose { .. } => {
                unreachable!("carried out when it is submitted")
            }
        }
    }

    fn accept(&mut self, in_flight: InFlight) -> Attempt {
        let armed = !in_flight.is_canceled && !self.random.chance(self.faults.unarmed);
        let result = if in_flight.is_canceled {
            Err(Errno::CANCELED)
        } else if self.backlog.is_empty() {
            return Attempt::Waits(in_flight);
        } else if self.random.chance(self.faults.refused) {
            return Attempt::Accepted(Err(self.random.pick(&[Errno::MFILE, Errno::CONNABORTED])), None);
        } else {
            let peer = self.backlog.pop_front().expect("somebody waits");
            Ok(self.connect(peer))
        };
        Attempt::Accepted(result, armed.then_some(in_flight))
    }

    fn receive(&mut self, in_flight: InFlight) -> Attempt {
        let Op::Receive { socket } = &in_flight.op else { unreachable!("only called for receives") };
        let state = &mut self.sockets[index_of(socket, SOCKET_NUMBER_MIN)];
        let unread = &state.peer.says[state.taken_len..state.said_len];
        if in_flight.is_canceled && self.random.chance(50) {
            return Attempt::Received(Err(Errno::CANCELED), None);
        }
        if state.peer_reset {
            return Attempt::Received(Err(Errno::CONNRESET), None);
        }
        if state.fails_receive {
            return Attempt::Received(Err(Errno::NOMEM), None);
        }
        if unread.is_empty() {
            return match (state.peer_ended, in_flight.is_canceled) {
                (true, _) => Attempt::Received(Ok(Vec::new()), None),
                (false, true) => Attempt::Received(Err(Errno::CANCELED), None),
                (false, false) => Attempt::Waits(in_flight),
            };
        }
        if self.random.chance(self.faults.no_buffers) {
            return Attempt::Received(Err(Errno::NOBUFS), None);
        }
        let mut len = unread.len().min(RECEIVE_LEN_MAX);
        if self.random.chance(self.faults.short) {
            len = 1 + self.random.below(len);
        }
        let bytes = unread[..len].to_vec();
        state.taken_len += len;
        let is_armed = !self.random.chance(self.faults.unarmed);
        Attempt::Received(Ok(bytes), is_armed.then_some(in_flight))
    }

    /// None while it has to wait.
    fn receive_into(
        &mut self,
        socket: &Descriptor,
        buffer: &mut [u8],
        is_canceled: bool,
    ) -> Option<Result<usize, Errno>> {
        assert!(!buffer.is_empty(), "a receive of nothing");
        let state = &mut self.sockets[index_of(socket, SOCKET_NUMBER_MIN)];
        let unread = &state.peer.says[state.taken_len..state.said_len];
        if is_canceled && self.random.chance(50) {
            return Some(Err(Errno::CANCELED));
        }
        if state.peer_reset {
            return Some(Err(Errno::CONNRESET));
        }
        if state.fails_receive {
            return Some(Err(Errno::NOMEM));
        }
        if unread.is_empty() {
            return match (state.peer_ended, is_canceled) {
                (true, _) => Some(Ok(0)),
                (false, true) => Some(Err(Errno::CANCELED)),
                (false, false) => None,
            };
        }
        if self.random.chance(self.faults.interrupted) {
            return Some(Err(Errno::INTR));
        }
        let mut len = unread.len().min(buffer.len());
        if self.random.chance(self.faults.short) {
            len = 1 + self.random.below(len);
        }
        buffer[..len].copy_from_slice(&unread[..len]);
        state.taken_len += len;
        Some(Ok(len))
    }

    /// Some of `bytes`, or all.
    fn write(&mut self, file: &Descriptor, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        assert!(!bytes.is_empty(), "a write of nothing");
        if let Some(file) = file.real() {
            let mut len = bytes.len();
            if self.random.chance(self.faults.short) {
                len = 1 + self.random.below(len);
            }
            return self.disk.write(file, offset, &bytes[..len], &mut self.random);
        }
        let file = self.creator.created.borrow()[index_of(file, CREATED_NUMBER_MIN)].clone();
        let start = usize::try_from(offset).map_err(|_| Errno::FBIG)?;
        let room = file.room.map_or(bytes.len(), |room| room.saturating_sub(start));
        let mut len = bytes.len().min(room);
        if len == 0 {
            return Err(Errno::NOSPC);
        }
        if self.random.chance(self.faults.short) {
            len = 1 + self.random.below(len);
        }
        let mut contents = file.contents.borrow_mut();
        if contents.len() < start + len {
            contents.resize(start + len, 0xee);
        }
        contents[start..start + len].copy_from_slice(&bytes[..len]);
        Ok(len)
    }

    /// None while it has to wait.
    fn send(
        &mut self,
        socket: &Descriptor,
        bytes: &[u8],
        wait: bool,
        is_canceled: bool,
    ) -> Option<Result<usize, Errno>> {
        let state = &mut self.sockets[index_of(socket, SOCKET_NUMBER_MIN)];
        assert!(!state.is_shut, "bytes after the end");
        assert!(!bytes.is_empty(), "a send of nothing");
        if state.peer_reset {
            return Some(Err(Errno::PIPE));
        }
        // One that waits is not interrupted again and again: a peer that never reads would keep a world going.
        if state.room() > 0 && self.random.chance(self.faults.interrupted) {
            return Some(Err(Errno::INTR));
        }
        if state.room() == 0 || !wait && self.random.chance(self.faults.spurious) {
            return match (wait, is_canceled) {
                (true, false) => None,
                (true, true) => Some(Err(Errno::CANCELED)),
                (false, _) => Some(Err(Errno::AGAIN)),
            };
        }
        let mut len = bytes.len().min(state.room());
        if self.random.chance(self.faults.short) {
            len = 1 + self.random.below(len);
        }
        state.sent.extend_from_slice(&bytes[..len]);
        Some(Ok(len))
    }

    fn send_file(
        &mut self,
        socket: &Descriptor,
        file: &Descriptor,
        offset: u64,
        len: usize,
    ) -> Result<usize, SendFileError> {
        assert!(len > 0, "a send of nothing");
        if self.random.chance(self.faults.cold) {
            self.cold_count += 1;
            return Err(SendFileError::Cold);
        }
        let state = &self.sockets[index_of(socket, SOCKET_NUMBER_MIN)];
        assert!(!state.is_shut, "bytes after the end");
        if state.peer_reset {
            return Err(SendFileError::Failed(Errno::PIPE));
        }
        if state.room() == 0 || self.random.chance(self.faults.spurious) {
            return Err(SendFileError::WouldBlock);
        }
        let len = len.min(state.room());
        let bytes = if let Some(file) = file.real() {
            self.disk.read_to_send(file, offset, len, &mut self.random)?
        } else {
            let file = self.file_of(file);
            let rest = rest_of(&file, offset);
            match (rest.len().min(len), file.is_damaged) {
                (0, true) => {
                    // What file systems say of what they cannot read: of a local disk, of one that is elsewhere, of one that is damaged.
                    let errno = self.random.pick(&[Errno::IO, Errno::STALE, Errno::UCLEAN]);
                    return Err(SendFileError::Failed(errno));
                }
                (0, false) => return Err(SendFileError::Truncated),
                (len, _) => rest[..len].to_vec(),
            }
        };
        let mut len = bytes.len();
        if self.random.chance(self.faults.short) {
            len = 1 + self.random.below(len);
        }
        let state = &mut self.sockets[index_of(socket, SOCKET_NUMBER_MIN)];
        state.sent.extend_from_slice(&bytes[..len]);
        state.is_held_back = false;
        self.file_sent_len += len as u64;
        Ok(len)
    }

    fn open(&mut self, path: &CString) -> Result<OpenedFile, Errno> {
        let file = *self.files.get(path).ok_or(Errno::NOENT)?;
        let number = FILE_NUMBER_MIN + RawFd::try_from(self.opened.len()).unwrap_or(RawFd::MAX);
        self.opened.push(file);
        let status = FileStatus {
            kind: file.kind,
            len_bytes: file.len_bytes,
            inode: 1,
            modified_s: 0,
            modified_ns: 0,
            changed_s: 0,
            changed_ns: 0,
        };
        Ok(OpenedFile { file: Descriptor::simulated(number, &self.open_count), status })
    }

    fn file_of(&self, file: &Descriptor) -> SimulatedFile {
        self.opened[index_of(file, FILE_NUMBER_MIN)]
    }
}

/// What came of looking at an operation.
enum Attempt {
    Waits(InFlight),
    Done(Outcome<'static>),
    /// With what goes on.
    Received(Result<Vec<u8>, Errno>, Option<InFlight>),
    /// With what goes on.
    Accepted(Result<Descriptor, Errno>, Option<InFlight>),
}

fn index_of(descriptor: &Descriptor, number_min: RawFd) -> usize {
    usize::try_from(descriptor.raw() - number_min).expect("a descriptor of this kind")
}

/// What a file has, as far as the buffer goes; what is read of a damaged one fails.
fn read(file: &SimulatedFile, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let rest = rest_of(file, offset);
    let len = buffer.len().min(rest.len());
    buffer[..len].copy_from_slice(&rest[..len]);
    if len < buffer.len() && file.is_damaged { Err(Errno::IO) } else { Ok(len) }
}

fn rest_of(file: &SimulatedFile, offset: u64) -> &'static [u8] {
    usize::try_from(offset).ok().and_then(|start| file.contents.get(start..)).unwrap_or_default()
}

impl Driver for Sim {
    fn submit(&mut self, submission: Submission) {
        let Submission { token, mut op } = submission;
        self.is_stuck = false;
        self.traffic.submissions += 1;
        match &mut op {
            Op::SendFile { socket, file, offset, len } => {
                let (socket, file, offset, len) = (socket.clone(), file.clone(), *offset, *len);
                let result = self.send_file(&socket, &file, offset, len);
                self.ready.push_back((token, Ready::Other(Outcome::FileSent(result))));
                return;
            }
            Op::Cancel(target) => {
                for in_flight in self.in_flight.iter_mut().filter(|in_flight| in_flight.token == *target) {
                    in_flight.is_canceled = true;
                }
                return;
            }
            Op::TurnAway { socket, answer } => {
                let state = &mut self.sockets[index_of(socket, SOCKET_NUMBER_MIN)];
                state.sent.extend_from_slice(answer);
                state.taken_len = state.said_len;
                return;
            }
            Op::ShutdownWrite { socket } => {
                self.sockets[index_of(socket, SOCKET_NUMBER_MIN)].is_shut = true;
                return;
            }
            Op::Exempt { socket } => {
                let socket = &mut self.sockets[index_of(socket, SOCKET_NUMBER_MIN)];
                assert!(!socket.is_exempt, "once is enough");
                socket.is_exempt = true;
                return;
            }
            Op::ResetOnClose { socket } => {
                self.sockets[index_of(socket, SOCKET_NUMBER_MIN)].resets_on_close = true;
                return;
            }
            // Nothing that was there before may be taken for something that was read.
            Op::Read { buffer, .. } | Op::ReadFile { buffer, .. } => buffer.fill(0xee),
            Op::ReceiveInto { buffer, range, .. } => buffer[range.clone()].fill(0xee),
            _ => {}
        }
        let is_new = self.in_flight.iter().all(|in_flight| in_flight.token != token);
        assert!(is_new, "one operation per token: {token:?}");
        self.in_flight.push(InFlight { token, op, is_canceled: false });
    }

    /// Without anything that can happen it comes back, and [`Sim::is_stuck`] says so. Only then time passes, up to the timeout.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Instant> {
        let since = self.time().instant;
        if self.is_stuck && timeout.is_none() {
            // To find that out takes longer than all the rest, and nothing has happened since but that sockets were closed.
            self.advance_peers();
            return Ok(since);
        }
        self.is_stuck = false;
        self.was_bell_asked = false;
        for _ in 0..STUCK_TURNS {
            self.advance_peers();
            self.attempt_all();
            if !self.ready.is_empty() {
                self.traffic.completions += self.ready.len() as u64;
                return Ok(since);
            }
        }
        self.is_stuck = true;
        self.now_s += timeout.map_or(0, |timeout| timeout.as_secs());
        Ok(since)
    }

    fn next_completion(&mut self) -> Option<Completion<'_>> {
        let (token, ready) = self.ready.pop_front()?;
        let outcome = match ready {
            Ready::Other(outcome) => outcome,
            Ready::Received { result: Err(errno), armed } => Outcome::Received { result: Err(errno), armed },
            Ready::Received { result: Ok(bytes), armed } => {
                self.lent = bytes;
                Outcome::Received { result: Ok(&self.lent), armed }
            }
        };
        Some(Completion { token, outcome })
    }

    fn time(&self) -> Time {
        let instant = self.start + Duration::from_secs(self.now_s);
        Time { instant, wall_s: WALL_START_S + self.now_s }
    }

    fn take_traffic(&mut self) -> Traffic {
        std::mem::take(&mut self.traffic)
    }
}
