//! From the config to the parts that serve: registries with their gates, routes, mirrors, classes.
//!
//! Built once at the start and again with each reload. Then everything that lives on is taken over: gates with their
//! waiters and holders, learned pauses, the nodes of a cluster. The rest is made anew from the config.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::listeners::ListenAddresses;
use super::registry_tls::{ReadTls, tls_terms};
use crate::adapt::Adapt;
use crate::admission::{ClassId, Limits, RateLimit};
use crate::config::{self, Config, Mode, OtherHosts, QueueConfig, ReclaimConfig, RepairConfig, Service};
use crate::fleet::lent::Lease;
use crate::lease::settings::LeaseConfig;
use crate::metrics::{Metrics, OTHER_HOSTS};
use crate::observe::gate_of;
use crate::proxy::clients::Classes;
use crate::proxy::mirror::Mirror;
use crate::proxy::route::{Claim, Routes};
use crate::proxy::{ClientTerms, Settings};
use crate::reclaim::{Pauses, ReclaimPolicy};
use crate::repair::Repair;
use crate::target::{Host, HostPattern, Origin};
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::ConnectionTerms;
use crate::upstream::resolve::Resolver;
use crate::upstream::tls::Tls;
use crate::upstream::{AddressPolicy, NodeSlots, QueueTerms, Upstream};

#[derive(Debug)]
pub struct Assembly {
    metrics: Arc<Metrics>,
    addresses: ListenAddresses,
    ended: CancellationToken,
    /// The classes by their numbers, which stay: those that are gone keep theirs.
    classes: Vec<String>,
    /// A fixed size of the send buffers toward registries.
    pub send_buffer: Option<usize>,
}

impl Assembly {
    pub fn new(metrics: Arc<Metrics>, addresses: ListenAddresses, ended: CancellationToken) -> Assembly {
        Assembly { metrics, addresses, ended, classes: Vec::new(), send_buffer: None }
    }

    /// The settings by this config, which take over what lives on of those before.
    pub fn settings(&mut self, config: &Config, tls: ReadTls, before: Option<(&Config, &Settings)>) -> Settings {
        for class in &config.classes {
            if !self.classes.contains(&class.name) {
                self.classes.push(class.name.clone());
            }
        }
        let routes = self.routes(config, tls, before);
        let mirrors = self.mirrors(config, &routes);
        let classes = Classes::new(self.classes.iter().map(|name| class_of(config, name)));
        let listen = &config.listen;
        let terms = ClientTerms {
            max_clients: listen.max_clients,
            head_timeout: listen.head_timeout,
            allow_clients: listen.allow_clients.clone(),
        };
        Settings { routes, terms, classes, mirrors }
    }

    fn routes(&self, config: &Config, tls: ReadTls, before: Option<(&Config, &Settings)>) -> Routes {
        let hosts = config.registries.iter().flat_map(claimed_hosts);
        let own: Arc<[SocketAddr]> = self.addresses.all().collect();
        let common = Common {
            metrics: &self.metrics,
            classes: self.classes.iter().map(|name| class_of(config, name)).collect(),
            names: self.classes.as_slice().into(),
            resolver: Arc::new(match before {
                Some((_, settings)) => settings.routes.other_hosts().resolver.followed_by(hosts),
                None => Resolver::new(hosts),
            }),
            own,
            ended: self.ended.clone(),
            tls,
            lease: config.lease.as_ref(),
            send_buffer: self.send_buffer,
        };
        let claims = config.registries.iter().map(|registry| {
            let before = before.and_then(|(config, settings)| {
                let config = config.registries.iter().find(|before| before.name == registry.name)?;
                Some((config, settings.routes.claim(&registry.name)?))
            });
            let claim = before.map(|(_, claim)| claim);
            let cluster = cluster_of(registry, claim);
            let upstream = before.map(|(config, claim)| (config, &*claim.upstream));
            Claim {
                hosts: claimed_hosts(registry),
                upstream: Arc::new(upstream_of(registry, cluster.as_ref(), upstream, &common)),
                policy: policy_of(registry, claim),
                cluster,
            }
        });
        let claims = claims.collect();
        let others = other_hosts();
        let upstream = before.map(|(_, settings)| (&others, &**settings.routes.other_hosts()));
        let other_hosts = Claim {
            hosts: Vec::new(),
            upstream: Arc::new(upstream_of(&others, None, upstream, &common)),
            // Slots do not bind there, but draining takes quiet tunnels.
            policy: policy_of(&others, None),
            cluster: None,
        };
        Routes::new(claims, other_hosts, config.other_hosts == OtherHosts::Direct, common.resolver)
    }

