//! The limit that yields: a registry that shows distress gets fewer connections, and all of them again when it is well.
//!
//! [`limit`] decides, with the time passed in; this file says which observations count, and tells the gate. Signs that a
//! denied user causes as well never count: a project that is gone lowers nothing. With leased slots nothing is decided here: observations are
//! counted ([`tally`]) for the store, where the slots of all nodes together yield.

mod limit;
#[cfg(test)]
mod pool_tests;
#[cfg(test)]
mod sim_tests;
mod slow;
pub mod tally;
pub mod timer;

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use self::limit::{Limit, Signal, SlotLoad};
use self::slow::AnswerTimes;
use self::tally::FleetTally;
use crate::admission::{Gate, Moment, shown_seconds};
use crate::config::{Mode, RegistryConfig};
use crate::distress::{Cause, DistressPicture};
use crate::metrics::{Families, Sign};

/// For so long after the slots in force were lowered, the registry counts as near its limit.
const NEAR_LIMIT: Duration = Duration::from_secs(30);

/// The slots in force at one registry.
#[derive(Debug)]
pub struct Adapt {
    state: Mutex<State>,
    answers: Arc<Mutex<AnswerTimes>>,
}

#[derive(Debug)]
struct State {
    enabled: bool,
    limit: Limit,
    /// The sign that was seen last.
    last: Option<Cause>,
    /// The sign that lowered the slots last.
    lowered_by: Option<Cause>,
    /// For the store, where the slots are leased: nothing is lowered here then.
    tally: Option<Arc<FleetTally>>,
}

/// The reason for the slots in force: nothing where all are.
#[derive(Debug, Serialize)]
pub struct AdaptShown {
    enabled: bool,
    lowered_by: Option<String>,
    lowered_seconds_ago: Option<f64>,
}

/// Signs of overload: the level from 0 to 1, whether answers are doubted now, and the last signs, the newest first.
#[derive(Debug, Serialize)]
pub struct DistressShown {
    level: f64,
    on: bool,
    signs: Vec<SignShown>,
}

#[derive(Debug, Serialize)]
struct SignShown {
    sign: &'static str,
    seconds_ago: f64,
}

impl DistressShown {
    pub fn of(distress: &DistressPicture) -> DistressShown {
        let shown =
            |(cause, ago): &(Cause, Duration)| SignShown { sign: cause.as_str(), seconds_ago: shown_seconds(*ago) };
        let level = (distress.level * 100.0).round() / 100.0;
        DistressShown { level, on: distress.is_on, signs: distress.signs.iter().map(shown).collect() }
    }

    /// Adds the metric of a registry.
    pub fn scrape(&self, scrape: &Families, registry: &str) {
        let metric = ("roadstead_distress", "Signs of overload of the last ten seconds, from 0 to 1.");
        scrape.gauge(metric, &[("registry", registry)], self.level);
    }
}

impl Adapt {
    /// By this config: the same that holds, or a new one that takes its place. Requests of before may still see that one.
    pub fn of(
        registry: &RegistryConfig,
        before: Option<(&RegistryConfig, &Arc<Adapt>)>,
        tally: Option<&Arc<FleetTally>>,
    ) -> Arc<Adapt> {
        if let Some((config, adapt)) = before {
            if (config.adapt, config.mode) == (registry.adapt, registry.mode) {
                return adapt.clone();
            }
            adapt.state.lock().enabled = false;
        }
        let enabled = registry.adapt.enabled.unwrap_or_default() && registry.mode == Mode::Enforce;
        let mut adapt = Adapt::new(enabled, registry.adapt.floor);
        if let Some((_, before)) = before {
            adapt.answers = before.answers.clone();
        }
        if let Some(tally) = tally {
            tally.set_floor(registry.adapt.floor);
            adapt.state.get_mut().tally = Some(tally.clone());
        }
        Arc::new(adapt)
    }

    /// Nothing was seen yet: all slots are in force.
    pub fn new(enabled: bool, floor: usize) -> Adapt {
        let state = State { enabled, limit: Limit::new(floor), last: None, lowered_by: None, tally: None };
        Adapt { state: Mutex::new(state), answers: Arc::default() }
    }

    /// The answer to a small request took so long. Tells whether that is slow, which is a sign.
    pub fn answered(&self, took: Duration, now: Moment) -> bool {
        let is_slow = self.answers.lock().answered(took, now);
        if is_slow {
            self.took(took);
        }
        is_slow
    }

