//! Sockets, signals and bad configuration: what an operator meets.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::client::request_head;
use crate::support::fixture::LARGE_LEN;
use crate::support::nix::hash_part;
use crate::support::server::{BINARY, command};
use crate::support::{Connection, Narwire, assert_same_bytes, eventually, fixture, printed, run, text};

#[test]
fn ipv4_ipv6_and_a_unix_socket_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let unix = format!("unix:{}", text(&socket));
    let flags = [fixture().store.flags(), vec!["--listen".into(), "[::1]:0".into(), "--listen".into(), unix]]
        .concat();
    let server = Narwire::start(flags);
    eventually("three addresses", || server.addresses().len() == 3);
    let addresses = server.addresses();
    let tcp: Vec<&String> =
        addresses.iter().filter(|address| address.parse::<std::net::SocketAddr>().is_ok()).collect();
    assert_eq!(tcp.len(), 2, "{addresses:?}");
    for address in tcp {
        Connection::open(address.parse().unwrap()).get("/nix-cache-info").expect(200);
    }
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--unix-socket"]).arg(&socket).arg("http://cache.test/nix-cache-info");
    assert!(run(&mut curl).contains("StoreDir: /nix/store"));
}

#[test]
fn a_unix_socket_left_by_a_dead_server_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let server = Narwire::spawn(
        command().args(fixture().store.flags()).arg("--listen").arg(format!("unix:{}", text(&socket))),
    );
    server.wait_for("listening on ");
    run(Command::new("curl")
        .args(["--silent", "--fail", "--unix-socket"])
        .arg(&socket)
        .arg("http://a/version"));
}

#[test]
fn a_socket_from_systemd_is_used() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Narwire::start_activated(&listener, fixture().store.flags());
    Connection::open(address).get("/nix-cache-info").expect(200);
    assert_eq!(server.addresses(), [address.to_string()], "only what systemd gave");
}

#[test]
fn a_port_from_the_environment_and_the_flag_p_are_obeyed() {
    for by_flag in [false, true] {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = command();
        command.args(fixture().store.flags());
        if by_flag {
            command.args(["-p", &port.to_string()]);
        } else {
            command.env("NIX_SERVE_PORT", port.to_string());
        }
        let server = Narwire::spawn(&mut command);
        server.wait_for("listening on ");
        Connection::open(([127, 0, 0, 1], port).into()).get("/nix-cache-info").expect(200);
    }
}

#[test]
fn the_terminate_signal_lets_a_download_finish_and_exits_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let (mut server, mut connection) = with_a_download_on_its_way();
        server.signal(signal);
        server.wait_for("draining");
        assert_same_bytes(
            &connection.rest(),
            &fixture().store.dump(fixture().path("large")),
            "what was on its way",
        );
        assert_eq!(server.exit().code(), Some(0));
    }
}

#[test]
fn a_draining_server_refuses_new_connections() {
    let (mut server, mut connection) = with_a_download_on_its_way();
    server.signal(Signal::TERM);
    eventually("new connections are refused", || TcpStream::connect(server.address()).is_err());
    assert!(!server.has_exited(), "a download is on its way");
    connection.rest();
    assert_eq!(server.exit().code(), Some(0));
}

#[test]
fn a_second_signal_exits_at_once() {
    let (mut server, mut connection) = with_a_download_on_its_way();
    server.signal(Signal::TERM);
    server.wait_for("draining");
    assert!(!server.has_exited(), "a download is on its way");
    server.signal(Signal::TERM);
    server.exit();
    assert!(connection.rest().len() < LARGE_LEN);
}

/// A client that has read the head of an answer that no buffer holds, and nothing of its body.
fn with_a_download_on_its_way() -> (Narwire, Connection) {
    let server = fixture().store.serve();
    let mut connection = server.connect();
    connection.send(request_head("GET", &server.nar_target(hash_part(fixture().path("large"))), &[]));
    connection.head().unwrap().expect(200);
    (server, connection)
}

#[test]
fn the_terminate_signal_ends_idle_connections() {
    let mut server = fixture().store.serve();
    let mut idle: Vec<_> = (0..10).map(|_| server.connect()).collect();
    for connection in &mut idle {
        connection.get("/nix-cache-info").expect(200);
    }
    idle.extend((0..10).map(|_| server.connect()));
    server.signal(Signal::TERM);
    assert_eq!(server.exit().code(), Some(0));
}

/// Runs narwire to its end: exit code 2, one line, nothing listening.
#[track_caller]
fn refuses(arguments: &[&str]) -> String {
    let output =
        Command::new("timeout").arg("30").arg(BINARY).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", printed(&output));
    assert!(!printed(&output).contains("listening on"), "{}", printed(&output));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.trim().is_empty(), "a reason is given");
    said
}

#[track_caller]
fn refuses_in_one_line(arguments: &[&str], naming: &str) {
    let said = refuses(&[arguments, &["--listen", "127.0.0.1:0"]].concat());
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(said.contains(naming), "{naming:?} is not in {said}");
}

#[test]
fn a_port_in_use_is_one_line_and_exit_code_2() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let flags = fixture().store.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let said = refuses(&[&flags[..], &["--listen", &address]].concat());
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(said.contains(&address), "{said}");
}

#[test]
fn a_port_of_another_narwire_is_in_use() {
    let first = fixture().store.serve();
    let flags = fixture().store.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let address = first.address().to_string();
    assert!(refuses(&[&flags[..], &["--listen", &address]].concat()).contains(&address));
}

#[test]
fn what_is_not_there_is_named() {
    refuses_in_one_line(&["/nonexistent/cache"], "/nonexistent/cache");
    refuses_in_one_line(&["--db", "/nonexistent/db.sqlite"], "/nonexistent/db.sqlite");
    refuses_in_one_line(&["--config", "/nonexistent/narwire.toml"], "/nonexistent/narwire.toml");
    let flags = fixture().store.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    refuses_in_one_line(
        &[&flags[..], &["--secret-key-file", "/nonexistent/key"]].concat(),
        "/nonexistent/key",
    );
}

#[test]
fn bad_values_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let directory = text(folder.path()).to_owned();
    let (key, config) = (folder.path().join("key"), folder.path().join("narwire.toml"));
    fs::write(&key, "no key at all").unwrap();
    fs::write(&config, "unheard-of = 1\n").unwrap();
    refuses_in_one_line(&[&directory, "--secret-key-file", text(&key)], text(&key));
    refuses_in_one_line(&[&directory, "--config", text(&config)], "unheard-of");
    for bad in [
        ["--listen", "nowhere"],
        ["--listen", "127.0.0.1:99999"],
        ["--priority", "x"],
        ["-p", "70000"],
        ["--unheard-of", "1"],
    ] {
        refuses(&[&[directory.as_str()], &bad[..]].concat());
    }
}
