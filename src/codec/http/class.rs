//! Classes of bytes, asked of sixteen bytes at once: what a head costs is looking at its bytes.

use std::marker::PhantomData;

use wide::u8x16;

const BLOCK_LEN: usize = 16;
/// What [`Strangers`] looks at in one go: a bit of a word for each byte.
const STRIDE_LEN: usize = 64;

/// A set of bytes.
pub(super) trait Class {
    /// Ranges whose both ends belong to the class.
    const RANGES: &'static [(u8, u8)];

    /// Whether `byte` belongs to the class.
    fn has(byte: u8) -> bool {
        Self::RANGES.iter().any(|&(first, last)| (first..=last).contains(&byte))
    }

    /// Whether all bytes of `text` belong to the class.
    #[inline]
    fn has_all(text: &[u8]) -> bool {
        Self::run_len(text) == text.len()
    }

    /// How many bytes at the start of `text` belong to the class.
    #[inline]
    fn run_len(text: &[u8]) -> usize {
        let mut len = 0;
        while let Some(block) = text[len..].first_chunk() {
            let strangers = Self::strangers_in(block);
            if strangers != 0 {
                return len + strangers.trailing_zeros() as usize;
            }
            len += BLOCK_LEN;
        }
        let rest_len = text.len() - len;
        let strangers = match text.last_chunk() {
            // Some bytes of the last block have been asked before.
            Some(block) => Self::strangers_in(block) >> (BLOCK_LEN - rest_len),
            None => Self::strangers_in(&padded(text)),
        };
        len + (strangers | 1 << rest_len).trailing_zeros() as usize
    }

    /// One bit for each byte of the block, the first byte's lowest: whether it does not belong to the class.
    #[inline]
    fn strangers_in(block: &[u8; BLOCK_LEN]) -> u32 {
        let block = u8x16::new(*block);
        let members = Self::RANGES.iter().fold(u8x16::splat(0), |members, &(first, last)| {
            let distance = block - u8x16::splat(first);
            members | distance.min(u8x16::splat(last - first)).simd_eq(distance)
        });
        members.to_bitmask() ^ ((1 << BLOCK_LEN) - 1)
    }
}

/// Where the bytes stand that do not belong to a class. Asked from left to right, it looks at each byte once.
pub(super) struct Strangers<'a, C> {
    class: PhantomData<C>,
    text: &'a [u8],
    /// Start of the stride that `bits` is about.
    start: usize,
    /// One bit for each byte of the stride: whether it is a stranger. What lies behind the text is one.
    bits: u64,
}

impl<'a, C: Class> Strangers<'a, C> {
    #[inline]
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { class: PhantomData, text, start: 0, bits: Self::bits_at(text, 0) }
    }

    /// The first one at or behind `from`, which must not lie before the last one that was found.
    #[inline]
    pub(super) fn find_from(&mut self, mut from: usize) -> Option<usize> {
        while from < self.text.len() {
            let ahead = if from - self.start < STRIDE_LEN { self.bits >> (from - self.start) } else { 0 };
            if ahead != 0 {
                let found = from + ahead.trailing_zeros() as usize;
                return (found < self.text.len()).then_some(found);
            }
            self.start += STRIDE_LEN;
            self.bits = Self::bits_at(self.text, self.start);
            from = from.max(self.start);
        }
        None
    }

    #[inline]
    fn bits_at(text: &[u8], start: usize) -> u64 {
        let rest = text.get(start..).unwrap_or_default();
        if let Some(stride) = rest.first_chunk() {
            return Self::bits_of(stride);
        }
        let bits = match text.last_chunk() {
            _ if rest.is_empty() => 0,
            // Some bytes of the last stride have been asked before.
            Some(stride) => Self::bits_of(stride) >> (STRIDE_LEN - rest.len()),
            None => Self::bits_of(&padded(rest)),
        };
        bits | u64::MAX << rest.len()
    }

    #[inline]
    fn bits_of(stride: &[u8; STRIDE_LEN]) -> u64 {
        let (blocks, _) = stride.as_chunks();
        blocks.iter().rev().fold(0, |bits, block| bits << BLOCK_LEN | u64::from(C::strangers_in(block)))
    }
}

/// Where `byte` stands first.
#[inline]
pub(super) fn find(byte: u8, text: &[u8]) -> Option<usize> {
    let mut start = 0;
    while let Some(block) = text[start..].first_chunk::<BLOCK_LEN>() {
        let found = u8x16::new(*block).simd_eq(u8x16::splat(byte)).to_bitmask();
        if found != 0 {
            return Some(start + found.trailing_zeros() as usize);
        }
        start += BLOCK_LEN;
    }
    text[start..].iter().position(|&other| other == byte).map(|found| start + found)
}

