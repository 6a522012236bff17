//! CONNECT: admit, connect, answer, carry.
//!
//! The `200` is sent when the upstream socket stands, never earlier: pullers give a CONNECT a minute, but the TLS handshake
//! behind it only ten seconds. It goes out alone, in one write: reqwest loses bytes that come with it. The state of a
//! tunnel is told from the outside, never by opening its TLS. Called by `listener`.

mod aftermath;
pub mod follow;
mod parked;
mod passing;
mod path;
mod relay;
mod state;
mod told;

use std::sync::Arc;

use bytes::Bytes;
use tracing::info;

use self::aftermath::ReclaimOutcome;
use self::parked::Unparked;
use self::passing::ByteCounters;
use self::path::RegistryPath;
use self::state::{End, TunnelState};
use self::told::evidence_of;
use crate::admission::{self, Evidence, Lane, Principal};
use crate::metrics::{Grade, Label, Reason, Reclaimed, RegistryMetrics};
use crate::proxy::Proxy;
use crate::proxy::client::Client;
use crate::proxy::connections::CountedClient;
use crate::proxy::head::Connect;
use crate::proxy::record::{Kind, Record};
use crate::proxy::respond::Answer;
use crate::target::Target;
use crate::upstream::Patience;
use crate::upstream::socket::Socket;

const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// A tunnel that stands, before the client knows.
#[derive(Debug)]
struct Tunnel {
    socket: Socket,
    record: Record,
    path: Box<RegistryPath>,
}

/// Why there is no tunnel: what to tell, and under which registry. `None` when nobody is left to tell.
#[derive(Debug)]
struct NoTunnel(Option<Box<(Answer, String)>>);

/// Serves one CONNECT on a connection of its own, from the answer to the end of the tunnel.
pub fn serve<'a>(
    proxy: &'a Proxy,
    client: &'a Arc<Client>,
    counted: &'a CountedClient,
    connect: Connect,
) -> impl Future<Output = ()> + Send + use<'a> {
    let Connect { authority, proxy_authorization, early } = connect;
    // A waiter keeps no credentials.
    let principal = proxy.settings().classes.principal(proxy_authorization.as_deref(), client);
    let opening = Box::pin(open(proxy, client, authority, principal));
    // On the heap, each while it runs: while a tunnel waits, the larger future of its relay is not there.
    async move {
        match opening.await {
            Ok(tunnel) => Box::pin(carry(proxy, tunnel, (client, counted), early)).await,
            Err(NoTunnel(Some(told))) => Box::pin(tell(proxy, (client, counted), *told)).await,
            Err(NoTunnel(None)) => {}
        }
    }
}

async fn tell(proxy: &Proxy, (client, counted): (&Client, &CountedClient), (answer, registry): (Answer, String)) {
    if client.write_all(&answer.to_bytes(&registry)).await.is_ok() {
        proxy.lingering_close(client, counted).await;
    }
}

/// Opens a connection for a CONNECT to `authority`.
/// Fails with the answer instead of `200`, which is already counted and logged.
async fn open(
    proxy: &Proxy,
    client: &Client,
    authority: String,
    principal: Principal,
) -> Result<Box<Tunnel>, NoTunnel> {
    let (mut record, mut path) = Box::pin(find_registry(proxy, client, authority, principal)).await?;
    let queued = path.attempt.queued.clone();
    // While it waits for its turn, what comes before and after that is not there.
    let reaching = async {
        Box::pin(path.ask()).await?;
        path.turn().await;
        Box::pin(path.reach()).await
    };
    let reached = tokio::select! {
        biased;
        () = client.left(&queued) => None,
        reached = reaching => Some(reached),
    };
    record.reached(path.attempt.progress.waited, path.attempt.progress.connect);
    match reached {
        None => Err(NoTunnel(None)),
        Some(Ok(socket)) => {
            record.replied(hyper::StatusCode::OK);
            Ok(Box::new(Tunnel { socket, record, path }))
        }
        Some(Err(answer)) => Err(refuse(record, answer, Some(&path.upstream.name))),
    }
}

/// Finds the registry, and the request's place there.
async fn find_registry(
    proxy: &Proxy,
    client: &Client,
    authority: String,
    principal: Principal,
) -> Result<(Record, Box<RegistryPath>), NoTunnel> {
    let mut record = proxy.record(principal.client.clone(), Kind::Tunnel);
    let target = match Target::from_connect(&authority) {
        Ok(target) => target,
        Err(error) => return Err(refuse(record, Answer::plain(Reason::BadRequest, format!("CONNECT: {error}")), None)),
    };
    record.toward(target.to_string());
    let routed = tokio::select! {
        biased;
        // First: what is known at once names the registry in the record of a client that has left already.
        routed = proxy.route(&target, false) => routed,
        () = client.ended() => return Err(NoTunnel(None)),
    };
    let route = match routed {
        Ok(route) => route,
        Err(answer) => return Err(refuse(record, answer, None)),
    };
    let upstream = route.upstream;
    record.belongs_to(&upstream, principal.class);
    let patience = Patience { limit: upstream.queue.tunnel_timeout[principal.class.0], setting: "tunnel_timeout" };
    let mut attempt =
        upstream.attempt(route.destination, principal, (admission::SlotUse::Tunnel, Lane::Blob), None, patience);
    attempt.label.socket = client.socket();
    Ok((record, Box::new(RegistryPath { upstream, attempt, policy: route.policy })))
}

