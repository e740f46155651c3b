//! Too many, too slow, too much: what hostile clients cost, and what others notice of them.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::client::request_head;
use crate::support::fixture::LARGE_LEN;
use crate::support::nix::hash_part;
use crate::support::server::{BINARY, command};
use crate::support::{Connection, Narwire, assert_same_bytes, eventually, fixture, text};

/// What the process may take while all of [`Horde`] is there: the pack buffers of two workers are 32 MiB, answers that nobody takes and
/// requests ahead 96 KiB for each pipeline, and 16 KiB are more than enough for everybody else.
const MEMORY_MAX_KIB: usize = 160 * 1024;
const IDLE: usize = 2_000;
const SLOW: usize = 300;
const DRIPPING: usize = 300;
const PIPELINES: usize = 20;
const PIPELINED: usize = 100_000;

/// Connections for which the kernel takes what it likes.
const EXEMPTIONS_MAX: usize = 64;

const INFO: &str = "/nix-cache-info";

/// A server on the loopback with these flags beside those of the fixture's store.
fn server(flags: &[&str]) -> Narwire {
    let flags = flags.iter().map(|&flag| flag.to_owned());
    Narwire::start(fixture().store.flags().into_iter().chain(flags))
}

fn large_target(server: &Narwire) -> String {
    server.nar_target(hash_part(fixture().path("large")))
}

/// The most memory that the process has had at once. KiB.
fn peak_memory_kib(server: &Narwire) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid().as_raw_nonzero())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

/// This process holds thousands of connections.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    assert!(limit.maximum.is_none_or(|maximum| maximum >= 8_192), "ulimit -Hn is too low for this test");
}

/// Clients that mean no good. They go when it is dropped.
struct Horde {
    /// Those that do nothing more.
    _still: Vec<TcpStream>,
    dripping: Vec<TcpStream>,
    pipelines: Vec<(TcpStream, usize)>,
    requests: Vec<u8>,
}

impl Horde {
    fn against(server: &Narwire) -> Self {
        let connect = || TcpStream::connect(server.address()).unwrap();
        let mut still = Vec::new();
        for number in 0..IDLE {
            let mut socket = connect();
            if number % 2 == 0 {
                socket.write_all(request_head("GET", INFO, &[]).as_bytes()).unwrap();
            }
            still.push(socket);
        }
        let large = request_head("GET", &large_target(server), &[]);
        for _ in 0..SLOW {
            let mut socket = connect();
            socket.write_all(large.as_bytes()).unwrap();
            still.push(socket);
        }
        let dripping = (0..DRIPPING).map(|_| {
            let mut socket = connect();
            socket.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
            socket
        });
        let dripping = dripping.collect();
        let path = hash_part(fixture().path("small"));
        let kinds = [
            request_head("GET", &format!("/{path}.narinfo"), &[]),
            request_head("GET", &format!("/{path}.ls"), &[]),
            request_head("HEAD", &format!("/{path}.narinfo"), &[]),
            request_head("GET", "/nowhere", &[]),
            large,
        ];
        let pipelines = (0..PIPELINES).map(|_| {
            let socket = connect();
            socket.set_nonblocking(true).unwrap();
            (socket, 0)
        });
        let pipelines = pipelines.collect();
        let requests = kinds.concat().repeat(PIPELINED / kinds.len()).into_bytes();
        Self { _still: still, dripping, pipelines, requests }
    }

    /// One more thing that each of them does.
    fn act(&mut self) {
        for socket in &mut self.dripping {
            let _may_be_refused = socket.write(b"x");
        }
        for (socket, said_len) in &mut self.pipelines {
            while let Ok(len @ 1..) = socket.write(&self.requests[*said_len..]) {
                *said_len += len;
            }
        }
    }
}

