//! The clients of one registry: how often it was a mistake to reclaim a tunnel, whether they ask at once, and when they moved.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Reclaims without a mistake after which the pauses are halved again.
const CLEAN_RECLAIMS: u32 = 1000;
/// The pauses are doubled so often at most.
const MAX_DOUBLINGS: u32 = 6;
/// Clients that are remembered. Beyond, the least cautious is forgotten.
const MAX_CLIENTS: usize = 1024;
/// Tunnels without a request that have to be known before they tell anything; twice as many are remembered, about.
const MIN_UNASKED: u32 = 16;
/// At most one in so many of them may have got a late request.
const LATE_REQUESTS: u32 = 4;
/// So many tell as much, if none of them got one: where half of them do, that is rarer than 4 of 16.
const MIN_UNASKED_AND_NONE_LATE: u32 = 6;

/// The registry's experience with each of its clients.
#[derive(Debug, Default)]
pub(super) struct Caution {
    clients: HashMap<Box<str>, Experience>,
}

/// When a client moved last, in any of its tunnels. Its requests come together: one follows the end of another answer, or
/// several open at once, so one is most likely to cross our FIN in the moment after another tunnel moved.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    pub fn beat(&self, now: Duration) {
        self.0.store(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long ago the last byte moved.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_nanos(self.0.load(Ordering::Relaxed)))
    }
}

/// How often pauses are doubled, and the reclaims since then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Doublings {
    times: u32,
    clean: u32,
}

#[derive(Clone, Debug, Default)]
struct Experience {
    sure: Doublings,
    unsure: Doublings,
    /// Tunnels that got no request for a while after the handshake.
    unasked: u32,
    /// Those of them that got one soon after that while.
    late: u32,
    /// Those that got one later, which a short pause would have cut.
    later: u32,
    pulse: Pulse,
}

/// The fate of a tunnel that got no request for a while after its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unasked {
    /// It got one soon after that while.
    Late,
    /// It got one within four times as long after that.
    Later,
    /// It got none in all that time, or was taken before.
    Never,
}

impl Experience {
    /// Whether tunnels get their requests at once or by chance. A pool uses a spare connection at any time: in a time four times
    /// as long four times as often, at most. More of them later than soon are those of a client that is slow.
    fn asks_at_once(&self) -> bool {
        let Experience { unasked, late, later, .. } = *self;
        let few_are_late = unasked >= MIN_UNASKED && late * LATE_REQUESTS <= unasked;
        let none_is_late = unasked >= MIN_UNASKED_AND_NONE_LATE && late == 0;
        (few_are_late || none_is_late) && later <= 4 * late + unasked / 4
    }
}

impl Doublings {
    fn note(&mut self, mistake: bool) {
        self.clean += 1;
        if mistake {
            *self = Doublings { times: (self.times + 1).min(MAX_DOUBLINGS), clean: 0 };
        } else if self.clean >= CLEAN_RECLAIMS {
            *self = Doublings { times: self.times.saturating_sub(1), clean: 0 };
        }
    }
}

impl Caution {
    /// By how much the pauses of this client are longer, of tunnels that are surely idle or of the others.
    pub fn factor(&self, client: &str, sure: bool) -> u32 {
        let known = self.clients.get(client);
        known.map_or(1, |known| 1 << if sure { known.sure.times } else { known.unsure.times })
    }

    /// A tunnel of this client was taken; by mistake or not. That says nothing of the pauses of the other sort.
    pub fn reclaimed(&mut self, client: &str, sure: bool, mistake: bool) {
        let known = self.known(client);
        if sure { known.sure.note(mistake) } else { known.unsure.note(mistake) }
    }

    /// A tunnel of this client got no request for a while, and this came of it.
    pub fn unasked(&mut self, client: &str, fate: Unasked) {
        let known = self.known(client);
        if known.unasked >= 2 * MIN_UNASKED {
            (known.unasked, known.late, known.later) = (known.unasked / 2, known.late / 2, known.later / 2);
        }
        known.unasked += 1;
        known.late += u32::from(fate == Unasked::Late);
        known.later += u32::from(fate == Unasked::Later);
    }

    /// Whether a tunnel of this client that got no request for a while hardly gets one soon.
    pub fn asks_at_once(&self, client: &str) -> bool {
        self.clients.get(client).is_some_and(Experience::asks_at_once)
    }

    pub fn pulse(&mut self, client: &str) -> Pulse {
        self.known(client).pulse.clone()
    }

