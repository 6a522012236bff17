//! The side of the old process: it reports what it needs, and uses what it is granted.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::link::{Holding, Message, Waiting};
use super::process::Successor;
use super::reservations::Reservations;
use crate::admission::core::Core;
use crate::metrics::OTHER_HOSTS;
use crate::proxy::route::Claim;
use crate::target::Target;
use crate::upstream::Upstream;

/// Hands over to this process, as long as that lives. Completes when it has ended, which is an error.
pub async fn hand_over(mut successor: Successor, reservations: Arc<Reservations>) {
    let settings = reservations.proxy().settings();
    let paused = settings.routes.registries().filter(|upstream| upstream.gate.snapshot().paused);
    let paused: BTreeSet<String> = paused.map(|upstream| upstream.name.clone()).collect();
    let mut handed: Vec<Handed> = settings.routes.claims().iter().map(Handed::new).collect();
    if successor.link.tell(&Message::Paused(paused)).await.is_ok() {
        report_and_use(&mut successor, &mut handed, &reservations).await;
    }
    let status = successor.ended().await;
    tracing::error!(pid = successor.pid, ?status, "the process that took over has ended before this one");
}

/// Ends when the link does.
async fn report_and_use(successor: &mut Successor, handed: &mut [Handed], reservations: &Reservations) {
    let mut told = None;
    loop {
        let mut next = None;
        let changed = reservations.until(|| {
            let report = handed.iter_mut().map(Handed::report).chain(beside(reservations)).collect::<Vec<_>>();
            let is_new = told.as_ref() != Some(&report);
            next = is_new.then_some(report);
            is_new
        });
        tokio::select! {
            () = changed => {}
            message = successor.link.next() => match message {
                Some(Message::Granted(granted)) => {
                    for handed in handed.iter_mut() {
                        handed.heard = granted.get(&handed.upstream.name).copied().unwrap_or_default();
                    }
                    continue;
                }
                Some(_) => continue,
                None => return,
            },
        }
        if let Some(report) = next {
            if successor.link.tell(&Message::Held(report.clone())).await.is_err() {
                return;
            }
            told = Some(report);
        }
    }
}

/// A registry whose slots are handed over.
struct Handed {
    upstream: Arc<Upstream>,
    hosts: Vec<String>,
    /// Slots granted so far: those that the gate knows of, and those of which this process has heard.
    known: usize,
    heard: usize,
}

impl Handed {
    /// From here on nothing is admitted that the other process does not grant; that one holds the pauses, too.
    fn new(claim: &Claim) -> Handed {
        let Claim { upstream, hosts, .. } = claim;
        // Leased slots are its own until they go back to the store.
        if upstream.lease.is_none() {
            let _ = upstream.gate.hand_over(0);
            upstream.gate.happen(Core::resume);
        }
        // Another name of the same address counts here as well.
        let open = upstream.gate.look(|core, _| core.targets());
        let others = open.keys().filter_map(|name| Target::from_connect(name).ok());
        let others = others.filter(|target| !hosts.iter().any(|host| host.matches(target)));
        let hosts = hosts.iter().map(ToString::to_string).chain(others.map(|target| target.to_string())).collect();
        Handed { upstream: upstream.clone(), hosts, known: 0, heard: 0 }
    }

    /// Reports the current needs; granted slots are used from here on.
    fn report(&mut self) -> Holding {
        let Handed { upstream, hosts, .. } = self;
        let (name, hosts) = (upstream.name.clone(), hosts.clone());
        if let Some(lease) = &upstream.lease {
            return Holding { name, hosts, slots: lease.floor(), ..Holding::default() };
        }
        let needs = upstream.gate.hand_over(self.heard - self.known);
        self.known = self.heard;
        let mut wanted = needs.wanted;
        let clients =
            if wanted > 0 { upstream.gate.look(|core, _| core.occupancy(usize::MAX)).clients } else { Vec::new() };
        let mut waiting = Vec::new();
        for client in clients.iter().filter(|client| client.waiting > 0) {
            let requests = client.waiting.min(wanted);
            wanted -= requests;
            let class = upstream.classes.get(client.principal.class.0).cloned().unwrap_or_default();
            waiting.push(Waiting { class, client: client.principal.client.to_string(), requests });
        }
        waiting.retain(|waiting| waiting.requests > 0);
        Holding { name, hosts, slots: needs.slots, granted: self.known, waiting }
    }
}

/// Slots beside those gates: toward other hosts, one of which may belong to a registry in the next process, and of older
/// processes toward registries that this one does not have.
fn beside(reservations: &Reservations) -> Vec<Holding> {
    let settings = reservations.proxy().settings();
    let open = settings.routes.other_hosts().gate.look(|core, _| core.targets());
    let other_hosts = open.into_iter().map(|(target, slots)| {
        let (name, hosts) = (OTHER_HOSTS.to_owned(), vec![target.to_string()]);
        Holding { name, hosts, slots, ..Holding::default() }
    });
    other_hosts.chain(reservations.held_beside()).collect()
}
