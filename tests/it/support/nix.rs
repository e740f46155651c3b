//! Real Nix: three versions of it, and stores of their own in folders of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{Narwire, run, run_failing, text};

/// What every Nix here is told. The builder of a store in a folder runs where it sees only that folder, so the
/// machine's own tools are shown to it; nothing is ever fetched from the network.
const CONFIGURATION: &str = "\
experimental-features = nix-command
substituters =
build-users-group =
sandbox = false
sandbox-paths = /bin /usr /lib /lib64?
";

/// One version of Nix, with a home, a configuration and a cache that nobody else has used.
pub struct Nix {
    tree: Option<PathBuf>,
    home: TempDir,
}

impl Nix {
    /// The Nix that the machine has installed; 2.8 on Debian 12.
    pub fn installed() -> Self {
        Self::with_tree(None)
    }

    /// Nix 2.26 of Debian 13, unpacked by `tests/run`. It decodes compressed answers itself.
    pub fn newer() -> Self {
        Self::unpacked(0)
    }

    /// Nix 2.34 or newer, likewise. It leaves decoding to libcurl, and writes URLs and JSON in newer ways.
    pub fn newest() -> Self {
        Self::unpacked(1)
    }

    /// Every version, oldest first.
    pub fn all() -> [Self; 3] {
        [Self::installed(), Self::newer(), Self::newest()]
    }

    fn unpacked(index: usize) -> Self {
        let trees = std::env::var_os("NARWIRE_TEST_NIX_TREES")
            .map_or_else(default_trees, |list| std::env::split_paths(&list).collect());
        let tree = trees.into_iter().nth(index).expect("NARWIRE_TEST_NIX_TREES names two trees");
        assert!(tree.join("usr/bin/nix").exists(), "no Nix in {}: tests/run puts it there", tree.display());
        Self::with_tree(Some(tree))
    }

    /// The same with one more line of configuration.
    pub fn configured(self, line: &str) -> Self {
        fs::write(self.home.path().join("nix.conf"), format!("{CONFIGURATION}{line}\n")).unwrap();
        self
    }

    /// The same version with a home that nobody else has used.
    pub fn again(&self) -> Self {
        Self::with_tree(self.tree.clone())
    }

    /// What it tells servers of itself.
    pub fn write_netrc(&self, text: &str) {
        fs::write(self.home.path().join("netrc"), text).unwrap();
    }

    fn with_tree(tree: Option<PathBuf>) -> Self {
        let home = tempfile::Builder::new().prefix("nix-home-").tempdir().unwrap();
        fs::write(home.path().join("nix.conf"), CONFIGURATION).unwrap();
        Self { tree, home }
    }

    /// `nix`, `nix-store`, …; killed if it hangs.
    pub fn command(&self, tool: &str) -> Command {
        let mut command = Command::new("timeout");
        command.env_clear().arg("120");
        match &self.tree {
            None => command.arg(tool),
            Some(tree) => {
                // A build would make Nix start itself again, to ask for helpers, and not find its libraries.
                command.env("NIX_CONFIG", "build-hook =");
                let libraries = tree.join("usr/lib/x86_64-linux-gnu");
                command.arg(libraries.join("ld-linux-x86-64.so.2")).args(["--argv0", tool]);
                command.arg("--library-path").arg(libraries).arg(tree.join("usr/bin/nix"))
            }
        };
        let home = self.home.path();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("NIX_REMOTE", "");
        for variable in
            ["HOME", "NIX_CONF_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"]
        {
            command.env(variable, home);
        }
        command
    }

    /// Runs to success; gives what was printed.
    pub fn run(&self, tool: &str, arguments: &[&str]) -> String {
        run(self.command(tool).args(arguments))
    }

    /// Runs to failure; gives what was printed.
    pub fn run_failing(&self, tool: &str, arguments: &[&str]) -> String {
        run_failing(self.command(tool).args(arguments))
    }
}

