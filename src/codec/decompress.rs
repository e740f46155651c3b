//! Decompressors behind one type: compressed bytes in at any split, what they stand for out into the caller's buffer.
//!
//! The six codings that Nix writes and that can be decoded here: none, xz, bzip2, gzip, zstd and br. What a decoder takes of memory is
//! bounded whatever the bytes say (zstd by its window, xz by its limit, the others by their format), and it stops as soon as the
//! caller's buffer is full, so that a few bytes that stand for very many are a matter of patience and of nothing else.
//!
//! Where the format allows it (all but br) several frames, members or streams one after another are one file, as the tools read it.
//! Anything else behind the end is an error, and so is an end in the middle.

use std::fmt;

use ::zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};
use brotli_decompressor::reader::StandardAlloc;
use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState};
use bzip2::{Decompress as Bzip2Stream, Status as Bzip2Status};
use flate2::{Decompress as GzipStream, FlushDecompress, Status as GzipStatus};
use liblzma::stream as lzma;

use super::narinfo::Compression;
use crate::limits::{UPLOAD_XZ_MEMORY_LEN_MAX, UPLOAD_ZSTD_WINDOW_LOG_MAX};

/// Decodes one file, or one body.
pub struct Decompressor {
    compression: Compression,
    codec: Codec,
    place: Place,
    /// The last output was filled, so there may be more of it without more input.
    has_more: bool,
    failed: Option<DecompressError>,
}

/// What one step has done. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// So many were taken from the front of the input.
    pub consumed: usize,
    /// So many were put in front of the output.
    pub produced: usize,
}

/// Why bytes cannot be decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {} data {cause}", compression.as_str())]
pub struct DecompressError {
    /// What it was taken for.
    pub compression: Compression,
    /// What is wrong.
    pub cause: DecompressCause,
}

/// What is wrong with compressed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecompressCause {
    /// They are none of that format.
    #[error("is damaged, or is none")]
    Damaged,
    /// What follows the end of a member is no other one, or a damaged one. Which of them can depend on how the bytes were cut: a library
    /// may or may not have got something out of it before.
    #[error("is damaged, or followed by something else")]
    Trailing,
    /// They end in the middle.
    #[error("ends too early")]
    Truncated,
    /// The decoder would take more memory than [`UPLOAD_ZSTD_WINDOW_LOG_MAX`] or [`UPLOAD_XZ_MEMORY_LEN_MAX`] allow.
    #[error("needs too much memory to be decoded: compress it at a lower level")]
    Memory,
    /// There is no decoder of that compression.
    #[error("cannot be decoded here")]
    Unknown,
    /// There is no memory now.
    #[error("cannot be decoded now: there is no memory")]
    NoMemory,
}

/// Where among the parts of a file it stands: frames of zstd, members of gzip, streams of bzip2.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the first.
    First,
    /// Behind the end of one.
    Between,
    /// In what should be another one.
    Next,
}

