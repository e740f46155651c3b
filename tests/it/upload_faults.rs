//! Uploads when everything goes wrong: killed anywhere, no room, no rights, a disk that fails, clients that race or go away.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use rustix::process::Signal;

use crate::support::nix::hash_part;
use crate::support::nix_upload::{contents_beneath, copy_up, nar_target};
use crate::support::server::fault_points;
use crate::support::upload::UploadDir;
use crate::support::{Connection, Narwire, Nix, Random, Store, assert_same_bytes, eventually, fixture, text};

/// What a client sends, in its order, and what it may ask for afterwards.
struct Parcel {
    /// Names and contents.
    files: Vec<(String, Vec<u8>)>,
    /// Two more paths, one of which refers to the other.
    export: Vec<u8>,
    exported: Vec<String>,
}

impl Parcel {
    /// A library and a program, with all that may go with them, and the text that refers to another.
    fn get() -> &'static Self {
        static PARCEL: OnceLock<Parcel> = OnceLock::new();
        PARCEL.get_or_init(Self::new)
    }

    fn new() -> Self {
        let (fixture, folder) = (fixture(), tempfile::tempdir().unwrap());
        let [library, program] = ["library-1.0", "program-1.0"].map(|name| fixture.path(name));
        let cache = format!("file://{}", text(folder.path()));
        let options = "compression=zstd&write-nar-listing=true&index-debug-info=true";
        copy_up(&Nix::newer(), &fixture.store, &cache, options, &fixture.key, &[program]);
        let log = ["store", "copy-log", "--from", fixture.store.uri(), "--to", &cache];
        Nix::newer().run("nix", &[&log[..], &[fixture.path("library-1.0.drv")]].concat());
        let mut written = contents_beneath(folder.path());
        let mut order = vec!["nix-cache-info".to_owned()];
        order.extend(
            written
                .keys()
                .filter(|name| ["log/", "debuginfo/"].iter().any(|start| name.starts_with(start)))
                .cloned(),
        );
        for path in [library, program] {
            let narinfo = format!("{}.narinfo", hash_part(path));
            order.extend([format!("{}.ls", hash_part(path)), nar_target(&written[&narinfo]), narinfo]);
        }
        let files = order.into_iter().map(|name| {
            let contents = written.remove(&name).unwrap();
            (name, contents)
        });
        let files = files.collect();
        assert!(written.is_empty(), "not sent: {:?}", written.keys());
        let exported = ["mentioned", "text"].map(|name| fixture.path(name).to_owned()).to_vec();
        let export = fixture
            .store
            .nix
            .command("nix-store")
            .args(["--store", fixture.store.uri(), "--export"])
            .args(&exported)
            .output()
            .unwrap()
            .stdout;
        Self { files, export, exported }
    }

    /// Sends all of it on one connection; gives how many were acknowledged before the server ended, or failed.
    fn send(&self, server: &Narwire) -> usize {
        let Some(mut connection) = Connection::try_open(server.address()) else { return 0 };
        let puts = self.files.iter().map(|(name, contents)| ("PUT", format!("/{name}"), contents));
        let all = puts.chain([("POST", "/import".to_owned(), &self.export)]);
        for (index, (method, target, contents)) in all.enumerate() {
            match connection.try_upload(method, &target, &[], contents) {
                Some(reply) if reply.complete && [200, 201].contains(&reply.status) => {}
                Some(reply) if reply.complete => {
                    assert!([500, 507].contains(&reply.status), "{target}: {reply:?}");
                    return index;
                }
                Some(_) | None => return index,
            }
        }
        self.len()
    }

    /// Everything that is sent.
    fn len(&self) -> usize {
        self.files.len() + 1
    }

    /// The first so many are there, as they were sent.
    #[track_caller]
    fn assert_there(&self, server: &Narwire, acknowledged: usize) {
        let mut connection = server.connect();
        for (name, contents) in
            self.files.iter().take(acknowledged).filter(|(name, _)| name != "nix-cache-info")
        {
            assert_same_bytes(&connection.get(&format!("/{name}")).expect(200).body, contents, name);
        }
        if acknowledged == self.len() {
            for path in &self.exported {
                connection.get(&format!("/{}.narinfo", hash_part(path))).expect(200);
            }
        }
    }
}

