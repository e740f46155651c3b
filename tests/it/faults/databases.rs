//! A database that is locked for long, damaged, replaced, or without its companions, while it is asked and at the start.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use rusqlite::Connection as Database;

use crate::support::nix::hash_part;
use crate::support::server::BINARY;
use crate::support::{Narwire, Nix, Store, assert_same_bytes, eventually, printed};

/// A store with a path that is asked for at once, and one that nobody has asked for.
struct Asked {
    store: Store,
    known: String,
    unknown: String,
}

impl Asked {
    fn new(nix: Nix) -> Self {
        let store = Store::new(nix);
        let [known, unknown] = ["known", "unknown"].map(|name| store.add_folder(name, 3, 10_000));
        Self { store, known, unknown }
    }

    /// One worker, which knows one of them.
    fn serve(&self) -> Narwire {
        let server = Narwire::start([self.store.flags(), vec!["--workers".into(), "1".into()]].concat());
        server.nar(hash_part(&self.known)).expect(200);
        server
    }

    /// Both are served right, by a server that was never started anew.
    #[track_caller]
    fn is_well(&self, server: &Narwire) {
        for path in [&self.known, &self.unknown] {
            eventually(path, || server.get(&narinfo(path)).status == 200);
            assert_same_bytes(&server.nar(hash_part(path)).expect(200).body, &self.store.dump(path), path);
        }
        server.get("/health").expect(200);
    }

    fn open(&self) -> Database {
        let database = Database::open(self.store.database()).unwrap();
        database.busy_timeout(crate::support::PATIENCE).unwrap();
        database
    }

    /// Everything into the one file, and no companions.
    fn settle(&self) {
        let database = self.open();
        database.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(())).unwrap();
        drop(database);
        for end in ["-wal", "-shm"] {
            let _absent = fs::remove_file(companion(&self.store.database(), end));
        }
    }
}

fn companion(database: &Path, end: &str) -> std::path::PathBuf {
    database.with_file_name(format!("{}{end}", database.file_name().unwrap().to_str().unwrap()))
}

fn narinfo(path: &str) -> String {
    format!("/{}.narinfo", hash_part(path))
}

/// What may be done to the file of a database.
type Damage = fn(&Path);

const DAMAGES: [(&str, Damage); 5] = [
    ("pages overwritten", |file| {
        let file = File::options().write(true).open(file).unwrap();
        let len = file.metadata().unwrap().len();
        (1..len / 4096).for_each(|page| file.write_all_at(&[0xa5; 4096], page * 4096).unwrap());
    }),
    ("truncated", |file| File::options().write(true).open(file).unwrap().set_len(6000).unwrap()),
    ("empty", |file| drop(File::create(file).unwrap())),
    ("no database", |file| fs::write(file, "what is this\n".repeat(2000)).unwrap()),
    ("without tables", |file| {
        fs::remove_file(file).unwrap();
        Database::open(file)
            .unwrap()
            .execute_batch("create table Other (x); pragma user_version = 1")
            .unwrap();
    }),
];

#[test]
fn one_that_is_damaged_under_the_server_makes_no_path_absent_and_is_followed_when_it_is_mended() {
    for (what, damage) in DAMAGES {
        let asked = Asked::new(Nix::installed());
        asked.settle();
        let database = asked.store.database();
        let kept = database.with_extension("kept");
        fs::copy(&database, &kept).unwrap();
        let server = asked.serve();
        damage(&database);
        for _ in 0..3 {
            for path in [&asked.known, &asked.unknown] {
                let reply = server.get(&narinfo(path));
                assert!([200, 500, 503].contains(&reply.status), "{what}: {path}: {reply:?}");
            }
            server.get("/nix-cache-info").expect(200);
        }
        // A backup is put in its place.
        for end in ["-wal", "-shm"] {
            let _absent = fs::remove_file(companion(&database, end));
        }
        let restored = database.with_extension("restored");
        fs::copy(&kept, &restored).unwrap();
        fs::rename(&restored, &database).unwrap();
        eprintln!("{what}");
        eventually(&format!("{what}: it is asked again"), || {
            server.get(&narinfo(&asked.unknown)).status == 200
        });
        asked.is_well(&server);
    }
}

#[test]
fn one_that_is_damaged_at_the_start_is_one_line_or_no_answer_but_never_a_wrong_one() {
    for (what, damage) in DAMAGES {
        let asked = Asked::new(Nix::installed());
        asked.settle();
        damage(&asked.store.database());
        let mut server = Narwire::start_or_end(asked.store.flags());
        if server.has_exited() {
            server.wait_for("narwire: ");
            assert_eq!(server.exit().code(), Some(2), "{what}: {}", server.output());
            let output = server.output();
            let lines: Vec<_> = output.lines().filter(|line| line.starts_with("narwire: ")).collect();
            assert!(lines.len() == 1 && lines[0].contains("db.sqlite"), "{what}: {output}");
            continue;
        }
        // Damage that shows only where it is read.
        let reply = server.get(&narinfo(&asked.unknown));
        assert!([200, 500, 503].contains(&reply.status), "{what}: {reply:?}\n{}", server.output());
        let health = server.get("/health").status;
        assert!([200, 503].contains(&health), "{what}: {health}");
    }
}

