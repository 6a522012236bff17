//! Who holds which slot, and what the socket in it is doing.
//!
//! [`Ledger`] is the core's book: one entry per slot that is taken, moved between states by one function. [`Slot`] is
//! the holder's side: it lives in the same struct as the socket, is not `Clone`, and gives the slot back on drop.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::activity::Activity;
use super::fair_queue::{Charge, Client, Principal};
use super::moment::Moment;
use super::queue::{Kind, Place};
use super::quiet::{Evidence, Quiet};
use crate::metrics::Direction;

/// Names one taken slot; never used twice by one core, so a late word about an old holder cannot hit a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub(super) u64);

/// What the socket in a slot is doing. All four count as open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotState {
    /// Granted, dialling or handshaking; also a tunnel in which client and registry shake hands.
    Connecting,
    /// Carrying a request, or a tunnel in use.
    Active,
    /// Standing without work: kept for reuse, or a tunnel that has carried nothing yet.
    Idle,
    /// On its way out: our end was announced or the connection was cut, the registry's side may not know yet.
    Closing,
}

impl SlotState {
    /// The word in status pages and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            SlotState::Connecting => "connecting",
            SlotState::Active => "active",
            SlotState::Idle => "idle",
            SlotState::Closing => "closing",
        }
    }
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
    /// The oldest first: ids only rise.
    entries: BTreeMap<SlotId, Entry>,
    counts: Counts,
    /// Slots whose connection stands, with a handshake to come.
    fresh: usize,
    /// Slots that serve a client's requests, by client; none of them 0.
    held: HashMap<Client, usize>,
    next: u64,
}

/// One taken slot.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub state: SlotState,
    /// When the slot was granted; what `max_lifetime` counts from.
    pub born: Moment,
    /// Whether `connect()` was called: from then on the token is spent.
    pub dialled: bool,
    /// Whether a handshake is to come at once.
    fresh: bool,
    /// What its connection has carried.
    pub activity: Arc<Activity>,
    /// Whose request it serves, from when on, and what was charged for it; nobody's while it is kept for reuse.
    pub occupant: Option<Occupant>,
    /// Where its connection goes, also while it serves nobody.
    pub target: Option<Arc<str>>,
}

/// Whose request a slot serves.
#[derive(Clone, Debug)]
pub(super) struct Occupant {
    pub principal: Principal,
    pub target: Arc<str>,
    pub kind: Kind,
    pub place: Place,
    pub since: Moment,
    /// What was charged in advance.
    pub charged: Charge,
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

    pub fn get(&self, id: SlotId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// Slots that serve this client's requests.
    pub fn held_by(&self, client: &Client) -> usize {
        self.held.get(client).copied().unwrap_or(0)
    }

    /// Whose request a slot serves.
    pub fn occupant(&self, id: SlotId) -> Option<&Occupant> {
        self.entries.get(&id)?.occupant.as_ref()
    }

    /// Taken slots by where their connections go.
    pub fn targets(&self) -> BTreeMap<Arc<str>, usize> {
        let mut targets = BTreeMap::new();
        for target in self.entries.values().filter_map(|entry| entry.target.clone()) {
            *targets.entry(target).or_default() += 1;
        }
        targets
    }

    /// All taken slots, the oldest first.
    pub fn entries(&self) -> impl Iterator<Item = (SlotId, &Entry)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }

    /// Lets a slot that serves nobody's request serve somebody's.
    pub fn let_to(&mut self, id: SlotId, occupant: Occupant) {
        if let Some(entry) = self.entries.get_mut(&id) {
            *self.held.entry(occupant.principal.client.clone()).or_default() += 1;
            entry.target = Some(occupant.target.clone());
            let before = entry.occupant.replace(occupant);
            debug_assert!(before.is_none(), "a slot serves one request at a time");
        }
    }

    /// Whose request the slot served; it serves nobody's now.
    pub fn vacate(&mut self, id: SlotId) -> Option<Occupant> {
        let occupant = self.entries.get_mut(&id)?.occupant.take()?;
        let client = &occupant.principal.client;
        let held = self.held.get_mut(client).expect("it held this slot");
        *held -= 1;
        if *held == 0 {
            self.held.remove(client);
        }
        Some(occupant)
    }

    /// Takes a new slot, in [`SlotState::Connecting`].
    pub fn take(&mut self, now: Moment) -> SlotId {
        let id = SlotId(self.next);
        self.next += 1;
        let activity = Arc::default();
        let (state, occupant, target) = (SlotState::Connecting, None, None);
        let entry = Entry { state, born: now, dialled: false, fresh: false, activity, occupant, target };
        self.entries.insert(id, entry);
        self.counts.connecting += 1;
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
        self.fresh -= usize::from(std::mem::take(&mut entry.fresh));
        if entry.state == SlotState::Closing {
            return state == SlotState::Closing;
        }
        *self.counts.of(entry.state) -= 1;
        entry.state = state;
        *self.counts.of(state) += 1;
        true
    }

