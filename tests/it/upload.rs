//! Uploads into a cache directory, as any client of HTTP can make them: what is taken, and what is refused and why.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;

use crate::support::client::{chunked, request_head};
use crate::support::nix::hash_part;
use crate::support::server::command;
use crate::support::upload::{Package, Packing, UploadDir, nar_of};
use crate::support::{
    Connection, Narwire, Random, Reply, Store, assert_same_bytes, eventually, fixture, text,
};

/// What the limits of the server say, for one worker.
const UPLOADS_MAX: usize = 32;
const UPLOADS_WAITING_MAX: usize = 128;

const DERIVATION: &str = "3p0h0g3y1yrcxrkfhc5d5w3hm8lfxcpr-thing-1.0.drv";
const DRV_OUTPUT: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff!out";

impl Reply {
    /// A refusal as Nix shows it: one short line with these words in it.
    #[track_caller]
    fn expect_reason(self, status: u16, words: &str) -> Self {
        let reply = self.expect(status);
        let text = reply.text();
        assert!(text.contains(words), "{words:?} is not in {text:?}");
        assert!(text.len() < 1024 && text.ends_with('\n') && text.lines().count() == 1, "{text:?}");
        assert_eq!(reply.field("cache-control"), Some("no-store"));
        reply
    }
}

/// An upload of which the head and the first bytes are sent, and the rest is not.
fn begin(server: &Narwire, package: &Package) -> Connection {
    let mut connection = server.connect();
    let len = package.file.len().to_string();
    connection.send(request_head("PUT", &package.nar_target(), &[("Content-Length", &len)]));
    connection.send(&package.file[..package.file.len() / 2]);
    connection
}

/// Nothing that is served, and nothing on its way.
#[track_caller]
fn assert_untouched(directory: &UploadDir, files: &[String]) {
    assert_eq!(directory.files(), files);
    eventually("nothing is staged", || directory.staged().iter().all(|file| file.ends_with("lock")));
}

#[test]
fn whatever_is_uploaded_is_there_at_once_for_who_asks_another_worker() {
    let directory = UploadDir::new();
    let server = directory.serve();
    // Each connection goes to the worker that has fewest.
    let (mut writer, mut reader) = (server.connect(), server.connect());
    for round in 0..20 {
        let digit = char::from_digit(round % 10, 10).unwrap();
        let contents = Random(u64::from(round) + 1).bytes(10_000);
        let package = Package::new(digit, &contents, Packing::ALL[round as usize % 5]);
        reader.get(&package.nar_target()).expect_absent();
        package.put_nar(&mut writer);
        assert_same_bytes(&reader.get(&package.nar_target()).expect(200).body, &package.file, "the NAR");
        if round < 10 {
            reader.get(&package.narinfo_target()).expect_absent();
            writer.put(&package.narinfo_target(), package.narinfo()).expect(201);
            assert_eq!(reader.get(&package.narinfo_target()).expect(200).text(), package.narinfo());
            reader.request("HEAD", &package.narinfo_target(), &[]).expect(200);
        }
    }
}

