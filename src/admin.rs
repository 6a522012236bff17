//! The admin listener: health, readiness, metrics, status, and the live page.
//!
//! It reads snapshots, and leaves orders to `control`, whose socket it serves as well. The metrics listener serves metrics
//! and probes alone. `app` starts it.

pub mod config_state;
pub mod history;

mod answer;
mod connections;
mod guard;
mod page;
mod picture;
mod scrape;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use self::answer::response;
use self::config_state::{ConfigPicture, ConfigState};
use self::history::{History, Reading};
use self::picture::RegistryPicture;
use self::scrape::{ProcessPicture, scrape};
use crate::bypass::Radar;
use crate::control::{self, Control, Denied, Done, Sender};
use crate::explain::answer::queues;
use crate::explain::processes::Processes;
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::proxy::client::BRIEF_LINGER;
use crate::tcp;
use crate::upstream::Upstream;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Admin,
    Metrics,
}

#[derive(Debug)]
pub struct Admin {
    proxy: Arc<Proxy>,
    config: Arc<ConfigState>,
    control: Control,
    metrics: Arc<Metrics>,
    radar: Arc<Radar>,
    processes: Processes,
    draining: CancellationToken,
    /// Cancelled when another process answers here.
    handed_over: CancellationToken,
    started: SystemTime,
    history: Mutex<History>,
}

/// The answer to any other path.
const PATHS: &str = "the paths are /, /healthz, /readyz, /metrics, /status, /queue, /history, and by POST /reload, /registries/NAME/pause and /resume\n";

impl Admin {
    pub fn new(
        proxy: Arc<Proxy>,
        config: Arc<ConfigState>,
        control: Control,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
    ) -> Arc<Admin> {
        let (radar, handed_over) = (Radar::start(proxy.clone(), draining.clone()), CancellationToken::new());
        let (started, history, processes) = (SystemTime::now(), Mutex::default(), Processes::default());
        Arc::new(Admin { proxy, config, control, metrics, radar, processes, draining, handed_over, started, history })
    }

