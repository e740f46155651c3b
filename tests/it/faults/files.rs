//! Files that are truncated, removed, replaced or made longer while they are sent.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::client::request_head;
use crate::support::nar_cache::{CacheDir, Nar};
use crate::support::nix::hash_part;
use crate::support::upload::{Package, Packing, UploadDir};
use crate::support::{Connection, Narwire, Nix, Random, Store, eventually, fixture, run};

/// More than all buffers between the server and a client that does not read.
const LEN: usize = 40_000_000;
/// Files of a path that is sent packed.
const FILES: usize = 800;

/// What somebody does to a file.
type Change = fn(&Path);

const CHANGES: [(&str, Change); 5] = [
    // Of what is in a socket's buffer already the file's own pages are sent, and the last one that is left is zeroed behind the new
    // end: that is the kernel's doing, and the body that has it is broken off. So the cut is made where nothing was sent yet.
    ("truncated", |file| {
        let file = File::options().write(true).open(file).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2 + 10).unwrap();
    }),
    ("emptied", |file| drop(File::create(file).unwrap())),
    ("removed", |file| fs::remove_file(file).unwrap()),
    ("replaced", |file| {
        let other = file.with_extension("other");
        fs::write(&other, [0; 1000]).unwrap();
        fs::rename(other, file).unwrap();
    }),
    ("made longer", |file| {
        File::options().append(true).open(file).unwrap().write_all(&[0; 100_000]).unwrap();
    }),
];

/// Asks for a file or a NAR, changes it when its head has come, and reads the rest: what comes is right as far as it comes.
#[track_caller]
fn changed_under_way(server: &Narwire, target: &str, wanted: &[u8], what: &str, change: impl FnOnce()) {
    let mut connection = server.connect();
    connection.send(request_head("GET", target, &[("Connection", "close")]));
    let head = connection.head().unwrap().expect(200);
    assert_eq!(head.field("content-length"), Some(&*wanted.len().to_string()), "{what}");
    change();
    let received = connection.rest();
    assert!(wanted.starts_with(&received), "{what}: a wrong byte among {}", received.len());
    assert!(received.len() == wanted.len() || connection.was_reset(), "{what}: a short body without a reset");
}

/// The same once more: what comes whole is right.
fn asked_again(server: &Narwire, target: &str, wanted: &[u8], what: &str) {
    let Some(reply) = server.connect().try_request("GET", target, &[]) else { return };
    assert!([200, 404].contains(&reply.status), "{what}: {}", reply.status);
    assert!(reply.status == 404 || !reply.complete || reply.body == wanted, "{what}: a wrong body");
}

fn writable(file: PathBuf) -> PathBuf {
    fs::set_permissions(file.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    file
}

/// Files and folders with all that they are.
fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").args([from, to]));
}

fn store_path_changes(add: impl Fn(&Store) -> String, file: &str) {
    let store = Store::new(Nix::installed());
    let path = add(&store);
    let (wanted, real) = (store.dump(&path), store.real(&path));
    let kept = real.with_extension("kept");
    copy(&real, &kept);
    for (what, change) in CHANGES {
        let server = store.serve();
        let target = server.nar_target(hash_part(&path));
        changed_under_way(&server, &target, &wanted, what, || {
            change(&writable(real.join(file)));
        });
        asked_again(&server, &target, &wanted, what);
        server.get("/health").expect(200);
        drop(server);
        fs::remove_dir_all(&real).unwrap();
        copy(&kept, &real);
    }
}

#[test]
fn a_small_file_of_a_path_on_its_way() {
    store_path_changes(|store| store.add_folder("served", FILES, LEN / FILES), "file-00799");
}

#[test]
fn a_long_file_of_a_path_on_its_way() {
    store_path_changes(|store| store.add_folder("served", 2, LEN / 2), "file-00001");
}

#[test]
fn the_folder_or_the_root_of_a_path_on_its_way() {
    let changes: [(&str, Change); 3] = [
        ("moved away", |real| fs::rename(real, real.with_extension("away")).unwrap()),
        ("another folder", |real| {
            fs::rename(real, real.with_extension("away")).unwrap();
            fs::create_dir(real).unwrap();
            fs::write(real.join("file-00799"), "other").unwrap();
        }),
        ("a link", |real| {
            fs::rename(real, real.with_extension("away")).unwrap();
            symlink("/etc", real).unwrap();
        }),
    ];
    let store = Store::new(Nix::installed());
    let path = store.add_folder("served", FILES, LEN / FILES);
    let (wanted, real) = (store.dump(&path), store.real(&path));
    for (what, change) in changes {
        let server = store.serve();
        let target = server.nar_target(hash_part(&path));
        fs::set_permissions(&real, Permissions::from_mode(0o755)).unwrap();
        changed_under_way(&server, &target, &wanted, what, || change(&real));
        asked_again(&server, &target, &wanted, what);
        server.get("/health").expect(200);
        drop(server);
        let _absent = fs::remove_dir_all(&real).or_else(|_| fs::remove_file(&real));
        fs::rename(real.with_extension("away"), &real).unwrap();
    }
}

#[test]
fn a_file_of_a_cache_directory_on_its_way() {
    let package = Package::new('1', &Random(1).bytes(LEN), Packing::None);
    for (what, change) in CHANGES {
        let cache = UploadDir::new();
        let server = cache.serve();
        package.put(&mut server.connect());
        let target = package.nar_target();
        changed_under_way(&server, &target, &package.file, what, || change(&cache.path().join(&target[1..])));
        // What another process does there is served as it is, whole.
        if let Some(reply) = server.connect().try_request("GET", &target, &[]) {
            let there = fs::read(cache.path().join(&target[1..])).unwrap_or_default();
            assert!(reply.complete && (reply.status == 404 || reply.body == there), "{what}");
        }
        // And a narinfo, which goes out in one piece.
        change(&cache.path().join(&package.narinfo_target()[1..]));
        let reply = server.get(&package.narinfo_target());
        assert!(reply.complete && [200, 404].contains(&reply.status), "{what}");
    }
}

#[test]
fn a_file_of_the_nar_cache_on_its_way() {
    let store = Store::new(Nix::installed());
    let nar = Nar::of(&store, &store.add_folder("kept", 2, LEN / 2));
    for (what, change) in CHANGES {
        let cache = CacheDir::new();
        let flags = [store.flags(), fixture().key.flags(), cache.flags("all", "flat")].concat();
        let server = Narwire::start(flags);
        eventually("it is kept", || {
            cache.nars().len() == 1
                && server.count("narwire_nar_cache_fills_total{result=\"stored\"}") == Some(1)
        });
        let file = cache.path().join("nar").join(&cache.nars()[0]);
        changed_under_way(&server, &nar.targets()[0], &nar.bytes, what, || change(&file));
        // From here on it is made live, or was made again.
        eventually(what, || {
            let reply = server.connect().try_request("GET", &nar.targets()[0], &[]);
            reply.is_some_and(|reply| {
                reply.status == 200 && reply.complete && {
                    assert!(reply.body == nar.bytes, "{what}: a wrong body");
                    true
                }
            })
        });
    }
}

/// A connection that has half of a long answer.
pub fn half_read(server: &Narwire, target: &str, fields: &[(&str, &str)]) -> Connection {
    let mut connection = server.connect();
    connection.send(request_head("GET", target, fields));
    let head = connection.head().unwrap();
    assert!([200, 206].contains(&head.status), "{target}: {head:?}");
    connection
}
