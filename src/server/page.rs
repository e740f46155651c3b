//! What people see who come with a browser. Every page is made of one file (`page/page.html`) that needs no other.
//!
//! Nothing on a page runs but the one script of that file, and nothing is loaded from elsewhere: the policy that goes with each page
//! names script and style by their hashes, so that what gets onto a page in any other way stays text.

pub mod browse;
pub mod details;
pub mod index;
pub mod parts;
pub mod search;

use std::fmt::{self, Display, Write as _};
use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest as _, Sha256};

use crate::codec::http::Status;
use crate::codec::http::response::{CacheControl, Fields};
use crate::codec::http::route::Look;
use crate::ring::service::{Reply, ReplyBody};

/// The media type of a page.
pub const HTML_TYPE: &str = "text/html; charset=utf-8";

const TEMPLATE: &str = include_str!("page/page.html");

/// What may stand on a page or in an attribute, whatever it is made of: no character of it means anything to a browser.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => formatter.write_str("&amp;"),
                '<' => formatter.write_str("&lt;"),
                '>' => formatter.write_str("&gt;"),
                '"' => formatter.write_str("&quot;"),
                '\'' => formatter.write_str("&#39;"),
                other => formatter.write_char(other),
            }?;
        }
        Ok(())
    }
}

/// A whole page with a field to search in: `body` is HTML, `title` is any text.
pub fn document(title: &str, body: &str) -> String {
    shell(title, body, true)
}

/// What is shown in the place of what is not there, with a field to search in if there is a search.
pub fn missing(look: Option<&Look>, has_search: bool) -> String {
    let words = match look {
        Some(Look::Contents(request)) if !request.path.is_root() => format!(
            "There is nothing of that name in <a href=\"/serve/{}/?listing\">this store path</a>, or the path itself is not here.",
            request.hash_part
        ),
        None => "This cache has no such page.".to_owned(),
        Some(_) => "This cache has no such path. It may have been deleted.".to_owned(),
    };
    let body = format!("<h1>Not found</h1>\n<p>{words}</p>\n<p><a href=\"/\">What this cache is</a></p>\n");
    shell("Not found", &body, has_search)
}

/// The same, or one without that field where there is nothing to search.
fn shell(title: &str, body: &str, has_search: bool) -> String {
    let (head, rest) = split(TEMPLATE, "<!--title-->");
    let (header, _, rest) = part(rest, "search");
    let (before_body, rest) = split(rest, "<!--body-->");
    let (footer, _, script) = part(rest, "live");
    let (title, search) = (Escaped(title), if has_search { part(TEMPLATE, "search").1 } else { "" });
    format!("{head}{title}{header}{search}{before_body}{body}{footer}{script}")
}

/// Figures that the script of the page fills in; they are hidden until it runs.
fn live_figures() -> &'static str {
    part(TEMPLATE, "live").1
}

/// What stands before, in and behind the part of this name.
fn part<'a>(text: &'a str, name: &str) -> (&'a str, &'a str, &'a str) {
    let (before, rest) = split(text, &format!("<!--{name}-->"));
    let (within, behind) = split(rest, &format!("<!--/{name}-->"));
    (before, within, behind)
}

/// What stands before and behind `mark`.
fn split<'a>(text: &'a str, mark: &str) -> (&'a str, &'a str) {
    text.split_once(mark).unwrap_or((text, ""))
}

/// The answer that is this page, with these fields.
pub fn reply(status: Status, fields: Fields, document: String) -> Reply {
    let fields = fields.content_length(document.len() as u64).finish();
    Reply { status, fields, body: ReplyBody::Bytes(document.into()) }
}

/// What is said with every page, but for its length.
pub fn fields() -> Fields {
    guards().content_type(HTML_TYPE).cache_control(CacheControl::NoStore)
}

/// What keeps a page from doing what it is not meant to do.
pub fn guards() -> Fields {
    static POLICY: LazyLock<String> = LazyLock::new(policy);
    Fields::new().content_security_policy(&POLICY).no_sniff().referrer_policy("no-referrer")
}

/// The script and the style of the template, and nothing else.
fn policy() -> String {
    let hash = |element: &str| {
        let (_, rest) = split(TEMPLATE, &format!("<{element}>"));
        BASE64_STANDARD.encode(Sha256::digest(split(rest, &format!("</{element}>")).0))
    };
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_escaped_means_anything() {
        let text = document("<a & b>", "<p>body</p>");
        assert!(text.contains("<title>&lt;a &amp; b&gt;</title>") && text.contains("<p>body</p>"), "{text}");
        assert_eq!(Escaped("\"'").to_string(), "&quot;&#39;");
    }

    #[test]
    fn the_template_has_each_mark_once_and_one_script_and_style() {
        for mark in [
            "<!--title-->",
            "<!--body-->",
            "<!--search-->",
            "<!--/search-->",
            "<!--live-->",
            "<!--/live-->",
            "<script",
            "<style",
        ] {
            assert_eq!(TEMPLATE.matches(mark).count(), 1, "{mark}");
        }
        // What the policy forbids would be an error in the console.
        for forbidden in [" style=", " onclick=", " src=", "@import", "url(", "https://"] {
            assert!(!TEMPLATE.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn a_page_without_a_search_has_no_trace_of_it() {
        assert!(document("a", "b").contains("<form"));
        let text = shell("a", "b", false);
        for mark in ["<form", "<!--", "<!--title-->", "<!--body-->", "id=\"live\""] {
            assert!(!text.contains(mark), "{mark} is in {text}");
        }
        assert!(live_figures().contains("id=\"live\""));
    }

    #[test]
    fn a_page_may_run_the_script_of_the_template_and_nothing_else() {
        let policy = policy();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        // The hash of nothing would be that of a template without script, or without style.
        assert!(!policy.contains("47DEQpj8HBSa"), "{policy}");
        let reply = reply(Status::Ok, fields(), document("a", "b"));
        let fields = std::str::from_utf8(&reply.fields).unwrap();
        for field in ["no-store", "Content-Length: ", "nosniff", "Referrer-Policy: no-referrer", &policy] {
            assert!(fields.contains(field), "{field} is not in {fields}");
        }
    }
}
