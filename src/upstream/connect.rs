//! Dialling one address, in a slot.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::cluster::NodePermit;
use super::socket::{ClosingTerms, Manner, Socket};
use super::tls::{self, Tls};
use crate::admission::{Slot, SlotEvent, SlotState};
use crate::backoff::Backoff;
use crate::kernel;
use crate::metrics::RegistryMetrics;
use crate::target::Host;
use crate::tcp;

/// The pauses of a dial for which there is no descriptor.
const DESCRIPTOR_PAUSES: Backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(500));

#[derive(Clone, Copy, Debug)]
pub struct ConnectionTerms {
    pub connect_timeout: Duration,
    /// The longest wait for the registry's FIN after ours.
    pub linger: Duration,
    /// The time after which the registry drops a peer that has gone silent, where its slots are leased.
    pub registry_drops: Option<Duration>,
    /// How long a request may lie still where somebody waits for its slot.
    pub stall_timeout: Duration,
    /// The bytes a second below which a client is too slow while others wait, if any.
    pub least_rate: Option<NonZeroU64>,
    /// A fixed size of the send buffers, by which others know whose sockets they are.
    pub send_buffer: Option<usize>,
}

/// Why an address did not take the connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("connecting to {0}: {1}")]
    Failed(SocketAddr, #[source] io::Error),
    #[error("connecting to {0}: no answer within connect_timeout ({1:?})")]
    TimedOut(SocketAddr, Duration),
    /// This process has no descriptor left: that says nothing about the other side.
    #[error("connecting to {0}: {1}: raise the limit on open files")]
    NoDescriptor(SocketAddr, #[source] io::Error),
    /// TLS failed, and would fail again.
    #[error("TLS with {0}: {1}{cure}", cure = tls::cure(.1))]
    Untrusted(SocketAddr, #[source] io::Error),
}

impl DialError {
    /// Whether the same would come of another dial.
    pub fn is_final(&self) -> bool {
        matches!(self, DialError::Untrusted(..))
    }

    /// Whether it was this process that failed.
    pub fn is_ours(&self) -> bool {
        matches!(self, DialError::NoDescriptor(..))
    }
}

/// One address, and how to speak to it.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub address: SocketAddr,
    /// The host that must prove itself, where TLS is spoken.
    pub secure: Option<Host>,
    /// The node that it leads to, if there is a choice.
    pub node_permit: Option<NodePermit>,
}

/// A connection that stands, plain or inside TLS.
pub type Established = Either<Socket, Box<TlsStream<Socket>>>;

pub(super) fn socket_of(established: &Established) -> &Socket {
    match established {
        Either::Left(socket) => socket,
        Either::Right(stream) => stream.get_ref().0,
    }
}

/// Opens one connection, and tells how long `connect()` took. The socket stands in the slot from its first moment. So
/// whatever happens in between, also a drop of this future, closes the one before it gives back the other.
/// `failed` sees a failure before the slot goes back. `None`: it stands, and is closed, since it may not stand any more.
pub(super) async fn dial(
    slot: Slot,
    endpoint: Endpoint,
    once_connected: SlotState,
    terms: ConnectionTerms,
    (tls, metrics): (&Tls, &Arc<RegistryMetrics>),
    may_stand: impl Fn() -> bool,
    failed: impl FnOnce(&DialError, &Slot, Option<&NodePermit>),
) -> Result<Option<(Established, Duration)>, DialError> {
    let Endpoint { address, secure, node_permit } = endpoint;
    let timed_out = || DialError::TimedOut(address, terms.connect_timeout);
    let started = Instant::now();
    let deadline = started + terms.connect_timeout;
    slot.tell(SlotEvent::Dialled);
    let stream = match begin_in_time(address, terms.send_buffer, deadline).await {
        Ok(stream) => stream,
        Err(error) => {
            failed(&error, &slot, node_permit.as_ref());
            return Err(error);
        }
    };
    let closing = ClosingTerms { linger: terms.linger, registry_drops: terms.registry_drops };
    let mut socket = Socket::new(stream, slot, node_permit, closing, metrics.clone());
    let stands = timeout_at(deadline, finish(socket.stream(), address)).await;
    let (error, socket) = match (stands, secure) {
        (Ok(Ok(())), _) if !may_stand() => return Ok(None),
        (Ok(Ok(())), secure) => {
            let took = started.elapsed();
            metrics.connected(took);
            socket.round_trip = took;
            let Some(host) = secure else {
                socket.slot().tell(SlotEvent::Established(once_connected));
                return Ok(Some((Either::Left(socket), took)));
            };
            match tls.handshake(&host, socket, deadline).await {
                Ok(stream) => {
                    stream.get_ref().0.slot().tell(SlotEvent::Established(SlotState::Active));
                    return Ok(may_stand().then(|| (Either::Right(Box::new(stream)), took)));
                }
                Err((error, socket)) if error.kind() == io::ErrorKind::TimedOut => (timed_out(), socket),
                Err((error, socket)) if tls::is_final(&error) => (DialError::Untrusted(address, error), socket),
                Err((error, socket)) => (DialError::Failed(address, error), socket),
            }
        }
        (Ok(Err(error)), _) => {
            socket.ending().set(Manner::NeverStood);
            (DialError::Failed(address, error), socket)
        }
        (Err(_), _) => (timed_out(), socket),
    };
    failed(&error, socket.slot(), socket.node_permit());
    Err(error)
}

/// Waits for a descriptor where there is none: one comes free with the next client that leaves.
async fn begin_in_time(
    address: SocketAddr,
    send_buffer: Option<usize>,
    deadline: Instant,
) -> Result<TcpStream, DialError> {
    let mut failures = 0;
    loop {
        let error = match begin(address, send_buffer) {
            Ok(stream) => return Ok(stream),
            Err(error) if !kernel::is_out_of_descriptors(&error) => return Err(DialError::Failed(address, error)),
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(DialError::NoDescriptor(address, error));
        }
        failures += 1;
        sleep_until(deadline.min(Instant::now() + DESCRIPTOR_PAUSES.after(failures))).await;
    }
}

/// A socket on its way: tokio's own `connect` keeps it out of reach until it stands, and then its end could not be
/// watched when the wait is given up.
fn begin(address: SocketAddr, send_buffer: Option<usize>) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    tcp::prepare_dial(&socket)?;
    send_buffer.map(|size| sockopt::set_socket_send_buffer_size(&socket, size)).transpose()?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => TcpStream::from_std(std::net::TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}

async fn finish(stream: &TcpStream, address: SocketAddr) -> io::Result<()> {
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        // Where nothing listens at an ephemeral port, TCP may open from both ends at once (RFC 9293, section 3.5).
        None if stream.local_addr()? == address => {
            Err(io::Error::new(io::ErrorKind::ConnectionRefused, "nothing listens there: the socket met itself"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpSocket;

    use super::*;

    /// TCP lets a socket open toward its own address: both ends are the same socket then.
    #[tokio::test]
    async fn a_socket_that_met_itself_is_a_refused_dial() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let own = socket.local_addr().unwrap();
        let stream = socket.connect(own).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), own);
        let error = finish(&stream, own).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
