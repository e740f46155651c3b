//! Store directory, store path and hash part: parsed once, trusted from then on.
//!
//! ```text
//! /nix/store/47m1vxqd5zpw8vvlsz1wi5zf5xpiki9c-hello-2.12
//! └StoreDir┘ └───────── HashPart ───────────┘ └─ name ─┘
//!            └──────────────── base name ──────────────┘
//! ```

use std::fmt;
use std::sync::Arc;

use super::base32;
use crate::limits::STORE_NAME_LEN_MAX;

/// Length of the hash part: 160 bits in Nix base32. Bytes.
const HASH_PART_LEN: usize = 32;

/// Where store paths claim to live, `/nix/store` nearly always. It is part of every hash and signature, so it
/// is the *logical* directory; where the files really are is another matter.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct StoreDir(Arc<str>);

/// Why a text is no store directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreDirError {
    /// It does not begin with `/`.
    #[error("a store directory must be an absolute path")]
    NotAbsolute,
    /// It ends with `/`, or has an empty, `.` or `..` component: one directory would have two names.
    #[error("a store directory must not have empty, `.` or `..` components, nor a slash at its end")]
    NotCanonical,
    /// A control character, which the line formats could not hold.
    #[error("a store directory must not contain control characters")]
    ControlCharacter,
}

impl StoreDir {
    /// Parses an absolute path in its shortest spelling. A relative or longer spelling is an error and is not
    /// mended: two spellings of one directory give two different signatures.
    pub fn parse(text: &str) -> Result<Self, StoreDirError> {
        let relative = text.strip_prefix('/').ok_or(StoreDirError::NotAbsolute)?;
        if relative.split('/').any(|component| matches!(component, "" | "." | "..")) {
            return Err(StoreDirError::NotCanonical);
        }
        if text.chars().any(char::is_control) {
            return Err(StoreDirError::ControlCharacter);
        }
        Ok(Self(text.into()))
    }

    /// The path, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for StoreDir {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

/// The 32 digits in front of a store path's name. Kept as text: whoever looks a path up compares texts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashPart([u8; HASH_PART_LEN]);

impl HashPart {
    /// Exactly 32 digits of Nix base32, or nothing.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digits: [u8; HASH_PART_LEN] = text.try_into().ok()?;
        digits.iter().all(|digit| base32::is_digit(*digit)).then_some(Self(digits))
    }

    /// The 32 digits.
    pub fn as_str(&self) -> &str {
        // The digits are ASCII by construction, so the fallback is never taken.
        str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The 32 digits.
    pub fn as_bytes(&self) -> &[u8; HASH_PART_LEN] {
        &self.0
    }
}

impl fmt::Display for HashPart {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Debug for HashPart {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A store path without its store directory: `<hash part>-<name>`. Ordered bytewise, which is Nix's order of
/// references.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(Arc<str>);

/// Why a text is no store path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    /// A full path that does not begin with the store directory and a slash.
    #[error("the path is not in the store directory")]
    NotInStore,
    /// It does not begin with 32 digits of Nix base32 and a dash.
    #[error("a store path must begin with 32 base-32 digits and a dash")]
    BadHashPart,
    /// Nothing follows the dash.
    #[error("a store path must have a name")]
    NameEmpty,
    /// The name has more than [`STORE_NAME_LEN_MAX`] bytes.
    #[error("the name of a store path has more than {STORE_NAME_LEN_MAX} bytes")]
    NameTooLong,
    /// A byte other than letters, digits and `+-._?=`.
    #[error("the name of a store path has a character that is not allowed")]
    NameCharacter,
    /// The name is `.` or `..`, or one of them before a dash.
    #[error("the name of a store path must not be `.` or `..`, nor begin with `.-` or `..-`")]
    NameDots,
}

impl StorePath {
    /// Parses `<hash part>-<name>`. Slashes are refused with every other character that a name must not have.
    pub fn parse_base_name(text: &str) -> Result<Self, StorePathError> {
        let (digits, rest) =
            text.as_bytes().split_at_checked(HASH_PART_LEN).ok_or(StorePathError::BadHashPart)?;
        HashPart::parse(digits).ok_or(StorePathError::BadHashPart)?;
        let name = rest.strip_prefix(b"-").ok_or(StorePathError::BadHashPart)?;
        check_name(name)?;
        Ok(Self(text.into()))
    }

    /// Parses `<store directory>/<hash part>-<name>`. A path below a store path is refused.
    pub fn parse_full(store_dir: &StoreDir, text: &str) -> Result<Self, StorePathError> {
        let base_name = text
            .strip_prefix(store_dir.as_str())
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or(StorePathError::NotInStore)?;
        Self::parse_base_name(base_name)
    }

