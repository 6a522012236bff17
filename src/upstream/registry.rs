//! One registry, or all other hosts, as seen by those who want to reach it: its gate, its settings, its nodes.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::addresses::AddressPolicy;
use super::attempt::{Attempt, AttemptProgress, Destination, Patience};
use super::cluster::Cluster;
use super::connect::ConnectionTerms;
use super::failure::Failure;
use super::http::PooledConnection;
use super::resolve::Resolver;
use super::tls::Tls;
use crate::adapt::Adapt;
use crate::admission::{Gate, Lane, Moment, Principal, RequestLabel, ReuseKey, SlotId, SlotUse};
use crate::distress::Cause;
use crate::fleet::lent::Lease;
use crate::metrics::{OTHER_HOSTS, RegistryMetrics};
use crate::observe::Observer;
use crate::repair::Repair;
use crate::repair::memory::Key;

#[derive(Debug)]
pub struct Upstream {
    pub name: String,
    pub gate: Gate<PooledConnection>,
    pub metrics: Arc<RegistryMetrics>,
    pub terms: ConnectionTerms,
    pub addresses: AddressPolicy,
    pub queue: QueueTerms,
    pub classes: Arc<[String]>,
    pub tls: Arc<Tls>,
    /// The rules of repair, and the level of distress.
    pub repair: Arc<Repair>,
    /// The slots that its distress leaves in force.
    pub adapt: Arc<Adapt>,
    /// Where nothing is held: what would have waited.
    pub observed: Option<Arc<Observer>>,
    /// The slots that are lent, where they are.
    pub lease: Option<Arc<Lease>>,
    /// Slots for each node, where each has its own.
    pub slots_of_each: Option<usize>,
    /// The base of the number of slots, where each node has its own. Locked while they are counted anew; shared with the same
    /// registry before a reload, whose requests may still be under way.
    pub sized: Arc<Mutex<Option<NodeSlots>>>,
    /// Names to addresses; shared by all.
    pub resolver: Arc<Resolver>,
    /// Cancelled when those who are still on their way are refused as draining.
    pub ended: CancellationToken,
}

#[derive(Debug)]
pub struct NodeSlots {
    pub of_each: usize,
    pub nodes: Arc<Cluster>,
}

impl NodeSlots {
    /// Those of the nodes that take connections, or of one where none does.
    pub fn all(&self) -> usize {
        self.of_each * self.nodes.living().max(1)
    }
}

/// The terms of the queue of one registry.
#[derive(Clone, Debug)]
pub struct QueueTerms {
    pub depth: usize,
    /// The longest wait of a CONNECT, by class.
    pub tunnel_timeout: Vec<Duration>,
    /// The longest wait of a request that is visible as HTTP, by class.
    pub request_timeout: Vec<Duration>,
}

impl Upstream {
    /// Its name in a sentence.
    pub fn title(&self) -> String {
        if self.name == OTHER_HOSTS { "the other host".to_owned() } else { format!("registry {}", self.name) }
    }

    /// The level of its distress.
    pub fn distress(&self) -> f64 {
        self.repair.distress(self.gate.now()).level
    }

    /// Whether a request may wait: a dial that failed is tried again until its patience ends. If not, it is answered at once.
    pub fn may_hold(&self) -> bool {
        self.gate.look(|core, _| core.may_hold())
    }

    /// A sign of overload was seen when `subject` was asked for.
    pub fn note(&self, cause: Cause, subject: Key) {
        self.observed.iter().for_each(|observed| observed.sign(cause));
        self.repair.note(cause, subject, self.gate.now());
        self.adapt.sign(cause, subject.number(), &self.gate);
    }

    /// An answer in the tunnel with this slot began after so long.
    pub fn tunnel_answered(&self, took: Duration, tunnel: SlotId) {
        if self.adapt.answered_in_tunnel(took, tunnel, &self.gate) {
            self.observed.iter().for_each(|observed| observed.sign(Cause::SlowAnswer));
        }
    }

    /// Lets a tunnel that was parked be admitted anew, before all who wait, within so long.
    pub fn go_ahead(&self, attempt: &mut Attempt, limit: Duration) {
        attempt.place = attempt.place.ahead();
        (attempt.progress.round, attempt.progress.failed) = (None, None);
        attempt.patience.limit = limit;
        attempt.deadline = self.gate.now() + limit;
    }

    /// A place in the order for a request that arrives now, or the one that its client left not long ago. Its patience
    /// counts from now in any case.
    pub fn attempt(
        &self,
        destination: Destination,
        principal: Principal,
        (kind, lane): (SlotUse, Lane),
        reuse: Option<ReuseKey>,
        patience: Patience,
    ) -> Attempt {
        let name = destination.name();
        let (place, ticket) = self.gate.place(&principal.client, &name);
        Attempt {
            destination,
            principal,
            kind,
            lane,
            label: RequestLabel::default(),
            name,
            reuse,
            patience,
            deadline: self.gate.now() + patience.limit,
            place,
            queued: Arc::default(),
            progress: AttemptProgress { ticket, ..AttemptProgress::default() },
        }
    }

    /// Where each node has slots of its own, those of a node that is out are not there.
    pub(super) fn nodes_changed(&self, destination: &Destination) {
        let Some(cluster) = &destination.cluster else { return };
        tracing::info!(
            registry = self.name,
            up = cluster.living(),
            of = cluster.origins().len(),
            "nodes that take connections"
        );
        // In order: the last word counts. The nodes may be others now, but what is known of them is the same.
        let sized = self.sized.lock();
        if let Some(sized) = &*sized {
            let slots = sized.all();
            self.gate.happen(|core, now| core.resize(slots, now));
        }
    }

    /// Takes the turn to give this pooled connection up for a new one, if one is due: another node has fewer connections, or
    /// is to be tried.
    pub fn begin_move(&self, pooled: &PooledConnection, destination: &Destination) -> bool {
        let (Some(cluster), Some(node), None) = (&destination.cluster, pooled.node, destination.node) else {
            return false;
        };
        cluster.begin_move(node, self.slots_of_each, self.gate.now())
    }

    /// Waits, holding nothing.
    /// Fails when the process is going down.
    pub async fn pause_until(&self, moment: Moment) -> Result<(), Failure> {
        tokio::select! {
            () = sleep_until(self.instant(moment)) => Ok(()),
            () = self.ended.cancelled() => Err(Failure::Draining),
        }
    }

    /// The gate's time as tokio's.
    pub fn instant(&self, moment: Moment) -> Instant {
        Instant::now() + moment.since(self.gate.now())
    }
}
