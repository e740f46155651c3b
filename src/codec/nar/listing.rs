//! The `.ls` listing, version 1: a NAR's tree as JSON, and where in the NAR the contents of each file lie.
//!
//! ```text
//! {"version":1,"root":node}
//! node = {"type":"regular","size":N[,"executable":true],"narOffset":N}
//!      | {"type":"symlink","target":"…"}
//!      | {"type":"directory","entries":{"name":node,…}}
//! ```
//!
//! `narOffset` counts bytes of the uncompressed NAR and stands at empty files too, as Nix 2.8 writes it; entries stand in
//! the order of the NAR. (Source: `src/libstore/nar-accessor.cc` of Nix.)
//!
//! A NAR's names and targets are any bytes, JSON's strings are Unicode: what is not UTF-8 becomes U+FFFD. So the listing of
//! such a tree can be read by every JSON parser, but it does not lead to those files, and two of them in one directory may
//! get the same key. Nix writes the bytes as they are, which strict parsers refuse.

use std::fmt::{self, Write};

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::decode::{DecodeError, Decoder, Event};
use super::layout::{Cursor, Layout, Lookup, Piece};

/// Why there is no listing of a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// The layout still grows.
    #[error("the layout of the NAR is not complete")]
    Incomplete,
    /// The framing of the layout is no NAR: a mistake of whoever built it.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// The listing of a complete layout.
///
/// The layout's framing goes through the decoder and its files are skipped, so no file is read and there is one reader of
/// the format.
pub fn from_layout(layout: &Layout) -> Result<String, ListingError> {
    let mut decoder = Decoder::new();
    let mut listing = Listing::new();
    let mut cursor = Cursor::default();
    loop {
        match layout.piece_at(decoder.offset(), &mut cursor) {
            Lookup::Piece(Piece::Bytes(bytes)) => decoder.push(bytes, |event| listing.event(event))?,
            Lookup::Piece(Piece::File(range)) => decoder.skip_contents(range.len)?,
            Lookup::NotYet => return Err(ListingError::Incomplete),
            Lookup::End => break,
        }
    }
    decoder.finish()?;
    Ok(listing.finish())
}

/// Writes a listing from a decoder's events.
#[derive(Debug)]
pub struct Listing {
    text: String,
}

impl Default for Listing {
    fn default() -> Self {
        Self::new()
    }
}

