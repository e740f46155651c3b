//! What people see who look around: a search, a path, what is in it.

use std::fs;

use rusqlite::Connection as Database;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::nix::hash_part;
use crate::support::{Narwire, Nix, Reply, Store, fixture, text};

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
        for typed in ["program-1.0", "pro", "PROGRAM", &hash_part(path)[..31], &hash_part(path)[..8]] {
            assert!(found(&server, typed).contains(&base_name(path).to_owned()), "{typed}");
        }
        assert!(found(&server, "library-1").iter().all(|name| name[33..].starts_with("library-1")));
        for typed in ["%25", "%25%25", "_rogram", "p*", "*", "rogram", "xyzzy", "%27--", "%00%00", "a%2Fb"] {
            assert_eq!(found(&server, typed), Vec::<String>::new(), "{typed}");
        }
        let shown = page(&server, "/search?q=%3Cscript%3Ealert(1)%3C/script%3E", 200);
        assert!(!shown.contains("<script>alert"), "{shown}");
        assert!(page(&server, &format!("/search?q={}", "0".repeat(32)), 200).contains("no such path"));
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
        assert!(of_program.contains(&format!("nix copy --from http://cache.test {program}")), "{of_program}");
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
    assert!(page(&server, &format!("/path/{}", hash_part(program)), 200).contains("href=\"/log/"));
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
        server.request("GET", &format!("/{absent}.narinfo"), &[("Accept", BROWSER)]).expect_absent();
        server.request("GET", "/nothing", &[("Accept", BROWSER)]).expect_absent();
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
        server.request("GET", &target, &[("Accept", BROWSER)]).expect_absent();
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
