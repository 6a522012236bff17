//! Whether the client of a transfer is slower than `queue.least_rate`.
//!
//! Only the client's own part counts: the time in which it does not take bytes that we hold, or does not send an upload that we
//! ask for. A registry that is slow, or a client that has nothing to take, owes nothing.

use std::num::NonZeroU64;
use std::time::Duration;

/// How far one client is behind the least rate.
#[derive(Debug)]
pub struct ClientDebt {
    /// `None`: no client is too slow.
    rate: Option<NonZeroU64>,
    longest: Duration,
    /// The time that the missing bytes take at the least rate, up to `at`.
    behind: Duration,
    at: Duration,
    owes: bool,
}

impl ClientDebt {
    /// A client that owes nothing yet. It is too slow once it is behind by `longest`.
    pub fn new(rate: Option<NonZeroU64>, longest: Duration) -> ClientDebt {
        ClientDebt { rate, longest, behind: Duration::ZERO, at: Duration::ZERO, owes: false }
    }

    /// From now on the client owes bytes, or owes none; it took or sent `moved` bytes since the last note.
    pub fn note(&mut self, owes: bool, moved: u64, now: Duration) {
        let Some(rate) = self.rate else { return };
        let nanos = u128::from(moved) * 1_000_000_000 / u128::from(rate.get());
        let paid = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.behind = self.behind_at(now).saturating_sub(paid);
        (self.owes, self.at) = (owes, now);
    }

    /// The time until it is too slow, if nothing moves; `None` when it owes nothing.
    pub fn left(&self, now: Duration) -> Option<Duration> {
        (self.owes && self.rate.is_some()).then(|| self.longest.saturating_sub(self.behind_at(now)))
    }

    fn behind_at(&self, now: Duration) -> Duration {
        self.behind + if self.owes { now.saturating_sub(self.at) } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Option<NonZeroU64> = NonZeroU64::new(100);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn only_a_client_that_owes_falls_behind_and_what_moves_pays() {
        let mut debt = ClientDebt::new(RATE, at(10));
        debt.note(false, 0, at(5));
        assert_eq!(debt.left(at(500)), None, "the registry is slow, not the client");
        debt.note(true, 0, at(500));
        assert_eq!(debt.left(at(504)), Some(at(6)));
        debt.note(true, 200, at(506));
        assert_eq!(debt.left(at(506)), Some(at(6)), "200 bytes are two seconds of six");
        debt.note(false, 0, at(510));
        debt.note(true, 0, at(700));
        assert_eq!(debt.left(at(701)), Some(at(1)), "a pause of the registry pays nothing");
        assert_eq!(debt.left(at(710)), Some(at(0)));
        debt.note(true, 5000, at(710));
        assert_eq!(debt.left(at(710)), Some(at(10)), "no credit for more");
    }

    /// At the least rate it goes on for ever, in whatever portions; at a little less it does not.
    #[test]
    fn the_rate_is_the_rate() {
        for (portion, pause, is_too_slow) in
            [(100, 1, false), (900, 9, false), (1, 1, true), (800, 9, true), (1, 9, true)]
        {
            let mut debt = ClientDebt::new(RATE, at(10));
            debt.note(true, 0, at(0));
            let falls = (1..1000).any(|time| {
                let left = debt.left(at(time * pause)).unwrap();
                debt.note(true, portion, at(time * pause));
                left.is_zero()
            });
            assert_eq!(falls, is_too_slow, "{portion} bytes every {pause} s");
        }
        let mut debt = ClientDebt::new(None, at(10));
        debt.note(true, 0, at(0));
        assert_eq!(debt.left(at(1000)), None, "no rate, no bound");
    }
}
