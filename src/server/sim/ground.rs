//! The real store of a simulation: a Nix database and trees in a temporary folder, made once for each thread, and what others do
//! to them while a worker serves.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rusqlite::Connection;

use crate::codec::hash::{Sha256, Sha256Digest};
use crate::codec::nar::decode::Decoder;
use crate::codec::nar::listing::Listing;
use crate::codec::nar::naive::{Tree, nar};
use crate::codec::store_path::StorePath;
use crate::ring::sim::Random;
use crate::store::demo::DemoStore;

/// A store, and what it has been since a seed began.
pub struct Ground {
    pub demo: DemoStore,
    writer: Connection,
    pub paths: Vec<PathFacts>,
    /// Each commit adds one: the last one is how it is.
    history: Vec<State>,
    /// Trees that are away, and second copies.
    aside: PathBuf,
    signature: u32,
    /// The path that all want in this seed, and others change: what is rare between two paths happens with one.
    favourite: usize,
}

/// What the database says: for each path the number of its signature, or that it is not valid.
pub type State = Vec<Option<u32>>;

/// A path, and what follows from its tree.
pub struct PathFacts {
    pub path: StorePath,
    pub nar: Vec<u8>,
    pub nar_hash: Sha256Digest,
    pub listing: String,
    tree: Tree,
    /// Others have changed its tree behind the back of the database.
    pub is_damaged: bool,
    /// Others have put another tree in its place, which is the same.
    pub is_moved: bool,
}

impl PathFacts {
    /// Its narinfo with the signature of this number.
    pub fn narinfo(&self, signature: u32) -> String {
        let Self { path, nar, nar_hash, .. } = self;
        let (base_name, hash_part, hash, len) =
            (path.base_name(), path.hash_part(), nar_hash.to_nix32(), nar.len());
        let sig =
            if signature == 0 { String::new() } else { format!("Sig: {}\n", signature_text(signature)) };
        format!(
            "StorePath: /nix/store/{base_name}\nURL: nar/{hash}.nar?hash={}\nCompression: none\n\
             FileHash: sha256:{hash}\nFileSize: {len}\nNarHash: sha256:{hash}\nNarSize: {len}\nReferences: \n{sig}\
             CA: fixed:r:sha256:{hash}\n",
            hash_part.as_str()
        )
    }
}

fn signature_text(number: u32) -> String {
    let mut signature = [0; 64];
    signature[..4].copy_from_slice(&number.to_le_bytes());
    format!("sim:{}", BASE64_STANDARD.encode(signature))
}

/// Bytes that look alike nowhere.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| random.draw().to_ne_bytes()).collect();
    bytes.truncate(len);
    bytes
}

pub fn file(contents: Vec<u8>) -> Tree {
    Tree::Regular { executable: contents.len().is_multiple_of(3), contents }
}

pub fn directory(entries: impl IntoIterator<Item = (String, Tree)>) -> Tree {
    let entries: BTreeMap<_, _> = entries.into_iter().map(|(name, tree)| (name.into_bytes(), tree)).collect();
    Tree::Directory(entries)
}

/// The trees: about every way in which a NAR can be sent. What is changed in them lies in a directory of its own, so that no root
/// gets another time by it.
fn trees() -> Vec<(&'static str, Tree)> {
    let files = |seed: u64, lens: &[usize]| {
        let file_of =
            |(index, &len): (usize, &usize)| (format!("f{index:03}"), file(bytes(seed + index as u64, len)));
        lens.iter().enumerate().map(file_of).collect::<Vec<_>>()
    };
    let beneath = |entries: Vec<(String, Tree)>| {
        let link = ("link".to_owned(), Tree::Symlink(b"sub/f000".to_vec()));
        directory([("sub".to_owned(), directory(entries)), link])
    };
    let many: Vec<usize> = (0..1_300).map(|index| if index % 50 == 7 { 6_000 } else { index % 40 }).collect();
    let mixed: Vec<usize> = (0..24).map(|index| 3_000 * index).chain([300_000, 1, 140_000]).collect();
    vec![
        ("a-tiny", beneath(files(1, &[10, 0, 3_000, 8, 1]))),
        ("b-note", file(bytes(50, 5_000))),
        ("c-link", Tree::Symlink(b"/nowhere".to_vec())),
        ("d-long", file(bytes(60, 700_001))),
        ("e-mixed", beneath(files(100, &mixed))),
        ("f-many", beneath(files(2_000, &many))),
        ("g-empty", directory([])),
        ("h-whole", beneath(files(5_000, &[900; 70]))),
    ]
}

