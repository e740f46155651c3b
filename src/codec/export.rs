//! A push decoder for what `nix-store --export` writes: several store paths one after another, each as its NAR and what the database
//! says of it. Bytes in at any split, events out, resumable at any byte, in bounded memory.
//!
//! ```text
//! export = (1 path)* 0
//! path   = nar 0x4558494e text(full path) count text(full path)* text(full path of the deriver, or nothing) signature
//! signature = 0 | 1 text(anything)         up to Nix 1.11, and Guix
//! ```
//!
//! Numbers are little-endian `u64`, texts are words as in a NAR. What a path refers to is a set: its order counts for nothing. A path
//! comes after those that it refers to. (Source: `src/libstore/export-import.cc` of Nix.)

use super::nar::decode::{DecodeError, Decoder};
use super::nar::token::padding;
use super::store_path::{StoreDir, StorePath, StorePathError};
use crate::limits::{EXPORT_REFERENCES_MAX, EXPORT_SIGNATURE_LEN_MAX, STORE_NAME_LEN_MAX};

/// What stands behind each NAR: `NIXE`.
const MAGIC: u64 = 0x4558_494e;
/// The hash part of a store path, and its dash. Bytes.
const HASH_PART_AND_DASH_LEN: usize = 33;

/// What the decoder has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// The next bytes of a path's NAR, never empty; split as the input was. The NAR is valid so far.
    Nar(&'a [u8]),
    /// The NAR was whole, and this is what it is the NAR of.
    Path(ExportedPath),
}

/// What stands behind a NAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedPath {
    /// The path.
    pub path: StorePath,
    /// What it refers to, itself included where it does; sorted, each once.
    pub references: Vec<StorePath>,
    /// The derivation it was built from, where that is known.
    pub deriver: Option<StorePath>,
}

/// Why the bytes are no export, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an export of nix-store: {cause} (at byte {offset})")]
pub struct ExportError {
    /// Offset in the export at which it showed: of the end of the wrong value. Bytes.
    pub offset: u64,
    /// What is wrong.
    pub cause: ExportCause,
}

