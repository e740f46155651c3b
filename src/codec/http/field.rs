//! What the values of header fields mean: lists, ranges, entity tags, codings.

use std::ops::Range;

use memchr::memchr;

use crate::limits::ETAG_OPAQUE_LEN_MAX;

/// The members of a comma-separated list without quoted strings, trimmed; empty members are skipped
/// (RFC 9110 section 5.6.1).
pub(super) struct ListItems<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> ListItems<'a> {
    pub(super) fn new(value: &'a [u8]) -> Self {
        Self { rest: Some(value) }
    }
}

impl<'a> Iterator for ListItems<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let rest = self.rest?;
            let item_len = memchr(b',', rest).unwrap_or(rest.len());
            self.rest = rest.get(item_len + 1..);
            let item = rest[..item_len].trim_ascii();
            if !item.is_empty() {
                return Some(item);
            }
        }
    }
}

/// One range of bytes that a client asks for (RFC 9110 section 14.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `bytes=first-`: from an offset to the end. What Nix sends to resume a download.
    From {
        /// Offset of the first byte.
        first: u64,
    },
    /// `bytes=first-last`, both included, `first <= last`.
    Between {
        /// Offset of the first byte.
        first: u64,
        /// Offset of the last byte; may lie beyond the end.
        last: u64,
    },
    /// `bytes=-len`: the end of the representation.
    Suffix {
        /// How many bytes.
        len: u64,
    },
}

/// A [`ByteRange`] held against a length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// 206: this part, never empty, within the length.
    Satisfiable(Range<u64>),
    /// 416: no byte of it exists. A suffix of an empty representation is one: `Content-Range` cannot say it.
    Unsatisfiable,
}

impl ByteRange {
    /// The range in the value of a `Range` field, or `None` where the field is to be ignored and the whole sent
    /// (RFC 9110 section 14.2): another unit, malformed, or several ranges (no client of a cache asks for them, and a
    /// server need not do multipart). A position beyond 2^64 reads as 2^64 - 1: beyond any length alike.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (unit, set) = value.split_at_checked(6)?;
        if !unit.eq_ignore_ascii_case(b"bytes=") {
            return None;
        }
        let set = set.trim_ascii();
        let dash = memchr(b'-', set)?;
        match (&set[..dash], &set[dash + 1..]) {
            (b"", len) => Some(Self::Suffix { len: parse_saturating(len)? }),
            (first, b"") => Some(Self::From { first: parse_saturating(first)? }),
            (first, last) => {
                let (first, last) = (parse_saturating(first)?, parse_saturating(last)?);
                (first <= last).then_some(Self::Between { first, last })
            }
        }
    }

    /// The part of a representation of `len` bytes.
    pub fn resolve(self, len: u64) -> Resolved {
        let range = match self {
            Self::From { first } => first..len,
            Self::Between { first, last } => first..len.min(last.saturating_add(1)),
            Self::Suffix { len: suffix_len } => len.saturating_sub(suffix_len)..len,
        };
        if range.is_empty() { Resolved::Unsatisfiable } else { Resolved::Satisfiable(range) }
    }
}

fn parse_saturating(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        Some(value.saturating_mul(10).saturating_add(digit))
    })
}

/// A strong entity tag of ours, quotes included (RFC 9110 section 8.8.3): equal tags mean equal bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ETag {
    bytes: [u8; ETAG_OPAQUE_LEN_MAX + 2],
    len: u8,
}

const _: () = assert!(ETAG_OPAQUE_LEN_MAX + 2 <= u8::MAX as usize, "an ETag counts its bytes in one byte");

impl ETag {
    /// The strong tag `"opaque"`. `None` when `opaque` is longer than `ETAG_OPAQUE_LEN_MAX` or has a byte that is not
    /// visible ASCII, or a quote.
    pub fn new(opaque: &[u8]) -> Option<Self> {
        let is_valid = opaque.iter().all(|&byte| byte.is_ascii_graphic() && byte != b'"');
        if !is_valid || opaque.len() > ETAG_OPAQUE_LEN_MAX {
            return None;
        }
        let mut bytes = [0; ETAG_OPAQUE_LEN_MAX + 2];
        bytes[0] = b'"';
        bytes[1..=opaque.len()].copy_from_slice(opaque);
        bytes[opaque.len() + 1] = b'"';
        Some(Self { bytes, len: u8::try_from(opaque.len() + 2).ok()? })
    }

