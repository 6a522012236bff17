//! An answer of which a part was read ahead.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};

use crate::upstream::http::AnswerBody;

/// A body whose first frames were read; they come first when it is read on.
pub struct Peeked {
    frames: VecDeque<Frame<Bytes>>,
    /// `None` once all was read.
    rest: Option<AnswerBody>,
    /// What was known of its size at first: who is answered must not see that it was read.
    hint: SizeHint,
}

impl Peeked {
    /// A body of which nothing was read.
    #[must_use]
    pub fn unread(body: AnswerBody) -> Peeked {
        let hint = body.size_hint();
        let rest = (!body.is_end_stream()).then_some(body);
        Peeked { frames: VecDeque::new(), rest, hint }
    }

    /// Reads ahead, to the end or until there are more than `most` bytes. May be given up at any point.
    ///
    /// # Errors
    /// When the body ends in the middle.
    pub async fn read(&mut self, most: usize) -> Result<(), hyper::Error> {
        while self.bytes_read() <= most
            && let Some(rest) = &mut self.rest
        {
            match rest.frame().await {
                Some(frame) => self.frames.push_back(frame?),
                None => self.rest = None,
            }
            if self.rest.as_ref().is_some_and(Body::is_end_stream) {
                self.rest = None;
            }
        }
        Ok(())
    }

    /// Whether all of it was read.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.rest.is_none()
    }

    /// What was read of it.
    #[must_use]
    pub fn so_far(&self) -> Vec<u8> {
        self.frames.iter().filter_map(Frame::data_ref).flat_map(|data| data.iter().copied()).collect()
    }

    fn bytes_read(&self) -> usize {
        self.frames.iter().filter_map(Frame::data_ref).map(Bytes::len).sum()
    }
}

impl Body for Peeked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if let Some(frame) = this.frames.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(rest) = &mut this.rest else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(rest).poll_frame(cx));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}
