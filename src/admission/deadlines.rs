//! The deadlines of waiters.
//!
//! A waiter that left stays listed until it would be first, or until such waiters are half of the list: leaving from the
//! middle of a long queue touches nothing here, and the first in the list always waits.

use std::collections::BTreeSet;
use std::time::Duration;

use super::moment::Moment;
use super::request::Place;

/// So many waiters that left may stay listed in any case.
const SPARE: usize = 64;

/// The deadlines of waiters.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    /// In nanoseconds.
    all: BTreeSet<(u64, Place)>,
}

impl Deadlines {
    pub fn add(&mut self, deadline: Moment, place: Place) {
        self.all.insert((deadline.nanos(), place));
    }

    /// A waiter with this deadline left; `waiting` are left, whose deadlines `deadline_of` knows.
    pub fn gone(
        &mut self,
        deadline: Moment,
        place: Place,
        waiting: usize,
        deadline_of: impl Fn(Place) -> Option<Moment>,
    ) {
        let waits = |(deadline, place): (u64, Place)| deadline_of(place).is_some_and(|its| its.nanos() == deadline);
        if self.all.first() == Some(&(deadline.nanos(), place)) {
            while self.all.first().is_some_and(|first| !waits(*first)) {
                self.all.pop_first();
            }
        }
        if self.all.len() > 2 * waiting + SPARE {
            self.all.retain(|one| waits(*one));
        }
    }

    /// The waiter with the nearest deadline.
    pub fn first(&self) -> Option<(Moment, Place)> {
        self.all.first().map(|(deadline, place)| (Moment(Duration::from_nanos(*deadline)), *place))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    #[derive(Default)]
    struct Waiting {
        deadlines: Deadlines,
        waiting: HashMap<Place, Moment>,
    }

    impl Waiting {
        fn add(&mut self, number: u64, deadline: Moment) -> Place {
            let place = Place::new(at(0), number);
            self.deadlines.add(deadline, place);
            self.waiting.insert(place, deadline);
            place
        }

        fn leave(&mut self, place: Place) {
            let deadline = self.waiting.remove(&place).unwrap();
            let waiting = &self.waiting;
            self.deadlines.gone(deadline, place, waiting.len(), |place| waiting.get(&place).copied());
        }
    }

    #[test]
    fn the_first_is_always_one_who_waits() {
        let mut all = Waiting::default();
        let places: Vec<Place> = (0..10).map(|number| all.add(number, at(100 - number))).collect();
        assert_eq!(all.deadlines.first(), Some((at(91), places[9])));
        all.leave(places[8]);
        assert_eq!(all.deadlines.first(), Some((at(91), places[9])));
        all.leave(places[9]);
        assert_eq!(all.deadlines.first(), Some((at(93), places[7])));
        places[..8].iter().for_each(|place| all.leave(*place));
        assert_eq!(all.deadlines.first(), None);
    }

    #[test]
    fn one_who_waits_again_has_its_new_deadline() {
        let mut all = Waiting::default();
        let place = all.add(1, at(100));
        let other = all.add(2, at(50));
        all.leave(place);
        assert_eq!(all.add(1, at(200)), place);
        all.leave(other);
        assert_eq!(all.deadlines.first(), Some((at(200), place)));
    }

    #[test]
    fn those_who_left_take_no_more_room_than_those_who_wait() {
        let mut all = Waiting::default();
        all.add(0, at(1));
        for number in 1..10_000 {
            let place = all.add(number, at(1000 + number));
            all.leave(place);
        }
        assert!(all.deadlines.all.len() <= SPARE + 3, "{}", all.deadlines.all.len());
    }
}
