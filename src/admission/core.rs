//! The state machine that decides: events and the time go in, decisions come out. No I/O, no clock, no wake-ups.
//!
//! Every event ends in one `dispatch`, which looks at the whole picture once and decides all that can be
//! decided: nothing that could be admitted is left for a later event. The driver takes the decisions out with
//! [`Core::next_decision`] and calls [`Core::tick`] at [`Core::wake_at`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::activity::Activity;
use super::decision::{CloseCause, Decision, LimitedBy, Limits, Refusal, RefusalReason};
use super::fair_queue::Turn;
use super::idle::IdleSlots;
use super::ledger::{Ledger, Occupant};
use super::moment::Moment;
use super::outages::Outages;
use super::queue::Queue;
use super::quiet::QuietTunnels;
use super::rate::Bucket;
use super::request::{AdmissionRequest, ClassId, Client, Owner, Place, ReuseKey};
use super::slot::{Evidence, Quiet, SlotEvent, SlotId, SlotState};
use super::tickets::Tickets;
use super::usage::Usage;
use super::wait_estimate::WaitEstimate;

/// Positions are counted so far, that a refusal costs the same in the longest queue.
const FARTHEST_POSITION: usize = 1000;

/// The admission state of one registry.
#[derive(Debug)]
pub struct Core {
    pub(super) limits: Limits,
    pub(super) ledger: Ledger,
    idle: IdleSlots,
    pub(super) queue: Queue,
    bucket: Option<Bucket>,
    pub(super) quiet: QuietTunnels,
    places: Tickets,
    outages: Outages,
    /// How fast each class moves.
    pub(super) wait_estimates: Vec<WaitEstimate>,
    pub(super) usage: Usage,
    mode: Mode,
    pub(super) paused: bool,
    pub(super) limited_by: Option<LimitedBy>,
    decisions: VecDeque<Decision>,
    /// When the bound may give way by time alone.
    limited_until: Option<Moment>,
    /// Slots that are still held elsewhere.
    pub(super) reserved: usize,
    /// Slots that this one keeps while it hands over to another process; `usize::MAX`: all.
    kept: usize,
    arrivals: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// All is open.
    Running,
    /// Those who came are served, nothing is kept.
    Draining,
    /// Nobody is admitted any more.
    Ended,
}

impl Core {
    /// Nothing taken, nobody waiting, a full bucket.
    #[must_use]
    pub fn new(limits: Limits, now: Moment) -> Core {
        Core {
            bucket: limits.rate.map(|rate| Bucket::new(rate, now)),
            ledger: Ledger::default(),
            idle: IdleSlots::default(),
            queue: Queue::new(&limits.weights),
            quiet: QuietTunnels::default(),
            places: Tickets::new(limits.keep_place),
            outages: Outages::default(),
            wait_estimates: vec![WaitEstimate::default(); limits.weights.len()],
            usage: Usage::default(),
            mode: Mode::Running,
            paused: false,
            limited_by: None,
            decisions: VecDeque::new(),
            limited_until: None,
            reserved: 0,
            kept: usize::MAX,
            arrivals: 0,
            limits,
        }
    }

    /// A place for a request that arrives now: the one that was kept for this client and target, if it left unserved
    /// not long ago, or one at the end of the order. The flag tells whether it came back. A place costs nothing and need
    /// not be used; one that was kept can be given back.
    pub fn place(&mut self, owner: &Owner, now: Moment) -> (Place, bool) {
        if let Some(kept) = self.places.take(owner, now) {
            return (kept, true);
        }
        self.arrivals += 1;
        (Place::new(now, self.arrivals), false)
    }

    /// Keeps the place of a request that was refused and knows it now; or of one that came back to it, and ended before it
    /// asked.
    pub fn keep_place(&mut self, place: Place, owner: Owner, now: Moment) {
        self.places.keep(owner, place, now);
    }

    /// Somebody asks to be admitted. The answer is a decision for `ask.place`, now or later.
    pub fn arrive(&mut self, ask: AdmissionRequest, now: Moment) {
        let place = ask.place;
        let may_wait = ask.again || self.queue.len() < self.limits.depth;
        let aside = self.outages.sets_aside(&ask.target, place);
        self.queue.push(ask, aside, now);
        // Nothing is closed for one who may not wait for it.
        self.dispatch_with(may_wait, now);
        if !may_wait {
            self.refuse(place, RefusalReason::QueueFull, now);
            self.dispatch(now);
        }
    }

