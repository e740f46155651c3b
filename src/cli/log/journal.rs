//! Lines in the journal's own protocol: a datagram each, with every field for itself.
//!
//! The socket is connected before the sandbox closes and stays so: service managers keep the other end open when the journal is started
//! anew. In the sandbox nothing is sent to a named socket (`server::sandbox`), and a line is short enough for one datagram, so no memory
//! has to be handed over either.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::limits::{JOURNAL_FIELD_LEN_MAX, JOURNAL_FIELDS_LEN_MAX};

/// The journal of this machine.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// The journal that listens at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        Ok(Self { socket, path: path.to_path_buf() })
    }

    /// Where nobody listens any more somebody else may; else there is still standard error.
    fn send(&self, line: &Line) {
        let sent = self.socket.send(&line.datagram).or_else(|_| {
            self.socket.connect(&self.path)?;
            self.socket.send(&line.datagram)
        });
        if sent.is_err() {
            let _ = writeln!(io::stderr(), "{}", line.message);
        }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.send(&Line::of(event));
    }
}

/// One line.
#[derive(Debug)]
struct Line {
    /// For people: what they would see on a terminal, but for time and level, which the journal has as well.
    message: String,
    datagram: Vec<u8>,
}

impl Line {
    fn of(event: &Event<'_>) -> Self {
        let mut said = Said::default();
        event.record(&mut said);
        let message = format!("{}{}", said.message, said.pairs);
        let metadata = event.metadata();
        let mut datagram = Vec::new();
        put(&mut datagram, "MESSAGE", message.trim_start());
        put(&mut datagram, "PRIORITY", priority(*metadata.level()));
        put(&mut datagram, "SYSLOG_IDENTIFIER", "narwire");
        put(&mut datagram, "TARGET", metadata.target());
        if let (Some(file), Some(number)) = (metadata.file(), metadata.line()) {
            put(&mut datagram, "CODE_FILE", file);
            put(&mut datagram, "CODE_LINE", &number.to_string());
        }
        datagram.extend_from_slice(&said.fields);
        Self { message, datagram }
    }
}

/// What an event says.
#[derive(Debug, Default)]
struct Said {
    message: String,
    /// The fields for people.
    pairs: String,
    /// The same for the journal.
    fields: Vec<u8>,
}

impl Said {
    fn take(&mut self, field: &Field, value: &str, shown: fmt::Arguments<'_>) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
            return;
        }
        // Writing to a String cannot fail.
        let _ = write!(self.pairs, " {}={shown}", field.name());
        if self.fields.len() < JOURNAL_FIELDS_LEN_MAX {
            put(&mut self.fields, &journal_name(field.name()), value);
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        self.take(field, &value, format_args!("{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value, format_args!("{value:?}"));
    }
}

/// Adds a field. A value of several lines comes behind its length.
fn put(datagram: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value[..value.floor_char_boundary(JOURNAL_FIELD_LEN_MAX)];
    datagram.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        datagram.push(b'\n');
        datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        datagram.push(b'=');
    }
    datagram.extend_from_slice(value.as_bytes());
    datagram.push(b'\n');
}

/// As syslog(3) numbers them.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

/// The journal takes letters, digits and `_`, 64 of them at most; a prefix keeps us from fields that mean something to it.
fn journal_name(name: &str) -> String {
    let allowed = |character: char| match character {
        'a'..='z' => character.to_ascii_uppercase(),
        'A'..='Z' | '0'..='9' => character,
        _ => '_',
    };
    "NARWIRE_".chars().chain(name.chars().take(56).map(allowed)).collect()
}