#[test]
fn everything_that_nix_writes_beside_nars_is_taken_and_given_back() {
    let directory = UploadDir::new();
    let server = directory.serve();
    let package = Package::new('1', b"contents", Packing::None);
    let (mut writer, mut reader) = (server.connect(), server.connect());
    package.put(&mut writer);
    let out_path = &package.name;
    let realisation = format!(
        r#"{{"dependentRealisations":{{}},"id":"{DRV_OUTPUT}","outPath":"{out_path}","signatures":[]}}"#
    );
    let link = format!(r#"{{"archive":"..{}","member":"lib/debug/x"}}"#, package.nar_target());
    for (target, body) in [
        (
            package.narinfo_target().replace("narinfo", "ls"),
            r#"{"version":1,"root":{"type":"regular","size":8,"narOffset":96}}"#.to_owned(),
        ),
        (format!("/log/{DERIVATION}"), "building\n".to_owned()),
        (format!("/realisations/{DRV_OUTPUT}.doi"), realisation),
        (
            format!("/build-trace-v2/{DERIVATION}/out.doi"),
            format!(r#"{{"outPath":"{out_path}","signatures":[]}}"#),
        ),
        (format!("/debuginfo/{}.debug", "ab".repeat(20)), link),
        ("/nix-cache-info".to_owned(), "StoreDir: /nix/store\n".to_owned()),
    ] {
        writer.put(&target, &body).expect(201);
        let found = reader.get(&target).expect(200);
        if target == "/nix-cache-info" {
            assert!(found.text().starts_with(&body), "{}", found.text());
        } else if target.starts_with("/log/") {
            assert_eq!(found.text(), body);
        } else {
            let [found, body]: [serde_json::Value; 2] =
                [found.text(), body.as_str()].map(|text| serde_json::from_str(text).unwrap());
            assert_eq!(found, body, "{target}");
        }
        writer.put(&target, &body).expect(200);
    }
}

#[test]
fn texts_may_come_compressed_and_are_kept_as_they_are() {
    let directory = UploadDir::new();
    let server = directory.serve();
    let package = Package::new('1', b"contents", Packing::Xz);
    let mut connection = server.connect();
    package.put_nar(&mut connection);
    for (coding, packing) in
        [("zstd", Packing::Zstd), ("gzip", Packing::Gzip), ("xz", Packing::Xz), ("bzip2", Packing::Bzip2)]
    {
        let log = format!("/log/{}", DERIVATION.replace("thing", coding));
        let body = packing.pack(b"building\n");
        connection.upload("PUT", &log, &[("Content-Encoding", coding)], &body).expect(201);
        let reply = connection.get(&log).expect(200);
        assert_eq!((reply.text(), reply.field("content-encoding")), ("building\n", None));
        let (target, body) = (package.narinfo_target(), packing.pack(package.narinfo().as_bytes()));
        connection.upload("PUT", &target, &[("Content-Encoding", coding)], &body);
        assert_eq!(connection.get(&target).expect(200).text(), package.narinfo());
    }
}

#[test]
fn a_client_that_waits_for_100_gets_it_before_it_has_sent_anything() {
    let directory = UploadDir::new();
    let server = directory.serve();
    let package = Package::new('1', &Random(1).bytes(2_000_000), Packing::None);
    let mut connection = server.connect();
    for (target, body) in
        [(package.nar_target(), package.file.clone()), (package.narinfo_target(), package.narinfo().into())]
    {
        let len = body.len().to_string();
        let fields = [("Content-Length", len.as_str()), ("Expect", "100-continue")];
        connection.send(request_head("PUT", &target, &fields));
        assert_eq!(connection.head().unwrap().status, 100, "{target}");
        connection.send(&body);
        connection.reply_to("PUT").expect(201);
    }
    // And a client that is refused gets nothing else.
    let fields = [("Content-Length", "10"), ("Expect", "100-continue")];
    connection.send(request_head("PUT", "/nar/x.nar", &fields));
    connection.reply_to("PUT").expect_reason(400, "nar/HASH.nar");
}

#[test]
fn bodies_may_come_in_chunks() {
    let directory = UploadDir::new();
    let server = directory.serve();
    let mut connection = server.connect();
    for (digit, len) in [('1', 1), ('2', 1000), ('3', 300_000)] {
        let package = Package::new(digit, &Random(len).bytes(20_000), Packing::Zstd);
        let head = request_head("PUT", &package.nar_target(), &[("Transfer-Encoding", "chunked")]);
        connection.send(head);
        connection.send(chunked(&package.file, usize::try_from(len).unwrap()));
        connection.reply_to("PUT").expect(201);
        let found = connection.get(&package.nar_target()).expect(200);
        assert_same_bytes(&found.body, &package.file, "the NAR");
    }
}

#[test]
fn requests_behind_an_upload_are_answered_after_it() {
    let directory = UploadDir::new();
    let server = directory.serve();
    let package = Package::new('1', &Random(3).bytes(600_000), Packing::None);
    let mut connection = server.connect();
    let len = package.file.len().to_string();
    let mut requests = request_head("PUT", &package.nar_target(), &[("Content-Length", &len)]).into_bytes();
    requests.extend_from_slice(&package.file);
    let narinfo = package.narinfo();
    let len = narinfo.len().to_string();
    requests.extend(request_head("PUT", &package.narinfo_target(), &[("Content-Length", &len)]).bytes());
    requests.extend(narinfo.bytes());
    requests.extend(request_head("GET", &package.narinfo_target(), &[]).bytes());
    connection.send(requests);
    connection.reply_to("PUT").expect(201);
    connection.reply_to("PUT").expect(201);
    assert_eq!(connection.reply_to("GET").expect(200).text(), narinfo);
}

#[test]
fn what_is_not_what_its_name_says_is_refused_and_leaves_nothing() {
    let directory = UploadDir::new();
    let server = directory.serve();
    let mut random = Random(5);
    for packing in Packing::ALL {
        let package = Package::new('1', &random.bytes(400_000), packing);
        // Another file, one byte changed, an end too early, something behind the end.
        let mut changed = package.file.clone();
        changed[200_000] ^= 1;
        let cut = package.file[..package.file.len() - 8].to_vec();
        let longer = [&package.file[..], &[0; 8]].concat();
        for body in [Random(1).bytes(1000), changed, cut, longer, Vec::new()] {
            let reply = server.connect().put(&package.nar_target(), &body);
            assert!([400, 422].contains(&reply.status), "{packing:?}: {} {}", reply.status, reply.text());
        }
        server.get(&package.nar_target()).expect_absent();
    }
    // The hash is right, and it is no NAR.
    for packing in Packing::ALL {
        let mut package = Package::new('1', b"", packing);
        package.nar = random.bytes(1000);
        package.file = packing.pack(&package.nar);
        server.connect().put(&package.nar_target(), &package.file).expect_reason(400, "NAR");
    }
    assert_untouched(&directory, &[]);
    let refused: u64 = ["malformed", "mismatch"]
        .iter()
        .map(|class| server.count(&format!("narwire_uploads_total{{result=\"{class}\"}}")).unwrap())
        .sum();
    assert_eq!((refused, server.count("narwire_uploads_total{result=\"stored\"}")), (30, Some(0)));
}

#[test]
fn an_upload_that_is_broken_off_leaves_nothing() {
    let directory = UploadDir::new();
    let server = directory.serve();
    let package = Package::new('1', &Random(7).bytes(3_000_000), Packing::None);
    let target = package.nar_target();
    for len in [0, 1, 100_000, package.file.len() - 1] {
        let mut connection = server.connect();
        let whole = package.file.len().to_string();
        connection.send(request_head("PUT", &target, &[("Content-Length", &whole)]));
        connection.send(&package.file[..len]);
        if len > 100 {
            eventually("something is staged", || !directory.staged().is_empty());
        }
        drop(connection);
    }
    let mut connection = server.connect();
    connection.send(request_head("PUT", &target, &[("Transfer-Encoding", "chunked")]));
    connection.send(&chunked(&package.file, 1000)[..1_000_000]);
    // It may still read what is said to it, and is not told that all is well.
    connection.finish_sending();
    assert!(!connection.rest().starts_with(b"HTTP/1.1 20"));
    let broken_off = || server.count("narwire_uploads_total{result=\"broken_off\"}") >= Some(5);
    eventually("all of them were seen to go", broken_off);
    eventually("nothing is under way", || server.count("narwire_uploads_under_way") == Some(0));
    server.get(&target).expect_absent();
    assert_untouched(&directory, &[]);
    package.put_nar(&mut server.connect());
}

#[test]
fn a_narinfo_has_to_be_true() {
    let directory = UploadDir::new();
    let server = directory.serve();
    let package = Package::new('1', b"contents", Packing::Xz);
    let other = Package::new('2', b"other contents", Packing::Xz);
    package.put_nar(&mut server.connect());
    other.put(&mut server.connect());
    let files = directory.files();
    let (own, stranger) = (package.narinfo(), other.narinfo());
    let field = |name: &str, of: &str| {
        of.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned)).unwrap()
    };
    let missing = Package::new('3', b"never uploaded", Packing::Xz);
    let cases = [
        ("another path", package.narinfo_with("StorePath", &field("StorePath", &stranger))),
        ("another store", package.narinfo_with("StorePath", &format!("/gnu/store/{}", package.name))),
        ("no path", package.narinfo_with("StorePath", "nonsense")),
        ("another file", package.narinfo_with("URL", &field("URL", &stranger))),
        ("no file", package.narinfo_with("URL", &field("URL", &missing.narinfo()))),
        ("a file elsewhere", package.narinfo_with("URL", "https://example.org/x.nar.xz")),
        ("a file above", package.narinfo_with("URL", "../nar/x.nar.xz")),
        ("another compression", package.narinfo_with("Compression", "zstd")),
        ("another file hash", package.narinfo_with("FileHash", &field("FileHash", &stranger))),
        ("another file size", package.narinfo_with("FileSize", "7")),
        ("another NAR hash", package.narinfo_with("NarHash", &field("NarHash", &stranger))),
        ("another NAR size", package.narinfo_with("NarSize", "7")),
        ("a reference that is not there", package.narinfo_with("References", &missing.name)),
        ("a reference that is none", package.narinfo_with("References", "nonsense")),
        ("half of it", own[..own.len() / 2].to_owned()),
        ("nothing", String::new()),
        ("no text", "\u{0}".repeat(100)),
    ];
    for (what, narinfo) in cases {
        let reply = server.connect().put(&package.narinfo_target(), narinfo);
        assert!([400, 409, 422].contains(&reply.status), "{what}: {} {}", reply.status, reply.text());
        let status = reply.status;
        reply.expect_reason(status, "");
        server.get(&package.narinfo_target()).expect_absent();
    }
    assert_untouched(&directory, &files);
    server.connect().put(&package.narinfo_target(), own).expect(201);
}

