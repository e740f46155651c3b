//! The table of HTTP cases (`conformance/cases.txt`), against the real server: read-only, and open for uploads.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::upload::UploadDir;
use crate::support::{Connection, Narwire, fixture};

mod cases;

use cases::{CANARY, Case, cases};

/// Clients at the same time.
const CLIENTS: usize = 32;

/// Cuts of one request, at most; the simulated ring is asked with all of them.
const CUTS_MAX: usize = 8;

/// Pieces of a request that comes in drops, at most: each is a packet of its own.
const DROPS_MAX: usize = 200;

/// What lets a server read one packet before the next.
const PAUSE: Duration = Duration::from_micros(300);

/// Uploads are named after a number of their own.
static UPLOADS: AtomicUsize = AtomicUsize::new(0);

/// Whether the case uploads something, or would if the request were another.
fn is_of_upload(case: &Case) -> bool {
    case.request(0) != case.request(1)
}

/// The places at which the request and the canary are cut: at none, about each of the first line ends, in drops.
fn ways(len: usize, says: &[u8]) -> Vec<Vec<usize>> {
    let ends = (1..len).filter(|&at| says[at - 1] == b'\r' || says[at] == b'\r');
    let mut ways = vec![vec![]];
    ways.extend(ends.take(CUTS_MAX).map(|end| vec![end]));
    ways.push((1..len).step_by(len.div_ceil(DROPS_MAX)).collect());
    ways
}

/// What a server says to these bytes, sent in pieces.
fn answers(address: SocketAddr, says: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut connection = Connection::open(address);
    let mut start = 0;
    for &cut in cuts {
        connection.send_if_wanted(&says[start..cut]);
        thread::sleep(PAUSE);
        start = cut;
    }
    connection.send_if_wanted(&says[start..]);
    connection.finish_sending_if_wanted();
    let answers = connection.rest();
    assert!(!connection.was_reset(), "{}", says.escape_ascii());
    answers
}

fn judge_all(server: &Narwire, cases: Vec<Case>) {
    let address = server.address();
    let cases = Mutex::new(VecDeque::from(cases));
    let next = || cases.lock().unwrap().pop_front();
    let client = || {
        while let Some(case) = next() {
            let len = case.request(0).len() + CANARY.len();
            for cuts in ways(len, &[case.request(0), CANARY.into()].concat()) {
                let number = UPLOADS.fetch_add(1, Ordering::Relaxed);
                let says = [case.request(number), CANARY.into()].concat();
                let heard = answers(address, &says, &cuts);
                if let Err(fault) = case.judge(&heard) {
                    let (name, says, heard) = (case.name, says.escape_ascii(), heard.escape_ascii());
                    panic!("{name}, cut at {cuts:?}: {fault}\nsaid: {says}\nheard: {heard}");
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(client);
        }
    });
}

#[test]
fn every_case_is_answered_right_where_uploads_are_taken() {
    let directory = UploadDir::new();
    judge_all(&directory.serve(), cases());
    assert!(directory.staged().is_empty(), "{:?} is left behind", directory.staged());
}

#[test]
fn every_case_without_an_upload_is_answered_right_where_none_are_taken() {
    judge_all(&fixture().store.serve(), cases().into_iter().filter(|case| !is_of_upload(case)).collect());
}
