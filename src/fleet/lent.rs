//! The leased slots of one registry at this node, as the gate, the pages and the metrics see them.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;

use super::overview::NodeReport;
use crate::adapt::tally::FleetTally;
use crate::admission::core::Core;
use crate::admission::{Gate, LimitedBy, Snapshot, shown_seconds};
use crate::config::{RegistryConfig, Share};
use crate::lease::borrowed::{LeasePicture, Lent};
use crate::lease::message::FleetOrder;
use crate::lease::node::{Borrower, FleetTerms, SlotUsage};
use crate::lease::settings::LeaseConfig;
use crate::metrics::{Families, number};

/// The lease of one registry: written by its task, read by all others.
#[derive(Debug)]
pub struct Lease {
    pub registry: String,
    /// The observations of this node, for the store.
    pub tally: Arc<FleetTally>,
    state: Mutex<LeaseState>,
    /// Notified when there is word for the task.
    pub(super) told: Notify,
}

#[derive(Debug)]
struct LeaseState {
    terms: FleetTerms,
    picture: LeasePicture,
    latency: Option<Duration>,
    error: Option<String>,
    has_left: bool,
    /// The most connections on leases that were right at any moment since the last audit.
    most: u64,
    orders: Orders,
}

/// Word for the task that it has not taken yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders {
    pub drain: bool,
    pub end: bool,
    pub is_alone: bool,
    pub gone: Vec<String>,
}

/// The lease in `/status`.
#[derive(Debug, Serialize)]
pub struct LeaseShown {
    pub granted: u64,
    pub wished: u64,
    pub held: u64,
    pub floor: u64,
    /// The slots that are lent to all nodes together, and those of them that are in force.
    pub pool: u64,
    pub pool_in_force: u64,
    /// Until no slot is given any more, unless the store answers before; not there where nothing is lent.
    pub until_seconds: Option<f64>,
    /// The rest of the time in which the store lends nothing new.
    pub learning_seconds: Option<f64>,
    /// Requests in a row that the store did not answer, and why the last one failed.
    pub unanswered: u32,
    pub error: Option<String>,
    /// Whether all nodes are paused.
    pub paused: bool,
    /// Whether another process goes by the name of this node.
    pub shared_node_id: bool,
    /// How long the store took to answer last.
    pub store_latency_seconds: Option<f64>,
}

impl LeaseShown {
    /// The gauges of `/metrics`.
    pub fn scrape(&self, scrape: &Families, registry: &str) {
        let labels = [("registry", registry)];
        let gauge = |name, about, value: f64| scrape.gauge((name, about), &labels, value);
        gauge("roadstead_lease_granted", "Slots that the store has lent to this node.", number(count(self.granted)));
        gauge("roadstead_lease_wished", "Slots that this node could use beside its floor.", number(count(self.wished)));
        gauge("roadstead_lease_held", "Open connections on leased slots.", number(count(self.held)));
        let about = "Slots that are lent to all nodes together.";
        gauge("roadstead_lease_pool", about, number(count(self.pool)));
        let about = "Those of them that are in force: signs of overload at any node lower them.";
        gauge("roadstead_lease_pool_in_force", about, number(count(self.pool_in_force)));
        let until =
            "Time until no leased slot is given to a request any more, unless the store answers before; 0: it is over.";
        gauge("roadstead_lease_until_seconds", until, self.until_seconds.unwrap_or(0.0));
        let learning =
            "Rest of the time in which the store lends nothing new, since it was restarted or lost its records.";
        gauge("roadstead_lease_learning_seconds", learning, self.learning_seconds.unwrap_or(0.0));
        let unanswered = "Requests in a row that the lease store did not answer.";
        gauge("roadstead_lease_unanswered", unanswered, f64::from(self.unanswered));
        let latency = "Time that the lease store took for its last answer.";
        gauge("roadstead_lease_store_seconds", latency, self.store_latency_seconds.unwrap_or(0.0));
    }
}

