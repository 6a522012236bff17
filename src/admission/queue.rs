//! Those who wait: each with a place by arrival, a deadline, and a turn that [`FairQueue`] decides.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::deadlines::Deadlines;
use super::fair_queue::{Charge, FairQueue, Turn};
use super::moment::Moment;
use super::request::{AdmissionRequest, ClassId, Client, Place, Principal, ReuseKey};

/// One who waits.
#[derive(Clone, Debug)]
pub(super) struct Waiter {
    pub ask: AdmissionRequest,
    /// When this ask began to wait; later than the place's arrival for one who asks again.
    pub since: Moment,
    /// Whether it is set aside, because its target takes no connections.
    aside: bool,
}

impl Waiter {
    pub fn waited(&self, now: Moment) -> Duration {
        now.since(self.since)
    }
}

/// The waiting.
#[derive(Debug)]
pub(super) struct Queue {
    /// Boxed: what is searched, and moved when somebody leaves, are the keys.
    waiters: BTreeMap<Place, Box<Waiter>>,
    turns: FairQueue,
    /// Those who get no turn for now, by target.
    aside: HashMap<Arc<str>, BTreeSet<Place>>,
    deadlines: Deadlines,
    by_key: HashMap<ReuseKey, BTreeSet<Place>>,
    by_class: Vec<usize>,
}

impl Queue {
    /// Nobody waits; classes have these weights.
    pub fn new(weights: &[u32]) -> Queue {
        Queue {
            waiters: BTreeMap::new(),
            turns: FairQueue::new(weights),
            aside: HashMap::new(),
            deadlines: Deadlines::default(),
            by_key: HashMap::new(),
            by_class: vec![0; weights.len()],
        }
    }

    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Those who are not set aside.
    pub fn in_line(&self) -> usize {
        self.waiters.len() - self.aside.values().map(BTreeSet::len).sum::<usize>()
    }

    pub fn waiting_in(&self, class: ClassId) -> usize {
        self.by_class.get(class.0).copied().unwrap_or(0)
    }

    /// Whether this client waits for a turn.
    pub fn waits(&self, client: &Client) -> bool {
        self.turns.waits(client)
    }

    /// Classes have these weights from now on; there may be more of them, never fewer.
    pub fn change_weights(&mut self, weights: &[u32]) {
        self.turns.change_weights(weights);
        self.by_class.resize(weights.len().max(self.by_class.len()), 0);
    }

    /// Somebody begins to wait; `aside` for one who gets no turn for now.
    pub fn push(&mut self, ask: AdmissionRequest, aside: bool, now: Moment) {
        let place = ask.place;
        debug_assert!(!self.waiters.contains_key(&place), "a request waits once at a time");
        if aside {
            self.aside.entry(ask.target.clone()).or_default().insert(place);
        } else {
            self.turns.push(&ask.principal, ask.lane, place);
        }
        self.by_class[ask.principal.class.0] += 1;
        self.deadlines.add(ask.deadline, place);
        if let Some(key) = &ask.reuse {
            self.by_key.entry(key.clone()).or_default().insert(place);
        }
        self.waiters.insert(place, Box::new(Waiter { ask, since: now, aside }));
    }

    /// Gives no turn to those who wait for this target, until they are brought back.
    pub fn set_aside(&mut self, target: &Arc<str>) {
        let places: Vec<Place> = self
            .waiters
            .values()
            .filter(|waiter| waiter.ask.target == *target)
            .map(|waiter| waiter.ask.place)
            .collect();
        for place in places {
            let waiter = self.waiters.get_mut(&place).expect("it was just found");
            if !std::mem::replace(&mut waiter.aside, true) {
                self.turns.remove(&waiter.ask.principal, waiter.ask.lane, place);
                self.aside.entry(target.clone()).or_default().insert(place);
            }
        }
    }

