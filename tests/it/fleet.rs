//! Several nodes behind a load balancer, with the files in `deploy/` as they are shipped.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::fleet::{Fleet, Kind, Node, URL, is_possible};
use crate::support::nar_cache::hash_parts as hash_parts_in;
use crate::support::nix::hash_part;
use crate::support::nix_upload::copy_command;
use crate::support::upload::UploadDir;
use crate::support::{Narwire, Nix, Random, Store, assert_same_bytes, eventually, fixture, run, text};

const BOTH: [Kind; 2] = [Kind::HaProxy, Kind::Nginx];

/// Long NARs, each more than what is in buffers on its way. Bytes.
const LONG: usize = 24_000_000;
const LONG_COUNT: usize = 6;
/// The others, all of which together are less than a part of a long one.
const SHORT: usize = 40_000;
const SHORT_COUNT: usize = 40;

#[test]
fn nix_copy_outlives_a_node_that_is_killed_and_one_that_is_upgraded() {
    if !is_possible() {
        return; // only root may make networks
    }
    let (store, closure) = store_with_a_closure();
    let key = &fixture().key;
    // The second client is sent from the NAR caches that the first has filled, as far as they are.
    let folders = nar_caches();
    let mut fleet = Fleet::start_each(Kind::HaProxy, &with_nar_caches(&store, &folders), None);
    for nix in [Nix::installed(), Nix::newest()] {
        let destination = Store::new(nix);
        let mut copy = fleet.copy_to(&destination, key, &closure);
        let killed = fleet.sender(&mut copy, &[0, 1, 2]);
        fleet.nodes[killed].kill();
        let others: Vec<_> = (0..3).filter(|&node| node != killed).collect();
        let upgraded = fleet.sender(&mut copy, &others);
        fleet.nodes[upgraded].restart();
        fleet.sender(&mut copy, &others);
        let said = copy.succeed();
        assert!(said.contains("retrying from offset"), "an answer was cut, and resumed:\n{said}");
        assert_copied(&destination, &store);
        destination.verify(key);
        fleet.nodes[killed].power_on();
        let name = fleet.name(killed);
        eventually("the node that was killed has its share again", || {
            fleet.places(narinfos()).contains(&name)
        });
    }
}

#[test]
fn nix_copy_outlives_a_node_that_is_killed_behind_nginx() {
    if !is_possible() {
        return; // only root may make networks
    }
    let (store, closure) = store_with_a_closure();
    let key = &fixture().key;
    let mut fleet = Fleet::start(Kind::Nginx, &[store.flags(), key.flags()].concat());
    let destination = Store::new(Nix::newer());
    let mut copy = fleet.copy_to(&destination, key, &closure);
    let killed = fleet.sender(&mut copy, &[0, 1, 2]);
    fleet.nodes[killed].kill();
    let said = copy.succeed();
    assert!(said.contains("retrying from offset"), "an answer was cut, and resumed:\n{said}");
    assert_copied(&destination, &store);
    destination.verify(key);
    fleet.nodes[killed].power_on();
    let name = fleet.name(killed);
    eventually("the node that was killed has its share again", || fleet.places(narinfos()).contains(&name));
}

#[test]
fn all_that_belongs_to_a_path_comes_from_one_node() {
    if !is_possible() {
        return; // only root may make networks
    }
    let store = &fixture().store;
    for kind in BOTH {
        let fleet = Fleet::start(kind, &store.flags());
        let mut nodes = BTreeSet::new();
        for name in ["small", "large", "many", "library-1.0", "program-1.0", "program-1.0.drv", "text"] {
            let path = fixture().path(name);
            let (hash_part, nar_hash) = (hash_part(path), store.nar_hash(path));
            let answers = fleet.ask([
                format!("{hash_part}.narinfo"),
                format!("{hash_part}.ls"),
                format!("nar/{nar_hash}.nar?hash={hash_part}"),
                format!("nar/{nar_hash}.nar.zst?hash={hash_part}"),
                format!("nar/{hash_part}-{nar_hash}.nar"),
                format!("nar/{hash_part}.nar"),
            ]);
            let first = answers[0].clone();
            assert_eq!((first.status, first.version.as_str()), (200, "2"), "{kind:?}");
            assert!(answers.iter().all(|answer| answer == &first), "{kind:?}, {name}: {answers:?}");
            nodes.insert(first.node);
        }
        assert!(nodes.len() > 1, "{kind:?}: {nodes:?}");
        let derivation = fixture().path("library-1.0.drv").rsplit('/').next().unwrap();
        let hash_part = &derivation[..32];
        let places = fleet.places([
            format!("{hash_part}.narinfo"),
            format!("log/{derivation}"),
            format!("build-trace-v2/{derivation}/out.doi"),
        ]);
        assert!(places.iter().all(|place| place == &places[0]), "{kind:?}: {places:?}");
    }
}

