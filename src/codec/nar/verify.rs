//! From the bytes of a file that holds a NAR to what a narinfo says of it: what it hashes to, and the NAR in it.
//!
//! The file is hashed as it comes, decompressed, and the NAR in it is hashed and checked by the [`Decoder`]: what is no NAR from its
//! first byte to its last has no facts.

use super::decode::{DecodeError, Decoder};
use crate::codec::decompress::{DecompressError, Decompressor};
use crate::codec::hash::{Sha256, Sha256Digest};
use crate::codec::narinfo::Compression;
use crate::limits::{DECODED_BUFFER_LEN_BYTES, VERIFIED_AT_ONCE_LEN_MAX};

/// What is true of a file that holds a NAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NarFacts {
    /// SHA-256 of the file.
    pub file_hash: Sha256Digest,
    /// Length of the file. Bytes.
    pub file_size: u64,
    /// How the NAR is compressed in it.
    pub compression: Compression,
    /// SHA-256 of the NAR.
    pub nar_hash: Sha256Digest,
    /// Length of the NAR. Bytes.
    pub nar_size: u64,
}

/// How the file says that it is compressed, before it is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// As this.
    As(Compression),
    /// Not at all or as gzip, for which Nix has no suffix. No NAR begins as gzip does.
    NoneOrGzip,
}

/// Why a file holds no NAR that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It cannot be decompressed.
    #[error(transparent)]
    Decompress(#[from] DecompressError),
    /// What comes out is no NAR.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The NAR is longer than allowed.
    #[error("the NAR is longer than {len_max} bytes")]
    TooLong {
        /// Longest NAR. Bytes.
        len_max: u64,
    },
}

/// Takes a file in, piece by piece. Having failed once it fails always.
#[derive(Debug)]
pub struct Verifier {
    file: Stream,
    state: State,
    nar: Decoder,
    nar_len_max: u64,
}

/// Bytes that have come, counted and hashed.
#[derive(Default)]
struct Stream {
    hash: Sha256,
    len: u64,
}

#[derive(Debug)]
enum State {
    /// The first byte decides between flat and gzip.
    Undecided,
    /// The file is the NAR: one hash is both.
    Flat,
    Compressed(Box<Unpacking>),
    Failed(VerifyError),
}

/// A compressed file: what its NAR is decoded by and into, and what has come of it.
#[derive(Debug)]
struct Unpacking {
    decompressor: Decompressor,
    buffer: Box<[u8]>,
    nar: Stream,
}

/// The first byte of every gzip file. A NAR begins with the length of a word, which is 13.
const GZIP_FIRST_BYTE: u8 = 0x1f;

impl Verifier {
    /// Before the first byte of a file. Its NAR may have `nar_len_max` bytes.
    pub fn new(announced: Announced, nar_len_max: u64) -> Result<Self, VerifyError> {
        let state = match announced {
            Announced::As(compression) => State::new(compression)?,
            Announced::NoneOrGzip => State::Undecided,
        };
        Ok(Self { file: Stream::default(), state, nar: Decoder::new(), nar_len_max })
    }

