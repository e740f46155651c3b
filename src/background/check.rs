//! Whether a store path, or a cached file, is what it must be.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tracing::{info, warn};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

use super::direct::{Disks, Reader, Resident};
use super::tree::{SinkError, Tree, TreeError, Verdict, root_mark};
use super::workshop::{DatabaseDesk, Workshop};
use crate::codec::hash::{Sha256, Sha256Digest};
use crate::codec::narinfo::PathInfo;
use crate::limits::{BACKGROUND_PIECE_LEN_BYTES, ZSTD_WINDOW_LOG_MAX};
use crate::store::catalog::{Entry, NarKey, Record, RootMark, Stored};
use crate::store::nar_cache::{CacheFolder, Coding};
use crate::store::{LocalStore, StoreError, fault};

/// What a path was found to be.
pub enum CheckedPath {
    Sound,
    Damaged(RootMark, String),
    /// No longer valid, or not yet what it will be.
    Gone,
    /// Nobody gets a NAR of it, so it may be what it is.
    Unserved,
    Unreadable(String),
}

/// What a cached file was found to be.
pub enum CheckedFile {
    Sound,
    Damaged(String),
    Missing,
    Unreadable(String),
}

/// Why nothing could be found out.
pub enum Stop {
    /// The plane ends.
    Ended,
    /// The database cannot be asked.
    Store(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Compares the tree of a path with the database. `watch` is told how much was read.
pub async fn check_path(
    disks: &Rc<Disks>,
    database: &DatabaseDesk,
    places: &Arc<LocalStore>,
    info: &PathInfo,
    watch: &mut impl AsyncFnMut(u64) -> Result<(), SinkError>,
) -> Result<CheckedPath, Stop> {
    let (of, which) = (Arc::clone(places), info.clone());
    if let Err(error) = fault::point("scrub: path") {
        return Ok(CheckedPath::Unreadable(error.to_string()));
    }
    let checked = match disks.runtime().wait_for(move || Tree::open(&of, &which)).await {
        Ok(Some(tree)) => match tree.verify(disks, info, watch).await {
            Ok(Verdict::Sound) => return Ok(CheckedPath::Sound),
            Ok(Verdict::Damaged(_)) if !tree.is_unchanged(places, info) => return Ok(CheckedPath::Gone),
            Ok(Verdict::Damaged(reason)) => CheckedPath::Damaged(tree.mark, reason),
            Err(TreeError::Sink(_)) => return Err(Stop::Ended),
            Err(TreeError::TooLarge) => return Ok(CheckedPath::Unserved),
            Err(error) => CheckedPath::Unreadable(error.to_string()),
        },
        Ok(None) => CheckedPath::Unreadable("it is valid and not there".to_owned()),
        Err(error) => CheckedPath::Unreadable(error.to_string()),
    };
    // What the garbage collector has taken meanwhile is not damaged.
    Ok(if database.is_still_valid(info).await? { checked } else { CheckedPath::Gone })
}

/// Compares a cached file with the catalog, and the NAR in it. `watch` is told how much was read.
pub async fn check_file(
    disks: &Rc<Disks>,
    folder: &CacheFolder,
    nar: &NarKey,
    stored: &Stored,
    watch: &mut impl AsyncFnMut(u64) -> Result<(), SinkError>,
) -> Result<CheckedFile, Stop> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let name = CacheFolder::file_name(nar, stored.coding);
    let file = match rustix::fs::openat(folder.directory(), name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(CheckedFile::Missing),
        Err(error) => return Ok(CheckedFile::Unreadable(error.to_string())),
    };
    let size = rustix::fs::fstat(&file).map(|status| u64::try_from(status.st_size).unwrap_or(0));
    if size != Ok(stored.file_size) {
        return Ok(CheckedFile::Damaged("its size is wrong".to_owned()));
    }
    Ok(match read_file(disks, file, stored, watch).await {
        Ok((file_hash, _)) if file_hash != stored.file_hash => {
            CheckedFile::Damaged("its hash is wrong".to_owned())
        }
        Ok((_, nar_hash)) if nar_hash != nar.1 => CheckedFile::Damaged("it has another NAR in it".to_owned()),
        Ok(_) => CheckedFile::Sound,
        Err(FileError::Ended) => return Err(Stop::Ended),
        Err(FileError::Frame(reason)) => CheckedFile::Damaged(reason),
        // A disk that has lost it would fail whoever asks for it.
        Err(FileError::Read(error)) if Errno::from_io_error(&error) == Some(Errno::IO) => {
            CheckedFile::Damaged(error.to_string())
        }
        Err(FileError::Read(error)) => CheckedFile::Unreadable(error.to_string()),
    })
}

/// The hash of a file and the one of the NAR in it.
async fn read_file(
    disks: &Rc<Disks>,
    file: OwnedFd,
    stored: &Stored,
    watch: &mut impl AsyncFnMut(u64) -> Result<(), SinkError>,
) -> Result<(Sha256Digest, Sha256Digest), FileError> {
    fault::point("scrub: file").map_err(FileError::Read)?;
    let runtime = disks.runtime();
    let mut file_hasher = Sha256::new();
    let mut frame = match stored.coding {
        Coding::Flat => None,
        Coding::Zstd => Some(Frame::new(stored.nar_size).map_err(FileError::Read)?),
    };
    let mut reader = Reader::open(disks, file, stored.file_size, Resident::Ignored).await;
    while let Some(bytes) = reader.next().await.map_err(FileError::Read)? {
        file_hasher.update(bytes);
        if let Some(frame) = &mut frame {
            let mut input = InBuffer::around(bytes);
            while frame.decode(&mut input).map_err(FileError::Frame)? {
                runtime.breathe().await;
            }
        }
        watch(bytes.len() as u64).await.map_err(|_| FileError::Ended)?;
        runtime.breathe().await;
    }
    let file_hash = file_hasher.finish();
    let nar_hash = match frame {
        Some(frame) => frame.finish().map_err(FileError::Frame)?,
        None => file_hash,
    };
    Ok((file_hash, nar_hash))
}

/// Looks again at the paths that were found damaged: which of them were mended, or are gone.
pub async fn look_again(workshop: &Rc<Workshop>) -> Result<(), StoreError> {
    let marks: Vec<_> = workshop.damaged.borrow().iter().map(|(nar, mark)| (*nar, *mark)).collect();
    for (nar, mark) in marks {
        let info = match workshop.database.path_info(nar.0).await {
            // Whatever its tree is: what is damaged now is its row, and the others are looked at nevertheless.
            Err(StoreError::Damaged { .. }) => continue,
            info => info?,
        };
        let Some(info) = info.filter(|info| info.nar_hash == nar.1) else {
            workshop.found_mended(nar).await;
            continue;
        };
        let (places, which) = (Arc::clone(&workshop.places), info.clone());
        let now = workshop.disks.runtime().wait_for(move || root_mark(&places, &which)).await;
        if now.is_none_or(|now| now == mark) {
            continue;
        }
        let mut watch = until_the_end(workshop);
        match check_path(&workshop.disks, &workshop.database, &workshop.places, &info, &mut watch).await {
            Ok(CheckedPath::Sound) => {
                workshop.found_mended(nar).await;
                info!("{} is mended", info.path.full(&workshop.places.store_dir));
            }
            Ok(CheckedPath::Damaged(mark, reason)) => workshop.found_damaged(&info, mark, &reason).await,
            Ok(CheckedPath::Gone | CheckedPath::Unserved | CheckedPath::Unreadable(_)) => {}
            Err(Stop::Ended) => return Ok(()),
            Err(Stop::Store(error)) => return Err(error),
        }
    }
    Ok(())
}

/// Looks at a cached file that was not what the catalog says when somebody wanted to send it.
pub async fn look_into(workshop: &Rc<Workshop>, nar: NarKey, coding: Coding) {
    let Some(stored) = workshop.catalog().stored(&nar, coding) else { return };
    let record = Record { nar, entry: Entry::Stored(stored), last_used_s: 0 };
    let mut watch = until_the_end(workshop);
    let checked = check_file(&workshop.disks, &workshop.folder, &nar, &stored, &mut watch).await;
    let is_the_same = workshop.catalog().stored(&nar, coding) == Some(stored);
    match checked {
        Ok(CheckedFile::Missing) if is_the_same => workshop.missed(record).await,
        Ok(CheckedFile::Damaged(reason)) if is_the_same => {
            if let Err(error) = workshop.quarantine(record, &reason).await {
                warn!("a damaged file of the NAR cache stays: {error}");
            }
        }
        Ok(_) | Err(_) => {}
    }
}

/// Lets a check go on until the plane ends.
fn until_the_end(workshop: &Workshop) -> impl AsyncFnMut(u64) -> Result<(), SinkError> {
    async |_| if workshop.shared.is_ending() { Err(SinkError::Ended) } else { Ok(()) }
}

/// Why a cached file was not read to its end.
enum FileError {
    Ended,
    Read(io::Error),
    Frame(String),
}

/// A zstd frame that is decoded, and the hash of what is in it.
struct Frame {
    decoder: Decoder<'static>,
    decoded: Vec<u8>,
    hasher: Sha256,
    /// What the NAR still lacks. Bytes.
    left: u64,
    /// Whether it has ended. The decoder would take what comes then for another frame.
    is_whole: bool,
}

impl Frame {
    fn new(nar_size: u64) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
        let decoded = vec![0; BACKGROUND_PIECE_LEN_BYTES];
        Ok(Self { decoder, decoded, hasher: Sha256::new(), left: nar_size, is_whole: false })
    }

