//! The core against a naive model, in virtual time: random histories, every promise asserted after every step, and the
//! stories that matter most told one by one.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::core::Core;
use super::decision::{CloseCause, Decision, LimitedBy, Limits, RefusalReason};
use super::history_count;
use super::moment::Moment;
use super::rate::RateLimit;
use super::request::{AdmissionRequest, ClassId, ClientId, Lane, Place, Principal, ReuseKey};
use super::slot::{Evidence, Quiet, SlotEvent, SlotId, SlotState};
use super::tickets::Owner;

/// Steps of each history.
const STEPS: usize = 300;
const IDLE_TIMEOUT: Duration = Duration::from_millis(400);
const MAX_LIFETIME: Duration = Duration::from_millis(900);

fn principal(client: &str, class: usize) -> Principal {
    Principal { class: ClassId(class), client: client.into() }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn limits(slots: usize, depth: usize, rate: Option<(u64, u32)>) -> Limits {
    let rate = rate.map(|(period, burst)| RateLimit { period: ms(period), burst: NonZeroU32::new(burst).unwrap() });
    Limits {
        slots,
        depth,
        rate,
        idle_timeout: IDLE_TIMEOUT,
        max_lifetime: MAX_LIFETIME,
        max_connecting: usize::MAX,
        keep_place: Duration::ZERO,
        weights: vec![1],
    }
}

/// Drives a core through a history and knows, naively, what must hold.
struct World {
    core: Core,
    /// With the slots that are in force.
    limits: Limits,
    /// Those that are configured, and those that the registry's distress leaves.
    slots: (usize, usize),
    now: Moment,
    waiting: BTreeMap<Place, AdmissionRequest>,
    decided: HashSet<Place>,
    held: Vec<Held>,
    /// When slots came free by themselves.
    freed: Vec<Moment>,
    tokens: Option<NaiveBucket>,
    ended: bool,
    draining: bool,
    log: Vec<Decision>,
    /// Decisions that were looked at, and not carried out yet.
    early: std::collections::VecDeque<Decision>,
    dials: Vec<Moment>,
    paused: bool,
    /// Targets that refused, and have not been reached since.
    out: HashSet<Arc<str>>,
    /// Refused, and not told yet.
    untold: Vec<(Place, Owner, Whose)>,
    /// Places of those who left, and until when each is kept.
    tickets: Vec<(Whose, Place, Moment)>,
    /// How often each client's oldest blob was passed over; unknown where somebody probes.
    passes: HashMap<ClientId, Option<u64>>,
    /// The smoothed time for which a request of each lane holds its slot.
    holds: HashMap<Lane, u64>,
}

/// Whose a ticket is: the client, and its target.
type Whose = (ClientId, Arc<str>);

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "a naive model: what is true of a slot, one by one")]
struct Held {
    slot: SlotId,
    dialled: bool,
    /// The key it is kept for, while it is idle in the pool.
    kept: Option<ReuseKey>,
    closing: bool,
    /// Whether it serves nobody's request: it was kept, and taken out by no request.
    vacant: bool,
    /// While it is a quiet tunnel: from when on it may be recalled, and what speaks for it.
    quiet: Option<Idle>,
    reclaimed: bool,
    /// Whether it was asked to end, and has not moved since.
    taken: bool,
    /// Whether a handshake is to come.
    fresh: bool,
    target: Arc<str>,
    principal: Principal,
    place: Place,
    lane: Lane,
    /// Since when it serves that request.
    serves_since: Moment,
}

#[derive(Clone, Copy, Debug)]
struct Idle {
    from: Moment,
    since: Moment,
    evidence: Evidence,
}

/// A token bucket as a child would build it: a level that rises.
struct NaiveBucket {
    rate: RateLimit,
    level: Duration,
    at: Moment,
    in_hand: usize,
}

impl NaiveBucket {
    fn new(rate: RateLimit) -> NaiveBucket {
        NaiveBucket { rate, level: rate.period * rate.burst.get(), at: Moment::default(), in_hand: 0 }
    }

    fn pass(&mut self, now: Moment) {
        self.level = (self.level + now.since(self.at)).min(self.rate.period * self.rate.burst.get());
        self.at = now;
    }

    fn has_one(&self) -> bool {
        self.in_hand > 0 || self.level >= self.rate.period
    }

    fn take(&mut self) {
        assert!(self.has_one(), "admitted without a token");
        if self.in_hand > 0 {
            self.in_hand -= 1;
        } else {
            self.level = self.level.saturating_sub(self.rate.period);
        }
    }

    /// When there are so many tokens; never, if that is more than it can hold.
    fn due(&self, tokens: usize) -> Option<Moment> {
        let tokens = u32::try_from(tokens).ok().filter(|tokens| *tokens <= self.rate.burst.get())?;
        Some(self.at + (self.rate.period * tokens).saturating_sub(self.level))
    }

    /// Those that stay; one in hand is for now or never.
    fn count(&self) -> usize {
        usize::try_from(self.level.as_nanos() / self.rate.period.as_nanos()).unwrap()
    }
}

impl World {
    fn new(limits: Limits) -> World {
        World {
            core: Core::new(limits.clone(), Moment::default()),
            tokens: limits.rate.map(NaiveBucket::new),
            slots: (limits.slots, usize::MAX),
            limits,
            now: Moment::default(),
            waiting: BTreeMap::new(),
            decided: HashSet::new(),
            held: Vec::new(),
            freed: Vec::new(),
            ended: false,
            draining: false,
            log: Vec::new(),
            early: std::collections::VecDeque::new(),
            dials: Vec::new(),
            paused: false,
            out: HashSet::new(),
            untold: Vec::new(),
            tickets: Vec::new(),
            passes: HashMap::new(),
            holds: HashMap::new(),
        }
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now + span;
        if let Some(tokens) = &mut self.tokens {
            tokens.pass(self.now);
        }
    }

    fn arrive(&mut self, key: Option<&str>, patience: Duration) -> Place {
        self.arrive_blob("client", key, patience)
    }

    fn arrive_blob(&mut self, client: &str, key: Option<&str>, patience: Duration) -> Place {
        self.arrive_as(&principal(client, 0), Lane::Blob, key, patience)
    }

    fn arrive_as(&mut self, principal: &Principal, lane: Lane, key: Option<&str>, patience: Duration) -> Place {
        let ask = self.request(principal, lane, key, patience);
        let place = ask.place;
        self.waiting.insert(place, ask.clone());
        self.core.arrive(ask, self.now);
        self.settle(Some(&principal.client));
        place
    }

    /// One who is held until [`World::let_go`].
    fn arrive_held(&mut self, principal: &Principal, lane: Lane, key: Option<&str>, patience: Duration) -> Place {
        let ask = AdmissionRequest { held: true, ..self.request(principal, lane, key, patience) };
        let place = ask.place;
        self.waiting.insert(place, ask.clone());
        self.core.arrive(ask, self.now);
        self.settle(Some(&principal.client));
        place
    }

    fn let_go(&mut self, places: &[Place]) {
        for place in places {
            self.waiting.get_mut(place).into_iter().for_each(|ask| ask.held = false);
        }
        self.core.let_go(places, self.now);
        self.settle(None);
    }

    fn request(
        &mut self,
        principal: &Principal,
        lane: Lane,
        key: Option<&str>,
        patience: Duration,
    ) -> AdmissionRequest {
        let target: Arc<str> = key.unwrap_or("tunnel:443").into();
        let place = self.place(&(principal.client.clone(), target.clone()));
        let (deadline, reuse) = (self.now + patience, key.map(ReuseKey::from));
        AdmissionRequest { lane, reuse, ..AdmissionRequest::new(place, deadline, principal.clone(), target) }
    }

