//! Keeps pages of other sites in a browser on this node away from the admin listener.
//!
//! Such a page can let a name of its own lead to a loopback address, and would read what it likes. `Host` shows it. On an
//! address that is not loopback, every client may read, under any name. A POST needs the token of `control` anywhere.

use hyper::Request;
use hyper::header::{HOST, HeaderValue};

use crate::target::Target;

/// The reason to refuse this request, if there is one; with `loopback`, the listener is for this node alone.
pub fn objection<B>(request: &Request<B>, loopback: bool) -> Option<&'static str> {
    let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let hosts = request.headers().get_all(HOST).iter().map(HeaderValue::as_bytes);
    let called: Vec<&[u8]> = hosts.chain(authority).collect();
    let is_foreign = loopback && !called.iter().all(|host| is_local(host));
    is_foreign.then_some("not by this name: ask for an address, localhost, or a name without a dot\n")
}

fn is_local(host: &[u8]) -> bool {
    let host = std::str::from_utf8(host).ok();
    host.and_then(|host| Target::from_authority(host, 80).ok()).is_some_and(|target| target.host().is_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(host: &str, loopback: bool) -> bool {
        let request = Request::builder().uri("/status").header(HOST, host);
        objection(&request.body(()).unwrap(), loopback).is_some()
    }

    #[test]
    fn a_name_of_the_world_may_read_only_where_it_is_not_loopback() {
        for host in ["127.0.0.1:4129", "[::1]:4129", "localhost:4129", "LocalHost", "node7", "10.0.0.1", "a.localhost"]
        {
            assert!(!refused(host, true), "{host}");
        }
        for host in ["evil.example.com", "evil.example.com:4129", "127.0.0.1.nip.example", "127.0.0.1@evil.com", ""] {
            assert!(refused(host, true), "{host}");
            assert!(!refused(host, false), "{host}");
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
}
