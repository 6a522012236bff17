//! How long a tunnel must have been quiet before it is safe to take it back, learned from the silences that were seen.
//!
//! The config's pauses are where it begins, and fall by half with every few silences seen, down to what those tell: the
//! largest silence of the last one to two minutes, with a margin, how long the registry stalls inside an answer, and a
//! high quantile how long clients take from handshake to request. A registry that stalls in mid-body raises the pause of
//! idle tunnels up to that of unsure ones; one that does not lets it fall to the floor.
//!
//! A stall that outlasts the pause would never be seen: its tunnel is gone by then. So an answer counts only when its
//! client asks on behind it, which shows that it was whole; what comes of an answer after its tunnel was taken back is
//! heard; and now and then a tunnel is left for longer, since most servers stop when they see our end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::follow::{Doing, Pause};
use super::lull::LastAnswer;

/// No pause is learned to be shorter.
const FLOOR: Duration = Duration::from_millis(50);
/// What is seen is multiplied by it: the next silence may be longer than any before.
const MARGIN: u32 = 3;
/// After so many silences a pause may fall to half of where it was.
const HALVED_BY: u32 = 4;
/// One in so many idle tunnels is left for longer than its pause.
const LOOK_LONGER: u32 = 16;
/// And one in so many of these for longer than the pause of the config.
const LOOK_LONGEST: u32 = 8;
/// How much longer.
const LONGER: u32 = 4;
/// How long the largest silence is remembered, at least.
const MEMORY: Duration = Duration::from_secs(60);
/// So many times from handshake to request are remembered.
const RECENT: usize = 64;

/// The pauses as the config gives them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// For tunnels whose last request was answered.
    pub idle: Duration,
    /// For tunnels that never carried a request.
    pub unused: Duration,
    /// For tunnels in which an answer may be under way.
    pub unsure: Duration,
    /// For tunnels whose request does not move.
    pub stalled: Duration,
    /// Whether to learn.
    pub learn: bool,
}

/// The pauses of one registry.
#[derive(Debug)]
pub struct Pauses {
    bounds: Bounds,
    seen: Mutex<Seen>,
    /// Idle tunnels that were given a pause.
    given: AtomicU32,
    /// When it last answered.
    pub last_answer: LastAnswer,
}

#[derive(Debug, Default)]
struct Seen {
    /// Silences of the registry inside answers, where the answer looked finished.
    idle: Largest,
    /// Silences of clients between handshake and request.
    unused: Recent,
}

impl Pauses {
    /// Pauses that begin at their bounds.
    #[must_use]
    pub fn new(bounds: Bounds) -> Pauses {
        Pauses { bounds, seen: Mutex::default(), given: AtomicU32::new(0), last_answer: LastAnswer::default() }
    }

    /// A silence ended at `now`.
    pub fn saw(&self, pause: Pause, now: Duration) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match pause {
            Pause::InAnswer { looked: Doing::Idle, lasted } => seen.idle.add(lasted, now),
            // One more answer that was whole.
            Pause::BeforeNextRequest(_) => seen.idle.add(Duration::ZERO, now),
            // A tunnel that was parked and is used later tells nothing about those that are used at once.
            Pause::BeforeFirstRequest(lasted) if lasted <= self.bounds.unused => seen.unused.add(lasted, now),
            Pause::InAnswer { .. } | Pause::BeforeFirstRequest(_) | Pause::BeforeAnswer(_) => {}
        }
    }

    /// How long a tunnel must be quiet whose last request was answered.
    #[must_use]
    pub fn idle(&self, now: Duration) -> Duration {
        let pause = self.learned(self.bounds.idle, |seen| seen.idle.get(now));
        pause.min(self.bounds.unsure.max(self.bounds.idle))
    }

    /// The same for the next one that lies quiet: now and then it is left for longer, to see whether its answer goes on.
    #[must_use]
    pub fn idle_of_next(&self, now: Duration) -> Duration {
        let pause = self.idle(now);
        let given = self.given.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if !self.bounds.learn || !given.is_multiple_of(LOOK_LONGER) {
            return pause;
        }
        let longest = given.is_multiple_of(LOOK_LONGER * LOOK_LONGEST);
        let longer = if longest { pause.max(self.bounds.idle) } else { pause } * LONGER;
        longer.min(self.bounds.unsure).max(pause)
    }

    /// How long a tunnel must be quiet that never carried a request.
    #[must_use]
    pub fn unused(&self, now: Duration) -> Duration {
        self.unused_from(self.bounds.unused, now)
    }

    /// The same, when its own client waits for another connection: then it will hardly use this one.
    #[must_use]
    pub fn unused_for_own(&self, now: Duration) -> Duration {
        self.unused_from(self.bounds.unused.min(self.bounds.idle), now)
    }

    fn unused_from(&self, bound: Duration, now: Duration) -> Duration {
        self.learned(bound, |seen| seen.unused.high(now)).min(bound)
    }

    /// How long a tunnel must be quiet in which an answer may be under way.
    #[must_use]
    pub fn unsure(&self) -> Duration {
        self.bounds.unsure
    }

    /// How long a request may lie still.
    #[must_use]
    pub fn stalled(&self) -> Duration {
        self.bounds.stalled
    }

    fn learned(&self, bound: Duration, learn: impl FnOnce(&mut Seen) -> Learned) -> Duration {
        if !self.bounds.learn {
            return bound;
        }
        let learned = learn(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        let halved = bound.checked_div(2_u32.saturating_pow(learned.count / HALVED_BY)).unwrap_or_default();
        (learned.silence * MARGIN).max(halved).max(FLOOR.min(bound))
    }
}