    /// Takes in the next bytes of the file, from the front of `input` on. Stops when [`VERIFIED_AT_ONCE_LEN_MAX`] bytes of the NAR may
    /// have been looked at; what is left is for the next call.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<(), VerifyError> {
        // A step that brings nothing counts as one that fills the buffer: to begin a member of nothing is work, too.
        for _ in 0..VERIFIED_AT_ONCE_LEN_MAX / DECODED_BUFFER_LEN_BYTES {
            if input.is_empty() && !self.has_more() {
                break;
            }
            self.step(input).map_err(|error| self.fail(error))?;
        }
        Ok(())
    }

    /// Ends the file. What the decoder has kept back of the NAR (tens of MiB at the very worst) is looked at here.
    pub fn finish(mut self) -> Result<NarFacts, VerifyError> {
        while self.has_more() {
            self.step(&mut &[][..])?;
        }
        let Self { file, state, nar: decoder, .. } = self;
        let (compression, nar) = match state {
            State::Failed(error) => return Err(error),
            State::Undecided | State::Flat => (Compression::None, None),
            State::Compressed(unpacking) => {
                let Unpacking { decompressor, nar, .. } = *unpacking;
                let compression = decompressor.compression();
                decompressor.finish()?;
                (compression, Some(nar))
            }
        };
        let nar_size = decoder.finish()?;
        let (file_size, file_hash) = (file.len, file.hash.finish());
        let nar_hash = nar.map_or(file_hash, |nar| nar.hash.finish());
        Ok(NarFacts { file_hash, file_size, compression, nar_hash, nar_size })
    }

    fn has_more(&self) -> bool {
        matches!(&self.state, State::Compressed(unpacking) if unpacking.decompressor.has_more())
    }

    /// Takes in some of `input`: at most [`DECODED_BUFFER_LEN_BYTES`] of the NAR.
    fn step(&mut self, input: &mut &[u8]) -> Result<(), VerifyError> {
        match &mut self.state {
            State::Failed(error) => return Err(*error),
            State::Undecided => {
                let is_gzip = input.first() == Some(&GZIP_FIRST_BYTE);
                self.state = State::new(if is_gzip { Compression::Gzip } else { Compression::None })?;
            }
            State::Flat => {
                let (bytes, rest) = input.split_at(input.len().min(DECODED_BUFFER_LEN_BYTES));
                *input = rest;
                self.file.update(bytes);
                check_len(self.file.len, self.nar_len_max)?;
                self.nar.push(bytes, |_| ())?;
            }
            State::Compressed(unpacking) => {
                let Unpacking { decompressor, buffer, nar } = &mut **unpacking;
                let progress = decompressor.decode(input, buffer)?;
                let (consumed, rest) = input.split_at(progress.consumed);
                *input = rest;
                self.file.update(consumed);
                let bytes = &buffer[..progress.produced];
                nar.update(bytes);
                check_len(nar.len, self.nar_len_max)?;
                self.nar.push(bytes, |_| ())?;
            }
        }
        Ok(())
    }

    fn fail(&mut self, error: VerifyError) -> VerifyError {
        self.state = State::Failed(error);
        error
    }
}

impl State {
    fn new(compression: Compression) -> Result<Self, VerifyError> {
        if compression == Compression::None {
            return Ok(Self::Flat);
        }
        let decompressor = Decompressor::new(compression)?;
        let buffer = vec![0; DECODED_BUFFER_LEN_BYTES].into_boxed_slice();
        Ok(Self::Compressed(Box::new(Unpacking { decompressor, buffer, nar: Stream::default() })))
    }
}

impl Stream {
    fn update(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.len = self.len.saturating_add(bytes.len() as u64);
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Stream").field("len", &self.len).finish_non_exhaustive()
    }
}

