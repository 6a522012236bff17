//! The core against a naive model, in virtual time: random histories, every promise asserted after every step, and the
//! stories that matter most told one by one.

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;

use super::core::{CloseCause, Core, Decision, Limits, RefusalReason};
use super::moment::Moment;
use super::queue::{Ask, Place, ReuseKey};
use super::rate::Rate;
use super::slots::{SlotId, SlotState};

const IDLE_TIMEOUT: Duration = Duration::from_millis(400);
const MAX_LIFETIME: Duration = Duration::from_millis(900);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn limits(slots: usize, depth: usize, rate: Option<(u64, u32)>) -> Limits {
    let rate = rate.map(|(period, burst)| Rate { period: ms(period), burst: NonZeroU32::new(burst).unwrap() });
    Limits { slots, depth, rate, idle_timeout: IDLE_TIMEOUT, max_lifetime: MAX_LIFETIME }
}

/// Drives a core through a history and knows, naively, what must hold.
struct World {
    core: Core,
    limits: Limits,
    now: Moment,
    waiting: BTreeMap<Place, Ask>,
    decided: HashSet<Place>,
    held: Vec<Held>,
    tokens: Option<NaiveBucket>,
    ended: bool,
    draining: bool,
    log: Vec<Decision>,
    dials: Vec<Moment>,
}

#[derive(Clone, Debug)]
struct Held {
    slot: SlotId,
    dialled: bool,
    /// The key it is kept for, while it is idle in the pool.
    kept: Option<ReuseKey>,
    closing: bool,
}

/// A token bucket as a child would build it: a level that rises.
struct NaiveBucket {
    rate: Rate,
    level: Duration,
    at: Moment,
    in_hand: usize,
}

impl NaiveBucket {
    fn new(rate: Rate) -> NaiveBucket {
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

    fn count(&self) -> usize {
        usize::try_from(self.level.as_nanos() / self.rate.period.as_nanos()).unwrap() + self.in_hand
    }
}

impl World {
    fn new(limits: Limits) -> World {
        World {
            core: Core::new(limits.clone(), Moment::default()),
            tokens: limits.rate.map(NaiveBucket::new),
            limits,
            now: Moment::default(),
            waiting: BTreeMap::new(),
            decided: HashSet::new(),
            held: Vec::new(),
            ended: false,
            draining: false,
            log: Vec::new(),
            dials: Vec::new(),
        }
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now + span;
        if let Some(tokens) = &mut self.tokens {
            tokens.pass(self.now);
        }
    }

    fn arrive(&mut self, key: Option<&str>, patience: Duration, again: bool) -> Place {
        let place = self.core.place(self.now);
        let ask = Ask { place, deadline: self.now + patience, reuse: key.map(ReuseKey::from), again };
        let before = self.waiting.len();
        self.waiting.insert(place, ask.clone());
        self.core.arrive(ask, self.now);
        let full = before >= self.limits.depth && !again;
        self.settle(full.then_some(place));
        place
    }

    fn leave(&mut self, place: Place) {
        self.waiting.remove(&place);
        self.core.leave(place, self.now);
        self.settle(None);
    }

    fn dialled(&mut self, slot: SlotId) {
        self.held_mut(slot).dialled = true;
        self.core.dialled(slot);
    }

    fn enter(&mut self, slot: SlotId, state: SlotState) {
        let held = self.held_mut(slot);
        held.kept = None;
        held.closing |= state == SlotState::Closing;
        self.core.enter(slot, state, self.now);
        self.settle(None);
    }

    fn park(&mut self, slot: SlotId, key: &str) {
        let key = ReuseKey::from(key);
        self.held_mut(slot).kept = Some(key.clone());
        if !self.core.park(slot, key, self.now) {
            self.held_mut(slot).kept = None;
        }
        self.settle(None);
    }

    fn release(&mut self, slot: SlotId) {
        let index = self.held.iter().position(|held| held.slot == slot).unwrap();
        let held = self.held.swap_remove(index);
        if let Some(tokens) = &mut self.tokens {
            tokens.in_hand = usize::from(!held.dialled);
        }
        self.core.released(slot, self.now);
        self.settle(None);
        if let Some(tokens) = &mut self.tokens {
            tokens.in_hand = 0;
        }
    }

