//! A request on its way to a registry: what it asks for, which does not change, and how far it has come.
//!
//! It is made by [`Upstream::attempt`](super::Upstream::attempt) and moved on by [`Upstream::ask`](super::Upstream::ask),
//! [`turn`](super::Upstream::turn) and [`step`](super::Upstream::step); `http` changes what one more try needs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::cluster::Cluster;
use super::endpoints::Round;
use super::failure::Failure;
use super::http::PooledConnection;
use super::turn::PendingAdmission;
use crate::admission::{
    Gate, Lane, Moment, Place, Principal, Refusal, RefusalReason, RequestLabel, ReuseKey, SlotState, SlotUse, Ticket,
};
use crate::repair::Repair;
use crate::repair::reasks::Reask;
use crate::target::Target;

/// Where a request goes.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The host and port that it names; of the first node, where there are several.
    pub target: Target,
    /// Whether we speak TLS with it.
    pub secure: bool,
    /// The only addresses that may be dialled for it, if they were found before.
    pub pinned: Option<Vec<SocketAddr>>,
    /// Whether the operator listed this very host, and not only a pattern that it matches.
    pub listed_host: bool,
    /// The nodes that can serve it, where the operator named them.
    pub cluster: Option<Arc<Cluster>>,
    /// The only one of them that it goes to, by its number.
    pub node: Option<usize>,
}

impl Destination {
    /// The name for tickets and outages: the target, or all nodes together.
    pub(super) fn name(&self) -> Arc<str> {
        match &self.cluster {
            Some(cluster) if cluster.origins().len() > 1 && self.node.is_none() => {
                let nodes: Vec<String> = cluster.origins().iter().map(ToString::to_string).collect();
                nodes.join(" ").into()
            }
            _ => self.target.to_string().into(),
        }
    }
}

/// How long a request waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The longest wait for admission.
    pub limit: Duration,
    /// The setting that says so.
    pub setting: &'static str,
}

/// A request on its way to a registry.
#[derive(Debug)]
pub struct Attempt {
    /// Where it wants to go.
    pub destination: Destination,
    /// The client that asks.
    pub principal: Principal,
    /// Whether it is a tunnel or a request.
    pub kind: SlotUse,
    /// The lane of the request.
    pub lane: Lane,
    pub label: RequestLabel,
    /// The target as text: what a place is kept for, and what an outage is noted for.
    pub name: Arc<str>,
    /// The pooled connections that it can use; `None`: it needs a new one.
    pub reuse: Option<ReuseKey>,
    /// How long it waits.
    pub patience: Patience,
    /// When its patience ends.
    pub deadline: Moment,
    /// Where it stands in the order.
    pub place: Place,
    /// Whether it ever had to wait in the queue. From then on a client that has ended its side has left.
    pub queued: Arc<AtomicBool>,
    pub progress: AttemptProgress,
}

/// How far an attempt has come.
#[derive(Debug, Default)]
pub struct AttemptProgress {
    /// How long it waited for admission so far.
    pub waited: Duration,
    /// How long the `connect()` took that led to its connection.
    pub connect: Option<Duration>,
    /// The ticket of its place, if it came back to it and did not ask for admission yet.
    pub(super) ticket: Option<Ticket<PooledConnection>>,
    /// The admission that it asked for ahead of its next step.
    pub(super) asked: Option<Box<PendingAdmission>>,
    /// Whether it is held, or probes, while nothing answers behind the registry's gateway.
    pub(super) hold: Option<Box<Hold>>,
    /// Whether it is one that is asked again while the registry is in distress.
    pub is_reask: bool,
    /// The permit that such a one needs.
    pub permit: Option<Reask>,
    /// Whether it found out that nothing answers there.
    pub(super) has_probed: bool,
    /// The addresses that are being tried.
    pub(super) round: Option<Round>,
    /// How often in a row its name could not be resolved.
    pub(super) lookups_failed: u32,
    /// Why it is not connected yet.
    pub(super) failed: Option<Box<Failure>>,
}

impl Attempt {
    /// The same request once more, in its old place.
    pub fn again(&self) -> Attempt {
        Attempt {
            destination: self.destination.clone(),
            principal: self.principal.clone(),
            label: self.label.clone(),
            name: self.name.clone(),
            reuse: self.reuse.clone(),
            queued: self.queued.clone(),
            progress: AttemptProgress::default(),
            ..*self
        }
    }

    /// Whether it finds out if something answers behind a gateway.
    pub(super) fn is_probe(&self) -> bool {
        self.progress.hold.as_ref().is_some_and(|hold| hold.probes.is_some())
    }

    /// Its failure where it is not admitted: if it was held to the end, nothing answers.
    pub(super) fn refused(&self, refusal: Refusal) -> Failure {
        match &self.progress.hold {
            Some(hold) if !self.is_probe() && refusal.reason == RefusalReason::QueueTimeout => {
                Failure::NoAnswerBehind(hold.urls[0].to_string())
            }
            _ => Failure::Refused(refusal),
        }
    }

    /// Whether it waits for a permit to be asked again.
    pub(super) fn needs_permit(&self) -> bool {
        self.progress.is_reask && self.progress.permit.is_none()
    }

    /// The state of its socket once connected. In a tunnel, the handshake that loads the registry is still to come.
    pub(super) fn once_connected(&self) -> SlotState {
        match self.kind {
            SlotUse::Tunnel => SlotState::Idle,
            SlotUse::Request | SlotUse::Pooled => SlotState::Active,
        }
    }
}

/// A request that is held, or probes. Dropping it lets the next one probe.
#[derive(Debug)]
pub(super) struct Hold {
    pub repair: Arc<Repair>,
    pub gate: Gate<PooledConnection>,
    pub place: Place,
    pub urls: Vec<Arc<str>>,
    /// The index of the one that it probes.
    pub probes: Option<usize>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        for url in &self.urls {
            self.repair.gateways.gone(url, self.place, self.gate.now());
        }
    }
}
