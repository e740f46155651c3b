//! One thing out of a NAR that goes by: a file, the entries of a directory, or where a link points.

use super::decode::Event;
use super::inner_path::InnerPath;

/// An entry of a directory, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: ListedKind,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListedKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// Whether its owner may execute it.
        executable: bool,
        /// Length. Bytes.
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
}

/// What there was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A directory.
    Directory {
        /// Its first entries.
        entries: Vec<Listed>,
        /// How many there are.
        count: u64,
    },
    /// A regular file.
    Regular {
        /// Length. Bytes.
        size: u64,
        /// Where in the NAR its contents are. Bytes.
        contents_offset: u64,
        /// The contents, if they were wanted.
        contents: Option<Vec<u8>>,
    },
    /// A symbolic link, at the end of the path or on the way there.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
        /// How many names lead to it.
        depth: usize,
    },
}

/// Takes the events of a NAR and keeps what was wanted.
#[derive(Debug)]
pub struct Finder<'a> {
    path: &'a InnerPath,
    entries_max: usize,
    contents_len_max: u64,
    /// Directories around the current node.
    level: usize,
    /// How many names of the path lead to the current node, or to a directory around it.
    matched: usize,
    /// What is missing of the contents of the current file. Bytes.
    contents_left: u64,
    found: Option<Found>,
    is_done: bool,
}

impl<'a> Finder<'a> {
    /// For what is at `path`: of a directory so many entries, of a file the contents if they are not longer than that (in bytes). If no
    /// entries are wanted, they are not counted either.
    pub fn new(path: &'a InnerPath, entries_max: usize, contents_len_max: u64) -> Self {
        Self {
            path,
            entries_max,
            contents_len_max,
            level: 0,
            matched: 0,
            contents_left: 0,
            found: None,
            is_done: false,
        }
    }

    /// Whether nothing that follows matters any more.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// How much of the contents of the current file is still to come and is not wanted. Bytes.
    pub fn unwanted_len(&self) -> u64 {
        let is_wanted = !self.is_done && matches!(self.found, Some(Found::Regular { .. }));
        if is_wanted { 0 } else { self.contents_left }
    }

    /// The rest of the contents of the current file was passed over.
    pub fn skipped(&mut self) {
        self.contents_left = 0;
    }

    /// What there was; nothing if there is nothing at the path.
    pub fn finish(self) -> Option<Found> {
        self.found
    }

    /// Takes the next event.
    pub fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Contents(bytes) => self.contents(bytes),
            Event::Entry { name } => self.entry(name),
            Event::EndDirectory => {
                self.level = self.level.saturating_sub(1);
                // It is wanted, or what is wanted would have been in it.
                self.is_done |= self.matched >= self.level;
            }
            Event::Directory => {
                self.node(&event);
                self.level += 1;
            }
            Event::Regular { size, .. } => {
                self.contents_left = size;
                self.node(&event);
            }
            Event::Symlink { .. } => self.node(&event),
        }
    }

    fn contents(&mut self, bytes: &[u8]) {
        self.contents_left = self.contents_left.saturating_sub(bytes.len() as u64);
        if self.is_done {
            return;
        }
        if let Some(Found::Regular { size, contents: Some(contents), .. }) = &mut self.found {
            contents.extend_from_slice(bytes);
            self.is_done = contents.len() as u64 == *size;
        }
    }

    fn entry(&mut self, name: &[u8]) {
        let above = self.level.saturating_sub(1);
        self.matched = self.matched.min(above);
        if self.matched == above && self.path.names().nth(above) == Some(name) {
            self.matched = self.level;
        }
        if !self.is_done
            && above == self.path.depth()
            && let Some(Found::Directory { entries, count }) = &mut self.found
        {
            *count += 1;
            if entries.len() < self.entries_max {
                // What it is comes next.
                entries.push(Listed { name: name.to_vec(), kind: ListedKind::Directory });
            }
        }
    }

    fn node(&mut self, event: &Event<'_>) {
        if self.is_done {
            return;
        }
        let depth = self.path.depth();
        if let Some(Found::Directory { entries, count }) = &mut self.found {
            if self.level == depth + 1
                && *count == entries.len() as u64
                && let (Some(entry), Some(kind)) = (entries.last_mut(), kind(event))
            {
                entry.kind = kind;
            }
            return;
        }
        if self.matched != self.level {
            return;
        }
        let is_there = self.level == depth;
        match *event {
            Event::Directory if is_there => {
                self.found = Some(Found::Directory { entries: Vec::new(), count: 0 });
                self.is_done = self.entries_max == 0;
            }
            Event::Regular { size, contents_offset, .. } if is_there => {
                let contents = (size <= self.contents_len_max).then(Vec::new);
                self.is_done = contents.is_none() || size == 0;
                self.found = Some(Found::Regular { size, contents_offset, contents });
            }
            Event::Symlink { target } => {
                self.found = Some(Found::Symlink { target: target.to_vec(), depth: self.level });
                self.is_done = true;
            }
            // The path goes on, and a file has nothing in it.
            Event::Regular { .. } => self.is_done = true,
            _ => {}
        }
    }
}

fn kind(event: &Event<'_>) -> Option<ListedKind> {
    match *event {
        Event::Directory => Some(ListedKind::Directory),
        Event::Regular { executable, size, .. } => Some(ListedKind::Regular { executable, size }),
        Event::Symlink { target } => Some(ListedKind::Symlink { target: target.to_vec() }),
        _ => None,
    }
}

