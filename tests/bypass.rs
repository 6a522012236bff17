//! The radar: connections to a registry that do not pass the sidecar, in `/metrics`, `/status` and `roadstead status`.

use std::process::Stdio;
use std::time::Duration;

use roadstead_test_support::{KEEP_TUNNELS, Sidecar, StubRegistry, config, connect_through, eventually};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// A bypass is seen, and seen to be gone, within this time; a busy machine may take two seconds more.
const SEEN_WITHIN: Duration = Duration::from_secs(5 + 2);
const UNPRIVILEGED: u32 = 10_001;

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

    // Without an await between them: the radar tells of what it sees first.
    let around = [(); 3].map(|()| std::net::TcpStream::connect(registry).unwrap());
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
    sidecar.until_logged("3 connections go around the sidecar").await;

    drop(around);
    until(&sidecar, 0).await;
    assert_eq!(bypass(&sidecar).await["owners"], Value::Array(Vec::new()));
    assert!(!status_text(&sidecar).await.contains("go around"));
    drop(through);
}

/// A sidecar that may look into no process of root takes `doctor` and `calibrate` of root for no bypass, and any other connection of
/// root for one: the reading that shows that one saw theirs as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_and_calibrate_of_another_user_are_no_bypass() {
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(local).await.unwrap();
        let registry = listener.local_addr().unwrap();
        let table = format!(
            "[registries.stub]\nhosts = [\"{registry}\"]\ncap = 2\nshare = 1\nconnect_timeout = \"1m\"\n\
             [registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"http://{registry}\"\n"
        );
        let sidecar = Sidecar::start_as(env!("CARGO_BIN_EXE_roadstead"), &config(&table), UNPRIVILEGED).await;
        let mut standing = Vec::new();
        let mut commands = Vec::new();
        for arguments in [["doctor"].as_slice(), &["calibrate", "stub", "--repository", "a/b", "--yes"]] {
            let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_roadstead"));
            command.arg("--config").arg(sidecar.config_path()).args(arguments);
            command.env("RUNTIME_DIRECTORY", sidecar.config_path().parent().unwrap());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
            commands.push(command.spawn().unwrap());
            // The registry takes it, and does not answer.
            standing.push(timeout(SEEN_WITHIN, listener.accept()).await.expect(arguments[0]).unwrap());
        }

        let around = dial(registry).await;
        let seen = until(&sidecar, 1).await;
        assert!(seen["owners"][0].get("command").is_none(), "it can read the names of root: {seen}");
        for command in &mut commands {
            assert!(command.try_wait().unwrap().is_none(), "it ended before it was looked at");
        }
        drop((around, standing));
    }
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
