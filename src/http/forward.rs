//! One request that is visible as HTTP, absolute-form or at a mirror: relayed with bodies streamed both ways.
//!
//! The request takes its turn at the gate and goes out on a pooled or a new connection to the registry. Headers that concern
//! one hop stay on it; everything else passes unchanged. Called by hyper, for each request of a connection.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, PROXY_AUTHORIZATION};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, Version};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::buffered_body::BufferedBody;
use super::hop_by_hop::{keeps_connection, strip_response};
use super::outbound::Outbound;
use super::repairing;
use super::reply::{Relayed, Reply};
use super::request_phase::{Asked, state};
use crate::admission::{self, Principal};
use crate::metrics::OTHER_HOSTS;
use crate::proxy::client::{Client, ClientIo};
use crate::proxy::record::{Kind, Record, shown};
use crate::proxy::respond::Answer;
use crate::proxy::rewrite::Rewrite;
use crate::proxy::{Entry, Proxy};
use crate::tunnel::{self, NoTunnel, Tunnel};
use crate::upstream::http::RequestBody;
use crate::upstream::{Destination, Patience, Upstream};

/// The client is gone; hyper closes its connection.
#[derive(Debug, thiserror::Error)]
#[error("the client left")]
pub struct ClientLeft;

/// Answers one request.
///
/// # Errors
/// When the client is gone.
pub async fn answer(
    proxy: Arc<Proxy>,
    entry: Entry,
    client: Arc<Client>,
    asked: Asked,
    request: Request<Incoming>,
) -> Result<Response<Reply>, ClientLeft> {
    asked.begin();
    if request.method() == Method::CONNECT && matches!(entry, Entry::Proxy) {
        return answer_connect(proxy, client, request).await;
    }
    let stays = keeps_connection(request.version(), request.headers());
    asked.set(if stays { state::AND_STAYS } else { state::LAST });
    let mut answered = match entry {
        Entry::Proxy => answer_request(&proxy, &client, &asked, request).await,
        Entry::Mirror(registry) => answer_at_mirror(&proxy, &registry, &client, &asked, request).await,
    };
    if !matches!(answered, Ok(ref response) if matches!(response.body(), Reply::Relayed(_))) {
        asked.set(state::NOTHING);
    }
    if proxy.is_draining()
        && let Ok(response) = &mut answered
    {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answered
}

async fn answer_request(
    proxy: &Proxy,
    client: &Client,
    asked: &Asked,
    request: Request<Incoming>,
) -> Result<Response<Reply>, ClientLeft> {
    let principal = principal_of(proxy, &request, client);
    let mut record = proxy.record(&principal.client, Kind::Request);
    record.toward(shown(None, request.uri()));
    let (outbound, body, origin) = match Outbound::of_absolute(request, proxy, record.carried()) {
        Ok(outbound) => outbound,
        Err(answer) => return Ok(refuse(record, &answer, OTHER_HOSTS)),
    };
    let route = match proxy.route(&origin.target, origin.secure).await {
        Ok(route) => route,
        Err(answer) => return Ok(refuse(record, &answer, OTHER_HOSTS)),
    };
    let exchange = Exchange { proxy, asked, record, rewrite: None };
    Ok(exchange.run(&route.upstream, route.destination, principal, (outbound, body)).await)
}

/// A request that takes the mirror for the registry itself.
async fn answer_at_mirror(
    proxy: &Proxy,
    registry: &str,
    client: &Client,
    asked: &Asked,
    request: Request<Incoming>,
) -> Result<Response<Reply>, ClientLeft> {
    // Mirrors come and go with their listeners only.
    let Some((mirror, upstream)) = proxy.mirror(registry) else {
        return Err(ClientLeft);
    };
    let principal = proxy.settings().classes.principal_of_class(mirror.class, client);
    let mut record = proxy.record(&principal.client, Kind::Request);
    record.toward(shown(Some(mirror.host()), request.uri()));
    let rewrite = mirror.rewrite(&request, client.stream().local_addr().ok());
    let (outbound, body) = match Outbound::of_origin_form(request, proxy, &mirror, record.carried()) {
        Ok(outbound) => outbound,
        Err(answer) => return Ok(refuse(record, &answer, &upstream.name)),
    };
    let exchange = Exchange { proxy, asked, record, rewrite };
    Ok(exchange.run(&upstream, mirror.destination(), principal, (outbound, body)).await)
}

/// One request on its way through a registry's gate and back.
struct Exchange<'a> {
    proxy: &'a Proxy,
    asked: &'a Asked,
    record: Record,
    rewrite: Option<Rewrite<'a>>,
}