/// The time since the machine started, suspends included.
pub fn boot_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

fn lasts(end: Option<Duration>) -> Option<Duration> {
    end?.checked_sub(boot_time()).filter(|left| !left.is_zero())
}

fn count(slots: u64) -> usize {
    usize::try_from(slots).unwrap_or(usize::MAX)
}

impl Lease {
    fn new(registry: &str, terms: FleetTerms) -> Arc<Lease> {
        // It may be paused before the store was heard of.
        let picture = LeasePicture { is_paused: true, ..LeasePicture::default() };
        let orders = Orders::default();
        let state = LeaseState { terms, picture, latency: None, error: None, has_left: false, most: 0, orders };
        let (registry, tally) = (registry.to_owned(), Arc::default());
        Arc::new(Lease { registry, tally, state: Mutex::new(state), told: Notify::new() })
    }

    /// The lease of this registry, if it is leased: the one before, which goes on by this config, or a new one.
    pub fn of(
        registry: &RegistryConfig,
        config: Option<&LeaseConfig>,
        before: Option<&Arc<Lease>>,
    ) -> Option<Arc<Lease>> {
        let config = config.filter(|_| registry.share == Share::LEASED)?;
        let terms = config.terms(registry.cap);
        let Some(before) = before else { return Some(Lease::new(&registry.name, terms)) };
        before.state.lock().terms = terms;
        before.told.notify_one();
        Some(before.clone())
    }

    /// Nothing comes any more: slots go back as they are released.
    pub fn drain(&self) {
        self.state.lock().orders.drain = true;
        self.told.notify_one();
    }

    /// No request is left that could ask for a slot: all go back.
    pub fn end(&self) {
        self.state.lock().orders.end = true;
        self.told.notify_one();
    }

    /// No other process of this node should renew its lease from now on.
    pub(super) fn is_alone(&self) {
        self.state.lock().orders.is_alone = true;
        self.told.notify_one();
    }

    /// These processes of this node are gone, and what was lent to them is free.
    pub(super) fn take_over(&self, gone: Vec<String>) {
        self.state.lock().orders.gone = gone;
        self.told.notify_one();
    }

    /// Whether the store knows that this process holds nothing any more.
    pub fn has_left(&self) -> bool {
        self.state.lock().has_left
    }

    /// Slots that are never lent.
    pub fn floor(&self) -> usize {
        count(self.state.lock().terms.floor)
    }

    /// Slots of the floor that are taken still: until `ghosts`, by a process before this one. And the machine may have been reset: its registry
    /// has no word of that, and counts what the machine had before until it gives up. The store counts the leases of before.
    pub fn floor_of_before(&self, ghosts: Duration) -> usize {
        let FleetTerms { times, floor, .. } = &self.state.lock().terms;
        if boot_time() < times.registry_drops.max(ghosts) { count(*floor) } else { 0 }
    }

