//! Distress: whether a registry is overloaded or broken at this moment, told from its own signs.
//!
//! One state for each registry, pure: signs and the time go in, a level from 0 to 1 comes out. A sign that a client cannot
//! cause weighs 1 by itself. A sign that one broken repository or one denied user can cause weighs less, and counts once
//! for each thing that was asked for. Signs are forgotten after ten seconds. `repair` feeds it and acts on it; status and
//! metrics show it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::admission::Moment;
use crate::metrics::{Label, Sign};

/// How long a sign counts.
const MEMORY: Duration = Duration::from_secs(10);
/// The weight from which on the registry is in distress.
const FULL: u32 = 12;
/// Signs that are remembered at most; the weight of fewer is full already.
const MAX_SIGNS: usize = 32;

/// An observation of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An answer that shows overload.
    Answer(Sign),
    /// None of its addresses took a connection.
    FailedDial,
    /// Nothing answers behind one of its gateways.
    Outage,
    /// An answer that took several times as long as its best.
    SlowAnswer,
    /// A token with all rights, where the same request got one of its user without them a moment before.
    TokenHealed,
}

impl Cause {
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Answer(sign) => sign.as_str(),
            Cause::FailedDial => "failed_dial",
            Cause::Outage => "outage",
            Cause::SlowAnswer => "slow_answer",
            Cause::TokenHealed => Sign::PoisonedToken.as_str(),
        }
    }

    /// In twelfths of what makes distress.
    fn weight(self) -> u32 {
        match self {
            Cause::FailedDial | Cause::Outage | Cause::TokenHealed | Cause::Answer(Sign::DatabaseError) => FULL,
            Cause::Answer(
                Sign::InternalError | Sign::BadGateway | Sign::Unavailable | Sign::GatewayTimeout | Sign::Broken,
            ) => 6,
            Cause::Answer(Sign::PoisonedToken | Sign::Ambiguous401 | Sign::Unseen401) => 4,
            Cause::SlowAnswer => 3,
            Cause::Answer(Sign::TooManyRequests) => 0,
        }
    }
}

/// The signs of one registry.
#[derive(Debug, Default)]
pub struct Distress {
    /// The oldest first.
    signs: VecDeque<NotedSign>,
}

#[derive(Clone, Copy, Debug)]
struct NotedSign {
    at: Moment,
    cause: Cause,
    /// The requested object, as a hash.
    subject: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct DistressPicture {
    /// From 0 to 1.
    pub level: f64,
    /// Whether answers are doubted now.
    pub is_on: bool,
    /// The last signs, the newest first, and how long ago each was seen.
    pub signs: Vec<(Cause, Duration)>,
}

impl Distress {
    /// A sign was seen in an answer to `subject`. The same sign of the same subject counts once.
    pub fn note(&mut self, cause: Cause, subject: u64, now: Moment) {
        if cause.weight() == 0 {
            return;
        }
        self.signs.retain(|seen| (seen.cause, seen.subject) != (cause, subject));
        if self.signs.len() == MAX_SIGNS {
            self.signs.pop_front();
        }
        self.signs.push_back(NotedSign { at: now, cause, subject });
    }

    /// Whether the registry is in distress: the signs of the last ten seconds weigh enough.
    pub fn is_on(&self, now: Moment) -> bool {
        self.recent(now).map(|seen| seen.cause.weight()).sum::<u32>() >= FULL
    }

    pub fn picture(&self, now: Moment) -> DistressPicture {
        let left = |seen: &NotedSign| 1.0 - now.since(seen.at).as_secs_f64() / MEMORY.as_secs_f64();
        let weight: f64 = self.recent(now).map(|seen| f64::from(seen.cause.weight()) * left(seen)).sum();
        DistressPicture {
            level: (weight / f64::from(FULL)).clamp(0.0, 1.0) + 0.0,
            is_on: self.is_on(now),
            signs: self.recent(now).rev().take(5).map(|seen| (seen.cause, now.since(seen.at))).collect(),
        }
    }

    fn recent(&self, now: Moment) -> impl DoubleEndedIterator<Item = &NotedSign> {
        self.signs.iter().filter(move |seen| now.since(seen.at) < MEMORY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    fn after(causes: &[(Cause, u64)]) -> Distress {
        let mut distress = Distress::default();
        for (cause, subject) in causes {
            distress.note(*cause, *subject, at(0));
        }
        distress
    }

    #[test]
    fn what_a_client_cannot_cause_is_enough_by_itself_and_lasts_for_ten_seconds() {
        for cause in [Cause::FailedDial, Cause::Answer(Sign::DatabaseError)] {
            let distress = after(&[(cause, 1)]);
            assert!(distress.is_on(at(0)) && distress.is_on(at(9_999)) && !distress.is_on(at(10_000)));
            let percent = |now| (distress.picture(at(now)).level * 100.0).round();
            assert_eq!([0, 2_500, 10_000].map(|now| percent(now).to_string()), ["100", "75", "0"]);
        }
    }

    #[test]
    fn what_one_repository_or_one_user_can_cause_counts_once_for_each_thing_asked_for() {
        let signs = [(Sign::InternalError, 2), (Sign::BadGateway, 2), (Sign::PoisonedToken, 3)];
        let signs = signs.map(|(sign, needed)| (Cause::Answer(sign), needed));
        for (cause, needed) in [signs.as_slice(), &[(Cause::SlowAnswer, 4)]].concat() {
            assert!(!after(&[(cause, 1); 100]).is_on(at(0)), "{cause:?}");
            let many: Vec<(Cause, u64)> = (0..needed).map(|subject| (cause, subject)).collect();
            assert!(after(&many).is_on(at(0)) && !after(&many[1..]).is_on(at(0)), "{cause:?}");
        }
        let many: Vec<(Cause, u64)> = (0..100).map(|subject| (Cause::Answer(Sign::TooManyRequests), subject)).collect();
        assert!(!after(&many).is_on(at(0)), "a rate limit is no distress");
    }

    #[test]
    fn the_memory_is_bounded_and_shows_the_newest_first() {
        let many: Vec<(Cause, u64)> = (0..1000).map(|subject| (Cause::Answer(Sign::BadGateway), subject)).collect();
        let mut distress = after(&many);
        assert_eq!(distress.signs.len(), MAX_SIGNS);
        distress.note(Cause::FailedDial, 0, at(1_000));
        let picture = distress.picture(at(1_500));
        assert_eq!(picture.signs[0], (Cause::FailedDial, Duration::from_millis(500)));
        assert_eq!((picture.signs.len(), picture.is_on), (5, true));
    }
}
