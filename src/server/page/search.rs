//! The page of a search.

use std::fmt::Write as _;

use indicatif::HumanCount;

use super::parts::{PathLink, breadcrumb, count};
use super::{Escaped, shell};
use crate::codec::search::Pattern;
use crate::codec::store_path::StorePath;
use crate::limits::{SEARCH_DIGITS_MIN, SEARCH_NAME_LEN_MIN};

/// What a search has come to.
#[derive(Debug)]
pub struct Results<'a> {
    /// What was typed.
    pub text: &'a str,
    /// What that was taken for.
    pub pattern: &'a Pattern,
    /// What was found, in the order of the page.
    pub found: &'a [StorePath],
    /// Whether more was found.
    pub has_more: bool,
    /// How far it has come, if the time was up before the end.
    pub unfinished: Option<Unfinished>,
    /// How many paths are known of directories that are too large to be known whole, and of how many.
    pub too_large: Option<(u64, u64)>,
}

/// A search that has not come to its end.
#[derive(Clone, Copy, Debug)]
pub struct Unfinished {
    /// How many paths were looked at.
    pub looked_at: u64,
    /// How many there are, as far as they were counted.
    pub all: u64,
    /// Whether another search comes further, because what this one has read is kept.
    pub is_kept: bool,
}

/// The page.
pub fn page(results: &Results<'_>) -> String {
    let Results { text, pattern, found, has_more, unfinished, too_large } = results;
    let typed = Escaped(text);
    let mut body = breadcrumb(&[("/".to_owned(), "Cache".to_owned())], "Search");
    // Writing to a String cannot fail.
    let _ = write!(
        body,
        "<h1>Search</h1>\n<form action=\"/search\"><label for=\"text\">Beginning of a name or of a hash, or a store path</label>\n\
         <input id=\"text\" type=\"search\" name=\"q\" value=\"{typed}\" autocomplete=\"off\" autocapitalize=\"off\" \
         spellcheck=\"false\">\n<button>Search</button></form>\n"
    );
    let _ = match pattern {
        Pattern::Short if text.trim().is_empty() => {
            writeln!(
                body,
                "<p>Type the beginning of a package&#39;s name, {SEARCH_DIGITS_MIN} characters or more of a hash, or a store path.</p>"
            )
        }
        Pattern::Short => {
            writeln!(body, "<p role=\"status\">Type at least {SEARCH_NAME_LEN_MIN} characters.</p>")
        }
        _ if found.is_empty() => {
            let what = match (unfinished, too_large) {
                (Some(_), _) => "Nothing was found yet",
                (None, Some(_)) => "There is no such path among those that are known",
                (None, None) => "There is no such path here",
            };
            let how = match pattern {
                Pattern::Nothing => {
                    " No path is called that: it is too long, or has characters that are in no name."
                        .to_owned()
                }
                Pattern::Names { .. } => format!(
                    " Names are found by how they begin, and hashes by their first {SEARCH_DIGITS_MIN} characters or more."
                ),
                Pattern::Path(_) | Pattern::Short => String::new(),
            };
            writeln!(body, "<p role=\"status\">{what}: <code>{typed}</code>{how}</p>")
        }
        _ => {
            let found_count = count(found.len() as u64, "path", "paths");
            let more = if *has_more { ", and there are more: type more of the name" } else { "" };
            writeln!(body, "<p role=\"status\">{found_count}{more}.</p>")
        }
    };
    if let Some(Unfinished { looked_at, all, is_kept }) = unfinished {
        let of_all = if all > looked_at { format!(" of {}", HumanCount(*all)) } else { String::new() };
        let advice =
            if *is_kept { "Search again to go on." } else { "The others can be found by their hashes." };
        let _ = writeln!(
            body,
            "<p role=\"status\">The time of this search was up: it has looked at {}{of_all} paths so far. {advice}</p>",
            HumanCount(*looked_at),
        );
    }
    if let Some((known, all)) = too_large {
        let _ = writeln!(
            body,
            "<p role=\"status\">This cache is too large to be searched whole: {} of {} in its largest \
             directories are known by their names.</p>",
            HumanCount(*known),
            count(*all, "path", "paths")
        );
    }
    if !found.is_empty() {
        body.push_str("<ul>\n");
        for path in *found {
            let _ = writeln!(body, "<li>{}</li>", PathLink(path));
        }
        body.push_str("</ul>\n");
    }
    let title = if text.trim().is_empty() { "Search".to_owned() } else { format!("{text} – search") };
    // The field to search in is that of this page.
    shell(&title, &body, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::store_path::StoreDir;

    fn shown(text: &str, found: &[&str], has_more: bool, unfinished: Option<Unfinished>) -> String {
        let pattern = Pattern::of(text, &StoreDir::parse("/nix/store").unwrap());
        let found: Vec<_> = found
            .iter()
            .map(|name| StorePath::parse_base_name(&format!("{}-{name}", "0".repeat(32))).unwrap())
            .collect();
        page(&Results { text, pattern: &pattern, found: &found, has_more, unfinished, too_large: None })
    }

    #[test]
    fn what_was_typed_is_shown_and_means_nothing() {
        let text = shown("\"><script>alert(1)</script>", &[], false, None);
        assert!(
            text.contains("value=\"&quot;&gt;&lt;script&gt;") && !text.contains("<script>alert"),
            "{text}"
        );
        assert!(text.contains("There is no such path here") && text.contains("No path is called that"));
        let text = shown("llo", &[], false, None);
        assert!(text.contains("Names are found by how they begin, and hashes by their first 4"), "{text}");
    }

    #[test]
    fn what_was_found_is_counted_and_linked() {
        let text = shown("he", &["hello", "help"], true, None);
        assert!(text.contains("2 paths, and there are more"), "{text}");
        assert!(text.contains(&format!("<li><a href=\"/path/{}-help\">", "0".repeat(32))));
        assert!(shown("he", &["hello"], false, None).contains("1 path."));
    }

    #[test]
    fn what_a_search_has_not_done_is_said() {
        assert!(shown("", &[], false, None).contains("Type the beginning"));
        assert!(shown("h", &[], false, None).contains("at least 2 characters"));
        for (is_kept, advice) in [(true, "Search again to go on"), (false, "found by their hashes")] {
            let unfinished = Unfinished { looked_at: 1000, all: 20_000, is_kept };
            let text = shown("he", &[], false, Some(unfinished));
            for words in ["1,000 of 20,000 paths", "Nothing was found yet", advice] {
                assert!(text.contains(words), "{words} is not in {text}");
            }
        }
        let pattern = Pattern::of("he", &StoreDir::parse("/nix/store").unwrap());
        let too_large = Some((1000, 20_000));
        let text = page(&Results {
            text: "he",
            pattern: &pattern,
            found: &[],
            has_more: false,
            unfinished: None,
            too_large,
        });
        assert!(text.contains("1,000 of 20,000 paths") && !text.contains("Search again"), "{text}");
    }
}
