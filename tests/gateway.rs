//! Nothing answers behind the registry's gateway for a while: requests are held, one at a time probes, and no client notices.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use roadstead_test_support::{Illness, Sidecar, StubHarbor, Wire, config, connect_through};

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