    /// The digits in front.
    pub fn hash_part(&self) -> HashPart {
        let mut digits = [0; HASH_PART_LEN];
        digits.copy_from_slice(&self.0.as_bytes()[..HASH_PART_LEN]);
        HashPart(digits)
    }

    /// What follows the dash.
    pub fn name(&self) -> &str {
        &self.0[HASH_PART_LEN + 1..]
    }

    /// Whether it is a derivation, by its name.
    pub fn is_derivation(&self) -> bool {
        self.name().as_bytes().ends_with(b".drv")
    }

    /// `<hash part>-<name>`.
    pub fn base_name(&self) -> &str {
        &self.0
    }

    /// `<store directory>/<hash part>-<name>`.
    pub fn full(&self, store_dir: &StoreDir) -> String {
        format!("{store_dir}/{self}")
    }
}

/// The base name.
impl fmt::Display for StorePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The rules for the part after the dash (Nix manual, "Store Path"; the dot rules keep a name usable as a
/// file name).
pub(super) fn check_name(name: &[u8]) -> Result<(), StorePathError> {
    if name.is_empty() {
        return Err(StorePathError::NameEmpty);
    }
    if name.len() > STORE_NAME_LEN_MAX {
        return Err(StorePathError::NameTooLong);
    }
    if !name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-._?=".contains(byte)) {
        return Err(StorePathError::NameCharacter);
    }
    match name.split(|byte| *byte == b'-').next() {
        Some(b"." | b"..") => Err(StorePathError::NameDots),
        _ => Ok(()),
    }
}

/// Whatever is taken for a store path is written back alike, and is a safe file name; a full path is that of its base name.
#[cfg(any(test, fuzzing))]
pub fn fuzz_store_path(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (dir_text, base_name) = text.rsplit_once('/').unwrap_or(("/nix/store", text));
    let parsed = StorePath::parse_base_name(base_name);
    if let Ok(path) = &parsed {
        assert_eq!(path.to_string(), base_name);
        assert!(base_name.is_ascii() && !base_name.contains(['/', '\0', '\n', ' ', ':']));
        assert_eq!(HashPart::parse(&base_name.as_bytes()[..32]), Some(path.hash_part()));
        assert_eq!(format!("{}-{}", path.hash_part(), path.name()), base_name);
    }
    if let Ok(store_dir) = StoreDir::parse(dir_text) {
        assert_eq!(StoreDir::parse(&store_dir.to_string()), Ok(store_dir.clone()));
        let full = format!("{store_dir}/{base_name}");
        assert_eq!(StorePath::parse_full(&store_dir, &full).ok(), parsed.as_ref().ok().cloned());
        if let Ok(path) = parsed {
            assert_eq!(path.full(&store_dir), full);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGITS: &str = "47m1vxqd5zpw8vvlsz1wi5zf5xpiki9c";

    fn nix_store() -> StoreDir {
        StoreDir::parse("/nix/store").unwrap()
    }

    fn with_name(name: &str) -> Result<StorePath, StorePathError> {
        StorePath::parse_base_name(&format!("{DIGITS}-{name}"))
    }

    /// The rules, as a list of what is wrong, without the cleverness of the parser's split.
    fn naive_is_name(name: &str) -> bool {
        let allowed = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-._?=";
        (1..=211).contains(&name.len())
            && name.chars().all(|character| allowed.contains(character))
            && !(name == "." || name == ".." || name.starts_with(".-") || name.starts_with("..-"))
    }

    #[test]
    fn the_parts_of_a_path() {
        let path = StorePath::parse_full(&nix_store(), &format!("/nix/store/{DIGITS}-hello-2.12")).unwrap();
        assert_eq!(path.hash_part().as_str(), DIGITS);
        assert_eq!(path.hash_part(), HashPart::parse(DIGITS.as_bytes()).unwrap());
        assert_eq!(path.name(), "hello-2.12");
        assert_eq!(path.base_name(), format!("{DIGITS}-hello-2.12"));
        assert_eq!(path.full(&nix_store()), format!("/nix/store/{DIGITS}-hello-2.12"));
    }

    #[test]
    fn names() {
        for name in ["a", "-", "?", "a+b_c-1.0=?", ".a", "..a", "...", "...-", "a..", "-.", &"x".repeat(211)]
        {
            assert!(with_name(name).is_ok(), "{name}");
            assert!(naive_is_name(name), "{name}");
        }
        for (name, error) in [
            ("", StorePathError::NameEmpty),
            (&*"x".repeat(212), StorePathError::NameTooLong),
            ("a b", StorePathError::NameCharacter),
            ("a/b", StorePathError::NameCharacter),
            ("a\0", StorePathError::NameCharacter),
            ("a\n", StorePathError::NameCharacter),
            ("a~b", StorePathError::NameCharacter),
            ("ä", StorePathError::NameCharacter),
            (".", StorePathError::NameDots),
            ("..", StorePathError::NameDots),
            (".-a", StorePathError::NameDots),
            ("..-a", StorePathError::NameDots),
        ] {
            assert_eq!(with_name(name), Err(error), "{name}");
            assert!(!naive_is_name(name), "{name}");
        }
    }

    #[test]
    fn every_byte_of_a_hash_part_is_checked() {
        for at in 0..HASH_PART_LEN {
            for byte in 0..=255 {
                let mut digits: [u8; HASH_PART_LEN] = DIGITS.as_bytes().try_into().unwrap();
                digits[at] = byte;
                let expected = b"0123456789abcdfghijklmnpqrsvwxyz".contains(&byte);
                assert_eq!(HashPart::parse(&digits).is_some(), expected, "{byte} at {at}");
            }
        }
        assert_eq!(HashPart::parse(&DIGITS.as_bytes()[1..]), None);
        assert_eq!(HashPart::parse(format!("{DIGITS}0").as_bytes()), None);
    }

    #[test]
    fn every_prefix_of_a_base_name() {
        let base_name = format!("{DIGITS}-hello");
        for end in 0..=base_name.len() {
            assert_eq!(
                StorePath::parse_base_name(&base_name[..end]).is_ok(),
                end > HASH_PART_LEN + 1,
                "{end}"
            );
        }
        let without_dash = base_name.replace('-', "_");
        assert_eq!(StorePath::parse_base_name(&without_dash), Err(StorePathError::BadHashPart));
        // 31 digits and a character of two bytes: the boundary lies within the character.
        let split_character = format!("{}é-hello", &DIGITS[1..]);
        assert_eq!(StorePath::parse_base_name(&split_character), Err(StorePathError::BadHashPart));
    }

    #[test]
    fn full_paths_lie_directly_in_the_store_directory() {
        for path in [
            format!("{DIGITS}-a"),
            format!("/nix/stor/{DIGITS}-a"),
            format!("/nix/storex/{DIGITS}-a"),
            format!("/nix/store{DIGITS}-a"),
            format!("nix/store/{DIGITS}-a"),
            "/nix/store".to_owned(),
        ] {
            assert_eq!(StorePath::parse_full(&nix_store(), &path), Err(StorePathError::NotInStore), "{path}");
        }
        for path in
            [format!("/nix/store//{DIGITS}-a"), format!("/nix/store/./{DIGITS}-a"), "/nix/store/".to_owned()]
        {
            assert_eq!(
                StorePath::parse_full(&nix_store(), &path),
                Err(StorePathError::BadHashPart),
                "{path}"
            );
        }
        let below = format!("/nix/store/{DIGITS}-a/bin");
        assert_eq!(StorePath::parse_full(&nix_store(), &below), Err(StorePathError::NameCharacter));
    }

    #[test]
    fn the_order_is_that_of_bytes() {
        let mut paths = ["b", "a-b", "a.b", "a", "B", "a_b"].map(|name| with_name(name).unwrap());
        paths.sort();
        assert_eq!(paths.each_ref().map(StorePath::name), ["B", "a", "a-b", "a.b", "a_b", "b"]);
    }

    #[test]
    fn store_directories() {
        for dir in ["/nix/store", "/store", "/home/ä b/.nix", "/a/..b"] {
            assert_eq!(StoreDir::parse(dir).unwrap().as_str(), dir);
        }
        for (dir, error) in [
            ("", StoreDirError::NotAbsolute),
            ("nix/store", StoreDirError::NotAbsolute),
            ("/", StoreDirError::NotCanonical),
            ("/nix/store/", StoreDirError::NotCanonical),
            ("//nix/store", StoreDirError::NotCanonical),
            ("/nix//store", StoreDirError::NotCanonical),
            ("/nix/./store", StoreDirError::NotCanonical),
            ("/nix/../store", StoreDirError::NotCanonical),
            ("/nix/store\n", StoreDirError::ControlCharacter),
            ("/nix/\0store", StoreDirError::ControlCharacter),
        ] {
            assert_eq!(StoreDir::parse(dir), Err(error), "{dir:?}");
        }
    }

    proptest! {
        #[test]
        fn names_are_judged_as_by_the_naive_twin(name in "[-.a/ ]{0,5}|\\PC{0,8}|[a-z]{205,215}") {
            prop_assert_eq!(with_name(&name).is_ok(), naive_is_name(&name));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = StorePath::parse_base_name(&text);
            let _ = StorePath::parse_full(&nix_store(), &text);
            let _ = StoreDir::parse(&text);
        }
    }
}
