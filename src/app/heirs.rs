//! The processes that take over from this one: the first, and another one should that die.
//!
//! Until this process ends it keeps copies of its listeners, on which it accepts nobody. So a process that dies before
//! leaves nobody before a closed door: connections wait in the backlog for the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::elsewhere::Elsewhere;
use super::handing::{hand_on, look_for_orphans};
use super::listeners::Listeners;
use super::succession::{Origin, Successor};

/// How often another one is tried.
const TRIES: u32 = 5;
/// The pause before each: where a service manager saw the end, it tells this process to stop meanwhile.
const PAUSE: Duration = Duration::from_millis(500);

/// Who takes over.
#[derive(Debug)]
pub(super) struct Heirs {
    origin: Origin,
    listeners: Option<Listeners>,
    /// Cancelled when the service is to stop.
    stop: CancellationToken,
    one_lives: AtomicBool,
    one_is_sought: AtomicBool,
}

impl Heirs {
    /// One has taken over.
    pub fn new(origin: Origin, listeners: Option<Listeners>, stop: CancellationToken) -> Heirs {
        Heirs { origin, listeners, stop, one_lives: AtomicBool::new(true), one_is_sought: AtomicBool::new(false) }
    }

    /// Whether one lives, as far as is known.
    pub fn do_listen(&self) -> bool {
        self.one_lives.load(Ordering::Relaxed)
    }

    /// Whether one died, and another one is about to be tried.
    pub fn is_one_sought(&self) -> bool {
        self.one_is_sought.load(Ordering::Relaxed)
    }

    /// Hands slots on to the one that lives, until nothing is left.
    pub async fn serve(self: Arc<Heirs>, mut successor: Successor, elsewhere: Arc<Elsewhere>) {
        for _ in 0..TRIES {
            if hand_on(&mut successor, &elsewhere).await {
                return;
            }
            self.one_is_sought.store(true, Ordering::Relaxed);
            let ended = successor.ended().await;
            if successor.leaves || ended.is_some_and(|status| status.success()) {
                // Another one took over from it, which knows nothing of this one any more; or the service stops.
                tracing::info!(pid = successor.pid, "the process that took over has ended");
                self.stop.cancel();
                break;
            }
            self.one_lives.store(false, Ordering::Relaxed);
            tracing::error!(pid = successor.pid, ?ended, "the process that took over has died");
            // Its sockets may stand, and only it knew what it had: slots that were its own are not simply free again.
            look_for_orphans(&elsewhere).await;
            match self.another().await {
                Some(another) => successor = another,
                None => break,
            }
            tracing::info!(pid = successor.pid, "another process takes over");
            self.one_lives.store(true, Ordering::Relaxed);
            self.one_is_sought.store(false, Ordering::Relaxed);
        }
        self.one_is_sought.store(false, Ordering::Relaxed);
    }

    async fn another(&self) -> Option<Successor> {
        for _ in 0..TRIES {
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = self.stop.cancelled() => return None,
            }
            let Ok(listeners) = self.listeners.as_ref()?.copies() else { continue };
            match self.origin.succeed(listeners).await {
                Ok(successor) => return Some(successor),
                Err(error) => tracing::error!("nobody took over: {error}"),
            }
        }
        None
    }
}
