//! The body of an answer on its way to the client.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};

use super::buffered_body::BufferedBody;
use super::request_phase::{Asked, state};
use crate::proxy::record::{Carried, Record};

/// The body of what the client is answered.
pub enum Reply {
    /// Made here.
    Own(Full<Bytes>),
    /// From the registry.
    Relayed(Box<Relayed>),
}

/// A body on its way from the registry to the client. It takes the record of the request to its end.
pub struct Relayed {
    body: BufferedBody,
    record: Option<Record>,
    carried: Carried,
    asked: Asked,
}

impl Relayed {
    /// The body of the answer whose record this is.
    #[must_use]
    pub fn new(body: BufferedBody, record: Record, carried: Carried, asked: Asked) -> Relayed {
        let mut relayed = Relayed { body, record: Some(record), carried, asked };
        relayed.check_end();
        relayed
    }

    fn check_end(&mut self) {
        if self.body.is_end_stream() {
            self.served();
        }
    }

    fn served(&mut self) {
        if let Some(record) = self.record.take() {
            self.asked.set(state::NOTHING);
            record.served();
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.carried.down.fetch_add(bytes as u64, Ordering::Relaxed);
                self.check_end();
            }
            Some(Err(_)) => {
                if let Some(record) = self.record.take() {
                    record.upstream_failed();
                }
            }
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
            Reply::Relayed(relayed) => relayed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Own(body) => body.size_hint(),
            Reply::Relayed(relayed) => relayed.body.size_hint(),
        }
    }
}
