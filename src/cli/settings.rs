//! From what was typed to what is wanted: layers are merged, defaults filled in and contradictions refused, all without
//! a look at the machine. [`super::load`] does the looking.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::arguments::ServeArguments;
use super::log::{LogFormat, LogLevel};
use super::size::Size;
use crate::background::settings::FillSettings;
use crate::codec::signature::PublicKey;
use crate::codec::store_path::StoreDir;
use crate::limits::{
    CACHE_LEN_MIN, CACHE_LEVEL_DEFAULT, CACHE_LEVEL_MAX, DRAIN_TIMEOUT_DEFAULT_S, PORT_DEFAULT,
    PRIORITY_DEFAULT, PRIORITY_MAX, SCRUB_RATE_DEFAULT, UPLOAD_LEN_MAX_DEFAULT, UPLOAD_LEN_MAX_MIN,
    WORKERS_MAX,
};
use crate::server::config::{
    AccessConfig, AccessLog, ConnectionBounds, ListenAddress, NarCacheConfig, ProxyNetwork, SandboxMode,
};

/// What is wanted, complete but for what only the machine can tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Never empty.
    pub listen: Vec<ListenAddress>,
    /// Whether a live store is served, before the directories.
    pub store: Option<StoreSettings>,
    /// Cache directories; not empty when there is no live store.
    pub directories: Vec<PathBuf>,
    /// `None`: what the directories say, or else Nix's own.
    pub store_dir: Option<StoreDir>,
    /// May be empty.
    pub secret_key_files: Vec<PathBuf>,
    /// At most [`PRIORITY_MAX`].
    pub priority: u32,
    /// `None`: one per core that this process may use. From 1 to [`WORKERS_MAX`].
    pub workers: Option<usize>,
    /// After SIGTERM.
    pub drain_timeout: Duration,
    /// Beside what the limit of open files leaves room for.
    pub connections: ConnectionBounds,
    /// Whether the server gives up what it does not need.
    pub sandbox: SandboxMode,
    /// `None` when there is no live store, or nobody said where.
    pub nar_cache: Option<NarCacheConfig>,
    /// One of these must have signed what is uploaded; may be empty.
    pub required_keys: Arc<[PublicKey]>,
    /// What may be uploaded into the first of the directories; `None` when nobody may upload, or there is none.
    pub uploads: Option<UploadBounds>,
    /// Who may do what; the tokens are still to be read.
    pub access: AccessConfig,
    /// Whose word on who asks is taken.
    pub trusted_proxies: Arc<[ProxyNetwork]>,
    /// Whether people may search and look into paths.
    pub is_browsable: bool,
    /// What is logged.
    pub log_level: LogLevel,
    /// How.
    pub log_format: LogFormat,
    /// Of which requests a line is logged.
    pub access_log: AccessLog,
    /// Where some of this was read.
    pub config_file: Option<PathBuf>,
    /// As typed.
    pub capabilities_off: Vec<String>,
    /// As typed.
    pub fault: Option<String>,
}

/// Places of a live store that differ from what follows from its store directory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoreSettings {
    /// Where the files are.
    pub real_store: Option<PathBuf>,
    /// Nix's database.
    pub database: Option<PathBuf>,
    /// The folder of build logs.
    pub log_dir: Option<PathBuf>,
}

/// What may be uploaded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UploadBounds {
    /// Longest file, and longest NAR; at least [`UPLOAD_LEN_MAX_MIN`]. Bytes.
    pub len_max: u64,
    /// What stays free on the file system. Bytes.
    pub free_min: Option<u64>,
}

