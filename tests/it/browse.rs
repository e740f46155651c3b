//! What people see who look around: a search, a path, what is in it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use rusqlite::Connection as Database;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::browser::Browser;
use crate::support::client::request_head;
use crate::support::nix::hash_part;
use crate::support::server::BINARY;
use crate::support::{Narwire, Nix, Reply, Store, assert_same_bytes, eventually, fixture, run, text};

/// What a browser says that it takes.
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

/// A page, with what has to be said with every one.
#[track_caller]
fn page(server: &Narwire, target: &str, status: u16) -> String {
    let reply = server.request("GET", target, &[("Accept", BROWSER)]).expect(status);
    assert_eq!(reply.field("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(reply.field("x-content-type-options"), Some("nosniff"));
    assert_eq!(reply.field("referrer-policy"), Some("no-referrer"));
    assert_eq!(reply.field("cache-control"), Some("no-store"));
    assert!(reply.field("content-security-policy").unwrap().starts_with("default-src 'none'; "));
    reply.text().to_owned()
}

#[track_caller]
fn expect_redirect(reply: Reply, url: &str) {
    assert_eq!(reply.expect(303).field("location"), Some(url));
}

/// The paths that a search shows, by their base names.
fn found(server: &Narwire, typed: &str) -> Vec<String> {
    let page = page(server, &format!("/search?q={typed}"), 200);
    let links = page.split("<li><a href=\"/path/").skip(1);
    links.map(|rest| rest.split_once("<code>").unwrap().1.split('<').next().unwrap().to_owned()).collect()
}

/// A cache directory with the closures of some paths of the fixture, compressed like that.
fn directory(compression: &str, paths: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let target = format!("file://{}?compression={compression}", text(folder.path()));
    let nix = Nix::installed();
    let arguments = ["copy", "--no-check-sigs", "--from", fixture().store.uri(), "--to", &target];
    nix.run("nix", &[&arguments[..], paths].concat());
    folder
}

/// Each server has this path, and what it needs.
fn servers(name: &str) -> [(Narwire, Option<TempDir>); 2] {
    let folder = directory("xz", &[fixture().path(name)]);
    [(fixture().store.serve(), None), (Narwire::start([folder.path()]), Some(folder))]
}

#[test]
fn a_narinfo_is_told_in_json_as_nix_tells_it() {
    let fixture = fixture();
    for name in ["program-1.0", "small", "text"] {
        let path = fixture.path(name);
        for (server, folder) in servers(name) {
            let reply = server.get(&format!("/{}.narinfo?json", hash_part(path))).expect(200);
            assert_eq!(reply.field("content-type"), Some("application/json"));
            let ours: Value = serde_json::from_slice(&reply.body).unwrap();
            let uri = folder
                .as_ref()
                .map_or(fixture.store.uri().to_owned(), |folder| format!("file://{}", text(folder.path())));
            let theirs = Nix::installed().run("nix", &["path-info", "--json", "--store", &uri, path]);
            let theirs: Value = serde_json::from_str(&theirs).unwrap();
            let common: Vec<_> =
                theirs[0].as_object().unwrap().iter().filter(|(key, _)| ours.get(key).is_some()).collect();
            assert!(common.len() >= 4, "{theirs}");
            for (key, value) in common {
                assert_eq!(&ours[key], value, "{key} of {ours}");
            }
        }
    }
    let server = fixture.store.serve();
    server.get(&format!("/{}.narinfo?json", "0".repeat(32))).expect_absent();
}

#[test]
fn a_search_finds_by_hash_by_path_and_by_the_beginning_of_the_name() {
    let path = fixture().path("program-1.0");
    let page_url = format!("/path/{}", base_name(path));
    for (server, _folder) in servers("program-1.0") {
        for typed in
            [hash_part(path), base_name(path), path, &format!("{path}/bin/program"), &format!("+{path}+")]
        {
            expect_redirect(server.get(&format!("/search?q={typed}")), &page_url);
        }
        for typed in ["program-1.0", "pro", "PROGRAM", &hash_part(path)[..31], &hash_part(path)[..4]] {
            assert!(found(&server, typed).contains(&base_name(path).to_owned()), "{typed}");
        }
        assert!(found(&server, "library-1").iter().all(|name| name[33..].starts_with("library-1")));
        for typed in ["%25", "%25%25", "_rogram", "p*", "*", "rogram", "xyzzy", "%27--", "%00%00", "a%2Fb"] {
            assert_eq!(found(&server, typed), Vec::<String>::new(), "{typed}");
        }
        let shown = page(&server, "/search?q=%3Cscript%3Ealert(1)%3C/script%3E", 200);
        assert!(!shown.contains("<script>alert"), "{shown}");
        assert!(page(&server, &format!("/search?q={}", "0".repeat(32)), 200).contains("no such path"));
        for typed in ["%FF", "%", &"a".repeat(600)] {
            assert!(
                page(&server, &format!("/search?q={typed}"), 200).contains("No path is called that"),
                "{typed}"
            );
        }
    }
}

#[test]
fn a_search_sees_at_once_what_is_registered_and_what_is_deleted() {
    let store = Store::new(Nix::installed());
    store.add_bytes("first", b"so that there is a database");
    let server = store.serve();
    assert!(found(&server, "later").is_empty());
    let path = store.add_bytes("later-1", b"contents");
    assert_eq!(found(&server, "later"), [base_name(&path)]);
    store.delete(&path);
    assert!(found(&server, "later").is_empty());
    page(&server, &format!("/path/{}", hash_part(&path)), 404);

    let folder = directory("none", &[fixture().path("small")]);
    let server = Narwire::start([folder.path()]);
    assert_eq!(found(&server, "small").len(), 1);
    let narinfo = folder.path().join(format!("{}.narinfo", hash_part(fixture().path("small"))));
    let contents = fs::read(&narinfo).unwrap();
    fs::remove_file(&narinfo).unwrap();
    assert!(found(&server, "small").is_empty());
    fs::write(&narinfo, contents).unwrap();
    assert_eq!(found(&server, "small").len(), 1);
}

#[test]
fn a_search_shows_so_many_and_says_that_there_are_more() {
    let store = Store::new(Nix::installed());
    store.add_bytes("first", b"so that there is a database");
    Database::open(store.database())
        .unwrap()
        .execute_batch(
            "with recursive n(i) as (select 0 union select i + 1 from n where i < 9999) \
             insert into ValidPaths (path, hash, registrationTime, narSize) \
               select '/nix/store/' || printf('%032d', i) || '-many-' || i, \
                      'sha256:' || printf('%064d', 0), 1, 1 from n",
        )
        .unwrap();
    let server = store.serve();
    assert_eq!(found(&server, "many").len(), 200);
    assert!(page(&server, "/search?q=many", 200).contains("there are more"));
    assert_eq!(found(&server, "many-9999"), ["00000000000000000000000000009999-many-9999"]);
}

#[test]
fn the_page_of_a_path_says_what_it_refers_to_and_what_refers_to_it() {
    let fixture = fixture();
    let (program, library) = (fixture.path("program-1.0"), fixture.path("library-1.0"));
    for (server, _folder) in servers("program-1.0") {
        let link = |path: &str| format!("<li><a href=\"/path/{}\">", base_name(path));
        let [of_program, of_library] =
            [program, library].map(|path| page(&server, &format!("/path/{}", hash_part(path)), 200));
        assert!(of_program.contains(&link(library)) && of_program.contains("(itself)"), "{of_program}");
        assert!(
            of_library.contains(&link(program)) && of_library.contains("<h2>References (0)</h2>"),
            "{of_library}"
        );
        assert_eq!(page(&server, &format!("/path/{}", base_name(program)), 200), of_program);
        let command = format!("nix copy --from &#39;http://cache.test&#39; &#39;{program}&#39;");
        assert!(of_program.contains(&command), "{of_program}");
        let narinfo = server.get(&format!("/{}.narinfo", hash_part(program))).expect(200);
        for line in
            narinfo.text().lines().filter(|line| line.starts_with("NarHash: ") || line.starts_with("Sig: "))
        {
            assert!(of_program.contains(line.split_once(": ").unwrap().1), "{line}");
        }
        // Whatever it leads to in this cache is there.
        let links = of_program.split("href=\"/").skip(1).map(|rest| rest.split('"').next().unwrap());
        for url in links.filter(|url| !url.starts_with("serve/")) {
            assert!(matches!(server.get(&format!("/{url}")).status, 200 | 303), "{url}");
        }
    }
    let server = fixture.store.serve();
    let derivation = fixture.path("program-1.0.drv");
    let log = format!("href=\"/log/{}\"", base_name(derivation));
    let deriver = format!("<dt>Deriver</dt><dd><a href=\"/path/{}\">", base_name(derivation));
    let [of_program, of_derivation] =
        [program, derivation].map(|path| page(&server, &format!("/path/{}", hash_part(path)), 200));
    assert!(of_program.contains(&log) && of_program.contains(&deriver), "{of_program}");
    assert!(of_derivation.contains(&log), "{of_derivation}");
}

/// The commands on the page of a path, without quotes, and without those characters that HTML writes in other ways.
fn commands(page: &str) -> Vec<String> {
    let blocks = page.split("<pre><code>").skip(1).map(|rest| rest.split("</code>").next().unwrap());
    blocks.map(|block| block.replace("&#39;", "")).collect()
}

#[test]
fn the_commands_on_the_page_of_a_path_bring_it_to_who_trusts_nothing_yet() {
    let (fixture, program) = (fixture(), fixture().path("program-1.0"));
    let (signed, unsigned) = (fixture.store.serve_signed(&fixture.key), fixture.store.serve());
    // The words of the page.
    let careless = ["--option", "require-sigs", "false"];
    let derivation = fixture.path("program-1.0.drv");
    for (server, path, count, options) in
        [(&signed, program, 2, &[][..]), (&signed, derivation, 1, &[]), (&unsigned, program, 2, &careless)]
    {
        let target = format!("/path/{}", hash_part(path));
        let accept = [("Accept", BROWSER), ("X-Forwarded-Host", &server.url()["http://".len()..])];
        let shown = server.request("GET", &target, &accept).expect(200).text().to_owned();
        let commands = commands(&shown);
        assert_eq!(commands.len(), count, "{shown}");
        assert_eq!(shown.contains(&careless.join(" ")), !options.is_empty(), "{shown}");
        for nix in [Nix::installed, Nix::newer, Nix::newest] {
            for command in &commands {
                let store = Store::new(nix());
                let mut words = command.split(' ');
                let tool = words.next().unwrap();
                let to = if tool == "nix" { "--to" } else { "--store" };
                let arguments: Vec<_> =
                    words.chain([to, store.uri()]).chain(options.iter().copied()).collect();
                store.nix.run(tool, &arguments);
                assert!(store.real(path).exists(), "{command}");
            }
        }
    }
}

#[test]
fn what_is_not_there_is_a_page_for_people_and_a_short_text_for_others() {
    let absent = "0".repeat(32);
    for (server, _folder) in servers("small") {
        for target in [format!("/path/{absent}"), format!("/serve/{absent}/"), format!("/serve/{absent}/a/b")]
        {
            assert!(page(&server, &target, 404).contains("<h1>Not found</h1>"));
            server.get(&target).expect_absent();
        }
        for target in ["/nothing", "/path", "/path/", "/path/0c8r7p", "/serve", "/serve/", "/a/b/c/d", "/%"] {
            let shown = page(&server, target, 404);
            assert!(
                shown.contains("<a href=\"/\">What this cache is</a>") && shown.contains("<form"),
                "{shown}"
            );
            server.get(target).expect_absent();
        }
        let small = hash_part(fixture().path("small"));
        let link = format!("<a href=\"/serve/{small}/?listing\">");
        assert!(page(&server, &format!("/serve/{small}/nothing"), 404).contains(&link));
        page(&server, &format!("/path/{small}/"), 200);
        // What Nix asks for is answered to everybody alike.
        server.request("GET", &format!("/{absent}.narinfo"), &[("Accept", BROWSER)]).expect_absent();
    }
}

#[test]
fn sources_are_looked_through_together() {
    let (store, folder) = (Store::new(Nix::installed()), directory("none", &[fixture().path("program-1.0")]));
    let own = store.add_bytes("program-of-the-store", b"contents");
    let server = Narwire::start(
        [store.flags(), vec!["--with-store".to_owned(), text(folder.path()).to_owned()]].concat(),
    );
    let names = found(&server, "program");
    assert!(names.contains(&base_name(&own).to_owned()), "{names:?}");
    assert!(names.contains(&base_name(fixture().path("program-1.0")).to_owned()), "{names:?}");
    page(&server, &format!("/path/{}", hash_part(&own)), 200);
    page(&server, &format!("/path/{}", hash_part(fixture().path("program-1.0"))), 200);
}

#[test]
fn nobody_browses_where_that_is_turned_off() {
    let path = fixture().path("program-1.0");
    let server = Narwire::start([fixture().store.flags(), vec!["--no-browse".to_owned()]].concat());
    for target in [
        "/search",
        "/search?q=pro",
        "/path/HASH",
        "/serve/HASH/",
        "/serve/HASH/bin/program",
        "/HASH.narinfo?json",
    ] {
        let target = target.replace("HASH", hash_part(path));
        server.get(&target).expect_absent();
        let shown = page(&server, &target, 404);
        assert!(shown.contains("no such page") && !shown.contains("<form"), "{shown}");
    }
    server.get(&format!("/{}.narinfo", hash_part(path))).expect(200);
}

#[test]
fn only_get_and_head_browse() {
    let (server, path) = (fixture().store.serve(), fixture().path("small"));
    for target in ["/search?q=sm".to_owned(), format!("/path/{}", hash_part(path))] {
        let got = server.get(&target).expect(200);
        let head = server.request("HEAD", &target, &[]).expect(200);
        assert_eq!(head.field("content-length"), got.field("content-length"));
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            server.request(method, &target, &[]).expect(405);
        }
    }
}

/// A file name that would be a picture if it were not escaped.
const HOSTILE: &str = "<img src=x onerror=alert(1)>";

/// A store with a path of everything that is browsed, and a cache directory of it that is compressed like that.
struct Ground {
    store: Store,
    path: String,
    /// What a link of the path leads to.
    other: String,
}

impl Ground {
    fn new() -> Self {
        let store = Store::new(Nix::installed());
        let other = store.add_bytes("other.txt", b"the other\n");
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("site-1.0");
        fs::create_dir_all(root.join("docs/img")).unwrap();
        fs::create_dir_all(root.join("empty")).unwrap();
        fs::write(root.join("docs/index.html"), "<h1>Docs</h1><script>alert(1)</script>").unwrap();
        fs::write(root.join("docs/style.css"), "h1 { color: red }").unwrap();
        fs::write(root.join("docs/img/a.png"), b"\x89PNG\r\n").unwrap();
        fs::write(root.join("README"), "words\n").unwrap();
        fs::write(root.join("nothing"), "").unwrap();
        fs::write(root.join("bytes"), [0, 1, 2, 255]).unwrap();
        fs::write(root.join("long"), pattern(300_000)).unwrap();
        fs::write(root.join("run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(root.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(root.join(HOSTILE), "hostile").unwrap();
        fs::write(root.join("50% a+b?c#d:e\\"), "odd").unwrap();
        fs::write(root.join(OsStr::from_bytes(b"latin-\xfc")), "latin").unwrap();
        symlink("docs", root.join("to-docs")).unwrap();
        symlink("../README", root.join("docs/up")).unwrap();
        symlink(&other, root.join("to-other")).unwrap();
        symlink("/etc/passwd", root.join("out")).unwrap();
        symlink("../../../etc/passwd", root.join("far-out")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("pong", root.join("ping")).unwrap();
        symlink("ping", root.join("pong")).unwrap();
        let path = store.add(&root);
        Self { store, path, other }
    }

    /// The store itself, and directories of flat and of compressed NARs.
    fn servers(&self) -> Vec<(Narwire, Option<TempDir>)> {
        let mut servers = vec![(self.store.serve(), None)];
        for compression in ["none", "xz", "zstd"] {
            let folder = tempfile::tempdir().unwrap();
            let target = format!("file://{}?compression={compression}", text(folder.path()));
            let arguments = ["copy", "--no-check-sigs", "--from", self.store.uri(), "--to", &target];
            self.store.nix.run("nix", &[&arguments[..], &[&self.path, &self.other]].concat());
            servers.push((Narwire::start([folder.path()]), Some(folder)));
        }
        servers
    }

    fn url(&self, inner: &str) -> String {
        format!("/serve/{}{inner}", base_name(&self.path))
    }

    fn real(&self, inner: &str) -> Vec<u8> {
        fs::read(self.store.real(&self.path).join(inner)).unwrap()
    }
}

fn pattern(len: usize) -> Vec<u8> {
    crate::support::Random(5).bytes(len)
}

#[test]
fn directories_are_listed_with_what_is_in_them() {
    let ground = Ground::new();
    for (server, _folder) in ground.servers() {
        let listing = page(&server, &ground.url("/"), 200);
        for part in [
            "<a href=\"docs/\">docs/</a></th><td>directory</td>",
            "<a href=\"run\">run</a></th><td>executable</td><td class=\"size\">10 B</td>",
            "<a href=\"README\">README</a></th><td>file</td><td class=\"size\">6 B</td>",
            "<td>link to <code>/etc/passwd</code></td>",
            "href=\"50%25%20a%2Bb%3Fc%23d%3Ae%5C\"",
            "<a href=\"latin-%FC\">latin-\u{fffd}</a>",
            "href=\"%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E\">&lt;img src=x onerror=alert(1)&gt;</a>",
            "<caption>17 entries</caption>",
        ] {
            assert!(listing.contains(part), "{part} in {listing}");
        }
        assert!(!listing.contains("<img"));
        assert!(page(&server, &ground.url("/empty/"), 200).contains("<caption>0 entries</caption>"));
        for inner in ["", "/docs", "/docs/img", "/empty"] {
            expect_redirect(server.get(&ground.url(inner)), &ground.url(&format!("{inner}/")));
            let listing = format!("{}?listing", ground.url(inner));
            expect_redirect(server.get(&listing), &ground.url(&format!("{inner}/?listing")));
        }
        let by_hash = format!("/serve/{}/", hash_part(&ground.path));
        assert_eq!(page(&server, &by_hash, 200), listing);
    }
}

#[test]
fn a_file_is_sent_with_its_type_and_nothing_in_it_runs() {
    let ground = Ground::new();
    for (server, _folder) in ground.servers() {
        for (url, name, media_type) in [
            ("/README", "README", "text/plain; charset=utf-8"),
            ("/run", "run", "text/plain; charset=utf-8"),
            ("/nothing", "nothing", "text/plain; charset=utf-8"),
            ("/bytes", "bytes", "application/octet-stream"),
            ("/long", "long", "application/octet-stream"),
            ("/docs/index.html", "docs/index.html", "text/html; charset=utf-8"),
            ("/docs/", "docs/index.html", "text/html; charset=utf-8"),
            ("/docs/style.css", "docs/style.css", "text/css; charset=utf-8"),
            ("/docs/img/a.png", "docs/img/a.png", "image/png"),
            ("/%3Cimg%20src=x%20onerror=alert(1)%3E", HOSTILE, "text/plain; charset=utf-8"),
            ("/50%25%20a+b%3Fc%23d:e%5C", "50% a+b?c#d:e\\", "text/plain; charset=utf-8"),
        ] {
            let reply = server.get(&ground.url(url)).expect(200);
            assert_same_bytes(&reply.body, &ground.real(name), url);
            assert_eq!(reply.field("content-type"), Some(media_type), "{url}");
            assert_eq!(reply.field("x-content-type-options"), Some("nosniff"));
            assert_eq!(reply.field("referrer-policy"), Some("no-referrer"));
            assert_eq!(reply.field("cross-origin-resource-policy"), Some("same-origin"));
            let policy = reply.field("content-security-policy").unwrap();
            assert!(policy.starts_with("sandbox allow-same-origin; default-src 'none';"), "{policy}");
            assert!(!policy.contains("script"), "{policy}");
        }
        assert_eq!(server.get(&ground.url("/latin-%FC")).expect(200).body, b"latin");
        assert!(page(&server, &ground.url("/docs/?listing"), 200).contains("index.html</a>"));
        // A path can be a file.
        for slash in ["", "/"] {
            let reply = server.get(&format!("/serve/{}{slash}", base_name(&ground.other))).expect(200);
            assert_eq!(
                (reply.text(), reply.field("content-type")),
                ("the other\n", Some("text/plain; charset=utf-8"))
            );
        }
    }
}

#[test]
fn a_part_of_a_file_is_that_part_and_a_tag_names_the_whole() {
    let ground = Ground::new();
    for (server, _folder) in ground.servers() {
        let (url, whole) = (ground.url("/long"), pattern(300_000));
        let reply = server.get(&url).expect(200);
        let tag = reply.field("etag").unwrap().to_owned();
        assert!(tag.starts_with('"') && reply.field("accept-ranges") == Some("bytes"));
        let part = |range: &str, status| server.request("GET", &url, &[("Range", range)]).expect(status);
        assert_same_bytes(&part("bytes=1000-200000", 206).body, &whole[1000..=200_000], "a part");
        assert_same_bytes(&part("bytes=-7", 206).body, &whole[whole.len() - 7..], "the end");
        assert_eq!(part("bytes=300000-", 416).field("content-range"), Some("bytes */300000"));
        assert!(server.request("GET", &url, &[("If-None-Match", &tag)]).expect(304).body.is_empty());
        let head = server.request("HEAD", &url, &[]).expect(200);
        assert_eq!((head.field("content-length"), head.field("etag")), (Some("300000"), Some(&*tag)));
        assert_ne!(server.get(&ground.url("/README")).expect(200).field("etag"), Some(&*tag));
    }
}

#[test]
fn links_lead_on_within_the_store_and_out_of_it_they_are_a_page() {
    let ground = Ground::new();
    let other = format!("/serve/{}/", base_name(&ground.other));
    for (server, _folder) in ground.servers() {
        for (inner, expected) in [
            ("/to-docs", ground.url("/docs")),
            ("/to-docs/", ground.url("/docs")),
            ("/to-docs/img/a.png", ground.url("/docs/img/a.png")),
            ("/docs/up", ground.url("/README")),
            ("/to-other", other.clone()),
            ("/ping", ground.url("/pong")),
            ("/pong", ground.url("/ping")),
        ] {
            expect_redirect(server.get(&ground.url(inner)), &expected);
        }
        for (inner, target) in [
            ("/out", "/etc/passwd"),
            ("/out/x", "/etc/passwd"),
            ("/far-out", "../../../etc/passwd"),
            ("/loop", "loop"),
        ] {
            let shown = page(&server, &ground.url(inner), 200);
            assert!(shown.contains(&format!("<code>{target}</code>")) && !shown.contains("root:"), "{shown}");
        }
    }
}

#[test]
fn nothing_leads_out_of_a_path() {
    let ground = Ground::new();
    fs::write(ground.store.real(&ground.path).parent().unwrap().join("secret"), "secret").unwrap();
    for (server, _folder) in ground.servers() {
        for inner in [
            "/x",
            "/docs/x",
            "/README/",
            "/README/x",
            "/docs//style.css",
            "//README",
            "/.",
            "/..",
            "/../secret",
            "/docs/../README",
            "/%2e%2e/secret",
            "/docs/%2E%2E/README",
            "/..%2fsecret",
            "/docs%2fstyle.css",
            "/docs%2Fimg",
            "/README%00",
            "/%00",
            "/docs/.%2e/README",
            "/%",
            "/%zz",
            "/%c0%ae%c0%ae/secret",
        ] {
            server.get(&ground.url(inner)).expect_absent();
        }
        server.get("/serve/secret").expect_absent();
        server.get("/serve/../secret").expect_absent();
        server.get(&format!("/serve/{}%2f..%2fsecret", base_name(&ground.path))).expect_absent();
    }
}

#[test]
fn nothing_is_signed_for_who_looks_into_a_path() {
    let (store, key, path) = (&fixture().store, &fixture().key, fixture().path("small"));
    let server = Narwire::start([store.flags(), key.flags()].concat());
    let signatures = || server.count("narwire_signatures_total");
    server.get(&format!("/serve/{}/", hash_part(path))).expect(200);
    assert_eq!(signatures(), Some(0));
    server.get(&format!("/{}.narinfo", hash_part(path))).expect(200);
    assert_eq!(signatures(), Some(1));
}

#[test]
fn what_is_not_valid_is_not_shown_and_what_is_deleted_is_gone() {
    let ground = Ground::new();
    let server = ground.store.serve();
    let folder = ground.store.real(&ground.path).with_file_name(format!("{}-unknown", "0".repeat(32)));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "nobody has registered it").unwrap();
    server.get(&format!("/serve/{}-unknown/file", "0".repeat(32))).expect_absent();
    let mut connection = server.connect();
    connection.get(&ground.url("/README")).expect(200);
    ground.store.delete(&ground.path);
    for inner in ["/", "/README", "/docs/", "/to-docs"] {
        connection.get(&ground.url(inner)).expect_absent();
    }
    // Nothing is kept open.
    eventually("no file of the store is open", || {
        !server.open_files().iter().any(|file| file.contains(base_name(&ground.path)))
    });
    connection.get(&format!("/serve/{}", base_name(&ground.other))).expect(200);
}

#[test]
fn a_huge_directory_is_listed_as_far_as_a_page_goes() {
    let store = Store::new(Nix::installed());
    let path = store.add_folder("wide", 5000, 1);
    let server = store.serve();
    let listing = page(&server, &format!("/serve/{}/", base_name(&path)), 200);
    assert!(listing.contains("<caption>5,000 entries</caption>") && listing.contains("and 904 more"));
    assert_eq!(listing.matches("<th scope=\"row\">").count(), 4096);
    server.get(&format!("/serve/{}/file-04999", base_name(&path))).expect(200);
    // What there is no room for is in the listing, where there is one.
    let ls = format!("/{}.ls", hash_part(&path));
    assert!(listing.contains(&format!("and 904 more: all are in <a href=\"{ls}\">")), "{ls}");
    assert!(server.get(&ls).expect(200).text().contains("file-04999"));
    for (option, is_listed) in [("", false), ("&write-nar-listing=true", true)] {
        let folder = tempfile::tempdir().unwrap();
        let target = format!("file://{}?compression=none{option}", text(folder.path()));
        store.nix.run("nix", &["copy", "--no-check-sigs", "--from", store.uri(), "--to", &target, &path]);
        let server = Narwire::start([folder.path()]);
        let listing = page(&server, &format!("/serve/{}/", base_name(&path)), 200);
        assert!(listing.contains("and 904 more"));
        assert_eq!(listing.contains(&ls), is_listed);
        assert_eq!(server.get(&ls).status == 200, is_listed);
    }
}

#[test]
fn what_is_too_long_to_be_unpacked_is_to_be_fetched() {
    let store = Store::new(Nix::installed());
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("long");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("long"), vec![b'x'; 17 * 1024 * 1024]).unwrap();
    fs::write(root.join("short"), "short").unwrap();
    let path = store.add(&root);
    for (compression, status) in [("none", 200), ("zstd", 501)] {
        let folder = tempfile::tempdir().unwrap();
        let target = format!("file://{}?compression={compression}", text(folder.path()));
        store.nix.run("nix", &["copy", "--no-check-sigs", "--from", store.uri(), "--to", &target, &path]);
        let server = Narwire::start([folder.path()]);
        let reply = server.get(&format!("/serve/{}/long", base_name(&path))).expect(status);
        assert!(status == 200 || reply.text().contains("Fetch the NAR"));
        assert_eq!(server.get(&format!("/serve/{}/short", base_name(&path))).expect(200).text(), "short");
        damage(folder.path());
        server.get(&format!("/serve/{}/short", base_name(&path))).expect_absent();
    }
}

/// Cuts the NARs of a cache directory.
fn damage(folder: &Path) {
    for nar in fs::read_dir(folder.join("nar")).unwrap().map(|entry| entry.unwrap().path()) {
        fs::File::options().write(true).open(nar).unwrap().set_len(200).unwrap();
    }
}

#[test]
fn a_file_on_its_way_keeps_its_path_from_the_garbage_collector() {
    let store = Store::in_place(Nix::installed());
    let scratch = tempfile::tempdir().unwrap();
    fs::create_dir(scratch.path().join("long")).unwrap();
    let contents = pattern(40_000_000);
    fs::write(scratch.path().join("long/file"), &contents).unwrap();
    let path = store.add(&scratch.path().join("long"));
    let server = store.serve();
    let mut connection = server.connect();
    connection.send(request_head("GET", &format!("/serve/{}/file", base_name(&path)), &[]));
    assert_eq!(connection.head().unwrap().status, 200);
    store.nix_store(&["--gc"]);
    assert!(store.real(&path).exists(), "the collector sees what the server holds open");
    connection.finish_sending();
    assert_same_bytes(&connection.rest(), &contents, "the file");
    eventually("the path is free again", || {
        store.nix_store(&["--gc"]);
        !store.real(&path).exists()
    });
    server.get(&format!("/serve/{}/file", base_name(&path))).expect_absent();
}

#[test]
fn who_may_not_read_a_private_cache_may_not_browse_it() {
    let (folder, path) = (tempfile::tempdir().unwrap(), fixture().path("program-1.0"));
    let tokens = folder.path().join("tokens");
    let mut create = Command::new(BINARY);
    create.args(["token", "create", "--name", "reader", "--scope", "read", "--file"]).arg(&tokens);
    let token = run(&mut create);
    let flags = ["--private".to_owned(), "--upload-token-file".to_owned(), text(&tokens).to_owned()];
    let server = Narwire::start([&fixture().store.flags()[..], &flags].concat());
    let authorization = format!("Bearer {}", token.lines().last().unwrap());
    for target in
        ["/search?q=pro", "/path/HASH", "/serve/HASH/", "/serve/HASH/bin/program", "/HASH.narinfo?json"]
    {
        let target = target.replace("HASH", hash_part(path));
        server.request("GET", &target, &[("Accept", BROWSER)]).expect(401);
        let reply = server.request("GET", &target, &[("Authorization", &authorization)]).expect(200);
        let kept = reply.field("cache-control").unwrap();
        assert!(kept == "no-store" || kept.starts_with("private, "), "{kept}");
    }
}

/// A picture of one red point.
const PICTURE: &[u8] = b"\x89PNG\x0d\x0a\x1a\x0a\x00\x00\x00\x0dIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00\x90wS\xde\x00\x00\x00\
    \x0cIDATx\x9cc\xf8\xcf\xc0\x00\x00\x03\x01\x01\x00\xc9\xfe\x92\xef\x00\x00\x00\x00IEND\xaeB`\x82";

#[test]
fn a_browser_shows_a_page_of_a_path_with_its_pictures_and_styles_and_runs_nothing() {
    let store = Store::new(Nix::installed());
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("site");
    fs::create_dir(&root).unwrap();
    let shown = "<!doctype html><link rel=icon href=a.png><link rel=stylesheet href=a.css><p>shown<p id=hidden>hidden</p><img src=a.png>";
    fs::write(root.join("index.html"), shown).unwrap();
    let script = "<!doctype html><link rel=icon href=a.png><p>before</p><script>document.body.textContent = 'after'</script>";
    fs::write(root.join("script.html"), script).unwrap();
    fs::write(root.join("a.css"), "#hidden { display: none }").unwrap();
    fs::write(root.join("a.png"), PICTURE).unwrap();
    fs::write(root.join(HOSTILE), "").unwrap();
    let (path, browser) = (store.add(&root), Browser::open());
    let server = store.serve();
    let url = format!("{}/serve/{}", server.url(), base_name(&path));
    browser.go(&url);
    assert_eq!(browser.url(), format!("{url}/"));
    assert_eq!(browser.text(), "shown");
    assert_eq!(browser.console(), Vec::<String>::new(), "picture and style were loaded");
    browser.go(&format!("{url}/?listing"));
    assert!(browser.text().contains(HOSTILE));
    assert_eq!(browser.console(), Vec::<String>::new());
    browser.go(&format!("{url}/script.html"));
    assert_eq!(browser.text(), "before");
    assert!(!browser.console().is_empty(), "it says what it did not run");
}
