//! A NAR as *bytes in one arena plus file ranges*, with prefix sums: the plan from which any slice of it is sent.
//!
//! A directory walk feeds a [`Builder`] in NAR order. The builder hands over what it has so far as immutable [`Part`]s,
//! and a [`Layout`] collects them. The layout answers one question, [`Layout::piece_at`]: which bytes stand at this
//! offset of the NAR? The answer is a slice of the arena, a range of a file, *not yet* (the walk has not come so far), or
//! *the end*. Whole NAR or range, cached layout or one that still grows: there is one path for all of them.
//!
//! ```text
//! NAR      ├── bytes ──┤── file 0 ──├── bytes ──┤─── file 1 ───├── bytes ──┤
//! arena    [  bytes 0  ][  bytes 1  ][  bytes 2  ]
//! files    0: contents_offset, bytes_end, path       1: contents_offset, bytes_end, path
//! ```
//!
//! The bytes are the framing, and the contents of those files that the walk has read because they are tiny.
//!
//! # Memory
//!
//! The framing of a regular file is 176 bytes, its name padded to a multiple of 8, and the padding of its contents; of an
//! executable one 32 bytes more. A file range costs its path with a NUL and 16 bytes of record besides, a file whose contents
//! are here costs them instead. In a typical store path that makes 250 to 300 bytes an entry and what is kept of contents:
//! 15 MB for 50,000 entries, 300 MB for a million. [`Layout::memory_len_bytes`] is exact enough to bound a cache by it.

use std::ffi::CStr;
use std::ops::Range;
use std::sync::Arc;

use super::token;
use super::{Position, TreeError, check_target};
use crate::limits::{NAR_PATH_LEN_MAX, SMALL_FILES_MEAN_LEN};

/// Why a tree on disk cannot be laid out as a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The tree breaks a rule of the format.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The path of a file relative to the root is longer than one system call takes.
    #[error("the path of a file is longer than {NAR_PATH_LEN_MAX} bytes")]
    PathLength,
    /// More than 4 GiB of bytes or paths since parts were last taken.
    #[error("a part of the NAR's layout is larger than 4 GiB")]
    PartLength,
}

impl BuildError {
    /// Whether the tree is only beyond a bound: file systems hold more than NARs that clients take.
    pub fn is_bound(self) -> bool {
        !matches!(self, Self::Tree(error) if !matches!(error, TreeError::Depth | TreeError::Length))
    }
}

/// Makes [`Part`]s out of a directory walk in NAR order.
///
/// The calls mirror the grammar: a node is one of [`regular`](Self::regular), [`contents`](Self::contents),
/// [`symlink`](Self::symlink), or [`directory`](Self::directory), then any number of [`entry`](Self::entry) each followed by
/// its node, then [`end_directory`](Self::end_directory). The first node is the root. Data that cannot be a NAR is an error, after which
/// the builder is of no use; calls in another order than this are a mistake of the caller, caught in debug builds.
#[derive(Debug)]
pub struct Builder {
    position: Position,
    expects: Expects,
    part: Part,
}

/// Which calls the grammar allows next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    Node,
    EntryOrEnd,
    Nothing,
}

/// A stretch of a NAR's layout that needs no other to be read. Immutable; shared between threads in an `Arc`.
#[derive(Debug, Clone)]
pub struct Part {
    /// The stretch of the NAR that this part describes. `start + bytes + all files = end`.
    start: u64,
    end: u64,
    /// All that is in no file range, in order, without gaps.
    bytes: Vec<u8>,
    /// The NUL-terminated paths of `files`, in order.
    paths: Vec<u8>,
    /// The files whose contents are not among the bytes, in order; none is empty. A part ends with bytes, never with a file.
    files: Vec<File>,
    /// All regular files, those whose contents are among the bytes included.
    regular_files: u64,
}

/// What the framing does not say about a file. That it is executable and how long it is stands right before
/// `bytes_end`.
#[derive(Debug, Clone, Copy)]
struct File {
    /// Offset of the first byte of the contents in the NAR.
    contents_offset: u64,
    /// End in `Part::bytes` of the bytes before the contents.
    bytes_end: u32,
    /// Start in `Part::paths`.
    path_start: u32,
}

/// The layout of one NAR: complete, or still growing while a walk runs.
///
/// Cloning is cheap: the parts are shared.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Without gaps: each part starts where the one before it ends, the first at 0.
    parts: Vec<Arc<Part>>,
    complete: bool,
}