#[test]
fn wherever_it_is_killed_the_next_server_has_what_was_acknowledged_and_takes_the_rest() {
    let parcel = Parcel::get();
    // What is switched off is the ring's, and has no part in this: then every seventh will do.
    let step = if env::var_os("NARWIRE_TEST_WITHOUT").is_some() { 7 } else { 1 };
    for point in (1..).step_by(step) {
        let cache = UploadDir::new();
        let fault = format!("kill@{point}");
        let faulty = cache.flags().into_iter().chain(["--fault".to_owned(), fault]);
        let mut server = Narwire::start_or_end(faulty);
        let first = if server.has_exited() { 0 } else { parcel.send(&server) };
        // Once more, over what is there.
        let has_survived = first == parcel.len() && parcel.send(&server) == parcel.len();
        if !has_survived {
            server.exit();
        }
        drop(server);
        eprintln!("point {point}: {first} acknowledged, survived: {has_survived}");
        cache.assert_sound();
        let again = cache.serve();
        assert!(cache.staged().is_empty(), "{:?}", cache.staged());
        cache.assert_sound();
        parcel.assert_there(&again, first);
        assert_eq!(parcel.send(&again), parcel.len());
        cache.assert_sound();
        parcel.assert_there(&again, parcel.len());
        if point % 10 == 1 {
            copies_back(&again);
        }
        if has_survived {
            assert!(point > 20, "that can't have been all");
            return;
        }
    }
}

/// A real client reads all of it.
fn copies_back(server: &Narwire) {
    let (key, destination) = (&fixture().key, Store::new(Nix::newest()));
    destination.copy_from(&server.url(), key, &[fixture().path("program-1.0")]);
    destination.verify(key);
}

/// Those that a server passes that is uploaded to.
fn upload_fault_points() -> Vec<String> {
    fault_points(|file| file.starts_with("store/upload") || file == "store/draft.rs").into_iter().collect()
}

#[test]
fn wherever_the_disk_fails_the_client_is_told_and_the_next_attempt_succeeds() {
    let parcel = Parcel::get();
    let points = upload_fault_points();
    let mut failed = 0;
    for (point, error) in points.iter().zip(["ENOSPC", "EIO", "EROFS"].iter().cycle()) {
        let cache = UploadDir::new();
        let fault = format!("{error}@{point}:1");
        let server = cache.serve_with(&["--fault", &fault]);
        let acknowledged = parcel.send(&server);
        eprintln!("{fault}: {acknowledged} acknowledged");
        failed += usize::from(acknowledged < parcel.len());
        eventually("nothing is staged", || cache.staged().is_empty());
        cache.assert_sound();
        parcel.assert_there(&server, acknowledged);
        assert_eq!(parcel.send(&server), parcel.len(), "{fault}");
        cache.assert_sound();
        parcel.assert_there(&server, parcel.len());
        server.get("/health").expect(200);
    }
    assert!(points.len() > 10 && failed > points.len() / 2, "{failed} of {points:?}");
}

/// A NAR of random bytes, flat, with its target and its narinfo.
fn long_nar(store: &Store, len: usize) -> (String, Vec<u8>, String) {
    let path = store.add_bytes("long", &Random(7).bytes(len));
    let nar = store.dump(&path);
    let hash = store.nar_hash(&path);
    let target = format!("/nar/{hash}.nar");
    let size = nar.len();
    let narinfo = format!(
        "StorePath: {path}\nURL: nar/{hash}.nar\nCompression: none\nFileHash: sha256:{hash}\nFileSize: {size}\n\
         NarHash: sha256:{hash}\nNarSize: {size}\nReferences: \n"
    );
    (target, nar, narinfo)
}

/// The head of an upload of so many bytes.
fn head(target: &str, len: usize) -> String {
    format!("PUT {target} HTTP/1.1\r\nHost: cache.test\r\nContent-Length: {len}\r\n\r\n")
}

/// A connection on which half of a body was sent, of which the server has some.
fn half_sent(server: &Narwire, cache: &UploadDir, target: &str, nar: &[u8]) -> Connection {
    let before = cache.staged().len();
    let mut connection = server.connect();
    connection.send(head(target, nar.len()));
    connection.send(&nar[..nar.len() / 2]);
    eventually("it is under way", || cache.staged().len() > before);
    connection
}

