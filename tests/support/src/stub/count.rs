//! The stub's own count of its open connections, and the connection that keeps it right.
//!
//! A connection counts from `accept()` until its end was seen. The count falls before the socket is dropped, so whoever
//! sees our end of it, sees it after the count fell.

use std::collections::BTreeSet;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::locked;

/// The open connections, in the order of arrival.
#[derive(Debug, Default)]
pub(super) struct Count {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeSet<u64>,
    accepted: u64,
    peak: usize,
}

impl Count {
    pub(super) fn open(&self) -> usize {
        locked(&self.state).open.len()
    }

    pub(super) fn peak(&self) -> usize {
        locked(&self.state).peak
    }

    fn enter(&self) -> u64 {
        let mut state = locked(&self.state);
        let number = state.accepted;
        state.accepted += 1;
        state.open.insert(number);
        state.peak = state.peak.max(state.open.len());
        number
    }

    fn leave(&self, number: u64) {
        locked(&self.state).open.remove(&number);
    }

    fn older_than(&self, number: u64) -> usize {
        locked(&self.state).open.range(..number).count()
    }
}

/// One accepted connection. It is read and written like the [`TcpStream`] that it holds.
#[derive(Debug)]
pub struct StubConnection {
    place: Place,
    // After the place: fields drop in this order.
    stream: TcpStream,
}

/// A connection's place in the count.
#[derive(Debug)]
struct Place {
    count: Arc<Count>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.count.leave(self.number);
    }
}

impl StubConnection {
    pub(super) fn new(stream: TcpStream, count: Arc<Count>) -> Self {
        // Only a hint for the kernel; a connection that is over already refuses it.
        let _ = stream.set_nodelay(true);
        let number = count.enter();
        Self { place: Place { count, number }, stream }
    }

    /// Its number in the order of accepts, from 0.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.place.number
    }

    /// Stops counting it: the peer's end was seen.
    pub fn seen_end(&self) {
        self.place.count.leave(self.place.number);
    }

    /// Whether as many as `cap` older connections are open.
    pub(super) fn is_above(&self, cap: usize) -> bool {
        self.place.count.older_than(self.place.number) >= cap
    }
}

impl Deref for StubConnection {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl DerefMut for StubConnection {
    fn deref_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }
}

impl AsyncRead for StubConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for StubConnection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
