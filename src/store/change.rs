//! Finding out, at no cost per request, that the Nix database changed.
//!
//! In write-ahead-log mode every commit rewrites the header of the shared `-shm` file
//! (<https://sqlite.org/walformat.html>, "The WAL-Index Header"): at offset 8 lies the change counter `iChange` (with
//! the page size and flags beside it), at offset 24 the checksum of the last frame in the log. Two loads from the
//! mapping are the stamp.
//!
//! Why two words: `iChange` alone starts again at 0 when SQLite rebuilds the header after a writer was killed. The
//! checksum is cumulative over the log and seeded by its salts, so after a rebuild it repeats only if the log ends in
//! the very same frame, that is, in the very same content. A restart or truncation of the log changes no content and
//! moves neither word.
//!
//! **Order.** A stamp is read *before* the query whose answer it labels. A commit between the two makes the answer
//! newer than its label, which costs one needless query later; the other order would keep an old answer under a new
//! label for ever. SQLite writes the second copy of the header first and readers trust only two equal copies, so
//! nobody sees a commit before its stamp.
//!
//! The mapping is SQLite's own, asked for with `xShmMap`. A second descriptor on the `-shm` file would be a trap:
//! closing it would silently drop every POSIX lock that SQLite holds there in this process
//! (<https://sqlite.org/howtocorrupt.html>, section 2.2), the lock included that keeps others from truncating the
//! file under the mapping.
#![allow(unsafe_code)] // one question to SQLite, and loads from the memory that it answers with

use std::ffi::c_void;
use std::fs::Metadata;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ffi};

use crate::limits::TIMESTAMP_SETTLE_MS;
use crate::store::db::{self, Access};
use crate::store::{LocalStore, StoreError};

/// A state of the database. Two equal stamps mean: no commit in between. Never equal across two [`ChangeCounter`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    counter: u64,
    words: [u64; 2],
}

/// Reads stamps. One for the whole process, shared by all threads.
///
/// Holds a connection of its own: as long as it lives, the `-shm` file is neither removed nor truncated by others.
pub struct ChangeCounter {
    /// Tells this counter's stamps from those of every other.
    serial: u64,
    /// Keeps the mapping alive; used only while there is no mapping yet.
    connection: Mutex<Connection>,
    /// The header in shared memory, null while there is none that can be trusted.
    header: AtomicPtr<Header>,
    mode: Mode,
    files: Files,
    /// Makes stamps unique that nothing else can tell apart.
    unsettled: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Log and shared index; the index may become mappable only later (see [`ChangeCounter::map`]).
    WriteAhead,
    /// Rollback journal.
    Journal,
    /// Opened without locks because nobody has the database open and this process may not create the log.
    Immutable,
}

/// The start of the wal-index, as far as it is read here. Native byte order (walformat.html section 2.1).
#[repr(C)]
struct Header {
    /// `iVersion` and padding.
    _version: AtomicU64,
    /// `iChange`, `isInit`, `bigEndCksum`, `szPage`.
    change: AtomicU64,
    /// `mxFrame`, `nPage`.
    _frames: AtomicU64,
    /// `aFrameCksum`.
    checksum: AtomicU64,
}

/// Size of the first region of the wal-index, which every SQLite maps at once.
const INDEX_REGION_LEN: i32 = 32 * 1024;