#[test]
fn references_are_to_this_path_or_to_what_is_served() {
    let (directory, further, fixture) = (UploadDir::new(), UploadDir::new(), fixture());
    let served = Package::new('4', b"in the further directory", Packing::None);
    fs::write(further.path().join(&served.narinfo_target()[1..]), served.narinfo()).unwrap();
    let mut flags = [directory.flags(), fixture.store.flags()].concat();
    flags.extend([text(further.path()), "--with-store", "--workers", "2"].map(str::to_owned));
    let server = Narwire::start(flags);
    let live = fixture.path("small").rsplit('/').next().unwrap();
    let first = Package::new('1', b"first", Packing::Zstd);
    let mut connection = server.connect();
    first.put(&mut connection);
    let second = Package::new('2', b"second", Packing::Zstd);
    let own = second.name.clone();
    let second = second.referring_to(&[&own, &first.name, &served.name, live]);
    second.put(&mut connection);
    assert_eq!(connection.get(&second.narinfo_target()).expect(200).text(), second.narinfo());
    let third = Package::new('3', b"third", Packing::Zstd);
    third.put_nar(&mut connection);
    // What nobody can read is nothing that a path could need, and a path of the same hash part is another one.
    fs::write(further.path().join("6".repeat(32) + ".narinfo"), "").unwrap();
    let unreadable = "6".repeat(32) + "-unreadable";
    for reference in [format!("{live}x"), format!("{}x", served.name), "5".repeat(32) + "-absent", unreadable]
    {
        let narinfo = third.clone().referring_to(&[&reference]).narinfo();
        let reply = server.connect().put(&third.narinfo_target(), narinfo);
        reply.expect_reason(409, &reference);
    }
}

