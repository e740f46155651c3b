//! The body of a request, taken out of its framing.
//!
//! ```text
//! chunked-body = *( size extensions CRLF data CRLF ) 1*"0" extensions CRLF *( trailer CRLF ) CRLF
//! size         = 1*16HEXDIG                                                    RFC 9112 section 7.1
//! extensions   = *( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )  section 7.1.1, dropped, bounded
//! trailer      = name ":" anything but control characters                      section 7.1.2, dropped, bounded
//! ```
//!
//! The input may be cut anywhere. Line ends are CRLF only, and what is dropped is read by its grammar all the same: a bare LF, or the end
//! of a quoted string, that one reader sees and another does not is how a request is smuggled inside another.

use super::Status;
use super::class::Class as _;
use super::request::{BodyLength, Token};
use crate::limits::{CHUNK_EXTENSIONS_LEN_MAX, TRAILERS_LEN_MAX};

/// Takes the data of one body out of the bytes of a connection.
#[derive(Clone, Debug)]
pub struct BodyDecoder {
    state: State,
    /// Where in the extensions of a chunk, in [`State::Extension`]: beside the state, which is matched for every byte of framing.
    extension: ExtensionPart,
    extensions_len: usize,
    trailers_len: usize,
}

/// What one call of [`BodyDecoder::decode`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// The next bytes of the body, a part of the input; empty when the input had framing only.
    pub data: &'a [u8],
    /// Bytes of the input that are done with, `data` included. At least 1 when there was input and the body is not
    /// finished. What is left after the end of the body belongs to the next request.
    pub consumed_len: usize,
}

/// Why a chunked body is refused. The answer is 400, and the connection closes: where the body ends is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BadBody {
    /// No chunk size, one of more than 16 digits, or something else than an extension behind it.
    #[error("malformed chunk size")]
    ChunkSize,
    /// An extension without a name, or whose value is neither a token nor a whole quoted string.
    #[error("malformed chunk extension")]
    Extension,
    /// A trailer that is no field: without a name, folded, or with white space before its colon.
    #[error("malformed trailer field")]
    Trailer,
    /// A line that does not end in CRLF, or chunk data that is longer than its size.
    #[error("chunk does not end in CRLF")]
    LineEnding,
    /// A control character in an extension or a trailer field.
    #[error("control character in the framing of a chunked body")]
    ControlCharacter,
    /// More chunk extensions than read.
    #[error("chunk extensions too long")]
    ExtensionsTooLong,
    /// More trailer fields than read.
    #[error("trailer fields too long")]
    TrailersTooLong,
}

impl BadBody {
    /// The answer.
    pub fn status(self) -> Status {
        Status::BadRequest
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes of the body are to come, at least one.
    Length {
        remaining: u64,
    },
    /// In a chunk size, after `digit_count` digits.
    ChunkSize {
        size: u64,
        digit_count: u8,
    },
    /// Behind a chunk size.
    Extension {
        size: u64,
    },
    /// The LF of the line with the chunk size.
    ChunkSizeLf {
        size: u64,
    },
    /// So many bytes of the chunk are to come, at least one.
    Chunk {
        remaining: u64,
    },
    /// The CR after chunk data.
    ChunkCr,
    /// The LF after chunk data.
    ChunkLf,
    /// The start of a trailer field or of the last line.
    TrailerStart,
    /// In the name of a trailer field.
    TrailerName,
    /// In the value of a trailer field.
    Trailer,
    /// The LF of a trailer field.
    TrailerLf,
    /// The LF of the last line.
    LastLf,
    Finished,
}

/// Where in the extensions of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExtensionPart {
    /// In white space where only a semicolon can follow.
    Semicolon,
    /// Behind a semicolon, before the name.
    NameStart,
    Name,
    /// In white space behind a name.
    NameEnd,
    /// Behind `=`, before the value.
    ValueStart,
    Value,
    Quoted,
    /// Behind a backslash.
    Escaped,
    /// Behind the closing quote.
    Unquoted,
}