impl ChangeCounter {
    /// Opens the database and its shared index.
    pub fn open(store: &LocalStore) -> Result<Self, StoreError> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        // Before it is opened: if it is replaced meanwhile, the first look back notices.
        let database = identity(&store.database);
        let (connection, access) = db::connect(store)?;
        let mode = match access {
            Access::Immutable => Mode::Immutable,
            Access::Live if db::is_write_ahead(&connection, &store.database)? => Mode::WriteAhead,
            Access::Live => Mode::Journal,
        };
        let counter = Self {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            connection: Mutex::new(connection),
            header: AtomicPtr::new(ptr::null_mut()),
            mode,
            files: Files { database, ..Files::of(&store.database) },
            unsettled: AtomicU64::new(0),
        };
        if mode == Mode::WriteAhead {
            counter.map();
        }
        Ok(counter)
    }

    /// The state of the database now. Read it before the query that it is to label.
    ///
    /// Two loads with a mapping; otherwise one or two `stat` calls.
    pub fn stamp(&self) -> Stamp {
        #[cfg(test)]
        meanwhile::happen();
        let stamp = self.read_stamp();
        #[cfg(test)]
        meanwhile::happen();
        stamp
    }

    fn read_stamp(&self) -> Stamp {
        let mut header = self.header.load(Ordering::Acquire);
        if header.is_null() && self.mode == Mode::WriteAhead {
            header = self.map();
        }
        let words = if header.is_null() {
            self.file_words()
        } else {
            // SAFETY: `map` stored a pointer to at least 32 KiB of page-aligned shared memory. SQLite unmaps it when
            // the last connection of this process to this file closes; ours lives as long as `self`. The file stays
            // at least a page long meanwhile: only an opener that holds the exclusive deadman lock truncates it, and
            // `map` succeeds only when this process holds the shared one. Other processes write the words at any
            // time, hence the atomic loads: each is an ordinary `mov` of an aligned word, so that the mapping may also be one that
            // this process can only read.
            let header = unsafe { &*header };
            [header.change.load(Ordering::Acquire), header.checksum.load(Ordering::Acquire)]
        };
        Stamp { counter: self.serial, words }
    }

    /// False when a file was replaced, or when the database can be opened in a better way than it was. Then open
    /// a new counter. A few `stat` calls: ask once a second, not once a request.
    pub fn still_current(&self) -> bool {
        let now = Files::of(&self.files.database_path);
        if now.database.is_none() || now.database != self.files.database {
            return false; // gone counts as replaced: opening again says what is wrong
        }
        // Outside write-ahead mode an index that appears says that somebody now writes one; a log does so where the index was left over.
        now.index == self.files.index
            && (self.mode != Mode::Immutable || db::is_log_absent(&self.files.database_path))
    }

    /// Whether the shared index at its place is not the one that SQLite gives this counter, because somebody removed the one that
    /// `before` has mapped: all connections of a process to one database share its index, until the last of them is closed.
    pub fn lacks_index_of(&self, before: &Self) -> bool {
        before.is_mapped()
            && self.files.database == before.files.database
            && self.files.index != before.files.index
    }

    /// Whether a stamp costs two loads. False for a while when this process may only read the database and nobody
    /// else has it open: SQLite then trusts no shared index. The first stamp after a writer came maps it.
    pub fn is_mapped(&self) -> bool {
        !self.header.load(Ordering::Acquire).is_null()
    }

    /// Asks SQLite for the shared index and remembers it. Null while the index is not to be trusted.
    fn map(&self) -> *mut Header {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the handle is used while `connection` is borrowed and never closed through it.
        let header = unsafe { shared_index(connection.handle()) }.cast::<Header>();
        self.header.store(header, Ordering::Release);
        header
    }

    /// The stamp without shared memory: everything that a commit moves in the files' attributes.
    fn file_words(&self) -> [u64; 2] {
        let database = std::fs::metadata(&self.files.database_path);
        let log = std::fs::metadata(&self.files.log_path).ok();
        let Ok(database) = database else { return self.unsettled_words() };
        let settled = is_settled(&database) && log.as_ref().is_none_or(is_settled);
        if !settled {
            return self.unsettled_words();
        }
        let mut hasher = DefaultHasher::new();
        attributes(&database).hash(&mut hasher);
        log.as_ref().map(attributes).hash(&mut hasher);
        [hasher.finish(), 0]
    }

    /// A stamp that equals no other: two changes within one tick of the clock leave the same attributes behind.
    fn unsettled_words(&self) -> [u64; 2] {
        [0, 1 + self.unsettled.fetch_add(1, Ordering::Relaxed)]
    }
}

/// What others do to the database in the moment before a stamp is read, and after: for simulations.
#[cfg(test)]
pub mod meanwhile {
    use std::cell::RefCell;

    thread_local! {
        static DEED: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
    }

    /// From now on this happens on the calling thread, or nothing.
    pub fn set(deed: Option<Box<dyn FnMut()>>) {
        DEED.replace(deed);
    }

    pub(super) fn happen() {
        // Whoever reads a stamp meanwhile is left alone.
        if let Some(mut deed) = DEED.take() {
            deed();
            DEED.replace(Some(deed));
        }
    }
}

/// The three files of a database and which ones they were.
struct Files {
    database_path: PathBuf,
    log_path: PathBuf,
    database: Option<(u64, u64)>,
    index: Option<(u64, u64)>,
}

impl Files {
    fn of(database: &Path) -> Self {
        Self {
            database_path: database.to_path_buf(),
            log_path: db::sibling(database, "-wal"),
            database: identity(database),
            index: identity(&db::sibling(database, "-shm")),
        }
    }
}

