//! The framing of a NAR as byte constants: every run of words that always appears together is one token.
//!
//! A word is its length as a little-endian `u64`, its bytes, and zero bytes up to a multiple of 8. The writer copies
//! these constants and the decoder compares with them, so the format is spelled once. No token is a prefix of another
//! one that is allowed at the same place, which is what lets the decoder choose by looking at one byte at a time.

/// The zero bytes of which each word and each contents is given as many as fill its length to a multiple of 8.
const ZEROS: [u8; 7] = [0; 7];

/// The beginning of every NAR: `nix-archive-1`.
pub const MAGIC: &[u8] = b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0";

/// A regular file up to the length of its contents: `( type regular contents`.
pub const REGULAR: &[u8] = b"\
    \x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0\
    \x04\0\0\0\0\0\0\0type\0\0\0\0\
    \x07\0\0\0\0\0\0\0regular\0\
    \x08\0\0\0\0\0\0\0contents";

/// An executable file up to the length of its contents: `( type regular executable "" contents`.
pub const EXECUTABLE: &[u8] = b"\
    \x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0\
    \x04\0\0\0\0\0\0\0type\0\0\0\0\
    \x07\0\0\0\0\0\0\0regular\0\
    \x0a\0\0\0\0\0\0\0executable\0\0\0\0\0\0\
    \0\0\0\0\0\0\0\0\
    \x08\0\0\0\0\0\0\0contents";

/// A symbolic link up to its target: `( type symlink target`.
pub const SYMLINK: &[u8] = b"\
    \x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0\
    \x04\0\0\0\0\0\0\0type\0\0\0\0\
    \x07\0\0\0\0\0\0\0symlink\0\
    \x06\0\0\0\0\0\0\0target\0\0";

/// A directory up to its first entry: `( type directory`.
pub const DIRECTORY: &[u8] = b"\
    \x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0\
    \x04\0\0\0\0\0\0\0type\0\0\0\0\
    \x09\0\0\0\0\0\0\0directory\0\0\0\0\0\0\0";

/// A directory entry up to its name: `entry ( name`.
pub const ENTRY: &[u8] = b"\
    \x05\0\0\0\0\0\0\0entry\0\0\0\
    \x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0\
    \x04\0\0\0\0\0\0\0name\0\0\0\0";

/// What stands between the name of an entry and its node: `node`.
pub const NODE: &[u8] = b"\x04\0\0\0\0\0\0\0node\0\0\0\0";

/// The end of a node, and again the end of the entry that holds it: `)`.
pub const CLOSE: &[u8] = b"\x01\0\0\0\0\0\0\0)\0\0\0\0\0\0\0";

/// The zero bytes that follow `len_bytes` bytes: 0 to 7.
pub fn padding(len_bytes: u64) -> &'static [u8] {
    // The remainder is below 8, so the cast loses nothing.
    &ZEROS[..(len_bytes.wrapping_neg() % 8) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::nar::naive;

    #[test]
    fn every_token_is_its_words() {
        let cases: &[(&[u8], &[&str])] = &[
            (MAGIC, &["nix-archive-1"]),
            (REGULAR, &["(", "type", "regular", "contents"]),
            (EXECUTABLE, &["(", "type", "regular", "executable", "", "contents"]),
            (SYMLINK, &["(", "type", "symlink", "target"]),
            (DIRECTORY, &["(", "type", "directory"]),
            (ENTRY, &["entry", "(", "name"]),
            (NODE, &["node"]),
            (CLOSE, &[")"]),
        ];
        for (token, words) in cases {
            let mut rebuilt = Vec::new();
            for word in *words {
                naive::word(&mut rebuilt, word.as_bytes());
            }
            assert_eq!(*token, rebuilt, "{words:?}");
        }
    }

    #[test]
    fn padding_fills_to_the_next_multiple_of_eight() {
        for (len_bytes, padding) in [(0, 0), (1, 7), (7, 1), (8, 0), (9, 7), (1 << 62, 0), (u64::MAX, 1)] {
            assert_eq!(super::padding(len_bytes).len(), padding, "{len_bytes}");
        }
    }
}
