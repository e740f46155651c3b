//! What a server says at `/metrics`: the text format 0.0.4 of Prometheus, and of OpenMetrics 1.0 what looks alike.
//!
//! One line is one thing: a sample, or something that is said of a metric. A line that is neither is an error that names it, and ends the
//! reading; so does a last line without its end, for an answer that was cut must not look complete. Beyond a line nothing is judged:
//! whoever reads decides what it means that a metric has no type, or a sample comes twice.

use std::borrow::Cow;
use std::iter::Enumerate;
use std::str::SplitInclusive;

use crate::limits::EXPOSITION_LABELS_MAX;

/// One line that says something.
#[derive(Debug, Clone, PartialEq)]
pub enum Line<'a> {
    /// A value.
    Sample(Sample<'a>),
    /// `# TYPE`: what kind of metric it is, such as `counter`.
    Type {
        /// Of the metric.
        name: &'a str,
        /// In lower case, as it stands there.
        kind: &'a str,
    },
    /// `# HELP`: what it is about.
    Help {
        /// Of the metric.
        name: &'a str,
        /// For people; may be empty.
        text: Cow<'a, str>,
    },
    /// `# UNIT` (OpenMetrics): what it is measured in.
    Unit {
        /// Of the metric.
        name: &'a str,
        /// Such as `seconds`.
        unit: &'a str,
    },
}

/// One value of one series. Time and exemplar, where there are any, were looked at and left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<'a> {
    /// With its suffix, such as `_total` or `_bucket`.
    pub name: &'a str,
    /// In the order in which they stand there; no name twice.
    pub labels: Vec<(&'a str, Cow<'a, str>)>,
    /// May be infinite, or none (NaN).
    pub value: f64,
}

/// Why a text is no exposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct ExpositionError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It begins with something else.
    #[error("it begins with no name of a metric")]
    Name,
    /// Something else stands where a label has to begin.
    #[error("a label has no name")]
    LabelName,
    /// There is no `="`.
    #[error("a label has no value in quotes")]
    LabelValue,
    /// A backslash before something else than itself, a quote or `n`.
    #[error("an escape is none of \\\\, \\\" and \\n")]
    Escape,
    /// There is a quote too few.
    #[error("the value of a label has no end")]
    LabelEnd,
    /// Neither a comma nor the end of all labels follows.
    #[error("after a label there is neither `,` nor `}}`")]
    LabelSeparator,
    /// It would not be known which one is meant.
    #[error("a label is there twice")]
    LabelTwice,
    /// No metric has so many.
    #[error("there are more than {EXPOSITION_LABELS_MAX} labels")]
    TooManyLabels,
    /// It is missing, or no number.
    #[error("the value is no number")]
    Value,
    /// It is no number.
    #[error("the time behind the value is no number")]
    Time,
    /// Something follows the value that is neither a time nor an exemplar.
    #[error("something follows the value")]
    Rest,
    /// The exemplar is none.
    #[error("the exemplar is no set of labels with a value")]
    Exemplar,
    /// `# TYPE`, `# HELP` or `# UNIT` of nothing.
    #[error("it says something of no metric")]
    Metadata,
    /// OpenMetrics ends with `# EOF`.
    #[error("it stands behind the end (# EOF)")]
    BehindEnd,
    /// The rest is missing.
    #[error("it has no end: the answer was cut")]
    Cut,
}

/// The lines of a text, those that say nothing left out. After an error there is nothing more.
#[derive(Debug, Clone)]
pub struct Lines<'a> {
    rest: Enumerate<SplitInclusive<'a, char>>,
    /// Whether `# EOF` was read.
    is_behind_end: bool,
    has_failed: bool,
}

