//! The store that most tests read: one of everything that people and Nixpkgs put into stores.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};

use super::nix::{Key, Nix, Store};
use super::{Random, text};

/// A file of tens of megabytes: more than any socket buffer holds. Bytes.
pub const LARGE_LEN: usize = 40_000_000;

/// Directories nested in each other. Nix since 2.34.7 stops at 64.
const DEPTH: usize = 60;
/// Entries of the widest tree, in folders of a thousand.
const FOLDERS: usize = 50;
const FILES_PER_FOLDER: usize = 999;

/// Two derivations: a library with a log, and a program of two outputs that refers to it and to itself.
const PROGRAM: &str = r#"
  let
    shell = name: outputs: script: derivation {
      inherit name outputs;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [ "-c" script ];
      PATH = "/usr/bin:/bin";
    };
    library = shell "library-1.0" [ "out" ] ''
      mkdir -p $out/lib/debug/.build-id/ab
      echo code > $out/lib/libthing.so
      echo symbols > $out/lib/debug/.build-id/ab/cdef0123456789abcdef0123456789abcdef01.debug
      echo the builder speaks
    '';
  in shell "program-1.0" [ "out" "doc" ] ''
    mkdir -p $out/bin $doc
    echo "exec ${library}/lib/libthing.so from $out" > $out/bin/program
    chmod +x $out/bin/program
    ln -s ${library}/lib $out/lib
    echo "about $out" > $doc/README
    echo the second builder speaks
  ''
"#;

/// A text of the store that refers to a file of the store.
const TEXT: &str = r#"builtins.toFile "text" "see ${builtins.toFile "mentioned" "words"}""#;

pub struct Fixture {
    pub store: Store,
    /// The key that tests sign with.
    pub key: Key,
    /// A key that signs nothing.
    pub other_key: Key,
    paths: Vec<String>,
}

/// The store, built once for each version of this file and then only read: by all tests, runs and processes.
pub fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| Fixture::open_or_build(Path::new(env!("CARGO_TARGET_TMPDIR"))))
}

