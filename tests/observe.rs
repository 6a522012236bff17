//! Shadow mode: nothing is held, and what is counted on the side is what an enforced run does.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use roadstead_test_support::http::request;
use roadstead_test_support::{
    Illness, PASSWORD, Sidecar, Signal, StubHarbor, StubRegistry, USER, Wire, config, connect_through, eventually,
    get_through,
};
use tokio::sync::Barrier;

/// A storm, and how long the registry takes for each request.
const STORM: usize = 300;
const SERVICE: Duration = Duration::from_millis(600);
const SOON: Duration = Duration::from_secs(10);

fn text(registry: SocketAddr, mode: &str, cap: usize, extra: &str) -> String {
    config(&format!(
        "[registries.stub]\nhosts = [\"{registry}\"]\ncap = {cap}\nshare = 1\nmode = \"{mode}\"\n{extra}\n"
    ))
}

async fn start(text: &str) -> Sidecar {
    Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), text).await
}

/// How the pullers of a storm use their connections.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Requests,
    Tunnels,
    /// The tunnel stays open, quiet, until all were served.
    QuietTunnels,
}

/// All at once, each for one answer. The tunnels that stay open are given back.
async fn storm(sidecar: &Sidecar, registry: SocketAddr, kind: Kind, pullers: usize) -> Vec<Option<Wire>> {
    let proxy = sidecar.proxy();
    let pullers: Vec<_> = (0..pullers)
        .map(|_| {
            tokio::spawn(async move {
                if kind == Kind::Requests {
                    assert_eq!(get_through(proxy, &format!("http://{registry}/v2/"), &[]).await.status(), 200);
                    return None;
                }
                let mut tunnel = connect_through(proxy, &registry.to_string(), &[]).await.unwrap();
                assert_eq!(tunnel.get("/v2/", &[]).await.unwrap().status(), 200);
                (kind == Kind::QuietTunnels).then_some(tunnel)
            })
        })
        .collect();
    let mut kept = Vec::new();
    for puller in pullers {
        kept.push(puller.await.unwrap());
    }
    kept
}

/// How many waited, and half of their waits and the longest, in seconds.
#[derive(Debug)]
struct Waits {
    waited: f64,
    p50: f64,
    longest: f64,
    peak: f64,
}

#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn count(of: usize) -> f64 {
    of as f64
}

/// By the log of an enforced run, and by what `/status` showed of the queue in the meantime.
async fn enforced(registry: SocketAddr, kind: Kind, pullers: usize, cap: usize, more: &str) -> Waits {
    let sidecar = start(&text(registry, "enforce", cap, more)).await;
    let storm = storm(&sidecar, registry, kind, pullers);
    tokio::pin!(storm);
    let mut peak = 0;
    let kept = loop {
        tokio::select! {
            kept = &mut storm => break kept,
            () = tokio::time::sleep(Duration::from_millis(20)) => {
                peak = peak.max(sidecar.status().await["registries"]["stub"]["waiting"].as_u64().unwrap());
            }
        }
    };
    drop(kept);
    eventually("all are recorded", SOON, async || {
        let recorded = sidecar.finished().len();
        if recorded == pullers { Ok(()) } else { Err(recorded) }
    })
    .await;
    let finished = sidecar.finished();
    let mut waits: Vec<f64> = finished.iter().map(|record| record["waited_ms"].as_f64().unwrap() / 1000.0).collect();
    waits.retain(|wait| *wait >= 0.005);
    waits.sort_by(f64::total_cmp);
    Waits {
        waited: count(waits.len()),
        p50: waits[(waits.len() - 1) / 2],
        longest: waits[waits.len() - 1],
        peak: count(usize::try_from(peak).unwrap()),
    }
}

