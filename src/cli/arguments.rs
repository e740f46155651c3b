//! The command line, exactly as typed: no default, no look at the machine.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

use super::file::parsed;
use super::log::{LogFormat, LogLevel};
use super::push::PushArguments;
use super::size::Size;
use super::top::TopArguments;
use crate::background::settings::{Format, Policy};
use crate::codec::signature::PublicKey;
use crate::codec::store_path::StoreDir;
use crate::codec::token::{Scopes, TokenName};
use crate::server::config::{AccessLog, ListenAddress, ProxyNetwork, SandboxMode};

const EXAMPLES: &str = "\
Examples:
  narwire                                   serve this machine's Nix store on port 5000
  narwire --secret-key-file cache.key       the same, signed
  narwire ~/cache -p 8080                   serve what `nix copy --to file://$HOME/cache` made
  narwire --listen 127.0.0.1:0 ./check      any free port; a directory that is named like a command
  narwire --with-store /srv/cache           the live store first, then a directory
  narwire --cache-dir /var/cache/narwire    keep what is asked for again, and send it like files
  narwire ~/cache --upload-token-file tokens
                                            take what `nix copy --to http://…` sends, from who has a token
  narwire ~/cache --upload-token-file tokens --private
                                            the same, and who has no token may not even read
  narwire push --to https://cache ./result  upload a path and all that it refers to (narwire push --help)
  narwire scrub                             is all still what it was? (exit status 0, 1 or 2)
  narwire check --config narwire.toml       what would be served? (exit status 0 or 2)
  narwire top                               what is the server doing? (narwire top --help)
  narwire key generate cache.example.org-1 --output cache.key
                                            make a key that signs, and print the one that clients trust
  narwire token create --file tokens --name ci --scope read,write
                                            make a token for who uploads, and print it
  narwire demo                              a signed throw-away store, also without Nix

A setting is taken from the first that has it: flag, environment, configuration file, default.
Environment:
  NIX_SERVE_PORT         as --port
  NIX_SERVE_STORE_DIR    as --store-dir
  NIX_SECRET_KEY_FILE    as --secret-key-file
  SIGN_KEY_PATHS         several of them, separated by spaces
  CACHE_DIRECTORY        default of --cache-dir, if the live store is served (systemd's CacheDirectory=)
  CREDENTIALS_DIRECTORY  where key and token files named without a slash are (systemd's LoadCredential=)
  RUST_LOG               what is logged: error, warn, info (the default), debug
Sockets handed over by systemd (LISTEN_FDS) take the place of --listen and --port.";

/// A Nix binary cache that serves at the speed of the network card.
///
/// Without a command it serves: the Nix store of this machine, or the cache directories that are named.
#[derive(Debug, Parser)]
#[command(name = "narwire", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct CommandLine {
    /// `None` is `serve`.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The arguments when no command was named.
    #[command(flatten)]
    pub serve: ServeArguments,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the Nix store of this machine, or the cache directories that are named (the default command)
    Serve(ServeArguments),
    /// Do all that serving does before it listens, say what would be served, and exit: 0 if all is well, else 2
    Check(CheckArguments),
    /// Read the store and the NAR cache again and look for damage: exit status 0 if all is sound, 1 if not
    Scrub(ScrubArguments),
    /// Upload store paths, with all that they refer to, to a binary cache that takes PUT
    Push(PushArguments),
    /// Watch what servers do, in a terminal: throughput, requests, waits, hit ratios, damage
    Top(TopArguments),
    /// Work with signing keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Say who may upload (--upload-token-file) and, with --private, who may read
    #[command(subcommand)]
    Token(TokenCommand),
    /// Serve a signed throw-away store on 127.0.0.1, and print commands to try; works without Nix
    Demo(DemoArguments),
    /// Print what makes a shell complete this command line
    Completions(CompletionsArguments),
    /// Write the manual pages, one for each command
    Man(ManArguments),
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// What would be served.
    #[command(flatten)]
    pub serve: ServeArguments,
    /// Look at the settings alone, not at this machine, so that those for another machine can be checked
    #[arg(long)]
    pub settings_only: bool,
}

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key pair: the secret key signs (--secret-key-file), clients trust the public key (trusted-public-keys)
    Generate(KeyGenerateArguments),
}

