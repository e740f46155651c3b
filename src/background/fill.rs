//! Filling: the NAR of one path is read once, encoded in each wanted way, compared with the database, and published.

use std::io;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::direct::{Resident, Writer};
use super::room::{Need, Promise, Room};
use super::tree::{self, Sink, SinkError, Tree, TreeError, Verdict};
use super::workshop::Workshop;
use crate::codec::hash::{Sha256, Sha256Digest};
use crate::codec::narinfo::PathInfo;
use crate::codec::store_path::HashPart;
use crate::codec::zstd::{FrameEncoder, FrameError};
use crate::limits::{BACKGROUND_PIECE_LEN_BYTES, FILL_ROOM_LEN_BYTES, FILLS_MAX};
use crate::store::catalog::Stored;
use crate::store::draft::Draft;
use crate::store::nar_cache::Coding;
use crate::store::{StoreError, fault, now_s};
use crate::tally::Tally as _;

/// What became of a path that was to be encoded.
#[derive(Debug)]
pub enum Filled {
    /// It is there, in each coding that was wanted.
    Done,
    /// There is nothing to encode: the path is not valid, all that is wanted is there, or the plane ends.
    Nothing,
    /// Its tree is damaged, which was said.
    Damaged,
    /// It is too long: it would not fit in if there was nothing else.
    Refused,
    /// There is no room for it, for this reason.
    NoRoom(String),
    /// The store is in the way.
    Failed(String),
    /// The cache is in the way; the same may be tried again later.
    Stuck(String),
}

/// A path to be encoded.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Which.
    pub hash_part: HashPart,
    /// Whether it is known to be of small files, and so wanted flat as well.
    pub has_small_files: bool,
    /// What may go to make room for it: [`Need::Wanted`], or [`Need::Spare`] for a path that is merely there.
    pub need: Need,
}

/// Encodes the NAR of a path, unless it is there.
pub async fn fill(workshop: &Rc<Workshop>, order: Order) -> Filled {
    // Refused only by a semaphore that was closed, and nobody closes this one.
    let together = workshop.filling.acquire_permit(1).await.ok();
    let mut filled = Fill::of(workshop, order).await;
    drop(together);
    if order.need == Need::Wanted && matches!(filled, Err(Obstacle::NoRoom(_) | Obstacle::DiskFull(_))) {
        // What another fill has written, or was promised, may be just what is lacking: so once more when there is no other.
        let _alone = workshop.filling.acquire_permit(FILLS_MAX as u64).await.ok();
        if matches!(filled, Err(Obstacle::DiskFull(_)))
            && let Err(error) = workshop.give_way().await
        {
            return Filled::Stuck(error.to_string());
        }
        filled = Fill::of(workshop, order).await;
    }
    match filled {
        Ok(filled) => filled,
        Err(Obstacle::Store(reason)) => Filled::Failed(reason),
        Err(Obstacle::NoRoom(reason)) => Filled::NoRoom(reason),
        Err(Obstacle::DiskFull(error)) => Filled::NoRoom(error.to_string()),
        Err(Obstacle::Cache(error)) => Filled::Stuck(error.to_string()),
    }
}

/// What is in the way of a fill.
enum Obstacle {
    /// The database or the store, or a reader of what was to be replaced.
    Store(String),
    /// The bounds of the cache, and which of them.
    NoRoom(String),
    /// The disk, before the bounds were reached: others write there too.
    DiskFull(StoreError),
    /// The cache.
    Cache(StoreError),
}

impl Obstacle {
    /// What was in the way of a change of the cache.
    fn of_cache(error: StoreError) -> Self {
        if error.is_no_room() {
            Self::DiskFull(error)
        } else if error.io_kind() == Some(io::ErrorKind::ResourceBusy) {
            Self::Store(error.to_string())
        } else {
            Self::Cache(error)
        }
    }
}

impl From<StoreError> for Obstacle {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

/// A fill under way.
struct Fill<'a> {
    workshop: &'a Rc<Workshop>,
    info: PathInfo,
    began: Instant,
}

