//! Harbor's bad days: answers that its overload spoils are asked for again, and real denials are not.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use roadstead_test_support::http::{Framing, request};
use roadstead_test_support::{
    Illness, PASSWORD, Response, Sidecar, StubConnection, StubHarbor, StubRegistry, USER, Wire, config, eventually_is,
};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The longest time of a step that needs no time of its own.
const SOON: Duration = Duration::from_secs(2);

/// Pulls of the great storm.
const PULLS: u64 = 2000;
const PULLERS: u64 = 50;

/// Requests of each pull.
const REQUESTS: u64 = 5;

const ALL: [Illness; 8] = [
    Illness::DatabaseError,
    Illness::PoisonedToken,
    Illness::InternalError,
    Illness::BadGateway,
    Illness::Unavailable,
    Illness::GatewayTimeout,
    Illness::TooManyRequests,
    Illness::Reset,
];

async fn start(harbor: &StubHarbor, repair: &str) -> (Sidecar, SocketAddr) {
    start_with_slots(10, harbor, repair).await
}

async fn start_with_slots(slots: usize, harbor: &StubHarbor, repair: &str) -> (Sidecar, SocketAddr) {
    let registry = format!(
        "[registries.harbor]\nhosts = [\"registry.test\"]\ncap = {slots}\nshare = 1\n\
         [registries.harbor.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"http://{}\"\n{repair}\n",
        harbor.address()
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
    let mirror = sidecar.listener("mirror").unwrap();
    (sidecar, mirror)
}

/// A puller as they all are: it does what the challenge says, and gives up at the first refusal.
struct Puller {
    wire: Wire,
    name: String,
}

impl Puller {
    async fn new(mirror: SocketAddr, name: String) -> Puller {
        Puller { wire: Wire::open(mirror).await.unwrap(), name: format!("X-Pull: {name}") }
    }

    async fn get(&mut self, path: &str, authorization: Option<&str>) -> Result<Response, String> {
        let authorization = authorization.map(|value| format!("Authorization: {value}"));
        let headers: Vec<&str> = [Some(self.name.as_str()), authorization.as_deref()].into_iter().flatten().collect();
        self.wire.get(path, &headers).await.map_err(|error| format!("{path}: {error}"))
    }

    async fn expect(&mut self, path: &str, authorization: Option<&str>) -> Result<Response, String> {
        let answer = self.get(path, authorization).await?;
        if answer.status() == 200 { Ok(answer) } else { Err(format!("{path}: {} {}", answer.status(), answer.text())) }
    }

    async fn token(&mut self, repository: &str, password: &str) -> Result<Response, String> {
        let path = format!("/service/token?service=harbor-registry&scope=repository:{repository}:pull");
        self.get(&path, Some(&basic(USER, password))).await
    }

    /// A token that allows to pull from the repository, as a header; what Harbor says to others is in the token, too.
    async fn bearer(&mut self, repository: &str) -> String {
        let answer = self.token(repository, PASSWORD).await.unwrap();
        format!("Bearer {}", answer.json()["token"].as_str().unwrap())
    }

    async fn head(&mut self, path: &str, bearer: &str) -> Response {
        let authorization = format!("Authorization: {bearer}");
        self.wire.ask("HEAD", path, &[&self.name, &authorization]).await.unwrap()
    }

    async fn pull(&mut self, repository: &str) -> Result<(), String> {
        let manifest = format!("/v2/{repository}/manifests/v1");
        let challenged = self.get(&manifest, None).await?;
        if challenged.status() != 401 {
            return Err(format!("{manifest}: {} instead of a challenge", challenged.status()));
        }
        let answer = self.token(repository, PASSWORD).await?;
        if answer.status() != 200 {
            return Err(format!("token: {} {}", answer.status(), answer.text()));
        }
        let token = format!("Bearer {}", answer.json()["token"].as_str().ok_or("no token")?);
        let found = self.head(&manifest, &token).await;
        if found.status() != 200 {
            return Err(format!("HEAD {manifest}: {}", found.status()));
        }
        self.expect(&manifest, Some(&token)).await?;
        self.expect(&format!("/v2/{repository}/blobs/sha256:1"), Some(&token)).await?;
        Ok(())
    }
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// All pulls, each by one of the pullers; tells which failed.
async fn pull_all(mirror: SocketAddr, pulls: u64) -> Vec<String> {
    let next = Arc::new(AtomicU64::new(0));
    let pullers = (0..PULLERS).map(|_| {
        let next = next.clone();
        tokio::spawn(async move {
            let mut failed = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= pulls {
                    return failed;
                }
                let mut puller = Puller::new(mirror, number.to_string()).await;
                failed.extend(puller.pull(&format!("team/app{}", number % 20)).await.err());
            }
        })
    });
    let mut failed = Vec::new();
    for puller in pullers.collect::<Vec<_>>() {
        failed.extend(puller.await.unwrap());
    }
    failed
}

/// All of a counter, whatever its other labels.
async fn total(sidecar: &Sidecar, name: &str) -> u64 {
    sidecar.metrics().await.count(name, &[("registry", "harbor")])
}

async fn retries(sidecar: &Sidecar) -> u64 {
    total(sidecar, "roadstead_retries_total").await
}

/// A tenth of the token and manifest requests fails in every way there is; nobody notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_on_a_sick_harbor_is_served_whole() {
    let harbor = StubHarbor::start(&ALL, 10, 7).await;
    let (sidecar, mirror) = start(&harbor, "").await;
    let began = Instant::now();
    let failed = pull_all(mirror, PULLS).await;
    let struck = harbor.struck();
    let again = retries(&sidecar).await;
    let mut ways: BTreeMap<String, usize> = BTreeMap::new();
    for illness in &struck {
        *ways.entry(format!("{illness:?}")).or_default() += 1;
    }
    println!(
        "{PULLS} pulls in {:.1?}: {} answers spoiled {ways:?}, {again} asked again",
        began.elapsed(),
        struck.len()
    );
    assert_eq!(failed, [""; 0], "pulls that failed");
    assert!(struck.len() > 300 && ways.len() == ALL.len(), "{ways:?}");
    // A kept connection that is reset may have been closed before the request came: that is replaced, not asked again.
    let resets = struck.iter().filter(|illness| **illness == Illness::Reset).count() as u64;
    let requests = PULLS * REQUESTS;
    let more = harbor.requests().len() as u64 - requests;
    assert!((again..=again + resets).contains(&more), "{again} asked again, and {more} more came: {resets} resets");
    // A HEAD that is denied is looked at by a GET, and asked again.
    let spoiled = struck.len() as u64;
    assert!((spoiled - resets..=2 * spoiled).contains(&again), "{again} asked again for {spoiled}");
    assert!(harbor.stub().peak() <= 10, "peak {}", harbor.stub().peak());
    assert!(total(&sidecar, "roadstead_repaired_total").await > 300);
}

