//! What a running server takes over by SIGHUP: settings, keys and tokens; and what it leaves as it was.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::nix::{Key, hash_part};
use crate::support::server::{BINARY, command};
use crate::support::upload::{Package, Packing, UploadDir};
use crate::support::{Narwire, Nix, Reply, Store, eventually, fixture, text};

const DONE: &str = "read settings, keys and tokens again";

/// A folder with a configuration file and two keys.
struct Site {
    folder: TempDir,
    keys: [Key; 2],
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = ["old.test-1", "new.test-1"].map(|name| Key::in_folder(folder.path(), name));
        Self { folder, keys }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("narwire.toml")
    }

    fn configure(&self, settings: &str) {
        // Other programs put a new file in the place of the old one.
        let new = self.folder.path().join("narwire.toml.new");
        fs::write(&new, settings).unwrap();
        fs::rename(new, self.file()).unwrap();
    }

    /// The live store, as the configuration file says, and with `flags`.
    fn serve(&self, flags: &[&str]) -> Narwire {
        let mut all = fixture().store.flags();
        all.extend(
            ["--config", text(&self.file())].into_iter().chain(flags.iter().copied()).map(str::to_owned),
        );
        Narwire::start(all)
    }
}

/// Sends SIGHUP and waits until the server has said `words` once more than before.
fn reload(server: &Narwire, words: &str) {
    let count = || server.output().matches(words).count();
    let before = count();
    server.signal(Signal::HUP);
    eventually(words, || count() > before);
}

fn signers(reply: &Reply) -> Vec<String> {
    let lines = reply.text().lines().filter_map(|line| line.strip_prefix("Sig: "));
    lines.map(|signature| signature.split_once(':').unwrap().0.to_owned()).collect()
}

#[test]
fn keys_are_rotated_without_a_restart() {
    let site = Site::new();
    site.configure("secret-key-file = ['old.test-1.secret']");
    let server = site.serve(&["--workers", "2"]);
    let path = fixture().path("program-1.0");
    let target = format!("/{}.narinfo", hash_part(path));
    // Every worker remembers what it has said.
    let ask = || (0..16).map(|_| server.get(&target).expect(200)).collect::<Vec<_>>();
    let etags = |replies: &[Reply]| {
        replies.iter().map(|reply| reply.field("etag").unwrap().to_owned()).collect::<Vec<_>>()
    };
    let before = ask();
    assert!(before.iter().all(|reply| signers(reply) == ["old.test-1"]), "{}", before[0].text());

    site.configure("secret-key-file = ['old.test-1.secret', 'new.test-1.secret']\npriority = 7");
    reload(&server, "keys=2");
    eventually("both keys sign", || ask().iter().all(|reply| signers(reply) == ["old.test-1", "new.test-1"]));
    let both = ask();
    assert!(etags(&both).iter().all(|etag| !etags(&before).contains(etag)));
    let index = server.get("/").expect(200);
    assert!(site.keys.iter().all(|key| index.text().contains(&key.public)), "{}", index.text());
    assert!(server.get("/nix-cache-info").expect(200).text().contains("Priority: 7\n"));

    site.configure("secret-key-file = ['new.test-1.secret']");
    reload(&server, "keys=1");
    eventually("the old key does not sign", || ask().iter().all(|reply| signers(reply) == ["new.test-1"]));
    // A client that trusts the new key alone.
    let destination = Store::new(Nix::newer());
    destination.copy_from_failing(&server.url(), &site.keys[0], &[path]);
    destination.copy_from(&server.url(), &site.keys[1], &[path]);
    assert_eq!(destination.nar_hash(path), fixture().store.nar_hash(path));
    assert!(!server.output().contains("wait for a restart"), "{}", server.output());
}

#[test]
fn what_is_wrong_leaves_all_as_it_was() {
    let site = Site::new();
    let good = "secret-key-file = ['old.test-1.secret']\npriority = 7";
    site.configure(good);
    let server = site.serve(&[]);
    let target = format!("/{}.narinfo", hash_part(fixture().path("small")));
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Key::in_folder(elsewhere.path(), "stranger.test-1");
    let outside = format!("priority = 8\nsecret-key-file = ['{}']", text(&stranger.secret_file));
    for (settings, words) in [
        ("priority = 8\nsecret-key-file = ['none']", "cannot read secret key file"),
        ("priority = 8\nprot = 1", "narwire.toml:2: "),
        ("priority = 8\nprivate = true", "--upload-token-file"),
        // A folder that the sandbox did not know of when it closed.
        (&outside, "only what lies in a folder"),
    ] {
        site.configure(settings);
        reload(&server, words);
        eventually("it says what that means", || {
            server.output().lines().any(|line| line.contains(words) && line.contains("stays in force"))
        });
        assert!(server.get("/nix-cache-info").expect(200).text().contains("Priority: 7\n"), "{settings}");
        assert_eq!(signers(&server.get(&target).expect(200)), ["old.test-1"], "{settings}");
    }
    site.configure(good);
    reload(&server, DONE);
}

