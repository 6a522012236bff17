//! When a quiet tunnel may be taken for a request that waits.
//!
//! The pauses are those of the config, `[registries.NAME.reclaim]`, and the same for every tunnel of a registry. This file
//! reads no clock and no socket. `tunnel` asks it, `proxy::route` finds the pauses of a registry, `app` makes them.

use std::time::Duration;

/// How long a tunnel must have been quiet before it may be taken while somebody waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pauses {
    /// The last request was answered.
    pub idle: Duration,
    /// No request was sent.
    pub unused: Duration,
    /// An answer may be under way.
    pub unsure: Duration,
    /// A request is under way that does not move.
    pub stalled: Duration,
}