impl Exchange<'_> {
    async fn run(
        mut self,
        upstream: &Upstream,
        destination: Destination,
        principal: Principal,
        (outbound, body): (Outbound, RequestBody),
    ) -> Response<Reply> {
        self.record.belongs_to(&upstream.name, &upstream.metrics);
        let patience =
            Patience { limit: upstream.queue.request_timeout[principal.class.0], setting: "request_timeout" };
        let mut attempt = upstream.attempt(
            destination,
            principal,
            (admission::Kind::Request, outbound.lane()),
            Some(outbound.key().clone()),
            patience,
        );
        let exchanged = repairing::exchange((outbound, body), upstream, &mut attempt).await;
        self.record.reached(attempt.waited, attempt.connect);
        match exchanged {
            Ok((response, retries)) => {
                self.record.retried(retries);
                self.relay(response)
            }
            Err(failure) => refuse(self.record, &Answer::of_failure(&failure, upstream, &attempt), &upstream.name),
        }
    }

    fn relay(mut self, response: Response<BufferedBody>) -> Response<Reply> {
        let (mut head, body) = response.into_parts();
        strip_response(&mut head.headers);
        if let Some(rewrite) = &self.rewrite {
            rewrite.apply(head.status, &mut head.headers);
        }
        self.proxy.sign(&mut head.headers);
        // The version is this hop's own; hyper lowers it for a client that speaks 1.0.
        head.version = Version::HTTP_11;
        let carried = self.record.carried();
        Response::from_parts(
            head,
            Reply::Relayed(Box::new(Relayed::new(body, self.record, carried, self.asked.clone()))),
        )
    }
}

fn principal_of(proxy: &Proxy, request: &Request<Incoming>, client: &Client) -> Principal {
    let credentials = request.headers().get(PROXY_AUTHORIZATION).map(HeaderValue::as_bytes);
    proxy.settings().classes.principal(credentials, client)
}

fn refuse(record: Record, answer: &Answer, registry: &str) -> Response<Reply> {
    record.answered(answer.reason);
    answer.to_response(registry).map(Reply::Own)
}

/// A CONNECT on a connection that carried other requests before: hyper gives the connection back after the answer.
async fn answer_connect(
    proxy: Arc<Proxy>,
    client: Arc<Client>,
    mut request: Request<Incoming>,
) -> Result<Response<Reply>, ClientLeft> {
    let principal = principal_of(&proxy, &request, &client);
    let authority = request.uri().to_string();
    match tunnel::open(&proxy, &client, &authority, principal).await {
        Ok(tunnel) => {
            let upgrade = hyper::upgrade::on(&mut request);
            // The answers before it are read first, which may take long: no handshake is to come at once.
            tunnel.lies_idle();
            proxy.tasks().spawn(carry_upgraded(proxy.clone(), client, tunnel, upgrade));
            Ok(Response::new(Reply::Own(Full::default())))
        }
        Err(NoTunnel(Some((answer, registry)))) => Ok(answer.to_response(&registry).map(Reply::Own)),
        Err(NoTunnel(None)) => Err(ClientLeft),
    }
}

async fn carry_upgraded(proxy: Arc<Proxy>, client: Arc<Client>, tunnel: Tunnel, upgrade: OnUpgrade) {
    // Dropping the tunnel records that the client left, or that it never takes the answer before this one.
    let Ok(Ok(upgraded)) = timeout(tunnel.longest_stall(), upgrade).await else { return };
    let Ok(parts) = upgraded.downcast::<TokioIo<ClientIo>>() else { return };
    let unread = [parts.read_buf, parts.io.into_inner().into_unread()].concat();
    tunnel::carry(&proxy, tunnel, &client, Bytes::from(unread)).await;
}