/// Where the last lookup ended, so that the next one in sequence needs no search. Kept by the caller, one per reader.
///
/// Only a hint: any value gives the right answer with any layout at any offset.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cursor {
    part: usize,
    file: usize,
}

/// What a [`Layout`] knows about an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// The bytes from this offset on; never empty.
    Piece(Piece<'a>),
    /// The layout still grows and does not reach this offset.
    NotYet,
    /// The offset is at or past the end of the NAR.
    End,
}

/// A stretch of a NAR's bytes: here, or in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The bytes themselves.
    Bytes(&'a [u8]),
    /// Bytes of a file.
    File(FileRange<'a>),
}

/// A range of a regular file that is part of a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRange<'a> {
    /// The path relative to the root of the tree; empty when the root itself is the file.
    /// At most [`NAR_PATH_LEN_MAX`] bytes.
    pub path: &'a CStr,
    /// Where in the file the range starts. Bytes.
    pub offset: u64,
    /// Length of the range, which starts at `offset`. Bytes, at least 1.
    pub len: u64,
    /// Size the whole file had when it was laid out, and must still have when it is sent. Bytes.
    pub file_size: u64,
    /// Whether the file had its owner's execute bit.
    pub executable: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// A builder that expects the root node.
    pub fn new() -> Self {
        let mut builder =
            Self { position: Position::default(), expects: Expects::Node, part: Part::starting_at(0) };
        builder.part.bytes.extend_from_slice(token::MAGIC);
        builder.part.end = token::MAGIC.len() as u64;
        builder
    }

    /// A regular file of `size` bytes, which stay where they are.
    pub fn regular(&mut self, executable: bool, size: u64) -> Result<(), BuildError> {
        self.open_file(executable, size)?;
        if size > 0 {
            self.file(size)?;
        }
        self.pad(size)?;
        self.close_node()
    }

    /// A regular file whose contents are these.
    pub fn contents(&mut self, executable: bool, contents: &[u8]) -> Result<(), BuildError> {
        let size = contents.len() as u64;
        self.open_file(executable, size)?;
        self.append(contents)?;
        self.pad(size)?;
        self.close_node()
    }

    /// A symbolic link to `target`.
    pub fn symlink(&mut self, target: &[u8]) -> Result<(), BuildError> {
        self.expect(Expects::Node);
        check_target(target)?;
        self.append(token::SYMLINK)?;
        self.word(target)?;
        self.close_node()
    }

    /// A directory, whose entries and end must follow.
    pub fn directory(&mut self) -> Result<(), BuildError> {
        self.expect(Expects::Node);
        self.append(token::DIRECTORY)?;
        self.position.enter_directory();
        self.expects = Expects::EntryOrEnd;
        Ok(())
    }

    /// The next entry of the open directory, whose node must follow.
    pub fn entry(&mut self, name: &[u8]) -> Result<(), BuildError> {
        self.expect(Expects::EntryOrEnd);
        self.position.enter_entry(name)?;
        self.append(token::ENTRY)?;
        self.word(name)?;
        self.append(token::NODE)?;
        self.expects = Expects::Node;
        Ok(())
    }

    /// The end of the open directory.
    pub fn end_directory(&mut self) -> Result<(), BuildError> {
        self.expect(Expects::EntryOrEnd);
        self.position.leave_directory();
        self.close_node()
    }

    /// Memory that [`take_part`](Self::take_part) would hand over now, by which a walk decides when to call it. Bytes.
    pub fn part_memory_len_bytes(&self) -> usize {
        self.part.memory_len_bytes()
    }

    /// Hands over all that was added since the last call; nothing when nothing was.
    pub fn take_part(&mut self) -> Option<Part> {
        let next = Part::starting_at(self.part.end);
        let part = std::mem::replace(&mut self.part, next);
        (part.start < part.end).then(|| part.shrunk())
    }

    /// Ends the NAR after its root node: what was added since the last part, and the length of the whole NAR in bytes.
    pub fn finish(mut self) -> (Option<Part>, u64) {
        self.expect(Expects::Nothing);
        let len_bytes = self.part.end;
        (self.take_part(), len_bytes)
    }

    fn expect(&self, expected: Expects) {
        debug_assert_eq!(self.expects, expected, "a call the grammar does not allow here");
    }

    /// All of a regular file that stands before its contents.
    fn open_file(&mut self, executable: bool, size: u64) -> Result<(), BuildError> {
        self.expect(Expects::Node);
        self.part.regular_files += 1;
        self.append(if executable { token::EXECUTABLE } else { token::REGULAR })?;
        self.append(&size.to_le_bytes())
    }

    /// Ends the current node, and the entry it is in unless it is the root.
    fn close_node(&mut self) -> Result<(), BuildError> {
        self.append(token::CLOSE)?;
        if self.position.level() == 0 {
            self.expects = Expects::Nothing;
            return Ok(());
        }
        self.expects = Expects::EntryOrEnd;
        self.append(token::CLOSE)
    }

    /// Appends one word of framing.
    fn word(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        let len_bytes = bytes.len() as u64;
        self.append(&len_bytes.to_le_bytes())?;
        self.append(bytes)?;
        self.pad(len_bytes)
    }

    fn pad(&mut self, len_bytes: u64) -> Result<(), BuildError> {
        self.append(token::padding(len_bytes))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.part.grow(bytes.len() as u64)?;
        self.part.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Appends the contents of the current node, a file that is not empty.
    fn file(&mut self, size: u64) -> Result<(), BuildError> {
        let path = self.position.path();
        if path.len() > NAR_PATH_LEN_MAX {
            return Err(BuildError::PathLength);
        }
        let part = &mut self.part;
        part.files.push(File {
            contents_offset: part.end,
            bytes_end: u32::try_from(part.bytes.len()).map_err(|_| BuildError::PartLength)?,
            path_start: u32::try_from(part.paths.len()).map_err(|_| BuildError::PartLength)?,
        });
        part.paths.extend_from_slice(path);
        part.paths.push(0);
        part.grow(size)
    }
}

impl Part {
    /// Offset in the NAR of the first byte of this part.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Offset in the NAR of the first byte after this part.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The bytes of this part, if it needs no file.
    pub fn whole_bytes(&self) -> Option<&[u8]> {
        self.files.is_empty().then_some(&self.bytes)
    }

    /// The pieces of this part, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let (mut offset, mut file) = (self.start, 0);
        std::iter::from_fn(move || {
            let piece = (offset < self.end).then(|| self.piece_at(offset, &mut file))?;
            offset += piece.len_bytes();
            Some(piece)
        })
    }

    /// Memory this part holds. Bytes.
    pub fn memory_len_bytes(&self) -> usize {
        size_of::<Self>() + self.bytes.len() + self.paths.len() + self.files.len() * size_of::<File>()
    }

    fn starting_at(start: u64) -> Self {
        Self { start, end: start, bytes: Vec::new(), paths: Vec::new(), files: Vec::new(), regular_files: 0 }
    }

    fn grow(&mut self, len_bytes: u64) -> Result<(), BuildError> {
        self.end = self.end.checked_add(len_bytes).ok_or(TreeError::Length)?;
        Ok(())
    }

    /// Gives back the memory that was reserved for more: a part may live long in a cache.
    fn shrunk(mut self) -> Self {
        self.bytes.shrink_to_fit();
        self.paths.shrink_to_fit();
        self.files.shrink_to_fit();
        self
    }

    /// The piece at `offset`, which lies in this part. `file` is a guess at, and becomes, the number of files that end
    /// at or before `offset`.
    fn piece_at(&self, offset: u64, file: &mut usize) -> Piece<'_> {
        debug_assert!((self.start..self.end).contains(&offset));
        *file = [*file, file.saturating_add(1)]
            .into_iter()
            .find(|&guess| self.is_next_file(guess, offset))
            .unwrap_or_else(|| self.files.partition_point(|file| self.file_end(file) <= offset));
        let next = self.files.get(*file);
        if let Some(next) = next
            && next.contents_offset <= offset
        {
            return Piece::File(self.file_range(next, offset));
        }
        let (nar_start, bytes_start) = match file.checked_sub(1).map(|index| &self.files[index]) {
            Some(previous) => (self.file_end(previous), previous.bytes_end as usize),
            None => (self.start, 0),
        };
        let bytes_end = next.map_or(self.bytes.len(), |next| next.bytes_end as usize);
        let bytes = &self.bytes[bytes_start..bytes_end];
        Piece::Bytes(&bytes[clamp(offset - nar_start, bytes.len())..])
    }

    /// Whether `index` is that of the first file that ends after `offset`, or one past the last when none does.
    fn is_next_file(&self, index: usize, offset: u64) -> bool {
        index <= self.files.len()
            && index.checked_sub(1).is_none_or(|previous| self.file_end(&self.files[previous]) <= offset)
            && self.files.get(index).is_none_or(|file| offset < self.file_end(file))
    }

    fn file_end(&self, file: &File) -> u64 {
        // `Builder::file` has checked this sum.
        file.contents_offset + self.file_size(file)
    }

    fn file_size(&self, file: &File) -> u64 {
        let (_, size) = self.bytes_before(file);
        u64::from_le_bytes(*size)
    }

    fn file_range(&self, file: &File, offset: u64) -> FileRange<'_> {
        let (bytes, size) = self.bytes_before(file);
        let file_size = u64::from_le_bytes(*size);
        let skipped = offset - file.contents_offset;
        let path = &self.paths[file.path_start as usize..];
        FileRange {
            path: CStr::from_bytes_until_nul(path).unwrap_or_default(),
            offset: skipped,
            len: file_size - skipped,
            file_size,
            executable: bytes.ends_with(token::EXECUTABLE),
        }
    }

    /// The bytes before a file's contents: all up to the length, and the length.
    fn bytes_before(&self, file: &File) -> (&[u8], &[u8; 8]) {
        // `Builder::regular` has put the length right before `bytes_end`.
        self.bytes[..file.bytes_end as usize].split_last_chunk().unwrap_or((&[], &[0; 8]))
    }
}

