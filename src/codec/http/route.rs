//! Request targets as typed requests. What is no route is [`Route::NotFound`], a value: to a Nix client 404 means
//! "not here" and anything else an error, so there is no other way to be wrong.
//!
//! Percent-escapes are decoded once, segment by segment after the path was split, so that no escape can make a new
//! segment. `+` stays `+`: it is a legal character of store paths. (Only what a form sends has it for a space.)

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter, Write as _};

use memchr::memchr;

use crate::codec::build_id::BuildId;
use crate::codec::cache_file::CacheFile;
use crate::codec::hash::Sha256Digest;
use crate::codec::nar::inner_path::InnerPath;
use crate::codec::realisation::{DrvOutput, OutputName};
use crate::codec::store_path::{HashPart, StorePath};
use crate::limits::{SEARCH_TEXT_LEN_MAX, SEGMENT_LEN_MAX};

/// What a target asks for, whatever the method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/`
    Index,
    /// A file of a cache other than a NAR.
    File(CacheFile),
    /// A NAR by the store path it is made from.
    Nar(NarRequest),
    /// `/nar/<name>` of any other shape: a file of a cache directory, named by whoever wrote it.
    NarFile(RelativeName),
    /// `/import`: where `nix-store --export` is posted
    Import,
    /// `/version`
    Version,
    /// `/health`
    Health,
    /// `/metrics`
    Metrics,
    /// One of those with which people look around, and no Nix client does.
    Look(Look),
    /// Anything else.
    NotFound,
}

/// What people look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// `/<hash part>.narinfo?json`
    NarInfoJson(HashPart),
    /// `/search?q=<text>`: the text as it was typed.
    Search(Box<str>),
    /// `/path/<hash part>`; a name behind it says nothing more.
    Details(HashPart),
    /// `/serve/<hash part>/…`: what is in a store path.
    Contents(ContentsRequest),
}

/// Something in a store path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContentsRequest {
    /// The store path.
    pub hash_part: HashPart,
    /// Where in it.
    pub path: InnerPath,
    /// Whether the URL ends with a slash, as that of a directory has to: links on its page are relative to it.
    pub has_slash: bool,
    /// Whether a directory is to be listed although it has a page of its own.
    pub is_listing_wanted: bool,
}

/// A NAR made from a store path, in one of the shapes of URL that were ever given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NarRequest {
    /// Which path, and which contents of it.
    pub address: NarAddress,
    /// The coding of the answer.
    pub compression: NarCompression,
}

/// How a URL names a NAR. Where it has a NAR hash, a path with another one is not what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NarAddress {
    /// `nar/<NAR hash>.nar?hash=<hash part>`
    NarHash {
        /// The SHA-256 of the NAR.
        nar_hash: Sha256Digest,
        /// The store path.
        hash_part: HashPart,
    },
    /// `nar/<hash part>-<NAR hash>.nar`, as nix-serve has it.
    HashPartAndNarHash {
        /// The store path.
        hash_part: HashPart,
        /// The SHA-256 of the NAR.
        nar_hash: Sha256Digest,
    },
    /// `nar/<hash part>.nar`, as nix-serve once had it.
    HashPart {
        /// The store path.
        hash_part: HashPart,
    },
}

/// The coding of a NAR that is made from a store path, by the end of its URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NarCompression {
    /// `.nar`
    None,
    /// `.nar.zst`
    Zstd,
}

/// The name of a file in a cache directory, relative to it: one to three components of visible ASCII, none of which
/// begins with a dot. (Every name that Nix writes there is of this kind; temporary files can hide behind a dot.)
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelativeName(Box<str>);

impl Route {
    /// The route of a target in origin form (or `*`, which is none).
    pub fn parse(target: &[u8]) -> Self {
        if let Some(hash_part) = parse_narinfo_target(target) {
            return Self::File(CacheFile::NarInfo(hash_part));
        }
        parse_any_target(target).unwrap_or(Self::NotFound)
    }

    /// The file that answers this route in a cache directory, if it is one that a cache directory can answer.
    pub fn file_name(&self) -> Option<RelativeName> {
        match self {
            Self::NarFile(name) => Some(name.clone()),
            // The name of nearly all files that are asked for, and beyond doubt.
            Self::File(CacheFile::NarInfo(hash_part)) => {
                Some(RelativeName([hash_part.as_str(), ".narinfo"].concat().into()))
            }
            Self::File(file) => RelativeName::parse(&file.to_string()),
            Self::Nar(request) => RelativeName::parse(&request.file_name()),
            Self::Index
            | Self::Import
            | Self::Version
            | Self::Health
            | Self::Metrics
            | Self::Look(_)
            | Self::NotFound => None,
        }
    }
}

