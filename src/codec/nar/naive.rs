//! The oracle of this module's tests: a NAR written by plain recursion, word by word, with everything in memory.

use std::collections::BTreeMap;

/// A file system object with its contents. The map sorts names by their bytes, as a NAR does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tree {
    Regular { executable: bool, contents: Vec<u8> },
    Symlink(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Tree>),
}

/// The whole NAR of `tree`.
pub fn nar(tree: &Tree) -> Vec<u8> {
    let mut out = Vec::new();
    word(&mut out, b"nix-archive-1");
    node(&mut out, tree);
    out
}

/// One word: its length, its bytes, its padding.
pub fn word(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
    while !out.len().is_multiple_of(8) {
        out.push(0);
    }
}

fn node(out: &mut Vec<u8>, tree: &Tree) {
    word(out, b"(");
    word(out, b"type");
    match tree {
        Tree::Regular { executable, contents } => {
            word(out, b"regular");
            if *executable {
                word(out, b"executable");
                word(out, b"");
            }
            word(out, b"contents");
            word(out, contents);
        }
        Tree::Symlink(target) => {
            word(out, b"symlink");
            word(out, b"target");
            word(out, target);
        }
        Tree::Directory(entries) => {
            word(out, b"directory");
            for (name, child) in entries {
                word(out, b"entry");
                word(out, b"(");
                word(out, b"name");
                word(out, name);
                word(out, b"node");
                node(out, child);
                word(out, b")");
            }
        }
    }
    word(out, b")");
}

impl Tree {
    /// A tree drawn from `data`, which proptest and the fuzzer vary; any bytes give one.
    pub fn draw(data: &[u8]) -> Tree {
        Self::draw_node(&mut data.iter().copied(), 0)
    }

    fn draw_node(data: &mut impl Iterator<Item = u8>, level: usize) -> Tree {
        let kind = data.next().unwrap_or(0);
        match kind % 8 {
            0..=1 => Tree::Regular { executable: kind >= 128, contents: Self::draw_bytes(data, 20) },
            2 => {
                let mut target = Self::draw_bytes(data, 12);
                target.retain(|&byte| byte != 0);
                target.push(b'/');
                Tree::Symlink(target)
            }
            _ if level == 6 => Tree::Directory(BTreeMap::new()),
            _ => Tree::Directory(
                (0..kind / 32).map(|_| (Self::draw_name(data), Self::draw_node(data, level + 1))).collect(),
            ),
        }
    }

    fn draw_name(data: &mut impl Iterator<Item = u8>) -> Vec<u8> {
        let mut name = Self::draw_bytes(data, 10);
        name.retain(|byte| !matches!(byte, 0 | b'/'));
        if matches!(&name[..], b"" | b"." | b"..") {
            name.push(b'a');
        }
        name
    }

    fn draw_bytes(data: &mut impl Iterator<Item = u8>, len_max: u8) -> Vec<u8> {
        let len = data.next().unwrap_or(0) % (len_max + 1);
        data.take(len.into()).collect()
    }

    /// The contents of the regular file at `path`, which is relative to this tree.
    pub fn contents(&self, path: &[u8]) -> &[u8] {
        match self {
            Tree::Regular { contents, .. } if path.is_empty() => contents,
            Tree::Directory(entries) => {
                let (name, rest) = match path.iter().position(|&byte| byte == b'/') {
                    Some(slash) => (&path[..slash], &path[slash + 1..]),
                    None => (path, &b""[..]),
                };
                entries[name].contents(rest)
            }
            _ => panic!("no regular file at {path:?}"),
        }
    }
}
