//! HEAD, ranges, entity tags and their preconditions: every answer compared with slices of the real dump.

use std::fs;

use crate::support::nix::hash_part;
use crate::support::{Narwire, Random, Reply, assert_same_bytes, fixture};

/// A resource that is served, and all its bytes.
struct Subject {
    server: Narwire,
    target: String,
    bytes: Vec<u8>,
}

impl Subject {
    fn request(&self, method: &str, fields: &[(&str, &str)]) -> Reply {
        self.server.request(method, &self.target, fields)
    }

    fn entity_tag(&self) -> String {
        let tag = self.request("HEAD", &[]).expect(200).field("etag").expect("an entity tag").to_owned();
        assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 2, "a strong one: {tag}");
        tag
    }

    /// The range must be answered with exactly these bytes.
    #[track_caller]
    fn expect_part(&self, range: &str, first: usize, end: usize) {
        let reply = self.request("GET", &[("Range", range)]).expect(206);
        assert_same_bytes(&reply.body, &self.bytes[first..end], range);
        let wanted = format!("bytes {first}-{}/{}", end - 1, self.bytes.len());
        assert_eq!(reply.field("content-range"), Some(wanted.as_str()), "{range}");
        assert_eq!(reply.field("accept-ranges"), Some("bytes"), "Nix gives up resuming without it");
        assert!(reply.field("etag").is_some());
    }

    #[track_caller]
    fn expect_whole(&self, fields: &[(&str, &str)]) {
        let reply = self.request("GET", fields).expect(200);
        assert_same_bytes(&reply.body, &self.bytes, &format!("{fields:?}"));
        assert_eq!(reply.field("content-range"), None);
    }
}

/// One path of many files of all sizes, one of one file, one tiny, and a file of a cache directory.
fn subjects() -> Vec<Subject> {
    let fixture = fixture();
    let of_store = |name: &str| {
        let (server, path) = (fixture.store.serve(), fixture.path(name));
        Subject { target: server.nar_target(hash_part(path)), bytes: fixture.store.dump(path), server }
    };
    vec![of_store("sizes"), of_store("large"), of_store("small"), of_store("program-1.0"), of_directory()]
}

