//! The mirror: an address at which the sidecar stands in for a registry.
//!
//! Pullers ask it as they would ask the registry, in origin-form. It is the one way that sees all of a puller's traffic,
//! also that which follows no proxy setting.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::Uri;
use hyper::header::{HOST, HeaderMap, HeaderValue};

use super::record::shown;
use super::rewrite::Rewrite;
use crate::admission::{ClassId, ReuseKey};
use crate::target::{HostPattern, Origin, Target};
use crate::upstream::cluster::Cluster;
use crate::upstream::{Destination, Upstream};

/// One mirror.
#[derive(Debug)]
pub struct Mirror {
    /// Whose slots it takes.
    pub upstream: Arc<Upstream>,
    /// The class of all who come.
    pub class: ClassId,
    cluster: Arc<Cluster>,
    hosts: Vec<HostPattern>,
    rewrites: bool,
    address: SocketAddr,
    host: HeaderValue,
    key: ReuseKey,
}

impl Mirror {
    /// The mirror at `address` of the registry at these nodes, which is known under `hosts`. With `rewrites`, what leads
    /// to the registry leads back here.
    ///
    /// # Panics
    /// Never: hosts and ports make a Host header.
    #[must_use]
    pub fn new(
        upstream: Arc<Upstream>,
        class: ClassId,
        cluster: Arc<Cluster>,
        hosts: Vec<HostPattern>,
        rewrites: bool,
        address: SocketAddr,
    ) -> Mirror {
        let host = HeaderValue::try_from(own_name(&cluster, &hosts)).expect("hosts and ports are visible ASCII");
        let urls: Vec<String> = cluster.origins().iter().map(ToString::to_string).collect();
        Mirror { upstream, class, cluster, hosts, rewrites, address, host, key: ReuseKey::from(urls.join(" ")) }
    }

    /// What Host says to the registry.
    #[must_use]
    pub fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// What connections are kept for.
    #[must_use]
    pub fn key(&self) -> &ReuseKey {
        &self.key
    }

    /// The nodes.
    #[must_use]
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Where its requests go.
    #[must_use]
    pub fn destination(&self) -> Destination {
        let Origin { secure, target } = self.cluster.origins()[0].clone();
        Destination { target, secure, pinned: None, listed_host: true, cluster: Some(self.cluster.clone()), node: None }
    }

    /// The target for the log.
    #[must_use]
    pub fn shown(&self, uri: &Uri) -> String {
        format!("{}{}", self.host.to_str().unwrap_or_default(), shown(uri))
    }

    /// How to rewrite the answer to a request with these headers that came to `here`.
    #[must_use]
    pub fn rewrite(&self, request: &HeaderMap, here: Option<SocketAddr>) -> Option<Rewrite<'_>> {
        let host = request.get(HOST).and_then(|host| host.to_str().ok());
        let authority = host.map_or_else(|| here.unwrap_or(self.address).to_string(), str::to_owned);
        self.rewrites.then(|| Rewrite::new(format!("http://{authority}"), self))
    }

    /// Whether a client may call the mirror so. A page in a browser on this node can let a name of its own lead to a
    /// loopback address, and would read whatever the mirror answers; so on loopback a name of the world must be one of
    /// the registry's.
    #[must_use]
    pub fn answers_to(&self, host: &str) -> bool {
        let Ok(target) = Target::from_authority(host, 80) else { return false };
        !self.address.ip().is_loopback()
            || target.host().is_local()
            || self.hosts.iter().any(|pattern| pattern.host() == target.host().to_string())
            || self.cluster.origins().iter().any(|origin| origin.target.host() == target.host())
    }

    /// Whether a URL with this target leads to the registry: to one of its nodes, or to one of its names at a port where
    /// it is reached.
    #[must_use]
    pub fn owns(&self, target: &Target) -> bool {
        let origins = self.cluster.origins();
        let usual = [80, 443].contains(&target.port());
        // A pattern may cover the storage behind the registry as well.
        let mut names = self.hosts.iter().filter(|host| host.exact_host().is_some());
        origins.iter().any(|origin| origin.target == *target)
            || names.any(|host| host.matches(target))
                && (usual || origins.iter().any(|origin| origin.target.port() == target.port()))
    }
}

/// What the registry calls itself: the host of its URL; of a cluster, the first name that its nodes share, which the config
/// sees to.
fn own_name(cluster: &Cluster, hosts: &[HostPattern]) -> String {
    let origins = cluster.origins();
    let shared = hosts.iter().find(|pattern| pattern.exact_host().is_some()).filter(|_| origins.len() > 1);
    shared.map_or_else(|| origins[0].authority(), ToString::to_string)
}
