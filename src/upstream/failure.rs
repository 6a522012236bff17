//! Why a request did not get through to its registry.

use std::net::{IpAddr, SocketAddr};

use super::connect::DialError;
use super::resolve::ResolveError;
use super::tls;
use crate::address::AddressClass;
use crate::admission::Refusal;

/// Why a request did not get through.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The gate refused it.
    #[error("not admitted")]
    Refused(Refusal),
    /// The name could not be resolved.
    #[error(transparent)]
    Unknown(#[from] ResolveError),
    /// No address took the connection.
    #[error(transparent)]
    Undialled(#[from] DialError),
    /// The gateway at this URL answers 502, 503 or 504, whatever it is asked.
    #[error("{0} answers 502, 503 or 504: nothing answers behind it")]
    NoAnswerBehind(String),
    /// The connection ended before the answer.
    #[error("the connection ended before the answer: {0}")]
    Died(#[source] hyper::Error),
    /// The framing of the answer cannot be trusted.
    #[error("the answer has {0}")]
    Malformed(&'static str),
    /// The registry ended TLS for good, after the handshake was over for us.
    #[error("the registry ended TLS: {0}")]
    TurnedAway(String),
    /// The registry switched protocols, which nobody asked for.
    #[error("the registry switched protocols unasked")]
    Switched,
    /// The address may not be dialled.
    #[error("{0} may not be reached through this proxy")]
    Denied(IpAddr, AddressClass),
    /// The address is one where this process listens.
    #[error("{0} is this proxy itself")]
    Loop(SocketAddr),
    /// The process is going down.
    #[error("draining")]
    Draining,
}

impl Failure {
    /// The connection ended before the answer, and this is what hyper saw.
    pub fn of_death(cause: hyper::Error) -> Failure {
        tls::last_word(&cause).map_or(Failure::Died(cause), Failure::TurnedAway)
    }

    /// Whether the same might succeed a moment later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Failure::Unknown(_) => true,
            Failure::Undialled(error) => !error.is_final(),
            _ => false,
        }
    }
}
