//! A connection on which a visible request does not move: after a very long time it is reclaimed for a waiter, like a tunnel.
//!
//! Neither a registry that never answers nor a client that takes nothing may hold a slot for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::admission::{Activity, Evidence, Gate, Moment, Quiet, SlotEvent, SlotId, SlotState};

/// How often a request that does not move is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Since when a request is under way on a connection, if one is.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending(Arc<AtomicU64>);

impl Pending {
    /// A request begins.
    pub fn begin(&self, now: Moment) {
        self.0.store(now.nanos().max(1), Ordering::Release);
    }

    /// Its answer was read to the end.
    pub fn end(&self) {
        self.0.store(0, Ordering::Release);
    }

    fn since(&self) -> Option<Moment> {
        let began = self.0.load(Ordering::Acquire);
        (began > 0).then(|| Moment(Duration::from_nanos(began)))
    }
}

/// Looks for a request that does not move on one connection.
pub(super) struct Lookout<P> {
    /// The request.
    pub pending: Pending,
    /// The bytes of the connection.
    pub activity: Arc<Activity>,
    /// Its slot.
    pub slot: SlotId,
    /// The receiver of events.
    pub gate: Gate<P>,
    /// How long a request may lie still.
    pub longest: Duration,
}

impl<P: Send + 'static> Lookout<P> {
    /// Completes when the connection is to be cut for a waiter.
    pub async fn reclaimed(self) {
        loop {
            match self.silence().map(|silence| self.longest.saturating_sub(silence)) {
                None => sleep(self.longest).await,
                Some(left) if !left.is_zero() => sleep(left).await,
                Some(_) => {
                    tokio::select! {
                        Ok(()) = self.tell() => if self.is_stalled() { return },
                        () = self.moves() => {}
                    }
                    // Also if it ended meanwhile and another one began: the report of a stall must not outlive it.
                    self.gate.tell(self.slot, SlotEvent::Entered(SlotState::Active));
                }
            }
        }
    }

    /// How long nothing has moved of the request that is under way.
    fn silence(&self) -> Option<Duration> {
        let (began, now) = (self.pending.since()?, self.gate.now());
        let waits = now.since(began);
        Some(self.activity.silence(now).map_or(waits, |silence| silence.min(waits)))
    }

    fn is_stalled(&self) -> bool {
        self.silence().is_some_and(|silence| silence >= self.longest)
    }

    async fn moves(&self) {
        while self.is_stalled() {
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Reports to the gate that nothing moves. The receiver completes when the gate wants the connection closed.
    fn tell(&self) -> oneshot::Receiver<()> {
        let (reclaim, reclaimed) = oneshot::channel();
        let from = self.gate.now();
        let since = from - self.longest;
        let quiet = Quiet { evidence: Evidence::Stalled, since, from, from_for_own: from };
        self.gate.quiet(
            self.slot,
            quiet,
            Box::new(move |_| {
                // It may have moved, or ended, in this very moment.
                let _ = reclaim.send(());
            }),
        );
        reclaimed
    }
}
