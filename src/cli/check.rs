//! `narwire check`: what would be served.

use std::fmt::Write;

use indicatif::HumanBytes;

use super::Failure;
use super::load::LoadError;
use crate::codec::signature::PublicKey;
use crate::codec::token::Scope;
use crate::ring::capability::Capabilities;
use crate::server::config::{AccessConfig, Config, ConnectionBounds, NarCacheConfig, SourceConfig};
use crate::server::machine::{connections_max, raise_descriptor_limit};
use crate::server::{RunError, sandbox};
use crate::store::StoreError;
use crate::store::db::Database;
use crate::store::nar_cache::{CacheFolder, Prospect};
use crate::store::upload::UploadSettings;

/// One line for each thing that serving would do with `config`.
pub fn report(config: &Config) -> Result<String, Failure> {
    let unable = |error| Failure::Run(RunError::Start(error));
    let capabilities = probe(config).map_err(unable)?;
    let sandbox = sandbox::try_out(config, capabilities).map_err(unable)?;
    let mut text = String::from("narwire: all is well; would be served:\n");
    for source in &config.sources {
        let line = describe(source).map_err(|error| Failure::Load(error.into()))?;
        let _ = writeln!(text, "  source     {line}");
    }
    let _ = writeln!(text, "  store dir  {}", config.store_dir.as_str());
    if let Some(nar_cache) = &config.nar_cache {
        let prospect = CacheFolder::look(&nar_cache.directory, &config.store_dir).map_err(LoadError::from)?;
        let _ = writeln!(text, "  nar cache  {}", describe_nar_cache(nar_cache, prospect));
    }
    let _ = writeln!(
        text,
        "  uploads    {}",
        describe_uploads(config.uploads.as_ref(), &config.rules.required_keys)
    );
    let _ =
        writeln!(text, "  who may    {}", describe_access(&config.rules.access, config.uploads.is_some()));
    let browsing = if config.is_browsable { "search, paths and what is in them" } else { "off" };
    let _ = writeln!(text, "  browsing   {browsing}");
    for address in &config.listen {
        let _ = writeln!(text, "  listen     {address}");
    }
    for proxy in &*config.rules.trusted_proxies {
        let _ = writeln!(text, "  proxy      {proxy}");
    }
    for key in &*config.rules.secret_keys {
        let _ = writeln!(text, "  sign as    {}", key.public());
    }
    let _ = writeln!(text, "  priority   {}", config.rules.priority);
    let _ = writeln!(text, "  workers    {}", config.workers);
    let _ = writeln!(text, "  io_uring   {}", capabilities.names().collect::<Vec<_>>().join(", "));
    let _ = writeln!(text, "  clients    {}", describe_connections(config.connections));
    let _ = writeln!(text, "  sandbox    {sandbox}");
    let _ = writeln!(text, "  access log {}", config.rules.access_log);
    let _ = writeln!(text, "  drain      {} s", config.rules.drain_timeout.as_secs());
    Ok(text)
}