    /// Keeps the last ten minutes for the page, a sample a second, until the process ends. A second that was missed is
    /// made up for at once, so that the samples stay seconds.
    pub async fn keep_history(self: Arc<Self>) {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        loop {
            seconds.tick().await;
            let settings = self.proxy.settings();
            let readings = settings.routes.registries().map(|upstream| (upstream.name.clone(), reading(upstream)));
            self.history.lock().record(readings);
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
        let mut open = connections::AdminConnections::default();
        while let Some((stream, _)) = self.next(|| listener.accept()).await {
            let admin = self.clone();
            let served = async move {
                // A client that sends a body nobody asked for is to see its answer all the same.
                if let Some(stream) = admin.serve(stream, scope, guarded, Sender::Tcp).await {
                    tcp::lingering_close(&stream, BRIEF_LINGER, |_| ()).await;
                }
            };
            open.add(tokio::spawn(served).abort_handle());
        }
    }

    /// The same on the control socket, for the users who may order. Connections of others take none of theirs.
    pub async fn accept_orders(self: Arc<Self>, listener: UnixListener) {
        let (mut permitted, mut strangers) =
            <(connections::AdminConnections, connections::AdminConnections)>::default();
        let accept =
            async || listener.accept().await.and_then(|(stream, _)| Ok((control::socket::sender(&stream)?, stream)));
        while let Some((sender, stream)) = self.next(accept).await {
            let open = if let Sender::Stranger(_) = sender { &mut strangers } else { &mut permitted };
            let admin = self.clone();
            let served = async move { drop(admin.serve(stream, Scope::Admin, false, sender).await) };
            open.add(tokio::spawn(served).abort_handle());
        }
    }

    /// The next connection; `None` once another process answers here. After a failure, which may come again at once, it pauses.
    async fn next<S, F: Future<Output = std::io::Result<S>>>(&self, accept: impl Fn() -> F) -> Option<S> {
        loop {
            let accepted = tokio::select! {
                accepted = accept() => accepted,
                () = self.handed_over.cancelled() => return None,
            };
            match accepted {
                Ok(connection) => return Some(connection),
                Err(error) => tracing::warn!(%error, "accepting an admin connection failed"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn serve<Io>(self: Arc<Self>, io: Io, scope: Scope, guarded: bool, sender: Sender) -> Option<Io>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let service = service_fn(|request| {
            let admin = &self;
            Box::pin(async move {
                let response = match guard::objection(&request, guarded) {
                    Some(objection) => text(StatusCode::FORBIDDEN, objection),
                    None => admin.answer(&request, scope, sender).await,
                };
                Ok::<_, Infallible>(response)
            })
        });
        let served = connections::serve(io, service, &self.handed_over).await;
        served.inspect_err(|error| tracing::debug!(%error, "admin connection ended")).ok()
    }

    async fn answer(&self, request: &Request<Incoming>, scope: Scope, sender: Sender) -> Response<Full<Bytes>> {
        let readable = request.method() == Method::GET || request.method() == Method::HEAD;
        let path = request.uri().path();
        if let Sender::Stranger(uid) = sender {
            return refusal(control::stranger(uid));
        }
        if scope == Scope::Admin && control::is_order(path) {
            return match self.control.obey(request, &self.proxy, sender).await {
                Ok(Done::Registry(upstream)) => json(&serde_json::json!(self.picture(&upstream))),
                Ok(Done::Reloaded(changes)) => json(&serde_json::json!({ "changes": changes })),
                Err(denied) => refusal(denied),
            };
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
            ("/queue", Scope::Admin) => self.queue().await,
            ("/history", Scope::Admin) => self.history(),
            ("/", Scope::Admin) => page::page(),
            (_, Scope::Admin) => text(StatusCode::NOT_FOUND, PATHS),
            (_, Scope::Metrics) => text(StatusCode::NOT_FOUND, "the paths are /healthz, /readyz and /metrics\n"),
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
        let settings = self.proxy.settings();
        let pictures = settings.routes.upstreams().map(|upstream| (upstream.name.as_str(), self.picture(upstream)));
        let process = ProcessPicture {
            started: self.started,
            clients: self.proxy.clients(),
            config_taken: self.config.taken_at(),
            config_holds: self.config.holds(),
            config: self.config.facts(),
        };
        let body = self.metrics.render(&scrape(&process, pictures));
        response(StatusCode::OK, prometheus::TEXT_FORMAT, body)
    }

    fn status(&self) -> Response<Full<Bytes>> {
        let settings = self.proxy.settings();
        let routes = &settings.routes;
        let registries = routes.registries().map(|upstream| (upstream.name.clone(), self.picture(upstream)));
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().unwrap_or_default().as_secs(),
            draining: self.draining.is_cancelled(),
            config: self.config.picture(),
            clients: self.proxy.clients(),
            bypass_radar: self.radar.state(),
            registries: registries.collect(),
            other_hosts: self.picture(routes.other_hosts()),
        };
        let body = serde_json::to_string_pretty(&status).expect("strings and numbers become JSON");
        response(StatusCode::OK, "application/json", body + "\n")
    }

    async fn queue(&self) -> Response<Full<Bytes>> {
        let queues = queues(self.proxy.settings().routes.registries(), &self.processes).await;
        let body = serde_json::json!({ "registries": queues });
        response(StatusCode::OK, "application/json", format!("{body:#}\n"))
    }

    fn history(&self) -> Response<Full<Bytes>> {
        let history = self.history.lock();
        let body = serde_json::json!({ "step_seconds": 1, "registries": history.past() });
        drop(history);
        json(&body)
    }

    fn picture(&self, upstream: &Upstream) -> RegistryPicture {
        let settings = self.proxy.settings();
        let nodes = settings.mirrors.get(&upstream.name).map(|mirror| mirror.cluster().nodes());
        let parked = settings.routes.claim(&upstream.name).map_or(0, |claim| claim.policy.parked());
        let bypass = settings.routes.claim(&upstream.name).and_then(|_| self.radar.of(upstream));
        RegistryPicture::of(upstream, nodes.unwrap_or_default(), parked, bypass)
    }
}

fn reading(upstream: &Upstream) -> Reading {
    let now = upstream.gate.snapshot();
    Reading { open: now.open.open(), waiting: now.waiting, so_far: upstream.metrics.so_far() }
}

#[derive(Serialize)]
struct Status {
    version: &'static str,
    uptime_seconds: u64,
    draining: bool,
    config: ConfigPicture,
    clients: usize,
    bypass_radar: String,
    registries: BTreeMap<String, RegistryPicture>,
    other_hosts: RegistryPicture,
}

fn json(body: &serde_json::Value) -> Response<Full<Bytes>> {
    response(StatusCode::OK, "application/json", format!("{body}\n"))
}

fn refusal(Denied(status, told): Denied) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", told)
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", body)
}
