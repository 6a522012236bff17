//! The node itself: descriptors, other sidecars, the lease store.

use std::collections::BTreeSet;

use super::report::ExaminedStep;
use super::services::Sidecars;
use crate::app::descriptors;
use crate::config::Config;
use crate::fleet::overview::FleetOverview;
use crate::fleet::store::{StoreAddress, StoreError};
use crate::kernel;
use crate::lease::settings::LeaseConfig;

/// Whether the limit on open files is enough for slots and clients: that of the running sidecar, else ours.
pub fn descriptors(config: &Config, sidecars: &Sidecars) -> ExaminedStep {
    let running = match sidecars {
        Sidecars::Seen(seen) if seen.len() == 1 => seen[0].max_descriptors,
        _ => None,
    };
    let (limit, subject) = match running {
        Some(limit) => (limit, "the running sidecar"),
        None => (kernel::max_descriptors(), "this shell"),
    };
    match descriptors::warning_at(config, limit) {
        Some(warning) => ExaminedStep::problem(
            "nofile",
            subject,
            warning,
            "set LimitNOFILE= in the unit, or `ulimit -n` before the start",
        ),
        None => ExaminedStep::fine("nofile", subject, format!("{limit} open files are enough")),
    }
}

/// Two sidecars are two shares: the registry counts both.
pub fn second_sidecar(sidecars: &Sidecars) -> ExaminedStep {
    match sidecars {
        Sidecars::Unknown(why) => ExaminedStep::skipped("sidecars", "this node", why),
        Sidecars::Seen(seen) if seen.len() > 1 => {
            let pids: Vec<String> = seen.iter().map(|sidecar| sidecar.pid.to_string()).collect();
            let said = format!("{} sidecars run here, with the process ids {}", seen.len(), pids.join(", "));
            let cure =
                "end all but one (is there a unit beside a DaemonSet?), or count each as a node when you set share";
            ExaminedStep::problem("sidecars", "this node", said, cure)
        }
        Sidecars::Seen(seen) => ExaminedStep::fine("sidecars", "this node", format!("{} runs", seen.len())),
    }
}

/// The store that lends slots, where a share is leased.
pub async fn lease_store(config: &Config) -> ExaminedStep {
    let Some(lease) = config.lease.as_ref().filter(|_| config.leased().next().is_some()) else {
        return ExaminedStep::skipped("lease", "shares", "they are fixed numbers: there is no store to ask");
    };
    match shared_names(config, lease).await {
        Ok(shared) if !shared.is_empty() => {
            let said = format!("several sidecars go by one name: {}", Vec::from_iter(shared).join(", "));
            let cure = "give each its own lease.node_id; `roadstead status --fleet` shows them";
            ExaminedStep::problem("lease", &lease.redis, said, cure)
        }
        Ok(_) => ExaminedStep::fine("lease", &lease.redis, "answers, and runs a script"),
        Err(error) => {
            let cure = "see that Redis runs and is reached from this node, and that lease.redis, lease.user, lease.password_file and \
                        lease.ca_file are right; docs/fleet.md has the rights that its user needs";
            ExaminedStep::problem("lease", &lease.redis, error, cure)
        }
    }
}

/// Nodes whose name several sidecars have. Fails when the store does not answer, or runs no script.
async fn shared_names(config: &Config, lease: &LeaseConfig) -> Result<BTreeSet<String>, StoreError> {
    let store = StoreAddress::new(lease)?;
    let mut shared = BTreeSet::new();
    for registry in config.leased() {
        store.try_out(&registry.name).await?;
        let overview = FleetOverview::of(&store.records(&registry.name).await?);
        shared.extend(overview.shared_names(lease.away_after()).into_iter().map(str::to_owned));
    }
    Ok(shared)
}
