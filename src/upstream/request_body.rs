//! The body of a request, as it comes from the client: counted, and followed to its end. Of a small one that may be sent
//! once more a copy is kept.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::reclaim::ClientDebt;

/// How far the client got with the body of its request, and what it owes. All clones tell of the same request.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Bytes that were taken of it.
    bytes: Arc<AtomicU64>,
    state: Arc<Mutex<UploadState>>,
}

#[derive(Debug)]
struct UploadState {
    progress: Progress,
    began: Instant,
    /// Counted from then.
    debt: ClientDebt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    UnderWay,
    Whole,
    /// It ended in the middle, or cannot be read.
    Broken,
    /// It came too slowly, or its answer was taken too slowly.
    Slow,
}

impl Upload {
    fn new(is_whole: bool, bytes: Arc<AtomicU64>) -> Upload {
        let progress = if is_whole { Progress::Whole } else { Progress::UnderWay };
        let state = UploadState { progress, began: Instant::now(), debt: ClientDebt::new(None, Duration::MAX) };
        Upload { bytes, state: Arc::new(Mutex::new(state)) }
    }

    pub fn is_whole(&self) -> bool {
        self.state.lock().progress == Progress::Whole
    }

    /// Whether it ended by the client's fault.
    pub fn is_broken(&self) -> bool {
        matches!(self.state.lock().progress, Progress::Broken | Progress::Slow)
    }

    /// Whether the request was ended because its client was too slow.
    pub fn is_slow(&self) -> bool {
        self.state.lock().progress == Progress::Slow
    }

    /// Ends the request because its client is too slow.
    pub(super) fn end_as_slow(&self) {
        self.state.lock().progress = Progress::Slow;
    }

    /// The request is on its way now, with a client that owes nothing yet.
    pub(super) fn begin(&self, debt: ClientDebt) {
        let mut state = self.state.lock();
        (state.began, state.debt) = (Instant::now(), debt);
    }

    /// From now on the client owes bytes, or owes none; see [`ClientDebt::note`].
    pub(super) fn note(&self, owes: bool, moved: usize) {
        let mut state = self.state.lock();
        let now = state.began.elapsed();
        state.debt.note(owes, moved as u64, now);
    }

    /// The time until the client is too slow; see [`ClientDebt::left`].
    pub(super) fn left(&self) -> Option<Duration> {
        let state = self.state.lock();
        state.debt.left(state.began.elapsed())
    }
}

#[derive(Debug)]
pub struct RequestBody {
    /// `None`: no body.
    body: Option<Incoming>,
    /// The bytes of a copy that are still to be sent.
    again: Bytes,
    copy: BodyCopy,
}

/// A body, to be sent once more.
#[derive(Clone, Debug)]
pub struct BodyCopy {
    /// The bytes that came so far, if they are kept.
    bytes: Option<Arc<Mutex<BytesMut>>>,
    /// The client's, however often it is sent.
    upload: Upload,
}

impl BodyCopy {
    pub fn so_far(&self) -> Bytes {
        self.bytes.as_ref().map(|bytes| bytes.lock().clone().freeze()).unwrap_or_default()
    }

    /// The body once more; an empty one, where none is kept.
    pub fn again(&self) -> RequestBody {
        let copy = BodyCopy { bytes: None, upload: self.upload.clone() };
        RequestBody { body: None, again: self.so_far(), copy }
    }
}

impl RequestBody {
    /// The client's body; `bytes` counts what was taken of it. A copy is kept of one that may be sent once more.
    pub fn new(body: Incoming, bytes: Arc<AtomicU64>, may_repeat: bool) -> RequestBody {
        let upload = Upload::new(body.is_end_stream(), bytes);
        let bytes = (may_repeat && !body.is_end_stream()).then(Arc::default);
        RequestBody { body: Some(body), again: Bytes::new(), copy: BodyCopy { bytes, upload } }
    }

    /// No body.
    pub fn empty() -> RequestBody {
        BodyCopy { bytes: None, upload: Upload::new(true, Arc::default()) }.again()
    }

    pub fn upload(&self) -> Upload {
        self.copy.upload.clone()
    }

    /// Its copy, which is complete once the upload is whole.
    pub fn copy(&self) -> BodyCopy {
        self.copy.clone()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else {
            let again = std::mem::take(&mut this.again);
            return Poll::Ready((!again.is_empty()).then(|| Ok(Frame::data(again))));
        };
        let polled = Pin::new(&mut *body).poll_frame(cx);
        let Poll::Ready(frame) = polled else {
            this.copy.upload.note(true, 0);
            return Poll::Pending;
        };
        let progress = match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                this.copy.upload.note(false, bytes);
                this.copy.upload.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                if let (Some(copy), Some(data)) = (&this.copy.bytes, frame.data_ref()) {
                    copy.lock().extend_from_slice(data);
                }
                // Nobody polls again after trailers.
                if frame.is_trailers() || body.is_end_stream() { Progress::Whole } else { Progress::UnderWay }
            }
            Some(Err(_)) => Progress::Broken,
            None => Progress::Whole,
        };
        this.copy.upload.state.lock().progress = progress;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().map_or(self.again.is_empty(), Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(self.again.len() as u64), Body::size_hint)
    }
}
