//! Plans of which the answer is known by other means.

use std::time::Duration;

use clap::Parser;

use super::arguments::PlanArguments;
use super::command::{Question, question};
use super::report::{PlanReport, RunReport};
use super::report_of;
use super::simulation::simulate;
use crate::config::Config;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    plan: PlanArguments,
}

fn asked(line: &str, config: Option<&str>) -> Result<Question, String> {
    let line =
        Line::try_parse_from(["plan"].into_iter().chain(line.split_whitespace())).map_err(|error| error.to_string())?;
    let config = config.map(|text| Config::parse(text).unwrap());
    question(&line.plan, config.as_ref())
}

fn plan_by(line: &str, config: Option<&str>) -> PlanReport {
    report_of(asked(line, config).unwrap(), &mut |scenario| simulate(scenario, &mut |_| true)).unwrap()
}

fn plan(line: &str) -> PlanReport {
    plan_by(line, None)
}

fn run(report: &PlanReport) -> &RunReport {
    report.run.as_ref().unwrap()
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Ten requests of 100 ms on one slot: one dial of three round trips, and then one after the other.
#[test]
fn one_slot_serves_one_request_after_the_other() {
    let report = plan("--nodes 1 --cap 1 --images 10 --layers 1 --small 0 --layer-size 0B --service-time 100ms");
    let run = run(&report);
    assert!(report.feasible, "{report:?}");
    assert_eq!((run.requests, run.served, run.most_connections), (10, 10, 1));
    assert_eq!(run.makespan, Some(millis(1003)));
    let wait = run.classes[0].wait;
    assert_eq!((wait.p50, wait.p99, wait.max), (millis(403), millis(903), millis(903)));
}

/// Bytes over bandwidth, and nothing else, when the slots are enough.
#[test]
fn the_bandwidth_bounds_the_makespan() {
    let report =
        plan("--nodes 10 --cap 30 --layers 3 --small 0 --layer-size 100MiB --bandwidth 100MiB/s --service-time 0s");
    let run = run(&report);
    assert_eq!(run.makespan, Some(millis(30_003)));
    assert!(run.bandwidth_used.unwrap() > 0.999, "{run:?}");
}

/// The second request is refused after 25 s, comes back 10 s later, and takes the connection that lies idle since 30 s.
#[test]
fn a_refused_request_comes_back_after_the_pause_of_the_kubelet() {
    let report = plan("--nodes 1 --cap 1 --images 2 --layers 1 --small 0 --layer-size 0B --service-time 30s");
    let run = run(&report);
    assert!(!report.feasible);
    assert_eq!((run.classes[0].refused, run.classes[0].left), (1, 0));
    assert_eq!(run.classes[0].wait.max, millis(35_000));
    assert_eq!(run.makespan, Some(millis(65_000)));
    assert!(report.problems[0].contains("refuses 1 requests after 25.0 s"), "{report:?}");
}

/// docker waits for 15 s, and leaves before the queue refuses.
#[test]
fn an_impatient_puller_leaves() {
    let line = "--nodes 1 --cap 1 --images 2 --layers 1 --small 0 --layer-size 0B --service-time 20s --puller docker";
    let report = plan(line);
    assert!(!report.feasible);
    let class = &run(&report).classes[0];
    assert_eq!((class.refused, class.left, class.wait.max), (0, 1, millis(25_000)));
}

/// A tunnel holds its slot until the registry saw it close, and the next one dials anew.
#[test]
fn a_tunnel_dials_and_closes_for_each_request() {
    let line =
        "--nodes 1 --cap 1 --images 3 --layers 1 --small 0 --layer-size 0B --service-time 100ms --round-trip 10ms";
    assert_eq!(run(&plan(line)).makespan, Some(millis(330)));
    assert_eq!(run(&plan(&format!("{line} --tunnels"))).makespan, Some(millis(3 * 130 + 2 * 10)));
}

#[test]
fn a_fixed_share_of_less_than_a_slot_is_not_feasible() {
    let report = plan("--nodes 500 --cap 200 --share static");
    assert!(!report.feasible && report.run.is_none());
    assert!(report.problems[0].contains("0.4 of a slot"), "{report:?}");
    assert_eq!(plan("--nodes 500 --cap 500").fleet.slots_per_node, Some(1));
}

/// Nodes take turns where there are fewer slots than nodes.
#[test]
fn more_nodes_than_slots_are_feasible_by_leases() {
    let line = "--nodes 500 --cap 200 --images 1 --layers 2 --small 1 --layer-size 1MiB --bandwidth 1GiB/s";
    assert!(!plan(&format!("{line} --share static")).feasible);
    let report = plan(&format!("{line} --share lease"));
    let leased = run(&report);
    assert!(report.feasible, "{report:?}");
    assert_eq!((leased.served, leased.most_connections), (1500, 200));
    let wait = leased.classes[0].wait;
    assert!(wait.max > millis(1000) && wait.max < millis(25_000), "{wait:?}");
}

/// One node alone has all slots by leases, and its part by fixed shares: the advice says so.
#[test]
fn leases_follow_the_demand() {
    let line = "--nodes 10 --cap 10 --images 10 --layers 1 --small 0 --layer-size 0B --service-time 1s --within 100s --tunnels";
    let leased = plan(&format!("{line} --share lease"));
    let wait = run(&leased).classes[0].wait;
    // The whole cap, after a message or two.
    assert!(wait.max < millis(100), "{wait:?}");
    assert!(leased.advice[0].contains("With fixed shares, 1 slot for each node, it takes 1m 40s"), "{leased:?}");
    let pull = run(&plan(line)).pull;
    assert!(pull.max >= millis(10_000), "{pull:?}");
}

/// Turns of under a second, and floors that are more than the cap.
#[test]
fn leases_that_cannot_hold_are_not_feasible() {
    let report = plan("--nodes 500 --cap 20 --share lease");
    assert!(!report.feasible && report.problems[0].contains("less than a second each"), "{report:?}");
    assert!(plan("--nodes 20 --cap 1 --share lease --layers 0 --small 1").run.is_some());
    assert!(plan("--nodes 21 --cap 1 --share lease --layers 0 --small 1").run.is_none());
    let config = "[registries.harbor]\nhosts = ['a.example']\ncap = 40\nshare = 'lease'\n\
                  [lease]\nredis = 'redis://127.0.0.1/0'\nnodes = 10\nfloor = 1\n";
    let report = plan_by("--nodes 50", Some(config));
    assert!(report.problems[0].contains("50 nodes x floor 1 = 50, more than the cap = 40"), "{report:?}");
    assert_eq!(run(&plan_by("--nodes 10 --layer-size 0B", Some(config))).most_connections, 30);
}

/// Two nodes with all of a cap of 10 each: the registry fails requests above ten connections.
#[test]
fn shares_that_add_up_to_more_than_the_cap_overload_the_registry() {
    let line = "--nodes 2 --cap 10 --images 10 --layers 1 --small 0 --layer-size 0B --until 1h";
    let report = plan(&format!("{line} --share 1"));
    assert!(!report.feasible && run(&report).classes[0].overloaded > 0, "{report:?}");
    assert!(report.advice[0].contains("add up to 20 connections"), "{report:?}");
    assert!(plan(&format!("{line} --share 1/2")).feasible);
}

/// A class of eight times the weight waits less, and gets its part of the pulls.
#[test]
fn classes_wait_by_their_weights() {
    let line = "--nodes 2 --cap 4 --images 100 --layers 1 --small 0 --layer-size 0B --service-time 200ms";
    let report = plan(&format!("{line} --class interactive=20% --weight interactive=8 --puller interactive=docker"));
    let [default, interactive] = &run(&report).classes[..] else { panic!("{report:?}") };
    assert_eq!((default.served, interactive.served, interactive.puller), (160, 40, "docker"));
    assert!(interactive.wait.max < default.wait.max / 3, "{report:?}");
}

#[test]
fn what_a_config_says_is_taken() {
    let config = "[registries.harbor]\nhosts = ['h.example.com']\ncap = 40\nshare = '1/4'\n\
                  [registries.harbor.queue]\nrequest_timeout = '7s'\n\
                  [registries.other]\nhosts = ['o.example.com']\ncap = 7\nshare = 1\n\
                  [classes.interactive]\nweight = 8\nrequest_timeout = '3s'\n";
    let report = plan_by("--registry harbor --nodes 4 --class interactive=1/2", Some(config));
    assert_eq!((report.fleet.cap, report.fleet.slots_per_node), (40, Some(10)));
    let timeouts: Vec<_> = run(&report).classes.iter().map(|class| class.queue_timeout).collect();
    assert_eq!(timeouts, [millis(7000), millis(3000)]);
    let report = plan_by("--registry harbor --nodes 10 --cap 80 --share static", Some(config));
    assert_eq!((report.fleet.cap, report.fleet.slots_per_node), (80, Some(8)));
    for (line, named) in [("--nodes 4", "harbor, other"), ("--nodes 4 --registry no", "harbor, other")] {
        assert!(asked(line, Some(config)).unwrap_err().contains(named));
    }
}

#[test]
fn arguments_that_mean_nothing_are_refused_by_their_names() {
    for (line, named) in [
        ("--cap 10", "--nodes"),
        ("--nodes 10", "--cap"),
        ("--nodes 0 --cap 10", "--nodes"),
        ("--nodes 10 --cap 10 --share 2", "--share 2"),
        ("--nodes 10 --cap 10 --registry harbor", "--config"),
        ("--nodes 10 --cap 10 --layer-size 100", "--layer-size"),
        ("--nodes 10 --cap 10 --layers 0 --small 0", "nodes x images"),
        ("--nodes 1000000 --cap 1000000 --images 1000000", "nodes x images"),
        ("--nodes 10 --cap 10 --puller wget", "--puller wget"),
        ("--nodes 10 --cap 10 --puller nobody=docker", "nobody"),
        ("--nodes 10 --cap 10 --class interactive", "--class interactive"),
        ("--nodes 10 --cap 10 --class a=60% --class b=60%", "more than the whole"),
        ("--nodes 10 --cap 10 --weight a=0", "--weight a=0"),
    ] {
        let error = asked(line, None).expect_err(line);
        assert!(error.contains(named), "{line}: {error}");
    }
}

/// Two requests of one second that overlap by half of one, and a third of another class: on one slot the second waits for half
/// a second, on two for none. Lines that are no request of the registry are passed over.
#[test]
fn a_recorded_load_is_replayed() {
    let line = |second: &str, class: &str, took: u32, waited: u32, registry: &str| {
        format!(
            r#"{{"timestamp":"2026-01-01T00:00:{second}Z","level":"INFO","fields":{{"message":"finished","registry":"{registry}",
            "class":"{class}","client":"uid:0","kind":"request","target":"h/v2/a/blobs/sha256:b","outcome":"served","reason":"",
            "took_ms":{took}.0,"waited_ms":{waited}.0,"retries":0,"bytes_up":0,"bytes_down":1000}},"target":"t"}}"#
        )
        .replace('\n', "")
    };
    let log = [
        line("01.000000", "default", 1000, 0, "harbor"),
        r#"{"timestamp":"2026-01-01T00:00:01Z","level":"INFO","fields":{"message":"listening"}}"#.to_owned(),
        "not JSON".to_owned(),
        // It arrived at 0.5 s, and waited until 1 s.
        line("02.000000", "default", 1500, 500, "harbor"),
        line("02.500000", "default", 9000, 0, "other_hosts"),
        line("09.000000", "interactive", 1000, 0, "harbor"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    std::fs::write(&path, log.join("\n")).unwrap();
    let line = format!("--trace {} --round-trip 0s", path.display());
    let report = plan(&format!("{line} --cap 1"));
    let [default, interactive] = &run(&report).classes[..] else { panic!("{report:?}") };
    assert_eq!((default.served, interactive.served, default.wait.max), (2, 1, millis(500)));
    assert_eq!(run(&report).makespan, Some(millis(9000)));
    let report = plan(&format!("{line} --cap 2 --registry harbor"));
    assert_eq!(run(&report).classes[0].wait.max, Duration::ZERO);
    // Three nodes with this log, on a registry that sends 2,000 bytes a second.
    let report = plan(&format!("{line} --cap 6 --nodes 3 --bandwidth 2000B/s --service-time 0s"));
    assert_eq!((run(&report).served, run(&report).bytes), (9, 9000));
    assert_eq!(run(&report).makespan, Some(millis(9500)));
    for (line, named) in [
        (format!("{line} --cap 1 --registry other"), "no finished request of registry other"),
        ("--trace /no/such/file --cap 1".to_owned(), "--trace /no/such/file"),
        (format!("{line} --cap 1 --images 3"), "cannot be used with"),
        (line, "--cap"),
    ] {
        let error = asked(&line, None).expect_err(&line);
        assert!(error.contains(named), "{line}: {error}");
    }
}

/// Whatever is asked: every request is served once, no more connections than slots are open, no answer comes before the
/// bandwidth and the slots allow it, and the same question has the same answer.
#[test]
fn every_request_is_served_within_the_slots_and_the_bandwidth() {
    for (nodes, cap) in [(1, 1), (3, 7), (20, 40), (50, 50)] {
        for (images, layers, small) in [(1, 1, 0), (3, 8, 3), (7, 2, 1)] {
            for kind in
                ["", "--tunnels", "--within 30s", "--puller nydusd", "--share lease", "--share lease --within 9s"]
            {
                let line = format!(
                    "--nodes {nodes} --cap {cap} --images {images} --layers {layers} --small {small} --layer-size 5MiB \
                     --bandwidth 200MiB/s --until 7days {kind}"
                );
                let report = plan(&line);
                let run = run(&report);
                assert_eq!(run.served, nodes * images * (layers + small), "{line}");
                assert!(run.most_connections <= report.fleet.slots(), "{line}");
                assert!(run.bandwidth_used.unwrap() <= 1.0 && run.connections_used <= 1.0, "{line}: {report:?}");
                let again = serde_json::to_string(&plan(&line)).unwrap();
                assert_eq!(again, serde_json::to_string(&report).unwrap(), "{line}");
            }
        }
    }
}