#[test]
fn an_upload_that_is_under_way_at_the_end_is_finished() {
    let store = Store::new(Nix::installed());
    let (target, nar, _) = long_nar(&store, 3_000_000);
    let cache = UploadDir::new();
    let mut server = cache.serve();
    let mut connection = half_sent(&server, &cache, &target, &nar);
    let address = server.address();
    server.signal(Signal::TERM);
    eventually("it takes nobody new", || Connection::try_open(address).is_none());
    // The next server is there already, and leaves alone what is not its own.
    let next = cache.serve();
    connection.send(&nar[nar.len() / 2..]);
    connection.reply_to("PUT").expect(201);
    assert!(server.exit().success(), "{}", server.output());
    assert_same_bytes(&next.get(&target).expect(200).body, &nar, &target);
    assert!(cache.staged().is_empty());
}

#[test]
fn what_a_killed_server_had_half_is_gone_with_the_next() {
    let store = Store::new(Nix::installed());
    let (target, nar, narinfo) = long_nar(&store, 3_000_000);
    let cache = UploadDir::new();
    let mut server = cache.serve();
    let halves: Vec<_> = (0..3).map(|_| half_sent(&server, &cache, &target, &nar)).collect();
    server.signal(Signal::KILL);
    server.exit();
    drop(halves);
    assert_eq!(cache.staged().len(), 3);
    let next = cache.serve();
    assert!(cache.staged().is_empty(), "{:?}", cache.staged());
    next.get(&target).expect_absent();
    let mut connection = next.connect();
    connection.put(&target, &nar).expect(201);
    connection.put(&format!("/{}.narinfo", &hash_of(&narinfo)), &narinfo).expect(201);
    cache.assert_sound();
}

/// The name of a narinfo.
fn hash_of(narinfo: &str) -> String {
    hash_part(narinfo.lines().next().unwrap().trim_start_matches("StorePath: ")).to_owned()
}

#[test]
fn a_narinfo_has_to_agree_with_a_nar_that_an_earlier_process_took() {
    let store = Store::new(Nix::installed());
    let (target, nar, narinfo) = long_nar(&store, 3_000_000);
    let narinfo_target = format!("/{}.narinfo", hash_of(&narinfo));
    let cache = UploadDir::new();
    cache.serve().connect().put(&target, &nar).expect(201);
    let file = cache.path().join(&target[1..]);
    // It has rotted meanwhile, or is not all there; then it is sent again.
    let mut rotten = nar.clone();
    rotten[2_000_000] ^= 1;
    for damaged in [&rotten[..], &nar[..2_000_000], b""] {
        fs::write(&file, damaged).unwrap();
        let server = cache.serve();
        let mut connection = server.connect();
        // Nix asks first, and does not send what is there.
        connection.request("HEAD", &target, &[]).expect(200);
        connection.put(&narinfo_target, &narinfo).expect(409);
        connection.get(&narinfo_target).expect_absent();
        connection.request("HEAD", &target, &[]).expect(404);
        connection.put(&target, &nar).expect(201);
        connection.put(&narinfo_target, &narinfo).expect(201);
        assert_same_bytes(&connection.get(&target).expect(200).body, &nar, &target);
        fs::remove_file(cache.path().join(&narinfo_target[1..])).unwrap();
        assert_eq!(cache.staged(), [format!(".narwire-uploads/quarantine{}", &target["/nar".len()..])]);
    }
    fs::remove_dir_all(cache.path().join(".narwire-uploads/quarantine")).unwrap();
    fs::remove_file(&file).unwrap();
    let server = cache.serve();
    server.connect().put(&narinfo_target, &narinfo).expect(409);
    server.connect().put(&target, &nar).expect(201);
    drop(server);
    let server = cache.serve();
    server.connect().put(&narinfo_target, &narinfo).expect(201);
    cache.assert_sound();
}

