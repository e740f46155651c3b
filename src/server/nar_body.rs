//! The NAR of a live store path as a body: framing and tiny files from its layout, the others from disk.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rustix::io::Errno;
use tracing::{error, warn};

use crate::codec::nar::layout::{self, Cursor, Layout, Part};
use crate::codec::store_path::StorePath;
use crate::limits::{STALL_MAX_S, UNCOMPARED_CONTENTS_KEPT, YIELDING_LAYOUT_LEN_MIN};
use crate::ring::body::{Body, Fault, FilePiece, FileSource, Lookup, Piece};
use crate::ring::op::{FileKind, FileStatus, OpenedFile};

/// The layout of a NAR while it is walked and afterwards. Shared by all who send it from this worker.
pub struct SharedLayout {
    layout: RefCell<Rc<Layout>>,
    growth: Cell<Growth>,
    /// The length that the database promises. Bytes.
    nar_size: u64,
    /// The root that is walked. A path that Nix has repaired has another.
    root_status: Option<FileStatus>,
    since: Instant,
    footprint: Footprint,
}

/// Memory of all layouts of one worker that are kept, walked, or being sent.
#[derive(Clone, Default)]
pub struct Footprint(Rc<Counts>);

#[derive(Default)]
struct Counts {
    len_bytes: Cell<usize>,
    /// Walks that were refused since one had room, or a stalled download gave way for.
    refused: Cell<usize>,
}

impl Footprint {
    /// What they take. Bytes.
    pub fn len_bytes(&self) -> usize {
        self.0.len_bytes.get()
    }

    /// Notes that a walk was refused for want of room, or that there was room for one.
    pub fn note(&self, is_refused: bool) {
        self.0.refused.update(|refused| if is_refused { refused + 1 } else { 0 });
    }

    /// Whether a walk was refused for which no download has given way yet; now one has.
    fn give_way(&self) -> bool {
        let refused = self.0.refused.get();
        self.0.refused.set(refused.saturating_sub(1));
        refused > 0
    }
}

/// How far the walk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Growth {
    /// More parts will come.
    Walking,
    /// The layout is complete and as long as the database says.
    Complete,
    /// The tree differs from what the database says: nothing of it is served any more.
    Failed,
}

impl SharedLayout {
    /// A layout that knows nothing yet, of a NAR of `nar_size` bytes with this root. What it takes is part of `footprint` for as
    /// long as it lives.
    pub fn new(nar_size: u64, root_status: Option<FileStatus>, footprint: Footprint) -> Self {
        let layout = RefCell::new(Rc::new(Layout::new()));
        let (growth, since) = (Cell::new(Growth::Walking), Instant::now());
        Self { layout, growth, nar_size, root_status, since, footprint }
    }

    /// Adds what the walk has found.
    pub fn push(&self, part: Part) {
        if !self.is_sound() {
            return;
        }
        let known_len = {
            self.footprint.0.len_bytes.update(|len| len + part.memory_len_bytes());
            let mut layout = self.layout.borrow_mut();
            Rc::make_mut(&mut layout).push(Arc::new(part));
            layout.known_len_bytes()
        };
        if known_len > self.nar_size {
            self.fail();
        }
    }

    /// Notes that the walk is over; false when the tree is not the one that the database knows.
    pub fn complete(&self, len_bytes: u64) -> bool {
        if len_bytes != self.nar_size || !self.is_sound() {
            self.fail();
            return false;
        }
        Rc::make_mut(&mut self.layout.borrow_mut()).complete(len_bytes);
        self.growth.set(Growth::Complete);
        true
    }

    /// Notes that the tree is not what it should be.
    pub fn fail(&self) {
        self.growth.set(Growth::Failed);
    }

    /// Whether anything is known.
    pub fn has_begun(&self) -> bool {
        self.layout.borrow().known_len_bytes() > 0
    }

    /// Whether nothing speaks against it.
    pub fn is_sound(&self) -> bool {
        self.growth.get() != Growth::Failed
    }

    /// Whether it describes the tree below this root, which has not changed since.
    pub fn is_of(&self, root_status: Option<FileStatus>) -> bool {
        self.root_status == root_status
    }

