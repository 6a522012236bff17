//! Whether a quiet tunnel may be taken for a request that waits, and after which pause. Nothing else decides that.
//!
//! The evidence about a tunnel makes a [`Grade`], and the grade a pause, counted from the last byte. No clock and no socket is
//! read here. `tunnel` asks and tells what came of it; `proxy::route` finds the policy of a registry; `app` makes it.
//!
//! | grade | evidence | why it is safe | pause | test |
//! |---|---|---|---|---|
//! | untouched | no byte either way | the tunnel has no state: the registry's connection is opened again when the first byte comes (parked) | `idle_after` | `reclaim::an_unused_tunnel_gives_way_after_its_pause` |
//! | goodbye | one side said that it closes | nothing follows | `idle_after` | `histories::a_goodbye_is_neither_request_nor_answer` |
//! | unused | the handshake ended, no request | a client that wants the connection asks at once | `unused_after`; 1 s where few requests of its client come late | `live_pulls::clients_that_take_their_time_before_a_request_are_never_cut` |
//! | answered | an answer as long as others after which the client asked again | it has ended | `idle_after` | `answers::tests::an_answer_is_known_by_two_that_ended_like_it` |
//! | silent | an answer as long as others after which nothing came for `unsure_after`; or after which the client asked again, if it is one record | it has most likely ended, and none like it went on; a single record may be a head whose body stalls | `unused_after` | `answers::tests::silent_answers_are_believed_less_and_until_one_goes_on`, `live_pulls::a_head_whose_body_stalls_is_not_taken_for_a_short_answer` |
//! | short end | a short last record, in a tunnel in which short ones are rare | a sender with more to say fills its records | `idle_after` | `properties::a_short_end_is_believed_only_where_short_records_are_rare` |
//! | unsure | none of these | nobody stalls that long | `unsure_after` | `live_pulls::downloads_that_stall_are_never_cut` |
//! | handshaking | the handshake has begun and not ended | pullers give it 10 s | `unsure_after`, 10 s at least | `tests::grades_and_pauses` |
//! | maybe answered | a first request, then one record that may be a session ticket | few registries think that long, none of them in the first record | 75 s | `histories::a_presumed_ticket_after_a_request_may_be_its_answer` |
//! | stuck | half a record of the client's, or bytes that the client does not take | it does not move | `stall_timeout` | `stalls::a_client_that_takes_nothing_keeps_its_tunnel_no_longer_than_a_stall` |
//! | slow | the client takes or sends less than `queue.least_rate` of what it owes | the operator said so | once it is `stall_timeout` behind | `stalls::a_client_slower_than_the_least_rate_gives_its_slot_up` |
//! | in flight | a request without an answer | it is not | never | `reclaim::a_tunnel_with_a_request_in_flight_is_never_taken` |
//!
//! How soon a client asks after its handshake is measured with `learn`: of its tunnels that got no request for half a second,
//! those that got one in the next half, those that got one in the two seconds after that, and those that did not or were taken
//! before they could. Where at most a quarter came in that half (or none of six), and later ones are no more than chance would
//! have it, a tunnel without a request is one that lost a race of dials, and is as safe as one after an answer.
//!
//! Right after a byte in another tunnel of its client none is taken: requests of a client come together. Nor is one whose client, in
//! this machine, has yet to read what came, for it may ask as soon as it has
//! (`live_pulls::a_client_that_has_yet_to_read_its_answer_is_not_idle`).
//!
//! A reclaim that was a mistake is seen: a request that crosses our FIN, or more of an answer. With `learn` it doubles the
//! pauses of its client, those of unsure tunnels or those of the others; a thousand reclaims without one halve them again. The other
//! pauses never fall below the settings.

mod answers;
mod caution;
mod client_debt;

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use self::answers::AnswerShape;
use self::answers::{Answers, Ended};
pub use self::caution::Pulse;
use self::caution::{Caution, Unasked};
pub use self::client_debt::ClientDebt;
pub use crate::metrics::Grade;