/// Settings that contradict each other or ask for the impossible.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SettingsError {
    /// Only the configuration file can say both; clap refuses the flags.
    #[error("port and listen contradict each other: write listen = [\"[::]:PORT\", …] alone")]
    PortAndListen,
    /// A place of the live store or a setting of its NAR cache is given, and no live store is served.
    #[error(
        "{flag} is about the live store, and only directories are served: leave it out, or add --with-store"
    )]
    NoStore {
        /// As typed on a command line.
        flag: &'static str,
    },
    /// A setting of the NAR cache is given, and there is none.
    #[error("{flag} is about the NAR cache, and there is none: leave it out, or say where with --cache-dir")]
    NoCacheDir {
        /// As typed on a command line.
        flag: &'static str,
    },
    /// Not from 1 to [`CACHE_LEVEL_MAX`].
    #[error("cache-level must be from 1 to {CACHE_LEVEL_MAX}, not {0}")]
    CacheLevel(i32),
    /// Below [`CACHE_LEN_MIN`].
    #[error(
        "cache-size must be at least 64K, not {0} bytes: add the unit, such as {0}G, or keep no more NARs with \
         --cache-policy off"
    )]
    CacheSize(u64),
    /// Uploads are allowed, and there is no place for them.
    #[error(
        "{flag} needs a directory that uploads are written to, and only the live store is served: name one (narwire serve DIR {flag} …)"
    )]
    NoUploadDirectory {
        /// As typed on a command line.
        flag: &'static str,
    },
    /// A setting of uploads is given, and nobody may upload.
    #[error(
        "{flag} is about uploads, and nobody may upload: leave it out, or say who may with --upload-token-file FILE or \
         --allow-anonymous-upload"
    )]
    NoUploads {
        /// As typed on a command line.
        flag: &'static str,
    },
    /// Nobody could read.
    #[error(
        "--private without tokens would let nobody read: add --upload-token-file FILE (narwire token create --file FILE \
         --name NAME --scope read makes it)"
    )]
    PrivateWithoutTokens,
    /// Nothing would ask for a token.
    #[error(
        "--allow-anonymous-upload lets everybody upload, and no token of --upload-token-file would be asked for: leave out one \
         of them, or add --private so that reading needs a token"
    )]
    TokensWithoutUse,
    /// Below [`UPLOAD_LEN_MAX_MIN`].
    #[error("upload-max-size must be at least 64K, not {0} bytes: add the unit, such as {0}G")]
    UploadMaxSize(u64),
    /// Not from 1 to [`WORKERS_MAX`].
    #[error("workers must be from 1 to {WORKERS_MAX}, not {0}")]
    Workers(usize),
    /// Nobody could connect.
    #[error("{flag} must be at least 1; leave it out for no bound")]
    NoConnections {
        /// As typed on a command line.
        flag: &'static str,
    },
    /// Above [`PRIORITY_MAX`].
    #[error("priority must be at most {PRIORITY_MAX}, not {0}")]
    Priority(u32),
}

impl Settings {
    /// Takes every setting from the first of `layers` that has it, and else the default.
    pub fn merge(layers: impl IntoIterator<Item = ServeArguments>) -> Result<Self, SettingsError> {
        let mut merged = ServeArguments::default();
        for layer in layers {
            if layer.port.is_some() && !layer.listen.is_empty() {
                return Err(SettingsError::PortAndListen);
            }
            merged = merged.or(layer);
        }
        Self::complete(merged)
    }

    /// What is not as in `other` and is looked at when the server starts, by the names of its flags.
    pub fn differing_until_restart(&self, other: &Self) -> Vec<&'static str> {
        let Self {
            listen,
            store,
            directories,
            store_dir,
            workers,
            connections,
            sandbox,
            nar_cache,
            uploads,
            is_browsable,
            log_format,
            capabilities_off,
            // Faults are planned once; the rest makes rules.
            secret_key_files: _,
            priority: _,
            drain_timeout: _,
            required_keys: _,
            access: _,
            trusted_proxies: _,
            log_level: _,
            access_log: _,
            config_file: _,
            fault: _,
        } = self;
        let differing = [
            ("listen", *listen != other.listen),
            ("directories", *directories != other.directories),
            ("with-store, real-store, db or log-dir", *store != other.store),
            ("store-dir", *store_dir != other.store_dir),
            ("workers", *workers != other.workers),
            ("max-connections", *connections != other.connections),
            ("sandbox", *sandbox != other.sandbox),
            (
                "cache-dir, -policy, -format, -level, -size or -min-free, or scrub-rate",
                *nar_cache != other.nar_cache,
            ),
            ("upload-max-size or upload-min-free, or whether there are uploads", *uploads != other.uploads),
            ("no-browse", *is_browsable != other.is_browsable),
            ("log-format", *log_format != other.log_format),
            ("without", *capabilities_off != other.capabilities_off),
        ];
        differing.into_iter().filter(|(_, differs)| *differs).map(|(flag, _)| flag).collect()
    }

    fn complete(typed: ServeArguments) -> Result<Self, SettingsError> {
        let priority = typed.priority.unwrap_or(PRIORITY_DEFAULT);
        if priority > PRIORITY_MAX {
            return Err(SettingsError::Priority(priority));
        }
        if let Some(workers) = typed.workers.filter(|workers| !(1..=WORKERS_MAX).contains(workers)) {
            return Err(SettingsError::Workers(workers));
        }
        let (is_store_served, nar_cache) = if typed.with_store || typed.directories.is_empty() {
            (true, nar_cache(&typed)?)
        } else {
            // What a service manager has set aside is no wish of anybody's.
            match typed.of_live_store().or(typed.of_nar_cache()) {
                Some(flag) => return Err(SettingsError::NoStore { flag }),
                None => (false, None),
            }
        };
        let connections = connections(&typed)?;
        let access = access(&typed)?;
        let uploads = uploads(&typed)?;
        let listen = if typed.listen.is_empty() {
            vec![ListenAddress::everywhere(typed.port.unwrap_or(PORT_DEFAULT))]
        } else {
            typed.listen
        };
        let store = is_store_served.then_some(StoreSettings {
            real_store: typed.real_store,
            database: typed.db,
            log_dir: typed.log_dir,
        });
        Ok(Self {
            listen,
            store,
            directories: typed.directories,
            store_dir: typed.store_dir,
            secret_key_files: typed.secret_key_file,
            priority,
            workers: typed.workers,
            drain_timeout: Duration::from_secs(
                typed.drain_timeout.map_or(DRAIN_TIMEOUT_DEFAULT_S, u64::from),
            ),
            connections,
            sandbox: typed.sandbox.unwrap_or_default(),
            nar_cache,
            required_keys: typed.require_signature.into(),
            uploads,
            access,
            trusted_proxies: typed.trusted_proxy.into(),
            is_browsable: !typed.no_browse,
            log_level: typed.log_level.unwrap_or_default(),
            log_format: typed.log_format.unwrap_or_default(),
            access_log: typed.access_log.unwrap_or_default(),
            config_file: typed.config,
            capabilities_off: typed.without,
            fault: typed.fault,
        })
    }
}

