//! Figures as text for scripts: a line for each figure and a column for each node, or one JSON object. Pure.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::figures::{Figures, Row};
use super::nodes::Seen;

/// For what is not known.
pub(super) const DASH: &str = "–";

/// A line for each figure: its name, its value for each node, and behind them for all of them if they are several. No word has a blank
/// in it. Numbers are plain, in the unit that the name of the figure says.
pub fn text(seen: &[(String, Seen)]) -> String {
    let total = total(seen);
    let mut lines = vec![line("figure", seen, |name, _| name.to_owned(), "all".to_owned())];
    let up = seen.iter().filter(|(_, seen)| seen.is_ok()).count();
    lines.push(line("up", seen, |_, seen| u8::from(seen.is_ok()).to_string(), up.to_string()));
    let by_name = |rows: Vec<Row>| -> HashMap<String, Option<f64>> {
        rows.into_iter().map(|row| (row.to_string(), row.value)).collect()
    };
    let nodes: HashMap<&str, _> = seen
        .iter()
        .filter_map(|(name, seen)| Some((name.as_str(), by_name(seen.as_ref().ok()?.rows(true)))))
        .collect();
    let of_all = by_name(total.rows(false));
    for name in total.rows(true).iter().map(Row::to_string) {
        let value = |values: &HashMap<String, Option<f64>>| plain(values.get(&name).copied().flatten());
        let of_node = |node: &str, _: &Seen| nodes.get(node).map_or_else(|| DASH.to_owned(), value);
        lines.push(line(&name, seen, of_node, value(&of_all)));
    }
    aligned(&lines)
}

/// The same for programs, on one line. What is not known is null.
pub fn json(seen: &[(String, Seen)], interval: Duration) -> String {
    let nodes: Vec<Value> = seen
        .iter()
        .map(|(name, seen)| {
            json!({
                "url": name,
                "up": seen.is_ok(),
                "error": seen.as_ref().err(),
                "version": seen.as_ref().ok().and_then(Figures::version),
                "figures": seen.as_ref().ok().map(|figures| object(figures.rows(true))),
            })
        })
        .collect();
    let up = seen.iter().filter(|(_, seen)| seen.is_ok()).count();
    let all = json!({ "up": up, "figures": object(total(seen).rows(false)) });
    let interval = interval.as_secs_f64();
    format!("{}\n", json!({ "intervalSeconds": interval, "nodes": nodes, "all": all }))
}

fn total(seen: &[(String, Seen)]) -> Figures {
    Figures::total(seen.iter().filter_map(|(_, seen)| seen.as_ref().ok()))
}

/// Those by label are objects of their own, whose name says the label.
fn object(rows: Vec<Row>) -> Value {
    let mut object = Map::new();
    for Row { name, label, value } in rows {
        match label {
            None => drop(object.insert(name.to_owned(), json!(value))),
            Some((label, of)) => {
                let entry = object.entry(format!("{name}_by_{label}")).or_insert_with(|| json!({}));
                if let Some(entry) = entry.as_object_mut() {
                    entry.insert(of, json!(value));
                }
            }
        }
    }
    Value::Object(object)
}

fn line(
    name: &str,
    seen: &[(String, Seen)],
    cell: impl Fn(&str, &Seen) -> String,
    of_all: String,
) -> Vec<String> {
    let cells = seen.iter().map(|(name, seen)| cell(name, seen));
    let of_all = (seen.len() > 1).then_some(of_all);
    [name.to_owned()].into_iter().chain(cells).chain(of_all).collect()
}

/// Two blanks between columns, and none at the end of a line.
fn aligned(lines: &[Vec<String>]) -> String {
    let len = |word: &String| word.chars().count();
    let columns = lines.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|column| lines.iter().map(|line| len(&line[column])).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        let mut padding = 0;
        for (word, width) in line.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(text, "{:padding$}{word}", "");
            padding = width - len(word) + 2;
        }
        text.push('\n');
    }
    text
}

