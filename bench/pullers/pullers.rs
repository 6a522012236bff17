//! How long do a dfdaemon's pulls take on few slots, and how many requests are cut on the way?
//!
//! A puller made as dfdaemon is pulls 8 blobs of 64 MiB from nginx with TLS, directly and through the sidecar with 10, 2
//! and 1 slots, once with the pauses of the config and once with what they have learned by then. Prints for each the times
//! and their ratios, the requests cut, and, of the second pull, the tunnels taken back by evidence and the slot efficiency. At the end small pieces make thousands of reclaims, to count the cuts. Judges only that every byte
//! was right.
//!
//! `cargo bench --bench pullers`, or with a number: so many rounds of small pieces.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use roadstead_test_support::real::{Nginx, NginxSettings, TlsVersion};
use roadstead_test_support::{Load, Puller, Reclaims, Sidecar, StubRegistry, config};

const NAME: &str = "registry.test";

/// Many requests for little: what is measured is the race, not the relay.
const SMALL: Load = Load { blobs: 8, blobs_at_once: 4, pieces: 64, pieces_at_once: 8, piece: 20_000 };

fn fronts() -> [(&'static str, NginxSettings); 3] {
    [
        ("Harbor's, TLS 1.2", NginxSettings::harbor(TlsVersion::V1_2)),
        ("defaults, TLS 1.2", NginxSettings::buffering(TlsVersion::V1_2)),
        ("defaults, TLS 1.3", NginxSettings::buffering(TlsVersion::V1_3)),
    ]
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    if rounds.is_none() {
        compare().await;
    }
    count_cuts(rounds.unwrap_or(4)).await;
}

/// The times, with pieces of 4 MiB.
async fn compare() {
    println!(
        "{:<18}{:>6}{:>9}{:>9}{:>7}{:>9}{:>7}{:>8}{:>6}{:>8}{:>5}{:>12}",
        "nginx",
        "slots",
        "direct",
        "through",
        "ratio",
        "learned",
        "ratio",
        "unused",
        "idle",
        "unsure",
        "cut",
        "efficiency"
    );
    for (name, settings) in fronts() {
        let load = Load::DFDAEMON;
        let stub = StubRegistry::builder().blob_size(load.blob_size()).start().await;
        let front = Nginx::with(stub.address(), NAME, settings);
        let (direct, _) = pull(&front, None, load).await;
        for slots in [10, 2, 1] {
            let sidecar = sidecar(&front, slots).await;
            let (through, cut) = pull(&front, Some(sidecar.proxy()), load).await;
            let first = Reclaims::of(&sidecar.metrics().await);
            let (learned, cut_later) = pull(&front, Some(sidecar.proxy()), load).await;
            let reclaims = Reclaims::of(&sidecar.metrics().await).since(first);
            let Reclaims { unused, idle, unsure, .. } = reclaims;
            let (cut, efficiency) = (cut + cut_later, reclaims.efficiency());
            let ratio = |took: Duration| took.as_secs_f64() / direct.as_secs_f64();
            println!(
                "{name:<18}{slots:>6}{:>7.1} s{:>7.1} s{:>7.2}{:>7.1} s{:>7.2}{unused:>8}{idle:>6}{unsure:>8}{cut:>5}{efficiency:>12.2}",
                direct.as_secs_f64(),
                through.as_secs_f64(),
                ratio(through),
                learned.as_secs_f64(),
                ratio(learned),
            );
        }
    }
}

/// The cuts, with small pieces on ten slots.
async fn count_cuts(rounds: usize) {
    println!("\nsmall pieces, 10 slots, {rounds} rounds:");
    for (name, settings) in fronts() {
        let stub = StubRegistry::builder().blob_size(SMALL.blob_size()).start().await;
        let front = Nginx::with(stub.address(), NAME, settings);
        let sidecar = sidecar(&front, 10).await;
        let mut cut = 0;
        for _ in 0..rounds {
            cut += pull(&front, Some(sidecar.proxy()), SMALL).await.1;
        }
        let reclaims = Reclaims::of(&sidecar.metrics().await);
        println!(
            "{name:<18} {cut} requests cut in {} reclaims ({} seen to cross), efficiency {:.2}",
            reclaims.all(),
            reclaims.crossed,
            reclaims.efficiency()
        );
    }
}

async fn sidecar(front: &Nginx, slots: usize) -> Sidecar {
    let registry = format!("[registries.stub]\nhosts = [\"{}\"]\ncap = {slots}\nshare = 1\n", front.address());
    Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await
}

/// How long the pulls took, and how many requests were cut.
async fn pull(front: &Nginx, proxy: Option<SocketAddr>, load: Load) -> (Duration, u64) {
    let puller = Puller::new(front, proxy, None, load);
    let began = Instant::now();
    let failed = puller.pull_all().await;
    assert_eq!(failed, [""; 0], "pulls that failed");
    (began.elapsed(), puller.cut())
}
