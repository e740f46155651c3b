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
            self.filling = match tools.pool.intakes.take(tools.id) {
                Some(buffer) => {
                    tools.pool.intakes.note_keeper(tools.id);
                    Filling::Here { buffer, len: 0 }
                }
                None => Filling::Starved,
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
    decoder.remaining_len().is_some_and(|len| len >= INTAKE_DIRECT_LEN_MIN)
}
