//! The answer of `/queue`: each waiter and each holder of a registry, from the core's own view.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::processes::Processes;
use super::wanted;
use crate::admission::{Explanation, Principal, shown_seconds};
use crate::bypass::owners::SocketProcess;
use crate::upstream::Upstream;

/// Waiters, and holders, that are named for each registry.
const MAX_EXPLAINED: usize = 1000;

/// The waiters and holders of each registry, in `/queue`. The processes of waiters are looked for while nothing is locked.
pub async fn queues<'a>(
    upstreams: impl Iterator<Item = &'a Arc<Upstream>>,
    processes: &Processes,
) -> Map<String, Value> {
    let look =
        |upstream: &'a Arc<Upstream>| (upstream, upstream.gate.look(|core, now| core.explain(MAX_EXPLAINED, now)));
    let looks: Vec<(&Arc<Upstream>, Explanation)> = upstreams.map(look).collect();
    let sockets = looks.iter().flat_map(|(_, look)| &look.waiters).map(|waiter| waiter.label.socket);
    let processes = processes.of(sockets.filter(|inode| *inode != 0).collect()).await;
    looks.iter().map(|(upstream, look)| (upstream.name.clone(), shown(upstream, look, &processes))).collect()
}

fn shown(upstream: &Upstream, explanation: &Explanation, processes: &HashMap<u32, SocketProcess>) -> Value {
    let class = |principal: &Principal| class_of(upstream, principal);
    let waiters = explanation.waiters.iter().map(|waiter| {
        let (repository, reference) = waiter.label.wants.as_deref().map(wanted::parts).unzip();
        json!({
            "position": waiter.position,
            "turn": waiter.turn,
            "client": waiter.principal.client.to_string(),
            "peer": waiter.principal.client.peer(),
            "process": processes.get(&waiter.label.socket),
            "class": class(&waiter.principal),
            "kind": waiter.kind,
            "lane": waiter.lane,
            "target": &*waiter.target,
            "repository": repository,
            "reference": reference.flatten(),
            "waited_seconds": shown_seconds(waiter.age),
            "patience_left_seconds": shown_seconds(waiter.patience_left),
            "expected_wait_seconds": waiter.expected_wait.map(shown_seconds),
        })
    });
    let holders = explanation.holders.iter().map(|holder| {
        let (principal, target) = holder.occupant.as_ref().map(|(principal, target)| (principal, target)).unzip();
        json!({
            "client": principal.map(|principal| principal.client.to_string()),
            "class": principal.map(class),
            "target": target.map(|target| &**target),
            "kind": holder.kind,
            "state": holder.state,
            "age_seconds": shown_seconds(holder.age),
            "last_bytes_seconds": holder.last_bytes.map(shown_seconds),
            "bytes_up": holder.bytes_up,
            "bytes_down": holder.bytes_down,
            "doing": holder.quiet.map(|(evidence, _)| evidence),
            "quiet_seconds": holder.quiet.map(|(_, quiet)| shown_seconds(quiet)),
            "reclaimed": holder.reclaimed,
        })
    });
    json!({
        "limited_by": explanation.limited_by,
        "waiting": waiters.collect::<Vec<_>>(),
        "holders": holders.collect::<Vec<_>>(),
    })
}

pub fn class_of<'a>(upstream: &'a Upstream, principal: &Principal) -> &'a str {
    &upstream.classes[principal.class.0]
}
