//! Clients that go at every stage of a request, in every way: nothing of them is left, and nobody else notices.

use std::fs::File;

use rusqlite::Connection as Database;
use rustix::fs::{Advice, fadvise};

use super::files::half_read;
use crate::support::client::request_head;
use crate::support::fixture::LARGE_LEN;
use crate::support::nar_cache::{CacheDir, Nar, compressed};
use crate::support::nix::hash_part;
use crate::support::upload::{Package, Packing, UploadDir};
use crate::support::{Connection, Narwire, Nix, Random, Store, assert_same_bytes, eventually, fixture};

/// Clients that go at the same time.
const CLIENTS: usize = 12;

/// How a client goes.
const PARTINGS: [fn(Connection); 3] = [Connection::reset, drop, |connection| {
    connection.finish_sending();
    connection.reset();
}];

/// Lets clients come to a stage and go, in turn in each way; then everything is as before.
#[track_caller]
fn come_and_go(server: &Narwire, what: &str, mut come: impl FnMut() -> Connection) {
    let [small, odd] = ["small", "odd"].map(|name| fixture().path(name));
    let wanted = fixture().store.dump(odd);
    let narinfo = format!("/{}.narinfo", hash_part(small));
    // Once before, so that what each thread opens for good is open.
    let (mut open, idle) = ([0; 2], server.sockets());
    for open in &mut open {
        let mut bystander = server.connect();
        let clients: Vec<_> = (0..CLIENTS).map(|_| come()).collect();
        for (client, part) in clients.into_iter().zip(PARTINGS.iter().cycle()) {
            part(client);
            bystander.get(&narinfo).expect(200);
        }
        assert_same_bytes(&server.nar(hash_part(odd)).expect(200).body, &wanted, what);
        drop(bystander);
        server.get("/health").expect(200);
        eventually(&format!("{what}: no connection is left"), || server.sockets() <= idle);
        eventually(&format!("{what}: no upload is left"), || {
            ["narwire_uploads_under_way", "narwire_uploads_waiting"]
                .iter()
                .all(|count| server.count(count).is_none_or(|count| count == 0))
        });
        *open = server.descriptors();
    }
    // Trees that nobody waits for any more may still be walked.
    eventually(
        &format!("{what}: of {open:?} descriptors all but a few are closed: {:?}", server.open_files()),
        || server.descriptors() <= open[0] + 2,
    );
}

#[test]
fn in_the_middle_of_a_head_or_of_many() {
    let server = fixture().store.serve();
    let head = request_head("GET", "/nix-cache-info", &[]);
    come_and_go(&server, "half a head", || {
        let mut connection = server.connect();
        connection.send(&head[..head.len() / 2]);
        connection
    });
    come_and_go(&server, "many requests, none of whose answers is read", || {
        let mut connection = server.connect();
        connection.send(head.repeat(100));
        connection
    });
}

#[test]
fn while_a_look_up_waits() {
    let store = Store::new(Nix::installed().configured("use-sqlite-wal = false"));
    let path = store.add_bytes("path", b"contents");
    let server = store.serve();
    let database = Database::open(store.database()).unwrap();
    database.busy_timeout(crate::support::PATIENCE).unwrap();
    server.get(&format!("/{}.narinfo", hash_part(&path))).expect(200);
    let before = server.descriptors();
    database.execute_batch("begin exclusive").unwrap();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let mut connection = server.connect();
            connection.send(request_head("GET", &format!("/{number:032}.narinfo"), &[]));
            connection
        })
        .collect();
    for (client, part) in clients.into_iter().zip(PARTINGS.iter().cycle()) {
        part(client);
    }
    database.execute_batch("rollback").unwrap();
    eventually("every descriptor is closed", || server.descriptors() <= before);
    server.nar(hash_part(&path)).expect(200);
    server.get("/health").expect(200);
}

#[test]
fn in_the_middle_of_a_nar() {
    let fixture = fixture();
    let server = fixture.store.serve();
    let [large, many] = ["large", "many"].map(|name| server.nar_target(hash_part(fixture.path(name))));
    come_and_go(&server, "a long file", || half_read(&server, &large, &[]));
    come_and_go(&server, "a range of it", || {
        half_read(&server, &large, &[("Range", &format!("bytes=1000-{}", LARGE_LEN - 1))])
    });
    come_and_go(&server, "many files", || half_read(&server, &many, &[]));
    come_and_go(&server, "a NAR that is compressed on its way", || {
        half_read(&server, &compressed(&large), &[])
    });
    let file = File::open(fixture.store.real(fixture.path("large"))).unwrap();
    come_and_go(&server, "a file that is not in memory", || {
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        half_read(&server, &large, &[])
    });
}

