//! What another parser makes of a head: httparse reads it, and each rule that makes us stricter is written once more, naively, over
//! what httparse has read. A head is accepted if and only if httparse accepts it and no rule is broken.

use super::request::{BadRequest, BodyLength, Parsed, Request, parse};
use super::{Method, Version};
use crate::limits::{HEAD_FIELDS_MAX, HEAD_LEN_MAX, REQUEST_LINE_LEN_MAX, TARGET_LEN_MAX};

/// Why we refuse what httparse accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// RFC 9112 section 2.2 lets a recipient take a bare LF for a line end; who does not reads another message.
    BareLineFeed,
    /// RFC 9112 section 2.2: one empty line before a request is ignored, no second one.
    EmptyLines,
    /// RFC 9112 section 3.2: a target has one of four forms, and the characters of a URI.
    Target,
    /// RFC 9110 section 7.4: what is asked for with `https` needs TLS.
    Scheme,
    /// RFC 9110 section 9.3.6: an origin server has no tunnels.
    Tunnel,
    /// RFC 9112 section 3: a method longer than any.
    MethodLen,
    /// RFC 9112 section 3: a target longer than served.
    TargetLen,
    /// RFC 9112 section 3: a request line longer than served.
    LineLen,
    /// RFC 6585 section 5: a head longer than served.
    HeadLen,
    /// RFC 6585 section 5: more fields than served.
    FieldCount,
    /// RFC 9110 section 5.3: a field that is no list occurs once.
    Repetition,
    /// RFC 9112 section 3.2: HTTP/1.1 has a `Host`.
    HostMissing,
    /// RFC 9112 section 3.2: `Host` names a host, and perhaps a port.
    HostSyntax,
    /// RFC 9112 section 6.3: `Content-Length` is one decimal number.
    LengthSyntax,
    /// RFC 9112 section 6.1: a message has a length or a coding, not both.
    LengthAndCoding,
    /// RFC 9112 section 6.1: HTTP/1.0 has no codings.
    CodingInHttp10,
    /// RFC 9112 section 6.3: the last coding, and no other, is `chunked`.
    CodingOrder,
    /// RFC 9112 section 6.1: no other coding is understood.
    CodingUnknown,
    /// RFC 9110 section 10.1.1: nothing but `100-continue` is expected.
    Expectation,
}

/// Fields that occur once (RFC 9110 section 5.3), and two lists of which a second line is refused.
const SINGLE: [&str; 11] = [
    "authorization",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "host",
    "if-none-match",
    "if-range",
    "range",
    "transfer-encoding",
    "user-agent",
];

impl Rule {
    const ALL: [Self; 19] = [
        Self::BareLineFeed,
        Self::EmptyLines,
        Self::Target,
        Self::Scheme,
        Self::Tunnel,
        Self::MethodLen,
        Self::TargetLen,
        Self::LineLen,
        Self::HeadLen,
        Self::FieldCount,
        Self::Repetition,
        Self::HostMissing,
        Self::HostSyntax,
        Self::LengthSyntax,
        Self::LengthAndCoding,
        Self::CodingInHttp10,
        Self::CodingOrder,
        Self::CodingUnknown,
        Self::Expectation,
    ];

    /// What is said to who breaks it.
    fn refusal(self) -> BadRequest {
        match self {
            Self::BareLineFeed | Self::EmptyLines => BadRequest::LineEnding,
            Self::Target => BadRequest::Target,
            Self::Scheme => BadRequest::Scheme,
            Self::Tunnel | Self::MethodLen => BadRequest::Method,
            Self::TargetLen | Self::LineLen => BadRequest::TargetTooLong,
            Self::HeadLen => BadRequest::HeadTooLong,
            Self::FieldCount => BadRequest::TooManyFields,
            Self::Repetition => BadRequest::RepeatedField,
            Self::HostMissing => BadRequest::HostMissing,
            Self::HostSyntax => BadRequest::Host,
            Self::LengthSyntax => BadRequest::ContentLength,
            Self::LengthAndCoding | Self::CodingInHttp10 | Self::CodingOrder => BadRequest::Framing,
            Self::CodingUnknown => BadRequest::TransferCoding,
            Self::Expectation => BadRequest::Expectation,
        }
    }

