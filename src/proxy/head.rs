//! The first head of a connection, read before anybody else sees the connection.
//!
//! A CONNECT never enters hyper: its early bytes, the moment its client leaves and the size of its buffer are ours to
//! know. Everything else goes on to hyper with all bytes that were read.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Largest head in bytes. Registry clients send some hundred; a token in a header may take a few thousand.
const MOST_BYTES: usize = 64 * 1024;
/// A head of this size counts for nothing in the sum of the unfinished ones.
const SMALL_BYTES: usize = 4 * 1024;
/// The bytes that all unfinished heads may hold together beyond that.
const MAX_UNFINISHED_BYTES: usize = 32 * 1024 * 1024;
/// Most headers in a head.
const MOST_HEADERS: usize = 100;

/// A first head.
#[derive(Debug)]
pub enum FirstHead {
    /// `CONNECT authority`.
    Connect(Connect),
    /// Any other request; all bytes that were read.
    Other(Bytes),
}

/// The head of a CONNECT.
#[derive(Debug, PartialEq, Eq)]
pub struct Connect {
    /// The target as it was sent.
    pub authority: String,
    /// The value of Proxy-Authorization, if there is one. It is a secret.
    pub proxy_authorization: Option<Bytes>,
    /// The bytes behind the head.
    pub early: Bytes,
}

/// Why there is no head.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// The client ended the connection before the head was complete.
    #[error("the client left before the head of its request was complete")]
    Closed,
    /// Nothing at all was sent in time.
    #[error("the client sent nothing")]
    Silent,
    /// A part of a head was sent, and the rest did not come.
    #[error("the head of the request was not complete within listen.head_timeout ({0:?})")]
    TimedOut(Duration),
    /// Too many large heads are unfinished.
    #[error("too many large heads of requests are unfinished")]
    Crowded,
    /// The client sent no HTTP/1 request.
    #[error("{0}")]
    Malformed(String),
}

/// Reads the first head of a connection.
/// Fails when it does not come in time, or is no HTTP/1 request.
pub async fn read(stream: &TcpStream, within: Duration) -> Result<FirstHead, HeadError> {
    let mut buffer = BytesMut::with_capacity(1024);
    match timeout(within, read_into(stream, &mut buffer)).await {
        Ok(head) => head,
        Err(_) if buffer.is_empty() => Err(HeadError::Silent),
        Err(_) => Err(HeadError::TimedOut(within)),
    }
}

async fn read_into(stream: &TcpStream, buffer: &mut BytesMut) -> Result<FirstHead, HeadError> {
    let mut search = HeadEnd::default();
    let mut share = Share(0);
    loop {
        stream.readable().await.map_err(|_| HeadError::Closed)?;
        match stream.try_read_buf(buffer) {
            Ok(0) => return Err(HeadError::Closed),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return Err(HeadError::Closed),
        }
        if search.is_parse_due(buffer)
            && let Some(parsed) = parse(buffer)?
        {
            return Ok(parsed.take_from(buffer));
        }
        if buffer.len() >= MOST_BYTES {
            return Err(HeadError::Malformed(format!("the head of the request is larger than {MOST_BYTES} bytes")));
        }
        buffer.reserve(1024);
        if !share.grow(buffer.capacity()) {
            return Err(HeadError::Crowded);
        }
    }
}

/// Looks for the end of a head, each byte once: a parser that begins anew with every read takes quadratic time.
#[derive(Default)]
struct HeadEnd {
    searched: usize,
    has_line: bool,
}

impl HeadEnd {
    /// Notes what has come. Whether the parser may find something new: at the first bytes, at the end of the first line,
    /// and at the end of the head.
    fn is_parse_due(&mut self, buffer: &mut BytesMut) -> bool {
        let is_first = self.searched == 0;
        if is_first {
            let blank = buffer.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            buffer.advance(blank);
        }
        let from = self.searched.saturating_sub(2);
        self.searched = buffer.len();
        let ends: Vec<usize> = (from..buffer.len()).filter(|at| buffer[*at] == b'\n').collect();
        let is_first_line = !self.has_line && !ends.is_empty();
        self.has_line |= is_first_line;
        let is_empty_line = |at: &usize| buffer[at + 1..].starts_with(b"\n") || buffer[at + 1..].starts_with(b"\r\n");
        is_first || is_first_line || ends.iter().any(is_empty_line)
    }
}

