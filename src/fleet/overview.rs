//! All nodes of a fleet, as the store knows them: read from its records, and shown as a table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lease::message::FleetOrder;

/// The words of a node about itself, with each request, for operators. Nothing is decided by them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The last order to all nodes that it knows.
    pub order: u64,
    /// Whether an operator has paused this node alone.
    pub paused_here: bool,
    /// Whether it gives its slots back, and ends.
    #[serde(default)]
    pub draining: bool,
    pub open: usize,
    pub waiting: usize,
    pub oldest_wait_seconds: f64,
    pub distress: f64,
}

impl NodeReport {
    /// As it is kept at the store.
    pub(super) fn packed(&self) -> String {
        // Numbers and booleans can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The records of one registry, as they are at the store.
#[derive(Clone, Debug, Default)]
pub struct FleetRecords {
    pub lent: BTreeMap<String, Vec<u8>>,
    /// The time of the server, and the report, of each process.
    pub reports: BTreeMap<String, String>,
    /// The time of the server.
    pub time: f64,
}

/// The nodes of one registry.
#[derive(Debug, Serialize)]
pub struct FleetOverview {
    /// Whether all nodes are paused, or about to be.
    pub paused: bool,
    #[serde(skip)]
    pub order: FleetOrder,
    /// Slots that are lent to all nodes.
    pub granted: u64,
    /// Those that may be lent at most, while signs of overload lower them; the last sign, and how long ago they were lowered last.
    pub in_force: Option<u64>,
    pub lowered_by: Option<String>,
    pub lowered_seconds_ago: Option<f64>,
    pub nodes: Vec<FleetNode>,
}

/// One process of a node.
#[derive(Debug, Serialize)]
pub struct FleetNode {
    pub node: String,
    pub instance: String,
    pub wished: u64,
    pub granted: u64,
    #[serde(flatten)]
    pub report: NodeReport,
    /// Whether it has said that it is paused, by the order to all nodes or alone.
    pub paused: bool,
    /// When the store lends its slots again, if it says nothing any more.
    pub lease_ends_seconds: f64,
    pub last_seen_seconds: f64,
}

impl FleetOverview {
    pub fn of(records: &FleetRecords) -> FleetOverview {
        let meta = |name| records.lent.get(name).and_then(|value| std::str::from_utf8(value).ok()?.parse::<f64>().ok());
        let order = FleetOrder(meta("order").map_or(0, whole));
        let clock = meta("clock").unwrap_or(0.0);
        let reports: BTreeMap<&str, (f64, NodeReport)> =
            records.reports.iter().filter_map(|(name, text)| Some((name.as_str(), reported(text)?))).collect();
        // The store's clock stands while no node asks.
        let newest = reports.values().map(|(time, _)| *time).fold(f64::MIN, f64::max);
        let nodes = records.lent.iter().filter_map(|(name, loan)| {
            let (node, instance) = name.split_once('/')?;
            let [granted, wished, till, ..] = numbers(loan)[..] else { return None };
            let (seen, report) = reports.get(name.as_str()).cloned().unwrap_or((newest, NodeReport::default()));
            let since = |then: f64| rounded((records.time - then).max(0.0));
            Some(FleetNode {
                node: node.to_owned(),
                instance: instance.to_owned(),
                wished: whole(wished),
                granted: whole(granted),
                paused: FleetOrder(report.order).is_pause() || report.paused_here,
                report,
                lease_ends_seconds: rounded(((till - clock) / 1000.0 - since(newest)).max(0.0)),
                last_seen_seconds: since(seen),
            })
        });
        let nodes: Vec<FleetNode> = nodes.collect();
        let granted = nodes.iter().map(|node| node.granted).sum();
        let force = records.lent.get("force").map_or_else(Vec::new, |force| numbers(force));
        let yields = match force[..] {
            [slots, _, lowered, ..] if slots > 0.0 => Some((slots, lowered)),
            _ => None,
        };
        let sign = || records.lent.get("sign").map(|sign| String::from_utf8_lossy(sign).into_owned());
        let quiet = (records.time - newest).max(0.0);
        FleetOverview {
            paused: order.is_pause(),
            order,
            granted,
            in_force: yields.map(|(slots, _)| whole((slots / 1000.0).round()).max(1)),
            lowered_by: yields.and_then(|_| sign()),
            lowered_seconds_ago: yields.map(|(_, lowered)| rounded((clock - lowered) / 1000.0 + quiet)),
            nodes,
        }
    }

    /// Nodes by whose name several processes go on: all but those that drain have said something so short a time ago.
    pub fn shared_names(&self, within: Duration) -> BTreeSet<&str> {
        let is_there = |node: &&FleetNode| node.last_seen_seconds < within.as_secs_f64() && !node.report.draining;
        let names: Vec<&str> = self.nodes.iter().filter(is_there).map(|node| node.node.as_str()).collect();
        names.iter().filter(|name| names.iter().filter(|other| other == name).count() > 1).copied().collect()
    }

    /// As a table for people.
    pub fn table(&self, registry: &str, pool: u32) -> String {
        let mut state = String::new();
        if let (Some(slots), Some(sign), Some(ago)) = (self.in_force, &self.lowered_by, self.lowered_seconds_ago)
            && slots < u64::from(pool)
        {
            let _ = write!(state, ", {slots} in force (lowered {ago:.0} s ago, last sign: {})", sign.replace('_', " "));
        }
        if self.paused {
            state.push_str(", paused on all nodes");
        }
        let mut told = format!(
            "registry {registry}: {} of {pool} slots lent to {} nodes{state}\n",
            self.granted,
            self.nodes.len()
        );
        let mut rows = vec![HEADERS.map(str::to_owned)];
        rows.extend(self.nodes.iter().map(|node| node.row(self.order)));
        let widths = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(|at| rows.iter().map(|row| row[at].len()).max().unwrap_or(0));
        for row in rows.iter().filter(|_| !self.nodes.is_empty()) {
            let _ = write!(told, "  {:<1$}", row[0], widths[0]);
            for (cell, width) in row.iter().zip(widths).skip(1) {
                let _ = write!(told, "  {cell:>width$}");
            }
            told.push('\n');
        }
        told
    }
}

const HEADERS: [&str; 10] =
    ["node", "wish", "grant", "open", "waiting", "oldest", "distress", "lease ends", "last seen", "paused"];

impl FleetNode {
    fn row(&self, order: FleetOrder) -> [String; 10] {
        let report = &self.report;
        let paused = match (order.is_pause(), FleetOrder(report.order).is_pause(), report.paused_here) {
            (_, true, _) if report.order == order.0 => "yes",
            (_, _, true) => "this node",
            (true, ..) => "not yet",
            (false, true, _) => "still",
            _ => "no",
        };
        [
            self.node.clone(),
            self.wished.to_string(),
            self.granted.to_string(),
            report.open.to_string(),
            report.waiting.to_string(),
            format!("{:.1} s", report.oldest_wait_seconds),
            format!("{:.2}", report.distress),
            format!("{:.0} s", self.lease_ends_seconds),
            format!("{:.1} s ago", self.last_seen_seconds),
            paused.to_owned(),
        ]
    }
}

/// The numbers of a record: granted, wished, until, and those that only the script needs.
fn numbers(loan: &[u8]) -> Vec<f64> {
    loan.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
}

fn reported(text: &str) -> Option<(f64, NodeReport)> {
    let (time, report) = text.split_once(' ')?;
    Some((time.parse().ok()?, serde_json::from_str(report).ok()?))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts, which the script keeps as numbers of Lua"
)]
fn whole(number: f64) -> u64 {
    number as u64
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> FleetRecords {
        let loan = |granted: f64, wished: f64, till: f64| {
            [granted, wished, till, 1.0, granted, 0.0, 20.0].iter().flat_map(|number| number.to_le_bytes()).collect()
        };
        let lent = [
            ("run", b"r".to_vec()),
            ("clock", b"10000".to_vec()),
            ("order", b"3".to_vec()),
            ("n1/a", loan(4.0, 5.0, 14_000.0)),
            ("n2/b", loan(2.0, 0.0, 11_000.0)),
        ];
        let report = |order, time| {
            let report = NodeReport {
                order,
                open: 4,
                waiting: 7,
                oldest_wait_seconds: 1.25,
                distress: 0.5,
                ..NodeReport::default()
            };
            format!("{time} {}", report.packed())
        };
        FleetRecords {
            lent: lent.map(|(name, value)| (name.to_owned(), value)).into(),
            reports: [("n1/a", report(3, "99.5")), ("n2/b", report(2, "97.000001"))]
                .map(|(name, text)| (name.to_owned(), text))
                .into(),
            time: 100.0,
        }
    }

    #[test]
    fn every_node_has_one_row() {
        let overview = FleetOverview::of(&records());
        assert_eq!((overview.paused, overview.granted, overview.order), (true, 6, FleetOrder(3)));
        let expected = "registry harbor: 6 of 20 slots lent to 2 nodes, paused on all nodes\n\
                        \x20 node  wish  grant  open  waiting  oldest  distress  lease ends  last seen   paused\n\
                        \x20 n1       5      4     4        7   1.2 s      0.50         4 s  0.5 s ago      yes\n\
                        \x20 n2       0      2     4        7   1.2 s      0.50         0 s  3.0 s ago  not yet\n";
        assert_eq!(overview.table("harbor", 20), expected);
        let mut yields = records();
        let force = [7_600.0, 8_000.0, 4_000.0, 4_000.0, 5_000.0_f64];
        yields.lent.insert("force".to_owned(), force.iter().flat_map(|number| number.to_le_bytes()).collect());
        yields.lent.insert("sign".to_owned(), b"database_error".to_vec());
        let first = FleetOverview::of(&yields).table("harbor", 20).lines().next().unwrap().to_owned();
        let expected = "registry harbor: 6 of 20 slots lent to 2 nodes, 8 in force (lowered 6 s ago, last sign: database error), \
                        paused on all nodes";
        assert_eq!(first, expected);
        let shown = serde_json::to_value(&overview).unwrap();
        assert_eq!(
            (&shown["nodes"][0]["oldest_wait_seconds"], &shown["nodes"][1]["paused"]),
            (&1.25.into(), &false.into())
        );
    }

    #[test]
    fn two_processes_that_go_on_by_one_name_are_told_and_one_that_is_gone_or_drains_is_none_of_them() {
        let name = |change: fn(&mut FleetRecords)| {
            let mut records = records();
            let (loan, report) = (records.lent["n1/a"].clone(), records.reports["n1/a"].clone());
            records.lent.insert("n1/c".to_owned(), loan);
            records.reports.insert("n1/c".to_owned(), report);
            change(&mut records);
            FleetOverview::of(&records).shared_names(Duration::from_secs(2)).into_iter().map(str::to_owned).collect()
        };
        let names: Vec<String> = name(|_| ());
        assert_eq!(names, ["n1"]);
        let old: Vec<String> = name(|records| _ = records.reports.insert("n1/c".to_owned(), "90 {}".to_owned()));
        let gone = |records: &mut FleetRecords| {
            let report = records.reports["n1/c"].replace("99.5 ", "97.5 ");
            records.reports.insert("n1/c".to_owned(), report);
        };
        let drains = |records: &mut FleetRecords| {
            let report = records.reports["n1/c"].replace("\"draining\":false", "\"draining\":true");
            records.reports.insert("n1/c".to_owned(), report);
        };
        let none: [Vec<String>; 2] = [name(gone), name(drains)];
        assert_eq!((old.len(), none), (1, [Vec::new(), Vec::new()]), "one without a report was seen lately");
    }

    /// Another version of a sidecar may write something else, and what a store holds is not ours alone.
    #[test]
    fn records_that_cannot_be_read_are_passed_over() {
        let mut records = records();
        records.reports.insert("n1/a".to_owned(), "soon {}".to_owned());
        records.lent.insert("n3/c".to_owned(), b"short".to_vec());
        let overview = FleetOverview::of(&records);
        assert_eq!(overview.nodes.len(), 2);
        assert_eq!(overview.nodes[0].report, NodeReport::default());
    }
}
