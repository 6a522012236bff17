//! A token service as Harbor's: it signs tokens that the distribution registry accepts, and fails as Harbor's does.
//!
//! <https://distribution.github.io/distribution/spec/auth/token/>. Its certificate goes with each token (`x5c`), and
//! the registry trusts that very certificate. While it is ill, each request fails the first time it is made; the same
//! request once more is answered well.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::program::{find_program, run};
use crate::harbor::{answer, ill};
use crate::http::{Framing, Head, Wire};
use crate::{Illness, PASSWORD, StubConnection, StubRegistry, USER};

/// The issuer of the tokens, as Harbor calls it.
pub(super) const ISSUER: &str = "harbor-token-issuer";
/// For whom they are, as Harbor calls it.
pub(super) const SERVICE: &str = "harbor-registry";
/// How long a token is good, as Harbor's.
const LIFE: Duration = Duration::from_secs(30 * 60);
/// How much the clocks of service and registry may differ, in seconds.
const LEEWAY: u64 = 60;

/// A running token service; it knows one user, [`USER`] with [`PASSWORD`].
pub struct TokenService {
    stub: StubRegistry,
    signer: Arc<Signer>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    illness: Option<Illness>,
    /// The requests since it fell ill.
    failed: HashSet<String>,
    struck: usize,
}

impl TokenService {
    /// Starts it with a key of its own.
    ///
    /// # Panics
    /// When openssl cannot be run, or no loopback port is free.
    pub async fn start() -> Self {
        let signer = Arc::new(Signer::new());
        let state = Arc::new(Mutex::new(State::default()));
        let (shared, key) = (state.clone(), signer.clone());
        let stub = StubRegistry::raw(move |connection| serve(connection, shared.clone(), key.clone())).await;
        Self { stub, signer, state }
    }

    /// Where it speaks plain HTTP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.stub.address()
    }

    /// The certificate of the key that signs.
    #[must_use]
    pub fn certificate(&self) -> &Path {
        &self.signer.certificate
    }

    /// From now on each request fails once, in this way.
    pub fn fall_ill(&self, illness: Illness) {
        let mut state = lock(&self.state);
        state.illness = Some(illness);
        state.failed.clear();
    }

    /// How many requests have failed so far.
    #[must_use]
    pub fn struck(&self) -> usize {
        lock(&self.state).struck
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Whether this request fails, and how.
    fn strike(&mut self, target: &str) -> Option<Illness> {
        let illness = self.illness?;
        let is_first = self.failed.insert(target.to_owned());
        self.struck += usize::from(is_first);
        is_first.then_some(illness)
    }
}

async fn serve(connection: StubConnection, state: Arc<Mutex<State>>, signer: Arc<Signer>) {
    let mut wire = Wire::new(connection);
    while let Ok(Some(head)) = wire.read_head().await {
        if wire.body(Framing::of_request(&head)).collect().await.is_err() {
            return;
        }
        let illness = lock(&state).strike(head.target());
        let reply = match illness {
            Some(Illness::Reset) => {
                let _ = wire.stream().set_zero_linger();
                return;
            }
            Some(Illness::PoisonedToken) => well(&head, &signer, Grant::Nothing),
            Some(illness) => ill(illness, &head),
            None => well(&head, &signer, Grant::AsAsked),
        };
        if wire.send(&reply).await.is_err() {
            return;
        }
    }
}

/// The rights of a token.
#[derive(Clone, Copy, PartialEq)]
enum Grant {
    AsAsked,
    Nothing,
}

fn well(head: &Head, signer: &Signer, grant: Grant) -> Vec<u8> {
    if head.method() != "GET" {
        return answer(head, "405 Method Not Allowed", &[], "");
    }
    let expected = format!("Basic {}", BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")));
    if head.header("Authorization") != Some(expected.as_str()) {
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"unauthorized"}]}"#;
        return answer(head, "401 Unauthorized", &["Www-Authenticate: Basic realm=\"harbor\""], body);
    }
    let access = if grant == Grant::AsAsked { accesses(head.target()) } else { Vec::new() };
    let token = signer.token(&access);
    let body = json!({"token": token, "access_token": token, "expires_in": LIFE.as_secs()});
    answer(head, "200 OK", &["Content-Type: application/json"], &body.to_string())
}

/// All that a request for a token asks for: `scope=repository:NAME:ACTIONS`, any number of them.
fn accesses(target: &str) -> Vec<Value> {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let scopes = query.split('&').filter_map(|pair| pair.strip_prefix("scope="));
    let scopes = scopes.map(|scope| scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ","));
    scopes.flat_map(|scope| scope.split(['+', ' ']).filter_map(access).collect::<Vec<_>>()).collect()
}

fn access(scope: &str) -> Option<Value> {
    let (kind, rest) = scope.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    let actions: Vec<&str> = actions.split(',').collect();
    Some(json!({"type": kind, "name": name, "actions": actions}))
}

/// A key, and the certificate that goes with it.
struct Signer {
    key: PathBuf,
    certificate: PathBuf,
    /// The first part of every token.
    header: String,
    folder: TempDir,
}

impl Signer {
    fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let (key, certificate) = (folder.path().join("token.key"), folder.path().join("token.crt"));
        run(openssl()
            .args(["req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "30", "-subj", "/CN=token issuer"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate));
        let text = fs::read_to_string(&certificate).expect("openssl has made it");
        // PEM is base64 between two lines of dashes, and so is an entry of x5c.
        let der: String = text.lines().filter(|line| !line.starts_with('-')).collect();
        let header = encode(&json!({"typ": "JWT", "alg": "RS256", "x5c": [der]}));
        Self { key, certificate, header, folder }
    }

    /// A signed token that allows this.
    fn token(&self, access: &[Value]) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let payload = json!({
            "iss": ISSUER, "sub": USER, "aud": SERVICE, "jti": format!("{}", now.as_nanos()),
            "iat": now.as_secs(), "nbf": now.as_secs() - LEEWAY, "exp": (now + LIFE).as_secs(),
            "access": access,
        });
        let signed = format!("{}.{}", self.header, encode(&payload));
        let (text, signature) = (self.folder.path().join("text"), self.folder.path().join("signature"));
        fs::write(&text, &signed).expect("the folder is ours");
        let mut command = openssl();
        command.args(["dgst", "-sha256", "-sign"]).arg(&self.key).arg("-out").arg(&signature).arg(&text);
        run(&mut command);
        let signature = fs::read(&signature).expect("openssl has made it");
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

fn openssl() -> Command {
    Command::new(find_program("openssl"))
}

fn encode(value: &Value) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_from_the_query() {
        let both = accesses("/service/token?scope=repository%3Aa%2Fb%3Apull%2Cpush&service=x&scope=repository:c:pull");
        let expected = [
            json!({"type": "repository", "name": "a/b", "actions": ["pull", "push"]}),
            json!({"type": "repository", "name": "c", "actions": ["pull"]}),
        ];
        assert_eq!(both, expected);
        assert!(accesses("/service/token?service=x").is_empty());
    }

    #[test]
    fn a_request_fails_once_while_the_service_is_ill() {
        let mut state = State::default();
        assert_eq!(state.strike("/a"), None);
        state.illness = Some(Illness::BadGateway);
        assert_eq!(state.strike("/a"), Some(Illness::BadGateway));
        assert_eq!(state.strike("/a"), None);
        assert_eq!(state.strike("/b"), Some(Illness::BadGateway));
        assert_eq!(state.struck, 2);
    }
}
