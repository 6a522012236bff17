//! The body of a request, as it comes from the client: counted, and followed to its end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// How far the client got with the body of its request. All clones tell of the same body.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Bytes that were taken of it.
    bytes: Arc<AtomicU64>,
    state: Arc<AtomicU8>,
}

const UNDER_WAY: u8 = 0;
const WHOLE: u8 = 1;
const BROKEN: u8 = 2;

impl Upload {
    fn new(is_whole: bool, bytes: Arc<AtomicU64>) -> Upload {
        Upload { bytes, state: Arc::new(AtomicU8::new(if is_whole { WHOLE } else { UNDER_WAY })) }
    }

    /// Whether all of it was taken.
    pub fn is_whole(&self) -> bool {
        self.state.load(Ordering::Acquire) == WHOLE
    }

    /// Whether it ended in the middle, or cannot be read: the client's fault.
    pub fn is_broken(&self) -> bool {
        self.state.load(Ordering::Acquire) == BROKEN
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
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        let state = match &frame {
            Some(Ok(frame)) => {
                this.upload.bytes.fetch_add(frame.data_ref().map_or(0, Bytes::len) as u64, Ordering::Relaxed);
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
