//! Walks of large trees that nobody waits for any more: they end, and their threads do what others ask for.

use std::collections::HashMap;
use std::fs;

use tempfile::TempDir;

use crate::support::client::request_head;
use crate::support::nix::hash_part;
use crate::support::server::{BINARY, traced};
use crate::support::{Connection, Narwire, assert_same_bytes, eventually, fixture};

/// Threads that walk for NARs; and workers, each of which has a walk of its own of the same tree.
const WALKS: usize = 8;
/// Threads that walk for listings.
const LISTINGS: usize = 4;

/// A server to which each look at a file takes so long that the widest tree takes a quarter of an hour, and where its looks are noted.
fn serve_on_a_slow_disk() -> (Narwire, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = traced(&folder.path().join("log"), &["preadv2,newfstatat,statx:delay_enter=20000"]);
    command.arg(BINARY).args(fixture().store.flags());
    let server = Narwire::spawn(command.args(["--workers", &WALKS.to_string(), "--listen", "127.0.0.1:0"]));
    server.wait_for("listening on");
    (server, folder)
}

/// How many threads have looked at many files.
fn walking(folder: &TempDir) -> usize {
    let mut looks = HashMap::new();
    for line in fs::read_to_string(folder.path().join("log")).unwrap_or_default().lines() {
        *looks.entry(line.split(' ').next().unwrap_or_default().to_owned()).or_insert(0) += 1;
    }
    looks.values().filter(|&&looks| looks > 30).count()
}

/// Asks for the widest tree until all of so many threads are at work on it, does something, goes, and asks for something else that needs
/// such a thread.
fn asked_for_and_left(threads: usize, target: impl Fn(&Narwire) -> String, meanwhile: impl Fn(&Narwire)) {
    let (server, folder) = serve_on_a_slow_disk();
    let (target, small) = (target(&server), server.nar_target(hash_part(fixture().path("small"))));
    let wanted = server.get(&small).expect(200).body;
    let before = server.descriptors();
    let mut clients: Vec<_> = (0..2 * threads).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(request_head("GET", &target, &[]));
    }
    eventually("every thread walks", || walking(&folder) >= threads);
    meanwhile(&server);
    clients.into_iter().for_each(Connection::reset);
    server.get("/health").expect(200);
    let listing = server.get(&format!("/{}.ls", hash_part(fixture().path("odd")))).expect(200);
    assert!(!listing.body.is_empty());
    assert_same_bytes(&server.get(&small).expect(200).body, &wanted, "another path");
    eventually("nothing is left", || server.descriptors() <= before);
}

#[test]
fn nars_that_were_asked_for_and_left_keep_no_thread() {
    let look = |server: &Narwire| {
        // Who watches the server sees why.
        let metrics = server.get("/metrics").expect(200);
        assert!(metrics.text().contains("narwire_plane_queue_length{plane=\"walk\"}"));
    };
    asked_for_and_left(WALKS, |server| server.nar_target(hash_part(fixture().path("many"))), look);
}

#[test]
fn listings_that_were_asked_for_keep_no_nar_waiting_and_once_left_no_thread() {
    let listing = |_: &Narwire| format!("/{}.ls", hash_part(fixture().path("many")));
    asked_for_and_left(LISTINGS, listing, |server| {
        server.get(&server.nar_target(hash_part(fixture().path("odd")))).expect(200);
        server.get("/health").expect(200);
    });
}