/// The same without repair, so that the test above shows what repair does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_repair_a_large_part_fails() {
    let harbor = StubHarbor::start(&ALL, 10, 7).await;
    let (sidecar, mirror) = start(&harbor, "[registries.harbor.repair]\nenabled = false").await;
    let failed = pull_all(mirror, 200).await;
    println!("without repair {} of 200 pulls failed", failed.len());
    assert!(failed.len() > 20, "{}", failed.len());
    assert_eq!(retries(&sidecar).await, 0);
}

/// A permanent 5xx of one manifest is no distress: a handful of requests within a few seconds, then its own words.
#[tokio::test]
async fn a_permanent_error_is_asked_for_a_handful_of_times() {
    let harbor =
        StubHarbor::scripted(|head, _| head.target().contains("/manifests/").then_some(Illness::InternalError)).await;
    let (sidecar, mirror) = start(&harbor, "").await;
    let mut puller = Puller::new(mirror, "1".to_owned()).await;
    let bearer = puller.bearer("team/app").await;
    let began = Instant::now();
    let answer = puller.get("/v2/team/app/manifests/v1", Some(&bearer)).await.unwrap();
    assert_eq!(answer.status(), 500);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!((harbor.requests().len(), retries(&sidecar).await), (1 + 5, 4));
}

/// The counters agree with the requests that Harbor saw, by sign.
#[tokio::test]
async fn each_sign_is_counted_as_harbor_saw_it() {
    const TOKEN: &str = "/service/token?scope=repository:team/app:pull";
    const MANIFEST: &str = "/v2/team/app/manifests/v1";
    // A reset first: on a kept connection it would be replaced instead.
    let cases = [
        ("broken", Illness::Reset, "GET", TOKEN),
        ("database_error", Illness::DatabaseError, "GET", TOKEN),
        ("poisoned_token", Illness::PoisonedToken, "GET", TOKEN),
        ("internal_error", Illness::InternalError, "GET", TOKEN),
        ("bad_gateway", Illness::BadGateway, "HEAD", MANIFEST),
        ("unavailable", Illness::Unavailable, "GET", MANIFEST),
        ("gateway_timeout", Illness::GatewayTimeout, "GET", MANIFEST),
        ("too_many_requests", Illness::TooManyRequests, "HEAD", MANIFEST),
        // In the distress that those before have raised.
        ("ambiguous_401", Illness::AmbiguousDenial, "GET", MANIFEST),
        ("unseen_401", Illness::DatabaseError, "HEAD", MANIFEST),
    ];
    let harbor = StubHarbor::scripted(move |head, before| {
        let case = cases.iter().find(|(sign, ..)| head.header("X-Pull") == Some(sign));
        case.filter(|(_, _, method, _)| before == 0 && head.method() == *method).map(|(_, illness, ..)| *illness)
    })
    .await;
    let (sidecar, mirror) = start(&harbor, "").await;
    let mut authorization = format!("Authorization: {}", basic(USER, PASSWORD));
    for (sign, _, method, path) in cases {
        if path == MANIFEST && authorization.contains("Basic") {
            authorization =
                format!("Authorization: {}", Puller::new(mirror, String::new()).await.bearer("team/app").await);
        }
        let mut wire = Wire::open(mirror).await.unwrap();
        let answer = wire.ask(method, path, &[&authorization, &format!("X-Pull: {sign}")]).await.unwrap();
        assert_eq!(answer.status(), 200, "{sign}");
        let came = harbor.asked().iter().filter(|(_, head)| head.header("X-Pull") == Some(sign)).count() as u64;
        assert_eq!(came, if sign == "unseen_401" { 3 } else { 2 }, "{sign}");
        let metrics = sidecar.metrics().await;
        let counted = |name| metrics.count(name, &[("registry", "harbor"), ("sign", sign)]);
        assert_eq!(counted("roadstead_retries_total"), came - 1, "{sign}");
        assert_eq!(counted("roadstead_repaired_total"), 1, "{sign}");
    }
    assert_eq!(retries(&sidecar).await, harbor.requests().len() as u64 - 1 - cases.len() as u64);
}

/// While a request pauses it holds nothing, and when it comes back it is as old as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_gives_the_slot_back_and_keeps_the_age() {
    let sick = Illness::Answer("503 Service Unavailable", &["Retry-After: 1"], 100);
    let harbor = StubHarbor::scripted(move |head, before| match head.header("X-Pull") {
        Some("first") if before == 0 => Some(sick),
        Some("slow") => Some(Illness::Silence),
        _ => None,
    })
    .await;
    let (sidecar, mirror) = start_with_slots(1, &harbor, "").await;
    let ask = |name: &'static str| {
        tokio::spawn(async move {
            Puller::new(mirror, name.to_owned()).await.token("team/app", PASSWORD).await.unwrap().status()
        })
    };
    let came = async || {
        let asked = harbor.asked();
        asked.iter().map(|(_, head)| head.header("X-Pull").unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    let waiting = async || total(&sidecar, "roadstead_waiting").await;
    let first = ask("first");
    eventually_is("the first is ill", SOON, "first".to_owned(), came).await;
    assert_eq!(ask("other").await.unwrap(), 200, "it has the only slot");
    let slow = ask("slow");
    eventually_is("another has it", SOON, "first other slow".to_owned(), came).await;
    let young = ask("young");
    eventually_is("a younger one waits for it", SOON, 1, waiting).await;
    eventually_is("the first came back", SOON, 2, waiting).await;
    harbor.speak();
    for asked in [first, slow, young] {
        assert_eq!(asked.await.unwrap(), 200);
    }
    assert_eq!(came().await, "first other slow first young");
    assert_eq!(harbor.stub().peak(), 1);
}

/// A registry that is no Harbor denies without any challenge: it is asked a handful of times, however many are denied, and
/// once where a password is denied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_without_any_challenge_is_asked_for_a_handful_of_times() {
    let password = basic(USER, PASSWORD);
    for (credentials, gets, heads) in [("Bearer opaque", 5, 2), (&*password, 1, 1), ("basic eDp5", 1, 1)] {
        for (method, times) in [("GET", gets), ("HEAD", heads)] {
            let harbor = StubHarbor::scripted(|head, _| {
                let is_denied = head.target().contains("/manifests/");
                Some(Illness::Answer(if is_denied { "401 Unauthorized" } else { "200 OK" }, &[], 6))
            })
            .await;
            let (sidecar, mirror) = start(&harbor, "").await;
            let header = format!("Authorization: {credentials}");
            assert_eq!(Wire::open(mirror).await.unwrap().get("/v2/", &[&header]).await.unwrap().status(), 200);
            let began = Instant::now();
            let asked = (0..6).map(|number| {
                let header = header.clone();
                tokio::spawn(async move {
                    let path = format!("/v2/team/app{number}/manifests/v1");
                    Wire::open(mirror).await.unwrap().ask(method, &path, &[&header]).await.unwrap().status()
                })
            });
            for asked in asked.collect::<Vec<_>>() {
                assert_eq!(asked.await.unwrap(), 401);
            }
            assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
            assert_eq!(harbor.requests().len() - 1, 6 * times, "{credentials} {method}");
            let status = sidecar.status().await;
            assert_eq!(status["registries"]["harbor"]["distress"]["level"], 0.0, "{status}");
        }
    }
}