    /// A short answer in a tunnel took so long. Tells whether that is slow, by the others in tunnels, and counts it then.
    pub fn answered_in_tunnel<P: Send + 'static>(&self, took: Duration, tunnel: impl Hash, gate: &Gate<P>) -> bool {
        let told = self.answers.lock().answered_in_tunnel(took, gate.now());
        let Some(is_slow) = told else { return false };
        self.took(took);
        if is_slow {
            let subject = BuildHasherDefault::<DefaultHasher>::default().hash_one(tunnel);
            self.sign(Cause::SlowAnswer, subject, gate);
        } else {
            self.observe(Signal::Unread, None, gate);
        }
        is_slow
    }

    /// Lets the time of an answer that is not good, as far as can be told, count for the pause after which the slots in force may be
    /// lowered again.
    fn took(&self, took: Duration) {
        let mut state = self.state.lock();
        match &state.tally {
            Some(tally) => tally.took(took),
            None => state.limit.took(took),
        }
    }

    /// A sign of overload was seen when `subject` was asked for.
    pub fn sign<P: Send + 'static>(&self, cause: Cause, subject: u64, gate: &Gate<P>) {
        let Some(counts_once) = counts_once(cause) else { return };
        self.observe(Signal::Sign { subject: counts_once.then_some(subject) }, Some(cause), gate);
    }

    /// The registry did its work, within so long where that is known.
    pub fn good<P: Send + 'static>(&self, took: Option<Duration>, gate: &Gate<P>) {
        self.observe(Signal::Good(took), None, gate);
    }

    fn observe<P: Send + 'static>(&self, observed: Signal, cause: Option<Cause>, gate: &Gate<P>) {
        // Locked until the gate knows: the last word counts.
        let mut state = self.state.lock();
        if !state.enabled {
            return;
        }
        if let Some(tally) = &state.tally {
            return tally.observe(observed, cause, gate.now().0);
        }
        let ((slots, is_full), now) = gate.look(|core, now| (core.load(), now));
        let load = SlotLoad { slots, is_full };
        let (before, lowered) = (state.limit.in_force(), state.limit.lowered());
        state.last = cause.or(state.last);
        if !state.limit.observe(observed, load, now) {
            return;
        }
        if state.limit.lowered() != lowered {
            state.lowered_by = state.last;
        }
        let in_force = state.limit.in_force();
        if in_force != before {
            gate.happen(|core, now| core.yield_to(in_force, now));
        }
    }

    /// Whether the slots in force were lowered not long ago: the next try for more of them may be one too many, and its first sign
    /// may be one that is believed of a registry that is well.
    pub fn is_near_limit(&self, now: Moment) -> bool {
        let state = self.state.lock();
        let limit = &state.limit;
        let lowered = match &state.tally {
            Some(tally) => tally.lowered().map(|(_, at)| Moment(at)),
            None => limit.in_force().and(limit.lowered()),
        };
        lowered.is_some_and(|at| now.since(at) < NEAR_LIMIT)
    }

    /// Its state at this moment.
    pub fn shown(&self, now: Moment) -> AdaptShown {
        let state = self.state.lock();
        let own = || {
            let sign = state.lowered_by.map(Cause::as_str).unwrap_or_default().to_owned();
            state.limit.in_force().and(state.limit.lowered()).map(|at| (sign, at))
        };
        let lowered = match &state.tally {
            Some(tally) => tally.lowered().map(|(sign, at)| (sign, Moment(at))),
            None => own(),
        };
        AdaptShown {
            enabled: state.enabled,
            lowered_seconds_ago: lowered.as_ref().map(|(_, at)| shown_seconds(now.since(*at))),
            lowered_by: lowered.map(|(sign, _)| sign),
        }
    }

    /// Tells a gate that an earlier config may have left with fewer slots in force.
    pub fn apply<P: Send + 'static>(&self, gate: &Gate<P>) {
        let state = self.state.lock();
        gate.happen(|core, now| core.yield_to(state.limit.in_force(), now));
    }
}

