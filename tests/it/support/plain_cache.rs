//! A binary cache that is a plain directory with GET, HEAD and PUT, as other people run it, and with faults on demand. It believes
//! whatever it is told, but remembers when it was told too early.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use tempfile::TempDir;

/// A request as it came, without its body.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Without the slash in front.
    pub name: String,
    pub authorization: Option<String>,
    len: usize,
    is_expecting: bool,
}

/// What is done instead of an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status, with this `Retry-After` if any, before the body is read.
    Status(u16, Option<&'static str>),
    /// This status, and that it is somewhere else, at this URL.
    Moved(u16, String),
    /// Half of the body is read, then the connection is reset.
    Reset,
    /// Nothing is said any more.
    Silence,
}

type Faults = dyn Fn(&Request) -> Option<Fault> + Send + Sync;

/// A running one; it ends with the value.
pub struct PlainCache {
    shared: Arc<Shared>,
    address: SocketAddr,
    _temporary: TempDir,
}

struct Shared {
    directory: PathBuf,
    requests: Mutex<Vec<Request>>,
    /// Narinfos that came before what they promise.
    broken_promises: Mutex<Vec<String>>,
    faults: Mutex<Box<Faults>>,
    is_ended: AtomicBool,
}

impl PlainCache {
    /// An empty one.
    pub fn start() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("cache");
        fs::create_dir(&directory).unwrap();
        let shared = Arc::new(Shared {
            directory,
            requests: Mutex::default(),
            broken_promises: Mutex::default(),
            faults: Mutex::new(Box::new(|_| None)),
            is_ended: AtomicBool::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let for_thread = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if for_thread.is_ended.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&for_thread);
                thread::spawn(move || shared.serve(&stream));
            }
        });
        Self { shared, address, _temporary: temporary }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// As Nix names the directory.
    pub fn file_url(&self) -> String {
        format!("file://{}", self.directory().display())
    }

    pub fn directory(&self) -> &Path {
        &self.shared.directory
    }

    /// From now on each request is asked whether something goes wrong with it.
    pub fn fail(&self, faults: impl Fn(&Request) -> Option<Fault> + Send + Sync + 'static) {
        *self.shared.faults.lock().unwrap() = Box::new(faults);
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The names of what was put so far, with this end; those that failed included.
    pub fn put(&self, suffix: &str) -> Vec<String> {
        let requests = self.requests().into_iter();
        requests
            .filter(|request| request.method == "PUT" && request.name.ends_with(suffix))
            .map(|request| request.name)
            .collect()
    }

    /// The names of all narinfos that are there.
    pub fn narinfos(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.ends_with(".narinfo")).collect();
        names.sort();
        names
    }

    /// The narinfo of a store path.
    #[track_caller]
    pub fn narinfo(&self, path: &str) -> String {
        fs::read_to_string(self.directory().join(format!("{}.narinfo", super::nix::hash_part(path)))).unwrap()
    }

    /// At no time was something promised that was not there.
    #[track_caller]
    pub fn assert_kept_its_promises(&self) {
        let broken = self.shared.broken_promises.lock().unwrap();
        assert!(broken.is_empty(), "{broken:?}");
    }
}

impl Drop for PlainCache {
    fn drop(&mut self) {
        self.shared.is_ended.store(true, Ordering::Relaxed);
        // Wakes who waits for connections.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn serve(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(request) = Request::read(&mut reader) {
            self.requests.lock().unwrap().push(request.clone());
            let fault = (self.faults.lock().unwrap())(&request);
            if self.answer(&request, fault.as_ref(), &mut reader, stream).is_none() {
                return;
            }
        }
    }

    /// `None` when the connection is over.
    fn answer(
        &self,
        request: &Request,
        fault: Option<&Fault>,
        reader: &mut impl Read,
        mut stream: &TcpStream,
    ) -> Option<()> {
        match fault {
            Some(Fault::Status(status, retry_after)) => {
                let field = retry_after.map(|value| format!("Retry-After: {value}\r\n")).unwrap_or_default();
                return refuse(request, *status, &field, reader, stream);
            }
            Some(Fault::Moved(status, url)) => {
                return refuse(request, *status, &format!("Location: {url}\r\n"), reader, stream);
            }
            Some(Fault::Reset) => {
                let _ = reader.read_exact(&mut vec![0; request.len / 2]);
                // With bytes unread, closing is a reset.
                return None;
            }
            Some(Fault::Silence) => {
                while !self.is_ended.load(Ordering::Relaxed) {
                    thread::sleep(std::time::Duration::from_millis(20));
                }
                return None;
            }
            None => {}
        }
        let path = self.directory.join(&request.name);
        let (status, body) = match request.method.as_str() {
            "PUT" => {
                if request.is_expecting {
                    stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
                }
                let mut body = vec![0; request.len];
                reader.read_exact(&mut body).ok()?;
                self.look_at(&request.name, &body);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                let mut draft = tempfile::NamedTempFile::new_in(self.directory.parent().unwrap()).unwrap();
                draft.write_all(&body).unwrap();
                draft.persist(&path).unwrap();
                (201, b"<html>created</html>".to_vec())
            }
            _ => fs::read(&path).map_or((404, b"not here\n".to_vec()), |body| (200, body)),
        };
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).ok()?;
        if request.method != "HEAD" {
            stream.write_all(&body).ok()?;
        }
        Some(())
    }

    /// A narinfo promises its NAR, and all that it refers to.
    fn look_at(&self, name: &str, body: &[u8]) {
        if !name.ends_with(".narinfo") {
            return;
        }
        let text = String::from_utf8(body.to_vec()).unwrap();
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_default()
        };
        let references =
            field("References").split_whitespace().map(|reference| format!("{}.narinfo", &reference[..32]));
        let promised = references.filter(|other| other != name).chain([field("URL").to_owned()]);
        for missing in promised.filter(|promised| !self.directory.join(promised).exists()) {
            self.broken_promises.lock().unwrap().push(format!("{name} came before {missing}"));
        }
    }
}

/// Says this status with this field, and ends the connection.
fn refuse(
    request: &Request,
    status: u16,
    field: &str,
    reader: &mut impl Read,
    mut stream: &TcpStream,
) -> Option<()> {
    let said = format!("the test wants {status}\n");
    let head =
        format!("HTTP/1.1 {status} No\r\n{field}Content-Length: {}\r\nConnection: close\r\n\r\n", said.len());
    stream.write_all((head + if request.method == "HEAD" { "" } else { &said }).as_bytes()).ok()?;
    // What still comes is read, or the answer would be lost with it.
    stream.shutdown(std::net::Shutdown::Write).ok()?;
    let _ = std::io::copy(reader, &mut std::io::sink());
    None
}

impl Request {
    /// `None` when there is no other.
    fn read(reader: &mut impl BufRead) -> Option<Self> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|len| *len > 0)?;
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let mut words = lines[0].split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?);
        let field = |name: &str| {
            let of = |line: &String| {
                line.split_once(':')
                    .filter(|(field, _)| field.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.trim().to_owned())
            };
            lines.iter().find_map(of)
        };
        Some(Self {
            method,
            name: target.trim_start_matches('/').to_owned(),
            authorization: field("authorization"),
            len: field("content-length").map_or(0, |len| len.parse().unwrap()),
            is_expecting: field("expect").is_some(),
        })
    }
}
