//! The log: on standard error or in the journal, and only so much of it that whoever can connect cannot fill a disk with it.
//!
//! What is logged goes through a filter, which SIGHUP can change, then past the bound on repeats, and then to one of the formats, whose
//! lines `server::scribe` writes. Lines of the access log ([`ACCESS_TARGET`]) are neither filtered nor bounded: of which requests there is
//! one is a setting of its own. Nor are those that say how many lines are missing ([`MISSING_TARGET`]), for each is there only once.

mod journal;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, UNIX_EPOCH};

use rustix::fs::fstat;
use tracing::callsite::{DefaultCallsite, Identifier};
use tracing::field::FieldSet;
use tracing::metadata::Kind;
use tracing::{Event, Level, Metadata, Subscriber, info, warn};
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::{Context, Layer, Layered, SubscriberExt as _};
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use self::journal::Journal;
use crate::codec::http::date::format_rfc3339;
use crate::limits::{LOG_WINDOW, LOGGED_ALIKE_MAX};
use crate::server::access_log::TARGET as ACCESS_TARGET;
use crate::server::figures::{LogFigures, Severity};
use crate::server::scribe::{self, LogKind, Scribe, TARGET as MISSING_TARGET};
use crate::tally::Tally as _;

/// Where the journal takes messages (systemd.journal-fields(7)).
const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// Lines that say where the server listens: whoever started it waits for them, whatever the level.
pub const LISTENING_TARGET: &str = "listening";

/// The filter that is asked for in the environment, as most programs that log this way have it.
const LEVEL_VARIABLE: &str = "RUST_LOG";

/// What is logged: a level, or a filter as `RUST_LOG` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel(String);

/// The text is no [`LogLevel`].
#[derive(Debug, thiserror::Error)]
pub enum LogLevelError {
    /// A word that is no level: a filter would take it for a part of the program, and log nothing else.
    #[error("expected error, warn, info, debug, trace, or a filter such as info,narwire::ring=debug")]
    NoLevel,
    /// See its cause.
    #[error("not a filter such as info,narwire::ring=debug: {0}")]
    NoFilter(#[from] ParseError),
}

/// How it is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// In fields of the journal where standard error leads there, else as text.
    #[default]
    Auto,
    /// As text, in colours on a terminal.
    Human,
    /// As one JSON object a line.
    Json,
    /// In fields of the journal.
    Journald,
}

/// The text is no [`LogFormat`].
#[derive(Debug, thiserror::Error)]
#[error("expected auto, human, json or journald")]
pub struct LogFormatError;

impl Default for LogLevel {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl LogLevel {
    fn filter(&self) -> Result<EnvFilter, ParseError> {
        EnvFilter::try_new(with_whatever_the_level(&self.0))
    }
}

/// What this filter lets through, and what the level has no say in.
fn with_whatever_the_level(filter: &str) -> String {
    format!("{filter},{ACCESS_TARGET}=info,{MISSING_TARGET}=warn,{LISTENING_TARGET}=info")
}

impl FromStr for LogLevel {
    type Err = LogLevelError;

    fn from_str(text: &str) -> Result<Self, LogLevelError> {
        // Nothing reads as a level as well.
        let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
        let is_level_or_more = |part: &str| part.contains(['=', '[']) || is_level(part);
        if !text.split(',').all(is_level_or_more) {
            return Err(LogLevelError::NoLevel);
        }
        let level = Self(text.to_owned());
        level.filter()?;
        Ok(level)
    }
}

impl FromStr for LogFormat {
    type Err = LogFormatError;

    fn from_str(text: &str) -> Result<Self, LogFormatError> {
        match text {
            "auto" => Ok(Self::Auto),
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            "journald" => Ok(Self::Journald),
            _ => Err(LogFormatError),
        }
    }
}

/// The log of this process.
#[derive(Debug)]
pub struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    level: LogLevel,
    /// Whether the environment says what is logged.
    is_fixed: bool,
    scribe: Arc<Scribe>,
}

