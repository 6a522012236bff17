//! The gate in virtual time: wake-ups, exact deadlines, and futures dropped at any point.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, advance};

use super::*;
use crate::metrics::Metrics;

/// A kept connection that tells when it is dropped.
#[derive(Debug)]
struct Connection(Arc<AtomicUsize>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn gate(slots: usize, depth: usize, rate: Option<RateLimit>) -> Gate<Connection> {
    let limits = Limits {
        slots,
        depth,
        rate,
        idle_timeout: Duration::from_secs(60),
        max_lifetime: Duration::from_secs(600),
        max_connecting: usize::MAX,
        keep_place: Duration::from_secs(30),
        weights: vec![1],
    };
    Gate::new(limits, Metrics::new().of_registry("test", &["default".to_owned()]))
}

fn ask(gate: &Gate<Connection>, patience: Duration, reuse: Option<&str>) -> AdmissionRequest {
    let (client, target): (ClientId, Arc<str>) = ("client".into(), "target:443".into());
    let (place, ticket) = gate.place(&client, &target);
    if let Some(ticket) = ticket {
        ticket.spend();
    }
    let principal = Principal { class: ClassId::default(), client };
    let deadline = gate.now() + patience;
    AdmissionRequest { reuse: reuse.map(ReuseKey::from), ..AdmissionRequest::new(place, deadline, principal, target) }
}

const LONG: Duration = Duration::from_secs(50);

fn queue_up(gate: &Gate<Connection>, patience: Duration) -> JoinHandle<Result<Admission<Connection>, Refusal>> {
    let (gate, ask) = (gate.clone(), ask(gate, patience, None));
    tokio::spawn(async move { gate.admit(ask).await })
}

async fn slot(gate: &Gate<Connection>) -> Slot {
    match gate.admit(ask(gate, LONG, None)).await {
        Ok(Admission::New(slot)) => slot,
        other => panic!("{other:?}"),
    }
}

/// Lets every task run that can.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_released_slot_wakes_the_first_who_waits() {
    let gate = gate(1, 10, None);
    let held = slot(&gate).await;
    let first = queue_up(&gate, LONG);
    settle().await;
    let second = queue_up(&gate, LONG);
    settle().await;
    assert_eq!(gate.snapshot().waiting, 2);
    drop(held);
    let Ok(Admission::New(held)) = first.await.unwrap() else { panic!("not admitted") };
    settle().await;
    assert!(!second.is_finished());
    drop(held);
    assert!(second.await.unwrap().is_ok());
    assert_eq!(gate.snapshot().open.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_refuses_to_the_millisecond() {
    let gate = gate(1, 10, None);
    let _held = slot(&gate).await;
    let started = Instant::now();
    let refusal = gate.admit(ask(&gate, Duration::from_secs(25), None)).await.unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::QueueTimeout);
    assert_eq!(started.elapsed(), Duration::from_secs(25));
    assert_eq!(refusal.waited, Duration::from_secs(25));
}

#[tokio::test(start_paused = true)]
async fn a_later_arrival_with_an_earlier_deadline_is_refused_in_time() {
    let gate = gate(1, 10, None);
    let _held = slot(&gate).await;
    let patient = queue_up(&gate, LONG);
    settle().await;
    let started = Instant::now();
    let refusal = gate.admit(ask(&gate, Duration::from_secs(1), None)).await.unwrap_err();
    assert_eq!((refusal.reason, started.elapsed()), (RefusalReason::QueueTimeout, Duration::from_secs(1)));
    assert!(!patient.is_finished());
}

#[tokio::test(start_paused = true)]
async fn tokens_admit_at_their_rate_and_nobody_polls_for_it() {
    let rate = RateLimit { period: Duration::from_millis(20), burst: 3.try_into().unwrap() };
    let gate = gate(100, 100, Some(rate));
    let started = Instant::now();
    let mut held = Vec::new();
    for number in 0..13_u32 {
        let slot = slot(&gate).await;
        slot.tell(SlotEvent::Dialled);
        held.push(slot);
        assert_eq!(started.elapsed(), rate.period * number.saturating_sub(2));
    }
}

#[tokio::test(start_paused = true)]
async fn an_admission_dropped_at_any_point_leaves_no_trace() {
    let rate = RateLimit { period: Duration::from_secs(3600), burst: 2.try_into().unwrap() };
    let gate = gate(1, 10, Some(rate));
    let held = slot(&gate).await;
    held.tell(SlotEvent::Dialled);

    let never_polled = gate.admit(ask(&gate, LONG, None));
    drop(never_polled);
    let queued = queue_up(&gate, LONG);
    settle().await;
    queued.abort();
    settle().await;
    assert_eq!(gate.snapshot().waiting, 0);

    // Granted between its last poll and its drop: the grant lies in its seat and goes to the next one.
    let mut granted = Box::pin(gate.admit(ask(&gate, LONG, None)));
    assert!(futures_poll(&mut granted).await.is_none());
    let next = queue_up(&gate, LONG);
    settle().await;
    drop(held);
    assert!(!next.is_finished());
    drop(granted);
    assert!(matches!(next.await.unwrap(), Ok(Admission::New(_))), "slot and token went on");
    assert_eq!(gate.snapshot().open.open(), 0);
}

/// Polls once.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| match Pin::new(&mut *future).poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_parked_connection_goes_to_the_next_for_its_key_and_closes_when_idle_too_long() {
    let gate = gate(1, 10, None);
    let dropped = Arc::new(AtomicUsize::new(0));
    let held = slot(&gate).await;
    gate.park(held.id(), ReuseKey::from("a:80"), Connection(dropped.clone()));
    let reused = gate.admit(ask(&gate, LONG, Some("a:80"))).await;
    let Ok(Admission::Kept(connection)) = reused else { panic!("{reused:?}") };
    assert_eq!(gate.snapshot().open.active, 1);

    gate.park(held.id(), ReuseKey::from("a:80"), connection);
    advance(Duration::from_secs(60)).await;
    settle().await;
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    assert_eq!(gate.snapshot().open.closing, 1, "the slot is free when the socket is");
    drop(held);
    assert_eq!(gate.snapshot().open.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_reuse_that_nobody_picks_up_is_kept_for_the_next() {
    let gate = gate(1, 10, None);
    let dropped = Arc::new(AtomicUsize::new(0));
    let held = slot(&gate).await;
    let mut called = Box::pin(gate.admit(ask(&gate, LONG, Some("a:80"))));
    assert!(futures_poll(&mut called).await.is_none());
    gate.park(held.id(), ReuseKey::from("a:80"), Connection(dropped.clone()));
    drop(called);
    assert_eq!((gate.snapshot().open.idle, dropped.load(Ordering::SeqCst)), (1, 0));
    assert!(matches!(gate.admit(ask(&gate, LONG, Some("a:80"))).await, Ok(Admission::Kept(_))));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_dies_while_parked_is_not_handed_out() {
    let gate = gate(2, 10, None);
    let dropped = Arc::new(AtomicUsize::new(0));
    let held = slot(&gate).await;
    gate.park(held.id(), ReuseKey::from("a:80"), Connection(dropped.clone()));
    held.tell(SlotEvent::Entered(SlotState::Closing));
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    assert!(matches!(gate.admit(ask(&gate, LONG, Some("a:80"))).await, Ok(Admission::New(_))));
    gate.park(held.id(), ReuseKey::from("a:80"), Connection(dropped.clone()));
    assert_eq!((gate.snapshot().open.idle, dropped.load(Ordering::SeqCst)), (0, 2), "nor kept afterwards");
}

#[tokio::test(start_paused = true)]
async fn a_place_goes_back_when_its_request_ends_before_it_asked() {
    let gate = gate(1, 10, None);
    let _held = slot(&gate).await;
    let refused = ask(&gate, Duration::from_secs(1), None);
    let (client, target, place) = (refused.principal.client.clone(), refused.target.clone(), refused.place);
    assert!(gate.admit(refused).await.is_err());
    let (again, ticket) = gate.place(&client, &target);
    assert_eq!((again, ticket.is_some()), (place, true));
    assert_ne!(gate.place(&client, &target).0, place, "it is taken");
    drop(ticket);
    let (again, ticket) = gate.place(&client, &target);
    assert_eq!(again, place, "its request never asked");
    ticket.unwrap().spend();
    assert_ne!(gate.place(&client, &target).0, place);
}

#[tokio::test(start_paused = true)]
async fn draining_closes_what_is_kept_and_still_admits_who_waits() {
    let gate = gate(1, 10, None);
    let dropped = Arc::new(AtomicUsize::new(0));
    let held = slot(&gate).await;
    gate.park(held.id(), ReuseKey::from("a:80"), Connection(dropped.clone()));
    gate.happen(Core::drain);
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    let waiter = queue_up(&gate, LONG);
    settle().await;
    drop(held);
    let Ok(Admission::New(held)) = waiter.await.unwrap() else { panic!("not admitted") };
    let late = queue_up(&gate, LONG);
    settle().await;
    gate.happen(Core::end);
    assert_eq!(late.await.unwrap().unwrap_err().reason, RefusalReason::Draining);
    drop(held);
}

/// Real threads, real contention: grants, cancels and releases at once; in the end nothing is taken and nobody waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaks_when_many_threads_come_and_go() {
    let gate = gate(3, 10_000, None);
    let most = Arc::new(AtomicUsize::new(0));
    let inside = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..2000_u64)
        .map(|number| {
            let (gate, most, inside) = (gate.clone(), most.clone(), inside.clone());
            tokio::spawn(async move {
                let ask = ask(&gate, LONG, None);
                let patience = Duration::from_micros(number * 7919 % 20_000);
                let admitted = if number % 3 == 0 {
                    tokio::time::timeout(patience, gate.admit(ask)).await.ok()
                } else {
                    Some(gate.admit(ask).await)
                };
                let Some(admitted) = admitted else { return };
                let _slot = admitted.expect("patience is long");
                most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(most.load(Ordering::SeqCst) <= 3);
    let snapshot = gate.snapshot();
    assert_eq!((snapshot.open.open(), snapshot.waiting), (0, 0));
}
