//! `narwire check`: what would be served.

use std::fmt::Write;

use super::Failure;
use crate::ring::capability::Capabilities;
use crate::server::RunError;
use crate::server::config::{Config, SourceConfig};
use crate::store::StoreError;
use crate::store::db::Database;

/// One line for each thing that serving would do with `config`.
pub fn report(config: &Config) -> Result<String, Failure> {
    let capabilities = probe(config).map_err(|error| Failure::Run(RunError::Start(error)))?;
    let mut text = String::from("narwire: all is well; would be served:\n");
    for source in &config.sources {
        let line = describe(source).map_err(|error| Failure::Load(error.into()))?;
        let _ = writeln!(text, "  source     {line}");
    }
    let _ = writeln!(text, "  store dir  {}", config.store_dir.as_str());
    for address in &config.listen {
        let _ = writeln!(text, "  listen     {address}");
    }
    for key in &config.secret_keys {
        let _ = writeln!(text, "  sign as    {}", key.public());
    }
    let _ = writeln!(text, "  priority   {}", config.priority);
    let _ = writeln!(text, "  workers    {}", config.workers);
    let _ = writeln!(text, "  io_uring   {}", capabilities.names().collect::<Vec<_>>().join(", "));
    let _ = writeln!(text, "  drain      {} s", config.drain_timeout.as_secs());
    Ok(text)
}

/// What the kernel can do, less what the configuration does without.
fn probe(config: &Config) -> anyhow::Result<Capabilities> {
    let off = Capabilities::parse(config.capabilities_off.iter().map(String::as_str));
    Ok(Capabilities::probe(off.map_err(anyhow::Error::msg)?)?)
}

fn describe(source: &SourceConfig) -> Result<String, StoreError> {
    match source {
        SourceConfig::Store(store) => {
            let paths = Database::open(store)?.count()?;
            let (files, database) = (store.real_store.display(), store.database.display());
            Ok(format!("live store {files}, {paths} paths in {database}"))
        }
        SourceConfig::Directory(path) => Ok(format!("cache directory {}", path.display())),
    }
}
