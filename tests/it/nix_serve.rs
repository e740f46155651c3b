//! The same binary under the name `nix-serve`, as NixOS's module starts it.

use std::net::TcpListener;
use std::os::unix::fs::symlink;

use crate::support::nix::hash_part;
use crate::support::server::{BINARY, command_of};
use crate::support::{Connection, Narwire, Nix, Store, assert_same_bytes, fixture};

/// `nix-serve --listen 0.0.0.0:PORT …` with the key in the environment; gives the address to connect to.
fn start(more: &[&str]) -> (Narwire, String, tempfile::TempDir) {
    let (fixture, folder) = (fixture(), tempfile::tempdir().unwrap());
    let program = folder.path().join("nix-serve");
    symlink(BINARY, &program).unwrap();
    let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let mut command = command_of(&program);
    command.args(["--listen", &format!("0.0.0.0:{port}")]).args(more);
    command.env("NIX_SECRET_KEY_FILE", &fixture.key.secret_file);
    command.env("NIX_SERVE_STORE_DIR", "/nix/store");
    // nix-serve itself has no flags for a store elsewhere, so the fixture is named the way Nix names it.
    command.args(fixture.store.flags());
    let server = Narwire::spawn(&mut command);
    server.wait_for("listening on ");
    (server, format!("127.0.0.1:{port}"), folder)
}

#[test]
fn the_nixos_module_gets_a_signing_cache() {
    let (_server, address, _folder) = start(&[]);
    let (fixture, destination) = (fixture(), Store::new(Nix::installed()));
    destination.copy_from(&format!("http://{address}"), &fixture.key, &[fixture.path("program-1.0")]);
    destination.verify(&fixture.key);
}

#[test]
fn the_url_that_nixos_tests_ask_for_works() {
    let (_server, address, _folder) = start(&[]);
    let path = fixture().path("program-1.0");
    let nar =
        Connection::open(address.parse().unwrap()).get(&format!("/nar/{}.nar", hash_part(path))).expect(200);
    assert_same_bytes(&nar.body, &fixture().store.dump(path), path);
}

#[test]
fn its_own_flags_are_taken() {
    let (_server, address, _folder) = start(&["--workers", "1", "--priority", "17"]);
    let info = Connection::open(address.parse().unwrap()).get("/nix-cache-info").expect(200);
    assert!(info.text().contains("Priority: 17\n"), "{}", info.text());
}
