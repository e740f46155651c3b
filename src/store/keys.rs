//! Reading secret key files. Each refusal names the file and what mends it: a server that starts unsigned, or with a
//! key that everybody can read, is worse than one that does not start.
//!
//! What was read is kept in a page of its own, which is neither swapped out nor part of a memory dump.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use memmap2::{Advice, MmapMut};
use zeroize::{Zeroize as _, ZeroizeOnDrop, Zeroizing};

use crate::codec::signature::{SecretKey, SeedMemory, SignatureError};
use crate::limits::SECRET_KEY_FILE_LEN_MAX;

/// The keys that sign, as all threads share them. They can be replaced while the server runs.
#[derive(Debug)]
pub struct SigningKeys(RwLock<Arc<[SecretKey]>>);

impl SigningKeys {
    /// These, until others are put in their place.
    pub fn new(keys: Arc<[SecretKey]>) -> Arc<Self> {
        Arc::new(Self(RwLock::new(keys)))
    }

    /// Those that sign at the moment.
    pub fn current(&self) -> Arc<[SecretKey]> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on `keys` sign, and no others.
    pub fn replace(&self, keys: Arc<[SecretKey]>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }
}

/// Why a secret key file was refused.
#[derive(Debug, thiserror::Error)]
pub enum SecretKeyFileError {
    /// The system refused to open or read it.
    #[error(
        "cannot read secret key file {}: {source}; it must be readable by the user this program runs as \
         (with systemd: LoadCredential=)",
        path.display()
    )]
    Unreadable {
        /// The key file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is a folder, a device or the like.
    #[error("secret key file {} is not a regular file", path.display())]
    NotRegular {
        /// The key file.
        path: PathBuf,
    },
    /// Everybody on the machine has some access to it.
    #[error(
        "secret key file {} is open to everybody (mode {mode:04o}): run `chmod {:04o} {}`",
        path.display(), mode & 0o770, path.display()
    )]
    OpenToEverybody {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It does not hold a key.
    #[error(
        "secret key file {}: {source}; a key is made by `narwire key generate NAME` or `nix key generate-secret`",
        path.display()
    )]
    Malformed {
        /// The key file.
        path: PathBuf,
        /// What is wrong with the text.
        source: SignatureError,
    },
}

/// Reads the secret key in `path`. Links are followed; the file behind them must be closed to others than owner and
/// group.
pub fn read_secret_key(path: &Path) -> Result<SecretKey, SecretKeyFileError> {
    let unreadable = |source| SecretKeyFileError::Unreadable { path: path.to_path_buf(), source };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(SecretKeyFileError::NotRegular { path: path.to_path_buf() });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(SecretKeyFileError::OpenToEverybody { path: path.to_path_buf(), mode });
    }
    // Room for all of it at once: growing would leave copies of the key in freed memory.
    let mut text = Zeroizing::new(String::with_capacity(SECRET_KEY_FILE_LEN_MAX));
    let file = File::open(path).map_err(unreadable)?;
    file.take(SECRET_KEY_FILE_LEN_MAX as u64).read_to_string(&mut text).map_err(unreadable)?;
    let key = SecretKey::parse(&text)
        .map_err(|source| SecretKeyFileError::Malformed { path: path.to_path_buf(), source })?;
    let page = Page::new().map_err(unreadable)?;
    Ok(key.kept_in(|seed| page.with(seed)))
}

/// A page with nothing but a seed in it.
struct Page(MmapMut);

impl Page {
    /// Where the limit of locked memory is reached, or the kernel knows no such advice, the page is one like others.
    fn new() -> io::Result<Self> {
        let page = MmapMut::map_anon(size_of::<[u8; 32]>())?;
        let _ = page.lock();
        let _ = page.advise(Advice::DontDump);
        Ok(Self(page))
    }

    fn with(mut self, seed: &[u8; 32]) -> Arc<dyn SeedMemory> {
        self.0.copy_from_slice(seed);
        Arc::new(self)
    }
}

impl SeedMemory for Page {
    fn seed(&self) -> &[u8; 32] {
        self.0.first_chunk().expect("the mapping has the length of a seed")
    }
}

impl ZeroizeOnDrop for Page {}

impl Drop for Page {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::signature::KeyName;

    fn key() -> SecretKey {
        SecretKey::from_seed(KeyName::parse("cache.example.org-1").unwrap(), &[7; 32])
    }

    fn file(folder: &Path, text: &str, mode: u32) -> PathBuf {
        let path = folder.join("key");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn keys_closed_to_others_are_read() {
        for mode in [0o400, 0o600, 0o440, 0o640] {
            let folder = tempfile::tempdir().unwrap();
            let path = file(folder.path(), &format!("{}\n", *key().to_text()), mode);
            assert_eq!(read_secret_key(&path).unwrap().to_text(), key().to_text());
        }
    }

    #[test]
    fn keys_open_to_everybody_are_refused_with_the_mend() {
        for (mode, mend) in [(0o644, "0640"), (0o444, "0440"), (0o601, "0600"), (0o777, "0770")] {
            let folder = tempfile::tempdir().unwrap();
            let path = file(folder.path(), &key().to_text(), mode);
            let message = read_secret_key(&path).unwrap_err().to_string();
            assert!(message.contains(&format!("`chmod {mend} {}`", path.display())), "{message}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_by_name_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let secret = "cache.example.org-1:c2VjcmV0";
        for text in ["", secret, "no colon at all", &"x".repeat(10_000)] {
            let path = file(folder.path(), text, 0o600);
            let message = read_secret_key(&path).unwrap_err().to_string();
            assert!(message.contains(&path.display().to_string()), "{message}");
            assert!(!message.contains("c2VjcmV0"), "{message}");
            std::fs::remove_file(path).unwrap();
        }
        let absent = folder.path().join("absent");
        assert!(matches!(read_secret_key(&absent), Err(SecretKeyFileError::Unreadable { .. })));
        assert!(matches!(read_secret_key(folder.path()), Err(SecretKeyFileError::NotRegular { .. })));
    }
}
