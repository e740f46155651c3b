//! The NAR cache when everything goes wrong: killed anywhere, no room, no rights, a disk that fails, a directory that has gone.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::nar_cache::{CacheDir, Nar};
use crate::support::server::{BINARY, fault_points};
use crate::support::{Narwire, Nix, Random, Store, eventually, fixture};

/// Paths that are asked for while the server is killed, and what fits of them: so there is as much to evict as to fill. Bytes.
const PATHS: usize = 10;
const CACHE_SIZE: &str = "200000";

fn store() -> (Store, Vec<Nar>) {
    let store = Store::new(Nix::installed());
    let paths = (0..PATHS).map(|index| store.add_folder("kept", 3, 12_000 + 500 * index));
    let nars = paths.map(|path| Nar::of(&store, &path)).collect();
    (store, nars)
}

/// A server with a NAR cache and more flags.
fn serve(store: &Store, cache: &CacheDir, policy: &str, more: &[&str]) -> Narwire {
    Narwire::start(flags(store, cache, policy, more))
}

fn flags(store: &Store, cache: &CacheDir, policy: &str, more: &[&str]) -> Vec<String> {
    let more = more.iter().map(|&flag| flag.to_owned()).collect();
    [store.flags(), fixture().key.flags(), cache.flags(policy, "both"), more].concat()
}

/// One that keeps nothing new, and looks for damage.
fn scrub(store: &Store, cache: &CacheDir, policy: &str, rate: &str) -> Narwire {
    let flags = cache.flags_with_scrub(policy, "both", rate);
    Narwire::start([store.flags(), fixture().key.flags(), flags].concat())
}

/// Asks for every path again and again, in an order that follows from the seed, until all of them were encoded at some time,
/// or the server ends.
fn ask_until_all_were_kept(server: &mut Narwire, nars: &[Nar], seed: u64) {
    let mut random = Random(seed);
    let mut order: Vec<_> = nars.iter().chain(nars).collect();
    for index in (1..order.len()).rev() {
        order.swap(index, usize::try_from(random.below(index as u64 + 1)).unwrap());
    }
    for nar in order {
        let kind = usize::try_from(random.below(3)).unwrap();
        // Of a server that is killed under way any piece may come, but no wrong one.
        if let Some(reply) = server.try_get(&nar.targets()[kind]) {
            assert_eq!(reply.status, 200);
            assert!(nar.bytes.starts_with(&reply.body), "seed {seed}: {}", nar.path);
        }
    }
    eventually("all were encoded", || {
        server.has_exited()
            || server.count("narwire_nar_cache_fills_total{result=\"stored\"}") >= Some(PATHS as u64)
    });
}