impl Layout {
    /// A layout that knows nothing yet and grows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the next part, in the order in which the builder handed them over.
    pub fn push(&mut self, part: Arc<Part>) {
        debug_assert!(!self.complete, "a complete layout does not grow");
        debug_assert_eq!(part.start, self.known_len_bytes(), "a part is missing");
        self.parts.push(part);
    }

    /// Marks the layout as complete after its last part. `len_bytes` is the length that [`Builder::finish`] gave.
    pub fn complete(&mut self, len_bytes: u64) {
        debug_assert_eq!(len_bytes, self.known_len_bytes(), "a part is missing");
        self.complete = true;
    }

    /// Whether the whole NAR is known.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Length of the whole NAR, once it is known. Bytes.
    pub fn len_bytes(&self) -> Option<u64> {
        self.complete.then(|| self.known_len_bytes())
    }

    /// Length of the NAR as far as it is known. Bytes.
    pub fn known_len_bytes(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.end)
    }

    /// Whether the whole NAR is here: it is complete and has no file ranges.
    pub fn is_whole(&self) -> bool {
        self.complete && self.parts.iter().all(|part| part.files.is_empty())
    }

    /// Whether the NAR is made of small files, as far as it is known: then it costs most to make again.
    pub fn has_small_files(&self) -> bool {
        self.mean_file_len_bytes().is_some_and(|mean_len| mean_len < SMALL_FILES_MEAN_LEN)
    }

    /// What one regular file is of the NAR on average, as far as it is known. Bytes; none when there is no file.
    fn mean_file_len_bytes(&self) -> Option<u64> {
        let files = self.parts.iter().map(|part| part.regular_files).sum();
        self.known_len_bytes().checked_div(files)
    }

    /// Memory this layout and its parts hold. Bytes.
    pub fn memory_len_bytes(&self) -> usize {
        size_of::<Self>() + self.parts.capacity() * size_of::<Arc<Part>>() + self.parts_memory_len_bytes()
    }

    /// Memory the parts hold, which clones of this layout share. Bytes.
    pub fn parts_memory_len_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.memory_len_bytes()).sum()
    }

    /// The piece that covers `offset`, clipped to start there.
    ///
    /// Takes constant time for the piece at or after the one that `cursor` was last used for, else O(log n).
    pub fn piece_at(&self, offset: u64, cursor: &mut Cursor) -> Lookup<'_> {
        if offset >= self.known_len_bytes() {
            return if self.complete { Lookup::End } else { Lookup::NotYet };
        }
        let contains = |&index: &usize| {
            self.parts.get(index).is_some_and(|part| (part.start..part.end).contains(&offset))
        };
        let index = [cursor.part, cursor.part.saturating_add(1)]
            .into_iter()
            .find(contains)
            .unwrap_or_else(|| self.parts.partition_point(|part| part.end <= offset));
        if index != cursor.part {
            *cursor = Cursor { part: index, file: 0 };
        }
        Lookup::Piece(self.parts[index].piece_at(offset, &mut cursor.file))
    }

    /// The pieces of `range`, clipped at both ends. Stops early where the NAR ends or is not yet known.
    pub fn pieces(&self, range: Range<u64>) -> Pieces<'_> {
        Pieces { layout: self, range, cursor: Cursor::default() }
    }
}