    /// The oldest place that is kept for it, each once, or a new one.
    fn place(&mut self, owner: &Whose) -> Place {
        let now = self.now;
        self.tickets.retain(|(_, _, until)| *until > now);
        let kept = self.tickets.iter().filter(|(whose, ..)| whose == owner).map(|(_, place, _)| *place).min();
        self.tickets.retain(|(_, place, _)| Some(*place) != kept);
        let (place, ticket) = self.core.place(&owner.0, &owner.1, now);
        assert_eq!(ticket.map(|_| place), kept, "another place than the one that was kept");
        assert!(!self.waiting.contains_key(&place), "somebody waits there");
        self.decided.remove(&place);
        place
    }

    fn keep_place(&mut self, place: Place, owner: Whose) {
        if !self.limits.keep_place.is_zero() {
            self.tickets.push((owner, place, self.now + self.limits.keep_place));
        }
    }

    /// One who was refused learns it.
    fn tell(&mut self, pick: usize) {
        if !self.untold.is_empty() {
            let (place, owner, whose) = self.untold.swap_remove(pick % self.untold.len());
            self.core.keep_place(place, owner, self.now);
            self.keep_place(place, whose);
        }
    }

    fn leave(&mut self, place: Place) {
        let ask = self.waiting.remove(&place).expect("who waits may leave");
        self.keep_place(place, (ask.principal.client, ask.target));
        self.core.leave(place, self.now);
        self.settle(None);
    }

    fn dialled(&mut self, slot: SlotId) {
        self.held_mut(slot).dialled = true;
        self.core.tell(slot, SlotEvent::Dialled, self.now);
    }

    fn enter(&mut self, slot: SlotId, state: SlotState) {
        let held = self.held_mut(slot);
        held.kept = None;
        held.quiet = None;
        held.reclaimed = false;
        held.taken &= state == SlotState::Closing;
        held.closing |= state == SlotState::Closing;
        held.fresh = false;
        self.core.tell(slot, SlotEvent::Entered(state), self.now);
        self.settle(None);
    }

    fn park(&mut self, slot: SlotId, key: &str) {
        let key = ReuseKey::from(key);
        self.held_mut(slot).kept = Some(key.clone());
        self.core.tell(slot, SlotEvent::Pooled(key), self.now);
        self.early = std::iter::from_fn(|| self.core.next_decision()).collect();
        let closed = Decision::Close { slot, cause: CloseCause::Expired };
        let kept = self.early.front() != Some(&closed);
        let held = self.held_mut(slot);
        (held.quiet, held.reclaimed, held.taken, held.fresh) = (None, false, false, false);
        let served = (kept && !held.vacant).then(|| held.clone());
        held.vacant |= kept;
        if let Some(held) = served {
            self.note_hold(&held);
        }
        self.settle(None);
    }

    /// Its request needs the slot no longer.
    fn note_hold(&mut self, held: &Held) {
        let latest = u64::try_from(self.now.since(held.serves_since).as_nanos()).unwrap();
        self.holds.entry(held.lane).and_modify(|known| *known = *known - *known / 8 + latest / 8).or_insert(latest);
    }

    /// As many small requests pass a blob as hold their slots for as long as one blob does: one at least, eight at most.
    fn most_passes(&self) -> u64 {
        let hold = |lane| self.holds.get(&lane);
        let both = hold(Lane::Small).zip(hold(Lane::Blob));
        both.map_or(8, |(small, blob)| (blob / small.max(&1)).clamp(1, 8))
    }

    fn release(&mut self, slot: SlotId) {
        let index = self.held.iter().position(|held| held.slot == slot).unwrap();
        let held = self.held.swap_remove(index);
        if !held.vacant {
            self.note_hold(&held);
        }
        self.freed.extend((!held.taken).then_some(self.now));
        if let Some(tokens) = &mut self.tokens {
            tokens.in_hand = usize::from(!held.dialled);
        }
        self.core.tell(slot, SlotEvent::Released, self.now);
        self.settle(None);
        if let Some(tokens) = &mut self.tokens {
            tokens.in_hand = 0;
        }
    }

    fn quiet(&mut self, slot: SlotId, pause: Duration) {
        self.quiet_as(slot, Evidence::Idle, pause);
    }

    fn quiet_as(&mut self, slot: SlotId, evidence: Evidence, pause: Duration) {
        let (since, from) = (self.now, self.now + pause);
        let held = self.held_mut(slot);
        held.reclaimed = false;
        held.fresh = false;
        held.taken = false;
        held.quiet = Some(Idle { from, since, evidence });
        let quiet = Quiet { evidence, since, from };
        self.core.tell(slot, SlotEvent::Quiet(quiet), self.now);
        self.settle(None);
    }

    fn unreachable(&mut self, slot: SlotId) {
        let target = self.held_mut(slot).target.clone();
        self.out.insert(target);
        self.core.tell(slot, SlotEvent::Unreachable, self.now);
        self.settle(None);
    }

    fn established(&mut self, slot: SlotId) {
        self.established_as(slot, SlotState::Active);
    }

    fn established_as(&mut self, slot: SlotId, state: SlotState) {
        let target = self.held_mut(slot).target.clone();
        self.out.remove(&target);
        let held = self.held_mut(slot);
        held.kept = None;
        held.quiet = None;
        (held.reclaimed, held.taken) = (false, false);
        held.fresh = state == SlotState::Idle;
        self.core.tell(slot, SlotEvent::Established(state), self.now);
        self.settle(None);
    }

    fn pause(&mut self, paused: bool) {
        self.paused = paused;
        if paused {
            self.core.pause(self.now);
        } else {
            self.core.resume(self.now);
        }
        self.settle(None);
    }

    fn resize(&mut self, slots: usize) {
        self.slots.0 = slots;
        self.limits.slots = self.slots.0.min(self.slots.1);
        self.core.resize(slots, self.now);
        self.settle(None);
    }

    fn yield_to(&mut self, slots: Option<usize>) {
        self.slots.1 = slots.unwrap_or(usize::MAX);
        self.limits.slots = self.slots.0.min(self.slots.1);
        self.core.yield_to(slots, self.now);
        self.settle(None);
    }

    fn tick(&mut self) {
        self.core.tick(self.now);
        self.settle(None);
    }

    fn held_mut(&mut self, slot: SlotId) -> &mut Held {
        self.held.iter_mut().find(|held| held.slot == slot).unwrap()
    }

    /// Takes the decisions, each checked as it comes, then looks whether one is missing.
    fn settle(&mut self, newcomer: Option<&ClientId>) {
        while let Some(decision) = self.early.pop_front().or_else(|| self.core.next_decision()) {
            self.log.push(decision.clone());
            match decision {
                Decision::Dial { place, slot, .. } => self.check_dial(place, slot),
                Decision::Reuse { place, slot, .. } => self.check_reuse(place, slot),
                Decision::Refuse { place, refusal, may_return } => {
                    let surplus = newcomer.map(|client| self.surplus(client));
                    let ask = self.decide(place);
                    self.untold.extend(may_return.map(|owner| (place, owner, (ask.principal.client, ask.target))));
                    match refusal.reason {
                        RefusalReason::QueueFull => assert_eq!(surplus, Some(Some(place)), "another one was to go"),
                        RefusalReason::QueueTimeout | RefusalReason::Unreachable => {
                            assert!(ask.deadline <= self.now, "refused before its time");
                        }
                        RefusalReason::LeaseLost => panic!("nothing is leased"),
                        RefusalReason::Draining => assert!(self.ended, "refused as draining without an end"),
                    }
                }
                Decision::Reclaim { slot, .. } => {
                    assert!(!self.waiting.is_empty() && !self.paused, "recalled for nobody");
                    assert!(self.open() >= self.limits.slots, "recalled though a slot is free");
                    // After a reduction those that exceed the slots go as well.
                    let excess = self.open().saturating_sub(self.limits.slots);
                    let going = self.held.iter().filter(|held| held.closing || held.reclaimed).count();
                    let served = self.servable(self.waiting.len()) + excess;
                    assert!(going + self.freed_lately() < served, "recalled for one who is served without it");
                    let now = self.now;
                    let held = self.held_mut(slot);
                    let Some(idle) = held.quiet.take() else { panic!("recalled though it moves") };
                    assert!(!std::mem::replace(&mut held.reclaimed, true), "recalled twice");
                    held.taken = true;
                    assert!(idle.from <= now, "recalled before its time");
                    let others = self.held.iter().filter(|held| self.may_go(held)).filter_map(|held| held.quiet);
                    let first = others.map(|other| (other.evidence, other.since)).min();
                    assert!(first.is_none_or(|first| (idle.evidence, idle.since) <= first), "another was to go first");
                }
                Decision::Close { slot, cause } => {
                    if cause == CloseCause::Reclaimed {
                        assert!(!self.waiting.is_empty(), "reclaimed for nobody");
                        assert!(self.open() >= self.limits.slots, "reclaimed though a slot is free");
                    }
                    let held = self.held_mut(slot);
                    assert!(held.kept.take().is_some(), "only kept connections are closed");
                    held.closing = true;
                    held.taken = true;
                }
            }
        }
        self.forget_passes();
        self.check_the_books();
        self.check_nothing_idles();
        self.check_wake();
    }

