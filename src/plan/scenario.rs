//! The question of a plan: so many nodes with so many slots, a registry, and pulls that come at their times.

use std::time::Duration;

use super::puller::PlannedPuller;
use crate::admission::{ClassId, ClientId, Lane, Limits, Moment, SlotUse};
use crate::lease::node::FleetTerms;

#[derive(Clone, Debug)]
pub struct Scenario {
    pub nodes: usize,
    /// The limits of each node's core.
    pub limits: Limits,
    /// Where slots are lent: the terms. The slots of the limits are the floor then.
    pub lease: Option<FleetTerms>,
    /// Bytes a second of the registry, all transfers together.
    pub bandwidth: Option<u64>,
    /// Connections that the registry stands.
    pub stands: usize,
    pub round_trip: Duration,
    pub classes: Vec<PlannedClass>,
    pub pulls: Vec<Pull>,
    /// The plan ends here, whatever is under way.
    pub horizon: Moment,
}

/// A class of clients, and how long they wait.
#[derive(Clone, Debug)]
pub struct PlannedClass {
    pub name: String,
    pub puller: PlannedPuller,
    pub request_timeout: Duration,
    pub tunnel_timeout: Duration,
}

impl PlannedClass {
    pub fn queue_timeout(&self, slot_use: SlotUse) -> Duration {
        if slot_use == SlotUse::Tunnel { self.tunnel_timeout } else { self.request_timeout }
    }
}

/// Requests of one client that belong together: small ones in turn, then layers, some at once. A request of a trace is one
/// with a single part.
#[derive(Clone, Debug)]
pub struct Pull {
    pub node: usize,
    pub class: ClassId,
    pub client: ClientId,
    pub slot_use: SlotUse,
    pub starts: Moment,
    pub small: Part,
    pub layers: Part,
    /// Layers at once.
    pub parallel: usize,
}

/// So many requests, each of which takes the registry so long.
#[derive(Clone, Copy, Debug, Default)]
pub struct Part {
    pub count: usize,
    /// From the request to the first byte; without a bandwidth, to the last.
    pub service: Duration,
    pub bytes: u64,
}

impl Pull {
    pub fn requests(&self) -> usize {
        self.small.count + self.layers.count
    }

    pub fn bytes(&self) -> u64 {
        self.small.bytes * self.small.count as u64 + self.layers.bytes * self.layers.count as u64
    }

    fn service(&self) -> Duration {
        let of = |part: Part| part.service * u32::try_from(part.count).unwrap_or(u32::MAX);
        of(self.small) + of(self.layers)
    }

    pub fn part(&self, lane: Lane) -> Part {
        match lane {
            Lane::Small => self.small,
            Lane::Blob => self.layers,
        }
    }
}

impl Scenario {
    /// The same with equal parts of the cap, where slots are lent now and the parts are a slot at least.
    pub fn with_fixed_shares(&self) -> Option<Scenario> {
        let terms = self.lease.as_ref()?;
        let nodes = self.nodes as u64;
        let slots = usize::try_from((terms.pool + terms.floor * nodes) / nodes).unwrap_or(usize::MAX);
        let limits = Limits { slots, ..self.limits.clone() };
        (slots > 0).then(|| Scenario { limits, lease: None, ..self.clone() })
    }

    pub fn requests(&self) -> usize {
        self.pulls.iter().map(Pull::requests).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.pulls.iter().map(Pull::bytes).sum()
    }

    /// The service time of all requests, one after the other.
    pub fn service(&self) -> Duration {
        self.pulls.iter().map(Pull::service).sum()
    }
}
