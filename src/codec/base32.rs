//! Nix base32: the text form of digests and of the hash part of a store path.
//!
//! The alphabet leaves out `e`, `o`, `u` and `t`. The bytes are read as one little-endian number and its
//! digits are written with the most significant one first, so the text is, seen byte by byte, reversed.

/// Digits that a 32-byte digest takes: 256 bits, five a digit; the first digit carries one bit only.
pub const DIGEST_DIGITS: usize = 52;

/// The digits, in the order of their values.
pub const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// The value of each digit; [`NO_DIGIT`] for all other bytes.
const VALUES: [u8; 256] = {
    let mut table = [NO_DIGIT; 256];
    let mut value = 0_u8;
    while (value as usize) < ALPHABET.len() {
        table[ALPHABET[value as usize] as usize] = value;
        value += 1;
    }
    table
};

const NO_DIGIT: u8 = 0xff;

/// Five bytes are eight digits: a group that fits into a word.
const GROUP_LEN_BYTES: usize = 5;
const GROUP_DIGITS: usize = 8;

/// Whether `byte` is a digit of Nix base32. Upper case is not.
pub const fn is_digit(byte: u8) -> bool {
    VALUES[byte as usize] != NO_DIGIT
}

/// The text of a digest.
pub fn encode_digest(digest: &[u8; 32]) -> String {
    let mut text = [0; DIGEST_DIGITS];
    for (bytes, digits) in digest.chunks(GROUP_LEN_BYTES).zip(text.rchunks_mut(GROUP_DIGITS)) {
        let mut group = bytes.iter().rev().fold(0, |group, &byte| group << 8 | u64::from(byte));
        for digit in digits.iter_mut().rev() {
            *digit = ALPHABET[(group % 32) as usize];
            group /= 32;
        }
    }
    str::from_utf8(&text).expect("digits are ASCII").to_owned()
}

/// The digest whose text this is. `None` unless there are exactly [`DIGEST_DIGITS`] digits whose value fits
/// in 256 bits.
pub fn decode_digest(text: &[u8]) -> Option<[u8; 32]> {
    if text.len() != DIGEST_DIGITS {
        return None;
    }
    let mut digest = [0; 32];
    for (bytes, digits) in digest.chunks_mut(GROUP_LEN_BYTES).zip(text.rchunks(GROUP_DIGITS)) {
        let mut group = 0;
        for &digit in digits {
            if !is_digit(digit) {
                return None;
            }
            group = group << 5 | u64::from(VALUES[usize::from(digit)]);
        }
        for byte in bytes {
            *byte = group.to_le_bytes()[0];
            group >>= 8;
        }
        if group != 0 {
            return None;
        }
    }
    Some(digest)
}

/// Whatever is taken for a digest is the one text of that digest.
#[cfg(any(test, fuzzing))]
pub fn fuzz_base32(data: &[u8]) {
    if let Some(digest) = decode_digest(data) {
        assert_eq!(encode_digest(&digest).as_bytes(), data);
    }
    if let Some(digest) = data.first_chunk() {
        assert_eq!(decode_digest(encode_digest(digest).as_bytes()).as_ref(), Some(digest));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, bit by bit: digit `n` from the right is bits `5n` to `5n + 4` of the little-endian
    /// number.
    fn naive_encode(digest: &[u8; 32]) -> String {
        let bit = |index: usize| digest.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1);
        let value =
            |digit: usize| (0..5).map(|index| usize::from(bit(digit * 5 + index)) << index).sum::<usize>();
        (0..DIGEST_DIGITS).rev().map(|digit| char::from(ALPHABET[value(digit)])).collect()
    }

    /// The definition as arithmetic: from the left, number = number × 32 + digit, and it must not outgrow 256
    /// bits.
    fn naive_decode(text: &[u8]) -> Option<[u8; 32]> {
        let mut number = [0u8; 32];
        for byte in text {
            let mut carry = ALPHABET.iter().position(|digit| digit == byte)?;
            for place in &mut number {
                let sum = usize::from(*place) * 32 + carry;
                *place = u8::try_from(sum % 256).unwrap();
                carry = sum / 256;
            }
            if carry != 0 {
                return None;
            }
        }
        (text.len() == DIGEST_DIGITS).then_some(number)
    }

    #[test]
    fn the_alphabet_is_digits_and_letters_without_e_o_u_t() {
        let expected =
            (b'0'..=b'9').chain(b'a'..=b'z').filter(|byte| !b"eout".contains(byte)).collect::<Vec<_>>();
        assert_eq!(ALPHABET.as_slice(), expected);
        for byte in 0..=255 {
            assert_eq!(is_digit(byte), expected.contains(&byte), "{byte}");
        }
    }

    #[test]
    fn extremes() {
        let zeros = "0".repeat(52);
        let ones = format!("1{}", "z".repeat(51));
        assert_eq!(encode_digest(&[0; 32]), zeros);
        assert_eq!(encode_digest(&[255; 32]), ones);
        assert_eq!(decode_digest(zeros.as_bytes()), Some([0; 32]));
        assert_eq!(decode_digest(ones.as_bytes()), Some([255; 32]));
        assert_eq!(decode_digest(format!("2{}", "0".repeat(51)).as_bytes()), None, "257 bits");
    }

    #[test]
    fn only_52_digits_are_a_digest() {
        for len in 0..120 {
            assert_eq!(decode_digest(&vec![b'0'; len]).is_some(), len == DIGEST_DIGITS, "{len}");
        }
        for at in 0..DIGEST_DIGITS {
            for byte in [b'e', b'o', b'u', b't', b'A', b' ', b'\n', 0, 0x80, 0xff] {
                let mut text = [b'0'; DIGEST_DIGITS];
                text[at] = byte;
                assert_eq!(decode_digest(&text), None, "{byte} at {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn encodes_as_its_naive_twin(digest: [u8; 32]) {
            prop_assert_eq!(encode_digest(&digest), naive_encode(&digest));
            prop_assert_eq!(decode_digest(naive_encode(&digest).as_bytes()), Some(digest));
        }

        #[test]
        fn decodes_as_its_naive_twin(text in "[0-9a-z]{52}|[0-3][0-9a-df-np-sv-z]{51}") {
            prop_assert_eq!(decode_digest(text.as_bytes()), naive_decode(text.as_bytes()));
        }
    }
}
