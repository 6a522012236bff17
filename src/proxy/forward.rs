//! Requests that are visible as HTTP: absolute-form, relayed with bodies streamed both ways.
//!
//! hyper serves the client's connection; the request takes its turn at the gate and goes out on a kept or a new
//! connection to the registry. What concerns only one hop stays on it; everything else passes unchanged.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{HOST, HeaderValue, PROXY_AUTHORIZATION};
use hyper::http::uri::PathAndQuery;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;

use super::Proxy;
use super::client::{Client, ClientIo, LOOK_AGAIN};
use super::hop::{keeps_connection, strip_request, strip_response};
use super::record::{Carried, Kind, Record};
use super::respond::Answer;
use super::tunnel::{self, NoTunnel, Tunnel};
use crate::admission::{Lane, Party, ReuseKey};
use crate::metrics::{OTHER_HOSTS, Reason};
use crate::target::Target;
use crate::upstream::http::{AnswerBody, Kept, RequestBody, SendError};
use crate::upstream::{Failure, Patience, Reached, Requester, Trip, Upstream};

/// How long a client's connection may lie idle, or take to send a further head.
const IDLE_CLIENT: Duration = Duration::from_secs(75);

/// Serves a client's connection with hyper, starting with the bytes that were read already.
pub async fn serve(proxy: Arc<Proxy>, client: Arc<Client>, replay: Bytes) {
    let io = TokioIo::new(ClientIo::new(client.clone(), replay));
    let asked = Asked::default();
    let service = service_fn(|request| answer(proxy.clone(), client.clone(), asked.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_CLIENT)
        .half_close(true)
        .preserve_header_case(true)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let drained = async {
        tokio::select! {
            served = connection.as_mut() => return served,
            // Its first head was read before hyper came, and is to be answered.
            () = async { proxy.draining().await; asked.begun.notified().await } => {
                connection.as_mut().graceful_shutdown();
            }
        }
        connection.await
    };
    let served = tokio::select! {
        served = drained => served,
        // Dropping the connection drops the request under way, and records it.
        () = asked.abandoned(&client) => return,
        () = proxy.cut_short() => return client.cut(),
    };
    match served {
        // hyper has answered 400 by itself.
        Err(error) if error.is_parse() => {
            proxy.record(&client.peer().ip().to_string(), Kind::Unknown).answered(Reason::BadRequest);
        }
        Err(error) => tracing::debug!(peer = %client.peer(), %error, "client connection ended"),
        Ok(()) => {}
    }
}

/// What the client is waiting for; it tells what the client's FIN means. hyper itself is told to let a client end its
/// side and still get its answer, and so never says that a client is gone.
#[derive(Clone, Debug, Default)]
struct Asked {
    state: Arc<AtomicU8>,
    /// Notified when hyper hands over a request.
    begun: Arc<Notify>,
}

/// The states of [`Asked`].
mod asked {
    /// Nothing: hyper closes the connection by itself.
    pub const NOTHING: u8 = 0;
    /// An answer, after which it would have kept the connection: its FIN means that it left.
    pub const AND_STAYS: u8 = 1;
    /// An answer, the last on the connection: with its FIN it may just say that it has said all.
    pub const LAST: u8 = 2;
}

impl Asked {
    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Relaxed);
    }

    /// Completes when the client left while it was waiting for an answer.
    async fn abandoned(&self, client: &Client) {
        client.ended().await;
        loop {
            match self.state.load(Ordering::Relaxed) {
                asked::AND_STAYS => return,
                asked::LAST if client.is_broken() => return,
                _ => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }
}

/// The client is gone; hyper closes its connection.
#[derive(Debug, thiserror::Error)]
#[error("the client left")]
struct ClientLeft;

async fn answer(
    proxy: Arc<Proxy>,
    client: Arc<Client>,
    asked: Asked,
    request: Request<Incoming>,
) -> Result<Response<Reply>, ClientLeft> {
    asked.begun.notify_one();
    if request.method() == Method::CONNECT {
        return answer_connect(proxy, client, request).await;
    }
    let stays = keeps_connection(request.version(), request.headers());
    asked.set(if stays { asked::AND_STAYS } else { asked::LAST });
    let answered = answer_request(&proxy, &client, &asked, request).await;
    if !matches!(answered, Ok(ref response) if matches!(response.body(), Reply::Relayed(_))) {
        asked.set(asked::NOTHING);
    }
    answered
}

async fn answer_request(
    proxy: &Proxy,
    client: &Client,
    asked: &Asked,
    request: Request<Incoming>,
) -> Result<Response<Reply>, ClientLeft> {
    let party = party_of(proxy, &request, client);
    let mut record = proxy.record(&party.client, Kind::Request);
    record.toward(shown(request.uri()));
    let outbound = match Outbound::of(request, proxy, record.carried()) {
        Ok(outbound) => outbound,
        Err(answer) => return Ok(refuse(record, &answer, OTHER_HOSTS)),
    };
    let route = match proxy.route(&outbound.target, client).await {
        Ok(route) => route,
        Err(None) => return Err(ClientLeft),
        Err(Some(answer)) => return Ok(refuse(record, &answer, OTHER_HOSTS)),
    };
    let upstream = &route.upstream;
    record.belongs_to(&upstream.name, &upstream.metrics);
    let patience = Patience { limit: upstream.queue.request_timeout[party.class.0], setting: "request_timeout" };
    let mut trip = upstream.trip(route.way, party, outbound.lane, patience);
    let exchanged = outbound.exchange(upstream, &mut trip, client).await;
    record.reached(trip.waited, trip.connect);
    match exchanged {
        Ok(response) => Ok(relay(response, record, proxy, asked)),
        Err(failure) => match Answer::of_failure(&failure, upstream, &trip) {
            Some(answer) => Ok(refuse(record, &answer, &upstream.name)),
            None => Err(ClientLeft),
        },
    }
}

fn party_of(proxy: &Proxy, request: &Request<Incoming>, client: &Client) -> Party {
    let credentials = request.headers().get(PROXY_AUTHORIZATION).map(HeaderValue::as_bytes);
    proxy.classes().party(credentials, client)
}

/// Blobs are what is large; everything else is small, and a blob cannot start without it.
fn lane_of(path: &str) -> Lane {
    if path.contains("/blobs/") { Lane::Blob } else { Lane::Small }
}

/// The target for the log: without the query, which may hold a signature.
fn shown(uri: &Uri) -> String {
    const MOST: usize = 512;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{host}{}", uri.path()).chars().take(MOST).collect()
}

fn refuse(record: Record, answer: &Answer, registry: &str) -> Response<Reply> {
    record.answered(answer.reason);
    answer.to_response(registry).map(Reply::Own)
}

fn relay(response: Response<AnswerBody>, mut record: Record, proxy: &Proxy, asked: &Asked) -> Response<Reply> {
    let (mut head, body) = response.into_parts();
    strip_response(&mut head.headers);
    proxy.sign(&mut head.headers);
    // The version is this hop's own; hyper lowers it for a client that speaks 1.0.
    head.version = Version::HTTP_11;
    let carried = record.carried();
    Response::from_parts(head, Reply::Relayed(Box::new(Relayed::new(body, record, carried, asked.clone()))))
}

/// A request as it goes to the registry.
struct Outbound {
    target: Target,
    key: ReuseKey,
    lane: Lane,
    request: Request<RequestBody>,
    /// Whether it may be sent once more on another connection: nothing changes by it, and nothing of it is lost.
    repeatable: bool,
}

impl Outbound {
    fn of(request: Request<Incoming>, proxy: &Proxy, carried: Carried) -> Result<Outbound, Answer> {
        let bad = |message: String| Answer::plain(Reason::BadRequest, message);
        let target = target_of(request.uri()).map_err(bad)?;
        if request.headers().get_all(HOST).iter().nth(1).is_some() {
            return Err(bad("more than one Host header".to_owned()));
        }
        if proxy.has_signed(request.headers()) {
            return Err(Answer::plain(Reason::LoopDetected, "this request came through this proxy before"));
        }
        let (mut head, body) = request.into_parts();
        strip_request(&mut head.headers);
        proxy.sign(&mut head.headers);
        // RFC 9112, section 3.2.2: the Host that came with an absolute URL is ignored.
        let host = head.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        head.headers.insert(HOST, host.ok_or_else(|| bad("the URL names no host".to_owned()))?);
        let path = head.uri.path_and_query().cloned();
        head.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        head.version = Version::HTTP_11;
        let safe = head.method == Method::GET || head.method == Method::HEAD;
        let repeatable = safe && body.is_end_stream();
        let request = Request::from_parts(head, RequestBody::new(body, carried.up));
        let lane = lane_of(request.uri().path());
        let key = ReuseKey::from(target.to_string());
        Ok(Outbound { target, key, lane, request, repeatable })
    }

    /// Gets the request to the registry and brings back the head of the answer.
    async fn exchange(
        self,
        upstream: &Upstream,
        trip: &mut Trip,
        client: &impl Requester,
    ) -> Result<Response<AnswerBody>, Failure> {
        let (head, body) = self.request.into_parts();
        let spare = self.repeatable.then(|| head.clone());
        let mut request = Request::from_parts(head, body);
        loop {
            let kept = match upstream.reach(trip, Some(&self.key), client).await? {
                Reached::New(socket) => Kept::start(socket).await.map_err(Failure::Died)?,
                Reached::Kept(kept) => kept,
            };
            let sent = tokio::select! {
                sent = kept.send(request, upstream.gate.clone(), self.key.clone()) => sent,
                () = upstream.ended.cancelled() => return Err(Failure::Draining),
            };
            request = match (sent, &spare) {
                (Ok(response), _) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    return Err(Failure::Switched);
                }
                (Ok(response), _) => return Ok(response),
                (Err(SendError::Unsent(request)), _) => *request,
                (Err(SendError::Died { was_kept: true, .. }), Some(head)) => {
                    Request::from_parts(head.clone(), RequestBody::empty())
                }
                (Err(SendError::Died { cause, .. }), _) => return Err(Failure::Died(cause)),
            };
            upstream.renew(trip);
        }
    }
}

