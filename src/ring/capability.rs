//! What this kernel can do: found out by trying, never guessed from its version (distributions backport in both directions).
//!
//! The ladder goes from Linux 6.6 down to 5.15. Every rung can be taken away by name, and the tests run at both ends.
#![expect(unsafe_code, reason = "the probe drives a ring of its own")]

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::{UnixListener, UnixStream};

use io_uring::squeue::Flags;
use io_uring::types::{DestinationSlot, Fd, Fixed, OpenHow};
use io_uring::{Builder, IoUring, Probe, cqueue, opcode};
use rustix::io::Errno;
use rustix::process::Resource;
use thiserror::Error;

use super::buffer_ring::BufferRing;
use super::sys;
use crate::residency::is_in_memory;

/// Something that newer kernels do better. Without it the same work is done another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Completions are worked on only when the worker asks for them (`DEFER_TASKRUN` with `SINGLE_ISSUER`, Linux 6.1).
    DeferTaskrun,
    /// Completions do not interrupt the worker (`COOP_TASKRUN`, Linux 5.19).
    CoopTaskrun,
    /// No indirection between submissions (`NO_SQARRAY`, Linux 6.6).
    NoSqarray,
    /// One bad submission does not hold up the others (`SUBMIT_ALL`, Linux 5.18).
    SubmitAll,
    /// The kernel chooses the buffer when data arrives: idle connections hold none (buffer rings, Linux 5.19).
    BufferRing,
    /// One submission receives for the life of a connection (Linux 6.0).
    MultishotReceive,
    /// One submission accepts for the life of a listener (Linux 5.19).
    MultishotAccept,
    /// Small files are opened into the ring's own table and never become descriptors (direct descriptors, Linux 5.15, whose
    /// closing is silent, Linux 5.17).
    DirectFiles,
    /// Large ranges that are in memory are sent without copying: sendfile(2), and cachestat(2) to know (Linux 6.5).
    SendFile,
    /// A ring refuses what the program does not use ([`super::restriction`], Linux 5.10). Takes away instead of giving, so that
    /// nothing is done another way without it.
    Restrictions,
}

impl Capability {
    /// All of them, best first.
    pub const ALL: [Self; 10] = [
        Self::DeferTaskrun,
        Self::CoopTaskrun,
        Self::NoSqarray,
        Self::SubmitAll,
        Self::BufferRing,
        Self::MultishotReceive,
        Self::MultishotAccept,
        Self::DirectFiles,
        Self::SendFile,
        // The others are tried in rings that are enabled from the start.
        Self::Restrictions,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::DeferTaskrun => "defer-taskrun",
            Self::CoopTaskrun => "coop-taskrun",
            Self::NoSqarray => "no-sqarray",
            Self::SubmitAll => "submit-all",
            Self::BufferRing => "buffer-ring",
            Self::MultishotReceive => "multishot-receive",
            Self::MultishotAccept => "multishot-accept",
            Self::DirectFiles => "direct-files",
            Self::SendFile => "sendfile",
            Self::Restrictions => "restrictions",
        }
    }
}

/// A set of capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Capabilities(u16);

impl Capabilities {
    /// Whether the set has this one.
    pub fn has(self, capability: Capability) -> bool {
        self.0 & 1 << capability as u8 != 0
    }

    /// The set and this one.
    #[must_use]
    pub fn with(self, capability: Capability) -> Self {
        Self(self.0 | 1 << capability as u8)
    }

