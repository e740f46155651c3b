//! The buffers of one worker: taken when bytes are made or come, given back when the kernel, or who looks at them, is done.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BytesMut;

use super::op::ConnectionId;
use crate::limits::{
    ANSWER_BUFFER_LEN_BYTES, ANSWER_BUFFERS_KEPT, EXEMPTIONS_MAX, INTAKE_BUFFERS_MAX, INTAKE_PIECE_LEN_BYTES,
    PACK_BUFFER_LEN_BYTES, PACK_BUFFERS_MAX,
};

/// Buffers, and the connections that hold or want some.
pub struct Pool {
    answers: Vec<BytesMut>,
    /// What small files and framing are packed into.
    pub packs: Share,
    /// What bodies of requests are received into.
    pub intakes: Share,
    /// Who may have the kernel keep more than others.
    pub exemptions: Exemptions,
}

/// Exemptions from [`crate::limits::UNSENT_LEN_MAX`] that nobody has. All workers share them, as they share the kernel's memory.
#[derive(Clone, Debug)]
pub struct Exemptions(Arc<AtomicUsize>);

/// The exemption of a connection, which keeps it to its end: nothing but that end says that the kernel has let go of what it took.
/// Dropping it gives it back.
#[derive(Debug)]
pub struct Exemption(Exemptions);

impl Exemptions {
    /// So many.
    pub fn new(count: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(count)))
    }

    /// One, if there is one.
    pub fn take(&self) -> Option<Exemption> {
        let less_one = |left: usize| left.checked_sub(1);
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less_one);
        taken.is_ok().then(|| Exemption(self.clone()))
    }
}

impl Drop for Exemption {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Buffers of one length, a bounded number of them, for connections that hold one for a short time each.
pub struct Share {
    len_bytes: usize,
    count_max: usize,
    free: Vec<BytesMut>,
    /// Buffers that are not in `free`.
    out: usize,
    /// Connections that wait for a buffer, first come, first served.
    starved: VecDeque<ConnectionId>,
    /// The connection whose turn it is to take one, although others wait.
    served: Option<ConnectionId>,
    /// Connections that keep a buffer for a peer that does nothing, oldest first. They are few, as the buffers are.
    keepers: VecDeque<ConnectionId>,
    /// How many of them were asked for their buffers, about, and have not given them back.
    recalled: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Self::bounded(PACK_BUFFERS_MAX, INTAKE_BUFFERS_MAX)
    }
}

impl Pool {
    /// A pool with buffers of its own and exemptions that others take as well.
    pub fn sharing(exemptions: Exemptions) -> Self {
        Self { exemptions, ..Self::default() }
    }

    /// A pool of so many buffers of each kind.
    pub fn bounded(packs_max: usize, intakes_max: usize) -> Self {
        Self {
            answers: Vec::new(),
            packs: Share::new(PACK_BUFFER_LEN_BYTES, packs_max),
            intakes: Share::new(INTAKE_PIECE_LEN_BYTES, intakes_max),
            exemptions: Exemptions::new(EXEMPTIONS_MAX),
        }
    }

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

    /// A connection that waits longest for a buffer that there is now; then it is its turn until the next call.
    pub fn next_fed(&mut self) -> Option<ConnectionId> {
        self.packs.next_fed().or_else(|| self.intakes.next_fed())
    }

    /// A connection that should part with the buffer it keeps, while others wait for one.
    pub fn next_keeper(&mut self) -> Option<ConnectionId> {
        self.packs.next_keeper().or_else(|| self.intakes.next_keeper())
    }
}

impl Share {
    fn new(len_bytes: usize, count_max: usize) -> Self {
        Self {
            len_bytes,
            count_max,
            free: Vec::new(),
            out: 0,
            starved: VecDeque::new(),
            served: None,
            keepers: VecDeque::new(),
            recalled: 0,
        }
    }

    /// A buffer to fill, or none while too many are in use or others wait for one: `id` then stands in the queue. Whoever gives
    /// a buffer back in order to take it again would otherwise keep it from them.
    pub fn take(&mut self, id: ConnectionId) -> Option<BytesMut> {
        let is_its_turn = self.starved.is_empty() || self.is_turn_of(id);
        if !is_its_turn || !self.has_one() {
            self.starved.push_back(id);
            return None;
        }
        self.served = None;
        self.out += 1;
        Some(self.free.pop().unwrap_or_else(|| BytesMut::zeroed(self.len_bytes)))
    }

    /// Gives a whole buffer back.
    pub fn give_back(&mut self, buffer: BytesMut) {
        debug_assert_eq!(buffer.len(), self.len_bytes, "pieces are joined before they come back");
        self.lost();
        self.free.push(buffer);
    }

    /// Says that a buffer does not come back: it was freed in pieces, as happens when a connection is closed while it is filled,
    /// or somebody else has it and frees it.
    pub fn lost(&mut self) {
        self.out -= 1;
        self.recalled = self.recalled.saturating_sub(1);
    }

    /// Takes so many out of use, or as many as there are, as if others had them; says how many. [`Share::lost`] puts one back.
    #[cfg(any(test, fuzzing))]
    pub fn withhold(&mut self, count: usize) -> usize {
        let before = self.out;
        while self.has_one() && self.out < before + count {
            self.free.pop();
            self.out += 1;
        }
        self.out - before
    }

    /// Notes that `id` keeps a buffer for a peer that does nothing, and would part with it.
    pub fn note_keeper(&mut self, id: ConnectionId) {
        self.keepers.push_back(id);
    }

