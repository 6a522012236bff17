//! The way to one registry: resolve, wait for admission, dial, speak HTTP on connections that are pooled.
//!
//! [`Upstream`] is one registry; an [`Attempt`] is one request on its way, and [`Upstream::step`] moves it on. Every socket
//! lives in a slot of the gate from before its `connect()`. Nothing here knows the client: a caller whose client has left
//! drops the future. The proxy calls it; it decides nothing about who is next.

mod addresses;
mod attempt;
pub mod cluster;
pub mod connect;
mod early_answer;
mod endpoints;
mod failure;
mod hold;
pub mod http;
mod lookup;
mod reach;
mod registry;
pub mod request_body;
pub mod resolve;
pub mod socket;
mod stall;
pub mod tls;
mod turn;

pub use self::addresses::AddressPolicy;
pub use self::attempt::{Attempt, Destination, Patience};
pub use self::failure::Failure;
pub use self::reach::Connected;
pub use self::registry::{NodeSlots, QueueTerms, Upstream};

#[cfg(test)]
mod denied_tests;
#[cfg(test)]
pub(crate) mod tests;
