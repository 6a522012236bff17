//! A parked tunnel: its client's connection stands, the registry's is closed, and no byte went either path.
//!
//! Its slot went to a request that waits. When the client's first byte comes, the tunnel is admitted anew, ahead of all who
//! wait: the client's handshake ends after ten seconds. It counts as a client, and as no open connection.

use std::time::Duration;

use tokio::time::sleep;

use super::path::RegistryPath;
use crate::metrics::Reason;
use crate::proxy::Proxy;
use crate::proxy::client::Client;
use crate::proxy::connections::CountedClient;
use crate::upstream::socket::{Manner, Socket};

/// How long a tunnel stays parked. No puller keeps an idle connection for longer.
const MAX_PARKED: Duration = Duration::from_secs(90);

/// How long its first byte waits for a slot: pullers give the handshake ten seconds.
const MAX_WAIT: Duration = Duration::from_secs(8);

/// The fate of a parked tunnel.
pub(super) enum Unparked {
    /// It has a connection to the registry again.
    Again(Socket),
    /// It ended without a byte; by whom.
    Ended(&'static str),
    /// Its client spoke, and left before there was a slot for it.
    Left,
    /// Its client spoke, and there was no slot for it.
    Refused(Reason),
}

/// Gives the registry's connection up, and waits for the client's first byte.
pub(super) async fn wait(
    proxy: &Proxy,
    (client, counted): (&Client, &CountedClient),
    path: &mut RegistryPath,
    registry: Socket,
) -> Unparked {
    registry.ending().set(Manner::InOrder);
    drop(registry);
    let parked = path.policy.park();
    counted.set_idle(true);
    let speaks = tokio::select! {
        speaks = client.speaks() => speaks,
        () = sleep(MAX_PARKED) => false,
        () = proxy.draining() => false,
        () = counted.closes() => false,
        () = proxy.cut_short() => return Unparked::Refused(Reason::Draining),
    };
    counted.set_idle(false);
    if !speaks {
        let ended_by = if client.has_ended() { "client" } else { "parked" };
        client.brief_lingering_close(|_| ()).await;
        return Unparked::Ended(ended_by);
    }
    path.upstream.go_ahead(&mut path.attempt, MAX_WAIT);
    let reached = tokio::select! {
        reached = path.reach() => reached,
        () = client.gone() => return Unparked::Left,
        () = proxy.cut_short() => return Unparked::Refused(Reason::Draining),
    };
    drop(parked);
    match reached {
        Ok(socket) => Unparked::Again(socket),
        Err(answer) => Unparked::Refused(answer.reason),
    }
}
