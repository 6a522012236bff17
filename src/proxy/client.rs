//! The client's side of one accepted connection.
//!
//! The stream is shared between whoever reads and writes it (hyper, or the relay) and those who only watch whether the
//! client is still there. Watching takes no bytes: the kernel tells of a FIN or a reset also behind unread data.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::upstream::Requester;
use crate::upstream::keepalive::watch_client;
use crate::upstream::socket::{has_ended, is_broken, reset};

/// How often a client that has ended its side is looked at again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// An accepted connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    peer: SocketAddr,
}

impl Client {
    /// Takes over an accepted stream.
    #[must_use]
    pub fn new(stream: TcpStream, peer: SocketAddr) -> Arc<Client> {
        // Without it, answers of a few bytes wait for acknowledgements; it fails only on a connection that is gone.
        let _ = stream.set_nodelay(true);
        watch_client(&stream);
        Arc::new(Client { stream, peer })
    }

    /// The stream, for reading and writing.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Where the client is.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn write_all(&self, data: &[u8]) -> io::Result<()> {
        super::relay::write_all(&self.stream, data).await
    }

    /// Lets the connection end with a reset: what was sent is not all, and must not look so.
    pub fn cut(&self) {
        reset(&self.stream);
    }

    /// Says that no more will come, and waits a moment for the client to read it and to end its own side: closing with
    /// unread bytes would reset the connection, and take the last answer with it.
    pub async fn lingering_close(&self) {
        self.lingering_close_showing(|_| ()).await;
    }

    /// The same, and shows what the client says meanwhile.
    pub async fn lingering_close_showing(&self, show: impl FnMut(&[u8])) {
        const MOST: usize = 256 * 1024;
        const LONGEST: Duration = Duration::from_secs(1);
        let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write);
        let _ = tokio::time::timeout(LONGEST, super::relay::discard(&self.stream, MOST, show)).await;
    }
}

impl Requester for Client {
    async fn ended(&self) {
        loop {
            // Tokio registers for the end of the stream anyhow; this interest reports it, and takes no notice of data.
            match self.stream.ready(Interest::PRIORITY).await {
                Ok(ready) if ready.is_read_closed() || ready.is_write_closed() || ready.is_error() => return,
                Ok(_) => {
                    let _ = self
                        .stream
                        .try_io(Interest::PRIORITY, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
                }
                Err(_) => return,
            }
        }
    }

    async fn broken(&self) {
        self.ended().await;
        until_broken(&self.stream).await;
    }

    fn has_ended(&self) -> bool {
        has_ended(&self.stream)
    }

    fn is_broken(&self) -> bool {
        is_broken(&self.stream)
    }
}

/// Completes when the connection of a client that has ended its side breaks. No event is left to wait for by then: the
/// end of the stream is reported already, and a reset changes nothing about that.
pub(super) async fn until_broken(stream: &TcpStream) {
    while !is_broken(stream) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The client's stream as hyper reads and writes it, with the bytes first that were read before hyper came.
#[derive(Debug)]
pub struct ClientIo {
    client: Arc<Client>,
    replay: Bytes,
}

impl ClientIo {
    /// Reads `replay`, then the stream.
    #[must_use]
    pub fn new(client: Arc<Client>, replay: Bytes) -> ClientIo {
        ClientIo { client, replay }
    }

    /// What was not read yet of the bytes to replay.
    #[must_use]
    pub fn into_unread(self) -> Bytes {
        self.replay
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.replay.is_empty() {
            let length = self.replay.len().min(buffer.remaining());
            buffer.put_slice(&self.replay[..length]);
            self.replay.advance(length);
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.client.stream.poll_read_ready(cx))?;
            match self.client.stream.try_read_buf(buffer) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.client.stream.poll_write_ready(cx))?;
            match self.client.stream.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(&self.client.stream, rustix::net::Shutdown::Write) {
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}
