//! Both sides of a takeover over a real link; the other process is the test.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use roadstead_test_support::eventually_is;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::hand_over::hand_over;
use super::link::{Holding, Link, Message, Waiting};
use super::process::Successor;
use super::reservations::Reservations;
use super::take_over::take_over;
use crate::admission::core::Core;
use crate::admission::{Gate, Slot};
use crate::app::assembly::Assembly;
use crate::app::listeners::ListenAddresses;
use crate::app::registry_tls::ReadTls;
use crate::app::tests::slot_toward;
use crate::config::{Config, Service};
use crate::metrics::Metrics;
use crate::proxy::{Proxy, Settings};
use crate::upstream::http::PooledConnection;

const SOON: Duration = Duration::from_secs(10);

fn settings(config: &str) -> Settings {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let addresses = ListenAddresses(vec![(Service::Proxy, anywhere)]);
    let mut assembly = Assembly::new(Arc::new(Metrics::new()), addresses, CancellationToken::new());
    assembly.settings(&Config::parse(config).unwrap(), ReadTls::new(), None)
}

/// A process with one registry of ten slots, and its gate.
fn process() -> (Arc<Reservations>, Gate<PooledConnection>) {
    let settings = settings("[registries.stub]\nhosts = ['127.0.0.1:1']\ncap = 10\nshare = 1\n");
    let gate = settings.routes.registries().next().unwrap().gate.clone();
    let proxy = Proxy::new(settings, "test".to_owned(), CancellationToken::new(), CancellationToken::new());
    (Reservations::new(proxy, None), gate)
}

async fn slot(gate: Gate<PooledConnection>) -> Slot {
    slot_toward(&gate, "127.0.0.1:1").await
}

/// A message with so many slots, so many grants, and so many waiters.
fn held(slots: usize, granted: usize, requests: usize) -> Message {
    let waiting = Waiting { class: "default".to_owned(), client: "client".to_owned(), requests };
    let waiting = Vec::from_iter((requests > 0).then_some(waiting));
    let (name, hosts) = ("stub".to_owned(), vec!["127.0.0.1:1".to_owned()]);
    Message::Held(vec![Holding { name, hosts, slots, granted, waiting }])
}

fn granted(slots: usize) -> Message {
    Message::Granted(BTreeMap::from([("stub".to_owned(), slots)]))
}

/// Lets this process take over from one at the other end of the link, which holds so many slots.
async fn after_one_that_holds(slots: usize, process: &Arc<Reservations>) -> Link {
    let (older, link) = UnixStream::pair().unwrap();
    let mut older = Link::over(older).unwrap();
    older.tell(&held(slots, 0, 0)).await.unwrap();
    take_over(Some(link), process).await.unwrap();
    assert!(older.until_ready().await);
    older
}

/// Lets this process hand over to one at the other end of the link.
fn to_a_newer_one(process: &Arc<Reservations>) -> Link {
    let (ours, theirs) = UnixStream::pair().unwrap();
    tokio::spawn(hand_over(Successor::over(Link::over(ours).unwrap()), process.clone()));
    Link::over(theirs).unwrap()
}

async fn told(link: &mut Link, message: Message) {
    let mut heard = Vec::new();
    let until = async {
        while heard.last() != Some(&message) {
            heard.push(link.next().await.expect("it lives"));
        }
    };
    let is_told = tokio::time::timeout(SOON, until).await.is_ok();
    assert!(is_told, "{message:?} was not told, but {heard:?}");
}

/// Three processes at once: the newest decides who uses each slot that comes free in one of the older ones.
#[tokio::test]
async fn a_slot_changes_hands_once() {
    let (process, gate) = process();
    let mut older = after_one_that_holds(3, &process).await;
    let first = [slot(gate.clone()).await, slot(gate.clone()).await, slot(gate.clone()).await];
    let mut newer = to_a_newer_one(&process);
    assert_eq!(newer.next().await, Some(Message::Paused(BTreeSet::new())));
    assert_eq!(newer.next().await, Some(held(6, 0, 0)), "four are free");

    let waiting = [tokio::spawn(slot(gate.clone())), tokio::spawn(slot(gate.clone()))];
    told(&mut newer, held(6, 0, 2)).await;
    older.tell(&held(2, 0, 0)).await.unwrap();
    told(&mut newer, held(5, 0, 2)).await;
    assert_eq!(gate.snapshot().open.open(), 3, "what came free is the newest one's");
    newer.tell(&granted(1)).await.unwrap();
    told(&mut newer, held(6, 1, 1)).await;
    eventually_is("one to be admitted", SOON, 4, async || gate.snapshot().open.open()).await;

    // Somebody waits in the oldest process, and has its turn in the queue of each of the others.
    older.tell(&held(2, 0, 1)).await.unwrap();
    told(&mut newer, held(6, 1, 2)).await;
    newer.tell(&granted(3)).await.unwrap();
    assert_eq!(older.next().await, Some(granted(1)));
    older.tell(&held(3, 1, 0)).await.unwrap();
    told(&mut newer, held(8, 3, 0)).await;
    older.tell(&held(0, 1, 0)).await.unwrap();
    told(&mut newer, held(5, 3, 0)).await;
    drop(first);
    for slot in waiting {
        drop(slot.await.unwrap());
    }
    told(&mut newer, held(0, 3, 0)).await;
}

