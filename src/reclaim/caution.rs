//! Clients that were hit by a mistaken reclaim have longer pauses for a while.

use std::collections::HashMap;

/// Reclaims without a mistake after which the pauses are halved again.
const CLEAN_RECLAIMS: u32 = 1000;
/// The pauses are doubled so often at most.
const MAX_DOUBLINGS: u32 = 6;
/// Clients that are remembered. Beyond, the least cautious is forgotten.
const MAX_CLIENTS: usize = 1024;

/// How careful one registry is with each of its clients.
#[derive(Debug, Default)]
pub(super) struct Caution {
    clients: HashMap<Box<str>, Level>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Level {
    doublings: u32,
    clean: u32,
}

impl Caution {
    /// By how much the pauses of this client are longer.
    pub fn factor(&self, client: &str) -> u32 {
        self.clients.get(client).map_or(1, |level| 1 << level.doublings)
    }

    /// A tunnel of this client was taken; by mistake or not.
    pub fn reclaimed(&mut self, client: &str, mistake: bool) {
        let Some(level) = self.clients.get_mut(client) else {
            if mistake {
                self.make_room();
                self.clients.insert(client.into(), Level { doublings: 1, clean: 0 });
            }
            return;
        };
        if mistake {
            *level = Level { doublings: (level.doublings + 1).min(MAX_DOUBLINGS), clean: 0 };
            return;
        }
        level.clean += 1;
        if level.clean >= CLEAN_RECLAIMS {
            *level = Level { doublings: level.doublings - 1, clean: 0 };
        }
        if level.doublings == 0 {
            self.clients.remove(client);
        }
    }

    fn make_room(&mut self) {
        if self.clients.len() >= MAX_CLIENTS {
            let least = self.clients.iter().min_by_key(|(_, level)| **level).map(|(client, _)| client.clone());
            least.and_then(|client| self.clients.remove(&client));
        }
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
        clean(&mut caution, 1);
        assert!(caution.factor("a") == 1 && caution.clients.is_empty());
    }

    #[test]
    fn both_the_factor_and_the_clients_are_bounded() {
        let mut caution = Caution::default();
        (0..20).for_each(|_| caution.reclaimed("a", true));
        assert_eq!(caution.factor("a"), 64);
        (0..2 * MAX_CLIENTS).for_each(|client| caution.reclaimed(&client.to_string(), true));
        assert_eq!((caution.clients.len(), caution.factor("a")), (MAX_CLIENTS, 64));
    }
}
