//! Pages of what is in a store path: a directory, a link that leads nowhere, a file that is too long to be taken out of its NAR.

use std::fmt::Write as _;

use super::parts::{Length, Shown, breadcrumb, contents_url, count, path_url};
use super::{Escaped, document};
use crate::codec::http::route::encode_escapes;
use crate::codec::nar::find::{Listed, ListedKind};
use crate::codec::nar::inner_path::InnerPath;
use crate::codec::store_path::{StoreDir, StorePath};

/// Where a page is.
#[derive(Clone, Copy, Debug)]
pub struct Spot<'a> {
    /// Where paths are.
    pub store_dir: &'a StoreDir,
    /// The store path.
    pub path: &'a StorePath,
    /// Where in it.
    pub inner: &'a InnerPath,
}

impl Spot<'_> {
    /// The store path, and what leads to the place in it. HTML.
    fn shown(&self) -> String {
        let slash = if self.inner.is_root() { "" } else { "/" };
        format!("{}{slash}{}", Escaped(&self.path.full(self.store_dir)), Shown(self.inner.as_bytes()))
    }

    fn title(&self) -> String {
        let last = self.inner.last().map(String::from_utf8_lossy);
        format!("{} – {}", last.as_deref().unwrap_or("contents"), self.path.name())
    }

    /// A page that begins with where it is.
    fn page(&self, body: &str) -> String {
        let names: Vec<_> = self.inner.names().collect();
        let mut above = vec![
            ("/".to_owned(), "Cache".to_owned()),
            (path_url(self.path), Escaped(self.path.name()).to_string()),
        ];
        let mut url = contents_url(self.path, &InnerPath::default());
        let mut here = "contents".to_owned();
        for name in names {
            above.push((url.clone(), here));
            let _ = write!(url, "{}/", encode_escapes(name));
            here = Shown(name).to_string();
        }
        let head = breadcrumb(&above, &here);
        document(&self.title(), &format!("{head}<h1><code>{}</code></h1>\n{body}", self.shown()))
    }
}

/// The page of a directory of `all` entries, of which these are the first; `is_listed` if the others are found in the listing of the path.
pub fn directory(spot: &Spot<'_>, entries: &[Listed], all: u64, is_listed: bool) -> String {
    let mut body = format!(
        "<table>\n<caption>{}</caption>\n<thead><tr><th scope=\"col\">Name</th><th scope=\"col\">Type</th>\
         <th scope=\"col\">Size</th></tr></thead>\n<tbody>\n",
        count(all, "entry", "entries")
    );
    for Listed { name, kind } in entries {
        let (slash, what, size) = match kind {
            ListedKind::Directory => ("/", "directory".to_owned(), String::new()),
            ListedKind::Regular { executable: true, size } => {
                ("", "executable".to_owned(), Length(*size).to_string())
            }
            ListedKind::Regular { size, .. } => ("", "file".to_owned(), Length(*size).to_string()),
            ListedKind::Symlink { target } => {
                ("", format!("link to <code>{}</code>", Shown(target)), String::new())
            }
        };
        // Relative to the page, whose URL ends with a slash; escaped, so that none begins with a scheme.
        let url = encode_escapes(name);
        // Writing to a String cannot fail.
        let _ = writeln!(
            body,
            "<tr><th scope=\"row\"><a href=\"{url}{slash}\">{}{slash}</a></th><td>{what}</td><td class=\"size\">{size}</td></tr>",
            Shown(name)
        );
    }
    body.push_str("</tbody>\n</table>\n");
    if let Some(more @ 1..) = all.checked_sub(entries.len() as u64) {
        let hash_part = spot.path.hash_part();
        let listing = if is_listed {
            format!(": all are in <a href=\"/{hash_part}.ls\">the listing of the path</a>, as JSON")
        } else {
            String::new()
        };
        let _ = writeln!(body, "<p>and {} more{listing}</p>", indicatif::HumanCount(more));
    }
    spot.page(&body)
}

/// The page of a link that leads out of the store.
pub fn link(spot: &Spot<'_>, target: &[u8]) -> String {
    let target = Shown(target);
    spot.page(&format!(
        "<p>This is a link, which leads to no other place in the store: <code>{target}</code></p>\n"
    ))
}

