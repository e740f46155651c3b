//! Who writes the log: one thread, so that nobody else waits for who reads it.
//!
//! Whoever has a line puts into a queue how it is written; the thread does that. There is so much room, and what does not fit is counted
//! and said. Access lines and all others stand in the same queue, so they come in their order, and each bears the time of what it says.
//! Before the thread has started, and in commands that need none, a line is written by whoever has it.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Instant, SystemTime};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use tracing::warn;

use super::figures::LogFigures;
use crate::limits::{
    LOG_FLUSH_WAIT, LOG_GATHER, LOG_MISSING_INTERVAL, LOG_QUEUE_LEN_BYTES_MAX, LOG_QUEUE_LINES_MAX,
};
use crate::tally::Tally as _;

thread_local! {
    /// Whether this thread is the one that writes.
    static IS_WRITER: Cell<bool> = const { Cell::new(false) };
    /// When that has happened which this thread logs, if it was not just now.
    static HAPPENED: Cell<Option<SystemTime>> = const { Cell::new(None) };
}

/// Logs what has happened then.
pub fn log_at(time: Option<SystemTime>, log: impl FnOnce()) {
    HAPPENED.set(time);
    log();
    HAPPENED.set(None);
}

/// When that has happened which this thread is logging.
pub fn happened() -> SystemTime {
    HAPPENED.get().unwrap_or_else(SystemTime::now)
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Scribe {
    /// It has no bound of its own, so that who waits for the end of it can always say so.
    queue: OnceLock<Sender<Entry>>,
    lines: AtomicUsize,
    len_bytes: AtomicUsize,
    /// Lines for which there was no room, and of which that was not said yet.
    missing: AtomicU64,
    figures: Arc<LogFigures>,
}

/// Something to be written.
struct Entry {
    len_bytes: usize,
    write: Box<dyn FnOnce() + Send>,
}

impl Scribe {
    /// What is counted of the log.
    pub fn figures(&self) -> &Arc<LogFigures> {
        &self.figures
    }

    /// Starts the thread. It ends with the process.
    pub fn start(self: &Arc<Self>) -> io::Result<()> {
        let (sender, queue) = mpsc::channel();
        let scribe = Arc::clone(self);
        thread::Builder::new().name("log".to_owned()).spawn(move || scribe.run(&queue))?;
        // There is one for a process.
        let _ = self.queue.set(sender);
        Ok(())
    }

    /// Puts a line that takes so much memory, and says whether there was room for it.
    pub fn try_put(&self, len_bytes: usize, write: impl FnOnce() + Send + 'static) -> bool {
        let Some(queue) = self.queue.get().filter(|_| !IS_WRITER.get()) else {
            write();
            return true;
        };
        let is_room = self.lines.fetch_add(1, Ordering::Relaxed) < LOG_QUEUE_LINES_MAX;
        let others_len_bytes = self.len_bytes.fetch_add(len_bytes, Ordering::Relaxed);
        if is_room && others_len_bytes.saturating_add(len_bytes) <= LOG_QUEUE_LEN_BYTES_MAX {
            return queue.send(Entry { len_bytes, write: Box::new(write) }).is_ok();
        }
        self.release(len_bytes);
        self.missing.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// Puts a line, or counts it.
    pub fn put(&self, len_bytes: usize, write: impl FnOnce() + Send + 'static) {
        if !self.try_put(len_bytes, write) {
            self.figures.dropped.add(1);
        }
    }

    /// Has this written to standard error.
    pub fn say(&self, line: &[u8]) {
        let line = Box::<[u8]>::from(line);
        self.put(line.len(), move || write_out(&line));
    }

    /// Waits until all is written that was put until now, but not for long.
    pub fn flush(&self) {
        let Some(queue) = self.queue.get().filter(|_| !IS_WRITER.get()) else { return };
        let (sender, written) = mpsc::sync_channel::<()>(0);
        self.lines.fetch_add(1, Ordering::Relaxed);
        let _ = queue.send(Entry { len_bytes: 0, write: Box::new(move || drop(sender)) });
        let _ = written.recv_timeout(LOG_FLUSH_WAIT);
    }

    fn release(&self, len_bytes: usize) {
        self.len_bytes.fetch_sub(len_bytes, Ordering::Relaxed);
        self.lines.fetch_sub(1, Ordering::Relaxed);
    }

    fn run(&self, queue: &Receiver<Entry>) {
        IS_WRITER.set(true);
        let mut said = Instant::now();
        while let Ok(first) = queue.recv() {
            self.write(first, &mut said);
            thread::sleep(LOG_GATHER);
            for entry in queue.try_iter() {
                self.write(entry, &mut said);
            }
        }
    }

    /// Writes one line, and before it, when the queue has become empty and now and then, how many are missing.
    fn write(&self, entry: Entry, said: &mut Instant) {
        let is_last = self.lines.load(Ordering::Relaxed) == 1;
        if is_last || said.elapsed() >= LOG_MISSING_INTERVAL {
            let missing = self.missing.swap(0, Ordering::Relaxed);
            if missing > 0 {
                warn!(missing, "lines of the log are missing here: who reads it was too slow");
                *said = Instant::now();
            }
        }
        (entry.write)();
        self.release(entry.len_bytes);
    }
}

/// Writes to standard error, without the lock that others may want who have something to say there.
pub fn write_out(mut bytes: &[u8]) {
    let stderr = io::stderr();
    while !bytes.is_empty() {
        match rustix::io::write(stderr.as_fd(), bytes) {
            Ok(len @ 1..) => bytes = &bytes[len..],
            Err(Errno::INTR) => {}
            // Somebody who has it open as well wants no one to wait for it.
            Err(Errno::AGAIN) => {
                let _ = rustix::event::poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None);
            }
            // There is nobody to tell.
            Ok(0) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::SyncSender;

    use super::*;

    /// A scribe whose thread waits in the middle of a line until the sender goes.
    fn stuck() -> (Arc<Scribe>, SyncSender<()>) {
        let scribe = Arc::<Scribe>::default();
        scribe.start().unwrap();
        let (sender, freed) = mpsc::sync_channel::<()>(0);
        let (begun, has_begun) = mpsc::channel();
        scribe.put(0, move || {
            begun.send(()).unwrap();
            let _ = freed.recv();
        });
        has_begun.recv().unwrap();
        (scribe, sender)
    }

    #[test]
    fn what_does_not_fit_is_counted_and_not_waited_for_and_the_rest_comes_in_its_order() {
        let (scribe, stuck) = stuck();
        let written = Arc::<Mutex<Vec<usize>>>::default();
        let put = |number| {
            let written = Arc::clone(&written);
            scribe.put(1, move || written.lock().unwrap().push(number));
        };
        // One is under way.
        (0..LOG_QUEUE_LINES_MAX + 4).for_each(put);
        assert_eq!(scribe.figures.dropped.get(), 5);
        assert!(!scribe.try_put(1, || {}) && scribe.figures.dropped.get() == 5, "who asks counts for itself");
        assert_eq!(scribe.missing.load(Ordering::Relaxed), 6);
        drop(stuck);
        scribe.flush();
        put(usize::MAX);
        scribe.flush();
        let expected: Vec<_> = (0..LOG_QUEUE_LINES_MAX - 1).chain([usize::MAX]).collect();
        assert_eq!(*written.lock().unwrap(), expected);
        assert_eq!(
            (scribe.missing.load(Ordering::Relaxed), scribe.figures.dropped.get()),
            (0, 5),
            "it was said"
        );
    }

    #[test]
    fn long_lines_are_bounded_all_together() {
        let (scribe, _stuck) = stuck();
        assert!(scribe.try_put(LOG_QUEUE_LEN_BYTES_MAX, || {}));
        assert!(!scribe.try_put(1, || {}) && !scribe.try_put(usize::MAX, || {}) && scribe.try_put(0, || {}));
    }

    #[test]
    fn a_line_is_written_at_once_where_nobody_else_writes_and_by_who_does() {
        let scribe = Arc::<Scribe>::default();
        let (sender, written) = mpsc::channel();
        let outer = sender.clone();
        scribe.put(LOG_QUEUE_LEN_BYTES_MAX + 1, move || outer.send(thread::current().id()).unwrap());
        assert_eq!(written.try_recv(), Ok(thread::current().id()));
        scribe.start().unwrap();
        let inner = Arc::clone(&scribe);
        scribe.put(1, move || inner.put(1, move || sender.send(thread::current().id()).unwrap()));
        assert_ne!(written.recv(), Ok(thread::current().id()));
        assert!(written.recv().is_err(), "once");
    }
}