impl NarRequest {
    fn file_name(&self) -> String {
        let suffix = self.compression.suffix();
        match self.address {
            NarAddress::NarHash { nar_hash, .. } => format!("nar/{}{suffix}", nar_hash.to_nix32()),
            NarAddress::HashPartAndNarHash { hash_part, nar_hash } => {
                format!("nar/{}-{}{suffix}", hash_part.as_str(), nar_hash.to_nix32())
            }
            NarAddress::HashPart { hash_part } => format!("nar/{}{suffix}", hash_part.as_str()),
        }
    }
}

/// The URL relative to the cache, as the `URL` of a narinfo; [`Route::parse`] reads it back.
impl Display for NarRequest {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.file_name())?;
        match self.address {
            NarAddress::NarHash { hash_part, .. } => write!(formatter, "?hash={}", hash_part.as_str()),
            NarAddress::HashPartAndNarHash { .. } | NarAddress::HashPart { .. } => Ok(()),
        }
    }
}

impl NarAddress {
    /// The store path.
    pub fn hash_part(&self) -> HashPart {
        match *self {
            Self::NarHash { hash_part, .. }
            | Self::HashPartAndNarHash { hash_part, .. }
            | Self::HashPart { hash_part } => hash_part,
        }
    }

    /// The SHA-256 its NAR must have, where the URL says it.
    pub fn nar_hash(&self) -> Option<Sha256Digest> {
        match *self {
            Self::NarHash { nar_hash, .. } | Self::HashPartAndNarHash { nar_hash, .. } => Some(nar_hash),
            Self::HashPart { .. } => None,
        }
    }
}

impl NarCompression {
    fn suffix(self) -> &'static str {
        match self {
            Self::None => ".nar",
            Self::Zstd => ".nar.zst",
        }
    }
}

impl RelativeName {
    /// The name, if it is one.
    pub fn parse(name: &str) -> Option<Self> {
        let is_valid = name.split('/').count() <= 3 && name.split('/').all(is_safe_component);
        is_valid.then(|| Self(name.into()))
    }

