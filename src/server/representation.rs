//! What a resource is, and what part of it a request gets: conditions and ranges in one place (RFC 9110 sections 13
//! and 14).

use std::ops::Range;
use std::os::fd::OwnedFd;

use bytes::Bytes;

use super::page;
use crate::codec::http::field::{ByteRange, ETag, Resolved};
use crate::codec::http::request::Request;
use crate::codec::http::response::{CacheControl, Fields};
use crate::codec::http::{Method, Status};
use crate::ring::body::{Body, FileBody, FilePiece, FileSource, Lookup, Piece};
use crate::ring::descriptor::Descriptor;
use crate::ring::service::{Reply, ReplyBody};

/// How long others may keep a narinfo, whose path can be deleted.
pub const NARINFO_CACHE_CONTROL: CacheControl = CacheControl::MaxAge(86_400);
/// How long others may keep what is named after its contents, or never changes.
pub const IMMUTABLE_CACHE_CONTROL: CacheControl = CacheControl::MaxAge(31_536_000);
/// The media type of a narinfo.
pub const NARINFO_TYPE: &str = "text/x-nix-narinfo";
/// The media type of a NAR.
pub const NAR_TYPE: &str = "application/x-nix-nar";
/// The media type of `nix-cache-info`.
pub const CACHE_INFO_TYPE: &str = "text/x-nix-cache-info";
/// The media type of listings, realisations and debug links.
pub const JSON_TYPE: &str = "application/json";
/// The media type of logs.
pub const TEXT_TYPE: &str = "text/plain; charset=utf-8";

/// What a request says about which part it wants, and when.
#[derive(Debug, Default)]
pub struct Conditions {
    range: Option<ByteRange>,
    if_range: Option<Box<[u8]>>,
    if_none_match: Option<Box<[u8]>>,
}

/// Something that can be sent, whole or in part.
pub struct Representation {
    /// The media type.
    pub content_type: &'static str,
    /// How long others may keep it.
    pub cache_control: CacheControl,
    /// Names these very bytes; with it come ranges.
    pub etag: Option<ETag>,
    /// The bytes.
    pub content: Content,
}

/// The bytes of a representation.
pub enum Content {
    /// In memory.
    Bytes(Bytes),
    /// Made while it is sent; length in bytes.
    Body(Box<dyn Body>, u64),
}

/// A representation that another thread has made, or another answer that needs no more than a text.
#[derive(Debug)]
pub struct Made {
    /// The status, unless a part of it is sent.
    pub status: Status,
    /// The media type.
    pub content_type: &'static str,
    /// How long others may keep it.
    pub cache_control: CacheControl,
    /// Names these very bytes; with it come ranges.
    pub etag: Option<ETag>,
    /// What else is said of it.
    pub fields: Fields,
    /// The bytes.
    pub content: MadeContent,
}

/// The bytes of what another thread has made.
#[derive(Debug)]
pub enum MadeContent {
    /// In memory.
    Bytes(Bytes),
    /// In an open file; length in bytes.
    File(OwnedFd, u64),
    /// In a part of an open file. Bytes.
    FilePart(OwnedFd, Range<u64>),
}

/// A body that is a part of an open file.
struct FilePart {
    file: Descriptor,
    /// Where in the file. Bytes.
    range: Range<u64>,
}

impl Body for FilePart {
    fn piece_at(&mut self, position: u64) -> Lookup<'_> {
        let Range { start, end } = self.range;
        match start.checked_add(position).and_then(|offset| Some((offset, end.checked_sub(offset)?))) {
            Some((offset, len @ 1..)) => {
                Lookup::Piece(Piece::File(FilePiece { source: FileSource::Open(&self.file), offset, len }))
            }
            _ => Lookup::Broken,
        }
    }
}

impl Conditions {
    /// What `request` says. A range is defined for GET alone.
    pub fn of(request: &Request<'_>) -> Self {
        let is_get = request.method == Method::Get;
        Self {
            range: request.range.filter(|_| is_get).and_then(ByteRange::parse),
            if_range: request.if_range.map(Box::from),
            if_none_match: request.if_none_match.map(Box::from),
        }
    }

