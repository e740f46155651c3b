//! NARs that are uploaded: hashed, decoded and checked while they are written, named when they are right. And what is known of those
//! that are there.

use std::convert::Infallible;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::ops::ControlFlow;

use bytes::{Buf as _, Bytes};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use tracing::warn;

use super::text::{parse_coding, refuse_coding};
use super::{Refusal, UploadFolder, quoted, reason};
use crate::codec::decompress::{DecompressCause, DecompressError};
use crate::codec::hash::{Sha256, Sha256Digest};
use crate::codec::nar::verify::{Announced, NarFacts, Verifier, VerifyError};
use crate::codec::narinfo::Compression;
use crate::limits::{DECODED_BUFFER_LEN_BYTES, NAR_TRIES_MAX, UPLOAD_ROOM_LEN_BYTES};
use crate::store::StoreError;
use crate::store::directory::{Directory, FileFacts};
use crate::store::draft::Draft;
use crate::store::nar_cache::NAR_NAME;

/// A NAR on its way.
#[derive(Debug)]
pub(super) struct NarUpload {
    pub(super) draft: Draft,
    name: String,
    file_hash: Sha256Digest,
    verifier: Verifier,
    received: u64,
    room: u64,
}

impl NarUpload {
    pub(super) fn begin(
        folder: &UploadFolder,
        file_hash: Sha256Digest,
        compression: Compression,
        coding: Option<&str>,
        len: Option<u64>,
    ) -> Result<Self, Refusal> {
        if parse_coding(coding)? != Compression::None {
            let text = "a NAR is uploaded without Content-Encoding: its compression is told by its name";
            return Err(Refusal::UnknownCoding(text.to_owned()));
        }
        let len_max = folder.settings.len_max;
        if len.is_some_and(|len| len > len_max) {
            return Err(too_long(len_max));
        }
        let verifier = Verifier::new(announced(compression), len_max).map_err(|error| refuse(&error))?;
        let draft = folder.begin_draft()?;
        let room = folder.make_room(&draft, 0, len.unwrap_or(UPLOAD_ROOM_LEN_BYTES))?;
        let name = file_name(&file_hash, compression);
        Ok(Self { draft, name, file_hash, verifier, received: 0, room })
    }

    pub(super) fn push(&mut self, folder: &UploadFolder, piece: &mut Bytes) -> Result<(), Refusal> {
        let mut rest = &piece[..];
        self.verifier.push(&mut rest).map_err(|error| refuse(&error))?;
        let len = piece.len() - rest.len();
        piece.advance(len);
        self.received += len as u64;
        if self.received > folder.settings.len_max {
            return Err(too_long(folder.settings.len_max));
        }
        while self.room < self.received {
            self.room = folder.make_room(&self.draft, self.room, self.room + UPLOAD_ROOM_LEN_BYTES)?;
        }
        Ok(())
    }

    pub(super) fn finish(self, folder: &UploadFolder) -> Result<bool, Refusal> {
        let facts = self.verifier.finish().map_err(|error| refuse(&error))?;
        if facts.file_hash != self.file_hash {
            let found = facts.file_hash.to_nix32();
            let text = format!(
                "the SHA-256 of the file is {found}, and its name says {}",
                self.file_hash.to_nix32()
            );
            return Err(Refusal::Mismatch(text));
        }
        folder.keep_nar(self.draft, &self.name, &facts)
    }
}

impl UploadFolder {
    /// Begins a file, if there is room for any.
    pub(super) fn begin_draft(&self) -> Result<Draft, Refusal> {
        self.point("draft: begun")?;
        Ok(self.staging.drafts.begin()?)
    }

    /// Makes room for a file that has `from` bytes of it already, up to `to`, and says how far there is room now: on a file system that
    /// cannot promise any, it has to be asked for again after a while.
    pub(super) fn make_room(&self, draft: &Draft, from: u64, to: u64) -> Result<u64, Refusal> {
        let wanted = to.saturating_sub(from);
        self.check_room(wanted)?;
        loop {
            match fallocate(draft, FallocateFlags::KEEP_SIZE, from, wanted) {
                Ok(()) => {
                    // Others may have asked at the same time.
                    self.check_room(0)?;
                    return Ok(to);
                }
                Err(Errno::INTR) => {}
                Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => {
                    return Err(draft.failed("make room for", error).into());
                }
                Err(Errno::FBIG) => {
                    return Err(Refusal::TooLarge(format!(
                        "the disk of the cache takes no file of {to} bytes"
                    )));
                }
                // There is no such promise here, or nothing is wanted.
                Err(_) => return Ok(to.min(from + UPLOAD_ROOM_LEN_BYTES)),
            }
        }
    }

    /// Whether as much stays free as has to when `len` bytes more are taken.
    pub(super) fn check_room(&self, len: u64) -> Result<(), Refusal> {
        self.point("room: asked")?;
        let (free, free_min) = (self.free()?, self.free_min);
        if free.checked_sub(len).is_some_and(|free| free >= free_min) {
            return Ok(());
        }
        Err(Refusal::NoRoom(format!(
            "there is no room for {len} bytes: {free} are free on the disk of the cache, and {free_min} have to stay free"
        )))
    }

