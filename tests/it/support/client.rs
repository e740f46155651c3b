//! A raw HTTP/1.1 client: the test decides every byte that is sent, and sees every byte that comes back.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use super::{PATIENCE, assert_same_bytes};

pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    /// How it has ended: by a reset, or as it should.
    is_reset: bool,
}

/// One answer. A body that ended before its length is in `body` as far as it came, with `complete` false.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub version: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub complete: bool,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    /// The same where nobody may listen any more.
    pub fn try_open(address: SocketAddr) -> Option<Self> {
        TcpStream::connect(address).ok().map(Self::over)
    }

    /// The same over a connection that is there.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, received: Vec::new(), is_reset: false }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends what the server may refuse to read to the end.
    pub fn send_if_wanted(&mut self, bytes: impl AsRef<[u8]>) {
        let _refused = self.stream.write_all(bytes.as_ref());
    }

    /// Half-close: nothing more will be sent, answers are still read.
    pub fn finish_sending(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// The same where the server may have ended the connection.
    pub fn finish_sending_if_wanted(&self) {
        let _ended = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection as a process does that is killed with data unread, or a machine that was started again: by a reset.
    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO)).unwrap();
    }

    /// A request with `Host` and the given fields, on a connection that stays open.
    pub fn request(&mut self, method: &str, target: &str, fields: &[(&str, &str)]) -> Reply {
        self.send(request_head(method, target, fields));
        self.reply_to(method)
    }

    pub fn get(&mut self, target: &str) -> Reply {
        self.request("GET", target, &[])
    }

    /// A request with a body whose length is said. A server that refuses the body may not read it to its end.
    pub fn upload(&mut self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Reply {
        self.try_upload(method, target, fields, body).expect("the connection ended instead of an answer")
    }

    /// The same where the server may also end the connection instead of an answer.
    pub fn try_upload(
        &mut self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Option<Reply> {
        let len = body.len().to_string();
        self.send_if_wanted(request_head(
            method,
            target,
            &[&[("Content-Length", len.as_str())], fields].concat(),
        ));
        self.send_if_wanted(body);
        self.try_reply_to(method)
    }

    pub fn put(&mut self, target: &str, body: impl AsRef<[u8]>) -> Reply {
        self.upload("PUT", target, &[], body.as_ref())
    }

    /// A request without a body, where the server may also end the connection instead of an answer.
    pub fn try_request(&mut self, method: &str, target: &str, fields: &[(&str, &str)]) -> Option<Reply> {
        self.send_if_wanted(request_head(method, target, fields));
        self.try_reply_to(method)
    }

    /// The next answer, whole.
    pub fn reply_to(&mut self, method: &str) -> Reply {
        self.try_reply_to(method).expect("the connection ended instead of an answer")
    }

    fn try_reply_to(&mut self, method: &str) -> Option<Reply> {
        let mut reply = self.head()?;
        if method == "HEAD" || reply.status == 304 || reply.status == 204 {
            return Some(reply);
        }
        if let Some(coding) = reply.field("transfer-encoding") {
            assert_eq!((coding, reply.field("content-length")), ("chunked", None));
            (reply.body, reply.complete) = self.chunks();
        } else if let Some(len) = reply.field("content-length").map(|len| len.parse::<usize>().unwrap()) {
            while self.received.len() < len && self.receive() {}
            reply.complete = self.received.len() >= len;
            reply.body = self.received.drain(..len.min(self.received.len())).collect();
        } else {
            reply.body = self.rest();
        }
        Some(reply)
    }

    /// Only the head of the next answer, or `None` when the connection ends first. The body stays to be read.
    pub fn head(&mut self) -> Option<Reply> {
        let end = loop {
            if let Some(end) = self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            if !self.receive() {
                assert!(
                    self.received.is_empty(),
                    "half a head: {:?}",
                    String::from_utf8_lossy(&self.received)
                );
                return None;
            }
        };
        let head: Vec<u8> = self.received.drain(..end + 4).collect();
        Some(Reply::parse_head(std::str::from_utf8(&head[..end]).unwrap()))
    }

    /// The body in chunks of an answer whose head was read.
    #[track_caller]
    pub fn chunked_rest(&mut self) -> Vec<u8> {
        let (body, is_complete) = self.chunks();
        assert!(is_complete, "the body ended after {} bytes", body.len());
        body
    }

    /// A body in chunks, and whether the last one came.
    fn chunks(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        loop {
            let line_len = loop {
                if let Some(len) = self.received.windows(2).position(|window| window == b"\r\n") {
                    break len;
                }
                if !self.receive() {
                    return (body, false);
                }
            };
            let line = str::from_utf8(&self.received[..line_len]).unwrap();
            let len = usize::from_str_radix(line, 16).unwrap_or_else(|_| panic!("no chunk size: {line:?}"));
            self.received.drain(..line_len + 2);
            while self.received.len() < len + 2 && self.receive() {}
            let is_whole = self.received.len() >= len + 2;
            body.extend(self.received.drain(..len.min(self.received.len())));
            if !is_whole {
                return (body, false);
            }
            assert_eq!(self.received.drain(..2).collect::<Vec<_>>(), b"\r\n", "behind a chunk");
            if len == 0 {
                return (body, true);
            }
        }
    }

    /// All bytes until the server closes, or resets, the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.receive() {}
        std::mem::take(&mut self.received)
    }

    /// So many bytes, or less if the connection ends.
    pub fn rest_of(&mut self, len: usize) -> Vec<u8> {
        while self.received.len() < len && self.receive() {}
        self.received.drain(..len.min(self.received.len())).collect()
    }

    /// The same, compared while they come, so that many can be received at once.
    pub fn expect_rest(&mut self, wanted: &[u8]) {
        let mut position = 0;
        loop {
            let piece = std::mem::take(&mut self.received);
            let rest = &wanted[position..];
            assert_same_bytes(&piece, &rest[..piece.len().min(rest.len())], "the rest of a body");
            position += piece.len();
            if !self.receive() {
                assert_eq!(position, wanted.len(), "the length of the body");
                return;
            }
        }
    }

    /// Takes what has come of a body, without waiting for more; gives how much it is. Bytes.
    pub fn received_so_far(&mut self) -> usize {
        self.stream.set_nonblocking(true).unwrap();
        let mut buffer = vec![0; 256 * 1024];
        while let Ok(len @ 1..) = self.stream.read(&mut buffer) {
            self.received.extend_from_slice(&buffer[..len]);
        }
        self.stream.set_nonblocking(false).unwrap();
        self.received.len()
    }

    /// Whether the server has closed the connection, with nothing more said.
    pub fn ends(&mut self) -> bool {
        self.received.is_empty() && !self.receive()
    }

    /// Whether the server has reset the connection.
    pub fn was_reset(&self) -> bool {
        self.is_reset
    }

    fn receive(&mut self) -> bool {
        let mut buffer = vec![0; 256 * 1024];
        let received = loop {
            match self.stream.read(&mut buffer) {
                // A read with a timeout is not begun again by the kernel after the process was stopped or frozen: signal(7).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => break received,
            }
        };
        match received {
            Ok(len) => {
                self.received.extend_from_slice(&buffer[..len]);
                len > 0
            }
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                self.is_reset = true;
                false
            }
            Err(error) => panic!("no answer and no end of the connection: {error}"),
        }
    }
}