/// Iterator over the pieces of a range; see [`Layout::pieces`].
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    layout: &'a Layout,
    range: Range<u64>,
    cursor: Cursor,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        let left = self.range.end.checked_sub(self.range.start).filter(|&left| left > 0)?;
        let Lookup::Piece(piece) = self.layout.piece_at(self.range.start, &mut self.cursor) else {
            return None;
        };
        let piece = piece.truncated(left);
        self.range.start += piece.len_bytes();
        Some(piece)
    }
}

impl Piece<'_> {
    /// Length of the piece. Bytes, at least 1.
    pub fn len_bytes(&self) -> u64 {
        match self {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::File(range) => range.len,
        }
    }

    /// The first `len_bytes` bytes of the piece, or all of it when it is shorter.
    #[must_use]
    pub fn truncated(self, len_bytes: u64) -> Self {
        match self {
            Piece::Bytes(bytes) => Piece::Bytes(&bytes[..clamp(len_bytes, bytes.len())]),
            Piece::File(range) => Piece::File(FileRange { len: range.len.min(len_bytes), ..range }),
        }
    }
}

/// `len_bytes`, but no more than `max`.
fn clamp(len_bytes: u64, max: usize) -> usize {
    usize::try_from(len_bytes).map_or(max, |len| len.min(max))
}

