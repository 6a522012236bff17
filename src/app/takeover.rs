//! A new process takes over from a running one, and both together stay within the slots.
//!
//! The old process (the predecessor) starts the new one (its successor) with its listeners and one end of a `link`. The
//! new one begins without a slot. From the moment in which it is ready it decides for both: the old process accepts no client,
//! keeps the slots that are open there, and does not use again what comes free. It reports the slots that it holds and its waiters,
//! each time that changes; the new one lets those waiters take part in its own queue, each in its class, and grants
//! the slots that they win. So a new request does not pass older ones.
//!
//! `process` starts and watches processes, `reservations` leaves alone what others hold, `take_over` is the side of the
//! new process, `hand_over` that of the old one. None of them touches a socket toward a registry.

pub(super) mod hand_over;
pub(super) mod link;
pub mod process;
pub(super) mod reservations;
pub(super) mod take_over;
#[cfg(test)]
mod takeover_tests;
