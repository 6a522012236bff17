//! The words by which the gate knows of a lease: the slots that are lent to it, and the connections that a lease cuts.

use std::fmt::Debug;
use std::sync::OnceLock;

/// Slots that are lent to this node, beside those that are configured.
pub trait Lent: Debug + Send + Sync {
    /// Those that may be given to requests at this moment; `None` where the store does not answer, or may not lend yet.
    fn slots(&self) -> Option<usize>;
    /// Whether an operator holds the admissions of all nodes.
    fn is_paused(&self) -> bool;
}

/// A connection that can be cut under its owner.
pub trait Cut: Debug + Send + Sync {
    fn cut(&self);
}

/// How to cut the connection in a slot, once there is one.
#[derive(Debug, Default)]
pub struct Cutter(pub OnceLock<Box<dyn Cut>>);