/// The layout of a drawn tree agrees with the naive writer at every offset: while it grows part by part, split at drawn
/// places, when it is complete, and with a cursor left over from any other place; whether it has the contents of all files,
/// of some or of none.
#[cfg(any(test, fuzzing))]
pub fn fuzz_layout(data: &[u8]) {
    let tree = super::naive::Tree::draw(data);
    let mut draws = data.iter().copied().cycle();
    let mut draw = || usize::from(draws.next().unwrap_or(1));
    let some = draw() % 20;
    let [none, some, all] = [0, some, usize::MAX].map(|kept_len_max| {
        let layout = check::agreed(&tree, kept_len_max, &mut draw);
        (super::listing::from_layout(&layout).ok(), layout.is_whole())
    });
    assert!(none.0.is_some() && none.0 == some.0 && none.0 == all.0, "one tree has one listing");
    assert!(all.1);
}

/// What tests and fuzzing look at the layout with.
#[cfg(any(test, fuzzing))]
mod check {
    use std::sync::Arc;

    use super::super::naive::{Tree, nar};
    use super::{BuildError, Builder, Cursor, Layout, Lookup, Part, Piece, clamp};

    /// The layout of a tree with the contents of files of at most `kept_len_max` bytes, compared with the naive writer.
    pub fn agreed(tree: &Tree, kept_len_max: usize, draw: &mut impl FnMut() -> usize) -> Layout {
        let expected = nar(tree);
        let (parts, len_bytes) = lay_out(tree, kept_len_max, || draw().is_multiple_of(3));
        assert_eq!(len_bytes, expected.len() as u64);
        let mut layout = Layout::new();
        let mut sequential = Cursor::default();
        for part in parts {
            let new_from = part.start;
            assert_eq!(layout.piece_at(new_from, &mut sequential), Lookup::NotYet);
            layout.push(Arc::new(part));
            let known_len_bytes = layout.known_len_bytes();
            // Of what is new every offset, and some of what was there before.
            let stride = 1 + clamp(new_from, expected.len()) / (1 + draw() % 16);
            for offset in (0..new_from).step_by(stride).chain(new_from..known_len_bytes) {
                let Lookup::Piece(piece) = layout.piece_at(offset, &mut Cursor::default()) else {
                    panic!("nothing at {offset} of {known_len_bytes}");
                };
                let bytes = render(tree, piece);
                assert!(!bytes.is_empty() && bytes.len() as u64 == piece.len_bytes());
                assert!(expected[clamp(offset, expected.len())..].starts_with(&bytes), "at {offset}");
                let mut stale = Cursor { part: draw() % 8, file: draw() % 8 };
                assert_eq!(layout.piece_at(offset, &mut stale), Lookup::Piece(piece), "at {offset}");
                assert_eq!(layout.piece_at(offset, &mut sequential), Lookup::Piece(piece), "at {offset}");
            }
            assert_eq!(layout.piece_at(known_len_bytes, &mut sequential), Lookup::NotYet);
            assert_eq!(layout.len_bytes(), None);
        }
        layout.complete(len_bytes);
        assert_eq!(layout.len_bytes(), Some(len_bytes));
        assert_eq!(layout.piece_at(len_bytes, &mut sequential), Lookup::End);
        assert_eq!(layout.piece_at(u64::MAX, &mut sequential), Lookup::End);

        let (one, other) = (draw() * 3 % expected.len(), draw() * 5 % expected.len());
        let (start, end) = (one.min(other), one.max(other));
        let pieces = layout.pieces(start as u64..end as u64);
        let slice: Vec<u8> = pieces.flat_map(|piece| render(tree, piece)).collect();
        assert_eq!(slice, expected[start..end]);
        let pieces = layout.parts.iter().flat_map(|part| part.pieces());
        assert_eq!(pieces.flat_map(|piece| render(tree, piece)).collect::<Vec<_>>(), expected);
        layout
    }

