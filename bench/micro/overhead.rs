//! What does the sidecar cost when nothing is contended?
//!
//! Times a small request on loopback to a stub registry, directly and through the sidecar, on connections that are kept
//! open and on new ones, in turns so that a noisy machine is noisy for all; and reads the resident memory of a sidecar
//! that has nothing to do. Prints a table; judges nothing.
//!
//! `cargo bench --bench overhead`

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use roadstead_test_support::{Sidecar, StubRegistry, Wire, config, connect_through};

const ROUNDS: usize = 3000;

/// A way to ask for something small.
#[derive(Clone, Copy)]
enum Destination {
    Direct,
    AbsoluteForm,
    Tunnel,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let stub = StubRegistry::builder().start().await;
    let registry = stub.address();
    let settings = format!("[registries.stub]\nhosts = [\"{registry}\"]\ncap = 100\nshare = 1\n");
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&settings)).await;
    let idle_kib = sidecar.rss_kib();
    let proxy = sidecar.proxy();

    println!("median of {ROUNDS} requests for a manifest, in microseconds\n");
    println!("{:<28}{:>10}{:>16}{:>12}{:>10}", "", "direct", "absolute-form", "CONNECT", "added");
    let kept = compare(proxy, registry, true).await;
    row("connection kept open", kept);
    let new = compare(proxy, registry, false).await;
    row("new connection each time", new);
    println!("\nresident memory: {idle_kib} KiB idle, {} KiB after this", sidecar.rss_kib());
}

async fn compare(proxy: SocketAddr, registry: SocketAddr, keep: bool) -> [Duration; 3] {
    let ways = [Destination::Direct, Destination::AbsoluteForm, Destination::Tunnel];
    let mut times = ways.map(|_| Vec::with_capacity(ROUNDS));
    let mut wires: [Option<Wire>; 3] = [None, None, None];
    for _ in 0..ROUNDS {
        for (index, way) in ways.into_iter().enumerate() {
            let started = Instant::now();
            let mut wire = match wires[index].take() {
                Some(wire) => wire,
                None => open(way, proxy, registry).await,
            };
            ask(&mut wire, way, registry).await;
            times[index].push(started.elapsed());
            wires[index] = keep.then_some(wire);
        }
    }
    times.map(median)
}

async fn open(way: Destination, proxy: SocketAddr, registry: SocketAddr) -> Wire {
    match way {
        Destination::Direct => Wire::open(registry).await.expect("the stub listens"),
        Destination::AbsoluteForm => Wire::open(proxy).await.expect("the sidecar listens"),
        Destination::Tunnel => connect_through(proxy, &registry.to_string(), &[]).await.expect("a tunnel"),
    }
}

async fn ask(wire: &mut Wire, way: Destination, registry: SocketAddr) {
    let path = "/v2/app/manifests/latest";
    let target = match way {
        Destination::AbsoluteForm => format!("http://{registry}{path}"),
        Destination::Direct | Destination::Tunnel => path.to_owned(),
    };
    let answer = wire.get(&target, &[&format!("Host: {registry}")]).await.expect("an answer");
    assert_eq!(answer.status(), 200);
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn row(name: &str, [direct, forward, tunnel]: [Duration; 3]) {
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let added = us(forward.max(tunnel)) - us(direct);
    println!("{name:<28}{:>10.0}{:>16.0}{:>12.0}{added:>10.0}", us(direct), us(forward), us(tunnel));
}
