//! One HTTP request on a connection of its own, of which the head of the answer is read.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::proxy::rewrite::realms;
use crate::target::Origin;

/// The longest wait for one answer. It is longer than any wait in the sidecar's queue that pullers would accept.
pub const PATIENCE: Duration = Duration::from_secs(60);
const MAX_HEAD: usize = 64 * 1024;

/// The head of an answer, and as much of its body as came with it.
#[derive(Debug)]
pub struct DoctorAnswer {
    pub status: u16,
    pub reason: String,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl DoctorAnswer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The URL where tokens are made, if the answer names one.
    pub fn realm(&self) -> Option<&str> {
        let challenge = self.header("www-authenticate")?;
        let mut realms = realms(challenge.as_bytes()).into_iter().filter_map(|at| challenge.get(at));
        realms.find(|realm| realm.contains("://"))
    }
}

/// Sends one request and reads the answer until the connection ends, or enough came.
/// Fails when there is no answer in time, or it is not HTTP.
pub async fn ask<S>(mut stream: S, method: &str, target: &str, host: &str) -> io::Result<DoctorAnswer>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: roadstead-doctor\r\nConnection: close\r\n\r\n"
    );
    let exchange = async {
        stream.write_all(head.as_bytes()).await?;
        let mut bytes = Vec::new();
        loop {
            let is_over = bytes.len() >= MAX_HEAD
                || stream.read_buf(&mut bytes).await.or_else(|error| {
                    // Some servers end TLS without a word.
                    if error.kind() == io::ErrorKind::UnexpectedEof { Ok(0) } else { Err(error) }
                })? == 0;
            if let Some(answer) = parse(&bytes, is_over || method == "CONNECT") {
                return Ok(answer);
            }
            if is_over {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP/1.1"));
            }
        }
    };
    timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The same on a new connection without TLS.
pub async fn ask_at(address: SocketAddr, method: &str, target: &str, host: &str) -> io::Result<DoctorAnswer> {
    let stream = timeout(PATIENCE, TcpStream::connect(address)).await;
    ask(stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?, method, target, host).await
}

/// The answer, once its head and the body that it announces are there, or nothing more comes.
fn parse(bytes: &[u8], is_over: bool) -> Option<DoctorAnswer> {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut head = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(length)) = head.parse(bytes) else { return None };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = head.headers.iter().map(|header| (header.name.to_owned(), text(header.value))).collect();
    let (status, reason) = (head.code?, head.reason.unwrap_or_default().to_owned());
    let answer = DoctorAnswer { status, reason, headers, body: text(&bytes[length..]) };
    let announced = answer.header("content-length").and_then(|length| length.parse::<usize>().ok());
    (is_over || announced.is_some_and(|announced| bytes.len() - length >= announced)).then_some(answer)
}

/// Whether this is how a registry answers `/v2/`.
pub fn is_registry(answer: &DoctorAnswer) -> bool {
    let is_challenge = answer.status == 401 && answer.header("www-authenticate").is_some();
    is_challenge || answer.status == 200 && answer.header("docker-distribution-api-version").is_some()
}

/// The origin of a URL with a path.
pub fn origin_of(url: &str) -> Option<Origin> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    Origin::parse(&format!("{scheme}://{authority}")).ok()
}
