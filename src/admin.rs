//! The admin listener: health, readiness, metrics, status, and the live page.
//!
//! It reads snapshots and never decides anything. The metrics listener is the same without what concerns only the
//! operator of the node.

pub mod config_state;
pub mod history;

mod connections;
mod guard;
mod page;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use self::config_state::{ConfigPicture, ConfigState};
use self::history::{History, Reading};
use crate::admission::{LimitedBy, Occupancy, Principal, Snapshot};
use crate::metrics::{Gauges, MemberGauges, Metrics};
use crate::proxy::Proxy;
use crate::upstream::Upstream;

/// Which endpoints a listener offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    Admin,
    /// Metrics and probes.
    Metrics,
}

/// What the endpoints show.
#[derive(Debug)]
pub struct Admin {
    proxy: Arc<Proxy>,
    config: Arc<ConfigState>,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
    /// Cancelled when another process answers here.
    handed_over: CancellationToken,
    started: Instant,
    history: Mutex<History>,
}

const HERE: &str =
    "here are /, /healthz, /readyz, /metrics, /status, /queue, /history and POST /registries/NAME/pause and /resume\n";

impl Admin {
    /// Shows what `proxy` does.
    #[must_use]
    pub fn new(
        proxy: Arc<Proxy>,
        config: Arc<ConfigState>,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
    ) -> Arc<Admin> {
        let handed_over = CancellationToken::new();
        let (started, history) = (Instant::now(), Mutex::default());
        Arc::new(Admin { proxy, config, metrics, draining, handed_over, started, history })
    }

    /// Keeps the last ten minutes for the page, a sample a second, until the process ends. A second that was missed is
    /// made up for at once, so that the samples stay seconds.
    pub async fn keep_history(self: Arc<Self>) {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        loop {
            seconds.tick().await;
            let settings = self.proxy.settings();
            let readings = settings.routes.registries().map(|upstream| (upstream.name.clone(), reading(upstream)));
            self.history.lock().unwrap_or_else(PoisonError::into_inner).record(readings);
        }
    }

    /// Leaves the listeners to another process.
    pub fn accept_nobody(&self) {
        self.handed_over.cancel();
    }

    /// Accepts connections until the process ends, or another one answers here.
    pub async fn accept(self: Arc<Self>, listener: TcpListener, scope: Scope) {
        let loopback = listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
        let guarded = loopback && scope == Scope::Admin;
        let mut open = connections::Open::default();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.handed_over.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    open.add(tokio::spawn(self.clone().serve(stream, scope, guarded)).abort_handle());
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting an admin connection failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, scope: Scope, guarded: bool) {
        let service = service_fn(|request| {
            let response = match guard::objection(&request, guarded) {
                Some(objection) => text(StatusCode::FORBIDDEN, objection),
                None => self.answer(&request, scope),
            };
            async move { Ok::<_, Infallible>(response) }
        });
        let served = connections::serve(stream, service, &self.handed_over).await;
        if let Err(error) = served {
            tracing::debug!(%error, "admin connection ended");
        }
    }

    fn answer(&self, request: &Request<Incoming>, scope: Scope) -> Response<Full<Bytes>> {
        let readable = request.method() == Method::GET || request.method() == Method::HEAD;
        let path = request.uri().path();
        if scope == Scope::Admin
            && let Some((name, action)) = path.strip_prefix("/registries/").and_then(|rest| rest.split_once('/'))
        {
            return self.control(request.method(), name, action);
        }
        match (path, scope) {
            ("/healthz" | "/readyz" | "/metrics", _) | ("/" | "/status" | "/queue" | "/history", Scope::Admin)
                if !readable =>
            {
                text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n")
            }
            ("/healthz", _) => text(StatusCode::OK, "ok\n"),
            ("/readyz", _) => self.readiness(),
            ("/metrics", _) => self.scrape(),
            ("/status", Scope::Admin) => self.status(),
            ("/queue", Scope::Admin) => self.queue(),
            ("/history", Scope::Admin) => self.history(),
            ("/", Scope::Admin) => page::page(),
            (_, Scope::Admin) => text(StatusCode::NOT_FOUND, HERE),
            (_, Scope::Metrics) => text(StatusCode::NOT_FOUND, "here are /healthz, /readyz and /metrics\n"),
        }
    }