    /// The name, components separated by `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The target of nearly all requests, told by its length and its end.
fn parse_narinfo_target(target: &[u8]) -> Option<HashPart> {
    HashPart::parse(target.strip_prefix(b"/")?.strip_suffix(b".narinfo")?)
}

fn parse_any_target(target: &[u8]) -> Option<Route> {
    let path_len = memchr(b'?', target).unwrap_or(target.len());
    let path = target[..path_len].strip_prefix(b"/")?;
    let query = target.get(path_len + 1..);
    if path.is_empty() {
        return Some(Route::Index);
    }
    let mut segments = path.split(|&byte| byte == b'/');
    let first = decode_segment(segments.next()?)?;
    match &*first {
        "path" => return parse_details(segments),
        "serve" => return parse_contents(segments, query),
        _ => {}
    }
    let mut next_segment = || match segments.next() {
        Some(segment) => decode_segment(segment).map(Some),
        None => Some(None),
    };
    let (second, third) = (next_segment()?, next_segment()?);
    if segments.next().is_some() {
        return None;
    }
    match (&*first, second.as_deref(), third.as_deref()) {
        ("nix-cache-info", None, None) => Some(Route::File(CacheFile::CacheInfo)),
        ("import", None, None) => Some(Route::Import),
        ("version", None, None) => Some(Route::Version),
        ("health", None, None) => Some(Route::Health),
        ("metrics", None, None) => Some(Route::Metrics),
        ("search", None, None) => Some(parse_search(query)),
        (file, None, None) => parse_path_file(file, query),
        ("nar", Some(file), None) => parse_nar(file, query),
        ("log", Some(name), None) => parse_log(name, query),
        ("realisations", Some(file), None) => parse_realisation(file),
        ("build-trace-v2", Some(derivation), Some(file)) => Some(Route::File(CacheFile::BuildTrace {
            derivation: StorePath::parse_base_name(derivation).ok()?,
            output: OutputName::parse(file.strip_suffix(".doi")?).ok()?,
        })),
        ("debuginfo", Some(file), None) => {
            let digits = file.strip_suffix(".debug");
            let build_id = BuildId::parse(digits.unwrap_or(file).as_bytes())?;
            Some(Route::File(CacheFile::DebugInfo { build_id, has_suffix: digits.is_some() }))
        }
        _ => None,
    }
}

fn parse_path_file(file: &str, query: Option<&[u8]>) -> Option<Route> {
    let (stem, extension) = file.split_once('.')?;
    let hash_part = HashPart::parse(stem.as_bytes())?;
    match extension {
        "narinfo" if has_parameter(query, b"json") => Some(Route::Look(Look::NarInfoJson(hash_part))),
        "narinfo" => Some(Route::File(CacheFile::NarInfo(hash_part))),
        "ls" => Some(Route::File(CacheFile::Listing(hash_part))),
        _ => None,
    }
}

/// A hash part, or the base name of a store path.
fn parse_path_name(name: &[u8]) -> Option<HashPart> {
    HashPart::parse(name).or_else(|| {
        let path = StorePath::parse_base_name(std::str::from_utf8(name).ok()?);
        path.ok().map(|path| path.hash_part())
    })
}

/// What was typed into a form, which says `+` for a space. What is no text or too long has characters in it that no name has, so it finds
/// nothing, and whoever typed it sees what it was taken for.
fn parse_search(query: Option<&[u8]>) -> Route {
    let text = parameters(query).find_map(|parameter| parameter.strip_prefix(b"q=")).unwrap_or_default();
    let spaced: Vec<u8> = text.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
    let bytes = decode_bytes(&spaced).unwrap_or(spaced);
    let text = String::from_utf8_lossy(&bytes);
    let cut = text.floor_char_boundary(SEARCH_TEXT_LEN_MAX);
    Route::Look(Look::Search(if cut < text.len() {
        format!("{}…", &text[..cut]).into()
    } else {
        text.into()
    }))
}

/// What follows `/path/`; a slash at the end, which people type, says nothing more.
fn parse_details<'a>(mut segments: impl Iterator<Item = &'a [u8]>) -> Option<Route> {
    let hash_part = parse_path_name(decode_segment(segments.next()?)?.as_bytes())?;
    let is_end = segments.next().is_none_or(<[u8]>::is_empty) && segments.next().is_none();
    is_end.then_some(Route::Look(Look::Details(hash_part)))
}

/// What follows `/serve/`. Names in a store path are any bytes, so each is decoded for itself, and none can be `..` or have a slash.
fn parse_contents<'a>(mut segments: impl Iterator<Item = &'a [u8]>, query: Option<&[u8]>) -> Option<Route> {
    let hash_part = parse_path_name(&decode_bytes(segments.next()?)?)?;
    let (mut path, mut has_slash) = (InnerPath::default(), false);
    for segment in segments {
        // An empty one is what stands behind a slash at the end, and nowhere else.
        if has_slash {
            return None;
        }
        if segment.is_empty() {
            has_slash = true;
        } else {
            path.push(&decode_bytes(segment)?).ok()?;
        }
    }
    let is_listing_wanted = has_parameter(query, b"listing");
    Some(Route::Look(Look::Contents(ContentsRequest { hash_part, path, has_slash, is_listing_wanted })))
}

fn parameters(query: Option<&[u8]>) -> impl Iterator<Item = &[u8]> {
    query.unwrap_or_default().split(|&byte| byte == b'&')
}

fn has_parameter(query: Option<&[u8]>, name: &[u8]) -> bool {
    parameters(query).any(|parameter| parameter.split(|&byte| byte == b'=').next() == Some(name))
}

fn parse_nar(file: &str, query: Option<&[u8]>) -> Option<Route> {
    let any_file = || RelativeName::parse(&format!("nar/{file}")).map(Route::NarFile);
    let plain = file.strip_suffix(".nar").map(|stem| (stem, NarCompression::None));
    let zstd = || file.strip_suffix(".nar.zst").map(|stem| (stem, NarCompression::Zstd));
    let Some((stem, compression)) = plain.or_else(zstd) else { return any_file() };
    let asked_hash_part = parse_hash_parameter(query).ok()?;
    match parse_nar_stem(stem.as_bytes(), asked_hash_part) {
        Some(address) => Some(Route::Nar(NarRequest { address, compression })),
        None => any_file(),
    }
}