    /// Gives a NAR that is right its name, and says whether there was none of that name. What has that name now is replaced: if it is
    /// whole it is the same, and if not it should be.
    pub(super) fn keep_nar(&self, draft: Draft, name: &str, facts: &NarFacts) -> Result<bool, Refusal> {
        self.point("nar: begun")?;
        let found = draft.facts()?;
        if found.size != facts.file_size {
            let text = format!("{} bytes were written, and {} received", found.size, facts.file_size);
            return Err(StoreError::damaged(format!("{NAR_NAME}/{name}"), text).into());
        }
        // The room behind its end that was made and not needed.
        rustix::fs::ftruncate(&draft, found.size).map_err(|error| draft.failed("write", error))?;
        draft.sync()?;
        self.point("nar: file written")?;
        let found = draft.facts()?;
        let directory = self.subdirectory(NAR_NAME)?;
        let is_new = directory.file(name)?.is_none();
        {
            // Nobody moves it away for what was there before.
            let _lock = self.lock(name);
            draft.give_name(&directory, name)?;
        }
        self.point("nar: file renamed")?;
        directory.sync()?;
        self.point("nar: name written")?;
        let compression = compression_in(name).unwrap_or(facts.compression);
        let key = KnownNar { name: name.into(), facts: found, compression };
        self.known_nars.insert(key, Ok(*facts));
        Ok(is_new)
    }

    /// What is true of a file in `nar/`. It is read if that is not known: it was there before this process, or somebody else has put
    /// it there. It is compressed as its name says, and if that says nothing, as `otherwise`. `None` when there is none.
    ///
    /// A file is read by one thread at a time. Others that want to know the same wait for what that finds.
    pub(super) fn nar_facts(&self, name: &str, otherwise: Compression) -> Result<Option<NarFacts>, Refusal> {
        for _ in 0..NAR_TRIES_MAX {
            if !self.root.has(NAR_NAME)? {
                return Ok(None);
            }
            let directory = self.subdirectory(NAR_NAME)?;
            let Some(file) = directory.open_to_read(name)? else { return Ok(None) };
            let facts = FileFacts::of(&file).map_err(|error| directory.failed("examine", name, error))?;
            let compression = compression_in(name).unwrap_or(otherwise);
            let key = KnownNar { name: name.into(), facts, compression };
            match self.known_nars.get_or_insert_with(&key, || self.look_into(&directory, &key, &file)) {
                Ok(Ok(facts)) => return Ok(Some(facts)),
                Ok(Err(error @ VerifyError::TooLong { .. })) => return Err(refuse(&error)),
                Ok(Err(error)) => return Err(damaged(name, &error.to_string())),
                Err(Unsettled::Refused(refusal)) => return Err(refusal),
                Err(Unsettled::Changed) => {}
            }
        }
        let name = quoted(&format!("{NAR_NAME}/{name}"));
        Err(Refusal::Conflict(reason(format_args!("the file {name} changes all the time: try again later"))))
    }

    /// Reads a file. What comes of it is true of the file for as long as it is the same; an [`Unsettled`] is not remembered.
    fn look_into(
        &self,
        directory: &Directory,
        key: &KnownNar,
        file: &File,
    ) -> Result<Result<NarFacts, VerifyError>, Unsettled> {
        let KnownNar { name, facts, compression } = key;
        if directory.file(name)? != Some(*facts) {
            return Err(Unsettled::Changed);
        }
        let failed = |error| directory.failed("read", name, error);
        let verified = verify(file, announced(*compression), self.settings.len_max).map_err(failed)?;
        // Neither is the fault of the file.
        if let Err(error @ VerifyError::Decompress(found)) = &verified
            && matches!(found.cause, DecompressCause::NoMemory | DecompressCause::Unknown)
        {
            return Err(refuse(error).into());
        }
        if let Some(hash) = hash_in_name(name) {
            let found = match verified {
                Ok(facts) => facts.file_hash,
                Err(_) => hash_of(file).map_err(failed)?,
            };
            if found != hash {
                return Err(self.put_aside(directory, name, *facts)?);
            }
        }
        if verified.is_ok() {
            // Whoever has put it there may not have waited for the disk.
            file.sync_all().map_err(failed)?;
            directory.sync()?;
        }
        Ok(verified)
    }

    /// Moves a file away that is not what its name says, unless another one has taken its place. A process beside this one can put that
    /// there in the very moment: then it is missed by its narinfo, and sent again.
    fn put_aside(
        &self,
        directory: &Directory,
        name: &str,
        facts: FileFacts,
    ) -> Result<Unsettled, StoreError> {
        let quarantine = self.staging.quarantine()?;
        let _lock = self.lock(name);
        if directory.file(name)? != Some(facts) {
            return Ok(Unsettled::Changed);
        }
        directory.move_aside(name, &quarantine)?;
        warn!(
            "the file {} is damaged, and no longer there: see {}",
            directory.path().join(name).display(),
            quarantine.path().display()
        );
        Ok(Unsettled::Refused(Refusal::Conflict(reason(format_args!(
            "the file {} in the cache was damaged (its SHA-256 is not that of its name), and is put aside: the same upload will succeed now",
            quoted(&format!("{NAR_NAME}/{name}"))
        )))))
    }
}