    /// Lets the longest waiting of those who were set aside take its turn; tells which.
    pub fn bring_one_back(&mut self, target: &Arc<str>) -> Option<Place> {
        let places = self.aside.get_mut(target)?;
        let place = places.pop_first()?;
        if places.is_empty() {
            self.aside.remove(target);
        }
        let waiter = self.waiters.get_mut(&place).expect("who is set aside waits");
        waiter.aside = false;
        self.turns.push(&waiter.ask.principal, waiter.ask.lane, place);
        Some(place)
    }

    /// Lets all of them take their turns.
    pub fn bring_all_back(&mut self, target: &Arc<str>) {
        while self.bring_one_back(target).is_some() {}
    }

    /// Takes out one who waits no more, without a turn.
    pub fn remove(&mut self, place: Place) -> Option<Waiter> {
        let waiter = self.detach(place)?;
        if !waiter.aside {
            self.turns.remove(&waiter.ask.principal, waiter.ask.lane, place);
        }
        Some(waiter)
    }

    /// Takes out one who is admitted, and tells what it is charged in advance.
    pub fn take(&mut self, place: Place, turn: Turn) -> Option<(Waiter, Charge)> {
        let mut waiter = self.detach(place)?;
        if std::mem::take(&mut waiter.aside) {
            self.turns.push(&waiter.ask.principal, waiter.ask.lane, place);
        }
        let charged = self.turns.take(&waiter.ask.principal, waiter.ask.lane, place, turn);
        Some((waiter, charged))
    }

    /// A slot came back after `slot_nanos`.
    pub fn settle(&mut self, principal: &Principal, charged: Charge, slot_nanos: u64) {
        self.turns.settle(principal, charged, slot_nanos);
    }

    fn detach(&mut self, place: Place) -> Option<Waiter> {
        let waiter = *self.waiters.remove(&place)?;
        self.by_class[waiter.ask.principal.class.0] -= 1;
        if waiter.aside
            && let Some(places) = self.aside.get_mut(&waiter.ask.target)
        {
            places.remove(&place);
            if places.is_empty() {
                self.aside.remove(&waiter.ask.target);
            }
        }
        let waiters = &self.waiters;
        let deadline_of = |place| waiters.get(&place).map(|waiter| waiter.ask.deadline);
        self.deadlines.gone(waiter.ask.deadline, place, waiters.len(), deadline_of);
        if let Some(key) = &waiter.ask.reuse
            && let Some(places) = self.by_key.get_mut(key)
        {
            places.remove(&place);
            if places.is_empty() {
                self.by_key.remove(key);
            }
        }
        Some(waiter)
    }

    /// The one whose turn it is.
    pub fn head(&self) -> Option<&Waiter> {
        self.get(self.turns.next()?)
    }

    pub fn get(&self, place: Place) -> Option<&Waiter> {
        self.waiters.get(&place).map(Box::as_ref)
    }

    /// The one who has waited longest.
    pub fn first(&self) -> Option<&Waiter> {
        self.by_arrival().next()
    }

    /// All who wait, by arrival.
    pub fn by_arrival(&self) -> impl Iterator<Item = &Waiter> {
        self.waiters.values().map(Box::as_ref)
    }

    /// How many of those who wait arrived before this place, counted up to `most`.
    pub fn ahead_of(&self, place: Place, most: usize) -> usize {
        self.waiters.range(..place).take(most).count()
    }

    /// The first to arrive who could use a kept connection for `key`.
    pub fn first_for(&self, key: &ReuseKey) -> Option<Place> {
        self.by_key.get(key)?.first().copied()
    }

    /// One whose deadline has come.
    pub fn overdue(&self, now: Moment) -> Option<Place> {
        self.deadlines.first().filter(|(deadline, _)| *deadline <= now).map(|(_, place)| place)
    }

    /// The next moment at which somebody's patience ends.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.deadlines.first().map(|(deadline, _)| deadline)
    }

    /// The time since the arrival of the one who waits longest.
    pub fn oldest_wait(&self, now: Moment) -> Duration {
        self.waiters.keys().next().map_or(Duration::ZERO, |place| now.since(place.arrived()))
    }
}