/// Pullers give the TLS handshake that long.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The shortest pause of a client whose requests come at once; when it is known that no request came at once; and when one comes by
/// chance.
const AT_ONCE: Duration = Duration::from_secs(1);
const NOT_AT_ONCE: Duration = Duration::from_millis(500);
const LATER: Duration = Duration::from_secs(3);

/// The pause where one record may be a session ticket or a whole answer.
const MAYBE_ANSWERED: Duration = Duration::from_secs(75);

/// The settings: how long a tunnel must have been quiet before it may be taken while somebody waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pauses {
    /// The last request was answered.
    pub idle: Duration,
    /// No request was sent.
    pub unused: Duration,
    /// An answer may be under way.
    pub unsure: Duration,
    /// A request is under way that does not move.
    pub stalled: Duration,
    /// The bytes a second below which a client is too slow, if any.
    pub least_rate: Option<NonZeroU64>,
    /// Whether mistakes lengthen the pauses of the client that they hit.
    pub learn: bool,
}

/// The state of a tunnel, by its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Doing {
    /// The client has asked nothing: no byte passed at all, or the handshake is over and at most session tickets came
    /// since.
    Unused,
    /// The client asked, and the server spoke last, on a complete record that looks like the last one of an answer.
    Idle,
    /// The server spoke last, but perhaps not to the end; or it cannot be told who is to speak next.
    Unsure,
    /// The client spoke last, or the handshake is under way: somebody waits for the server.
    InFlight,
    /// One side said goodbye while nothing was in flight, or the server did, so that nothing will be answered.
    Closing,
}

/// How far a tunnel has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// No byte passed.
    Untouched,
    /// The handshake has begun and not ended.
    Handshaking,
    /// Requests may have been sent.
    Over,
}

/// All that is known of a tunnel in which nothing moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Its state, by its records.
    pub doing: Doing,
    /// How far it has come.
    pub opening: Opening,
    /// The client has sent half a record.
    pub request_is_cut: bool,
    /// A record since the request may be a session ticket, or the whole answer.
    pub perhaps_answered: bool,
    /// The last request and its answer, if that may be over.
    pub exchange: Option<AnswerShape>,
    /// The answer ends with a short record, and those are rare in this tunnel.
    pub ends_short: bool,
}

/// A lesson of one tunnel about the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lesson {
    /// After this answer the client asked again: it was whole.
    Answer(AnswerShape),
    /// The server sends session tickets.
    Tickets,
    /// A record that looked like a session ticket was an answer.
    NoTickets,
}

impl Grade {
    /// Whether the client has not taken all, so that its connection is reset and not closed in order.
    pub fn cuts(self) -> bool {
        matches!(self, Grade::Stuck | Grade::Slow)
    }

    fn is_sure(self) -> bool {
        !matches!(self, Grade::Unsure | Grade::Handshaking | Grade::MaybeAnswered)
    }
}

/// The pauses of the tunnels of one registry, and the lessons of those tunnels.
#[derive(Debug)]
pub struct ReclaimPolicy {
    pauses: Pauses,
    /// Shared with the policy after a reload.
    learned: Arc<Mutex<Learned>>,
}

#[derive(Debug, Default)]
struct Learned {
    answers: Answers,
    caution: Caution,
    tickets: u32,
    no_tickets: u32,
    parked: Arc<AtomicUsize>,
}

/// A parked tunnel, for as long as this stands. It counts across reloads.
#[derive(Debug)]
pub struct ParkedTunnel(Arc<AtomicUsize>);

impl Drop for ParkedTunnel {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ReclaimPolicy {
    /// A policy that has learned nothing.
    pub fn new(pauses: Pauses) -> ReclaimPolicy {
        ReclaimPolicy { pauses, learned: Arc::default() }
    }

    /// The policy of the same registry with other settings.
    pub fn with(&self, pauses: Pauses) -> ReclaimPolicy {
        ReclaimPolicy { pauses, learned: self.learned.clone() }
    }

