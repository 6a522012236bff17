//! From a refusal or a failure to what the client is told: status, reason phrase, headers, body.
//!
//! One table, exhaustive on purpose. The reason phrase says what happened, because it is all that Go and reqwest show
//! of a refused CONNECT; the body has the OCI error form, because that is what registry clients print.

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::admission::{HolderInfo, LimitedBy, Refusal, RefusalReason, shown_seconds};
use crate::fleet::lent::Lease;
use crate::metrics::{Label, Reason};
use crate::upstream::connect::DialError;
use crate::upstream::{Attempt, Failure, Patience, Upstream};

/// The answer of roadstead itself to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub reason: Reason,
    /// The event and the setting behind it, in one sentence without a full stop.
    pub message: String,
    pub waited: Duration,
    /// When coming back makes sense, where it ever does.
    pub retry_after: Option<Duration>,
    /// How full the registry was, where a queue was involved.
    pub load: Option<Box<Load>>,
}

/// How full a registry was, and who was in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sockets that may stand at once; `None` where nothing bounds them.
    pub slots: Option<usize>,
    pub waiting: usize,
    /// The reason why the next waiter was not admitted.
    pub limited_by: Option<LimitedBy>,
    /// Where the request stood, by arrival, from 1.
    pub position: Option<usize>,
    /// How much longer it would have waited, as far as the past tells.
    pub expected_wait: Option<Duration>,
    /// Some of those who hold the slots, the oldest first.
    pub holders: Vec<HolderInfo>,
}

/// Holders that an answer names.
const MOST_HOLDERS: usize = 10;

impl Load {
    fn of_refusal(refusal: &Refusal, upstream: &Upstream) -> Load {
        Load {
            slots: (refusal.slots != usize::MAX).then_some(refusal.slots),
            waiting: refusal.waiting,
            limited_by: refusal.limited_by,
            position: refusal.position,
            expected_wait: refusal.expected_wait,
            holders: upstream.gate.look(|core, now| core.holders(MOST_HOLDERS, now)),
        }
    }

    /// Of a registry that takes no connections. Other hosts have no queue.
    fn of_unreachable(upstream: &Upstream) -> Option<Box<Load>> {
        let now = upstream.gate.snapshot();
        let load = || Load {
            slots: Some(now.slots),
            waiting: now.waiting,
            limited_by: Some(LimitedBy::Unreachable),
            holders: upstream.gate.look(|core, now| core.holders(MOST_HOLDERS, now)),
            ..Load::default()
        };
        upstream.may_hold().then(|| Box::new(load()))
    }

    /// The limiting cause, in words that end a sentence.
    fn because(&self) -> String {
        let Some(limited_by) = self.limited_by else { return String::new() };
        match (limited_by, self.slots) {
            (LimitedBy::Slots, Some(1)) => ": its only slot is taken".to_owned(),
            (LimitedBy::Slots, Some(slots)) => format!(": all {slots} slots are taken"),
            (LimitedBy::Slots, None) => ": all slots are taken".to_owned(),
            (LimitedBy::Distress, _) => {
                ": it showed signs of overload, so fewer slots are in force than configured".to_owned()
            }
            (LimitedBy::Rate, _) => ": rate_per_second lets nobody connect yet".to_owned(),
            (LimitedBy::Connecting, _) => ": max_connecting dials are under way".to_owned(),
            (LimitedBy::Paused, _) => ": it is paused".to_owned(),
            (LimitedBy::FleetPaused, _) => ": it is paused on all nodes".to_owned(),
            (LimitedBy::Unreachable, _) => ": nothing answers there".to_owned(),
        }
    }
}

/// When to come back if nothing better is known.
const SOON: Duration = Duration::from_secs(1);