/// Reads what a server says at `/metrics`.
pub fn lines(text: &str) -> Lines<'_> {
    Lines { rest: text.split_inclusive('\n').enumerate(), is_behind_end: false, has_failed: false }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Result<Line<'a>, ExpositionError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        loop {
            let (index, line) = self.rest.next()?;
            match self.line(line) {
                Ok(None) => {}
                Ok(Some(line)) => return Some(Ok(line)),
                Err(fault) => {
                    self.has_failed = true;
                    return Some(Err(ExpositionError { line: index + 1, fault }));
                }
            }
        }
    }
}

impl<'a> Lines<'a> {
    fn line(&mut self, line: &'a str) -> Result<Option<Line<'a>>, Fault> {
        if self.is_behind_end {
            return Err(Fault::BehindEnd);
        }
        if line.trim_end_matches('\n') == "# EOF" {
            self.is_behind_end = true;
            return Ok(None);
        }
        let line = line.strip_suffix('\n').ok_or(Fault::Cut)?;
        let line = line.trim_matches(is_blank);
        if line.is_empty() {
            return Ok(None);
        }
        let Some(said) = line.strip_prefix('#') else {
            return sample(line).map(|sample| Some(Line::Sample(sample)));
        };
        metadata(said.trim_start_matches(is_blank))
    }
}

impl Sample<'_> {
    /// The value of the label of this name.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_ref())
    }
}

/// What stands behind `#`. `None` for what is only a comment.
fn metadata(said: &str) -> Result<Option<Line<'_>>, Fault> {
    let (keyword, rest) = said.split_at(said.find(is_blank).unwrap_or(said.len()));
    if !matches!(keyword, "TYPE" | "HELP" | "UNIT") {
        return Ok(None);
    }
    let rest = rest.trim_start_matches(is_blank);
    let (name, rest) = name(rest, true).ok_or(Fault::Metadata)?;
    let text = rest.trim_start_matches(is_blank);
    if text.len() == rest.len() && !rest.is_empty() {
        return Err(Fault::Metadata);
    }
    Ok(Some(match keyword {
        "HELP" => Line::Help { name, text: unescaped(text)? },
        _ if !is_word(text) => return Err(Fault::Metadata),
        "TYPE" => Line::Type { name, kind: text },
        _ => Line::Unit { name, unit: text },
    }))
}

fn sample(line: &str) -> Result<Sample<'_>, Fault> {
    let (name, rest) = name(line, true).ok_or(Fault::Name)?;
    let mut labels = Vec::new();
    let rest = match rest.trim_start_matches(is_blank).strip_prefix('{') {
        Some(rest) => read_labels(rest, &mut labels)?,
        None if rest.starts_with(is_blank) => rest,
        None => return Err(if rest.is_empty() { Fault::Value } else { Fault::Name }),
    };
    let (value, rest) = word(rest);
    let value = number(value).ok_or(Fault::Value)?;
    let (time, behind) = word(rest);
    let rest = if time.is_empty() || time.starts_with('#') {
        rest
    } else {
        number(time).ok_or(Fault::Time)?;
        behind
    };
    let rest = rest.trim_start_matches(is_blank);
    if let Some(exemplar) = rest.strip_prefix('#') {
        check_exemplar(exemplar)?;
    } else if !rest.is_empty() {
        return Err(Fault::Rest);
    }
    Ok(Sample { name, labels, value })
}

/// `{…} value [time]`, behind a `#`.
fn check_exemplar(text: &str) -> Result<(), Fault> {
    let rest = text.trim_start_matches(is_blank).strip_prefix('{').ok_or(Fault::Exemplar)?;
    let rest = read_labels(rest, &mut Vec::new())?;
    let mut words = rest.split(is_blank).filter(|word| !word.is_empty());
    let is_number = |word: Option<&str>| word.and_then(number).is_some();
    let is_sound = is_number(words.next()) && words.next().is_none_or(|time| is_number(Some(time)));
    if is_sound && words.next().is_none() { Ok(()) } else { Err(Fault::Exemplar) }
}

