//! What is logged, how, and of whom: formats, levels, and the access log.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use narwire::limits::LOG_QUEUE_LINES_MAX;

use crate::support::client::request_head;
use crate::support::machine::Machine;
use crate::support::nix::hash_part;
use crate::support::server::{BINARY, command};
use crate::support::upload::{Package, Packing, UploadDir};
use crate::support::{Connection, Narwire, PATIENCE, eventually, fixture, run, text};

const RELOADED: &str = "read settings, keys and tokens again";

/// A cache directory, and settings that may change.
struct Site {
    folder: TempDir,
}

impl Site {
    fn new(settings: &str) -> Self {
        let site = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(site.folder.path().join("cache")).unwrap();
        site.configure(settings);
        site
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("narwire.toml")
    }

    fn configure(&self, settings: &str) {
        fs::write(self.file(), format!("directories = ['cache']\nworkers = 1\n{settings}\n")).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = command();
        command.args(["--config", text(&self.file()), "--listen", "127.0.0.1:0"]);
        command
    }

    fn serve(&self) -> Narwire {
        let server = Narwire::spawn(&mut self.command());
        server.wait_for("listening on ");
        server
    }

    /// Has the server take over other settings, and waits until its worker has. Asks for `/nix-cache-info` meanwhile.
    fn reload(&self, server: &Narwire, settings: &str, priority: u32) {
        self.configure(&format!("{settings}\npriority = {priority}"));
        server.signal(Signal::HUP);
        let line = format!("Priority: {priority}\n");
        eventually("the settings are in force", || {
            server.get("/nix-cache-info").expect(200).text().contains(&line)
        });
    }
}