#[test]
fn one_that_is_locked_for_long_is_503_for_what_is_not_known_and_all_is_well_afterwards() {
    for nix in [Nix::installed(), Nix::installed().configured("use-sqlite-wal = false")] {
        let asked = Asked::new(nix);
        let server = asked.serve();
        let database = asked.open();
        // A file that was written a moment ago may be written again without a trace, so its answers are not kept yet.
        eventually("an answer is kept", || {
            database.execute_batch("begin exclusive").unwrap();
            let status = server.get(&narinfo(&asked.known)).status;
            if status == 503 {
                database.execute_batch("rollback").unwrap();
                server.get(&narinfo(&asked.known)).expect(200);
            }
            status == 200
        });
        // Each of these waits for the lock as long as a look-up does: several times ten seconds in all, if they were not bounded.
        let mut waiting: Vec<_> = (0..6)
            .map(|number| {
                let mut connection = server.connect();
                let target =
                    if number == 0 { narinfo(&asked.unknown) } else { format!("/{number:032}.narinfo") };
                connection.send(crate::support::client::request_head("GET", &target, &[]));
                connection
            })
            .collect();
        for _ in 0..20 {
            server.get(&narinfo(&asked.known)).expect(200);
            server.nar(hash_part(&asked.known)).expect(200);
        }
        let mut refused = 0;
        for connection in &mut waiting {
            let reply = connection.reply_to("GET");
            refused += u64::from(reply.status == 503);
            assert!([200, 404, 503].contains(&reply.status), "{reply:?}");
            assert!(reply.status != 503 || reply.field("retry-after").is_some(), "{reply:?}");
        }
        let failed = server.count("narwire_database_errors_total");
        assert!(failed >= Some(refused), "{refused} were refused, {failed:?} counted");
        database.execute_batch("rollback").unwrap();
        asked.is_well(&server);
    }
}

#[test]
fn one_whose_log_is_removed_is_followed() {
    let asked = Asked::new(Nix::installed());
    let server = asked.serve();
    // What was committed is in the one file; else removing the log would remove it.
    asked.open().query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(())).unwrap();
    fs::remove_file(companion(&asked.store.database(), "-wal")).unwrap();
    server.get(&narinfo(&asked.known)).expect(200);
    let later = asked.store.add_bytes("later", b"contents");
    eventually("what is registered then is found", || {
        let reply = server.get(&narinfo(&later));
        assert!([200, 404, 500, 503].contains(&reply.status), "{reply:?}");
        reply.status == 200
    });
    asked.is_well(&server);
}

/// SQLite goes on with the index that it has for as long as any connection of the process is open.
#[test]
fn one_whose_index_is_removed_is_said_to_need_a_new_process() {
    let asked = Asked::new(Nix::installed());
    let server = asked.serve();
    asked.open().query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(())).unwrap();
    fs::remove_file(companion(&asked.store.database(), "-shm")).unwrap();
    let later = asked.store.add_bytes("later", b"contents");
    server.wait_for("start narwire anew");
    server.get(&narinfo(&asked.known)).expect(200);
    assert_same_bytes(
        &server.nar(hash_part(&asked.known)).expect(200).body,
        &asked.store.dump(&asked.known),
        "known",
    );
    server.get("/health").expect(503);
    assert_eq!(server.count("narwire_database_stale"), Some(1));
    drop(server);
    let server = asked.serve();
    assert_eq!(server.count("narwire_database_stale"), Some(0));
    server.get(&narinfo(&later)).expect(200);
    asked.is_well(&server);
}

#[test]
fn one_whose_index_is_taken_away_and_put_back_is_healthy_again() {
    let asked = Asked::new(Nix::installed());
    let server = asked.serve();
    let index = companion(&asked.store.database(), "-shm");
    let away = index.with_extension("away");
    fs::rename(&index, &away).unwrap();
    // Whoever opens the database makes another.
    asked.open().query_row("select count(*) from ValidPaths", [], |_| Ok(())).unwrap();
    eventually("it says so", || server.get("/health").status == 503);
    assert_eq!(server.count("narwire_database_stale"), Some(1));
    fs::rename(&away, &index).unwrap();
    eventually("all is as it was", || server.get("/health").status == 200);
    assert_eq!(server.count("narwire_database_stale"), Some(0));
    asked.is_well(&server);
}

#[test]
fn a_check_of_one_that_is_no_database_names_it() {
    let asked = Asked::new(Nix::installed());
    asked.settle();
    DAMAGES[3].1(&asked.store.database());
    let output = Command::new(BINARY).arg("check").args(asked.store.flags()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", printed(&output));
    assert!(printed(&output).contains("db.sqlite"), "{}", printed(&output));
}
