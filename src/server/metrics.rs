//! What `/metrics` says, in the text format of Prometheus or that of OpenMetrics; and how the NAR cache is, in words.
//!
//! Nothing is counted here: whoever counts is asked when somebody looks, on a thread that may wait. What each worker counts for itself is
//! added up then, without a word to the worker. Which metrics there are is a table ([`families`]), `docs/metrics.md` is made of it.

pub mod families;
pub mod process;
mod text;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::registry::Registry;

use self::families::{Family, GROUPS, Kind, Now, Samples, Value};
use self::process::ProcessFiles;
use super::figures::{LogFigures, PlaneFigures, ReloadFigures, SharedFigures, WorkerFigures};
use super::lookup::SharedStore;
use super::nar_cache::Status;
use super::uploads::UploadCounts;
use crate::codec::http::field::media_type_weight;

/// Who is asked for figures.
#[derive(Default)]
pub struct Sources {
    /// What each worker counts.
    pub workers: Vec<WorkerFigures>,
    /// What all threads count.
    pub shared: Arc<SharedFigures>,
    /// What is counted of each plane.
    pub planes: Vec<Arc<PlaneFigures>>,
    /// The live stores.
    pub stores: Vec<Arc<SharedStore>>,
    /// None where nothing is uploaded.
    pub uploads: Option<Arc<UploadCounts>>,
    /// Says how the NAR cache is; none where there is none.
    pub nar_cache: Option<Box<dyn Fn() -> Status + Send + Sync>>,
    /// What is counted of the log.
    pub log: Arc<LogFigures>,
    /// How many connections there may be.
    pub connections_max: usize,
    /// How reading settings again went.
    pub reloads: Arc<ReloadFigures>,
    /// None where `/proc` says nothing.
    pub process: Option<ProcessFiles>,
}

/// Every metric of this process. All workers share it.
#[derive(Debug)]
pub struct Metrics {
    /// Those of this program, whose names begin alike, and those that every program has.
    registries: [Registry; 2],
    sources: Arc<Sources>,
    /// The last text in each [`Format`]. Only the plane for metrics ever waits for this.
    last: [Mutex<Option<Kept>>; 2],
}

/// A text that others may share.
#[derive(Debug)]
struct Kept {
    /// When its making began.
    begun: Instant,
    text: Bytes,
    /// The same compressed, once somebody has asked for that.
    gzipped: Option<Bytes>,
}

