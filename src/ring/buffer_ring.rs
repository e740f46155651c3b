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
        let entries = MmapMut::map_anon(usize::from(RECEIVE_BUFFERS) * size_of::<BufRingEntry>())?;
        let buffers = MmapMut::map_anon(usize::from(RECEIVE_BUFFERS) * RECEIVE_BUFFER_LEN_BYTES as usize)?;
        // SAFETY: the mapping is page-aligned, as long as the entries need, and is unmapped only after the ring is gone.
        unsafe {
            submitter.register_buf_ring_with_flags(
                entries.as_ptr() as u64,
                RECEIVE_BUFFERS,
                Self::GROUP,
                0,
            )?;
        }
        let mut ring = Self { entries, buffers, tail: 0 };
        for id in 0..RECEIVE_BUFFERS {
            ring.give_back(Lent { id, len_bytes: 0 });
        }
        Ok(ring)
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
        // SAFETY: `base` is the first entry of a registered ring, whose tail the kernel reads with acquire.
        let tail = unsafe { &*BufRingEntry::tail(base).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}
