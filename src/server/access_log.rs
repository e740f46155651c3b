//! The access log: a line for each request, or for one in many, once it has ended.
//!
//! A worker never waits for it. It gives what it knows to who writes the log (`scribe`), who makes a line of it, and counts that for
//! which there is no room. Requests of which none is wanted cost one comparison. What a peer has sent is cut and cannot end a line or
//! colour a terminal; no field of a request is logged but `User-Agent`, and of `X-Forwarded-For` the address.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tracing::{field, info};

use super::config::AccessLog;
use super::figures::NodeFigures;
use super::proxy::TrustedProxies;
use super::scribe::{self, Scribe};
use crate::codec::http::request::Request;
use crate::codec::http::{Method, Status, Version};
use crate::codec::plain::is_plain;
use crate::limits::ACCESS_TEXT_LEN_MAX;
use crate::ring::service::{Caller, Ending, Witness};
use crate::tally::Tally as _;

/// What lines of the access log are told from others by.
pub const TARGET: &str = "access";

/// What is logged as the status of a request whose client went before it was answered, as nginx does.
const STATUS_GONE: u16 = 499;

/// Decides of which requests of one worker there is a line.
#[derive(Debug)]
pub struct Recorder {
    rule: AccessLog,
    /// Requests that pass before the next of which there is one.
    passing: u64,
    /// Of a generator of numbers (xorshift64) that nobody has to be unable to foresee. Not 0.
    random: u64,
    desk: Rc<Desk>,
}

/// What each witness of a worker needs.
#[derive(Debug)]
struct Desk {
    scribe: Arc<Scribe>,
    figures: Arc<NodeFigures>,
}

/// What is known of a request, or of what was to be one.
#[derive(Debug)]
pub struct Record {
    asked: Option<Asked>,
    client: Option<IpAddr>,
    proxy: Option<Proxy>,
    outcome: Outcome,
}

/// What it says, if it could be understood.
#[derive(Debug)]
struct Asked {
    method: Method,
    version: Version,
    target: Text,
    user_agent: Option<Text>,
    began: Instant,
}

/// What a peer has sent, as far as it is logged.
#[derive(Debug)]
struct Text {
    bytes: Box<[u8]>,
    is_cut: bool,
}

/// Who has said who the client is.
#[derive(Clone, Copy, Debug)]
enum Proxy {
    At(IpAddr),
    /// On this machine.
    UnixSocket,
}

/// How it has ended.
#[derive(Debug, Default)]
struct Outcome {
    status: u16,
    sent_len_bytes: u64,
    took: Option<Duration>,
    /// The line may be written much later.
    ended: Option<SystemTime>,
    is_whole: bool,
}

impl Recorder {
    /// Has lines written by `rule`, and counts in `figures` those for which `scribe` has no room. Which of many there are follows from
    /// `seed`.
    pub fn new(rule: AccessLog, scribe: Arc<Scribe>, figures: Arc<NodeFigures>, seed: u64) -> Self {
        let desk = Rc::new(Desk { scribe, figures });
        let mut recorder = Self { rule: AccessLog::Off, passing: 0, random: seed.max(1), desk };
        recorder.change(rule);
        recorder
    }

    /// From now on this is in force.
    pub fn change(&mut self, rule: AccessLog) {
        if rule != self.rule {
            self.rule = rule;
            self.passing = self.step();
        }
    }

    /// Who wants to know how this request ends, or what was to be one, if there is to be a line of it.
    pub fn witness(
        &mut self,
        caller: &Caller<'_>,
        request: Option<&Request<'_>>,
        proxies: &TrustedProxies,
    ) -> Option<Witness> {
        self.is_next().then(|| {
            // Of who has gone already nobody knows where it was.
            let record = match caller.address() {
                Ok(peer) => Record::of(request, peer, proxies),
                Err(_) => Record::of_stranger(request),
            };
            self.desk.witness(record)
        })
    }

    fn is_next(&mut self) -> bool {
        if self.rule == AccessLog::Off {
            return false;
        }
        let is_next = self.passing == 0;
        self.passing = if is_next { self.step() } else { self.passing - 1 };
        is_next
    }

    /// How many pass until the next: as many as are wanted on average, but not always so many, for what clients ask repeats itself.
    fn step(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let AccessLog::OneIn(rarity) = self.rule else { return 0 };
        // From none to twice as many, of which one is the next itself.
        self.random % (u64::from(rarity.get()) * 2 - 1)
    }
}

