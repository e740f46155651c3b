//! Who may read and who may upload: tokens, as clients and operators meet them.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::client::request_head;
use crate::support::nix::hash_part;
use crate::support::server::{self, command};
use crate::support::{Narwire, Nix, Reply, Store, eventually, fixture, printed, run, text};

/// What a Nix client does first when it uploads.
const PUT: &str = "/nix-cache-info";

/// A folder with a file of tokens and an empty cache directory.
struct Site {
    folder: TempDir,
    tokens: PathBuf,
    cache: PathBuf,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (tokens, cache) = (folder.path().join("tokens"), folder.path().join("cache"));
        fs::create_dir(&cache).unwrap();
        Self { folder, tokens, cache }
    }

    /// A new token.
    fn token(&self, name: &str, scope: &str) -> String {
        let output = run(&mut self.command("create", &["--name", name, "--scope", scope]));
        output.lines().last().unwrap().to_owned()
    }

    fn command(&self, what: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(server::BINARY);
        command.args(["token", what, "--file", text(&self.tokens)]).args(arguments).stdin(Stdio::null());
        command
    }

    fn flags(&self) -> Vec<&str> {
        vec![text(&self.cache), "--upload-token-file", text(&self.tokens)]
    }

    /// One worker: all failures are counted in one place.
    fn serve(&self) -> Narwire {
        self.serve_with(&["--workers", "1"])
    }

    fn serve_with(&self, flags: &[&str]) -> Narwire {
        Narwire::start([&self.flags()[..], flags].concat())
    }

    /// A netrc file with this token.
    fn netrc(&self, token: &str) -> PathBuf {
        let path = self.folder.path().join("netrc");
        fs::write(&path, format!("machine 127.0.0.1 login any password {token}\n")).unwrap();
        path
    }
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// As curl and Nix send it.
fn basic(user: &str, token: &str) -> String {
    let pair = Command::new("base64").arg("-w0").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut pair = pair.unwrap();
    pair.stdin.take().unwrap().write_all(format!("{user}:{token}").as_bytes()).unwrap();
    let output = pair.wait_with_output().unwrap();
    format!("Basic {}", String::from_utf8(output.stdout).unwrap())
}

/// What becomes of an upload with this `Authorization`, on a connection of its own.
fn put(server: &Narwire, authorization: Option<&str>) -> Reply {
    put_for(server, authorization, &[])
}

fn put_for(server: &Narwire, authorization: Option<&str>, fields: &[(&str, &str)]) -> Reply {
    const BODY: &str = "StoreDir: /nix/store\n";
    let len = BODY.len().to_string();
    let mut all = vec![("Content-Length", len.as_str())];
    all.extend(authorization.map(|value| ("Authorization", value)));
    all.extend(fields);
    let mut connection = server.connect();
    connection.send(request_head("PUT", PUT, &all));
    connection.send_if_wanted(BODY);
    connection.reply_to("PUT")
}

/// Whether it was taken: there is nothing wrong with it but who may do it.
fn is_let_in(reply: &Reply) -> bool {
    [200, 201].contains(&reply.status)
}

fn get(server: &Narwire, target: &str, authorization: &str) -> Reply {
    server.request("GET", target, &[("Authorization", authorization)])
}

#[track_caller]
fn expect_challenge(reply: Reply) {
    let reply = reply.expect(401);
    let challenge = reply.field("www-authenticate").unwrap();
    assert!(challenge.contains("Basic realm=") && challenge.contains("Bearer"), "{challenge}");
    assert_eq!(reply.field("cache-control"), Some("no-store"));
    assert!(reply.body.len() < 1024, "Nix shows only error bodies below 1 KiB");
}

