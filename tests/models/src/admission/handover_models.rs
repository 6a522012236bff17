//! Events that meet at the hand-over, in every order: a grant and a waiter that leaves, its deadline, a resize, another waker.
//!
//! A waiter that is admitted and not woken sleeps for ever, which loom reports as a deadlock. The other judges are the core's
//! own books, once all are gone, and a count of those who are inside.

use std::future::poll_fn;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use loom::future::block_on;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread::{self, JoinHandle};

use super::core::Core;
use super::decision::{Limits, RefusalReason};
use super::handover::{Call, Handover};
use super::moment::Moment;
use super::rate::RateLimit;
use super::request::{AdmissionRequest, ClassId, Place, Principal, ReuseKey};
use super::slot::{SlotEvent, SlotId};

const START: Moment = Moment(Duration::ZERO);
const DEADLINE: Moment = Moment(Duration::from_secs(1));
const NEVER: Moment = Moment(Duration::MAX);

/// A kept connection; how many there are is told by its count.
type Connection = Arc<()>;

/// Runs a model in every order, without a bound.
fn in_every_order(model: impl Fn() + Send + Sync + 'static) {
    let tried = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = tried.clone();
    loom::model(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    let tried = tried.load(std::sync::atomic::Ordering::Relaxed);
    println!("{tried} orders");
    assert!(tried >= 10, "only {tried}");
}

/// Does this in another thread.
fn beside<T: 'static>(harbor: &Arc<Harbor>, work: impl FnOnce(&Harbor) -> T + 'static) -> JoinHandle<T> {
    let harbor = harbor.clone();
    thread::spawn(move || work(&harbor))
}

/// A hand-over whose slots are all held by requests that are gone from here, and the counter of those inside.
struct Harbor {
    handover: Handover<Connection>,
    inside: AtomicUsize,
}

impl Harbor {
    fn new(slots: usize, rate: Option<RateLimit>) -> Arc<Harbor> {
        let limits = Limits {
            slots,
            depth: 10,
            rate,
            idle_timeout: Duration::from_secs(60),
            max_lifetime: Duration::from_secs(600),
            max_connecting: usize::MAX,
            keep_place: Duration::from_secs(30),
            weights: vec![1],
        };
        let handover = Handover::new(Core::new(limits, START));
        Arc::new(Harbor { handover, inside: AtomicUsize::new(0) })
    }

    /// Takes a slot at once.
    fn hold(&self) -> SlotId {
        let waiter = self.seat(NEVER, None);
        match waiter.poll(self, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Call::Dial { slot, .. }) => slot,
            _ => panic!("no slot is free"),
        }
    }

    /// Somebody sits down, and has not been called yet.
    fn seat(&self, deadline: Moment, reuse: Option<&str>) -> Waiter {
        let (place, _) = self.handover.with(|core| core.place(&"client".into(), "target:443", START));
        let principal = Principal { class: ClassId::default(), client: "client".into() };
        let reuse = reuse.map(ReuseKey::from);
        let ask = AdmissionRequest {
            reuse: reuse.clone(),
            ..AdmissionRequest::new(place, deadline, principal, "target:443".into())
        };
        self.handover.arrive(ask, Waker::noop(), START).settle();
        Waiter { place, reuse }
    }

    fn release(&self, slot: SlotId) {
        self.handover.tell(slot, SlotEvent::Released, None, START).settle();
    }

    fn event(&self, happen: impl FnOnce(&mut Core)) {
        self.handover.event(happen).settle();
    }

    /// After all are gone, nothing is taken and nobody waits.
    fn assert_left_clean(&self) {
        let snapshot = self.handover.with(|core| core.snapshot(START));
        assert_eq!((snapshot.open.open(), snapshot.waiting), (0, 0));
    }
}

/// One who waits, as the gate's future does.
struct Waiter {
    place: Place,
    reuse: Option<ReuseKey>,
}

impl Waiter {
    fn poll(&self, harbor: &Harbor, context: &mut Context<'_>) -> Poll<Call<Connection>> {
        harbor.handover.poll_call(self.place, context, START)
    }

    /// Sleeps until it is called.
    fn wait(self, harbor: &Harbor) -> Call<Connection> {
        block_on(poll_fn(|context| self.poll(harbor, context)))
    }

