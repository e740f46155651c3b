//! HTTP/1.1 itself: connections, and the small fixed routes. What is refused, and why, is in `conformance/cases.txt`.

use std::thread;
use std::time::Duration;

use crate::support::client::request_head;
use crate::support::nix::hash_part;
use crate::support::{Narwire, assert_same_bytes, eventually, fixture};

/// A server of the fixture, and the target of the narinfo of its smallest path.
fn serve() -> (Narwire, String) {
    let fixture = fixture();
    (fixture.store.serve(), format!("/{}.narinfo", hash_part(fixture.path("small"))))
}

#[test]
fn the_cache_introduces_itself() {
    let (server, _) = serve();
    let reply = server.get("/nix-cache-info").expect(200);
    assert_eq!(reply.text(), "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n");
    assert_eq!(reply.field("content-type"), Some("text/x-nix-cache-info"));
    let other =
        Narwire::start([fixture().store.flags(), vec!["--priority".to_owned(), "12".to_owned()]].concat());
    assert!(other.get("/nix-cache-info").expect(200).text().contains("Priority: 12\n"));
}

#[test]
fn version_health_and_root_are_short_texts() {
    let (server, _) = serve();
    assert!(server.get("/version").expect(200).text().contains(env!("CARGO_PKG_VERSION")));
    assert_eq!(server.get("/health").expect(200).text(), "OK\nNAR cache: off\n");
    let root = server.get("/").expect(200);
    assert_eq!(root.field("content-type"), Some("text/plain; charset=utf-8"));
    assert!(root.text().contains("narwire"), "{}", root.text());
}

#[test]
fn whatever_does_not_exist_is_absent_and_not_cached() {
    let (server, _) = serve();
    let mut connection = server.connect();
    let short = format!("/{}.narinfo", "0".repeat(31));
    let foreign_letter = format!("/{}e.narinfo", "0".repeat(31));
    for target in [
        "/nothing",
        "/a/b/c",
        "/.narinfo",
        &short,
        &foreign_letter,
        "/nar/x",
        "/log/",
        "/%zz",
        "/favicon.ico",
    ] {
        connection.get(target).expect_absent();
    }
}

#[test]
fn one_connection_carries_many_requests() {
    let (server, narinfo) = serve();
    let mut connection = server.connect();
    for _ in 0..200 {
        connection.get(&narinfo).expect(200);
        connection.get("/absent").expect_absent();
        connection.request("HEAD", &narinfo, &[]).expect(200);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (server, narinfo) = serve();
    let fixture = fixture();
    let sizes = server.nar_target(hash_part(fixture.path("sizes")));
    let wanted = fixture.store.dump(fixture.path("sizes"));
    let mut connection = server.connect();
    let round =
        [("GET", narinfo.as_str()), ("HEAD", "/nix-cache-info"), ("GET", "/absent"), ("GET", sizes.as_str())];
    let requests: String = round.iter().map(|(method, target)| request_head(method, target, &[])).collect();
    connection.send(requests.repeat(5));
    for _ in 0..5 {
        assert!(connection.reply_to("GET").expect(200).text().contains(&narinfo[1..33]));
        assert_eq!(
            connection.reply_to("HEAD").expect(200).field("content-type"),
            Some("text/x-nix-cache-info")
        );
        connection.reply_to("GET").expect_absent();
        assert_same_bytes(&connection.reply_to("GET").expect(200).body, &wanted, "the NAR between");
    }
}

#[test]
fn a_thousand_pipelined_requests_are_all_answered() {
    let (server, narinfo) = serve();
    let mut connection = server.connect();
    connection.send(request_head("GET", &narinfo, &[]).repeat(1000));
    for _ in 0..1000 {
        connection.reply_to("GET").expect(200);
    }
}

#[test]
fn a_head_answer_has_no_body() {
    let (server, narinfo) = serve();
    let mut connection = server.connect();
    connection.send(
        request_head("HEAD", &narinfo, &[]) + &request_head("HEAD", "/absent", &[("Connection", "close")]),
    );
    let found = connection.reply_to("HEAD").expect(200);
    assert!(found.field("content-length").unwrap().parse::<usize>().unwrap() > 100);
    assert_eq!(connection.reply_to("HEAD").status, 404);
    assert!(connection.ends(), "nothing after the second head");
}

#[test]
fn connection_close_is_obeyed_and_said() {
    let (server, narinfo) = serve();
    let mut connection = server.connect();
    let reply = connection.request("GET", &narinfo, &[("Connection", "close")]).expect(200);
    assert_eq!(reply.field("connection").map(str::to_ascii_lowercase).as_deref(), Some("close"));
    assert!(connection.ends());
}

#[test]
fn http_1_0_gets_an_answer_and_the_end() {
    let (server, narinfo) = serve();
    let mut connection = server.connect();
    connection.send(format!("GET {narinfo} HTTP/1.0\r\n\r\n"));
    let reply = connection.reply_to("GET").expect(200);
    assert_eq!(reply.version, "HTTP/1.1");
    assert!(connection.ends());
}

#[test]
fn a_client_that_finished_sending_still_gets_its_answers() {
    let fixture = fixture();
    let server = fixture.store.serve();
    let target = server.nar_target(hash_part(fixture.path("large")));
    let mut connection = server.connect();
    connection.send(request_head("GET", &target, &[]) + &request_head("GET", "/nix-cache-info", &[]));
    connection.finish_sending();
    assert_same_bytes(
        &connection.reply_to("GET").expect(200).body,
        &fixture.store.dump(fixture.path("large")),
        "NAR",
    );
    connection.reply_to("GET").expect(200);
    assert!(connection.ends());
}

#[test]
fn methods_that_are_not_offered_are_405_and_leave_the_connection_usable() {
    let (server, narinfo) = serve();
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let mut connection = server.connect();
        let reply = connection.request(method, &narinfo, &[("Content-Length", "0")]).expect(405);
        assert_eq!(reply.field("allow"), Some("GET, HEAD"), "{method}");
    }
    let mut connection = server.connect();
    connection.request("DELETE", &narinfo, &[]).expect(405);
    assert!(server.get(&narinfo).status == 200);
}

