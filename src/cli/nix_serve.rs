//! Called as `nix-serve`: the flags of nix-serve (those of Starman, its web server) and of nix-serve-ng, translated
//! into the layer of settings that the same wish makes in this program's own words. Where the store is has more answers
//! than a store URI can give, so the flags for that are taken by this name as well.
//!
//! Flags that tune what does not exist here are accepted without effect, because service definitions contain them.
//! Flags that promise something (TLS, another user, another kind of store) are errors rather than broken promises.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, Parser};

use super::arguments::ServeArguments;
use crate::codec::store_path::StoreDir;
use crate::limits::PORT_DEFAULT;
use crate::server::config::ListenAddress;

const HELP_AFTER: &str = "\
Accepted without effect:
  --timeout, --backlog, --quiet, --verbose, --log-format, --access-log, --error-log, --max-requests,
  --keepalive-timeout, --read-timeout, --env, --preload-app, --disable-keepalive, --disable-proctitle
RUST_LOG decides what is logged. NIX_SECRET_KEY_FILE names the key that signs.
For TLS, put a web server in front. Called as narwire, this program can do more: see narwire --help.";

/// narwire, called by the name and with the flags of nix-serve
#[derive(Debug, Parser)]
#[command(name = "nix-serve", version, after_help = HELP_AFTER, args_override_self = true)]
struct NixServeArguments {
    /// HOST:PORT, :PORT, or the path of a unix socket; may be repeated
    #[arg(short, long, value_name = "ADDRESS", action = clap::ArgAction::Append)]
    listen: Vec<String>,
    /// Address to listen on, where --listen is not given [default: all]
    #[arg(short = 'o', long)]
    host: Option<String>,
    /// Port to listen on, where --listen is not given [default: 5000]
    #[arg(short, long)]
    port: Option<u16>,
    /// Path of a unix socket to listen on
    #[arg(short = 'S', long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// At most this many network threads; there are never more than cores
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Priority that clients see
    #[arg(long, value_name = "N")]
    priority: Option<u32>,
    /// Store on this machine: auto, daemon, local, a root directory, or local?root=DIR
    #[arg(long, value_name = "URI", conflicts_with = "real_store")]
    store: Option<String>,
    /// As of narwire
    #[arg(long, value_name = "DIR")]
    store_dir: Option<StoreDir>,
    /// As of narwire
    #[arg(long, value_name = "DIR")]
    real_store: Option<PathBuf>,
    /// As of narwire
    #[arg(long, value_name = "FILE")]
    db: Option<PathBuf>,
    /// As of narwire
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// As of narwire
    #[arg(long, value_name = "CAPABILITY", value_delimiter = ',', hide = true)]
    without: Vec<String>,
    #[command(flatten)]
    ignored: IgnoredArguments,
}

/// Understood, and without effect: they tune machinery that is not here.
#[expect(clippy::struct_excessive_bools, reason = "flags of other programs, never read")]
#[derive(Debug, Args)]
struct IgnoredArguments {
    #[arg(long, hide = true)]
    timeout: Option<String>,
    #[arg(long, hide = true)]
    backlog: Option<String>,
    #[arg(long, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    verbose: bool,
    #[arg(long, hide = true)]
    log_format: Option<String>,
    #[arg(long, hide = true)]
    access_log: Option<String>,
    #[arg(long, hide = true)]
    error_log: Option<String>,
    #[arg(long, hide = true)]
    max_requests: Option<String>,
    #[arg(long, hide = true)]
    keepalive_timeout: Option<String>,
    #[arg(long, hide = true)]
    read_timeout: Option<String>,
    #[arg(short = 'E', long, hide = true)]
    env: Option<String>,
    #[arg(long, hide = true)]
    preload_app: bool,
    #[arg(long, hide = true)]
    disable_keepalive: bool,
    #[arg(long, hide = true)]
    disable_proctitle: bool,
}

/// Whether the program was called by the name of nix-serve.
pub fn is_called(program: Option<&OsString>) -> bool {
    program.is_some_and(|program| Path::new(program).file_name().is_some_and(|name| name == "nix-serve"))
}