    /// The tag as a field value.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The tag as a field value.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("only ASCII was let in")
    }

    /// Whether the value of an `If-None-Match` field names this tag, by weak comparison, or is `*` (RFC 9110 section
    /// 13.1.2). Then GET and HEAD are answered 304, PUT 412. From the first malformed member on nothing matches.
    pub fn is_listed_in(&self, if_none_match: &[u8]) -> bool {
        if if_none_match == b"*" {
            return true;
        }
        let mut rest = if_none_match;
        loop {
            while let [b' ' | b'\t' | b',', after @ ..] = rest {
                rest = after;
            }
            rest = rest.strip_prefix(b"W/").unwrap_or(rest);
            let [b'"', opaque_and_more @ ..] = rest else { return false };
            let Some(opaque_len) = memchr(b'"', opaque_and_more) else { return false };
            let (tag, after) = rest.split_at(opaque_len + 2);
            if !matches!(after.trim_ascii_start(), [] | [b',', ..]) {
                return false;
            }
            if tag == self.as_bytes() {
                return true;
            }
            rest = after;
        }
    }

    /// Whether the value of an `If-Range` field is this tag, by strong comparison (RFC 9110 section 13.1.5). A date
    /// never is: this server sends no `Last-Modified`. When it is not, the `Range` field is ignored.
    pub fn is_if_range(&self, if_range: &[u8]) -> bool {
        if_range == self.as_bytes()
    }
}

impl std::fmt::Debug for ETag {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "ETag({})", self.as_str())
    }
}

/// Whether an `Accept-Encoding` field allows a content coding (RFC 9110 section 12.5.3).
///
/// The coding must be listed, or else `*`, with a weight above 0; a malformed weight counts as 0. Without the field any
/// coding would be allowed, but Nix before 2.14 sends none and decodes little, so that is a no.
pub fn accepts_coding(accept_encoding: Option<&[u8]>, coding: &str) -> bool {
    let Some(list) = accept_encoding else { return false };
    let preference = |name| parameters_of(list, name).map(|parameters| weight(parameters) > 0);
    preference(coding).or_else(|| preference("*")).unwrap_or(false)
}

/// Whether an `Accept` field names a media type, with a weight above 0 (RFC 9110 section 12.5.1). Who takes anything at all (`*/*`), and
/// who has no such field, did not ask for it.
pub fn names_media_type(accept: Option<&[u8]>, media_type: &str) -> bool {
    media_type_weight(accept, media_type) > 0
}

/// The weight that an `Accept` field gives to a media type by its name, in thousandths; 0 where it does not name it.
pub fn media_type_weight(accept: Option<&[u8]>, media_type: &str) -> u16 {
    let Some(parameters) = accept.and_then(|list| parameters_of(list, media_type)) else { return 0 };
    let is_weight = |parameter: &&[u8]| matches!(parameter.trim_ascii(), [b'q' | b'Q', b'=', ..]);
    let found = parameters.split(|&byte| byte == b';').find(is_weight);
    found.map_or(WEIGHT_WHOLE, |found| weight(&[b";", found].concat()))
}

/// What stands behind the first item of this name in a list: nothing, or what begins with `;`. `None` if there is no such item.
fn parameters_of<'a>(list: &'a [u8], name: &str) -> Option<&'a [u8]> {
    ListItems::new(list).find_map(|item| {
        let (found, parameters) = item.split_at(memchr(b';', item).unwrap_or(item.len()));
        found.trim_ascii_end().eq_ignore_ascii_case(name.as_bytes()).then_some(parameters)
    })
}

/// The weight of who says nothing of it, in thousandths.
const WEIGHT_WHOLE: u16 = 1000;

/// A weight in thousandths; 0 if it is malformed. `parameters` is empty or begins with `;`.
fn weight(parameters: &[u8]) -> u16 {
    let [b';', weight @ ..] = parameters else { return WEIGHT_WHOLE };
    let [b'q' | b'Q', b'=', whole @ (b'0' | b'1'), fraction @ ..] = weight.trim_ascii() else { return 0 };
    let digits = match fraction {
        [] => fraction,
        [b'.', digits @ ..] if digits.len() <= 3 && digits.iter().all(u8::is_ascii_digit) => digits,
        _ => return 0,
    };
    let thousandths =
        (0..3).fold(0, |sum, place| 10 * sum + digits.get(place).map_or(0, |digit| u16::from(digit - b'0')));
    match (whole, thousandths) {
        (b'0', thousandths) => thousandths,
        (_, 0) => WEIGHT_WHOLE,
        _ => 0,
    }
}

