//! The last ten minutes of each registry, a sample a second, for the plots of the page.
//!
//! It gets counters and gauges, and stores differences. It reads no clock: its caller, once a second, makes the
//! seconds. A registry takes about 23 KiB, whatever happens.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use crate::metrics::{SoFar, WAIT_BUCKETS};

/// Samples of each registry: ten minutes.
pub const LENGTH: usize = 600;
/// Over how many seconds the quantiles of waits are taken.
const WINDOW: usize = 60;

/// Waits that ended in one second, by bucket.
type Waits = [u32; WAIT_BUCKETS.len() + 1];

#[derive(Debug, Default)]
pub struct History {
    registries: BTreeMap<String, Track>,
}

/// The figures of one registry, read once a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    pub open: usize,
    pub waiting: usize,
    pub so_far: SoFar,
}

#[derive(Debug, Default)]
struct Track {
    before: Option<SoFar>,
    samples: VecDeque<Sample>,
    waits: VecDeque<Waits>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    open: u32,
    waiting: u32,
    admitted: u32,
    refused: u32,
    p50: Option<f32>,
    p99: Option<f32>,
}

/// One registry in `/history`: each list from the oldest second to the last.
#[derive(Debug, PartialEq, Serialize)]
pub struct Past {
    open: Vec<u32>,
    waiting: Vec<u32>,
    admitted: Vec<u32>,
    refused: Vec<u32>,
    wait_p50_seconds: Vec<Option<f32>>,
    wait_p99_seconds: Vec<Option<f32>>,
}

impl History {
    /// Another second is over. A registry that is not named any more is forgotten.
    pub fn record(&mut self, readings: impl IntoIterator<Item = (String, Reading)>) {
        let mut before = std::mem::take(&mut self.registries);
        for (name, reading) in readings {
            let mut track = before.remove(&name).unwrap_or_default();
            track.record(&reading);
            self.registries.insert(name, track);
        }
    }

    pub fn past(&self) -> BTreeMap<&str, Past> {
        self.registries.iter().map(|(name, track)| (name.as_str(), track.past())).collect()
    }
}

impl Track {
    fn record(&mut self, reading: &Reading) {
        let so_far = reading.so_far;
        // Events before the first look belong to no second.
        let before = self.before.replace(so_far).unwrap_or(so_far);
        let mut waits = Waits::default();
        for (waits, (now, before)) in waits.iter_mut().zip(so_far.waits.iter().zip(before.waits)) {
            *waits = difference(*now, before);
        }
        push(&mut self.waits, waits, WINDOW);
        let window = self.window();
        let sample = Sample {
            open: narrow(reading.open),
            waiting: narrow(reading.waiting),
            admitted: difference(so_far.admitted, before.admitted),
            refused: difference(so_far.refused, before.refused),
            p50: quantile(&window, 0.5),
            p99: quantile(&window, 0.99),
        };
        push(&mut self.samples, sample, LENGTH);
    }

    /// The waits of the last minute, by bucket.
    fn window(&self) -> [u64; WAIT_BUCKETS.len() + 1] {
        let mut sums = [0; WAIT_BUCKETS.len() + 1];
        for waits in &self.waits {
            sums.iter_mut().zip(waits).for_each(|(sum, waits)| *sum += u64::from(*waits));
        }
        sums
    }

    fn past(&self) -> Past {
        Past {
            open: self.column(|sample| sample.open),
            waiting: self.column(|sample| sample.waiting),
            admitted: self.column(|sample| sample.admitted),
            refused: self.column(|sample| sample.refused),
            wait_p50_seconds: self.column(|sample| sample.p50),
            wait_p99_seconds: self.column(|sample| sample.p99),
        }
    }

    fn column<T>(&self, of: impl Fn(&Sample) -> T) -> Vec<T> {
        self.samples.iter().map(of).collect()
    }
}

fn push<T>(ring: &mut VecDeque<T>, one: T, most: usize) {
    if ring.len() == most {
        ring.pop_front();
    }
    ring.push_back(one);
}

fn difference(now: u64, before: u64) -> u32 {
    u32::try_from(now.saturating_sub(before)).unwrap_or(u32::MAX)
}

fn narrow(things: usize) -> u32 {
    u32::try_from(things).unwrap_or(u32::MAX)
}

