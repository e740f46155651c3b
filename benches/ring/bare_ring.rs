//! A ring without a program around it: what io_uring itself takes for opening, reading, receiving and sending.
//!
//! Everything that the kernel is given pointers to is fixed when the ring is made and belongs to it.
#![expect(unsafe_code, reason = "the kernel is given pointers; each block says why they stay valid")]

use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use io_uring::squeue::Flags;
use io_uring::types::{DestinationSlot, Fd, Fixed, OpenHow};
use io_uring::{IoUring, opcode, squeue};
use narwire::ring::buffer_ring::{BufferRing, Lent};

/// As narwire opens files: never through links, never out of the directory.
pub const OPEN_FLAGS: i32 = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
static OPEN_HOW: OpenHow =
    OpenHow::new().flags(OPEN_FLAGS as u64).resolve(libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS);
/// Direct descriptors are not inherited, and refuse the flag that says so.
static OPEN_DIRECT_HOW: OpenHow = OpenHow::new()
    .flags((OPEN_FLAGS & !libc::O_CLOEXEC) as u64)
    .resolve(libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS);

/// What an entry is, in the upper half of its user data; its tag is the lower half.
const OPEN: u64 = 1;
const READ: u64 = 2;
const SEND: u64 = 3;
const ACCEPT: u64 = 4;
const RECEIVE: u64 = 5;
/// Entries whose success says nothing.
const SILENT: u64 = 6;

/// What the kernel needs memory and limits for.
#[derive(Default)]
pub struct Parts {
    /// Names that can be opened.
    pub names: Vec<CString>,
    /// Buffers that can be read into and sent from.
    pub buffers: Vec<Box<[u8]>>,
    /// Direct descriptors.
    pub slots: u32,
    /// Kernel threads for what cannot be done without waiting, per kind.
    pub kernel_threads: u32,
    /// Whether sockets are received from.
    pub receives: bool,
}

/// A ring of the calling thread.
pub struct BareRing {
    // The ring is dropped before the memory that the kernel knows.
    ring: IoUring,
    names: Vec<CString>,
    buffers: Vec<Box<[u8]>>,
    receive_buffers: Option<BufferRing>,
    /// Completions that are still to come.
    expected: usize,
    /// After an error it is not known how many are.
    is_broken: bool,
}

/// A completion.
pub enum Done {
    Opened(OwnedFd),
    /// So many bytes were read, by an entry or by a chain.
    Read(usize),
    Sent(usize),
    Accepted(OwnedFd),
    /// So many bytes were received; `armed` while more will come without asking again.
    Received {
        len_bytes: usize,
        armed: bool,
    },
    /// Something that only completes.
    Finished,
}

impl BareRing {
    pub fn new(parts: Parts) -> io::Result<Self> {
        let entries = u32::try_from(4 * parts.buffers.len()).unwrap_or(u32::MAX).max(256).next_power_of_two();
        let ring = IoUring::builder()
            .setup_cqsize(2 * entries)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(entries)?;
        let threads = parts.kernel_threads;
        ring.submitter().register_iowq_max_workers(&mut [threads, threads])?;
        if parts.slots > 0 {
            ring.submitter().register_files_sparse(parts.slots)?;
        }
        let receive_buffers =
            if parts.receives { Some(BufferRing::register(&ring.submitter())?) } else { None };
        Ok(Self {
            ring,
            names: parts.names,
            buffers: parts.buffers,
            receive_buffers,
            expected: 0,
            is_broken: false,
        })
    }

    /// Writes to the begin of a buffer, while nothing is under way.
    pub fn fill(&mut self, buffer: usize, bytes: &[u8]) {
        assert_eq!(self.expected, 0, "the kernel has the buffer");
        self.buffers[buffer][..bytes.len()].copy_from_slice(bytes);
    }

    /// Opens a name beneath a directory.
    pub fn open(&mut self, directory: BorrowedFd<'_>, name: usize, tag: u32) -> io::Result<()> {
        let path = self.names[name].as_ptr();
        let entry = opcode::OpenAt2::new(Fd(directory.as_raw_fd()), path, &raw const OPEN_HOW).build();
        self.push(OPEN, tag, entry)
    }

    /// The same without a check of the way to it, which nobody needs who gives a single component.
    pub fn open_plain(&mut self, directory: BorrowedFd<'_>, name: usize, tag: u32) -> io::Result<()> {
        let path = self.names[name].as_ptr();
        let flags = OPEN_FLAGS | libc::O_NOFOLLOW;
        let entry = opcode::OpenAt::new(Fd(directory.as_raw_fd()), path).flags(flags).build();
        self.push(OPEN, tag, entry)
    }

    /// Reads into a part of a buffer.
    pub fn read(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        (buffer, range): (usize, Range<usize>),
        tag: u32,
    ) -> io::Result<()> {
        let bytes = &mut self.buffers[buffer][range];
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry = opcode::Read::new(Fd(file.as_raw_fd()), bytes.as_mut_ptr(), len).offset(offset).build();
        self.push(READ, tag, entry)
    }

