//! The books of one registry: which slots are taken, which requests wait, and what was decided about them.
//!
//! Each method is one step that keeps the books consistent. When a step is due is not known here: [`super::core`] and
//! [`super::reclaim`] say so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::decision::{CloseCause, Decision, LimitedBy, Limits, Refusal, RefusalReason};
use super::fair_queue::AdmittedAs;
use super::ledger::{Ledger, Occupant};
use super::moment::Moment;
use super::outages::Outages;
use super::pooled::PooledSlots;
use super::queue::{WaitQueue, Waiter};
use super::quiet::QuietTunnels;
use super::rate::Bucket;
use super::request::{AdmissionRequest, ClassId, Place, ReuseKey};
use super::slot::{SlotId, SlotState};
use super::tickets::Tickets;
use super::usage::Usage;
use super::wait_estimate::WaitEstimate;
use super::witness::{Occurrence, Witness};
use crate::lease::borrowed::Lent;

/// Positions are counted so far. A refusal costs the same in the longest queue.
const MAX_POSITION: usize = 1000;

/// The shortest pause of a tunnel that has carried a request, at the defaults. Slots that come free by themselves are counted for so
/// long, and one that is on its way back is believed in.
pub(super) const TURNOVER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Books {
    pub limits: Limits,
    pub ledger: Ledger,
    pub pooled: PooledSlots,
    pub quiet: QuietTunnels,
    /// When slots came free by themselves, lately.
    freed: VecDeque<Moment>,
    pub queue: WaitQueue,
    /// By when a slot should be there that is on its way to the request at the head, whichever that is then.
    pub room_due: Option<Moment>,
    pub bucket: Option<Bucket>,
    pub tickets: Tickets,
    pub outages: Outages,
    pub wait_estimates: Vec<WaitEstimate>,
    pub usage: Usage,
    pub limited_by: Option<LimitedBy>,
    pub limited_until: Option<Moment>,
    /// The slots that the distress of the registry leaves.
    pub yields_to: usize,
    pub reserved: usize,
    pub lent: Option<Arc<dyn Lent>>,
    /// While another process takes over: the slots that this one may use. A slot that is released is the other one's.
    pub own: Option<usize>,
    pub decisions: VecDeque<Decision>,
    pub witness: Option<Arc<dyn Witness>>,
    /// Keys for which a connection was pooled, or a request came, in this event.
    pub touched: Vec<ReuseKey>,
}

impl Books {
    pub fn new(limits: Limits, now: Moment) -> Books {
        Books {
            bucket: limits.rate.map(|rate| Bucket::new(rate, now)),
            ledger: Ledger::default(),
            pooled: PooledSlots::default(),
            quiet: QuietTunnels::default(),
            freed: VecDeque::new(),
            queue: WaitQueue::new(&limits.weights),
            room_due: None,
            tickets: Tickets::new(limits.keep_place),
            outages: Outages::default(),
            wait_estimates: vec![WaitEstimate::default(); limits.weights.len()],
            usage: Usage::default(),
            limited_by: None,
            limited_until: None,
            yields_to: usize::MAX,
            reserved: 0,
            lent: None,
            own: None,
            decisions: VecDeque::new(),
            witness: None,
            touched: Vec::new(),
            limits,
        }
    }

    pub fn report(&self, seen: impl FnOnce() -> Occurrence) {
        if let Some(witness) = &self.witness {
            witness.saw(seen(), self.ledger.counts());
        }
    }

    /// Those that are configured, and those that are leased.
    pub fn slots_given(&self) -> usize {
        self.limits.slots.saturating_add(self.lent.as_ref().and_then(|lent| lent.slots()).unwrap_or(0))
    }

    /// All that are given, or those that the registry can serve where they are fewer.
    pub fn slots_in_force(&self) -> usize {
        self.slots_given().min(self.yields_to)
    }

    pub fn slots(&self) -> usize {
        self.slots_in_force().saturating_sub(self.reserved).min(self.own.unwrap_or(usize::MAX))
    }

    /// A rate that changes keeps the tokens that are left: no change makes a burst.
    pub fn change(&mut self, limits: Limits, now: Moment) {
        self.bucket = limits.rate.map(|rate| match self.bucket.take() {
            Some(bucket) => bucket.changed(rate, now),
            None => Bucket::new(rate, now),
        });
        self.queue.change_weights(&limits.weights);
        self.wait_estimates.resize(limits.weights.len().max(self.wait_estimates.len()), WaitEstimate::default());
        self.tickets.change(limits.keep_place);
        self.limits = limits;
    }

    pub fn wake_no_later(&mut self, at: Option<Moment>) {
        self.limited_until = [self.limited_until, at].into_iter().flatten().min();
    }

    pub fn enqueue(&mut self, request: AdmissionRequest, since: Moment, now: Moment) {
        let held_back = !request.held && self.outages.hold_back(&request.target, request.place);
        self.touched.extend(request.reuse.clone());
        self.queue.push(request, held_back, since, now);
    }

