//! `rate_per_second` and `burst`, judged by the registry's log of its accepts.
//!
//! The exact proof is in virtual time, in the admission core. Here real sockets must keep to the same law, but for
//! 50 ms that the machine may take between a `connect()` and its accept.

use std::time::{Duration, Instant};

use roadstead_test_support::{Sidecar, StubRegistry, config, connect_through};
use tokio::task::JoinSet;

const CONNECTIONS: usize = 120;
const RATE: f64 = 50.0;
const BURST: f64 = 10.0;
const TOLERANCE: Duration = Duration::from_millis(50);

/// No window of the accept log, of any length, holds more than the burst and what the rate gives in that window; and
/// all together take at least the time that the rate gives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_window_of_accepts_breaks_burst_and_rate() {
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
    assert_every_window_keeps_to_the_rate(&accepts);
    let least = Duration::from_secs_f64((as_float(CONNECTIONS) - BURST) / RATE);
    let taken = accepts[CONNECTIONS - 1] - started;
    println!("{CONNECTIONS} connections in {taken:.2?}, at least {least:.2?}");
    assert!(taken >= least, "{taken:?} is less than {least:?}");
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

fn assert_every_window_keeps_to_the_rate(accepts: &[Instant]) {
    for (first, start) in accepts.iter().enumerate() {
        for (last, end) in accepts.iter().enumerate().skip(first) {
            let window = *end - *start;
            let allowed = BURST + RATE * (window + TOLERANCE).as_secs_f64();
            let accepted = last - first + 1;
            assert!(as_float(accepted) <= allowed, "{accepted} accepts within {window:?}, from number {first}");
        }
    }
}

fn as_float(count: usize) -> f64 {
    f64::from(u32::try_from(count).expect("a small number"))
}
