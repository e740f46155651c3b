//! `/`: what this cache is, and how to use it.
//!
//! Made once for each change of the rules. Only where the cache is, which each client sees in its own way, is put in when it is asked for.

use std::fmt::{self, Display, Write as _};
use std::net::Ipv6Addr;

use super::parts::{TRUST_WORDS, trust_option};
use super::{Escaped, fields, live_figures, reply, shell};
use crate::codec::http::Status;
use crate::codec::http::field::names_media_type;
use crate::codec::http::request::Request;
use crate::codec::http::response::Fields;
use crate::codec::store_path::StoreDir;
use crate::limits::{HOST_LABEL_LEN_MAX, HOST_LEN_MAX};
use crate::ring::service::Reply;

/// Stand for [`BaseUrl`] and [`BaseUrl::machine`] until a request comes. No text has them.
const URL: &str = "\u{1}";
const MACHINE: &str = "\u{2}";

/// What a cache is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Where its paths belong.
    pub store_dir: StoreDir,
    /// Its `Priority`; `None` where a directory says that itself.
    pub priority: Option<u32>,
    /// The keys that its paths are signed with, as far as it knows.
    pub public_keys: Vec<String>,
    /// Whether reading needs a token.
    pub is_private: bool,
    /// Who may upload.
    pub uploads: UploadPolicy,
    /// Whether its paths can be searched and looked into.
    pub is_browsable: bool,
}

/// Who may upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadPolicy {
    /// Nobody.
    Nobody,
    /// Who has a token for it.
    WithToken,
    /// Everybody who can connect.
    Everybody,
}

/// What `/` says, but for where it is.
#[derive(Debug, Default)]
pub struct Index {
    text: String,
    html: String,
    public_keys: Vec<String>,
}

impl Index {
    /// What there is to say of a cache.
    pub fn new(profile: &Profile) -> Self {
        Self {
            text: text(profile),
            html: shell("Nix binary cache", &html(profile), profile.is_browsable),
            public_keys: profile.public_keys.clone(),
        }
    }

    /// The keys that it names.
    pub fn public_keys(&self) -> &[String] {
        &self.public_keys
    }

    /// A page for who asks for one, as browsers do, and a text for everybody else.
    pub fn reply(&self, request: &Request<'_>, base_url: &BaseUrl) -> Reply {
        let at = |template: &str| {
            template.replace(URL, &base_url.to_string()).replace(MACHINE, base_url.machine())
        };
        if names_media_type(request.accept, "text/html") {
            return reply(Status::Ok, fields().vary("Accept"), at(&self.html));
        }
        Reply::text_with(Status::Ok, Fields::new().vary("Accept"), at(&self.text))
    }
}

/// Where a client reaches this cache. Made of characters that mean nothing to HTML, to Nix or to a shell, but for the brackets around an
/// address, which both programs want in quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    scheme: &'static str,
    authority: String,
}

/// Where the client that sends `request` reaches this cache: what a proxy says of that, if it is trusted, else what the client has written.
pub fn base_url(request: &Request<'_>, is_proxy_trusted: bool) -> BaseUrl {
    let of_proxy = |value: Option<_>| value.filter(|_| is_proxy_trusted).map(last_of_list);
    let is_secure =
        of_proxy(request.x_forwarded_proto).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"https"));
    let authority = of_proxy(request.x_forwarded_host).or(request.host).and_then(authority);
    BaseUrl {
        scheme: if is_secure { "https" } else { "http" },
        authority: authority.unwrap_or("THIS-HOST:PORT").to_owned(),
    }
}

impl BaseUrl {
    /// The name of the machine, as a netrc file has it.
    pub fn machine(&self) -> &str {
        match self.authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => self.authority.split(':').next().unwrap_or_default(),
        }
    }
}

impl Display for BaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}", self.scheme, self.authority)
    }
}

