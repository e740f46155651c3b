//! `narwire scrub`: whether all that is served is still what it was.

use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::load;
use super::settings::Settings;
use super::{Failure, print};
use crate::server::config::SourceConfig;
use crate::store::db::{Database, RowId};
use crate::store::{LocalStore, StoreError, walk};

/// Why it could not be looked for damage.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// The configuration names directories alone.
    #[error(
        "there is no live store to scrub: only directories are served; their files can be checked with nix store verify"
    )]
    NoStore,
    /// A disk or the database failed.
    #[error("cannot scrub: {0}")]
    Store(#[from] StoreError),
}

/// How much damage was found.
#[derive(Debug, PartialEq)]
pub struct Damage {
    store_paths: usize,
    files: usize,
}

impl fmt::Display for Damage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let store_paths = counted(self.store_paths as u64, "damaged store path");
        let files = counted(self.files as u64, "damaged file");
        write!(formatter, "found {store_paths} and {files} of the NAR cache")
    }
}

/// What was looked at, and what was found; as JSON, what `--json` prints.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    /// Store paths that were read.
    store_paths: u64,
    /// Files of the NAR cache that were read.
    cache_files: u64,
    /// All that was read.
    bytes: u64,
    /// With the store directory.
    damaged_paths: Vec<String>,
    /// Relative to the NAR cache.
    quarantined_files: Vec<String>,
    seconds: f64,
    /// Whether an earlier scrub had done the beginning.
    resumed: bool,
}

/// Reads the store and the NAR cache that `settings` name, and says what it found.
pub fn run(settings: Settings, is_json: bool) -> Result<(), Failure> {
    // Nothing is signed, and whoever scrubs may have no right to the keys.
    let config = load::load(Settings { secret_key_files: Vec::new(), ..settings }, load::cores())?;
    let store = config.sources.iter().find_map(|source| match source {
        SourceConfig::Store(store) => Some(store),
        SourceConfig::Directory(_) => None,
    });
    let store = store.ok_or(ScrubError::NoStore)?;
    let bar = bar(is_json);
    let summary = look(store, &mut |news| match news {
        News::Phase { name, len_bytes } => {
            bar.set_message(name);
            bar.set_length(len_bytes);
        }
        News::Read(len_bytes) => bar.inc(len_bytes),
    })?;
    bar.finish_and_clear();
    if is_json {
        print(&summary.json())?;
    } else {
        print(&summary.text())?;
    }
    summary.damage().map_or(Ok(()), |damage| Err(Failure::Damage(damage)))
}

/// What a scrub tells while it goes on.
enum News {
    /// It begins with something else, of so many bytes.
    Phase { name: &'static str, len_bytes: u64 },
    /// It has read so many bytes more.
    Read(u64),
}

fn look(store: &LocalStore, tell: &mut dyn FnMut(News)) -> Result<Summary, ScrubError> {
    let started = Instant::now();
    let mut database = Database::open(store)?;
    let mut summary = Summary::default();
    tell(News::Phase { name: "store", len_bytes: 0 });
    let mut after = RowId::default();
    loop {
        let batch = database.valid_paths(after, 1024)?;
        let Some((last, _)) = batch.last() else { break };
        after = *last;
        for (_, path) in batch {
            let Some(info) = database.path_info(path.hash_part())? else { continue };
            summary.store_paths += 1;
            let hash = walk::open_root(store, &path)?.map(|root| walk::hash(&root));
            if !matches!(hash, Some(Ok((hash, _))) if hash == info.nar_hash) {
                summary.damaged_paths.push(path.full(&store.store_dir));
            }
            summary.bytes += info.nar_size;
            tell(News::Read(info.nar_size));
        }
    }
    summary.seconds = started.elapsed().as_secs_f64();
    Ok(summary)
}

/// What a person who waits sees. Hidden by itself where standard error is no terminal.
fn bar(is_json: bool) -> ProgressBar {
    let target = if is_json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(0), target);
    let template =
        "{msg} [{wide_bar}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
    // The template is a constant; were it wrong, the plain bar would do.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

impl Summary {
    /// The damage, if there is any.
    fn damage(&self) -> Option<Damage> {
        let damage = Damage { store_paths: self.damaged_paths.len(), files: self.quarantined_files.len() };
        (damage.store_paths + damage.files > 0).then_some(damage)
    }

    /// For people: one line, and one for each thing that is damaged.
    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        for path in &self.damaged_paths {
            let _ = writeln!(text, "damaged: {path} (to mend it: nix-store --repair-path {path})");
        }
        for file in &self.quarantined_files {
            let _ = writeln!(
                text,
                "damaged: {file} of the NAR cache (moved to .narwire/quarantine, and made anew when asked for)"
            );
        }
        let mut looked_at = counted(self.store_paths, "store path");
        if self.cache_files > 0 {
            let _ = write!(looked_at, " and {} of the NAR cache", counted(self.cache_files, "file"));
        }
        let _ = writeln!(
            text,
            "{}{looked_at}, {} in {}{}",
            if self.damage().is_none() { "all is sound: " } else { "read " },
            HumanBytes(self.bytes),
            HumanDuration(Duration::from_secs_f64(self.seconds)),
            if self.resumed { ", the rest of an earlier scrub" } else { "" },
        );
        text
    }

    /// For programs: one object on one line.
    fn json(&self) -> String {
        serde_json::to_string(self).expect("plain values under plain names are JSON") + "\n"
    }
}

fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        Summary { store_paths: 12, cache_files: 1, bytes: 3 << 20, seconds: 3.0, ..Summary::default() }
    }

    fn damaged() -> Summary {
        Summary {
            damaged_paths: vec!["/nix/store/00000000000000000000000000000000-a".to_owned()],
            quarantined_files: vec!["nar/a.nar.zst".to_owned(), "nar/b.nar".to_owned()],
            resumed: true,
            ..summary()
        }
    }

    #[test]
    fn what_is_sound_is_one_line() {
        let text = summary().text();
        assert_eq!(text, "all is sound: 12 store paths and 1 file of the NAR cache, 3.00 MiB in 3 seconds\n");
        assert_eq!(summary().damage(), None);
    }

    #[test]
    fn each_damaged_thing_is_a_line_that_says_how_to_mend_it() {
        let text = damaged().text();
        let lines: Vec<&str> = text.lines().collect();
        let [path, first, second, last] = lines[..] else { panic!("{text}") };
        assert!(
            path.contains("nix-store --repair-path /nix/store/00000000000000000000000000000000-a"),
            "{path}"
        );
        assert!(first.contains("nar/a.nar.zst") && second.contains("nar/b.nar"), "{text}");
        assert!(last.starts_with("read 12 store paths") && last.contains("earlier scrub"), "{last}");
        let damage = damaged().damage().unwrap();
        assert_eq!(damage.to_string(), "found 1 damaged store path and 2 damaged files of the NAR cache");
        assert_eq!(Failure::Damage(damage).exit_code(), 1);
    }

    #[test]
    fn programs_read_one_object_on_one_line() {
        let json = damaged().json();
        assert_eq!(json.lines().count(), 1);
        let expected = serde_json::json!({
            "storePaths": 12,
            "cacheFiles": 1,
            "bytes": 3 << 20,
            "damagedPaths": ["/nix/store/00000000000000000000000000000000-a"],
            "quarantinedFiles": ["nar/a.nar.zst", "nar/b.nar"],
            "seconds": 3.0,
            "resumed": true,
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), expected);
    }
}