#[test]
fn only_the_share_of_a_node_that_goes_moves_and_without_any_node_it_is_503() {
    if !is_possible() {
        return; // only root may make networks
    }
    for kind in BOTH {
        let mut fleet = Fleet::start(kind, &fixture().store.flags());
        // Names with a hash part, and those of files in a cache directory.
        let nars = hash_parts(150)
            .into_iter()
            .map(|hash_part| format!("nar/{hash_part}00000000000000000000.nar.xz"));
        let targets: Vec<_> = narinfos().into_iter().chain(nars).collect();
        let before = fleet.places(&targets);
        assert_eq!(fleet.places(&targets), before, "{kind:?}: the same is always with the same");
        for node in 0..3 {
            let share = before.iter().filter(|place| **place == fleet.name(node)).count();
            assert!(share > 50, "{kind:?}: node {node} has {share} of {}", targets.len());
        }
        fleet.nodes[1].kill();
        let after = fleet.ask(&targets);
        for (answer, before) in after.iter().zip(&before) {
            assert_eq!(answer.status, 404, "{kind:?}: no store has it, which a node says");
            assert_ne!(answer.node, fleet.name(1));
            assert!(before == &fleet.name(1) || &answer.node == before, "{kind:?}: {before} has not gone");
        }
        let inherited = after.iter().zip(&before).filter(|(_, before)| **before == fleet.name(1));
        let heirs: BTreeSet<_> = inherited.map(|(answer, _)| &answer.node).collect();
        assert_eq!(heirs.len(), 2, "{kind:?}: both others take of it");
        fleet.nodes[0].kill();
        fleet.nodes[2].kill();
        let answer = fleet.ask_one("nix-cache-info");
        assert_eq!((answer.status, answer.retry_after.as_str()), (503, "5"), "{kind:?}");
        for node in &mut fleet.nodes {
            node.power_on();
        }
        eventually("everybody is back", || {
            fleet.places(&targets).into_iter().collect::<BTreeSet<_>>().len() == 3
        });
    }
}

#[test]
fn the_nar_cache_of_each_node_holds_its_share() {
    if !is_possible() {
        return; // only root may make networks
    }
    let store = Store::new(Nix::installed());
    let paths: Vec<_> = (0..12).map(|index| store.add_folder(&format!("folder-{index}"), 20, 4000)).collect();
    let folders = nar_caches();
    let fleet = Fleet::start_each(Kind::HaProxy, &with_nar_caches(&store, &folders), None);
    let nars = paths.iter().map(|path| format!("nar/{}.nar?hash={}", store.nar_hash(path), hash_part(path)));
    let nars: Vec<_> = nars.collect();
    let mut places = BTreeMap::<_, BTreeSet<_>>::new();
    for (path, answer) in paths.iter().zip(fleet.ask(&nars)) {
        assert_eq!(answer.status, 200);
        places.entry(answer.node).or_default().insert(hash_part(path).to_owned());
    }
    assert!(places.len() > 1, "{places:?}");
    eventually("each node has kept what it was asked for twice", || {
        fleet.ask(&nars);
        let kept = |node: usize| BTreeSet::from_iter(hash_parts_in(folders[node].path()));
        (0..3).all(|node| kept(node) == places.get(&fleet.name(node)).cloned().unwrap_or_default())
    });
}

#[test]
fn uploads_go_to_the_writer_and_are_read_from_all_nodes() {
    if !is_possible() {
        return; // only root may make networks
    }
    for kind in BOTH {
        let (cache, source) = (UploadDir::new(), Store::new(Nix::installed()));
        let path = source.add_folder("uploaded", 30, 100_000);
        let directory = vec![text(cache.path()).to_owned()];
        let fleet = Fleet::start_each(kind, &[0, 1, 2].map(|_| directory.clone()), Some(cache.flags()));
        let key = &fixture().key;
        let copy = copy_command(&source.nix, &source, URL, "compression=zstd", key, &[&path]);
        run(&mut fleet.nix(copy));
        cache.assert_sound();
        assert!(
            fleet.ask_one(&format!("{}.narinfo", hash_part(&path))).node.starts_with(&fleet.name(0)[..4])
        );
        let destination = Store::new(Nix::newest());
        fleet.copy_to(&destination, key, &path).succeed();
        assert_same_bytes(&destination.dump(&path), &source.dump(&path), &path);
    }
}

