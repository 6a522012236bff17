//! The gate: the async face of the admission core, one per registry.
//!
//! A request takes a [`Place`], asks with [`Gate::admit`], and is given an [`Admission`] or a [`Refusal`]. Everything
//! is decided by the state machine in [`core`]; this file adds real time, wake-ups and metrics, and nothing
//! that decides. It never names sockets, HTTP or the config file.
//!
//! # What always holds
//! 1. Taken slots never exceed the slots, except those that stood when the slots were reduced; no new one is granted
//!    before it fits. *`core_tests::random_histories_keep_every_promise`*
//! 2. A waiter holds neither slot nor token. *`core_tests::random_histories_keep_every_promise`*
//! 3. Slot and token are taken together or not at all; a token whose waiter vanished before `connect()` goes to
//!    another waiter. *`core_tests::a_vanished_waiters_slot_and_token_go_to_the_next`*
//! 4. A request is answered exactly once: admitted or refused. Only `depth`, its deadline and the end of the process
//!    refuse it, and it waits once at a time. *`core_tests::random_histories_keep_every_promise`,
//!    `tickets::a_place_that_is_kept_twice_is_given_once`*
//! 5. No slot is free, with a token due, while a waiter may use them; an admitted waiter is woken, in every order in which
//!    threads can meet. *`core_tests::random_histories_keep_every_promise`,
//!    `handover_models::a_slot_granted_to_one_who_leaves_goes_to_the_next`,
//!    `handover_models::a_deadline_and_a_grant_end_in_one_call`,
//!    `handover_models::more_slots_wake_one_who_sits_down_in_that_moment`,
//!    `handover_models::who_is_polled_by_another_task_is_woken_there`*
//! 6. Idle connections are reclaimed when no slot is free, one for one waiter, and quiet tunnels not before their time.
//!    *`core_tests::one_slot_serves_two_authorities_in_turn`,
//!    `core_tests::a_recalled_tunnel_that_moves_after_all_is_left_alone_and_another_is_asked`,
//!    `core_tests::the_next_recall_comes_with_the_next_token_and_not_with_the_next_slot`*
//! 7. A dropped [`Admit`] leaves no trace: not in the queue, not in a slot, not in the bucket.
//!    *`tests::an_admission_dropped_at_any_point_leaves_no_trace`,
//!    `handover_models::a_token_granted_with_it_goes_along`,
//!    `handover_models::who_leaves_at_its_deadline_takes_nothing_along`*
//! 8. Clients and classes get their parts of the slot-seconds, measured against ideal shares.
//!    *`fairness_tests::nine_modest_clients_finish_beside_a_greedy_one_as_in_ideal_turns`,
//!    `fairness_tests::clients_get_the_same_slot_seconds_though_one_holds_ten_times_longer`,
//!    `fairness_tests::a_class_of_eight_times_the_weight_gets_eight_times_the_slot_seconds`*

mod activity;
mod books;
#[cfg(test)]
mod change_tests;
mod client_counts;
pub mod core;
#[cfg(test)]
mod core_tests;
pub mod decision;
#[cfg(test)]
mod fair_histories_tests;
mod fair_queue;
mod fair_round;
#[cfg(test)]
mod fairness_tests;
mod handover;
mod ledger;
mod maps;
mod moment;
mod occupancy;
mod outages;
mod pooled;
mod queue;
mod quiet;
mod rate;
mod reclaim;
mod request;
mod slot;
mod sync;
mod tickets;
mod usage;
mod view;
mod wait_estimate;
mod witness;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::task::{Context, Poll};

use tokio::sync::Notify;
use tokio::time::Instant;

pub use self::activity::Activity;
use self::core::Core;
pub use self::decision::{LimitedBy, Limits, Needs, Refusal, RefusalReason};
use self::handover::{Aftermath, Call, Handover};
pub use self::moment::Moment;
pub use self::occupancy::{ClientCount, Occupancy};
pub use self::rate::RateLimit;
pub use self::request::{AdmissionRequest, ClassId, ClientId, Lane, Place, Principal, RequestLabel, ReuseKey, SlotUse};
pub use self::slot::{Counts, Evidence, OnReclaim, Quiet, Slot, SlotEvent, SlotId, SlotKeeper, SlotState};
use self::tickets::Owner;
pub use self::usage::Used;
pub use self::view::{Explanation, HolderInfo, Snapshot, WaiterInfo, shown_seconds};
pub use self::witness::{Occurrence, Witness};
use crate::metrics::{Reclaimed, RegistryMetrics, WaitOutcome};

/// Admits requests to one registry; cheap to clone. `P` is a kept connection: opaque here, closed by dropping it.
pub struct Gate<P> {
    shared: Arc<Shared<P>>,
}

struct Shared<P> {
    handover: Handover<P>,
    epoch: Instant,
    alarm: Arc<Notify>,
    /// Replaced when the classes change.
    metrics: RwLock<Arc<RegistryMetrics>>,
    /// Told of everything that happens here.
    changes: OnceLock<Arc<Notify>>,
}

