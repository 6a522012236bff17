//! The pauses between tries of what failed: they double from a first one up to a longest one.
//!
//! Pure: the caller counts its failures, waits, and brings the randomness. Used for dials, probes of what is out, name
//! look-ups and requests that are asked again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// How the pauses grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    pub const fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, longest }
    }

    /// The pause after so many failures in a row, from 1.
    pub fn after(&self, failures: u32) -> Duration {
        let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(doubled).min(self.longest)
    }

    /// The same, shortened by up to half: requests that failed together do not come back together. `chance` is uniform
    /// over all numbers.
    pub fn jittered(&self, failures: u32, chance: u64) -> Duration {
        let half = self.after(failures) / 2;
        let share = u32::try_from(chance >> 32).unwrap_or(u32::MAX);
        half + half.mul_f64(f64::from(share) / f64::from(u32::MAX))
    }
}

/// A number that nobody can foretell.
pub fn chance() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pauses: Vec<u128> = (1..9).map(|failures| BACKOFF.after(failures).as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        assert_eq!([BACKOFF.after(0), BACKOFF.after(u32::MAX)], [Duration::from_millis(200), Duration::from_secs(5)]);
    }

    #[test]
    fn jitter_takes_up_to_half() {
        let pauses = |chance| [1, 2, 6].map(|failures| BACKOFF.jittered(failures, chance).as_millis());
        assert_eq!(pauses(u64::MAX), [200, 400, 5000]);
        assert_eq!(pauses(0), [100, 200, 2500]);
    }
}