/// A denial that may hide a database error is handed on while the registry is well, and asked for again in distress.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ambiguous_denial_is_doubted_in_distress_alone() {
    let harbor = StubHarbor::scripted(|head, before| match head.header("X-Pull") {
        Some("ambiguous") if before == 0 => Some(Illness::AmbiguousDenial),
        Some("broken") if before == 0 && head.target().contains("/manifests/") => Some(Illness::DatabaseError),
        _ => None,
    })
    .await;
    for (first, path) in
        [("calm", "/v2/"), ("calm", "/v2/team/app/manifests/v1"), ("broken", "/v2/team/app/manifests/v2")]
    {
        let (_sidecar, mirror) = start(&harbor, "").await;
        let bearer = Puller::new(mirror, String::new()).await.bearer("team/app").await;
        let answer = Puller::new(mirror, first.to_owned()).await.get("/v2/team/app/manifests/v9", Some(&bearer)).await;
        assert_eq!(answer.unwrap().status(), 200);
        let answer = Puller::new(mirror, "ambiguous".to_owned()).await.get(path, Some(&bearer)).await.unwrap();
        assert_eq!(answer.status(), if first == "calm" { 401 } else { 200 }, "{first} {path}");
    }
}

/// Such a token may have been passed on before distress began. Its client is told at once, and no slot is spent on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_allows_nothing_is_denied_at_once_also_in_distress() {
    let harbor = StubHarbor::scripted(|head, before| match head.header("X-Pull") {
        Some("poor") if head.target().starts_with("/service/token") => Some(Illness::PoisonedToken),
        Some("poor") if head.target().ends_with("v2") => Some(Illness::DatabaseError),
        Some("broken") if before == 0 => Some(Illness::DatabaseError),
        _ => None,
    })
    .await;
    let (sidecar, mirror) = start(&harbor, "").await;
    let mut poor = Puller::new(mirror, "poor".to_owned()).await;
    let token = poor.bearer("team/app").await;
    let mut broken = Puller::new(mirror, String::new()).await;
    let bearer = broken.bearer("team/app").await;
    broken.name = "X-Pull: broken".to_owned();
    assert_eq!(broken.get("/v2/team/app/manifests/v1", Some(&bearer)).await.unwrap().status(), 200);
    assert_eq!(sidecar.status().await["registries"]["harbor"]["distress"]["on"], true);
    let (asked, began) = (harbor.requests().len(), Instant::now());
    for path in ["/v2/team/app/manifests/v1", "/v2/team/app/manifests/v2", "/v2/team/app/blobs/sha256:1"] {
        assert_eq!(poor.get(path, Some(&token)).await.unwrap().status(), 401, "{path}");
    }
    assert_eq!(poor.head("/v2/team/app/manifests/v1", &token).await.status(), 401);
    assert_eq!(harbor.requests().len(), asked + 4, "each was asked once");
    assert!(began.elapsed() < SOON);
    // A log-in asks with such a token whether its password is right.
    poor.name = "X-Pull: broken".to_owned();
    poor.get("/v2/", Some(&token)).await.unwrap();
    assert!(harbor.requests().len() > asked + 5, "it is asked again");
}

/// No such project, not allowed: once, unchanged, at once.
#[tokio::test]
async fn a_real_denial_is_handed_on_unchanged_and_at_once() {
    let harbor = StubHarbor::start(&[], 1, 1).await;
    let (sidecar, mirror) = start(&harbor, "").await;
    let began = Instant::now();
    let mut puller = Puller::new(mirror, "1".to_owned()).await;
    let token = puller.token("nosuch/app", PASSWORD).await.unwrap().json()["token"].as_str().unwrap().to_owned();
    let lost = puller.get("/v2/nosuch/app/manifests/v1", Some(&format!("Bearer {token}"))).await.unwrap();
    assert!(lost.status() == 401 && lost.text().contains("project nosuch not found"), "{}", lost.text());
    let denied = puller.get("/v2/team/other/manifests/v1", Some(&format!("Bearer {token}"))).await.unwrap();
    assert!(denied.status() == 401 && denied.text().contains("unauthorized to access repository"));
    assert_eq!(harbor.requests().len(), 3, "each was asked once");
    assert_eq!(retries(&sidecar).await, 0);
    assert!(began.elapsed().as_millis() < 2000, "without a pause");
}

/// Where the registry is well, a token that lacks what was asked for and names a user is asked for once more, and believed
/// for a minute.
#[tokio::test]
async fn a_poor_token_of_a_user_is_asked_for_once_more() {
    let harbor =
        StubHarbor::scripted(|head, _| head.target().contains("private").then_some(Illness::PoisonedToken)).await;
    let (sidecar, mirror) = start(&harbor, "").await;
    let mut puller = Puller::new(mirror, "1".to_owned()).await;
    for came in [2, 3] {
        assert_eq!(puller.token("private/app", PASSWORD).await.unwrap().status(), 200);
        assert_eq!(harbor.requests().len(), came);
    }
    assert_eq!(puller.token("team/app", PASSWORD).await.unwrap().status(), 200);
    assert_eq!(retries(&sidecar).await, 1);
}

/// A token without a user is that of a wrong password, but not where the same password was right a moment ago.
#[tokio::test]
async fn a_token_without_a_user_is_asked_for_once_more_where_its_credentials_named_one() {
    let harbor = StubHarbor::scripted(|head, before| match head.header("X-Pull") {
        Some("nameless") if before == 0 && head.target().starts_with("/service/token") => Some(Illness::NamelessToken),
        _ => None,
    })
    .await;
    let (sidecar, mirror) = start(&harbor, "").await;
    let mut first = Puller::new(mirror, "first".to_owned()).await;
    assert_eq!(first.token("team/app", PASSWORD).await.unwrap().status(), 200);
    let pulled = Puller::new(mirror, "nameless".to_owned()).await.pull("team/other").await;
    assert_eq!((pulled, retries(&sidecar).await), (Ok(()), 1));
}

