//! Build id → the store path that holds its debug symbols, in `lib/debug/.build-id/<2 hex>/<38 hex>.debug`.
//!
//! Layout: `src/libstore/binary-cache-store.cc` of Nix (index-debug-info). The index is made by looking at each valid
//! path once: the first question pays for all of them, a later one only for paths registered since.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::AsFd;

use rustix::fs::Dir;
use rustix::io::Errno;
use tracing::warn;

use crate::codec::build_id::BuildId;
use crate::codec::narinfo::PathInfo;
use crate::codec::store_path::StorePath;
use crate::limits::DEBUG_INFO_BATCH;
use crate::store::db::{Database, RowId};
use crate::store::walk::{Root, RootKind, open_directory, open_root};
use crate::store::{LocalStore, StoreError};

/// Where debug symbols are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebugInfo {
    /// The store path whose NAR holds them.
    pub info: PathInfo,
    /// The file in that NAR.
    pub member: String,
}

/// What is known about debug symbols in the store.
#[derive(Debug, Default)]
pub struct DebugIndex {
    /// Store paths in order of registration. Those that are gone stay, and are passed over when found.
    paths: HashMap<BuildId, Vec<StorePath>>,
    /// All paths up to this row were looked at.
    seen: RowId,
}

impl DebugIndex {
    /// An index that has looked at nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The valid store path that holds the symbols of `id`; of several the one registered last.
    pub fn find(
        &mut self,
        store: &LocalStore,
        database: &mut Database,
        id: BuildId,
    ) -> Result<Option<DebugInfo>, StoreError> {
        self.refresh(store, database)?;
        for path in self.paths.get(&id).into_iter().flatten().rev() {
            if let Some(info) = database.path_info(path.hash_part())?
                && info.path == *path
            {
                return Ok(Some(DebugInfo { info, member: member(id) }));
            }
        }
        Ok(None)
    }

    /// Looks at the paths registered since the last time.
    fn refresh(&mut self, store: &LocalStore, database: &mut Database) -> Result<(), StoreError> {
        loop {
            let paths = database.valid_paths(self.seen, DEBUG_INFO_BATCH)?;
            if paths.is_empty() {
                return Ok(());
            }
            for (row, path) in paths {
                // One damaged path must not hide the symbols of all others.
                match path.and_then(|path| Ok((build_ids(store, &path)?, path))) {
                    Ok((ids, path)) => {
                        for id in ids {
                            self.paths.entry(id).or_default().push(path.clone());
                        }
                    }
                    Err(error) => warn!("its debug symbols are passed over: {error}"),
                }
                self.seen = row;
            }
        }
    }
}

/// The build ids of a store path. None for a path that is gone.
fn build_ids(store: &LocalStore, path: &StorePath) -> Result<Vec<BuildId>, StoreError> {
    let Some(root @ Root { kind: RootKind::Directory, .. }) = open_root(store, path)? else {
        return Ok(Vec::new());
    };
    let failed = |error: Errno| StoreError::io("read debug symbols in", &root.path, error);
    let mut directory = None;
    for component in [c"lib", c"debug", c".build-id"] {
        let parent = directory.as_ref().unwrap_or(&root.descriptor).as_fd();
        match open_directory(parent, component) {
            Ok(opened) => directory = Some(opened),
            Err(error) if is_other(error) => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        }
    }
    let Some(directory) = directory else { return Ok(Vec::new()) };
    let mut ids = Vec::new();
    for folder in names(&directory).map_err(failed)? {
        if folder.count_bytes() != 2 {
            continue;
        }
        let opened = match open_directory(directory.as_fd(), &folder) {
            Ok(opened) => opened,
            Err(error) if is_other(error) => continue,
            Err(error) => return Err(failed(error)),
        };
        ids.extend(names(&opened).map_err(failed)?.iter().filter_map(|file| build_id(&folder, file)));
    }
    Ok(ids)
}

/// Whether there is nothing of this name, or something that is no directory.
fn is_other(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
}

fn names(directory: impl AsFd) -> rustix::io::Result<Vec<CString>> {
    Dir::read_from(directory)?.map(|entry| Ok(entry?.file_name().to_owned())).collect()
}

fn build_id(folder: &CStr, file: &CStr) -> Option<BuildId> {
    let rest = file.to_bytes().strip_suffix(b".debug")?;
    BuildId::parse(&[folder.to_bytes(), rest].concat())
}

