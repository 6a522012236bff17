//! Several nodes behind one mirror, each a stub that counts its own connections: who gets them, while nodes go and come.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use roadstead_test_support::{Response, Sidecar, StubBuilder, StubRegistry, Wire, config, eventually, eventually_is};
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(10);
/// What a node may be left out for at most, and more.
const PROBED: Duration = Duration::from_secs(20);

/// Slots for each of these nodes; `more` goes after the mirror's own lines.
fn cluster_config(nodes: &[&StubRegistry], slots: usize, more: &str) -> String {
    let urls: Vec<String> = nodes.iter().map(|node| format!("\"http://{}\"", node.address())).collect();
    config(&format!(
        "[registries.stub]\nhosts = [\"registry.test\"]\ncap = {slots}\nshare = 1\n\
         [registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = [{}]\ncap_per_upstream = true\n{more}\n",
        urls.join(", ")
    ))
}

async fn start(config: &str) -> (Sidecar, SocketAddr) {
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), config).await;
    let mirror = sidecar.listener("mirror").expect("a line for the mirror's listener");
    (sidecar, mirror)
}

async fn node() -> StubRegistry {
    builder().start().await
}

fn builder() -> StubBuilder {
    StubRegistry::builder().blob_size(1000)
}

async fn get(address: SocketAddr, path: &str) -> Response {
    Wire::open(address).await.unwrap().get(path, &[]).await.unwrap()
}

/// Asks for so many manifests at once.
fn ask(mirror: SocketAddr, requests: usize) -> Vec<JoinHandle<u16>> {
    let one = |number| tokio::spawn(async move { get(mirror, &format!("/v2/a{number}/manifests/1")).await.status() });
    (0..requests).map(one).collect()
}

async fn all_served(asked: Vec<JoinHandle<u16>>) {
    for answer in asked {
        assert_eq!(answer.await.unwrap(), 200);
    }
}

/// What the sidecar says of a node.
async fn is_up(sidecar: &Sidecar, node: &StubRegistry) -> u64 {
    let url = format!("http://{}", node.address());
    sidecar.metrics().await.count("roadstead_upstream_up", &[("registry", "stub"), ("upstream", &url)])
}

/// One slot for each URL, and always somebody who waits: the only connection there is never rests, and is given up all the
/// same for the node that came back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_is_used_though_no_connection_ever_rests() {
    let (one, other) = (builder().answer_delay(Duration::from_millis(5)).start().await, node().await);
    let (sidecar, mirror) = start(&cluster_config(&[&one, &other], 1, "")).await;
    assert_eq!((sidecar.count("stub", "slots").await, is_up(&sidecar, &other).await), (2, 1));
    other.refuse().await;
    let done = Arc::new(AtomicBool::new(false));
    let pullers = (0..6).map(|puller| {
        let done = done.clone();
        tokio::spawn(async move {
            let mut wire = Wire::open(mirror).await.unwrap();
            while !done.load(Ordering::Relaxed) {
                assert_eq!(wire.get(&format!("/v2/a{puller}/manifests/1"), &[]).await.unwrap().status(), 200);
            }
        })
    });
    let pullers: Vec<_> = pullers.collect();
    sidecar.until("stub", "slots", 1).await;
    assert_eq!(is_up(&sidecar, &other).await, 0);
    eventually("requests at the other", SOON, async || match one.requests() {
        requests if requests > 50 => Ok(()),
        requests => Err(requests),
    })
    .await;
    other.accept_again().await;
    eventually("requests at the node that came back", PROBED, async || match other.requests() {
        0 => Err(sidecar.status().await),
        _ => Ok(()),
    })
    .await;
    sidecar.until("stub", "slots", 2).await;
    assert_eq!(is_up(&sidecar, &other).await, 1);
    done.store(true, Ordering::Relaxed);
    for puller in pullers {
        puller.await.unwrap();
    }
    assert_eq!((one.peak(), other.peak()), (1, 1));
}

/// A cluster is asked in the one name that its nodes share.
#[tokio::test]
async fn every_node_is_asked_in_the_name_of_the_registry() {
    let nodes = [node().await, node().await];
    nodes.iter().for_each(StubRegistry::hold);
    let (_sidecar, mirror) = start(&cluster_config(&[&nodes[0], &nodes[1]], 1, "")).await;
    let asked = ask(mirror, 2);
    for node in &nodes {
        eventually_is("a request", SOON, 1, async || node.requests()).await;
        let head = node.seen_requests().remove(0).to_ascii_lowercase();
        assert!(head.contains("\r\nhost: registry.test\r\n"), "{head}");
        node.release();
    }
    all_served(asked).await;
}
