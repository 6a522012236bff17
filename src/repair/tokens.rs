//! Tokens: does one allow what was asked for?
//!
//! Harbor's core swallows a database error while it looks up permissions, and signs a token without them: every request
//! with it is denied until it expires. The payload of the JWT tells, and is read without checking its signature:
//! nothing is granted here. <https://distribution.github.io/distribution/spec/auth/token/>, section "Requesting a Token";
//! <https://distribution.github.io/distribution/spec/auth/jwt/>.

use std::collections::BTreeSet;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

/// Base64 as JWT uses it, also from those who pad.
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

/// What a request for a token asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked(BTreeSet<Access>);

impl Asked {
    /// What the query of a request for a token asks for; `None` when it asks for nothing, or is no such request.
    #[must_use]
    pub fn of_query(query: &str) -> Option<Asked> {
        let pairs = form_urlencoded::parse(query.as_bytes());
        let scopes = pairs.filter(|(key, _)| key == "scope").map(|(_, value)| value.into_owned());
        let accesses: BTreeSet<Access> =
            scopes.flat_map(|value| value.split(' ').flat_map(accesses_of).collect::<Vec<_>>()).collect();
        (!accesses.is_empty()).then_some(Asked(accesses))
    }

    /// What of it the token in this answer does not allow; `None` when that cannot be told.
    #[must_use]
    pub fn missing_in(&self, body: &[u8]) -> Option<BTreeSet<Access>> {
        let granted = granted_in(body)?;
        let lacks = |asked: &&Access| !granted.iter().any(|granted| granted.covers(asked));
        Some(self.0.iter().filter(lacks).cloned().collect())
    }
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
struct Payload {
    access: Option<Vec<Grant>>,
}

#[derive(Deserialize)]
struct Grant {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    actions: Option<Vec<String>>,
}

fn granted_in(body: &[u8]) -> Option<Vec<Access>> {
    let token = token_in(body)?;
    let payload = BASE64.decode(token.split('.').nth(1)?).ok()?;
    let payload: Payload = serde_json::from_slice(&payload).ok()?;
    let grants = payload.access.unwrap_or_default().into_iter();
    let accesses = grants.flat_map(|Grant { kind, name, actions }| {
        let actions = actions.unwrap_or_default().into_iter();
        actions.map(move |action| Access { kind: kind.clone(), name: name.clone(), action }).collect::<Vec<_>>()
    });
    Some(accesses.collect())
}

/// The token, under either of its names; some registries give both, which serde would take for one given twice.
fn token_in(body: &[u8]) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let text = |key: &str| answer.get(key).and_then(serde_json::Value::as_str).filter(|token| !token.is_empty());
    text("token").or_else(|| text("access_token")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(kind: &str, name: &str, action: &str) -> Access {
        Access { kind: kind.to_owned(), name: name.to_owned(), action: action.to_owned() }
    }

    /// The answer of a token service, whose token has this payload.
    fn answer(payload: &str) -> Vec<u8> {
        let payload = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(payload);
        format!(r#"{{"token":"e30.{payload}.c2ln","access_token":"e30.{payload}.c2ln","expires_in":1800}}"#).into()
    }

    fn missing(query: &str, payload: &str) -> Option<Vec<Access>> {
        Some(Asked::of_query(query)?.missing_in(&answer(payload))?.into_iter().collect())
    }

    const PULL: &str = "service=harbor-registry&scope=repository%3Alib%2Fapp%3Apull";

    #[test]
    fn a_whole_token_lacks_nothing() {
        let payload = r#"{"access":[{"type":"repository","name":"lib/app","actions":["pull","push"]}]}"#;
        assert_eq!(missing(PULL, payload), Some(vec![]));
        let all = r#"{"access":[{"type":"repository","name":"lib/app","actions":["*"]}]}"#;
        assert_eq!(missing("scope=repository:lib/app:pull,push", all), Some(vec![]));
    }

    #[test]
    fn a_poisoned_token_lacks_actions() {
        for payload in [
            r#"{"access":[{"type":"repository","name":"lib/app","actions":[]}]}"#,
            r#"{"access":[{"type":"repository","name":"lib/app","actions":null}]}"#,
            r#"{"access":[{"type":"repository","name":"lib/other","actions":["pull"]}]}"#,
            r#"{"access":[]}"#,
            r#"{"access":null}"#,
            r#"{"sub":"robot"}"#,
        ] {
            assert_eq!(missing(PULL, payload), Some(vec![access("repository", "lib/app", "pull")]), "{payload}");
        }
    }

    #[test]
    fn scopes_come_one_by_one_or_many_in_one() {
        let payload = r#"{"access":[{"type":"repository","name":"a","actions":["pull"]}]}"#;
        let lacking = Some(vec![access("repository", "b:5000/c", "pull"), access("repository", "b:5000/c", "push")]);
        assert_eq!(missing("scope=repository:a:pull&scope=repository:b:5000/c:pull,push", payload), lacking);
        assert_eq!(missing("scope=repository:a:pull%20repository(plugin):b:5000/c:push,pull", payload), lacking);
        assert_eq!(missing("scope=repository:a:pull+repository:b:5000/c:push,pull", payload), lacking);
    }

    #[test]
    fn what_cannot_be_read_tells_nothing() {
        assert_eq!(Asked::of_query("service=harbor-registry"), None);
        assert_eq!(Asked::of_query("scope="), None);
        let asked = Asked::of_query(PULL).unwrap();
        for body in ["", "{}", "<html>", r#"{"token":"opaque"}"#, r#"{"token":"a.!!.c"}"#, r#"{"token":"a.e30x.c"}"#] {
            assert_eq!(asked.missing_in(body.as_bytes()), None, "{body}");
        }
    }
}