fn target_of(uri: &Uri) -> Result<Target, String> {
    match (uri.scheme_str(), uri.authority()) {
        (Some("http"), Some(authority)) => {
            Target::from_authority(authority.as_str(), 80).map_err(|error| format!("the URL: {error}"))
        }
        (Some("https"), _) => Err("an https URL goes through this proxy by CONNECT".to_owned()),
        (Some(_), _) => Err("the URL is neither http nor CONNECT".to_owned()),
        (None, _) => Err("this is a forward proxy: point HTTP_PROXY at it, and ask for an absolute URL".to_owned()),
    }
}

/// A CONNECT on a connection that carried other requests before: hyper gives the connection back after the answer.
async fn answer_connect(
    proxy: Arc<Proxy>,
    client: Arc<Client>,
    mut request: Request<Incoming>,
) -> Result<Response<Reply>, ClientLeft> {
    let party = party_of(&proxy, &request, &client);
    let authority = request.uri().to_string();
    match tunnel::open(&proxy, &client, &authority, party).await {
        Ok(tunnel) => {
            let upgrade = hyper::upgrade::on(&mut request);
            proxy.tasks().spawn(carry_upgraded(proxy.clone(), client, tunnel, upgrade));
            Ok(Response::new(Reply::Own(Full::default())))
        }
        Err(NoTunnel(Some((answer, registry)))) => Ok(answer.to_response(&registry).map(Reply::Own)),
        Err(NoTunnel(None)) => Err(ClientLeft),
    }
}

