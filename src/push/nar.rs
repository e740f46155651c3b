//! A store path as the file that a cache keeps: its NAR, compressed, compared with the database on the way.
//!
//! Nothing is sent before the whole tree was read and hashed, so what is damaged never leaves this machine, and the hash and the length
//! of the file are known before the first byte of it goes out.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use tempfile::{SpooledTempFile, spooled_tempfile_in};

use crate::codec::hash::{Sha256, Sha256Digest};
use crate::codec::narinfo::{Compression, PathInfo};
use crate::codec::zstd::{FrameEncoder, FrameError};
use crate::limits::PUSH_MEMORY_LEN_MAX;
use crate::store::StoreError;
use crate::store::walk::{self, Root};

/// How NARs are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Flat,
    /// Each is one frame of zstd, of this level.
    Zstd {
        /// From 1 to 19.
        level: i32,
    },
}

/// A NAR that is ready to be sent: in memory, or in a temporary file without a name, which goes away with the value and with the process.
#[derive(Debug)]
pub struct EncodedNar {
    file: SpooledTempFile,
    /// Hash of the file.
    pub file_hash: Sha256Digest,
    /// Length of the file. Bytes.
    pub file_size: u64,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The tree is not what was registered.
    #[error("it is damaged: {0}; `nix-store --repair-path` may mend it")]
    Damaged(&'static str),
    /// The tree cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The temporary file cannot be written.
    #[error("cannot write a temporary file in {folder}: {cause}; another folder is named with TMPDIR")]
    Spool {
        /// Where.
        folder: String,
        /// What the system says.
        cause: io::Error,
    },
    /// There is no memory.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Somebody wants it to end.
    #[error("interrupted")]
    Interrupted,
}

impl Encoding {
    /// How narinfos name it.
    pub fn compression(self) -> Compression {
        match self {
            Self::Flat => Compression::None,
            Self::Zstd { .. } => Compression::Zstd,
        }
    }
}

impl EncodedNar {
    /// Reads the tree at `root`, which must be what `info` says. A long NAR goes to a temporary file in `folder`. `go_on` is told how
    /// much of the NAR was read, in bytes, and may end it.
    pub fn new(
        root: &Root,
        info: &PathInfo,
        encoding: Encoding,
        folder: &Path,
        go_on: &dyn Fn(u64) -> bool,
    ) -> Result<Self, EncodeError> {
        let spooled = |cause| EncodeError::Spool { folder: folder.display().to_string(), cause };
        let mut file = spooled_tempfile_in(PUSH_MEMORY_LEN_MAX, folder);
        let mut encoder = match encoding {
            Encoding::Flat => None,
            Encoding::Zstd { level } => Some(FrameEncoder::new(level, Some(info.nar_size))?),
        };
        let (mut nar_hasher, mut nar_size) = (Sha256::new(), 0);
        let (mut file_hasher, mut file_size) = (Sha256::new(), 0);
        let mut frame = Vec::new();
        walk::read(root, &mut |bytes| {
            nar_size += bytes.len() as u64;
            // Compared first: the encoder was promised a length.
            if nar_size > info.nar_size {
                return Err(EncodeError::Damaged("its NAR is longer than the database says"));
            }
            nar_hasher.update(bytes);
            let encoded = match &mut encoder {
                None => bytes,
                Some(encoder) => {
                    frame.clear();
                    encoder.update(bytes, &mut frame)?;
                    file_hasher.update(&frame);
                    &frame[..]
                }
            };
            file_size += encoded.len() as u64;
            file.write_all(encoded).map_err(spooled)?;
            if go_on(nar_size) { Ok(()) } else { Err(EncodeError::Interrupted) }
        })?;
        if nar_size < info.nar_size {
            return Err(EncodeError::Damaged("its NAR is shorter than the database says"));
        }
        let nar_hash = nar_hasher.finish();
        if nar_hash != info.nar_hash {
            return Err(EncodeError::Damaged("its NAR has another hash than the database says"));
        }
        let Some(encoder) = encoder else {
            return Ok(Self { file, file_hash: nar_hash, file_size });
        };
        frame.clear();
        encoder.finish(&mut frame)?;
        file_hasher.update(&frame);
        file_size += frame.len() as u64;
        file.write_all(&frame).map_err(spooled)?;
        Ok(Self { file, file_hash: file_hasher.finish(), file_size })
    }

