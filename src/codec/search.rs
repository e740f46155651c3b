//! What a person types who looks for a store path.

use super::base32;
use super::store_path::{HashPart, StoreDir, StorePath};
use crate::limits::{SEARCH_DIGITS_MIN, SEARCH_NAME_LEN_MIN};

/// Where in a base name the name begins.
const NAME_START: usize = size_of::<HashPart>() + 1;

/// What is looked for. No character of what was typed stands for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// A path by its hash part.
    Path(HashPart),
    /// Paths by how their names begin; capital letters are not told from others.
    Names {
        /// The beginning of the name.
        name: String,
        /// The same text as the beginning of a hash part, if it can be one.
        digits: Option<String>,
    },
    /// Too little was typed.
    Short,
    /// No path has such a name.
    Nothing,
}

impl Pattern {
    /// What is meant by `text`: a hash part, the base name of a path, a path or one of its files, or the beginning of a name.
    pub fn of(text: &str, store_dir: &StoreDir) -> Self {
        let text = text.trim();
        let beneath = text.strip_prefix(store_dir.as_str()).and_then(|rest| rest.strip_prefix('/'));
        let text = beneath.map_or(text, |rest| rest.split('/').next().unwrap_or_default());
        let digits = text.strip_suffix(".narinfo").unwrap_or(text);
        if let Some(hash_part) = HashPart::parse(digits.as_bytes()) {
            return Self::Path(hash_part);
        }
        if let Ok(path) = StorePath::parse_base_name(text) {
            return Self::Path(path.hash_part());
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte)) {
            return Self::Nothing;
        }
        if text.len() < SEARCH_NAME_LEN_MIN {
            return Self::Short;
        }
        let is_hash = text.len() >= SEARCH_DIGITS_MIN && text.bytes().all(base32::is_digit);
        let digits = is_hash.then(|| text.to_owned());
        Self::Names { name: text.to_owned(), digits }
    }

    /// Whether a path is one of these, by its base name.
    pub fn is_met_by(&self, base_name: &str) -> bool {
        match self {
            Self::Path(hash_part) => base_name.starts_with(hash_part.as_str()),
            Self::Names { name, digits } => {
                let begins = |rest: &[u8]| {
                    rest.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
                };
                base_name.as_bytes().get(NAME_START..).is_some_and(begins)
                    || digits.as_ref().is_some_and(|digits| base_name.starts_with(digits.as_str()))
            }
            Self::Short | Self::Nothing => false,
        }
    }
}

/// Drawn bytes are what somebody types and, on the next line, a base name. That is met if, in small letters, its name begins as what was
/// typed; and a path is found however it is typed.
#[cfg(any(test, fuzzing))]
pub fn fuzz_search(data: &[u8]) {
    let Some((typed, base_name)) = str::from_utf8(data).ok().and_then(|text| text.split_once('\n')) else {
        return;
    };
    let Ok(store_dir) = StoreDir::parse("/nix/store") else { return };
    let pattern = Pattern::of(typed, &store_dir);
    let expected = match &pattern {
        Pattern::Path(hash_part) => base_name.starts_with(hash_part.as_str()),
        Pattern::Names { name, digits } => {
            let is_hash = name.len() >= SEARCH_DIGITS_MIN && name.bytes().all(base32::is_digit);
            assert_eq!(digits.as_ref(), is_hash.then_some(name));
            assert!(name.len() >= SEARCH_NAME_LEN_MIN && typed.contains(name.as_str()));
            let small = base_name.to_ascii_lowercase().into_bytes();
            small.iter().skip(NAME_START).take(name.len()).eq(name.to_ascii_lowercase().as_bytes())
                || (is_hash && base_name.starts_with(name.as_str()))
        }
        Pattern::Short | Pattern::Nothing => false,
    };
    assert_eq!(pattern.is_met_by(base_name), expected, "{pattern:?}");

    let Ok(path) = StorePath::parse_base_name(base_name) else { return };
    let hash_part = path.hash_part();
    for typed in [
        hash_part.to_string(),
        format!("{hash_part}.narinfo"),
        base_name.to_owned(),
        path.full(&store_dir),
        format!(" {}/{typed}", path.full(&store_dir)),
    ] {
        assert_eq!(Pattern::of(&typed, &store_dir), Pattern::Path(hash_part), "{typed:?}");
    }
    for len in SEARCH_NAME_LEN_MIN..=path.name().len() {
        let pattern = Pattern::of(&path.name()[..len], &store_dir);
        // A name can look like a path.
        assert!(matches!(pattern, Pattern::Path(_)) || pattern.is_met_by(base_name), "{pattern:?}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "0c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz";

    fn pattern(text: &str) -> Pattern {
        Pattern::of(&text.replace("HASH", HASH), &StoreDir::parse("/nix/store").unwrap())
    }

    #[test]
    fn what_is_typed_is_understood() {
        for text in [
            "HASH",
            "  HASH\t",
            "HASH-hello-2.12",
            "HASH.narinfo",
            "/nix/store/HASH",
            "/nix/store/HASH-hello",
            "/nix/store/HASH-hello/bin/hello",
            "/nix/store/HASH-hello/",
        ] {
            assert_eq!(pattern(text), Pattern::Path(HashPart::parse(HASH.as_bytes()).unwrap()), "{text}");
        }
        for text in ["", " ", "a", "/nix/store/", "/nix/store/a/b"] {
            assert_eq!(pattern(text), Pattern::Short, "{text}");
        }
        for text in ["50%", "*", "a b", "a/b", "/other/HASH", "\u{e9}t\u{e9}", "a\0", "<b>", "'--"] {
            assert_eq!(pattern(text), Pattern::Nothing, "{text}");
        }
        for (text, is_hash) in [
            ("he", false),
            ("Hello-2", false),
            ("a_b?=+.", false),
            ("gcc", false),
            ("hell", false),
            ("0c8", false),
            ("0c8r", true),
            ("HASH0", true),
        ] {
            let Pattern::Names { digits, .. } = pattern(text) else { panic!("{text} is a name") };
            assert_eq!(digits.is_some(), is_hash, "{text}");
        }
    }

    #[test]
    fn names_begin_with_what_is_typed() {
        let base_name = format!("{HASH}-Hello_x-2.12");
        for text in ["he", "HELLO_", "hello_x-2.12", "0c8r", &HASH[..31]] {
            assert!(pattern(text).is_met_by(&base_name), "{text}");
        }
        for text in ["ello", "hello_x-2.12a", "hello?", "h.llo", "he_lo", "x1m5h3", "", "%"] {
            assert!(!pattern(text).is_met_by(&base_name), "{text}");
        }
        assert!(!pattern("he").is_met_by("hello") && !pattern("he").is_met_by(""));
    }

    proptest! {
        #[test]
        fn what_is_typed_finds_what_begins_with_it(typed in "\\PC{0,60}", base_name in "\\PC{0,60}") {
            fuzz_search(format!("{typed}\n{base_name}").as_bytes());
        }

        #[test]
        fn any_beginning_of_a_name_finds_it(
            hash in "[0-9a-df-np-sv-z]{32}",
            name in "[a-zA-Z0-9+_?=][a-zA-Z0-9+._?=-]{1,20}",
            typed in "[a-cA-C.]{0,3}",
            digits_len in 0..32_usize,
        ) {
            for typed in [&typed, &name.to_ascii_uppercase(), &hash[..digits_len]] {
                fuzz_search(format!("{typed}\n{hash}-{name}").as_bytes());
            }
        }
    }
}