#[test]
fn wherever_it_is_killed_the_next_server_finds_nothing_wrong() {
    let (store, nars) = store();
    let seed = env::var("NARWIRE_TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    // What is switched off is the ring's, and has no part in this: then every tenth will do.
    let step = if env::var_os("NARWIRE_TEST_WITHOUT").is_some() { 10 } else { 1 };
    for point in (1..).step_by(step) {
        let cache = CacheDir::new();
        let seed = seed * 1000 + point;
        let fault = format!("kill@{point}");
        let faulty = flags(&store, &cache, "hot", &["--cache-size", CACHE_SIZE, "--fault", &fault]);
        let mut server = Narwire::start_or_end(faulty);
        eventually("the cache is open", || {
            server.has_exited() || server.output().contains("the NAR cache has")
        });
        if !server.has_exited() {
            ask_until_all_were_kept(&mut server, &nars, seed);
        }
        let has_survived = !server.has_exited();
        drop(server);
        eprintln!("point {point}, seed {seed}, survived: {has_survived}");
        cache.assert_sound();
        let again = serve(&store, &cache, "hot", &["--cache-size", CACHE_SIZE]);
        again.assert_serves(&nars);
        drop(again);
        cache.assert_sound();
        copies_by_itself(&store, &cache, &nars, point);
        if has_survived {
            assert!(point > 20, "that can't have been all");
            return;
        }
    }
}

/// Now and then a real client reads the directory too.
fn copies_by_itself(store: &Store, cache: &CacheDir, nars: &[Nar], point: u64) {
    if point % 10 != 1 {
        return;
    }
    let named = cache.hash_parts();
    let paths: Vec<_> =
        nars.iter().filter(|nar| named.iter().any(|named| named == nar.hash_part())).collect();
    let destination = Store::new(Nix::newest());
    for nar in &paths {
        destination.copy_from(&cache.url(), &fixture().key, &[&nar.path]);
        assert_eq!(destination.nar_hash(&nar.path), store.nar_hash(&nar.path));
    }
}

/// Those that a server with a NAR cache passes.
fn cache_fault_points() -> BTreeSet<String> {
    fault_points(|file| !file.contains("upload"))
}

#[test]
fn wherever_the_disk_fails_every_request_is_answered_right() {
    let (store, nars) = store();
    let points = cache_fault_points();
    assert!(points.len() > 10, "{points:?}");
    for (point, error) in points.iter().zip(["ENOSPC", "EIO", "EROFS"].iter().cycle()) {
        let cache = CacheDir::new();
        let fault = format!("{error}@{point}");
        let server = serve(&store, &cache, "all", &["--cache-size", CACHE_SIZE, "--fault", &fault]);
        eprintln!("{fault}");
        // It is open, or there is none.
        server.wait_for("NAR cache");
        server.assert_serves(&nars);
        server.assert_serves(&nars);
        server.get("/health").expect(200);
        drop(server);
        cache.assert_sound();
    }
}

#[test]
fn a_disk_that_is_well_again_is_used_again() {
    let (store, nars) = store();
    for (error, point) in [("ENOSPC", "publish: begun"), ("EIO", "publish: file written")] {
        assert!(cache_fault_points().contains(point), "{point} has another name now");
        let cache = CacheDir::new();
        let server = serve(&store, &cache, "all", &["--fault", &format!("{error}@{point}:1")]);
        eventually("what nobody had asked for when the disk was full is asked for again", || {
            server.assert_serves(&nars);
            server.count("narwire_nar_cache_fills_total{result=\"stored\"}") >= Some(PATHS as u64)
        });
        server.wait_until_compressed(&nars);
        drop(server);
        cache.assert_sound();
    }
}

/// A narwire with a NAR cache in a mount namespace of its own; see [`Narwire::start_mounted`].
fn serve_mounted(store: &Store, cache: &CacheDir, mount: &str, flags: &[String]) -> Narwire {
    fs::create_dir_all(cache.path()).unwrap();
    Narwire::start_mounted(cache.path(), mount, &[&store.flags(), flags].concat())
}

#[test]
fn a_full_file_system_is_a_warning_and_nothing_else() {
    let (store, nars) = store();
    let cache = CacheDir::new();
    let long = Nar::of(&store, &store.add_folder("long", 3, 1_000_000));
    // What lies in it leaves less than a twentieth.
    let mount = "mount -t tmpfs -o size=1m tmpfs \"$0\" && mkdir \"$0/.narwire\" && \
        head -c 1000000 /dev/zero >\"$0/.narwire/filler\"";
    let flags = ["--cache-dir".to_owned(), cache.path().display().to_string()];
    let server = serve_mounted(&store, &cache, mount, &flags);
    server.wait_for("--cache-min-free");
    for _ in 0..3 {
        server.assert_serves(&nars);
        server.assert_serves(std::slice::from_ref(&long));
    }
    let output = server.output();
    assert_eq!((output.matches("WARN").count(), output.matches("works again").count()), (1, 0), "{output}");
    server.get("/health").expect(200);
}

#[test]
fn a_small_file_system_is_filled_and_no_more() {
    let (store, nars) = store();
    let cache = CacheDir::new();
    let long = Nar::of(&store, &store.add_folder("long", 3, 1_000_000));
    let mount = "mount -t tmpfs -o size=1m tmpfs \"$0\"";
    let mut flags = cache.flags("hot", "both");
    flags.extend(["--cache-size", "1G"].map(str::to_owned));
    let server = serve_mounted(&store, &cache, mount, &flags);
    server.wait_for("the NAR cache has");
    for _ in 0..3 {
        server.assert_serves(&nars);
        server.assert_serves(std::slice::from_ref(&long));
    }
    let refused = || server.count("narwire_nar_cache_fills_total{result=\"refused\"}") == Some(1);
    eventually("the long one is refused", refused);
    let stored = server.count("narwire_nar_cache_fills_total{result=\"stored\"}");
    assert!(stored > Some(0), "nothing had to go for it: {stored:?}");
    server.get("/health").expect(200);
}

#[test]
fn a_read_only_directory_is_a_warning_and_nothing_else() {
    let (store, nars) = store();
    let cache = CacheDir::new();
    let mount = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\"";
    let server = serve_mounted(&store, &cache, mount, &cache.flags("hot", "both"));
    server.assert_serves(&nars);
    server.wait_for("Read-only file system");
    server.get("/health").expect(200);
    drop(server);
    // One that was filled before, and cannot be written any more.
    let server = serve(&store, &cache, "all", &[]);
    server.wait_until_compressed(&nars);
    drop(server);
    let server = serve_mounted(&store, &cache, mount, &cache.flags("hot", "both"));
    server.assert_serves(&nars);
}

#[test]
fn a_directory_removed_under_the_server_is_missed_by_nobody() {
    let (store, nars) = store();
    let cache = CacheDir::new();
    let server = serve(&store, &cache, "all", &[]);
    server.wait_until_compressed(&nars);
    fs::remove_dir_all(cache.path()).unwrap();
    for _ in 0..3 {
        server.assert_serves(&nars);
    }
    let later = Nar::of(&store, &store.add_folder("later", 4, 20_000));
    server.assert_serves(std::slice::from_ref(&later));
    server.assert_serves(std::slice::from_ref(&later));
    server.get("/health").expect(200);
}

#[test]
fn a_file_that_rotted_on_disk_is_found_and_made_anew() {
    let (store, nars) = store();
    let cache = CacheDir::new();
    let server = serve(&store, &cache, "all", &[]);
    server.wait_until_compressed(&nars);
    eventually("both codings of each", || cache.nars().len() == 2 * PATHS);
    drop(server);
    let [rotten, other] = [0, 1].map(|index| cache.nars().remove(index));
    for name in [&rotten, &other] {
        let file = cache.path().join("nar").join(name);
        let mut bytes = fs::read(&file).unwrap();
        bytes[20_000] ^= 1;
        fs::write(&file, bytes).unwrap();
    }
    let server = scrub(&store, &cache, "all", "1G");
    eventually("they are found", || cache.quarantined().len() == 2);
    server.assert_serves(&nars);
    server.wait_until_compressed(&nars);
    assert!(server.output().contains(&rotten), "{}", server.output());
    drop(server);
    cache.assert_sound();
}

#[test]
fn a_scrub_that_was_killed_goes_on_where_it_was() {
    let (store, nars) = store();
    let cache = CacheDir::new();
    let server = serve(&store, &cache, "all", &[]);
    server.wait_until_compressed(&nars);
    eventually("both codings of each", || cache.nars().len() == 2 * PATHS);
    drop(server);
    let state = || fs::read(cache.path().join(".narwire/scrub.json"));
    let parse = |text: Vec<u8>| serde_json::from_slice::<Value>(&text).unwrap();
    // Slow enough that it is under way for seconds.
    let mut server = scrub(&store, &cache, "off", "200K");
    eventually("it has got somewhere", || state().is_ok());
    server.signal(Signal::KILL);
    server.exit();
    let before = parse(state().unwrap());
    assert_eq!(before["is_finished"], Value::Bool(false), "{before}");
    let server = scrub(&store, &cache, "off", "1G");
    eventually("it is finished", || parse(state().unwrap())["is_finished"] == Value::Bool(true));
    let after = parse(state().unwrap());
    assert_eq!(after["began_s"], before["began_s"], "it is the same one");
    assert_eq!(
        (&after["outcome"]["paths"], &after["outcome"]["files"]),
        (&PATHS.into(), &(2 * PATHS).into())
    );
    server.assert_serves(&nars);
}

#[test]
fn a_background_that_cannot_start_is_one_warning_and_all_is_served() {
    let (store, nars) = store();
    let cache = CacheDir::new();
    let mut command = Command::new("prlimit");
    command.args(["--memlock=65536:65536", BINARY]).args(flags(&store, &cache, "all", &[]));
    let server = Narwire::spawn(command.args(["--listen", "127.0.0.1:0"]));
    server.wait_for("listening on");
    server.assert_serves(&nars);
    let health = server.get("/health").expect(200);
    assert!(
        health.text().contains("\nNAR cache: off: ") && health.text().contains("LimitMEMLOCK="),
        "{health:?}"
    );
    assert_eq!(server.count("narwire_nar_cache_up"), Some(0));
    // It is tried again every five seconds, and says nothing new.
    std::thread::sleep(std::time::Duration::from_secs(6));
    assert_eq!(server.output().matches("there is no NAR cache").count(), 1, "{}", server.output());
}
