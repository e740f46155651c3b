//! A throw-away store made of ordinary files, with a real Nix database, so that the server can be tried without Nix.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use tempfile::TempDir;

use crate::codec::content_address::path_of_tree;
use crate::codec::hash::Sha256Digest;
use crate::codec::store_path::{StoreDir, StorePath};
use crate::limits::{NAR_DEPTH_MAX, STORE_NAME_LEN_MAX};
use crate::store::db::SCHEMA_VERSION;
use crate::store::walk;
use crate::store::{DatabaseFault, LocalStore, StoreError};

/// A store in a temporary folder, removed when this is dropped.
#[derive(Debug)]
pub struct DemoStore {
    /// Where it is.
    pub store: LocalStore,
    /// Its paths, in the order of the folder's names.
    pub paths: Vec<StorePath>,
    root: TempDir,
}

/// What happened to one entry of the folder.
#[derive(Debug)]
pub enum Progress<'a> {
    /// It is in the store.
    Added {
        /// Its name in the folder.
        name: &'a str,
        /// The store path it became.
        path: &'a StorePath,
        /// Length of its NAR in bytes.
        nar_size: u64,
    },
    /// It is not: a NAR cannot hold it, or it cannot be read.
    Skipped {
        /// Its name in the folder.
        name: &'a str,
        /// Why.
        reason: &'a StoreError,
    },
}