/// Which of the trees are not valid when a seed begins.
const LATE: [usize; 2] = [1, 7];
/// The one with thousands of bytes of framing, which is asked for less often.
pub const MANY: usize = 5;

impl Ground {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let trees = trees();
        for (name, tree) in &trees {
            write_tree(tree, &folder.path().join(name));
        }
        let demo = DemoStore::create(Some(folder.path()), &mut |_| {}).unwrap();
        let aside = demo.root().join("aside");
        fs::create_dir(&aside).unwrap();
        let facts = |(path, (_, tree)): (&StorePath, (_, Tree))| {
            make_writable(&demo.store.real_store.join(path.base_name()));
            write_tree(&tree, &aside.join(format!("{}.twin", path.base_name())));
            let nar = nar(&tree);
            let mut hasher = Sha256::new();
            hasher.update(&nar);
            let (mut decoder, mut listing) = (Decoder::new(), Listing::new());
            decoder.push(&nar, |event| listing.event(event)).unwrap();
            PathFacts {
                path: path.clone(),
                nar_hash: hasher.finish(),
                listing: listing.finish(),
                nar,
                tree,
                is_damaged: false,
                is_moved: false,
            }
        };
        let paths: Vec<_> = demo.paths.iter().zip(trees).map(facts).collect();
        let writer = Connection::open(&demo.store.database).unwrap();
        // Nobody pulls the plug during a test.
        writer.pragma_update(None, "synchronous", "off").unwrap();
        let history = vec![vec![Some(0); paths.len()]];
        Self { demo, writer, paths, history, aside, signature: 0, favourite: 0 }
    }

    /// Puts everything back to how each seed finds it.
    pub fn reset(&mut self) {
        for index in 0..self.paths.len() {
            if self.now()[index].is_none() {
                self.register(index);
            }
            if self.now()[index] != Some(0) {
                self.sign(index, 0);
            }
            if self.paths[index].is_damaged || self.paths[index].is_moved {
                for place in [self.root(index), self.twin(index)] {
                    remove(&place);
                    write_tree(&self.paths[index].tree, &place);
                }
                self.paths[index].is_damaged = false;
                self.paths[index].is_moved = false;
            }
        }
        for index in LATE {
            self.unregister(index);
        }
        self.history.drain(..self.history.len() - 1);
        self.signature = 0;
    }

    /// Chooses what this seed is about.
    pub fn choose(&mut self, random: &mut Random) {
        self.favourite = random.below(self.paths.len());
    }

    /// A path.
    pub fn drawn(&self, random: &mut Random) -> usize {
        if random.chance(50) { self.favourite } else { random.below(self.paths.len()) }
    }

    /// Rises with every commit.
    pub fn version(&self) -> usize {
        self.history.len() - 1
    }

    /// What the database has said at that time.
    pub fn state(&self, version: usize) -> &State {
        &self.history[version]
    }

    fn now(&self) -> &State {
        &self.history[self.version()]
    }

    fn commit(&mut self, index: usize, signature: Option<u32>) {
        let mut state = self.now().clone();
        state[index] = signature;
        self.history.push(state);
    }

    fn root(&self, index: usize) -> PathBuf {
        self.demo.store.real_store.join(self.paths[index].path.base_name())
    }

    fn away(&self, index: usize) -> PathBuf {
        self.aside.join(self.paths[index].path.base_name())
    }

    fn twin(&self, index: usize) -> PathBuf {
        self.aside.join(format!("{}.twin", self.paths[index].path.base_name()))
    }

    fn full(&self, index: usize) -> String {
        self.paths[index].path.full(&self.demo.store.store_dir)
    }

    /// Something that others do, as the seed wants it.
    pub fn change(&mut self, random: &mut Random, may_damage: bool) {
        let index = self.drawn(random);
        match random.below(10) {
            0..=3 => self.toggle(index),
            4..=6 if self.now()[index].is_some() => {
                self.signature += 1;
                self.sign(index, self.signature);
            }
            7 if self.now()[index].is_some() && !self.paths[index].is_damaged => self.swap(index),
            8..=9 if may_damage => self.damage(index, random),
            _ => {}
        }
    }

    /// Something that others do to the database alone.
    pub fn commit_something(&mut self, random: &mut Random) {
        let index = self.drawn(random);
        if self.now()[index].is_some() {
            self.signature += 1;
            self.sign(index, self.signature);
        }
    }

    /// Registers a path, or deletes it as the garbage collector does.
    fn toggle(&mut self, index: usize) {
        if self.now()[index].is_some() {
            self.unregister(index);
        } else {
            self.register(index);
        }
    }

    fn unregister(&mut self, index: usize) {
        let deleted = self.writer.execute("delete from ValidPaths where path = ?1", [self.full(index)]);
        assert_eq!(deleted.unwrap(), 1);
        fs::rename(self.root(index), self.away(index)).unwrap();
        self.commit(index, None);
    }

    fn register(&mut self, index: usize) {
        fs::rename(self.away(index), self.root(index)).unwrap();
        let PathFacts { nar_hash, nar, .. } = &self.paths[index];
        self.writer
            .execute(
                "insert into ValidPaths (path, hash, registrationTime, narSize, ca) values (?1, ?2, 1, ?3, ?4)",
                (
                    self.full(index),
                    format!("sha256:{}", nar_hash.to_hex()),
                    i64::try_from(nar.len()).unwrap(),
                    format!("fixed:r:sha256:{}", nar_hash.to_nix32()),
                ),
            )
            .unwrap();
        self.commit(index, Some(0));
    }

    fn sign(&mut self, index: usize, signature: u32) {
        let text = (signature > 0).then(|| signature_text(signature));
        let statement = "update ValidPaths set sigs = ?2 where path = ?1";
        assert_eq!(self.writer.execute(statement, (self.full(index), text)).unwrap(), 1);
        self.commit(index, Some(signature));
    }

    /// Puts another tree of the same contents in the place of one, as a repair does.
    fn swap(&mut self, index: usize) {
        self.paths[index].is_moved = true;
        let (root, twin, away) = (self.root(index), self.twin(index), self.away(index));
        fs::rename(&root, &away).unwrap();
        fs::rename(&twin, &root).unwrap();
        fs::rename(&away, &twin).unwrap();
    }

    /// Changes a file, or removes it. Once, and so that the NAR gets another length: what leaves its length, nobody notices whose contents
    /// are not all in memory.
    fn damage(&mut self, index: usize, random: &mut Random) {
        if self.paths[index].is_damaged {
            return;
        }
        let root = if self.now()[index].is_some() { self.root(index) } else { self.away(index) };
        let file = match &self.paths[index].tree {
            Tree::Regular { .. } => root,
            Tree::Directory(entries) if !entries.is_empty() => {
                let Tree::Directory(files) = &entries[&b"sub"[..]] else { return };
                root.join("sub").join(format!("f{:03}", random.below(files.len())))
            }
            Tree::Directory(_) | Tree::Symlink(_) => return,
        };
        self.paths[index].is_damaged = true;
        let Ok(contents) = fs::read(&file) else { return };
        match random.below(4) {
            0 if contents.len() >= 16 => fs::write(&file, &contents[..contents.len() / 2]).unwrap(),
            0 | 1 => fs::write(&file, [&*contents, b"and more"].concat()).unwrap(),
            2 if matches!(self.paths[index].tree, Tree::Directory(_)) => fs::remove_file(&file).unwrap(),
            _ => {
                fs::remove_file(&file).unwrap();
                fs::create_dir(&file).unwrap();
            }
        }
    }
}

pub fn write_tree(tree: &Tree, to: &Path) {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    match tree {
        Tree::Regular { executable, contents } => {
            fs::write(to, contents).unwrap();
            let mode = if *executable { 0o755 } else { 0o644 };
            fs::set_permissions(to, fs::Permissions::from_mode(mode)).unwrap();
        }
        Tree::Symlink(target) => symlink(OsStr::from_bytes(target), to).unwrap(),
        Tree::Directory(entries) => {
            fs::create_dir(to).unwrap();
            for (name, child) in entries {
                write_tree(child, &to.join(OsStr::from_bytes(name)));
            }
        }
    }
}

fn remove(path: &Path) {
    if fs::symlink_metadata(path).unwrap().is_dir() {
        fs::remove_dir_all(path).unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
}

/// Store paths are read-only, and these are not.
fn make_writable(path: &Path) {
    let metadata = fs::symlink_metadata(path).unwrap();
    if metadata.is_symlink() {
        return;
    }
    let mode = metadata.permissions().mode() | 0o200;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            make_writable(&entry.unwrap().path());
        }
    }
}