/// How many may be connected.
fn connections(typed: &ServeArguments) -> Result<ConnectionBounds, SettingsError> {
    let bounds = ConnectionBounds {
        all_max: typed.max_connections,
        per_address_max: typed.max_connections_per_address,
    };
    match bounds {
        ConnectionBounds { all_max: Some(0), .. } => {
            Err(SettingsError::NoConnections { flag: "--max-connections" })
        }
        ConnectionBounds { per_address_max: Some(0), .. } => {
            Err(SettingsError::NoConnections { flag: "--max-connections-per-address" })
        }
        bounds => Ok(bounds),
    }
}

/// The NAR cache that is wanted, if somebody said where.
fn nar_cache(typed: &ServeArguments) -> Result<Option<NarCacheConfig>, SettingsError> {
    // The service manager's is the default: a unit has one whatever its configuration file says.
    let Some(directory) = typed.cache_dir.clone().or_else(|| typed.service_cache_dir.clone()) else {
        return match typed.of_nar_cache() {
            Some(flag) => Err(SettingsError::NoCacheDir { flag }),
            None => Ok(None),
        };
    };
    let level = typed.cache_level.unwrap_or(CACHE_LEVEL_DEFAULT);
    if !(1..=CACHE_LEVEL_MAX).contains(&level) {
        return Err(SettingsError::CacheLevel(level));
    }
    if let Some(Size(len_max)) = typed.cache_size.filter(|size| size.0 < CACHE_LEN_MIN) {
        return Err(SettingsError::CacheSize(len_max));
    }
    let fill = FillSettings {
        policy: typed.cache_policy.unwrap_or_default(),
        format: typed.cache_format.unwrap_or_default(),
        level,
        len_max: typed.cache_size.map(|size| size.0),
        free_min: typed.cache_min_free.map(|size| size.0),
        scrub_rate: typed.scrub_rate.map_or(SCRUB_RATE_DEFAULT, |size| size.0),
    };
    Ok(Some(NarCacheConfig { directory, fill }))
}

/// Who may do what, without a look at the tokens.
fn access(typed: &ServeArguments) -> Result<AccessConfig, SettingsError> {
    match (&typed.upload_token_file, typed.allow_anonymous_upload, typed.private) {
        (None, _, true) => Err(SettingsError::PrivateWithoutTokens),
        (Some(_), true, false) => Err(SettingsError::TokensWithoutUse),
        (token_file, is_upload_anonymous, is_private) => {
            let (token_file, tokens) = (token_file.clone(), Arc::default());
            Ok(AccessConfig { token_file, tokens, is_upload_anonymous, is_private })
        }
    }
}

