//! A Harbor that falls ill: tokens, manifests and blobs as Harbor's core answers them, and its failures on demand.
//!
//! Illness strikes token and manifest requests at random, and the same request at most twice in a row; or it strikes as a
//! test has written it down. The header `X-Pull` of the tests' pullers tells which of them sent a request.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use tokio::sync::watch;

use crate::http::{Framing, Head, Wire};
use crate::{Random, StubConnection, StubRegistry, blob_of, manifest_of};

/// The only user; anybody else's password is wrong.
pub const USER: &str = "robot";
/// Its password.
pub const PASSWORD: &str = "hunter2";
/// Bytes of each blob.
const BLOB: usize = 16 * 1024;

/// An answer whose body is late.
const STALLED: &str = "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\n";

/// One way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Illness {
    /// A database error dressed as 401.
    DatabaseError,
    /// A token of a user without the actions that were asked for. Strikes token requests only, and never twice in a row: two
    /// alike are a real denial.
    PoisonedToken,
    /// The same of nobody: the log-in itself failed in the database.
    NamelessToken,
    /// A real denial: there is no such project.
    NoSuchProject,
    /// 500.
    InternalError,
    /// 502 from nginx, as HTML.
    BadGateway,
    /// 503.
    Unavailable,
    /// The connection is reset.
    Reset,
    /// A denial that hides a database error. Strikes manifest requests only.
    AmbiguousDenial,
    /// 504 from nginx.
    GatewayTimeout,
    /// 429, to come back in a second.
    TooManyRequests,
    /// No word until [`StubHarbor::speak`]; then it is well.
    Silence,
    /// 502, whose body does not come until [`StubHarbor::speak`].
    Stall,
    /// This status, with these lines as headers and so many bytes as body.
    Answer(&'static str, &'static [&'static str], usize),
}

/// A running stub Harbor.
#[derive(Debug)]
pub struct StubHarbor {
    stub: StubRegistry,
    state: Arc<Mutex<State>>,
    /// Whether the silent speak.
    speaks: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    course: Course,
    struck: Vec<(Instant, Illness)>,
    asked: Vec<(Instant, Head)>,
    /// Requests that are at the database, and for how long each is; `None` where that does not matter.
    busy: usize,
    most_busy: usize,
    busy_for: Option<Duration>,
}

/// The illness that strikes a request with this head, of which so many came before.
type Script = dyn FnMut(&Head, usize) -> Option<Illness> + Send;

/// How illness comes.
enum Course {
    Random(AtRandom),
    /// So many connections to its database.
    Limited(usize),
    Scripted(Box<Script>),
}

impl fmt::Debug for Course {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Course::Random(_) => "Random",
            Course::Limited(_) => "Limited",
            Course::Scripted(_) => "Scripted",
        })
    }
}

struct AtRandom {
    illnesses: Vec<Illness>,
    one_in: u64,
    random: Random,
    /// How often in a row a request was struck, by puller and path.
    in_a_row: HashMap<String, (u32, Option<Illness>)>,
}

impl StubHarbor {
    /// Starts one in which one of `one_in` token and manifest requests falls ill, in one of these ways.
    ///
    /// # Panics
    /// When no loopback port is free.
    pub async fn start(illnesses: &[Illness], one_in: u64, seed: u64) -> StubHarbor {
        let illnesses = illnesses.to_vec();
        let random = AtRandom { illnesses, one_in, random: Random::new(seed), in_a_row: HashMap::new() };
        StubHarbor::launch(Course::Random(random)).await
    }

    /// Starts one as a real Harbor was measured to be at its limit: each request takes a connection to the database for
    /// `busy`, and those beyond `connections` get what Harbor says then, for as long as too many come.
    ///
    /// # Panics
    /// When no loopback port is free.
    pub async fn limited(connections: usize, busy: Duration) -> StubHarbor {
        let harbor = StubHarbor::launch(Course::Limited(connections)).await;
        locked(&harbor.state).busy_for = Some(busy);
        harbor
    }

