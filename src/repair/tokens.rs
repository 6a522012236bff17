//! Tokens: does one allow what was asked for?
//!
//! Harbor's core swallows a database error while it looks up permissions, and signs a token without them: every request
//! with it is denied until it expires. The payload of the JWT shows it, and is read without checking its signature:
//! nothing is granted here. <https://distribution.github.io/distribution/spec/auth/token/>, section "Requesting a Token";
//! <https://distribution.github.io/distribution/spec/auth/jwt/>.

use std::collections::BTreeSet;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde_json::Value;

/// Base64 as JWT uses it, also with padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One action on one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Access {
    kind: String,
    name: String,
    action: String,
}

/// The rights that a request for a token asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedAccess(BTreeSet<Access>);

impl RequestedAccess {
    /// The rights in the query of a request for a token; `None` when it asks for none, or is no such request.
    pub fn of_query(query: &str) -> Option<RequestedAccess> {
        let pairs = form_urlencoded::parse(query.as_bytes());
        let scopes = pairs.filter(|(key, _)| key == "scope").map(|(_, value)| value.into_owned());
        let accesses: BTreeSet<Access> =
            scopes.flat_map(|value| value.split(' ').flat_map(accesses_of).collect::<Vec<_>>()).collect();
        (!accesses.is_empty()).then_some(RequestedAccess(accesses))
    }

    /// The verdict about the token in this answer; `None` for an opaque token, or one that says nothing about access.
    pub fn look_at(&self, body: &[u8]) -> Option<TokenFound> {
        let payload = payload_of(&token_in(body)?)?;
        let granted = accesses_in(&payload)?;
        let is_granted = |asked: &Access| granted.iter().any(|granted| granted.covers(asked));
        let has_subject = payload["sub"].as_str().is_some_and(|subject| !subject.is_empty());
        let is_whole = self.0.iter().all(is_granted);
        Some(if is_whole { TokenFound::Whole { has_subject } } else { TokenFound::Poor { has_subject } })
    }
}

/// A token that says what it allows, and whether it names a user: without one, it is what a wrong password gets, or the log-in
/// itself failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFound {
    /// It allows all that was asked for.
    Whole { has_subject: bool },
    /// It lacks an action that was asked for.
    Poor { has_subject: bool },
}

impl Access {
    fn covers(&self, asked: &Access) -> bool {
        self.kind == asked.kind && self.name == asked.name && (self.action == asked.action || self.action == "*")
    }
}

/// `repository:library/app:pull,push`: the name may hold colons, with the port of a host.
fn accesses_of(scope: &str) -> Vec<Access> {
    let parts = scope.split_once(':').and_then(|(kind, rest)| Some((kind, rest.rsplit_once(':')?)));
    let Some((kind, (name, actions))) = parts else { return Vec::new() };
    // A class of the resource, as in `repository(plugin)`, is not part of its type.
    let kind = kind.split('(').next().unwrap_or(kind);
    let actions = actions.split(',').filter(|action| !action.is_empty());
    actions.map(|action| Access { kind: kind.to_owned(), name: name.to_owned(), action: action.to_owned() }).collect()
}

#[derive(Deserialize)]
struct Grant {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    actions: Option<Vec<String>>,
}

/// Whether these credentials are a token that says that it allows nothing: every answer to it is a denial.
pub fn allows_nothing(credentials: &[u8]) -> bool {
    let token = credentials.split_first_chunk::<7>().filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
    token.and_then(|(_, token)| accesses_in(&payload_of(std::str::from_utf8(token).ok()?)?)) == Some(Vec::new())
}

fn payload_of(token: &str) -> Option<Value> {
    serde_json::from_slice(&BASE64.decode(token.split('.').nth(1)?).ok()?).ok()
}

/// The rights in a token; `None` where it says nothing of them. Go writes `null` for an empty list.
fn accesses_in(payload: &Value) -> Option<Vec<Access>> {
    let grants = Option::<Vec<Grant>>::deserialize(payload.get("access")?).ok()?;
    let accesses = grants.unwrap_or_default().into_iter().flat_map(|Grant { kind, name, actions }| {
        let actions = actions.unwrap_or_default().into_iter();
        actions.map(move |action| Access { kind: kind.clone(), name: name.clone(), action })
    });
    Some(accesses.collect())
}

