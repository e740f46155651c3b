//! A live store on disk, made by and by; beside it, the same answers as files, for servers of files.

use std::fs;
use std::io::{BufWriter, Write as _};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use narwire::codec::hash::{Sha256, Sha256Digest};
use narwire::codec::signature::{KeyName, SecretKey};
use narwire::codec::store_path::{StoreDir, StorePath};
use narwire::store::LocalStore;
use narwire::store::walk::{self, Kept};
use rusqlite::{Connection, Transaction};
use tempfile::TempDir;

use super::load::{connect, fetch, fetch_into, request};
use super::server::{Kind, Server};
use super::trees;

/// Version 10 of Nix's database, as far as it matters here.
const SCHEMA: &str = "
pragma journal_mode = wal;
create table ValidPaths (id integer primary key autoincrement not null, path text unique not null, hash text not null,
  registrationTime integer not null, deriver text, narSize integer, ultimate integer, sigs text, ca text);
create table Refs (referrer integer not null, reference integer not null, primary key (referrer, reference),
  foreign key (referrer) references ValidPaths(id) on delete cascade,
  foreign key (reference) references ValidPaths(id) on delete restrict);
create index IndexReferrer on Refs(referrer);
create index IndexReference on Refs(reference);
create table DerivationOutputs (drv integer not null, id text not null, path text not null, primary key (drv, id),
  foreign key (drv) references ValidPaths(id) on delete cascade);
create index IndexDerivationOutputs on DerivationOutputs(path);
";
/// A database that nobody needs tomorrow is not waited for; its pages stay in memory while it is filled.
const FILLING: &str = "pragma synchronous = off; pragma foreign_keys = off; pragma cache_size = -1000000;";
/// Trees up to this length get their true hash: all that are to be encoded, for what has another hash is damaged. Bytes.
const HASHED_LEN_MAX: u64 = 4 << 30;
/// Where sites are made: in the build directory, on a real disk, as stores are.
const FOLDER: &str = env!("CARGO_TARGET_TMPDIR");
/// A file system in memory.
const SHARED_MEMORY: &str = "/dev/shm";
/// Uploads take less. Bytes.
const UPLOADS_LEN_MAX: u64 = 4 << 30;

/// Everything on disk, removed at the end.
pub struct Site {
    pub store: LocalStore,
    pub secret_key_file: PathBuf,
    /// The root of nginx, and a cache directory for narwire: narinfos and NARs as files.
    pub flat: PathBuf,
    /// Where one narwire at a time keeps NARs encoded.
    pub nar_cache: PathBuf,
    root: Folder,
    uploads: Folder,
}

/// A folder that goes away with the value, and with this process.
struct Folder {
    path: TempDir,
    /// Comes after the folder, which is normally gone when it ends.
    _sweeper: Sweeper,
}

/// A process that removes a folder when this process is gone, however that came: it waits for the end of its input.
struct Sweeper(Child);

/// A NAR that is served.
#[derive(Clone)]
pub struct Nar {
    pub path: StorePath,
    /// Of a very long NAR it is the hash of the name of its tree, for no client here checks it.
    pub hash: Sha256Digest,
    pub len_bytes: u64,
}

impl AsRef<Site> for Site {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl Site {
    /// An empty store.
    pub fn create() -> anyhow::Result<Self> {
        let folder = Folder::create(Path::new(FOLDER))?;
        let uploads = Folder::create(uploads_parent())?;
        let root = folder.path.path();
        let store = LocalStore::beneath(root, StoreDir::parse("/nix/store")?);
        let flat = root.join("flat");
        let nar_cache = root.join("nar-cache");
        fs::create_dir_all(&store.real_store)?;
        fs::create_dir_all(flat.join("nar"))?;
        fs::write(flat.join("nix-cache-info"), "StoreDir: /nix/store\n")?;
        let database_folder = store.database.parent().context("a database lies in a folder")?;
        fs::create_dir_all(database_folder)?;
        fs::write(database_folder.join("schema"), "10")?;
        let secret_key_file = root.join("secret-key");
        let key = SecretKey::from_seed(KeyName::parse("bench-1")?, &[1; 32]);
        fs::write(&secret_key_file, key.to_text().as_bytes())?;
        fs::set_permissions(&secret_key_file, fs::Permissions::from_mode(0o600))?;
        Connection::open(&store.database)?.execute_batch(SCHEMA)?;
        Ok(Self { store, secret_key_file, flat, nar_cache, root: folder, uploads })
    }

