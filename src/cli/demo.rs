//! `narwire demo`: a signed throw-away store, served, with commands to try.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use super::Failure;
use super::arguments::DemoArguments;
use super::key::random_key;
use super::log::LogFormat;
use crate::codec::signature::PublicKey;
use crate::codec::store_path::{StoreDir, StorePath};
use crate::limits::{PORT_DEFAULT, PRIORITY_DEFAULT};
use crate::server;
use crate::server::config::{
    AccessConfig, AccessLog, Config, ConnectionBounds, ListenAddress, Rules, SandboxMode, SourceConfig,
};
use crate::server::listen::Listener;
use crate::server::scribe::Scribe;
use crate::store::demo::{DemoStore, Progress};

const KEY_NAME: &str = "narwire-demo-1";

/// Nobody depends on a demo.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Makes the store, serves it until a signal, and removes it.
pub fn run(arguments: &DemoArguments, scribe: &Arc<Scribe>, cores: usize) -> Result<(), Failure> {
    let secret_key = random_key(KEY_NAME)?;
    let public_key = secret_key.public();
    let demo = create_store(arguments)?;
    let config = Config {
        listen: vec![ListenAddress::Tcp(SocketAddr::from((
            Ipv4Addr::LOCALHOST,
            choose_port(arguments.port),
        )))],
        store_dir: demo.store.store_dir.clone(),
        sources: vec![SourceConfig::Store(demo.store.clone())],
        workers: cores,
        connections: ConnectionBounds::default(),
        sandbox: SandboxMode::On,
        is_browsable: true,
        removed_at_end: Some(demo.root().to_path_buf()),
        nar_cache: None,
        uploads: None,
        rules: Rules {
            secret_keys: Arc::from([secret_key]),
            required_keys: Arc::from([]),
            priority: PRIORITY_DEFAULT,
            drain_timeout: DRAIN_TIMEOUT,
            access: AccessConfig::default(),
            trusted_proxies: Arc::from([]),
            access_log: AccessLog::Off,
        },
        rule_places: Vec::new(),
        capabilities_off: Vec::new(),
    };
    let store_dir = config.store_dir.clone();
    let nothing = || Err("a demo has no settings that could be read again".to_owned());
    let result = server::run(config, scribe, nothing, |listeners| {
        super::announce(listeners, scribe, LogFormat::default());
        // What is printed next is another stream.
        scribe.flush();
        if let Some(url) = listeners.iter().find_map(url) {
            // The commands are a courtesy: a closed output must not end the server.
            let _ = super::print(&instructions(&url, &store_dir, &demo.paths, &public_key));
        }
    });
    // Explicit, because the server uses it until here without naming it.
    drop(demo);
    result.map_err(Failure::from)
}

fn create_store(arguments: &DemoArguments) -> Result<DemoStore, Failure> {
    let terminal = io::stderr().is_terminal();
    let mut added: usize = 0;
    let demo = DemoStore::create(arguments.directory.as_deref(), &mut |progress| match progress {
        Progress::Added { name, .. } if terminal => {
            added += 1;
            let _ = write!(io::stderr(), "\r\x1b[Kcopying {added}: {name}");
        }
        Progress::Added { .. } => {}
        Progress::Skipped { name, reason } => {
            let _ = writeln!(io::stderr(), "{}narwire: left out {name}: {reason}", clear_line(terminal));
        }
    });
    let _ = write!(io::stderr(), "{}", clear_line(terminal));
    demo.map_err(Failure::Demo)
}

fn clear_line(terminal: bool) -> &'static str {
    if terminal { "\r\x1b[K" } else { "" }
}

/// The port that was asked for; else the one that every example names; else, if that is taken, any.
fn choose_port(asked: Option<u16>) -> u16 {
    let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    asked.unwrap_or_else(|| if is_free(PORT_DEFAULT) { PORT_DEFAULT } else { 0 })
}

fn url(listener: &Listener) -> Option<String> {
    match &listener.address {
        ListenAddress::Tcp(address) => Some(format!("http://{address}")),
        ListenAddress::Unix(_) => None,
    }
}

/// What to type in another terminal.
fn instructions(url: &str, store_dir: &StoreDir, paths: &[StorePath], public_key: &PublicKey) -> String {
    let mut text = format!(
        "\nA store of {} paths is served until Ctrl-C. Open {url}/ in a browser, or in another terminal:\n",
        paths.len()
    );
    let _ = writeln!(text, "\n  narwire top {url}");
    let _ = writeln!(text, "  curl {url}/nix-cache-info");
    if let Some(path) = paths.first() {
        let (hash_part, full) = (path.hash_part(), path.full(store_dir));
        let _ = writeln!(text, "  curl {url}/{hash_part}.narinfo");
        let _ = writeln!(text, "  curl -s {url}/nar/{hash_part}.nar | tr -cd '[:print:]\\n' | head");
        let _ = writeln!(text, "\nWith Nix, into a store of its own (no root needed):\n");
        let _ = writeln!(text, "  nix --extra-experimental-features nix-command copy \\");
        let _ = writeln!(text, "    --from {url} --to /tmp/narwire-copy \\");
        let _ = writeln!(text, "    --option trusted-public-keys '{public_key}' \\\n    {full}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_that_was_asked_for_is_not_argued_with() {
        assert_eq!(choose_port(Some(1)), 1);
        assert_eq!(choose_port(Some(0)), 0);
    }

    #[test]
    fn instructions_are_ready_to_copy() {
        let store_dir = StoreDir::parse("/nix/store").unwrap();
        let base_name = "00000000000000000000000000000000-hello";
        let path = StorePath::parse_base_name(base_name).unwrap();
        let public_key = random_key(KEY_NAME).unwrap().public();
        let text = instructions("http://127.0.0.1:5000", &store_dir, &[path], &public_key);
        for part in [
            "Open http://127.0.0.1:5000/ in a browser",
            "narwire top http://127.0.0.1:5000",
            "curl http://127.0.0.1:5000/nix-cache-info",
            "curl http://127.0.0.1:5000/00000000000000000000000000000000.narinfo",
            &format!("trusted-public-keys '{public_key}'"),
            "/nix/store/00000000000000000000000000000000-hello",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }
}