    /// Where more wait than may: the newest of the client with the most, which of equals is the newcomer.
    fn surplus(&self, newcomer: &ClientId) -> Option<Place> {
        if self.waiting.len() <= self.limits.depth {
            return None;
        }
        let of = |client: &ClientId| self.waiting.values().filter(|ask| ask.principal.client == *client).count();
        let rank = |place: &&Place| {
            let client = &self.waiting[*place].principal.client;
            (of(client), client == newcomer, client.clone(), **place)
        };
        self.waiting.keys().max_by_key(rank).copied()
    }

    fn decide(&mut self, place: Place) -> AdmissionRequest {
        assert!(self.decided.insert(place), "decided twice");
        self.waiting.remove(&place).expect("decided about one who waits")
    }

    fn check_dial(&mut self, place: Place, slot: SlotId) {
        assert!(!self.paused, "admitted while paused");
        self.check_order_among_its_own(place);
        let ask = self.decide(place);
        assert!(ask.deadline > self.now, "admitted after its deadline");
        assert!(!ask.held, "admitted though it is held");
        assert!(!self.ended, "admitted after the end");
        assert!(self.held.iter().all(|held| held.slot != slot), "a slot granted twice");
        let target = ask.target;
        let (kept, quiet) = (None, None);
        self.held.push(Held {
            slot,
            dialled: false,
            kept,
            closing: false,
            vacant: false,
            quiet,
            reclaimed: false,
            taken: false,
            fresh: false,
            target,
            principal: ask.principal,
            place,
            lane: ask.lane,
            serves_since: self.now,
        });
        assert!(self.open() <= self.limits.slots, "more open than slots");
        assert!(self.connecting() <= self.limits.max_connecting, "more connect than may");
        if let Some(tokens) = &mut self.tokens {
            tokens.take();
        }
        self.dials.push(self.now);
    }

    /// First in, first out in each lane; small requests first, but a blob is passed over [so often](World::most_passes) at
    /// most. Probes are not part of this order.
    fn check_order_among_its_own(&mut self, place: Place) {
        let asked = &self.waiting[&place];
        let principal = asked.principal.clone();
        let own = || self.waiting.values().filter(|ask| ask.principal == principal);
        let probes = own().any(|ask| self.out.contains(&ask.target));
        if self.out.contains(&asked.target) {
            self.passes.insert(principal.client, None);
            return;
        }
        let first = |lane| own().find(|ask| ask.lane == lane && self.is_in_line(ask)).map(|ask| ask.place);
        assert_eq!(first(asked.lane), Some(place), "out of order among its client's own");
        let passes = self.passes.get(&principal.client).copied().flatten();
        let most = self.most_passes();
        let after = match (asked.lane, first(Lane::Blob)) {
            (Lane::Small, Some(_)) => {
                assert!(passes.is_none_or(|passes| passes < most), "a blob is passed over for ever");
                passes.map(|passes| passes + 1)
            }
            (Lane::Small, None) => Some(0),
            (Lane::Blob, _) => {
                let is_due = passes.is_none_or(|passes| passes >= most);
                assert!(probes || is_due || first(Lane::Small).is_none(), "a blob before what it needs");
                Some(0)
            }
        };
        self.passes.insert(principal.client, after.filter(|_| !probes));
    }

    fn check_reuse(&mut self, place: Place, slot: SlotId) {
        let ask = self.decide(place);
        assert!(!self.paused && !ask.held, "admitted while paused or held");
        let now = self.now;
        let held = self.held_mut(slot);
        held.vacant = false;
        (held.lane, held.serves_since) = (ask.lane, now);
        held.target = ask.target.clone();
        held.principal = ask.principal.clone();
        held.place = place;
        // It may have been out of turn, which counts as no pass.
        self.passes.insert(ask.principal.client, None);
        let held = self.held_mut(slot);
        let kept = held.kept.take();
        assert!(kept.is_some() && kept == ask.reuse, "given a connection to somewhere else");
    }

    /// A client that neither waits in line nor is served may be forgotten, with its passes.
    fn forget_passes(&mut self) {
        let waits = self.waiting.values().filter(|ask| self.is_in_line(ask)).map(|ask| &ask.principal.client);
        let served = self.held.iter().filter(|held| !held.vacant).map(|held| &held.principal.client);
        let known: HashSet<ClientId> = waits.chain(served).cloned().collect();
        self.passes.retain(|client, _| known.contains(client));
    }

    fn is_in_line(&self, ask: &AdmissionRequest) -> bool {
        !ask.held && !self.out.contains(&ask.target)
    }

    fn open(&self) -> usize {
        self.held.len()
    }

    /// Slots that dial or shake hands, or are about to.
    fn connecting(&self) -> usize {
        let fresh = self.held.iter().filter(|held| held.fresh).count();
        self.core.snapshot(self.now).open.connecting + fresh
    }

    fn may_go(&self, held: &Held) -> bool {
        held.quiet.is_some_and(|idle| idle.from <= self.now)
    }

    /// Slots that came free by themselves within the last second.
    fn freed_lately(&self) -> usize {
        self.freed.iter().filter(|freed| self.now.since(**freed) < ms(1000)).count()
    }

    /// Slots on their way back that somebody can have then.
    fn coming(&self) -> usize {
        let excess = self.open().saturating_sub(self.limits.slots);
        self.held.iter().filter(|held| held.closing || held.reclaimed).count().saturating_sub(excess)
    }

    /// The same, with those that are expected to come free by themselves. Where there are too many, those are the first to go.
    fn coming_or_expected(&self) -> usize {
        let excess = self.open().saturating_sub(self.limits.slots);
        let coming = self.held.iter().filter(|held| held.closing || held.reclaimed).count();
        (coming + self.freed_lately()).saturating_sub(excess)
    }

    /// Of so many who wait, those who could dial at once, had they a slot.
    fn servable(&self, waiting: usize) -> usize {
        let tokens = self.tokens.as_ref().map_or(usize::MAX, NaiveBucket::count);
        let dials = self.limits.max_connecting.saturating_sub(self.connecting());
        waiting.min(tokens).min(dials)
    }

    /// A waiter holds nothing: the taken slots are exactly those that were granted and not returned.
    fn check_the_books(&self) {
        let snapshot = self.core.snapshot(self.now);
        assert_eq!(snapshot.open.open(), self.open());
        assert_eq!(snapshot.waiting, self.waiting.len());
        assert!(snapshot.waiting <= self.limits.depth, "more wait than may");
        assert_eq!(snapshot.open.closing, self.held.iter().filter(|held| held.closing).count());
        assert!(self.waiting.values().all(|ask| ask.deadline > self.now), "kept waiting past its deadline");
        let oldest = self.waiting.keys().next().map_or(Duration::ZERO, |place| self.now.since(place.arrived()));
        assert_eq!(snapshot.oldest_wait, oldest);
    }