impl Desk {
    fn witness(self: &Rc<Self>, mut record: Record) -> Witness {
        let desk = Rc::clone(self);
        Box::new(move |ending| {
            record.end(ending);
            let len_bytes = record.len_bytes();
            let write = move || scribe::log_at(record.outcome.ended, || record.log());
            if !desk.scribe.try_put(len_bytes, write) {
                desk.figures.access_dropped.add(1);
            }
        })
    }
}

impl Record {
    fn of(request: Option<&Request<'_>>, peer: Option<IpAddr>, proxies: &TrustedProxies) -> Self {
        let client = proxies.client_address(peer, request.and_then(|request| request.x_forwarded_for));
        let proxy = (client != peer).then(|| peer.map_or(Proxy::UnixSocket, Proxy::At));
        Self { client, proxy, ..Self::of_stranger(request) }
    }

    fn of_stranger(request: Option<&Request<'_>>) -> Self {
        let asked = request.map(|request| Asked {
            method: request.method,
            version: request.version,
            target: Text::of(request.target),
            user_agent: request.user_agent.map(Text::of),
            began: Instant::now(),
        });
        Self { asked, client: None, proxy: None, outcome: Outcome::default() }
    }

    fn end(&mut self, ending: &Ending) {
        self.outcome = Outcome {
            status: ending.status.map_or(STATUS_GONE, Status::code),
            sent_len_bytes: ending.sent_len_bytes,
            took: self.asked.as_ref().map(|asked| asked.began.elapsed()),
            ended: Some(SystemTime::now()),
            is_whole: ending.is_whole,
        };
    }

    /// What it takes in memory.
    fn len_bytes(&self) -> usize {
        let of_texts = self.asked.as_ref().map_or(0, |asked| {
            asked.target.bytes.len() + asked.user_agent.as_ref().map_or(0, |text| text.bytes.len())
        });
        size_of::<Self>() + of_texts
    }

    fn log(&self) {
        let Outcome { status, sent_len_bytes, took, is_whole, .. } = self.outcome;
        #[expect(clippy::cast_precision_loss, reason = "exact for 285 years")]
        let duration_ms = took.map(|took| took.as_micros() as f64 / 1000.0);
        let asked = self.asked.as_ref();
        let version = asked.map(|asked| match asked.version {
            Version::Http10 => "1.0",
            Version::Http11 => "1.1",
        });
        let user_agent = asked.and_then(|asked| asked.user_agent.as_ref()).map(Text::to_text);
        info!(
            target: TARGET,
            client = self.client.map(field::display),
            method = asked.map(|asked| field::display(asked.method.name())),
            // JSON has a `target` already.
            uri = asked.map(|asked| field::display(asked.target.to_text())),
            http_version = version.map(field::display),
            status,
            bytes = sent_len_bytes,
            duration_ms,
            is_whole,
            proxy = self.proxy.map(|proxy| match proxy {
                Proxy::At(address) => field::display(address.to_string()),
                Proxy::UnixSocket => field::display("unix".to_owned()),
            }),
            user_agent = user_agent.as_deref(),
        );
    }
}

impl Text {
    fn of(bytes: &[u8]) -> Self {
        let len = bytes.len().min(ACCESS_TEXT_LEN_MAX);
        Self { bytes: bytes[..len].into(), is_cut: len < bytes.len() }
    }