    /// Whether more connections are counted at this gate than may stay, so that none may be dialled, nor stand after its
    /// `connect()`: after a freeze, slots may be taken that are lent to others by now.
    pub fn is_over<P: Send + 'static>(lease: Option<&Lease>, gate: &Gate<P>) -> bool {
        lease.is_some_and(|lease| {
            let now = gate.snapshot();
            let state = lease.state.lock();
            let leased = if lasts(state.picture.close_by).is_some() { state.picture.granted } else { 0 };
            used_with(&now, state.terms.floor) > state.terms.floor + leased
        })
    }

    /// The most connections that were right at any moment since this was asked last: a lease may shrink while the kernel's list is
    /// read.
    pub fn most_since_asked(&self) -> usize {
        let mut state = self.state.lock();
        let (floor, now) = (state.terms.floor, state.picture.granted);
        count(floor + std::mem::replace(&mut state.most, now))
    }

    /// Why a request was refused that waited for `bound`, in one sentence.
    pub fn lost(title: &str, bound: &str) -> String {
        format!("the lease store lends no connection to {title} ({bound}): see lease.redis")
    }

    pub fn shown(&self) -> LeaseShown {
        let state = self.state.lock();
        let picture = state.picture;
        LeaseShown {
            granted: picture.granted,
            wished: picture.wished,
            held: picture.held,
            floor: state.terms.floor,
            pool: picture.pool,
            pool_in_force: picture.pool_in_force,
            until_seconds: lasts(picture.until).map(shown_seconds),
            learning_seconds: picture.learning.map(shown_seconds),
            unanswered: picture.unanswered,
            error: state.error.clone(),
            paused: picture.is_paused,
            shared_node_id: picture.has_twin,
            store_latency_seconds: state.latency.map(|latency| latency.as_secs_f64()),
        }
    }

    pub(super) fn terms(&self) -> FleetTerms {
        self.state.lock().terms.clone()
    }

    pub(super) fn take_orders(&self) -> Orders {
        std::mem::take(&mut self.state.lock().orders)
    }

    /// The store was asked, and took so long to answer, or did not.
    pub(super) fn answered(&self, latency: Duration, error: Option<String>) {
        let mut state = self.state.lock();
        (state.latency, state.error) = (error.is_none().then_some(latency).or(state.latency), error);
    }

    /// The word of the machine holds from now on. Whether the gate has to look again.
    pub(super) fn hold(&self, borrower: &Borrower, now: Duration) -> bool {
        let picture = borrower.picture(now);
        let mut state = self.state.lock();
        state.has_left = borrower.has_left();
        state.most = state.most.max(picture.granted);
        let before = std::mem::replace(&mut state.picture, picture);
        let for_the_gate =
            |picture: LeasePicture| (picture.limit, picture.until.is_some(), picture.is_paused, picture.yields());
        for_the_gate(before) != for_the_gate(picture)
    }
}

impl Lent for Lease {
    fn slots(&self) -> Option<usize> {
        let LeasePicture { limit, until, learning, .. } = self.state.lock().picture;
        lasts(until).filter(|_| limit > 0 || learning.is_none()).map(|_| count(limit))
    }

    fn is_paused(&self) -> bool {
        self.state.lock().picture.is_paused
    }

    fn yields(&self) -> bool {
        self.state.lock().picture.yields()
    }
}

/// Connections at the gate, with those on the floor of the process before this one: a node has one floor, and the slots of this
/// process are leased ones as long as the other one has it.
fn used_with(now: &Snapshot, floor: u64) -> u64 {
    now.open.open() as u64 + floor.min(now.reserved as u64)
}

/// The gate, as its lease sees it.
pub trait SlotPool: Send + Sync + 'static {
    /// The use of the slots, of which so many are never lent.
    fn usage(&self, floor: u64) -> SlotUsage;
    /// Other slots are lent than before.
    fn lending_changed(&self);
    /// So many connections must end at once.
    fn cut(&self, most: u64);
    /// The time of the gate.
    fn now(&self) -> Duration;
    /// The use, for operators, by a node that knows this order, and drains or does not.
    fn report(&self, order: FleetOrder, draining: bool) -> NodeReport;
}

/// The gate of a leased registry, and its level of distress.
pub(super) struct LeasedGate<P> {
    pub gate: Gate<P>,
    pub distress: Box<dyn Fn() -> f64 + Send + Sync>,
}