/// Whether a sign counts once for each subject, since one broken repository can cause it; `None` where it counts for nothing:
/// a denied user causes it, it is a rate limit, or nothing answers behind the gateway, which is an outage and not a load: its
/// requests are held, and all slots are wanted when it ends.
fn counts_once(cause: Cause) -> Option<bool> {
    match cause {
        Cause::FailedDial | Cause::Answer(Sign::DatabaseError) => Some(false),
        Cause::SlowAnswer | Cause::Answer(Sign::InternalError | Sign::Broken) => Some(true),
        Cause::Outage
        | Cause::TokenHealed
        | Cause::Answer(
            Sign::BadGateway
            | Sign::Unavailable
            | Sign::GatewayTimeout
            | Sign::PoisonedToken
            | Sign::Ambiguous401
            | Sign::Unseen401
            | Sign::TooManyRequests,
        ) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Limits;
    use crate::config::AdaptConfig;
    use crate::metrics::{Label, Metrics};

    fn gate() -> Gate<()> {
        let limits = Limits {
            slots: 60,
            depth: 10,
            rate: None,
            idle_timeout: Duration::ZERO,
            max_lifetime: Duration::ZERO,
            max_connecting: 60,
            keep_place: Duration::ZERO,
            weights: vec![1],
        };
        Gate::new(limits, Metrics::new().of_registry("test", &["default".to_owned()]))
    }

    /// Those of the slots before take their time to come.
    #[tokio::test(start_paused = true)]
    async fn slots_fall_once_in_the_time_of_a_slow_answer() {
        for in_tunnel in [false, true] {
            let (gate, adapt) = (gate(), Adapt::new(true, 1));
            let answered = |subject, took| {
                let took = Duration::from_millis(took);
                if in_tunnel {
                    adapt.answered_in_tunnel(took, subject, &gate);
                } else if adapt.answered(took, gate.now()) {
                    adapt.sign(Cause::SlowAnswer, subject, &gate);
                }
            };
            answered(0, 20);
            let mut steps = Vec::new();
            for subject in 0..1_000 {
                answered(subject, 4_000);
                tokio::time::advance(Duration::from_millis(10)).await;
                let in_force = gate.snapshot().slots_in_force;
                if steps.last() != Some(&in_force) {
                    steps.push(in_force);
                }
            }
            assert_eq!(steps, [60, 29], "{in_tunnel}");
        }
    }

    /// Nobody reads them: they may be errors. But the windows without signs end, and the answer time is theirs again.
    #[tokio::test(start_paused = true)]
    async fn quick_answers_in_tunnels_let_the_slots_rise_and_hide_no_sign() {
        let (gate, adapt) = (gate(), Adapt::new(true, 1));
        let see = async |seconds: u64, took: u64, has_signs: bool| {
            for subject in 0..seconds * 100 {
                adapt.answered_in_tunnel(Duration::from_millis(took), subject, &gate);
                if has_signs && subject % 100 == 0 {
                    adapt.sign(Cause::FailedDial, subject, &gate);
                }
                tokio::time::advance(Duration::from_millis(10)).await;
            }
            gate.snapshot().slots_in_force
        };
        assert_eq!(see(1, 20, false).await, 60);
        let lowered = see(45, 4_000, false).await;
        assert!(lowered < 30, "{lowered}");
        assert!(see(60, 20, false).await < 60, "it may rise after a minute without use");
        assert_eq!(see(40, 20, false).await, 60);
        for _ in 0..8 {
            adapt.sign(Cause::FailedDial, 0, &gate);
        }
        assert!(see(10, 20, true).await < 60);
    }

    /// A change of its part of the config makes a new one.
    #[test]
    fn a_reload_does_not_forget_the_best_answer() {
        let config =
            |floor| RegistryConfig { adapt: AdaptConfig { enabled: Some(true), floor }, ..RegistryConfig::default() };
        let before = Adapt::of(&config(1), None, None);
        before.answered(Duration::from_millis(20), Moment(Duration::ZERO));
        let after = Adapt::of(&config(2), Some((&config(1), &before)), None);
        assert!(!Arc::ptr_eq(&before, &after));
        assert!(after.answered(Duration::from_secs(3), Moment(Duration::from_secs(1))));
    }

    /// A request of before a reload goes on with the `Adapt` of then, which has nothing to say any more.
    #[tokio::test(start_paused = true)]
    async fn one_that_is_retired_lowers_nothing_and_its_successor_begins_with_all_slots() {
        let gate = gate();
        let storm = async |adapt: &Adapt| {
            for _ in 0..400 {
                adapt.sign(Cause::Answer(Sign::DatabaseError), 0, &gate);
                tokio::time::advance(Duration::from_millis(10)).await;
            }
            gate.snapshot().slots_in_force
        };
        let old = Adapt::new(true, 1);
        assert!(storm(&old).await < 60);
        old.state.lock().enabled = false;
        Adapt::new(false, 1).apply(&gate);
        assert_eq!((gate.snapshot().slots_in_force, storm(&old).await), (60, 60));
    }

    #[test]
    fn what_a_denied_user_causes_never_counts_and_what_one_repository_causes_counts_once() {
        let never = [
            "poisoned_token",
            "ambiguous_401",
            "unseen_401",
            "too_many_requests",
            "bad_gateway",
            "unavailable",
            "gateway_timeout",
        ];
        for sign in Sign::ALL {
            let expected = match sign.as_str() {
                word if never.contains(&word) => None,
                word => Some(word != "database_error"),
            };
            assert_eq!(counts_once(Cause::Answer(*sign)), expected, "{sign:?}");
        }
        let others = [Cause::FailedDial, Cause::Outage, Cause::SlowAnswer, Cause::TokenHealed].map(counts_once);
        assert_eq!(others, [Some(false), None, Some(true), None]);
    }
}