impl BodyDecoder {
    /// A decoder at the start of a body.
    pub fn new(length: BodyLength) -> Self {
        let state = match length {
            BodyLength::None | BodyLength::Length(0) => State::Finished,
            BodyLength::Length(remaining) => State::Length { remaining },
            BodyLength::Chunked => State::ChunkSize { size: 0, digit_count: 0 },
        };
        Self { state, extension: ExtensionPart::Semicolon, extensions_len: 0, trailers_len: 0 }
    }

    /// Whether the whole body has been decoded.
    pub fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    /// How much of the body is to come, if that is known before its end. Bytes.
    pub fn remaining_len(&self) -> Option<u64> {
        match self.state {
            State::Length { remaining } => Some(remaining),
            State::Finished => Some(0),
            _ => None,
        }
    }

    /// Decodes from the start of `input` to the end of the first piece of data, or of the input, or of the body. Call
    /// it again with what it left. After an error the body is lost: there is no way to go on.
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Result<Decoded<'a>, BadBody> {
        let mut consumed_len = 0;
        while let [byte, ..] = input[consumed_len..] {
            let rest = &input[consumed_len..];
            match self.state {
                State::Length { remaining } => {
                    let (data, remaining) = take(rest, remaining);
                    self.state = if remaining == 0 { State::Finished } else { State::Length { remaining } };
                    return Ok(Decoded { data, consumed_len: consumed_len + data.len() });
                }
                State::Chunk { remaining } => {
                    let (data, remaining) = take(rest, remaining);
                    self.state = if remaining == 0 { State::ChunkCr } else { State::Chunk { remaining } };
                    return Ok(Decoded { data, consumed_len: consumed_len + data.len() });
                }
                State::Finished => break,
                framing => self.state = self.after(framing, byte)?,
            }
            consumed_len += 1;
        }
        Ok(Decoded { data: &[], consumed_len })
    }

    /// The state after one byte of chunk framing.
    fn after(&mut self, state: State, byte: u8) -> Result<State, BadBody> {
        match (state, byte) {
            (State::ChunkSize { size, digit_count }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digit_count == 16 {
                    return Err(BadBody::ChunkSize);
                }
                let size = size << 4 | u64::from(hex_value(byte));
                Ok(State::ChunkSize { size, digit_count: digit_count + 1 })
            }
            (State::ChunkSize { digit_count: 0, .. }, _) => Err(BadBody::ChunkSize),
            (State::ChunkSize { size, .. }, b'\r') => Ok(State::ChunkSizeLf { size }),
            (State::ChunkSize { size, .. }, b' ' | b'\t' | b';') => {
                self.extension = ExtensionPart::Semicolon;
                self.extension(size, byte)
            }
            (
                State::ChunkSize { .. }
                | State::Extension { .. }
                | State::TrailerStart
                | State::TrailerName
                | State::Trailer,
                b'\n',
            ) => Err(BadBody::LineEnding),
            (State::ChunkSize { .. }, _) => Err(BadBody::ChunkSize),
            (State::Extension { size }, _) => self.extension(size, byte),
            (State::ChunkSizeLf { size: 0 } | State::TrailerLf, b'\n') => Ok(State::TrailerStart),
            (State::ChunkSizeLf { size }, b'\n') => Ok(State::Chunk { remaining: size }),
            (State::ChunkCr, b'\r') => Ok(State::ChunkLf),
            (State::ChunkLf, b'\n') => Ok(State::ChunkSize { size: 0, digit_count: 0 }),
            (State::TrailerStart, b'\r') => Ok(State::LastLf),
            (State::Trailer, b'\r') => Ok(State::TrailerLf),
            (State::TrailerStart | State::TrailerName | State::Trailer, _) => self.trailer(state, byte),
            (State::LastLf, b'\n') => Ok(State::Finished),
            (
                State::ChunkSizeLf { .. }
                | State::ChunkCr
                | State::ChunkLf
                | State::TrailerLf
                | State::LastLf,
                _,
            ) => Err(BadBody::LineEnding),
            (State::Length { .. } | State::Chunk { .. } | State::Finished, _) => {
                unreachable!("decode takes data and the end apart from framing")
            }
        }
    }

    /// The state after one byte behind a chunk size, which is no LF.
    #[cold]
    fn extension(&mut self, size: u64, byte: u8) -> Result<State, BadBody> {
        use ExtensionPart::{
            Escaped, Name, NameEnd, NameStart, Quoted, Semicolon, Unquoted, Value, ValueStart,
        };
        let at = self.extension;
        match (at, byte) {
            (Name | Value | Unquoted, b'\r') => return Ok(State::ChunkSizeLf { size }),
            (Semicolon, b'\r') => return Err(BadBody::ChunkSize),
            (_, b'\r') => return Err(BadBody::Extension),
            _ => refuse_control(byte)?,
        }
        self.extension = match (at, byte) {
            (Quoted, b'"') => Unquoted,
            (Quoted, b'\\') => Escaped,
            (Quoted | Escaped, _) | (ValueStart, b'"') => Quoted,
            (Semicolon | Name | NameEnd | Value | Unquoted, b';') => NameStart,
            (Semicolon | Value | Unquoted, b' ' | b'\t') => Semicolon,
            (NameStart | NameEnd | ValueStart, b' ' | b'\t') => at,
            (Name, b' ' | b'\t') => NameEnd,
            (Name | NameEnd, b'=') => ValueStart,
            (NameStart | Name, _) if Token::has(byte) => Name,
            (ValueStart | Value, _) if Token::has(byte) => Value,
            // What stands there is no extension at all.
            (Semicolon, _) => return Err(BadBody::ChunkSize),
            _ => return Err(BadBody::Extension),
        };
        self.count_extension_byte()?;
        Ok(State::Extension { size })
    }

    /// The state after one byte of a trailer field, which is no LF, and no CR at the end of one.
    #[cold]
    fn trailer(&mut self, state: State, byte: u8) -> Result<State, BadBody> {
        if byte != b'\r' {
            refuse_control(byte)?;
        }
        let state = match (state, byte) {
            (State::Trailer, _) | (State::TrailerName, b':') => State::Trailer,
            _ if Token::has(byte) => State::TrailerName,
            _ => return Err(BadBody::Trailer),
        };
        if self.trailers_len == TRAILERS_LEN_MAX {
            return Err(BadBody::TrailersTooLong);
        }
        self.trailers_len += 1;
        Ok(state)
    }

    fn count_extension_byte(&mut self) -> Result<(), BadBody> {
        if self.extensions_len == CHUNK_EXTENSIONS_LEN_MAX {
            return Err(BadBody::ExtensionsTooLong);
        }
        self.extensions_len += 1;
        Ok(())
    }
}

