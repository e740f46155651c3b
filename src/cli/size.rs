//! Sizes as people write them: a number of bytes, or one with a unit, each 1024 times the one before.

use std::str::FromStr;

use parse_size::{Config, Error};

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// The text is no size.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SizeError {
    /// Some of it is neither number nor unit.
    #[error("expected a size such as 10G, 500M, 1.5T, or a plain number of bytes")]
    NoSize,
    /// More bytes than any disk has.
    #[error("that is more than any disk holds: a size is below 16 EiB")]
    TooLarge,
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        // Whoever writes 10G and whoever writes 10GB means the same here; disks are sold by the one, df(1) speaks the other.
        Config::new().with_binary().parse_size(text).map(Self).map_err(|error| match error {
            Error::PosOverflow => SizeError::TooLarge,
            _ => SizeError::NoSize,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_1024_times_the_one_before() {
        for (text, expected) in [
            ("0", 0),
            ("4096", 4096),
            ("1K", 1 << 10),
            ("500M", 500 << 20),
            ("10G", 10 << 30),
            ("10g", 10 << 30),
            ("10 GB", 10 << 30),
            ("10GiB", 10 << 30),
            ("1.5T", 3 << 39),
        ] {
            assert_eq!(text.parse(), Ok(Size(expected)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_told_with_examples() {
        for text in ["", "G", "ten", "-1", "10X", "10G free", "1,5G"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::NoSize), "{text:?}");
        }
        assert!(SizeError::NoSize.to_string().contains("10G"));
        assert_eq!("16E".parse::<Size>(), Err(SizeError::TooLarge));
    }
}
