//! A new process in the place of the old one while clients ask. Somebody else holds the socket, as a service manager does.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustix::process::Signal;

use crate::support::client::request_head;
use crate::support::nix::hash_part;
use crate::support::{Connection, Narwire, Nix, Store, assert_same_bytes, eventually, fixture};

const RESTARTS: usize = 3;
/// Requests that are answered between two restarts.
const ANSWERS: usize = 300;

/// Ends a process as `systemctl restart` does, while the next one starts only when it has gone.
fn restart(server: &mut Narwire, socket: &TcpListener) {
    server.signal(Signal::TERM);
    assert_eq!(server.exit().code(), Some(0), "{}", server.output());
    *server = Narwire::start_activated(socket, fixture().store.flags());
}

#[test]
fn no_request_is_lost_when_the_process_is_replaced_under_load() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let fixture = fixture();
    let mut server = Narwire::start_activated(&socket, fixture.store.flags());
    let (small, large) = (fixture.path("small"), fixture.path("large"));
    let targets = [
        "/nix-cache-info".to_owned(),
        format!("/{}.narinfo", hash_part(small)),
        server.nar_target(hash_part(small)),
    ];
    let (answers, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for client in 0..12 {
            let (targets, answers, is_over) = (&targets, &answers, &is_over);
            // A client that never asks a second time. Every third takes a new connection for each request; the others keep theirs until
            // they are told that it ends.
            scope.spawn(move || {
                let mut connection = None;
                for target in targets.iter().cycle() {
                    let mut kept = connection.take().unwrap_or_else(|| Connection::open(address));
                    let reply = kept.get(target).expect(200);
                    answers.fetch_add(1, Ordering::Relaxed);
                    let is_last =
                        reply.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
                    connection = (!is_last && client % 3 > 0).then_some(kept);
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        for _ in 0..RESTARTS {
            // Its client takes the head only, and the rest when the process that sends it is being replaced.
            let mut download = Connection::open(address);
            download.send(request_head("GET", &server.nar_target(hash_part(large)), &[]));
            download.head().unwrap().expect(200);
            let before = answers.load(Ordering::Relaxed);
            eventually("requests are answered", || answers.load(Ordering::Relaxed) > before + ANSWERS);
            let reader = scope.spawn(move || {
                thread::yield_now();
                download.rest()
            });
            restart(&mut server, &socket);
            assert_same_bytes(&reader.join().unwrap(), &fixture.store.dump(large), "what was on its way");
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_client_that_copies_does_not_notice() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let fixture = fixture();
    let flags = || [fixture.store.flags(), fixture.key.flags()].concat();
    let url = format!("http://{}", socket.local_addr().unwrap());
    for nix in Nix::all() {
        let mut server = Narwire::start_activated(&socket, flags());
        let destination = Store::new(nix);
        thread::scope(|scope| {
            let copy = scope.spawn(|| destination.copy_from(&url, &fixture.key, &fixture.paths()));
            while !copy.is_finished() {
                server.signal(Signal::TERM);
                assert_eq!(server.exit().code(), Some(0), "{}", server.output());
                server = Narwire::start_activated(&socket, flags());
            }
            copy.join().unwrap();
        });
        destination.verify(&fixture.key);
    }
}
