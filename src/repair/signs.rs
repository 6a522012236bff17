//! Answers that are worth asking again for. Every other one is the registry's real answer.
//!
//! By Harbor's own middleware a `401` to credentials with an empty challenge has two real causes, and both name
//! themselves in the body: everything else is an error, whatever its words.

use std::time::{Duration, SystemTime};

use hyper::header::{DATE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, StatusCode};

use crate::metrics::Sign;

/// An answer and what of its request matters.
#[derive(Clone, Copy, Debug)]
pub struct ObservedAnswer<'a> {
    /// GET or HEAD, or the POST of a form.
    pub method: &'a Method,
    /// Whether the request had credentials.
    pub authorized: bool,
    pub status: StatusCode,
    pub headers: &'a HeaderMap,
    /// Its body, as much as was read of it.
    pub body: &'a [u8],
    /// The pause that it asks for.
    pub retry_after: Option<Duration>,
}

/// Whether the body of an answer with this status has to be read before it is known what it means. The challenge to a
/// request without credentials is never touched.
pub fn is_suspicious(status: StatusCode, authorized: bool) -> bool {
    matches!(status.as_u16(), 429 | 500 | 502..=504) || status == StatusCode::UNAUTHORIZED && authorized
}

/// The sign of overload in an answer; `None` for the registry's real answer.
pub fn of(answer: &ObservedAnswer<'_>) -> Option<Sign> {
    match answer.status.as_u16() {
        401 if answer.authorized => of_denial(answer),
        429 if answer.retry_after.is_some() => Some(Sign::TooManyRequests),
        500 => Some(Sign::InternalError),
        502 => Some(Sign::BadGateway),
        503 => Some(Sign::Unavailable),
        504 => Some(Sign::GatewayTimeout),
        _ => None,
    }
}

fn of_denial(answer: &ObservedAnswer<'_>) -> Option<Sign> {
    let challenges = || answer.headers.get_all(WWW_AUTHENTICATE).iter().map(HeaderValue::as_bytes);
    if challenges().any(|challenge| holds(challenge, "Basic realm=\"harbor\"")) {
        return Some(Sign::Ambiguous401);
    }
    let is_real = holds(answer.body, "un-recognized request")
        || holds(answer.body, "project") && holds(answer.body, "not found")
        || challenges().any(|challenge| !challenge.trim_ascii().is_empty());
    let sign = if answer.method == Method::HEAD { Sign::Unseen401 } else { Sign::DatabaseError };
    (!is_real).then_some(sign)
}

