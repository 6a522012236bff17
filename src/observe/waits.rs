//! Waits, counted in bounded memory: quantiles are off by 2 % at most.

use std::time::Duration;

/// The upper bound of the first bucket, in seconds; each next one is wider by `GROWTH`.
const LEAST: f64 = 0.000_1;
const GROWTH: f64 = 1.02;
/// Enough for two days.
const BUCKETS: usize = 1100;

#[derive(Debug)]
pub struct Waits {
    buckets: Vec<u64>,
    pub count: u64,
    pub sum: Duration,
    pub longest: Duration,
}

impl Default for Waits {
    fn default() -> Waits {
        Waits { buckets: vec![0; BUCKETS], count: 0, sum: Duration::ZERO, longest: Duration::ZERO }
    }
}

impl Waits {
    pub fn add(&mut self, wait: Duration) {
        self.buckets[bucket_of(wait)] += 1;
        self.count += 1;
        self.sum += wait;
        self.longest = self.longest.max(wait);
    }

    /// The wait, in seconds, that this part of all did not exceed; `None` where nothing waited.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let rank = self.count as f64 * part;
        let mut below = 0;
        let bucket = self.buckets.iter().position(|waits| {
            below += waits;
            *waits > 0 && below as f64 >= rank
        })?;
        let upper = LEAST * GROWTH.powf(bucket as f64);
        Some(upper.min(self.longest.as_secs_f64()))
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is bounded on both sides")]
fn bucket_of(wait: Duration) -> usize {
    let steps = (wait.as_secs_f64().max(LEAST) / LEAST).ln() / GROWTH.ln();
    (steps.ceil() as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_off_by_two_percent_at_most() {
        let mut waits = Waits::default();
        assert_eq!(waits.quantile(0.5), None);
        for millis in 1..=10_000 {
            waits.add(Duration::from_millis(millis));
        }
        for (part, seconds) in [(0.1, 1.0), (0.5, 5.0), (0.99, 9.9)] {
            let found = waits.quantile(part).unwrap();
            assert!(found >= seconds && found < seconds * 1.0201, "{found} for {seconds}");
        }
        assert_eq!(waits.quantile(1.0), Some(10.0));
        assert_eq!((waits.count, waits.longest), (10_000, Duration::from_secs(10)));
        waits.add(Duration::from_secs(7 * 24 * 3600));
        waits.add(Duration::ZERO);
        assert_eq!(waits.count, 10_002);
    }
}
