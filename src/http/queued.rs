//! A request that was put back because it has to wait.

use std::sync::Arc;

use crate::proxy::mirror::Mirror;
use crate::proxy::record::Record;
use crate::upstream::{Attempt, Upstream};

/// A request that waits for its turn: what was found out about it, which still holds when it is read again.
#[derive(Debug)]
pub struct Queued {
    pub record: Record,
    pub upstream: Arc<Upstream>,
    pub attempt: Attempt,
    /// The mirror that it came to, if it came to one.
    pub mirror: Option<Arc<Mirror>>,
}

impl Queued {
    /// Completes when it has its turn, or is refused, or the process ends: its answer says which.
    pub async fn turn(&mut self) {
        self.upstream.turn(&mut self.attempt).await;
    }
}
