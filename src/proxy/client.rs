//! The client's side of one accepted connection.
//!
//! The stream is shared between whoever reads and writes it (hyper, or the relay) and those who only watch whether the
//! client is still there. Watching takes no bytes: the kernel tells of a FIN or a reset also behind unread data.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::tcp::{self, LOOK_AGAIN, Linger};

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
        tcp::keep_client_alive(&stream);
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
        tcp::write_all(&self.stream, data).await
    }

    /// Lets the connection end with a reset: what was sent is not all, and must not look so.
    pub fn cut(&self) {
        tcp::reset_on_close(&self.stream);
    }

    /// Says that no more will come, and waits a moment for the client to read it and to end its own side: closing with
    /// unread bytes would reset the connection, and take the last answer with it.
    pub async fn lingering_close(&self) {
        self.lingering_close_showing(|_| ()).await;
    }

    /// The same, and shows what the client says meanwhile.
    pub async fn lingering_close_showing(&self, show: impl FnMut(&[u8])) {
        const LONGEST: Duration = Duration::from_secs(1);
        let linger = Linger { most_bytes: 256 * 1024, longest: LONGEST, longest_silence: LONGEST };
        tcp::lingering_close(&self.stream, linger, show).await;
    }

    /// Completes when the client has ended its side, or is gone, even with unread bytes before that.
    pub async fn ended(&self) {
        tcp::ended(&self.stream).await;
    }

    /// Completes when the client has left: its connection is broken, or it has ended its side of it and the request is
    /// `queued`. A client that never had to wait may have said all and still want the answer.
    pub async fn left(&self, queued: &AtomicBool) {
        self.ended().await;
        while !queued.load(Ordering::Relaxed) && !self.is_broken() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Whether the connection is broken, so that not even an answer could be sent; asks the kernel.
    pub fn is_broken(&self) -> bool {
        tcp::is_broken(&self.stream)
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
        tcp::poll_read(&self.client.stream, cx, buffer).map_ok(|_| ())
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
        tcp::poll_write_vectored(&self.client.stream, cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(tcp::finish(&self.client.stream))
    }
}
