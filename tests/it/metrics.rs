//! What `/metrics` says is what has happened.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::Signal;

use crate::support::client::request_head;
use crate::support::nar_cache::Nar;
use crate::support::nix::hash_part;
use crate::support::upload::{Package, Packing, UploadDir};
use crate::support::{Narwire, Nix, Reply, Store, eventually, fixture, printed, run, text};

const OPENMETRICS: (&str, &str) = ("Accept", "application/openmetrics-text; version=1.0.0");

/// Every sample of a scrape.
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn of(server: &Narwire) -> Self {
        Self::read(server.get("/metrics").expect(200).text())
    }

    fn read(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let parsed = samples.map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        });
        Self(parsed.collect())
    }

    /// What follows `narwire_`.
    #[track_caller]
    fn get(&self, sample: &str) -> f64 {
        let found = self.0.get(&format!("narwire_{sample}"));
        *found.unwrap_or_else(|| panic!("{sample} is not among {:#?}", self.0.keys()))
    }

    /// How much more it is than before, also if it was not there.
    fn since(&self, before: &Self, sample: &str) -> f64 {
        self.get(sample) - before.0.get(&format!("narwire_{sample}")).unwrap_or(&0.0)
    }

    /// All samples of one metric together.
    fn sum(&self, name: &str) -> f64 {
        let start = format!("narwire_{name}{{");
        self.0.iter().filter(|(sample, _)| sample.starts_with(&start)).map(|(_, value)| value).sum()
    }

    /// Whether these samples have grown by so much.
    #[track_caller]
    fn assert_since(&self, before: &Self, expected: &[(&str, u32)]) {
        for (sample, wanted) in expected {
            let grown = self.since(before, sample);
            assert!((grown - f64::from(*wanted)).abs() < 0.5, "{sample}: {grown} and not {wanted}");
        }
    }
}

/// A server that has everything, and whose NAR cache is not filled.
fn of_everything(folder: &Path, more: &[&str]) -> (Narwire, UploadDir) {
    let uploads = UploadDir::new();
    let cache = folder.join("cache");
    let flags = ["--with-store", "--cache-dir", text(&cache), "--cache-policy", "off", "--workers", "2"];
    let flags = flags.iter().chain(more).map(|&flag| flag.to_owned());
    (Narwire::start(uploads.flags().into_iter().chain(fixture().store.flags()).chain(flags)), uploads)
}