    fn mirrors(&self, config: &Config, routes: &Routes) -> BTreeMap<String, Arc<Mirror>> {
        let mut mirrors = BTreeMap::new();
        for (registry, claim) in config.registries.iter().zip(routes.claims()) {
            let name = &registry.name;
            let nodes = claim.cluster.clone().zip(self.addresses.of(&Service::Mirror(name.clone())));
            let Some((mirror, (cluster, address))) = registry.mirror.as_ref().zip(nodes) else { continue };
            let class = ClassId(self.classes.iter().position(|class| *class == mirror.class).unwrap_or_default());
            let mirror = Mirror::new(claim.upstream.clone(), class, cluster, registry, mirror.rewrite, address);
            mirrors.insert(name.clone(), Arc::new(mirror));
        }
        mirrors
    }
}

/// The class of this name; one that is gone is like any that says nothing.
fn class_of(config: &Config, name: &str) -> config::ClassConfig {
    let class = config.classes.iter().find(|class| class.name == name).cloned();
    class.unwrap_or_else(|| config::ClassConfig { name: name.to_owned(), ..config::ClassConfig::default() })
}

/// The parts that all upstreams share.
struct Common<'a> {
    metrics: &'a Metrics,
    classes: Vec<config::ClassConfig>,
    names: Arc<[String]>,
    resolver: Arc<Resolver>,
    own: Arc<[SocketAddr]>,
    ended: CancellationToken,
    tls: ReadTls,
    send_buffer: Option<usize>,
    lease: Option<&'a LeaseConfig>,
}

impl Common<'_> {
    fn queue_terms(&self, queue: &QueueConfig) -> QueueTerms {
        let by_class = |timeout: fn(&config::ClassConfig) -> Option<Duration>, otherwise| {
            self.classes.iter().map(|class| timeout(class).unwrap_or(otherwise)).collect()
        };
        QueueTerms {
            depth: queue.depth,
            tunnel_timeout: by_class(|class| class.tunnel_timeout, queue.tunnel_timeout),
            request_timeout: by_class(|class| class.request_timeout, queue.request_timeout),
        }
    }
}

/// The hosts of a registry, with those that only its mirror names: every connection there takes its slots.
pub(super) fn claimed_hosts(registry: &config::RegistryConfig) -> Vec<HostPattern> {
    let of_mirror = registry.mirror.iter().flat_map(|mirror| mirror.upstream.iter().map(Origin::pattern));
    registry.hosts.iter().cloned().chain(of_mirror).collect()
}

/// The nodes of its mirror: the same that stood, or others that know what those know.
fn cluster_of(registry: &config::RegistryConfig, before: Option<&Claim>) -> Option<Arc<Cluster>> {
    let origins = &registry.mirror.as_ref()?.upstream;
    Some(match before.and_then(|before| before.cluster.as_ref()) {
        Some(same) if same.origins() == origins => same.clone(),
        Some(others) => others.followed_by(origins.clone()),
        None => Cluster::new(origins.clone()),
    })
}

/// The lessons of earlier tunnels stay, whatever the settings.
fn policy_of(registry: &config::RegistryConfig, before: Option<&Claim>) -> Arc<ReclaimPolicy> {
    let ReclaimConfig { idle_after: idle, unused_after: unused, unsure_after: unsure, stall_timeout, learn } =
        registry.reclaim;
    let pauses = Pauses { idle, unused, unsure, stalled: stall_timeout, least_rate: registry.queue.least_rate, learn };
    Arc::new(before.map_or_else(|| ReclaimPolicy::new(pauses), |before| before.policy.with(pauses)))
}

