//! Receiving a body: taken out of its framing into buffers, which are handed to the service and written to a file as they
//! become full. No step waits for a peer, a disk or the service.
//!
//! There are two buffers at most: one fills while the other is *away*, which means that it is written and looked at. When
//! both are full nothing is received, and so the peer waits.
//!
//! A body comes in one of two ways. What is short or chunked comes as requests do, and is copied. What has a known length
//! and is long is received straight into the buffer that fills, never further than the body goes: what follows it is the
//! next request. The connection changes between the two ways ([`Intake::is_direct`]).
//!
//! A peer that is slow keeps a buffer only as long as nobody else waits for one. When it is recalled, what is in it is
//! handed over as if it were full, and the rest of the body comes as requests do until there is something to receive.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;

use super::descriptor::Descriptor;
use super::ledger::{Ledger, RingLimit};
use super::op::{ConnectionId, Op, Purpose, Submission, Token};
use super::pool::Pool;
use super::service::Service;
use crate::codec::http::body::{BadBody, BodyDecoder};
use crate::codec::http::request::BodyLength;
use crate::limits::INTAKE_DIRECT_LEN_MIN;

/// A body on its way from a peer.
pub struct Intake {
    decoder: BodyDecoder,
    /// Where the pieces are written.
    file: Option<Descriptor>,
    /// Everything of the body before this was handed over. Bytes.
    position: u64,
    filling: Filling,
    away: Option<Away>,
    /// Whether the rest is to be received straight into the buffer.
    is_direct: bool,
    /// Whether somebody else waits for the buffer that fills.
    is_recalled: bool,
}

/// The buffer that fills.
enum Filling {
    /// There is none.
    Nothing,
    /// There is none, and the connection waits for one in the pool's queue.
    Starved,
    /// Its first `len` bytes are of the body.
    Here { buffer: BytesMut, len: usize },
    /// It is with the kernel, which puts something behind the first `len` bytes.
    Lent { len: usize },
}

/// The buffer that was handed over.
struct Away {
    /// All of it, also what is not of the body.
    buffer: Bytes,
    is_written: bool,
    is_looked_at: bool,
}

/// What an intake came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It goes on by itself.
    Underway,
    /// The body has ended, every byte was looked at and is in the file.
    Whole,
    /// The framing is wrong.
    Malformed(BadBody),
    /// A piece could not be written.
    Unwritten(Errno),
}

/// What a step may use.
pub struct Tools<'a> {
    /// Whose body it is.
    pub id: ConnectionId,
    /// Who looks at the pieces.
    pub service: &'a mut dyn Service,
    /// Where operations are put.
    pub submissions: &'a mut Vec<Submission>,
    /// Where buffers come from.
    pub pool: &'a mut Pool,
    /// Where it is counted.
    pub ledger: &'a mut Ledger,
}

impl Intake {
    /// A body of this length, none of which was received.
    pub fn new(length: BodyLength, file: Option<Descriptor>) -> Self {
        let decoder = BodyDecoder::new(length);
        let is_direct = is_long(&decoder);
        Self {
            decoder,
            file,
            position: 0,
            filling: Filling::Nothing,
            away: None,
            is_direct,
            is_recalled: false,
        }
    }

    /// Whether the last byte of the body has come.
    pub fn has_ended(&self) -> bool {
        self.decoder.is_finished()
    }

    /// Whether the rest is to be received with [`Intake::lend`].
    pub fn is_direct(&self) -> bool {
        self.is_direct && !self.has_ended()
    }

    /// Hands over what is due: at the start, and when there may be a buffer.
    pub fn step(&mut self, tools: &mut Tools<'_>) -> Progress {
        self.hand_over(tools);
        let is_over = matches!(self.filling, Filling::Nothing) && self.away.is_none();
        if self.has_ended() && is_over { Progress::Whole } else { Progress::Underway }
    }

