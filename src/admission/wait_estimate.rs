//! How fast the queue moves: what `Retry-After` is computed from.

use std::time::Duration;

use super::moment::Moment;

/// A smoothed interval between the admissions of one class while somebody of it waited.
#[derive(Clone, Debug, Default)]
pub(super) struct WaitEstimate {
    interval: Option<Duration>,
    last: Option<Moment>,
}

impl WaitEstimate {
    /// One more was admitted; `queued` says whether others still wait, that is, whether the time until the next
    /// admission will tell how fast the queue moves.
    pub fn admitted(&mut self, now: Moment, queued: bool) {
        if let Some(last) = self.last {
            let latest = now.since(last);
            self.interval = Some(self.interval.map_or(latest, |smooth| (smooth * 7 + latest) / 8));
        }
        self.last = queued.then_some(now);
    }

    /// The time until the last of `waiting` will have been admitted, as far as the past tells; at least one second, at
    /// most five minutes, whole seconds.
    pub fn expected_wait(&self, waiting: usize) -> Duration {
        let ahead = u32::try_from(waiting).unwrap_or(u32::MAX);
        let expected = self.interval.unwrap_or_default().saturating_mul(ahead);
        let whole = expected.as_secs() + u64::from(expected.subsec_nanos() > 0);
        Duration::from_secs(whole.clamp(1, 300))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_with_the_queue_and_stays_in_bounds() {
        let mut wait_estimate = WaitEstimate::default();
        assert_eq!(wait_estimate.expected_wait(1000), Duration::from_secs(1));
        for tenth in 0..50 {
            wait_estimate.admitted(Moment(Duration::from_millis(100 * tenth)), true);
        }
        assert_eq!(wait_estimate.expected_wait(0), Duration::from_secs(1));
        assert_eq!(wait_estimate.expected_wait(45), Duration::from_secs(5));
        assert_eq!(wait_estimate.expected_wait(1_000_000), Duration::from_secs(300));
    }

    #[test]
    fn quiet_times_do_not_count() {
        let mut wait_estimate = WaitEstimate::default();
        wait_estimate.admitted(Moment(Duration::ZERO), true);
        wait_estimate.admitted(Moment(Duration::from_secs(1)), false);
        wait_estimate.admitted(Moment(Duration::from_secs(1000)), true);
        wait_estimate.admitted(Moment(Duration::from_secs(1001)), false);
        assert_eq!(wait_estimate.expected_wait(3), Duration::from_secs(3));
    }
}
