//! Sending a body: small files packed together with what stands between them, large ranges without copying, cold ones
//! read ahead through the ring. No step waits for a disk or a peer.
//!
//! The whole state of a transfer between two steps is one position. In each step (one per connection and turn of the
//! loop, which is what keeps a big NAR from slowing a small answer down) it does one of three things:
//!
//! - **pack**: fill one buffer with framing and whole small files, opened and read side by side, and send it;
//! - **send a file's range** by sendfile, when the range is long and in memory;
//! - **pack a part of a long file**, when that range is not in memory.
//!
//! A peer that does not take the bytes gets a poll, and the buffer is kept only as long as nobody else needs it: what
//! was not sent can be made again from the position.
//!
//! A body whose length is not known is sent as one that is known piece by piece. When the socket has taken a piece, the body is
//! asked for the next one; it becomes a chunk, whose size goes in front of it like a head, and is then sent like any range. So of
//! such a body too any buffer can be taken away, although it has only its last piece. It ends when it says so; one that breaks has no
//! last chunk, and the connection is reset.

use std::ops::Range;

use bytes::{Buf as _, Bytes, BytesMut};
use rustix::io::Errno;

use super::body::{Body, Fault, FilePiece, FileSource, Lookup, Piece};
use super::descriptor::Descriptor;
use super::ledger::{Farewell, Ledger, RingLimit, Way};
use super::op::{ConnectionId, FileKind, Op, OpenedFile, Purpose, SendFileError, Submission, Token};
use super::pool::Pool;
use crate::codec::http::response::chunk_separator;
use crate::limits::{PACK_BUFFER_LEN_BYTES, PACK_FILES_MAX, SENDFILE_LEN_MIN};
use crate::tally::Tally as _;

/// A body on its way to a peer.
pub struct Transfer {
    body: Box<dyn Body>,
    /// The head, or a chunk's size, that goes before the body's next bytes and was not sent yet.
    lead: Bytes,
    /// Everything of the body before this was taken by the socket. `position <= end`.
    position: u64,
    /// Everything of the body before this is wanted, and was announced to the peer.
    end: u64,
    /// What is behind that.
    rest: Rest,
    /// The long file that the position is in, once it was opened.
    long: Option<LongFile>,
    /// Up to here a long file's bytes are to be read instead of sent without copying. `0` when not.
    cold_until: u64,
    /// What is in the buffer that was packed last.
    way: Way,
    state: State,
}

/// Which bytes of a body are sent.
pub enum Extent {
    /// These; the head says how many they are.
    Range(Range<u64>),
    /// All, in chunks.
    Chunks,
    /// All, and the end of the connection says that they were all. The caller has to see to that.
    UntilClose,
}

/// What is behind what was announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// Nothing that the peer wants.
    Nothing,
    /// The body knows; in chunks.
    Chunks,
    /// The body knows.
    Bytes,
}

/// A file that takes several steps, kept open between them.
struct LongFile {
    /// The positions of the body that it covers.
    positions: Range<u64>,
    file: Descriptor,
    /// Where in the file the first of these positions is.
    offset: u64,
}

enum State {
    /// Nothing is in flight; [`Transfer::step`] decides what is next.
    Ready,
    /// Waiting for a buffer, in the pool's queue.
    Starved,
    /// Waiting for the body to learn what comes next.
    AwaitingBody,
    /// Files are opened and read into a buffer.
    Packing(Pack),
    /// A buffer is with the kernel.
    Sending,
    /// The socket takes nothing; what is left of a buffer may be kept meanwhile.
    Blocked { kept: Option<(BytesMut, Range<usize>)> },
    /// A long file is opened.
    Opening,
    /// This many bytes of a long file are sent without copying.
    SendingFile(usize),
}

/// One buffer that is filled.
struct Pack {
    /// The buffer in parts: even ones are bytes that are there, odd ones are away while the kernel reads into them. The
    /// last one is what was not needed.
    parts: Vec<Option<BytesMut>>,
    /// What the last byte of each odd part is when the file does not come to it: the byte that follows the file.
    spares: Vec<Option<u8>>,
    /// Files that are not complete.
    missing: usize,
    /// Bytes of the buffer that will be sent.
    filled: usize,
}