/// What the kernel can do, less what the configuration does without.
fn probe(config: &Config) -> anyhow::Result<Capabilities> {
    let off = Capabilities::parse(config.capabilities_off.iter().map(String::as_str));
    let off = sandbox::capabilities_off(off.map_err(anyhow::Error::msg)?, config.sandbox);
    Ok(Capabilities::probe(off)?)
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

fn describe_nar_cache(NarCacheConfig { directory, fill }: &NarCacheConfig, prospect: Prospect) -> String {
    let prospect = match prospect {
        Prospect::Missing => " (to be made)",
        Prospect::Empty => " (empty)",
        Prospect::Cache => "",
    };
    let or = |bytes: Option<u64>, otherwise: &str| match bytes {
        Some(bytes) => HumanBytes(bytes).to_string(),
        None => format!("{otherwise} of its file system"),
    };
    let scrub = match fill.scrub_rate {
        0 => "no background scrub".to_owned(),
        rate => format!("scrub at {}/s", HumanBytes(rate)),
    };
    format!(
        "{}{prospect}, policy {}, format {}, zstd level {}, at most {}, {} left free, {scrub}",
        directory.display(),
        fill.policy,
        fill.format,
        fill.level,
        or(fill.len_max, "a quarter"),
        or(fill.free_min, "a twentieth"),
    )
}

/// How many may be connected to a server that may open as many files as this process.
fn describe_connections(bounds: ConnectionBounds) -> String {
    let max = connections_max(raise_descriptor_limit(), bounds.all_max);
    let why =
        if bounds.all_max == Some(max) { "" } else { ", three quarters of the files that may be open here" };
    let each = bounds.per_address_max.map_or(String::new(), |max| format!("; {max} from one address"));
    format!("at most {max}{why}{each}")
}

/// What is taken, and where to.
fn describe_uploads(uploads: Option<&UploadSettings>, required_keys: &[PublicKey]) -> String {
    let Some(uploads) = uploads else { return "none".to_owned() };
    let UploadSettings { directory, len_max, free_min, .. } = uploads;
    let keys = match required_keys {
        [] => "with or without a signature".to_owned(),
        keys => {
            let names: Vec<_> = keys.iter().map(|key| key.key_name().as_str()).collect();
            format!("signed by {}", names.join(" or "))
        }
    };
    format!(
        "into {}, {keys}, at most {} each, {} left free",
        directory.display(),
        HumanBytes(*len_max),
        free_min.map_or("a twentieth of its file system".to_owned(), |bytes| HumanBytes(bytes).to_string()),
    )
}

/// Who may read and who may upload.
fn describe_access(access: &AccessConfig, takes_uploads: bool) -> String {
    let AccessConfig { token_file, tokens, is_upload_anonymous, is_private } = access;
    let read = if *is_private { "tokens with read" } else { "everybody" };
    let write = match (takes_uploads, is_upload_anonymous) {
        (false, _) => "nobody",
        (true, true) => "everybody",
        (true, false) => "tokens with write",
    };
    let mut line = format!("read: {read}; upload: {write}");
    if let Some(path) = token_file {
        let count = |scope| tokens.iter().filter(|record| record.scopes.include(scope)).count();
        let (readers, writers) = (count(Scope::Read), count(Scope::Write));
        // Writing to a String cannot fail.
        let _ = write!(line, " ({}: {readers} may read, {writers} write)", path.display());
    }
    line
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::background::settings::{FillSettings, Format, Policy};
    use crate::codec::signature::PublicKey;
    use crate::codec::store_path::StoreDir;
    use crate::codec::token::{Token, Tokens};

    #[test]
    fn a_nar_cache_is_one_line_with_all_that_was_decided_about_it() {
        let fill = FillSettings {
            policy: Policy::Hot,
            format: Format::Auto,
            level: 3,
            len_max: Some(10 << 30),
            free_min: None,
            scrub_rate: 8 << 20,
        };
        let nar_cache = NarCacheConfig { directory: "/var/cache/narwire".into(), fill };
        assert_eq!(
            describe_nar_cache(&nar_cache, Prospect::Missing),
            "/var/cache/narwire (to be made), policy hot, format auto, zstd level 3, at most 10.00 GiB, a twentieth of its file \
             system left free, scrub at 8.00 MiB/s"
        );
        let unbounded = FillSettings { len_max: None, scrub_rate: 0, ..nar_cache.fill.clone() };
        let line = describe_nar_cache(&NarCacheConfig { fill: unbounded, ..nar_cache }, Prospect::Cache);
        assert!(line.contains("at most a quarter of its file system,"), "{line}");
        assert!(line.ends_with("no background scrub"), "{line}");
    }

    #[test]
    fn uploads_are_one_line_with_all_that_was_decided_about_them() {
        let uploads = UploadSettings {
            directory: "/srv/cache".into(),
            store_dir: StoreDir::parse("/nix/store").unwrap(),
            len_max: 32 << 30,
            free_min: None,
        };
        assert_eq!(
            describe_uploads(Some(&uploads), &[]),
            "into /srv/cache, with or without a signature, at most 32.00 GiB each, a twentieth of its file system left free"
        );
        let key = PublicKey::parse("cache-1:+HhLo9hZyQ767XG9WxBUYS/FQu1JPr79CTsEv0KNK9c=").unwrap();
        let strict = UploadSettings { free_min: Some(1 << 30), ..uploads };
        let line = describe_uploads(Some(&strict), &[key]);
        assert!(line.contains("signed by cache-1,") && line.ends_with("1.00 GiB left free"), "{line}");
        assert_eq!(describe_uploads(None, &[]), "none");
    }

    #[test]
    fn who_may_what_is_one_line() {
        let record = |name: &str, scopes: &str| {
            let token = Token::new(name.parse().unwrap(), &[7; 32]);
            format!("{}\n", token.record(scopes.parse().unwrap(), [9; 16]))
        };
        let tokens: Tokens = (record("ci", "read,write") + &record("bob", "read")).parse().unwrap();
        let mut access = AccessConfig::default();
        assert_eq!(describe_access(&access, false), "read: everybody; upload: nobody");
        access.is_upload_anonymous = true;
        assert_eq!(describe_access(&access, true), "read: everybody; upload: everybody");
        let access = AccessConfig {
            token_file: Some("/t".into()),
            tokens: Arc::new(tokens),
            is_upload_anonymous: false,
            is_private: true,
        };
        assert_eq!(
            describe_access(&access, true),
            "read: tokens with read; upload: tokens with write (/t: 2 may read, 1 write)"
        );
    }
}
