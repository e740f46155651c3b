//! Cache directories that narwire fills itself, looked at from outside: by the narinfos and files that are in them.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::nix::hash_part;
use super::{Connection, Narwire, Reply, Store, assert_same_bytes, eventually, text};

/// A directory for encoded NARs that goes away with the value.
pub struct CacheDir {
    path: PathBuf,
    _temporary: TempDir,
}

/// A path and what Nix makes of it.
#[derive(Clone)]
pub struct Nar {
    pub path: String,
    pub bytes: Vec<u8>,
}

impl Nar {
    pub fn of(store: &Store, path: &str) -> Self {
        Self { path: path.to_owned(), bytes: store.dump(path) }
    }

    pub fn hash_part(&self) -> &str {
        hash_part(&self.path)
    }

    /// Every URL that a narinfo of this path ever gave out, uncompressed.
    pub fn targets(&self) -> [String; 3] {
        let (out, hash) = (self.hash_part(), sha256(&self.bytes));
        let hash = hash.trim_start_matches("sha256:");
        [format!("/nar/{hash}.nar?hash={out}"), format!("/nar/{out}-{hash}.nar"), format!("/nar/{out}.nar")]
    }
}

/// A narinfo as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NarInfo(String);

impl CacheDir {
    /// Where nothing is yet.
    pub fn new() -> Self {
        Self::within(tempfile::tempdir().unwrap())
    }

    /// The same on a file system of the caller's choice.
    pub fn within(temporary: TempDir) -> Self {
        Self { path: temporary.path().join("cache"), _temporary: temporary }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The flags with which narwire keeps encoded NARs here, and never reads them again by itself.
    pub fn flags(&self, policy: &str, format: &str) -> Vec<String> {
        self.flags_with_scrub(policy, format, "0")
    }

    /// The same, with damage looked for all the time at this many bytes a second.
    pub fn flags_with_scrub(&self, policy: &str, format: &str, rate: &str) -> Vec<String> {
        let place = ["--cache-dir", text(&self.path), "--cache-min-free", "0"];
        let ways = ["--cache-policy", policy, "--cache-format", format, "--scrub-rate", rate];
        place.iter().chain(&ways).map(|&flag| flag.to_owned()).collect()
    }

    /// The directory as Nix names it.
    pub fn url(&self) -> String {
        format!("file://{}", text(&self.path))
    }

    /// The names of all encoded NARs, sorted.
    pub fn nars(&self) -> Vec<String> {
        names(&self.path.join("nar"))
    }

    /// The names of files that were found damaged.
    pub fn quarantined(&self) -> Vec<String> {
        names(&self.path.join(".narwire/quarantine"))
    }

    /// Of all narinfos.
    pub fn hash_parts(&self) -> Vec<String> {
        hash_parts(&self.path)
    }

    /// Whatever somebody finds here who is told nothing else is right.
    #[track_caller]
    pub fn assert_sound(&self) {
        assert_sound(&self.path);
    }
}

/// In this cache directory every narinfo names a file that is there and is the NAR that the narinfo promises.
#[track_caller]
pub fn assert_sound(cache: &Path) {
    for hash_part in hash_parts(cache) {
        NarInfo::read(cache, &hash_part).nar(cache);
    }
}

/// Of all narinfos in a cache directory.
pub fn hash_parts(cache: &Path) -> Vec<String> {
    let names = names(cache).into_iter();
    names.filter_map(|name| name.strip_suffix(".narinfo").map(str::to_owned)).collect()
}

/// The names in a folder, sorted; none where no folder is.
pub fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names: BTreeSet<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.into_iter().collect()
}

impl NarInfo {
    pub fn read(cache: &Path, hash_part: &str) -> Self {
        Self(fs::read_to_string(cache.join(format!("{hash_part}.narinfo"))).unwrap())
    }

    /// The NAR in this cache directory, after everything that the narinfo says was found true.
    #[track_caller]
    pub fn nar(&self, cache: &Path) -> Vec<u8> {
        let file = fs::read(cache.join(self.field("URL")));
        self.decode(&file.unwrap_or_else(|error| panic!("{error}: of {self:?}")))
    }

    #[track_caller]
    pub fn field(&self, name: &str) -> &str {
        let found = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.unwrap_or_else(|| panic!("no {name} in\n{}", self.0))
    }

    /// All values of a field that there may be several of.
    pub fn fields(&self, name: &str) -> Vec<&str> {
        let values = self.0.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        values.collect()
    }

    pub fn is_compressed(&self) -> bool {
        self.field("Compression") == "zstd"
    }

