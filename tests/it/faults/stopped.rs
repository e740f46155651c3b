//! A server that stands still for seconds in the middle of everything: a machine that swaps, is frozen, or was moved.

use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::files::half_read;
use crate::support::nar_cache::{CacheDir, Nar};
use crate::support::server::BINARY;
use crate::support::upload::{Package, Packing, UploadDir};
use crate::support::{Narwire, Nix, Random, Store, assert_same_bytes, eventually, fixture, run};

#[test]
fn whatever_is_under_way_while_the_server_stands_still_comes_to_its_end() {
    let store = Store::new(Nix::installed());
    let nars: Vec<_> =
        (1..4).map(|index| Nar::of(&store, &store.add_folder("served", 100 * index, 100_000))).collect();
    let (cache, uploads) = (CacheDir::new(), UploadDir::new());
    let flags = [store.flags(), fixture().key.flags(), cache.flags("all", "both"), uploads.flags()].concat();
    let server = Narwire::start([flags, vec!["--with-store".to_owned()]].concat());
    let packages =
        ['1', '2'].map(|digit| Package::new(digit, &Random(digit.into()).bytes(8_000_000), Packing::Zstd));
    let mut readers: Vec<_> =
        nars.iter().map(|nar| half_read(&server, &nar.targets()[0], &[("Connection", "close")])).collect();
    let pushed = fixture().path("program-1.0");
    thread::scope(|scope| {
        let mut halves: Vec<_> = packages
            .iter()
            .map(|package| {
                let mut connection = server.connect();
                let len = package.file.len().to_string();
                connection.send(crate::support::client::request_head(
                    "PUT",
                    &package.nar_target(),
                    &[("Content-Length", &len)],
                ));
                connection.send(&package.file[..package.file.len() / 2]);
                connection
            })
            .collect();
        let push = scope.spawn(|| {
            let mut command = Command::new(BINARY);
            command.arg("push").args(fixture().store.flags()).args(["--to", &server.url(), pushed]);
            run(&mut command)
        });
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(200));
            server.signal(Signal::STOP);
            thread::sleep(Duration::from_secs(1));
            server.signal(Signal::CONT);
        }
        for (package, connection) in packages.iter().zip(&mut halves) {
            connection.send(&package.file[package.file.len() / 2..]);
            connection.reply_to("PUT").expect(201);
        }
        for (nar, reader) in nars.iter().zip(&mut readers) {
            reader.expect_rest(&nar.bytes);
        }
        push.join().unwrap();
    });
    for package in &packages {
        assert_same_bytes(&server.get(&package.nar_target()).expect(200).body, &package.file, "an upload");
    }
    server.narinfo(pushed);
    eventually("the NAR cache has all", || cache.nars().len() == 2 * nars.len());
    server.assert_serves(&nars);
    drop(server);
    cache.assert_sound();
    uploads.assert_sound();
}