    /// A client of a tunnel that owes nothing yet.
    pub fn debt(&self) -> ClientDebt {
        ClientDebt::new(self.pauses.least_rate, self.pauses.stalled)
    }

    /// The pulse that all tunnels of this client share.
    pub fn pulse(&self, client: &str) -> Pulse {
        self.learned().caution.pulse(client)
    }

    pub fn pauses(&self) -> Pauses {
        self.pauses
    }

    /// How sure it is that nothing is under way.
    pub fn grade(&self, seen: &Observation) -> Grade {
        match seen.doing {
            _ if seen.opening == Opening::Untouched => Grade::Untouched,
            _ if seen.opening == Opening::Handshaking => Grade::Handshaking,
            Doing::Unused => Grade::Unused,
            Doing::Closing => Grade::Goodbye,
            Doing::InFlight if seen.perhaps_answered => Grade::MaybeAnswered,
            Doing::InFlight if seen.request_is_cut => Grade::Stuck,
            Doing::InFlight => Grade::InFlight,
            Doing::Idle | Doing::Unsure => match seen.exchange {
                Some(exchange) => match self.learned().answers.ended_like(exchange) {
                    Some(Ended::Asked) if exchange.head.is_some() => Grade::Answered,
                    _ if seen.ends_short => Grade::ShortEnd,
                    Some(_) => Grade::Silent,
                    None => Grade::Unsure,
                },
                None => Grade::Unsure,
            },
        }
    }

    /// How long a tunnel of this client must have been quiet; `None` for ever.
    pub fn pause(&self, grade: Grade, client: &str) -> Option<Duration> {
        let Pauses { idle, unused, unsure, stalled, learn, .. } = self.pauses;
        let learned = learn.then(|| self.learned());
        let asks_at_once = learned.as_ref().is_some_and(|learned| learned.caution.asks_at_once(client));
        let pause = match grade {
            Grade::Untouched | Grade::Goodbye | Grade::Answered | Grade::ShortEnd => idle,
            Grade::Unused if asks_at_once => unused.min(idle.max(AT_ONCE)),
            Grade::Unused => unused,
            Grade::Silent => unused.max(idle),
            Grade::Unsure => unsure,
            Grade::Handshaking => unsure.max(HANDSHAKE),
            Grade::MaybeAnswered => unsure.max(MAYBE_ANSWERED).min(stalled),
            Grade::Stuck => return Some(stalled),
            Grade::Slow => return Some(Duration::ZERO),
            Grade::InFlight => return None,
        };
        Some(pause * learned.map_or(1, |learned| learned.caution.factor(client, grade.is_sure())))
    }

    /// Counts a tunnel as parked for as long as the caller keeps this.
    pub fn park(&self) -> ParkedTunnel {
        let parked = self.learned().parked.clone();
        parked.fetch_add(1, Ordering::Relaxed);
        ParkedTunnel(parked)
    }

    /// How many tunnels are parked now.
    pub fn parked(&self) -> usize {
        self.learned().parked.load(Ordering::Relaxed)
    }

    /// Whether tunnels have shown that the registry sends no session tickets.
    pub fn is_ticketless(&self) -> bool {
        let learned = self.learned();
        learned.tickets == 0 && learned.no_tickets > 1
    }

    /// A tunnel taught this.
    pub fn learn(&self, lesson: Lesson) {
        let mut learned = self.learned();
        match lesson {
            Lesson::Answer(exchange) => learned.answers.ended(exchange),
            Lesson::Tickets => learned.tickets = learned.tickets.saturating_add(1),
            Lesson::NoTickets => learned.no_tickets = learned.no_tickets.saturating_add(1),
        }
    }

    /// After this answer nothing came until its tunnel was taken as [`Grade::Unsure`], and nothing crossed: it was whole. An answer
    /// of one record teaches nothing by that: it may be a head whose body stalls.
    pub fn ended_in_silence(&self, exchange: AnswerShape) {
        if exchange.head.is_some() {
            self.learned().answers.was_silent(exchange);
        }
    }

