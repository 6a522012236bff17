//! `docs/metrics.md` against what a running sidecar exports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use roadstead_test_support::real::find_program;
use roadstead_test_support::{Sidecar, config};
use serde_json::json;

use crate::page::{Page, first_words, quoted};

const PAGE: &str = "docs/metrics.md";

/// The text of `/metrics` of a sidecar with a mirror, and with a registry that is observed.
async fn exported() -> String {
    let text = config(
        "[registries.harbor]\nhosts = [\"harbor.example.com\"]\ncap = 10\nshare = 1\n\
         [registries.harbor.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"https://harbor.example.com\"\n\
         [registries.seen]\nhosts = [\"seen.example.com\"]\ncap = 10\nshare = 1\nmode = \"observe\"\n\
         [registries.leased]\nhosts = [\"leased.example.com\"]\ncap = 10\nshare = \"lease\"\n\
         [lease]\nredis = \"redis://127.0.0.1:1/0\"\nnodes = 2\n",
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &text).await;
    sidecar.ask_admin("GET", "/metrics").await.text()
}

/// Each family with its type and the labels of its samples.
fn families(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut families = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            families.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        }
    }
    for (name, labels) in text.lines().filter(|line| !line.starts_with('#')).map(sample) {
        let family = ["", "_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix).filter(|family| families.contains_key(*family)));
        let (_, known) = families.get_mut(family.expect("a sample of a family")).unwrap();
        known.extend(labels.into_iter().map(|(label, _)| label.to_owned()).filter(|label| label != "le"));
    }
    families
}

/// Name and labels of a sample; no value of ours has a comma or a brace.
fn sample(line: &str) -> (&str, Vec<(&str, &str)>) {
    let (name, rest) = line.split_once(['{', ' ']).expect("a sample");
    let labels = rest.split_once('}').map_or("", |(labels, _)| labels);
    let pairs = labels.split(',').filter_map(|pair| pair.split_once('='));
    (name, pairs.map(|(label, value)| (label, value.trim_matches('"'))).collect())
}

#[tokio::test]
async fn the_page_has_the_metrics_of_a_sidecar_and_no_others() {
    let exported = families(&exported().await);
    assert!(exported.len() >= 20, "{}", exported.len());
    let mut documented = BTreeMap::new();
    for table in Page::read(PAGE).tables_of("metric") {
        assert_eq!(table.columns, ["metric", "type", "labels", "meaning"]);
        for row in table.rows {
            let labels = row[2].split(", ").filter(|label| !label.is_empty()).map(str::to_owned).collect();
            assert!(row[3].len() > 8, "{row:?}");
            documented.insert(quoted(&row[0])[0].to_owned(), (row[1].clone(), labels));
        }
    }
    assert_eq!(documented, exported);
}

/// The values of labels are those that a sidecar has from the start.
#[tokio::test]
async fn the_page_has_the_values_of_labels_and_no_others() {
    let text = exported().await;
    let mut values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, labels) in text.lines().filter(|line| !line.starts_with('#')).map(sample) {
        for (label, value) in labels {
            let label = match (label, name.starts_with("roadstead_wait_seconds")) {
                ("outcome", true) => "`outcome` of `roadstead_wait_seconds`".to_owned(),
                ("outcome", false) => "`outcome` of `roadstead_outcomes_total`".to_owned(),
                (label, _) => format!("`{label}`"),
            };
            values.entry(label).or_default().insert(value.to_owned());
        }
    }
    let [table] = &Page::read(PAGE).tables_of("label")[..] else { panic!("one table of labels") };
    for row in &table.rows {
        let documented: BTreeSet<String> = quoted(&row[1]).into_iter().map(str::to_owned).collect();
        assert_eq!(Some(&documented), values.get(&row[0]), "{}", row[0]);
        values.remove(&row[0]);
    }
    let open: Vec<&str> = values.keys().map(String::as_str).collect();
    assert_eq!(open, ["`class`", "`le`", "`registry`", "`upstream`", "`version`"], "labels without a closed set");
}

/// Prometheus itself parses the queries, and they ask for nothing that is not on the page.
#[test]
fn every_query_parses_and_asks_for_what_there_is() {
    let page = Page::read(PAGE);
    let queries: Vec<String> =
        page.blocks().into_iter().filter(|block| block.kind == "promql").map(|block| block.text).collect();
    assert!(queries.len() >= 12, "{}", queries.len());
    let metrics = first_words(&page.tables_of("metric"));
    for query in &queries {
        let words = query.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
        for name in words.filter(|word| word.starts_with("roadstead_")) {
            let known = ["", "_bucket"]
                .iter()
                .any(|suffix| name.strip_suffix(suffix).is_some_and(|name| metrics.contains(name)));
            assert!(known, "there is no {name}: {query}");
        }
    }
    let rules: Vec<_> =
        (1..).zip(&queries).map(|(n, query)| json!({"record": format!("query_{n}"), "expr": query})).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.yaml");
    // JSON is YAML, too.
    fs::write(&file, json!({"groups": [{"name": "page", "rules": rules}]}).to_string()).unwrap();
    let checked = Command::new(find_program("promtool")).args(["check", "rules"]).arg(file).output().unwrap();
    let printed = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
    assert!(printed.contains(&format!("SUCCESS: {} rules found", queries.len())), "{printed}");
}