impl Fixture {
    fn open_or_build(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let lock = File::create(folder.join("fixture.lock")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let mut version = DefaultHasher::new();
        include_str!("fixture.rs").hash(&mut version);
        let root = folder.join(format!("fixture-{:016x}", version.finish()));
        let list = root.join("paths");
        if !list.exists() {
            remove_older(folder);
            fs::create_dir(&root).unwrap();
            let paths = fill(&Store::at(Nix::installed(), root.join("store")), &root.join("sources"));
            fs::write(&list, paths.join("\n")).unwrap();
        }
        let paths = fs::read_to_string(&list).unwrap().lines().map(str::to_owned).collect();
        let (key, other_key) =
            (Key::in_folder(&root, "cache.test-1"), Key::in_folder(&root, "stranger.test-1"));
        Self { store: Store::at(Nix::installed(), root.join("store")), key, other_key, paths }
    }

    /// All store paths: added, built and derivations.
    pub fn paths(&self) -> Vec<&str> {
        self.paths.iter().map(String::as_str).collect()
    }

    /// The path of this name.
    #[track_caller]
    pub fn path(&self, name: &str) -> &str {
        let found = self.paths.iter().find(|path| path.get("/nix/store/".len() + 33..) == Some(name));
        found.unwrap_or_else(|| panic!("no {name} among {:?}", self.paths))
    }
}

fn remove_older(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_name().as_bytes().starts_with(b"fixture-") {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

fn fill(store: &Store, sources: &Path) -> Vec<String> {
    fs::create_dir(sources).unwrap();
    for source in write_sources(sources) {
        store.add(&source);
    }
    store.nix_store(&["--add-fixed", "sha256", text(&write(sources, "fixed-flat", b"fixed output, flat"))]);
    store.nix_store(&[
        "--add-fixed",
        "--recursive",
        "sha256",
        text(&write(sources, "fixed-tree", b"fixed, as a NAR")),
    ]);
    store
        .nix
        .run("nix-instantiate", &["--store", store.uri(), "--eval", "--read-write-mode", "--expr", TEXT]);
    let program = store.instantiate(PROGRAM);
    store.build(&program, &[]);
    let plain_log = store.instantiate(&PROGRAM.replace("-1.0", "-2.0"));
    store.build(&plain_log, &["--option", "compress-build-log", "false"]);
    let paths = store.listed();
    fs::remove_dir_all(sources).unwrap();
    paths
}

fn write_sources(folder: &Path) -> Vec<PathBuf> {
    let executable = write(folder, "executable", b"#!/bin/sh\n");
    fs::set_permissions(&executable, fs::Permissions::from_mode(0o755)).unwrap();
    let empty_folder = folder.join("empty-folder");
    fs::create_dir(&empty_folder).unwrap();
    let dangling_link = folder.join("dangling-link");
    symlink("nowhere/at all", &dangling_link).unwrap();
    vec![
        write(folder, "small", b"hello"),
        write(folder, "a+b?c=d_e-1.2", b"every character a store path may have"),
        write(folder, "empty-file", b""),
        write(folder, "large", &Random(1).bytes(LARGE_LEN)),
        executable,
        empty_folder,
        dangling_link,
        write_odd(&folder.join("odd")),
        write_deep(&folder.join("deep")),
        write_many(&folder.join("many")),
        write_sizes(&folder.join("sizes")),
    ]
}

fn write(folder: &Path, name: impl AsRef<OsStr>, contents: &[u8]) -> PathBuf {
    let path = folder.join(name.as_ref());
    fs::write(&path, contents).unwrap();
    path
}

/// Names that programs get wrong, and links to everywhere.
fn write_odd(folder: &Path) -> PathBuf {
    fs::create_dir(folder).unwrap();
    let names: [&[u8]; 14] = [
        "Füße".as_bytes(),
        "雪".as_bytes(),
        "🦀".as_bytes(),
        b"latin-\xe9",
        b"\xff\xfe",
        b" ",
        b"two\nlines",
        b"tab\t",
        b"CASE",
        b"case",
        b"foo",
        b"foo-x",
        b"%2e%2e",
        b"\"quoted\\\"",
    ];
    for name in names {
        write(folder, OsStr::from_bytes(name), name);
    }
    write(folder, "n".repeat(255), b"the longest name");
    fs::create_dir(folder.join("foo.d")).unwrap();
    write(&folder.join("foo.d"), "inside", b"in a folder that sorts between files");
    let targets: [&[u8]; 5] = [b"/etc/passwd", b"..", b"foo", b"invalid \xff target", &[b'x'; 4000]];
    for (index, target) in targets.into_iter().enumerate() {
        symlink(OsStr::from_bytes(target), folder.join(format!("link-{index}"))).unwrap();
    }
    folder.to_owned()
}

fn write_deep(folder: &Path) -> PathBuf {
    let innermost = (0..DEPTH).fold(folder.to_owned(), |folder, level| folder.join(format!("level-{level}")));
    fs::create_dir_all(&innermost).unwrap();
    write(&innermost, "treasure", b"at the bottom");
    folder.to_owned()
}

fn write_many(folder: &Path) -> PathBuf {
    for outer in 0..FOLDERS {
        let inner = folder.join(format!("folder-{outer}"));
        fs::create_dir_all(&inner).unwrap();
        for file in 0..FILES_PER_FOLDER {
            write(&inner, format!("file-{file}"), &b"0123456789abcdef"[..file % 17]);
        }
    }
    folder.to_owned()
}

/// Files around every size at which a server may change its ways.
fn write_sizes(folder: &Path) -> PathBuf {
    fs::create_dir(folder).unwrap();
    let mut random = Random(2);
    for power in [3, 9, 12, 14, 15, 16, 17, 18, 20, 21] {
        for len in [(1 << power) - 1, 1 << power, (1 << power) + 1] {
            write(folder, format!("len-{len}"), &random.bytes(len));
        }
    }
    folder.to_owned()
}