/// Bytes that all unfinished heads of the process hold beyond the small size that counts for nothing.
static UNFINISHED: AtomicUsize = AtomicUsize::new(0);

/// The bytes that one unfinished head holds of that.
struct Share(usize);

impl Share {
    /// Takes what is missing for a buffer of this size. `false` where there is no room.
    fn grow(&mut self, capacity: usize) -> bool {
        let more = capacity.saturating_sub(SMALL_BYTES).saturating_sub(self.0);
        self.0 += more;
        UNFINISHED.fetch_add(more, Ordering::Relaxed) + more <= MAX_UNFINISHED_BYTES || more == 0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        UNFINISHED.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// A complete head, still in the buffer.
enum Parsed {
    Connect { length: usize, authority: String, proxy_authorization: Option<Bytes> },
    Other,
}

impl Parsed {
    fn take_from(self, buffer: &mut BytesMut) -> FirstHead {
        match self {
            Parsed::Connect { length, authority, proxy_authorization } => {
                // A copy, so that a waiter does not hold the buffer of the head.
                let early = Bytes::copy_from_slice(&buffer[length..]);
                FirstHead::Connect(Connect { authority, proxy_authorization, early })
            }
            Parsed::Other => FirstHead::Other(buffer.split().freeze()),
        }
    }
}

/// The head, if all of it is there.
fn parse(buffer: &[u8]) -> Result<Option<Parsed>, HeadError> {
    refuse_other_protocols(buffer)?;
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let status =
        request.parse(buffer).map_err(|error| HeadError::Malformed(format!("not an HTTP/1 request: {error}")))?;
    let httparse::Status::Complete(length) = status else {
        return Ok(None);
    };
    if request.method != Some("CONNECT") {
        return readable(&request).map(|()| Some(Parsed::Other)).map_err(HeadError::Malformed);
    }
    let authority = request.path.unwrap_or_default().to_owned();
    let mut credentials =
        request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("proxy-authorization"));
    let proxy_authorization = credentials.next().map(|header| Bytes::copy_from_slice(header.value));
    Ok(Some(Parsed::Connect { length, authority, proxy_authorization }))
}

/// Refuses, with a word about it, what hyper would refuse without one.
fn readable(request: &httparse::Request<'_, '_>) -> Result<(), String> {
    let target = request.path.unwrap_or_default();
    hyper::Uri::try_from(target).map_err(|error| format!("the URL cannot be read: {error}"))?;
    let (mut lengths, mut is_chunked) = (HashSet::new(), false);
    for header in request.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        if header.name.eq_ignore_ascii_case("content-length") && value.parse::<u64>().is_err() {
            return Err("the Content-Length is not a number".to_owned());
        }
        if header.name.eq_ignore_ascii_case("content-length") && lengths.insert(value) && lengths.len() > 1 {
            return Err("more than one Content-Length".to_owned());
        }
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") || std::mem::replace(&mut is_chunked, true) {
                return Err("the Transfer-Encoding is not chunked alone".to_owned());
            }
            if request.version == Some(0) {
                return Err("HTTP/1.0 has no Transfer-Encoding".to_owned());
            }
        }
    }
    // hyper drops the length, and would serve what may be an attempt to smuggle (RFC 9112, section 6.3).
    if is_chunked && !lengths.is_empty() {
        return Err("both Transfer-Encoding and Content-Length".to_owned());
    }
    Ok(())
}

