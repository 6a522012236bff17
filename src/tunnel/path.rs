//! How a tunnel reaches its registry: at first, and again after it was parked.

use std::sync::Arc;

use tokio_util::either::Either;

use crate::proxy::respond::Answer;
use crate::reclaim::ReclaimPolicy;
use crate::upstream::socket::Socket;
use crate::upstream::{Attempt, Connected, Upstream};

/// The registry of a tunnel, and its request for admission there.
#[derive(Debug)]
pub(super) struct RegistryPath {
    pub upstream: Arc<Upstream>,
    pub attempt: Attempt,
    pub policy: Arc<ReclaimPolicy>,
}

impl RegistryPath {
    /// Resolves the name, and asks for admission.
    pub async fn ask(&mut self) -> Result<(), Answer> {
        let asked = self.upstream.ask(&mut self.attempt).await;
        asked.map(|_| ()).map_err(|failure| Answer::of_failure(&failure, &self.upstream, &self.attempt))
    }

    /// Waits for the admission that it asked for.
    pub async fn turn(&mut self) {
        self.upstream.turn(&mut self.attempt).await;
    }

    /// Waits for admission, and connects.
    pub async fn reach(&mut self) -> Result<Socket, Answer> {
        match self.upstream.reach(&mut self.attempt).await {
            Ok(Connected::New(Either::Left(socket))) => Ok(socket),
            Ok(Connected::New(_) | Connected::Pooled(_)) => {
                unreachable!("a tunnel speaks no TLS of ours, and names no key, so it is given no pooled connection")
            }
            Err(failure) => Err(Answer::of_failure(&failure, &self.upstream, &self.attempt)),
        }
    }
}
