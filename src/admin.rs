//! The admin listener: health, readiness, metrics, status.
//!
//! It reads snapshots and never decides anything. The metrics listener is the same without what concerns only the
//! operator of the node.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::metrics::{Gauges, Metrics};
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
    metrics: Arc<Metrics>,
    draining: CancellationToken,
    started: Instant,
}

/// A client of the admin port that is slower than this has lost interest.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

impl Admin {
    /// Shows what `proxy` does.
    #[must_use]
    pub fn new(proxy: Arc<Proxy>, metrics: Arc<Metrics>, draining: CancellationToken) -> Arc<Admin> {
        Arc::new(Admin { proxy, metrics, draining, started: Instant::now() })
    }

    /// Accepts connections until the process ends.
    pub async fn accept(self: Arc<Self>, listener: TcpListener, scope: Scope) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(self.clone().serve(stream, scope));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting an admin connection failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, scope: Scope) {
        let service = service_fn(|request| {
            let response = self.answer(&request, scope);
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "admin connection ended");
        }
    }

    fn answer(&self, request: &Request<Incoming>, scope: Scope) -> Response<Full<Bytes>> {
        let readable = request.method() == Method::GET || request.method() == Method::HEAD;
        match (request.uri().path(), scope) {
            ("/healthz" | "/readyz" | "/metrics", _) | ("/status", Scope::Admin) if !readable => {
                text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n")
            }
            ("/healthz", _) => text(StatusCode::OK, "ok\n"),
            ("/readyz", _) => self.readiness(),
            ("/metrics", _) => self.scrape(),
            ("/status", Scope::Admin) => self.status(),
            (_, Scope::Admin) => text(StatusCode::NOT_FOUND, "here are /healthz, /readyz, /metrics and /status\n"),
            (_, Scope::Metrics) => text(StatusCode::NOT_FOUND, "here are /healthz, /readyz and /metrics\n"),
        }
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        if self.draining.is_cancelled() {
            text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
        } else {
            text(StatusCode::OK, "ready\n")
        }
    }

    fn scrape(&self) -> Response<Full<Bytes>> {
        let gauges: Vec<Gauges<'_>> = self.proxy.routes().upstreams().map(|upstream| gauges(upstream)).collect();
        let body = self.metrics.render(&gauges, self.proxy.clients());
        response(StatusCode::OK, prometheus::TEXT_FORMAT, body)
    }

    fn status(&self) -> Response<Full<Bytes>> {
        let routes = self.proxy.routes();
        let mut registries = Map::new();
        for upstream in routes.registries() {
            registries.insert(upstream.name.clone(), picture(upstream));
        }
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            draining: self.draining.is_cancelled(),
            clients: self.proxy.clients(),
            registries,
            other_hosts: picture(routes.other_hosts()),
        };
        let body = serde_json::to_string_pretty(&status).expect("strings and numbers become JSON");
        response(StatusCode::OK, "application/json", body + "\n")
    }
}

#[derive(Serialize)]
struct Status {
    version: &'static str,
    uptime_seconds: u64,
    draining: bool,
    clients: usize,
    registries: Map<String, Value>,
    other_hosts: Value,
}

/// One registry in `/status`. The four states add up to `open`.
#[derive(Serialize)]
struct Picture {
    #[serde(skip_serializing_if = "Option::is_none")]
    slots: Option<usize>,
    open: usize,
    connecting: usize,
    active: usize,
    idle: usize,
    closing: usize,
    waiting: usize,
    oldest_wait_seconds: f64,
    paused: bool,
}

fn picture(upstream: &Upstream) -> Value {
    let gauges = gauges(upstream);
    let picture = Picture {
        slots: gauges.slots,
        open: gauges.connecting + gauges.active + gauges.idle + gauges.closing,
        connecting: gauges.connecting,
        active: gauges.active,
        idle: gauges.idle,
        closing: gauges.closing,
        waiting: gauges.waiting,
        oldest_wait_seconds: (gauges.oldest_wait.as_secs_f64() * 1000.0).round() / 1000.0,
        paused: false,
    };
    serde_json::to_value(picture).expect("numbers become JSON")
}

fn gauges(upstream: &Upstream) -> Gauges<'_> {
    let now = upstream.gate.snapshot();
    Gauges {
        registry: &upstream.name,
        slots: (now.slots != usize::MAX).then_some(now.slots),
        connecting: now.open.connecting,
        active: now.open.active,
        idle: now.open.idle,
        closing: now.open.closing,
        waiting: now.waiting,
        oldest_wait: now.oldest_wait,
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", body)
}

fn response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
