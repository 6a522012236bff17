//! Pulls of a manifest with a token, straight at the registry: no queue before it, and nothing is asked for again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, StatusCode};
use tokio::time::{Instant, timeout};

use super::direct;
use super::pressure::Pressure;
use crate::admission::{ClassId, Lane, Principal, SlotUse};
use crate::config::Config;
use crate::metrics::Label;
use crate::proxy::mirror::Mirror;
use crate::proxy::rewrite::realms;
use crate::repair::signs::{self, ObservedAnswer};
use crate::repair::tokens::{RequestedAccess, TokenFound, token_in};
use crate::upstream::http::{PooledConnection, SendError};
use crate::upstream::request_body::RequestBody;
use crate::upstream::{Connected, Patience};

/// The longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Manifests and tokens are small; of a longer answer, no more is read.
const MAX_BODY: usize = 1024 * 1024;
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";

/// The outcome of one pull.
pub enum Pulled {
    /// How long each answer took.
    Well(Vec<Duration>),
    /// A sign of overload.
    Sign(&'static str),
}

/// All that is the same for each pull.
#[derive(Debug)]
pub struct ManifestPuller {
    mirror: Arc<Mirror>,
    manifest: String,
    basic: Option<HeaderValue>,
    /// Path and query of a request for a token, and what it asks for; `None` for a registry without tokens.
    token: Option<(String, RequestedAccess)>,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    took: Duration,
}

impl ManifestPuller {
    /// Finds out how the registry wants to be asked, with one connection, and pulls once.
    /// Fails when it does not serve the manifest.
    pub async fn new(config: &Config, pressure: &Pressure) -> Result<ManifestPuller, String> {
        let mirror = direct::mirror(config, &pressure.registry, pressure.max)?;
        let manifest = format!("/v2/{}/manifests/{}", pressure.repository, pressure.reference);
        let basic = pressure.credentials.as_ref().map(|(user, password)| {
            let mut value =
                HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
                    .expect("base64 is visible ASCII");
            value.set_sensitive(true);
            value
        });
        let mut puller = ManifestPuller { mirror, manifest, basic, token: None };
        let challenged = puller.ask(&puller.manifest, None).await?;
        if challenged.status == StatusCode::UNAUTHORIZED {
            puller.token = token_of(&challenged.headers, &pressure.repository);
        }
        match puller.try_pull().await? {
            Ok(_) => Ok(puller),
            Err(why) => Err(format!("{}: {why}, with one connection already", puller.manifest)),
        }
    }

    pub async fn pull(&self) -> Pulled {
        match self.try_pull().await {
            Ok(Ok(times)) => Pulled::Well(times),
            Ok(Err(sign)) => Pulled::Sign(sign),
            Err(_) => Pulled::Sign("failed_dial"),
        }
    }

    /// The times of its answers, or what was wrong with one.
    /// Fails when the registry cannot be reached.
    async fn try_pull(&self) -> Result<Result<Vec<Duration>, &'static str>, String> {
        let mut times = Vec::new();
        let mut authorization = self.basic.clone();
        if let Some((path, access)) = &self.token {
            let answer = self.ask(path, self.basic.clone()).await?;
            if answer.status != StatusCode::OK {
                return Ok(Err(sign_of(&answer, self.basic.is_some())));
            }
            if matches!(access.look_at(&answer.body), Some(TokenFound::Poor { .. })) {
                return Ok(Err("poisoned_token"));
            }
            authorization = bearer(&answer.body);
            times.push(answer.took);
        }
        let authorized = authorization.is_some();
        let answer = self.ask(&self.manifest, authorization).await?;
        if answer.status != StatusCode::OK {
            return Ok(Err(sign_of(&answer, authorized)));
        }
        times.push(answer.took);
        Ok(Ok(times))
    }

