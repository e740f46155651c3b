//! Lines in the journal's own protocol: a datagram each, with every field for itself.
//!
//! The socket is connected before the sandbox closes and stays so: service managers keep the other end open when the journal is started
//! anew. In the sandbox nothing is sent to a named socket (`server::sandbox`), and a line is short enough for one datagram, so no memory
//! has to be handed over either.

use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::{kind, timestamp};
use crate::limits::{JOURNAL_FIELD_LEN_MAX, JOURNAL_FIELDS_LEN_MAX};
use crate::server::scribe::Scribe;

/// The journal of this machine.
#[derive(Debug)]
pub struct Journal {
    wire: Arc<Wire>,
    scribe: Arc<Scribe>,
}

/// How it is reached.
#[derive(Debug)]
struct Wire {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// The journal that listens at `path`, to which `scribe` sends.
    pub fn connect(path: &Path, scribe: &Arc<Scribe>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        let wire = Arc::new(Wire { socket, path: path.to_path_buf() });
        Ok(Self { wire, scribe: Arc::clone(scribe) })
    }
}

impl Wire {
    /// Waits for who listens as long as that takes: who writes the log has nothing else to do, and others do not wait for it. Where nobody
    /// listens any more somebody else may; else there is still standard error. Says whether the line is written somewhere.
    fn send(&self, line: &Line, scribe: &Scribe) -> bool {
        let sent = self.socket.send(&line.datagram).or_else(|_| {
            self.socket.connect(&self.path)?;
            self.socket.send(&line.datagram)
        });
        sent.is_ok() || scribe.write_out(format!("{}\n", line.message).as_bytes())
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let (line, wire, scribe) = (Line::of(event), Arc::clone(&self.wire), Arc::clone(&self.scribe));
        let len_bytes = line.message.len() + line.datagram.len();
        self.scribe.put(kind(event.metadata()), len_bytes, move || wire.send(&line, &scribe));
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
        // The journal's own time is that at which it is received.
        put(&mut datagram, "NARWIRE_TIMESTAMP", &timestamp());
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use tracing::{error, info};
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// What the journal makes of a datagram.
    fn read(mut datagram: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while !datagram.is_empty() {
            let end = datagram.iter().position(|byte| b"=\n".contains(byte)).unwrap();
            let name = String::from_utf8(datagram[..end].to_vec()).unwrap();
            let is_text = datagram[end] == b'=';
            datagram = &datagram[end + 1..];
            let len = if is_text {
                datagram.iter().position(|&byte| byte == b'\n').unwrap()
            } else {
                let (len, rest) = datagram.split_first_chunk().unwrap();
                datagram = rest;
                usize::try_from(u64::from_le_bytes(*len)).unwrap()
            };
            let value = String::from_utf8(datagram[..len].to_vec()).unwrap();
            assert_eq!(datagram[len], b'\n');
            datagram = &datagram[len + 1..];
            assert!(fields.insert(name.clone(), value).is_none(), "{name} twice");
        }
        fields
    }

    fn receive(socket: &UnixDatagram) -> BTreeMap<String, String> {
        let mut datagram = vec![0; 1 << 20];
        let len = socket.recv(&mut datagram).unwrap();
        read(&datagram[..len])
    }

    #[test]
    fn each_field_is_one_of_the_journal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixDatagram::bind(&path).unwrap();
        let subscriber = Registry::default().with(Journal::connect(&path, &Arc::default()).unwrap());
        let fields = tracing::subscriber::with_default(subscriber, || {
            error!(path = "a\nMESSAGE=forged\n", count = 7, cause = %"as it is", "cannot be read");
            receive(&listener)
        });
        for (name, value) in [
            ("MESSAGE", "cannot be read path=\"a\\nMESSAGE=forged\\n\" count=7 cause=as it is"),
            ("PRIORITY", "3"),
            ("SYSLOG_IDENTIFIER", "narwire"),
            ("TARGET", "narwire::cli::log::journal::tests"),
            ("NARWIRE_PATH", "a\nMESSAGE=forged\n"),
            ("NARWIRE_COUNT", "7"),
            ("NARWIRE_CAUSE", "as it is"),
        ] {
            assert_eq!(fields[name], value);
        }
        assert!(fields["CODE_FILE"].ends_with("journal.rs") && fields["CODE_LINE"].parse::<u32>().is_ok());
        assert!(fields["NARWIRE_TIMESTAMP"].starts_with("20"), "{fields:?}");
        assert_eq!(fields.len(), 10);
    }

    #[test]
    fn a_journal_that_is_started_anew_is_found_again_and_a_long_line_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = UnixDatagram::bind(&path).unwrap();
        let subscriber = Registry::default().with(Journal::connect(&path, &Arc::default()).unwrap());
        drop(first);
        fs::remove_file(&path).unwrap();
        let second = UnixDatagram::bind(&path).unwrap();
        let long = "ä".repeat(JOURNAL_FIELDS_LEN_MAX);
        let fields = tracing::subscriber::with_default(subscriber, || {
            info!(
                a = long,
                b = long,
                c = long,
                d = long,
                e = long,
                f = long,
                g = long,
                h = long,
                i = long,
                j = long
            );
            receive(&second)
        });
        assert!(fields["MESSAGE"].starts_with("a=\"ä"), "{}", &fields["MESSAGE"][..80]);
        assert_eq!(fields["NARWIRE_A"].len(), JOURNAL_FIELD_LEN_MAX);
        let own = fields.keys().filter(|name| name.starts_with("NARWIRE_") && name.len() == 9).count();
        assert_eq!(own, JOURNAL_FIELDS_LEN_MAX / JOURNAL_FIELD_LEN_MAX, "{:?}", fields.keys());
    }

    #[test]
    fn names_are_such_as_the_journal_takes() {
        assert_eq!(journal_name("duration_ms"), "NARWIRE_DURATION_MS");
        assert_eq!(journal_name("log.target"), "NARWIRE_LOG_TARGET");
        assert_eq!(journal_name(&"x".repeat(100)).len(), 64);
    }
}
