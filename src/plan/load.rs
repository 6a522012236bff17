//! The load of a plan: the pulls that the arguments describe, or a recorded one.

use super::arguments::{PlanArguments, pair};
use super::scenario::{Part, Pull};
use super::timeline::real;
use super::trace::{self, TracedRequest};
use crate::admission::{ClassId, Moment, SlotUse};
use crate::config::{ClassConfig, DEFAULT_CLASS, Share};

/// Requests at most, which fit a small machine's memory.
const MOST_REQUESTS: usize = 20_000_000;

/// All pulls of all nodes, node by node. The parts of the classes hold for every stretch of them.
pub fn pulls(arguments: &PlanArguments, nodes: usize, classes: &[ClassConfig]) -> Result<Vec<Pull>, String> {
    let images = arguments.images as usize;
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
        let offset = arguments.within.mul_f64(real(node as u128) / real(nodes as u128));
        let class = parts.next();
        Pull {
            node,
            class,
            client: classes[class.0].name.as_str().into(),
            slot_use: if arguments.tunnels { SlotUse::Tunnel } else { SlotUse::Request },
            starts: Moment(offset),
            small,
            layers,
            parallel: arguments.parallel as usize,
        }
    };
    Ok((0..nodes * images).map(pull).collect())
}

/// The recorded requests of each node, or none without `--trace`.
pub fn traces(arguments: &PlanArguments, registry: Option<&str>) -> Result<Vec<Vec<TracedRequest>>, String> {
    let registry = registry.or(arguments.registry.as_deref());
    arguments.trace.iter().map(|path| trace::read(path, registry)).collect()
}

/// The requests of the traces, each a pull of its own that begins when it arrived. The nodes take the traces in turn.
pub fn traced_pulls(
    arguments: &PlanArguments,
    nodes: usize,
    classes: &[ClassConfig],
    traces: &[Vec<TracedRequest>],
) -> Result<Vec<Pull>, String> {
    let first = traces.iter().flatten().map(|request| request.arrived).min().unwrap_or_default();
    let requests: usize = (0..nodes).map(|node| traces[node % traces.len()].len()).sum();
    if requests > MOST_REQUESTS {
        return Err(format!("--nodes: the traces of all nodes have {requests} requests; at most {MOST_REQUESTS}"));
    }
    let pull = |node: usize, request: &TracedRequest| {
        let recorded = request.lasted.filter(|_| arguments.bandwidth.is_none());
        let service = recorded.unwrap_or(arguments.service_time);
        let part = Part { count: 1, service, bytes: request.bytes };
        let (small, layers) = if request.is_blob { (Part::default(), part) } else { (part, Part::default()) };
        Pull {
            node,
            class: ClassId(classes.iter().position(|class| class.name == request.class).unwrap_or_default()),
            client: request.client.as_str().into(),
            slot_use: if request.is_tunnel { SlotUse::Tunnel } else { SlotUse::Request },
            starts: Moment(request.arrived.saturating_sub(first)),
            small,
            layers,
            parallel: 1,
        }
    };
    let all = (0..nodes).flat_map(|node| traces[node % traces.len()].iter().map(move |request| (node, request)));
    Ok(all.map(|(node, request)| pull(node, request)).collect())
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
