//! The report of a plan: one struct, from which the text and the JSON are made.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::scenario::{PlannedClass, Scenario};
use super::tally::{ClassTally, Tally};
use super::timeline::{Levels, real, rounded};
use super::units::{bytes, span};
use crate::admission::SlotUse;

/// Columns of the plot, and points of the timeline.
const POINTS: usize = 64;

/// The nodes and the registry of the question.
#[derive(Clone, Debug, Serialize)]
pub struct Fleet {
    pub nodes: usize,
    pub cap: usize,
    pub share: String,
    /// Absent where slots are lent.
    pub slots_per_node: Option<usize>,
    /// Connections that the registry stands.
    pub stands: usize,
    pub bandwidth_bytes_per_second: Option<u64>,
}

impl Fleet {
    /// Those of all nodes together.
    pub fn slots(&self) -> usize {
        self.slots_per_node.map_or(self.cap, |slots| slots * self.nodes)
    }
}

#[derive(Debug, Serialize)]
pub struct PlanReport {
    /// Every request is served within the patience of its puller, and the registry is never overloaded.
    pub feasible: bool,
    pub fleet: Fleet,
    /// Absent where a node has no slot.
    pub run: Option<RunReport>,
    pub problems: Vec<String>,
    pub advice: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct RunReport {
    pub pulls: usize,
    pub requests: usize,
    pub served: usize,
    pub bytes: u64,
    /// From the first arrival to the last byte; null if something was left at the end of the plan.
    #[serde(rename = "makespan_seconds", serialize_with = "some_seconds")]
    pub makespan: Option<Duration>,
    #[serde(rename = "pull_seconds")]
    pub pull: Spread,
    pub classes: Vec<ClassReport>,
    pub most_connections: usize,
    /// Connections with a request, of the cap, over the makespan.
    pub connections_used: f64,
    /// Bytes, of those that the bandwidth allows in the makespan.
    pub bandwidth_used: Option<f64>,
    pub timeline: Vec<Levels<f64>>,
}

/// How one quantity spreads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    #[serde(serialize_with = "seconds")]
    pub p50: Duration,
    #[serde(serialize_with = "seconds")]
    pub p99: Duration,
    #[serde(serialize_with = "seconds")]
    pub max: Duration,
}

#[derive(Debug, Serialize)]
pub struct ClassReport {
    pub class: String,
    pub kind: SlotUse,
    pub served: usize,
    #[serde(rename = "wait_seconds")]
    pub wait: Spread,
    pub puller: &'static str,
    /// Null: it waits for ever.
    #[serde(rename = "patience_seconds", serialize_with = "some_seconds")]
    pub patience: Option<Duration>,
    #[serde(rename = "queue_timeout_seconds", serialize_with = "seconds")]
    pub queue_timeout: Duration,
    pub refused: usize,
    pub left: usize,
    pub overloaded: usize,
}

impl PlanReport {
    /// The report of a fleet in which no node has a slot.
    pub fn without_slots(fleet: Fleet, slots: &str) -> PlanReport {
        let Fleet { nodes, cap, .. } = fleet;
        let problem = format!("A node gets {slots} of a slot: a cap of {cap} among {nodes} nodes. No node can start.");
        let advice = format!(
            "Fixed shares need a cap of at least {nodes}, or at most {cap} nodes that ask the registry: with Dragonfly, \
             let the seed clients alone go back to the source."
        );
        let lease = "Leased slots go to the nodes that need them, in turns if need be: ask again with --share lease.";
        PlanReport {
            feasible: false,
            fleet,
            run: None,
            problems: vec![problem],
            advice: vec![advice, lease.to_owned()],
        }
    }

    /// The report of a fleet whose floors are more than the cap, or whose turns are too short.
    pub fn cannot_lend(fleet: Fleet, problem: String, advice: String) -> PlanReport {
        PlanReport { feasible: false, fleet, run: None, problems: vec![problem], advice: vec![advice] }
    }

    /// Says what fixed shares would have made of it.
    pub fn compare(&mut self, fixed: &Scenario, tally: &Tally) {
        let fleet = Fleet { slots_per_node: Some(fixed.limits.slots), ..self.fleet.clone() };
        let other = PlanReport::new(fleet, fixed, tally);
        let (Some(own), Some(run)) = (&self.run, &other.run) else { return };
        let told = |run: &RunReport| {
            run.makespan.map_or_else(|| "would not end".to_owned(), |span_of| format!("takes {}", span(span_of)))
        };
        let verdict = if other.feasible { "" } else { ", and is not feasible" };
        let slots = fixed.limits.slots;
        let part = if slots == 1 { "1 slot".to_owned() } else { format!("{slots} slots") };
        self.advice.push(format!(
            "With fixed shares, {part} for each node, it {}{verdict}; a pull takes {} in the middle, instead of {}.",
            told(run),
            span(run.pull.p50),
            span(own.pull.p50),
        ));
    }

    pub fn new(fleet: Fleet, scenario: &Scenario, tally: &Tally) -> PlanReport {
        let run = RunReport::new(&fleet, scenario, tally);
        let problems = problems(&fleet, &run);
        let advice = advice(&fleet, &run, scenario);
        PlanReport { feasible: problems.is_empty(), fleet, run: Some(run), problems, advice }
    }
}

