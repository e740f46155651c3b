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
        let text = text.strip_suffix(".narinfo").unwrap_or(text);
        if let Some(hash_part) = HashPart::parse(text.as_bytes()) {
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
            ("0c8r7p", true),
            ("HASH0", true),
        ] {
            let Pattern::Names { digits, .. } = pattern(text) else { panic!("{text} is a name") };
            assert_eq!(digits.is_some(), is_hash, "{text}");
        }
    }

    #[test]
    fn names_begin_with_what_is_typed() {
        let base_name = format!("{HASH}-Hello_x-2.12");
        for text in ["he", "HELLO_", "hello_x-2.12", "0c8r7p", &HASH[..31]] {
            assert!(pattern(text).is_met_by(&base_name), "{text}");
        }
        for text in ["ello", "hello_x-2.12a", "hello?", "h.llo", "he_lo", "x1m5h3", "", "%"] {
            assert!(!pattern(text).is_met_by(&base_name), "{text}");
        }
        assert!(!pattern("he").is_met_by("hello") && !pattern("he").is_met_by(""));
    }

    proptest! {
        #[test]
        fn any_beginning_of_a_name_finds_it(name in "[a-zA-Z0-9+_?=][a-zA-Z0-9+._?=-]{1,20}", len in 2_usize..21) {
            let base_name = format!("{HASH}-{name}");
            prop_assume!(StorePath::parse_base_name(&base_name).is_ok() && !name.ends_with(".narinfo"));
            let typed = &name[..len.min(name.len())];
            prop_assert!(pattern(typed).is_met_by(&base_name), "{} {}", typed, base_name);
        }

        #[test]
        fn nothing_typed_is_too_much(text in "\\PC{0,60}", base_name in "\\PC{0,60}") {
            pattern(&text).is_met_by(&base_name);
        }
    }
}
