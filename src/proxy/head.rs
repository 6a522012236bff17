//! The head of each request, read and checked before anybody else sees it.
//!
//! A CONNECT never enters hyper: its early bytes, the moment its client leaves and the size of its buffer are ours to
//! know. Any other request goes on to hyper with the place of its end, and the next head of the connection comes here again.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::request_end::{Body, RequestEnd};
use crate::metrics::Reason;
use crate::tcp;

/// Largest head in bytes. Registry clients send some hundred; a token in a header may take a few thousand.
const MOST_BYTES: usize = 64 * 1024;
/// A head of this size counts for nothing in the sum of the unfinished ones.
const SMALL_BYTES: usize = 4 * 1024;
/// The bytes that all unfinished heads may hold together beyond that.
const MAX_UNFINISHED_BYTES: usize = 32 * 1024 * 1024;
/// Most headers in a head.
const MOST_HEADERS: usize = 100;

/// The head of a request.
#[derive(Debug)]
pub enum Head {
    /// `CONNECT authority`.
    Connect(Connect),
    /// Any other request: all bytes that were read, and its end, which may lie before or behind the last of them.
    Other(Bytes, RequestEnd),
}

/// The head of a CONNECT.
#[derive(Debug)]
pub struct Connect {
    /// The target as it was sent.
    pub authority: String,
    /// The value of Proxy-Authorization, if there is one. It is a secret.
    pub proxy_authorization: Option<Bytes>,
    /// The bytes behind the head.
    pub early: Bytes,
}

/// Why there is no head.
#[derive(Debug)]
pub enum HeadError {
    /// The client ended the connection before the head was complete, or sent nothing at all.
    Left,
    /// The client is to be answered so.
    Refused(Reason, String),
}

fn malformed(message: impl Into<String>) -> HeadError {
    HeadError::Refused(Reason::BadRequest, message.into())
}

/// Reads the next head of a connection, of which some bytes may be there. It may begin only after `silence`.
pub async fn read(stream: &TcpStream, unread: Bytes, silence: Duration, within: Duration) -> Result<Head, HeadError> {
    let mut buffer = BytesMut::from(unread);
    if buffer.is_empty() {
        timeout(silence, stream.readable()).await.map_err(|_| HeadError::Left)?.map_err(|_| HeadError::Left)?;
    }
    match timeout(within, read_into(stream, &mut buffer)).await {
        Ok(head) => head,
        Err(_) if buffer.is_empty() => Err(HeadError::Left),
        Err(_) => {
            let message = format!("the head of the request was not complete within listen.head_timeout ({within:?})");
            Err(HeadError::Refused(Reason::HeadTimeout, message))
        }
    }
}

async fn read_into(stream: &TcpStream, buffer: &mut BytesMut) -> Result<Head, HeadError> {
    let mut search = HeadEnd::default();
    let mut share = Share(0);
    loop {
        if search.is_parse_due(buffer)
            && let Some(head) = parse(buffer)?
        {
            return Ok(head);
        }
        if buffer.len() >= MOST_BYTES {
            return Err(malformed(format!("the head of the request is larger than {MOST_BYTES} bytes")));
        }
        buffer.reserve(1024);
        if !share.grow(buffer.capacity()) {
            let message = "too many large heads of requests are unfinished".to_owned();
            return Err(HeadError::Refused(Reason::TooManyClients, message));
        }
        stream.readable().await.map_err(|_| HeadError::Left)?;
        match tcp::try_read_buf(stream, buffer) {
            Ok(0) => return Err(HeadError::Left),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(HeadError::Left),
            _ => {}
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
        if buffer.is_empty() {
            return false;
        }
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

/// Takes the head out of the buffer, with all that was read, if all of it is there.
fn parse(buffer: &mut BytesMut) -> Result<Option<Head>, HeadError> {
    refuse_other_protocols(buffer)?;
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let status = request.parse(buffer).map_err(|error| malformed(format!("not an HTTP/1 request: {error}")))?;
    let httparse::Status::Complete(length) = status else {
        return Ok(None);
    };
    let (body, target) = (body_of(&request).map_err(malformed)?, request.path.unwrap_or_default());
    if request.method != Some("CONNECT") {
        // hyper would refuse it without a word.
        let url =
            hyper::Uri::try_from(target).map_err(|error| malformed(format!("the URL cannot be read: {error}")))?;
        check_host(&request, &url).map_err(malformed)?;
        return Ok(Some(Head::Other(buffer.split().freeze(), RequestEnd::of(length, body))));
    }
    if body != Body::Sized(0) {
        // It has no meaning (RFC 9110, section 9.3.6), and its bytes cannot be told from the tunnel's.
        return Err(malformed("CONNECT with content: send the tunnel's bytes after the 200"));
    }
    let mut credentials = request.headers.iter().filter(|header| is_credentials(header.name.as_bytes()));
    let proxy_authorization = credentials.next().map(|header| Bytes::copy_from_slice(header.value));
    // Copies, so that a waiter does not hold the buffer of the head.
    let (authority, early) = (target.to_owned(), Bytes::copy_from_slice(&buffer[length..]));
    Ok(Some(Head::Connect(Connect { authority, proxy_authorization, early })))
}

/// A copy of this head without the credentials for the proxy, which were read: what waits keeps no secret that the registry does not
/// get.
pub fn without_credentials(head: &[u8]) -> Vec<u8> {
    let is_kept = |line: &&[u8]| !line.split(|byte| *byte == b':').next().is_some_and(is_credentials);
    head.split_inclusive(|byte| *byte == b'\n').filter(is_kept).collect::<Vec<_>>().concat()
}

fn is_credentials(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"proxy-authorization")
}

/// RFC 9112, section 3.2: one Host header, and from HTTP/1.1 on no less. Its value is ignored where the URL names a host.
fn check_host(request: &httparse::Request<'_, '_>, url: &hyper::Uri) -> Result<(), &'static str> {
    let is_host =
        |host: &[u8]| host.is_empty() || (!host.contains(&b'@') && hyper::http::uri::Authority::try_from(host).is_ok());
    let mut hosts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version != Some(0) => Err("an HTTP/1.1 request needs a Host header"),
        (Some(_), Some(_)) => Err("more than one Host header"),
        (Some(host), None) if url.authority().is_none() && !is_host(host.value) => Err("the Host header is no host"),
        _ => Ok(()),
    }
}