    /// Whether the whole is wanted in any case.
    pub fn are_none(&self) -> bool {
        self.range.is_none() && self.if_none_match.is_none()
    }

    /// Whether the rest of something is wanted that was begun before. To who asks like that the whole is of no use: curl gives
    /// up on it, and Nix with it.
    pub fn is_resumption(&self) -> bool {
        self.if_range.is_none() && matches!(self.range, Some(ByteRange::From { first: 1.. }))
    }

    fn is_known(&self, etag: Option<&ETag>) -> bool {
        match (&self.if_none_match, etag) {
            (Some(tags), Some(etag)) => etag.is_listed_in(tags),
            _ => false,
        }
    }

    /// The range, unless it was wanted of other bytes than these. Without a tag there are no ranges.
    fn range(&self, etag: Option<&ETag>) -> Option<ByteRange> {
        let etag = etag?;
        self.range.filter(|_| self.if_range.as_ref().is_none_or(|if_range| etag.is_if_range(if_range)))
    }
}

impl Representation {
    /// The answer to a request with these conditions.
    pub fn reply(self, conditions: &Conditions) -> Reply {
        self.reply_with(Status::Ok, Fields::new(), conditions)
    }

    /// The same with another status for the whole, and more to be said of it.
    fn reply_with(self, status: Status, more: Fields, conditions: &Conditions) -> Reply {
        if conditions.is_known(self.etag.as_ref()) {
            let fields = self.fields(more).finish();
            return Reply { status: Status::NotModified, fields, body: ReplyBody::Empty };
        }
        let len = self.len_bytes();
        let Some(range) = conditions.range(self.etag.as_ref()) else {
            let fields = self.entity_fields(more).content_length(len).finish();
            return Reply { status, fields, body: self.body(0..len) };
        };
        match range.resolve(len) {
            Resolved::Satisfiable(range) => {
                let fields = self.entity_fields(more).content_range(&range, len);
                let fields = fields.content_length(range.end - range.start).finish();
                Reply { status: Status::PartialContent, fields, body: self.body(range) }
            }
            Resolved::Unsatisfiable => {
                let fields = Fields::new().content_range_unsatisfied(len);
                let text = format!("the range lies behind the end: there are {len} bytes\n");
                Reply::text_with(Status::RangeNotSatisfiable, fields, text)
            }
        }
    }

    /// Length of the whole. Bytes.
    pub fn len_bytes(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Body(_, len_bytes) => *len_bytes,
        }
    }

    /// What a 304 repeats.
    fn fields(&self, more: Fields) -> Fields {
        let fields = more.cache_control(self.cache_control);
        match &self.etag {
            Some(etag) => fields.etag(etag),
            None => fields,
        }
    }

    fn entity_fields(&self, more: Fields) -> Fields {
        let fields = self.fields(more).content_type(self.content_type);
        if self.etag.is_some() { fields.accept_ranges() } else { fields }
    }

    fn body(self, range: Range<u64>) -> ReplyBody {
        match self.content {
            Content::Bytes(bytes) => {
                let bounds = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
                ReplyBody::Bytes(bounds.map_or_else(Bytes::new, |(start, end)| bytes.slice(start..end)))
            }
            Content::Body(body, _) => ReplyBody::Stream { body, range },
        }
    }
}

impl Made {
    /// A text that holds for this moment.
    pub fn fresh(content_type: &'static str, text: impl Into<Bytes>) -> Self {
        Self { cache_control: CacheControl::NoStore, ..Self::immutable(content_type, text) }
    }

    /// A text that never changes.
    pub fn immutable(content_type: &'static str, text: impl Into<Bytes>) -> Self {
        Self {
            status: Status::Ok,
            content_type,
            cache_control: IMMUTABLE_CACHE_CONTROL,
            etag: None,
            fields: Fields::new(),
            content: MadeContent::Bytes(text.into()),
        }
    }

    /// A page for people, as it is at this moment.
    pub fn page(status: Status, document: impl Into<Bytes>) -> Self {
        Self { status, fields: page::guards(), ..Self::fresh(page::HTML_TYPE, document) }
    }

