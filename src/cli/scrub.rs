//! `narwire scrub`: whether all that is served is still what it was.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::settings::Settings;
use super::{Failure, load, print};
use crate::background::scrub::{self, Outcome, Phase, Progress};
use crate::server::config::SourceConfig;
use crate::store::nar_cache::{CacheFolder, Prospect};

/// Why nothing, or not all, could be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// The configuration names directories alone.
    #[error(
        "there is no live store to scrub: only directories are served; add --with-store, or name no directory"
    )]
    NoStore,
    /// Somebody said where the NAR cache is, and no server has made it yet.
    #[error("there is no NAR cache in {} yet: leave out --cache-dir to scrub the store alone", .0.display())]
    NoCache(PathBuf),
    /// See its cause.
    #[error("cannot scrub: {0}")]
    Scrub(#[from] scrub::ScrubError),
}

/// What is not as it must be.
#[derive(Debug, PartialEq)]
pub struct Damage {
    store_paths: u64,
    files: u64,
    unreadable: u64,
}

impl fmt::Display for Damage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            (self.store_paths, "damaged store path"),
            (self.files, "damaged cached file"),
            (self.unreadable, "unreadable thing"),
        ];
        let found =
            kinds.into_iter().filter(|(count, _)| *count > 0).map(|(count, noun)| counted(count, noun));
        write!(formatter, "found {}", found.collect::<Vec<_>>().join(", "))
    }
}

/// What was found, and how.
#[derive(Debug)]
struct Summary {
    outcome: Outcome,
    took: Duration,
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
    let cache = config.nar_cache.as_ref().map(|nar_cache| nar_cache.directory.as_path());
    if let Some(directory) = cache
        && CacheFolder::look(directory, &config.store_dir).map_err(load::LoadError::from)? != Prospect::Cache
    {
        return Err(ScrubError::NoCache(directory.to_path_buf()).into());
    }
    let (began, mut watcher) = (Instant::now(), Watcher::new(is_json));
    let cache = cache.map(|directory| (directory, &config.store_dir));
    let outcome = scrub::scrub(Some(store), cache, &mut |progress| watcher.watch(progress));
    watcher.bar.finish_and_clear();
    let summary = Summary { outcome: outcome.map_err(ScrubError::from)?, took: began.elapsed() };
    print(&if is_json { summary.json() } else { summary.text() })?;
    summary.damage().map_or(Ok(()), |damage| Err(Failure::Damage(damage)))
}

/// Shows a person who waits how far it is.
struct Watcher {
    /// Hidden by itself where standard error is no terminal.
    bar: ProgressBar,
    phase: Option<Phase>,
}

impl Watcher {
    fn new(is_json: bool) -> Self {
        let target = if is_json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let template =
            "{msg} [{wide_bar}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
        // The template is a constant; were it wrong, the plain bar would do.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar, phase: None }
    }

    fn watch(&mut self, progress: Progress<'_>) {
        if self.phase != Some(progress.phase) {
            self.phase = Some(progress.phase);
            self.bar.set_message(match progress.phase {
                Phase::StorePaths => "store paths",
                Phase::CachedFiles => "cached files",
            });
            self.bar.set_position(progress.done_bytes);
            self.bar.reset_eta();
        }
        self.bar.set_length(progress.total_bytes);
        self.bar.set_position(progress.done_bytes);
    }
}

impl Summary {
    /// What is not as it must be, if anything.
    fn damage(&self) -> Option<Damage> {
        let Outcome { damaged_paths, quarantined_files, unreadable, .. } = &self.outcome;
        let damage = Damage {
            store_paths: damaged_paths.count,
            files: quarantined_files.count,
            unreadable: unreadable.count,
        };
        (damage.store_paths + damage.files + damage.unreadable > 0).then_some(damage)
    }

    /// For people: a line for each thing that is damaged, and one for all.
    fn text(&self) -> String {
        let Outcome { paths, files, bytes, damaged_paths, quarantined_files, unreadable, is_resumed } =
            &self.outcome;
        let mut text = String::new();
        // Writing to a String cannot fail.
        for path in &damaged_paths.names {
            let _ = writeln!(text, "damaged: {path} (to mend it: nix-store --repair-path {path})");
        }
        for file in &quarantined_files.names {
            let _ = writeln!(text, "damaged, and moved to .narwire/quarantine in the NAR cache: {file}");
        }
        for thing in &unreadable.names {
            let _ = writeln!(text, "cannot be read: {thing}");
        }
        for findings in [damaged_paths, quarantined_files, unreadable] {
            let more = findings.count.saturating_sub(findings.names.len() as u64);
            if more > 0 {
                let _ =
                    writeln!(text, "and {more} more like {}", findings.names.last().map_or("", |name| name));
            }
        }
        let mut looked_at = counted(*paths, "store path");
        if *files > 0 {
            let _ = write!(looked_at, " and {}", counted(*files, "cached file"));
        }
        let verdict = if self.damage().is_none() { "all is sound: " } else { "" };
        let resumed = if *is_resumed { ", an earlier scrub included" } else { "" };
        let (read, took) = (HumanBytes(*bytes), HumanDuration(self.took));
        let _ = writeln!(text, "{verdict}{looked_at}, {read} in {took}{resumed}");
        text
    }

