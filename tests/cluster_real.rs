//! A registry of three nginx nodes behind one mirror, while nodes stop and come back in the middle of a storm.
//!
//! All three are in front of the same stub registry, so whatever a client gets can be checked wherever it came from.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use roadstead_test_support::http::{Framing, request};
use roadstead_test_support::real::{Nginx, TlsVersion};
use roadstead_test_support::{Sidecar, StubRegistry, Wire, blob_of, config, eventually, manifest_of};
use tempfile::TempDir;
use tokio::task::{JoinHandle, block_in_place};

const SLOTS: usize = 12;
const PULLERS: usize = 24;
/// Of all pullers together, at least.
const PULLS: usize = 3000;
const BLOB: usize = 256 * 1024;
/// Longer than any step of a storm takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// One node is stopped in order in the storm, and comes back: nobody notices, and all three share the load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_stopped_and_started_again_is_not_noticed() {
    let mut stage = Stage::set().await;
    let storm = Storm::start(stage.mirror);
    storm.until(PULLS / 4).await;
    stage.nodes[0].quit();
    storm.until(PULLS / 2).await;
    let before = stage.requests();
    block_in_place(|| stage.nodes[0].restart());
    // The pause until it is tried again has grown meanwhile.
    eventually("the first node to be asked again", PATIENCE, async || {
        let now = stage.requests();
        if now[0] > before[0] { Ok(()) } else { Err(now) }
    })
    .await;
    let back = stage.requests();
    storm.until(storm.done() + PULLS / 4).await;
    let failed = storm.end().await;

    assert_eq!(failed, [], "pulls that failed");
    let all = stage.requests();
    println!("requests by node: at the restart {before:?}, when it was back {back:?}, in the end {all:?}");
    assert_even(&[all[1], all[2]]);
    assert!(before[0] * 3 < before[1] * 2, "the first node was away: {before:?}");
    let since: Vec<usize> = (0..3).map(|node| all[node] - back[node]).collect();
    assert_even(&since);
    stage.all_up_within_slots().await;
}

/// One node is killed in the storm: only answers that had begun to arrive are lost with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_takes_only_what_it_was_answering() {
    let mut stage = Stage::set().await;
    let storm = Storm::start(stage.mirror);
    storm.until(PULLS / 4).await;
    block_in_place(|| stage.nodes[0].kill());
    storm.until(PULLS).await;
    let failed = storm.end().await;

    let (begun, untouched): (Vec<_>, Vec<_>) = failed.into_iter().partition(|failed| failed.has_begun);
    println!("{} pulls were cut in the middle of an answer by the kill: {begun:?}", begun.len());
    assert_eq!(untouched, [], "pulls that failed before a byte of the answer");
    assert!(begun.len() <= SLOTS, "more than the node could be answering: {begun:?}");
    let all = stage.requests();
    println!("requests by node: {all:?}");
    assert_even(&all[1..]);
}

/// Within 20 % of an equal share.
fn assert_even(requests: &[usize]) {
    let equal = requests.iter().sum::<usize>() / requests.len();
    assert!(equal > 100, "too few to tell: {requests:?}");
    assert!(requests.iter().all(|requests| requests.abs_diff(equal) * 5 <= equal), "not even: {requests:?}");
}

/// Three nodes and their mirror.
struct Stage {
    nodes: Vec<Nginx>,
    sidecar: Sidecar,
    mirror: SocketAddr,
    _stub: StubRegistry,
    _folder: TempDir,
}