    /// Gives back a slot that was vacated; `None` if it was not taken.
    pub fn release(&mut self, id: SlotId) -> Option<Entry> {
        self.vacate(id);
        let entry = self.entries.remove(&id)?;
        *self.counts.of(entry.state) -= 1;
        self.fresh -= usize::from(entry.fresh);
        Some(entry)
    }
}

/// Asks a quiet tunnel to close, telling it what spoke for it being idle.
pub type OnReclaim = Box<dyn FnOnce(Evidence) + Send>;

/// Where a [`Slot`] reports what its socket does.
pub trait SlotKeeper: Send + Sync {
    /// `connect()` is about to be called: the token is spent.
    fn dialled(&self, id: SlotId);
    /// The connection stands; see [`Slot::established`].
    fn established(&self, id: SlotId, state: SlotState);
    /// One address refused the holder of this slot, who will ask again for the next one.
    fn goes_on(&self, id: SlotId);
    /// Every address refused the holder of this slot.
    fn unreachable(&self, id: SlotId);
    /// The socket changed what it is doing.
    fn entered(&self, id: SlotId, state: SlotState);
    /// The tunnel lies quiet, and may be asked to close.
    fn quiet(&self, id: SlotId, quiet: Quiet, reclaim: OnReclaim);
    /// The socket is gone, and the registry had the chance to see it go.
    fn released(&self, id: SlotId);
    /// What time it is.
    fn now(&self) -> Moment;
}

/// The right to one socket. Whoever holds it may have one socket toward the registry; dropping it gives the right back,
/// so it must be dropped after the socket is gone.
#[must_use = "a slot dropped at once is given back at once"]
pub struct Slot {
    id: SlotId,
    activity: Arc<Activity>,
    keeper: Arc<dyn SlotKeeper>,
}

impl Slot {
    pub(super) fn new(id: SlotId, activity: Arc<Activity>, keeper: Arc<dyn SlotKeeper>) -> Slot {
        Slot { id, activity, keeper }
    }

    /// The name of this slot.
    #[must_use]
    pub fn id(&self) -> SlotId {
        self.id
    }

    /// What the connection has carried.
    #[must_use]
    pub fn activity(&self) -> Arc<Activity> {
        self.activity.clone()
    }

    /// To be called right before `connect()`: from here on the token counts as spent.
    pub fn dialled(&self) {
        self.keeper.dialled(self.id);
    }

    /// Tells that the connection stands: [`SlotState::Active`], or [`SlotState::Idle`] where others have yet to shake hands
    /// on it, which they are expected to do at once.
    pub fn established(&self, state: SlotState) {
        self.keeper.established(self.id, state);
    }

    /// Tells that bytes moved on the connection. Cheap: no lock is taken.
    pub fn carried(&self, direction: Direction, bytes: usize) {
        self.activity.carried(direction, bytes, self.keeper.now());
    }

    /// The time since a byte last moved on the connection; `None` before the first.
    #[must_use]
    pub fn silence(&self) -> Option<Duration> {
        self.activity.silence(self.keeper.now())
    }

    /// Tells that this address refused, and that its holder will ask again for the next one.
    pub fn goes_on(&self) {
        self.keeper.goes_on(self.id);
    }

    /// Tells that every address refused, this one last.
    pub fn unreachable(&self) {
        self.keeper.unreachable(self.id);
    }

    /// Tells what the socket is doing now.
    pub fn enter(&self, state: SlotState) {
        self.keeper.entered(self.id, state);
    }

    /// Tells that the tunnel lies quiet. From then on `recall` may be called, once, from any thread; the tunnel answers
    /// by closing, or with [`Slot::enter`] when something moves after all.
    pub fn quiet(&self, quiet: Quiet, reclaim: OnReclaim) {
        self.keeper.quiet(self.id, quiet, reclaim);
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

#[cfg(test)]
mod tests {
    use super::super::fair_queue::{ClassId, FairQueue, Lane, Turn};
    use super::*;

    #[test]
    fn a_client_holds_what_was_let_to_it_and_not_vacated() {
        let (mut ledger, now) = (Ledger::default(), Moment::default());
        let (principal, place) = (Principal { class: ClassId::default(), client: "one".into() }, Place::new(now, 1));
        let mut turns = FairQueue::new(&[1]);
        turns.push(&principal, Lane::Blob, place);
        let charged = turns.take(&principal, Lane::Blob, place, Turn::Own);
        let occupant = Occupant {
            principal: principal.clone(),
            target: "target:443".into(),
            kind: Kind::Tunnel,
            place,
            since: now,
            charged,
        };
        let slots = [ledger.take(now), ledger.take(now), ledger.take(now)];
        for slot in slots {
            ledger.let_to(slot, occupant.clone());
        }
        assert_eq!((ledger.held_by(&principal.client), ledger.held_by(&"other".into())), (3, 0));
        ledger.vacate(slots[0]);
        ledger.release(slots[0]);
        ledger.release(slots[1]);
        assert_eq!(ledger.held_by(&principal.client), 1);
        ledger.vacate(slots[2]);
        assert!(ledger.held.is_empty());
    }
}
