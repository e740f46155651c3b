//! Which metrics there are: their names, what they mean, and where each number comes from. `docs/metrics.md` is made of this.
//!
//! The number of samples is bounded by what is listed here, and by the number of workers where each of them has samples of its own.

use prometheus_client::metrics::MetricType;

use super::Sources;
use super::process::{ProcessFigures, ProcessFiles};
use crate::background::{Report, State};
use crate::codec::http::Status as HttpStatus;
use crate::ring::ledger::{BATCH_BOUNDS, Farewell, Figures, RingLimit, Truncation, Way};
use crate::server::figures::{NodeFigures, NodeLimit, Query, Severity};
use crate::server::nar_cache::Status;
use crate::server::topic::Subject;
use crate::server::uploads::UploadCounts;
use crate::tally::{BOUNDS_NS, Observed, OwnCount, Tally as _};

/// Metrics that belong together.
pub struct Group {
    /// In the documentation.
    pub title: &'static str,
    /// What else there is to know about them, and what to watch.
    pub watch: &'static str,
    /// Its metrics, in the order in which they are exposed.
    pub families: &'static [Family],
    /// Whether they are those that every program has, under the same names.
    pub is_standard: bool,
}

/// A metric, and all of its samples.
pub struct Family {
    /// Without the prefix, and without what its kind adds.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// What its samples differ by.
    pub labels: &'static [Label],
    /// What it says.
    pub help: &'static str,
    /// Reads it. What has no samples is not exposed.
    pub read: fn(&Now<'_>, &mut Samples),
}

/// What is known of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It is so now.
    Gauge,
    /// Numbers in classes.
    Histogram,
    /// It is always 1; what matters is its labels.
    Info,
}

/// What samples of one metric differ by.
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// The values that it can have.
    pub values: Values,
}

/// The values of a label.
pub enum Values {
    /// These.
    Listed(fn() -> Vec<&'static str>),
    /// Such.
    Described(&'static str),
}

/// A number, or several that are one sample.
pub enum Value {
    /// A whole one.
    Whole(u64),
    /// Any.
    Fraction(f64),
    /// Of a histogram.
    Classes {
        /// The upper end of each class, and how many are in it and in none before.
        buckets: Vec<(f64, u64)>,
        /// All numbers together.
        sum: f64,
    },
}

/// The samples of one metric: values of its labels, in their order, and the number.
#[derive(Default)]
pub struct Samples(pub Vec<(Vec<String>, Value)>);

/// What was found out at the beginning of a scrape, and who is asked for the rest.
pub struct Now<'a> {
    sources: &'a Sources,
    nar_cache: Option<Status>,
    process: Option<ProcessFigures>,
}

#[cfg(test)]
impl Family {
    /// As somebody sees it who reads Prometheus' text format.
    pub fn full_name(&self, group: &Group) -> String {
        let prefix = if group.is_standard { "" } else { "narwire_" };
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        format!("{prefix}{}{suffix}", self.name)
    }
}

impl Kind {
    /// As the library names it.
    pub fn of_openmetrics(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
            Self::Histogram => MetricType::Histogram,
            Self::Info => MetricType::Info,
        }
    }
}

impl Samples {
    fn add(&mut self, labels: &[&str], value: Value) {
        self.0.push((labels.iter().map(|&label| label.to_owned()).collect(), value));
    }

    fn count(&mut self, labels: &[&str], count: u64) {
        self.add(labels, Value::Whole(count));
    }

    fn time(&mut self, labels: &[&str], observed: &Observed) {
        self.time_up_to(f64::INFINITY, labels, observed);
    }

    /// The same with one class for all that took longer than this.
    fn time_up_to(&mut self, max_s: f64, labels: &[&str], observed: &Observed) {
        let ends = BOUNDS_NS.iter().map(|&bound_ns| seconds(bound_ns)).filter(|end| *end <= max_s);
        let mut buckets: Vec<_> = ends.zip(observed.classes).collect();
        let longer = observed.classes[buckets.len()..].iter().sum();
        buckets.push((f64::INFINITY, longer));
        self.add(labels, Value::Classes { buckets, sum: seconds(observed.sum_ns) });
    }
}

#[expect(clippy::cast_precision_loss, reason = "a sum of times is told as a number that is not exact")]
fn seconds(time_ns: u64) -> f64 {
    time_ns as f64 / 1e9
}

impl<'a> Now<'a> {
    /// The beginning of a scrape of those metrics that every program has, or of this program's own.
    pub fn of(sources: &'a Sources, is_standard: bool) -> Self {
        let nar_cache = sources.nar_cache.as_ref().filter(|_| !is_standard).map(|status| status());
        let process = sources.process.as_ref().filter(|_| is_standard).and_then(ProcessFiles::figures);
        Self { sources, nar_cache, process }
    }