    /// Whether its contents were read too long ago to be sent, because they were mended since perhaps. Those of a whole NAR were
    /// compared with its hash; of one that has file ranges as well they could not be.
    pub fn is_outdated(&self) -> bool {
        !self.is_whole() && self.since.elapsed() >= UNCOMPARED_CONTENTS_KEPT
    }

    /// Whether the whole NAR is here, so that nothing has to be read.
    pub fn is_whole(&self) -> bool {
        self.is_sound() && self.layout.borrow().is_whole()
    }

    /// The whole NAR, if it is here and has at most `len_max` bytes.
    pub fn short(&self, len_max: usize) -> Option<Bytes> {
        let len = usize::try_from(self.nar_size).ok().filter(|&len| len <= len_max && self.is_whole())?;
        let layout = self.layout.borrow();
        let mut nar = Vec::with_capacity(len);
        for piece in layout.pieces(0..self.nar_size) {
            if let layout::Piece::Bytes(bytes) = piece {
                nar.extend_from_slice(bytes);
            }
        }
        Some(nar.into())
    }

    /// Whether its NAR is made of small files, as far as it is known: then it costs most to make again.
    pub fn has_small_files(&self) -> bool {
        self.layout.borrow().has_small_files()
    }

    /// Memory that it takes. Bytes.
    pub fn memory_len_bytes(&self) -> usize {
        self.layout.borrow().memory_len_bytes()
    }

    /// The layout, as far as it may be sent.
    ///
    /// The end of a NAR is held back until the walk is over: only then is it known that the tree is not larger than the
    /// database says, and a NAR that is cut where it should end would look complete.
    pub fn sendable(&self) -> Result<Option<Rc<Layout>>, Failed> {
        let layout = self.layout.borrow();
        match self.growth.get() {
            Growth::Failed => Err(Failed),
            Growth::Walking if layout.known_len_bytes() >= self.nar_size => Ok(None),
            Growth::Walking | Growth::Complete => Ok(Some(Rc::clone(&layout))),
        }
    }
}

impl Drop for SharedLayout {
    fn drop(&mut self) {
        let parts_len = self.layout.get_mut().parts_memory_len_bytes();
        self.footprint.0.len_bytes.update(|len| len - parts_len);
    }
}

/// The tree is not what it should be.
pub struct Failed;

/// The root of a store path.
#[derive(Clone, Debug)]
pub enum Root {
    /// A directory or a regular file. While it is open, Nix's garbage collector keeps the path.
    Open(OpenedFile),
    /// None: the path is a symbolic link, or its whole NAR is known. No file will be read.
    Unneeded,
}

impl Root {
    /// Tells it from another root at the same place.
    pub fn status(&self) -> Option<FileStatus> {
        match self {
            Self::Open(root) => Some(root.status),
            Self::Unneeded => None,
        }
    }
}

/// A NAR on its way to one client.
pub struct NarBody {
    path: StorePath,
    root: Root,
    shared: Rc<SharedLayout>,
    /// What was known when last asked.
    layout: Rc<Layout>,
    cursor: Cursor,
}

impl NarBody {
    /// The NAR of `path`, whose root is open.
    pub fn new(path: StorePath, root: Root, shared: Rc<SharedLayout>) -> Self {
        Self { path, root, shared, layout: Rc::new(Layout::new()), cursor: Cursor::default() }
    }
}

