//! Who writes the log: one thread, so that nobody else waits for who reads it.
//!
//! Whoever has a line puts into a queue how it is written; the thread does that. There is so much room; what does not fit is counted, and
//! said where it is missing, whatever the level of the log. Access lines and all others stand in the same queue, so they come in their
//! order, and each bears the time of what it says. Before the thread has started, and in commands that need none, a line is written by
//! whoever has it.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
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

/// What the lines that say what is missing are told from others by.
pub const TARGET: &str = module_path!();

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
    /// Whether what was written last on standard error is half a line.
    is_torn: AtomicBool,
    figures: Arc<LogFigures>,
}

/// Which log a line is of: they are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogKind {
    /// That of requests.
    Access,
    /// That of the program.
    Program,
}

/// Something to be written.
struct Entry {
    /// Lines that are missing before it.
    missing: Option<Missing>,
    len_bytes: usize,
    write: Box<dyn FnOnce() + Send>,
}

/// Lines for which there was no room.
struct Missing {
    lines: u64,
    /// When there was room again.
    until: SystemTime,
}

/// What the thread has to say of lines that are missing.
#[derive(Default)]
struct Notice {
    missing: Option<Missing>,
    said: Option<Instant>,
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
            return queue.send(Entry { missing: self.missing(), len_bytes, write: Box::new(write) }).is_ok();
        }
        self.release(len_bytes);
        self.missing.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// Puts a line, and counts what comes of it; `write` says whether it was written.
    pub fn put(&self, kind: LogKind, len_bytes: usize, write: impl FnOnce() -> bool + Send + 'static) {
        let figures = Arc::clone(&self.figures);
        if !self.try_put(len_bytes, move || count(&figures, kind, write())) {
            count(&self.figures, kind, false);
        }
    }

    /// Has this line written to standard error.
    pub fn say(self: &Arc<Self>, kind: LogKind, line: &[u8]) {
        let (scribe, line) = (Arc::clone(self), Box::<[u8]>::from(line));
        self.put(kind, line.len(), move || scribe.write_out(&line));
    }

    /// Writes this line to standard error now, behind the end of one that could only be half written, and says whether all of it is there.
    pub fn write_out(&self, line: &[u8]) -> bool {
        if self.is_torn.load(Ordering::Relaxed) && write_out(b"\n") == 0 {
            return false;
        }
        let written_len = write_out(line);
        self.is_torn.store((1..line.len()).contains(&written_len), Ordering::Relaxed);
        written_len == line.len()
    }

    /// Waits until all is written that was put until now, but not for long.
    pub fn flush(&self) {
        let Some(queue) = self.queue.get().filter(|_| !IS_WRITER.get()) else { return };
        let (sender, written) = mpsc::sync_channel::<()>(0);
        self.lines.fetch_add(1, Ordering::Relaxed);
        let write = Box::new(move || drop(sender));
        let _ = queue.send(Entry { missing: self.missing(), len_bytes: 0, write });
        let _ = written.recv_timeout(LOG_FLUSH_WAIT);
    }

    /// What is missing here, if nobody has asked before.
    fn missing(&self) -> Option<Missing> {
        // Nearly always there is nothing, and nothing is to be written that all threads read.
        let is_some = self.missing.load(Ordering::Relaxed) > 0;
        let lines = if is_some { self.missing.swap(0, Ordering::Relaxed) } else { 0 };
        (lines > 0).then(|| Missing { lines, until: SystemTime::now() })
    }

    /// Makes room, and says whether nothing else is in the queue.
    fn release(&self, len_bytes: usize) -> bool {
        self.len_bytes.fetch_sub(len_bytes, Ordering::Relaxed);
        self.lines.fetch_sub(1, Ordering::Relaxed) == 1
    }

    fn run(&self, queue: &Receiver<Entry>) {
        IS_WRITER.set(true);
        let mut notice = Notice::default();
        while let Ok(first) = queue.recv() {
            self.write(first, &mut notice);
            thread::sleep(LOG_GATHER);
            for entry in queue.try_iter() {
                self.write(entry, &mut notice);
            }
        }
    }

    /// Writes one line, and before it how many are missing there. While there is more to write, that is said now and then only.
    fn write(&self, entry: Entry, notice: &mut Notice) {
        notice.add(entry.missing);
        let is_last = self.lines.load(Ordering::Relaxed) == 1;
        if is_last || notice.said.is_none_or(|said| said.elapsed() >= LOG_MISSING_INTERVAL) {
            notice.say();
        }
        (entry.write)();
        if self.release(entry.len_bytes) {
            notice.add(self.missing());
            notice.say();
        }
    }
}

impl Notice {
    fn add(&mut self, missing: Option<Missing>) {
        let Some(mut missing) = missing else { return };
        missing.lines += self.missing.as_ref().map_or(0, |before| before.lines);
        self.missing = Some(missing);
    }

    fn say(&mut self) {
        let Some(Missing { lines: missing, until }) = self.missing.take() else { return };
        log_at(Some(until), || {
            warn!(target: TARGET, missing, "lines of the log are missing here: who reads it was too slow");
        });
        self.said = Some(Instant::now());
    }
}