    /// Pauses or resumes a registry. Only POST, so that no page that somebody looks at can do it by a link.
    fn control(&self, method: &Method, name: &str, action: &str) -> Response<Full<Bytes>> {
        let settings = self.proxy.settings();
        let Some(upstream) = settings.routes.registries().find(|upstream| upstream.name == name) else {
            let mut names: Vec<&str> = settings.routes.registries().map(|upstream| upstream.name.as_str()).collect();
            names.sort_unstable();
            let told = format!("no such registry; there is {}\n", names.join(", "));
            return response(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", told);
        };
        match (action, method == Method::POST) {
            ("pause", true) => upstream.gate.pause(),
            ("resume", true) => upstream.gate.resume(),
            ("pause" | "resume", false) => return text(StatusCode::METHOD_NOT_ALLOWED, "POST only\n"),
            _ => return text(StatusCode::NOT_FOUND, "a registry can pause and resume\n"),
        }
        tracing::info!(registry = name, action, "told by the operator");
        response(StatusCode::OK, "application/json", self.picture(upstream).to_string() + "\n")
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        if self.draining.is_cancelled() {
            text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
        } else {
            text(StatusCode::OK, "ready\n")
        }
    }

    fn scrape(&self) -> Response<Full<Bytes>> {
        let settings = self.proxy.settings();
        let upstreams = settings.routes.upstreams();
        let gauges: Vec<Gauges<'_>> =
            upstreams.map(|upstream| self.gauges(upstream, &upstream.gate.snapshot())).collect();
        let body = self.metrics.render(&gauges, self.proxy.clients());
        response(StatusCode::OK, prometheus::TEXT_FORMAT, body)
    }

    fn status(&self) -> Response<Full<Bytes>> {
        let settings = self.proxy.settings();
        let routes = &settings.routes;
        let mut registries = Map::new();
        for upstream in routes.registries() {
            registries.insert(upstream.name.clone(), self.picture(upstream));
        }
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            draining: self.draining.is_cancelled(),
            config: self.config.picture(),
            clients: self.proxy.clients(),
            registries,
            other_hosts: self.picture(routes.other_hosts()),
        };
        let body = serde_json::to_string_pretty(&status).expect("strings and numbers become JSON");
        response(StatusCode::OK, "application/json", body + "\n")
    }

    fn queue(&self) -> Response<Full<Bytes>> {
        let mut registries = Map::new();
        for upstream in self.proxy.settings().routes.registries() {
            registries.insert(upstream.name.clone(), explanation(upstream));
        }
        let body = serde_json::json!({ "registries": registries });
        response(StatusCode::OK, "application/json", format!("{body:#}\n"))
    }

    fn history(&self) -> Response<Full<Bytes>> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let body = serde_json::json!({ "step_seconds": 1, "registries": history.past() });
        drop(history);
        response(StatusCode::OK, "application/json", format!("{body}\n"))
    }

    fn picture(&self, upstream: &Upstream) -> Value {
        let now = upstream.gate.snapshot();
        let gauges = self.gauges(upstream, &now);
        let occupancy = upstream.gate.occupancy(MOST_CLIENTS);
        let classes = gauges.waiting.iter().zip(&occupancy.holding_by_class).map(|((class, waiting), holding)| {
            ((*class).to_owned(), ClassPicture { waiting: *waiting, holding: *holding })
        });
        let picture = Picture {
            slots: gauges.slots,
            reserved: gauges.slots.map(|_| gauges.reserved),
            open: gauges.connecting + gauges.active + gauges.idle + gauges.closing,
            connecting: gauges.connecting,
            active: gauges.active,
            idle: gauges.idle,
            closing: gauges.closing,
            waiting: now.waiting,
            oldest_wait_seconds: seconds(gauges.oldest_wait),
            paused: now.paused,
            limited_by: now.limited_by.map(LimitedBy::as_str),
            classes: classes.collect(),
            clients_left_out: occupancy.left_out,
            clients: clients(occupancy, upstream),
            upstreams: gauges.members.iter().map(node).collect(),
        };
        serde_json::to_value(picture).expect("numbers become JSON")
    }

    /// The nodes of the registry's mirror.
    fn nodes(&self, registry: &str) -> Vec<MemberGauges> {
        let settings = self.proxy.settings();
        settings.mirrors.get(registry).map(|mirror| mirror.cluster().gauges()).unwrap_or_default()
    }

    fn gauges<'a>(&self, upstream: &'a Upstream, now: &Snapshot) -> Gauges<'a> {
        let classes = upstream.classes.iter().map(String::as_str);
        Gauges {
            registry: &upstream.name,
            slots: (now.slots != usize::MAX).then_some(now.slots),
            reserved: now.reserved,
            connecting: now.open.connecting,
            active: now.open.active,
            idle: now.open.idle,
            closing: now.open.closing,
            waiting: classes.zip(now.waiting_by_class.iter().copied()).collect(),
            oldest_wait: now.oldest_wait,
            busy: now.used.busy,
            held: now.used.held,
            members: self.nodes(&upstream.name),
        }
    }
}

