//! Moving bytes both ways through a tunnel.
//!
//! Half-close is kept: one side's FIN is handed on, and the other direction goes on. A direction holds a buffer only
//! while bytes are moving, so a tunnel that lies idle costs its two sockets and no more.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep, timeout};

use super::watch::Watch;
use crate::admission::Evidence;
use crate::metrics::Direction;
use crate::tcp;
use crate::upstream::socket::Socket;

/// Bytes read at once. Large enough that system calls do not dominate a blob, small enough for many tunnels at once.
const BUFFER: usize = 64 * 1024;

/// How long a client may stay silent after the registry's FIN. The connection is of no more use to it by then, but
/// holds a slot.
const AFTER_REGISTRY_END: Duration = Duration::from_secs(10);

/// How long a tunnel may last in which nothing moves, once its client has ended its side: for as long as a request under
/// way may stall.
#[derive(Clone, Copy, Debug)]
pub struct HalfClosed {
    /// Counted from the client's FIN, or from the last byte after it.
    pub longest_silence: Duration,
}

/// How a tunnel ended.
#[derive(Debug)]
pub enum End {
    /// Both sides ended in order.
    Finished,
    /// The client's connection broke.
    ClientBroke,
    /// The registry's connection broke.
    RegistryBroke,
    /// Somebody waits, and nothing was under way, or nothing of it moved for very long ([`Evidence::Stalled`]). The socket
    /// does not know yet how to close.
    Reclaimed(Evidence),
    /// `drain_timeout` was over.
    CutShort,
}

/// Relays until both sides have ended, one is broken, or the tunnel is reclaimed; `early` are the bytes that the client
/// sent before the tunnel stood. `carried` is told of all bytes as they pass. The socket is left knowing how to close.
pub async fn relay(
    client: &TcpStream,
    registry: &Socket,
    watch: &Watch<'_>,
    early: Bytes,
    half_closed: HalfClosed,
    carried: impl Fn(Direction, usize),
) -> End {
    let sent_up = |bytes: &[u8]| {
        watch.client_sent(bytes);
        registry.carried(Direction::Up, bytes.len());
        carried(Direction::Up, bytes.len());
    };
    let sent_down = |bytes: &[u8]| {
        watch.server_sent(bytes);
        registry.carried(Direction::Down, bytes.len());
        carried(Direction::Down, bytes.len());
    };
    let up = async {
        if !early.is_empty() {
            sent_up(&early);
            tcp::write_all(registry.stream(), &early).await.map_err(|_| End::RegistryBroke)?;
        }
        drop(early);
        pump(client, registry.stream(), sent_up, || ()).await.map_err(|broken| match broken {
            Broken::Source => End::ClientBroke,
            Broken::Sink => End::RegistryBroke,
        })
    };
    let down = async {
        pump(registry.stream(), client, sent_down, || watch.client_was_handed_all()).await.map_err(
            |broken| match broken {
                Broken::Source => End::RegistryBroke,
                Broken::Sink => End::ClientBroke,
            },
        )
    };
    tokio::select! {
        ended = join(client, up, down, registry, half_closed) => match ended {
            Ok(()) => End::Finished,
            // A registry that closes while the client says its TLS goodbye resets; all that it said came through.
            Err(End::RegistryBroke) if watch.is_at_rest() => End::Finished,
            Err(end) => end,
        },
        evidence = watch.reclaimed() => End::Reclaimed(evidence),
    }
}

/// Both directions, until both have ended; not for ever once one side has.
async fn join(
    client: &TcpStream,
    up: impl Future<Output = Result<(), End>>,
    down: impl Future<Output = Result<(), End>>,
    registry: &Socket,
    half_closed: HalfClosed,
) -> Result<(), End> {
    tokio::pin!(up, down);
    tokio::select! {
        client_ended = &mut up => {
            if let Err(broken @ End::ClientBroke) = client_ended {
                return Err(broken);
            }
            let registry_ended = tokio::select! {
                ended = down => ended,
                () = tcp::broken(client) => return Err(End::ClientBroke),
                () = until_silent(registry, half_closed.longest_silence) => {
                    // It has our FIN already, and is asked for its own once more.
                    registry.ending().in_order();
                    return Err(End::RegistryBroke);
                }
            };
            match (client_ended, registry_ended) {
                // A registry that closes with the client's last words unread (a TLS goodbye, mostly) resets.
                (Ok(()), Ok(()) | Err(End::RegistryBroke)) => registry.ending().confirmed(),
                // It answered without reading all, and closed: what it said came through.
                (Err(_), Ok(())) => registry.ending().in_order(),
                (Err(broken), _) | (_, Err(broken)) => return Err(broken),
            }
        }
        registry_ended = &mut down => {
            registry_ended?;
            registry.ending().in_order();
            // It said all that it will: how the client ends changes nothing.
            let _ = timeout(AFTER_REGISTRY_END, up).await;
        }
    }
    Ok(())
}

/// Completes when nothing has moved for so long, from now on.
async fn until_silent(registry: &Socket, longest: Duration) {
    let began = Instant::now();
    loop {
        let silence = registry.silence().map_or(began.elapsed(), |silence| silence.min(began.elapsed()));
        match longest.checked_sub(silence) {
            Some(left) if !left.is_zero() => sleep(left).await,
            _ => return,
        }
    }
}

enum Broken {
    Source,
    Sink,
}

/// One direction, up to and with the FIN. `passing` is shown all bytes before they are passed on, and `passed` is told when
/// the kernel has them.
async fn pump(source: &TcpStream, sink: &TcpStream, passing: impl Fn(&[u8]), passed: impl Fn()) -> Result<(), Broken> {
    loop {
        source.readable().await.map_err(|_| Broken::Source)?;
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            match source.try_read_buf(&mut buffer) {
                Ok(0) => return tcp::finish(sink).map_err(|_| Broken::Sink),
                Ok(_) => {
                    passing(&buffer);
                    tcp::write_all(sink, &buffer).await.map_err(|_| Broken::Sink)?;
                    passed();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(Broken::Source),
            }
            consume_budget().await;
        }
    }
}