impl Reply {
    fn parse_head(head: &str) -> Self {
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap();
        let mut words = status_line.splitn(3, ' ');
        let version = words.next().unwrap().to_owned();
        let status = words.next().and_then(|word| word.parse().ok());
        let fields = lines.map(|line| {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no field: {line:?}"));
            (name.to_ascii_lowercase(), value.trim().to_owned())
        });
        Self {
            status: status.unwrap_or_else(|| panic!("no status line: {status_line:?}")),
            version,
            fields: fields.collect(),
            body: Vec::new(),
            complete: true,
        }
    }

    /// A field's value by its lower-case name; a field sent twice is a fault of the server.
    #[track_caller]
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut values =
            self.fields.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str());
        let first = values.next();
        assert!(values.next().is_none(), "{name} twice in {:?}", self.fields);
        first
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The status, and a body that came whole.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(
            self.status,
            status,
            "{:?} {}",
            self.fields,
            String::from_utf8_lossy(&self.body[..self.body.len().min(300)])
        );
        assert!(self.complete, "the body ended after {} bytes: {:?}", self.body.len(), self.fields);
        self
    }

    /// Absence as clients should hear it: a short text that no cache keeps.
    #[track_caller]
    pub fn expect_absent(self) -> Self {
        let reply = self.expect(404);
        assert_eq!(reply.field("cache-control"), Some("no-store"));
        assert_eq!(reply.field("content-type"), Some("text/plain; charset=utf-8"));
        assert!(reply.body.len() < 1024, "Nix shows only error bodies below 1 KiB");
        reply
    }
}

/// A body in chunks of so many bytes, with all that a client may say besides.
pub fn chunked(body: &[u8], len: usize) -> Vec<u8> {
    let mut framed = Vec::new();
    for (index, chunk) in body.chunks(len).enumerate() {
        let extension = if index == 0 { "; name=\"value\"" } else { "" };
        framed.extend_from_slice(format!("{:X}{extension}\r\n", chunk.len()).as_bytes());
        framed.extend_from_slice(chunk);
        framed.extend_from_slice(b"\r\n");
    }
    framed.extend_from_slice(b"0\r\nTrailer: yes\r\n\r\n");
    framed
}

pub fn request_head(method: &str, target: &str, fields: &[(&str, &str)]) -> String {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: cache.test\r\n");
    for (name, value) in fields {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head + "\r\n"
}
