//! seccomp: which system calls are carried out. See seccomp(2).
//!
//! All others fail with ENOSYS, as on a kernel that has never heard of them, and nobody is killed: a newer C library that tries a call
//! which is not in the list goes on with the older one, which is what it does on older kernels, and a cache goes on serving. EPERM
//! would be taken for an answer instead.
//!
//! Calls are listed here that the server makes (observed over the whole test suite), those that other versions of the C libraries make
//! in their place, and those that `std` and SQLite make in cases that are rare. A call whose right depends on its arguments is among
//! the [`conditional`] ones. Those that take a name are a matter of [`super::files`].

use std::collections::BTreeMap;

use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::policy::Policy;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Carried out whatever the arguments are.
const CALLS: &[i64] = &[
    // The ring, and what stands beside it.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_sendfile,
    CACHESTAT,
    libc::SYS_eventfd2,
    // Sockets that are there; new ones come from the ring.
    libc::SYS_accept4,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_setsockopt,
    // Files.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sync_file_range,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_restart_syscall,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mremap,
    libc::SYS_munlock,
    libc::SYS_munmap,
    // The process, its threads and signals.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_ioprio_set,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setpriority,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // Once more, for [`refuse_new_rings`], which takes it away.
    libc::SYS_seccomp,
];

/// Names that newer architectures do without; libraries go on to use them here.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[i64] = &[
    libc::SYS_access,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_getrlimit,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_setrlimit,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[i64] = &[];

/// For a process that removes what it served: it makes its files removable first. Landlock does not know of modes.
const CALLS_TO_REMOVE: &[i64] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
];

/// The number of cachestat(2) on every architecture (Linux 6.5).
const CACHESTAT: i64 = 451;
/// `TCGETS2` (include/uapi/asm-generic/ioctls.h), by which newer C libraries ask whether something is a terminal.
const TCGETS2: u64 = 0x802c_542a;
/// `SOCK_TYPE_MASK` (include/linux/net.h): the flags stand above.
const SOCKET_TYPE_MASK: u64 = 0xf;

const THREAD: i32 = libc::CLONE_THREAD;
/// Root could give a thread of its own a network without the firewall's rules.
const NAMESPACES: i32 = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;
/// What is asked of descriptors: copies, flags, and SQLite's locks.
const DESCRIPTOR_COMMANDS: [i32; 13] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETLK,
    libc::F_SETLK,
    libc::F_SETLKW,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    libc::F_OFD_SETLKW,
    libc::F_GET_SEALS,
];

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilterError {
    /// The filter cannot be made for this architecture.
    #[error("{0}")]
    Backend(#[from] BackendError),
    /// The kernel does not take it.
    #[error("{0}")]
    Kernel(#[from] seccompiler::Error),
}

/// Filters the calls of the calling thread and of all that it starts.
pub(super) fn confine(policy: &Policy) -> Result<(), FilterError> {
    let mut rules = conditional(policy.notifies)?;
    let removal = if policy.removes { CALLS_TO_REMOVE } else { &[] };
    rules.extend([CALLS, OLD_CALLS, removal].into_iter().flatten().map(|&call| (call, Vec::new())));
    let program = compile(rules, SeccompAction::Errno(ENOSYS), SeccompAction::Allow)?;
    Ok(seccompiler::apply_filter(&program)?)
}

/// Makes no more rings, and no more filters, in all threads.
pub(super) fn refuse_new_rings() -> Result<(), FilterError> {
    Ok(seccompiler::apply_filter_all_threads(&without_new_rings()?)?)
}

fn without_new_rings() -> Result<BpfProgram, BackendError> {
    let rules = [libc::SYS_io_uring_setup, libc::SYS_seccomp].map(|call| (call, Vec::new()));
    compile(rules.into(), SeccompAction::Allow, SeccompAction::Errno(ENOSYS))
}

const ENOSYS: u32 = libc::ENOSYS.unsigned_abs();

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, otherwise, listed, architecture)?.try_into()
}

