//! Asks again for answers that show the registry's overload, before a byte of them went to the client.
//!
//! Between two tries the request holds nothing: slot and connection went back with the answer, and it waits in its old
//! place for the next. Its own deadline bounds all of it; then the client gets the registry's own last answer.

use std::collections::BTreeSet;
use std::time::Duration;

use hyper::{Method, Response, StatusCode};
use tokio::time::timeout_at;

use super::outbound::Outbound;
use super::peeked::Peeked;
use crate::admission::Moment;
use crate::metrics::Sign;
use crate::repair::denials::Denial;
use crate::repair::signs::{self, Exchange};
use crate::repair::tokens::{Access, Asked};
use crate::repair::{Repair, Tries, chance};
use crate::upstream::http::AnswerBody;
use crate::upstream::{Failure, Requester, Trip, Upstream};

/// How much of an answer is read to find out what it means. A longer one is none of those that can be repaired.
const MOST: usize = 64 * 1024;

/// Gets the request to the registry and brings back an answer that is worth handing on, and how often it was asked for
/// again.
///
/// # Errors
/// When there is none, or the client leaves.
pub async fn exchange(
    outbound: &mut Outbound,
    upstream: &Upstream,
    trip: &mut Trip,
    client: &impl Requester,
) -> Result<(Response<Peeked>, u32), Failure> {
    let Some(repair) = upstream.repair.as_deref().filter(|_| outbound.is_repeatable()) else {
        let response = outbound.send(upstream, trip, client).await?;
        return Ok((response.map(Peeked::unread), 0));
    };
    repair.request(upstream.gate.now());
    let mut tries = Tries::default();
    let deadline = trip.deadline;
    let mut token = Token::asked_by(outbound, repair);
    let mut last: Option<Response<Peeked>> = None;
    loop {
        let seen = match outbound.send(upstream, trip, client).await {
            Ok(response) => look(response, outbound, &mut token, upstream, deadline).await,
            Err(failure @ Failure::Died(_)) => {
                Seen { answer: Err(failure), sign: Some(Sign::Broken), retry_after: None }
            }
            Err(Failure::ClientLeft) => return Err(Failure::ClientLeft),
            // Its time is over: the registry's own last answer says more than ours.
            Err(failure) => return last.map(|answer| (answer, tries.count())).ok_or(failure),
        };
        let Some(sign) = seen.sign else {
            if let Some(first) = tries.first() {
                upstream.metrics.repaired(first);
            }
            return seen.answer.map(|answer| (answer, tries.count()));
        };
        let before = tries.count();
        let pause = tries.pause_after(sign, repair.ambiguous_401, seen.retry_after, chance());
        let may_go_on = match pause {
            Some(pause) => wait(pause, repair, upstream, deadline, client).await?,
            None => false,
        };
        if !may_go_on {
            return match (seen.answer, last) {
                (Err(_), Some(answer)) | (Ok(answer), _) => Ok((answer, before)),
                (Err(failure), None) => Err(failure),
            };
        }
        upstream.metrics.retried(sign);
        tracing::debug!(registry = upstream.name, sign = sign.as_str(), tries = tries.count(), "asks again");
        last = seen.answer.ok().or(last);
        trip.deadline = deadline;
    }
}

/// Waits for the pause, and for the budget. Tells whether there is time left to ask again.
async fn wait(
    pause: Duration,
    repair: &Repair,
    upstream: &Upstream,
    deadline: Moment,
    client: &impl Requester,
) -> Result<bool, Failure> {
    let mut due = upstream.gate.now() + pause;
    loop {
        if due >= deadline {
            return Ok(false);
        }
        if due > upstream.gate.now() {
            match upstream.pause_until(due, client).await {
                Ok(()) => {}
                Err(Failure::Draining) => return Ok(false),
                Err(failure) => return Err(failure),
            }
        }
        match repair.take(upstream.gate.now()) {
            Ok(()) => return Ok(true),
            Err(later) => due = later,
        }
    }
}

/// An answer, and what it is a sign of; `None` for one that is to be handed on.
struct Seen {
    answer: Result<Response<Peeked>, Failure>,
    sign: Option<Sign>,
    retry_after: Option<Duration>,
}

async fn look(
    response: Response<AnswerBody>,
    outbound: &Outbound,
    token: &mut Option<Token>,
    upstream: &Upstream,
    deadline: Moment,
) -> Seen {
    let status = response.status();
    let mut response = response.map(Peeked::unread);
    let is_token = token.is_some() && status == StatusCode::OK;
    if !is_token && !signs::is_suspicious(status) {
        return Seen { answer: Ok(response), sign: None, retry_after: None };
    }
    let read = timeout_at(upstream.instant(deadline), response.body_mut().read(MOST)).await;
    if let Ok(Err(error)) = read {
        return Seen { answer: Err(Failure::Died(error)), sign: Some(Sign::Broken), retry_after: None };
    }
    let retry_after = signs::retry_after(response.headers());
    let sign = if !response.body().is_whole() {
        None
    } else if let Some(token) = token.as_mut().filter(|_| is_token) {
        token.sign_of(&response.body().so_far(), upstream)
    } else {
        signs::of(&Exchange {
            method: outbound.method(),
            authorized: outbound.credentials().is_some(),
            status,
            headers: response.headers(),
            body: &response.body().so_far(),
        })
    };
    Seen { answer: Ok(response), sign, retry_after }
}

/// What is asked for by a request for a token.
struct Token {
    asked: Asked,
    denial: Denial,
    /// What the token before lacked.
    lacked: Option<BTreeSet<Access>>,
}

impl Token {
    /// `None` for any other request.
    fn asked_by(outbound: &Outbound, repair: &Repair) -> Option<Token> {
        let uri = outbound.uri();
        let query = uri.query().filter(|_| outbound.method() == Method::GET && uri.path().ends_with("/token"))?;
        let asked = Asked::of_query(query)?;
        let credentials = outbound.credentials().map_or(&b""[..], |value| value.as_bytes());
        Some(Token { asked, denial: repair.denial_of(credentials, query), lacked: None })
    }

    /// Whether the token in this answer should be asked for once more. One that lacks the same as the one before is the
    /// registry's real answer.
    fn sign_of(&mut self, body: &[u8], upstream: &Upstream) -> Option<Sign> {
        let lacks = self.asked.missing_in(body).filter(|lacks| !lacks.is_empty())?;
        let repair = upstream.repair.as_deref()?;
        let now = upstream.gate.now();
        if repair.knows(self.denial, now) {
            return None;
        }
        if self.lacked.as_ref() == Some(&lacks) {
            repair.remember(self.denial, now);
            return None;
        }
        self.lacked = Some(lacks);
        Some(Sign::PoisonedToken)
    }
}
