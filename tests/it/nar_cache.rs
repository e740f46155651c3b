//! NARs that are kept encoded: what clients see of them, while they are made and after they have gone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use crate::support::nar_cache::{CacheDir, Nar, assert_compressed, compressed, unpack};
use crate::support::server::command;
use crate::support::{
    CuttingProxy, Narwire, Nix, Random, Store, assert_same_bytes, eventually, fixture, run_failing, text,
};

/// Something built, so that it needs a signature; and long enough to be kept.
const BUILT: &str = r#"derivation {
  name = "built";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" "seq 1 40000 > $out" ];
  PATH = "/usr/bin:/bin";
}"#;

/// A store of everything that is encoded in a way of its own: a file, few long ones, many short ones, and one that nobody has
/// to trust unsigned.
fn store() -> (Store, [Nar; 4]) {
    let store = Store::new(Nix::installed());
    let built = store.build(&store.instantiate(BUILT), &[]).remove(0);
    let paths = [
        built,
        store.add_bytes("file", &Random(5).bytes(300_000)),
        store.add_folder("long-files", 5, 200_000),
        store.add_folder("short-files", 400, 700),
    ];
    let nars = paths.map(|path| Nar::of(&store, &path));
    (store, nars)
}

fn paths(nars: &[Nar]) -> Vec<&str> {
    nars.iter().map(|nar| nar.path.as_str()).collect()
}

/// A server that signs, with a NAR cache.
fn serve(store: &Store, cache: &CacheDir, policy: &str, format: &str) -> Narwire {
    Narwire::start([store.flags(), fixture().key.flags(), cache.flags(policy, format)].concat())
}

#[test]
fn nix_copies_what_is_compressed_and_verifies_it() {
    let ((store, nars), cache, key) = (store(), CacheDir::new(), &fixture().key);
    let server = serve(&store, &cache, "all", "both");
    server.wait_until_compressed(&nars);
    let paths = paths(&nars);
    for nix in Nix::all() {
        let destination = Store::new(nix);
        destination.copy_from(&server.url(), key, &paths);
        destination.verify(key);
        for path in &paths {
            assert_eq!(destination.nar_hash(path), store.nar_hash(path), "{path}");
        }
    }
}

#[test]
fn the_directory_is_a_binary_cache_that_nix_reads_by_itself() {
    for format in ["zstd", "both", "flat"] {
        let ((store, nars), cache, key) = (store(), CacheDir::new(), &fixture().key);
        let server = serve(&store, &cache, "all", format);
        eventually("all narinfos are there", || {
            nars.iter().all(|nar| cache.hash_parts().contains(&nar.hash_part().to_owned()))
        });
        drop(server);
        cache.assert_sound();
        let other = Narwire::start([cache.path()]);
        let paths = paths(&nars);
        for nix in Nix::all() {
            let destination = Store::new(nix);
            destination.copy_from(&cache.url(), key, &paths);
            destination.verify(key);
            let stranger = Store::new(Nix::newer());
            let complaint = stranger.copy_from_failing(&cache.url(), &fixture().other_key, &paths[..1]);
            assert!(complaint.contains("signature"), "{complaint}");
        }
        // narwire serves it as well, like any directory.
        let destination = Store::new(Nix::newest());
        destination.copy_from(&other.url(), key, &paths);
        destination.verify(key);
    }
}

