//! The slots that are taken: whom each serves, and what its socket is doing.
//!
//! [`Ledger`] is the core's book: one entry per slot that is taken, moved between states by one function.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::activity::Activity;
use super::fair_queue::Charge;
use super::moment::Moment;
use super::request::{Place, Principal, SlotUse};
use super::slot::{Counts, SlotId, SlotState};

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The oldest first: ids only rise.
    entries: BTreeMap<SlotId, LedgerEntry>,
    counts: Counts,
    /// Slots whose connection stands, with a handshake to come.
    fresh: usize,
    next: u64,
}

#[derive(Clone, Debug)]
pub(super) struct LedgerEntry {
    pub state: SlotState,
    /// When the slot was granted; what `max_lifetime` counts from.
    pub born: Moment,
    /// Whether `connect()` was called: from then on the token is spent.
    pub dialled: bool,
    /// Whether a handshake is to come at once.
    fresh: bool,
    /// Whether its connection was asked to end, and has not moved since.
    pub taken: bool,
    pub activity: Arc<Activity>,
    pub occupant: Option<Occupant>,
    /// Where its connection goes, also while it serves no request.
    pub target: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub(super) struct Occupant {
    pub principal: Principal,
    pub target: Arc<str>,
    pub slot_use: SlotUse,
    pub place: Place,
    pub charge: Charge,
}

impl Ledger {
    pub fn counts(&self) -> Counts {
        self.counts
    }

    pub fn open(&self) -> usize {
        self.entries.len()
    }

    /// Slots that are dialling or shaking hands, or about to.
    pub fn connecting(&self) -> usize {
        self.counts.connecting + self.fresh
    }

    /// The connection in this slot stands, and a handshake is to come, until word of anything else.
    pub fn expect_handshake(&mut self, id: SlotId) {
        if let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.state != SlotState::Closing) {
            self.fresh += usize::from(!std::mem::replace(&mut entry.fresh, true));
        }
    }

    pub fn get(&self, id: SlotId) -> Option<&LedgerEntry> {
        self.entries.get(&id)
    }

    pub fn occupant(&self, id: SlotId) -> Option<&Occupant> {
        self.entries.get(&id)?.occupant.as_ref()
    }

    pub fn targets(&self) -> BTreeMap<Arc<str>, usize> {
        let mut targets = BTreeMap::new();
        for target in self.entries.values().filter_map(|entry| entry.target.clone()) {
            *targets.entry(target).or_default() += 1;
        }
        targets
    }

    /// All taken slots, the oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = (SlotId, &LedgerEntry)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }

    /// A slot that serves no request serves this one now.
    pub fn occupy(&mut self, id: SlotId, occupant: Occupant) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.target = Some(occupant.target.clone());
            let before = entry.occupant.replace(occupant);
            debug_assert!(before.is_none(), "a slot serves one request at a time");
        }
    }

    /// The slot serves no request now. Tells which it served.
    pub fn clear_occupant(&mut self, id: SlotId) -> Option<Occupant> {
        self.entries.get_mut(&id)?.occupant.take()
    }

    /// Takes a new slot, in [`SlotState::Connecting`].
    pub fn take(&mut self, now: Moment) -> SlotId {
        let id = SlotId(self.next);
        self.next += 1;
        let activity = Arc::default();
        let (state, occupant, target) = (SlotState::Connecting, None, None);
        let entry =
            LedgerEntry { state, born: now, dialled: false, fresh: false, taken: false, activity, occupant, target };
        self.entries.insert(id, entry);
        self.counts.connecting += 1;
        id
    }

    /// It was asked to end its connection.
    pub fn mark_taken(&mut self, id: SlotId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.taken = true;
        }
    }

    pub fn mark_dialled(&mut self, id: SlotId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.dialled = true;
        }
    }

    /// Moves a slot to another state; the only way a state changes. A slot that is closing stays so: word that it went
    /// idle or busy may come late. Returns whether the slot is in `state` now.
    pub fn enter(&mut self, id: SlotId, state: SlotState) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else {
            return false;
        };
        self.fresh -= usize::from(std::mem::take(&mut entry.fresh));
        if entry.state == SlotState::Closing {
            return state == SlotState::Closing;
        }
        entry.taken &= state == SlotState::Closing;
        *self.counts.of(entry.state) -= 1;
        entry.state = state;
        *self.counts.of(state) += 1;
        true
    }

    /// Gives back a slot that serves no request; `None` if it was not taken.
    pub fn release(&mut self, id: SlotId) -> Option<LedgerEntry> {
        self.clear_occupant(id);
        let entry = self.entries.remove(&id)?;
        *self.counts.of(entry.state) -= 1;
        self.fresh -= usize::from(entry.fresh);
        Some(entry)
    }
}