/// The wait that this part of all waits stayed under, as well as the buckets tell: within one, waits are taken to be
/// spread evenly, and beyond the last nothing more is known. `None` when no wait ended.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "for plots, where a pixel is coarser")]
fn quantile(waits: &[u64; WAIT_BUCKETS.len() + 1], part: f64) -> Option<f32> {
    let all: u64 = waits.iter().sum();
    let rank = all as f64 * part;
    let (mut below, mut lower) = (0.0, 0.0);
    for (waits, upper) in waits.iter().zip(WAIT_BUCKETS) {
        let within = *waits as f64;
        if within > 0.0 && below + within >= rank {
            return Some((lower + (upper - lower) * (rank - below) / within) as f32);
        }
        (below, lower) = (below + within, upper);
    }
    (all > 0).then_some(lower as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reading with so many admissions, each after so many milliseconds.
    fn reading(admitted: u64, waits: &[(usize, u64)]) -> Reading {
        let mut so_far = SoFar { admitted, refused: admitted / 10, ..SoFar::default() };
        for (bucket, ended) in waits {
            so_far.waits[*bucket] = *ended;
        }
        Reading { open: 3, waiting: 7, so_far }
    }

    fn record(history: &mut History, reading: Reading) {
        history.record([("stub".to_owned(), reading)]);
    }

    #[test]
    fn counters_become_differences_from_second_to_second() {
        let mut history = History::default();
        for admitted in [1000, 1010, 1010, 1050] {
            record(&mut history, reading(admitted, &[]));
        }
        let past = &history.past()["stub"];
        assert_eq!(past.admitted, [0, 10, 0, 40]);
        assert_eq!(past.refused, [0, 1, 0, 4]);
        assert_eq!((&past.open[..], &past.waiting[..]), (&[3; 4][..], &[7; 4][..]));
        assert_eq!(past.wait_p50_seconds, [None; 4]);
    }

    #[test]
    fn ten_minutes_are_kept_and_no_more() {
        let mut history = History::default();
        for second in 0..1000 {
            record(&mut history, reading(second * second, &[]));
        }
        let past = &history.past()["stub"];
        assert_eq!(past.admitted.len(), LENGTH);
        assert_eq!(past.admitted.last(), Some(&(999 * 999 - 998 * 998)));
        assert_eq!(past.admitted.first(), Some(&(400 * 400 - 399 * 399)));
        let bytes = LENGTH * size_of::<Sample>() + WINDOW * size_of::<Waits>() + size_of::<Track>();
        assert!(bytes < 24 * 1024, "{bytes} bytes");
    }

    #[test]
    fn quantiles_are_of_the_last_minute() {
        let mut history = History::default();
        record(&mut history, reading(0, &[]));
        // 98 of 100 waited 0.1 to 0.5 s, two 5 to 10 s.
        record(&mut history, reading(100, &[(5, 98), (9, 2)]));
        let quantiles = |history: &History| {
            let past = &history.past()["stub"];
            (*past.wait_p50_seconds.last().unwrap(), *past.wait_p99_seconds.last().unwrap())
        };
        let (p50, p99) = quantiles(&history);
        assert!((p50.unwrap() - (0.1 + 0.4 * 50.0 / 98.0)).abs() < 1e-4, "{p50:?}");
        assert!((p99.unwrap() - 7.5).abs() < 1e-4, "{p99:?}");
        for _ in 0..59 {
            record(&mut history, reading(100, &[(5, 98), (9, 2)]));
        }
        assert_eq!(quantiles(&history), (p50, p99), "a minute is not over");
        record(&mut history, reading(100, &[(5, 98), (9, 2)]));
        assert_eq!(quantiles(&history), (None, None));
    }

    #[test]
    fn waits_beyond_the_last_bucket_count_as_its_bound() {
        let mut waits = [0; WAIT_BUCKETS.len() + 1];
        waits[WAIT_BUCKETS.len()] = 5;
        assert_eq!(quantile(&waits, 0.5), Some(100.0));
        assert_eq!(quantile(&[0; WAIT_BUCKETS.len() + 1], 0.5), None);
    }

    #[test]
    fn a_registry_that_is_gone_is_forgotten_and_begins_anew() {
        let mut history = History::default();
        record(&mut history, reading(10, &[]));
        history.record([("other".to_owned(), reading(5, &[]))]);
        assert_eq!(history.past().keys().collect::<Vec<_>>(), [&"other"]);
        record(&mut history, reading(30, &[]));
        assert_eq!(history.past()["stub"].admitted, [0]);
    }
}
