//! Slots toward a registry that other processes hold: a process before this one that still serves its clients, by a config
//! that was its own, or the kernel for a process that is gone.
//!
//! One rule holds for all of them: a gate leaves as many slots unused as others hold toward its hosts. A slot that was
//! granted to another process is held by a slot of the gate itself, so that it counts as used by the client for which it was
//! granted; the rest is reserved.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::link::Holding;
use crate::admission::Slot;
use crate::fleet::tasks::Participant;
use crate::proxy::route::Claim;
use crate::proxy::{Proxy, Settings};
use crate::target::HostPattern;
use crate::upstream::Upstream;

/// The slots that others hold.
#[derive(Debug)]
pub struct Reservations {
    proxy: Arc<Proxy>,
    /// The place of the control socket. Processes of this node write for each other beside it.
    pub control: Option<PathBuf>,
    /// Notified of whatever happens to a gate, and when nothing is held any more.
    pub changes: Arc<Notify>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether there is a process before this one that has not ended.
    has_predecessor: bool,
    /// The slots of this and earlier processes; `None`: not known yet, so it may be all of them.
    held: Option<Vec<Holding>>,
    /// The sockets that the kernel still closes.
    orphans: Vec<Holding>,
    /// Slots that were granted, by the registry's name there: how many in all, and those that count.
    granted: BTreeMap<String, usize>,
    granted_slots: BTreeMap<String, Vec<GrantedSlot>>,
}

/// One slot of another process: a slot of each gate here that leads to the same hosts.
pub type GrantedSlot = Vec<Slot>;

impl Reservations {
    pub fn new(proxy: Arc<Proxy>, control: Option<PathBuf>) -> Arc<Reservations> {
        let state = State { held: Some(Vec::new()), ..State::default() };
        let changes = Arc::new(Notify::new());
        proxy.settings().routes.upstreams().for_each(|upstream| upstream.gate.tell_changes(&changes));
        Arc::new(Reservations { proxy, control, changes, state: Mutex::new(state) })
    }

    pub fn proxy(&self) -> &Arc<Proxy> {
        &self.proxy
    }

    pub fn upstreams(&self) -> Vec<Arc<Upstream>> {
        self.proxy.settings().routes.upstreams().cloned().collect()
    }

    /// Begins to lend.
    pub fn take_part(&self, participant: &Participant) {
        for up in self.upstreams() {
            let (proxy, name) = (self.proxy.clone(), up.name.clone());
            // By the settings that hold when it is asked.
            let distress = move || proxy.settings().routes.claim(&name).map_or(0.0, |claim| claim.upstream.distress());
            participant.take_part(&up.lease, &up.gate, &self.changes, distress);
        }
    }

    /// Takes over what was lent to processes of this node that are gone.
    pub fn claim(self: Arc<Self>, participant: Participant) {
        let leases = self.upstreams().iter().filter_map(|up| up.lease.clone()).collect();
        let control = self.control.clone();
        tokio::spawn(async move {
            let is_alone = self.until(|| !self.state.lock().has_predecessor);
            participant.claim(control, leases, is_alone).await;
        });
    }

    /// Lets other settings hold.
    pub fn replace(&self, settings: Settings) {
        let state = self.state.lock();
        settings.routes.upstreams().for_each(|upstream| upstream.gate.tell_changes(&self.changes));
        self.proxy.replace(settings);
        self.reserve(&state);
    }