    /// What was asked for is to be found at another URL.
    pub fn elsewhere(url: &str) -> Self {
        let fields = Fields::new().location(url);
        Self { status: Status::SeeOther, fields, ..Self::fresh(TEXT_TYPE, format!("see {url}\n")) }
    }

    /// The answer to a request with these conditions.
    pub fn reply(self, conditions: &Conditions) -> Reply {
        let Self { status, content_type, cache_control, etag, fields, content } = self;
        let content = match content {
            MadeContent::Bytes(bytes) => Content::Bytes(bytes),
            MadeContent::File(file, len_bytes) => {
                Content::Body(Box::new(FileBody { file: Descriptor::from(file), len_bytes }), len_bytes)
            }
            MadeContent::FilePart(file, range) => {
                let len_bytes = range.end.saturating_sub(range.start);
                Content::Body(Box::new(FilePart { file: Descriptor::from(file), range }), len_bytes)
            }
        };
        let whole = Representation { content_type, cache_control, etag, content };
        whole.reply_with(status, fields, conditions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters() -> Representation {
        Representation {
            content_type: "text/plain",
            cache_control: CacheControl::MaxAge(60),
            etag: ETag::new(b"tag"),
            content: Content::Bytes(Bytes::from_static(b"abcdefghij")),
        }
    }

    fn conditions(range: &[u8], if_range: Option<&[u8]>, if_none_match: Option<&[u8]>) -> Conditions {
        Conditions {
            range: ByteRange::parse(range),
            if_range: if_range.map(Box::from),
            if_none_match: if_none_match.map(Box::from),
        }
    }

    fn check(conditions: &Conditions, status: Status, body: &[u8], field: &str) {
        let reply = letters().reply(conditions);
        assert_eq!(reply.status, status);
        let fields = String::from_utf8(reply.fields.to_vec()).unwrap();
        assert!(fields.contains(field), "{fields}");
        match reply.body {
            ReplyBody::Empty => assert!(body.is_empty()),
            ReplyBody::Bytes(bytes) if status == Status::RangeNotSatisfiable => assert!(!bytes.is_empty()),
            ReplyBody::Bytes(bytes) => assert_eq!(bytes, body),
            _ => panic!("bytes stay bytes"),
        }
    }

    #[test]
    fn conditions_and_ranges() {
        let none = None;
        check(&Conditions::default(), Status::Ok, b"abcdefghij", "Accept-Ranges: bytes\r\n");
        check(
            &conditions(b"bytes=2-3", none, none),
            Status::PartialContent,
            b"cd",
            "Content-Range: bytes 2-3/10\r\n",
        );
        check(&conditions(b"bytes=-3", none, none), Status::PartialContent, b"hij", "Content-Length: 3\r\n");
        check(
            &conditions(b"bytes=8-", none, none),
            Status::PartialContent,
            b"ij",
            "Accept-Ranges: bytes\r\n",
        );
        check(
            &conditions(b"bytes=10-", none, none),
            Status::RangeNotSatisfiable,
            b"",
            "Content-Range: bytes */10\r\n",
        );
        check(&conditions(b"bytes=0-0,2-2", none, none), Status::Ok, b"abcdefghij", "Content-Length: 10\r\n");
        check(
            &conditions(b"bytes=2-3", Some(b"\"tag\""), none),
            Status::PartialContent,
            b"cd",
            "206".get(3..).unwrap(),
        );
        check(
            &conditions(b"bytes=2-3", Some(b"\"other\""), none),
            Status::Ok,
            b"abcdefghij",
            "ETag: \"tag\"\r\n",
        );
        check(
            &conditions(b"", none, Some(b"W/\"tag\", \"x\"")),
            Status::NotModified,
            b"",
            "ETag: \"tag\"\r\n",
        );
        check(
            &conditions(b"bytes=2-3", none, Some(b"\"tag\"")),
            Status::NotModified,
            b"",
            "Cache-Control: max-age=60\r\n",
        );
    }
}
