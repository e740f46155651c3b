//! The garbage collector at work while a path is served.

use crate::support::client::request_head;
use crate::support::nar_cache::{compressed, unpack};
use crate::support::nix::hash_part;
use crate::support::{Connection, Nix, Store, assert_same_bytes, eventually, fixture};

/// Files of a path that fills every buffer between the server and a client that does not read.
const FILES: usize = 400;
const FILE_LEN: usize = 100_000;

/// Collects garbage while a client has read the head of an answer and nothing else; gives what came in the end, what
/// should have come, and whether the collector had left the path alone.
fn collect_during_download(store: &Store) -> (Vec<u8>, Vec<u8>, bool) {
    let path = store.add_folder("served", FILES, FILE_LEN);
    let garbage = store.add_bytes("garbage", b"nobody asks for this");
    let wanted = store.dump(&path);
    let server = store.serve();
    let mut connection = Connection::open(server.address());
    connection.send(request_head("GET", &server.nar_target(hash_part(&path)), &[]));
    assert_eq!(connection.head().unwrap().status, 200);
    store.nix_store(&["--gc"]);
    assert!(!store.real(&garbage).exists(), "the collector did its work");
    let kept = store.real(&path).exists();
    connection.finish_sending();
    let received = connection.rest();
    if !kept {
        server.get(&format!("/{}.narinfo", hash_part(&path))).expect_absent();
    }
    (received, wanted, kept)
}

#[test]
fn a_path_on_its_way_to_a_client_is_kept() {
    for nix in Nix::all() {
        let store = Store::in_place(nix);
        let (received, wanted, kept) = collect_during_download(&store);
        assert!(kept, "the collector sees what the server holds open");
        assert_same_bytes(&received, &wanted, "the download");
    }
}

/// What is compressed on its way is read by another thread, long after the head has gone out.
#[test]
fn a_path_that_is_compressed_on_its_way_to_a_client_is_kept() {
    let store = Store::in_place(Nix::installed());
    let path = store.add_folder("served", FILES, FILE_LEN);
    let (wanted, server) = (store.dump(&path), store.serve());
    let mut connection = server.connect();
    connection.send(request_head("GET", &compressed(&server.nar_target(hash_part(&path))), &[]));
    assert_eq!(connection.head().unwrap().status, 200);
    store.nix_store(&["--gc"]);
    assert!(store.real(&path).exists(), "the collector sees what the server holds open");
    assert_same_bytes(&unpack(&connection.chunked_rest()), &wanted, "the download");
    drop(connection);
    eventually("the path is free again", || {
        store.nix_store(&["--gc"]);
        !store.real(&path).exists()
    });
    server.get(&format!("/{}.narinfo", hash_part(&path))).expect_absent();
}

#[test]
fn a_path_deleted_under_way_comes_whole_or_visibly_short() {
    for nix in Nix::all() {
        // The collector cannot see who uses a store whose paths are not where they say.
        let store = Store::new(nix);
        let (received, wanted, kept) = collect_during_download(&store);
        assert!(received == wanted || !kept, "why was it cut?");
        assert!(wanted.starts_with(&received), "a wrong byte was sent");
    }
}

#[test]
fn a_path_deleted_under_way_and_registered_again_is_there_at_once() {
    let store = Store::new(Nix::installed());
    let path = store.add_folder("served", FILES, FILE_LEN);
    let (wanted, server) = (store.dump(&path), store.serve());
    let target = server.nar_target(hash_part(&path));
    let mut connection = Connection::open(server.address());
    connection.send(request_head("GET", &target, &[]));
    assert_eq!(connection.head().unwrap().status, 200);
    store.delete(&path);
    assert!(connection.rest().len() < wanted.len(), "what is gone cannot have been sent");
    assert_eq!(store.add_folder("served", FILES, FILE_LEN), path);
    for _ in 0..10 {
        assert_same_bytes(&server.get(&target).expect(200).body, &wanted, "the download");
    }
}

#[test]
fn a_path_is_free_again_after_its_download() {
    let store = Store::in_place(Nix::installed());
    let path = store.add_folder("served", 20, 1000);
    let server = store.serve();
    let mut connection = server.connect();
    assert_same_bytes(
        &connection.get(&server.nar_target(hash_part(&path))).expect(200).body,
        &store.dump(&path),
        &path,
    );
    store.nix_store(&["--gc"]);
    assert!(!store.real(&path).exists(), "the server holds on to a path it no longer sends");
    connection.get(&format!("/{}.narinfo", hash_part(&path))).expect_absent();
}

#[test]
fn optimising_the_store_does_not_disturb_a_download() {
    let fixture = fixture();
    let store = Store::new(Nix::installed());
    let path = store.add_folder("served", FILES, FILE_LEN);
    store.add_folder("served-again", FILES, FILE_LEN);
    let server = store.serve_signed(&fixture.key);
    let mut connection = server.connect();
    connection.send(request_head("GET", &server.nar_target(hash_part(&path)), &[("Connection", "close")]));
    assert_eq!(connection.head().unwrap().status, 200);
    store.nix_store(&["--optimise"]);
    assert_same_bytes(&connection.rest(), &store.dump(&path), "the download");
}
