//! Real files beneath a simulated ring: what is asked of them is done at once, and in a while, or not at all.
//!
//! A worker hands descriptors to threads that walk, encode and verify, so its files have to be real. What a bad disk does comes on
//! top here, as the seed wants it; what changes under the worker is changed by the simulation, in the files themselves.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Random;
use crate::ring::body::Fault;
use crate::ring::op::{FileStatus, SendFileError};
use crate::ring::sys;

/// How often a disk does what it should not. Percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskFaults {
    /// It takes another turn.
    pub slow: usize,
    /// A file cannot be read (EIO).
    pub fails: usize,
    /// A file has vanished between two looks at it (ENOENT).
    pub vanished: usize,
    /// There is no descriptor left for it (EMFILE).
    pub exhausted: usize,
    /// There is no room to write (ENOSPC).
    pub full: usize,
}

/// The disk.
#[derive(Debug, Default)]
pub struct Disk {
    /// What is wrong with it.
    pub faults: DiskFaults,
    /// How often something that should have been done was not.
    failed_count: usize,
    /// Numbers that the same seed gives again, by those that the kernel has given.
    inodes: HashMap<(u64, u64), u64>,
}

impl Disk {
    /// How often it has failed.
    pub fn failed_count(&self) -> usize {
        self.failed_count
    }

    /// As [`crate::ring::op::Op::Open`].
    pub(super) fn open(
        &mut self,
        directory: BorrowedFd<'_>,
        path: &CStr,
        random: &mut Random,
    ) -> Result<(OwnedFd, FileStatus), Errno> {
        self.fail(random, |faults| [(faults.vanished, Errno::NOENT), (faults.exhausted, Errno::MFILE)])?;
        self.fail(random, |faults| [(faults.fails, Errno::IO), (0, Errno::IO)])?;
        let file = open(directory, path)?;
        let status = sys::status(file.as_fd())?;
        let device = rustix::fs::fstat(&file)?.st_dev;
        let number = self.inodes.len() as u64 + 1;
        let inode = *self.inodes.entry((device, status.inode)).or_insert(number);
        // The times are those of this run: they must not decide anything.
        let status =
            FileStatus { inode, modified_s: 1, modified_ns: 0, changed_s: 1, changed_ns: 0, ..status };
        Ok((file, status))
    }

    /// As [`crate::ring::op::Op::ReadFile`].
    pub(super) fn read_file(
        &mut self,
        directory: BorrowedFd<'_>,
        path: &CStr,
        offset: u64,
        buffer: &mut [u8],
        random: &mut Random,
    ) -> Result<(), Fault> {
        let faults =
            |faults: &DiskFaults| [(faults.vanished, Errno::NOENT), (faults.exhausted, Errno::MFILE)];
        self.fail(random, faults).map_err(Fault::File)?;
        let file = open(directory, path).map_err(Fault::File)?;
        let len = self.read_at(file.as_fd(), offset, buffer, random).map_err(Fault::File)?;
        if len + 1 == buffer.len() { Ok(()) } else { Err(Fault::Changed) }
    }

    /// As [`crate::ring::op::Op::Read`].
    pub(super) fn read(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        buffer: &mut [u8],
        random: &mut Random,
    ) -> Result<(), Fault> {
        match self.read_at(file, offset, buffer, random) {
            Ok(len) if len == buffer.len() => Ok(()),
            Ok(_) => Err(Fault::Changed),
            Err(errno) => Err(Fault::File(errno)),
        }
    }

    /// What `sendfile` would send: at most `len` bytes, at least one.
    pub(super) fn read_to_send(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        random: &mut Random,
    ) -> Result<Vec<u8>, SendFileError> {
        let mut bytes = vec![0; len];
        let read = self.read_at(file, offset, &mut bytes, random).map_err(SendFileError::Failed)?;
        bytes.truncate(read);
        if bytes.is_empty() { Err(SendFileError::Truncated) } else { Ok(bytes) }
    }

    /// Some of `bytes`, at least one.
    pub(super) fn write(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        bytes: &[u8],
        random: &mut Random,
    ) -> Result<usize, Errno> {
        self.fail(random, |faults| [(faults.full, Errno::NOSPC), (faults.fails, Errno::IO)])?;
        rustix::io::pwrite(file, bytes, offset)
    }

    fn read_at(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        buffer: &mut [u8],
        random: &mut Random,
    ) -> Result<usize, Errno> {
        self.fail(random, |faults| [(faults.fails, Errno::IO), (0, Errno::IO)])?;
        let mut len = 0;
        while len < buffer.len() {
            match rustix::io::pread(file, &mut buffer[len..], offset + len as u64)? {
                0 => break,
                read => len += read,
            }
        }
        Ok(len)
    }

    /// Fails as often as these faults say.
    fn fail(
        &mut self,
        random: &mut Random,
        faults: impl Fn(&DiskFaults) -> [(usize, Errno); 2],
    ) -> Result<(), Errno> {
        for (percent, errno) in faults(&self.faults) {
            if percent > 0 && random.chance(percent) {
                self.failed_count += 1;
                return Err(errno);
            }
        }
        Ok(())
    }
}

/// As the real ring opens files: never through a link.
fn open(directory: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve)
}
