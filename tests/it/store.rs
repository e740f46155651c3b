//! A live Nix store, as real Nix clients see it.

use std::fs;
use std::path::Path;
use std::process::Command;

use rusqlite::{Connection as Database, OpenFlags};
use serde_json::Value;

use crate::support::nix::{Key, hash_part};
use crate::support::{Narwire, Nix, Store, assert_same_bytes, fixture, run, server, text};

/// A derivation whose output differs each time it is built.
const DIFFERENT_EACH_TIME: &str = r#"derivation {
  name = "different";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" "read id < /proc/sys/kernel/random/uuid; echo $id > $out" ];
}"#;

/// A derivation whose output path follows from its contents.
const CONTENT_ADDRESSED: &str = r#"derivation {
  name = "addressed";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" "echo contents > $out" ];
  __contentAddressed = true;
  outputHashMode = "recursive";
  outputHashAlgo = "sha256";
}"#;

#[test]
fn every_nar_is_what_nix_dumps_byte_for_byte_by_all_three_urls() {
    let fixture = fixture();
    let server = fixture.store.serve();
    let mut connection = server.connect();
    for path in fixture.paths() {
        let (wanted, out, nar_hash) =
            (fixture.store.dump(path), hash_part(path), fixture.store.nar_hash(path));
        // The last names the path and not its contents, which may be others tomorrow.
        let targets = [
            (format!("/nar/{nar_hash}.nar?hash={out}"), "max-age=31536000"),
            (format!("/nar/{out}-{nar_hash}.nar"), "max-age=31536000"),
            (format!("/nar/{out}.nar"), "max-age=86400"),
        ];
        assert_eq!(server.nar_target(out), targets[0].0);
        for (target, cache_control) in targets {
            let reply = connection.get(&target).expect(200);
            assert_same_bytes(&reply.body, &wanted, &target);
            assert_eq!(reply.field("content-type"), Some("application/x-nix-nar"));
            assert_eq!(reply.field("cache-control"), Some(cache_control));
            assert_eq!(reply.field("accept-ranges"), Some("bytes"));
        }
    }
}

#[test]
fn a_nar_url_of_another_hash_or_path_is_absent() {
    let fixture = fixture();
    let server = fixture.store.serve();
    let (small, program) = (fixture.path("small"), fixture.path("program-1.0"));
    let (out, other_hash) = (hash_part(small), fixture.store.nar_hash(program));
    server.get(&format!("/nar/{other_hash}.nar?hash={out}")).expect_absent();
    server.get(&format!("/nar/{out}-{other_hash}.nar")).expect_absent();
    server.get(&format!("/nar/{}.nar", "0".repeat(32))).expect_absent();
    server.get(&format!("/{}.narinfo", "0".repeat(32))).expect_absent();
}

#[test]
fn a_narinfo_says_what_the_database_knows_in_the_order_nix_writes() {
    let fixture = fixture();
    let server = fixture.store.serve_signed(&fixture.key);
    let (program, library) = (fixture.path("program-1.0"), fixture.path("library-1.0"));
    let reply = server.get(&format!("/{}.narinfo", hash_part(program))).expect(200);
    assert_eq!(reply.field("content-type"), Some("text/x-nix-narinfo"));
    assert_eq!(reply.field("cache-control"), Some("max-age=86400"));
    let (nar_hash, nar_size) = (fixture.store.nar_hash(program), fixture.store.dump(program).len());
    let name = |path: &str| path.trim_start_matches("/nix/store/").to_owned();
    let mut references = [name(program), name(library), name(fixture.path("program-1.0-doc"))];
    references.sort();
    let has = |reference: &String| {
        fixture.store.nix_store(&["--query", "--references", program]).contains(reference)
    };
    let references: Vec<String> = references.into_iter().filter(has).collect();
    assert!(references.len() >= 2, "a reference to the library and one to itself");
    let wanted = format!(
        "StorePath: {program}\nURL: nar/{nar_hash}.nar?hash={out}\nCompression: none\nFileHash: sha256:{nar_hash}\n\
         FileSize: {nar_size}\nNarHash: sha256:{nar_hash}\nNarSize: {nar_size}\nReferences: {references}\n\
         Deriver: {deriver}\nSig: cache.test-1:",
        out = hash_part(program),
        references = references.join(" "),
        deriver = name(fixture.path("program-1.0.drv")),
    );
    assert!(reply.text().starts_with(&wanted), "{}\nwanted:\n{wanted}", reply.text());
    assert!(reply.text().ends_with("==\n"));
}