    /// For programs: one object on one line. Of long lists the end is missing, and the count says so.
    fn json(&self) -> String {
        let Outcome { paths, files, bytes, damaged_paths, quarantined_files, unreadable, is_resumed } =
            &self.outcome;
        let object = serde_json::json!({
            "storePaths": paths,
            "cachedFiles": files,
            "bytes": bytes,
            "damagedPathCount": damaged_paths.count,
            "damagedPaths": damaged_paths.names,
            "quarantinedFileCount": quarantined_files.count,
            "quarantinedFiles": quarantined_files.names,
            "unreadableCount": unreadable.count,
            "unreadable": unreadable.names,
            "seconds": self.took.as_secs_f64(),
            "resumed": is_resumed,
        });
        format!("{object}\n")
    }
}

fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::background::scrub::Findings;

    const PATH: &str = "/nix/store/00000000000000000000000000000000-a";

    fn sound() -> Summary {
        let outcome = Outcome { paths: 12, files: 1, bytes: 3 << 20, ..Outcome::default() };
        Summary { outcome, took: Duration::from_secs(3) }
    }

    fn damaged() -> Summary {
        let findings = |names: &[&str], count| Findings {
            count,
            names: names.iter().map(|&name| name.to_owned()).collect(),
        };
        let outcome = Outcome {
            damaged_paths: findings(&[PATH], 1),
            quarantined_files: findings(&["nar/a.nar.zst: its hash is wrong", "nar/b.nar: it is missing"], 7),
            is_resumed: true,
            ..sound().outcome
        };
        Summary { outcome, ..sound() }
    }

    fn progress(phase: Phase, done: u64) -> Progress<'static> {
        Progress { phase, done, total: 9, done_bytes: done, total_bytes: 9, current: "" }
    }

    #[test]
    fn what_is_sound_is_one_line() {
        assert_eq!(sound().text(), "all is sound: 12 store paths and 1 cached file, 3.00 MiB in 3 seconds\n");
        assert_eq!(sound().damage(), None);
    }

    #[test]
    fn each_damaged_thing_is_a_line_and_store_paths_say_how_to_mend_them() {
        let text = damaged().text();
        let lines: Vec<&str> = text.lines().collect();
        let [path, first, second, more, last] = lines[..] else { panic!("{text}") };
        assert!(path.contains(&format!("nix-store --repair-path {PATH}")), "{path}");
        assert!(first.contains("nar/a.nar.zst") && second.contains("nar/b.nar"), "{text}");
        assert!(more.contains("5 more"), "{more}");
        assert!(last.starts_with("12 store paths") && last.contains("earlier scrub"), "{last}");
    }

    #[test]
    fn damage_is_exit_code_1_and_a_sentence() {
        let damage = damaged().damage().unwrap();
        assert_eq!(damage.to_string(), "found 1 damaged store path, 7 damaged cached files");
        assert_eq!(Failure::Damage(damage).exit_code(), 1);
        let unreadable = Findings { count: 2, names: Vec::new() };
        let summary = Summary { outcome: Outcome { unreadable, ..sound().outcome }, ..sound() };
        assert_eq!(summary.damage().unwrap().to_string(), "found 2 unreadable things");
    }

    #[test]
    fn programs_read_one_object_on_one_line() {
        let json = damaged().json();
        assert_eq!(json.lines().count(), 1);
        let expected = serde_json::json!({
            "storePaths": 12,
            "cachedFiles": 1,
            "bytes": 3 << 20,
            "damagedPathCount": 1,
            "damagedPaths": [PATH],
            "quarantinedFileCount": 7,
            "quarantinedFiles": ["nar/a.nar.zst: its hash is wrong", "nar/b.nar: it is missing"],
            "unreadableCount": 0,
            "unreadable": [],
            "seconds": 3.0,
            "resumed": true,
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), expected);
    }

    #[test]
    fn each_phase_has_a_bar_that_begins_where_an_earlier_scrub_was() {
        let mut watcher = Watcher::new(true);
        for (phase, done, message) in [
            (Phase::StorePaths, 3, "store paths"),
            (Phase::StorePaths, 9, "store paths"),
            (Phase::CachedFiles, 4, "cached files"),
        ] {
            watcher.watch(progress(phase, done));
            assert_eq!((watcher.bar.position(), watcher.bar.length()), (done, Some(9)));
            assert_eq!(watcher.bar.message(), message);
        }
    }
}
