//! Slots change hands between processes: what those before this one hold, and what this one hands on.
//!
//! A process that begins counts first. If one before it hands over, that one tells what it still needs; if one before it
//! is gone without a word, the kernel tells which of its sockets it is still ending. Those slots are left alone until
//! they are free.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::StartError;
use super::succession::{Held, Paused, Predecessor, Successor, Word};
use crate::kernel;
use crate::proxy::Proxy;
use crate::upstream::Upstream;

/// How often it is looked what a process needs, or what the kernel holds.
const LOOK: Duration = Duration::from_millis(10);
/// The longest wait for the first word of a process that hands over.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// How long sockets of a process that is gone are waited for; the kernel itself forgets them after a minute.
const ORPHANS: Duration = Duration::from_secs(75);
/// How long the names of registries may take when it is looked for such sockets.
const LOOKUP: Duration = Duration::from_secs(1);

/// The processes before this one.
#[derive(Debug)]
pub(super) struct Predecessors {
    held: watch::Receiver<Held>,
}

impl Predecessors {
    /// Finds out what they hold, and sees to it until they hold nothing. When this returns, no slot of theirs can be
    /// taken here.
    pub async fn meet(link: Option<UnixStream>, proxy: &Arc<Proxy>) -> Result<Predecessors, StartError> {
        let Some(link) = link else {
            return Ok(Predecessors::after_an_end(proxy).await);
        };
        let mut predecessor = Predecessor::new(link)?;
        reserve(proxy, &everything(proxy));
        predecessor.ready().await?;
        let first = timeout(FIRST_WORD, first_held(&mut predecessor, proxy)).await.ok().flatten();
        let first = first.unwrap_or_else(|| everything(proxy));
        reserve(proxy, &first);
        let (tell, held) = watch::channel(first);
        let proxy = proxy.clone();
        tokio::spawn(async move {
            until_it_ends(&mut predecessor, &proxy, &tell).await;
            tracing::info!("the process before this one has ended");
            if tell.borrow().values().any(|slots| *slots > 0) {
                predecessor.gone().await;
                count_orphans(&proxy, &tell).await;
            }
            reserve(&proxy, &Held::new());
        });
        Ok(Predecessors { held })
    }

    async fn after_an_end(proxy: &Arc<Proxy>) -> Predecessors {
        let (tell, held) = watch::channel(Held::new());
        let found = orphans(proxy).await;
        if found.values().any(|slots| *slots > 0) {
            tracing::warn!(?found, "a process before this one left connections that are not closed yet");
            reserve(proxy, &found);
            tell.send_replace(found);
            let proxy = proxy.clone();
            tokio::spawn(async move {
                count_orphans(&proxy, &tell).await;
                reserve(&proxy, &Held::new());
            });
        }
        Predecessors { held }
    }

    /// Completes when they hold nothing.
    pub async fn gone(&mut self) {
        // The channel ends with the task that watches them.
        let _ = self.held.wait_for(|held| held.values().all(|slots| *slots == 0)).await;
    }
}

/// What the process before this one holds, as it says first, and what it says of pauses before that.
async fn first_held(predecessor: &mut Predecessor, proxy: &Proxy) -> Option<Held> {
    loop {
        match predecessor.next().await? {
            Word::Held(held) => return Some(held),
            Word::Paused(paused) => pause(proxy, &paused),
        }
    }
}

/// Leaves alone what the process before this one holds, and tells it of pauses: who waits there waits for an operator
/// who speaks to this one.
async fn until_it_ends(predecessor: &mut Predecessor, proxy: &Proxy, tell: &watch::Sender<Held>) {
    let mut told = paused(proxy);
    loop {
        tokio::select! {
            word = predecessor.next() => match word {
                Some(Word::Held(held)) => {
                    reserve(proxy, &held);
                    tell.send_replace(held);
                }
                // After its first word the operator speaks to this one.
                Some(Word::Paused(_)) => {}
                None => return,
            },
            () = sleep(LOOK) => {
                let now = paused(proxy);
                if now != told && predecessor.tell(&now).await.is_ok() {
                    told = now;
                }
            }
        }
    }
}