fn take(input: &[u8], remaining: u64) -> (&[u8], u64) {
    let len = usize::try_from(remaining).map_or(input.len(), |remaining| remaining.min(input.len()));
    (&input[..len], remaining - len as u64)
}

fn hex_value(digit: u8) -> u8 {
    if digit.is_ascii_digit() { digit - b'0' } else { (digit | 0x20) - b'a' + 10 }
}

fn refuse_control(byte: u8) -> Result<(), BadBody> {
    if byte.is_ascii_control() && byte != b'\t' { Err(BadBody::ControlCharacter) } else { Ok(()) }
}

/// The data of a body, and how many bytes of the input the body takes; `None` when the input ends before the body.
#[cfg(any(test, fuzzing))]
type Whole = Option<(Vec<u8>, usize)>;

/// Decodes arbitrary bytes cut in two ways, and demands that both agree, with a reader of whole lines as well, and stay within the input.
#[cfg(any(test, fuzzing))]
pub fn fuzz_body(data: &[u8]) {
    let Some((&first, input)) = data.split_first() else { return };
    let piece_len = usize::from(first % 16) + 1;
    let run = |piece_len: usize| {
        let mut decoder = BodyDecoder::new(BodyLength::Chunked);
        let (mut body, mut consumed_len) = (Vec::new(), 0);
        while !decoder.is_finished() && consumed_len < input.len() {
            let piece = &input[consumed_len..input.len().min(consumed_len.saturating_add(piece_len))];
            match decoder.decode(piece) {
                Ok(decoded) => {
                    assert!((1..=piece.len()).contains(&decoded.consumed_len));
                    body.extend_from_slice(decoded.data);
                    consumed_len += decoded.consumed_len;
                }
                Err(bad) => return Err(bad),
            }
        }
        Ok(decoder.is_finished().then_some((body, consumed_len)))
    };
    let decoded = run(usize::MAX);
    assert_eq!(run(piece_len), decoded);
    match (naive::chunked(input), decoded) {
        (_, Err(BadBody::ExtensionsTooLong | BadBody::TrailersTooLong)) => {}
        // The twin waits for whole lines where the decoder may already know better.
        (Ok(None), decoded) => assert!(matches!(decoded, Ok(None) | Err(_)), "{decoded:?}"),
        (expected, decoded) => assert_eq!(decoded.map_err(drop), expected),
    }
}

