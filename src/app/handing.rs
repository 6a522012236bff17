//! Slots change hands between processes: what those before this one hold, and what this one hands on.
//!
//! A process that begins counts first. If one before it hands over, that one tells what it still needs; what a process
//! that is gone without a word left behind, the kernel tells: the sockets that it is still ending. Those slots are left
//! alone until they are free.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, interval, sleep, timeout};

use super::StartError;
use super::elsewhere::{Elsewhere, Handed, Held, Holding, LOOK, sum};
use super::succession::{Paused, Predecessor, Successor, Word};
use crate::kernel::{self, Remote};
use crate::proxy::Proxy;

/// The longest wait for the first word of a process that hands over.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// How long sockets of a process that is gone are waited for; the kernel itself forgets them after a minute.
const ORPHANS: Duration = Duration::from_secs(75);
/// How long the names of registries may take when it is looked for such sockets.
const LOOKUP: Duration = Duration::from_secs(1);

/// Finds out what the processes before this one hold, and sees to it until they hold nothing. When this returns, no slot
/// of theirs can be taken here.
pub(super) async fn meet(link: Option<UnixStream>, elsewhere: &Arc<Elsewhere>) -> Result<(), StartError> {
    let Some(link) = link else {
        look_for_orphans(elsewhere).await;
        return Ok(());
    };
    let mut predecessor = Predecessor::new(link)?;
    elsewhere.processes_hold(None);
    // Each hand-over would begin with a burst.
    elsewhere.spend_tokens();
    // Another one may have taken over before this one, and died.
    look_for_orphans(elsewhere).await;
    predecessor.ready().await?;
    let first = timeout(FIRST_WORD, first_held(&mut predecessor, elsewhere.proxy())).await.ok().flatten();
    elsewhere.processes_hold(first);
    let elsewhere = elsewhere.clone();
    tokio::spawn(async move {
        until_it_ends(&mut predecessor, &elsewhere).await;
        tracing::info!("the process before this one has ended");
        if elsewhere.others_hold_some() {
            predecessor.gone().await;
            look_for_orphans(&elsewhere).await;
        }
        elsewhere.processes_hold(Some(Held::new()));
    });
    Ok(())
}

/// Completes when no other process holds anything.
pub(super) async fn others_are_gone(elsewhere: &Elsewhere) {
    while elsewhere.others_hold_some() {
        sleep(LOOK).await;
    }
}

/// What the process before this one holds, as it says first, and what it says of pauses before that.
async fn first_held(predecessor: &mut Predecessor, proxy: &Proxy) -> Option<Held> {
    loop {
        match predecessor.link.next().await? {
            Word::Held(held) => return Some(held),
            Word::Paused(paused) => pause(proxy, &paused),
            Word::Leaving => {}
        }
    }
}