#[test]
fn settings_of_which_some_wait_for_a_restart_all_wait_and_keys_do_not() {
    let site = Site::new();
    site.configure("workers = 1\nsecret-key-file = ['old.test-1.secret']\npriority = 7");
    let server = site.serve(&[]);
    let target = format!("/{}.narinfo", hash_part(fixture().path("small")));
    assert_eq!(signers(&server.get(&target).expect(200)), ["old.test-1"]);
    site.configure(
        "workers = 2\npriority = 8\nscrub-rate = '1M'\ncache-dir = 'cache'\nsecret-key-file = ['old.test-1.secret']",
    );
    // The same file, another key.
    fs::copy(&site.keys[1].secret_file, &site.keys[0].secret_file).unwrap();
    reload(&server, "read at the start only: workers; cache-dir");
    eventually("the key is the one in the file", || {
        signers(&server.get(&target).expect(200)) == ["new.test-1"]
    });
    assert!(server.get("/nix-cache-info").expect(200).text().contains("Priority: 7\n"));
    server.wait_for("read keys and tokens again; settings wait for a restart");
    let pending = || server.count("narwire_config_restart_pending");
    assert_eq!(pending(), Some(1));
    assert_eq!(server.count("narwire_config_last_reload_successful"), Some(1));
    assert!(!server.output().contains(DONE), "{}", server.output());
    site.configure("workers = 1\nsecret-key-file = ['old.test-1.secret']\npriority = 8");
    reload(&server, DONE);
    assert_eq!(pending(), Some(0));
    eventually("the settings are in force", || {
        server.get("/nix-cache-info").expect(200).text().contains("Priority: 8\n")
    });
}

#[test]
fn what_a_command_has_written_into_a_pipe_is_not_read_again_as_nothing() {
    let site = Site::new();
    site.configure("priority = 7");
    let mut shell = Command::new("bash");
    let line = r#"exec "$0" --config <(cat "$1") --listen 127.0.0.1:0 "${@:2}""#;
    shell.args(["-c", line, BINARY, text(&site.file())]).args(fixture().store.flags());
    let server = Narwire::spawn(&mut shell);
    server.wait_for("listening on ");
    reload(&server, "is no file that could be read again; what was in force before stays in force");
    assert!(server.get("/nix-cache-info").expect(200).text().contains("Priority: 7\n"));
}

#[test]
fn who_reloads_all_the_time_is_not_taken_for_stuck() {
    let site = Site::new();
    site.configure("");
    let path = site.folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let mut narwire = command();
    narwire.args(fixture().store.flags()).args(["--config", text(&site.file()), "--listen", "127.0.0.1:0"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"export WATCHDOG_PID=$$; exec "$@""#, "sh", BINARY]).args(narwire.get_args());
    let server = Narwire::spawn(shell.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "4000000"));
    server.wait_for("listening on ");
    let mut said = String::new();
    eventually("the service manager hears that all is well, and of the reloads", || {
        server.signal(Signal::HUP);
        let mut message = [0; 200];
        while let Ok(len) = manager.recv(&mut message) {
            said.push_str(str::from_utf8(&message[..len]).unwrap());
            said.push('\n');
        }
        said.contains("WATCHDOG=1")
    });
    assert!(said.contains("RELOADING=1\nMONOTONIC_USEC=") && said.matches("READY=1").count() > 2, "{said}");
}

#[test]
fn who_may_read_and_what_has_to_be_signed_changes() {
    let (site, cache) = (Site::new(), UploadDir::new());
    site.configure("allow-anonymous-upload = true");
    let server = Narwire::start([text(cache.path()), "--config", text(&site.file())]);
    let package = Package::new('1', b"contents", Packing::None);
    let mut connection = server.connect();
    package.put_nar(&mut connection);

    site.configure(&format!(
        "allow-anonymous-upload = true\nrequire-signature = ['{}']",
        site.keys[0].public
    ));
    reload(&server, DONE);
    let refused = connection.put(&package.narinfo_target(), package.narinfo());
    assert_eq!(refused.status, 403, "{}", refused.text());
    site.configure("allow-anonymous-upload = true");
    reload(&server, DONE);
    connection.put(&package.narinfo_target(), package.narinfo()).expect(201);
    server.get(&package.narinfo_target()).expect(200);

    fs::write(site.folder.path().join("tokens"), "").unwrap();
    site.configure("allow-anonymous-upload = true\nprivate = true\nupload-token-file = 'tokens'");
    reload(&server, DONE);
    eventually("nobody may read", || server.get(&package.narinfo_target()).status == 401);
}