#[test]
fn uploads_are_sent_once_and_say_who_sends_them() {
    if !is_possible() {
        return; // only root may make networks
    }
    // Of HTTP/1.1: to clients of HTTP/2 HAProxy says that they may send it again, and curl does.
    for kind in BOTH {
        let fleet = Fleet::start(kind, &fixture().store.flags());
        let recorder = Recorder::start(fleet.writer.machine.listen(5000));
        let put = |target: &str| {
            let url = format!("{URL}/{target}");
            let form =
                ["--http1.1", "--request", "PUT", "--data-binary", "body", "--write-out", "%{http_code}"];
            let claims =
                ["--header", "X-Forwarded-For: 198.51.100.7", "--header", "X-Forwarded-Host: elsewhere"];
            let claim = [&claims[..], &["--output", "/dev/null", &url]].concat();
            run(&mut fleet.curl(&[&form[..], &claim[..]].concat()))
        };
        eventually("the writer is seen", || put("taken") == "201");
        let head = recorder.heads_of("PUT /taken ").pop().unwrap().to_ascii_lowercase();
        let forwarded: Vec<_> = head.lines().filter(|line| line.starts_with("x-forwarded-for:")).collect();
        assert_eq!(forwarded, ["x-forwarded-for: 192.0.2.2"], "{kind:?}: {head}");
        assert!(!head.contains("elsewhere"), "{kind:?}: {head}");
        assert!(put("broken-off").starts_with('5'));
        assert_eq!(recorder.heads_of("PUT /broken-off ").len(), 1, "{kind:?}");
    }
}

#[test]
fn haproxy_drains_a_node_on_demand_and_says_how_all_are() {
    if !is_possible() {
        return; // only root may make networks
    }
    let mut fleet = Fleet::start(Kind::HaProxy, &fixture().store.flags());
    let name = fleet.name(1);
    assert!(fleet.places(narinfos()).contains(&name));
    fleet.tell("set server nodes/node2 state drain");
    assert!(!fleet.places(narinfos()).contains(&name), "a node that drains gets nothing new");
    fleet.tell("set server nodes/node2 state ready");
    eventually("it has its share again", || fleet.places(narinfos()).contains(&name));
    let share = || fleet.places(narinfos()).into_iter().filter(|place| *place == fleet.name(0)).count();
    let whole = share();
    fleet.tell("set server nodes/node1 weight 10%");
    assert!((1..whole / 2).contains(&share()), "a part of {whole}");

    for hidden in ["metrics", "%6detrics", "metrics?x"] {
        assert_eq!(fleet.ask_one(hidden).status, 404, "{hidden}");
    }
    let mut scrape = Command::new("curl");
    scrape.args(["--silent", "--fail", "http://127.0.0.1:8405/metrics"]);
    let metrics = run(&mut fleet.beside_the_balancer(&scrape));
    assert!(
        metrics.contains(r#"haproxy_server_status{proxy="nodes",server="node2",state="UP"} 1"#),
        "{metrics}"
    );
    for name in names_in_the_guide("haproxy_") {
        assert!(metrics.contains(&format!("# TYPE {name} ")), "docs/deploy.md names {name}");
    }
    assert_eq!(fleet.ask_one("health").status, 200);
    fleet.nodes.iter_mut().for_each(Node::kill);
    eventually("there is no node", || fleet.ask_one("health").status == 503);
}

#[test]
fn every_metric_that_the_guide_names_is_there() {
    let (cache, folder) = (UploadDir::new(), tempfile::tempdir().unwrap());
    let more = ["--with-store", "--cache-dir", text(folder.path())].map(str::to_owned).to_vec();
    let server = Narwire::start([cache.flags(), more, fixture().store.flags()].concat());
    let metrics = server.get("/metrics").expect(200).text().to_owned();
    let names = names_in_the_guide("narwire_");
    assert!(!names.is_empty());
    for name in names {
        let mut rests = metrics.lines().filter_map(|line| line.strip_prefix(&name));
        assert!(rests.any(|rest| rest.starts_with([' ', '{'])), "{name} is not in {metrics}");
    }
}

/// The names of metrics in `docs/deploy.md`.
fn names_in_the_guide(prefix: &str) -> BTreeSet<String> {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/deploy.md");
    let text = fs::read_to_string(guide).unwrap();
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let is_name =
        |word: &&str| word.starts_with(prefix) && !word.contains(|letter: char| letter.is_ascii_uppercase());
    words.filter(is_name).map(str::to_owned).collect()
}

/// A writer that takes what it is sent, and breaks off what is called so.
struct Recorder {
    heads: Arc<Mutex<Vec<String>>>,
    is_done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    fn start(listener: TcpListener) -> Self {
        let (heads, is_done) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let (seen, end) = (Arc::clone(&heads), Arc::clone(&is_done));
        listener.set_nonblocking(true).unwrap();
        let serve = move || {
            while !end.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut connection, _)) => {
                        connection.set_nonblocking(false).unwrap();
                        let head = read_head(&mut connection);
                        // Whoever has its answer finds the question.
                        seen.lock().unwrap().push(head.clone());
                        let status = if head.starts_with("PUT") { "201 Created" } else { "200 OK" };
                        let fields = "Connection: close\r\nContent-Length: 0\r\n\r\n";
                        if !head.contains("broken-off") {
                            let _gone = write!(connection, "HTTP/1.1 {status}\r\n{fields}");
                        }
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        };
        Self { heads, is_done, thread: Some(thread::spawn(serve)) }
    }

    fn heads_of(&self, request: &str) -> Vec<String> {
        self.heads.lock().unwrap().iter().filter(|head| head.starts_with(request)).cloned().collect()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.is_done.store(true, Ordering::Relaxed);
        let _ended = self.thread.take().unwrap().join();
    }
}

