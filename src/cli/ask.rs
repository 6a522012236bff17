//! Asks the admin listener of a running sidecar: one request, one answer, then the connection ends.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// The longest wait for the sidecar.
const TIMEOUT: Duration = Duration::from_secs(5);

/// POSTs to a path; gives back status and body.
///
/// # Errors
/// When nobody listens there, or what answers is not HTTP.
pub fn post(admin: &str, path: &str) -> io::Result<(u16, String)> {
    let mut addresses = admin.to_socket_addrs()?;
    let address = addresses.next().ok_or_else(|| io::Error::other("no such address"))?;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "POST {path} HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("not an HTTP answer"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(|| io::Error::other("not an HTTP answer"))?, body.to_owned()))
}
