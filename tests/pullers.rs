//! A puller made as Dragonfly's dfdaemon is: 32 HTTP clients with pools of their own, of which each request takes one at
//! random, and which race dials against their pools and park the losers. With fewer slots than connections it wants, its
//! pulls end only if idle tunnels are taken back.
//!
//! A request that crosses our FIN on the wire is cut, which no proxy can rule out; on starved cores, and with the short
//! pauses that are learned here, it happens. It is sent once more, counted and printed, and has to stay rare.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Certificate, Client, Proxy, StatusCode};
use roadstead_test_support::real::{Nginx, TlsVersion};
use roadstead_test_support::{Random, Sidecar, SocketWatch, StubRegistry, blob_of, config};
use tokio::sync::{Mutex, Semaphore};

const BLOBS: usize = 8;
const BLOBS_AT_ONCE: usize = 4;
const PIECES: usize = 16;
const PIECES_AT_ONCE: usize = 8;
/// Not a multiple of what nginx reads at once: the last record of an answer is shorter, as behind a real registry, which
/// sends the head of an answer and the first bytes of its body together.
const PIECE: usize = 500_000;

/// The clients of one daemon.
struct Daemon {
    clients: Vec<Client>,
    random: Mutex<Random>,
    base: String,
    /// Requests that were cut and sent once more.
    cut: AtomicU64,
}

impl Daemon {
    fn new(sidecar: &Sidecar, front: &Nginx) -> Daemon {
        let authority = Certificate::from_pem(&std::fs::read(front.authority()).unwrap()).unwrap();
        let client = || {
            Client::builder()
                .http1_only()
                .pool_max_idle_per_host(1024)
                .proxy(Proxy::all(format!("http://dfdaemon:x@{}", sidecar.proxy())).unwrap())
                .add_root_certificate(authority.clone())
                .timeout(Duration::from_secs(40))
                .build()
                .unwrap()
        };
        let clients = (0..32).map(|_| client()).collect();
        Daemon {
            clients,
            random: Mutex::new(Random::new(7)),
            base: format!("https://{}", front.address()),
            cut: AtomicU64::new(0),
        }
    }

    /// One range of a blob; what dfdaemon asks for.
    async fn range(&self, path: &str, first: usize, last: usize) -> Result<Vec<u8>, String> {
        let tried = self.try_range(path, first, last).await;
        if tried.is_ok() {
            return tried;
        }
        self.cut.fetch_add(1, Ordering::Relaxed);
        self.try_range(path, first, last).await
    }

    async fn try_range(&self, path: &str, first: usize, last: usize) -> Result<Vec<u8>, String> {
        let pick = usize::try_from(self.random.lock().await.below(32)).unwrap();
        let request =
            self.clients[pick].get(format!("{}{path}", self.base)).header("Range", format!("bytes={first}-{last}"));
        let answer = request.send().await.map_err(|error| format!("{path} {first}: {error:?}"))?;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Err(format!("{path} {first}: {}", answer.status()));
        }
        answer.bytes().await.map(|bytes| bytes.to_vec()).map_err(|error| format!("{path} {first}: {error:?}"))
    }

    async fn pull(self: Arc<Self>, path: String) -> Result<(), String> {
        self.range(&path, 0, 0).await?;
        let whole = blob_of(&path, PIECES * PIECE);
        let at_once = Arc::new(Semaphore::new(PIECES_AT_ONCE));
        let pieces = (0..PIECES).map(|piece| {
            let (daemon, path, at_once, whole) = (self.clone(), path.clone(), at_once.clone(), whole.clone());
            tokio::spawn(async move {
                let _turn = at_once.acquire().await.unwrap();
                let (first, last) = (piece * PIECE, (piece + 1) * PIECE - 1);
                let bytes = daemon.range(&path, first, last).await?;
                (bytes == whole[first..=last]).then_some(()).ok_or(format!("{path} {first}: wrong bytes"))
            })
        });
        for piece in pieces.collect::<Vec<_>>() {
            piece.await.unwrap()?;
        }
        Ok(())
    }

    /// All pulls; tells which failed.
    async fn pull_all(self: Arc<Self>) -> Vec<String> {
        let at_once = Arc::new(Semaphore::new(BLOBS_AT_ONCE));
        let pulls = (0..BLOBS).map(|number| {
            let (daemon, at_once) = (self.clone(), at_once.clone());
            tokio::spawn(async move {
                let _turn = at_once.acquire().await.unwrap();
                daemon.pull(format!("/v2/app/blobs/sha256:{number:064}")).await
            })
        });
        let mut failed = Vec::new();
        for pull in pulls.collect::<Vec<_>>() {
            failed.extend(pull.await.unwrap().err());
        }
        failed
    }
}

async fn pulls_end_whole(slots: usize, version: TlsVersion) {
    let stub = StubRegistry::builder().blob_size(PIECES * PIECE).start().await;
    let front = Nginx::tls(stub.address(), "registry.test", version);
    let registry = format!(
        "[registries.stub]\nhosts = [\"{}\"]\ncap = {slots}\nshare = 1\n\
         [registries.stub.queue]\ntunnel_timeout = \"40s\"\n",
        front.address()
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
    let watch = SocketWatch::start(front.address());
    let began = Instant::now();
    let daemon = Arc::new(Daemon::new(&sidecar, &front));
    let failed = daemon.clone().pull_all().await;
    let took = began.elapsed();
    let peak = watch.stop();
    let metrics = sidecar.metrics().await;
    let reclaimed =
        |evidence| metrics.count("roadstead_reclaimed_total", &[("registry", "stub"), ("evidence", evidence)]);
    let cut = daemon.cut.load(Ordering::Relaxed);
    let all_reclaimed = reclaimed("unused") + reclaimed("idle") + reclaimed("unsure");
    println!(
        "{version:?}, {slots} slots: {BLOBS} pulls in {took:.1?}; tunnels taken back: {} unused, {} idle, {} unsure; {} connections; {cut} requests cut",
        reclaimed("unused"),
        reclaimed("idle"),
        reclaimed("unsure"),
        metrics.count("roadstead_connect_seconds_count", &[("registry", "stub")]),
    );
    assert_eq!(failed, [""; 0], "pulls that failed");
    assert!(cut * 20 <= all_reclaimed, "{cut} requests cut in {all_reclaimed} reclaims");
    assert!((1..=slots).contains(&peak.most), "{peak:?}");
}

/// With ten slots, TLS 1.2 and Harbor's settings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemons_pulls_end_whole_on_ten_slots() {
    pulls_end_whole(10, TlsVersion::V1_2).await;
}

/// With two slots, where it would want more than sixty connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemons_pulls_end_whole_on_two_slots() {
    pulls_end_whole(2, TlsVersion::V1_2).await;
}

/// With a single one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemons_pulls_end_whole_on_one_slot() {
    pulls_end_whole(1, TlsVersion::V1_2).await;
}

/// With TLS 1.3, where tickets look like answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemons_pulls_end_whole_over_tls_1_3() {
    pulls_end_whole(2, TlsVersion::V1_3).await;
}