impl Stage {
    async fn set() -> Stage {
        let stub = StubRegistry::builder().blob_size(BLOB).start().await;
        let nodes: Vec<Nginx> =
            (0..3).map(|_| Nginx::node(stub.address(), "registry.test", TlsVersion::V1_2)).collect();
        let folder = TempDir::new().expect("a temporary folder");
        let trusted = folder.path().join("trusted.pem");
        let authorities = nodes.iter().map(|node| std::fs::read(node.authority()).unwrap());
        std::fs::write(&trusted, authorities.collect::<Vec<_>>().concat()).unwrap();
        let urls: Vec<String> = nodes.iter().map(|node| format!("\"https://{}\"", node.address())).collect();
        let table = format!(
            "[registries.stub]\nhosts = [\"registry.test\"]\ncap = {SLOTS}\nshare = 1\n\
             [registries.stub.tls]\nca_file = \"{}\"\n\
             [registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = [{}]\n",
            trusted.display(),
            urls.join(", "),
        );
        let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&table)).await;
        let mirror = sidecar.listener("mirror").expect("a line for the mirror's listener");
        Stage { nodes, sidecar, mirror, _stub: stub, _folder: folder }
    }

    /// Requests that each node has answered so far.
    fn requests(&self) -> Vec<usize> {
        let requests = |node: &Nginx| node.log().lines().filter(|line| line.contains("\"GET /v2/")).count();
        self.nodes.iter().map(requests).collect()
    }

    /// Nobody is left out any more, and the slots hold.
    async fn all_up_within_slots(&self) {
        let status = self.sidecar.status().await;
        let open = status["registries"]["stub"]["open"].as_u64().unwrap();
        assert!(open <= SLOTS as u64, "{status}");
    }
}

/// A pull that failed.
#[derive(Debug, PartialEq)]
struct Failed {
    /// Whether a byte of the answer had come.
    has_begun: bool,
    why: String,
}

/// Pullers that pull until they are stopped.
struct Storm {
    done: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    pullers: Vec<JoinHandle<Vec<Failed>>>,
}

impl Storm {
    fn start(mirror: SocketAddr) -> Storm {
        let (next, done, stop) = <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicBool>)>::default();
        let pullers = (0..PULLERS).map(|_| {
            let (next, done, stop) = (next.clone(), done.clone(), stop.clone());
            tokio::spawn(async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    failed.extend(pull(mirror, number).await.err());
                    done.fetch_add(1, Ordering::Relaxed);
                }
                failed
            })
        });
        let pullers = pullers.collect();
        Storm { done, stop, pullers }
    }

    fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until so many pulls are done.
    async fn until(&self, pulls: usize) {
        eventually("the storm to go on", PATIENCE, async || match self.done() {
            done if done >= pulls => Ok(()),
            done => Err(done),
        })
        .await;
    }

    /// Stops them, and tells which pulls failed.
    async fn end(self) -> Vec<Failed> {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for puller in self.pullers {
            failed.extend(puller.await.expect("a puller does not panic"));
        }
        failed
    }
}

/// A manifest and a blob on one connection, every byte checked.
async fn pull(mirror: SocketAddr, number: usize) -> Result<(), Failed> {
    let name = format!("team/image{number}");
    let mut wire = Wire::open(mirror).await.map_err(|error| Failed { has_begun: false, why: error.to_string() })?;
    let manifest = format!("/v2/{name}/manifests/v1");
    get(&mut wire, &manifest, &manifest_of(&name, BLOB)).await?;
    let blob = format!("/v2/{name}/blobs/sha256:1");
    get(&mut wire, &blob, &blob_of(&blob, BLOB)).await
}

async fn get(wire: &mut Wire, path: &str, expected: &[u8]) -> Result<(), Failed> {
    let fail = |has_begun, why: String| Failed { has_begun, why: format!("{path}: {why}") };
    let untouched = |error: std::io::Error| fail(false, error.to_string());
    wire.send(request("GET", path, &[]).as_bytes()).await.map_err(untouched)?;
    let head = wire.read_answer().await.map_err(untouched)?;
    let body = wire.body(Framing::of_answer(&head, "GET")).collect().await;
    if head.status() != 200 {
        return Err(fail(false, format!("{} {}", head.status(), String::from_utf8_lossy(&body.unwrap_or_default()))));
    }
    let body = body.map_err(|error| fail(true, error.to_string()))?;
    // A whole answer with wrong bytes is no cut one.
    if body == expected { Ok(()) } else { Err(fail(false, "not the bytes of this path".to_owned())) }
}
