//! Downloads that are cut on the way.

use std::fs;
use std::process::Command;

use crate::support::nix::hash_part;
use crate::support::{CuttingProxy, Narwire, Nix, Random, Store, assert_same_bytes, fixture, run, text};

/// Nix tries five times: four cuts leave it one download that arrives.
const CUTS: usize = 4;

/// Places to cut at: some early, in the head even, most anywhere in a NAR of this many bytes.
fn places(seed: u64, len: usize) -> Vec<u64> {
    let mut random = Random(seed);
    // The sum stays below the length, so that there is something left to cut each time.
    (0..CUTS).map(|_| 600 + random.below(len as u64 / CUTS as u64 - 2000)).collect()
}

#[test]
fn nix_resumes_a_file_of_a_live_store() {
    resumes_with_nix("large", 11);
}

#[test]
fn nix_resumes_a_tree_of_a_live_store() {
    resumes_with_nix("sizes", 12);
}

#[test]
fn nix_resumes_a_tree_of_fifty_thousand_entries() {
    resumes_with_nix("many", 13);
}

fn resumes_with_nix(name: &str, seed: u64) {
    let fixture = fixture();
    let server = fixture.store.serve_signed(&fixture.key);
    let path = fixture.path(name);
    for (seed, nix) in (seed * 100..).zip(Nix::all()) {
        let proxy = CuttingProxy::start(server.address(), places(seed, fixture.store.dump(path).len()));
        let destination = Store::new(nix);
        destination.copy_from(&proxy.url(), &fixture.key, &[path]);
        assert_eq!(proxy.cuts_left(), 0, "every cut was met");
        destination.verify(&fixture.key);
    }
}

/// Every version of Nix gives up at the first cut of an answer that has a Content-Encoding, whatever its Accept-Ranges
/// says; and 2.34 names no coding when it resumes, so the rest would be of another representation.
#[test]
fn a_flat_nar_is_never_encoded_so_that_it_can_be_resumed() {
    let fixture = fixture();
    let server = fixture.store.serve();
    let path = fixture.path("sizes");
    let (target, wanted) = (server.nar_target(hash_part(path)), fixture.store.dump(path));
    // As 2.26 and 2.34 ask, and somebody who insists.
    for accepted in ["zstd, br, gzip, deflate, bzip2, xz", "deflate, gzip, br, zstd", "zstd, identity;q=0"] {
        let whole = server.request("GET", &target, &[("Accept-Encoding", accepted)]).expect(200);
        let range = ("Range", "bytes=1000000-");
        let rest = server.request("GET", &target, &[("Accept-Encoding", accepted), range]).expect(206);
        assert_eq!(whole.field("etag"), rest.field("etag"));
        for (reply, wanted) in [(&whole, &wanted[..]), (&rest, &wanted[1_000_000..])] {
            assert_eq!(reply.field("content-encoding"), None);
            assert_eq!(reply.field("accept-ranges"), Some("bytes"));
            assert_eq!(reply.field("content-length"), Some(wanted.len().to_string().as_str()));
            assert_same_bytes(&reply.body, wanted, accepted);
        }
    }
}

#[test]
fn nix_resumes_a_compressed_file_of_a_cache_directory() {
    let fixture = fixture();
    let folder = tempfile::tempdir().unwrap();
    let cache = format!("file://{}?compression=zstd", text(folder.path()));
    Nix::newer().run("nix", &["copy", "--from", fixture.store.uri(), "--to", &cache, fixture.path("sizes")]);
    let server = Narwire::start([folder.path()]);
    for (seed, nix) in (14..).zip(Nix::all()) {
        let proxy = CuttingProxy::start(server.address(), places(seed, 10_000_000));
        let destination = Store::new(nix);
        destination.copy_from(&proxy.url(), &fixture.key, &[fixture.path("sizes")]);
        assert_eq!(proxy.cuts_left(), 0, "every cut was met");
        destination.verify(&fixture.key);
    }
}

#[test]
fn curl_resumes_until_it_has_the_whole() {
    let fixture = fixture();
    let server = fixture.store.serve();
    let path = fixture.path("sizes");
    let wanted = fixture.store.dump(path);
    let proxy = CuttingProxy::start(server.address(), places(15, wanted.len()));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nar");
    let url = format!("{}{}", proxy.url(), server.nar_target(hash_part(path)));
    while proxy.cuts_left() > 0 {
        let _cut =
            Command::new("curl").args(["--silent", "--continue-at", "-", "-o"]).arg(&file).arg(&url).status();
    }
    run(Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "-C", "-", "-o"])
        .arg(&file)
        .arg(&url));
    assert_same_bytes(&fs::read(&file).unwrap(), &wanted, "pieced together by curl");
}
