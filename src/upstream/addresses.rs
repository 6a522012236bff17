//! The check of an address before it is dialled: never this process itself, and no local address that the operator did not list.
//!
//! Pure but for one question to the kernel: whether an address is one of this machine's. Asked for each address before a
//! request waits for admission.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::failure::Failure;
use crate::address::{AddressClass, classify};

/// Addresses that may be dialled although their class is refused.
#[derive(Clone, Debug, Default)]
pub struct AddressPolicy {
    /// Addresses that are fine whatever they are: the operator listed them as such.
    pub listed: Vec<IpAddr>,
    /// Where this very process listens.
    pub own: Arc<[SocketAddr]>,
}

impl AddressPolicy {
    /// The reason why this address may not be dialled, if there is one; a loopback address may only where the operator listed
    /// the very host.
    pub fn check(&self, address: SocketAddr, listed_host: bool) -> Result<(), Failure> {
        if self.own.iter().any(|own| is_same(*own, address)) {
            return Err(Failure::Loop(address));
        }
        let class = classify(address.ip());
        let fine = match class {
            AddressClass::Global => true,
            AddressClass::Loopback => listed_host || self.listed.contains(&address.ip()),
            AddressClass::LinkLocal | AddressClass::Metadata => self.listed.contains(&address.ip()),
            AddressClass::Unusable => false,
        };
        if fine { Ok(()) } else { Err(Failure::Denied(address.ip(), class)) }
    }

    /// Those of these addresses that may be dialled; if none may, the reason against the first one.
    pub fn allowed(
        &self,
        addresses: impl Iterator<Item = SocketAddr>,
        listed_host: bool,
    ) -> Result<Vec<SocketAddr>, Failure> {
        let mut denied = None;
        let mut allowed = Vec::with_capacity(addresses.size_hint().0);
        for address in addresses {
            match self.check(address, listed_host) {
                Ok(()) => allowed.push(address),
                Err(failure) => denied = denied.or(Some(failure)),
            }
        }
        match denied {
            Some(failure) if allowed.is_empty() => Err(failure),
            _ => Ok(allowed),
        }
    }
}

/// Whether `address` leads to where we listen. A wildcard listens at every address of this machine, and only those can
/// be bound.
fn is_same(own: SocketAddr, address: SocketAddr) -> bool {
    own == address
        || own.port() == address.port()
            && own.ip().is_unspecified()
            && std::net::UdpSocket::bind((address.ip(), 0)).is_ok()
}