    /// Starts one that falls ill as `script` says: it gets the head of each request, and how many came before with the
    /// same method, target and puller.
    ///
    /// # Panics
    /// When no loopback port is free.
    pub async fn scripted(script: impl FnMut(&Head, usize) -> Option<Illness> + Send + 'static) -> StubHarbor {
        StubHarbor::launch(Course::Scripted(Box::new(script))).await
    }

    async fn launch(course: Course) -> StubHarbor {
        let (struck, asked) = (Vec::new(), Vec::new());
        let state = Arc::new(Mutex::new(State { course, struck, asked, busy: 0, most_busy: 0, busy_for: None }));
        let (speaks, voice) = watch::channel(false);
        let shared = state.clone();
        let stub = StubRegistry::raw(move |connection| serve(connection, shared.clone(), voice.clone())).await;
        StubHarbor { stub, state, speaks }
    }

    /// Gives the database so many connections from now on, where it was [`limited`](StubHarbor::limited).
    ///
    /// # Panics
    /// When the stub did.
    pub fn limit(&self, connections: usize) {
        locked(&self.state).course = Course::Limited(connections);
    }

    /// The most requests that were at the database at once since this was called last.
    ///
    /// # Panics
    /// When the stub did.
    #[must_use]
    pub fn most_busy(&self) -> usize {
        let mut state = locked(&self.state);
        let busy = state.busy;
        std::mem::replace(&mut state.most_busy, busy)
    }

    /// Lets the silent speak, now and from now on.
    pub fn speak(&self) {
        self.speaks.send_replace(true);
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.stub.address()
    }

    /// Its connections.
    #[must_use]
    pub fn stub(&self) -> &StubRegistry {
        &self.stub
    }

    /// Every illness that struck, in order.
    ///
    /// # Panics
    /// When the stub did.
    #[must_use]
    pub fn struck(&self) -> Vec<Illness> {
        locked(&self.state).struck.iter().map(|(_, illness)| *illness).collect()
    }

    /// When illness struck first.
    ///
    /// # Panics
    /// When the stub did.
    #[must_use]
    pub fn first_struck(&self) -> Option<Instant> {
        locked(&self.state).struck.first().map(|(at, _)| *at)
    }

    /// Method and path of every request, in order.
    ///
    /// # Panics
    /// When the stub did.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.asked().iter().map(|(_, head)| format!("{} {}", head.method(), head.target())).collect()
    }

    /// When each request came, and its head, in order.
    ///
    /// # Panics
    /// When the stub did.
    #[must_use]
    pub fn asked(&self) -> Vec<(Instant, Head)> {
        locked(&self.state).asked.clone()
    }
}

/// Nobody panics with a lock in hand.
fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no panic under a lock")
}

async fn serve(connection: StubConnection, state: Arc<Mutex<State>>, mut voice: watch::Receiver<bool>) {
    let mut wire = Wire::new(connection);
    while let Ok(Some(head)) = wire.read_head().await {
        if wire.body(Framing::of_request(&head)).collect().await.is_err() {
            return;
        }
        let illness = locked(&state).strike(&head);
        let busy = locked(&state).busy_for;
        if let Some(busy) = busy {
            tokio::time::sleep(busy).await;
            locked(&state).busy -= 1;
        }
        let answer = match illness {
            Some(Illness::Reset) => {
                let _ = wire.stream().set_zero_linger();
                return;
            }
            Some(illness @ (Illness::Silence | Illness::Stall)) => {
                let (beginning, rest) = match illness {
                    Illness::Stall => (STALLED, b"late".to_vec()),
                    _ => ("", well(&head)),
                };
                if wire.send(beginning.as_bytes()).await.is_err() {
                    return;
                }
                tokio::select! {
                    spoken = voice.wait_for(|speaks| *speaks) => if spoken.is_err() { return },
                    // Nobody asks two things at once: this is the end.
                    _ = wire.read_more() => return,
                }
                rest
            }
            Some(illness) => ill(illness, &head),
            None => well(&head),
        };
        if wire.send(&answer).await.is_err() {
            return;
        }
    }
}

