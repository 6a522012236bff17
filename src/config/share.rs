//! A node's part of a registry's cap, and the slots that follow from it.
//!
//! All arithmetic is exact: 0.29 of 100 is 29 slots, which binary floats would make 28. The reader
//! makes shares, and the registries of a [`Config`](super::Config) carry them.

use std::fmt;

use super::fraction::Fraction;

/// This node's part of a cap: an exact fraction, more than 0 and at most 1, or as much as all nodes together lend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Share(Fraction, bool);

impl Share {
    /// All of the cap.
    pub(super) const WHOLE: Share = Share(Fraction::ONE, false);
    /// Of a store that lends the cap to all nodes. At most, that is all of it.
    pub const LEASED: Share = Share(Fraction::ONE, true);

    /// Reads `1/20`, `5%`, `2.5%`, `0.05`, `1` or `lease`.
    /// Fails for any other text, and for a share that is not more than 0 and at most 1.
    pub fn parse(text: &str) -> Result<Self, BadShare> {
        if text == "lease" {
            return Ok(Share::LEASED);
        }
        let fraction = match text.strip_suffix('%') {
            Some(percent) => Fraction::decimal(percent).and_then(Fraction::hundredth),
            None => Fraction::decimal(text).or_else(|| Fraction::quotient(text)),
        };
        match fraction {
            None => Err(BadShare::Unreadable(text.to_owned())),
            Some(share) if (1..=share.denominator).contains(&share.numerator) => Ok(Self(share, false)),
            Some(_) => Err(BadShare::OutOfRange(text.to_owned())),
        }
    }

    /// The slots of this share: `floor(cap x share)`, from 0 to the cap.
    pub fn slots(self, cap: u32) -> usize {
        let slots = self.0.floor_times(u64::from(cap));
        usize::try_from(slots).expect("a share is at most 1, so the slots are at most the cap")
    }

    /// The exact product in decimal digits, for display. It is cut off, never
    /// rounded up, so what is less than 1 looks like it.
    pub fn of(self, cap: u32) -> String {
        let cap = u64::from(cap);
        let denominator = u128::from(self.0.denominator);
        let mut rest = u128::from(cap) * u128::from(self.0.numerator) % denominator;
        let mut shown = self.0.floor_times(cap).to_string();
        let mut digits = String::new();
        while rest > 0 && digits.trim_start_matches('0').len() < 3 {
            rest *= 10;
            digits += &(rest / denominator).to_string();
            rest %= denominator;
        }
        if !digits.is_empty() {
            shown = format!("{shown}.{digits}");
        }
        if rest > 0 {
            shown += "...";
        }
        shown
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Share::LEASED { f.write_str("lease") } else { self.0.fmt(f) }
    }
}

/// Why a text is not a share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadShare {
    /// It is no number.
    #[error("{0:?} is not a share: write a fraction \"1/20\", a percentage \"5%\", a decimal 0.05 or \"lease\"")]
    Unreadable(String),
    /// It is a number, but nothing or more than everything.
    #[error("a share is more than 0 and at most 1, not {0}")]
    OutOfRange(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact() {
        for (text, cap, slots) in [
            ("1/20", 200, 10),
            ("5%", 200, 10),
            ("0.05", 200, 10),
            ("2.5%", 200, 5),
            ("1", 200, 200),
            ("100%", 7, 7),
            ("0.29", 100, 29),
            ("0.57", 100, 57),
            ("29%", 100, 29),
            ("1/3", 100, 33),
            ("2/3", 3, 2),
            ("1/20", 19, 0),
            ("1/20", 39, 1),
            ("0.999999999999", 1_000_000, 999_999),
            ("1", u32::MAX, 4_294_967_295),
        ] {
            assert_eq!(Share::parse(text).unwrap().slots(cap), slots, "{text} of {cap}");
        }
    }

    #[test]
    fn what_is_no_share_is_refused() {
        for text in ["", "%", "five", "1/0", "-1/2", "5 %", "1/2%", "0x1", "1,5"] {
            let expected = BadShare::Unreadable(text.to_owned());
            assert_eq!(Share::parse(text), Err(expected));
        }
        for text in ["0", "0%", "0/5", "2", "21/20", "100.1%", "1.0001"] {
            let expected = BadShare::OutOfRange(text.to_owned());
            assert_eq!(Share::parse(text), Err(expected));
        }
        assert_eq!(Share::parse("lease").unwrap().to_string(), "lease");
    }

    #[test]
    fn products_are_shown_without_rounding_up() {
        for (share, cap, shown) in [
            ("1/20", 10, "0.5"),
            ("1/3", 1, "0.333..."),
            ("1/3", 4, "1.333..."),
            ("1/20", 200, "10"),
            ("1/10000", 1, "0.0001"),
            ("0.99999", 1, "0.999..."),
        ] {
            assert_eq!(Share::parse(share).unwrap().of(cap), shown, "{share} of {cap}");
        }
    }
}
