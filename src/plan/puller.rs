//! How long the pullers wait for a connection to the registry, before they leave.

use std::time::Duration;

use crate::admission::SlotUse;

/// A puller, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PlannedPuller {
    Containerd,
    Docker,
    Podman,
    Dfdaemon,
    Nydusd,
}

impl PlannedPuller {
    /// The longest wait of a request in the queue that this puller bears; `None`: it waits for ever.
    pub fn patience(self, slot_use: SlotUse) -> Option<Duration> {
        let is_tunnel = slot_use == SlotUse::Tunnel;
        let seconds = match self {
            // The answer to a CONNECT.
            PlannedPuller::Containerd | PlannedPuller::Podman if is_tunnel => 60,
            // The head of an answer.
            PlannedPuller::Containerd => 30,
            PlannedPuller::Podman => return None,
            // Ping and token, CONNECT included.
            PlannedPuller::Docker => 15,
            // One piece in all.
            PlannedPuller::Dfdaemon => 360,
            PlannedPuller::Nydusd => 5,
        };
        Some(Duration::from_secs(seconds))
    }

    pub fn name(self) -> &'static str {
        match self {
            PlannedPuller::Containerd => "containerd",
            PlannedPuller::Docker => "docker",
            PlannedPuller::Podman => "podman",
            PlannedPuller::Dfdaemon => "dfdaemon",
            PlannedPuller::Nydusd => "nydusd",
        }
    }
}
