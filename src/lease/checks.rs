//! Checks between `[lease]` and the registries, and the lines of `check` about leases.

use std::time::Duration;

use humantime::format_duration;

use super::settings::LeaseConfig;
use crate::config::model::Config;
use crate::config::reader::Section;
use crate::config::registry::{Mode, RegistryConfig};
use crate::config::share::Share;

/// Where more nodes wish than there are slots, they take turns: of so many seconds for each slot of a node, and not shorter than
/// one.
const SECONDS_OF_A_TURN: u64 = 20;

/// The store may take so long to answer.
const SHORTEST_ADMISSION: Duration = Duration::from_secs(1);

/// Notes all that does not hold.
pub(crate) fn check(config: &Config, root: &mut Section<'_>) {
    for registry in config.leased() {
        let key = |key: &str| format!("registries.{}.{key}", registry.name);
        let Some(lease) = &config.lease else {
            let reason = "\"lease\" needs a store that lends: add the table [lease] with redis and nodes, or write a fixed \
                          share such as \"1/20\"";
            root.problem(&key("share"), reason.to_owned());
            continue;
        };
        if registry.mirror.as_ref().is_some_and(|mirror| mirror.cap_per_upstream) {
            let reason = "one cap is leased to all nodes, and cannot be counted for each URL: remove cap_per_upstream, or \
                          write a fixed share";
            root.problem(&key("mirror.cap_per_upstream"), reason.to_owned());
        }
        if registry.queue.depth == 0 {
            let reason =
                "a node asks the store for as many slots as requests wait, and with 0 none waits: set it to 1 or more";
            root.problem(&key("queue.depth"), reason.to_owned());
        }
        if registry.mode == Mode::Observe {
            let reason = "the store lends only what is held: observe with a fixed share, such as \"1/20\"";
            root.problem(&key("mode"), reason.to_owned());
        }
        if !root.is_sound("lease.floor") || !root.is_sound("lease.nodes") || !root.is_sound(&key("cap")) {
            continue;
        }
        if let Some(reason) = floor_problem(lease, registry.cap, &key("cap")) {
            root.problem("lease.floor", reason);
        } else if let Some(reason) = turn_problem(lease, registry.cap, &key("cap")) {
            root.problem("lease.nodes", reason);
        }
    }
    if config.leased().next().is_some() {
        check_times(config, root);
    }
}

/// Whether the floors of all nodes fit into the cap, which goes by this name.
pub fn floor_problem(lease: &LeaseConfig, cap: u32, name: &str) -> Option<String> {
    let LeaseConfig { floor, nodes, .. } = lease;
    let floors = u64::from(*floor) * u64::from(*nodes);
    let reason = || {
        format!(
            "{nodes} nodes x floor {floor} = {floors}, more than {name} = {cap}: lower the floor to {}",
            cap / nodes
        )
    };
    (floors > u64::from(cap)).then(reason)
}

/// Whether turns are long enough, where nodes have nothing but turns.
pub fn turn_problem(lease: &LeaseConfig, cap: u32, name: &str) -> Option<String> {
    let nodes = lease.nodes;
    let reason = || {
        format!(
            "{nodes} nodes that take turns at {cap} slots would have less than a second each: raise {name}, or run at most {} \
             nodes",
            SECONDS_OF_A_TURN * u64::from(cap)
        )
    };
    (u64::from(nodes) > SECONDS_OF_A_TURN * u64::from(lease.pool(cap)) && lease.floor == 0).then(reason)
}

fn check_times(config: &Config, root: &mut Section<'_>) {
    let Some(lease) = &config.lease else { return };
    if root.is_sound("lease.renew_every") && root.is_sound("lease.admit_for") && lease.admit_for < lease.renew_every * 2
    {
        let reason = format!(
            "{} is less than twice renew_every ({}): one answer of the store that is late would end all leases",
            format_duration(lease.admit_for),
            format_duration(lease.renew_every)
        );
        root.problem("lease.admit_for", reason);
    }
    if root.is_sound("lease.admit_for") && lease.admit_for < SHORTEST_ADMISSION {
        let reason = format!(
            "{} is less than a second: a request to the store may take as long, and the lease counts from before it",
            format_duration(lease.admit_for)
        );
        root.problem("lease.admit_for", reason);
    }
    if let Some(longest) = config.leased().max_by_key(|registry| registry.linger)
        && root.is_sound("lease.registry_gives_up")
        && lease.registry_gives_up < longest.linger
    {
        let reason = format!(
            "{} is less than registries.{}.linger ({}): a connection that closes counts for so long after its lease",
            format_duration(lease.registry_gives_up),
            longest.name,
            format_duration(longest.linger)
        );
        root.problem("lease.registry_gives_up", reason);
    }
    if lease.ca_file.is_some() && !lease.redis.starts_with("rediss") && root.is_sound("lease.redis") {
        root.problem("lease.ca_file", "has no meaning without TLS: write rediss:// in lease.redis".to_owned());
    }
}

/// Warns of static shares that leave slots unused: the key, and the reason.
pub fn wasted_share(config: &Config, registry: &RegistryConfig) -> Option<(String, String)> {
    let nodes = config.lease.as_ref()?.nodes;
    (registry.share != Share::LEASED && nodes > registry.cap / 4).then(|| {
        let reason = format!(
            "{nodes} nodes have less than 4 of {} slots each, and those of idle nodes are of use to nobody: write share = \
             \"lease\"",
            registry.cap
        );
        (format!("registries.{}.share", registry.name), reason)
    })
}

/// The slots of the registry, in a line of `check`.
pub fn summary(config: &Config, registry: &RegistryConfig) -> String {
    let RegistryConfig { slots, cap, share, .. } = registry;
    let Some(lease) = &config.lease else { return format!("{slots} slots (cap {cap} x share {share})") };
    let (nodes, floor) = (lease.nodes, lease.floor);
    let rate = registry.rate_per_second.map(|rate| {
        let all = rate.floor_times(u64::from(nodes));
        format!("; rate_per_second {rate} x {nodes} nodes = {all} new connections a second")
    });
    let rate = rate.unwrap_or_default();
    if *share != Share::LEASED {
        return format!("{slots} slots (cap {cap} x share {share}{rate})");
    }
    let most = lease.pool(*cap) + floor;
    format!("{floor} to {most} slots (cap {cap} leased to {nodes} nodes{rate})")
}
