//! One thing in a store path: a file, the entries of a directory, or where a link points.
//!
//! Every name is looked at and opened relative to the descriptor of its directory and never through a link, so no link leads out, and none
//! that was swapped in meanwhile.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

use super::StoreError;
use super::walk::{Root, RootKind, is_executable, open_directory, open_regular, size_of_file};
use crate::codec::nar::find::{Listed, ListedKind};
use crate::codec::nar::inner_path::InnerPath;

/// What is at a place in a store path.
#[derive(Debug)]
pub enum Node {
    /// A directory, open.
    Directory(OwnedFd),
    /// A regular file, open, and its length in bytes.
    Regular(OwnedFd, u64),
    /// A symbolic link, at the end of the path or on the way there.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
        /// How many names lead to it.
        depth: usize,
    },
}

/// The entries of a directory.
#[derive(Debug)]
pub struct Entries {
    /// The first, by name.
    pub entries: Vec<Listed>,
    /// How many there are.
    pub count: u64,
}

/// Opens what is at `path` beneath `root`. Nothing when nothing is there that a NAR could have.
pub fn open(root: &Root, path: &InnerPath) -> Result<Option<Node>, StoreError> {
    let failed = |error: Errno| StoreError::io("open", &root.path, error);
    let mut node = match root.kind {
        RootKind::Directory => {
            Node::Directory(open_directory(root.descriptor.as_fd(), c".").map_err(failed)?)
        }
        RootKind::Regular { size, .. } => Node::Regular(
            root.descriptor.try_clone().map_err(|error| StoreError::io("open", &root.path, error))?,
            size,
        ),
        RootKind::Symlink => {
            let target = rustix::fs::readlinkat(&root.descriptor, c"", Vec::new()).map_err(failed)?;
            Node::Symlink { target: target.into_bytes(), depth: 0 }
        }
    };
    for (index, name) in path.names().enumerate() {
        node = match node {
            Node::Directory(parent) => match open_entry(parent.as_fd(), name, index + 1) {
                Ok(Some(node)) => node,
                Ok(None) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => {
                    return Ok(None);
                }
                Err(error) => return Err(failed(error)),
            },
            Node::Regular(..) => return Ok(None),
            link @ Node::Symlink { .. } => return Ok(Some(link)),
        };
    }
    Ok(Some(node))
}

fn open_entry(parent: BorrowedFd<'_>, name: &[u8], depth: usize) -> rustix::io::Result<Option<Node>> {
    let name = CString::new(name).map_err(|_| Errno::NOENT)?;
    // The kind is asked for first, because opening a device may do anything.
    let status = rustix::fs::statat(parent, &name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => Some(Node::Directory(open_directory(parent, &name)?)),
        FileType::RegularFile => {
            let file = open_regular(parent, &name)?;
            let status = rustix::fs::fstat(&file)?;
            let is_still = FileType::from_raw_mode(status.st_mode) == FileType::RegularFile;
            is_still.then(|| Node::Regular(file, size_of_file(&status)))
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(parent, &name, Vec::new())?.into_bytes();
            Some(Node::Symlink { target, depth })
        }
        _ => None,
    })
}