impl Listing {
    /// A listing before the root's first event.
    pub fn new() -> Self {
        Self { text: String::from(r#"{"version":1,"root":"#) }
    }

    /// Takes the next event of the NAR.
    pub fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Directory => self.text.push_str(r#"{"type":"directory","entries":{"#),
            Event::Entry { name } => {
                if !self.text.ends_with('{') {
                    self.text.push(',');
                }
                self.string(name);
                self.text.push(':');
            }
            Event::EndDirectory => self.text.push_str("}}"),
            Event::Regular { executable, size, contents_offset } => {
                let executable = if executable { r#","executable":true"# } else { "" };
                self.write(format_args!(
                    r#"{{"type":"regular","size":{size}{executable},"narOffset":{contents_offset}}}"#
                ));
            }
            Event::Contents(_) => {}
            Event::Symlink { target } => {
                self.text.push_str(r#"{"type":"symlink","target":"#);
                self.string(target);
                self.text.push('}');
            }
        }
    }

    /// The JSON text, after the last event of a whole NAR.
    pub fn finish(mut self) -> String {
        self.text.push('}');
        self.text
    }

    fn string(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        self.write(format_args!("{}", serde_json::Value::String(text)));
    }

    fn write(&mut self, arguments: fmt::Arguments<'_>) {
        // A `String` takes all that is written to it.
        let _ = self.text.write_fmt(arguments);
    }
}

/// Why a text is no listing.
#[derive(Debug, thiserror::Error)]
pub enum ListingTextError {
    /// It is no JSON of that form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It is of another version than this one.
    #[error("its version is {0}, and not 1")]
    Version(u64),
}

/// Whether a text is a listing. What it does not know it skips, and nothing of it is kept.
///
/// Names may be any bytes, as Nix writes them. `serde_json` reads all levels but the last of [`crate::limits::NAR_DEPTH_MAX`].
pub fn check(text: &[u8]) -> Result<(), ListingTextError> {
    // Strings are read below as bytes, and then with control characters in them, which JSON does not have.
    let _: IgnoredAny = serde_json::from_slice(text)?;
    let text: ListingText = serde_json::from_slice(text)?;
    if text.version == 1 { Ok(()) } else { Err(ListingTextError::Version(text.version)) }
}

/// A listing as it stands in the file, without what is in it.
#[derive(Deserialize)]
struct ListingText {
    version: u64,
    #[expect(dead_code, reason = "reading it was all there is to do")]
    root: Node,
}

/// A node that was read.
#[derive(Deserialize)]
#[serde(try_from = "NodeText")]
struct Node;

/// A node as it stands in the file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeText {
    r#type: Kind,
    size: Option<u64>,
    #[expect(dead_code, reason = "it is a number or nothing")]
    nar_offset: Option<u64>,
    #[expect(dead_code, reason = "it is true, false or nothing")]
    executable: Option<bool>,
    target: Option<Skipped>,
    entries: Option<Entries>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Regular,
    Symlink,
    Directory,
}

impl TryFrom<NodeText> for Node {
    type Error = &'static str;

    fn try_from(node: NodeText) -> Result<Self, Self::Error> {
        match node {
            NodeText { r#type: Kind::Regular, size: None, .. } => Err("a file has no size"),
            NodeText { r#type: Kind::Symlink, target: None, .. } => Err("a link has no target"),
            NodeText { r#type: Kind::Directory, entries: None, .. } => Err("a directory has no entries"),
            _ => Ok(Self),
        }
    }
}

/// A string that was read.
struct Skipped;

impl<'de> Deserialize<'de> for Skipped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyText;
        impl Visitor<'_> for AnyText {
            type Value = Skipped;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_bytes<E>(self, _: &[u8]) -> Result<Skipped, E> {
                Ok(Skipped)
            }
        }
        // For one of text, it would have to be UTF-8.
        deserializer.deserialize_bytes(AnyText)
    }
}

/// The entries of a directory, which were read.
struct Entries;

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyEntries;
        impl<'de> Visitor<'de> for AnyEntries {
            type Value = Entries;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("the entries of a directory")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                while map.next_entry::<Skipped, Node>()?.is_some() {}
                Ok(Entries)
            }
        }
        deserializer.deserialize_map(AnyEntries)
    }
}

/// Whatever is taken for a listing says that it is one, and has no control character within a string, which no other reader of JSON would
/// take; and the listing of any NAR is taken.
#[cfg(any(test, fuzzing))]
pub fn fuzz_listing(data: &[u8]) {
    if check(data).is_ok() {
        let (mut is_within_string, mut is_escaped) = (false, false);
        for byte in data {
            assert!(!is_within_string || *byte >= b' ', "a control character");
            is_within_string ^= *byte == b'"' && !is_escaped;
            is_escaped = *byte == b'\\' && !is_escaped;
        }
        if let Ok(value) = serde_json::from_slice::<serde_json::Value>(data) {
            assert_eq!(value["version"], 1);
            let (kind, fields) = (&value["root"]["type"], ["size", "target", "entries"]);
            let of_kind = ["regular", "symlink", "directory"].iter().position(|other| kind == other);
            assert!(of_kind.is_some_and(|kind| !value["root"][fields[kind]].is_null()));
        }
    }
    let (mut decoder, mut listing) = (Decoder::new(), Listing::new());
    let nar = super::naive::nar(&super::naive::Tree::draw(data));
    decoder.push(&nar, |event| listing.event(event)).expect("a NAR");
    check(listing.finish().as_bytes()).expect("a listing");
}

