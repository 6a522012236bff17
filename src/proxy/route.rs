//! The registry of a request.
//!
//! The most specific pattern that matches the name decides. A host that no registry lists is reached directly or denied. If
//! it leads to the address and port of a registry, it counts as that registry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::respond::Answer;
use crate::address::reach_the_same;
use crate::metrics::Reason;
use crate::reclaim::ReclaimPolicy;
use crate::target::{Host, HostPattern, Target};
use crate::upstream::cluster::Cluster;
use crate::upstream::resolve::{ResolveError, Resolver};
use crate::upstream::{Destination, Upstream};

/// How long the name of another host may take to be resolved.
const OTHER_HOSTS_LOOKUP: Duration = Duration::from_secs(10);

/// How long it may take to find out where the registries are, when a request for another host comes.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(2);

/// All upstreams, by what they claim.
#[derive(Debug)]
pub struct Routes {
    registries: Vec<Claim>,
    /// All other hosts; it claims none.
    other_hosts: Claim,
    /// Whether `other_hosts.policy` is `direct`.
    direct: bool,
    resolver: Arc<Resolver>,
}

#[derive(Debug)]
pub struct Claim {
    /// The hosts that the config lists.
    pub hosts: Vec<HostPattern>,
    pub upstream: Arc<Upstream>,
    /// When its quiet tunnels may be taken.
    pub policy: Arc<ReclaimPolicy>,
    /// The nodes of its mirror.
    pub cluster: Option<Arc<Cluster>>,
}

/// Where a request goes.
#[derive(Debug)]
pub struct Route {
    /// Whose slots it takes.
    pub upstream: Arc<Upstream>,
    pub destination: Destination,
    /// When a quiet tunnel there may be taken.
    pub policy: Arc<ReclaimPolicy>,
}

impl Claim {
    /// The single hosts that it lists, each with the only port at which it may be; `None`: any. Where a `*.suffix` leads
    /// to, nobody can tell.
    pub fn exact_hosts(&self) -> impl Iterator<Item = (&Host, Option<u16>)> {
        self.hosts.iter().filter_map(|pattern| Some((pattern.exact_host()?, pattern.port())))
    }

    fn route(&self, target: &Target, secure: bool, pinned: Option<Vec<SocketAddr>>, listed_host: bool) -> Route {
        // A request to one of several nodes counts there.
        let several = self.cluster.as_ref().filter(|cluster| cluster.origins().len() > 1);
        let (cluster, node) = several.and_then(|cluster| Some((cluster.clone(), cluster.node_at(target)?))).unzip();
        let destination = Destination { target: target.clone(), secure, pinned, listed_host, cluster, node };
        Route { upstream: self.upstream.clone(), destination, policy: self.policy.clone() }
    }
}

impl Routes {
    /// Routes to these registries, and to all other hosts if `direct`.
    pub fn new(registries: Vec<Claim>, other_hosts: Claim, direct: bool, resolver: Arc<Resolver>) -> Routes {
        Routes { registries, other_hosts, direct, resolver }
    }

    /// Where what no registry lists is counted.
    pub fn other_hosts(&self) -> &Arc<Upstream> {
        &self.other_hosts.upstream
    }

    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.registries.iter().map(|claim| &claim.upstream).chain([&self.other_hosts.upstream])
    }

    pub fn registries(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.registries.iter().map(|claim| &claim.upstream)
    }

    /// The registry of this name, with what it claims.
    pub fn claim(&self, name: &str) -> Option<&Claim> {
        self.registries.iter().find(|claim| claim.upstream.name == name)
    }

    pub fn claims(&self) -> &[Claim] {
        &self.registries
    }

    /// The registry that lists this target, and the pattern by which it does.
    fn listed(&self, target: &Target) -> Option<(&HostPattern, &Claim)> {
        let hosts = self.registries.iter().flat_map(|claim| claim.hosts.iter().map(move |host| (host, claim)));
        hosts.filter(|(host, _)| host.matches(target)).max_by_key(|(host, _)| host.specificity())
    }

    /// Where a request for this target goes; `secure`, if we are to speak TLS there.
    /// Fails with the answer when it may not go anywhere, or nobody knows where that is.
    pub async fn find(&self, target: &Target, secure: bool) -> Result<Route, Answer> {
        match self.listed(target) {
            Some((host, claim)) => Ok(claim.route(target, secure, None, host.exact_host().is_some())),
            // On the heap: most requests need no name for this.
            None => Box::pin(self.find_by_address(target, secure)).await,
        }
    }

    async fn find_by_address(&self, target: &Target, secure: bool) -> Result<Route, Answer> {
        if !self.direct {
            let message = format!("{target} is in no registry's hosts, and other_hosts.policy is \"deny\"");
            return Err(Answer::plain(Reason::DestinationDenied, message));
        }
        let unknown = |error: ResolveError| Answer::plain(Reason::UpstreamUnreachable, error.to_string());
        let addresses = self.addresses(target.host(), target.port()).await.map_err(unknown)?;
        for claim in &self.registries {
            let shared = self.addresses_of(claim, &addresses).await;
            if !shared.is_empty() {
                return Ok(claim.route(target, secure, Some(shared), true));
            }
        }
        Ok(self.other_hosts.route(target, secure, Some(addresses), false))
    }

    async fn addresses(&self, host: &Host, port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
        let resolved = timeout(OTHER_HOSTS_LOOKUP, self.resolver.resolve(host)).await;
        let ips = resolved.unwrap_or_else(|_| Err(ResolveError::silent(host)))?;
        Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }

    /// Those of `candidates` at which a registry is.
    async fn addresses_of(&self, claim: &Claim, candidates: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut shared = Vec::new();
        for pattern in &claim.hosts {
            // A name with several addresses may give others each time, so all that it gave lately count. A registry whose
            // name was never resolved cannot be told from others; it is asked for again soon.
            let mut ips = self.resolver.lately(pattern);
            if let Some(host) = pattern.exact_host()
                && let Ok(Ok(now)) = timeout(LOOKUP_PATIENCE, self.resolver.resolve(host)).await
            {
                ips.extend(now);
            }
            let is_there = |address: &&SocketAddr| {
                pattern.port().is_none_or(|port| port == address.port())
                    && ips.iter().any(|ip| reach_the_same(*ip, address.ip()))
            };
            shared.extend(candidates.iter().filter(is_there));
        }
        shared
    }
}
