//! The NAR of a valid path, read from its tree.
//!
//! A tree is walked on a thread beside, because directories are read through the ring by nobody; its files are read here.

use std::io;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use async_channel::Sender;
use futures_lite::future;
use rustix::fs::Stat;

use super::direct::{Disks, Reader, Resident};
use super::executor::Runtime;
use crate::codec::hash::{Sha256, Sha256Digest};
use crate::codec::nar::layout::{Layout, Part, Piece};
use crate::codec::narinfo::PathInfo;
use crate::limits::{BACKGROUND_LAYOUT_LEN_MAX, BACKGROUND_PIECE_LEN_BYTES};
use crate::store::catalog::RootMark;
use crate::store::walk::{self, Kept, Root, Walked};
use crate::store::{LocalStore, StoreError};

/// The tree of a valid path. While this lives, the garbage collector spares it.
pub struct Tree {
    root: Arc<Root>,
    /// What the root was when it was opened.
    pub mark: RootMark,
}

/// Takes a NAR in order.
pub trait Sink {
    /// Takes the next bytes, at most [`BACKGROUND_PIECE_LEN_BYTES`] and at least one.
    async fn push(&mut self, bytes: &[u8]) -> Result<(), SinkError>;
}

/// Why a sink takes no more.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The plane ends.
    #[error("the plane ends")]
    Ended,
    /// What is made of the NAR is longer than may be kept.
    #[error("the NAR is too long")]
    TooLong,
    /// The cache has no room, for this reason.
    #[error("there is no room: {0}")]
    NoRoom(String),
    /// The cache cannot be written.
    #[error(transparent)]
    Cache(StoreError),
}

/// Why a NAR was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The tree is none, or not the one that it was a moment ago.
    #[error("{0}")]
    Damaged(String),
    /// The tree cannot be read, or not now.
    #[error(transparent)]
    Unreadable(#[from] StoreError),
    /// It has more entries than are laid out in memory, or is beyond a bound of NARs.
    #[error("the tree is too large")]
    TooLarge,
    /// The sink takes no more.
    #[error(transparent)]
    Sink(#[from] SinkError),
}

/// What a tree was found to be.
#[derive(Debug)]
pub enum Verdict {
    /// What the database says.
    Sound,
    /// Something else, and why.
    Damaged(String),
}

impl Tree {
    /// Opens the root of a path. None when it is not there. Waits for the disk.
    pub fn open(places: &LocalStore, info: &PathInfo) -> Result<Option<Self>, StoreError> {
        let Some(root) = walk::open_root(places, &info.path)? else { return Ok(None) };
        let mark = mark(&rustix::fs::fstat(&root.descriptor).map_err(|error| StoreError::Io {
            path: root.path.clone(),
            operation: "examine",
            source: error.into(),
        })?);
        Ok(Some(Self { root: Arc::new(root), mark }))
    }

    /// The whole layout of the tree, with the contents of tiny files that are in memory.
    pub async fn layout(&self, runtime: Runtime) -> Result<Layout, TreeError> {
        let root = Arc::clone(&self.root);
        runtime.wait_for(move || lay_out(&root)).await
    }

    /// Reads what `pieces` say into `sink`.
    pub async fn read<'a>(
        &self,
        disks: &Rc<Disks>,
        pieces: impl Iterator<Item = Piece<'a>>,
        resident: Resident,
        sink: &mut impl Sink,
    ) -> Result<(), TreeError> {
        for piece in pieces {
            match piece {
                Piece::Bytes(bytes) => {
                    for bytes in bytes.chunks(BACKGROUND_PIECE_LEN_BYTES) {
                        sink.push(bytes).await?;
                        disks.runtime().breathe().await;
                    }
                }
                Piece::File(range) => {
                    let failed = |error| self.file_error(range.path, error);
                    let file = walk::open_file(&self.root, range.path).map_err(changed)?;
                    let mut reader = Reader::open(disks, file, range.file_size, resident).await;
                    while let Some(bytes) = reader.next().await.map_err(failed)? {
                        sink.push(bytes).await?;
                        disks.runtime().breathe().await;
                    }
                }
            }
        }
        Ok(())
    }

    /// Compares the tree with the database, by what is on the disk. `watch` is told how much was read, and may take its time.
    pub async fn verify(
        &self,
        disks: &Rc<Disks>,
        info: &PathInfo,
        watch: &mut impl AsyncFnMut(u64) -> Result<(), SinkError>,
    ) -> Result<Verdict, TreeError> {
        let runtime = disks.runtime();
        // A thread alone would wait for itself to take a part, so there they all wait.
        let (sender, parts) = match runtime {
            Runtime::Executor => async_channel::bounded(1),
            Runtime::Thread => async_channel::unbounded(),
        };
        let root = Arc::clone(&self.root);
        let walking = runtime.wait_for(move || hand_over(&root, &sender));
        let mut sink = Hashing { hasher: Sha256::new(), len_bytes: 0, watch };
        let reading = async {
            // Dropped at the end of this block, however that comes: then the walk stops.
            let parts = parts;
            while let Ok(part) = parts.recv().await {
                self.read(disks, part.pieces(), Resident::Ignored, &mut sink).await?;
            }
            Ok(())
        };
        let (walked, read) = future::zip(walking, reading).await;
        let compared = match (walked, read) {
            (_, Err(error)) | (Err(error), Ok(())) => Err(error),
            (Ok(()), Ok(())) => Ok((sink.hasher.finish(), sink.len_bytes)),
        };
        match compared {
            Ok((nar_hash, len_bytes)) => Ok(compare(info, nar_hash, len_bytes)),
            Err(TreeError::Damaged(reason)) => Ok(Verdict::Damaged(reason)),
            Err(error) => Err(error),
        }
    }

    /// Whether the root is still what it was when it was opened, so that what was read is what is there.
    pub fn is_unchanged(&self, places: &LocalStore, info: &PathInfo) -> bool {
        root_mark(places, info) == Some(self.mark)
    }

    fn file_error(&self, path: &std::ffi::CStr, error: io::Error) -> TreeError {
        let path = self.root.path.join(&*path.to_string_lossy());
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return TreeError::Damaged(format!("{} is shorter than it was", path.display()));
        }
        TreeError::Unreadable(StoreError::Io { path, operation: "read", source: error })
    }
}