/// Reads a chunked body line by line; knows no limits.
#[cfg(any(test, fuzzing))]
mod naive {
    use super::Whole;

    const SPACE: [char; 2] = [' ', '\t'];

    /// A line and what follows it; not yet, or never.
    #[expect(clippy::type_complexity, reason = "a line and the rest, or not yet, or never")]
    fn line(input: &[u8]) -> Result<Option<(&[u8], &[u8])>, ()> {
        let Some(end) = input.iter().position(|&byte| (byte < 0x20 && byte != 9) || byte == 0x7f) else {
            return Ok(None);
        };
        match &input[end..] {
            [b'\r', b'\n', rest @ ..] => Ok(Some((&input[..end], rest))),
            [b'\r'] => Ok(None),
            _ => Err(()),
        }
    }

    fn is_of_token(char: char) -> bool {
        char.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(char)
    }

    /// What follows a token.
    fn after_token(text: &str) -> Option<&str> {
        let rest = text.trim_start_matches(is_of_token);
        (rest.len() < text.len()).then_some(rest)
    }

    /// What follows a quoted string whose first quote is gone.
    fn after_quoted(text: &str) -> Option<&str> {
        let mut chars = text.chars();
        loop {
            match chars.next()? {
                '"' => return Some(chars.as_str()),
                '\\' => _ = chars.next()?,
                _ => {}
            }
        }
    }

    /// What follows the first extension.
    fn after_extension(text: &str) -> Option<&str> {
        let name = text.trim_start_matches(SPACE).strip_prefix(';')?.trim_start_matches(SPACE);
        let rest = after_token(name)?;
        let Some(value) = rest.trim_start_matches(SPACE).strip_prefix('=') else { return Some(rest) };
        let value = value.trim_start_matches(SPACE);
        value.strip_prefix('"').map_or_else(|| after_token(value), after_quoted)
    }

    fn size(line: &[u8]) -> Result<u64, ()> {
        let line = String::from_utf8_lossy(line);
        let digits_len = line.find(|char: char| !char.is_ascii_hexdigit()).unwrap_or(line.len());
        let (digits, mut extensions) = line.split_at(digits_len);
        while !extensions.is_empty() {
            extensions = after_extension(extensions).ok_or(())?;
        }
        if digits.len() > 16 { Err(()) } else { u64::from_str_radix(digits, 16).map_err(drop) }
    }