impl Fill<'_> {
    async fn of(workshop: &Rc<Workshop>, order: Order) -> Result<Filled, Obstacle> {
        let info = workshop.database.path_info(order.hash_part).await?;
        let Some(info) = info else { return Ok(Filled::Nothing) };
        let fill = Fill { workshop, info, began: Instant::now() };
        if workshop.catalog().damaged(&fill.nar()).is_some() {
            return Ok(Filled::Damaged);
        }
        let missing = fill.missing(order.has_small_files).len() as u64;
        if missing == 0 {
            return Ok(Filled::Nothing);
        }
        if order.need == Need::Spare {
            // Asked before the tree is walked: of a large store there would be many that find no room.
            let len = fill.info.nar_size.saturating_mul(missing);
            let room = workshop.make_room(len, Need::Spare).await;
            if let Room::None(reason) = room.map_err(Obstacle::of_cache)? {
                return Err(Obstacle::NoRoom(reason));
            }
        }
        if let Err(reason) = workshop.look_there().await {
            return Ok(Filled::Stuck(reason));
        }
        let (places, info) = (Arc::clone(&workshop.places), fill.info.clone());
        let opened = workshop.disks.runtime().wait_for(move || Tree::open(&places, &info)).await?;
        // Before it was open, the collector could have decided to take it.
        let Some(tree) = opened else { return fill.vanished().await };
        if !workshop.database.is_still_valid(&fill.info).await? {
            return Ok(Filled::Nothing);
        }
        match fill.make(&tree, order.need).await {
            Ok(filled) => Ok(filled),
            Err(TreeError::Damaged(reason)) => fill.is_damaged(&tree, &reason).await,
            Err(TreeError::Sink(SinkError::Cache(error))) => Err(Obstacle::of_cache(error)),
            Err(TreeError::Sink(SinkError::NoRoom(reason))) => Err(Obstacle::NoRoom(reason)),
            Err(TreeError::Sink(SinkError::Ended)) => Ok(Filled::Nothing),
            Err(TreeError::Sink(SinkError::TooLong) | TreeError::TooLarge) => Ok(Filled::Refused),
            Err(TreeError::Unreadable(StoreError::Io { source, .. }))
                if source.kind() == io::ErrorKind::NotFound
                    && !workshop.database.is_still_valid(&fill.info).await? =>
            {
                Ok(Filled::Nothing)
            }
            Err(TreeError::Unreadable(error)) => Err(error.into()),
        }
    }

    fn nar(&self) -> (HashPart, Sha256Digest) {
        (self.info.path.hash_part(), self.info.nar_hash)
    }

    /// The codings that are wanted and not there.
    fn missing(&self, has_small_files: bool) -> Vec<Coding> {
        let wanted = self.workshop.settings.format.codings(has_small_files);
        let is_missing = |coding: &Coding| self.workshop.catalog().stored(&self.nar(), *coding).is_none();
        wanted.iter().copied().filter(is_missing).collect()
    }

    async fn make(&self, tree: &Tree, need: Need) -> Result<Filled, TreeError> {
        let workshop = self.workshop;
        point(workshop, "fill: root open")?;
        let layout = tree.layout(workshop.disks.runtime()).await?;
        let len_bytes = layout.known_len_bytes();
        if len_bytes != self.info.nar_size {
            // The hash does not matter any more.
            if let Verdict::Damaged(reason) = tree::compare(&self.info, self.info.nar_hash, len_bytes) {
                return Err(TreeError::Damaged(reason));
            }
        }
        let codings = self.missing(layout.has_small_files());
        if codings.is_empty() {
            return Ok(Filled::Nothing);
        }
        let bounds = workshop.bounds().await.map_err(SinkError::Cache)?;
        if !bounds.can_hold(len_bytes.saturating_mul(codings.len() as u64)) {
            return Err(SinkError::TooLong.into());
        }
        let mut encodings = Encodings::begin(workshop, &self.info, &codings, need).await?;
        tree.read(&workshop.disks, layout.pieces(0..len_bytes), Resident::Used, &mut encodings).await?;
        point(workshop, "fill: tree read")?;
        // What was compressed at the lowest priority would look dearer than it is, but all look so.
        let fill_us = u32::try_from(self.began.elapsed().as_micros()).unwrap_or(u32::MAX);
        let (nar_hash, finished) = encodings.finish(fill_us).await?;
        if let Verdict::Damaged(reason) = tree::compare(&self.info, nar_hash, len_bytes) {
            return Err(TreeError::Damaged(reason));
        }
        for (stored, draft) in finished {
            point(workshop, "fill: publish")?;
            self.publish(stored, draft).await?;
        }
        workshop.shared.counters.filled_bytes.add(len_bytes);
        Ok(Filled::Done)
    }

    async fn publish(&self, stored: Stored, mut draft: Counted) -> Result<(), SinkError> {
        let (nar, narinfo) = (self.nar(), self.narinfo(&stored));
        let file_size = stored.file_size;
        let folder = Arc::clone(&self.workshop.folder);
        // Its length counts until the catalog counts it.
        let Some(file) = draft.draft.take() else { return Ok(()) };
        let job = move || folder.publish(&nar, file, &stored, &narinfo, now_s());
        let published = self.workshop.disks.runtime().wait_for(job).await;
        let counters = &self.workshop.shared.counters;
        if published.map_err(SinkError::Cache)?.is_some() {
            counters.evictions.add(1);
        }
        counters.stored_bytes.add(file_size);
        Ok(())
    }

    /// The narinfo that names this file.
    fn narinfo(&self, stored: &Stored) -> String {
        let mut info = self.info.clone();
        info.sign(&self.workshop.places.store_dir, &self.workshop.signing_keys.current());
        self.workshop.folder.narinfo_text(info, stored)
    }

    /// The tree is not what the database says, unless one of them was just changed.
    async fn is_damaged(&self, tree: &Tree, reason: &str) -> Result<Filled, Obstacle> {
        let is_valid = self.workshop.database.is_still_valid(&self.info).await?;
        if !is_valid || !tree.is_unchanged(&self.workshop.places, &self.info) {
            return Ok(Filled::Nothing);
        }
        self.workshop.found_damaged(&self.info, tree.mark, reason).await;
        Ok(Filled::Damaged)
    }

    /// The root is not there: collected, or missing.
    async fn vanished(&self) -> Result<Filled, Obstacle> {
        if !self.workshop.database.is_still_valid(&self.info).await? {
            return Ok(Filled::Nothing);
        }
        let path = self.info.path.full(&self.workshop.places.store_dir);
        Ok(Filled::Failed(format!(
            "{path} is valid and not there; `nix-store --repair-path {path}` mends it"
        )))
    }
}