    /// An answer that was graded [`Grade::Answered`] or [`Grade::Silent`] went on.
    pub fn went_on(&self, exchange: AnswerShape) {
        self.learned().answers.went_on(exchange);
    }

    /// A tunnel of this client lay so long without a request after its handshake; then it got one, or was taken.
    pub fn unasked(&self, client: &str, quiet: Duration, asked: bool) {
        let fate = match asked {
            true if quiet < AT_ONCE => Unasked::Late,
            true if quiet < LATER => Unasked::Later,
            _ => Unasked::Never,
        };
        if quiet >= NOT_AT_ONCE && (asked || quiet >= AT_ONCE) {
            self.learned().caution.unasked(client, fate);
        }
    }

    /// A tunnel of this client was taken, and that was a mistake or was none.
    pub fn reclaimed(&self, client: &str, grade: Grade, mistake: bool) {
        self.learned().caution.reclaimed(client, grade.is_sure(), mistake);
    }

    fn learned(&self) -> std::sync::MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSES: Pauses = Pauses {
        idle: Duration::from_secs(1),
        unused: Duration::from_secs(3),
        unsure: Duration::from_secs(10),
        stalled: Duration::from_secs(300),
        least_rate: None,
        learn: true,
    };

    const QUIET: Observation = Observation {
        doing: Doing::Unsure,
        opening: Opening::Over,
        request_is_cut: false,
        perhaps_answered: false,
        exchange: None,
        ends_short: false,
    };

    const PIECE: AnswerShape = AnswerShape { request: 700, answer: 4_194_904, head: Some(600) };

    const FIRST_BYTE: AnswerShape = AnswerShape { request: 700, answer: 501, head: None };

    #[test]
    fn grades_and_pauses() {
        let policy = ReclaimPolicy::new(PAUSES);
        for answer in [PIECE, FIRST_BYTE].repeat(2) {
            policy.learn(Lesson::Answer(answer));
        }
        let half = AnswerShape { answer: PIECE.answer / 2, ..PIECE };
        let in_flight = Observation { doing: Doing::InFlight, ..QUIET };
        for (seen, grade, seconds) in [
            (Observation { doing: Doing::Unused, opening: Opening::Untouched, ..QUIET }, Grade::Untouched, Some(1)),
            (Observation { doing: Doing::Closing, ..QUIET }, Grade::Goodbye, Some(1)),
            (Observation { doing: Doing::Unused, ..QUIET }, Grade::Unused, Some(3)),
            (Observation { exchange: Some(PIECE), ..QUIET }, Grade::Answered, Some(1)),
            (Observation { exchange: Some(FIRST_BYTE), ..QUIET }, Grade::Silent, Some(3)),
            (Observation { exchange: Some(half), ..QUIET }, Grade::Unsure, Some(10)),
            (Observation { exchange: Some(half), ends_short: true, ..QUIET }, Grade::ShortEnd, Some(1)),
            (Observation { doing: Doing::Idle, ..QUIET }, Grade::Unsure, Some(10)),
            (QUIET, Grade::Unsure, Some(10)),
            (Observation { opening: Opening::Handshaking, ..in_flight }, Grade::Handshaking, Some(10)),
            (Observation { perhaps_answered: true, ..in_flight }, Grade::MaybeAnswered, Some(75)),
            (Observation { request_is_cut: true, ..in_flight }, Grade::Stuck, Some(300)),
            (in_flight, Grade::InFlight, None),
        ] {
            assert_eq!(policy.grade(&seen), grade, "{seen:?}");
            assert_eq!(policy.pause(grade, "client"), seconds.map(Duration::from_secs), "{grade:?}");
        }
    }

    /// The settings of an operator hold as they are, but for a handshake.
    #[test]
    fn short_pauses_are_taken_as_they_are() {
        let short = Duration::from_millis(20);
        let policy = ReclaimPolicy::new(Pauses { idle: short, unused: short, unsure: short, stalled: short, ..PAUSES });
        for grade in [Grade::Untouched, Grade::Unused, Grade::Answered, Grade::Unsure, Grade::Stuck] {
            assert_eq!(policy.pause(grade, "client"), Some(short), "{grade:?}");
        }
        assert_eq!(policy.pause(Grade::Handshaking, "client"), Some(HANDSHAKE));
    }