/// Reads all labels, from behind the opening brace, and gives what follows the closing one.
fn read_labels<'a>(text: &'a str, labels: &mut Vec<(&'a str, Cow<'a, str>)>) -> Result<&'a str, Fault> {
    let mut rest = text.trim_start_matches(is_blank);
    loop {
        if let Some(behind) = rest.strip_prefix('}') {
            return Ok(behind);
        }
        let (name, behind) = name(rest, false).ok_or(Fault::LabelName)?;
        let behind = behind.trim_start_matches(is_blank).strip_prefix('=').ok_or(Fault::LabelValue)?;
        let value = behind.trim_start_matches(is_blank).strip_prefix('"').ok_or(Fault::LabelValue)?;
        let end = quoted_len(value).ok_or(Fault::LabelEnd)?;
        if labels.iter().any(|(known, _)| *known == name) {
            return Err(Fault::LabelTwice);
        }
        if labels.len() == EXPOSITION_LABELS_MAX {
            return Err(Fault::TooManyLabels);
        }
        labels.push((name, unescaped(&value[..end])?));
        rest = value[end + 1..].trim_start_matches(is_blank);
        match rest.strip_prefix(',') {
            Some(behind) => rest = behind.trim_start_matches(is_blank),
            None if rest.starts_with('}') => {}
            None => return Err(Fault::LabelSeparator),
        }
    }
}

/// Length up to the quote that no backslash takes away.
fn quoted_len(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.bytes().position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    })
}

fn unescaped(text: &str) -> Result<Cow<'_, str>, Fault> {
    if !text.contains('\\') {
        return Ok(Cow::Borrowed(text));
    }
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        plain.push(match character {
            '\\' => match characters.next() {
                Some('\\') => '\\',
                Some('"') => '"',
                Some('n') => '\n',
                _ => return Err(Fault::Escape),
            },
            character => character,
        });
    }
    Ok(Cow::Owned(plain))
}

/// The name that `text` begins with, and the rest. Metrics may have colons in theirs.
fn name(text: &str, may_have_colons: bool) -> Option<(&str, &str)> {
    let is_in_name =
        |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || (byte == b':' && may_have_colons);
    let len = text.bytes().position(|byte| !is_in_name(byte)).unwrap_or(text.len());
    let is_name = text.bytes().next().is_some_and(|byte| is_in_name(byte) && !byte.is_ascii_digit());
    is_name.then(|| text.split_at(len))
}

/// The next word, and what follows it.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start_matches(is_blank);
    text.split_at(text.find(is_blank).unwrap_or(text.len()))
}

/// As Go and C write them, infinities and NaN included.
fn number(text: &str) -> Option<f64> {
    text.parse().ok()
}

fn is_word(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') && !text.is_empty()
}

fn is_blank(character: char) -> bool {
    character == ' ' || character == '\t'
}

/// Whatever is taken for an exposition is read back alike once it is written.
#[cfg(any(test, fuzzing))]
pub fn fuzz_exposition(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let read: Result<Vec<_>, _> = lines(text).collect();
    match read {
        Ok(read) => {
            let written = naive::write(&read);
            let again: Vec<_> = lines(&written).collect::<Result<_, _>>().unwrap_or_else(|error| {
                panic!("{error} in what was written:\n{written}");
            });
            assert!(naive::are_alike(&read, &again), "{read:?}\nis not\n{again:?}");
        }
        Err(error) => assert!(error.line >= 1 && error.line <= text.split_inclusive('\n').count()),
    }
}

/// The obvious writer, which the reader is compared with.
#[cfg(any(test, fuzzing))]
mod naive {
    use super::{Line, Sample};

