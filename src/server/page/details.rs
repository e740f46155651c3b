//! The page of a store path.

use std::fmt::Write as _;

use super::parts::{
    Length, PathLink, TRUST_WORDS, breadcrumb, contents_url, count, shell_word, trust_option,
};
use super::{Escaped, document};
use crate::codec::http::date::format_imf_fixdate;
use crate::codec::http::route::{Route, encode_escapes};
use crate::codec::nar::inner_path::InnerPath;
use crate::codec::narinfo::{Compression, NarInfo, PathInfo};
use crate::codec::store_path::{StoreDir, StorePath};
use crate::limits::REFERENCES_SHOWN_MAX;

/// What the page says.
#[derive(Debug)]
pub struct Details<'a> {
    /// The path.
    pub narinfo: &'a NarInfo,
    /// Where paths are.
    pub store_dir: &'a StoreDir,
    /// The URL of this cache.
    pub base_url: &'a str,
    /// The keys that paths are signed with here.
    pub public_keys: &'a [String],
    /// When it was registered, where that is known. Seconds since 1970.
    pub registered_s: Option<u64>,
    /// How many paths it needs, itself included, and the length of their NARs in bytes, where that is known.
    pub closure: Option<(u64, u64)>,
    /// What refers to it.
    pub referrers: &'a Referrers,
    /// Whether what it was made by is here.
    pub has_deriver: bool,
    /// The derivation whose build log is here: that which it was made by, or it itself.
    pub logged: Option<&'a StorePath>,
}

/// What refers to a path, itself excepted.
#[derive(Debug, Default)]
pub struct Referrers {
    /// Those that are shown, by name.
    pub paths: Vec<StorePath>,
    /// How many there are.
    pub count: u64,
    /// Whether there may be more of them than that.
    pub may_be_more: bool,
}

/// The page.
pub fn page(details: &Details<'_>) -> String {
    let Details { narinfo, store_dir, .. } = details;
    let path = &narinfo.info.path;
    let (full, hash_part) = (path.full(store_dir), path.hash_part());
    let contents_url = contents_url(path, &InnerPath::default());
    let above = [("/".to_owned(), "Cache".to_owned()), ("/search".to_owned(), "Search".to_owned())];
    let mut body = breadcrumb(&above, &Escaped(path.name()).to_string());
    // Writing to a String cannot fail.
    let _ = write!(
        body,
        "<h1>{}</h1>\n<p><code>{}</code></p>\n<ul>\n<li><a href=\"{contents_url}\">Contents</a></li>\n\
         <li><a href=\"/{hash_part}.narinfo\">narinfo</a></li>\n\
         <li><a href=\"/{hash_part}.narinfo?json\">narinfo as JSON</a></li>\n",
        Escaped(path.name()),
        Escaped(&full),
    );
    if let Some(link) = nar_link(&narinfo.url) {
        let _ = writeln!(body, "<li><a href=\"{}\">NAR</a></li>", Escaped(&link));
    }
    if let Some(derivation) = details.logged {
        let name = encode_escapes(derivation.base_name().as_bytes());
        let _ = writeln!(body, "<li><a href=\"/log/{name}\">Build log</a></li>");
    }
    body.push_str("</ul>\n");
    get_it(&mut body, details);
    body.push_str("<h2>Facts</h2>\n<dl>\n");
    for (term, value) in facts(details) {
        let _ = writeln!(body, "<div><dt>{term}</dt><dd>{value}</dd></div>");
    }
    body.push_str("</dl>\n");
    references(&mut body, narinfo);
    referrers(&mut body, details);
    document(path.name(), &body)
}

