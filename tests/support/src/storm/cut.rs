//! The clients that cut their connection, at which point, and how: drawn from a seed.

use std::time::Duration;

use crate::Random;

/// The longest that a client waits in the queue before it cuts.
const LONGEST_WAIT_MS: u64 = 800;

/// One client in three cuts its connection, at points drawn from this seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cuts {
    /// The same seed cuts the same clients at the same points.
    pub seed: u64,
}

/// The way in which one client cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) point: Point,
    /// By a reset; else by an orderly end.
    pub(super) reset: bool,
}

/// Where a client cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    /// At once after its first request was sent.
    Sent,
    /// After waiting so long for an answer; in the blob at the latest, where every answer came sooner.
    Queued(Duration),
    /// After so many bytes of the blob.
    Blob(usize),
}

impl Cuts {
    /// The cut of client `number` with a blob of so many bytes; `None`: it does not cut.
    pub(super) fn of_client(self, number: usize, blob: usize) -> Option<Cut> {
        let mut random = Random::new(self.seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
        let point = match random.below(9) {
            0 => Point::Sent,
            1 => Point::Queued(Duration::from_millis(random.below(LONGEST_WAIT_MS))),
            2 => Point::Blob(usize::try_from(random.below(blob.max(1) as u64)).unwrap_or(0)),
            _ => return None,
        };
        Some(Cut { point, reset: random.below(2) == 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_cuts_at_all_points_in_both_manners() {
        let all = (0..500).filter_map(|number| Cuts { seed: 1 }.of_client(number, 1000));
        let cuts: Vec<Cut> = all.collect();
        assert!((130..200).contains(&cuts.len()), "{} of 500", cuts.len());
        for reset in [true, false] {
            let with = |wanted: fn(&Point) -> bool| cuts.iter().any(|cut| cut.reset == reset && wanted(&cut.point));
            assert!(with(|point| matches!(point, Point::Sent)));
            assert!(with(|point| matches!(point, Point::Queued(_))));
            assert!(with(|point| matches!(point, Point::Blob(1..))));
        }
    }
}