fn reading(upstream: &Upstream) -> Reading {
    let now = upstream.gate.snapshot();
    Reading { open: now.open.open(), waiting: now.waiting, so_far: upstream.metrics.so_far() }
}

fn node(gauges: &MemberGauges) -> NodePicture {
    NodePicture { url: gauges.url.clone(), open: gauges.open, up: gauges.up }
}

/// Those who wait and those who hold, in `/queue`.
fn explanation(upstream: &Upstream) -> Value {
    const MOST: usize = 1000;
    let explanation = upstream.gate.explain(MOST);
    let class = |principal: &Principal| upstream.classes[principal.class.0].clone();
    let waiters = explanation.waiters.iter().map(|waiter| {
        serde_json::json!({
            "position": waiter.position,
            "client": &*waiter.principal.client,
            "class": class(&waiter.principal),
            "kind": waiter.kind.as_str(),
            "lane": waiter.lane.as_str(),
            "target": &*waiter.target,
            "waited_seconds": seconds(waiter.age),
            "patience_left_seconds": seconds(waiter.patience_left),
            "expected_wait_seconds": waiter.expected_wait.map(seconds),
        })
    });
    let holders = explanation.holders.iter().map(|holder| {
        let (principal, target) = holder.occupant.as_ref().map(|(principal, target)| (principal, target)).unzip();
        serde_json::json!({
            "client": principal.map(|principal| &*principal.client),
            "class": principal.map(class),
            "target": target.map(|target| &**target),
            "kind": holder.kind.as_str(),
            "state": holder.state.as_str(),
            "age_seconds": seconds(holder.age),
            "last_bytes_seconds": holder.last_bytes.map(seconds),
            "bytes_up": holder.bytes_up,
            "bytes_down": holder.bytes_down,
            "doing": holder.quiet.map(|(evidence, _)| evidence.as_str()),
            "quiet_seconds": holder.quiet.map(|(_, quiet)| seconds(quiet)),
            "reclaimed": holder.reclaimed,
        })
    });
    serde_json::json!({
        "limited_by": explanation.limited_by.map(LimitedBy::as_str),
        "waiting": waiters.collect::<Vec<_>>(),
        "holders": holders.collect::<Vec<_>>(),
    })
}

fn seconds(span: Duration) -> f64 {
    (span.as_secs_f64() * 1000.0).round() / 1000.0
}

#[derive(Serialize)]
struct Status {
    version: &'static str,
    uptime_seconds: u64,
    draining: bool,
    config: ConfigPicture,
    clients: usize,
    registries: Map<String, Value>,
    other_hosts: Value,
}

/// One registry in `/status`. The four states add up to `open`.
#[derive(Serialize)]
struct Picture {
    #[serde(skip_serializing_if = "Option::is_none")]
    slots: Option<usize>,
    /// Those of them that are held elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    reserved: Option<usize>,
    open: usize,
    connecting: usize,
    active: usize,
    idle: usize,
    closing: usize,
    waiting: usize,
    oldest_wait_seconds: f64,
    paused: bool,
    /// What keeps the one whose turn it is from being admitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    limited_by: Option<&'static str>,
    classes: BTreeMap<String, ClassPicture>,
    /// Those with the most requests first.
    clients: Vec<ClientPicture>,
    /// Clients beyond those.
    clients_left_out: usize,
    /// The nodes of the mirror.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    upstreams: Vec<NodePicture>,
}

/// One URL of `mirror.upstream` in `/status`.
#[derive(Serialize)]
struct NodePicture {
    url: String,
    open: usize,
    up: bool,
}

/// One class of a registry in `/status`.
#[derive(Serialize)]
struct ClassPicture {
    waiting: usize,
    holding: usize,
}

/// One client of a registry in `/status`.
#[derive(Serialize)]
struct ClientPicture {
    client: String,
    class: String,
    waiting: usize,
    holding: usize,
}

/// Clients that `/status` names for each registry.
const MOST_CLIENTS: usize = 100;

fn clients(occupancy: Occupancy, upstream: &Upstream) -> Vec<ClientPicture> {
    let named = occupancy.clients.into_iter().map(|count| ClientPicture {
        client: count.principal.client.to_string(),
        class: upstream.classes[count.principal.class.0].clone(),
        waiting: count.waiting,
        holding: count.holding,
    });
    named.collect()
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", body)
}

fn response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