    fn known(&mut self, client: &str) -> &mut Experience {
        if self.clients.len() >= MAX_CLIENTS && !self.clients.contains_key(client) {
            let least = self
                .clients
                .iter()
                .min_by_key(|(_, known)| (known.sure.max(known.unsure), known.unasked))
                .map(|(client, _)| client.clone());
            least.and_then(|client| self.clients.remove(&client));
        }
        self.clients.entry(client.into()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mistake_doubles_and_a_thousand_reclaims_without_one_halve() {
        for sure in [false, true] {
            let mut caution = Caution::default();
            let clean = |caution: &mut Caution, times| (0..times).for_each(|_| caution.reclaimed("a", sure, false));
            let factor = |caution: &Caution, client| caution.factor(client, sure);
            assert_eq!(factor(&caution, "a"), 1);
            caution.reclaimed("a", sure, true);
            clean(&mut caution, 999);
            assert_eq!(factor(&caution, "a"), 2);
            caution.reclaimed("a", sure, true);
            assert_eq!(factor(&caution, "a"), 4);
            clean(&mut caution, 1000);
            assert_eq!(factor(&caution, "a"), 2);
            clean(&mut caution, 999);
            assert_eq!((factor(&caution, "a"), factor(&caution, "b")), (2, 1));
            clean(&mut caution, 2000);
            assert_eq!(factor(&caution, "a"), 1);
        }
    }

    #[test]
    fn a_mistake_at_one_sort_of_tunnel_leaves_the_pauses_of_the_other() {
        let mut caution = Caution::default();
        caution.reclaimed("a", true, true);
        assert_eq!((caution.factor("a", true), caution.factor("a", false)), (2, 1));
        (0..2).for_each(|_| caution.reclaimed("a", false, true));
        assert_eq!((caution.factor("a", true), caution.factor("a", false)), (2, 4));
    }

    #[test]
    fn both_the_factor_and_the_clients_are_bounded() {
        let mut caution = Caution::default();
        (0..20).for_each(|_| caution.reclaimed("a", true, true));
        assert_eq!(caution.factor("a", true), 64);
        (0..2 * MAX_CLIENTS).for_each(|client| caution.reclaimed(&client.to_string(), true, true));
        (0..2 * MAX_CLIENTS).for_each(|client| caution.unasked(&client.to_string(), Unasked::Late));
        assert_eq!((caution.clients.len(), caution.factor("a", true)), (MAX_CLIENTS, 64));
    }

    /// Late requests of a slow client count for long, and are outweighed by tunnels that got none.
    #[test]
    fn a_client_asks_at_once_if_few_of_its_requests_are_late() {
        let mut caution = Caution::default();
        let unasked = |caution: &mut Caution, fate, times| (0..times).for_each(|_| caution.unasked("a", fate));
        unasked(&mut caution, Unasked::Never, 5);
        assert!(!caution.asks_at_once("a"), "too few are known");
        unasked(&mut caution, Unasked::Never, 1);
        assert!(caution.asks_at_once("a") && !caution.asks_at_once("b"));
        unasked(&mut caution, Unasked::Late, 1);
        assert!(!caution.asks_at_once("a"), "too few, if one is late");
        unasked(&mut caution, Unasked::Never, 9);
        assert!(caution.asks_at_once("a"), "1 of 16");
        unasked(&mut caution, Unasked::Late, 4);
        assert!(caution.asks_at_once("a"), "5 of 20");
        unasked(&mut caution, Unasked::Late, 1);
        assert!(!caution.asks_at_once("a"), "6 of 21");
        unasked(&mut caution, Unasked::Never, 50);
        assert!(caution.asks_at_once("a"));
        unasked(&mut caution, Unasked::Late, 200);
        assert!(!caution.asks_at_once("a"));
    }

    /// Of a client that is slow all requests come after about the same time, also if that is longer than the short pause.
    #[test]
    fn requests_that_come_later_than_soon_are_those_of_a_slow_client() {
        for (late, later, never, at_once) in
            [(0, 20, 0, false), (0, 2, 6, true), (0, 3, 6, false), (2, 12, 4, true), (1, 9, 6, false), (0, 5, 15, true)]
        {
            let mut caution = Caution::default();
            for (fate, times) in [(Unasked::Late, late), (Unasked::Later, later), (Unasked::Never, never)] {
                (0..times).for_each(|_| caution.unasked("a", fate));
            }
            assert_eq!(caution.asks_at_once("a"), at_once, "{late} late, {later} later, {never} never");
        }
    }

    #[test]
    fn all_tunnels_of_a_client_share_its_pulse() {
        let mut caution = Caution::default();
        let (one, same, other) = (caution.pulse("a"), caution.pulse("a"), caution.pulse("b"));
        one.beat(Duration::from_secs(1));
        let now = Duration::from_millis(1_020);
        assert_eq!([same, other].map(|pulse| pulse.age(now).as_millis()), [20, 1_020]);
    }
}
