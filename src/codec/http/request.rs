//! The head of a request: strict, zero-copy, no allocation.
//!
//! ```text
//! head         = [ CRLF ] request-line *( field-line CRLF ) CRLF               RFC 9112 section 2.1, 2.2
//! request-line = token SP target SP "HTTP/" DIGIT "." DIGIT CRLF              RFC 9112 section 3
//! field-line   = token ":" OWS *( HTAB / SP / VCHAR / obs-text ) OWS           RFC 9112 section 5
//! ```
//!
//! Nothing is remembered between two calls but how far the blank line has been searched for: a head that is not whole
//! yet is read again later, and only its new bytes are scanned (a head that drips in byte by byte costs O(n)).
//! Whatever could be read in two ways is refused: line ends are CRLF, delimiters are one space, and a message whose
//! length could be disputed is no message.

use memchr::{memchr, memchr_iter, memrchr};

use super::class::{Class, Strangers, find, is_same_name};
use super::field::ListItems;
#[cfg(any(test, fuzzing))]
pub use super::oracle::fuzz_head;
use super::{Method, Status, Version};
use crate::limits::{HEAD_FIELDS_MAX, HEAD_LEN_MAX, REQUEST_LINE_LEN_MAX, TARGET_LEN_MAX};

/// What the bytes received so far are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "lives on the stack of one caller and is matched at once")]
pub enum Parsed<'a> {
    /// A head whose end has not arrived. Pass `scanned_len` to the next call, with the same bytes and more.
    Partial {
        /// Bytes of the buffer that need no second search.
        scanned_len: usize,
    },
    /// A whole head.
    Complete {
        /// The request; it borrows from the buffer.
        request: Request<'a>,
        /// Bytes of the buffer that the head takes. A body or the next request starts there.
        head_len: usize,
    },
}

/// A request head. Fields this server does not know were checked and dropped.
///
/// A public field holds the field's value without the white space around it, as it came. A single-valued field that
/// comes twice is refused (RFC 9110 section 5.3); where a repetition is accepted, the field says what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The method.
    pub method: Method,
    /// Path and query in origin form: begins with `/`, or is `*` (then the method is OPTIONS). Still percent-encoded,
    /// and made of the characters RFC 3986 allows there. At most `TARGET_LEN_MAX` bytes.
    pub target: &'a [u8],
    /// The version.
    pub version: Version,
    /// The authority asked for: that of an absolute target, else the `Host` field (RFC 9112 section 3.2.2). Its syntax
    /// was checked; it is empty when the client knows no name for the server, and absent only in HTTP/1.0.
    pub host: Option<&'a [u8]>,
    /// `Range`.
    pub range: Option<&'a [u8]>,
    /// `If-Range`.
    pub if_range: Option<&'a [u8]>,
    /// `If-None-Match`. It is a list, but a second line is refused: to forget it could overwrite what a PUT must not.
    pub if_none_match: Option<&'a [u8]>,
    /// `Accept`; of several lines the last.
    pub accept: Option<&'a [u8]>,
    /// `Accept-Encoding`. Several lines read as one empty list: no coding is always acceptable.
    pub accept_encoding: Option<&'a [u8]>,
    /// `Authorization`.
    pub authorization: Option<&'a [u8]>,
    /// `Content-Type`.
    pub content_type: Option<&'a [u8]>,
    /// `Content-Encoding`. It is a list, but a second line is refused: no body here has two codings.
    pub content_encoding: Option<&'a [u8]>,
    /// `Content-Range`: the body is to be a part of something.
    pub content_range: Option<&'a [u8]>,
    /// `User-Agent`.
    pub user_agent: Option<&'a [u8]>,
    /// `X-Forwarded-For`; of several lines the last, which the nearest proxy wrote.
    pub x_forwarded_for: Option<&'a [u8]>,
    /// `X-Forwarded-Proto`; of several lines the last.
    pub x_forwarded_proto: Option<&'a [u8]>,
    /// `X-Forwarded-Host`; of several lines the last.
    pub x_forwarded_host: Option<&'a [u8]>,
    body_length: BodyLength,
    keep_alive: bool,
    expects_continue: bool,
}

/// How the end of a request's body is found (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// No body.
    None,
    /// So many bytes; may be 0.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
}

/// Why a head is refused. The connection closes after each of them: where the next request starts is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BadRequest {
    /// Not `method SP target SP version`, or the method is no token (RFC 9112 section 3). 400.
    #[error("malformed request line")]
    RequestLine,
    /// The target is neither origin-form, nor an http absolute-form, nor `*` with OPTIONS, or it has a character that
    /// no URI has (RFC 9112 section 3.2). 400.
    #[error("malformed request target")]
    Target,
    /// CONNECT, whose tunnel may already be spoken into (RFC 9110 section 9.3.6), or a method longer than any (RFC 9112 section 3). 501.
    #[error("method not implemented")]
    Method,
    /// An absolute target of the scheme `https`, which asks for a connection that is secured (RFC 9110 section 7.4). 421.
    #[error("https asked for without TLS")]
    Scheme,
    /// The request line or the target is longer than served (RFC 9112 section 3). 414.
    #[error("request target too long")]
    TargetTooLong,
    /// A version of HTTP other than 1.x (RFC 9110 section 15.6.6); the preface of HTTP/2 is one. 505.
    #[error("HTTP version not supported")]
    Version,
    /// CR without LF, or LF without CR (RFC 9112 section 2.2). 400.
    #[error("line does not end in CRLF")]
    LineEnding,
    /// A field name that is no token, or white space before the colon (RFC 9112 section 5.1). 400.
    #[error("malformed field name")]
    FieldName,
    /// A line that continues the one before it (RFC 9112 section 5.2). 400.
    #[error("folded field line")]
    Folding,
    /// A control character in a field value (RFC 9110 section 5.5). 400.
    #[error("control character in a field value")]
    FieldValue,
    /// The head is longer than served (RFC 6585 section 5). 431.
    #[error("request head too long")]
    HeadTooLong,
    /// The head has more fields than served (RFC 6585 section 5). 431.
    #[error("too many header fields")]
    TooManyFields,
    /// A field that can occur once occurs again (RFC 9110 section 5.3; for `Host` RFC 9112 section 3.2). 400.
    #[error("repeated header field")]
    RepeatedField,
    /// HTTP/1.1 without `Host` (RFC 9112 section 3.2). 400.
    #[error("no Host field")]
    HostMissing,
    /// `Host` is no `host [ ":" port ]` (RFC 9112 section 3.2). 400.
    #[error("malformed Host field")]
    Host,
    /// `Content-Length` is not one decimal number below 2^64 (RFC 9112 section 6.3). 400.
    #[error("malformed Content-Length")]
    ContentLength,
    /// `Transfer-Encoding` in HTTP/1.0, or together with `Content-Length` (RFC 9112 section 6.1), or not a list of codings of which
    /// the last, and no other, is `chunked` (section 6.3). 400.
    #[error("disputed body length")]
    Framing,
    /// `Transfer-Encoding` has other codings before `chunked` (RFC 9112 section 6.1). 501.
    #[error("transfer coding not implemented")]
    TransferCoding,
    /// `Expect` asks for something else than `100-continue` (RFC 9110 section 10.1.1). 417.
    #[error("unknown expectation")]
    Expectation,
}