/// Carried out if the arguments are among those that are needed.
fn conditional(notifies: bool) -> Result<Rules, BackendError> {
    let process = u64::from(std::process::id());
    let mut rules = Rules::from([
        // No memory is both written and carried out: there is no such library to load any more.
        (libc::SYS_mmap, vec![one(2, Dword, MaskedEq(bits(libc::PROT_EXEC)), 0)?]),
        (libc::SYS_mprotect, vec![one(2, Dword, MaskedEq(bits(libc::PROT_EXEC)), 0)?]),
        // Threads, and no processes. clone3(2) hides its flags in memory; libraries go on with clone(2).
        (libc::SYS_clone, vec![one(0, Qword, MaskedEq(bits(THREAD | NAMESPACES)), bits(THREAD))?]),
        // Signals to itself: abort(3), and the end that a planned fault brings.
        (libc::SYS_kill, vec![one(0, Dword, Eq, process)?]),
        (libc::SYS_tgkill, vec![one(0, Dword, Eq, process)?]),
        (libc::SYS_rt_tgsigqueueinfo, vec![one(0, Dword, Eq, process)?]),
        (libc::SYS_prlimit64, vec![one(0, Dword, Eq, 0)?, one(0, Dword, Eq, process)?]),
        (
            libc::SYS_prctl,
            any_of(0, &[bits(libc::PR_SET_NAME), bits(libc::PR_GET_NAME), bits(libc::PR_SET_NO_NEW_PRIVS)])?,
        ),
        // Whether a socket waits, whether something is a terminal, and what waits in a socket.
        (
            libc::SYS_ioctl,
            any_of(1, &[libc::FIONBIO, libc::FIONREAD, libc::TIOCOUTQ, libc::TCGETS, TCGETS2])?,
        ),
        // One of datagrams can send to any socket that has a name.
        (
            libc::SYS_socketpair,
            vec![SeccompRule::new(vec![
                SeccompCondition::new(0, Dword, Eq, bits(libc::AF_UNIX))?,
                SeccompCondition::new(1, Dword, MaskedEq(SOCKET_TYPE_MASK), bits(libc::SOCK_STREAM))?,
            ])?],
        ),
        // To the peer that is there. What is sent with TCP Fast Open connects, which Landlock does not see (Linux 6.18); a listener
        // could do that, were it not kept from ceasing to be one.
        (
            libc::SYS_sendto,
            vec![SeccompRule::new(vec![
                SeccompCondition::new(3, Dword, MaskedEq(bits(libc::MSG_FASTOPEN)), 0)?,
                SeccompCondition::new(4, Qword, Eq, 0)?,
            ])?],
        ),
        (libc::SYS_sendmsg, vec![one(2, Dword, MaskedEq(bits(libc::MSG_FASTOPEN)), 0)?]),
        (libc::SYS_shutdown, vec![one(1, Dword, Eq, bits(libc::SHUT_WR))?]),
        // A descriptor with an owner sends signals (F_SETOWN), and so does a lease.
        (libc::SYS_fcntl, any_of(1, &DESCRIPTOR_COMMANDS.map(bits))?),
    ]);
    if notifies {
        let socket = SeccompRule::new(vec![
            SeccompCondition::new(0, Dword, Eq, bits(libc::AF_UNIX))?,
            SeccompCondition::new(1, Dword, MaskedEq(SOCKET_TYPE_MASK), bits(libc::SOCK_DGRAM))?,
        ])?;
        rules.insert(libc::SYS_socket, vec![socket]);
        rules.insert(libc::SYS_connect, Vec::new());
    }
    Ok(rules)
}

fn one(
    index: u8,
    len: SeccompCmpArgLen,
    comparison: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(index, len, comparison, value)?])
}

fn any_of(index: u8, values: &[u64]) -> Result<Vec<SeccompRule>, BackendError> {
    values.iter().map(|&value| one(index, Dword, Eq, value)).collect()
}

/// A constant of the C library that has no sign in truth.
fn bits(constant: i32) -> u64 {
    u64::from(constant.unsigned_abs())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What [`refuse_new_rings`] does to all threads, for the calling one.
    pub fn seal_thread() {
        seccompiler::apply_filter(&without_new_rings().unwrap()).unwrap();
    }

    #[test]
    fn what_nobody_serves_with_is_in_no_list() {
        let conditional = conditional(true).unwrap();
        for call in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_clone3,
            libc::SYS_memfd_create,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_pidfd_getfd,
            libc::SYS_bind,
            libc::SYS_setuid,
            libc::SYS_fchmodat,
            libc::SYS_fchownat,
            libc::SYS_setxattr,
        ] {
            assert!(!CALLS.contains(&call) && !OLD_CALLS.contains(&call), "{call}");
            assert!(!conditional.contains_key(&call), "{call}");
        }
    }

    #[test]
    fn no_call_is_both_free_and_conditional() {
        let conditional = conditional(true).unwrap();
        for calls in [CALLS, OLD_CALLS, CALLS_TO_REMOVE] {
            assert!(calls.iter().all(|call| !conditional.contains_key(call)));
        }
    }
}
