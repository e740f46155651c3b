//! Response heads, in two parts that are written at different times.
//!
//! The status line, `Date` and `Connection` belong to one response on one connection ([`write_head_start`]). All other
//! fields and the blank line belong to the entity: they are rendered once ([`Fields`]) and kept with it.

use std::fmt::{Display, Write};
use std::ops::Range;

use bytes::{BufMut, Bytes};

use super::field::ETag;
use super::{Method, Status, Version};

/// The longest line of [`Status::line`]. Bytes.
pub const STATUS_LINE_LEN_MAX: usize = 48;
/// What [`write_head_start`] writes at most. Bytes.
pub const HEAD_START_LEN_MAX: usize =
    STATUS_LINE_LEN_MAX + "Date: \r\n".len() + 29 + CONNECTION_KEEP_ALIVE.len();
/// The interim response to `Expect: 100-continue`, whole.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The last field and the blank line of a head whose body comes in chunks; never for HTTP/1.0.
pub const CHUNKED_HEAD_END: &[u8] = b"Transfer-Encoding: chunked\r\n\r\n";

const CONNECTION_CLOSE: &[u8] = b"Connection: close\r\n";
const CONNECTION_KEEP_ALIVE: &[u8] = b"Connection: keep-alive\r\n";

/// What a response says about its connection (RFC 9112 section 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// The connection lives on, as the version has it: nothing needs to be said.
    Implied,
    /// An HTTP/1.0 client asked to keep the connection.
    KeepAlive,
    /// The server closes after this response.
    Close,
}

impl Persistence {
    /// What to say to a client of this version when the connection is kept or closed.
    pub fn new(version: Version, is_kept: bool) -> Self {
        match (is_kept, version) {
            (false, _) => Self::Close,
            (true, Version::Http10) => Self::KeepAlive,
            (true, Version::Http11) => Self::Implied,
        }
    }
}

/// Writes the status line, `Date` and, where it needs saying, `Connection`. The rendered [`Fields`] follow.
///
/// At most [`HEAD_START_LEN_MAX`] bytes; panics, as [`BufMut`] does, when a buffer of fixed size has less room.
pub fn write_head_start(out: &mut impl BufMut, status: Status, date: &[u8; 29], persistence: Persistence) {
    out.put_slice(status.line().as_bytes());
    out.put_slice(b"Date: ");
    out.put_slice(date);
    out.put_slice(b"\r\n");
    match persistence {
        Persistence::Implied => {}
        Persistence::KeepAlive => out.put_slice(CONNECTION_KEEP_ALIVE),
        Persistence::Close => out.put_slice(CONNECTION_CLOSE),
    }
}

/// What follows the head of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A body, with `Content-Length` or chunked.
    Body,
    /// Nothing, but the fields say what GET would have had, `Content-Length` included: the answer to HEAD
    /// (RFC 9110 section 9.3.2).
    FieldsOnly,
    /// Nothing, and no `Content-Length`: 204 must not have it (RFC 9110 section 8.6), 304 need not repeat it
    /// (section 15.4.5).
    Nothing,
}

impl Content {
    /// What follows the head of the answer `status` to `method` (RFC 9112 section 6.3).
    pub fn of(method: Method, status: Status) -> Self {
        match (status, method) {
            (Status::NoContent | Status::NotModified, _) => Self::Nothing,
            (_, Method::Head) => Self::FieldsOnly,
            _ => Self::Body,
        }
    }
}

/// What stands in a chunked body before each chunk and behind the last one (RFC 9112 section 7.1): the line end of the chunk before,
/// if there is one, and the size of the next, in bytes. A size of 0 ends the body.
pub fn chunk_separator(is_first: bool, len: u64) -> String {
    let line_end = if is_first { "" } else { "\r\n" };
    let blank_line = if len == 0 { "\r\n" } else { "" };
    format!("{line_end}{len:x}\r\n{blank_line}")
}

/// How long caches may keep a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheControl {
    /// `no-store`: absence and errors pass.
    NoStore,
    /// `max-age`, in seconds.
    MaxAge(u32),
}

/// The fields of an entity, being rendered. Every value comes from this program, none from a peer.
#[derive(Debug)]
#[must_use = "fields are only sent once finished"]
pub struct Fields {
    text: String,
}

impl Default for Fields {
    fn default() -> Self {
        Self::new()
    }
}

impl Fields {
    /// No fields yet.
    pub fn new() -> Self {
        Self { text: String::with_capacity(256) }
    }