    /// One who waits has left. Without effect if a decision was already made.
    pub fn leave(&mut self, place: Place, now: Moment) {
        if let Some(waiter) = self.queue.remove(place) {
            self.outages.gone(&waiter.ask.target, place, now);
            self.keep_place(place, waiter.ask.owner(), now);
            self.dispatch(now);
        }
    }

    /// Something happened to a slot. It has no effect on a slot that was released.
    pub fn tell(&mut self, slot: SlotId, event: SlotEvent, now: Moment) {
        match event {
            // Nothing can be decided by these two: the slot is still taken.
            SlotEvent::Dialled => return self.ledger.mark_dialled(slot),
            SlotEvent::DialRefused => return self.dial_refused(slot, now),
            SlotEvent::Unreachable => self.unreachable(slot, now),
            SlotEvent::Established(state) => self.established(slot, state, now),
            SlotEvent::Entered(state) => self.enter(slot, state, now),
            SlotEvent::Quiet(quiet) => self.quiet(slot, quiet),
            SlotEvent::Pooled(key) => self.pool(slot, key, now),
            SlotEvent::Released => self.release(slot, now),
        }
        self.dispatch(now);
    }

    fn enter(&mut self, slot: SlotId, state: SlotState, now: Moment) {
        self.idle.remove(slot);
        self.quiet.remove(slot);
        self.ledger.enter(slot, state);
        self.usage.turns(slot, matches!(state, SlotState::Connecting | SlotState::Active), now);
    }

    /// The target of this slot takes connections.
    fn established(&mut self, slot: SlotId, state: SlotState, now: Moment) {
        if let Some(occupant) = self.ledger.occupant(slot)
            && self.outages.over(&occupant.target)
        {
            self.queue.bring_all_back(&occupant.target);
        }
        self.enter(slot, state, now);
        if state == SlotState::Idle {
            self.ledger.expect_handshake(slot);
        }
    }

    fn dial_refused(&mut self, slot: SlotId, now: Moment) {
        if let Some(occupant) = self.ledger.occupant(slot) {
            self.outages.goes_on(&occupant.target, occupant.place, now);
        }
    }

    fn unreachable(&mut self, slot: SlotId, now: Moment) {
        if let Some(occupant) = self.ledger.occupant(slot)
            && self.outages.failed(&occupant.target, occupant.place, now)
        {
            self.queue.set_aside(&occupant.target);
        }
    }

    fn quiet(&mut self, slot: SlotId, quiet: Quiet) {
        let client = self.ledger.occupant(slot).map(|occupant| occupant.principal.client.clone());
        let state = match quiet.evidence {
            Evidence::Unused | Evidence::Idle => SlotState::Idle,
            Evidence::Unsure | Evidence::Stalled => SlotState::Active,
        };
        if let Some(client) = client
            && self.ledger.enter(slot, state)
        {
            self.usage.turns(slot, quiet.evidence == Evidence::Stalled, quiet.since);
            self.quiet.add(slot, client, quiet);
        }
    }

    fn pool(&mut self, slot: SlotId, key: ReuseKey, now: Moment) {
        match self.may_lie_idle(slot, now) {
            Some(expires_in) if self.ledger.enter(slot, SlotState::Idle) => {
                self.quiet.remove(slot);
                self.usage.turns(slot, false, now);
                self.settle(slot, now);
                self.idle.add(slot, key, now, expires_in);
            }
            _ => self.close(slot, CloseCause::Expired),
        }
    }

    /// A token that was not spent goes to one who waits.
    fn release(&mut self, slot: SlotId, now: Moment) {
        self.idle.remove(slot);
        self.quiet.remove(slot);
        self.usage.released(slot, now);
        self.settle(slot, now);
        if let Some(entry) = self.ledger.release(slot)
            && !entry.dialled
            && let Some(bucket) = &mut self.bucket
        {
            bucket.give_back();
        }
    }