/// Six decimals at most, and no exponent.
fn plain(value: Option<f64>) -> String {
    let Some(value) = value else { return DASH.to_owned() };
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::figures::Scrape;

    #[expect(clippy::unnecessary_wraps, reason = "as a node is seen")]
    fn up(connections: u32, worker: u32) -> Seen {
        let text = |turns: u32| {
            format!(
                "narwire_build_info{{version=\"1\"}} 1\n\
                 narwire_connections {connections}\nnarwire_uploads_total{{result=\"stored\"}} 2\n\
                 narwire_ring_turn_seconds_bucket{{worker=\"{worker}\",le=\"1\"}} {turns}\n\
                 narwire_ring_turn_seconds_bucket{{worker=\"{worker}\",le=\"+Inf\"}} {turns}\n"
            )
        };
        let (before, after) = (Scrape::read(&text(0)).unwrap(), Scrape::read(&text(100)).unwrap());
        Ok(Figures::between(Some((&before, 2.0)), &after))
    }

    fn three() -> Vec<(String, Seen)> {
        vec![
            ("http://a".to_owned(), up(5, 0)),
            ("http://elsewhere".to_owned(), Err("cannot reach it".to_owned())),
            ("http://c".to_owned(), up(7, 1)),
        ]
    }

    #[test]
    fn each_figure_is_a_line_of_words() {
        let text = text(&three());
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(lines.iter().all(|line| line.len() == 5), "{text}");
        assert_eq!(lines[0], ["figure", "http://a", "http://elsewhere", "http://c", "all"]);
        assert_eq!(lines[1], ["up", "1", "0", "1", "2"]);
        for line in [
            ["connections", "5", "–", "7", "12"],
            ["requests_per_second", "–", "–", "–", "–"],
            ["uploads{result=\"stored\"}", "2", "–", "2", "4"],
            ["loop_lag_p99_seconds", "0.99", "–", "0.99", "0.99"],
            ["loop_lag_p99_seconds{worker=\"0\"}", "0.99", "–", "–", "–"],
            ["loop_lag_p99_seconds{worker=\"1\"}", "–", "–", "0.99", "–"],
        ] {
            assert!(lines.contains(&line.to_vec()), "{line:?} in\n{text}");
        }
        assert!(text.lines().all(|line| !line.ends_with(' ')));
    }

    #[test]
    fn columns_stand_beneath_each_other() {
        let text = text(&three()[..2]);
        let place = |line: &str| line.chars().position(|character| character == ' ').unwrap();
        let second = text.lines().next().unwrap().find("http://a").unwrap();
        for line in text.lines().filter(|line| place(line) < second) {
            let characters: Vec<char> = line.chars().collect();
            assert!(characters[second - 1] == ' ' && characters[second] != ' ', "{line}");
        }
    }

    #[test]
    fn one_node_is_all() {
        let text = text(&three()[..1]);
        assert_eq!(
            text.lines().next().unwrap().split_whitespace().collect::<Vec<_>>(),
            ["figure", "http://a"]
        );
    }

    #[test]
    fn programs_read_one_object_on_one_line() {
        let json = json(&three(), Duration::from_millis(500));
        assert_eq!(json.lines().count(), 1);
        let read: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["intervalSeconds"], 0.5);
        assert_eq!(read["all"]["up"], 2);
        assert_eq!(read["all"]["figures"]["connections"], 12.0);
        assert_eq!(read["all"]["figures"]["loop_lag_p99_seconds_by_worker"], Value::Null);
        let [up, down, _] = &read["nodes"].as_array().unwrap()[..] else { panic!("{json}") };
        assert_eq!((&up["url"], &up["up"], &up["version"]), (&json!("http://a"), &json!(true), &json!("1")));
        assert_eq!(up["figures"]["uploads_by_result"], json!({ "stored": 2.0 }));
        assert_eq!(up["figures"]["requests_per_second"], Value::Null);
        assert_eq!(up["figures"]["loop_lag_p99_seconds_by_worker"], json!({ "0": 0.99 }));
        assert_eq!((&down["error"], &down["figures"]), (&json!("cannot reach it"), &Value::Null));
    }

    #[test]
    fn numbers_are_plain() {
        for (value, text) in [
            (0.0, "0"),
            (1e15, "1000000000000000"),
            (0.000_123_456_7, "0.000123"),
            (100.0, "100"),
            (2.5, "2.5"),
            (1e-9, "0"),
        ] {
            assert_eq!(plain(Some(value)), text);
        }
        assert_eq!(plain(None), DASH);
    }
}
