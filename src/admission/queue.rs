//! The requests that wait: each with a place by arrival, a deadline, and a rank that [`FairQueue`] gives it.
//!
//! A request whose target is out is *held back*: it waits on, but is not next before its target is probed or back. One that
//! is held by its caller is held back, too, until its caller lets it go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::client_counts::ClientCounts;
use super::fair_queue::{AdmittedAs, Charge, FairQueue};
use super::maps::TextMap;
use super::moment::Moment;
use super::request::{AdmissionRequest, ClassId, ClientId, Place, Principal, ReuseKey};

#[derive(Clone, Debug)]
pub(super) struct Waiter {
    pub request: AdmissionRequest,
    /// When it began to wait; later than the place's arrival for one that asks again.
    pub since: Moment,
    held_back: bool,
}

impl Waiter {
    pub fn waited(&self, now: Moment) -> Duration {
        now.since(self.since)
    }
}

#[derive(Debug)]
pub(super) struct WaitQueue {
    /// Boxed: what is searched, and moved when a request leaves, are the keys.
    waiters: BTreeMap<Place, Box<Waiter>>,
    order: FairQueue,
    /// Those that go before all others.
    ahead: BTreeSet<Place>,
    counts: ClientCounts,
    by_target: TextMap<Arc<str>, BTreeSet<Place>>,
    held_back: usize,
    by_deadline: BTreeSet<(u64, Place)>,
    by_key: TextMap<ReuseKey, BTreeSet<Place>>,
    by_class: Vec<usize>,
}

impl WaitQueue {
    /// No request waits; classes have these weights.
    pub fn new(weights: &[u32]) -> WaitQueue {
        WaitQueue {
            waiters: BTreeMap::new(),
            order: FairQueue::new(weights),
            ahead: BTreeSet::new(),
            counts: ClientCounts::default(),
            by_target: TextMap::default(),
            held_back: 0,
            by_deadline: BTreeSet::new(),
            by_key: TextMap::default(),
            by_class: vec![0; weights.len()],
        }
    }

    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// How many are not held back.
    pub fn in_line(&self) -> usize {
        self.waiters.len() - self.held_back
    }

    pub fn waiting_in(&self, class: ClassId) -> usize {
        self.by_class.get(class.0).copied().unwrap_or(0)
    }

    /// Classes have these weights from now on. There may be more of them, never fewer.
    pub fn change_weights(&mut self, weights: &[u32]) {
        self.order.change_weights(weights);
        self.by_class.resize(weights.len().max(self.by_class.len()), 0);
    }

    pub fn push(&mut self, request: AdmissionRequest, held_back: bool, since: Moment, now: Moment) {
        let (place, held_back) = (request.place, held_back || request.held);
        debug_assert!(!self.waiters.contains_key(&place), "a request waits once at a time");
        if !held_back {
            self.order.push(&request.principal, request.lane, place, now);
        }
        if place.is_ahead() {
            self.ahead.insert(place);
        }
        self.held_back += usize::from(held_back);
        self.counts.add(&request.principal.client, place);
        self.by_class[request.principal.class.0] += 1;
        self.by_deadline.insert((request.deadline.nanos(), place));
        if !request.held {
            add(&mut self.by_target, &request.target, place);
            request.reuse.iter().for_each(|key| add(&mut self.by_key, key, place));
        }
        self.waiters.insert(place, Box::new(Waiter { request, since, held_back }));
    }

    pub fn hold_back(&mut self, target: &Arc<str>, now: Moment) {
        for place in self.by_target.get(target).into_iter().flatten() {
            let waiter = self.waiters.get_mut(place).expect("a target's requests wait");
            if !std::mem::replace(&mut waiter.held_back, true) {
                self.held_back += 1;
                self.order.remove(&waiter.request.principal, waiter.request.lane, *place, now);
            }
        }
    }

    /// Lets the first request for this target be next again. Until now all are held back.
    pub fn let_one_go(&mut self, target: &Arc<str>, now: Moment) -> Option<Place> {
        let place = *self.by_target.get(target)?.first()?;
        self.let_go(place, now);
        Some(place)
    }

    pub fn let_all_go(&mut self, target: &Arc<str>, now: Moment) {
        for place in self.by_target.get(target).cloned().unwrap_or_default() {
            self.let_go(place, now);
        }
    }

    pub fn let_go(&mut self, place: Place, now: Moment) {
        let waiter = self.waiters.get_mut(&place).expect("a target's requests wait");
        if std::mem::take(&mut waiter.held_back) {
            self.held_back -= 1;
            self.order.push(&waiter.request.principal, waiter.request.lane, place, now);
        }
    }

    pub fn remove(&mut self, place: Place, now: Moment) -> Option<Waiter> {
        let waiter = self.detach(place)?;
        if waiter.held_back {
            self.held_back -= 1;
        } else {
            self.order.remove(&waiter.request.principal, waiter.request.lane, place, now);
        }
        Some(waiter)
    }

    /// Takes out a request that is admitted, and tells what it is charged in advance.
    pub fn take(&mut self, place: Place, how: AdmittedAs, now: Moment) -> Option<(Waiter, Charge)> {
        if self.get(place)?.held_back {
            self.let_go(place, now);
        }
        let how = if place.is_ahead() { AdmittedAs::Passing } else { how };
        let waiter = self.detach(place)?;
        let charge = self.order.take(&waiter.request.principal, waiter.request.lane, place, how, now);
        Some((waiter, charge))
    }

    pub fn settle(&mut self, principal: &Principal, charge: Charge, now: Moment) {
        self.order.settle(principal, charge, now);
    }