/// What the root of a path is now; none when it cannot be seen.
pub fn root_mark(places: &LocalStore, info: &PathInfo) -> Option<RootMark> {
    let path = places.real_store.join(info.path.base_name());
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::statat(rustix::fs::CWD, path, flags).ok().map(|status| mark(&status))
}

/// Compares a NAR with the database.
pub fn compare(info: &PathInfo, nar_hash: Sha256Digest, len_bytes: u64) -> Verdict {
    if len_bytes != info.nar_size {
        let expected = info.nar_size;
        return Verdict::Damaged(format!("its NAR has {len_bytes} bytes, and {expected} in the database"));
    }
    if nar_hash != info.nar_hash {
        let expected = info.nar_hash;
        return Verdict::Damaged(format!("its NAR has the hash {nar_hash}, and {expected} in the database"));
    }
    Verdict::Sound
}

fn mark(status: &Stat) -> RootMark {
    RootMark {
        inode: status.st_ino,
        changed_s: status.st_ctime,
        changed_ns: u32::try_from(status.st_ctime_nsec).unwrap_or(0),
    }
}

/// What a walk says that ran into something that a tree cannot have.
fn changed(error: StoreError) -> TreeError {
    match error {
        StoreError::Damaged { .. } => TreeError::Damaged(error.to_string()),
        StoreError::Unservable { .. } => TreeError::TooLarge,
        other => TreeError::Unreadable(other),
    }
}

fn lay_out(root: &Root) -> Result<Layout, TreeError> {
    let mut layout = Layout::new();
    let walked = walk::walk(root, Kept::Tiny, &mut |part| {
        layout.push(part.into());
        if layout.parts_memory_len_bytes() > BACKGROUND_LAYOUT_LEN_MAX {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    match walked.map_err(changed)? {
        Walked::Complete { last_part, len_bytes } => {
            if let Some(part) = last_part {
                layout.push(part.into());
            }
            layout.complete(len_bytes);
            Ok(layout)
        }
        Walked::Stopped => Err(TreeError::TooLarge),
    }
}

/// Walks a tree and sends its parts off, until nobody takes them any more.
fn hand_over(root: &Root, parts: &Sender<Part>) -> Result<(), TreeError> {
    let walked = walk::walk(root, Kept::Nothing, &mut |part| match parts.send_blocking(part) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    });
    match walked.map_err(changed)? {
        Walked::Complete { last_part: Some(part), .. } => {
            // If nobody takes it, whoever has left says why.
            let _ = parts.send_blocking(part);
        }
        Walked::Complete { last_part: None, .. } | Walked::Stopped => {}
    }
    Ok(())
}

/// Hashes what it takes.
struct Hashing<'a, W> {
    hasher: Sha256,
    len_bytes: u64,
    watch: &'a mut W,
}

impl<W: AsyncFnMut(u64) -> Result<(), SinkError>> Sink for Hashing<'_, W> {
    async fn push(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.hasher.update(bytes);
        self.len_bytes += bytes.len() as u64;
        (self.watch)(bytes.len() as u64).await
    }
}
