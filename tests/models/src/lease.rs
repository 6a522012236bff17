//! The node's side of the leases, as `src/lease.rs` has it; a model of the store, proved equal to the script in a real
//! redis-server; and whole fleets of both.
#![expect(dead_code, reason = "what only the sidecar uses is not used here")]

#[path = "../../../src/lease/borrowed.rs"]
pub mod borrowed;
#[path = "../../../src/lease/message.rs"]
mod message;
#[path = "../../../src/lease/node.rs"]
mod node;
#[path = "../../../src/lease/records.rs"]
mod records;
mod script_tests;
mod simulation;
#[path = "../../../src/lease/store.rs"]
mod store;
#[path = "../../../src/lease/yielding.rs"]
mod yielding;