impl State {
    /// Whether this request falls ill, and how.
    fn strike(&mut self, head: &Head) -> Option<Illness> {
        let is_same = |other: &Head| {
            let puller = head.header("X-Pull").unwrap_or("");
            (other.method(), other.target()) == (head.method(), head.target())
                && other.header("X-Pull").unwrap_or("") == puller
        };
        let illness = match &mut self.course {
            Course::Random(random) => random.strike(head),
            Course::Limited(limit) => {
                self.busy += 1;
                self.most_busy = self.most_busy.max(self.busy);
                overload(head, self.busy > *limit, self.asked.len())
            }
            Course::Scripted(script) => {
                let before = self.asked.iter().filter(|(_, asked)| is_same(asked)).count();
                script(head, before)
            }
        };
        let now = Instant::now();
        self.asked.push((now, head.clone()));
        self.struck.extend(illness.map(|illness| (now, illness)));
        illness
    }
}

impl AtRandom {
    fn strike(&mut self, head: &Head) -> Option<Illness> {
        let is_token = head.target().starts_with("/service/token");
        let is_manifest = head.target().contains("/manifests/") && head.header("Authorization").is_some();
        if !is_token && !is_manifest {
            return None;
        }
        let key = format!("{} {}", head.header("X-Pull").unwrap_or_default(), head.target());
        let (times, before) = self.in_a_row.get(&key).copied().unwrap_or_default();
        let fits = |illness: &Illness| match illness {
            Illness::PoisonedToken => is_token && before != Some(Illness::PoisonedToken),
            Illness::AmbiguousDenial => is_manifest,
            _ => true,
        };
        let choices: Vec<Illness> = self.illnesses.iter().copied().filter(fits).collect();
        if times >= 2 || choices.is_empty() || self.random.below(self.one_in) != 0 {
            self.in_a_row.remove(&key);
            return None;
        }
        let choice = usize::try_from(self.random.below(choices.len() as u64)).expect("a small number");
        let illness = choices[choice];
        self.in_a_row.insert(key, (times + 1, Some(illness)));
        Some(illness)
    }
}

/// The answers of Harbor where its database refuses: tokens of users and of nobody, both without rights, and denials.
fn overload(head: &Head, is_refused: bool, number: usize) -> Option<Illness> {
    let is_token = head.target().starts_with("/service/token");
    let is_checked = is_token || head.header("Authorization").is_some();
    let token = if number.is_multiple_of(2) { Illness::PoisonedToken } else { Illness::NamelessToken };
    (is_refused && is_checked).then_some(if is_token { token } else { Illness::DatabaseError })
}

/// The answer of a Harbor that is ill.
pub(crate) fn ill(illness: Illness, head: &Head) -> Vec<u8> {
    match illness {
        Illness::DatabaseError => {
            let body =
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"unauthorized: pq: sorry, too many clients already"}]}"#;
            answer(head, "401 Unauthorized", &["Www-Authenticate: "], body)
        }
        Illness::PoisonedToken => token(head, USER, &[]),
        Illness::NamelessToken => token(head, "", &[]),
        Illness::NoSuchProject => no_such_project(head),
        Illness::InternalError => {
            let body = r#"{"errors":[{"code":"UNKNOWN","message":"internal server error"}]}"#;
            answer(head, "500 Internal Server Error", &[], body)
        }
        Illness::BadGateway => {
            answer(head, "502 Bad Gateway", &["Content-Type: text/html"], "<html><h1>502 Bad Gateway</h1></html>")
        }
        Illness::Unavailable => answer(head, "503 Service Unavailable", &[], ""),
        Illness::AmbiguousDenial => denied(head),
        Illness::GatewayTimeout => answer(head, "504 Gateway Time-out", &["Content-Type: text/html"], "<html></html>"),
        Illness::TooManyRequests => answer(head, "429 Too Many Requests", &["Retry-After: 1"], ""),
        Illness::Answer(status, headers, length) => answer_bytes(head, status, headers, &vec![b'x'; length]),
        Illness::Reset | Illness::Silence | Illness::Stall => unreachable!("no answer"),
    }
}