fn parse_nar_stem(stem: &[u8], asked_hash_part: Option<HashPart>) -> Option<NarAddress> {
    if let Some(hash_part) = HashPart::parse(stem) {
        return Some(NarAddress::HashPart { hash_part });
    }
    if let Some(nar_hash) = Sha256Digest::from_nix32(stem) {
        // Without a store path it is a file that is named by its own hash.
        return asked_hash_part.map(|hash_part| NarAddress::NarHash { nar_hash, hash_part });
    }
    let dash = memchr(b'-', stem)?;
    let hash_part = HashPart::parse(&stem[..dash])?;
    let nar_hash = Sha256Digest::from_nix32(&stem[dash + 1..])?;
    Some(NarAddress::HashPartAndNarHash { hash_part, nar_hash })
}

/// The `hash` of a query, if it has one. An error when it is malformed, or when there are two.
fn parse_hash_parameter(query: Option<&[u8]>) -> Result<Option<HashPart>, ()> {
    let mut values = parameters(query).filter_map(|parameter| parameter.strip_prefix(b"hash="));
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => HashPart::parse(value).map(Some).ok_or(()),
        (Some(_), Some(_)) => Err(()),
    }
}

fn parse_log(name: &str, query: Option<&[u8]>) -> Option<Route> {
    // `?` is a legal character of store paths, and older clients send it as it is. But the name of a derivation has come to its end here.
    let name = match query {
        Some(query) if !name.as_bytes().ends_with(b".drv") => {
            Cow::Owned(format!("{name}?{}", decode_segment(query)?))
        }
        _ => Cow::Borrowed(name),
    };
    StorePath::parse_base_name(&name).ok().map(|path| Route::File(CacheFile::Log(path)))
}

fn parse_realisation(file: &str) -> Option<Route> {
    DrvOutput::parse(file.strip_suffix(".doi")?).ok().map(|id| Route::File(CacheFile::Realisation(id)))
}

/// A segment of a path, decoded; `None` when it is no safe component or has an invalid escape.
fn decode_segment(segment: &[u8]) -> Option<Cow<'_, str>> {
    let decoded = match memchr(b'%', segment) {
        None => Cow::Borrowed(std::str::from_utf8(segment).ok()?),
        Some(_) => Cow::Owned(decode_escapes(segment)?),
    };
    is_safe_component(&decoded).then_some(decoded)
}

/// Text with its escapes of the form `%2F` decoded; `None` when one is invalid, or there is no UTF-8.
pub fn decode_escapes(text: &[u8]) -> Option<String> {
    String::from_utf8(decode_bytes(text)?).ok()
}

/// Any bytes as a part of a URL: all but letters, digits and `-._~/` are escaped, so none of them means anything there.
pub fn encode_escapes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

fn decode_bytes(mut text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(escape) = memchr(b'%', text) {
        decoded.extend_from_slice(&text[..escape]);
        let (digits, rest) = text[escape + 1..].split_at_checked(2)?;
        let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        decoded.push(value(digits[0])? << 4 | value(digits[1])?);
        text = rest;
    }
    decoded.extend_from_slice(text);
    Some(decoded)
}