fn check_len(len: u64, len_max: u64) -> Result<(), VerifyError> {
    if len > len_max { Err(VerifyError::TooLong { len_max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::super::naive::{self, Tree};
    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ::zstd::encode_all(bytes, 1).unwrap()
    }

    fn verify<'a>(
        announced: Announced,
        len_max: u64,
        chunks: impl Iterator<Item = &'a [u8]>,
    ) -> Result<NarFacts, VerifyError> {
        let mut verifier = Verifier::new(announced, len_max)?;
        for mut chunk in chunks {
            while !chunk.is_empty() {
                if let Err(error) = verifier.push(&mut chunk) {
                    assert_eq!(verifier.push(&mut &b"more"[..]), Err(error), "it does not recover");
                    assert_eq!(verifier.finish(), Err(error));
                    return Err(error);
                }
            }
        }
        verifier.finish()
    }

    /// What is true of a file, said naively.
    fn facts(file: &[u8], compression: Compression, nar: &[u8]) -> NarFacts {
        NarFacts {
            file_hash: Sha256::digest(file),
            file_size: file.len() as u64,
            compression,
            nar_hash: Sha256::digest(nar),
            nar_size: nar.len() as u64,
        }
    }

    fn draw() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..80).prop_map(|data| naive::nar(&Tree::draw(&data)))
    }

    proptest! {
        // Each case makes a decoder for every byte.
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_file_has_its_facts_at_every_split(nar in draw()) {
            let len_max = nar.len() as u64;
            for (announced, compression, file) in [
                (Announced::NoneOrGzip, Compression::None, nar.clone()),
                (Announced::As(Compression::None), Compression::None, nar.clone()),
                (Announced::NoneOrGzip, Compression::Gzip, gzip(&nar)),
                (Announced::As(Compression::Zstd), Compression::Zstd, zstd(&nar)),
            ] {
                let expected = Ok(facts(&file, compression, &nar));
                for at in 0..=file.len() {
                    let (head, tail) = file.split_at(at);
                    prop_assert_eq!(verify(announced, len_max, [head, tail].into_iter()), expected);
                }
                let too_long = verify(announced, len_max - 1, std::iter::once(&file[..]));
                prop_assert_eq!(too_long, Err(VerifyError::TooLong { len_max: len_max - 1 }));
            }
        }

        #[test]
        fn every_prefix_and_every_byte_more_is_refused(nar in draw()) {
            for (announced, file) in [
                (Announced::NoneOrGzip, nar.clone()),
                (Announced::NoneOrGzip, gzip(&nar)),
                (Announced::As(Compression::Zstd), zstd(&nar)),
            ] {
                for len in 0..file.len() {
                    prop_assert!(verify(announced, u64::MAX, std::iter::once(&file[..len])).is_err());
                }
                let longer = [&file[..], b"x"].concat();
                prop_assert!(verify(announced, u64::MAX, std::iter::once(&longer[..])).is_err());
            }
        }
    }

    #[test]
    fn what_is_compressed_and_no_nar_is_refused() {
        for file in [zstd(b"no NAR"), zstd(b""), zstd(&[&naive::nar(&Tree::draw(b"")), &b"x"[..]].concat())] {
            let error =
                verify(Announced::As(Compression::Zstd), 1 << 20, std::iter::once(&file[..])).unwrap_err();
            assert!(matches!(error, VerifyError::Decode(_)), "{error}");
        }
        let error = Verifier::new(Announced::As(Compression::Lzip), 1).unwrap_err();
        assert_eq!(error.to_string(), "the lzip data cannot be decoded here");
    }

    #[test]
    fn a_call_does_a_bounded_work_however_much_a_few_bytes_stand_for() {
        let contents = vec![0; 24 << 20];
        let nar = naive::nar(&Tree::Regular { executable: false, contents });
        let file = zstd(&nar);
        assert!(file.len() < 16 * 1024, "{}", file.len());
        let mut verifier = Verifier::new(Announced::As(Compression::Zstd), 1 << 30).unwrap();
        let (mut rest, mut calls) = (&file[..], 0);
        while !rest.is_empty() {
            verifier.push(&mut rest).unwrap();
            calls += 1;
            assert!(
                verifier.nar.offset() <= calls * (VERIFIED_AT_ONCE_LEN_MAX + DECODED_BUFFER_LEN_BYTES) as u64
            );
        }
        assert!(calls >= 6, "{calls}");
        assert_eq!(verifier.finish(), Ok(facts(&file, Compression::Zstd, &nar)));
    }

    #[test]
    fn members_of_nothing_are_work_too() {
        // To begin one, the decoder takes several MiB of memory.
        let member = *b"BZh9\x17\x72\x45\x38\x50\x90\0\0\0\0";
        let file = member.repeat(1000);
        let mut verifier = Verifier::new(Announced::As(Compression::Bzip2), 1 << 20).unwrap();
        let (mut rest, mut calls) = (&file[..], 0);
        while !rest.is_empty() {
            let before = rest.len();
            verifier.push(&mut rest).unwrap();
            assert!((1..100).contains(&((before - rest.len()) / member.len())));
            calls += 1;
        }
        assert!(calls > 10, "{calls}");
        assert!(matches!(verifier.finish(), Err(VerifyError::Decode(_))));
    }
}
