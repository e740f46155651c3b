//! A cache directory made by `nix copy --to file://…`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;

use crate::support::nix::hash_part;
use crate::support::{Connection, Narwire, Nix, Store, assert_same_bytes, eventually, fixture, text};

/// A cache directory with these paths, written and signed by Nix; `options` are those of Nix's store URLs.
fn written_by(nix: &Nix, options: &str, paths: &[&str]) -> TempDir {
    let (fixture, folder) = (fixture(), tempfile::tempdir().unwrap());
    let secret = text(&fixture.key.secret_file);
    let cache = format!("file://{}?{options}&secret-key={secret}", text(folder.path()));
    nix.run("nix", &[&["copy", "--from", fixture.store.uri(), "--to", &cache], paths].concat());
    folder
}

/// A cache directory with a few files that look right from a distance.
fn folder_of(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, contents) in [("nix-cache-info", "StoreDir: /nix/store\nPriority: 7\n")].iter().chain(files) {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    folder
}

fn copies_back(options: &str) {
    let fixture = fixture();
    let paths =
        ["program-1.0", "odd", "deep", "text", "fixed-flat", "empty-file"].map(|name| fixture.path(name));
    for writer in Nix::all() {
        let folder = written_by(&writer, options, &paths);
        let server = Narwire::start([folder.path()]);
        for reader in Nix::all() {
            let destination = Store::new(reader);
            destination.copy_from(&server.url(), &fixture.key, &paths);
            destination.verify(&fixture.key);
        }
    }
}

#[test]
fn uncompressed_paths_are_copied_back() {
    copies_back("compression=none");
}

#[test]
fn xz_compressed_paths_are_copied_back() {
    copies_back("compression=xz");
}

#[test]
fn zstd_compressed_paths_are_copied_back() {
    copies_back("compression=zstd");
}

#[test]
fn every_file_that_nix_wrote_is_served_as_it_is() {
    let fixture = fixture();
    let folder = written_by(
        &Nix::newer(),
        "compression=zstd&write-nar-listing=true",
        &[fixture.path("program-1.0"), fixture.path("sizes")],
    );
    let cache = format!("file://{}", text(folder.path()));
    let derivation = fixture.path("library-1.0.drv");
    Nix::newer()
        .run("nix", &["store", "copy-log", "--from", fixture.store.uri(), "--to", &cache, derivation]);
    let server = Narwire::start([folder.path()]);
    let mut connection = server.connect();
    // Nix says less about a cache than a cache says for itself: that text has a test of its own.
    let files = files_beneath(folder.path()).into_iter().filter(|file| file != "nix-cache-info");
    let files: Vec<String> = files.collect();
    assert!(files.iter().any(|file| file.starts_with("log/")), "{files:?}");
    for file in files {
        let wanted = fs::read(folder.path().join(&file)).unwrap();
        let reply = connection.get(&format!("/{file}")).expect(200);
        assert_same_bytes(&reply.body, &wanted, &file);
        assert_eq!(reply.field("content-type"), Some(content_type(&file)), "{file}");
        assert!(connection.request("HEAD", &format!("/{file}"), &[]).expect(200).field("etag").is_some());
    }
}

fn content_type(file: &str) -> &'static str {
    match Path::new(file).extension().and_then(|extension| extension.to_str()) {
        Some("narinfo") => "text/x-nix-narinfo",
        Some("ls") => "application/json",
        Some("drv") => "text/plain; charset=utf-8",
        _ => "application/x-nix-nar",
    }
}

fn files_beneath(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(text(path.strip_prefix(folder).unwrap()).to_owned());
            }
        }
    }
    files
}

#[test]
fn nix_log_reads_a_log_that_was_copied() {
    let fixture = fixture();
    let folder = written_by(&Nix::installed(), "compression=none", &[fixture.path("library-1.0")]);
    let (cache, derivation) = (format!("file://{}", text(folder.path())), fixture.path("library-1.0.drv"));
    Nix::installed()
        .run("nix", &["store", "copy-log", "--from", fixture.store.uri(), "--to", &cache, derivation]);
    let server = Narwire::start([folder.path()]);
    for nix in Nix::all() {
        assert_eq!(
            nix.run("nix", &["log", "--store", &server.url(), fixture.path("library-1.0")]),
            "the builder speaks"
        );
    }
}

#[test]
fn a_file_added_is_there_on_the_next_request() {
    let folder = folder_of(&[]);
    let server = Narwire::start([folder.path()]);
    let target = format!("/{}.narinfo", "1".repeat(32));
    let mut connection = server.connect();
    for round in 0..10 {
        connection.get(&target).expect_absent();
        fs::write(folder.path().join(&target[1..]), format!("round {round}")).unwrap();
        assert_eq!(connection.get(&target).expect(200).text(), format!("round {round}"));
        fs::remove_file(folder.path().join(&target[1..])).unwrap();
    }
}

#[test]
fn a_file_replaced_is_the_new_one_on_the_next_request() {
    let name = format!("{}.narinfo", "1".repeat(32));
    let folder = folder_of(&[(&name, "round -1")]);
    let server = Narwire::start([folder.path()]);
    let (mut connection, mut tag) = (server.connect(), String::new());
    for round in 0..10 {
        let staged = folder.path().join("staged");
        fs::write(&staged, format!("round {round}")).unwrap();
        fs::rename(&staged, folder.path().join(&name)).unwrap();
        let reply = connection.request("GET", &format!("/{name}"), &[("If-None-Match", &tag)]).expect(200);
        assert_eq!(reply.text(), format!("round {round}"));
        reply.field("etag").unwrap().clone_into(&mut tag);
    }
}