/// Arguments of `key generate`.
#[derive(Debug, Args)]
pub struct KeyGenerateArguments {
    /// Name of the key, by custom the host of the cache and a number, such as cache.example.org-1
    pub name: String,
    /// Write the secret key into this new file, readable by its owner only, and print the public key alone
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token, add its salted hash to the file, and print the token, which is never shown again
    Create(TokenCreateArguments),
    /// Say which tokens the file has, and what they are good for
    List(TokenListArguments),
    /// Take a token out of the file
    Revoke(TokenRevokeArguments),
}

/// Arguments of `token create`.
#[derive(Debug, Args)]
pub struct TokenCreateArguments {
    /// The file of salted hashes, that of --upload-token-file; made if it is not there
    #[arg(long, value_name = "FILE")]
    pub file: PathBuf,
    /// What to call the token, such as the machine or person that gets it
    #[arg(long, value_name = "NAME")]
    pub name: TokenName,
    /// What it is good for: read, write, or read,write
    #[arg(long, value_name = "SCOPES")]
    pub scope: Scopes,
}

/// Arguments of `token list`.
#[derive(Debug, Args)]
pub struct TokenListArguments {
    /// The file of salted hashes
    #[arg(long, value_name = "FILE")]
    pub file: PathBuf,
}

/// Arguments of `token revoke`.
#[derive(Debug, Args)]
pub struct TokenRevokeArguments {
    /// The file of salted hashes
    #[arg(long, value_name = "FILE")]
    pub file: PathBuf,
    /// The name of the token
    #[arg(long, value_name = "NAME")]
    pub name: TokenName,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Make the store of the entries of this folder; without it, of a small built-in sample
    #[arg(value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Port on 127.0.0.1; without it 5000, or any free one if that is taken
    #[arg(short, long)]
    pub port: Option<u16>,
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// For which shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

/// See [`CompletionsArguments::shell`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// To be read by bash: source <(narwire completions bash)
    Bash,
    /// To be a file _narwire in a folder of fpath
    Zsh,
    /// To be a file narwire.fish in ~/.config/fish/completions
    Fish,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct ManArguments {
    /// Write them here, such as /usr/local/share/man/man1; made if it is not there
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

const SCRUB_HELP: &str = "\
Each store path is hashed and compared with the database, each file of the NAR cache with its own hash. What is damaged \
is listed. A damaged file of the cache is moved to .narwire/quarantine in it, and a server that runs meanwhile no longer \
sends it.

A scrub that was ended goes on where it was, if there is a NAR cache to remember that in. Without one (no --cache-dir, no \
CACHE_DIRECTORY) only the store is read, from the beginning each time.

Exit status:
  0  all is sound
  1  damage was found
  2  it could not be looked for";

/// Arguments of `scrub`: the places, as of `serve`.
#[derive(Debug, Args)]
#[command(after_help = SCRUB_HELP)]
pub struct ScrubArguments {
    /// The store.
    #[command(flatten)]
    pub places: StorePlaces,
    /// The NAR cache; it may be in use by a server
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Print the result as one JSON object, and nothing else
    #[arg(long)]
    pub json: bool,
    /// Break where this says, for tests
    #[arg(long, value_name = "SPEC", hide = true)]
    pub fault: Option<String>,
}

impl ScrubArguments {
    /// The same places as a layer of settings.
    pub fn places(self) -> ServeArguments {
        ServeArguments { cache_dir: self.cache_dir, fault: self.fault, ..self.places.layer() }
    }
}

/// Where the live store is, for commands that need nothing else of the settings.
#[derive(Debug, Default, PartialEq, Args)]
pub struct StorePlaces {
    /// Store directory in the names of store paths [default: /nix/store]
    #[arg(long, value_name = "DIR")]
    pub store_dir: Option<StoreDir>,
    /// Where the files of the store are, if not in the store directory
    #[arg(long, value_name = "DIR")]
    pub real_store: Option<PathBuf>,
    /// Database of the store [default: var/nix/db/db.sqlite beside the real store]
    #[arg(long, value_name = "FILE")]
    pub db: Option<PathBuf>,
    /// Take these places from this TOML file, the one of the server
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl StorePlaces {
    /// The same places as a layer of settings.
    pub fn layer(self) -> ServeArguments {
        ServeArguments {
            store_dir: self.store_dir,
            real_store: self.real_store,
            db: self.db,
            config: self.config,
            ..ServeArguments::default()
        }
    }
}

/// One layer of settings: the flags of `serve`, what the environment says, or the configuration file, whose keys are
/// therefore the names of the flags. Whatever is absent or empty is left to the layer below.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[expect(clippy::struct_excessive_bools, reason = "a flag is typed or it is not")]
pub struct ServeArguments {
    /// Cache directories to serve instead of the live store, asked in this order
    #[arg(value_name = "DIR")]
    pub directories: Vec<PathBuf>,

    /// Listen on all addresses of this machine at this port [default: 5000]
    #[arg(short, long, conflicts_with = "listen")]
    pub port: Option<u16>,

    /// Listen at ADDR:PORT, [ADDR]:PORT or unix:PATH; may be repeated; port 0 takes a free one
    #[arg(short, long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "parsed")]
    pub listen: Vec<ListenAddress>,

    /// Store directory in the names of store paths [default: that of the directories, else /nix/store]
    #[arg(long, value_name = "DIR")]
    #[serde(deserialize_with = "parsed")]
    pub store_dir: Option<StoreDir>,

    /// Where the files of the live store are, if not in the store directory
    #[arg(long, value_name = "DIR")]
    pub real_store: Option<PathBuf>,

    /// Database of the live store [default: var/nix/db/db.sqlite beside the real store]
    #[arg(long, value_name = "FILE")]
    pub db: Option<PathBuf>,

    /// Build logs of the live store [default: var/log/nix/drvs beside the real store]
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,

    /// Serve the live store first, then the directories
    #[arg(long)]
    pub with_store: bool,

    /// Sign what the live store serves with the key in this file; may be repeated
    #[arg(long, value_name = "FILE")]
    pub secret_key_file: Vec<PathBuf>,

    /// Priority that clients see; they ask the cache with the lowest number first [default: 30]
    #[arg(long, value_name = "N")]
    pub priority: Option<u32>,

    /// Network threads [default: one per core that this process may use]
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,

    /// On SIGTERM, give the answers under way this long to finish [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub drain_timeout: Option<u32>,

    /// Most connections at once [default: three quarters of the files that the process may have open]
    #[arg(long, value_name = "N")]
    pub max_connections: Option<usize>,

    /// Most connections at once from one address; behind a load balancer all come from one [default: no bound]
    #[arg(long, value_name = "N")]
    pub max_connections_per_address: Option<usize>,

    /// Once started, give up what is not needed: off, on (as far as the kernel can) or require (or do not start) [default: on]
    #[arg(long, value_name = "MODE")]
    #[serde(deserialize_with = "parsed")]
    pub sandbox: Option<SandboxMode>,

    /// Keep NARs of the live store in this directory, encoded once, and send them from there
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,

    /// What systemd has set aside for this service, which does not know what it will serve. Hides a `cache_dir` of a
    /// lower layer, and is ignored where there is no live store.
    #[arg(skip)]
    #[serde(skip)]
    pub service_cache_dir: Option<PathBuf>,

    /// Which NARs to keep: those asked for again (hot), of all paths (all), or no more than there are (off) [default: hot]
    #[arg(long, value_name = "POLICY")]
    #[serde(deserialize_with = "parsed")]
    pub cache_policy: Option<Policy>,

    /// How to keep them: zstd, flat, both, or zstd and those of small files also flat (auto) [default: auto]
    #[arg(long, value_name = "FORMAT")]
    #[serde(deserialize_with = "parsed")]
    pub cache_format: Option<Format>,

    /// Level of zstd, from 1 (fast) to 19 (small) [default: 3]
    #[arg(long, value_name = "N")]
    pub cache_level: Option<i32>,

    /// All NARs that are kept take at most this much, such as 10G or 500M [default: a quarter of the file system]
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "parsed")]
    pub cache_size: Option<Size>,

    /// Leave this much of the file system free [default: a twentieth of it]
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "parsed")]
    pub cache_min_free: Option<Size>,

    /// While serving, read this much a second to look for damage in store and NAR cache; 0 is not at all [default: 8M]
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "parsed")]
    pub scrub_rate: Option<Size>,

    /// Take uploads (`nix copy --to`) into the first DIR from who has a token of this file with the scope write
    #[arg(long, value_name = "FILE")]
    pub upload_token_file: Option<PathBuf>,

    /// Take uploads into the first DIR from everybody who can connect
    #[arg(long)]
    pub allow_anonymous_upload: bool,

    /// Let only who has a token with the scope read see anything but /health
    #[arg(long)]
    pub private: bool,

    /// Believe X-Forwarded-For, -Proto and -Host of proxies at this address or network, as of those here; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "parsed")]
    pub trusted_proxy: Vec<ProxyNetwork>,

    /// Let nobody search for paths, look into them with a browser, or ask for narinfos as JSON
    #[arg(long)]
    pub no_browse: bool,

    /// What is logged: error, warn, info, debug, or a filter as of RUST_LOG, which goes before it [default: info]
    #[arg(long, value_name = "LEVEL")]
    #[serde(deserialize_with = "parsed")]
    pub log_level: Option<LogLevel>,

    /// How it is logged: human, json, journald, or journald where standard error is the journal, else human (auto) [default: auto]
    #[arg(long, value_name = "FORMAT")]
    #[serde(deserialize_with = "parsed")]
    pub log_format: Option<LogFormat>,

    /// Log a line for each request (full), for one in N (1/N), or for none (off) [default: off]
    #[arg(long, value_name = "WHICH")]
    #[serde(deserialize_with = "parsed")]
    pub access_log: Option<AccessLog>,

    /// Take only paths that this public key (NAME:BASE64) has signed; may be repeated: one of them suffices
    #[arg(long, value_name = "PUBLIC-KEY")]
    #[serde(deserialize_with = "parsed")]
    pub require_signature: Vec<PublicKey>,

    /// Take no file, and no NAR, that is longer than this [default: 32G]
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "parsed")]
    pub upload_max_size: Option<Size>,

    /// Take nothing that would leave less than this of the file system free [default: a twentieth of it]
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "parsed")]
    pub upload_min_free: Option<Size>,

    /// Read settings from this TOML file; its keys are the names of these flags, and `directories`
    #[arg(short, long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Do without these capabilities of the kernel, for tests
    #[arg(long, value_name = "CAPABILITY", value_delimiter = ',', hide = true)]
    pub without: Vec<String>,

    /// Break where this says, for tests
    #[arg(long, value_name = "SPEC", hide = true)]
    #[serde(skip)]
    pub fault: Option<String>,
}

