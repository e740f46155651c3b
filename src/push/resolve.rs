//! From what somebody types to a store path: a store path itself, something inside of one, or a link to either, such as `./result`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::codec::store_path::{StorePath, StorePathError};
use crate::limits::PUSH_LINKS_MAX;
use crate::store::db::Database;
use crate::store::{LocalStore, StoreError};

/// Why a name means no store path.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Neither it nor what it points to is in the store.
    #[error("{} is not in the store {store}: only store paths, what is inside of them and links to them can be pushed", .path.display())]
    Outside {
        /// As typed.
        path: PathBuf,
        /// The store directory.
        store: String,
    },
    /// It is in the store, and is none of its paths.
    #[error("{} is no store path: {cause}", .path.display())]
    NoStorePath {
        /// As typed.
        path: PathBuf,
        /// What is wrong with the name.
        cause: StorePathError,
    },
    /// A folder or a link on the way cannot be read.
    #[error("cannot follow {}: {cause}", .path.display())]
    Unreadable {
        /// As typed.
        path: PathBuf,
        /// From readlink(2).
        cause: io::Error,
    },
    /// Nobody has put it there, or it was removed.
    #[error("{path} is no valid path of the store: {} does not know it", .database.display())]
    Invalid {
        /// Its full name.
        path: String,
        /// Which does not know it.
        database: PathBuf,
    },
    /// The database cannot be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Links that point to each other.
    #[error("cannot follow {}: too many links", .0.display())]
    Links(PathBuf),
}

/// The valid store path that `typed` is, is inside of, or points to.
pub fn resolve(store: &LocalStore, database: &mut Database, typed: &Path) -> Result<StorePath, ResolveError> {
    let path = name(store, typed)?;
    match database.path_info(path.hash_part()) {
        Ok(info) if info.as_ref().is_none_or(|info| info.path != path) => {
            Err(ResolveError::Invalid { path: path.full(&store.store_dir), database: store.database.clone() })
        }
        // What is damaged is said of the path, when it is its turn.
        Ok(_) | Err(StoreError::Damaged { .. }) => Ok(path),
        Err(error) => Err(error.into()),
    }
}

/// The store path that `typed` names. Links are followed no further than into the store, so a store path that is a link is itself meant.
/// Nothing beneath a store path is looked at.
fn name(store: &LocalStore, typed: &Path) -> Result<StorePath, ResolveError> {
    let unreadable = |cause| ResolveError::Unreadable { path: typed.to_path_buf(), cause };
    let outside = || ResolveError::Outside { path: typed.to_path_buf(), store: store.store_dir.to_string() };
    let real_store = fs::canonicalize(&store.real_store).unwrap_or_else(|_| store.real_store.clone());
    let stores = [Path::new(store.store_dir.as_str()), &store.real_store, &real_store];
    let absolute = std::path::absolute(typed).map_err(unreadable)?;
    let mut left = names(&absolute);
    let mut resolved = PathBuf::from("/");
    let mut links = 0;
    loop {
        let whole = lexical(resolved.iter().chain(left.iter().rev().map(OsString::as_os_str)));
        let inside = stores.iter().find_map(|store| whole.strip_prefix(store).ok()?.iter().next());
        if let Some(name) = inside {
            return StorePath::parse_base_name(name.to_str().ok_or_else(outside)?)
                .map_err(|cause| ResolveError::NoStorePath { path: typed.to_path_buf(), cause });
        }
        let Some(component) = left.pop() else { return Err(outside()) };
        if component == ".." {
            resolved.pop();
            continue;
        }
        resolved.push(&component);
        let target = match fs::read_link(&resolved) {
            Ok(target) => target,
            // No link; or not there, like the store directory of a store that is somewhere else.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {
                continue;
            }
            Err(error) => return Err(unreadable(error)),
        };
        links += 1;
        if links > PUSH_LINKS_MAX {
            return Err(ResolveError::Links(typed.to_path_buf()));
        }
        resolved.pop();
        if target.is_absolute() {
            resolved = PathBuf::from("/");
        }
        left.extend(names(&target));
    }
}

