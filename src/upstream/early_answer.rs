//! A connection on which a registry may answer before it has read the request.
//!
//! hyper treats bytes before its own request as an error, and stops reading when a write fails. A registry that refuses
//! a connection answers before any request; one that refuses an upload answers, closes, and resets what still comes. In
//! both cases the answer is in the receive buffer, and the client must see it (RFC 9112, section 9.5). A write that meets a
//! reset takes it out of the socket, which then shows an end: it is kept, since an answer without a length that was reset is
//! not whole. Used by `http` alone, between hyper and the socket; it changes no byte.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tcp;

/// A stream toward a registry, as hyper is to see it.
#[derive(Debug)]
pub struct EarlyAnswer<S> {
    stream: S,
    writing: Writing,
}

#[derive(Debug)]
enum Writing {
    /// Nothing was written. Reading waits until something is.
    NotBegun(Option<Waker>),
    Begun,
    /// The registry takes no more. Written bytes are dropped; a read returns the rest.
    Failed {
        /// Whether it was reset before it had ended its side: the rest is not whole.
        is_reset: bool,
    },
}

impl Writing {
    fn failed(error: &io::Error) -> Writing {
        Writing::Failed { is_reset: tcp::is_reset(error.kind()) }
    }
}

impl<S> EarlyAnswer<S> {
    pub fn new(stream: S) -> EarlyAnswer<S> {
        EarlyAnswer { stream, writing: Writing::NotBegun(None) }
    }

    fn written(&mut self, length: usize, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let begun = match &result {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(_)) => Writing::Begun,
            Poll::Ready(Err(error)) => Writing::failed(error),
        };
        let result = if let Writing::Failed { .. } = begun { Poll::Ready(Ok(length)) } else { result };
        if let Writing::NotBegun(Some(reader)) = std::mem::replace(&mut self.writing, begun) {
            reader.wake();
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for EarlyAnswer<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Writing::NotBegun(reader) = &mut self.writing {
            *reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let has_ended = buffer.filled().len() == before && buffer.remaining() > 0;
        let is_cut = has_ended && matches!(self.writing, Writing::Failed { is_reset: true });
        Poll::Ready(if is_cut { Err(ErrorKind::ConnectionReset.into()) } else { Ok(()) })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for EarlyAnswer<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(data)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        if let Writing::Failed { .. } = self.writing {
            return Poll::Ready(Ok(length));
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(length, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if let Poll::Ready(Err(error)) = &flushed {
            self.writing = Writing::failed(error);
        }
        flushed.map(|_| Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest, duplex};
    use tokio::time::timeout;

    use super::*;
    use crate::tcp::tests::pair;

    /// An answer that is there already is read only once the request has begun.
    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_for_the_request() {
        let (ours, mut registry) = duplex(100);
        registry.write_all(b"answer").await.unwrap();
        let mut stream = EarlyAnswer::new(ours);
        let mut buffer = [0; 6];
        timeout(std::time::Duration::from_secs(1), stream.read(&mut buffer)).await.unwrap_err();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (read, written) = tokio::join!(reader.read_exact(&mut buffer), writer.write_all(b"request"));
        assert_eq!((read.unwrap(), written.unwrap(), &buffer), (6, (), b"answer"));
    }

    /// A registry that takes no more has still been heard.
    #[tokio::test]
    async fn an_answer_is_read_after_a_write_has_failed() {
        let (ours, mut registry) = duplex(100);
        registry.write_all(b"answer").await.unwrap();
        drop(registry);
        let mut stream = EarlyAnswer::new(ours);
        for part in ["a request of which nothing arrives", "more"] {
            stream.write_all(part.as_bytes()).await.unwrap();
        }
        let mut buffer = Vec::new();
        stream.read_to_end(&mut buffer).await.unwrap();
        assert_eq!(buffer, b"answer");
    }

    /// Without a length an answer ends with its connection (RFC 9112, section 6.3): a reset is no such end, whoever met it.
    #[tokio::test]
    async fn an_answer_that_was_reset_does_not_end() {
        for ends_first in [false, true] {
            let (near, mut far) = pair().await;
            far.write_all(b"answer").await.unwrap();
            if ends_first {
                far.shutdown().await.unwrap();
            }
            far.set_zero_linger().unwrap();
            drop(far);
            near.ready(Interest::READABLE).await.unwrap();
            let mut stream = EarlyAnswer::new(near);
            stream.write_all(b"request").await.unwrap();
            let mut buffer = Vec::new();
            let ended = stream.read_to_end(&mut buffer).await.map_err(|error| error.kind());
            assert_eq!(buffer, b"answer");
            assert_eq!(ended, if ends_first { Ok(6) } else { Err(ErrorKind::ConnectionReset) });
        }
    }
}
