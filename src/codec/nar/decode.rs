//! A push decoder for NARs: bytes in at any split, events out, resumable at any byte, in bounded memory.
//!
//! It is strict: it accepts exactly the bytes that some tree within the bounds of [`crate::limits`] has as its NAR.
//! Tokens are compared with the constants of [`token`], one byte deciding between those allowed at the same place; numbers,
//! names and targets are collected in a buffer of 4 KiB at most; contents pass through.

use super::{Position, TreeError, check_target, name_len, target_len, token};

/// What the decoder has seen. Borrowed bytes are valid for the call.
///
/// The events of a node: `Regular` and then `Contents` until `size` bytes have passed; or `Symlink`; or `Directory`, each
/// entry as `Entry` and the events of its node, `EndDirectory`. The first node is the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The node is a directory.
    Directory,
    /// The next entry of the innermost open directory.
    Entry {
        /// Its name, which keeps the rules of NAR names.
        name: &'a [u8],
    },
    /// The innermost open directory ends.
    EndDirectory,
    /// The node is a regular file.
    Regular {
        /// Whether it has its owner's execute bit.
        executable: bool,
        /// Length of the contents that follow. Bytes.
        size: u64,
        /// Offset of the contents in the NAR. Bytes.
        contents_offset: u64,
    },
    /// The next bytes of the current file's contents, never empty; split as the input was.
    Contents(&'a [u8]),
    /// The node is a symbolic link.
    Symlink {
        /// Where it points: 1 to 4095 bytes without NUL.
        target: &'a [u8],
    },
}

/// Why the bytes are no NAR, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a NAR: {cause} (at byte {offset})")]
pub struct DecodeError {
    /// Offset in the NAR at which it showed: of the first wrong byte, or of the end of the wrong value. Bytes.
    pub offset: u64,
    /// What is wrong.
    pub cause: DecodeCause,
}

/// What is wrong with bytes that are no NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeCause {
    /// Framing other than the grammar allows at this place.
    #[error("unexpected framing")]
    Framing,
    /// Padding that is not zero.
    #[error("padding that is not zero")]
    Padding,
    /// Bytes after the root node.
    #[error("bytes after the end")]
    Trailing,
    /// The end of the input before the end of the root node.
    #[error("the input ends too early")]
    Truncated,
    /// More contents were skipped than the current file has.
    #[error("skipped more than the contents of a file")]
    Skip,
    /// The tree breaks a rule of the format.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// The decoder. Having failed once it takes no more bytes, and whatever is tried with it fails in the same way.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Number of bytes consumed.
    offset: u64,
    position: Position,
    /// The bytes that have come of the current number, name or target.
    word: Vec<u8>,
}

/// What the next byte belongs to. In every state but the last two at least one byte is still missing.
#[derive(Debug, Clone, Copy)]
enum State {
    /// One of the tokens of `place`; the first `matched` bytes have come, and `choice` is the first token they fit.
    Token { place: Place, choice: usize, matched: usize },
    /// The length of a regular file's contents.
    Size { executable: bool },
    /// Contents of a file of `size` bytes, of which `left` are missing.
    Contents { size: u64, left: u64 },
    /// The length of a symbolic link's target.
    TargetLen,
    /// A symbolic link's target of `len` bytes.
    Target { len: usize },
    /// The length of a directory entry's name.
    NameLen,
    /// A directory entry's name of `len` bytes.
    Name { len: usize },
    /// Zero bytes, of which `left` are missing, before a token.
    Padding { left: usize, then: Place },
    /// Nothing: the root node has ended.
    End,
    /// Nothing: an earlier byte was wrong.
    Failed(DecodeError),
}

/// A place in the grammar where a token stands.
#[derive(Debug, Clone, Copy)]
enum Place {
    Magic,
    Node,
    NodeEnd,
    EntryOrNodeEnd,
    EntryNode,
    EntryEnd,
}

/// What a token leads to.
#[derive(Debug, Clone, Copy)]
enum Next {
    Node,
    Size { executable: bool },
    TargetLen,
    Directory,
    NameLen,
    EndDirectory,
    EndNode,
    EndEntry,
}