#[cfg(test)]
mod tests {
    use super::super::layout::Builder;
    use super::super::naive::{self, Tree};
    use super::*;
    use crate::limits::NAR_DEPTH_MAX;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn listing(build: impl FnOnce(&mut Builder) -> Result<(), super::super::layout::BuildError>) -> String {
        let mut builder = Builder::new();
        build(&mut builder).unwrap();
        let (part, len_bytes) = builder.finish();
        let mut layout = Layout::new();
        layout.push(Arc::new(part.unwrap()));
        assert_eq!(from_layout(&layout), Err(ListingError::Incomplete));
        layout.complete(len_bytes);
        from_layout(&layout).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_written_is_a_listing(data in proptest::collection::vec(any::<u8>(), 0..120)) {
            let mut listing = Listing::new();
            let mut decoder = Decoder::new();
            decoder.push(&naive::nar(&Tree::draw(&data)), |event| listing.event(event)).unwrap();
            let text = listing.finish();
            prop_assert!(check(text.as_bytes()).is_ok(), "{}", text);
            for len in (0..text.len()).step_by(7) {
                prop_assert!(check(&text.as_bytes()[..len]).is_err());
            }
        }

        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = check(&data);
        }
    }

    #[test]
    fn only_listings_are_listings() {
        let node = |node: &str| {
            check(format!(r#"{{"version":1,"root":{node}}}"#).as_bytes()).map_err(|error| error.to_string())
        };
        for right in [
            r#"{"type":"regular","size":0}"#,
            r#"{"type":"regular","size":5,"narOffset":96,"executable":false}"#,
            r#"{"type":"symlink","target":"x","later versions":[1,{}]}"#,
            r#"{"entries":{"a\u000a":{"type":"directory","entries":{}}},"type":"directory"}"#,
        ] {
            assert_eq!(node(right), Ok(()), "{right}");
        }
        for (wrong, words) in [
            ("{}", "missing field `type`"),
            (r#"{"type":"fifo"}"#, "fifo"),
            (r#"{"type":"regular"}"#, "no size"),
            (r#"{"type":"regular","size":-1}"#, "-1"),
            (r#"{"type":"regular","size":1,"narOffset":"x"}"#, "u64"),
            (r#"{"type":"symlink"}"#, "no target"),
            (r#"{"type":"symlink","target":1}"#, "string"),
            (r#"{"type":"directory"}"#, "no entries"),
            (r#"{"type":"directory","entries":[]}"#, "entries of a directory"),
            (r#"{"type":"directory","entries":{"a":{}}}"#, "missing field `type`"),
        ] {
            let error = node(wrong).unwrap_err();
            assert!(error.contains(words), "{wrong}: {error}");
        }
        assert!(check(br#"{"version":2,"root":{"type":"symlink","target":"x"}}"#).is_err());
        assert!(check(br#"{"version":1,"root":{"type":"symlink","target":"x"}} x"#).is_err());
        // Names as Nix 2.8 writes them.
        let raw = b"{\"version\":1,\"root\":{\"type\":\"directory\",\"entries\":{\"\xff\xfe\":{\"type\":\"symlink\",\"target\":\"\xf0\"}}}}";
        assert!(check(raw).is_ok());
    }

    #[test]
    fn a_listing_is_looked_at_where_it_is() {
        let name = vec![0xff; 100_000];
        let text = [
            br#"{"version":1,"root":{"type":"directory","entries":{""#,
            &name[..],
            br#"":{"type":"symlink","target":"x"}}}}"#,
        ]
        .concat();
        let allocated = allocation_counter::measure(|| check(&text).unwrap());
        assert!(allocated.bytes_max < 10_000, "{}", allocated.bytes_max);
    }

    #[test]
    fn a_listing_may_have_a_million_entries() {
        let entries = 1_000_000;
        let mut listing = Listing::new();
        listing.event(Event::Directory);
        for number in 0..entries {
            listing.event(Event::Entry { name: format!("{number:07}").as_bytes() });
            listing.event(Event::Regular { executable: false, size: number, contents_offset: number });
        }
        listing.event(Event::EndDirectory);
        let text = listing.finish();
        assert_eq!(text.matches("narOffset").count() as u64, entries);
        assert!(check(text.as_bytes()).is_ok());
    }

    #[test]
    fn a_listing_may_be_as_deep_as_all_but_the_deepest_trees() {
        let nested = |levels: usize| {
            let (head, tail) =
                (r#"{"type":"directory","entries":{"d":"#.repeat(levels - 1), "}}".repeat(levels - 1));
            format!(r#"{{"version":1,"root":{head}{{"type":"symlink","target":"t"}}{tail}}}"#)
        };
        assert!(check(nested(NAR_DEPTH_MAX - 1).as_bytes()).is_ok());
        assert!(check(nested(10_000).as_bytes()).is_err());
    }

    #[test]
    fn the_vector_of_nix_s_own_test_suite() {
        // tests/functional/binary-cache.sh of Nix.
        let text = listing(|builder| {
            builder.directory()?;
            builder.entry(b"bar")?;
            builder.regular(false, 4)?;
            builder.entry(b"link")?;
            builder.symlink(b"xyzzy")?;
            builder.end_directory()
        });
        assert_eq!(
            text,
            concat!(
                r#"{"version":1,"root":{"type":"directory","entries":{"#,
                r#""bar":{"type":"regular","size":4,"narOffset":232},"#,
                r#""link":{"type":"symlink","target":"xyzzy"}}}}"#
            )
        );
    }

    #[test]
    fn what_nix_2_8_writes_but_for_the_name_that_is_not_utf_8() {
        let text = listing(|builder| {
            builder.directory()?;
            builder.entry(b"bad\xff\xfena\"me")?;
            builder.regular(false, 1)?;
            builder.entry(b"bar")?;
            builder.regular(false, 4)?;
            builder.entry(b"d")?;
            builder.directory()?;
            builder.entry(b"run")?;
            builder.regular(true, 1)?;
            builder.end_directory()?;
            builder.entry(b"empty")?;
            builder.regular(false, 0)?;
            builder.entry(b"emptydir")?;
            builder.directory()?;
            builder.end_directory()?;
            builder.entry(b"emptyx")?;
            builder.regular(true, 0)?;
            builder.entry(b"link")?;
            builder.symlink(b"xyzzy")?;
            builder.end_directory()
        });
        assert_eq!(
            text,
            concat!(
                r#"{"version":1,"root":{"type":"directory","entries":{"#,
                "\"bad\u{fffd}\u{fffd}na\\\"me\":",
                r#"{"type":"regular","size":1,"narOffset":240},"#,
                r#""bar":{"type":"regular","size":4,"narOffset":432},"#,
                r#""d":{"type":"directory","entries":{"#,
                r#""run":{"type":"regular","size":1,"executable":true,"narOffset":792}}},"#,
                r#""empty":{"type":"regular","size":0,"narOffset":1016},"#,
                r#""emptydir":{"type":"directory","entries":{}},"#,
                r#""emptyx":{"type":"regular","size":0,"executable":true,"narOffset":1400},"#,
                r#""link":{"type":"symlink","target":"xyzzy"}}}}"#
            )
        );
    }

    #[test]
    fn a_root_that_is_no_directory() {
        assert_eq!(
            listing(|builder| builder.regular(true, 7)),
            r#"{"version":1,"root":{"type":"regular","size":7,"executable":true,"narOffset":128}}"#
        );
        assert_eq!(
            listing(|builder| builder.symlink(b"a\tb\"\xf0")),
            "{\"version\":1,\"root\":{\"type\":\"symlink\",\"target\":\"a\\tb\\\"\u{fffd}\"}}"
        );
    }

    #[test]
    fn control_characters_within_strings_are_no_json() {
        let listing = |name: &str| {
            let target = r#"{"type":"symlink","target":"t"}"#;
            format!(r#"{{"version":1, "root":{{"type":"directory","entries":{{"{name}":{target}}}}}}}"#)
        };
        for name in [r"a\n", r"\u0001", r#"\""#, r"\\", "\u{7f}", "é"] {
            check(listing(name).as_bytes()).unwrap_or_else(|error| panic!("{name:?}: {error}"));
        }
        for name in ["a\n", "\0", "\t", "\u{1f}", "\\\\\n"] {
            assert!(check(listing(name).as_bytes()).is_err(), "{name:?}");
        }
        // Between them three may stand.
        check(format!("\n\t\r{}\n", listing("a")).as_bytes()).unwrap();
    }
}