enum Codec {
    None,
    Zstd(DCtx<'static>),
    Xz(lzma::Stream),
    Gzip(GzipStream),
    Bzip2(Bzip2Stream),
    Brotli(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
}

/// What a library has done, and whether a member has ended with that.
struct Step {
    progress: Progress,
    is_end: bool,
}

/// The base-two logarithm of gzip's longest window, which is 32 KiB.
const GZIP_WINDOW_BITS: u8 = 15;

impl Decompressor {
    /// A decoder of that compression, if there is one.
    pub fn new(compression: Compression) -> Result<Self, DecompressError> {
        let codec = Codec::new(compression).map_err(|cause| DecompressError { compression, cause })?;
        Ok(Self { compression, codec, place: Place::First, has_more: false, failed: None })
    }

    /// Decodes the next bytes as far as `output` has room, which must have some. While the output is filled there may be more of it,
    /// even when all input was consumed: then call again, be it without input.
    ///
    /// Having failed once it fails always.
    pub fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Progress, DecompressError> {
        debug_assert!(!output.is_empty());
        if let Some(error) = self.failed {
            return Err(error);
        }
        // Libraries take a call that brings nothing and takes nothing for a mistake.
        if input.is_empty() && !self.has_more {
            return Ok(Progress::default());
        }
        let decoded = self.begin_member().and_then(|()| self.codec.step(input, output));
        match decoded {
            Ok(Step { progress, is_end }) => {
                let is_kept_back = !is_end && self.compression != Compression::None;
                self.has_more = is_kept_back && progress.produced == output.len();
                if is_end {
                    self.place = Place::Between;
                }
                Ok(progress)
            }
            Err(cause) => Err(self.fail(cause)),
        }
    }

    /// What it decodes.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Whether the last output was filled, so that there may be more of it.
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// Ends the input, after all output was taken.
    pub fn finish(mut self) -> Result<(), DecompressError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let is_whole = match &mut self.codec {
            Codec::None => true,
            // It alone knows, for there may be padding between its streams.
            Codec::Xz(stream) => is_whole_xz(stream),
            _ => self.place == Place::Between,
        };
        if is_whole { Ok(()) } else { Err(self.fail(DecompressCause::Truncated)) }
    }

    /// There are bytes: behind the end of a member they begin another one.
    fn begin_member(&mut self) -> Result<(), DecompressCause> {
        if self.place == Place::Between {
            self.codec.begin_next()?;
            self.place = Place::Next;
        }
        Ok(())
    }

    fn fail(&mut self, cause: DecompressCause) -> DecompressError {
        let cause = match cause {
            // What came to an end was whole; this is another matter.
            DecompressCause::Damaged if self.place == Place::Next => DecompressCause::Trailing,
            cause => cause,
        };
        let error = DecompressError { compression: self.compression, cause };
        self.failed = Some(error);
        error
    }
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Decompressor").field("compression", &self.compression).finish_non_exhaustive()
    }
}

impl Codec {
    fn new(compression: Compression) -> Result<Self, DecompressCause> {
        Ok(match compression {
            Compression::None => Self::None,
            Compression::Zstd => Self::Zstd(new_zstd()?),
            Compression::Xz => Self::Xz(new_xz()?),
            Compression::Gzip => Self::Gzip(GzipStream::new_gzip(GZIP_WINDOW_BITS)),
            Compression::Bzip2 => Self::Bzip2(Bzip2Stream::new(false)),
            Compression::Br => {
                let allocator = StandardAlloc::default;
                Self::Brotli(Box::new(BrotliState::new_strict(allocator(), allocator(), allocator())))
            }
            Compression::Compress
            | Compression::Grzip
            | Compression::Lrzip
            | Compression::Lz4
            | Compression::Lzip
            | Compression::Lzma
            | Compression::Lzop => return Err(DecompressCause::Unknown),
        })
    }

    /// Gets ready for the next member of the same file.
    fn begin_next(&mut self) -> Result<(), DecompressCause> {
        match self {
            // These go on by themselves.
            Self::None | Self::Zstd(_) | Self::Xz(_) => {}
            Self::Gzip(stream) => *stream = GzipStream::new_gzip(GZIP_WINDOW_BITS),
            Self::Bzip2(stream) => *stream = Bzip2Stream::new(false),
            Self::Brotli(_) => return Err(DecompressCause::Trailing),
        }
        Ok(())
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, DecompressCause> {
        match self {
            Self::None => {
                let len = input.len().min(output.len());
                output[..len].copy_from_slice(&input[..len]);
                Ok(Step { progress: Progress { consumed: len, produced: len }, is_end: false })
            }
            Self::Zstd(context) => step_zstd(context, input, output),
            Self::Xz(stream) => {
                let before = (stream.total_in(), stream.total_out());
                let result = stream.process(input, output, lzma::Action::Run);
                let progress = difference(before, (stream.total_in(), stream.total_out()));
                result.map_err(|error| match error {
                    lzma::Error::MemLimit => DecompressCause::Memory,
                    lzma::Error::Mem => DecompressCause::NoMemory,
                    _ => DecompressCause::Damaged,
                })?;
                Ok(Step { progress, is_end: false })
            }
            Self::Gzip(stream) => {
                let before = (stream.total_in(), stream.total_out());
                let status = stream
                    .decompress(input, output, FlushDecompress::None)
                    .map_err(|_| DecompressCause::Damaged)?;
                let progress = difference(before, (stream.total_in(), stream.total_out()));
                Ok(Step { progress, is_end: status == GzipStatus::StreamEnd })
            }
            Self::Bzip2(stream) => {
                let before = (stream.total_in(), stream.total_out());
                let status = stream.decompress(input, output).map_err(|_| DecompressCause::Damaged)?;
                if status == Bzip2Status::MemNeeded {
                    return Err(DecompressCause::NoMemory);
                }
                let progress = difference(before, (stream.total_in(), stream.total_out()));
                Ok(Step { progress, is_end: status == Bzip2Status::StreamEnd })
            }
            Self::Brotli(state) => step_brotli(state, input, output),
        }
    }
}

fn new_zstd() -> Result<DCtx<'static>, DecompressCause> {
    let mut context = DCtx::try_create().ok_or(DecompressCause::NoMemory)?;
    context
        .set_parameter(DParameter::WindowLogMax(UPLOAD_ZSTD_WINDOW_LOG_MAX))
        .map_err(|_| DecompressCause::NoMemory)?;
    Ok(context)
}