/// A fault point of a fill. What fails there is the cache.
fn point(workshop: &Workshop, name: &str) -> Result<(), SinkError> {
    fault::point(name).map_err(|error| cannot_write(workshop, error))
}

fn cannot_encode(workshop: &Workshop, error: FrameError) -> SinkError {
    cannot_write(workshop, io::Error::other(error))
}

fn cannot_write(workshop: &Workshop, source: io::Error) -> SinkError {
    SinkError::Cache(StoreError::Io {
        path: workshop.folder.path().to_path_buf(),
        operation: "write to",
        source,
    })
}

/// A NAR that is encoded in several ways at once.
struct Encodings<'a> {
    workshop: &'a Rc<Workshop>,
    nar_hasher: Sha256,
    nar_size: u64,
    files: Vec<Encoding>,
    need: Need,
    /// What may be written before room is made again.
    promise: Promise,
    /// What no room was made for yet. Bytes, in all files together.
    unpromised: u64,
    /// For what an encoder says.
    frame: Vec<u8>,
}

/// A NAR on its way into one file.
struct Encoding {
    draft: Counted,
    writer: Writer,
    form: Form,
}

enum Form {
    /// Its hash is that of the NAR.
    Flat,
    Zstd {
        encoder: Box<FrameEncoder>,
        file_hasher: Sha256,
    },
}