/// A file that will be read into `buffer[start..][..len]`.
struct PlannedFile {
    start: usize,
    len: usize,
    /// Whether the last of these bytes is one that the file should not have.
    has_spare: bool,
    /// How to read it; still without its buffer.
    op: Op,
}

/// What a transfer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It goes on by itself.
    Underway,
    /// Every byte was taken by the socket.
    Done,
    /// The body cannot be finished, for this reason: the connection must be reset.
    Broken(Farewell),
}

/// What a step may use.
pub struct Tools<'a> {
    /// Whose transfer it is.
    pub id: ConnectionId,
    /// Where to send.
    pub socket: &'a Descriptor,
    /// Where operations are put.
    pub submissions: &'a mut Vec<Submission>,
    /// Where buffers come from.
    pub pool: &'a mut Pool,
    /// Where it is counted.
    pub ledger: &'a mut Ledger,
    /// Most that is sent of a file in this step. Bytes.
    pub sendfile_len_max: usize,
}

impl Tools<'_> {
    fn submit(&mut self, purpose: Purpose, op: Op) {
        self.submissions.push(Submission { token: Token::Connection(self.id, purpose), op });
    }

    fn send(&mut self, buffer: BytesMut, range: Range<usize>, more: bool) {
        let socket = self.socket.clone();
        self.submit(Purpose::Send, Op::Send { socket, buffer, range, more, wait: false });
    }

    fn await_writable(&mut self) {
        let socket = self.socket.clone();
        self.submit(Purpose::Send, Op::AwaitWritable { socket });
    }
}

impl Transfer {
    /// `lead` (its head), then the bytes of `body` in `extent`.
    pub fn new(lead: Bytes, body: Box<dyn Body>, extent: Extent) -> Self {
        let (Range { start, end }, rest) = match extent {
            Extent::Range(range) => (range, Rest::Nothing),
            Extent::Chunks => (0..0, Rest::Chunks),
            Extent::UntilClose => (0..0, Rest::Bytes),
        };
        Self {
            body,
            lead,
            position: start,
            end,
            rest,
            long: None,
            cold_until: 0,
            way: Way::Packed,
            state: State::Ready,
        }
    }

    /// Goes on: at the start, and after a pause for a buffer or for the body.
    pub fn step(&mut self, tools: &mut Tools<'_>) -> Progress {
        match self.state {
            State::Ready | State::AwaitingBody => {}
            // Whoever steps out of turn would stand in the queue twice.
            State::Starved if tools.pool.packs.is_turn_of(tools.id) => {}
            _ => return Progress::Underway,
        }
        self.state = State::Ready;
        if self.rest != Rest::Nothing && self.position == self.end {
            match self.body.piece_at(self.position) {
                Lookup::Piece(piece) => match piece.len_bytes() {
                    // It would end the body.
                    0 => return Progress::Broken(Farewell::BrokenBody),
                    len => self.announce(len),
                },
                Lookup::End => {
                    self.announce(0);
                    self.rest = Rest::Nothing;
                }
                // The head does not wait for the body.
                Lookup::NotYet if !self.lead.is_empty() => {}
                Lookup::NotYet => {
                    self.state = State::AwaitingBody;
                    return Progress::Underway;
                }
                Lookup::Broken => return Progress::Broken(Farewell::BrokenBody),
            }
        }
        if !self.lead.is_empty() {
            return self.pack(tools);
        }
        if self.position == self.end {
            return Progress::Done;
        }
        if self.position < self.cold_until {
            return self.pack(tools);
        }
        match self.piece_at(self.position) {
            Lookup::Piece(Piece::File(piece)) if goes_alone(&piece) => self.send_long(tools),
            Lookup::Piece(_) => self.pack(tools),
            Lookup::NotYet => {
                self.state = State::AwaitingBody;
                Progress::Underway
            }
            Lookup::End | Lookup::Broken => Progress::Broken(Farewell::BrokenBody),
        }
    }