impl BadRequest {
    /// The answer.
    pub fn status(self) -> Status {
        match self {
            Self::RequestLine
            | Self::Target
            | Self::LineEnding
            | Self::FieldName
            | Self::Folding
            | Self::FieldValue
            | Self::RepeatedField
            | Self::HostMissing
            | Self::Host
            | Self::ContentLength
            | Self::Framing => Status::BadRequest,
            Self::Scheme => Status::MisdirectedRequest,
            Self::TargetTooLong => Status::UriTooLong,
            Self::Version => Status::HttpVersionNotSupported,
            Self::HeadTooLong | Self::TooManyFields => Status::RequestHeaderFieldsTooLarge,
            Self::Method | Self::TransferCoding => Status::NotImplemented,
            Self::Expectation => Status::ExpectationFailed,
        }
    }
}

/// Reads the request head at the start of `buffer`.
///
/// `scanned_len` is 0 for a new request, later what the last [`Parsed::Partial`] said. How the bytes were cut into
/// calls never changes the result. A request line that cannot become a request, and a head that is too long, are
/// refused as soon as that is known.
pub fn parse(buffer: &[u8], scanned_len: usize) -> Result<Parsed<'_>, BadRequest> {
    // One empty line before a request is ignored (RFC 9112 section 2.2), no second one.
    let start = if buffer.starts_with(b"\r\n") { 2 } else { 0 };
    let partial = Ok(Parsed::Partial { scanned_len: buffer.len() });
    let text = &buffer[start..];
    match text {
        [] => return partial,
        [b'\r'] if start == 0 => return partial,
        // Binary protocols (TLS begins with 0x16) need no further byte to be told apart.
        [first, ..] if !Token::has(*first) => return Err(not_a_method(*first)),
        _ => {}
    }
    let scanned_len = scanned_len.saturating_sub(start).min(text.len());

    let window = &text[..text.len().min(HEAD_LEN_MAX)];
    // Nearly every head arrives in one piece: it is read without a search for its end.
    if scanned_len == 0 || has_blank_line(window, scanned_len) {
        match parse_head(window) {
            Ok((request, head_len)) => return Ok(Parsed::Complete { request, head_len: start + head_len }),
            Err(bad) if has_blank_line(window, scanned_len) => return Err(bad),
            Err(_) => {}
        }
    }
    check_request_line(text, scanned_len)?;
    if text.len() >= HEAD_LEN_MAX { Err(BadRequest::HeadTooLong) } else { partial }
}

impl Request<'_> {
    /// How long the body is.
    pub fn body_length(&self) -> BodyLength {
        self.body_length
    }

    /// Whether the client lets the connection live on after the response (RFC 9112 section 9.3).
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Whether the client waits for `100 Continue` (or a final answer) before it sends the body. Never true without a
    /// body, nor in HTTP/1.0 (RFC 9110 section 10.1.1).
    pub fn expects_continue(&self) -> bool {
        self.expects_continue
    }
}

/// Whether a blank line ends in `window`, of which `scanned_len` bytes hold none.
fn has_blank_line(window: &[u8], scanned_len: usize) -> bool {
    window.get(scanned_len..).is_some_and(|unscanned| {
        memchr_iter(b'\n', unscanned).any(|found| window[..=scanned_len + found].ends_with(BLANK_LINE))
    })
}

/// Checks the request line in the call in which its end arrives, so that what is no HTTP/1.1 is answered without
/// waiting for a blank line that may never come. Earlier calls saw no line feed, later ones have nothing to check.
///
/// Few heads come in pieces, and those that come whole are parsed with 4 % fewer instructions without it in the same function.
#[inline(never)]
fn check_request_line(text: &[u8], scanned_len: usize) -> Result<(), BadRequest> {
    match memchr(b'\n', &text[scanned_len..]) {
        // Backwards the search ends at the line before, so that all calls together look at each byte once.
        Some(_) if memrchr(b'\n', &text[..scanned_len]).is_some() => Ok(()),
        Some(found) => parse_ended_request_line(&text[..=scanned_len + found]).map(drop),
        // A longer text has passed this check when it grew past the limit.
        None if (..=REQUEST_LINE_LEN_MAX).contains(&scanned_len) && text.len() > REQUEST_LINE_LEN_MAX => {
            let has_request_line = memrchr(b'\n', &text[..scanned_len]).is_some();
            if has_request_line { Ok(()) } else { Err(fault_of_long_line(text)) }
        }
        None => Ok(()),
    }
}

fn not_a_method(first: u8) -> BadRequest {
    if matches!(first, b'\n' | b'\r') { BadRequest::LineEnding } else { BadRequest::RequestLine }
}

struct RequestLine<'a> {
    method: Method,
    target: &'a [u8],
    authority: Option<&'a [u8]>,
    version: Version,
}

/// `text` ends in the first LF of the head.
fn parse_ended_request_line(text: &[u8]) -> Result<RequestLine<'_>, BadRequest> {
    match text.strip_suffix(b"\r\n") {
        Some(line) => parse_request_line(line),
        None if text.len() > REQUEST_LINE_LEN_MAX => Err(fault_of_long_line(text)),
        None => Err(BadRequest::LineEnding),
    }
}

/// What is wrong with a request line that is too long, as its first bytes tell: what comes later does not change the answer.
#[cold]
fn fault_of_long_line(text: &[u8]) -> BadRequest {
    let start = &text[..text.len().min(REQUEST_LINE_LEN_MAX)];
    match start.get(Token::run_len(start)) {
        None | Some(b'\r') => BadRequest::Method,
        Some(b' ') => BadRequest::TargetTooLong,
        Some(_) => BadRequest::RequestLine,
    }
}