#[test]
fn a_horde_of_hostile_clients_takes_little_memory_and_nobody_else_s_answers() {
    raise_descriptors();
    let (fixture, server) = (fixture(), server(&["--workers", "2"]));
    let wanted = fixture.store.dump(fixture.path("large"));
    let narinfo = format!("/{}.narinfo", hash_part(fixture.path("small")));
    let said = server.get(&narinfo).expect(200).body;
    server.nar(hash_part(fixture.path("large"))).expect(200);
    let before = server.descriptors();
    let mut horde = Horde::against(&server);
    let mut behaved = server.connect();
    for _ in 0..50 {
        horde.act();
        assert_same_bytes(&behaved.get(&narinfo).expect(200).body, &said, "a narinfo");
        assert_same_bytes(&server.get(&narinfo).expect(200).body, &said, "a narinfo for who has just come");
        server.get("/00000000000000000000000000000000.narinfo").expect_absent();
    }
    assert_same_bytes(&server.get(&large_target(&server)).expect(200).body, &wanted, "a large NAR");
    assert!(server.descriptors() > before + IDLE);
    let peak = peak_memory_kib(&server);
    assert!(peak < MEMORY_MAX_KIB, "{peak} KiB");
    drop((horde, behaved));
    eventually("every descriptor is closed", || server.descriptors() <= before);
    assert_same_bytes(&server.get(&narinfo).expect(200).body, &said, "a narinfo afterwards");
}

#[test]
fn who_is_idle_makes_room_for_who_asks_beyond_the_most_connections() {
    for workers in ["1", "3"] {
        let server = server(&["--workers", workers, "--max-connections", "8"]);
        let target = large_target(&server);
        let mut idle: Vec<_> = (0..8).map(|_| server.connect()).collect();
        for connection in &mut idle {
            connection.get(INFO).expect(200);
        }
        // Each new one asks, and takes the place of one that does not.
        let ask = |()| {
            let mut connection = server.connect();
            connection.send(request_head("GET", &target, &[]));
            connection
        };
        let mut busy: Vec<_> = [(); 8].map(ask).into();
        for connection in &mut busy {
            connection.head().unwrap().expect(200);
        }
        assert!(idle.iter_mut().all(Connection::ends), "all of them had to go");
        // Those who are being answered do not: another one waits until one of them has gone.
        let mut waiting = server.connect();
        waiting.send(request_head("GET", INFO, &[]));
        busy.pop();
        waiting.reply_to("GET").expect(200);
        let wanted = fixture().store.dump(fixture().path("large"));
        busy.truncate(2);
        for mut connection in busy {
            let body = connection.rest_of(wanted.len());
            assert_same_bytes(&body, &wanted, "a NAR");
        }
    }
}

/// A connection from another address of this machine.
fn connect_from(source: Ipv4Addr, server: &Narwire) -> Connection {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::new(IpAddr::V4(source), 0)).unwrap();
    rustix::net::connect(&socket, &server.address()).unwrap();
    Connection::over(TcpStream::from(socket))
}

#[test]
fn an_address_has_so_many_connections_and_others_have_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let unix = format!("unix:{}", text(&socket));
    let server = server(&["--workers", "2", "--max-connections-per-address", "4", "--listen", &unix]);
    eventually("both addresses", || server.addresses().len() == 2);
    let mut own: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for connection in &mut own {
        connection.get(INFO).expect(200);
    }
    for _ in 0..20 {
        let mut refused = server.connect();
        let reply = refused.reply_to("GET").expect(503);
        assert!(reply.field("retry-after").is_some() && reply.field("connection") == Some("close"));
        assert!(refused.ends());
    }
    let metrics = own[0].get("/metrics").expect(200);
    for counter in [
        "connections_refused_total{reason=\"address_limit\"}",
        "limits_hit_total{limit=\"connections_per_address\"}",
    ] {
        assert!(metrics.text().contains(&format!("narwire_{counter} 20\n")), "{counter}");
    }
    connect_from(Ipv4Addr::new(127, 0, 0, 2), &server).get(INFO).expect(200);
    let mut local: Vec<_> = (0..10).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    for connection in &mut local {
        connection.write_all(request_head("GET", INFO, &[("Connection", "close")]).as_bytes()).unwrap();
        let mut answer = String::new();
        std::io::Read::read_to_string(connection, &mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"));
    }
    drop(own.pop());
    eventually("there is room again", || {
        server.connect().try_request("GET", INFO, &[]).is_some_and(|reply| reply.status == 200)
    });
    own[0].get(INFO).expect(200);
    let complaints = server.output().matches("has too many").count();
    assert!((1..=4).contains(&complaints), "a line of each worker, not one for each refusal: {complaints}");
}