    /// Reads names (or `all`), as they stand on the command line.
    ///
    /// # Errors
    /// The first name that is none, with those that are.
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut set = Self::default();
        for name in names {
            if name == "all" {
                set = Capability::ALL.into_iter().fold(set, Self::with);
                continue;
            }
            let Some(capability) = Capability::ALL.into_iter().find(|capability| capability.name() == name)
            else {
                let known: Vec<_> = Capability::ALL.into_iter().map(Capability::name).collect();
                return Err(format!("no capability is named {name:?}; there are: all, {}", known.join(", ")));
            };
            set = set.with(capability);
        }
        Ok(set)
    }

    /// The names of the set, for a log line.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Capability::ALL.into_iter().filter(move |capability| self.has(*capability)).map(Capability::name)
    }

    /// A ring's parameters with these capabilities. With [`Capability::Restrictions`] it does nothing before
    /// [`super::restriction::enable`].
    pub(super) fn builder(self) -> Builder {
        let mut builder = IoUring::builder();
        builder.setup_clamp();
        if self.has(Capability::DeferTaskrun) {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        } else if self.has(Capability::CoopTaskrun) {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        if self.has(Capability::NoSqarray) {
            builder.setup_no_sqarray();
        }
        if self.has(Capability::SubmitAll) {
            builder.setup_submit_all();
        }
        if self.has(Capability::Restrictions) {
            builder.setup_r_disabled();
        }
        builder
    }

    /// Tries what this kernel can do, leaving out what is in `off`.
    ///
    /// # Errors
    /// When there is no io_uring at all, or less of it than Linux 5.15 has: says what to change.
    pub fn probe(off: Self) -> Result<Self, ProbeError> {
        // Rings and registered buffers count, and the limit in force is often less than the one that could be.
        sys::raise_limit(Resource::Memlock);
        let plain = Self::default();
        let ring = plain.builder().build(8).map_err(|error| ProbeError::setup(&error))?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(ProbeError::TooOld("waiting with a timeout"));
        }
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe).map_err(|error| ProbeError::setup(&error))?;
        for (code, name) in NEEDED {
            if !probe.is_supported(code) {
                return Err(ProbeError::TooOld(name));
            }
        }
        let mut found = plain;
        for capability in Capability::ALL {
            if !off.has(capability) && found.try_one(capability)? {
                found = found.with(capability);
            }
        }
        Ok(found)
    }

    /// Whether `capability` works on top of what was found before it.
    fn try_one(self, capability: Capability) -> Result<bool, ProbeError> {
        let works = match capability {
            // What is used without the better one has to be tried without it.
            Capability::CoopTaskrun => Self::default().with(capability).builder().build(8).map(|_| true),
            Capability::DeferTaskrun | Capability::NoSqarray | Capability::SubmitAll => {
                self.with(capability).builder().build(8).map(|_| true)
            }
            Capability::BufferRing => try_receive(self, false),
            Capability::MultishotReceive if !self.has(Capability::BufferRing) => Ok(false),
            Capability::MultishotReceive => try_receive(self, true),
            Capability::MultishotAccept => try_accept(self),
            Capability::DirectFiles => try_direct_file(self),
            Capability::SendFile => try_send_file(),
            Capability::Restrictions => try_restrictions(self.with(capability)),
        };
        match works {
            // It says nothing of what a ring could do that there is no memory for one.
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => Err(ProbeError::setup(&error)),
            works => Ok(works.unwrap_or(false)),
        }
    }
}

/// What there is no other way for; all of it is in Linux 5.6 and later.
const NEEDED: [(u8, &str); 8] = [
    (opcode::Accept::CODE, "accept"),
    (opcode::Recv::CODE, "recv"),
    (opcode::Send::CODE, "send"),
    (opcode::PollAdd::CODE, "poll"),
    (opcode::Read::CODE, "read"),
    (opcode::Write::CODE, "write"),
    (opcode::OpenAt2::CODE, "openat2"),
    (opcode::AsyncCancel::CODE, "cancel"),
];

/// Why there is no io_uring.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// `kernel.io_uring_disabled`, a seccomp profile, a container's default profile.
    #[error(
        "io_uring is forbidden here ({0}): allow it with `sysctl kernel.io_uring_disabled=0`, in a container with a \
         seccomp profile that has io_uring_setup, io_uring_enter and io_uring_register (docker run --security-opt \
         seccomp=FILE), in a systemd unit with SystemCallFilter=@system-service"
    )]
    Forbidden(Errno),
    /// The kernel was built without it, or a sandbox hides it.
    #[error(
        "this kernel has no io_uring ({0}): it needs Linux 5.15 or later with CONFIG_IO_URING; a container's seccomp \
         profile can also hide it (docker run --security-opt seccomp=FILE with io_uring_setup, io_uring_enter and \
         io_uring_register allowed)"
    )]
    Missing(Errno),
    /// Something that Linux 5.15 has is not there.
    #[error("this kernel's io_uring lacks {0}: it needs Linux 5.15 or later")]
    TooOld(&'static str),
    /// Mostly a limit.
    #[error(
        "cannot set up io_uring ({0}): raise the limit of locked memory (LimitMEMLOCK=64M in a systemd unit, docker run --ulimit \
         memlock=67108864, ulimit -l), or free some memory"
    )]
    Limit(Errno),
}

impl ProbeError {
    /// Why a ring could not be made.
    pub fn setup(error: &io::Error) -> Self {
        match Errno::from_io_error(error).unwrap_or(Errno::IO) {
            errno @ (Errno::PERM | Errno::ACCESS) => Self::Forbidden(errno),
            errno @ Errno::NOSYS => Self::Missing(errno),
            errno => Self::Limit(errno),
        }
    }
}