    fn resize(&mut self, slots: usize) {
        self.limits.slots = slots;
        self.core.resize(slots, self.now);
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
    fn settle(&mut self, may_be_full: Option<Place>) {
        while let Some(decision) = self.core.next_decision() {
            self.log.push(decision.clone());
            match decision {
                Decision::Dial { place, slot, .. } => self.check_dial(place, slot),
                Decision::Reuse { place, slot, .. } => self.check_reuse(place, slot),
                Decision::Refuse { place, refusal } => {
                    let ask = self.decide(place);
                    match refusal.reason {
                        RefusalReason::QueueFull => assert_eq!(may_be_full, Some(place), "refused with room left"),
                        RefusalReason::QueueTimeout => assert!(ask.deadline <= self.now, "refused before its time"),
                        RefusalReason::Draining => assert!(self.ended, "refused as draining without an end"),
                    }
                }
                Decision::Close { slot, cause } => {
                    if cause == CloseCause::Reclaimed {
                        assert!(!self.waiting.is_empty(), "reclaimed for nobody");
                        assert!(self.open() >= self.limits.slots, "reclaimed though a slot is free");
                    }
                    let held = self.held_mut(slot);
                    assert!(held.kept.take().is_some(), "only kept connections are closed");
                    held.closing = true;
                }
            }
        }
        self.check_the_books();
        self.check_nothing_idles();
        self.check_wake();
    }

    fn decide(&mut self, place: Place) -> Ask {
        assert!(self.decided.insert(place), "decided twice");
        self.waiting.remove(&place).expect("decided about one who waits")
    }

    fn check_dial(&mut self, place: Place, slot: SlotId) {
        let first = *self.waiting.keys().next().unwrap();
        assert_eq!(first, place, "out of order");
        let ask = self.decide(place);
        assert!(ask.deadline > self.now, "admitted after its deadline");
        assert!(!self.ended, "admitted after the end");
        assert!(self.held.iter().all(|held| held.slot != slot), "a slot granted twice");
        self.held.push(Held { slot, dialled: false, kept: None, closing: false });
        assert!(self.open() <= self.limits.slots, "more open than slots");
        if let Some(tokens) = &mut self.tokens {
            tokens.take();
        }
        self.dials.push(self.now);
    }

    fn check_reuse(&mut self, place: Place, slot: SlotId) {
        let ask = self.decide(place);
        let kept = self.held_mut(slot).kept.take();
        assert!(kept.is_some() && kept == ask.reuse, "given a connection to somewhere else");
    }

    fn open(&self) -> usize {
        self.held.len()
    }

    /// Who waits holds nothing: what is taken is exactly what was granted and not given back.
    fn check_the_books(&self) {
        let snapshot = self.core.snapshot(self.now);
        assert_eq!(snapshot.open.open(), self.open());
        assert_eq!(snapshot.waiting, self.waiting.len());
        assert_eq!(snapshot.open.closing, self.held.iter().filter(|held| held.closing).count());
        assert!(self.waiting.values().all(|ask| ask.deadline > self.now), "kept waiting past its deadline");
        let oldest = self.waiting.keys().next().map_or(Duration::ZERO, |place| self.now.since(place.arrived()));
        assert_eq!(snapshot.oldest_wait, oldest);
    }

    fn check_nothing_idles(&self) {
        assert!(!self.ended || self.waiting.is_empty());
        let kept: Vec<&ReuseKey> = self.held.iter().filter_map(|held| held.kept.as_ref()).collect();
        assert!(kept.is_empty() || !self.draining, "kept while draining");
        let wanted = |key: &ReuseKey| self.waiting.values().any(|ask| ask.reuse.as_ref() == Some(key));
        assert!(!kept.iter().any(|key| wanted(key)), "a kept connection idles that somebody could use");
        if self.waiting.is_empty() {
            return;
        }
        let has_token = self.tokens.as_ref().is_none_or(NaiveBucket::has_one);
        assert!(self.open() >= self.limits.slots || !has_token, "slot and token idle while somebody waits");
        // Kept connections of no use to those who wait give way, one for each, as far as tokens go.
        let excess = self.open().saturating_sub(self.limits.slots);
        let coming = self.held.iter().filter(|held| held.closing).count().saturating_sub(excess);
        let tokens = self.tokens.as_ref().map_or(usize::MAX, NaiveBucket::count);
        let served_soon = self.waiting.len().min(tokens);
        let blocked_by_rate = self.open() < self.limits.slots;
        assert!(kept.is_empty() || blocked_by_rate || coming >= served_soon, "a kept connection blocks who waits");
    }

    /// The core wants to be woken in time for whatever changes by time alone.
    fn check_wake(&self) {
        let wake = self.core.wake_at();
        let by = |moment: Moment| wake.is_some_and(|wake| wake <= moment);
        if let Some(deadline) = self.waiting.values().map(|ask| ask.deadline).min() {
            assert!(by(deadline), "nobody would notice a deadline");
        }
        if let Some(tokens) = &self.tokens
            && !self.waiting.is_empty()
            && self.open() < self.limits.slots
        {
            let due = self.now + self.tokens.as_ref().unwrap().rate.period.saturating_sub(tokens.level);
            assert!(by(due), "nobody would notice the next token");
        }
    }
}

/// One step of a history. Numbers pick one of what is there at that time.
#[derive(Clone, Debug)]
enum Step {
    Arrive { key: usize, patience: u64, again: bool },
    Leave(usize),
    Dialled(usize),
    Enter(usize, SlotState),
    Park(usize, usize),
    Release(usize),
    Resize(usize),
    Pass(u64),
    PassToWake,
    Drain,
    End,
}

fn step() -> impl Strategy<Value = Step> {
    let states = prop_oneof![Just(SlotState::Active), Just(SlotState::Idle), Just(SlotState::Closing)];
    prop_oneof![
        8 => (0..3_usize, 1..300_u64, prop::bool::weighted(0.1))
            .prop_map(|(key, patience, again)| Step::Arrive { key, patience, again }),
        2 => any::<usize>().prop_map(Step::Leave),
        5 => any::<usize>().prop_map(Step::Dialled),
        2 => (any::<usize>(), states).prop_map(|(slot, state)| Step::Enter(slot, state)),
        5 => (any::<usize>(), 0..2_usize).prop_map(|(slot, key)| Step::Park(slot, key)),
        5 => any::<usize>().prop_map(Step::Release),
        1 => (1..6_usize).prop_map(Step::Resize),
        5 => (0..60_u64).prop_map(Step::Pass),
        3 => Just(Step::PassToWake),
    ]
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    let ending = prop_oneof![3 => Just(vec![]), 1 => Just(vec![Step::Drain]), 1 => Just(vec![Step::Drain, Step::End])];
    (prop::collection::vec(step(), 1..300), ending, prop::collection::vec(step(), 0..60))
        .prop_map(|(before, ending, after)| [before, ending, after].concat())
}

const KEYS: [Option<&str>; 3] = [Some("a:80"), Some("b:80"), None];

impl World {
    fn take_step(&mut self, step: &Step) {
        match step {
            Step::Arrive { key, patience, again } => {
                self.arrive(KEYS[*key], ms(*patience), *again);
            }
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_keep_every_promise(
        slots in 1..5_usize,
        depth in 0..8_usize,
        rate in prop::option::of((1..50_u64, 1..4_u32)),
        steps in history(),
    ) {
        let mut world = World::new(limits(slots, depth, rate));
        for step in &steps {
            world.take_step(step);
        }
    }

    /// No window of connects holds more than the burst and what the window refills, whatever else happens.
    #[test]
    fn no_window_breaks_the_rate(period in 5..40_u64, burst in 1..5_u32, gaps in prop::collection::vec(0..60_u64, 1..200)) {
        let mut world = World::new(limits(usize::MAX, usize::MAX, Some((period, burst))));
        for gap in gaps {
            let until = world.now + ms(gap);
            while let Some(wake) = world.core.wake_at().filter(|wake| *wake < until) {
                world.pass(wake.since(world.now));
                world.tick();
            }
            world.pass(until.since(world.now));
            world.tick();
            world.arrive(None, ms(100_000), false);
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

fn dialled_slots(world: &World) -> Vec<SlotId> {
    world.held.iter().map(|held| held.slot).collect()
}

#[test]
fn a_vanished_waiters_slot_and_token_go_to_the_next() {
    let mut world = World::new(limits(1, 10, Some((1000, 1))));
    world.arrive(None, ms(500), false);
    let next = world.arrive(None, ms(500), false);
    let vanished = dialled_slots(&world)[0];
    world.release(vanished);
    assert!(world.decided.contains(&next));
}

#[test]
fn a_token_that_was_spent_does_not_come_back_with_the_slot() {
    let mut world = World::new(limits(1, 10, Some((1000, 1))));
    world.arrive(None, ms(5000), false);
    let next = world.arrive(None, ms(5000), false);
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
    world.arrive(Some("a:80"), ms(500), false);
    let slot = dialled_slots(&world)[0];
    world.dialled(slot);
    world.park(slot, "a:80");
    let other = world.arrive(Some("b:80"), ms(500), false);
    assert_eq!(world.log.last(), Some(&Decision::Close { slot, cause: CloseCause::Reclaimed }));
    assert!(!world.decided.contains(&other), "the slot is free when the socket is gone, not before");
    world.release(slot);
    assert!(world.decided.contains(&other));
}

#[test]
fn each_waiter_gets_one_victim_or_the_connection_it_can_use() {
    let mut world = World::new(limits(3, 10, None));
    for _ in 0..3 {
        world.arrive(None, ms(500), false);
    }
    let slots = dialled_slots(&world);
    for slot in &slots {
        world.dialled(*slot);
    }
    let for_b = world.arrive(Some("b:80"), ms(500), false);
    world.park(slots[0], "a:80");
    assert_eq!(world.log.last(), Some(&Decision::Close { slot: slots[0], cause: CloseCause::Reclaimed }));
    world.pass(ms(1));
    world.park(slots[1], "a:80");
    assert_eq!(world.log.len(), 4, "one victim is enough for one waiter");
    world.park(slots[2], "b:80");
    assert!(world.decided.contains(&for_b), "what it can use came before the slot that was on its way");
    let other = world.arrive(None, ms(500), false);
    assert!(!world.decided.contains(&other));
    assert_eq!(world.log.len(), 5, "a slot is on its way already");
}

#[test]
fn a_full_queue_refuses_the_newcomer_and_says_when_to_come_back() {
    let mut world = World::new(limits(1, 2, None));
    for _ in 0..4 {
        world.arrive(None, ms(500), false);
    }
    let Some(Decision::Refuse { refusal, .. }) = world.log.last() else { panic!("{:?}", world.log) };
    assert_eq!((refusal.reason, refusal.waiting, refusal.slots), (RefusalReason::QueueFull, 2, 1));
    assert!(refusal.retry_after >= ms(1000));
}

#[test]
fn nothing_is_closed_for_one_who_may_not_wait() {
    let mut world = World::new(limits(1, 0, None));
    world.arrive(Some("a:80"), ms(500), false);
    let slot = dialled_slots(&world)[0];
    world.dialled(slot);
    world.park(slot, "a:80");
    world.arrive(Some("b:80"), ms(500), false);
    assert!(world.log.iter().all(|decision| !matches!(decision, Decision::Close { .. })), "{:?}", world.log);
    world.arrive(Some("a:80"), ms(500), false);
    assert!(matches!(world.log.last(), Some(Decision::Reuse { .. })));
}

#[test]
fn who_was_admitted_before_is_not_refused_for_a_full_queue() {
    let mut world = World::new(limits(1, 1, None));
    world.arrive(None, ms(500), false);
    world.arrive(None, ms(500), false);
    let again = world.arrive(None, ms(500), true);
    assert!(!world.decided.contains(&again));
}

#[test]
fn a_wait_ends_exactly_at_its_deadline() {
    let mut world = World::new(limits(1, 10, None));
    world.arrive(None, ms(1000), false);
    let waiter = world.arrive(None, ms(250), false);
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
        world.arrive(None, ms(500), false);
    }
    let waiter = world.arrive(None, ms(500), false);
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
    let mut world = World::new(limits(2, 10, None));
    for _ in 0..2 {
        world.arrive(None, ms(500), false);
    }
    let slots = dialled_slots(&world);
    for slot in &slots {
        world.dialled(*slot);
    }
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
