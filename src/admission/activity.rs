//! The bytes that the connection in a slot has carried, and the time of the last one.
//!
//! The code that moves the bytes writes it; `/queue` and refusals read it. Atomics only: moving a byte takes no lock, and
//! no decision depends on these numbers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::moment::Moment;
use crate::lease::borrowed::Cutter;
use crate::metrics::Direction;

#[derive(Debug, Default)]
pub struct Activity {
    bytes: [AtomicU64; 2],
    /// Nanoseconds of the moment of the last byte; 0 before the first.
    moved: AtomicU64,
    pub cutter: Cutter,
}

impl Activity {
    pub fn carried(&self, direction: Direction, bytes: usize, now: Moment) {
        self.bytes[direction as usize].fetch_add(bytes as u64, Ordering::Relaxed);
        self.moved.store(now.nanos().max(1), Ordering::Relaxed);
    }

    pub fn bytes(&self, direction: Direction) -> u64 {
        self.bytes[direction as usize].load(Ordering::Relaxed)
    }

    /// The time since the last byte moved, in either direction; `None` before the first.
    pub fn silence(&self, now: Moment) -> Option<Duration> {
        match self.moved.load(Ordering::Relaxed) {
            0 => None,
            moved => Some(now.since(Moment(Duration::from_nanos(moved)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_add_up_by_direction_and_the_last_one_ends_the_silence() {
        let at = |seconds| Moment(Duration::from_secs(seconds));
        let activity = Activity::default();
        assert_eq!(activity.silence(at(5)), None);
        activity.carried(Direction::Up, 3, at(0));
        assert_eq!(activity.silence(at(5)).map(|silence| silence.as_secs_f64().round()), Some(5.0));
        activity.carried(Direction::Down, 40, at(6));
        activity.carried(Direction::Down, 2, at(7));
        assert_eq!(activity.silence(at(9)), Some(Duration::from_secs(2)));
        assert_eq!((activity.bytes(Direction::Up), activity.bytes(Direction::Down)), (3, 42));
    }
}