/// Reads the command line of a nix-serve into the settings that it means on a machine with so many `cores`.
pub fn parse(arguments: Vec<OsString>, cores: usize) -> Result<ServeArguments, clap::Error> {
    let typed = NixServeArguments::try_parse_from(arguments)?;
    translate(typed, cores).map_err(|cause| clap::Error::raw(clap::error::ErrorKind::ValueValidation, cause))
}

fn translate(typed: NixServeArguments, cores: usize) -> Result<ServeArguments, String> {
    let mut listen = Vec::new();
    for address in &typed.listen {
        listen.push(listen_address(address)?);
    }
    listen.extend(typed.socket.map(ListenAddress::Unix));
    if listen.is_empty()
        && let Some(host) = &typed.host
    {
        listen.push(tcp_address(host, typed.port.unwrap_or(PORT_DEFAULT))?);
    }
    let root = typed.store.as_deref().map(store_root).transpose()?.flatten();
    Ok(ServeArguments {
        port: typed.port.filter(|_| listen.is_empty()),
        listen,
        store_dir: typed.store_dir,
        real_store: root.map(|root| root.join("nix/store")).or(typed.real_store),
        db: typed.db,
        log_dir: typed.log_dir,
        without: typed.without,
        // Theirs are processes that each serve one client, 5 to start with; ours are threads that each own a core.
        workers: typed.workers.map(|workers| workers.min(cores)),
        priority: typed.priority,
        ..ServeArguments::default()
    })
}

/// `HOST:PORT`, `:PORT` or a path, told apart as Plack does: what ends in a port is no path.
fn listen_address(text: &str) -> Result<ListenAddress, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => match port.parse() {
            Ok(port) => tcp_address(host, port),
            Err(_) => Err(format!("--listen {text}: {port:?} is no port")),
        },
        _ => Ok(ListenAddress::Unix(PathBuf::from(text.strip_prefix("unix:").unwrap_or(text)))),
    }
}

/// Names are not looked up: what a server listens to must not depend on another server's answer.
fn tcp_address(host: &str, port: u16) -> Result<ListenAddress, String> {
    let bare_host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let ip = match bare_host {
        "" | "*" => return Ok(ListenAddress::everywhere(port)),
        "localhost" => IpAddr::from(Ipv4Addr::LOCALHOST),
        address => match address.parse() {
            Ok(ip) => ip,
            Err(_) => {
                return Err(format!(
                    "{host:?} is no IP address, and names are not looked up: give the address"
                ));
            }
        },
    };
    Ok(ListenAddress::Tcp(SocketAddr::new(ip, port)))
}

