//! `narwire key generate`: a key pair in the format of Nix.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::arguments::KeyGenerateArguments;
use crate::codec::signature::{KeyName, SecretKey, SignatureError};

/// Why there is no new key.
#[derive(Debug, thiserror::Error)]
pub enum KeyGenerateError {
    /// Nix separates name and key by a colon, and keys by spaces.
    #[error("{name:?} cannot name a key ({cause}); such as cache.example.org-1")]
    Name {
        /// As typed.
        name: String,
        /// What is wrong with it.
        cause: SignatureError,
    },
    /// A key that exists may be in use.
    #[error("{} exists and is never overwritten: choose another file", .0.display())]
    Exists(PathBuf),
    /// The file cannot be written.
    #[error("cannot write {}: {cause}", .path.display())]
    Unwritable {
        /// As typed.
        path: PathBuf,
        /// From open(2), write(2) or fsync(2).
        cause: io::Error,
    },
    /// The kernel gives no random bytes.
    #[error("the system gives no random bytes: {0}")]
    NoEntropy(getrandom::Error),
}

/// Makes a key, writes the secret one into the new file if there is to be one, and returns what to print.
pub fn generate(arguments: &KeyGenerateArguments) -> Result<String, KeyGenerateError> {
    let key = random_key(&arguments.name)?;
    let public = key.public();
    let Some(path) = &arguments.output else {
        return Ok(format!(
            "secret key, for a file that only the server can read (--secret-key-file):\n{}\n\
             public key, for trusted-public-keys of the clients:\n{public}\n",
            &*key.to_text()
        ));
    };
    write_new(path, &key.to_text()).map_err(|cause| match cause.kind() {
        io::ErrorKind::AlreadyExists => KeyGenerateError::Exists(path.clone()),
        _ => KeyGenerateError::Unwritable { path: path.clone(), cause },
    })?;
    Ok(format!("{public}\n"))
}

/// A key of 32 bytes from getrandom(2).
pub fn random_key(name: &str) -> Result<SecretKey, KeyGenerateError> {
    let key_name =
        KeyName::parse(name).map_err(|cause| KeyGenerateError::Name { name: name.to_owned(), cause })?;
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).map_err(KeyGenerateError::NoEntropy)?;
    Ok(SecretKey::from_seed(key_name, &seed))
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::store::keys::read_secret_key;

    fn arguments(name: &str, output: Option<PathBuf>) -> KeyGenerateArguments {
        KeyGenerateArguments { name: name.to_owned(), output }
    }

    #[test]
    fn the_file_is_private_readable_back_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let printed = generate(&arguments("cache-1", Some(path.clone()))).unwrap();
        assert!(printed.starts_with("cache-1:"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(printed, format!("{}\n", read_secret_key(&path).unwrap().public()));

        let before = fs::read(&path).unwrap();
        let error = generate(&arguments("cache-1", Some(path.clone()))).unwrap_err();
        assert!(matches!(error, KeyGenerateError::Exists(_)), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn without_a_file_both_keys_are_printed_and_belong_together() {
        let printed = generate(&arguments("cache-1", None)).unwrap();
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(SecretKey::parse(lines[1]).unwrap().public().to_string(), lines[3]);
    }

    #[test]
    fn two_keys_differ() {
        let key = || generate(&arguments("cache-1", None)).unwrap();
        assert_ne!(key(), key());
    }

    #[test]
    fn what_nix_could_not_read_is_no_name() {
        for name in ["", "a:b", "a b", "a\nb"] {
            let error = generate(&arguments(name, None)).unwrap_err();
            assert!(matches!(error, KeyGenerateError::Name { .. }), "{name:?}: {error}");
        }
    }
}
