//! The send buffers of one worker: taken when bytes are made, given back when the kernel has taken them.

use std::collections::VecDeque;

use bytes::BytesMut;

use super::op::ConnectionId;
use crate::limits::{ANSWER_BUFFER_LEN_BYTES, ANSWER_BUFFERS_KEPT, PACK_BUFFER_LEN_BYTES, PACK_BUFFERS_MAX};

/// Buffers, and the connections that hold or want some.
#[derive(Default)]
pub struct Pool {
    answers: Vec<BytesMut>,
    packs: Vec<BytesMut>,
    /// Pack buffers that are not in `packs`.
    packs_out: usize,
    /// Connections that wait for a pack buffer, first come, first served.
    starved: VecDeque<ConnectionId>,
    /// The connection whose turn it is to take one, although others wait.
    served: Option<ConnectionId>,
    /// Connections that keep a pack buffer for a peer that does not read, oldest first. Each has one, so they are few.
    keepers: VecDeque<ConnectionId>,
}

impl Pool {
    /// An empty buffer for answers.
    pub fn take_answer(&mut self) -> BytesMut {
        self.answers.pop().unwrap_or_else(|| BytesMut::with_capacity(ANSWER_BUFFER_LEN_BYTES))
    }

    /// Gives an answer buffer back. One that has grown is let go.
    pub fn give_back_answer(&mut self, mut buffer: BytesMut) {
        if buffer.capacity() <= ANSWER_BUFFER_LEN_BYTES && self.answers.len() < ANSWER_BUFFERS_KEPT {
            buffer.clear();
            self.answers.push(buffer);
        }
    }

    /// A buffer of [`PACK_BUFFER_LEN_BYTES`] to fill, or none while too many are in use or others wait for one: `id` then
    /// stands in the queue. Whoever gives a buffer back in order to take it again would otherwise keep it from them.
    pub fn take_pack(&mut self, id: ConnectionId) -> Option<BytesMut> {
        let is_its_turn = self.starved.is_empty() || self.is_turn_of(id);
        if !is_its_turn || !self.has_pack() {
            self.starved.push_back(id);
            return None;
        }
        self.served = None;
        self.packs_out += 1;
        Some(self.packs.pop().unwrap_or_else(|| BytesMut::zeroed(PACK_BUFFER_LEN_BYTES)))
    }

    /// Gives a whole pack buffer back.
    pub fn give_back_pack(&mut self, buffer: BytesMut) {
        debug_assert_eq!(buffer.len(), PACK_BUFFER_LEN_BYTES, "pieces are joined before they come back");
        self.packs_out -= 1;
        self.packs.push(buffer);
    }

    /// Says that a pack buffer was freed in pieces, as happens when a connection is closed while it is filled.
    pub fn lost_pack(&mut self) {
        self.packs_out -= 1;
    }

    /// Notes that `id` keeps a pack buffer for a peer that does not read, and would part with it.
    pub fn note_keeper(&mut self, id: ConnectionId) {
        self.keepers.push_back(id);
    }

    /// Notes that `id` keeps nothing any more.
    pub fn forget_keeper(&mut self, id: ConnectionId) {
        self.keepers.retain(|keeper| *keeper != id);
    }

    /// Notes that `id` has gone in the middle of a transfer: it neither waits nor keeps anything.
    pub fn forget(&mut self, id: ConnectionId) {
        self.starved.retain(|starved| *starved != id);
        self.forget_keeper(id);
    }

    /// The connection that waits longest, once there is a buffer for it; then it is its turn until the next call.
    pub fn next_fed(&mut self) -> Option<ConnectionId> {
        self.served = if self.has_pack() { self.starved.pop_front() } else { None };
        self.served
    }

    /// Whether [`Pool::next_fed`] has just named `id`.
    pub fn is_turn_of(&self, id: ConnectionId) -> bool {
        self.served == Some(id)
    }

    /// The connection that should part with the buffer it keeps, while others wait for one.
    pub fn next_keeper(&mut self) -> Option<ConnectionId> {
        if self.starved.is_empty() { None } else { self.keepers.pop_front() }
    }

    /// Pack buffers in use: 0 when every connection is at rest.
    pub fn packs_out(&self) -> usize {
        self.packs_out
    }

    fn has_pack(&self) -> bool {
        !self.packs.is_empty() || self.packs_out < PACK_BUFFERS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32) -> ConnectionId {
        ConnectionId { slot, generation: 1 }
    }

    /// A pool whose buffers are all out, and the buffers.
    fn exhausted() -> (Pool, Vec<BytesMut>) {
        let mut pool = Pool::default();
        let buffers = (0..PACK_BUFFERS_MAX).map(|_| pool.take_pack(id(0)).unwrap()).collect();
        (pool, buffers)
    }

    #[test]
    fn nobody_passes_those_who_wait() {
        let (mut pool, mut buffers) = exhausted();
        assert!(pool.take_pack(id(1)).is_none());
        assert!(pool.take_pack(id(2)).is_none());
        pool.give_back_pack(buffers.pop().unwrap());
        assert!(pool.take_pack(id(0)).is_none(), "it is for one of those who wait");
        assert_eq!(pool.next_fed(), Some(id(1)));
        assert!(pool.take_pack(id(1)).is_some());
        assert_eq!(pool.next_fed(), None);
        pool.give_back_pack(buffers.pop().unwrap());
        assert_eq!(pool.next_fed(), Some(id(2)));
        assert!(pool.take_pack(id(2)).is_some());
    }

    #[test]
    fn a_turn_that_is_not_used_is_the_next_ones() {
        let (mut pool, mut buffers) = exhausted();
        assert!(pool.take_pack(id(1)).is_none());
        assert!(pool.take_pack(id(2)).is_none());
        pool.give_back_pack(buffers.pop().unwrap());
        assert_eq!(pool.next_fed(), Some(id(1)));
        assert_eq!(pool.next_fed(), Some(id(2)));
        assert!(pool.take_pack(id(2)).is_some());
        assert_eq!(pool.next_fed(), None);
    }

    #[test]
    fn nothing_is_kept_of_those_who_have_gone() {
        let (mut pool, mut buffers) = exhausted();
        assert!(pool.take_pack(id(1)).is_none());
        pool.note_keeper(id(2));
        pool.forget(id(1));
        pool.forget(id(2));
        assert!(pool.starved.is_empty() && pool.keepers.is_empty());
        pool.give_back_pack(buffers.pop().unwrap());
        assert_eq!(pool.next_fed(), None);
    }

    #[test]
    fn a_keeper_is_found_however_often_others_keep_and_let_go() {
        let (mut pool, _buffers) = exhausted();
        pool.note_keeper(id(1));
        for _ in 0..100 * PACK_BUFFERS_MAX {
            pool.note_keeper(id(2));
            assert_eq!(pool.next_keeper(), None, "nobody waits");
            pool.forget_keeper(id(2));
        }
        assert!(pool.take_pack(id(3)).is_none());
        assert_eq!(pool.next_keeper(), Some(id(1)));
        assert_eq!(pool.next_keeper(), None);
    }
}
