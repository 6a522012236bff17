//! One visible request on its connections: a step toward the registry, and the request once it is connected.

use std::time::Duration;

use hyper::{Method, Request, Response, StatusCode};
use tokio::time::Instant;

use super::outbound::Outbound;
use crate::upstream::http::{AnswerBody, PooledConnection, SendError};
use crate::upstream::request_body::{BodyCopy, RequestBody, Upload};
use crate::upstream::tls::last_word;
use crate::upstream::{Attempt, Connected, Failure, Upstream};

/// The pause of a request that was cut for another one, which gets the slot once the registry has seen the cut.
const PAUSE_AFTER_CUT: Duration = Duration::from_secs(1);

/// One request, and what is left to send of it.
pub(super) struct Exchange<'a> {
    pub(super) upstream: &'a Upstream,
    pub(super) outbound: &'a Outbound,
    pub(super) is_careful: bool,
    /// `None` once it was sent.
    body: Option<RequestBody>,
    /// Sent from the second time on.
    pub(super) copy: BodyCopy,
    pub(super) upload: Upload,
    /// A request of which no byte was sent, though its connection was closed.
    unsent: Option<Box<Request<RequestBody>>>,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(upstream: &'a Upstream, outbound: &'a Outbound, body: RequestBody) -> Exchange<'a> {
        // A request that cannot be sent twice uses a new connection, or one that was just checked. A form that asks for a token
        // is sent again after an answer alone (RFC 9110, section 9.2.2).
        let is_careful = !outbound.is_repeatable() || outbound.method() == Method::POST;
        Exchange {
            upstream,
            outbound,
            is_careful,
            copy: body.copy(),
            upload: body.upload(),
            body: Some(body),
            unsent: None,
        }
    }

    /// One step toward the registry, and the request once it is connected; with the time that the head of the answer took.
    /// `None`: another turn is due.
    pub(super) async fn turn(
        &mut self,
        attempt: &mut Attempt,
    ) -> Result<Option<(Response<AnswerBody>, Duration)>, Failure> {
        let Some(connection) = self.connection(attempt).await? else { return Ok(None) };
        let request = match self.unsent.take() {
            Some(request) => *request,
            None => self.outbound.request(self.body.take().unwrap_or_else(|| self.copy.again())),
        };
        let upstream = self.upstream;
        let node = connection.node;
        upstream.metrics.sent(connection.used);
        let began = Instant::now();
        // On the heap, as all that is larger than what a waiting request needs.
        let sending = Box::pin(connection.send(request, upstream.gate.clone(), self.outbound.key().clone()));
        let sent = tokio::select! {
            sent = sending => sent,
            () = upstream.ended.cancelled() => return Err(Failure::Draining),
        };
        let status = sent.as_ref().ok().map(Response::status);
        if !matches!(sent, Err(SendError::Unsent(_))) {
            let path = upstream.repair.key(&[self.outbound.uri().path().as_bytes()]);
            upstream.answered(attempt, node, status, path);
        }
        match sent {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => Err(Failure::Switched),
            Ok(response) => Ok(Some((response, began.elapsed()))),
            Err(SendError::Unsent(request)) => {
                self.unsent = Some(request);
                Ok(None)
            }
            // It is behind the one that gets its slot, and has all its patience again.
            Err(SendError::Cut) => {
                upstream.pause_until(upstream.gate.now() + PAUSE_AFTER_CUT).await?;
                attempt.deadline = attempt.deadline.max(upstream.gate.now() + attempt.patience.limit);
                Ok(None)
            }
            // Once: what ends a second connection is no accident.
            Err(SendError::Died { was_pooled: true, cause })
                if !self.is_careful && !cause.is_parse() && self.upload.is_whole() =>
            {
                self.is_careful = true;
                Ok(None)
            }
            Err(SendError::Malformed(what)) => Err(Failure::Malformed(what)),
            Err(SendError::Died { cause, .. }) => {
                Err(last_word(&cause).map_or(Failure::Died(cause), Failure::TurnedAway))
            }
        }
    }

    /// A connection to send it on; `None` when another step is due.
    async fn connection(&self, attempt: &mut Attempt) -> Result<Option<PooledConnection>, Failure> {
        let (gate, terms) = (&self.upstream.gate, self.upstream.terms);
        let started = match self.upstream.step(attempt).await? {
            None => return Ok(None),
            Some(Connected::New(established)) => PooledConnection::start(established, gate, terms).await,
            Some(Connected::Pooled(pooled)) if self.upstream.begin_move(&pooled, &attempt.destination) => {
                attempt.reuse = None;
                return Ok(None);
            }
            Some(Connected::Pooled(pooled)) => return Ok((!self.is_careful || pooled.is_fresh()).then_some(pooled)),
        };
        started.map(Some).map_err(Failure::Died)
    }
}
