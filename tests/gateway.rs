//! Nothing answers behind the registry's gateway for a while: requests are held, one at a time probes, and no client notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use roadstead_test_support::real::{Nginx, TlsVersion};
use roadstead_test_support::{
    Destination, Illness, Sidecar, SocketWatch, Storm, StubHarbor, StubRegistry, Tally, Wire, config, connect_through,
    eventually,
};

const OUTAGE: Duration = Duration::from_secs(4);
const PULLS: usize = 60;
const SLOTS: usize = 8;

async fn start(harbors: &[&StubHarbor]) -> (Sidecar, SocketAddr) {
    let urls: Vec<String> = harbors.iter().map(|harbor| format!("\"http://{}\"", harbor.address())).collect();
    let registry = format!(
        "[registries.harbor]\nhosts = [\"registry.test\"]\ncap = {SLOTS}\nshare = 1\n\
         [registries.harbor.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = [{}]\n",
        urls.join(", ")
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
    let mirror = sidecar.listener("mirror").unwrap();
    (sidecar, mirror)
}

async fn ask(mirror: SocketAddr, number: usize) -> u16 {
    let path = format!("/service/token?scope=repository:team/app{number}:pull");
    let path = path.replace("/service/token", &format!("/service/{number}/token"));
    Wire::open(mirror).await.unwrap().get(&path, &[]).await.unwrap().status()
}

/// A storm meets an outage of seconds: every request is served, soon after it ends, and the registry sees few meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_behind_the_gateway_costs_no_request() {
    let began = Instant::now();
    let harbor = StubHarbor::scripted(move |_, _| {
        Some(if began.elapsed() < OUTAGE { Illness::BadGateway } else { Illness::Answer("200 OK", &[], 2) })
    })
    .await;
    let (_sidecar, mirror) = start(&[&harbor]).await;
    let asked: Vec<_> = (0..PULLS).map(|number| tokio::spawn(ask(mirror, number))).collect();
    for asked in asked {
        assert_eq!(asked.await.unwrap(), 200);
    }
    assert!(began.elapsed() < OUTAGE + Duration::from_secs(5), "{:?}", began.elapsed());
    let meanwhile = harbor.asked().iter().filter(|(at, _)| *at - began < OUTAGE).count();
    // Those that were on their way, and one probe for each pause.
    assert!(meanwhile <= 3 * SLOTS + 10, "{meanwhile} requests in the outage");
    assert!(harbor.stub().peak() <= SLOTS, "{}", harbor.stub().peak());
}

/// The other nodes of a cluster go on, and tunnels are not held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_one_node_holds_nothing_else() {
    let out = StubHarbor::scripted(|_, _| Some(Illness::Unavailable)).await;
    let well = StubHarbor::scripted(|_, _| Some(Illness::Answer("200 OK", &[], 2))).await;
    let (sidecar, mirror) = start(&[&out, &well]).await;
    let began = Instant::now();
    let asked: Vec<_> = (0..PULLS).map(|number| tokio::spawn(ask(mirror, number))).collect();
    for asked in asked {
        assert_eq!(asked.await.unwrap(), 200);
    }
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(out.requests().len() < PULLS, "{} requests went to the node that is out", out.requests().len());
    assert!(connect_through(sidecar.proxy(), &out.address().to_string(), &[]).await.is_ok(), "a tunnel");
}

/// How long the registry behind nginx is away.
const KILLED: Duration = Duration::from_secs(13);
/// Each of two answers to a pull takes so long, in the middle of which the body stands still.
const ANSWER: Duration = Duration::from_millis(300);

/// A storm through a real nginx, in whose middle the registry behind it is killed, bodies and all, and is away for 13 s.
async fn a_killed_registry_costs_no_pull(pulls: usize, slots: usize) {
    let registry = StubRegistry::builder().steady_stall(ANSWER).start().await;
    let nginx = Nginx::tls(registry.address(), "registry.test", TlsVersion::V1_2);
    let table = format!(
        "[registries.stub]\nhosts = [\"registry.test\"]\ncap = {slots}\nshare = 1\n\
         [registries.stub.tls]\nca_file = \"{}\"\n\
         [registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"https://{}\"\n",
        nginx.authority().display(),
        nginx.address(),
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&table)).await;
    let storm = Storm {
        clients: pulls,
        blob: 64 * 1024,
        ..Storm::new(Destination::Mirror(sidecar.listener("mirror").unwrap()))
    };
    let watch = SocketWatch::start(nginx.address());
    let alone = storm.run(registry.address()).await;
    assert!(alone.ok == pulls && alone.total < Duration::from_secs(8), "without an outage: {alone}");

    let (ended, address) = (Arc::new(AtomicUsize::new(0)), registry.address());
    let count = ended.clone();
    let running = tokio::spawn(storm.run_with(address, move |progress| {
        count.fetch_max(progress.ended, Ordering::Relaxed);
    }));
    eventually("the middle of the storm", KILLED, async || match ended.load(Ordering::Relaxed) {
        ended if ended > pulls / 3 => Ok(()),
        ended => Err(format!("{ended} pulls have ended")),
    })
    .await;
    registry.kill().await;
    tokio::time::sleep(KILLED / 2).await;
    all_wait(&sidecar, pulls - ended.load(Ordering::Relaxed)).await;
    tokio::time::sleep(KILLED / 2).await;
    registry.accept_again().await;
    let tally: Tally = running.await.unwrap();
    let peak = watch.stop();
    println!(
        "{pulls} pulls, {slots} slots: alone {alone}, with the outage {tally}; {peak:?}, {} behind nginx",
        registry.peak()
    );
    assert_eq!(tally.failed, [""; 0], "{tally}\n{}", sidecar.log_text());
    assert!(tally.total < alone.total + KILLED + Duration::from_secs(5), "{tally} after {alone}");
    assert!(peak.most <= slots && peak.samples > 100, "{peak:?}");
}

/// Those who are held by the outage wait, and are shown as those who wait.
async fn all_wait(sidecar: &Sidecar, most: usize) {
    let waiting = sidecar.metrics().await.count("roadstead_waiting", &[("registry", "stub"), ("class", "default")]);
    let status = sidecar.status().await;
    let queue = sidecar.ask_admin("GET", "/queue").await.json();
    // Some may be in a pause before they ask again.
    let shown = status["registries"]["stub"]["waiting"].as_u64().unwrap();
    let most = most as u64;
    assert!(
        [waiting, shown].into_iter().all(|waiting| waiting > most / 2 && waiting <= most),
        "{waiting} of {most}: {status}"
    );
    assert!(queue["registries"]["stub"]["waiting"].as_array().is_some_and(|waiting| !waiting.is_empty()), "{queue}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_killed_behind_nginx_costs_no_pull() {
    for (pulls, slots) in [(60, 8), (300, 30)] {
        a_killed_registry_costs_no_pull(pulls, slots).await;
    }
}