    /// Takes what was received, as far as the body goes and there is room. Adds to `taken_len` how much that was.
    pub fn take(&mut self, data: &[u8], taken_len: &mut usize, tools: &mut Tools<'_>) -> Progress {
        let mut rest = data;
        while !rest.is_empty() && !self.has_ended() && self.has_room(tools) {
            let Filling::Here { buffer, len } = &mut self.filling else { break };
            let room = buffer.len() - *len;
            let decoded = match self.decoder.decode(&rest[..room.min(rest.len())]) {
                Ok(decoded) => decoded,
                Err(bad) => return Progress::Malformed(bad),
            };
            buffer[*len..*len + decoded.data.len()].copy_from_slice(decoded.data);
            *len += decoded.data.len();
            rest = &rest[decoded.consumed_len..];
        }
        let len = data.len() - rest.len();
        *taken_len += len;
        // One that was recalled is received directly again when the peer goes on.
        self.is_direct |= len > 0 && is_long(&self.decoder);
        self.step(tools)
    }

    /// The buffer for [`Op::ReceiveInto`], and which part of it is to be filled; none while there is no room.
    pub fn lend(&mut self, tools: &mut Tools<'_>) -> Option<(BytesMut, Range<usize>)> {
        let remaining_len = self.decoder.remaining_len().filter(|len| *len > 0)?;
        if !self.has_room(tools) {
            return None;
        }
        let Filling::Here { buffer, len } = std::mem::replace(&mut self.filling, Filling::Nothing) else {
            return None;
        };
        self.filling = Filling::Lent { len };
        let room = buffer.len() - len;
        let end = usize::try_from(remaining_len).map_or(buffer.len(), |remaining| len + remaining.min(room));
        Some((buffer, len..end))
    }

    /// Takes the buffer back, with so many bytes more.
    pub fn take_back(&mut self, buffer: BytesMut, received_len: usize, tools: &mut Tools<'_>) -> Progress {
        let Filling::Lent { len } = self.filling else {
            tools.pool.intakes.give_back(buffer);
            return Progress::Underway;
        };
        let decoded = self.decoder.decode(&buffer[len..len + received_len]);
        debug_assert!(decoded.is_ok_and(|decoded| decoded.data.len() == received_len), "all of it is body");
        self.filling = Filling::Here { buffer, len: len + received_len };
        self.step(tools)
    }

    /// Of [`Op::Write`].
    pub fn written(&mut self, result: Result<(), Errno>, tools: &mut Tools<'_>) -> Progress {
        if let Err(errno) = result {
            return Progress::Unwritten(errno);
        }
        if let Some(away) = &mut self.away {
            away.is_written = true;
        }
        self.return_away(tools)
    }

    /// The service has looked at the last piece.
    pub fn looked_at(&mut self, tools: &mut Tools<'_>) -> Progress {
        if let Some(away) = &mut self.away {
            away.is_looked_at = true;
        }
        self.return_away(tools)
    }

    /// Parts with the buffer that fills for somebody who waits for one, as soon as that can be.
    pub fn surrender(&mut self, tools: &mut Tools<'_>) -> Progress {
        self.is_recalled = true;
        self.is_direct = false;
        self.step(tools)
    }

    /// Gives back all that it has. What the kernel has comes back by itself; what somebody still reads is theirs.
    pub fn abandon(self, id: ConnectionId, pool: &mut Pool) {
        pool.intakes.forget(id);
        if let Filling::Here { buffer, .. } = self.filling {
            pool.intakes.give_back(buffer);
        }
        if let Some(away) = self.away {
            give_back(away.buffer, pool);
        }
    }

    /// Whether there is a buffer with room, after taking one when that has to be done.
    fn has_room(&mut self, tools: &mut Tools<'_>) -> bool {
        self.hand_over(tools);
        let is_turn = match self.filling {
            Filling::Nothing => true,
            // Whoever asks out of turn would stand in the queue twice.
            Filling::Starved => tools.pool.intakes.is_turn_of(tools.id),
            Filling::Here { .. } | Filling::Lent { .. } => false,
        };
        if is_turn {
            self.filling = if let Some(buffer) = tools.pool.intakes.take(tools.id) {
                tools.pool.intakes.note_keeper(tools.id);
                Filling::Here { buffer, len: 0 }
            } else {
                tools.ledger.hit(RingLimit::IntakeBuffers);
                Filling::Starved
            };
        }
        matches!(&self.filling, Filling::Here { buffer, len } if *len < buffer.len())
    }