fn of_directory() -> Subject {
    // The server holds the folder open, so the name may go away with the value: the tests need it only here.
    let folder = tempfile::tempdir().unwrap().keep();
    let (bytes, name) = (Random(3).bytes(3_000_000), format!("{}.nar.xz", "1".repeat(52)));
    fs::create_dir(folder.join("nar")).unwrap();
    fs::write(folder.join("nar").join(&name), &bytes).unwrap();
    fs::write(folder.join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    Subject { server: Narwire::start([&folder]), target: format!("/nar/{name}"), bytes }
}

#[test]
fn head_says_what_get_would_and_sends_no_body() {
    for subject in subjects() {
        let mut connection = subject.server.connect();
        let head = connection.request("HEAD", &subject.target, &[]).expect(200);
        let get = connection.request("GET", &subject.target, &[]).expect(200);
        assert_eq!(head.field("content-length"), Some(subject.bytes.len().to_string().as_str()));
        for name in ["content-length", "content-type", "etag", "accept-ranges", "cache-control"] {
            assert_eq!(head.field(name), get.field(name), "{name}");
        }
    }
}

#[test]
fn a_range_from_first_to_last_is_that_slice() {
    for (seed, subject) in subjects().iter().enumerate() {
        let (mut random, len) = (Random(seed as u64 + 7), subject.bytes.len());
        subject.expect_part("bytes=0-0", 0, 1);
        subject.expect_part(&format!("bytes={}-{}", len - 1, len - 1), len - 1, len);
        subject.expect_part(&format!("bytes=0-{}", len - 1), 0, len);
        subject.expect_part("bytes=90-110", 90, 111);
        for _ in 0..40 {
            let [a, b] = [(); 2].map(|()| usize::try_from(random.below(len as u64)).unwrap());
            let (first, last) = (a.min(b), a.max(b));
            subject.expect_part(&format!("bytes={first}-{last}"), first, last + 1);
        }
    }
}

#[test]
fn an_open_range_runs_to_the_end() {
    for (seed, subject) in subjects().iter().enumerate() {
        let (mut random, len) = (Random(seed as u64 + 70), subject.bytes.len());
        for first in [0, 1, 95, 96, 97, len / 2, len - 1] {
            subject.expect_part(&format!("bytes={first}-"), first, len);
        }
        for _ in 0..5 {
            let first = usize::try_from(random.below(len as u64)).unwrap();
            subject.expect_part(&format!("bytes={first}-"), first, len);
        }
    }
}

#[test]
fn a_suffix_range_counts_from_the_end() {
    for subject in subjects() {
        let len = subject.bytes.len();
        for suffix in [1, 8, 100, len] {
            subject.expect_part(&format!("bytes=-{suffix}"), len - suffix, len);
        }
        subject.expect_part(&format!("bytes=-{}", len + 1), 0, len);
        subject.expect_part("bytes=-18446744073709551615", 0, len);
    }
}

#[test]
fn a_last_position_beyond_the_end_means_the_end() {
    for subject in subjects() {
        let len = subject.bytes.len();
        subject.expect_part(&format!("bytes=7-{len}"), 7, len);
        subject.expect_part("bytes=7-18446744073709551615", 7, len);
    }
}

#[test]
fn a_range_that_starts_beyond_the_end_is_416() {
    for subject in subjects() {
        let len = subject.bytes.len();
        for range in
            [format!("bytes={len}-"), format!("bytes={}-{}", len + 5, len + 9), "bytes=-0".to_owned()]
        {
            let mut connection = subject.server.connect();
            let reply = connection.request("GET", &subject.target, &[("Range", &range)]).expect(416);
            assert_eq!(reply.field("content-range"), Some(format!("bytes */{len}").as_str()), "{range}");
            connection.request("HEAD", &subject.target, &[]).expect(200);
        }
    }
}

#[test]
fn what_is_no_single_range_gets_the_whole() {
    for subject in subjects() {
        for range in
            ["bytes=0-1,4-5", "bytes=9-3", "bytes=", "bytes=a-b", "bytes=1", "pages=1-2", "bytes 1-2"]
        {
            subject.expect_whole(&[("Range", range)]);
        }
    }
}

#[test]
fn head_ignores_ranges() {
    for subject in subjects() {
        let reply = subject.request("HEAD", &[("Range", "bytes=1-2")]).expect(200);
        assert_eq!(reply.field("content-length"), Some(subject.bytes.len().to_string().as_str()));
    }
}

#[test]
fn if_range_gives_the_part_only_of_the_same_thing() {
    for subject in subjects() {
        let tag = subject.entity_tag();
        let reply = subject.request("GET", &[("Range", "bytes=3-9"), ("If-Range", &tag)]).expect(206);
        assert_same_bytes(&reply.body, &subject.bytes[3..10], "If-Range");
        for other in ["\"other\"", &format!("W/{tag}"), "Sat, 21 Nov 1970 10:00:00 GMT"] {
            subject.expect_whole(&[("Range", "bytes=3-9"), ("If-Range", other)]);
        }
    }
}

#[test]
fn if_none_match_is_answered_304_for_the_same_thing() {
    for subject in subjects() {
        let tag = subject.entity_tag();
        let mut connection = subject.server.connect();
        for same in [tag.clone(), "*".to_owned(), format!("\"other\", {tag}"), format!("W/{tag}")] {
            for method in ["GET", "HEAD"] {
                let reply =
                    connection.request(method, &subject.target, &[("If-None-Match", &same)]).expect(304);
                assert_eq!(reply.field("etag"), Some(tag.as_str()), "{same}");
            }
        }
        subject.expect_whole(&[("If-None-Match", "\"other\"")]);
    }
}

#[test]
fn one_store_path_keeps_its_entity_tag_over_a_restart() {
    let (first, second) = (subjects().remove(0), subjects().remove(0));
    assert_eq!(first.entity_tag(), second.entity_tag());
}