fn well(head: &Head) -> Vec<u8> {
    let target = head.target();
    if target.starts_with("/service/token") {
        let expected = format!("Basic {}", BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")));
        return match head.header("Authorization") {
            Some(given) if given == expected => token(head, USER, &["pull"]),
            // As Harbor does: also a wrong password gets a token, which names nobody and allows what everybody may.
            Some(_) | None if target.contains("repository:public/") => token(head, "", &["pull"]),
            Some(_) | None => token(head, "", &[]),
        };
    }
    let Some((repository, _)) = target
        .trim_start_matches("/v2/")
        .split_once("/manifests/")
        .or_else(|| target.trim_start_matches("/v2/").split_once("/blobs/"))
    else {
        return answer(head, "404 Not Found", &[], "{}");
    };
    let Some(credentials) = head.header("Authorization") else {
        let host = head.header("Host").unwrap_or_default();
        let challenge = format!(
            "Www-Authenticate: Bearer realm=\"http://{host}/service/token\",service=\"harbor-registry\",scope=\"repository:{repository}:pull\""
        );
        return answer(head, "401 Unauthorized", &[&challenge], r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#);
    };
    if repository.starts_with("nosuch/") {
        return no_such_project(head);
    }
    if !allows(credentials, repository) {
        return denied(head);
    }
    if target.contains("/manifests/") {
        return answer_bytes(head, "200 OK", &[], &manifest_of(repository, BLOB));
    }
    answer_bytes(head, "200 OK", &[], &blob_of(target, BLOB))
}

fn no_such_project(head: &Head) -> Vec<u8> {
    let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"unauthorized: project nosuch not found"}]}"#;
    answer(head, "401 Unauthorized", &["Www-Authenticate: "], body)
}

fn denied(head: &Head) -> Vec<u8> {
    let body =
        r#"{"errors":[{"code":"UNAUTHORIZED","message":"unauthorized to access repository: app, action: pull"}]}"#;
    answer(head, "401 Unauthorized", &["Www-Authenticate: Basic realm=\"harbor\""], body)
}

/// A token of this user for the repository in the query, with these actions.
fn token(head: &Head, user: &str, actions: &[&str]) -> Vec<u8> {
    let query = head.target().split_once('?').map_or("", |(_, query)| query);
    let scope = query.split('&').find_map(|pair| pair.strip_prefix("scope=")).unwrap_or_default();
    let repository = scope.split(':').nth(1).unwrap_or_default();
    let payload = serde_json::json!({
        "iss": "harbor-token-issuer",
        "sub": user,
        "aud": "harbor-registry",
        "access": [{"type": "repository", "name": repository, "actions": actions}],
    });
    let jwt = format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(payload.to_string()));
    answer(head, "200 OK", &[], &serde_json::json!({"token": jwt, "access_token": "", "expires_in": 1800}).to_string())
}

fn allows(credentials: &str, repository: &str) -> bool {
    let payload = credentials.strip_prefix("Bearer ").and_then(|jwt| jwt.split('.').nth(1));
    let payload = payload.and_then(|payload| BASE64_URL_SAFE_NO_PAD.decode(payload).ok()).unwrap_or_default();
    let Ok(payload) = serde_json::from_slice::<serde_json::Value>(&payload) else { return false };
    payload["access"][0]["name"] == repository && payload["access"][0]["actions"][0] == "pull"
}

pub(crate) fn answer(head: &Head, status: &str, headers: &[&str], body: &str) -> Vec<u8> {
    answer_bytes(head, status, headers, body.as_bytes())
}

fn answer_bytes(head: &Head, status: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let headers: String = headers.iter().flat_map(|header| [header, "\r\n"]).collect();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len()).into_bytes();
    if head.method() == "HEAD" { answer } else { [answer, body.to_vec()].concat() }
}