/// Reads arbitrary bytes as each kind of field value, and holds what comes out against its bounds.
#[cfg(any(test, fuzzing))]
pub fn fuzz_fields(data: &[u8]) {
    let Some((length, value)) = data.split_first_chunk::<8>() else { return };
    let len = u64::from_le_bytes(*length);
    if let Some(Resolved::Satisfiable(part)) = ByteRange::parse(value).map(|range| range.resolve(len)) {
        assert!(part.start < part.end && part.end <= len);
    }
    if let Some(etag) = ETag::new(value) {
        assert!(etag.is_if_range(etag.as_bytes()) && etag.is_listed_in(etag.as_bytes()));
    }
    if let Some(etag) = ETag::new(b"a") {
        let is_listed = value == b"*" || memchr::memmem::find(value, b"\"a\"").is_some();
        assert!(is_listed || !etag.is_listed_in(value));
    }
    if accepts_coding(Some(value), "zstd") {
        assert!(value.contains(&b'*') || value.windows(4).any(|window| window.eq_ignore_ascii_case(b"zstd")));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges() {
        use ByteRange::{Between, From, Suffix};
        for (value, expected) in [
            ("bytes=0-", Some(From { first: 0 })),
            ("bytes=123-", Some(From { first: 123 })),
            ("BYTES=0-0", Some(Between { first: 0, last: 0 })), // RFC 9110 section 14.1: units know no case
            ("bytes=007-8", Some(Between { first: 7, last: 8 })),
            ("bytes=-5", Some(Suffix { len: 5 })),
            ("bytes=-0", Some(Suffix { len: 0 })),
            ("bytes= 1-2 ", Some(Between { first: 1, last: 2 })),
            ("bytes=99999999999999999999-", Some(From { first: u64::MAX })),
            ("bytes=0-99999999999999999999", Some(Between { first: 0, last: u64::MAX })),
            ("bytes=2-1", None), // RFC 9110 section 14.1.1: invalid
            ("bytes=", None),
            ("bytes=-", None),
            ("bytes", None),
            ("", None),
            ("bytes=1", None),
            ("bytes=a-", None),
            ("bytes=1-a", None),
            ("bytes=+1-", None),
            ("bytes=1--2", None),
            ("bytes=--2", None),
            ("bytes=1 -2", None),
            ("bytes =1-2", None),
            ("bytes=0-0,2-2", None), // several
            ("bytes=0-,", None),
            ("items=0-1", None), // RFC 9110 section 14.2: unknown unit
            ("items=bytes=0-1", None),
        ] {
            assert_eq!(ByteRange::parse(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn ranges_against_lengths() {
        for (value, len, expected) in [
            ("bytes=0-", 10, Some(0..10)),
            ("bytes=9-", 10, Some(9..10)),
            ("bytes=10-", 10, None),
            ("bytes=11-", 10, None),
            ("bytes=0-0", 10, Some(0..1)),
            ("bytes=3-5", 10, Some(3..6)),
            ("bytes=3-100", 10, Some(3..10)),
            ("bytes=10-100", 10, None),
            ("bytes=-3", 10, Some(7..10)),
            ("bytes=-100", 10, Some(0..10)),
            ("bytes=-0", 10, None),
            ("bytes=0-", 0, None),
            ("bytes=-1", 0, None),
            ("bytes=0-18446744073709551615", u64::MAX, Some(0..u64::MAX)),
        ] {
            let resolved = ByteRange::parse(value.as_bytes()).unwrap().resolve(len);
            assert_eq!(
                resolved,
                expected.map_or(Resolved::Unsatisfiable, Resolved::Satisfiable),
                "{value} of {len}"
            );
        }
    }

    fn etag() -> ETag {
        ETag::new(b"a,b").unwrap()
    }

    #[test]
    fn etags() {
        assert_eq!(etag().as_str(), "\"a,b\"");
        assert_eq!(etag(), ETag::new(b"a,b").unwrap());
        assert_ne!(etag(), ETag::new(b"a,c").unwrap());
        assert!(ETag::new(&[b'x'; ETAG_OPAQUE_LEN_MAX]).is_some());
        assert!(ETag::new(&[b'x'; ETAG_OPAQUE_LEN_MAX + 1]).is_none());
        for opaque in ["a\"b", "a b", "a\r\n", "\u{e9}"] {
            assert_eq!(ETag::new(opaque.as_bytes()), None);
        }
    }

    #[test]
    fn if_none_match_compares_weakly() {
        for (value, expected) in [
            ("*", true),
            ("\"a,b\"", true),
            ("W/\"a,b\"", true),
            ("\"x\", \"a,b\"", true),
            ("\"x\",W/\"y\" , W/\"a,b\",\"z\"", true),
            (", ,\"a,b\"", true), // RFC 9110 section 5.6.1: empty members
            ("\"a,b\" garbage", false),
            ("\"x\"", false),
            ("\"x\" \"a,b\"", false), // no comma
            ("a,b", false),
            ("\"a,b", false),
            ("w/\"a,b\"", false),
            ("W/ \"a,b\"", false),
            ("\"x\", *", false),
            ("garbage, \"a,b\"", false),
            ("", false),
            ("\"", false),
            ("\"a\",b\"", false),
        ] {
            assert_eq!(etag().is_listed_in(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn if_range_compares_strongly() {
        assert!(etag().is_if_range(b"\"a,b\""));
        for value in ["W/\"a,b\"", "*", "a,b", "\"a,b\", \"a,b\"", "", "Sun, 06 Nov 1994 08:49:37 GMT"] {
            assert!(!etag().is_if_range(value.as_bytes()), "{value}");
        }
    }

    #[test]
    fn codings() {
        for (value, expected) in [
            (Some("zstd, br, gzip, deflate, bzip2, xz"), true), // Nix 2.26
            (Some("deflate, gzip, br, zstd"), true),            // Nix 2.34
            (Some("ZSTD"), true),
            (Some("*"), true),
            (Some("gzip, *;q=0.5"), true),
            (Some("zstd;q=0.001"), true),
            (Some("zstd ; Q=1.000"), true),
            (Some("*;q=0, zstd"), true),
            (None, false),
            (Some(""), false),
            (Some("identity"), false),
            (Some("gzip"), false),
            (Some("zstd;q=0"), false),
            (Some("zstd;q=0.000"), false),
            (Some("*, zstd;q=0"), false),
            (Some("*;q=0"), false),
            (Some("zstd;q=2"), false),
            (Some("zstd;q=1.001"), false),
            (Some("zstd;q=0.0001"), false),
            (Some("zstd;level=3"), false),
            (Some("zstd;"), false),
            (Some("xzstd, zstdx"), false),
        ] {
            assert_eq!(accepts_coding(value.map(str::as_bytes), "zstd"), expected, "{value:?}");
        }
    }

    #[test]
    fn a_media_type_is_asked_for_by_its_name() {
        const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, media_type, expected) in [
            (Some(BROWSER), "text/html", true),
            (Some(BROWSER), "text/plain", false),
            (Some(PROMETHEUS), "application/openmetrics-text", true),
            (Some("text/html;level=1;q=0"), "text/html", false),
            (Some("text/html; q=0.0 ; level=1"), "text/html", false),
            (Some("TEXT/HTML ; Q=0.001"), "text/html", true),
            (Some("text/htmlx, */*, text/*"), "text/html", false),
            (Some(""), "text/html", false),
            (None, "text/html", false),
        ] {
            assert_eq!(names_media_type(accept.map(str::as_bytes), media_type), expected, "{accept:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_values(length in any::<u64>(), value in "(bytes=)?[-0-9a, W/\"*]{0,12}(zstd)?[;q=.01]{0,6}") {
            fuzz_fields(&[&length.to_le_bytes(), value.as_bytes()].concat());
        }

        #[test]
        fn a_range_selects_what_the_naive_twin_selects(value in "bytes=[0-9]{0,2}-[0-9]{0,2}", len in 0..60_u64) {
            let (first, last) = value["bytes=".len()..].split_once('-').unwrap();
            let (first, last) = (first.parse::<u64>().ok(), last.parse::<u64>().ok());
            let range = ByteRange::parse(value.as_bytes());
            let is_malformed = match (first, last) {
                (Some(first), Some(last)) => last < first,
                (first, last) => first.is_none() && last.is_none(),
            };
            prop_assert_eq!(range.is_none(), is_malformed);
            if let Some(range) = range {
                let is_selected = |position: &u64| match (first, last) {
                    (Some(first), last) => *position >= first && last.is_none_or(|last| *position <= last),
                    (None, suffix) => len - *position <= suffix.unwrap(),
                };
                let selected: Vec<u64> = (0..len).filter(is_selected).collect();
                match range.resolve(len) {
                    Resolved::Satisfiable(part) => prop_assert_eq!(part.collect::<Vec<u64>>(), selected),
                    Resolved::Unsatisfiable => prop_assert!(selected.is_empty()),
                }
            }
        }
    }
}
