//! The real ring: operations become submission queue entries, completion queue entries become outcomes.
//!
//! Three operations are not the kernel's own and are carried out at once, when they are submitted: sending a file
//! (io_uring has no sendfile, and its splice always goes through a worker thread: about four times the CPU at 4 KiB),
//! shutting down and resetting. The last two never wait; sending asks first whether the range is in memory, so it waits
//! only for a page that is evicted between the question and the call.
#![expect(unsafe_code, reason = "the kernel is given pointers; each block says why they stay valid")]

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::time::Duration;

use io_uring::squeue::Flags;
use io_uring::types::{Fd, OpenHow, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::io::Errno;

use super::Driver;
use super::buffer_ring::{BufferRing, Lent};
use super::capability::{Capabilities, Capability};
use super::descriptor::Descriptor;
use super::op::{Completion, Op, OpenedFile, Outcome, SendFileError, Submission, Token};
use super::sys;
use crate::limits::{
    COMPLETION_ENTRIES, IO_WORKERS_MAX, RECEIVE_BUFFER_LEN_BYTES, SENDFILE_LEN_MAX, SUBMISSION_ENTRIES,
};

/// Never through links, never out of the directory (openat2(2)). `O_NONBLOCK` keeps a FIFO from holding a kernel thread.
static OPEN_HOW: OpenHow = OpenHow::new()
    .flags((libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY) as u64)
    .resolve(libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS);

/// User data of entries whose completion says nothing (cancellations).
const SILENT: u64 = u64::MAX;

/// A ring of this thread.
pub struct Uring {
    ring: IoUring,
    capabilities: Capabilities,
    /// What the kernel works on, by packed token. Buffers and descriptors live here meanwhile.
    in_flight: HashMap<u64, InFlight, BuildHasherDefault<TokenHasher>>,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    /// Completions of what was carried out at once.
    local: VecDeque<(Token, LocalOutcome)>,
    /// Completions taken from the kernel and not yet given out.
    reaped: VecDeque<cqueue::Entry>,
    /// Where sockets are read into, where the kernel can choose buffers itself.
    buffers: Option<BufferRing>,
    /// What the last completion lent to its reader.
    lent: Lending,
    /// Where the inbox's eventfd is read into.
    bell: Box<u64>,
}

/// An operation in the kernel: what it owns until its last completion.
struct InFlight {
    token: Token,
    op: Op,
    /// The buffer of a receive on a kernel that cannot choose buffers itself.
    receive_buffer: Option<Box<[u8]>>,
    /// Whether it was given to a kernel thread because it could not be done at once.
    is_retried: bool,
}

/// What was carried out at once.
enum LocalOutcome {
    FileSent(Result<usize, SendFileError>),
}

/// Which buffer the caller of [`Driver::next_completion`] is looking at.
enum Lending {
    Nothing,
    Ring(Lent),
    Own(Box<[u8]>),
}

impl Uring {
    /// A ring for the calling thread, which must be the one that uses it.
    pub fn new(capabilities: Capabilities) -> io::Result<Self> {
        let ring = capabilities.builder().build(SUBMISSION_ENTRIES)?;
        // A disk that is slow must not make hundreds of kernel threads; both numbers are per ring.
        let _ = ring.submitter().register_iowq_max_workers(&mut [IO_WORKERS_MAX, IO_WORKERS_MAX]);
        if capabilities.has(Capability::RegisteredRing) {
            ring.submitter().register_ring_fd()?;
        }
        let buffers = if capabilities.has(Capability::BufferRing) {
            Some(BufferRing::register(&ring.submitter())?)
        } else {
            None
        };
        Ok(Self {
            ring,
            capabilities,
            in_flight: HashMap::default(),
            backlog: VecDeque::new(),
            local: VecDeque::new(),
            reaped: VecDeque::with_capacity(COMPLETION_ENTRIES as usize),
            buffers,
            lent: Lending::Nothing,
            bell: Box::new(0),
        })
    }

    /// Queues an entry; the kernel sees it with the next enter.
    fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() {
            self.backlog.push_back(entry);
            return;
        }
        // SAFETY: every pointer in `entry` points into an operation that `in_flight` owns until the completion, into
        // `bell`, into the buffer ring, or to a static. None of them moves: buffers and paths are heap allocations.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }

    /// Moves the backlog into the submission queue as far as there is room.
    fn push_backlog(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: as in `push`.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Enters the kernel: hands over submissions, waits for `want` completions at most `timeout` long.
    fn enter(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        let timespec = timeout.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(timespec) = &timespec {
            args = args.timespec(timespec);
        }
        match self.ring.submitter().submit_with_args(want, &args) {
            Ok(_) => Ok(()),
            // ETIME: nothing came in time. EINTR: a signal. EBUSY, EAGAIN: completions have to be taken first, and the
            // submissions stay queued.
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn reap(&mut self) {
        let mut queue = self.ring.completion();
        queue.sync();
        self.reaped.extend(&mut queue);
    }

    /// The entry for an operation whose buffers are already owned by `in_flight`.
    fn entry(in_flight: &mut InFlight, bell: *mut u64, capabilities: Capabilities) -> squeue::Entry {
        match &mut in_flight.op {
            Op::Accept { listener } => {
                let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
                if capabilities.has(Capability::MultishotAccept) {
                    opcode::AcceptMulti::new(Fd(listener.raw())).flags(flags).build()
                } else {
                    let no_address = std::ptr::null_mut();
                    opcode::Accept::new(Fd(listener.raw()), no_address, no_address.cast())
                        .flags(flags)
                        .build()
                }
            }
            Op::Receive { socket } => match &mut in_flight.receive_buffer {
                Some(buffer) => {
                    opcode::Recv::new(Fd(socket.raw()), buffer.as_mut_ptr(), RECEIVE_BUFFER_LEN_BYTES).build()
                }
                None if capabilities.has(Capability::MultishotReceive) => {
                    opcode::RecvMulti::new(Fd(socket.raw()), BufferRing::GROUP).build()
                }
                None => opcode::Recv::new(Fd(socket.raw()), std::ptr::null_mut(), RECEIVE_BUFFER_LEN_BYTES)
                    .buf_group(BufferRing::GROUP)
                    .build()
                    .flags(Flags::BUFFER_SELECT),
            },
            Op::Send { socket, buffer, range, more, wait } => {
                let bytes = &buffer[range.clone()];
                let mut flags = libc::MSG_NOSIGNAL;
                if *more {
                    flags |= libc::MSG_MORE;
                }
                if !*wait {
                    flags |= libc::MSG_DONTWAIT;
                }
                let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                opcode::Send::new(Fd(socket.raw()), bytes.as_ptr(), len).flags(flags).build()
            }
            Op::AwaitWritable { socket } => {
                opcode::PollAdd::new(Fd(socket.raw()), u32::from(libc::POLLOUT.unsigned_abs())).build()
            }
            Op::Open { directory, path } => {
                opcode::OpenAt2::new(Fd(directory.raw()), path.as_ptr(), &raw const OPEN_HOW).build()
            }
            Op::Read { file, offset, buffer, filled } => {
                let rest = &mut buffer[*filled..];
                let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
                opcode::Read::new(Fd(file.raw()), rest.as_mut_ptr(), len).offset(*offset).build()
            }
            Op::AwaitInbox { eventfd } => opcode::Read::new(Fd(eventfd.raw()), bell.cast(), 8).build(),
            Op::SendFile { .. } | Op::Cancel(_) | Op::ShutdownWrite { .. } | Op::ResetOnClose { .. } => {
                unreachable!("handled in `submit`")
            }
        }
    }

    /// sendfile(2), if the range is in memory and as far as the socket takes it.
    fn send_file(
        &self,
        socket: &Descriptor,
        file: &Descriptor,
        offset: u64,
        len: usize,
    ) -> Result<usize, SendFileError> {
        let len = len.min(SENDFILE_LEN_MAX);
        if !self.capabilities.has(Capability::SendFile) {
            return Err(SendFileError::Cold);
        }
        match sys::is_in_memory(file.borrow(), offset, len as u64) {
            Ok(true) => {}
            Ok(false) | Err(_) => return Err(SendFileError::Cold),
        }
        let mut position = offset;
        match rustix::fs::sendfile(socket.borrow(), file.borrow(), Some(&mut position), len) {
            Ok(0) => Err(SendFileError::Truncated),
            Ok(sent) => Ok(sent),
            Err(Errno::AGAIN | Errno::INTR) => Err(SendFileError::WouldBlock),
            // Some file systems cannot; reading always can.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Err(SendFileError::Cold),
            Err(errno) => Err(SendFileError::Failed(errno)),
        }
    }

    /// Reads that a file system cannot do without waiting are done by a kernel thread instead.
    fn resubmit_read(&mut self, key: u64) -> bool {
        let Some(in_flight) = self.in_flight.get_mut(&key) else { return false };
        if !matches!(in_flight.op, Op::Read { .. }) || in_flight.is_retried {
            return false;
        }
        in_flight.is_retried = true;
        let entry = Self::entry(in_flight, &raw mut *self.bell, self.capabilities);
        self.push(entry.user_data(key).flags(Flags::ASYNC));
        true
    }

    /// Takes back what the reader of the last completion has seen.
    fn take_back_lent(&mut self) {
        if let Lending::Ring(lent) = std::mem::replace(&mut self.lent, Lending::Nothing)
            && let Some(buffers) = &mut self.buffers
        {
            buffers.give_back(lent);
        }
    }

    /// The outcome of a receive: the bytes are lent until the next completion is taken.
    fn received(&mut self, cqe: &cqueue::Entry, own: Option<Box<[u8]>>, armed: bool) -> Outcome<'_> {
        let result = result_of(cqe);
        self.lent = match (cqueue::buffer_select(cqe.flags()), own) {
            (Some(id), _) => Lending::Ring(Lent { id, len_bytes: result.unwrap_or(0) }),
            (None, Some(buffer)) => Lending::Own(buffer),
            (None, None) => Lending::Nothing,
        };
        let result = result.map(|len| match (&self.lent, &self.buffers) {
            (Lending::Ring(lent), Some(buffers)) => buffers.bytes(lent),
            (Lending::Own(buffer), _) => &buffer[..len],
            _ => &[],
        });
        Outcome::Received { result, armed }
    }
}

impl Driver for Uring {
    fn submit(&mut self, submission: Submission) {
        let Submission { token, op } = submission;
        match op {
            Op::SendFile { socket, file, offset, len } => {
                let result = self.send_file(&socket, &file, offset, len);
                self.local.push_back((token, LocalOutcome::FileSent(result)));
            }
            Op::Cancel(target) => {
                self.push(opcode::AsyncCancel::new(target.pack()).build().user_data(SILENT));
            }
            // A socket that the peer has reset refuses both, and nobody is left who would want to know.
            Op::ShutdownWrite { socket } => drop(sys::shutdown_write(socket.borrow())),
            Op::ResetOnClose { socket } => drop(sys::reset_on_close(socket.borrow())),
            op => {
                let receive_buffer = (matches!(op, Op::Receive { .. }) && self.buffers.is_none())
                    .then(|| vec![0; RECEIVE_BUFFER_LEN_BYTES as usize].into_boxed_slice());
                let key = token.pack();
                let in_flight = InFlight { token, op, receive_buffer, is_retried: false };
                let in_flight = match self.in_flight.entry(key) {
                    Entry::Vacant(vacant) => vacant.insert(in_flight),
                    Entry::Occupied(mut occupied) => {
                        debug_assert!(false, "one operation per token: {token:?}");
                        // The kernel may still use its buffers.
                        std::mem::forget(occupied.insert(in_flight));
                        occupied.into_mut()
                    }
                };
                let entry = Self::entry(in_flight, &raw mut *self.bell, self.capabilities).user_data(key);
                self.push(entry);
            }
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.take_back_lent();
        loop {
            let backlogged = !self.backlog.is_empty();
            let ready = backlogged || !self.local.is_empty() || !self.reaped.is_empty();
            self.enter(usize::from(!ready), timeout)?;
            self.reap();
            self.push_backlog();
            if !backlogged || !self.reaped.is_empty() {
                return Ok(());
            }
        }
    }

    fn next_completion(&mut self) -> Option<Completion<'_>> {
        self.take_back_lent();
        if let Some((token, LocalOutcome::FileSent(result))) = self.local.pop_front() {
            return Some(Completion { token, outcome: Outcome::FileSent(result) });
        }
        loop {
            let cqe = self.reaped.pop_front()?;
            let key = cqe.user_data();
            if cqe.result() == -libc::EAGAIN && self.resubmit_read(key) {
                continue;
            }
            let armed = cqueue::more(cqe.flags());
            if armed {
                let Some(in_flight) = self.in_flight.get(&key) else { continue };
                let token = in_flight.token;
                let outcome = match in_flight.op {
                    Op::Accept { .. } => Outcome::Accepted { result: accepted(&cqe), armed },
                    _ => self.received(&cqe, None, armed),
                };
                return Some(Completion { token, outcome });
            }
            let Some(InFlight { token, op, receive_buffer, .. }) = self.in_flight.remove(&key) else {
                continue;
            };
            let outcome = match op {
                Op::Accept { .. } => Outcome::Accepted { result: accepted(&cqe), armed },
                Op::Receive { .. } => self.received(&cqe, receive_buffer, armed),
                Op::Send { buffer, range, .. } => Outcome::Sent { result: result_of(&cqe), buffer, range },
                Op::AwaitWritable { .. } => Outcome::Writable(result_of(&cqe).map(drop)),
                Op::Open { .. } => Outcome::Opened(opened(&cqe)),
                Op::Read { file, buffer, .. } => Outcome::Read { result: result_of(&cqe), file, buffer },
                Op::AwaitInbox { .. } => Outcome::InboxRung,
                Op::SendFile { .. } | Op::Cancel(_) | Op::ShutdownWrite { .. } | Op::ResetOnClose { .. } => {
                    continue;
                }
            };
            return Some(Completion { token, outcome });
        }
    }
}

/// The kernel must be done with every buffer before they are freed. Closing the ring cancels what is in flight, but not
/// synchronously: so what is left (only when a worker ends with operations in flight) is leaked, never freed early.
impl Drop for Uring {
    fn drop(&mut self) {
        for (_, in_flight) in self.in_flight.drain() {
            std::mem::forget(in_flight);
        }
        if let Some(buffers) = self.buffers.take() {
            let _ = self.ring.submitter().unregister_buf_ring(BufferRing::GROUP);
            std::mem::forget(buffers);
        }
        std::mem::forget(std::mem::take(&mut self.bell));
    }
}

fn result_of(cqe: &cqueue::Entry) -> Result<usize, Errno> {
    match cqe.result() {
        len @ 0.. => Ok(len.unsigned_abs() as usize),
        negative => Err(Errno::from_raw_os_error(negative.saturating_neg())),
    }
}

/// The descriptor that an operation made.
fn owned_fd(cqe: &cqueue::Entry) -> Result<OwnedFd, Errno> {
    result_of(cqe)?;
    // SAFETY: a result of 0 or more of an accept or open is a new descriptor of this process, named in no other place.
    Ok(unsafe { OwnedFd::from_raw_fd(cqe.result()) })
}

fn accepted(cqe: &cqueue::Entry) -> Result<Descriptor, Errno> {
    let socket = owned_fd(cqe)?;
    Ok(Descriptor::from(socket))
}

fn opened(cqe: &cqueue::Entry) -> Result<OpenedFile, Errno> {
    let file = Descriptor::from(owned_fd(cqe)?);
    let status = sys::status(file.borrow())?;
    Ok(OpenedFile { file, status })
}

/// Packed tokens differ mostly in their middle bits; one multiplication spreads them (Fibonacci hashing).
#[derive(Default)]
struct TokenHasher(u64);

impl Hasher for TokenHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}