/// The token, under either of its names; some registries give both, which serde would take for one given twice.
pub fn token_in(body: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    let text = |key: &str| answer.get(key).and_then(Value::as_str).filter(|token| !token.is_empty());
    text("token").or_else(|| text("access_token")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer of a token service, whose token has this payload.
    fn answer(payload: &str) -> Vec<u8> {
        let payload = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(payload);
        format!(r#"{{"token":"e30.{payload}.c2ln","access_token":"e30.{payload}.c2ln","expires_in":1800}}"#).into()
    }

    fn found(query: &str, payload: &str) -> Option<TokenFound> {
        RequestedAccess::of_query(query)?.look_at(&answer(payload))
    }

    const PULL: &str = "service=harbor-registry&scope=repository%3Alib%2Fapp%3Apull";
    const WHOLE: Option<TokenFound> = Some(TokenFound::Whole { has_subject: false });
    const POOR: Option<TokenFound> = Some(TokenFound::Poor { has_subject: false });

    #[test]
    fn a_whole_token_lacks_nothing_and_may_lack_its_user() {
        let payload = r#"{"access":[{"type":"repository","name":"lib/app","actions":["pull","push"]}]}"#;
        assert_eq!(found(PULL, payload), WHOLE);
        let all = r#"{"sub":"robot$a","access":[{"type":"repository","name":"lib/app","actions":["*"]}]}"#;
        let named = Some(TokenFound::Whole { has_subject: true });
        assert_eq!(found("scope=repository:lib/app:pull,push", all), named);
    }

    #[test]
    fn a_poor_token_lacks_actions_and_may_lack_its_user() {
        for access in [
            r#"[{"type":"repository","name":"lib/app","actions":[]}]"#,
            r#"[{"type":"repository","name":"lib/app","actions":null}]"#,
            r#"[{"type":"repository","name":"lib/other","actions":["pull"]}]"#,
            "[]",
            "null",
        ] {
            for (sub, has_subject) in [("", false), (r#""sub":"","#, false), (r#""sub":"robot$a","#, true)] {
                let payload = format!(r#"{{{sub}"access":{access}}}"#);
                assert_eq!(found(PULL, &payload), Some(TokenFound::Poor { has_subject }), "{payload}");
            }
        }
    }

    #[test]
    fn a_token_allows_nothing_only_where_it_says_so() {
        for (payload, expected) in [
            (r#"{"access":[]}"#, true),
            (r#"{"sub":"robot$a","access":null}"#, true),
            (r#"{"access":[{"type":"repository","name":"lib/app","actions":[]}]}"#, true),
            (r#"{"access":[{"type":"repository","name":"lib/app","actions":["pull"]}]}"#, false),
            (r#"{"sub":"robot$a"}"#, false),
        ] {
            let token = token_in(&answer(payload)).unwrap();
            for scheme in ["Bearer", "bearer"] {
                assert_eq!(allows_nothing(format!("{scheme} {token}").as_bytes()), expected, "{payload}");
            }
            assert!(!allows_nothing(format!("Basic {token}").as_bytes()), "{payload}");
        }
        assert!(!allows_nothing(b"") && !allows_nothing(b"Bearer opaque") && !allows_nothing(b"Bearer \xff.\xff.\xff"));
    }

    #[test]
    fn scopes_come_one_by_one_or_many_in_one() {
        let all = r#"{"access":[{"type":"repository","name":"a","actions":["pull"]},
                                {"type":"repository","name":"b:5000/c","actions":["pull","push"]}]}"#;
        let one = r#"{"access":[{"type":"repository","name":"a","actions":["pull"]}]}"#;
        for query in [
            "scope=repository:a:pull&scope=repository:b:5000/c:pull,push",
            "scope=repository:a:pull%20repository(plugin):b:5000/c:push,pull",
            "scope=repository:a:pull+repository:b:5000/c:push,pull",
        ] {
            assert_eq!((found(query, all), found(query, one)), (WHOLE, POOR), "{query}");
        }
    }

    /// An opaque token, or one without the claim, is no reason for another request.
    #[test]
    fn what_cannot_be_read_tells_nothing() {
        assert_eq!(RequestedAccess::of_query("service=harbor-registry"), None);
        assert_eq!(RequestedAccess::of_query("scope="), None);
        assert_eq!(found(PULL, r#"{"sub":"robot"}"#), None);
        let asked = RequestedAccess::of_query(PULL).unwrap();
        for body in ["", "{}", "<html>", r#"{"token":"opaque"}"#, r#"{"token":"a.!!.c"}"#, r#"{"token":"a.e30x.c"}"#] {
            assert_eq!(asked.look_at(body.as_bytes()), None, "{body}");
        }
    }
}
