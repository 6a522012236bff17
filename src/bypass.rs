//! The radar: connections of this network to a registry that do not pass the sidecar, and the audit of our own.
//!
//! Every two seconds it reads the kernel's list of sockets. A socket toward a registry's address that is none of ours goes
//! around the cap. Ours must not be more than the slots. It decides nothing: `/status`, the page and `/metrics` show what it saw.
//! `app` starts it. It is off, and says so, where no other process uses the network, as in a pod of its own.

pub mod audit;
pub mod mark;
pub mod owners;
mod sockets;
pub mod words;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use self::audit::{Allowed, Audit};
use self::owners::BypassOwner;
use self::sockets::{RegistryAddress, Sightings, look};
use self::words::going_around;
use crate::metrics::{Families, number};
use crate::proxy::Proxy;
use crate::proxy::route::Claim;
use crate::target::{Host, HostPattern};
use crate::upstream::Upstream;

/// The pause between two readings: a bypass is seen, and seen to be gone, within 5 s.
const PERIOD: Duration = Duration::from_secs(2);
/// The pause between two look-ups of the names; in between, the addresses count that they gave lately.
const LOOKUP_PERIOD: Duration = Duration::from_secs(30);
/// How long a name may take to resolve; one that takes longer is left out of this reading.
const MAX_LOOKUP: Duration = Duration::from_secs(1);
/// The ports at which a registry is expected whose `hosts` name none.
const USUAL_PORTS: [u16; 2] = [443, 80];

/// The last sight of one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BypassSight {
    /// Connections that do not pass this process.
    pub connections: usize,
    /// Their owners, the one with the most first.
    pub owners: Vec<BypassOwner>,
    /// Our own sockets beyond the slots; 0, or the cap does not hold. Not there where it does not hold by the config.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excess_sockets: Option<usize>,
}

impl BypassSight {
    /// Adds the gauges of a registry.
    pub fn scrape(&self, scrape: &Families, registry: &str) {
        let labels = [("registry", registry)];
        let around = "Connections of this network to the registry that do not pass the sidecar.";
        scrape.gauge(("roadstead_bypass_connections", around), &labels, number(self.connections));
        let excess =
            "Our own sockets beyond the slots, as the kernel counts them; always 0. Not there in mode observe.";
        if let Some(sockets) = self.excess_sockets {
            scrape.gauge(("roadstead_audit_excess_sockets", excess), &labels, number(sockets));
        }
    }
}

#[derive(Debug)]
struct Sight {
    /// Why it is off.
    off: Option<&'static str>,
    registries: BTreeMap<String, BypassSight>,
    audits: BTreeMap<String, Audit>,
}

/// The last reading, for those who show it.
#[derive(Debug)]
pub struct Radar(Mutex<Sight>);

impl Radar {
    /// Begins to look, again and again until `end` is cancelled: the successor looks then.
    pub fn start(proxy: Arc<Proxy>, end: CancellationToken) -> Arc<Radar> {
        let (registries, audits) = Default::default();
        let radar = Arc::new(Radar(Mutex::new(Sight { off: None, registries, audits })));
        tokio::spawn(radar.clone().watch(proxy, end));
        radar
    }

    /// The last sight of a registry; `None` while it is off.
    pub fn of(&self, registry: &Upstream) -> Option<BypassSight> {
        let seen = self.0.lock();
        let sight = seen.registries.get(&registry.name).cloned().unwrap_or_default();
        let excess_sockets = registry.observed.is_none().then_some(sight.excess_sockets.unwrap_or_default());
        seen.off.is_none().then_some(BypassSight { excess_sockets, ..sight })
    }

    /// `on`, or why it is off.
    pub fn state(&self) -> String {
        self.0.lock().off.map_or_else(|| "on".to_owned(), |why| format!("off: {why}"))
    }

