//! The node itself: descriptors, other sidecars, the lease store.

use super::report::ExaminedStep;
use super::services::Sidecars;
use crate::app::descriptors;
use crate::config::Config;
use crate::kernel;

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

/// The place for the store of leases.
pub fn lease_store() -> ExaminedStep {
    ExaminedStep::skipped("lease", "shares", "they are fixed numbers: there is no store to ask")
}