    fn check_nothing_idles(&self) {
        assert!(!self.ended || self.waiting.is_empty());
        let kept: Vec<&ReuseKey> = self.held.iter().filter_map(|held| held.kept.as_ref()).collect();
        assert!(kept.is_empty() || !self.draining, "kept while draining");
        if self.paused {
            return;
        }
        // A waiter for a target that refuses is admitted only as a probe; the others are admitted in order.
        let in_line = self.waiting.values().filter(|ask| self.is_in_line(ask)).count();
        let wanted = |key: &ReuseKey| {
            let mut asks = self.waiting.values().filter(|ask| self.is_in_line(ask));
            asks.any(|ask| ask.reuse.as_ref() == Some(key))
        };
        assert!(!kept.iter().any(|key| wanted(key)), "a kept connection idles that somebody could use");
        if in_line == 0 {
            return;
        }
        let has_token = self.tokens.as_ref().is_none_or(NaiveBucket::has_one);
        let connecting = self.connecting();
        if connecting >= self.limits.max_connecting {
            return;
        }
        assert!(self.open() >= self.limits.slots || !has_token, "slot and token idle while somebody waits");
        // Kept connections of no use to those who wait give way, one for each, as far as tokens and places to dial go; so do
        // tunnels that have been quiet for long enough.
        let (coming, served_soon) = (self.coming(), self.servable(in_line));
        let blocked_by_rate = self.open() < self.limits.slots;
        let eligible = self.held.iter().any(|held| self.may_go(held));
        let can_give_way = !kept.is_empty() || eligible;
        let expected = self.coming_or_expected();
        assert!(
            !can_give_way || blocked_by_rate || coming >= served_soon || kept.is_empty() && expected >= served_soon,
            "at {:?} an idle connection blocks who waits: {served_soon} to serve, {coming} coming, {:?} {:?}",
            self.now,
            self.held,
            self.core
        );
    }

    /// The core wants to be woken in time for whatever changes by time alone.
    fn check_wake(&self) {
        self.check_wake_for_recalls();
        let wake = self.core.wake_at();
        let by = |moment: Moment| wake.is_some_and(|wake| wake <= moment);
        if let Some(deadline) = self.waiting.values().map(|ask| ask.deadline).min() {
            assert!(by(deadline), "nobody would notice a deadline");
        }
        if let Some(tokens) = &self.tokens
            && self.waiting.values().any(|ask| self.is_in_line(ask))
            && self.open() < self.limits.slots
            && self.connecting() < self.limits.max_connecting
            && !self.paused
        {
            let due = self.now + self.tokens.as_ref().unwrap().rate.period.saturating_sub(tokens.level);
            assert!(by(due), "nobody would notice the next token");
        }
    }
}

impl World {
    /// Quiet tunnels that could give way to those who wait, as soon as they have been quiet for long enough and there is a
    /// token for one more.
    fn check_wake_for_recalls(&self) {
        let in_line = self.waiting.values().filter(|ask| self.is_in_line(ask)).count();
        let coming = self.coming();
        let connecting = self.connecting();
        if self.paused
            || connecting + coming >= self.limits.max_connecting
            || self.open() < self.limits.slots
            || in_line <= coming
        {
            return;
        }
        let token = self.tokens.as_ref().map_or(Some(self.now), |tokens| tokens.due(coming + 1));
        let tunnel = self.held.iter().filter_map(|held| held.quiet).map(|idle| idle.from).min();
        if let (Some(token), Some(tunnel)) = (token, tunnel) {
            let none_freed = self.freed.last().map_or(self.now, |freed| *freed + ms(1000));
            let due = token.max(tunnel).max(none_freed);
            assert!(self.core.wake_at().is_some_and(|wake| wake <= due), "nobody would notice that a tunnel may go");
        }
    }
}

/// One step of a history. Numbers pick one of what is there at that time.
#[derive(Clone, Debug)]
enum Step {
    Arrive { client: usize, small: bool, key: usize, patience: u64, held: bool },
    LetGo(usize),
    Leave(usize),
    Tell(usize),
    Dialled(usize),
    Enter(usize, SlotState),
    Park(usize, usize),
    Quiet(usize, Evidence, u64),
    Unreachable(usize),
    Established(usize, bool),
    Pause(bool),
    Release(usize),
    Resize(usize),
    Yield(Option<usize>),
    Pass(u64),
    PassToWake,
    Drain,
    End,
}

fn step() -> impl Strategy<Value = Step> {
    let evidence =
        prop_oneof![Just(Evidence::Unused), Just(Evidence::Idle), Just(Evidence::Unsure), Just(Evidence::Stalled)];
    let states = prop_oneof![Just(SlotState::Active), Just(SlotState::Idle), Just(SlotState::Closing)];
    prop_oneof![
        8 => (0..3_usize, any::<bool>(), 0..3_usize, 1..300_u64, prop::bool::weighted(0.2))
            .prop_map(|(client, small, key, patience, held)| Step::Arrive { client, small, key, patience, held }),
        2 => any::<usize>().prop_map(Step::LetGo),
        2 => any::<usize>().prop_map(Step::Tell),
        2 => any::<usize>().prop_map(Step::Leave),
        5 => any::<usize>().prop_map(Step::Dialled),
        2 => (any::<usize>(), states).prop_map(|(slot, state)| Step::Enter(slot, state)),
        5 => (any::<usize>(), 0..2_usize).prop_map(|(slot, key)| Step::Park(slot, key)),
        5 => any::<usize>().prop_map(Step::Release),
        3 => (any::<usize>(), evidence, 0..200_u64)
            .prop_map(|(slot, evidence, pause)| Step::Quiet(slot, evidence, pause)),
        2 => any::<usize>().prop_map(Step::Unreachable),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(slot, tunnel)| Step::Established(slot, tunnel)),
        1 => any::<bool>().prop_map(Step::Pause),
        1 => (1..6_usize).prop_map(Step::Resize),
        1 => prop::option::of(1..6_usize).prop_map(Step::Yield),
        5 => (0..60_u64).prop_map(Step::Pass),
        3 => Just(Step::PassToWake),
    ]
}

/// So many steps, of which the last 60 may find the process going down.
fn history() -> impl Strategy<Value = Vec<Step>> {
    let ending = prop_oneof![3 => Just(vec![]), 1 => Just(vec![Step::Drain]), 1 => Just(vec![Step::Drain, Step::End])];
    (prop::collection::vec(step(), STEPS), ending).prop_map(|(mut steps, ending)| {
        let from = steps.len().saturating_sub(60);
        for (at, step) in ending.into_iter().enumerate() {
            steps[from + at * 30] = step;
        }
        steps
    })
}

const KEYS: [Option<&str>; 3] = [Some("a:80"), Some("b:80"), None];

