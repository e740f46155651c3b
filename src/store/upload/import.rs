//! Several store paths in one body, as `nix-store --export` writes them. Each is taken as soon as it is whole, and stays whatever becomes
//! of those behind it.
//!
//! An export has no hashes and no signatures: the NAR is what the path is taken to be. Its references come before it, or are there.

use std::fmt::{self, Write as _};

use bytes::{Buf as _, Bytes};

use super::nar::{file_name, parse_url};
use super::narinfo::check_same;
use super::text::parse_coding;
use super::{Accepted, Refusal, UploadFolder, reason};
use crate::codec::export::{Event, ExportDecoder, ExportedPath};
use crate::codec::hash::Sha256;
use crate::codec::nar::verify::NarFacts;
use crate::codec::narinfo::{Compression, NarInfo, PathInfo};
use crate::codec::zstd::{FrameEncoder, FrameError};
use crate::limits::{
    CACHE_LEVEL_DEFAULT, DECODED_BUFFER_LEN_BYTES, IMPORT_REPORT_LEN_MAX, UPLOAD_ROOM_LEN_BYTES,
};
use crate::store::draft::Draft;
use crate::store::nar_cache::NAR_NAME;

/// An export on its way.
#[derive(Debug)]
pub(super) struct Import {
    decoder: ExportDecoder,
    /// The NAR that is coming.
    packing: Option<Packing>,
    taken: u64,
    is_new: bool,
    report: String,
    unreported: u64,
}

/// A NAR that is compressed into a file.
struct Packing {
    encoder: FrameEncoder,
    output: Output,
    hash: Sha256,
    size: u64,
}

/// The file, and what of it is not written yet.
struct Output {
    draft: Draft,
    frame: Vec<u8>,
    hash: Sha256,
    size: u64,
    room: u64,
}

impl Import {
    pub(super) fn begin(folder: &UploadFolder, coding: Option<&str>) -> Result<Self, Refusal> {
        if !folder.required_keys().is_empty() {
            let text = "exports have no signatures, and this cache requires them: use nix copy instead";
            return Err(Refusal::Unsigned(text.to_owned()));
        }
        if parse_coding(coding)? != Compression::None {
            let text = "an export is taken as nix-store writes it: send it without Content-Encoding";
            return Err(Refusal::UnknownCoding(text.to_owned()));
        }
        folder.check_room(0)?;
        Ok(Self {
            decoder: ExportDecoder::new(folder.settings.store_dir.clone()),
            packing: None,
            taken: 0,
            is_new: false,
            report: String::new(),
            unreported: 0,
        })
    }