    fn sum(&self, read: impl Fn(&Figures) -> u64) -> u64 {
        self.sources.workers.iter().map(|worker| read(&worker.ring)).sum()
    }

    fn sum_node(&self, read: impl Fn(&NodeFigures) -> u64) -> u64 {
        self.sources.workers.iter().map(|worker| read(&worker.node)).sum()
    }

    fn observed(&self, read: impl Fn(&Figures) -> Observed) -> Observed {
        let workers = self.sources.workers.iter();
        workers.fold(Observed::default(), |sum, worker| sum.and(read(&worker.ring)))
    }

    fn each_worker(&self, mut tell: impl FnMut(&str, &Figures)) {
        for (index, worker) in self.sources.workers.iter().enumerate() {
            tell(&index.to_string(), &worker.ring);
        }
    }

    /// What the background says of an open NAR cache.
    fn report(&self) -> Option<&Report> {
        match &self.nar_cache {
            Some(Status::Open(report)) => Some(report),
            Some(Status::Closed(_)) | None => None,
        }
    }

    fn tell_report(&self, samples: &mut Samples, read: impl Fn(&Report) -> u64) {
        if let Some(report) = self.report() {
            samples.count(&[], read(report));
        }
    }

    fn tell_uploads(&self, samples: &mut Samples, read: impl Fn(&UploadCounts) -> u64) {
        if let Some(uploads) = &self.sources.uploads {
            samples.count(&[], read(uploads));
        }
    }

    fn tell_process(&self, samples: &mut Samples, read: impl Fn(&ProcessFigures) -> Option<Value>) {
        if let Some(value) = self.process.as_ref().and_then(read) {
            samples.add(&[], value);
        }
    }
}

/// The status with which a route is there before anybody has asked.
fn usual_status(subject: Subject) -> HttpStatus {
    match subject {
        Subject::Malformed => HttpStatus::BadRequest,
        Subject::Other => HttpStatus::NotFound,
        _ => HttpStatus::Ok,
    }
}

/// A turn that takes longer is too long, however long it is: each worker has these classes, so there are none beyond. Seconds.
const TURN_MAX_S: f64 = 1.0;

/// Whether answers about this have bodies that are streamed, as a rule.
fn is_streamed(subject: Subject) -> bool {
    matches!(subject, Subject::Nar | Subject::Log | Subject::Listing | Subject::Page)
}

const fn label(name: &'static str, values: fn() -> Vec<&'static str>) -> Label {
    Label { name, values: Values::Listed(values) }
}

const ROUTE: Label = label("route", || Subject::ALL.map(Subject::label).to_vec());
const STATUS: Label = Label {
    name: "status",
    values: Values::Described("codes of HTTP that were answered, at least one for each route"),
};
const WORKER: Label = Label { name: "worker", values: Values::Described("from 0") };
const PLANE: Label = label("plane", || vec!["lookup", "walk", "text", "encode", "metrics", "upload"]);

