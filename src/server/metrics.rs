//! What `/metrics` says, in the text format of OpenMetrics, which Prometheus reads as its own; and how the NAR cache is, in words.
//!
//! Nothing is counted here: whoever counts is asked when somebody looks.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::nar_cache::{NarCache, Status};
use super::uploads::UploadCounts;
use crate::background::State;

/// The media type of [`Metrics::text`].
pub const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every metric of this process. All workers share it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    nar_cache: Arc<NarCacheMetrics>,
}

impl Metrics {
    /// Metrics of a process with this NAR cache, which takes uploads.
    pub fn new(nar_cache: Option<Arc<NarCache>>, uploads: Option<Arc<UploadCounts>>) -> Self {
        let mut metrics = Self::of(move || nar_cache.as_ref().map(|cache| cache.status()));
        if let Some(counts) = uploads {
            metrics.registry.register_collector(Box::new(UploadMetrics(counts)));
        }
        metrics
    }

    /// `nar_cache` is asked at each scrape.
    fn of(nar_cache: impl Fn() -> Option<Status> + Send + Sync + 'static) -> Self {
        let nar_cache = Arc::new(NarCacheMetrics(Box::new(nar_cache)));
        let mut registry = Registry::with_prefix("narwire");
        registry.register(
            "build",
            "What this program is",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register_collector(Box::new(Arc::clone(&nar_cache)));
        Self { registry, nar_cache }
    }

    /// What `/metrics` says now.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// How the NAR cache is now, in words.
    pub fn nar_cache(&self) -> String {
        (self.nar_cache.0)().map_or_else(|| "off".to_owned(), |status| status.to_string())
    }
}

/// Asks for the figures at each scrape, so that all in one answer are of one moment.
struct NarCacheMetrics(Box<dyn Fn() -> Option<Status> + Send + Sync>);

impl fmt::Debug for NarCacheMetrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("NarCacheMetrics").field(&(self.0)()).finish()
    }
}

impl Collector for NarCacheMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let report = match (self.0)() {
            // Zeros of what does not exist would only raise alarms.
            None => return Ok(()),
            Some(Status::Closed(_)) => return gauge(&mut encoder, UP, UP_HELP, 0),
            Some(Status::Open(report)) => report,
        };
        gauge(&mut encoder, UP, UP_HELP, u64::from(report.state == State::Working))?;
        let help = "NARs that were encoded for the cache, by what came of it";
        let mut fills = encoder.encode_descriptor("nar_cache_fills", help, None, MetricType::Counter)?;
        for (result, count) in [
            ("stored", report.fills_done),
            ("damaged", report.fills_damaged),
            ("failed", report.fills_failed),
            ("refused", report.fills_refused),
        ] {
            ConstCounter::new(count).encode(fills.encode_family(&[("result", result)])?)?;
        }
        gauge(&mut encoder, "nar_cache_bytes", "What all files of the NAR cache take", report.used_bytes)?;
        for (name, help, count) in [
            ("nar_cache_filled_bytes", "Length of the NARs that were encoded", report.filled_bytes),
            ("nar_cache_evictions", "Files removed from the NAR cache", report.evictions),
            ("nar_cache_evicted_bytes", "Length of these files", report.evicted_bytes),
            (
                "nar_cache_hints",
                "Requests of NARs that were not there, of which the NAR cache took note",
                report.hints_taken,
            ),
            (
                "nar_cache_hints_dropped",
                "Such requests of which it could not take note, because too many came at once",
                report.hints_dropped,
            ),
            ("scrub_bytes", "Bytes read to look for damage", report.scrubbed_bytes),
            ("scrub_paths", "Store paths that were compared with the database", report.scrubbed_paths),
            (
                "scrub_files",
                "Files of the NAR cache that were compared with its catalog",
                report.scrubbed_files,
            ),
            (
                "quarantined_files",
                "Damaged files of the NAR cache that were moved away",
                report.quarantined_files,
            ),
        ] {
            let counter = ConstCounter::new(count);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let help = "Store paths that are known to be damaged, and are not served";
        gauge(&mut encoder, "damaged_paths", help, report.damaged_paths)
    }
}

/// Reads the counts at each scrape.
#[derive(Debug)]
struct UploadMetrics(Arc<UploadCounts>);

