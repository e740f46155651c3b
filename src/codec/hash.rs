//! SHA-256 digests and every text form in which Nix writes them.
//!
//! Nix knows more algorithms, but the two hashes that a binary cache answers for, `NarHash` and `FileHash`,
//! are SHA-256 in every version that can still be met; another algorithm is an error here, not a case.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::Digest as _;

use super::base32;

/// Digits of a digest in base 16.
const HEX_DIGITS: usize = 64;
/// Characters of a digest in base 64, padding included.
const BASE64_CHARS: usize = 44;

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256Digest(pub [u8; 32]);

/// Why a text is no SHA-256 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// Neither `sha256:` nor `sha256-` in front.
    #[error("a hash must begin with `sha256:` or `sha256-`")]
    NotSha256,
    /// The length belongs to none of the forms that may stand after the prefix.
    #[error("a SHA-256 hash is 64 hexadecimal, 52 base-32 or 44 base-64 characters long")]
    WrongLength,
    /// The length is right, but a character is no digit of that form, or the value does not fit in 256 bits.
    #[error("a SHA-256 hash has a character that does not belong there")]
    WrongDigit,
}

impl Sha256Digest {
    /// Parses any form that Nix accepts: `sha256:` before base 16, Nix base32 or base 64 (told apart by their
    /// length), and the SRI form `sha256-` before base 64.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        if let Some(base64) = text.strip_prefix("sha256-") {
            return match base64.len() {
                BASE64_CHARS => decode_base64(base64),
                _ => Err(HashError::WrongLength),
            };
        }
        let digits = text.strip_prefix("sha256:").ok_or(HashError::NotSha256)?;
        match digits.len() {
            HEX_DIGITS => decode_hex(digits.as_bytes()).ok_or(HashError::WrongDigit),
            base32::DIGEST_DIGITS => Self::from_nix32(digits.as_bytes()).ok_or(HashError::WrongDigit),
            BASE64_CHARS => decode_base64(digits),
            _ => Err(HashError::WrongLength),
        }
    }

    /// Parses the one form the Nix database holds: `sha256:` and 64 hexadecimal digits.
    pub fn from_database_text(text: &str) -> Result<Self, HashError> {
        let digits = text.strip_prefix("sha256:").ok_or(HashError::NotSha256)?;
        if digits.len() != HEX_DIGITS {
            return Err(HashError::WrongLength);
        }
        decode_hex(digits.as_bytes()).ok_or(HashError::WrongDigit)
    }

    /// Parses the 52 digits of Nix base32 alone, as they stand in a NAR's URL.
    pub fn from_nix32(digits: &[u8]) -> Option<Self> {
        base32::decode_digest(digits).map(Self)
    }

    /// The 52 digits of Nix base32, without prefix.
    pub fn to_nix32(&self) -> String {
        base32::encode_digest(&self.0)
    }

    /// The SRI form: `sha256-` and base 64.
    pub fn to_sri(&self) -> String {
        format!("sha256-{}", BASE64.encode(self.0))
    }

    /// The 64 lower-case hexadecimal digits, without prefix.
    pub fn to_hex(&self) -> String {
        encode_hex(&self.0)
    }
}

/// The form of narinfo and fingerprint: `sha256:` and Nix base32.
impl fmt::Display for Sha256Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.to_nix32())
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// SHA-256 of bytes that arrive piece by piece.
#[derive(Clone, Default)]
pub struct Sha256(sha2::Sha256);

impl Sha256 {
    /// A hasher that has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all pieces, in the order they came.
    pub fn finish(self) -> Sha256Digest {
        Sha256Digest(self.0.finalize().into())
    }

    /// The digest of bytes that are all there.
    pub fn digest(bytes: &[u8]) -> Sha256Digest {
        Sha256Digest(sha2::Sha256::digest(bytes).into())
    }
}

fn decode_base64(text: &str) -> Result<Sha256Digest, HashError> {
    let bytes = BASE64.decode(text).map_err(|_| HashError::WrongDigit)?;
    bytes.try_into().map(Sha256Digest).map_err(|_| HashError::WrongLength)
}

/// Lower-case hexadecimal digits.
pub(super) fn encode_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0x0f)]).collect()
}