fn count(figures: &LogFigures, kind: LogKind, is_written: bool) {
    match (kind, is_written) {
        (LogKind::Access, true) => figures.access_lines.add(1),
        (LogKind::Access, false) => figures.access_dropped.add(1),
        // It is counted by its level as well.
        (LogKind::Program, true) => {}
        (LogKind::Program, false) => figures.dropped.add(1),
    }
}

/// Writes to standard error, without the lock that others may want who have something to say there, and says how much of it.
fn write_out(bytes: &[u8]) -> usize {
    let stderr = io::stderr();
    let mut written_len = 0;
    while written_len < bytes.len() {
        match rustix::io::write(stderr.as_fd(), &bytes[written_len..]) {
            Ok(len @ 1..) => written_len += len,
            Err(Errno::INTR) => {}
            // Somebody who has it open as well wants no one to wait for it.
            Err(Errno::AGAIN) => {
                let _ = rustix::event::poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None);
            }
            // There is nobody to tell.
            Ok(0) | Err(_) => break,
        }
    }
    written_len
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::SyncSender;

    use super::*;

    /// What was written, line by line.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<String>>>);

    impl io::Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(str::from_utf8(bytes).unwrap().trim().to_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A line of which the writing goes on until the sender goes, and what says that it has begun.
    fn endless_line() -> (impl FnOnce() + Send, SyncSender<()>, Receiver<()>) {
        let (sender, freed) = mpsc::sync_channel::<()>(0);
        let (begun, has_begun) = mpsc::channel();
        let write = move || {
            begun.send(()).unwrap();
            let _ = freed.recv();
        };
        (write, sender, has_begun)
    }

    /// A scribe whose thread waits in the middle of a line until the sender goes, and logs on paper.
    fn stuck() -> (Arc<Scribe>, SyncSender<()>, Paper) {
        let (scribe, paper) = (Arc::<Scribe>::default(), Paper::default());
        scribe.start().unwrap();
        let of_thread = paper.clone();
        let to_paper =
            tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(move || of_thread.clone());
        assert!(scribe.try_put(0, || std::mem::forget(tracing::subscriber::set_default(to_paper.finish()))));
        let (write, sender, has_begun) = endless_line();
        assert!(scribe.try_put(0, write));
        has_begun.recv().unwrap();
        (scribe, sender, paper)
    }

    #[test]
    fn what_does_not_fit_is_counted_and_said_in_its_place_and_not_waited_for() {
        let (scribe, stuck, paper) = stuck();
        let put = |number: usize| {
            let written = Arc::clone(&paper.0);
            scribe.put(LogKind::Program, 1, move || {
                written.lock().unwrap().push(number.to_string());
                true
            });
        };
        let (write, stuck_again, is_stuck_again) = endless_line();
        assert!(scribe.try_put(0, write));
        // Two are not of these.
        (0..LOG_QUEUE_LINES_MAX + 3).for_each(put);
        assert_eq!(scribe.figures.dropped.get(), 5);
        assert!(!scribe.try_put(1, || {}) && scribe.figures.dropped.get() == 5, "who asks counts for itself");
        drop(stuck);
        is_stuck_again.recv().unwrap();
        (LOG_QUEUE_LINES_MAX + 3..LOG_QUEUE_LINES_MAX + 7).for_each(put);
        drop(stuck_again);
        scribe.flush();
        put(usize::MAX);
        scribe.flush();
        let missing = |lines| {
            format!(
                "WARN {TARGET}: lines of the log are missing here: who reads it was too slow missing={lines}"
            )
        };
        let mut expected: Vec<_> = (0..LOG_QUEUE_LINES_MAX - 2).map(|number| number.to_string()).collect();
        expected.extend([
            missing(6),
            (LOG_QUEUE_LINES_MAX + 3).to_string(),
            missing(3),
            usize::MAX.to_string(),
        ]);
        assert_eq!(*paper.0.lock().unwrap(), expected);
        assert_eq!(scribe.figures.dropped.get(), 8, "all but one of those who do not ask");
    }

    #[test]
    fn long_lines_are_bounded_all_together() {
        let (scribe, _stuck, _) = stuck();
        assert!(scribe.try_put(LOG_QUEUE_LEN_BYTES_MAX, || {}));
        assert!(!scribe.try_put(1, || {}) && !scribe.try_put(usize::MAX, || {}) && scribe.try_put(0, || {}));
    }

    #[test]
    fn a_line_is_written_at_once_where_nobody_else_writes_and_by_who_does() {
        let scribe = Arc::<Scribe>::default();
        let (sender, written) = mpsc::channel();
        let outer = sender.clone();
        let is_sent = |sender: Sender<thread::ThreadId>| move || sender.send(thread::current().id()).is_ok();
        scribe.put(LogKind::Program, LOG_QUEUE_LEN_BYTES_MAX + 1, is_sent(outer));
        assert_eq!(written.try_recv(), Ok(thread::current().id()));
        scribe.start().unwrap();
        let inner = Arc::clone(&scribe);
        assert!(scribe.try_put(1, move || inner.put(LogKind::Program, 1, is_sent(sender))));
        assert_ne!(written.recv(), Ok(thread::current().id()));
        assert!(written.recv().is_err(), "once");
    }
}