/// What may be uploaded, if anybody may upload and there is a place for it.
fn uploads(typed: &ServeArguments) -> Result<Option<UploadBounds>, SettingsError> {
    let allowed_by = match (&typed.upload_token_file, typed.allow_anonymous_upload) {
        (_, true) => Some("--allow-anonymous-upload"),
        (Some(_), false) => Some("--upload-token-file"),
        (None, false) => None,
    };
    let flag = typed.of_uploads();
    match allowed_by {
        None => return flag.map_or(Ok(None), |flag| Err(SettingsError::NoUploads { flag })),
        Some(allowed_by) if typed.directories.is_empty() => {
            // The tokens of a private live store are for reading.
            let is_for_reading = typed.private && !typed.allow_anonymous_upload;
            return match flag {
                None if is_for_reading => Ok(None),
                flag => Err(SettingsError::NoUploadDirectory { flag: flag.unwrap_or(allowed_by) }),
            };
        }
        Some(_) => {}
    }
    let len_max = typed.upload_max_size.map_or(UPLOAD_LEN_MAX_DEFAULT, |size| size.0);
    if len_max < UPLOAD_LEN_MAX_MIN {
        return Err(SettingsError::UploadMaxSize(len_max));
    }
    Ok(Some(UploadBounds { len_max, free_min: typed.upload_min_free.map(|size| size.0) }))
}

impl ServeArguments {
    /// The first flag that says where the live store is.
    fn of_live_store(&self) -> Option<&'static str> {
        let given = [("--real-store", &self.real_store), ("--db", &self.db), ("--log-dir", &self.log_dir)];
        given.into_iter().find(|(_, place)| place.is_some()).map(|(flag, _)| flag)
    }

    /// The first flag that says something about the NAR cache.
    fn of_nar_cache(&self) -> Option<&'static str> {
        let given = [
            ("--cache-dir", self.cache_dir.is_some()),
            ("--cache-policy", self.cache_policy.is_some()),
            ("--cache-format", self.cache_format.is_some()),
            ("--cache-level", self.cache_level.is_some()),
            ("--cache-size", self.cache_size.is_some()),
            ("--cache-min-free", self.cache_min_free.is_some()),
            ("--scrub-rate", self.scrub_rate.is_some()),
        ];
        given.into_iter().find(|(_, is_given)| *is_given).map(|(flag, _)| flag)
    }

    /// The first flag that says what may be uploaded.
    fn of_uploads(&self) -> Option<&'static str> {
        let given = [
            ("--require-signature", !self.require_signature.is_empty()),
            ("--upload-max-size", self.upload_max_size.is_some()),
            ("--upload-min-free", self.upload_min_free.is_some()),
        ];
        given.into_iter().find(|(_, is_given)| *is_given).map(|(flag, _)| flag)
    }

    /// What this layer says, and where it says nothing, `lower`.
    fn or(self, lower: Self) -> Self {
        // Port and addresses are two ways to say one thing: a layer that says either hides both below it.
        let says_where = self.port.is_some() || !self.listen.is_empty();
        let (port, listen) = if says_where { (self.port, self.listen) } else { (lower.port, lower.listen) };
        Self {
            directories: first_list(self.directories, lower.directories),
            port,
            listen,
            store_dir: self.store_dir.or(lower.store_dir),
            real_store: self.real_store.or(lower.real_store),
            db: self.db.or(lower.db),
            log_dir: self.log_dir.or(lower.log_dir),
            with_store: self.with_store || lower.with_store,
            secret_key_file: first_list(self.secret_key_file, lower.secret_key_file),
            priority: self.priority.or(lower.priority),
            workers: self.workers.or(lower.workers),
            drain_timeout: self.drain_timeout.or(lower.drain_timeout),
            max_connections: self.max_connections.or(lower.max_connections),
            max_connections_per_address: self
                .max_connections_per_address
                .or(lower.max_connections_per_address),
            sandbox: self.sandbox.or(lower.sandbox),
            cache_dir: self.cache_dir.or(lower.cache_dir),
            service_cache_dir: self.service_cache_dir.or(lower.service_cache_dir),
            cache_policy: self.cache_policy.or(lower.cache_policy),
            cache_format: self.cache_format.or(lower.cache_format),
            cache_level: self.cache_level.or(lower.cache_level),
            cache_size: self.cache_size.or(lower.cache_size),
            cache_min_free: self.cache_min_free.or(lower.cache_min_free),
            scrub_rate: self.scrub_rate.or(lower.scrub_rate),
            upload_token_file: self.upload_token_file.or(lower.upload_token_file),
            allow_anonymous_upload: self.allow_anonymous_upload || lower.allow_anonymous_upload,
            private: self.private || lower.private,
            require_signature: first_list(self.require_signature, lower.require_signature),
            trusted_proxy: first_list(self.trusted_proxy, lower.trusted_proxy),
            no_browse: self.no_browse || lower.no_browse,
            log_level: self.log_level.or(lower.log_level),
            log_format: self.log_format.or(lower.log_format),
            access_log: self.access_log.or(lower.access_log),
            upload_max_size: self.upload_max_size.or(lower.upload_max_size),
            upload_min_free: self.upload_min_free.or(lower.upload_min_free),
            config: self.config.or(lower.config),
            without: first_list(self.without, lower.without),
            fault: self.fault.or(lower.fault),
        }
    }

    /// Makes relative paths relative to `folder`. A file of keys or tokens named without a slash is a credential of the service
    /// when there is a directory of those, wherever the name was written.
    #[must_use]
    pub fn with_paths_from(self, folder: &Path, credentials_directory: Option<&Path>) -> Self {
        let resolve = |path: PathBuf| folder.join(path);
        let resolve_secret = |path: PathBuf| match credentials_directory {
            Some(credentials) if is_bare_name(&path) => credentials.join(path),
            _ => folder.join(path),
        };
        let resolve_address = |address| match address {
            ListenAddress::Unix(path) => ListenAddress::Unix(folder.join(path)),
            tcp @ ListenAddress::Tcp(_) => tcp,
        };
        Self {
            directories: self.directories.into_iter().map(resolve).collect(),
            listen: self.listen.into_iter().map(resolve_address).collect(),
            real_store: self.real_store.map(resolve),
            db: self.db.map(resolve),
            log_dir: self.log_dir.map(resolve),
            cache_dir: self.cache_dir.map(resolve),
            secret_key_file: self.secret_key_file.into_iter().map(resolve_secret).collect(),
            upload_token_file: self.upload_token_file.map(resolve_secret),
            ..self
        }
    }
}

