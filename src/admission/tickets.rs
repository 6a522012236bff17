//! Places kept for clients that come back: whose wait timed out, or whose connection was cut while it waited.
//!
//! A puller that gives up and asks again for the same thing goes on with its old age. Kept places are a bounded
//! multiset for each client and target: the oldest is used first, each of them once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::moment::Moment;
use super::request::{Owner, Place};

/// Places kept at once; beyond it the ones that would be forgotten soonest go.
const MOST: usize = 100_000;

/// And for one client and target; those kept first are the oldest.
const MOST_OF_EACH: usize = 1000;

/// The places that are kept.
#[derive(Debug)]
pub(super) struct Tickets {
    keep: Duration,
    /// Each with the moment at which it is forgotten.
    by_owner: HashMap<Owner, BTreeMap<Place, Moment>>,
    by_end: BTreeSet<(Moment, Place, Owner)>,
}

impl Tickets {
    /// Keeps each place for so long.
    pub fn new(keep: Duration) -> Tickets {
        Tickets { keep, by_owner: HashMap::new(), by_end: BTreeSet::new() }
    }

    /// Keeps each place for so long from now on; those that are kept stay so.
    pub fn change(&mut self, keep: Duration) {
        self.keep = keep;
    }

    /// Keeps the place of one who left without having been served.
    pub fn keep(&mut self, owner: Owner, place: Place, now: Moment) {
        self.forget(now);
        if self.keep.is_zero() {
            return;
        }
        if self.by_end.len() >= MOST
            && let Some((_, oldest, owner)) = self.by_end.pop_first()
        {
            self.drop_from_owner(&owner, oldest);
        }
        let end = now + self.keep;
        let places = self.by_owner.entry(owner.clone()).or_default();
        if !places.contains_key(&place) && places.len() >= MOST_OF_EACH {
            return;
        }
        // A place is kept once, however often its request left.
        if let Some(before) = places.insert(place, end) {
            self.by_end.remove(&(before, place, owner.clone()));
        }
        self.by_end.insert((end, place, owner));
    }

    /// The oldest place kept for this client and target, if there is one; it is kept no longer.
    pub fn take(&mut self, owner: &Owner, now: Moment) -> Option<Place> {
        self.forget(now);
        let (place, end) = self.by_owner.get(owner)?.first_key_value().map(|(place, end)| (*place, *end))?;
        self.drop_from_owner(owner, place);
        self.by_end.remove(&(end, place, owner.clone()));
        Some(place)
    }

    fn forget(&mut self, now: Moment) {
        while let Some((end, _, _)) = self.by_end.first()
            && *end <= now
        {
            let (_, place, owner) = self.by_end.pop_first().expect("there is a first");
            self.drop_from_owner(&owner, place);
        }
    }

    fn drop_from_owner(&mut self, owner: &Owner, place: Place) {
        if let Some(places) = self.by_owner.get_mut(owner) {
            places.remove(&place);
            if places.is_empty() {
                self.by_owner.remove(owner);
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

    fn owner(client: &str, target: &str) -> Owner {
        (client.into(), target.into())
    }

    #[test]
    fn the_oldest_is_used_first_and_each_once() {
        let (other_client, other_target) = (owner("other", "t:443"), owner("c", "other:443"));
        let (mut kept, owner) = (Tickets::new(Duration::from_secs(30)), owner("c", "t:443"));
        kept.keep(owner.clone(), place(2), at(3));
        kept.keep(owner.clone(), place(1), at(4));
        assert_eq!(kept.take(&other_target, at(5)), None);
        assert_eq!(kept.take(&other_client, at(5)), None);
        assert_eq!(kept.take(&owner, at(5)), Some(place(1)));
        assert_eq!(kept.take(&owner, at(5)), Some(place(2)));
        assert_eq!(kept.take(&owner, at(5)), None);
    }

    #[test]
    fn a_place_is_forgotten_when_its_time_is_over() {
        let (mut kept, owner) = (Tickets::new(Duration::from_secs(30)), owner("c", "t:443"));
        kept.keep(owner.clone(), place(1), at(10));
        kept.keep(owner.clone(), place(2), at(20));
        assert_eq!(kept.take(&owner, at(40)), Some(place(2)));
        assert!(kept.by_owner.is_empty() && kept.by_end.is_empty());
    }

    #[test]
    fn a_place_that_is_kept_twice_is_given_once() {
        let (mut kept, owner) = (Tickets::new(Duration::from_secs(30)), owner("c", "t:443"));
        kept.keep(owner.clone(), place(1), at(3));
        kept.keep(owner.clone(), place(1), at(4));
        assert_eq!(kept.take(&owner, at(33)), Some(place(1)), "its time counts from the last");
        assert_eq!(kept.take(&owner, at(33)), None);
        assert!(kept.by_end.is_empty());
    }

    #[test]
    fn one_client_does_not_evict_the_others() {
        let (mut kept, one, other) = (Tickets::new(Duration::from_secs(30)), owner("one", "t"), owner("other", "t"));
        kept.keep(other.clone(), place(1), at(1));
        for number in 2..2 * MOST as u64 {
            kept.keep(one.clone(), place(number), at(1));
        }
        assert_eq!(kept.by_end.len(), MOST_OF_EACH + 1);
        assert_eq!((kept.take(&other, at(2)), kept.take(&one, at(2))), (Some(place(1)), Some(place(2))));
    }

    #[test]
    fn memory_is_bounded() {
        let mut kept = Tickets::new(Duration::from_secs(30));
        for number in 0..MOST as u64 + 10 {
            kept.keep(owner("c", &format!("t-{number}")), place(number), at(1));
        }
        assert_eq!((kept.by_end.len(), kept.by_owner.len()), (MOST, MOST));
    }
}
