//! The mirror: an address at which the sidecar answers for a registry.
//!
//! Pullers ask it as they would ask the registry, in origin-form. It is the one way that sees all of a puller's traffic,
//! also that which follows no proxy setting.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::Request;
use hyper::header::{HOST, HeaderValue};

use super::rewrite::Rewrite;
use crate::admission::{ClassId, ReuseKey};
use crate::config::RegistryConfig;
use crate::target::{HostPattern, Origin, Target};
use crate::upstream::cluster::Cluster;
use crate::upstream::{Destination, Upstream};

#[derive(Debug)]
pub struct Mirror {
    /// Whose slots it takes.
    pub upstream: Arc<Upstream>,
    /// The class of all requests at the mirror.
    pub class: ClassId,
    cluster: Arc<Cluster>,
    hosts: Vec<HostPattern>,
    public: Vec<Target>,
    rewrites: bool,
    address: SocketAddr,
    host: HeaderValue,
    key: ReuseKey,
}

impl Mirror {
    /// The mirror at `address` of the registry at these nodes. With `rewrites`, links to its public targets lead back here.
    pub fn new(
        upstream: Arc<Upstream>,
        class: ClassId,
        cluster: Arc<Cluster>,
        registry: &RegistryConfig,
        rewrites: bool,
        address: SocketAddr,
    ) -> Mirror {
        let (hosts, public) = (registry.hosts.clone(), registry.public_targets());
        let host = HeaderValue::try_from(own_name(&cluster, &hosts)).expect("hosts and ports are visible ASCII");
        let urls: Vec<String> = cluster.origins().iter().map(ToString::to_string).collect();
        Mirror { upstream, class, cluster, hosts, public, rewrites, address, host, key: ReuseKey::from(urls.join(" ")) }
    }

    pub fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// The key under which connections are pooled.
    pub fn key(&self) -> &ReuseKey {
        &self.key
    }

    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Where its requests go.
    pub fn destination(&self) -> Destination {
        let Origin { secure, target } = self.cluster.origins()[0].clone();
        Destination { target, secure, pinned: None, listed_host: true, cluster: Some(self.cluster.clone()), node: None }
    }

    /// How to rewrite the answer to this request, which came to the local address `here`: links lead to the name that the
    /// client called, at the port where it was heard if it named none.
    pub fn rewrite<B>(&self, request: &Request<B>, here: Option<SocketAddr>) -> Option<Rewrite<'_>> {
        self.rewrites.then(|| Rewrite {
            public: &self.public,
            here: here.unwrap_or(self.address),
            called: called_host(request).map(Into::into),
            asked: request.uri().path_and_query().cloned(),
        })
    }

    /// Why the mirror does not answer under the name that this request calls it by, if it does not. A page in a browser
    /// on this node can let a name of its own lead to a loopback address, and would read whatever the mirror answers; so
    /// on loopback a name of the world must be one of the registry's.
    pub fn objection<B>(&self, request: &Request<B>) -> Option<String> {
        let is_absolute = request.uri().authority().is_some();
        let host = called_host(request)?;
        let known = Target::from_authority(host, 80).is_ok_and(|target| {
            let host = target.host();
            let is_registry = self.hosts.iter().any(|pattern| pattern.exact_host() == Some(host))
                || self.cluster.origins().iter().any(|origin| origin.target.host() == host);
            is_registry || host.is_local() || !self.address.ip().is_loopback()
        });
        let cure = if is_absolute {
            "point HTTP_PROXY at listen.proxy, not at the mirror"
        } else {
            "add it to the registry's hosts, if it is one"
        };
        (!known).then(|| format!("{host} is no name of this mirror: {cure}"))
    }
}

/// The host by which the client calls the mirror. In absolute-form the URL decides, whatever Host says (RFC 9112, section
/// 3.2.2).
fn called_host<B>(request: &Request<B>) -> Option<&str> {
    let authority = request.uri().authority().map(hyper::http::uri::Authority::as_str);
    authority.or_else(|| request.headers().get(HOST).map(|host| host.to_str().unwrap_or("an unreadable Host")))
}

/// The registry's own name: the host of its URL; for a cluster, the first name that its nodes share. The config ensures that
/// there is one.
fn own_name(cluster: &Cluster, hosts: &[HostPattern]) -> String {
    let origins = cluster.origins();
    let shared = hosts.iter().find(|pattern| pattern.exact_host().is_some()).filter(|_| origins.len() > 1);
    shared.map_or_else(|| origins[0].authority(), ToString::to_string)
}