/// Harbor locks a user name for 1.5 s after a wrong password, and the right one gets a token without a user meanwhile. That is
/// no distress: a wrong password of one pod costs one log-in each time, and the others are served again when the lock ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_harbor_locks_for_a_moment_is_no_distress() {
    const LOCK: Duration = Duration::from_millis(1500);
    let locked = Mutex::new(Instant::now());
    let harbor = StubHarbor::scripted(move |head, _| {
        let is_right = head.header("Authorization") == Some(&basic(USER, PASSWORD));
        let mut locked = locked.lock().unwrap();
        if !is_right {
            *locked = Instant::now() + LOCK;
        }
        (head.target().starts_with("/service/token") && Instant::now() < *locked).then_some(Illness::NamelessToken)
    })
    .await;
    let (sidecar, mirror) = start(&harbor, "").await;
    let token = move |name: String, password: &'static str| async move {
        let mut puller = Puller::new(mirror, name.clone()).await;
        assert_eq!(puller.token(&format!("team/{name}"), password).await.unwrap().status(), 200);
    };
    token("first".to_owned(), PASSWORD).await;
    for round in 1..=3 {
        token("wrong".to_owned(), "wrong").await;
        let wrong = harbor.requests().iter().filter(|asked| asked.contains("team/wrong")).count();
        assert_eq!(wrong, round, "log-ins with the wrong password");
        let ended = Instant::now() + LOCK;
        (0..4).map(|number| token(number.to_string(), PASSWORD)).collect::<JoinSet<_>>().join_all().await;
        assert!(Instant::now() < ended, "they were asked within the lock");
        tokio::time::sleep_until(ended.into()).await;
        token("0".to_owned(), PASSWORD).await;
        let distress = sidecar.status().await["registries"]["harbor"]["distress"].clone();
        assert!(distress["on"] == false && distress["level"].as_f64() < Some(0.4), "round {round}: {distress}");
    }
}

/// Harbor answers a wrong password with a token that names no user. It costs one log-in, or each pull would count double
/// against a lock-out.
#[tokio::test]
async fn a_wrong_password_costs_one_log_in() {
    let harbor = StubHarbor::start(&[], 1, 1).await;
    let (sidecar, mirror) = start(&harbor, "").await;
    let mut puller = Puller::new(mirror, "1".to_owned()).await;
    for came in 1..4 {
        let began = Instant::now();
        assert_eq!(puller.token("team/app", "wrong").await.unwrap().status(), 200);
        assert!(began.elapsed() < SOON);
        assert_eq!((harbor.requests().len(), retries(&sidecar).await), (came, 0));
    }
}

/// A wrong password gets a whole token for a public project, without a user. That does not prove the password right: three old
/// pull secrets, whose tokens for other projects are poor, are no distress.
#[tokio::test]
async fn a_wrong_password_that_gets_what_everybody_may_is_no_distress() {
    let harbor = StubHarbor::start(&[], 1, 1).await;
    let (sidecar, mirror) = start(&harbor, "").await;
    let mut puller = Puller::new(mirror, "1".to_owned()).await;
    for password in ["old", "older", "oldest"] {
        let whole = puller.token("public/app", password).await.unwrap().json()["token"].clone();
        let bearer = format!("Bearer {}", whole.as_str().unwrap());
        puller.expect("/v2/public/app/manifests/v1", Some(&bearer)).await.unwrap();
        puller.token("team/app", password).await.unwrap();
    }
    assert_eq!((harbor.requests().len(), retries(&sidecar).await), (9, 0));
    let distress = sidecar.status().await["registries"]["harbor"]["distress"].clone();
    assert_eq!((distress["on"].as_bool(), distress["level"].as_f64()), (Some(false), Some(0.0)), "{distress}");
}

/// A token that says nothing of what it allows is no reason for another request.
#[tokio::test]
async fn a_token_that_says_nothing_is_asked_for_once() {
    let opaque = Illness::Answer("200 OK", &["Content-Type: application/json"], 20);
    let harbor = StubHarbor::scripted(move |_, _| Some(opaque)).await;
    let (_sidecar, mirror) = start(&harbor, "").await;
    let mut puller = Puller::new(mirror, "1".to_owned()).await;
    let began = Instant::now();
    assert_eq!(puller.token("team/app", PASSWORD).await.unwrap().status(), 200);
    assert_eq!(harbor.requests().len(), 1);
    assert!(began.elapsed() < Duration::from_millis(400), "{:?}: it was not held", began.elapsed());
}

/// The first sign of a storm often is a poor token: it is held for a moment, and asked for again when distress begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poor_token_is_held_until_distress_begins() {
    let harbor = StubHarbor::scripted(|head, before| match head.header("X-Pull") {
        Some("poor") if before < 3 => Some(Illness::PoisonedToken),
        Some("broken") if before == 0 => Some(Illness::DatabaseError),
        _ => None,
    })
    .await;
    let (_sidecar, mirror) = start(&harbor, "").await;
    let poor = tokio::spawn(async move {
        let answer = Puller::new(mirror, "poor".to_owned()).await.token("team/app", PASSWORD).await.unwrap();
        answer.json()["token"].as_str().unwrap().to_owned()
    });
    eventually_is("the poor token", SOON, 1, async || harbor.requests().len()).await;
    let mut broken = Puller::new(mirror, "broken".to_owned()).await;
    assert_eq!(broken.get("/v2/team/app/manifests/v1", Some("Bearer x.y.z")).await.unwrap().status(), 401);
    let token = poor.await.unwrap();
    let mut puller = Puller::new(mirror, "puller".to_owned()).await;
    let answer = puller.get("/v2/team/app/manifests/v1", Some(&format!("Bearer {token}"))).await.unwrap();
    assert_eq!(answer.status(), 200, "the token that came in the end allows it");
}

/// In a storm that finds every token poor, some name the user and some nobody: the password is right then, and a token without
/// a user is as poor as the others. None of them is believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_without_a_user_are_doubted_where_others_name_it() {
    const POOR: usize = 6;
    let harbor = StubHarbor::scripted(|head, before| {
        let number: usize = head.header("X-Pull")?.parse().ok()?;
        let token = if number.is_multiple_of(2) { Illness::NamelessToken } else { Illness::PoisonedToken };
        (before == 0 && head.target().starts_with("/service/token")).then_some(token)
    })
    .await;
    let (_sidecar, mirror) = start(&harbor, "").await;
    let pulls: JoinSet<_> =
        (0..POOR)
            .map(|number| async move {
                Puller::new(mirror, number.to_string()).await.pull(&format!("team/app{number}")).await
            })
            .collect();
    let failed: Vec<String> = pulls.join_all().await.into_iter().filter_map(Result::err).collect();
    assert_eq!(failed, [""; 0], "pulls that failed");
    assert_eq!(harbor.struck().len(), POOR);
}