/// A file in `nar/` as it was when it was looked into, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct KnownNar {
    pub(super) name: Box<str>,
    pub(super) facts: FileFacts,
    pub(super) compression: Compression,
}

/// Why nothing is known of a file.
enum Unsettled {
    /// It is another one by now.
    Changed,
    /// What may be otherwise the next time.
    Refused(Refusal),
}

impl From<Refusal> for Unsettled {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StoreError> for Unsettled {
    fn from(error: StoreError) -> Self {
        Self::Refused(error.into())
    }
}

/// `<SHA-256 of the file>.nar[.<suffix>]`, the name of a file in `nar/`.
pub(super) fn file_name(file_hash: &Sha256Digest, compression: Compression) -> String {
    format!("{}.nar{}", file_hash.to_nix32(), compression.suffix())
}

/// The name of a file in `nar/` by the URL of a narinfo, if it is one that can be there, and asked for without any escape.
pub(super) fn parse_url(url: &str) -> Option<&str> {
    let name = url.strip_prefix(NAR_NAME)?.strip_prefix('/')?;
    let is_name = !name.is_empty()
        && name.len() <= NAME_LEN_MAX
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-._=".contains(&byte));
    is_name.then_some(name)
}

/// Longest name of a file on Linux. Bytes.
const NAME_LEN_MAX: usize = 255;

/// The hash in a name as uploads have it. Nobody can be asked to upload another one.
fn hash_in_name(name: &str) -> Option<Sha256Digest> {
    compression_in(name).and_then(|_| Sha256Digest::from_nix32(name.split_once(".nar")?.0.as_bytes()))
}

/// What the suffix of a name says. Gzip has none, either.
fn compression_in(name: &str) -> Option<Compression> {
    name.split_once(".nar").and_then(|(_, suffix)| Compression::of_suffix(suffix))
}

/// How a file of that compression is looked into. Nix has no suffix for gzip, so what has none may be gzip.
fn announced(compression: Compression) -> Announced {
    match compression {
        Compression::None | Compression::Gzip => Announced::NoneOrGzip,
        other => Announced::As(other),
    }
}

/// Reads a whole file. The outer error is the disk's.
fn verify(file: &File, announced: Announced, len_max: u64) -> std::io::Result<Result<NarFacts, VerifyError>> {
    let mut verifier = match Verifier::new(announced, len_max) {
        Ok(verifier) => verifier,
        Err(error) => return Ok(Err(error)),
    };
    let read = each_piece(file, |mut rest| {
        while !rest.is_empty() {
            if let Err(error) = verifier.push(&mut rest) {
                return ControlFlow::Break(error);
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(match read {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => verifier.finish(),
    })
}

/// The SHA-256 of a whole file, whatever of it was read already.
fn hash_of(mut file: &File) -> std::io::Result<Sha256Digest> {
    file.rewind()?;
    let mut hash = Sha256::new();
    let ControlFlow::<Infallible>::Continue(()) = each_piece(file, |piece| {
        hash.update(piece);
        ControlFlow::Continue(())
    })?;
    Ok(hash.finish())
}

/// Reads a file from where it is, until its end or until `take` has seen enough.
fn each_piece<T>(
    mut file: &File,
    mut take: impl FnMut(&[u8]) -> ControlFlow<T>,
) -> std::io::Result<ControlFlow<T>> {
    let mut buffer = vec![0; DECODED_BUFFER_LEN_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(ControlFlow::Continue(())),
            Ok(len) => {
                if let taken @ ControlFlow::Break(_) = take(&buffer[..len]) {
                    return Ok(taken);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn refuse(error: &VerifyError) -> Refusal {
    match error {
        VerifyError::Decompress(DecompressError { compression, cause: DecompressCause::Unknown }) => {
            Refusal::UnknownCoding(format!(
                "a NAR that is compressed with {} cannot be looked into: upload it with compression=zstd",
                compression.as_str()
            ))
        }
        VerifyError::Decompress(error) => refuse_coding(*error),
        VerifyError::Decode(error) => Refusal::Malformed(reason(error)),
        VerifyError::TooLong { .. } => Refusal::TooLarge(reason(error)),
    }
}

fn damaged(name: &str, cause: &str) -> Refusal {
    Refusal::Conflict(reason(format_args!(
        "the file {} in the cache is damaged: {cause}; upload it again",
        quoted(&format!("{NAR_NAME}/{name}"))
    )))
}

fn too_long(len_max: u64) -> Refusal {
    Refusal::TooLarge(format!(
        "a file that is uploaded may have {len_max} bytes, by the server's --upload-max-size"
    ))
}