#[test]
fn a_compressed_nar_is_a_file_like_any_other() {
    let ((store, nars), cache) = (store(), CacheDir::new());
    let server = serve(&store, &cache, "all", "zstd");
    server.wait_until_compressed(&nars);
    let mut connection = server.connect();
    for nar in &nars {
        let (path, narinfo) = (&nar.path, server.narinfo(&nar.path));
        let target = compressed(&nar.targets()[0]);
        assert_eq!(format!("/{}", narinfo.field("URL")), target);
        let whole = connection.get(&target).expect(200);
        assert_same_bytes(&narinfo.decode(&whole.body), &nar.bytes, path);
        assert_compressed(&whole, &nar.bytes);
        let (tag, len) = (whole.field("etag").expect("a tag"), whole.body.len());
        assert!(!tag.starts_with("W/"), "strong: {tag}");

        let head = connection.request("HEAD", &target, &[]).expect(200);
        assert_eq!(head.field("content-length"), Some(&*len.to_string()));
        assert_eq!(head.field("etag"), Some(tag));
        assert_eq!(connection.request("GET", &target, &[("If-None-Match", tag)]).status, 304);
        let range = ("Range", "bytes=1000-");
        for fields in [&[range][..], &[range, ("If-Range", tag)]] {
            let part = connection.request("GET", &target, fields).expect(206);
            assert_eq!(part.field("content-range"), Some(&*format!("bytes 1000-{}/{len}", len - 1)));
            assert_eq!((part.field("etag"), part.field("accept-ranges")), (Some(tag), Some("bytes")));
            assert_same_bytes(&part.body, &whole.body[1000..], path);
        }
        let other = connection.request("GET", &target, &[range, ("If-Range", "\"other\"")]).expect(200);
        assert_same_bytes(&other.body, &whole.body, path);
        connection.request("GET", &target, &[("Range", &format!("bytes={len}-"))]).expect(416);
        // The flat one is another thing, and so has another tag.
        assert_ne!(connection.get(&nar.targets()[0]).expect(200).field("etag"), Some(tag));
    }
}

#[test]
fn a_flat_nar_is_the_same_from_the_store_and_from_the_cache() {
    let ((store, nars), cache) = (store(), CacheDir::new());
    let live = store.serve();
    let server = serve(&store, &cache, "all", "flat");
    eventually("all are there", || cache.nars().len() >= nars.len());
    for nar in &nars {
        for target in nar.targets() {
            for fields in [&[][..], &[("Range", "bytes=500-70000")], &[("Range", "bytes=-1")]] {
                let [made, kept] = [&live, &server].map(|server| server.request("GET", &target, fields));
                assert_eq!(made.status, kept.status);
                for name in ["etag", "content-range", "accept-ranges", "content-length", "cache-control"] {
                    assert_eq!(made.field(name), kept.field(name), "{name}");
                }
                assert_same_bytes(&kept.body, &made.body, &target);
            }
        }
    }
}

#[test]
fn urls_of_any_age_are_answered_whatever_is_kept() {
    for (policy, format) in [("all", "zstd"), ("all", "flat"), ("all", "both"), ("off", "auto")] {
        let ((store, nars), cache) = (store(), CacheDir::new());
        let server = serve(&store, &cache, policy, format);
        server.assert_serves(&nars);
        if policy == "all" {
            eventually("all are there", || cache.nars().len() >= nars.len());
        }
        server.assert_serves(&nars);
        // A tiny one is answered from memory.
        server.assert_serves(&[Nar::of(&store, &store.add_bytes("tiny", b"not worth a file"))]);
    }
}

#[test]
fn a_client_with_a_month_old_narinfo_gets_its_nar_after_the_file_has_gone() {
    let ((store, nars), cache, key) = (store(), CacheDir::new(), &fixture().key);
    let paths = paths(&nars);
    for nix in Nix::all() {
        let server = serve(&store, &cache, "all", "zstd");
        server.wait_until_compressed(&nars);
        let (url, address) = (server.url(), server.address().to_string());
        // The client remembers the answers.
        nix.run("nix", &[&["path-info", "--store", &url][..], &paths].concat());
        drop(server);
        fs::remove_dir_all(cache.path()).unwrap();
        let flags = [store.flags(), key.flags(), cache.flags("off", "auto")].concat();
        let mut command = command();
        let server = Narwire::spawn(command.args(flags).args(["--listen", &address]));
        server.wait_for("listening on ");
        let destination = Store::new(nix);
        destination.copy_from(&url, key, &paths);
        destination.verify(key);
    }
}