impl World {
    fn take_step(&mut self, step: &Step) {
        match step {
            Step::Arrive { client, small, key, patience, held } => {
                let principal = [principal("x", 0), principal("y", 0), principal("z", 1)][*client].clone();
                let lane = if *small { Lane::Small } else { Lane::Blob };
                if *held {
                    self.arrive_held(&principal, lane, KEYS[*key], ms(*patience));
                } else {
                    self.arrive_as(&principal, lane, KEYS[*key], ms(*patience));
                }
            }
            Step::LetGo(pick) => {
                let held = self.waiting.values().filter(|ask| ask.held).map(|ask| ask.place);
                self.let_go(&nth(held, *pick).into_iter().collect::<Vec<_>>());
            }
            Step::Tell(pick) => self.tell(*pick),
            Step::Quiet(pick, evidence, pause) => {
                let tunnel = |held: &&Held| held.dialled && !held.closing && !held.vacant;
                if let Some(held) = nth(self.held.iter().filter(tunnel), *pick) {
                    let slot = held.slot;
                    self.quiet_as(slot, *evidence, ms(*pause));
                }
            }
            Step::Unreachable(pick) => {
                if let Some(held) =
                    nth(self.held.iter().filter(|held| held.dialled && !held.closing && !held.vacant), *pick)
                {
                    let slot = held.slot;
                    self.unreachable(slot);
                    self.release(slot);
                }
            }
            Step::Established(pick, tunnel) => {
                if let Some(held) =
                    nth(self.held.iter().filter(|held| held.dialled && !held.closing && !held.vacant), *pick)
                {
                    let slot = held.slot;
                    self.established_as(slot, if *tunnel { SlotState::Idle } else { SlotState::Active });
                }
            }
            Step::Pause(paused) => self.pause(*paused),
            Step::Leave(pick) => {
                if let Some(place) = nth(self.waiting.keys().copied(), *pick) {
                    self.leave(place);
                }
            }
            Step::Dialled(pick) => {
                if let Some(held) = nth(self.held.iter(), *pick) {
                    let slot = held.slot;
                    self.dialled(slot);
                }
            }
            Step::Enter(pick, state) => {
                if let Some(held) = nth(self.held.iter().filter(|held| !held.closing), *pick) {
                    let slot = held.slot;
                    self.enter(slot, *state);
                }
            }
            Step::Park(pick, key) => {
                let can_park = |held: &&Held| held.dialled && !held.closing && held.kept.is_none();
                if let Some(held) = nth(self.held.iter().filter(can_park), *pick) {
                    let slot = held.slot;
                    self.park(slot, KEYS[*key].unwrap());
                }
            }
            Step::Release(pick) => {
                if let Some(held) = nth(self.held.iter(), *pick) {
                    let slot = held.slot;
                    self.release(slot);
                }
            }
            Step::Resize(slots) => self.resize(*slots),
            Step::Yield(slots) => self.yield_to(*slots),
            Step::Pass(millis) => {
                self.pass(ms(*millis));
                self.tick();
            }
            Step::PassToWake => {
                if let Some(wake) = self.core.wake_at() {
                    self.pass(wake.since(self.now));
                    self.tick();
                }
            }
            Step::Drain => {
                self.draining = true;
                self.core.drain(self.now);
                self.settle(None);
            }
            Step::End => {
                self.ended = true;
                self.core.end(self.now);
                self.settle(None);
            }
        }
    }
}

fn nth<T>(mut items: impl Iterator<Item = T> + Clone, pick: usize) -> Option<T> {
    let count = items.clone().count();
    if count == 0 { None } else { items.nth(pick % count) }
}

#[test]
fn random_histories_keep_every_promise() {
    let config = ProptestConfig { cases: history_count(), ..ProptestConfig::with_source_file(file!()) };
    let rate = prop::option::of((1..50_u64, 1..4_u32));
    let (lived, taken) = (Cell::new(0_u32), Cell::new(0_usize));
    let keep_place = prop_oneof![Just(Duration::ZERO), Just(ms(200))];
    let histories = (1..5_usize, 1..5_usize, 0..8_usize, keep_place, rate, history());
    let proved = TestRunner::new(config).run(&histories, |(slots, max_connecting, depth, keep_place, rate, steps)| {
        let weights = vec![1, 3];
        let mut world = World::new(Limits { max_connecting, keep_place, weights, ..limits(slots, depth, rate) });
        for step in &steps {
            world.take_step(step);
        }
        lived.set(lived.get() + 1);
        taken.set(taken.get() + steps.len());
        Ok(())
    });
    proved.unwrap_or_else(|failure| panic!("{failure}"));
    println!("{} histories, {} steps", lived.get(), taken.get());
    let wanted = history_count();
    assert!(lived.get() >= wanted && taken.get() >= STEPS * wanted as usize);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: history_count() / 10, ..ProptestConfig::default() })]

    /// No window of connects holds more than the burst and what the window refills, whatever else happens.
    #[test]
    fn no_window_breaks_the_rate(period in 5..40_u64, burst in 1..5_u32, gaps in prop::collection::vec(0..60_u64, 1..200)) {
        let mut world = World::new(limits(1000, usize::MAX, Some((period, burst))));
        for gap in gaps {
            let until = world.now + ms(gap);
            while let Some(wake) = world.core.wake_at().filter(|wake| *wake < until) {
                world.pass(wake.since(world.now));
                world.tick();
            }
            world.pass(until.since(world.now));
            world.tick();
            world.arrive(None, ms(100_000));
        }
        let spent = &world.dials;
        prop_assert!(!spent.is_empty());
        for (first, from) in spent.iter().enumerate() {
            for (last, to) in spent.iter().enumerate().skip(first) {
                let allowed = u128::from(burst) * u128::from(period) * 1_000_000 + to.since(*from).as_nanos();
                prop_assert!((last - first + 1) as u128 * u128::from(period) * 1_000_000 <= allowed);
            }
        }
    }
}

/// A world with so many connections, all of which have been dialled.
fn dialled(limits: Limits, connections: usize) -> (World, Vec<SlotId>) {
    let mut world = World::new(limits);
    for _ in 0..connections {
        world.arrive(None, ms(9000));
    }
    let slots = dialled_slots(&world);
    for slot in &slots {
        world.dialled(*slot);
    }
    (world, slots)
}

fn dialled_slots(world: &World) -> Vec<SlotId> {
    world.held.iter().map(|held| held.slot).collect()
}

#[test]
fn a_vanished_waiters_slot_and_token_go_to_the_next() {
    let mut world = World::new(limits(1, 10, Some((1000, 1))));
    world.arrive(None, ms(500));
    let next = world.arrive(None, ms(500));
    let vanished = dialled_slots(&world)[0];
    world.release(vanished);
    assert!(world.decided.contains(&next));
}

#[test]
fn a_token_that_was_spent_does_not_come_back_with_the_slot() {
    let mut world = World::new(limits(1, 10, Some((1000, 1))));
    world.arrive(None, ms(5000));
    let next = world.arrive(None, ms(5000));
    let slot = dialled_slots(&world)[0];
    world.dialled(slot);
    world.release(slot);
    assert!(!world.decided.contains(&next));
    world.pass(ms(999));
    world.tick();
    assert!(!world.decided.contains(&next));
    world.pass(ms(1));
    world.tick();
    assert!(world.decided.contains(&next));
}

#[test]
fn one_slot_serves_two_authorities_in_turn() {
    let mut world = World::new(limits(1, 10, None));
    world.arrive(Some("a:80"), ms(500));
    let slot = dialled_slots(&world)[0];
    world.dialled(slot);
    world.park(slot, "a:80");
    let other = world.arrive(Some("b:80"), ms(500));
    assert_eq!(world.log.last(), Some(&Decision::Close { slot, cause: CloseCause::Reclaimed }));
    assert!(!world.decided.contains(&other), "the slot is free when the socket is gone, not before");
    world.release(slot);
    assert!(world.decided.contains(&other));
}

#[test]
fn each_waiter_gets_one_victim_or_the_connection_it_can_use() {
    let (mut world, slots) = dialled(limits(3, 10, None), 3);
    let for_b = world.arrive(Some("b:80"), ms(500));
    world.park(slots[0], "a:80");
    assert_eq!(world.log.last(), Some(&Decision::Close { slot: slots[0], cause: CloseCause::Reclaimed }));
    world.pass(ms(1));
    world.park(slots[1], "a:80");
    assert_eq!(world.log.len(), 4, "one victim is enough for one waiter");
    world.park(slots[2], "b:80");
    assert!(world.decided.contains(&for_b), "what it can use came before the slot that was on its way");
    let other = world.arrive(None, ms(500));
    assert!(!world.decided.contains(&other));
    assert_eq!(world.log.len(), 5, "a slot is on its way already");
}

