//! Exact numbers of zero or more, as a whole number over another.
//!
//! Binary floats cannot hold 0.29, and a slot too few is a slot lost on every node. `share` and
//! `rate` count with these instead.

use std::fmt;

/// An exact number of zero or more, in lowest terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fraction {
    pub(super) numerator: u64,
    /// Never 0.
    pub(super) denominator: u64,
}

impl Fraction {
    pub(super) const ONE: Fraction = Fraction { numerator: 1, denominator: 1 };

    /// `None` for a denominator of 0.
    pub(super) fn new(numerator: u64, denominator: u64) -> Option<Self> {
        let divisor = greatest_common_divisor(numerator, denominator);
        (denominator != 0).then(|| Self { numerator: numerator / divisor, denominator: denominator / divisor })
    }

    /// Reads digits with at most one point among them, such as `12` or `0.05`; `None` for any
    /// other text, and for more digits than a `u64` holds.
    pub(super) fn decimal(text: &str) -> Option<Self> {
        let (whole, decimals) = match text.split_once('.') {
            Some((_, "")) => return None,
            Some(parts) => parts,
            None => (text, ""),
        };
        if whole.is_empty() {
            return None;
        }
        let places = u32::try_from(decimals.len()).ok()?;
        Self::new(whole_number(&format!("{whole}{decimals}"))?, 10_u64.checked_pow(places)?)
    }

    /// Reads two whole numbers with a slash between them, such as `1/20`.
    pub(super) fn quotient(text: &str) -> Option<Self> {
        let (numerator, denominator) = text.split_once('/')?;
        Self::new(whole_number(numerator)?, whole_number(denominator)?)
    }

    /// A hundredth of it; `None` when the numbers get too large.
    pub(super) fn hundredth(self) -> Option<Self> {
        Self::new(self.numerator, self.denominator.checked_mul(100)?)
    }

    /// The product with a whole number, rounded down.
    pub(crate) fn floor_times(self, factor: u64) -> u128 {
        u128::from(factor) * u128::from(self.numerator) / u128::from(self.denominator)
    }

    /// The whole number at or above it.
    pub(super) fn ceil(self) -> u64 {
        self.numerator.div_ceil(self.denominator)
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.denominator {
            1 => write!(f, "{}", self.numerator),
            _ => write!(f, "{}/{}", self.numerator, self.denominator),
        }
    }
}

/// Reads digits and nothing else: `str::parse` alone would take a plus sign.
fn whole_number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact() {
        for (text, expected) in [
            ("0", "0"),
            ("1", "1"),
            ("12", "12"),
            ("0.05", "1/20"),
            ("2.50", "5/2"),
            ("0.1", "1/10"),
            ("0.000000000000000001", "1/1000000000000000000"),
        ] {
            assert_eq!(Fraction::decimal(text).unwrap().to_string(), expected);
        }
        for text in ["", ".", ".5", "5.", "1.2.3", "-1", "+1", "1e3", " 1", "0.00000000000000000001"] {
            assert_eq!(Fraction::decimal(text), None, "{text:?}");
        }
    }

    #[test]
    fn quotients_come_in_lowest_terms() {
        assert_eq!(Fraction::quotient("10/200").unwrap().to_string(), "1/20");
        assert_eq!(Fraction::quotient("0/5").unwrap().to_string(), "0");
        for text in ["1/0", "0/0", "1/", "/2", "1", "1/2/3", "1.5/2", "-1/2", "1 / 2"] {
            assert_eq!(Fraction::quotient(text), None, "{text:?}");
        }
    }
}