/// The body that follows the head (RFC 9112, section 6.3). The only coding that we know is chunked, once, and it excludes a
/// length: anything else might end at another place for the registry than for us.
fn body_of(request: &httparse::Request<'_, '_>) -> Result<Body, String> {
    let (mut length, mut is_chunked) = (None, false);
    for header in request.headers.iter() {
        let value = header.value.trim_ascii();
        if header.name.eq_ignore_ascii_case("content-length") {
            let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let number: Option<u64> = digits.and_then(|digits| digits.parse().ok());
            let number = number.ok_or("the Content-Length is not a number")?;
            if length.replace(number).is_some_and(|other| other != number) {
                return Err("more than one Content-Length".to_owned());
            }
        }
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case(b"chunked") || std::mem::replace(&mut is_chunked, true) {
                return Err("the Transfer-Encoding is not chunked alone".to_owned());
            }
            if request.version == Some(0) {
                return Err("HTTP/1.0 has no Transfer-Encoding".to_owned());
            }
        }
    }
    match (length, is_chunked) {
        (Some(_), true) => Err("both Transfer-Encoding and Content-Length".to_owned()),
        (length, false) => Ok(Body::Sized(length.unwrap_or(0))),
        (None, true) => Ok(Body::Chunked),
    }
}

/// Clients that were pointed here with the wrong scheme get a word about it instead of a parser's complaint.
fn refuse_other_protocols(buffer: &[u8]) -> Result<(), HeadError> {
    const TLS_HANDSHAKE: u8 = 22;
    const HTTP_2_PREFACE: &[u8] = b"PRI * HTTP/2.0";
    if buffer.first() == Some(&TLS_HANDSHAKE) {
        let hint = "this is TLS, but the proxy speaks plain HTTP: write http:// in HTTPS_PROXY, too";
        return Err(malformed(hint));
    }
    if buffer.starts_with(HTTP_2_PREFACE) {
        return Err(malformed("this is HTTP/2, but the proxy speaks HTTP/1.1"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect_of(head: &[u8]) -> Connect {
        match parse(&mut BytesMut::from(head)).unwrap().unwrap() {
            Head::Connect(connect) => connect,
            Head::Other(..) => panic!("not a CONNECT"),
        }
    }

    #[test]
    fn a_connect_is_taken_apart() {
        let head = b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nproxy-Authorization: Basic eDp5\r\n\r\n";
        let connect = connect_of(head);
        let expected = ("a.test:443".to_owned(), Some(Bytes::from_static(b"Basic eDp5")));
        assert_eq!((connect.authority, connect.proxy_authorization), expected);
    }

    #[test]
    fn early_bytes_are_told_from_the_head() {
        assert_eq!(connect_of(b"CONNECT a:1 HTTP/1.1\r\n\r\n\x16\x03\x01").early, &b"\x16\x03\x01"[..]);
    }

    #[test]
    fn any_other_request_is_handed_on_whole() {
        let all = &b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\nGET"[..];
        let parsed = parse(&mut BytesMut::from(all)).unwrap().unwrap();
        let Head::Other(bytes, mut end) = parsed else { panic!("a CONNECT") };
        assert_eq!((end.follow(&bytes), bytes), (all.len() - 3, Bytes::from_static(all)));
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
                    is_complete = parse(&mut buffer).unwrap().is_some();
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
    fn a_request_of_1_1_has_one_host() {
        for (version, hosts, fine) in [
            ("1.1", &[][..], false),
            ("1.0", &[], true),
            ("1.1", &["a.test"], true),
            ("1.1", &["a.test:80"], true),
            ("1.1", &["[::1]:80"], true),
            ("1.1", &[""], true),
            ("1.1", &["a.test", "a.test"], false),
            ("1.0", &["a.test", "b.test"], false),
            ("1.1", &["a.test b.test"], false),
            ("1.1", &["a.test/path"], false),
            ("1.1", &["user@a.test"], false),
        ] {
            let hosts: Vec<String> = hosts.iter().map(|host| format!("Host: {host}\r\n")).collect();
            let head = format!("GET / HTTP/{version}\r\n{}\r\n", hosts.concat());
            assert_eq!(parse(&mut BytesMut::from(head.as_str())).is_ok(), fine, "{head:?}");
        }
    }

    #[test]
    fn half_a_head_is_no_head_yet() {
        assert!(parse(&mut BytesMut::from("CONNECT a.test:443 HT")).unwrap().is_none());
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
            let parsed = parse(&mut BytesMut::from(bytes));
            let Err(HeadError::Refused(Reason::BadRequest, reason)) = parsed else { panic!("{bytes:?} passed") };
            assert!(reason.contains(hint), "{reason}");
        }
    }
}
