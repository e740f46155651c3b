//! Buffers that the kernel chooses from when data arrives (io_uring_setup_buf_ring(3)), so that an idle connection
//! holds none.
#![expect(unsafe_code, reason = "memory shared with the kernel")]

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use memmap2::MmapMut;

use crate::limits::{RECEIVE_BUFFER_LEN_BYTES, RECEIVE_BUFFERS};

/// The ring of buffers of one worker.
pub struct BufferRing {
    /// The entries, page-aligned; shared with the kernel.
    entries: MmapMut,
    /// The buffers, one after another.
    buffers: MmapMut,
    /// Where the next buffer is given back; wraps.
    tail: u16,
}

/// A buffer that the kernel has filled and the program has not yet given back.
pub struct Lent {
    /// Its number.
    pub id: u16,
    /// How much of it is filled.
    pub len_bytes: usize,
}

impl BufferRing {
    /// The only group of buffers there is.
    pub const GROUP: u16 = 0;

    /// Makes the buffers and hands all of them to the kernel. They must outlive the ring (see [`super::uring`]).
    pub fn register(submitter: &Submitter<'_>) -> io::Result<Self> {
        let mut ring = Self::empty()?;
        // SAFETY: the mapping is page-aligned, as long as the entries need, and is unmapped only after the ring is gone.
        unsafe {
            submitter.register_buf_ring_with_flags(
                ring.entries.as_ptr() as u64,
                RECEIVE_BUFFERS,
                Self::GROUP,
                0,
            )?;
        }
        ring.fill();
        Ok(ring)
    }

    /// The memory alone; none of the buffers can be chosen yet.
    fn empty() -> io::Result<Self> {
        let entries = MmapMut::map_anon(usize::from(RECEIVE_BUFFERS) * size_of::<BufRingEntry>())?;
        let buffers = MmapMut::map_anon(usize::from(RECEIVE_BUFFERS) * RECEIVE_BUFFER_LEN_BYTES as usize)?;
        Ok(Self { entries, buffers, tail: 0 })
    }

    /// Lets the kernel use all of them.
    fn fill(&mut self) {
        for id in 0..RECEIVE_BUFFERS {
            self.give_back(Lent { id, len_bytes: 0 });
        }
    }

    /// What the kernel put into a buffer.
    pub fn bytes(&self, lent: &Lent) -> &[u8] {
        let start = usize::from(lent.id) * RECEIVE_BUFFER_LEN_BYTES as usize;
        &self.buffers[start..start + lent.len_bytes]
    }

    /// Lets the kernel use a buffer again.
    #[expect(clippy::needless_pass_by_value, reason = "a buffer is given back once")]
    #[expect(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
    pub fn give_back(&mut self, lent: Lent) {
        let base = self.entries.as_mut_ptr().cast::<BufRingEntry>();
        let start = usize::from(lent.id) * RECEIVE_BUFFER_LEN_BYTES as usize;
        let address = self.buffers[start..].as_ptr() as u64;
        let index = usize::from(self.tail & (RECEIVE_BUFFERS - 1));
        // SAFETY: `index` is less than RECEIVE_BUFFERS, a power of two, so the entry lies inside the mapping. The kernel
        // reads entries only up to the tail, which is moved past this one below, after it is complete.
        let entry = unsafe { &mut *base.add(index) };
        entry.set_addr(address);
        entry.set_len(RECEIVE_BUFFER_LEN_BYTES);
        entry.set_bid(lent.id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `base` is the first entry of a mapping that is aligned for all of them, and its tail is two bytes of that, in which
        // `entry` has nothing to say any more. The kernel reads it with acquire.
        let tail = unsafe { &*BufRingEntry::tail(base).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel sees: address, length and number of an entry, and the tail.
    #[expect(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
    fn seen(ring: &BufferRing, index: u16) -> (u64, u32, u16, u16) {
        let base = ring.entries.as_ptr().cast::<BufRingEntry>();
        // SAFETY: there are so many entries in the mapping, and the tail is a part of the first; nobody writes them meanwhile.
        let (entry, tail) = unsafe {
            let tail = BufRingEntry::tail(base);
            (&*base.add(usize::from(index)), tail.read())
        };
        (entry.addr(), entry.len(), entry.bid(), tail)
    }

    // Runs in Miri, too (tests/sanitize): there is no kernel in it.
    #[test]
    fn a_buffer_that_is_given_back_is_the_next_of_the_ring() {
        let mut ring = BufferRing::empty().unwrap();
        ring.fill();
        let start = ring.buffers.as_ptr() as u64;
        let address_of = |id: u16| start + u64::from(id) * u64::from(RECEIVE_BUFFER_LEN_BYTES);
        for id in 0..RECEIVE_BUFFERS {
            assert_eq!(seen(&ring, id), (address_of(id), RECEIVE_BUFFER_LEN_BYTES, id, RECEIVE_BUFFERS));
        }
        // Twice around, and past the end of the tail's numbers.
        ring.tail = u16::MAX - RECEIVE_BUFFERS + 1;
        for number in 0..2 * RECEIVE_BUFFERS {
            let id = number.wrapping_mul(7) % RECEIVE_BUFFERS;
            ring.buffers[usize::from(id) * RECEIVE_BUFFER_LEN_BYTES as usize] = 9;
            assert_eq!(ring.bytes(&Lent { id, len_bytes: 1 }), [9]);
            let index = ring.tail % RECEIVE_BUFFERS;
            ring.give_back(Lent { id, len_bytes: 1 });
            assert_eq!(seen(&ring, index), (address_of(id), RECEIVE_BUFFER_LEN_BYTES, id, ring.tail));
        }
        assert_eq!(ring.tail, RECEIVE_BUFFERS);
    }
}
