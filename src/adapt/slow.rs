//! Slow answers: those that take several times as long as the best of the last minutes.
//!
//! Times go in, with the moment; what is slow comes out. An answer that can be read is judged alone. One in a tunnel is encrypted: it
//! may be the commit of a large layer, which takes long while nothing is overloaded. So those are judged together: one is slow where
//! most of the others of half a minute are slow as well. A push has quick answers beside each commit, and many pushes may do the same
//! at the same moment. The [timer](super::timer) of a tunnel leaves some out.

use std::time::Duration;

use crate::admission::Moment;

/// An answer that takes longer than this many times the best is slow.
const SLOW_TIMES: u32 = 8;
/// No answer that is quicker than this is slow.
const SLOW_LEAST: Duration = Duration::from_secs(2);
/// After so long the best answer is forgotten for the best of a later time.
const BEST_MEMORY: Duration = Duration::from_secs(600);

/// The seconds of answers in tunnels by which one is judged.
const SECONDS: usize = 30;
/// With fewer of them nothing is said.
const MIN_TOGETHER: u32 = 8;

/// The times of one registry's answers.
#[derive(Debug, Default)]
pub(super) struct AnswerTimes {
    best: Best,
    best_in_tunnels: Best,
    /// Those in tunnels, by the second in which they came.
    in_tunnels: [Second; SECONDS],
}

/// The answers of one second.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    number: u64,
    all: u32,
    slow: u32,
}

/// The quickest answer of the last minutes, and when it came.
#[derive(Debug, Default)]
struct Best(Option<(Duration, Moment)>);

impl AnswerTimes {
    /// The answer to a small request took so long. Tells whether that is slow.
    pub fn answered(&mut self, took: Duration, now: Moment) -> bool {
        self.best.answered(took, now)
    }

    /// An answer in a tunnel took so long. Tells whether that is slow, as three of four of half a minute are; nothing of one that is slow
    /// alone.
    pub fn answered_in_tunnel(&mut self, took: Duration, now: Moment) -> Option<bool> {
        let is_slow = self.best_in_tunnels.answered(took, now);
        let number = now.0.as_secs();
        let second = &mut self.in_tunnels[usize::try_from(number).unwrap_or_default() % SECONDS];
        if second.number != number {
            *second = Second { number, all: 0, slow: 0 };
        }
        (second.all, second.slow) = (second.all.saturating_add(1), second.slow.saturating_add(u32::from(is_slow)));
        (!is_slow || self.are_slow(number)).then_some(is_slow)
    }

    fn are_slow(&self, now: u64) -> bool {
        let recent = self.in_tunnels.iter().filter(|second| second.number + SECONDS as u64 > now);
        let (all, slow) = recent.fold((0_u32, 0_u32), |(all, slow), second| {
            (all.saturating_add(second.all), slow.saturating_add(second.slow))
        });
        all >= MIN_TOGETHER && u64::from(slow) * 4 >= u64::from(all) * 3
    }
}

impl Best {
    fn answered(&mut self, took: Duration, now: Moment) -> bool {
        let best = self.0.filter(|(best, at)| *best < took && now.since(*at) < BEST_MEMORY);
        let Some((best, _)) = best else {
            self.0 = Some((took, now));
            return false;
        };
        took > SLOW_LEAST.max(best * SLOW_TIMES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(3);

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    #[test]
    fn answers_several_times_slower_than_the_best_are_slow() {
        let mut best = Best::default();
        best.answered(QUICK, at(0));
        assert!(!best.answered(Duration::from_millis(1_900), at(0)), "not that slow");
        assert!(best.answered(Duration::from_millis(2_100), at(0)));
        let mut slow_always = Best::default();
        let is_slow = (0..9).any(|_| slow_always.answered(LONG, at(0)));
        assert!(!is_slow, "it is as quick as it ever was");
    }

    #[test]
    fn a_best_answer_of_ten_minutes_ago_judges_nothing_any_more() {
        for (later, is_slow) in [(599_999, true), (600_000, false)] {
            let mut best = Best::default();
            best.answered(QUICK, at(0));
            assert_eq!(best.answered(LONG, at(later)), is_slow, "after {later} ms");
        }
    }

    /// So many answers in tunnels in each second from this one on: how many are slow.
    fn slow(answers: &mut AnswerTimes, seconds: std::ops::Range<u64>, each: &[Duration]) -> usize {
        let moments = seconds.flat_map(|second| each.iter().map(move |took| (*took, at(second * 1000))));
        moments.filter(|(took, now)| answers.answered_in_tunnel(*took, *now) == Some(true)).count()
    }

    #[test]
    fn in_tunnels_an_answer_is_slow_where_three_of_four_are() {
        let mut answers = AnswerTimes::default();
        assert_eq!(slow(&mut answers, 0..40, &[QUICK; 8]), 0);
        assert_eq!(slow(&mut answers, 40..62, &[LONG; 8]), 0, "8 of 30 seconds were quick");
        assert_eq!(slow(&mut answers, 63..80, &[LONG; 8]), 136);
        assert_eq!(slow(&mut answers, 80..88, &[QUICK; 8]), 0);
        assert_eq!(slow(&mut answers, 88..90, &[LONG; 8]), 0, "others were served a moment ago");
        assert!(!answers.answered(LONG, at(90_000)), "what can be read is judged by its own kind");
    }

    /// Each tenth second, all at once; a commit is as long as that.
    #[test]
    fn commits_of_large_layers_beside_short_answers_are_not_slow() {
        let mut answers = AnswerTimes::default();
        let pushes: usize = (0..30)
            .map(|round| {
                let quick = slow(&mut answers, round * 10..round * 10 + 1, &[QUICK; 24]);
                quick + slow(&mut answers, round * 10 + 9..round * 10 + 10, &[LONG; 12])
            })
            .sum();
        assert_eq!(pushes, 0);
    }

    #[test]
    fn few_answers_in_tunnels_say_nothing() {
        let mut answers = AnswerTimes::default();
        assert_eq!(slow(&mut answers, 0..1, &[QUICK]), 0);
        assert_eq!(slow(&mut answers, 31..32, &[LONG; 7]), 0);
        assert_eq!(slow(&mut answers, 60..61, &[LONG]), 1, "the eighth within half a minute");
        assert_eq!(slow(&mut answers, 61..62, &[LONG]), 0, "the others are too old");
    }
}
