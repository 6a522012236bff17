//! How long the pullers wait for a connection to the registry, before they leave.

use std::time::Duration;

use crate::admission::SlotUse;

/// A puller, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Puller {
    Containerd,
    Docker,
    Podman,
    Dfdaemon,
    Nydusd,
}

impl Puller {
    /// The longest wait of a request in the queue that this puller bears; `None`: it waits for ever.
    pub fn patience(self, slot_use: SlotUse) -> Option<Duration> {
        let is_tunnel = slot_use == SlotUse::Tunnel;
        let seconds = match self {
            // The answer to a CONNECT.
            Puller::Containerd | Puller::Podman if is_tunnel => 60,
            // The head of an answer.
            Puller::Containerd => 30,
            Puller::Podman => return None,
            // Ping and token, CONNECT included.
            Puller::Docker => 15,
            // One piece in all.
            Puller::Dfdaemon => 360,
            Puller::Nydusd => 5,
        };
        Some(Duration::from_secs(seconds))
    }

    pub fn name(self) -> &'static str {
        match self {
            Puller::Containerd => "containerd",
            Puller::Docker => "docker",
            Puller::Podman => "podman",
            Puller::Dfdaemon => "dfdaemon",
            Puller::Nydusd => "nydusd",
        }
    }
}