impl Place {
    /// The tokens allowed here: this table is the grammar.
    const fn tokens(self) -> &'static [(&'static [u8], Next)] {
        match self {
            Place::Magic => &[(token::MAGIC, Next::Node)],
            Place::Node => &[
                (token::REGULAR, Next::Size { executable: false }),
                (token::EXECUTABLE, Next::Size { executable: true }),
                (token::SYMLINK, Next::TargetLen),
                (token::DIRECTORY, Next::Directory),
            ],
            Place::NodeEnd => &[(token::CLOSE, Next::EndNode)],
            Place::EntryOrNodeEnd => &[(token::ENTRY, Next::NameLen), (token::CLOSE, Next::EndDirectory)],
            Place::EntryNode => &[(token::NODE, Next::Node)],
            Place::EntryEnd => &[(token::CLOSE, Next::EndEntry)],
        }
    }
}

impl From<Place> for State {
    fn from(place: Place) -> Self {
        State::Token { place, choice: 0, matched: 0 }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the first byte of a NAR.
    pub fn new() -> Self {
        Self { state: Place::Magic.into(), offset: 0, position: Position::default(), word: Vec::new() }
    }

    /// Number of bytes consumed so far, those skipped included.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Consumes the next bytes of the NAR and reports what they complete.
    pub fn push(&mut self, mut input: &[u8], on_event: impl FnMut(Event<'_>)) -> Result<(), DecodeError> {
        self.push_front(&mut input, on_event)?;
        if input.is_empty() { Ok(()) } else { Err(self.fail(DecodeCause::Trailing)) }
    }

    /// The same up to the end of the root node: what follows that is left in `input`, for a NAR that other things stand behind.
    pub fn push_front(
        &mut self,
        input: &mut &[u8],
        mut on_event: impl FnMut(Event<'_>),
    ) -> Result<(), DecodeError> {
        while !input.is_empty() && !self.is_over() {
            self.step(input, &mut on_event).map_err(|cause| self.fail(cause))?;
        }
        Ok(())
    }

    /// Whether the root node has ended.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// Passes over the next `len_bytes` bytes of the NAR, all of which are contents of the current file, unseen.
    pub fn skip_contents(&mut self, len_bytes: u64) -> Result<(), DecodeError> {
        match self.state {
            State::Failed(error) => Err(error),
            _ if len_bytes == 0 => Ok(()),
            State::Contents { left, .. } if len_bytes <= left => {
                self.pass_contents(len_bytes).map_err(|cause| self.fail(cause))
            }
            _ => Err(self.fail(DecodeCause::Skip)),
        }
    }

    /// Ends the input: the length of the NAR in bytes, if it was a whole one.
    pub fn finish(mut self) -> Result<u64, DecodeError> {
        match self.state {
            State::End => Ok(self.offset),
            _ => Err(self.fail(DecodeCause::Truncated)),
        }
    }

    /// Makes `cause` the end of this decoder, unless it has failed before.
    fn fail(&mut self, cause: DecodeCause) -> DecodeError {
        if let State::Failed(error) = self.state {
            return error;
        }
        let error = DecodeError { offset: self.offset, cause };
        self.state = State::Failed(error);
        error
    }

    /// Consumes of `input`, which is not empty, what the state calls for.
    fn step(&mut self, input: &mut &[u8], on_event: &mut impl FnMut(Event<'_>)) -> Result<(), DecodeCause> {
        match self.state {
            State::Token { place, choice, matched } => {
                self.step_token((place, choice, matched), input, on_event)
            }
            State::Size { executable } => self.step_number(input, |decoder, size| {
                let contents_offset = decoder.offset;
                contents_offset.checked_add(size).ok_or(TreeError::Length)?;
                on_event(Event::Regular { executable, size, contents_offset });
                decoder.state = match size {
                    0 => Place::NodeEnd.into(),
                    _ => State::Contents { size, left: size },
                };
                Ok(())
            }),
            State::Contents { left, .. } => {
                let len = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
                on_event(Event::Contents(take(input, len)));
                self.pass_contents(len as u64)
            }
            State::TargetLen => self.step_number(input, |decoder, len| {
                decoder.state = State::Target { len: target_len(len)? };
                Ok(())
            }),
            State::Target { len } => self.step_word(len, input, |decoder, target| {
                check_target(target)?;
                on_event(Event::Symlink { target });
                decoder.state = after_padding(len as u64, Place::NodeEnd);
                Ok(())
            }),
            State::NameLen => self.step_number(input, |decoder, len| {
                decoder.state = State::Name { len: name_len(len)? };
                Ok(())
            }),
            State::Name { len } => self.step_word(len, input, |decoder, name| {
                decoder.position.enter_entry(name)?;
                on_event(Event::Entry { name });
                decoder.state = after_padding(len as u64, Place::EntryNode);
                Ok(())
            }),
            State::Padding { left, then } => self.step_padding(left, then, input),
            // Nobody steps beyond the end.
            State::End => Err(DecodeCause::Trailing),
            State::Failed(error) => Err(error.cause),
        }
    }

    /// Consumes bytes of one of the tokens of `place`. These differ before any of them ends, so the first that fits what
    /// has come stands for all that do.
    fn step_token(
        &mut self,
        (place, choice, matched): (Place, usize, usize),
        input: &mut &[u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<(), DecodeCause> {
        let tokens = place.tokens();
        let (token, next) = tokens[choice];
        let missing = &token[matched..];
        let len = if input.starts_with(missing) {
            missing.len()
        } else {
            missing.iter().zip(*input).take_while(|(missing, byte)| missing == byte).count()
        };
        take(input, len);
        self.advance(len as u64)?;
        let matched = matched + len;
        if matched == token.len() {
            self.follow(next, on_event);
            return Ok(());
        }
        let choice = match input.first() {
            None => choice,
            Some(&byte) => {
                let fits =
                    |other: &[u8]| other.starts_with(&token[..matched]) && other.get(matched) == Some(&byte);
                (choice + 1..tokens.len()).find(|&other| fits(tokens[other].0)).ok_or(DecodeCause::Framing)?
            }
        };
        self.state = State::Token { place, choice, matched };
        Ok(())
    }

    /// Goes where a whole token leads.
    fn follow(&mut self, next: Next, on_event: &mut impl FnMut(Event<'_>)) {
        self.state = match next {
            Next::Node => Place::Node.into(),
            Next::Size { executable } => State::Size { executable },
            Next::TargetLen => State::TargetLen,
            Next::Directory => {
                self.position.enter_directory();
                on_event(Event::Directory);
                Place::EntryOrNodeEnd.into()
            }
            Next::NameLen => State::NameLen,
            Next::EndDirectory => {
                self.position.leave_directory();
                on_event(Event::EndDirectory);
                self.after_node()
            }
            Next::EndNode => self.after_node(),
            Next::EndEntry => Place::EntryOrNodeEnd.into(),
        };
    }

    fn after_node(&self) -> State {
        if self.position.level() == 0 { State::End } else { Place::EntryEnd.into() }
    }

    /// Consumes bytes of a number, which `then` gets when it is whole.
    fn step_number(
        &mut self,
        input: &mut &[u8],
        then: impl FnOnce(&mut Self, u64) -> Result<(), TreeError>,
    ) -> Result<(), DecodeCause> {
        self.step_word(size_of::<u64>(), input, |decoder, word| {
            // `step_word` gives as many bytes as it was asked for.
            then(decoder, word.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)))
        })
    }

    /// Consumes some of `len` bytes, which `then` gets when they are whole: from the input itself where it holds them
    /// all, else collected in `self.word`.
    fn step_word(
        &mut self,
        len: usize,
        input: &mut &[u8],
        then: impl FnOnce(&mut Self, &[u8]) -> Result<(), TreeError>,
    ) -> Result<(), DecodeCause> {
        let missing = len - self.word.len();
        let bytes = take(input, missing.min(input.len()));
        self.advance(bytes.len() as u64)?;
        if bytes.len() == len {
            return Ok(then(self, bytes)?);
        }
        self.word.extend_from_slice(bytes);
        if bytes.len() < missing {
            return Ok(());
        }
        let mut word = std::mem::take(&mut self.word);
        then(self, &word)?;
        word.clear();
        self.word = word;
        Ok(())
    }

    /// Consumes bytes of the padding before a token of `then`.
    fn step_padding(&mut self, left: usize, then: Place, input: &mut &[u8]) -> Result<(), DecodeCause> {
        let padding = take(input, left.min(input.len()));
        let zeros = padding.iter().take_while(|&&byte| byte == 0).count();
        self.advance(zeros as u64)?;
        if zeros < padding.len() {
            return Err(DecodeCause::Padding);
        }
        self.state = if zeros < left { State::Padding { left: left - zeros, then } } else { then.into() };
        Ok(())
    }

    /// Consumes `len_bytes` bytes of contents, at most all that are missing.
    fn pass_contents(&mut self, len_bytes: u64) -> Result<(), DecodeCause> {
        self.advance(len_bytes)?;
        if let State::Contents { size, left } = &mut self.state {
            *left -= len_bytes;
            if *left == 0 {
                self.state = after_padding(*size, Place::NodeEnd);
            }
        }
        Ok(())
    }

    fn advance(&mut self, len_bytes: u64) -> Result<(), TreeError> {
        self.offset = self.offset.checked_add(len_bytes).ok_or(TreeError::Length)?;
        Ok(())
    }
}

/// The state after `len_bytes` bytes of which none is missing.
fn after_padding(len_bytes: u64, then: Place) -> State {
    match token::padding(len_bytes).len() {
        0 => then.into(),
        left => State::Padding { left, then },
    }
}

/// The first `len` bytes of `input`, which loses them.
fn take<'a>(input: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(len);
    *input = rest;
    taken
}

/// Drawn bytes never panic the decoder, give the same events and the same result at every split, and are accepted only
/// if they are the NAR of the tree the events tell of. What is looked for in them is found alike.
#[cfg(any(test, fuzzing))]
pub fn fuzz_decode(data: &[u8]) {
    let (log, result) = check::decode(std::iter::once(data));
    for len in [1, 2, 7, 8, 9, 64] {
        assert_eq!(check::decode(data.chunks(len)), (log.clone(), result), "in chunks of {len}");
    }
    super::find::check::splits(data);
    if result.is_ok() {
        let tree = check::tree(&mut log.into_iter());
        assert_eq!(super::naive::nar(&tree), data);
        super::find::check::tree(data, &tree);
    }
}

/// What tests and fuzzing look at the decoder with.
#[cfg(any(test, fuzzing))]
mod check {
    use super::super::naive::Tree;
    use super::{DecodeError, Decoder, Event};

    /// An event that owns its bytes.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Logged {
        Directory,
        Entry(Vec<u8>),
        EndDirectory,
        Regular { executable: bool, size: u64, contents_offset: u64 },
        Contents(Vec<u8>),
        Symlink(Vec<u8>),
    }

    /// The events of the input and how it ended. Contents are joined, for their events depend on the split.
    pub fn decode<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<Logged>, Result<u64, DecodeError>) {
        let mut log = Vec::new();
        let mut decoder = Decoder::new();
        for chunk in chunks {
            let pushed = decoder.push(chunk, |event| match (event, log.last_mut()) {
                (Event::Contents(bytes), Some(Logged::Contents(contents))) => {
                    contents.extend_from_slice(bytes);
                }
                (event, _) => log.push(logged(event)),
            });
            if let Err(error) = pushed {
                // It does not recover.
                assert_eq!(decoder.push(b"\0", |event| panic!("{event:?} after an error")), Err(error));
                break;
            }
        }
        (log, decoder.finish())
    }

    fn logged(event: Event<'_>) -> Logged {
        match event {
            Event::Directory => Logged::Directory,
            Event::Entry { name } => Logged::Entry(name.to_vec()),
            Event::EndDirectory => Logged::EndDirectory,
            Event::Regular { executable, size, contents_offset } => {
                Logged::Regular { executable, size, contents_offset }
            }
            Event::Contents(bytes) => Logged::Contents(bytes.to_vec()),
            Event::Symlink { target } => Logged::Symlink(target.to_vec()),
        }
    }

    /// The tree that the events of a whole NAR tell of.
    pub fn tree(log: &mut dyn Iterator<Item = Logged>) -> Tree {
        match log.next() {
            Some(Logged::Regular { executable, size: 0, .. }) => {
                Tree::Regular { executable, contents: Vec::new() }
            }
            Some(Logged::Regular { executable, .. }) => match log.next() {
                Some(Logged::Contents(contents)) => Tree::Regular { executable, contents },
                other => panic!("{other:?} for the contents of a file"),
            },
            Some(Logged::Symlink(target)) => Tree::Symlink(target),
            Some(Logged::Directory) => {
                let entries = std::iter::from_fn(|| match log.next() {
                    Some(Logged::Entry(name)) => Some((name, tree(log))),
                    Some(Logged::EndDirectory) => None,
                    other => panic!("{other:?} in a directory"),
                });
                Tree::Directory(entries.collect())
            }
            other => panic!("{other:?} for a node"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::naive::{self, Tree};
    use super::check::{Logged, decode};
    use super::*;
    use crate::limits::{NAR_DEPTH_MAX, NAR_NAME_LEN_MAX, NAR_TARGET_LEN_MAX};
    use proptest::prelude::*;

    fn draw() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..120).prop_map(|data| naive::nar(&Tree::draw(&data)))
    }

    proptest! {
        #[test]
        fn a_nar_is_accepted_whole_and_at_every_split(nar in draw()) {
            fuzz_decode(&nar);
            let whole = decode(std::iter::once(&nar[..]));
            prop_assert_eq!(whole.1, Ok(nar.len() as u64));
            for at in 0..=nar.len() {
                let (head, tail) = nar.split_at(at);
                prop_assert_eq!(&decode([head, tail].into_iter()), &whole);
            }
        }

        #[test]
        fn every_prefix_is_too_short_and_a_byte_more_too_long(nar in draw()) {
            for len in 0..nar.len() {
                let error = DecodeError { offset: len as u64, cause: DecodeCause::Truncated };
                prop_assert_eq!(decode(std::iter::once(&nar[..len])).1, Err(error));
            }
            let longer = [&nar[..], b"\0"].concat();
            let error = DecodeError { offset: nar.len() as u64, cause: DecodeCause::Trailing };
            prop_assert_eq!(decode(std::iter::once(&longer[..])).1, Err(error));
        }

        #[test]
        fn what_follows_the_root_is_left(nar in draw(), len in 1..9usize) {
            let longer = [&nar[..], b"what follows"].concat();
            let mut decoder = Decoder::new();
            let mut seen = 0;
            for chunk in longer.chunks(len) {
                prop_assert_eq!(decoder.is_over(), seen >= nar.len());
                let mut rest = chunk;
                prop_assert_eq!(decoder.push_front(&mut rest, |_| ()), Ok(()));
                prop_assert_eq!(chunk.len() - rest.len(), nar.len().saturating_sub(seen).min(chunk.len()));
                seen += chunk.len();
            }
            prop_assert_eq!(decoder.finish(), Ok(nar.len() as u64));
        }

        #[test]
        fn a_changed_byte_is_an_error_or_another_nar(nar in draw(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut changed = nar;
            let at = at.index(changed.len());
            changed[at] = byte;
            fuzz_decode(&changed);
        }

        #[test]
        fn any_bytes_do_no_harm(data in proptest::collection::vec(any::<u8>(), 0..60)) {
            fuzz_decode(&data);
            fuzz_decode(&[token::MAGIC, &data].concat());
            fuzz_decode(&[token::MAGIC, token::DIRECTORY, token::ENTRY, &data].concat());
        }

        #[test]
        fn skipped_contents_leave_the_other_events_as_they_are(nar in draw()) {
            let (log, _) = decode(std::iter::once(&nar[..]));
            let mut skipping = Decoder::new();
            let mut events = 0;
            let mut last = None;
            for byte in nar.chunks(1) {
                match last.take() {
                    Some(left @ 1..) => {
                        prop_assert_eq!(skipping.skip_contents(1), Ok(()));
                        last = Some(left - 1);
                    }
                    _ => skipping.push(byte, |event| {
                        events += 1;
                        last = if let Event::Regular { size, .. } = event { Some(size) } else { None };
                    }).unwrap(),
                }
            }
            prop_assert_eq!(skipping.finish(), Ok(nar.len() as u64));
            prop_assert_eq!(events, log.iter().filter(|event| !matches!(event, Logged::Contents(_))).count());
        }
    }

    /// How the decoder ends on these words, each of them a NAR word of its own.
    fn ends(words: &[&[u8]]) -> Result<u64, DecodeCause> {
        let mut nar = Vec::new();
        for word in words {
            naive::word(&mut nar, word);
        }
        fuzz_decode(&nar);
        decode(std::iter::once(&nar[..])).1.map_err(|error| error.cause)
    }

    const EMPTY_FILE: [&[u8]; 6] = [b"(", b"type", b"regular", b"contents", b"", b")"];

    /// How it ends on a directory of empty files with these names.
    fn ends_with_names(names: &[&[u8]]) -> Result<u64, DecodeCause> {
        let mut words: Vec<&[u8]> = vec![b"nix-archive-1", b"(", b"type", b"directory"];
        for name in names {
            words.extend([&b"entry"[..], b"(", b"name", name, b"node"]);
            words.extend(EMPTY_FILE);
            words.push(b")");
        }
        words.push(b")");
        ends(&words)
    }

    #[test]
    fn framing_is_taken_literally() {
        let framing = Err(DecodeCause::Framing);
        let file = |words: &[&[u8]]| ends(&[&[&b"nix-archive-1"[..]], words].concat());
        assert_eq!(file(&EMPTY_FILE), Ok(24 + 16 * 4 + 8 + 16));
        assert_eq!(ends(&[b"nix-archive-2"]), framing);
        assert_eq!(ends(&[b"nix-archive-10"]), framing);
        assert_eq!(file(&[b"(", b"type", b"fifo"]), framing);
        assert_eq!(file(&[b"(", b"type", b"regular", b")"]), framing, "contents are required");
        assert_eq!(file(&[b"(", b"type", b"regular", b"executable", b"x"]), framing);
        assert_eq!(file(&[b"(", b"type", b"regular", b"executable", b"", b"executable"]), framing);
        assert_eq!(file(&[b"(", b"type", b"regular", b"contents", b"", b"executable"]), framing);
        assert_eq!(file(&[b"(", b"type", b"regular", b"target", b"t", b")"]), framing, "no mixing of tokens");
        assert_eq!(file(&[b"(", b"type", b"symlink", b"contents", b"", b")"]), framing);
        assert_eq!(file(&[b"(", b"type", b"symlink", b")"]), framing);
        assert_eq!(file(&[b"(", b"type", b"directory", b"entry", b"(", b"node"]), framing);
        assert_eq!(file(&[b"(", b"type", b"directory", b"entry", b"(", b"name", b"a", b")"]), framing);
    }

    #[test]
    fn names_keep_the_rules() {
        let tree = |error| Err(DecodeCause::Tree(error));
        assert!(ends_with_names(&[b"a", b"b"]).is_ok());
        assert!(ends_with_names(&[b"foo", b"foo-x", b"z", b"\xff\n"]).is_ok());
        assert!(ends_with_names(&[&[b'n'; NAR_NAME_LEN_MAX]]).is_ok());
        assert_eq!(ends_with_names(&[&[b'n'; NAR_NAME_LEN_MAX + 1]]), tree(TreeError::NameLength));
        assert_eq!(ends_with_names(&[b""]), tree(TreeError::NameLength));
        for name in [&b"."[..], b"..", b"a/b", b"/", b"a\0"] {
            assert_eq!(ends_with_names(&[name]), tree(TreeError::NameBytes), "{name:?}");
        }
        for names in [[&b"a"[..], b"a"], [b"b", b"a"], [b"foo-x", b"foo"], [b"\xff", b"z"]] {
            assert_eq!(ends_with_names(&names), tree(TreeError::NameOrder), "{names:?}");
        }
    }

    #[test]
    fn the_last_of_many_names_must_be_in_order_too() {
        let mut names: Vec<_> = (0..5_000).map(|number| format!("{number:04}").into_bytes()).collect();
        let ends =
            |names: &[Vec<u8>]| ends_with_names(&names.iter().map(|name| &name[..]).collect::<Vec<_>>());
        assert!(ends(&names).is_ok());
        names.push(names[0].clone());
        assert_eq!(ends(&names), Err(DecodeCause::Tree(TreeError::NameOrder)));
        names.reverse();
        assert_eq!(ends(&names), Err(DecodeCause::Tree(TreeError::NameOrder)));
    }

    #[test]
    fn targets_keep_the_rules() {
        let link = |target| ends(&[b"nix-archive-1", b"(", b"type", b"symlink", b"target", target, b")"]);
        assert!(link(b"../x\xff").is_ok());
        assert!(link(&[b't'; NAR_TARGET_LEN_MAX]).is_ok());
        assert_eq!(link(&[b't'; NAR_TARGET_LEN_MAX + 1]), Err(DecodeCause::Tree(TreeError::TargetLength)));
        assert_eq!(link(b""), Err(DecodeCause::Tree(TreeError::TargetLength)));
        assert_eq!(link(b"a\0"), Err(DecodeCause::Tree(TreeError::TargetBytes)));
    }

    #[test]
    fn a_tree_has_at_most_64_levels() {
        let nested = |levels: usize| {
            let mut tree = Tree::Symlink(b"t".to_vec());
            for _ in 1..levels {
                tree = Tree::Directory([(b"d".to_vec(), tree)].into());
            }
            decode(std::iter::once(&naive::nar(&tree)[..])).1.map_err(|error| error.cause)
        };
        assert!(nested(NAR_DEPTH_MAX).is_ok());
        assert_eq!(nested(NAR_DEPTH_MAX + 1), Err(DecodeCause::Tree(TreeError::Depth)));
    }

    #[test]
    fn padding_is_zero_and_the_error_says_where() {
        let nar = naive::nar(&Tree::Regular { executable: false, contents: b"foo\n".to_vec() });
        for offset in 100..104 {
            let mut wrong = nar.clone();
            wrong[offset] = 1;
            fuzz_decode(&wrong);
            let error = DecodeError { offset: offset as u64, cause: DecodeCause::Padding };
            assert_eq!(decode(std::iter::once(&wrong[..])).1, Err(error));
        }
    }

    #[test]
    fn no_length_overflows() {
        let head = [token::MAGIC, token::REGULAR].concat();
        let mut decoder = Decoder::new();
        decoder.push(&head, |_| ()).unwrap();
        let error = decoder.push(&u64::MAX.to_le_bytes(), |_| ()).unwrap_err();
        assert_eq!(error.cause, DecodeCause::Tree(TreeError::Length));

        let size = u64::MAX - 96;
        let mut decoder = Decoder::new();
        decoder.push(&head, |_| ()).unwrap();
        decoder.push(&size.to_le_bytes(), |_| ()).unwrap();
        decoder.skip_contents(size).unwrap();
        assert_eq!(decoder.push(b"\0", |_| ()).unwrap_err().cause, DecodeCause::Tree(TreeError::Length));
    }

    #[test]
    fn only_contents_are_skipped() {
        let skip = DecodeCause::Skip;
        assert_eq!(Decoder::new().skip_contents(0), Ok(()));
        assert_eq!(Decoder::new().skip_contents(1).unwrap_err().cause, skip);
        let nar = naive::nar(&Tree::Regular { executable: false, contents: b"foo\n".to_vec() });
        let mut decoder = Decoder::new();
        decoder.push(&nar[..97], |_| ()).unwrap();
        decoder.skip_contents(2).unwrap();
        let error = decoder.skip_contents(2).unwrap_err();
        assert_eq!(error, DecodeError { offset: 99, cause: skip });
        assert_eq!(decoder.skip_contents(0), Err(error));
        assert_eq!(decoder.finish().unwrap_err().cause, skip, "it does not recover");
    }
}
