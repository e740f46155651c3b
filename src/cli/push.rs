//! `narwire push`: what this machine's store has, to a binary cache elsewhere.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::arguments::{ServeArguments, StorePlaces};
use super::settings::Settings;
use super::{Failure, load, print};
use crate::limits::{CACHE_LEVEL_DEFAULT, CACHE_LEVEL_MAX, PUSH_JOBS_DEFAULT_MIN, PUSH_JOBS_MAX};
use crate::push::address::{Address, AddressError};
use crate::push::client::{Cache, CertificatesError};
use crate::push::closure::Wanted;
use crate::push::credentials::{self, CredentialsError};
use crate::push::nar::Encoding;
use crate::push::resolve::ResolveError;
use crate::push::{self, Doing, Event, Lane, Outcome, Progress, PushError, Pusher};
use crate::server::config::{AccessConfig, SourceConfig};

/// The variable that names the cache.
const TO: &str = "NARWIRE_PUSH_TO";
/// The variables that name certificates, as for Nix. SSL_CERT_FILE is looked at where the system's own are.
pub(super) const CERTIFICATES: &str = "NIX_SSL_CERT_FILE";

const HELP: &str = "\
The cache is asked what it lacks; that is compressed and sent, each path after those that it refers to. A command that was interrupted goes \
on where it was when it is given again. What cannot be uploaded is listed, and does not keep the rest from being uploaded.

Who you are is said by the URL (https://USER:PASSWORD@HOST), by --token-file, or by a netrc file as Nix has it (--netrc-file).

Environment:
  NARWIRE_PUSH_TO                      default of --to
  NIX_SECRET_KEY_FILE, SIGN_KEY_PATHS  as --secret-key-file
  NIX_SSL_CERT_FILE                    trust the certificates in this file, and no others
  TMPDIR                               where long NARs wait for their upload [default: /var/tmp]
  all_proxy, https_proxy, http_proxy   a proxy for all requests: the first of them that is set
  no_proxy                             hosts to reach without it

Exit status:
  0  all is there, or a watch was ended
  1  something is not, and is listed
  2  something has to be changed first";

/// Arguments of `push`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct PushArguments {
    /// Store paths, files inside of them, or links to them such as ./result
    #[arg(value_name = "PATH", required_unless_present_any = ["all", "watch"], conflicts_with = "all")]
    pub paths: Vec<PathBuf>,
    /// Upload all valid paths of the store
    #[arg(long)]
    pub all: bool,
    /// Go on, and upload what appears in the store, until SIGINT or SIGTERM
    #[arg(long, conflicts_with = "dry_run")]
    pub watch: bool,
    /// URL of the cache, http or https
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,
    /// Take the token from the last line of this file, as `narwire token create` prints it
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Take user and password from this netrc file [default: /etc/nix/netrc if it can be read]
    #[arg(long, value_name = "FILE")]
    pub netrc_file: Option<PathBuf>,
    /// Sign with the key in this file; may be repeated
    #[arg(long, value_name = "FILE")]
    pub secret_key_file: Vec<PathBuf>,
    /// How NARs are compressed
    #[arg(long, value_enum, default_value_t, value_name = "COMPRESSION")]
    pub compression: Compression,
    /// Level of zstd, from 1 (fast) to 19 (small) [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=i64::from(CACHE_LEVEL_MAX)))]
    pub level: Option<i32>,
    /// Uploads at once [default: one per core that this process may use, at least 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=PUSH_JOBS_MAX as i64))]
    pub jobs: Option<u16>,
    /// Say what the cache lacks, and upload nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as one JSON object, and nothing else
    #[arg(long)]
    pub json: bool,
    /// The store.
    #[command(flatten)]
    pub places: StorePlaces,
}

/// See [`PushArguments::compression`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// Not at all
    None,
    /// One frame of zstd each
    #[default]
    Zstd,
}

