//! How fast a node may open connections to a registry: the token bucket as the file describes it.
//!
//! Only its two numbers; the bucket itself belongs to the admission. The reader makes rates, and
//! the registries of a [`Config`](super::Config) carry them.

use std::num::NonZeroU32;
use std::time::Duration;

use super::fraction::Fraction;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// A limit on new connections, as a token bucket: each connection takes one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectRate {
    /// The time in which one token grows: `1 / rate_per_second`, from 1 µs to 1000 s, rounded up
    /// to the nanosecond so that the limit holds.
    pub period: Duration,
    /// Tokens that an unused bucket holds, 1 to 1000000. Default: those of one second, rounded up.
    pub burst: NonZeroU32,
}

impl ConnectRate {
    /// A bucket that grows `per_second` tokens each second; `None` when that is not from 0.001 to 1000000.
    pub(super) fn new(per_second: Fraction, burst: Option<NonZeroU32>) -> Option<Self> {
        let tokens = u128::from(per_second.numerator);
        let seconds = u128::from(per_second.denominator);
        if tokens > seconds * 1_000_000 || tokens * 1_000 < seconds {
            return None;
        }
        let nanos = (seconds * NANOS_PER_SECOND).div_ceil(tokens);
        let one_second = u32::try_from(per_second.ceil()).ok()?;
        Some(Self {
            period: Duration::from_nanos(u64::try_from(nanos).ok()?),
            burst: burst.or(NonZeroU32::new(one_second))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_second: &str) -> Option<ConnectRate> {
        ConnectRate::new(Fraction::decimal(per_second).unwrap(), None)
    }

    #[test]
    fn the_period_is_exact_or_longer() {
        for (per_second, nanos, burst) in [
            ("50", 20_000_000, 50),
            ("0.5", 2_000_000_000, 1),
            ("2.5", 400_000_000, 3),
            ("3", 333_333_334, 3),
            ("0.001", 1_000_000_000_000, 1),
            ("1000000", 1_000, 1_000_000),
        ] {
            let rate = rate(per_second).unwrap();
            assert_eq!(rate.period, Duration::from_nanos(nanos), "{per_second}");
            assert_eq!(rate.burst.get(), burst, "{per_second}");
        }
    }

    #[test]
    fn rates_out_of_range_are_refused() {
        for per_second in ["0", "0.0009", "1000001", "18446744073709551615", "0.000000000000000001"] {
            assert_eq!(rate(per_second), None, "{per_second}");
        }
    }
}
