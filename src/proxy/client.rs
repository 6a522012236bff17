//! The client's side of one accepted connection.
//!
//! The stream is shared between whoever reads and writes it (hyper, or the relay) and those who only watch whether the
//! client is still there. Watching takes no bytes: the kernel tells of a FIN or a reset also behind unread data.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::admission::ClientId;
use crate::kernel::{self, ListedSocket};
use crate::tcp::{self, LOOK_AGAIN, Linger};

/// A lingering close after an answer that a client may be too busy sending to read (RFC 9112, section 9.6).
const LINGER: Linger =
    Linger { most_bytes: usize::MAX, longest: Duration::from_secs(30), longest_silence: Duration::from_secs(5) };

/// The same where the client counts nowhere, or has little to send.
pub const BRIEF_LINGER: Linger =
    Linger { most_bytes: 256 * 1024, longest: Duration::from_secs(1), longest_silence: Duration::from_secs(1) };

/// The longest pause between two looks whether a client that has ended its side is still there.
const LONGEST_LOOK_AGAIN: Duration = Duration::from_secs(1);

/// An accepted connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    peer: SocketAddr,
    /// Where it was accepted, and the socket on this machine behind it: asked of the kernel once.
    local: OnceLock<Option<SocketAddr>>,
    other_end: OnceLock<Option<ListedSocket>>,
    /// Its name, as far as the kernel vouches for it: made once.
    identity: OnceLock<ClientId>,
    /// Whether our FIN was sent.
    finished: AtomicBool,
}

impl Client {
    /// Takes over an accepted stream.
    pub fn new(stream: TcpStream, peer: SocketAddr) -> Arc<Client> {
        let (local, other_end, identity, finished) = Default::default();
        Arc::new(Client { stream, peer, local, other_end, identity, finished })
    }

    /// The stream, for reading and writing.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Where the client is.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The address at which it was accepted.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        *self.local.get_or_init(|| self.stream.local_addr().ok())
    }

    /// The user that runs the client, where it is on this machine.
    pub fn uid(&self) -> Option<u32> {
        self.other_end.get_or_init(|| kernel::socket_behind(self.local_addr()?, self.peer)).map(|socket| socket.uid)
    }

    /// Its name, which `find_out` tells the first time.
    pub fn identity(&self, find_out: impl FnOnce() -> ClientId) -> ClientId {
        self.identity.get_or_init(find_out).clone()
    }

    /// The client's socket by its inode, if the kernel was asked for it; else 0.
    pub fn socket(&self) -> u32 {
        self.other_end.get().copied().flatten().map_or(0, |socket| socket.inode)
    }

    /// Whether our FIN was sent: the answer before it was the last.
    pub fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Relaxed)
    }

    /// Writes all of it.
    /// Fails when the connection is broken.
    pub async fn write_all(&self, data: &[u8]) -> io::Result<()> {
        tcp::write_all(&self.stream, data).await
    }

    /// Sends our FIN.
    pub fn finish(&self) -> io::Result<()> {
        self.finished.store(true, Ordering::Relaxed);
        tcp::finish(&self.stream)
    }

    /// Lets the connection end with a reset: what was sent is not all, and must not look so.
    pub fn cut(&self) {
        tcp::reset_on_close(&self.stream);
    }

    /// Sends our FIN, then reads and drops what the client still sends, until it ends or the bounds are reached: closing
    /// with unread bytes would reset the connection, and take the last answer with it.
    pub async fn lingering_close(&self) {
        tcp::lingering_close(&self.stream, LINGER, |_| ()).await;
    }

    /// The same for a moment only, and shows what the client sends meanwhile.
    pub async fn brief_lingering_close(&self, show: impl FnMut(&[u8])) {
        tcp::lingering_close(&self.stream, BRIEF_LINGER, show).await;
    }

    /// Completes when the client sends a byte, with true, or ends without.
    pub async fn speaks(&self) -> bool {
        let _ = self.stream.readable().await;
        tcp::has_unread(&self.stream)
    }

    /// Whether the client has ended its side.
    pub fn has_ended(&self) -> bool {
        tcp::has_ended(&self.stream)
    }

    /// Completes when the client has ended its side, or is gone, even with unread bytes before that.
    pub async fn ended(&self) {
        tcp::ended(&self.stream).await;
    }

    /// Completes when nobody is left to read an answer. The end of the client's side alone does not say so: a client that
    /// has sent its request may half-close. On this machine the kernel knows who closed; of others, a reset tells.
    pub async fn gone(&self) {
        self.ended().await;
        let mut pause = LOOK_AGAIN;
        while !self.is_broken() && !kernel::is_other_end_closed(&self.stream) {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_LOOK_AGAIN);
        }
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// The kernel is asked at the first request of a connection: the answer holds when it could not tell any more.
    #[tokio::test]
    async fn the_user_behind_a_connection_is_asked_for_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other_end = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let (client, uid) = (Client::new(stream, peer), rustix::process::geteuid().as_raw());
        assert_eq!((client.socket(), client.uid()), (0, Some(uid)));
        let socket = client.socket();
        assert!(socket > 0);
        drop(other_end);
        let behind = kernel::socket_behind(client.local_addr().unwrap(), peer);
        assert!(behind.is_none_or(|behind| behind.inode == 0), "it could not tell now");
        assert_eq!((client.uid(), client.socket()), (Some(uid), socket));
    }
}
