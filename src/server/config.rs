//! What is true: the complete, validated and immutable configuration of one server.
//!
//! `cli` makes it from what was typed; a test makes it from literals. Nothing from here downward reads a flag, a
//! variable that a person sets, or a file of settings, and nothing here has a default. Only what a service manager
//! hands to the process itself (sockets, where to report) is picked up by [`super::listen`] and [`super::systemd`].

use std::fmt;
use std::net::{AddrParseError, IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::background::settings::FillSettings;
use crate::codec::signature::{PublicKey, SecretKey};
use crate::codec::store_path::StoreDir;
use crate::codec::token::Tokens;
use crate::store::LocalStore;
use crate::store::upload::UploadSettings;

/// Everything a server must know before it binds its first socket.
#[derive(Debug)]
pub struct Config {
    /// Where to listen, in the order given; never empty. Sockets inherited from systemd take the place of all of them.
    pub listen: Vec<ListenAddress>,
    /// Who is asked for a hash, in this order: the first that knows it answers. Never empty.
    pub sources: Vec<SourceConfig>,
    /// The logical store directory, as `nix-cache-info` announces it; the same for every source.
    pub store_dir: StoreDir,
    /// Network threads, one ring each; at least 1.
    pub workers: usize,
    /// Where NARs of the live store are kept encoded; without a live store there is none.
    pub nar_cache: Option<NarCacheConfig>,
    /// What may be uploaded, and where to; `None`: nothing.
    pub uploads: Option<UploadSettings>,
    /// What holds until SIGHUP brings something else.
    pub rules: Rules,
    /// Where the rules were read from, and will be again: folders, and files in folders that hold other things.
    pub rule_places: Vec<PathBuf>,
    /// How many may be connected.
    pub connections: ConnectionBounds,
    /// Whether the process gives up what it does not need once it has started.
    pub sandbox: SandboxMode,
    /// Whether people may search the sources, and look into paths with a browser.
    pub is_browsable: bool,
    /// A folder that the process removes when it has served.
    pub removed_at_end: Option<PathBuf>,
    /// Names of kernel capabilities to do without although the kernel has them, as typed; `ring` knows the names.
    pub capabilities_off: Vec<String>,
}

/// What was read again.
#[derive(Clone, Debug)]
pub struct ReadAgain {
    /// In force from now on.
    pub rules: Rules,
    /// Whether the settings are those of before, because they have changed in what is read at the start only. Keys and tokens do not wait.
    pub is_restart_pending: bool,
}

/// What can change while the server runs.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Every narinfo of a live store is signed with each of these; may be empty.
    pub secret_keys: Arc<[SecretKey]>,
    /// A narinfo that is uploaded has to be signed by one of these; by nobody if there are none.
    pub required_keys: Arc<[PublicKey]>,
    /// `Priority` of `nix-cache-info`: clients ask the cache with the lowest number first.
    pub priority: u32,
    /// How long answers that are under way may take after SIGTERM.
    pub drain_timeout: Duration,
    /// Who may do what.
    pub access: AccessConfig,
    /// Whose word on who asks, and for which name, is taken; beside those on this machine.
    pub trusted_proxies: Arc<[ProxyNetwork]>,
    /// Of which requests a line is logged.
    pub access_log: AccessLog,
}

/// The addresses of a proxy, or of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyNetwork(IpNet);

/// The text is neither an address nor a network.
#[derive(Debug, thiserror::Error)]
#[error("expected an address or a network, such as 10.0.0.7, 10.0.0.0/8 or fd00::/8")]
pub struct ProxyNetworkError;

impl ProxyNetwork {
    /// Whether this address is one of them. An IPv4 address may come in the clothes of IPv6.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl fmt::Display for ProxyNetwork {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for ProxyNetwork {
    type Err = ProxyNetworkError;

    fn from_str(text: &str) -> Result<Self, ProxyNetworkError> {
        let of_one = || text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
        text.parse().or_else(|_| of_one()).map(Self).map_err(|_| ProxyNetworkError)
    }
}

/// Of which requests a line is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// Of none.
    #[default]
    Off,
    /// Of one in so many.
    OneIn(NonZeroU32),
}

/// The text is no [`AccessLog`].
#[derive(Debug, thiserror::Error)]
#[error("expected off, full, or 1/N for one request in N, such as 1/100")]
pub struct AccessLogError;

impl fmt::Display for AccessLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => formatter.write_str("off"),
            Self::OneIn(NonZeroU32::MIN) => formatter.write_str("full"),
            Self::OneIn(rarity) => write!(formatter, "1/{rarity}"),
        }
    }
}

impl FromStr for AccessLog {
    type Err = AccessLogError;

    fn from_str(text: &str) -> Result<Self, AccessLogError> {
        match text {
            "off" => Ok(Self::Off),
            "full" => Ok(Self::OneIn(NonZeroU32::MIN)),
            _ => {
                let rarity = text.strip_prefix("1/").and_then(|rarity| rarity.parse().ok());
                rarity.map(Self::OneIn).ok_or(AccessLogError)
            }
        }
    }
}

