//! Who one is at a cache: from its URL, a token file, or a netrc file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

use super::address::Address;
use super::netrc;
use crate::limits::CREDENTIALS_FILE_LEN_MAX;

/// Where Nix looks for logins.
const NETRC_DEFAULT: &str = "/etc/nix/netrc";

/// The value of the field `Authorization`.
pub type Authorization = Zeroizing<String>;

/// Why it is not known who one is. The messages never show a secret.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Two places name somebody.
    #[error("the URL has a password, and --token-file gives a token: leave one of them out")]
    Both,
    /// Missing, not permitted, no text.
    #[error("cannot read {}: {cause}", .path.display())]
    Unreadable {
        /// As typed.
        path: PathBuf,
        /// From open(2) or read(2), or that it is no UTF-8.
        cause: io::Error,
    },
    /// Empty, or with characters that no token has.
    #[error(
        "{} has no token in its last line: it is what `narwire token create` prints last, and nothing else",
        .0.display()
    )]
    NoToken(PathBuf),
}

/// Looks into the URL, then the token file, then the netrc file, which is Nix's own unless another is named. `None` when nobody says
/// anything.
///
/// A token is sent as `Bearer` (RFC 6750); for a server that knows names and passwords only, there are the other two.
pub fn find(
    address: &Address,
    token_file: Option<&Path>,
    netrc_file: Option<&Path>,
) -> Result<Option<Authorization>, CredentialsError> {
    if let Some(password) = &address.password {
        if token_file.is_some() {
            return Err(CredentialsError::Both);
        }
        return Ok(Some(basic(address.user.as_deref().unwrap_or_default(), password)));
    }
    if let Some(path) = token_file {
        let text = read(path)?;
        let token = last_line(&text).filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()));
        let token = token.ok_or_else(|| CredentialsError::NoToken(path.to_path_buf()))?;
        return Ok(Some(Zeroizing::new(format!("Bearer {token}"))));
    }
    let text = match netrc_file {
        Some(path) => read(path)?,
        // Nobody has said that it is there, and it may be for other users' eyes.
        None => match read(Path::new(NETRC_DEFAULT)) {
            Ok(text) => text,
            Err(_) => return Ok(None),
        },
    };
    let login = netrc::find(&text, &address.host, address.user.as_deref());
    Ok(login.map(|login| basic(&login.user, &login.password)))
}

fn basic(user: &str, password: &str) -> Authorization {
    let pair = Zeroizing::new(format!("{user}:{password}"));
    Zeroizing::new(format!("Basic {}", BASE64.encode(pair.as_bytes())))
}

fn last_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).rfind(|line| !line.is_empty())
}

fn read(path: &Path) -> Result<Zeroizing<String>, CredentialsError> {
    let unreadable = |cause| CredentialsError::Unreadable { path: path.to_path_buf(), cause };
    let mut text = Zeroizing::new(String::new());
    let file = File::open(path).map_err(unreadable)?;
    file.take(CREDENTIALS_FILE_LEN_MAX).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    fn file(text: &str) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn sent(
        url: &str,
        token: Option<&Path>,
        netrc: Option<&Path>,
    ) -> Result<Option<String>, CredentialsError> {
        let found = find(&url.parse().unwrap(), token, netrc)?;
        Ok(found.map(|authorization| authorization.to_string()))
    }

    #[test]
    fn the_url_comes_before_the_netrc_file_and_the_token_file_does_too() {
        let (_netrc_folder, netrc) = file("machine h login n password p\n");
        let (_token_folder, token) = file("\n# what is said first does not count\nci.c2VjcmV0\n\n");
        let netrc = Some(netrc.as_path());
        assert_eq!(sent("http://u:s@h", None, netrc).unwrap().unwrap(), "Basic dTpz");
        assert_eq!(sent("http://h", Some(&token), netrc).unwrap().unwrap(), "Bearer ci.c2VjcmV0");
        assert_eq!(sent("http://h", None, netrc).unwrap().unwrap(), "Basic bjpw");
        assert_eq!(sent("http://other", None, netrc).unwrap(), None);
        assert!(matches!(sent("http://u:s@h", Some(&token), netrc), Err(CredentialsError::Both)));
    }

    #[test]
    fn what_is_no_token_is_never_shown() {
        for text in ["", "\n \n", "secret token", "secret\ttoken", "sécret"] {
            let (_folder, path) = file(text);
            let error = sent("http://h", Some(&path), None).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()) && !error.contains("cret\ttok"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_file_that_was_named_has_to_be_there() {
        let missing = Path::new("/nonexistent/file");
        for (token, netrc) in [(Some(missing), None), (None, Some(missing))] {
            let error = sent("http://h", token, netrc).unwrap_err().to_string();
            assert!(error.contains("/nonexistent/file"), "{error}");
        }
    }
}
