//! `deploy/prometheus` and `deploy/grafana`: Prometheus' own tool understands them, and they speak of nothing that the server does not say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use narwire::codec::exposition::{Line, lines};
use serde_json::Value;

use crate::support::nar_cache::CacheDir;
use crate::support::upload::UploadDir;
use crate::support::{Narwire, fixture, run, text};

/// What is only there once something has happened that no test waits for: the end of a pass over everything.
const LATER: &str = "narwire_scrub_last_pass_timestamp_seconds";

fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(deployed(name)).unwrap()
}

fn promtool(arguments: &[&str]) -> String {
    run(Command::new("promtool").args(arguments).current_dir(deployed("prometheus")))
}

/// The words behind `key: ` in a file of rules.
fn values<'a>(rules: &'a str, key: &str) -> BTreeSet<&'a str> {
    rules.lines().filter_map(|line| line.trim_start_matches([' ', '-']).strip_prefix(key)).collect()
}

/// The names in a text that look like those of metrics; a histogram is named without what its series end with.
fn metrics(text: &str) -> BTreeSet<&str> {
    let is_in_name = |character: char| character.is_ascii_alphanumeric() || "_:".contains(character);
    let words = text.split(|character| !is_in_name(character));
    words.filter(|word| word.starts_with("narwire_") || word.starts_with("process_")).collect()
}

/// The labels of each metric as `docs/metrics.md` has them, and their values where those are listed.
fn documented() -> BTreeMap<String, BTreeMap<String, Option<BTreeSet<String>>>> {
    let words = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let described = fs::read_to_string(deployed("../docs/metrics.md")).unwrap();
    let rows = described.lines().filter(|line| line.starts_with("| `"));
    let metrics = rows.map(|row| {
        let columns: Vec<_> = row.split(" | ").collect();
        let labels = columns[2].split("; ").filter_map(|label| {
            let (name, values) = label.split_once(':')?;
            let values = words(values);
            Some((words(name).remove(0), (!values.is_empty()).then(|| values.into_iter().collect())))
        });
        (words(columns[0]).remove(0), labels.collect())
    });
    metrics.collect()
}

/// The metrics in a text that are asked for by their labels, and what is wanted of each.
fn selectors(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.match_indices('{').filter_map(|(at, _)| {
        let name = text[..at]
            .rsplit(|character: char| !character.is_ascii_alphanumeric() && character != '_')
            .next()?;
        let (matchers, _) = text[at + 1..].split_once('}')?;
        name.starts_with("narwire_").then_some((name, matchers))
    })
}

/// All that Prometheus is asked for in a dashboard.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let annotations = dashboard["annotations"]["list"].as_array().unwrap().iter();
    targets.chain(annotations).map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

/// The names of all series of a server that has everything there is.
fn exposed() -> BTreeSet<String> {
    let (cache, uploads) = (CacheDir::new(), UploadDir::new());
    let flags = [fixture().store.flags(), fixture().key.flags(), cache.flags("all", "zstd"), uploads.flags()];
    let server = Narwire::start(flags.concat().into_iter().chain(["--with-store".to_owned()]));
    let exposition = server.get("/metrics").expect(200).text().to_owned();
    let samples = lines(&exposition).filter_map(|line| match line.unwrap() {
        Line::Sample(sample) => Some(sample.name.to_owned()),
        _ => None,
    });
    samples.collect()
}

#[test]
fn prometheus_understands_its_files() {
    promtool(&["check", "rules", "rules.yml"]);
    promtool(&["check", "config", "prometheus.yml"]);
}

#[test]
fn each_alert_fires_when_it_should_and_not_otherwise() {
    promtool(&["test", "rules", "rules_test.yml"]);
    let (rules, tests) = (read("prometheus/rules.yml"), read("prometheus/rules_test.yml"));
    let alerts = values(&rules, "alert: ");
    assert!(alerts.len() >= 15, "{alerts:?}");
    let guide = fs::read_to_string(deployed("../docs/deploy.md")).unwrap();
    for alert in alerts {
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert} is not tried");
        assert!(guide.contains(alert), "{alert} is not in docs/deploy.md");
    }
}

#[test]
fn each_alert_says_how_bad_it_is_and_what_to_do() {
    for alert in read("prometheus/rules.yml").split("- alert: ").skip(1) {
        let name = alert.lines().next().unwrap();
        let severities = values(alert, "severity: ");
        assert!(severities.is_subset(&BTreeSet::from(["critical", "warning"])), "{name}: {severities:?}");
        assert_eq!((severities.len(), values(alert, "summary: ").len()), (1, 1), "{name}");
        let (_, description) = alert.split_once("description: >-").unwrap_or_else(|| panic!("{name}"));
        assert!(description.len() > 100, "{name}: {description}");
    }
}

