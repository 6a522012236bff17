//! One slot as its holder sees it: its name, its state, and its events.
//!
//! [`Slot`] lives in the same struct as the socket, is not `Clone`, and gives the slot back on drop. It decides nothing: the
//! core does, from the [`SlotEvent`]s.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::activity::Activity;
use super::moment::Moment;
use super::request::ReuseKey;
use crate::metrics::Direction;

/// Names one taken slot; never used twice by one core, so a late word about an old holder cannot hit a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub(super) u64);

/// The state of the socket in a slot. All four count as open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotState {
    /// Granted, dialling or handshaking; also a tunnel in which client and registry shake hands.
    Connecting,
    Active,
    /// Without work: pooled for reuse, or a tunnel that has carried nothing yet.
    Idle,
    /// On its way out: our end was announced or the connection was cut, the registry's side may not know yet.
    Closing,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub connecting: usize,
    pub active: usize,
    pub idle: usize,
    pub closing: usize,
}

impl Counts {
    pub fn open(self) -> usize {
        self.connecting + self.active + self.idle + self.closing
    }

    pub(super) fn of(&mut self, state: SlotState) -> &mut usize {
        match state {
            SlotState::Connecting => &mut self.connecting,
            SlotState::Active => &mut self.active,
            SlotState::Idle => &mut self.idle,
            SlotState::Closing => &mut self.closing,
        }
    }
}

/// The evidence that a tunnel is idle, surest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    Unused,
    /// The client sent a request, and the registry answered in full, as far as the records show.
    Idle,
    /// Nothing moves, but an answer may be under way.
    Unsure,
    /// A request is under way, and has not moved for very long.
    #[serde(rename = "in_flight")]
    Stalled,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quiet {
    /// How sure it is that nothing is under way.
    pub evidence: Evidence,
    pub since: Moment,
    /// From when on it may be reclaimed.
    pub from: Moment,
}

/// Asks a quiet tunnel to close, which may have moved, or ended, in this very moment.
pub type OnReclaim = Box<dyn FnOnce() + Send>;

/// An event of a slot, from its holder to the core. The proxy reports everything about a slot as one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotEvent {
    /// `connect()` is about to be called: from here on the token is spent.
    Dialled,
    /// One address refused the dial. The slot is released next, and its request asks again for the next address.
    DialRefused,
    /// Every address of the target refused, this one last. The slot is released next.
    Unreachable,
    /// The node of the request has no slot of its own left. The slot goes back, and its request asks again.
    NodeFull,
    /// The connection is open: [`SlotState::Active`], or [`SlotState::Idle`] if a handshake of others comes at once.
    Established(SlotState),
    Entered(SlotState),
    /// Nothing moves on the connection, and it may be reclaimed. It answers by closing, or with another event.
    Quiet(Quiet),
    /// The connection is free for the next request with this key. It is closed where it may not be pooled.
    Pooled(ReuseKey),
    /// The socket is gone, and the registry had the chance to see it go.
    Released,
}

pub trait SlotKeeper: Send + Sync {
    /// This happened to the slot. `on_reclaim` comes with [`SlotEvent::Quiet`].
    fn tell(&self, id: SlotId, event: SlotEvent, on_reclaim: Option<OnReclaim>);
    fn now(&self) -> Moment;
}

/// The right to one socket toward the registry. Dropping it gives the right back, so it must be dropped after the socket
/// is gone.
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

    pub fn id(&self) -> SlotId {
        self.id
    }

    pub fn activity(&self) -> Arc<Activity> {
        self.activity.clone()
    }

    pub fn tell(&self, event: SlotEvent) {
        self.keeper.tell(self.id, event, None);
    }

    /// Reports that nothing moves on the connection. From then on `on_reclaim` may be called, once, from any thread.
    pub fn quiet(&self, quiet: Quiet, on_reclaim: OnReclaim) {
        self.keeper.tell(self.id, SlotEvent::Quiet(quiet), Some(on_reclaim));
    }

    /// Reports that bytes moved on the connection. Cheap: it takes no lock.
    pub fn carried(&self, direction: Direction, bytes: usize) {
        self.activity.carried(direction, bytes, self.keeper.now());
    }

    /// The time since a byte last moved on the connection; `None` before the first.
    pub fn silence(&self) -> Option<Duration> {
        self.activity.silence(self.keeper.now())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.tell(SlotEvent::Released);
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.id.0).finish()
    }
}