/// The commands that bring a path from here, as they work for who does not trust this cache yet.
fn get_it(body: &mut String, details: &Details<'_>) {
    let Details { narinfo, store_dir, base_url, public_keys, .. } = details;
    let PathInfo { path, signatures, ca, .. } = &narinfo.info;
    let is_signed_with = |key: &&String| {
        let key_name = key.split(':').next();
        signatures.iter().any(|signature| Some(signature.key_name.as_str()) == key_name)
    };
    let keys: Vec<_> = public_keys.iter().filter(is_signed_with).map(String::as_str).collect();
    let trust = trust_option(&keys);
    let (base, full) = (shell_word(base_url), shell_word(&path.full(store_dir)));
    let is_derivation = path.is_derivation();
    // Without this word its outputs would be meant, and to realise it is to build them.
    let word = if is_derivation { " --derivation" } else { "" };
    let mut commands = vec![format!("nix copy{word} --from {base}{trust} {full}")];
    if !is_derivation {
        commands.push(format!("nix-store -r {full} --option substituters {base}{trust}"));
    }
    body.push_str("<h2>Get it</h2>\n");
    for command in commands {
        // Writing to a String cannot fail.
        let _ = writeln!(body, "<pre><code>{}</code></pre>", Escaped(&command));
    }
    if !keys.is_empty() {
        let _ = writeln!(body, "<p>{TRUST_WORDS}</p>");
    } else if signatures.is_empty() && ca.is_none() {
        body.push_str(
            "<p>It is not signed, so Nix takes it from trusted users alone, who say <code>--option require-sigs false</code>.</p>\n",
        );
    }
}

/// Where the NAR is in this cache, as a link. A narinfo that somebody uploaded may say anything, also what browsers take for another host;
/// that is none.
pub fn nar_link(url: &str) -> Option<String> {
    let target = format!("/{url}");
    matches!(Route::parse(target.as_bytes()), Route::Nar(_) | Route::NarFile(_)).then_some(target)
}

/// Terms and what they are; the second is HTML.
fn facts(details: &Details<'_>) -> Vec<(&'static str, String)> {
    let NarInfo { info, compression, file_hash, file_size, .. } = details.narinfo;
    let code = |text: &str| format!("<code>{}</code>", Escaped(text));
    let bytes = |len| match count(len, "byte", "bytes") {
        all if len < 1024 => all,
        all => format!("{} ({all})", Length(len)),
    };
    let mut facts = vec![("NAR hash", code(&info.nar_hash.to_string())), ("NAR size", bytes(info.nar_size))];
    if *compression != Compression::None {
        facts.push(("Compression", code(compression.as_str())));
        facts.extend(file_hash.map(|hash| ("File hash", code(&hash.to_string()))));
        facts.extend(file_size.map(|size| ("File size", bytes(size))));
    }
    if let Some((paths, nar_size)) = details.closure {
        facts.push(("Closure", format!("{}, {}", count(paths, "path", "paths"), bytes(nar_size))));
    }
    facts.extend(info.deriver.as_ref().map(|deriver| {
        let is_here = details.has_deriver;
        ("Deriver", if is_here { PathLink(deriver).to_string() } else { code(deriver.base_name()) })
    }));
    facts.extend(info.ca.as_deref().map(|ca| ("Content address", code(ca))));
    facts.extend(info.signatures.iter().map(|signature| ("Signature", code(&signature.to_string()))));
    if info.signatures.is_empty() {
        facts.push(("Signature", "not signed".to_owned()));
    }
    if let Some(registered_s) = details.registered_s {
        let date = format_imf_fixdate(registered_s);
        facts.push(("Registered", String::from_utf8_lossy(&date).into_owned()));
    }
    facts
}

fn references(body: &mut String, narinfo: &NarInfo) {
    let references = &narinfo.info.references;
    let _ = writeln!(body, "<h2>References ({})</h2>", references.len());
    if references.is_empty() {
        body.push_str("<p>It refers to nothing.</p>\n");
    }
    list(body, references.iter().take(REFERENCES_SHOWN_MAX), &narinfo.info.path);
    if let Some(more @ 1..) = references.len().checked_sub(REFERENCES_SHOWN_MAX) {
        let _ = writeln!(body, "<p>and {} more</p>", indicatif::HumanCount(more as u64));
    }
}

