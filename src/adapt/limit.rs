//! How many slots are in force at one registry: observations and the time go in, a number comes out.
//!
//! Observations are counted in windows of about one answer time. A window in which more than a few answers were signs of
//! overload lowers the slots to just below what the registry served in it. Then one answer time is left out: those
//! answers belong to the slots before. A window without a sign raises them in small steps, if all were in use. Just above
//! the number at which signs came last it waits, and then tries on slowly.

use std::collections::HashSet;
use std::time::Duration;

use crate::admission::Moment;

/// The bounds of a window.
const SHORTEST_WINDOW: Duration = Duration::from_millis(200);
pub const LONGEST_WINDOW: Duration = Duration::from_secs(10);
/// The part of answers that may be signs of overload without an effect: they are asked for again.
const TOLERATED: f64 = 0.02;
/// With no more than this part the slots rise: a large registry always has some errors that no load causes.
const HARMLESS: f64 = 0.01;
/// The part of the slots that the registry served which are in force afterwards.
const MARGIN: f64 = 0.95;
/// A window with a sign is judged by at least so many answers, unless they do not come within this time.
const ENOUGH: u32 = 50;
const PATIENCE: Duration = Duration::from_secs(2);
/// The number that the registry served in a window counts as this part of the slots at least.
const LEAST_FACTOR: f64 = 0.5;
/// Full use raises them from one to all in so many seconds, at most by one a second where there are few.
const SECONDS_TO_ALL: f64 = 32.0;
/// How long it stays at the number at which signs came last, before it tries a higher one; shorter where that is less than a
/// quarter of all, for one node may have fallen much lower than the others.
const STAY: Duration = Duration::from_secs(10);
/// After so long without a sign, the slots rise whatever their use: nobody knows any more what the registry can serve.
const QUIET: Duration = Duration::from_secs(60);
/// The weight of a new answer in the answer time.
const SMOOTHING: f64 = 0.1;

/// A sign of the registry, good or bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It did its work; the time that the head of the answer took where that is known.
    Good(Option<Duration>),
    /// A sign of overload. One that a broken repository causes as well counts once in a window for each subject.
    Sign { subject: Option<u64> },
    /// An answer that nobody can read, and that was not slow: neither good nor a sign.
    Unread,
}

/// The use of the slots when something was observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLoad {
    /// The slots that are configured, or leased.
    pub slots: usize,
    /// Whether all slots in force are busy.
    pub is_full: bool,
}

#[derive(Debug)]
pub struct Limit {
    floor: usize,
    /// `None`: all slots are in force.
    in_force: Option<f64>,
    /// The number at which signs came last.
    knee: Option<f64>,
    lowered: Option<Moment>,
    last_sign: Option<Moment>,
    answer_time: AnswerTime,
    window: Option<Window>,
}

/// How long answers take that are good, or slow.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnswerTime(Duration);

impl AnswerTime {
    pub fn add(&mut self, took: Duration) {
        let before = self.0;
        self.0 = if before.is_zero() { took } else { before.mul_f64(1.0 - SMOOTHING) + took.mul_f64(SMOOTHING) };
    }

    /// The length of a window.
    pub fn window(self) -> Duration {
        self.0.clamp(SHORTEST_WINDOW, LONGEST_WINDOW)
    }
}

#[derive(Debug)]
struct Window {
    began: Moment,
    good: u32,
    signs: u32,
    /// Those that were counted once.
    subjects: HashSet<u64>,
    /// The work on good answers, all together.
    worked: Duration,
    was_full: bool,
}

impl Limit {
    pub fn new(floor: usize) -> Limit {
        let (in_force, knee, lowered, last_sign) = (None, None, None, None);
        Limit { floor, in_force, knee, lowered, last_sign, answer_time: AnswerTime::default(), window: None }
    }

    /// The slots in force, if fewer than all.
    pub fn in_force(&self) -> Option<usize> {
        self.in_force.map(|slots| whole(slots).max(self.floor))
    }

    /// When the slots in force were lowered last.
    pub fn lowered(&self) -> Option<Moment> {
        self.lowered
    }

    /// An answer took so long.
    pub fn took(&mut self, took: Duration) {
        self.answer_time.add(took);
    }

    /// Something was observed. Tells whether the slots in force may be others now.
    pub fn observe(&mut self, observed: Signal, load: SlotLoad, now: Moment) -> bool {
        if let Signal::Good(Some(took)) = observed {
            self.took(took);
        }
        let length = self.answer_time.window();
        if self.lowered.is_some_and(|lowered| now.since(lowered) < length) {
            return false;
        }
        let window = self.window.get_or_insert_with(|| Window::new(now));
        window.add(observed, load.is_full);
        let is_enough = window.signs == 0 || window.good + window.signs >= ENOUGH;
        let length = if is_enough { length } else { length.max(PATIENCE) };
        if now.since(window.began) < length {
            return false;
        }
        let window = self.window.take().expect("it was just filled");
        self.judge(&window, load, now)
    }

