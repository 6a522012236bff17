//! Whose fault a doubtful sign is: that of the registry, or of the credentials that it answered.
//!
//! A poor token is what a wrong password gets. It is the registry's fault where the same credentials proved good: they were
//! served well, or, for a token without a user, another token named their user. A token without a user that allows what
//! everybody may proves nothing. In a storm the proof may come after the
//! sign, so a sign waits for it as long as a poor token is held.

use std::collections::VecDeque;
use std::time::Duration;

use super::memory::{Key, MEMORY, Memory};
use crate::admission::Moment;
use crate::metrics::Sign;

/// How long a poor token is held, unasked: the first sign of a storm often is one.
pub const TOKEN_HOLD: Duration = Duration::from_millis(500);
/// The largest number of signs that wait for a proof. Far fewer make distress.
const MAX_WAITING: usize = 32;

/// A sign that its credentials may have caused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt {
    pub sign: Sign,
    pub subject: Key,
    /// The proof that makes it the registry's fault.
    pub needs: Key,
    pub at: Moment,
}

/// The proofs of the last minute, and the doubts that wait for one.
#[derive(Debug, Default)]
pub struct Credentials {
    pub proofs: Memory,
    waiting: VecDeque<Doubt>,
}

impl Credentials {
    /// Tells whether the sign is the registry's fault; if not, it waits for its proof.
    pub fn doubt(&mut self, doubt: Doubt) -> bool {
        let is_proved = self.proofs.knows(doubt.needs, doubt.at);
        if !is_proved {
            self.waiting.truncate(MAX_WAITING - 1);
            self.waiting.push_front(doubt);
        }
        is_proved
    }

    /// Notes a proof. Tells the signs that waited for it, the newest first.
    pub fn prove(&mut self, proof: Key, now: Moment) -> VecDeque<Doubt> {
        self.proofs.remember(proof, MEMORY, now);
        self.waiting.retain(|doubt| now.since(doubt.at) < TOKEN_HOLD);
        let (proved, waiting) = self.waiting.iter().partition(|doubt| doubt.needs == proof);
        self.waiting = waiting;
        proved
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Keys;
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    /// Doubts at 0 ms with the same credentials, each of a repository of its own; the newest first.
    fn doubted(count: usize) -> (Keys, Credentials, Vec<Doubt>) {
        let (keys, mut credentials) = (Keys::default(), Credentials::default());
        let needs = keys.of(&[b"Basic eDp5"]);
        let doubt = |number: usize| {
            let subject = keys.of(&[number.to_string().as_bytes()]);
            Doubt { sign: Sign::PoisonedToken, subject, needs, at: at(0) }
        };
        let doubts: Vec<Doubt> = (0..count).rev().map(doubt).collect();
        assert!(!doubts.iter().rev().any(|doubt| credentials.doubt(*doubt)), "nothing is known");
        (keys, credentials, doubts)
    }

    #[test]
    fn a_sign_counts_where_its_credentials_prove_good_before_or_soon_after() {
        let (_, mut credentials, doubts) = doubted(2);
        let proof = doubts[0].needs;
        assert_eq!(credentials.prove(proof, at(499)), doubts);
        assert_eq!(credentials.prove(proof, at(499)), [], "once");
        for (millis, is_known) in [(60_498, true), (60_499, false)] {
            assert_eq!(credentials.doubt(Doubt { at: at(millis), ..doubts[0] }), is_known, "{millis}");
        }
    }

    #[test]
    fn a_late_proof_and_one_of_other_credentials_prove_nothing() {
        let (keys, mut credentials, doubts) = doubted(1);
        assert_eq!(credentials.prove(keys.of(&[b"Basic eDp6"]), at(0)), []);
        assert_eq!(credentials.prove(doubts[0].needs, at(500)), []);
    }

    #[test]
    fn the_signs_that_wait_are_bounded_and_the_newest_stay() {
        let (_, mut credentials, doubts) = doubted(100);
        assert_eq!(credentials.prove(doubts[0].needs, at(1)), &doubts[..MAX_WAITING]);
    }
}