impl Body for NarBody {
    fn piece_at(&mut self, position: u64) -> Lookup<'_> {
        if position >= self.layout.known_len_bytes() {
            match self.shared.sendable() {
                Ok(Some(layout)) => self.layout = layout,
                Ok(None) => return Lookup::NotYet,
                Err(Failed) => return Lookup::Broken,
            }
        }
        let range = match self.layout.piece_at(position, &mut self.cursor) {
            layout::Lookup::Piece(layout::Piece::Bytes(bytes)) => {
                return Lookup::Piece(Piece::Bytes(bytes));
            }
            layout::Lookup::Piece(layout::Piece::File(range)) => range,
            layout::Lookup::NotYet => return Lookup::NotYet,
            layout::Lookup::End => return Lookup::Broken,
        };
        // Without one of the right kind, the root is something else than when it was walked.
        let Root::Open(OpenedFile { file: root, status }) = &self.root else { return Lookup::Broken };
        let source = match status.kind {
            FileKind::Directory if !range.path.is_empty() => {
                FileSource::Beneath { directory: root, path: range.path, len_bytes: range.file_size }
            }
            FileKind::Regular if range.path.is_empty() && status.len_bytes == range.file_size => {
                FileSource::Open(root)
            }
            _ => return Lookup::Broken,
        };
        Lookup::Piece(Piece::File(FilePiece { source, offset: range.offset, len: range.len }))
    }

    /// Layouts that are being sent keep those out that have to be made, so who does not read must not keep a large one.
    fn yields(&mut self, stalled_s: u64) -> bool {
        let yields = stalled_s > STALL_MAX_S
            && self.shared.memory_len_bytes() >= YIELDING_LAYOUT_LEN_MIN
            && self.shared.footprint.give_way();
        if yields {
            warn!(
                "the download of {} was broken off: its client takes nothing, and others wait for room for their trees",
                self.path.base_name()
            );
        }
        yields
    }

    fn broke(&mut self, fault: Fault) {
        let name = self.path.base_name();
        if let Fault::File(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR | Errno::AGAIN) = fault {
            return error!(
                "the download of {name} was broken off: {fault}; the limit of open files may be too low (LimitNOFILE=)"
            );
        }
        self.shared.fail();
        error!(
            "the download of {name} was broken off: {fault}; it was deleted or is damaged (nix-store --verify-path tells)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::nar::layout::Builder;

    fn path() -> StorePath {
        StorePath::parse_base_name("00000000000000000000000000000000-x").unwrap()
    }

    /// A link's NAR in one part, and its length.
    fn link() -> (Part, u64) {
        let mut builder = Builder::new();
        builder.symlink(b"target").unwrap();
        let (part, len_bytes) = builder.finish();
        (part.unwrap(), len_bytes)
    }

    #[test]
    fn the_end_is_held_back_until_the_walk_is_over() {
        let (part, len_bytes) = link();
        let shared = Rc::new(SharedLayout::new(len_bytes, None, Footprint::default()));
        let mut body = NarBody::new(path(), Root::Unneeded, Rc::clone(&shared));
        assert!(matches!(body.piece_at(0), Lookup::NotYet));
        shared.push(part);
        assert!(matches!(body.piece_at(0), Lookup::NotYet));
        assert!(shared.complete(len_bytes));
        assert!(
            matches!(body.piece_at(0), Lookup::Piece(Piece::Bytes(bytes)) if bytes.len() as u64 == len_bytes)
        );
    }

    #[test]
    fn who_does_not_read_gives_way_where_a_walk_was_refused_and_its_layout_is_large() {
        let footprint = Footprint::default();
        let body = |count: u64| {
            let shared = Rc::new(SharedLayout::new(u64::MAX, None, footprint.clone()));
            let mut builder = Builder::new();
            builder.directory().unwrap();
            for number in 0..count {
                builder.entry(format!("{number:08}").as_bytes()).unwrap();
                builder.symlink(b"target").unwrap();
            }
            shared.push(builder.take_part().unwrap());
            NarBody::new(path(), Root::Unneeded, shared)
        };
        let (mut small, mut large, mut larger) = (body(10), body(20_000), body(30_000));
        assert!(large.shared.memory_len_bytes() >= YIELDING_LAYOUT_LEN_MIN, "it is large");
        assert!(!large.yields(STALL_MAX_S + 1), "nobody wants its room");
        footprint.note(true);
        assert!(!small.yields(STALL_MAX_S + 1) && !large.yields(STALL_MAX_S));
        assert!(large.yields(STALL_MAX_S + 1));
        assert!(!larger.yields(STALL_MAX_S + 1), "one was refused");
        footprint.note(true);
        footprint.note(false);
        assert!(!larger.yields(STALL_MAX_S + 1), "there is room");
    }

    #[test]
    fn another_length_than_the_databases_breaks_every_reader() {
        let (part, len_bytes) = link();
        for promised in [len_bytes - 8, len_bytes + 8] {
            let shared = Rc::new(SharedLayout::new(promised, None, Footprint::default()));
            let mut body = NarBody::new(path(), Root::Unneeded, Rc::clone(&shared));
            shared.push(part.clone());
            assert!(!shared.complete(len_bytes));
            assert!(matches!(body.piece_at(0), Lookup::Broken));
        }
    }
}
