//! Tickets: the places of requests that left unserved, kept for those who come back.
//!
//! A puller that gives up and asks again for the same thing goes on with its old age. Tickets are a bounded multiset for
//! each client and target: the oldest is used first, each of them once. A ticket holds a hash of its owner, no text.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::maps::NumberMap;
use super::moment::Moment;
use super::request::{ClientId, Place};

/// Tickets at once. Beyond it the ones that end soonest go.
const MAX_TICKETS: usize = 100_000;

/// Tickets of one client for one target. The oldest stay.
const MAX_TICKETS_OF_ONE: usize = 1000;

/// The owner of a ticket: a client, and the target that it wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(u64);

#[derive(Debug)]
pub(super) struct Tickets {
    keep: Duration,
    hasher: RandomState,
    /// Each with its end, in nanoseconds.
    ends: BTreeMap<(Owner, Place), u64>,
    counts: NumberMap<Owner, usize>,
    by_end: BTreeSet<(u64, Owner, Place)>,
}

impl Tickets {
    pub fn new(keep: Duration) -> Tickets {
        let (hasher, ends, counts, by_end) = Default::default();
        Tickets { keep, hasher, ends, counts, by_end }
    }

    /// Keeps each ticket for so long from now on. Those that are kept stay as they are.
    pub fn change(&mut self, keep: Duration) {
        self.keep = keep;
    }

    pub fn owner(&self, client: &ClientId, target: &str) -> Owner {
        Owner(self.hasher.hash_one((client, target)))
    }

    /// Keeps the place of a request that left without having been served.
    pub fn keep(&mut self, owner: Owner, place: Place, now: Moment) {
        self.forget(now);
        let place = place.in_turn();
        let is_new = !self.ends.contains_key(&(owner, place));
        if self.keep.is_zero() || is_new && self.counts.get(&owner).is_some_and(|count| *count >= MAX_TICKETS_OF_ONE) {
            return;
        }
        let end = (now + self.keep).nanos();
        self.remove(owner, place);
        self.ends.insert((owner, place), end);
        self.by_end.insert((end, owner, place));
        *self.counts.entry(owner).or_default() += 1;
        if self.ends.len() > MAX_TICKETS {
            self.drop_first();
        }
    }

    /// The oldest place kept for this owner, if there is one. It is kept no longer.
    pub fn take(&mut self, owner: Owner, now: Moment) -> Option<Place> {
        self.forget(now);
        let place = self.ends.range((owner, Place::FIRST)..=(owner, Place::LAST)).next()?.0.1;
        self.remove(owner, place);
        Some(place)
    }

    fn forget(&mut self, now: Moment) {
        while self.by_end.first().is_some_and(|(end, ..)| *end <= now.nanos()) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some((_, owner, place)) = self.by_end.first().copied() {
            self.remove(owner, place);
        }
    }

    fn remove(&mut self, owner: Owner, place: Place) {
        let Some(end) = self.ends.remove(&(owner, place)) else { return };
        self.by_end.remove(&(end, owner, place));
        if let Some(count) = self.counts.get_mut(&owner) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    fn place(number: u64) -> Place {
        Place::new(at(number), number)
    }

    fn tickets() -> Tickets {
        Tickets::new(Duration::from_secs(30))
    }

    #[test]
    fn the_oldest_is_used_first_and_each_once() {
        let mut tickets = tickets();
        let owner = |client: &str, target| tickets.owner(&client.into(), target);
        let (owner, other_client, other_target) = (owner("c", "t:443"), owner("d", "t:443"), owner("c", "u:443"));
        tickets.keep(owner, place(2), at(3));
        tickets.keep(owner, place(1), at(4));
        assert_eq!(tickets.take(other_target, at(5)), None);
        assert_eq!(tickets.take(other_client, at(5)), None);
        assert_eq!(tickets.take(owner, at(5)), Some(place(1)));
        assert_eq!(tickets.take(owner, at(5)), Some(place(2)));
        assert_eq!(tickets.take(owner, at(5)), None);
    }

    #[test]
    fn a_place_is_forgotten_when_its_time_is_over() {
        let mut tickets = tickets();
        let owner = tickets.owner(&"c".into(), "t:443");
        tickets.keep(owner, place(1), at(10));
        tickets.keep(owner, place(2), at(20));
        assert_eq!(tickets.take(owner, at(40)), Some(place(2)));
        tickets.forget(at(50));
        assert!(tickets.ends.is_empty() && tickets.by_end.is_empty() && tickets.counts.is_empty());
    }

    #[test]
    fn a_place_that_is_kept_twice_is_given_once() {
        let mut tickets = tickets();
        let owner = tickets.owner(&"c".into(), "t:443");
        tickets.keep(owner, place(1), at(3));
        tickets.keep(owner, place(1), at(4));
        assert_eq!(tickets.take(owner, at(33)), Some(place(1)), "its time counts from the last");
        assert_eq!(tickets.take(owner, at(33)), None);
    }

    #[test]
    fn one_client_does_not_evict_the_others() {
        let mut tickets = tickets();
        let (one, other) = (tickets.owner(&"one".into(), "t"), tickets.owner(&"other".into(), "t"));
        tickets.keep(other, place(1), at(1));
        for number in 2..2 * MAX_TICKETS as u64 {
            tickets.keep(one, place(number), at(1));
        }
        assert_eq!(tickets.ends.len(), MAX_TICKETS_OF_ONE + 1);
        assert_eq!((tickets.take(other, at(2)), tickets.take(one, at(2))), (Some(place(1)), Some(place(2))));
    }

    #[test]
    fn memory_is_bounded() {
        let mut tickets = tickets();
        for number in 0..MAX_TICKETS as u64 + 10 {
            let owner = tickets.owner(&"c".into(), &format!("t-{number}"));
            tickets.keep(owner, place(number), at(1));
        }
        assert_eq!((tickets.ends.len(), tickets.by_end.len()), (MAX_TICKETS, MAX_TICKETS));
    }

    /// One that comes and goes on its old place does not fill the list.
    #[test]
    fn a_place_that_is_kept_again_and_again_evicts_no_other() {
        let mut tickets = tickets();
        let (one, other) = (tickets.owner(&"one".into(), "t"), tickets.owner(&"other".into(), "t"));
        tickets.keep(other, place(1), at(1));
        for _ in 0..2 * MAX_TICKETS {
            tickets.keep(one, place(2), at(1));
            assert_eq!(tickets.take(one, at(1)), Some(place(2)));
        }
        assert_eq!(tickets.take(other, at(2)), Some(place(1)));
    }
}