impl Log {
    /// From now on what is logged goes where `format` says, as far as the environment or else `level` lets it.
    pub fn start(variable: impl Fn(&str) -> Option<OsString>, level: &LogLevel, format: LogFormat) -> Self {
        let asked = variable(LEVEL_VARIABLE).filter(|value| !value.is_empty());
        // Of a filter that is no filter what can be understood is in force.
        let fixed = asked.map(|text| EnvFilter::new(with_whatever_the_level(&text.to_string_lossy())));
        let is_fixed = fixed.is_some();
        let filter = fixed.or_else(|| level.filter().ok()).unwrap_or_else(|| EnvFilter::new("info"));
        let (filter, handle) = reload::Layer::new(filter);
        let scribe = Arc::<Scribe>::default();
        let lines = Lines(Arc::clone(&scribe));
        let is_to_journal = match format {
            LogFormat::Auto => is_journal(&io::stderr(), variable("JOURNAL_STREAM")),
            LogFormat::Journald => true,
            LogFormat::Human | LogFormat::Json => false,
        };
        let journal = is_to_journal.then(|| Journal::connect(Path::new(JOURNAL_SOCKET), &scribe));
        let (layer, failure): (Format, _) = match (format, journal) {
            (_, Some(Ok(journal))) => (Box::new(journal), None),
            (LogFormat::Json, _) => (Box::new(json(lines)), None),
            (_, journal) => (Box::new(human(lines)), journal.and_then(Result::err)),
        };
        let bounded =
            Bounded { format: layer, windows: Mutex::default(), figures: Arc::clone(scribe.figures()) };
        // There is one log in a process; a second one would be a test's.
        let _ = tracing::subscriber::set_global_default(Registry::default().with(filter).with(bounded));
        if let Some(error) = failure {
            warn!(
                "the journal cannot be reached at {JOURNAL_SOCKET} ({error}); what is logged goes to standard error"
            );
        }
        Self { filter: handle, level: level.clone(), is_fixed, scribe }
    }

    /// Who writes it.
    pub fn scribe(&self) -> &Arc<Scribe> {
        &self.scribe
    }

    /// From now on this is logged, unless the environment says what is.
    pub fn change(&mut self, level: &LogLevel) {
        if *level == self.level {
            return;
        }
        self.level = level.clone();
        if self.is_fixed {
            info!("{LEVEL_VARIABLE} stays in force, and not log-level");
        } else if let Ok(filter) = level.filter() {
            // It is there for as long as the process is.
            let _ = self.filter.reload(filter);
        }
    }
}

/// Whether the journal is what `stream` leads to: `variable`, which is JOURNAL_STREAM, names device and inode then (systemd.exec(5)).
fn is_journal(stream: &impl std::os::fd::AsFd, variable: Option<OsString>) -> bool {
    let Some(variable) = variable.and_then(|value| value.into_string().ok()) else { return false };
    fstat(stream).is_ok_and(|status| variable == format!("{}:{}", status.st_dev, status.st_ino))
}

/// Gives lines to who writes them to standard error.
struct Lines(Arc<Scribe>);

impl fmt::MakeWriter<'_> for Lines {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line(Arc::clone(&self.0), LogKind::Program)
    }

    fn make_writer_for(&self, metadata: &Metadata<'_>) -> Line {
        Line(Arc::clone(&self.0), kind(metadata))
    }
}

fn kind(metadata: &Metadata<'_>) -> LogKind {
    if metadata.target() == ACCESS_TARGET { LogKind::Access } else { LogKind::Program }
}

/// Takes one line, all of it at once.
struct Line(Arc<Scribe>, LogKind);

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.say(self.1, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What formats stand upon.
type Filtered = Layered<reload::Layer<EnvFilter, Registry>, Registry>;
/// A format, and where it writes to.
type Format = Box<dyn Layer<Filtered> + Send + Sync>;

/// Says when that has happened which is logged.
struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        writer.write_str(&timestamp())
    }
}