/// All of them.
pub const GROUPS: &[Group] = &[
    Group {
        title: "Requests",
        watch: "The share of `status=~\"5..\"` without 501 and 505, which are for requests that nobody could answer, and truncated answers with \
            `cause=\"body\"` should be nothing. 503 says that something is full, and then `narwire_limits_hit_total` says what, or that a source \
            does not answer: `/health` and the log say which. Seldom it says that something is not ready yet: the index of debug symbols, a NAR \
            cache that is being opened, a page that takes too long. The time to the first byte of a NAR is also that of walking its tree, if that \
            had to be.",
        is_standard: false,
        families: &[
            Family {
                name: "http_requests",
                kind: Kind::Counter,
                labels: &[ROUTE, STATUS],
                help: "Answers that were given, by what was asked for and their status.",
                read: |now, samples| {
                    for subject in Subject::ALL {
                        for (index, status) in HttpStatus::ALL.into_iter().enumerate() {
                            let count = now.sum(|ring| ring.topics[subject as usize].statuses[index].get());
                            if count > 0 || status == usual_status(subject) {
                                samples.count(&[subject.label(), &(status as u16).to_string()], count);
                            }
                        }
                    }
                },
            },
            Family {
                name: "http_response_bytes",
                kind: Kind::Counter,
                labels: &[ROUTE],
                help: "Bytes of heads and bodies, by what was asked for: of bodies that are streamed as sockets took them, of answers from memory as they \
                    were handed over to be sent.",
                read: |now, samples| {
                    for subject in Subject::ALL {
                        let sent = now.sum(|ring| ring.topics[subject as usize].sent_bytes.get());
                        samples.count(&[subject.label()], sent);
                    }
                },
            },
            Family {
                name: "http_requests_in_flight",
                kind: Kind::Gauge,
                labels: &[],
                help: "Requests that have come and are not answered to the end.",
                read: |now, samples| {
                    // In this order: what has ended has begun.
                    let ended = now.sum(|ring| ring.ended.get());
                    samples.count(&[], now.sum(|ring| ring.begun.get()).saturating_sub(ended));
                },
            },
            Family {
                name: "http_first_byte_seconds",
                kind: Kind::Histogram,
                labels: &[ROUTE],
                help: "Time from the end of a request's head until the head of the answer is handed to the kernel.",
                read: |now, samples| {
                    for subject in Subject::ALL {
                        let times = now.observed(|ring| ring.topics[subject as usize].first_byte.read());
                        if subject != Subject::Malformed || times.count() > 0 {
                            samples.time(&[subject.label()], &times);
                        }
                    }
                },
            },
            Family {
                name: "http_transfer_seconds",
                kind: Kind::Histogram,
                labels: &[ROUTE],
                help: "Time from the first byte of an answer whose body is streamed until the socket has taken the last one.",
                read: |now, samples| {
                    for subject in Subject::ALL {
                        let times = now.observed(|ring| ring.topics[subject as usize].transfer.read());
                        if is_streamed(subject) || times.count() > 0 {
                            samples.time(&[subject.label()], &times);
                        }
                    }
                },
            },
            Family {
                name: "http_truncated_responses",
                kind: Kind::Counter,
                labels: &[label("cause", || Truncation::ALL.map(Truncation::label).to_vec())],
                help: "Answers that broke off: those whose body could not be finished are a fault of this machine.",
                read: |now, samples| {
                    for cause in Truncation::ALL {
                        let count = now.sum(|ring| ring.truncated[cause as usize].get());
                        samples.count(&[cause.label()], count);
                    }
                },
            },
        ],
    },
    Group {
        title: "Connections",
        watch: "`narwire_connections` near `narwire_connections_max` means that idle connections are ended to make room, and that others \
            wait: raise `--max-connections` and the limit of open files. `slow` and `timeout` are clients that take or send next to nothing.",
        is_standard: false,
        families: &[
            Family {
                name: "connections",
                kind: Kind::Gauge,
                labels: &[],
                help: "Connections that are open.",
                read: |now, samples| {
                    let closed = now.sum(|ring| ring.closed.iter().map(OwnCount::get).sum());
                    samples.count(&[], now.sum(|ring| ring.opened.get()).saturating_sub(closed));
                },
            },
            Family {
                name: "connections_max",
                kind: Kind::Gauge,
                labels: &[],
                help: "How many connections can be open at once.",
                read: |now, samples| samples.count(&[], now.sources.connections_max as u64),
            },
            Family {
                name: "connections_accepted",
                kind: Kind::Counter,
                labels: &[],
                help: "Connections that were accepted.",
                read: |now, samples| samples.count(&[], now.sum(|ring| ring.accepted.get())),
            },
            Family {
                name: "connections_refused",
                kind: Kind::Counter,
                labels: &[label("reason", || vec!["address_limit"])],
                help: "Connections that were turned away with 503, because their address has too many.",
                read: |now, samples| {
                    samples.count(&["address_limit"], now.sum(|ring| ring.turned_away.get()));
                },
            },
            Family {
                name: "connections_closed",
                kind: Kind::Counter,
                labels: &[label("reason", || Farewell::ALL.map(Farewell::label).to_vec())],
                help: "Connections that have ended, by the reason.",
                read: |now, samples| {
                    for reason in Farewell::ALL {
                        samples.count(&[reason.label()], now.sum(|ring| ring.closed[reason as usize].get()));
                    }
                },
            },
        ],
    },
    Group {
        title: "Workers and their rings",
        watch: "A worker that lags (`narwire_ring_turn_seconds` above some milliseconds) keeps everybody on it waiting: the machine has too \
            little CPU, or the disk blocks where it should not. Overflows cost time and lose nothing. Many cold reads mean that what is asked \
            for does not fit into memory.",
        is_standard: false,
        families: &[
            Family {
                name: "workers",
                kind: Kind::Gauge,
                labels: &[],
                help: "Workers, each with a thread, a core and a ring.",
                read: |now, samples| samples.count(&[], now.sources.workers.len() as u64),
            },
            Family {
                name: "ring_submissions",
                kind: Kind::Counter,
                labels: &[WORKER],
                help: "Operations that were handed to the kernel through io_uring.",
                read: |now, samples| {
                    now.each_worker(|worker, ring| samples.count(&[worker], ring.submissions.get()));
                },
            },
            Family {
                name: "ring_completions",
                kind: Kind::Counter,
                labels: &[WORKER],
                help: "Completions that were taken from io_uring.",
                read: |now, samples| {
                    now.each_worker(|worker, ring| samples.count(&[worker], ring.completions.get()));
                },
            },
            Family {
                name: "ring_overflows",
                kind: Kind::Counter,
                labels: &[WORKER],
                help: "Turns in which the kernel had more completions than the ring has room for.",
                read: |now, samples| {
                    now.each_worker(|worker, ring| samples.count(&[worker], ring.overflows.get()));
                },
            },
            Family {
                name: "ring_turn_seconds",
                kind: Kind::Histogram,
                labels: &[WORKER],
                help: "Time that a worker takes from one wait to the next, in which nobody else on it is served.",
                read: |now, samples| {
                    now.each_worker(|worker, ring| {
                        samples.time_up_to(TURN_MAX_S, &[worker], &ring.turns.read());
                    });
                },
            },
            Family {
                name: "ring_batch_completions",
                kind: Kind::Histogram,
                labels: &[WORKER],
                help: "Completions that a worker deals with between two waits.",
                read: |now, samples| {
                    now.each_worker(|worker, ring| {
                        let ends = BATCH_BOUNDS.iter().map(|&bound| whole(bound)).chain([f64::INFINITY]);
                        let buckets = ends.zip(ring.batches.iter().map(OwnCount::get)).collect();
                        samples
                            .add(&[worker], Value::Classes { buckets, sum: whole(ring.completions.get()) });
                    });
                },
            },
            Family {
                name: "sends",
                kind: Kind::Counter,
                labels: &[label("path", || Way::ALL.map(Way::label).to_vec())],
                help: "Operations that sent something, by the way it took.",
                read: |now, samples| {
                    for way in Way::ALL {
                        samples.count(&[way.label()], now.sum(|ring| ring.sends[way as usize].count.get()));
                    }
                },
            },
            Family {
                name: "send_bytes",
                kind: Kind::Counter,
                labels: &[label("path", || Way::ALL.map(Way::label).to_vec())],
                help: "Bytes that sockets have taken, by the way they took.",
                read: |now, samples| {
                    for way in Way::ALL {
                        let sent = now.sum(|ring| ring.sends[way as usize].sent_bytes.get());
                        samples.count(&[way.label()], sent);
                    }
                },
            },
            Family {
                name: "cold_reads",
                kind: Kind::Counter,
                labels: &[],
                help: "How often a long file was to be sent and was not in memory, so that it is read first; that is each time where the kernel (before \
                    6.5) or the file system (such as tmpfs) does not say what is in memory.",
                read: |now, samples| samples.count(&[], now.sum(|ring| ring.cold_reads.get())),
            },
        ],
    },
    Group {
        title: "Threads that may wait",
        watch: "A queue that is never empty, or waits of a second, say which threads are short: `lookup` asks databases, `walk` reads the trees \
            of NARs, `text` makes listings and finds logs, `encode` compresses NARs on their way, `metrics` answers `/metrics`, `upload` looks into \
            uploads. Who finds a queue full is answered 503.",
        is_standard: false,
        families: &[
            Family {
                name: "plane_queue_length",
                kind: Kind::Gauge,
                labels: &[PLANE],
                help: "Jobs that wait for a thread.",
                read: |now, samples| {
                    for plane in &now.sources.planes {
                        samples.count(&[plane.name], plane.queue_len());
                    }
                },
            },
            Family {
                name: "plane_queue_length_max",
                kind: Kind::Gauge,
                labels: &[PLANE],
                help: "How many jobs can wait for a thread.",
                read: |now, samples| {
                    for plane in &now.sources.planes {
                        samples.count(&[plane.name], plane.queue_len_max as u64);
                    }
                },
            },
            Family {
                name: "plane_wait_seconds",
                kind: Kind::Histogram,
                labels: &[PLANE],
                help: "Time that jobs have waited for a thread.",
                read: |now, samples| {
                    for plane in &now.sources.planes {
                        samples.time(&[plane.name], &plane.waited.read());
                    }
                },
            },
            Family {
                name: "plane_refused",
                kind: Kind::Counter,
                labels: &[PLANE],
                help: "Jobs that were refused because the queue was full; those who wanted them were answered 503.",
                read: |now, samples| {
                    for plane in &now.sources.planes {
                        samples.count(&[plane.name], plane.refused.get());
                    }
                },
            },
        ],
    },
    Group {
        title: "What is known of paths",
        watch: "`narwire_database_stale` at 1 means that paths registered since are 404: start narwire anew. Errors of the database are answered \
            500 or 503, never 404.",
        is_standard: false,
        families: &[
            Family {
                name: "database_query_seconds",
                kind: Kind::Histogram,
                labels: &[label("query", || Query::ALL.map(Query::label).to_vec())],
                help: "Time that questions to the Nix database took, with opening it where a thread does so first.",
                read: |now, samples| {
                    for query in Query::ALL {
                        let times = now.sources.shared.queries[query as usize].read();
                        samples.time(&[query.label()], &times);
                    }
                },
            },
            Family {
                name: "database_errors",
                kind: Kind::Counter,
                labels: &[],
                help: "Questions to the Nix database that failed; the log says why.",
                read: |now, samples| samples.count(&[], now.sources.shared.query_errors.get()),
            },
            Family {
                name: "database_stale",
                kind: Kind::Gauge,
                labels: &[],
                help: "Whether the Nix database that is asked is not the one that is there any more: 1 needs a restart, or a database that can be opened.",
                read: |now, samples| {
                    let is_stale = now.sources.stores.iter().any(|store| store.is_behind());
                    samples.count(&[], u64::from(is_stale));
                },
            },
            Family {
                name: "answer_cache_hits",
                kind: Kind::Counter,
                labels: &[],
                help: "Questions about a path that were answered from what a worker remembers.",
                read: |now, samples| samples.count(&[], now.sum_node(|node| node.answer_hits.get())),
            },
            Family {
                name: "answer_cache_misses",
                kind: Kind::Counter,
                labels: &[],
                help: "Questions about a path for which the database had to be asked.",
                read: |now, samples| samples.count(&[], now.sum_node(|node| node.answer_misses.get())),
            },
            Family {
                name: "layout_cache_hits",
                kind: Kind::Counter,
                labels: &[],
                help: "NARs that were made live and whose layout a worker knew.",
                read: |now, samples| samples.count(&[], now.sum_node(|node| node.layout_hits.get())),
            },
            Family {
                name: "layout_cache_misses",
                kind: Kind::Counter,
                labels: &[],
                help: "NARs that were made live and had to wait until their tree was walked.",
                read: |now, samples| samples.count(&[], now.sum_node(|node| node.layout_misses.get())),
            },
            Family {
                name: "signatures",
                kind: Kind::Counter,
                labels: &[],
                help: "Signatures that were made for narinfos.",
                read: |now, samples| samples.count(&[], now.sources.shared.signatures.get()),
            },
            Family {
                name: "signing_seconds",
                kind: Kind::Histogram,
                labels: &[],
                help: "Time that it took to sign a narinfo with all keys.",
                read: |now, samples| samples.time(&[], &now.sources.shared.signing.read()),
            },
            Family {
                name: "signing_keys",
                kind: Kind::Gauge,
                labels: &[],
                help: "Keys that sign narinfos.",
                read: |now, samples| {
                    let keys = now.sources.stores.iter().map(|store| store.keys_count()).max();
                    samples.count(&[], keys.unwrap_or_default() as u64);
                },
            },
        ],
    },
    Group {
        title: "NAR cache",
        watch: "Only with `--cache-dir`; while it cannot be opened, of what it reports only `narwire_nar_cache_up` is there, with 0. \
            Hits are `hit` of all requests; a NAR so short that it goes out with its head is not cached and not counted. What compression saves is \
            `1 - narwire_nar_cache_stored_bytes_total / narwire_nar_cache_filled_bytes_total`, where each NAR is kept in one coding. \
            A cache that is full and evicts all the time is too small.",
        is_standard: false,
        families: &[
            Family {
                name: "nar_cache_up",
                kind: Kind::Gauge,
                labels: &[],
                help: "Whether the NAR cache does what it is to do; 0 is a disk that is full or broken, or another process that has it.",
                read: |now, samples| {
                    if now.nar_cache.is_some() {
                        let is_up = now.report().is_some_and(|report| report.state == State::Working);
                        samples.count(&[], u64::from(is_up));
                    }
                },
            },
            Family {
                name: "nar_cache_requests",
                kind: Kind::Counter,
                labels: &[label("result", || vec!["hit", "miss"])],
                help: "NARs of the live store that were asked for where there is a NAR cache: those that it had, and those that are made of their trees.",
                read: |now, samples| {
                    if now.nar_cache.is_some() {
                        samples.count(&["hit"], now.sum_node(|node| node.nar_hits.get()));
                        samples.count(&["miss"], now.sum_node(|node| node.nar_misses.get()));
                    }
                },
            },
            Family {
                name: "nar_cache_fills",
                kind: Kind::Counter,
                labels: &[label("result", || vec!["stored", "damaged", "failed", "refused"])],
                help: "NARs that were encoded for the cache, by what came of it.",
                read: |now, samples| {
                    if let Some(report) = now.report() {
                        samples.count(&["stored"], report.fills_done);
                        samples.count(&["damaged"], report.fills_damaged);
                        samples.count(&["failed"], report.fills_failed);
                        samples.count(&["refused"], report.fills_refused);
                    }
                },
            },
            Family {
                name: "nar_cache_bytes",
                kind: Kind::Gauge,
                labels: &[],
                help: "What all files of the NAR cache take.",
                read: |now, samples| now.tell_report(samples, |report| report.used_bytes),
            },
            Family {
                name: "nar_cache_size_max_bytes",
                kind: Kind::Gauge,
                labels: &[],
                help: "What all files of the NAR cache may take.",
                read: |now, samples| now.tell_report(samples, |report| report.len_max),
            },
            Family {
                name: "nar_cache_filled_bytes",
                kind: Kind::Counter,
                labels: &[],
                help: "Length of the NARs that were encoded.",
                read: |now, samples| now.tell_report(samples, |report| report.filled_bytes),
            },
            Family {
                name: "nar_cache_stored_bytes",
                kind: Kind::Counter,
                labels: &[],
                help: "Length of the files that they became.",
                read: |now, samples| now.tell_report(samples, |report| report.stored_bytes),
            },
            Family {
                name: "nar_cache_evictions",
                kind: Kind::Counter,
                labels: &[],
                help: "Files removed from the NAR cache, to make room or because nobody needs them.",
                read: |now, samples| now.tell_report(samples, |report| report.evictions),
            },
            Family {
                name: "nar_cache_evicted_bytes",
                kind: Kind::Counter,
                labels: &[],
                help: "Length of the files removed from the NAR cache.",
                read: |now, samples| now.tell_report(samples, |report| report.evicted_bytes),
            },
            Family {
                name: "nar_cache_hints",
                kind: Kind::Counter,
                labels: &[],
                help: "Requests of NARs that were not there, of which the NAR cache took note.",
                read: |now, samples| now.tell_report(samples, |report| report.hints_taken),
            },
            Family {
                name: "nar_cache_hints_dropped",
                kind: Kind::Counter,
                labels: &[],
                help: "Such requests of which it could not take note, because too many came at once.",
                read: |now, samples| now.tell_report(samples, |report| report.hints_dropped),
            },
        ],
    },
    Group {
        title: "Damage and scrubbing",
        watch: "Only with `--cache-dir`. Anything but 0 in `narwire_damaged_paths` and `narwire_quarantined_files_total` is a disk that lies: the \
            log names the path and how it is mended.",
        is_standard: false,
        families: &[
            Family {
                name: "damaged_paths",
                kind: Kind::Gauge,
                labels: &[],
                help: "Store paths that are known to be damaged, and are not served; should be 0.",
                read: |now, samples| now.tell_report(samples, |report| report.damaged_paths),
            },
            Family {
                name: "quarantined_files",
                kind: Kind::Counter,
                labels: &[],
                help: "Damaged files of the NAR cache that were moved away; should stay 0.",
                read: |now, samples| now.tell_report(samples, |report| report.quarantined_files),
            },
            Family {
                name: "scrub_bytes",
                kind: Kind::Counter,
                labels: &[],
                help: "Bytes read to look for damage.",
                read: |now, samples| now.tell_report(samples, |report| report.scrubbed_bytes),
            },
            Family {
                name: "scrub_paths",
                kind: Kind::Counter,
                labels: &[],
                help: "Store paths that were compared with the database.",
                read: |now, samples| now.tell_report(samples, |report| report.scrubbed_paths),
            },
            Family {
                name: "scrub_files",
                kind: Kind::Counter,
                labels: &[],
                help: "Files of the NAR cache that were compared with its catalog.",
                read: |now, samples| now.tell_report(samples, |report| report.scrubbed_files),
            },
            Family {
                name: "scrub_progress_ratio",
                kind: Kind::Gauge,
                labels: &[],
                help: "How much of everything was read by the pass that is under way; 1 between two passes, and where none are made.",
                read: |now, samples| {
                    if let Some(report) = now.report() {
                        let ratio = whole(report.scrub_progress_ppm) / 1e6;
                        samples.add(&[], Value::Fraction(ratio));
                    }
                },
            },
            Family {
                name: "scrub_passes",
                kind: Kind::Counter,
                labels: &[],
                help: "Passes over everything that have ended.",
                read: |now, samples| now.tell_report(samples, |report| report.scrubs),
            },
            Family {
                name: "scrub_last_pass_timestamp_seconds",
                kind: Kind::Gauge,
                labels: &[],
                help: "When the last pass over everything ended, also if that was before a restart; absent before the first.",
                read: |now, samples| {
                    if let Some(ended_s) = now.report().and_then(|report| report.scrub_ended_s) {
                        samples.count(&[], ended_s);
                    }
                },
            },
        ],
    },
    Group {
        title: "Uploads",
        watch: "Only where uploads are taken. `mismatch` and `malformed` are faults of clients, `no_room` and `failed` of this machine's disk.",
        is_standard: false,
        families: &[
            Family {
                name: "uploads",
                kind: Kind::Counter,
                labels: &[label("result", UploadCounts::result_names)],
                help: "Uploads, by what came of them.",
                read: |now, samples| {
                    for (result, count) in now.sources.uploads.iter().flat_map(|uploads| uploads.results()) {
                        samples.count(&[result], count);
                    }
                },
            },
            Family {
                name: "upload_bytes",
                kind: Kind::Counter,
                labels: &[],
                help: "Bytes received of the bodies of uploads.",
                read: |now, samples| now.tell_uploads(samples, UploadCounts::received_bytes),
            },
            Family {
                name: "uploads_waiting",
                kind: Kind::Gauge,
                labels: &[],
                help: "Uploads that wait for others to end.",
                read: |now, samples| now.tell_uploads(samples, UploadCounts::waiting),
            },
            Family {
                name: "uploads_under_way",
                kind: Kind::Gauge,
                labels: &[],
                help: "Uploads that have begun and not ended.",
                read: |now, samples| now.tell_uploads(samples, UploadCounts::under_way),
            },
        ],
    },
    Group {
        title: "Limits",
        watch: "Each limit keeps memory, descriptors or threads for those who are served. One that is hit now and then is what it is for; one that \
            is hit all the time says what the machine has too little of. `exemptions` says nothing of the kind: so many long bodies were sent \
            with the usual bound of what the kernel takes beforehand, and as fast as the peer reads. Nor does `wrong_tokens`: somebody guesses, or \
            goes on with a token that was revoked.",
        is_standard: false,
        families: &[Family {
            name: "limits_hit",
            kind: Kind::Counter,
            labels: &[label("limit", limit_names)],
            help: "How often there was no more of what there is only so much of: somebody had to wait or was refused, except for exemptions.",
            read: |now, samples| {
                for limit in RingLimit::ALL {
                    samples.count(&[limit.label()], now.sum(|ring| ring.limits[limit as usize].get()));
                }
                for limit in NodeLimit::ALL {
                    samples.count(&[limit.label()], now.sum_node(|node| node.limits[limit as usize].get()));
                }
                let turned_away = now.sources.uploads.as_ref().map_or(0, |uploads| uploads.turned_away());
                let refused = now.sources.planes.iter().map(|plane| plane.refused.get()).sum();
                let others = [
                    now.sum(|ring| ring.turned_away.get()),
                    refused,
                    now.sources.shared.texts_refused.get(),
                    now.sources.shared.looks_refused.get(),
                    now.sources.shared.browsing_refused.get(),
                    turned_away,
                ];
                for (limit, count) in OTHER_LIMITS.into_iter().zip(others) {
                    samples.count(&[limit], count);
                }
            },
        }],
    },
    Group {
        title: "The server itself",
        watch: "`narwire_config_last_reload_successful` at 0 means that the settings on the disk are not those in force, and would keep the \
            server from starting anew; `narwire_config_restart_pending` at 1 that they are well, and come into force with the next start.",
        is_standard: false,
        families: &[
            Family {
                name: "log_lines",
                kind: Kind::Counter,
                labels: &[label("level", || Severity::ALL.map(Severity::label).to_vec())],
                help: "Lines of the log, without those of the access log; errors are worth a look.",
                read: |now, samples| {
                    for level in Severity::ALL {
                        let lines = now.sources.log.lines[level as usize].get();
                        samples.count(&[level.label()], lines);
                    }
                },
            },
            Family {
                name: "log_suppressed",
                kind: Kind::Counter,
                labels: &[label("level", || Severity::ALL.map(Severity::label).to_vec())],
                help: "Lines that were left out, because one place in the program logs no more than 60 of them in a minute.",
                read: |now, samples| {
                    for level in Severity::ALL {
                        let lines = now.sources.log.suppressed[level as usize].get();
                        samples.count(&[level.label()], lines);
                    }
                },
            },
            Family {
                name: "log_dropped",
                kind: Kind::Counter,
                labels: &[],
                help: "Those of narwire_log_lines_total that are missing: who reads the log was too slow, or they could not be written.",
                read: |now, samples| samples.count(&[], now.sources.log.dropped.get()),
            },
            Family {
                name: "access_log_lines",
                kind: Kind::Counter,
                labels: &[],
                help: "Lines of the access log that were written.",
                read: |now, samples| samples.count(&[], now.sources.log.access_lines.get()),
            },
            Family {
                name: "access_log_dropped",
                kind: Kind::Counter,
                labels: &[],
                help: "Lines of the access log that are missing: who reads the log was too slow, or they could not be written.",
                read: |now, samples| {
                    let unwritten = now.sources.log.access_dropped.get();
                    samples.count(&[], unwritten + now.sum_node(|node| node.access_dropped.get()));
                },
            },
            Family {
                name: "config_last_reload_successful",
                kind: Kind::Gauge,
                labels: &[],
                help: "Whether settings, keys and tokens could be read the last time; 0 means that those of before are in force.",
                read: |now, samples| samples.count(&[], now.sources.reloads.is_successful.get()),
            },
            Family {
                name: "config_last_reload_success_timestamp_seconds",
                kind: Kind::Gauge,
                labels: &[],
                help: "When settings, keys and tokens were last read with success.",
                read: |now, samples| samples.count(&[], now.sources.reloads.succeeded_s.get()),
            },
            Family {
                name: "config_restart_pending",
                kind: Kind::Gauge,
                labels: &[],
                help: "Whether the settings that were last read with success wait for a restart, all of them, because some are read at the \
                    start only; keys and tokens do not wait.",
                read: |now, samples| samples.count(&[], now.sources.reloads.is_restart_pending.get()),
            },
            Family {
                name: "build",
                kind: Kind::Info,
                labels: &[Label { name: "version", values: Values::Described("that of the program") }],
                help: "What this program is.",
                read: |_, samples| samples.count(&[env!("CARGO_PKG_VERSION")], 1),
            },
        ],
    },
    Group {
        title: "The process",
        watch: "The names that Prometheus knows of every program. Open descriptors near their limit are what keeps connections out.",
        is_standard: true,
        families: &[
            Family {
                name: "process_cpu_seconds",
                kind: Kind::Counter,
                labels: &[],
                help: "CPU time that all threads have used, in the kernel and outside.",
                read: |now, samples| {
                    now.tell_process(samples, |process| Some(Value::Fraction(process.cpu_s)));
                },
            },
            Family {
                name: "process_resident_memory_bytes",
                kind: Kind::Gauge,
                labels: &[],
                help: "Memory that the process has, with files that it has mapped.",
                read: |now, samples| {
                    now.tell_process(samples, |process| Some(Value::Whole(process.resident_bytes)));
                },
            },
            Family {
                name: "process_virtual_memory_bytes",
                kind: Kind::Gauge,
                labels: &[],
                help: "Addresses that the process has, whether there is memory behind them or not.",
                read: |now, samples| {
                    now.tell_process(samples, |process| Some(Value::Whole(process.virtual_bytes)));
                },
            },
            Family {
                name: "process_open_fds",
                kind: Kind::Gauge,
                labels: &[],
                help: "Descriptors that are open.",
                read: |now, samples| {
                    now.tell_process(samples, |process| Some(Value::Whole(process.open_descriptors)));
                },
            },
            Family {
                name: "process_max_fds",
                kind: Kind::Gauge,
                labels: &[],
                help: "How many descriptors can be open; absent where there is no limit.",
                read: |now, samples| {
                    now.tell_process(samples, |process| process.descriptors_max.map(Value::Whole));
                },
            },
            Family {
                name: "process_start_time_seconds",
                kind: Kind::Gauge,
                labels: &[],
                help: "When the process began.",
                read: |now, samples| {
                    now.tell_process(samples, |process| Some(Value::Fraction(process.started_s)));
                },
            },
            Family {
                name: "process_threads",
                kind: Kind::Gauge,
                labels: &[],
                help: "Threads of the process.",
                read: |now, samples| {
                    now.tell_process(samples, |process| Some(Value::Whole(process.threads)));
                },
            },
        ],
    },
];

/// Limits that are counted where they are, and only told of here.
const OTHER_LIMITS: [&str; 6] =
    ["connections_per_address", "plane_queue", "made_texts", "long_looks", "browsing", "uploads_waiting"];

fn limit_names() -> Vec<&'static str> {
    let ring = RingLimit::ALL.into_iter().map(RingLimit::label);
    ring.chain(NodeLimit::ALL.into_iter().map(NodeLimit::label)).chain(OTHER_LIMITS).collect()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "what is counted is told as a number that is not exact above 2^53"
)]
fn whole(count: u64) -> f64 {
    count as f64
}
