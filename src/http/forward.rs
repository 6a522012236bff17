//! One request that is visible as HTTP, absolute-form or at a mirror: relayed with bodies streamed both ways.
//!
//! The request takes its turn at the gate and goes out on a pooled or a new connection to the registry. Headers that concern
//! one hop stay on it; everything else passes unchanged. Called by hyper, for each request of a connection.

use std::pin::pin;
use std::sync::Arc;

use hyper::body::{Body, Incoming};
use hyper::ext::on_informational;
use hyper::header::{CONNECTION, HeaderMap, HeaderValue, PROXY_AUTHORIZATION};
use hyper::{Request, Response, StatusCode, Version};

use super::hop_by_hop::strip_response;
use super::last_hop::{self, head_bytes};
use super::outbound::Outbound;
use super::queued::Queued;
use super::repairing;
use super::reply::{Relayed, Reply};
use super::request_io::RequestIo;
use super::resuming::Resumable;
use crate::admission::{self, Principal};
use crate::metrics::{Grade, Label, OTHER_HOSTS, Reason};
use crate::proxy::clients::peer_of;
use crate::proxy::record::{Kind, Record, shown};
use crate::proxy::respond::Answer;
use crate::proxy::rewrite::Rewrite;
use crate::proxy::{Entry, Proxy};
use crate::upstream::http::says_close;
use crate::upstream::request_body::{RequestBody, Upload};
use crate::upstream::{Attempt, Destination, Patience, Upstream};

/// The client is gone; hyper closes its connection.
#[derive(Debug, thiserror::Error)]
#[error("the client left")]
pub struct ClientLeft;

/// Answers one request.
/// Fails when the client is gone.
pub async fn answer(
    proxy: &Proxy,
    entry: &Entry,
    io: &RequestIo,
    mut request: Request<Incoming>,
) -> Result<Response<Reply>, ClientLeft> {
    if !io.is_first_request() {
        return Err(ClientLeft);
    }
    let (has_body, is_last) = (!request.body().is_end_stream(), says_close(request.headers()));
    // A client of HTTP/1.0 knows no answer before the final one.
    if request.version() >= Version::HTTP_11 {
        let heard = io.clone();
        on_informational(&mut request, move |informational| {
            heard.hear(informational.status(), informational.headers());
        });
    }
    // On the heap: the futures keep twice what they are given.
    let (arrival, request) = (Arrival { proxy, io }, Box::new(request));
    let mut response = match (io.take_queued(), entry) {
        (Some(queued), _) => arrival.in_turn(*queued, request).await,
        (None, Entry::Proxy) => arrival.at_proxy(request).await,
        (None, Entry::Mirror(registry)) => arrival.at_mirror(registry, request).await?,
    };
    let is_rest_unwanted = match response.body() {
        Reply::Own(_) => has_body,
        Reply::Relayed(relayed) => relayed.ends_upload(response.status()),
    };
    if is_rest_unwanted || is_last || proxy.is_draining() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Where a request arrived.
struct Arrival<'a> {
    proxy: &'a Proxy,
    io: &'a RequestIo,
}