/// How metrics are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The text format of Prometheus, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What somebody gets who accepts this (the value of `Accept`): OpenMetrics if it is named, and the other is not preferred by its name.
    pub fn accepted(accept: Option<&[u8]>) -> Self {
        let weight = media_type_weight(accept, "application/openmetrics-text");
        if weight > 0 && weight >= media_type_weight(accept, "text/plain") {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// As `Content-Type` has it.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Of nobody who counts.
#[cfg(test)]
impl Default for Metrics {
    fn default() -> Self {
        Self::new(Sources::default())
    }
}

impl Metrics {
    /// What `sources` count.
    pub fn new(sources: Sources) -> Self {
        let sources = Arc::new(sources);
        let registries = [false, true].map(|is_standard| {
            let mut registry =
                if is_standard { Registry::default() } else { Registry::with_prefix("narwire") };
            registry.register_collector(Box::new(Table { is_standard, sources: Arc::clone(&sources) }));
            registry
        });
        Self { registries, sources, last: Default::default() }
    }

    /// What `/metrics` says to who has asked at this moment, compressed with gzip or not. All who have waited since before a text was begun
    /// share it, so that it costs the same for many as for one, and none is told of what was before the question.
    pub fn text_since(&self, asked: Instant, format: Format, is_gzipped: bool) -> Bytes {
        let mut last = self.last[format as usize].lock().unwrap_or_else(PoisonError::into_inner);
        let kept = match last.take().filter(|kept| kept.begun >= asked) {
            Some(kept) => kept,
            None => Kept { begun: Instant::now(), text: Bytes::from(self.text(format)), gzipped: None },
        };
        let kept = last.insert(kept);
        if is_gzipped {
            kept.gzipped.get_or_insert_with(|| Bytes::from(text::gzipped(&kept.text))).clone()
        } else {
            kept.text.clone()
        }
    }

    /// What there is to say now. The library writes OpenMetrics; the other format is made of that, line by line.
    fn text(&self, format: Format) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.registries.iter().try_for_each(|registry| encode_registry(&mut text, registry));
        let _ = encode_eof(&mut text);
        match format {
            Format::Prometheus => text::prometheus(&text),
            Format::OpenMetrics => text,
        }
    }

    /// How the NAR cache is now, in words.
    pub fn nar_cache(&self) -> String {
        self.sources.nar_cache.as_ref().map_or_else(|| "off".to_owned(), |status| status().to_string())
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sources").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

/// Half of the table.
#[derive(Debug)]
struct Table {
    is_standard: bool,
    sources: Arc<Sources>,
}

/// Asks everybody at each scrape, so that all in one answer are of one moment.
impl Collector for Table {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = Now::of(&self.sources, self.is_standard);
        let groups = GROUPS.iter().filter(|group| group.is_standard == self.is_standard);
        groups.flat_map(|group| group.families).try_for_each(|family| expose(family, &now, &mut encoder))
    }
}

fn expose(family: &Family, now: &Now<'_>, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut samples = Samples::default();
    (family.read)(now, &mut samples);
    if samples.0.is_empty() {
        return Ok(());
    }
    let mut metric =
        encoder.encode_descriptor(family.name, family.help, None, family.kind.of_openmetrics())?;
    for (values, value) in samples.0 {
        debug_assert_eq!(values.len(), family.labels.len(), "{}", family.name);
        let labels: Vec<_> = family.labels.iter().map(|label| label.name).zip(values).collect();
        match (family.kind, labels.is_empty()) {
            (Kind::Info, _) => metric.encode_info(&labels)?,
            (_, true) => write(family.kind, &value, &mut metric)?,
            (_, false) => write(family.kind, &value, &mut metric.encode_family(&labels)?)?,
        }
    }
    Ok(())
}

fn write(kind: Kind, value: &Value, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
    match (kind, value) {
        (Kind::Counter, Value::Whole(value)) => encoder.encode_counter::<NoLabelSet, _, u64>(value, None),
        (Kind::Counter, Value::Fraction(value)) => encoder.encode_counter::<NoLabelSet, _, u64>(value, None),
        (_, Value::Whole(value)) => encoder.encode_gauge(value),
        (_, Value::Fraction(value)) => encoder.encode_gauge(value),
        (_, Value::Classes { buckets, sum }) => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};
    use std::fmt::Write as _;
    use std::fs;
    use std::io::Read as _;
    use std::path::Path;
    use std::time::Duration;

    use flate2::read::GzDecoder;

    use super::families::{Group, Values};
    use super::*;
    use crate::background::{Report, State};
    use crate::codec::http::Status as HttpStatus;
    use crate::ring::ledger::{Farewell, RingLimit, Truncation, Way};
    use crate::server::figures::{NodeLimit, Query};
    use crate::server::topic::Subject;
    use crate::tally::Tally as _;

    fn report(state: State) -> Report {
        Report {
            state,
            hints_taken: 1,
            hints_dropped: 2,
            fills_done: 3,
            fills_failed: 4,
            fills_damaged: 15,
            fills_refused: 5,
            filled_bytes: 6,
            stored_bytes: 16,
            evictions: 7,
            evicted_bytes: 8,
            scrubbed_paths: 9,
            scrubbed_files: 10,
            scrubbed_bytes: 11,
            scrubs: 17,
            scrub_ended_s: Some(18),
            scrub_progress_ppm: 250_000,
            quarantined_files: 12,
            damaged_paths: 13,
            used_bytes: 14,
            len_max: 19,
        }
    }

    /// A server that has everything, with so many workers.
    fn whole(workers: usize, status: Status) -> Sources {
        Sources {
            workers: (0..workers).map(|_| WorkerFigures::default()).collect(),
            planes: ["lookup", "walk", "text", "encode", "metrics", "upload"]
                .map(|name| Arc::new(PlaneFigures::new(name, 8)))
                .to_vec(),
            uploads: Some(Arc::default()),
            nar_cache: Some(Box::new(move || status.clone())),
            connections_max: 100,
            reloads: Arc::new(ReloadFigures::begin()),
            process: ProcessFiles::open(),
            ..Sources::default()
        }
    }

    fn families() -> impl Iterator<Item = (&'static Group, &'static Family)> {
        GROUPS.iter().flat_map(|group| group.families.iter().map(move |family| (group, family)))
    }

    fn working() -> Status {
        Status::Open(report(State::Working))
    }

    /// Every sample, and its value.
    fn samples(text: &str) -> HashMap<&str, &str> {
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' ')).collect()
    }

    #[track_caller]
    fn assert_samples(text: &str, expected: &[(&str, u64)]) {
        let samples = samples(text);
        for (sample, value) in expected {
            assert_eq!(samples.get(sample), Some(&&*value.to_string()), "{sample}");
        }
    }

    #[test]
    fn everything_is_there_from_the_first_scrape_on() {
        let text = Metrics::new(whole(2, working())).text(Format::Prometheus);
        for (group, family) in families() {
            let (name, help) = (family.full_name(group), family.help);
            assert!(text.contains(&format!("# HELP {name} {help}\n# TYPE {name} ")), "{name}");
        }
        assert_samples(
            &text,
            &[
                ("narwire_http_requests_total{route=\"nar\",status=\"200\"}", 0),
                ("narwire_http_requests_total{route=\"other\",status=\"404\"}", 0),
                ("narwire_http_transfer_seconds_count{route=\"nar\"}", 0),
                ("narwire_ring_turn_seconds_bucket{le=\"+Inf\",worker=\"1\"}", 0),
                ("narwire_workers", 2),
                ("narwire_connections_max", 100),
                ("narwire_plane_queue_length_max{plane=\"upload\"}", 8),
                ("narwire_config_last_reload_successful", 1),
                (concat!("narwire_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1),
            ],
        );
        for result in ["stored", "broken_off", "mismatch", "no_room", "overloaded"] {
            assert_samples(&text, &[(&format!("narwire_uploads_total{{result=\"{result}\"}}"), 0)]);
        }
    }

    #[test]
    fn what_is_compressed_is_the_text_of_the_same_moment() {
        let metrics = Metrics::new(whole(4, working()));
        let asked = Instant::now();
        let [plain, gzipped] =
            [false, true].map(|is_gzipped| metrics.text_since(asked, Format::OpenMetrics, is_gzipped));
        let mut decoded = String::new();
        GzDecoder::new(&gzipped[..]).read_to_string(&mut decoded).unwrap();
        assert_eq!(decoded.as_bytes(), plain);
        assert!(gzipped.len() < plain.len() / 8, "{} of {}", gzipped.len(), plain.len());
        let again = metrics.text_since(asked, Format::OpenMetrics, true);
        assert_eq!(again.as_ptr(), gzipped.as_ptr(), "it is compressed once");
    }

    #[test]
    fn those_who_wait_share_one_text_and_nobody_is_told_of_what_was_before() {
        let metrics = Metrics::new(whole(1, working()));
        let asked = Instant::now();
        let first = metrics.text_since(asked, Format::Prometheus, false);
        metrics.sources.workers[0].ring.accepted.add(1);
        assert_eq!(metrics.text_since(asked, Format::Prometheus, false).as_ptr(), first.as_ptr());
        let sample = |accepted| [("narwire_connections_accepted_total", accepted)];
        let read = |text: &Bytes| String::from_utf8(text.to_vec()).unwrap();
        assert_samples(&read(&first), &sample(0));
        assert_samples(&read(&metrics.text_since(asked, Format::OpenMetrics, false)), &sample(1));
        assert_samples(&read(&metrics.text_since(Instant::now(), Format::Prometheus, false)), &sample(1));
    }

    #[test]
    fn what_is_not_there_has_no_zeros() {
        let text = Metrics::default().text(Format::Prometheus);
        for absent in ["nar_cache", "scrub", "damaged", "quarantined", "uploads", "upload_bytes", "process"] {
            let mut samples = samples(&text).into_keys().collect::<Vec<_>>();
            samples.retain(|sample| sample.trim_start_matches("narwire_").starts_with(absent));
            assert!(samples.is_empty(), "{samples:?}");
        }
        assert_eq!(Metrics::default().nar_cache(), "off");
        let no_scrub = Status::Open(Report { scrub_ended_s: None, ..report(State::Working) });
        let text = Metrics::new(whole(1, no_scrub)).text(Format::Prometheus);
        assert!(!text.contains("scrub_last_pass") && text.contains("scrub_progress"));
    }

    #[test]
    fn what_workers_count_for_themselves_is_added_up() {
        let sources = whole(3, working());
        let times = [Duration::from_micros(50), Duration::from_millis(7)];
        let ok = HttpStatus::ALL.iter().position(|status| *status == HttpStatus::PartialContent).unwrap();
        for WorkerFigures { ring, node } in &sources.workers {
            let nar = &ring.topics[Subject::Nar as usize];
            nar.statuses[ok].add(2);
            nar.sent_bytes.add(1000);
            for time in times {
                nar.first_byte.observe(time);
            }
            ring.begun.add(5);
            ring.ended.add(3);
            ring.opened.add(10);
            ring.closed[Farewell::Idle as usize].add(4);
            ring.turned_away.add(2);
            ring.truncated[Truncation::Slow as usize].add(1);
            ring.sends[Way::SendFile as usize].count.add(6);
            ring.limits[RingLimit::SendBuffers as usize].add(7);
            ring.submissions.add(8);
            ring.completions.add(9);
            ring.batches[2].add(3);
            for time_s in [1, 2, 100] {
                ring.turns.observe(Duration::from_secs(time_s));
            }
            node.answer_hits.add(11);
            node.nar_misses.add(12);
            node.limits[NodeLimit::Encoders as usize].add(13);
        }
        sources.planes[1].refused.add(2);
        sources.shared.texts_refused.add(3);
        sources.shared.looks_refused.add(4);
        sources.shared.browsing_refused.add(5);
        sources.shared.queries[Query::Probe as usize].observe(Duration::from_secs(100));
        let text = Metrics::new(sources).text(Format::OpenMetrics);
        assert_samples(
            &text,
            &[
                ("narwire_http_requests_total{route=\"nar\",status=\"206\"}", 6),
                ("narwire_http_response_bytes_total{route=\"nar\"}", 3000),
                ("narwire_http_first_byte_seconds_bucket{le=\"0.0001\",route=\"nar\"}", 3),
                ("narwire_http_first_byte_seconds_bucket{le=\"0.005\",route=\"nar\"}", 3),
                ("narwire_http_first_byte_seconds_bucket{le=\"0.01\",route=\"nar\"}", 6),
                ("narwire_http_first_byte_seconds_bucket{le=\"+Inf\",route=\"nar\"}", 6),
                ("narwire_http_first_byte_seconds_count{route=\"nar\"}", 6),
                ("narwire_http_requests_in_flight", 6),
                ("narwire_connections", 18),
                ("narwire_connections_closed_total{reason=\"idle\"}", 12),
                ("narwire_connections_refused_total{reason=\"address_limit\"}", 6),
                ("narwire_http_truncated_responses_total{cause=\"slow\"}", 3),
                ("narwire_sends_total{path=\"sendfile\"}", 18),
                ("narwire_limits_hit_total{limit=\"send_buffers\"}", 21),
                ("narwire_limits_hit_total{limit=\"connections_per_address\"}", 6),
                ("narwire_limits_hit_total{limit=\"encoders\"}", 39),
                ("narwire_limits_hit_total{limit=\"plane_queue\"}", 2),
                ("narwire_limits_hit_total{limit=\"made_texts\"}", 3),
                ("narwire_limits_hit_total{limit=\"long_looks\"}", 4),
                ("narwire_limits_hit_total{limit=\"browsing\"}", 5),
                ("narwire_plane_refused_total{plane=\"walk\"}", 2),
                ("narwire_ring_submissions_total{worker=\"2\"}", 8),
                ("narwire_ring_turn_seconds_bucket{le=\"1.0\",worker=\"2\"}", 1),
                ("narwire_ring_turn_seconds_bucket{le=\"+Inf\",worker=\"2\"}", 3),
                ("narwire_ring_batch_completions_bucket{le=\"2.0\",worker=\"0\"}", 0),
                ("narwire_ring_batch_completions_bucket{le=\"4.0\",worker=\"0\"}", 3),
                ("narwire_ring_batch_completions_count{worker=\"0\"}", 3),
                ("narwire_answer_cache_hits_total", 33),
                ("narwire_nar_cache_requests_total{result=\"miss\"}", 36),
                ("narwire_database_query_seconds_bucket{le=\"60.0\",query=\"probe\"}", 0),
                ("narwire_database_query_seconds_bucket{le=\"+Inf\",query=\"probe\"}", 1),
            ],
        );
        let sum: f64 = samples(&text)["narwire_http_first_byte_seconds_sum{route=\"nar\"}"].parse().unwrap();
        assert!((sum - 0.02115).abs() < 1e-9, "{sum}");
        assert_eq!(samples(&text)["narwire_ring_batch_completions_sum{worker=\"0\"}"], "9.0");
    }

    #[test]
    fn the_nar_cache_is_told_of_as_it_is() {
        let text = Metrics::new(whole(1, working())).text(Format::Prometheus);
        assert_samples(
            &text,
            &[
                ("narwire_nar_cache_up", 1),
                ("narwire_nar_cache_hints_total", 1),
                ("narwire_nar_cache_hints_dropped_total", 2),
                ("narwire_nar_cache_fills_total{result=\"stored\"}", 3),
                ("narwire_nar_cache_fills_total{result=\"failed\"}", 4),
                ("narwire_nar_cache_fills_total{result=\"refused\"}", 5),
                ("narwire_nar_cache_fills_total{result=\"damaged\"}", 15),
                ("narwire_nar_cache_filled_bytes_total", 6),
                ("narwire_nar_cache_stored_bytes_total", 16),
                ("narwire_nar_cache_evictions_total", 7),
                ("narwire_nar_cache_evicted_bytes_total", 8),
                ("narwire_nar_cache_bytes", 14),
                ("narwire_nar_cache_size_max_bytes", 19),
                ("narwire_scrub_paths_total", 9),
                ("narwire_scrub_files_total", 10),
                ("narwire_scrub_bytes_total", 11),
                ("narwire_scrub_passes_total", 17),
                ("narwire_scrub_last_pass_timestamp_seconds", 18),
                ("narwire_quarantined_files_total", 12),
                ("narwire_damaged_paths", 13),
            ],
        );
        assert_eq!(samples(&text)["narwire_scrub_progress_ratio"], "0.25");
        let closed = Status::Closed("another narwire uses it".to_owned());
        let failing = Status::Open(report(State::Failing("the disk is full".to_owned())));
        for (status, words) in
            [(closed, "off: another narwire uses it"), (failing, "failing: the disk is full")]
        {
            let metrics = Metrics::new(whole(1, status));
            assert_samples(&metrics.text(Format::Prometheus), &[("narwire_nar_cache_up", 0)]);
            assert_eq!(metrics.nar_cache(), words);
        }
    }

    #[test]
    fn both_formats_say_the_same() {
        // Nothing that changes from one moment to the next.
        let metrics = Metrics::new(Sources { process: None, ..whole(2, working()) });
        let (text, openmetrics) = (metrics.text(Format::Prometheus), metrics.text(Format::OpenMetrics));
        assert_eq!(samples(&text), samples(&openmetrics));
        assert!(openmetrics.ends_with("\n# EOF\n") && !text.contains("# EOF"));
        for (accept, format) in [
            (None, Format::Prometheus),
            (Some("*/*"), Format::Prometheus),
            (Some("text/plain;version=0.0.4;q=0.5,*/*;q=0.1"), Format::Prometheus),
            (Some("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2"), Format::OpenMetrics),
            (Some("application/openmetrics-text;q=0"), Format::Prometheus),
            (Some("application/openmetrics-text;q=0.25,text/plain;q=0.3"), Format::Prometheus),
            (Some("text/plain, application/openmetrics-text"), Format::OpenMetrics),
        ] {
            assert_eq!(Format::accepted(accept.map(str::as_bytes)), format, "{accept:?}");
        }
    }

    #[test]
    fn a_scrape_is_short_with_many_workers() {
        let sources = whole(64, working());
        for WorkerFigures { ring, .. } in &sources.workers {
            // Years of work, with answers that are seldom given.
            ring.submissions.add(1 << 40);
            ring.completions.add(1 << 40);
            for _ in 0..1000 {
                ring.turns.observe(Duration::from_micros(7));
            }
            for topic in &ring.topics {
                topic.sent_bytes.add(1 << 50);
                for status in topic.statuses.iter().step_by(3) {
                    status.add(1 << 30);
                }
            }
        }
        let text = Metrics::new(sources).text(Format::Prometheus);
        assert!(text.len() < 200_000, "{}", text.len());
    }

    #[test]
    fn help_is_one_sentence_that_needs_no_escapes_and_names_are_told_once() {
        let mut names = BTreeSet::new();
        for (group, family) in families() {
            let (name, help) = (family.full_name(group), family.help);
            assert!(help.ends_with('.') && !help.contains(['\\', '\n', '"', '|']), "{name}: {help}");
            assert!(names.insert(name.clone()), "{name} is there twice");
            let labels: BTreeSet<_> = family.labels.iter().map(|label| label.name).collect();
            assert_eq!(labels.len(), family.labels.len(), "{name}");
        }
    }

    /// What `docs/metrics.md` has to say.
    fn documentation() -> String {
        let mut text = String::from(include_str!("metrics/introduction.md"));
        for group in GROUPS {
            let _ = write!(text, "\n## {}\n\n{}\n", group.title, wrapped(group.watch));
            text.push_str("| name | type | labels | meaning |\n|---|---|---|---|\n");
            for family in group.families {
                let kind = family.kind.of_openmetrics();
                let kind = if family.kind == Kind::Info { "gauge" } else { kind.as_str() };
                let (name, labels) = (family.full_name(group), labels(family));
                let _ = writeln!(text, "| `{name}` | {kind} | {labels} | {} |", family.help);
            }
        }
        text
    }

    fn labels(family: &Family) -> String {
        let label = |label: &families::Label| match label.values {
            Values::Described(values) => format!("`{}`: {values}", label.name),
            Values::Listed(values) => format!("`{}`: `{}`", label.name, values().join("`, `")),
        };
        family.labels.iter().map(label).collect::<Vec<_>>().join("; ")
    }

    /// As lines that are not too long.
    fn wrapped(words: &str) -> String {
        let (mut text, mut len) = (String::new(), 0);
        for word in words.split_whitespace() {
            let separator = if len == 0 {
                ""
            } else if len + word.len() < 130 {
                " "
            } else {
                "\n"
            };
            len = if separator == " " { len + 1 + word.len() } else { word.len() };
            text.extend([separator, word]);
        }
        text + "\n"
    }

    /// `NARWIRE_ACCEPT=1 cargo test --lib metrics_are_documented` writes the file anew.
    #[test]
    fn metrics_are_documented() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
        let documentation = documentation();
        if std::env::var_os("NARWIRE_ACCEPT").is_some() {
            fs::write(&file, &documentation).unwrap();
        }
        let found = fs::read_to_string(&file).unwrap_or_default();
        let differing = found.lines().zip(documentation.lines()).find(|(found, wanted)| found != wanted);
        assert!(
            found == documentation,
            "docs/metrics.md is not what the code says (NARWIRE_ACCEPT=1 cargo test --lib metrics_are_documented \
             writes it anew); the first difference: {differing:#?}"
        );
    }

    #[test]
    fn every_label_has_a_value_that_is_documented() {
        let sources = whole(2, working());
        let now = Now::of(&sources, false);
        for (_, family) in families() {
            let mut samples = Samples::default();
            (family.read)(&now, &mut samples);
            for (index, label) in family.labels.iter().enumerate() {
                let Values::Listed(values) = label.values else { continue };
                let found: BTreeSet<_> = samples.0.iter().map(|(values, _)| values[index].as_str()).collect();
                let listed: BTreeSet<_> = values().into_iter().collect();
                // Routes whose answers are never streamed, or that are no requests, come when they are needed.
                let may_lack = label.name == "route" && family.kind == Kind::Histogram;
                assert!(
                    found.is_subset(&listed) && (may_lack || found == listed),
                    "{}: {found:?}",
                    family.name
                );
            }
        }
    }
}
