//! What follows the head of an answer: a function from positions to pieces.
//!
//! A body is asked for the piece at a position, never told to advance. So whoever sends it keeps one number, and a peer
//! that does not read costs a number and no buffer.

use std::ffi::CStr;

use bytes::Bytes;
use rustix::io::Errno;
use tracing::error;

use super::descriptor::Descriptor;

/// Contents found by position.
///
/// A body whose length is not known before its end ([`super::service::ReplyBody::Unbounded`]) can be one that is made only
/// once: what follows a piece is asked for when the socket has taken all of that piece, and from then on nothing before it is.
/// Until then any position in the piece may be asked for, again as well.
pub trait Body {
    /// The piece that covers `position`, starting there. In a body of known length there is one.
    fn piece_at(&mut self, position: u64) -> Lookup<'_>;

    /// Whether the body should be given up because others were refused for want of what it holds. Asked once a second while its peer
    /// takes less than [`crate::limits::SEND_PROGRESS_LEN_MIN`], with how long it has done so; yes is said once.
    fn yields(&mut self, _stalled_s: u64) -> bool {
        false
    }

    /// Says that a file was not what the body said, so that the connection is reset.
    fn broke(&mut self, fault: Fault) {
        error!("a download was broken off: {fault}");
    }
}

/// Why a file of a body cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It cannot be opened or read.
    #[error("a file cannot be read ({0})")]
    File(Errno),
    /// It is no regular file of the length that it should have.
    #[error("a file has another length or kind than before")]
    Changed,
}

/// What a body has at a position.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// At least one byte.
    Piece(Piece<'a>),
    /// Not known yet; the connection is told when to ask again ([`super::service::Effects::resume`]).
    NotYet,
    /// The body ends here. One of known length never says that of a position before its end.
    End,
    /// It will never be known: the connection is reset. Whoever made the body has logged why.
    Broken,
}

/// A run of bytes of a body.
#[derive(Debug)]
pub enum Piece<'a> {
    /// They are here.
    Bytes(&'a [u8]),
    /// They are in a file.
    File(FilePiece<'a>),
}

impl Piece<'_> {
    /// Length of the run. Bytes.
    pub fn len_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(piece) => piece.len,
        }
    }
}

/// A run of bytes of a file.
#[derive(Clone, Copy, Debug)]
pub struct FilePiece<'a> {
    /// The file.
    pub source: FileSource<'a>,
    /// Where the run starts in the file. Bytes.
    pub offset: u64,
    /// Bytes, at least 1.
    pub len: u64,
}

/// Where a file comes from.
#[derive(Clone, Copy, Debug)]
pub enum FileSource<'a> {
    /// It is open.
    Open(&'a Descriptor),
    /// It has to be opened, never through a link.
    Beneath {
        /// The directory.
        directory: &'a Descriptor,
        /// Relative to the directory.
        path: &'a CStr,
        /// The length it must have. Bytes; another one means that the file was changed, and breaks the body.
        len_bytes: u64,
    },
}

/// A body in memory.
pub struct BytesBody(pub Bytes);

impl Body for BytesBody {
    fn piece_at(&mut self, position: u64) -> Lookup<'_> {
        match usize::try_from(position).ok().and_then(|start| self.0.get(start..)) {
            Some(rest) if !rest.is_empty() => Lookup::Piece(Piece::Bytes(rest)),
            _ => Lookup::Broken,
        }
    }
}

/// A body that is one open file.
pub struct FileBody {
    /// The file.
    pub file: Descriptor,
    /// Its length when it was opened. Bytes.
    pub len_bytes: u64,
}

impl Body for FileBody {
    fn piece_at(&mut self, position: u64) -> Lookup<'_> {
        match self.len_bytes.checked_sub(position) {
            Some(len @ 1..) => Lookup::Piece(Piece::File(FilePiece {
                source: FileSource::Open(&self.file),
                offset: position,
                len,
            })),
            _ => Lookup::Broken,
        }
    }
}