#[test]
fn a_file_rewritten_in_place_is_the_new_one_on_the_next_request() {
    let name = format!("{}.narinfo", "1".repeat(32));
    let folder = folder_of(&[(&name, "first")]);
    let server = Narwire::start([folder.path()]);
    let mut connection = server.connect();
    for contents in ["second is longer", "third", "fourth", "", "fifth"] {
        fs::write(folder.path().join(&name), contents).unwrap();
        assert_eq!(connection.get(&format!("/{name}")).expect(200).text(), contents);
    }
}

#[test]
fn nar_folders_made_later_are_seen() {
    let folder = folder_of(&[]);
    let server = Narwire::start([folder.path()]);
    let target = format!("/nar/{}.nar", "1".repeat(52));
    server.get(&target).expect_absent();
    fs::create_dir(folder.path().join("nar")).unwrap();
    server.get(&target).expect_absent();
    fs::write(folder.path().join(&target[1..]), "nar").unwrap();
    assert_eq!(server.get(&target).expect(200).text(), "nar");
}

#[test]
fn the_directory_s_own_cache_info_is_served() {
    let folder = folder_of(&[]);
    let server = Narwire::start([folder.path()]);
    let info = server.get("/nix-cache-info").expect(200);
    assert!(
        info.text().contains("StoreDir: /nix/store\n") && info.text().contains("Priority: 7\n"),
        "{}",
        info.text()
    );
}

#[test]
fn links_are_not_followed() {
    let (folder, outside) = (folder_of(&[("nar/kept.nar", "kept")]), tempfile::tempdir().unwrap());
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let (narinfo, nar) = (format!("{}.narinfo", "1".repeat(32)), format!("nar/{}.nar", "1".repeat(52)));
    symlink(&secret, folder.path().join(&narinfo)).unwrap();
    symlink(&secret, folder.path().join(&nar)).unwrap();
    symlink("kept.nar", folder.path().join(format!("nar/{}.nar", "2".repeat(52)))).unwrap();
    symlink(outside.path(), folder.path().join("log")).unwrap();
    fs::write(outside.path().join(format!("{}-x.drv", "1".repeat(32))), "secret").unwrap();
    let server = Narwire::start([folder.path()]);
    for target in
        [narinfo, nar, format!("nar/{}.nar", "2".repeat(52)), format!("log/{}-x.drv", "1".repeat(32))]
    {
        server.get(&format!("/{target}")).expect_absent();
    }
}

#[test]
fn nothing_outside_the_directory_can_be_named() {
    let outside =
        folder_of(&[("secret.narinfo", "secret"), ("inside/nix-cache-info", "StoreDir: /nix/store\n")]);
    fs::create_dir(outside.path().join("inside/nar")).unwrap();
    let server = Narwire::start([outside.path().join("inside")]);
    let targets = [
        "/../secret.narinfo",
        "/nar/../../secret.narinfo",
        "/nar/%2e%2e/%2e%2e/secret.narinfo",
        "/nar/..%2f..%2fsecret.narinfo",
        "/%2e%2e%2fsecret.narinfo",
        "/..%5csecret.narinfo",
        "//secret.narinfo",
        "/nar/./../../secret.narinfo",
        "/nar//etc/passwd",
        "/nar/%2fetc%2fpasswd",
        "/etc/passwd",
        "/log/../../secret.narinfo",
        "/%00",
        "/nar/%00",
        "/nar/",
        "/nar",
        "/.",
        "/..",
        "/nar/..",
        "/nar/.",
    ];
    for target in targets {
        let reply = server.get(target);
        assert!([400, 404].contains(&reply.status), "{target}: {}", reply.status);
        assert!(!reply.text().contains("secret"), "{target}");
    }
    for target in ["/nar/../../secret.narinfo", "/nar/%2e%2e/%2e%2e/secret.narinfo", "/nar", "/nar/"] {
        server.get(target).expect_absent();
    }
}

#[test]
fn a_folder_or_a_pipe_in_the_place_of_a_file_is_absent() {
    let folder = folder_of(&[]);
    let [one, two] = ["1", "2"].map(|digit| format!("{}.narinfo", digit.repeat(32)));
    fs::create_dir(folder.path().join(&one)).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, folder.path().join(&two), mode).unwrap();
    let server = Narwire::start([folder.path()]);
    server.get(&format!("/{one}")).expect_absent();
    server.get(&format!("/{two}")).expect_absent();
}

#[test]
fn a_file_truncated_while_it_is_sent_never_looks_whole() {
    let name = format!("nar/{}.nar", "1".repeat(52));
    let folder = folder_of(&[(&name, "")]);
    let file = fs::File::create(folder.path().join(&name)).unwrap();
    file.set_len(200_000_000).unwrap();
    let server = Narwire::start([folder.path()]);
    let mut connection = Connection::open(server.address());
    connection.send(crate::support::client::request_head("GET", &format!("/{name}"), &[]));
    let head = connection.head().unwrap();
    assert_eq!(head.field("content-length"), Some("200000000"));
    file.set_len(1000).unwrap();
    let body = connection.rest();
    assert!(body.len() < 200_000_000, "the file had not that much");
    eventually("the server is still there", || server.get("/nix-cache-info").status == 200);
}

#[test]
fn a_small_path_of_the_directory_is_the_file_of_its_narinfo() {
    let fixture = fixture();
    let path = fixture.path("small");
    let folder = written_by(&Nix::installed(), "compression=none", &[path]);
    let server = Narwire::start([folder.path()]);
    assert_same_bytes(&server.nar(hash_part(path)).expect(200).body, &fixture.store.dump(path), path);
}