#[test]
fn a_narinfo_without_references_keeps_the_space_that_nix_needs() {
    let fixture = fixture();
    let server = fixture.store.serve();
    let narinfo = server.get(&format!("/{}.narinfo", hash_part(fixture.path("small")))).expect(200);
    assert!(narinfo.text().contains("\nReferences: \n"), "{}", narinfo.text());
    assert!(narinfo.text().contains("\nCA: fixed:r:sha256:"), "{}", narinfo.text());
}

#[test]
fn nix_copies_everything_and_verifies_it() {
    let fixture = fixture();
    let server = fixture.store.serve_signed(&fixture.key);
    // To Nix 2.8 the name of a derivation means its outputs, so only the newer ones copy derivations themselves.
    let (derivations, others): (Vec<_>, Vec<_>) =
        fixture.paths().into_iter().partition(|path| is_derivation(path));
    let everything = [&others[..], &derivations].concat();
    for (nix, wanted) in Nix::all().into_iter().zip([others, everything.clone(), everything]) {
        let destination = Store::new(nix);
        destination.copy_from(&server.url(), &fixture.key, &wanted);
        destination.verify(&fixture.key);
        for path in wanted {
            assert_eq!(destination.nar_hash(path), fixture.store.nar_hash(path), "{path}");
        }
    }
}

fn is_derivation(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == "drv")
}

#[test]
fn nix_store_realises_a_closure_with_signatures_checked() {
    let fixture = fixture();
    let server = fixture.store.serve_signed(&fixture.key);
    for nix in Nix::all() {
        let destination = Store::new(nix);
        destination.substitute(&server.url(), &fixture.key, fixture.path("program-1.0"));
        assert!(
            destination.listed().contains(&fixture.path("library-1.0").to_owned()),
            "the reference came along"
        );
        destination.verify(&fixture.key);
    }
}

#[test]
fn a_key_that_the_client_does_not_trust_is_refused() {
    let fixture = fixture();
    let server = fixture.store.serve_signed(&fixture.key);
    for nix in Nix::all() {
        let destination = Store::new(nix);
        let complaint =
            destination.copy_from_failing(&server.url(), &fixture.other_key, &[fixture.path("program-1.0")]);
        assert!(complaint.contains("signature"), "{complaint}");
        assert!(!destination.real(fixture.path("program-1.0")).exists());
    }
}

#[test]
fn a_content_addressed_path_needs_no_key() {
    let fixture = fixture();
    let server = fixture.store.serve();
    for nix in Nix::all() {
        let destination = Store::new(nix);
        let paths = ["small", "fixed-flat", "fixed-tree", "text"].map(|name| fixture.path(name));
        destination.copy_from(&server.url(), &fixture.other_key, &paths);
        destination.verify(&fixture.other_key);
    }
}

#[test]
fn several_keys_sign_side_by_side() {
    let fixture = fixture();
    let flags = [fixture.store.flags(), fixture.key.flags(), fixture.other_key.flags()].concat();
    let server = Narwire::start(flags);
    for key in [&fixture.key, &fixture.other_key] {
        Store::new(Nix::installed()).copy_from(&server.url(), key, &[fixture.path("program-1.0")]);
    }
}

#[test]
fn signatures_of_the_database_are_kept() {
    let fixture = fixture();
    let store = Store::new(Nix::installed());
    let server = fixture.store.serve_signed(&fixture.key);
    let library = fixture.path("library-1.0");
    store.copy_from(&server.url(), &fixture.key, &[library]);
    let second = store.serve_signed(&fixture.other_key);
    for key in [&fixture.key, &fixture.other_key] {
        for nix in [Nix::newer(), Nix::newest()] {
            Store::new(nix).copy_from(&second.url(), key, &[library]);
        }
    }
}

