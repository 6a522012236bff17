//! The limits of a registry, and the decisions of the core.

use std::time::Duration;

use serde::Serialize;

use super::rate::RateLimit;
use super::request::Place;
use super::slot::SlotId;
use super::tickets::Owner;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sockets toward the registry at once; `usize::MAX` where nothing bounds them.
    pub slots: usize,
    /// Waiters at once; 0 refuses whoever would have to wait.
    pub depth: usize,
    /// Token bucket on `connect()`; `None`: no rate limit.
    pub rate: Option<RateLimit>,
    pub idle_timeout: Duration,
    pub max_lifetime: Duration,
    pub max_connecting: usize,
    /// How long the place of one who left is kept for it.
    pub keep_place: Duration,
    pub weights: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Dial {
        place: Place,
        slot: SlotId,
        waited: Duration,
    },
    /// The slot is that of the connection; it is active now.
    Reuse {
        place: Place,
        slot: SlotId,
        waited: Duration,
    },
    /// `may_return` is for `Core::keep_place`, as soon as the owner knows of it: before that nobody can come back.
    Refuse {
        place: Place,
        refusal: Refusal,
        may_return: Option<Owner>,
    },
    /// Close a kept connection in order. The slot is closing now, and comes back when the socket is gone.
    Close {
        slot: SlotId,
        cause: CloseCause,
    },
    /// Ask a quiet tunnel to close, because somebody waits. It answers by closing, or by going on.
    Reclaim {
        slot: SlotId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Slots that are not the other process's: open here, granted and about to be used, or held by an older process.
    pub slots: usize,
    pub wanted: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// Somebody waits who needs its slot.
    Reclaimed,
    /// It was idle for `idle_timeout`, or older than `max_lifetime`.
    Expired,
    /// More connections stand than there are slots now.
    Shrunk,
    Draining,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: RefusalReason,
    pub waited: Duration,
    pub waiting: usize,
    pub slots: usize,
    pub retry_after: Duration,
    /// The reason why the next waiter was not admitted; `None` if waiting was not the cause.
    pub limited_by: Option<LimitedBy>,
    /// By arrival among those who waited, from 1; `None` for one too far back to count.
    pub position: Option<usize>,
    /// How much longer it would have waited; `None` where the past does not tell.
    pub expected_wait: Option<Duration>,
}

/// The bounds that may refuse a request because of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    QueueFull,
    /// The request's own deadline came.
    QueueTimeout,
    /// The request's own deadline came while the registry took no connections.
    Unreachable,
    /// One of the two, while nothing is lent.
    LeaseLost,
    /// The process is going down, and its `drain_timeout` is over.
    Draining,
}

/// The reason why the next waiter is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitedBy {
    Paused,
    /// An operator has paused all nodes.
    FleetPaused,
    Unreachable,
    /// `max_connecting` slots are dialling or shaking hands.
    #[serde(rename = "max_connecting")]
    Connecting,
    Slots,
    /// Slots are free that its distress does not leave in force.
    Distress,
    #[serde(rename = "rate_per_second")]
    Rate,
}
