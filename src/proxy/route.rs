//! Which registry a request belongs to.
//!
//! By the name it asks for, the most specific pattern first. What no registry lists goes directly or is denied; and if
//! it leads to the very address and port of a registry, it counts as that registry all the same.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::target::{Host, HostPattern, Target};
use crate::upstream::resolve::{ResolveError, Resolver};
use crate::upstream::{Upstream, Way};

/// How long the name of another host may take to be resolved.
const OTHER_HOSTS_LOOKUP: Duration = Duration::from_secs(10);

/// How long it may take to find out where the registries are, when a request for another host comes.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(2);

/// All upstreams, by what they claim.
#[derive(Debug)]
pub struct Routes {
    registries: Vec<Claim>,
    other_hosts: Arc<Upstream>,
    /// Whether `other_hosts.policy` is `direct`.
    direct: bool,
    resolver: Arc<Resolver>,
}

/// One registry and its hosts.
#[derive(Debug)]
pub struct Claim {
    /// The hosts that the config lists.
    pub hosts: Vec<HostPattern>,
    /// The registry.
    pub upstream: Arc<Upstream>,
}

/// Where a request goes.
#[derive(Debug)]
pub struct Route {
    /// Whose slots it takes.
    pub upstream: Arc<Upstream>,
    /// Where it goes.
    pub way: Way,
}

/// Why a request goes nowhere.
#[derive(Debug)]
pub enum Lost {
    /// No registry lists the host, and the policy denies all others.
    Denied,
    /// It goes to another host, whose name cannot be resolved.
    Unknown(ResolveError),
}

impl Routes {
    /// Routes to these registries, and to all other hosts if `direct`.
    #[must_use]
    pub fn new(registries: Vec<Claim>, other_hosts: Arc<Upstream>, direct: bool, resolver: Arc<Resolver>) -> Routes {
        Routes { registries, other_hosts, direct, resolver }
    }

    /// Where what no registry lists is counted.
    #[must_use]
    pub fn other_hosts(&self) -> &Arc<Upstream> {
        &self.other_hosts
    }

    /// All upstreams, other hosts last.
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.registries.iter().map(|claim| &claim.upstream).chain([&self.other_hosts])
    }

    /// The registries alone.
    pub fn registries(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.registries.iter().map(|claim| &claim.upstream)
    }

    /// The registry that lists this target, and the pattern by which it does.
    fn listed(&self, target: &Target) -> Option<(&HostPattern, &Arc<Upstream>)> {
        let hosts =
            self.registries.iter().flat_map(|claim| claim.hosts.iter().map(move |host| (host, &claim.upstream)));
        hosts.filter(|(host, _)| host.matches(target)).max_by_key(|(host, _)| host.specificity())
    }

    /// Where a request for this target goes.
    ///
    /// # Errors
    /// When it may not go anywhere, or nobody knows where that is.
    pub async fn find(&self, target: &Target) -> Result<Route, Lost> {
        let way = |pinned, listed_host| Way { target: target.clone(), pinned, listed_host };
        if let Some((host, upstream)) = self.listed(target) {
            return Ok(Route { upstream: upstream.clone(), way: way(None, host.exact_host().is_some()) });
        }
        if !self.direct {
            return Err(Lost::Denied);
        }
        let addresses = self.addresses(target.host(), target.port()).await.map_err(Lost::Unknown)?;
        for claim in &self.registries {
            let shared = self.addresses_of(claim, &addresses).await;
            if !shared.is_empty() {
                return Ok(Route { upstream: claim.upstream.clone(), way: way(Some(shared), true) });
            }
        }
        Ok(Route { upstream: self.other_hosts.clone(), way: way(Some(addresses), false) })
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
            let Some(host) = pattern.exact_host() else { continue };
            // A registry whose name cannot be resolved now cannot be told from others; it is asked for again soon.
            let Ok(Ok(ips)) = timeout(LOOKUP_PATIENCE, self.resolver.resolve(host)).await else { continue };
            let is_there = |address: &&SocketAddr| {
                pattern.port().is_none_or(|port| port == address.port()) && ips.contains(&address.ip())
            };
            shared.extend(candidates.iter().filter(is_there));
        }
        shared
    }
}
