//! A denial to everybody for ten minutes, in virtual time: it is the registry's real answer, and no load.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hyper::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, StatusCode};
use tokio::time::advance;

use super::tests::upstream;
use super::*;
use crate::adapt::Adapt;
use crate::admission::{Gate, Limits};
use crate::distress::Cause;
use crate::metrics::{Metrics, Sign};
use crate::repair::credentials::Doubt;
use crate::repair::memory::Key;
use crate::repair::signs::{self, ObservedAnswer};
use crate::repair::tokens::{RequestedAccess, TokenFound};

const SLOTS: usize = 60;
const PAYLOAD_OF_USER: &str = r#"{"sub":"robot$team","access":[{"type":"repository","name":"team/app","actions":[]}]}"#;
const PAYLOAD_OF_NOBODY: &str = r#"{"access":[]}"#;

/// The answers of Harbor when nobody may pull any more.
#[derive(Clone, Copy, Debug)]
struct Denial {
    token: &'static str,
    challenge: &'static str,
    body: &'static str,
}

const DENIALS: [Denial; 3] = [
    // A project that is deleted, one that nobody may read any more, a robot that has expired.
    Denial { token: PAYLOAD_OF_USER, challenge: "", body: "project team not found" },
    Denial { token: PAYLOAD_OF_USER, challenge: "Basic realm=\"harbor\"", body: "unauthorized to access repository" },
    Denial { token: PAYLOAD_OF_NOBODY, challenge: "Basic realm=\"harbor\"", body: "unauthorized to access repository" },
];

fn yielding() -> Upstream {
    let limits = Limits {
        slots: SLOTS,
        depth: 10,
        rate: None,
        idle_timeout: Duration::ZERO,
        max_lifetime: Duration::ZERO,
        max_connecting: SLOTS,
        keep_place: Duration::ZERO,
        weights: vec![1],
    };
    let gate = Gate::new(limits, Metrics::new().of_registry("test", &["default".to_owned()]));
    Upstream { gate, adapt: Arc::new(Adapt::new(true, 1)), ..upstream() }
}

/// The request for a token, and one for a manifest with it; what they say of the registry is noted as the repair does.
fn denied(upstream: &Upstream, denial: Denial, repository: u64) {
    let name = format!("team/app{repository}");
    let key = |text: &str| upstream.repair.key(&[text.as_bytes()]);
    let payload = BASE64_URL_SAFE_NO_PAD.encode(denial.token);
    let access = RequestedAccess::of_query(&format!("scope=repository:{name}:pull")).unwrap();
    let token = access.look_at(format!(r#"{{"token":"e30.{payload}.c2ln"}}"#).as_bytes());
    let Some(TokenFound::Poor { has_subject }) = token else { panic!("{token:?}") };
    note(upstream, Sign::PoisonedToken, (key("robot"), key(&name)));
    upstream.repair.poor_token(key(&name), upstream.gate.now());
    if has_subject {
        upstream.repair.prove(key("robot"), upstream.gate.now());
    }
    let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, HeaderValue::from_static(denial.challenge))]);
    for (method, body) in [(Method::HEAD, ""), (Method::GET, denial.body)] {
        let (method, status, body) = (&method, StatusCode::UNAUTHORIZED, body.as_bytes());
        let answer = ObservedAnswer { method, authorized: true, status, headers: &headers, body, retry_after: None };
        match signs::of(&answer) {
            Some(sign) => note(upstream, sign, (key("token"), key(&name))),
            None => upstream.adapt.good(Some(Duration::from_millis(20)), &upstream.gate),
        }
    }
}

/// A doubtful sign waits for a proof of its credentials; it lowers no slots where it counts, either.
fn note(upstream: &Upstream, sign: Sign, (needs, subject): (Key, Key)) {
    upstream.repair.doubt(Doubt { sign, subject, needs, at: upstream.gate.now() });
    upstream.note(Cause::Answer(sign), subject);
}

#[tokio::test(start_paused = true)]
async fn a_denial_to_everybody_leaves_all_slots_in_force_at_every_rate() {
    for denial in DENIALS {
        // Denied and good requests in a second.
        for (rate, others) in [(1, 0), (1, 50), (20, 0), (100, 20)] {
            let upstream = yielding();
            for second in 0..600 {
                for number in 0..rate {
                    denied(&upstream, denial, number % 7);
                    advance(Duration::from_secs(1) / u32::try_from(rate).unwrap()).await;
                }
                for _ in 0..others {
                    upstream.repair.prove(upstream.repair.key(&[b"token"]), upstream.gate.now());
                    upstream.adapt.good(Some(Duration::from_millis(20)), &upstream.gate);
                }
                let in_force = upstream.gate.snapshot().slots_in_force;
                assert_eq!(in_force, SLOTS, "{denial:?}, {rate} denied and {others} good each second: second {second}");
            }
        }
    }
}
