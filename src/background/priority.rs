//! Standing back: the lowest priority that Linux has, for the CPU and for disks.
#![expect(unsafe_code, reason = "sched_setscheduler(2) and ioprio_set(2) have no safe wrapper yet")]

use rustix::io::Errno;

/// As nice as a thread can be.
const NICE_MAX: i32 = 19;
/// `IOPRIO_WHO_PROCESS`, which names one thread (include/uapi/linux/ioprio.h).
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
/// `IOPRIO_CLASS_IDLE` above `IOPRIO_CLASS_SHIFT`.
const IOPRIO_IDLE: libc::c_int = 3 << 13;

/// Lets everybody else go first: the calling thread gets a core, and a disk that knows priorities, when nobody else wants
/// them. Threads that it starts later inherit that.
///
/// # Errors
/// What the system refuses; the rest is done nevertheless.
pub fn stand_back() -> Result<(), Errno> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: `parameters` lives until the call returns, and the kernel keeps nothing of it. 0 is the calling thread.
    let scheduled =
        done(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) }.into());
    // SAFETY: three integers, no memory. 0 is the calling thread.
    let disk = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE) };
    // Among those who stand back as well, and where the first call was refused.
    let nice = rustix::process::nice(NICE_MAX).map(drop);
    scheduled.and(done(disk)).and(nice)
}

fn done(result: libc::c_long) -> Result<(), Errno> {
    if result < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_and_those_that_it_starts_stand_back() {
        let policy = || std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The policy is field 41 of proc(5), the 39th after the name in parentheses; nice is field 19.
        let field = |stat: &str, number: usize| {
            let fields = stat.rsplit_once(')').unwrap().1;
            fields.split_whitespace().nth(number - 3).unwrap().parse::<i32>().unwrap()
        };
        let started = std::thread::spawn(move || {
            stand_back().unwrap();
            std::thread::spawn(policy).join().unwrap()
        });
        let stat = started.join().unwrap();
        assert_eq!((field(&stat, 41), field(&stat, 19)), (libc::SCHED_IDLE, NICE_MAX));
    }
}
