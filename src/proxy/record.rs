//! The record of one request: it ends in exactly one outcome, counted and logged once.
//!
//! The code that follows the request to its end consumes the record with the outcome. A record that is dropped instead, with
//! the task that served the client, means that the client left, or that the process ended before the request did.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;
use hyper::{Method, StatusCode, Uri};
use tokio_util::sync::CancellationToken;

use super::respond::status_of;
use crate::admission::{ClassId, ClientId};
use crate::explain::{code_class, wanted};
pub use crate::metrics::Kind;
use crate::metrics::{Direction, Label, OTHER_HOSTS, Outcome, Reason, RegistryMetrics};
use crate::upstream::Upstream;

/// Clients may make up methods.
const MAX_METHOD: usize = 32;

/// A request under way.
#[derive(Debug)]
pub struct Record {
    fields: Option<Box<Fields>>,
}

#[derive(Debug)]
struct Fields {
    began: Instant,
    /// The registry, and the class in which it waits there, once they are known.
    upstream: Option<(Arc<Upstream>, ClassId)>,
    metrics: Arc<RegistryMetrics>,
    client: ClientId,
    kind: Kind,
    target: String,
    method: Option<Method>,
    wants: Option<Arc<str>>,
    status: Option<StatusCode>,
    waited: Duration,
    connect: Option<Duration>,
    retries: u32,
    ended_by: &'static str,
    evidence: &'static str,
    carried: Carried,
    cut_short: CancellationToken,
}

/// Bytes of one request, counted while they pass.
#[derive(Clone, Debug, Default)]
pub struct Carried {
    /// From the client to the registry.
    pub up: Arc<AtomicU64>,
    /// From the registry to the client.
    pub down: Arc<AtomicU64>,
}

impl Carried {
    /// Counts bytes that pass.
    pub fn add(&self, direction: Direction, bytes: usize) {
        [&self.up, &self.down][direction as usize].fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Record {
    /// Opens the record of a request that has just arrived, at first under no registry's name. `cut_short` is cancelled
    /// when the process ends what is still under way.
    pub fn open(metrics: Arc<RegistryMetrics>, client: ClientId, kind: Kind, cut_short: CancellationToken) -> Record {
        let fields = Fields {
            began: Instant::now(),
            upstream: None,
            metrics,
            client,
            kind,
            target: String::new(),
            method: (kind == Kind::Tunnel).then_some(Method::CONNECT),
            wants: None,
            status: None,
            waited: Duration::ZERO,
            connect: None,
            retries: 0,
            ended_by: "",
            evidence: "",
            carried: Carried::default(),
            cut_short,
        };
        Record { fields: Some(Box::new(fields)) }
    }

    /// It is known now where the request wants to go; not a word of it that was not parsed.
    pub fn toward(&mut self, target: String) {
        self.fields().target = target;
    }

    /// The method, and the repository and reference where they are visible.
    pub fn asks(&mut self, method: &Method, uri: &Uri) {
        let fields = self.fields();
        (fields.method, fields.wants) = (Some(method.clone()), wanted::wanted(uri));
    }

    pub fn wants(&mut self) -> Option<Arc<str>> {
        self.fields().wants.clone()
    }

    /// The client is answered with this status. The first final one counts.
    pub fn replied(&mut self, status: StatusCode) {
        self.fields().status.get_or_insert(status);
    }

    /// It is known now which registry the request belongs to, and the class in which it waits there.
    pub fn belongs_to(&mut self, upstream: &Arc<Upstream>, class: ClassId) {
        let fields = self.fields();
        fields.metrics = upstream.metrics.clone();
        fields.upstream = Some((upstream.clone(), class));
    }

    /// How long it waited for admission, and how long its `connect()` took.
    pub fn reached(&mut self, waited: Duration, connect: Option<Duration>) {
        let fields = self.fields();
        (fields.waited, fields.connect) = (waited, connect);
    }

    /// How often the registry was asked again for a better answer.
    pub fn retried(&mut self, times: u32) {
        self.fields().retries = times;
    }

    /// The cause that ended its tunnel, and for a reclaimed one on which evidence.
    pub fn ended_by(&mut self, what: &'static str, evidence: &'static str) {
        let fields = self.fields();
        (fields.ended_by, fields.evidence) = (what, evidence);
    }

    pub fn metrics(&mut self) -> Arc<RegistryMetrics> {
        self.fields().metrics.clone()
    }

    pub fn carried(&mut self) -> Carried {
        self.fields().carried.clone()
    }

    /// The answer, or the tunnel, was carried to its end.
    pub fn served(self) {
        self.end(Outcome::Served, None);
    }

    /// The registry failed after it had been reached.
    pub fn upstream_failed(self) {
        self.end(Outcome::UpstreamFailed, None);
    }

    /// The client was gone before the end.
    pub fn client_left(self) {
        self.end(Outcome::ClientLeft, None);
    }

    /// Roadstead itself answered.
    pub fn answered(mut self, reason: Reason) {
        self.replied(status_of(reason));
        let outcome = match reason {
            Reason::UpstreamUnreachable | Reason::UpstreamTimeout => Outcome::UpstreamFailed,
            _ => Outcome::Refused,
        };
        self.end(outcome, Some(reason));
    }

    fn fields(&mut self) -> &mut Fields {
        self.fields.as_mut().expect("there until the end")
    }

    fn end(mut self, outcome: Outcome, reason: Option<Reason>) {
        if let Some(fields) = self.fields.take() {
            fields.write(outcome, reason);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        match self.fields.take() {
            Some(fields) if fields.cut_short.is_cancelled() => fields.write(Outcome::Refused, Some(Reason::Draining)),
            Some(fields) => fields.write(Outcome::ClientLeft, None),
            None => {}
        }
    }
}

impl Fields {
    fn write(&self, outcome: Outcome, reason: Option<Reason>) {
        self.metrics.finished(outcome);
        if let Some(reason) = reason {
            self.metrics.refused(reason);
        }
        if let Some(class) = self.status.and_then(code_class::of) {
            self.metrics.responded(class);
        }
        let method = self.method.as_ref().map_or("", Method::as_str);
        let repository = self.wants.as_deref().map_or("", |wants| wanted::parts(wants).0);
        let (registry, class) = match &self.upstream {
            Some((upstream, class)) => (upstream.name.as_str(), upstream.classes[class.0].as_str()),
            None => (OTHER_HOSTS, ""),
        };
        tracing::info!(
            registry,
            class,
            client = self.client.as_str(),
            kind = self.kind.as_str(),
            method = method.get(..MAX_METHOD).unwrap_or(method),
            target = self.target,
            repository,
            status = self.status.map_or(0, |status| status.as_u16()),
            outcome = outcome.as_str(),
            reason = reason.map_or("", Reason::as_str),
            took_ms = millis(self.began.elapsed()),
            waited_ms = millis(self.waited),
            connect_ms = self.connect.map(millis),
            retries = self.retries,
            ended_by = self.ended_by,
            evidence = self.evidence,
            bytes_up = self.carried.up.load(Ordering::Relaxed),
            bytes_down = self.carried.down.load(Ordering::Relaxed),
            "finished"
        );
    }
}

/// The target for the log: without the query, which may hold a signature. At a mirror, `host` stands for the registry.
pub fn shown(host: Option<&HeaderValue>, uri: &Uri) -> String {
    const MAX_CHARS: usize = 512;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let named = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.map_or(named, |host| host.to_str().unwrap_or_default());
    let all = format!("{host}{}", uri.path());
    if all.len() > MAX_CHARS { all.chars().take(MAX_CHARS).collect() } else { all }
}

fn millis(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}
