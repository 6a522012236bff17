//! Repair: which answers of an overloaded registry are worth asking again for, how often, and when.
//!
//! Harbor shows the overload of its database as answers that look final: a `401` whose body is a database error, a token
//! without the actions that were asked for. Only a GET or a HEAD is ever asked again, and only before a byte of the
//! answer went to the client. [`signs`] is the table of what is worth it, [`tokens`] reads tokens, [`budget`] keeps
//! repair from becoming a storm of its own, [`denials`] remembers what was a real denial, [`room`] bounds the memory that
//! spoiled answers take. No I/O here, and no clock.

pub mod budget;
pub mod denials;
pub mod room;
pub mod signs;
pub mod tokens;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use self::budget::Budget;
use self::denials::{Denial, Denials};
use self::room::Room;
use crate::admission::Moment;
use crate::backoff::Backoff;
use crate::metrics::Sign;

/// The pauses before asking again.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// What is known of the repair of one registry's answers.
#[derive(Debug)]
pub struct Repair {
    /// How often an answer is asked for again that may be a real denial.
    pub ambiguous_401: u32,
    /// Room for answers that are kept.
    pub room: Room,
    budget: Mutex<Budget>,
    /// Held by the first of those who wait for the budget.
    turn: tokio::sync::Mutex<()>,
    denials: Mutex<Denials>,
}

impl Repair {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(ambiguous_401: u32) -> Repair {
        Repair {
            ambiguous_401,
            room: Room::default(),
            budget: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            denials: Mutex::default(),
        }
    }

    /// A request came that could be repaired.
    pub fn request(&self, now: Moment) {
        lock(&self.budget).request(now);
    }

    /// Takes the right to ask a request again.
    ///
    /// # Errors
    /// When too many are asked again, with the moment at which it is worth trying once more.
    pub fn take(&self, now: Moment) -> Result<(), Moment> {
        lock(&self.budget).take(now)
    }

    /// Waits until all have taken theirs who began to wait for the budget before. May be given up at any point.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// The denial of `asked` to these credentials.
    #[must_use]
    pub fn denial_of(&self, credentials: &[u8], asked: &str) -> Denial {
        lock(&self.denials).of(credentials, asked)
    }

    /// Whether a denial proved real not long ago.
    #[must_use]
    pub fn knows(&self, denial: Denial, now: Moment) -> bool {
        lock(&self.denials).knows(denial, now)
    }

    /// A denial proved to be none.
    pub fn forget(&self, denial: Denial) {
        lock(&self.denials).forget(denial);
    }

    /// A denial proved real.
    pub fn remember(&self, denial: Denial, now: Moment) {
        lock(&self.denials).remember(denial, now);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often a HEAD is asked again that stays denied, though a GET showed that it should not be, after the first time.
const MOST_VOUCHED: u32 = 2;

/// How often one request was asked again, and for what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tries {
    all: u32,
    ambiguous: u32,
    tokens: u32,
    unseen: u32,
    /// How often a HEAD was denied since a GET showed that it is not denied.
    vouched: Option<u32>,
    first: Option<Sign>,
}

impl Tries {
    /// Notes one more answer with this sign, and tells the pause before the request is asked again; `None` when it is
    /// not. `ambiguous_401` bounds how often an ambiguous answer is asked again for; `asked` is what the registry itself
    /// demands by Retry-After, at least; `chance` is uniform over all numbers.
    #[must_use]
    pub fn pause_after(
        &mut self,
        sign: Sign,
        ambiguous_401: u32,
        asked: Option<Duration>,
        chance: u64,
    ) -> Option<Duration> {
        if sign == Sign::Ambiguous401 && !within(&mut self.ambiguous, ambiguous_401) {
            return None;
        }
        if sign == Sign::Unseen401 && self.vouched.as_mut().is_some_and(|denied| !within(denied, MOST_VOUCHED)) {
            return None;
        }
        self.first = self.first.or(Some(sign));
        // What is looked at once more is looked at once more at once, the first time.
        let at_once = match sign {
            Sign::PoisonedToken => within(&mut self.tokens, 1),
            Sign::Unseen401 => within(&mut self.unseen, 1),
            _ => false,
        };
        if at_once {
            return Some(Duration::ZERO);
        }
        self.all += 1;
        Some(PAUSES.jittered(self.all, chance).max(asked.unwrap_or_default()))
    }