/// Every line of JSON that the server has logged.
fn objects(server: &Narwire) -> Vec<Value> {
    let output = server.output();
    let lines = output.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Those of the access log, but for [`Site::reload`], once there are so many.
fn accesses(server: &Narwire, count: usize) -> Vec<Value> {
    let is_one = |line: &Value| line["target"] == "access" && line["uri"] != "/nix-cache-info";
    let of_access = || objects(server).into_iter().filter(is_one).collect();
    let mut lines: Vec<Value> = Vec::new();
    eventually("lines of the access log", || {
        lines = of_access();
        lines.len() >= count
    });
    assert_eq!(lines.len(), count, "{lines:?}");
    lines
}

const JSON: &str = "log-format = 'json'\naccess-log = 'full'";

#[test]
fn json_is_one_object_a_line() {
    let site = Site::new("log-format = 'json'");
    let server = site.serve();
    server.wait_for("\"serving\"");
    let said = objects(&server);
    let serving = said.iter().find(|line| line["message"] == "serving").unwrap();
    assert_eq!((&serving["level"], &serving["workers"]), (&"INFO".into(), &1.into()), "{serving}");
    assert_eq!(serving["target"], "narwire::server");
    let time = serving["timestamp"].as_str().unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z') && time.contains('T'), "{time}");
    let url = server.url();
    let listening = said.iter().find(|line| line["message"] == format!("listening on {url}")).unwrap();
    assert_eq!((&listening["level"], &listening["url"]), (&"INFO".into(), &url.into()), "{listening}");
    let output = server.output();
    assert!(output.lines().all(|line| line.starts_with('{')), "{output}");
}

#[test]
fn the_level_is_what_the_settings_say_until_sighup_brings_another_and_the_environment_goes_before_it() {
    let site = Site::new("log-level = 'error'");
    let server = site.serve();
    assert!(!server.output().contains("INFO"), "{}", server.output());
    site.reload(&server, "log-level = 'info'", 7);
    server.wait_for(RELOADED);
    site.reload(&server, "log-level = 'off'", 8);
    assert_eq!(server.output().matches(RELOADED).count(), 1, "{}", server.output());

    site.configure("log-level = 'error'");
    let server = Narwire::spawn(site.command().env("RUST_LOG", "narwire=info"));
    server.wait_for("listening on ");
    site.reload(&server, "log-level = 'warn'", 7);
    server.wait_for("RUST_LOG stays in force");
    site.reload(&server, "log-level = 'warn'", 8);
    eventually("it was read twice", || server.output().matches(RELOADED).count() == 2);
    assert_eq!(server.output().matches("stays in force").count(), 1, "{}", server.output());
}

#[test]
fn what_is_no_level_and_no_format_is_one_line() {
    for (flag, value) in [("--log-level", "loud"), ("--log-format", "xml"), ("--access-log", "half")] {
        let output = command().args([flag, value, "/"]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
        assert!(said.contains(flag) && said.contains("expected"), "{said}");
    }
}

/// What a journal gets that listens beneath `folder`, as datagrams of text.
struct Journal {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Journal {
    fn listen() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("socket")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, folder }
    }

    /// A shell line that puts it where the journal is, where `folder` is `$0`.
    const MOUNT: &str =
        "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd && ln -s \"$0\" /run/systemd/journal";

    /// The fields of the next line that is asked for.
    fn hear(&self, of: impl Fn(&BTreeMap<String, String>) -> bool) -> BTreeMap<String, String> {
        let mut datagram = vec![0; 1 << 18];
        loop {
            let len = self.socket.recv(&mut datagram).unwrap();
            let lines = str::from_utf8(&datagram[..len]).unwrap().lines();
            let pairs = lines.map(|line| line.split_once('=').unwrap());
            let fields = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            if of(&fields) {
                return fields;
            }
        }
    }
}

#[test]
fn the_journal_gets_fields_from_inside_the_sandbox() {
    let (site, journal) =
        (Site::new("log-format = 'journald'\naccess-log = 'full'\nsandbox = 'require'"), Journal::listen());
    let flags = ["--config", text(&site.file())].map(str::to_owned);
    if std::env::var_os("NARWIRE_TEST_WITHOUT").is_some() {
        return; // the sandbox is not whole then
    }
    let server = Narwire::spawn_mounted(journal.folder.path(), Journal::MOUNT, &flags);
    server.wait_for("listening on ");
    let serving = journal.hear(|fields| fields["MESSAGE"].starts_with("serving"));
    for (name, value) in [
        ("PRIORITY", "6"),
        ("SYSLOG_IDENTIFIER", "narwire"),
        ("TARGET", "narwire::server"),
        ("NARWIRE_WORKERS", "1"),
        ("NARWIRE_SANDBOX", "on"),
    ] {
        assert_eq!(serving[name], value, "{serving:?}");
    }
    server.get("/nix-cache-info").expect(200);
    let access = journal.hear(|fields| fields["TARGET"] == "access");
    assert_eq!(
        (&*access["NARWIRE_URI"], &*access["NARWIRE_STATUS"]),
        ("/nix-cache-info", "200"),
        "{access:?}"
    );
    assert_eq!(
        server.output().lines().count(),
        1,
        "nothing else is said on standard error: {}",
        server.output()
    );
}

#[test]
fn a_service_logs_into_the_journal_by_itself_and_is_found_by_its_fields() {
    if !rustix::process::geteuid().is_root() {
        return; // nobody else may boot a machine of its own
    }
    let machine = Machine::boot();
    machine.copy(Path::new(BINARY), "/tmp/narwire");
    machine.run("chmod 755 /tmp/narwire && mkdir /tmp/cache");
    let narwire = "/tmp/narwire /tmp/cache --listen 127.0.0.1:5000 --access-log full";
    machine.run(&format!("systemd-run --quiet --unit=logged --property=Type=notify {narwire}"));
    machine.run("curl --silent --user-agent tester http://127.0.0.1:5000/x");
    let said =
        |fields: &str| machine.run(&format!("journalctl --sync; journalctl --quiet --output=json {fields}"));
    let mut lines = String::new();
    eventually("the journal has it", || {
        lines = said("--unit=logged NARWIRE_URI=/x NARWIRE_STATUS=404");
        !lines.is_empty()
    });
    let line: Value = serde_json::from_str(&lines).unwrap();
    for (field, value) in [
        ("PRIORITY", "6"),
        ("SYSLOG_IDENTIFIER", "narwire"),
        ("TARGET", "access"),
        ("NARWIRE_METHOD", "GET"),
        ("NARWIRE_CLIENT", "127.0.0.1"),
        ("NARWIRE_USER_AGENT", "tester"),
        ("NARWIRE_IS_WHOLE", "true"),
        ("_SYSTEMD_UNIT", "logged.service"),
    ] {
        assert_eq!(line[field], value, "{line}");
    }
    assert!(line["MESSAGE"].as_str().unwrap().contains("status=404"), "{line}");
    let serving: Value = serde_json::from_str(&said("--unit=logged NARWIRE_WORKERS=$(nproc)")).unwrap();
    assert!(serving["MESSAGE"].as_str().unwrap().starts_with("serving workers="), "{serving}");
}

#[test]
fn where_standard_error_is_the_journal_and_no_journal_listens_one_line_says_so() {
    let site = Site::new("");
    let log = site.folder.path().join("stderr");
    let of_stderr = r#"export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2); exec "$@""#;
    let start = |script: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec 2>'{}'; {script}", text(&log)), "sh", BINARY]);
        shell.args(site.command().get_args());
        fs::write(&log, "").unwrap();
        let server = Narwire::spawn(&mut shell);
        eventually("it serves", || fs::read_to_string(&log).unwrap_or_default().contains("serving"));
        drop(server);
        fs::read_to_string(&log).unwrap()
    };
    let said = start(of_stderr);
    assert_eq!(said.matches("the journal cannot be reached").count(), 1, "{said}");
    // That of another process.
    let said = start(r#"export JOURNAL_STREAM=1:1; exec "$@""#);
    assert!(!said.contains("journal"), "{said}");
}

#[test]
fn every_request_is_a_line_of_the_full_access_log() {
    let site = Site::new(JSON);
    let server = site.serve();
    let agent = [("User-Agent", "curl/8.13.0 Nix/2.26.3")];
    let found = server.request("GET", "/", &agent).expect(200);
    server.request("HEAD", "/", &[]).expect(200);
    server.get("/0.narinfo?a=b").expect(404);
    server.request("DELETE", "/x", &[]).expect(405);
    let lines = accesses(&server, 4);
    for (line, expected) in lines.iter().zip([
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/0.narinfo?a=b", 404),
        ("DELETE", "/x", 405),
    ]) {
        let (method, uri, status) = expected;
        assert_eq!([&line["method"], &line["uri"]], [method, uri], "{line}");
        assert_eq!((&line["status"], &line["is_whole"]), (&status.into(), &true.into()), "{line}");
        assert_eq!((&line["client"], line.get("proxy")), (&"127.0.0.1".into(), None), "{line}");
        assert!(line["duration_ms"].as_f64().unwrap() >= 0.0 && line["http_version"] == "1.1", "{line}");
    }
    assert_eq!(lines[0]["user_agent"], agent[0].1);
    assert_eq!(lines[1].get("user_agent"), None);
    let sent_len = |line: &Value| usize::try_from(line["bytes"].as_u64().unwrap()).unwrap();
    // Without the body, which is not sent to HEAD.
    assert_eq!(sent_len(&lines[0]), sent_len(&lines[1]) + found.body.len(), "{lines:?}");
}

#[test]
fn what_is_no_request_is_a_line_of_the_access_log_as_well() {
    let site = Site::new(JSON);
    let server = site.serve();
    server.connect().try_request("GET", "no target", &[]).unwrap().expect(400);
    let reply = server.connect().try_request("GET", &format!("/{}", "x".repeat(1 << 16)), &[]).unwrap();
    let lines = accesses(&server, 2);
    for (line, status) in lines.iter().zip([400, reply.status]) {
        assert_eq!((&line["status"], &line["client"]), (&status.into(), &"127.0.0.1".into()), "{line}");
        assert!(line["bytes"].as_u64().unwrap() > 0 && line["is_whole"] == true, "{line}");
        let of_requests = ["method", "uri", "http_version", "user_agent", "duration_ms"];
        assert!(of_requests.iter().all(|name| line.get(name).is_none()), "{line}");
    }
}

#[test]
fn the_access_log_is_turned_on_off_and_down_while_it_serves() {
    let site = Site::new("log-format = 'json'");
    let server = site.serve();
    let mut connection = server.connect();
    let mut ask = |target: &str, count: usize| {
        (0..count).for_each(|_| drop(connection.get(target).expect(404)));
    };
    ask("/off", 10);
    site.reload(&server, "log-format = 'json'\naccess-log = '1/10'", 1);
    ask("/sampled", 300);
    site.reload(&server, JSON, 2);
    ask("/full", 3);
    site.reload(&server, "log-format = 'json'", 3);
    ask("/off", 10);
    // It is a matter of its own.
    site.reload(&server, &format!("{JSON}\nlog-level = 'error'"), 4);
    ask("/last", 1);
    let count = |uri: &str| objects(&server).iter().filter(|line| line["uri"] == uri).count();
    eventually("the last line", || count("/last") > 0);
    // They are in their order. Of ten requests one on average, and of nineteen one for certain.
    assert_eq!(["/off", "/full", "/last"].map(count), [0, 3, 1]);
    assert!((10..100).contains(&count("/sampled")), "{}", count("/sampled"));
}

#[test]
fn a_download_that_is_broken_off_is_not_whole() {
    let fixture = fixture();
    let mut flags = fixture.store.flags();
    flags.extend(["--log-format", "json", "--access-log", "full", "--workers", "1"].map(str::to_owned));
    let server = Narwire::start(flags);
    let target = server.nar_target(hash_part(fixture.path("large")));
    let whole_len = server.get(&target).expect(200).body.len() as u64;
    let mut connection = server.connect();
    connection.send(request_head("GET", &target, &[]));
    connection.head().unwrap();
    connection.reset();
    let lines = accesses(&server, 3);
    assert!(lines[1]["is_whole"] == true && lines[1]["bytes"].as_u64().unwrap() > whole_len, "{}", lines[1]);
    assert_eq!((&lines[2]["is_whole"], &lines[2]["status"]), (&false.into(), &200.into()), "{}", lines[2]);
    assert!(lines[2]["bytes"].as_u64().unwrap() < lines[1]["bytes"].as_u64().unwrap(), "{}", lines[2]);
}

#[test]
fn the_client_behind_proxies_that_are_trusted_is_named_with_the_proxy() {
    let site = Site::new(JSON);
    let server = site.serve();
    server.request("GET", "/x", &[("X-Forwarded-For", "192.0.2.7")]).expect(404);
    server.request("GET", "/x", &[("X-Forwarded-For", "192.0.2.7, 10.0.0.2")]).expect(404);
    server.request("GET", "/x", &[("X-Forwarded-For", "nobody")]).expect(404);
    site.reload(&server, &format!("{JSON}\ntrusted-proxy = ['10.0.0.0/8']"), 7);
    server.request("GET", "/x", &[("X-Forwarded-For", "198.51.100.1, 192.0.2.7, 10.0.0.2")]).expect(404);
    let who = accesses(&server, 4)
        .iter()
        .map(|line| (line["client"].as_str().unwrap().to_owned(), line.get("proxy").cloned()))
        .collect::<Vec<_>>();
    let proxy = || Some(Value::from("127.0.0.1"));
    let expected =
        [("192.0.2.7", proxy()), ("10.0.0.2", proxy()), ("127.0.0.1", None), ("192.0.2.7", proxy())];
    assert_eq!(who, expected.map(|(client, proxy)| (client.to_owned(), proxy)));
}

#[test]
fn what_a_peer_sends_begins_no_line_and_no_command_to_a_terminal() {
    let hostile = "a\tb\u{9b}31m\u{85}{\"target\":\"forged\"}\u{2028}\u{202e}\\\"";
    let target = "/%0aforged%1b[31m?\"=x".replace('"', "%22").replace('[', "%5B");
    for format in ["json", "human"] {
        let site = Site::new(&format!("log-format = '{format}'\naccess-log = 'full'"));
        let server = site.serve();
        server.request("GET", &target, &[("User-Agent", hostile)]).expect(404);
        server.wait_for("uri");
        eventually("the whole line", || server.output().contains("user_agent"));
        let output = server.output();
        let lines: Vec<_> = output.lines().filter(|line| line.contains("uri")).collect();
        assert_eq!(lines.len(), 1, "{output}");
        assert!(!output.contains("\nforged"), "{output}");
        let is_plain = |character: char| !character.is_control() && !"\u{2028}\u{202e}".contains(character);
        assert!(lines[0].chars().all(is_plain), "{:?}", lines[0]);
        if format == "json" {
            let line: Value = serde_json::from_str(lines[0]).unwrap();
            assert_eq!((&line["target"], &line["uri"]), (&"access".into(), &target.as_str().into()));
        }
    }
}

#[test]
fn no_secret_is_ever_logged() {
    let cache = UploadDir::new();
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    let token = |name: &str, scope: &str| {
        let mut create = Command::new(BINARY);
        create.args(["token", "create", "--file", text(&tokens), "--name", name, "--scope", scope]);
        run(&mut create).lines().last().unwrap().to_owned()
    };
    let (writer, reader) = (token("ci", "write"), token("laptop", "read"));
    let key = crate::support::nix::Key::in_folder(folder.path(), "cache.test-1");
    let mut narwire = command();
    narwire.env("RUST_LOG", "trace").args(["--log-format", "json", "--access-log", "full"]);
    narwire.args([
        "--private",
        "--upload-token-file",
        text(&tokens),
        "--listen",
        "127.0.0.1:0",
        "--workers",
        "1",
    ]);
    narwire.args(["--secret-key-file", text(&key.secret_file)]).arg(cache.path());
    let server = Narwire::spawn(&mut narwire);
    server.wait_for("listening on ");

    let secret_of = |token: &str| token.split_once('.').unwrap().1.to_owned();
    let package = Package::new('1', b"contents", Packing::None);
    let wrong = format!("ci.{}", secret_of(&reader));
    let encode = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    for (token, status) in [(&reader, 200), (&writer, 403), (&wrong, 401)] {
        for authorization in [format!("Bearer {token}"), format!("Basic {}", encode(&format!("x:{token}")))] {
            server.request("GET", "/", &[("Authorization", &authorization)]).expect(status);
        }
    }
    let bearer = format!("Bearer {writer}");
    let fields = [("Authorization", bearer.as_str())];
    server.connect().upload("PUT", &package.nar_target(), &fields, &package.file).expect(201);
    server
        .connect()
        .upload("PUT", &package.narinfo_target(), &fields, package.narinfo().as_bytes())
        .expect(201);
    server.signal(Signal::HUP);
    server.wait_for(RELOADED);
    accesses(&server, 8);
    let output = server.output();
    assert!(output.contains("refused to let 127.0.0.1 read"), "{output}");
    let secret_key = fs::read_to_string(&key.secret_file).unwrap();
    let secret_key = secret_key.trim_end().split_once(':').unwrap().1.to_owned();
    for secret in [secret_of(&writer), secret_of(&reader), secret_key] {
        assert!(secret.len() > 20 && !output.contains(&secret), "{secret}: {output}");
    }
    for token in [&writer, &reader, &wrong] {
        assert!(!output.contains(&encode(&format!("x:{token}"))), "{output}");
    }
    assert!(!output.contains("Bearer") && !output.contains("Basic "), "{output}");
}

/// More requests than the pipe, the journal and the queue of lines take.
const MANY: usize = 8_000;

/// A site with a token, and what is said with it.
fn private_site(settings: &str) -> (Site, String) {
    let site = Site::new("");
    let tokens = site.folder.path().join("tokens");
    let mut create = Command::new(BINARY);
    create.args(["token", "create", "--file", text(&tokens), "--name", "laptop", "--scope", "read"]);
    let token = run(&mut create).lines().last().unwrap().to_owned();
    site.configure(&format!("private = true\nupload-token-file = '{}'\n{settings}", text(&tokens)));
    (site, format!("Bearer {token}"))
}

/// Has much more logged than anybody takes: by the access log, by workers, and by the main thread. All go on as if it were read.
fn overwhelm(address: SocketAddr, site: &Site, bearer: &str, signal: impl Fn(Signal)) {
    let mut connection = Connection::open(address);
    for _ in 0..MANY {
        connection.get("/health").expect(200);
    }
    for _ in 0..20 {
        connection.request("GET", "/x", &[("Authorization", "Bearer laptop.wrong")]).expect(401);
    }
    let before = fs::read_to_string(site.file()).unwrap();
    fs::write(site.file(), before + "priority = 7\n").unwrap();
    signal(Signal::HUP);
    eventually("the settings are in force", || {
        let reply = connection.request("GET", "/nix-cache-info", &[("Authorization", bearer)]).expect(200);
        reply.text().contains("Priority: 7\n")
    });
    connection.get("/health").expect(200);
}

/// A server whose standard error is a pipe; where it listens; and the lines that come out of it.
fn serve_into_pipe(site: &Site) -> (Narwire, SocketAddr, impl Iterator<Item = String> + Send + use<>) {
    let pipe = site.folder.path().join("stderr");
    run(Command::new("mkfifo").arg(&pipe));
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec 2<>'{}'; exec \"$@\"", text(&pipe)), "sh", BINARY]);
    let server = Narwire::spawn(shell.args(site.command().get_args()));
    let mut lines = BufReader::new(File::open(&pipe).unwrap()).lines().map(Result::unwrap);
    let listening = lines.find(|line| line.contains("listening on http://")).unwrap();
    let (_, address) = listening.rsplit_once("http://").unwrap();
    let address = address.split('"').next().unwrap().parse().unwrap();
    (server, address, lines)
}

