//! The configuration file as one layer of settings: TOML whose keys are the names of the flags.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error as _};

use super::arguments::ServeArguments;

/// Why the file gives no settings.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Missing, a folder, or not permitted.
    #[error("cannot read the configuration file {}: {cause}", .path.display())]
    Unreadable {
        /// As typed.
        path: PathBuf,
        /// From open(2) or read(2), or that it is no UTF-8.
        #[source]
        cause: io::Error,
    },
    /// It was one, or a pipe.
    #[error("the configuration file {} is no file that could be read again", .0.display())]
    Gone(PathBuf),
    /// No TOML, an unknown key, or a value of the wrong kind.
    #[error("{}:{line}: {cause}", .path.display())]
    Malformed {
        /// As typed.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// In words, on one line.
        cause: String,
    },
}

/// Reads the file at `path`. Relative paths in it are relative to its own folder, so that its meaning does not depend
/// on where the server was started.
pub fn read(path: &Path) -> Result<ServeArguments, FileError> {
    let text = fs::read_to_string(path)
        .map_err(|cause| FileError::Unreadable { path: path.to_path_buf(), cause })?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<ServeArguments, FileError> {
    toml::from_str(text).map_err(|error| FileError::Malformed {
        path: path.to_path_buf(),
        line: error.span().map_or(1, |span| line_of(text, span.start)),
        cause: error.message().lines().collect::<Vec<_>>().join(": "),
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}

/// Deserializes text, or a list of texts, through the same `FromStr` that reads the flag.
pub(super) fn parsed<'de, D: Deserializer<'de>, C: FromTexts>(deserializer: D) -> Result<C, D::Error> {
    C::from_texts(C::Texts::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// What [`parsed`] can make: an optional value of one text, or a list of values of a list of texts.
pub(super) trait FromTexts: Sized {
    /// How the file writes it.
    type Texts: for<'de> Deserialize<'de>;
    /// The error is what the value's own parser says.
    fn from_texts(texts: Self::Texts) -> Result<Self, String>;
}

impl<T: FromStr<Err: fmt::Display>> FromTexts for Option<T> {
    type Texts = String;
    fn from_texts(text: String) -> Result<Self, String> {
        text.parse().map(Some).map_err(|error| format!("{text:?}: {error}"))
    }
}

impl<T: FromStr<Err: fmt::Display>> FromTexts for Vec<T> {
    type Texts = Vec<String>;
    fn from_texts(texts: Vec<String>) -> Result<Self, String> {
        texts.into_iter().map(|text| text.parse().map_err(|error| format!("{text:?}: {error}"))).collect()
    }
}

/// Any bytes as a configuration file: it gives settings, or an error that names a line that it has, on one line. Settings that are complete
/// are within their bounds, and the same file as a second layer changes nothing.
#[cfg(any(test, fuzzing))]
pub fn fuzz_file(data: &[u8]) {
    use super::settings::Settings;
    use crate::limits::{PRIORITY_MAX, WORKERS_MAX};
    let Ok(text) = str::from_utf8(data) else { return };
    let arguments = match parse(Path::new("narwire.toml"), text) {
        Ok(arguments) => arguments,
        Err(FileError::Malformed { line, cause, .. }) => {
            assert!((1..=1 + text.matches('\n').count()).contains(&line), "line {line}");
            assert!(!cause.contains('\n'), "{cause}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let settings = Settings::merge([arguments.clone()]);
    assert_eq!(Settings::merge([arguments.clone(), arguments]), settings);
    match settings {
        Ok(settings) => {
            assert!(!settings.listen.is_empty());
            assert!(settings.store.is_some() || !settings.directories.is_empty());
            assert!(settings.priority <= PRIORITY_MAX);
            assert!(settings.workers.is_none_or(|workers| (1..=WORKERS_MAX).contains(&workers)));
            assert!(settings.connections.all_max.is_none_or(|most| most > 0));
            assert!(settings.connections.per_address_max.is_none_or(|most| most > 0));
        }
        Err(error) => assert_eq!(error.to_string().lines().count(), 1, "{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::background::settings::{Format, Policy};
    use crate::cli::size::Size;
    use crate::server::config::SandboxMode;

    fn parse_text(text: &str) -> Result<ServeArguments, FileError> {
        parse(Path::new("narwire.toml"), text)
    }

    /// The file that is shipped beside the unit.
    const SHIPPED: &str = include_str!("../../systemd/narwire.toml");

    #[test]
    fn the_shipped_file_says_nothing_and_shows_every_setting() {
        use clap::CommandFactory as _;
        assert_eq!(parse_text(SHIPPED).unwrap(), ServeArguments::default());
        let settings = SHIPPED.lines().filter_map(|line| line.strip_prefix('#'));
        let settings: Vec<_> =
            settings.filter(|line| line.starts_with(|first: char| first.is_lowercase())).collect();
        for setting in &settings {
            assert_ne!(parse_text(setting).unwrap(), ServeArguments::default(), "{setting}");
        }
        let shown: Vec<_> =
            settings.iter().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key).collect();
        let serve = crate::cli::arguments::CommandLine::command();
        let flags = serve.get_arguments().filter(|flag| !flag.is_hide_set());
        let flags = flags.filter_map(|flag| flag.get_long()).filter(|flag| *flag != "config");
        for flag in flags.chain(["directories"]) {
            assert!(shown.contains(&flag), "{flag} is not in narwire.toml");
        }
    }

    #[test]
    fn every_key_is_the_name_of_a_flag() {
        let arguments = parse_text(
            r#"
            directories = ["/srv/a", "b"]
            listen = ["127.0.0.1:0", "unix:/run/narwire.sock"]
            store-dir = "/s"
            real-store = "/r"
            db = "/d"
            log-dir = "/l"
            with-store = true
            secret-key-file = ["/k"]
            priority = 7
            workers = 3
            drain-timeout = 9
            max-connections = 100
            max-connections-per-address = 10
            sandbox = "off"
            cache-dir = "n"
            cache-policy = "off"
            cache-format = "zstd"
            cache-level = 1
            cache-size = "10G"
            cache-min-free = "1G"
            scrub-rate = "0"
            upload-token-file = "t"
            allow-anonymous-upload = true
            private = true
            require-signature = ["cache.example.org-1:+HhLo9hZyQ767XG9WxBUYS/FQu1JPr79CTsEv0KNK9c="]
            upload-max-size = "3G"
            upload-min-free = "4G"
            trusted-proxy = ["10.0.0.7"]
            no-browse = true
            log-level = "warn"
            log-format = "journald"
            access-log = "full"
            without = ["sendfile"]
            "#,
        )
        .unwrap();
        let expected = ServeArguments {
            directories: ["/srv/a", "b"].map(PathBuf::from).to_vec(),
            port: None,
            listen: vec!["127.0.0.1:0".parse().unwrap(), "unix:/run/narwire.sock".parse().unwrap()],
            store_dir: Some("/s".parse().unwrap()),
            real_store: Some("/r".into()),
            db: Some("/d".into()),
            log_dir: Some("/l".into()),
            with_store: true,
            secret_key_file: vec!["/k".into()],
            priority: Some(7),
            workers: Some(3),
            drain_timeout: Some(9),
            max_connections: Some(100),
            max_connections_per_address: Some(10),
            sandbox: Some(SandboxMode::Off),
            cache_dir: Some("n".into()),
            service_cache_dir: None,
            cache_policy: Some(Policy::Off),
            cache_format: Some(Format::Zstd),
            cache_level: Some(1),
            cache_size: Some(Size(10 << 30)),
            cache_min_free: Some(Size(1 << 30)),
            scrub_rate: Some(Size(0)),
            upload_token_file: Some("t".into()),
            allow_anonymous_upload: true,
            private: true,
            require_signature: vec![
                "cache.example.org-1:+HhLo9hZyQ767XG9WxBUYS/FQu1JPr79CTsEv0KNK9c=".parse().unwrap(),
            ],
            upload_max_size: Some(Size(3 << 30)),
            upload_min_free: Some(Size(4 << 30)),
            trusted_proxy: vec!["10.0.0.7".parse().unwrap()],
            no_browse: true,
            log_level: Some("warn".parse().unwrap()),
            log_format: Some(crate::cli::log::LogFormat::Journald),
            access_log: Some("full".parse().unwrap()),
            config: None,
            without: vec!["sendfile".to_owned()],
            fault: None,
        };
        assert_eq!(arguments, expected);
        assert_eq!(parse_text("port = 80").unwrap().port, Some(80));
        assert_eq!(parse_text("").unwrap(), ServeArguments::default());
    }

    #[test]
    fn an_error_names_file_line_and_cause_on_one_line() {
        for (text, line, word) in [
            ("\n\nprot = 80\n", 3, "prot"),
            ("config = \"other.toml\"", 1, "config"),
            ("port = 80\nport = 81", 2, "duplicate"),
            ("# one\nport = 65536", 2, "65536"),
            ("listen = [\"127.0.0.1:1\"]\nlisten", 2, ""),
            ("priority = 1\nlisten = [\"nowhere\"]", 2, "ADDR:PORT"),
            ("listen = \"127.0.0.1:1\"", 1, "sequence"),
            ("\nstore-dir = \"relative\"", 2, "relative"),
            ("workers = -1", 1, "-1"),
            ("cache-size = \"10X\"", 1, "10G"),
            ("cache-policy = \"warm\"", 1, "off, hot or all"),
            ("require-signature = [\"cache-1:AAAA\"]", 1, "trusted-public-keys"),
            ("fault = \"kill@1\"", 1, "fault"),
            ("[serve]\nport = 1", 1, "serve"),
            ("=", 1, ""),
        ] {
            let error = parse_text(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("narwire.toml:{line}: ")), "{text:?}: {error}");
            assert!(error.contains(word), "{text:?}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn what_is_nested_without_end_is_refused() {
        for (open, close) in [("[", "]"), ("{ a = ", "}")] {
            let nested = format!("workers = {}0{}", open.repeat(100_000), close.repeat(100_000));
            assert!(matches!(parse_text(&nested), Err(FileError::Malformed { .. })));
        }
        assert!(parse_text(&format!("{}\n", "[a]".repeat(100_000))).is_err());
        assert!(parse_text(&format!("[{}]\n", vec!["a"; 100_000].join("."))).is_err());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let line = read(Path::new("/nonexistent/narwire.toml")).unwrap_err().to_string();
        assert!(line.contains("/nonexistent/narwire.toml"), "{line}");
    }
}