/// The file that holds the symbols, relative to the store path.
fn member(id: BuildId) -> String {
    let (folder, rest) = id.as_str().split_at(2);
    format!("lib/debug/.build-id/{folder}/{rest}.debug")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;
    use crate::store::demo::DemoStore;

    const ID: &str = "abcdef0123456789abcdef0123456789abcdef01";
    const MEMBER: &str = "lib/debug/.build-id/ab/cdef0123456789abcdef0123456789abcdef01.debug";

    fn id(text: &str) -> BuildId {
        BuildId::parse(text.as_bytes()).unwrap()
    }

    fn write(file: &Path, content: &str) {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }

    fn store(folder: &Path) -> DemoStore {
        DemoStore::create(Some(folder), &mut |_| {}).unwrap()
    }

    fn register(demo: &DemoStore, path: &StorePath) {
        let writer = rusqlite::Connection::open(&demo.store.database).unwrap();
        let statement =
            "insert into ValidPaths (path, hash, registrationTime, narSize) values (?1, ?2, 1, 120)";
        writer
            .execute(statement, (path.full(&demo.store.store_dir), format!("sha256:{}", "00".repeat(32))))
            .unwrap();
    }

    #[test]
    fn symbols_are_found_in_the_path_that_has_them() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("plain/lib/libx.so"), "x");
        write(&folder.path().join("x-debug").join(MEMBER), "symbols");
        write(&folder.path().join("x-debug/lib/debug/.build-id/ab/not-an-id.debug"), "x");
        write(&folder.path().join("x-debug/lib/debug/.build-id/README"), "x");
        write(&folder.path().join("file"), "x");
        // What lies behind a link is not in this path's NAR.
        std::fs::create_dir_all(folder.path().join("linked/lib")).unwrap();
        symlink("../../x-debug/lib/debug", folder.path().join("linked/lib/debug")).unwrap();
        let demo = store(folder.path());
        let mut database = Database::open(&demo.store).unwrap();
        let mut index = DebugIndex::new();
        let found = index.find(&demo.store, &mut database, id(ID)).unwrap().unwrap();
        assert_eq!((found.info.path.name(), found.member.as_str()), ("x-debug", MEMBER));
        let other = id(&ID.replace('a', "b"));
        assert_eq!(index.find(&demo.store, &mut database, other).unwrap(), None);
    }

    #[test]
    fn later_registrations_are_looked_at_and_invalid_paths_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("x-debug").join(MEMBER), "symbols");
        let demo = store(folder.path());
        let mut database = Database::open(&demo.store).unwrap();
        let mut index = DebugIndex::new();
        assert!(index.find(&demo.store, &mut database, id(ID)).unwrap().is_some());

        let later = StorePath::parse_base_name("0000000000000000000000000000000a-y-debug").unwrap();
        let real = demo.store.real_store.join(later.base_name());
        write(&real.join(MEMBER), "symbols");
        write(&real.join(MEMBER.replace("/ab/", "/00/")), "symbols");
        let other = id(&ID.replacen("ab", "00", 1));
        assert_eq!(index.find(&demo.store, &mut database, other).unwrap(), None, "not registered yet");
        register(&demo, &later);
        let found = index.find(&demo.store, &mut database, other).unwrap().unwrap();
        assert_eq!(found.info.path, later);
        assert_eq!(
            index.find(&demo.store, &mut database, id(ID)).unwrap().unwrap().info.path,
            later,
            "the newest"
        );

        let writer = rusqlite::Connection::open(&demo.store.database).unwrap();
        writer.execute("delete from ValidPaths where path like '%y-debug'", []).unwrap();
        assert_eq!(index.find(&demo.store, &mut database, other).unwrap(), None);
        let found = index.find(&demo.store, &mut database, id(ID)).unwrap().unwrap();
        assert_eq!(found.info.path.name(), "x-debug");
    }

    #[test]
    fn a_path_that_is_valid_and_gone_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("x-debug").join(MEMBER), "symbols");
        let demo = store(folder.path());
        register(&demo, &StorePath::parse_base_name("0000000000000000000000000000000a-gone").unwrap());
        let mut database = Database::open(&demo.store).unwrap();
        assert!(DebugIndex::new().find(&demo.store, &mut database, id(ID)).unwrap().is_some());
    }
}
