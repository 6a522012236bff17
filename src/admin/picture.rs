//! One picture of a registry: what `/status` shows, the page reads from it, and `/metrics` turns into gauges.
//!
//! It is taken from the gate's own snapshots and decides nothing.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use crate::adapt::{AdaptShown, DistressShown};
use crate::admission::{Counts, LimitedBy, Used, shown_seconds};
use crate::bypass::BypassSight;
use crate::explain::answer::class_of;
use crate::fleet::lent::LeaseShown;
use crate::observe::SlotsPicture;
use crate::upstream::Upstream;
use crate::upstream::cluster::NodePicture;

/// Clients that are named for each registry.
const MAX_CLIENTS: usize = 100;

/// One registry. The four states add up to `open`.
#[derive(Debug, Serialize)]
pub(super) struct RegistryPicture {
    /// Whether the cap holds, and the slots; not there for other hosts.
    #[serde(flatten)]
    pub slots: Option<SlotsPicture>,
    pub open: usize,
    #[serde(flatten)]
    pub states: Counts,
    pub waiting: usize,
    /// Tunnels that gave their slots up before their first byte; not in `open`.
    pub parked: usize,
    pub oldest_wait_seconds: f64,
    pub paused: bool,
    /// The reason why the next waiter is not admitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limited_by: Option<LimitedBy>,
    pub classes: BTreeMap<String, ClassPicture>,
    /// The clients with the most requests first.
    pub clients: Vec<Value>,
    /// Clients beyond those.
    pub clients_left_out: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<NodePicture>,
    /// Whether the registry is overloaded; not known of other hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distress: Option<DistressShown>,
    /// Connections that go around; not there while the radar is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bypass: Option<BypassSight>,
    /// The reason for the slots in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    adapt: Option<AdaptShown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseShown>,
    /// How long slots were held and busy so far.
    #[serde(skip)]
    pub used: Used,
}

#[derive(Debug, Serialize)]
pub(super) struct ClassPicture {
    pub waiting: usize,
    pub holding: usize,
}

impl RegistryPicture {
    /// The registry as it is now; `nodes` are those of its mirror.
    pub(super) fn of(upstream: &Upstream, nodes: Vec<NodePicture>, parked: usize, bypass: Option<BypassSight>) -> Self {
        let now = upstream.gate.snapshot();
        let occupancy = upstream.gate.look(|core, _| core.occupancy(MAX_CLIENTS));
        let counts = now.waiting_by_class.iter().zip(&occupancy.holding_by_class);
        let counts = counts.map(|(waiting, holding)| ClassPicture { waiting: *waiting, holding: *holding });
        let clients = occupancy.clients.iter().map(|count| {
            let (client, class) = (count.principal.client.to_string(), class_of(upstream, &count.principal));
            json!({ "client": client, "class": class, "waiting": count.waiting, "holding": count.holding })
        });
        let lease = upstream.lease.as_ref().map(|lease| lease.shown());
        let slots = SlotsPicture::of(&now, upstream.observed.as_deref());
        RegistryPicture {
            open: now.open.open(),
            states: now.open,
            waiting: now.waiting,
            parked,
            oldest_wait_seconds: shown_seconds(now.oldest_wait),
            paused: now.paused || lease.as_ref().is_some_and(|lease| lease.paused),
            limited_by: now.limited_by,
            classes: upstream.classes.iter().cloned().zip(counts).collect(),
            clients: clients.collect(),
            clients_left_out: occupancy.left_out,
            upstreams: nodes,
            distress: slots.is_some().then(|| DistressShown::of(&upstream.repair.distress(upstream.gate.now()))),
            bypass,
            adapt: slots.is_some().then(|| upstream.adapt.shown(upstream.gate.now())),
            lease,
            used: now.used,
            slots,
        }
    }
}