/// By what is observed while nothing is held.
async fn observed(registry: SocketAddr, kind: Kind, pullers: usize, cap: usize, more: &str) -> Waits {
    let sidecar = start(&text(registry, "observe", cap, more)).await;
    let kept = storm(&sidecar, registry, kind, pullers).await;
    let metrics = sidecar.metrics().await;
    let waits = |le: &str| metrics.count("roadstead_wait_seconds_bucket", &[("registry", "stub"), ("le", le)]);
    let all = pullers as u64;
    assert_eq!((waits("0.001"), waits("+Inf")), (all, all), "one waited for longer than 1 ms");
    let seen = eventually("all would be done", Duration::from_secs(30), async || {
        let seen = sidecar.status().await["registries"]["stub"]["observe"].clone();
        let is_done = seen["requests"] == pullers && seen["waiting"] == 0;
        if is_done { Ok(seen) } else { Err(seen) }
    })
    .await;
    drop(kept);
    assert_eq!((&seen["refused"], &seen["gaps"], &seen["slots"]), (&0.into(), &0.into(), &cap.into()), "{seen}");
    let figure = |key: &str| seen[key].as_f64().unwrap();
    assert!(figure("peak_busy") > count(pullers) * 0.9 && figure("peak_open") >= figure("peak_busy"), "{seen}");
    Waits {
        waited: figure("waited"),
        p50: figure("wait_p50_seconds"),
        longest: figure("wait_max_seconds"),
        peak: figure("peak_waiting"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_have_waited_is_what_waits_in_an_enforced_run() {
    let quiet = "[registries.stub.reclaim]\nidle_after = \"500ms\"\nunsure_after = \"500ms\"\n";
    let table = [
        (Kind::Requests, STORM, 50, ""),
        (Kind::Tunnels, STORM / 2, 25, ""),
        (Kind::QuietTunnels, 60, 20, quiet),
        (Kind::Requests, 60, 60, "rate_per_second = 20\nburst = 5\n"),
    ];
    for (kind, pullers, cap, more) in table {
        // Both runs take as long as the machine lets them: one that is busy in one of them alone tells nothing.
        let mut tries = Vec::new();
        while tries.len() < 3 && !tries.last().is_some_and(is_like) {
            let stub = StubRegistry::builder().answer_delay(SERVICE).start().await;
            let enforced = enforced(stub.address(), kind, pullers, cap, more).await;
            tries.push((enforced, observed(stub.address(), kind, pullers, cap, more).await));
        }
        assert!(tries.last().is_some_and(is_like), "{kind:?}, enforced and observed: {tries:?}");
    }
}

/// How long each request of a storm takes from its client to the registry, sorted. The clients stand at the proxy before; one
/// request is sent in each millisecond, so that the machine has time for each; and none is answered before all have come.
async fn on_the_way(text: &str, stub: &StubRegistry) -> Vec<Duration> {
    let sidecar = start(text).await;
    stub.hold();
    let (mut wires, mut sent) = (Vec::new(), Vec::new());
    for _ in 0..STORM {
        wires.push(Wire::open(sidecar.proxy()).await.unwrap());
    }
    let url = |number| format!("http://{}/v2/app-{number}/manifests/v1", stub.address());
    for (number, wire) in wires.iter_mut().enumerate() {
        let request = request("GET", &url(number), &[]);
        sent.push(Instant::now());
        wire.send(request.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    eventually("all to have come", SOON, async || if stub.requests() == STORM { Ok(()) } else { Err(stub.requests()) })
        .await;
    let arrived = (0..STORM).map(|number| stub.arrivals(&format!("/v2/app-{number}/manifests/v1"))[0]);
    let mut took: Vec<Duration> = arrived.zip(sent).map(|(arrived, sent)| arrived - sent).collect();
    took.sort();
    stub.release();
    for wire in &mut wires {
        assert_eq!(wire.read_answer().await.unwrap().status(), 200);
    }
    took
}

/// The judge is the registry's clock, beside a cap that is above the storm: 50 slots would hold most of it. A machine that is busy
/// with something else for a moment delays some, so the least of a few rounds counts, for each side and each percentile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_requests_of_a_storm_reach_the_registry_as_soon_as_where_nothing_waits() {
    const MOST: Duration = Duration::from_millis(1);
    let mut least = [[Duration::MAX; 3]; 2];
    let is_close = |[free, observed]: [[Duration; 3]; 2]| (0..3).all(|part| observed[part] <= free[part] + MOST);
    for round in 0..5 {
        if round > 0 && is_close(least) {
            break;
        }
        for (least, (mode, cap)) in least.iter_mut().zip([("enforce", STORM), ("observe", 50)]) {
            let stub = StubRegistry::builder().start().await;
            let took = on_the_way(&text(stub.address(), mode, cap, ""), &stub).await;
            let parts = [STORM / 2, STORM * 9 / 10, STORM * 99 / 100].map(|rank| took[rank]);
            *least = std::array::from_fn(|part| least[part].min(parts[part]));
        }
    }
    println!("free and observed, the 50th, 90th and 99th percentile: {least:?}");
    assert!(is_close(least), "free and observed: {least:?}");
}

/// Whether all figures of the one are within a tenth of those of the other.
fn is_like((enforced, observed): &(Waits, Waits)) -> bool {
    let figures = |waits: &Waits| [waits.waited, waits.p50, waits.longest, waits.peak];
    let mut pairs = figures(enforced).into_iter().zip(figures(observed));
    pairs.all(|(enforced, observed)| (observed - enforced).abs() <= enforced * 0.1)
}

/// Writes the file and tells the sidecar; waits until that holds.
async fn reload(sidecar: &Sidecar, text: &str, mode: &str) {
    fs::write(sidecar.config_path(), text).unwrap();
    sidecar.signal(Signal::HUP);
    eventually("the mode to hold", SOON, async || {
        let status = sidecar.status().await["registries"]["stub"].clone();
        if status["mode"] == mode { Ok(()) } else { Err(status) }
    })
    .await;
}

/// Requests that are served once the registry lets them go; tells how many it had open at the most until then.
async fn held_back(stub: &StubRegistry, sidecar: &Sidecar, pullers: usize, expected: usize) -> usize {
    stub.hold();
    let before = stub.requests();
    let (proxy, url) = (sidecar.proxy(), format!("http://{}/v2/", stub.address()));
    let pullers: Vec<_> = (0..pullers)
        .map(|_| (url.clone(), proxy))
        .map(|(url, proxy)| tokio::spawn(async move { get_through(proxy, &url, &[]).await.status() }))
        .collect();
    eventually("the registry to have them", SOON, async || {
        let asked = stub.requests() - before;
        if asked == expected { Ok(()) } else { Err(asked) }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let open = stub.open();
    stub.release();
    for puller in pullers {
        assert_eq!(puller.await.unwrap(), 200);
    }
    open
}

/// The registry's own count is the judge. The audit and the alert near the cap have nothing to go by while nothing is held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_holds_the_cap_from_then_on_and_lets_go_again() {
    let stub = StubRegistry::builder().start().await;
    let text = |mode| text(stub.address(), mode, 3, "");
    let sidecar = start(&text("observe")).await;
    assert_eq!(held_back(&stub, &sidecar, 30, 30).await, 30);
    let seen = eventually("the radar to look", SOON, async || {
        let status = sidecar.status().await["registries"]["stub"].clone();
        let has_looked = status["bypass"].is_object() && status["observe"]["waited"] == 27;
        if has_looked { Ok(status) } else { Err(status) }
    })
    .await;
    assert_eq!((&seen["slots"], &seen["observe"]["peak_busy"]), (&3.into(), &30.into()), "{seen}");
    for absent in ["slots_in_force", "reserved"] {
        assert!(seen.get(absent).is_none(), "{absent}: {seen}");
    }
    let metrics = sidecar.metrics().await;
    let gauge = |name: &str| metrics.count(name, &[("registry", "stub")]);
    assert_eq!((gauge("roadstead_observe_slots"), gauge("roadstead_observe_waited_total")), (3, 27));
    assert_eq!(metrics.count("roadstead_mode", &[("registry", "stub"), ("mode", "observe")]), 1);
    for name in ["roadstead_slots", "roadstead_slots_in_force", "roadstead_audit_excess_sockets"] {
        assert!(!metrics.has(name), "{name}");
    }
    assert!(stub.open() > 3 && seen["bypass"].get("excess_sockets").is_none(), "{seen}");

    reload(&sidecar, &text("enforce"), "enforce").await;
    eventually("idle connections to be closed", SOON, async || {
        let open = stub.open();
        if open <= 3 { Ok(()) } else { Err(open) }
    })
    .await;
    assert_eq!(held_back(&stub, &sidecar, 30, 3).await, 3);
    let status = sidecar.status().await["registries"]["stub"].clone();
    assert!(status.get("observe").is_none() && status["slots_in_force"] == 3, "{status}");
    let metrics = sidecar.metrics().await;
    assert_eq!(metrics.count("roadstead_mode", &[("registry", "stub"), ("mode", "enforce")]), 1);
    assert_eq!(metrics.count("roadstead_slots", &[("registry", "stub")]), 3);
    assert!(!metrics.has("roadstead_observe_slots"));

    reload(&sidecar, &text("observe"), "observe").await;
    assert_eq!(held_back(&stub, &sidecar, 30, 30).await, 30);
}

/// Requests that wait when the mode changes are let go at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_are_let_go_by_a_reload() {
    let stub = StubRegistry::builder().start().await;
    stub.hold();
    let sidecar = start(&text(stub.address(), "enforce", 2, "")).await;
    let (proxy, url) = (sidecar.proxy(), format!("http://{}/v2/", stub.address()));
    let pullers: Vec<_> = (0..10)
        .map(|_| url.clone())
        .map(|url| tokio::spawn(async move { get_through(proxy, &url, &[]).await.status() }))
        .collect();
    sidecar.until("stub", "waiting", 8).await;
    reload(&sidecar, &text(stub.address(), "observe", 2, ""), "observe").await;
    eventually("all to be asked", SOON, async || if stub.requests() == 10 { Ok(()) } else { Err(stub.requests()) })
        .await;
    stub.release();
    for puller in pullers {
        assert_eq!(puller.await.unwrap(), 200);
    }
}

/// Those of before the reload as well: requests that wait for a registry that takes no connection, or for one behind whose gateway
/// nothing answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outages_hold_nothing_from_a_reload_on() {
    let is_down = Arc::new(AtomicBool::new(true));
    let down = is_down.clone();
    let harbor = StubHarbor::scripted(move |_, _| down.load(Ordering::Relaxed).then_some(Illness::BadGateway)).await;
    let refusing = StubRegistry::builder().start().await;
    refusing.refuse().await;
    let text = |mode| {
        let registry =
            |name, host| format!("[registries.{name}]\nhosts = [\"{host}\"]\ncap = 4\nshare = 1\nmode = \"{mode}\"\n");
        config(&[registry("stub", refusing.address()), registry("harbor", harbor.address())].concat())
    };
    let sidecar = start(&text("enforce")).await;
    let proxy = sidecar.proxy();
    let ask = |host: SocketAddr, number: u32| {
        let url = format!("http://{host}/v2/team/app-{number}/manifests/v1");
        tokio::spawn(async move { get_through(proxy, &url, &[]).await.status() })
    };
    let hosts = [refusing.address(), harbor.address()];
    let pullers: Vec<_> = (0..10).flat_map(|number| hosts.map(|host| ask(host, number))).collect();
    eventually("all to wait for an outage to end", SOON, async || {
        let status = sidecar.status().await["registries"].clone();
        let are_held = ["stub", "harbor"].iter().all(|name| status[name]["waiting"].as_u64() >= Some(9));
        if are_held { Ok(()) } else { Err(status) }
    })
    .await;
    reload(&sidecar, &text("observe"), "observe").await;
    let reloaded = Instant::now();
    while reloaded.elapsed() < Duration::from_millis(500) {
        let status = sidecar.status().await["registries"].clone();
        assert!(["stub", "harbor"].iter().all(|name| status[name]["waiting"] == 0), "{status}");
    }
    // A bad answer of the registry itself is asked for again, without a place in a queue.
    is_down.store(false, Ordering::Relaxed);
    for (number, puller) in pullers.into_iter().enumerate() {
        // The challenge of a registry that is up again.
        assert_eq!(puller.await.unwrap(), if number % 2 == 0 { 502 } else { 401 });
    }
}

/// A database of 18 connections and 60 pullers: signs of overload come and are counted, and nothing yields or waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signs_of_overload_are_counted_and_hold_nothing() {
    let harbor = StubHarbor::limited(18, Duration::from_millis(30)).await;
    let registry = format!(
        "[registries.stub]\nhosts = [\"registry.test\"]\ncap = 60\nshare = 1\nmode = \"observe\"\n\
         [registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"http://{}\"\n",
        harbor.address()
    );
    let sidecar = start(&config(&registry)).await;
    let mirror = sidecar.listener("mirror").unwrap();
    let basic = format!("Authorization: Basic {}", BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")));
    // Repaired tokens come one after another: their manifests would be asked for as the database allows.
    let all_have_tokens = Arc::new(Barrier::new(60));
    let pullers = (0..60).map(|puller| {
        let (basic, name, all_have_tokens) = (basic.clone(), format!("X-Pull: {puller}"), all_have_tokens.clone());
        tokio::spawn(async move {
            let mut wire = Wire::open(mirror).await.unwrap();
            let path = "/service/token?service=harbor-registry&scope=repository:team/app:pull";
            let token = wire.get(path, &[&name, &basic]).await.unwrap().json()["token"].clone();
            let bearer = format!("Authorization: Bearer {}", token.as_str().unwrap_or_default());
            all_have_tokens.wait().await;
            let _ = wire.get("/v2/team/app/manifests/v1", &[&name, &bearer]).await.unwrap();
        })
    });
    for puller in pullers.collect::<Vec<_>>() {
        puller.await.unwrap();
    }
    assert!(harbor.most_busy() > 18, "it was not overloaded");
    let status = sidecar.status().await["registries"]["stub"].clone();
    let sign = |name: &str| status["observe"]["signs"][name].as_u64().unwrap_or_default();
    // A database that is full says so to some requests, and gives tokens without rights to others.
    let (errors, tokens) = (sign("database_error"), sign("poisoned_token"));
    assert!(errors > 0 && tokens > 0 && errors + tokens > 20, "{status}");
    assert!(status["adapt"]["enabled"] == false && status.get("slots_in_force").is_none(), "{status}");
    let metrics = sidecar.metrics().await;
    let waits = |le: &str| metrics.count("roadstead_wait_seconds_bucket", &[("registry", "stub"), ("le", le)]);
    assert!(waits("+Inf") > 120 && waits("0.001") == waits("+Inf"), "{} of {}", waits("0.001"), waits("+Inf"));
}

/// A registry that takes no connection is told of at once, as without a sidecar.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_dial_is_answered_at_once() {
    let stub = StubRegistry::builder().start().await;
    stub.refuse().await;
    let sidecar = start(&text(stub.address(), "observe", 2, "")).await;
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(get_through(sidecar.proxy(), &format!("http://{}/v2/", stub.address()), &[]).await.status(), 502);
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(sidecar.status().await["registries"]["stub"]["observe"]["signs"]["failed_dial"], 3);
}

#[tokio::test]
async fn check_and_status_say_which_mode_holds() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = start(&text(stub.address(), "observe", 2, "")).await;
    assert_eq!(get_through(sidecar.proxy(), &format!("http://{}/v2/", stub.address()), &[]).await.status(), 200);
    let config = sidecar.config_path();
    let run = |arguments: Vec<String>| async move {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_roadstead"));
        let output = command.args(arguments).stdin(Stdio::null()).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let checked = run(vec!["--config".to_owned(), config.display().to_string(), "check".to_owned()]).await;
    assert!(checked.contains("registries.stub.mode") && checked.contains("nothing is held"), "{checked}");
    let shown = run(vec!["status".to_owned(), "--admin".to_owned(), sidecar.admin().to_string()]).await;
    assert!(
        shown.contains("stub  observed: nothing is held") && shown.contains("0 of 1 requests would have"),
        "{shown}"
    );
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
}
