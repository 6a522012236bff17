//! Asks a running sidecar on its admin listener or control socket: one request, one answer, then the connection ends.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::target::{BadTarget, Target};

/// The longest wait for the sidecar.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Fails, with the address, when there is no listener, or its answer is not HTTP.
pub fn get(admin: &str, path: &str) -> Result<(u16, String), String> {
    ask("GET", admin, path, None)
}

/// A page of JSON, and its text.
/// Fails, with the address, when there is no such answer.
pub fn picture(admin: &str, path: &str) -> Result<(Value, String), String> {
    let (status, body) = get(admin, path)?;
    if status != 200 {
        return Err(format!("{admin} answered {status}: {}", body.trim()));
    }
    let parsed = serde_json::from_str(&body).map_err(|error| format!("{admin}: no {path} of a sidecar: {error}"))?;
    Ok((parsed, body))
}

/// Sends an order, with the token that allows it.
pub fn post(admin: &str, path: &str, token: Option<&str>) -> Result<(u16, String), String> {
    ask("POST", admin, path, token)
}

/// Asks, or sends an order, on this socket.
pub fn on(socket: &Path, method: &str, path: &str) -> Result<(u16, String), String> {
    let told = |error| format!("{}: {error}", socket.display());
    let stream = UnixStream::connect(socket).map_err(told)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(told)?;
    exchange(stream, "localhost", method, path, "").map_err(told)
}

/// The `/status` of the sidecar with this control socket, or with this admin listener; `None` where nothing listens at either.
/// Fails when what listens there does not tell.
pub fn status(socket: &Path, admin: SocketAddr) -> Result<Option<Value>, String> {
    let told = match on(socket, "GET", "/status") {
        // The admin listener tells everybody what the socket tells its owner.
        Ok((200, body)) => serde_json::from_str(&body).map_err(|error| error.to_string()),
        _ => picture(&admin.to_string(), "/status").map(|(status, _)| status),
    };
    let is_nobody =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
    let is_off = UnixStream::connect(socket).is_err_and(|error| is_nobody(&error));
    match told {
        Err(_) if is_off && TcpStream::connect_timeout(&admin, TIMEOUT).is_err_and(|error| is_nobody(&error)) => {
            Ok(None)
        }
        told => told.map(Some),
    }
}

/// The `host:port` in an address that the operator gave: a URL, or `host:port` alone.
pub fn authority(named: &str) -> Result<&str, String> {
    let wrong = |what: &str| Err(format!("--admin {named}: {what}"));
    let rest = match named.split_once("://") {
        None => named,
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
        Some((scheme, _)) => return wrong(&format!("the admin listener speaks plain HTTP, not {scheme}")),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    match Target::from_connect(authority) {
        Ok(_) => Ok(authority),
        Err(BadTarget::MissingPort) => wrong("the port is missing: 127.0.0.1:4129, for instance"),
        Err(BadTarget::NotAuthority) => wrong("host and port are all it takes: no path, no query"),
        Err(error) => wrong(&error.to_string()),
    }
}

fn ask(method: &str, admin: &str, path: &str, token: Option<&str>) -> Result<(u16, String), String> {
    let told = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock => format!("{admin}: no answer within {} s", TIMEOUT.as_secs()),
        _ => format!("{admin}: {error}"),
    };
    let stream = connect(admin, admin.to_socket_addrs().map_err(told)?)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(told)?;
    // By its address, whatever it was called: on loopback, a name of the world is not answered.
    let peer = stream.peer_addr().map_err(told)?;
    let host = SocketAddr::new(peer.ip(), peer.port()).to_string();
    let token = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    exchange(stream, &host, method, path, &token).map_err(told)
}

fn exchange(mut io: impl Read + Write, host: &str, method: &str, path: &str, more: &str) -> io::Result<(u16, String)> {
    let fixed = "Content-Length: 0\r\nConnection: close\r\n";
    // In one piece: the other end may refuse and close before a second one.
    io.write_all(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}{fixed}\r\n").as_bytes())?;
    let mut answer = String::new();
    io.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("not an HTTP answer"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(|| io::Error::other("not an HTTP answer"))?, body.to_owned()))
}

/// The first address that answers: a name may stand for several, and the sidecar listens at one of them. When none does,
/// the error of the last one.
fn connect(admin: &str, addresses: impl Iterator<Item = SocketAddr>) -> Result<TcpStream, String> {
    let mut failed = format!("{admin}: no such address");
    for address in addresses {
        let place = if address.to_string() == admin { String::new() } else { format!("{address}: ") };
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = format!("{admin}: {place}{error}"),
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
        let name = "localhost:1";
        assert_eq!(connect(name, [closed, there].into_iter()).unwrap().peer_addr().unwrap(), there);
        let failed = connect(name, [closed].into_iter()).unwrap_err();
        assert!(failed.starts_with(&format!("localhost:1: {closed}: ")), "{failed}");
        let failed = connect(&closed.to_string(), [closed].into_iter()).unwrap_err();
        assert_eq!(failed.matches(&closed.to_string()).count(), 1, "{failed}");
        assert!(connect(name, [].into_iter()).is_err());
    }

    #[test]
    fn an_address_is_taken_as_url_or_alone_and_what_else_is_wrong_is_told() {
        for (named, taken) in [
            ("127.0.0.1:4129", "127.0.0.1:4129"),
            ("http://127.0.0.1:4129", "127.0.0.1:4129"),
            ("HTTP://node7.example.com:4129/", "node7.example.com:4129"),
            ("http://[::1]:4129/", "[::1]:4129"),
        ] {
            assert_eq!(authority(named), Ok(taken));
        }
        for (named, told) in [
            ("https://127.0.0.1:4129", "plain HTTP, not https"),
            ("unix://run/roadstead", "plain HTTP, not unix"),
            ("127.0.0.1", "the port is missing"),
            ("http://localhost/", "the port is missing"),
            ("[::1]", "the port is missing"),
            ("127.0.0.1:0", "1 to 65535"),
            ("127.0.0.1:99999", "1 to 65535"),
            ("http://127.0.0.1:4129/status", "no path"),
            ("127.0.0.1:4129?a", "no path"),
            (":4129", "host is missing"),
            ("::1:4129", "brackets"),
            ("a b:4129", "letters"),
            ("user@127.0.0.1:4129", "user name"),
            ("", "missing"),
        ] {
            let error = authority(named).unwrap_err();
            assert!(error.starts_with(&format!("--admin {named}: ")) && error.contains(told), "{error}");
        }
    }
}
