//! From what nodes say at `/metrics` to the figures that are shown. Pure.
//!
//! Counters mean something as a difference of two scrapes, so [`Figures`] are made of two. Those of several nodes are laid beside each
//! other; sums and quantiles are made when they are asked for, so that a quantile of all nodes is one of all their answers.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::codec::exposition::{self, ExpositionError, Line};
use crate::codec::plain::is_plain;

/// What one node has said at one moment: the values of all series, by metric.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scrape(HashMap<String, HashMap<Labels, f64>>);

/// The labels of a series, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Labels(Vec<(String, String)>);

/// What one node, or several, do.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    points: HashMap<String, Vec<Point>>,
}

/// One series at the end of an interval.
#[derive(Debug, Clone)]
struct Point {
    /// Which of several nodes it is of.
    node: usize,
    labels: Labels,
    value: f64,
    /// How much it grew each second, which is of use for counters; `None` after the first scrape.
    rate: Option<f64>,
}

/// One figure of all.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Scripts know it; it holds what the figure is measured in.
    pub name: &'static str,
    /// The label whose value this figure is of, and that value.
    pub label: Option<(&'static str, String)>,
    /// Finite.
    pub value: Option<f64>,
}

/// A figure by its name, which holds what it is measured in.
type Figure = (&'static str, fn(&Figures) -> Option<f64>);

/// Everything that is one number, in the order in which it is printed. Scripts know the names.
const FIGURES: [Figure; 31] = [
    ("throughput_bytes_per_second", Figures::throughput),
    ("requests_per_second", Figures::requests),
    ("errors_per_second", Figures::errors),
    ("requests_in_flight", Figures::in_flight),
    ("first_byte_p50_seconds", |figures| figures.first_byte(0.5)),
    ("first_byte_p99_seconds", |figures| figures.first_byte(0.99)),
    ("nar_cache_hit_ratio", Figures::nar_cache_hit_ratio),
    ("answer_cache_hit_ratio", Figures::answer_cache_hit_ratio),
    ("layout_cache_hit_ratio", Figures::layout_cache_hit_ratio),
    ("connections", |figures| figures.value("narwire_connections")),
    ("connections_max", |figures| figures.value("narwire_connections_max")),
    ("connections_accepted_per_second", |figures| figures.rate("narwire_connections_accepted_total")),
    ("workers", |figures| figures.value("narwire_workers")),
    ("loop_lag_p99_seconds", Figures::loop_lag),
    ("cold_reads_per_second", |figures| figures.rate("narwire_cold_reads_total")),
    ("truncated_responses", |figures| figures.value("narwire_http_truncated_responses_total")),
    ("uploads_per_second", |figures| figures.rate("narwire_uploads_total")),
    ("upload_bytes_per_second", |figures| figures.rate("narwire_upload_bytes_total")),
    ("uploads_under_way", |figures| figures.value("narwire_uploads_under_way")),
    ("uploads_waiting", |figures| figures.value("narwire_uploads_waiting")),
    ("damaged_paths", |figures| figures.value("narwire_damaged_paths")),
    ("quarantined_files", |figures| figures.value("narwire_quarantined_files_total")),
    ("database_stale", |figures| figures.value("narwire_database_stale")),
    ("database_errors", |figures| figures.value("narwire_database_errors_total")),
    ("nar_cache_up", |figures| figures.least("narwire_nar_cache_up")),
    ("nar_cache_bytes", |figures| figures.value("narwire_nar_cache_bytes")),
    ("nar_cache_size_max_bytes", |figures| figures.value("narwire_nar_cache_size_max_bytes")),
    ("scrub_progress_ratio", |figures| figures.least("narwire_scrub_progress_ratio")),
    ("resident_memory_bytes", |figures| figures.value("process_resident_memory_bytes")),
    ("cpu_cores", |figures| figures.rate("process_cpu_seconds_total")),
    ("open_fds", |figures| figures.value("process_open_fds")),
];

/// What is one number for each value of a label, likewise.
const FIGURES_BY_LABEL: [(&str, &str, ByLabel); 8] = [
    ("requests_per_second", "route", |figures| figures.rates_by("narwire_http_requests_total", "route")),
    ("requests_per_second", "status", Figures::requests_by_status),
    ("first_byte_p99_seconds", "route", |figures| {
        figures.quantiles_by("narwire_http_first_byte_seconds", "route", 0.99)
    }),
    ("loop_lag_p99_seconds", "worker", |figures| figures.loop_lag_by_worker(0.99)),
    ("queue_length", "plane", |figures| figures.values_by("narwire_plane_queue_length", "plane")),
    ("truncated_responses", "cause", |figures| {
        figures.values_by("narwire_http_truncated_responses_total", "cause")
    }),
    ("uploads", "result", |figures| figures.values_by("narwire_uploads_total", "result")),
    ("limits_hit", "limit", |figures| figures.values_by("narwire_limits_hit_total", "limit")),
];

type ByLabel = fn(&Figures) -> BTreeMap<String, f64>;

impl Scrape {
    /// Understands what a node has said. What is no number is left out: there is nothing to reckon with.
    pub fn read(text: &str) -> Result<Self, ExpositionError> {
        let mut metrics: HashMap<String, HashMap<Labels, f64>> = HashMap::new();
        for line in exposition::lines(text) {
            let Line::Sample(sample) = line? else { continue };
            if !sample.value.is_finite() {
                continue;
            }
            let mut labels: Vec<(String, String)> =
                sample.labels.iter().map(|(name, value)| ((*name).to_owned(), printable(value))).collect();
            labels.sort_unstable();
            metrics.entry(sample.name.to_owned()).or_default().insert(Labels(labels), sample.value);
        }
        Ok(Self(metrics))
    }

    /// Whether it is a narwire that has said this.
    pub fn is_of_narwire(&self) -> bool {
        self.0.contains_key("narwire_build_info")
    }
}

impl Figures {
    /// What a node has done in the `seconds` between two scrapes. Without an earlier one, what it is like now.
    ///
    /// A counter that is lower than before was begun anew, and has counted from 0 since; so has one that was not there before.
    pub fn between(before: Option<(&Scrape, f64)>, after: &Scrape) -> Self {
        let point = |name: &str, labels: &Labels, value: f64| {
            let rate = before.filter(|(_, seconds)| *seconds > 0.0).map(|(before, seconds)| {
                let earlier = before.0.get(name).and_then(|series| series.get(labels)).copied();
                let earlier = earlier.filter(|earlier| *earlier <= value).unwrap_or_default();
                (value - earlier) / seconds
            });
            Point { node: 0, labels: labels.clone(), value, rate }
        };
        let points = after.0.iter().map(|(name, series)| {
            (name.clone(), series.iter().map(|(labels, value)| point(name, labels, *value)).collect())
        });
        Self { points: points.collect() }
    }

    /// What several nodes do together.
    pub fn total<'a>(nodes: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut total = Self::default();
        for (node, figures) in nodes.into_iter().enumerate() {
            for (name, points) in &figures.points {
                let points = points.iter().cloned().map(|point| Point { node, ..point });
                total.points.entry(name.clone()).or_default().extend(points);
            }
        }
        total
    }

    /// All figures, those by label behind the others; without a value is what the node has not said. What a worker does is left out
    /// unless `with_workers`: those of several nodes have the same names.
    pub fn rows(&self, with_workers: bool) -> Vec<Row> {
        let row = |(name, figure): &Figure| Row { name, label: None, value: figure(self) };
        let mut rows: Vec<_> = FIGURES.iter().map(row).collect();
        for (name, label, by_label) in FIGURES_BY_LABEL {
            if label == "worker" && !with_workers {
                continue;
            }
            let row = |(of, value)| Row { name, label: Some((label, of)), value: Some(value) };
            rows.extend(by_label(self).into_iter().map(row));
        }
        rows
    }

    /// Bytes sent each second.
    pub fn throughput(&self) -> Option<f64> {
        self.sum("narwire_http_response_bytes_total", Labels::are_of_others, |point| point.rate)
    }

    /// Requests answered each second.
    pub fn requests(&self) -> Option<f64> {
        self.sum("narwire_http_requests_total", Labels::are_of_others, |point| point.rate)
    }

    /// Those of them whose answer is that something is wrong here. 501 and 505 are for requests that nobody could answer.
    pub fn errors(&self) -> Option<f64> {
        let is_error = |labels: &Labels| {
            let is_of_server = |status: &str| status.starts_with('5') && !["501", "505"].contains(&status);
            labels.of("status").is_some_and(is_of_server)
        };
        self.points.contains_key("narwire_http_requests_total").then_some(())?;
        // There may be no series of an error before the first one.
        self.requests()?;
        Some(self.sum("narwire_http_requests_total", is_error, |point| point.rate).unwrap_or_default())
    }

    /// The same for each status.
    pub fn requests_by_status(&self) -> BTreeMap<String, f64> {
        let rate = |point: &Point| point.rate.filter(|_| point.labels.are_of_others());
        self.sums_by("narwire_http_requests_total", "status", rate)
    }

    /// Requests without a whole answer. The one that asks each node for this is none of them.
    pub fn in_flight(&self) -> Option<f64> {
        let others = |point: &Point| Some((point.value - 1.0).max(0.0));
        self.sum("narwire_http_requests_in_flight", |_| true, others)
    }

    /// How long clients wait for the first byte. Uploads are left out: their time is the client's own.
    pub fn first_byte(&self, quantile: f64) -> Option<f64> {
        let is_download = |labels: &Labels| labels.of("route") != Some("upload") && labels.are_of_others();
        self.quantile("narwire_http_first_byte_seconds", is_download, quantile)
    }

    /// The part of the NARs of a live store that came out of the NAR cache.
    pub fn nar_cache_hit_ratio(&self) -> Option<f64> {
        let results = self.rates_by("narwire_nar_cache_requests_total", "result");
        ratio(results.get("hit").copied()?, results.get("miss").copied()?)
    }

    /// The part of the questions about paths that were answered from memory.
    pub fn answer_cache_hit_ratio(&self) -> Option<f64> {
        ratio(self.rate("narwire_answer_cache_hits_total")?, self.rate("narwire_answer_cache_misses_total")?)
    }

    /// The part of the NARs that needed no walk.
    pub fn layout_cache_hit_ratio(&self) -> Option<f64> {
        ratio(self.rate("narwire_layout_cache_hits_total")?, self.rate("narwire_layout_cache_misses_total")?)
    }

    /// The 99th percentile of the time that a worker takes for one turn, of the worker where it is longest.
    pub fn loop_lag(&self) -> Option<f64> {
        let workers = self.histograms(
            "narwire_ring_turn_seconds",
            |_| true,
            |point| (point.node, point.labels.of("worker").unwrap_or_default().to_owned()),
        );
        workers.values().filter_map(|histogram| histogram.quantile(0.99)).reduce(f64::max)
    }

    /// The same of each worker of one node.
    pub fn loop_lag_by_worker(&self, quantile: f64) -> BTreeMap<String, f64> {
        self.quantiles_by("narwire_ring_turn_seconds", "worker", quantile)
    }

    /// Which version it is, if all are the same.
    pub fn version(&self) -> Option<&str> {
        let mut versions =
            self.points.get("narwire_build_info")?.iter().map(|point| point.labels.of("version"));
        let first = versions.next()??;
        versions.all(|version| version == Some(first)).then_some(first)
    }

    /// The sum of all series of a gauge, or of a counter since its node has started.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.sum(name, |_| true, |point| Some(point.value))
    }

    /// The sum of the rates of all series of a counter.
    pub fn rate(&self, name: &str) -> Option<f64> {
        self.sum(name, |_| true, |point| point.rate)
    }

    /// Such sums for each value of a label.
    pub fn values_by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        self.sums_by(name, label, |point| Some(point.value))
    }

    /// Such sums for each value of a label.
    pub fn rates_by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        self.sums_by(name, label, |point| point.rate)
    }

    /// A quantile of a histogram for each value of a label; those without an observation in the interval are left out.
    pub fn quantiles_by(&self, name: &str, label: &str, quantile: f64) -> BTreeMap<String, f64> {
        let histograms = self.histograms(name, |_| true, |point| point.labels.of(label).map(str::to_owned));
        let quantiles = histograms
            .into_iter()
            .filter_map(|(value, histogram)| Some((value?, histogram.quantile(quantile)?)));
        quantiles.collect()
    }

    /// The lowest of all series of a gauge, which is that of the worst node where 1 is well.
    pub fn least(&self, name: &str) -> Option<f64> {
        self.points.get(name)?.iter().map(|point| point.value).reduce(f64::min)
    }

    fn quantile(&self, name: &str, is_wanted: impl Fn(&Labels) -> bool, quantile: f64) -> Option<f64> {
        self.histograms(name, is_wanted, |_| ()).remove(&())?.quantile(quantile)
    }

    /// What the histogram `name` counted in the interval, those series together that have the same `key`.
    fn histograms<Key: Ord>(
        &self,
        name: &str,
        is_wanted: impl Fn(&Labels) -> bool,
        key: impl Fn(&Point) -> Key,
    ) -> BTreeMap<Key, Histogram> {
        let mut histograms: BTreeMap<Key, Histogram> = BTreeMap::new();
        for point in self.points.get(&format!("{name}_bucket")).into_iter().flatten() {
            let bound = point.labels.of("le").and_then(|bound| bound.parse().ok());
            let (Some(bound), Some(rate)) = (bound, point.rate) else { continue };
            if is_wanted(&point.labels) {
                histograms.entry(key(point)).or_default().add(bound, rate);
            }
        }
        histograms
    }

    fn sums_by(&self, name: &str, label: &str, of: impl Fn(&Point) -> Option<f64>) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for point in self.points.get(name).into_iter().flatten() {
            if let (Some(label), Some(summand)) = (point.labels.of(label), of(point)) {
                *sums.entry(label.to_owned()).or_default() += summand;
            }
        }
        sums
    }

    /// `None` when there is nothing to add.
    fn sum(
        &self,
        name: &str,
        is_wanted: impl Fn(&Labels) -> bool,
        of: impl Fn(&Point) -> Option<f64>,
    ) -> Option<f64> {
        let wanted = self.points.get(name)?.iter().filter(|point| is_wanted(&point.labels));
        wanted.filter_map(of).reduce(|one, other| one + other)
    }
}

