//! A bounded number of permits, granted oldest first: for requests that are asked again in distress.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::admission::Place;

/// So many permits at once; the other requests wait in the order of their arrival.
#[derive(Clone, Debug, Default)]
pub struct Reasks(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Permits that exist.
    granted: usize,
    waiting: BTreeMap<Place, oneshot::Sender<Reask>>,
}

/// A permit. Dropping it grants the next one, also where it was granted to a request that has left.
#[derive(Debug)]
#[must_use = "a permit dropped at once is the next request's at once"]
pub struct Reask(Reasks);

impl Reasks {
    /// Waits for a permit, of which at most `most` exist at once. Safe to cancel at any point.
    pub async fn take(&self, place: Place, most: usize) -> Reask {
        let called = {
            let mut state = self.0.lock();
            if state.granted < most.max(1) && state.waiting.is_empty() {
                state.granted += 1;
                return Reask(self.clone());
            }
            let (call, called) = oneshot::channel();
            state.waiting.insert(place, call);
            called
        };
        called.await.expect("a request that waits is called")
    }
}

impl Drop for Reask {
    fn drop(&mut self) {
        let next = {
            let mut state = self.0.0.lock();
            // Those whose requests have left are passed over.
            let next = std::iter::from_fn(|| state.waiting.pop_first()).find(|(_, call)| !call.is_closed());
            state.granted -= usize::from(next.is_none());
            next
        };
        if let Some((_, call)) = next {
            drop(call.send(Reask(self.0.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::admission::Moment;

    fn place(number: u64) -> Place {
        Place::new(Moment::default(), number)
    }

    #[test]
    fn permits_are_bounded_and_go_to_the_oldest_that_has_not_left() {
        let reasks = Reasks::default();
        let context = &mut Context::from_waker(Waker::noop());
        let mut poll = |taking: std::pin::Pin<&mut dyn Future<Output = Reask>>| taking.poll(context);
        let (mut first, mut second) = (pin!(reasks.take(place(9), 2)), pin!(reasks.take(place(8), 2)));
        let (Poll::Ready(first), Poll::Ready(second)) = (poll(first.as_mut()), poll(second.as_mut())) else {
            panic!("two permits are there")
        };
        let mut newest = pin!(reasks.take(place(7), 2));
        let mut oldest = Box::pin(reasks.take(place(1), 2));
        let mut older = pin!(reasks.take(place(2), 2));
        let mut left = Box::pin(reasks.take(place(0), 2));
        assert!(poll(newest.as_mut()).is_pending() && poll(oldest.as_mut()).is_pending());
        assert!(poll(older.as_mut()).is_pending() && poll(left.as_mut()).is_pending());
        drop(left);
        drop(first);
        // It was granted the permit, and leaves before it takes it.
        drop(oldest);
        assert!(poll(newest.as_mut()).is_pending());
        let Poll::Ready(older) = poll(older.as_mut()) else { panic!("the permit was passed on") };
        drop((second, older));
        let Poll::Ready(newest) = poll(newest.as_mut()) else { panic!("one more is there") };
        drop(newest);
        assert_eq!(reasks.0.lock().granted, 0);
    }
}