/// The page in the place of what is not taken out of its NAR.
pub fn too_much(spot: &Spot<'_>, nar_url: &str) -> String {
    let url = Escaped(nar_url);
    spot.page(&format!(
        "<p>This is too much to be taken out of a compressed NAR for a browser. <a href=\"{url}\">Fetch the NAR</a>, or copy the \
         path with Nix.</p>\n"
    ))
}

/// The page in the place of what was not found in time.
pub fn too_slow(spot: &Spot<'_>, nar_url: &str) -> String {
    let url = Escaped(nar_url);
    spot.page(&format!(
        "<p>To look for this here takes too long at the moment: so much is in this path. Try again later, \
         <a href=\"{url}\">fetch the NAR</a>, or copy the path with Nix.</p>\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &[u8] = b"<img src=x onerror=alert(1)>";

    fn show(names: &[&[u8]], show: impl Fn(&Spot<'_>) -> String) -> String {
        let mut inner = InnerPath::default();
        for name in names {
            inner.push(name).unwrap();
        }
        let path = StorePath::parse_base_name("0c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz-a+b").unwrap();
        show(&Spot { store_dir: &StoreDir::parse("/nix/store").unwrap(), path: &path, inner: &inner })
    }

    #[test]
    fn names_stay_text_wherever_they_stand() {
        let hostile =
            [IMAGE.to_vec(), b"\"><script>".to_vec(), b"javascript:alert(1)".to_vec(), b"\xff".to_vec()];
        let entries: Vec<_> = hostile
            .iter()
            .flat_map(|name| {
                let kinds = [ListedKind::Directory, ListedKind::Symlink { target: name.clone() }];
                kinds.map(|kind| Listed { name: name.clone(), kind })
            })
            .collect();
        for name in &hostile {
            for text in [
                show(&[name, b"x"], |spot| directory(spot, &entries, 8, false)),
                show(&[b"x", name], |spot| link(spot, name)),
                show(&[name], |spot| too_much(spot, "/nar/\"><script>")),
            ] {
                let body = text.split_once("<main").unwrap().1.split_once("</main>").unwrap().0;
                assert!(
                    !body.contains("<img") && !body.contains("<script") && !body.contains("\"javascript:"),
                    "{body}"
                );
            }
        }
        let text = show(&[], |spot| directory(spot, &entries, 8, false));
        assert!(text.contains("href=\"%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E/\""), "{text}");
        assert!(
            text.contains("<a href=\"%FF/\">\u{fffd}/</a>")
                && text.contains("href=\"javascript%3Aalert%281%29\"")
        );
    }

    #[test]
    fn a_listing_says_what_things_are_and_where_it_is() {
        let entries = [
            Listed { name: b"bin".to_vec(), kind: ListedKind::Directory },
            Listed { name: b"run".to_vec(), kind: ListedKind::Regular { executable: true, size: 2048 } },
            Listed { name: b"words".to_vec(), kind: ListedKind::Regular { executable: false, size: 1 } },
            Listed { name: b"z".to_vec(), kind: ListedKind::Symlink { target: b"../a&b".to_vec() } },
        ];
        let text = show(&[b"a b", b"c"], |spot| directory(spot, &entries, 1004, false));
        let root = "/serve/0c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz-a%2Bb/";
        for part in [
            "<caption>1,004 entries</caption>",
            "<a href=\"bin/\">bin/</a></th><td>directory</td><td class=\"size\"></td>",
            "<a href=\"run\">run</a></th><td>executable</td><td class=\"size\">2.00 KiB</td>",
            "<td>file</td><td class=\"size\">1 B</td>",
            "<td>link to <code>../a&amp;b</code></td>",
            "<p>and 1,000 more</p>",
            "<li><a href=\"/path/0c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz-a%2Bb\">a+b</a></li>",
            &format!("<li><a href=\"{root}\">contents</a></li>"),
            &format!("<li><a href=\"{root}a%20b/\">a b</a></li>"),
            "<li aria-current=\"page\">c</li>",
            "<h1><code>/nix/store/0c8r7p9x1m5h3fya2d4g6jbk7lnqsvwz-a+b/a b/c</code></h1>",
        ] {
            assert_eq!(text.matches(part).count(), 1, "{part} in {text}");
        }
    }
}
