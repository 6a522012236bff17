//! A raw HTTP/1.1 client for tests: it sends the bytes it is given and shows the bytes that came.
//!
//! It follows nothing, retries nothing and adds no header but `Host`. The stub registry reads its requests with the
//! same [`Wire`], so both ends of a test understand lengths and chunks alike.

mod body;
mod head;

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

pub use body::{Body, Framing};
pub use head::Head;

/// Room made for each read.
const READ: usize = 64 * 1024;
/// A head longer than this is a mistake of the test.
const LONGEST_HEAD: usize = 256 * 1024;

/// A kept-open connection with the bytes that were read early.
#[derive(Debug)]
pub struct Wire<S = TcpStream> {
    stream: S,
    early: BytesMut,
}

/// An answer, read whole.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status line and the headers.
    pub head: Head,
    /// The content, with lengths and chunks taken away.
    pub body: Bytes,
}

impl Response {
    /// The status code.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    /// The words behind the status code.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.head.reason()
    }

    /// The value of the first header of this name, in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The body as text; what is not UTF-8 shows as a replacement mark.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON: {error}\n{}", self.text()))
    }
}

impl Wire {
    /// Connects to `address`.
    ///
    /// # Errors
    /// Those of `connect()`.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self::new(stream))
    }

    /// Cuts the connection with a reset instead of an orderly end.
    pub fn reset(self) {
        // A connection that is over already cannot be reset any more.
        let _ = self.stream.set_zero_linger();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Speaks over a connection that stands already, TLS for instance.
    pub fn new(stream: S) -> Self {
        Self { stream, early: BytesMut::new() }
    }

    /// The connection below.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// The connection below and what was read of it but not used.
    #[must_use]
    pub fn into_parts(self) -> (S, Bytes) {
        (self.stream, self.early.freeze())
    }

    /// Sends these bytes as they are.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Ends our direction; theirs stays open.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// Takes what has come, or waits for more; empty means that the other end has finished.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn receive(&mut self) -> io::Result<Bytes> {
        if self.early.is_empty() {
            self.read_more().await?;
        }
        Ok(self.early.split().freeze())
    }

    /// Reads into the early bytes; `false` is the end. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn read_more(&mut self) -> io::Result<bool> {
        self.early.reserve(READ);
        Ok(self.stream.read_buf(&mut self.early).await? > 0)
    }

    /// Reads one head; `None` when the other end finished before its first byte.
    ///
    /// # Errors
    /// Those of the connection, an end in the middle of a head, and a head that is none.
    pub async fn read_head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(length) = head::length(&self.early) {
                let bytes = self.early.split_to(length);
                return Head::parse(&bytes).map(Some);
            }
            if self.early.len() > LONGEST_HEAD {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a head without an end"));
            }
            if !self.read_more().await? {
                return if self.early.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Reads the next head that is an answer, passing over `100 Continue` and its kind.
    ///
    /// # Errors
    /// As [`Wire::read_head`]; an end in place of an answer is an error, too.
    pub async fn read_answer(&mut self) -> io::Result<Head> {
        loop {
            let Some(head) = self.read_head().await? else {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended before an answer"));
            };
            if !(100..200).contains(&head.status()) {
                return Ok(head);
            }
        }
    }

    /// The body that follows, piece by piece.
    pub fn body(&mut self, framing: Framing) -> Body<'_, S> {
        Body::new(self, framing)
    }

    /// Sends a request without a body and reads the answer whole. `target` stands in the request line as it is, and
    /// names the `Host` where it is a URL; `headers` are full lines without their line ends.
    ///
    /// # Errors
    /// Those of the connection, and of an answer that is cut short.
    pub async fn ask(&mut self, method: &str, target: &str, headers: &[&str]) -> io::Result<Response> {
        self.send(request(method, target, headers).as_bytes()).await?;
        let head = self.read_answer().await?;
        let framing = Framing::of_answer(&head, method);
        let body = self.body(framing).collect().await?;
        Ok(Response { head, body })
    }

    /// As [`Wire::ask`] with GET.
    ///
    /// # Errors
    /// As [`Wire::ask`].
    pub async fn get(&mut self, target: &str, headers: &[&str]) -> io::Result<Response> {
        self.ask("GET", target, headers).await
    }

    /// Asks for a tunnel. After a 2xx answer this connection is the tunnel; the body of any other is read.
    ///
    /// # Errors
    /// As [`Wire::ask`].
    pub async fn connect(&mut self, authority: &str, headers: &[&str]) -> io::Result<Response> {
        self.ask("CONNECT", authority, headers).await
    }
}

/// Opens a tunnel through `proxy`; the error is the proxy's own answer.
///
/// # Errors
/// The answer of a proxy that refused.
///
/// # Panics
/// When the proxy cannot be reached, or does not answer.
pub async fn connect_through(proxy: SocketAddr, authority: &str, headers: &[&str]) -> Result<Wire, Response> {
    let mut wire = Wire::open(proxy).await.expect("the proxy accepts");
    let answer = wire.connect(authority, headers).await.expect("the proxy answers CONNECT");
    if answer.status() == 200 { Ok(wire) } else { Err(answer) }
}

/// Gets `url` through `proxy` in absolute-form, on a connection of its own.
///
/// # Panics
/// When the proxy cannot be reached, or does not answer.
pub async fn get_through(proxy: SocketAddr, url: &str, headers: &[&str]) -> Response {
    let mut wire = Wire::open(proxy).await.expect("the proxy accepts");
    wire.get(url, headers).await.expect("the proxy answers GET")
}

/// The text of a request head. A `Host` among `headers` replaces the one that `target` names.
#[must_use]
pub fn request(method: &str, target: &str, headers: &[&str]) -> String {
    let mut text = format!("{method} {target} HTTP/1.1\r\n");
    if !headers.iter().any(|line| line.to_ascii_lowercase().starts_with("host:")) {
        let authority = target.split_once("://").map_or(target, |(_, rest)| rest);
        let host = authority.split('/').next().filter(|host| !host.is_empty()).unwrap_or("localhost");
        text.extend(["Host: ", host, "\r\n"]);
    }
    for line in headers {
        text.extend([*line, "\r\n"]);
    }
    text.push_str("\r\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_the_host_of_its_target_unless_told_otherwise() {
        assert!(request("GET", "http://a:1/x", &[]).contains("\r\nHost: a:1\r\n"));
        assert!(request("CONNECT", "[::1]:443", &[]).contains("\r\nHost: [::1]:443\r\n"));
        assert!(request("GET", "/v2/", &[]).contains("\r\nHost: localhost\r\n"));
        let own = request("GET", "http://a:1/x", &["host: b"]);
        assert_eq!(own, "GET http://a:1/x HTTP/1.1\r\nhost: b\r\n\r\n");
    }

    #[tokio::test]
    async fn answers_on_a_kept_connection_do_not_run_into_each_other() {
        let (ours, theirs) = tokio::io::duplex(1024);
        let mut registry = Wire::new(theirs);
        registry
            .send(
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
                HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
            )
            .await
            .unwrap();
        let mut wire = Wire::new(ours);
        let first = wire.get("/first", &[]).await.unwrap();
        let second = wire.get("/second", &[]).await.unwrap();
        assert_eq!((first.status(), first.text()), (200, "abc".into()));
        assert_eq!((second.status(), second.reason(), second.text()), (404, "Not Found", "no".into()));
    }
}