/// What the silences tell.
struct Learned {
    /// They last hardly longer.
    silence: Duration,
    /// So many tell it.
    count: u32,
}

/// The last few of what was added.
///
/// Most clients use a tunnel at once or park it. Those parked that are used all the same are the longest silences, and
/// tell nothing about how soon the others are used; were they to raise the pause, more of them would live to do so.
#[derive(Debug, Default)]
struct Recent(VecDeque<(Duration, Duration)>);

impl Recent {
    fn add(&mut self, lasted: Duration, now: Duration) {
        if self.0.len() == RECENT {
            self.0.pop_front();
        }
        self.0.push_back((now, lasted));
    }

    /// What three of four do not exceed.
    fn high(&mut self, now: Duration) -> Learned {
        self.0.retain(|(at, _)| now.saturating_sub(*at) < 2 * MEMORY);
        let mut lasted: Vec<Duration> = self.0.iter().map(|(_, lasted)| *lasted).collect();
        lasted.sort_unstable();
        let silence = lasted.get(lasted.len() * 3 / 4).copied().unwrap_or_default();
        Learned { silence, count: u32::try_from(lasted.len()).unwrap_or(u32::MAX) }
    }
}

/// The largest of what was added lately: in the current window of [`MEMORY`] and in the one before.
#[derive(Debug, Default)]
struct Largest {
    began: Duration,
    current: Window,
    before: Window,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    largest: Duration,
    count: u32,
}

impl Largest {
    fn add(&mut self, lasted: Duration, now: Duration) {
        self.turn(now);
        self.current.largest = self.current.largest.max(lasted);
        self.current.count = self.current.count.saturating_add(1);
    }

    /// The largest.
    fn get(&mut self, now: Duration) -> Learned {
        self.turn(now);
        let silence = self.current.largest.max(self.before.largest);
        Learned { silence, count: self.current.count.saturating_add(self.before.count) }
    }