impl fmt::Display for Row {
    /// Without the value, in one word.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)?;
        self.label.as_ref().map_or(Ok(()), |(label, of)| write!(formatter, "{{{label}=\"{of}\"}}"))
    }
}

impl Labels {
    /// Whether they are of no request for metrics: who looks at figures does not want to see that.
    fn are_of_others(&self) -> bool {
        self.of("route") != Some("metrics")
    }

    fn of(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// How many observations were at most as large as each bound, in any unit, as all that matters are proportions.
#[derive(Debug, Clone, Default)]
struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    fn add(&mut self, bound: f64, count: f64) {
        match self.0.iter_mut().find(|(known, _)| known.total_cmp(&bound).is_eq()) {
            Some((_, known)) => *known += count,
            None => self.0.push((bound, count)),
        }
    }

    /// As `histogram_quantile` of Prometheus: linear within a bucket, and the last bound for what is above it. `None` without an
    /// observation, and for what is no histogram.
    fn quantile(&self, quantile: f64) -> Option<f64> {
        let mut buckets = self.0.clone();
        buckets.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let last = buckets.len().checked_sub(1).filter(|last| *last > 0)?;
        let mut highest = 0.0;
        for (_, count) in &mut buckets {
            // The series were not read at one moment, or one was begun anew.
            *count = f64::max(*count, highest);
            highest = *count;
        }
        let (bound, total) = buckets[last];
        if bound != f64::INFINITY || total <= 0.0 {
            return None;
        }
        let rank = quantile.clamp(0.0, 1.0) * total;
        let index = buckets.iter().position(|(_, count)| *count >= rank)?;
        if index == last {
            return Some(buckets[last - 1].0);
        }
        let (end, count) = buckets[index];
        let (start, below) = match index.checked_sub(1) {
            Some(index) => buckets[index],
            None if end <= 0.0 => return Some(end),
            None => (0.0, 0.0),
        };
        if count <= below {
            Some(end)
        } else {
            Some(start + (end - start) * (rank - below) / (count - below))
        }
    }
}

/// `None` when nothing was asked for.
fn ratio(hits: f64, misses: f64) -> Option<f64> {
    (hits + misses > 0.0).then(|| hits / (hits + misses))
}

/// What a node says goes to a terminal, and into the columns of a table.
fn printable(text: &str) -> String {
    let replace = |character: char| !is_plain(character) || character.is_whitespace();
    text.chars().map(|character| if replace(character) { '?' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scrape(text: &str) -> Scrape {
        Scrape::read(text).unwrap()
    }

    fn between(before: &str, after: &str, seconds: f64) -> Figures {
        Figures::between(Some((&scrape(before), seconds)), &scrape(after))
    }

    #[track_caller]
    fn assert_near(found: Option<f64>, wanted: f64) {
        assert!(found.is_some_and(|found| (found - wanted).abs() < 1e-9), "{found:?} is not {wanted}");
    }

    fn counts(ok: u64, failed: u64, bytes: u64) -> String {
        format!(
            "narwire_http_requests_total{{route=\"nar\",status=\"200\"}} {ok}\n\
             narwire_http_requests_total{{route=\"narinfo\",status=\"503\"}} {failed}\n\
             narwire_http_response_bytes_total{{route=\"nar\"}} {bytes}\n"
        )
    }

    /// First bytes: `counts` of each bucket, not yet added up.
    fn first_bytes(route: &str, counts: [u64; 3]) -> String {
        let [fast, middling, slow] = counts;
        format!(
            "narwire_http_first_byte_seconds_bucket{{route=\"{route}\",le=\"0.001\"}} {fast}\n\
             narwire_http_first_byte_seconds_bucket{{route=\"{route}\",le=\"0.01\"}} {}\n\
             narwire_http_first_byte_seconds_bucket{{le=\"+Inf\",route=\"{route}\"}} {}\n",
            fast + middling,
            fast + middling + slow,
        )
    }

    #[test]
    fn counters_are_differences_by_time() {
        let figures = between(&counts(10, 4, 1000), &counts(30, 5, 5000), 2.0);
        assert_eq!(figures.requests(), Some(10.5));
        assert_eq!(figures.errors(), Some(0.5));
        assert_eq!(figures.throughput(), Some(2000.0));
        let by_route = figures.rates_by("narwire_http_requests_total", "route");
        assert_eq!(by_route, BTreeMap::from([("nar".to_owned(), 10.0), ("narinfo".to_owned(), 0.5)]));
        assert_eq!(figures.value("narwire_http_requests_total"), Some(35.0), "since the start");
    }

    #[test]
    fn a_counter_that_was_begun_anew_has_counted_from_0() {
        let figures = between(&counts(1000, 4, 1_000_000), &counts(6, 4, 400), 2.0);
        assert_eq!((figures.requests(), figures.throughput()), (Some(3.0), Some(200.0)));
        let new = between("", &counts(6, 0, 8), 2.0);
        assert_eq!(new.requests(), Some(3.0), "a series that was not there before");
    }

    #[test]
    fn the_first_scrape_says_what_is_and_not_how_fast() {
        let after = scrape(&(counts(1, 2, 3) + "narwire_connections 7\n" + &first_bytes("nar", [1, 1, 1])));
        for figures in [Figures::between(None, &after), Figures::between(Some((&after, 0.0)), &after)] {
            assert_eq!(figures.value("narwire_connections"), Some(7.0));
            assert_eq!((figures.requests(), figures.errors(), figures.first_byte(0.5)), (None, None, None));
        }
    }

    #[test]
    fn what_a_node_does_not_say_is_not_known_and_what_is_no_number_neither() {
        let figures = between("", "narwire_connections NaN\nnarwire_damaged_paths +Inf\n", 1.0);
        for row in figures.rows(true) {
            assert_eq!(row.value, None, "{row}");
        }
        assert_eq!(figures.version(), None);
        assert!(!scrape("up 1\n").is_of_narwire());
        assert!(scrape("narwire_build_info{version=\"1\"} 1\n").is_of_narwire());
    }

    #[test]
    fn errors_are_0_before_the_first_one() {
        let text = "narwire_http_requests_total{route=\"nar\",status=\"200\"} 5\n";
        assert_eq!(between(text, text, 1.0).errors(), Some(0.0));
    }

    #[test]
    fn a_request_that_nobody_could_answer_is_no_error_of_the_server() {
        let at = |count: u64| {
            let line = |status| {
                format!("narwire_http_requests_total{{route=\"other\",status=\"{status}\"}} {count}\n")
            };
            ["500", "501", "503", "505", "507"].map(line).concat()
        };
        assert_eq!(between(&at(1), &at(3), 2.0).errors(), Some(3.0));
    }

    #[test]
    fn ratios_are_of_the_interval() {
        let at = |hits: u64, misses: u64| {
            format!(
                "narwire_nar_cache_requests_total{{result=\"hit\"}} {hits}\n\
                 narwire_nar_cache_requests_total{{result=\"miss\"}} {misses}\n\
                 narwire_answer_cache_hits_total {hits}\nnarwire_answer_cache_misses_total {misses}\n\
                 narwire_layout_cache_hits_total {misses}\nnarwire_layout_cache_misses_total {hits}\n"
            )
        };
        let figures = between(&at(1000, 1000), &at(1003, 1001), 5.0);
        assert_near(figures.nar_cache_hit_ratio(), 0.75);
        assert_near(figures.answer_cache_hit_ratio(), 0.75);
        assert_near(figures.layout_cache_hit_ratio(), 0.25);
        assert_eq!(between(&at(3, 1), &at(3, 1), 5.0).nar_cache_hit_ratio(), None, "nothing was asked for");
    }

    #[test]
    fn quantiles_are_of_what_was_observed_in_the_interval() {
        let before = first_bytes("nar", [1_000_000, 0, 0]);
        let after = first_bytes("nar", [1_000_050, 50, 0]);
        let figures = between(&before, &after, 2.0);
        assert_near(figures.first_byte(0.5), 0.001);
        assert_near(figures.first_byte(0.25), 0.0005);
        assert_near(figures.first_byte(0.75), 0.001 + 0.009 / 2.0);
        let idle = between(&after, &after, 2.0);
        assert_eq!(idle.first_byte(0.5), None);
        assert_eq!(idle.quantiles_by("narwire_http_first_byte_seconds", "route", 0.5), BTreeMap::new());
    }

    #[test]
    fn whoever_asks_for_figures_is_not_in_them() {
        let at = |count: u64| {
            let requests = |route: &str, count: u64| {
                format!(
                    "narwire_http_requests_total{{route=\"{route}\",status=\"200\"}} {count}\n\
                     narwire_http_response_bytes_total{{route=\"{route}\"}} {count}\n"
                )
            };
            requests("metrics", 1000 * count)
                + &requests("nar", count)
                + "narwire_http_requests_in_flight 1\n"
        };
        let after = at(2) + &first_bytes("nar", [5, 0, 0]) + &first_bytes("metrics", [0, 0, 1000]);
        let figures = between(&at(0), &after, 2.0);
        assert_eq!((figures.requests(), figures.throughput()), (Some(1.0), Some(1.0)));
        assert_eq!(figures.requests_by_status(), BTreeMap::from([("200".to_owned(), 1.0)]));
        assert_near(figures.first_byte(0.5), 0.0005);
        assert_eq!(figures.in_flight(), Some(0.0));
        let busy = between("", "narwire_http_requests_in_flight 4\n", 2.0);
        assert_eq!(Figures::total([&busy, &figures, &busy]).in_flight(), Some(6.0));
        let by_route = figures.rates_by("narwire_http_requests_total", "route");
        assert_near(by_route.get("metrics").copied(), 1000.0);
    }

    #[test]
    fn what_takes_longer_than_all_bounds_is_the_last_of_them() {
        assert_near(between("", &first_bytes("nar", [0, 0, 9]), 2.0).first_byte(0.5), 0.01);
    }

    #[test]
    fn uploads_are_no_wait_for_a_first_byte() {
        let after = first_bytes("nar", [10, 0, 0]) + &first_bytes("upload", [0, 0, 1000]);
        let figures = between("", &after, 2.0);
        assert_near(figures.first_byte(0.5), 0.0005);
        let by_route = figures.quantiles_by("narwire_http_first_byte_seconds", "route", 0.5);
        assert_near(by_route.get("upload").copied(), 0.01);
    }

    #[test]
    fn several_nodes_are_one_in_total_and_their_workers_are_not() {
        let turns = |worker: u32, fast: u64, slow: u64| {
            format!(
                "narwire_ring_turn_seconds_bucket{{worker=\"{worker}\",le=\"0.001\"}} {fast}\n\
                 narwire_ring_turn_seconds_bucket{{worker=\"{worker}\",le=\"1\"}} {}\n\
                 narwire_ring_turn_seconds_bucket{{worker=\"{worker}\",le=\"+Inf\"}} {}\n",
                fast + slow,
                fast + slow
            )
        };
        let build = |version: u32| format!("narwire_build_info{{version=\"{version}\"}} 1\n");
        let quick = counts(4, 0, 10) + &first_bytes("nar", [10, 0, 0]) + &turns(0, 10_000, 0) + &build(1);
        let slow = counts(2, 2, 30) + &first_bytes("nar", [0, 10, 0]) + &turns(0, 0, 10) + &build(2);
        let (quick, slow) = (between("", &quick, 2.0), between("", &slow, 2.0));
        let total = Figures::total([&quick, &slow]);
        assert_eq!((total.requests(), total.throughput()), (Some(4.0), Some(20.0)));
        assert_near(total.first_byte(0.5), 0.001);
        assert_near(total.loop_lag(), 0.001 + 0.999 * 0.99);
        assert_eq!((quick.version(), total.version()), (Some("1"), None));
        let names: Vec<_> = total.rows(false).iter().map(Row::to_string).collect();
        assert!(!names.iter().any(|name| name.contains("worker=")), "{names:?}");
        let worker = "loop_lag_p99_seconds{worker=\"0\"}";
        assert!(slow.rows(true).iter().any(|row| row.to_string() == worker && row.value.is_some()));
    }

    #[test]
    fn what_is_best_at_1_is_as_bad_as_that_of_the_worst_node() {
        let at = |up: f64, progress: f64| {
            format!("narwire_nar_cache_up {up}\nnarwire_scrub_progress_ratio {progress}\n")
        };
        let nodes = [at(1.0, 1.0), at(0.0, 0.3), at(1.0, 1.0)].map(|after| between("", &after, 2.0));
        let rows = Figures::total(&nodes).rows(false);
        for (name, value) in [("nar_cache_up", 0.0), ("scrub_progress_ratio", 0.3)] {
            let row = rows.iter().find(|row| row.to_string() == name).unwrap();
            assert_eq!(row.value, Some(value), "{name}");
        }
    }

    #[test]
    fn names_of_figures_are_words_that_stay() {
        let figures = between("", &counts(2, 1, 8), 2.0);
        let rows: Vec<_> = figures.rows(true).into_iter().map(|row| (row.to_string(), row.value)).collect();
        for (name, value) in [
            ("throughput_bytes_per_second", Some(4.0)),
            ("damaged_paths", None),
            ("requests_per_second{route=\"narinfo\"}", Some(0.5)),
            ("requests_per_second{status=\"200\"}", Some(1.0)),
        ] {
            assert!(rows.contains(&(name.to_owned(), value)), "{name} in {rows:#?}");
        }
    }

    #[test]
    fn what_a_node_says_cannot_move_the_cursor() {
        let text = "narwire_uploads_total{result=\"\u{1b}[2J a\\nb\u{202e}\"} 1\n";
        let rows = between("", text, 1.0).rows(true);
        assert_eq!(rows.last().unwrap().to_string(), "uploads{result=\"?[2J?a?b?\"}");
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_the_bounds_and_rises(
            counts in prop::collection::vec((0.0..100.0, 0.0..1e6), 1..8),
            one in 0.0..=1.0,
            other in 0.0..=1.0,
        ) {
            let mut histogram = Histogram::default();
            let highest = counts.iter().map(|(bound, _)| *bound).fold(0.0, f64::max);
            for (bound, count) in &counts {
                histogram.add(*bound, *count);
            }
            histogram.add(f64::INFINITY, counts.iter().map(|(_, count)| *count).fold(1.0, f64::max));
            let quantile = |quantile| histogram.quantile(quantile).unwrap();
            let (low, high) = (quantile(f64::min(one, other)), quantile(f64::max(one, other)));
            prop_assert!(0.0 <= low && low <= high + 1e-9 && high <= highest, "{low} {high} {highest}");
        }
    }
}
