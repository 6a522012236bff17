//! How many requests of each peer, and of each client of a peer, wait: who is the greatest where too many wait.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::sync::Arc;

use super::maps::TextMap;
use super::request::{ClientId, Place};

#[derive(Debug, Default)]
pub(super) struct ClientCounts {
    peers: Counted<Arc<str>, OfPeer>,
}

type OfPeer = Counted<Option<Arc<str>>, BTreeSet<Place>>;

/// Keys that are counted. Those with a count of 0 are forgotten.
#[derive(Debug, Default)]
struct Counted<K, T> {
    all: TextMap<K, (usize, T)>,
    by_count: BTreeSet<(usize, K)>,
}

impl<K: Clone + Eq + Hash + Ord, T: Default> Counted<K, T> {
    fn add(&mut self, key: &K) -> &mut T {
        let (count, inner) = self.all.entry(key.clone()).or_default();
        self.by_count.remove(&(*count, key.clone()));
        *count += 1;
        self.by_count.insert((*count, key.clone()));
        inner
    }

    fn subtract(&mut self, key: &K, change: impl FnOnce(&mut T)) {
        let Some((count, inner)) = self.all.get_mut(key) else { return };
        change(inner);
        self.by_count.remove(&(*count, key.clone()));
        *count -= 1;
        if *count == 0 {
            self.all.remove(key);
        } else {
            self.by_count.insert((*count, key.clone()));
        }
    }

    /// The value of the greatest client; among equals, of `preferred`.
    fn greatest(&self, preferred: &K) -> Option<&T> {
        let (most, key) = self.by_count.last()?;
        match self.all.get(preferred) {
            Some((count, inner)) if count == most => Some(inner),
            _ => self.all.get(key).map(|(_, inner)| inner),
        }
    }
}

impl ClientCounts {
    pub fn add(&mut self, client: &ClientId, place: Place) {
        let (peer, name) = client.parts();
        self.peers.add(peer).add(name).insert(place);
    }

    pub fn remove(&mut self, client: &ClientId, place: Place) {
        let (peer, name) = client.parts();
        self.peers.subtract(peer, |names| {
            names.subtract(name, |places| {
                places.remove(&place);
            });
        });
    }

    /// The newest request of the client with the most requests, in the peer with the most. Of equals it is the one of
    /// `newcomer`, so that nobody is refused in favour of one who has as many.
    pub fn newest_of_greatest(&self, newcomer: &ClientId) -> Option<Place> {
        let (peer, name) = newcomer.parts();
        self.peers.greatest(peer)?.greatest(name)?.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::super::moment::Moment;
    use super::*;

    #[test]
    fn the_newest_of_the_greatest_client_in_the_greatest_peer_is_found() {
        let mut counts = ClientCounts::default();
        let place = |number| Place::new(Moment::default(), number);
        let (modest, greedy) = (ClientId::from("modest"), ClientId::from("greedy"));
        let named = |name| ClientId::named("greedy", name);
        counts.add(&modest, place(9));
        assert_eq!(counts.newest_of_greatest(&modest), Some(place(9)));
        counts.add(&greedy, place(1));
        assert_eq!(counts.newest_of_greatest(&greedy), Some(place(1)), "of equals it is the newcomer's own");
        for number in 2..5 {
            counts.add(&named("a"), place(number));
        }
        counts.add(&named("b"), place(8));
        assert_eq!(counts.newest_of_greatest(&modest), Some(place(4)));
        for number in 2..5 {
            counts.remove(&named("a"), place(number));
        }
        assert_eq!(counts.newest_of_greatest(&named("b")), Some(place(8)));
        counts.remove(&named("b"), place(8));
        counts.remove(&greedy, place(1));
        counts.remove(&modest, place(9));
        assert!(counts.peers.all.is_empty() && counts.peers.by_count.is_empty());
    }
}
