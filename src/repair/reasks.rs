//! A bounded number of permits, granted oldest first: for requests that are asked again in distress.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::admission::Place;

/// So many permits at once; the other requests wait in the order of their arrival.
#[derive(Debug, Default)]
pub struct Reasks(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    going: usize,
    waiting: BTreeMap<Place, oneshot::Sender<()>>,
}

/// A permit. Dropping it grants the next one.
#[derive(Debug)]
#[must_use = "a permit dropped at once is the next request's at once"]
pub struct Reask<'a>(&'a Reasks);

impl Reasks {
    /// Waits for a permit, of which at most `most` exist at once. Safe to cancel at any point.
    pub async fn take(&self, place: Place, most: usize) -> Reask<'_> {
        let called = {
            let mut state = self.lock();
            if state.going < most.max(1) && state.waiting.is_empty() {
                state.going += 1;
                return Reask(self);
            }
            let (call, called) = oneshot::channel();
            state.waiting.insert(place, call);
            called
        };
        Waiting { reasks: self, place, called: Some(called) }.called().await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A permit was returned: the next waiter gets it.
    fn pass_on(&self) {
        let mut state = self.lock();
        while let Some((_, call)) = state.waiting.pop_first() {
            if call.send(()).is_ok() {
                return;
            }
        }
        state.going -= 1;
    }
}

impl Drop for Reask<'_> {
    fn drop(&mut self) {
        self.0.pass_on();
    }
}

struct Waiting<'a> {
    reasks: &'a Reasks,
    place: Place,
    /// `None` once the permit was granted.
    called: Option<oneshot::Receiver<()>>,
}

impl<'a> Waiting<'a> {
    async fn called(mut self) -> Reask<'a> {
        if let Some(called) = &mut self.called {
            let _ = called.await;
        }
        self.called = None;
        Reask(self.reasks)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(mut called) = self.called.take() else { return };
        self.reasks.lock().waiting.remove(&self.place);
        // It was granted a permit and left in that moment.
        called.close();
        if called.try_recv().is_ok() {
            self.reasks.pass_on();
        }
    }
}
