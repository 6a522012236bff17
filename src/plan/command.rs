//! From the arguments of `roadstead plan`, and a config, to the scenario that they ask for.

use std::time::Duration;

use super::arguments::{PlanArguments, pair};
use super::load;
use super::puller::PlannedPuller;
use super::report::{Fleet, PlanReport};
use super::scenario::{PlannedClass, Scenario};
use super::trace::TracedRequest;
use crate::admission::{Limits, RateLimit};
use crate::config::{ClassConfig, Config, RegistryConfig, Share};
use crate::lease::checks::{floor_problem, turn_problem};
use crate::lease::settings::LeaseConfig;

/// The meaning of the arguments.
#[derive(Debug)]
pub enum Question {
    /// No node can start, or not all.
    Impossible(Box<PlanReport>),
    Run(Fleet, Box<Scenario>),
}

/// The meaning of the arguments, with this config.
/// Fails, with the argument, where they do not fit.
pub fn question(arguments: &PlanArguments, config: Option<&Config>) -> Result<Question, String> {
    let registry = registry(arguments, config)?;
    let traces = load::traces(arguments, config.is_some().then_some(registry.name.as_str()))?;
    let nodes = arguments.nodes.unwrap_or_else(|| u32::try_from(traces.len()).unwrap_or(u32::MAX));
    let share = match arguments.share.as_deref() {
        None if config.is_some() => registry.share,
        None | Some("static") => Share::parse(&format!("1/{nodes}")).map_err(|error| error.to_string())?,
        Some(text) => Share::parse(text).map_err(|error| format!("--share {text}: {error}"))?,
    };
    let urls = if share == Share::LEASED { 1 } else { urls_with_caps(&registry) };
    let cap = registry.cap as usize * urls;
    let lease = config.and_then(|config| config.lease.clone()).unwrap_or_default();
    let lease = (share == Share::LEASED).then_some(LeaseConfig { nodes, ..lease });
    let slots = lease.as_ref().map_or_else(|| share.slots(registry.cap) * urls, |lease| lease.floor as usize);
    let fleet = Fleet {
        nodes: nodes as usize,
        cap,
        share: share.to_string(),
        slots_per_node: lease.is_none().then_some(slots),
        stands: arguments.stands.map_or(cap, |stands| stands as usize),
        bandwidth_bytes_per_second: arguments.bandwidth,
    };
    let impossible = match &lease {
        Some(lease) => cannot_lend(&fleet, lease, registry.cap),
        None => (slots == 0).then(|| PlanReport::without_slots(fleet.clone(), &share.of(registry.cap))),
    };
    if let Some(report) = impossible {
        return Ok(Question::Impossible(Box::new(report)));
    }
    let terms = lease.map(|lease| lease.terms(registry.cap));
    let configs = class_configs(arguments, config, &traces)?;
    let classes = classes(arguments, &configs, &registry)?;
    let most = terms.as_ref().map_or(slots, |_| cap);
    let limits = Limits {
        slots,
        depth: registry.queue.depth,
        rate: registry.rate.map(|rate| RateLimit { period: rate.period, burst: rate.burst }),
        idle_timeout: registry.idle_timeout,
        max_lifetime: registry.max_lifetime,
        // The default of the config is its own number of slots.
        max_connecting: if registry.max_connecting == registry.slots { most } else { registry.max_connecting },
        keep_place: registry.queue.keep_place,
        weights: configs.iter().map(|class| class.weight).collect(),
    };
    let pulls = if traces.is_empty() {
        load::pulls(arguments, nodes as usize, &configs)?
    } else {
        load::traced_pulls(arguments, nodes as usize, &configs, &traces)?
    };
    let last = pulls.iter().map(|pull| pull.starts).max().unwrap_or_default();
    let (nodes, bandwidth, stands) = (fleet.nodes, arguments.bandwidth, fleet.stands);
    let (round_trip, horizon) = (arguments.round_trip, last + arguments.until);
    Ok(Question::Run(
        fleet,
        Box::new(Scenario { nodes, limits, lease: terms, bandwidth, stands, round_trip, classes, pulls, horizon }),
    ))
}

/// The URLs of which each has a cap of its own.
fn urls_with_caps(registry: &RegistryConfig) -> usize {
    registry.mirror.as_ref().filter(|mirror| mirror.cap_per_upstream).map_or(1, |mirror| mirror.upstream.len())
}