fn new_xz() -> Result<lzma::Stream, DecompressCause> {
    lzma::Stream::new_stream_decoder(UPLOAD_XZ_MEMORY_LEN_MAX, lzma::CONCATENATED)
        .map_err(|_| DecompressCause::NoMemory)
}

fn step_zstd(context: &mut DCtx<'_>, input: &[u8], output: &mut [u8]) -> Result<Step, DecompressCause> {
    let mut input = InBuffer::around(input);
    let mut output = OutBuffer::around(output);
    let code = context.decompress_stream(&mut output, &mut input);
    let progress = Progress { consumed: input.pos(), produced: output.pos() };
    match code {
        Ok(hint) => Ok(Step { progress, is_end: hint == 0 }),
        Err(code) => Err(match ::zstd::zstd_safe::get_error_name(code) {
            name if name.starts_with("Allocation") => DecompressCause::NoMemory,
            name if name.contains("memory") => DecompressCause::Memory,
            _ => DecompressCause::Damaged,
        }),
    }
}

fn step_brotli(
    state: &mut BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    input: &[u8],
    output: &mut [u8],
) -> Result<Step, DecompressCause> {
    let (mut available_in, mut consumed) = (input.len(), 0);
    let (mut available_out, mut produced) = (output.len(), 0);
    let mut total_out = 0;
    let result = BrotliDecompressStream(
        &mut available_in,
        &mut consumed,
        input,
        &mut available_out,
        &mut produced,
        output,
        &mut total_out,
        state,
    );
    match result {
        BrotliResult::ResultFailure => Err(DecompressCause::Damaged),
        result => {
            let is_end = matches!(result, BrotliResult::ResultSuccess);
            Ok(Step { progress: Progress { consumed, produced }, is_end })
        }
    }
}

/// Whether an xz file may end here.
fn is_whole_xz(stream: &mut lzma::Stream) -> bool {
    loop {
        match stream.process(&[], &mut [], lzma::Action::Finish) {
            Ok(lzma::Status::StreamEnd) => return true,
            Ok(lzma::Status::Ok | lzma::Status::GetCheck) => {}
            // It waits for more.
            Ok(lzma::Status::MemNeeded) | Err(_) => return false,
        }
    }
}

/// What has come of one call, from what came of all of them before and after.
fn difference(before: (u64, u64), after: (u64, u64)) -> Progress {
    // As much as two slices in memory hold at most.
    let len = |before: u64, after: u64| usize::try_from(after - before).unwrap_or(usize::MAX);
    Progress { consumed: len(before.0, after.0), produced: len(before.1, after.1) }
}

