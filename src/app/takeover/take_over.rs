//! The side of the new process: it leaves the slots of the old process unused, and grants slots to the waiters there.
//!
//! A new process counts first. After a process that ended without a message, the kernel lists the sockets that it still
//! closes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::link::{Holding, Message, Waiting};
use super::process::Predecessor;
use super::reservations::{GrantedSlot, Reservations, concerns, sum};
use crate::admission::core::Core;
use crate::admission::{Admission, AdmissionRequest, ClassId, Gate, Principal, SlotEvent, SlotState};
use crate::fleet::claim::ghosts_until;
use crate::kernel::{self, Remote};
use crate::proxy::Proxy;
use crate::upstream::http::PooledConnection;

/// The longest wait for the first message of a process that hands over.
const MAX_FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How long sockets of a process that is gone are waited for; the kernel itself forgets them after a minute.
const MAX_ORPHANS: Duration = Duration::from_secs(75);
/// The first pause until the kernel is asked for them again, and the longest: it doubles.
const FIRST_ORPHAN_PAUSE: Duration = Duration::from_millis(50);
const MAX_ORPHAN_PAUSE: Duration = Duration::from_secs(1);
/// How long the names of registries may take when it is looked for such sockets.
const MAX_LOOKUP: Duration = Duration::from_secs(1);
/// No process hands over for longer: the requests that wait there have deadlines of their own.
const MAX_WAIT: Duration = Duration::from_secs(60 * 60);
/// The target, in pages, of requests that wait in another process.
const ELSEWHERE: &str = "(the process before this one)";

/// Finds out what the processes before this one hold, and sees to it until they hold nothing. When this returns, no slot
/// of theirs can be taken here.
pub async fn take_over(link: Option<UnixStream>, reservations: &Arc<Reservations>) -> io::Result<()> {
    let Some(link) = link else {
        look_for_orphans(reservations, ghosts(reservations)).await;
        return Ok(());
    };
    let mut predecessor = Predecessor::new(link)?;
    reservations.set_held(None);
    // Each hand-over would begin with a burst.
    reservations.proxy().settings().routes.registries().for_each(|upstream| upstream.gate.happen(Core::spend_tokens));
    // Another one may have taken over before this one, and died. The floor is that of the process before as long as it lives.
    let orphans = look_for_orphans(reservations, Duration::ZERO).await;
    predecessor.link.ready().await?;
    let (reservations, grants) = (reservations.clone(), Grants::default());
    let mut following = Following { predecessor, reservations, grants, orphans };
    let _ = timeout(MAX_FIRST_MESSAGE, following.first_message()).await;
    tokio::spawn(following.run());
    Ok(())
}

/// A process before this one, as long as it lives.
struct Following {
    predecessor: Predecessor,
    reservations: Arc<Reservations>,
    grants: Grants,
    /// Looks for sockets that others left before.
    orphans: AbortHandle,
}

impl Following {
    /// Completes when it has said what it holds, and which registries are paused before that.
    async fn first_message(&mut self) {
        while let Some(message) = self.predecessor.link.next().await {
            if self.heard(message) {
                return;
            }
        }
    }

    async fn run(mut self) {
        loop {
            tokio::select! {
                message = self.predecessor.link.next() => match message {
                    Some(message) => _ = self.heard(message),
                    None => break,
                },
                Some(won) = self.grants.won.join_next() => {
                    let Ok(Some((name, slot))) = won else { continue };
                    let granted = self.reservations.grant(&name, slot);
                    // If it is gone, the end of the link tells.
                    let _ = self.predecessor.link.tell(&Message::Granted(granted)).await;
                }
            }
        }
        drop(self.grants);
        tracing::info!("the old process has closed its link");
        self.predecessor.gone().await;
        self.orphans.abort();
        look_for_orphans(&self.reservations, ghosts(&self.reservations)).await;
        self.reservations.predecessor_ended();
    }

    /// Whether it was what the process holds.
    fn heard(&mut self, message: Message) -> bool {
        match message {
            Message::Held(held) => {
                self.reservations.set_held(Some(held.clone()));
                self.grants.ask_for(&held, self.reservations.proxy());
                return true;
            }
            Message::Paused(paused) => pause(self.reservations.proxy(), &paused),
            Message::Granted(_) => {}
        }
        false
    }
}

/// Requests in the queues here, for those that wait in the process before this one.
#[derive(Default)]
struct Grants {
    /// By registry, class and client there.
    waiting: BTreeMap<(String, String, String), Vec<AbortHandle>>,
    /// Those that were admitted.
    won: JoinSet<Option<(String, GrantedSlot)>>,
}