/// The registries whose admissions are held.
fn paused(proxy: &Proxy) -> Paused {
    let settings = proxy.settings();
    let paused = settings.routes.registries().filter(|upstream| upstream.gate.snapshot().paused);
    paused.map(|upstream| upstream.name.clone()).collect()
}

/// Holds the admissions of these, and of no others.
fn pause(proxy: &Proxy, paused: &BTreeSet<String>) {
    for upstream in proxy.settings().routes.registries() {
        if paused.contains(&upstream.name) {
            upstream.gate.pause();
        } else {
            upstream.gate.resume();
        }
    }
}

/// All slots of all registries.
fn everything(proxy: &Proxy) -> Held {
    each(proxy, |upstream| upstream.gate.snapshot().slots)
}

fn each(proxy: &Proxy, slots: impl Fn(&Upstream) -> usize) -> Held {
    proxy.settings().routes.registries().map(|upstream| (upstream.name.clone(), slots(upstream))).collect()
}

fn reserve(proxy: &Proxy, held: &Held) {
    for upstream in proxy.settings().routes.registries() {
        upstream.gate.reserve(held.get(&upstream.name).copied().unwrap_or_default());
    }
}

/// Waits until the kernel has ended what a process left, and reserves that many slots meanwhile.
async fn count_orphans(proxy: &Proxy, tell: &watch::Sender<Held>) {
    let deadline = Instant::now() + ORPHANS;
    loop {
        let found = orphans(proxy).await;
        reserve(proxy, &found);
        let gone = found.values().all(|slots| *slots == 0);
        tell.send_replace(found);
        if gone || Instant::now() >= deadline {
            tell.send_replace(Held::new());
            return;
        }
        sleep(LOOK * 5).await;
    }
}

/// Sockets toward each registry that no process has, but the kernel.
async fn orphans(proxy: &Proxy) -> Held {
    let settings = proxy.settings();
    let mut held = BTreeMap::new();
    for upstream in settings.routes.registries() {
        let mut remotes: Vec<SocketAddr> = Vec::new();
        for (host, ports) in settings.routes.exact_hosts(&upstream.name) {
            let Ok(Ok(ips)) = timeout(LOOKUP, upstream.resolver.resolve(&host)).await else { continue };
            remotes.extend(ips.into_iter().flat_map(|ip| ports.iter().map(move |port| SocketAddr::new(ip, *port))));
        }
        held.insert(upstream.name.clone(), kernel::orphans(&remotes));
    }
    held
}

/// Hands slots on to the process that takes over, one by one as they are not needed any more, and holds what its operator
/// holds. Ends when nothing is left to hand on, or with that process.
pub(super) async fn hand_on(mut successor: Successor, proxy: Arc<Proxy>) {
    let mut told = everything(&proxy);
    let mut next = shrink(&proxy, &told);
    let begun = async {
        successor.pause(&paused(&proxy)).await?;
        successor.tell(&next).await
    };
    if begun.await.is_err() {
        return tracing::error!(pid = successor.pid, "the process that takes over is gone");
    }
    while next.values().any(|slots| *slots > 0) || !proxy.tasks().is_empty() {
        told = next;
        tokio::select! {
            () = sleep(LOOK) => {}
            heard = successor.paused() => match heard {
                Some(paused) => pause(&proxy, &paused),
                None => return tracing::error!(pid = successor.pid, "the process that takes over is gone"),
            },
        }
        next = shrink(&proxy, &told);
        if next != told && successor.tell(&next).await.is_err() {
            return tracing::error!(pid = successor.pid, "the process that takes over is gone");
        }
    }
}