    /// The parts of a tree's layout, taken after each step of the walk for which `take` says so, and its length.
    pub fn lay_out(tree: &Tree, kept_len_max: usize, mut take: impl FnMut() -> bool) -> (Vec<Part>, u64) {
        let mut parts = Vec::new();
        let mut builder = Builder::new();
        let walked = walk(tree, kept_len_max, &mut builder, &mut |builder| {
            if take() {
                parts.extend(builder.take_part());
            }
        });
        assert_eq!(walked, Ok(()));
        let (last, len_bytes) = builder.finish();
        parts.extend(last);
        (parts, len_bytes)
    }

    fn walk(
        tree: &Tree,
        kept_len_max: usize,
        builder: &mut Builder,
        step: &mut impl FnMut(&mut Builder),
    ) -> Result<(), BuildError> {
        match tree {
            Tree::Regular { executable, contents } if contents.len() <= kept_len_max => {
                builder.contents(*executable, contents)?;
            }
            Tree::Regular { executable, contents } => builder.regular(*executable, contents.len() as u64)?,
            Tree::Symlink(target) => builder.symlink(target)?,
            Tree::Directory(entries) => {
                builder.directory()?;
                for (name, child) in entries {
                    builder.entry(name)?;
                    step(builder);
                    walk(child, kept_len_max, builder, step)?;
                }
                builder.end_directory()?;
            }
        }
        step(builder);
        Ok(())
    }