    fn detach(&mut self, place: Place) -> Option<Waiter> {
        let waiter = *self.waiters.remove(&place)?;
        let request = &waiter.request;
        self.ahead.remove(&place);
        self.by_class[request.principal.class.0] -= 1;
        self.counts.remove(&request.principal.client, place);
        remove(&mut self.by_target, &request.target, place);
        if let Some(key) = &request.reuse {
            remove(&mut self.by_key, key, place);
        }
        self.by_deadline.remove(&(request.deadline.nanos(), place));
        Some(waiter)
    }

    /// The request to refuse where too many wait and this one came last: the newest of the client that has the most.
    pub fn surplus(&self, newcomer: &ClientId) -> Option<Place> {
        self.counts.newest_of_greatest(newcomer)
    }

    pub fn head(&self) -> Option<&Waiter> {
        let ahead = self.ahead.iter().filter_map(|place| self.get(*place)).find(|waiter| !waiter.held_back);
        ahead.or_else(|| self.get(self.order.next()?))
    }

    pub fn get(&self, place: Place) -> Option<&Waiter> {
        self.waiters.get(&place).map(Box::as_ref)
    }

    pub fn by_arrival(&self) -> impl Iterator<Item = &Waiter> {
        self.waiters.values().map(Box::as_ref)
    }

    /// The next `most` in the order of their turns, as if each slot cost its client what its last ones cost, and nobody came
    /// or left. Those that are held back have no turn.
    pub fn by_turn(&self, most: usize, now: Moment) -> Vec<Place> {
        let mut order = self.order.clone();
        let mut ahead = self.ahead.iter().copied().filter(|place| !self.waiters[place].held_back);
        let mut turns = Vec::new();
        while turns.len() < most {
            let first = ahead.next().map(|place| (place, AdmittedAs::Passing));
            let Some((place, how)) = first.or_else(|| Some((order.next()?, AdmittedAs::Next))) else { break };
            let request = &self.waiters[&place].request;
            order.take(&request.principal, request.lane, place, how, now);
            turns.push(place);
        }
        turns
    }

    /// How many of those who wait arrived before this place, counted up to `most`.
    pub fn ahead_of(&self, place: Place, most: usize) -> usize {
        self.waiters.range(..place).take(most).count()
    }

    /// The first to arrive that could use a pooled connection for `key`.
    pub fn first_for(&self, key: &ReuseKey) -> Option<Place> {
        self.by_key.get(key)?.first().copied()
    }

    pub fn overdue(&self, now: Moment) -> Option<Place> {
        self.by_deadline.first().filter(|(deadline, _)| *deadline <= now.nanos()).map(|(_, place)| *place)
    }

    pub fn next_deadline(&self) -> Option<Moment> {
        self.by_deadline.first().map(|(deadline, _)| Moment(Duration::from_nanos(*deadline)))
    }

    /// The time since the arrival of the request that has waited longest.
    pub fn oldest_wait(&self, now: Moment) -> Duration {
        self.waiters.keys().next().map_or(Duration::ZERO, |place| now.since(place.arrived()))
    }
}

fn add(places: &mut TextMap<Arc<str>, BTreeSet<Place>>, key: &Arc<str>, place: Place) {
    match places.get_mut(key) {
        Some(places) => places.insert(place),
        None => places.insert(key.clone(), BTreeSet::from([place])).is_none(),
    };
}

fn remove(places: &mut TextMap<Arc<str>, BTreeSet<Place>>, key: &Arc<str>, place: Place) {
    if let Some(of_key) = places.get_mut(key) {
        of_key.remove(&place);
        if of_key.is_empty() {
            places.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::Lane;
    use super::*;

    /// A client with ten requests, then one with one: the turns are those in which they are taken, whatever the arrival.
    #[test]
    fn turns_are_the_order_in_which_requests_are_taken() {
        let mut queue = WaitQueue::new(&[1, 8]);
        let now = Moment(Duration::from_secs(1));
        let mut sequence = 0;
        let mut push = |queue: &mut WaitQueue, class: usize, client: &str, lane: Lane, held: bool, ahead: bool| {
            sequence += 1;
            let place = Place::new(Moment(Duration::from_nanos(sequence)), sequence);
            let place = if ahead { place.ahead() } else { place };
            let principal = Principal { class: ClassId(class), client: client.into() };
            let (deadline, target) = (Moment(Duration::from_secs(60)), "harbor:443".into());
            let request = AdmissionRequest { lane, held, ..AdmissionRequest::new(place, deadline, principal, target) };
            queue.push(request, false, now, now);
            place
        };
        let many: Vec<Place> = (0..10).map(|_| push(&mut queue, 0, "uid:1", Lane::Blob, false, false)).collect();
        let small = push(&mut queue, 0, "uid:1", Lane::Small, false, false);
        let late = push(&mut queue, 0, "uid:2", Lane::Blob, false, false);
        let held = push(&mut queue, 0, "uid:3", Lane::Small, true, false);
        let weighty = push(&mut queue, 1, "uid:4", Lane::Blob, false, false);
        let ahead = push(&mut queue, 0, "uid:5", Lane::Blob, false, true);
        let turns = queue.by_turn(100, now);
        assert_eq!((turns[0], turns.len()), (ahead, 14));
        assert!(!turns.contains(&held));
        let turn = |place: Place| turns.iter().position(|of| *of == place).unwrap();
        assert!(turn(small) < turn(many[0]) && turn(late) < 5 && turn(weighty) < 5, "{turns:?}");
        assert_eq!(queue.by_turn(3, now), turns[..3]);
        // They are taken so, and looking has changed nothing.
        let mut taken = Vec::new();
        while let Some(place) = queue.head().map(|waiter| waiter.request.place) {
            queue.take(place, AdmittedAs::Next, now);
            taken.push(place);
        }
        assert_eq!(taken, turns);
    }
}
