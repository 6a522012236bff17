//! The hand-over between those who wait and the core: one mutex, one seat per waiter, plain wakers.
//!
//! A decision is laid into the waiter's seat under the lock and taken out of it under the lock, so that a waiter who
//! leaves finds either its place in the queue or what was granted to it, and gives back the one or the other. Wakers
//! and connections are carried out of the lock in an [`Aftermath`]. No tokio types here, and no clock: the caller says
//! what time it is.

use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::activity::Activity;
use super::core::Core;
use super::decision::{CloseCause, Decision, Refusal};
use super::maps::NumberMap;
use super::moment::Moment;
use super::request::{AdmissionRequest, Place, ReuseKey};
use super::slot::{OnReclaim, SlotEvent, SlotId};
use super::sync::{Mutex, MutexGuard};
use super::tickets::Owner;

/// The shared state of one gate; `P` is a kept connection.
pub(super) struct Handover<P> {
    state: Mutex<State<P>>,
}

struct State<P> {
    core: Core,
    seats: NumberMap<Place, Seat<P>>,
    kept: NumberMap<SlotId, P>,
    /// How to ask the quiet tunnels to close.
    quiet: NumberMap<SlotId, OnReclaim>,
    /// When the driver will call again.
    armed: Option<Moment>,
}

enum Seat<P> {
    Waiting(Waker),
    /// Called, and whom the place is kept for once that is known there. On the heap: most seats are waited in.
    Called(Box<Called<P>>),
}

struct Called<P>(Call<P>, Option<Owner>);

pub(super) enum Call<P> {
    Dial { slot: SlotId, activity: Arc<Activity>, waited: Duration },
    Reuse { slot: SlotId, kept: P, waited: Duration },
    Refused(Refusal),
}

/// The work that is left after the lock was released.
#[must_use = "wakers and connections are waiting in it"]
pub(super) struct Aftermath<P> {
    wakers: Vec<Waker>,
    closed: Vec<(P, CloseCause)>,
    reclaimed: Vec<OnReclaim>,
    /// The driver must look at [`Handover::wake_at`] anew.
    pub rearm: bool,
}

impl<P> Aftermath<P> {
    /// Wakes who was called, asks quiet tunnels to close, and closes what must go; tells how many kept connections went
    /// because somebody waits.
    pub fn settle(self) -> usize {
        self.wakers.into_iter().for_each(Waker::wake);
        self.reclaimed.into_iter().for_each(|reclaim| reclaim());
        let reclaimed = self.closed.iter().filter(|(_, cause)| *cause == CloseCause::Reclaimed).count();
        drop(self.closed);
        reclaimed
    }
}

impl<P> Handover<P> {
    pub fn new(core: Core) -> Handover<P> {
        let (seats, kept, quiet) = Default::default();
        let state = State { core, seats, kept, quiet, armed: None };
        Handover { state: Mutex::new(state) }
    }

    /// Joins the queue. [`Handover::poll_call`] returns the result.
    pub fn arrive(&self, ask: AdmissionRequest, waker: &Waker, now: Moment) -> Aftermath<P> {
        let mut state = self.lock();
        let before = state.seats.insert(ask.place, Seat::Waiting(waker.clone()));
        debug_assert!(before.is_none(), "somebody sits there");
        state.core.arrive(ask, now);
        state.carry_out()
    }

    /// Whether this waiter was called. Once it was, its seat is gone.
    pub fn poll_call(&self, place: Place, context: &Context<'_>, now: Moment) -> Poll<Call<P>> {
        let mut state = self.lock();
        match state.seats.remove(&place) {
            Some(Seat::Called(called)) => {
                let Called(call, may_return) = *called;
                // The seat is empty: whoever comes back may have it.
                if let Some(owner) = may_return {
                    state.core.keep_place(place, owner, now);
                }
                Poll::Ready(call)
            }
            Some(Seat::Waiting(mut waker)) => {
                waker.clone_from(context.waker());
                state.seats.insert(place, Seat::Waiting(waker));
                Poll::Pending
            }
            None => Poll::Pending,
        }
    }