#[test]
fn a_path_keeps_its_contents() {
    let directory = UploadDir::new();
    let server = directory.serve();
    let (first, second) =
        (Package::new('1', b"first", Packing::Xz), Package::new('1', b"second", Packing::Xz));
    let mut connection = server.connect();
    first.put(&mut connection);
    second.put_nar(&mut connection);
    let reply = connection.put(&second.narinfo_target(), second.narinfo());
    reply.expect_reason(409, &first.name[..32]);
    assert_eq!(server.get(&first.narinfo_target()).expect(200).text(), first.narinfo());
    // The same NAR in another file is the same path.
    let repacked = Package::new('1', b"first", Packing::Zstd);
    let mut connection = server.connect();
    repacked.put_nar(&mut connection);
    connection.put(&repacked.narinfo_target(), repacked.narinfo()).expect(200);
    connection.put(&first.nar_target(), &first.file).expect(200);
}

#[test]
fn only_what_required_keys_have_signed_is_taken() {
    let (directory, fixture) = (UploadDir::new(), fixture());
    let server = directory.serve_with(&["--require-signature", &fixture.key.public]);
    let (path, nix) = (fixture.path("small"), &fixture.store.nix);
    let copy = |secret_file| {
        let url = format!("{}?compression=none&secret-key={}", server.url(), text(secret_file));
        let mut command = nix.command("nix");
        command.args(["copy", "--from", fixture.store.uri(), "--to", &url, path]).output().unwrap()
    };
    assert!(!copy(&fixture.other_key.secret_file).status.success());
    server.get(&format!("/{}.narinfo", hash_part(path))).expect_absent();
    assert!(copy(&fixture.key.secret_file).status.success());
    server.get(&format!("/{}.narinfo", hash_part(path))).expect(200);
    let unsigned = Package::new('1', b"contents", Packing::None);
    let mut connection = server.connect();
    unsigned.put_nar(&mut connection);
    connection.put(&unsigned.narinfo_target(), unsigned.narinfo()).expect_reason(403, "sign");
    // An export has no signatures at all.
    server.connect().upload("POST", "/import", &[], &[1; 100]).expect_reason(403, "sign");
}

