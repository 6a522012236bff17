//! Wires the parts: binds all listeners, then starts everything, and takes it down in order.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, Scope};
use crate::admission::{ClassId, Gate, Limits, Rate};
use crate::config::{self, Config, OtherHosts};
use crate::metrics::{Metrics, OTHER_HOSTS};
use crate::proxy::clients::Classes;
use crate::proxy::mirror::Mirror;
use crate::proxy::pauses::{Bounds, Pauses};
use crate::proxy::route::{Claim, Routes};
use crate::proxy::{ClientTerms, Entry, Proxy};
use crate::repair::Repair;
use crate::target::{Host, HostPattern, Origin};
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::Terms;
use crate::upstream::resolve::Resolver;
use crate::upstream::tls::{Tls, TlsError, TlsTerms};
use crate::upstream::{AddressPolicy, QueueTerms, Upstream};

/// What other hosts are granted, for whom no registry's settings hold.
const OTHER_HOSTS_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const OTHER_HOSTS_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const LINGER: Duration = Duration::from_secs(1);
const OTHER_HOSTS_STALL: Duration = Duration::from_secs(5 * 60);

/// Time after `drain_timeout` in which the last refusals are written, and again in which cut connections are closed.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not be bound.
    #[error("cannot listen on {address} ({key}): {cause}")]
    Bind {
        /// The setting.
        key: String,
        /// Its value.
        address: SocketAddr,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The files that TLS to a registry needs are not usable.
    #[error("registries.{registry}.{error}")]
    Tls {
        /// The registry's name.
        registry: String,
        /// The setting, the file and what is wrong with it.
        error: TlsError,
    },
}

/// A running sidecar.
#[derive(Debug)]
pub struct Running {
    addresses: Addresses,
    proxy: Arc<Proxy>,
    draining: CancellationToken,
    ended: CancellationToken,
    cut_short: CancellationToken,
    drain_timeout: Duration,
}

/// Where a running sidecar listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The proxy.
    pub proxy: SocketAddr,
    /// Health, metrics and status.
    pub admin: SocketAddr,
    /// Metrics and probes for others, if configured.
    pub metrics: Option<SocketAddr>,
    /// The mirrors, each with the name of its registry.
    pub mirrors: Vec<(String, SocketAddr)>,
}