/// Nix takes upper and lower case.
fn decode_hex(digits: &[u8]) -> Option<Sha256Digest> {
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    let mut digest = [0; 32];
    if pairs.len() != digest.len() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(pairs) {
        *byte = hex_value(pair[0])? << 4 | hex_value(pair[1])?;
    }
    Some(Sha256Digest(digest))
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Whatever is taken for a digest is the same in each of its forms, and a form is taken in one way only.
#[cfg(any(test, fuzzing))]
pub fn fuzz_hash(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(digest) = Sha256Digest::parse(text) {
        let hex = format!("sha256:{}", digest.to_hex());
        let base64 = format!("sha256-{}", BASE64.encode(digest.0));
        for form in [digest.to_string(), hex.clone(), base64.clone(), base64.replace('-', ":")] {
            assert_eq!(Sha256Digest::parse(&form), Ok(digest), "{form}");
        }
        let is_hex = text.eq_ignore_ascii_case(&hex);
        assert!(is_hex || text == digest.to_string() || text.replace('-', ":") == base64.replace('-', ":"));
        assert_eq!(Sha256Digest::from_database_text(text).is_ok(), is_hex);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // `nix hash file` of a file that contains "foo\n", in its four forms.
    const HEX: &str = "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c";
    const NIX32: &str = "0k4lwj58f2w5yh92ilrwy9917pycipbrdrr13vbb3yd02j09vfxm";
    const BASE64_TEXT: &str = "tbudgBSg+bHWHiHnlteNzN8TUvI80ygS9IULh4rklEw=";

    #[test]
    fn every_form_of_nix_is_the_same_digest() {
        let digest = Sha256::digest(b"foo\n");
        for text in [
            format!("sha256:{HEX}"),
            format!("sha256:{}", HEX.to_uppercase()),
            format!("sha256:{NIX32}"),
            format!("sha256:{BASE64_TEXT}"),
            format!("sha256-{BASE64_TEXT}"),
        ] {
            assert_eq!(Sha256Digest::parse(&text), Ok(digest), "{text}");
        }
        assert_eq!(Sha256Digest::from_database_text(&format!("sha256:{HEX}")), Ok(digest));
        assert_eq!(Sha256Digest::from_nix32(NIX32.as_bytes()), Some(digest));
        assert_eq!(digest.to_nix32(), NIX32);
        assert_eq!(digest.to_hex(), HEX);
        assert_eq!(digest.to_string(), format!("sha256:{NIX32}"));
    }

    #[test]
    fn other_texts_are_refused_with_their_reason() {
        for (text, error) in [
            (String::new(), HashError::NotSha256),
            (HEX.to_owned(), HashError::NotSha256),
            (format!("sha512:{HEX}"), HashError::NotSha256),
            (format!("SHA256:{HEX}"), HashError::NotSha256),
            ("sha256:".to_owned(), HashError::WrongLength),
            ("sha256-".to_owned(), HashError::WrongLength),
            (format!("sha256-{HEX}"), HashError::WrongLength),
            (format!("sha256-{NIX32}"), HashError::WrongLength),
            (format!("sha256:{HEX} "), HashError::WrongLength),
            (format!("sha256:{}", HEX.replace('b', "g")), HashError::WrongDigit),
            (format!("sha256:{}", NIX32.replace('k', "e")), HashError::WrongDigit),
            (format!("sha256:{}", NIX32.replacen('0', "2", 1)), HashError::WrongDigit),
            (format!("sha256:{}", BASE64_TEXT.replace('=', "A")), HashError::WrongLength),
            (format!("sha256-{}", BASE64_TEXT.replace('+', "-")), HashError::WrongDigit),
        ] {
            assert_eq!(Sha256Digest::parse(&text), Err(error), "{text}");
        }
    }

    #[test]
    fn the_database_has_one_form_only() {
        assert_eq!(Sha256Digest::from_database_text(HEX), Err(HashError::NotSha256));
        assert_eq!(Sha256Digest::from_database_text(&format!("sha256:{NIX32}")), Err(HashError::WrongLength));
        let long_digit = format!("sha256:{}é", &HEX[..62]);
        assert_eq!(Sha256Digest::from_database_text(&long_digit), Err(HashError::WrongDigit));
    }

    #[test]
    fn every_prefix_is_refused() {
        for text in [format!("sha256:{HEX}"), format!("sha256:{NIX32}"), format!("sha256-{BASE64_TEXT}")] {
            for end in 0..text.len() {
                // A prefix of base 16 may have the length of another form, and then its last digits decide.
                let parsed = Sha256Digest::parse(&text[..end]);
                assert!(parsed.is_err() || text[..end].len() == "sha256:".len() + 52, "{}", &text[..end]);
            }
        }
    }

    #[test]
    fn any_split_hashes_alike() {
        let bytes = (0..=255).collect::<Vec<u8>>();
        for middle in 0..bytes.len() {
            let mut hasher = Sha256::new();
            hasher.update(&bytes[..middle]);
            hasher.update(&bytes[middle..]);
            assert_eq!(hasher.finish(), Sha256::digest(&bytes));
        }
    }

    proptest! {
        #[test]
        fn reads_back_what_it_wrote(bytes: [u8; 32]) {
            let digest = Sha256Digest(bytes);
            prop_assert_eq!(Sha256Digest::parse(&digest.to_string()), Ok(digest));
            prop_assert_eq!(Sha256Digest::parse(&format!("sha256:{}", digest.to_hex())), Ok(digest));
            prop_assert_eq!(Sha256Digest::parse(&format!("sha256-{}", BASE64.encode(bytes))), Ok(digest));
        }

        #[test]
        fn no_text_panics(text in "(sha256[:-])?.{0,70}") {
            let _ = Sha256Digest::parse(&text);
            let _ = Sha256Digest::from_database_text(&text);
        }
    }
}