/// What is wrong with bytes that are no export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExportCause {
    /// Neither 1 before a path nor 0 at the end.
    #[error("neither a path nor the end")]
    Flag,
    /// The NAR of a path is none.
    #[error(transparent)]
    Nar(#[from] DecodeError),
    /// Something else than the magic number follows a NAR.
    #[error("a NAR is followed by something else than its path")]
    Magic,
    /// A path, a reference or a deriver is none of this store.
    #[error("{0}: {1}")]
    StorePath(&'static str, StorePathError),
    /// A text is longer than one of its kind can be.
    #[error("a text is too long")]
    TextLength,
    /// Padding that is not zero.
    #[error("padding that is not zero")]
    Padding,
    /// More than [`EXPORT_REFERENCES_MAX`] references.
    #[error("a path has more than {EXPORT_REFERENCES_MAX} references")]
    References,
    /// Neither 0 nor 1 where a signature may follow.
    #[error("neither a signature nor none")]
    Signature,
    /// Bytes after the end.
    #[error("bytes after the end")]
    Trailing,
    /// The end of the input before that.
    #[error("the input ends too early")]
    Truncated,
}

/// The decoder. Having failed once it fails always in the same way.
#[derive(Debug)]
pub struct ExportDecoder {
    store_dir: StoreDir,
    state: State,
    /// Number of bytes consumed.
    offset: u64,
    /// The bytes that have come of the current number or text.
    word: Vec<u8>,
    /// What has come of the current path.
    path: Option<StorePath>,
    references: Vec<StorePath>,
    references_left: u64,
    deriver: Option<StorePath>,
}

/// What the next byte belongs to.
#[derive(Debug)]
enum State {
    Number(Number),
    /// A text of `len` bytes, and its padding.
    Text {
        kind: Text,
        len: usize,
    },
    Nar(Box<Decoder>),
    /// Nothing: the export has ended.
    End,
    /// Nothing: an earlier byte was wrong.
    Failed(ExportError),
}

#[derive(Debug, Clone, Copy)]
enum Number {
    Flag,
    Magic,
    ReferenceCount,
    HasSignature,
    LenOf(Text),
}

#[derive(Debug, Clone, Copy)]
enum Text {
    Path,
    Reference,
    Deriver,
    Signature,
}

impl ExportDecoder {
    /// A decoder at the first byte of an export from a store with that store directory.
    pub fn new(store_dir: StoreDir) -> Self {
        Self {
            store_dir,
            state: State::Number(Number::Flag),
            offset: 0,
            word: Vec::new(),
            path: None,
            references: Vec::new(),
            references_left: 0,
            deriver: None,
        }
    }

    /// Consumes bytes from the front of `input` up to the next event. `None` when it has consumed all of them without one.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, ExportError> {
        while !input.is_empty() {
            let event = self.step(input).map_err(|cause| self.fail(cause))?;
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// Ends the input.
    pub fn finish(mut self) -> Result<(), ExportError> {
        match self.state {
            State::End => Ok(()),
            _ => Err(self.fail(ExportCause::Truncated)),
        }
    }

    /// Makes `cause` the end of this decoder, unless it has failed before.
    fn fail(&mut self, cause: ExportCause) -> ExportError {
        if let State::Failed(error) = self.state {
            return error;
        }
        let error = ExportError { offset: self.offset, cause };
        self.state = State::Failed(error);
        error
    }

    /// Consumes of `input`, which is not empty, what the state calls for.
    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, ExportCause> {
        match &mut self.state {
            State::Number(number) => {
                let number = *number;
                if !self.collect(8, input) {
                    return Ok(None);
                }
                let value = self.word.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
                self.word.clear();
                self.follow_number(number, value)
            }
            State::Text { kind, len } => {
                let (kind, len) = (*kind, *len);
                if !self.collect(len + padding(len as u64).len(), input) {
                    return Ok(None);
                }
                let word = std::mem::take(&mut self.word);
                let (text, zeros) = word.split_at(len);
                if zeros.iter().any(|byte| *byte != 0) {
                    return Err(ExportCause::Padding);
                }
                self.follow_text(kind, text)
            }
            State::Nar(decoder) => {
                let (all, seen) = (*input, decoder.offset());
                let pushed = decoder.push_front(input, |_| ());
                self.offset = self.offset.saturating_add(decoder.offset() - seen);
                pushed?;
                if decoder.is_over() {
                    self.state = State::Number(Number::Magic);
                }
                let nar = &all[..all.len() - input.len()];
                Ok(Some(Event::Nar(nar)))
            }
            State::End => Err(ExportCause::Trailing),
            State::Failed(error) => Err(error.cause),
        }
    }

    /// Moves bytes from `input` to `self.word` until that has `len`; says whether it has.
    fn collect(&mut self, len: usize, input: &mut &[u8]) -> bool {
        let missing = len - self.word.len();
        let (bytes, rest) = input.split_at(missing.min(input.len()));
        self.word.extend_from_slice(bytes);
        *input = rest;
        self.offset = self.offset.saturating_add(bytes.len() as u64);
        self.word.len() == len
    }

    fn follow_number(&mut self, number: Number, value: u64) -> Result<Option<Event<'static>>, ExportCause> {
        let next = match (number, value) {
            (Number::Flag, 0) => State::End,
            (Number::Flag, 1) => State::Nar(Box::default()),
            (Number::Flag, _) => return Err(ExportCause::Flag),
            (Number::Magic, MAGIC) => State::Number(Number::LenOf(Text::Path)),
            (Number::Magic, _) => return Err(ExportCause::Magic),
            (Number::ReferenceCount, count) if count > EXPORT_REFERENCES_MAX as u64 => {
                return Err(ExportCause::References);
            }
            (Number::ReferenceCount, count) => {
                self.references_left = count;
                self.after_reference()
            }
            (Number::HasSignature, 0) => return Ok(self.path_is_whole()),
            (Number::HasSignature, 1) => State::Number(Number::LenOf(Text::Signature)),
            (Number::HasSignature, _) => return Err(ExportCause::Signature),
            // Nothing of it will come.
            (Number::LenOf(kind), 0) => return self.follow_text(kind, b""),
            (Number::LenOf(kind), len) => {
                let len_max = self.len_max(kind);
                let len = usize::try_from(len).ok().filter(|len| *len <= len_max);
                State::Text { kind, len: len.ok_or(ExportCause::TextLength)? }
            }
        };
        self.state = next;
        Ok(None)
    }

    fn follow_text(&mut self, kind: Text, text: &[u8]) -> Result<Option<Event<'static>>, ExportCause> {
        let next = match kind {
            Text::Path => {
                self.path = Some(self.parse_path("the path", text)?);
                State::Number(Number::ReferenceCount)
            }
            Text::Reference => {
                let reference = self.parse_path("a reference", text)?;
                self.references.push(reference);
                self.references_left -= 1;
                self.after_reference()
            }
            Text::Deriver => {
                self.deriver =
                    if text.is_empty() { None } else { Some(self.parse_path("the deriver", text)?) };
                State::Number(Number::HasSignature)
            }
            Text::Signature => return Ok(self.path_is_whole()),
        };
        self.state = next;
        Ok(None)
    }

    fn after_reference(&self) -> State {
        let next = if self.references_left > 0 { Text::Reference } else { Text::Deriver };
        State::Number(Number::LenOf(next))
    }

    fn path_is_whole(&mut self) -> Option<Event<'static>> {
        self.state = State::Number(Number::Flag);
        let mut references = std::mem::take(&mut self.references);
        references.sort_unstable();
        references.dedup();
        let deriver = self.deriver.take();
        // It has come before everything that leads here.
        self.path.take().map(|path| Event::Path(ExportedPath { path, references, deriver }))
    }

    fn len_max(&self, kind: Text) -> usize {
        match kind {
            Text::Path | Text::Reference | Text::Deriver => {
                self.store_dir.as_str().len() + 1 + HASH_PART_AND_DASH_LEN + STORE_NAME_LEN_MAX
            }
            Text::Signature => EXPORT_SIGNATURE_LEN_MAX,
        }
    }

    fn parse_path(&self, what: &'static str, text: &[u8]) -> Result<StorePath, ExportCause> {
        let parsed = str::from_utf8(text)
            .map_err(|_| StorePathError::NameCharacter)
            .and_then(|text| StorePath::parse_full(&self.store_dir, text));
        parsed.map_err(|error| ExportCause::StorePath(what, error))
    }
}

