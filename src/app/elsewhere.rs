//! Slots toward a registry that are not held at its own gate.
//!
//! A reload may send a host to another gate than before: its registry is renamed, goes and comes back, gives the host to
//! another one, or claims what went to other hosts. Another process may still serve those who came to it, by a config
//! that was its own. One rule holds for all of them: a gate leaves as many slots alone as are held elsewhere toward its
//! hosts. They are counted anew until there are none.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::admission::Gate;
use crate::metrics::OTHER_HOSTS;
use crate::proxy::route::{Claim, Routes};
use crate::proxy::{Proxy, Settings};
use crate::target::{HostPattern, Origin, Target};
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
    /// Upstreams that the settings have no more, as long as it matters.
    before: Vec<Before>,
    /// Whether a task counts anew.
    counting: bool,
}

/// An upstream of settings before.
struct Before {
    upstream: Arc<Upstream>,
    /// What it claimed; nothing, where it was all that no registry claimed.
    hosts: Vec<HostPattern>,
    /// Of that, what other gates claim by now: there somebody may be on the way who asked before.
    toward: Vec<HostPattern>,
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
        let state = State { processes: Some(Held::new()), orphans: Held::new(), before: Vec::new(), counting: false };
        Arc::new(Elsewhere { proxy, state: Mutex::new(state) })
    }

    /// Whose gates these are.
    pub fn proxy(&self) -> &Arc<Proxy> {
        &self.proxy
    }

    /// All upstreams: those of the settings, and those of before.
    pub fn upstreams(&self) -> Vec<Arc<Upstream>> {
        let settings = self.proxy.settings();
        let before = self.lock().before.iter().map(|before| before.upstream.clone()).collect::<Vec<_>>();
        settings.routes.upstreams().cloned().chain(before).collect()
    }

    /// What the processes before this one hold by now; `None`: maybe everything.
    pub fn processes_hold(&self, held: Option<Held>) {
        let mut state = self.lock();
        state.processes = held;
        self.count(&mut state);
    }

    /// What the kernel is still ending by now.
    pub fn orphans_are(&self, held: Held) {
        let mut state = self.lock();
        state.orphans = held;
        self.count(&mut state);
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

    /// Lets other settings hold. What is held by the ones before counts where it leads to now.
    pub fn replace(self: &Arc<Elsewhere>, settings: Settings) {
        let mut state = self.lock();
        let before = self.proxy.settings();
        state.before.extend(before.routes.claims().iter().map(|claim| Before::of(&claim.upstream, &claim.hosts)));
        state.before.push(Before::of(before.routes.other_hosts(), &[]));
        for claim in settings.routes.claims() {
            let gained = gained(claim, &before.routes);
            if gained.is_empty() {
                continue;
            }
            // Nobody is admitted until it was counted.
            claim.upstream.gate.reserve(claim.upstream.gate.snapshot().slots);
            let is_fresh = !before.routes.registries().any(|upstream| upstream.gate.is(&claim.upstream.gate));
            for before in state.before.iter_mut().filter(|before| !before.upstream.gate.is(&claim.upstream.gate)) {
                let led_to: Vec<HostPattern> = gained.iter().filter(|host| before.led_to(host)).cloned().collect();
                before.toward.extend(led_to);
                if is_fresh && before.is_succeeded_by(claim) {
                    claim.upstream.gate.spend_tokens();
                    if before.upstream.gate.snapshot().paused {
                        claim.upstream.gate.pause();
                    }
                }
            }
        }
        self.proxy.replace(settings);
        // From here on nobody new is on the way by the ones before.
        drop(before);
        let settings = self.proxy.settings();
        for before in state.before.iter().filter(|before| !before.lives(&settings.routes)) {
            // Who holds a connection goes on; nothing more is kept there.
            before.upstream.gate.drain();
        }
        if self.count(&mut state) && !state.counting {
            state.counting = true;
            tokio::spawn(self.clone().keep_counting());
        }
    }

    /// The gates whose slots are to be handed on.
    pub fn handed(&self) -> Vec<Handed> {
        let (settings, state) = (self.proxy.settings(), self.lock());
        let claims = settings.routes.claims().iter().map(|claim| (&claim.upstream, &claim.hosts));
        let before = state.before.iter().filter(|before| !before.hosts.is_empty());
        let mut handed: Vec<Handed> = Vec::new();
        for (upstream, hosts) in claims.chain(before.map(|before| (&before.upstream, &before.hosts))) {
            let hosts = hosts.iter().map(ToString::to_string);
            if let Some(same) = handed.iter_mut().find(|handed| handed.gate.is(&upstream.gate)) {
                same.hosts.extend(hosts);
            } else {
                let (gate, name) = (upstream.gate.clone(), upstream.name.clone());
                handed.push(Handed { gate, name, hosts: hosts.collect() });
            }
        }
        for handed in &mut handed {
            let known: Vec<HostPattern> = patterns(&handed.hosts).collect();
            let open = handed.gate.targets();
            let others = open.keys().flat_map(|name| targets(name));
            let others = others.filter(|target| !known.iter().any(|host| host.matches(target)));
            handed.hosts.extend(others.map(|target| target.to_string()).collect::<Vec<_>>());
        }
        handed
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

    async fn keep_counting(self: Arc<Elsewhere>) {
        loop {
            sleep(LOOK).await;
            let mut state = self.lock();
            if !self.count(&mut state) {
                state.counting = false;
                return;
            }
        }
    }

    /// Reserves what is held elsewhere. Whether something is held in this very process.
    fn count(&self, state: &mut State) -> bool {
        let settings = self.proxy.settings();
        let (routes, claims) = (&settings.routes, settings.routes.claims());
        state.before.retain(|before| before.matters(routes));
        let abroad = abroad(routes, &state.before);
        for claim in claims {
            let Claim { upstream, hosts, .. } = claim;
            let of_claim = || abroad.iter().filter(|abroad| abroad.registry == upstream.name);
            let here: usize = of_claim().map(|abroad| abroad.slots).sum();
            if here > 0 && upstream.gate.snapshot().waiting > 0 {
                of_claim().for_each(|abroad| abroad.gate.make_way_toward(&abroad.target));
            }
            let asked_before = state.before.iter().filter(|before| !before.upstream.gate.is(&upstream.gate));
            let asked_before = asked_before.filter(|before| before.toward.iter().any(|host| meets_any(host, hosts)));
            let on_the_way: usize = asked_before.map(Before::on_the_way).sum();
            let of_others = |held: &Held| {
                let concerned = held.iter().filter(|holding| holding.concerns(claim, held, claims));
                concerned.map(|holding| holding.slots).sum::<usize>()
            };
            let there = state.processes.as_ref().map_or_else(|| upstream.gate.snapshot().slots, of_others);
            upstream.gate.reserve(here + on_the_way + there + of_others(&state.orphans));
        }
        for before in &state.before {
            before.follow_pauses(routes);
        }
        !state.before.is_empty() || !abroad.is_empty()
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

impl Before {
    fn of(upstream: &Arc<Upstream>, hosts: &[HostPattern]) -> Before {
        Before { upstream: upstream.clone(), hosts: hosts.to_vec(), toward: Vec::new() }
    }

    /// Requests that are on their way by it, at most: each of them has it until it was answered.
    fn on_the_way(&self) -> usize {
        Arc::strong_count(&self.upstream) - 1
    }

    fn led_to(&self, host: &HostPattern) -> bool {
        self.hosts.is_empty() || meets_any(host, &self.hosts)
    }

    /// Whether this is the same registry by another gate.
    fn is_succeeded_by(&self, claim: &Claim) -> bool {
        let shares = self.hosts.iter().any(|host| meets_any(host, &claim.hosts));
        self.upstream.name == claim.upstream.name || shares
    }

    fn lives(&self, routes: &Routes) -> bool {
        routes.upstreams().any(|upstream| upstream.gate.is(&self.upstream.gate))
    }

    fn matters(&self, routes: &Routes) -> bool {
        let somebody_comes = self.on_the_way() > 0;
        if self.lives(routes) {
            somebody_comes && !self.toward.is_empty()
        } else {
            somebody_comes || self.upstream.gate.snapshot().open.open() > 0
        }
    }

    /// Who waits at a gate that is gone waits for an operator who speaks of the registry that succeeded it.
    fn follow_pauses(&self, routes: &Routes) {
        if self.lives(routes) {
            return;
        }
        let Some(claim) = routes.claims().iter().find(|claim| self.is_succeeded_by(claim)) else { return };
        let gate = &self.upstream.gate;
        match (claim.upstream.gate.snapshot().paused, gate.snapshot().paused) {
            (true, false) => gate.pause(),
            (false, true) => gate.resume(),
            _ => {}
        }
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

/// The hosts of this registry that its gate did not serve before.
fn gained(claim: &Claim, before: &Routes) -> Vec<HostPattern> {
    let same = before.claims().iter().find(|before| before.upstream.gate.is(&claim.upstream.gate));
    let had = |host: &&HostPattern| same.is_some_and(|same| same.hosts.contains(host));
    claim.hosts.iter().filter(|host| !had(host)).cloned().collect()
}

/// Open slots toward a registry at another gate than its own.
struct Abroad<'a> {
    registry: &'a str,
    gate: &'a Gate<PooledConnection>,
    /// What that gate calls the place.
    target: Arc<str>,
    slots: usize,
}

/// All of them.
fn abroad<'a>(routes: &'a Routes, before: &'a [Before]) -> Vec<Abroad<'a>> {
    let mut gates: Vec<&Gate<PooledConnection>> = Vec::new();
    for upstream in routes.upstreams().chain(before.iter().map(|before| &before.upstream)) {
        if !gates.iter().any(|gate| gate.is(&upstream.gate)) {
            gates.push(&upstream.gate);
        }
    }
    let mut abroad = Vec::new();
    for gate in gates {
        for (target, slots) in gate.targets() {
            let claimants: BTreeMap<&str, &Gate<PooledConnection>> = targets(&target)
                .iter()
                .filter_map(|target| routes.claimant(target))
                .map(|claim| (claim.upstream.name.as_str(), &claim.upstream.gate))
                .collect();
            let others = claimants.into_iter().filter(|(_, claimant)| !claimant.is(gate));
            abroad.extend(others.map(|(registry, _)| Abroad { registry, gate, target: target.clone(), slots }));
        }
    }
    abroad
}

/// What a gate calls a target: host and port, or the URLs of all nodes.
fn targets(name: &str) -> Vec<Target> {
    let one = |part| Target::from_connect(part).ok().or_else(|| Some(Origin::parse(part).ok()?.target));
    name.split(' ').filter_map(one).collect()
}

fn patterns(hosts: &[String]) -> impl Iterator<Item = HostPattern> {
    hosts.iter().filter_map(|host| HostPattern::parse(host).ok())
}

fn meets_any(host: &HostPattern, others: &[HostPattern]) -> bool {
    others.iter().any(|other| other.meets(host))
}