#[test]
fn nix_resumes_a_compressed_nar() {
    let (store, cache, key) = (Store::new(Nix::installed()), CacheDir::new(), &fixture().key);
    let path = store.add_folder("resumed", 40, 100_000);
    let server = serve(&store, &cache, "all", "both");
    server.wait_until_compressed([&Nar::of(&store, &path)]);
    let mut random = Random(21);
    for nix in Nix::all() {
        let places: Vec<_> = (0..4).map(|_| 600 + random.below(900_000)).collect();
        let proxy = CuttingProxy::start(server.address(), places);
        let destination = Store::new(nix);
        destination.copy_from(&proxy.url(), key, &[&path]);
        assert_eq!(proxy.cuts_left(), 0, "every cut was met");
        destination.verify(key);
    }
}

#[test]
fn nix_resumes_a_flat_nar_by_an_older_narinfo_although_a_compressed_one_is_there() {
    let (store, cache, key) = (Store::new(Nix::installed()), CacheDir::new(), &fixture().key);
    let path = store.add_folder("resumed", 40, 100_000);
    let mut random = Random(22);
    for nix in Nix::all() {
        let server = serve(&store, &cache, "off", "zstd");
        let address = server.address();
        let proxy = CuttingProxy::start(address, (0..4).map(|_| 600 + random.below(900_000)));
        nix.run("nix", &["path-info", "--store", &proxy.url(), &path]);
        drop(server);
        let flags = [store.flags(), key.flags(), cache.flags("all", "zstd")].concat();
        let mut command = command();
        let server = Narwire::spawn(command.args(flags).args(["--listen", &address.to_string()]));
        server.wait_for("listening on ");
        server.wait_until_compressed([&Nar::of(&store, &path)]);
        let destination = Store::new(nix);
        destination.copy_from(&proxy.url(), key, &[&path]);
        assert_eq!(proxy.cuts_left(), 0, "every cut was met");
        destination.verify(key);
        drop(server);
        fs::remove_dir_all(cache.path()).unwrap();
    }
}

#[test]
fn a_file_that_somebody_deleted_is_missed_by_nobody() {
    let ((store, nars), cache, key) = (store(), CacheDir::new(), &fixture().key);
    let server = serve(&store, &cache, "all", "zstd");
    server.wait_until_compressed(&nars);
    let before = server.get(&format!("/{}", server.narinfo(&nars[0].path).field("URL"))).expect(200);
    for name in cache.nars() {
        fs::remove_file(cache.path().join("nar").join(name)).unwrap();
    }
    server.assert_serves(&nars);
    // Whatever becomes of the cache, clients go on.
    for nix in Nix::all() {
        let destination = Store::new(nix);
        destination.copy_from(&server.url(), key, &[&nars[0].path]);
        destination.verify(key);
    }
    assert_same_bytes(&unpack(&before.body), &nars[0].bytes, "before");
}

#[test]
fn a_path_is_kept_when_it_is_asked_for_again_and_one_of_small_files_at_once() {
    let ((store, nars), cache) = (store(), CacheDir::new());
    let server = serve(&store, &cache, "hot", "zstd");
    server.wait_for("the NAR cache has");
    let [_, once, twice, small] = &nars;
    for nar in [once, twice, small, twice] {
        assert_same_bytes(&server.nar(nar.hash_part()).expect(200).body, &nar.bytes, &nar.path);
    }
    server.wait_until_compressed([twice, small]);
    // It was asked for first, so it would have been made before the others.
    assert!(!server.narinfo(&once.path).is_compressed(), "{:?}", cache.nars());
    server.assert_serves(&nars);
}

#[test]
fn a_path_that_hundreds_ask_for_at_once_is_encoded_once() {
    let (store, cache) = (Store::new(Nix::installed()), CacheDir::new());
    let nar = Nar::of(&store, &store.add_folder("popular", 20, 60_000));
    let server = serve(&store, &cache, "hot", "both");
    server.wait_for("the NAR cache has");
    let target = &nar.targets()[0];
    thread::scope(|scope| {
        for _ in 0..200 {
            scope.spawn(|| assert_same_bytes(&server.get(target).expect(200).body, &nar.bytes, target));
        }
    });
    server.wait_until_compressed([&nar]);
    assert_eq!(cache.nars().len(), 2, "{:?}", cache.nars());
    assert_eq!(server.count("narwire_nar_cache_fills_total{result=\"stored\"}"), Some(1));
}