#[test]
fn in_the_middle_of_a_file_of_the_nar_cache() {
    let store = &fixture().store;
    let nar = Nar::of(store, fixture().path("large"));
    let cache = CacheDir::new();
    let server = Narwire::start([store.flags(), cache.flags("hot", "both")].concat());
    eventually("it is kept", || {
        server.get(&nar.targets()[0]).expect(200);
        cache.nars().len() == 2
    });
    for target in [nar.targets()[0].clone(), compressed(&nar.targets()[0])] {
        come_and_go(&server, &target, || half_read(&server, &target, &[]));
    }
}

/// A directory that is uploaded to, beside the store whose paths the bystanders ask for.
fn serve_uploads(directory: &UploadDir) -> Narwire {
    let more = ["--with-store", "--workers", "1"].map(str::to_owned).to_vec();
    Narwire::start([directory.flags(), fixture().store.flags(), more].concat())
}

#[test]
fn during_an_upload() {
    let directory = UploadDir::new();
    let server = serve_uploads(&directory);
    let package = Package::new('1', &Random(1).bytes(3_000_000), Packing::None);
    let (target, len) = (package.nar_target(), package.file.len().to_string());
    let begun = |sent_len: usize| {
        let mut connection = server.connect();
        connection.send(request_head("PUT", &target, &[("Content-Length", &len)]));
        connection.send(&package.file[..sent_len]);
        connection
    };
    come_and_go(&server, "before the body", || begun(0));
    come_and_go(&server, "in the middle of the body", || begun(1_500_000));
    assert!(directory.staged().is_empty(), "{:?}", directory.staged());
    come_and_go(&server, "behind the body", || begun(package.file.len()));
    come_and_go(&server, "after a refusal, while the rest of the body is dropped", || {
        let mut connection = server.connect();
        connection.send(request_head("PUT", "/nar/x.nar", &[("Content-Length", &len)]));
        connection.send(&package.file[..100_000]);
        connection.head().unwrap().expect(400);
        connection
    });
    assert!(directory.staged().is_empty(), "{:?}", directory.staged());
    directory.assert_sound();
    let again = server.connect().put(&target, &package.file);
    assert!([200, 201].contains(&again.status), "{again:?}");
}

#[test]
fn while_an_upload_waits_in_line() {
    let directory = UploadDir::new();
    let server = serve_uploads(&directory);
    let package = Package::new('1', &Random(1).bytes(3_000_000), Packing::None);
    let (target, len) = (package.nar_target(), package.file.len().to_string());
    let begin = |body: &[u8]| {
        let mut connection = server.connect();
        connection.send(request_head("PUT", &target, &[("Content-Length", &len)]));
        connection.send(body);
        connection
    };
    let mut at_work: Vec<_> = (0..32).map(|_| begin(&package.file[..1000])).collect();
    eventually("every place is taken", || server.count("narwire_uploads_under_way") == Some(32));
    let waiting: Vec<_> = (0..CLIENTS).map(|index| begin(&package.file[..1000 * (index % 2)])).collect();
    eventually("they wait", || server.count("narwire_uploads_waiting") == Some(CLIENTS as u64));
    // A reset is seen at once. (Who has only shut its side may still want the answer; that it sends no more is seen at its turn.)
    waiting.into_iter().for_each(Connection::reset);
    eventually("nobody waits", || server.count("narwire_uploads_waiting") == Some(0));
    let shut: Vec<_> = (0..CLIENTS).map(|index| begin(&package.file[..1000 * (index % 2)])).collect();
    eventually("they wait", || server.count("narwire_uploads_waiting") == Some(CLIENTS as u64));
    drop(shut);
    let mut last = begin(&[]);
    eventually("and one more", || server.count("narwire_uploads_waiting") == Some(CLIENTS as u64 + 1));
    let mut finished = at_work.pop().unwrap();
    finished.send(&package.file[1000..]);
    finished.reply_to("PUT").expect(201);
    // Its place goes through the hands of all who have gone, to the one who has not.
    last.send(&package.file);
    let reply = last.reply_to("PUT");
    assert!([200, 201].contains(&reply.status), "{reply:?}");
    eventually("nobody waits", || server.count("narwire_uploads_waiting") == Some(0));
    drop(at_work);
    eventually("nothing is under way", || server.count("narwire_uploads_under_way") == Some(0));
    assert!(directory.staged().is_empty(), "{:?}", directory.staged());
}
