//! Slots change hands between processes: what those before this one hold, and what this one hands on.
//!
//! A process that begins counts first. If one before it hands over, that one tells what it still needs; if one before it
//! is gone without a word, the kernel tells which of its sockets it is still ending. Those slots are left alone until
//! they are free.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::StartError;
use super::succession::{Held, Predecessor, Successor};
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
        let first = timeout(FIRST_WORD, predecessor.held()).await.ok().flatten();
        let first = first.unwrap_or_else(|| everything(proxy));
        reserve(proxy, &first);
        let (tell, held) = watch::channel(first);
        let proxy = proxy.clone();
        tokio::spawn(async move {
            while let Some(held) = predecessor.held().await {
                reserve(&proxy, &held);
                tell.send_replace(held);
            }
            tracing::info!("the process before this one has ended");
            if tell.borrow().values().any(|slots| *slots > 0) {
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

    /// What they hold, as it changes.
    pub fn held(&self) -> watch::Receiver<Held> {
        self.held.clone()
    }

    /// Completes when they hold nothing.
    pub async fn gone(&mut self) {
        // The channel ends with the task that watches them.
        let _ = self.held.wait_for(|held| held.values().all(|slots| *slots == 0)).await;
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

/// Hands slots on to the process that takes over, one by one as they are not needed any more. Never ends by itself.
pub(super) async fn hand_on(mut successor: Successor, proxy: Arc<Proxy>, before: watch::Receiver<Held>) {
    let mut told = everything(&proxy);
    let mut is_first = true;
    loop {
        let older = before.borrow().clone();
        let mut held = Held::new();
        for upstream in proxy.settings().routes.registries() {
            let name = &upstream.name;
            let older = older.get(name).copied().unwrap_or_default();
            let most = told.get(name).copied().unwrap_or_default();
            let total = (older + needed(upstream, &proxy)).min(most);
            // First this process has fewer, then the other one has more.
            let slots = upstream.gate.snapshot().slots;
            upstream.gate.reserve(slots.saturating_sub(total.saturating_sub(older)));
            held.insert(name.clone(), total);
        }
        if is_first || held != told {
            is_first = false;
            if successor.tell(&held).await.is_err() {
                tracing::error!(pid = successor.pid, "the process that takes over is gone");
                return;
            }
            told = held;
        }
        sleep(LOOK).await;
    }
}

/// Slots that are open or waited for; one at least as long as somebody who came may still ask.
fn needed(upstream: &Upstream, proxy: &Proxy) -> usize {
    let now = upstream.gate.snapshot();
    let least = usize::from(!proxy.tasks().is_empty());
    (now.open.open() + now.waiting).max(least)
}