/// The names in a path, `..` included, the last one first.
fn names(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let mut names: Vec<OsString> = names.collect();
    names.reverse();
    names
}

/// The path of these names, with each `..` taken for the folder before it, as Nix takes it.
fn lexical<'a>(names: impl Iterator<Item = &'a OsStr>) -> PathBuf {
    let mut path = PathBuf::new();
    for name in names {
        if name == ".." {
            path.pop();
        } else {
            path.push(name);
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;
    use crate::codec::store_path::StoreDir;
    use crate::store::demo::DemoStore;

    const NAME: &str = "0000000000000000000000000000000a-alpha";

    fn fixture() -> (TempDir, LocalStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::beneath(folder.path(), StoreDir::parse("/nowhere/store").unwrap());
        fs::create_dir_all(store.real_store.join(NAME).join("bin")).unwrap();
        (folder, store)
    }

    #[test]
    fn names_of_either_directory_are_taken_without_a_look() {
        let (_folder, store) = fixture();
        for path in [
            format!("/nowhere/store/{NAME}"),
            format!("/nowhere/store/{NAME}/"),
            format!("/nowhere/store/{NAME}/bin/not/there"),
            format!("/nowhere/other/../store/./{NAME}"),
            store.real_store.join(NAME).join("bin").display().to_string(),
        ] {
            assert_eq!(name(&store, Path::new(&path)).unwrap().base_name(), NAME, "{path}");
        }
    }

    #[test]
    fn links_are_followed_into_the_store_and_no_further() {
        let (folder, store) = fixture();
        let link = |name: &str, target: &str| {
            symlink(target, folder.path().join(name)).unwrap();
            folder.path().join(name)
        };
        link("folder", ".");
        let result = link("result", &format!("/nowhere/store/{NAME}"));
        let chain = link("chain", "folder/./folder/result");
        let inside = link("inside", &format!("nix/store/{NAME}/bin"));
        // A store path may be a link to anywhere.
        let other = "0000000000000000000000000000000b-link";
        symlink("/etc/passwd", store.real_store.join(other)).unwrap();
        // The store itself by another name.
        let renamed = link("renamed", "nix").join("store").join(NAME);
        for (path, expected) in [
            (result.join("bin/x"), NAME),
            (result, NAME),
            (chain, NAME),
            (inside, NAME),
            (renamed, NAME),
            (store.real_store.join(other), other),
        ] {
            assert_eq!(name(&store, &path).unwrap().base_name(), expected, "{}", path.display());
        }
    }

    #[test]
    fn everything_else_is_refused_by_its_name() {
        let (folder, store) = fixture();
        let round = folder.path().join("round");
        symlink("round", &round).unwrap();
        for (path, word) in [
            (PathBuf::from("/"), "not in the store"),
            (PathBuf::from("/etc/passwd"), "not in the store"),
            (PathBuf::from("/nowhere/store"), "not in the store"),
            (PathBuf::from("/nowhere/store/.links"), "no store path"),
            (PathBuf::from("/nowhere/stores/x"), "not in the store"),
            (round, "too many links"),
            (folder.path().join("missing"), "not in the store"),
        ] {
            let error = name(&store, &path).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(path.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn what_the_database_does_not_know_is_refused() {
        let demo = DemoStore::create(None, &mut |_| {}).unwrap();
        let mut database = Database::open(&demo.store).unwrap();
        let (known, unknown) = (&demo.paths[0], format!("/nix/store/{NAME}"));
        let typed = demo.store.real_store.join(known.base_name());
        assert_eq!(resolve(&demo.store, &mut database, &typed).unwrap(), *known);
        let error = resolve(&demo.store, &mut database, Path::new(&unknown)).unwrap_err().to_string();
        assert!(error.contains(&unknown) && error.contains("db.sqlite"), "{error}");
    }
}