    /// How the bytes go that [`Op::Send`] takes.
    pub fn way(&self) -> Way {
        self.way
    }

    /// Whether a pack buffer is out with this transfer.
    pub fn holds_pack(&self) -> bool {
        matches!(self.state, State::Packing(_) | State::Sending | State::Blocked { kept: Some(_) })
    }

    /// Whether something of purpose [`Purpose::Send`] is in the kernel and may stay there until the peer reads.
    pub fn waits_for_peer(&self) -> bool {
        matches!(self.state, State::Blocked { .. })
    }

    /// Whether others need what the body holds, for a peer that has not taken enough for so many seconds.
    pub fn yields(&mut self, stalled_s: u64) -> bool {
        self.body.yields(stalled_s)
    }

    /// Parts with a buffer that is kept for a peer that does not read; its bytes are made again later.
    pub fn surrender(&mut self) -> Option<BytesMut> {
        let State::Blocked { kept } = &mut self.state else { return None };
        kept.take().map(|(buffer, _)| buffer)
    }

    /// Of [`Op::Send`].
    pub fn sent(
        &mut self,
        result: Result<usize, Errno>,
        buffer: BytesMut,
        range: Range<usize>,
        tools: &mut Tools<'_>,
    ) -> Progress {
        let sent = match result {
            Ok(sent) => sent,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => {
                tools.pool.packs.give_back(buffer);
                self.state = State::Ready;
                return Progress::Broken(Farewell::Reset);
            }
        };
        self.advance(sent);
        if sent < range.len() {
            self.state = State::Blocked { kept: Some((buffer, range.start + sent..range.end)) };
            tools.pool.packs.note_keeper(tools.id);
            tools.await_writable();
            return Progress::Underway;
        }
        tools.pool.packs.give_back(buffer);
        self.state = State::Ready;
        self.step(tools)
    }

    /// Of [`Op::AwaitWritable`].
    pub fn writable(&mut self, result: Result<(), Errno>, tools: &mut Tools<'_>) -> Progress {
        let State::Blocked { kept } = std::mem::replace(&mut self.state, State::Ready) else {
            return Progress::Broken(Farewell::BrokenBody);
        };
        if kept.is_some() {
            tools.pool.packs.forget_keeper(tools.id);
        }
        match (kept, result) {
            (Some((buffer, range)), Ok(())) => {
                let more = self.is_followed(range.len());
                tools.send(buffer, range, more);
                self.state = State::Sending;
                Progress::Underway
            }
            (None, Ok(())) => self.step(tools),
            (kept, Err(_)) => {
                if let Some((buffer, _)) = kept {
                    tools.pool.packs.give_back(buffer);
                }
                Progress::Broken(Farewell::Reset)
            }
        }
    }

    /// Of [`Op::SendFile`].
    pub fn file_sent(&mut self, result: Result<usize, SendFileError>, tools: &mut Tools<'_>) -> Progress {
        let State::SendingFile(len) = std::mem::replace(&mut self.state, State::Ready) else {
            return Progress::Broken(Farewell::BrokenBody);
        };
        match result {
            Ok(sent) if sent >= len => {
                self.advance(sent);
                self.step(tools)
            }
            // It sends all that the socket takes: the rest would be refused if it were tried at once.
            Ok(_) | Err(SendFileError::WouldBlock) => {
                self.advance(result.unwrap_or(0));
                self.state = State::Blocked { kept: None };
                tools.await_writable();
                Progress::Underway
            }
            Err(SendFileError::Cold) => {
                // To the file's end: reading makes the kernel read ahead, and a page that is on its way from the disk looks like
                // one that is there.
                self.cold_until = self.long.as_ref().map_or(self.end, |long| long.positions.end);
                tools.ledger.figures().cold_reads.add(1);
                self.step(tools)
            }
            Err(SendFileError::Truncated) => self.broke(Fault::Changed),
            Err(SendFileError::Failed(errno)) if is_of_peer(errno) => Progress::Broken(Farewell::Reset),
            Err(SendFileError::Failed(errno)) => self.broke(Fault::File(errno)),
        }
    }

