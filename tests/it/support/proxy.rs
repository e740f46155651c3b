//! A proxy that cuts connections: what a bad network does to a download, and to an upload.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Passes bytes between clients and one server. The first connections that ask for a NAR are cut after a given count
/// of bytes on the way to the client, or those that send one on the way to the server, one count for each; all later ones
/// are left alone.
pub struct CuttingProxy {
    address: SocketAddr,
    cuts: Arc<Mutex<VecDeque<u64>>>,
}

/// What is cut, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// A download, both connections of which are ended.
    Download,
    /// An upload, likewise.
    Upload,
    /// An upload of which nothing more is passed on, though the client may send it: so it is under way until the client ends.
    HeldUpload,
}

impl CuttingProxy {
    pub fn start(server: SocketAddr, cuts: impl IntoIterator<Item = u64>) -> Self {
        Self::spawn(server, Cut::Download, cuts)
    }

    /// Cuts those who send NARs.
    pub fn for_uploads(server: SocketAddr, cuts: impl IntoIterator<Item = u64>) -> Self {
        Self::spawn(server, Cut::Upload, cuts)
    }

    /// Lets the first who sends a NAR think that it is on its way, when no more than this many bytes are.
    pub fn holding_upload(server: SocketAddr, len: u64) -> Self {
        Self::spawn(server, Cut::HeldUpload, [len])
    }

    fn spawn(server: SocketAddr, cut: Cut, cuts: impl IntoIterator<Item = u64>) -> Self {
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
                thread::spawn(move || relay(&client, &upstream, cut, &cuts));
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
fn relay(client: &TcpStream, upstream: &TcpStream, cut: Cut, cuts: &Mutex<VecDeque<u64>>) {
    let left = Mutex::new(None);
    let request: &[u8] = if cut == Cut::Download { b"GET /nar/" } else { b"PUT /nar/" };
    thread::scope(|scope| {
        scope.spawn(|| {
            pump(client, upstream, cut == Cut::HeldUpload, |bytes| {
                if bytes.starts_with(request) {
                    *left.lock().unwrap() = cuts.lock().unwrap().pop_front();
                }
                if cut == Cut::Download { bytes.len() } else { pass(&left, bytes) }
            });
            let _closed = upstream.shutdown(Shutdown::Both);
        });
        pump(
            upstream,
            client,
            false,
            |bytes| {
                if cut == Cut::Download { pass(&left, bytes) } else { bytes.len() }
            },
        );
        let _closed = (client.shutdown(Shutdown::Both), upstream.shutdown(Shutdown::Both));
    });
}

/// How many of these bytes go on.
fn pass(left: &Mutex<Option<u64>>, bytes: &[u8]) -> usize {
    match &mut *left.lock().unwrap() {
        None => bytes.len(),
        Some(left) => {
            let passed = bytes.len().min(usize::try_from(*left).unwrap());
            *left -= passed as u64;
            passed
        }
    }
}

/// Copies until the end, or until `passes` lets less than all of a piece through: then the rest is read and dropped if it is `held`.
fn pump(mut from: &TcpStream, mut to: &TcpStream, is_held: bool, mut passes: impl FnMut(&[u8]) -> usize) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let passed = passes(&buffer[..len]);
        if to.write_all(&buffer[..passed]).is_err() || (passed < len && !is_held) {
            return;
        }
    }
}