    /// Sleeps until it has a slot.
    fn wait_for_slot(self, harbor: &Harbor) -> SlotId {
        match self.wait(harbor) {
            Call::Dial { slot, .. } => slot,
            Call::Reuse { .. } => panic!("given a connection"),
            Call::Refused(refusal) => panic!("{refusal:?}"),
        }
    }

    fn leave(self, harbor: &Harbor) {
        harbor.handover.leave(self.place, START, self.reuse.as_ref()).settle();
    }
}

#[test]
fn a_slot_granted_to_one_who_leaves_goes_to_the_next() {
    in_every_order(|| {
        let harbor = Harbor::new(1, None);
        let held = harbor.hold();
        let (leaving, staying) = (harbor.seat(NEVER, None), harbor.seat(NEVER, None));
        let leaver = beside(&harbor, move |harbor| leaving.leave(harbor));
        let stayer = beside(&harbor, move |harbor| {
            let slot = staying.wait_for_slot(harbor);
            harbor.release(slot);
        });
        harbor.release(held);
        leaver.join().unwrap();
        stayer.join().unwrap();
        harbor.assert_left_clean();
    });
}

#[test]
fn a_token_granted_with_it_goes_along() {
    in_every_order(|| {
        let rate = RateLimit { period: Duration::from_secs(3600), burst: NonZeroU32::MIN };
        let harbor = Harbor::new(1, Some(rate));
        let undialled = harbor.hold();
        let (leaving, staying) = (harbor.seat(NEVER, None), harbor.seat(NEVER, None));
        let leaver = beside(&harbor, move |harbor| leaving.leave(harbor));
        let stayer = beside(&harbor, move |harbor| staying.wait_for_slot(harbor));
        harbor.release(undialled);
        leaver.join().unwrap();
        let slot = stayer.join().unwrap();
        harbor.release(slot);
        harbor.assert_left_clean();
    });
}

#[test]
fn who_leaves_at_its_deadline_takes_nothing_along() {
    in_every_order(|| {
        let harbor = Harbor::new(1, None);
        let held = harbor.hold();
        let (leaving, staying) = (harbor.seat(DEADLINE, None), harbor.seat(NEVER, None));
        let leaver = beside(&harbor, move |harbor| leaving.leave(harbor));
        let clock = beside(&harbor, move |harbor| harbor.event(|core| core.tick(DEADLINE)));
        harbor.handover.tell(held, SlotEvent::Released, None, DEADLINE).settle();
        leaver.join().unwrap();
        let slot = staying.wait_for_slot(&harbor);
        harbor.release(slot);
        clock.join().unwrap();
        harbor.assert_left_clean();
    });
}

/// The gate reads its clock before it takes the lock: the release may say an earlier time than the tick before it.
#[test]
fn a_deadline_and_a_grant_end_in_one_call() {
    in_every_order(|| {
        let harbor = Harbor::new(1, None);
        let held = harbor.hold();
        let waiting = harbor.seat(DEADLINE, None);
        let clock = beside(&harbor, move |harbor| harbor.event(|core| core.tick(DEADLINE)));
        let waiter = beside(&harbor, move |harbor| match waiting.wait(harbor) {
            Call::Dial { slot, .. } => harbor.handover.tell(slot, SlotEvent::Released, None, DEADLINE).settle(),
            Call::Refused(refusal) => {
                assert_eq!(refusal.reason, RefusalReason::QueueTimeout);
                0
            }
            Call::Reuse { .. } => panic!("given a connection"),
        });
        harbor.release(held);
        clock.join().unwrap();
        waiter.join().unwrap();
        harbor.assert_left_clean();
    });
}

/// A refused waiter leaves a ticket, which no other request may use before the waiter knows.
#[test]
fn a_refused_waiters_place_is_nobody_elses_before_it_looks() {
    in_every_order(|| {
        let harbor = Harbor::new(1, None);
        let held = harbor.hold();
        let waiting = harbor.seat(DEADLINE, None);
        let clock = beside(&harbor, move |harbor| harbor.event(|core| core.tick(DEADLINE)));
        let refused = beside(&harbor, move |harbor| match waiting.wait(harbor) {
            Call::Refused(refusal) => refusal.reason,
            Call::Dial { .. } | Call::Reuse { .. } => panic!("admitted without a slot"),
        });
        let other = harbor.seat(NEVER, None);
        clock.join().unwrap();
        assert_eq!(refused.join().unwrap(), RefusalReason::QueueTimeout);
        harbor.release(held);
        let slot = other.wait_for_slot(&harbor);
        harbor.release(slot);
        harbor.assert_left_clean();
    });
}