    /// The file, from its beginning.
    pub fn rewound(&mut self) -> io::Result<&mut (impl Read + use<>)> {
        self.file.seek(SeekFrom::Start(0))?;
        Ok(&mut self.file)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;
    use crate::codec::store_path::StorePath;
    use crate::store::db::Database;
    use crate::store::demo::DemoStore;

    struct Fixture {
        demo: DemoStore,
        spool: TempDir,
        info: PathInfo,
    }

    impl Fixture {
        /// One path: a folder of a short file and one of `len` bytes.
        fn new(len: usize) -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("tree")).unwrap();
            fs::write(folder.path().join("tree/short"), "short").unwrap();
            let long: Vec<u8> =
                (0..len).map(|index| index.wrapping_mul(index >> 3).to_ne_bytes()[0]).collect();
            fs::write(folder.path().join("tree/long"), long).unwrap();
            let demo = DemoStore::create(Some(folder.path()), &mut |_| {}).unwrap();
            let mut database = Database::open(&demo.store).unwrap();
            let info = database.path_info(demo.paths[0].hash_part()).unwrap().unwrap();
            Self { demo, spool: tempfile::tempdir().unwrap(), info }
        }

        fn path(&self) -> &StorePath {
            &self.demo.paths[0]
        }

        fn encode(&self, encoding: Encoding) -> Result<EncodedNar, EncodeError> {
            let root = walk::open_root(&self.demo.store, self.path()).unwrap().unwrap();
            EncodedNar::new(&root, &self.info, encoding, self.spool.path(), &|_| true)
        }

        /// Writes a file of the tree behind Nix's back.
        fn change(&self, name: &str, contents: &[u8]) {
            let file = self.demo.store.real_store.join(self.path().base_name()).join(name);
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
            fs::write(file, contents).unwrap();
        }
    }

    fn bytes(nar: &mut EncodedNar) -> Vec<u8> {
        let mut bytes = Vec::new();
        nar.rewound().unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn hash_and_length_are_those_of_the_file_in_memory_or_not() {
        for len in [10, 3 * PUSH_MEMORY_LEN_MAX] {
            let fixture = Fixture::new(len);
            for encoding in [Encoding::Flat, Encoding::Zstd { level: 1 }, Encoding::Zstd { level: 19 }] {
                let mut nar = fixture.encode(encoding).unwrap();
                let file = bytes(&mut nar);
                assert_eq!(bytes(&mut nar), file, "it can be sent again");
                assert_eq!((Sha256::digest(&file), file.len() as u64), (nar.file_hash, nar.file_size));
                let flat =
                    if encoding == Encoding::Flat { file } else { zstd::decode_all(&file[..]).unwrap() };
                assert_eq!(
                    (Sha256::digest(&flat), flat.len() as u64),
                    (fixture.info.nar_hash, fixture.info.nar_size)
                );
                assert_eq!(fs::read_dir(fixture.spool.path()).unwrap().count(), 0, "the file has no name");
            }
        }
    }

    #[test]
    fn what_is_damaged_is_never_encoded() {
        for (contents, word) in [
            (&b"shore"[..], "another hash"),
            (b"sho", "another hash"),
            (b"shorter is longer", "longer"),
            (b"", "shorter"),
        ] {
            let fixture = Fixture::new(10);
            fixture.change("short", contents);
            for encoding in [Encoding::Flat, Encoding::Zstd { level: 3 }] {
                let error = fixture.encode(encoding).unwrap_err();
                assert!(
                    matches!(error, EncodeError::Damaged(_)) && error.to_string().contains(word),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named_with_the_mend() {
        let fixture = Fixture::new(3 * PUSH_MEMORY_LEN_MAX);
        let root = walk::open_root(&fixture.demo.store, fixture.path()).unwrap().unwrap();
        let missing = Path::new("/nonexistent/folder");
        let error = EncodedNar::new(&root, &fixture.info, Encoding::Flat, missing, &|_| true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nonexistent/folder") && error.contains("TMPDIR"), "{error}");
    }

    #[test]
    fn whoever_does_not_want_to_wait_gets_none() {
        let fixture = Fixture::new(10);
        let root = walk::open_root(&fixture.demo.store, fixture.path()).unwrap().unwrap();
        let ended = EncodedNar::new(&root, &fixture.info, Encoding::Flat, fixture.spool.path(), &|_| false);
        assert!(matches!(ended, Err(EncodeError::Interrupted)));
    }
}
