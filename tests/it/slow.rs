//! Clients that stop reading: Nix does it for minutes, when the disk it writes to is slow.

use std::thread;

use crate::support::client::request_head;
use crate::support::fixture::LARGE_LEN;
use crate::support::nix::hash_part;
use crate::support::{Narwire, assert_same_bytes, fixture};

/// Clients that stop reading at the same time.
const CLIENTS: usize = 100;

/// Stops that many downloads of a path in the middle, serves others meanwhile, and goes on.
fn stop_and_go_on(server: &Narwire, name: &str, clients: usize) {
    let fixture = fixture();
    let target = server.nar_target(hash_part(fixture.path(name)));
    let wanted = fixture.store.dump(fixture.path(name));
    let mut stopped: Vec<_> = (0..clients).map(|_| server.connect()).collect();
    for connection in &mut stopped {
        connection.send(request_head("GET", &target, &[("Connection", "close")]));
        connection.head().unwrap().expect(200);
    }
    for other in ["small", "odd", name] {
        let body = server.nar(hash_part(fixture.path(other))).expect(200).body;
        assert_same_bytes(&body, &fixture.store.dump(fixture.path(other)), other);
    }
    thread::scope(|scope| {
        for share in stopped.chunks_mut(clients.div_ceil(4)) {
            let wanted = &wanted;
            scope.spawn(move || share.iter_mut().for_each(|connection| connection.expect_rest(wanted)));
        }
    });
}

#[test]
fn clients_that_stop_in_the_middle_of_a_large_file_get_the_right_bytes_in_the_end() {
    const { assert!(LARGE_LEN > 32 * 1024 * 1024, "more than any socket buffer holds") };
    stop_and_go_on(&fixture().store.serve(), "large", CLIENTS);
}

#[test]
fn clients_that_stop_in_the_middle_of_many_files_get_the_right_bytes_in_the_end() {
    stop_and_go_on(&fixture().store.serve(), "many", 10);
}

#[test]
fn clients_that_never_go_on_leave_nothing_behind() {
    let (fixture, server) = (fixture(), fixture().store.serve());
    let target = server.nar_target(hash_part(fixture.path("large")));
    server.get(&target).expect(200);
    let before = server.descriptors();
    let mut stopped: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    for connection in &mut stopped {
        connection.send(request_head("GET", &target, &[]));
        connection.head().unwrap().expect(200);
    }
    drop(stopped);
    crate::support::eventually("every descriptor is closed", || server.descriptors() <= before);
}
