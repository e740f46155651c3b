//! Texts that are uploaded: short enough to be kept in memory until they are whole, in any coding that can be decoded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf as _, Bytes};

use super::{Refusal, quoted, reason};
use crate::codec::decompress::{DecompressCause, DecompressError, Decompressor};
use crate::codec::narinfo::Compression;
use crate::limits::{DECODED_BUFFER_LEN_BYTES, VERIFIED_AT_ONCE_LEN_MAX};

/// Memory for all texts that are on their way. Bytes that are left of it.
#[derive(Debug)]
pub(super) struct Memory(AtomicUsize);

/// A part of that, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    memory: Arc<Memory>,
    len_bytes: usize,
}

/// A text on its way.
#[derive(Debug)]
pub(super) struct Text {
    decompressor: Decompressor,
    /// What was decoded, and room for more of it.
    buffer: Vec<u8>,
    filled: usize,
    len_max: usize,
    lease: Lease,
}

/// A text that has come.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) bytes: Vec<u8>,
    _lease: Lease,
}

/// Room for a text whose length is not known. Bytes.
const FIRST_LEN_BYTES: usize = 4096;

impl Memory {
    pub(super) fn new(len_bytes: usize) -> Self {
        Self(AtomicUsize::new(len_bytes))
    }
}

impl Lease {
    fn grow_to(&mut self, len_bytes: usize) -> Result<(), Refusal> {
        let more = len_bytes.saturating_sub(self.len_bytes);
        let left = &self.memory.0;
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(more)).map_err(
            |_| Refusal::Busy("too many texts are being uploaded at the moment; try again".into()),
        )?;
        self.len_bytes += more;
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.memory.0.fetch_add(self.len_bytes, Ordering::Relaxed);
    }
}

impl Text {
    /// A text of at most `len_max` bytes, of which `len` are sent if that is known.
    pub(super) fn begin(
        memory: &Arc<Memory>,
        coding: Compression,
        len: Option<u64>,
        len_max: usize,
    ) -> Result<Self, Refusal> {
        if len.is_some_and(|len| len > len_max as u64) {
            return Err(too_long(len_max));
        }
        let lease = Lease { memory: Arc::clone(memory), len_bytes: 0 };
        let mut text = Self {
            decompressor: Decompressor::new(coding).map_err(refuse_coding)?,
            buffer: Vec::new(),
            filled: 0,
            len_max,
            lease,
        };
        // As long as the text if that is known, so that a thousand short ones take no more than they are.
        let known = len.filter(|_| coding == Compression::None).and_then(|len| usize::try_from(len).ok());
        text.grow_to(known.unwrap_or(FIRST_LEN_BYTES).max(1))?;
        Ok(text)
    }

    /// Takes the next bytes, from the front of `piece` on; what is left is for the next call.
    pub(super) fn push(&mut self, piece: &mut Bytes) -> Result<(), Refusal> {
        let mut left = VERIFIED_AT_ONCE_LEN_MAX;
        while left > 0 && (!piece.is_empty() || self.decompressor.has_more()) {
            let progress = self.step(piece)?;
            piece.advance(progress);
            left = left.saturating_sub(DECODED_BUFFER_LEN_BYTES);
        }
        Ok(())
    }

    /// The whole text.
    pub(super) fn finish(mut self) -> Result<Whole, Refusal> {
        while self.decompressor.has_more() {
            self.step(&[])?;
        }
        self.decompressor.finish().map_err(refuse_coding)?;
        self.buffer.truncate(self.filled);
        Ok(Whole { bytes: self.buffer, _lease: self.lease })
    }

    /// Decodes some of `input`, and says how much of it.
    fn step(&mut self, input: &[u8]) -> Result<usize, Refusal> {
        if self.filled > self.len_max {
            return Err(too_long(self.len_max));
        }
        if self.filled == self.buffer.len() {
            // One byte more than is allowed: who fills it is too long.
            self.grow_to((self.filled * 2).max(FIRST_LEN_BYTES).min(self.len_max + 1))?;
        }
        let end = self.buffer.len().min(self.filled + DECODED_BUFFER_LEN_BYTES);
        let output = &mut self.buffer[self.filled..end];
        let progress = self.decompressor.decode(input, output).map_err(refuse_coding)?;
        self.filled += progress.produced;
        if self.filled > self.len_max { Err(too_long(self.len_max)) } else { Ok(progress.consumed) }
    }

    fn grow_to(&mut self, len: usize) -> Result<(), Refusal> {
        self.lease.grow_to(len)?;
        self.buffer.reserve_exact(len - self.buffer.len());
        self.buffer.resize(len, 0);
        Ok(())
    }
}

/// How a body is encoded, by its `Content-Encoding`.
pub(super) fn parse_coding(coding: Option<&str>) -> Result<Compression, Refusal> {
    let name = coding.unwrap_or_default().trim_ascii().to_ascii_lowercase();
    let compression = match &*name {
        "" | "identity" => Some(Compression::None),
        "x-gzip" => Some(Compression::Gzip),
        name => Compression::parse(name),
    };
    compression.ok_or_else(|| {
        let text = format!(
            "the body is encoded as {}, which cannot be decoded here: use zstd, br, gzip, xz or bzip2, or none",
            quoted(&name)
        );
        Refusal::UnknownCoding(text)
    })
}

/// Says why something cannot be decompressed.
pub(super) fn refuse_coding(error: DecompressError) -> Refusal {
    match error.cause {
        DecompressCause::Unknown => Refusal::UnknownCoding(reason(error)),
        DecompressCause::Memory => Refusal::TooLarge(reason(error)),
        DecompressCause::NoMemory => Refusal::Busy(reason(error)),
        DecompressCause::Damaged | DecompressCause::Trailing | DecompressCause::Truncated => {
            Refusal::Malformed(reason(error))
        }
    }
}

fn too_long(len_max: usize) -> Refusal {
    Refusal::TooLarge(format!("a text of this kind has at most {len_max} bytes"))
}
