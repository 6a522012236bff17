//! The radar: connections to a registry that do not pass the sidecar, in `/metrics`, `/status` and `roadstead status`.

use std::time::Duration;

use roadstead_test_support::{KEEP_TUNNELS, Sidecar, StubRegistry, config, connect_through, eventually};
use serde_json::Value;
use tokio::net::TcpStream;

/// A bypass is seen, and seen to be gone, within this time; a busy machine may take two seconds more.
const SEEN_WITHIN: Duration = Duration::from_secs(5 + 2);

/// Three sockets around the sidecar are seen with their user and command, and those through it are not. When they are gone, nothing is
/// left. The sidecar's own are no more than its slots, by the kernel's count.
#[tokio::test]
async fn connections_around_the_sidecar_are_seen_and_seen_to_be_gone() {
    let stub = StubRegistry::builder().start().await;
    let registry = stub.address();
    let table = format!("[registries.stub]\nhosts = [\"{registry}\"]\ncap = 2\nshare = 1\n{KEEP_TUNNELS}");
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&table)).await;
    let through = [
        connect_through(sidecar.proxy(), &registry.to_string(), &[]).await.unwrap(),
        connect_through(sidecar.proxy(), &registry.to_string(), &[]).await.unwrap(),
    ];
    until(&sidecar, 0).await;

    let around = [dial(registry).await, dial(registry).await, dial(registry).await];
    let seen = until(&sidecar, 3).await;
    let owner = &seen["owners"][0];
    assert_eq!(owner["uid"], rustix::process::geteuid().as_raw());
    let command = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!((owner["command"].as_str(), &owner["connections"]), (Some(command.trim()), &Value::from(3)));
    let metrics = sidecar.metrics().await;
    let label = [("registry", "stub")];
    assert_eq!(metrics.count("roadstead_bypass_connections", &label), 3);
    assert_eq!(metrics.count("roadstead_audit_excess_sockets", &label), 0);
    let shown = status_text(&sidecar).await;
    assert!(shown.contains("3 connections go around the cap"), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    assert!(sidecar.log_text().contains("3 connections go around the sidecar"));

    drop(around);
    until(&sidecar, 0).await;
    assert_eq!(bypass(&sidecar).await["owners"], Value::Array(Vec::new()));
    assert!(!status_text(&sidecar).await.contains("go around"));
    drop(through);
}

async fn dial(registry: std::net::SocketAddr) -> TcpStream {
    TcpStream::connect(registry).await.unwrap()
}

/// The sight of the radar once it shows so many connections.
async fn until(sidecar: &Sidecar, connections: u64) -> Value {
    eventually("the radar shows them", SEEN_WITHIN, async || {
        let seen = bypass(sidecar).await;
        if seen["connections"] == connections { Ok(seen) } else { Err(seen) }
    })
    .await
}

async fn bypass(sidecar: &Sidecar) -> Value {
    let status = sidecar.status().await;
    assert_eq!(status["bypass_radar"], "on");
    assert!(status["other_hosts"].get("bypass").is_none());
    status["registries"]["stub"]["bypass"].clone()
}

async fn status_text(sidecar: &Sidecar) -> String {
    let run = tokio::process::Command::new(env!("CARGO_BIN_EXE_roadstead"))
        .args(["status", "--admin", &sidecar.admin().to_string()])
        .output();
    String::from_utf8(run.await.unwrap().stdout).unwrap()
}
