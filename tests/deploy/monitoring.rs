//! Alerts and dashboard: by promtool, and by what a running sidecar really exports.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use roadstead_test_support::real::find_program;
use roadstead_test_support::{Sidecar, config};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::promql::{Selector, asked};
use crate::tool::{documents, run, text_of};

/// Metrics that the sidecar does not make.
const OF_OTHERS: [&str; 3] =
    ["up", "kube_pod_container_status_restarts_total", "kube_pod_init_container_status_restarts_total"];
/// Labels that Prometheus adds to what it scrapes.
const LABELS_OF_TARGETS: [&str; 6] = ["job", "instance", "namespace", "pod", "node", "cluster"];

/// Metrics that are for looking up by hand.
const NOT_SHOWN: [&str; 1] = ["roadstead_config_last_reload_success_timestamp_seconds"];

/// The rules of the `PrometheusRule`, as Prometheus itself reads them.
fn rules() -> Value {
    let mut rules = documents(&text_of("k8s/monitoring/rules.yaml"));
    assert_eq!((rules.len(), &rules[0]["kind"]), (1, &json!("PrometheusRule")));
    rules[0]["spec"].take()
}

fn alerts(rules: &Value) -> Vec<&Value> {
    let groups = rules["groups"].as_array().expect("groups");
    let alerts: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().expect("rules")).collect();
    assert!(alerts.len() >= 12, "{} alerts", alerts.len());
    alerts
}

fn dashboard() -> Value {
    serde_json::from_str(&text_of("k8s/monitoring/dashboard.json")).expect("JSON")
}

/// The queries of a dashboard, with the panels' titles.
fn queries(dashboard: &Value) -> Vec<(&str, &str)> {
    let panels = dashboard["panels"].as_array().expect("panels");
    assert!(panels.len() >= 20, "{} panels", panels.len());
    panels
        .iter()
        .flat_map(|panel| {
            let title = panel["title"].as_str().expect("a title");
            let targets = panel["targets"].as_array().expect("targets").iter();
            targets.map(move |target| (title, target["expr"].as_str().expect("a query")))
        })
        .collect()
}

/// Writes rules where promtool can read them.
fn write(folder: &TempDir, rules: &Value) -> std::path::PathBuf {
    let file = folder.path().join("rules.yaml");
    // JSON is YAML, too.
    fs::write(&file, rules.to_string()).unwrap();
    file
}

/// A limit is drawn as a line over what it limits, and a tunnel that holds no slot is not added to those that do: none is stacked.
#[test]
fn no_limit_is_stacked_on_what_it_limits() {
    const LINES: [&str; 4] =
        ["roadstead_slots{", "roadstead_slots_in_force{", "roadstead_cap{", "roadstead_parked_tunnels{"];
    let dashboard = dashboard();
    let mode = |of: &Value| of["mode"].as_str().unwrap_or("none").to_owned();
    let mut lines = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        let stacked = mode(&panel["fieldConfig"]["defaults"]["custom"]["stacking"]) != "none";
        for target in panel["targets"].as_array().unwrap() {
            let (query, name) = (target["expr"].as_str().unwrap(), &target["legendFormat"]);
            if !LINES.iter().any(|line| query.contains(line)) || panel["type"] != "timeseries" {
                continue;
            }
            let overrides = panel["fieldConfig"]["overrides"].as_array().into_iter().flatten();
            let mut own = overrides.filter(|one| one["matcher"]["options"] == *name);
            let properties = own.next().map(|one| one["properties"].as_array().unwrap().clone()).unwrap_or_default();
            let is_line = properties.iter().any(|it| it["id"] == "custom.stacking" && mode(&it["value"]) == "none");
            assert!(!stacked || is_line, "{}: {name} is stacked", panel["title"]);
            lines += 1;
        }
    }
    assert!(lines >= 5, "only {lines}");
}

/// Each alert is seen firing, and silent where it must be.
#[test]
fn promtool_sees_every_alert_fire_and_stay_silent() {
    let rules = rules();
    let folder = TempDir::new().unwrap();
    let checked = run(Command::new(find_program("promtool")).args(["check", "rules"]).arg(write(&folder, &rules)));
    assert!(checked.contains("SUCCESS"), "{checked}");
    let tests = text_of("tests/deploy/rules_test.yaml");
    fs::write(folder.path().join("test.yaml"), &tests).unwrap();
    let tested =
        run(Command::new(find_program("promtool")).args(["test", "rules"]).arg(folder.path().join("test.yaml")));
    assert!(tested.contains("SUCCESS"), "{tested}");

    let tests = &documents(&tests)[0]["tests"];
    let cases: Vec<&Value> =
        tests.as_array().unwrap().iter().flat_map(|test| test["alert_rule_test"].as_array().unwrap()).collect();
    for alert in alerts(&rules) {
        let of_this = || cases.iter().filter(|case| case["alertname"] == alert["alert"]);
        let fires = |case: &&&Value| !case["exp_alerts"].as_array().unwrap().is_empty();
        assert!(of_this().any(|case| fires(&case)), "{} is never seen firing", alert["alert"]);
        assert!(of_this().any(|case| !fires(&case)), "{} is never seen silent", alert["alert"]);
    }
}