/// The last member of a list, which the nearest proxy has written.
fn last_of_list(list: &[u8]) -> &[u8] {
    list.rsplit(|&byte| byte == b',').next().unwrap_or_default().trim_ascii()
}

/// A name or an address, and perhaps a port, if it is one that machines really have; what a URI allows besides is for no good.
fn authority(value: &[u8]) -> Option<&str> {
    let text = str::from_utf8(value).ok()?;
    let (is_host, port) =
        if let Some((address, port)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            (address.parse::<Ipv6Addr>().is_ok(), port)
        } else {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (is_host_name(name), port)
        };
    let is_port = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    (is_host && is_port).then_some(text)
}

fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let mut bytes = label.bytes();
        (1..=HOST_LABEL_LEN_MAX).contains(&label.len())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= HOST_LEN_MAX && name.split('.').all(is_label)
}

/// For who comes with curl.
fn text(profile: &Profile) -> String {
    let Profile { store_dir, public_keys, uploads, .. } = profile;
    let mut text = format!(
        "This is a Nix binary cache for {store_dir}, served by narwire {}.\n\n",
        env!("CARGO_PKG_VERSION")
    );
    if let Some(why) = token_use(profile) {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "{why}. Nix sends it with this in /etc/nix/netrc (the login does not matter):\n\n    {}\n\n",
            netrc()
        );
    }
    let _ = write!(text, "Use it with\n\n    {}\n\nor in nix.conf with\n\n", build_command(public_keys));
    for line in nix_conf(public_keys).lines() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    {line}");
    }
    if *uploads != UploadPolicy::Nobody {
        let _ = write!(text, "\nPaths are uploaded with\n\n    {}\n", copy_command());
    }
    text
}

fn html(profile: &Profile) -> String {
    let Profile { public_keys, uploads, .. } = profile;
    let store_dir = profile.store_dir.to_string();
    let takes_uploads = *uploads != UploadPolicy::Nobody;
    let upload_link = if takes_uploads { "<li><a href=\"#upload\">Upload to it</a></li>\n" } else { "" };
    let mut html = format!(
        "<h1>Nix binary cache</h1>\n\
         <p class=\"lead\">Packages for <code>{}</code>, ready to be fetched from <code>{URL}</code></p>\n\
         <nav aria-label=\"On this page\"><ul>\n<li><a href=\"#use\">Use this cache</a></li>\n{upload_link}\
         <li><a href=\"#about\">About it</a></li>\n</ul></nav>\n",
        Escaped(&store_dir),
    );
    html.push_str(live_figures());
    html.push_str(&about(profile));
    html.push_str("<section aria-labelledby=\"use\">\n<h2 id=\"use\">Use this cache</h2>\n");
    if let Some(why) = token_use(profile) {
        snippet(
            &mut html,
            "/etc/nix/netrc",
            &format!(
                "{why}. Nix sends the token that <code>narwire token create</code> has printed; the login does not matter."
            ),
            &netrc(),
        );
    }
    snippet(&mut html, "nix.conf", "For every command on a machine.", &nix_conf(public_keys));
    snippet(
        &mut html,
        "flake.nix",
        "For everybody who builds a flake; Nix asks whether it may.",
        &flake(public_keys),
    );
    snippet(&mut html, "NixOS module", "For every command on a NixOS machine.", &nixos(public_keys));
    snippet(&mut html, "For one build", "", &build_command(public_keys));
    snippet(
        &mut html,
        "Copy a path from here",
        if public_keys.is_empty() { "" } else { TRUST_WORDS },
        &format!("nix copy --from '{URL}'{} {}/…", trust_option(public_keys), profile.store_dir),
    );
    html.push_str("</section>\n");
    if takes_uploads {
        html.push_str("<section aria-labelledby=\"upload\">\n<h2 id=\"upload\">Upload to it</h2>\n");
        snippet(&mut html, "With Nix", "", &copy_command());
        let token = if *uploads == UploadPolicy::WithToken { " --token-file token" } else { "" };
        let command = format!("narwire push --to '{URL}'{token} ./result");
        snippet(
            &mut html,
            "With narwire",
            "Compresses, goes on where it was interrupted, shows progress.",
            &command,
        );
        html.push_str("</section>\n");
    }
    html
}

