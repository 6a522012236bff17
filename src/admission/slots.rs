//! Who holds which slot, and what the socket in it is doing.
//!
//! [`Ledger`] is the core's book: one entry per slot that is taken, moved between states by one function. [`Slot`] is
//! the holder's side: it lives in the same struct as the socket, is not `Clone`, and gives the slot back on drop.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::moment::Moment;

/// Names one taken slot; never used twice by one core, so a late word about an old holder cannot hit a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub(super) u64);

/// What the socket in a slot is doing. All four count as open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotState {
    /// Granted, dialling or handshaking.
    Connecting,
    /// Carrying a request, or a tunnel in use.
    Active,
    /// Standing without work: kept for reuse, or a tunnel that has carried nothing yet.
    Idle,
    /// On its way out: our end was announced or the connection was cut, the registry's side may not know yet.
    Closing,
}

/// Taken slots by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Slots in [`SlotState::Connecting`].
    pub connecting: usize,
    /// Slots in [`SlotState::Active`].
    pub active: usize,
    /// Slots in [`SlotState::Idle`].
    pub idle: usize,
    /// Slots in [`SlotState::Closing`].
    pub closing: usize,
}

impl Counts {
    /// All taken slots.
    #[must_use]
    pub fn open(self) -> usize {
        self.connecting + self.active + self.idle + self.closing
    }

    fn of(&mut self, state: SlotState) -> &mut usize {
        match state {
            SlotState::Connecting => &mut self.connecting,
            SlotState::Active => &mut self.active,
            SlotState::Idle => &mut self.idle,
            SlotState::Closing => &mut self.closing,
        }
    }
}

/// The book of taken slots.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: HashMap<SlotId, Entry>,
    counts: Counts,
    next: u64,
}

/// One taken slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub state: SlotState,
    /// When the slot was granted; what `max_lifetime` counts from.
    pub born: Moment,
    /// Whether `connect()` was called: from then on the token is spent.
    pub dialled: bool,
}

impl Ledger {
    pub fn counts(&self) -> Counts {
        self.counts
    }

    pub fn open(&self) -> usize {
        self.entries.len()
    }

    pub fn get(&self, id: SlotId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// Takes a new slot, in [`SlotState::Connecting`].
    pub fn take(&mut self, now: Moment) -> SlotId {
        let id = SlotId(self.next);
        self.next += 1;
        let entry = Entry { state: SlotState::Connecting, born: now, dialled: false };
        self.entries.insert(id, entry);
        *self.counts.of(entry.state) += 1;
        id
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
        if entry.state == SlotState::Closing {
            return state == SlotState::Closing;
        }
        *self.counts.of(entry.state) -= 1;
        entry.state = state;
        *self.counts.of(state) += 1;
        true
    }

    /// Gives a slot back; `None` if it was not taken.
    pub fn release(&mut self, id: SlotId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        *self.counts.of(entry.state) -= 1;
        Some(entry)
    }
}

/// Where a [`Slot`] reports what its socket does.
pub trait SlotKeeper: Send + Sync {
    /// `connect()` is about to be called: the token is spent.
    fn dialled(&self, id: SlotId);
    /// The socket changed what it is doing.
    fn entered(&self, id: SlotId, state: SlotState);
    /// The socket is gone, and the registry had the chance to see it go.
    fn released(&self, id: SlotId);
}

/// The right to one socket. Whoever holds it may have one socket toward the registry; dropping it gives the right back,
/// so it must be dropped after the socket is gone.
#[must_use = "a slot dropped at once is given back at once"]
pub struct Slot {
    id: SlotId,
    keeper: Arc<dyn SlotKeeper>,
}

impl Slot {
    pub(super) fn new(id: SlotId, keeper: Arc<dyn SlotKeeper>) -> Slot {
        Slot { id, keeper }
    }

    /// The name of this slot.
    #[must_use]
    pub fn id(&self) -> SlotId {
        self.id
    }

    /// To be called right before `connect()`: from here on the token counts as spent.
    pub fn dialled(&self) {
        self.keeper.dialled(self.id);
    }

    /// Tells what the socket is doing now.
    pub fn enter(&self, state: SlotState) {
        self.keeper.entered(self.id, state);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.keeper.released(self.id);
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.id.0).finish()
    }
}
