//! The addresses that one request may dial, one after another.
//!
//! Those of one name are tried in the resolver's order. Where a registry has several nodes, the cluster says which one is
//! next, once the request is admitted, and of its addresses each is tried once.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use super::cluster::{Berth, Cluster};
use super::connect::Door;
use crate::admission::Moment;
use crate::target::Host;

/// Addresses that were not tried yet.
#[derive(Debug)]
pub(super) enum Doors {
    /// Of one host; with its name where TLS is spoken.
    Host(VecDeque<SocketAddr>, Option<Host>),
    /// Of each node.
    Nodes(Arc<Cluster>, Vec<VecDeque<SocketAddr>>),
}

impl Doors {
    /// Whether there is one left.
    pub fn any_left(&self) -> bool {
        match self {
            Doors::Host(addresses, _) => !addresses.is_empty(),
            Doors::Nodes(_, nodes) => nodes.iter().any(|addresses| !addresses.is_empty()),
        }
    }

    /// The next one; `None` when no node has one of its slots left, where each has `slots_of_each`.
    pub fn next(&mut self, slots_of_each: Option<usize>, now: Moment) -> Option<Door> {
        match self {
            Doors::Host(addresses, secure) => {
                let address = addresses.pop_front()?;
                Some(Door { address, secure: secure.clone(), berth: None })
            }
            Doors::Nodes(cluster, nodes) => {
                let left = (0..nodes.len()).filter(|index| !nodes[*index].is_empty());
                let berth = cluster.pick(&left.collect::<Vec<_>>(), slots_of_each, now)?;
                let address = nodes[berth.index()].pop_front()?;
                let origin = berth.origin();
                let secure = origin.secure.then(|| origin.target.host().clone());
                Some(Door { address, secure, berth: Some(berth) })
            }
        }
    }

    /// Whether every address of this node was tried.
    pub fn is_spent(&self, node: &Berth) -> bool {
        match self {
            Doors::Host(..) => true,
            Doors::Nodes(_, nodes) => nodes[node.index()].is_empty(),
        }
    }

    /// Whether a failed dial tells that the target takes no connections: nothing is left to try, or no node is in.
    pub fn failure_tells(&self, berth: Option<&Berth>) -> bool {
        match (self, berth) {
            (Doors::Nodes(cluster, _), Some(_)) => cluster.living() == 0,
            _ => !self.any_left(),
        }
    }
}
