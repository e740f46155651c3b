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

/// The media type of [`Metrics::text`].
pub const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every metric of this process. All workers share it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    nar_cache: Arc<NarCacheMetrics>,
}

/// How the NAR cache is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NarCacheState {
    /// There is none.
    #[default]
    Off,
    /// It does what it is to do.
    Working,
    /// It does not, for this reason. What it has may still be served, and everything else is.
    Failing(String),
}

/// The NAR cache in numbers. Counts begin with the process; without a cache all are 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NarCacheFigures {
    /// How it is.
    pub state: NarCacheState,
    /// NARs that were encoded and are kept.
    pub fills_stored: u64,
    /// NARs that were encoded and found to be others than the database says.
    pub fills_damaged: u64,
    /// NARs that could not be read or written.
    pub fills_failed: u64,
    /// What all files take now. Bytes.
    pub len_bytes: u64,
    /// Files that were removed to make room.
    pub evictions: u64,
    /// Requests that could not be taken note of, because too many came at once.
    pub hints_dropped: u64,
    /// What was read to look for damage. Bytes.
    pub scrubbed_len_bytes: u64,
    /// Store paths that are known to be damaged now.
    pub damaged_paths: u64,
    /// Damaged files of the cache that were moved away.
    pub quarantined_files: u64,
}

impl Metrics {
    /// Metrics of a process whose NAR cache is what `nar_cache` says; it is asked on a worker, and must not wait.
    pub fn new(nar_cache: impl Fn() -> NarCacheFigures + Send + Sync + 'static) -> Self {
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

    /// How the NAR cache is now.
    pub fn nar_cache(&self) -> NarCacheState {
        (self.nar_cache.0)().state
    }
}

impl fmt::Display for NarCacheState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => formatter.write_str("off"),
            Self::Working => formatter.write_str("working"),
            Self::Failing(reason) => write!(formatter, "failing: {reason}"),
        }
    }
}

/// Asks for the figures at each scrape, so that all in one answer are of one moment.
struct NarCacheMetrics(Box<dyn Fn() -> NarCacheFigures + Send + Sync>);

impl fmt::Debug for NarCacheMetrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("NarCacheMetrics").field(&(self.0)()).finish()
    }
}

impl Collector for NarCacheMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let figures = (self.0)();
        let is_up = match figures.state {
            // Zeros of what does not exist would only raise alarms.
            NarCacheState::Off => return Ok(()),
            NarCacheState::Working => 1,
            NarCacheState::Failing(_) => 0,
        };
        gauge(&mut encoder, "nar_cache_up", "Whether the NAR cache does what it is to do", is_up)?;
        let help = "NARs that were encoded for the cache, by what came of it";
        let mut fills = encoder.encode_descriptor("nar_cache_fills", help, None, MetricType::Counter)?;
        for (result, count) in [
            ("stored", figures.fills_stored),
            ("damaged", figures.fills_damaged),
            ("failed", figures.fills_failed),
        ] {
            ConstCounter::new(count).encode(fills.encode_family(&[("result", result)])?)?;
        }
        gauge(&mut encoder, "nar_cache_bytes", "What all files of the NAR cache take", figures.len_bytes)?;
        for (name, help, count) in [
            ("nar_cache_evictions", "Files removed from the NAR cache to make room", figures.evictions),
            (
                "nar_cache_hints_dropped",
                "Requests that the NAR cache could not take note of",
                figures.hints_dropped,
            ),
            (
                "scrub_bytes",
                "Bytes read from store and NAR cache to look for damage",
                figures.scrubbed_len_bytes,
            ),
            (
                "quarantined_files",
                "Damaged files of the NAR cache that were moved away",
                figures.quarantined_files,
            ),
        ] {
            let counter = ConstCounter::new(count);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let help = "Store paths that are known to be damaged, and are not served";
        gauge(&mut encoder, "damaged_paths", help, figures.damaged_paths)
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(figures: NarCacheFigures) -> Vec<String> {
        let text = Metrics::new(move || figures.clone()).text();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn without_a_nar_cache_the_program_is_all_there_is_to_say() {
        let expected = [
            "# HELP narwire_build What this program is.",
            "# TYPE narwire_build info",
            concat!("narwire_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "# EOF",
        ];
        assert_eq!(lines(NarCacheFigures::default()), expected);
    }

    #[test]
    fn every_figure_has_a_name_with_its_unit_and_one_line_of_help() {
        let figures = NarCacheFigures {
            state: NarCacheState::Working,
            fills_stored: 1,
            fills_damaged: 2,
            fills_failed: 3,
            len_bytes: 4,
            evictions: 5,
            hints_dropped: 6,
            scrubbed_len_bytes: 7,
            damaged_paths: 8,
            quarantined_files: 9,
        };
        let lines = lines(figures);
        for sample in [
            "narwire_nar_cache_up 1",
            "narwire_nar_cache_fills_total{result=\"stored\"} 1",
            "narwire_nar_cache_fills_total{result=\"damaged\"} 2",
            "narwire_nar_cache_fills_total{result=\"failed\"} 3",
            "narwire_nar_cache_bytes 4",
            "narwire_nar_cache_evictions_total 5",
            "narwire_nar_cache_hints_dropped_total 6",
            "narwire_scrub_bytes_total 7",
            "narwire_damaged_paths 8",
            "narwire_quarantined_files_total 9",
        ] {
            assert!(lines.iter().any(|line| line == sample), "{sample} is not in {lines:#?}");
            let name = sample.split(['{', ' ']).next().unwrap().trim_end_matches("_total");
            let help = format!("# HELP {name} ");
            assert_eq!(lines.iter().filter(|line| line.starts_with(&help)).count(), 1, "{name}");
        }
    }

    #[test]
    fn a_cache_that_fails_is_down_and_says_why() {
        let state = NarCacheState::Failing("the disk is full".to_owned());
        let figures = NarCacheFigures { state, ..NarCacheFigures::default() };
        assert!(lines(figures.clone()).contains(&"narwire_nar_cache_up 0".to_owned()));
        let metrics = Metrics::new(move || figures.clone());
        assert_eq!(metrics.nar_cache().to_string(), "failing: the disk is full");
    }
}
