//! The turn of a request at the gate: asked for, and waited for apart from everything else that the request needs.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Poll, ready};

use tokio::time::Instant;

use super::http::PooledConnection;
use crate::admission::{Admission, Admit, Refusal};

/// A request that asked for admission.
#[derive(Debug)]
pub(super) struct PendingAdmission {
    pub since: Instant,
    pub is_held: bool,
    admit: Admit<PooledConnection>,
    answer: Option<Box<Result<Admission<PooledConnection>, Refusal>>>,
}

impl PendingAdmission {
    /// One that asks with the first poll.
    pub fn new(admit: Admit<PooledConnection>, is_held: bool) -> PendingAdmission {
        PendingAdmission { since: Instant::now(), is_held, admit, answer: None }
    }

    /// The answer.
    pub async fn admitted(&mut self) -> Result<Admission<PooledConnection>, Refusal> {
        match self.answer.take() {
            Some(answer) => *answer,
            None => (&mut self.admit).await,
        }
    }

    /// Completes when the answer is there; it stays.
    pub async fn turn(&mut self) {
        poll_fn(|cx| {
            if self.answer.is_none() {
                self.answer = Some(Box::new(ready!(Pin::new(&mut self.admit).poll(cx))));
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Whether the answer is there at once.
    pub async fn is_turn(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.turn() => true,
            () = std::future::ready(()) => false,
        }
    }
}