#[test]
fn clients_that_go_away_leave_nothing() {
    let store = Store::new(Nix::installed());
    let (target, nar, _) = long_nar(&store, 3_000_000);
    let cache = UploadDir::new();
    let server = cache.serve();
    let descriptors = server.descriptors();
    let halves: Vec<_> = (0..6).map(|_| half_sent(&server, &cache, &target, &nar)).collect();
    for (index, connection) in halves.into_iter().enumerate() {
        if index % 2 == 0 {
            // The end of what it sends, but no end of the connection.
            connection.finish_sending();
        }
        drop(connection);
    }
    // One of unknown length, whose client is killed.
    let mut curl = Command::new("curl")
        .args(["--silent", "--no-buffer", "--upload-file", "-", &format!("{}{target}", server.url())])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = curl.stdin.take().unwrap();
    pipe.write_all(&nar[..500_000]).unwrap();
    eventually("it is under way", || !cache.staged().is_empty());
    curl.kill().unwrap();
    curl.wait().unwrap();
    eventually("nothing is left", || cache.staged().is_empty());
    assert!(!cache.files().iter().any(|name| name.starts_with("nar/")), "{:?}", cache.files());
    eventually("no descriptor is left", || server.descriptors() <= descriptors);
    server.connect().put(&target, &nar).expect(201);
}

#[test]
fn racing_uploads_of_one_path_all_succeed_and_leave_one_that_is_right() {
    let fixture = fixture();
    let paths = ["program-1.0", "deep", "a+b?c=d_e-1.2"].map(|name| fixture.path(name));
    // The same paths in several codings, and one of them twice.
    let written = ["none", "zstd", "xz", "gzip", "br", "zstd"].map(|compression| {
        let folder = tempfile::tempdir().unwrap();
        let (cache, options) =
            (format!("file://{}", text(folder.path())), format!("compression={compression}"));
        copy_up(&Nix::newer(), &fixture.store, &cache, &options, &fixture.key, &paths);
        contents_beneath(folder.path())
    });
    let cache = UploadDir::new();
    let server = cache.serve();
    thread::scope(|scope| {
        for files in &written {
            scope.spawn(|| upload_all(&server, files));
        }
    });
    cache.assert_sound();
    assert!(cache.staged().is_empty());
    for path in paths {
        assert_same_bytes(&cache.nar(path), &fixture.store.dump(path), path);
    }
}

/// NARs first, then the narinfos, each as soon as its references are there.
fn upload_all(server: &Narwire, files: &BTreeMap<String, Vec<u8>>) {
    let mut connection = server.connect();
    for round in 0..5 {
        for (name, contents) in files.iter().filter(|(name, _)| name.starts_with("nar/")) {
            let reply = connection.put(&format!("/{name}"), contents);
            assert!([200, 201].contains(&reply.status), "{round}: {reply:?}");
        }
        let library = format!("{}.narinfo", hash_part(fixture().path("library-1.0")));
        let others = files.keys().filter(|name| name.ends_with(".narinfo") && **name != library);
        for name in [&library].into_iter().chain(others) {
            let reply = connection.put(&format!("/{name}"), &files[name]);
            assert!([200, 201].contains(&reply.status), "{round}: {name}: {reply:?}");
        }
    }
}

#[test]
fn what_is_to_stay_free_stays_free() {
    let cache = UploadDir::new();
    let flags: Vec<_> =
        cache.flags().into_iter().map(|flag| if flag == "0" { "1500K".to_owned() } else { flag }).collect();
    let server = Narwire::start_mounted(cache.path(), "mount -t tmpfs -o size=2m tmpfs \"$0\"", &flags);
    let store = Store::new(Nix::installed());
    let (small, small_nar, _) = long_nar(&store, 100_000);
    let (long, long_nar, _) = long_nar(&store, 900_000);
    server.connect().put(&small, &small_nar).expect(201);
    let mut connection = server.connect();
    connection.send(head(&long, long_nar.len()));
    connection.reply_to("PUT").expect(507);
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let cache = UploadDir::new();
    let mount = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\"";
    let mut server = Narwire::spawn_mounted(cache.path(), mount, &cache.flags());
    server.wait_for("Read-only file system");
    assert_eq!(server.exit().code(), Some(2));
    assert!(server.output().contains(text(cache.path())), "{}", server.output());
}
