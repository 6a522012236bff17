//! Recent knowledge about credentials: hashes, keyed anew in each process, each for a minute at most.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use crate::admission::Moment;

/// How long credentials and denials are remembered.
pub const MEMORY: Duration = Duration::from_secs(60);
/// The largest number of hashes. Beyond it, none is added until some expire.
const MAX_REMEMBERED: usize = 10_000;

/// The hash of what is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Keys that are remembered.
#[derive(Debug, Default)]
pub struct Memory {
    until: HashMap<Key, Moment>,
}

/// Makes keys: nobody outside of the process can tell which text has which.
#[derive(Debug, Default)]
pub struct Keys(RandomState);

impl Keys {
    pub fn of(&self, texts: &[&[u8]]) -> Key {
        Key(self.0.hash_one(texts))
    }
}

impl Memory {
    /// Remembers it from now on, for so long.
    pub fn remember(&mut self, key: Key, span: Duration, now: Moment) {
        if self.until.len() >= MAX_REMEMBERED {
            self.until.retain(|_, until| *until > now);
        }
        if self.until.len() < MAX_REMEMBERED || self.until.contains_key(&key) {
            self.until.insert(key, now + span);
        }
    }

    /// Tells whether it was known until now.
    pub fn forget(&mut self, key: Key, now: Moment) -> bool {
        self.until.remove(&key).is_some_and(|until| until > now)
    }

    pub fn knows(&self, key: Key, now: Moment) -> bool {
        self.until.get(&key).is_some_and(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    #[test]
    fn a_key_is_remembered_for_a_minute_for_these_very_texts() {
        let (keys, mut memory) = (Keys::default(), Memory::default());
        let key = keys.of(&[b"https://one.test", b"Basic eDp5", b"repository:a:pull"]);
        assert!(!memory.knows(key, at(0)));
        memory.remember(key, MEMORY, at(0));
        assert!(memory.knows(keys.of(&[b"https://one.test", b"Basic eDp5", b"repository:a:pull"]), at(59)));
        for other in [
            [&b"https://two.test"[..], b"Basic eDp5", b"repository:a:pull"],
            [b"https://one.test", b"Basic eDp6", b"repository:a:pull"],
            [b"https://one.test", b"Basic eDp5", b"repository:b:pull"],
        ] {
            assert!(!memory.knows(keys.of(&other), at(59)), "another host, user or scope");
        }
        assert!(!memory.knows(key, at(60)));
        memory.remember(key, MEMORY, at(60));
        assert!(memory.forget(key, at(61)) && !memory.forget(key, at(61)));
        assert!(!memory.knows(key, at(61)));
        memory.remember(key, Duration::from_secs(5), at(61));
        assert!(memory.knows(key, at(65)) && !memory.forget(key, at(66)));
    }

    #[test]
    fn the_memory_is_bounded() {
        let (keys, mut memory) = (Keys::default(), Memory::default());
        for number in 0..=MAX_REMEMBERED {
            memory.remember(keys.of(&[number.to_string().as_bytes()]), MEMORY, at(0));
        }
        assert_eq!(memory.until.len(), MAX_REMEMBERED);
        let late = keys.of(&[b"late"]);
        memory.remember(late, MEMORY, at(61));
        assert!(memory.until.len() == 1 && memory.knows(late, at(61)));
    }
}