#[test]
fn a_head_that_comes_byte_by_byte_is_understood() {
    let (server, narinfo) = serve();
    let mut connection = server.connect();
    for _ in 0..3 {
        for byte in request_head("GET", &narinfo, &[("Accept", "*/*")]).as_bytes() {
            connection.send([*byte]);
            thread::sleep(Duration::from_micros(200)); // so that the kernel delivers it alone
        }
        connection.reply_to("GET").expect(200);
    }
}

#[test]
fn a_head_split_anywhere_is_understood() {
    let (server, narinfo) = serve();
    let head =
        request_head("GET", &narinfo, &[("Accept", "*/*")]) + &request_head("GET", "/nix-cache-info", &[]);
    let mut connection = server.connect();
    for split in 1..head.len() {
        connection.send(&head[..split]);
        thread::sleep(Duration::from_micros(200));
        connection.send(&head[split..]);
        connection.reply_to("GET").expect(200);
        connection.reply_to("GET").expect(200);
    }
}

#[test]
fn an_absolute_target_and_encoded_letters_mean_the_same() {
    let (server, narinfo) = serve();
    let mut connection = server.connect();
    connection.get(&format!("http://cache.test{narinfo}")).expect(200);
    connection.get(&format!("/%{:02x}{}", narinfo.as_bytes()[1], &narinfo[2..])).expect(200);
    connection.get(&format!("{narinfo}?query=ignored")).expect(200);
}

#[test]
fn answers_carry_a_date() {
    let (server, narinfo) = serve();
    let reply = server.get(&narinfo).expect(200);
    assert!(
        reply.field("date").is_some_and(|date| date.len() == 29 && date.ends_with(" GMT")),
        "{:?}",
        reply.fields
    );
}

#[test]
fn clients_that_vanish_in_the_middle_leave_the_server_well() {
    let fixture = fixture();
    let server = fixture.store.serve();
    let target = server.nar_target(hash_part(fixture.path("large")));
    server.get(&target).expect(200);
    let descriptors = server.descriptors();
    for round in 0..100 {
        let mut connection = server.connect();
        let head = request_head("GET", &target, &[]);
        match round % 3 {
            0 => connection.send(&head[..round % head.len()]),
            1 => connection.send(head),
            _ => {
                connection.send(head);
                connection.head().unwrap();
            }
        }
    }
    eventually("everything that they opened is closed", || server.descriptors() <= descriptors);
    assert_same_bytes(
        &server.get(&target).expect(200).body,
        &fixture.store.dump(fixture.path("large")),
        "afterwards",
    );
}

#[test]
fn a_hundred_idle_connections_do_not_hinder_the_next() {
    let (server, narinfo) = serve();
    let mut idle: Vec<_> = (0..100).map(|_| server.connect()).collect();
    server.get(&narinfo).expect(200);
    for connection in &mut idle {
        connection.get(&narinfo).expect(200);
    }
}
