//! The state machine that decides: events and the time go in, decisions come out. No I/O, no clock, no wake-ups.
//!
//! Every event ends in one `dispatch`, which looks at the whole picture once and decides all that can be
//! decided: nothing that could be admitted is left for a later event. The driver takes the decisions out with
//! [`Core::next_decision`] and calls [`Core::tick`] at [`Core::wake_at`].

use std::sync::Arc;

use super::activity::Activity;
use super::books::Books;
use super::decision::{Decision, LimitedBy, Limits, Needs, RefusalReason};
use super::fair_queue::AdmittedAs;
use super::moment::Moment;
use super::reclaim;
use super::request::{AdmissionRequest, ClientId, Place};
use super::slot::{Evidence, Quiet, SlotEvent, SlotId, SlotState};
use super::tickets::Owner;
use super::witness::{Occurrence, Witness};
use crate::lease::borrowed::Lent;

#[derive(Debug)]
pub struct Core {
    pub(super) books: Books,
    pub(super) paused: bool,
    mode: Mode,
    arrivals: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    Running,
    /// Requests that came are served, and nothing is pooled.
    Draining,
    /// No request is admitted any more.
    Ended,
}

impl Core {
    /// Nothing taken, no request waiting, a full bucket.
    pub fn new(limits: Limits, now: Moment) -> Core {
        Core { books: Books::new(limits, now), paused: false, mode: Mode::Running, arrivals: 0 }
    }

    /// A place for a request that arrives now: that of a ticket for this client and target, if there is one, or one at the end
    /// of the order. Also tells the owner of the ticket, to give it back with [`Core::keep_place`] where it is not used.
    pub fn place(&mut self, client: &ClientId, target: &str, now: Moment) -> (Place, Option<Owner>) {
        let owner = self.books.tickets.owner(client, target);
        if let Some(kept) = self.books.tickets.take(owner, now) {
            return (kept, Some(owner));
        }
        self.arrivals += 1;
        (Place::new(now, self.arrivals), None)
    }

    /// Keeps the place of a request that was refused and knows it now, or of one that came back to it and ended before it asked.
    pub fn keep_place(&mut self, place: Place, owner: Owner, now: Moment) {
        self.books.tickets.keep(owner, place, now);
    }

    /// A request asks to be admitted. The answer is a decision for its place, now or later.
    pub fn arrive(&mut self, request: AdmissionRequest, now: Moment) {
        self.books.report(|| Occurrence::Asked(request.clone()));
        let client = request.principal.client.clone();
        self.books.enqueue(request, now, now);
        // Nothing is reclaimed for a request that may not wait for it.
        let may_wait = self.surplus() == 0;
        self.dispatch(may_wait, now);
        while self.surplus() > 0
            && let Some(place) = self.books.queue.surplus(&client)
        {
            self.books.refuse(place, RefusalReason::QueueFull, now);
        }
        if !may_wait {
            self.tick(now);
        }
    }

    fn surplus(&self) -> usize {
        self.books.queue.len().saturating_sub(self.books.limits.depth)
    }

    /// These requests are held no longer. They are admitted in the order of the queue.
    pub fn let_go(&mut self, places: &[Place], now: Moment) {
        for place in places {
            self.books.let_go(*place, now);
        }
        self.tick(now);
    }

    pub fn leave(&mut self, place: Place, now: Moment) {
        if self.books.leave(place, now) {
            self.tick(now);
        }
    }

    /// Something happened to a slot. It has no effect on a slot that was released.
    pub fn tell(&mut self, slot: SlotId, event: SlotEvent, now: Moment) {
        let books = &mut self.books;
        books.report(|| Occurrence::Slot(slot, event.clone()));
        match event {
            // Nothing can be decided by these two: the slot is still taken.
            SlotEvent::Dialled => return books.ledger.mark_dialled(slot),
            SlotEvent::DialRefused => {
                if let Some(occupant) = books.ledger.occupant(slot) {
                    books.outages.try_next_address(&occupant.target, occupant.place, now);
                }
                return;
            }
            SlotEvent::Unreachable => {
                if let Some(occupant) = books.ledger.occupant(slot)
                    && books.outages.fail(&occupant.target, occupant.place, now)
                {
                    books.queue.hold_back(&occupant.target, now);
                }
            }
            SlotEvent::Established(state) => self.established(slot, state, now),
            SlotEvent::Entered(state) => books.enter(slot, state, now),
            SlotEvent::NodeFull => {
                if let Some(occupant) = books.ledger.occupant(slot)
                    && books.outages.fill(&occupant.target, occupant.place)
                {
                    books.queue.hold_back(&occupant.target, now);
                }
                books.release(slot, now);
            }
            SlotEvent::Quiet(quiet) => self.quiet(slot, quiet, now),
            SlotEvent::Pooled(key) => books.pool(slot, key, self.mode == Mode::Running, now),
            SlotEvent::Released => {
                if books.release(slot, now) {
                    books.outages.retry_full(now);
                }
            }
        }
        self.tick(now);
    }