    /// A request is held no longer.
    pub fn let_go(&mut self, place: Place, now: Moment) {
        if self.queue.get(place).is_some_and(|waiter| waiter.request.held)
            && let Some(Waiter { request, since, .. }) = self.queue.remove(place, now)
        {
            self.enqueue(AdmissionRequest { held: false, ..request }, since, now);
        }
    }

    /// Mode observe and other hosts hold nothing.
    pub fn may_hold(&self) -> bool {
        self.limits.slots < usize::MAX
    }

    /// Lets all requests go that an outage or their callers hold, where the slots have no bound.
    pub fn hold_nothing(&mut self, now: Moment) {
        if self.may_hold() || self.queue.in_line() == self.queue.len() {
            return;
        }
        self.outages = Outages::default();
        let places: Vec<Place> = self.queue.by_arrival().map(|waiter| waiter.request.place).collect();
        for place in places {
            self.let_go(place, now);
            self.queue.let_go(place, now);
        }
    }

    /// A waiting request leaves by itself. Its place is kept.
    pub fn leave(&mut self, place: Place, now: Moment) -> bool {
        let Some(Waiter { request, .. }) = self.queue.remove(place, now) else { return false };
        self.report(|| Occurrence::Ended(place));
        self.outages.leave(&request.target, place, now);
        let owner = self.tickets.owner(&request.principal.client, &request.target);
        self.tickets.keep(owner, place, now);
        true
    }

    pub fn take_slot_and_token(&mut self, now: Moment) -> Result<SlotId, LimitedBy> {
        if self.ledger.open() >= self.slots() {
            let pool_yields = || self.lent.as_ref().is_some_and(|lent| lent.slots().is_some() && lent.yields());
            let lowered = self.ledger.open() < self.slots_given().saturating_sub(self.reserved) || pool_yields();
            return Err(if self.own.is_none() && lowered { LimitedBy::Distress } else { LimitedBy::Slots });
        }
        if self.ledger.connecting() >= self.limits.max_connecting {
            return Err(LimitedBy::Connecting);
        }
        if let Some(bucket) = &mut self.bucket
            && let Err(due) = bucket.take(now)
            && self.may_hold()
        {
            self.wake_no_later(Some(due));
            return Err(LimitedBy::Rate);
        }
        let slot = self.ledger.take(now);
        self.usage.granted(slot, now);
        Ok(slot)
    }

    pub fn admit_to_new(&mut self, place: Place, slot: SlotId, now: Moment) {
        let waited = self.admit(place, slot, AdmittedAs::Next, now);
        self.room_due = None;
        self.report(|| Occurrence::Admitted { place, slot, pooled: false });
        self.decisions.push_back(Decision::Dial { place, slot, waited });
    }

    pub fn admit_to_pooled(&mut self, place: Place, slot: SlotId, how: AdmittedAs, now: Moment) {
        self.enter(slot, SlotState::Active, now);
        // It does not tell whether its target takes connections: another request may probe.
        if let Some(waiter) = self.queue.get(place) {
            self.outages.leave(&waiter.request.target.clone(), place, now);
        }
        let waited = self.admit(place, slot, how, now);
        self.report(|| Occurrence::Admitted { place, slot, pooled: true });
        self.decisions.push_back(Decision::Reuse { place, slot, waited });
    }

    fn admit(&mut self, place: Place, slot: SlotId, how: AdmittedAs, now: Moment) -> Duration {
        let (waiter, charge) = self.queue.take(place, how, now).expect("only requests that wait are admitted");
        let class = waiter.request.principal.class;
        self.wait_estimates[class.0].admitted(now, self.queue.waiting_in(class) > 0);
        let (had_to_wait, slot_use) = (waiter.waited(now), waiter.request.slot_use());
        let AdmissionRequest { principal, target, .. } = waiter.request;
        self.ledger.occupy(slot, Occupant { principal, target, slot_use, place, charge });
        had_to_wait
    }

    /// Hands each pooled connection that a request can use to the first such request, whichever request is next: that takes
    /// neither slot nor token nor dial from the others.
    pub fn match_pooled(&mut self, now: Moment) {
        while let Some(key) = self.touched.pop() {
            while let Some(slot) = self.pooled.freshest(&key)
                && let Some(place) = self.queue.first_for(&key)
            {
                self.admit_to_pooled(place, slot, AdmittedAs::Passing, now);
            }
        }
    }

    pub fn enter(&mut self, slot: SlotId, state: SlotState, now: Moment) {
        self.pooled.remove(slot);
        self.quiet.remove(slot);
        self.ledger.enter(slot, state);
        self.usage.set_busy(slot, matches!(state, SlotState::Connecting | SlotState::Active), now);
    }

    /// Keeps the connection in this slot for reuse, or closes it where it may not be kept.
    pub fn pool(&mut self, slot: SlotId, key: ReuseKey, may_keep: bool, now: Moment) {
        match self.may_lie_idle(slot, now) {
            Some(expires_in) if may_keep && self.ledger.enter(slot, SlotState::Idle) => {
                self.quiet.remove(slot);
                self.usage.set_busy(slot, false, now);
                self.settle(slot, now);
                self.touched.push(key.clone());
                self.pooled.add(slot, key, now, expires_in);
            }
            _ => self.close(slot, CloseCause::Expired),
        }
        self.outages.retry_full(now);
    }