fn refuse(record: Record, answer: Answer, registry: Option<&str>) -> NoTunnel {
    record.answered(answer.reason);
    let registry = registry.unwrap_or(crate::metrics::OTHER_HOSTS).to_owned();
    NoTunnel(Some(Box::new((answer, registry))))
}

/// Tells the client that its tunnel stands, and carries bytes until it ends, or until the process does.
async fn carry(proxy: &Proxy, tunnel: Box<Tunnel>, (client, counted): (&Client, &CountedClient), mut early: Bytes) {
    if client.write_all(ESTABLISHED).await.is_err() {
        return;
    }
    let Tunnel { mut socket, mut record, mut path } = *tunnel;
    let (metrics, carried) = (record.metrics(), record.carried());
    loop {
        let counters = ByteCounters { metrics: &metrics, carried: &carried };
        let owner = (&*path.policy, path.attempt.principal.client.as_str());
        let epoch = path.upstream.gate.epoch();
        let mut state = TunnelState::new(client.stream(), socket, &early, owner, &path.upstream, counters);
        early = Bytes::new();
        let end = tokio::select! {
            end = state.run() => end,
            () = proxy.cut_short() => End::CutShort,
        };
        let TunnelState { registry, follower, .. } = state;
        match end {
            End::Parked => {
                metrics.reclaimed(Reclaimed::Unused);
                match parked::wait(proxy, (client, counted), &mut path, registry).await {
                    Unparked::Again(again) => socket = again,
                    Unparked::Ended(ended_by) => {
                        record.ended_by(ended_by, "");
                        return record.served();
                    }
                    Unparked::Left => return ended(record, &metrics, client, End::ClientBroke),
                    Unparked::Refused(reason) => {
                        record.ended_by("parked", "");
                        client.cut();
                        return record.answered(reason);
                    }
                }
            }
            End::Reclaimed(grade) if !grade.cuts() => {
                metrics.reclaimed(reclaimed_as(grade));
                let exchange = follower.observe().exchange;
                let outcome = aftermath::close(registry, client, follower, grade, epoch).await;
                match (grade, outcome, exchange) {
                    (Grade::Unsure, ReclaimOutcome::Clean, Some(exchange)) => path.policy.ended_in_silence(exchange),
                    (Grade::Answered | Grade::Silent, ReclaimOutcome::Cut, Some(exchange)) => {
                        path.policy.went_on(exchange);
                    }
                    _ => {}
                }
                return reclaimed(record, &path, grade, outcome);
            }
            end => return ended(record, &metrics, client, end),
        }
    }
}

/// Records a tunnel that ended by itself, or was cut.
fn ended(mut record: Record, metrics: &RegistryMetrics, client: &Client, end: End) {
    match end {
        End::Finished => {
            record.ended_by("both", "");
            record.served();
        }
        End::ClientBroke | End::Parked => {
            record.ended_by("client", "");
            record.client_left();
        }
        End::RegistryBroke => {
            client.cut();
            record.ended_by("registry", "");
            record.upstream_failed();
        }
        End::Reclaimed(grade) => {
            // The client does not take what the registry sent.
            metrics.reclaimed(reclaimed_as(grade));
            client.cut();
            record.ended_by("reclaim", grade.as_str());
            record.client_left();
        }
        End::CutShort => {
            client.cut();
            record.ended_by("drain_timeout", "");
            record.answered(Reason::Draining);
        }
    }
}

/// Records a tunnel that was reclaimed, and what that teaches.
fn reclaimed(mut record: Record, path: &RegistryPath, grade: Grade, outcome: ReclaimOutcome) {
    let metrics = record.metrics();
    let client = path.attempt.principal.client.as_str();
    path.policy.reclaimed(client, grade, outcome != ReclaimOutcome::Clean);
    let (registry, evidence) = (&path.upstream.name, grade.as_str());
    match outcome {
        ReclaimOutcome::Clean => {
            record.ended_by("reclaim", evidence);
            return record.served();
        }
        ReclaimOutcome::Crossed => {
            metrics.crossed(reclaimed_as(grade));
            info!(registry, client, evidence, "a request crossed the end of its tunnel");
            record.ended_by("reclaim_crossed", evidence);
        }
        ReclaimOutcome::Cut => {
            metrics.cut(reclaimed_as(grade));
            info!(registry, client, evidence, "the registry went on after its tunnel was reclaimed");
            record.ended_by("reclaim_cut", evidence);
        }
    }
    record.upstream_failed();
}

fn reclaimed_as(grade: Grade) -> Reclaimed {
    match evidence_of(grade) {
        Evidence::Unused => Reclaimed::Unused,
        Evidence::Idle => Reclaimed::Idle,
        Evidence::Unsure => Reclaimed::Unsure,
        Evidence::Stalled => Reclaimed::Stalled,
    }
}