#[test]
fn who_uploads_needs_a_token_with_that_scope() {
    let site = Site::new();
    let [writer, both, reader] = [("ci", "write"), ("admin", "read,write"), ("laptop", "read")]
        .map(|(name, scope)| site.token(name, scope));
    let server = site.serve();
    for token in [&writer, &both] {
        for authorization in
            [basic("", token), basic("any", token), bearer(token), format!("bearer  {token}")]
        {
            let reply = put(&server, Some(&authorization));
            assert!(is_let_in(&reply), "{}", reply.text());
        }
    }
    expect_challenge(put(&server, None));
    let (name, secret) = writer.split_once('.').unwrap();
    for wrong in [
        bearer(&format!("{name}.{}", secret.chars().rev().collect::<String>())),
        bearer(&format!("admin.{secret}")),
        bearer(&format!("nobody.{secret}")),
        bearer(secret),
        basic(&writer, ""),
        writer.clone(),
        String::new(),
    ] {
        expect_challenge(put(&server, Some(&wrong)));
    }
    let refused = put(&server, Some(&bearer(&reader))).expect(403);
    assert!(refused.text().contains("token laptop may not upload"), "{}", refused.text());
    // Reading is for everybody here, whatever they show.
    server.get("/nix-cache-info").expect(200);
    get(&server, "/nix-cache-info", &bearer("nonsense")).expect(200);
    for word in [secret, reader.split_once('.').unwrap().1] {
        assert!(!server.output().contains(word), "no secret is logged");
    }
}

#[test]
fn of_who_is_refused_nothing_is_read_and_nothing_written() {
    let site = Site::new();
    let reader = site.token("laptop", "read");
    let server = site.serve();
    let before = entries(&site.cache);
    for (authorization, status) in
        [(None, 401), (Some(bearer("no.token")), 401), (Some(bearer(&reader)), 403)]
    {
        for expects in [false, true] {
            let mut fields = vec![("Content-Length", "100000000")];
            fields.extend(expects.then_some(("Expect", "100-continue")));
            fields.extend(authorization.as_ref().map(|value| ("Authorization", value.as_str())));
            let mut connection = server.connect();
            connection.send(request_head(
                "PUT",
                "/nar/0000000000000000000000000000000000000000000000000000.nar",
                &fields,
            ));
            // The first that comes is the final answer, and not one byte of the body was sent for it.
            let reply = connection.reply_to("PUT").expect(status);
            assert_eq!(reply.field("connection"), Some("close"));
            connection.finish_sending();
            assert!(connection.ends());
        }
    }
    assert_eq!(entries(&site.cache), before);
}

/// All that is in a folder, and in its folders.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        entries.extend(if path.is_dir() { self::entries(&path) } else { Vec::new() });
        entries.push(path);
    }
    entries.sort();
    entries
}

#[test]
fn everybody_may_upload_where_that_was_said_and_nobody_where_nothing_was() {
    let site = Site::new();
    let server = Narwire::start([text(&site.cache), "--allow-anonymous-upload"]);
    for authorization in [None, Some("Bearer nonsense")] {
        let reply = put(&server, authorization);
        assert!(is_let_in(&reply), "{}", reply.text());
    }
    let server = Narwire::start([text(&site.cache)]);
    assert_eq!(put(&server, None).expect(405).field("allow"), Some("GET, HEAD"));
}

#[test]
fn a_private_cache_shows_nothing_but_its_health_without_a_token() {
    let site = Site::new();
    let [reader, writer] = [("laptop", "read"), ("ci", "write")].map(|(name, scope)| site.token(name, scope));
    let server = site.serve_with(&["--private"]);
    let targets = ["/", "/nix-cache-info", "/version", "/metrics"];
    let absent = ["/00000000000000000000000000000000.narinfo", "/nar/x.nar", "/nothing"];
    for target in targets.iter().chain(&absent) {
        expect_challenge(server.get(target));
        expect_challenge(get(&server, target, &bearer("a.b")));
        get(&server, target, &bearer(&writer)).expect(403);
        for method in ["HEAD", "PUT", "POST", "DELETE", "OPTIONS"] {
            assert_eq!(server.request(method, target, &[]).status, 401, "{method} {target}");
        }
    }
    for authorization in [basic("any", &reader), bearer(&reader)] {
        for target in targets {
            get(&server, target, &authorization).expect(200);
        }
        for target in absent {
            get(&server, target, &authorization).expect_absent();
        }
    }
    server.get("/health").expect(200);
    // One connection is as good as many: a refusal does not end it, and does not let the next request in.
    let mut connection = server.connect();
    let authorization = bearer(&reader);
    for _ in 0..3 {
        connection.get("/nix-cache-info").expect(401);
        connection.request("GET", "/nix-cache-info", &[("Authorization", &authorization)]).expect(200);
    }
}

