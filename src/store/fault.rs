//! Fault points: places between two steps on disk where a test can end the process, or let the disk fail, and places in each kind
//! of thread where it can break an invariant.
//!
//! What is on disk must be right whenever the process ends, and no test can be quick enough to end it between two system
//! calls. So the code names these places, and a plan says what happens there. Without one a point is one load.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Signal, getpid, kill_process};

static PLAN: OnceLock<Vec<Fault>> = OnceLock::new();

/// What happens, and where.
#[derive(Debug)]
enum Fault {
    /// The process ends at the last of these points, counted over all names.
    Kill { points_left: AtomicU64 },
    /// The point of this name fails as if the system had, so many times.
    Fail { error: Errno, name: Box<str>, times_left: AtomicU64 },
    /// The thread that comes to the point of this name panics.
    Panic { name: Box<str> },
}

/// Sets the plan of this process, once. Faults between commas: `kill@N` ends the process at the N-th point it passes,
/// `ENOSPC@NAME`, `EIO@NAME` and `EROFS@NAME` let the point of that name fail with this error, `ENOSPC@NAME:K` the first K times,
/// and `panic@NAME` lets the thread panic that comes there.
///
/// The error is a sentence about the text, or says that there is a plan.
pub fn plan(spec: &str) -> Result<(), String> {
    let faults = spec.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
    PLAN.set(faults).map_err(|_| "the faults of a process are planned once".to_owned())
}

/// Passes the point of that name; it fails where a plan says so.
pub fn point(name: &str) -> io::Result<()> {
    PLAN.get().map_or(Ok(()), |faults| pass(faults, name))
}

/// Passes a place of that name where no disk can fail and nothing is left half done, so that it is none of those at which the process
/// ends: the thread panics where a plan says so.
pub fn may_panic(name: &str) {
    if let Some(faults) = PLAN.get() {
        panic_as_planned(faults, name);
    }
}

fn panic_as_planned(faults: &[Fault], name: &str) {
    let is_planned = |fault: &Fault| matches!(fault, Fault::Panic { name: planned } if **planned == *name);
    assert!(!faults.iter().any(is_planned), "a fault was planned at {name:?}");
}

fn pass(faults: &[Fault], name: &str) -> io::Result<()> {
    panic_as_planned(faults, name);
    for fault in faults {
        match fault {
            Fault::Kill { points_left } => {
                if points_left.fetch_sub(1, Ordering::Relaxed) == 1 {
                    end_process();
                }
            }
            Fault::Fail { error, name: failing, times_left } if **failing == *name => {
                let counted = times_left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |times| times.checked_sub(1));
                if counted.is_ok() {
                    return Err((*error).into());
                }
            }
            Fault::Fail { .. } | Fault::Panic { .. } => {}
        }
    }
    Ok(())
}

