//! What a live store has beside narinfos and NARs: listings, logs, debug symbols and realisations.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rusqlite::Connection as Database;
use serde_json::Value;

use crate::support::nix::hash_part;
use crate::support::{Nix, Store, assert_same_bytes, fixture};

#[test]
fn a_listing_says_where_in_the_nar_the_contents_of_each_file_are() {
    let fixture = fixture();
    let server = fixture.store.serve();
    for name in ["small", "empty-file", "executable", "sizes", "deep", "program-1.0"] {
        let path = fixture.path(name);
        let reply = server.get(&format!("/{}.ls", hash_part(path))).expect(200);
        let listing: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(listing["version"], 1);
        let nar = server.nar(hash_part(path)).expect(200).body;
        let files = check_offsets(&listing["root"], &fixture.store.real(path), &nar);
        assert!(files > 0, "{name} has files");
    }
}

/// Compares each file of a tree with the place in the NAR that the listing gives; gives their number.
fn check_offsets(node: &Value, real: &Path, nar: &[u8]) -> usize {
    match node["type"].as_str().unwrap() {
        "directory" => {
            let entries = node["entries"].as_object().unwrap();
            assert_eq!(entries.len(), fs::read_dir(real).unwrap().count());
            entries.iter().map(|(name, node)| check_offsets(node, &real.join(name), nar)).sum()
        }
        "regular" => {
            let contents = fs::read(real).unwrap();
            assert_eq!(node["size"], contents.len());
            // Nix leaves out an offset that it does not know.
            let offset = node["narOffset"].as_u64().map_or(0, |offset| usize::try_from(offset).unwrap());
            assert!(offset > 0 || contents.is_empty(), "{node}");
            assert_same_bytes(&nar[offset..offset + contents.len()], &contents, &real.display().to_string());
            1
        }
        "symlink" => {
            assert_eq!(node["target"], fs::read_link(real).unwrap().to_str().unwrap());
            0
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_part_of_a_nar_is_the_file_that_the_listing_promised() {
    let fixture = fixture();
    let (server, path) = (fixture.store.serve(), fixture.path("program-1.0"));
    let reply = server.get(&format!("/{}.ls", hash_part(path))).expect(200);
    let listing: Value = serde_json::from_slice(&reply.body).unwrap();
    let program = &listing["root"]["entries"]["bin"]["entries"]["program"];
    assert_eq!(program["executable"], true);
    let [offset, size] = ["narOffset", "size"].map(|name| program[name].as_u64().unwrap());
    let range = format!("bytes={offset}-{}", offset + size - 1);
    let part = server.request("GET", &server.nar_target(hash_part(path)), &[("Range", &range)]).expect(206);
    assert_same_bytes(
        &part.body,
        &fs::read(fixture.store.real(path).join("bin/program")).unwrap(),
        "the file",
    );
}

#[test]
fn debug_symbols_are_named_with_and_without_the_extension() {
    let (fixture, build_id) = (fixture(), "abcdef0123456789abcdef0123456789abcdef01");
    let server = fixture.store.serve();
    let [plain, extended] =
        ["", ".debug"].map(|end| server.get(&format!("/debuginfo/{build_id}{end}")).expect(200).body);
    assert_eq!(plain, extended);
    for absent in ["ABCDEF0123456789abcdef0123456789abcdef01", "abcdef", "..%2fsecret", ""] {
        server.get(&format!("/debuginfo/{absent}.debug")).expect_absent();
    }
}

#[test]
fn debug_symbols_of_a_path_registered_later_are_found_and_of_a_deleted_one_are_not() {
    let (store, build_id) = (Store::new(Nix::installed()), "0123456789abcdef0123456789abcdef01234567");
    store.add_bytes("first", b"so that there is a database");
    let server = store.serve();
    let target = format!("/debuginfo/{build_id}.debug");
    server.get(&target).expect_absent();
    let source = tempfile::tempdir().unwrap();
    let folder = source.path().join("symbols/lib/debug/.build-id").join(&build_id[..2]);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("{}.debug", &build_id[2..])), "symbols").unwrap();
    let path = store.add(&source.path().join("symbols"));
    server.get(&target).expect(200);
    store.delete(&path);
    server.get(&target).expect_absent();
}

#[test]
fn logs_are_found_without_a_database_row_compressed_or_not() {
    let store = Store::new(Nix::installed());
    store.add_bytes("first", b"so that there is a database");
    let [plain, compressed, broken] = ["1", "2", "3"].map(|digit| format!("{}-x.drv", digit.repeat(32)));
    let place = |name: &str, end: &str| {
        let folder = store.database().parent().unwrap().join("../../log/nix/drvs").join(&name[..2]);
        fs::create_dir_all(&folder).unwrap();
        folder.join(format!("{}{end}", &name[2..]))
    };
    fs::write(place(&plain, ""), "plain words\n").unwrap();
    fs::write(place(&broken, ".bz2"), "no bzip2 data").unwrap();
    let said = "the builder speaks\n".repeat(100_000);
    fs::write(place(&compressed, ""), &said).unwrap();
    let status = Command::new("bzip2").arg(place(&compressed, "")).stdin(Stdio::null()).status().unwrap();
    assert!(status.success() && !place(&compressed, "").exists());
    let server = store.serve();
    assert_eq!(server.get(&format!("/log/{plain}")).expect(200).text(), "plain words\n");
    assert_same_bytes(
        &server.get(&format!("/log/{compressed}")).expect(200).body,
        said.as_bytes(),
        "the log",
    );
    server.get(&format!("/log/{broken}")).expect_absent();
    for absent in ["x.drv", "..", "%2e%2e%2fdb", &plain[..34]] {
        server.get(&format!("/log/{absent}")).expect_absent();
    }
}

#[test]
fn a_build_trace_is_served_by_the_path_of_its_derivation() {
    let store = Store::new(Nix::installed());
    let output = store.add_bytes("output", b"contents");
    let derivation = format!("{}-addressed.drv", "1".repeat(32));
    let server = store.serve();
    let target = format!("/build-trace-v2/{derivation}/out.doi");
    server.get(&target).expect_absent();
    // Nix 2.35 makes this table in a store that older versions filled; a server sees it without being started again.
    let database = Database::open(store.database()).unwrap();
    database
        .execute_batch(
            "create table BuildTraceV3 (id integer primary key autoincrement not null, drvPath text not null, \
             outputName text not null, outputPath text not null, signatures text)",
        )
        .unwrap();
    server.get(&target).expect_absent();
    let signature = format!("cache.test-1:{}==", "A".repeat(86));
    let row = [derivation.as_str(), "out", &output, &signature];
    let insert =
        "insert into BuildTraceV3 (drvPath, outputName, outputPath, signatures) values (?1, ?2, ?3, ?4)";
    database.execute(insert, row).unwrap();
    let reply = server.get(&target).expect(200);
    assert_eq!(reply.field("content-type"), Some("application/json"));
    let found: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(found["outPath"], output.trim_start_matches("/nix/store/"));
    assert_eq!(found["signatures"][0]["keyName"], "cache.test-1");
    server.get(&target.replace("/out.doi", "/doc.doi")).expect_absent();
    server.get(&format!("/realisations/sha256:{}!out.doi", "0".repeat(64))).expect_absent();
}
