//! How long do a dfdaemon's pulls take on few slots, and how many requests are cut on the way?
//!
//! A puller made as dfdaemon is pulls blobs of 32 MiB from nginx with TLS and Harbor's settings, directly and through the
//! sidecar with 10, 4 and 2 slots, all settings at their defaults. Prints the times and their ratios, the tunnels reclaimed
//! by evidence, and the requests cut. At the end small pieces make thousands of reclaims, to count the cuts.
//!
//! `cargo bench --bench pullers`, or with a number: so many rounds of small pieces, and nothing else.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use roadstead_test_support::real::{Nginx, NginxSettings, TlsVersion};
use roadstead_test_support::{Load, Puller, Reclaims, Sidecar, StubRegistry, config};

/// A real Harbor's pace: these 32 pulls took it 12 s, directly.
const HARBOR: u64 = (32 << 25) / 12;

const NAME: &str = "registry.test";

/// As dfdaemon.
const LARGE: Load = Load { blobs: 32, ..Load::DFDAEMON };

/// Many requests for little: what is measured is the race, not the relay.
const SMALL: Load = Load { pieces: 64, piece: 20_000, again: 1, ..Load::DFDAEMON };

/// The slots, and how many times the direct time the pulls may take with them.
const GOALS: [(usize, Option<f64>); 3] = [(10, Some(4.0)), (4, None), (2, Some(15.0))];

const VERSIONS: [TlsVersion; 2] = [TlsVersion::V1_2, TlsVersion::V1_3];

#[tokio::main(worker_threads = 2)]
async fn main() {
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let missed = if rounds.is_none() { compare().await } else { Vec::new() };
    count_cuts(rounds.unwrap_or(4)).await;
    assert_eq!(missed, [""; 0], "goals that were missed");
}

/// The times, with pieces of 4 MiB. Hands out the goals that were missed.
async fn compare() -> Vec<String> {
    println!("TLS     slots   direct  through  ratio  unused  idle  unsure  crossed  cut  efficiency");
    let mut missed = Vec::new();
    for version in VERSIONS {
        let stub = StubRegistry::builder().blob_size(LARGE.blob_size()).bytes_per_second(HARBOR).start().await;
        let front = Nginx::with(stub.address(), NAME, NginxSettings::harbor(version));
        let (direct, _) = pull(&front, None, LARGE).await;
        for (slots, goal) in GOALS {
            let sidecar = sidecar(&front, slots).await;
            let (through, cut) = pull(&front, Some(sidecar.proxy()), LARGE).await;
            let reclaims = Reclaims::of(&sidecar.metrics().await);
            let Reclaims { unused, idle, unsure, crossed, .. } = reclaims;
            let (direct, through) = (direct.as_secs_f64(), through.as_secs_f64());
            let (ratio, efficiency) = (through / direct, reclaims.efficiency());
            println!(
                "{version:?}{slots:>9}{direct:>7.1} s{through:>7.1} s{ratio:>7.2}{unused:>8}{idle:>6}{unsure:>8}\
                 {crossed:>9}{cut:>5}{efficiency:>12.2}"
            );
            if goal.is_some_and(|goal| ratio > goal) {
                missed.push(format!("{version:?}, {slots} slots: {ratio:.1} times the direct time"));
            }
        }
    }
    missed
}

/// The cuts, with small pieces on ten slots.
async fn count_cuts(rounds: usize) {
    println!("\nsmall pieces, 10 slots, {rounds} rounds:");
    for version in VERSIONS {
        let stub = StubRegistry::builder().blob_size(SMALL.blob_size()).start().await;
        let front = Nginx::with(stub.address(), NAME, NginxSettings::harbor(version));
        let sidecar = sidecar(&front, 10).await;
        let mut cut = 0;
        for _ in 0..rounds {
            cut += pull(&front, Some(sidecar.proxy()), SMALL).await.1;
        }
        let reclaims = Reclaims::of(&sidecar.metrics().await);
        let (all, crossed) = (reclaims.all(), reclaims.crossed);
        println!("{version:?} {cut} requests cut in {all} reclaims ({crossed} seen to cross)");
    }
}

async fn sidecar(front: &Nginx, slots: usize) -> Sidecar {
    let registry = format!(
        "[registries.stub]\nhosts = [\"{}\"]\ncap = {slots}\nshare = 1\n[registries.stub.queue]\ntunnel_timeout = \"10m\"\n",
        front.address()
    );
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