/// Receives one byte from itself, with a buffer of the kernel's choice.
fn try_receive(capabilities: Capabilities, multishot: bool) -> io::Result<bool> {
    /// Fields are dropped in this order: the kernel lets go of the buffers before they are unmapped.
    struct WithBuffers {
        ring: IoUring,
        _buffers: BufferRing,
    }
    let ring = capabilities.builder().build(8)?;
    let buffers = BufferRing::register(&ring.submitter())?;
    let mut with_buffers = WithBuffers { ring, _buffers: buffers };
    let ring = &mut with_buffers.ring;
    let (reader, mut writer) = UnixStream::pair()?;
    let fd = Fd(reader.as_raw_fd());
    let entry = if multishot {
        opcode::RecvMulti::new(fd, BufferRing::GROUP).build()
    } else {
        opcode::Recv::new(fd, std::ptr::null_mut(), 1)
            .buf_group(BufferRing::GROUP)
            .build()
            .flags(Flags::BUFFER_SELECT)
    };
    writer.write_all(b"x")?;
    let cqe = submit_one(ring, &entry)?;
    // Closing the socket ends a multishot receive before the buffers go away.
    reader.shutdown(std::net::Shutdown::Both)?;
    ring.submit_and_wait(usize::from(multishot))?;
    Ok(cqe.result() == 1
        && cqueue::buffer_select(cqe.flags()).is_some()
        && (!multishot || cqueue::more(cqe.flags())))
}

/// Accepts one connection of its own.
fn try_accept(capabilities: Capabilities) -> io::Result<bool> {
    let mut ring = capabilities.builder().build(8)?;
    // An abstract address leaves no file behind.
    let name = format!("narwire-probe-{}-{:?}", std::process::id(), std::thread::current().id());
    let address =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)?;
    let listener = UnixListener::bind_addr(&address)?;
    let _client = UnixStream::connect_addr(&address)?;
    let cqe = submit_one(&mut ring, &opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build())?;
    if cqe.result() >= 0 {
        // SAFETY: a result of 0 or more of an accept is a new descriptor that nobody else owns.
        drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(cqe.result()) });
    }
    Ok(cqe.result() >= 0 && cqueue::more(cqe.flags()))
}

/// Opens the root directory into a table of one, closes it, and looks each time whether it is there.
fn try_direct_file(capabilities: Capabilities) -> io::Result<bool> {
    let mut ring = capabilities.builder().build(8)?;
    ring.submitter().register_files(&[-1])?;
    let how = OpenHow::new().flags(libc::O_RDONLY as u64);
    let slot = DestinationSlot::try_from_slot_target(0).ok();
    let open =
        opcode::OpenAt2::new(Fd(libc::AT_FDCWD), c"/".as_ptr(), &raw const how).file_index(slot).build();
    let mut byte = 0_u8;
    let read = opcode::Read::new(Fixed(0), &raw mut byte, 1).build();
    let is_open = submit_one(&mut ring, &open)?.result() == 0
        && submit_one(&mut ring, &read)?.result() == -libc::EISDIR;
    let close = opcode::Close::new(Fixed(0)).build().flags(Flags::SKIP_SUCCESS);
    // SAFETY: a close points to nothing.
    unsafe { ring.submission().push(&close) }.map_err(|_| io::ErrorKind::WouldBlock)?;
    // The next answer is the read's: the close says nothing.
    Ok(is_open && submit_one(&mut ring, &read)?.result() == -libc::EBADF)
}

/// Asks whether a file of its own is in memory. That its file system cannot tell says nothing about the others.
fn try_send_file() -> io::Result<bool> {
    let mut file = tempfile::tempfile()?;
    file.write_all(b"x")?;
    let answer = is_in_memory(file.as_fd(), 0, 1);
    Ok(!matches!(answer, Err(Errno::NOSYS | Errno::PERM)))
}

/// Asks a restricted ring for something that it may do, and for something that it may not.
fn try_restrictions(capabilities: Capabilities) -> io::Result<bool> {
    let mut ring = capabilities.builder().build(8)?;
    super::restriction::enable(&ring.submitter(), capabilities)?;
    let cancelled = submit_one(&mut ring, &opcode::AsyncCancel::new(0).build())?.result();
    Ok(cancelled == -libc::ENOENT
        && submit_one(&mut ring, &opcode::Nop::new().build())?.result() == -libc::EACCES)
}

pub(super) fn submit_one(ring: &mut IoUring, entry: &io_uring::squeue::Entry) -> io::Result<cqueue::Entry> {
    // SAFETY: the entries of this module point to nothing but the registered buffers and what their makers hold until
    // their completion is here, which outlive the call.
    unsafe { ring.submission().push(entry) }.map_err(|_| io::ErrorKind::WouldBlock)?;
    ring.submit_and_wait(1)?;
    ring.completion().next().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let all = Capabilities::parse(["all"]).unwrap();
        assert_eq!(Capabilities::parse(all.names()).unwrap(), all);
        assert!(Capabilities::parse(["sendfile", "nonsense"]).unwrap_err().contains("multishot-accept"));
    }

    #[test]
    fn what_is_taken_away_is_not_found() {
        let all = Capabilities::parse(["all"]).unwrap();
        assert_eq!(Capabilities::probe(all).unwrap(), Capabilities::default());
        let found = Capabilities::probe(Capabilities::default().with(Capability::BufferRing)).unwrap();
        assert!(!found.has(Capability::BufferRing) && !found.has(Capability::MultishotReceive));
    }
}
