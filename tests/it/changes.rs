//! A database that is written, locked or replaced while paths are asked for.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rusqlite::Connection as Database;

use crate::support::nix::hash_part;
use crate::support::server::{command, command_of_nobody};
use crate::support::{Narwire, Nix, Store, assert_same_bytes, eventually};

/// Paths that one test registers one after the other, each while it is being asked for.
const REGISTRATIONS: usize = 500;
/// Connections that ask right after a registration: more than there are workers.
const ASKING: usize = 6;

/// A Nix that keeps its databases without a write-ahead log, as some file systems need it.
fn nix_without_log() -> Nix {
    Nix::installed().configured("use-sqlite-wal = false")
}

fn open(store: &Store) -> Database {
    let database = Database::open(store.database()).unwrap();
    database.busy_timeout(crate::support::PATIENCE).unwrap();
    database.pragma_update(None, "synchronous", "off").unwrap(); // nobody pulls the plug during a test
    database
}

fn journal_mode(database: &Database) -> String {
    database.query_row("pragma journal_mode", [], |row| row.get(0)).unwrap()
}

fn narinfo(path: &str) -> String {
    format!("/{}.narinfo", hash_part(path))
}

/// Registers a path that is like another but for its name; gives its store path.
fn register_alike(database: &Database, like: &str, number: usize) -> String {
    let path = format!("/nix/store/{number:032}-alike");
    let insert = "insert into ValidPaths (path, hash, registrationTime, narSize) \
                  select ?1, hash, 1, narSize from ValidPaths where path = ?2";
    assert_eq!(database.execute(insert, [path.as_str(), like]).unwrap(), 1);
    path
}

/// Registers paths while everybody asks for them; after each registration nobody may hear that it is absent, and after
/// each removal nobody that it is there.
fn always_as_fresh_as_the_last_commit(nix: Nix) {
    let store = Store::new(nix);
    let like = store.add_bytes("like", b"contents");
    let server = store.serve();
    let database = open(&store);
    let path = format!("/nix/store/{:032}-alike", 7);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut connection = server.connect();
                while !over.load(Ordering::Relaxed) {
                    let status = connection.get(&narinfo(&path)).status;
                    assert!([200, 404].contains(&status), "{status}");
                }
            });
        }
        let rounds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut connections: Vec<_> = (0..ASKING).map(|_| server.connect()).collect();
            for round in 0..REGISTRATIONS {
                // Changes to something else outdate all answers, so that everybody is just asking again.
                for _ in 0..10 {
                    database
                        .execute("update ValidPaths set registrationTime = 1 where path = ?1", [&like])
                        .unwrap();
                }
                register_alike(&database, &like, 7);
                for connection in &mut connections {
                    assert_eq!(connection.get(&narinfo(&path)).status, 200, "registered in round {round}");
                }
                database.execute("delete from ValidPaths where path = ?1", [&path]).unwrap();
                for connection in &mut connections {
                    assert_eq!(connection.get(&narinfo(&path)).status, 404, "deleted in round {round}");
                }
            }
        }));
        over.store(true, Ordering::Relaxed);
        rounds.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn no_answer_is_older_than_the_request_for_it() {
    for nix in Nix::all() {
        always_as_fresh_as_the_last_commit(nix);
    }
}

#[test]
fn no_answer_is_older_than_the_request_for_it_without_a_log() {
    always_as_fresh_as_the_last_commit(nix_without_log());
}

#[test]
fn what_nix_has_registered_is_never_absent_while_everybody_asks_for_it() {
    for nix in Nix::all() {
        let (store, elsewhere) = (Store::new(nix), Store::new(Nix::installed()));
        store.add_bytes("first", b"so that there is a database");
        let server = store.serve();
        let mut connections: Vec<_> = (0..ASKING).map(|_| server.connect()).collect();
        for round in 0..5 {
            let contents = format!("round {round}");
            let path = elsewhere.add_bytes("late", contents.as_bytes());
            let over = AtomicBool::new(false);
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let mut connection = server.connect();
                        while !over.load(Ordering::Relaxed) {
                            connection.get(&narinfo(&path));
                        }
                    });
                }
                store.add_bytes("late", contents.as_bytes());
                let statuses: Vec<u16> =
                    connections.iter_mut().map(|connection| connection.get(&narinfo(&path)).status).collect();
                over.store(true, Ordering::Relaxed);
                assert_eq!(statuses, [200; ASKING], "round {round}");
            });
        }
    }
}

#[test]
fn a_store_without_a_write_ahead_log_is_followed() {
    let store = Store::new(nix_without_log());
    let first = store.add_bytes("first", b"contents");
    assert_ne!(journal_mode(&open(&store)), "wal");
    let server = store.serve();
    let mut connection = server.connect();
    for round in 0..5 {
        let path = store.add_bytes("round", format!("{round}").as_bytes());
        connection.get(&narinfo(&path)).expect(200);
        assert_same_bytes(&server.nar(hash_part(&path)).expect(200).body, &store.dump(&path), &path);
        store.delete(&path);
        connection.get(&narinfo(&path)).expect_absent();
    }
    connection.get(&narinfo(&first)).expect(200);
}

/// Puts another database in the place of the store's own, as a restored backup would be.
fn replace(store: &Store, change: impl FnOnce(&Database)) {
    let (database, staged) = (store.database(), store.database().with_extension("staged"));
    let live = open(store);
    live.execute("vacuum into ?1", [staged.to_str().unwrap()]).unwrap();
    let new = Database::open(&staged).unwrap();
    change(&new);
    drop(new);
    // With an empty log nothing of the old database can be taken for a part of the new one.
    live.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(())).unwrap();
    drop(live);
    for end in ["-wal", "-shm"] {
        let companion = database.with_file_name(format!("db.sqlite{end}"));
        let _absent = fs::remove_file(companion);
    }
    fs::rename(&staged, &database).unwrap();
}

