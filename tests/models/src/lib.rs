//! The admission core, proved.
//!
//! The very source files of the core are built here a second time, as a crate of their own with next to no dependencies:
//! its mutex is loom's, so that every order in which threads can meet at the hand-over is tried; and its random histories
//! run by the ten thousand, since so small a crate is quickly built as fast as it gets (the profile `proof`). No `--cfg`
//! is needed for that: only `admission::sync` is another file here. Tokio, which changes its own shape under
//! `--cfg loom`, is not in this build at all.
//!
//! The leases are built here as well: whole fleets live through random faults in virtual time.
//!
//! `cargo test --profile proof -p roadstead-models`

#![cfg(test)]
#![forbid(unsafe_code)]

mod admission;
#[expect(dead_code, reason = "the core needs no randomness")]
#[path = "../../../src/backoff.rs"]
mod backoff;
mod lease;
#[path = "../../support/src/random.rs"]
mod random;
#[path = "../../support/src/scale.rs"]
mod scale;

/// The words of `src/metrics.rs` that the core uses.
mod metrics {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Direction {
        Up,
        Down,
    }
}
