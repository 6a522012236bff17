//! A client's connection as hyper reads and writes it for one request: it ends where the request ends, so that the next head
//! is read and checked as the first one was.
//!
//! hyper asks for bytes behind the end when its answer is complete; once that is flushed, the connection is taken back. It
//! also writes what hyper cannot: the informational answers before the final one (RFC 9110, section 15.2).

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use hyper::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::queued::Queued;
use crate::proxy::client::Client;
use crate::proxy::head;
use crate::proxy::request_end::{Body, RequestEnd};
use crate::tcp;

/// Informational answers of a registry that may wait to be passed on. More are dropped.
const MAX_HEARD: usize = 16;

/// The connection. All clones are the same one.
#[derive(Clone, Debug)]
pub struct RequestIo {
    client: Arc<Client>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// Bytes that were read from the connection and not taken.
    unread: Bytes,
    end: RequestEnd,
    /// The same at the beginning, and the end then: how to begin anew, while that may still be due.
    beginning: Option<(Bytes, RequestEnd)>,
    /// The request's state from before it waited, or while it waits.
    queued: Option<Box<Queued>>,
    /// Whether the request was handed over.
    is_taken: bool,
    /// Whether hyper has asked for bytes behind the end.
    is_next_wanted: bool,
    /// Whether hyper has nothing left to write.
    is_flushed: bool,
    /// Informational answers of the registry.
    heard: VecDeque<(StatusCode, HeaderMap)>,
    /// The same as the client is to get them, before anything else of hyper's.
    informational: BytesMut,
    /// The task that waits for one, or to pass one on.
    informing: Option<Waker>,
}

impl State {
    fn wake(&mut self) {
        if let Some(informing) = self.informing.take() {
            informing.wake();
        }
    }
}

impl RequestIo {
    /// The connection for a request that ends there, with the bytes first that were read of it; and what is known of the
    /// request from before, where it was put back.
    pub fn new(client: Arc<Client>, unread: Bytes, end: RequestEnd, queued: Option<Box<Queued>>) -> RequestIo {
        let state = State {
            beginning: queued.is_none().then(|| (unread.clone(), end.clone())),
            queued,
            unread,
            end,
            is_taken: false,
            is_next_wanted: false,
            is_flushed: true,
            heard: VecDeque::new(),
            informational: BytesMut::new(),
            informing: None,
        };
        RequestIo { client, state: Arc::new(Mutex::new(state)) }
    }

    /// The client at the other end.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Whether a request is the first that is handed over. Another one would begin where we do not see its head.
    pub fn is_first_request(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().is_taken, true)
    }

    /// Whether the request was read, and the answer written, to the end.
    pub fn is_over(&self) -> bool {
        let state = self.state.lock();
        state.is_next_wanted && state.is_flushed
    }

    /// Whether what was written of the answer is on its way.
    pub fn is_flushed(&self) -> bool {
        self.state.lock().is_flushed
    }

    /// Puts the request back, which has no body: hyper lets go of it, and reads it again when it has its turn.
    pub fn put_back(&self, queued: Box<Queued>) {
        self.state.lock().queued = Some(queued);
    }

    /// The state of the request from before it was put back.
    pub fn take_queued(&self) -> Option<Box<Queued>> {
        self.state.lock().queued.take()
    }

    /// Whether the request can be put back: it was not before.
    pub fn may_put_back(&self) -> bool {
        self.state.lock().beginning.is_some()
    }

    /// The request will not be put back.
    pub fn goes_on(&self) {
        self.state.lock().beginning = None;
    }

    /// The connection for the request that was put back, once it has its turn; `None` where it was not put back.
    pub fn begin_anew(&self) -> Option<(Box<Queued>, Bytes, RequestEnd)> {
        let state = &mut *self.state.lock();
        let (bytes, end) = state.beginning.take_if(|_| state.queued.is_some())?;
        let queued = state.queued.take()?;
        let (head, behind) = bytes.split_at(end.clone().follow(&bytes));
        // A copy: a waiter does not hold the buffer of the head.
        let mut kept = head::without_credentials(head);
        let end = RequestEnd::of(kept.len(), Body::Sized(0));
        kept.extend_from_slice(behind);
        Some((queued, kept.into(), end))
    }

    /// The bytes behind the request that were read already.
    pub fn take_unread(&self) -> Bytes {
        std::mem::take(&mut self.state.lock().unread)
    }

    /// The registry has sent an informational answer.
    pub fn hear(&self, status: StatusCode, headers: &HeaderMap) {
        let mut state = self.state.lock();
        if state.heard.len() < MAX_HEARD {
            state.heard.push_back((status, headers.clone()));
            state.wake();
        }
    }

    /// The next informational answer of the registry. Nobody else may wait for it.
    pub async fn heard(&self) -> (StatusCode, HeaderMap) {
        std::future::poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.heard.is_empty() {
                state.informing = Some(cx.waker().clone());
            }
            state.heard.pop_front().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Lets an informational answer go out before the final one, whose turn it is once this completes. All that hyper may
    /// still be writing before it is a 100 of its own.
    pub async fn inform(&self, head: &[u8]) {
        std::future::poll_fn(|cx| {
            let mut state = self.state.lock();
            if !state.is_flushed {
                state.informing = Some(cx.waker().clone());
                return Poll::Pending;
            }
            state.informational.extend_from_slice(head);
            Poll::Ready(())
        })
        .await;
    }

    /// Writes the informational answers.
    fn poll_informational(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state.lock();
        while !state.informational.is_empty() {
            let head = io::IoSlice::new(&state.informational);
            let written = ready!(tcp::poll_write_vectored(self.client.stream(), cx, &[head]))?;
            state.informational.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for RequestIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.state.lock();
        if state.end.is_reached() {
            state.is_next_wanted = true;
            return Poll::Pending;
        }
        if state.unread.is_empty() {
            let before = buffer.filled().len();
            ready!(tcp::poll_read(self.client.stream(), cx, buffer))?;
            let read = &buffer.filled()[before..];
            let taken = state.end.follow(read);
            state.unread = Bytes::copy_from_slice(&read[taken..]);
            buffer.set_filled(before + taken);
        } else {
            let length = state.unread.len().min(buffer.remaining());
            let taken = state.end.follow(&state.unread[..length]);
            buffer.put_slice(&state.unread[..taken]);
            state.unread.advance(taken);
            if state.unread.is_empty() {
                // It holds on to the buffer of the head.
                state.unread = Bytes::new();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for RequestIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_informational(cx))?;
        self.state.lock().is_flushed = false;
        tcp::poll_write_vectored(self.client.stream(), cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_informational(cx))?;
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.is_flushed, true) {
            state.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.client.finish())
    }
}