    /// Notes that `id` keeps nothing any more.
    pub fn forget_keeper(&mut self, id: ConnectionId) {
        self.keepers.retain(|keeper| *keeper != id);
    }

    /// Notes that `id` has gone in the middle of its work: it neither waits nor keeps anything.
    pub fn forget(&mut self, id: ConnectionId) {
        self.starved.retain(|starved| *starved != id);
        self.forget_keeper(id);
    }

    /// The connection that waits longest, once there is a buffer for it; then it is its turn until the next call.
    fn next_fed(&mut self) -> Option<ConnectionId> {
        self.served = if self.has_one() { self.starved.pop_front() } else { None };
        self.served
    }

    /// Whether [`Pool::next_fed`] has just named `id`.
    pub fn is_turn_of(&self, id: ConnectionId) -> bool {
        self.served == Some(id)
    }

    /// The connection that should part with the buffer it keeps: as many as wait for one, for it may take a while.
    fn next_keeper(&mut self) -> Option<ConnectionId> {
        if self.recalled >= self.starved.len() {
            return None;
        }
        let keeper = self.keepers.pop_front()?;
        self.recalled += 1;
        Some(keeper)
    }

    /// Buffers in use: 0 when every connection is at rest.
    pub fn out(&self) -> usize {
        self.out
    }

    fn has_one(&self) -> bool {
        !self.free.is_empty() || self.out < self.count_max
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
        let buffers = (0..PACK_BUFFERS_MAX).map(|_| pool.packs.take(id(0)).unwrap()).collect();
        (pool, buffers)
    }

    #[test]
    fn nobody_passes_those_who_wait() {
        let (mut pool, mut buffers) = exhausted();
        assert!(pool.packs.take(id(1)).is_none());
        assert!(pool.packs.take(id(2)).is_none());
        pool.packs.give_back(buffers.pop().unwrap());
        assert!(pool.packs.take(id(0)).is_none(), "it is for one of those who wait");
        assert_eq!(pool.next_fed(), Some(id(1)));
        assert!(pool.packs.take(id(1)).is_some());
        assert_eq!(pool.next_fed(), None);
        pool.packs.give_back(buffers.pop().unwrap());
        assert_eq!(pool.next_fed(), Some(id(2)));
        assert!(pool.packs.take(id(2)).is_some());
    }

    #[test]
    fn a_turn_that_is_not_used_is_the_next_ones() {
        let (mut pool, mut buffers) = exhausted();
        assert!(pool.packs.take(id(1)).is_none());
        assert!(pool.packs.take(id(2)).is_none());
        pool.packs.give_back(buffers.pop().unwrap());
        assert_eq!(pool.next_fed(), Some(id(1)));
        assert_eq!(pool.next_fed(), Some(id(2)));
        assert!(pool.packs.take(id(2)).is_some());
        assert_eq!(pool.next_fed(), None);
    }

    #[test]
    fn nothing_is_kept_of_those_who_have_gone() {
        let (mut pool, mut buffers) = exhausted();
        assert!(pool.packs.take(id(1)).is_none());
        pool.packs.note_keeper(id(2));
        pool.packs.forget(id(1));
        pool.packs.forget(id(2));
        assert!(pool.packs.starved.is_empty() && pool.packs.keepers.is_empty());
        pool.packs.give_back(buffers.pop().unwrap());
        assert_eq!(pool.next_fed(), None);
    }

    #[test]
    fn a_keeper_is_found_however_often_others_keep_and_let_go() {
        let (mut pool, _buffers) = exhausted();
        pool.packs.note_keeper(id(1));
        for _ in 0..100 * PACK_BUFFERS_MAX {
            pool.packs.note_keeper(id(2));
            assert_eq!(pool.next_keeper(), None, "nobody waits");
            pool.packs.forget_keeper(id(2));
        }
        assert!(pool.packs.take(id(3)).is_none());
        assert_eq!(pool.next_keeper(), Some(id(1)));
        assert_eq!(pool.next_keeper(), None);
    }

    #[test]
    fn as_many_keepers_are_asked_as_connections_wait() {
        let (mut pool, mut buffers) = exhausted();
        for keeper in 1..=3 {
            pool.packs.note_keeper(id(keeper));
        }
        assert!(pool.packs.take(id(4)).is_none());
        assert_eq!(pool.next_keeper(), Some(id(1)));
        assert_eq!(pool.next_keeper(), None, "one waits, and one was asked");
        assert!(pool.packs.take(id(5)).is_none());
        assert_eq!(pool.next_keeper(), Some(id(2)));
        assert_eq!(pool.next_keeper(), None);
        pool.packs.give_back(buffers.pop().unwrap());
        pool.packs.lost();
        assert_eq!((pool.next_fed(), pool.packs.take(id(4)).is_some()), (Some(id(4)), true));
        assert_eq!((pool.next_fed(), pool.packs.take(id(5)).is_some()), (Some(id(5)), true));
        assert_eq!((pool.next_fed(), pool.next_keeper()), (None, None));
        assert_eq!(pool.packs.out(), PACK_BUFFERS_MAX);
    }

    #[test]
    fn buffers_of_one_kind_are_not_taken_for_the_other() {
        let (mut pool, mut buffers) = exhausted();
        let intake = pool.intakes.take(id(1)).unwrap();
        assert!(pool.packs.take(id(2)).is_none());
        pool.intakes.give_back(intake);
        assert_eq!(pool.next_fed(), None);
        pool.packs.give_back(buffers.pop().unwrap());
        assert_eq!(pool.next_fed(), Some(id(2)));
    }
}