/// `line` is without its end.
fn parse_request_line(line: &[u8]) -> Result<RequestLine<'_>, BadRequest> {
    if line.len() + LINE_END.len() > REQUEST_LINE_LEN_MAX {
        return Err(fault_of_long_line(line));
    }
    match parse_request_line_of_nix(line) {
        Some(request_line) => Ok(request_line),
        None => parse_any_request_line(line),
    }
}

/// The shape of every download and every check that Nix makes: GET or HEAD, origin form, HTTP/1.1.
fn parse_request_line_of_nix(line: &[u8]) -> Option<RequestLine<'_>> {
    let rest = line.strip_suffix(b" HTTP/1.1")?;
    let (method, target) = match rest {
        [b'G', b'E', b'T', b' ', target @ ..] => (Method::Get, target),
        [b'H', b'E', b'A', b'D', b' ', target @ ..] => (Method::Head, target),
        _ => return None,
    };
    let is_plain =
        target.first() == Some(&b'/') && target.len() <= TARGET_LEN_MAX && PathAndQuery::has_all(target);
    is_plain.then_some(RequestLine { method, target, authority: None, version: Version::Http11 })
}

fn parse_any_request_line(line: &[u8]) -> Result<RequestLine<'_>, BadRequest> {
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(BadRequest::RequestLine);
    };
    if method.is_empty() || !Token::has_all(method) {
        return Err(BadRequest::RequestLine);
    }
    let version = parse_version(version)?;
    if method == b"CONNECT" {
        return Err(BadRequest::Method);
    }
    let method = Method::of(method);
    if target.len() > TARGET_LEN_MAX {
        return Err(BadRequest::TargetTooLong);
    }
    let (authority, target) = parse_target(method, target)?;
    Ok(RequestLine { method, target, authority, version })
}

fn parse_version(version: &[u8]) -> Result<Version, BadRequest> {
    match version {
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1'..=b'9'] => Ok(Version::Http11),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => Err(BadRequest::Version),
        _ => Err(BadRequest::RequestLine),
    }
}

/// The authority of an absolute target, and the target in origin form.
fn parse_target(method: Method, target: &[u8]) -> Result<(Option<&[u8]>, &[u8]), BadRequest> {
    match target {
        b"*" if method == Method::Options => return Ok((None, target)),
        [b'/', ..] if PathAndQuery::has_all(target) => return Ok((None, target)),
        _ => {}
    }
    let plain = strip_prefix_any_case(target, b"http://");
    let Some(rest) = plain.or_else(|| strip_prefix_any_case(target, b"https://")) else {
        return Err(BadRequest::Target);
    };
    let authority_len = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path_and_query) = rest.split_at(authority_len);
    // An http URI names a host (RFC 9110 section 4.2.1); user information in it is an error (section 4.2.4).
    if authority.is_empty()
        || authority[0] == b':'
        || !is_authority(authority)
        || !PathAndQuery::has_all(path_and_query)
    {
        return Err(BadRequest::Target);
    }
    if plain.is_none() {
        return Err(BadRequest::Scheme);
    }
    let path_and_query: &[u8] = match path_and_query {
        [] if method == Method::Options => b"*",
        [b'/', ..] => path_and_query,
        // The empty path is `/`; no resource of ours looks at a query there.
        _ => b"/",
    };
    Ok((Some(authority), path_and_query))
}

/// Reads the head at the start of `window`, and says its length. If the head is not whole, that is some error.
fn parse_head(window: &[u8]) -> Result<(Request<'_>, usize), BadRequest> {
    let mut lines = Lines::new(window);
    let line = lines.next().ok_or_else(|| fault_of_request_line(window))?;
    let RequestLine { method, target, authority, version } = parse_request_line(line)?;
    let mut request = Request {
        method,
        target,
        version,
        host: None,
        range: None,
        if_range: None,
        if_none_match: None,
        accept: None,
        accept_encoding: None,
        authorization: None,
        content_type: None,
        content_encoding: None,
        content_range: None,
        user_agent: None,
        x_forwarded_for: None,
        x_forwarded_proto: None,
        x_forwarded_host: None,
        body_length: BodyLength::None,
        keep_alive: false,
        expects_continue: false,
    };
    let mut framing = Framing::default();
    let mut field_count = 0;
    loop {
        let rest = lines.rest();
        let line = lines.next().ok_or_else(|| fault_of_field_line(rest))?;
        if line.is_empty() {
            break;
        }
        field_count += 1;
        if field_count > HEAD_FIELDS_MAX {
            return Err(BadRequest::TooManyFields);
        }
        let Some((name, [_, value @ ..])) =
            find(b':', rest).and_then(|name_len| line.split_at_checked(name_len))
        else {
            return Err(fault_of_field_line(rest));
        };
        // A known name is a token.
        let is_known = keep_field(&mut request, &mut framing, name, value.trim_ascii())?;
        if !is_known && (name.is_empty() || Token::run_len(rest) != name.len()) {
            return Err(fault_of_field_line(rest));
        }
    }
    settle(&mut request, &framing, authority)?;
    Ok((request, window.len() - lines.rest().len()))
}

/// Lines that end in CRLF and have none of the bytes that no field value has. Where a line ends and what a value may have is one
/// question: all bytes are looked at once.
struct Lines<'a> {
    text: &'a [u8],
    start: usize,
    strangers: Strangers<'a, FieldValue>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, start: 0, strangers: Strangers::new(text) }
    }

    /// What comes behind the lines that were given.
    fn rest(&self) -> &'a [u8] {
        &self.text[self.start..]
    }

    /// The next line without its end. `None` if it is not whole or has a byte that it must not have.
    #[inline] // It costs as much to call as it does.
    fn next(&mut self) -> Option<&'a [u8]> {
        let line_end = self.strangers.find_from(self.start)?;
        let (line, more) = self.text[self.start..].split_at_checked(line_end - self.start)?;
        more.starts_with(LINE_END).then(|| {
            self.start = line_end + LINE_END.len();
            line
        })
    }
}

#[cold]
fn fault_of_request_line(text: &[u8]) -> BadRequest {
    let line_end = memchr(b'\n', text).map_or(text.len(), |found| found + 1);
    parse_ended_request_line(&text[..line_end]).err().unwrap_or(BadRequest::LineEnding)
}

/// What is wrong with the field line at the start of `text`.
#[cold]
fn fault_of_field_line(text: &[u8]) -> BadRequest {
    let (name, colon_and_more) = text.split_at(Token::run_len(text));
    match colon_and_more {
        [b' ' | b'\t', ..] if name.is_empty() => BadRequest::Folding,
        [b':', value @ ..] if !name.is_empty() => match value.get(FieldValue::run_len(value)) {
            Some(b'\r' | b'\n') => BadRequest::LineEnding,
            _ => BadRequest::FieldValue,
        },
        [b'\r', b'\n', ..] => BadRequest::FieldName,
        [b'\r' | b'\n', ..] => BadRequest::LineEnding,
        _ => BadRequest::FieldName,
    }
}

