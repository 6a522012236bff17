//! An answer of which a part was read ahead.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};

use crate::upstream::http::AnswerBody;

/// A body whose beginning was read; it comes first when it is read on.
pub struct BufferedBody {
    /// The frames behind the data: trailers.
    frames: VecDeque<Frame<Bytes>>,
    /// The data, in one piece.
    data: BytesMut,
    /// `None` once all was read.
    rest: Option<AnswerBody>,
    /// The size hint before the body was read: the client must not see that it was read.
    hint: SizeHint,
}

impl BufferedBody {
    pub fn unread(body: AnswerBody) -> BufferedBody {
        let hint = body.size_hint();
        let rest = (!body.is_end_stream()).then_some(body);
        BufferedBody { frames: VecDeque::new(), data: BytesMut::new(), rest, hint }
    }

    pub fn empty() -> BufferedBody {
        BufferedBody { frames: VecDeque::new(), data: BytesMut::new(), rest: None, hint: SizeHint::with_exact(0) }
    }

    /// Reads ahead, to the end or until there are more than `most` bytes. May be given up at any point.
    /// Fails when the body ends in the middle.
    pub async fn read(&mut self, most: usize) -> Result<(), hyper::Error> {
        while self.data.len() <= most
            && let Some(rest) = &mut self.rest
        {
            match rest.frame().await.transpose()?.map(Frame::into_data) {
                // Copied: a few bytes may hold on to a large buffer.
                Some(Ok(data)) => self.data.extend_from_slice(&data),
                Some(Err(trailers)) => self.frames.push_back(trailers),
                None => self.rest = None,
            }
            if self.rest.as_ref().is_some_and(Body::is_end_stream) {
                self.rest = None;
            }
        }
        Ok(())
    }

    pub fn is_whole(&self) -> bool {
        self.rest.is_none()
    }

    pub fn so_far(&self) -> &[u8] {
        &self.data
    }
}

impl Body for BufferedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if !this.data.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(this.data.split().freeze()))));
        }
        if let Some(frame) = this.frames.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(rest) = &mut this.rest else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(rest).poll_frame(cx));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.frames.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}