/// Why nothing, or not all, was uploaded.
#[derive(Debug, thiserror::Error)]
pub enum PushFailure {
    /// Nobody has said to where.
    #[error("to which cache? name it with --to URL, or in the variable {TO}")]
    NoAddress,
    /// Something else was named.
    #[error("{from}: {cause}")]
    Address {
        /// The flag or the variable.
        from: &'static str,
        /// What is wrong with it.
        cause: AddressError,
    },
    /// A level of what is not compressed.
    #[error("--level is about zstd: leave it out, or --compression none")]
    Level,
    /// Only directories are configured.
    #[error(
        "there is no live store to push from: only directories are served; leave out --config, or name another"
    )]
    NoStore,
    /// See its cause.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// See its cause.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// See its cause.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The system does not let signals be noticed.
    #[error("cannot take signals: {0}")]
    Signals(io::Error),
    /// It ended early.
    #[error(transparent)]
    Push(#[from] PushError),
    /// The list was printed.
    #[error("{} not uploaded", counted(*.0, "store path was", "store paths were"))]
    NotUploaded(u64),
}

impl PushFailure {
    /// 1 if the same command may succeed, or has done something; 2 if something has to be changed before.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotUploaded(_)
            | Self::Push(PushError::Store(_) | PushError::Thread(_) | PushError::Interrupted) => 1,
            Self::Push(error @ PushError::Cache(_)) if error.is_transient() => 1,
            _ => 2,
        }
    }
}

/// Uploads what the arguments name, and says what came of it.
pub fn run(arguments: PushArguments, variable: impl Fn(&str) -> Option<OsString>) -> Result<(), Failure> {
    let (is_json, is_watch, is_rehearsal) = (arguments.json, arguments.watch, arguments.dry_run);
    let (is_all, typed) = (arguments.all, arguments.paths.clone());
    let mut pusher = Pusher::new(settings(arguments, variable)?).map_err(PushFailure::Push)?;
    let wanted = if is_all {
        Some(Wanted::All)
    } else {
        let paths = typed.iter().map(|typed| pusher.resolve(typed)).collect::<Result<Vec<_>, _>>();
        Some(paths.map_err(PushFailure::Resolve)?).filter(|paths| !paths.is_empty()).map(Wanted::These)
    };
    let began = Instant::now();
    let mut screen = Screen::new(is_json, is_watch);
    let mut report = |event: Event<'_>| screen.show(&event);
    let ended = match wanted {
        wanted if is_watch => pusher.watch(wanted, &mut report),
        Some(wanted) => pusher.push(&wanted, &mut report),
        None => Ok(()),
    };
    screen.clear();
    let summary = Summary { outcome: &pusher.outcome, is_rehearsal, took: began.elapsed(), ended: &ended };
    print(&if is_json { summary.json() } else { summary.text(screen.has_lines) })?;
    screen.written.map_err(Failure::Output)?;
    ended.map_err(PushFailure::Push)?;
    match pusher.outcome.failed.len() {
        0 => Ok(()),
        failed => Err(PushFailure::NotUploaded(failed as u64).into()),
    }
}