/// A ticket that a request came back with. Dropped unused, its place is kept again: the request ended before it asked, say
/// because the name could not be resolved.
#[must_use = "a ticket dropped unused keeps its place again"]
#[derive(Debug)]
pub struct Ticket<P> {
    gate: Gate<P>,
    place: Place,
    owner: Owner,
    used: bool,
}

impl<P> Ticket<P> {
    /// The request asks now. Its place may be kept again when it leaves.
    pub fn spend(mut self) {
        self.used = true;
    }
}

impl<P> Drop for Ticket<P> {
    fn drop(&mut self) {
        if !self.used {
            let now = self.gate.shared.now();
            self.gate.shared.handover.with(|core| core.keep_place(self.place, self.owner, now));
        }
    }
}

#[must_use = "an admission dropped at once is given back at once"]
#[derive(Debug)]
pub enum Admission<P> {
    /// It may open one socket, which must live inside this slot.
    New(Slot),
    /// It may use this connection, which has its slot already.
    Kept(P),
}

impl<P: Send + 'static> Gate<P> {
    /// A gate with nothing taken and nobody waiting. Must be called inside a tokio runtime, on which the task that
    /// watches deadlines and tokens runs until the gate is dropped.
    pub fn new(limits: Limits, metrics: Arc<RegistryMetrics>) -> Gate<P> {
        let alarm = Arc::new(Notify::new());
        let shared = Arc::new(Shared {
            handover: Handover::new(Core::new(limits, Moment::default())),
            epoch: Instant::now(),
            alarm: alarm.clone(),
            metrics: RwLock::new(metrics),
            changes: OnceLock::new(),
        });
        tokio::spawn(keep_time(Arc::downgrade(&shared), alarm));
        Gate { shared }
    }

    /// A place for a request of this client for this target that arrives now. With a ticket, it is the place of an earlier
    /// request, and the ticket is to be spent when it asks with [`Gate::admit`].
    pub fn place(&self, client: &ClientId, target: &str) -> (Place, Option<Ticket<P>>) {
        let now = self.now();
        let (place, owner) = self.shared.handover.with(|core| core.place(client, target, now));
        (place, owner.map(|owner| Ticket { gate: self.clone(), place, owner, used: false }))
    }

    pub fn epoch(&self) -> Instant {
        self.shared.epoch
    }

    pub fn now(&self) -> Moment {
        self.shared.now()
    }

    /// Waits for admission. Cancel-safe at any point: dropping the future gives up the place and whatever was granted.
    /// Fails with the refusal, when `depth`, the deadline or the end of the process forbids to wait on.
    pub fn admit(&self, ask: AdmissionRequest) -> Admit<P> {
        let (place, class, key) = (ask.place, ask.principal.class, ask.reuse.clone());
        Admit { gate: self.clone(), place, class, key, since: self.now(), stage: Stage::New(Box::new(ask)) }
    }

    /// Lets requests go that are [`held`](AdmissionRequest::held): they are admitted in the order of the queue.
    pub fn let_go(&self, places: &[Place]) {
        self.happen(|core, now| core.let_go(places, now));
    }

    /// Keeps a connection for the next request for `key`, or closes it when that may not be.
    pub fn park(&self, slot: SlotId, key: ReuseKey, connection: P) {
        self.shared.settle(self.shared.handover.park(slot, key, connection, self.now()));
    }

    pub fn tell(&self, slot: SlotId, event: SlotEvent) {
        SlotKeeper::tell(&*self.shared, slot, event, None);
    }

    pub fn quiet(&self, slot: SlotId, quiet: Quiet, on_reclaim: OnReclaim) {
        SlotKeeper::tell(&*self.shared, slot, SlotEvent::Quiet(quiet), Some(on_reclaim));
    }

    /// Hands slots over to another process: a slot that is released is not used again here, and those who wait are served
    /// by what that process grants, `granted` more from now on. Tells what is needed, in one step.
    #[must_use = "the other process has to know"]
    pub fn hand_over(&self, granted: usize) -> Needs {
        let now = self.now();
        let mut needs = Needs { slots: 0, wanted: 0 };
        self.shared.carry_out(self.shared.handover.event(|core| needs = core.hand_over(granted, now)));
        needs
    }

    /// Notifies this of everything that happens here from now on, but for what [`Gate::hand_over`] does.
    pub fn tell_changes(&self, changes: &Arc<Notify>) {
        let _ = self.shared.changes.set(changes.clone());
    }

    /// Changes what holds; who waits and who holds goes on. The metrics may know more classes than before.
    pub fn change(&self, limits: Limits, metrics: Arc<RegistryMetrics>) {
        *self.shared.metrics.write().unwrap_or_else(PoisonError::into_inner) = metrics;
        self.happen(|core, now| core.change(limits, now));
    }

    /// Lets an event happen to the core.
    pub fn happen(&self, event: impl FnOnce(&mut Core, Moment)) {
        let now = self.now();
        self.shared.settle(self.shared.handover.event(|core| event(core, now)));
    }

    /// A look at the core, at the present time.
    pub fn look<T>(&self, look: impl FnOnce(&Core, Moment) -> T) -> T {
        let now = self.now();
        self.shared.handover.with(|core| look(core, now))
    }

    pub fn snapshot(&self) -> Snapshot {
        self.look(Core::snapshot)
    }
}

