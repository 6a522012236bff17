//! The addresses that one request dials one after another, each once.
//!
//! Those of one name are tried in the resolver's order. Where a registry has several nodes, the cluster says which one is
//! next, once the request is admitted.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use super::cluster::{Cluster, NodePermit};
use super::connect::{DialError, Endpoint};
use crate::admission::Moment;
use crate::target::Host;

/// Addresses that were not tried yet, and what came of those that were.
#[derive(Debug)]
pub(super) struct Round {
    cluster: Option<Arc<Cluster>>,
    /// By the number of the node; one host where there is no cluster.
    hosts: Vec<AddressesLeft>,
    /// The failure of the other addresses: the last one counts; among nodes, a failure of one that may be back goes first.
    pub failed: Option<DialError>,
    /// Whether one of them took the connection and could not prove itself.
    pub untrusted: bool,
}

#[derive(Clone, Debug, Default)]
struct AddressesLeft {
    left: VecDeque<SocketAddr>,
    /// The host that must prove itself, where TLS is spoken.
    secure: Option<Host>,
}

impl Round {
    pub fn new(cluster: Option<Arc<Cluster>>) -> Round {
        let hosts = vec![AddressesLeft::default(); cluster.as_ref().map_or(1, |cluster| cluster.origins().len())];
        Round { cluster, hosts, failed: None, untrusted: false }
    }

    /// The addresses of this node, or of the only host, and the host that must prove itself, where TLS is spoken.
    pub fn add(&mut self, node: usize, addresses: Vec<SocketAddr>, secure: Option<Host>) {
        self.hosts[node] = AddressesLeft { left: addresses.into(), secure };
    }

    pub fn any_left(&self) -> bool {
        self.hosts.iter().any(|host| !host.left.is_empty())
    }

    pub fn is_spent(&self, node: &NodePermit) -> bool {
        self.hosts[node.index()].left.is_empty()
    }

    /// The next address; `None`, and `is_full` is called, when no node has one of its slots left, where each has `slots_of_each`.
    pub fn next(&mut self, slots_of_each: Option<usize>, is_full: impl FnOnce(), now: Moment) -> Option<Endpoint> {
        let node_permit = match &self.cluster {
            None => None,
            Some(cluster) => {
                let left = (0..self.hosts.len()).filter(|index| !self.hosts[*index].left.is_empty());
                Some(cluster.pick(&left.collect::<Vec<_>>(), slots_of_each, is_full, now)?)
            }
        };
        let host = &mut self.hosts[node_permit.as_ref().map_or(0, NodePermit::index)];
        Some(Endpoint { address: host.left.pop_front()?, secure: host.secure.clone(), node_permit })
    }

    pub fn note(&mut self, error: DialError) {
        self.untrusted |= error.is_final();
        let worth_more = |before: &DialError| self.cluster.is_some() && error.is_final() && !before.is_final();
        if !self.failed.as_ref().is_some_and(worth_more) {
            self.failed = Some(error);
        }
    }
}