/// Looks at the machine, and asks nobody.
fn settings(
    arguments: PushArguments,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<push::Settings, Failure> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let address = address(arguments.to.as_deref(), set(TO))?;
    let encoding = match (arguments.compression, arguments.level) {
        (Compression::None, Some(_)) => return Err(PushFailure::Level.into()),
        (Compression::None, None) => Encoding::Flat,
        (Compression::Zstd, level) => Encoding::Zstd { level: level.unwrap_or(CACHE_LEVEL_DEFAULT) },
    };
    let authorization =
        credentials::find(&address, arguments.token_file.as_deref(), arguments.netrc_file.as_deref())
            .map_err(PushFailure::Credentials)?;
    let certificates = set(CERTIFICATES).map(PathBuf::from);
    let cache = Cache::new(address, authorization.as_ref(), certificates.as_deref())
        .map_err(PushFailure::Certificates)?;
    let spool = set("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let cores = load::cores();

    let layer = ServeArguments { secret_key_file: arguments.secret_key_file, ..arguments.places.layer() };
    let settings = super::settings(layer, variable)?;
    if settings.store.is_none() {
        return Err(PushFailure::NoStore.into());
    }
    // What is served beside the store is of no concern here.
    let access = AccessConfig::default();
    let settings = Settings { directories: Vec::new(), nar_cache: None, uploads: None, access, ..settings };
    let config = load::load(settings, cores)?;
    let store = config.sources.into_iter().find_map(|source| match source {
        SourceConfig::Store(store) => Some(store),
        SourceConfig::Directory(_) => None,
    });
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second one ends it whatever it does, such as writing to a pipe that nobody reads.
        flag::register_conditional_shutdown(signal, 1, Arc::clone(&interrupted))
            .map_err(PushFailure::Signals)?;
        flag::register(signal, Arc::clone(&interrupted)).map_err(PushFailure::Signals)?;
    }
    Ok(push::Settings {
        store: store.ok_or(PushFailure::NoStore)?,
        cache,
        secret_keys: config.rules.secret_keys,
        encoding,
        jobs: arguments.jobs.map_or_else(|| cores.clamp(PUSH_JOBS_DEFAULT_MIN, PUSH_JOBS_MAX), usize::from),
        spool,
        is_rehearsal: arguments.dry_run,
        interrupted,
    })
}

fn address(typed: Option<&str>, variable: Option<OsString>) -> Result<Address, PushFailure> {
    let (from, text) = match (typed, variable) {
        (Some(text), _) => ("--to", text.to_owned()),
        (None, Some(text)) => (TO, text.to_string_lossy().into_owned()),
        (None, None) => return Err(PushFailure::NoAddress),
    };
    text.parse().map_err(|cause| PushFailure::Address { from, cause })
}

/// What is shown while it goes on: bars to a person, lines to a program.
struct Screen {
    /// Whether each path is a line of its own on standard output.
    has_lines: bool,
    /// Of standard output.
    written: io::Result<()>,
    /// Hidden by itself where standard error is no terminal.
    bars: MultiProgress,
    total: ProgressBar,
    /// What `total` counts now.
    counting: Counting,
    lanes: Vec<Option<ProgressBar>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counting {
    Paths,
    Questions,
    Bytes,
}

impl Screen {
    fn new(is_json: bool, is_watch: bool) -> Self {
        let target = if is_json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bars = MultiProgress::with_draw_target(target);
        let total = bars.add(ProgressBar::no_length());
        let mut screen = Self {
            // What a watch does has no end at which it could be said.
            has_lines: !is_json && (is_watch || !io::stdout().is_terminal()),
            written: Ok(()),
            bars,
            total,
            counting: Counting::Questions,
            lanes: Vec::new(),
        };
        screen.count(Counting::Paths);
        screen
    }

    fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Gathered(paths) => {
                self.count(Counting::Paths);
                self.total.set_position(*paths as u64);
            }
            Event::Asked(asked, total) => {
                self.count(Counting::Questions);
                self.total.set_length(*total as u64);
                self.total.set_position(*asked as u64);
            }
            Event::Progress(progress) => self.progress(progress),
            Event::Uploaded { path, nar_size, file_size } => {
                let (nar_size, file_size) = (HumanBytes(*nar_size), HumanBytes(*file_size));
                self.line(&format!("uploaded {path} ({nar_size} as {file_size})"));
            }
            Event::Failed { path, reason } => self.line(&failed_line(path, reason)),
            Event::Waiting { delay, reason } => {
                let delay = HumanDuration(*delay);
                // Nobody may be reading any more.
                self.bars
                    .suspend(|| drop(writeln!(io::stderr(), "narwire: {reason}; tried again in {delay}")));
            }
        }
    }

    fn progress(&mut self, progress: &Progress<'_>) {
        self.count(Counting::Bytes);
        self.total.set_length(progress.total_bytes);
        self.total.set_position(progress.done_bytes);
        self.total.set_message(format!("{} of {} paths", progress.done, progress.total));
        self.lanes.resize(progress.lanes.len(), None);
        for (bar, lane) in self.lanes.iter_mut().zip(progress.lanes) {
            let Some(lane) = lane else {
                if let Some(bar) = bar.take() {
                    self.bars.remove(&bar);
                }
                continue;
            };
            let bar = bar.get_or_insert_with(|| {
                let bar = ProgressBar::no_length();
                set_style(&bar, "{binary_bytes:>10} of {binary_total_bytes:10} {wide_msg}");
                self.bars.insert_before(&self.total, bar)
            });
            bar.set_length(lane.total_bytes);
            bar.set_position(lane.done_bytes);
            bar.set_message(said_of(lane));
        }
    }

    fn count(&mut self, counting: Counting) {
        if self.counting == counting {
            return;
        }
        self.counting = counting;
        let (template, message) = match counting {
            Counting::Paths => ("{msg}: {pos} store paths", "looking for what is referred to"),
            Counting::Questions => {
                ("{msg} [{wide_bar}] {pos} of {len}, {eta} left", "asking what is missing")
            }
            Counting::Bytes => (
                "{msg} [{wide_bar}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
                "",
            ),
        };
        set_style(&self.total, template);
        self.total.set_message(message);
        self.total.set_position(0);
        self.total.reset_eta();
    }

    fn line(&mut self, line: &str) {
        if self.has_lines && self.written.is_ok() {
            self.written = self.bars.suspend(|| writeln!(io::stdout(), "{line}"));
        }
    }

    fn clear(&self) {
        // A bar that cannot be cleared was not there.
        let _ = self.bars.clear();
    }
}

fn set_style(bar: &ProgressBar, template: &str) {
    // The templates are constants; were one wrong, the plain bar would do.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
}

fn said_of(lane: &Lane) -> String {
    match &lane.doing {
        Doing::Encoding => format!("compressing {}", lane.path.name()),
        Doing::Sending => format!("uploading {}", lane.path.name()),
        Doing::Waiting(reason) => format!("will try again {}: {reason}", lane.path.name()),
    }
}

fn failed_line(path: &str, reason: &str) -> String {
    format!("failed {path}: {reason}")
}

/// What there is to say in the end.
struct Summary<'a> {
    outcome: &'a Outcome,
    is_rehearsal: bool,
    took: Duration,
    ended: &'a Result<(), PushError>,
}