/// Where the NAR is.
fn narinfo_url(narinfo: &Reply) -> String {
    let url = narinfo.text().lines().find_map(|line| line.strip_prefix("URL: "));
    format!("/{}", url.unwrap())
}

#[test]
fn nix_reads_a_private_store_with_its_netrc() {
    let fixture = fixture();
    let site = Site::new();
    let token = site.token("laptop", "read");
    let path = fixture.path("text");
    let flags = [fixture.store.flags(), fixture.key.flags()].concat();
    let private = ["--private", "--upload-token-file", text(&site.tokens)].map(str::to_owned);
    let server = Narwire::start([&flags[..], &private].concat());
    for (right, wrong) in Nix::all().into_iter().zip(Nix::all()) {
        let netrc = site.netrc(&token);
        let destination = Store::new(right.configured(&format!("netrc-file = {}", text(&netrc))));
        destination.copy_from(&server.url(), &fixture.key, &[path]);
        destination.verify(&fixture.key);
        let destination = Store::new(wrong);
        destination.copy_from_failing(&server.url(), &fixture.key, &[path]);
        assert!(!destination.real(path).exists());
    }
    let target = format!("/{}.narinfo", hash_part(path));
    server.get(&target).expect(401);
    // A proxy that keeps it does not have to be asked for a token, so none may keep it.
    let narinfo = get(&server, &target, &bearer(&token)).expect(200);
    assert_eq!(narinfo.field("cache-control"), Some("private, max-age=86400"));
    assert!(narinfo.text().starts_with("StorePath: "), "{}", narinfo.text());
    let head = server.request("HEAD", &target, &[("Authorization", &bearer(&token))]).expect(200);
    for name in ["cache-control", "content-type", "content-length"] {
        assert_eq!(head.field(name), narinfo.field(name));
    }
    for target in [narinfo_url(&narinfo), format!("/{}.ls", hash_part(path))] {
        let reply = get(&server, &target, &bearer(&token)).expect(200);
        assert!(reply.field("cache-control").unwrap().starts_with("private, max-age="), "{target}");
    }
    // That nothing can be written is for those who may read.
    expect_challenge(server.request("PUT", &target, &[]));
    server.request("PUT", &target, &[("Authorization", &bearer(&token))]).expect(405);
}

#[test]
fn nix_uploads_to_a_private_cache_with_its_netrc() {
    let fixture = fixture();
    let path = fixture.path("text");
    for (right, wrong) in Nix::all().into_iter().zip(Nix::all()) {
        let site = Site::new();
        let reader = site.netrc(&site.token("laptop", "read"));
        let server = site.serve_with(&["--private"]);
        let narinfo = site.cache.join(format!("{}.narinfo", hash_part(path)));
        let url = server.url();
        let upload = ["copy", "--from", fixture.store.uri(), "--to", &url, path];
        // Neither without a token, nor with one that is for reading.
        wrong.run_failing("nix", &upload);
        wrong.configured(&format!("netrc-file = {}", text(&reader))).run_failing("nix", &upload);
        assert!(!narinfo.exists());

        let both = site.netrc(&site.token("ci", "read,write"));
        server.signal(Signal::HUP);
        server.wait_for("tokens=2");
        let destination = Store::new(right.configured(&format!("netrc-file = {}", text(&both))));
        destination.nix.run("nix", &upload);
        assert!(narinfo.exists());
        destination
            .nix
            .run("nix", &["copy", "--from", &url, "--to", destination.uri(), "--no-check-sigs", path]);
        assert_eq!(destination.nar_hash(path), fixture.store.nar_hash(path));
    }
}

