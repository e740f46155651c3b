//! The real ring: operations become submission queue entries, completion queue entries become outcomes.
//!
//! Some operations are not the kernel's own. Shutting down, turning away, exempting and resetting are carried out at once, when they are
//! submitted, and never wait. Sending a file (io_uring has no sendfile, and its splice always goes through a worker thread: about four
//! times the CPU at 4 KiB) is carried out before the next wait, for a few files in each turn, so that short answers go out between
//! them; it asks first whether the range is in memory, so it waits only for a page that is evicted between the question and the call.
#![expect(unsafe_code, reason = "the kernel is given pointers; each block says why they stay valid")]

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use io_uring::squeue::Flags;
use io_uring::types::{DestinationSlot, Fd, Fixed, OpenHow, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::io::Errno;

use super::body::Fault;
use super::buffer_ring::{BufferRing, Lent};
use super::capability::{Capabilities, Capability};
use super::descriptor::Descriptor;
use super::op::{Completion, FileKind, Op, OpenedFile, Outcome, SendFileError, Submission, Token};
use super::{Driver, Time, Traffic, restriction, sys};
use crate::limits::{
    COMPLETIONS_PER_SUBMISSION, DIRECT_FILES, IO_WORKERS_MAX, RECEIVE_BUFFER_LEN_BYTES,
    SENDFILE_ALONE_LEN_MAX, SENDFILE_TURN_CALLS_MAX, SENDFILE_TURN_LEN_MAX, SUBMISSION_ENTRIES,
    SUBMISSION_ENTRIES_MIN,
};
use crate::residency::is_in_memory;

/// Never through links, never out of the directory (openat2(2)). `O_NONBLOCK` keeps a FIFO from holding a kernel thread.
static OPEN_HOW: OpenHow =
    OPEN_DIRECT_HOW.flags((libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC) as u64);

/// The same for a file in the ring's own table, which no other program inherits: the kernel refuses `O_CLOEXEC` there.
static OPEN_DIRECT_HOW: OpenHow = OpenHow::new()
    .flags((libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY) as u64)
    .resolve(libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS);

/// User data of entries whose completion says nothing (cancellations).
const SILENT: u64 = u64::MAX;

/// Where every ring's kernel reads the inbox's eventfd into. Nobody looks at what it says.
static BELL: AtomicU64 = AtomicU64::new(0);

/// A ring of this thread.
pub struct Uring {
    ring: IoUring,
    capabilities: Capabilities,
    /// What the kernel works on, by packed token. Buffers and descriptors live here meanwhile.
    in_flight: HashMap<u64, InFlight, BuildHasherDefault<TokenHasher>>,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    /// Files to be sent, first come, first served: a few in each turn, so that short answers need not wait for all of them.
    unsent: VecDeque<UnsentFile>,
    /// Completions of what was carried out at once.
    local: VecDeque<(Token, LocalOutcome)>,
    /// Completions taken from the kernel and not yet given out.
    reaped: VecDeque<cqueue::Entry>,
    /// Whether small files are opened into the ring's own table.
    is_table_used: bool,
    /// Places in it that are free.
    free_slots: Vec<u32>,
    /// Where sockets are read into, where the kernel can choose buffers itself.
    buffers: Option<BufferRing>,
    /// What the last completion lent to its reader.
    lent: Lending,
    traffic: Traffic,
}

/// An operation in the kernel: what it owns until its last completion.
struct InFlight {
    token: Token,
    op: Op,
    /// The buffer of a receive on a kernel that cannot choose buffers itself. No `Box`: moving one says that nobody else has a
    /// pointer into it, and these are moved while the kernel writes to them.
    receive_buffer: Option<Vec<u8>>,
    /// Whether it was given to a kernel thread because it could not be done at once.
    is_retried: bool,
    /// The place that is set aside for the file of an [`Op::ReadFile`].
    slot: Option<u32>,
    /// Whether it was opened again because its file system cannot read without waiting.
    is_table_refused: bool,
    /// That file, once it is open.
    file: Option<OwnFile>,
    /// How much of a file was read or written. Bytes.
    done_len: usize,
}

/// A file that the ring opens and closes for itself.
enum OwnFile {
    /// In the ring's own table: no descriptor is made, looked up and locked, and closing it never waits.
    Slot(u32),
    Descriptor(OpenedFile),
}

/// An [`Op::SendFile`] that waits for its turn.
struct UnsentFile {
    token: Token,
    socket: Descriptor,
    file: Descriptor,
    offset: u64,
    len: usize,
}

/// What was carried out at once.
enum LocalOutcome {
    FileSent(Result<usize, SendFileError>),
}

/// Which buffer the caller of [`Driver::next_completion`] is looking at.
enum Lending {
    Nothing,
    Ring(Lent),
    Own(Vec<u8>),
}

impl Uring {
    /// A ring for the calling thread, which must be the one that uses it.
    pub fn new(capabilities: Capabilities) -> io::Result<Self> {
        let ring = build(|entries| {
            capabilities.builder().setup_cqsize(entries * COMPLETIONS_PER_SUBMISSION).build(entries)
        })?;
        // A disk that is slow must not make hundreds of kernel threads; both numbers are per ring.
        let _ = ring.submitter().register_iowq_max_workers(&mut [IO_WORKERS_MAX, IO_WORKERS_MAX]);
        // The limit of open files holds for the table as well.
        let has_slots = capabilities.has(Capability::DirectFiles)
            && ring.submitter().register_files(&[-1; DIRECT_FILES as usize]).is_ok();
        let buffers = if capabilities.has(Capability::BufferRing) {
            Some(BufferRing::register(&ring.submitter())?)
        } else {
            None
        };
        if capabilities.has(Capability::Restrictions) {
            restriction::enable(&ring.submitter(), capabilities)?;
        }
        Ok(Self {
            ring,
            capabilities,
            in_flight: HashMap::default(),
            backlog: VecDeque::new(),
            unsent: VecDeque::new(),
            local: VecDeque::new(),
            reaped: VecDeque::with_capacity((SUBMISSION_ENTRIES * COMPLETIONS_PER_SUBMISSION) as usize),
            is_table_used: has_slots,
            free_slots: if has_slots { (0..DIRECT_FILES).collect() } else { Vec::new() },
            buffers,
            lent: Lending::Nothing,
            traffic: Traffic::default(),
        })
    }

    /// Queues an entry; the kernel sees it with the next enter.
    fn push(&mut self, entry: squeue::Entry) {
        self.traffic.submissions += 1;
        if !self.backlog.is_empty() {
            self.backlog.push_back(entry);
            return;
        }
        // SAFETY: every pointer in `entry` points into an operation that `in_flight` owns until the completion, into
        // the buffer ring, or to a static. None of them moves: buffers and paths are heap allocations.
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
        self.traffic.completions += queue.len() as u64;
        self.reaped.extend(&mut queue);
    }

    /// The entry for an operation whose buffers are already owned by `in_flight`. Its code and flags are among those that
    /// [`restriction`] lists.
    fn entry(in_flight: &mut InFlight, capabilities: Capabilities) -> squeue::Entry {
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
            Op::ReceiveInto { socket, buffer, range } => {
                let part = &mut buffer[range.clone()];
                let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
                opcode::Recv::new(Fd(socket.raw()), part.as_mut_ptr(), len).build()
            }
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
            Op::Read { file, offset, buffer } => {
                let (rest, len) = rest_of(buffer, in_flight.done_len);
                opcode::Read::new(Fd(file.raw()), rest, len)
                    .offset(*offset + in_flight.done_len as u64)
                    .build()
            }
            Op::Write { file, offset, bytes } => {
                let rest = &bytes[in_flight.done_len..];
                let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
                let offset = *offset + in_flight.done_len as u64;
                opcode::Write::new(Fd(file.raw()), rest.as_ptr(), len).offset(offset).build()
            }
            Op::ReadFile { directory, path, offset, buffer } => {
                let (rest, len) = rest_of(buffer, in_flight.done_len);
                let offset = *offset + in_flight.done_len as u64;
                match (&in_flight.file, in_flight.slot) {
                    (Some(OwnFile::Slot(slot)), _) => {
                        let read = opcode::Read::new(Fixed(*slot), rest, len).offset(offset);
                        read.rw_flags(libc::RWF_NOWAIT).build()
                    }
                    (Some(OwnFile::Descriptor(file)), _) => {
                        opcode::Read::new(Fd(file.file.raw()), rest, len).offset(offset).build()
                    }
                    (None, slot) => {
                        let how =
                            if slot.is_some() { &raw const OPEN_DIRECT_HOW } else { &raw const OPEN_HOW };
                        opcode::OpenAt2::new(Fd(directory.raw()), path.as_ptr(), how)
                            .file_index(
                                slot.and_then(|slot| DestinationSlot::try_from_slot_target(slot).ok()),
                            )
                            .build()
                    }
                }
            }
            Op::AwaitInbox { eventfd } => {
                opcode::Read::new(Fd(eventfd.raw()), BELL.as_ptr().cast(), 8).build()
            }
            Op::SendFile { .. }
            | Op::Cancel(_)
            | Op::ShutdownWrite { .. }
            | Op::TurnAway { .. }
            | Op::Exempt { .. }
            | Op::ResetOnClose { .. } => {
                unreachable!("handled in `submit`")
            }
        }
    }

    /// Sends files, as many as one turn may.
    fn send_files(&mut self) {
        let mut sent_len = 0;
        for _ in 0..SENDFILE_TURN_CALLS_MAX {
            if sent_len >= SENDFILE_TURN_LEN_MAX {
                return;
            }
            let Some(UnsentFile { token, socket, file, offset, len }) = self.unsent.pop_front() else {
                return;
            };
            let result = self.send_file(&socket, &file, offset, len);
            sent_len += *result.as_ref().unwrap_or(&0);
            self.local.push_back((token, LocalOutcome::FileSent(result)));
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
        let len = len.min(SENDFILE_ALONE_LEN_MAX);
        if !self.capabilities.has(Capability::SendFile) {
            return Err(SendFileError::Cold);
        }
        match is_in_memory(file.borrow(), offset, len as u64) {
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

    /// Empties a place in the ring's table. It is free at once: entries are carried out in their order, and this one waits
    /// for nothing.
    fn empty_slot(&mut self, slot: u32) {
        let entry = opcode::Close::new(Fixed(slot)).build();
        self.push(entry.flags(Flags::SKIP_SUCCESS).user_data(SILENT));
        self.free_slots.push(slot);
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
    fn received(&mut self, cqe: &cqueue::Entry, own: Option<Vec<u8>>, armed: bool) -> Outcome<'_> {
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

impl InFlight {
    /// Takes what came of an entry of a read: it is over, or goes on with another entry, which has these flags, and perhaps
    /// without this place in the ring's table.
    ///
    /// A file in the table is read without waiting: one that the disk has to bring is opened again as a descriptor, whose
    /// status can be asked for. So nothing but a regular file is ever waited for; a FIFO could take forever.
    fn read_on(&mut self, cqe: &cqueue::Entry) -> ControlFlow<Result<(), Fault>, (Flags, Option<u32>)> {
        let expected_len = match &self.op {
            Op::ReadFile { .. } if self.file.is_none() => return self.opened(cqe),
            Op::ReadFile { buffer, .. } => buffer.len() - 1,
            Op::Read { buffer, .. } => buffer.len(),
            _ => return ControlFlow::Break(Ok(())),
        };
        let len = match result_of(cqe) {
            Ok(len) => len,
            Err(refusal @ (Errno::AGAIN | Errno::OPNOTSUPP)) if let Some(OwnFile::Slot(slot)) = self.file => {
                self.is_table_refused = refusal == Errno::OPNOTSUPP;
                self.file = None;
                // It is opened by its name, which may be another file's by now.
                self.done_len = 0;
                return ControlFlow::Continue((Flags::empty(), Some(slot)));
            }
            // A file system that cannot do it without waiting: then by a kernel thread.
            Err(Errno::AGAIN) if !self.is_retried => {
                self.is_retried = true;
                return ControlFlow::Continue((Flags::ASYNC, None));
            }
            Err(errno) => return ControlFlow::Break(Err(Fault::File(errno))),
        };
        self.done_len += len;
        match self.done_len.cmp(&expected_len) {
            Ordering::Less if len > 0 => {
                let flags = if self.is_retried { Flags::ASYNC } else { Flags::empty() };
                ControlFlow::Continue((flags, None))
            }
            Ordering::Equal => ControlFlow::Break(Ok(())),
            Ordering::Less | Ordering::Greater => ControlFlow::Break(Err(Fault::Changed)),
        }
    }

    /// Takes what came of an entry of a write: it is over, or goes on with another entry, which has these flags.
    fn write_on(&mut self, cqe: &cqueue::Entry) -> ControlFlow<Result<(), Errno>, Flags> {
        let Op::Write { bytes, .. } = &self.op else { return ControlFlow::Break(Ok(())) };
        match result_of(cqe) {
            Ok(len @ 1..) => self.done_len += len,
            // No file says that of bytes that it could take.
            Ok(0) => return ControlFlow::Break(Err(Errno::IO)),
            Err(Errno::INTR) => {}
            // A file system that cannot do it without waiting: then by a kernel thread.
            Err(Errno::AGAIN) if !self.is_retried => self.is_retried = true,
            Err(errno) => return ControlFlow::Break(Err(errno)),
        }
        if self.done_len >= bytes.len() {
            return ControlFlow::Break(Ok(()));
        }
        ControlFlow::Continue(if self.is_retried { Flags::ASYNC } else { Flags::empty() })
    }

    /// Takes what came of opening the file of an [`Op::ReadFile`].
    fn opened(&mut self, cqe: &cqueue::Entry) -> ControlFlow<Result<(), Fault>, (Flags, Option<u32>)> {
        let file = match self.slot {
            Some(slot) => result_of(cqe).map(|_| OwnFile::Slot(slot)),
            None => opened(cqe).map(OwnFile::Descriptor),
        };
        match file {
            Ok(OwnFile::Descriptor(file)) if file.status.kind != FileKind::Regular => {
                ControlFlow::Break(Err(Fault::Changed))
            }
            Ok(file) => {
                self.slot = None;
                self.file = Some(file);
                ControlFlow::Continue((Flags::empty(), None))
            }
            Err(errno) => ControlFlow::Break(Err(Fault::File(errno))),
        }
    }
}

impl Driver for Uring {
    fn submit(&mut self, submission: Submission) {
        let Submission { token, op } = submission;
        match op {
            Op::SendFile { socket, file, offset, len } => {
                self.unsent.push_back(UnsentFile { token, socket, file, offset, len });
            }
            Op::Cancel(target) => {
                self.push(opcode::AsyncCancel::new(target.pack()).build().user_data(SILENT));
            }
            // A socket that the peer has reset refuses both, and nobody is left who would want to know.
            Op::ShutdownWrite { socket } => drop(sys::shutdown_write(socket.borrow())),
            Op::TurnAway { socket, answer } => sys::turn_away(socket.borrow(), answer),
            Op::Exempt { socket } => sys::exempt(socket.borrow()),
            Op::ResetOnClose { socket } => drop(sys::reset_on_close(socket.borrow())),
            op => {
                let receive_buffer = (matches!(op, Op::Receive { .. }) && self.buffers.is_none())
                    .then(|| vec![0; RECEIVE_BUFFER_LEN_BYTES as usize]);
                let key = token.pack();
                let is_direct = self.is_table_used && matches!(op, Op::ReadFile { .. });
                let slot = if is_direct { self.free_slots.pop() } else { None };
                let in_flight = InFlight {
                    token,
                    op,
                    receive_buffer,
                    is_retried: false,
                    slot,
                    is_table_refused: false,
                    file: None,
                    done_len: 0,
                };
                let in_flight = match self.in_flight.entry(key) {
                    Entry::Vacant(vacant) => vacant.insert(in_flight),
                    Entry::Occupied(mut occupied) => {
                        debug_assert!(false, "one operation per token: {token:?}");
                        // The kernel may still use its buffers.
                        std::mem::forget(occupied.insert(in_flight));
                        occupied.into_mut()
                    }
                };
                let entry = Self::entry(in_flight, self.capabilities).user_data(key);
                self.push(entry);
            }
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Instant> {
        self.take_back_lent();
        self.send_files();
        let since = Instant::now();
        // What the kernel keeps aside comes with the next enter, and nothing says so afterwards.
        self.traffic.has_overflowed |= self.ring.submission().cq_overflow();
        loop {
            let backlogged = !self.backlog.is_empty();
            let ready =
                backlogged || !self.unsent.is_empty() || !self.local.is_empty() || !self.reaped.is_empty();
            self.enter(usize::from(!ready), timeout)?;
            self.reap();
            self.push_backlog();
            if !backlogged || !self.reaped.is_empty() {
                return Ok(since);
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
            let armed = cqueue::more(cqe.flags());
            let Some(in_flight) = self.in_flight.get_mut(&key) else { continue };
            if armed {
                let token = in_flight.token;
                let outcome = match in_flight.op {
                    Op::Accept { .. } => Outcome::Accepted { result: accepted(&cqe), armed },
                    _ => self.received(&cqe, None, armed),
                };
                return Some(Completion { token, outcome });
            }
            let mut read = Ok(());
            if matches!(in_flight.op, Op::Read { .. } | Op::ReadFile { .. }) {
                match in_flight.read_on(&cqe) {
                    ControlFlow::Continue((flags, slot)) => {
                        let entry = Self::entry(in_flight, self.capabilities);
                        self.push(entry.user_data(key).flags(flags));
                        if let Some(slot) = slot {
                            self.empty_slot(slot);
                        }
                        continue;
                    }
                    ControlFlow::Break(result) => read = result,
                }
            }
            let mut written = Ok(());
            if matches!(in_flight.op, Op::Write { .. }) {
                match in_flight.write_on(&cqe) {
                    ControlFlow::Continue(flags) => {
                        let entry = Self::entry(in_flight, self.capabilities);
                        self.push(entry.user_data(key).flags(flags));
                        continue;
                    }
                    ControlFlow::Break(result) => written = result,
                }
            }
            let Some(InFlight { token, op, receive_buffer, slot, file, is_table_refused, .. }) =
                self.in_flight.remove(&key)
            else {
                continue;
            };
            self.free_slots.extend(slot);
            // A FIFO refuses as well, but is never read. This was a file, and those beside it will be like it.
            self.is_table_used &= !(is_table_refused && read.is_ok());
            if let Some(OwnFile::Slot(slot)) = file {
                self.empty_slot(slot);
            }
            let outcome = match op {
                Op::Accept { .. } => Outcome::Accepted { result: accepted(&cqe), armed },
                Op::Receive { .. } => self.received(&cqe, receive_buffer, armed),
                Op::ReceiveInto { buffer, .. } => Outcome::ReceivedInto { result: result_of(&cqe), buffer },
                Op::Send { buffer, range, .. } => Outcome::Sent { result: result_of(&cqe), buffer, range },
                Op::AwaitWritable { .. } => Outcome::Writable(result_of(&cqe).map(drop)),
                Op::Open { .. } => Outcome::Opened(opened(&cqe)),
                Op::Read { buffer, .. } | Op::ReadFile { buffer, .. } => {
                    Outcome::Read { result: read, buffer }
                }
                Op::Write { .. } => Outcome::Written(written),
                Op::AwaitInbox { .. } => Outcome::InboxRung,
                Op::SendFile { .. }
                | Op::Cancel(_)
                | Op::ShutdownWrite { .. }
                | Op::TurnAway { .. }
                | Op::Exempt { .. }
                | Op::ResetOnClose { .. } => {
                    continue;
                }
            };
            return Some(Completion { token, outcome });
        }
    }

    fn time(&self) -> Time {
        Time::now()
    }

    fn take_traffic(&mut self) -> Traffic {
        std::mem::take(&mut self.traffic)
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
    }
}

/// Where what is missing of a buffer is to be read.
/// Makes a ring of as many submission entries as there should be, or else of as many as the kernel has the memory for. Each of its
/// queues is to be one piece of memory or, from Linux 6.14 on, is given page by page in a way that finds one page only
/// (<https://github.com/axboe/liburing/issues/1614>): where files fill the memory, as on a cache, large pieces are scarce. A smaller
/// ring serves all the same, it enters the kernel more often.
fn build<T>(mut make: impl FnMut(u32) -> io::Result<T>) -> io::Result<T> {
    let mut entries = SUBMISSION_ENTRIES;
    loop {
        match make(entries) {
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory && entries > SUBMISSION_ENTRIES_MIN => {
                entries /= 2;
            }
            made => return made,
        }
    }
}

fn rest_of(buffer: &mut BytesMut, filled: usize) -> (*mut u8, u32) {
    let rest = &mut buffer[filled..];
    (rest.as_mut_ptr(), u32::try_from(rest.len()).unwrap_or(u32::MAX))
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

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use bytes::Bytes;
    use rustix::fs::{CWD, Mode, OFlags};

    use super::*;
    use crate::ring::op::{ConnectionId, Purpose};

    /// Both ends of the ladder.
    fn rings() -> [Uring; 2] {
        let (none, all) = (Capabilities::default(), Capabilities::parse(["all"]).unwrap());
        [none, all].map(|off| Uring::new(Capabilities::probe(off).unwrap()).unwrap())
    }

    fn token(number: usize) -> Token {
        let id = ConnectionId { slot: u32::try_from(number).unwrap(), generation: 1 };
        Token::Connection(id, Purpose::File(0))
    }

    /// Reads what follows `offset` of these files, each of which should be `len` bytes longer, side by side.
    fn read_all(
        ring: &mut Uring,
        directory: &Descriptor,
        files: &[(&str, u64, usize)],
    ) -> Vec<Result<Vec<u8>, Fault>> {
        for (number, &(path, offset, len)) in files.iter().enumerate() {
            let (directory, path) = (directory.clone(), CString::new(path).unwrap());
            let op = Op::ReadFile { directory, path, offset, buffer: BytesMut::zeroed(len + 1) };
            ring.submit(Submission { token: token(number), op });
        }
        let mut results: Vec<_> = files.iter().map(|_| None).collect();
        for _ in 0..1_000 {
            if results.iter().all(Option::is_some) {
                break;
            }
            ring.wait(Some(Duration::from_secs(1))).unwrap();
            while let Some(Completion { token: of, outcome: Outcome::Read { result, mut buffer } }) =
                ring.next_completion()
            {
                let number = (0..files.len()).find(|&number| token(number) == of).unwrap();
                buffer.truncate(files[number].2);
                assert!(
                    results[number].replace(result.map(|()| buffer.to_vec())).is_none(),
                    "one completion"
                );
            }
        }
        results.into_iter().map(Option::unwrap).collect()
    }

    #[test]
    fn all_that_goes_in_and_comes_out_is_counted_and_that_it_was_too_much_at_once() {
        for mut ring in rings() {
            let (mut near, mut far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            let mut len = 0;
            while let Ok(written) = near.write(&[0; 4096]) {
                len += written;
            }
            let socket = Descriptor::from(OwnedFd::from(near));
            let (count, some) = ((SUBMISSION_ENTRIES * COMPLETIONS_PER_SUBMISSION) as usize + 100, 10);
            // Nobody completes before it is writable, and then all do.
            for number in 0..count {
                let op = Op::AwaitWritable { socket: socket.clone() };
                ring.submit(Submission { token: token(number), op });
            }
            ring.wait(Some(Duration::from_millis(1))).unwrap();
            let traffic = ring.take_traffic();
            assert_eq!((traffic.submissions, traffic.completions), (count as u64, 0));
            far.read_exact(&mut vec![0; len]).unwrap();
            let mut traffic = Traffic::default();
            let mut completed = 0;
            while completed < count {
                ring.wait(Some(Duration::from_secs(1))).unwrap();
                while ring.next_completion().is_some() {
                    completed += 1;
                }
                let more = ring.take_traffic();
                traffic.submissions += more.submissions;
                traffic.completions += more.completions;
                traffic.has_overflowed |= more.has_overflowed;
            }
            assert_eq!((traffic.submissions, traffic.completions), (0, count as u64));
            // One that is told of completions when it asks is told of as many as there is room for.
            assert!(traffic.has_overflowed || ring.capabilities.has(Capability::DeferTaskrun));
            for number in 0..some {
                let op = Op::AwaitWritable { socket: socket.clone() };
                ring.submit(Submission { token: token(number), op });
            }
            let before = Instant::now();
            assert!(ring.wait(Some(Duration::from_secs(1))).unwrap() >= before);
            let traffic = ring.take_traffic();
            assert_eq!((traffic.submissions, traffic.has_overflowed), (some as u64, false));
        }
    }

    #[test]
    fn a_ring_is_as_large_as_the_kernel_has_memory_for_and_other_errors_are_told_at_once() {
        let with_room_for = |room: u32, tried: &mut Vec<u32>| {
            build(|entries| {
                tried.push(entries);
                if entries > room { Err(io::Error::from_raw_os_error(libc::ENOMEM)) } else { Ok(entries) }
            })
        };
        let mut tried = Vec::new();
        assert_eq!(with_room_for(u32::MAX, &mut tried).unwrap(), SUBMISSION_ENTRIES);
        assert_eq!(with_room_for(SUBMISSION_ENTRIES / 4, &mut tried).unwrap(), SUBMISSION_ENTRIES / 4);
        assert_eq!(tried, [1, 1, 2, 4].map(|part| SUBMISSION_ENTRIES / part));
        assert_eq!(with_room_for(0, &mut tried).unwrap_err().raw_os_error(), Some(libc::ENOMEM));
        assert_eq!(tried.last(), Some(&SUBMISSION_ENTRIES_MIN));
        let refused = build::<()>(|entries| {
            assert_eq!(entries, SUBMISSION_ENTRIES);
            Err(io::Error::from_raw_os_error(libc::EPERM))
        });
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn who_is_exempt_is_so_before_anything_is_sent() {
        for mut ring in rings() {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            sys::bound_unsent(listener.as_fd());
            let _peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (socket, _) = listener.accept().unwrap();
            let bound = socket2::SockRef::from(&socket).tcp_notsent_lowat().unwrap();
            let submitted = Descriptor::from(OwnedFd::from(socket.try_clone().unwrap()));
            ring.submit(Submission { token: token(0), op: Op::Exempt { socket: submitted } });
            let exempt = socket2::SockRef::from(&socket).tcp_notsent_lowat().unwrap();
            assert_eq!((bound, exempt), (crate::limits::UNSENT_LEN_MAX, 0));
        }
    }

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("directory")).unwrap();
        fs::write(folder.path().join("directory/file"), b"0123456789").unwrap();
        fs::write(folder.path().join("long"), vec![7; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("directory/file", folder.path().join("link")).unwrap();
        std::os::unix::fs::symlink("directory", folder.path().join("way")).unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        let directory = Descriptor::from(OwnedFd::from(fs::File::open(folder.path()).unwrap()));
        for mut ring in rings() {
            let free_slots = ring.free_slots.len();
            let read = read_all(
                &mut ring,
                &directory,
                &[
                    ("directory/file", 0, 10),
                    ("directory/file", 4, 6),
                    ("long", 0, 1 << 20),
                    ("directory/file", 0, 9),
                    ("directory/file", 0, 11),
                    ("directory/file", 4, 0),
                    ("missing", 0, 10),
                    ("link", 0, 10),
                    ("way/file", 0, 10),
                    ("../etc/passwd", 0, 10),
                    ("directory", 0, 10),
                    ("fifo", 0, 10),
                ],
            );
            assert_eq!(read[0].as_deref(), Ok(&b"0123456789"[..]));
            assert_eq!(read[1].as_deref(), Ok(&b"456789"[..]));
            assert_eq!(read[2].as_deref(), Ok(&vec![7; 1 << 20][..]));
            assert_eq!(read[3], Err(Fault::Changed), "it is longer");
            assert_eq!(read[4], Err(Fault::Changed), "it is shorter");
            assert_eq!(read[5], Err(Fault::Changed), "it is longer");
            assert_eq!(read[6], Err(Fault::File(Errno::NOENT)));
            assert_eq!(read[7], Err(Fault::File(Errno::LOOP)));
            assert_eq!(read[8], Err(Fault::File(Errno::LOOP)));
            assert_eq!(read[9], Err(Fault::File(Errno::XDEV)));
            assert!(read[10].is_err());
            assert!(read[11].is_err());
            // Somebody has opened it and says nothing, and then just as much as there should be.
            let fifo = rustix::fs::open(&fifo, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).unwrap();
            assert_eq!(read_all(&mut ring, &directory, &[("fifo", 0, 10)]), [Err(Fault::Changed)]);
            rustix::io::write(&fifo, b"0123456789").unwrap();
            assert_eq!(read_all(&mut ring, &directory, &[("fifo", 0, 10)]), [Err(Fault::Changed)]);
            assert_eq!(ring.free_slots.len(), free_slots);
            assert!(ring.in_flight.is_empty());
        }
    }

    #[test]
    fn more_files_than_the_table_has_places_are_read_side_by_side() {
        let folder = tempfile::tempdir().unwrap();
        let count = DIRECT_FILES as usize + 100;
        let names: Vec<_> = (0..count).map(|number| number.to_string()).collect();
        for name in &names {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let files: Vec<_> = names.iter().map(|name| (&name[..], 0, name.len())).collect();
        let directory = Descriptor::from(OwnedFd::from(fs::File::open(folder.path()).unwrap()));
        for mut ring in rings() {
            for _ in 0..3 {
                let read = read_all(&mut ring, &directory, &files);
                assert!(names.iter().zip(&read).all(|(name, read)| read.as_deref() == Ok(name.as_bytes())));
            }
        }
    }

    #[test]
    fn an_open_file_is_read_as_far_as_the_buffer_goes() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let file = Descriptor::from(OwnedFd::from(file));
        for mut ring in rings() {
            for (offset, len, expected) in [(2, 5, Ok(())), (0, 10, Ok(())), (0, 11, Err(Fault::Changed))] {
                let op = Op::Read { file: file.clone(), offset, buffer: BytesMut::zeroed(len) };
                ring.submit(Submission { token: token(0), op });
                let (result, buffer) = loop {
                    ring.wait(Some(Duration::from_secs(10))).unwrap();
                    let completion = ring.next_completion();
                    let Some(Completion { outcome: Outcome::Read { result, buffer }, .. }) = completion
                    else {
                        continue;
                    };
                    break (result, buffer);
                };
                assert_eq!(result, expected);
                let rest = &b"0123456789"[usize::try_from(offset).unwrap()..];
                let end = buffer.len().min(rest.len());
                assert_eq!(buffer[..end], rest[..end]);
            }
        }
    }

    /// What came of the only operation.
    fn outcome(ring: &mut Uring, op: Op) -> Outcome<'static> {
        ring.submit(Submission { token: token(0), op });
        loop {
            ring.wait(Some(Duration::from_secs(10))).unwrap();
            match ring.next_completion().map(|completion| completion.outcome) {
                Some(Outcome::Written(result)) => return Outcome::Written(result),
                Some(Outcome::ReceivedInto { result, buffer }) => {
                    return Outcome::ReceivedInto { result, buffer };
                }
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
    }

    /// Short answers go out between two turns. Without sendfile it is said of each file that it has to be read, in the same order.
    #[test]
    fn a_few_files_are_sent_in_each_turn_and_all_in_the_end() {
        let count = 3 * SENDFILE_TURN_CALLS_MAX + 1;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let file = Descriptor::from(OwnedFd::from(file));
        for mut ring in rings() {
            let (socket, mut peer) = UnixStream::pair().unwrap();
            socket.set_nonblocking(true).unwrap();
            let socket = Descriptor::from(OwnedFd::from(socket));
            for number in 0..count {
                let op = Op::SendFile { socket: socket.clone(), file: file.clone(), offset: 0, len: 10 };
                ring.submit(Submission { token: token(number), op });
            }
            let (mut order, mut sent_len) = (Vec::new(), 0);
            while order.len() < count {
                let before = order.len();
                ring.wait(Some(Duration::from_secs(10))).unwrap();
                while let Some(Completion { token, outcome: Outcome::FileSent(result) }) =
                    ring.next_completion()
                {
                    order.push(token);
                    sent_len += result.unwrap_or(0);
                }
                assert!((1..=SENDFILE_TURN_CALLS_MAX).contains(&(order.len() - before)));
            }
            assert!(order.into_iter().eq((0..count).map(token)));
            drop((ring, socket));
            let mut read = Vec::new();
            peer.read_to_end(&mut read).unwrap();
            assert_eq!(read.len(), sent_len);
        }
    }

    #[test]
    fn pieces_are_written_where_they_belong_and_are_nobodys_then() {
        let bytes: Vec<u8> = (0..=255).cycle().take(3 << 20).collect();
        for mut ring in rings() {
            let file = tempfile::NamedTempFile::new().unwrap();
            let descriptor = Descriptor::from(OwnedFd::from(file.reopen().unwrap()));
            // The later piece first.
            for range in [1 << 20..3 << 20, 0..1 << 20] {
                let whole = Bytes::copy_from_slice(&bytes[range.clone()]);
                let op =
                    Op::Write { file: descriptor.clone(), offset: range.start as u64, bytes: whole.clone() };
                let written = outcome(&mut ring, op);
                assert!(matches!(written, Outcome::Written(Ok(()))), "{written:?}");
                assert!(whole.try_into_mut().is_ok());
            }
            assert!(fs::read(file.path()).unwrap() == bytes);
        }
    }

    /// A pipe takes 64 KiB at a time.
    #[test]
    fn a_write_goes_on_until_all_is_written() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        for mut ring in rings() {
            let (reader, writer) = io::pipe().unwrap();
            let written = std::thread::scope(|scope| {
                let reading = scope.spawn(|| {
                    let mut read = Vec::new();
                    let mut reader = reader;
                    reader.read_to_end(&mut read).unwrap();
                    read
                });
                let file = Descriptor::from(OwnedFd::from(writer));
                let op = Op::Write { file, offset: 0, bytes: bytes.clone().into() };
                let written = outcome(&mut ring, op);
                assert!(reading.join().unwrap() == bytes);
                written
            });
            assert!(matches!(written, Outcome::Written(Ok(()))), "{written:?}");
        }
    }

    #[test]
    fn what_cannot_be_written_whole_says_why() {
        for mut ring in rings() {
            let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let file = Descriptor::from(OwnedFd::from(full));
            let full = outcome(&mut ring, Op::Write { file, offset: 0, bytes: vec![1; 10].into() });
            assert!(matches!(full, Outcome::Written(Err(Errno::NOSPC))), "{full:?}");
            // It takes some, and then nobody reads on.
            let (mut reader, writer) = io::pipe().unwrap();
            let broken = std::thread::scope(|scope| {
                scope.spawn(move || reader.read_exact(&mut [0; 100]).unwrap());
                let file = Descriptor::from(OwnedFd::from(writer));
                outcome(&mut ring, Op::Write { file, offset: 0, bytes: vec![1; 1 << 20].into() })
            });
            assert!(matches!(broken, Outcome::Written(Err(Errno::PIPE))), "{broken:?}");
            assert!(ring.in_flight.is_empty());
        }
    }

    #[test]
    fn no_more_is_received_than_there_is_room_for() {
        for mut ring in rings() {
            let (socket, mut peer) = UnixStream::pair().unwrap();
            socket.set_nonblocking(true).unwrap();
            let mut rest = socket.try_clone().unwrap();
            let socket = Descriptor::from(OwnedFd::from(socket));
            peer.write_all(b"0123456789").unwrap();
            let op = Op::ReceiveInto { socket: socket.clone(), buffer: BytesMut::zeroed(10), range: 2..6 };
            let Outcome::ReceivedInto { result, buffer } = outcome(&mut ring, op) else { panic!() };
            assert_eq!((result, &buffer[..]), (Ok(4), &b"\0\x000123\0\0\0\0"[..]));
            let mut unread = [0; 10];
            assert_eq!(rest.read(&mut unread).unwrap(), 6);
            // Nothing is there yet; then the end is.
            let op = Op::ReceiveInto { socket: socket.clone(), buffer, range: 0..10 };
            ring.submit(Submission { token: token(1), op });
            ring.wait(Some(Duration::ZERO)).unwrap();
            assert!(ring.next_completion().is_none());
            drop(peer);
            ring.wait(Some(Duration::from_secs(10))).unwrap();
            let completion = ring.next_completion().unwrap();
            let Outcome::ReceivedInto { result, buffer } = completion.outcome else { panic!() };
            assert_eq!((result, buffer.len()), (Ok(0), 10));
        }
    }

    #[test]
    fn a_receive_that_is_cancelled_gives_its_buffer_back() {
        for mut ring in rings() {
            let (socket, _peer) = UnixStream::pair().unwrap();
            socket.set_nonblocking(true).unwrap();
            let socket = Descriptor::from(OwnedFd::from(socket));
            let op = Op::ReceiveInto { socket, buffer: BytesMut::zeroed(10), range: 0..10 };
            ring.submit(Submission { token: token(0), op });
            ring.wait(Some(Duration::ZERO)).unwrap();
            ring.submit(Submission { token: token(1), op: Op::Cancel(token(0)) });
            ring.wait(Some(Duration::from_secs(10))).unwrap();
            let completion = ring.next_completion().unwrap();
            let Outcome::ReceivedInto { result, buffer } = completion.outcome else { panic!() };
            assert_eq!((result, buffer.len()), (Err(Errno::CANCELED), 10));
        }
    }
}
