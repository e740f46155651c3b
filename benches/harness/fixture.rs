//! What is served: a live store for narwire, and for nginx the same answers as files.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use narwire::codec::hash::{Sha256, Sha256Digest};
use narwire::codec::signature::{KeyName, SecretKey};
use narwire::codec::store_path::{StoreDir, StorePath};
use narwire::store::{LocalStore, walk};
use rusqlite::{Connection, Transaction};
use tempfile::TempDir;

use super::load::{fetch, request};
use super::server::{Kind, Server};

/// The NAR of a file of this length has 848 bytes.
const SMALL_FILE_LEN: usize = 736;
/// The NAR of many small files.
const FILES: usize = 20_000;
const FILES_PER_DIRECTORY: usize = 100;
const FILE_LEN: usize = 133;

/// Version 10 of Nix's database, as far as it matters here.
const SCHEMA: &str = "
pragma journal_mode = wal; pragma synchronous = off;
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

/// Everything on disk, removed at the end; and the requests for it.
pub struct Fixture {
    pub store: LocalStore,
    pub secret_key_file: PathBuf,
    /// nginx's root.
    pub flat: PathBuf,
    /// Requests for the narinfos of all generated paths.
    pub narinfos: Vec<Vec<u8>>,
    pub missing: Vec<Vec<u8>>,
    pub small: Nar,
    pub large: Nar,
    /// The same many files as several store paths, so that each can be the first to be asked for.
    pub many: Vec<Nar>,
    /// Where the files of the first of these are.
    pub many_files: PathBuf,
    root: TempDir,
}

/// A NAR that both servers have.
pub struct Nar {
    pub target: String,
    pub len_bytes: u64,
}

impl Nar {
    pub fn request(&self) -> Vec<Vec<u8>> {
        vec![request(&self.target, "")]
    }

    /// The file that nginx sends.
    pub fn file(&self, fixture: &Fixture) -> PathBuf {
        fixture.flat.join(self.target.split('?').next().unwrap_or_default())
    }

    /// A request for `len_bytes` at `percent` of the length.
    pub fn range(&self, percent: u64, len_bytes: u64) -> Vec<Vec<u8>> {
        let start = self.len_bytes / 100 * percent;
        let range = format!("Range: bytes={start}-{}\r\n", start + len_bytes - 1);
        vec![request(&self.target, &range)]
    }
}

impl Fixture {
    /// Makes `paths` registered paths without contents, and NARs, the large one of `large_mib` MiB.
    pub fn create(paths: usize, large_mib: usize, copies: usize) -> anyhow::Result<Self> {
        let root = tempfile::Builder::new().prefix("narwire-bench-").tempdir()?;
        let store = LocalStore::beneath(root.path(), StoreDir::parse("/nix/store")?);
        let flat = root.path().join("flat");
        fs::create_dir_all(&store.real_store)?;
        fs::create_dir_all(flat.join("nar"))?;
        let database_folder = store.database.parent().context("a database lies in a folder")?;
        fs::create_dir_all(database_folder)?;
        fs::write(database_folder.join("schema"), "10")?;
        let secret_key_file = root.path().join("secret-key");
        let key = SecretKey::from_seed(KeyName::parse("bench-1")?, &[1; 32]);
        fs::write(&secret_key_file, key.to_text().as_bytes())?;
        fs::set_permissions(&secret_key_file, fs::Permissions::from_mode(0o600))?;

        let (small, large) = (path("small"), path("large"));
        fs::write(store.real_store.join(small.base_name()), noise(SMALL_FILE_LEN, 1))?;
        write_large(&store.real_store.join(large.base_name()), large_mib)?;
        let many: Vec<_> = (0..copies).map(|copy| path(&format!("many-{copy}"))).collect();
        write_many(&store.real_store, &many)?;

        let mut connection = Connection::open(&store.database)?;
        connection.execute_batch(SCHEMA)?;
        let transaction = connection.transaction()?;
        for paths in [std::slice::from_ref(&small), std::slice::from_ref(&large), &many] {
            let tree = walk::open_root(&store, &paths[0])?.context("a tree that was just written")?;
            let (hash, len_bytes) = walk::hash(&tree)?;
            for path in paths {
                register(&transaction, path, hash, len_bytes, None)?;
            }
        }
        let generated =
            (0..paths).map(|index| generate(&transaction, index)).collect::<anyhow::Result<Vec<_>>>()?;
        transaction.commit()?;
        drop(connection);

        let narinfos = generated.iter().map(|path| request(&narinfo_target(path), "")).collect();
        let missing = vec![request(&narinfo_target(&path("missing")), "")];
        let nar = |path: &StorePath| Nar { target: narinfo_target(path), len_bytes: 0 };
        let (small, large) = (nar(&small), nar(&large));
        let many_files = store.real_store.join(many[0].base_name());
        let many = many.iter().map(nar).collect();
        let mut fixture =
            Self { store, secret_key_file, flat, narinfos, missing, small, large, many, many_files, root };
        fixture.flatten(&generated)?;
        Ok(fixture)
    }

