//! Whether requests of a client's connection are under way: an idle connection ends when draining begins.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::proxy::connections::CountedClient;
use crate::tcp::LOOK_AGAIN;

#[derive(Clone, Debug)]
pub struct RequestPhase(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    connection: Arc<CountedClient>,
    /// Whether the answer to the last request is not complete.
    active: AtomicBool,
    /// How often hyper handed over a request.
    requests: AtomicUsize,
}

impl RequestPhase {
    pub fn new(connection: Arc<CountedClient>) -> RequestPhase {
        let (active, requests) = Default::default();
        RequestPhase(Arc::new(Counts { connection, active, requests }))
    }

    pub fn connection(&self) -> Arc<CountedClient> {
        self.0.connection.clone()
    }

    /// A request was handed over.
    pub fn begin(&self) {
        self.set_active(true);
        self.0.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Its answer is complete.
    pub fn end(&self) {
        self.set_active(false);
    }

    fn set_active(&self, active: bool) {
        self.0.active.store(active, Ordering::Relaxed);
        self.0.connection.set_idle(!active);
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