    /// How long the connection in this slot may be kept from now on.
    fn may_lie_idle(&self, slot: SlotId, now: Moment) -> Option<Duration> {
        let life_left = self.limits.max_lifetime.checked_sub(now.since(self.ledger.get(slot)?.born))?;
        Some(self.limits.idle_timeout.min(life_left)).filter(|keep| !keep.is_zero())
    }

    pub fn close(&mut self, slot: SlotId, cause: CloseCause) {
        self.pooled.remove(slot);
        self.quiet.remove(slot);
        self.ledger.enter(slot, SlotState::Closing);
        self.ledger.mark_taken(slot);
        self.decisions.push_back(Decision::Close { slot, cause });
    }

    pub fn ask_to_close(&mut self, slot: SlotId) {
        self.quiet.mark_reclaimed(slot);
        self.ledger.mark_taken(slot);
        self.decisions.push_back(Decision::Reclaim { slot });
    }

    /// How many slots came free by themselves within the last [`TURNOVER`].
    pub fn freed_lately(&mut self, now: Moment) -> usize {
        let is_old = |freed: &Moment| now.since(*freed) >= TURNOVER;
        self.freed.drain(..self.freed.partition_point(is_old));
        self.freed.len()
    }

    /// When those will be fewer than so many, if none comes free.
    pub fn fewer_freed_than(&self, most: usize) -> Moment {
        let last_too_many = self.freed.len().checked_sub(most).and_then(|at| self.freed.get(at));
        last_too_many.map_or(Moment::default(), |freed| *freed + TURNOVER)
    }

    /// The socket is gone. A token that was not spent goes to a request that waits now. Whether the slot was taken until now.
    pub fn release(&mut self, slot: SlotId, now: Moment) -> bool {
        self.pooled.remove(slot);
        self.quiet.remove(slot);
        self.usage.released(slot, now);
        self.settle(slot, now);
        let Some(entry) = self.ledger.release(slot) else { return false };
        if !entry.taken {
            self.freed_lately(now);
            self.freed.push_back(now);
        }
        self.own = self.own.map(|own| own.saturating_sub(1));
        if let Some(bucket) = self.bucket.as_mut().filter(|_| !entry.dialled) {
            bucket.give_back();
        }
        true
    }

    /// The slot serves its request no longer: what was charged in advance is corrected.
    fn settle(&mut self, slot: SlotId, now: Moment) {
        if let Some(occupant) = self.ledger.clear_occupant(slot) {
            self.outages.leave(&occupant.target, occupant.place, now);
            self.queue.settle(&occupant.principal, occupant.charge, now);
        }
    }

    pub fn refuse(&mut self, place: Place, reason: RefusalReason, now: Moment) {
        let Some(waiter) = self.queue.remove(place, now) else { return };
        self.report(|| Occurrence::Ended(place));
        let request = &waiter.request;
        self.outages.leave(&request.target, place, now);
        let limited_by = match reason {
            RefusalReason::QueueFull | RefusalReason::QueueTimeout | RefusalReason::LeaseLost => self.limited_by,
            RefusalReason::Unreachable => Some(LimitedBy::Unreachable),
            RefusalReason::Draining => None,
        };
        let is_lost = self.lent.as_ref().is_some_and(|lent| lent.slots().is_none());
        let ahead = self.queue.ahead_of(place, MAX_POSITION);
        // Of its own class, if those ahead are as mixed as all are: looking at each would take too long here.
        let (class, waiting) = (request.principal.class, self.queue.len());
        let of_class = self.queue.waiting_in(class);
        let ahead_in_class = (ahead * of_class).div_ceil(waiting.max(1));
        let refusal = Refusal {
            limited_by,
            position: (ahead < MAX_POSITION).then_some(ahead + 1),
            expected_wait: limited_by.and_then(|_| self.expected_wait(class, ahead_in_class + 1)),
            reason: if limited_by == Some(LimitedBy::Slots) && is_lost { RefusalReason::LeaseLost } else { reason },
            waited: waiter.waited(now),
            waiting,
            slots: self.slots_given(),
            retry_after: self.wait_estimates[class.0].expected_wait(of_class),
        };
        let is_over = matches!(reason, RefusalReason::QueueTimeout | RefusalReason::Unreachable);
        let may_return = is_over.then(|| self.tickets.owner(&request.principal.client, &request.target));
        self.decisions.push_back(Decision::Refuse { place, refusal, may_return });
    }

    /// When the request at this position of its class will be admitted, as far as the past tells. It does not tell when a pause
    /// or an outage ends.
    pub fn expected_wait(&self, class: ClassId, position: usize) -> Option<Duration> {
        let moves =
            !matches!(self.limited_by, Some(LimitedBy::Paused | LimitedBy::FleetPaused | LimitedBy::Unreachable));
        moves.then(|| self.wait_estimates[class.0].expected_wait(position))
    }
}
