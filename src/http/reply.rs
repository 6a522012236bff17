//! The body of an answer on its way to the client.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::Full;
use hyper::StatusCode;
use hyper::body::{Body, Frame, SizeHint};

use super::buffered_body::BufferedBody;
use super::resuming::{Resumable, Resumed};
use crate::metrics::{Grade, Label};
use crate::proxy::client::Client;
use crate::proxy::record::{Carried, Record};
use crate::upstream::request_body::Upload;

/// The body of what the client is answered.
pub enum Reply {
    /// Made here.
    Own(Full<Bytes>),
    /// From the registry.
    Relayed(Box<Relayed>),
}

type Resuming = Pin<Box<dyn Future<Output = Result<Resumed, hyper::Error>> + Send>>;

/// A body on its way from the registry to the client. It takes the record of the request to its end.
pub struct Relayed {
    body: BufferedBody,
    /// How to go on where the body breaks off; `None` where that is not possible.
    resumable: Option<Box<Resumable>>,
    /// The rest, while that is asked for.
    resuming: Option<Resuming>,
    record: Option<Record>,
    carried: Carried,
    upload: Upload,
    client: Arc<Client>,
}

impl Relayed {
    /// The body of the answer whose record this is.
    pub fn new(
        body: BufferedBody,
        resumable: Option<Resumable>,
        mut record: Record,
        upload: Upload,
        client: Arc<Client>,
    ) -> Relayed {
        let carried = record.carried();
        let resumable = resumable.map(Box::new);
        let mut relayed = Relayed { body, resumable, resuming: None, record: Some(record), carried, upload, client };
        relayed.check_end();
        relayed
    }

    /// Whether an answer with this status came before the request was whole, and wants no more of it.
    pub fn ends_upload(&self, status: StatusCode) -> bool {
        status.as_u16() >= 300 && !self.upload.is_whole()
    }

    fn check_end(&mut self) {
        if self.is_end_stream() {
            self.served();
        }
    }

    fn served(&mut self) {
        if let Some(record) = self.record.take() {
            record.served();
        }
    }

    /// The body broke off. A client of HTTP/1.0 would take our FIN for its end: nothing but a reset says that it is not.
    fn broke_off(&mut self) {
        self.client.cut();
        match self.record.take() {
            Some(mut record) if self.upload.is_broken() => {
                if self.upload.is_slow() {
                    record.ended_by("reclaim", Grade::Slow.as_str());
                }
                record.client_left();
            }
            Some(record) => record.upstream_failed(),
            None => {}
        }
    }

    fn is_end_stream(&self) -> bool {
        self.resuming.is_none() && self.body.is_end_stream()
    }

    /// The next frame; where the body broke off and can be resumed, of the rest of it.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        loop {
            if let Some(resuming) = &mut self.resuming {
                let resumed = ready!(resuming.as_mut().poll(cx));
                self.resuming = None;
                match resumed {
                    Ok((resumable, body, upload)) => {
                        (self.resumable, self.body, self.upload) = (Some(resumable), body, upload);
                    }
                    Err(error) => return Poll::Ready(Some(Err(error))),
                }
            }
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            match (frame, self.resumable.take()) {
                (Some(Err(error)), Some(resumable)) => {
                    // The broken connection goes first, and its slot with it.
                    self.body = BufferedBody::empty();
                    self.resuming = Some(Box::pin(resumable.resume(error)));
                }
                (frame, mut resumable) => {
                    if let (Some(resumable), Some(Ok(frame))) = (&mut resumable, &frame) {
                        resumable.sent(frame.data_ref().map_or(0, Bytes::len));
                    }
                    self.resumable = resumable;
                    return Poll::Ready(frame);
                }
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(self.poll_body(cx));
        match &frame {
            // Nobody polls again after trailers.
            Some(Ok(frame)) if frame.is_trailers() => self.served(),
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.carried.down.fetch_add(bytes as u64, Ordering::Relaxed);
                self.check_end();
            }
            Some(Err(_)) => self.broke_off(),
            None => self.served(),
        }
        Poll::Ready(frame)
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Reply::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Reply::Relayed(relayed) => relayed.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Reply::Own(body) => body.is_end_stream(),
            Reply::Relayed(relayed) => relayed.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Own(body) => body.size_hint(),
            Reply::Relayed(relayed) => relayed.body.size_hint(),
        }
    }
}