fn holds(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// No request waits for longer.
const FOREVER_SECONDS: f64 = 1e9;

/// The pause that Retry-After asks for. A date is one of the registry's clock, which its Date tells; without that, it is taken
/// for `now`. RFC 9110, section 10.2.3.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let date = |name| text(name).and_then(|date| httpdate::parse_http_date(date).ok());
    if let Ok(seconds) = text(RETRY_AFTER)?.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds.clamp(-1.0, FOREVER_SECONDS)).ok();
    }
    // A date that is over asks for no pause, and what is neither seconds nor a date asks for nothing: our own pause holds.
    Some(date(RETRY_AFTER)?.duration_since(date(DATE).unwrap_or(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The requests of a row of the test.
    #[derive(Clone, Copy, PartialEq)]
    enum Who {
        Authorized,
        Anonymous,
        Head,
    }
    use Who::{Anonymous, Authorized, Head};

    const DENIED: &str = r#"{"errors":[{"code":"UNAUTHORIZED","message":"unauthorized to access repository: a/b"}]}"#;

    fn sign(who: Who, status: u16, header: (&'static str, &'static str), body: &str) -> Option<Sign> {
        let mut headers = HeaderMap::new();
        if !header.0.is_empty() {
            headers.insert(header.0, HeaderValue::from_static(header.1));
        }
        of(&ObservedAnswer {
            method: if who == Head { &Method::HEAD } else { &Method::GET },
            authorized: who != Anonymous,
            status: StatusCode::from_u16(status).unwrap(),
            headers: &headers,
            body: body.as_bytes(),
            retry_after: super::retry_after(&headers, SystemTime::UNIX_EPOCH),
        })
    }

    #[test]
    fn each_row_means_what_it_should() {
        const NONE: (&str, &str) = ("", "");
        const BASIC: (&str, &str) = ("www-authenticate", "Basic realm=\"harbor\"");
        const BEARER: (&str, &str) = ("www-authenticate", "Bearer realm=\"https://h/service/token\"");
        for (who, status, header, body, expected) in [
            (Authorized, 401, NONE, "pq: sorry, too many clients already", Some(Sign::DatabaseError)),
            (Authorized, 401, ("www-authenticate", ""), "FATAL (SQLSTATE 53300)", Some(Sign::DatabaseError)),
            (Authorized, 401, NONE, "read: connection reset by peer", Some(Sign::DatabaseError)),
            (Authorized, 401, NONE, "dial tcp 10.0.0.1:5432: refused", Some(Sign::DatabaseError)),
            (Authorized, 401, NONE, "unexpected EOF", Some(Sign::DatabaseError)),
            (Authorized, 401, NONE, "driver: bad connection", Some(Sign::DatabaseError)),
            (Authorized, 401, NONE, "project library not found", None),
            (Authorized, 401, NONE, "project EOF not found", None),
            (Authorized, 401, NONE, "un-recognized request: GET /pq:", None),
            (Authorized, 401, NONE, DENIED, Some(Sign::DatabaseError)),
            (Authorized, 401, NONE, "", Some(Sign::DatabaseError)),
            (Authorized, 401, NONE, "driver: bad connection", Some(Sign::DatabaseError)),
            (Authorized, 401, NONE, "i/o timeout", Some(Sign::DatabaseError)),
            (Authorized, 401, NONE, "cannot assign requested address", Some(Sign::DatabaseError)),
            (Anonymous, 401, NONE, "pq: sorry, too many clients already", None),
            (Anonymous, 401, BEARER, DENIED, None),
            (Authorized, 401, BEARER, "pq: in the words of a client", None),
            (Authorized, 401, BASIC, DENIED, Some(Sign::Ambiguous401)),
            (Anonymous, 401, BASIC, DENIED, None),
            (Authorized, 401, BASIC, "unauthorized", Some(Sign::Ambiguous401)),
            (Head, 401, NONE, "", Some(Sign::Unseen401)),
            (Head, 401, BASIC, "", Some(Sign::Ambiguous401)),
            (Head, 401, BEARER, "", None),
            (Anonymous, 500, NONE, "{}", Some(Sign::InternalError)),
            (Authorized, 502, NONE, "<html>", Some(Sign::BadGateway)),
            (Head, 503, NONE, "", Some(Sign::Unavailable)),
            (Anonymous, 504, NONE, "", Some(Sign::GatewayTimeout)),
            (Anonymous, 429, ("retry-after", "2"), "", Some(Sign::TooManyRequests)),
            (Anonymous, 429, NONE, "", None),
            (Anonymous, 429, ("retry-after", "soon"), "", None),
            (Authorized, 200, NONE, "pq: too many clients", None),
            (Authorized, 403, NONE, "pq: too many clients", None),
            (Authorized, 404, NONE, "EOF", None),
            (Authorized, 501, NONE, "", None),
        ] {
            assert_eq!(sign(who, status, header, body), expected, "{status} {header:?} {body}");
        }
    }

    #[test]
    fn a_plain_challenge_is_not_looked_at() {
        assert!(is_suspicious(StatusCode::UNAUTHORIZED, true) && is_suspicious(StatusCode::BAD_GATEWAY, false));
        assert!(!is_suspicious(StatusCode::UNAUTHORIZED, false) && !is_suspicious(StatusCode::NOT_FOUND, true));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        // Wed, 21 Oct 2026 07:28:00 GMT.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_792_567_680);
        for (retry_after, date, seconds) in [
            ("", "", None),
            (" 3 ", "", Some(3)),
            ("soon", "", None),
            ("2.0", "", Some(2)),
            ("NaN", "", None),
            ("1e999", "", Some(1_000_000_000)),
            ("999999999999999999999999", "", Some(1_000_000_000)),
            ("-1", "", None),
            ("Wed, 21 Oct 2026 07:28:05 GMT", "", Some(5)),
            ("Wednesday, 21-Oct-26 07:28:05 GMT", "", Some(5)),
            ("Wed, 21 Oct 2026 07:27:00 GMT", "", Some(0)),
            ("Wed, 21 Oct 2026 08:28:02 GMT", "Wed, 21 Oct 2026 08:28:00 GMT", Some(2)),
            ("Wed, 21 Oct 2026 07:28:05 GMT", "yesterday", Some(5)),
            ("7", "Wed, 21 Oct 2026 08:28:00 GMT", Some(7)),
        ] {
            let given = [(RETRY_AFTER, retry_after), (DATE, date)].into_iter().filter(|(_, value)| !value.is_empty());
            let headers = given.map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(super::retry_after(&headers, now), expected, "{retry_after:?} at {date:?}");
        }
    }
}