    /// The target of this slot takes connections.
    fn established(&mut self, slot: SlotId, state: SlotState, now: Moment) {
        let books = &mut self.books;
        if let Some(occupant) = books.ledger.occupant(slot)
            && books.outages.connected(&occupant.target, occupant.place, now)
        {
            books.queue.let_all_go(&occupant.target, now);
        }
        books.enter(slot, state, now);
        if state == SlotState::Idle {
            books.ledger.expect_handshake(slot);
        }
    }

    fn quiet(&mut self, slot: SlotId, quiet: Quiet, now: Moment) {
        let books = &mut self.books;
        let state = match quiet.evidence {
            Evidence::Unused | Evidence::Idle => SlotState::Idle,
            Evidence::Unsure | Evidence::Stalled => SlotState::Active,
        };
        if books.ledger.occupant(slot).is_some() && books.ledger.enter(slot, state) {
            books.usage.set_busy(slot, quiet.evidence == Evidence::Stalled, quiet.since);
            books.quiet.add(slot, quiet);
        }
        books.outages.retry_full(now);
    }

    /// One of these very slots is needed for this target, though others may be free: one that lies idle is reclaimed.
    pub fn reclaim_among(&mut self, among: &[SlotId], target: &Arc<str>, now: Moment) {
        if let Some(due) = reclaim::make_room_among(&mut self.books, among, now) {
            self.books.outages.retry_at(target, due);
        }
    }

    pub fn pause(&mut self, now: Moment) {
        self.paused = true;
        self.tick(now);
    }

    pub fn resume(&mut self, now: Moment) {
        self.paused = false;
        self.look_again(now);
    }

    /// More or less is lent than before, or all nodes are paused or resumed.
    pub fn look_again(&mut self, now: Moment) {
        self.books.touched.extend(self.books.pooled.keys().cloned());
        self.tick(now);
    }

    pub fn resize(&mut self, slots: usize, now: Moment) {
        self.books.limits.slots = slots;
        self.books.outages.retry_full(now);
        self.tick(now);
    }

    /// The distress of the registry leaves so many slots, or all.
    pub fn yield_to(&mut self, slots: Option<usize>, now: Moment) {
        self.books.yields_to = slots.unwrap_or(usize::MAX);
        self.tick(now);
    }

    /// Slots are lent from now on.
    pub fn lend(&mut self, lent: Arc<dyn Lent>) {
        self.books.lent = Some(lent);
    }

    pub fn reserve(&mut self, slots: usize, now: Moment) {
        self.books.reserved = slots;
        self.tick(now);
    }

    /// Hands slots over to another process: those that are open stay until they are released, and what that process grants is
    /// added as long as a request waits for it. Tells what is needed.
    pub fn hand_over(&mut self, granted: usize, now: Moment) -> Needs {
        let open = self.books.ledger.open();
        let needed = open + self.books.queue.len();
        let own = (self.books.own.unwrap_or(open) + granted).min(needed).max(open);
        self.books.own = Some(own);
        self.tick(now);
        Needs { slots: self.books.reserved + own, wanted: needed - own }
    }

    /// Changes the limits. Requests that wait and slots that are held stay. Classes keep their numbers: there may be more of
    /// them, never fewer.
    pub fn change(&mut self, limits: Limits, now: Moment) {
        self.books.change(limits, now);
        self.books.outages.retry_full(now);
        self.tick(now);
    }

    /// Begins without tokens, however many the bucket holds.
    pub fn spend_tokens(&mut self, now: Moment) {
        if let Some(bucket) = &mut self.books.bucket {
            bucket.empty(now);
        }
    }

    /// Serves the requests that came, and pools no connection.
    pub fn drain(&mut self, now: Moment) {
        self.mode = self.mode.max(Mode::Draining);
        self.tick(now);
    }

    pub fn end(&mut self, now: Moment) {
        self.mode = Mode::Ended;
        self.tick(now);
    }

