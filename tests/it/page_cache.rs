//! Memory is for what is asked for: whoever reads everything, to look for damage or to encode it, leaves the page cache as it was.
//!
//! These tests run where memory is short, in a control group of their own, and on a disk: files that are in memory anyway
//! have no other place to be.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Advice, fadvise, fsync};
use tempfile::TempDir;

use crate::support::nar_cache::CacheDir;
use crate::support::nix::hash_part;
use crate::support::server::BINARY;
use crate::support::{Narwire, Nix, Store, assert_same_bytes, eventually, run, text};

/// Less than the tree that is read, and more than a server and the hot file need. Bytes.
const MEMORY: u64 = 80 << 20;
const TREE_FILES: usize = 120;
const FILE_LEN: usize = 1 << 20;
const HOT_LEN: usize = 24 << 20;

/// A control group with little memory, of version 1 or 2; the processes in it have gone before it goes.
struct ControlGroup(PathBuf);

impl ControlGroup {
    /// `None`, and a word why, where nobody lets this process make one.
    fn with_memory(len_bytes: u64, name: &str) -> Option<Self> {
        let first = Path::new("/sys/fs/cgroup/memory");
        let (root, limit) = if first.exists() {
            (first, "memory.limit_in_bytes")
        } else {
            (Path::new("/sys/fs/cgroup"), "memory.max")
        };
        let folder = root.join(format!("narwire-test-{}-{name}", std::process::id()));
        let limited = fs::create_dir(&folder)
            .map(|()| Self(folder.clone()))
            .and_then(|group| fs::write(folder.join(limit), len_bytes.to_string()).map(|()| group));
        limited.inspect_err(|error| eprintln!("memory is not limited: {}: {error}", folder.display())).ok()
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        eventually("the control group is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

/// A command that is carried out in the group, if there is one.
fn command_in(group: Option<&ControlGroup>, program: &str) -> Command {
    let mut command = Command::new("sh");
    let enter = r#"[ -z "$0" ] || echo $$ >"$0/cgroup.procs"; exec "$@""#;
    command.args(["-c", enter, group.map_or("", |group| text(&group.0)), program]);
    command
}

/// How much of a file is in memory. Bytes.
fn resident_len(file: &Path) -> u64 {
    let said = run(Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(file));
    said.trim().parse().unwrap()
}

fn files_beneath(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => files.extend(files_beneath(&entry.path())),
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files
}

/// Has the kernel forget the contents of a file.
fn forget(file: &Path) {
    let file = File::open(file).unwrap();
    fsync(&file).unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}

/// A store on a disk with one tree that is in nobody's memory, and a file beside it that is.
struct Scene {
    folder: TempDir,
    store: Store,
    tree: String,
    hot: PathBuf,
}

impl Scene {
    fn set(group: Option<&ControlGroup>) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let store = Store::at(Nix::installed(), folder.path().join("store"));
        let tree = store.add_folder("tree", TREE_FILES, FILE_LEN);
        let hot = folder.path().join("hot");
        fs::write(&hot, vec![7; HOT_LEN]).unwrap();
        forget(&hot);
        for file in files_beneath(&store.real(&tree)) {
            forget(&file);
        }
        // Read in the group, so that it is the group's own memory that is short.
        run(command_in(group, "cat").arg(&hot).stdout(std::process::Stdio::null()));
        assert_eq!(resident_len(&hot), HOT_LEN as u64);
        Self { folder, store, tree, hot }
    }

    /// Nothing of the tree is in memory, and all of what was.
    #[track_caller]
    fn assert_spared(&self) {
        assert_eq!(resident_len(&self.hot), HOT_LEN as u64, "the hot file");
        let files = files_beneath(&self.store.real(&self.tree));
        let resident: u64 = files.iter().map(|file| resident_len(file)).sum();
        assert_eq!(resident, 0, "bytes of {} files", files.len());
    }
}

#[test]
fn a_scrub_leaves_the_page_cache_to_others() {
    let group = ControlGroup::with_memory(MEMORY, "scrub");
    let scene = Scene::set(group.as_ref());
    let said = run(command_in(group.as_ref(), BINARY).args(["scrub", "--json"]).args(scene.store.flags()));
    assert!(said.contains("\"storePaths\":1"), "{said}");
    scene.assert_spared();
}

#[test]
fn a_long_file_that_has_to_come_from_the_disk_is_a_cold_read() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = Store::at(Nix::installed(), folder.path().join("store"));
    let path = store.add_bytes("long", &vec![7; 4 << 20]);
    let (server, wanted) = (store.serve(), store.dump(&path));
    let cold_reads = |what| {
        assert_same_bytes(&server.nar(hash_part(&path)).expect(200).body, &wanted, what);
        server.count("narwire_cold_reads_total").unwrap()
    };
    if cold_reads("in memory") > 0 {
        return eprintln!("cold reads are not tried: this kernel does not tell what is in memory");
    }
    forget(&store.real(&path));
    if resident_len(&store.real(&path)) > 0 {
        return eprintln!("cold reads are not tried: this file system keeps what is not needed in memory");
    }
    let from_disk = cold_reads("from the disk");
    assert!(from_disk > 0);
    assert_eq!(cold_reads("in memory again"), from_disk);
}

#[test]
fn filling_and_scrubbing_in_the_background_leave_the_page_cache_to_others() {
    let group = ControlGroup::with_memory(MEMORY, "fill");
    let scene = Scene::set(group.as_ref());
    let cache = CacheDir::within(tempfile::tempdir_in(scene.folder.path()).unwrap());
    let mut command = command_in(group.as_ref(), BINARY);
    command.args(scene.store.flags()).args(cache.flags_with_scrub("all", "both", "1G"));
    let server = Narwire::spawn(command.args(["--listen", "127.0.0.1:0"]));
    server.wait_for("listening on ");
    eventually("the tree is encoded", || server.narinfo(&scene.tree).is_compressed());
    eventually("both are written", || cache.nars().len() == 2);
    scene.assert_spared();
    for name in cache.nars() {
        assert_eq!(resident_len(&cache.path().join("nar").join(&name)), 0, "{name}");
    }
    drop(server);
}
