//! A connection on which a visible request does not move: after a very long time it is reclaimed for a waiter, like a tunnel.
//!
//! Neither a registry that stops in its answer nor a client that takes nothing, or less than `queue.least_rate`, may hold a slot
//! for ever. A request whose answer has not begun is cut only if it may be sent again (RFC 9110, section 9.2.1), which follows: the
//! registry may be at work on a commit, whose client may leave.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::request_body::Upload;
use crate::admission::{Activity, Evidence, Gate, Moment, Quiet, SlotEvent, SlotId, SlotState};

/// How often a request that does not move is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The request that is under way on a connection, if there is one.
pub(super) type Pending = Arc<Mutex<Option<PendingRequest>>>;

#[derive(Debug)]
pub(super) struct PendingRequest {
    pub began: Moment,
    pub upload: Upload,
    /// Whether it may be sent again: a GET or HEAD without a body.
    pub is_safe: bool,
    /// Whether the head of its answer came.
    pub is_answered: bool,
    /// Whether it was cut before that, and is to be sent again.
    pub is_cut: bool,
}

/// Looks for a request that does not move on one connection.
pub(super) struct Lookout<P> {
    pub pending: Pending,
    pub activity: Arc<Activity>,
    pub slot: SlotId,
    pub gate: Gate<P>,
    /// How long a request may lie still.
    pub longest: Duration,
}

impl<P: Send + 'static> Lookout<P> {
    /// Completes when the connection is to be cut for a waiter.
    pub async fn reclaimed(self) {
        loop {
            match self.left() {
                None => sleep(self.longest).await,
                Some(left) if !left.is_zero() => sleep(left).await,
                Some(_) => {
                    tokio::select! {
                        Ok(()) = self.tell() => if self.is_stalled() { return self.blame() },
                        () = self.moves() => {}
                    }
                    // Also if it ended meanwhile and another one began: the report of a stall must not outlive it.
                    self.gate.tell(self.slot, SlotEvent::Entered(SlotState::Active));
                }
            }
        }
    }

    /// The time until the request that is under way may be cut, if nothing moves.
    fn left(&self) -> Option<Duration> {
        let pending = self.pending.lock();
        let PendingRequest { began, upload, .. } =
            pending.as_ref().filter(|it| it.is_answered || it.is_safe || !it.upload.is_whole())?;
        let now = self.gate.now();
        let waits = now.since(*began);
        let silence = self.activity.silence(now).map_or(waits, |silence| silence.min(waits));
        let left = self.longest.saturating_sub(silence);
        Some(upload.left().map_or(left, |until_slow| until_slow.min(left)))
    }

    fn is_stalled(&self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }

    fn blame(&self) {
        if let Some(pending) = &mut *self.pending.lock() {
            pending.is_cut = pending.is_safe && !pending.is_answered;
            if pending.upload.left().is_some_and(|left| left.is_zero()) {
                pending.upload.end_as_slow();
            }
        }
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
        let quiet = Quiet { evidence: Evidence::Stalled, since, from };
        self.gate.quiet(self.slot, quiet, Box::new(move || _ = reclaim.send(())));
        reclaimed
    }
}