impl DemoStore {
    /// Copies each entry of `folder`, or of a few generated ones, into a new store.
    pub fn create(folder: Option<&Path>, report: &mut dyn FnMut(Progress<'_>)) -> Result<Self, StoreError> {
        let temporary = std::env::temp_dir();
        let root = tempfile::Builder::new()
            .prefix("narwire-demo-")
            .tempdir()
            .map_err(|error| StoreError::io("create a folder in", temporary, error))?;
        let store_dir = StoreDir::parse("/nix/store")
            .map_err(|error| StoreError::damaged("the default store directory", error))?;
        let store = LocalStore::beneath(root.path(), store_dir);
        let mut demo = Self { store, paths: Vec::new(), root };
        let connection = demo.create_places()?;
        let samples = demo.root.path().join("samples");
        if folder.is_none() {
            write_samples(&samples).map_err(|error| StoreError::io("write", &samples, error))?;
        }
        demo.add_entries(&connection, folder.unwrap_or(&samples), report)?;
        if folder.is_none() {
            fs::remove_dir_all(&samples).map_err(|error| StoreError::io("remove", &samples, error))?;
        }
        Ok(demo)
    }

    /// The folder that `nix --store <root>` takes.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Makes the directories and the empty database that Nix makes for a new store.
    fn create_places(&self) -> Result<Connection, StoreError> {
        let state = self.root.path().join("nix/var/nix");
        let folders = ["db", "gcroots", "profiles", "temproots"].map(|name| state.join(name));
        for folder in folders.iter().chain([&self.store.real_store, &self.store.log_dir]) {
            fs::create_dir_all(folder).map_err(|error| StoreError::io("create", folder, error))?;
        }
        let schema = self.store.database.with_file_name("schema");
        fs::write(&schema, SCHEMA_VERSION).map_err(|error| StoreError::io("write", &schema, error))?;
        let created = Connection::open(&self.store.database).and_then(|connection| {
            connection.pragma_update(None, "journal_mode", "wal")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            connection.execute_batch(SCHEMA)?;
            Ok(connection)
        });
        created.map_err(|error| self.database_error(error))
    }

    fn add_entries(
        &mut self,
        connection: &Connection,
        folder: &Path,
        report: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), StoreError> {
        for path in sorted_entries(folder).map_err(|error| StoreError::io("read", folder, error))? {
            let name = store_path_name(path.file_name().unwrap_or_default().as_bytes());
            match self.add(connection, &path, &name) {
                Ok((path, nar_size)) => {
                    report(Progress::Added { name: &name, path: &path, nar_size });
                    self.paths.push(path);
                }
                // The database and the disk are ours; with them nothing that follows can succeed either.
                Err(error @ StoreError::Database { .. }) => return Err(error),
                Err(error) => report(Progress::Skipped { name: &name, reason: &error }),
            }
        }
        Ok(())
    }

    /// Copies one tree into the store and registers it.
    fn add(&self, connection: &Connection, from: &Path, name: &str) -> Result<(StorePath, u64), StoreError> {
        let incoming = self.store.real_store.join(".incoming");
        let copied = copy(from, &incoming, 0).and_then(|()| hash(&incoming));
        let (nar_hash, nar_size) = match copied {
            Ok(copied) => copied,
            Err(error) => {
                remove(&incoming);
                return Err(error);
            }
        };
        let path = path_of_tree(&self.store.store_dir, name, nar_hash)
            .map_err(|error| StoreError::damaged(name, error))?;
        let real = self.store.real_store.join(path.base_name());
        if fs::symlink_metadata(&real).is_ok() {
            // Two names of the folder can become one name of the store.
            remove(&incoming);
            return Ok((path, nar_size));
        }
        fs::rename(&incoming, &real).map_err(|error| StoreError::io("rename", &incoming, error))?;
        let registered = connection.execute(
            "insert into ValidPaths (path, hash, registrationTime, narSize, ca) values (?1, ?2, ?3, ?4, ?5)",
            (
                path.full(&self.store.store_dir),
                format!("sha256:{}", nar_hash.to_hex()),
                seconds_since_epoch(),
                nar_size.cast_signed(),
                format!("fixed:r:sha256:{}", nar_hash.to_nix32()),
            ),
        );
        registered.map_err(|error| self.database_error(error))?;
        Ok((path, nar_size))
    }

    fn database_error(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Database { path: self.store.database.clone(), fault: DatabaseFault::Other, source }
    }
}

impl Drop for DemoStore {
    fn drop(&mut self) {
        // The directories of store paths cannot be written, which stops everybody but root from emptying them.
        make_writable(&self.store.real_store);
    }
}

/// Version 10 of Nix's database (`src/libstore/schema.sql`).
pub(super) const SCHEMA: &str = "
create table ValidPaths (
    id integer primary key autoincrement not null,
    path text unique not null,
    hash text not null,
    registrationTime integer not null,
    deriver text,
    narSize integer,
    ultimate integer,
    sigs text,
    ca text
);
create table Refs (
    referrer integer not null,
    reference integer not null,
    primary key (referrer, reference),
    foreign key (referrer) references ValidPaths(id) on delete cascade,
    foreign key (reference) references ValidPaths(id) on delete restrict
);
create index IndexReferrer on Refs(referrer);
create index IndexReference on Refs(reference);
create trigger DeleteSelfRefs before delete on ValidPaths begin
    delete from Refs where referrer = old.id and reference = old.id;
end;
create table DerivationOutputs (
    drv integer not null,
    id text not null,
    path text not null,
    primary key (drv, id),
    foreign key (drv) references ValidPaths(id) on delete cascade
);
create index IndexDerivationOutputs on DerivationOutputs(path);
";

/// A name that every version of Nix takes: other characters become `-`, and a leading dot, which old ones refuse,
/// becomes `_`.
fn store_path_name(file_name: &[u8]) -> String {
    let mut name: String = String::from_utf8_lossy(file_name)
        .chars()
        .map(|letter| match letter {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '+' | '-' | '.' | '_' | '?' | '=' => letter,
            _ => '-',
        })
        .take(STORE_NAME_LEN_MAX)
        .collect();
    if name.starts_with('.') {
        name.replace_range(..1, "_");
    }
    name
}

fn hash(path: &Path) -> Result<(Sha256Digest, u64), StoreError> {
    let root = walk::open_root_at(path)?;
    let absent = || StoreError::io("open", path, io::ErrorKind::NotFound);
    walk::hash(&root.ok_or_else(absent)?)
}

/// Copies a tree without following links, in the form that Nix gives to store paths: modes 0444 and 0555, time 1.
fn copy(from: &Path, to: &Path, level: usize) -> Result<(), StoreError> {
    if level > NAR_DEPTH_MAX {
        return Err(StoreError::damaged(from.display().to_string(), "nested too deeply for a NAR"));
    }
    let failed = |operation, path: &Path, error| StoreError::io(operation, path, error);
    let metadata = fs::symlink_metadata(from).map_err(|error| failed("examine", from, error))?;
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(from).map_err(|error| failed("read link", from, error))?;
        symlink(target, to).map_err(|error| failed("create", to, error))?;
    } else if kind.is_file() {
        fs::copy(from, to).map_err(|error| failed("copy", from, error))?;
        let executable = metadata.permissions().mode() & 0o100 != 0;
        set_mode(to, if executable { 0o555 } else { 0o444 })?;
    } else if kind.is_dir() {
        fs::create_dir(to).map_err(|error| failed("create", to, error))?;
        for entry in sorted_entries(from).map_err(|error| failed("read", from, error))? {
            copy(&entry, &to.join(entry.file_name().unwrap_or_default()), level + 1)?;
        }
        set_mode(to, 0o555)?;
    } else {
        return Err(StoreError::damaged(from.display().to_string(), "a NAR cannot hold such a file"));
    }
    let one = Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = Timestamps { last_access: one, last_modification: one };
    rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| failed("set the time of", to, error.into()))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), StoreError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|error| StoreError::io("set the mode of", path, error))
}

