//! Directories that are uploaded to, and store paths that a client makes up.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;

use tempfile::TempDir;

use super::nar_cache::sha256;
use super::{Connection, Narwire, text};

/// A directory that everybody may upload to; it goes away with the value.
pub struct UploadDir(TempDir);

impl UploadDir {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The flags with which narwire takes uploads here from everybody.
    pub fn flags(&self) -> Vec<String> {
        let flags = [text(self.path()), "--allow-anonymous-upload", "--upload-min-free", "0"];
        flags.map(str::to_owned).to_vec()
    }

    /// Two workers, so that what comes to one can be asked of the other.
    pub fn serve(&self) -> Narwire {
        self.serve_with(&["--workers", "2"])
    }

    pub fn serve_with(&self, flags: &[&str]) -> Narwire {
        Narwire::start(self.flags().into_iter().chain(flags.iter().map(|&flag| flag.to_owned())))
    }

    /// All files that are or could be served, sorted.
    pub fn files(&self) -> Vec<String> {
        let mut files = files_beneath(self.path());
        files.retain(|file| !file.starts_with('.'));
        files
    }

    /// All files that are not: what is on its way, and what was left behind.
    pub fn staged(&self) -> Vec<String> {
        let mut files = files_beneath(self.path());
        files.retain(|file| file.starts_with('.'));
        files
    }
}

pub fn files_beneath(folder: &Path) -> Vec<String> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        // What is staged may go while it is looked at.
        let entries = fs::read_dir(next).into_iter().flatten().map_while(Result::ok);
        for path in entries.map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(text(path.strip_prefix(folder).unwrap()).to_owned());
            }
        }
    }
    files.sort();
    files
}

/// How a NAR is packed: as the narinfo, and as the name of the file says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    None,
    Xz,
    Bzip2,
    Gzip,
    Zstd,
}

impl Packing {
    pub const ALL: [Self; 5] = [Self::None, Self::Xz, Self::Bzip2, Self::Gzip, Self::Zstd];

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::None => ("none", ""),
            Self::Xz => ("xz", ".xz"),
            Self::Bzip2 => ("bzip2", ".bz2"),
            Self::Gzip => ("gzip", ""),
            Self::Zstd => ("zstd", ".zst"),
        }
    }

    pub fn pack(self, bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        match self {
            Self::None => packed.extend_from_slice(bytes),
            Self::Xz => {
                liblzma::read::XzEncoder::new(bytes, 1).read_to_end(&mut packed).map(drop).unwrap();
            }
            Self::Bzip2 => {
                let level = bzip2::Compression::fast();
                bzip2::read::BzEncoder::new(bytes, level).read_to_end(&mut packed).map(drop).unwrap();
            }
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(&mut packed, flate2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().map(drop).unwrap();
            }
            Self::Zstd => packed = zstd::encode_all(bytes, 1).unwrap(),
        }
        packed
    }
}

/// A store path as a client uploads it: one file of these contents.
#[derive(Clone)]
pub struct Package {
    /// Its base name.
    pub name: String,
    pub nar: Vec<u8>,
    /// The NAR as it is packed.
    pub file: Vec<u8>,
    pub references: Vec<String>,
    packing: Packing,
}

impl Package {
    /// `digit` makes its hash part.
    pub fn new(digit: char, contents: &[u8], packing: Packing) -> Self {
        let nar = nar_of(contents);
        let file = packing.pack(&nar);
        let name = format!("{}-package-{digit}", String::from(digit).repeat(32));
        Self { name, nar, file, references: Vec::new(), packing }
    }

    /// The same, referring to these.
    pub fn referring_to(mut self, references: &[&str]) -> Self {
        self.references = references.iter().map(|&reference| reference.to_owned()).collect();
        self.references.sort();
        self
    }

    pub fn hash_part(&self) -> &str {
        &self.name[..32]
    }

    pub fn nar_target(&self) -> String {
        let hash = sha256(&self.file);
        format!("/nar/{}.nar{}", hash.trim_start_matches("sha256:"), self.packing.names().1)
    }

    pub fn narinfo_target(&self) -> String {
        format!("/{}.narinfo", self.hash_part())
    }

    /// The narinfo as Nix writes it.
    pub fn narinfo(&self) -> String {
        let mut lines = format!("StorePath: /nix/store/{}\n", self.name);
        for (name, value) in [
            ("URL", &self.nar_target()[1..]),
            ("Compression", self.packing.names().0),
            ("FileHash", &sha256(&self.file)),
            ("FileSize", &self.file.len().to_string()),
            ("NarHash", &sha256(&self.nar)),
            ("NarSize", &self.nar.len().to_string()),
            ("References", &self.references.join(" ")),
        ] {
            writeln!(lines, "{name}: {value}").unwrap();
        }
        lines
    }

    /// The narinfo with another value in one of its lines.
    #[track_caller]
    pub fn narinfo_with(&self, name: &str, value: &str) -> String {
        let narinfo = self.narinfo();
        let line = narinfo.lines().find(|line| line.starts_with(&format!("{name}: "))).unwrap();
        narinfo.replace(line, &format!("{name}: {value}"))
    }

    pub fn put_nar(&self, connection: &mut Connection) {
        connection.put(&self.nar_target(), &self.file).expect(201);
    }

    /// Uploads it as Nix does.
    #[track_caller]
    pub fn put(&self, connection: &mut Connection) {
        self.put_nar(connection);
        connection.put(&self.narinfo_target(), self.narinfo()).expect(201);
    }
}

/// The NAR of one file.
pub fn nar_of(contents: &[u8]) -> Vec<u8> {
    let mut nar = Vec::new();
    let mut string = |bytes: &[u8]| {
        nar.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        nar.extend_from_slice(bytes);
        nar.resize(nar.len().next_multiple_of(8), 0);
    };
    for word in ["nix-archive-1", "(", "type", "regular", "contents"] {
        string(word.as_bytes());
    }
    string(contents);
    string(b")");
    nar
}