/// With its database gone, Harbor denies even `/v2/` to everybody: in distress that is no answer.
#[tokio::test]
async fn a_log_in_that_is_denied_in_distress_is_asked_again() {
    const DENIED: Illness = Illness::Answer("401 Unauthorized", &["Www-Authenticate: Basic realm=\"harbor\""], 20);
    let harbor = StubHarbor::scripted(|head, before| match head.target() {
        "/v2/" if before < 2 => Some(DENIED),
        "/v2/" => Some(Illness::Answer("200 OK", &[], 2)),
        _ => (before == 0).then_some(Illness::DatabaseError),
    })
    .await;
    let (_sidecar, mirror) = start(&harbor, "").await;
    let basic = basic(USER, PASSWORD);
    let mut puller = Puller::new(mirror, "1".to_owned()).await;
    assert_eq!(puller.get("/v2/", Some(&basic)).await.unwrap().status(), 401, "the registry is well");
    assert_eq!(puller.token("team/app", PASSWORD).await.unwrap().status(), 200);
    assert_eq!(puller.get("/v2/", Some(&basic)).await.unwrap().status(), 200);
}

/// Distress shows in the status, with the last sign, and as a metric.
#[tokio::test]
async fn distress_is_shown() {
    let harbor = StubHarbor::scripted(|_, before| (before == 0).then_some(Illness::DatabaseError)).await;
    let (sidecar, mirror) = start(&harbor, "").await;
    let distress = sidecar.status().await["registries"]["harbor"]["distress"].clone();
    assert_eq!((distress["on"].as_bool(), distress["level"].as_f64()), (Some(false), Some(0.0)));
    assert_eq!(Puller::new(mirror, "1".to_owned()).await.token("team/app", PASSWORD).await.unwrap().status(), 200);
    let distress = sidecar.status().await["registries"]["harbor"]["distress"].clone();
    assert_eq!((distress["on"].as_bool(), distress["signs"][0]["sign"].as_str()), (Some(true), Some("database_error")));
    let level = sidecar.metrics().await.sum("roadstead_distress", &[("registry", "harbor")]);
    assert!(level > 0.5 && level <= 1.0, "{level}");
}

/// Harbor stays ill: the client's own time ends it, and it gets Harbor's own words.
#[tokio::test]
async fn who_runs_out_of_time_gets_the_registrys_own_last_answer() {
    let harbor = StubHarbor::start(&[Illness::BadGateway], 1, 1).await;
    let (sidecar, mirror) = start(&harbor, "[registries.harbor.queue]\nrequest_timeout = \"150ms\"").await;
    let mut puller = Puller::new(mirror, "1".to_owned()).await;
    let answer = puller.token("team/app", PASSWORD).await.unwrap();
    assert_eq!((answer.status(), answer.text().as_str()), (502, "<html><h1>502 Bad Gateway</h1></html>"));
    assert!(retries(&sidecar).await <= 2);
}

/// Harbor falls silent when it is asked again: the client is not kept waiting for more than its own time.
#[tokio::test]
async fn a_registry_that_falls_silent_withholds_no_answer_that_it_gave() {
    let harbor = StubHarbor::scripted(|head, before| match (head.method(), before) {
        ("HEAD", 0) => Some(Illness::DatabaseError),
        (_, 0) if head.target().contains("/token") => None,
        (_, 0) if head.target().contains("/silent") => Some(Illness::Silence),
        ("GET", 0) => Some(Illness::BadGateway),
        _ if head.target().contains("/stalled") => Some(Illness::Stall),
        _ => Some(Illness::Silence),
    })
    .await;
    let (_sidecar, mirror) = start(&harbor, "[registries.harbor.queue]\nrequest_timeout = \"500ms\"").await;
    let mut puller = Puller::new(mirror, "1".to_owned()).await;
    let bearer = puller.bearer("team/app").await;
    let late = Duration::from_millis(500) + SOON;
    for manifest in ["/v2/team/app/manifests/v1", "/v2/team/app/manifests/stalled"] {
        let answer = timeout(late, puller.get(manifest, Some(&bearer))).await.expect("its time is over").unwrap();
        assert_eq!((answer.status(), answer.text().as_str()), (502, "<html><h1>502 Bad Gateway</h1></html>"));
    }
    // Silent is the GET that should tell what the HEAD does not.
    let answer = timeout(late, puller.head("/v2/team/app/manifests/silent", &bearer)).await.expect("its time is over");
    assert_eq!(answer.status(), 401);
    // The first answer is the client's to wait for, however long it takes.
    let mut other = Puller::new(mirror, "2".to_owned()).await;
    let mut asked = std::pin::pin!(other.get("/v2/team/app/manifests/silent", Some(&bearer)));
    assert!(timeout(Duration::from_millis(800), asked.as_mut()).await.is_err(), "nothing was said yet");
    harbor.speak();
    assert_eq!(timeout(SOON, asked).await.unwrap().unwrap().status(), 200);
}

/// A HEAD has no body that would tell a real denial from a database error: a GET is asked, once, and believed.
#[tokio::test]
async fn a_denied_head_is_looked_at_once_and_then_believed() {
    let harbor = StubHarbor::start(&[], 1, 1).await;
    let (sidecar, mirror) = start(&harbor, "").await;
    let mut puller = Puller::new(mirror, "1".to_owned()).await;
    let path = "/v2/nosuch/app/manifests/v1";
    let token = puller.token("nosuch/app", PASSWORD).await.unwrap().json()["token"].as_str().unwrap().to_owned();
    let bearer = format!("Authorization: Bearer {token}");
    let began = Instant::now();
    for _ in 0..2 {
        let answer = puller.wire.ask("HEAD", path, &[&bearer]).await.unwrap();
        assert_eq!((answer.status(), answer.header("Www-Authenticate")), (401, Some("")));
    }
    assert!(began.elapsed().as_millis() < 2000, "without a pause");
    let asked: Vec<String> = harbor.requests().split_off(1);
    assert_eq!(asked, [format!("HEAD {path}"), format!("GET {path}"), format!("HEAD {path}")]);
    assert_eq!(total(&sidecar, "roadstead_repaired_total").await, 0);
}

/// An answer that is kept while a better one is asked for takes a few KiB; a longer one is handed on, whole and at once.
#[tokio::test]
async fn a_long_answer_is_not_kept() {
    let long = Illness::Answer("503 Service Unavailable", &[], 60_000);
    let harbor = StubHarbor::scripted(move |_, _| Some(long)).await;
    let (_sidecar, mirror) = start(&harbor, "").await;
    let answer = Puller::new(mirror, "1".to_owned()).await.token("team/app", PASSWORD).await.unwrap();
    assert_eq!((answer.status(), answer.body.len(), harbor.requests().len()), (503, 60_000, 1));
}

