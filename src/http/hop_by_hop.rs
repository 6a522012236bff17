//! Headers that concern one hop only (RFC 9110, section 7.6.1) and what they say about the connection.

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING,
    UPGRADE,
};

use crate::upstream::http::tokens;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Takes away what a request says to this hop alone.
pub fn strip_request(headers: &mut HeaderMap) {
    let takes_trailers = tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case(b"trailers"));
    strip(headers);
    headers.remove(PROXY_AUTHORIZATION);
    headers.remove(TE);
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
}

/// Takes away what an answer says to this hop alone.
pub fn strip_response(headers: &mut HeaderMap) {
    strip(headers);
    // RFC 9112, section 6.3: where both are given, the length is wrong.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    // Several are equal by now. hyper writes an answer to HEAD with one only.
    if let Some(length) = headers.get_all(CONTENT_LENGTH).iter().nth(1).cloned() {
        headers.insert(CONTENT_LENGTH, length);
    }
}

/// Transfer-Encoding is of one hop, too, but hyper frames the body by it and keeps it true: length stays length and
/// chunked stays chunked.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        tokens(headers, &CONNECTION).filter_map(|token| HeaderName::from_bytes(token).ok()).collect();
    for name in named.iter().filter(|name| !must_stay(name)) {
        headers.remove(name);
    }
    for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, UPGRADE] {
        headers.remove(name);
    }
}

/// Headers that no sender may declare to be of one hop: without them the next one would take the message for another.
fn must_stay(name: &HeaderName) -> bool {
    [CONTENT_LENGTH, TRANSFER_ENCODING, HOST].contains(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_request_loses_what_concerns_this_hop() {
        let mut all = headers(&[
            ("connection", "keep-alive, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eDp5"),
            ("upgrade", "h2c"),
            ("te", "gzip"),
            ("authorization", "Bearer t"),
            ("range", "bytes=0-0"),
            ("content-length", "3"),
        ]);
        strip_request(&mut all);
        let left = headers(&[("authorization", "Bearer t"), ("range", "bytes=0-0"), ("content-length", "3")]);
        assert_eq!(all, left);
    }

    #[test]
    fn connection_cannot_take_away_the_framing() {
        let mut all = headers(&[("connection", "content-length, transfer-encoding, host"), ("content-length", "3")]);
        strip_request(&mut all);
        assert_eq!(all, headers(&[("content-length", "3")]));
    }

    #[test]
    fn who_takes_trailers_still_does() {
        let mut all = headers(&[("te", "trailers, deflate;q=0.5")]);
        strip_request(&mut all);
        assert_eq!(all, headers(&[("te", "trailers"), ("connection", "te")]));
    }

    #[test]
    fn a_name_that_is_no_ascii_leaves_the_others_of_one_hop() {
        let mut all = headers(&[("x-mine", "1"), ("x-other", "2")]);
        all.append(CONNECTION, HeaderValue::from_bytes(b"x-mine, \xe9t\xe9").unwrap());
        strip_request(&mut all);
        assert_eq!(all, headers(&[("x-other", "2")]));
    }
}