#[test]
fn clients_that_race_for_one_path_all_succeed() {
    let directory = UploadDir::new();
    let server = directory.serve();
    for digit in '0'..'5' {
        let package = Package::new(digit, &Random(9).bytes(300_000), Packing::Zstd);
        let statuses: BTreeSet<u16> = thread::scope(|scope| {
            let clients: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let mut connection = server.connect();
                        let nar = connection.put(&package.nar_target(), &package.file).status;
                        [nar, connection.put(&package.narinfo_target(), package.narinfo()).status]
                    })
                })
                .collect();
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        });
        assert!(statuses.is_subset(&BTreeSet::from([200, 201])), "{statuses:?}");
        assert_eq!(server.get(&package.narinfo_target()).expect(200).text(), package.narinfo());
        assert_same_bytes(&server.get(&package.nar_target()).expect(200).body, &package.file, "the NAR");
    }
    assert_eq!(directory.files().len(), 6, "one NAR, five paths");
    assert_untouched(&directory, &directory.files());
}

#[test]
fn names_lead_nowhere_else() {
    let directory = UploadDir::new();
    let server = directory.serve();
    let package = Package::new('1', b"contents", Packing::None);
    package.put(&mut server.connect());
    let files = directory.files();
    let nar = &package.nar_target()[1..];
    for target in [
        "/../x.narinfo".to_owned(),
        "/nar/../../x".to_owned(),
        format!("/nar/../{nar}"),
        format!("/nar/..%2f{nar}"),
        format!("/nar/%2e%2e/{nar}"),
        "/%2e%2e%2fx.narinfo".to_owned(),
        format!("//{nar}"),
        format!("/.{nar}"),
        "/.narwire-uploads/x".to_owned(),
        "/.narwire-uploads".to_owned(),
        "/nar/.hidden.nar".to_owned(),
        "/log/..".to_owned(),
        "/log/../../x.drv".to_owned(),
        "/realisations/../x.doi".to_owned(),
        "/build-trace-v2/../../x.doi".to_owned(),
        "/debuginfo/../../x.debug".to_owned(),
        "/etc/passwd".to_owned(),
        "/nar/%00.nar".to_owned(),
    ] {
        let reply = server.connect().put(&target, &package.file);
        assert!([400, 404].contains(&reply.status), "{target}: {}", reply.status);
    }
    assert_untouched(&directory, &files);
}