    /// This client needs one of these very slots, though others may be free: one that lies idle gives way.
    pub fn make_way(&mut self, among: &[SlotId], client: &Client, now: Moment) {
        let gives_way = |slot: &SlotId| {
            let is_closing = self.ledger.get(*slot).is_some_and(|entry| entry.state == SlotState::Closing);
            is_closing || self.quiet.is_reclaimed(*slot)
        };
        if among.iter().any(gives_way) {
            return;
        }
        if let Some(slot) = among.iter().find(|slot| self.idle.holds(**slot)) {
            return self.close(*slot, CloseCause::Reclaimed);
        }
        let held = |client: &Client| self.ledger.held_by(client);
        let victims = self.quiet.victims(client, |waiting| waiting == client, held, usize::MAX, now);
        if let Some((slot, evidence)) = victims.into_iter().find(|(slot, _)| among.contains(slot)) {
            self.quiet.reclaim(slot);
            self.decisions.push_back(Decision::OnReclaim { slot, evidence });
        }
    }

    /// Holds all admissions; the queue stays and takes more.
    pub fn pause(&mut self, now: Moment) {
        self.paused = true;
        self.dispatch(now);
    }

    /// Goes on, in order.
    pub fn resume(&mut self, now: Moment) {
        self.paused = false;
        self.dispatch(now);
    }

    /// Changes the number of slots. Holders keep theirs; fewer slots admit nobody until enough have come back.
    pub fn resize(&mut self, slots: usize, now: Moment) {
        self.limits.slots = slots;
        self.dispatch(now);
    }

    /// Leaves this many of the slots to those who hold them elsewhere.
    pub fn reserve(&mut self, slots: usize, now: Moment) {
        self.reserved = slots;
        self.dispatch(now);
    }

    /// Hands slots on to another process: of all slots, those are kept that are open or waited for, `least` of them at
    /// least, but together with those that an older process holds no more than `most`. Tells how many these are together:
    /// all others are the other process's.
    pub fn hand_on(&mut self, least: usize, most: usize, now: Moment) -> usize {
        let open = self.ledger.open();
        let needed = (open + self.queue.len()).max(least);
        let taken = (self.reserved + needed).min(most).max(self.reserved + open);
        self.kept = taken - self.reserved;
        self.dispatch(now);
        taken
    }

    /// Changes what holds. Who waits and who holds goes on; a rate that changes keeps the tokens that are left, so that
    /// no change makes a burst. Classes keep their numbers: there may be more of them, never fewer.
    pub fn change(&mut self, limits: Limits, now: Moment) {
        self.bucket = match (self.bucket.take(), limits.rate) {
            (Some(bucket), Some(rate)) => Some(bucket.changed(rate, now)),
            (None, Some(rate)) => Some(Bucket::new(rate, now)),
            (_, None) => None,
        };
        self.queue.change_weights(&limits.weights);
        self.wait_estimates.resize(limits.weights.len().max(self.wait_estimates.len()), WaitEstimate::default());
        self.places.change(limits.keep_place);
        self.limits = limits;
        if self.mode == Mode::Draining {
            self.mode = Mode::Running;
        }
        self.dispatch(now);
    }

    /// Begins without tokens, however many the bucket holds.
    pub fn spend_tokens(&mut self, now: Moment) {
        if let Some(bucket) = &mut self.bucket {
            bucket.empty(now);
        }
    }

    /// Slots that this process may take.
    fn slots(&self) -> usize {
        self.limits.slots.saturating_sub(self.reserved).min(self.kept)
    }

    /// Goes on serving those who came, but keeps no connection idle, and lets quiet tunnels go as if somebody waited.
    pub fn drain(&mut self, now: Moment) {
        if self.mode == Mode::Running {
            self.mode = Mode::Draining;
        }
        self.dispatch(now);
    }

    /// Refuses all who wait and all who come.
    pub fn end(&mut self, now: Moment) {
        self.mode = Mode::Ended;
        self.dispatch(now);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Moment) {
        self.dispatch(now);
    }

    /// The next decision that was made and not taken yet.
    pub fn next_decision(&mut self) -> Option<Decision> {
        self.decisions.pop_front()
    }