fn sorted_entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Removes what is left of a copy. What cannot be removed goes with the whole temporary folder, or stays behind in
/// it.
fn remove(path: &Path) {
    make_writable(path);
    if fs::remove_dir_all(path).is_err() {
        let _ = fs::remove_file(path);
    }
}

/// Gives the owner write access to all directories of a tree as far as that succeeds.
fn make_writable(path: &Path) {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    if !is_directory || fs::set_permissions(path, fs::Permissions::from_mode(0o755)).is_err() {
        return;
    }
    for entry in sorted_entries(path).unwrap_or_default() {
        make_writable(&entry);
    }
}

/// A handful of files that show what a store path can be.
fn write_samples(folder: &Path) -> io::Result<()> {
    let hello = folder.join("hello-1.0");
    fs::create_dir_all(hello.join("bin"))?;
    fs::create_dir_all(hello.join("share/doc"))?;
    let program = hello.join("bin/hello");
    fs::write(&program, "#!/bin/sh\necho \"Hello from a store path.\"\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    symlink("hello", hello.join("bin/hi"))?;
    fs::write(hello.join("share/doc/README"), "Copied from the demonstration store.\n")?;

    fs::write(folder.join("note.txt"), "A store path can be a single file.\n")?;
    symlink("hello-1.0/bin/hello", folder.join("link"))?;

    let many = folder.join("many-small-files");
    fs::create_dir_all(&many)?;
    for number in 0..500 {
        fs::write(many.join(format!("file-{number:03}")), format!("This is file {number}.\n"))?;
    }
    let numbers: Vec<String> = (0..200_000).map(|number| number.to_string()).collect();
    fs::write(folder.join("numbers.txt"), numbers.join("\n"))
}

fn seconds_since_epoch() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::store::db::Database;

    /// Runs a Nix command; `None` when Nix is not installed.
    fn nix_store(arguments: &[&std::ffi::OsStr]) -> Option<std::process::Output> {
        match Command::new("nix-store").args(arguments).env_remove("NIX_REMOTE").output() {
            Ok(output) => Some(output),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("SKIPPED: nix-store is not installed");
                None
            }
            Err(error) => panic!("cannot run nix-store: {error}"),
        }
    }

    fn create(folder: Option<&Path>) -> DemoStore {
        DemoStore::create(folder, &mut |progress| {
            if let Progress::Skipped { name, reason } = progress {
                panic!("{name} was skipped: {reason}");
            }
        })
        .unwrap()
    }

    #[test]
    fn the_samples_are_valid_paths_of_a_database() {
        let demo = create(None);
        assert_eq!(demo.paths.len(), 5);
        let mut database = Database::open(&demo.store).unwrap();
        assert_eq!(database.count().unwrap(), 5);
        for path in &demo.paths {
            let info = database.path_info(path.hash_part()).unwrap().unwrap();
            let root = walk::open_root(&demo.store, path).unwrap().unwrap();
            assert_eq!(walk::hash(&root).unwrap(), (info.nar_hash, info.nar_size));
        }
    }

    #[test]
    fn dropping_removes_everything() {
        let demo = create(None);
        let root = demo.root().to_path_buf();
        assert!(root.exists());
        drop(demo);
        assert!(!root.exists());
    }

    #[test]
    fn nix_accepts_the_store() {
        let demo = create(None);
        let root = demo.root().as_os_str();
        let arguments = ["--store".as_ref(), root, "--verify".as_ref(), "--check-contents".as_ref()];
        let Some(output) = nix_store(&arguments) else { return };
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        assert!(!errors.contains("modified") && !errors.contains("disappeared"), "{errors}");
    }

    #[test]
    fn paths_are_those_that_nix_computes() {
        let folder = tempfile::tempdir().unwrap();
        write_samples(folder.path()).unwrap();
        let other = tempfile::tempdir().unwrap();
        let demo = create(Some(folder.path()));
        for path in &demo.paths {
            let source = folder.path().join(path.name());
            let arguments =
                ["--store".as_ref(), other.path().as_os_str(), "--add".as_ref(), source.as_os_str()];
            let Some(output) = nix_store(&arguments) else { return };
            let added = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            assert_eq!(
                added,
                path.full(&demo.store.store_dir),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        make_writable(other.path());
    }

    /// The example of a path computed by `nix-store --add` of a file `f` that holds "hello\n".
    #[test]
    fn a_known_path_is_computed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("f"), "hello\n").unwrap();
        let demo = create(Some(folder.path()));
        assert_eq!(demo.paths[0].base_name(), "xp0dpr9yz5h0fk5c5lpj7zzqjbdh3w8c-f");
    }

    #[test]
    fn what_no_nar_can_hold_is_skipped_and_the_rest_is_there() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "x").unwrap();
        fs::create_dir(folder.path().join("with-pipe")).unwrap();
        let pipe = folder.path().join("with-pipe/pipe");
        rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        let mut skipped = Vec::new();
        let demo = DemoStore::create(Some(folder.path()), &mut |progress| {
            if let Progress::Skipped { name, .. } = progress {
                skipped.push(name.to_owned());
            }
        })
        .unwrap();
        assert_eq!(skipped, ["with-pipe"]);
        assert_eq!(demo.paths.len(), 1);
        assert!(!demo.store.real_store.join(".incoming").exists());
    }

    #[test]
    fn links_are_copied_and_the_executable_bit_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("program"), "x").unwrap();
        fs::set_permissions(tree.join("program"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("/nowhere", tree.join("dangling")).unwrap();
        let demo = create(Some(folder.path()));
        let copied = demo.store.real_store.join(demo.paths[0].base_name());
        assert_eq!(fs::metadata(copied.join("program")).unwrap().permissions().mode() & 0o777, 0o555);
        assert_eq!(fs::read_link(copied.join("dangling")).unwrap(), Path::new("/nowhere"));
    }

    #[test]
    fn names_become_what_nix_takes() {
        assert_eq!(store_path_name(b"a b\xff(1)"), "a-b--1-");
        assert_eq!(store_path_name(b".git"), "_git");
        assert_eq!(store_path_name(&[b'x'; 300]).len(), STORE_NAME_LEN_MAX);
    }
}