    /// Opens a name as a direct descriptor, reads into the buffer of the same number, and closes it: a chain of three entries.
    ///
    /// Either all three complete; or, when `is_quiet`, the last only, and the read as well when the file is shorter than
    /// `len_bytes`. That the read is the one that completes is not possible: its slot may be closed later than it is used again.
    pub fn open_read_close(
        &mut self,
        directory: BorrowedFd<'_>,
        name: usize,
        (buffer, len_bytes): (usize, usize),
        is_quiet: bool,
        tag: u32,
    ) -> io::Result<()> {
        let slot = u32::try_from(buffer).unwrap_or(u32::MAX);
        let destination =
            DestinationSlot::try_from_slot_target(slot).map_err(|_| io::ErrorKind::InvalidInput)?;
        let path = self.names[name].as_ptr();
        let bytes = &mut self.buffers[buffer][..len_bytes];
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        // An ordinary link would break at a read that meets the end of the file.
        let (quiet, link) = if is_quiet {
            (Flags::SKIP_SUCCESS, Flags::IO_LINK)
        } else {
            (Flags::empty(), Flags::IO_HARDLINK)
        };
        let open = opcode::OpenAt2::new(Fd(directory.as_raw_fd()), path, &raw const OPEN_DIRECT_HOW)
            .file_index(Some(destination))
            .build()
            .flags(Flags::IO_LINK | quiet);
        let read = opcode::Read::new(Fixed(slot), bytes.as_mut_ptr(), len).build().flags(link | quiet);
        let close = opcode::Close::new(Fixed(slot)).build();
        self.push(SILENT, tag, open)?;
        self.push(READ, tag, read)?;
        self.push(SILENT, tag, close)?;
        if is_quiet {
            self.expected -= 2;
        }
        Ok(())
    }

    /// Closes a descriptor by an entry.
    pub fn close(&mut self, file: OwnedFd, tag: u32) -> io::Result<()> {
        let entry = opcode::Close::new(Fd(std::os::fd::IntoRawFd::into_raw_fd(file))).build();
        self.push(SILENT, tag, entry)
    }

    /// Sends a part of a buffer.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        (buffer, range): (usize, Range<usize>),
        flags: i32,
        tag: u32,
    ) -> io::Result<()> {
        let bytes = &self.buffers[buffer][range];
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let flags = flags | libc::MSG_NOSIGNAL;
        let entry = opcode::Send::new(Fd(socket.as_raw_fd()), bytes.as_ptr(), len).flags(flags).build();
        self.push(SEND, tag, entry)
    }

    /// Accepts for as long as the listener lives.
    pub fn accept(&mut self, listener: BorrowedFd<'_>, tag: u32) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        self.push(ACCEPT, tag, entry.build())
    }

    /// Receives for as long as the peer sends.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, tag: u32) -> io::Result<()> {
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), BufferRing::GROUP).build();
        self.push(RECEIVE, tag, entry)
    }

    /// Hands over what was pushed, and waits for one completion at least.
    pub fn wait(&mut self) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// The next completion that is there, with its tag.
    pub fn next(&mut self) -> Option<(u32, io::Result<Done>)> {
        let entry = self.ring.completion().next()?;
        let armed = io_uring::cqueue::more(entry.flags());
        if !armed {
            self.expected = self.expected.saturating_sub(1);
        }
        let (kind, tag) = (entry.user_data() >> 32, (entry.user_data() & u64::from(u32::MAX)) as u32);
        let Ok(result) = usize::try_from(entry.result()) else {
            self.is_broken = true;
            return Some((tag, Err(io::Error::from_raw_os_error(-entry.result()))));
        };
        let done = match kind {
            OPEN | ACCEPT => {
                // SAFETY: a result of 0 or more of an open or accept is a new descriptor of this process, named in no other place.
                let descriptor = unsafe { OwnedFd::from_raw_fd(entry.result()) };
                if kind == OPEN { Done::Opened(descriptor) } else { Done::Accepted(descriptor) }
            }
            READ => Done::Read(result),
            SEND => Done::Sent(result),
            RECEIVE => {
                if let (Some(id), Some(buffers)) =
                    (io_uring::cqueue::buffer_select(entry.flags()), &mut self.receive_buffers)
                {
                    buffers.give_back(Lent { id, len_bytes: result });
                }
                Done::Received { len_bytes: result, armed }
            }
            _ => Done::Finished,
        };
        Some((tag, Ok(done)))
    }

    fn push(&mut self, kind: u64, tag: u32, entry: squeue::Entry) -> io::Result<()> {
        let entry = entry.user_data(kind << 32 | u64::from(tag));
        self.expected += 1;
        // SAFETY: the pointers of entries lead to statics, or into `names`, `buffers` and `receive_buffers`, which neither grow nor
        // move, and which `drop` leaves to the kernel as long as a completion is to come.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?;
            // SAFETY: as above.
            unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        }
        Ok(())
    }
}

impl Drop for BareRing {
    fn drop(&mut self) {
        if self.expected > 0 || self.is_broken {
            std::mem::forget(std::mem::take(&mut self.names));
            std::mem::forget(std::mem::take(&mut self.buffers));
            std::mem::forget(self.receive_buffers.take());
        }
    }
}