impl<P> Clone for Gate<P> {
    fn clone(&self) -> Gate<P> {
        Gate { shared: self.shared.clone() }
    }
}

impl<P> std::fmt::Debug for Gate<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl<P> Shared<P> {
    fn now(&self) -> Moment {
        Moment(self.epoch.elapsed())
    }

    fn metrics(&self) -> Arc<RegistryMetrics> {
        self.metrics.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn settle(&self, aftermath: Aftermath<P>) {
        self.carry_out(aftermath);
        if let Some(changes) = self.changes.get() {
            changes.notify_waiters();
        }
    }

    fn carry_out(&self, aftermath: Aftermath<P>) {
        if aftermath.rearm {
            self.alarm.notify_one();
        }
        for _ in 0..aftermath.settle() {
            self.metrics().reclaimed(Reclaimed::Pooled);
        }
    }
}

impl<P> Drop for Shared<P> {
    fn drop(&mut self) {
        self.alarm.notify_one();
    }
}

impl<P: Send + 'static> SlotKeeper for Shared<P> {
    fn tell(&self, id: SlotId, event: SlotEvent, on_reclaim: Option<OnReclaim>) {
        self.settle(self.handover.tell(id, event, on_reclaim, self.now()));
    }

    fn now(&self) -> Moment {
        self.now()
    }
}

/// Ticks the core whenever it asked to be woken, until the gate is gone.
async fn keep_time<P>(gate: Weak<Shared<P>>, alarm: Arc<Notify>) {
    loop {
        let Some(shared) = gate.upgrade() else { return };
        let due = shared.handover.wake_at().map(|at| shared.epoch + at.0);
        drop(shared);
        let Some(due) = due else {
            alarm.notified().await;
            continue;
        };
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = alarm.notified() => continue,
        }
        let Some(shared) = gate.upgrade() else { return };
        let now = shared.now();
        shared.settle(shared.handover.event(|core| core.tick(now)));
    }
}

#[must_use = "nobody waits before the first poll"]
pub struct Admit<P: Send + 'static> {
    gate: Gate<P>,
    place: Place,
    class: ClassId,
    key: Option<ReuseKey>,
    since: Moment,
    stage: Stage,
}

enum Stage {
    /// On the heap: it is much larger than what is left of it once it waits.
    New(Box<AdmissionRequest>),
    Seated,
    Done,
}

impl<P: Send + 'static> std::fmt::Debug for Admit<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admit").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<P: Send + 'static> Admit<P> {
    fn called(&mut self, call: Call<P>) -> Result<Admission<P>, Refusal> {
        self.stage = Stage::Done;
        let shared = &self.gate.shared;
        match call {
            Call::Dial { slot, activity, waited } => {
                shared.metrics().waited(self.class.0, WaitOutcome::Admitted, waited);
                Ok(Admission::New(Slot::new(slot, activity, shared.clone())))
            }
            Call::Reuse { kept, waited, .. } => {
                shared.metrics().waited(self.class.0, WaitOutcome::Admitted, waited);
                Ok(Admission::Kept(kept))
            }
            Call::Refused(refusal) => {
                shared.metrics().waited(self.class.0, WaitOutcome::Refused, refusal.waited);
                Err(refusal)
            }
        }
    }
}

impl<P: Send + 'static> Future for Admit<P> {
    type Output = Result<Admission<P>, Refusal>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let shared = &this.gate.shared;
        if let Stage::New(ask) = std::mem::replace(&mut this.stage, Stage::Seated) {
            this.since = shared.now();
            shared.settle(shared.handover.arrive(*ask, context.waker(), this.since));
        }
        match shared.handover.poll_call(this.place, context, shared.now()) {
            Poll::Ready(call) => Poll::Ready(this.called(call)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<P: Send + 'static> Drop for Admit<P> {
    fn drop(&mut self) {
        if matches!(self.stage, Stage::Seated) {
            let shared = &self.gate.shared;
            let now = shared.now();
            shared.settle(shared.handover.leave(self.place, now, self.key.as_ref()));
            shared.metrics().waited(self.class.0, WaitOutcome::ClientLeft, now.since(self.since));
        }
    }
}

/// Random histories of the core that are lived through here; ten times as many in `tests/models`.
#[cfg(test)]
fn history_count() -> u32 {
    1000
}

#[cfg(test)]
mod tests;