/// Only a denial proves a denial: what the GET says beyond that, the HEAD says as well when it is asked again.
#[tokio::test]
async fn a_head_that_is_not_denied_gets_its_own_answer() {
    for status in ["404 Not Found", "304 Not Modified", "307 Temporary Redirect"] {
        let truth = Illness::Answer(status, &["Location: http://storage.test/"], 0);
        let harbor = StubHarbor::scripted(move |head, before| match (head.method(), before) {
            _ if head.target().contains("/token") => None,
            ("HEAD", 0 | 2) => Some(Illness::DatabaseError),
            (_, 0) | ("HEAD", 1) => Some(truth),
            _ => None,
        })
        .await;
        let (sidecar, mirror) = start_with_slots(1, &harbor, "").await;
        let mut puller = Puller::new(mirror, "1".to_owned()).await;
        let bearer = puller.bearer("team/app").await;
        let answer = puller.head("/v2/team/app/manifests/v1", &bearer).await;
        assert_eq!(format!("{} {}", answer.status(), answer.reason()), status);
        let answer = puller.head("/v2/team/app/manifests/v1", &bearer).await;
        assert_eq!(answer.status(), 200, "{status} is not remembered as a denial");
        assert_eq!(harbor.stub().accept_log().len(), 1, "the connection was kept");
        assert_eq!(retries(&sidecar).await, 4, "two GETs, and two HEADs");
    }
}

/// A HEAD that was denied, then served, is examined again when it is denied again.
#[tokio::test]
async fn a_good_head_ends_the_belief_in_a_denial() {
    let harbor = StubHarbor::scripted(|head, before| match (head.method(), before) {
        _ if head.target().contains("/token") => None,
        ("HEAD", 0 | 2) => Some(Illness::DatabaseError),
        ("GET", 0) => Some(Illness::NoSuchProject),
        _ => None,
    })
    .await;
    let (_sidecar, mirror) = start(&harbor, "").await;
    let mut puller = Puller::new(mirror, "1".to_owned()).await;
    let bearer = puller.bearer("team/app").await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(puller.head("/v2/team/app/manifests/v1", &bearer).await.status());
    }
    assert_eq!(seen, [401, 200, 200], "{:?}", harbor.requests());
}

/// A registry that denies every HEAD and no GET is not asked without end, nor without pauses.
#[tokio::test]
async fn a_head_that_is_always_denied_is_handed_on_after_a_few() {
    let denied = Illness::Answer("401 Unauthorized", &[], 0);
    let harbor = StubHarbor::scripted(move |head, _| (head.method() == "HEAD").then_some(denied)).await;
    let (sidecar, mirror) = start(&harbor, "").await;
    let mut puller = Puller::new(mirror, "1".to_owned()).await;
    let bearer = puller.bearer("team/app").await;
    assert_eq!(puller.head("/v2/team/app/manifests/v1", &bearer).await.status(), 401);
    let asked = harbor.asked().split_off(1);
    let methods: Vec<&str> = asked.iter().map(|(_, head)| head.method()).collect();
    assert_eq!(methods, ["HEAD", "GET", "HEAD", "HEAD", "HEAD"]);
    let pauses: Vec<Duration> = asked.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(pauses[2] >= Duration::from_millis(100) && pauses[3] >= Duration::from_millis(200), "{pauses:?}");
    assert_eq!(retries(&sidecar).await, 4, "each is counted");
}

/// Before each blob of a push comes a HEAD of it: the first byte of the blob tells whether that was denied.
#[tokio::test]
async fn a_blobs_head_is_repaired_without_getting_the_blob() {
    let harbor =
        StubHarbor::scripted(|head, before| (head.method() == "HEAD" && before == 0).then_some(Illness::DatabaseError))
            .await;
    let (sidecar, mirror) = start_with_slots(1, &harbor, "").await;
    let mut puller = Puller::new(mirror, "1".to_owned()).await;
    let bearer = puller.bearer("team/app").await;
    assert_eq!(puller.head("/v2/team/app/blobs/sha256:1", &bearer).await.status(), 200);
    let asked = harbor.asked().split_off(1);
    let asked: Vec<_> = asked.iter().map(|(_, head)| (head.method(), head.header("Range"))).collect();
    assert_eq!(asked, [("HEAD", None), ("GET", Some("bytes=0-0")), ("HEAD", None)]);
    assert_eq!(harbor.stub().accept_log().len(), 1, "the connection was kept");
    assert_eq!(sidecar.metrics().await.count("roadstead_repaired_total", &[("sign", "unseen_401")]), 1);
}

/// And one that hides a database error is repaired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_meets_a_database_error_is_asked_again() {
    let harbor = StubHarbor::start(&[Illness::DatabaseError], 3, 5).await;
    let (_sidecar, mirror) = start(&harbor, "").await;
    for number in 0..20 {
        let mut puller = Puller::new(mirror, number.to_string()).await;
        let token = puller.token("team/app", PASSWORD).await.unwrap().json()["token"].as_str().unwrap().to_owned();
        let headers = [format!("Authorization: Bearer {token}"), puller.name.clone()];
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let answer = puller.wire.ask("HEAD", "/v2/team/app/manifests/v1", &headers).await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    assert!(harbor.struck().len() > 5, "{:?}", harbor.struck());
}

/// The sidecar waits as long as the registry asks, by the registry's own clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_comes_back_before_the_registry_says_so() {
    const DATES: [&str; 2] = ["Date: Wed, 21 Oct 2026 07:28:00 GMT", "Retry-After: Wed, 21 Oct 2026 07:28:01 GMT"];
    for (illness, least) in [
        (Illness::TooManyRequests, 1),
        (Illness::Answer("503 Service Unavailable", &["Retry-After: 2"], 0), 2),
        (Illness::Answer("429 Too Many Requests", &["Retry-After: 1"], 0), 1),
        (Illness::Answer("504 Gateway Time-out", &DATES, 0), 1),
        (Illness::Answer("429 Too Many Requests", &DATES, 0), 1),
    ] {
        let harbor = StubHarbor::scripted(move |_, before| (before < 2).then_some(illness)).await;
        let (_sidecar, mirror) = start(&harbor, "").await;
        let answer = Puller::new(mirror, "1".to_owned()).await.token("team/app", PASSWORD).await.unwrap();
        assert_eq!(answer.status(), 200);
        let asked = harbor.asked();
        assert_eq!(asked.len(), 3);
        let (least, late) = (Duration::from_secs(least), Duration::from_secs(least) + SOON);
        for pair in asked.windows(2) {
            let pause = pair[1].0 - pair[0].0;
            assert!((least..late).contains(&pause), "{illness:?}: {pause:?}");
        }
    }
}

