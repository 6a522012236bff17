//! Where a request ends on its connection: behind its head, and behind the body that the head announces.
//!
//! The head is checked before (RFC 9112, section 6.3): a body has a length, or is chunked and has none. hyper
//! refuses a malformed chunk. A body that it takes ends here at the same byte.

/// The body that a head announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes.
    Sized(u64),
    /// Chunks, then trailers.
    Chunked,
}

/// How much of a request is still to come.
#[derive(Clone, Debug)]
pub struct RequestEnd {
    /// Bytes whose meaning does not matter: the head, a sized body, a chunk.
    skip: u64,
    next: Line,
    is_after_cr: bool,
}

/// The line behind them.
#[derive(Clone, Debug)]
enum Line {
    /// There is none: the request ends.
    None,
    /// The size of a chunk, as far as it was read, and whether digits may follow.
    Size(u64, bool),
    /// A trailer, or the empty line behind the last one.
    Trailer { is_empty: bool },
}

impl RequestEnd {
    /// The end of a request whose head has so many bytes.
    pub fn of(head: usize, body: Body) -> RequestEnd {
        let (length, next) = match body {
            Body::Sized(length) => (length, Line::None),
            Body::Chunked => (0, Line::Size(0, true)),
        };
        RequestEnd { skip: length.saturating_add(head as u64), next, is_after_cr: false }
    }

    /// Whether all of it has come.
    pub fn is_reached(&self) -> bool {
        self.skip == 0 && matches!(self.next, Line::None)
    }

    /// Follows bytes that have come, and tells how many of them belong to the request.
    pub fn follow(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() && !self.is_reached() {
            if self.skip == 0 {
                self.read(bytes[at]);
                at += 1;
            } else {
                let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.skip -= skipped as u64;
                at += skipped;
            }
        }
        at
    }

    /// Reads a byte of a line. CR and LF end it, and nothing else does.
    fn read(&mut self, byte: u8) {
        let is_end = byte == b'\n' && self.is_after_cr;
        self.is_after_cr = byte == b'\r';
        match &mut self.next {
            Line::Size(0, _) if is_end => self.next = Line::Trailer { is_empty: true },
            Line::Size(size, _) if is_end => {
                self.skip = size.saturating_add(2);
                self.next = Line::Size(0, true);
            }
            Line::Size(size, is_number) => match char::from(byte).to_digit(16).filter(|_| *is_number) {
                Some(digit) => *size = size.saturating_mul(16).saturating_add(digit.into()),
                None => *is_number = false,
            },
            Line::Trailer { is_empty: true } if is_end => self.next = Line::None,
            Line::Trailer { is_empty } => *is_empty = is_end || (*is_empty && byte == b'\r'),
            Line::None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::{BodyExt, Empty};
    use hyper::body::{Bytes, Incoming};
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::TokioIo;
    use roadstead_test_support::Random;
    use tokio::io::AsyncWriteExt;
    use tokio::time::timeout;

    use super::*;

    const HEAD: &[u8] = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";

    /// Where hyper sees the end; `None` where it refuses the body, or waits for more of it.
    async fn end_by_hyper(bytes: &[u8]) -> Option<usize> {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        client.write_all(bytes).await.unwrap();
        let service = service_fn(|request: Request<Incoming>| {
            Box::pin(async move {
                request.into_body().collect().await?;
                Ok::<_, hyper::Error>(Response::new(Empty::<Bytes>::new()))
            })
        });
        let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(server), service);
        let parts = timeout(Duration::from_secs(1), connection.without_shutdown()).await.ok()?.ok()?;
        Some(bytes.len() - parts.read_buf.len())
    }

    fn chunks(random: &mut Random) -> Vec<u8> {
        let mut body = Vec::new();
        for _ in 0..random.below(4) {
            let (size, zeros) = (random.below(40) + 1, "0".repeat(usize::try_from(random.below(3)).unwrap()));
            let line = [format!("{zeros}{size:x}\r\n"), format!("{size:X};a=b\r\n"), format!("{size:x} ;c\r\n")];
            body.extend_from_slice(line[usize::try_from(random.below(3)).unwrap()].as_bytes());
            body.extend((0..size).map(|_| b"\r\n0ax"[usize::try_from(random.below(5)).unwrap()]));
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(
            [&b"0\r\n\r\n"[..], b"00;x\r\nA: b\r\nC:\r\n\r\n"][usize::try_from(random.below(2)).unwrap()],
        );
        if random.below(2) == 0 {
            let at = usize::try_from(random.below(body.len() as u64)).unwrap();
            body[at] = b"\r\n;0aF x"[usize::try_from(random.below(8)).unwrap()];
        }
        body
    }

    /// A chunked body, whole or with one wrong byte, ends for us where it ends for hyper, in whatever pieces it comes.
    #[tokio::test(start_paused = true)]
    async fn a_chunked_body_ends_where_hyper_sees_its_end() {
        let mut taken = 0;
        for seed in 0..2000 {
            let mut random = Random::new(seed);
            let bytes = [HEAD, &chunks(&mut random), b"GET /next HTTP/1.1\r\n\r\n0\r\n\r\n"].concat();
            let Some(expected) = end_by_hyper(&bytes).await else { continue };
            let (mut end, mut at) = (RequestEnd::of(HEAD.len(), Body::Chunked), 0);
            while !end.is_reached() && at < bytes.len() {
                let piece = usize::try_from(random.below(20)).unwrap() + 1;
                at += end.follow(&bytes[at..(at + piece).min(bytes.len())]);
            }
            assert_eq!((at, end.is_reached()), (expected, true), "seed {seed}: {:?}", String::from_utf8_lossy(&bytes));
            taken += 1;
        }
        assert!(taken > 1000, "{taken} bodies");
    }

    #[test]
    fn a_body_of_known_length_ends_by_count() {
        let mut end = RequestEnd::of(3, Body::Sized(4));
        assert_eq!((end.follow(b"abcde"), end.is_reached()), (5, false));
        assert_eq!((end.follow(b"fghi"), end.is_reached()), (2, true));
        assert!(RequestEnd::of(0, Body::Sized(0)).is_reached());
    }
}