/// One component of a [`RelativeName`]. That none begins with a dot keeps `.` and `..` out, too.
fn is_safe_component(component: &str) -> bool {
    (1..=SEGMENT_LEN_MAX).contains(&component.len())
        && !component.starts_with('.')
        && component.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

/// Routes arbitrary bytes, and demands that the file of a route is a safe name that routes to the same file.
#[cfg(any(test, fuzzing))]
pub fn fuzz_route(data: &[u8]) {
    let route = Route::parse(data);
    let Some(name) = route.file_name() else { return };
    assert!(name.as_str().split('/').all(is_safe_component));
    let target = format!("/{}", name.as_str().replace('%', "%25").replace('?', "%3F"));
    assert_eq!(Route::parse(target.as_bytes()).file_name(), Some(name));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::NAR_DEPTH_MAX;

    const OUT: &str = "0c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz";
    const NAR: &str = "0r5q1kfn4s2ay6y8wk2sd1mp6hkrlgpzqdl4hqq0rqsdhn9k3zlj";
    const HEX: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    const BUILD_ID: &str = "0123456789abcdef0123456789abcdef01234567";

    /// Writes out `OUT`, `NAR`, `HEX` and `ID` where a template names them.
    fn fill(template: &str) -> String {
        template.replace("OUT", OUT).replace("NAR", NAR).replace("HEX", HEX).replace("ID", BUILD_ID)
    }

    fn route(template: &str) -> Route {
        Route::parse(fill(template).as_bytes())
    }

    fn file_name(template: &str) -> Option<String> {
        route(template).file_name().map(|name| name.as_str().to_owned())
    }

    fn out() -> HashPart {
        HashPart::parse(OUT.as_bytes()).unwrap()
    }

    fn nar_hash() -> Sha256Digest {
        Sha256Digest::from_nix32(NAR.as_bytes()).unwrap()
    }

    fn store_path(name: &str) -> StorePath {
        StorePath::parse_base_name(&format!("{OUT}-{name}")).unwrap()
    }

    fn output(name: &str) -> OutputName {
        OutputName::parse(name).unwrap()
    }

    fn nar(address: NarAddress, compression: NarCompression) -> Route {
        Route::Nar(NarRequest { address, compression })
    }

    /// The end is a slash where there is one, and `?` where a listing is wanted.
    fn contents(names: &[&[u8]], end: &str) -> Route {
        let mut path = InnerPath::default();
        for name in names {
            path.push(name).unwrap();
        }
        Route::Look(Look::Contents(ContentsRequest {
            hash_part: out(),
            path,
            has_slash: end.contains('/'),
            is_listing_wanted: end.contains('?'),
        }))
    }

    fn nar_file(name: &str) -> Route {
        Route::NarFile(RelativeName::parse(&fill(name)).unwrap())
    }

    #[test]
    fn routes() {
        use NarCompression::{None as Plain, Zstd};
        let (hash_part, nar_hash) = (out(), nar_hash());
        let drv_hash = Sha256Digest::from_database_text(&format!("sha256:{HEX}")).unwrap();
        let build_id = BuildId::parse(BUILD_ID.as_bytes()).unwrap();
        for (target, expected) in [
            ("/", Route::Index),
            ("/?a", Route::Index),
            ("/nix-cache-info", Route::File(CacheFile::CacheInfo)),
            ("/nix%2Dcache%2dinfo", Route::File(CacheFile::CacheInfo)),
            ("/version", Route::Version),
            ("/health", Route::Health),
            ("/health?verbose", Route::Health),
            ("/metrics", Route::Metrics),
            ("/metrics?name[]=up", Route::Metrics),
            ("/OUT.narinfo", Route::File(CacheFile::NarInfo(hash_part))),
            ("/OUT%2Enarinfo", Route::File(CacheFile::NarInfo(hash_part))),
            ("/OUT.narinfo?JSON", Route::File(CacheFile::NarInfo(hash_part))),
            ("/OUT.narinfo?jsonx&xjson", Route::File(CacheFile::NarInfo(hash_part))),
            ("/OUT.narinfo?json", Route::Look(Look::NarInfoJson(hash_part))),
            ("/OUT.narinfo?a&json=1", Route::Look(Look::NarInfoJson(hash_part))),
            ("/search", Route::Look(Look::Search("".into()))),
            ("/search?a=b", Route::Look(Look::Search("".into()))),
            ("/search?q=a+b%2Bc%26%20%C3%A9&q=x", Route::Look(Look::Search("a b+c& \u{e9}".into()))),
            ("/search?a&q=%25_%2a*%00", Route::Look(Look::Search("%_**\0".into()))),
            ("/search?q=%", Route::Look(Look::Search("%".into()))),
            ("/search?q=%FF", Route::Look(Look::Search("\u{fffd}".into()))),
            ("/path/OUT", Route::Look(Look::Details(hash_part))),
            ("/path/OUT?a", Route::Look(Look::Details(hash_part))),
            ("/path/OUT/", Route::Look(Look::Details(hash_part))),
            ("/path/OUT-a+b%2B", Route::Look(Look::Details(hash_part))),
            ("/serve/OUT", contents(&[], "")),
            ("/serve/OUT?a", contents(&[], "")),
            ("/serve/OUT/", contents(&[], "/")),
            ("/%73erve/OUT-a/?listing", contents(&[], "/?")),
            ("/serve/OUT/a", contents(&[b"a"], "")),
            ("/serve/OUT-name+1/a/%FF+%20%2e/?x&listing=1", contents(&[b"a", b"\xff+ ."], "/?")),
            ("/serve/OUT/.hidden/...", contents(&[b".hidden", b"..."], "")),
            ("/serve/OUT/%252e%252e", contents(&[b"%2e%2e"], "")), // decoded once
            ("/OUT.ls", Route::File(CacheFile::Listing(hash_part))),
            ("/nar/NAR.nar?hash=OUT", nar(NarAddress::NarHash { nar_hash, hash_part }, Plain)),
            ("/nar/NAR.nar?a=b&hash=OUT&c", nar(NarAddress::NarHash { nar_hash, hash_part }, Plain)),
            ("/nar/NAR.nar.zst?hash=OUT", nar(NarAddress::NarHash { nar_hash, hash_part }, Zstd)),
            ("/nar/OUT-NAR.nar", nar(NarAddress::HashPartAndNarHash { hash_part, nar_hash }, Plain)),
            ("/nar/OUT-NAR.nar.zst", nar(NarAddress::HashPartAndNarHash { hash_part, nar_hash }, Zstd)),
            ("/nar/OUT.nar", nar(NarAddress::HashPart { hash_part }, Plain)),
            ("/nar/OUT.nar.zst", nar(NarAddress::HashPart { hash_part }, Zstd)),
            ("/nar/NAR.nar", nar_file("nar/NAR.nar")),
            ("/nar/NAR.nar?", nar_file("nar/NAR.nar")),
            ("/nar/NAR.nar.zst", nar_file("nar/NAR.nar.zst")),
            ("/nar/NAR.nar.xz", nar_file("nar/NAR.nar.xz")),
            ("/nar/NAR.nar.xz?hash=OUT", nar_file("nar/NAR.nar.xz")),
            ("/nar/OUT.nar.xz", nar_file("nar/OUT.nar.xz")),
            ("/nar/OUT-NAR.nar.br", nar_file("nar/OUT-NAR.nar.br")),
            ("/nar/OUTx-NAR.nar", nar_file("nar/OUTx-NAR.nar")),
            ("/nar/a+b", nar_file("nar/a+b")),
            ("/nar/a%2Bb", nar_file("nar/a+b")),
            ("/nar/%252e", nar_file("nar/%2e")), // decoded once
            ("/log/OUT-a.drv", Route::File(CacheFile::Log(store_path("a.drv")))),
            ("/log/OUT-a+b.drv", Route::File(CacheFile::Log(store_path("a+b.drv")))),
            ("/log/OUT-a%3Fb.drv", Route::File(CacheFile::Log(store_path("a?b.drv")))),
            ("/log/OUT-a?b.drv", Route::File(CacheFile::Log(store_path("a?b.drv")))), // as older clients send it
            ("/log/OUT-a.drv?x=%", Route::File(CacheFile::Log(store_path("a.drv")))),
            ("/log/OUT-a", Route::File(CacheFile::Log(store_path("a")))),
            (
                "/realisations/sha256:HEX!out.doi",
                Route::File(CacheFile::Realisation(DrvOutput { drv_hash, output_name: output("out") })),
            ),
            (
                "/realisations/sha256:HEX%21out.doi",
                Route::File(CacheFile::Realisation(DrvOutput { drv_hash, output_name: output("out") })),
            ),
            (
                "/realisations/sha256%3AHEX!a.doi.doi",
                Route::File(CacheFile::Realisation(DrvOutput { drv_hash, output_name: output("a.doi") })),
            ),
            (
                "/build-trace-v2/OUT-a.drv/out.doi",
                Route::File(CacheFile::BuildTrace { derivation: store_path("a.drv"), output: output("out") }),
            ),
            ("/debuginfo/ID", Route::File(CacheFile::DebugInfo { build_id, has_suffix: false })),
            ("/debuginfo/ID.debug", Route::File(CacheFile::DebugInfo { build_id, has_suffix: true })),
        ] {
            assert_eq!(route(target), expected, "{target}");
        }
    }

    #[test]
    fn near_misses_are_not_found() {
        for target in [
            "",
            "*",
            "nix-cache-info",
            "//",
            "//nix-cache-info",
            "/nix-cache-info/",
            "/nix-cache-info%00",
            "/nix-cache-info%",
            "/nix-cache-info%2",
            "/nix-cache-info%2g",
            "/nix-cache-info%+2",
            "/Nix-cache-info",
            "/./nix-cache-info",
            "/nar/../nix-cache-info",
            "/nar/%2e%2e/nix-cache-info",
            "/%2fnix-cache-info",
            "/OUT",
            "/OUT.",
            "/OUT.narinfo/",
            "/OUT.narinfo.narinfo",
            "/OUT.narinfo%2F",
            "/OUT.Narinfo",
            "/xOUT.narinfo",
            "/e0000000000000000000000000000000.narinfo", // no digit of nix32
            "/0000000000000000000000000000000.narinfo",
            "/OUT.ls.xz",
            "/nar",
            "/nar/",
            "/nar/.",
            "/nar/..",
            "/nar/.hidden",
            "/nar/%2Ehidden",
            "/nar/a/b",
            "/nar/a%2Fb",
            "/nar/a%2fb",
            "/nar/a%00b",
            "/nar/a%0Ab",
            "/nar/a%20b",
            "/nar/a%7Fb",
            "/nar/a%C3%A9b",
            "/nar/a%FFb",
            "/nar/NAR.nar?hash=",
            "/nar/NAR.nar?hash=OUTx",
            "/nar/NAR.nar?hash=OUT&hash=OUT",
            "/log",
            "/log/",
            "/log/OUT",
            "/log/OUT-",
            "/log/a.drv",
            "/log/OUT-a.drv/b",
            "/log/OUT-a!.drv",
            "/realisations/sha256:HEX!out",
            "/realisations/sha256:HEX!.doi",
            "/realisations/sha256:HEX.doi",
            "/realisations/sha256:0HEX!out.doi",
            "/realisations/sha1:HEX!out.doi",
            "/realisations/HEX!out.doi",
            "/realisations/sha256:HEX!a%2Fb.doi",
            "/realisations/sha256:HEX%2521out.doi",
            "/build-trace-v2/OUT-a.drv",
            "/build-trace-v2/OUT-a.drv/out",
            "/build-trace-v2/OUT-a.drv/.doi",
            "/build-trace-v2/a.drv/out.doi",
            "/build-trace-v2/OUT-a.drv/out.doi/",
            "/debuginfo/ID.debug.debug",
            "/debuginfo/0ID",
            "/debuginfo/x123456789abcdef0123456789abcdef01234567",
            "/debuginfo/0123456789ABCDEF0123456789abcdef01234567",
            "/search/",
            "/search/a",
            "/path",
            "/path/",
            "/path/OUT//",
            "/path/OUT/a",
            "/path/OUTx",
            "/path/OUT-",
            "/path/x",
            "/path/OUT%2Fa",
            "/serve",
            "/serve/",
            "/serve//",
            "/serve/x",
            "/serve/OUT-",
            "/serve/OUT//",
            "/serve/OUT//a",
            "/serve/OUT/a//",
            "/serve/OUT/.",
            "/serve/OUT/..",
            "/serve/OUT/../OUT",
            "/serve/OUT/a/%2e%2E/b",
            "/serve/OUT/a%2Fb",
            "/serve/OUT/a%2fb",
            "/serve/OUT/a%00b",
            "/serve/OUT/%",
            "/serve/OUT/%4",
            "/serve/OUT%2Fa",
            "/versions",
            "/health/",
            "/index.html",
        ] {
            assert_eq!(route(target), Route::NotFound, "{target}");
        }
        let longest = format!("/nar/{}", "a".repeat(SEGMENT_LEN_MAX));
        assert!(matches!(route(&longest), Route::NarFile(_)));
        assert_eq!(route(&(longest + "a")), Route::NotFound);

        let longest = format!("/serve/OUT/{}", "a".repeat(SEGMENT_LEN_MAX));
        assert!(matches!(route(&longest), Route::Look(Look::Contents(_))));
        assert_eq!(route(&(longest + "a")), Route::NotFound);
        let deepest = format!("/serve/OUT{}", "/a".repeat(NAR_DEPTH_MAX));
        assert!(matches!(route(&deepest), Route::Look(Look::Contents(_))));
        assert_eq!(route(&(deepest + "/a")), Route::NotFound);
        let longest = format!("/search?q={}", "a".repeat(SEARCH_TEXT_LEN_MAX));
        assert_eq!(route(&longest), Route::Look(Look::Search("a".repeat(SEARCH_TEXT_LEN_MAX).into())));
        for more in ["a", "%C3%A9"] {
            let cut = "a".repeat(SEARCH_TEXT_LEN_MAX) + "…";
            assert_eq!(route(&(longest.clone() + more)), Route::Look(Look::Search(cut.into())));
        }
    }

    #[test]
    fn files_of_a_cache_directory() {
        for (target, expected) in [
            ("/nix-cache-info", "nix-cache-info"),
            ("/OUT.narinfo", "OUT.narinfo"),
            ("/OUT.ls", "OUT.ls"),
            ("/nar/NAR.nar?hash=OUT", "nar/NAR.nar"),
            ("/nar/OUT-NAR.nar.zst", "nar/OUT-NAR.nar.zst"),
            ("/nar/OUT.nar", "nar/OUT.nar"),
            ("/nar/NAR.nar.xz", "nar/NAR.nar.xz"),
            ("/log/OUT-a.drv", "log/OUT-a.drv"),
            ("/realisations/sha256:HEX%21out.doi", "realisations/sha256:HEX!out.doi"),
            ("/build-trace-v2/OUT-a.drv/out.doi", "build-trace-v2/OUT-a.drv/out.doi"),
            ("/debuginfo/ID", "debuginfo/ID"),
            ("/debuginfo/ID.debug", "debuginfo/ID.debug"),
        ] {
            assert_eq!(file_name(target), Some(fill(expected)), "{target}");
        }
        for target in ["/", "/version", "/health", "/nothing"] {
            assert_eq!(file_name(target), None, "{target}");
        }
    }

    #[test]
    fn urls_of_nars_route_back() {
        let (hash_part, nar_hash) = (out(), nar_hash());
        for address in [
            NarAddress::NarHash { nar_hash, hash_part },
            NarAddress::HashPartAndNarHash { hash_part, nar_hash },
            NarAddress::HashPart { hash_part },
        ] {
            assert_eq!(address.hash_part(), hash_part);
            for compression in [NarCompression::None, NarCompression::Zstd] {
                let request = NarRequest { address, compression };
                assert_eq!(route(&format!("/{request}")), Route::Nar(request));
            }
        }
    }

    #[test]
    fn relative_names_stay_inside() {
        for name in ["a", "a/b", "a/b/c", "a!b:c"] {
            assert_eq!(RelativeName::parse(name).unwrap().as_str(), name);
        }
        for name in
            ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", ".a", "a/b/c/d", "a b", "a\0", "\u{e9}"]
        {
            assert_eq!(RelativeName::parse(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn fast_path_agrees_with_the_general_one(stem in "[0-9a-z]{31,33}", end in "\\.(narinfo|ls|narinfo\\?a)") {
            let target = format!("/{stem}{end}");
            if let Some(hash_part) = parse_narinfo_target(target.as_bytes()) {
                prop_assert_eq!(parse_any_target(target.as_bytes()), Some(Route::File(CacheFile::NarInfo(hash_part))));
            }
        }

        #[test]
        fn escaped_anywhere_is_the_same(
            base in prop::sample::select(vec![
                "/OUT.narinfo", "/nar/OUT-NAR.nar", "/log/OUT-a+b.drv", "/build-trace-v2/OUT-a.drv/out.doi",
                "/realisations/sha256:HEX!out.doi", "/debuginfo/ID.debug", "/nar/%25x", "/path/OUT-a+b", "/serve/OUT-a/b/",
            ]),
            escaped in prop::collection::vec(any::<bool>(), 128),
        ) {
            let plain = fill(base);
            let mut target = String::new();
            for (character, is_escaped) in plain.chars().zip(escaped.into_iter().cycle()) {
                if is_escaped && character != '/' && !base.contains('%') {
                    write!(target, "%{:02x}", u32::from(character)).unwrap();
                } else {
                    target.push(character);
                }
            }
            prop_assert_eq!(Route::parse(target.as_bytes()), Route::parse(plain.as_bytes()));
        }

        #[test]
        fn what_is_escaped_names_the_same_file_again(
            names in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..4),
            has_slash in any::<bool>(),
        ) {
            let mut path = InnerPath::default();
            prop_assume!(names.iter().all(|name| path.push(name).is_ok()));
            let url = encode_escapes(path.as_bytes());
            let slashes = (if path.is_root() { "" } else { "/" }, if has_slash { "/" } else { "" });
            let target = format!("/serve/{OUT}{}{url}{}", slashes.0, slashes.1);
            let expected = ContentsRequest { hash_part: out(), path, has_slash, is_listing_wanted: false };
            prop_assert_eq!(Route::parse(target.as_bytes()), Route::Look(Look::Contents(expected)));
        }

        #[test]
        fn a_typed_text_is_searched_for_as_it_is(text in "\\PC{0,40}") {
            let target = format!("/search?q={}", encode_escapes(text.as_bytes()));
            prop_assert_eq!(Route::parse(target.as_bytes()), Route::Look(Look::Search(text.into())));
        }

        #[test]
        fn a_file_name_routes_to_itself(target in "/(nar|log|debuginfo|realisations|%[0-9a-f]{2})?/?[!-~]{0,12}") {
            fuzz_route(target.as_bytes());
        }
    }
}