    /// The folder of everything.
    pub fn root(&self) -> &Path {
        self.root.path.path()
    }

    /// What is uploaded comes to folders in this one: in memory where there is enough, so that no disk is measured.
    pub fn uploads(&self) -> &Path {
        self.uploads.path.path()
    }

    /// Where the tree of a NAR is.
    pub fn tree(&self, nar: &Nar) -> PathBuf {
        self.store.real_store.join(nar.path.base_name())
    }

    /// The file that servers of files send for a NAR.
    pub fn file(&self, nar: &Nar) -> PathBuf {
        self.flat.join(nar.target().split('?').next().unwrap_or_default())
    }

    /// The file of a compressed NAR that narwire keeps.
    pub fn encoded(&self, nar: &Nar) -> PathBuf {
        let hash = nix_base32::to_nix_base32(&nar.hash.0);
        self.nar_cache.join(format!("nar/{}-{hash}.nar.zst", nar.path.hash_part()))
    }

    /// Registers paths that have no contents, with up to twelve references each to earlier ones.
    pub fn add_paths(&self, numbers: Range<usize>) -> anyhow::Result<Vec<StorePath>> {
        self.fill(|transaction| numbers.map(|number| register_generated(transaction, number)).collect())
    }

    /// Registers `copies` paths with the same tree: `write` makes the first, the others are links to its files. So each
    /// can be the first to be asked for, and they cost no disk.
    pub fn add_tree(
        &self,
        name: &str,
        copies: usize,
        write: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<Nar>> {
        let paths: Vec<_> = (0..copies).map(|copy| store_path(&format!("{name}-{copy}"))).collect();
        let first = self.store.real_store.join(paths[0].base_name());
        write(&first)?;
        for path in &paths[1..] {
            trees::link(&first, &self.store.real_store.join(path.base_name()))?;
        }
        let root = walk::open_root(&self.store, &paths[0])?.context("a tree that was just written")?;
        let layout =
            walk::layout_while(&|| true, &root, Kept::Nothing)?.context("a walk that nobody stops")?;
        let len_bytes = layout.known_len_bytes();
        // What is kept, in memory or encoded, is compared with its hash. Of the rest nobody reads it, and it would take its time.
        let hash = match len_bytes {
            ..HASHED_LEN_MAX => walk::hash(&root)?.0,
            _ => Sha256::digest(name.as_bytes()),
        };
        self.fill(|transaction| {
            paths.iter().try_for_each(|path| register(transaction, path, hash, len_bytes, None).map(drop))
        })?;
        Ok(paths.into_iter().map(|path| Nar { path, hash, len_bytes }).collect())
    }

    /// Has narwire answer once, and keeps the answers as files: the same bytes.
    pub fn flatten(&self, narinfos: &[StorePath], nars: &[&Nar]) -> anyhow::Result<()> {
        let server = Server::start(Kind::Narwire, self, 1, "0")?;
        let socket = connect(server.address)?;
        let narinfos = narinfos.iter().chain(nars.iter().map(|nar| &nar.path));
        for target in narinfos.map(narinfo_target) {
            fs::write(self.flat.join(&target), fetch(&socket, &request(&target, ""), 200)?)?;
        }
        for nar in nars {
            let mut file = BufWriter::new(fs::File::create(self.file(nar))?);
            fetch_into(&socket, &request(&nar.target(), ""), 200, &mut file)?;
            file.flush()?;
        }
        Ok(())
    }

    fn fill<T>(&self, work: impl FnOnce(&Transaction<'_>) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut connection = Connection::open(&self.store.database)?;
        connection.execute_batch(FILLING)?;
        let transaction = connection.transaction()?;
        let result = work(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }
}

impl Nar {
    /// What is asked for.
    pub fn target(&self) -> String {
        let hash = nix_base32::to_nix_base32(&self.hash.0);
        format!("nar/{hash}.nar?hash={}", self.path.hash_part())
    }

    /// The request, as a list of one.
    pub fn request(&self) -> Vec<Vec<u8>> {
        vec![request(&self.target(), "")]
    }

    /// What is asked for by a client that was told of the compressed NAR.
    pub fn compressed_target(&self) -> String {
        self.target().replace(".nar", ".nar.zst")
    }

    /// A request for `len_bytes` at `percent` of the length.
    pub fn range(&self, percent: u64, len_bytes: u64) -> Vec<Vec<u8>> {
        let start = self.len_bytes / 100 * percent;
        let range = format!("Range: bytes={start}-{}\r\n", start + len_bytes - 1);
        vec![request(&self.target(), &range)]
    }
}

pub fn narinfo_target(path: &StorePath) -> String {
    format!("{}.narinfo", path.hash_part())
}

/// A request for the narinfo of each path.
pub fn narinfo_requests(paths: &[StorePath]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| request(&narinfo_target(path), "")).collect()
}

#[expect(clippy::expect_used, reason = "the names are the benches' own")]
pub fn store_path(name: &str) -> StorePath {
    let hash_part = nix_base32::to_nix_base32(&Sha256::digest(name.as_bytes()).0[..20]);
    StorePath::parse_base_name(&format!("{hash_part}-{name}")).expect("a valid name")
}

impl Folder {
    fn create(parent: &Path) -> anyhow::Result<Self> {
        let path = tempfile::Builder::new().prefix("narwire-bench-").tempdir_in(parent)?;
        let sweeper = Sweeper::start(path.path())?;
        Ok(Self { path, _sweeper: sweeper })
    }
}

fn uploads_parent() -> &'static Path {
    let memory = Path::new(SHARED_MEMORY);
    let free = rustix::fs::statvfs(memory).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    if free < UPLOADS_LEN_MAX { Path::new(FOLDER) } else { memory }
}

impl Sweeper {
    fn start(folder: &Path) -> anyhow::Result<Self> {
        // Control-C reaches it as well and must not end it. Servers that are being ended may still write.
        let script = r#"trap "" HUP INT TERM; cat; rm -rf "$0" || { sleep 1; rm -rf "$0"; }"#;
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(command.spawn().context("cannot run sh")?))
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        // Waiting closes its input first.
        let _ = self.0.wait();
    }
}

fn register(
    transaction: &Transaction<'_>,
    path: &StorePath,
    hash: Sha256Digest,
    len_bytes: u64,
    deriver: Option<String>,
) -> anyhow::Result<i64> {
    let mut statement = transaction.prepare_cached(
        "insert into ValidPaths (path, hash, registrationTime, narSize, deriver) values (?1, ?2, 1700000000, ?3, ?4)",
    )?;
    let hash = format!("sha256:{}", hash.to_hex());
    Ok(statement.insert((format!("/nix/store/{path}"), hash, len_bytes.cast_signed(), deriver))?)
}

fn register_generated(transaction: &Transaction<'_>, number: usize) -> anyhow::Result<StorePath> {
    let name = format!("package-{number}-1.{}.{}", number % 17, number % 5);
    let (path, deriver) = (store_path(&name), store_path(&format!("{name}.drv")));
    let hash = Sha256::digest(path.base_name().as_bytes());
    let len_bytes = 1_000_000 + 8 * number as u64;
    let row = register(transaction, &path, hash, len_bytes, Some(format!("/nix/store/{deriver}")))?;
    let mut statement =
        transaction.prepare_cached("insert or ignore into Refs (referrer, reference) values (?1, ?2)")?;
    for step in 0..i64::try_from(number % 13)? {
        statement.execute((row, (row - 1 - step * step).max(1)))?;
    }
    Ok(path)
}