impl<P: Send + 'static> SlotPool for LeasedGate<P> {
    fn usage(&self, floor: u64) -> SlotUsage {
        let now = self.gate.snapshot();
        // More slots would serve no request of these.
        let is_held =
            matches!(now.limited_by, Some(LimitedBy::Paused | LimitedBy::FleetPaused | LimitedBy::Unreachable));
        SlotUsage {
            open: used_with(&now, floor),
            idle: now.open.idle as u64,
            waiting: if is_held { 0 } else { now.waiting as u64 },
        }
    }

    fn lending_changed(&self) {
        self.gate.happen(Core::look_again);
    }

    fn cut(&self, most: u64) {
        // A dial that has no socket yet is looked at again when it has one.
        let youngest = self.gate.look(|core, _| core.youngest(count(most)));
        youngest.iter().filter_map(|activity| activity.cutter.0.get()).for_each(|socket| socket.cut());
    }

    fn now(&self) -> Duration {
        self.gate.now().0
    }

    fn report(&self, order: FleetOrder, draining: bool) -> NodeReport {
        let now = self.gate.snapshot();
        NodeReport {
            order: order.0,
            paused_here: now.paused,
            draining,
            open: now.open.open(),
            waiting: now.waiting,
            oldest_wait_seconds: shown_seconds(now.oldest_wait),
            distress: ((self.distress)() * 100.0).round() / 100.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{Admission, AdmissionRequest, ClassId, ClientId, Limits, Principal};
    use crate::lease::message::Times;
    use crate::metrics::Metrics;

    fn lent(floor: u64, picture: LeasePicture) -> Arc<Lease> {
        let lease = Lease::new("harbor", FleetTerms { times: Times::default(), floor, pool: 10, nodes: 2 });
        lease.state.lock().picture = picture;
        lease
    }

    fn wait_until(end: Duration) {
        while boot_time() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A process that was frozen gives no slot before any of its tasks has run.
    #[test]
    fn the_slots_of_a_lease_end_with_it_though_nothing_runs() {
        let until = boot_time() + Duration::from_secs(1);
        let lease = lent(2, LeasePicture { granted: 5, limit: 4, until: Some(until), ..LeasePicture::default() });
        assert_eq!(lease.slots(), Some(4));
        wait_until(until);
        assert_eq!(lease.slots(), None);
        assert_eq!(lent(2, LeasePicture { limit: 4, ..LeasePicture::default() }).slots(), None, "none was ever lent");
    }

    /// The time after which no slot is given ends nothing that is open. The time after that does, and leaves the floor.
    #[tokio::test]
    async fn connections_on_a_lease_are_over_when_it_is_to_be_closed() {
        let limits = Limits {
            slots: 10,
            depth: 10,
            rate: None,
            idle_timeout: Duration::ZERO,
            max_lifetime: Duration::ZERO,
            max_connecting: 10,
            keep_place: Duration::ZERO,
            weights: vec![1],
        };
        let gate: Gate<()> = Gate::new(limits, Metrics::new().of_registry("test", &["default".to_owned()]));
        let (client, target): (ClientId, Arc<str>) = ("client".into(), "target:443".into());
        let mut slots = Vec::new();
        for _ in 0..2 {
            let principal = Principal { class: ClassId::default(), client: client.clone() };
            let (place, _) = gate.place(&client, &target);
            let request = AdmissionRequest::new(place, gate.now() + Duration::from_secs(5), principal, target.clone());
            let Ok(Admission::New(slot)) = gate.admit(request).await else { panic!("not admitted") };
            slots.push(slot);
        }
        let now = boot_time();
        let close_by = now + Duration::from_secs(1);
        let picture =
            LeasePicture { granted: 1, limit: 1, until: Some(now), close_by: Some(close_by), ..Default::default() };
        let (without, with) = (lent(0, LeasePicture { granted: 2, ..picture }), lent(1, picture));
        let is_over = |lease: &Arc<Lease>| Lease::is_over(Some(lease), &gate);
        assert!(!is_over(&without) && !is_over(&with) && !Lease::is_over(None, &gate));
        assert!(is_over(&lent(0, picture)), "two, where one is lent");
        wait_until(close_by);
        assert!(is_over(&without) && is_over(&with));
        slots.pop();
        assert!(is_over(&without) && !is_over(&with), "one is on the floor");
    }
}