impl Arrival<'_> {
    async fn at_proxy(&self, mut request: Box<Request<Incoming>>) -> Response<Reply> {
        let credentials = request.headers().get(PROXY_AUTHORIZATION).map(HeaderValue::as_bytes);
        let principal = self.proxy.settings().classes.principal(credentials, self.io.client());
        let mut record = self.proxy.record(principal.client.clone(), Kind::Request);
        record.toward(shown(None, request.uri()));
        record.asks(request.method(), request.uri());
        if let Some(response) = last_hop::own_answer(&mut request) {
            record.replied(response.status());
            record.served();
            return response.map(Reply::Own);
        }
        let (outbound, body, origin) = match Outbound::of_absolute(*request, self.proxy, record.carried()) {
            Ok(outbound) => outbound,
            Err(answer) => return refuse(record, &answer, OTHER_HOSTS),
        };
        match self.proxy.route(&origin.target, origin.secure).await {
            Ok(route) => {
                let attempt = self.attempt(&mut record, &route.upstream, route.destination, principal, &outbound);
                let queued = Queued { record, upstream: route.upstream, attempt, mirror: None };
                self.exchange(queued, (outbound, body), None).await
            }
            Err(answer) => refuse(record, &answer, OTHER_HOSTS),
        }
    }

    /// A request that takes the mirror for the registry itself.
    async fn at_mirror(
        &self,
        registry: &str,
        mut request: Box<Request<Incoming>>,
    ) -> Result<Response<Reply>, ClientLeft> {
        // Mirrors come and go with their listeners only.
        let (mirror, upstream) = self.proxy.mirror(registry).ok_or(ClientLeft)?;
        let principal = Principal { class: mirror.class, client: peer_of(self.io.client()) };
        let mut record = self.proxy.record(principal.client.clone(), Kind::Request);
        record.toward(shown(Some(mirror.host()), request.uri()));
        record.asks(request.method(), request.uri());
        if let Some(response) = last_hop::own_answer(&mut request) {
            record.replied(response.status());
            record.served();
            return Ok(response.map(Reply::Own));
        }
        let rewrite = mirror.rewrite(&request, self.io.client().local_addr());
        let (outbound, body) = match Outbound::of_origin_form(*request, self.proxy, &mirror, record.carried()) {
            Ok(outbound) => outbound,
            Err(answer) => return Ok(refuse(record, &answer, &upstream.name)),
        };
        let attempt = self.attempt(&mut record, &upstream, mirror.destination(), principal, &outbound);
        let queued = Queued { record, upstream, attempt, mirror: Some(mirror.clone()) };
        Ok(self.exchange(queued, (outbound, body), rewrite).await)
    }

    /// A request that was put back has its turn, and was read again.
    async fn in_turn(&self, mut queued: Queued, mut request: Box<Request<Incoming>>) -> Response<Reply> {
        last_hop::own_answer(&mut request);
        let carried = queued.record.carried();
        let mirror = queued.mirror.clone();
        let rewrite = mirror.as_ref().and_then(|mirror| mirror.rewrite(&request, self.io.client().local_addr()));
        let outgoing = match &mirror {
            Some(mirror) => Outbound::of_origin_form(*request, self.proxy, mirror, carried),
            None => Outbound::of_absolute(*request, self.proxy, carried).map(|(outbound, body, _)| (outbound, body)),
        };
        match outgoing {
            Ok(outgoing) => self.exchange(queued, outgoing, rewrite).await,
            Err(answer) => refuse(queued.record, &answer, &queued.upstream.name),
        }
    }

    /// Its way to the registry.
    fn attempt(
        &self,
        record: &mut Record,
        upstream: &Arc<Upstream>,
        destination: Destination,
        principal: Principal,
        outbound: &Outbound,
    ) -> Attempt {
        record.belongs_to(upstream, principal.class);
        let patience =
            Patience { limit: upstream.queue.request_timeout[principal.class.0], setting: "request_timeout" };
        let kind = (admission::SlotUse::Request, outbound.lane());
        let mut attempt = upstream.attempt(destination, principal, kind, Some(outbound.key().clone()), patience);
        attempt.label.wants = record.wants();
        attempt.label.socket = self.io.client().socket();
        attempt
    }

    /// One request on its way through a registry's gate and back. One without a body is put back where it has to wait.
    async fn exchange(
        &self,
        mut queued: Queued,
        (outbound, body): (Outbound, RequestBody),
        rewrite: Option<Rewrite<'_>>,
    ) -> Response<Reply> {
        let upload = body.upload();
        let asked = if self.io.may_put_back() && body.is_end_stream() {
            queued.upstream.ask(&mut queued.attempt).await
        } else {
            Ok(true)
        };
        if let Ok(false) = asked {
            self.io.put_back(Box::new(queued));
            return std::future::pending().await;
        }
        self.io.goes_on();
        let Queued { mut record, upstream, mut attempt, .. } = queued;
        let exchanged = if let Err(failure) = asked {
            Err(failure)
        } else {
            let mut exchange = pin!(repairing::exchange((&outbound, body), &upstream, &mut attempt));
            loop {
                tokio::select! {
                    biased;
                    (status, headers) = self.io.heard() => self.inform(status, headers, rewrite.as_ref()).await,
                    exchanged = &mut exchange => break exchanged,
                }
            }
        };
        record.reached(attempt.progress.waited, attempt.progress.connect);
        let response = match exchanged {
            Ok((response, retries)) => {
                record.retried(retries);
                response
            }
            // It took the connection to the registry with it, whose fault that is not.
            Err(_) if upload.is_broken() => return refuse_upload(record, &upload, &upstream.name),
            Err(failure) => {
                return refuse(record, &Answer::of_failure(&failure, &upstream, &attempt), &upstream.name);
            }
        };
        let resumable = Resumable::of(&upstream, outbound, &attempt, &response);
        let (mut head, body) = response.into_parts();
        record.replied(head.status);
        strip_response(&mut head.headers);
        if let Some(rewrite) = &rewrite {
            rewrite.apply(head.status, &mut head.headers);
        }
        self.proxy.sign(&mut head.headers);
        // The version is this hop's own; hyper lowers it for a client that speaks 1.0.
        head.version = Version::HTTP_11;
        let relayed = Relayed::new(body, resumable, record, upload, self.io.client().clone());
        Response::from_parts(head, Reply::Relayed(Box::new(relayed)))
    }

    /// Passes an informational answer on (RFC 9110, section 15.2). hyper has sent a 100 itself, to get the body, and
    /// nobody was asked to switch to another protocol.
    async fn inform(&self, status: StatusCode, mut headers: HeaderMap, rewrite: Option<&Rewrite<'_>>) {
        if status == StatusCode::CONTINUE || status == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        strip_response(&mut headers);
        if let Some(rewrite) = rewrite {
            rewrite.apply(status, &mut headers);
        }
        self.proxy.sign(&mut headers);
        self.io.inform(&head_bytes(&format!("HTTP/1.1 {status}"), &headers)).await;
    }
}

fn refuse(record: Record, answer: &Answer, registry: &str) -> Response<Reply> {
    record.answered(answer.reason);
    answer.to_response(registry).map(Reply::Own)
}

fn refuse_upload(mut record: Record, upload: &Upload, registry: &str) -> Response<Reply> {
    let problem = if upload.is_slow() {
        record.ended_by("reclaim", Grade::Slow.as_str());
        "the body of the request came slower than queue.least_rate while others waited"
    } else {
        "the body of the request broke off, or cannot be read"
    };
    record.replied(StatusCode::BAD_REQUEST);
    record.client_left();
    Answer::plain(Reason::BadRequest, problem).to_response(registry).map(Reply::Own)
}