    /// Decodes some more; false when there is nothing to do before more comes.
    fn decode(&mut self, input: &mut InBuffer<'_>) -> Result<bool, String> {
        if self.is_whole {
            return Err("something follows its frame".to_owned());
        }
        let mut output = OutBuffer::around(&mut self.decoded[..]);
        let hint = self.decoder.run(input, &mut output).map_err(|error| error.to_string())?;
        let decoded = output.as_slice();
        self.hasher.update(decoded);
        let left = self.left.checked_sub(decoded.len() as u64);
        self.left = left.ok_or("the NAR in it is too long")?;
        self.is_whole = hint == 0;
        let has_more = !self.is_whole && decoded.len() == BACKGROUND_PIECE_LEN_BYTES;
        Ok(has_more || input.pos() < input.src.len())
    }

    fn finish(self) -> Result<Sha256Digest, String> {
        if !self.is_whole || self.left > 0 {
            return Err("its frame ends too early".to_owned());
        }
        Ok(self.hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::zstd::FrameEncoder;

    /// Some of it is noise, so that frames come in several blocks, and the rest is not.
    fn contents(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        (0..len).map(|index| if index % 1000 < 10 { noise() } else { 7 }).collect()
    }

    fn frame_of(contents: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let mut encoder = FrameEncoder::new(1, Some(contents.len() as u64)).unwrap();
        encoder.update(contents, &mut frame).unwrap();
        encoder.finish(&mut frame).unwrap();
        frame
    }

    fn decode(bytes: &[u8], piece_len: usize, nar_size: u64) -> Result<Sha256Digest, String> {
        let mut frame = Frame::new(nar_size).unwrap();
        for piece in bytes.chunks(piece_len) {
            let mut input = InBuffer::around(piece);
            while frame.decode(&mut input)? {}
        }
        frame.finish()
    }

    fn check_frame(len: usize, piece_len: usize) {
        let contents = contents(len);
        let (frame, nar_size) = (frame_of(&contents), len as u64);
        assert_eq!(decode(&frame, piece_len, nar_size), Ok(Sha256::digest(&contents)), "{len} {piece_len}");
        for wrong_size in [nar_size - 1, nar_size + 1] {
            assert!(decode(&frame, piece_len, wrong_size).is_err(), "{len} {piece_len}");
        }
        assert!(decode(&frame[..frame.len() - 1], piece_len, nar_size).is_err(), "{len} {piece_len}");
        for behind in [&b"?"[..], &frame] {
            assert!(decode(&[&frame, behind].concat(), piece_len, nar_size).is_err(), "{len} {piece_len}");
        }
    }

    #[test]
    fn a_frame_may_end_with_a_piece_of_its_content() {
        for len in (1..=3).map(|pieces| pieces * BACKGROUND_PIECE_LEN_BYTES) {
            for len in [len - 1, len, len + 1] {
                check_frame(len, BACKGROUND_PIECE_LEN_BYTES);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_frame_is_whole_however_long_it_is_and_however_it_comes(
            pieces in 0..4usize,
            around in 0..200_001usize,
            piece_len in 1..5000usize,
        ) {
            let len = (pieces * BACKGROUND_PIECE_LEN_BYTES + around).saturating_sub(100_000).max(1);
            check_frame(len, piece_len);
        }
    }
}