/// One source of store paths.
#[derive(Clone, Debug)]
pub enum SourceConfig {
    /// A live Nix store: its directory and its database.
    Store(LocalStore),
    /// A cache directory in the layout of `nix copy --to file://…`.
    Directory(PathBuf),
}

/// A NAR cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NarCacheConfig {
    /// Where it is, or will be made.
    pub directory: PathBuf,
    /// What is kept in it, and how.
    pub fill: FillSettings,
}

/// Who may do what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessConfig {
    /// The file of tokens.
    pub token_file: Option<PathBuf>,
    /// What it had when it was read.
    pub tokens: Arc<Tokens>,
    /// Whether who has no token may upload.
    pub is_upload_anonymous: bool,
    /// Whether who has no token may not even read.
    pub is_private: bool,
}

/// How many may be connected, beside what the limit of open files leaves room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionBounds {
    /// All together; at least 1.
    pub all_max: Option<usize>,
    /// From one address; at least 1.
    pub per_address_max: Option<usize>,
}

/// Whether the process gives up what it does not need once it has started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SandboxMode {
    /// It keeps all that it was started with.
    Off,
    /// It gives up what this kernel lets it give up, and says what it could not.
    #[default]
    On,
    /// It does not start if there is something that it cannot give up.
    Require,
}

/// The text is no [`SandboxMode`].
#[derive(Debug, thiserror::Error)]
#[error("expected off, on or require")]
pub struct SandboxModeError;

impl SandboxMode {
    fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Require => "require",
        }
    }
}

impl fmt::Display for SandboxMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for SandboxMode {
    type Err = SandboxModeError;

    fn from_str(text: &str) -> Result<Self, SandboxModeError> {
        [Self::Off, Self::On, Self::Require]
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or(SandboxModeError)
    }
}

/// A place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// TCP; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// A unix stream socket at this path.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Every address of this machine, IPv6 and IPv4, at `port`.
    pub fn everywhere(port: u16) -> Self {
        Self::Tcp(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(formatter, "{address}"),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

/// The text is none of `ADDR:PORT`, `[ADDR]:PORT`, `unix:PATH`.
#[derive(Debug, thiserror::Error)]
pub enum ListenAddressError {
    /// `unix:` with nothing behind it.
    #[error("unix: needs the path of a socket, such as unix:/run/narwire.sock")]
    EmptyPath,
    /// No address and port.
    #[error(
        "expected ADDR:PORT, [ADDR]:PORT or unix:PATH, such as 127.0.0.1:5000, [::]:5000 or unix:/run/narwire.sock"
    )]
    NoAddress(#[from] AddrParseError),
}

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some("") => Err(ListenAddressError::EmptyPath),
            Some(path) => Ok(Self::Unix(PathBuf::from(path))),
            None => Ok(Self::Tcp(text.parse()?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses_are_read_and_written_back() {
        for text in ["127.0.0.1:5000", "[::]:0", "[fe80::1]:65535", "unix:/run/narwire.sock", "unix:relative"]
        {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_proxy_is_an_address_or_a_network() {
        for (text, address, is_in) in [
            ("10.0.0.7", "10.0.0.7", true),
            ("10.0.0.7", "10.0.0.8", false),
            ("10.0.0.0/8", "::ffff:10.200.0.1", true),
            ("::ffff:10.0.0.7", "10.0.0.7", true),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "fe80::1", false),
            ("0.0.0.0/0", "::1", false),
        ] {
            let network: ProxyNetwork = text.parse().unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), is_in, "{text} {address}");
        }
        for text in ["", "proxy.example.org", "10.0.0.0/33", "10.0.0.0/", "unix"] {
            assert!(text.parse::<ProxyNetwork>().is_err(), "{text}");
        }
    }

    #[test]
    fn of_requests_none_all_or_one_in_many_are_logged() {
        let one_in = |rarity| AccessLog::OneIn(NonZeroU32::new(rarity).unwrap());
        for (text, expected) in
            [("off", AccessLog::Off), ("full", one_in(1)), ("1/1", one_in(1)), ("1/100", one_in(100))]
        {
            assert_eq!(text.parse::<AccessLog>().unwrap(), expected, "{text}");
            assert_eq!(expected.to_string().parse::<AccessLog>().unwrap(), expected, "{text}");
        }
        for text in ["", "on", "1/0", "2/3", "1/", "1/4294967296"] {
            assert!(text.parse::<AccessLog>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_listen_address_is_refused() {
        for text in
            ["", ":", "5000", ":5000", "localhost:5000", "::1:5000x", "1.2.3.4", "1.2.3.4:65536", "unix:"]
        {
            assert!(text.parse::<ListenAddress>().is_err(), "{text:?}");
        }
    }
}