    /// A GET showed that the HEAD is not denied.
    pub fn vouch(&mut self) {
        self.vouched = Some(0);
    }

    /// Whether a GET has to tell what this answer means.
    #[must_use]
    pub fn is_unexplained(&self, sign: Sign) -> bool {
        sign == Sign::Unseen401 && self.vouched.is_none()
    }

    /// Whether an answer with this sign is more likely a real denial than not.
    #[must_use]
    pub fn is_doubtful(&self, sign: Sign) -> bool {
        matches!(sign, Sign::PoisonedToken | Sign::Ambiguous401) || self.is_unexplained(sign)
    }

    /// The first sign that was seen.
    #[must_use]
    pub fn first(&self) -> Option<Sign> {
        self.first
    }
}

fn within(count: &mut u32, most: u32) -> bool {
    *count += 1;
    *count <= most
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: u64 = 0;
    const HIGH: u64 = u64::MAX;

    #[test]
    fn pauses_grow_up_to_a_bound_and_vary_by_half() {
        let pauses = |chance| {
            let mut tries = Tries::default();
            (0..8)
                .map(|_| tries.pause_after(Sign::BadGateway, 0, None, chance).unwrap().as_millis())
                .collect::<Vec<_>>()
        };
        assert_eq!(pauses(HIGH), [200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        assert_eq!(pauses(LOW), [100, 200, 400, 800, 1600, 2500, 2500, 2500]);
    }

    #[test]
    fn what_the_registry_asks_for_is_obeyed_and_is_no_reason_to_hurry() {
        let mut tries = Tries::default();
        let mut pause = |seconds| {
            let asked = Some(Duration::from_secs(seconds));
            tries.pause_after(Sign::TooManyRequests, 0, asked, HIGH).unwrap().as_millis()
        };
        assert_eq!([pause(7), pause(0), pause(0)], [7000, 400, 800]);
    }

    #[test]
    fn an_ambiguous_denial_is_asked_again_for_as_often_as_the_operator_says() {
        let pauses = |most| {
            let mut tries = Tries::default();
            (0..5).filter(|_| tries.pause_after(Sign::Ambiguous401, most, None, HIGH).is_some()).count()
        };
        assert_eq!([pauses(0), pauses(1), pauses(2)], [0, 1, 2]);
    }

    #[test]
    fn a_denied_head_is_looked_at_once_at_once_and_then_with_pauses() {
        let mut tries = Tries::default();
        let mut pause = || tries.pause_after(Sign::Unseen401, 0, None, HIGH).map(|pause| pause.as_millis());
        assert_eq!([pause(), pause(), pause(), pause()], [Some(0), Some(200), Some(400), Some(800)]);
        assert!(tries.is_doubtful(Sign::Unseen401) && tries.is_unexplained(Sign::Unseen401));
    }

    #[test]
    fn a_head_that_a_get_vouched_for_is_denied_three_times_more_at_most() {
        let mut tries = Tries::default();
        assert!(tries.pause_after(Sign::Unseen401, 0, None, HIGH).is_some());
        tries.vouch();
        assert!(!tries.is_doubtful(Sign::Unseen401) && !tries.is_unexplained(Sign::Unseen401));
        let mut pause = || tries.pause_after(Sign::Unseen401, 0, None, HIGH).map(|pause| pause.as_millis());
        assert_eq!([pause(), pause(), pause()], [Some(200), Some(400), None]);
        assert!(tries.pause_after(Sign::BadGateway, 0, None, HIGH).is_some(), "other signs are others");
    }

    #[test]
    fn a_reduced_token_is_asked_for_again_at_once_and_then_with_pauses() {
        let mut tries = Tries::default();
        let mut pause = || tries.pause_after(Sign::PoisonedToken, 0, None, HIGH).unwrap().as_millis();
        assert_eq!([pause(), pause(), pause()], [0, 200, 400]);
        assert_eq!(tries.first(), Some(Sign::PoisonedToken));
    }
}