fn about(profile: &Profile) -> String {
    let Profile { store_dir, priority, public_keys, is_private, uploads, .. } = profile;
    let store_dir = store_dir.to_string();
    let mut facts = vec![
        ("Store directory", format!("<code>{}</code>", Escaped(&store_dir))),
        ("Reading", (if *is_private { "with a token" } else { "everybody" }).to_owned()),
        (
            "Uploads",
            match uploads {
                UploadPolicy::Nobody => "none: this cache is read-only",
                UploadPolicy::WithToken => "with a token",
                UploadPolicy::Everybody => "everybody",
            }
            .to_owned(),
        ),
    ];
    if let Some(priority) = priority {
        facts.push(("Priority", format!("{priority} (the lowest is asked first)")));
    }
    facts.push(("Version", concat!("narwire ", env!("CARGO_PKG_VERSION")).to_owned()));
    let mut html =
        String::from("<section aria-labelledby=\"about\">\n<h2 id=\"about\">About it</h2>\n<dl>\n");
    for (name, value) in facts {
        // Writing to a String cannot fail.
        let _ = writeln!(html, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    html.push_str("</dl>\n");
    let (heading, words) = match public_keys.len() {
        0 => (
            "Public keys",
            "This server has no key of its own. Paths carry the signatures that they came with, if any: clients go on trusting the keys \
             that they trust.",
        ),
        1 => ("Public key", "What comes from here is signed with it."),
        _ => ("Public keys", "What comes from here is signed with them."),
    };
    let _ = writeln!(html, "<h3>{heading}</h3>\n<p>{words}</p>");
    for key in public_keys {
        let _ = writeln!(html, "<pre><code>{}</code></pre>", Escaped(key));
    }
    html.push_str("</section>\n");
    html
}

/// A piece of text to be copied. `words` is HTML.
fn snippet(html: &mut String, heading: &str, words: &str, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(html, "<h3>{heading}</h3>");
    if !words.is_empty() {
        let _ = writeln!(html, "<p>{words}</p>");
    }
    let _ = writeln!(html, "<pre><code>{}</code></pre>", Escaped(text));
}

/// What a token is for here, if for anything.
fn token_use(profile: &Profile) -> Option<&'static str> {
    match profile {
        Profile { is_private: true, .. } => Some("This cache is private: reading needs a token"),
        Profile { uploads: UploadPolicy::WithToken, .. } => Some("Uploads need a token"),
        _ => None,
    }
}

fn netrc() -> String {
    format!("machine {MACHINE} login narwire password TOKEN")
}

fn nix_conf(public_keys: &[String]) -> String {
    let mut text = format!("extra-substituters = {URL}\n");
    if !public_keys.is_empty() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "extra-trusted-public-keys = {}", public_keys.join(" "));
    }
    text
}

fn flake(public_keys: &[String]) -> String {
    nix_attributes("nixConfig", "extra-", public_keys)
}

/// The lists of a module are added to those of others.
fn nixos(public_keys: &[String]) -> String {
    nix_attributes("nix.settings", "", public_keys)
}

fn nix_attributes(name: &str, prefix: &str, public_keys: &[String]) -> String {
    let mut text = format!("{name} = {{\n  {prefix}substituters = [ \"{URL}\" ];\n");
    if !public_keys.is_empty() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {prefix}trusted-public-keys = [");
        for key in public_keys {
            let _ = writeln!(text, "    {}", nix_string(key));
        }
        text.push_str("  ];\n");
    }
    text.push_str("};\n");
    text
}

