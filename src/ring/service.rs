//! Where policy meets the connection: who is asked, and what an answer is.

use std::ffi::CString;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::Errno;

use super::body::Body;
use super::descriptor::Descriptor;
use super::ledger::Topic;
use super::op::{ConnectionId, OpenedFile};
use crate::codec::http::Status;
use crate::codec::http::request::Request;
use crate::codec::http::response::{CacheControl, Fields};

/// Answers requests. One per worker; it never waits.
pub trait Service {
    /// A request. Each connection has at most one that is not answered.
    fn call(&mut self, caller: &Caller<'_>, request: &Request<'_>) -> Called;

    /// What has come is no request; it is answered already. Says who wants to know how that ends.
    fn misunderstood(&mut self, _: &Caller<'_>) -> Option<Witness> {
        None
    }

    /// What came of [`Answer::Open`].
    fn opened(&mut self, id: ConnectionId, result: Result<OpenedFile, Errno>) -> Answer;

    /// The next bytes of a body that was asked for with [`Answer::Receive`]: at least one, at most
    /// [`crate::limits::INTAKE_PIECE_LEN_BYTES`]. The next piece comes after [`Effects::looked_at`] has said so of this one, which
    /// nobody should have any more then. A reply meanwhile ends the matter, and the rest of the body is dropped with the connection.
    fn body(&mut self, id: ConnectionId, piece: Bytes);

    /// The body has ended where its head or its framing said; every piece was looked at, and is in the file if there is one.
    fn received(&mut self, id: ConnectionId) -> Answer;

    /// A piece could not be written to the file of [`Answer::Receive`]; perhaps it is still being looked at. Whatever is answered,
    /// the connection ends then.
    fn unwritten(&mut self, id: ConnectionId, errno: Errno) -> Answer;

    /// The connection has gone before it was answered, or the body that it was to bring is malformed or did not come in time.
    fn gone(&mut self, id: ConnectionId);
}

/// Who asks.
pub struct Caller<'a> {
    /// The connection.
    pub id: ConnectionId,
    pub(super) socket: &'a Descriptor,
}

impl Caller<'_> {
    /// The address of the peer, asked of the kernel: `None` on a unix socket, an error when the peer has gone.
    pub fn address(&self) -> Result<Option<IpAddr>, Errno> {
        self.socket.peer_address()
    }
}

/// A service that other threads can talk to.
pub trait Node: Service {
    /// What other threads say.
    type Message: Send + 'static;

    /// Takes a message, and says which connections it concerns.
    fn message(&mut self, message: Self::Message, effects: &mut Effects);

    /// Called about once a second.
    fn tick(&mut self);
}

/// What a message means for connections.
#[derive(Default)]
pub struct Effects {
    /// Requests that can be answered now.
    pub answers: Vec<(ConnectionId, Answer)>,
    /// Connections whose body said [`super::body::Lookup::NotYet`] and should be asked again. A body that was sent meanwhile does
    /// not mind.
    pub resume: Vec<ConnectionId>,
    /// Connections whose piece, which [`Service::body`] got, was looked at. Said once for each.
    pub looked_at: Vec<ConnectionId>,
}

/// A request that the service has taken.
pub struct Called {
    /// What it is about.
    pub topic: Topic,
    /// Who wants to know how it ends.
    pub witness: Option<Witness>,
    /// What is said to it.
    pub answer: Answer,
}

/// Of a request that is about nothing in particular: for tests.
#[cfg(any(test, fuzzing))]
impl From<Answer> for Called {
    fn from(answer: Answer) -> Self {
        Self { topic: Topic(1), witness: None, answer }
    }
}

/// Is told how a request has ended, on the worker's thread; it must not wait.
pub type Witness = Box<dyn FnOnce(&Ending)>;

/// How a request has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// What was answered; `None` if the peer has gone before.
    pub status: Option<Status>,
    /// How much of the answer has gone, its head included: of a body that is streamed what the kernel has taken, of an answer from memory
    /// what was put in line for it. Bytes.
    pub sent_len_bytes: u64,
    /// Whether that was all of it.
    pub is_whole: bool,
}

/// What a service says to a request.
pub enum Answer {
    /// This.
    Reply(Reply),
    /// A message will bring it.
    Pending,
    /// It depends on a file that has to be opened first, never through a link.
    Open {
        /// The directory.
        directory: Descriptor,
        /// Relative to the directory.
        path: CString,
    },
    /// It depends on the body of the request, which comes to [`Service::body`] piece by piece. For who waits for it, this is
    /// `100 Continue`. A body that was never asked for is not read, and the connection ends after the answer.
    Receive {
        /// A file that gets the pieces as well, from its beginning on.
        file: Option<Descriptor>,
    },
}

/// An answer without what belongs to the connection (status line, `Date`, `Connection`).
pub struct Reply {
    /// The status.
    pub status: Status,
    /// The rest of the head as [`Fields`] renders it, with the blank line at its end unless the body brings it or is
    /// [`ReplyBody::Unbounded`].
    pub fields: Bytes,
    /// What follows. Left out for HEAD.
    pub body: ReplyBody,
}

/// What follows the head.
pub enum ReplyBody {
    /// Nothing.
    Empty,
    /// Bytes in memory.
    Bytes(Bytes),
    /// The last fields, the blank line and the body in one piece, which whoever answers with it keeps.
    Rendered {
        /// The piece.
        text: Arc<dyn AsRef<[u8]> + Send + Sync>,
        /// Where the body begins.
        fields_len: usize,
    },
    /// A part of a body.
    Stream {
        /// The body.
        body: Box<dyn Body>,
        /// Which bytes of it.
        range: Range<u64>,
    },
    /// A body whose length nobody knows before its end. How the peer learns of its end depends on the version, so the connection
    /// ends the head.
    Unbounded(Box<dyn Body>),
}

impl Reply {
    /// A short text for people: what clients show when a request fails. Never stored by caches.
    pub fn text(status: Status, text: impl Into<Bytes>) -> Self {
        Self::text_with(status, Fields::new(), text)
    }

    /// The same with fields of its own.
    pub fn text_with(status: Status, fields: Fields, text: impl Into<Bytes>) -> Self {
        let text = text.into();
        let fields = fields
            .content_type("text/plain; charset=utf-8")
            .cache_control(CacheControl::NoStore)
            .content_length(text.len() as u64)
            .finish();
        Self { status, fields, body: ReplyBody::Bytes(text) }
    }
}
