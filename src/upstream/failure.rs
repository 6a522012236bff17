//! Why a request did not get through to its registry.

use std::net::{IpAddr, SocketAddr};

use super::connect::DialError;
use super::resolve::ResolveError;
use crate::address::AddressClass;
use crate::admission::Refusal;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("not admitted")]
    Refused(Refusal),
    #[error(transparent)]
    Unknown(#[from] ResolveError),
    #[error(transparent)]
    Undialled(#[from] DialError),
    #[error("{0} answers 502, 503 or 504: nothing answers behind it")]
    NoAnswerBehind(String),
    #[error("the connection ended before the answer: {0}")]
    Died(#[source] hyper::Error),
    #[error("the answer has {0}")]
    Malformed(&'static str),
    /// The registry ended TLS for good, after the handshake was over for us.
    #[error("the registry ended TLS: {0}")]
    TurnedAway(String),
    #[error("the registry switched protocols unasked")]
    Switched,
    #[error("{0} may not be reached through this proxy")]
    Denied(IpAddr, AddressClass),
    #[error("{0} is this proxy itself")]
    Loop(SocketAddr),
    #[error("draining")]
    Draining,
}

impl Failure {
    /// Whether the same might succeed a moment later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Failure::Unknown(_) => true,
            Failure::Undialled(error) => !error.is_final(),
            _ => false,
        }
    }
}