/// A tunnel is next, and its slot is on its way: connections that come free meanwhile go to those who can use them.
#[test]
fn one_that_comes_free_behind_the_head_goes_to_the_next_that_can_use_it() {
    let (mut world, slots) = dialled(limits(3, 10, None), 3);
    let tunnels = [(); 2].map(|()| world.arrive(None, ms(500)));
    let [first, second] = [(); 2].map(|()| world.arrive(Some("a:80"), ms(500)));
    world.park(slots[0], "a:80");
    assert_eq!(world.log.last(), Some(&Decision::Close { slot: slots[0], cause: CloseCause::Reclaimed }));
    world.park(slots[1], "a:80");
    assert!(world.decided.contains(&first) && !world.decided.contains(&second));
    world.release(slots[0]);
    assert!(world.decided.contains(&tunnels[0]));
    world.park(slots[2], "a:80");
    assert_eq!(world.log.last(), Some(&Decision::Close { slot: slots[2], cause: CloseCause::Reclaimed }));
    assert!(!world.decided.contains(&second), "the second tunnel is next");
    world.release(slots[2]);
    assert!(world.decided.contains(&tunnels[1]));
}

/// The registry behind the connection that was closed for a tunnel does not answer: its slot does not come back for long.
#[test]
fn a_slot_that_does_not_come_back_is_waited_for_a_second() {
    let (mut world, slots) = dialled(Limits { max_lifetime: ms(5000), ..limits(3, 10, None) }, 3);
    let tunnel = world.arrive(None, ms(5000));
    let requests = [(); 2].map(|()| world.arrive(Some("a:80"), ms(5000)));
    world.park(slots[0], "a:80");
    world.pass(ms(999));
    world.park(slots[1], "a:80");
    assert!(world.decided.contains(&requests[0]));
    world.pass(ms(1));
    world.park(slots[2], "a:80");
    assert_eq!(world.log.last(), Some(&Decision::Close { slot: slots[2], cause: CloseCause::Reclaimed }));
    world.release(slots[2]);
    assert!(world.decided.contains(&tunnel) && !world.decided.contains(&requests[1]));
}

/// The same with nobody else who waits: one more connection is closed for it each second, and a slot that nobody closed for it is not
/// waited for any longer either.
#[test]
fn a_slot_that_does_not_come_back_is_made_up_for_by_another() {
    let (mut world, slots) =
        dialled(Limits { idle_timeout: ms(60_000), max_lifetime: ms(60_000), ..limits(3, 10, None) }, 3);
    for slot in &slots {
        world.park(*slot, "a:80");
    }
    let closed = |world: &World| {
        let close = |decision: &Decision| matches!(decision, Decision::Close { cause: CloseCause::Reclaimed, .. });
        world.log.iter().filter(|decision| close(decision)).count()
    };
    let first = world.arrive(None, ms(60_000));
    assert_eq!(closed(&world), 1);
    world.leave(first);
    world.pass(ms(5000));
    let second = world.arrive(None, ms(60_000));
    for (passed, so_many) in [(999, 1), (1, 2), (999, 2), (1, 3), (60, 3)] {
        world.pass(ms(passed));
        world.tick();
        assert_eq!(closed(&world), so_many);
    }
    world.release(slots[2]);
    assert!(world.decided.contains(&second));
}

/// A tunnel that was asked to close moves on, or what closes is too much after a reduction: nothing is on its way to the one at the
/// head, and a connection that comes free is closed for it.
#[test]
fn nobody_passes_the_head_where_no_slot_is_on_its_way() {
    let (mut world, slots) = dialled(limits(2, 10, None), 2);
    let [tunnel, request] = [None, Some("a:80")].map(|key| world.arrive(key, ms(5000)));
    world.quiet(slots[0], ms(0));
    assert_eq!(world.log.last(), Some(&Decision::Reclaim { slot: slots[0] }));
    world.enter(slots[0], SlotState::Active);
    world.pass(ms(500));
    world.park(slots[1], "a:80");
    assert_eq!(world.log.last(), Some(&Decision::Close { slot: slots[1], cause: CloseCause::Reclaimed }));
    world.release(slots[1]);
    assert!(world.decided.contains(&tunnel) && !world.decided.contains(&request));

    let (mut world, slots) = dialled(limits(4, 10, None), 4);
    let [tunnel, request] = [None, Some("a:80")].map(|key| world.arrive(key, ms(5000)));
    world.enter(slots[0], SlotState::Closing);
    world.resize(3);
    world.park(slots[1], "a:80");
    assert!(!world.decided.contains(&request), "what closes is not for the tunnel");
    world.release(slots[0]);
    world.release(slots[1]);
    assert!(world.decided.contains(&tunnel));
}

/// Others that are at the head for a moment do not make its second begin anew.
#[test]
fn the_second_of_the_head_goes_on_while_others_pass() {
    let (mut world, slots) =
        dialled(Limits { idle_timeout: ms(60_000), max_lifetime: ms(60_000), ..limits(3, 10, None) }, 3);
    world.arrive(None, ms(60_000));
    let request = world.arrive(Some("a:80"), ms(60_000));
    world.park(slots[0], "b:80");
    assert_eq!(world.log.last(), Some(&Decision::Close { slot: slots[0], cause: CloseCause::Reclaimed }));
    world.pass(ms(600));
    let passing = world.arrive_blob("another", None, ms(60_000));
    assert_eq!(world.core.books.queue.head().unwrap().request.place, passing);
    world.pass(ms(300));
    world.leave(passing);
    world.pass(ms(100));
    world.park(slots[1], "a:80");
    assert_eq!(world.log.last(), Some(&Decision::Close { slot: slots[1], cause: CloseCause::Reclaimed }));
    assert!(!world.decided.contains(&request));
}

#[test]
fn a_full_queue_refuses_the_newcomer_and_says_when_to_come_back() {
    let mut world = World::new(limits(1, 2, None));
    for _ in 0..4 {
        world.arrive(None, ms(500));
    }
    let Some(Decision::Refuse { refusal, .. }) = world.log.last() else { panic!("{:?}", world.log) };
    assert_eq!((refusal.reason, refusal.waiting, refusal.slots), (RefusalReason::QueueFull, 2, 1));
    assert!(refusal.retry_after >= ms(1000));
}

#[test]
fn nothing_is_closed_for_one_who_may_not_wait() {
    let mut world = World::new(limits(1, 0, None));
    world.arrive(Some("a:80"), ms(500));
    let slot = dialled_slots(&world)[0];
    world.dialled(slot);
    world.park(slot, "a:80");
    world.arrive(Some("b:80"), ms(500));
    assert!(world.log.iter().all(|decision| !matches!(decision, Decision::Close { .. })), "{:?}", world.log);
    world.arrive(Some("a:80"), ms(500));
    assert!(matches!(world.log.last(), Some(Decision::Reuse { .. })));
}

/// A dial that failed, or a ticket, brings a request back on its old place: the newest of the same client goes, and never more
/// than `depth` wait.
#[test]
fn a_request_that_comes_back_is_counted_and_not_refused_for_a_newer_one() {
    let mut world = World::new(Limits { keep_place: ms(500), ..limits(1, 2, None) });
    world.arrive(None, ms(500));
    let [old, newer] = [0, 1].map(|_| world.arrive(None, ms(500)));
    world.leave(old);
    let newest = world.arrive(None, ms(500));
    assert_eq!(newest, old, "it has the ticket");
    world.leave(old);
    let other = world.arrive_as(&principal("other", 0), Lane::Blob, None, ms(500));
    assert_eq!(world.arrive(None, ms(500)), old);
    assert!(world.decided.contains(&newer) && !world.decided.contains(&old) && !world.decided.contains(&other));
}

/// A lone client may fill the queue, and is refused in favour of one who has nothing there.
#[test]
fn the_newest_of_the_greatest_client_is_refused_for_one_who_has_none() {
    let mut world = World::new(limits(1, 4, None));
    let greedy: Vec<Place> = (0..5).map(|_| world.arrive(None, ms(500))).collect();
    assert!(!world.decided.contains(&greedy[4]), "a lone client may use all");
    let modest = world.arrive_as(&principal("modest", 0), Lane::Blob, None, ms(500));
    assert!(world.decided.contains(&greedy[4]) && !world.decided.contains(&modest));
    let second = world.arrive_as(&principal("modest", 0), Lane::Blob, None, ms(500));
    assert!(world.decided.contains(&greedy[3]) && !world.decided.contains(&second));
    let third = world.arrive_as(&principal("modest", 0), Lane::Blob, None, ms(500));
    assert!(world.decided.contains(&third), "it has as many as the other one");
}