    fn judge(&mut self, window: &Window, load: SlotLoad, now: Moment) -> bool {
        let all = count(load.slots);
        let in_force = self.in_force.unwrap_or(all).min(all);
        let signs = f64::from(window.signs);
        // A window with fewer answers than slots says little of them.
        let spoiled = signs / f64::from(window.good + window.signs).max(in_force);
        let is_calm = spoiled <= HARMLESS;
        if !is_calm {
            self.last_sign = Some(now);
        }
        if spoiled > TOLERATED && window.signs > 1 {
            let length = now.since(window.began).as_secs_f64();
            // Signs may come quicker than good answers, which then are few, though as much is worked on as before.
            let worked_on = window.worked.as_secs_f64() / length;
            let served = (in_force * (1.0 - spoiled)).max(worked_on).clamp(in_force * LEAST_FACTOR, in_force);
            let least = count(self.floor.min(load.slots));
            self.knee = Some(served);
            self.in_force = Some((served * MARGIN).max(least));
            self.lowered = Some(now);
            return true;
        }
        let is_quiet = self.last_sign.is_none_or(|last| now.since(last) >= QUIET);
        if self.in_force.is_none() || !is_calm || !window.was_full && !is_quiet {
            return false;
        }
        self.raise(in_force, all, now.since(window.began), now);
        true
    }

    fn raise(&mut self, in_force: f64, all: f64, elapsed: Duration, now: Moment) {
        let seconds = elapsed.as_secs_f64().min(1.0);
        let quickly = in_force + (all / SECONDS_TO_ALL).max(1.0) * seconds;
        let next = match self.knee {
            Some(knee) if quickly > knee => {
                let stay = STAY.mul_f64((in_force * 4.0 / all).min(1.0));
                let stays = self.lowered.is_some_and(|lowered| now.since(lowered) < stay);
                let slowly = (in_force + seconds).max(knee.min(quickly));
                if slowly > knee / MARGIN + 1.0 {
                    // It served more than it could then.
                    self.knee = None;
                }
                if stays { in_force.max(knee) } else { slowly }
            }
            _ => quickly,
        };
        self.in_force = (next < all).then_some(next);
    }
}

impl Window {
    fn new(began: Moment) -> Window {
        Window { began, good: 0, signs: 0, subjects: HashSet::new(), worked: Duration::ZERO, was_full: false }
    }