#[test]
fn a_grant_and_fewer_slots_admit_no_more_than_fit() {
    in_every_order(|| {
        let harbor = Harbor::new(2, None);
        let (first, second) = (harbor.hold(), harbor.hold());
        let waiting = harbor.seat(NEVER, None);
        let operator = beside(&harbor, |harbor| harbor.event(|core| core.resize(1, START)));
        let waiter = beside(&harbor, |harbor| waiting.wait_for_slot(harbor));
        harbor.release(first);
        operator.join().unwrap();
        let snapshot = harbor.handover.with(|core| core.snapshot(START));
        assert!(matches!((snapshot.open.open(), snapshot.waiting), (2, 0) | (1, 1)), "{snapshot:?}");
        harbor.release(second);
        let slot = waiter.join().unwrap();
        assert!(slot != first && slot != second, "a slot granted twice");
        harbor.release(slot);
        harbor.assert_left_clean();
    });
}

#[test]
fn more_slots_wake_one_who_sits_down_in_that_moment() {
    in_every_order(|| {
        let harbor = Harbor::new(1, None);
        let held = harbor.hold();
        let waiter = beside(&harbor, move |harbor| harbor.seat(NEVER, None).wait_for_slot(harbor));
        harbor.event(|core| core.resize(2, START));
        let slot = waiter.join().unwrap();
        harbor.release(slot);
        harbor.release(held);
        harbor.assert_left_clean();
    });
}

#[test]
fn two_who_wait_have_the_slot_one_after_the_other() {
    in_every_order(|| {
        let harbor = Harbor::new(1, None);
        let held = harbor.hold();
        let waiters = [(); 2].map(|()| {
            let waiting = harbor.seat(NEVER, None);
            beside(&harbor, |harbor| {
                let slot = waiting.wait_for_slot(harbor);
                assert_eq!(harbor.inside.fetch_add(1, Ordering::SeqCst), 0, "two inside");
                harbor.inside.fetch_sub(1, Ordering::SeqCst);
                harbor.release(slot);
                slot
            })
        });
        harbor.release(held);
        let [one, other] = waiters.map(|waiter| waiter.join().unwrap());
        assert!(one != other && one != held && other != held, "a slot granted twice");
        harbor.assert_left_clean();
    });
}

#[test]
fn who_is_polled_by_another_task_is_woken_there() {
    in_every_order(|| {
        let harbor = Harbor::new(1, None);
        let held = harbor.hold();
        let waiting = harbor.seat(NEVER, None);
        let waiter = beside(&harbor, move |harbor| {
            let first = waiting.poll(harbor, &mut Context::from_waker(Waker::noop()));
            let call = match first {
                Poll::Ready(call) => call,
                Poll::Pending => waiting.wait(harbor),
            };
            let Call::Dial { slot, .. } = call else { panic!("not admitted") };
            harbor.release(slot);
        });
        harbor.release(held);
        waiter.join().unwrap();
        harbor.assert_left_clean();
    });
}

#[test]
fn a_kept_connection_handed_to_one_who_leaves_is_kept_for_the_next() {
    in_every_order(|| {
        let harbor = Harbor::new(1, None);
        let held = harbor.hold();
        let connection = Connection::default();
        let leaving = harbor.seat(NEVER, Some("a:80"));
        let leaver = beside(&harbor, move |harbor| leaving.leave(harbor));
        let stayer = beside(&harbor, |harbor| harbor.seat(NEVER, Some("a:80")).wait(harbor));
        harbor.handover.park(held, ReuseKey::from("a:80"), connection.clone(), START).settle();
        leaver.join().unwrap();
        let Call::Reuse { slot, kept, .. } = stayer.join().unwrap() else { panic!("the connection is gone") };
        assert_eq!((slot, Arc::strong_count(&connection)), (held, 2));
        drop(kept);
        harbor.release(slot);
        harbor.assert_left_clean();
    });
}