/// The server is run by the user of the tests, or by one who may only read.
fn follows_a_replaced_database(nix: Nix, is_privileged: bool) {
    let store = Store::new(nix);
    let (kept, gone) = (store.add_bytes("kept", b"contents"), store.add_bytes("gone", b"other contents"));
    let (_folder, mut command) = if is_privileged {
        (None, command())
    } else {
        let (folder, command) = command_of_nobody();
        (Some(folder), command)
    };
    let server = Narwire::spawn(command.args(store.flags()).args(["--listen", "127.0.0.1:0"]));
    server.wait_for("listening on ");
    let mut connection = server.connect();
    for path in [&kept, &gone] {
        connection.get(&narinfo(path)).expect(200);
    }
    replace(&store, |new| {
        new.execute("delete from ValidPaths where path = ?1", [&gone]).unwrap();
        register_alike(new, &kept, 8);
    });
    let new = format!("/nix/store/{:032}-alike", 8);
    eventually("the new database is read", || {
        let reply = connection.get(&narinfo(&new));
        assert!([200, 404].contains(&reply.status), "{}", reply.status);
        reply.status == 200
    });
    eventually("the old one is forgotten", || connection.get(&narinfo(&gone)).status == 404);
    connection.get(&narinfo(&kept)).expect(200);
    // From here on the new one is followed as the old one was.
    let later = store.add_bytes("later", b"more");
    for _ in 0..ASKING {
        server.get(&narinfo(&later)).expect(200);
    }
    store.delete(&later);
    for _ in 0..ASKING {
        server.get(&narinfo(&later)).expect_absent();
    }
}

#[test]
fn a_replaced_database_is_followed() {
    for nix in Nix::all() {
        follows_a_replaced_database(nix, true);
    }
}

#[test]
fn a_replaced_database_is_followed_without_a_log() {
    follows_a_replaced_database(nix_without_log(), true);
}

#[test]
fn a_replaced_database_is_followed_by_who_may_only_read_it() {
    if !rustix::process::geteuid().is_root() {
        return; // nobody else can be run as
    }
    for nix in Nix::all().into_iter().chain([nix_without_log()]) {
        follows_a_replaced_database(nix, false);
    }
}

#[test]
fn a_writer_at_work_disturbs_nobody() {
    let store = Store::new(Nix::installed());
    let [cached, uncached] = ["cached", "uncached"].map(|name| store.add_bytes(name, name.as_bytes()));
    let server = store.serve();
    server.get(&narinfo(&cached)).expect(200);
    let database = open(&store);
    assert_eq!(journal_mode(&database), "wal");
    database.execute_batch("begin exclusive").unwrap();
    let unfinished = register_alike(&database, &cached, 9);
    for _ in 0..ASKING {
        server.get(&narinfo(&cached)).expect(200);
        server.nar(hash_part(&uncached)).expect(200);
        server.get(&narinfo(&unfinished)).expect_absent();
        server.get("/health").expect(200);
    }
    database.execute_batch("commit").unwrap();
    server.get(&narinfo(&unfinished)).expect(200);
}

#[test]
fn a_locked_database_is_busy_and_never_empty() {
    let store = Store::new(nix_without_log());
    let [cached, uncached] = ["cached", "uncached"].map(|name| store.add_bytes(name, name.as_bytes()));
    let server = Narwire::start([store.flags(), vec!["--workers".into(), "1".into()]].concat());
    let database = open(&store);
    // A file that was written a moment ago may be written again without a trace, so its answers are not kept yet.
    eventually("an answer is kept", || {
        server.get(&narinfo(&cached)).expect(200);
        database.execute_batch("begin exclusive").unwrap();
        let status = server.get(&narinfo(&cached)).status;
        assert!([200, 503].contains(&status), "{status}");
        if status == 503 {
            database.execute_batch("rollback").unwrap();
        }
        status == 200
    });
    let reply = server.get(&narinfo(&uncached)).expect(503);
    assert!(reply.field("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()));
    assert!(reply.body.len() < 1024, "Nix shows only error bodies below 1 KiB");
    server.get(&format!("/realisations/sha256:{}!out.doi", "0".repeat(64))).expect(503);
    server.get("/health").expect(503);
    server.get("/nix-cache-info").expect(200);
    server.get(&narinfo(&cached)).expect(200);
    database.execute_batch("rollback").unwrap();
    server.get(&narinfo(&uncached)).expect(200);
    server.get("/health").expect(200);
}

#[test]
fn a_database_that_goes_away_makes_no_path_absent_for_ever() {
    let store = Store::new(Nix::installed());
    let path = store.add_bytes("path", b"contents");
    let server = store.serve();
    server.get(&narinfo(&path)).expect(200);
    let (database, away) = (store.database(), store.database().with_extension("away"));
    checkpoint_and_rename(&store, &database, &away);
    let other = format!("/{}.narinfo", "2".repeat(32));
    for _ in 0..ASKING {
        let status = server.get(&other).status;
        assert!([404, 500, 503].contains(&status), "{status}");
    }
    fs::rename(&away, &database).unwrap();
    eventually("the path is there again", || server.get(&narinfo(&path)).status == 200);
    eventually("and healthy", || server.get("/health").status == 200);
}

fn checkpoint_and_rename(store: &Store, from: &Path, to: &Path) {
    open(store).query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(())).unwrap();
    fs::rename(from, to).unwrap();
}
