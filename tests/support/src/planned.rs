//! A run of real sidecars beside what `roadstead plan` says of it.

use serde_json::Value;

use crate::load::median;

/// Compares the seconds that all took, and the waits from the shortest on, with the `run` of a plan.
///
/// # Panics
/// When one of them is further from the plan than `margin` allows for the planned seconds.
pub fn assert_as_planned(run: &Value, took: f64, waits: &[f64], margin: impl Fn(f64) -> f64) {
    let wait = &run["classes"][0]["wait_seconds"];
    for (figure, real, planned) in [
        ("makespan", took, &run["makespan_seconds"]),
        ("median wait", waits[waits.len().div_ceil(2) - 1], &wait["p50"]),
        ("longest wait", waits[waits.len() - 1], &wait["max"]),
    ] {
        let planned = planned.as_f64().expect("a plan has seconds");
        println!("{figure}: {real:.3} s, planned {planned:.3} s");
        assert!((real - planned).abs() < margin(planned), "{figure}: {real} and not {planned}: {run}");
    }
}

/// The median time of requests outside of the queue, by their log lines, in milliseconds: a busy machine takes longer than the registry.
///
/// # Panics
/// When there is no line, or one without its times.
#[must_use]
pub fn service_ms<'a>(finished: impl IntoIterator<Item = &'a Value>) -> f64 {
    let time = |line: &Value, key| line[key].as_f64().expect("each line has its times");
    median(finished.into_iter().map(|line| time(line, "took_ms") - time(line, "waited_ms")).collect())
}