    /// Takes the next bytes, up to the end of a path: that has to be waited for.
    pub(super) fn push(&mut self, folder: &UploadFolder, piece: &mut Bytes) -> Result<(), Refusal> {
        while !piece.is_empty() {
            let mut rest = &piece[..];
            let event = self.decoder.next(&mut rest);
            let consumed = piece.len() - rest.len();
            match event {
                Ok(None) => {}
                Ok(Some(Event::Nar(bytes))) => {
                    let pushed = self.push_nar(folder, bytes);
                    pushed.map_err(|refusal| self.explain(refusal))?;
                }
                Ok(Some(Event::Path(exported))) => {
                    let kept = self.keep(folder, exported);
                    kept.map_err(|refusal| self.explain(refusal))?;
                    piece.advance(consumed);
                    return Ok(());
                }
                Err(error) => return Err(self.explain(Refusal::Malformed(reason(error)))),
            }
            piece.advance(consumed);
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Accepted, Refusal> {
        let Self { decoder, taken, is_new, mut report, unreported, .. } = self;
        decoder.finish().map_err(|error| explain(Refusal::Malformed(reason(error)), taken))?;
        if unreported > 0 {
            // Writing to a `String` cannot fail.
            let _ = writeln!(report, "and {unreported} more");
        }
        Ok(Accepted { text: report, is_new })
    }

    fn push_nar(&mut self, folder: &UploadFolder, bytes: &[u8]) -> Result<(), Refusal> {
        let packing = match &mut self.packing {
            Some(packing) => packing,
            none => none.insert(Packing::begin(folder)?),
        };
        packing.push(folder, bytes)
    }

    /// Takes the path whose NAR has come.
    fn keep(&mut self, folder: &UploadFolder, exported: ExportedPath) -> Result<(), Refusal> {
        let Some(packing) = self.packing.take() else { return Ok(()) };
        let (draft, facts) = packing.finish(folder)?;
        let ExportedPath { path, references, deriver } = exported;
        let info = PathInfo {
            path,
            nar_hash: facts.nar_hash,
            nar_size: facts.nar_size,
            references,
            deriver,
            signatures: Vec::new(),
            ca: None,
        };
        let full = info.path.full(&folder.settings.store_dir);
        if !folder.has(&info)? {
            folder.check_references(&info, &mut |_| Ok(false))?;
            folder.point("import: path packed")?;
            let name = file_name(&facts.file_hash, facts.compression);
            folder.keep_nar(draft, &name, &facts)?;
            folder.point("import: nar kept")?;
            let url = format!("{NAR_NAME}/{name}");
            let narinfo = NarInfo::new(info, url, facts.compression, facts.file_hash, facts.file_size);
            self.is_new |= folder.keep_narinfo(narinfo, &mut |_| Ok(false))?;
            folder.point("import: path kept")?;
        }
        self.taken += 1;
        if self.report.len() + full.len() < IMPORT_REPORT_LEN_MAX {
            self.report.push_str(&full);
            self.report.push('\n');
        } else {
            self.unreported += 1;
        }
        Ok(())
    }

    /// Says how far it has come.
    fn explain(&self, refusal: Refusal) -> Refusal {
        explain(refusal, self.taken)
    }
}

fn explain(refusal: Refusal, taken: u64) -> Refusal {
    refusal.map_text(|text| match taken {
        0 => text,
        1 => reason(format_args!("{text} (the path before it was taken)")),
        taken => reason(format_args!("{text} (the {taken} paths before it were taken)")),
    })
}

impl UploadFolder {
    /// Whether a path is there already, with its NAR. An error when it is there as something else.
    fn has(&self, info: &PathInfo) -> Result<bool, Refusal> {
        let Some(older) = self.narinfo(info.path.hash_part())? else { return Ok(false) };
        check_same(info, &older.info)?;
        let Some(name) = parse_url(&older.url) else { return Ok(false) };
        let Some(directory) = self.root.beneath_if_there(NAR_NAME)? else { return Ok(false) };
        let found = directory.file(name)?;
        Ok(found.is_some_and(|found| Some(found.size) == older.file_size))
    }
}

impl Packing {
    fn begin(folder: &UploadFolder) -> Result<Self, Refusal> {
        let draft = folder.begin_draft()?;
        let room = folder.make_room(&draft, 0, UPLOAD_ROOM_LEN_BYTES)?;
        let output = Output { draft, frame: Vec::new(), hash: Sha256::new(), size: 0, room };
        let encoder = FrameEncoder::new(CACHE_LEVEL_DEFAULT, None).map_err(refuse)?;
        Ok(Self { encoder, output, hash: Sha256::new(), size: 0 })
    }

    fn push(&mut self, folder: &UploadFolder, bytes: &[u8]) -> Result<(), Refusal> {
        self.size += bytes.len() as u64;
        let len_max = folder.settings.len_max;
        if self.size > len_max {
            return Err(Refusal::TooLarge(format!("a NAR in an export may have {len_max} bytes")));
        }
        self.hash.update(bytes);
        self.encoder.update(bytes, &mut self.output.frame).map_err(refuse)?;
        let is_much = self.output.frame.len() >= DECODED_BUFFER_LEN_BYTES;
        if is_much { self.output.write(folder) } else { Ok(()) }
    }

    fn finish(self, folder: &UploadFolder) -> Result<(Draft, NarFacts), Refusal> {
        let Self { encoder, mut output, hash, size } = self;
        encoder.finish(&mut output.frame).map_err(refuse)?;
        output.write(folder)?;
        let facts = NarFacts {
            file_hash: output.hash.finish(),
            file_size: output.size,
            compression: Compression::Zstd,
            nar_hash: hash.finish(),
            nar_size: size,
        };
        Ok((output.draft, facts))
    }
}

impl Output {
    fn write(&mut self, folder: &UploadFolder) -> Result<(), Refusal> {
        self.size += self.frame.len() as u64;
        while self.room < self.size {
            self.room = folder.make_room(&self.draft, self.room, self.room + UPLOAD_ROOM_LEN_BYTES)?;
        }
        folder.point("import: write")?;
        self.draft.append(&self.frame)?;
        self.hash.update(&self.frame);
        self.frame.clear();
        Ok(())
    }
}

impl fmt::Debug for Packing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Packing").field("size", &self.size).finish_non_exhaustive()
    }
}

fn refuse(error: FrameError) -> Refusal {
    Refusal::Busy(reason(error))
}