    fn turn(&mut self, now: Duration) {
        let windows = now.saturating_sub(self.began).as_secs() / MEMORY.as_secs();
        if windows > 0 {
            self.before = if windows == 1 { self.current } else { Window::default() };
            self.current = Window::default();
            self.began = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn pauses(learn: bool) -> Pauses {
        Pauses::new(Bounds { idle: ms(300), unused: ms(1000), unsure: ms(10_000), stalled: ms(300_000), learn })
    }

    fn stall(lasted: u64) -> Pause {
        Pause::InAnswer { looked: Doing::Idle, lasted: ms(lasted) }
    }

    #[test]
    fn without_anything_seen_the_config_holds() {
        let pauses = pauses(true);
        assert_eq!((pauses.idle(ms(0)), pauses.unused(ms(0))), (ms(300), ms(1000)));
    }

    #[test]
    fn a_registry_that_never_stalls_lets_the_pause_fall_to_the_floor() {
        let pauses = pauses(true);
        for number in 0..100 {
            pauses.saw(Pause::BeforeNextRequest(ms(2)), ms(number));
            pauses.saw(Pause::BeforeFirstRequest(ms(4)), ms(number));
        }
        assert_eq!((pauses.idle(ms(100)), pauses.unused(ms(100))), (ms(50), ms(50)));
        let later = ms(200_000);
        assert_eq!((pauses.idle(later), pauses.unused(later)), (ms(300), ms(1000)), "what was long ago tells nothing");
    }

    #[test]
    fn every_few_answers_halve_the_pause() {
        let pauses = pauses(true);
        let idle = (0..=16).map(|number| {
            let idle = pauses.idle(ms(number));
            pauses.saw(Pause::BeforeNextRequest(ms(2)), ms(number));
            idle
        });
        let idle: Vec<_> = idle.step_by(4).collect();
        assert_eq!(idle, [ms(300), ms(150), ms(75), ms(50), ms(50)]);
    }

    #[test]
    fn every_few_first_requests_halve_the_pause_of_unused_tunnels() {
        let pauses = pauses(true);
        let unused = (0..=20).map(|number| {
            let unused = (pauses.unused(ms(number)), pauses.unused_for_own(ms(number)));
            pauses.saw(Pause::BeforeFirstRequest(ms(4)), ms(number));
            unused
        });
        let unused: Vec<_> = unused.step_by(4).collect();
        let (anybody, own): (Vec<_>, Vec<_>) = unused.into_iter().unzip();
        assert_eq!(
            anybody,
            [1000.0, 500.0, 250.0, 125.0, 62.5, 50.0].map(|millis| Duration::from_secs_f64(millis / 1e3))
        );
        assert_eq!(own, [300, 150, 75, 50, 50, 50].map(ms), "it falls from where it begins");
    }

    #[test]
    fn the_parts_of_one_answer_tell_nothing() {
        let pauses = pauses(true);
        for number in 0..100 {
            pauses.saw(Pause::InAnswer { looked: Doing::Unsure, lasted: ms(1) }, ms(number));
        }
        assert_eq!(pauses.idle(ms(100)), ms(300));
    }

    /// An answer of which nothing is known but that it began may be one that is cut.
    #[test]
    fn answers_that_nobody_asked_on_behind_tell_nothing() {
        let pauses = pauses(true);
        for number in 0..100 {
            pauses.saw(Pause::BeforeAnswer(ms(2)), ms(number));
        }
        assert_eq!(pauses.idle(ms(100)), ms(300));
    }

    #[test]
    fn now_and_then_a_tunnel_is_left_for_longer() {
        let learned = pauses(true);
        for number in 0..100 {
            learned.saw(Pause::BeforeNextRequest(ms(2)), ms(number));
        }
        let given: Vec<Duration> = (0..256).map(|_| learned.idle_of_next(ms(100))).collect();
        let times = |pause| given.iter().filter(|given| **given == ms(pause)).count();
        assert_eq!([times(50), times(200), times(1200)], [240, 14, 2]);
        learned.saw(stall(9000), ms(100));
        assert!((0..256).all(|_| learned.idle_of_next(ms(100)) == ms(10_000)), "no longer than where nothing is sure");
        let fixed = pauses(false);
        assert!((0..256).all(|_| fixed.idle_of_next(ms(100)) == ms(300)));
    }

    #[test]
    fn a_pause_below_the_floor_stays_what_it_is() {
        let pauses =
            Pauses::new(Bounds { idle: ms(20), unused: ms(30), unsure: ms(10_000), stalled: ms(300_000), learn: true });
        assert_eq!((pauses.idle(ms(0)), pauses.unused(ms(0))), (ms(20), ms(30)));
    }

    #[test]
    fn one_stall_raises_the_pause_at_once_and_for_a_minute_at_least() {
        let pauses = pauses(true);
        pauses.saw(stall(800), ms(0));
        assert_eq!(pauses.idle(ms(1)), ms(2400));
        assert_eq!(pauses.idle(ms(61_000)), ms(2400));
        pauses.saw(stall(9000), ms(61_000));
        assert_eq!(pauses.idle(ms(61_000)), ms(10_000), "no longer than where nothing is sure");
    }

    #[test]
    fn a_parked_tunnel_that_is_used_late_does_not_raise_the_pause() {
        let pauses = pauses(true);
        pauses.saw(Pause::BeforeFirstRequest(ms(30_000)), ms(0));
        assert_eq!(pauses.unused(ms(1)), ms(1000));
    }

    #[test]
    fn some_parked_tunnels_that_are_used_soon_do_not_hold_up_all_others() {
        let pauses = pauses(true);
        for number in 0..64 {
            let lasted = if number % 5 == 0 { 280 } else { 20 };
            pauses.saw(Pause::BeforeFirstRequest(ms(lasted)), ms(number));
        }
        assert_eq!(pauses.unused(ms(64)), ms(60));
    }

    #[test]
    fn slow_clients_are_given_their_time() {
        let pauses = pauses(true);
        for number in 0..64 {
            pauses.saw(Pause::BeforeFirstRequest(ms(10 + number)), ms(number));
        }
        assert_eq!(pauses.unused(ms(64)), ms(3 * (10 + 48)));
    }

    #[test]
    fn learning_can_be_turned_off() {
        let pauses = pauses(false);
        for number in 0..100 {
            pauses.saw(stall(900), ms(number));
        }
        assert_eq!(pauses.idle(ms(100)), ms(300));
    }
}