impl FromStr for StoreDir {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| error.to_string())
    }
}

impl FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| format!("{error}; a public key is such as in trusted-public-keys"))
    }
}

/// Reads a command line; its first element is the name of the program.
pub fn parse(arguments: Vec<OsString>) -> Result<CommandLine, clap::Error> {
    CommandLine::try_parse_from(arguments)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;

    fn typed(line: &str) -> Result<CommandLine, clap::Error> {
        parse(line.split_whitespace().map(OsString::from).collect())
    }

    /// The arguments of a line that serves, with or without the word.
    fn serve(line: &str) -> ServeArguments {
        match typed(line).unwrap() {
            CommandLine { command: None, serve }
            | CommandLine { command: Some(Command::Serve(serve)), .. } => serve,
            CommandLine { command: Some(other), .. } => panic!("{line} is {other:?}"),
        }
    }

    fn paths(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn clap_finds_no_fault_with_the_definition() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn the_word_serve_may_be_left_out() {
        for arguments in
            ["", "/srv/cache -p 8080", "-p 8080 /srv/cache", "--listen [::1]:0 --listen unix:/s a b"]
        {
            assert_eq!(serve(&format!("narwire {arguments}")), serve(&format!("narwire serve {arguments}")));
        }
        let arguments = serve("narwire /srv/cache -p 8080");
        assert_eq!((arguments.directories, arguments.port), (paths(&["/srv/cache"]), Some(8080)));
    }

    #[test]
    fn nothing_typed_is_nothing_said() {
        assert_eq!(serve("narwire"), ServeArguments::default());
    }

    #[test]
    fn a_directory_may_be_named_like_a_command() {
        assert_eq!(serve("narwire ./check").directories, paths(&["./check"]));
        assert_eq!(serve("narwire serve check").directories, paths(&["check"]));
        assert!(matches!(typed("narwire check").unwrap().command, Some(Command::Check(_))));
    }

    #[test]
    fn every_flag_is_understood() {
        let arguments = serve(
            "narwire serve d --listen 127.0.0.1:0 --store-dir /s --real-store /r --db f --log-dir l --with-store \
             --secret-key-file a --secret-key-file b --priority 7 --workers 3 --drain-timeout 9 --config c \
             --max-connections 100 --max-connections-per-address 10 --sandbox require \
             --cache-dir n --cache-policy all --cache-format both --cache-level 19 --cache-size 1G \
             --cache-min-free 2G --scrub-rate 0 --upload-token-file t --allow-anonymous-upload --private \
             --require-signature cache.example.org-1:+HhLo9hZyQ767XG9WxBUYS/FQu1JPr79CTsEv0KNK9c= \
             --require-signature cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY= \
             --upload-max-size 3G --upload-min-free 4G --trusted-proxy 10.0.0.0/8 --no-browse --log-level debug \
             --log-format json --access-log 1/7 --fault kill@1 --without sendfile,buffer-ring --without cachestat",
        );
        let expected = ServeArguments {
            directories: paths(&["d"]),
            port: None,
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            store_dir: Some("/s".parse().unwrap()),
            real_store: Some("/r".into()),
            db: Some("f".into()),
            log_dir: Some("l".into()),
            with_store: true,
            secret_key_file: paths(&["a", "b"]),
            priority: Some(7),
            workers: Some(3),
            drain_timeout: Some(9),
            max_connections: Some(100),
            max_connections_per_address: Some(10),
            sandbox: Some(SandboxMode::Require),
            cache_dir: Some("n".into()),
            service_cache_dir: None,
            cache_policy: Some(Policy::All),
            cache_format: Some(Format::Both),
            cache_level: Some(19),
            cache_size: Some(Size(1 << 30)),
            cache_min_free: Some(Size(2 << 30)),
            scrub_rate: Some(Size(0)),
            upload_token_file: Some("t".into()),
            allow_anonymous_upload: true,
            private: true,
            require_signature: [
                "cache.example.org-1:+HhLo9hZyQ767XG9WxBUYS/FQu1JPr79CTsEv0KNK9c=",
                "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
            ]
            .map(|key| key.parse().unwrap())
            .to_vec(),
            upload_max_size: Some(Size(3 << 30)),
            upload_min_free: Some(Size(4 << 30)),
            trusted_proxy: vec!["10.0.0.0/8".parse().unwrap()],
            no_browse: true,
            log_level: Some("debug".parse().unwrap()),
            log_format: Some(LogFormat::Json),
            access_log: Some("1/7".parse().unwrap()),
            config: Some("c".into()),
            without: ["sendfile", "buffer-ring", "cachestat"].map(String::from).to_vec(),
            fault: Some("kill@1".to_owned()),
        };
        assert_eq!(arguments, expected);
    }

    #[test]
    fn the_other_commands_are_understood() {
        let CommandLine { command: Some(Command::Key(KeyCommand::Generate(key))), .. } =
            typed("narwire key generate cache-1 --output k").unwrap()
        else {
            panic!("not key generate")
        };
        assert_eq!((key.name.as_str(), key.output.as_deref()), ("cache-1", Some(Path::new("k"))));

        let line = "narwire token create --file f --name ci.2 --scope write,read";
        let CommandLine { command: Some(Command::Token(TokenCommand::Create(token))), .. } =
            typed(line).unwrap()
        else {
            panic!("not token create")
        };
        assert_eq!((token.file.as_path(), token.name.as_str()), (Path::new("f"), "ci.2"));
        assert_eq!(token.scope.to_string(), "read,write");
        let command = |line: &str| typed(line).unwrap().command;
        let list = command("narwire token list --file f");
        assert!(matches!(list, Some(Command::Token(TokenCommand::List(_)))), "{list:?}");
        let revoke = command("narwire token revoke --file f --name ci.2");
        assert!(matches!(revoke, Some(Command::Token(TokenCommand::Revoke(_)))), "{revoke:?}");

        let CommandLine { command: Some(Command::Demo(demo)), .. } = typed("narwire demo d -p 0").unwrap()
        else {
            panic!("not demo")
        };
        assert_eq!((demo.directory.as_deref(), demo.port), (Some(Path::new("d")), Some(0)));

        let line = "narwire scrub --store-dir /s --real-store /r --db f --cache-dir n --config c --json";
        let CommandLine { command: Some(Command::Scrub(scrub)), .. } = typed(line).unwrap() else {
            panic!("not scrub")
        };
        assert!(scrub.json);
        let places = "narwire serve --store-dir /s --real-store /r --db f --cache-dir n --config c";
        assert_eq!(scrub.places(), serve(places));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "narwire --frobnicate",
            "narwire -p 65536",
            "narwire -p x",
            "narwire -p 1 --listen 127.0.0.1:2",
            "narwire --listen localhost",
            "narwire --store-dir relative",
            "narwire --priority -1",
            "narwire --priority 1 --priority 2",
            "narwire key",
            "narwire key generate",
            "narwire token create --file f --name ci",
            "narwire token create --file f --name a:b --scope read",
            "narwire token create --file f --name ci --scope admin",
            "narwire token revoke --file f",
            "narwire demo a b",
            "narwire --cache-policy warm",
            "narwire --cache-format xz",
            "narwire --cache-level high",
            "narwire --cache-size 10X",
            "narwire --cache-min-free -1",
            "narwire --scrub-rate fast",
            "narwire --upload-max-size large",
            "narwire --require-signature cache.example.org-1",
            "narwire --upload-token-file a --upload-token-file b",
            "narwire scrub /srv/cache",
            "narwire scrub --listen 127.0.0.1:2",
        ] {
            let error = typed(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn help_teaches_by_example() {
        let error = typed("narwire --help").unwrap_err();
        assert_eq!(error.exit_code(), 0);
        let help = error.to_string();
        for line in
            ["narwire ~/cache -p 8080", "NIX_SECRET_KEY_FILE", "--drain-timeout <SECONDS>", "key generate"]
        {
            assert!(help.contains(line), "{line:?} is missing in:\n{help}");
        }
        for flag in ["--without", "--fault"] {
            assert!(!help.contains(flag), "{flag}, a flag for tests, is not advertised:\n{help}");
        }
        assert!(help.contains("narwire token create") && help.contains("--upload-token-file"), "{help}");
        assert!(help.contains("CACHE_DIRECTORY") && help.contains("narwire scrub"), "{help}");
        assert!(help.contains("narwire top"), "{help}");
    }

    #[test]
    fn the_help_of_scrub_says_when_it_cannot_resume() {
        let help = typed("narwire scrub --help").unwrap_err().to_string();
        assert!(help.contains("goes on where it was") && help.contains("CACHE_DIRECTORY"), "{help}");
    }
}