#[test]
fn what_is_on_its_way_is_not_served() {
    let directory = UploadDir::new();
    let server = directory.serve();
    let package = Package::new('1', &Random(1).bytes(1_000_000), Packing::None);
    let connection = begin(&server, &package);
    eventually("it is staged", || directory.staged().iter().any(|file| !file.ends_with("lock")));
    for file in directory.staged() {
        server.get(&format!("/{file}")).expect_absent();
    }
    server.get(&package.nar_target()).expect_absent();
    drop(connection);
}

#[test]
fn nothing_is_longer_than_allowed() {
    let directory = UploadDir::new();
    let server = directory.serve_with(&["--upload-max-size", "100k"]);
    let package = Package::new('1', &Random(1).bytes(200_000), Packing::None);
    // From its length, before it is sent.
    let mut connection = server.connect();
    let len = package.file.len().to_string();
    let fields = [("Content-Length", len.as_str()), ("Expect", "100-continue")];
    connection.send(request_head("PUT", &package.nar_target(), &fields));
    connection.reply_to("PUT").expect_reason(413, "bytes");
    assert!(connection.ends());
    // While it comes, and by the length of what is packed in it.
    let mut connection = server.connect();
    connection.send(request_head("PUT", &package.nar_target(), &[("Transfer-Encoding", "chunked")]));
    connection.send_if_wanted(chunked(&package.file, 10_000));
    connection.reply_to("PUT").expect_reason(413, "bytes");
    for packing in [Packing::Zstd, Packing::Xz, Packing::Bzip2, Packing::Gzip] {
        let bomb = Package::new('1', &vec![0; 5_000_000], packing);
        assert!(bomb.file.len() < 100_000);
        server.connect().put(&bomb.nar_target(), &bomb.file).expect_reason(413, "bytes");
    }
    assert_untouched(&directory, &[]);
}

#[test]
fn a_full_disk_takes_nothing_more_and_serves_on() {
    let directory = UploadDir::new();
    let mount = "mount -t tmpfs -o size=2m tmpfs \"$0\"";
    let server = Narwire::start_mounted(directory.path(), mount, &directory.flags());
    let small = Package::new('1', &Random(1).bytes(500_000), Packing::None);
    small.put(&mut server.connect());
    let large = Package::new('2', &Random(2).bytes(4_000_000), Packing::None);
    // From its length, before it is sent.
    let mut connection = server.connect();
    let len = large.file.len().to_string();
    let fields = [("Content-Length", len.as_str()), ("Expect", "100-continue")];
    connection.send(request_head("PUT", &large.nar_target(), &fields));
    connection.reply_to("PUT").expect_reason(507, "room");
    // While it comes.
    let mut connection = server.connect();
    connection.send(request_head("PUT", &large.nar_target(), &[("Transfer-Encoding", "chunked")]));
    connection.send_if_wanted(chunked(&large.file, 10_000));
    connection.reply_to("PUT").expect_reason(507, "room");
    server.get(&large.nar_target()).expect_absent();
    assert_same_bytes(&server.get(&small.nar_target()).expect(200).body, &small.file, "the small one");
    // Nothing of it stays, so there is room for what fits.
    let other = Package::new('3', &Random(3).bytes(500_000), Packing::None);
    other.put(&mut server.connect());
}

