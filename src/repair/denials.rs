//! Denials that proved real, remembered for a while: nobody is made to wait for the same answer twice.
//!
//! What is remembered is a hash of the credentials and of what was asked for, keyed anew in each process.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use crate::admission::Moment;

/// How long a denial is remembered.
const MEMORY: Duration = Duration::from_secs(60);
/// Denials that are remembered at most; beyond it, none is added until some are forgotten.
const MOST: usize = 10_000;

/// Who was denied what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Denial(u64);

/// The denials of the last minute.
#[derive(Debug, Default)]
pub struct Denials {
    keys: RandomState,
    until: HashMap<Denial, Moment>,
}

impl Denials {
    /// The denial of `asked` to these credentials.
    #[must_use]
    pub fn of(&self, credentials: &[u8], asked: &str) -> Denial {
        Denial(self.keys.hash_one((credentials, asked)))
    }

    /// It proved real.
    pub fn remember(&mut self, denial: Denial, now: Moment) {
        if self.until.len() >= MOST {
            self.until.retain(|_, until| *until > now);
        }
        if self.until.len() < MOST {
            self.until.insert(denial, now + MEMORY);
        }
    }

    /// It proved to be none.
    pub fn forget(&mut self, denial: Denial) {
        self.until.remove(&denial);
    }

    /// Whether it proved real not long ago.
    #[must_use]
    pub fn knows(&self, denial: Denial, now: Moment) -> bool {
        self.until.get(&denial).is_some_and(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    #[test]
    fn a_denial_is_remembered_for_a_minute_for_these_credentials_and_this_scope() {
        let mut denials = Denials::default();
        let denial = denials.of(b"Basic eDp5", "repository:a:pull");
        assert!(!denials.knows(denial, at(0)));
        denials.remember(denial, at(0));
        assert!(denials.knows(denials.of(b"Basic eDp5", "repository:a:pull"), at(59)));
        assert!(!denials.knows(denials.of(b"Basic eDp6", "repository:a:pull"), at(59)));
        assert!(!denials.knows(denials.of(b"Basic eDp5", "repository:b:pull"), at(59)));
        assert!(!denials.knows(denial, at(60)));
        denials.remember(denial, at(60));
        denials.forget(denial);
        assert!(!denials.knows(denial, at(60)));
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut denials = Denials::default();
        for number in 0..=MOST {
            denials.remember(denials.of(b"", &number.to_string()), at(0));
        }
        assert_eq!(denials.until.len(), MOST);
        let late = denials.of(b"", "late");
        denials.remember(late, at(61));
        assert_eq!(denials.until.len(), 1);
        assert!(denials.knows(late, at(61)));
    }
}