/// Binds every listener, then starts. Must be called inside a tokio runtime.
///
/// # Errors
/// When a listener cannot be bound, or a file of TLS is not usable; nothing runs then.
pub async fn start(config: Config) -> Result<Running, StartError> {
    check_tls(&config)?;
    let listen = &config.listen;
    let proxy_listener = bind("listen.proxy", listen.proxy).await?;
    let admin_listener = bind("listen.admin", listen.admin).await?;
    let metrics_listener = match listen.metrics {
        Some(address) => Some(bind("listen.metrics", address).await?),
        None => None,
    };
    let mirror_listeners = bind_mirrors(&config).await?;
    let addresses = Addresses {
        proxy: bound(&proxy_listener, listen.proxy),
        admin: bound(&admin_listener, listen.admin),
        metrics: metrics_listener.as_ref().zip(listen.metrics).map(|(listener, asked)| bound(listener, asked)),
        mirrors: mirror_listeners
            .iter()
            .map(|(registry, mirror, listener)| (registry.name.clone(), bound(listener, mirror.listen)))
            .collect(),
    };

    let metrics = Arc::new(Metrics::new());
    let (draining, ended, cut_short) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let terms = ClientTerms {
        max_clients: listen.max_clients,
        head_timeout: listen.head_timeout,
        allow_clients: listen.allow_clients.clone(),
    };
    let routes = routes(&config, &metrics, &addresses, &ended);
    let mirrors = mirrors(&config, &routes, &addresses);
    let classes = Classes::new(config.classes.iter().map(|class| class.users.as_slice()));
    let proxy = Proxy::new(routes, terms, classes, pseudonym(), draining.clone(), cut_short.clone());
    let nodes = mirrors.iter().map(|mirror| (mirror.upstream.name.clone(), mirror.cluster().clone())).collect();
    let admin = Admin::new(proxy.clone(), nodes, metrics, draining.clone());

    tokio::spawn(proxy.clone().accept(proxy_listener, Entry::Proxy));
    for ((_, _, listener), mirror) in mirror_listeners.into_iter().zip(mirrors) {
        tokio::spawn(proxy.clone().accept(listener, Entry::Mirror(mirror)));
    }
    tokio::spawn(admin.clone().accept(admin_listener, Scope::Admin));
    if let Some(listener) = metrics_listener {
        tokio::spawn(admin.accept(listener, Scope::Metrics));
    }
    Ok(Running { addresses, proxy, draining, ended, cut_short, drain_timeout: config.drain_timeout })
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Ends in order: accepts nobody any more, serves those who came for up to `drain_timeout`, refuses and cuts the
    /// rest, and waits until every socket toward a registry is gone.
    pub async fn drain(self) {
        let deadline = Instant::now() + self.drain_timeout;
        self.draining.cancel();
        self.each_gate(Gate::drain);
        let tasks = self.proxy.tasks();
        tasks.close();
        if timeout_at(deadline, tasks.wait()).await.is_err() {
            self.each_gate(Gate::end);
            self.ended.cancel();
            let _ = timeout_at(deadline + LAST_WORDS, tasks.wait()).await;
            self.cut_short.cancel();
            let _ = timeout_at(deadline + LAST_WORDS * 2, tasks.wait()).await;
        }
        self.until_sockets_are_gone().await;
    }

    fn each_gate(&self, act: impl Fn(&Gate<crate::upstream::http::Kept>)) {
        self.proxy.routes().upstreams().for_each(|upstream| act(&upstream.gate));
    }

    /// Closing takes no longer than the longest `linger` and the hold that follows it.
    async fn until_sockets_are_gone(&self) {
        let upstreams = || self.proxy.routes().upstreams();
        let longest_linger = upstreams().map(|upstream| upstream.terms.linger).max().unwrap_or(LINGER);
        let deadline = Instant::now() + longest_linger + LAST_WORDS;
        while Instant::now() < deadline && upstreams().any(|upstream| upstream.gate.snapshot().open.open() > 0) {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn bind(key: &str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|cause| StartError::Bind { key: key.to_owned(), address, cause })
}

/// The listener of each registry that has a mirror.
async fn bind_mirrors(config: &Config) -> Result<Vec<(&config::Registry, &config::Mirror, TcpListener)>, StartError> {
    let mut listeners = Vec::new();
    for registry in &config.registries {
        let Some(mirror) = &registry.mirror else { continue };
        let key = format!("registries.{}.mirror.listen", registry.name);
        listeners.push((registry, mirror, bind(&key, mirror.listen).await?));
    }
    Ok(listeners)
}

/// Reads the files of TLS where the config speaks of it; a wrong one is better known now than with the first pull.
///
/// # Errors
/// What is wrong with the first that is.
pub fn check_tls(config: &Config) -> Result<(), StartError> {
    for registry in &config.registries {
        let origins = registry.mirror.iter().flat_map(|mirror| &mirror.upstream);
        if origins.into_iter().any(|origin| origin.secure) || registry.tls != config::Tls::default() {
            let checked = Tls::new(tls_terms(&registry.tls)).check();
            checked.map_err(|error| StartError::Tls { registry: registry.name.clone(), error })?;
        }
    }
    Ok(())
}

/// The mirrors, in the order of their listeners.
fn mirrors(config: &Config, routes: &Routes, addresses: &Addresses) -> Vec<Arc<Mirror>> {
    let registries = config.registries.iter().zip(routes.registries());
    let with_mirror =
        registries.filter_map(|(registry, upstream)| Some((registry, registry.mirror.as_ref()?, upstream)));
    let mirrors = with_mirror.zip(&addresses.mirrors).map(|((registry, mirror, upstream), (_, address))| {
        let class = config.classes.iter().position(|class| class.name == mirror.class).unwrap_or_default();
        let cluster = Cluster::new(mirror.upstream.clone());
        let hosts = registry.hosts.clone();
        Arc::new(Mirror::new(upstream.clone(), ClassId(class), cluster, hosts, mirror.rewrite, *address))
    });
    mirrors.collect()
}

/// The address with the port that the kernel chose, where the config left it open.
fn bound(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

/// A name for this process in Via that no other has.
fn pseudonym() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("roadstead-{:08x}", RandomState::new().hash_one(std::process::id()) >> 32)
}

/// What all upstreams share.
struct Shared<'a> {
    metrics: &'a Metrics,
    classes: &'a [config::Class],
    names: Arc<[String]>,
    resolver: Arc<Resolver>,
    own: Arc<[SocketAddr]>,
    ended: CancellationToken,
}

impl Shared<'_> {
    fn weights(&self) -> Vec<u32> {
        self.classes.iter().map(|class| class.weight).collect()
    }

    fn by_class(&self, timeout: impl Fn(&config::Class) -> Duration) -> Vec<Duration> {
        self.classes.iter().map(timeout).collect()
    }
}

fn routes(config: &Config, metrics: &Metrics, addresses: &Addresses, ended: &CancellationToken) -> Routes {
    let hosts = config.registries.iter().flat_map(claimed_hosts).filter_map(|host| host.exact_host().cloned());
    let names = hosts.filter(|host| host.ip().is_none()).map(|host| host.to_string());
    let mirrors = addresses.mirrors.iter().map(|(_, address)| Some(*address));
    let own = [Some(addresses.proxy), Some(addresses.admin), addresses.metrics].into_iter().chain(mirrors);
    let shared = Shared {
        metrics,
        classes: &config.classes,
        names: config.classes.iter().map(|class| class.name.clone()).collect(),
        resolver: Arc::new(Resolver::new(names)),
        own: own.flatten().collect(),
        ended: ended.clone(),
    };
    let claims = config.registries.iter().map(|registry| Claim {
        hosts: claimed_hosts(registry),
        upstream: Arc::new(upstream_of(registry, &shared)),
        pauses: pauses_of(&registry.reclaim),
    });
    let claims = claims.collect();
    let other_hosts = Claim {
        hosts: Vec::new(),
        upstream: Arc::new(other_hosts(&shared)),
        // Nothing is ever taken back there: slots do not bind.
        pauses: Arc::new(Pauses::new(Bounds { stalled: OTHER_HOSTS_STALL, ..Bounds::default() })),
    };
    Routes::new(claims, other_hosts, config.other_hosts == OtherHosts::Direct, shared.resolver)
}