/// Clients that were pointed here with the wrong scheme get a word about it instead of a parser's complaint.
fn refuse_other_protocols(buffer: &[u8]) -> Result<(), HeadError> {
    const TLS_HANDSHAKE: u8 = 22;
    const HTTP_2_PREFACE: &[u8] = b"PRI * HTTP/2.0";
    if buffer.first() == Some(&TLS_HANDSHAKE) {
        let hint = "this is TLS, but the proxy speaks plain HTTP: write http:// in HTTPS_PROXY, too";
        return Err(HeadError::Malformed(hint.to_owned()));
    }
    if buffer.starts_with(HTTP_2_PREFACE) {
        return Err(HeadError::Malformed("this is HTTP/2, but the proxy speaks HTTP/1.1".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect_of(head: &[u8]) -> (String, Option<Bytes>) {
        match parse(head).unwrap().unwrap() {
            Parsed::Connect { authority, proxy_authorization, .. } => (authority, proxy_authorization),
            Parsed::Other => panic!("not a CONNECT"),
        }
    }

    #[test]
    fn a_connect_is_taken_apart() {
        let head = b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nproxy-Authorization: Basic eDp5\r\n\r\n";
        assert_eq!(connect_of(head), ("a.test:443".to_owned(), Some(Bytes::from_static(b"Basic eDp5"))));
    }

    #[test]
    fn early_bytes_are_told_from_the_head() {
        let mut buffer = BytesMut::from(&b"CONNECT a:1 HTTP/1.1\r\n\r\n\x16\x03\x01"[..]);
        let parsed = parse(&buffer).unwrap().unwrap();
        let FirstHead::Connect(connect) = parsed.take_from(&mut buffer) else { panic!("not a CONNECT") };
        assert_eq!(connect.early, &b"\x16\x03\x01"[..]);
    }

    #[test]
    fn any_other_request_is_handed_on_whole() {
        let mut buffer = BytesMut::from(&b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\nGET"[..]);
        let all = buffer.clone().freeze();
        let parsed = parse(&buffer).unwrap().unwrap();
        let FirstHead::Other(bytes) = parsed.take_from(&mut buffer) else { panic!("a CONNECT") };
        assert_eq!(bytes, all);
    }

    /// The parser runs a few times, wherever the reads break a head off: 57 KB in single bytes cost next to nothing.
    #[test]
    fn a_head_in_pieces_is_parsed_a_few_times() {
        let head = format!("\r\nGET http://a/ HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(57_000));
        for (head, step) in [(head.clone(), 1), (head.clone(), 2), (head.clone(), 3), (head.replace('\r', ""), 1)] {
            let (mut buffer, mut search, mut parses, mut is_complete) = (BytesMut::new(), HeadEnd::default(), 0, false);
            for piece in head.as_bytes().chunks(step) {
                assert!(!is_complete, "the end came early in steps of {step}");
                buffer.extend_from_slice(piece);
                if search.is_parse_due(&mut buffer) {
                    parses += 1;
                    is_complete = parse(&buffer).unwrap().is_some();
                }
            }
            assert!(is_complete && parses <= 5, "{parses} times in steps of {step}");
        }
    }

    #[test]
    fn large_unfinished_heads_are_bounded_in_sum() {
        const LARGE: usize = 64 * 1024;
        let mut shares = Vec::new();
        for number in 0..=MAX_UNFINISHED_BYTES / LARGE {
            let mut share = Share(0);
            assert_eq!(share.grow(SMALL_BYTES + LARGE), number < MAX_UNFINISHED_BYTES / LARGE);
            shares.push(share);
        }
        assert!(Share(0).grow(SMALL_BYTES), "a small head always fits");
        drop(shares);
        assert!(Share(0).grow(MOST_BYTES));
    }

    #[test]
    fn half_a_head_is_no_head_yet() {
        assert!(parse(b"CONNECT a.test:443 HT").unwrap().is_none());
        assert!(parse(b"").unwrap().is_none());
    }

    #[test]
    fn what_is_no_http_is_refused_with_a_hint() {
        for (bytes, hint) in [
            (&b"\x16\x03\x01\x02\x00"[..], "TLS"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"),
            (b"SSH-2.0-OpenSSH\r\n", "not an HTTP/1 request"),
            (b"CONNECT\r\n\r\n", "not an HTTP/1 request"),
            (b"GET http://[::1/ HTTP/1.1\r\n\r\n", "URL"),
            (b"POST http://a/ HTTP/1.1\r\nContent-Length: x\r\n\r\n", "Content-Length"),
            (b"POST http://a/ HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", "Transfer-Encoding"),
            (b"POST http://a/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.0"),
        ] {
            let Err(HeadError::Malformed(reason)) = parse(bytes).map(|_| ()) else { panic!("{bytes:?} passed") };
            assert!(reason.contains(hint), "{reason}");
        }
    }
}