/// Who reads the log may stop doing so; nobody waits for that, neither clients nor who ends the process.
#[test]
fn a_log_that_nobody_reads_keeps_no_client_and_no_signal_waiting() {
    for level in ["info", "error"] {
        nobody_waits_for_a_log_that_nobody_reads(level);
    }
}

fn nobody_waits_for_a_log_that_nobody_reads(level: &str) {
    let (site, bearer) = private_site(&format!("{JSON}\nlog-level = '{level}'"));
    let (server, address, lines) = serve_into_pipe(&site);
    overwhelm(address, &site, &bearer, |signal| server.signal(signal));
    // What was left out is not made up for, but said where it is missing, and there is room again for what comes.
    let (sender, seen) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = lines;
        lines.try_for_each(|line| sender.send(line))
    });
    let mut connection = Connection::open(address);
    let (mut count, mut missing) = (0, 0);
    eventually("the last line", || {
        connection.get("/last").expect(401);
        let said: Vec<Value> = seen.try_iter().filter_map(|line| serde_json::from_str(&line).ok()).collect();
        for line in &said {
            count += usize::from(line["uri"] == "/health");
            if let Some(lines) = line["missing"].as_u64() {
                assert!(count >= LOG_QUEUE_LINES_MAX, "{line} behind {count} lines");
                missing += lines;
            }
        }
        missing > 0 && said.iter().any(|line| line["uri"] == "/last")
    });
    assert!((LOG_QUEUE_LINES_MAX..MANY).contains(&count), "{count} lines");
    let metrics = connection.request("GET", "/metrics", &[("Authorization", &bearer)]).expect(200);
    let of_access = value(metrics.text(), "narwire_access_log_dropped_total");
    let of_others = value(metrics.text(), "narwire_log_dropped_total");
    assert!(of_access >= (MANY - count) as u64 && (of_others > 0) == (level == "info"), "{}", metrics.text());
    assert_eq!(of_access + of_others, missing);
}