/// A granted slot counts as used by its client until the other process no longer needs it.
#[tokio::test]
async fn a_granted_slot_counts_for_its_client() {
    let (process, gate) = process();
    let mut older = after_one_that_holds(9, &process).await;
    older.tell(&held(9, 0, 2)).await.unwrap();
    assert_eq!(older.next().await, Some(granted(1)));
    let here = async || {
        let client =
            gate.look(|core, _| core.occupancy(1)).clients.first().map(|client| (client.waiting, client.holding));
        (client, gate.snapshot().reserved)
    };
    eventually_is("one to wait", SOON, (Some((1, 1)), 9), here).await;
    older.tell(&held(10, 1, 1)).await.unwrap();
    older.tell(&held(9, 1, 0)).await.unwrap();
    eventually_is("nobody to wait, and the first slot to be free", SOON, (Some((0, 1)), 8), here).await;
    older.tell(&held(0, 1, 0)).await.unwrap();
    eventually_is("all to be free", SOON, (None, 0), here).await;
}

/// The process before this one is the test itself, which lives on.
#[tokio::test(start_paused = true)]
async fn a_process_that_is_not_understood_may_hold_everything_as_long_as_it_lives() {
    let (process, gate) = process();
    let (older, link) = UnixStream::pair().unwrap();
    let mut older = Link::over(older).unwrap();
    older.tell_unknown().await;
    take_over(Some(link), &process).await.unwrap();
    older.tell_unknown().await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(gate.snapshot().reserved, 10);
    older.tell(&held(3, 0, 0)).await.unwrap();
    eventually_is("what is understood to count", SOON, 3, async || gate.snapshot().reserved).await;
    drop(older);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(gate.snapshot().reserved, 3, "it says nothing more, but lives");
}

/// A pause is told first, and held by the new process from then on.
#[tokio::test]
async fn a_pause_is_handed_over_to_a_process_that_is_not_understood() {
    let (process, gate) = process();
    gate.happen(Core::pause);
    let waiting = tokio::spawn(slot(gate.clone()));
    eventually_is("one to wait", SOON, 1, async || gate.snapshot().waiting).await;
    let mut newer = to_a_newer_one(&process);
    newer.tell_unknown().await;
    assert_eq!(newer.next().await, Some(Message::Paused(BTreeSet::from(["stub".to_owned()]))));
    assert_eq!(newer.next().await, Some(held(0, 0, 1)));
    newer.tell_unknown().await;
    newer.tell(&granted(1)).await.unwrap();
    let slot = waiting.await.unwrap();
    told(&mut newer, held(1, 1, 0)).await;
    drop(slot);
    told(&mut newer, held(0, 1, 0)).await;
}

/// A process that takes over is told of all connections to other hosts: one of them may be a registry's there.
#[tokio::test]
async fn what_is_open_toward_other_hosts_is_told() {
    let (process, _) = process();
    let other_hosts = process.proxy().settings().routes.other_hosts().gate.clone();
    let _open = slot_toward(&other_hosts, "fresh.example.com:443").await;
    let mut newer = to_a_newer_one(&process);
    let _ = newer.next().await;
    let Some(Message::Held(held)) = newer.next().await else { panic!("it holds something") };
    let told: Vec<_> = held.iter().map(|holding| (holding.hosts[0].as_str(), holding.slots)).collect();
    assert_eq!(told, [("127.0.0.1:1", 0), ("fresh.example.com:443", 1)]);
}

/// The same registries there and here: each counts for itself, though one has the hosts of the other in its pattern.
#[tokio::test]
async fn of_two_registries_that_meet_each_counts_for_itself() {
    let both = "[registries.wide]\nhosts = ['*.example.com']\ncap = 10\nshare = 1\n\
                [registries.one]\nhosts = ['one.example.com']\ncap = 10\nshare = 1\n";
    let (process, _) = process();
    process.replace(settings(both));
    let holding = |name: &str, host: &str, slots| {
        let (name, hosts) = (name.to_owned(), vec![host.to_owned()]);
        Holding { name, hosts, slots, ..Holding::default() }
    };
    let (wide, one) = (holding("wide", "*.example.com", 3), holding("one", "one.example.com", 4));
    let reserved =
        |name: &str| process.proxy().settings().routes.claim(name).unwrap().upstream.gate.snapshot().reserved;
    process.set_held(Some(vec![wide.clone(), one.clone()]));
    assert_eq!((reserved("wide"), reserved("one")), (3, 4));
    // Until now nobody had carved it out.
    process.set_held(Some(vec![wide]));
    assert_eq!((reserved("wide"), reserved("one")), (3, 3));
    // Another name there.
    process.set_held(Some(vec![holding("old", "one.example.com", 2)]));
    assert_eq!((reserved("wide"), reserved("one")), (0, 2));
}
