//! A real puller and pusher, skopeo, against the registry that Harbor itself runs, through the sidecar.
//!
//! The registry has a name that only the sidecar can resolve (Go never proxies 127.x), so nothing can go around it.
//! With two slots, and a puller that fetches all layers at once, the queue is at work in every test.

use std::net::SocketAddr;
use std::time::Duration;

use roadstead_test_support::real::{DockerRegistry, LoopbackName, Nginx, OciImage, Skopeo, TlsVersion};
use roadstead_test_support::{Peak, Sidecar, SocketWatch, config, eventually_is};
use serde_json::Value;
use tempfile::TempDir;

/// Slots of every sidecar here.
const SLOTS: usize = 2;
const LAYERS: u64 = 5;
const LAYER_BYTES: usize = 3 << 20;
/// Layers, config and manifest.
const BLOBS: usize = 7;

/// An image goes to the registry and comes back through tunnels, TLS from end to end: every blob is the same to the
/// last byte, the kernel never shows more than two sockets to the registry, and the layers took turns for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_pushes_and_pulls_an_image_through_tunnels_on_two_slots() {
    let name = LoopbackName::new();
    let registry = DockerRegistry::start();
    let front = Nginx::tls(registry.address(), name.name(), TlsVersion::V1_2);
    let trusted = front.trusted_folder().display().to_string();
    let stage = Stage::set(&name, front.address()).await;

    let there = ["--dest-cert-dir", &trusted];
    let back = ["--src-cert-dir", &trusted];
    let peak = stage.push_and_pull(&there, &back).await;

    assert!((1..=SLOTS).contains(&peak.most), "{peak:?}");
    let finished = stage.sidecar.finished();
    assert_all_served(&finished);
    assert!(finished.iter().all(|line| line["kind"] == "tunnel"), "{finished:#?}");
    assert_somebody_waited(&finished);
}

/// The same without TLS, by absolute-form: skopeo first tries TLS through a tunnel, is told by the registry that it
/// speaks plain HTTP, and goes on with requests that the sidecar can read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_pushes_and_pulls_an_image_by_absolute_form_on_two_slots() {
    let name = LoopbackName::new();
    let registry = DockerRegistry::start();
    let stage = Stage::set(&name, registry.address()).await;

    let there = ["--dest-tls-verify=false"];
    let back = ["--src-tls-verify=false"];
    let peak = stage.push_and_pull(&there, &back).await;

    assert!((1..=SLOTS).contains(&peak.most), "{peak:?}");
    let finished = stage.sidecar.finished();
    assert_all_served(&finished);
    let requests = finished.iter().filter(|line| line["kind"] == "request").count();
    // A push asks for, starts, fills and ends each blob; a pull gets each blob.
    assert!(requests > 4 * BLOBS, "{finished:#?}");
    assert_somebody_waited(&finished);
}

/// A sidecar in front of a registry, an image to push, and skopeo.
struct Stage {
    sidecar: Sidecar,
    registry: SocketAddr,
    repository: String,
    image: OciImage,
    folder: TempDir,
}

impl Stage {
    /// Starts a sidecar that knows `registry` under `name`, and makes an image.
    async fn set(name: &LoopbackName, registry: SocketAddr) -> Self {
        let host = format!("{}:{}", name.name(), registry.port());
        let binary = name.program(env!("CARGO_BIN_EXE_roadstead"));
        let sidecar = Sidecar::start(
            &binary,
            &config(&format!("[registries.stub]\nhosts = [\"{host}\"]\ncap = {SLOTS}\nshare = 1\n")),
        )
        .await;
        let folder = TempDir::new().expect("a temporary folder");
        Self {
            sidecar,
            registry,
            repository: format!("docker://{host}/team/image:latest"),
            image: OciImage::make(&folder.path().join("image"), LAYERS, LAYER_BYTES),
            folder,
        }
    }

    /// Pushes the image and pulls it again, compares every byte, and hands out the most sockets that the registry
    /// had from the sidecar meanwhile.
    async fn push_and_pull(&self, there: &[&str], back: &[&str]) -> Peak {
        let pulled = self.folder.path().join("pulled");
        let watch = SocketWatch::start(self.registry);
        let skopeo = Skopeo::through(self.sidecar.proxy());
        skopeo.copy(there, &Skopeo::layout(self.image.folder()), &self.repository).await.unwrap();
        skopeo.copy(back, &self.repository, &Skopeo::layout(&pulled)).await.unwrap();
        let peak = watch.stop();

        let sent = OciImage::blobs_in(self.image.folder());
        let received = OciImage::blobs_in(&pulled);
        assert_eq!(sent.len(), BLOBS);
        // Not assert_eq: nobody wants to read 15 MiB.
        assert!(sent == received, "sent {:?}, received {:?}", sent.keys(), received.keys());
        self.nothing_is_left().await;
        peak
    }

    /// Waits until the sidecar has given everything back.
    async fn nothing_is_left(&self) {
        let what = "no socket and no waiter";
        eventually_is(what, Duration::from_secs(10), (0, 0), async || {
            let status = self.sidecar.status().await;
            let registry = &status["registries"]["stub"];
            (count(&registry["active"]), count(&registry["waiting"]))
        })
        .await;
    }
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("a number, not {value}"))
}

/// Neither the queue nor the registry turned anybody away. A puller may well close first.
fn assert_all_served(finished: &[Value]) {
    assert!(!finished.is_empty());
    let turned_away = |line: &&Value| line["outcome"] != "served" && line["outcome"] != "client_left";
    let refused: Vec<&Value> = finished.iter().filter(turned_away).collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

/// Five layers at once on two slots: somebody had to wait, else the cap was not what held.
fn assert_somebody_waited(finished: &[Value]) {
    let waited = |line: &Value| line["waited_ms"].as_f64().is_some_and(|waited| waited >= 1.0);
    assert!(finished.iter().any(waited), "{finished:#?}");
}