/// A registry that asks for more time than the request has, or limits its clients without a word about time, gets no second
/// request, and one that says nonsense has said nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_asks_for_too_long_a_pause_is_handed_on() {
    const HUGE: &[&str] = &["Retry-After: 999999999999999999999999"];
    for (status, headers) in [
        ("429 Too Many Requests", &[][..]),
        ("429 Too Many Requests", &["Retry-After: soon"]),
        ("429 Too Many Requests", &["Retry-After: -5"]),
        ("429 Too Many Requests", HUGE),
        ("503 Service Unavailable", HUGE),
        ("503 Service Unavailable", &["Retry-After: 1e3"]),
    ] {
        let harbor = StubHarbor::scripted(move |_, _| Some(Illness::Answer(status, headers, 0))).await;
        let (_sidecar, mirror) = start(&harbor, "").await;
        let answer = Puller::new(mirror, "1".to_owned()).await.token("team/app", PASSWORD).await.unwrap();
        assert!(status.starts_with(&answer.status().to_string()), "{status} {headers:?}");
        assert_eq!(harbor.asked().len(), 1, "{status} {headers:?}");
    }
}

/// An answer that cannot be read will be no better the next time; what is wrong with it is said.
#[tokio::test]
async fn an_answer_that_cannot_be_read_is_not_asked_for_again() {
    const MANY: [&str; 600] = ["X-Header: 1"; 600];
    let harbor = StubHarbor::scripted(|_, _| Some(Illness::Answer("200 OK", &MANY, 0))).await;
    let (sidecar, mirror) = start(&harbor, "").await;
    let answer = Puller::new(mirror, "1".to_owned()).await.token("team/app", PASSWORD).await.unwrap();
    assert_eq!(answer.status(), 502);
    assert!(answer.text().contains("cannot be read: message head is too large"), "{}", answer.text());
    assert_eq!((harbor.requests().len(), retries(&sidecar).await), (1, 0));
}

/// A compressed body cannot be read: tokens, and only tokens, are requested without compression.
#[tokio::test]
async fn tokens_are_asked_for_as_they_are() {
    let harbor = StubHarbor::scripted(|head, before| {
        let is_packed = head.header("Accept-Encoding") == Some("gzip");
        let is_token = head.target().contains("/token") && before == 0;
        let packed = Illness::Answer("401 Unauthorized", &["Content-Encoding: gzip"], 30);
        is_token.then_some(if is_packed { packed } else { Illness::DatabaseError })
    })
    .await;
    let path = "/service/token?scope=repository:team/app:pull";
    let basic = format!("Authorization: {}", basic(USER, PASSWORD));
    for (repair, status, seen) in [("", 200, "identity"), ("[registries.harbor.repair]\nenabled = false", 401, "gzip")]
    {
        let (_sidecar, mirror) = start(&harbor, repair).await;
        let before = harbor.asked().len();
        let mut wire = Wire::open(mirror).await.unwrap();
        let puller = format!("X-Pull: {before}");
        let headers = [basic.as_str(), "Accept-Encoding: gzip", &puller];
        assert_eq!(wire.get(path, &headers).await.unwrap().status(), status);
        let _ = wire.get("/v2/team/app/manifests/v1", &headers).await.unwrap();
        let asked = harbor.asked();
        let encodings: Vec<_> = asked[before..].iter().map(|(_, head)| head.header("Accept-Encoding")).collect();
        assert_eq!((encodings.first(), encodings.last()), (Some(&Some(seen)), Some(&Some("gzip"))));
    }
}