/// Names are free: a client that invents one for each request is one peer all the same.
#[test]
fn invented_names_do_not_fill_the_queue_against_another_peer() {
    let mut world = World::new(limits(1, 4, None));
    world.arrive(None, ms(500));
    let named = |number: usize| Principal { class: ClassId(0), client: ClientId::named("evil", number.to_string()) };
    for number in 0..10 {
        let ask = world.request(&named(number), Lane::Blob, None, ms(500));
        world.core.arrive(ask, world.now);
    }
    while world.core.next_decision().is_some() {}
    let ask = world.request(&principal("honest", 0), Lane::Blob, None, ms(500));
    let place = ask.place;
    world.core.arrive(ask, world.now);
    let refused = world.core.next_decision();
    assert!(matches!(refused, Some(Decision::Refuse { place: other, .. }) if other != place), "{refused:?}");
    assert_eq!(world.core.next_decision(), None);
}

#[test]
fn a_wait_ends_exactly_at_its_deadline() {
    let mut world = World::new(limits(1, 10, None));
    world.arrive(None, ms(1000));
    let waiter = world.arrive(None, ms(250));
    assert_eq!(world.core.wake_at(), Some(Moment(ms(250))));
    world.pass(ms(250).saturating_sub(Duration::from_nanos(1)));
    world.tick();
    assert!(!world.decided.contains(&waiter));
    world.pass(Duration::from_nanos(1));
    world.tick();
    let Some(Decision::Refuse { refusal, .. }) = world.log.last() else { panic!("{:?}", world.log) };
    assert_eq!((refusal.reason, refusal.waited), (RefusalReason::QueueTimeout, ms(250)));
}

#[test]
fn fewer_slots_cut_nobody_and_admit_nobody_until_it_fits() {
    let mut world = World::new(limits(3, 10, None));
    for _ in 0..3 {
        world.arrive(None, ms(500));
    }
    let waiter = world.arrive(None, ms(500));
    world.resize(1);
    let slots = dialled_slots(&world);
    world.release(slots[0]);
    world.release(slots[1]);
    assert!(!world.decided.contains(&waiter));
    world.release(slots[2]);
    assert!(world.decided.contains(&waiter));
}

#[test]
fn kept_connections_expire_by_idleness_and_by_age() {
    let (mut world, slots) = dialled(limits(2, 10, None), 2);
    world.park(slots[0], "a:80");
    assert_eq!(world.core.wake_at(), Some(Moment(IDLE_TIMEOUT)));
    world.pass(MAX_LIFETIME.saturating_sub(ms(100)));
    world.tick();
    assert_eq!(world.log.last(), Some(&Decision::Close { slot: slots[0], cause: CloseCause::Expired }));
    world.park(slots[1], "a:80");
    assert_eq!(world.core.wake_at(), Some(Moment(MAX_LIFETIME)), "its age binds before its idleness");
    world.pass(ms(100));
    world.tick();
    assert_eq!(world.log.last(), Some(&Decision::Close { slot: slots[1], cause: CloseCause::Expired }));
}

#[test]
fn no_more_than_max_connecting_dial_at_once() {
    let mut world = World::new(Limits { max_connecting: 2, ..limits(10, 10, None) });
    for _ in 0..5 {
        world.arrive(None, ms(500));
    }
    assert_eq!((world.open(), world.core.snapshot(world.now).limited_by), (2, Some(LimitedBy::Connecting)));
    let slot = dialled_slots(&world)[0];
    world.dialled(slot);
    world.established(slot);
    assert_eq!(world.open(), 3);
}

#[test]
fn who_comes_back_goes_on_with_its_old_age() {
    let mut world = World::new(Limits { keep_place: ms(1000), ..limits(1, 10, None) });
    world.arrive_blob("holder", None, ms(9000));
    let gave_up = world.arrive_blob("one", None, ms(100));
    world.pass(ms(50));
    let patient = world.arrive_blob("one", None, ms(9000));
    world.pass(ms(50));
    world.tick();
    assert!(world.decided.contains(&gave_up), "its wait timed out");
    let other = world.place(&("one".into(), "tunnel:443".into()));
    assert_ne!(other, gave_up, "nobody can come back before it knows");
    world.tell(0);
    assert_eq!(world.arrive_blob("one", None, ms(500)), gave_up, "its place was kept");
    let slot = dialled_slots(&world)[0];
    world.release(slot);
    assert!(world.decided.contains(&gave_up) && !world.decided.contains(&patient));
}

/// A class that has few turns is not told of the turns of another.
#[test]
fn each_class_is_told_when_its_own_turn_will_come() {
    const LONG: Duration = Duration::from_secs(100_000);
    let mut world = World::new(Limits { weights: vec![1, 8], ..limits(1, 10_000, None) });
    for _ in 0..300 {
        world.arrive_as(&principal("slow", 0), Lane::Blob, None, LONG);
        world.arrive_as(&principal("quick", 1), Lane::Blob, None, LONG);
    }
    let serve = |world: &mut World| {
        let slot = dialled_slots(world)[0];
        world.dialled(slot);
        world.pass(ms(1000));
        world.release(slot);
    };
    for _ in 0..90 {
        serve(&mut world);
    }
    let explained = world.core.explain(usize::MAX, world.now).waiters;
    for (class, turns) in [(0, 9), (1, 1)] {
        let third = explained.iter().filter(|waiter| waiter.principal.class == ClassId(class)).nth(2).unwrap();
        let expected = third.expected_wait.unwrap().as_secs();
        assert!((2 * turns..=4 * turns + 1).contains(&expected), "class {class}: {expected} s");
    }
    let hasty = world.arrive_as(&principal("slow", 0), Lane::Blob, None, ms(1));
    world.pass(ms(1));
    world.tick();
    let refused = world.log.iter().rev().find_map(|one| match one {
        Decision::Refuse { place, refusal, .. } if *place == hasty => Some(refusal.clone()),
        _ => None,
    });
    let refused = refused.expect("its patience was short");
    assert!(refused.expected_wait.unwrap() >= Duration::from_secs(300), "{refused:?}");
    assert_eq!(refused.retry_after, Duration::from_secs(300), "the longest that is told");
}

#[test]
fn a_target_that_refuses_is_probed_by_one_and_holds_up_nobody_else() {
    let mut world = World::new(limits(4, 100, None));
    world.arrive(Some("a:80"), ms(5000));
    let refused = dialled_slots(&world)[0];
    world.dialled(refused);
    world.unreachable(refused);
    world.release(refused);
    let waiting: Vec<Place> = (0..3).map(|_| world.arrive(Some("a:80"), ms(5000))).collect();
    let elsewhere = world.arrive(Some("b:80"), ms(5000));
    assert!(world.decided.contains(&elsewhere));
    assert_eq!(world.core.snapshot(world.now).limited_by, Some(LimitedBy::Unreachable));
    world.pass(ms(100));
    world.tick();
    let admitted = |world: &World| waiting.iter().filter(|place| world.decided.contains(place)).count();
    assert_eq!(admitted(&world), 1, "one probes");
    let probe = *dialled_slots(&world).last().unwrap();
    world.dialled(probe);
    world.established(probe);
    assert_eq!(admitted(&world), 3, "and all go on when it stands");
}