    pub(super) fn write(lines: &[Line<'_>]) -> String {
        lines
            .iter()
            .map(|line| match line {
                Line::Sample(Sample { name, labels, value }) => {
                    let labels: Vec<String> =
                        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
                    format!("{name}{{{}}} {value}\n", labels.join(","))
                }
                Line::Type { name, kind } => format!("# TYPE {name} {kind}\n"),
                Line::Help { name, text } => format!("# HELP {name} {}\n", escaped(text)),
                Line::Unit { name, unit } => format!("# UNIT {name} {unit}\n"),
            })
            .collect()
    }

    /// NaN equals NaN here.
    pub(super) fn are_alike(some: &[Line<'_>], others: &[Line<'_>]) -> bool {
        let is_alike = |(one, other): (&Line<'_>, &Line<'_>)| match (one, other) {
            (Line::Sample(one), Line::Sample(other)) if one.value.is_nan() => {
                one.name == other.name && one.labels == other.labels && other.value.is_nan()
            }
            (one, other) => one == other,
        };
        some.len() == others.len() && some.iter().zip(others).all(is_alike)
    }

    fn escaped(text: &str) -> String {
        text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Vec<Line<'_>> {
        lines(text).collect::<Result<_, _>>().unwrap()
    }

    fn samples(text: &str) -> Vec<Sample<'_>> {
        let samples = read(text).into_iter().filter_map(|line| match line {
            Line::Sample(sample) => Some(sample),
            _ => None,
        });
        samples.collect()
    }

    #[test]
    fn the_example_of_the_format_is_read() {
        let text = r#"# HELP http_requests_total The total number of HTTP requests.
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000
http_requests_total{method="post",code="400"}    3 1395066363000

# Escaping in label values:
msdos_file_access_time_seconds{path="C:\\DIR\\FILE.TXT",error="Cannot find file:\n\"FILE.TXT\""} 1.458255915e9

# Minimalistic line:
metric_without_timestamp_and_labels 12.47

# A weird metric from before the epoch:
something_weird{problem="division by zero"} +Inf -3982045
rpc_duration_seconds{ quantile = "0.01" , } 3102
rpc_duration_seconds_sum 1.7560473e+07
"#;
        assert_eq!(
            read(text)[..2],
            [
                Line::Help { name: "http_requests_total", text: "The total number of HTTP requests.".into() },
                Line::Type { name: "http_requests_total", kind: "counter" },
            ]
        );
        let samples = samples(text);
        assert_eq!(samples.len(), 7);
        assert_eq!((samples[0].label("code"), samples[0].value), (Some("200"), 1027.0));
        assert_eq!(samples[2].label("path"), Some(r"C:\DIR\FILE.TXT"));
        assert_eq!(samples[2].label("error"), Some("Cannot find file:\n\"FILE.TXT\""));
        assert_eq!((samples[3].name, samples[3].labels.len()), ("metric_without_timestamp_and_labels", 0));
        assert!(samples[4].value.is_infinite());
        assert_eq!((samples[5].label("quantile"), samples[5].label("code")), (Some("0.01"), None));
        assert_eq!(samples[6].value.to_string(), "17560473");
    }

    #[test]
    fn what_openmetrics_adds_is_read_or_left_out() {
        let text = "# TYPE foo histogram\n# UNIT foo seconds\n# HELP foo\n\
                    foo_bucket{le=\"0.1\"} 8 # {trace=\"a}b\"} 0.054\n\
                    foo_bucket{le=\"+Inf\"} 17 1.5 # {} 2 1520879607.789\n# EOF\n";
        assert_eq!(
            read(text)[..3],
            [
                Line::Type { name: "foo", kind: "histogram" },
                Line::Unit { name: "foo", unit: "seconds" },
                Line::Help { name: "foo", text: "".into() },
            ]
        );
        assert_eq!(samples(text).iter().map(|sample| sample.value).collect::<Vec<_>>(), [8.0, 17.0]);
        // OpenMetrics wants a line feed behind it, and some writers have none.
        assert_eq!(read("# EOF"), []);
    }

