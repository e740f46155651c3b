//! One zstd frame, made piece by piece (RFC 8878).
//!
//! The frame ends with a checksum of its content, so that whoever decodes it notices damage on the way. How the content was
//! cut into pieces leaves no trace in it.

use ::zstd::zstd_safe::{CCtx, CParameter, ErrorCode, InBuffer, OutBuffer, get_error_name};

/// Makes one frame: content goes in, the frame comes out as it grows. Content that waits for more of it is kept.
pub struct FrameEncoder {
    context: CCtx<'static>,
}

/// The library's words for why a frame cannot be made: there is no memory, or the content has not the length that was promised.
/// The encoder is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("zstd: {0}")]
pub struct FrameError(&'static str);

impl FrameEncoder {
    /// A frame of this compression level, from 1 to 19. A `content_len` in bytes is written into the frame, and the content must
    /// have it; of short content the encoder then needs less memory, and so does the decoder.
    ///
    /// Takes little memory before the first piece.
    pub fn new(level: i32, content_len: Option<u64>) -> Result<Self, FrameError> {
        let mut context = CCtx::try_create().ok_or(FrameError("no memory"))?;
        for parameter in [CParameter::CompressionLevel(level), CParameter::ChecksumFlag(true)] {
            context.set_parameter(parameter).map_err(named)?;
        }
        context.set_pledged_src_size(content_len).map_err(named)?;
        Ok(Self { context })
    }

    /// Takes in the next piece of the content, and appends to `frame` what follows from it: nothing, mostly, or a block or more.
    pub fn update(&mut self, content: &[u8], frame: &mut Vec<u8>) -> Result<(), FrameError> {
        let mut input = InBuffer::around(content);
        while input.pos() < content.len() {
            append(frame, |output| self.context.compress_stream(output, &mut input))?;
        }
        Ok(())
    }

    /// Appends the end of the frame.
    pub fn finish(mut self, frame: &mut Vec<u8>) -> Result<(), FrameError> {
        while append(frame, |output| self.context.end_stream(output))? > 0 {}
        Ok(())
    }

    /// Memory that it takes. Bytes.
    #[cfg(test)]
    pub fn memory_len_bytes(&self) -> usize {
        self.context.sizeof()
    }
}

/// Lets `step` write behind what is in `frame`, where it finds room for a block.
fn append(
    frame: &mut Vec<u8>,
    step: impl FnOnce(&mut OutBuffer<'_, Vec<u8>>) -> Result<usize, ErrorCode>,
) -> Result<usize, FrameError> {
    frame.reserve(CCtx::out_size());
    let start = frame.len();
    step(&mut OutBuffer::around_pos(frame, start)).map_err(named)
}

fn named(code: ErrorCode) -> FrameError {
    FrameError(get_error_name(code))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Content of runs and of noise, longer than a block of a frame is.
    fn content(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let mut content = Vec::with_capacity(len + 8);
        while content.len() < len {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let word = (state >> 32).to_ne_bytes();
            content.extend_from_slice(if state >> 63 == 0 { &word } else { b"the same" });
        }
        content.truncate(len);
        content
    }

    fn encode<'a>(
        level: i32,
        content_len: Option<u64>,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Vec<u8>, FrameError> {
        let mut frame = b"before".to_vec();
        let mut encoder = FrameEncoder::new(level, content_len)?;
        for piece in pieces {
            encoder.update(piece, &mut frame)?;
        }
        encoder.finish(&mut frame)?;
        Ok(frame.split_off(b"before".len()))
    }

    proptest! {
        #[test]
        fn however_the_content_is_cut_the_frame_is_the_same(
            seed: u64,
            len in 0..400_000usize,
            cuts in prop::collection::vec(0..400_000usize, 0..8),
            level in 1..4i32,
            is_pledged: bool,
        ) {
            let content = content(seed, len);
            let content_len = is_pledged.then_some(len as u64);
            let whole = encode(level, content_len, [&content[..]]).unwrap();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(len)).chain([0, len]).collect();
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| &content[cut[0]..cut[1]]);
            prop_assert_eq!(&encode(level, content_len, pieces).unwrap(), &whole);
            prop_assert!(::zstd::decode_all(&whole[..]).unwrap() == content);
        }
    }

    #[test]
    fn the_frame_carries_a_checksum_and_the_length_that_was_promised() {
        let content = content(1, 100_000);
        let mut frame = encode(1, Some(content.len() as u64), [&content[..]]).unwrap();
        let promised = ::zstd::zstd_safe::get_frame_content_size(&frame);
        assert!(matches!(promised, Ok(Some(100_000))));
        let last = frame.len() - 1;
        frame[last] ^= 1;
        assert!(::zstd::decode_all(&frame[..]).unwrap_err().to_string().contains("checksum"));
    }

    #[test]
    fn content_of_another_length_than_was_promised_makes_no_frame() {
        for promised in [99, 101] {
            assert!(encode(1, Some(promised), [&[7; 100][..]]).is_err(), "{promised}");
        }
    }
}
