//! `rate_per_second` and `burst`, judged by the registry's log of its accepts.
//!
//! The exact proof, over windows of any length, is in virtual time, in the admission core. A busy machine accepts late and
//! then many at once, so that real sockets can only show that nothing comes early.

use std::time::{Duration, Instant};

use roadstead_test_support::{Sidecar, StubRegistry, config, connect_through};
use tokio::task::JoinSet;

const CONNECTIONS: usize = 120;
const RATE: f64 = 50.0;
const BURST: f64 = 10.0;

/// No accept comes before the burst and the rate, counted from the first request, allow it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_accept_comes_before_burst_and_rate_allow_it() {
    let stub = StubRegistry::builder().start().await;
    let registry = format!(
        r#"
        [registries.stub]
        hosts = ["{}"]
        cap = 200
        share = 1
        rate_per_second = {RATE}
        burst = {BURST}

        [registries.stub.queue]
        tunnel_timeout = "50s"
        "#,
        stub.address()
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
    let started = Instant::now();
    short_tunnels(&sidecar, &stub).await;
    let accepts = stub.accept_log();
    assert_eq!(accepts.len(), CONNECTIONS);
    for (before, accept) in accepts.iter().enumerate() {
        let least = Duration::from_secs_f64((as_float(before + 1) - BURST).max(0.0) / RATE);
        let taken = *accept - started;
        assert!(taken >= least, "accept number {} after {taken:?}, at least {least:?}", before + 1);
    }
}

/// Opens all tunnels at once, asks one small question in each, and closes it.
async fn short_tunnels(sidecar: &Sidecar, stub: &StubRegistry) {
    let (proxy, authority) = (sidecar.proxy(), stub.address().to_string());
    let mut tunnels = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let authority = authority.clone();
        tunnels.spawn(async move {
            let mut tunnel = connect_through(proxy, &authority, &[]).await.expect("a tunnel");
            tunnel.get("/v2/", &[]).await.expect("an answer").status()
        });
    }
    assert!(tunnels.join_all().await.iter().all(|status| *status == 200));
}

fn as_float(count: usize) -> f64 {
    f64::from(u32::try_from(count).expect("a small number"))
}
