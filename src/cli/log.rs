//! The log: on stderr, and only so much of it that whoever can connect cannot fill a disk with it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, IsTerminal as _};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::limits::{LOG_WINDOW, LOGGED_ALIKE_MAX};

/// What is logged: a level, or a filter as `RUST_LOG` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel(String);

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

impl FromStr for LogLevel {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        EnvFilter::try_new(text).map(|_| Self(text.to_owned()))
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

/// From now on what is logged goes to stderr, as far as `filter` (`RUST_LOG`) lets it.
pub fn start(filter: Option<OsString>) {
    let filter = filter.and_then(|filter| filter.into_string().ok()).unwrap_or_else(|| "info".to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // It would be said where nothing could be written, and end the process.
        .log_internal_errors(false)
        .event_format(Bounded::default())
        .init();
}

/// Writes lines as usual, and of each place in the program no more than [`LOGGED_ALIKE_MAX`] in a [`LOG_WINDOW`]: a fault of the disk is
/// logged for each request that meets it. What somebody asked for with `RUST_LOG`, the levels below `info`, is not counted.
#[derive(Default)]
struct Bounded {
    format: Format,
    /// As many as there are places in the program, at most.
    windows: Mutex<HashMap<Identifier, Window>>,
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

impl<S, N> FormatEvent<S, N> for Bounded
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut turn = Turn::Said;
        if *metadata.level() <= Level::INFO {
            let now = Instant::now();
            let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
            turn = windows.entry(metadata.callsite()).or_insert_with(|| Window::new(now)).turn(now);
        }
        if turn == Turn::Unsaid {
            return Ok(());
        }
        self.format.format_event(context, writer.by_ref(), event)?;
        let window_s = LOG_WINDOW.as_secs();
        match turn {
            Turn::Said | Turn::Unsaid => Ok(()),
            Turn::SaidLast => {
                writeln!(writer, "  (more lines like this one are left out for {window_s} s at most)")
            }
            Turn::SaidAgain(unsaid) => {
                writeln!(writer, "  ({unsaid} lines like this one were left out before)")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