/// What tests and fuzzing look for things with.
#[cfg(any(test, fuzzing))]
pub(super) mod check {
    use super::super::decode::{Decoder, Event};
    use super::super::naive::Tree;
    use super::{Finder, Found, InnerPath, Listed, ListedKind};

    /// Paths of an input, and entries of each directory, that are looked for: each takes a whole look.
    const LOOKS_MAX: usize = 4;

    /// What there is at a path, and whether it is certain, as far as the input is a NAR.
    fn find<'a>(
        chunks: impl Iterator<Item = &'a [u8]>,
        path: &InnerPath,
        entries_max: usize,
        contents_len_max: u64,
    ) -> (Option<Found>, bool) {
        let mut finder = Finder::new(path, entries_max, contents_len_max);
        let mut decoder = Decoder::new();
        for chunk in chunks {
            if decoder.push(chunk, |event| finder.event(event)).is_err() {
                break;
            }
        }
        let is_done = finder.is_done();
        (finder.finish(), is_done)
    }

    fn path(names: &[Vec<u8>]) -> InnerPath {
        let mut path = InnerPath::default();
        for name in names {
            path.push(name).expect("the decoder has taken it");
        }
        path
    }

    /// The paths that the input has, of which the last may be without a node.
    fn paths(data: &[u8]) -> Vec<InnerPath> {
        let (mut paths, mut names, mut level) = (vec![InnerPath::default()], Vec::new(), 0_usize);
        let _ = Decoder::new().push(data, |event| match event {
            Event::Directory => level += 1,
            Event::EndDirectory => level -= 1,
            Event::Entry { name } => {
                names.truncate(level - 1);
                names.push(name.to_vec());
                paths.push(path(&names));
            }
            _ => {}
        });
        paths
    }

    /// Whatever the input is: the same is found in it at every split.
    pub fn splits(data: &[u8]) {
        for path in paths(data).iter().rev().take(LOOKS_MAX) {
            for (entries_max, contents_len_max) in [(usize::MAX, u64::MAX), (1, 0)] {
                let whole = find(std::iter::once(data), path, entries_max, contents_len_max);
                for len in [1, 64] {
                    let split = find(data.chunks(len), path, entries_max, contents_len_max);
                    assert_eq!(split, whole, "{path:?} in chunks of {len}");
                }
            }
        }
    }

    /// Everything in the NAR of a tree is found where it is, by plain recursion.
    pub fn tree(nar: &[u8], tree: &Tree) {
        node(nar, tree, &mut Vec::new());
    }

    fn node(nar: &[u8], tree: &Tree, names: &mut Vec<Vec<u8>>) {
        let here = path(names);
        let at = |path: &InnerPath, entries_max, contents_len_max| {
            let (found, is_done) = find(std::iter::once(nar), path, entries_max, contents_len_max);
            assert!(is_done, "{path:?}");
            found
        };
        // What is too deep, or too long, is nowhere.
        let beneath = |name: &[u8]| here.join(name).ok().and_then(|path| at(&path, 1, 0));
        let found = at(&here, usize::MAX, u64::MAX).expect("it is there");
        match tree {
            Tree::Regular { contents: expected, .. } => {
                let Found::Regular { size, contents_offset, contents: Some(contents) } = found else {
                    panic!("{found:?}")
                };
                assert_eq!((&contents, size), (expected, expected.len() as u64));
                let offset = usize::try_from(contents_offset).expect("it is in memory");
                assert_eq!(&nar[offset..offset + expected.len()], expected);
                assert_eq!(beneath(b"x"), None);
            }
            Tree::Symlink(expected) => {
                let expected = Found::Symlink { target: expected.clone(), depth: names.len() };
                assert!(here.join(b"x").is_err() || beneath(b"x").as_ref() == Some(&expected));
                assert_eq!(found, expected);
            }
            Tree::Directory(expected) => {
                let Found::Directory { entries, count } = found else { panic!("{found:?}") };
                assert_eq!(count, expected.len() as u64);
                let listed: Vec<_> = entries.iter().map(|entry| &entry.name).collect();
                assert_eq!(listed, expected.keys().collect::<Vec<_>>());
                let absent = b"no such name";
                assert!(expected.contains_key(&absent[..]) || beneath(absent).is_none());
                for (Listed { kind, .. }, tree) in entries.iter().zip(expected.values()) {
                    let expected = match tree {
                        Tree::Directory(_) => ListedKind::Directory,
                        Tree::Symlink(target) => ListedKind::Symlink { target: target.clone() },
                        Tree::Regular { executable, contents } => {
                            ListedKind::Regular { executable: *executable, size: contents.len() as u64 }
                        }
                    };
                    assert_eq!(*kind, expected);
                }
                for (name, tree) in expected.iter().take(LOOKS_MAX) {
                    names.push(name.clone());
                    node(nar, tree, names);
                    names.pop();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::naive::{Tree, nar};
    use super::check;

    proptest! {
        #[test]
        fn all_of_a_tree_is_found(data in proptest::collection::vec(any::<u8>(), 0..120)) {
            let tree = Tree::draw(&data);
            check::tree(&nar(&tree), &tree);
        }
    }
}
