//! The observations of a node whose slots are leased: counted for the store, where the slots of all nodes together yield.
//!
//! Observations go in with the time; their counts since the last request to the store come out. Answers to requests of before the last
//! lowering say nothing of the slots now: after it hears of one, the node leaves one answer time out.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use super::limit::{AnswerTime, LONGEST_WINDOW, Signal};
use crate::distress::Cause;
use crate::lease::message::{FleetEvidence, PoolForce};

/// Shared by the requests, which see, and by the task that speaks to the store.
#[derive(Debug, Default)]
pub struct FleetTally(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    floor: usize,
    answer_time: AnswerTime,
    /// Counted since then; it may lie ahead.
    since: Duration,
    good: u64,
    signs: u64,
    worked: Duration,
    /// When each subject caused a sign last.
    subjects: HashMap<u64, Duration>,
    last: Option<Cause>,
    /// The word of the store, and when it lowered the slots, by the time here.
    force: PoolForce,
    lowered: Option<Duration>,
}

impl FleetTally {
    pub(super) fn set_floor(&self, floor: usize) {
        self.0.lock().floor = floor;
    }

    pub(super) fn observe(&self, observed: Signal, cause: Option<Cause>, now: Duration) {
        let mut counted = self.0.lock();
        if let Signal::Good(Some(took)) = observed {
            counted.answer_time.add(took);
        }
        if now < counted.since {
            return;
        }
        match observed {
            Signal::Good(took) => {
                counted.good += 1;
                counted.worked += took.unwrap_or_default();
            }
            Signal::Sign { subject } => {
                if subject.is_none_or(|subject| counted.is_further_subject(subject, now)) {
                    counted.signs += 1;
                    counted.last = cause;
                }
            }
            Signal::Unread => {}
        }
    }

    /// An answer took so long.
    pub(super) fn took(&self, took: Duration) {
        self.0.lock().answer_time.add(took);
    }

    /// The signs since the store was asked last.
    pub fn signs(&self) -> u64 {
        self.0.lock().signs
    }

    /// The counts since this was asked last.
    pub fn take(&self, now: Duration) -> FleetEvidence {
        let mut counted = self.0.lock();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let span = millis(now.saturating_sub(counted.since));
        let evidence = FleetEvidence {
            lowered: counted.force.lowered,
            good: counted.good,
            signs: counted.signs,
            worked: millis(counted.worked),
            span,
            floor: counted.floor as u64,
            sign: counted.last.map(Cause::as_str).unwrap_or_default().to_owned(),
        };
        if span > 0 {
            counted.begin(now);
        }
        evidence
    }

    /// The store said so, of slots that it lowered at this moment.
    pub fn hear(&self, force: &PoolForce, lowered: Option<Duration>, now: Duration) {
        let mut counted = self.0.lock();
        if counted.force.lowered != force.lowered {
            let pause = counted.answer_time.window();
            counted.begin(now + pause);
        }
        counted.force.clone_from(force);
        counted.lowered = lowered.filter(|_| force.slots > 0);
    }

    /// The sign that lowered the slots of all nodes last, and when; nothing while all are in force.
    pub(super) fn lowered(&self) -> Option<(String, Duration)> {
        let counted = self.0.lock();
        counted.lowered.map(|at| (counted.force.sign.clone(), at))
    }
}

impl Counted {
    fn begin(&mut self, since: Duration) {
        (self.since, self.good, self.signs, self.worked) = (since, 0, 0, Duration::ZERO);
    }

    /// Whether this subject is none of those that caused a sign lately, and not the only one. All nodes may ask for one that is broken.
    fn is_further_subject(&mut self, subject: u64, now: Duration) -> bool {
        self.subjects.retain(|_, last| now.saturating_sub(*last) < LONGEST_WINDOW);
        let is_known = self.subjects.contains_key(&subject);
        if !is_known {
            self.subjects.insert(subject, now);
        }
        !is_known && self.subjects.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Sign;

    const GOOD: Signal = Signal::Good(Some(Duration::from_millis(500)));
    const SIGN: Signal = Signal::Sign { subject: None };

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn each_observation_is_told_once() {
        let tally = FleetTally::default();
        tally.set_floor(3);
        tally.observe(GOOD, None, at(1_000));
        tally.observe(SIGN, Some(Cause::Answer(Sign::DatabaseError)), at(1_500));
        assert_eq!(tally.signs(), 1);
        let told = tally.take(at(2_000));
        let expected = FleetEvidence {
            lowered: 0,
            good: 1,
            signs: 1,
            worked: 500,
            span: 2_000,
            floor: 3,
            sign: "database_error".to_owned(),
        };
        assert_eq!(told, expected);
        assert_eq!(tally.signs(), 0);
        assert_eq!(tally.take(at(2_200)), FleetEvidence { good: 0, signs: 0, worked: 0, span: 200, ..expected });
    }

    /// Answers to requests of before come for one answer time.
    #[test]
    fn nothing_is_told_of_the_time_before_the_slots_were_lowered() {
        let tally = FleetTally::default();
        tally.observe(GOOD, None, at(900));
        tally.observe(SIGN, Some(Cause::FailedDial), at(950));
        let force = PoolForce { slots: 6, lowered: 77, sign: "failed_dial".to_owned() };
        tally.hear(&force, Some(at(990)), at(1_000));
        tally.observe(SIGN, Some(Cause::FailedDial), at(1_499));
        let told = tally.take(at(1_499));
        assert_eq!((told.lowered, told.signs, told.span, tally.signs()), (77, 0, 0, 0));
        tally.hear(&force, Some(at(990)), at(1_500));
        tally.observe(SIGN, Some(Cause::FailedDial), at(1_600));
        let told = tally.take(at(1_600));
        assert_eq!((told.good, told.signs, told.span), (0, 1, 100));
        assert_eq!(tally.lowered(), Some(("failed_dial".to_owned(), at(990))));
        tally.hear(&PoolForce { slots: 0, ..force }, Some(at(990)), at(1_700));
        assert_eq!(tally.lowered(), None);
    }

    /// Every node may ask for it again and again.
    #[test]
    fn one_broken_repository_is_no_sign() {
        let tally = FleetTally::default();
        for second in 0..30 {
            tally.observe(Signal::Sign { subject: Some(1) }, Some(Cause::SlowAnswer), at(1000 * second));
        }
        assert_eq!(tally.signs(), 0);
        for subject in [2, 3, 3] {
            tally.observe(Signal::Sign { subject: Some(subject) }, Some(Cause::SlowAnswer), at(29_500));
        }
        assert_eq!(tally.take(at(30_001)).signs, 2);
    }
}
