//! Slots toward a registry that are not held at its own gate: another process may still serve those who came to it, by a
//! config that was its own, or the kernel is still ending what a process had.
//!
//! One rule holds for all of them: a gate leaves as many slots alone as are held elsewhere toward its hosts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::admission::Gate;
use crate::metrics::OTHER_HOSTS;
use crate::proxy::route::Claim;
use crate::proxy::{Proxy, Settings};
use crate::target::{HostPattern, Target};
use crate::upstream::Upstream;
use crate::upstream::http::PooledConnection;

/// How often it is looked what is still held.
pub const LOOK: Duration = Duration::from_millis(10);

/// Slots that another process holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The registry's name there, or `other_hosts`.
    pub name: String,
    /// The hosts that it leads to, as in a config.
    pub hosts: Vec<String>,
    /// How many.
    pub slots: usize,
}

/// What another process holds.
pub type Held = Vec<Holding>;

/// What is held elsewhere, and who holds it.
pub(super) struct Elsewhere {
    proxy: Arc<Proxy>,
    state: Mutex<State>,
}

struct State {
    /// What the processes before this one hold; `None`: that is not known yet, so it may be everything.
    processes: Option<Held>,
    /// What the kernel is still ending.
    orphans: Held,
}

/// A gate whose slots are handed on, and the hosts that it leads to.
pub(super) struct Handed {
    pub gate: Gate<PooledConnection>,
    name: String,
    hosts: Vec<String>,
}

impl std::fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Elsewhere").finish_non_exhaustive()
    }
}

impl Elsewhere {
    /// Nothing is held elsewhere.
    pub fn new(proxy: Arc<Proxy>) -> Arc<Elsewhere> {
        let state = State { processes: Some(Held::new()), orphans: Held::new() };
        Arc::new(Elsewhere { proxy, state: Mutex::new(state) })
    }

    /// Whose gates these are.
    pub fn proxy(&self) -> &Arc<Proxy> {
        &self.proxy
    }

    /// All upstreams.
    pub fn upstreams(&self) -> Vec<Arc<Upstream>> {
        self.proxy.settings().routes.upstreams().cloned().collect()
    }

    /// What the processes before this one hold by now; `None`: maybe everything.
    pub fn processes_hold(&self, held: Option<Held>) {
        let mut state = self.lock();
        state.processes = held;
        self.count(&state);
    }

    /// What the kernel is still ending by now.
    pub fn orphans_are(&self, held: Held) {
        let mut state = self.lock();
        state.orphans = held;
        self.count(&state);
    }

    /// Whether processes hold something, or the kernel does for them.
    pub fn others_hold_some(&self) -> bool {
        let state = self.lock();
        state.processes.as_ref().is_none_or(|held| sum(held) > 0) || sum(&state.orphans) > 0
    }

    /// Begins without tokens: other processes may have spent them.
    pub fn spend_tokens(&self) {
        self.proxy.settings().routes.registries().for_each(|upstream| upstream.gate.spend_tokens());
    }

    /// Lets other settings hold.
    pub fn replace(&self, settings: Settings) {
        let state = self.lock();
        self.proxy.replace(settings);
        self.count(&state);
    }

    /// The gates whose slots are to be handed on.
    pub fn handed(&self) -> Vec<Handed> {
        let settings = self.proxy.settings();
        let handed = settings.routes.claims().iter().map(|Claim { upstream, hosts, .. }| {
            let open = upstream.gate.targets();
            let others = open.keys().filter_map(|name| Target::from_connect(name).ok());
            let others = others.filter(|target| !hosts.iter().any(|host| host.matches(target)));
            let hosts = hosts.iter().map(ToString::to_string).chain(others.map(|target| target.to_string())).collect();
            Handed { gate: upstream.gate.clone(), name: upstream.name.clone(), hosts }
        });
        handed.collect()
    }

    /// What is held beside those gates: toward other hosts, one of which may be a registry's for the next process, and by
    /// older processes toward registries that this one does not have.
    pub fn beside(&self) -> Held {
        let settings = self.proxy.settings();
        let open = settings.routes.other_hosts().gate.targets();
        let other_hosts = open.into_iter().map(|(target, slots)| {
            let (name, hosts) = (OTHER_HOSTS.to_owned(), vec![target.to_string()]);
            Holding { name, hosts, slots }
        });
        let claims = settings.routes.claims();
        let state = self.lock();
        let held: &[Holding] = state.processes.as_deref().unwrap_or_default();
        let is_ours = |holding: &&Holding| claims.iter().any(|claim| holding.concerns(claim, held, claims));
        let older = held.iter().filter(|holding| holding.slots > 0 && !is_ours(holding)).cloned();
        other_hosts.chain(older).collect()
    }

    /// Reserves what is held elsewhere.
    fn count(&self, state: &State) {
        let settings = self.proxy.settings();
        let claims = settings.routes.claims();
        for claim in claims {
            let of_others = |held: &Held| {
                let concerned = held.iter().filter(|holding| holding.concerns(claim, held, claims));
                concerned.map(|holding| holding.slots).sum::<usize>()
            };
            let gate = &claim.upstream.gate;
            let there = state.processes.as_ref().map_or_else(|| gate.snapshot().slots, of_others);
            gate.reserve(there + of_others(&state.orphans));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holding {
    /// What a registry holds here.
    pub fn of(claim: &Claim, slots: usize) -> Holding {
        let hosts = claim.hosts.iter().map(ToString::to_string).collect();
        Holding { name: claim.upstream.name.clone(), hosts, slots }
    }

    /// Whether it counts for this registry: under its name, or since one leads to a host that the other does. Of two that
    /// lead to the same place the more specific one decides, there as here.
    fn concerns(&self, claim: &Claim, held: &[Holding], claims: &[Claim]) -> bool {
        let others_have_there = |host: &HostPattern| {
            let others = held.iter().filter(|other| other.name != self.name);
            others.flat_map(|other| patterns(&other.hosts)).any(|other| other == *host)
        };
        let others_claim = |host: &HostPattern| {
            let others = claims.iter().filter(|other| other.upstream.name != claim.upstream.name);
            others.flat_map(|other| &other.hosts).any(|other| other == host)
        };
        let leads_to = |there: &HostPattern, here: &HostPattern| {
            there.meets(here)
                && !(here.specificity() > there.specificity() && others_have_there(here))
                && !(there.specificity() > here.specificity() && others_claim(there))
        };
        self.name == claim.upstream.name
            || patterns(&self.hosts).any(|there| claim.hosts.iter().any(|here| leads_to(&there, here)))
    }
}

impl Handed {
    /// So many of its slots, for the other process.
    pub fn holding(&self, slots: usize) -> Holding {
        Holding { name: self.name.clone(), hosts: self.hosts.clone(), slots }
    }
}

/// All slots of these.
pub(super) fn sum(held: &Held) -> usize {
    held.iter().map(|holding| holding.slots).sum()
}

fn patterns(hosts: &[String]) -> impl Iterator<Item = HostPattern> {
    hosts.iter().filter_map(|host| HostPattern::parse(host).ok())
}
