//! The memory that waiting requests cost, by the kernel's count of the process.

use roadstead_test_support::{Sidecar, StubRegistry, Wire, config};

/// Clients that wait at once.
const WAITERS: u32 = 2000;

/// Measured 6.9 KiB for a tunnel and 20.8 KiB for a request, of which hyper's buffers have 16 KiB; the bounds leave a quarter.
#[tokio::test]
async fn a_waiter_costs_little_memory() {
    let stub = StubRegistry::builder().start().await;
    stub.hold();
    let registry = format!("[registries.stub]\nhosts = [\"{}\"]\ncap = 1\nshare = 1\n", stub.address());
    let (host, url) = (stub.address().to_string(), format!("http://{}/v2/a/manifests/1", stub.address()));
    for (method, target, most_kib) in [("CONNECT", &host, 8.6), ("GET", &url, 26.0)] {
        let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
        let ask = async || {
            let mut wire = Wire::open(sidecar.proxy()).await.unwrap();
            wire.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
            wire
        };
        let _holder = ask().await;
        sidecar.until("stub", "open", 1).await;
        let (before, mut waiters) = (sidecar.rss_kib(), Vec::new());
        for _ in 0..WAITERS {
            waiters.push(ask().await);
        }
        sidecar.until("stub", "waiting", WAITERS.into()).await;
        let grown = u32::try_from(sidecar.rss_kib() - before).unwrap();
        let each = f64::from(grown) / f64::from(WAITERS);
        println!("{method}: {each:.1} KiB for each of {WAITERS} waiters");
        assert!(each < most_kib, "{method}: {each:.1} KiB for each");
    }
}