#[test]
fn who_sends_many_wrong_tokens_is_told_to_come_later_and_a_right_one_passes() {
    let site = Site::new();
    let right = site.token("ci", "write");
    let server = site.serve();
    let wrong = format!("ci.{}", "A".repeat(43));
    let mut statuses = Vec::new();
    eventually("it is too much", || {
        let reply = put(&server, Some(&bearer(&wrong)));
        statuses.push(reply.status);
        if reply.status == 503 {
            let seconds: u64 = reply.field("retry-after").unwrap().parse().unwrap();
            assert!((1..=60).contains(&seconds), "{seconds}");
        }
        reply.status == 503
    });
    assert_eq!(statuses[0], 401);
    assert_eq!(server.count("narwire_limits_hit_total{limit=\"wrong_tokens\"}"), Some(1));
    assert!(is_let_in(&put(&server, Some(&bearer(&right)))));
    expect_challenge(put(&server, None));
    let output = server.output();
    let lines = output.lines().filter(|line| line.contains("127.0.0.1") && line.contains("token ci"));
    assert!((1..=20).contains(&lines.count()), "{output}");
    assert!(!output.contains("AAAA"), "{output}");
}

#[test]
fn behind_a_proxy_clients_are_told_apart() {
    let site = Site::new();
    let right = site.token("ci", "write");
    let socket = site.folder.path().join("socket");
    let address = format!("unix:{}", text(&socket));
    let server = site.serve_with(&["--workers", "1", "--listen", &address]);
    let wrong = bearer("ci.wrong");
    let through = |client: &str, authorization: &str| {
        put_for(&server, Some(authorization), &[("X-Forwarded-For", client)])
    };
    // What a client itself writes stands before what the proxy writes.
    eventually("it is too much of one client", || through("10.0.0.1, 192.0.2.1", &wrong).status == 503);
    assert_eq!(through("192.0.2.1", &wrong).status, 503);
    expect_challenge(through("192.0.2.1, 192.0.2.2", &wrong));
    expect_challenge(put(&server, Some(&wrong)));
    assert!(is_let_in(&through("192.0.2.1", &bearer(&right))));
    assert!(server.output().contains("192.0.2.1") && !server.output().contains("10.0.0.1"));

    let mut stream = UnixStream::connect(&socket).unwrap();
    let fields =
        [("Authorization", wrong.as_str()), ("X-Forwarded-For", "192.0.2.1"), ("Connection", "close")];
    stream.write_all(request_head("PUT", PUT, &fields).as_bytes()).unwrap();
    let reply = std::io::read_to_string(stream).unwrap();
    assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
}

#[test]
fn tokens_are_read_again_on_sighup() {
    let site = Site::new();
    let first = site.token("first", "read,write");
    let server = site.serve_with(&["--private", "--workers", "4"]);
    let second = site.token("second", "read");
    // Every worker has to know; which one answers is chance.
    let is_known = |token: &str| {
        let known = (0..32).filter(|_| get(&server, "/nix-cache-info", &bearer(token)).status == 200).count();
        (known % 32 == 0).then_some(known == 32)
    };
    assert_eq!((is_known(&first), is_known(&second)), (Some(true), Some(false)));
    let mut kept = server.connect();
    let authorization = bearer(&first);
    let mut is_kept_let_in =
        || kept.request("GET", "/nix-cache-info", &[("Authorization", &authorization)]).status == 200;
    assert!(is_kept_let_in());

    server.signal(Signal::HUP);
    eventually("the second token is known", || is_known(&second) == Some(true));
    assert_eq!(is_known(&first), Some(true));

    run(&mut site.command("revoke", &["--name", "first"]));
    server.signal(Signal::HUP);
    eventually("the first token is revoked", || is_known(&first) == Some(false));
    eventually("so it is on a connection that is open already", || !is_kept_let_in());
    assert_eq!(is_known(&second), Some(true));
}