    #[test]
    fn a_mistake_doubles_the_pauses_of_its_client_unless_learning_is_off() {
        for (learn, expected) in [(true, 2), (false, 1)] {
            let policy = ReclaimPolicy::new(Pauses { learn, ..PAUSES });
            policy.reclaimed("one", Grade::Unused, true);
            assert_eq!(policy.pause(Grade::Answered, "one"), Some(PAUSES.idle * expected));
            assert_eq!(policy.pause(Grade::Answered, "other"), Some(PAUSES.idle));
            assert_eq!(policy.pause(Grade::Stuck, "one"), Some(PAUSES.stalled));
            // A reload with other settings does not forget it.
            let longer = policy.with(Pauses { idle: PAUSES.idle * 3, ..policy.pauses() });
            assert_eq!(longer.pause(Grade::Answered, "one"), Some(PAUSES.idle * 3 * expected));
        }
    }

    #[test]
    fn the_pause_of_an_unused_tunnel_is_short_where_no_request_comes_late() {
        const SECOND: Duration = Duration::from_secs(1);
        let moments = |policy: &ReclaimPolicy, all: &[(u64, bool)]| {
            for (quiet, asked) in all.repeat(20) {
                policy.unasked("client", Duration::from_millis(quiet), asked);
            }
            policy.pause(Grade::Unused, "client").unwrap()
        };
        let policy = ReclaimPolicy::new(PAUSES);
        assert_eq!(moments(&policy, &[(499, true), (499, false), (999, false)]), PAUSES.unused, "too soon to tell");
        assert_eq!(moments(&policy, &[(1000, true), (2999, true)]), PAUSES.unused, "they would have been cut");
        assert_eq!(moments(&policy, &[(1000, false), (3000, true)]), SECOND);
        assert_eq!(policy.pause(Grade::Unused, "other"), Some(PAUSES.unused));
        policy.reclaimed("client", Grade::Unused, true);
        assert_eq!(policy.pause(Grade::Unused, "client"), Some(SECOND * 2), "a mistake counts here, too");
        assert_eq!(moments(&policy, &[(500, true), (999, true), (3000, false)]), PAUSES.unused * 2);
        let unlearned = ReclaimPolicy::new(Pauses { learn: false, ..PAUSES });
        assert_eq!(moments(&unlearned, &[(3000, false)]), PAUSES.unused);
        let longer = ReclaimPolicy::new(Pauses { idle: SECOND * 2, ..PAUSES });
        assert_eq!(moments(&longer, &[(3000, false)]), SECOND * 2, "never below the pause after an answer");
    }

    #[test]
    fn two_silent_answers_teach_their_length_and_heads_alone_teach_nothing() {
        let head = AnswerShape { head: None, answer: 600, ..PIECE };
        for (shape, before, after) in [(PIECE, Grade::Unsure, Grade::Silent), (head, Grade::Unsure, Grade::Unsure)] {
            let policy = ReclaimPolicy::new(PAUSES);
            let seen = Observation { exchange: Some(shape), ..QUIET };
            policy.ended_in_silence(shape);
            assert_eq!(policy.grade(&seen), before, "{shape:?}");
            policy.ended_in_silence(shape);
            assert_eq!(policy.grade(&seen), after, "{shape:?}");
        }
    }

    /// One proof of tickets outweighs any number of hints that there are none.
    #[test]
    fn a_registry_that_sends_tickets_once_is_never_ticketless() {
        let policy = ReclaimPolicy::new(PAUSES);
        assert!(!policy.is_ticketless());
        policy.learn(Lesson::NoTickets);
        policy.learn(Lesson::NoTickets);
        assert!(policy.is_ticketless());
        policy.learn(Lesson::Tickets);
        assert!(!policy.is_ticketless());
    }
}
