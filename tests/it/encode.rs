//! NARs of a live store that are compressed on their way: whole and right, or visibly cut.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::client::request_head;
use crate::support::nix::hash_part;
use crate::support::{Narwire, Nix, Reply, Store, assert_same_bytes, eventually, fixture};

/// The URL of the compressed NAR.
fn target(store: &Store, path: &str) -> String {
    format!("/nar/{}.nar.zst?hash={}", store.nar_hash(path), hash_part(path))
}

#[track_caller]
fn assert_decodes(frame: &[u8], wanted: &[u8], what: &str) {
    assert_same_bytes(&zstd::decode_all(frame).unwrap(), wanted, what);
}

/// What the head must and must not say: nobody knows the length, and no other answer has the same bytes.
#[track_caller]
fn assert_fields(reply: &Reply, cache_control: &str) {
    assert_eq!(reply.field("content-type"), Some("application/x-nix-nar"));
    assert_eq!(reply.field("cache-control"), Some(cache_control));
    for name in ["content-length", "accept-ranges", "etag", "content-range"] {
        assert_eq!(reply.field(name), None, "{name}");
    }
}

#[test]
fn every_nar_is_what_nix_dumps_by_all_three_urls() {
    let fixture = fixture();
    let server = fixture.store.serve();
    let mut connection = server.connect();
    for path in fixture.paths() {
        let (wanted, out, nar_hash) =
            (fixture.store.dump(path), hash_part(path), fixture.store.nar_hash(path));
        let targets = [
            (format!("/nar/{nar_hash}.nar.zst?hash={out}"), "max-age=31536000"),
            (format!("/nar/{out}-{nar_hash}.nar.zst"), "max-age=31536000"),
            (format!("/nar/{out}.nar.zst"), "max-age=86400"),
        ];
        for (target, cache_control) in targets {
            let reply = connection.get(&target).expect(200);
            assert_decodes(&reply.body, &wanted, &target);
            assert_fields(&reply, cache_control);
            assert_eq!(reply.field("transfer-encoding"), Some("chunked"));
        }
    }
}

#[test]
fn ranges_and_conditions_have_nothing_to_go_by() {
    let fixture = fixture();
    let (server, path) = (fixture.store.serve(), fixture.path("sizes"));
    let wanted = fixture.store.dump(path);
    for field in [
        ("Range", "bytes=0-"),
        ("Range", "bytes=10-20"),
        ("If-None-Match", "\"x\""),
        ("Accept-Encoding", "zstd"),
    ] {
        let reply = server.request("GET", &target(&fixture.store, path), &[field]).expect(200);
        assert_decodes(&reply.body, &wanted, field.0);
        assert_fields(&reply, "max-age=31536000");
    }
}

/// The whole in its place would end the download with an error, where Nix takes absence for a reason to ask the next cache.
#[test]
fn the_rest_of_what_is_made_anew_is_absent() {
    let fixture = fixture();
    let (server, target) = (fixture.store.serve(), target(&fixture.store, fixture.path("sizes")));
    server.request("GET", &target, &[("Range", "bytes=10-")]).expect_absent();
    let fields = [("Range", "bytes=10-"), ("If-Range", "\"x\"")];
    server.request("GET", &target, &fields).expect(200);
}

#[test]
fn head_says_what_get_says_and_the_connection_goes_on() {
    let fixture = fixture();
    let server = fixture.store.serve();
    let mut connection = server.connect();
    for name in ["large", "small", "dangling-link"] {
        let target = target(&fixture.store, fixture.path(name));
        let head = connection.request("HEAD", &target, &[]).expect(200);
        let get = connection.get(&target).expect(200);
        let but_date = |reply: &Reply| {
            let fields = reply.fields.iter().filter(|(name, _)| name != "date");
            fields.cloned().collect::<Vec<_>>()
        };
        assert_eq!(but_date(&head), but_date(&get));
    }
}

