//! What carries the tasks of this thread: a glommio executor, or nothing but the thread.

use std::time::Duration;

use futures_lite::future;
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement, PoolPlacement};
use io_uring::{IoUring, Probe, opcode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::limits::{BACKGROUND_MEMORY_LEN_BYTES, BACKGROUND_RING_ENTRIES, BACKGROUND_THREADS};

/// What tasks ask of whatever runs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// A glommio executor: tasks with shares, and direct I/O.
    Executor,
    /// The thread alone, which waits for all that it does.
    Thread,
}

impl Runtime {
    /// Does what may wait for a disk or a database on a thread beside, if there is one.
    ///
    /// The future must be awaited to its end: what a job returns to nobody is not dropped.
    pub async fn wait_for<T: Send + 'static>(self, job: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            // A task of its own: with each poll of an operation glommio keeps one more waker of who polls, and ends the process at
            // 32,768 of them. Who does something else meanwhile polls that often.
            Self::Executor => {
                glommio::spawn_local(async { glommio::executor().spawn_blocking(job).await }).await
            }
            Self::Thread => job(),
        }
    }

    /// Lets other tasks go on whose turn it is. Called between two pieces of work of a millisecond or so.
    pub async fn breathe(self) {
        match self {
            Self::Executor => glommio::yield_if_needed().await,
            Self::Thread => {}
        }
    }

    /// Waits.
    pub async fn sleep(self, duration: Duration) {
        match self {
            Self::Executor => glommio::timer::sleep(duration).await,
            Self::Thread => std::thread::sleep(duration),
        }
    }
}

/// An executor for the calling thread. Its threads inherit this thread's priority.
///
/// glommio ends the process where io_uring is forbidden or an operation is missing, so both are tried before. A server does
/// not come so far without them, but `narwire scrub` does, and goes on without an executor.
///
/// # Errors
/// A sentence.
pub fn make() -> Result<LocalExecutor, String> {
    let mut probe = Probe::new();
    IoUring::new(2)
        .and_then(|ring| ring.submitter().register_probe(&mut probe))
        .map_err(|error| format!("io_uring cannot be used: {error}"))?;
    // The last operation that glommio asks for; all before it are older (Linux 5.6).
    if !(0..=opcode::Recv::CODE).all(|code| probe.is_supported(code)) {
        return Err("io_uring lacks operations of Linux 5.6".to_owned());
    }
    raise_memory_limit()?;
    let builder = LocalExecutorBuilder::new(Placement::Unbound)
        .name("background")
        .io_memory(BACKGROUND_MEMORY_LEN_BYTES)
        .ring_depth(BACKGROUND_RING_ENTRIES)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(BACKGROUND_THREADS));
    builder.make().map_err(|error| format!("no executor could be made: {error}"))
}

/// Lets this process lock as much memory as it may: glommio refuses to run with little, and the limit in force is often less than the
/// one that could be.
fn raise_memory_limit() -> Result<(), String> {
    let limit = getrlimit(Resource::Memlock);
    // What is refused here shows in what is in force afterwards.
    let _ = setrlimit(Resource::Memlock, Rlimit { current: limit.maximum, ..limit });
    match getrlimit(Resource::Memlock).current {
        Some(max) if max < MEMORY_LIMIT_MIN => Err(format!(
            "{max} bytes of memory may be locked, and {MEMORY_LIMIT_MIN} are needed (RLIMIT_MEMLOCK; LimitMEMLOCK= of systemd)"
        )),
        Some(_) | None => Ok(()),
    }
}

/// What glommio asks for. Bytes.
const MEMORY_LIMIT_MIN: u64 = 512 * 1024;

/// Runs a task to its end on an executor, or where there can be none on the calling thread alone.
pub fn run<T>(task: impl AsyncFnOnce(Runtime) -> T) -> T {
    match make() {
        Ok(executor) => executor.run(task(Runtime::Executor)),
        Err(_) => future::block_on(task(Runtime::Thread)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::task::Poll;

    use super::*;

    #[test]
    fn a_job_may_be_waited_for_while_much_else_is_done() {
        let (release, released) = mpsc::channel::<()>();
        let answer = make().unwrap().run(async {
            let job = Runtime::Executor.wait_for(move || released.recv().is_ok());
            let mut polls_left = 100_000;
            let polling = future::poll_fn(|context| {
                polls_left -= 1;
                context.waker().wake_by_ref();
                if polls_left == 0 { Poll::Ready(release.send(())) } else { Poll::Pending }
            });
            future::zip(job, polling).await.0
        });
        assert!(answer);
    }
}