#[test]
fn a_server_without_descriptors_says_so_to_some_lets_others_wait_and_recovers() {
    let descriptors = 96;
    let limit = format!("--nofile={descriptors}:{descriptors}");
    let arguments: Vec<_> =
        command().args(fixture().store.flags()).get_args().map(ToOwned::to_owned).collect();
    let server = Narwire::spawn(Command::new("prlimit").arg(limit).arg(BINARY).args(arguments).args([
        "--workers",
        "2",
        "--listen",
        "127.0.0.1:0",
    ]));
    server.wait_for("listening on ");
    let target = large_target(&server);
    server.get(&target).expect(200);
    // Each holds its connection, its root and its file, as long as it lives.
    let mut connections: Vec<_> = (0..2 * descriptors).map(|_| server.connect()).collect();
    for connection in &mut connections {
        connection.send(request_head("GET", &target, &[]));
    }
    server.wait_for("cannot accept connections");
    let (mut served, mut refused) = (0, 0);
    for mut connection in connections {
        // Who has heard 503 may have been sent away since, for it was idle.
        let reply = connection.head().expect("everybody is answered");
        match reply.status {
            200 => served += 1,
            503 => {
                assert!(reply.field("retry-after").is_some());
                refused += 1;
            }
            status => panic!("{status} {:?}", reply.fields),
        }
    }
    assert!(served > 0 && refused > 0, "{served} served, {refused} refused");
    let wanted = fixture().store.dump(fixture().path("large"));
    eventually("it serves as before", || server.get(&target).status == 200);
    assert_same_bytes(&server.get(&target).expect(200).body, &wanted, "a NAR afterwards");
    let complaints = server.output().matches("cannot accept").count();
    assert!((1..=4).contains(&complaints), "now and then, not each time: {complaints}");
}

/// What the kernel has for each connection of the server, not acknowledged by its peer. Bytes.
fn sent_lens(server: &Narwire) -> Vec<usize> {
    let port = format!(":{:04X}", server.address().port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let lens = table.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        // Local address, remote address, state (01 is established), lengths of the queues.
        let (len, _) = words.get(4)?.split_once(':')?;
        let is_own = words[1].ends_with(&port) && words[3] == "01";
        is_own.then(|| usize::from_str_radix(len, 16).unwrap())
    });
    lens.collect()
}

#[test]
fn of_readers_that_stop_only_the_first_have_much_of_the_kernel_s_memory() {
    const { assert!(LARGE_LEN > 32 * 1024 * 1024, "more than any socket buffer holds") };
    let server = server(&["--workers", "2"]);
    let target = large_target(&server);
    let mut stopped: Vec<_> = (0..EXEMPTIONS_MAX + 20).map(|_| server.connect()).collect();
    for connection in &mut stopped {
        connection.send(request_head("GET", &target, &[]));
        connection.head().unwrap().expect(200);
    }
    let mut before = Vec::new();
    eventually("nothing moves any more", || {
        let lens = sent_lens(&server);
        let is_still = lens.len() == stopped.len() && lens == before && lens.iter().all(|len| *len > 0);
        before = lens;
        is_still
    });
    let have_much = before.iter().filter(|len| **len > 512 * 1024).count();
    // None, where the machine's sockets have filled what there is for all of them.
    assert!(have_much <= EXEMPTIONS_MAX, "{have_much} of {before:?}");
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let server = server(&["--workers", "2"]);
    server.get(INFO).expect(200);
    let before = server.descriptors();
    let request = request_head("GET", INFO, &[]);
    for number in 0..5_000 {
        let mut socket = TcpStream::connect(server.address()).unwrap();
        if number % 3 == 0 {
            let _may_be_refused = socket.write(request.as_bytes());
        }
        if number % 2 == 0 {
            rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
        }
    }
    server.get(INFO).expect(200);
    eventually("every descriptor is closed", || server.descriptors() <= before);
}

#[test]
fn requests_that_all_meet_a_fault_do_not_fill_the_disk_with_lines_about_it() {
    let folder = tempfile::tempdir().unwrap();
    let server = Narwire::start(["--workers", "1", text(folder.path())].map(ToOwned::to_owned));
    // From now on each request for it fails, and says so.
    fs::create_dir(folder.path().join("nix-cache-info")).unwrap();
    let mut connection = server.connect();
    for _ in 0..1_000 {
        connection.get(INFO).expect(500);
    }
    eventually("it is said that lines are left out", || server.output().contains("left out"));
    let lines = server.output().matches("cannot read nix-cache-info").count();
    assert!((1..100).contains(&lines), "{lines} lines");
}