/// The root of the chroot store that a store URI names; `None` for the store of this machine.
fn store_root(uri: &str) -> Result<Option<PathBuf>, String> {
    if matches!(uri, "" | "auto" | "daemon" | "local") {
        return Ok(None);
    }
    let root = uri.strip_prefix("local?root=").unwrap_or(uri);
    if !root.starts_with('/') || root.contains(['?', '&', '%']) {
        return Err(format!(
            "--store {uri}: only a store on this machine can be served: auto, daemon, local, a root directory, or \
             local?root=DIR"
        ));
    }
    Ok(Some(PathBuf::from(root)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CORES: usize = 4;

    fn parse_line(line: &str) -> Result<ServeArguments, clap::Error> {
        parse(line.split_whitespace().map(OsString::from).collect(), CORES)
    }

    fn listens(line: &str) -> Vec<String> {
        parse_line(line).unwrap().listen.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_the_file_name_of_the_program_counts() {
        for (program, expected) in [
            ("nix-serve", true),
            ("/nix/store/x-narwire/bin/nix-serve", true),
            ("narwire", false),
            ("a/nix-serve/narwire", false),
        ] {
            assert_eq!(is_called(Some(&OsString::from(program))), expected, "{program}");
        }
        assert!(!is_called(None));
    }

    #[test]
    fn nothing_typed_is_nothing_said() {
        assert_eq!(parse_line("nix-serve").unwrap(), ServeArguments::default());
    }

    #[test]
    fn addresses_are_understood_in_every_form_of_the_peers() {
        for (line, expected) in [
            ("nix-serve --listen 0.0.0.0:5000", "0.0.0.0:5000"),
            ("nix-serve -l :8080", "[::]:8080"),
            ("nix-serve --listen *:8080", "[::]:8080"),
            ("nix-serve --listen localhost:1", "127.0.0.1:1"),
            ("nix-serve --listen [::1]:1", "[::1]:1"),
            ("nix-serve --listen /run/nix-serve.sock", "unix:/run/nix-serve.sock"),
            ("nix-serve --listen unix:/run/nix-serve.sock", "unix:/run/nix-serve.sock"),
            ("nix-serve -S /run/s", "unix:/run/s"),
            ("nix-serve --host 127.0.0.1", "127.0.0.1:5000"),
            ("nix-serve -o ::1 -p 80", "[::1]:80"),
            ("nix-serve --host * --port 80", "[::]:80"),
            ("nix-serve --listen 127.0.0.1:1 --port 2 --host 127.0.0.2", "127.0.0.1:1"),
        ] {
            assert_eq!(listens(line), [expected], "{line}");
        }
        assert_eq!(listens("nix-serve -l :1 -l :2 -S /s"), ["[::]:1", "[::]:2", "unix:/s"]);
        let port = parse_line("nix-serve --port 80").unwrap();
        assert_eq!((port.port, port.listen), (Some(80), Vec::new()));
    }

    #[test]
    fn workers_are_bounded_by_the_cores() {
        assert_eq!(parse_line("nix-serve --workers 32").unwrap().workers, Some(CORES));
        assert_eq!(parse_line("nix-serve --workers 1").unwrap().workers, Some(1));
    }

    #[test]
    fn local_stores_are_understood_and_others_refused() {
        for uri in ["auto", "daemon", "local"] {
            assert_eq!(parse_line(&format!("nix-serve --store {uri}")).unwrap(), ServeArguments::default());
        }
        for uri in ["/mnt", "local?root=/mnt"] {
            let arguments = parse_line(&format!("nix-serve --store {uri}")).unwrap();
            assert_eq!(arguments.real_store, Some("/mnt/nix/store".into()), "{uri}");
        }
        for uri in
            ["https://cache.example.org", "ssh://host", "local?root=/a&state=/b", "relative", "unix:///s"]
        {
            let error = parse_line(&format!("nix-serve --store {uri}")).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(uri), "{error}");
        }
    }

    #[test]
    fn the_places_of_a_store_can_be_said_as_to_narwire() {
        let line =
            "nix-serve --store-dir /s --real-store /r --db /d --log-dir /l --without sendfile,buffer-ring";
        let expected = ServeArguments {
            store_dir: Some("/s".parse().unwrap()),
            real_store: Some("/r".into()),
            db: Some("/d".into()),
            log_dir: Some("/l".into()),
            without: ["sendfile", "buffer-ring"].map(String::from).to_vec(),
            ..ServeArguments::default()
        };
        assert_eq!(parse_line(line).unwrap(), expected);
        assert!(parse_line("nix-serve --store /mnt --real-store /r").is_err());
    }

    #[test]
    fn flags_of_other_machinery_have_no_effect() {
        let line = "nix-serve --timeout 600 --backlog 1024 --quiet --verbose --log-format real-ip \
                    --access-log /dev/null --error-log /dev/null --max-requests 1000 \
                    --keepalive-timeout 1 --read-timeout 5 -E deployment \
                    --preload-app --disable-keepalive --disable-proctitle";
        assert_eq!(parse_line(line).unwrap(), ServeArguments::default());
    }

    #[test]
    fn the_last_of_two_values_wins_as_in_perl() {
        assert_eq!(parse_line("nix-serve --priority 30 --priority 40").unwrap().priority, Some(40));
    }

    #[test]
    fn promises_that_cannot_be_kept_are_refused() {
        for line in [
            "nix-serve --ssl-cert a --ssl-key b",
            "nix-serve --enable-ssl",
            "nix-serve --daemonize",
            "nix-serve --user nobody",
            "nix-serve --listen example.org:5000",
            "nix-serve --listen :65536",
            "nix-serve --frobnicate",
            "nix-serve positional",
        ] {
            assert_eq!(parse_line(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
