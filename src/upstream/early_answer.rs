//! A connection on which a registry may answer before it has read the request.
//!
//! hyper treats bytes before its own request as an error, and stops reading when a write fails. A registry that refuses
//! a connection answers before any request; one that refuses an upload answers, closes, and resets what still comes. In
//! both cases the answer is in the receive buffer, and the client must see it (RFC 9112, section 9.5). Used by `http`
//! alone, between hyper and the socket; it changes no byte.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
    Failed,
}

impl<S> EarlyAnswer<S> {
    pub fn new(stream: S) -> EarlyAnswer<S> {
        EarlyAnswer { stream, writing: Writing::NotBegun(None) }
    }

    fn written(&mut self, length: usize, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let begun = match result {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(_)) => Writing::Begun,
            Poll::Ready(Err(_)) => Writing::Failed,
        };
        let result = if let Writing::Failed = begun { Poll::Ready(Ok(length)) } else { result };
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
        Pin::new(&mut self.stream).poll_read(cx, buffer)
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
        if let Writing::Failed = self.writing {
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
        if let Poll::Ready(Err(_)) = flushed {
            self.writing = Writing::Failed;
        }
        flushed.map(|_| Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::timeout;

    use super::*;

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
}
