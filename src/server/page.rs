//! What people see who come with a browser. Every page is made of one file (`page/page.html`) that needs no other.

use std::fmt::{self, Display, Write as _};

/// The media type of a page.
pub const HTML_TYPE: &str = "text/html; charset=utf-8";

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

/// A whole page: `body` is HTML, `title` is any text.
pub fn document(title: &str, body: &str) -> String {
    const TEMPLATE: &str = include_str!("page/page.html");
    let (before, rest) = TEMPLATE.split_once("{title}").unwrap_or((TEMPLATE, ""));
    let (between, behind) = rest.split_once("{body}").unwrap_or((rest, ""));
    format!("{before}{}{between}{body}{behind}", Escaped(title))
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
}
