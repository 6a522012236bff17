//! The clients of one registry: how often it was a mistake to reclaim a tunnel, and whether they ask at once.

use std::collections::HashMap;

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

/// The registry's experience with each of its clients.
#[derive(Debug, Default)]
pub(super) struct Caution {
    clients: HashMap<Box<str>, Experience>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Experience {
    doublings: u32,
    clean: u32,
    /// Tunnels that got no request for a while after the handshake.
    unasked: u32,
    /// Those of them that got one soon after that while.
    late: u32,
}

impl Caution {
    /// By how much the pauses of this client are longer.
    pub fn factor(&self, client: &str) -> u32 {
        self.clients.get(client).map_or(1, |known| 1 << known.doublings)
    }

    /// A tunnel of this client was taken; by mistake or not.
    pub fn reclaimed(&mut self, client: &str, mistake: bool) {
        if mistake {
            let known = self.known(client);
            (known.doublings, known.clean) = ((known.doublings + 1).min(MAX_DOUBLINGS), 0);
        } else if let Some(known) = self.clients.get_mut(client).filter(|known| known.doublings > 0) {
            known.clean += 1;
            if known.clean >= CLEAN_RECLAIMS {
                (known.doublings, known.clean) = (known.doublings - 1, 0);
            }
        }
    }

    /// A tunnel of this client got no request for a while; soon after it did, or did not.
    pub fn unasked(&mut self, client: &str, late: bool) {
        let known = self.known(client);
        if known.unasked >= 2 * MIN_UNASKED {
            (known.unasked, known.late) = (known.unasked / 2, known.late / 2);
        }
        (known.unasked, known.late) = (known.unasked + 1, known.late + u32::from(late));
    }

    /// Whether a tunnel of this client that got no request for a while hardly gets one soon.
    pub fn asks_at_once(&self, client: &str) -> bool {
        let is_known = |known: &&Experience| known.unasked >= MIN_UNASKED;
        self.clients.get(client).filter(is_known).is_some_and(|known| known.late * LATE_REQUESTS <= known.unasked)
    }

    fn known(&mut self, client: &str) -> &mut Experience {
        if self.clients.len() >= MAX_CLIENTS && !self.clients.contains_key(client) {
            let least = self.clients.iter().min_by_key(|(_, known)| **known).map(|(client, _)| client.clone());
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
        let mut caution = Caution::default();
        let clean = |caution: &mut Caution, times| (0..times).for_each(|_| caution.reclaimed("a", false));
        assert_eq!(caution.factor("a"), 1);
        caution.reclaimed("a", true);
        clean(&mut caution, 999);
        assert_eq!(caution.factor("a"), 2);
        caution.reclaimed("a", true);
        assert_eq!(caution.factor("a"), 4);
        clean(&mut caution, 1000);
        assert_eq!(caution.factor("a"), 2);
        clean(&mut caution, 999);
        assert_eq!((caution.factor("a"), caution.factor("b")), (2, 1));
        clean(&mut caution, 2000);
        assert_eq!(caution.factor("a"), 1);
    }

    #[test]
    fn both_the_factor_and_the_clients_are_bounded() {
        let mut caution = Caution::default();
        (0..20).for_each(|_| caution.reclaimed("a", true));
        assert_eq!(caution.factor("a"), 64);
        (0..2 * MAX_CLIENTS).for_each(|client| caution.reclaimed(&client.to_string(), true));
        (0..2 * MAX_CLIENTS).for_each(|client| caution.unasked(&client.to_string(), true));
        assert_eq!((caution.clients.len(), caution.factor("a")), (MAX_CLIENTS, 64));
    }

    /// Late requests of a slow client count for long, and are outweighed by tunnels that got none.
    #[test]
    fn a_client_asks_at_once_if_few_of_its_requests_are_late() {
        let mut caution = Caution::default();
        let unasked = |caution: &mut Caution, late, times| (0..times).for_each(|_| caution.unasked("a", late));
        unasked(&mut caution, false, 15);
        assert!(!caution.asks_at_once("a"), "too few are known");
        unasked(&mut caution, false, 1);
        assert!(caution.asks_at_once("a") && !caution.asks_at_once("b"));
        unasked(&mut caution, true, 5);
        assert!(caution.asks_at_once("a"), "5 of 21");
        unasked(&mut caution, true, 1);
        assert!(!caution.asks_at_once("a"), "6 of 22");
        unasked(&mut caution, false, 50);
        assert!(caution.asks_at_once("a"));
        unasked(&mut caution, true, 200);
        assert!(!caution.asks_at_once("a"));
    }
}