/// The file that it goes to may take no more, and be emptied later: what was not written is counted, and no line begins in another.
#[test]
fn a_log_for_which_there_is_no_room_is_counted_and_goes_on_with_a_line_of_its_own() {
    let site = Site::new(JSON);
    let log = site.folder.path().join("stderr");
    let limited = format!("trap '' XFSZ; ulimit -f 16; exec 2>>'{}'; exec \"$@\"", text(&log));
    let mut shell = Command::new("sh");
    shell.args(["-c", &limited, "sh", BINARY]).args(site.command().get_args());
    let _server = Narwire::spawn(&mut shell);
    let written = || fs::read_to_string(&log).unwrap_or_default();
    let mut address = None;
    eventually("it listens", || {
        let said = written();
        let after = said.split_once("listening on http://").and_then(|(_, after)| after.split_once('"'));
        address = after.map(|(address, _)| address.parse::<SocketAddr>().unwrap());
        address.is_some()
    });
    let mut connection = Connection::open(address.unwrap());
    let mut metrics = String::new();
    eventually("there is no room", || {
        (0..10).for_each(|_| drop(connection.get("/x").expect(404)));
        metrics = connection.get("/metrics").expect(200).text().to_owned();
        value(&metrics, "narwire_access_log_dropped_total") > 0
    });
    let before = written();
    let whole = before.split_inclusive('\n').filter(|line| line.ends_with('\n') && line.contains("\"uri\""));
    assert_eq!(value(&metrics, "narwire_access_log_lines_total"), whole.count() as u64, "{before}");

    File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
    eventually("there is room again", || {
        connection.get("/again").expect(404);
        written().contains("/again")
    });
    let after = written();
    assert_eq!(after.starts_with('\n'), !before.ends_with('\n'), "{before}{after}");
    for line in after.trim_start().split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
}

