//! The environment as one layer of settings. The variables are passed in, so that a test never changes its own.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

use super::arguments::ServeArguments;

/// What the environment says.
#[derive(Debug, Default, PartialEq)]
pub struct Environment {
    /// In the terms of the flags.
    pub arguments: ServeArguments,
    /// Where systemd put the credentials of this service (systemd.exec(5), LoadCredential=).
    pub credentials_directory: Option<PathBuf>,
}

/// A variable has a value that its flag would refuse as well.
#[derive(Debug, thiserror::Error)]
#[error("{variable}={value}: {cause}")]
pub struct EnvironmentError {
    variable: &'static str,
    value: String,
    cause: String,
}

impl Environment {
    /// Reads the variables that matter; an empty one counts as absent, since scripts cannot always unset.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, EnvironmentError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let mut secret_key_file: Vec<PathBuf> =
            set("NIX_SECRET_KEY_FILE").map(PathBuf::from).into_iter().collect();
        if let Some(list) = set("SIGN_KEY_PATHS") {
            secret_key_file.extend(list.to_string_lossy().split_whitespace().map(PathBuf::from));
        }
        let arguments = ServeArguments {
            port: parse("NIX_SERVE_PORT", set("NIX_SERVE_PORT"))?,
            store_dir: parse("NIX_SERVE_STORE_DIR", set("NIX_SERVE_STORE_DIR"))?,
            secret_key_file,
            service_cache_dir: set("CACHE_DIRECTORY").and_then(|list| first_of_list(&list)),
            ..ServeArguments::default()
        };
        Ok(Self { arguments, credentials_directory: set("CREDENTIALS_DIRECTORY").map(PathBuf::from) })
    }
}

/// systemd separates several directories of one service by colons; the first is the one that its unit names first.
fn first_of_list(list: &OsStr) -> Option<PathBuf> {
    let first = list.as_bytes().split(|&byte| byte == b':').find(|path| !path.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(first)))
}

fn parse<T: FromStr<Err: fmt::Display>>(
    variable: &'static str,
    value: Option<OsString>,
) -> Result<Option<T>, EnvironmentError> {
    let Some(value) = value else { return Ok(None) };
    let value = value.to_string_lossy().into_owned();
    match value.parse() {
        Ok(parsed) => Ok(Some(parsed)),
        Err(error) => Err(EnvironmentError { variable, cause: format!("{error:#}"), value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, EnvironmentError> {
        Environment::read(|name| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn an_empty_environment_says_nothing() {
        assert_eq!(read(&[]).unwrap(), Environment::default());
        let empty = [
            "NIX_SERVE_PORT",
            "NIX_SERVE_STORE_DIR",
            "NIX_SECRET_KEY_FILE",
            "SIGN_KEY_PATHS",
            "CACHE_DIRECTORY",
        ];
        assert_eq!(read(&empty.map(|name| (name, ""))).unwrap(), Environment::default());
    }

    #[test]
    fn every_variable_is_read() {
        let environment = read(&[
            ("NIX_SERVE_PORT", "80"),
            ("NIX_SERVE_STORE_DIR", "/gnu/store"),
            ("NIX_SECRET_KEY_FILE", "/a file"),
            ("SIGN_KEY_PATHS", " /b  /c "),
            ("CACHE_DIRECTORY", "/var/cache/narwire:/var/cache/other"),
            ("CREDENTIALS_DIRECTORY", "/run/credentials/narwire.service"),
        ])
        .unwrap();
        assert_eq!(environment.arguments.port, Some(80));
        assert_eq!(environment.arguments.store_dir, Some("/gnu/store".parse().unwrap()));
        assert_eq!(environment.arguments.secret_key_file, ["/a file", "/b", "/c"].map(PathBuf::from));
        assert_eq!(environment.arguments.service_cache_dir, Some("/var/cache/narwire".into()));
        assert_eq!(environment.arguments.cache_dir, None);
        assert_eq!(environment.credentials_directory, Some("/run/credentials/narwire.service".into()));
    }

    #[test]
    fn a_bad_value_is_named_with_its_variable() {
        let line = read(&[("NIX_SERVE_PORT", "http")]).unwrap_err().to_string();
        assert!(line.starts_with("NIX_SERVE_PORT=http: "), "{line}");
        let line = read(&[("NIX_SERVE_STORE_DIR", "nix/store")]).unwrap_err().to_string();
        assert!(line.starts_with("NIX_SERVE_STORE_DIR=nix/store: "), "{line}");
    }
}
