//! One request that is visible as HTTP, absolute-form or at a mirror: relayed with bodies streamed both ways.
//!
//! The request takes its turn at the gate and goes out on a pooled or a new connection to the registry. Headers that concern
//! one hop stay on it; everything else passes unchanged. Called by hyper, for each request of a connection.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderValue, PROXY_AUTHORIZATION};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, Version};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::checks;
use super::hop_by_hop::strip_response;
use super::outbound::Outbound;
use super::repairing;
use super::reply::{Relayed, Reply};
use super::request_phase::RequestPhase;
use super::resuming::Resumable;
use crate::admission::{self, Principal};
use crate::metrics::{OTHER_HOSTS, Reason};
use crate::proxy::client::{Client, ClientIo};
use crate::proxy::clients::Classes;
use crate::proxy::connections::CountedClient;
use crate::proxy::record::{Kind, Record, shown};
use crate::proxy::respond::Answer;
use crate::proxy::rewrite::Rewrite;
use crate::proxy::{Entry, Proxy};
use crate::reclaim::Grade;
use crate::tunnel::{self, NoTunnel, Tunnel};
use crate::upstream::request_body::RequestBody;
use crate::upstream::{Destination, Patience, Upstream};

/// The client is gone; hyper closes its connection.
#[derive(Debug, thiserror::Error)]
#[error("the client left")]
pub struct ClientLeft;

/// Answers one request.
/// Fails when the client is gone.
pub async fn answer(
    proxy: Arc<Proxy>,
    entry: Entry,
    client: Arc<Client>,
    phase: RequestPhase,
    request: Request<Incoming>,
) -> Result<Response<Reply>, ClientLeft> {
    phase.begin();
    let has_body = !request.body().is_end_stream();
    let arrival = Arrival { proxy: &proxy, client: &client, phase: &phase };
    let mut response = match entry {
        Entry::Proxy if request.method() == Method::CONNECT => {
            answer_connect(&proxy, &client, phase.connection(), request).await?
        }
        Entry::Proxy => arrival.at_proxy(request).await,
        Entry::Mirror(registry) => arrival.at_mirror(&registry, request).await?,
    };
    let is_rest_unwanted = match response.body() {
        Reply::Own(_) => {
            phase.end();
            has_body
        }
        Reply::Relayed(relayed) => relayed.ends_upload(response.status()),
    };
    if is_rest_unwanted || proxy.is_draining() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Where a request arrived.
struct Arrival<'a> {
    proxy: &'a Proxy,
    client: &'a Arc<Client>,
    phase: &'a RequestPhase,
}

impl Arrival<'_> {
    async fn at_proxy(&self, mut request: Request<Incoming>) -> Response<Reply> {
        let principal = principal_of(self.proxy, &request, self.client);
        let mut record = self.proxy.record(&principal.client.to_string(), Kind::Request);
        record.toward(shown(None, request.uri()));
        let mut record = match preflight(record, &mut request, OTHER_HOSTS) {
            Ok(record) => record,
            Err(response) => return *response,
        };
        let (outbound, body, origin) = match Outbound::of_absolute(request, self.proxy, record.carried()) {
            Ok(outbound) => outbound,
            Err(answer) => return refuse(record, &answer, OTHER_HOSTS),
        };
        match self.proxy.route(&origin.target, origin.secure).await {
            Ok(route) => {
                self.exchange(record, &route.upstream, route.destination, principal, (outbound, body), None).await
            }
            Err(answer) => refuse(record, &answer, OTHER_HOSTS),
        }
    }

    /// A request that takes the mirror for the registry itself.
    async fn at_mirror(&self, registry: &str, mut request: Request<Incoming>) -> Result<Response<Reply>, ClientLeft> {
        // Mirrors come and go with their listeners only.
        let (mirror, upstream) = self.proxy.mirror(registry).ok_or(ClientLeft)?;
        let principal = Classes::principal_of_class(mirror.class, self.client);
        let mut record = self.proxy.record(&principal.client.to_string(), Kind::Request);
        record.toward(shown(Some(mirror.host()), request.uri()));
        let mut record = match preflight(record, &mut request, &upstream.name) {
            Ok(record) => record,
            Err(response) => return Ok(*response),
        };
        let rewrite = mirror.rewrite(&request, self.client.local_addr());
        let (outbound, body) = match Outbound::of_origin_form(request, self.proxy, &mirror, record.carried()) {
            Ok(outbound) => outbound,
            Err(answer) => return Ok(refuse(record, &answer, &upstream.name)),
        };
        Ok(self.exchange(record, &upstream, mirror.destination(), principal, (outbound, body), rewrite).await)
    }

    /// One request on its way through a registry's gate and back.
    async fn exchange(
        &self,
        mut record: Record,
        upstream: &Arc<Upstream>,
        destination: Destination,
        principal: Principal,
        (outbound, body): (Outbound, RequestBody),
        rewrite: Option<Rewrite<'_>>,
    ) -> Response<Reply> {
        record.belongs_to(&upstream.name, &upstream.metrics);
        let patience =
            Patience { limit: upstream.queue.request_timeout[principal.class.0], setting: "request_timeout" };
        let kind = (admission::SlotUse::Request, outbound.lane());
        let mut attempt = upstream.attempt(destination, principal, kind, Some(outbound.key().clone()), patience);
        let upload = body.upload();
        let exchanged = repairing::exchange((outbound.clone(), body), upstream, &mut attempt).await;
        record.reached(attempt.waited, attempt.connect);
        let response = match exchanged {
            Ok((response, retries)) => {
                record.retried(retries);
                response
            }
            // It took the connection to the registry with it, whose fault that is not.
            Err(_) if upload.is_broken() => {
                let problem = if upload.is_slow() {
                    record.ended_by("reclaim", Grade::Slow.as_str());
                    "the body of the request came slower than queue.least_rate while others waited"
                } else {
                    "the body of the request broke off, or cannot be read"
                };
                record.client_left();
                let answer = Answer::plain(Reason::BadRequest, problem);
                return answer.to_response(&upstream.name).map(Reply::Own);
            }
            Err(failure) => {
                return refuse(record, &Answer::of_failure(&failure, upstream, &attempt), &upstream.name);
            }
        };
        let resumable = Resumable::of(upstream, outbound, &attempt, &response);
        let (mut head, body) = response.into_parts();
        strip_response(&mut head.headers);
        if let Some(rewrite) = &rewrite {
            rewrite.apply(head.status, &mut head.headers);
        }
        self.proxy.sign(&mut head.headers);
        // The version is this hop's own; hyper lowers it for a client that speaks 1.0.
        head.version = Version::HTTP_11;
        let relayed = Relayed::new(body, resumable, record, upload, self.phase.clone(), self.client.clone());
        Response::from_parts(head, Reply::Relayed(Box::new(relayed)))
    }
}