/// The fields that say where the message ends and what becomes of the connection, before they are weighed together.
#[derive(Default)]
struct Framing<'a> {
    content_length: Option<&'a [u8]>,
    transfer_encoding: Option<&'a [u8]>,
    has_close: bool,
    has_keep_alive: bool,
    has_expect_continue: bool,
}

/// Whether the field is known.
fn keep_field<'a>(
    request: &mut Request<'a>,
    framing: &mut Framing<'a>,
    name: &[u8],
    value: &'a [u8],
) -> Result<bool, BadRequest> {
    match name.len() {
        4 if is_same_name(name, b"host") => keep_once(&mut request.host, value),
        5 if is_same_name(name, b"range") => keep_once(&mut request.range, value),
        6 if is_same_name(name, b"accept") => keep_last(&mut request.accept, value),
        6 if is_same_name(name, b"expect") => {
            for item in ListItems::new(value) {
                if !item.eq_ignore_ascii_case(b"100-continue") {
                    return Err(BadRequest::Expectation);
                }
                framing.has_expect_continue = true;
            }
            Ok(())
        }
        8 if is_same_name(name, b"if-range") => keep_once(&mut request.if_range, value),
        10 if is_same_name(name, b"connection") => {
            for item in ListItems::new(value) {
                framing.has_close |= item.eq_ignore_ascii_case(b"close");
                framing.has_keep_alive |= item.eq_ignore_ascii_case(b"keep-alive");
            }
            Ok(())
        }
        10 if is_same_name(name, b"user-agent") => keep_once(&mut request.user_agent, value),
        12 if is_same_name(name, b"content-type") => keep_once(&mut request.content_type, value),
        13 if is_same_name(name, b"if-none-match") => keep_once(&mut request.if_none_match, value),
        13 if is_same_name(name, b"authorization") => keep_once(&mut request.authorization, value),
        13 if is_same_name(name, b"content-range") => keep_once(&mut request.content_range, value),
        14 if is_same_name(name, b"content-length") => keep_once(&mut framing.content_length, value),
        15 if is_same_name(name, b"accept-encoding") => {
            request.accept_encoding = Some(if request.accept_encoding.is_none() { value } else { b"" });
            Ok(())
        }
        15 if is_same_name(name, b"x-forwarded-for") => keep_last(&mut request.x_forwarded_for, value),
        16 if is_same_name(name, b"content-encoding") => keep_once(&mut request.content_encoding, value),
        16 if is_same_name(name, b"x-forwarded-host") => keep_last(&mut request.x_forwarded_host, value),
        17 if is_same_name(name, b"transfer-encoding") => keep_once(&mut framing.transfer_encoding, value),
        17 if is_same_name(name, b"x-forwarded-proto") => keep_last(&mut request.x_forwarded_proto, value),
        _ => return Ok(false),
    }?;
    Ok(true)
}

fn keep_once<'a>(slot: &mut Option<&'a [u8]>, value: &'a [u8]) -> Result<(), BadRequest> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(BadRequest::RepeatedField),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "one type for all arms of the match that calls it")]
fn keep_last<'a>(slot: &mut Option<&'a [u8]>, value: &'a [u8]) -> Result<(), BadRequest> {
    *slot = Some(value);
    Ok(())
}

/// Weighs the fields that only mean something together.
fn settle<'a>(
    request: &mut Request<'a>,
    framing: &Framing<'a>,
    authority: Option<&'a [u8]>,
) -> Result<(), BadRequest> {
    match request.host {
        None if request.version == Version::Http11 => return Err(BadRequest::HostMissing),
        Some(host) if !is_authority(host) => return Err(BadRequest::Host),
        _ => {}
    }
    request.host = authority.or(request.host);
    request.body_length = match (framing.transfer_encoding, framing.content_length) {
        (None, None) => BodyLength::None,
        (None, Some(length)) => {
            BodyLength::Length(parse_content_length(length).ok_or(BadRequest::ContentLength)?)
        }
        (Some(_), Some(_)) => return Err(BadRequest::Framing),
        (Some(_), None) if request.version == Version::Http10 => return Err(BadRequest::Framing),
        (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => BodyLength::Chunked,
        (Some(codings), None) => return Err(fault_of_codings(codings)),
    };
    let is_http11 = request.version == Version::Http11;
    request.keep_alive = !framing.has_close && (is_http11 || framing.has_keep_alive);
    request.expects_continue = framing.has_expect_continue
        && is_http11
        && !matches!(request.body_length, BodyLength::None | BodyLength::Length(0));
    Ok(())
}

/// What is wrong with a `Transfer-Encoding` that is not `chunked`. Where its message ends is known only to who reads chunks last.
#[cold]
fn fault_of_codings(codings: &[u8]) -> BadRequest {
    let mut codings = codings.rsplit(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let is_last_chunked = codings.next().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"));
    let are_others = codings.all(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"chunked"));
    if is_last_chunked && are_others { BadRequest::TransferCoding } else { BadRequest::Framing }
}

fn parse_content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |length, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        length.checked_mul(10)?.checked_add(digit)
    })
}

/// `[ host ] [ ":" port ]` of RFC 3986 section 3.2, without user information.
fn is_authority(authority: &[u8]) -> bool {
    is_port(&authority[HostName::run_len(authority)..]) || is_rare_authority(authority)
}