/// What a program says of a text that it is given.
fn judge(program: &str, arguments: &[&str], input: &str) -> String {
    let mut judge = Command::new(program);
    judge.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = judge.spawn().unwrap_or_else(|error| panic!("{program}: {error} (Debian: prometheus)"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{input}", printed(&output));
    printed(&output)
}

#[test]
fn prometheus_finds_nothing_to_complain_about() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _uploads) = of_everything(folder.path(), &[]);
    server.nar(hash_part(fixture().path("large"))).expect(200);
    let metrics = server.get("/metrics").expect(200);
    assert_eq!(metrics.field("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(metrics.field("cache-control"), Some("no-store"));
    assert_eq!(metrics.field("vary"), Some("Accept, Accept-Encoding"));
    assert_eq!(judge("promtool", &["check", "metrics"], metrics.text()), "");

    let metrics = server.request("GET", "/metrics", &[OPENMETRICS]).expect(200);
    let expected = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(metrics.field("content-type"), Some(expected));
    // There is no check of that format, but a reader of it, which wants to know of when the samples are.
    let dated = metrics
        .text()
        .lines()
        .map(|line| if line.starts_with('#') { format!("{line}\n") } else { format!("{line} 1\n") });
    let file = folder.path().join("openmetrics");
    fs::write(&file, dated.collect::<String>()).unwrap();
    let blocks = folder.path().join("blocks");
    judge("promtool", &["tsdb", "create-blocks-from", "openmetrics", text(&file), text(&blocks)], "");

    for accept in ["*/*", OPENMETRICS.1] {
        let fields = [("Accept", accept), ("Accept-Encoding", "gzip")];
        let gzipped = server.request("GET", "/metrics", &fields).expect(200);
        assert_eq!(gzipped.field("content-encoding"), Some("gzip"));
        assert_eq!(gzipped.field("vary"), Some("Accept, Accept-Encoding"));
        let plain = server.request("GET", "/metrics", &fields[..1]).expect(200);
        assert_eq!(plain.field("content-encoding"), None);
        assert!(gzipped.body.len() < plain.body.len() / 5, "{} of {}", gzipped.body.len(), plain.body.len());
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--compressed", "--header", &format!("Accept: {accept}")]);
        let read = run(curl.arg(format!("{}/metrics", server.url())));
        let names = |text: &str| Scrape::read(text).0.into_keys().collect::<BTreeSet<_>>();
        assert_eq!(names(&read), names(plain.text()));
    }

    let head = server.request("HEAD", "/metrics", &[]).expect(200);
    assert!(head.body.is_empty() && head.field("content-length").is_some());
}

#[test]
fn requests_are_counted_by_what_they_are_about_and_what_came_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _uploads) = of_everything(folder.path(), &[]);
    let before = Scrape::of(&server);
    let path = fixture().path("large");
    let narinfo = format!("/{}.narinfo", hash_part(path));
    let target = server.nar_target(hash_part(path));
    let mut connection = server.connect();
    let mut head_and_body = 0;
    for _ in 0..3 {
        let Reply { body, .. } = connection.get(&target).expect(200);
        head_and_body += body.len();
    }
    connection.request("GET", &target, &[("Range", "bytes=0-99")]).expect(206);
    connection.get(&narinfo).expect(200);
    connection.request("HEAD", &narinfo, &[]).expect(200);
    connection.get(&format!("/{}.narinfo", "0".repeat(32))).expect(404);
    connection.get("/nix-cache-info").expect(200);
    connection.get("/health").expect(200);
    connection.get("/nothing").expect(404);
    connection.get(&format!("/{}.ls", hash_part(path))).expect(200);
    server.request("PUT", "/nix-cache-info", &[]).expect(411);
    server.request("OPTIONS", "/nix-cache-info", &[]).expect(405);
    server.connect().try_request("GET", "no target", &[]).unwrap().expect(400);
    eventually("all to be counted", || {
        Scrape::of(&server).since(&before, "http_requests_total{route=\"malformed\",status=\"400\"}") > 0.5
    });
    let after = Scrape::of(&server);
    after.assert_since(
        &before,
        &[
            ("http_requests_total{route=\"nar\",status=\"200\"}", 3),
            ("http_requests_total{route=\"nar\",status=\"206\"}", 1),
            // One of them for the target.
            ("http_requests_total{route=\"narinfo\",status=\"200\"}", 3),
            ("http_requests_total{route=\"narinfo\",status=\"404\"}", 1),
            ("http_requests_total{route=\"cache_info\",status=\"200\"}", 1),
            ("http_requests_total{route=\"health\",status=\"200\"}", 1),
            ("http_requests_total{route=\"other\",status=\"404\"}", 1),
            ("http_requests_total{route=\"other\",status=\"405\"}", 1),
            ("http_requests_total{route=\"listing\",status=\"200\"}", 1),
            ("http_requests_total{route=\"upload\",status=\"411\"}", 1),
            ("http_requests_total{route=\"malformed\",status=\"400\"}", 1),
            ("http_first_byte_seconds_count{route=\"narinfo\"}", 4),
            ("http_transfer_seconds_count{route=\"nar\"}", 4),
            ("connections_closed_total{reason=\"malformed\"}", 1),
            ("http_truncated_responses_total{cause=\"body\"}", 0),
            ("nar_cache_requests_total{result=\"miss\"}", 4),
            ("nar_cache_requests_total{result=\"hit\"}", 0),
        ],
    );
    let nar_bytes = after.since(&before, "http_response_bytes_total{route=\"nar\"}");
    let least = f64::from(u32::try_from(head_and_body).unwrap());
    assert!(nar_bytes > least && nar_bytes < least + 4096.0, "{nar_bytes} of {least}");
    // The scrape itself is in flight, unless its head was answered before it was counted.
    assert!(after.get("http_requests_in_flight") <= 1.5);
    let hits = after.since(&before, "answer_cache_hits_total");
    assert!(hits >= 4.5 && after.since(&before, "answer_cache_misses_total") >= 1.5, "{hits}");
    assert!(after.since(&before, "layout_cache_misses_total") > 0.5);
    assert!(after.since(&before, "database_query_seconds_count{query=\"path_info\"}") > 1.5);
    assert!(after.since(&before, "database_query_seconds_count{query=\"probe\"}") > 0.5);
    assert!(after.since(&before, "plane_wait_seconds_count{plane=\"walk\"}") > 0.5);
    assert!(after.sum("send_bytes_total") >= least);
    for worker in 0..2 {
        assert!(after.get(&format!("ring_turn_seconds_count{{worker=\"{worker}\"}}")) > 0.5);
        assert!(after.get(&format!("ring_submissions_total{{worker=\"{worker}\"}}")) > 0.5);
    }
    assert!(
        after.get("workers") > 1.5 && after.get("database_stale") < 0.5 && after.get("signing_keys") < 0.5
    );
}

