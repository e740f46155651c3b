//! A proxy that cuts connections: what a bad network does to a download.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Passes bytes between clients and one server. The first connections that ask for a NAR are cut after a given count
/// of bytes on the way to the client, one count for each; all later ones are left alone.
pub struct CuttingProxy {
    address: SocketAddr,
    cuts: Arc<Mutex<VecDeque<u64>>>,
}

impl CuttingProxy {
    pub fn start(server: SocketAddr, cuts: impl IntoIterator<Item = u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let cuts = Arc::new(Mutex::new(cuts.into_iter().collect()));
        let shared = Arc::clone(&cuts);
        // The thread and its port live until the test program ends; nobody waits for them.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (Ok(upstream), cuts) = (TcpStream::connect(server), Arc::clone(&shared)) else {
                    continue;
                };
                thread::spawn(move || relay(&client, &upstream, &cuts));
            }
        });
        Self { address, cuts }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many cuts are still to come.
    pub fn cuts_left(&self) -> usize {
        self.cuts.lock().unwrap().len()
    }
}

/// Requests come one at a time on a connection (no client here pipelines), so a request for a NAR starts the count.
fn relay(client: &TcpStream, upstream: &TcpStream, cuts: &Mutex<VecDeque<u64>>) {
    let left = Mutex::new(None);
    thread::scope(|scope| {
        scope.spawn(|| {
            pump(client, upstream, |bytes| {
                if bytes.starts_with(b"GET /nar/") {
                    *left.lock().unwrap() = cuts.lock().unwrap().pop_front();
                }
                bytes.len()
            });
            let _closed = upstream.shutdown(Shutdown::Both);
        });
        pump(upstream, client, |bytes| match &mut *left.lock().unwrap() {
            None => bytes.len(),
            Some(left) => {
                let passed = bytes.len().min(usize::try_from(*left).unwrap());
                *left -= passed as u64;
                passed
            }
        });
        let _closed = (client.shutdown(Shutdown::Both), upstream.shutdown(Shutdown::Both));
    });
}

/// Copies until the end, or until `passes` lets less than all of a piece through.
fn pump(mut from: &TcpStream, mut to: &TcpStream, mut passes: impl FnMut(&[u8]) -> usize) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let passed = passes(&buffer[..len]);
        if to.write_all(&buffer[..passed]).is_err() || passed < len {
            return;
        }
    }
}