fn principal_of(proxy: &Proxy, request: &Request<Incoming>, client: &Client) -> Principal {
    let credentials = request.headers().get(PROXY_AUTHORIZATION).map(HeaderValue::as_bytes);
    proxy.settings().classes.principal(credentials, client)
}

/// Goes on with a request that is to be relayed; otherwise tells what to answer.
fn preflight(record: Record, request: &mut Request<Incoming>, registry: &str) -> Result<Record, Box<Response<Reply>>> {
    if let Err(problem) = checks::check(request) {
        return Err(Box::new(refuse(record, &Answer::plain(Reason::BadRequest, problem), registry)));
    }
    match checks::own_answer(request) {
        None => Ok(record),
        Some(response) => {
            record.served();
            Err(Box::new(response.map(Reply::Own)))
        }
    }
}

fn refuse(record: Record, answer: &Answer, registry: &str) -> Response<Reply> {
    record.answered(answer.reason);
    answer.to_response(registry).map(Reply::Own)
}

/// A CONNECT on a connection that carried other requests before: hyper gives the connection back after the answer.
async fn answer_connect(
    proxy: &Arc<Proxy>,
    client: &Arc<Client>,
    counted: Arc<CountedClient>,
    mut request: Request<Incoming>,
) -> Result<Response<Reply>, ClientLeft> {
    let principal = principal_of(proxy, &request, client);
    if !request.body().is_end_stream() {
        // Content has no meaning here (RFC 9110, section 9.3.6), and its bytes cannot be told from the tunnel's.
        let answer = Answer::plain(Reason::BadRequest, "CONNECT with content: send the tunnel's bytes after the 200");
        let record = proxy.record(&principal.client.to_string(), Kind::Tunnel);
        record.answered(answer.reason);
        return Ok(refuse_connect(&answer, OTHER_HOSTS));
    }
    let authority = request.uri().to_string();
    match tunnel::open(proxy, client, &authority, principal).await {
        Ok(tunnel) => {
            let upgrade = hyper::upgrade::on(&mut request);
            // The answers before it are read first, which may take long: no handshake is to come at once.
            tunnel.lies_idle();
            proxy.tasks().spawn(carry_upgraded(proxy.clone(), (client.clone(), counted), tunnel, upgrade));
            Ok(Response::new(Reply::Own(Full::default())))
        }
        Err(NoTunnel(Some((answer, registry)))) => Ok(refuse_connect(&answer, &registry)),
        Err(NoTunnel(None)) => Err(ClientLeft),
    }
}

/// Bytes that the client sent for its tunnel must not be read as a request: the connection ends (RFC 9931).
fn refuse_connect(answer: &Answer, registry: &str) -> Response<Reply> {
    let mut response = answer.to_response(registry).map(Reply::Own);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn carry_upgraded(
    proxy: Arc<Proxy>,
    (client, counted): (Arc<Client>, Arc<CountedClient>),
    tunnel: Tunnel,
    upgrade: OnUpgrade,
) {
    // Dropping the tunnel records that the client left, or that it never takes the answer before this one.
    let Ok(Ok(upgraded)) = timeout(tunnel.longest_stall(), upgrade).await else { return };
    let Ok(parts) = upgraded.downcast::<TokioIo<ClientIo>>() else { return };
    let unread = [parts.read_buf, parts.io.into_inner().into_unread()].concat();
    tunnel::carry(&proxy, tunnel, (&client, &counted), Bytes::from(unread)).await;
}