async fn carry_upgraded(proxy: Arc<Proxy>, client: Arc<Client>, tunnel: Tunnel, upgrade: OnUpgrade) {
    // Dropping the tunnel records that the client left.
    let Ok(upgraded) = upgrade.await else { return };
    let Ok(parts) = upgraded.downcast::<TokioIo<ClientIo>>() else { return };
    let unread = [parts.read_buf, parts.io.into_inner().into_unread()].concat();
    tunnel::carry(&proxy, tunnel, &client, Bytes::from(unread)).await;
}

/// The body of what the client is answered.
enum Reply {
    /// Made here.
    Own(Full<Bytes>),
    /// From the registry.
    Relayed(Box<Relayed>),
}

/// A body on its way from the registry to the client. It takes the record of the request to its end.
struct Relayed {
    body: AnswerBody,
    record: Option<Record>,
    carried: Carried,
    asked: Asked,
}

impl Relayed {
    fn new(body: AnswerBody, record: Record, carried: Carried, asked: Asked) -> Relayed {
        let mut relayed = Relayed { body, record: Some(record), carried, asked };
        relayed.check_end();
        relayed
    }

    fn check_end(&mut self) {
        if self.body.is_end_stream() {
            self.served();
        }
    }

    fn served(&mut self) {
        if let Some(record) = self.record.take() {
            self.asked.set(asked::NOTHING);
            record.served();
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.carried.down.fetch_add(bytes as u64, Ordering::Relaxed);
                self.check_end();
            }
            Some(Err(_)) => {
                if let Some(record) = self.record.take() {
                    record.upstream_failed();
                }
            }
            None => self.served(),
        }
        Poll::Ready(frame)
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Reply::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Reply::Relayed(relayed) => relayed.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Reply::Own(body) => body.is_end_stream(),
            Reply::Relayed(relayed) => relayed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Own(body) => body.size_hint(),
            Reply::Relayed(relayed) => relayed.body.size_hint(),
        }
    }
}
