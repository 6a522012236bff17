//! Keeps pages of other sites in a browser on this node away from the admin listener.
//!
//! Such a page can let a name of its own lead to a loopback address, and would read what it likes; and it can send a
//! POST anywhere without asking. Both show their origin: the first by `Host`, the second by `Origin`. On an address that is not
//! loopback, every client may read, under any name. A POST needs a name there, too, that no other site can own.

use hyper::header::{HOST, HeaderValue, ORIGIN};
use hyper::{Method, Request};

use crate::target::Target;

/// The reason to refuse this request, if there is one; with `loopback`, the listener is for this node alone.
pub fn objection<B>(request: &Request<B>, loopback: bool) -> Option<&'static str> {
    let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let hosts = request.headers().get_all(HOST).iter().map(HeaderValue::as_bytes);
    let called: Vec<&[u8]> = hosts.chain(authority).collect();
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    if (loopback || !reads) && !called.iter().all(|host| is_local(host)) {
        return Some("not by this name: ask for an address, localhost, or a name without a dot\n");
    }
    let mut origins = request.headers().get_all(ORIGIN).iter();
    if !reads && !origins.all(|origin| called.iter().any(|host| is_of(origin.as_bytes(), host))) {
        return Some("a page of another origin may not do this\n");
    }
    None
}

fn is_local(host: &[u8]) -> bool {
    let host = std::str::from_utf8(host).ok();
    host.and_then(|host| Target::from_authority(host, 80).ok()).is_some_and(|target| target.host().is_local())
}

/// Whether an origin, `http://host:port`, is that of a page from this host.
fn is_of(origin: &[u8], host: &[u8]) -> bool {
    let authority = ["http://", "https://"].iter().find_map(|scheme| origin.strip_prefix(scheme.as_bytes()));
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(method: Method, host: &str, origin: Option<&str>, loopback: bool) -> bool {
        let mut request = Request::builder().method(method).uri("/status").header(HOST, host);
        if let Some(origin) = origin {
            request = request.header(ORIGIN, origin);
        }
        objection(&request.body(()).unwrap(), loopback).is_some()
    }

    #[test]
    fn a_name_of_the_world_may_read_where_it_is_not_loopback_and_act_nowhere() {
        for host in ["127.0.0.1:4129", "[::1]:4129", "localhost:4129", "LocalHost", "node7", "10.0.0.1", "a.localhost"]
        {
            assert!(!refused(Method::GET, host, None, true), "{host}");
        }
        for host in ["evil.example.com", "evil.example.com:4129", "127.0.0.1.nip.example", "127.0.0.1@evil.com", ""] {
            assert!(refused(Method::GET, host, None, true), "{host}");
        }
        let (world, own) = ("node7.example.com:4129", Some("http://node7.example.com:4129"));
        assert!(!refused(Method::GET, world, None, false));
        for origin in [None, own] {
            assert!(refused(Method::POST, world, origin, false), "{origin:?}");
        }
        for host in ["10.0.0.7:4129", "[fd00::7]:4129", "node7:4129", "localhost:4129"] {
            assert!(!refused(Method::POST, host, Some(&format!("http://{host}")), false), "{host}");
        }
    }

    #[test]
    fn every_name_of_a_request_counts() {
        let two = Request::builder().uri("/").header(HOST, "127.0.0.1").header(HOST, "evil.example.com");
        assert!(objection(&two.body(()).unwrap(), true).is_some());
        let absolute = Request::builder().uri("http://evil.example.com/").header(HOST, "127.0.0.1");
        assert!(objection(&absolute.body(()).unwrap(), true).is_some());
        assert!(objection(&Request::new(()), true).is_none(), "no browser, no name");
    }

    #[test]
    fn a_page_of_another_origin_may_not_post() {
        let host = "127.0.0.1:4129";
        for loopback in [true, false] {
            for origin in ["http://127.0.0.1:4129", "https://127.0.0.1:4129"] {
                assert!(!refused(Method::POST, host, Some(origin), loopback), "{origin}");
            }
            for origin in ["http://evil.example.com", "http://127.0.0.1:8080", "http://127.0.0.1", "null", ""] {
                assert!(refused(Method::POST, host, Some(origin), loopback), "{origin}");
                assert!(!refused(Method::GET, host, Some(origin), loopback), "{origin}: cannot read the answer");
            }
            assert!(!refused(Method::POST, host, None, loopback), "curl and the command line name no origin");
        }
    }
}