/// Whether `name` is `known`, whatever the case of its letters. `known` is made of small letters and hyphens, and `name` has no
/// CR: that is the one byte beside the letters which the bit that is set here would make one of those.
#[inline]
pub(super) fn is_same_name<const LEN: usize>(name: &[u8], known: &[u8; LEN]) -> bool {
    const { assert!(LEN >= 4 && LEN <= 24, "two or three words hold it") };
    let lower = |word: &[u8; 8]| u64::from_le_bytes(*word) | 0x2020_2020_2020_2020;
    let lower_half = |word: &[u8; 4]| u32::from_le_bytes(*word) | 0x2020_2020;
    let Some(name) = name.as_array::<LEN>() else { return false };
    if LEN < 8 {
        name.first_chunk().map(lower_half) == known.first_chunk().map(lower_half)
            && name.last_chunk().map(lower_half) == known.last_chunk().map(lower_half)
    } else {
        let middle = LEN / 2 - 4;
        name.first_chunk().map(lower) == known.first_chunk().map(lower)
            && name.last_chunk().map(lower) == known.last_chunk().map(lower)
            && (LEN <= 16
                || name[middle..].first_chunk().map(lower) == known[middle..].first_chunk().map(lower))
    }
}

/// The bytes of a short text, and NUL.
#[inline]
fn padded<const LEN: usize>(text: &[u8]) -> [u8; LEN] {
    let mut block = [0; LEN];
    block[..text.len()].copy_from_slice(text);
    block
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Word;
    impl Class for Word {
        const RANGES: &[(u8, u8)] = &[(b'-', b'-'), (b'A', b'Z'), (b'a', b'z'), (0x80, 0xff)];
    }

    #[test]
    fn sixteen_bytes_are_asked_as_one_is() {
        for byte in 0..=255 {
            let expected = matches!(byte, b'-' | b'A'..=b'Z' | b'a'..=b'z' | 128..);
            assert_eq!(Word::has(byte), expected, "{byte}");
            for place in 0..40 {
                let mut text = [b'a'; 40];
                text[place] = byte;
                assert_eq!(Word::run_len(&text), if expected { 40 } else { place }, "{byte} at {place}");
            }
        }
    }

    fn assert_only_case_is_ignored<const LEN: usize>(known: &[u8; LEN]) {
        assert!(is_same_name(known, known) && is_same_name(&known.to_ascii_uppercase(), known));
        assert!(!is_same_name(&known[1..], known) && !is_same_name(&[known, &b"a"[..]].concat(), known));
        for place in 0..LEN {
            for byte in (0..=255).filter(|&byte| byte != b'\r') {
                let mut name = *known;
                name[place] = byte;
                assert_eq!(
                    is_same_name(&name, known),
                    name.eq_ignore_ascii_case(known),
                    "{}",
                    name.escape_ascii()
                );
            }
        }
    }

    #[test]
    fn names_differ_in_more_than_case_wherever_they_differ() {
        assert_only_case_is_ignored(b"host");
        assert_only_case_is_ignored(b"a-z-a-z");
        assert_only_case_is_ignored(b"if-range");
        assert_only_case_is_ignored(b"content-encoding");
        assert_only_case_is_ignored(b"transfer-encoding");
        assert_only_case_is_ignored(b"access-control-max-age-x");
    }

    #[test]
    fn a_byte_is_found_where_it_stands() {
        for len in 0..40 {
            for place in 0..len {
                let mut text = vec![b'a'; len];
                text[place..].fill(b':');
                assert_eq!(find(b':', &text), Some(place));
            }
            assert_eq!(find(b':', &vec![b'a'; len]), None);
        }
    }

    proptest! {
        #[test]
        fn runs_and_strangers_are_those_of_the_definition(
            text in prop::collection::vec(prop_oneof![9 => Just(b'a'), 1 => any::<u8>()], 0..300),
            stride in 1..100_usize,
        ) {
            let strangers: Vec<_> = (0..text.len()).filter(|&place| !Word::has(text[place])).collect();
            let run_len = strangers.first().copied().unwrap_or(text.len());
            prop_assert_eq!(Word::run_len(&text), run_len);
            prop_assert_eq!(Word::has_all(&text), strangers.is_empty());
            let mut found = Strangers::<Word>::new(&text);
            let mut from = 0;
            while let Some(place) = found.find_from(from) {
                prop_assert_eq!(strangers.iter().find(|&&stranger| stranger >= from), Some(&place));
                from = place + stride;
            }
            prop_assert!(strangers.iter().all(|&stranger| stranger < from));
        }
    }
}