#[test]
fn too_many_uploads_wait_and_more_are_told_to_come_again() {
    let directory = UploadDir::new();
    let server = directory.serve_with(&["--workers", "1"]);
    let packages: Vec<Package> = (0..UPLOADS_MAX + UPLOADS_WAITING_MAX)
        .map(|index| Package::new('1', &Random(index as u64 + 1).bytes(10_000), Packing::None))
        .collect();
    let mut connections = Vec::new();
    for package in &packages {
        connections.push(begin(&server, package));
    }
    eventually("all places are taken, and all in the line", || {
        let [under_way, waiting] = ["narwire_uploads_under_way", "narwire_uploads_waiting"];
        (server.count(under_way), server.count(waiting))
            == (Some(UPLOADS_MAX as u64), Some(UPLOADS_WAITING_MAX as u64))
    });
    let refused = server.connect().put(&packages[0].nar_target(), &packages[0].file);
    let refused = refused.expect_reason(503, "again");
    assert_eq!(refused.field("retry-after"), Some("1"));
    // Other things are not in anybody's way.
    server.connect().put(&format!("/log/{DERIVATION}"), "building\n").expect(201);
    // Half of those who have places go, all others go on.
    connections.drain(..UPLOADS_MAX / 2);
    for (connection, package) in connections.iter_mut().zip(&packages[UPLOADS_MAX / 2..]) {
        connection.send(&package.file[package.file.len() / 2..]);
    }
    for (connection, package) in connections.iter_mut().zip(&packages[UPLOADS_MAX / 2..]) {
        connection.reply_to("PUT").expect(201);
        assert_same_bytes(&connection.get(&package.nar_target()).expect(200).body, &package.file, "a NAR");
    }
    eventually("nothing is under way", || server.count("narwire_uploads_under_way") == Some(0));
}

#[test]
fn what_cannot_be_looked_into_is_refused_with_the_way_out() {
    let directory = UploadDir::new();
    let server = directory.serve();
    let package = Package::new('1', b"contents", Packing::None);
    let target = package.nar_target();
    for suffix in [".lzip", ".lz4"] {
        let reply = server.connect().put(&format!("{target}{suffix}"), &package.file);
        reply.expect_reason(415, "zstd");
    }
    let log = format!("/log/{DERIVATION}");
    for coding in ["compress", "gzip, zstd", "nonsense", "\u{fc}"] {
        let reply = server.connect().upload("PUT", &log, &[("Content-Encoding", coding)], b"text");
        reply.expect_reason(415, "");
    }
    // NARs are stored as they come, so they have no coding besides their own.
    let reply = server.connect().upload("PUT", &target, &[("Content-Encoding", "zstd")], &package.file);
    reply.expect_reason(415, "");
    assert_untouched(&directory, &[]);
}

#[test]
fn each_resource_says_what_can_be_done_with_it() {
    let directory = UploadDir::new();
    let server = directory.serve();
    let package = Package::new('1', b"contents", Packing::None);
    for (method, target, allowed) in [
        ("DELETE", package.nar_target(), "GET, HEAD, PUT"),
        ("POST", package.narinfo_target(), "GET, HEAD, PUT"),
        ("DELETE", "/health".to_owned(), "GET, HEAD"),
        ("PUT", "/".to_owned(), "GET, HEAD"),
        ("PUT", "/metrics".to_owned(), "GET, HEAD"),
        ("PUT", "/import".to_owned(), "POST"),
        ("GET", "/import".to_owned(), "POST"),
    ] {
        let reply = server.request(method, &target, &[]).expect(405);
        assert_eq!(reply.field("allow"), Some(allowed), "{method} {target}");
    }
    server.request("DELETE", &package.nar_target(), &[]).expect_reason(405, "nothing is deleted over HTTP");
    server.request("PUT", &package.nar_target(), &[]).expect_reason(411, "Content-Length");
    let fields = [("If-None-Match", "*")];
    server.connect().upload("PUT", &package.nar_target(), &fields, &package.file).expect(501);
    // A part is not put in the place of the whole.
    let log = format!("/log/{DERIVATION}");
    let fields = [("Content-Range", "bytes 5-8/9")];
    server.connect().upload("PUT", &log, &fields, b"part").expect_reason(400, "Content-Range");
    server.get(&log).expect_absent();
}

#[test]
fn nothing_is_taken_unless_it_was_said() {
    let directory = UploadDir::new();
    let server = Narwire::start([directory.path()]);
    let package = Package::new('1', b"contents", Packing::None);
    for (method, target) in
        [("PUT", package.nar_target()), ("PUT", package.narinfo_target()), ("POST", "/import".to_owned())]
    {
        let reply = server.connect().upload(method, &target, &[], &package.file);
        assert_eq!(reply.expect_reason(405, "read-only").field("allow"), Some("GET, HEAD"));
    }
    server.get("/import").expect_absent();
    assert!(fs::read_dir(directory.path()).unwrap().next().is_none(), "nothing is even prepared");
}