impl Collector for UploadMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Uploads, by what came of them";
        let mut uploads = encoder.encode_descriptor("uploads", help, None, MetricType::Counter)?;
        for (result, count) in self.0.results() {
            ConstCounter::new(count).encode(uploads.encode_family(&[("result", result)])?)?;
        }
        let help = "Bytes received of the bodies of uploads";
        let received = ConstCounter::new(self.0.received_bytes());
        received.encode(encoder.encode_descriptor("upload_bytes", help, None, MetricType::Counter)?)?;
        gauge(&mut encoder, "uploads_waiting", "Uploads that wait for others to end", self.0.waiting())?;
        gauge(&mut encoder, "uploads_under_way", "Uploads that have begun and not ended", self.0.under_way())
    }
}

const UP: &str = "nar_cache_up";
const UP_HELP: &str = "Whether the NAR cache does what it is to do";

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::background::Report;

    fn lines(status: Option<Status>) -> Vec<String> {
        Metrics::of(move || status.clone()).text().lines().map(str::to_owned).collect()
    }

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
            evictions: 7,
            evicted_bytes: 8,
            scrubbed_paths: 9,
            scrubbed_files: 10,
            scrubbed_bytes: 11,
            quarantined_files: 12,
            damaged_paths: 13,
            used_bytes: 14,
        }
    }

    #[test]
    fn without_a_nar_cache_the_program_is_all_there_is_to_say() {
        let expected = [
            "# HELP narwire_build What this program is.",
            "# TYPE narwire_build info",
            concat!("narwire_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "# EOF",
        ];
        assert_eq!(lines(None), expected);
        assert_eq!(Metrics::new(None, None).nar_cache(), "off");
    }

    #[test]
    fn uploads_are_counted_by_what_came_of_them_from_the_first_scrape_on() {
        let text = Metrics::new(None, Some(Arc::default())).text();
        for result in ["stored", "broken_off", "mismatch", "no_room", "overloaded"] {
            let sample = format!("narwire_uploads_total{{result=\"{result}\"}} 0");
            assert!(text.lines().any(|line| line == sample), "{sample} is not in {text}");
        }
        for sample in
            ["narwire_upload_bytes_total 0", "narwire_uploads_waiting 0", "narwire_uploads_under_way 0"]
        {
            assert!(text.lines().any(|line| line == sample), "{sample} is not in {text}");
        }
    }

    #[test]
    fn every_figure_has_a_name_with_its_unit_and_one_line_of_help() {
        let lines = lines(Some(Status::Open(report(State::Working))));
        for sample in [
            "narwire_nar_cache_up 1",
            "narwire_nar_cache_hints_total 1",
            "narwire_nar_cache_hints_dropped_total 2",
            "narwire_nar_cache_fills_total{result=\"stored\"} 3",
            "narwire_nar_cache_fills_total{result=\"failed\"} 4",
            "narwire_nar_cache_fills_total{result=\"refused\"} 5",
            "narwire_nar_cache_fills_total{result=\"damaged\"} 15",
            "narwire_nar_cache_filled_bytes_total 6",
            "narwire_nar_cache_evictions_total 7",
            "narwire_nar_cache_evicted_bytes_total 8",
            "narwire_scrub_paths_total 9",
            "narwire_scrub_files_total 10",
            "narwire_scrub_bytes_total 11",
            "narwire_quarantined_files_total 12",
            "narwire_damaged_paths 13",
            "narwire_nar_cache_bytes 14",
        ] {
            assert!(lines.iter().any(|line| line == sample), "{sample} is not in {lines:#?}");
            let name = sample.split(['{', ' ']).next().unwrap().trim_end_matches("_total");
            let help = format!("# HELP {name} ");
            assert_eq!(lines.iter().filter(|line| line.starts_with(&help)).count(), 1, "{name}");
        }
    }

    #[test]
    fn a_cache_that_is_in_trouble_is_down_and_says_why() {
        let closed = Status::Closed("another narwire uses it".to_owned());
        let failing = Status::Open(report(State::Failing("the disk is full".to_owned())));
        for (status, words) in
            [(closed, "off: another narwire uses it"), (failing, "failing: the disk is full")]
        {
            assert!(lines(Some(status.clone())).contains(&"narwire_nar_cache_up 0".to_owned()));
            assert_eq!(Metrics::of(move || Some(status.clone())).nar_cache(), words);
        }
    }
}
