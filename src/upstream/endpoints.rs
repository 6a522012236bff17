//! The addresses that one request may dial, one after another.
//!
//! Those of one name are tried in the resolver's order. Where a registry has several nodes, the cluster says which one is
//! next, once the request is admitted, and of its addresses each is tried once.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use super::cluster::{Cluster, NodePermit};
use super::connect::Endpoint;
use crate::admission::Moment;
use crate::target::Host;

/// Addresses that were not tried yet.
#[derive(Debug)]
pub(super) enum Endpoints {
    /// Of one host.
    Host(AddressesLeft),
    /// Of nodes, by their numbers; none for one that is not to be dialled.
    Nodes(Arc<Cluster>, Vec<AddressesLeft>),
}

/// Those of one host.
#[derive(Debug, Default)]
pub(super) struct AddressesLeft {
    /// The ones that were not tried yet.
    pub left: VecDeque<SocketAddr>,
    /// The host that must prove itself, where TLS is spoken.
    pub secure: Option<Host>,
}

impl Endpoints {
    /// Whether there is one left.
    pub fn any_left(&self) -> bool {
        match self {
            Endpoints::Host(addresses) => !addresses.left.is_empty(),
            Endpoints::Nodes(_, nodes) => nodes.iter().any(|addresses| !addresses.left.is_empty()),
        }
    }

    /// The next one; `None` when no node has one of its slots left, where each has `slots_of_each`.
    pub fn next(&mut self, slots_of_each: Option<usize>, now: Moment) -> Option<Endpoint> {
        let (addresses, node_permit) = match self {
            Endpoints::Host(addresses) => (addresses, None),
            Endpoints::Nodes(cluster, nodes) => {
                let left = (0..nodes.len()).filter(|index| !nodes[*index].left.is_empty());
                let node_permit = cluster.pick(&left.collect::<Vec<_>>(), slots_of_each, now)?;
                (&mut nodes[node_permit.index()], Some(node_permit))
            }
        };
        let address = addresses.left.pop_front()?;
        Some(Endpoint { address, secure: addresses.secure.clone(), node_permit })
    }

    /// Whether every address of this node was tried.
    pub fn is_spent(&self, node: &NodePermit) -> bool {
        match self {
            Endpoints::Host(_) => true,
            Endpoints::Nodes(_, nodes) => nodes[node.index()].left.is_empty(),
        }
    }
}
