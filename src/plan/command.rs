//! The arguments of `roadstead plan`, and the scenario that they ask for.

use std::time::Duration;

use super::puller::Puller;
use super::report::Fleet;
use super::scenario::{Part, PlannedClass, Pull, Scenario};
use super::units;
use crate::admission::{ClassId, Limits, Moment, RateLimit, SlotUse};
use crate::config::{ClassConfig, Config, DEFAULT_CLASS, RegistryConfig, Share};

/// Nodes, pulls and connections at most: beyond it, a plan is a slip of the pen.
const MOST: i64 = 1_000_000;
/// Requests at most, which fit a small machine's memory.
const MOST_REQUESTS: usize = 20_000_000;

/// Say what would happen if so many nodes pulled so much at once: by the real scheduler, in virtual time.
#[derive(Debug, clap::Args)]
pub struct PlanArguments {
    /// Nodes, each with a sidecar of its own.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST))]
    nodes: u32,

    /// Connections that the registry can serve, all nodes together [default: that of the config].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST))]
    cap: Option<u32>,

    /// Each node's part of the cap: `static` for equal parts, a fraction such as 1/20, or `lease` [default: that of the
    /// config, else static].
    #[arg(long, value_name = "SHARE")]
    share: Option<String>,

    /// The registry of the config whose cap, share, rate and queue are taken; not needed if there is only one.
    #[arg(long, value_name = "NAME")]
    registry: Option<String>,

    /// Images that each node pulls.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=MOST))]
    images: u32,

    /// Layers of an image.
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u32).range(0..=MOST))]
    layers: u32,

    /// Bytes of a layer.
    #[arg(long, value_name = "SIZE", default_value = "50MiB", value_parser = units::size)]
    layer_size: u64,

    /// Layers of one image at once, as containerd has it.
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=MOST))]
    parallel: u32,

    /// Small requests before the layers, one after the other: token, manifest, config.
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(0..=MOST))]
    small: u32,

    /// The pulls of the nodes begin evenly over this time [default: all at once].
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    within: Duration,

    /// Bytes a second that the registry sends, all transfers together [default: no bound].
    #[arg(long, value_name = "RATE", value_parser = units::rate)]
    bandwidth: Option<u64>,

    /// From a request to the first byte of its answer.
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = humantime::parse_duration)]
    service_time: Duration,

    /// A round trip to the registry; a dial takes three, a close one.
    #[arg(long, value_name = "TIME", default_value = "1ms", value_parser = humantime::parse_duration)]
    round_trip: Duration,

    /// Connections above which the registry fails requests [default: the cap].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST))]
    stands: Option<u32>,

    /// The requests are tunnels (`HTTPS_PROXY`), one connection for each, and not visible ones (the mirror).
    #[arg(long)]
    tunnels: bool,

    /// The puller, whose patience counts; NAME=PULLER for one class.
    #[arg(long, value_name = "PULLER")]
    puller: Vec<String>,

    /// The part of the pulls that a class has, such as interactive=20%; the rest is of the class default.
    #[arg(long, value_name = "NAME=PART")]
    class: Vec<String>,

    /// The weight of a class [default: that of the config, else 1].
    #[arg(long, value_name = "NAME=N")]
    weight: Vec<String>,

    /// Longest wait in the queue, for all classes [default: that of the config, else the sidecar's default].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    queue_timeout: Option<Duration>,

    /// The plan ends after this time, whatever is under way.
    #[arg(long, value_name = "TIME", default_value = "1day", value_parser = humantime::parse_duration)]
    until: Duration,

    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The meaning of the arguments.
#[derive(Debug)]
pub enum Question {
    /// The share leaves a node without a slot; the amount that it would have.
    NoSlot(Fleet, String),
    Run(Fleet, Box<Scenario>),
}

/// The meaning of the arguments, with this config.
/// Fails, with the argument, where they do not fit.
pub fn question(arguments: &PlanArguments, config: Option<&Config>) -> Result<Question, String> {
    let registry = registry(arguments, config)?;
    let nodes = arguments.nodes;
    let share = match arguments.share.as_deref() {
        None if config.is_some() => registry.share,
        None | Some("static") => Share::parse(&format!("1/{nodes}")).map_err(|error| error.to_string())?,
        Some(text) => Share::parse(text).map_err(|error| format!("--share {text}: {error}"))?,
    };
    let urls =
        registry.mirror.as_ref().filter(|mirror| mirror.cap_per_upstream).map_or(1, |mirror| mirror.upstream.len());
    let (cap, slots) = (registry.cap as usize * urls, share.slots(registry.cap) * urls);
    let fleet = Fleet {
        nodes: nodes as usize,
        cap,
        share: share.to_string(),
        slots_per_node: slots,
        stands: arguments.stands.map_or(cap, |stands| stands as usize),
        bandwidth_bytes_per_second: arguments.bandwidth,
    };
    if slots == 0 {
        return Ok(Question::NoSlot(fleet, share.of(registry.cap)));
    }
    let configs = class_configs(arguments, config)?;
    let classes = classes(arguments, &configs, &registry)?;
    let limits = Limits {
        slots,
        depth: registry.queue.depth,
        rate: registry.rate.map(|rate| RateLimit { period: rate.period, burst: rate.burst }),
        idle_timeout: registry.idle_timeout,
        max_lifetime: registry.max_lifetime,
        // The default of the config is its own number of slots.
        max_connecting: if registry.max_connecting == registry.slots { slots } else { registry.max_connecting },
        keep_place: registry.queue.keep_place,
        weights: configs.iter().map(|class| class.weight).collect(),
    };
    let pulls = pulls(arguments, &configs)?;
    let (nodes, bandwidth, stands) = (fleet.nodes, arguments.bandwidth, fleet.stands);
    let (round_trip, horizon) = (arguments.round_trip, arguments.until);
    Ok(Question::Run(
        fleet,
        Box::new(Scenario { nodes, limits, bandwidth, stands, round_trip, classes, pulls, horizon }),
    ))
}

