//! Repair: which answers of a registry are worth asking again for, how often, and when.
//!
//! Harbor shows the overload of its database as answers that look final: a `401` whose challenge is empty, a token without
//! the actions that were asked for. Only a GET, a HEAD or a form that asks for a token is ever asked again, and only
//! before a byte of the answer went to the client. [`signs`] says what is worth it, [`tokens`] reads tokens, [`credentials`] says whose fault a doubtful sign is,
//! [`memory`] remembers for a minute, [`gateway`] holds requests while nothing answers behind a gateway, [`reasks`] bounds
//! how many are asked again at once, and [`Distress`] says whether anything is believed at all. No I/O here, and no clock.

pub mod credentials;
pub mod gateway;
pub mod memory;
pub mod reasks;
pub mod signs;
pub mod tokens;

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use self::credentials::{Credentials, Doubt};
use self::gateway::Gateways;
use self::memory::{Key, Keys, Memory};
use self::reasks::Reasks;
use crate::admission::Moment;
use crate::backoff::Backoff;
use crate::distress::{Cause, Distress, DistressPicture};
use crate::metrics::Sign;

/// The pauses before asking again.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
/// A token that heals within so long is no matter of rights: nobody grants them so soon after a denial.
const HEALS_WITHIN: Duration = Duration::from_secs(5);
/// How often a request is asked again where the registry is well.
const MAX_TRIES_WHEN_WELL: u32 = 4;

/// The state of repair for one registry.
#[derive(Debug, Default)]
pub struct Repair {
    /// Whether anything is asked again.
    pub enabled: bool,
    /// The permits for requests that are asked again while the registry is in distress.
    pub reasks: Reasks,
    /// Outages behind the registry's gateways.
    pub gateways: Gateways,
    /// Denials that proved real.
    pub denials: Mutex<Memory>,
    /// Requests that got a poor token.
    poor: Mutex<Memory>,
    keys: Keys,
    distress: Mutex<Distress>,
    /// Notified when distress begins.
    begins: Notify,
    pub credentials: Mutex<Credentials>,
}

impl Repair {
    /// Nothing was seen yet.
    pub fn new(enabled: bool) -> Repair {
        Repair { enabled, ..Repair::default() }
    }

    pub fn key(&self, texts: &[&[u8]]) -> Key {
        self.keys.of(texts)
    }

    /// The registry did something that shows distress, when `subject` was asked for.
    pub fn note(&self, cause: Cause, subject: Key, now: Moment) {
        let mut distress = self.distress.lock();
        let was_on = distress.is_on(now);
        distress.note(cause, subject.number(), now);
        if !was_on && distress.is_on(now) {
            self.begins.notify_waiters();
        }
    }

    /// The same for a sign that the holder of its credentials may have caused: it counts once they proved good.
    pub fn doubt(&self, doubt: Doubt) {
        if self.credentials.lock().doubt(doubt) {
            self.note(Cause::Answer(doubt.sign), doubt.subject, doubt.at);
        }
    }

    /// A request got a poor token that names its user: the password was right.
    pub fn poor_token(&self, request: Key, now: Moment) {
        self.poor.lock().remember(request, HEALS_WITHIN, now);
    }

    /// A request got a token with all rights. It makes distress where the same one got a poor token a moment ago.
    pub fn whole_token(&self, request: Key, subject: Key, now: Moment) {
        if self.poor.lock().forget(request, now) {
            self.note(Cause::TokenHealed, subject, now);
        }
    }

    /// Credentials proved good, and the signs that waited for this are the registry's fault.
    pub fn prove(&self, proof: Key, now: Moment) {
        let proved = self.credentials.lock().prove(proof, now);
        for doubt in proved {
            self.note(Cause::Answer(doubt.sign), doubt.subject, now);
        }
    }

    /// Whether the registry is in distress: no answer of it that could be a sign is believed.
    pub fn is_distressed(&self, now: Moment) -> bool {
        self.distress.lock().is_on(now)
    }

    /// Its state for status and metrics.
    pub fn distress(&self, now: Moment) -> DistressPicture {
        self.distress.lock().picture(now)
    }

    /// Completes when distress begins; at once where it is on.
    pub async fn distress_begins(&self, now: impl Fn() -> Moment) {
        loop {
            let begins = self.begins.notified();
            if self.is_distressed(now()) {
                return;
            }
            begins.await;
        }
    }
}

/// How often one request was asked again, and for what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tries {
    counted: u32,
    tokens: u32,
    /// How often a HEAD was denied since a GET showed that it is not denied.
    vouched: Option<u32>,
    first: Option<Sign>,
}

impl Tries {
    /// Notes one more answer with this sign, and tells the pause before the request is asked again; `None` when the answer is
    /// believed. `asked` is what the registry itself demands by Retry-After, at least; `chance` is uniform over all numbers.
    pub fn pause_after(
        &mut self,
        sign: Sign,
        is_distressed: bool,
        asked: Option<Duration>,
        chance: u64,
    ) -> Option<Duration> {
        if !is_distressed && self.is_believed(sign) {
            return None;
        }
        self.first = self.first.or(Some(sign));
        // One doubt is looked into at once; nothing is to be gained by waiting.
        if !is_distressed && matches!(sign, Sign::PoisonedToken | Sign::Unseen401) && self.vouched.is_none() {
            return Some(Duration::ZERO);
        }
        self.counted += 1;
        Some(PAUSES.jittered(self.counted, chance).max(asked.unwrap_or_default()))
    }

