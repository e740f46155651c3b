//! Whether a range of a file is in memory: a question to the kernel that the ring has, and the background plane.
#![expect(unsafe_code, reason = "cachestat(2) has no safe wrapper yet")]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, ReadWriteFlags};

/// The number of cachestat(2) on every architecture (Linux 6.5).
const SYS_CACHESTAT: libc::c_long = 451;
const PAGE_LEN_BYTES: u64 = 4096;

/// What the kernel writes for cachestat(2): counts of pages.
#[repr(C)]
#[derive(Default)]
struct CacheStat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Whether `len` bytes (at least 1) of a file from `offset` on can be read without waiting for a disk.
///
/// cachestat(2) counts pages, also those that the disk is still filling; they come in order, so the last byte is tried as
/// well. A page may be evicted right after: the answer is a good guess, not a promise.
///
/// # Errors
/// [`Errno::NOSYS`] or [`Errno::PERM`] where the kernel or a sandbox does not have cachestat(2), [`Errno::OPNOTSUPP`] for
/// files without a page cache, and for file systems that cannot read without waiting (tmpfs).
pub fn is_in_memory(file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<bool, Errno> {
    let range = [offset, len];
    let mut stat = CacheStat::default();
    // SAFETY: `range` is the two u64 of `struct cachestat_range` and `stat` has the layout of `struct cachestat`
    // (include/uapi/linux/mman.h); both live until the call returns, and the kernel keeps neither.
    let result = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range.as_ptr(), &raw mut stat, 0 as libc::c_uint)
    };
    if result != 0 {
        return Err(last_errno());
    }
    let first = offset / PAGE_LEN_BYTES;
    let end = offset.saturating_add(len).div_ceil(PAGE_LEN_BYTES);
    if stat.cached < end - first {
        return Ok(false);
    }
    let mut last = [0];
    let read = rustix::io::preadv2(
        file,
        &mut [std::io::IoSliceMut::new(&mut last)],
        offset.saturating_add(len).saturating_sub(1),
        ReadWriteFlags::NOWAIT,
    );
    match read {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn what_was_just_written_is_resident() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        match is_in_memory(file.as_fd(), 0, 10_000) {
            Ok(is_in_memory) => assert!(is_in_memory),
            // A kernel before 6.5, a sandbox, or a file system that cannot tell, such as tmpfs.
            Err(errno) => assert!(matches!(errno, Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP), "{errno}"),
        }
    }
}