    /// `Content-Type`.
    pub fn content_type(self, media_type: &'static str) -> Self {
        self.field("Content-Type", media_type)
    }

    /// `Content-Length`, in bytes.
    pub fn content_length(self, len_bytes: u64) -> Self {
        self.formatted("Content-Length", len_bytes)
    }

    /// `Content-Encoding`.
    pub fn content_encoding(self, coding: &'static str) -> Self {
        self.field("Content-Encoding", coding)
    }

    /// `ETag`.
    pub fn etag(self, etag: &ETag) -> Self {
        self.field("ETag", etag.as_str())
    }

    /// `Cache-Control`.
    pub fn cache_control(self, cache_control: CacheControl) -> Self {
        match cache_control {
            CacheControl::NoStore => self.field("Cache-Control", "no-store"),
            CacheControl::MaxAge(seconds) => {
                self.formatted("Cache-Control", format_args!("max-age={seconds}"))
            }
        }
    }

    /// `Accept-Ranges: bytes`. Nix resumes only what says so, and a 206 must repeat it.
    pub fn accept_ranges(self) -> Self {
        self.field("Accept-Ranges", "bytes")
    }

    /// `Content-Range` of a 206: `range` is not empty and within `complete_len` bytes.
    pub fn content_range(self, range: &Range<u64>, complete_len: u64) -> Self {
        debug_assert!(range.start < range.end && range.end <= complete_len);
        let (first, last) = (range.start, range.end.saturating_sub(1));
        self.formatted("Content-Range", format_args!("bytes {first}-{last}/{complete_len}"))
    }

    /// `Content-Range` of a 416: how long the representation is.
    pub fn content_range_unsatisfied(self, complete_len: u64) -> Self {
        self.formatted("Content-Range", format_args!("bytes */{complete_len}"))
    }

    /// `Vary`.
    pub fn vary(self, field_names: &'static str) -> Self {
        self.field("Vary", field_names)
    }

    /// `Allow`, which 405 must have: for example `GET, HEAD`.
    pub fn allow(self, methods: &'static str) -> Self {
        self.field("Allow", methods)
    }

    /// `Retry-After`, in seconds.
    pub fn retry_after(self, seconds: u32) -> Self {
        self.formatted("Retry-After", seconds)
    }

    /// `WWW-Authenticate`, which 401 must have.
    pub fn www_authenticate(self, challenge: &'static str) -> Self {
        self.field("WWW-Authenticate", challenge)
    }

    /// `Location`: a URL without characters that mean anything to a head ([`super::route::encode_escapes`]).
    pub fn location(self, url: &str) -> Self {
        debug_assert!(url.bytes().all(|byte| byte.is_ascii_graphic()));
        self.field("Location", url)
    }

    /// `Cross-Origin-Resource-Policy: same-origin`: no page of another site gets it as a picture or a script.
    pub fn same_origin(self) -> Self {
        self.field("Cross-Origin-Resource-Policy", "same-origin")
    }

    /// `Content-Security-Policy`: what a page may load and run.
    pub fn content_security_policy(self, policy: &str) -> Self {
        self.field("Content-Security-Policy", policy)
    }

    /// `X-Content-Type-Options: nosniff`: the media type is what it says, whatever the bytes look like.
    pub fn no_sniff(self) -> Self {
        self.field("X-Content-Type-Options", "nosniff")
    }

    /// `Referrer-Policy`: what other sites are told of the page that a link to them is on.
    pub fn referrer_policy(self, policy: &'static str) -> Self {
        self.field("Referrer-Policy", policy)
    }

    /// The fields and the blank line.
    pub fn finish(mut self) -> Bytes {
        self.text.push_str("\r\n");
        Bytes::from(self.text)
    }

    /// The fields alone, for others to follow.
    pub fn unfinished(self) -> Bytes {
        Bytes::from(self.text)
    }

    fn field(mut self, name: &str, value: &str) -> Self {
        for part in [name, ": ", value, "\r\n"] {
            self.text.push_str(part);
        }
        self
    }