/// When that has happened which this thread is logging.
fn timestamp() -> String {
    let since_1970 = scribe::happened().duration_since(UNIX_EPOCH).unwrap_or_default();
    let text = format_rfc3339(since_1970.as_secs(), since_1970.subsec_micros());
    String::from_utf8_lossy(&text).into_owned()
}

fn human<W>(writer: W) -> impl Layer<Filtered> + Send + Sync
where
    W: for<'a> fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    // An error would be said where nothing could be written, and end the process.
    let layer = fmt::layer().with_writer(writer).with_timer(Clock);
    layer.with_ansi(io::stderr().is_terminal()).log_internal_errors(false)
}

fn json<W>(writer: W) -> impl Layer<Filtered> + Send + Sync
where
    W: for<'a> fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_writer(writer).with_timer(Clock).with_ansi(false);
    layer.log_internal_errors(false).json().flatten_event(true).with_current_span(false).with_span_list(false)
}

/// Lets through, of each place in the program, no more than [`LOGGED_ALIKE_MAX`] lines in a [`LOG_WINDOW`]: a fault of the disk is
/// logged for each request that meets it. What somebody asked for, the levels below `info`, is not counted.
struct Bounded<F> {
    format: F,
    /// As many as there are places in the program, at most.
    windows: Mutex<HashMap<Identifier, Window>>,
    figures: Arc<LogFigures>,
}

/// What was logged at one place lately.
#[derive(Debug)]
struct Window {
    began: Instant,
    said: u32,
    unsaid: u64,
}

/// Whether to write a line, and what to write behind it.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// As it is.
    Said,
    /// The last one for now.
    SaidLast,
    /// The first after a window of which so many were left out.
    SaidAgain(u64),
    /// It is counted.
    Unsaid,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self { began: now, said: 0, unsaid: 0 }
    }

    /// One more line.
    fn turn(&mut self, now: Instant) -> Turn {
        let mut unsaid = 0;
        if now.saturating_duration_since(self.began) >= LOG_WINDOW {
            unsaid = self.unsaid;
            *self = Self::new(now);
        }
        if self.said == LOGGED_ALIKE_MAX {
            self.unsaid += 1;
            return Turn::Unsaid;
        }
        self.said += 1;
        match (self.said, unsaid) {
            (LOGGED_ALIKE_MAX, _) => Turn::SaidLast,
            (_, 0) => Turn::Said,
            (_, unsaid) => Turn::SaidAgain(unsaid),
        }
    }
}

impl<F> Bounded<F> {
    fn turn(&self, place: Identifier) -> Turn {
        let now = Instant::now();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.entry(place).or_insert_with(|| Window::new(now)).turn(now)
    }
}

impl<S: Subscriber, F: Layer<S>> Layer<S> for Bounded<F> {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let severity = match *metadata.level() {
            Level::ERROR => Severity::Error,
            Level::WARN => Severity::Warning,
            Level::INFO => Severity::Information,
            _ => return self.format.on_event(event, context),
        };
        if kind(metadata) == LogKind::Access {
            return self.format.on_event(event, context);
        }
        let is_notice = metadata.target() == MISSING_TARGET;
        let turn = if is_notice { Turn::Said } else { self.turn(metadata.callsite()) };
        if turn == Turn::Unsaid {
            self.figures.suppressed[severity as usize].add(1);
            return;
        }
        self.figures.lines[severity as usize].add(1);
        let place = || format!("{}:{}", metadata.target(), metadata.line().unwrap_or_default());
        if let Turn::SaidAgain(unsaid) = turn {
            note(&self.format, context.clone(), &format_args!("{unsaid} lines of {} were left out", place()));
        }
        self.format.on_event(event, context.clone());
        if turn == Turn::SaidLast {
            let window_s = LOG_WINDOW.as_secs();
            let text = format_args!("more lines of {} are left out for {window_s} s at most", place());
            note(&self.format, context, &text);
        }
    }
}