    /// The NAR in a file, after everything that the narinfo says of the two was found true.
    #[track_caller]
    pub fn decode(&self, file: &[u8]) -> Vec<u8> {
        assert_eq!(
            (self.field("FileSize"), self.field("FileHash")),
            (&*file.len().to_string(), &*sha256(file))
        );
        let nar = match self.field("Compression") {
            "none" => file.to_vec(),
            "zstd" => unpack(file),
            "xz" => read_whole(liblzma::read::XzDecoder::new(file)),
            "bzip2" => read_whole(bzip2::read::BzDecoder::new(file)),
            "gzip" => read_whole(flate2::read::GzDecoder::new(file)),
            "br" => read_whole(brotli_decompressor::Decompressor::new(file, 1 << 16)),
            other => panic!("{other}"),
        };
        assert_eq!((self.field("NarSize"), self.field("NarHash")), (&*nar.len().to_string(), &*sha256(&nar)));
        nar
    }
}

#[track_caller]
fn read_whole(mut decoder: impl Read) -> Vec<u8> {
    let mut nar = Vec::new();
    decoder.read_to_end(&mut nar).unwrap();
    nar
}

/// A hash as narinfos write it.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", nix_base32::to_nix_base32(&Sha256::digest(bytes)))
}

/// What a zstd file holds. It has to be one frame: some readers stop behind the first.
#[track_caller]
pub fn unpack(file: &[u8]) -> Vec<u8> {
    let mut rest = file;
    let mut decoder = zstd::stream::Decoder::with_buffer(&mut rest).unwrap().single_frame();
    let nar = read_whole(&mut decoder);
    drop(decoder);
    assert_eq!(rest.len(), 0, "nothing behind the frame");
    nar
}

impl Narwire {
    pub fn narinfo(&self, path: &str) -> NarInfo {
        narinfo(&mut self.connect(), path)
    }

    /// A number that the server counts; `None` while it has nothing to count, or when it has ended.
    pub fn count(&self, name: &str) -> Option<u64> {
        let metrics = self.try_get("/metrics")?.expect(200);
        let line = metrics.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map(|number| number.parse().unwrap())
    }

    /// Waits until the narinfos of all these paths name compressed NARs.
    pub fn wait_until_compressed<'a>(&self, nars: impl IntoIterator<Item = &'a Nar>) {
        let mut connection = self.connect();
        for Nar { path, .. } in nars {
            eventually(&format!("{path} is there as zstd\n{}", self.output()), || {
                narinfo(&mut connection, path).is_compressed()
            });
        }
    }

    /// Every path comes right, byte for byte: as its narinfo says, and by all URLs that it ever had.
    #[track_caller]
    pub fn assert_serves(&self, nars: &[Nar]) {
        let mut connection = self.connect();
        for nar in nars {
            let narinfo = narinfo(&mut connection, &nar.path);
            let promised = connection.get(&format!("/{}", narinfo.field("URL"))).expect(200);
            // What was evicted since is encoded anew, perhaps otherwise, so the file's hash is not looked at here.
            let found = if narinfo.is_compressed() { unpack(&promised.body) } else { promised.body };
            assert_same_bytes(&found, &nar.bytes, &nar.path);
            for target in nar.targets() {
                let reply = connection.get(&target).expect(200);
                assert_same_bytes(&reply.body, &nar.bytes, &target);
                assert_eq!(reply.field("accept-ranges"), Some("bytes"));
                assert_compressed(&connection.get(&compressed(&target)).expect(200), &nar.bytes);
            }
        }
    }
}

fn narinfo(connection: &mut Connection, path: &str) -> NarInfo {
    NarInfo(connection.get(&format!("/{}.narinfo", hash_part(path))).expect(200).text().to_owned())
}

/// The same URL with `.zst`.
pub fn compressed(target: &str) -> String {
    target.replace(".nar", ".nar.zst")
}

/// A compressed NAR, from a file or made on the way: only a file can be resumed, for it stays the same.
#[track_caller]
pub fn assert_compressed(reply: &Reply, wanted: &[u8]) {
    assert_eq!(reply.field("content-type"), Some("application/x-nix-nar"));
    assert_eq!(reply.field("content-encoding"), None, "the narinfo has said how it is compressed");
    let is_file = reply.field("content-length").is_some();
    assert_eq!(reply.field("accept-ranges").is_some(), is_file, "{:?}", reply.fields);
    assert_eq!(reply.field("etag").is_some(), is_file, "{:?}", reply.fields);
    assert_same_bytes(&unpack(&reply.body), wanted, "a compressed NAR");
}
