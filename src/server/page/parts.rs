//! What pages have in common.

use std::borrow::Borrow;
use std::fmt::{self, Display};

use super::Escaped;
use crate::codec::http::route::encode_escapes;
use crate::codec::nar::inner_path::InnerPath;
use crate::codec::plain::is_plain;
use crate::codec::store_path::StorePath;

/// The URL of the page of a path.
pub fn path_url(path: &StorePath) -> String {
    format!("/path/{}", encode_escapes(path.base_name().as_bytes()))
}

/// The URL of what is in a store path; that of its root ends with a slash.
pub fn contents_url(path: &StorePath, inner: &InnerPath) -> String {
    let path = encode_escapes(path.base_name().as_bytes());
    format!("/serve/{path}/{}", encode_escapes(inner.as_bytes()))
}

/// A store path, which leads to its page.
#[derive(Clone, Copy, Debug)]
pub struct PathLink<'a>(pub &'a StorePath);

impl Display for PathLink<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base_name = self.0.base_name();
        write!(formatter, "<a href=\"{}\"><code>{}</code></a>", path_url(self.0), Escaped(base_name))
    }
}

/// A length as people read it.
#[derive(Clone, Copy, Debug)]
pub struct Length(pub u64);

impl Display for Length {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", indicatif::HumanBytes(self.0))
    }
}

/// Bytes that are a name or a target, whether they are text or not: what is none shows as U+FFFD, and so does what is not plain.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(pub &'a [u8]);

impl Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(self.0);
        write!(formatter, "{}", Escaped(&text.replace(|character| !is_plain(character), "\u{fffd}")))
    }
}

/// A word of a shell, whatever its characters mean to one.
pub fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// How a Nix command is told to trust these keys as well.
pub fn trust_option<K: Borrow<str>>(keys: &[K]) -> String {
    if keys.is_empty() {
        return String::new();
    }
    format!(" --extra-trusted-public-keys {}", shell_word(&keys.join(" ")))
}

/// Whom that option does not help. HTML.
pub const TRUST_WORDS: &str = "A Nix daemon takes keys from its trusted users alone: for everybody else they have to be in its \
                               <a href=\"/#use\">nix.conf</a>.";

/// A number with its noun.
pub fn count(number: u64, one: &str, more: &str) -> String {
    format!("{} {}", indicatif::HumanCount(number), if number == 1 { one } else { more })
}

/// Where a page is: what leads to the pages above it, and its own name. All of it is HTML.
pub fn breadcrumb(above: &[(String, String)], here: &str) -> String {
    let mut text = "<nav aria-label=\"Breadcrumb\"><ol>".to_owned();
    for (url, name) in above {
        text.extend(["<li><a href=\"", url, "\">", name, "</a></li>"]);
    }
    text.extend(["<li aria-current=\"page\">", here, "</li></ol></nav>\n"]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_paths_lead_to_them() {
        let path = StorePath::parse_base_name("0c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz-a+b?c=1").unwrap();
        assert_eq!(
            PathLink(&path).to_string(),
            "<a href=\"/path/0c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz-a%2Bb%3Fc%3D1\">\
             <code>0c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz-a+b?c=1</code></a>"
        );
    }

    #[test]
    fn names_that_are_hostile_or_no_text_are_shown_and_mean_nothing() {
        assert_eq!(Shown(b"<img src=x onerror=alert(1)>").to_string(), "&lt;img src=x onerror=alert(1)&gt;");
        assert_eq!(Shown(b"\xff\"'&").to_string(), "\u{fffd}&quot;&#39;&amp;");
        assert_eq!(Shown("\u{202e}txt.exe".as_bytes()).to_string(), "\u{fffd}txt.exe");
        assert_eq!(
            (count(1, "path", "paths"), count(1234, "path", "paths")),
            ("1 path".into(), "1,234 paths".into())
        );
    }
}