/// What a metric without labels is at.
fn value(metrics: &str, name: &str) -> u64 {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap().parse().unwrap()
}

#[test]
fn a_log_that_nobody_reads_keeps_no_process_from_ending() {
    let (site, bearer) = private_site(JSON);
    let (mut server, address, _unread) = serve_into_pipe(&site);
    overwhelm(address, &site, &bearer, |signal| server.signal(signal));
    server.signal(Signal::TERM);
    assert!(server.exit().success());
}

#[test]
fn a_journal_that_nobody_reads_keeps_nobody_waiting() {
    let (site, bearer) = private_site("log-format = 'journald'\naccess-log = 'full'");
    let journal = Journal::listen();
    let flags = ["--config", text(&site.file())].map(str::to_owned);
    let mut server = Narwire::start_mounted(journal.folder.path(), Journal::MOUNT, &flags);
    overwhelm(server.address(), &site, &bearer, |signal| server.signal(signal));
    server.signal(Signal::TERM);
    assert!(server.exit().success());
}

/// What the end of the process cuts off is told as well: who has been sent half of something asks why.
#[test]
fn a_download_that_the_end_breaks_off_has_a_line() {
    let fixture = fixture();
    for signals in [1, 2] {
        let mut flags = fixture.store.flags();
        flags.extend(["--log-format", "json", "--access-log", "full", "--workers", "2"].map(str::to_owned));
        let timeout = if signals == 1 { "1" } else { "3600" };
        flags.extend(["--drain-timeout", timeout].map(str::to_owned));
        let mut server = Narwire::start(flags);
        let target = server.nar_target(hash_part(fixture.path("large")));
        let mut connection = server.connect();
        connection.send(request_head("GET", &target, &[]));
        connection.head().unwrap();
        server.signal(Signal::TERM);
        server.wait_for("draining: ");
        if signals == 2 {
            server.signal(Signal::TERM);
        }
        assert!(server.exit().success());
        let lines = accesses(&server, 2);
        assert_eq!((&lines[1]["uri"], &lines[1]["is_whole"]), (&target.into(), &false.into()), "{lines:?}");
    }
}