#[test]
fn nix_path_info_verify_and_ls_read_the_cache_itself() {
    let fixture = fixture();
    let server = fixture.store.serve_signed(&fixture.key);
    let (program, odd) = (fixture.path("program-1.0"), fixture.path("odd"));
    for nix in Nix::all() {
        let info = nix.run("nix", &["path-info", "--store", &server.url(), "--size", "--sigs", program]);
        assert!(info.contains("cache.test-1:"), "{info}");
        let trust = ["--option", "trusted-public-keys", &fixture.key.public];
        nix.run("nix", &[&["store", "verify", "--store", &server.url(), program, odd], &trust[..]].concat());
        let listed = nix.run("nix", &["store", "ls", "--store", &server.url(), "--recursive", program]);
        assert_eq!(listed, "./bin\n./bin/program\n./lib");
        let absent = format!("/nix/store/{}-absent", "0".repeat(32));
        let complaint = nix.run_failing("nix", &["path-info", "--store", &server.url(), &absent]);
        assert!(complaint.contains("is not valid"), "{complaint}");
    }
}

#[test]
fn nix_log_shows_what_the_builder_said_compressed_or_not() {
    let fixture = fixture();
    let server = fixture.store.serve();
    for nix in Nix::all() {
        for version in ["1.0", "2.0"] {
            let library = fixture.path(&format!("library-{version}.drv"));
            let said = nix.run("nix", &["log", "--store", &server.url(), library]);
            assert!(said.contains("the builder speaks"), "{said}");
        }
    }
    let name = fixture.path("library-1.0.drv").trim_start_matches("/nix/store/");
    let log = server.get(&format!("/log/{name}")).expect(200);
    assert_eq!(log.text(), "the builder speaks\n");
    assert_eq!(log.field("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(log.field("cache-control"), Some("max-age=31536000"));
    server.get(&format!("/log/{}-none.drv", "0".repeat(32))).expect_absent();
}

#[test]
fn a_log_outlives_its_derivation() {
    let store = Store::new(Nix::installed());
    let derivation = store.instantiate(&DIFFERENT_EACH_TIME.replace("read id", "echo spoken; read id"));
    let output = store.build(&derivation, &[]).remove(0);
    let server = store.serve();
    store.delete(&output);
    store.delete(&derivation);
    let name = derivation.trim_start_matches("/nix/store/");
    assert_eq!(server.get(&format!("/log/{name}")).expect(200).text(), "spoken\n");
}

#[test]
fn a_path_registered_after_a_404_is_found_by_the_next_request() {
    for nix in Nix::all() {
        let (store, elsewhere) = (Store::new(nix), Store::new(Nix::installed()));
        store.add_bytes("first", b"so that there is a database");
        let server = store.serve();
        let mut connection = server.connect();
        for round in 0..5 {
            let contents = format!("round {round}");
            let path = elsewhere.add_bytes("late", contents.as_bytes());
            let narinfo = format!("/{}.narinfo", hash_part(&path));
            connection.get(&narinfo).expect_absent();
            connection.get(&narinfo).expect_absent();
            assert_eq!(store.add_bytes("late", contents.as_bytes()), path);
            connection.get(&narinfo).expect(200);
            assert_same_bytes(&server.nar(hash_part(&path)).expect(200).body, &store.dump(&path), &path);
        }
    }
}

#[test]
fn a_deleted_path_is_absent_on_the_next_request() {
    for nix in Nix::all() {
        let store = Store::new(nix);
        let path = store.add_bytes("doomed", b"here today");
        let server = store.serve();
        let mut connection = server.connect();
        let targets = [format!("/{}.narinfo", hash_part(&path)), server.nar_target(hash_part(&path))];
        for target in &targets {
            connection.get(target).expect(200);
        }
        store.delete(&path);
        for target in &targets {
            connection.get(target).expect_absent();
        }
    }
}

#[test]
fn a_path_registered_again_with_another_hash_is_noticed() {
    let store = Store::new(Nix::installed());
    let derivation = store.instantiate(DIFFERENT_EACH_TIME);
    let path = store.build(&derivation, &[]).remove(0);
    let server = store.serve();
    let (first, first_target) = (store.dump(&path), server.nar_target(hash_part(&path)));
    assert_same_bytes(&server.get(&first_target).expect(200).body, &first, "before");
    store.delete(&path);
    store.build(&derivation, &[]);
    let second = store.dump(&path);
    assert_ne!(first, second);
    assert_ne!(server.nar_target(hash_part(&path)), first_target);
    assert_same_bytes(&server.nar(hash_part(&path)).expect(200).body, &second, "after");
    server.get(&first_target).expect_absent();
}

#[test]
fn a_listing_says_what_nix_would_have_written() {
    let fixture = fixture();
    let server = fixture.store.serve();
    for nix in Nix::all() {
        let folder = tempfile::tempdir().unwrap();
        let destination = format!("file://{}?compression=none&write-nar-listing=true", text(folder.path()));
        for name in
            ["small", "empty-folder", "dangling-link", "executable", "program-1.0", "sizes", "deep", "many"]
        {
            let path = fixture.path(name);
            nix.run("nix", &["copy", "--from", fixture.store.uri(), "--to", &destination, path]);
            let file = format!("{}.ls", hash_part(path));
            let wanted = fs::read(folder.path().join(&file)).unwrap();
            let reply = server.get(&format!("/{file}")).expect(200);
            assert_eq!(reply.field("content-type"), Some("application/json"));
            let [found, wanted] =
                [&reply.body, &wanted].map(|json| plain(serde_json::from_slice(json).unwrap()));
            assert!(found == wanted, "{name}: {found:.300}\nwanted: {wanted:.300}");
        }
    }
}

/// Some versions of Nix write `executable: false`, others leave it out; every reader takes both.
fn plain(listing: Value) -> Value {
    match listing {
        Value::Object(fields) => {
            let fields = fields
                .into_iter()
                .filter(|(name, value)| name != "executable" || value != &Value::Bool(false));
            Value::Object(fields.map(|(name, value)| (name, plain(value))).collect())
        }
        other => other,
    }
}

#[test]
fn debug_symbols_are_found_by_build_id() {
    let fixture = fixture();
    let server = fixture.store.serve();
    let reply = server.get("/debuginfo/abcdef0123456789abcdef0123456789abcdef01.debug").expect(200);
    assert_eq!(reply.field("content-type"), Some("application/json"));
    let found: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(found["member"], "lib/debug/.build-id/ab/cdef0123456789abcdef0123456789abcdef01.debug");
    let archive = found["archive"].as_str().unwrap().strip_prefix("../").unwrap().to_owned();
    let nar = server.get(&format!("/{archive}")).expect(200);
    assert_same_bytes(
        &nar.body,
        &fixture.store.dump(fixture.path("library-1.0")),
        "the archive with the symbols",
    );
    server.get(&format!("/debuginfo/{}.debug", "0".repeat(40))).expect_absent();
}

#[test]
fn realisations_are_served_in_both_forms_and_bring_the_output() {
    let features = ["--option", "experimental-features", "nix-command ca-derivations"];
    for nix in Nix::all() {
        let store = Store::new(nix);
        let instantiate = ["--store", store.uri(), "--expr", CONTENT_ADDRESSED];
        let derivation = store.nix.run("nix-instantiate", &[&instantiate[..], &features].concat());
        let output = store.build(&derivation, &features).remove(0);
        let server = store.serve();
        let (id, path) = only_realisation(&store.database());
        assert_eq!(path, output);
        for target in
            [format!("/realisations/{id}.doi"), format!("/realisations/{}.doi", id.replace('!', "%21"))]
        {
            let reply = server.get(&target).expect(200);
            let found: Value = serde_json::from_slice(&reply.body).unwrap();
            assert_eq!(
                (&found["id"], &found["outPath"]),
                (&Value::from(id.as_str()), &Value::from(base_name(&output)))
            );
            assert_eq!(reply.field("cache-control"), Some("max-age=31536000"));
        }
        server.get(&format!("/realisations/sha256:{}!out.doi", "0".repeat(64))).expect_absent();
        server.get(&format!("/build-trace-v2/{}-none.drv/out.doi", "0".repeat(32))).expect_absent();
        for reader in Nix::all() {
            let destination = Store::new(reader);
            let copy =
                ["copy", "--from", &server.url(), "--to", destination.uri(), "--no-check-sigs", &output];
            destination.nix.run("nix", &[&copy[..], &features].concat());
            assert_eq!(destination.nar_hash(&output), store.nar_hash(&output));
        }
    }
}

/// The identity and the output path of the one realisation in a store's database.
fn only_realisation(database: &Path) -> (String, String) {
    let database = Database::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
    let query =
        "select drvPath, outputName, path from Realisations join ValidPaths on outputPath = ValidPaths.id";
    let row = |row: &rusqlite::Row<'_>| {
        Ok((format!("{}!{}", row.get::<_, String>(0)?, row.get::<_, String>(1)?), row.get::<_, String>(2)?))
    };
    database.query_row(query, [], row).unwrap()
}

fn base_name(path: &str) -> &str {
    path.trim_start_matches("/nix/store/")
}

#[test]
fn a_store_filled_by_a_newer_nix_is_served_to_all() {
    for writer in [Nix::newer(), Nix::newest()] {
        let store = Store::new(writer);
        let folder = tempfile::tempdir().unwrap();
        let key = Key::in_folder(folder.path(), "fresh.test-1");
        let paths = [store.add_folder("tree", 300, 700), store.add_bytes("file", b"contents")];
        let server = store.serve_signed(&key);
        for nix in Nix::all() {
            let destination = Store::new(nix);
            destination.copy_from(&server.url(), &key, &paths.each_ref().map(String::as_str));
            destination.verify(&key);
        }
    }
}

#[test]
fn a_store_directory_of_another_name_is_served_under_that_name() {
    let store = Store::in_place(Nix::installed());
    let path = store.add_bytes("elsewhere", b"not in /nix/store");
    let server = store.serve();
    assert!(server.get("/nix-cache-info").expect(200).text().contains(path.rsplit_once('/').unwrap().0));
    let narinfo = server.get(&format!("/{}.narinfo", hash_part(&path))).expect(200);
    assert!(narinfo.text().starts_with(&format!("StorePath: {path}\n")), "{}", narinfo.text());
    assert_same_bytes(&server.nar(hash_part(&path)).expect(200).body, &store.dump(&path), &path);
}

#[test]
fn a_server_without_privileges_sees_the_database_live() {
    if !rustix::process::geteuid().is_root() {
        return; // then every other test has shown it
    }
    for nix in Nix::all() {
        let store = Store::new(nix);
        let first = store.add_bytes("first", b"contents");
        let (_folder, mut command) = server::command_of_nobody();
        let server = Narwire::spawn(command.args(store.flags()).args(["--listen", "127.0.0.1:0"]));
        server.wait_for("listening on ");
        assert_same_bytes(&server.nar(hash_part(&first)).expect(200).body, &store.dump(&first), &first);
        let second = store.add_bytes("second", b"more");
        server.get(&format!("/{}.narinfo", hash_part(&second))).expect(200);
        store.delete(&first);
        server.get(&format!("/{}.narinfo", hash_part(&first))).expect_absent();
    }
}

#[test]
fn many_downloads_at_once_all_come_whole() {
    let fixture = fixture();
    let server = fixture.store.serve();
    let targets =
        ["large", "many", "sizes", "odd"].map(|name| server.nar_target(hash_part(fixture.path(name))));
    let wanted = ["large", "many", "sizes", "odd"].map(|name| fixture.store.dump(fixture.path(name)));
    std::thread::scope(|scope| {
        for index in 0..16 {
            let (server, target, wanted) = (&server, &targets[index % 4], &wanted[index % 4]);
            scope.spawn(move || assert_same_bytes(&server.get(target).expect(200).body, wanted, target));
        }
    });
}

#[test]
fn curl_sees_the_same_bytes() {
    let fixture = fixture();
    let server = fixture.store.serve();
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = fixture.path("sizes");
    let url = format!("{}{}", server.url(), server.nar_target(hash_part(path)));
    run(Command::new("curl")
        .args(["--fail", "--silent", "--show-error", "--output"])
        .arg(file.path())
        .arg(url));
    assert_same_bytes(&fs::read(file.path()).unwrap(), &fixture.store.dump(path), path);
}