impl RunReport {
    fn new(fleet: &Fleet, scenario: &Scenario, tally: &Tally) -> RunReport {
        let (served, requests) = (tally.served(), scenario.requests());
        let first = scenario.pulls.iter().map(|pull| pull.starts).min().unwrap_or_default();
        let lasted = tally.last_served.since(first);
        let nanos = real(lasted.as_nanos().max(1));
        let classes = tally.all().filter(|(_, _, tally)| tally.happened());
        let classes = classes.map(|(class, kind, tally)| ClassReport::new(&scenario.classes[class], kind, tally));
        let allowed = |bandwidth: u64| real(u128::from(bandwidth)) * lasted.as_secs_f64().max(1e-9);
        RunReport {
            pulls: scenario.pulls.len(),
            requests,
            served,
            bytes: scenario.bytes(),
            makespan: (served == requests).then_some(lasted),
            pull: Spread::of(&tally.pulls),
            classes: classes.collect(),
            most_connections: tally.most_open,
            connections_used: rounded(real(tally.timeline.total().busy) / nanos / real(fleet.cap.max(1) as u128)),
            bandwidth_used: scenario
                .bandwidth
                .map(|bandwidth| rounded(real(u128::from(scenario.bytes())) / allowed(bandwidth))),
            timeline: tally.timeline.averages(POINTS).into_iter().map(Levels::rounded).collect(),
        }
    }
}

impl Spread {
    pub fn of(spans: &[Duration]) -> Spread {
        let mut sorted = spans.to_vec();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Spread { p50: at(50), p99: at(99), max: at(100) }
    }
}

impl ClassReport {
    fn new(class: &PlannedClass, slot_use: SlotUse, tally: &ClassTally) -> ClassReport {
        ClassReport {
            class: class.name.clone(),
            kind: slot_use,
            served: tally.waits.len(),
            wait: Spread::of(&tally.waits),
            puller: class.puller.name(),
            patience: class.puller.patience(slot_use),
            queue_timeout: class.queue_timeout(slot_use),
            refused: tally.refused,
            left: tally.left,
            overloaded: tally.overloaded,
        }
    }

    /// The wait after which a request ends unserved: the shorter of its two bounds.
    pub fn limit(&self) -> Duration {
        self.patience.map_or(self.queue_timeout, |patience| patience.min(self.queue_timeout))
    }
}

fn problems(fleet: &Fleet, run: &RunReport) -> Vec<String> {
    let mut problems = Vec::new();
    for class in &run.classes {
        let ClassReport { class: name, refused, left, overloaded, puller, .. } = class;
        let limit = span(class.limit());
        if *refused > 0 {
            problems.push(format!("Class {name}: the queue refuses {refused} requests after {limit}."));
        }
        if *left > 0 {
            problems.push(format!("Class {name}: {left} requests leave, because {puller} waits for {limit} at most."));
        }
        if *overloaded > 0 {
            problems.push(format!(
                "Class {name}: the registry fails {overloaded} requests, because more than {} connections are open.",
                fleet.stands
            ));
        }
    }
    if run.makespan.is_none() {
        let left = run.requests - run.served;
        problems.push(format!("{left} of {} requests are not served when the plan ends.", run.requests));
    }
    problems
}

fn advice(fleet: &Fleet, run: &RunReport, scenario: &Scenario) -> Vec<String> {
    let mut advice = Vec::new();
    let all = fleet.slots();
    if all > fleet.cap {
        advice.push(format!(
            "The shares of {} nodes add up to {all} connections, more than the cap of {}: a share of 1/{} keeps it.",
            fleet.nodes, fleet.cap, fleet.nodes
        ));
    }
    if run.classes.iter().any(|class| class.refused + class.left > 0) {
        advice.push(bound(run, scenario, all));
        if all < fleet.cap {
            let unused = fleet.cap - all;
            advice.push(format!("{unused} of the cap's {} connections are given to no node.", fleet.cap));
        }
    }
    for class in &run.classes {
        let ClassReport { class: name, puller, patience, queue_timeout, .. } = class;
        let (patience, timeout) = (patience.map(span), span(*queue_timeout));
        match patience {
            _ if class.left > 0 => advice.push(format!(
                "Class {name}: {puller} leaves before the queue refuses. A queue timeout below {} tells it why.",
                span(class.limit())
            )),
            None if class.refused > 0 => advice.push(format!(
                "Class {name}: {puller} waits without a bound, and the queue refuses it after {timeout}: raise its timeout.",
            )),
            Some(patience) if class.refused > 0 && class.patience > Some(*queue_timeout * 2) => advice.push(format!(
                "Class {name}: {puller} waits for {patience}, and the queue refuses it after {timeout}: raise its timeout.",
            )),
            _ => {}
        }
    }
    advice
}

/// The cause of the waits: the bandwidth or the slots, the one that needs longer by itself.
fn bound(run: &RunReport, scenario: &Scenario, slots: usize) -> String {
    let by_bandwidth = scenario.bandwidth.map_or(Duration::ZERO, |bandwidth| quotient(run.bytes, bandwidth));
    let by_slots = scenario.service() / u32::try_from(slots.max(1)).unwrap_or(u32::MAX);
    let remedy = "let fewer nodes ask the registry at once (Dragonfly, --within), or use pullers that wait longer";
    if by_bandwidth > by_slots {
        let (bytes, least) = (bytes(run.bytes), span(by_bandwidth));
        format!("The bandwidth binds: {bytes} take {least} at least, whatever the cap. To wait less, {remedy}.")
    } else {
        let least = span(by_slots);
        format!(
            "The slots bind: {slots} need {least} for all requests. Raise the cap if the registry stands it, {remedy}."
        )
    }
}

fn quotient(bytes: u64, bandwidth: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bandwidth.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

fn seconds<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((span.as_secs_f64() * 1e6).round() / 1e6)
}

#[expect(clippy::ref_option, reason = "the form that serde asks for")]
fn some_seconds<S: Serializer>(span: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    span.map(|span| (span.as_secs_f64() * 1e6).round() / 1e6).serialize(serializer)
}