    /// Whether an answer with this sign is the registry's real answer, where the registry is well.
    fn is_believed(&mut self, sign: Sign) -> bool {
        let count = match sign {
            Sign::Ambiguous401 => return true,
            Sign::PoisonedToken => {
                self.tokens += 1;
                return self.tokens > 1;
            }
            Sign::Unseen401 => match &mut self.vouched {
                None => return false,
                Some(denied) => {
                    *denied += 1;
                    return *denied > 2;
                }
            },
            _ => self.counted,
        };
        count >= MAX_TRIES_WHEN_WELL
    }

    /// A GET showed that the HEAD is not denied.
    pub fn vouch(&mut self) {
        self.vouched = self.vouched.or(Some(0));
    }

    /// Whether a GET has to tell what this answer means.
    pub fn is_unexplained(&self, sign: Sign) -> bool {
        sign == Sign::Unseen401 && self.vouched.is_none()
    }

    pub fn first(&self) -> Option<Sign> {
        self.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIGH: u64 = u64::MAX;

    fn pauses(sign: Sign, is_distressed: bool) -> Vec<u128> {
        let mut tries = Tries::default();
        let pause = |_| tries.pause_after(sign, is_distressed, None, HIGH).map(|pause| pause.as_millis());
        (0..8).map_while(pause).collect()
    }

    /// It is no fault of a client, so it makes distress by itself: those that hold a poor token ask again.
    #[test]
    fn a_token_that_heals_is_a_sign_once_and_for_the_same_request() {
        let (repair, now) = (Repair::new(true), Moment::default());
        let [one, other] = [b"one", b"two"].map(|text| repair.key(&[text]));
        let is_healed = |key, seconds| {
            repair.whole_token(key, key, now + Duration::from_secs(seconds));
            repair.is_distressed(now + Duration::from_secs(seconds))
        };
        assert!(!is_healed(one, 0), "it was never poor");
        repair.note(Cause::Answer(Sign::PoisonedToken), one, now);
        repair.poor_token(one, now);
        assert!(!is_healed(other, 0), "another request");
        assert!(!is_healed(one, 5), "somebody granted the rights meanwhile");
        repair.poor_token(one, now);
        assert!(is_healed(one, 4) && is_healed(one, 13) && !is_healed(one, 14), "once");
    }

    /// A permanent 5xx: a handful of times within a few seconds, and until the deadline in distress.
    #[test]
    fn a_registry_that_is_well_is_asked_again_a_handful_of_times() {
        for sign in [Sign::InternalError, Sign::BadGateway, Sign::Broken, Sign::TooManyRequests] {
            assert_eq!(pauses(sign, false), [200, 400, 800, 1600], "{sign:?}");
            assert_eq!(pauses(sign, true), [200, 400, 800, 1600, 3200, 5000, 5000, 5000], "{sign:?}");
        }
    }

    #[test]
    fn what_may_be_a_real_denial_is_doubted_in_distress_alone() {
        assert_eq!(pauses(Sign::Ambiguous401, false), [0; 0]);
        assert_eq!(pauses(Sign::Ambiguous401, true).len(), 8);
        assert_eq!(pauses(Sign::PoisonedToken, false), [0]);
        assert_eq!(pauses(Sign::PoisonedToken, true), [200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
    }

    #[test]
    fn what_the_registry_asks_for_is_obeyed_and_is_no_reason_to_hurry() {
        let mut tries = Tries::default();
        let mut pause = |asked| tries.pause_after(Sign::TooManyRequests, false, asked, HIGH).unwrap().as_millis();
        assert_eq!([pause(Some(Duration::from_secs(7))), pause(Some(Duration::ZERO)), pause(None)], [7000, 400, 800]);
    }

    #[test]
    fn a_head_that_a_get_vouched_for_is_denied_three_times_more_at_most() {
        let mut tries = Tries::default();
        assert!(tries.is_unexplained(Sign::Unseen401));
        assert_eq!(tries.pause_after(Sign::Unseen401, false, None, HIGH), Some(Duration::ZERO));
        tries.vouch();
        assert!(!tries.is_unexplained(Sign::Unseen401));
        let mut pause = || tries.pause_after(Sign::Unseen401, false, None, HIGH).map(|pause| pause.as_millis());
        assert_eq!([pause(), pause(), pause()], [Some(200), Some(400), None]);
    }

    /// Three poor tokens make distress once their credentials prove good, in either order.
    #[test]
    fn doubtful_signs_make_distress_once_their_credentials_prove_good() {
        let now = Moment::default();
        for is_proved_first in [true, false] {
            let repair = Repair::new(true);
            let needs = repair.key(&[b"Basic eDp5"]);
            let prove = || repair.prove(needs, now);
            if is_proved_first {
                prove();
            }
            for subject in [&b"a"[..], b"b", b"c"] {
                assert!(!repair.is_distressed(now), "a wrong password, or one or two deleted projects");
                let (sign, subject) = (Sign::PoisonedToken, repair.key(&[subject]));
                repair.doubt(Doubt { sign, subject, needs, at: now });
            }
            assert_eq!(repair.is_distressed(now), is_proved_first);
            prove();
            assert!(repair.is_distressed(now));
        }
    }
}
