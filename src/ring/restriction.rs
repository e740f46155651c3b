//! What a ring of this program may be used for: the operations that [`super::uring`] makes, and nothing else.
//!
//! The kernel carries out what stands in a ring without asking any seccomp filter, so the ring itself is told
//! (io_uring_register(2), `IORING_REGISTER_RESTRICTIONS`). It starts disabled, is given its buffers and its table, then its
//! restrictions, which can never be taken back, and is enabled.

use std::io;

use io_uring::register::Restriction;
use io_uring::squeue::Flags;
use io_uring::{Submitter, opcode};

use super::capability::{Capabilities, Capability};

/// `IORING_UNREGISTER_PBUF_RING` (include/uapi/linux/io_uring.h), which the crate keeps to itself.
const UNREGISTER_BUFFER_RING: u8 = 23;

/// Every operation that an entry can be, whatever the capabilities are: they choose among variants of the same operations.
const OPERATIONS: [u8; 9] = [
    opcode::Accept::CODE,
    opcode::Recv::CODE,
    opcode::Send::CODE,
    opcode::PollAdd::CODE,
    opcode::OpenAt2::CODE,
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Close::CODE,
    opcode::AsyncCancel::CODE,
];

/// Restricts a ring that was made disabled, and enables it. What is to be registered has been registered.
pub(super) fn enable(submitter: &Submitter<'_>, capabilities: Capabilities) -> io::Result<()> {
    let mut restrictions: Vec<_> = OPERATIONS.into_iter().map(Restriction::sqe_op).collect();
    // 0 would be a restriction as well, and refuse them all.
    let flags = allowed_flags(capabilities);
    restrictions.push(Restriction::sqe_flags_allowed(flags.bits()));
    restrictions.push(Restriction::register_op(UNREGISTER_BUFFER_RING));
    submitter.register_restrictions(&mut restrictions)?;
    submitter.register_enable_rings()
}

/// The flags that an entry can have.
fn allowed_flags(capabilities: Capabilities) -> Flags {
    let mut flags = Flags::ASYNC;
    if capabilities.has(Capability::BufferRing) {
        flags |= Flags::BUFFER_SELECT;
    }
    if capabilities.has(Capability::DirectFiles) {
        // `IOSQE_FIXED_FILE`, which the crate sets by itself for places in the ring's table.
        flags |= Flags::from_bits_retain(1) | Flags::SKIP_SUCCESS;
    }
    flags
}

#[cfg(test)]
mod tests {
    use io_uring::IoUring;
    use rustix::io::Errno;

    use super::*;

    /// The kernel's answer to one entry.
    fn answer(ring: &mut IoUring, entry: &io_uring::squeue::Entry) -> i32 {
        super::super::capability::submit_one(ring, entry).unwrap().result()
    }

    fn refused() -> i32 {
        -Errno::ACCESS.raw_os_error()
    }

    #[test]
    fn a_ring_takes_what_is_needed_and_nothing_else() {
        let capabilities = Capabilities::probe(Capabilities::default()).unwrap();
        if !capabilities.has(Capability::Restrictions) {
            return;
        }
        let mut ring = capabilities.builder().build(8).unwrap();
        enable(&ring.submitter(), capabilities).unwrap();
        let nobody = io_uring::types::Fd(-1);
        let cancel = opcode::AsyncCancel::new(7).build();
        assert_eq!(answer(&mut ring, &cancel), -Errno::NOENT.raw_os_error(), "an operation that is needed");
        for entry in [
            opcode::Nop::new().build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_DGRAM, 0).build(),
            opcode::Connect::new(nobody, std::ptr::null(), 0).build(),
            opcode::UnlinkAt::new(nobody, c"".as_ptr()).build(),
            opcode::SendMsg::new(nobody, std::ptr::null()).build(),
            opcode::OpenAt::new(nobody, c"".as_ptr()).build(),
            cancel.flags(Flags::IO_DRAIN),
        ] {
            assert_eq!(answer(&mut ring, &entry), refused(), "{entry:?}");
        }
        let table = ring.submitter().register_files(&[-1]).unwrap_err();
        assert_eq!(Errno::from_io_error(&table), Some(Errno::ACCESS));
        let again = ring.submitter().register_restrictions(&mut []).unwrap_err();
        assert!(Errno::from_io_error(&again).is_some(), "what is refused stays refused");
    }

    #[test]
    fn a_ring_that_is_not_restricted_takes_everything() {
        let off = Capabilities::default().with(Capability::Restrictions);
        let capabilities = Capabilities::probe(off).unwrap();
        assert!(!capabilities.has(Capability::Restrictions));
        let mut ring = capabilities.builder().build(8).unwrap();
        assert_eq!(answer(&mut ring, &opcode::Nop::new().build()), 0);
        ring.submitter().register_files(&[-1]).unwrap();
    }
}