#[test]
fn connections_and_answers_that_break_off_are_counted_by_the_reason() {
    let server = fixture().store.serve();
    let target = server.nar_target(hash_part(fixture().path("large")));
    let before = Scrape::of(&server);
    let mut gone = server.connect();
    gone.get("/nix-cache-info").expect(200);
    drop(gone);
    let mut last = server.connect();
    last.request("GET", "/nix-cache-info", &[("Connection", "close")]).expect(200);
    let mut cut = server.connect();
    cut.send(format!("GET {target} HTTP/1.1\r\nHost: here\r\n\r\n"));
    assert_eq!(cut.head().unwrap().status, 200);
    cut.reset();
    eventually("both to be counted", || {
        let now = Scrape::of(&server);
        now.since(&before, "connections_closed_total{reason=\"last_answer\"}") > 0.5
            && now.since(&before, "connections_closed_total{reason=\"peer\"}") > 0.5
            && now.since(&before, "connections_closed_total{reason=\"reset\"}") > 0.5
            && now.since(&before, "http_truncated_responses_total{cause=\"peer\"}") > 0.5
    });
    let now = Scrape::of(&server);
    let closed = now.sum("connections_closed_total");
    // What was accepted is open, or has ended.
    assert!((now.get("connections") + closed - now.get("connections_accepted_total")).abs() < 1.5);
    assert!(now.get("connections") < 2.5 && now.get("connections_max") > 10.0);
}

#[test]
fn a_body_that_cannot_be_finished_is_no_fault_of_the_peer() {
    let store = Store::new(Nix::installed());
    // More than sockets take of it before anybody reads.
    let path = store.add_bytes("cut", &vec![b'x'; 48 << 20]);
    let server = store.serve();
    let target = server.nar_target(hash_part(&path));
    let before = Scrape::of(&server);
    let mut clients = [server.connect(), server.connect()];
    for client in &mut clients {
        client.send(request_head("GET", &target, &[]));
        assert_eq!(client.head().unwrap().status, 200);
    }
    clients[1].finish_sending();
    let file = store.real(&path);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_len(1).unwrap();
    for mut client in clients {
        assert!(client.rest().len() < 48 << 20);
        assert!(client.was_reset());
    }
    eventually("both to be counted", || {
        Scrape::of(&server).since(&before, "http_truncated_responses_total{cause=\"body\"}") > 1.5
    });
    Scrape::of(&server).assert_since(
        &before,
        &[
            ("http_truncated_responses_total{cause=\"body\"}", 2),
            ("http_truncated_responses_total{cause=\"peer\"}", 0),
            ("http_truncated_responses_total{cause=\"slow\"}", 0),
            ("connections_closed_total{reason=\"broken_body\"}", 2),
        ],
    );
}

#[test]
fn uploads_are_counted_by_what_came_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _uploads) = of_everything(folder.path(), &[]);
    let before = Scrape::of(&server);
    let upload = Package::new('5', b"contents", Packing::Zstd);
    let mut connection = server.connect();
    upload.put(&mut connection);
    let wrong = upload.narinfo_with("NarSize", "7");
    connection.put(&upload.narinfo_target(), wrong).expect(422);
    let after = Scrape::of(&server);
    after.assert_since(
        &before,
        &[
            ("uploads_total{result=\"stored\"}", 2),
            ("uploads_total{result=\"mismatch\"}", 1),
            ("http_requests_total{route=\"upload\",status=\"201\"}", 2),
            ("http_requests_total{route=\"upload\",status=\"422\"}", 1),
            ("uploads_waiting", 0),
            ("limits_hit_total{limit=\"uploads_waiting\"}", 0),
        ],
    );
    assert!(after.since(&before, "upload_bytes_total") > 100.0);
    assert!(after.since(&before, "plane_wait_seconds_count{plane=\"upload\"}") > 3.5);
}