    /// Gets up from the seat: what was granted meanwhile goes to the next one.
    pub fn leave(&self, place: Place, now: Moment, key: Option<&ReuseKey>) -> Aftermath<P> {
        let mut state = self.lock();
        let called = match state.seats.remove(&place) {
            Some(Seat::Called(called)) => Some(*called),
            Some(Seat::Waiting(_)) => {
                state.core.leave(place, now);
                None
            }
            None => None,
        };
        match called {
            Some(Called(Call::Dial { slot, .. }, _)) => state.core.tell(slot, SlotEvent::Released, now),
            Some(Called(Call::Reuse { slot, kept, .. }, _)) => {
                let key = key.expect("only who named a key is given a kept connection").clone();
                return state.keep(slot, key, kept, now);
            }
            Some(Called(Call::Refused(_), Some(owner))) => state.core.keep_place(place, owner, now),
            Some(Called(Call::Refused(_), None)) | None => {}
        }
        state.carry_out()
    }

    /// Keeps a connection for reuse, or closes it when it may not be kept.
    pub fn park(&self, slot: SlotId, key: ReuseKey, connection: P, now: Moment) -> Aftermath<P> {
        self.lock().keep(slot, key, connection, now)
    }

    /// Something happened to a slot. Only a quiet connection has an `on_reclaim`, and one that tells anything is pooled no
    /// longer.
    pub fn tell(&self, slot: SlotId, event: SlotEvent, on_reclaim: Option<OnReclaim>, now: Moment) -> Aftermath<P> {
        let mut state = self.lock();
        state.quiet.remove(&slot);
        state.quiet.extend(on_reclaim.map(|on_reclaim| (slot, on_reclaim)));
        let gone = state.kept.remove(&slot);
        state.core.tell(slot, event, now);
        let mut aftermath = state.carry_out();
        aftermath.closed.extend(gone.map(|connection| (connection, CloseCause::Expired)));
        aftermath
    }

    pub fn event(&self, happen: impl FnOnce(&mut Core)) -> Aftermath<P> {
        let mut state = self.lock();
        happen(&mut state.core);
        state.carry_out()
    }

    /// When the driver is to tick; it is expected to do so from now on.
    pub fn wake_at(&self) -> Option<Moment> {
        let mut state = self.lock();
        state.armed = state.core.wake_at();
        state.armed
    }

    /// Reads the core, or changes what decides nothing.
    pub fn with<T>(&self, act: impl FnOnce(&mut Core) -> T) -> T {
        act(&mut self.lock().core)
    }

    /// No code that runs under the lock leaves the state half changed and panics on purpose; should one panic all the
    /// same, going on is better than refusing everybody for ever.
    fn lock(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P> State<P> {
    fn keep(&mut self, slot: SlotId, key: ReuseKey, connection: P, now: Moment) -> Aftermath<P> {
        self.quiet.remove(&slot);
        // In first: the core may hand it on, or close it, at once.
        self.kept.insert(slot, connection);
        self.core.tell(slot, SlotEvent::Pooled(key), now);
        self.carry_out()
    }

    /// Lays the core's decisions into the seats.
    fn carry_out(&mut self) -> Aftermath<P> {
        let mut wakers = Vec::new();
        let mut closed = Vec::new();
        let mut reclaimed = Vec::new();
        while let Some(decision) = self.core.next_decision() {
            match decision {
                Decision::Dial { place, slot, waited } => {
                    let activity = self.core.activity(slot);
                    wakers.push(self.call(place, Call::Dial { slot, activity, waited }, None));
                }
                Decision::Reuse { place, slot, waited } => {
                    let kept = self.kept.remove(&slot).expect("the core hands out only what was kept");
                    wakers.push(self.call(place, Call::Reuse { slot, kept, waited }, None));
                }
                Decision::Refuse { place, refusal, may_return } => {
                    wakers.push(self.call(place, Call::Refused(refusal), may_return));
                }
                Decision::Close { slot, cause } => {
                    closed.extend(self.kept.remove(&slot).map(|connection| (connection, cause)));
                }
                Decision::Reclaim { slot } => reclaimed.extend(self.quiet.remove(&slot)),
            }
        }
        let wake_at = self.core.wake_at();
        let rearm = wake_at.is_some_and(|at| self.armed.is_none_or(|armed| at < armed));
        if rearm {
            self.armed = wake_at;
        }
        Aftermath { wakers, closed, reclaimed, rearm }
    }

    fn call(&mut self, place: Place, call: Call<P>, may_return: Option<Owner>) -> Waker {
        let Some(Seat::Waiting(waker)) = self.seats.insert(place, Seat::Called(Box::new(Called(call, may_return))))
        else {
            unreachable!("the core decides once, and only about those who wait");
        };
        waker
    }
}