    /// The bytes of a piece of the layout of `tree`.
    pub fn render(tree: &Tree, piece: Piece<'_>) -> Vec<u8> {
        match piece {
            Piece::Bytes(bytes) => bytes.to_vec(),
            Piece::File(range) => {
                let contents = tree.contents(range.path.to_bytes());
                assert_eq!(range.file_size, contents.len() as u64);
                contents[clamp(range.offset, contents.len())..][..clamp(range.len, usize::MAX)].to_vec()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::naive::Tree;
    use super::*;
    use crate::limits::{NAR_DEPTH_MAX, NAR_NAME_LEN_MAX, NAR_TARGET_LEN_MAX};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_the_naive_writer(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_layout(&data);
        }
    }

    fn finished(builder: Builder) -> Layout {
        let mut layout = Layout::new();
        let (part, len_bytes) = builder.finish();
        layout.push(Arc::new(part.unwrap()));
        layout.complete(len_bytes);
        layout
    }

    fn file_at(layout: &Layout, offset: u64) -> FileRange<'_> {
        match layout.piece_at(offset, &mut Cursor::default()) {
            Lookup::Piece(Piece::File(range)) => range,
            other => panic!("no file at {offset} but {other:?}"),
        }
    }

    /// An error of a builder that stands in a root directory and gets the entry `name`.
    fn entry_error(name: &[u8]) -> Option<BuildError> {
        let mut builder = Builder::new();
        builder.directory().unwrap();
        builder.entry(name).err()
    }

    #[test]
    fn a_root_file_has_no_path_and_starts_at_96() {
        for (executable, contents_offset) in [(false, 96), (true, 128)] {
            let mut builder = Builder::new();
            builder.regular(executable, 5).unwrap();
            let layout = finished(builder);
            let range = FileRange { path: c"", offset: 0, len: 5, file_size: 5, executable };
            assert_eq!(file_at(&layout, contents_offset), range);
            assert_eq!(file_at(&layout, contents_offset + 4), FileRange { offset: 4, len: 1, ..range });
            // Three bytes of padding and one parenthesis follow.
            assert_eq!(layout.len_bytes(), Some(contents_offset + 5 + 3 + 16));
        }
    }

    #[test]
    fn offsets_of_64_bits_need_no_bytes() {
        let huge = 1 << 62;
        let mut builder = Builder::new();
        builder.directory().unwrap();
        for name in ["a", "b", "c"] {
            builder.entry(name.as_bytes()).unwrap();
            builder.regular(false, huge).unwrap();
        }
        builder.end_directory().unwrap();
        let layout = finished(builder);
        let len_bytes = layout.len_bytes().unwrap();
        assert!(len_bytes > 3 * huge);
        let files: Vec<_> = layout
            .pieces(0..len_bytes)
            .filter_map(|piece| if let Piece::File(range) = piece { Some(range) } else { None })
            .collect();
        assert_eq!(files.iter().map(|file| file.path).collect::<Vec<_>>(), [c"a", c"b", c"c"]);
        assert!(files.iter().all(|file| file.len == huge && file.offset == 0));
        assert_eq!(file_at(&layout, 2 * huge + huge / 2).path, c"c");
        assert!(matches!(
            layout.piece_at(len_bytes - 1, &mut Cursor::default()),
            Lookup::Piece(Piece::Bytes(b"\0"))
        ));
    }

    #[test]
    fn a_length_beyond_64_bits_is_an_error() {
        let too_long = Err(BuildError::Tree(TreeError::Length));
        for size in [u64::MAX, u64::MAX - 96, u64::MAX - 96 - 15] {
            assert_eq!(Builder::new().regular(false, size), too_long, "{size}");
        }
        // The longest there is: contents whose end, padding and parenthesis still fit.
        let size = u64::MAX - 96 - 16 - 7;
        let mut builder = Builder::new();
        assert_eq!(builder.regular(false, size), Ok(()));
        let layout = finished(builder);
        assert_eq!(layout.len_bytes(), Some(u64::MAX - 7));
        assert_eq!(file_at(&layout, 96 + size - 1).len, 1);

        let mut builder = Builder::new();
        builder.directory().unwrap();
        builder.entry(b"a").unwrap();
        builder.regular(false, 1 << 63).unwrap();
        builder.entry(b"b").unwrap();
        assert_eq!(builder.regular(false, 1 << 63), too_long);
    }

    #[test]
    fn a_tree_that_breaks_a_rule_is_an_error() {
        let length = Some(BuildError::Tree(TreeError::NameLength));
        let bytes = Some(BuildError::Tree(TreeError::NameBytes));
        assert_eq!(entry_error(b""), length);
        assert_eq!(entry_error(&[b'n'; NAR_NAME_LEN_MAX]), None);
        assert_eq!(entry_error(&[b'n'; NAR_NAME_LEN_MAX + 1]), length);
        for name in [&b"."[..], b"..", b"/", b"a/b", b"a/", b"a\0", b"\0"] {
            assert_eq!(entry_error(name), bytes, "{name:?}");
        }
        for name in [&b"..."[..], b".a", b"\xff\xfe", b"\n", b"~"] {
            assert_eq!(entry_error(name), None, "{name:?}");
        }
        assert_eq!(Builder::new().symlink(&[b't'; NAR_TARGET_LEN_MAX]), Ok(()));
        for target in [&b""[..], &[b't'; NAR_TARGET_LEN_MAX + 1]] {
            assert_eq!(Builder::new().symlink(target), Err(TreeError::TargetLength.into()));
        }
        assert_eq!(Builder::new().symlink(b"a\0b"), Err(TreeError::TargetBytes.into()));
    }

    #[test]
    fn names_must_rise_by_their_bytes_within_their_directory() {
        for (first, second, rises) in [
            (&b"a"[..], &b"b"[..], true),
            (b"a", b"a", false),
            (b"b", b"a", false),
            (b"foo", b"foo-x", true),
            (b"foo-x", b"foo", false),
            (b"B", b"a", true),
            (b"z", b"\xc3\xa9", true),
            (b"\xff", b"z", false),
        ] {
            let mut builder = Builder::new();
            builder.directory().unwrap();
            builder.entry(first).unwrap();
            // What is in a directory is no part of the order around it.
            builder.directory().unwrap();
            builder.entry(b"\xff\xff").unwrap();
            builder.regular(false, 1).unwrap();
            builder.end_directory().unwrap();
            assert_eq!(builder.entry(second).is_ok(), rises, "{first:?} {second:?}");
        }
    }

    #[test]
    fn a_tree_has_at_most_64_levels() {
        let mut builder = Builder::new();
        for _ in 1..NAR_DEPTH_MAX {
            builder.directory().unwrap();
            builder.entry(b"d").unwrap();
        }
        // The last level may hold a directory, but that may hold nothing.
        builder.directory().unwrap();
        assert_eq!(builder.entry(b"d"), Err(TreeError::Depth.into()));
    }

    #[test]
    fn a_path_that_one_system_call_cannot_take_is_an_error() {
        let name = [b'n'; NAR_NAME_LEN_MAX];
        let mut builder = Builder::new();
        for _ in 0..16 {
            builder.directory().unwrap();
            builder.entry(&name).unwrap();
        }
        builder.directory().unwrap();
        // Sixteen names and their slashes are 4096 bytes. A file that is never opened may lie there.
        builder.entry(b"a").unwrap();
        builder.regular(false, 0).unwrap();
        builder.entry(b"b").unwrap();
        assert_eq!(builder.regular(false, 1), Err(BuildError::PathLength));
    }

    #[test]
    fn nothing_new_is_no_part() {
        let mut builder = Builder::new();
        let head = builder.take_part().unwrap();
        assert_eq!((head.start(), head.end()), (0, 24));
        assert!(builder.take_part().is_none());
        builder.symlink(b"t").unwrap();
        let rest = builder.take_part().unwrap();
        let (none, len_bytes) = builder.finish();
        assert!(none.is_none());
        assert_eq!((rest.start(), rest.end()), (24, len_bytes));
    }

    #[test]
    fn an_entry_costs_what_the_doc_says() {
        let entries = 50_000;
        let mut parts = Vec::new();
        let mut builder = Builder::new();
        builder.directory().unwrap();
        builder.entry(b"share").unwrap();
        builder.directory().unwrap();
        for index in 0..entries {
            builder.entry(format!("module-{index:06}.py").as_bytes()).unwrap();
            builder.regular(false, 133).unwrap();
            if builder.part_memory_len_bytes() > 64 * 1024 {
                parts.extend(builder.take_part());
            }
        }
        builder.end_directory().unwrap();
        builder.end_directory().unwrap();
        let (last, len_bytes) = builder.finish();
        parts.extend(last);
        let mut layout = Layout::new();
        for part in parts {
            layout.push(Arc::new(part));
        }
        layout.complete(len_bytes);
        let entry_bytes = layout.memory_len_bytes() / entries;
        // 176 of framing, 16 of name, 3 of padding, 16 of record, 23 of path, and a little for the parts.
        assert!((234..=236).contains(&entry_bytes), "{entry_bytes} bytes an entry");
    }

    #[test]
    fn files_are_counted_wherever_their_contents_are() {
        let mut builder = Builder::new();
        builder.directory().unwrap();
        builder.entry(b"a").unwrap();
        builder.regular(false, 1000).unwrap();
        let mut layout = Layout::new();
        layout.push(Arc::new(builder.take_part().unwrap()));
        assert_eq!(layout.mean_file_len_bytes(), Some(layout.known_len_bytes()));
        builder.entry(b"b").unwrap();
        builder.contents(false, b"contents").unwrap();
        builder.entry(b"c").unwrap();
        builder.symlink(b"a").unwrap();
        builder.end_directory().unwrap();
        let (part, len_bytes) = builder.finish();
        layout.push(Arc::new(part.unwrap()));
        assert_eq!(layout.mean_file_len_bytes(), Some(len_bytes / 2));
        assert_eq!(Layout::new().mean_file_len_bytes(), None);
    }

    #[test]
    fn an_empty_file_is_whole() {
        let tree = Tree::Regular { executable: true, contents: Vec::new() };
        let (parts, len_bytes) = check::lay_out(&tree, 0, || false);
        let mut layout = Layout::new();
        for part in parts {
            layout.push(Arc::new(part));
        }
        layout.complete(len_bytes);
        let pieces: Vec<_> = layout.pieces(0..u64::MAX).collect();
        assert!(matches!(pieces[..], [Piece::Bytes(bytes)] if bytes.len() as u64 == len_bytes));
    }
}
