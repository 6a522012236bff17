//! The checks of a request before it goes anywhere, and the requests that end at this hop.
//!
//! Pure: a request's head goes in; a refusal, an answer of our own, or nothing comes out. Called by `forward`.

use std::fmt::Write;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ALLOW, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderValue, MAX_FORWARDS,
    PROXY_AUTHORIZATION, TRANSFER_ENCODING,
};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, Version};

/// Headers that an echo of the request leaves out (RFC 9110, section 9.3.8).
const SECRETS: [hyper::header::HeaderName; 3] = [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE];

/// Why a request is malformed, if it is.
///
/// # Errors
/// With what to tell the client.
pub fn check<B>(request: &Request<B>) -> Result<(), String> {
    check_host(request)?;
    check_framing(request.headers())
}

/// RFC 9112, section 3.2: one Host header, and from HTTP/1.1 on no less. Its value is ignored where the URL names a host.
fn check_host<B>(request: &Request<B>) -> Result<(), String> {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() >= Version::HTTP_11 => Err("an HTTP/1.1 request needs a Host header".to_owned()),
        (Some(_), Some(_)) => Err("more than one Host header".to_owned()),
        (Some(host), None) if request.uri().authority().is_none() && !is_host(host.as_bytes()) => {
            Err("the Host header is no host".to_owned())
        }
        _ => Ok(()),
    }
}

fn is_host(host: &[u8]) -> bool {
    host.is_empty() || (!host.contains(&b'@') && Authority::try_from(host).is_ok())
}

/// RFC 9112, section 6.1: the only coding that we know is chunked, once, and it excludes a length. Anything else might end
/// at another place for the registry than for us.
fn check_framing(headers: &HeaderMap) -> Result<(), String> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    if codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
        return Err("the Transfer-Encoding is not chunked alone".to_owned());
    }
    if headers.contains_key(CONTENT_LENGTH) {
        return Err("both Transfer-Encoding and Content-Length".to_owned());
    }
    Ok(())
}

/// The answer to a request that ends here: `OPTIONS *`, or one whose Max-Forwards is used up (RFC 9110, section 7.6.2). Any
/// other has one forward less afterwards.
pub fn own_answer<B>(request: &mut Request<B>) -> Option<Response<Full<Bytes>>> {
    let is_options = request.method() == Method::OPTIONS;
    if !is_options && request.method() != Method::TRACE {
        return None;
    }
    let forwards =
        request.headers().get(MAX_FORWARDS).and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
    let ends_here = forwards == Some(0) || (is_options && request.uri().path() == "*");
    if !ends_here {
        if let Some(forwards) = forwards {
            request.headers_mut().insert(MAX_FORWARDS, HeaderValue::from(forwards - 1));
        }
        return None;
    }
    let mut response = Response::new(Full::default());
    if is_options {
        let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE, CONNECT");
        response.headers_mut().insert(ALLOW, methods);
    } else {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("message/http"));
        *response.body_mut() = Full::from(echo(request));
    }
    Some(response)
}

fn echo<B>(request: &Request<B>) -> Vec<u8> {
    let mut line = String::new();
    let _ = write!(line, "{} {} {:?}\r\n", request.method(), request.uri(), request.version());
    let mut echo = line.into_bytes();
    for (name, value) in request.headers().iter().filter(|(name, _)| !SECRETS.contains(name)) {
        echo.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    echo.extend_from_slice(b"\r\n");
    echo
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let builder = Request::builder().method(method).uri(uri);
        headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value)).body(()).unwrap()
    }

    #[test]
    fn a_request_of_1_1_has_one_host() {
        for (version, hosts, fine) in [
            (Version::HTTP_11, &[][..], false),
            (Version::HTTP_10, &[], true),
            (Version::HTTP_11, &["a.test"], true),
            (Version::HTTP_11, &["a.test:80"], true),
            (Version::HTTP_11, &["[::1]:80"], true),
            (Version::HTTP_11, &[""], true),
            (Version::HTTP_11, &["a.test", "a.test"], false),
            (Version::HTTP_10, &["a.test", "b.test"], false),
            (Version::HTTP_11, &["a.test b.test"], false),
            (Version::HTTP_11, &["a.test/path"], false),
            (Version::HTTP_11, &["user@a.test"], false),
        ] {
            let headers: Vec<(&str, &str)> = hosts.iter().map(|host| ("host", *host)).collect();
            let mut request = request("GET", "/", &headers);
            *request.version_mut() = version;
            assert_eq!(check(&request).is_ok(), fine, "{version:?} {hosts:?}");
        }
    }

    #[test]
    fn chunked_alone_is_a_coding_that_can_be_trusted() {
        for (headers, fine) in [
            (&[("transfer-encoding", "chunked")][..], true),
            (&[("transfer-encoding", "Chunked")], true),
            (&[("transfer-encoding", "chunked, chunked")], false),
            (&[("transfer-encoding", "gzip, chunked")], false),
            (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], false),
            (&[("transfer-encoding", "identity"), ("transfer-encoding", "chunked")], false),
            (&[("transfer-encoding", "chunked;q=1")], false),
            (&[("transfer-encoding", "chunked"), ("content-length", "3")], false),
            (&[("content-length", "3")], true),
        ] {
            let headers: Vec<_> = [("host", "a.test")].iter().chain(headers).copied().collect();
            assert_eq!(check(&request("POST", "/", &headers)).is_ok(), fine, "{headers:?}");
        }
    }

    #[test]
    fn the_last_hop_answers_and_the_others_count_down() {
        for (method, uri, forwards, is_own, left) in [
            ("OPTIONS", "*", None, true, None),
            ("OPTIONS", "*", Some("5"), true, Some("5")),
            ("OPTIONS", "http://a.test/", None, false, None),
            ("OPTIONS", "http://a.test/", Some("0"), true, Some("0")),
            ("OPTIONS", "http://a.test/", Some("7"), false, Some("6")),
            ("OPTIONS", "http://a.test/", Some("many"), false, Some("many")),
            ("TRACE", "http://a.test/", Some("0"), true, Some("0")),
            ("TRACE", "http://a.test/", Some("1"), false, Some("0")),
            ("GET", "http://a.test/", Some("0"), false, Some("0")),
        ] {
            let headers: Vec<(&str, &str)> = forwards.iter().map(|forwards| ("max-forwards", *forwards)).collect();
            let mut request = request(method, uri, &headers);
            assert_eq!(own_answer(&mut request).is_some(), is_own, "{method} {uri} {forwards:?}");
            assert_eq!(request.headers().get(MAX_FORWARDS).map(|value| value.to_str().unwrap()), left);
        }
    }

    #[test]
    fn an_echo_holds_no_secrets() {
        let request = request("TRACE", "http://a.test/x", &[("host", "a.test"), ("authorization", "t"), ("x", "1")]);
        assert_eq!(echo(&request), b"TRACE http://a.test/x HTTP/1.1\r\nhost: a.test\r\nx: 1\r\n\r\n");
    }
}
