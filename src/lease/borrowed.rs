//! The words by which the gate knows of a lease: the slots that are lent to it, and the connections that a lease cuts. And its picture.

use std::fmt::Debug;
use std::sync::OnceLock;
use std::time::Duration;

/// Slots that are lent to this node, beside those that are configured.
pub trait Lent: Debug + Send + Sync {
    /// Those that may be given to requests at this moment; `None` where the store does not answer, or may not lend yet.
    fn slots(&self) -> Option<usize>;
    /// Whether an operator holds the admissions of all nodes.
    fn is_paused(&self) -> bool;
    /// Whether signs of overload leave fewer slots to all nodes together.
    fn yields(&self) -> bool {
        false
    }
}

/// A connection that can be cut under its owner.
pub trait Cut: Debug + Send + Sync {
    fn cut(&self);
}

/// How to cut the connection in a slot, once there is one.
#[derive(Debug, Default)]
pub struct Cutter(pub OnceLock<Box<dyn Cut>>);

/// The picture of a lease, for pages and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeasePicture {
    pub granted: u64,
    /// Below `granted` while slots are given back.
    pub limit: u64,
    pub wished: u64,
    pub held: u64,
    /// No leased slot is given to a request after this, unless the store answers before.
    pub until: Option<Duration>,
    /// When the leased connections that are still open are cut.
    pub close_by: Option<Duration>,
    pub learning: Option<Duration>,
    /// Whether no request may be admitted, since the fleet is paused, or may be.
    pub is_paused: bool,
    /// Requests in a row that were not answered.
    pub unanswered: u32,
    /// Whether another process goes by the name of this node.
    pub has_twin: bool,
    /// The slots that are lent to all nodes together, and those of them that are in force.
    pub pool: u64,
    pub pool_in_force: u64,
}

impl LeasePicture {
    /// Whether fewer slots than the pool are in force.
    pub fn yields(&self) -> bool {
        self.pool_in_force < self.pool
    }
}
