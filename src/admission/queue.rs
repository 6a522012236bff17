//! Those who wait: in the order of their places, each with a deadline.
//!
//! First in, first out. Classes, turns among clients and kept places will go here: the core asks only for the next
//! waiter, walks them in order, and takes one out; what "order" means is this file's secret.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::moment::Moment;

/// A place in the order: by arrival, ties by sequence. It names the request for as long as that waits, also across
/// several admissions (a dial that failed gives its slot back and waits again on its old place).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    arrived: Moment,
    sequence: u64,
}

impl Place {
    pub(super) fn new(arrived: Moment, sequence: u64) -> Place {
        Place { arrived, sequence }
    }

    /// When the request first arrived.
    #[must_use]
    pub fn arrived(self) -> Moment {
        self.arrived
    }
}

/// What a connection can be reused for: the authority (and later the scheme) that it was opened to.
pub type ReuseKey = Arc<str>;

/// A request for admission.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Where the request stands in the order.
    pub place: Place,
    /// When waiting ends with a refusal.
    pub deadline: Moment,
    /// Kept connections that would do as well as a new one; `None`: only a new one will do.
    pub reuse: Option<ReuseKey>,
    /// Whether this request was admitted before (its dial failed). It is not counted against `depth` again.
    pub again: bool,
}

/// One who waits.
#[derive(Clone, Debug)]
pub(super) struct Waiter {
    pub ask: Ask,
    /// When this ask began to wait; later than the place's arrival for one who asks again.
    pub since: Moment,
}

impl Waiter {
    pub fn waited(&self, now: Moment) -> Duration {
        now.since(self.since)
    }
}

/// The waiting, in order.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiters: BTreeMap<Place, Waiter>,
    deadlines: BTreeSet<(Moment, Place)>,
    by_key: HashMap<ReuseKey, BTreeSet<Place>>,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    pub fn push(&mut self, ask: Ask, now: Moment) {
        let place = ask.place;
        debug_assert!(!self.waiters.contains_key(&place), "a request waits once at a time");
        self.deadlines.insert((ask.deadline, place));
        if let Some(key) = &ask.reuse {
            self.by_key.entry(key.clone()).or_default().insert(place);
        }
        self.waiters.insert(place, Waiter { ask, since: now });
    }

    pub fn remove(&mut self, place: Place) -> Option<Waiter> {
        let waiter = self.waiters.remove(&place)?;
        self.deadlines.remove(&(waiter.ask.deadline, place));
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
        self.waiters.values().next()
    }

    /// All who wait, in the order of their turns.
    pub fn in_order(&self) -> impl Iterator<Item = &Waiter> {
        self.waiters.values()
    }

    /// The first in order who could use a kept connection for `key`.
    pub fn first_for(&self, key: &ReuseKey) -> Option<Place> {
        self.by_key.get(key)?.first().copied()
    }

    /// One whose deadline has come.
    pub fn overdue(&self, now: Moment) -> Option<Place> {
        let (deadline, place) = self.deadlines.first()?;
        (*deadline <= now).then_some(*place)
    }

    /// The next moment at which somebody's patience ends.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The time since the arrival of the one who waits longest.
    pub fn oldest_wait(&self, now: Moment) -> Duration {
        self.head().map_or(Duration::ZERO, |head| now.since(head.ask.place.arrived()))
    }
}