/// Leaves alone what the process before this one holds, and tells it of pauses: who waits there waits for an operator
/// who speaks to this one.
async fn until_it_ends(predecessor: &mut Predecessor, elsewhere: &Elsewhere) {
    let (mut told, mut leaves) = (paused(elsewhere.proxy()), false);
    // However much it says.
    let mut looks = interval(LOOK);
    loop {
        tokio::select! {
            word = predecessor.link.next() => match word {
                Some(Word::Held(held)) => elsewhere.processes_hold(Some(held)),
                // After its first word the operator speaks to this one.
                Some(Word::Paused(_) | Word::Leaving) => {}
                None => return,
            },
            _ = looks.tick() => {
                let now = paused(elsewhere.proxy());
                if now != told && predecessor.link.tell(&Word::Paused(now.clone())).await.is_ok() {
                    told = now;
                }
                if elsewhere.proxy().is_draining() && !leaves {
                    leaves = predecessor.link.tell(&Word::Leaving).await.is_ok();
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

/// Counts what the kernel is still ending of processes that are gone, and goes on with that until there is nothing.
pub(super) async fn look_for_orphans(elsewhere: &Arc<Elsewhere>) {
    let found = orphans(elsewhere.proxy()).await;
    if sum(&found) == 0 {
        return;
    }
    tracing::warn!(?found, "a process before this one left connections that are not closed yet");
    elsewhere.orphans_are(found);
    let elsewhere = elsewhere.clone();
    tokio::spawn(async move {
        let deadline = Instant::now() + ORPHANS;
        while Instant::now() < deadline {
            sleep(LOOK * 5).await;
            let found = orphans(elsewhere.proxy()).await;
            let are_gone = sum(&found) == 0;
            elsewhere.orphans_are(found);
            if are_gone {
                return;
            }
        }
        elsewhere.orphans_are(Held::new());
    });
}

/// Sockets toward each registry that no process has, but the kernel.
async fn orphans(proxy: &Proxy) -> Held {
    let settings = proxy.settings();
    let mut held = Held::new();
    for claim in settings.routes.claims() {
        let mut remotes: Vec<Remote> = Vec::new();
        for (host, port) in claim.exact_hosts() {
            let Ok(Ok(ips)) = timeout(LOOKUP, claim.upstream.resolver.resolve(host)).await else { continue };
            remotes.extend(ips.into_iter().map(|ip| (ip, port)));
        }
        held.push(Holding::of(claim, kernel::orphans(&remotes)));
    }
    held
}

/// Hands slots on to the process that takes over, one by one as they are not needed any more, and holds what its operator
/// holds. `true` when nothing is left to hand on, `false` when that process is gone before.
pub(super) async fn hand_on(successor: &mut Successor, elsewhere: &Elsewhere) -> bool {
    let proxy = elsewhere.proxy();
    let mut hand = Hand::full(elsewhere);
    let mut told = hand.shrink(elsewhere);
    let begun = async {
        successor.link.tell(&Word::Paused(paused(proxy))).await?;
        successor.link.tell(&Word::Held(told.clone())).await
    };
    if begun.await.is_err() {
        return false;
    }
    while sum(&told) > 0 || !proxy.tasks().is_empty() {
        tokio::select! {
            () = sleep(LOOK) => {}
            heard = successor.link.next() => match heard {
                Some(Word::Paused(paused)) => pause(proxy, &paused),
                Some(Word::Leaving) => {
                    tracing::info!(pid = successor.pid, "the process that took over is leaving itself");
                    successor.leaves = true;
                }
                // What is free is its own anyway.
                Some(Word::Held(_)) => {}
                None => return false,
            },
        }
        let next = hand.shrink(elsewhere);
        if next != told && successor.link.tell(&Word::Held(next.clone())).await.is_err() {
            return false;
        }
        told = next;
    }
    true
}

/// The gates whose slots are handed on, each with how many the other process was told that are not free.
struct Hand(Vec<(Handed, usize)>);

impl Hand {
    /// Nothing is free yet.
    fn full(elsewhere: &Elsewhere) -> Hand {
        let all = |handed: Handed| {
            let slots = handed.gate.snapshot().slots;
            (handed, slots)
        };
        Hand(elsewhere.handed().into_iter().map(all).collect())
    }

    /// Keeps what is open or waited for, and one slot at least as long as somebody who came may still ask: what all
    /// processes but the one that takes over have then, never more than was told before.
    fn shrink(&mut self, elsewhere: &Elsewhere) -> Held {
        let least = usize::from(elsewhere.proxy().may_be_asked());
        let one = |(handed, told): &mut (Handed, usize)| {
            *told = handed.gate.hand_on(least, *told);
            handed.holding(*told)
        };
        self.0.iter_mut().map(one).chain(elsewhere.beside()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use roadstead_test_support::eventually_is;
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::admission::{Admission, AdmissionRequest, ClassId, Gate, Lane, Principal, Slot};
    use crate::app::ReadTls;
    use crate::app::assembly::Assembly;
    use crate::app::heirs::Heirs;
    use crate::app::listeners::Addresses;
    use crate::app::succession::Origin;
    use crate::config::Config;
    use crate::metrics::Metrics;
    use crate::proxy::Settings;
    use crate::upstream::http::PooledConnection;

    const SOON: Duration = Duration::from_secs(10);

    fn settings(config: &str) -> Settings {
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let addresses = Addresses { proxy: anywhere, admin: anywhere, metrics: None, mirrors: Vec::new() };
        let mut assembly = Assembly::new(Arc::new(Metrics::new()), addresses, CancellationToken::new());
        assembly.settings(&Config::parse(config).unwrap(), ReadTls::new(), None)
    }

    /// A process with one registry of ten slots, and its gate.
    fn process() -> (Arc<Elsewhere>, Gate<PooledConnection>) {
        process_toward("127.0.0.1:1")
    }

    fn process_toward(host: &str) -> (Arc<Elsewhere>, Gate<PooledConnection>) {
        let settings = settings(&format!("[registries.stub]\nhosts = ['{host}']\ncap = 10\nshare = 1\n"));
        let gate = settings.routes.registries().next().unwrap().gate.clone();
        let proxy = Proxy::new(settings, "test".to_owned(), CancellationToken::new(), CancellationToken::new());
        (Elsewhere::new(proxy), gate)
    }

    async fn slot(gate: Gate<PooledConnection>) -> Slot {
        slot_toward(&gate, "127.0.0.1:1").await
    }

    async fn slot_toward(gate: &Gate<PooledConnection>, target: &str) -> Slot {
        let principal = Principal { class: ClassId(0), client: "client".into() };
        let target: Arc<str> = target.into();
        let (place, _) = gate.place(&principal.client, &target);
        let deadline = gate.now() + SOON;
        let ask = AdmissionRequest { place, deadline, principal, lane: Lane::Blob, target, reuse: None };
        match gate.admit(ask).await.unwrap() {
            Admission::New(slot) => slot,
            Admission::Kept(_) => unreachable!("nothing is kept"),
        }
    }

    fn held(slots: usize) -> Held {
        held_toward(SocketAddr::from(([127, 0, 0, 1], 1)), slots)
    }

    fn held_toward(host: SocketAddr, slots: usize) -> Held {
        vec![Holding { name: "stub".to_owned(), hosts: vec![host.to_string()], slots }]
    }

    /// Three processes at once: what the oldest gives up goes to the one in the middle, who waits for it, only as far as
    /// the newest was not told before that it is free.
    #[tokio::test]
    async fn a_slot_changes_hands_once() {
        let (process, gate) = process();
        let (older, link) = UnixStream::pair().unwrap();
        let mut older = Successor::over(older);
        older.link.tell(&Word::Held(held(3))).await.unwrap();
        meet(Some(link), &process).await.unwrap();
        let first = [slot(gate.clone()).await, slot(gate.clone()).await, slot(gate.clone()).await];

        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut newer = Predecessor::new(theirs).unwrap();
        let handing = {
            let (process, mut successor) = (process.clone(), Successor::over(ours));
            tokio::spawn(async move { hand_on(&mut successor, &process).await })
        };
        assert_eq!(newer.link.next().await, Some(Word::Paused(Paused::new())));
        assert_eq!(newer.link.next().await, Some(Word::Held(held(6))), "four are free");
        let waiting = [tokio::spawn(slot(gate.clone())), tokio::spawn(slot(gate.clone()))];
        eventually_is("both to wait", SOON, 2, async || gate.snapshot().waiting).await;
        older.link.tell(&Word::Held(held(2))).await.unwrap();
        eventually_is("one to wait", SOON, 1, async || gate.snapshot().waiting).await;
        assert_eq!(gate.snapshot().open.open(), 4, "with the two of the older one that makes six");
        older.link.tell(&Word::Held(held(0))).await.unwrap();
        assert_eq!(newer.link.next().await, Some(Word::Held(held(5))), "all who came here have theirs");
        drop(older);
        others_are_gone(&process).await;
        drop(first);
        for slot in waiting {
            drop(slot.await.unwrap());
        }
        while newer.link.next().await.unwrap() != Word::Held(held(0)) {}
        assert!(handing.await.unwrap());
        assert_eq!(newer.link.next().await, None);
    }

    /// The process before this one is the test itself, which lives on.
    #[tokio::test(start_paused = true)]
    async fn a_process_that_is_not_understood_may_hold_everything_as_long_as_it_lives() {
        let (process, gate) = process();
        let (older, link) = UnixStream::pair().unwrap();
        let mut older = Successor::over(older);
        older.link.tell_unknown().await;
        meet(Some(link), &process).await.unwrap();
        older.link.tell_unknown().await;
        sleep(Duration::from_secs(60)).await;
        assert_eq!(gate.snapshot().reserved, 10);
        older.link.tell(&Word::Held(held(3))).await.unwrap();
        eventually_is("what is understood to count", SOON, 3, async || gate.snapshot().reserved).await;
        drop(older);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(gate.snapshot().reserved, 3, "it says nothing more, but lives");
    }

    #[tokio::test]
    async fn slots_are_handed_on_to_a_process_that_is_not_understood() {
        let (process, gate) = process();
        let slot = slot(gate.clone()).await;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut newer = Predecessor::new(theirs).unwrap();
        newer.link.tell_unknown().await;
        newer.link.tell(&Word::Held(held(1))).await.unwrap();
        let handing = tokio::spawn(async move { hand_on(&mut Successor::over(ours), &process).await });
        while newer.link.next().await.unwrap() != Word::Held(held(1)) {}
        newer.link.tell_unknown().await;
        newer.link.tell(&Word::Paused(Paused::from(["stub".to_owned()]))).await.unwrap();
        eventually_is("what is understood to count", SOON, true, async || gate.snapshot().paused).await;
        drop(slot);
        assert_eq!(newer.link.next().await, Some(Word::Held(held(0))));
        assert!(handing.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_says_much_is_told_of_pauses_all_the_same() {
        let (process, gate) = process();
        let (older, link) = UnixStream::pair().unwrap();
        let mut older = Successor::over(older);
        older.link.tell(&Word::Held(held(3))).await.unwrap();
        meet(Some(link), &process).await.unwrap();
        older.link.tell(&Word::Held(held(2))).await.unwrap();
        eventually_is("the second word to count", SOON, 2, async || gate.snapshot().reserved).await;
        gate.pause();
        let told = async {
            loop {
                tokio::select! {
                    word = older.link.next() => return word,
                    () = sleep(LOOK / 2) => older.link.tell(&Word::Held(held(2))).await.unwrap(),
                }
            }
        };
        let told = timeout(SOON, told).await.expect("it is told meanwhile");
        assert_eq!(told, Some(Word::Paused(Paused::from(["stub".to_owned()]))));
    }

    /// What the kernel is still ending of a process that took over and died counts here, too, before slots that were
    /// handed on are taken back.
    #[tokio::test]
    async fn slots_of_a_successor_that_died_are_taken_back_when_its_sockets_are_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = listener.local_addr().unwrap();
        let (process, gate) = process_toward(&registry.to_string());
        let asked = || {
            let gate = gate.clone();
            tokio::spawn(async move { slot_toward(&gate, &registry.to_string()).await })
        };
        let first = [asked().await.unwrap(), asked().await.unwrap()];
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut newer = Predecessor::new(theirs).unwrap();
        let heirs = Arc::new(Heirs::new(Origin::that_fails(), None, CancellationToken::new()));
        let handing = tokio::spawn(heirs.serve(Successor::over(ours), process.clone()));
        while newer.link.next().await.unwrap() != Word::Held(held_toward(registry, 2)) {}
        let waiting: Vec<_> = (0..8).map(|_| asked()).collect();
        eventually_is("eight to wait", SOON, 8, async || gate.snapshot().waiting).await;

        let mut there = Vec::new();
        for _ in 0..6 {
            let connection = TcpStream::connect(registry).await.unwrap();
            there.push(listener.accept().await.unwrap());
            drop(connection);
        }
        drop(newer);
        handing.await.unwrap();

        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut newest = Predecessor::new(theirs).unwrap();
        let again = tokio::spawn(async move { hand_on(&mut Successor::over(ours), &process).await });
        while newest.link.next().await.unwrap() != Word::Held(held_toward(registry, 10)) {}
        let left = kernel::orphans(&[(registry.ip(), Some(registry.port()))]);
        assert_eq!((left, gate.snapshot().open.open()), (6, 4), "both together stay within the slots");
        drop(there);
        eventually_is("all to have theirs", SOON, 10, async || gate.snapshot().open.open()).await;
        drop((first, waiting));
        again.abort();
    }

    /// A process that takes over is told of all connections to other hosts: one of them may be a registry's there.
    #[tokio::test]
    async fn what_is_open_toward_other_hosts_is_told() {
        let (process, _) = process();
        let other_hosts = process.proxy().settings().routes.other_hosts().gate.clone();
        let _there =
            [slot_toward(&other_hosts, "fresh.example.com:443").await, slot_toward(&other_hosts, "ghcr.io:443").await];
        let beside: Vec<(String, usize)> =
            process.beside().into_iter().map(|holding| (holding.hosts[0].clone(), holding.slots)).collect();
        assert_eq!(beside, [("fresh.example.com:443".to_owned(), 1), ("ghcr.io:443".to_owned(), 1)]);
    }

    /// The same registries there and here: each counts for itself, though one has the hosts of the other in its pattern.
    #[tokio::test]
    async fn of_two_registries_that_meet_each_counts_for_itself() {
        let both = "[registries.wide]\nhosts = ['*.example.com']\ncap = 10\nshare = 1\n\
                    [registries.one]\nhosts = ['one.example.com']\ncap = 10\nshare = 1\n";
        let (process, _) = process();
        process.replace(settings(both));
        let holding =
            |name: &str, host: &str, slots| Holding { name: name.to_owned(), hosts: vec![host.to_owned()], slots };
        let (wide, one) = (holding("wide", "*.example.com", 3), holding("one", "one.example.com", 4));
        let reserved =
            |name: &str| process.proxy().settings().routes.claim(name).unwrap().upstream.gate.snapshot().reserved;
        process.processes_hold(Some(vec![wide.clone(), one.clone()]));
        assert_eq!((reserved("wide"), reserved("one")), (3, 4));
        // Until now nobody had carved it out.
        process.processes_hold(Some(vec![wide]));
        assert_eq!((reserved("wide"), reserved("one")), (3, 3));
        // Another name there.
        process.processes_hold(Some(vec![holding("old", "one.example.com", 2)]));
        assert_eq!((reserved("wide"), reserved("one")), (0, 2));
    }
}