    /// Completes when this is true, which is looked at whenever something happens to a gate.
    pub async fn until(&self, mut holds: impl FnMut() -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changes.notified());
            changed.as_mut().enable();
            if holds() {
                return;
            }
            changed.await;
        }
    }

    /// Completes when there is no process before this one, and the kernel holds nothing of one.
    pub async fn until_others_are_gone(&self) {
        let are_gone = |state: &State| !state.has_predecessor && sum(&state.orphans) == 0;
        self.until(|| are_gone(&self.state.lock())).await;
    }

    /// Sets the slots of earlier processes; `None`: not known yet.
    pub fn set_held(&self, held: Option<Vec<Holding>>) {
        let mut state = self.state.lock();
        (state.has_predecessor, state.held) = (true, held);
        self.reserve(&state);
        state.give_back();
    }

    /// The process before this one has ended.
    pub fn predecessor_ended(&self) {
        let mut state = self.state.lock();
        (state.has_predecessor, state.held) = (false, Some(Vec::new()));
        state.granted.clear();
        self.reserve(&state);
        state.give_back();
        self.changes.notify_waiters();
    }

    /// Sets the sockets that the kernel still closes.
    pub fn set_orphans(&self, orphans: Vec<Holding>) {
        let mut state = self.state.lock();
        state.orphans = orphans;
        self.reserve(&state);
        self.changes.notify_waiters();
    }

    /// A slot is granted to the process before this one, for its registry of this name. How many of each were so far.
    pub fn grant(&self, name: &str, slot: GrantedSlot) -> BTreeMap<String, usize> {
        let mut state = self.state.lock();
        *state.granted.entry(name.to_owned()).or_default() += 1;
        if !slot.is_empty() {
            state.granted_slots.entry(name.to_owned()).or_default().push(slot);
        }
        state.granted.clone()
    }

    /// The slots of older processes toward registries that this one does not have.
    pub fn held_beside(&self) -> Vec<Holding> {
        let settings = self.proxy.settings();
        let claims = settings.routes.claims();
        let state = self.state.lock();
        let held: &[Holding] = state.held.as_deref().unwrap_or_default();
        let is_ours = |holding: &&Holding| claims.iter().any(|claim| concerns(holding, claim, held, claims));
        let older = held.iter().filter(|holding| holding.slots > 0 && !is_ours(holding));
        older.map(|holding| Holding { granted: 0, waiting: Vec::new(), ..holding.clone() }).collect()
    }

    fn reserve(&self, state: &State) {
        let settings = self.proxy.settings();
        let claims = settings.routes.claims();
        for claim in claims {
            let gate = &claim.upstream.gate;
            let there = state.held.as_ref().map_or_else(
                || Some(gate.snapshot().slots).filter(|slots| *slots < usize::MAX).unwrap_or_default(),
                |held| {
                    let concerned = held.iter().filter(|holding| concerns(holding, claim, held, claims));
                    concerned.map(|holding| state.needed(holding).saturating_sub(state.granted_of(&holding.name))).sum()
                },
            );
            let orphans = state.orphans.iter().filter(|holding| concerns(holding, claim, &state.orphans, claims));
            let reserved = there + orphans.map(|holding| holding.slots).sum::<usize>();
            gate.happen(|core, now| core.reserve(reserved, now));
        }
    }
}

impl State {
    /// The slots that it has, and those of which it has not heard yet.
    fn needed(&self, holding: &Holding) -> usize {
        holding.slots + self.granted.get(&holding.name).map_or(0, |granted| granted.saturating_sub(holding.granted))
    }

    fn granted_of(&self, name: &str) -> usize {
        self.granted_slots.get(name).map_or(0, Vec::len)
    }

    /// Returns the slots that the other process no longer needs, first those that it had before any grant.
    fn give_back(&mut self) {
        let mut slots = std::mem::take(&mut self.granted_slots);
        for (name, slots) in &mut slots {
            let of_name = self.held.iter().flatten().find(|holding| holding.name == *name);
            let needed = of_name.map_or(0, |holding| self.needed(holding));
            slots.drain(..slots.len().saturating_sub(needed));
        }
        self.granted_slots = slots;
    }
}

/// Whether what another process holds counts for this registry: under its name, or since one leads to a host that the other
/// does. Of two that lead to the same place the more specific one decides, there as here.
pub fn concerns(holding: &Holding, claim: &Claim, held: &[Holding], claims: &[Claim]) -> bool {
    let others_have_there = |host: &HostPattern| {
        let others = held.iter().filter(|other| other.name != holding.name);
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
    holding.name == claim.upstream.name
        || patterns(&holding.hosts).any(|there| claim.hosts.iter().any(|here| leads_to(&there, here)))
}

pub fn sum(held: &[Holding]) -> usize {
    held.iter().map(|holding| holding.slots).sum()
}

fn patterns(hosts: &[String]) -> impl Iterator<Item = HostPattern> {
    hosts.iter().filter_map(|host| HostPattern::parse(host).ok())
}