#[test]
fn to_http_1_0_the_end_of_the_connection_is_the_end_of_the_body() {
    let fixture = fixture();
    let server = fixture.store.serve();
    for name in ["large", "small"] {
        let path = fixture.path(name);
        let target = target(&fixture.store, path);
        let mut connection = server.connect();
        connection.send(format!("GET {target} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
        let reply = connection.reply_to("GET").expect(200);
        assert_fields(&reply, "max-age=31536000");
        assert_eq!(reply.field("transfer-encoding"), None);
        assert_eq!(reply.field("connection"), Some("close"));
        assert_decodes(&reply.body, &fixture.store.dump(path), name);
    }
}

#[test]
fn another_hash_or_path_is_absent() {
    let fixture = fixture();
    let server = fixture.store.serve();
    let (small, program) = (fixture.path("small"), fixture.path("program-1.0"));
    let (out, other_hash) = (hash_part(small), fixture.store.nar_hash(program));
    server.get(&format!("/nar/{other_hash}.nar.zst?hash={out}")).expect_absent();
    server.get(&format!("/nar/{out}-{other_hash}.nar.zst")).expect_absent();
    server.get(&format!("/nar/{}.nar.zst", "0".repeat(32))).expect_absent();
}

/// What a client does that was given such an address some weeks ago.
#[test]
fn nix_takes_a_nar_whose_narinfo_says_that_it_is_compressed() {
    let fixture = fixture();
    let server = fixture.store.serve_signed(&fixture.key);
    let paths = ["many", "large", "library-1.0", "odd"].map(|name| fixture.path(name));
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    for path in paths {
        let name = format!("{}.narinfo", hash_part(path));
        let narinfo = server.get(&format!("/{name}")).expect(200);
        let is_kept =
            |line: &&str| !["URL:", "Compression:", "File"].iter().any(|name| line.starts_with(name));
        let kept: Vec<_> = narinfo.text().lines().filter(is_kept).collect();
        let url = format!("{}{}", server.url(), target(&fixture.store, path));
        let text = format!("{}\nURL: {url}\nCompression: zstd\n", kept.join("\n"));
        fs::write(folder.path().join(name), text).unwrap();
    }
    let narinfos = Narwire::start([folder.path()]);
    for nix in Nix::all() {
        let destination = Store::new(nix);
        destination.copy_from(&narinfos.url(), &fixture.key, &paths);
        destination.verify(&fixture.key);
    }
}

/// Files of a path that is damaged; too long for the server to keep them in memory. Bytes.
const FILE_LEN: usize = 20_000;
const FILES: usize = 400;

/// Damages a path before and after the server has read it. A frame that comes to its end is of the NAR that Nix once
/// registered; from the second request on the path is absent.
#[track_caller]
fn never_complete_and_wrong(damage: impl Fn(&Path)) {
    for read_before in [false, true] {
        let store = Store::new(Nix::installed());
        let path = store.add_folder("damaged", FILES, FILE_LEN);
        let healthy = store.add_bytes("healthy", b"next door");
        // Each worker finds out for itself.
        let server = Narwire::start([store.flags(), vec!["--workers".into(), "1".into()]].concat());
        let target = target(&store, &path);
        if read_before {
            assert_decodes(&server.get(&target).expect(200).body, &store.dump(&path), "before");
        }
        let file = store.real(&path).join("file-00399");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        damage(&file);
        let mut broken_off = 0;
        for _ in 0..5 {
            match server.connect().try_request("GET", &target, &[]) {
                Some(reply) if reply.status == 404 => drop(reply.expect_absent()),
                Some(reply) => {
                    assert!(!reply.complete, "{} bytes of something else", reply.body.len());
                    broken_off += 1;
                }
                None => broken_off += 1,
            }
        }
        assert!(broken_off <= 1, "{broken_off} downloads were broken off (read before: {read_before})");
        server.get(&target).expect_absent();
        // Somebody has to look after it.
        server.wait_for("ERROR");
        server.get(&self::target(&store, &healthy)).expect(200);
    }
}

#[test]
fn a_file_made_shorter() {
    never_complete_and_wrong(|file| {
        File::options().write(true).open(file).unwrap().set_len(100).unwrap();
    });
}

#[test]
fn a_file_of_the_same_size_and_other_contents() {
    never_complete_and_wrong(|file| fs::write(file, vec![0; FILE_LEN]).unwrap());
}

#[test]
fn a_file_removed() {
    never_complete_and_wrong(|file| fs::remove_file(file).unwrap());
}

/// Over HTTP/1.0 nothing but the reset says that it was not the end.
#[test]
fn a_damaged_path_is_reset_for_http_1_0_too() {
    let store = Store::new(Nix::installed());
    let path = store.add_folder("damaged", FILES, FILE_LEN);
    let server = store.serve();
    let file = store.real(&path).join("file-00399");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(file, vec![0; FILE_LEN]).unwrap();
    let mut connection = server.connect();
    connection.send(format!("GET {} HTTP/1.0\r\n\r\n", target(&store, &path)));
    let frame = connection.head().map(|_| connection.rest()).unwrap_or_default();
    assert!(connection.was_reset(), "{} bytes could be the whole", frame.len());
}

#[test]
fn a_path_on_its_way_to_a_client_is_kept_from_the_garbage_collector() {
    let store = Store::in_place(Nix::installed());
    let path = store.add_folder("served", FILES, 100_000);
    let (wanted, server) = (store.dump(&path), store.serve());
    let mut connection = server.connect();
    connection.send(request_head("GET", &target(&store, &path), &[("Connection", "close")]));
    connection.head().unwrap().expect(200);
    store.nix_store(&["--gc"]);
    assert!(store.real(&path).exists(), "the collector sees what the server holds open");
    assert_decodes(&connection.chunked_rest(), &wanted, "the download");
}

/// Clients that ask and do not read; more than the server encodes for at once.
const CLIENTS: usize = 300;
/// As in `limits.rs`.
const ENCODERS_MAX: usize = 64;

#[test]
fn clients_that_do_not_read_take_places_and_nothing_else() {
    let (fixture, server) = (fixture(), fixture().store.serve());
    let (large, small) = (fixture.path("large"), fixture.path("small"));
    let target_of_large = target(&fixture.store, large);
    let wanted = fixture.store.dump(large);
    assert_decodes(&server.get(&target_of_large).expect(200).body, &wanted, "before");
    let before = server.descriptors();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    let mut served = Vec::new();
    for (index, client) in clients.iter_mut().enumerate() {
        client.send(request_head("GET", &target_of_large, &[("Connection", "close")]));
        let head = client.head().unwrap();
        match head.status {
            200 => served.push(index),
            _ => assert_eq!(head.expect(503).field("retry-after"), Some("1")),
        }
    }
    assert_eq!(served.len(), ENCODERS_MAX);
    server.get(&format!("/{}.narinfo", hash_part(large))).expect(200);
    let flat = server.nar(hash_part(large)).expect(200);
    assert_same_bytes(&flat.body, &wanted, "uncompressed");
    server.get(&target(&fixture.store, small)).expect(503);

    // Some go on, and get the right bytes; the others leave.
    for index in &served[..3] {
        assert_decodes(&clients[*index].chunked_rest(), &wanted, "in the end");
    }
    drop(clients);
    eventually("every descriptor is closed", || server.descriptors() <= before);
    assert_decodes(&server.get(&target_of_large).expect(200).body, &wanted, "afterwards");
}

#[test]
fn many_at_once_get_the_right_bytes() {
    let (fixture, server) = (fixture(), fixture().store.serve());
    let path = fixture.path("many");
    let (target, wanted) = (target(&fixture.store, path), fixture.store.dump(path));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_decodes(&server.get(&target).expect(200).body, &wanted, "many"));
        }
    });
}