    /// As it can be shown anywhere.
    fn to_text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.bytes).into_owned();
        if !text.is_ascii() || text.bytes().any(|byte| byte.is_ascii_control()) {
            text = text.replace(|character| !is_plain(character), "\u{fffd}");
        }
        if self.is_cut {
            text.push('…');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt;
    use std::num::NonZeroU32;
    use std::sync::{Mutex, mpsc};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;
    use crate::codec::http::Status;
    use crate::codec::http::request::{Parsed, parse};
    use crate::limits::LOG_QUEUE_LEN_BYTES_MAX;

    /// Keeps the fields of the last event, and when that has happened.
    #[derive(Clone, Default)]
    struct Last(Arc<Mutex<LastEvent>>);
    type LastEvent = (BTreeMap<&'static str, String>, Option<SystemTime>);

    impl Subscriber for Last {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &tracing::span::Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            struct Fields<'a>(&'a mut BTreeMap<&'static str, String>);
            impl Visit for Fields<'_> {
                fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                    self.0.insert(field.name(), format!("{value:?}"));
                }
            }
            assert_eq!(event.metadata().target(), TARGET);
            let mut last = self.0.lock().unwrap();
            last.0.clear();
            event.record(&mut Fields(&mut last.0));
            last.1 = Some(scribe::happened());
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    fn fields(record: &Record) -> BTreeMap<&'static str, String> {
        let last = Last::default();
        tracing::subscriber::with_default(last.clone(), || record.log());
        let last = last.0.lock().unwrap();
        last.0.clone()
    }

    /// The record of this request, whose head lacks the end of its last line, from `peer`, behind a proxy at 10.0.0.1.
    fn record(head: &[u8], peer: Option<&str>) -> Record {
        let head = [head, b"\r\nHost: here\r\n\r\n"].concat();
        let Ok(Parsed::Complete { request, .. }) = parse(&head, 0) else { panic!("{head:?}") };
        let proxies = TrustedProxies::new(Arc::from(["10.0.0.1".parse().unwrap()]));
        Record::of(Some(&request), peer.map(|peer| peer.parse().unwrap()), &proxies)
    }

    const WHOLE: Ending = Ending { status: Some(Status::Ok), sent_len_bytes: 512, is_whole: true };

    #[test]
    fn a_line_says_who_asked_what_and_what_came_of_it() {
        let head = b"GET /x.narinfo?a=b HTTP/1.1\r\nUser-Agent: curl/8 Nix/2\r\nX-Forwarded-For: 192.0.2.7";
        let mut direct = record(head, Some("192.0.2.1"));
        direct.end(&WHOLE);
        let said = fields(&direct);
        for (name, value) in [
            ("client", "192.0.2.1"),
            ("method", "GET"),
            ("uri", "/x.narinfo?a=b"),
            ("http_version", "1.1"),
            ("status", "200"),
            ("bytes", "512"),
            ("is_whole", "true"),
            ("user_agent", "\"curl/8 Nix/2\""),
        ] {
            assert_eq!(said[name], value, "{said:?}");
        }
        assert!(!said.contains_key("proxy") && said["duration_ms"].parse::<f64>().is_ok(), "{said:?}");

        let mut behind = record(head, Some("10.0.0.1"));
        behind.end(&Ending { status: None, sent_len_bytes: 0, is_whole: false });
        let said = fields(&behind);
        for (name, value) in
            [("client", "192.0.2.7"), ("proxy", "10.0.0.1"), ("status", "499"), ("is_whole", "false")]
        {
            assert_eq!(said[name], value, "{said:?}");
        }
        let said = fields(&record(head, None));
        assert_eq!((&*said["client"], &*said["proxy"]), ("192.0.2.7", "unix"));
        let said = fields(&record(b"PUT / HTTP/1.0", None));
        assert_eq!((&*said["method"], &*said["http_version"]), ("PUT", "1.0"));
        assert!(!said.contains_key("client") && !said.contains_key("user_agent"), "{said:?}");
    }

    #[test]
    fn a_line_of_what_is_no_request_says_who_sent_it_and_what_came_of_it() {
        let proxies = TrustedProxies::new(Arc::default());
        let mut record = Record::of(None, Some("192.0.2.1".parse().unwrap()), &proxies);
        record.end(&Ending { status: Some(Status::BadRequest), sent_len_bytes: 100, is_whole: true });
        let expected = [("bytes", "100"), ("client", "192.0.2.1"), ("is_whole", "true"), ("status", "400")];
        assert_eq!(fields(&record), expected.map(|(name, value)| (name, value.to_owned())).into());
    }

    #[test]
    fn nothing_of_a_peer_means_anything_to_a_terminal_or_has_no_end() {
        let long = [b"GET /".as_slice(), &[b'a'; 3000], b" HTTP/1.1\r\nUser-Agent: ", &[0xe4; 3000]].concat();
        let said = fields(&record(&long, None));
        assert_eq!(said["uri"].chars().count(), ACCESS_TEXT_LEN_MAX + 1);
        assert!(said["uri"].ends_with("a…") && said["user_agent"].contains('\u{fffd}'), "{said:?}");
        assert_eq!(said["user_agent"].chars().count(), ACCESS_TEXT_LEN_MAX + 1 + 2, "with its quotes");

        // What a head may have: a tab, and bytes beyond ASCII.
        let hostile = "GET / HTTP/1.1\r\nUser-Agent: a\tb\u{9b}31m\u{2028}c\u{202e}d\u{200f}\\\"e";
        let record = record(hostile.as_bytes(), None);
        let text = record.asked.as_ref().unwrap().user_agent.as_ref().unwrap().to_text();
        assert_eq!(text, "a\u{fffd}b\u{fffd}31m\u{fffd}c\u{fffd}d\u{fffd}\\\"e");
        assert_eq!(fields(&record)["user_agent"], format!("{text:?}"));
    }

    #[test]
    fn nothing_that_is_secret_is_logged() {
        let head = b"GET /x HTTP/1.1\r\nAuthorization: Bearer s3cret\r\nCookie: s3cret\r\nX-Forwarded-For: s3cret\r\nReferer: s3cret";
        let said = fields(&record(head, None));
        assert!(!format!("{said:?}").contains("s3cret"), "{said:?}");
    }

    #[test]
    fn a_line_that_is_written_late_bears_the_time_of_its_request() {
        let scribe = Arc::<Scribe>::default();
        scribe.start().unwrap();
        let recorder = Recorder::new(AccessLog::Off, Arc::clone(&scribe), Arc::default(), 1);
        let (stuck, freed) = mpsc::sync_channel::<()>(0);
        let last = Last::default();
        let of_thread = last.clone();
        assert!(scribe.try_put(0, move || std::mem::forget(tracing::subscriber::set_default(of_thread))));
        assert!(scribe.try_put(0, move || assert!(freed.recv().is_err())));
        let witness = recorder.desk.witness(record(b"GET / HTTP/1.1", None));
        let before = SystemTime::now();
        witness(&WHOLE);
        let after = SystemTime::now();
        drop(stuck);
        scribe.flush();
        let happened = last.0.lock().unwrap().1.unwrap();
        assert!((before..=after).contains(&happened), "{before:?} {happened:?} {after:?}");
    }

    #[test]
    fn what_does_not_fit_is_counted_and_not_waited_for() {
        let (scribe, figures) = (Arc::<Scribe>::default(), Arc::<NodeFigures>::default());
        scribe.start().unwrap();
        let recorder = Recorder::new(AccessLog::Off, Arc::clone(&scribe), Arc::clone(&figures), 1);
        let (stuck, freed) = mpsc::sync_channel::<()>(0);
        assert!(scribe.try_put(LOG_QUEUE_LEN_BYTES_MAX, move || assert!(freed.recv().is_err())));
        let witness = || recorder.desk.witness(record(b"GET / HTTP/1.1", None));
        for _ in 0..3 {
            witness()(&WHOLE);
        }
        assert_eq!((figures.access_dropped.get(), scribe.figures().dropped.get()), (3, 0));
        drop(stuck);
        scribe.flush();
        witness()(&WHOLE);
        assert_eq!(figures.access_dropped.get(), 3, "there is room again");
    }

    /// Which of so many requests are logged.
    fn logged(rarity: u32, seed: u64, count: usize) -> Vec<usize> {
        let rule = AccessLog::OneIn(NonZeroU32::new(rarity).unwrap());
        let mut recorder = Recorder::new(rule, Arc::default(), Arc::default(), seed);
        (0..count).filter(|_| recorder.is_next()).collect()
    }

    #[test]
    fn one_in_so_many_is_logged_whatever_the_order_they_come_in() {
        assert_eq!(logged(1, 7, 100), (0..100).collect::<Vec<_>>());
        for seed in [0, 1, u64::MAX] {
            for rarity in [2, 5, 10] {
                let chosen = logged(rarity, seed, 100_000);
                let expected = 100_000 / rarity as usize;
                assert!(chosen.len().abs_diff(expected) < expected / 10, "1/{rarity}: {}", chosen.len());
                // Each of two that take turns, and each of as many as there are in a step.
                for period in [2, rarity as usize] {
                    let first = chosen.iter().filter(|&&number| number % period == 0).count();
                    let share = chosen.len() / period;
                    assert!(first.abs_diff(share) < share / 5, "1/{rarity}: {first} of {}", chosen.len());
                }
            }
        }
        assert_eq!(logged(10, 3, 1000), logged(10, 3, 1000));
        assert_ne!(logged(10, 3, 1000), logged(10, 4, 1000));
    }

    #[test]
    fn a_rule_is_in_force_at_once() {
        let rule = |rarity| AccessLog::OneIn(NonZeroU32::new(rarity).unwrap());
        let mut recorder = Recorder::new(rule(u32::MAX), Arc::default(), Arc::default(), 1);
        assert!(!recorder.is_next());
        recorder.change(rule(1));
        assert!(recorder.is_next() && recorder.is_next());
        recorder.change(AccessLog::Off);
        assert!(!recorder.is_next());
    }
}