impl<'a> Encodings<'a> {
    async fn begin(
        workshop: &'a Rc<Workshop>,
        info: &PathInfo,
        codings: &[Coding],
        need: Need,
    ) -> Result<Self, SinkError> {
        let mut files = Vec::new();
        for coding in codings {
            let folder = Arc::clone(&workshop.folder);
            let draft =
                workshop.disks.runtime().wait_for(move || folder.draft()).await.map_err(SinkError::Cache)?;
            let file = draft.as_fd().try_clone_to_owned().map_err(|error| cannot_write(workshop, error))?;
            let form = match coding {
                Coding::Flat => Form::Flat,
                Coding::Zstd => {
                    let encoder = FrameEncoder::new(workshop.settings.level, Some(info.nar_size));
                    let encoder = Box::new(encoder.map_err(|error| cannot_encode(workshop, error))?);
                    Form::Zstd { encoder, file_hasher: Sha256::new() }
                }
            };
            let writer = Writer::open(&workshop.disks, file).await;
            files.push(Encoding { draft: Counted::new(workshop, draft), writer, form });
        }
        let (nar_hasher, nar_size) = (Sha256::new(), info.nar_size);
        let (promise, unpromised) = (Promise::new(workshop, 0), nar_size.saturating_mul(files.len() as u64));
        let frame = Vec::with_capacity(BACKGROUND_PIECE_LEN_BYTES);
        Ok(Self { workshop, nar_hasher, nar_size, files, need, promise, unpromised, frame })
    }

    /// Makes room for what `len` bytes of the NAR may become.
    async fn promise_room(&mut self, len: u64) -> Result<(), SinkError> {
        let lacking = len.saturating_mul(self.files.len() as u64).saturating_sub(self.promise.len());
        if lacking == 0 {
            return Ok(());
        }
        let more = FILL_ROOM_LEN_BYTES.min(self.unpromised).max(lacking);
        match self.workshop.make_room(more, self.need).await.map_err(SinkError::Cache)? {
            Room::Made(promise) => self.promise.join(promise),
            Room::None(reason) => return Err(SinkError::NoRoom(reason)),
        }
        self.unpromised = self.unpromised.saturating_sub(more);
        Ok(())
    }

    /// The NAR's hash, and the files.
    async fn finish(mut self, fill_us: u32) -> Result<(Sha256Digest, Vec<(Stored, Counted)>), SinkError> {
        let (workshop, nar_hash) = (self.workshop, self.nar_hasher.finish());
        let mut finished = Vec::new();
        for Encoding { draft, mut writer, form } in self.files {
            let (coding, file_hash) = match form {
                Form::Flat => (Coding::Flat, nar_hash),
                Form::Zstd { encoder, mut file_hasher } => {
                    self.frame.clear();
                    encoder.finish(&mut self.frame).map_err(|error| cannot_encode(workshop, error))?;
                    file_hasher.update(&self.frame);
                    writer.push(&self.frame).await.map_err(|error| cannot_write(workshop, error))?;
                    (Coding::Zstd, file_hasher.finish())
                }
            };
            let file_size = writer.finish().await.map_err(|error| cannot_write(workshop, error))?;
            finished.push((Stored { coding, file_hash, file_size, nar_size: self.nar_size, fill_us }, draft));
        }
        Ok((nar_hash, finished))
    }
}

impl Sink for Encodings<'_> {
    async fn push(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        if self.workshop.shared.is_ending() {
            return Err(SinkError::Ended);
        }
        self.promise_room(bytes.len() as u64).await?;
        self.nar_hasher.update(bytes);
        let workshop = self.workshop;
        for Encoding { draft, writer, form } in &mut self.files {
            let written = match form {
                Form::Flat => writer.push(bytes).await,
                Form::Zstd { encoder, file_hasher } => {
                    self.frame.clear();
                    encoder.update(bytes, &mut self.frame).map_err(|error| cannot_encode(workshop, error))?;
                    file_hasher.update(&self.frame);
                    writer.push(&self.frame).await
                }
            };
            written.map_err(|error| cannot_write(workshop, error))?;
            self.promise.spend(bytes.len() as u64);
            draft.count_to(writer.len());
        }
        Ok(())
    }
}

/// A draft whose length counts among what the cache takes, until it is published or dropped.
struct Counted {
    workshop: Rc<Workshop>,
    draft: Option<Draft>,
    len: u64,
}

impl Counted {
    fn new(workshop: &Rc<Workshop>, draft: Draft) -> Self {
        Self { workshop: Rc::clone(workshop), draft: Some(draft), len: 0 }
    }

    fn count_to(&mut self, len: u64) {
        let before = std::mem::replace(&mut self.len, len);
        self.workshop.count_draft(len, before);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count_to(0);
    }
}