/// The same for an address in brackets, or a name that has escapes or `sub-delims`. Of these the comma is refused: no name has it, and
/// two `Host` fields that somebody has made one are such a list (RFC 9110 section 5.3).
#[cold]
fn is_rare_authority(authority: &[u8]) -> bool {
    if let [b'[', address @ ..] = authority {
        let (address, rest) = address.split_at(Address::run_len(address));
        return is_address(address) && rest.strip_prefix(b"]").is_some_and(is_port);
    }
    let mut rest = authority;
    loop {
        rest = match rest {
            [b'%', high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => after,
            [byte, after @ ..] if HostName::has(*byte) || b"!$&'()*+;=".contains(byte) => after,
            port => return is_port(port),
        };
    }
}

/// `IPv6address` or `IPvFuture` of RFC 3986 section 3.2.2, made of [`Address`].
fn is_address(address: &[u8]) -> bool {
    match address {
        [b'v' | b'V', future @ ..] => {
            let version_len = future.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
            version_len > 0 && matches!(&future[version_len..], [b'.', _, ..])
        }
        _ => str::from_utf8(address).is_ok_and(|address| address.parse::<core::net::Ipv6Addr>().is_ok()),
    }
}

fn is_port(port: &[u8]) -> bool {
    match port {
        [] => true,
        [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

fn strip_prefix_any_case<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

const LINE_END: &[u8] = b"\r\n";
const BLANK_LINE: &[u8] = b"\r\n\r\n";

/// `tchar` of RFC 9110 section 5.6.2.
pub(super) struct Token;
impl Class for Token {
    const RANGES: &[(u8, u8)] = &[
        (b'!', b'!'),
        (b'#', b'\''),
        (b'*', b'+'),
        (b'-', b'.'),
        (b'0', b'9'),
        (b'A', b'Z'),
        (b'^', b'z'),
        (b'|', b'|'),
        (b'~', b'~'),
    ];
}

/// `pchar`, `/` and `?` of RFC 3986 section 3.3 and 3.4: all that is visible but `"#<>[\]^`{|}`.
struct PathAndQuery;
impl Class for PathAndQuery {
    const RANGES: &[(u8, u8)] =
        &[(b'!', b'!'), (b'$', b';'), (b'=', b'='), (b'?', b'Z'), (b'_', b'_'), (b'a', b'z'), (b'~', b'~')];
}

/// What hosts are called in practice: `unreserved` of RFC 3986 section 2.3, of which an IPv4 address is made as well.
struct HostName;
impl Class for HostName {
    const RANGES: &[(u8, u8)] =
        &[(b'-', b'.'), (b'0', b'9'), (b'A', b'Z'), (b'_', b'_'), (b'a', b'z'), (b'~', b'~')];
}

/// What stands in the brackets of an `IP-literal` (RFC 3986 section 3.2.2): `unreserved`, `sub-delims` and colons.
struct Address;
impl Class for Address {
    const RANGES: &[(u8, u8)] = &[
        (b'!', b'!'),
        (b'$', b'$'),
        (b'&', b'.'),
        (b'0', b';'),
        (b'=', b'='),
        (b'A', b'Z'),
        (b'_', b'_'),
        (b'a', b'z'),
        (b'~', b'~'),
    ];
}

/// What a field value has (RFC 9110 section 5.5): everything but control characters, of which HTAB is allowed.
struct FieldValue;
impl Class for FieldValue {
    const RANGES: &[(u8, u8)] = &[(b'\t', b'\t'), (b' ', b'~'), (0x80, 0xff)];
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One call with all bytes.
    fn parse_whole(input: &[u8]) -> Result<Parsed<'_>, BadRequest> {
        parse(input, 0)
    }

    /// The result of calls with ever more bytes, `step` at a time.
    fn parse_dripping(input: &[u8], step: usize) -> Result<Parsed<'_>, BadRequest> {
        let (mut len, mut scanned_len) = (0, 0);
        loop {
            match parse(&input[..len], scanned_len) {
                Ok(Parsed::Partial { scanned_len: new }) if len < input.len() => {
                    assert!(new >= scanned_len);
                    scanned_len = new;
                    len = input.len().min(len + step);
                }
                result => return result,
            }
        }
    }

    fn complete(input: &[u8]) -> Request<'_> {
        match parse_whole(input) {
            Ok(Parsed::Complete { request, .. }) => request,
            other => panic!("{}: {other:?}", input.escape_ascii()),
        }
    }

    /// A GET with these field lines behind its Host.
    fn get_with(fields: &str) -> String {
        format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
    }

    const NIX: &[u8] = b"GET /0c8r7p9x1m5h3fya2d4g6ibk7lnqsvwz.narinfo HTTP/1.1\r\nHost: cache:5000\r\n\
        User-Agent: curl/8.13.0 Nix/2.26.3\r\nAccept: */*\r\n\
        Accept-Encoding: zstd, br, gzip, deflate, bzip2, xz\r\n\r\n";

    const BAD: &[(&str, BadRequest, &str)] = &[
        // RFC 9112 section 2.2: line ends
        ("GET / HTTP/1.1\nHost: a\n\n", BadRequest::LineEnding, "bare LF after the request line"),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n\r\n", BadRequest::LineEnding, "bare LF after a field"),
        ("GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", BadRequest::LineEnding, "bare CR after a field"),
        ("GET / HTTP/1.1\r\nHost: a\r\nB: c\rd\r\n\r\n", BadRequest::LineEnding, "bare CR in a value"),
        ("GET / HTTP/1.1\r\nHost: a\r\nB: c\nd\r\n\r\n", BadRequest::LineEnding, "bare LF in a value"),
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::LineEnding, "leading bare LF"),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::LineEnding, "second leading empty line"),
        ("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::LineEnding, "leading bare CR"),
        // RFC 9112 section 3: request line
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::RequestLine, "two spaces"),
        ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::RequestLine, "two spaces"),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", BadRequest::RequestLine, "space at the end"),
        (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::RequestLine, "space at the start"),
        ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::RequestLine, "tab"),
        ("GET /\r\n\r\n", BadRequest::RequestLine, "HTTP/0.9"),
        ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::RequestLine, "method is no token"),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", BadRequest::RequestLine, "version in lower case"),
        ("GET / HTTP/11\r\nHost: a\r\n\r\n", BadRequest::RequestLine, "no version"),
        ("GET / HTTP/1.10\r\nHost: a\r\n\r\n", BadRequest::RequestLine, "version of two digits"),
        ("GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Target, "CR in the target"),
        // RFC 9110 section 15.6.6: version
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", BadRequest::Version, "HTTP/2"),
        ("GET / HTTP/0.9\r\nHost: a\r\n\r\n", BadRequest::Version, "HTTP/0.9 by name"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BadRequest::Version, "preface of HTTP/2"),
        // RFC 9112 section 3.2: target
        ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Target, "relative"),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Target, "* without OPTIONS"),
        ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Target, "fragment"),
        ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Target, "not ASCII"),
        ("GET /\" HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Target, "no character of a URI"),
        ("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Target, "NUL"),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Method, "authority-form, 3.2.3"),
        ("GET a:443 HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Target, "authority-form without CONNECT"),
        ("GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Scheme, "https, RFC 9110 7.4"),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Target, "absolute, not http"),
        ("GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Target, "absolute without host"),
        ("GET http://:80/ HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Target, "absolute without host"),
        (
            "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            BadRequest::Target,
            "user information, RFC 9110 4.2.4",
        ),
        // RFC 9112 section 3.2: Host
        ("GET / HTTP/1.1\r\n\r\n", BadRequest::HostMissing, "none"),
        ("GET http://a/ HTTP/1.1\r\n\r\n", BadRequest::HostMissing, "none beside an absolute target, 3.2.2"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", BadRequest::RepeatedField, "two"),
        ("GET / HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n", BadRequest::RepeatedField, "two in HTTP/1.0"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", BadRequest::Host, "space"),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", BadRequest::Host, "list"),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", BadRequest::Host, "path"),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", BadRequest::Host, "user information"),
        ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", BadRequest::Host, "port is no number"),
        ("GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n", BadRequest::Host, "two ports"),
        ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", BadRequest::Host, "open bracket"),
        ("GET / HTTP/1.1\r\nHost: []\r\n\r\n", BadRequest::Host, "empty brackets"),
        ("GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", BadRequest::Host, "text after the brackets"),
        ("GET / HTTP/1.1\r\nHost: [a]\r\n\r\n", BadRequest::Host, "no address in the brackets"),
        ("GET / HTTP/1.1\r\nHost: [v.a]\r\n\r\n", BadRequest::Host, "address of no version"),
        ("GET / HTTP/1.1\r\nHost: a%2\r\n\r\n", BadRequest::Host, "half an escape"),
        ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", BadRequest::Host, "list, RFC 9110 5.3"),
        // RFC 9112 section 5: fields
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", BadRequest::FieldName, "space before the colon, 5.1"),
        ("GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", BadRequest::FieldName, "tab before the colon, 5.1"),
        ("GET / HTTP/1.1\r\nHost\r\n\r\n", BadRequest::FieldName, "no colon"),
        ("GET / HTTP/1.1\r\n: a\r\n\r\n", BadRequest::FieldName, "no name"),
        ("GET / HTTP/1.1\r\nH\0: a\r\n\r\n", BadRequest::FieldName, "control character in the name"),
        ("GET / HTTP/1.1\r\nH(st: a\r\n\r\n", BadRequest::FieldName, "name is no token"),
        ("GET / HTTP/1.1\r\nHost: a\r\nB: c\r\n d\r\n\r\n", BadRequest::Folding, "continued line, 5.2"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\td\r\n\r\n", BadRequest::Folding, "continued line, 5.2"),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", BadRequest::Folding, "space before the first field, 2.2"),
        ("GET / HTTP/1.1\r\nHost: a\r\nB: \0\r\n\r\n", BadRequest::FieldValue, "NUL, RFC 9110 5.5"),
        ("GET / HTTP/1.1\r\nHost: a\r\nB: \x7f\r\n\r\n", BadRequest::FieldValue, "DEL, RFC 9110 5.5"),
        // RFC 9112 section 6: body length
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            BadRequest::RepeatedField,
            "6.3",
        ),
        ("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", BadRequest::ContentLength, "6.3"),
        ("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", BadRequest::ContentLength, "empty"),
        ("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", BadRequest::ContentLength, "sign"),
        ("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", BadRequest::ContentLength, "sign"),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n",
            BadRequest::ContentLength,
            "hexadecimal",
        ),
        ("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 1\r\n\r\n", BadRequest::ContentLength, "space"),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n",
            BadRequest::ContentLength,
            "2^64",
        ),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
            BadRequest::Framing,
            "6.1",
        ),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            BadRequest::Framing,
            "6.1",
        ),
        (
            "PUT / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            BadRequest::Framing,
            "HTTP/1.0, 6.1",
        ),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            BadRequest::TransferCoding,
            "6.1",
        ),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: a, b,CHUNKED\r\n\r\n",
            BadRequest::TransferCoding,
            "6.1",
        ),
        ("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", BadRequest::Framing, "6.3"),
        ("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, a\r\n\r\n", BadRequest::Framing, "6.3"),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            BadRequest::Framing,
            "6.1",
        ),
        ("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: , chunked\r\n\r\n", BadRequest::Framing, "6.3"),
        ("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", BadRequest::Framing, "6.3"),
        ("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", BadRequest::Framing, "6.3"),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            BadRequest::RepeatedField,
            "chunked twice, 6.1",
        ),
        // RFC 9110 section 5.3: once
        (
            "GET / HTTP/1.1\r\nHost: a\r\nRange: bytes=0-\r\nRange: bytes=1-\r\n\r\n",
            BadRequest::RepeatedField,
            "Range",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nIf-Range: \"a\"\r\nIf-Range: \"a\"\r\n\r\n",
            BadRequest::RepeatedField,
            "If-Range",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: \"a\"\r\nif-none-match: \"b\"\r\n\r\n",
            BadRequest::RepeatedField,
            "If-None-Match",
        ),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic a\r\nAuthorization: Basic b\r\n\r\n",
            BadRequest::RepeatedField,
            "Authorization",
        ),
        // RFC 9110 section 10.1.1
        ("PUT / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", BadRequest::Expectation, "unknown"),
        ("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue, x\r\n\r\n", BadRequest::Expectation, "unknown"),
    ];

    #[test]
    fn bad_heads_however_they_are_cut() {
        for &(input, expected, why) in BAD {
            let input = input.as_bytes();
            let name = format!("{} ({why})", input.escape_ascii());
            assert_eq!(parse_whole(input), Err(expected), "{name}");
            for step in 1..input.len() {
                assert_eq!(parse_dripping(input, step), Err(expected), "{name}, {step} bytes at a time");
            }
        }
    }

    const GOOD: &[&str] = &[
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HEAD /a/b?c=d&e=%2F HTTP/1.1\r\nhost:a:80\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "PUT /nar/x HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\nExpect: 100-Continue\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nEmpty:\r\nSpaces: \t \r\nObs-Text: \u{e9}\r\nTab: a\tb \t\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\nAccept-Encoding: zstd\r\nAccept-Encoding: br\r\n\r\n",
    ];

    #[test]
    fn every_prefix_is_partial_and_every_cut_gives_the_same() {
        for input in GOOD.iter().map(|input| input.as_bytes()).chain([NIX]) {
            let name = input.escape_ascii();
            let whole = parse_whole(input);
            assert!(
                matches!(whole, Ok(Parsed::Complete { head_len, .. }) if head_len == input.len()),
                "{name}: {whole:?}"
            );
            for cut in 0..input.len() {
                let Ok(Parsed::Partial { scanned_len }) = parse_whole(&input[..cut]) else {
                    panic!("{name}, {cut} bytes")
                };
                assert_eq!(parse(input, scanned_len), whole, "{name}, cut at {cut}");
                assert_eq!(parse_dripping(input, cut + 1), whole, "{name}, {cut} + 1 bytes at a time");
            }
            // What follows the head is not looked at.
            for canary in ["G", "\r\n\r\n", "\0", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
                assert_eq!(parse_whole(&[input, canary.as_bytes()].concat()), whole, "{name}");
            }
        }
    }

    #[test]
    fn a_request_of_nix() {
        let request = complete(NIX);
        assert_eq!(request.method, Method::Get);
        assert_eq!(request.target, b"/0c8r7p9x1m5h3fya2d4g6ibk7lnqsvwz.narinfo");
        assert_eq!(request.version, Version::Http11);
        assert_eq!(request.host, Some(&b"cache:5000"[..]));
        assert_eq!(request.user_agent, Some(&b"curl/8.13.0 Nix/2.26.3"[..]));
        assert_eq!(request.accept_encoding, Some(&b"zstd, br, gzip, deflate, bzip2, xz"[..]));
        assert_eq!(request.range, None);
        assert_eq!(request.body_length(), BodyLength::None);
        assert!(request.keep_alive() && !request.expects_continue());
    }

    #[test]
    fn every_known_field_has_its_slot() {
        let text = get_with(
            "RANGE: 1\r\nif-range: 2\r\nIf-None-Match: 3\r\nAccept-Encoding: 4\r\nAuthorization: 5\r\n\
             Content-Type: 6\r\nContent-Encoding: 7\r\nUser-Agent: 8\r\nX-Forwarded-For: 9\r\n\
             X-Forwarded-Proto: 10\r\nX-Forwarded-Host: 11\r\nX-Forwarded-Host: \t 12 \t\r\n\
             Content-Range: 13\r\n",
        );
        let request = complete(text.as_bytes());
        let slots = [
            request.range,
            request.if_range,
            request.if_none_match,
            request.accept_encoding,
            request.authorization,
            request.content_type,
            request.content_encoding,
            request.user_agent,
            request.x_forwarded_for,
            request.x_forwarded_proto,
            request.x_forwarded_host,
            request.content_range,
        ];
        let values = slots.map(|slot| std::str::from_utf8(slot.unwrap()).unwrap());
        assert_eq!(values, ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "12", "13"]);
    }

    #[test]
    fn repeated_accept_encoding_accepts_nothing() {
        for count in 2..5 {
            let text = get_with(&"Accept-Encoding: zstd\r\n".repeat(count));
            assert_eq!(complete(text.as_bytes()).accept_encoding, Some(&b""[..]));
        }
    }

    #[test]
    fn targets_in_origin_form() {
        let cases = [
            ("GET /a?b HTTP/1.1", "/a?b", "h"),
            ("GET http://a/b?c HTTP/1.1", "/b?c", "a"),
            ("GET HTTP://A:1/ HTTP/1.1", "/", "A:1"),
            ("GET http://[::1]:80/ HTTP/1.1", "/", "[::1]:80"),
            ("GET http://a HTTP/1.1", "/", "a"),
            ("GET http://a?b HTTP/1.1", "/", "a"),
            ("OPTIONS * HTTP/1.1", "*", "h"),
            ("OPTIONS http://a HTTP/1.1", "*", "a"), // RFC 9112 section 3.2.4
            ("OPTIONS http://a/ HTTP/1.1", "/", "a"),
            ("GET /!$&'()*+,;=:@%2f-._~ HTTP/1.1", "/!$&'()*+,;=:@%2f-._~", "h"),
        ];
        for (line, target, host) in cases {
            let text = format!("{line}\r\nHost: h\r\n\r\n");
            let request = complete(text.as_bytes());
            assert_eq!((request.target, request.host), (target.as_bytes(), Some(host.as_bytes())), "{line}");
        }
    }

    #[test]
    fn hosts() {
        for host in ["", "a", "a.b:", "a:80", "1.2.3.4:5", "[::1]", "[::1]:80", "[v1.a:b]", "a%20b", "_a-b~"]
        {
            let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(complete(text.as_bytes()).host, Some(host.as_bytes()));
        }
    }

    #[test]
    fn methods_and_versions_are_values() {
        for (line, method, version) in [
            ("GET / HTTP/1.1", Method::Get, Version::Http11),
            ("HEAD / HTTP/1.0", Method::Head, Version::Http10),
            ("POST / HTTP/1.2", Method::Post, Version::Http11),
            ("DELETE / HTTP/1.9", Method::Delete, Version::Http11),
            ("brew / HTTP/1.1", Method::Other, Version::Http11),
        ] {
            let text = format!("{line}\r\nHost: a\r\n\r\n");
            let request = complete(text.as_bytes());
            assert_eq!((request.method, request.version), (method, version));
        }
    }

    #[test]
    fn persistence() {
        for (version, connection, keep_alive) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: foo, ,CLOSE\r\n", false),
            ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
            ("1.1", "Connection: closed\r\n", true),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
        ] {
            let text = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
            assert_eq!(complete(text.as_bytes()).keep_alive(), keep_alive, "{text}");
        }
    }

    #[test]
    fn bodies_and_expectations() {
        for (version, fields, length, expects_continue) in [
            ("1.1", "", BodyLength::None, false),
            ("1.1", "Content-Length: 0\r\nExpect: 100-continue\r\n", BodyLength::Length(0), false),
            ("1.1", "Content-Length: 007\r\nExpect: 100-continue\r\n", BodyLength::Length(7), true),
            ("1.1", "Transfer-Encoding: CHUNKED\r\nExpect: 100-continue\r\n", BodyLength::Chunked, true),
            ("1.1", "Transfer-Encoding: chunked\r\n", BodyLength::Chunked, false),
            ("1.1", "Expect: 100-continue\r\n", BodyLength::None, false),
            ("1.0", "Content-Length: 7\r\nExpect: 100-continue\r\n", BodyLength::Length(7), false),
        ] {
            let text = format!("PUT / HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
            let request = complete(text.as_bytes());
            assert_eq!(
                (request.body_length(), request.expects_continue()),
                (length, expects_continue),
                "{text}"
            );
        }
    }

    #[test]
    fn long_targets_are_refused_as_soon_as_known() {
        let line =
            |target_len: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(target_len - 1));
        assert_eq!(complete(line(TARGET_LEN_MAX).as_bytes()).target.len(), TARGET_LEN_MAX);
        for target_len in [TARGET_LEN_MAX + 1, REQUEST_LINE_LEN_MAX, HEAD_LEN_MAX, HEAD_LEN_MAX * 2] {
            let text = line(target_len);
            for step in [1, 1000, text.len()] {
                assert_eq!(parse_dripping(text.as_bytes(), step), Err(BadRequest::TargetTooLong));
            }
        }
    }

    #[test]
    fn endless_request_lines_are_refused_by_what_they_begin_with() {
        for (start, expected) in [
            ("a", BadRequest::Method),
            ("a /", BadRequest::TargetTooLong),
            ("a\t/", BadRequest::RequestLine),
            ("a(", BadRequest::RequestLine),
        ] {
            let endless = start.to_owned() + &"a".repeat(REQUEST_LINE_LEN_MAX + 1 - start.len());
            let endless = endless.as_bytes();
            let (last, known) = endless.split_last().unwrap();
            assert!(matches!(parse_whole(known), Ok(Parsed::Partial { .. })));
            for more in ["", " ", " / HTTP/1.1\r\n", "\r\n", "\n", "\r"] {
                let text = [known, &[*last], more.as_bytes()].concat();
                assert_eq!(parse_whole(&text), Err(expected), "{start}, {more:?}");
                assert_eq!(parse(&text, REQUEST_LINE_LEN_MAX), Err(expected), "{start}, {more:?}");
            }
        }
    }

    #[test]
    fn long_heads_are_refused_as_soon_as_known() {
        let head = |len: usize| get_with(&format!("A: {}\r\n", "a".repeat(len - get_with("A: \r\n").len())));
        for lead in ["", "\r\n"] {
            let fits = format!("{lead}{}", head(HEAD_LEN_MAX));
            complete(fits.as_bytes());
            let too_long = format!("{lead}{}", head(HEAD_LEN_MAX + 1));
            for step in [1, 1000, too_long.len()] {
                assert_eq!(parse_dripping(too_long.as_bytes(), step), Err(BadRequest::HeadTooLong));
            }
            // The last byte of the longest head is the blank line's LF: without it there is no head to wait for.
            let known = &too_long.as_bytes()[..lead.len() + HEAD_LEN_MAX];
            assert_eq!(parse_whole(known), Err(BadRequest::HeadTooLong));
            assert!(matches!(parse_whole(&known[..known.len() - 1]), Ok(Parsed::Partial { .. })));
        }
    }

    #[test]
    fn fields_are_counted() {
        complete(get_with(&"A: b\r\n".repeat(HEAD_FIELDS_MAX - 1)).as_bytes());
        let text = get_with(&"A: b\r\n".repeat(HEAD_FIELDS_MAX));
        assert_eq!(parse_whole(text.as_bytes()), Err(BadRequest::TooManyFields));
    }

    #[test]
    fn what_is_no_http_is_refused_early() {
        for (input, expected) in [
            (&b"\x16"[..], BadRequest::RequestLine), // TLS
            (b"\x16\x03\x01\x02\x00\x01", BadRequest::RequestLine),
            (b"\0", BadRequest::RequestLine),
            (b"PRI * HTTP/2.0\r\n", BadRequest::Version), // HTTP/2
            (b"SSH-2.0-OpenSSH_10.0\r\n", BadRequest::RequestLine),
            (b"EHLO mail\r\n", BadRequest::RequestLine),
            (b"GET /\r\n", BadRequest::RequestLine),
            (b"GET / HTTP/1.1\n", BadRequest::LineEnding),
        ] {
            assert_eq!(parse_whole(input), Err(expected), "{}", input.escape_ascii());
            assert_eq!(parse_dripping(input, 1), Err(expected), "{}", input.escape_ascii());
        }
    }

    /// The fast path and the general one, on every line that the fast one takes.
    fn assert_paths_agree(line: &[u8]) {
        if let Some(fast) = parse_request_line_of_nix(line) {
            let general = parse_any_request_line(line).map(|line| (line.method, line.target, line.version));
            assert_eq!(general, Ok((fast.method, fast.target, fast.version)));
            assert_eq!(fast.authority, None);
        }
    }

    #[test]
    fn the_tables_agree_with_httparse() {
        for input in GOOD.iter().copied().chain(BAD.iter().map(|case| case.0)) {
            fuzz_head(input.as_bytes());
        }
        fuzz_head(NIX);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn heads_of_tokens(tokens in prop::collection::vec(token(), 0..12), step in 1..20_usize) {
            let input = tokens.concat();
            fuzz_head(&input);
            prop_assert_eq!(parse_dripping(&input, step), parse_whole(&input));
        }

        #[test]
        fn mutated_heads(
            base in prop::sample::select(vec![NIX, GOOD[1].as_bytes(), GOOD[2].as_bytes(), GOOD[6].as_bytes()]),
            mutations in prop::collection::vec((any::<prop::sample::Index>(), byte()), 1..4),
            step in 1..100_usize,
        ) {
            let mut input = base.to_vec();
            for (index, byte) in mutations {
                let index = index.index(input.len());
                input[index] = byte;
            }
            fuzz_head(&input);
            prop_assert_eq!(parse_dripping(&input, step), parse_whole(&input));
            for line in input.split(|&byte| byte == b'\n') {
                assert_paths_agree(line.strip_suffix(b"\r").unwrap_or(line));
            }
        }

        #[test]
        fn fast_and_general_path_agree(
            method in "(GET|HEAD|PUT) ?", target in "[ -~]{0,12}", version in " ?HTTP/1\\.[01]",
        ) {
            assert_paths_agree(format!("{method}{target}{version}").as_bytes());
        }
    }

    fn byte() -> impl Strategy<Value = u8> {
        prop_oneof![any::<u8>(), prop::sample::select(&b"\r\n\t :/\0\x7f,"[..])]
    }

    /// Pieces of which heads, good and bad, are made.
    fn token() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            8 => Just(&b"\r\n"[..]),
            4 => Just(&b"GET / HTTP/1.1\r\n"[..]),
            1 => Just(&b"HEAD http://a/ HTTP/1.0\r\n"[..]),
            4 => Just(&b"Host: a\r\n"[..]),
            2 => Just(&b"Range: bytes=0-\r\n"[..]),
            1 => Just(&b"Content-Length: 1\r\n"[..]),
            1 => Just(&b"Transfer-Encoding: chunked\r\n"[..]),
            2 => Just(&b"A: b\r\n"[..]),
            1 => Just(&b"A"[..]),
            1 => Just(&b":"[..]),
            1 => Just(&b" "[..]),
            1 => Just(&b"\n"[..]),
            1 => Just(&b"\r"[..]),
        ]
        .prop_map(<[u8]>::to_vec)
    }
}
