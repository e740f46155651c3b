//! What Nix clients upload, and what is then in the directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use super::nar_cache::{NarInfo, hash_parts, names, sha256};
use super::nix::{Key, hash_part};
use super::server::BINARY;
use super::upload::UploadDir;
use super::{Narwire, Nix, Store, assert_same_bytes, run, text};

impl UploadDir {
    /// A server that only who has a token may upload to, with more flags.
    pub fn serve_tokens(&self, file: &Path, more: &[&str]) -> Narwire {
        let flags = [text(self.path()), "--upload-min-free", "0", "--upload-token-file", text(file)];
        Narwire::start(flags.iter().chain(more))
    }

    /// Every file that may be served, with its contents.
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        contents_beneath(self.path())
    }

    pub fn narinfo(&self, path: &str) -> NarInfo {
        NarInfo::read(self.path(), hash_part(path))
    }

    /// The NAR of a path, after all that its narinfo says was found true.
    #[track_caller]
    pub fn nar(&self, path: &str) -> Vec<u8> {
        self.narinfo(path).nar(self.path())
    }

    /// Whatever happened: each narinfo tells the truth about its NAR, the references of each are there, and each NAR is
    /// the one of its name.
    #[track_caller]
    pub fn assert_sound(&self) {
        super::nar_cache::assert_sound(self.path());
        let paths = hash_parts(self.path());
        for path in &paths {
            let narinfo = NarInfo::read(self.path(), path);
            for reference in narinfo.field("References").split(' ').filter(|name| !name.is_empty()) {
                assert!(paths.iter().any(|path| path == &reference[..32]), "{reference} of {narinfo:?}");
            }
        }
        for name in names(&self.path().join("nar")) {
            let found = sha256(&fs::read(self.path().join("nar").join(&name)).unwrap());
            assert_eq!(found.trim_start_matches("sha256:"), &name[..52], "the file of this name");
        }
    }
}

/// All files beneath a folder by their relative names, without those that begin with a dot.
pub fn contents_beneath(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = super::upload::files_beneath(folder).into_iter();
    let named = files.filter(|name| !name.starts_with('.'));
    named.map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

/// Compares two directories of a cache, file by file.
#[track_caller]
pub fn assert_same_files(found: &BTreeMap<String, Vec<u8>>, wanted: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (name, contents) in found {
        assert_same_bytes(contents, &wanted[name], name);
    }
}

/// `nix copy` from a store to a cache, signed by the client; `options` are those of Nix's store URLs.
pub fn copy_command(
    nix: &Nix,
    store: &Store,
    cache: &str,
    options: &str,
    key: &Key,
    paths: &[&str],
) -> Command {
    let cache = format!("{cache}?{options}&secret-key={}", text(&key.secret_file));
    let mut command = nix.command("nix");
    command.args(["copy", "--from", store.uri(), "--to", &cache]).args(paths);
    command
}

/// The same, run to success.
pub fn copy_up(nix: &Nix, store: &Store, cache: &str, options: &str, key: &Key, paths: &[&str]) {
    run(&mut copy_command(nix, store, cache, options, key, paths));
}

/// The target of the NAR that a narinfo names, without the slash.
pub fn nar_target(narinfo: &[u8]) -> String {
    let lines = str::from_utf8(narinfo).unwrap().lines();
    lines.into_iter().find_map(|line| line.strip_prefix("URL: ")).unwrap().to_owned()
}

/// Kills a client of [`Nix::command`], and with it what it runs: they are a process group of their own.
pub fn kill(mut client: Child) {
    kill_process_group(Pid::from_child(&client), Signal::KILL).unwrap();
    client.wait().unwrap();
}

/// Makes a token and gives it; the file is made with the first.
pub fn create_token(file: &Path, name: &str, scopes: &str) -> String {
    let mut command = Command::new(BINARY);
    command.stdin(Stdio::null()).args([
        "token",
        "create",
        "--file",
        text(file),
        "--name",
        name,
        "--scope",
        scopes,
    ]);
    run(&mut command).lines().last().unwrap().to_owned()
}