fn default_trees() -> Vec<PathBuf> {
    let roots = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-roots");
    ["trixie", "forky"].map(|suite| roots.join(suite)).to_vec()
}

/// A Nix store in a folder. Its paths say `/nix/store` and its files are beneath the folder, unless it is made by
/// [`Store::in_place`].
pub struct Store {
    pub nix: Nix,
    /// The store as Nix's `--store` names it.
    uri: String,
    directory: String,
    root: PathBuf,
    _temporary: Option<TempDir>,
}

impl Store {
    /// An empty store that goes away with the value.
    pub fn new(nix: Nix) -> Self {
        let temporary = temporary_folder();
        Self { _temporary: Some(temporary.1), ..Self::at(nix, temporary.0) }
    }

    /// A store that stays.
    pub fn at(nix: Nix, root: PathBuf) -> Self {
        Self { nix, uri: text(&root).to_owned(), directory: "/nix/store".to_owned(), root, _temporary: None }
    }

    /// An empty store whose paths say where its files really are, like the store of a whole machine. Only in such a
    /// store does the garbage collector recognise what a process holds open.
    pub fn in_place(nix: Nix) -> Self {
        let (root, temporary) = temporary_folder();
        let root_text = text(&root);
        let directory = format!("{root_text}/nix/store");
        let uri =
            format!("local?store={directory}&state={root_text}/nix/var/nix&log={root_text}/nix/var/log/nix");
        Self { nix, uri, directory, root, _temporary: Some(temporary) }
    }

    /// Where a store path's files are.
    pub fn real(&self, path: &str) -> PathBuf {
        self.root.join("nix/store").join(path.strip_prefix(&self.directory).unwrap().trim_start_matches('/'))
    }

    /// Everything in the store that has the name of a store path, sorted.
    pub fn listed(&self) -> Vec<String> {
        let entries = fs::read_dir(self.real(&self.directory)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names = names.filter(|name| {
            name.as_bytes().get(32) == Some(&b'-')
                && Path::new(name).extension().is_none_or(|extension| extension != "lock")
        });
        let mut paths: Vec<String> = names.map(|name| format!("{}/{name}", self.directory)).collect();
        paths.sort();
        paths
    }

    /// `nix-store --store …` with more arguments.
    pub fn nix_store(&self, arguments: &[&str]) -> String {
        self.nix.run("nix-store", &[&["--store", &self.uri], arguments].concat())
    }

    /// Adds a file or folder; gives the store path.
    pub fn add(&self, source: &Path) -> String {
        self.nix_store(&["--add", text(source)])
    }

    /// Adds a file with these contents.
    pub fn add_bytes(&self, name: &str, contents: &[u8]) -> String {
        let scratch = tempfile::tempdir().unwrap();
        let source = scratch.path().join(name);
        fs::write(&source, contents).unwrap();
        self.add(&source)
    }

    /// Adds a folder of so many files of so many random bytes.
    pub fn add_folder(&self, name: &str, files: usize, len: usize) -> String {
        let scratch = tempfile::tempdir().unwrap();
        let source = scratch.path().join(name);
        fs::create_dir(&source).unwrap();
        let mut random = super::Random(files as u64 * 31 + len as u64);
        for index in 0..files {
            fs::write(source.join(format!("file-{index:05}")), random.bytes(len)).unwrap();
        }
        self.add(&source)
    }

    /// The store as Nix's own flags name it.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The derivation that an expression is.
    pub fn instantiate(&self, expression: &str) -> String {
        self.nix.run("nix-instantiate", &["--store", &self.uri, "--expr", expression])
    }

    /// Builds all outputs of a derivation.
    pub fn build(&self, derivation: &str, options: &[&str]) -> Vec<String> {
        self.nix_store(&[&["-r", derivation], options].concat()).lines().map(str::to_owned).collect()
    }

    /// The NAR as Nix itself writes it.
    pub fn dump(&self, path: &str) -> Vec<u8> {
        let output = self.nix.command("nix-store").arg("--dump").arg(self.real(path)).output().unwrap();
        assert!(output.status.success(), "{}", super::printed(&output));
        output.stdout
    }

    /// The 52 characters of the NAR's hash, from the database.
    pub fn nar_hash(&self, path: &str) -> String {
        let hash = self.nix_store(&["--query", "--hash", path]);
        hash.strip_prefix("sha256:").unwrap_or_else(|| panic!("{hash}")).to_owned()
    }

    pub fn delete(&self, path: &str) {
        self.nix_store(&["--delete", path]);
    }

    pub fn database(&self) -> PathBuf {
        self.root.join("nix/var/nix/db/db.sqlite")
    }

    /// The flags with which narwire serves this store.
    pub fn flags(&self) -> Vec<String> {
        let (real, database) = (self.real(&self.directory), self.database());
        ["--store-dir", &self.directory, "--real-store", text(&real), "--db", text(&database)]
            .map(str::to_owned)
            .to_vec()
    }

    pub fn serve(&self) -> Narwire {
        Narwire::start(self.flags())
    }

    pub fn serve_signed(&self, key: &Key) -> Narwire {
        Narwire::start([self.flags(), key.flags()].concat())
    }

    /// `nix copy` into this store, signatures checked.
    pub fn copy_from(&self, url: &str, trusted: &Key, paths: &[&str]) -> String {
        self.nix.run("nix", &[&self.copy_arguments(url, trusted)[..], paths].concat())
    }

    /// `nix copy` into this store, which must fail; gives the complaint.
    pub fn copy_from_failing(&self, url: &str, trusted: &Key, paths: &[&str]) -> String {
        self.nix.run_failing("nix", &[&self.copy_arguments(url, trusted)[..], paths].concat())
    }

    fn copy_arguments<'a>(&'a self, url: &'a str, trusted: &'a Key) -> [&'a str; 8] {
        ["copy", "--from", url, "--to", &self.uri, "--option", "trusted-public-keys", &trusted.public]
    }