    /// Of [`Op::Open`].
    pub fn opened(&mut self, result: Result<OpenedFile, Errno>, tools: &mut Tools<'_>) -> Progress {
        let opened = match result {
            Ok(opened) if opened.status.kind == FileKind::Regular => opened,
            Ok(_) => return self.broke(Fault::Changed),
            Err(errno) => return self.broke(Fault::File(errno)),
        };
        self.state = State::Ready;
        let position = self.position;
        let Lookup::Piece(Piece::File(piece)) = self.piece_at(position) else {
            return Progress::Broken(Farewell::BrokenBody);
        };
        if let FileSource::Beneath { len_bytes, .. } = piece.source
            && len_bytes != opened.status.len_bytes
        {
            return self.broke(Fault::Changed);
        }
        let positions = position..position + piece.len;
        self.long = Some(LongFile { positions, file: opened.file, offset: piece.offset });
        self.step(tools)
    }

    /// Of [`Op::Read`] and [`Op::ReadFile`], for the file of this index.
    pub fn read(
        &mut self,
        index: u16,
        result: Result<(), Fault>,
        buffer: BytesMut,
        tools: &mut Tools<'_>,
    ) -> Progress {
        let State::Packing(pack) = &mut self.state else { return Progress::Broken(Farewell::BrokenBody) };
        if let Err(fault) = result {
            return self.broke(fault);
        }
        pack.take_back(index, buffer);
        if pack.missing == 0 {
            self.send_pack(tools);
        }
        Progress::Underway
    }

    /// Says that `len` bytes of the body follow, or with 0 that this was its end.
    fn announce(&mut self, len: u64) {
        if self.rest == Rest::Chunks {
            let separator = chunk_separator(self.position == 0, len);
            self.lead = [&*self.lead, separator.as_bytes()].concat().into();
        }
        self.end += len;
    }

    fn broke(&mut self, fault: Fault) -> Progress {
        self.body.broke(fault);
        Progress::Broken(Farewell::BrokenBody)
    }

    /// Notes that the socket has taken `sent` bytes more.
    fn advance(&mut self, sent: usize) {
        let of_lead = sent.min(self.lead.len());
        self.lead.advance(of_lead);
        self.position += (sent - of_lead) as u64;
    }