#[test]
fn the_process_is_told_of_from_within_the_sandbox() {
    let mut flags = fixture().store.flags();
    if std::env::var_os("NARWIRE_TEST_WITHOUT").is_none() {
        flags.extend(["--sandbox", "require"].map(str::to_owned));
    }
    let server = Narwire::start(flags);
    let connections: Vec<_> = (0..30).map(|_| server.connect()).collect();
    let of_process = |name: &str| {
        let scrape = Scrape::of(&server);
        scrape.0.get(&format!("process_{name}")).copied().unwrap_or_else(|| panic!("{name} is not there"))
    };
    eventually("connections to be descriptors", || of_process("open_fds") > 40.0);
    drop(connections);
    eventually("them to be closed", || {
        let open = f64::from(u32::try_from(server.open_files().len()).unwrap());
        (of_process("open_fds") - open).abs() < 3.0
    });
    let threads = fs::read_dir(format!("/proc/{}/task", server.pid().as_raw_pid())).unwrap().count();
    assert!((of_process("threads") - f64::from(u32::try_from(threads).unwrap())).abs() < 8.0);
    assert!(of_process("cpu_seconds_total") > 0.0 && of_process("resident_memory_bytes") > 1e6);
    assert!(of_process("virtual_memory_bytes") >= of_process("resident_memory_bytes"));
    assert!(of_process("max_fds") >= 1024.0 && of_process("start_time_seconds") > 1.7e9);
}

#[test]
fn settings_that_cannot_be_read_again_show() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("narwire.toml");
    fs::write(&file, "priority = 30\n").unwrap();
    let mut flags = fixture().store.flags();
    flags.extend(["--config", text(&file)].map(str::to_owned));
    let server = Narwire::start(flags);
    let success = || Scrape::of(&server).get("config_last_reload_successful");
    assert!(
        success() > 0.5 && Scrape::of(&server).get("config_last_reload_success_timestamp_seconds") > 1.7e9
    );
    fs::write(&file, "priority = many\n").unwrap();
    server.signal(Signal::HUP);
    eventually("the failure to show", || success() < 0.5);
    fs::write(&file, "priority = 31\n").unwrap();
    server.signal(Signal::HUP);
    eventually("the success to show", || success() > 0.5);
}

#[test]
fn a_nar_that_is_signed_and_sent_from_the_cache_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(Nix::installed());
    let path = store.add_bytes("numbers", &(0..200_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    let cache = folder.path().join("cache");
    let mut flags = store.flags();
    flags.extend(
        ["--cache-dir", text(&cache), "--cache-policy", "all", "--cache-min-free", "0"].map(str::to_owned),
    );
    let server = Narwire::start(flags);
    let nar = Nar::of(&store, &path);
    server.wait_until_compressed([&nar]);
    // It is sent as soon as it has its name, and counted after that.
    eventually("the fill to be counted", || Scrape::of(&server).get("nar_cache_stored_bytes_total") > 0.5);
    let before = Scrape::of(&server);
    server.nar(hash_part(&path)).expect(200);
    let after = Scrape::of(&server);
    after.assert_since(&before, &[("nar_cache_requests_total{result=\"hit\"}", 1)]);
    let (filled, stored) =
        (after.get("nar_cache_filled_bytes_total"), after.get("nar_cache_stored_bytes_total"));
    assert!(
        stored > 0.0 && stored < filled && after.get("nar_cache_bytes") >= stored,
        "{stored} of {filled}"
    );
    assert!(after.get("nar_cache_size_max_bytes") > stored && after.get("nar_cache_up") > 0.5);
}

#[test]
fn a_scrape_stops_nobody_and_is_stopped_by_nobody() {
    let store = Store::new(Nix::installed());
    let path = store.add_folder("many", 3000, 6000);
    let server = store.serve();
    let narinfo = format!("/{}.narinfo", hash_part(&path));
    let target = server.nar_target(hash_part(&path));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| drop(server.get(&target).expect(200)));
            scope.spawn(|| drop(server.get(&format!("/{}.ls", hash_part(&path)))));
            scope.spawn(|| {
                let mut connection = server.connect();
                for _ in 0..10 {
                    connection.get("/metrics").expect(200);
                    connection.get(&narinfo).expect(200);
                }
            });
        }
    });
    let scrape = Scrape::of(&server);
    assert!(scrape.get("http_requests_total{route=\"metrics\",status=\"200\"}") > 79.5);
    assert!(scrape.get("plane_wait_seconds_count{plane=\"metrics\"}") > 80.0);
    assert!(scrape.get("plane_refused_total{plane=\"metrics\"}") < 0.5);
    eventually("the queues to be empty", || {
        // The scrape itself was taken from one.
        Scrape::of(&server).sum("plane_queue_length") < 0.5
    });
}
