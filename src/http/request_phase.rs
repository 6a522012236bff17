//! Whether requests of a client's connection are under way: an idle connection ends when draining begins.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::tcp::LOOK_AGAIN;

/// The phase of the requests of one connection.
#[derive(Clone, Debug, Default)]
pub struct RequestPhase(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Whether the answer to the last request is not complete.
    active: AtomicBool,
    /// How often hyper handed over a request.
    requests: AtomicUsize,
}

impl RequestPhase {
    /// A request was handed over.
    pub fn begin(&self) {
        self.0.active.store(true, Ordering::Relaxed);
        self.0.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Its answer is complete.
    pub fn end(&self) {
        self.0.active.store(false, Ordering::Relaxed);
    }

    /// Completes when a request was handed over, and since then none was under way for so long.
    pub async fn idle_for(&self, span: Duration) {
        let requests = || self.0.requests.load(Ordering::Relaxed);
        let (mut since, mut before) = (Instant::now(), requests());
        while since.elapsed() < span {
            tokio::time::sleep(LOOK_AGAIN).await;
            if requests() == 0 || requests() != before || self.0.active.load(Ordering::Relaxed) {
                (since, before) = (Instant::now(), requests());
            }
        }
    }
}
