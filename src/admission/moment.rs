//! The core's notion of time: a point counted from an epoch that its driver chose.
//!
//! The core never reads a clock. Its driver (the gate in real time, tests and plans in virtual time) passes the time with
//! each event.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A point in time, as the duration since the driver's epoch. Never goes back within one core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub Duration);

impl Moment {
    /// In nanoseconds: it fits for centuries, and the last one stands for all after.
    pub fn nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// The time from `earlier` to `self`; zero when `earlier` is not earlier.
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, span: Duration) -> Moment {
        Moment(self.0.saturating_add(span))
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;

    fn sub(self, span: Duration) -> Moment {
        Moment(self.0.saturating_sub(span))
    }
}
