//! Clients that were answered for the last time and may still be sending: their connections close lingeringly.
//!
//! They count as clients. The oldest is reset when `max_clients` is reached.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::client::Client;

#[derive(Debug, Default)]
pub struct Lingering {
    /// The tokens that end each, oldest first.
    oldest_first: Mutex<VecDeque<CancellationToken>>,
}

impl Lingering {
    /// Closes a connection in order, or by a reset when the bound is reached.
    pub async fn close(&self, client: &Client) {
        let evicted = CancellationToken::new();
        self.with(|closes| closes.push_back(evicted.clone()));
        let guard = evicted.drop_guard_ref();
        tokio::select! {
            () = client.lingering_close() => {}
            () = evicted.cancelled() => client.cut(),
        }
        drop(guard);
        self.with(|closes| closes.retain(|close| !close.is_cancelled()));
    }

    /// Resets the oldest. Whether there was one.
    pub fn evict_oldest(&self) -> bool {
        let oldest = self.with(|closes| {
            loop {
                match closes.pop_front() {
                    Some(over) if over.is_cancelled() => {}
                    oldest => break oldest,
                }
            }
        });
        oldest.inspect(CancellationToken::cancel).is_some()
    }

    fn with<T>(&self, change: impl FnOnce(&mut VecDeque<CancellationToken>) -> T) -> T {
        change(&mut self.oldest_first.lock())
    }
}
