//! Dialling one address, in a slot.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::socket::Socket;
use crate::admission::Slot;
use crate::metrics::RegistryMetrics;

/// What holds for every connection to one registry.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// The longest time that `connect()` may take.
    pub connect_timeout: Duration,
    /// The longest wait for the registry's FIN after ours.
    pub linger: Duration,
}

/// Why an address did not take the connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The kernel, or the other side, said no.
    #[error("connecting to {0}: {1}")]
    Failed(SocketAddr, #[source] io::Error),
    /// Nobody said anything.
    #[error("connecting to {0}: no answer within connect_timeout ({1:?})")]
    TimedOut(SocketAddr, Duration),
}

/// Opens one connection. The socket stands in the slot from its first moment, so whatever happens in between, also a
/// drop of this future, closes the one before it gives back the other. If the dial `tells`, its failure means that the
/// target takes no connections.
///
/// # Errors
/// When the address does not take the connection in time.
pub async fn dial(
    slot: Slot,
    address: SocketAddr,
    terms: Terms,
    tells: bool,
    metrics: &Arc<RegistryMetrics>,
) -> Result<(Socket, Duration), DialError> {
    let started = Instant::now();
    slot.dialled();
    let stream = match begin(address) {
        Ok(stream) => stream,
        Err(error) => {
            report(&slot, tells);
            return Err(DialError::Failed(address, error));
        }
    };
    let mut socket = Socket::new(stream, slot, terms.linger, metrics.clone());
    match timeout(terms.connect_timeout, finish(socket.stream())).await {
        Ok(Ok(())) => {
            let took = started.elapsed();
            metrics.connected(took);
            socket.established(took);
            Ok((socket, took))
        }
        Ok(Err(error)) => {
            report(socket.held(), tells);
            socket.never_stood();
            Err(DialError::Failed(address, error))
        }
        Err(_) => {
            report(socket.held(), tells);
            Err(DialError::TimedOut(address, terms.connect_timeout))
        }
    }
}

fn report(slot: &Slot, tells: bool) {
    if tells {
        slot.unreachable();
    }
}

/// A socket on its way: tokio's own `connect` keeps it out of reach until it stands, and then its end could not be
/// watched when the wait is given up.
fn begin(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => TcpStream::from_std(std::net::TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}

async fn finish(stream: &TcpStream) -> io::Result<()> {
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