    /// Whether the head at the start of `data` breaks it. httparse has read `theirs` from its first `head_len` bytes.
    fn is_broken(self, theirs: &Theirs<'_>, data: &[u8], head_len: usize) -> bool {
        let text = data.strip_prefix(b"\r\n").unwrap_or(data);
        let method = theirs.method;
        let all = |name: &'static str| theirs.all(name);
        let codings = || all("transfer-encoding").map(|value| members(value).collect::<Vec<_>>());
        match self {
            Self::BareLineFeed => {
                let head = &data[..head_len];
                head.first() == Some(&b'\n')
                    || head.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r')
            }
            Self::EmptyLines => text.starts_with(b"\r"),
            Self::Target => !is_target(method, theirs.path) && method != "CONNECT",
            Self::Scheme => theirs.path.to_ascii_lowercase().starts_with("https://"),
            Self::Tunnel => method == "CONNECT",
            Self::MethodLen => method.len() >= REQUEST_LINE_LEN_MAX - 1,
            Self::TargetLen => theirs.path.len() > TARGET_LEN_MAX,
            Self::LineLen => {
                text.iter().position(|&byte| byte == b'\n').is_some_and(|end| end >= REQUEST_LINE_LEN_MAX)
            }
            Self::HeadLen => {
                text.len() >= HEAD_LEN_MAX
                    && !text[..HEAD_LEN_MAX].windows(4).any(|window| window == b"\r\n\r\n")
            }
            Self::FieldCount => theirs.fields.len() > HEAD_FIELDS_MAX,
            Self::Repetition => SINGLE.iter().any(|name| all(name).count() > 1),
            Self::HostMissing => theirs.is_http11 && all("host").next().is_none(),
            Self::HostSyntax => all("host").any(|host| !is_authority(host)),
            Self::LengthSyntax => all("content-length").any(|value| length(value).is_none()),
            Self::LengthAndCoding => all("transfer-encoding").chain(all("content-length")).count() > 1,
            Self::CodingInHttp10 => !theirs.is_http11 && all("transfer-encoding").next().is_some(),
            Self::CodingOrder => codings().any(|codings| {
                let is_empty = codings.iter().any(String::is_empty);
                is_empty || codings.iter().position(|coding| coding == "chunked") != Some(codings.len() - 1)
            }),
            Self::CodingUnknown => codings().any(|codings| codings.len() > 1),
            Self::Expectation => {
                let mut expected = all("expect").flat_map(members);
                expected.any(|member| !member.is_empty() && member != "100-continue")
            }
        }
    }
}

/// A head as httparse has read it.
struct Theirs<'a> {
    method: &'a str,
    path: &'a str,
    is_http11: bool,
    fields: Vec<(String, &'a [u8])>,
}

impl<'a> Theirs<'a> {
    /// The head at the start of `data`, and how long it is.
    fn read(data: &'a [u8]) -> Result<Option<(Self, usize)>, httparse::Error> {
        let mut headers = [httparse::EMPTY_HEADER; 4 * HEAD_FIELDS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(head_len) = request.parse(data)? else { return Ok(None) };
        let fields = request.headers.iter().map(|field| (field.name.to_ascii_lowercase(), field.value));
        let theirs = Self {
            method: request.method.unwrap_or_default(),
            path: request.path.unwrap_or_default(),
            is_http11: request.version == Some(1),
            fields: fields.collect(),
        };
        Ok(Some((theirs, head_len)))
    }

    /// The values of this field.
    fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |(field, _)| field == name).map(|(_, value)| *value)
    }

    /// Whether one of the values of this field, which is a list, has this member.
    fn lists(&self, name: &str, member: &str) -> bool {
        self.all(name).flat_map(members).any(|found| found == member)
    }
}

/// The members of a list, in small letters.
fn members(value: &[u8]) -> impl Iterator<Item = String> {
    let text = value.escape_ascii().to_string().to_ascii_lowercase().replace("\\t", "\t");
    text.split(',').map(|member| member.trim().to_owned()).collect::<Vec<_>>().into_iter()
}