impl Summary<'_> {
    /// For people: what is missing or has failed, unless it `was_said`, and a line for all.
    fn text(&self, was_said: bool) -> String {
        let Outcome { paths, present, missing, missing_bytes, uploaded, nar_bytes, sent_bytes, gone, failed } =
            self.outcome;
        let mut text = String::new();
        if self.is_rehearsal {
            for path in &missing.names {
                let _ = writeln!(text, "missing {path}");
            }
            let unnamed = missing.count - missing.names.len() as u64;
            if unnamed > 0 {
                let _ = writeln!(text, "missing {unnamed} more");
            }
        }
        if !was_said {
            for (path, reason) in failed {
                let _ = writeln!(text, "{}", failed_line(path, reason));
            }
        }
        if *paths == 0 && self.ended.is_err() {
            // It ended before there was anything to count; why is said elsewhere.
            return text;
        }
        let of = counted(*paths, "store path", "store paths");
        let took = HumanDuration(self.took);
        if self.is_rehearsal {
            let missing_bytes = HumanBytes(*missing_bytes);
            let _ = writeln!(
                text,
                "{} of {of} are missing, {missing_bytes} of NARs; nothing was uploaded",
                missing.count
            );
            return text;
        }
        let (nar_bytes, sent_bytes) = (HumanBytes(*nar_bytes), HumanBytes(*sent_bytes));
        let _ = write!(text, "uploaded {} of {of}, {nar_bytes} as {sent_bytes} in {took}", uploaded.count);
        for (count, what) in
            [(*present, "there before"), (*gone, "gone meanwhile"), (failed.len() as u64, "failed")]
        {
            if count > 0 {
                let _ = write!(text, "; {count} {what}");
            }
        }
        text.push('\n');
        text
    }

    /// For programs: one object on one line. Of long lists the end is missing, and the count says so.
    fn json(&self) -> String {
        let Outcome { paths, present, missing, missing_bytes, uploaded, nar_bytes, sent_bytes, gone, failed } =
            self.outcome;
        let failed: Vec<_> = failed
            .iter()
            .map(|(path, reason)| serde_json::json!({ "path": path, "reason": reason }))
            .collect();
        let object = serde_json::json!({
            "storePaths": paths,
            "present": present,
            "missingCount": missing.count,
            "missing": missing.names,
            "missingBytes": missing_bytes,
            "uploadedCount": uploaded.count,
            "uploaded": uploaded.names,
            "narBytes": nar_bytes,
            "sentBytes": sent_bytes,
            "gone": gone,
            "failedCount": failed.len(),
            "failed": failed,
            "error": self.ended.as_ref().err().map(ToString::to_string),
            "dryRun": self.is_rehearsal,
            "seconds": self.took.as_secs_f64(),
        });
        format!("{object}\n")
    }
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cli::arguments::{self, Command};
    use crate::push::Names;
    use crate::push::client::ClientError;

    const PATH: &str = "/nix/store/00000000000000000000000000000000-a";
    const OTHER: &str = "/nix/store/00000000000000000000000000000001-b";

    fn typed(line: &str) -> Result<PushArguments, String> {
        let words = line.split_whitespace().map(OsString::from).collect();
        match arguments::parse(words).map_err(|error| error.to_string())?.command {
            Some(Command::Push(arguments)) => Ok(arguments),
            other => panic!("{line}: {other:?}"),
        }
    }

    fn names(names: &[&str]) -> Names {
        Names { count: names.len() as u64, names: names.iter().map(|&name| name.to_owned()).collect() }
    }

    fn outcome() -> Outcome {
        Outcome {
            paths: 5,
            present: 3,
            missing: names(&[PATH, OTHER]),
            missing_bytes: 4 << 20,
            uploaded: names(&[PATH]),
            nar_bytes: 3 << 20,
            sent_bytes: 1 << 20,
            gone: 0,
            failed: BTreeMap::from([(OTHER.to_owned(), "it is damaged".to_owned())]),
        }
    }

    fn summary<'a>(outcome: &'a Outcome, ended: &'a Result<(), PushError>) -> Summary<'a> {
        Summary { outcome, is_rehearsal: false, took: Duration::from_secs(3), ended }
    }

    #[test]
    fn every_flag_is_understood() {
        let arguments = typed(
            "narwire push --to http://h --token-file t --netrc-file n --secret-key-file a --secret-key-file b \
             --compression zstd --level 19 --jobs 64 --dry-run --json --store-dir /s --real-store /r --db d -c c p q",
        )
        .unwrap();
        assert_eq!(arguments.paths, ["p", "q"].map(PathBuf::from));
        assert_eq!(arguments.secret_key_file, ["a", "b"].map(PathBuf::from));
        assert_eq!((arguments.level, arguments.jobs), (Some(19), Some(64)));
        assert_eq!(arguments.places.config, Some("c".into()));
        assert!(arguments.dry_run && arguments.json && !arguments.all && !arguments.watch);
        assert_eq!(typed("narwire push --all --watch").unwrap().compression, Compression::Zstd);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "narwire push",
            "narwire push --all p",
            "narwire push --watch --dry-run",
            "narwire push --compression xz p",
            "narwire push --level 20 p",
            "narwire push --level 0 p",
            "narwire push --jobs 0 p",
            "narwire push --jobs 65 p",
        ] {
            typed(line).unwrap_err();
        }
    }

    #[test]
    fn the_flag_comes_before_the_variable() {
        let variable = |text: &str| Some(OsString::from(text));
        assert_eq!(address(Some("http://a"), variable("http://b")).unwrap().host, "a");
        assert_eq!(address(None, variable("http://b")).unwrap().host, "b");
        let error = address(None, None).unwrap_err();
        assert!(error.to_string().contains("NARWIRE_PUSH_TO") && error.exit_code() == 2, "{error}");
        let error = address(None, variable("b")).unwrap_err().to_string();
        assert!(error.starts_with("NARWIRE_PUSH_TO: "), "{error}");
    }

    #[test]
    fn people_read_what_failed_and_a_line_for_all() {
        let (outcome, ended) = (outcome(), Ok(()));
        let text = summary(&outcome, &ended).text(false);
        let last =
            "uploaded 1 of 5 store paths, 3.00 MiB as 1.00 MiB in 3 seconds; 3 there before; 1 failed\n";
        assert_eq!(text, format!("failed {OTHER}: it is damaged\n{last}"));
        assert_eq!(summary(&outcome, &ended).text(true), last, "it was said before");
        assert_eq!(summary(&Outcome::default(), &Err(PushError::Interrupted)).text(false), "");
        let rehearsal = Summary { is_rehearsal: true, ..summary(&outcome, &ended) }.text(true);
        let last = "2 of 5 store paths are missing, 4.00 MiB of NARs; nothing was uploaded";
        assert_eq!(rehearsal, format!("missing {PATH}\nmissing {OTHER}\n{last}\n"));
    }

    #[test]
    fn programs_read_one_object_on_one_line() {
        let (outcome, ended) = (outcome(), Err(PushError::Interrupted));
        let json = summary(&outcome, &ended).json();
        assert_eq!(json.lines().count(), 1);
        let expected = serde_json::json!({
            "storePaths": 5,
            "present": 3,
            "missingCount": 2,
            "missing": [PATH, OTHER],
            "missingBytes": 4 << 20,
            "uploadedCount": 1,
            "uploaded": [PATH],
            "narBytes": 3 << 20,
            "sentBytes": 1 << 20,
            "gone": 0,
            "failedCount": 1,
            "failed": [{ "path": OTHER, "reason": "it is damaged" }],
            "error": PushError::Interrupted.to_string(),
            "dryRun": false,
            "seconds": 3.0,
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), expected);
    }

    #[test]
    fn the_exit_code_says_whether_something_has_to_be_changed_first() {
        let unreachable = |is_transient| {
            let (address, cause) = ("http://h".to_owned(), "no".to_owned());
            PushFailure::from(PushError::Cache(ClientError::Unreachable { address, cause, is_transient }))
        };
        for (failure, code) in [
            (PushFailure::NotUploaded(1), 1),
            (PushFailure::Push(PushError::Interrupted), 1),
            (unreachable(true), 1),
            (unreachable(false), 2),
            (PushFailure::Push(PushError::Cache(ClientError::NoCache("h".to_owned()))), 2),
            (PushFailure::Level, 2),
        ] {
            assert_eq!(failure.exit_code(), code, "{failure}");
        }
        assert_eq!(PushFailure::NotUploaded(1).to_string(), "1 store path was not uploaded");
        assert_eq!(PushFailure::NotUploaded(2).to_string(), "2 store paths were not uploaded");
    }

    #[test]
    fn each_thing_that_is_counted_has_a_bar_of_its_own() {
        let mut screen = Screen::new(true, false);
        screen.show(&Event::Gathered(7));
        assert_eq!(screen.total.position(), 7);
        screen.show(&Event::Asked(3, 9));
        assert_eq!((screen.total.position(), screen.total.length()), (3, Some(9)));
        let path =
            crate::codec::store_path::StorePath::parse_base_name(&PATH["/nix/store/".len()..]).unwrap();
        let lane = Lane { path, doing: Doing::Sending, done_bytes: 1, total_bytes: 2, nar_size: 3 };
        let progress =
            Progress { done: 1, total: 2, done_bytes: 10, total_bytes: 20, lanes: &[None, Some(lane)] };
        screen.show(&Event::Progress(&progress));
        assert_eq!((screen.total.position(), screen.total.message()), (10, "1 of 2 paths".to_owned()));
        assert_eq!(screen.lanes[1].as_ref().unwrap().message(), "uploading a");
        screen.show(&Event::Progress(&Progress { lanes: &[None, None], ..progress }));
        assert!(screen.lanes.iter().all(Option::is_none));
    }
}
