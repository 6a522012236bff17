//! Several nodes behind one mirror, each a stub that counts its own connections: who gets them, while nodes go and come.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use roadstead_test_support::real::{Nginx, TlsVersion};
use roadstead_test_support::{
    KEEP_TUNNELS, Response, Sidecar, Signal, StubBuilder, StubRegistry, Wire, config, connect_through, eventually,
    eventually_is, get_through,
};
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(10);
/// Longer than the longest time for which a node is left out.
const PROBED: Duration = Duration::from_secs(20);
/// Long enough to see that nothing comes of what takes milliseconds.
const NEVER: Duration = Duration::from_millis(500);

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

/// The sidecar's metric for a node.
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

/// Tunnels, and requests for absolute URLs, to a node take the slots of that node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_goes_to_a_node_takes_its_slots() {
    let (one, other) = (node().await, node().await);
    let (sidecar, mirror) = start(&cluster_config(&[&one, &other], 2, KEEP_TUNNELS)).await;
    let (proxy, authority) = (sidecar.proxy(), one.address().to_string());
    let mut tunnels = Vec::new();
    for _ in 0..2 {
        tunnels.push(connect_through(proxy, &authority, &[]).await.unwrap());
    }
    let third = tokio::spawn({
        let authority = authority.clone();
        async move { connect_through(proxy, &authority, &[]).await.map(drop).map_err(|answer| answer.text()) }
    });
    let absolute = tokio::spawn(async move { get_through(proxy, &format!("http://{authority}/v2/"), &[]).await });
    let waits = tokio::time::timeout(NEVER, eventually_is("a third", SOON, 3, async || one.open())).await;
    assert!(waits.is_err() && !third.is_finished() && !absolute.is_finished(), "{} open", one.open());
    // The mirror's own requests go where there is room.
    all_served(ask(mirror, 4)).await;
    assert_eq!((one.requests(), one.open()), (0, 2));
    drop(tunnels);
    third.await.unwrap().unwrap();
    assert_eq!(absolute.await.unwrap().status(), 200);
    assert!(one.peak() <= 2 && other.peak() <= 2, "{} and {}", one.peak(), other.peak());
}

/// Idle connections at a node, a pooled one and an unused tunnel, are reclaimed for a tunnel there, although other nodes have
/// slots left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_idles_at_a_node_gives_way_to_who_goes_there() {
    let (one, other) = (node().await, node().await);
    let (sidecar, mirror) = start(&cluster_config(&[&one, &other], 1, "")).await;
    assert_eq!(get(mirror, "/v2/").await.status(), 200);
    let (taken, free) = if one.open() == 1 { (&one, &other) } else { (&other, &one) };
    sidecar.until("stub", "idle", 1).await;
    let authority = taken.address().to_string();
    let tunnel = tokio::time::timeout(SOON, connect_through(sidecar.proxy(), &authority, &[])).await;
    let _unused = tunnel.expect("the connection gives way").unwrap();
    let tunnel = tokio::time::timeout(SOON, connect_through(sidecar.proxy(), &authority, &[])).await;
    let _next = tunnel.expect("the tunnel gives way").unwrap();
    sidecar.until("stub", "parked", 1).await;
    assert_eq!((taken.peak(), free.peak()), (1, 0));
}

/// Another list of nodes: what stands at those that stay counts, also while it carries answers that were begun before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_with_other_nodes_remembers_what_stands() {
    let nodes = [node().await, node().await, node().await];
    let [stays, goes, comes] = &nodes;
    nodes.iter().for_each(StubRegistry::hold);
    let (sidecar, mirror) = start(&cluster_config(&[stays, goes], 2, "")).await;
    let before = ask(mirror, 4);
    eventually_is("both nodes to be full", SOON, (2, 2), async || (stays.open(), goes.open())).await;
    fs::write(sidecar.config_path(), cluster_config(&[stays, comes], 2, "")).unwrap();
    sidecar.signal(Signal::HUP);
    let url = format!("http://{}", comes.address());
    eventually("the new node", SOON, async || match sidecar.metrics().await {
        metrics if metrics.sum("roadstead_upstream_up", &[("upstream", &url)]) > 0.0 => Ok(()),
        metrics => Err(metrics.sum("roadstead_upstream_up", &[])),
    })
    .await;
    let after = ask(mirror, 4);
    sidecar.until("stub", "waiting", 4).await;
    goes.release();
    eventually_is("the new node to be full", SOON, 2, async || comes.open()).await;
    nodes.iter().for_each(StubRegistry::release);
    all_served(before).await;
    all_served(after).await;
    assert_eq!((stays.peak(), goes.peak(), comes.peak()), (2, 2, 2));
}

/// The first node refuses for a moment, and the other cannot prove itself: the first is asked again, and not all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_refuses_for_a_moment_is_waited_for_though_another_is_not_trusted() {
    let refusing = node().await;
    refusing.refuse().await;
    let untrusted = Nginx::tls(refusing.address(), "registry.test", TlsVersion::V1_2);
    let urls = format!("[\"http://{}\", \"https://{}\"]", refusing.address(), untrusted.address());
    let text = cluster_config(&[], 2, "").replace("upstream = []", &format!("upstream = {urls}"));
    let (sidecar, mirror) = start(&text).await;
    let asked = ask(mirror, 1).remove(0);
    eventually_is("the node to be left out", SOON, 0, async || is_up(&sidecar, &refusing).await).await;
    let waits = tokio::time::timeout(NEVER, async {
        while !asked.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waits.await.is_err(), "{}", sidecar.log_text());
    let dials = sidecar.metrics().await.sum("roadstead_connect_seconds_count", &[("registry", "stub")]);
    assert!(dials < 20.0, "{dials} dials in half a second");
    refusing.accept_again().await;
    assert_eq!(asked.await.unwrap(), 200);
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
