//! What the NAR cache is to be, as the configuration says it.

use std::fmt;
use std::str::FromStr;

use crate::store::nar_cache::Coding;

/// How NARs are kept. Plain values, decided by the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FillSettings {
    /// Which NARs are encoded.
    pub policy: Policy,
    /// As what.
    pub format: Format,
    /// Of zstd: from 1 to 19.
    pub level: i32,
    /// What all encoded NARs may take together. Bytes; `None` is a quarter of the file system.
    pub len_max: Option<u64>,
    /// What stays free on the file system. Bytes; `None` is a twentieth of it.
    pub free_min: Option<u64>,
    /// How much is read in a second, at most, to look for damage. Bytes; 0 looks at nothing.
    pub scrub_rate: u64,
}

/// Which NARs are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// None; what is there is served and looked after.
    Off,
    /// Those that are asked for again, and those of small files when they are asked for once.
    #[default]
    Hot,
    /// Those of all valid paths.
    All,
}

/// As what NARs are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Compressed, and as they are if they are made of small files: the ones that cost most to make again.
    #[default]
    Auto,
    /// As they are.
    Flat,
    /// Compressed.
    Zstd,
    /// Both.
    Both,
}

/// The text is none of the names that are possible.
#[derive(Debug, thiserror::Error)]
#[error("expected {0}")]
pub struct NameError(&'static str);

impl Policy {
    fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Hot => "hot",
            Self::All => "all",
        }
    }
}

impl FromStr for Policy {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let found = [Self::Off, Self::Hot, Self::All].into_iter().find(|policy| policy.name() == text);
        found.ok_or(NameError("off, hot or all"))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl Format {
    /// The codings that are wanted of a NAR that is made of small files, or is not.
    pub fn codings(self, has_small_files: bool) -> &'static [Coding] {
        match self {
            Self::Auto if has_small_files => &[Coding::Flat, Coding::Zstd],
            Self::Auto | Self::Zstd => &[Coding::Zstd],
            Self::Flat => &[Coding::Flat],
            Self::Both => &[Coding::Flat, Coding::Zstd],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Flat => "flat",
            Self::Zstd => "zstd",
            Self::Both => "both",
        }
    }
}

impl FromStr for Format {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let all = [Self::Auto, Self::Flat, Self::Zstd, Self::Both];
        all.into_iter().find(|format| format.name() == text).ok_or(NameError("auto, flat, zstd or both"))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_back() {
        for name in ["off", "hot", "all"] {
            assert_eq!(name.parse::<Policy>().unwrap().to_string(), name);
        }
        for name in ["auto", "flat", "zstd", "both"] {
            assert_eq!(name.parse::<Format>().unwrap().to_string(), name);
        }
        assert!("".parse::<Policy>().is_err() && "gzip".parse::<Format>().is_err());
    }
}