#[test]
fn a_broken_file_leaves_the_old_tokens_in_force() {
    let site = Site::new();
    let token = site.token("ci", "write");
    let server = site.serve();
    let good = fs::read(&site.tokens).unwrap();
    fs::write(&site.tokens, "ci:write:AAAA:SECRETHASH\n").unwrap();
    server.signal(Signal::HUP);
    server.wait_for("tokens:1: the salt is not base64");
    server.wait_for("what was in force before stays in force");
    assert!(is_let_in(&put(&server, Some(&bearer(&token)))));
    fs::remove_file(&site.tokens).unwrap();
    server.signal(Signal::HUP);
    server.wait_for("No such file");
    assert!(is_let_in(&put(&server, Some(&bearer(&token)))));
    assert!(!server.output().contains("SECRETHASH"));
    fs::write(&site.tokens, good).unwrap();
    server.signal(Signal::HUP);
    server.wait_for("tokens=1");
    assert!(is_let_in(&put(&server, Some(&bearer(&token)))));
}

#[test]
fn sighup_without_tokens_changes_nothing() {
    let site = Site::new();
    let mut server = Narwire::start([text(&site.cache)]);
    server.signal(Signal::HUP);
    server.wait_for("read settings, keys and tokens again");
    server.get("/nix-cache-info").expect(200);
    server.signal(Signal::TERM);
    assert_eq!(server.exit().code(), Some(0));
}

#[test]
fn a_server_whose_terminal_is_closed_ends_in_good_order() {
    let site = Site::new();
    let status = site.folder.path().join("status");
    // The kernel tells the shell, which tells its job, as a login shell does, and keeps how that has ended.
    let line = format!(
        "trap 'kill -HUP $!' HUP; {} {} --listen 127.0.0.1:0 & wait $!; wait $!; echo $? >{}",
        server::BINARY,
        text(&site.cache),
        text(&status)
    );
    // The terminal is that of `script`, which takes it along when it is killed. Who ignores the signal (nohup) hands that on, and no shell
    // would hear of it.
    let mut script = Command::new("env");
    script.args(["--default-signal=HUP", "script", "--quiet", "--command", &line, "/dev/null"]);
    script.stdin(Stdio::piped());
    let mut terminal = Narwire::spawn(&mut script);
    terminal.wait_for("listening on ");
    terminal.get("/nix-cache-info").expect(200);
    terminal.signal(Signal::KILL);
    terminal.exit();
    eventually("the server ends", || fs::read_to_string(&status).is_ok_and(|status| status == "0\n"));
}

#[test]
fn a_server_whose_log_nobody_reads_serves_on() {
    let site = Site::new();
    let log = site.folder.path().join("log");
    let status = Command::new("mkfifo").arg(&log).status().unwrap();
    assert!(status.success());
    let socket = site.folder.path().join("socket");
    let mut command = command();
    command.args([text(&site.cache), "--listen", &format!("unix:{}", text(&socket))]).stdout(Stdio::null());
    // Opened for reading as well, or this would wait for somebody to read.
    let both = fs::OpenOptions::new().read(true).write(true).open(&log).unwrap();
    let mut child = command.stderr(fs::OpenOptions::new().write(true).open(&log).unwrap()).spawn().unwrap();
    let mut lines = BufReader::new(both).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("listening on ")));
    drop(lines);
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::HUP).unwrap();
    let health = || {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(request_head("GET", "/health", &[("Connection", "close")]).as_bytes()).unwrap();
        std::io::read_to_string(stream).unwrap()
    };
    for _ in 0..2 {
        assert!(health().starts_with("HTTP/1.1 200 "));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(
        child.wait().unwrap().code(),
        Some(0),
        "it has ended as it should, not in the middle of a line"
    );
}