#[test]
fn a_directory_that_cannot_be_written_to_ends_the_start_with_one_line() {
    let directory = UploadDir::new();
    // Where the uploads would be prepared, somebody has put a file.
    fs::write(directory.path().join(".narwire-uploads"), "in the way").unwrap();
    let output = command().args(directory.flags()).args(["--listen", "127.0.0.1:0"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(".narwire-uploads") && said.lines().count() == 1, "{said}");
}

/// What `nix-store --export` writes of the closure of these paths.
fn export(store: &Store, paths: &[&str]) -> Vec<u8> {
    let closure = store.nix_store(&[&["--query", "--requisites"], paths].concat());
    let mut command = store.nix.command("nix-store");
    let mut export = command
        .args(["--store", store.uri(), "--export"])
        .args(closure.lines())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut bytes = Vec::new();
    export.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
    assert!(export.wait().unwrap().success());
    bytes
}

#[test]
fn an_export_is_taken_whole_and_copied_back() {
    let (directory, fixture) = (UploadDir::new(), fixture());
    let server = directory.serve();
    let paths =
        ["program-1.0", "odd", "deep", "sizes", "empty-file", "a+b?c=d_e-1.2"].map(|name| fixture.path(name));
    let export = export(&fixture.store, &paths);
    let mut connection = server.connect();
    connection.send(request_head("POST", "/import", &[("Transfer-Encoding", "chunked")]));
    connection.send(chunked(&export, 100_000));
    let said = connection.reply_to("POST");
    assert!([200, 201].contains(&said.status), "{} {}", said.status, said.text());
    for path in paths {
        assert!(said.text().lines().any(|line| line.contains(path)), "{path} is not in {}", said.text());
    }
    // Once more: nothing is new.
    connection.upload("POST", "/import", &[], &export).expect(200);
    for nix in crate::support::Nix::all() {
        let nix = nix.configured("require-sigs = false");
        let destination = Store::new(nix);
        destination.nix.run(
            "nix",
            &[&["copy", "--no-check-sigs", "--from", &server.url(), "--to", destination.uri()], &paths[..]]
                .concat(),
        );
        for path in paths {
            assert_eq!(destination.nar_hash(path), fixture.store.nar_hash(path));
        }
    }
}

#[test]
fn curl_posts_an_export_as_the_manual_says() {
    let (directory, fixture) = (UploadDir::new(), fixture());
    let server = directory.serve();
    let mut curl = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--fail",
            "--data-binary",
            "@-",
            &format!("{}/import", server.url()),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let path = fixture.path("program-1.0");
    curl.stdin.take().unwrap().write_all(&export(&fixture.store, &[path])).unwrap();
    let output = curl.wait_with_output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains(path));
    server.get(&format!("/{}.narinfo", hash_part(path))).expect(200);
}

#[test]
fn what_is_no_export_is_refused_and_what_came_before_stays_whole() {
    let (directory, fixture) = (UploadDir::new(), fixture());
    let server = directory.serve();
    let mut random = Random(11);
    for garbage in [b"".to_vec(), b"text".to_vec(), random.bytes(100_000), vec![1; 8], nar_of(b"a NAR")] {
        let reply = server.connect().upload("POST", "/import", &[], &garbage);
        // Nothing at all is an export of nothing, if its end is said.
        reply.expect_reason(400, "");
    }
    assert_untouched(&directory, &[]);
    let export = export(&fixture.store, &[fixture.path("program-1.0")]);
    for _ in 0..10 {
        let len = usize::try_from(random.below(export.len() as u64 - 1)).unwrap();
        server.connect().upload("POST", "/import", &[], &export[..len]).expect_reason(400, "");
    }
    for file in directory.files() {
        if let Some(hash_part) = file.strip_suffix(".narinfo") {
            server.nar(hash_part).expect(200);
        }
    }
    assert_untouched(&directory, &directory.files());
    // What was whole is skipped, and the rest follows.
    let said = server.connect().upload("POST", "/import", &[], &export);
    assert!([200, 201].contains(&said.status), "{} {}", said.status, said.text());
}
