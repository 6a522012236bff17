//! Pooled connections: idle slots that the next request with the same key can use, or that are reclaimed for another one.

use std::collections::BTreeSet;
use std::time::Duration;

use super::maps::{NumberMap, TextMap};
use super::moment::Moment;
use super::request::ReuseKey;
use super::slot::SlotId;

/// The idle slots that can be reused, by key and by age.
#[derive(Debug, Default)]
pub(super) struct PooledSlots {
    slots: NumberMap<SlotId, Pooled>,
    by_key: TextMap<ReuseKey, BTreeSet<(Moment, SlotId)>>,
    by_expiry: BTreeSet<(Moment, SlotId)>,
}

#[derive(Debug)]
struct Pooled {
    key: ReuseKey,
    since: Moment,
    expires: Moment,
}

impl PooledSlots {
    pub fn add(&mut self, id: SlotId, key: ReuseKey, since: Moment, timeout: Duration) {
        let expires = since + timeout;
        self.by_key.entry(key.clone()).or_default().insert((since, id));
        self.by_expiry.insert((expires, id));
        self.slots.insert(id, Pooled { key, since, expires });
    }

    pub fn remove(&mut self, id: SlotId) {
        let Some(pooled) = self.slots.remove(&id) else { return };
        self.by_expiry.remove(&(pooled.expires, id));
        if let Some(slots) = self.by_key.get_mut(&pooled.key) {
            slots.remove(&(pooled.since, id));
            if slots.is_empty() {
                self.by_key.remove(&pooled.key);
            }
        }
    }

    pub fn contains(&self, id: SlotId) -> bool {
        self.slots.contains_key(&id)
    }

    /// The most recently used connection for `key`: the registry has least likely closed it.
    pub fn freshest(&self, key: &ReuseKey) -> Option<SlotId> {
        self.by_key.get(key)?.last().map(|(_, id)| *id)
    }

    pub fn keys(&self) -> impl Iterator<Item = &ReuseKey> {
        self.by_key.keys()
    }

    /// One that has been idle for its whole timeout.
    pub fn expired(&self, now: Moment) -> Option<SlotId> {
        self.by_expiry.first().filter(|(expires, _)| *expires <= now).map(|(_, id)| *id)
    }

    pub fn next_expiry(&self) -> Option<Moment> {
        self.by_expiry.first().map(|(expires, _)| *expires)
    }

    /// The one to close first: the nearest to its end, which is the longest idle or the oldest.
    pub fn nearest_to_its_end(&self) -> Option<SlotId> {
        self.by_expiry.first().map(|(_, id)| *id)
    }
}
