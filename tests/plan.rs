//! `roadstead plan` against reality, and on a terminal.

use std::process::Stdio;
use std::time::Duration;

use roadstead_test_support::{
    Destination, Sidecar, Storm, StubRegistry, assert_as_planned, config, eventually_is, on_terminal, service_ms,
};
use serde_json::Value;
use tokio::process::Command;

const SOON: Duration = Duration::from_secs(20);
const BLOB: usize = 1024;

/// The output of `roadstead plan`, its exit status, and what it said on standard error.
async fn plan(line: &str) -> (String, Option<i32>, String) {
    let arguments = ["plan"].into_iter().chain(line.split_whitespace());
    let run = Command::new(env!("CARGO_BIN_EXE_roadstead")).args(arguments).stdin(Stdio::null()).output();
    let run = tokio::time::timeout(SOON, run).await.expect("an end").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&run.stdout), run.status.code(), text(&run.stderr))
}

async fn report(line: &str) -> Value {
    let (text, status, said) = plan(&format!("{line} --json")).await;
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{said}"));
    assert_eq!(status, Some(i32::from(report["feasible"] != true)), "{text}");
    report
}

/// Two sidecars with four slots each, twenty pulls at each, a manifest and a blob of 250 ms: in real time they take as long as
/// the plan says, and wait as long; and so says the plan that reads their logs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_sidecars_take_as_long_as_the_plan_says() {
    const PULLS: usize = 20;
    const MARGIN: f64 = 0.15;
    let service = Duration::from_millis(250);
    // Every wait is a number of services, and a median may lie at the border of two.
    let step = service.as_secs_f64() * (1.0 + MARGIN);
    let stub = StubRegistry::builder().cap(8).answer_delay(service).blob_size(BLOB).start().await;
    let registry = format!("[registries.stub]\nhosts = [\"{}\"]\ncap = 8\nshare = \"1/2\"\n", stub.address());
    let start = async || Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
    let sidecars = [start().await, start().await];
    let storms = sidecars.iter().map(|sidecar| {
        let storm = Storm { clients: PULLS, blob: BLOB, ..Storm::new(Destination::AbsoluteForm(sidecar.proxy())) };
        tokio::spawn(storm.run(stub.address()))
    });
    let began = std::time::Instant::now();
    for storm in storms.collect::<Vec<_>>() {
        let tally = storm.await.unwrap();
        assert_eq!((tally.ok, tally.failed.len()), (PULLS, 0), "{tally:?}");
    }
    let took = began.elapsed().as_secs_f64();
    for sidecar in &sidecars {
        let logged = async || sidecar.finished().len();
        eventually_is("a log line for each request", Duration::from_secs(5), 2 * PULLS, logged).await;
    }
    let lines: Vec<Value> = sidecars.iter().flat_map(Sidecar::finished).collect();
    let mut waits: Vec<f64> = lines.iter().map(|line| line["waited_ms"].as_f64().unwrap() / 1e3).collect();
    let took_each = service_ms(&lines);
    waits.sort_by(f64::total_cmp);

    let folder = tempfile::tempdir().unwrap();
    let logs = sidecars.iter().map(|sidecar| {
        let path = folder.path().join(sidecar.pid().to_string());
        std::fs::write(&path, sidecar.log_text()).unwrap();
        format!("--trace {} ", path.display())
    });
    let recorded = logs.collect::<String>() + "--registry stub --cap 8";
    let pulls = format!(
        "--nodes 2 --cap 8 --images {PULLS} --layers 1 --small 1 --layer-size 0B --service-time {took_each:.0}ms"
    );
    for line in [pulls, recorded] {
        let report = report(&line).await;
        let run = &report["run"];
        assert_eq!((&run["served"], waits.len()), (&Value::from(4 * PULLS), 4 * PULLS));
        assert_as_planned(run, took, &waits, |planned| step.max(MARGIN * planned));
    }
}

/// 0 for a plan that holds, 1 for one that does not, 2 for a question that means nothing; nothing on standard error but that.
#[tokio::test]
async fn the_exit_status_says_whether_the_plan_holds() {
    for (line, status, out, said) in [
        ("--nodes 20 --cap 200 --images 3 --layers 8 --layer-size 100MiB --bandwidth 1GiB/s", 0, "Feasible", ""),
        ("--nodes 500 --cap 200 --share static", 1, "0.4 of a slot", ""),
        ("--nodes 500 --cap 200 --share 1/20 --images 3", 1, "add up to 5000 connections", ""),
        ("--nodes 20", 2, "", "--cap"),
        ("--nodes 20 --cap 20 --share two", 2, "", "--share two"),
    ] {
        let (text, ended, complaint) = plan(line).await;
        assert_eq!(ended, Some(status), "{line}: {text}{complaint}");
        assert!(text.contains(out) && text.is_empty() == out.is_empty(), "{line}: {text}");
        assert!(complaint.contains(said) && complaint.is_empty() == said.is_empty(), "{line}: {complaint}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{line}: {text}");
        assert!(!text.contains('\x1b'), "{line}: {text}");
    }
}

/// A terminal shows a bar, and Ctrl-C ends a long plan at once: the bar is gone, and no half of a report is printed.
#[tokio::test]
async fn a_terminal_shows_a_bar_and_ctrl_c_ends_it() {
    let mut run = on_terminal((24, 80), (" of 2300000 requests", 2), env!("CARGO_BIN_EXE_roadstead"));
    let run = run
        .arg("plan")
        .args("--nodes 1000 --cap 1000 --images 100 --layers 20 --layer-size 1MiB --bandwidth 1GiB/s".split(' '))
        .output();
    let run = tokio::time::timeout(SOON, run).await.expect("an end").unwrap();
    let drawn = String::from_utf8_lossy(&run.stdout);
    assert_eq!(run.status.code(), Some(130), "{drawn:?}");
    assert!(drawn.trim_end().ends_with("\x1b[2Kroadstead: interrupted"), "{drawn:?}");
    assert!(!drawn.contains("makespan") && !drawn.contains("easible"), "{drawn:?}");
}
