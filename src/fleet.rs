//! Slots that all nodes share, in real time: each leased registry has one task that speaks for this node at the store.
//!
//! [`lent`] is what the rest of the process sees of a lease: the slots that the gate may give, until when, and the picture.
//! [`store`] alone knows Redis, and finds the server of a cluster by `cluster_primary`. [`overview`] is the whole fleet as the store knows
//! it, for operators, whose orders are in [`command`]. [`tasks`] moves messages between the machine of the node
//! ([`crate::lease::node`]), the store and the gate, and decides nothing. By [`claim`], a process takes over what was lent to one that
//! was killed.
//!
//! A lease ends by the clock that goes on while the machine is suspended. It is read whenever a slot is given, and once more after
//! each `connect()`, so a process that was frozen uses nothing that is not its own any more.

pub mod claim;
mod cluster_primary;
pub mod command;
pub mod lent;
pub mod overview;
pub mod store;
pub mod tasks;