    /// The body's piece at `at`, cut at the end of what is wanted; from the long file's descriptor where that is open.
    fn piece_at(&mut self, at: u64) -> Lookup<'_> {
        let wanted = self.end - at;
        if let Some(long) = self.long.as_ref().filter(|long| long.positions.contains(&at)) {
            return Lookup::Piece(Piece::File(FilePiece {
                source: FileSource::Open(&long.file),
                offset: long.offset + (at - long.positions.start),
                len: (long.positions.end - at).min(wanted),
            }));
        }
        match self.body.piece_at(at) {
            Lookup::Piece(Piece::File(piece)) => {
                Lookup::Piece(Piece::File(FilePiece { len: piece.len.min(wanted), ..piece }))
            }
            Lookup::Piece(Piece::Bytes(bytes)) => {
                let len = bytes.len().min(to_usize(wanted));
                Lookup::Piece(Piece::Bytes(&bytes[..len]))
            }
            other => other,
        }
    }

    /// Sends from the long file at the position, after opening it when that has to be done.
    fn send_long(&mut self, tools: &mut Tools<'_>) -> Progress {
        let position = self.position;
        let Lookup::Piece(Piece::File(piece)) = self.piece_at(position) else {
            return Progress::Broken(Farewell::BrokenBody);
        };
        match piece.source {
            FileSource::Open(file) => {
                let len = to_usize(piece.len).min(tools.sendfile_len_max);
                let op = Op::SendFile {
                    socket: tools.socket.clone(),
                    file: file.clone(),
                    offset: piece.offset,
                    len,
                };
                tools.submit(Purpose::Send, op);
                self.state = State::SendingFile(len);
            }
            FileSource::Beneath { directory, path, .. } => {
                let op = Op::Open { directory: directory.clone(), path: path.to_owned() };
                tools.submit(Purpose::File(0), op);
                self.state = State::Opening;
            }
        }
        Progress::Underway
    }

    /// Fills a buffer with the lead, framing and files, as far as there is room and the body knows.
    fn pack(&mut self, tools: &mut Tools<'_>) -> Progress {
        let Some(mut buffer) = tools.pool.packs.take(tools.id) else {
            tools.ledger.hit(RingLimit::SendBuffers);
            self.state = State::Starved;
            return Progress::Underway;
        };
        let mut filled = self.lead.len().min(PACK_BUFFER_LEN_BYTES);
        buffer[..filled].copy_from_slice(&self.lead[..filled]);
        let mut at = self.position;
        let mut cold_until = self.cold_until;
        let mut planned: Vec<PlannedFile> = Vec::new();
        // Whether the byte at `filled` is lent to the file before it: then it must be one that is known already.
        let mut is_spare = false;
        let mut filled_max = PACK_BUFFER_LEN_BYTES;
        while at < self.end && filled < filled_max && planned.len() < PACK_FILES_MAX {
            let room = filled_max - filled;
            let len = match self.piece_at(at) {
                Lookup::Piece(Piece::Bytes(bytes)) if !bytes.is_empty() => {
                    let len = bytes.len().min(room);
                    buffer[filled..filled + len].copy_from_slice(&bytes[..len]);
                    is_spare = false;
                    len
                }
                Lookup::Piece(Piece::File(piece)) => {
                    let is_cold = at < cold_until;
                    if is_spare || goes_alone(&piece) && !is_cold {
                        break;
                    }
                    let Some(file) = PlannedFile::new(&piece, filled, room, is_cold) else { break };
                    is_spare = file.has_spare;
                    // Only the file that was found cold is cut at the buffer's end.
                    cold_until = 0;
                    let len = to_usize(piece.len).min(room);
                    if len + usize::from(is_spare) < file.len {
                        // The end of the file is read and not wanted; nothing can follow it here.
                        filled_max = filled + len;
                    }
                    planned.push(file);
                    len
                }
                Lookup::NotYet => break,
                Lookup::Piece(Piece::Bytes(_)) | Lookup::End | Lookup::Broken => {
                    tools.pool.packs.give_back(buffer);
                    return Progress::Broken(Farewell::BrokenBody);
                }
            };
            filled += len;
            at += len as u64;
        }
        if filled == 0 {
            tools.pool.packs.give_back(buffer);
            self.state = State::AwaitingBody;
            return Progress::Underway;
        }
        self.way = if self.position < self.cold_until { Way::Read } else { Way::Packed };
        let mut pack = Pack::new(buffer, &planned, filled);
        for (index, mut planned) in (0u16..).zip(planned) {
            if let Op::Read { buffer, .. } | Op::ReadFile { buffer, .. } = &mut planned.op {
                *buffer = pack.lend(index, planned.has_spare);
            }
            tools.submit(Purpose::File(index), planned.op);
        }
        let is_complete = pack.missing == 0;
        self.state = State::Packing(pack);
        if is_complete {
            self.send_pack(tools);
        }
        Progress::Underway
    }

    /// Gives a complete buffer to the kernel.
    fn send_pack(&mut self, tools: &mut Tools<'_>) {
        let State::Packing(pack) = std::mem::replace(&mut self.state, State::Sending) else { return };
        let filled = pack.filled;
        let more = self.is_followed(filled);
        tools.send(pack.join(), 0..filled, more);
    }

    /// Whether a range of a file goes out right behind the next `len` bytes, so that the kernel may hold their last, short
    /// packet back for it. Behind anything else it must not: the next buffer takes a while to fill.
    fn is_followed(&mut self, len: usize) -> bool {
        let of_body = len - self.lead.len().min(len);
        let at = self.position + of_body as u64;
        at < self.end
            && at >= self.cold_until
            && matches!(self.piece_at(at), Lookup::Piece(Piece::File(piece)) if is_long(piece.len))
    }
}