    fn add(&mut self, observed: Signal, is_full: bool) {
        self.was_full |= is_full;
        match observed {
            Signal::Good(took) => {
                self.good += 1;
                self.worked += took.unwrap_or_default();
            }
            Signal::Sign { subject } => {
                let is_new = subject.is_none_or(|subject| self.subjects.insert(subject));
                self.signs += u32::from(is_new);
            }
            Signal::Unread => {}
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
fn count(slots: usize) -> f64 {
    slots as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the configured slots")]
fn whole(slots: f64) -> usize {
    slots.round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Signal = Signal::Good(Some(Duration::from_millis(20)));
    const SIGN: Signal = Signal::Sign { subject: None };

    fn of(subject: u64) -> Signal {
        Signal::Sign { subject: Some(subject) }
    }

    /// A limit of 100 slots that are all used, by virtual time.
    struct World {
        limit: Limit,
        load: SlotLoad,
        millis: u64,
    }

    impl World {
        fn new(floor: usize) -> World {
            World { limit: Limit::new(floor), load: SlotLoad { slots: 100, is_full: true }, millis: 0 }
        }

        /// So many milliseconds of this, one hundred answers in each tenth of a second.
        fn see(&mut self, millis: u64, answer: impl Fn(u64) -> Signal) -> usize {
            for number in 0..millis {
                self.millis += 1;
                self.limit.observe(answer(number), self.load, Moment(Duration::from_millis(self.millis)));
            }
            self.limit.in_force().unwrap_or(self.load.slots).min(self.load.slots)
        }
    }

    #[test]
    fn slots_fall_to_what_was_served_and_by_half_at_most() {
        for (spoiled, least, most) in [(1, 100, 100), (10, 80, 94), (30, 60, 70), (60, 45, 50), (100, 45, 50)] {
            let mut world = World::new(1);
            // Until one window is judged.
            let in_force = world.see(350, |number| if number * 37 % 100 < spoiled { SIGN } else { GOOD });
            assert!((least..=most).contains(&in_force), "{spoiled} %: {in_force}");
        }
        assert_eq!(World::new(1).see(20_000, |_| SIGN), 1);
        assert_eq!(World::new(7).see(20_000, |_| SIGN), 7, "the floor");
        let mut leased = World::new(7);
        leased.load.slots = 2;
        assert_eq!(leased.see(20_000, |_| SIGN), 2, "no more than there are");
        leased.load.slots = 100;
        assert_eq!(leased.see(1, |_| SIGN), 7, "the floor, with more of them");
    }

    #[test]
    fn full_use_raises_them_and_then_it_stays_below_the_last_signs_for_a_while() {
        let mut world = World::new(1);
        world.see(300, |number| if number % 100 < 20 { SIGN } else { GOOD });
        let lowered = world.see(5_000, |_| GOOD);
        assert!((76..=80).contains(&lowered), "{lowered}");
        world.load.is_full = false;
        assert_eq!(world.see(30_000, |_| GOOD), lowered, "the other slots were not tried");
        world.load.is_full = true;
        assert!((80..=84).contains(&world.see(2_000, |_| GOOD)));
        assert_eq!(world.see(12_000, |_| GOOD), 100);
    }

    /// A stray sign is forgotten when it is a minute old, and then any good answer shows as much as another.
    #[test]
    fn a_minute_without_a_sign_raises_them_whatever_their_use() {
        let mut world = World::new(1);
        world.see(300, |_| SIGN);
        world.load.is_full = false;
        assert!(world.see(55_000, |_| GOOD) < 60);
        assert_eq!(world.see(70_000, |_| GOOD), 100);
    }

    #[test]
    fn one_broken_repository_and_a_single_sign_lower_nothing() {
        assert_eq!(World::new(1).see(10_000, |number| if number % 2 == 0 { of(7) } else { GOOD }), 100);
        assert_eq!(World::new(1).see(10_000, |number| if number == 500 { SIGN } else { GOOD }), 100);
        assert!(World::new(1).see(10_000, |number| if number % 2 == 0 { of(number) } else { GOOD }) < 20);
        let mut few = World::new(1);
        few.load.slots = 4;
        few.see(1, |_| SIGN);
        few.millis += 3_000;
        assert_eq!(few.see(1, |_| GOOD), 4, "one of two answers is a sign, and it is a single one");
    }

    #[test]
    fn signs_that_come_with_few_answers_weigh_as_little_as_their_use() {
        let mut world = World::new(1);
        for _ in 0..20 {
            world.millis += 100;
            world.see(1, |_| SIGN);
        }
        world.millis += 100;
        let in_force = world.see(1, |_| GOOD);
        assert!((70..90).contains(&in_force), "{in_force}");
    }

    /// The first ten answers would say that a fifth of the slots are too many.
    #[test]
    fn a_window_with_a_sign_waits_for_enough_answers() {
        let mut world = World::new(1);
        world.load.slots = 10;
        for number in 0..60 {
            world.millis += 19;
            world.see(1, |_| if number < 2 { SIGN } else { GOOD });
        }
        assert_eq!(world.see(1, |_| GOOD), 9);
    }

    /// Nine of ten answers are signs, and 60 slots worked on the others all the time.
    #[test]
    fn signs_that_come_quicker_than_good_answers_weigh_no_more_than_the_slots_they_took() {
        let slow = Signal::Good(Some(Duration::from_millis(500)));
        let in_force = World::new(1).see(700, |number| if number % 25 < 3 { slow } else { SIGN });
        assert!((54..=60).contains(&in_force), "{in_force}");
    }

    /// Two slots of which one answer in twenty fails because of other nodes stay two: one slot would be half of them.
    #[test]
    fn few_slots_fall_by_no_more_than_the_signs_tell() {
        let mut world = World::new(1);
        world.see(20_000, |_| SIGN);
        world.see(1_500, |_| GOOD);
        let before = world.see(500, |_| GOOD);
        assert!((3..=6).contains(&before), "{before}");
        let after = world.see(450, |number| if number % 20 == 0 { SIGN } else { GOOD });
        assert!((before..=before + 1).contains(&after), "{before} {after}");
    }

    /// Each large registry has some.
    #[test]
    fn errors_without_a_load_do_not_keep_them_low() {
        let mut world = World::new(1);
        assert!(world.see(1_000, |_| SIGN) <= 30);
        assert_eq!(world.see(60_000, |number| if number % 200 == 0 { SIGN } else { GOOD }), 100);
    }

    /// Answers to requests of before say nothing of the slots now.
    #[test]
    fn slots_fall_once_in_an_answer_time() {
        let mut world = World::new(1);
        let slow = Signal::Good(Some(Duration::from_secs(3)));
        world.see(1, |_| slow);
        let steps: Vec<usize> = (0..12).map(|_| world.see(1_000, |_| SIGN)).collect();
        assert_eq!(steps, [100, 100, 48, 48, 48, 48, 48, 48, 23, 23, 23, 23]);
    }
}