/// A request up to its body, which is short and comes with it, or nothing.
fn read_head(connection: &mut TcpStream) -> String {
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    while !received.windows(4).any(|end| end == b"\r\n\r\n") {
        match connection.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(len) => received.extend_from_slice(&buffer[..len]),
        }
    }
    String::from_utf8_lossy(&received).into_owned()
}

#[test]
fn nix_copy_outlives_a_node_that_vanishes_without_a_word() {
    if !is_possible() {
        return; // only root may make networks
    }
    let (store, closure) = store_with_a_closure();
    let key = &fixture().key;
    let fleet = Fleet::start(Kind::HaProxy, &[store.flags(), key.flags()].concat());
    let destination = Store::new(Nix::newest());
    let mut copy = fleet.copy_to(&destination, key, &closure);
    let vanished = fleet.sender(&mut copy, &[0, 1, 2]);
    fleet.nodes[vanished].machine.unplug();
    let said = copy.succeed();
    assert!(said.contains("retrying from offset"), "an answer was cut, and resumed:\n{said}");
    assert_copied(&destination, &store);
}

/// A store with a path that refers to all others.
fn store_with_a_closure() -> (Store, String) {
    let (store, sources, mut random) =
        (Store::new(Nix::installed()), tempfile::tempdir().unwrap(), Random(7));
    let lens = [[LONG].repeat(LONG_COUNT), [SHORT].repeat(SHORT_COUNT)].concat();
    let mut names = String::new();
    for (index, len) in lens.into_iter().enumerate() {
        let source = sources.path().join(format!("part-{index}"));
        fs::write(&source, random.bytes(len)).unwrap();
        writeln!(names, "${{{}}}", text(&source)).unwrap();
    }
    let expression = format!("builtins.toFile \"closure\" ''{names}''");
    let arguments = ["--store", store.uri(), "--eval", "--read-write-mode", "--expr", &expression];
    let closure = store.nix.run("nix-instantiate", &arguments).trim_matches('"').to_owned();
    (store, closure)
}

fn nar_caches() -> [TempDir; 3] {
    [(); 3].map(|()| tempfile::tempdir().unwrap())
}

/// Flags with which three nodes serve a store, signed, each with its own NAR cache. Not compressed, so that what one node began
/// to send any other can end.
fn with_nar_caches(store: &Store, folders: &[TempDir; 3]) -> [Vec<String>; 3] {
    folders.each_ref().map(|folder| {
        let cache = ["--cache-dir", text(folder.path()), "--cache-min-free", "0", "--cache-format", "flat"];
        [store.flags(), fixture().key.flags(), cache.map(str::to_owned).to_vec()].concat()
    })
}

/// Every path, byte for byte.
fn assert_copied(found: &Store, wanted: &Store) {
    assert_eq!(found.listed(), wanted.listed());
    assert_eq!(wanted.listed().len(), LONG_COUNT + SHORT_COUNT + 1);
    for path in wanted.listed() {
        let [found, wanted] = [found, wanted].map(|store| fs::read(store.real(&path)).unwrap());
        assert_same_bytes(&found, &wanted, &path);
    }
}

/// So many hash parts that no store has.
fn hash_parts(count: usize) -> Vec<String> {
    const LETTERS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let mut random = Random(11);
    let letter = |byte: u8| char::from(LETTERS[usize::from(byte % 32)]);
    (0..count).map(|_| random.bytes(32).into_iter().map(letter).collect()).collect()
}

/// Narinfos of these.
fn narinfos() -> Vec<String> {
    hash_parts(150).into_iter().map(|hash_part| format!("{hash_part}.narinfo")).collect()
}