fn length(value: &[u8]) -> Option<u64> {
    let text = str::from_utf8(value).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A target that is no absolute URI has no authority.
fn split_target(target: &str) -> (Option<&str>, &str) {
    let Some((_, rest)) = target.split_once("://").filter(|_| !target.starts_with('/')) else {
        return (None, target);
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    (Some(authority), path)
}

fn is_target(method: &str, target: &str) -> bool {
    let is_of_uri = |text: &str| {
        text.chars().all(|char| char.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/?%".contains(char))
    };
    let scheme = target.split("://").next().unwrap_or_default().to_ascii_lowercase();
    match split_target(target) {
        (None, target) => {
            target.starts_with('/') && is_of_uri(target) || target == "*" && method == "OPTIONS"
        }
        (Some(authority), path) => {
            ["http", "https"].contains(&&*scheme)
                && !authority.is_empty()
                && !authority.starts_with(':')
                && is_authority(authority.as_bytes())
                && is_of_uri(path)
        }
    }
}

fn is_authority(authority: &[u8]) -> bool {
    let Ok(authority) = str::from_utf8(authority) else { return false };
    let of_name = |char: char| char.is_ascii_alphanumeric() || "-._~!$&'()*+;=%".contains(char);
    let (host, port) = match authority.rfind(']') {
        Some(end) => authority.split_at(end + 1),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        None => {
            let escapes_are_whole = host.split('%').skip(1).all(|after| {
                after.get(..2).is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            });
            host.chars().all(of_name) && escapes_are_whole
        }
        Some(address) => match address.strip_prefix(['v', 'V']) {
            None => address.parse::<core::net::Ipv6Addr>().is_ok(),
            Some(future) => future.split_once('.').is_some_and(|(version, rest)| {
                let of_rest = |char| char == ':' || char == ',' || char != '%' && of_name(char);
                let is_version = !version.is_empty() && version.chars().all(|char| char.is_ascii_hexdigit());
                is_version && !rest.is_empty() && rest.chars().all(of_rest)
            }),
        },
    };
    let is_port = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some(digits) => digits.bytes().all(|digit| digit.is_ascii_digit()),
    };
    is_host && is_port
}

/// Parses arbitrary bytes whole and cut in two, and demands that both agree, and that they are refused where httparse refuses them or a
/// rule is broken, and nowhere else.
pub fn fuzz_head(data: &[u8]) {
    let whole = parse(data, 0);
    for cut in [data.len() / 2, data.len().saturating_sub(1), data.len().min(40)] {
        match parse(&data[..cut], 0) {
            Ok(Parsed::Partial { scanned_len }) => assert_eq!(parse(data, scanned_len), whole),
            early => assert_eq!(early, whole),
        }
    }
    compare(data, &whole);
    let Err(bad) = whole else { return };
    if !matches!(Theirs::read(data), Ok(None)) {
        return;
    }
    // Refused before it was whole: then it is wrong however it ends.
    for end in ["", "\n", "\r\n", " HTTP/1.1\r\n", " / HTTP/1.1\r\n"] {
        let ended = [data, end.as_bytes(), b"Host: a\r\n\r\n"].concat();
        assert_eq!(parse(&ended, 0), Err(bad), "{}", ended.escape_ascii());
        compare(&ended, &Err(bad));
    }
}

fn compare(data: &[u8], ours: &Result<Parsed<'_>, BadRequest>) {
    let shown = data.escape_ascii();
    match Theirs::read(data) {
        Err(httparse::Error::Version) => {
            // They know no minor version above 1, which RFC 9110 section 2.5 wants to be served like that.
            let Some(minor) = later_minor(data) else { return assert!(!is_complete(ours), "{shown}") };
            let mut older = data.to_vec();
            older[minor] = b'1';
            let alike = match parse(&older, 0) {
                Ok(Parsed::Complete { request, head_len }) => {
                    *ours == Ok(Parsed::Complete { request, head_len })
                }
                other => *ours == other,
            };
            assert!(alike, "{shown}");
            compare(&older, &parse(&older, 0));
        }
        Err(_) | Ok(None) => assert!(!is_complete(ours), "{shown}"),
        Ok(Some((theirs, their_len))) => {
            let broken = || Rule::ALL.into_iter().filter(|rule| rule.is_broken(&theirs, data, their_len));
            match ours {
                Ok(Parsed::Complete { request, head_len }) => {
                    assert_eq!((broken().next(), *head_len), (None, their_len), "{shown}");
                    assert_reads_alike(request, &theirs);
                }
                // To us it has no end yet.
                Ok(Parsed::Partial { .. }) => {
                    assert!(broken().any(|rule| rule == Rule::BareLineFeed), "{shown}");
                }
                Err(bad) => assert!(broken().any(|rule| rule.refusal() == *bad), "{bad:?}: {shown}"),
            }
        }
    }
}

fn is_complete(ours: &Result<Parsed<'_>, BadRequest>) -> bool {
    matches!(ours, Ok(Parsed::Complete { .. }))
}

/// Where the minor version stands, if it is above 1.
fn later_minor(data: &[u8]) -> Option<usize> {
    let line_end = data.windows(2).skip(1).position(|pair| pair == b"\r\n")? + 1;
    let (line, minor) = data[..line_end].split_at(line_end - 1);
    (line.ends_with(b" HTTP/1.") && matches!(minor, [b'2'..=b'9'])).then_some(line_end - 1)
}

fn assert_reads_alike(request: &Request<'_>, theirs: &Theirs<'_>) {
    assert_eq!(request.method, Method::of(theirs.method.as_bytes()));
    assert_eq!(request.version == Version::Http11, theirs.is_http11);
    let (authority, path) = split_target(theirs.path);
    let target = match path {
        "" if request.method == Method::Options => "*",
        path if path.starts_with(['/', '*']) => path,
        _ => "/",
    };
    assert_eq!(request.target, target.as_bytes());
    assert_eq!(request.host, authority.map(str::as_bytes).or_else(|| theirs.all("host").next()));
    for (name, value) in [
        ("range", request.range),
        ("if-range", request.if_range),
        ("if-none-match", request.if_none_match),
        ("accept", request.accept),
        ("authorization", request.authorization),
        ("content-type", request.content_type),
        ("content-encoding", request.content_encoding),
        ("content-range", request.content_range),
        ("user-agent", request.user_agent),
        ("x-forwarded-for", request.x_forwarded_for),
        ("x-forwarded-proto", request.x_forwarded_proto),
        ("x-forwarded-host", request.x_forwarded_host),
    ] {
        assert_eq!(value, theirs.all(name).last(), "{name}");
    }
    let codings: Vec<_> = theirs.all("accept-encoding").collect();
    let accepted = if codings.len() > 1 { Some(&b""[..]) } else { codings.first().copied() };
    assert_eq!(request.accept_encoding, accepted);
    let body_length = match (theirs.all("content-length").next(), theirs.all("transfer-encoding").next()) {
        (Some(value), _) => BodyLength::Length(length(value).expect("no rule is broken")),
        (None, Some(_)) => BodyLength::Chunked,
        (None, None) => BodyLength::None,
    };
    assert_eq!(request.body_length(), body_length);
    let is_kept = theirs.is_http11 || theirs.lists("connection", "keep-alive");
    assert_eq!(request.keep_alive(), is_kept && !theirs.lists("connection", "close"));
    let has_body = !matches!(body_length, BodyLength::None | BodyLength::Length(0));
    let is_asked = theirs.is_http11 && has_body && theirs.lists("expect", "100-continue");
    assert_eq!(request.expects_continue(), is_asked);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_rule_is_needed() {
        let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let put = |coding: &str| get(&format!("Transfer-Encoding: {coding}\r\n"));
        let line = |method: &str, target: &str| format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let host = |host: &str| format!("GET / HTTP/1.1\r\n{host}\r\n");
        let heads = [
            (Rule::BareLineFeed, get("A: b\nC: d\r\n")),
            (Rule::EmptyLines, "\r\n\r\n".to_owned() + &get("")),
            (Rule::Target, line("GET", "a")),
            (Rule::Scheme, line("GET", "https://a/")),
            (Rule::Tunnel, line("CONNECT", "a:443")),
            (Rule::MethodLen, line(&"A".repeat(REQUEST_LINE_LEN_MAX), "/")),
            (Rule::TargetLen, line("GET", &format!("/{}", "a".repeat(TARGET_LEN_MAX)))),
            (Rule::LineLen, line(&"A".repeat(REQUEST_LINE_LEN_MAX - 4), "/")),
            (Rule::HeadLen, get(&format!("A: {}\r\n", "b".repeat(HEAD_LEN_MAX)))),
            (Rule::FieldCount, get(&"A: b\r\n".repeat(HEAD_FIELDS_MAX))),
            (Rule::Repetition, get("Range: a\r\nRange: a\r\n")),
            (Rule::HostMissing, host("")),
            (Rule::HostSyntax, host("Host: a@b\r\n")),
            (Rule::LengthSyntax, get("Content-Length: +1\r\n")),
            (Rule::LengthAndCoding, get("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n")),
            (Rule::CodingInHttp10, "PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()),
            (Rule::CodingOrder, put("identity")),
            (Rule::CodingUnknown, put("gzip, chunked")),
            (Rule::Expectation, get("Expect: a\r\n")),
        ];
        assert_eq!(heads.each_ref().map(|(rule, _)| *rule), Rule::ALL);
        for (rule, head) in heads {
            let (theirs, head_len) = Theirs::read(head.as_bytes()).unwrap().unwrap();
            let mut broken =
                Rule::ALL.into_iter().filter(|rule| rule.is_broken(&theirs, head.as_bytes(), head_len));
            // A method that is longer than any makes its line too long as well.
            let beside = (rule == Rule::MethodLen).then_some(Rule::LineLen);
            assert_eq!((broken.next(), broken.next(), broken.next()), (Some(rule), beside, None));
            assert_eq!(parse(head.as_bytes(), 0).unwrap_err(), rule.refusal(), "{head}");
            fuzz_head(head.as_bytes());
        }
    }

    #[test]
    fn good_heads_break_no_rule() {
        for head in ["GET / HTTP/1.1\r\nHost: [v1.a:b,c]:\r\n\r\n", "GET / HTTP/1.9\r\nHost: a%2f+\r\n\r\n"] {
            assert!(is_complete(&parse(head.as_bytes(), 0)), "{head}");
            fuzz_head(head.as_bytes());
        }
    }

    fn one_of(choices: &'static [&'static str]) -> impl Strategy<Value = String> {
        prop::sample::select(choices).prop_map(str::to_owned)
    }

    /// Mostly the first.
    fn mostly(usual: &'static str, others: &'static [&'static str]) -> impl Strategy<Value = String> {
        prop_oneof![12 => Just(usual.to_owned()), 1 => one_of(others)]
    }

    fn field() -> impl Strategy<Value = String> {
        let name = prop_oneof![
            6 => one_of(&SINGLE),
            6 => one_of(&[
                "Host", "CONTENT-LENGTH", "Transfer-Encoding", "connection", "Expect", "accept-encoding", "X-Forwarded-For",
            ]),
            2 => one_of(&["A", "Content_Length", "Hos", "Hostt", "Transfer-Encodin\u{e9}", "", "H ost", "\"", "~!#"]),
        ];
        let value = prop_oneof![
            8 => one_of(&["chunked", "1", "a", "close", "keep-alive", "100-continue", "bytes=0-", "\"t\""]),
            4 => one_of(&[
                "gzip, chunked", "chunked,", ",chunked", "CHUNKED", "chunked;a=b", "chunked, identity", "identity", "x chunked",
                "\"chunked\"", "chunked\t", "\tchunked", "00", "18446744073709551615", "18446744073709551616", "-1", "+1", "1,1", "",
                "a:", "a:1", "a:b", "a,b", "[::1]", "[::1]:80", "[::g]", "[v1.a]", "[v.a]", "a@b", "a%2", "a%2f", "Close, a",
                "a,,close", "100-Continue,,", "200-ok",
            ]),
            1 => "[ -~\t\u{80}-\u{ff}]{0,12}",
        ];
        let colon = mostly(": ", &[":", ":\t ", " :", "\t:", "", ":\u{b}", "::", ": \r\n "]);
        (name, colon, value, mostly("", &[" ", "\t", "\r", "\0", "\u{7f}"]), line_end())
            .prop_map(|(name, colon, value, rest, end)| [name, colon, value, rest, end].concat())
    }

    fn line_end() -> impl Strategy<Value = String> {
        mostly("\r\n", &["\n", "\r", "\r\r\n", "\n\r\n", "\r\n\r", ""])
    }

    fn request_line() -> impl Strategy<Value = String> {
        let method = mostly("GET", &["PUT", "HEAD", "OPTIONS", "get", "CONNECT", "P(T", "", "PATCH"]);
        let space = || mostly(" ", &["  ", "\t", "", "\u{b}"]);
        let target = prop_oneof![
            8 => one_of(&["/", "/a?b", "/%zz", "*", "http://a", "http://a?b", "HTTP://a:1/", "https://a/", "//a/b"]),
            2 => one_of(&["", "a", "a:1", "/a#b", "/\\", "/\u{e9}", "ftp://a/", "http://", "http://:1/", "http://a@b/", "http://[::1]/"]),
            1 => "[!-~]{1,12}",
        ];
        let version = mostly(
            "HTTP/1.1",
            &["HTTP/1.0", "HTTP/1.5", "HTTP/2.0", "http/1.1", "HTTP/1.10", "HTTP/1", "", "HTTP/0.9"],
        );
        (mostly("", &["\r\n", "\n", "\r\n\r\n", " "]), method, space(), target, space(), version, line_end())
            .prop_map(|(lead, method, one, target, two, version, end)| {
                [lead, method, one, target, two, version, end].concat()
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn heads_by_the_grammar(
            line in request_line(), host in mostly("Host: a\r\n", &["", "Host:\r\n"]),
            fields in prop::collection::vec(field(), 0..4), end in mostly("\r\n", &["", "\n", "\r"]),
        ) {
            fuzz_head([line, host, fields.concat(), end].concat().as_bytes());
        }
    }
}