/// Whatever the bytes, nothing panics, and how they are cut leaves no trace. What is taken is written by the naive twin so that it is
/// taken again alike.
#[cfg(any(test, fuzzing))]
pub fn fuzz_export(data: &[u8]) {
    let (paths, result) = check::decode(std::iter::once(data));
    for len in [1, 7, 8, 9, 64] {
        assert_eq!(check::decode(data.chunks(len)), (paths.clone(), result), "in chunks of {len}");
    }
    if result.is_ok() {
        let written = check::write(&paths);
        assert_eq!(check::decode(std::iter::once(&written[..])), (paths, Ok(())));
    }
}

/// What tests and fuzzing look at the decoder with.
#[cfg(any(test, fuzzing))]
mod check {
    use super::{Event, ExportDecoder, ExportError, ExportedPath};
    use crate::codec::nar::naive::word;
    use crate::codec::store_path::{StoreDir, StorePath};

    /// A NAR, and what it is the NAR of.
    pub type Paths = Vec<(Vec<u8>, ExportedPath)>;

    const STORE_DIR: &str = "/nix/store";

    /// The paths of the input that are whole, and how it ended.
    pub fn decode<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Paths, Result<(), ExportError>) {
        let store_dir = StoreDir::parse(STORE_DIR).expect("a store directory");
        let mut decoder = ExportDecoder::new(store_dir);
        let (mut paths, mut nar) = (Vec::new(), Vec::new());
        for mut chunk in chunks {
            loop {
                match decoder.next(&mut chunk) {
                    Ok(Some(Event::Nar(bytes))) => nar.extend_from_slice(bytes),
                    Ok(Some(Event::Path(path))) => paths.push((std::mem::take(&mut nar), path)),
                    Ok(None) => break,
                    Err(error) => {
                        assert_eq!(decoder.next(&mut &b"\0"[..]), Err(error), "it does not recover");
                        return (paths, Err(error));
                    }
                }
            }
        }
        (paths, decoder.finish())
    }

    /// An export, written naively.
    pub fn write(paths: &Paths) -> Vec<u8> {
        let mut out = Vec::new();
        let number = |out: &mut Vec<u8>, number: u64| out.extend(number.to_le_bytes());
        let full = |path: &StorePath| format!("{STORE_DIR}/{path}").into_bytes();
        for (nar, ExportedPath { path, references, deriver }) in paths {
            number(&mut out, 1);
            out.extend(nar);
            out.extend(b"NIXE\0\0\0\0");
            word(&mut out, &full(path));
            number(&mut out, references.len() as u64);
            for reference in references {
                word(&mut out, &full(reference));
            }
            word(&mut out, &deriver.as_ref().map(full).unwrap_or_default());
            number(&mut out, 0);
        }
        number(&mut out, 0);
        out
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use proptest::prelude::*;

    use super::check::{Paths, decode, write};
    use super::*;
    use crate::codec::nar::naive::{self, Tree};

    fn path(number: u8) -> StorePath {
        StorePath::parse_base_name(&format!("{number:032}-{}", "n".repeat(usize::from(number % 9) + 1)))
            .unwrap()
    }

    fn draw() -> impl Strategy<Value = Paths> {
        let one = (
            proptest::collection::vec(any::<u8>(), 0..40),
            any::<u8>(),
            proptest::collection::btree_set(any::<u8>(), 0..4),
            proptest::option::of(any::<u8>()),
        );
        proptest::collection::vec(one, 0..4).prop_map(|paths| {
            let paths = paths.into_iter().map(|(data, number, references, deriver)| {
                let references = references.into_iter().map(path).collect();
                let exported = ExportedPath { path: path(number), references, deriver: deriver.map(path) };
                (naive::nar(&Tree::draw(&data)), exported)
            });
            paths.collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn an_export_is_read_as_it_was_written_at_every_split(paths in draw()) {
            let data = write(&paths);
            let expected = (paths, Ok(()));
            for at in 0..=data.len() {
                let (head, tail) = data.split_at(at);
                prop_assert_eq!(&decode([head, tail].into_iter()), &expected);
            }
        }

        #[test]
        fn every_prefix_is_too_short_and_a_byte_more_too_long(paths in draw()) {
            let data = write(&paths);
            for len in 0..data.len() {
                let (_, result) = decode(std::iter::once(&data[..len]));
                let error = ExportError { offset: len as u64, cause: ExportCause::Truncated };
                prop_assert_eq!(result, Err(error));
            }
            let longer = [&data[..], b"\0"].concat();
            let error = ExportError { offset: data.len() as u64, cause: ExportCause::Trailing };
            prop_assert_eq!(decode(std::iter::once(&longer[..])), (paths, Err(error)));
        }

        #[test]
        fn a_changed_byte_is_an_error_or_another_export(
            paths in draw(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut data = write(&paths);
            let at = at.index(data.len());
            data[at] = byte;
            fuzz_export(&data);
        }

        #[test]
        fn any_bytes_do_no_harm(data in proptest::collection::vec(any::<u8>(), 0..60)) {
            fuzz_export(&data);
            fuzz_export(&[&1_u64.to_le_bytes()[..], &data].concat());
        }
    }

    #[test]
    fn what_nix_writes_is_read() {
        // `nix-store --export` of Nix 2.8, of a path and of one that refers to it.
        let data = BASE64.decode(concat!(
            "AQAAAAAAAAANAAAAAAAAAG5peC1hcmNoaXZlLTEAAAABAAAAAAAAACgAAAAAAAAABAAAAAAAAAB0eXBlAAAAAAcAAAAAAAAAcmVn",
            "dWxhcgAIAAAAAAAAAGNvbnRlbnRzBAAAAAAAAABmb28KAAAAAAEAAAAAAAAAKQAAAAAAAABOSVhFAAAAADEAAAAAAAAAL25peC9z",
            "dG9yZS93azJrbmppOTZoOXJ5aDZ5cTAwY2dhMzc3Z3h3OTJpaC1zbWFsbAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB",
            "AAAAAAAAAA0AAAAAAAAAbml4LWFyY2hpdmUtMQAAAAEAAAAAAAAAKAAAAAAAAAAEAAAAAAAAAHR5cGUAAAAABwAAAAAAAAByZWd1",
            "bGFyAAgAAAAAAAAAY29udGVudHMyAAAAAAAAAC9uaXgvc3RvcmUvd2sya25qaTk2aDlyeWg2eXEwMGNnYTM3N2d4dzkyaWgtc21h",
            "bGwKAAAAAAAAAQAAAAAAAAApAAAAAAAAAE5JWEUAAAAAMAAAAAAAAAAvbml4L3N0b3JlL3FuZDR4OHF2aHAzaGJkdmZ3Z2Nzajho",
            "cjI5cXJsdmF6LXVzZXMBAAAAAAAAADEAAAAAAAAAL25peC9zdG9yZS93azJrbmppOTZoOXJ5aDZ5cTAwY2dhMzc3Z3h3OTJpaC1z",
            "bWFsbAAAAAAAAAA0AAAAAAAAAC9uaXgvc3RvcmUvZnd2YXZpMXhreDFzeno2NnloNmRhYTk4YjMxMzl4OGMtdXNlcy5kcnYAAAAA",
            "AAAAAAAAAAAAAAAAAAAAAA=="
        ));
        let (paths, result) = decode(std::iter::once(&data.unwrap()[..]));
        assert_eq!(result, Ok(()));
        let parsed = |name| StorePath::parse_base_name(name).unwrap();
        let (small, uses) = (
            parsed("wk2knji96h9ryh6yq00cga377gxw92ih-small"),
            parsed("qnd4x8qvhp3hbdvfwgcsj8hr29qrlvaz-uses"),
        );
        let [(first_nar, first), (second_nar, second)] = &paths[..] else { panic!("{paths:?}") };
        let small_tree = Tree::Regular { executable: false, contents: b"foo\n".to_vec() };
        assert_eq!(*first_nar, naive::nar(&small_tree));
        assert_eq!(*first, ExportedPath { path: small.clone(), references: vec![], deriver: None });
        let contents = format!("/nix/store/{small}\n").into_bytes();
        assert_eq!(*second_nar, naive::nar(&Tree::Regular { executable: false, contents }));
        assert_eq!((&second.path, &second.references[..]), (&uses, &[small][..]));
        assert_eq!(second.deriver.as_ref().map(StorePath::name), Some("uses.drv"));
    }

    /// One path up to what stands behind its NAR, and then these pieces.
    fn ends(pieces: &[&[u8]]) -> Result<(), ExportCause> {
        let nar = naive::nar(&Tree::draw(b""));
        let data = [&1_u64.to_le_bytes()[..], &nar, &pieces.concat()].concat();
        fuzz_export(&data);
        decode(std::iter::once(&data[..])).1.map_err(|error| error.cause)
    }

    fn number(number: u64) -> Vec<u8> {
        number.to_le_bytes().to_vec()
    }

    fn text(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        naive::word(&mut out, text.as_bytes());
        out
    }

    #[test]
    fn what_follows_a_nar_is_taken_literally() {
        let (magic, zero, one) = (number(MAGIC), number(0), number(1));
        let full = text(&format!("/nix/store/{}", path(1)));
        let rest = [&zero[..], &zero].concat();
        let none = text("");
        assert_eq!(ends(&[&magic, &full, &zero, &none, &rest]), Ok(()));
        assert_eq!(ends(&[&magic, &full, &zero, &none, &one, &text("a legacy signature"), &zero]), Ok(()));
        assert_eq!(ends(&[&magic, &full, &zero, &none, &one, &none, &zero]), Ok(()));
        assert_eq!(ends(&[&magic, &full, &zero, &none, &number(2)]), Err(ExportCause::Signature));
        assert_eq!(ends(&[&magic, &full, &zero, &none, &zero, &number(2)]), Err(ExportCause::Flag));
        assert_eq!(ends(&[&number(MAGIC + 1)]), Err(ExportCause::Magic));
        assert_eq!(ends(&[&number(MAGIC | 1 << 32)]), Err(ExportCause::Magic));
        let elsewhere = text(&format!("/gnu/store/{}", path(1)));
        let wrong = |what, error| Err(ExportCause::StorePath(what, error));
        assert_eq!(ends(&[&magic, &elsewhere]), wrong("the path", StorePathError::NotInStore));
        assert_eq!(ends(&[&magic, &none]), wrong("the path", StorePathError::NotInStore));
        assert_eq!(
            ends(&[&magic, &full, &one, &elsewhere]),
            wrong("a reference", StorePathError::NotInStore)
        );
        assert_eq!(ends(&[&magic, &full, &one, &none]), wrong("a reference", StorePathError::NotInStore));
        let deriver = ends(&[&magic, &full, &zero, &elsewhere]);
        assert_eq!(deriver, wrong("the deriver", StorePathError::NotInStore));
        let mut padded = full.clone();
        *padded.last_mut().unwrap() = 1;
        assert_eq!(ends(&[&magic, &padded]), Err(ExportCause::Padding));
    }

    #[test]
    fn lengths_and_counts_are_bounded_before_anything_of_them_has_come() {
        let (magic, zero) = (number(MAGIC), number(0));
        let full = text(&format!("/nix/store/{}", path(1)));
        let longest = format!("/nix/store/{}-{}", "0".repeat(32), "n".repeat(STORE_NAME_LEN_MAX));
        assert_eq!(ends(&[&magic, &text(&longest)]), Err(ExportCause::Truncated));
        for len in [longest.len() as u64 + 1, u64::MAX] {
            assert_eq!(ends(&[&magic, &number(len)]), Err(ExportCause::TextLength));
        }
        let references = EXPORT_REFERENCES_MAX as u64;
        assert_eq!(ends(&[&magic, &full, &number(references)]), Err(ExportCause::Truncated));
        assert_eq!(ends(&[&magic, &full, &number(references + 1)]), Err(ExportCause::References));
        let signature = number(EXPORT_SIGNATURE_LEN_MAX as u64 + 1);
        let signed = ends(&[&magic, &full, &zero, &zero, &number(1), &signature]);
        assert_eq!(signed, Err(ExportCause::TextLength));
    }

    #[test]
    fn references_are_a_set() {
        let full = |number: u8| text(&format!("/nix/store/{}", path(number)));
        let nar = naive::nar(&Tree::draw(b""));
        let behind =
            [number(MAGIC), full(1), number(3), full(3), full(2), full(3), text(""), number(0)].concat();
        let data = [&number(1)[..], &nar, &behind, &number(0)].concat();
        let (paths, result) = decode(std::iter::once(&data[..]));
        assert_eq!(result, Ok(()));
        assert_eq!(paths[0].1.references, [path(2), path(3)]);
    }

    #[test]
    fn what_is_no_nar_says_so() {
        let (_, result) = decode(std::iter::once(&[&number(1)[..], b"what is this, please"].concat()[..]));
        let error = result.unwrap_err();
        assert!(matches!(error.cause, ExportCause::Nar(_)), "{error}");
    }
}
