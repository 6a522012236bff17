//! `docs/operations.md` against the alerts, and against what a busy sidecar says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use roadstead_test_support::http::request;
use roadstead_test_support::{KEEP_TUNNELS, Sidecar, StubRegistry, Wire, config, connect_through, eventually};
use serde_json::Value;

use crate::page::{Page, first_words, quoted, text_of};

const PAGE: &str = "docs/operations.md";
const SOON: Duration = Duration::from_secs(10);

/// Each alert is there, with its severity, and no other.
#[test]
fn every_alert_is_explained_and_no_other() {
    let rules = text_of("k8s/monitoring/rules.yaml");
    let mut alerts: BTreeMap<&str, &str> = BTreeMap::new();
    for rule in rules.split("- alert: ").skip(1) {
        let severity = rule.split("severity: ").nth(1).and_then(|rest| rest.split('}').next());
        alerts.insert(rule.lines().next().unwrap(), severity.expect("a severity"));
    }
    assert!(alerts.len() >= 12, "{alerts:?}");
    let [table] = &Page::read(PAGE).tables_of("alert")[..] else { panic!("one table of alerts") };
    assert_eq!(table.columns, ["alert", "severity", "what it means", "what to do"]);
    let documented = table.rows.iter().map(|row| (quoted(&row[0])[0], row[1].as_str())).collect();
    assert_eq!(alerts, documented);
    assert!(table.rows.iter().all(|row| row[2].len() > 20 && row[3].len() > 10));
    let near_cap = table.rows.iter().find(|row| row[0].contains("RoadsteadNearCap")).unwrap();
    assert!(near_cap[3].contains("does not fire in mode observe"), "{near_cap:?}");
}

/// The caps and shares of the page, computed again: the least of Harbor's pools and its database, less a reserve; and slots that fit.
#[test]
fn the_arithmetic_of_caps_and_shares_is_right() {
    let page = Page::read(PAGE);
    let numbers = |text: &str| -> Vec<usize> {
        text.split(|char: char| !char.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    let mut rows = 0;
    for row in page.tables_of("Harbor").iter().flat_map(|table| &table.rows) {
        let Some(inside) = row[1].strip_prefix("min(") else { continue };
        let [pool, cores, database] = numbers(inside)[..] else { panic!("{row:?}") };
        let most = (pool * cores).min(database);
        let reserve = if row[1].contains("a fifth") { most / 5 } else { most / 10 };
        let cap = numbers(&row[2])[0];
        assert!(cap <= most - reserve && most - reserve < cap + 50, "{row:?}: {}", most - reserve);
        assert!(page.text.contains(&format!("| {database} in Harbor's own database")) || database != 1024, "{row:?}");
        assert!(page.text.contains(&format!("{pool} since 2.3")) || pool != 900, "{row:?}");
        rows += 1;
    }
    for row in page.tables_of("sidecars").iter().flat_map(|table| &table.rows) {
        let cap = numbers(&row[1])[0];
        let shares: Vec<usize> = numbers(&row[2]);
        let slots: Vec<usize> = shares.chunks(2).map(|share| cap * share[0] / share[1]).collect();
        if slots == [0] {
            assert!(row[3].contains("refused"), "{row:?}");
            continue;
        }
        let kinds = numbers(&row[0].replace(',', ""));
        let sum: usize = kinds.iter().zip(&slots).map(|(kind, slots)| kind * slots).sum();
        assert!(slots.iter().all(|slots| numbers(&row[3]).contains(slots)), "{row:?}: {slots:?}");
        assert!(sum <= cap && row[4].contains(&format!("= {sum}")), "{row:?}: {sum}");
        rows += 1;
    }
    assert_eq!(rows, 8, "three of caps and five of shares");
}

/// The fields on the page under this heading.
fn documented(heading: &str) -> BTreeSet<String> {
    let tables = Page::read(PAGE).tables_of("field");
    let tables: Vec<_> = tables.into_iter().filter(|table| table.heading == heading).collect();
    assert!(!tables.is_empty(), "no fields under {heading}");
    first_words(&tables)
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap_or_else(|| panic!("{value}")).keys().cloned().collect()
}

/// A sidecar with a mirror, one tunnel that holds its slot, one request that waits, and one that was refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_is_explained_and_no_other() {
    let stub = StubRegistry::builder().start().await;
    let host = stub.address();
    let text = config(&format!(
        "[registries.stub]\nhosts = [\"{host}\"]\ncap = 1\nshare = 1\n[registries.stub.queue]\ndepth = 1\n\
         [registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"http://{host}\"\n{KEEP_TUNNELS}\n\
         [registries.seen]\nhosts = [\"seen.test\"]\ncap = 1\nshare = 1\nmode = \"observe\"\n\
         [registries.leased]\nhosts = [\"leased.example.com\"]\ncap = 10\nshare = \"lease\"\n\
         [lease]\nredis = \"redis://127.0.0.1:1/0\"\nnodes = 2\n"
    ));
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &text).await;
    let holder = connect_through(sidecar.proxy(), &host.to_string(), &[]).await.unwrap();
    let target = format!("http://{host}/v2/");
    let mut waiter = Wire::open(sidecar.proxy()).await.unwrap();
    waiter.send(request("GET", &target, &[]).as_bytes()).await.unwrap();
    sidecar.until("stub", "waiting", 1).await;

    let status = sidecar.status().await;
    let registry = &status["registries"]["stub"];
    let mut fields = keys(&status);
    fields.extend(keys(registry));
    for nested in ["clients", "upstreams"] {
        fields.extend(keys(&registry[nested][0]));
    }
    fields.extend(keys(&registry["classes"]["default"]));
    let seen = &status["registries"]["seen"];
    fields.extend(keys(seen));
    fields.extend(keys(&seen["observe"]));
    let leased = &status["registries"]["leased"];
    fields.extend(keys(leased));
    fields.extend(keys(&leased["lease"]));
    assert_eq!(documented("Reading `/status`"), fields);

    let queue = sidecar.ask_admin("GET", "/queue").await.json()["registries"]["stub"].take();
    let mut fields = keys(&queue);
    fields.extend(keys(&queue["waiting"][0]));
    fields.extend(keys(&queue["holders"][0]));
    assert_eq!(documented("Reading `/queue`"), fields);

    let mut refused = Wire::open(sidecar.proxy()).await.unwrap();
    refused.send(request("GET", &target, &[]).as_bytes()).await.unwrap();
    assert_eq!(refused.read_answer().await.unwrap().status(), 503);
    drop((holder, waiter));
    // The one that waited was served on a new connection, or left: the tunnel's own line has the time of its dial.
    let lines = eventually("the tunnel's line", SOON, async || {
        let lines = sidecar.finished();
        if lines.iter().any(|line| line["connect_ms"].is_number()) { Ok(lines) } else { Err(lines) }
    })
    .await;
    let mut fields: BTreeSet<String> = lines.iter().flat_map(keys).collect();
    assert!(fields.remove("message"));
    assert_eq!(documented("Reading the log"), fields);
}
