//! Leases: the slots of one cap, lent to all nodes by one store.
//!
//! Everything that decides is pure. A node is a machine ([`node`]) to which the elapsed time goes in; the store is one script
//! (`script.lua`), of which `store` is the model; `tests/models` proves that they are equal, and runs whole fleets of nodes and model
//! in virtual time, with faults. [`crate::fleet`] runs the machine.
//!
//! # The store's clock
//! The script never trusts a wall clock. It has a clock of its own, which no step and no failover can put forward: each answer
//! tells the node what that clock showed, and each request says how much time has passed at the node since it heard that. The
//! clock stands where the most advanced of these claims puts it. A claim counts from when the answer *arrived* and until the
//! request was *sent*, so the clock is never ahead of the time that has passed, but for the rates of the nodes' clocks, which
//! [`Times::hold`](message::Times::hold) has a margin for.
//!
//! # Why the sum holds
//! The store has, for each process, the slots that it may use. It adds to them when it answers, and takes from them only what a
//! request promises not to use. A promise holds until the answer to that same request is accepted, so an answer or a message
//! that comes late changes nothing. A record ends only after the process has cut its last leased connection, and the registry
//! has dropped what a silent machine left behind. A store that lost its records lends nothing until every lease that it
//! may have forgotten has ended.

pub mod borrowed;
pub mod checks;
pub mod message;
pub mod node;
pub mod records;
pub mod settings;
pub mod store;
pub mod store_url;
pub mod yielding;