#[test]
fn a_damaged_path_is_reported_and_never_kept_until_it_is_repaired() {
    let ((store, nars), cache) = (store(), CacheDir::new());
    let [damaged, healthy @ ..] = &nars;
    let real = store.real(&damaged.path);
    let contents = fs::read(&real).unwrap();
    let replace = |contents: &[u8]| {
        // As Nix repairs: beside it first.
        let staged = real.with_extension("staged");
        fs::write(&staged, contents).unwrap();
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o444)).unwrap();
        fs::rename(&staged, &real).unwrap();
    };
    let mut other = contents.clone();
    other[100_000] ^= 1;
    replace(&other);
    let server = serve(&store, &cache, "all", "both");
    server.wait_until_compressed(healthy);
    eventually("the damage is found", || {
        server.get(&format!("/nar/{}.nar", damaged.hash_part())).status == 404
    });
    for target in damaged.targets() {
        server.get(&target).expect_absent();
        server.get(&compressed(&target)).expect_absent();
    }
    server.assert_serves(healthy);
    assert!(
        server.output().contains("ERROR") && server.output().contains(&damaged.path),
        "{}",
        server.output()
    );
    assert!(cache.nars().iter().all(|name| !name.starts_with(damaged.hash_part())), "{:?}", cache.nars());
    assert!(!cache.hash_parts().contains(&damaged.hash_part().to_owned()));
    replace(&contents);
    // A server looks at it again from time to time, and when it starts.
    drop(server);
    let server = serve(&store, &cache, "all", "both");
    server.wait_for("is mended");
    server.assert_serves(&nars);
    cache.assert_sound();
}

#[test]
fn what_is_kept_is_found_again_by_the_next_server_and_by_nobody_else_meanwhile() {
    let ((store, nars), cache) = (store(), CacheDir::new());
    let server = serve(&store, &cache, "all", "both");
    server.wait_until_compressed(&nars);
    eventually("both codings of each", || cache.nars().len() >= 2 * nars.len());
    let second = serve(&store, &cache, "all", "both");
    second.wait_for("there is no NAR cache for now");
    second.assert_serves(&nars);
    let before = cache.nars();
    drop(server);
    // The second has it as soon as the first has gone.
    second.wait_until_compressed(&nars);
    drop(second);
    let third = serve(&store, &cache, "off", "auto");
    third.wait_until_compressed(&nars);
    assert_eq!(cache.nars(), before);
}

#[test]
fn a_path_registered_later_is_kept_and_a_deleted_one_is_absent() {
    let ((store, nars), cache) = (store(), CacheDir::new());
    let server = serve(&store, &cache, "all", "zstd");
    server.wait_until_compressed(&nars);
    let later = Nar::of(&store, &store.add_folder("later", 10, 10_000));
    server.wait_until_compressed([&later]);
    store.delete(&later.path);
    for target in later.targets() {
        server.get(&target).expect_absent();
        server.get(&compressed(&target)).expect_absent();
    }
    server.get(&format!("/{}.narinfo", later.hash_part())).expect_absent();
}

#[test]
fn a_directory_of_somebody_else_is_left_alone() {
    let (store, cache) = (Store::new(Nix::installed()), CacheDir::new());
    store.add_bytes("file", b"so that there is a database");
    fs::create_dir(cache.path()).unwrap();
    fs::write(cache.path().join("precious"), "of somebody").unwrap();
    let mut command = command();
    let flags = [store.flags(), cache.flags("all", "both")].concat();
    let said = run_failing(command.args(flags).args(["--listen", "127.0.0.1:0"]));
    assert!(said.contains(text(cache.path())), "{said}");
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
}
