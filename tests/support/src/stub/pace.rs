//! The bytes that all answers of the stub may send in a second.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::locked;

/// When the next bytes may go, whichever connection they are of.
#[derive(Debug, Default)]
pub(super) struct Pace {
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// Waits until so many bytes may go. Pauses are not made up for.
    pub(super) async fn turn(&self, bytes: usize, bytes_per_second: u64) {
        let takes = Duration::from_secs(bytes as u64) / u32::try_from(bytes_per_second).expect("below 4 GB/s");
        let now = Instant::now();
        let turn = {
            let mut next = locked(&self.next);
            let turn = next.unwrap_or(now).max(now);
            *next = Some(turn + takes);
            turn
        };
        tokio::time::sleep_until(turn).await;
    }
}