    /// From now on this one sees everything that happens here, or none does.
    pub fn watch(&mut self, witness: Option<Arc<dyn Witness>>) {
        self.books.witness = witness;
    }

    pub fn tick(&mut self, now: Moment) {
        self.dispatch(true, now);
    }

    pub fn next_decision(&mut self) -> Option<Decision> {
        self.books.decisions.pop_front()
    }

    /// When to call [`Core::tick`], if nothing happens before.
    pub fn wake_at(&self) -> Option<Moment> {
        let books = &self.books;
        let probe = if books.queue.is_empty() { None } else { books.outages.next_due() };
        let all = [books.queue.next_deadline(), books.pooled.next_expiry(), books.limited_until, probe];
        all.into_iter().flatten().min()
    }

    /// Where the connection in this slot tells what it carries.
    pub fn activity(&self, slot: SlotId) -> Arc<Activity> {
        self.books.ledger.get(slot).map(|entry| entry.activity.clone()).unwrap_or_default()
    }

    fn dispatch(&mut self, may_reclaim: bool, now: Moment) {
        reclaim::close_surplus(&mut self.books, now);
        self.books.hold_nothing(now);
        self.refuse_overdue(now);
        self.send_probes(now);
        (self.books.limited_by, self.books.limited_until) = (None, None);
        match self.mode {
            Mode::Running => self.admit_all(may_reclaim, now),
            Mode::Draining => {
                reclaim::drain(&mut self.books, now);
                self.admit_all(may_reclaim, now);
            }
            Mode::Ended => self.refuse_all(now),
        }
        reclaim::give_back(&mut self.books, now);
        // No request waits for a pooled connection that it could use, unless admissions are held.
        self.books.touched.clear();
        // A token that came back unspent is for those that waited in this moment.
        if let Some(bucket) = &mut self.books.bucket {
            bucket.spill();
        }
    }

    fn refuse_overdue(&mut self, now: Moment) {
        while let Some(place) = self.books.queue.overdue(now) {
            let waiter = self.books.queue.get(place);
            let is_out = waiter.is_some_and(|waiter| self.books.outages.is_out(&waiter.request.target));
            let reason = if is_out { RefusalReason::Unreachable } else { RefusalReason::QueueTimeout };
            self.books.refuse(place, reason, now);
        }
    }

    fn refuse_all(&mut self, now: Moment) {
        let places: Vec<Place> = self.books.queue.by_arrival().map(|waiter| waiter.request.place).collect();
        for place in places {
            self.books.refuse(place, RefusalReason::Draining, now);
        }
    }

    /// One request for each target that is out and may be probed is let go. Where no request waits for it, the outage is
    /// forgotten: the next one finds out by itself.
    fn send_probes(&mut self, now: Moment) {
        let books = &mut self.books;
        while let Some(target) = books.outages.first_due(now) {
            match books.queue.let_one_go(&target, now) {
                Some(place) => books.outages.probe(&target, place),
                None => _ = books.outages.end(&target),
            }
        }
    }

    fn admit_all(&mut self, may_reclaim: bool, now: Moment) {
        let books = &mut self.books;
        let is_fleet_paused = books.lent.as_ref().is_some_and(|lent| lent.is_paused());
        if self.paused || is_fleet_paused {
            let pause = if is_fleet_paused { LimitedBy::FleetPaused } else { LimitedBy::Paused };
            books.limited_by = (!books.queue.is_empty()).then_some(pause);
            return;
        }
        while let Some(head) = books.queue.head() {
            let place = head.request.place;
            if let Some(slot) = head.request.reuse.as_ref().and_then(|key| books.pooled.freshest(key)) {
                books.admit_to_pooled(place, slot, AdmittedAs::Next, now);
                continue;
            }
            match books.take_slot_and_token(now) {
                Ok(slot) => books.admit_to_new(place, slot, now),
                Err(limited_by) => {
                    books.limited_by = Some(limited_by);
                    if matches!(limited_by, LimitedBy::Slots | LimitedBy::Distress) && may_reclaim {
                        reclaim::make_room(books, now);
                    }
                    break;
                }
            }
        }
        if books.queue.in_line() == 0 {
            books.room_due = None;
        }
        if books.limited_by.is_none() && !books.queue.is_empty() {
            books.limited_by = Some(if books.outages.any_out() { LimitedBy::Unreachable } else { LimitedBy::Slots });
        }
        books.match_pooled(now);
    }
}