    /// When to call [`Core::tick`], if nothing happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Moment> {
        let probe = if self.queue.is_empty() { None } else { self.outages.next_due() };
        [self.queue.next_deadline(), self.idle.next_expiry(), self.limited_until, probe].into_iter().flatten().min()
    }

    /// Where the connection in this slot tells what it carries.
    #[must_use]
    pub fn activity(&self, slot: SlotId) -> Arc<Activity> {
        self.ledger.get(slot).map(|entry| entry.activity.clone()).unwrap_or_default()
    }

    /// When the one at this position of its class will be admitted, as far as the past tells: nobody knows when a pause or an
    /// outage ends.
    pub(super) fn expected_wait(&self, class: ClassId, position: usize) -> Option<Duration> {
        let moves = !matches!(self.limited_by, Some(LimitedBy::Paused | LimitedBy::Unreachable));
        moves.then(|| self.wait_estimates[class.0].expected_wait(position))
    }

    /// Decides all that can be decided now.
    fn dispatch(&mut self, now: Moment) {
        self.dispatch_with(true, now);
    }

    fn dispatch_with(&mut self, may_reclaim: bool, now: Moment) {
        self.close_what_must_go(now);
        while let Some(place) = self.queue.overdue(now) {
            self.refuse_overdue(place, now);
        }
        self.send_probes(now);
        self.limited_by = None;
        self.limited_until = None;
        match self.mode {
            Mode::Running => self.admit_in_turn(may_reclaim, now),
            Mode::Draining => {
                self.admit_in_turn(may_reclaim, now);
                self.let_quiet_ones_go(now);
            }
            Mode::Ended => self.refuse_all(now),
        }
        // A token that came back unspent is for those who waited in this moment.
        if let Some(bucket) = &mut self.bucket {
            bucket.spill();
        }
    }

    /// Draining is like somebody who always waits: what lies quiet past its pause is recalled.
    fn let_quiet_ones_go(&mut self, now: Moment) {
        let nobody: Client = "".into();
        for (slot, evidence) in self.quiet.victims(&nobody, |_| false, |_| 0, usize::MAX, now) {
            self.quiet.reclaim(slot);
            self.decisions.push_back(Decision::OnReclaim { slot, evidence });
        }
        self.limited_until = [self.limited_until, self.quiet.next_due(|_| false)].into_iter().flatten().min();
    }

    fn refuse_overdue(&mut self, place: Place, now: Moment) {
        let out = self.queue.get(place).is_some_and(|waiter| self.outages.is_out(&waiter.ask.target));
        self.refuse(place, if out { RefusalReason::Unreachable } else { RefusalReason::QueueTimeout }, now);
    }

    /// One request for each target that is out and may be probed takes its turn again. Where nobody waits for it, the
    /// outage is forgotten: the next to come finds out by itself.
    fn send_probes(&mut self, now: Moment) {
        for target in self.outages.due(now) {
            match self.queue.bring_one_back(&target) {
                Some(place) => self.outages.probe(&target, place),
                None => {
                    self.outages.over(&target);
                }
            }
        }
    }

    /// Admits whose turn it is until something binds.
    fn admit_in_turn(&mut self, may_reclaim: bool, now: Moment) {
        while let Some(head) = self.queue.head() {
            if self.paused {
                self.limited_by = Some(LimitedBy::Paused);
                return;
            }
            let place = head.ask.place;
            let kept = head.ask.reuse.as_ref().and_then(|key| self.idle.freshest(key));
            if let Some(slot) = kept {
                self.admit_to_kept(place, slot, Turn::Own, now);
                continue;
            }
            match self.take_slot_and_token(now) {
                Ok(slot) => self.admit_to_new(place, slot, now),
                Err(limited_by) => {
                    self.limited_by = Some(limited_by);
                    if limited_by == LimitedBy::Slots && may_reclaim {
                        self.make_room(now);
                    }
                    return self.reuse_out_of_turn(now);
                }
            }
        }
        if !self.queue.is_empty() {
            self.limited_by = Some(if self.paused { LimitedBy::Paused } else { LimitedBy::Unreachable });
        }
        if !self.paused {
            self.reuse_out_of_turn(now);
        }
    }

    /// Slot and token together, or neither.
    fn take_slot_and_token(&mut self, now: Moment) -> Result<SlotId, LimitedBy> {
        if self.ledger.open() >= self.slots() {
            return Err(LimitedBy::Slots);
        }
        if self.ledger.connecting() >= self.limits.max_connecting {
            return Err(LimitedBy::Connecting);
        }
        if let Some(bucket) = &mut self.bucket
            && let Err(due) = bucket.take(now)
        {
            self.limited_until = Some(due);
            return Err(LimitedBy::Rate);
        }
        let slot = self.ledger.take(now);
        self.usage.granted(slot, now);
        Ok(slot)
    }

    /// Whose turn it is cannot go on, but a kept connection takes no slot, no token and no dial from it: it goes to the
    /// first who can use it.
    fn reuse_out_of_turn(&mut self, now: Moment) {
        while let Some((place, key)) = self.first_who_can_reuse() {
            let slot = self.idle.freshest(&key).expect("the key was taken from the kept ones");
            self.admit_to_kept(place, slot, Turn::Passing, now);
        }
    }

    fn first_who_can_reuse(&self) -> Option<(Place, ReuseKey)> {
        let wanted = self.idle.keys().filter_map(|key| Some((self.queue.first_for(key)?, key.clone())));
        wanted.min_by_key(|(place, _)| *place)
    }

    /// Slots bind: connections that do nothing give way, one for each who waits beyond the slots that are on their way
    /// back, and none for which no token is there. The first goes for the one whose turn it is; what is left of kept
    /// connections goes to those who can use it, before more are closed.
    fn make_room(&mut self, now: Moment) {
        let tokens = self.bucket.as_ref().map_or(usize::MAX, |bucket| bucket.available(now));
        while self.wanted_back(tokens) > 0
            && let Some(slot) = self.idle.nearest_to_its_end()
        {
            self.close(slot, CloseCause::Reclaimed);
            self.reuse_out_of_turn(now);
        }
        self.reclaim_quiet(tokens, now);
        if self.queue.in_line() > tokens {
            let next_token = self.bucket.as_ref().and_then(|bucket| bucket.next_due(now));
            self.limited_until = [self.limited_until, next_token].into_iter().flatten().min();
        }
    }

    fn reclaim_quiet(&mut self, tokens: usize, now: Moment) {
        let Some(head) = self.queue.head().map(|head| head.ask.principal.client.clone()) else {
            return;
        };
        let wanted = self.wanted_back(tokens);
        if wanted == 0 {
            return;
        }
        let waits = |client: &Client| self.queue.waits(client);
        let holds = |client: &Client| self.ledger.held_by(client);
        for (slot, evidence) in self.quiet.victims(&head, waits, holds, wanted, now) {
            self.quiet.reclaim(slot);
            self.decisions.push_back(Decision::OnReclaim { slot, evidence });
        }
        // All that were due are among them.
        if self.wanted_back(tokens) > 0 {
            self.limited_until = self.quiet.next_due(|client| self.queue.waits(client));
        }
    }

    /// Connections that have to give way yet: for each who waits and may dial then, and before that to bring a shrunk
    /// registry down to size.
    fn wanted_back(&self, tokens: usize) -> usize {
        let may_dial = self.limits.max_connecting.saturating_sub(self.ledger.connecting());
        let awaited = self.queue.in_line().min(tokens).min(may_dial);
        if awaited == 0 {
            return 0;
        }
        let excess = self.ledger.open().saturating_sub(self.slots());
        (awaited + excess).saturating_sub(self.ledger.counts().closing + self.quiet.reclaimed())
    }

    fn admit_to_new(&mut self, place: Place, slot: SlotId, now: Moment) {
        let waited = self.admit(place, slot, Turn::Own, now);
        self.decisions.push_back(Decision::Dial { place, slot, waited });
    }

    fn admit_to_kept(&mut self, place: Place, slot: SlotId, turn: Turn, now: Moment) {
        self.idle.remove(slot);
        self.ledger.enter(slot, SlotState::Active);
        self.usage.turns(slot, true, now);
        // It tells nothing about whether its target takes connections: another one may probe.
        if let Some(waiter) = self.queue.get(place) {
            self.outages.gone(&waiter.ask.target, place, now);
        }
        let waited = self.admit(place, slot, turn, now);
        self.decisions.push_back(Decision::Reuse { place, slot, waited });
    }

    fn admit(&mut self, place: Place, slot: SlotId, turn: Turn, now: Moment) -> Duration {
        let (waiter, charged) = self.queue.take(place, turn).expect("only those who wait are admitted");
        let class = waiter.ask.principal.class;
        self.wait_estimates[class.0].admitted(now, self.queue.waiting_in(class) > 0);
        let had_to_wait = waiter.waited(now);
        let kind = waiter.ask.kind();
        let AdmissionRequest { principal, target, .. } = waiter.ask;
        self.ledger.let_to(slot, Occupant { principal, target, kind, place, since: now, charged });
        had_to_wait
    }

    /// The slot serves its request no longer: what was charged in advance is set right.
    fn settle(&mut self, slot: SlotId, now: Moment) {
        let Some(occupant) = self.ledger.vacate(slot) else {
            return;
        };
        self.outages.gone(&occupant.target, occupant.place, now);
        self.queue.settle(&occupant.principal, occupant.charged, nanos(now.since(occupant.since)));
    }

    fn refuse(&mut self, place: Place, reason: RefusalReason, now: Moment) {
        let Some(waiter) = self.queue.remove(place) else { return };
        self.outages.gone(&waiter.ask.target, place, now);
        let limited_by = match reason {
            RefusalReason::QueueFull | RefusalReason::QueueTimeout => self.limited_by,
            RefusalReason::Unreachable => Some(LimitedBy::Unreachable),
            RefusalReason::Draining => None,
        };
        let ahead = self.queue.ahead_of(place, FARTHEST_POSITION);
        // Of its own class, if those ahead are as mixed as all are: looking at each would take too long here.
        let (class, waiting) = (waiter.ask.principal.class, self.queue.len());
        let of_class = self.queue.waiting_in(class);
        let ahead_in_class = (ahead * of_class).div_ceil(waiting.max(1));
        let refusal = Refusal {
            limited_by,
            position: (ahead < FARTHEST_POSITION).then_some(ahead + 1),
            expected_wait: limited_by.and_then(|_| self.expected_wait(class, ahead_in_class + 1)),
            reason,
            waited: waiter.waited(now),
            waiting,
            slots: self.limits.slots,
            retry_after: self.wait_estimates[class.0].expected_wait(of_class),
        };
        let is_over = matches!(reason, RefusalReason::QueueTimeout | RefusalReason::Unreachable);
        let may_return = is_over.then(|| waiter.ask.owner());
        self.decisions.push_back(Decision::Refuse { place, refusal, may_return });
    }

    fn refuse_all(&mut self, now: Moment) {
        while let Some(place) = self.queue.first().map(|waiter| waiter.ask.place) {
            self.refuse(place, RefusalReason::Draining, now);
        }
    }

    /// How long the connection in this slot may be kept from now on; `None`: not at all.
    fn may_lie_idle(&self, slot: SlotId, now: Moment) -> Option<Duration> {
        let entry = self.ledger.get(slot)?;
        let life_left = self.limits.max_lifetime.checked_sub(now.since(entry.born))?;
        let keep = self.limits.idle_timeout.min(life_left);
        (self.mode == Mode::Running && !keep.is_zero()).then_some(keep)
    }

    fn close_what_must_go(&mut self, now: Moment) {
        while let Some(slot) = self.idle.expired(now) {
            self.close(slot, CloseCause::Expired);
        }
        if self.mode != Mode::Running {
            while let Some(slot) = self.idle.nearest_to_its_end() {
                self.close(slot, CloseCause::Draining);
            }
        }
        while self.ledger.open() - self.ledger.counts().closing > self.slots()
            && let Some(slot) = self.idle.nearest_to_its_end()
        {
            self.close(slot, CloseCause::Shrunk);
        }
    }

    fn close(&mut self, slot: SlotId, cause: CloseCause) {
        self.idle.remove(slot);
        self.quiet.remove(slot);
        self.ledger.enter(slot, SlotState::Closing);
        self.decisions.push_back(Decision::Close { slot, cause });
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