    async fn watch(self: Arc<Self>, proxy: Arc<Proxy>, end: CancellationToken) {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next_lookup = Instant::now();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = end.cancelled() => break,
            }
            let settings = proxy.settings();
            let may_look_up = Instant::now() >= next_lookup;
            if may_look_up {
                next_lookup = Instant::now() + LOOKUP_PERIOD;
            }
            let mut places = BTreeMap::new();
            for claim in settings.routes.claims() {
                places.insert(claim.upstream.name.clone(), places_of(claim, may_look_up).await);
            }
            let wanted: BTreeSet<RegistryAddress> = places.values().flatten().copied().collect();
            let slots = || {
                settings.routes.claims().iter().map(|claim| {
                    let fixed = || Allowed::Fixed(claim.upstream.gate.snapshot().slots);
                    let leased = claim.upstream.lease.as_ref().map(|lease| Allowed::Leased(lease.most_since_asked()));
                    (claim.upstream.name.clone(), leased.unwrap_or_else(fixed))
                })
            };
            // A reload to fewer slots may come while the kernel is asked.
            let mut most: BTreeMap<String, Allowed> = slots().collect();
            let looked = tokio::task::spawn_blocking(move || look(&wanted)).await.unwrap_or(Err("it failed"));
            slots().for_each(|(name, slots)| _ = most.entry(name).and_modify(|most| *most = slots.max(*most)));
            self.take(looked, &places, &most);
        }
        self.0.lock().off = Some("another process has taken over, or this one ends");
    }

    fn take(
        &self,
        looked: Result<Sightings, &'static str>,
        places: &BTreeMap<String, BTreeSet<RegistryAddress>>,
        slots: &BTreeMap<String, Allowed>,
    ) {
        let mut seen = self.0.lock();
        let sightings = match looked {
            Ok(sightings) => sightings,
            Err(why) => {
                if seen.off != Some(why) {
                    tracing::info!("connections that go around the sidecar are not watched: {why}");
                }
                seen.off = Some(why);
                seen.registries.clear();
                return;
            }
        };
        seen.off = None;
        let Sight { registries, audits, .. } = &mut *seen;
        registries.retain(|name, _| places.contains_key(name));
        audits.retain(|name, _| places.contains_key(name));
        for (name, at) in places {
            let others = sightings.others.iter().filter(|(place, _)| at.contains(place));
            let mut owners: HashMap<(u32, Option<String>), usize> = HashMap::new();
            others.for_each(|(_, who)| *owners.entry(who.clone()).or_default() += 1);
            let owners = owners::by_size(owners);
            // A place that two registries share counts at neither: no one can tell whose socket it is.
            let is_shared =
                |place: &RegistryAddress| places.iter().any(|(other, at)| other != name && at.contains(place));
            let ours = sightings.ours.iter().filter(|place| at.contains(place) && !is_shared(place)).count();
            let audit = audits.entry(name.clone()).or_default();
            let excess_sockets =
                Some(audit.excess(slots.get(name).copied().unwrap_or(Allowed::Fixed(usize::MAX)), ours));
            let now =
                BypassSight { connections: owners.iter().map(|owner| owner.connections).sum(), owners, excess_sockets };
            let before = registries.insert(name.clone(), now.clone()).unwrap_or_default();
            tell(name, &before, &now);
        }
    }
}

/// Logs what has changed.
fn tell(registry: &str, before: &BypassSight, now: &BypassSight) {
    if now.connections > 0 && before.connections == 0 {
        let owners: Vec<String> = now.owners.iter().map(ToString::to_string).collect();
        let owners = owners.join(", ");
        tracing::warn!(
            registry,
            "{} the sidecar, and so around the cap: {owners}",
            going_around(u64::try_from(now.connections).unwrap_or(u64::MAX))
        );
    } else if now.connections == 0 && before.connections > 0 {
        tracing::info!(registry, "no connection goes around the sidecar any more");
    }
    if let Some(excess @ 1..) = now.excess_sockets
        && before.excess_sockets.unwrap_or_default() == 0
    {
        tracing::error!(registry, "{excess} sockets are open beyond the slots, as the kernel counts them");
    }
}

/// The addresses at which a registry is, as far as its names can be resolved.
async fn places_of(claim: &Claim, may_look_up: bool) -> BTreeSet<RegistryAddress> {
    let mut places = BTreeSet::new();
    let ports: Vec<u16> = claim.hosts.iter().filter_map(HostPattern::port).chain(USUAL_PORTS).collect();
    for pattern in &claim.hosts {
        let mut ips = claim.upstream.resolver.lately(pattern);
        ips.extend(pattern.exact_host().and_then(Host::ip));
        if let Some(host) = pattern.exact_host()
            && may_look_up
            && let Ok(Ok(now)) = timeout(MAX_LOOKUP, claim.upstream.resolver.resolve(host)).await
        {
            ips.extend(now);
        }
        let ports = pattern.port().map_or_else(|| ports.clone(), |port| vec![port]);
        places.extend(ips.iter().flat_map(|ip| ports.iter().map(|port| (ip.to_canonical(), *port))));
    }
    places
}
