//! From a destination to the addresses that may be dialled, before admission: a name is never resolved on a slot.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::attempt::{Attempt, Destination};
use super::cluster::Cluster;
use super::endpoints::Round;
use super::failure::Failure;
use super::registry::Upstream;
use super::resolve::{ResolveError, Resolver};
use crate::target::{Origin, Target};

/// How long the name of one node of several may take to be resolved.
pub(super) const NODE_LOOKUP: Duration = Duration::from_secs(1);

impl Upstream {
    /// The addresses that may be dialled; at least one.
    pub(super) async fn endpoints(&self, attempt: &Attempt) -> Result<Round, Failure> {
        let Destination { target, secure, pinned, listed_host, cluster, node } = &attempt.destination;
        if let (Some(cluster), None) = (cluster, node) {
            return Box::pin(self.endpoints_of_nodes(cluster, attempt)).await;
        }
        let addresses = match pinned {
            Some(pinned) => self.addresses.allowed(pinned.iter().copied(), *listed_host)?,
            None => self.resolve(attempt).await?,
        };
        let name = if node.is_some() { self.tls.name_of(target.host()) } else { target.host().clone() };
        let mut round = Round::new(cluster.clone());
        round.add(node.unwrap_or_default(), addresses, secure.then_some(name));
        Ok(round)
    }

    /// Those of every node whose name can be resolved. One that is left out keeps nobody waiting for its name.
    async fn endpoints_of_nodes(&self, cluster: &Arc<Cluster>, attempt: &Attempt) -> Result<Round, Failure> {
        let mut wanted = cluster.wanted(self.gate.now());
        let is_open = |node: &usize| !self.is_held(attempt, Some(*node));
        // A request that is held everywhere may go anywhere once it is let go.
        if wanted.iter().any(is_open) {
            wanted.retain(is_open);
        }
        // One name that nobody answers for must not keep the others waiting.
        let patience = attempt.deadline.min(self.gate.now() + NODE_LOOKUP);
        let mut lookups = JoinSet::new();
        for index in wanted {
            let (resolver, target) = (self.resolver.clone(), cluster.origins()[index].target.clone());
            let until = self.instant(patience);
            lookups.spawn(async move { (index, resolve(&resolver, &target, until).await) });
        }
        let mut round = Round::new(Some(cluster.clone()));
        let mut lost = None;
        for (index, addresses) in lookups.join_all().await {
            let allowed = |addresses: Vec<SocketAddr>| self.addresses.allowed(addresses.into_iter(), true);
            match addresses.map_err(Failure::from).and_then(allowed) {
                Err(failure) => {
                    if cluster.leave_out(index, self.gate.now()) {
                        self.nodes_changed(&attempt.destination);
                    }
                    lost = Some(failure);
                }
                Ok(addresses) => {
                    let Origin { secure, target } = &cluster.origins()[index];
                    round.add(index, addresses, secure.then(|| self.tls.name_of(target.host())));
                }
            }
        }
        match lost {
            Some(failure) if !round.any_left() => Err(failure),
            _ => Ok(round),
        }
    }

    async fn resolve(&self, attempt: &Attempt) -> Result<Vec<SocketAddr>, Failure> {
        let Destination { target, listed_host, .. } = &attempt.destination;
        let addresses = resolve(&self.resolver, target, self.instant(attempt.deadline)).await?;
        self.addresses.allowed(addresses.into_iter(), *listed_host)
    }
}

async fn resolve(resolver: &Resolver, target: &Target, until: Instant) -> Result<Vec<SocketAddr>, ResolveError> {
    let answer = timeout_at(until, resolver.resolve(target.host())).await;
    let ips = answer.unwrap_or_else(|_| Err(ResolveError::silent(target.host())))?;
    Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, target.port())).collect())
}