/// Device and inode number, without opening the file.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// What of a file a write changes: inode, length and both times in nanoseconds.
pub(super) fn attributes(metadata: &Metadata) -> [i64; 7] {
    [
        metadata.dev().cast_signed(),
        metadata.ino().cast_signed(),
        metadata.size().cast_signed(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ]
}

/// Whether a later write is sure to move the file's timestamps.
fn is_settled(metadata: &Metadata) -> bool {
    let changed = u64::try_from(metadata.ctime()).unwrap_or(0);
    settled_at(changed, metadata.ctime_nsec()).is_some_and(|settled_at| settled_at < SystemTime::now())
}

/// When a file is settled that was changed at this time since 1970; never, if its file system says what no clock can.
fn settled_at(changed_s: u64, changed_ns: i64) -> Option<SystemTime> {
    let changed_ns = u32::try_from(changed_ns).unwrap_or(0);
    let since_1970 = Duration::from_secs(changed_s)
        .checked_add(Duration::from_nanos(changed_ns.into()))?
        .checked_add(Duration::from_millis(TIMESTAMP_SETTLE_MS))?;
    UNIX_EPOCH.checked_add(since_1970)
}

/// The first region of the connection's wal-index, or null.
///
/// # Safety
/// `connection` is an open SQLite connection that no other thread uses meanwhile.
unsafe fn shared_index(connection: *mut ffi::sqlite3) -> *mut c_void {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    let mut region: *mut c_void = ptr::null_mut();
    // SAFETY: the caller vouches for the connection; with this operation code SQLite stores one pointer to the open
    // file of the database `main` (sqlite3.h, SQLITE_FCNTL_FILE_POINTER).
    let outcome = unsafe {
        ffi::sqlite3_file_control(
            connection,
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_FILE_POINTER,
            ptr::from_mut(&mut file).cast(),
        )
    };
    if outcome != ffi::SQLITE_OK || file.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: an open `sqlite3_file` has a method table or null there, for as long as it is open.
    let Some(methods) = (unsafe { (*file).pMethods.as_ref() }) else { return ptr::null_mut() };
    let Some(map) = methods.xShmMap.filter(|_| methods.iVersion >= 2) else { return ptr::null_mut() };
    // SAFETY: this is the call that SQLite itself makes for region 0 of an open file, without leave to extend it.
    let outcome = unsafe { map(file, 0, INDEX_REGION_LEN, 0, ptr::from_mut(&mut region)) };
    match outcome {
        // "Read-only" comes with a mapping that this process cannot write, which is all that is wanted.
        ffi::SQLITE_OK | ffi::SQLITE_READONLY => region,
        _ => ptr::null_mut(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, ChildStdout, Command, Stdio};

    use super::*;
    use crate::codec::store_path::StoreDir;

    /// Set for a child process that writes to the database this names; see [`writer_process`].
    const WRITER_DATABASE: &str = "NARWIRE_TEST_WRITER_DATABASE";

    struct Fixture {
        folder: tempfile::TempDir,
        store: LocalStore,
    }

    impl Fixture {
        fn new(journal_mode: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = LocalStore::beneath(folder.path(), StoreDir::parse("/nix/store").unwrap());
            std::fs::create_dir_all(store.database.parent().unwrap()).unwrap();
            let writer = Connection::open(&store.database).unwrap();
            writer.pragma_update(None, "journal_mode", journal_mode).unwrap();
            writer.execute_batch("create table Numbers (number integer)").unwrap();
            Self { folder, store }
        }

        fn writer(&self) -> Connection {
            let writer = Connection::open(&self.store.database).unwrap();
            // Nobody pulls the plug during a test.
            writer.pragma_update(None, "synchronous", "off").unwrap();
            writer
        }

        /// A process that commits once for each line it is sent, and answers with a line after each commit.
        fn writer_process(&self) -> (Child, BufReader<ChildStdout>) {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "store::change::tests::writer_process", "--nocapture", "--test-threads=1"])
                .env(WRITER_DATABASE, &self.store.database)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let answers = BufReader::new(child.stdout.take().unwrap());
            (child, answers)
        }
    }

    fn commit(writer: &Connection) {
        writer.execute_batch("insert into Numbers values (1)").unwrap();
    }

    fn wait_for(answers: &mut impl BufRead, answer: &str) {
        let mut line = String::new();
        while !line.contains(answer) {
            line.clear();
            assert_ne!(answers.read_line(&mut line).unwrap(), 0, "the writer ended before {answer:?}");
        }
    }

    /// Not a test of its own: the body of the other process when the variable is set.
    #[test]
    fn writer_process() {
        let Some(database) = std::env::var_os(WRITER_DATABASE) else { return };
        let writer = Connection::open(database).unwrap();
        println!("\nready");
        for line in std::io::stdin().lines() {
            match line.unwrap().as_str() {
                "commit" => commit(&writer),
                "begin" => writer
                    .execute_batch(
                        "begin; with recursive n(i) as (select 1 union all select i + 1 from n limit 100000) \
                         insert into Numbers select i from n",
                    )
                    .unwrap(),
                other => panic!("unknown order {other:?}"),
            }
            println!("done");
        }
    }

    #[test]
    fn all_threads_share_one_counter() {
        fn shared<T: Send + Sync>() {}
        shared::<ChangeCounter>();
    }

    #[test]
    fn every_commit_changes_the_stamp() {
        let fixture = Fixture::new("wal");
        let counter = ChangeCounter::open(&fixture.store).unwrap();
        assert!(counter.is_mapped());
        let writer = fixture.writer();
        let mut stamps = vec![counter.stamp()];
        for _ in 0..200 {
            commit(&writer);
            let stamp = counter.stamp();
            assert_eq!(stamp, counter.stamp(), "nothing happened in between");
            assert!(!stamps.contains(&stamp), "a commit is hidden");
            stamps.push(stamp);
        }
        assert!(counter.still_current());
    }

    #[test]
    fn a_read_and_a_rolled_back_transaction_are_no_change() {
        let fixture = Fixture::new("wal");
        let counter = ChangeCounter::open(&fixture.store).unwrap();
        let writer = fixture.writer();
        commit(&writer);
        let before = counter.stamp();
        writer.execute_batch("begin; insert into Numbers values (2); rollback").unwrap();
        writer.query_row("select count(*) from Numbers", [], |_| Ok(())).unwrap();
        assert_eq!(before, counter.stamp());
    }

    #[test]
    fn checkpoints_hide_no_commit() {
        let fixture = Fixture::new("wal");
        let counter = ChangeCounter::open(&fixture.store).unwrap();
        let mut stamps = vec![counter.stamp()];
        for mode in ["passive", "full", "restart", "truncate"].into_iter().cycle().take(20) {
            // A new writer each time: each is the last to close but for us, which is when SQLite would remove the
            // log.
            let writer = fixture.writer();
            commit(&writer);
            let committed = counter.stamp();
            assert!(!stamps.contains(&committed), "a commit is hidden before {mode}");
            stamps.push(committed);
            writer.query_row(&format!("pragma wal_checkpoint({mode})"), [], |_| Ok(())).unwrap();
            assert_eq!(committed, counter.stamp(), "{mode} changes no content");
            drop(writer);
            assert!(counter.still_current(), "the log is still the one that was mapped");
        }
    }

    #[test]
    fn commits_of_another_process_are_seen_at_once() {
        use std::io::Write;
        let fixture = Fixture::new("wal");
        let counter = ChangeCounter::open(&fixture.store).unwrap();
        let (mut child, mut answers) = fixture.writer_process();
        wait_for(&mut answers, "ready");
        let mut stamps = vec![counter.stamp()];
        for _ in 0..50 {
            writeln!(child.stdin.as_mut().unwrap(), "commit").unwrap();
            wait_for(&mut answers, "done");
            let stamp = counter.stamp();
            assert!(!stamps.contains(&stamp), "a commit is hidden");
            stamps.push(stamp);
        }
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn a_killed_writer_hides_no_commit() {
        use std::io::Write;
        let fixture = Fixture::new("wal");
        let counter = ChangeCounter::open(&fixture.store).unwrap();
        let mut stamps = vec![counter.stamp()];
        for _ in 0..5 {
            let (mut child, mut answers) = fixture.writer_process();
            wait_for(&mut answers, "ready");
            for order in ["commit", "begin"] {
                writeln!(child.stdin.as_mut().unwrap(), "{order}").unwrap();
                wait_for(&mut answers, "done");
            }
            child.kill().unwrap();
            child.wait().unwrap();
            let killed = counter.stamp();
            assert!(!stamps.contains(&killed), "the killed writer's commit is hidden");
            stamps.push(killed);
            // The next writer recovers what the killed one left.
            let writer = fixture.writer();
            commit(&writer);
            let recovered = counter.stamp();
            assert!(!stamps.contains(&recovered), "the commit after a recovery is hidden");
            stamps.push(recovered);
        }
    }

    /// A header that is not two equal copies is what a writer killed in the middle of a commit leaves behind.
    #[test]
    fn a_rebuilt_header_repeats_no_stamp() {
        use std::os::unix::fs::FileExt;
        let fixture = Fixture::new("wal");
        let counter = ChangeCounter::open(&fixture.store).unwrap();
        let index = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(db::sibling(&fixture.store.database, "-shm"))
            .unwrap();
        let mut stamps = vec![counter.stamp()];
        for _ in 0..10 {
            commit(&fixture.writer());
            assert!(!stamps.contains(&counter.stamp()), "a commit is hidden");
            stamps.push(counter.stamp());
            index.write_all_at(&[0xff; 8], 48).unwrap();
            // Recovery starts the counter again; the content is the same, the stamp need not be.
            commit(&fixture.writer());
            assert!(!stamps.contains(&counter.stamp()), "a commit after a rebuilt header is hidden");
            stamps.push(counter.stamp());
        }
    }

    #[test]
    fn a_replaced_database_is_noticed_and_its_stamps_are_others() {
        let fixture = Fixture::new("wal");
        let counter = ChangeCounter::open(&fixture.store).unwrap();
        assert!(counter.still_current());
        for name in ["db.sqlite", "db.sqlite-wal", "db.sqlite-shm"] {
            let path = fixture.store.database.with_file_name(name);
            let _ = std::fs::rename(&path, path.with_extension("old"));
        }
        assert!(!counter.still_current(), "the database is gone");
        fixture.writer().pragma_update(None, "journal_mode", "wal").unwrap();
        assert!(!counter.still_current(), "the database is another");
        let reopened = ChangeCounter::open(&fixture.store).unwrap();
        assert_ne!(counter.stamp(), reopened.stamp());
        assert!(reopened.still_current());
    }

    #[test]
    fn a_replaced_index_is_noticed() {
        let fixture = Fixture::new("wal");
        let counter = ChangeCounter::open(&fixture.store).unwrap();
        std::fs::remove_file(db::sibling(&fixture.store.database, "-shm")).unwrap();
        assert!(!counter.still_current());
    }

    #[test]
    fn every_commit_changes_the_stamp_with_a_rollback_journal() {
        for journal_mode in ["delete", "truncate"] {
            let fixture = Fixture::new(journal_mode);
            let counter = ChangeCounter::open(&fixture.store).unwrap();
            assert!(!counter.is_mapped());
            let writer = fixture.writer();
            let mut stamps = vec![counter.stamp()];
            for _ in 0..50 {
                commit(&writer);
                let stamp = counter.stamp();
                assert!(!stamps.contains(&stamp), "a commit is hidden");
                stamps.push(stamp);
            }
            assert!(counter.still_current());
        }
    }

    #[test]
    fn a_settled_file_keeps_its_stamp() {
        let fixture = Fixture::new("delete");
        let counter = ChangeCounter::open(&fixture.store).unwrap();
        let metadata = || std::fs::metadata(&fixture.store.database).unwrap();
        while !is_settled(&metadata()) {
            std::thread::yield_now();
        }
        let settled = counter.stamp();
        assert_eq!(settled, counter.stamp());
        commit(&fixture.writer());
        assert_ne!(settled, counter.stamp());
    }

    #[test]
    fn a_journal_that_becomes_a_log_is_noticed() {
        let fixture = Fixture::new("delete");
        let counter = ChangeCounter::open(&fixture.store).unwrap();
        let writer = fixture.writer();
        writer.pragma_update(None, "journal_mode", "wal").unwrap();
        commit(&writer);
        assert!(!counter.still_current());
    }

    #[test]
    fn counters_may_come_and_go_while_others_live() {
        let fixture = Fixture::new("wal");
        let first = ChangeCounter::open(&fixture.store).unwrap();
        drop(ChangeCounter::open(&fixture.store).unwrap());
        // Another process would truncate the index here if closing had dropped this process's locks.
        let (mut child, mut answers) = fixture.writer_process();
        wait_for(&mut answers, "ready");
        let before = first.stamp();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"commit\n").unwrap();
        wait_for(&mut answers, "done");
        assert_ne!(before, first.stamp());
        assert!(first.still_current());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(fixture.folder.path().exists());
    }

    #[test]
    fn a_time_that_no_clock_can_say_is_never_settled() {
        assert_eq!(settled_at(5, 7), Some(UNIX_EPOCH + Duration::new(5, 7 + 100_000_000)));
        assert_eq!(settled_at(5, -1), settled_at(5, 0));
        for seconds in [u64::MAX, i64::MAX.unsigned_abs(), i64::MAX.unsigned_abs() + 1] {
            assert_eq!(settled_at(seconds, 999_999_999), None, "{seconds}");
        }
    }
}
