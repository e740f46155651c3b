//! The seam between logic and kernel: what can be asked, and what comes back.
//!
//! The connection state machine speaks only these values. The real ring ([`super::uring`]) and the simulated one
//! (`super::sim`, in tests) accept the same ones.
//!
//! An operation owns every buffer and holds every descriptor it needs until its completion hands them back: nothing that
//! the kernel may still touch can be freed, reused or closed, whatever happens to the connection meanwhile.

use std::ffi::CString;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;

use super::body::Fault;
use super::descriptor::Descriptor;

/// Names a connection for as long as it lives, and for long after: its slot is used again, its name is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    /// Index in the table of connections.
    pub slot: u32,
    /// Tells the connections of one slot apart: how many connections the worker had before it.
    pub generation: u64,
}

/// Names an operation from submission to completion. At most one operation with a given token is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Token {
    /// Accepting on the listener of this index.
    Listener(u16),
    /// Waiting for the inbox of this worker.
    Inbox,
    /// An operation of a connection.
    Connection(ConnectionId, Purpose),
}

/// What a connection's operation is for. One of each kind is in flight at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Reading requests, or the body of one.
    Receive,
    /// Sending, or waiting until sending is possible.
    Send,
    /// Opening what the service asked for.
    ServiceOpen,
    /// Reading the file with this index in the transfer's current batch, or opening the only one.
    File(u16),
    /// Writing a piece of a body to a file.
    Write,
}

/// One operation. See the module documentation for who owns what.
#[derive(Debug)]
pub enum Op {
    /// Accept connections until told otherwise (several completions, see [`Outcome::Accepted`]).
    Accept {
        /// A listening socket, not set to non-blocking.
        listener: Descriptor,
    },
    /// Read from a socket into the ring's own buffers (several completions, see [`Outcome::Received`]).
    Receive {
        /// A connected socket.
        socket: Descriptor,
    },
    /// Read from a socket straight into `buffer[range]`, which is not empty: what is there, or what comes first. Nothing behind
    /// that is touched.
    ReceiveInto {
        /// A connected socket.
        socket: Descriptor,
        /// Comes back with the completion.
        buffer: BytesMut,
        /// Which part of it is filled, from its beginning on.
        range: Range<usize>,
    },
    /// Send `buffer[range]`.
    Send {
        /// A connected socket.
        socket: Descriptor,
        /// The bytes; comes back with the completion.
        buffer: BytesMut,
        /// Which of them.
        range: Range<usize>,
        /// More of the same response follows at once (`MSG_MORE`).
        more: bool,
        /// Wait until at least one byte is sent. Without it a peer that does not read is [`Errno::AGAIN`] at once, and
        /// the buffer comes back.
        wait: bool,
    },
    /// Send a file's range without copying it, if it is in memory. Does not wait for the peer.
    SendFile {
        /// A connected, non-blocking socket.
        socket: Descriptor,
        /// A regular file.
        file: Descriptor,
        /// Where the range starts in the file. Bytes.
        offset: u64,
        /// Bytes, at least 1.
        len: usize,
    },
    /// Complete when the socket takes bytes again, or failed.
    AwaitWritable {
        /// A connected socket.
        socket: Descriptor,
    },
    /// Open a file beneath a directory, never through a link.
    Open {
        /// The directory.
        directory: Descriptor,
        /// Relative to the directory.
        path: CString,
    },
    /// Fill `buffer` from a file.
    Read {
        /// A regular file.
        file: Descriptor,
        /// Where in the file. Bytes.
        offset: u64,
        /// Comes back with the completion.
        buffer: BytesMut,
    },
    /// Read a file from `offset` to its end. It is opened beneath a directory for this, never through a link.
    ReadFile {
        /// The directory.
        directory: Descriptor,
        /// Relative to the directory.
        path: CString,
        /// Where in the file. Bytes.
        offset: u64,
        /// Has room for one byte more than the file should have there: a file that fills it has grown, and one that leaves more
        /// than that byte has shrunk. Comes back with the completion.
        buffer: BytesMut,
    },
    /// Write `bytes` to a file, all of them.
    Write {
        /// A regular file, open for writing.
        file: Descriptor,
        /// Where in the file. Bytes.
        offset: u64,
        /// At least one. Nobody has them any more when the operation is completed.
        bytes: Bytes,
    },
    /// Complete when another thread rang the worker's bell.
    AwaitInbox {
        /// An eventfd, not set to non-blocking.
        eventfd: Descriptor,
    },
    /// End the operation with this token soon. The operation's own completion still comes; this one has none.
    Cancel(Token),
    /// Tell the peer that nothing more follows. No completion.
    ShutdownWrite {
        /// A connected socket.
        socket: Descriptor,
    },
    /// Say this to a peer that is not listened to, as far as its socket takes it, and forget what it has said. No completion.
    TurnAway {
        /// A connected socket.
        socket: Descriptor,
        /// Little enough for the buffer of a new socket.
        answer: &'static [u8],
    },
    /// Let the kernel take what it likes of what is sent here, also while the peer does not read. No completion.
    Exempt {
        /// A connected socket. Its listener has bounded what the kernel takes.
        socket: Descriptor,
    },
    /// Make the coming close a reset, so that the peer cannot take a cut body for a whole one. No completion.
    ResetOnClose {
        /// A connected socket.
        socket: Descriptor,
    },
}

