//! Asks the admin listener of a running sidecar: one request, one answer, then the connection ends.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// The longest wait for the sidecar.
const TIMEOUT: Duration = Duration::from_secs(5);

/// GETs a path; gives back status and body.
///
/// # Errors
/// When nobody listens there, or what answers is not HTTP.
pub fn get(admin: &str, path: &str) -> io::Result<(u16, String)> {
    ask("GET", admin, path)
}

/// POSTs to a path; gives back status and body.
///
/// # Errors
/// As [`get`].
pub fn post(admin: &str, path: &str) -> io::Result<(u16, String)> {
    ask("POST", admin, path)
}

fn ask(method: &str, admin: &str, path: &str) -> io::Result<(u16, String)> {
    let mut stream = connect(admin.to_socket_addrs()?)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("not an HTTP answer"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(|| io::Error::other("not an HTTP answer"))?, body.to_owned()))
}

/// The first address that answers: a name may stand for several, and the sidecar listens at one of them. When none does,
/// what the last one said.
fn connect(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut failed = io::Error::other("no such address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn each_address_of_a_name_is_tried() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let there = listener.local_addr().unwrap();
        assert_eq!(connect([closed, there].into_iter()).unwrap().peer_addr().unwrap(), there);
        assert!(connect([closed].into_iter()).unwrap_err().to_string().contains(&closed.to_string()));
        assert!(connect([].into_iter()).is_err());
    }
}