/// Keeps what is open or waited for, and one slot at least as long as somebody who came may still ask: what all
/// processes but the one that takes over have then, never more than was `told`.
fn shrink(proxy: &Proxy, told: &Held) -> Held {
    let least = usize::from(proxy.may_be_asked());
    let of = |upstream: &Upstream| upstream.gate.hand_on(least, told.get(&upstream.name).copied().unwrap_or_default());
    proxy.settings().routes.registries().map(|upstream| (upstream.name.clone(), of(upstream))).collect()
}

#[cfg(test)]
mod tests {
    use roadstead_test_support::eventually_is;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::admission::{Admission, Ask, ClassId, Gate, Lane, Party, Slot};
    use crate::app::ReadTls;
    use crate::app::assembly::Assembly;
    use crate::app::listeners::Addresses;
    use crate::config::Config;
    use crate::metrics::Metrics;
    use crate::upstream::http::Kept;

    const SOON: Duration = Duration::from_secs(10);

    /// A proxy for one registry with ten slots, and its gate.
    fn proxy() -> (Arc<Proxy>, Gate<Kept>) {
        let config = "[registries.stub]\nhosts = ['127.0.0.1:1']\ncap = 10\nshare = 1\n";
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let addresses = Addresses { proxy: anywhere, admin: anywhere, metrics: None, mirrors: Vec::new() };
        let mut assembly = Assembly::new(Arc::new(Metrics::new()), addresses, CancellationToken::new());
        let settings = assembly.settings(&Config::parse(config).unwrap(), ReadTls::new(), None);
        let gate = settings.routes.registries().next().unwrap().gate.clone();
        (Proxy::new(settings, "test".to_owned(), CancellationToken::new(), CancellationToken::new()), gate)
    }

    async fn slot(gate: Gate<Kept>) -> Slot {
        let party = Party { class: ClassId(0), client: "client".into() };
        let target: Arc<str> = "127.0.0.1:1".into();
        let (place, _) = gate.place(&party.client, &target);
        let deadline = gate.now() + SOON;
        let ask = Ask { place, deadline, party, lane: Lane::Blob, target, reuse: None, again: false };
        match gate.admit(ask).await.unwrap() {
            Admission::New(slot) => slot,
            Admission::Kept(_) => unreachable!("nothing is kept"),
        }
    }

    fn held(slots: usize) -> Held {
        Held::from([("stub".to_owned(), slots)])
    }

    /// Three processes at once: what the oldest gives up goes to the one in the middle, who waits for it, only as far as
    /// the newest was not told before that it is free.
    #[tokio::test]
    async fn a_slot_changes_hands_once() {
        let (proxy, gate) = proxy();
        let (older, link) = UnixStream::pair().unwrap();
        let mut older = Successor::over(older);
        older.tell(&held(3)).await.unwrap();
        let mut predecessors = Predecessors::meet(Some(link), &proxy).await.unwrap();
        let first = [slot(gate.clone()).await, slot(gate.clone()).await, slot(gate.clone()).await];

        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut newer = Predecessor::new(theirs).unwrap();
        let handing = tokio::spawn(hand_on(Successor::over(ours), proxy));
        assert_eq!(newer.next().await, Some(Word::Paused(Paused::new())));
        assert_eq!(newer.next().await, Some(Word::Held(held(6))), "four are free");
        let waiting = [tokio::spawn(slot(gate.clone())), tokio::spawn(slot(gate.clone()))];
        eventually_is("both to wait", SOON, 2, async || gate.snapshot().waiting).await;
        older.tell(&held(2)).await.unwrap();
        eventually_is("one to wait", SOON, 1, async || gate.snapshot().waiting).await;
        assert_eq!(gate.snapshot().open.open(), 4, "with the two of the older one that makes six");
        older.tell(&held(0)).await.unwrap();
        assert_eq!(newer.next().await, Some(Word::Held(held(5))), "all who came here have theirs");
        drop(older);
        predecessors.gone().await;
        drop(first);
        for slot in waiting {
            drop(slot.await.unwrap());
        }
        while newer.next().await.unwrap() != Word::Held(held(0)) {}
        handing.await.unwrap();
        assert_eq!(newer.next().await, None);
    }
}