/// An operation and its name.
#[derive(Debug)]
pub struct Submission {
    /// Comes back with every completion.
    pub token: Token,
    /// What to do.
    pub op: Op,
}

/// One answer of the ring.
#[derive(Debug)]
pub struct Completion<'ring> {
    /// Of the submission.
    pub token: Token,
    /// What came of it.
    pub outcome: Outcome<'ring>,
}

/// What came of an operation.
#[derive(Debug)]
pub enum Outcome<'ring> {
    /// Of [`Op::Accept`].
    Accepted {
        /// The new connection's socket: non-blocking, closed on exec.
        result: Result<Descriptor, Errno>,
        /// Whether the operation goes on; if not, it has to be submitted again.
        armed: bool,
    },
    /// Of [`Op::Receive`].
    Received {
        /// The bytes, valid until the next completion is taken; empty when the peer has ended its side.
        /// [`Errno::NOBUFS`] and [`Errno::CANCELED`] are passing states, every other error ends the connection.
        result: Result<&'ring [u8], Errno>,
        /// Whether the operation goes on; if not, it has to be submitted again.
        armed: bool,
    },
    /// Of [`Op::ReceiveInto`].
    ReceivedInto {
        /// Bytes that were read; 0 when the peer has ended its side. The errors are those of [`Outcome::Received`].
        result: Result<usize, Errno>,
        /// The submission's buffer.
        buffer: BytesMut,
    },
    /// Of [`Op::Send`].
    Sent {
        /// Bytes that the kernel took.
        result: Result<usize, Errno>,
        /// The submission's buffer.
        buffer: BytesMut,
        /// The submission's range.
        range: Range<usize>,
    },
    /// Of [`Op::SendFile`].
    FileSent(Result<usize, SendFileError>),
    /// Of [`Op::AwaitWritable`].
    Writable(Result<(), Errno>),
    /// Of [`Op::Open`].
    Opened(Result<OpenedFile, Errno>),
    /// Of [`Op::Read`] and [`Op::ReadFile`].
    Read {
        /// Whether everything is there that should be.
        result: Result<(), Fault>,
        /// The submission's buffer.
        buffer: BytesMut,
    },
    /// Of [`Op::Write`]: whether all bytes are in the file.
    Written(Result<(), Errno>),
    /// Of [`Op::AwaitInbox`].
    InboxRung,
}

/// Why [`Op::SendFile`] sent nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendFileError {
    /// The peer does not read: try again when it is writable.
    WouldBlock,
    /// The range is not in memory, or this ring cannot tell: read it with [`Op::Read`].
    Cold,
    /// The file ends before the range does.
    Truncated,
    /// The connection or the file failed.
    Failed(Errno),
}

/// An open file and what `fstat` said of it.
#[derive(Clone, Debug)]
pub struct OpenedFile {
    /// The file.
    pub file: Descriptor,
    /// What it is.
    pub status: FileStatus,
}

/// The part of a file's status that answers need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStatus {
    /// What kind of thing was opened.
    pub kind: FileKind,
    /// Length in bytes (of a regular file).
    pub len_bytes: u64,
    /// Inode number: with the next two fields it tells one version of a file from another.
    pub inode: u64,
    /// Last change of the contents, seconds since 1970.
    pub modified_s: i64,
    /// Nanoseconds to add to `modified_s`.
    pub modified_ns: u32,
    /// Last change of the contents or of what is said of them, which nobody can set: seconds since 1970.
    pub changed_s: i64,
    /// Nanoseconds to add to `changed_s`.
    pub changed_ns: u32,
}

/// What kind of thing was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// Anything else, which is never served.
    Other,
}

impl Token {
    /// The token as the kernel carries it, 64 bits. Of the generation there is room for the last 24, and none are needed: a slot is used
    /// again when the last operation of the connection before has completed. What other threads say comes later than that, and has the
    /// whole of it.
    pub fn pack(self) -> u64 {
        match self {
            Self::Inbox => u64::from(Kind::Inbox as u8) << 56,
            Self::Listener(index) => u64::from(Kind::Listener as u8) << 56 | u64::from(index),
            Self::Connection(id, purpose) => {
                let (kind, index) = match purpose {
                    Purpose::Receive => (Kind::Receive, 0),
                    Purpose::Send => (Kind::Send, 0),
                    Purpose::ServiceOpen => (Kind::ServiceOpen, 0),
                    Purpose::File(index) => (Kind::File, u64::from(index)),
                    Purpose::Write => (Kind::Write, 0),
                };
                debug_assert!(index < 1 << 8 && id.slot < 1 << 24, "bounded by the limits");
                u64::from(kind as u8) << 56
                    | index << 48 & 0xff << 48
                    | u64::from(id.slot & 0xff_ffff) << 24
                    | id.generation & 0xff_ffff
            }
        }
    }
}

/// The first byte of a packed token.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    Inbox,
    Listener,
    Receive,
    Send,
    ServiceOpen,
    File,
    Write,
}