static NOTE: DefaultCallsite = DefaultCallsite::new(&NOTE_METADATA);
static NOTE_METADATA: Metadata<'static> = Metadata::new(
    "note",
    "narwire::log",
    Level::WARN,
    None,
    None,
    None,
    FieldSet::new(&["message"], Identifier(&NOTE)),
    Kind::EVENT,
);

/// Says something of the log itself, past filter and bound.
fn note<S: Subscriber>(format: &impl Layer<S>, context: Context<'_, S>, text: &std::fmt::Arguments<'_>) {
    let fields = NOTE_METADATA.fields();
    let Some(message) = fields.field("message") else { return };
    let values = [(&message, Some(text as &dyn tracing::Value))];
    format.on_event(&Event::new(&NOTE_METADATA, &fields.value_set(&values)), context);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use tracing::{debug, error};

    use super::*;
    use crate::tally::Count;

    /// What was written to it.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `says` has logged in a format, as far as `level` lets it, and what was counted of it.
    fn logged<F: Layer<Filtered> + Send + Sync>(
        format: impl FnOnce(Paper) -> F,
        level: &str,
        says: impl FnOnce(&reload::Handle<EnvFilter, Registry>),
    ) -> (String, Arc<LogFigures>) {
        let (paper, figures) = (Paper::default(), Arc::<LogFigures>::default());
        let filter = level.parse::<LogLevel>().unwrap().filter().unwrap();
        let (filter, handle) = reload::Layer::new(filter);
        let format = format(paper.clone());
        let bounded = Bounded { format, windows: Mutex::default(), figures: Arc::clone(&figures) };
        let subscriber = Registry::default().with(filter).with(bounded);
        tracing::subscriber::with_default(subscriber, || says(&handle));
        let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        (text, figures)
    }

    fn to_paper(paper: Paper) -> impl Fn() -> Paper {
        move || paper.clone()
    }

    #[test]
    fn repeats_are_bounded_in_every_format_and_the_access_log_is_not() {
        const LINES: u32 = LOGGED_ALIKE_MAX + 5;
        let says = |_: &reload::Handle<_, _>| {
            for count in 0..LINES {
                warn!(count, "alike");
                info!(target: ACCESS_TARGET, count, "request");
                warn!(target: MISSING_TARGET, count, "missing");
                debug!("asked for");
            }
            error!("another");
        };
        let human = logged(|paper| human(to_paper(paper)), "debug", says);
        let json = logged(|paper| json(to_paper(paper)), "debug", says);
        for (text, figures) in [human, json] {
            let lines_with = |word| text.lines().filter(|line| line.contains(word)).count();
            assert_eq!(lines_with("alike"), LOGGED_ALIKE_MAX as usize, "{text}");
            let last = text.lines().position(|line| line.contains("are left out for 60 s at most")).unwrap();
            let before = text.lines().nth(last - 1).unwrap();
            assert!(
                before.contains("alike") && before.contains("59"),
                "it stands behind the last one: {before}"
            );
            assert!(text.contains("more lines of narwire::cli::log::tests:"), "{text}");
            assert_eq!((lines_with("asked for"), lines_with("another")), (LINES as usize, 1));
            assert_eq!((lines_with("missing"), lines_with("request")), (LINES as usize, LINES as usize));
            assert_eq!(figures.lines.each_ref().map(Count::get), [1, u64::from(LOGGED_ALIKE_MAX + LINES), 0]);
            assert_eq!(figures.suppressed.each_ref().map(Count::get), [0, 5, 0]);
        }
    }

    #[test]
    fn a_line_of_json_has_its_fields_beside_level_time_and_place() {
        let (text, _) = logged(
            |paper| json(to_paper(paper)),
            "info",
            |_| warn!(path = "a\nb\u{1b}", count = 7, is_so = true, "said \"so\""),
        );
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (field, expected) in [
            ("level", serde_json::json!("WARN")),
            ("target", serde_json::json!("narwire::cli::log::tests")),
            ("message", serde_json::json!("said \"so\"")),
            ("path", serde_json::json!("a\nb\u{1b}")),
            ("count", serde_json::json!(7)),
            ("is_so", serde_json::json!(true)),
        ] {
            assert_eq!(line[field], expected, "{text}");
        }
        let time = line["timestamp"].as_str().unwrap();
        assert!(time.len() >= 20 && time.as_bytes()[10] == b'T' && time.ends_with('Z'), "{time}");
    }

    #[test]
    fn every_format_says_when_that_has_happened_which_it_logs() {
        let says = |_: &reload::Handle<_, _>| {
            let time = UNIX_EPOCH + Duration::from_micros(784_111_777_000_012);
            scribe::log_at(Some(time), || info!(target: ACCESS_TARGET, "late"));
            scribe::log_at(None, || info!("now"));
        };
        let human = logged(|paper| human(to_paper(paper)), "info", says);
        let json = logged(|paper| json(to_paper(paper)), "info", says);
        for ((text, _), start) in [(human, ""), (json, "{\"timestamp\":\"")] {
            let times: Vec<_> = text.lines().map(|line| line.strip_prefix(start).unwrap()).collect();
            assert!(times[0].starts_with("1994-11-06T08:49:37.000012Z"), "{text}");
            assert!(times[1].starts_with("20") && times.len() == 2, "{text}");
        }
    }

    #[test]
    fn the_level_changes_at_once_and_leaves_alone_the_access_log_and_what_is_missing() {
        let (text, _) = logged(
            |paper| human(to_paper(paper)),
            "error",
            |handle| {
                let say = |when| {
                    info!("level {when}");
                    info!(target: ACCESS_TARGET, "access {when}");
                    warn!(target: MISSING_TARGET, "missing {when}");
                };
                say("first");
                handle.reload("info".parse::<LogLevel>().unwrap().filter().unwrap()).unwrap();
                say("second");
                handle.reload("off".parse::<LogLevel>().unwrap().filter().unwrap()).unwrap();
                say("third");
            },
        );
        for (what, expected) in
            [("level", [false, true, false]), ("access", [true; 3]), ("missing", [true; 3])]
        {
            let said = ["first", "second", "third"].map(|when| text.contains(&format!("{what} {when}")));
            assert_eq!(said, expected, "{what}: {text}");
        }
    }

    #[test]
    fn levels_and_filters_are_told_from_words() {
        for text in [
            "error",
            "warn",
            "info",
            "debug",
            "trace",
            "off",
            "WARN",
            "info,narwire::ring=debug",
            "a=info,b=warn",
        ] {
            assert!(text.parse::<LogLevel>().is_ok(), "{text}");
        }
        for text in ["", "verbose", "info,loud", "narwire::ring", "a=loud", "info,", "2x"] {
            assert!(text.parse::<LogLevel>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_journal_is_told_by_device_and_inode() {
        let file = tempfile::tempfile().unwrap();
        let status = fstat(&file).unwrap();
        let (device, inode) = (status.st_dev, status.st_ino);
        for (variable, expected) in [
            (Some(format!("{device}:{inode}")), true),
            (Some(format!("{device}:{}", inode + 1)), false),
            (Some(String::new()), false),
            (None, false),
        ] {
            assert_eq!(is_journal(&file, variable.clone().map(OsString::from)), expected, "{variable:?}");
        }
    }

    #[test]
    fn of_one_place_so_much_is_said_and_the_rest_counted() {
        let start = Instant::now();
        let mut window = Window::new(start);
        for _ in 1..LOGGED_ALIKE_MAX {
            assert_eq!(window.turn(start), Turn::Said);
        }
        assert_eq!(window.turn(start), Turn::SaidLast);
        for _ in 0..7 {
            assert_eq!(window.turn(start + LOG_WINDOW / 2), Turn::Unsaid);
        }
        assert_eq!(window.turn(start + LOG_WINDOW), Turn::SaidAgain(7));
        assert_eq!(window.turn(start + LOG_WINDOW), Turn::Said);
        assert_eq!(window.turn(start + 3 * LOG_WINDOW), Turn::Said, "nothing was left out since");
    }
}
