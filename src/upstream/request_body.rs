//! The body of a request, as it comes from the client: counted, and followed to its end.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Instant;

use crate::reclaim::ClientDebt;

/// How far the client got with the body of its request, and what it owes. All clones tell of the same request.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Bytes that were taken of it.
    bytes: Arc<AtomicU64>,
    state: Arc<AtomicU8>,
    /// Counted from the instant.
    debt: Arc<Mutex<(Instant, ClientDebt)>>,
}

const UNDER_WAY: u8 = 0;
const WHOLE: u8 = 1;
const BROKEN: u8 = 2;
const SLOW: u8 = 3;

impl Upload {
    fn new(is_whole: bool, bytes: Arc<AtomicU64>) -> Upload {
        let debt = (Instant::now(), ClientDebt::new(None, Duration::MAX));
        let state = AtomicU8::new(if is_whole { WHOLE } else { UNDER_WAY });
        Upload { bytes, state: Arc::new(state), debt: Arc::new(Mutex::new(debt)) }
    }

    /// Whether all of it was taken.
    pub fn is_whole(&self) -> bool {
        self.state.load(Ordering::Acquire) == WHOLE
    }

    /// Whether it ended in the middle, or cannot be read, or came too slowly: the client's fault.
    pub fn is_broken(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), BROKEN | SLOW)
    }

    /// Whether the request was ended because its client was too slow.
    pub fn is_slow(&self) -> bool {
        self.state.load(Ordering::Acquire) == SLOW
    }

    /// Ends the request because its client is too slow.
    pub(super) fn end_as_slow(&self) {
        self.state.store(SLOW, Ordering::Release);
    }

    /// The request is on its way now, with a client that owes nothing yet.
    pub(super) fn begin(&self, debt: ClientDebt) {
        *self.debt() = (Instant::now(), debt);
    }

    /// From now on the client owes bytes, or owes none; see [`ClientDebt::note`].
    pub(super) fn note(&self, owes: bool, moved: usize) {
        let (began, debt) = &mut *self.debt();
        debt.note(owes, moved as u64, began.elapsed());
    }

    /// The time until the client is too slow; see [`ClientDebt::left`].
    pub(super) fn left(&self) -> Option<Duration> {
        let (began, debt) = &*self.debt();
        debt.left(began.elapsed())
    }

    fn debt(&self) -> MutexGuard<'_, (Instant, ClientDebt)> {
        self.debt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a request.
#[derive(Debug)]
pub struct RequestBody {
    /// `None`: no body.
    body: Option<Incoming>,
    upload: Upload,
}

impl RequestBody {
    /// The client's body; `bytes` counts what was taken of it.
    pub fn new(body: Incoming, bytes: Arc<AtomicU64>) -> RequestBody {
        let upload = Upload::new(body.is_end_stream(), bytes);
        RequestBody { body: Some(body), upload }
    }

    /// No body, for a request that is sent once more.
    pub fn empty() -> RequestBody {
        RequestBody { body: None, upload: Upload::new(true, Arc::default()) }
    }

    /// Tells how far it got.
    pub fn upload(&self) -> Upload {
        self.upload.clone()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *body).poll_frame(cx);
        let Poll::Ready(frame) = polled else {
            this.upload.note(true, 0);
            return Poll::Pending;
        };
        let state = match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                this.upload.note(false, bytes);
                this.upload.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                // Nobody polls again after trailers.
                if frame.is_trailers() || body.is_end_stream() { WHOLE } else { UNDER_WAY }
            }
            Some(Err(_)) => BROKEN,
            None => WHOLE,
        };
        this.upload.state.store(state, Ordering::Release);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}