    /// Hands the buffer that fills to the service and the file, when it is full, or the last one, or recalled.
    fn hand_over(&mut self, tools: &mut Tools<'_>) {
        let Filling::Here { buffer, len } = &self.filling else { return };
        let is_due = *len == buffer.len() || self.has_ended() || self.is_recalled;
        if !is_due || self.away.is_some() && *len > 0 {
            return;
        }
        let Filling::Here { buffer, len } = std::mem::replace(&mut self.filling, Filling::Nothing) else {
            return;
        };
        self.is_recalled = false;
        tools.pool.intakes.forget_keeper(tools.id);
        // The framing behind the last byte, or nothing yet of what the peer was expected to send.
        if len == 0 {
            return tools.pool.intakes.give_back(buffer);
        }
        let buffer = buffer.freeze();
        let piece = buffer.slice(..len);
        if let Some(file) = &self.file {
            let op = Op::Write { file: file.clone(), offset: self.position, bytes: piece.clone() };
            let token = Token::Connection(tools.id, Purpose::Write);
            tools.submissions.push(Submission { token, op });
        }
        self.position += len as u64;
        self.away = Some(Away { buffer, is_written: self.file.is_none(), is_looked_at: false });
        tools.service.body(tools.id, piece);
    }

    /// Gives the buffer that is away back once everybody is done with it.
    fn return_away(&mut self, tools: &mut Tools<'_>) -> Progress {
        if let Some(away) = self.away.take_if(|away| away.is_written && away.is_looked_at) {
            give_back(away.buffer, tools.pool);
        }
        self.step(tools)
    }
}

fn give_back(buffer: Bytes, pool: &mut Pool) {
    match buffer.try_into_mut() {
        Ok(buffer) => pool.intakes.give_back(buffer),
        Err(_) => pool.intakes.lost(),
    }
}