/// As a power cut would: nothing is dropped, flushed or said.
fn end_process() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    loop {
        // The signal may take another thread first, and then ends this one.
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn parse(text: &str) -> Result<Fault, String> {
    let unclear =
        || format!("fault {text:?}: expected kill@N, panic@NAME, ENOSPC@NAME, EIO@NAME or EROFS@NAME");
    let (what, place) = text.split_once('@').ok_or_else(unclear)?;
    let error = match what {
        "kill" => {
            let points = place.parse::<u64>().ok().filter(|points| *points > 0).ok_or_else(unclear)?;
            return Ok(Fault::Kill { points_left: AtomicU64::new(points) });
        }
        "panic" if !place.is_empty() => return Ok(Fault::Panic { name: place.into() }),
        "ENOSPC" => Errno::NOSPC,
        "EIO" => Errno::IO,
        "EROFS" => Errno::ROFS,
        _ => return Err(unclear()),
    };
    // Names have colons themselves; only a number behind one is a count.
    let counted = place.rsplit_once(':').and_then(|(name, times)| Some((name, times.parse::<u64>().ok()?)));
    let (name, times) = counted.unwrap_or((place, u64::MAX));
    if name.is_empty() {
        return Err(unclear());
    }
    Ok(Fault::Fail { error, name: name.into(), times_left: AtomicU64::new(times) })
}

/// What tests do that end a process at every point, or let every point fail.
#[cfg(test)]
pub mod children {
    use std::ops::ControlFlow;
    use std::os::unix::process::ExitStatusExt as _;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicUsize, Ordering};

    const FOLDER: &str = "NARWIRE_TEST_FOLDER";
    const FAULT: &str = "NARWIRE_TEST_FAULT";

    /// The folder and the fault of a child process. By itself a test that asks for them does nothing.
    pub fn asked() -> Option<(PathBuf, Option<String>)> {
        Some((std::env::var_os(FOLDER)?.into(), std::env::var(FAULT).ok()))
    }

    /// A child process that runs this test only; the test finds the folder with [`asked`].
    pub fn command(test: &str, folder: &Path) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(FOLDER, folder).env_remove(FAULT);
        command
    }

    /// Runs a test in a child process with this fault; true when it came to its end, false when it was killed.
    pub fn run(test: &str, folder: &Path, fault: &str) -> bool {
        let status = command(test, folder).env(FAULT, fault).stdout(Stdio::null()).status().unwrap();
        let is_killed = status.signal() == Some(libc::SIGKILL);
        assert!(status.success() || is_killed, "{fault}: {status}");
        status.success()
    }

    /// Runs a test in a child process that has a small file system of its own at the folder, which goes with it. False where that
    /// cannot be had.
    pub fn run_on_small_disk(test: &str, folder: &Path) -> bool {
        let script =
            "mount -t tmpfs -o size=512k tmpfs \"$0\" || exit 77; exec \"$1\" --exact \"$2\" --nocapture";
        let status = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
            .arg(folder)
            .arg(std::env::current_exe().unwrap())
            .arg(test)
            .env(FOLDER, folder)
            .stdout(Stdio::null())
            .status();
        match status.map(|status| status.code()) {
            Ok(Some(0)) => true,
            Ok(Some(1 | 77)) | Err(_) => false,
            Ok(other) => panic!("the child ended with {other:?}"),
        }
    }

    /// Calls `check` with 0, 1, 2 and so on until it says that it was the last. Side by side, for what it waits for is the disk.
    pub fn check_each(check: impl Fn(usize) -> ControlFlow<()> + Sync) -> usize {
        let (next, end) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while next.load(Ordering::Relaxed) < end.load(Ordering::Relaxed) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if check(number).is_break() {
                            end.fetch_min(number, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        end.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(spec: &str) -> Vec<Fault> {
        spec.split(',').map(|text| parse(text).unwrap()).collect()
    }

    #[test]
    fn a_point_fails_as_often_as_it_was_planned() {
        let faults = faults("ENOSPC@publish: file renamed:2,EIO@evict: record out");
        for _ in 0..2 {
            let error = pass(&faults, "publish: file renamed").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
        pass(&faults, "publish: file renamed").unwrap();
        for _ in 0..10 {
            let error = pass(&faults, "evict: record out").unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
        }
        pass(&faults, "publish").unwrap();
    }

    #[test]
    fn a_kill_waits_for_its_point() {
        let faults = faults("kill@3");
        pass(&faults, "one").unwrap();
        pass(&faults, "two").unwrap();
        let [Fault::Kill { points_left }] = &faults[..] else { panic!("{faults:?}") };
        assert_eq!(points_left.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_thread_panics_at_its_point_only() {
        let faults = faults("panic@publish: begun,EIO@evict: record out");
        pass(&faults, "publish: file written").unwrap();
        panic_as_planned(&faults, "evict: record out");
        let panic = std::panic::catch_unwind(|| pass(&faults, "publish: begun")).unwrap_err();
        assert!(panic.downcast::<String>().unwrap().contains("\"publish: begun\""));
    }

    #[test]
    fn what_is_no_fault_is_refused() {
        for text in [
            "",
            "panic",
            "panic@",
            "kill",
            "kill@",
            "kill@0",
            "kill@x",
            "EIO",
            "EIO@",
            "EIO@:3",
            "ENOENT@evict",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