fn first_list<T>(upper: Vec<T>, lower: Vec<T>) -> Vec<T> {
    if upper.is_empty() { lower } else { upper }
}

fn is_bare_name(path: &Path) -> bool {
    !path.as_os_str().as_encoded_bytes().contains(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::background::settings::{Format, Policy};

    fn merge(layers: &[&ServeArguments]) -> Settings {
        Settings::merge(layers.iter().map(|&layer| layer.clone())).unwrap()
    }

    fn nothing() -> ServeArguments {
        ServeArguments::default()
    }

    fn address(text: &str) -> ListenAddress {
        text.parse().unwrap()
    }

    #[test]
    fn nothing_said_is_the_live_store_on_port_5000_everywhere() {
        let expected = Settings {
            listen: vec![address("[::]:5000")],
            store: Some(StoreSettings::default()),
            directories: Vec::new(),
            store_dir: None,
            secret_key_files: Vec::new(),
            priority: 30,
            workers: None,
            drain_timeout: Duration::from_mins(1),
            connections: ConnectionBounds::default(),
            sandbox: SandboxMode::On,
            nar_cache: None,
            required_keys: Arc::from([]),
            uploads: None,
            access: AccessConfig::default(),
            trusted_proxies: Arc::from([]),
            is_browsable: true,
            log_level: LogLevel::default(),
            log_format: LogFormat::Auto,
            access_log: AccessLog::Off,
            config_file: None,
            capabilities_off: Vec::new(),
            fault: None,
        };
        assert_eq!(merge(&[]), expected);
        assert_eq!(merge(&[&nothing(), &nothing()]), expected);
    }

    #[test]
    fn the_upper_layer_wins_and_the_lower_fills_in() {
        let upper = ServeArguments { priority: Some(1), secret_key_file: vec!["a".into()], ..nothing() };
        let lower = ServeArguments {
            priority: Some(2),
            workers: Some(2),
            secret_key_file: vec!["b".into(), "c".into()],
            directories: vec!["d".into()],
            drain_timeout: Some(0),
            ..nothing()
        };
        let settings = merge(&[&upper, &nothing(), &lower]);
        assert_eq!((settings.priority, settings.workers), (1, Some(2)));
        assert_eq!(settings.secret_key_files, [PathBuf::from("a")]);
        assert_eq!(settings.directories, [PathBuf::from("d")]);
        assert_eq!(settings.drain_timeout, Duration::ZERO);
    }

    #[test]
    fn port_and_addresses_hide_each_other_across_layers() {
        let port = ServeArguments { port: Some(80), ..nothing() };
        let listen = ServeArguments { listen: vec![address("127.0.0.1:1")], ..nothing() };
        assert_eq!(merge(&[&port, &listen]).listen, [address("[::]:80")]);
        assert_eq!(merge(&[&listen, &port]).listen, [address("127.0.0.1:1")]);
        let both = ServeArguments { port: Some(80), ..listen };
        assert_eq!(Settings::merge([both]), Err(SettingsError::PortAndListen));
    }

    #[test]
    fn directories_take_the_place_of_the_store_unless_it_is_wanted() {
        let directories = ServeArguments { directories: vec!["d".into()], ..nothing() };
        assert_eq!(merge(&[&directories]).store, None);
        let with_store = ServeArguments { with_store: true, ..directories };
        let settings = merge(&[&with_store]);
        assert_eq!(settings.store, Some(StoreSettings::default()));
        assert_eq!(settings.directories, [PathBuf::from("d")]);
    }

    #[test]
    fn places_of_a_store_that_is_not_served_are_refused() {
        let place = Some(PathBuf::from("/x"));
        for (flag, store) in [
            ("--real-store", ServeArguments { real_store: place.clone(), ..nothing() }),
            ("--db", ServeArguments { db: place.clone(), ..nothing() }),
            ("--log-dir", ServeArguments { log_dir: place.clone(), ..nothing() }),
        ] {
            let directories = ServeArguments { directories: vec!["d".into()], ..nothing() };
            let error = Settings::merge([directories.clone(), store.clone()]).unwrap_err();
            assert_eq!(error, SettingsError::NoStore { flag });
            let with_store = ServeArguments { with_store: true, ..directories };
            Settings::merge([with_store, store]).unwrap();
        }
    }

    /// The flags of a NAR cache beside --cache-dir, each alone.
    fn flags_of_a_nar_cache() -> [(&'static str, ServeArguments); 6] {
        [
            ("--cache-policy", ServeArguments { cache_policy: Some(Policy::All), ..nothing() }),
            ("--cache-format", ServeArguments { cache_format: Some(Format::Flat), ..nothing() }),
            ("--cache-level", ServeArguments { cache_level: Some(1), ..nothing() }),
            ("--cache-size", ServeArguments { cache_size: Some(Size(1 << 30)), ..nothing() }),
            ("--cache-min-free", ServeArguments { cache_min_free: Some(Size(1)), ..nothing() }),
            ("--scrub-rate", ServeArguments { scrub_rate: Some(Size(0)), ..nothing() }),
        ]
    }

    fn cache_dir(path: &str) -> ServeArguments {
        ServeArguments { cache_dir: Some(path.into()), ..nothing() }
    }

    fn service_cache_dir(path: &str) -> ServeArguments {
        ServeArguments { service_cache_dir: Some(path.into()), ..nothing() }
    }

    #[test]
    fn a_nar_cache_needs_no_more_than_its_place() {
        let expected = NarCacheConfig {
            directory: "/c".into(),
            fill: FillSettings {
                policy: Policy::Hot,
                format: Format::Auto,
                level: 3,
                len_max: None,
                free_min: None,
                scrub_rate: 8 << 20,
            },
        };
        assert_eq!(merge(&[&cache_dir("/c")]).nar_cache.as_ref(), Some(&expected));
        assert_eq!(merge(&[&service_cache_dir("/c")]).nar_cache, Some(expected));
        let layers = flags_of_a_nar_cache().map(|(_, flag)| flag).into_iter().chain([cache_dir("/c")]);
        let said = Settings::merge(layers).unwrap().nar_cache.unwrap().fill;
        let expected = FillSettings {
            policy: Policy::All,
            format: Format::Flat,
            level: 1,
            len_max: Some(1 << 30),
            free_min: Some(1),
            scrub_rate: 0,
        };
        assert_eq!(said, expected);
    }

    #[test]
    fn a_cache_directory_that_somebody_wrote_comes_before_an_inherited_one() {
        let directory = |layers: &[&ServeArguments]| merge(layers).nar_cache.unwrap().directory;
        let (typed, inherited) = (cache_dir("/typed"), service_cache_dir("/inherited"));
        assert_eq!(directory(&[&typed, &inherited]), Path::new("/typed"));
        assert_eq!(directory(&[&nothing(), &inherited, &typed]), Path::new("/typed"));
        assert_eq!(directory(&[&nothing(), &inherited]), Path::new("/inherited"));
    }

    #[test]
    fn flags_of_a_nar_cache_without_one_are_refused() {
        let directories = ServeArguments { directories: vec!["d".into()], ..nothing() };
        for (flag, arguments) in flags_of_a_nar_cache() {
            let refused = |layers: [ServeArguments; 2]| Settings::merge(layers).unwrap_err();
            assert_eq!(refused([nothing(), arguments.clone()]), SettingsError::NoCacheDir { flag });
            assert_eq!(refused([directories.clone(), arguments]), SettingsError::NoStore { flag });
        }
        let error = Settings::merge([directories, cache_dir("/c")]).unwrap_err();
        assert_eq!(error, SettingsError::NoStore { flag: "--cache-dir" });
    }

    #[test]
    fn an_inherited_cache_directory_is_no_contradiction_to_directories() {
        let directories = ServeArguments { directories: vec!["d".into()], ..nothing() };
        assert_eq!(merge(&[&directories, &service_cache_dir("/c")]).nar_cache, None);
        let with_store = ServeArguments { with_store: true, ..directories };
        assert!(merge(&[&with_store, &service_cache_dir("/c")]).nar_cache.is_some());
    }

    const KEY: &str = "cache.example.org-1:+HhLo9hZyQ767XG9WxBUYS/FQu1JPr79CTsEv0KNK9c=";

    fn directory() -> ServeArguments {
        ServeArguments { directories: vec!["d".into()], ..nothing() }
    }

    fn tokens() -> ServeArguments {
        ServeArguments { upload_token_file: Some("/t".into()), ..nothing() }
    }

    fn anonymous() -> ServeArguments {
        ServeArguments { allow_anonymous_upload: true, ..nothing() }
    }

    fn private() -> ServeArguments {
        ServeArguments { private: true, ..nothing() }
    }

    #[test]
    fn who_may_upload_and_read() {
        use SettingsError::{NoUploadDirectory, PrivateWithoutTokens, TokensWithoutUse};
        let no_directory = |flag| Err(NoUploadDirectory { flag });
        let (by_token, by_all) = ("--upload-token-file", "--allow-anonymous-upload");
        // Whether uploads are taken when a directory is served, and when only the live store is.
        for (layers, with_directory, without) in [
            (vec![], Ok(false), Ok(false)),
            (vec![tokens()], Ok(true), no_directory(by_token)),
            (vec![anonymous()], Ok(true), no_directory(by_all)),
            (vec![private()], Err(PrivateWithoutTokens), Err(PrivateWithoutTokens)),
            (vec![private(), anonymous()], Err(PrivateWithoutTokens), Err(PrivateWithoutTokens)),
            (vec![private(), tokens()], Ok(true), Ok(false)),
            (vec![tokens(), anonymous()], Err(TokensWithoutUse), Err(TokensWithoutUse)),
            (vec![private(), tokens(), anonymous()], Ok(true), no_directory(by_all)),
        ] {
            let expected_access = AccessConfig {
                token_file: layers.iter().find_map(|layer| layer.upload_token_file.clone()),
                tokens: Arc::default(),
                is_upload_anonymous: layers.iter().any(|layer| layer.allow_anonymous_upload),
                is_private: layers.iter().any(|layer| layer.private),
            };
            for (place, expected) in [(directory(), with_directory), (nothing(), without)] {
                let merged = Settings::merge(layers.iter().cloned().chain([place]));
                if let Ok(settings) = &merged {
                    assert_eq!(settings.access, expected_access);
                }
                assert_eq!(merged.map(|settings| settings.uploads.is_some()), expected, "{layers:?}");
            }
        }
    }

    #[test]
    fn uploads_need_no_more_than_to_be_allowed() {
        let expected = UploadBounds { len_max: 32 << 30, free_min: None };
        assert_eq!(merge(&[&directory(), &tokens()]).uploads, Some(expected));
        let bounds = ServeArguments {
            require_signature: vec![KEY.parse().unwrap()],
            upload_max_size: Some(Size(1 << 20)),
            upload_min_free: Some(Size(0)),
            ..nothing()
        };
        let merged = merge(&[&directory(), &bounds, &anonymous()]);
        assert_eq!(merged.uploads, Some(UploadBounds { len_max: 1 << 20, free_min: Some(0) }));
        assert_eq!(*merged.required_keys, [KEY.parse().unwrap()]);
    }

    #[test]
    fn what_waits_for_a_restart_is_named() {
        let before = merge(&[&directory(), &tokens()]);
        let rules = ServeArguments {
            priority: Some(1),
            drain_timeout: Some(1),
            private: true,
            secret_key_file: vec!["/k".into()],
            require_signature: vec![KEY.parse().unwrap()],
            ..nothing()
        };
        let after = merge(&[&directory(), &tokens(), &rules]);
        assert_ne!(after, before);
        assert!(after.differing_until_restart(&before).is_empty());
        for (flag, change) in [
            ("listen", ServeArguments { port: Some(1), ..nothing() }),
            ("directories", ServeArguments { directories: vec!["/other".into()], ..nothing() }),
            ("real-store", ServeArguments { with_store: true, ..nothing() }),
            ("store-dir", ServeArguments { store_dir: StoreDir::parse("/s").ok(), ..nothing() }),
            ("workers", ServeArguments { workers: Some(1), ..nothing() }),
            ("max-connections", ServeArguments { max_connections: Some(1), ..nothing() }),
            ("sandbox", ServeArguments { sandbox: Some(SandboxMode::Off), ..nothing() }),
            ("upload-max-size", ServeArguments { upload_max_size: Some(Size(1 << 20)), ..nothing() }),
            ("without", ServeArguments { without: vec!["x".into()], ..nothing() }),
        ] {
            let differing = merge(&[&change, &directory(), &tokens()]).differing_until_restart(&before);
            assert!(differing.len() == 1 && differing[0].contains(flag), "{flag}: {differing:?}");
        }
    }

    #[test]
    fn bounds_of_uploads_that_nobody_may_make_are_refused() {
        for (flag, bound) in [
            (
                "--require-signature",
                ServeArguments { require_signature: vec![KEY.parse().unwrap()], ..nothing() },
            ),
            ("--upload-max-size", ServeArguments { upload_max_size: Some(Size(1 << 20)), ..nothing() }),
            ("--upload-min-free", ServeArguments { upload_min_free: Some(Size(1)), ..nothing() }),
        ] {
            let refused = |layers: [ServeArguments; 3]| Settings::merge(layers).unwrap_err();
            assert_eq!(refused([directory(), bound.clone(), nothing()]), SettingsError::NoUploads { flag });
            assert_eq!(
                refused([private(), tokens(), bound.clone()]),
                SettingsError::NoUploadDirectory { flag }
            );
        }
    }

    #[test]
    fn numbers_out_of_bounds_are_refused() {
        for workers in [0, WORKERS_MAX + 1] {
            let arguments = ServeArguments { workers: Some(workers), ..nothing() };
            assert_eq!(Settings::merge([arguments]), Err(SettingsError::Workers(workers)));
        }
        for (flag, arguments) in [
            ("--max-connections", ServeArguments { max_connections: Some(0), ..nothing() }),
            (
                "--max-connections-per-address",
                ServeArguments { max_connections_per_address: Some(0), ..nothing() },
            ),
        ] {
            assert_eq!(Settings::merge([arguments]), Err(SettingsError::NoConnections { flag }));
        }
        for level in [0, -1, CACHE_LEVEL_MAX + 1] {
            let arguments = ServeArguments { cache_level: Some(level), ..cache_dir("/c") };
            assert_eq!(Settings::merge([arguments]), Err(SettingsError::CacheLevel(level)));
        }
        let arguments = ServeArguments { cache_size: Some(Size(10)), ..cache_dir("/c") };
        assert_eq!(Settings::merge([arguments]), Err(SettingsError::CacheSize(10)));
        let arguments = ServeArguments { priority: Some(PRIORITY_MAX + 1), ..nothing() };
        assert_eq!(Settings::merge([arguments]), Err(SettingsError::Priority(PRIORITY_MAX + 1)));
        let arguments = ServeArguments { upload_max_size: Some(Size(32)), ..directory() };
        assert_eq!(Settings::merge([arguments, anonymous()]), Err(SettingsError::UploadMaxSize(32)));
    }

    #[test]
    fn bare_names_of_secrets_are_credentials_and_other_paths_belong_to_their_folder() {
        let arguments = ServeArguments {
            directories: vec!["cache".into(), "/srv".into()],
            listen: vec![address("unix:socket"), address("127.0.0.1:1")],
            secret_key_file: ["key", "./key", "/key"].map(PathBuf::from).to_vec(),
            cache_dir: Some("nars".into()),
            upload_token_file: Some("tokens".into()),
            ..nothing()
        };
        let resolved =
            |credentials| arguments.clone().with_paths_from(Path::new("/etc/narwire"), credentials);

        let service = resolved(Some(Path::new("/run/credentials")));
        let expected = ["/run/credentials/key", "/etc/narwire/./key", "/key"].map(PathBuf::from);
        assert_eq!(service.secret_key_file, expected);
        assert_eq!(service.directories, ["/etc/narwire/cache", "/srv"].map(PathBuf::from));
        assert_eq!(service.cache_dir, Some("/etc/narwire/nars".into()));
        assert_eq!(service.upload_token_file, Some("/run/credentials/tokens".into()));
        assert_eq!(service.listen, [address("unix:/etc/narwire/socket"), address("127.0.0.1:1")]);

        let expected = ["/etc/narwire/key", "/etc/narwire/./key", "/key"].map(PathBuf::from);
        assert_eq!(resolved(None).secret_key_file, expected);
        assert_eq!(resolved(None).upload_token_file, Some("/etc/narwire/tokens".into()));
    }
}