fn referrers(body: &mut String, details: &Details<'_>) {
    let Referrers { paths, count, may_be_more } = details.referrers;
    let least = if *may_be_more { "at least " } else { "" };
    let _ = writeln!(body, "<h2>Referrers ({least}{})</h2>", indicatif::HumanCount(*count));
    if paths.is_empty() {
        let known = if *may_be_more {
            "Nothing that was looked at so far refers to it."
        } else {
            "Nothing refers to it."
        };
        let _ = writeln!(body, "<p>{known}</p>");
    } else {
        let _ = writeln!(body, "<ul>");
        for path in paths {
            let _ = writeln!(body, "<li>{}</li>", PathLink(path));
        }
        body.push_str("</ul>\n");
    }
    if let Some(more @ 1..) = count.checked_sub(paths.len() as u64) {
        let full = details.narinfo.info.path.full(details.store_dir);
        let command = format!("nix-store --query --referrers {}", shell_word(&full));
        // Nix knows that of a store alone.
        let how = details.registered_s.map_or_else(String::new, |_| {
            format!(": on the machine of this cache <code>{}</code> lists all", Escaped(&command))
        });
        let _ = writeln!(body, "<p>and {least}{} more{how}</p>", indicatif::HumanCount(more));
    }
}

fn list<'a>(body: &mut String, paths: impl Iterator<Item = &'a StorePath>, itself: &StorePath) {
    let mut paths = paths.peekable();
    if paths.peek().is_none() {
        return;
    }
    body.push_str("<ul>\n");
    for path in paths {
        let remark = if path == itself { " (itself)" } else { "" };
        let _ = writeln!(body, "<li>{}{remark}</li>", PathLink(path));
    }
    body.push_str("</ul>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::hash::Sha256Digest;
    use crate::codec::signature::{KeyName, Signature};

    fn path(number: usize, name: &str) -> StorePath {
        StorePath::parse_base_name(&format!("{number:032}-{name}")).unwrap()
    }

    fn narinfo() -> NarInfo {
        let info = PathInfo {
            path: path(1, "hello-2.12"),
            nar_hash: Sha256Digest([5; 32]),
            nar_size: 3_145_728,
            references: vec![path(1, "hello-2.12"), path(2, "glibc")],
            deriver: Some(path(3, "hello-2.12.drv")),
            signatures: Vec::new(),
            ca: Some("text:<b>".to_owned()),
        };
        NarInfo::new(info, "nar/x.nar.xz".to_owned(), Compression::Xz, Sha256Digest([6; 32]), 1024)
    }

    fn shown(narinfo: &NarInfo, referrers: &Referrers, has_log: bool) -> String {
        page(&Details {
            narinfo,
            store_dir: &StoreDir::parse("/nix/store").unwrap(),
            base_url: "https://[2001:db8::1]",
            public_keys: &["own-1:AAAA=".to_owned(), "other-1:BBBB=".to_owned()],
            registered_s: Some(784_111_777),
            closure: Some((2, 4096)),
            referrers,
            has_deriver: has_log,
            logged: narinfo.info.deriver.as_ref().filter(|_| has_log),
        })
    }

    #[test]
    fn all_that_is_known_is_there_once() {
        let text = shown(&narinfo(), &Referrers::default(), true);
        let path = format!("{:032}-hello-2.12", 1);
        for part in [
            "<h1>hello-2.12</h1>",
            &format!("nix copy --from &#39;https://[2001:db8::1]&#39; &#39;/nix/store/{path}&#39;</code>"),
            &format!(
                "nix-store -r &#39;/nix/store/{path}&#39; --option substituters &#39;https://[2001:db8::1]&#39;</code>"
            ),
            &format!("href=\"/serve/{path}/\""),
            "href=\"/nar/x.nar.xz\"",
            &format!("href=\"/log/{:032}-hello-2.12.drv\"", 3),
            &format!("<dt>Deriver</dt><dd><a href=\"/path/{:032}-hello-2.12.drv\">", 3),
            "<dd>3.00 MiB (3,145,728 bytes)</dd>",
            "<dd>1.00 KiB (1,024 bytes)</dd>",
            "<dd>2 paths, 4.00 KiB (4,096 bytes)</dd>",
            "<dt>Signature</dt><dd>not signed</dd>",
            "<code>text:&lt;b&gt;</code>",
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "</a> (itself)</li>",
            "<h2>References (2)</h2>",
            "<h2>Referrers (0)</h2>",
        ] {
            assert_eq!(text.matches(part).count(), 1, "{part} in {text}");
        }
        let text = shown(&narinfo(), &Referrers::default(), false);
        assert!(!text.contains("/log/") && text.contains("<dt>Deriver</dt><dd><code>"), "{text}");
    }

    #[test]
    fn commands_name_the_keys_of_this_cache_that_have_signed_the_path() {
        let mut signed = narinfo();
        assert!(!shown(&signed, &Referrers::default(), false).contains("trusted-public-keys"));
        let signature = |key: &str| Signature { key_name: KeyName::parse(key).unwrap(), bytes: [1; 64] };
        signed.info.signatures = vec![signature("own-1"), signature("cache.nixos.org-1")];
        let text = shown(&signed, &Referrers::default(), false);
        let option = " --extra-trusted-public-keys &#39;own-1:AAAA=&#39;";
        assert_eq!(text.matches(option).count(), 2, "{text}");
        assert!(!text.contains("BBBB") && text.contains("trusted users"), "{text}");
    }

    #[test]
    fn a_length_that_is_read_at_once_is_said_once() {
        let mut small = narinfo();
        small.info.nar_size = 224;
        let text = shown(&small, &Referrers::default(), false);
        assert!(text.contains("<dt>NAR size</dt><dd>224 bytes</dd>"), "{text}");
    }

    #[test]
    fn who_cannot_check_a_path_is_told_what_nix_wants() {
        let mut unsigned = narinfo();
        assert!(
            !shown(&unsigned, &Referrers::default(), false).contains("require-sigs"),
            "its contents make its name"
        );
        unsigned.info.ca = None;
        assert!(shown(&unsigned, &Referrers::default(), false).contains("--option require-sigs false"));
    }

    #[test]
    fn a_derivation_is_copied_and_not_built() {
        let mut derivation = narinfo();
        derivation.info.path = path(1, "hello-2.12.drv");
        let text = shown(&derivation, &Referrers::default(), false);
        assert!(text.contains("nix copy --derivation --from ") && !text.contains("nix-store -r"), "{text}");
    }

    #[test]
    fn long_lists_are_cut_and_say_so() {
        let mut many = narinfo();
        many.info.references = (2..REFERENCES_SHOWN_MAX + 1237).map(|number| path(number, "a")).collect();
        let referrers =
            Referrers { paths: vec![path(8, "z"), path(9, "z")], count: 100_002, may_be_more: true };
        let text = shown(&many, &referrers, false);
        assert!(
            text.contains("<p>and 1,235 more</p>") && text.contains("<p>and at least 100,000 more: on the machine of this cache <code>nix-store --query --referrers "),
            "{text}"
        );
        assert_eq!(text.matches("-a</code>").count(), REFERENCES_SHOWN_MAX);
    }

    #[test]
    fn a_link_to_a_nar_is_no_script() {
        for (url, expected) in [
            ("nar/a.nar", Some("/nar/a.nar")),
            ("nar/a.nar.zst", Some("/nar/a.nar.zst")),
            ("/nar/a.nar", None),
            ("/evil.example/nar", None),
            ("\\evil.example/nar", None),
            ("nar/../../a.nar", None),
            ("javascript:alert(1)", None),
            ("https://a/b", None),
        ] {
            assert_eq!(nar_link(url).as_deref(), expected, "{url}");
        }
    }
}