/// The first `entries_max` entries of a directory by name, for as long as `goes_on`; all of them are counted. What is neither a directory
/// nor a file nor a link is left out.
pub fn list(
    directory: &OwnedFd,
    root: &Root,
    entries_max: usize,
    goes_on: &dyn Fn() -> bool,
) -> Result<Option<Entries>, StoreError> {
    const LOOKS_INTERVAL: u64 = 1024;
    let failed = |error: Errno| StoreError::io("read", &root.path, error);
    let mut names = BTreeSet::new();
    let mut count = 0_u64;
    for entry in Dir::read_from(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        if count.is_multiple_of(LOOKS_INTERVAL) && !goes_on() {
            return Ok(None);
        }
        count += 1;
        names.insert(entry.file_name().to_owned());
        // However many there are, no more are kept than are shown.
        if names.len() > entries_max {
            names.pop_last();
        }
    }
    let mut entries = Vec::with_capacity(names.len());
    for name in names {
        match listed(directory.as_fd(), name) {
            Ok(entry) => entries.extend(entry),
            // Deleted a moment ago.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(Some(Entries { entries, count }))
}

fn listed(directory: BorrowedFd<'_>, name: CString) -> rustix::io::Result<Option<Listed>> {
    let status = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => ListedKind::Directory,
        FileType::RegularFile => {
            ListedKind::Regular { executable: is_executable(&status), size: size_of_file(&status) }
        }
        FileType::Symlink => {
            ListedKind::Symlink { target: rustix::fs::readlinkat(directory, &name, Vec::new())?.into_bytes() }
        }
        _ => return Ok(None),
    };
    Ok(Some(Listed { name: name.into_bytes(), kind }))
}

/// What a file begins with, as far as `len_max` bytes go.
pub fn start(file: &OwnedFd, offset: u64, len_max: usize) -> Vec<u8> {
    let mut buffer = vec![0; len_max];
    // It is to guess what it is; whoever sends it will say that it cannot be read.
    let len = rustix::io::pread(file, &mut buffer[..], offset).unwrap_or(0);
    buffer.truncate(len);
    buffer
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use rustix::fs::Mode;

    use super::*;
    use crate::store::walk::open_root_at;

    fn at(folder: &Path, names: &[&[u8]]) -> Result<Option<Node>, StoreError> {
        let mut path = InnerPath::default();
        for name in names {
            path.push(name).unwrap();
        }
        open(&open_root_at(folder).unwrap().unwrap(), &path)
    }

    fn tree() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("root/a/b")).unwrap();
        fs::write(folder.path().join("secret"), "secret").unwrap();
        fs::write(folder.path().join("root/a/file"), "contents").unwrap();
        fs::write(folder.path().join("root").join(OsStr::from_bytes(b"\xff <b>")), "").unwrap();
        symlink("../secret", folder.path().join("root/out")).unwrap();
        symlink("..", folder.path().join("root/a/up")).unwrap();
        symlink("loop", folder.path().join("root/loop")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, folder.path().join("root/pipe"), FileType::Fifo, Mode::RUSR, 0)
            .unwrap();
        folder
    }

    #[test]
    fn what_is_in_a_path_is_opened_and_no_link_is_followed() {
        let folder = tree();
        let root = folder.path().join("root");
        let at = |names: &[&[u8]]| at(&root, names).unwrap();
        assert!(matches!(at(&[]), Some(Node::Directory(_))));
        assert!(matches!(at(&[b"a", b"b"]), Some(Node::Directory(_))));
        assert!(matches!(at(&[b"a", b"file"]), Some(Node::Regular(_, 8))));
        assert!(matches!(at(&[b"\xff <b>"]), Some(Node::Regular(_, 0))));
        for (names, expected, expected_depth) in [
            (&[&b"out"[..]][..], "../secret", 1),
            (&[b"out", b"x", b"y"], "../secret", 1),
            (&[b"a", b"up", b"secret"], "..", 2),
            (&[b"loop", b"loop"], "loop", 1),
        ] {
            let Some(Node::Symlink { target, depth }) = at(names) else { panic!("{names:?} has a link") };
            assert_eq!((target.as_slice(), depth), (expected.as_bytes(), expected_depth));
        }
        for names in [&[&b"x"[..]][..], &[b"a", b"file", b"x"], &[b"pipe"], &[b"pipe", b"x"], &[b"a", b"B"]] {
            assert!(at(names).is_none(), "{names:?}");
        }
    }

    #[test]
    fn a_root_can_be_a_file_or_a_link() {
        let folder = tree();
        assert!(matches!(at(&folder.path().join("secret"), &[]), Ok(Some(Node::Regular(_, 6)))));
        assert!(matches!(at(&folder.path().join("secret"), &[b"x"]), Ok(None)));
        let link = at(&folder.path().join("root/out"), &[b"x"]).unwrap();
        assert!(matches!(link, Some(Node::Symlink { depth: 0, .. })));
    }

    #[test]
    fn a_listing_has_the_first_names_and_counts_all() {
        let folder = tree();
        let root = open_root_at(&folder.path().join("root")).unwrap().unwrap();
        let list = |max| list(&root.descriptor, &root, max, &|| true).unwrap().unwrap();
        let names =
            |entries: &Entries| entries.entries.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>();
        let all = list(9);
        assert_eq!(
            (names(&all), all.count),
            (vec![b"a".to_vec(), b"loop".into(), b"out".into(), b"\xff <b>".into()], 5)
        );
        assert_eq!(all.entries[2].kind, ListedKind::Symlink { target: b"../secret".to_vec() });
        assert_eq!(all.entries[3].kind, ListedKind::Regular { executable: false, size: 0 });
        let some = list(2);
        assert_eq!((names(&some), some.count), (vec![b"a".to_vec(), b"loop".into()], 5));
        assert!(super::list(&root.descriptor, &root, 9, &|| false).unwrap().is_none());
    }
}