    fn formatted(mut self, name: &str, value: impl Display) -> Self {
        // Writing to a String cannot fail.
        let _ = write!(self.text, "{name}: {value}\r\n");
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &[u8; 29] = b"Sun, 06 Nov 1994 08:49:37 GMT";

    fn head_start(status: Status, persistence: Persistence) -> String {
        let mut out = Vec::new();
        write_head_start(&mut out, status, DATE, persistence);
        assert!(out.len() <= HEAD_START_LEN_MAX);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn head_starts() {
        let date = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
        assert_eq!(head_start(Status::Ok, Persistence::Implied), format!("HTTP/1.1 200 OK\r\n{date}"));
        assert_eq!(
            head_start(Status::NotFound, Persistence::KeepAlive),
            format!("HTTP/1.1 404 Not Found\r\n{date}Connection: keep-alive\r\n")
        );
        assert_eq!(
            head_start(Status::BadRequest, Persistence::Close),
            format!("HTTP/1.1 400 Bad Request\r\n{date}Connection: close\r\n")
        );
        for status in Status::ALL {
            head_start(status, Persistence::KeepAlive);
        }
    }

    #[test]
    fn persistence_is_said_where_the_version_does_not_imply_it() {
        assert_eq!(Persistence::new(Version::Http11, true), Persistence::Implied);
        assert_eq!(Persistence::new(Version::Http10, true), Persistence::KeepAlive);
        assert_eq!(Persistence::new(Version::Http11, false), Persistence::Close);
        assert_eq!(Persistence::new(Version::Http10, false), Persistence::Close);
    }

    #[test]
    fn contents() {
        assert_eq!(Content::of(Method::Get, Status::Ok), Content::Body);
        assert_eq!(Content::of(Method::Get, Status::NotFound), Content::Body);
        assert_eq!(Content::of(Method::Head, Status::NotFound), Content::FieldsOnly);
        assert_eq!(Content::of(Method::Head, Status::NotModified), Content::Nothing);
        assert_eq!(Content::of(Method::Get, Status::NotModified), Content::Nothing);
        assert_eq!(Content::of(Method::Put, Status::NoContent), Content::Nothing);
        assert_eq!(Content::of(Method::Put, Status::Created), Content::Body);
    }

    #[test]
    fn fields() {
        let etag = ETag::new(b"a").unwrap();
        let fields = Fields::new()
            .content_type("text/plain")
            .content_length(u64::MAX)
            .content_encoding("zstd")
            .etag(&etag)
            .cache_control(CacheControl::NoStore)
            .cache_control(CacheControl::MaxAge(86_400))
            .accept_ranges()
            .content_range(&(3..10), 10)
            .content_range_unsatisfied(10)
            .vary("Accept-Encoding")
            .allow("GET, HEAD")
            .retry_after(1)
            .www_authenticate("Basic realm=\"cache\"")
            .location("/a%20b")
            .same_origin()
            .content_security_policy("default-src 'none'")
            .no_sniff()
            .referrer_policy("no-referrer")
            .finish();
        let expected = "Content-Type: text/plain\r\nContent-Length: 18446744073709551615\r\nContent-Encoding: zstd\r\n\
            ETag: \"a\"\r\nCache-Control: no-store\r\nCache-Control: max-age=86400\r\n\
            Accept-Ranges: bytes\r\nContent-Range: bytes 3-9/10\r\nContent-Range: bytes */10\r\n\
            Vary: Accept-Encoding\r\nAllow: GET, HEAD\r\nRetry-After: 1\r\n\
            WWW-Authenticate: Basic realm=\"cache\"\r\nLocation: /a%20b\r\nCross-Origin-Resource-Policy: same-origin\r\n\
            Content-Security-Policy: default-src 'none'\r\n\
            X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\r\n";
        assert_eq!(fields, expected);
        assert_eq!(Fields::new().finish(), "\r\n");
    }

    #[test]
    fn chunks() {
        let mut body = String::new();
        for (is_first, chunk) in [(true, "a"), (false, "0123456789abcdefg"), (false, "")] {
            body.push_str(&chunk_separator(is_first, chunk.len() as u64));
            body.push_str(chunk);
        }
        assert_eq!(body, "1\r\na\r\n11\r\n0123456789abcdefg\r\n0\r\n\r\n");
        assert_eq!(chunk_separator(true, 0), "0\r\n\r\n");
    }

    #[test]
    fn a_response_reads_back() {
        let mut out = Vec::new();
        write_head_start(&mut out, Status::NotFound, DATE, Persistence::Close);
        out.extend_from_slice(&Fields::new().content_type("text/plain").content_length(3).finish());
        let mut headers = [httparse::EMPTY_HEADER; 8];
        let mut response = httparse::Response::new(&mut headers);
        assert_eq!(response.parse(&out), Ok(httparse::Status::Complete(out.len())));
        assert_eq!((response.code, response.reason), (Some(404), Some("Not Found")));
        let names: Vec<&str> = response.headers.iter().map(|header| header.name).collect();
        assert_eq!(names, ["Date", "Connection", "Content-Type", "Content-Length"]);
    }
}