/// Why leases do not fit so many nodes, and what to do.
fn cannot_lend(fleet: &Fleet, lease: &LeaseConfig, cap: u32) -> Option<PlanReport> {
    let without_floor = || "Without a floor, all of the cap is lent.".to_owned();
    let fewer = || {
        let enough = lease.nodes.div_ceil(20);
        format!(
            "A cap of {enough} is enough for turns of a second. Or let fewer nodes ask the registry: with Dragonfly, the seed clients alone."
        )
    };
    let floors = floor_problem(lease, cap, "the cap").map(|problem| (problem, without_floor()));
    let (problem, advice) = floors.or_else(|| turn_problem(lease, cap, "the cap").map(|problem| (problem, fewer())))?;
    Some(PlanReport::cannot_lend(fleet.clone(), problem, advice))
}

/// The registry that the config has, or one of defaults; with the cap of the arguments.
fn registry(arguments: &PlanArguments, config: Option<&Config>) -> Result<RegistryConfig, String> {
    let mut registry = match (config, arguments.registry.as_deref()) {
        (None, None) => RegistryConfig::default(),
        (None, Some(_)) if !arguments.trace.is_empty() => RegistryConfig::default(),
        (None, Some(name)) => {
            return Err(format!("--registry {name}: name the config that has it, with --config FILE"));
        }
        (Some(config), name) => {
            let mut named = config.registries.iter().filter(|registry| name.is_none_or(|name| registry.name == name));
            match (named.next(), named.next()) {
                (Some(registry), None) => registry.clone(),
                (Some(_), Some(_)) => return Err(format!("choose one with --registry: {}", config.names())),
                (None, _) => return Err(format!("--registry: the config has only {}", config.names())),
            }
        }
    };
    match arguments.cap {
        Some(cap) => registry.cap = cap,
        None if config.is_none() => return Err("--cap N is required without --config".to_owned()),
        None => {}
    }
    Ok(registry)
}

/// The classes of the config and of the arguments, `default` first.
fn class_configs(
    arguments: &PlanArguments,
    config: Option<&Config>,
    traces: &[Vec<TracedRequest>],
) -> Result<Vec<ClassConfig>, String> {
    let mut classes = config.map_or_else(|| vec![ClassConfig::default()], |config| config.classes.clone());
    for request in traces.iter().flatten() {
        if !classes.iter().any(|class| class.name == request.class) {
            classes.push(ClassConfig { name: request.class.clone(), ..ClassConfig::default() });
        }
    }
    for (option, given) in [("--class", &arguments.class), ("--weight", &arguments.weight)] {
        for text in given {
            let (name, _) = pair(option, text)?;
            if !classes.iter().any(|class| class.name == name) {
                classes.push(ClassConfig { name: name.to_owned(), ..ClassConfig::default() });
            }
        }
    }
    for text in &arguments.weight {
        let (name, weight) = pair("--weight", text)?;
        let weight = weight.parse().ok().filter(|weight| (1..=1000).contains(weight));
        let weight = weight.ok_or_else(|| format!("--weight {text}: a weight is a whole number from 1 to 1000"))?;
        classes.iter_mut().filter(|class| class.name == name).for_each(|class| class.weight = weight);
    }
    Ok(classes)
}

fn classes(
    arguments: &PlanArguments,
    configs: &[ClassConfig],
    registry: &RegistryConfig,
) -> Result<Vec<PlannedClass>, String> {
    let timeout = |of_class: Option<Duration>, otherwise| arguments.queue_timeout.or(of_class).unwrap_or(otherwise);
    let planned = |class: &ClassConfig| PlannedClass {
        name: class.name.clone(),
        puller: PlannedPuller::Containerd,
        request_timeout: timeout(class.request_timeout, registry.queue.request_timeout),
        tunnel_timeout: timeout(class.tunnel_timeout, registry.queue.tunnel_timeout),
    };
    let mut classes: Vec<PlannedClass> = configs.iter().map(planned).collect();
    for text in &arguments.puller {
        let (class, puller) =
            text.split_once('=').map_or((None, text.as_str()), |(class, puller)| (Some(class), puller));
        let puller = <PlannedPuller as clap::ValueEnum>::from_str(puller, false)
            .map_err(|_| format!("--puller {text}: a puller is containerd, docker, podman, dfdaemon or nydusd"))?;
        let mut named = classes.iter_mut().filter(|known| class.is_none_or(|class| known.name == class)).peekable();
        if named.peek().is_none() {
            return Err(format!("--puller {text}: no class has this name"));
        }
        named.for_each(|class| class.puller = puller);
    }
    Ok(classes)
}
