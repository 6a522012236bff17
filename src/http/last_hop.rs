//! The requests that end at this hop.
//!
//! Pure: a request's head goes in; an answer of our own, or nothing comes out. Called by `forward`.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ALLOW, AUTHORIZATION, CONTENT_TYPE, COOKIE, HeaderMap, HeaderValue, MAX_FORWARDS, PROXY_AUTHORIZATION,
};
use hyper::{Method, Request, Response};

/// Headers that an echo of the request leaves out (RFC 9110, section 9.3.8).
const SECRETS: [hyper::header::HeaderName; 3] = [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE];

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
    let line = format!("{} {} {:?}", request.method(), request.uri(), request.version());
    let mut headers = request.headers().clone();
    for name in SECRETS {
        headers.remove(name);
    }
    head_bytes(&line, &headers)
}

/// A head on the wire.
pub fn head_bytes(line: &str, headers: &HeaderMap) -> Vec<u8> {
    let mut head = [line.as_bytes(), b"\r\n"].concat();
    for (name, value) in headers {
        head.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    head.extend_from_slice(b"\r\n");
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let builder = Request::builder().method(method).uri(uri);
        headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value)).body(()).unwrap()
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
