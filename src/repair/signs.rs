//! The table of answers that are worth asking again for.
//!
//! Rows are looked at in their order, and the first that fits decides; an answer that fits none is the registry's real
//! answer. What is seen of a database error are the words of Go's `database/sql` and of the drivers of `PostgreSQL`, which
//! Harbor's core puts into the body.

use std::time::{Duration, SystemTime};

use hyper::header::{DATE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, StatusCode};

use crate::metrics::Sign;

/// An answer and what of its request matters.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    /// GET or HEAD.
    pub method: &'a Method,
    /// Whether the request had credentials.
    pub authorized: bool,
    /// The status of the answer.
    pub status: StatusCode,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its body, as much as was read of it.
    pub body: &'a [u8],
}

/// One row: what an answer must be like, and what it means then.
struct Row {
    status: u16,
    request: Request,
    challenge: Challenge,
    body: Body,
    means: Option<Sign>,
}

#[derive(PartialEq)]
enum Request {
    Any,
    Authorized,
    AuthorizedHead,
}

enum Challenge {
    Any,
    Absent,
    Holds(&'static str),
    /// Not the challenge: Retry-After is there.
    RetryAfter,
}

enum Body {
    Any,
    /// Every word of one of these groups.
    Holds(&'static [&'static [&'static str]]),
}

const TABLE: &[Row] = &[
    // Real answers of Harbor that have no challenge either.
    Row {
        status: 401,
        request: Request::Authorized,
        challenge: Challenge::Absent,
        body: Body::Holds(&[&["project", "not found"], &["un-recognized request"]]),
        means: None,
    },
    Row {
        status: 401,
        request: Request::Authorized,
        challenge: Challenge::Absent,
        body: Body::Holds(&[
            &["pq:"],
            &["SQLSTATE"],
            &["too many clients"],
            &["connection reset"],
            &["dial tcp"],
            &["EOF"],
            &["bad connection"],
        ]),
        means: Some(Sign::DatabaseError),
    },
    Row {
        status: 401,
        request: Request::AuthorizedHead,
        challenge: Challenge::Absent,
        body: Body::Any,
        means: Some(Sign::Unseen401),
    },
    Row {
        status: 401,
        request: Request::AuthorizedHead,
        challenge: Challenge::Holds("Basic realm=\"harbor\""),
        body: Body::Any,
        means: Some(Sign::Ambiguous401),
    },
    Row {
        status: 401,
        request: Request::Authorized,
        challenge: Challenge::Holds("Basic realm=\"harbor\""),
        body: Body::Holds(&[&["unauthorized to access repository"]]),
        means: Some(Sign::Ambiguous401),
    },
    row(500, Challenge::Any, Sign::InternalError),
    row(502, Challenge::Any, Sign::BadGateway),
    row(503, Challenge::Any, Sign::Unavailable),
    row(504, Challenge::Any, Sign::GatewayTimeout),
    row(429, Challenge::RetryAfter, Sign::TooManyRequests),
];

const fn row(status: u16, challenge: Challenge, sign: Sign) -> Row {
    Row { status, request: Request::Any, challenge, body: Body::Any, means: Some(sign) }
}

/// Whether the body of an answer with this status has to be read before it is known what it means. The challenge to a
/// request without credentials is never touched.
#[must_use]
pub fn is_suspicious(status: StatusCode, authorized: bool) -> bool {
    let asks_for_credentials = status == StatusCode::UNAUTHORIZED && !authorized;
    !asks_for_credentials && TABLE.iter().any(|row| row.status == status.as_u16())
}

/// What an answer is a sign of; `None` for the registry's real answer.
#[must_use]
pub fn of(exchange: &Exchange<'_>) -> Option<Sign> {
    TABLE.iter().find(|row| row.fits(exchange)).and_then(|row| row.means)
}

impl Row {
    fn fits(&self, exchange: &Exchange<'_>) -> bool {
        self.status == exchange.status.as_u16()
            && self.request.fits(exchange)
            && self.challenge.fits(exchange.headers)
            && self.body.fits(exchange.body)
    }
}

impl Request {
    fn fits(&self, exchange: &Exchange<'_>) -> bool {
        match self {
            Request::Any => true,
            Request::Authorized => exchange.authorized,
            Request::AuthorizedHead => exchange.authorized && exchange.method == Method::HEAD,
        }
    }
}

impl Challenge {
    fn fits(&self, headers: &HeaderMap) -> bool {
        let values = || headers.get_all(WWW_AUTHENTICATE).iter().map(HeaderValue::as_bytes);
        match self {
            Challenge::Any => true,
            Challenge::Absent => values().all(|value| value.trim_ascii().is_empty()),
            Challenge::Holds(text) => values().any(|value| holds(value, text)),
            Challenge::RetryAfter => headers.contains_key(RETRY_AFTER),
        }
    }
}

impl Body {
    fn fits(&self, body: &[u8]) -> bool {
        match self {
            Body::Any => true,
            Body::Holds(groups) => groups.iter().any(|words| words.iter().all(|word| holds(body, word))),
        }
    }
}

fn holds(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// The pause that Retry-After asks for. A date is one of the registry's clock, which its Date tells; without that, it is taken
/// for `now`. RFC 9110, section 10.2.3.
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let date = |name| text(name).and_then(|date| httpdate::parse_http_date(date).ok());
    if let Ok(seconds) = text(RETRY_AFTER)?.parse() {
        return Some(Duration::from_secs(seconds));
    }
    // What is over asks for no pause.
    Some(date(RETRY_AFTER)?.duration_since(date(DATE).unwrap_or(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which requests a row of the test is about.
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
        of(&Exchange {
            method: if who == Head { &Method::HEAD } else { &Method::GET },
            authorized: who != Anonymous,
            status: StatusCode::from_u16(status).unwrap(),
            headers: &headers,
            body: body.as_bytes(),
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
            (Authorized, 401, NONE, DENIED, None),
            (Authorized, 401, NONE, "", None),
            (Anonymous, 401, NONE, "pq: sorry, too many clients already", None),
            (Anonymous, 401, BEARER, DENIED, None),
            (Authorized, 401, BEARER, "pq: in the words of a client", None),
            (Authorized, 401, BASIC, DENIED, Some(Sign::Ambiguous401)),
            (Anonymous, 401, BASIC, DENIED, None),
            (Authorized, 401, BASIC, "wrong password", None),
            (Head, 401, NONE, "", Some(Sign::Unseen401)),
            (Head, 401, BASIC, "", Some(Sign::Ambiguous401)),
            (Head, 401, BEARER, "", None),
            (Anonymous, 500, NONE, "{}", Some(Sign::InternalError)),
            (Authorized, 502, NONE, "<html>", Some(Sign::BadGateway)),
            (Head, 503, NONE, "", Some(Sign::Unavailable)),
            (Anonymous, 504, NONE, "", Some(Sign::GatewayTimeout)),
            (Anonymous, 429, ("retry-after", "2"), "", Some(Sign::TooManyRequests)),
            (Anonymous, 429, NONE, "", None),
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
