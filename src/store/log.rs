//! Build logs: `<log_dir>/<first two characters>/<rest of the .drv's name>`, plain or with `.bz2` appended.
//!
//! Layout: `LogStore`, `src/libstore/local-fs-store.cc` of Nix. The derivation need not be valid, nor ever have been
//! here.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use bzip2::bufread::MultiBzDecoder;

use crate::codec::store_path::StorePath;
use crate::limits::LOG_LEN_MAX;
use crate::store::walk::{Root, RootKind, open_root_at};
use crate::store::{LocalStore, StoreError};

/// The log of one build.
#[derive(Debug)]
pub enum BuildLog {
    /// The log as it lies on disk.
    Plain {
        /// Opened for reading, at its start.
        file: OwnedFd,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// The text of a compressed log, at most [`LOG_LEN_MAX`] bytes.
    Decompressed(Vec<u8>),
}

/// Finds the build log of a derivation. `None` when there is none.
pub fn open(store: &LocalStore, derivation: &StorePath) -> Result<Option<BuildLog>, StoreError> {
    let name = derivation.base_name();
    // A base name starts with 32 ASCII characters.
    let (folder, rest) = name.split_at(2);
    let folder = store.log_dir.join(folder);
    if let Some((file, len_bytes)) = open_file(&folder.join(rest))? {
        return Ok(Some(BuildLog::Plain { file, len_bytes }));
    }
    let compressed = folder.join(format!("{rest}.bz2"));
    let Some((file, _)) = open_file(&compressed)? else { return Ok(None) };
    decompress(&compressed, file, LOG_LEN_MAX).map(BuildLog::Decompressed).map(Some)
}

/// Whether there is a build log of a derivation.
pub fn is_there(store: &LocalStore, derivation: &StorePath) -> bool {
    let (folder, rest) = derivation.base_name().split_at(2);
    let folder = store.log_dir.join(folder);
    let is_file = |path: &Path| path.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
    ["", ".bz2"].iter().any(|suffix| is_file(&folder.join(format!("{rest}{suffix}"))))
}

/// Opens a regular file that is no link.
fn open_file(path: &Path) -> Result<Option<(OwnedFd, u64)>, StoreError> {
    match open_root_at(path)? {
        None => Ok(None),
        Some(Root { descriptor, kind: RootKind::Regular { size, .. }, .. }) => Ok(Some((descriptor, size))),
        Some(_) => Err(StoreError::damaged(path.display().to_string(), "a build log must be a regular file")),
    }
}

fn decompress(path: &Path, file: OwnedFd, len_max: u64) -> Result<Vec<u8>, StoreError> {
    let damaged = |reason: &str| StoreError::damaged(path.display().to_string(), reason);
    let mut text = Vec::new();
    let mut reader = MultiBzDecoder::new(BufReader::new(File::from(file))).take(len_max.saturating_add(1));
    match reader.read_to_end(&mut text) {
        Ok(_) if text.len() as u64 > len_max => Err(damaged("longer than a build log may be")),
        Ok(_) => Ok(text),
        // What the decoder says of bytes that are no bzip2, or that stop in the middle: the build may still run.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
            Err(damaged("no bzip2 data"))
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(damaged("ends early")),
        Err(error) => Err(StoreError::io("read", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::codec::store_path::StoreDir;

    const DERIVATION: &str = "0000000000000000000000000000000a-alpha.drv";

    fn derivation() -> StorePath {
        StorePath::parse_base_name(DERIVATION).unwrap()
    }

    struct Fixture {
        folder: tempfile::TempDir,
        store: LocalStore,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = LocalStore::beneath(folder.path(), StoreDir::parse("/nix/store").unwrap());
            std::fs::create_dir_all(store.log_dir.join("00")).unwrap();
            Self { folder, store }
        }

        fn path(&self, suffix: &str) -> std::path::PathBuf {
            self.store.log_dir.join("00").join(format!("{}{suffix}", &DERIVATION[2..]))
        }

        fn open(&self) -> Result<Option<BuildLog>, StoreError> {
            open(&self.store, &derivation())
        }
    }

    fn compress(text: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_log_is_absent_plain_or_compressed() {
        let fixture = Fixture::new();
        assert!(fixture.open().unwrap().is_none() && !is_there(&fixture.store, &derivation()));
        std::fs::write(fixture.path(".bz2"), compress(b"compressed\n")).unwrap();
        assert!(is_there(&fixture.store, &derivation()));
        let Some(BuildLog::Decompressed(text)) = fixture.open().unwrap() else { panic!("no compressed log") };
        assert_eq!(text, b"compressed\n");
        std::fs::write(fixture.path(""), "plain\n").unwrap();
        let Some(BuildLog::Plain { file, len_bytes }) = fixture.open().unwrap() else {
            panic!("no plain log")
        };
        assert_eq!((io::read_to_string(File::from(file)).unwrap().as_str(), len_bytes), ("plain\n", 6));
    }

    #[test]
    fn a_log_without_its_folder_is_absent() {
        let fixture = Fixture::new();
        std::fs::remove_dir_all(&fixture.store.log_dir).unwrap();
        assert!(fixture.open().unwrap().is_none());
    }

    #[test]
    fn a_log_that_is_damaged_or_cut_anywhere_is_an_error() {
        let fixture = Fixture::new();
        let compressed = compress(b"a build log\n");
        for len in 0..compressed.len() {
            std::fs::write(fixture.path(".bz2"), &compressed[..len]).unwrap();
            let error = fixture.open().unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "{len}: {error}");
        }
        std::fs::write(fixture.path(".bz2"), "no bzip2 data").unwrap();
        assert!(matches!(fixture.open(), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_log_that_grows_without_end_is_refused() {
        let fixture = Fixture::new();
        let path = fixture.path(".bz2");
        std::fs::write(&path, compress(&[b'x'; 1000])).unwrap();
        let decompress_to = |len_max| decompress(&path, File::open(&path).unwrap().into(), len_max);
        assert_eq!(decompress_to(1000).unwrap().len(), 1000);
        let error = decompress_to(999).unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
    }

    #[test]
    fn links_and_folders_are_no_logs() {
        let fixture = Fixture::new();
        std::fs::write(fixture.folder.path().join("secret"), "secret").unwrap();
        symlink(fixture.folder.path().join("secret"), fixture.path("")).unwrap();
        assert!(matches!(fixture.open(), Err(StoreError::Damaged { .. })));
        std::fs::remove_file(fixture.path("")).unwrap();
        std::fs::create_dir(fixture.path("")).unwrap();
        assert!(matches!(fixture.open(), Err(StoreError::Damaged { .. })));
    }
}
