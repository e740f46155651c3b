//! The text format of Prometheus, out of that of OpenMetrics; and either of them compressed.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

/// The same samples for who reads version 0.0.4 of Prometheus' text format: there a counter is described under the whole name of its
/// samples, information is a gauge, and there are neither units nor an end.
///
/// `openmetrics` is what this program writes: in front of the samples of each metric its help, then its type.
pub fn prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len() + 1024);
    let mut help = None;
    for line in openmetrics.lines() {
        let Some(described) = line.strip_prefix("# ") else {
            text.extend([line, "\n"]);
            continue;
        };
        let mut words = described.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("HELP"), Some(_), Some(words)) => help = Some(words),
            (Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    _ => ("", kind),
                };
                if let Some(help) = help.take() {
                    text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
                }
                text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
            }
            _ => {}
        }
    }
    text
}

/// The same as one file of gzip (RFC 1952), a tenth of its length: lines begin alike, and a scrape is asked for again and again.
pub fn gzipped(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 8), Compression::default());
    // Writing to a Vec cannot fail.
    let _ = encoder.write_all(text);
    encoder.finish().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_described_has_the_name_of_its_samples() {
        let openmetrics = "# HELP a_b What b is.\n# TYPE a_b counter\na_b_total{c=\"# TYPE d\"} 1\n\
            # HELP a What it is.\n# TYPE a info\na_info{version=\"1\"} 1\n\
            # HELP t_seconds How long.\n# TYPE t_seconds gauge\n# UNIT t_seconds seconds\nt_seconds 0.5\n# EOF\n";
        let expected = "# HELP a_b_total What b is.\n# TYPE a_b_total counter\na_b_total{c=\"# TYPE d\"} 1\n\
            # HELP a_info What it is.\n# TYPE a_info gauge\na_info{version=\"1\"} 1\n\
            # HELP t_seconds How long.\n# TYPE t_seconds gauge\nt_seconds 0.5\n";
        assert_eq!(prometheus(openmetrics), expected);
    }

    /// A metric as it is written: its descriptions and some samples.
    fn metric() -> impl Strategy<Value = String> {
        let kind = prop::sample::select(vec!["counter", "gauge", "info", "histogram"]);
        (
            "[a-z_]{1,8}",
            "[ -~]{0,12}",
            kind,
            prop::collection::vec("[a-z]\\{l=\"[ -~]{0,9}\"\\} [0-9]{1,4}", 0..4),
        )
            .prop_map(|(name, help, kind, samples)| {
                let lines: Vec<_> = samples.iter().map(|sample| format!("{name}{sample}\n")).collect();
                format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{}", lines.concat())
            })
    }

    fn samples(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.starts_with('#')).collect()
    }

    proptest! {
        #[test]
        fn every_sample_is_the_same(metrics in prop::collection::vec(metric(), 0..5)) {
            let openmetrics = format!("{}# EOF\n", metrics.concat());
            let text = prometheus(&openmetrics);
            prop_assert_eq!(samples(&text), samples(&openmetrics));
            prop_assert_eq!(text.lines().filter(|line| line.starts_with("# TYPE ")).count(), metrics.len());
            prop_assert_eq!(text.lines().filter(|line| line.starts_with("# HELP ")).count(), metrics.len());
        }
    }
}