/// The upstream by these settings. Of the one before, the gate stays with its waiters and holders, and the known state of
/// the registry's health unless its settings changed.
fn upstream_of(
    registry: &config::RegistryConfig,
    nodes: Option<&Arc<Cluster>>,
    before: Option<(&config::RegistryConfig, &Upstream)>,
    common: &Common<'_>,
) -> Upstream {
    let metrics = common.metrics.of_registry(&registry.name, &common.names);
    let is_observed = registry.mode == Mode::Observe;
    let slots_of_each = slots_of_each(registry).filter(|_| !is_observed);
    let repair = before.filter(|(config, _)| (config.repair, config.mode) == (registry.repair, registry.mode));
    let repair = repair.map(|(_, before)| before.repair.clone());
    let lease = Lease::of(registry, common.lease, before.and_then(|(_, before)| before.lease.as_ref()));
    let adapt = Adapt::of(registry, before.map(|(config, of)| (config, &of.adapt)), lease.as_ref().map(|of| &of.tally));
    let sized = before.map(|(_, before)| before.sized.clone()).unwrap_or_default();
    // Locked until the gate knows: the last word counts.
    let mut base = sized.lock();
    *base = slots_of_each.zip(nodes).map(|(of_each, nodes)| NodeSlots { of_each, nodes: nodes.clone() });
    let limits = Limits {
        slots: lease.as_ref().map_or_else(|| base.as_ref().map_or(registry.slots, NodeSlots::all), |of| of.floor()),
        depth: registry.queue.depth,
        rate: registry.rate.map(|rate| RateLimit { period: rate.period, burst: rate.burst }),
        idle_timeout: registry.idle_timeout,
        max_lifetime: registry.max_lifetime,
        max_connecting: registry.max_connecting,
        keep_place: registry.queue.keep_place,
        weights: common.classes.iter().map(|class| class.weight).collect(),
    };
    let before = before.map(|(_, before)| (&before.gate, before.observed.clone()));
    let (gate, observed) = gate_of(before, limits, is_observed, &metrics);
    drop(base);
    adapt.apply(&gate);
    Upstream {
        name: registry.name.clone(),
        gate,
        metrics,
        terms: ConnectionTerms {
            connect_timeout: registry.connect_timeout,
            linger: registry.linger,
            registry_drops: lease.as_ref().and(common.lease).map(|lease| lease.times().ghost()),
            stall_timeout: registry.reclaim.stall_timeout,
            least_rate: registry.queue.least_rate,
            send_buffer: common.send_buffer,
        },
        addresses: AddressPolicy {
            listed: claimed_hosts(registry).iter().filter_map(HostPattern::exact_host).filter_map(Host::ip).collect(),
            own: common.own.clone(),
        },
        queue: common.queue_terms(&registry.queue),
        classes: common.names.clone(),
        tls: common.tls.get(&registry.name).cloned().unwrap_or_else(|| Arc::new(Tls::new(tls_terms(&registry.tls)))),
        repair: repair.unwrap_or_else(|| Arc::new(Repair::new(registry.repair.enabled))),
        adapt,
        observed,
        lease,
        slots_of_each,
        sized,
        resolver: common.resolver.clone(),
        ended: common.ended.clone(),
    }
}

/// The slots of each node, where each has its own.
fn slots_of_each(registry: &config::RegistryConfig) -> Option<usize> {
    let mirror = registry.mirror.as_ref().filter(|mirror| mirror.cap_per_upstream)?;
    Some(registry.slots / mirror.upstream.len())
}

/// Other hosts pass without bound: they are counted, not queued.
fn other_hosts() -> config::RegistryConfig {
    config::RegistryConfig {
        name: OTHER_HOSTS.to_owned(),
        slots: usize::MAX,
        max_connecting: usize::MAX,
        connect_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(30),
        queue: QueueConfig { depth: usize::MAX, keep_place: Duration::ZERO, ..QueueConfig::default() },
        repair: RepairConfig { enabled: false, ..RepairConfig::default() },
        ..config::RegistryConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Target;

    /// When the process drains, what lies quiet there is taken back as well, and no answer is to be cut.
    #[tokio::test]
    async fn tunnels_to_other_hosts_have_the_pauses_that_registries_have() {
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let addresses = ListenAddresses(vec![(Service::Proxy, anywhere)]);
        let mut assembly = Assembly::new(Arc::new(Metrics::new()), addresses, CancellationToken::new());
        let config = Config::parse("[registries.stub]\nhosts = ['127.0.0.1:1']\ncap = 1\nshare = 1\n").unwrap();
        let settings = assembly.settings(&config, ReadTls::new(), None);
        let route = settings.routes.find(&Target::from_connect("192.0.2.1:443").unwrap(), false).await.unwrap();
        assert_eq!(route.upstream.name, OTHER_HOSTS);
        let seconds = Duration::from_secs;
        let (idle, unused, unsure, stalled) = (seconds(1), seconds(3), seconds(10), seconds(300));
        let default = Pauses { idle, unused, unsure, stalled, least_rate: None, learn: true };
        assert_eq!(route.policy.pauses(), default);
    }
}
