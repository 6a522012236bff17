//! One picture of a registry: what `/status` shows, the page reads from it, and `/metrics` turns into gauges.
//!
//! It is taken from the gate's own snapshots and decides nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::adapt::AdaptShown;
use crate::admission::{LimitedBy, Used, shown_seconds};
use crate::bypass::BypassSight;
use crate::distress::Cause;
use crate::explain::answer::class_of;
use crate::upstream::Upstream;
use crate::upstream::cluster::NodePicture;

/// Clients that are named for each registry.
const MAX_CLIENTS: usize = 100;

/// One registry. The four states add up to `open`.
#[derive(Debug, Serialize)]
pub(super) struct RegistryPicture {
    /// Not there where nothing bounds the sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<usize>,
    /// Those of them that may be open now: fewer where the registry is in distress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots_in_force: Option<usize>,
    /// Those of them that another process or an earlier config still holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved: Option<usize>,
    pub open: usize,
    pub connecting: usize,
    pub active: usize,
    pub idle: usize,
    pub closing: usize,
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
    pub distress: Option<Value>,
    /// Connections that go around; not there while the radar is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bypass: Option<BypassSight>,
    /// The reason for the slots in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    adapt: Option<AdaptShown>,
    /// How long slots were held and busy so far.
    #[serde(skip)]
    pub used: Used,
}

/// Signs of overload: the level from 0 to 1, whether answers are doubted now, and the last signs, the newest first.
fn distress_of(upstream: &Upstream) -> Value {
    let distress = upstream.repair.distress(upstream.gate.now());
    let shown =
        |(cause, ago): &(Cause, Duration)| json!({ "sign": cause.as_str(), "seconds_ago": shown_seconds(*ago) });
    let signs: Vec<Value> = distress.signs.iter().map(shown).collect();
    json!({ "level": (distress.level * 100.0).round() / 100.0, "on": distress.is_on, "signs": signs })
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
        let is_bounded = now.slots != usize::MAX;
        RegistryPicture {
            slots: is_bounded.then_some(now.slots),
            slots_in_force: is_bounded.then_some(now.slots_in_force),
            reserved: is_bounded.then_some(now.reserved),
            open: now.open.open(),
            connecting: now.open.connecting,
            active: now.open.active,
            idle: now.open.idle,
            closing: now.open.closing,
            waiting: now.waiting,
            parked,
            oldest_wait_seconds: shown_seconds(now.oldest_wait),
            paused: now.paused,
            limited_by: now.limited_by,
            classes: upstream.classes.iter().cloned().zip(counts).collect(),
            clients: clients.collect(),
            clients_left_out: occupancy.left_out,
            upstreams: nodes,
            distress: is_bounded.then(|| distress_of(upstream)),
            bypass,
            adapt: is_bounded.then(|| upstream.adapt.shown(upstream.gate.now())),
            used: now.used,
        }
    }
}