fn build_command(public_keys: &[String]) -> String {
    let trust = trust_option(public_keys);
    let line_end = if trust.is_empty() { "" } else { " \\\n     " };
    format!("nix build --extra-substituters '{URL}'{line_end}{trust} nixpkgs#hello")
}

fn copy_command() -> String {
    format!("nix copy --to '{URL}?compression=zstd' ./result")
}

/// A string of the Nix language.
fn nix_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::http::request::{Parsed, parse};
    use crate::ring::service::ReplyBody;

    fn profile() -> Profile {
        Profile {
            store_dir: StoreDir::parse("/nix/store").unwrap(),
            priority: Some(30),
            public_keys: vec!["a-1:AAAA=".to_owned(), "b'$\"{-1:BBBB=".to_owned()],
            is_private: false,
            uploads: UploadPolicy::WithToken,
            is_browsable: true,
        }
    }

    /// What `Index` answers to a request with these fields.
    fn answer(profile: &Profile, fields: &str, is_proxy_trusted: bool) -> String {
        let head = format!("GET / HTTP/1.1\r\n{fields}\r\n");
        let Ok(Parsed::Complete { request, .. }) = parse(head.as_bytes(), 0) else { panic!("{head:?}") };
        let reply = Index::new(profile).reply(&request, &base_url(&request, is_proxy_trusted));
        let ReplyBody::Bytes(body) = &reply.body else { panic!("no text") };
        String::from_utf8([reply.fields.as_ref(), body].concat()).unwrap()
    }

    fn url(fields: &str, is_proxy_trusted: bool) -> (String, String) {
        let head = format!("GET / HTTP/1.0\r\n{fields}\r\n");
        let Ok(Parsed::Complete { request, .. }) = parse(head.as_bytes(), 0) else { panic!("{head:?}") };
        let base_url = base_url(&request, is_proxy_trusted);
        (base_url.to_string(), base_url.machine().to_owned())
    }

    #[test]
    fn a_client_is_told_where_it_reaches_the_cache() {
        let forwarded =
            "Host: inner:5000\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: cache.example.org\r\n";
        for (fields, is_proxy_trusted, url_wanted, machine) in [
            ("Host: cache:5000\r\n", false, "http://cache:5000", "cache"),
            ("Host: [::1]:5000\r\n", false, "http://[::1]:5000", "::1"),
            ("Host: 192.0.2.1\r\n", true, "http://192.0.2.1", "192.0.2.1"),
            (forwarded, true, "https://cache.example.org", "cache.example.org"),
            (forwarded, false, "http://inner:5000", "inner"),
            ("Host: a\r\nX-Forwarded-Proto: http, HTTPS\r\n", true, "https://a", "a"),
            ("Host: a\r\nX-Forwarded-Proto: javascript\r\n", true, "http://a", "a"),
            ("Host: a\r\nX-Forwarded-Host: evil, b:443\r\n", true, "http://b:443", "b"),
            ("Host: a\r\nX-Forwarded-Host: <script>\r\n", true, "http://THIS-HOST:PORT", "THIS-HOST"),
            ("Host:\r\n", false, "http://THIS-HOST:PORT", "THIS-HOST"),
            ("", false, "http://THIS-HOST:PORT", "THIS-HOST"),
        ] {
            assert_eq!(
                url(fields, is_proxy_trusted),
                (url_wanted.to_owned(), machine.to_owned()),
                "{fields}"
            );
        }
    }

    #[test]
    fn what_no_machine_is_called_is_not_repeated() {
        let (long, longest) =
            ("a".repeat(HOST_LABEL_LEN_MAX + 1), "a.".repeat(HOST_LEN_MAX.div_ceil(2)) + "a");
        for good in ["a", "a-b.c_d:1", "1.2.3.4:65535", "[2001:db8::1]", "A.example.", "xn--a"] {
            let is_good = good != "A.example.";
            assert_eq!(authority(good.as_bytes()).is_some(), is_good, "{good}");
        }
        for bad in [
            "",
            ":80",
            "a:",
            "a:65536",
            "a:+1",
            "a b",
            "a'b",
            "a$(b)",
            "a;b",
            "[1.2.3.4]",
            "[::1]a",
            "[::1",
            "a%20b",
            "a..b",
            &long,
            &longest,
        ] {
            assert_eq!(authority(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn who_asks_for_a_page_gets_one_and_all_others_a_text() {
        let host = "Host: here:1\r\n";
        let text = answer(&profile(), host, false);
        let page = answer(&profile(), &format!("{host}Accept: text/html,*/*;q=0.8\r\n"), false);
        assert!(text.contains("Content-Type: text/plain") && page.contains("Content-Type: text/html"));
        for answer in [&text, &page] {
            assert!(answer.contains("Vary: Accept\r\n") && answer.contains("http://here:1"), "{answer}");
            assert!(!answer.contains([URL, MACHINE].map(|mark| mark.chars().next().unwrap())), "{answer}");
        }
    }

    #[test]
    fn keys_stand_in_each_language_as_it_quotes_them() {
        let accept = "Host: here:1\r\nAccept: text/html\r\n";
        let page = answer(&profile(), accept, false);
        for snippet in [
            "extra-trusted-public-keys = a-1:AAAA= b&#39;$&quot;{-1:BBBB=\n",
            "    &quot;b&#39;$\\&quot;{-1:BBBB=&quot;\n",
            "--extra-trusted-public-keys &#39;a-1:AAAA= b&#39;\\&#39;&#39;$&quot;{-1:BBBB=&#39;",
            "machine here login narwire password TOKEN",
            "nix copy --from &#39;http://here:1&#39; --extra-trusted-public-keys &#39;a-1:AAAA= b",
            "narwire push --to &#39;http://here:1&#39; --token-file token ./result",
        ] {
            assert!(page.contains(snippet), "{snippet} is not in {page}");
        }
        assert_eq!(nix_string("a\"${b}\\"), "\"a\\\"\\${b}\\\\\"");
    }

    #[test]
    fn nothing_is_said_of_what_this_cache_does_not_do() {
        let bare = Profile {
            priority: None,
            public_keys: Vec::new(),
            uploads: UploadPolicy::Nobody,
            is_browsable: false,
            ..profile()
        };
        let page = answer(&bare, "Host: here\r\nAccept: text/html\r\n", false);
        for words in ["trusted-public-keys", "Priority", "--to", "netrc", "<form"] {
            assert!(!page.contains(words), "{words} is in {page}");
        }
        let private =
            answer(&Profile { is_private: true, ..bare }, "Host: here\r\nAccept: text/html\r\n", false);
        assert!(private.contains("This cache is private"), "{private}");
    }

    #[test]
    fn the_text_says_how_a_token_is_sent_as_the_page_does() {
        let host = "Host: here\r\n";
        for (profile, words) in [
            (Profile { is_private: true, ..profile() }, Some("This cache is private")),
            (profile(), Some("Uploads need a token")),
            (Profile { uploads: UploadPolicy::Everybody, ..profile() }, None),
        ] {
            let text = answer(&profile, host, false);
            let line = "\n    machine here login narwire password TOKEN\n";
            assert_eq!(text.contains(line), words.is_some(), "{text}");
            assert!(words.is_none_or(|words| text.contains(words)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_repeated_of_a_request_means_nothing_to_anybody(
            value in prop_oneof![any::<Vec<u8>>(), "[a-z0-9.:\\[\\]_'\"<>$` -]{0,12}".prop_map(String::into_bytes)],
        ) {
            if let Some(authority) = authority(&value) {
                let is_harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
                prop_assert!(!authority.is_empty() && authority.bytes().all(is_harmless), "{authority}");
            }
        }
    }
}