/// How a reason is told: the status, the error type of RFC 9209, section 2.3, that comes nearest, and the code of the OCI
/// distribution specification's error form.
fn told(reason: Reason) -> (StatusCode, &'static str, &'static str) {
    match reason {
        Reason::QueueFull | Reason::QueueTimeout | Reason::LeaseLost | Reason::TooManyClients => {
            (StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached", UNAVAILABLE)
        }
        Reason::Draining => (StatusCode::SERVICE_UNAVAILABLE, "proxy_internal_response", UNAVAILABLE),
        Reason::UpstreamUnreachable => (StatusCode::BAD_GATEWAY, "destination_unavailable", UNAVAILABLE),
        Reason::UpstreamTimeout => (StatusCode::GATEWAY_TIMEOUT, "connection_timeout", UNAVAILABLE),
        Reason::DestinationDenied => (StatusCode::FORBIDDEN, "destination_ip_prohibited", "DENIED"),
        Reason::ClientDenied => (StatusCode::FORBIDDEN, "http_request_denied", "DENIED"),
        Reason::BadRequest => (StatusCode::BAD_REQUEST, "http_request_error", "UNSUPPORTED"),
        Reason::HeadTimeout => (StatusCode::REQUEST_TIMEOUT, "http_request_error", "UNSUPPORTED"),
        Reason::LoopDetected => (StatusCode::LOOP_DETECTED, "proxy_loop_detected", "UNSUPPORTED"),
    }
}

/// The status with which a reason is told.
pub fn status_of(reason: Reason) -> StatusCode {
    told(reason).0
}

/// The code of what may pass: coming back makes sense.
const UNAVAILABLE: &str = "UNAVAILABLE";

impl Answer {
    /// An answer for which neither waiting nor load matter.
    pub fn plain(reason: Reason, message: impl Into<String>) -> Answer {
        let (_, _, code) = told(reason);
        let retry_after = (code == UNAVAILABLE).then_some(SOON);
        Answer { reason, message: message.into(), waited: Duration::ZERO, retry_after, load: None }
    }

    /// The answer to the failure of an attempt at `upstream`.
    pub fn of_failure(failure: &Failure, upstream: &Upstream, attempt: &Attempt) -> Answer {
        let title = upstream.title();
        let (reason, message) = match failure {
            Failure::Refused(refusal) => return Answer::of_refusal(refusal, upstream, attempt),
            Failure::Draining => (Reason::Draining, draining(&title)),
            Failure::Unknown(error) => (Reason::UpstreamUnreachable, error.to_string()),
            Failure::Undialled(error @ DialError::NoDescriptor(..)) => (Reason::TooManyClients, error.to_string()),
            Failure::Undialled(error @ DialError::TimedOut(..)) if !upstream.may_hold() => {
                (Reason::UpstreamTimeout, format!("{title} is unreachable: {error}"))
            }
            Failure::Undialled(error) => (Reason::UpstreamUnreachable, format!("{title} is unreachable: {error}")),
            Failure::NoAnswerBehind(_) => (Reason::UpstreamUnreachable, format!("{title} is down: {failure}")),
            Failure::Died(error) if error.is_parse() => {
                (Reason::UpstreamUnreachable, format!("{title} sent an answer that cannot be read: {error}"))
            }
            Failure::Malformed(what) => {
                (Reason::UpstreamUnreachable, format!("{title} sent an answer that cannot be trusted: it has {what}"))
            }
            // Its task is gone, and with it the connection.
            Failure::Died(error) if error.is_user() => (
                Reason::UpstreamTimeout,
                format!("{title} did not answer within reclaim.stall_timeout, and others wait"),
            ),
            Failure::Died(_) => {
                (Reason::UpstreamUnreachable, format!("{title} ended the connection before it answered"))
            }
            Failure::TurnedAway(word) => (Reason::UpstreamUnreachable, format!("{title} ended TLS: {word}")),
            Failure::Switched => (Reason::UpstreamUnreachable, format!("{title} switched protocols unasked")),
            Failure::Denied(ip, class) => (
                Reason::DestinationDenied,
                format!("{ip} is {}: list it in a registry's hosts to allow it", class.title()),
            ),
            Failure::Loop(address) => (Reason::LoopDetected, format!("{address} is this proxy itself")),
        };
        let is_down = matches!(failure, Failure::Unknown(_) | Failure::Undialled(_) | Failure::NoAnswerBehind(_))
            && reason != Reason::TooManyClients;
        let load = if is_down { Load::of_unreachable(upstream) } else { None };
        Answer { waited: attempt.progress.waited, load, ..Answer::plain(reason, message) }
    }

    fn of_refusal(refusal: &Refusal, upstream: &Upstream, attempt: &Attempt) -> Answer {
        let title = upstream.title();
        let load = Load::of_refusal(refusal, upstream);
        let because = load.because();
        let Patience { limit, setting } = attempt.patience;
        let (reason, message) = match refusal.reason {
            RefusalReason::QueueFull => {
                let depth = upstream.queue.depth;
                (Reason::QueueFull, format!("queue full for {title} (queue.depth = {depth}){because}"))
            }
            RefusalReason::QueueTimeout => {
                let bound = format!("({setting} = {limit:?})");
                (Reason::QueueTimeout, format!("no connection to {title} became free in time {bound}{because}"))
            }
            RefusalReason::LeaseLost => (Reason::LeaseLost, Lease::lost(&title, &format!("{setting} = {limit:?}"))),
            RefusalReason::Unreachable => {
                let message = format!("{title} took no connection in time ({setting} = {limit:?})");
                (Reason::UpstreamUnreachable, message)
            }
            RefusalReason::Draining => (Reason::Draining, draining(&title)),
        };
        let (retry_after, load) = (Some(refusal.retry_after), Some(Box::new(load)));
        Answer { waited: attempt.progress.waited, retry_after, load, ..Answer::plain(reason, message) }
    }

    /// The text behind the status code: visible ASCII, on one line.
    fn phrase(&self) -> String {
        let printable =
            self.message.chars().map(|char| if char == ' ' || char.is_ascii_graphic() { char } else { '?' });
        printable.take(200).collect()
    }

    fn headers(&self) -> Vec<(HeaderName, String)> {
        let details = self.phrase().replace('\\', "\\\\").replace('"', "\\\"");
        let mut headers = vec![
            (CONTENT_TYPE, "application/json".to_owned()),
            (
                HeaderName::from_static("proxy-status"),
                format!("roadstead; error={}; details=\"{details}\"", told(self.reason).1),
            ),
        ];
        if let Some(pause) = self.retry_after {
            headers.push((RETRY_AFTER, pause.as_secs().max(1).to_string()));
        }
        headers
    }

    fn body(&self, registry: &str) -> Vec<u8> {
        let load = self.load.as_deref();
        let mut detail = json!({
            "registry": registry,
            "reason": self.reason.as_str(),
            "waited_seconds": shown_seconds(self.waited),
            "slots": load.and_then(|load| load.slots),
            "waiting": load.map_or(0, |load| load.waiting),
        });
        if let Some(load) = load {
            detail["limited_by"] = json!(load.limited_by);
            detail["position"] = json!(load.position);
            detail["expected_wait_seconds"] = json!(load.expected_wait.map(shown_seconds));
            detail["holders"] = load.holders.iter().map(holder).collect();
        }
        let error = json!({ "code": told(self.reason).2, "message": self.message, "detail": detail });
        json!({ "errors": [error] }).to_string().into_bytes()
    }

    /// The answer as bytes, for a connection that hyper does not serve. The connection ends with it.
    pub fn to_bytes(&self, registry: &str) -> Vec<u8> {
        let body = self.body(registry);
        let mut head = format!("HTTP/1.1 {} {}\r\n", told(self.reason).0.as_u16(), self.phrase());
        for (name, value) in self.headers() {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let _ = write!(head, "content-length: {}\r\nconnection: close\r\n\r\n", body.len());
        [head.into_bytes(), body].concat()
    }

    /// The answer for hyper.
    pub fn to_response(&self, registry: &str) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.body(registry)));
        *response.status_mut() = told(self.reason).0;
        if let Ok(phrase) = hyper::ext::ReasonPhrase::try_from(self.phrase()) {
            response.extensions_mut().insert(phrase);
        }
        for (name, value) in self.headers() {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
        if self.reason == Reason::Draining {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

fn draining(title: &str) -> String {
    format!("this proxy is going down, and {title} had no free connection within drain_timeout")
}

fn holder(holder: &HolderInfo) -> Value {
    json!({
        "client": holder.occupant.as_ref().map(|(principal, _)| principal.client.to_string()),
        "kind": holder.kind,
        "state": holder.state,
        "age_seconds": shown_seconds(holder.age),
        "last_bytes_seconds": holder.last_bytes.map(shown_seconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_the_oci_form_and_names_the_setting() {
        let answer = Answer {
            waited: Duration::from_millis(1500),
            load: Some(Box::new(Load { slots: Some(10), waiting: 7, position: Some(8), ..Load::default() })),
            ..Answer::plain(Reason::QueueFull, "queue full for registry harbor (queue.depth = 7)")
        };
        let body: serde_json::Value = serde_json::from_slice(&answer.body("harbor")).unwrap();
        let error = &body["errors"][0];
        assert_eq!(error["code"], "UNAVAILABLE");
        assert_eq!(error["message"], "queue full for registry harbor (queue.depth = 7)");
        let detail = serde_json::json!(
            {"registry": "harbor", "reason": "queue_full", "waited_seconds": 1.5, "slots": 10, "waiting": 7,
             "limited_by": null, "position": 8, "expected_wait_seconds": null, "holders": []}
        );
        assert_eq!(error["detail"], detail);
    }

    #[test]
    fn bytes_and_response_say_the_same() {
        let answer = Answer::plain(Reason::DestinationDenied, "10.0.0.1 \"is\" not\r\nlisted");
        let text = String::from_utf8(answer.to_bytes("other_hosts")).unwrap();
        assert!(text.starts_with("HTTP/1.1 403 10.0.0.1 \"is\" not??listed\r\n"), "{text}");
        assert!(
            text.contains(
                "\r\nproxy-status: roadstead; error=destination_ip_prohibited; details=\"10.0.0.1 \\\"is\\\""
            )
        );
        assert!(!text.contains("retry-after"));
        let response = answer.to_response("other_hosts");
        assert_eq!(response.status(), 403);
        assert!(text.contains(response.headers()["proxy-status"].to_str().unwrap()));
    }

    #[test]
    fn refusals_because_of_load_say_when_to_come_back() {
        let text = String::from_utf8(Answer::plain(Reason::TooManyClients, "full").to_bytes("other_hosts")).unwrap();
        assert!(text.starts_with("HTTP/1.1 503 full\r\n") && text.contains("\r\nretry-after: 1\r\n"), "{text}");
    }
}