impl PlannedFile {
    /// Reads a piece into a buffer that has `room` left from `start` on. None when it does not fit and is not to be cut.
    fn new(piece: &FilePiece<'_>, start: usize, room: usize, may_be_cut: bool) -> Option<Self> {
        let (buffer, offset) = (BytesMut::new(), piece.offset);
        match piece.source {
            FileSource::Open(file) => {
                let len = to_usize(piece.len);
                let op = Op::Read { file: file.clone(), offset, buffer };
                (len <= room || may_be_cut).then(|| Self { start, len: len.min(room), has_spare: false, op })
            }
            FileSource::Beneath { directory, path, len_bytes } => {
                // To its end, even if the last bytes are not wanted: that is how its length is checked.
                let len = to_usize(len_bytes.saturating_sub(offset).max(piece.len)).saturating_add(1);
                if len > room {
                    return None;
                }
                let op = Op::ReadFile { directory: directory.clone(), path: path.to_owned(), offset, buffer };
                Some(Self { start, len, has_spare: true, op })
            }
        }
    }
}

impl Pack {
    /// Cuts `buffer` into what is there and what the files will bring.
    fn new(mut buffer: BytesMut, planned: &[PlannedFile], filled: usize) -> Self {
        let mut parts = Vec::with_capacity(2 * planned.len() + 1);
        let mut cut = 0;
        for file in planned {
            parts.push(Some(buffer.split_to(file.start - cut)));
            parts.push(Some(buffer.split_to(file.len)));
            cut = file.start + file.len;
        }
        parts.push(Some(buffer));
        Self { parts, spares: Vec::with_capacity(planned.len()), missing: planned.len(), filled }
    }

    /// The part of the next file, for the kernel to read into.
    fn lend(&mut self, index: u16, has_spare: bool) -> BytesMut {
        let part = self.parts[2 * usize::from(index) + 1].take().unwrap_or_default();
        self.spares.push(part.last().copied().filter(|_| has_spare));
        part
    }

    /// The part of a file that is there.
    fn take_back(&mut self, index: u16, mut part: BytesMut) {
        let index = usize::from(index);
        if let (Some(spare), Some(last)) = (self.spares[index], part.last_mut()) {
            *last = spare;
        }
        self.parts[2 * index + 1] = Some(part);
        self.missing -= 1;
    }

    /// The whole buffer again.
    fn join(self) -> BytesMut {
        let mut whole = BytesMut::new();
        for part in self.parts.into_iter().flatten() {
            whole.unsplit(part);
        }
        whole
    }
}

/// Whether a piece is sent by itself, from a file that stays open meanwhile: it is long, or a part of something long.
fn goes_alone(piece: &FilePiece<'_>) -> bool {
    is_long(match piece.source {
        FileSource::Open(_) => piece.len,
        FileSource::Beneath { len_bytes, .. } => len_bytes.saturating_sub(piece.offset),
    })
}

/// Whether an error of sendfile(2) tells of the peer, or of the way to it (tcp(7), ip(7)). All others tell of the file: which there are
/// depends on its file system.
fn is_of_peer(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::PIPE
            | Errno::CONNRESET
            | Errno::CONNABORTED
            | Errno::CONNREFUSED
            | Errno::NOTCONN
            | Errno::TIMEDOUT
            | Errno::HOSTUNREACH
            | Errno::HOSTDOWN
            | Errno::NETUNREACH
            | Errno::NETDOWN
            | Errno::NETRESET
            | Errno::NOBUFS
            | Errno::ACCESS
            | Errno::PERM
    )
}

fn to_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

fn is_long(len: u64) -> bool {
    len >= SENDFILE_LEN_MIN
}