/// Every alert says how bad it is, what is the matter, and what to do.
#[test]
fn every_alert_says_what_to_do() {
    for alert in alerts(&rules()) {
        let severity = alert["labels"]["severity"].as_str().expect("a severity");
        assert!(["info", "warning", "critical"].contains(&severity), "{alert}");
        for annotation in ["summary", "action"] {
            assert!(alert["annotations"][annotation].as_str().is_some_and(|text| text.len() > 10), "{alert}");
        }
        let runbook = alert["annotations"]["runbook_url"].as_str().expect("a runbook");
        let (page, section) = runbook.split_once('#').expect("a section of a page");
        let text = text_of(page);
        let headings =
            text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
        // As GitHub makes an anchor of a heading.
        let anchor = |heading: &str| {
            let kept = heading.to_lowercase().replace(' ', "-");
            kept.chars().filter(|char| char.is_alphanumeric() || "-_".contains(*char)).collect::<String>()
        };
        assert!(headings.into_iter().any(|heading| anchor(heading) == section), "no section {runbook}");
    }
}

/// The queries of the dashboard are queries: promtool parses them.
#[test]
fn promtool_parses_every_query_of_the_dashboard() {
    let dashboard = dashboard();
    let as_rules: Vec<Value> = queries(&dashboard)
        .iter()
        .enumerate()
        .map(|(number, (_, query))| json!({"record": format!("query_{number}"), "expr": filled(query)}))
        .collect();
    let folder = TempDir::new().unwrap();
    let file = write(&folder, &json!({"groups": [{"name": "dashboard", "rules": as_rules}]}));
    let checked = run(Command::new(find_program("promtool")).args(["check", "rules"]).arg(file));
    assert!(checked.contains(&format!("SUCCESS: {} rules found", as_rules.len())), "{checked}");
}

/// A query with Grafana's variables filled in.
fn filled(query: &str) -> String {
    let filled = query.replace("$__rate_interval", "5m").replace("$registry", ".+");
    let filled = filled.replace("$cluster", ".*").replace("$node", ".*");
    assert!(!filled.contains('$'), "an unknown variable: {filled}");
    filled
}

/// All that alerts and dashboard ask for, a running sidecar exports: names, labels, and the values of labels.
#[tokio::test]
async fn alerts_and_dashboard_ask_only_for_what_a_sidecar_exports() {
    let text = config(
        "[registries.harbor]\nhosts = [\"harbor.example.com\"]\ncap = 10\nshare = 1\n\
         [registries.harbor.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"https://harbor.example.com\"\n\
         [registries.seen]\nhosts = [\"seen.example.com\"]\ncap = 10\nshare = 1\nmode = \"observe\"\n\
         [registries.leased]\nhosts = [\"leased.example.com\"]\ncap = 10\nshare = \"lease\"\n\
         [lease]\nredis = \"redis://127.0.0.1:1/0\"\nnodes = 2\n",
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &text).await;
    let exported = Exported::read(&sidecar.ask_admin("GET", "/metrics").await.text());
    let (rules, dashboard) = (rules(), dashboard());
    let alerts = alerts(&rules);
    let of_alerts = alerts.iter().map(|alert| (alert["alert"].as_str().unwrap(), alert["expr"].as_str().unwrap()));
    let mut names = BTreeSet::new();
    for (place, query) in of_alerts.chain(queries(&dashboard)) {
        let asked = asked(query);
        assert!(!asked.selectors.is_empty(), "{place}: {query}");
        for selector in &asked.selectors {
            exported.check(place, selector);
            names.insert(selector.name.clone());
        }
        for label in &asked.labels {
            let known = LABELS_OF_TARGETS.contains(&label.as_str()) || exported.has_label(label);
            assert!(known, "{place}: no label {label} in {query}");
        }
    }
    assert!(names.len() >= 20, "{names:?}");
    // And the other way round: what is exported is shown somewhere.
    let variables: Vec<&str> =
        dashboard["templating"]["list"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(variables, ["datasource", "cluster", "node", "registry"]);
    for (title, query) in queries(&dashboard) {
        assert!(query.contains("cluster=~\"$cluster\",node=~\"$node\""), "{title} ignores the variables: {query}");
    }
    let shown = |name: &String| names.iter().any(|used| used.trim_end_matches("_bucket") == name);
    let hidden: Vec<&String> = exported.families.iter().filter(|name| !shown(name)).collect();
    assert_eq!(hidden, NOT_SHOWN, "exported, but neither in the dashboard nor in an alert");
}

/// The text of `/metrics`.
struct Exported {
    families: Vec<String>,
    samples: Vec<String>,
}

impl Exported {
    fn read(text: &str) -> Exported {
        let family = |line: &str| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned());
        let samples = text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        Exported { families: text.lines().filter_map(family).collect(), samples }
    }

    fn has_label(&self, label: &str) -> bool {
        self.samples.iter().any(|sample| sample.contains(&format!("{label}=\"")))
    }

    /// There are samples that this selector selects; each value that it lists is there.
    fn check(&self, place: &str, selector: &Selector) {
        if OF_OTHERS.contains(&selector.name.as_str()) {
            return;
        }
        let of_name: Vec<&String> = self
            .samples
            .iter()
            .filter(|sample| sample.split(['{', ' ']).next() == Some(selector.name.as_str()))
            .collect();
        assert!(!of_name.is_empty(), "{place}: there is no {}", selector.name);
        // Those that Prometheus adds.
        let own = selector.matchers.iter().filter(|[label, ..]| !LABELS_OF_TARGETS.contains(&label.as_str()));
        for [label, _, values] in own {
            for value in values.split('|') {
                let carried = if value.contains('$') { format!("{label}=\"") } else { format!("{label}=\"{value}\"") };
                let found = of_name.iter().any(|sample| sample.contains(&carried));
                assert!(found, "{place}: no {} carries {carried}", selector.name);
            }
        }
    }
}