/// Whatever the bytes, nothing panics, and how they and their output are cut leaves no trace.
#[cfg(any(test, fuzzing))]
pub fn fuzz_decompress(data: &[u8]) {
    let Some((&first, data)) = data.split_first() else { return };
    let compression = check::COMPRESSIONS[usize::from(first) % check::COMPRESSIONS.len()];
    let whole = check::decode(compression, std::iter::once(data), 1 << 16);
    // In few steps, for little can stand for much.
    let least = whole.as_ref().map_or(1, |content| 1 + content.len() / 512);
    for (len, output_len) in [(1, 1 << 16), (7, 5 * least), (1 << 16, least)] {
        let cut = check::decode(compression, data.chunks(len), output_len);
        // Where so much comes out that it is not all looked at, it depends on the cut whether damage shows before.
        assert!(
            cut == whole || [&cut, &whole].contains(&&Err(None)),
            "{len}, {output_len}: {cut:?}, {whole:?}"
        );
    }
}

/// What tests and fuzzing look at a decompressor with.
#[cfg(any(test, fuzzing))]
mod check {
    use super::{DecompressError, Decompressor};
    use crate::codec::narinfo::Compression;

    /// All that there is a decoder of.
    pub const COMPRESSIONS: [Compression; 6] = [
        Compression::None,
        Compression::Zstd,
        Compression::Xz,
        Compression::Gzip,
        Compression::Bzip2,
        Compression::Br,
    ];

    /// Longest content that is looked at: a few bytes can stand for very many. Bytes.
    const CONTENT_LEN_MAX: usize = 1 << 20;

