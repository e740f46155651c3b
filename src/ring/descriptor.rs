//! Descriptors that stay open exactly as long as somebody uses them.

#[cfg(any(test, fuzzing))]
use std::cell::Cell;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

use rustix::io::Errno;

use super::sys;

/// A shared descriptor of one worker's thread.
///
/// Every operation in the kernel holds a clone of the descriptors it works on, so a number can neither be closed nor
/// be given to another file while the kernel still uses it. Closing is dropping the last clone.
#[derive(Clone, Debug)]
pub struct Descriptor(Rc<Inner>);

#[derive(Debug)]
enum Inner {
    Real(OwnedFd),
    #[cfg(any(test, fuzzing))]
    Simulated {
        number: RawFd,
        /// The real file, for those who make system calls.
        file: Option<OwnedFd>,
        _open: OpenMark,
    },
}

/// Counts one open descriptor for as long as it lives.
#[cfg(any(test, fuzzing))]
#[derive(Debug)]
struct OpenMark(Rc<Cell<usize>>);

impl Descriptor {
    /// A descriptor of the simulated ring; `open_count` counts those not yet closed.
    #[cfg(any(test, fuzzing))]
    pub fn simulated(number: RawFd, open_count: &Rc<Cell<usize>>) -> Self {
        open_count.set(open_count.get() + 1);
        Self(Rc::new(Inner::Simulated { number, file: None, _open: OpenMark(Rc::clone(open_count)) }))
    }

    /// A descriptor of a real file that the simulated ring has opened.
    #[cfg(any(test, fuzzing))]
    pub fn simulated_file(file: OwnedFd, open_count: &Rc<Cell<usize>>) -> Self {
        open_count.set(open_count.get() + 1);
        let (number, file) = (file.as_raw_fd(), Some(file));
        Self(Rc::new(Inner::Simulated { number, file, _open: OpenMark(Rc::clone(open_count)) }))
    }

    /// What system calls can be made on; nothing where all is simulated.
    #[cfg(any(test, fuzzing))]
    pub fn real(&self) -> Option<BorrowedFd<'_>> {
        match &*self.0 {
            Inner::Real(fd) => Some(fd.as_fd()),
            Inner::Simulated { file, .. } => file.as_ref().map(OwnedFd::as_fd),
        }
    }

    /// The address of the peer of this socket: as [`sys::peer_address`]. The peers of the simulated ring have one each.
    pub fn peer_address(&self) -> Result<Option<IpAddr>, Errno> {
        match &*self.0 {
            Inner::Real(socket) => sys::peer_address(socket.as_fd()),
            #[cfg(any(test, fuzzing))]
            Inner::Simulated { number, .. } => Ok(Some(IpAddr::from(number.to_be_bytes()))),
        }
    }

    /// The descriptor itself, for another thread; none while it is shared.
    pub fn into_owned(self) -> Option<OwnedFd> {
        match Rc::try_unwrap(self.0) {
            Ok(Inner::Real(fd)) => Some(fd),
            _ => None,
        }
    }

    /// The number, for the kernel (or the simulation) only.
    pub(super) fn raw(&self) -> RawFd {
        match &*self.0 {
            Inner::Real(fd) => fd.as_raw_fd(),
            #[cfg(any(test, fuzzing))]
            Inner::Simulated { number, .. } => *number,
        }
    }

    /// Another descriptor of the same open file, for another thread.
    ///
    /// # Panics
    /// As [`Descriptor::borrow`].
    pub fn duplicate(&self) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(self.borrow(), 0)
    }

    /// The descriptor, for a system call that is made at once.
    ///
    /// # Panics
    /// On a simulated descriptor without a real file, which no system call knows.
    pub fn borrow(&self) -> BorrowedFd<'_> {
        match &*self.0 {
            Inner::Real(fd) => fd.as_fd(),
            #[cfg(any(test, fuzzing))]
            Inner::Simulated { file: Some(file), .. } => file.as_fd(),
            #[cfg(any(test, fuzzing))]
            Inner::Simulated { number, .. } => panic!("simulated descriptor {number} in a system call"),
        }
    }
}

impl From<OwnedFd> for Descriptor {
    fn from(fd: OwnedFd) -> Self {
        Self(Rc::new(Inner::Real(fd)))
    }
}

#[cfg(any(test, fuzzing))]
impl Drop for OpenMark {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