    pub(super) fn chunked(input: &[u8]) -> Result<Whole, ()> {
        let (mut rest, mut data) = (input, Vec::new());
        loop {
            let Some((size_line, after)) = line(rest)? else { return Ok(None) };
            rest = after;
            let size = size(size_line)?;
            if size == 0 {
                break;
            }
            let Some((chunk, after)) =
                usize::try_from(size).ok().and_then(|size| rest.split_at_checked(size))
            else {
                return Ok(None);
            };
            data.extend_from_slice(chunk);
            rest = match after {
                [b'\r', b'\n', rest @ ..] => rest,
                [] | [b'\r'] => return Ok(None),
                _ => return Err(()),
            };
        }
        loop {
            let Some((trailer, after)) = line(rest)? else { return Ok(None) };
            rest = after;
            if trailer.is_empty() {
                return Ok(Some((data, input.len() - rest.len())));
            }
            let trailer = String::from_utf8_lossy(trailer);
            let has_name = after_token(&trailer).is_some_and(|rest| rest.starts_with(':'));
            if !has_name {
                return Err(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode_pieces<'a>(
        length: BodyLength,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Whole, BadBody> {
        let mut decoder = BodyDecoder::new(length);
        let (mut data, mut consumed_len) = (Vec::new(), 0);
        for mut piece in pieces {
            while !piece.is_empty() && !decoder.is_finished() {
                let decoded = decoder.decode(piece)?;
                assert!(decoded.consumed_len > 0, "no progress");
                data.extend_from_slice(decoded.data);
                consumed_len += decoded.consumed_len;
                piece = &piece[decoded.consumed_len..];
            }
        }
        Ok(decoder.is_finished().then_some((data, consumed_len)))
    }

    #[expect(clippy::type_complexity, reason = "the table says each case in one line")]
    const CHUNKED: &[(&[u8], Result<Option<(&[u8], usize)>, BadBody>)] = &[
        (b"0\r\n\r\n", Ok(Some((b"", 5)))),
        (b"0\r\n\r\nGET /", Ok(Some((b"", 5)))), // what follows is the next request
        (b"3\r\nabc\r\n0\r\n\r\n", Ok(Some((b"abc", 13)))),
        (b"1\r\na\r\nA\r\n0123456789\r\n00\r\n\r\n", Ok(Some((b"a0123456789", 27)))),
        (b"00000000000000a\r\n0123456789\r\n0\r\n\r\n", Ok(Some((b"0123456789", 34)))),
        (b"3;a=b;c=\"d\"\r\nabc\r\n0;x\r\n\r\n", Ok(Some((b"abc", 25)))), // 7.1.1
        (b"3 \t;a\r\nabc\r\n0\r\n\r\n", Ok(Some((b"abc", 17)))),          // 7.1.1, bad white space
        (b"3;a;b = c ; d=\"\\\"e\\\\\xe9;\r\"\r\n", Err(BadBody::Extension)), // no line ends in a string
        (b"3;a;b = c\t; d=\"\\\"e\\\\\xe9;\" ;f\r\nabc\r\n0\r\n\r\n", Ok(Some((b"abc", 38)))),
        (b"3;\r\nabc", Err(BadBody::Extension)),
        (b"3;a=\r\nabc", Err(BadBody::Extension)),
        (b"3;a \r\nabc", Err(BadBody::Extension)),
        (b"3;a=b \r\nabc", Err(BadBody::ChunkSize)),
        (b"3;a=b c\r\nabc", Err(BadBody::ChunkSize)),
        (b"3;a=\"b\"c\r\nabc", Err(BadBody::Extension)),
        (b"3;a=\"b\r\nabc", Err(BadBody::Extension)),
        (b"3;a=\"b\\\"\r\nabc", Err(BadBody::Extension)),
        (b"3;=b\r\nabc", Err(BadBody::Extension)),
        (b"3;\xe9\r\nabc", Err(BadBody::Extension)),
        (b"3,a\r\nabc", Err(BadBody::ChunkSize)),
        (b"0\r\nA:\r\n\r\n", Ok(Some((b"", 9)))),
        (b"0\r\nGET / HTTP/1.1\r\n\r\n", Err(BadBody::Trailer)),
        (b"0\r\nA: b\r\n c\r\n\r\n", Err(BadBody::Trailer)), // folded
        (b"0\r\n: b\r\n\r\n", Err(BadBody::Trailer)),
        (b"0\r\nA\r\n\r\n", Err(BadBody::Trailer)),
        (b"0\r\nA: b\r\nC: d\r\n\r\n", Ok(Some((b"", 17)))), // 7.1.2
        (b"3\r\nabc\r\n", Ok(None)),
        (b"ffffffffffffffff\r\nabc", Ok(None)),
        (b"10000000000000000\r\n", Err(BadBody::ChunkSize)),
        (b"00000000000000000\r\n\r\n", Err(BadBody::ChunkSize)),
        (b"\r\n", Err(BadBody::ChunkSize)), // an empty size is not 0
        (b"\n", Err(BadBody::ChunkSize)),
        (b";a\r\n", Err(BadBody::ChunkSize)),
        (b"-1\r\n", Err(BadBody::ChunkSize)),
        (b"+1\r\n", Err(BadBody::ChunkSize)),
        (b" 1\r\n", Err(BadBody::ChunkSize)),
        (b"0x1\r\n", Err(BadBody::ChunkSize)),
        (b"1 \r\n", Err(BadBody::ChunkSize)),
        (b"1 1\r\n", Err(BadBody::ChunkSize)),
        (b"1g\r\n", Err(BadBody::ChunkSize)),
        (b"3\nabc\r\n", Err(BadBody::LineEnding)), // bare LF
        (b"3;a\nabc", Err(BadBody::LineEnding)),
        (b"3\rabc", Err(BadBody::LineEnding)),
        (b"3\r\r\nabc", Err(BadBody::LineEnding)),
        (b"3;\0\r\nabc", Err(BadBody::ControlCharacter)),
        (b"3\r\nabcd\r\n", Err(BadBody::LineEnding)), // data longer than its size
        (b"3\r\nabc\n0\r\n\r\n", Err(BadBody::LineEnding)),
        (b"3\r\nabc\rd", Err(BadBody::LineEnding)),
        (b"0\r\n\n", Err(BadBody::LineEnding)),
        (b"0\r\n\rx", Err(BadBody::LineEnding)),
        (b"0\r\nA: b\n\r\n", Err(BadBody::LineEnding)),
        (b"0\r\nA: b\rc", Err(BadBody::LineEnding)),
        (b"0\r\nA: \x01\r\n\r\n", Err(BadBody::ControlCharacter)),
    ];

    #[test]
    fn chunked_cases_however_they_are_cut() {
        for &(input, expected) in CHUNKED {
            let name = input.escape_ascii();
            let expected = expected.map(|whole| whole.map(|(data, len)| (data.to_vec(), len)));
            assert_eq!(decode_pieces(BodyLength::Chunked, [input]), expected, "{name}");
            assert_eq!(decode_pieces(BodyLength::Chunked, input.chunks(1)), expected, "{name}, byte by byte");
            for cut in 0..input.len() {
                let (first, second) = input.split_at(cut);
                assert_eq!(
                    decode_pieces(BodyLength::Chunked, [first, second]),
                    expected,
                    "{name}, cut at {cut}"
                );
            }
            assert_eq!(naive::chunked(input), expected.map_err(drop), "{name}, naive");
            for len in 0..=input.len() {
                fuzz_body(&[b"a", &input[..len]].concat());
            }
        }
    }

    #[test]
    fn every_prefix_of_a_body_is_unfinished() {
        let input = b"3;a\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nA: b\r\n\r\n";
        for len in 0..input.len() {
            assert_eq!(decode_pieces(BodyLength::Chunked, [&input[..len]]), Ok(None));
        }
    }

    #[test]
    fn bodies_of_known_length() {
        let input = b"abcdef";
        for cut in 0..input.len() {
            let (first, second) = input.split_at(cut);
            for length in 0..=6 {
                let expected = Ok(Some((input[..length].to_vec(), length)));
                assert_eq!(decode_pieces(BodyLength::Length(length as u64), [first, second]), expected);
            }
        }
        assert_eq!(decode_pieces(BodyLength::None, [&input[..]]), Ok(Some((vec![], 0))));
        assert_eq!(decode_pieces(BodyLength::Length(7), [&input[..]]), Ok(None));
        assert_eq!(decode_pieces(BodyLength::Length(u64::MAX), [&input[..]]), Ok(None));
    }

    #[test]
    fn extensions_and_trailers_are_bounded_over_the_whole_body() {
        let repeat = |text: &str, count: usize| text.repeat(count);
        let half = CHUNK_EXTENSIONS_LEN_MAX / 2;
        let chunk = |len: usize| format!("1;{}\r\nx\r\n", repeat("e", len - 1));
        let fits = chunk(half) + &chunk(half) + "0\r\n\r\n";
        let too_long = chunk(half) + &chunk(half + 1) + "0\r\n\r\n";
        assert!(decode_pieces(BodyLength::Chunked, [fits.as_bytes()]).unwrap().is_some());
        assert_eq!(
            decode_pieces(BodyLength::Chunked, [too_long.as_bytes()]),
            Err(BadBody::ExtensionsTooLong)
        );
        let trailers = |len: usize| format!("0\r\n{}:\r\n{}:\r\n\r\n", repeat("t", 9), repeat("t", len - 11));
        let (fits, too_long) = (trailers(TRAILERS_LEN_MAX), trailers(TRAILERS_LEN_MAX + 1));
        assert!(decode_pieces(BodyLength::Chunked, [fits.as_bytes()]).unwrap().is_some());
        assert_eq!(decode_pieces(BodyLength::Chunked, [too_long.as_bytes()]), Err(BadBody::TrailersTooLong));
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_twin(tokens in prop::collection::vec(token(), 0..24), piece_len in 0..16_u8) {
            fuzz_body(&[&[piece_len][..], &tokens.concat()].concat());
        }

        #[test]
        fn gives_back_what_was_chunked(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            piece_len in 1..50_usize,
        ) {
            let mut input = Vec::new();
            for chunk in &chunks {
                input.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                input.extend_from_slice(chunk);
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"0\r\n\r\n");
            let expected = Ok(Some((chunks.concat(), input.len())));
            prop_assert_eq!(decode_pieces(BodyLength::Chunked, input.chunks(piece_len)), expected);
        }
    }

    /// Pieces of which chunked bodies, good and bad, are made.
    fn token() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            6 => Just(&b"\r\n"[..]),
            3 => Just(&b"1\r\nx\r\n"[..]),
            2 => Just(&b"0\r\n"[..]),
            2 => Just(&b"3"[..]),
            2 => Just(&b"abc"[..]),
            2 => Just(&b"3;a"[..]),
            1 => Just(&b";"[..]),
            1 => Just(&b"="[..]),
            1 => Just(&b"\""[..]),
            1 => Just(&b"\\"[..]),
            1 => Just(&b"\xe9"[..]),
            1 => Just(&b" "[..]),
            1 => Just(&b"\n"[..]),
            1 => Just(&b"\r"[..]),
            1 => Just(&b"A: b\r\n"[..]),
            1 => Just(&b":"[..]),
            1 => Just(&b"\x7f"[..]),
        ]
        .prop_map(<[u8]>::to_vec)
    }
}