#[test]
fn dashboard_and_rules_and_top_speak_of_what_the_server_says() {
    let exposed = exposed();
    let (rules, tests) = (read("prometheus/rules.yml"), read("prometheus/rules_test.yml"));
    let dashboard = expressions(&serde_json::from_str(&read("grafana/narwire.json")).unwrap()).join("\n");
    let recorded = values(&rules, "record: ");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/top");
    let top: String = ["figures.rs", "screen.rs"]
        .map(|file| {
            fs::read_to_string(source.join(file)).unwrap().split("#[cfg(test)]").next().unwrap().to_owned()
        })
        .concat();
    let is_known = |name: &str| {
        let is_exposed = |suffix: &str| exposed.contains(&format!("{name}{suffix}"));
        name == LATER || recorded.contains(name) || is_exposed("") || is_exposed("_bucket")
    };
    for (place, text) in [
        ("rules.yml", &rules),
        ("rules_test.yml", &tests),
        ("narwire.json", &dashboard),
        ("narwire top", &top),
    ] {
        let named = metrics(text);
        assert!(named.len() >= 15, "{place}: {named:?}");
        let unknown: Vec<_> = named.into_iter().filter(|name| !is_known(name)).collect();
        assert!(unknown.is_empty(), "{place} names {unknown:?}, and the server has {exposed:#?}");
    }
    for name in
        dashboard.split(|character: char| !character.is_ascii_alphanumeric() && !"_:".contains(character))
    {
        let is_recorded = name.starts_with("job_instance");
        assert!(!is_recorded || recorded.contains(name), "narwire.json names {name}, which no rule makes");
    }
}

#[test]
fn labels_and_their_values_are_those_that_the_server_gives() {
    let documented = documented();
    let dashboard = expressions(&serde_json::from_str(&read("grafana/narwire.json")).unwrap()).join("\n");
    let (rules, tests) = (read("prometheus/rules.yml"), read("prometheus/rules_test.yml"));
    for (place, text) in [("rules.yml", &rules), ("rules_test.yml", &tests), ("narwire.json", &dashboard)] {
        let mut count = 0;
        for (name, matchers) in selectors(text) {
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| documented.get(name.strip_suffix(suffix)?));
            let labels = documented
                .get(name)
                .or(family)
                .unwrap_or_else(|| panic!("{place}: {name} is not documented"));
            for matcher in matchers.split(',') {
                let end = matcher.find(['=', '!']).unwrap_or_else(|| panic!("{place}: {matcher}"));
                let (label, wanted) =
                    (matcher[..end].trim(), matcher[end..].trim_start_matches(['=', '!', '~']));
                if ["job", "instance", "le"].contains(&label) {
                    continue;
                }
                let values = labels.get(label).unwrap_or_else(|| panic!("{place}: {name} has no {label}"));
                for value in
                    wanted.trim_matches('"').split('|').filter(|value| !value.contains(['$', '.', '*', '+']))
                {
                    let is_known = values.as_ref().is_none_or(|values| values.contains(value));
                    assert!(is_known, "{place}: {label} of {name} is never {value:?}");
                    count += 1;
                }
            }
        }
        assert!(count >= 3, "{place}: {count}");
    }
    let known: BTreeSet<_> = documented.values().flat_map(BTreeMap::keys).map(String::as_str).collect();
    let grouped = [rules, dashboard].join("\n");
    for labels in grouped.split("by (").skip(1).filter_map(|rest| rest.split_once(')')) {
        for label in labels.0.split(", ") {
            assert!(
                ["job", "instance", "le"].contains(&label) || known.contains(label),
                "no metric has {label}"
            );
        }
    }
}

#[test]
fn prometheus_understands_what_the_dashboard_asks_for() {
    let dashboard: Value = serde_json::from_str(&read("grafana/narwire.json")).unwrap();
    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    for (index, expression) in expressions(&dashboard).into_iter().enumerate() {
        let expression = expression.replace("$__rate_interval", "5m").replace("$__range", "6h");
        let left = expression.replace("$job", "").replace("$instance", "");
        assert!(!left.contains('$'), "a variable is not known: {expression}");
        let expression = serde_json::to_string(&expression).unwrap();
        writeln!(rules, "      - record: panel:number:{index}\n        expr: {expression}").unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.yml");
    fs::write(&file, rules).unwrap();
    promtool(&["check", "rules", text(&file)]);
}

#[test]
fn each_panel_has_its_place_and_says_what_it_means() {
    let text = read("grafana/narwire.json");
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    // The order of keys is that of the alphabet, so that a change is a small difference.
    assert_eq!(serde_json::to_string_pretty(&dashboard).unwrap() + "\n", text);
    let (mut ids, mut taken, mut titles) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(titles.insert(title), "{title} is there twice");
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its number is taken");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(w > 0 && h > 0 && x + w <= 24, "{title}");
        for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(place), "{title}: its place is taken");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{title}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            assert!(expression.contains("instance=~\"$instance\""), "{title}: {expression}");
        }
    }
}