    /// All that comes out, and how it ends; what comes out before damage shows depends on the cut, and is left out.
    pub fn decode<'a>(
        compression: Compression,
        chunks: impl Iterator<Item = &'a [u8]>,
        output_len: usize,
    ) -> Result<Vec<u8>, Option<DecompressError>> {
        let mut decompressor = Decompressor::new(compression).map_err(Some)?;
        let (mut content, mut output) = (Vec::new(), vec![0; output_len]);
        for mut chunk in chunks {
            while !chunk.is_empty() || decompressor.has_more() {
                let progress = decompressor.decode(chunk, &mut output);
                let Ok(progress) = progress else {
                    // It does not recover.
                    assert_eq!(decompressor.decode(b"x", &mut output), progress);
                    assert_eq!(decompressor.finish(), progress.map(|_| ()));
                    return Err(progress.err());
                };
                assert!(progress.consumed + progress.produced > 0 || chunk.is_empty(), "no progress");
                chunk = &chunk[progress.consumed..];
                content.extend_from_slice(&output[..progress.produced]);
                if content.len() > CONTENT_LEN_MAX {
                    return Err(None);
                }
            }
        }
        decompressor.finish().map_err(Some)?;
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::check::{COMPRESSIONS, decode};
    use super::*;

    /// Runs and noise.
    fn content(len: usize) -> Vec<u8> {
        let mut state = 7_u64;
        let mut content = Vec::new();
        while content.len() < len {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let word = (state >> 32).to_ne_bytes();
            content.extend_from_slice(if state >> 62 == 0 { &word } else { b"the same" });
        }
        content.truncate(len);
        content
    }

    /// Made by the crates' own encoders.
    fn encode(compression: Compression, content: &[u8]) -> Vec<u8> {
        match compression {
            Compression::None => content.to_vec(),
            Compression::Zstd => ::zstd::encode_all(content, 3).unwrap(),
            Compression::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(content).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(content).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
                encoder.write_all(content).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Br => brotli(content),
            other => panic!("no encoder of {other:?}"),
        }
    }

    /// A brotli stream that compresses nothing (RFC 7932): a window of 16 bits, pieces as they are, an empty last one.
    fn brotli(content: &[u8]) -> Vec<u8> {
        let (mut bits, mut bit_count, mut stream) = (0_u32, 1, Vec::new());
        for piece in content.chunks(1 << 16) {
            // Not the last one; four nibbles of its length less one; uncompressed; then whole bytes again.
            bits |= (u32::try_from(piece.len() - 1).unwrap() << 3 | 1 << 19) << bit_count;
            let header = bits.to_le_bytes();
            stream.extend_from_slice(&header[..(bit_count + 20_usize).div_ceil(8)]);
            stream.extend_from_slice(piece);
            (bits, bit_count) = (0, 0);
        }
        stream.push(u8::try_from(bits | 0b11 << bit_count).unwrap());
        stream
    }

    /// The first byte by which [`fuzz_decompress`] knows it.
    fn number_of(compression: Compression) -> u8 {
        let index = COMPRESSIONS.iter().position(|other| *other == compression).unwrap();
        u8::try_from(index).unwrap()
    }

    fn whole(compression: Compression, data: &[u8]) -> Result<Vec<u8>, DecompressCause> {
        decode(compression, std::iter::once(data), 4096).map_err(|error| error.unwrap().cause)
    }

    #[test]
    fn what_is_encoded_is_decoded_at_every_split_and_whatever_room_there_is() {
        let content = content(700);
        for compression in COMPRESSIONS {
            let data = encode(compression, &content);
            assert_eq!(whole(compression, &data), Ok(content.clone()), "{compression:?}");
            for at in 0..=data.len() {
                let (head, tail) = data.split_at(at);
                let decoded = decode(compression, [head, tail].into_iter(), 64);
                assert_eq!(decoded.as_ref(), Ok(&content), "{compression:?} at {at}");
            }
            for output_len in [1, 2, 3, 699, 700, 701] {
                let decoded = decode(compression, data.chunks(10), output_len);
                assert_eq!(decoded.as_ref(), Ok(&content), "{compression:?} by {output_len}");
            }
        }
    }

    #[test]
    fn brotli_as_nix_writes_it() {
        let hex = concat!(
            "1bb70100059e76febb522c86ddc87049369b69b5295152ffc37fee387fd05660f4b73bb89554a001",
            "05d212d6f4649b244491fd4c81e5d1bde7af0eb2161088601043092c86b1e2f0c4972ea8319de39e",
            "b7665807d12de3d3f854eb62b7b7233115c5fc6aab373242b91d2da089fca6fa43c234048104",
        );
        let data: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let line = "what brotli makes of this, of this, of this and the dictionary: http://www.w3.org/ \
                    Content-Type: text/html\n";
        let nar = whole(Compression::Br, &data).unwrap();
        assert_eq!(nar.len(), 440);
        assert_eq!(nar[96..417], *line.repeat(3).as_bytes());
        for len in 0..data.len() {
            assert_eq!(whole(Compression::Br, &data[..len]), Err(DecompressCause::Truncated), "{len}");
        }
        for output_len in [1, 7, 100] {
            let decoded = decode(Compression::Br, data.chunks(3), output_len);
            assert!(decoded.as_ref() == Ok(&nar), "{output_len}");
        }
    }

    #[test]
    fn long_content_and_none() {
        for (compression, len) in COMPRESSIONS.into_iter().flat_map(|each| [(each, 0), (each, 1_000_000)]) {
            let content = content(len);
            let data = encode(compression, &content);
            let decoded = decode(compression, data.chunks(4097), 30_000).unwrap();
            assert!(decoded == content, "{compression:?}");
        }
    }

    #[test]
    fn every_end_in_the_middle_is_noticed() {
        let content = content(300);
        for compression in &COMPRESSIONS[1..] {
            let data = encode(*compression, &content);
            for len in 0..data.len() {
                let cut = whole(*compression, &data[..len]);
                assert_eq!(cut, Err(DecompressCause::Truncated), "{compression:?} at {len}");
            }
        }
    }

    #[test]
    fn several_are_one_where_the_format_has_that() {
        let (first, second) = (content(300), content(90));
        for compression in &COMPRESSIONS[1..] {
            let data = [encode(*compression, &first), encode(*compression, &second)].concat();
            let expected = match compression {
                Compression::Br => Err(DecompressCause::Trailing),
                _ => Ok([&first[..], &second].concat()),
            };
            assert_eq!(whole(*compression, &data), expected, "{compression:?}");
            let first_len = encode(*compression, &first).len();
            for at in 0..=data.len() {
                let (head, tail) = data.split_at(at);
                let decoded = decode(*compression, [head, tail].into_iter(), 50);
                assert_eq!(
                    decoded.map_err(|error| error.unwrap().cause),
                    expected,
                    "{compression:?} at {at}"
                );
                if at > first_len && *compression != Compression::Br {
                    assert_eq!(
                        whole(*compression, head).is_ok(),
                        at == data.len(),
                        "{compression:?} to {at}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_follows_is_not_ignored() {
        let content = content(300);
        for compression in &COMPRESSIONS[1..] {
            for garbage in [&b"garbage"[..], &[0; 9], b"\n"] {
                let data = [&encode(*compression, &content)[..], garbage].concat();
                let error = whole(*compression, &data).unwrap_err();
                let expected: &[_] = match compression {
                    // It takes what follows for padding or for the beginning of something as long as it can.
                    Compression::Xz => &[DecompressCause::Damaged, DecompressCause::Truncated],
                    _ => &[DecompressCause::Trailing, DecompressCause::Truncated],
                };
                assert!(expected.contains(&error), "{compression:?}, {garbage:?}: {error:?}");
            }
        }
    }

    #[test]
    fn damage_behind_the_end_of_a_member_is_told_alike_however_it_is_cut() {
        for compression in [Compression::Zstd, Compression::Gzip, Compression::Bzip2] {
            let (first, mut second) = (encode(compression, b"first"), encode(compression, &content(100)));
            for at in 0..second.len() {
                second[at] ^= 0x55;
                fuzz_decompress(&[&[number_of(compression)], &first[..], &second].concat());
                second[at] ^= 0x55;
            }
        }
    }

    #[test]
    fn padding_between_the_streams_of_xz_is_part_of_the_format() {
        let data = [&encode(Compression::Xz, b"a")[..], &[0; 8], &encode(Compression::Xz, b"b")].concat();
        assert_eq!(whole(Compression::Xz, &data), Ok(b"ab".to_vec()));
    }

    #[test]
    fn what_is_none_is_damaged_and_says_so() {
        for compression in &COMPRESSIONS[1..] {
            let error = decode(*compression, std::iter::once(&[0x11; 100][..]), 100).unwrap_err().unwrap();
            let name = compression.as_str();
            assert_eq!(error.to_string(), format!("the {name} data is damaged, or is none"));
        }
    }

    #[test]
    fn memory_is_bounded_whatever_the_bytes_ask_for() {
        // A frame with a window of 256 MiB: no length, no checksum, a descriptor of the window, an empty last block.
        let zstd = [&[0x28, 0xb5, 0x2f, 0xfd, 0x00][..], &[18 << 3], &[1, 0, 0]].concat();
        assert_eq!(whole(Compression::Zstd, &zstd), Err(DecompressCause::Memory));
        let allowed = [&zstd[..5], &[17 << 3], &zstd[6..]].concat();
        assert_eq!(whole(Compression::Zstd, &allowed), Ok(Vec::new()));
        let with_dictionary = |len: u32| {
            let mut options = lzma::LzmaOptions::new_preset(0).unwrap();
            let mut filters = lzma::Filters::new();
            filters.lzma2(options.dict_size(len));
            let stream = lzma::Stream::new_stream_encoder(&filters, lzma::Check::Crc32).unwrap();
            let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
            encoder.write_all(b"x").unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(whole(Compression::Xz, &with_dictionary(64 << 20)), Ok(b"x".to_vec()));
        assert_eq!(whole(Compression::Xz, &with_dictionary(96 << 20)), Err(DecompressCause::Memory));
        // The same stream with a window of 30 bits, which is no brotli of the RFC.
        assert_eq!(whole(Compression::Br, &[0x11, 0x1e, 0x03]), Err(DecompressCause::Damaged));
    }

    #[test]
    fn what_cannot_be_decoded_here_has_no_decoder() {
        for compression in [Compression::Lzip, Compression::Lz4, Compression::Lzma, Compression::Lzop] {
            assert_eq!(whole(compression, b""), Err(DecompressCause::Unknown), "{compression:?}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_noticed_or_changes_nothing_but_what_comes_out(
            index in 0..COMPRESSIONS.len(),
            at in any::<prop::sample::Index>(),
            byte: u8,
        ) {
            let mut data = encode(COMPRESSIONS[index], &content(400));
            let at = at.index(data.len());
            data[at] = byte;
            fuzz_decompress(&[&[u8::try_from(index).unwrap()], &data[..]].concat());
        }

        #[test]
        fn any_bytes_do_no_harm(data in proptest::collection::vec(any::<u8>(), 0..80)) {
            fuzz_decompress(&data);
        }
    }
}
