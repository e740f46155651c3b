//! `nix-cache-info`: the first thing a client asks a cache for. It remembers the answer for a week.

use std::fmt::Write as _;

use super::store_path::{StoreDir, StoreDirError};

/// What a cache says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheInfo {
    /// The store directory of its paths; clients with another one refuse the cache.
    pub store_dir: StoreDir,
    /// Whether clients may ask it for many paths at once, as `nix-env -qas` does.
    pub want_mass_query: bool,
    /// Clients ask the cache with the lowest number first (cache.nixos.org says 40).
    pub priority: u32,
}

/// Why a text is no `nix-cache-info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CacheInfoError {
    /// `StoreDir`.
    #[error("StoreDir: {0}")]
    StoreDir(StoreDirError),
    /// `Priority`.
    #[error("Priority: not a whole number from 0 to 4294967295")]
    Priority,
}

impl CacheInfo {
    /// Parses `Key: value` lines as a client does: white space around a value does not count, lines without
    /// colon and keys that are not known are skipped, the last of several values holds. What is absent has
    /// the client's own value: the store directory that it assumes, no mass queries, priority 0.
    pub fn parse(text: &str, assumed_store_dir: &StoreDir) -> Result<Self, CacheInfoError> {
        let mut cache_info =
            Self { store_dir: assumed_store_dir.clone(), want_mass_query: false, priority: 0 };
        for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let value = value.trim_ascii();
            match key {
                "StoreDir" => {
                    cache_info.store_dir = StoreDir::parse(value).map_err(CacheInfoError::StoreDir)?;
                }
                "WantMassQuery" => cache_info.want_mass_query = value == "1",
                "Priority" => cache_info.priority = value.parse().map_err(|_| CacheInfoError::Priority)?,
                _ => {}
            }
        }
        Ok(cache_info)
    }

    /// Appends the three lines to `text`.
    pub fn write(&self, text: &mut String) {
        let Self { store_dir, want_mass_query, priority } = self;
        let want_mass_query = u8::from(*want_mass_query);
        // Writing to a `String` cannot fail.
        let _ =
            write!(text, "StoreDir: {store_dir}\nWantMassQuery: {want_mass_query}\nPriority: {priority}\n");
    }
}

/// Whatever is taken for a `nix-cache-info` is read back alike once it is written.
#[cfg(any(test, fuzzing))]
pub fn fuzz_cache_info(data: &[u8]) {
    let (Ok(text), Ok(store_dir)) = (str::from_utf8(data), StoreDir::parse("/nix/store")) else { return };
    if let Ok(info) = CacheInfo::parse(text, &store_dir) {
        let mut written = String::new();
        info.write(&mut written);
        assert_eq!(CacheInfo::parse(&written, &store_dir), Ok(info));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nix_store() -> StoreDir {
        StoreDir::parse("/nix/store").unwrap()
    }

    fn parse(text: &str) -> Result<CacheInfo, CacheInfoError> {
        CacheInfo::parse(text, &nix_store())
    }

    #[test]
    fn writes_what_nix_reads() {
        let mut text = String::new();
        CacheInfo { store_dir: nix_store(), want_mass_query: true, priority: 30 }.write(&mut text);
        assert_eq!(text, "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n");
    }

    #[test]
    fn absent_fields_have_the_values_of_a_client() {
        let unspecific = CacheInfo { store_dir: nix_store(), want_mass_query: false, priority: 0 };
        assert_eq!(parse("").unwrap(), unspecific);
        assert_eq!(parse("StoreDir: /nix/store\n").unwrap(), unspecific);
        assert_eq!(parse("no colon here\nFuture: yes\nWantMassQuery: true\n").unwrap(), unspecific);
    }

    #[test]
    fn white_space_around_values_does_not_count() {
        let cache_info = parse("StoreDir:/gnu/store\r\nWantMassQuery:   1\nPriority: 40 \t").unwrap();
        assert_eq!(cache_info.store_dir.as_str(), "/gnu/store");
        assert!(cache_info.want_mass_query);
        assert_eq!(cache_info.priority, 40);
    }

    #[test]
    fn bad_values_are_refused() {
        assert_eq!(parse("Priority: low\n"), Err(CacheInfoError::Priority));
        assert_eq!(parse("Priority: -1\n"), Err(CacheInfoError::Priority));
        assert_eq!(parse("StoreDir: \n"), Err(CacheInfoError::StoreDir(StoreDirError::NotAbsolute)));
    }

    proptest! {
        #[test]
        fn reads_back_what_it_wrote(dir in "(/[a-z]{1,8}){1,3}", want_mass_query: bool, priority: u32) {
            let written = CacheInfo { store_dir: StoreDir::parse(&dir).unwrap(), want_mass_query, priority };
            let mut text = String::new();
            written.write(&mut text);
            prop_assert_eq!(parse(&text).unwrap(), written);
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = parse(&text);
        }
    }
}