    #[test]
    fn a_line_that_is_none_is_named_and_ends_it() {
        for (line, fault) in [
            ("0a 1", Fault::Name),
            ("{a=\"b\"} 1", Fault::Name),
            ("a-b 1", Fault::Name),
            ("a", Fault::Value),
            ("a ", Fault::Value),
            ("a x", Fault::Value),
            ("a{} ", Fault::Value),
            ("a{b=\"c\"}", Fault::Value),
            ("a{0=\"c\"} 1", Fault::LabelName),
            ("a{b:c=\"c\"} 1", Fault::LabelValue),
            ("a{,} 1", Fault::LabelName),
            ("a{", Fault::LabelName),
            ("a{b} 1", Fault::LabelValue),
            ("a{b=c} 1", Fault::LabelValue),
            ("a{b=\"c} 1", Fault::LabelEnd),
            ("a{b=\"c\\\"} 1", Fault::LabelEnd),
            ("a{b=\"\\t\"} 1", Fault::Escape),
            ("a{b=\"c\"d=\"e\"} 1", Fault::LabelSeparator),
            ("a{b=\"c\"", Fault::LabelSeparator),
            ("a{b=\"c\",b=\"d\"} 1", Fault::LabelTwice),
            ("a 1 now", Fault::Time),
            ("a 1 2 3", Fault::Rest),
            ("a 1 # b", Fault::Exemplar),
            ("a 1 # {}", Fault::Exemplar),
            ("a 1 # {} 1 2 3", Fault::Exemplar),
            ("# TYPE", Fault::Metadata),
            ("# TYPE a", Fault::Metadata),
            ("# TYPE a b c", Fault::Metadata),
            ("# TYPE 0 counter", Fault::Metadata),
            ("# UNIT a ", Fault::Metadata),
            ("# HELP a-b c", Fault::Metadata),
            ("# HELP a \\x", Fault::Escape),
            ("# EOF\n\nmore 1", Fault::BehindEnd),
        ] {
            let text = format!("ok 1\n{line}\nok 2\n");
            let read: Vec<_> = lines(&text).collect();
            let named = if fault == Fault::BehindEnd { 3 } else { 2 };
            assert_eq!(read[1..], [Err(ExpositionError { line: named, fault })], "{line}");
        }
        let many: Vec<String> = (0..=EXPOSITION_LABELS_MAX).map(|number| format!("l{number}=\"\"")).collect();
        let error = lines(&format!("a{{{}}} 1\n", many.join(","))).next().unwrap().unwrap_err();
        assert_eq!(error.fault, Fault::TooManyLabels);
        assert_eq!(
            ExpositionError { line: 7, fault: Fault::Value }.to_string(),
            "line 7: the value is no number"
        );
    }

    #[test]
    fn what_was_cut_is_not_whole() {
        let text = "a 1\nb 12\n";
        assert_eq!(read(text).len(), 2);
        for len in (1..text.len()).filter(|len| *len != 4) {
            assert!(
                lines(&text[..len]).any(|line| line.is_err_and(|error| error.fault == Fault::Cut)),
                "{len}"
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read(
            name in "[a-zA-Z_:][a-zA-Z0-9_:]{0,8}",
            labels in prop::collection::btree_map("[a-zA-Z_][a-zA-Z0-9_]{0,8}", any::<String>(), 0..5),
            value in prop_oneof![any::<f64>(), Just(f64::NAN), Just(f64::INFINITY)],
            help: String,
        ) {
            // A carriage return or other blanks at the ends of a help text are no part of it.
            let help = help.trim_matches(is_blank).to_owned();
            let labels =
                labels.iter().map(|(name, value)| (name.as_str(), Cow::from(value.as_str()))).collect();
            let wanted = [
                Line::Help { name: &name, text: help.into() },
                Line::Type { name: &name, kind: "gauge" },
                Line::Sample(Sample { name: &name, labels, value }),
            ];
            let text = naive::write(&wanted);
            prop_assert!(naive::are_alike(&read(&text), &wanted), "{}", text);
        }

        #[test]
        fn no_text_panics(text: String, likely in "([a-z]|[{}=\",# \\\\\n.]|[0-9]|TYPE |EOF){0,60}") {
            fuzz_exposition(text.as_bytes());
            fuzz_exposition(likely.as_bytes());
        }
    }
}