/// The registry that the config has, or one of defaults; with the cap of the arguments.
fn registry(arguments: &PlanArguments, config: Option<&Config>) -> Result<RegistryConfig, String> {
    let mut registry = match (config, arguments.registry.as_deref()) {
        (None, None) => RegistryConfig::default(),
        (None, Some(name)) => {
            return Err(format!("--registry {name}: name the config that has it, with --config FILE"));
        }
        (Some(config), name) => {
            let mut named = config.registries.iter().filter(|registry| name.is_none_or(|name| registry.name == name));
            let known =
                || config.registries.iter().map(|registry| registry.name.as_str()).collect::<Vec<_>>().join(", ");
            match (named.next(), named.next()) {
                (Some(registry), None) => registry.clone(),
                (Some(_), Some(_)) => return Err(format!("choose one with --registry: {}", known())),
                (None, _) => return Err(format!("--registry: the config has only {}", known())),
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
fn class_configs(arguments: &PlanArguments, config: Option<&Config>) -> Result<Vec<ClassConfig>, String> {
    let mut classes = config.map_or_else(|| vec![ClassConfig::default()], |config| config.classes.clone());
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
        puller: Puller::Containerd,
        request_timeout: timeout(class.request_timeout, registry.queue.request_timeout),
        tunnel_timeout: timeout(class.tunnel_timeout, registry.queue.tunnel_timeout),
    };
    let mut classes: Vec<PlannedClass> = configs.iter().map(planned).collect();
    for text in &arguments.puller {
        let (class, puller) =
            text.split_once('=').map_or((None, text.as_str()), |(class, puller)| (Some(class), puller));
        let puller = <Puller as clap::ValueEnum>::from_str(puller, false)
            .map_err(|_| format!("--puller {text}: a puller is containerd, docker, podman, dfdaemon or nydusd"))?;
        let mut named = classes.iter_mut().filter(|known| class.is_none_or(|class| known.name == class)).peekable();
        if named.peek().is_none() {
            return Err(format!("--puller {text}: no class has this name"));
        }
        named.for_each(|class| class.puller = puller);
    }
    Ok(classes)
}

/// All pulls of all nodes, node by node. The parts of the classes hold for every stretch of them.
fn pulls(arguments: &PlanArguments, classes: &[ClassConfig]) -> Result<Vec<Pull>, String> {
    let (nodes, images) = (arguments.nodes as usize, arguments.images as usize);
    let layers =
        Part { count: arguments.layers as usize, service: arguments.service_time, bytes: arguments.layer_size };
    let small = Part { count: arguments.small as usize, service: arguments.service_time, bytes: 0 };
    let requests =
        (nodes * images).checked_mul(small.count + layers.count).filter(|requests| *requests <= MOST_REQUESTS);
    if requests.is_none_or(|requests| requests == 0) {
        return Err(format!("nodes x images x (layers + small) must be from 1 to {MOST_REQUESTS} requests"));
    }
    let mut parts = ClassParts::new(arguments, classes)?;
    let pull = |index: usize| {
        let node = index / images;
        let offset =
            arguments.within.mul_f64(super::timeline::real(node as u128) / super::timeline::real(nodes as u128));
        Pull {
            node,
            class: parts.next(),
            slot_use: if arguments.tunnels { SlotUse::Tunnel } else { SlotUse::Request },
            starts: Moment(offset),
            small,
            layers,
            parallel: arguments.parallel as usize,
        }
    };
    Ok((0..nodes * images).map(pull).collect())
}

/// Gives each class its part of the pulls, as evenly as they can be dealt.
struct ClassParts {
    /// In millionths, by the number of the class.
    parts: Vec<i64>,
    due: Vec<i64>,
}

const WHOLE: u32 = 1_000_000;

impl ClassParts {
    fn new(arguments: &PlanArguments, classes: &[ClassConfig]) -> Result<ClassParts, String> {
        let mut parts = vec![0; classes.len()];
        for text in &arguments.class {
            let (name, part) = pair("--class", text)?;
            let share = Share::parse(part).map_err(|error| format!("--class {text}: {error}"))?;
            let index = classes.iter().position(|class| class.name == name).unwrap_or_default();
            parts[index] += i64::try_from(share.slots(WHOLE)).unwrap_or_default();
        }
        let rest = i64::from(WHOLE) - parts.iter().sum::<i64>();
        if rest < 0 {
            return Err(format!(
                "--class: the parts are more than the whole; the rest is of the class {DEFAULT_CLASS}"
            ));
        }
        parts[0] += rest;
        Ok(ClassParts { due: vec![0; parts.len()], parts })
    }

    /// The class of the next pull: that which has the least of what is due to it.
    fn next(&mut self) -> ClassId {
        for (due, part) in self.due.iter_mut().zip(&self.parts) {
            *due += part;
        }
        let most = (0..self.due.len()).rev().max_by_key(|class| self.due[*class]).unwrap_or_default();
        self.due[most] -= i64::from(WHOLE);
        ClassId(most)
    }
}

fn pair<'a>(option: &str, text: &'a str) -> Result<(&'a str, &'a str), String> {
    let pair = text.split_once('=').filter(|(name, value)| !name.is_empty() && !value.is_empty());
    pair.ok_or_else(|| format!("{option} {text}: write NAME=VALUE, such as interactive=20%"))
}