fn is_long(decoder: &BodyDecoder) -> bool {
    decoder.remaining_len().is_some_and(|len| len >= INTAKE_DIRECT_LEN_MIN as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::{Read as _, Seek as _, Write as _};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::codec::http::Status;
    use crate::codec::http::request::Request;
    use crate::limits::{INPUT_LEN_MAX, INTAKE_BUFFERS_MAX, INTAKE_PIECE_LEN_BYTES};
    use crate::ring::admission::Admission;
    use crate::ring::capability::Capabilities;
    use crate::ring::inbox::{Mailbox, inbox};
    use crate::ring::ledger::{Farewell, Figures, Way};
    use crate::ring::op::OpenedFile;
    use crate::ring::reactor::{Message, Peers, Reactor};
    use crate::ring::service::{Answer, Called, Caller, Effects, Node, Reply};
    use crate::ring::uring::Uring;
    use crate::tally::Tally as _;

    const ID: ConnectionId = ConnectionId { slot: 3, generation: 1 };

    /// Keeps the pieces until they are looked at.
    #[derive(Default)]
    struct Looker {
        pieces: VecDeque<Bytes>,
    }

    impl Service for Looker {
        fn call(&mut self, _: &Caller<'_>, _: &Request<'_>) -> Called {
            unreachable!("nothing is asked")
        }

        fn opened(&mut self, _: ConnectionId, _: Result<OpenedFile, Errno>) -> Answer {
            unreachable!("nothing is opened")
        }

        fn body(&mut self, id: ConnectionId, piece: Bytes) {
            assert_eq!(id, ID);
            self.pieces.push_back(piece);
        }

        fn received(&mut self, _: ConnectionId) -> Answer {
            unreachable!("the connection says so")
        }

        fn unwritten(&mut self, _: ConnectionId, _: Errno) -> Answer {
            unreachable!("the connection says so")
        }

        fn gone(&mut self, _: ConnectionId) {
            unreachable!("the connection says so")
        }
    }

    /// An intake, and what is around it.
    struct Bench {
        intake: Intake,
        looker: Looker,
        pool: Pool,
        ledger: Ledger,
        submissions: Vec<Submission>,
        /// Everything that was looked at.
        body: Vec<u8>,
        piece_lens: Vec<usize>,
        /// What the file has.
        file: Vec<u8>,
    }

    impl Bench {
        fn new(length: BodyLength, has_file: bool) -> Self {
            let file = has_file.then(|| Descriptor::simulated(1, &std::rc::Rc::default()));
            Self {
                intake: Intake::new(length, file),
                looker: Looker::default(),
                pool: Pool::default(),
                ledger: Ledger::new(Arc::default(), Instant::now()),
                submissions: Vec::new(),
                body: Vec::new(),
                piece_lens: Vec::new(),
                file: Vec::new(),
            }
        }

        fn with<T>(&mut self, event: impl FnOnce(&mut Intake, &mut Tools<'_>) -> T) -> T {
            let mut tools = Tools {
                id: ID,
                service: &mut self.looker,
                submissions: &mut self.submissions,
                pool: &mut self.pool,
                ledger: &mut self.ledger,
            };
            event(&mut self.intake, &mut tools)
        }

        /// How much of `data` was taken.
        fn take(&mut self, data: &[u8]) -> (usize, Progress) {
            let mut taken_len = 0;
            let progress = self.with(|intake, tools| intake.take(data, &mut taken_len, tools));
            (taken_len, progress)
        }

        /// Looks at the piece that is away.
        fn look(&mut self) -> Progress {
            let piece = self.looker.pieces.pop_front().unwrap();
            assert!(self.looker.pieces.is_empty(), "one at a time");
            self.body.extend_from_slice(&piece);
            self.piece_lens.push(piece.len());
            drop(piece);
            self.with(Intake::looked_at)
        }

        /// Writes the piece that is away.
        fn write(&mut self) -> Progress {
            let submission = self.submissions.pop().unwrap();
            assert_eq!(submission.token, Token::Connection(ID, Purpose::Write));
            let Op::Write { offset, bytes, .. } = submission.op else { panic!("not a write") };
            assert_eq!(offset, self.file.len() as u64);
            self.file.extend_from_slice(&bytes);
            drop(bytes);
            self.with(|intake, tools| intake.written(Ok(()), tools))
        }

        /// Takes all of `data`, in pieces of `step`, looking and writing whenever there is no room.
        fn take_all(&mut self, data: &[u8], step: usize) -> Progress {
            let mut progress = self.with(Intake::step);
            let mut taken_len = 0;
            loop {
                if progress == Progress::Underway && !self.submissions.is_empty() {
                    progress = self.write();
                } else if progress == Progress::Underway && !self.looker.pieces.is_empty() {
                    progress = self.look();
                } else if progress == Progress::Underway && taken_len < data.len() {
                    let end = data.len().min(taken_len + step);
                    let (len, after) = self.take(&data[taken_len..end]);
                    progress = after;
                    assert!(len > 0 || progress != Progress::Underway, "it is stuck");
                    taken_len += len;
                } else {
                    return progress;
                }
            }
        }
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0u64..).flat_map(|at| (at * 0x9e37_79b9).to_le_bytes()).take(len).collect()
    }

    fn chunked(body: &[u8], chunk_len: usize) -> Vec<u8> {
        let mut text = Vec::new();
        for chunk in body.chunks(chunk_len) {
            text.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            text.extend_from_slice(chunk);
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"0\r\n\r\n");
        text
    }

    /// Lengths about every bound there is.
    const LENS: [usize; 14] = [
        0,
        1,
        4_096,
        INPUT_LEN_MAX,
        INTAKE_DIRECT_LEN_MIN - 1,
        INTAKE_DIRECT_LEN_MIN,
        INTAKE_DIRECT_LEN_MIN + 1,
        INTAKE_PIECE_LEN_BYTES - 1,
        INTAKE_PIECE_LEN_BYTES,
        INTAKE_PIECE_LEN_BYTES + 1,
        2 * INTAKE_PIECE_LEN_BYTES - 1,
        2 * INTAKE_PIECE_LEN_BYTES,
        2 * INTAKE_PIECE_LEN_BYTES + 1,
        5 * INTAKE_PIECE_LEN_BYTES + 77,
    ];

    #[test]
    fn a_body_is_handed_over_in_full_pieces_however_it_comes() {
        for len in LENS {
            for step in [1, 7, 4_096, usize::MAX / 2] {
                if step < 4_096 && len > 300_000 {
                    continue;
                }
                for has_file in [false, true] {
                    let body = pattern(len);
                    for text in [None, Some(chunked(&body, 1_000)), Some(chunked(&body, 70_000))] {
                        let length = match text {
                            None => BodyLength::Length(len as u64),
                            Some(_) => BodyLength::Chunked,
                        };
                        let mut bench = Bench::new(length, has_file);
                        let progress = bench.take_all(&text.unwrap_or_else(|| body.clone()), step);
                        assert_eq!(progress, Progress::Whole, "{len} in steps of {step}");
                        assert!(bench.body == body);
                        assert!(!has_file || bench.file == body);
                        let full = bench.piece_lens.iter().rev().skip(1);
                        assert!(full.into_iter().all(|len| *len == INTAKE_PIECE_LEN_BYTES));
                        assert_eq!(bench.piece_lens.len(), len.div_ceil(INTAKE_PIECE_LEN_BYTES));
                        assert_eq!(bench.pool.intakes.out(), 0);
                    }
                }
            }
        }
    }

    #[test]
    fn what_follows_the_body_is_left() {
        for (length, text) in [
            (BodyLength::Length(3), &b"abc"[..]),
            (BodyLength::Chunked, b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
            (BodyLength::Length(0), b""),
        ] {
            let mut bench = Bench::new(length, false);
            let data = [text, b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(bench.take(&data).0, text.len());
            assert!(bench.intake.has_ended() && !bench.intake.is_direct());
        }
    }

    #[test]
    fn bad_framing_is_found_behind_full_pieces() {
        let mut text = chunked(&pattern(2 * INTAKE_PIECE_LEN_BYTES), 4_096);
        text.truncate(text.len() - 5);
        text.extend_from_slice(b"nonsense");
        let mut bench = Bench::new(BodyLength::Chunked, true);
        assert_eq!(bench.take_all(&text, 4_096), Progress::Malformed(BadBody::ChunkSize));
    }

    #[test]
    fn two_buffers_are_all_it_takes() {
        let mut bench = Bench::new(BodyLength::Chunked, true);
        let text = chunked(&pattern(3 * INTAKE_PIECE_LEN_BYTES), 1 << 30);
        let (taken_len, _) = bench.take(&text);
        assert_eq!(taken_len, "c0000\r\n".len() + 2 * INTAKE_PIECE_LEN_BYTES);
        assert_eq!((bench.pool.intakes.out(), bench.take(&text[taken_len..]).0), (2, 0));
        assert_eq!(bench.look(), Progress::Underway);
        assert_eq!(bench.take(&text[taken_len..]).0, 0, "it is not written");
        assert_eq!(bench.write(), Progress::Underway);
        assert!(bench.take(&text[taken_len..]).0 > 0);
        assert_eq!(bench.pool.intakes.out(), 2);
        bench.intake.abandon(ID, &mut bench.pool);
        assert_eq!(bench.pool.intakes.out(), 0, "the one that the kernel and the service have is theirs");
    }

    #[test]
    fn a_buffer_is_used_again() {
        let mut bench = Bench::new(BodyLength::Length(4 * INTAKE_PIECE_LEN_BYTES as u64), true);
        let mut addresses = Vec::new();
        for _ in 0..4 {
            let (buffer, range) = bench.with(Intake::lend).unwrap();
            assert_eq!(range, 0..INTAKE_PIECE_LEN_BYTES);
            addresses.push(buffer.as_ptr());
            bench.with(|intake, tools| intake.take_back(buffer, INTAKE_PIECE_LEN_BYTES, tools));
            bench.look();
            bench.write();
        }
        assert!(addresses.iter().all(|address| *address == addresses[0]));
    }

    #[test]
    fn a_long_body_is_received_directly_and_never_beyond_its_end() {
        let len = 2 * INTAKE_PIECE_LEN_BYTES + 10;
        let mut bench = Bench::new(BodyLength::Length(len as u64), false);
        let body = pattern(len);
        assert!(bench.intake.is_direct());
        // What came as requests do.
        assert_eq!(bench.take(&body[..1_000]).0, 1_000);
        let mut at = 1_000;
        let mut progress = Progress::Underway;
        while at < len {
            assert!(bench.intake.is_direct());
            let (mut buffer, range) = bench.with(Intake::lend).unwrap();
            assert!(range.end <= buffer.len() && range.len() <= len - at && !range.is_empty());
            let received_len = range.len().min(100_000);
            buffer[range][..received_len].copy_from_slice(&body[at..at + received_len]);
            at += received_len;
            progress = bench.with(|intake, tools| intake.take_back(buffer, received_len, tools));
            if !bench.looker.pieces.is_empty() {
                progress = bench.look();
            }
        }
        assert!(!bench.intake.is_direct(), "the next request comes as requests do");
        assert_eq!((progress, bench.with(Intake::lend).is_none()), (Progress::Whole, true));
        assert!(bench.body == body);
        assert_eq!(bench.pool.intakes.out(), 0);
    }

    #[test]
    fn who_waits_for_a_buffer_gets_that_of_a_slow_peer() {
        let nobody = ConnectionId { slot: 0, generation: 0 };
        for received_len in [0, 10] {
            let mut bench = Bench::new(BodyLength::Length(1 << 20), false);
            while bench.pool.intakes.out() < INTAKE_BUFFERS_MAX - 1 {
                bench.pool.intakes.take(nobody).unwrap();
            }
            let (buffer, _) = bench.with(Intake::lend).unwrap();
            assert!(bench.pool.intakes.take(nobody).is_none());
            assert_eq!(bench.pool.next_keeper(), Some(ID));
            assert_eq!(bench.with(Intake::surrender), Progress::Underway);
            assert!(!bench.intake.is_direct());
            bench.with(|intake, tools| intake.take_back(buffer, received_len, tools));
            if received_len > 0 {
                assert_eq!(bench.look(), Progress::Underway);
            }
            assert_eq!(bench.pool.next_fed(), Some(nobody));
            assert!(bench.pool.intakes.take(nobody).is_some());
            // It goes on when the peer does, and stands in the queue once.
            assert!(!bench.intake.is_direct());
            for _ in 0..3 {
                assert_eq!(bench.take(b"more").0, 0);
            }
            bench.pool.intakes.lost();
            assert_eq!(bench.pool.next_fed(), Some(ID));
            assert_eq!(bench.take(b"more").0, 4);
            assert!(bench.intake.is_direct());
            assert_eq!((bench.pool.next_fed(), bench.pool.next_keeper()), (None, None));
        }
    }

    #[test]
    fn nothing_is_kept_of_those_who_have_gone() {
        let mut bench = Bench::new(BodyLength::Length(1 << 20), false);
        bench.take(b"more");
        bench.intake.abandon(ID, &mut bench.pool);
        while bench.pool.intakes.take(ID).is_some() {}
        assert_eq!(bench.pool.next_keeper(), None);
        bench.pool.intakes.forget(ID);
        bench.intake = Intake::new(BodyLength::Chunked, None);
        assert_eq!(bench.take(b"4\r\nmore").0, 0);
        bench.intake.abandon(ID, &mut bench.pool);
        bench.pool.intakes.lost();
        assert_eq!(bench.pool.next_fed(), None);
    }

    #[test]
    fn a_piece_that_cannot_be_written_ends_it() {
        let mut bench = Bench::new(BodyLength::Length(4), true);
        bench.take(b"body");
        let progress = bench.with(|intake, tools| intake.written(Err(Errno::NOSPC), tools));
        assert_eq!(progress, Progress::Unwritten(Errno::NOSPC));
    }

    /// Writes every body into a file, and answers with its length and what it has seen of it.
    struct Taker {
        mailbox: Mailbox<Message<ConnectionId>>,
        file: std::fs::File,
        piece: Option<Bytes>,
        seen: Vec<u8>,
    }

    impl Service for Taker {
        fn call(&mut self, _: &Caller<'_>, request: &Request<'_>) -> Called {
            if request.target == b"/end" {
                self.mailbox.send(Message::Drain).unwrap();
            }
            if request.body_length() == BodyLength::None {
                return Answer::Reply(Reply::text(Status::Ok, "no body\n")).into();
            }
            let file = OwnedFd::from(self.file.try_clone().unwrap());
            Answer::Receive { file: Some(Descriptor::from(file)) }.into()
        }

        fn opened(&mut self, _: ConnectionId, _: Result<OpenedFile, Errno>) -> Answer {
            unreachable!("nothing is opened")
        }

        fn body(&mut self, id: ConnectionId, piece: Bytes) {
            assert!(self.piece.replace(piece).is_none(), "one at a time");
            self.mailbox.send(Message::Node(id)).unwrap();
        }

        fn received(&mut self, _: ConnectionId) -> Answer {
            assert!(self.piece.is_none());
            let mut written = Vec::new();
            self.file.rewind().unwrap();
            self.file.read_to_end(&mut written).unwrap();
            self.file.set_len(0).unwrap();
            let seen = std::mem::take(&mut self.seen);
            assert!(written == seen);
            Answer::Reply(Reply::text(
                Status::Created,
                format!("{} {}\n", seen.len(), crc32fast::hash(&seen)),
            ))
        }

        fn unwritten(&mut self, _: ConnectionId, errno: Errno) -> Answer {
            panic!("{errno}")
        }

        fn gone(&mut self, _: ConnectionId) {}
    }

    impl Node for Taker {
        type Message = ConnectionId;

        fn message(&mut self, id: ConnectionId, effects: &mut Effects) {
            self.seen.extend_from_slice(&self.piece.take().unwrap());
            effects.looked_at.push(id);
        }

        fn tick(&mut self) {}
    }

    /// What a worker on the real ring answers to `says`, which ends in a request for `/end`.
    fn answers(off: Capabilities, says: &[u8]) -> Vec<u8> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let figures = Arc::<Figures>::default();
        let counted = Arc::clone(&figures);
        let worker = thread::spawn(move || {
            let (mailbox, inbox) = inbox().unwrap();
            let node = Taker {
                mailbox: mailbox.clone(),
                file: tempfile::tempfile().unwrap(),
                piece: None,
                seen: Vec::new(),
            };
            let peers = Peers {
                index: 0,
                admission: Admission::new(1, 8, None),
                mailboxes: vec![mailbox],
                pulses: Arc::from([AtomicU64::new(0)]),
                figures: counted,
            };
            let ring = Uring::new(Capabilities::probe(off).unwrap()).unwrap();
            Reactor::new(ring, node, inbox, vec![listener.into()], peers).unwrap().run().unwrap();
        });
        // A worker that fails leaves what is in its ring open.
        socket.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        socket.set_write_timeout(Some(Duration::from_mins(1))).unwrap();
        let mut writing = socket.try_clone().unwrap();
        let mut answers = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                writing.write_all(says).unwrap();
                writing.shutdown(Shutdown::Write).unwrap();
            });
            socket.read_to_end(&mut answers).unwrap();
        });
        worker.join().unwrap();
        figures.assert_at_rest();
        let from_memory = &figures.sends[Way::Memory as usize];
        assert_eq!(from_memory.sent_bytes.get(), answers.len() as u64);
        let last =
            [Farewell::LastAnswer, Farewell::Peer].map(|farewell| figures.closed[farewell as usize].get());
        assert_eq!((figures.accepted.get(), last.iter().sum::<u64>()), (1, 1));
        assert!(figures.completions.get() >= from_memory.count.get());
        answers
    }

    #[test]
    fn bodies_of_every_length_arrive_through_the_real_ring() {
        let (mut says, mut expected) = (Vec::new(), Vec::new());
        for len in LENS {
            let body = pattern(len);
            let head = format!("PUT /{len} HTTP/1.1\r\nHost: here\r\n");
            says.extend(format!("{head}Content-Length: {len}\r\n\r\n").into_bytes());
            says.extend_from_slice(&body);
            says.extend(format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes());
            says.extend(chunked(&body, 50_000));
            says.extend_from_slice(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n");
            let created = format!("{} {}\n", body.len(), crc32fast::hash(&body));
            expected.extend([created.clone(), created, "no body\n".to_owned()]);
        }
        says.extend_from_slice(b"GET /end HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
        expected.push("no body\n".to_owned());
        for off in [Capabilities::default(), Capabilities::parse(["all"]).unwrap()] {
            let answers = String::from_utf8(answers(off, &says)).unwrap();
            let bodies: Vec<_> = answers
                .split("HTTP/1.1 20")
                .skip(1)
                .map(|answer| answer.split_once("\r\n\r\n").unwrap().1.to_owned())
                .collect();
            assert_eq!(bodies, expected);
        }
    }
}
