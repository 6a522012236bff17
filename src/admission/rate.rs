//! The token bucket on `connect()`: governor's GCRA over a clock that the core sets.
//!
//! Governor cannot be asked without taking, so the bucket knows beside it when governor's would be full again, which tells what
//! it holds. Nor can governor be given back to: a token that comes back unspent is kept *in hand* for those who wait at that
//! moment, and spilled when nobody does: kept for later it would add to a burst. Only the core calls it.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, FakeRelativeClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::moment::Moment;

/// A rate limit as the config gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Time after which one token is added; not zero.
    pub period: Duration,
    /// Tokens that the bucket holds when full; it starts full.
    pub burst: NonZeroU32,
}

/// Tokens, one of which is spent by every `connect()`.
#[derive(Debug)]
pub struct Bucket {
    limiter: RateLimiter<NotKeyed, InMemoryState, FakeRelativeClock, NoOpMiddleware<Nanos>>,
    clock: FakeRelativeClock,
    clock_at: Moment,
    rate: RateLimit,
    in_hand: u32,
    /// When the bucket will be full, if nothing is taken: GCRA's theoretical arrival time.
    full_at: Moment,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: RateLimit, now: Moment) -> Bucket {
        let clock = FakeRelativeClock::default();
        let quota =
            Quota::with_period(rate.period).expect("the config refuses a period of zero").allow_burst(rate.burst);
        let limiter = RateLimiter::direct_with_clock(quota, clock.clone());
        Bucket { limiter, clock, clock_at: now, rate, in_hand: 0, full_at: now }
    }

    /// The same bucket at another rate: it holds the tokens that are left, as far as they fit.
    pub fn changed(self, rate: RateLimit, now: Moment) -> Bucket {
        if rate == self.rate {
            return self;
        }
        let left = self.available(now);
        let mut bucket = Bucket::new(rate, now);
        bucket.keep(left, now);
        bucket
    }

    /// Lets go of all tokens that it holds.
    pub fn empty(&mut self, now: Moment) {
        self.keep(0, now);
    }

    fn keep(&mut self, most: usize, now: Moment) {
        for _ in most..self.available(now) {
            // It holds that many.
            let _ = self.take(now);
        }
    }

    /// Spends one token; where none is due, tells when to ask again.
    pub fn take(&mut self, now: Moment) -> Result<(), Moment> {
        if self.in_hand > 0 {
            self.in_hand -= 1;
            return Ok(());
        }
        self.clock.advance(now.since(self.clock_at));
        self.clock_at = self.clock_at.max(now);
        match self.limiter.check() {
            Ok(()) => {
                self.full_at = self.full_at.max(now) + self.rate.period;
                Ok(())
            }
            Err(not_until) => Err(now + not_until.wait_time_from(self.clock.now())),
        }
    }

    /// Tokens that can be spent now and later; not those in hand, which are for now or never.
    pub fn available(&self, now: Moment) -> usize {
        let held = u128::from(self.rate.burst.get()).saturating_sub(self.missing(now));
        usize::try_from(held).unwrap_or(usize::MAX)
    }

    /// When one more can be spent than now; `None`: it holds all that it can.
    pub fn next_due(&self, now: Moment) -> Option<Moment> {
        let missing = self.missing(now).min(u128::from(self.rate.burst.get()));
        let periods = u32::try_from(missing.checked_sub(1)?).expect("no more than the burst");
        Some(self.full_at - self.rate.period * periods)
    }

    /// Periods that have to pass until it is full.
    fn missing(&self, now: Moment) -> u128 {
        self.full_at.since(now).as_nanos().div_ceil(self.rate.period.as_nanos())
    }

    /// Takes back a token that was not spent, for those who wait now: its waiter vanished before `connect()`.
    pub fn give_back(&mut self) {
        self.in_hand += 1;
    }

    /// Lets go of tokens that were given back and that nobody waited for.
    pub fn spill(&mut self) {
        self.in_hand = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    fn bucket(period_ms: u64, burst: u32) -> Bucket {
        let rate = RateLimit { period: Duration::from_millis(period_ms), burst: NonZeroU32::new(burst).unwrap() };
        Bucket::new(rate, at(0))
    }

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_one_token_a_period() {
        let mut bucket = bucket(20, 3);
        for _ in 0..3 {
            assert_eq!(bucket.take(at(0)), Ok(()));
        }
        assert_eq!(bucket.take(at(0)), Err(at(20)));
        assert_eq!(bucket.take(at(19)), Err(at(20)));
        assert_eq!(bucket.take(at(20)), Ok(()));
        assert_eq!(bucket.take(at(20)), Err(at(40)));
    }

    #[test]
    fn what_is_available_is_what_can_be_taken() {
        for burst in 1..4 {
            let mut bucket = bucket(20, burst);
            for millis in (0..400).step_by(7) {
                let promised = bucket.available(at(millis));
                let next = bucket.next_due(at(millis));
                assert_eq!(next.is_none(), promised == burst as usize);
                if let Some(next) = next {
                    assert!(next > at(millis));
                    assert_eq!(bucket.available(next), promised + 1);
                    assert_eq!(bucket.available(next - Duration::from_nanos(1)), promised);
                }
                let wanted = (millis % 3) as usize;
                let taken = (0..wanted).take_while(|_| bucket.take(at(millis)).is_ok()).count();
                assert_eq!(taken, promised.min(wanted), "at {millis} ms with burst {burst}");
            }
        }
    }

    #[test]
    fn a_token_given_back_goes_to_who_waits_and_is_spilled_when_nobody_does() {
        let mut bucket = bucket(1000, 1);
        assert_eq!(bucket.take(at(0)), Ok(()));
        bucket.give_back();
        assert_eq!(bucket.available(at(0)), 0);
        assert_eq!(bucket.take(at(0)), Ok(()));
        bucket.give_back();
        bucket.spill();
        assert_eq!(bucket.take(at(0)), Err(at(1000)));
    }
}
