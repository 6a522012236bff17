//! The connections that were open and the requests that waited, over the time of a plan, in buckets that grow with it.

use std::time::Duration;

use serde::Serialize;

use crate::admission::Moment;

/// Buckets at most; then two become one.
const MOST: usize = 1024;

/// Averages over time, and the integrals behind them.
#[derive(Debug)]
pub struct Timeline {
    bucket: Duration,
    /// Nanoseconds times connections that were open, worked, and requests that waited.
    sums: Vec<Levels<u128>>,
    now: Moment,
}

/// The counts of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Levels<T> {
    /// Connections.
    pub open: T,
    /// Connections with a request.
    pub busy: T,
    /// Requests without one.
    pub waiting: T,
}

impl Timeline {
    pub fn new() -> Timeline {
        Timeline { bucket: Duration::from_millis(10), sums: Vec::new(), now: Moment::default() }
    }

    /// These were the levels up to `until`.
    pub fn add(&mut self, levels: Levels<usize>, until: Moment) {
        while self.now < until {
            let index = self.now.0.as_nanos() / self.bucket.as_nanos();
            if index >= MOST as u128 {
                self.halve();
                continue;
            }
            let index = usize::try_from(index).expect("less than MOST");
            self.sums.resize(self.sums.len().max(index + 1), Levels::default());
            let end = Moment(self.bucket * u32::try_from(index + 1).expect("MOST fits")).min(until);
            let nanos = end.since(self.now).as_nanos();
            let sum = &mut self.sums[index];
            sum.open += nanos * levels.open as u128;
            sum.busy += nanos * levels.busy as u128;
            sum.waiting += nanos * levels.waiting as u128;
            self.now = end;
        }
    }

    fn halve(&mut self) {
        self.bucket *= 2;
        let both = |pair: &[Levels<u128>]| pair.iter().copied().reduce(Levels::plus).unwrap_or_default();
        self.sums = self.sums.chunks(2).map(both).collect();
    }

    /// The sums over all the time, in nanoseconds.
    pub fn total(&self) -> Levels<u128> {
        self.sums.iter().copied().reduce(Levels::plus).unwrap_or_default()
    }

    /// The averages of so many parts of the time, at most one for each bucket.
    pub fn averages(&self, parts: usize) -> Vec<Levels<f64>> {
        let parts = parts.min(self.sums.len());
        let bounds = |part: usize| part * self.sums.len() / parts;
        let average = |part: usize| {
            let (from, to) = (bounds(part), bounds(part + 1));
            let sum = self.sums[from..to].iter().copied().reduce(Levels::plus).unwrap_or_default();
            let end = Moment(self.bucket * u32::try_from(to).unwrap_or(u32::MAX)).min(self.now);
            let nanos = end.since(Moment(self.bucket * u32::try_from(from).unwrap_or(u32::MAX))).as_nanos().max(1);
            sum.over(nanos)
        };
        (0..parts).map(average).collect()
    }
}

impl Levels<u128> {
    fn plus(self, other: Levels<u128>) -> Levels<u128> {
        let (open, busy) = (self.open + other.open, self.busy + other.busy);
        Levels { open, busy, waiting: self.waiting + other.waiting }
    }

    fn over(self, nanos: u128) -> Levels<f64> {
        let mean = |sum: u128| real(sum) / real(nanos);
        Levels { open: mean(self.open), busy: mean(self.busy), waiting: mean(self.waiting) }
    }
}

impl Levels<f64> {
    pub fn rounded(self) -> Levels<f64> {
        Levels { open: rounded(self.open), busy: rounded(self.busy), waiting: rounded(self.waiting) }
    }
}

/// To three digits after the point.
pub fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// The number as a float, for display.
#[expect(clippy::cast_precision_loss, reason = "what is shown has a few digits")]
pub fn real(number: u128) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    #[test]
    fn averages_hold_however_often_the_buckets_are_halved() {
        let mut timeline = Timeline::new();
        timeline.add(Levels { open: 4, busy: 2, waiting: 0 }, at(500_000));
        timeline.add(Levels { open: 8, busy: 8, waiting: 100 }, at(1_000_000));
        let total = timeline.total();
        assert_eq!(total.open, 6 * 1_000_000_000_000);
        assert_eq!(total.waiting, 50 * 1_000_000_000_000);
        let halves = timeline.averages(2);
        for (half, open, waiting) in [(halves[0], 4.0, 0.0), (halves[1], 8.0, 100.0)] {
            assert!((half.open - open).abs() < 0.1 && (half.waiting - waiting).abs() < 2.0, "{half:?}");
        }
        assert!(timeline.averages(10_000).len() <= MOST);
        assert!(Timeline::new().averages(10).is_empty());
    }
}