    /// The folder of everything.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Has narwire answer every request once, and keeps the answers as files for nginx: the same bytes.
    fn flatten(&mut self, generated: &[StorePath]) -> anyhow::Result<()> {
        let server = Server::start(Kind::Narwire, self, 1, "0")?;
        let socket = TcpStream::connect(server.address)?;
        socket.set_nodelay(true)?;
        for (path, request) in generated.iter().zip(&self.narinfos) {
            fs::write(self.flat.join(narinfo_target(path)), fetch(&socket, request, 200)?)?;
        }
        for nar in [&mut self.small, &mut self.large].into_iter().chain(&mut self.many) {
            let narinfo = String::from_utf8(fetch(&socket, &request(&nar.target, ""), 200)?)?;
            let url = narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).context("no URL")?;
            url.clone_into(&mut nar.target);
            let file = self.flat.join(url.split('?').next().unwrap_or_default());
            let bytes = fetch(&socket, &request(&nar.target, ""), 200)?;
            nar.len_bytes = bytes.len() as u64;
            fs::write(file, bytes)?;
        }
        Ok(())
    }
}

fn narinfo_target(path: &StorePath) -> String {
    format!("{}.narinfo", path.hash_part())
}

#[expect(clippy::expect_used, reason = "the names are this file's own")]
fn path(name: &str) -> StorePath {
    let hash_part = nix_base32::to_nix_base32(&Sha256::digest(name.as_bytes()).0[..20]);
    StorePath::parse_base_name(&format!("{hash_part}-{name}")).expect("a valid name")
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

/// Registers a path with up to twelve references to earlier ones.
fn generate(transaction: &Transaction<'_>, index: usize) -> anyhow::Result<StorePath> {
    let name = format!("package-{index}-1.{}.{}", index % 17, index % 5);
    let (path, deriver) = (path(&name), path(&format!("{name}.drv")));
    let hash = Sha256::digest(path.base_name().as_bytes());
    let len_bytes = 1_000_000 + 8 * index as u64;
    let row = register(transaction, &path, hash, len_bytes, Some(format!("/nix/store/{deriver}")))?;
    let mut statement =
        transaction.prepare_cached("insert or ignore into Refs (referrer, reference) values (?1, ?2)")?;
    for step in 0..i64::try_from(index % 13)? {
        statement.execute((row, (row - 1 - step * step).max(1)))?;
    }
    Ok(path)
}

/// Bytes that no disk and no file system makes shorter.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn write_large(path: &Path, mib: usize) -> anyhow::Result<()> {
    let mut file = fs::File::create(path)?;
    for seed in 1..=mib {
        file.write_all(&noise(1 << 20, seed as u64))?;
    }
    Ok(())
}

/// Writes the files of the first path; the others are links to them, and cost no disk.
fn write_many(real_store: &Path, paths: &[StorePath]) -> anyhow::Result<()> {
    for path in paths {
        for directory in 0..FILES / FILES_PER_DIRECTORY {
            let name = format!("directory-{directory:04}");
            let folder = real_store.join(path.base_name()).join(&name);
            fs::create_dir_all(&folder)?;
            for file in 0..FILES_PER_DIRECTORY {
                let seed = (directory * FILES_PER_DIRECTORY + file + 1) as u64;
                let file = format!("file-{file:04}");
                if path == &paths[0] {
                    fs::write(folder.join(file), noise(FILE_LEN, seed))?;
                } else {
                    let original = real_store.join(paths[0].base_name());
                    fs::hard_link(original.join(&name).join(&file), folder.join(file))?;
                }
            }
        }
    }
    Ok(())
}