/// The hosts of a registry, with those that only its mirror names: what goes there takes its slots, whoever asks.
fn claimed_hosts(registry: &config::Registry) -> Vec<HostPattern> {
    let of_mirror = registry.mirror.iter().flat_map(|mirror| mirror.upstream.iter().map(Origin::pattern));
    registry.hosts.iter().cloned().chain(of_mirror).collect()
}

fn pauses_of(reclaim: &config::Reclaim) -> Arc<Pauses> {
    Arc::new(Pauses::new(Bounds {
        idle: reclaim.idle_after,
        unused: reclaim.unused_after,
        unsure: reclaim.unsure_after,
        stalled: reclaim.stall_timeout,
        learn: reclaim.learn,
    }))
}

fn upstream_of(registry: &config::Registry, shared: &Shared<'_>) -> Upstream {
    let metrics = shared.metrics.of_registry(&registry.name, &shared.names);
    let limits = Limits {
        slots: registry.slots,
        depth: registry.queue.depth,
        rate: registry.rate.map(|rate| Rate { period: rate.period, burst: rate.burst }),
        idle_timeout: registry.idle_timeout,
        max_lifetime: registry.max_lifetime,
        max_connecting: registry.max_connecting,
        keep_place: registry.queue.keep_place,
        weights: shared.weights(),
    };
    Upstream {
        name: registry.name.clone(),
        gate: Gate::new(limits, metrics.clone()),
        metrics,
        terms: Terms { connect_timeout: registry.connect_timeout, linger: registry.linger },
        addresses: AddressPolicy {
            listed: claimed_hosts(registry).iter().filter_map(HostPattern::exact_host).filter_map(Host::ip).collect(),
            own: shared.own.clone(),
        },
        insist: true,
        queue: QueueTerms {
            depth: registry.queue.depth,
            tunnel_timeout: shared.by_class(|class| class.tunnel_timeout.unwrap_or(registry.queue.tunnel_timeout)),
            request_timeout: shared.by_class(|class| class.request_timeout.unwrap_or(registry.queue.request_timeout)),
        },
        classes: shared.names.clone(),
        tls: Arc::new(Tls::new(tls_terms(&registry.tls))),
        repair: registry.repair.enabled.then(|| Arc::new(Repair::new(registry.repair.ambiguous_401))),
        slots_of_each: slots_of_each(registry),
        resizing: Mutex::default(),
        resolver: shared.resolver.clone(),
        ended: shared.ended.clone(),
    }
}

fn tls_terms(tls: &config::Tls) -> TlsTerms {
    let config::Tls { ca_file, client, insecure_skip_verify } = tls.clone();
    TlsTerms { ca_file, client, insecure_skip_verify }
}

/// The slots of each node, where each has its own.
fn slots_of_each(registry: &config::Registry) -> Option<usize> {
    let mirror = registry.mirror.as_ref().filter(|mirror| mirror.cap_per_upstream)?;
    Some(registry.slots / mirror.upstream.len())
}

/// Other hosts pass without bound: they are counted, not queued.
fn other_hosts(shared: &Shared<'_>) -> Upstream {
    let metrics = shared.metrics.of_registry(OTHER_HOSTS, &shared.names);
    let limits = Limits {
        slots: usize::MAX,
        depth: usize::MAX,
        rate: None,
        idle_timeout: OTHER_HOSTS_IDLE_TIMEOUT,
        max_lifetime: Duration::from_secs(30 * 60),
        max_connecting: usize::MAX,
        keep_place: Duration::ZERO,
        weights: shared.weights(),
    };
    Upstream {
        name: OTHER_HOSTS.to_owned(),
        gate: Gate::new(limits, metrics.clone()),
        metrics,
        terms: Terms { connect_timeout: OTHER_HOSTS_CONNECT_TIMEOUT, linger: LINGER },
        addresses: AddressPolicy { listed: Vec::new(), own: shared.own.clone() },
        insist: false,
        queue: QueueTerms {
            depth: usize::MAX,
            tunnel_timeout: shared.by_class(|_| Duration::from_secs(50)),
            request_timeout: shared.by_class(|_| Duration::from_secs(25)),
        },
        classes: shared.names.clone(),
        tls: Arc::new(Tls::new(TlsTerms::default())),
        repair: None,
        slots_of_each: None,
        resizing: Mutex::default(),
        resolver: shared.resolver.clone(),
        ended: shared.ended.clone(),
    }
}
