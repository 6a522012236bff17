//! What a client's FIN means: it depends on what the client is waiting for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::proxy::client::Client;
use crate::tcp::LOOK_AGAIN;

/// What the client is waiting for; it tells what the client's FIN means. hyper itself is told to let a client end its
/// side and still get its answer, and so never says that a client is gone.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    state: Arc<AtomicU8>,
    /// Notified when hyper hands over a request.
    begun: Arc<Notify>,
    /// How often it did.
    requests: Arc<AtomicUsize>,
}

/// The states of [`Asked`].
pub mod state {
    /// Nothing: hyper closes the connection by itself.
    pub const NOTHING: u8 = 0;
    /// An answer, after which it would have kept the connection: its FIN means that it left.
    pub const AND_STAYS: u8 = 1;
    /// An answer, the last on the connection: with its FIN it may just say that it has said all.
    pub const LAST: u8 = 2;
}

impl Asked {
    /// A request was handed over.
    pub fn begin(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.begun.notify_one();
    }

    /// Completes when a request was handed over.
    pub async fn begun(&self) {
        self.begun.notified().await;
    }

    /// Completes when the client has asked for nothing, and was sent nothing, for so long.
    pub async fn nothing_for(&self, span: Duration) {
        let requests = || self.requests.load(Ordering::Relaxed);
        let (mut since, mut before) = (Instant::now(), requests());
        while since.elapsed() < span {
            tokio::time::sleep(LOOK_AGAIN).await;
            if requests() != before || self.state.load(Ordering::Relaxed) != state::NOTHING {
                (since, before) = (Instant::now(), requests());
            }
        }
    }

    /// It waits for something else now.
    pub fn set(&self, state: u8) {
        self.state.store(state, Ordering::Relaxed);
    }

    /// Completes when the client left while it was waiting for an answer.
    pub async fn abandoned(&self, client: &Client) {
        client.ended().await;
        loop {
            match self.state.load(Ordering::Relaxed) {
                state::AND_STAYS => return,
                state::LAST if client.is_broken() => return,
                _ => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }
}
