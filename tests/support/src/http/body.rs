//! A body, read piece by piece: by its length, by its chunks, or to the end of the connection.
//!
//! A body that ends too early is an error, never a short success: cut answers must not look whole.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Head, Wire};

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After this many bytes; 0 is no body.
    Length(u64),
    /// After the chunk of length 0 and its trailers.
    Chunked,
    /// With the connection.
    UntilEnd,
}

impl Framing {
    /// Of the answer to a request with `method`.
    #[must_use]
    pub fn of_answer(head: &Head, method: &str) -> Self {
        let empty = method == "HEAD" || matches!(head.status(), 100..200 | 204 | 304);
        if empty || (method == "CONNECT" && (200..300).contains(&head.status())) {
            return Self::Length(0);
        }
        Self::named(head).unwrap_or(Self::UntilEnd)
    }

    /// Of a request.
    #[must_use]
    pub fn of_request(head: &Head) -> Self {
        Self::named(head).unwrap_or(Self::Length(0))
    }

    fn named(head: &Head) -> Option<Self> {
        if head.lists("Transfer-Encoding", "chunked") {
            return Some(Self::Chunked);
        }
        head.header("Content-Length")?.parse().ok().map(Self::Length)
    }
}

/// The rest of a body.
#[derive(Clone, Copy, Debug)]
enum Left {
    /// So many bytes, and then nothing.
    Bytes(u64),
    /// So many bytes of a chunk, and then its line end.
    Chunk(u64),
    /// A chunk's size line comes next.
    ChunkSize,
    /// The trailers come next.
    Trailers,
    /// Whatever comes.
    UntilEnd,
}

/// The body that comes next on a [`Wire`].
#[derive(Debug)]
pub struct Body<'wire, S> {
    wire: &'wire mut Wire<S>,
    left: Left,
}

impl<'wire, S: AsyncRead + AsyncWrite + Unpin> Body<'wire, S> {
    pub(super) fn new(wire: &'wire mut Wire<S>, framing: Framing) -> Self {
        let left = match framing {
            Framing::Length(length) => Left::Bytes(length),
            Framing::Chunked => Left::ChunkSize,
            Framing::UntilEnd => Left::UntilEnd,
        };
        Self { wire, left }
    }

    /// The next piece as it came; `None` after the last.
    ///
    /// # Errors
    /// Those of the connection, an end before the body's own, and chunks that are none.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.left {
                Left::Bytes(0) => return Ok(None),
                Left::Bytes(left) => {
                    let piece = self.piece(left).await?;
                    self.left = Left::Bytes(left - piece.len() as u64);
                    return Ok(Some(piece));
                }
                Left::Chunk(0) => {
                    self.line().await?;
                    self.left = Left::ChunkSize;
                }
                Left::Chunk(left) => {
                    let piece = self.piece(left).await?;
                    self.left = Left::Chunk(left - piece.len() as u64);
                    return Ok(Some(piece));
                }
                Left::ChunkSize => match self.chunk_size().await? {
                    0 => self.left = Left::Trailers,
                    size => self.left = Left::Chunk(size),
                },
                Left::Trailers => {
                    while !self.line().await?.is_empty() {}
                    self.left = Left::Bytes(0);
                }
                Left::UntilEnd => {
                    let piece = self.wire.receive().await?;
                    return Ok(Some(piece).filter(|piece| !piece.is_empty()));
                }
            }
        }
    }

    /// Everything that is left.
    ///
    /// # Errors
    /// As [`Body::next`].
    pub async fn collect(mut self) -> io::Result<Bytes> {
        let mut all = BytesMut::new();
        while let Some(piece) = self.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    async fn piece(&mut self, most: u64) -> io::Result<Bytes> {
        if self.wire.early.is_empty() {
            self.more().await?;
        }
        let length = self.wire.early.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(self.wire.early.split_to(length).freeze())
    }

    async fn line(&mut self) -> io::Result<Bytes> {
        loop {
            if let Some(end) = self.wire.early.windows(2).position(|window| window == b"\r\n") {
                let line = self.wire.early.split_to(end).freeze();
                self.wire.early.advance(2);
                return Ok(line);
            }
            self.more().await?;
        }
    }

    async fn chunk_size(&mut self) -> io::Result<u64> {
        let line = self.line().await?;
        let text = String::from_utf8_lossy(&line);
        let size = text.split(';').next().unwrap_or_default().trim();
        u64::from_str_radix(size, 16)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("chunk size {text:?}: {error}")))
    }

    async fn more(&mut self) -> io::Result<()> {
        if self.wire.read_more().await? {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended inside a body"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `bytes`, followed by the end of the connection.
    async fn read(bytes: &[u8], framing: Framing) -> io::Result<Bytes> {
        let (ours, theirs) = tokio::io::duplex(1024);
        let mut sender = Wire::new(theirs);
        sender.send(bytes).await?;
        drop(sender);
        Wire::new(ours).body(framing).collect().await
    }

    #[tokio::test]
    async fn each_framing_ends_where_it_should() {
        assert_eq!(read(b"abcdef", Framing::Length(3)).await.unwrap(), "abc");
        assert_eq!(read(b"abcdef", Framing::UntilEnd).await.unwrap(), "abcdef");
        let chunks = b"2;x=y\r\nab\r\nA\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\nnext";
        assert_eq!(read(chunks, Framing::Chunked).await.unwrap(), "ab0123456789");
    }

    #[tokio::test]
    async fn a_cut_body_is_an_error() {
        assert!(read(b"ab", Framing::Length(3)).await.is_err());
        assert!(read(b"3\r\nabc\r\n", Framing::Chunked).await.is_err());
        assert!(read(b"zz\r\n", Framing::Chunked).await.is_err());
    }
}