#[test]
fn a_token_is_made_listed_and_revoked() {
    let site = Site::new();
    let created = finished(&mut site.command("create", &["--name", "ci.2", "--scope", "write,read"]), 0);
    let stdout = String::from_utf8(created.stdout).unwrap();
    assert!(stdout.starts_with("ci.2.") && stdout.ends_with('\n'), "{stdout}");
    assert_eq!((stdout.lines().count(), stdout.trim_end().len()), (1, "ci.2.".len() + 43), "{stdout}");
    let explanation = String::from_utf8(created.stderr).unwrap();
    assert!(explanation.contains("machine CACHE-HOST login ci.2 password"), "{explanation}");
    assert_eq!(fs::metadata(&site.tokens).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = stdout.trim_end().rsplit_once('.').unwrap().1.to_owned();
    assert!(!fs::read_to_string(&site.tokens).unwrap().contains(&secret));
    site.token("laptop", "read");

    let before = fs::read(&site.tokens).unwrap();
    let again = finished(&mut site.command("create", &["--name", "ci.2", "--scope", "read"]), 2);
    assert!(printed(&again).contains("has a token ci.2 already"), "{}", printed(&again));
    assert!(again.stdout.is_empty());
    assert_eq!(fs::read(&site.tokens).unwrap(), before);

    assert_eq!(run(&mut site.command("list", &[])), "ci.2    read,write\nlaptop  read");
    run(&mut site.command("revoke", &["--name", "ci.2"]));
    assert_eq!(run(&mut site.command("list", &[])), "laptop  read");
    let unknown = finished(&mut site.command("revoke", &["--name", "ci.2"]), 2);
    assert!(printed(&unknown).contains("no token ci.2"), "{}", printed(&unknown));
}

fn finished(command: &mut Command, code: i32) -> Output {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", printed(&output));
    output
}

#[test]
fn what_contradicts_itself_or_the_machine_is_one_line_with_the_mend() {
    let site = Site::new();
    site.token("ci", "write");
    let (cache, tokens) = (text(&site.cache), text(&site.tokens));
    let open = site.folder.path().join("open");
    fs::copy(&site.tokens, &open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o666)).unwrap();
    for (arguments, words) in [
        (&["--allow-anonymous-upload"][..], "narwire serve DIR --allow-anonymous-upload"),
        (&[cache, "--private"], "add --upload-token-file"),
        (&[cache, "--upload-token-file", tokens, "--allow-anonymous-upload"], "add --private"),
        (&[cache, "--upload-max-size", "1G"], "say who may"),
        (&[cache, "--upload-token-file", "/nonexistent"], "narwire token create --file /nonexistent"),
        (&[cache, "--upload-token-file", text(&open)], "chmod o-w"),
    ] {
        for verb in ["check", "serve"] {
            let output = finished(Command::new(server::BINARY).arg(verb).args(arguments), 2);
            let said = printed(&output);
            assert!(said.contains(words) && said.lines().count() == 1, "{arguments:?}: {said}");
        }
    }
    let report =
        run(Command::new(server::BINARY).args(["check", cache, "--private", "--upload-token-file", tokens]));
    assert!(report.contains(&format!("uploads    into {cache}, ")), "{report}");
    assert!(report.contains("read: tokens with read; upload: tokens with write"), "{report}");
    assert!(report.contains("0 may read, 1 write"), "{report}");
    assert!(entries(&site.cache).is_empty(), "checking makes nothing");
}

#[test]
fn a_directory_that_cannot_be_written_is_refused_before_a_client_comes() {
    let site = Site::new();
    fs::set_permissions(site.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&site.cache, fs::Permissions::from_mode(0o555)).unwrap();
    // Nothing keeps root from writing, so somebody else asks, with a copy of the program that he may run.
    let mut command = if rustix::process::geteuid().is_root() {
        let binary = site.folder.path().join("narwire");
        run(Command::new("cp").arg(server::BINARY).arg(&binary));
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary);
        command
    } else {
        Command::new(server::BINARY)
    };
    let output = finished(command.args(["check", text(&site.cache), "--allow-anonymous-upload"]), 2);
    let said = printed(&output);
    assert!(said.contains("must be writable by the user") && said.lines().count() == 1, "{said}");
}

#[test]
fn a_token_file_without_a_slash_is_a_credential_of_the_service() {
    let site = Site::new();
    let token = site.token("ci", "write");
    let mut command = command();
    command.env("CREDENTIALS_DIRECTORY", site.folder.path());
    command.args([text(&site.cache), "--upload-token-file", "tokens", "--listen", "127.0.0.1:0"]);
    let server = Narwire::spawn(&mut command);
    server.wait_for("listening on ");
    assert!(is_let_in(&put(&server, Some(&bearer(&token)))));
    expect_challenge(put(&server, None));
}
