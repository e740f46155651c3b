//! What a configuration needs after the start: a pure function of it.

use std::path::{Path, PathBuf};

use crate::server::config::{Config, SourceConfig};
use crate::store::folder_of;

/// What stays allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Files; all others cannot be opened.
    pub grants: Vec<Grant>,
    /// Whether a service manager wants to hear of the process.
    pub notifies: bool,
    /// Whether the process removes what it served, and first makes it removable.
    pub removes: bool,
}

/// A right to everything beneath a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The directory.
    pub path: PathBuf,
    /// What may be done there.
    pub right: Right,
}

/// What may be done beneath a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Files are read whose names are known.
    ReadFiles,
    /// Files and directories are read.
    Read,
    /// The same; and files and directories are made, written, renamed and removed.
    Write,
    /// Directories are read; files and directories are removed.
    Remove,
    /// Directories are removed, which are empty then.
    RemoveDirectories,
}

/// Where the C library counts the cores, so that as many threads can have memory of their own.
const CORES: &str = "/sys/devices/system/cpu";
/// Where glommio looks up what the disks are.
const DEVICES: &str = "/sys/devices";

impl Policy {
    /// What a server of this configuration needs, if there is a service manager that wants to hear of it.
    pub fn of(config: &Config, notifies: bool) -> Self {
        let mut grants = Vec::new();
        let mut grant = |path: &Path, right| grants.push(Grant { path: path.to_path_buf(), right });
        grant(Path::new(CORES), Right::ReadFiles);
        for source in &config.sources {
            match source {
                SourceConfig::Store(store) => {
                    grant(&store.real_store, Right::Read);
                    // Log and shared index too. To write there would be to write the database: what is in the log finds its way
                    // into it. The shared index is mapped before (`open_databases`), so SQLite has it as before.
                    grant(folder_of(&store.database), Right::Read);
                    grant(&store.log_dir, Right::Read);
                }
                SourceConfig::Directory(path) => grant(path, Right::Read),
            }
        }
        if let Some(nar_cache) = &config.nar_cache {
            grant(&nar_cache.directory, Right::Write);
            grant(Path::new(DEVICES), Right::Read);
        }
        if let Some(uploads) = &config.uploads {
            grant(&uploads.directory, Right::Write);
        }
        for place in &config.rule_places {
            grant(place, Right::ReadFiles);
        }
        if let Some(scratch) = &config.removed_at_end {
            grant(scratch, Right::Remove);
            grant(folder_of(scratch), Right::RemoveDirectories);
        }
        Self { grants, notifies, removes: config.removed_at_end.is_some() }
    }
}

/// The same for databases that are links: where they lead to at the moment. Asks the file system.
pub fn behind_links(config: &Config) -> Vec<Grant> {
    let databases = config.sources.iter().filter_map(|source| match source {
        SourceConfig::Store(store) => Some((store.database.as_path(), Right::Read)),
        SourceConfig::Directory(_) => None,
    });
    let behind = databases.filter_map(|(path, right)| {
        let real = path.canonicalize().ok().filter(|real| real != path)?;
        Some(Grant { path: folder_of(&real).to_path_buf(), right })
    });
    behind.collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::background::settings::{FillSettings, Format, Policy as FillPolicy};
    use crate::codec::store_path::StoreDir;
    use crate::limits::PRIORITY_DEFAULT;
    use crate::server::config::{
        AccessConfig, AccessLog, ConnectionBounds, ListenAddress, NarCacheConfig, Rules, SandboxMode,
    };
    use crate::store::LocalStore;
    use crate::store::upload::UploadSettings;

    /// A server of these sources and nothing else.
    pub fn config(sources: Vec<SourceConfig>) -> Config {
        Config {
            listen: vec![ListenAddress::Tcp(([127, 0, 0, 1], 0).into())],
            sources,
            store_dir: StoreDir::parse("/nix/store").unwrap(),
            workers: 1,
            nar_cache: None,
            uploads: None,
            rules: Rules {
                secret_keys: Arc::from([]),
                required_keys: Arc::from([]),
                priority: PRIORITY_DEFAULT,
                drain_timeout: Duration::ZERO,
                access: AccessConfig::default(),
                trusted_proxies: Arc::from([]),
                access_log: AccessLog::Off,
            },
            rule_places: Vec::new(),
            connections: ConnectionBounds::default(),
            sandbox: SandboxMode::On,
            is_browsable: true,
            removed_at_end: None,
            capabilities_off: Vec::new(),
        }
    }

    fn upload(directory: &str) -> UploadSettings {
        UploadSettings {
            directory: directory.into(),
            store_dir: StoreDir::parse("/nix/store").unwrap(),
            len_max: 1,
            free_min: None,
        }
    }

    /// Beside the cores, which are always readable.
    fn grants(config: &Config) -> Vec<(String, Right)> {
        let grants = Policy::of(config, false).grants;
        let cores = Grant { path: CORES.into(), right: Right::ReadFiles };
        assert!(grants.contains(&cores));
        let grants = grants.into_iter().filter(|grant| *grant != cores);
        grants.map(|grant| (grant.path.to_str().unwrap().to_owned(), grant.right)).collect()
    }

    #[test]
    fn a_directory_is_read_and_nothing_else() {
        let config = config(vec![SourceConfig::Directory("/srv/cache".into())]);
        assert_eq!(grants(&config), [("/srv/cache".to_owned(), Right::Read)]);
    }

    #[test]
    fn a_store_is_read_with_its_database_and_logs_and_nothing_is_written() {
        let store = LocalStore::beneath(Path::new("/"), StoreDir::parse("/nix/store").unwrap());
        assert_eq!(
            grants(&config(vec![SourceConfig::Store(store)])),
            ["/nix/store", "/nix/var/nix/db", "/nix/var/log/nix/drvs"]
                .map(|path| (path.to_owned(), Right::Read))
        );
    }

    #[test]
    fn what_is_written_is_the_nar_cache_and_the_directory_for_uploads() {
        let fill = FillSettings {
            policy: FillPolicy::Hot,
            format: Format::Auto,
            level: 3,
            len_max: None,
            free_min: None,
            scrub_rate: 0,
        };
        let config = Config {
            nar_cache: Some(NarCacheConfig { directory: "/var/cache/narwire".into(), fill }),
            uploads: Some(upload("/srv/cache")),
            ..config(vec![SourceConfig::Directory("/srv/cache".into())])
        };
        let granted = grants(&config);
        let written: Vec<_> = granted.iter().filter(|(_, right)| *right == Right::Write).collect();
        assert_eq!(
            written,
            [&("/var/cache/narwire".to_owned(), Right::Write), &("/srv/cache".to_owned(), Right::Write)]
        );
    }

    #[test]
    fn what_is_read_again_stays_readable() {
        let config = Config { rule_places: vec!["/etc/narwire".into()], ..config(Vec::new()) };
        assert_eq!(grants(&config), [("/etc/narwire".to_owned(), Right::ReadFiles)]);
    }

    #[test]
    fn a_store_that_ends_with_the_process_may_be_removed_and_not_written() {
        let config = Config { removed_at_end: Some("/tmp/demo".into()), ..config(Vec::new()) };
        assert_eq!(
            grants(&config),
            [("/tmp/demo".to_owned(), Right::Remove), ("/tmp".to_owned(), Right::RemoveDirectories)]
        );
    }
}