#[test]
fn a_recalled_tunnel_that_moves_after_all_is_left_alone_and_another_is_asked() {
    let mut world = World::new(limits(2, 10, None));
    world.arrive_blob("x", None, ms(500));
    world.arrive_blob("y", None, ms(500));
    let slots = dialled_slots(&world);
    for slot in &slots {
        world.dialled(*slot);
        world.established(*slot);
        world.quiet(*slot, ms(50));
    }
    let waiter = world.arrive_blob("x", None, ms(500));
    world.pass(ms(50));
    world.tick();
    let recalls = |world: &World| -> Vec<SlotId> {
        let reclaimed = |decision: &Decision| match decision {
            Decision::Reclaim { slot, .. } => Some(*slot),
            _ => None,
        };
        world.log.iter().filter_map(reclaimed).collect()
    };
    assert_eq!(recalls(&world), [slots[0]], "the first of equals");
    world.enter(slots[0], SlotState::Active);
    assert_eq!(recalls(&world), slots);
    world.enter(slots[1], SlotState::Closing);
    world.release(slots[1]);
    assert!(world.decided.contains(&waiter));
}

/// Tunnels on all slots, that have been quiet for long enough, as many who wait, and tokens for two.
#[test]
fn the_next_recall_comes_with_the_next_token_and_not_with_the_next_slot() {
    let (mut world, slots) = dialled(limits(4, 10, Some((100, 4))), 4);
    for slot in &slots {
        world.established(*slot);
        world.quiet(*slot, ms(0));
    }
    world.pass(ms(200));
    for _ in 0..4 {
        world.arrive(None, ms(9000));
    }
    let recalls = |world: &World| world.log.iter().filter(|one| matches!(one, Decision::Reclaim { .. })).count();
    assert_eq!(recalls(&world), 2, "none without a token");
    assert_eq!(world.core.wake_at(), Some(Moment(ms(300))));
    world.pass(ms(100));
    world.tick();
    assert_eq!(recalls(&world), 3);
}

/// Each decision looks at those that may give way once, not at every slot for every slot.
#[test]
fn thousands_of_quiet_tunnels_give_way_to_thousands_in_no_time() {
    const MANY: u64 = 5000;
    let mut core = Core::new(limits(5000, 5000, None), Moment::default());
    let (target, mut now): (Arc<str>, _) = ("tunnel:443".into(), Moment::default());
    let arrive = |core: &mut Core, number: u64, now| {
        let client: ClientId = format!("client-{}", number % 50).into();
        let (place, _) = core.place(&client, &target, now);
        let principal = Principal { class: ClassId::default(), client };
        core.arrive(AdmissionRequest::new(place, Moment(Duration::MAX), principal, target.clone()), now);
    };
    for number in 0..MANY {
        arrive(&mut core, number, now);
        let Some(Decision::Dial { slot, .. }) = core.next_decision() else { panic!("not admitted") };
        let quiet = Quiet { evidence: Evidence::Idle, since: now, from: Moment(ms(50)) };
        core.tell(slot, SlotEvent::Quiet(quiet), now);
    }
    for number in 0..MANY {
        arrive(&mut core, number, now);
    }
    now = Moment(ms(50));
    let started = std::time::Instant::now();
    core.tick(now);
    let took = started.elapsed();
    let recalls = std::iter::from_fn(|| core.next_decision()).filter(|one| matches!(one, Decision::Reclaim { .. }));
    assert_eq!(recalls.count(), 5000);
    assert!(took < Duration::from_secs(2), "it took {took:?}");
}

/// A token that came back unspent is for those who can be admitted now: no tunnel gives way for it later.
#[test]
fn nothing_is_recalled_for_a_token_that_nobody_can_spend_now() {
    let mut world = World::new(limits(3, 10, Some((1000, 3))));
    for _ in 0..3 {
        world.arrive(None, ms(9000));
    }
    let slots = dialled_slots(&world);
    for slot in &slots[..2] {
        world.dialled(*slot);
        world.established(*slot);
        world.quiet(*slot, ms(0));
    }
    world.arrive(None, ms(9000));
    world.resize(1);
    world.release(slots[2]);
    assert!(world.log.iter().all(|one| !matches!(one, Decision::Reclaim { .. })), "{:?}", world.log);
    assert_eq!(world.core.wake_at(), Some(Moment(ms(1000))), "the next token");
}

/// A kept connection goes to one who passes the others with it; newcomers do not start behind that.
#[test]
fn who_passes_the_others_with_a_kept_connection_moves_no_clock() {
    const LONG: Duration = Duration::from_secs(3600);
    let mut world = World::new(Limits { max_lifetime: LONG, ..limits(10, 100, Some((100_000, 1))) });
    world.arrive_blob("quick", Some("a:80"), LONG);
    let slot = dialled_slots(&world)[0];
    world.dialled(slot);
    world.established(slot);
    let patient: Vec<Place> = (0..5).map(|_| world.arrive_blob("patient", None, LONG)).collect();
    for _ in 0..5 {
        let passing = world.arrive_blob("quick", Some("a:80"), LONG);
        world.park(slot, "a:80");
        assert!(world.decided.contains(&passing));
        world.pass(ms(10_000));
    }
    let newcomer: Vec<Place> = (0..5).map(|_| world.arrive_blob("newcomer", None, LONG)).collect();
    world.park(slot, "a:80");
    for _ in 0..4 {
        world.pass(ms(100_000));
        world.tick();
    }
    let admitted = |places: &[Place]| places.iter().filter(|place| world.decided.contains(place)).count();
    assert_eq!((admitted(&patient), admitted(&newcomer)), (2, 2));
}

/// Each reclaim is a small risk. A slot that came free by itself within the last second promises another one: only requests
/// beyond those take a tunnel, one each, and one second later all do.
#[test]
fn no_tunnel_goes_while_slots_come_free_by_themselves() {
    let (mut world, slots) = dialled(limits(4, 10, None), 4);
    for slot in &slots {
        world.established(*slot);
    }
    for slot in &slots[..3] {
        world.quiet(*slot, ms(0));
        world.pass(ms(100));
    }
    let recalls = |world: &World| -> Vec<SlotId> {
        let reclaimed = |decision: &Decision| match decision {
            Decision::Reclaim { slot } => Some(*slot),
            _ => None,
        };
        world.log.iter().filter_map(reclaimed).collect()
    };
    world.release(slots[3]);
    world.arrive(None, ms(9000));
    world.pass(ms(500));
    world.arrive(None, ms(9000));
    assert_eq!((recalls(&world), world.core.wake_at()), (vec![], Some(Moment(ms(1300)))), "one is expected");
    world.arrive(None, ms(9000));
    assert_eq!(recalls(&world), [slots[0]], "the longest quiet, for the second request");
    world.pass(ms(499));
    world.tick();
    assert_eq!(recalls(&world), [slots[0]]);
    world.pass(ms(1));
    world.tick();
    assert_eq!(recalls(&world), slots[..2], "none came free, and nobody waits for the third");
    world.release(slots[0]);
    world.release(slots[1]);
    world.arrive(None, ms(9000));
    assert_eq!(recalls(&world), slots[..3], "a slot that was taken is none that came free by itself");
}

/// Held requests wait like all others, and are admitted in the order of the queue once they are let go.
#[test]
fn held_requests_wait_and_are_admitted_in_their_order() {
    let mut world = World::new(limits(2, 10, None));
    let who = principal("client", 0);
    let held: Vec<Place> = (0..3).map(|_| world.arrive_held(&who, Lane::Blob, Some("a:80"), ms(500))).collect();
    assert_eq!((dialled_slots(&world).len(), world.core.snapshot(world.now).waiting), (0, 3), "slots are free");
    let free = world.arrive(Some("a:80"), ms(9000));
    let slot = dialled_slots(&world)[0];
    world.dialled(slot);
    world.established(slot);
    world.park(slot, "a:80");
    assert_eq!(world.waiting.len(), 3, "a pooled connection is nothing for one who is held");
    world.pass(ms(100));
    world.let_go(&[held[2], held[0], held[1]]);
    assert!(world.decided.contains(&free) && world.decided.contains(&held[0]) && world.decided.contains(&held[1]));
    assert!(!world.decided.contains(&held[2]), "the youngest waits for a slot");
    let late = world.arrive_held(&who, Lane::Blob, None, ms(100));
    world.pass(ms(100));
    world.tick();
    assert!(world.decided.contains(&late), "a deadline ends it");
}