    async fn ask(&self, path: &str, authorization: Option<HeaderValue>) -> Result<Answer, String> {
        let began = Instant::now();
        let answer = timeout(PATIENCE, self.exchange(path, authorization)).await;
        let (status, headers, body) = answer.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))??;
        Ok(Answer { status, headers, body, took: began.elapsed() })
    }

    async fn exchange(
        &self,
        path: &str,
        authorization: Option<HeaderValue>,
    ) -> Result<(StatusCode, HeaderMap, Bytes), String> {
        let upstream = &self.mirror.upstream;
        let principal = Principal { class: ClassId::default(), client: "calibrate".into() };
        let patience = Patience { limit: PATIENCE, setting: "the patience of calibrate" };
        let key = self.mirror.key().clone();
        let kind = (SlotUse::Request, Lane::Small);
        let mut attempt = upstream.attempt(self.mirror.destination(), principal, kind, Some(key.clone()), patience);
        loop {
            let connection = match upstream.step(&mut attempt).await.map_err(|failure| failure.to_string())? {
                None => continue,
                Some(Connected::Pooled(pooled)) => pooled,
                Some(Connected::New(new)) => PooledConnection::start(new, &upstream.gate, upstream.terms)
                    .await
                    .map_err(|error| error.to_string())?,
            };
            let mut request = Request::get(path).header(HOST, self.mirror.host()).header(ACCEPT, MANIFESTS);
            if let Some(authorization) = &authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            let request = request.body(RequestBody::empty()).map_err(|error| error.to_string())?;
            match connection.send(request, upstream.gate.clone(), key.clone()).await {
                Ok(answer) => {
                    let (head, body) = answer.into_parts();
                    let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| error.to_string())?;
                    return Ok((head.status, head.headers, body.to_bytes()));
                }
                Err(SendError::Unsent(_) | SendError::Cut | SendError::Died { was_pooled: true, .. }) => {}
                Err(SendError::Died { cause, .. }) => return Err(cause.to_string()),
                Err(SendError::Malformed(what)) => return Err(what.to_owned()),
            }
        }
    }
}

fn sign_of(answer: &Answer, authorized: bool) -> &'static str {
    let Answer { status, headers, body, .. } = answer;
    let retry_after = signs::retry_after(headers, SystemTime::now());
    let observed = ObservedAnswer { method: &Method::GET, authorized, status: *status, headers, body, retry_after };
    let other = if *status == StatusCode::NOT_FOUND { "not found" } else { "refused" };
    signs::of(&observed).map_or(other, Label::as_str)
}

/// Path and query of a request for a token, by the challenge of the registry.
fn token_of(headers: &HeaderMap, repository: &str) -> Option<(String, RequestedAccess)> {
    let mut challenges = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let (challenge, realm) = challenges.find_map(|challenge| {
        let mut realms = realms(challenge.as_bytes()).into_iter().filter_map(|at| challenge.get(at));
        realms.find_map(|realm| Some((challenge, realm.split_once("://")?.1)))
    })?;
    // The realm names the registry as the world calls it; it is asked at the same address as for manifests.
    let path = realm.find('/').map(|at| &realm[at..])?;
    let service = challenge.split_once("service=\"").and_then(|(_, rest)| rest.split('"').next());
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(service.map(|service| ("service", service)));
    // The characters of a scope may stand in a query as they are.
    let query = format!("{}&scope=repository:{repository}:pull", query.finish());
    let access = RequestedAccess::of_query(&query)?;
    Some((format!("{path}?{query}"), access))
}

fn bearer(body: &[u8]) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token_in(body)?)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_asked_for_as_the_challenge_says() {
        let mut headers = HeaderMap::new();
        assert!(token_of(&headers, "team/app").is_none());
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"harbor\""));
        assert!(token_of(&headers, "team/app").is_none());
        let bearer = "Bearer realm=\"https://harbor.example.com/service/token\",service=\"harbor-registry\"";
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(bearer));
        let (path, access) = token_of(&headers, "team/app").unwrap();
        assert_eq!(path, "/service/token?service=harbor-registry&scope=repository:team/app:pull");
        assert_eq!(Some(access), RequestedAccess::of_query("scope=repository:team/app:pull"));
    }
}
