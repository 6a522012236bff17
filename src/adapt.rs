//! The limit that yields: a registry that shows distress gets fewer connections, and all of them again when it is well.
//!
//! [`limit`] decides, with the time passed in; this file says which observations count, and tells the gate. Signs that a
//! denied user causes as well never count: a project that is gone lowers nothing.

mod limit;
#[cfg(test)]
mod sim_tests;

use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use self::limit::{Limit, Signal, SlotLoad};
use crate::admission::{Gate, Moment, shown_seconds};
use crate::distress::Cause;
use crate::metrics::Sign;

/// For so long after the slots in force were lowered, the registry counts as near its limit.
const NEAR_LIMIT: Duration = Duration::from_secs(30);

/// The slots in force at one registry.
#[derive(Debug)]
pub struct Adapt {
    enabled: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: Limit,
    /// The sign that was seen last.
    last: Option<Cause>,
    /// The sign that lowered the slots last.
    lowered_by: Option<Cause>,
}

/// The reason for the slots in force: nothing where all are.
#[derive(Debug, Serialize)]
pub struct AdaptShown {
    enabled: bool,
    lowered_by: Option<&'static str>,
    lowered_seconds_ago: Option<f64>,
}

impl Adapt {
    /// Nothing was seen yet: all slots are in force.
    pub fn new(enabled: bool, floor: usize) -> Adapt {
        Adapt { enabled, state: Mutex::new(State { limit: Limit::new(floor), last: None, lowered_by: None }) }
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
        if !self.enabled {
            return;
        }
        // Locked until the gate knows: the last word counts.
        let mut state = self.state.lock();
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
        let limit = &self.state.lock().limit;
        limit.in_force().is_some() && limit.lowered().is_some_and(|at| now.since(at) < NEAR_LIMIT)
    }

    /// Its state at this moment.
    pub fn shown(&self, now: Moment) -> AdaptShown {
        let state = self.state.lock();
        let yields = state.limit.in_force().is_some();
        let ago = |at: Moment| shown_seconds(now.since(at));
        AdaptShown {
            enabled: self.enabled,
            lowered_by: state.lowered_by.filter(|_| yields).map(Cause::as_str),
            lowered_seconds_ago: state.limit.lowered().filter(|_| yields).map(ago),
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
    use crate::metrics::Label;

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
        let others = [Cause::FailedDial, Cause::Outage, Cause::SlowAnswer].map(counts_once);
        assert_eq!(others, [Some(false), None, Some(true)]);
    }
}
