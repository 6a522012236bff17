//! CONNECT: admit, connect, answer, relay.
//!
//! The `200` is sent when the upstream socket stands, never earlier: pullers give a CONNECT a minute, but the TLS
//! handshake behind it only ten seconds. It goes out alone, in one write: reqwest loses bytes that come with it.

mod close_observer;
pub mod follow;
mod relay;
mod watch;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::debug;

use self::close_observer::CloseObserver;
use self::follow::Doing;
use self::relay::{End, HalfClosed, relay};
use self::watch::Watch;
use crate::admission::{self, Evidence, Lane, Principal, SlotEvent, SlotState};
use crate::metrics::{Direction, Reason, Reclaimed};
use crate::proxy::Proxy;
use crate::proxy::client::Client;
use crate::proxy::head::Connect;
use crate::proxy::record::{Kind, Record};
use crate::proxy::respond::Answer;
use crate::reclaim::Pauses;
use crate::target::Target;
use crate::upstream::socket::Socket;
use crate::upstream::{Connected, Patience};

const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// A tunnel that stands, before the client knows.
#[derive(Debug)]
pub struct Tunnel {
    socket: Socket,
    record: Record,
    pauses: Pauses,
    /// What the time of its registry's gate counts from.
    epoch: Instant,
}

impl Tunnel {
    /// Nothing is to come in it for now.
    pub fn lies_idle(&self) {
        self.socket.tell(SlotEvent::Entered(SlotState::Idle));
    }

    /// How long nothing may move in it where somebody waits.
    #[must_use]
    pub fn longest_stall(&self) -> Duration {
        self.pauses.stalled
    }
}

/// Why there is no tunnel: what to tell, and under which registry. `None` when nobody is left to tell.
#[derive(Debug)]
pub struct NoTunnel(pub Option<(Answer, String)>);

/// Serves one CONNECT on a connection of its own, from the answer to the end of the tunnel.
pub async fn serve(proxy: &Proxy, client: Arc<Client>, connect: Connect) {
    let principal = proxy.settings().classes.principal(connect.proxy_authorization.as_deref(), &client);
    let opened = open(proxy, &client, &connect.authority, principal).await;
    match opened {
        Ok(tunnel) => {
            if client.write_all(ESTABLISHED).await.is_ok() {
                carry(proxy, tunnel, &client, connect.early).await;
            }
        }
        Err(NoTunnel(Some((answer, registry)))) => {
            if client.write_all(&answer.to_bytes(&registry)).await.is_ok() {
                proxy.lingering_close(&client).await;
            }
        }
        Err(NoTunnel(None)) => {}
    }
}

/// Opens a connection for a CONNECT to `authority`.
///
/// # Errors
/// The answer instead of `200`. It is already counted and logged.
pub async fn open(proxy: &Proxy, client: &Client, authority: &str, principal: Principal) -> Result<Tunnel, NoTunnel> {
    let mut record = proxy.record(&principal.client.to_string(), Kind::Tunnel);
    let target = match Target::from_connect(authority) {
        Ok(target) => target,
        Err(error) => return Err(refuse(record, Answer::plain(Reason::BadRequest, format!("CONNECT: {error}")), None)),
    };
    record.toward(target.to_string());
    let routed = tokio::select! {
        biased;
        () = client.ended() => return Err(NoTunnel(None)),
        routed = proxy.route(&target, false) => routed,
    };
    let route = match routed {
        Ok(route) => route,
        Err(answer) => return Err(refuse(record, answer, None)),
    };
    let upstream = &route.upstream;
    record.belongs_to(&upstream.name, &upstream.metrics);
    let patience = Patience { limit: upstream.queue.tunnel_timeout[principal.class.0], setting: "tunnel_timeout" };
    let mut attempt =
        upstream.attempt(route.destination, principal, (admission::SlotUse::Tunnel, Lane::Blob), None, patience);
    let queued = attempt.queued.clone();
    let reached = tokio::select! {
        biased;
        () = client.left(&queued) => None,
        reached = upstream.reach(&mut attempt) => Some(reached),
    };
    record.reached(attempt.waited, attempt.connect);
    match reached {
        None => Err(NoTunnel(None)),
        Some(Ok(Connected::New(socket))) => {
            Ok(Tunnel { socket, record, pauses: route.pauses, epoch: upstream.gate.epoch() })
        }
        Some(Ok(Connected::Secured(_) | Connected::Pooled(_))) => {
            unreachable!("a tunnel speaks no TLS of ours, and names no key, so it is given no kept connection")
        }
        Some(Err(failure)) => {
            let answer = Answer::of_failure(&failure, upstream, &attempt);
            Err(refuse(record, answer, Some(&upstream.name)))
        }
    }
}

fn refuse(record: Record, answer: Answer, registry: Option<&str>) -> NoTunnel {
    record.answered(answer.reason);
    let registry = registry.unwrap_or(crate::metrics::OTHER_HOSTS).to_owned();
    NoTunnel(Some((answer, registry)))
}

/// Relays until the tunnel ends, or until the process does.
pub async fn carry(proxy: &Proxy, tunnel: Tunnel, client: &Client, early: Bytes) {
    let Tunnel { socket, mut record, pauses, epoch } = tunnel;
    let metrics = record.metrics();
    let carried = record.carried();
    let count = |direction, bytes: usize| {
        metrics.relayed(direction, bytes);
        let counter = match direction {
            Direction::Up => &carried.up,
            Direction::Down => &carried.down,
        };
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
    };
    let half_closed = HalfClosed { longest_silence: pauses.stalled };
    let (end, follower) = {
        let watch = Watch::new(client.stream(), &socket, pauses, epoch);
        let end = tokio::select! {
            end = relay(client.stream(), &socket, &watch, early, half_closed, count) => end,
            () = proxy.cut_short() => End::CutShort,
        };
        (end, watch.into_follower())
    };
    match end {
        End::Finished => record.served(),
        End::ClientBroke => record.client_left(),
        End::RegistryBroke => {
            client.cut();
            record.upstream_failed();
        }
        End::Reclaimed(evidence @ Evidence::Stalled) => {
            metrics.reclaimed(evidence_of(evidence));
            client.cut();
            match follower.doing() {
                Doing::InFlight => record.upstream_failed(),
                // What it does not read keeps it.
                Doing::Unused | Doing::Idle | Doing::Unsure | Doing::Closing => record.client_left(),
            }
        }
        End::Reclaimed(evidence) => {
            metrics.reclaimed(evidence_of(evidence));
            let close_observer = CloseObserver::new(follower, epoch);
            // The slot goes back first; the client may take its time to notice.
            let answer = close_observer.overhear(socket, evidence);
            let crossed = close_observer.crosses(client).await;
            // Who closes without a word has said all. (The sender goes with the socket.)
            if answer.await.is_ok() {
                metrics.cut(evidence_of(evidence));
                debug!(evidence = evidence.as_str(), "the registry went on after its tunnel was taken back");
                return record.upstream_failed();
            }
            record.served();
            if crossed {
                metrics.crossed(evidence_of(evidence));
                debug!(evidence = evidence.as_str(), "a request crossed the end of its tunnel");
            }
        }
        End::CutShort => {
            client.cut();
            record.answered(Reason::Draining);
        }
    }
}

fn evidence_of(evidence: Evidence) -> Reclaimed {
    match evidence {
        Evidence::Unused => Reclaimed::Unused,
        Evidence::Idle => Reclaimed::Idle,
        Evidence::Unsure => Reclaimed::Unsure,
        Evidence::Stalled => Reclaimed::Stalled,
    }
}