impl Grants {
    /// As many requests as wait there.
    fn ask_for(&mut self, held: &[Holding], proxy: &Proxy) {
        let mut before = std::mem::take(&mut self.waiting);
        for holding in held {
            for waiting in &holding.waiting {
                let key = (holding.name.clone(), waiting.class.clone(), waiting.client.clone());
                let mut requests = before.remove(&key).unwrap_or_default();
                requests.retain(|request| !request.is_finished());
                requests.drain(requests.len().min(waiting.requests)..).for_each(|request| request.abort());
                while requests.len() < waiting.requests {
                    let queues = queues(holding, waiting, held, proxy);
                    requests.push(self.won.spawn(slot_of_each(holding.name.clone(), queues)));
                }
                self.waiting.insert(key, requests);
            }
        }
        before.into_values().flatten().for_each(|request| request.abort());
    }
}

/// The gates here that lead to the same hosts, and the principal that asks there. None, if this process has no such registry: then nothing
/// here counts what is used.
fn queues(
    holding: &Holding,
    waiting: &Waiting,
    held: &[Holding],
    proxy: &Proxy,
) -> Vec<(Gate<PooledConnection>, Principal)> {
    let settings = proxy.settings();
    let claims = settings.routes.claims();
    let concerned = claims.iter().filter(|claim| concerns(holding, claim, held, claims));
    let queues = concerned.map(|claim| {
        let class = claim.upstream.classes.iter().position(|class| *class == waiting.class).unwrap_or_default();
        let principal = Principal { class: ClassId(class), client: waiting.client.as_str().into() };
        (claim.upstream.gate.clone(), principal)
    });
    queues.collect()
}

/// Waits for a slot of each of these gates, in their order; each counts as in use.
async fn slot_of_each(name: String, queues: Vec<(Gate<PooledConnection>, Principal)>) -> Option<(String, GrantedSlot)> {
    let mut slots = GrantedSlot::new();
    for (gate, principal) in queues {
        let target: Arc<str> = ELSEWHERE.into();
        let (place, _) = gate.place(&principal.client, &target);
        let deadline = gate.now() + MAX_WAIT;
        let request = AdmissionRequest::new(place, deadline, principal, target);
        if let Admission::New(slot) = gate.admit(request).await.ok()? {
            slot.tell(SlotEvent::Dialled);
            slot.tell(SlotEvent::Established(SlotState::Active));
            slots.push(slot);
        }
    }
    Some((name, slots))
}

/// Holds the admissions of these, and of no others.
fn pause(proxy: &Proxy, paused: &BTreeSet<String>) {
    for upstream in proxy.settings().routes.registries() {
        upstream.gate.happen(if paused.contains(&upstream.name) { Core::pause } else { Core::resume });
    }
}

/// When no registry counts connections any more that processes before this one held slots for when they ended.
fn ghosts(reservations: &Reservations) -> Duration {
    reservations.control.as_deref().map_or(Duration::ZERO, ghosts_until)
}

/// Counts what the kernel is still ending of processes that are gone, the floor until their ghosts are over, and what this machine may have
/// had before it was started, and goes on with that until there is nothing.
async fn look_for_orphans(reservations: &Arc<Reservations>, ghosts: Duration) -> AbortHandle {
    let found = orphans(reservations.proxy(), ghosts, true).await;
    let mut are_left = sum(&found) > 0;
    if are_left {
        tracing::warn!(
            ?found,
            "connections of an earlier process, or of this machine before its start, may be open still"
        );
    }
    reservations.set_orphans(found);
    let reservations = reservations.clone();
    let looking = tokio::spawn(async move {
        let (deadline, mut pause) = (Instant::now() + MAX_ORPHANS, FIRST_ORPHAN_PAUSE);
        while are_left {
            sleep(pause).await;
            pause = (pause * 2).min(MAX_ORPHAN_PAUSE);
            let found = orphans(reservations.proxy(), ghosts, Instant::now() < deadline).await;
            are_left = sum(&found) > 0;
            reservations.set_orphans(found);
        }
    });
    looking.abort_handle()
}

/// Sockets toward each registry that no process has, but the kernel, if that is to be asked; and the floor, while others may have it.
async fn orphans(proxy: &Proxy, ghosts: Duration, asks_kernel: bool) -> Vec<Holding> {
    let settings = proxy.settings();
    let mut held = Vec::new();
    for claim in settings.routes.claims() {
        let mut remotes: Vec<Remote> = Vec::new();
        for (host, port) in claim.exact_hosts().filter(|_| asks_kernel) {
            let Ok(Ok(ips)) = timeout(MAX_LOOKUP, claim.upstream.resolver.resolve(host)).await else { continue };
            remotes.extend(ips.into_iter().map(|ip| (ip, port)));
        }
        let (name, hosts) = (claim.upstream.name.clone(), claim.hosts.iter().map(ToString::to_string).collect());
        let floor = claim.upstream.lease.as_ref().map_or(0, |lease| lease.floor_of_before(ghosts));
        held.push(Holding { name, hosts, slots: kernel::orphans(&remotes) + floor, ..Holding::default() });
    }
    held
}