    /// `nix-store -r` with this cache as the substituter, signatures checked.
    pub fn substitute(&self, url: &str, trusted: &Key, path: &str) -> String {
        let options = ["--option", "substituters", url, "--option", "trusted-public-keys", &trusted.public];
        self.nix_store(&[&["-r", path], &options[..]].concat())
    }

    /// Nix itself reads every file of this store again and compares hashes.
    pub fn verify(&self, trusted: &Key) {
        let options = ["--all", "--option", "trusted-public-keys", &trusted.public];
        self.nix.run("nix", &[&["store", "verify", "--store", &self.uri], &options[..]].concat());
    }
}

/// Where a store that goes away can be, open to every user of the machine.
fn temporary_folder() -> (PathBuf, TempDir) {
    let temporary = tempfile::Builder::new().prefix("nix-store-").tempdir().unwrap();
    fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755)).unwrap();
    (temporary.path().join("root"), temporary)
}

/// A pair of signing keys, made by Nix.
pub struct Key {
    pub secret_file: PathBuf,
    pub public: String,
}

impl Key {
    /// The pair in a folder, made if it is not there.
    pub fn in_folder(folder: &Path, name: &str) -> Self {
        let (secret_file, public_file) =
            (folder.join(format!("{name}.secret")), folder.join(format!("{name}.public")));
        if !public_file.exists() {
            let arguments = ["--generate-binary-cache-key", name, text(&secret_file), text(&public_file)];
            Nix::installed().run("nix-store", &arguments);
        }
        let public = fs::read_to_string(&public_file).unwrap().trim().to_owned();
        Self { secret_file, public }
    }

    pub fn flags(&self) -> Vec<String> {
        vec!["--secret-key-file".to_owned(), text(&self.secret_file).to_owned()]
    }
}

/// The 32 characters that name a store path.
pub fn hash_part(path: &str) -> &str {
    &path.rsplit('/').next().unwrap()[..32]
}