/// containerd asks for a token by POST, before it tries GET. With a password nothing changes by that, so it is asked again after an
/// answer that shows overload; no other request with a body is, and no form whose code may be used up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_that_asks_for_a_token_is_sent_again() {
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let seen = bodies.clone();
    let stub = StubRegistry::raw(move |connection| {
        let seen = seen.clone();
        async move {
            let mut wire = Wire::new(connection);
            while let Ok(Some(head)) = wire.read_head().await {
                let body = wire.body(Framing::of_request(&head)).collect().await.unwrap();
                let number = {
                    let mut seen = seen.lock().unwrap();
                    seen.push((head.target().to_owned(), body.to_vec()));
                    seen.iter().filter(|(target, _)| target == head.target()).count()
                };
                let answer: &[u8] = match number {
                    1 => b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
                    2 => b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
                    _ => b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n",
                };
                if wire.send(answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let registry = format!(
        "[registries.harbor]\nhosts = [\"registry.test\"]\ncap = 4\nshare = 1\n\
         [registries.harbor.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"http://{}\"\n",
        stub.address()
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
    let mirror = sidecar.listener("mirror").unwrap();
    let form = format!("grant_type=password&username=robot&password={PASSWORD}&scope=repository%3Aa%2Fb%3Apull");
    let [plain, code, refresh] =
        ["", "authorization_code", "refresh_token"].map(|grant| form.replace("password&u", &format!("{grant}&u")));
    let plain = plain.replace("grant_type=&", "");
    let long = "x".repeat(16 * 1024 + 1);
    let urlencoded = "Content-Type: application/x-www-form-urlencoded; charset=utf-8";
    for (case, method, path, kind, body, status, sent) in [
        ("a form", "POST", "/service/token", urlencoded, &form, 405, 3),
        ("without a grant", "POST", "/plain/token", urlencoded, &plain, 405, 3),
        ("a code", "POST", "/code/token", urlencoded, &code, 502, 1),
        ("a refresh token", "POST", "/refresh/token", urlencoded, &refresh, 502, 1),
        ("another path", "POST", "/v2/a/blobs/uploads/", urlencoded, &form, 502, 1),
        ("no form", "POST", "/json/token", "Content-Type: application/json", &form, 502, 1),
        ("too long", "POST", "/long/token", urlencoded, &long, 502, 1),
        ("another method", "PUT", "/put/token", urlencoded, &form, 502, 1),
    ] {
        let mut wire = Wire::open(mirror).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: registry.test\r\n{kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        wire.send(&[head.as_bytes(), body.as_bytes()].concat()).await.unwrap();
        let answer = timeout(Duration::from_secs(10), wire.read_answer()).await.expect("it does not hang").unwrap();
        let sent_on: Vec<_> = bodies.lock().unwrap().drain(..).collect();
        assert_eq!((answer.status(), sent_on.len()), (status, sent), "{case}");
        assert!(sent_on.iter().all(|(target, bytes)| target == path && bytes == body.as_bytes()), "{case}");
    }
    assert!(!sidecar.log_text().contains(PASSWORD));
}

/// RFC 9110, section 9.2.2: a form that was sent whole, on a connection that was used, may be used up though that ends without an
/// answer. One form comes, and its client hears of it: at the mirror with and without repair, and toward another host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_whose_connection_dies_is_sent_once() {
    let at_mirror = [true, false].map(|repair| (repair, Ipv4Addr::LOCALHOST, false));
    // A machine without a network has no other host.
    for (repair, ip, is_other_host) in at_mirror.into_iter().chain(outward_address().map(|ip| (true, ip, true))) {
        let forms = Arc::new(AtomicU64::new(0));
        let counted = forms.clone();
        let stub = StubRegistry::raw_at(ip, move |connection| ends_at_a_form(connection, counted.clone())).await;
        let upstream = if is_other_host { "127.0.0.1:9".to_owned() } else { stub.address().to_string() };
        let registry = format!(
            "[registries.harbor]\nhosts = [\"registry.test\"]\ncap = 4\nshare = 1\n\
             [registries.harbor.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"http://{upstream}\"\n\
             [registries.harbor.repair]\nenabled = {repair}\n"
        );
        let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
        let (entry, url) = if is_other_host {
            (sidecar.proxy(), format!("http://{}/service/token", stub.address()))
        } else {
            (sidecar.listener("mirror").unwrap(), "/service/token".to_owned())
        };
        let mut wire = Wire::open(entry).await.unwrap();
        assert_eq!(wire.get(&url, &[]).await.unwrap().status(), 200, "a connection that is used");
        let form = "grant_type=password&username=robot&password=x";
        let length = format!("Content-Length: {}", form.len());
        let head = request("POST", &url, &["Content-Type: application/x-www-form-urlencoded", &length]);
        wire.send(&[head.as_bytes(), form.as_bytes()].concat()).await.unwrap();
        let answer = timeout(Duration::from_secs(10), wire.read_answer()).await.expect("it does not hang").unwrap();
        assert_eq!((answer.status(), forms.load(Ordering::Relaxed)), (502, 1), "{repair} {ip}");
        assert_eq!(stub.accept_log().len(), 1, "{repair} {ip}: the form went out on the used connection");
    }
}

/// Serves every GET, and ends the connection where a form has come whole.
async fn ends_at_a_form(connection: StubConnection, forms: Arc<AtomicU64>) {
    let mut wire = Wire::new(connection);
    while let Ok(Some(head)) = wire.read_head().await {
        let _ = wire.body(Framing::of_request(&head)).collect().await;
        if head.method() == "POST" {
            forms.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let _ = wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    }
}

/// This machine's address toward others, if it has one.
fn outward_address() -> Option<Ipv4Addr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the kernel only chooses a route.
    socket.connect("198.51.100.1:9").ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

/// A client that has said all and waits gets its answer, also one that was not repaired in time.
#[tokio::test]
async fn a_client_that_has_ended_its_side_still_gets_its_answer() {
    let harbor = StubHarbor::start(&[Illness::Unavailable], 1, 1).await;
    let (_sidecar, mirror) = start(&harbor, "").await;
    let mut wire = Wire::open(mirror).await.unwrap();
    wire.send(b"GET /service/token?scope=repository:a:pull HTTP/1.0\r\nHost: localhost\r\n\r\n").await.unwrap();
    wire.finish().await.unwrap();
    assert_eq!(wire.read_answer().await.unwrap().status(), 200);
}

/// A real Harbor at its limit, with slots far beyond what its database can serve: no pull fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_slots_than_the_database_can_serve_cost_no_pull() {
    const PULLS: u64 = 60;
    let harbor = StubHarbor::limited(18, Duration::from_millis(30)).await;
    let (sidecar, mirror) = start_with_slots(60, &harbor, "").await;
    let began = Instant::now();
    let pulls: Vec<_> = (0..PULLS)
        .map(|number| {
            tokio::spawn(async move {
                let mut puller = Puller::new(mirror, number.to_string()).await;
                puller.pull(&format!("team/app{number}")).await
            })
        })
        .collect();
    let mut failed = Vec::new();
    for pull in pulls {
        failed.extend(pull.await.unwrap().err());
    }
    println!("{:?}, {} spoiled, {} asked again", began.elapsed(), harbor.struck().len(), retries(&sidecar).await);
    assert_eq!(failed, [""; 0], "pulls that failed");
    assert!(harbor.struck().len() > 10, "{:?}", harbor.struck());
}

/// The requests on which a registry works, by its own count.
#[derive(Default)]
struct AtOnce {
    now: usize,
    most: usize,
}

/// In distress at most half of the slots go to requests that are asked again, by the registry's own count; first requests
/// take them all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_distress_half_of_the_slots_go_to_requests_that_are_asked_again() {
    const SLOTS: usize = 8;
    const REQUESTS: usize = 40;
    for (method, sign) in [
        ("GET", "500 Internal Server Error\r\n"),
        ("HEAD", "500 Internal Server Error\r\n"),
        ("GET", "401 Unauthorized\r\nWWW-Authenticate: \r\n"),
    ] {
        // First requests, and those that come again.
        let at_once = Arc::new(Mutex::new([AtOnce::default(), AtOnce::default()]));
        let (counts, asked) = (at_once.clone(), Arc::new(Mutex::new(HashSet::new())));
        let stub = StubRegistry::raw(move |connection: StubConnection| {
            let (counts, asked) = (counts.clone(), asked.clone());
            async move {
                let mut wire = Wire::new(connection);
                while let Ok(Some(head)) = wire.read_head().await {
                    let again = usize::from(!asked.lock().unwrap().insert(head.target().to_owned()));
                    {
                        let at_once = &mut counts.lock().unwrap()[again];
                        at_once.now += 1;
                        at_once.most = at_once.most.max(at_once.now);
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    counts.lock().unwrap()[again].now -= 1;
                    let status = if again == 0 { sign } else { "200 OK\r\n" };
                    if wire.send(format!("HTTP/1.1 {status}Content-Length: 0\r\n\r\n").as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        let registry = format!(
            "[registries.stub]\nhosts = [\"registry.test\"]\ncap = {SLOTS}\nshare = 1\n\
             [registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"http://{}\"\n\
             [registries.stub.adapt]\nenabled = false\n",
            stub.address()
        );
        let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
        let mirror = sidecar.listener("mirror").unwrap();
        let asking: Vec<_> = (0..REQUESTS)
            .map(|number| {
                tokio::spawn(async move {
                    let mut wire = Wire::open(mirror).await.unwrap();
                    let path = format!("/v2/team/app{number}/blobs/sha256:{number:064}");
                    wire.ask(method, &path, &["Authorization: Bearer t"]).await.unwrap().status()
                })
            })
            .collect();
        for answer in asking {
            assert_eq!(answer.await.unwrap(), 200, "{method} {sign}");
        }
        let most = at_once.lock().unwrap().each_ref().map(|at_once| at_once.most);
        assert_eq!(most, [SLOTS, SLOTS / 2], "{method} {sign}");
        assert_eq!(stub.peak(), SLOTS, "{method} {sign}");
    }
}
