//! The budget of repair: at most a fifth of the requests of the last minute, and at least three a second.

use crate::admission::Moment;

/// Seconds that are looked back.
const SECONDS: usize = 60;
const WINDOW: u64 = SECONDS as u64;
/// Of this many requests, one may be asked again.
const ONE_IN: u64 = 5;
/// Requests that may be asked again in one second in any case.
const LEAST_A_SECOND: u64 = 3;

/// Counts requests and repeated ones, second by second.
#[derive(Debug)]
pub struct Budget {
    seconds: [Second; SECONDS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    /// Which second it is, from 1; 0 for none.
    number: u64,
    requests: u64,
    repeated: u64,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { seconds: [Second::default(); SECONDS] }
    }
}

impl Budget {
    /// A request came.
    pub fn request(&mut self, now: Moment) {
        self.second(now).requests += 1;
    }

    /// Takes the right to ask a request again.
    ///
    /// # Errors
    /// When the budget is used up, with the moment at which it is worth asking again.
    pub fn take(&mut self, now: Moment) -> Result<(), Moment> {
        let current = number(now);
        let recent = self.seconds.iter().filter(|second| second.number + WINDOW > current && second.number > 0);
        let (requests, repeated) = recent
            .fold((0, 0), |(requests, repeated), second| (requests + second.requests, repeated + second.repeated));
        let second = self.second(now);
        if second.repeated >= LEAST_A_SECOND && (repeated + 1) * ONE_IN > requests {
            return Err(Moment(std::time::Duration::from_secs(current)));
        }
        second.repeated += 1;
        Ok(())
    }

    fn second(&mut self, now: Moment) -> &mut Second {
        let number = number(now);
        let index = usize::try_from(number % WINDOW).expect("less than a minute");
        let second = &mut self.seconds[index];
        if second.number != number {
            *second = Second { number, ..Second::default() };
        }
        second
    }
}

/// The second of a moment, from 1.
fn number(now: Moment) -> u64 {
    now.0.as_secs() + 1
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    fn takes(budget: &mut Budget, tries: usize, now: Moment) -> usize {
        (0..tries).filter(|_| budget.take(now).is_ok()).count()
    }

    #[test]
    fn three_a_second_are_always_there() {
        let mut budget = Budget::default();
        assert_eq!(takes(&mut budget, 10, at(0)), 3);
        assert_eq!(budget.take(at(999)), Err(at(1000)));
        assert_eq!(takes(&mut budget, 10, at(1000)), 3);
    }

    #[test]
    fn a_fifth_of_the_last_minute_and_no_more() {
        let mut budget = Budget::default();
        (0..1000).for_each(|number| budget.request(at(number * 10)));
        assert_eq!(takes(&mut budget, 1000, at(10_000)), 200);
        assert_eq!(takes(&mut budget, 10, at(30_500)), 3, "only what is always there");
        assert_eq!(takes(&mut budget, 1000, at(68_999)), 3, "requests of a minute ago count no more");
    }

    #[test]
    fn what_was_used_a_minute_ago_is_forgotten() {
        let mut budget = Budget::default();
        (0..100).for_each(|_| budget.request(at(0)));
        assert_eq!(takes(&mut budget, 100, at(0)), 20);
        (0..100).for_each(|_| budget.request(at(60_000)));
        assert_eq!(takes(&mut budget, 100, at(60_000)), 20);
    }
}
