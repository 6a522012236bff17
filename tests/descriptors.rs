//! Few descriptors: clients wait in the backlog, dials have theirs, and a registry that is well is not called out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use roadstead_test_support::{Outcomes, Sidecar, StubRegistry, Wire, config, connect_through, get_through};
use tempfile::TempDir;

/// Runs the binary with a limit on open files.
fn limited(limit: usize) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("roadstead");
    let text = format!("#!/bin/sh\nulimit -n {limit}\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_roadstead"));
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    (folder, script)
}

/// A registry, and a sidecar with ten slots for it and 100 descriptors.
async fn stage() -> (StubRegistry, Sidecar, TempDir) {
    let stub = StubRegistry::builder().answer_delay(Duration::from_millis(20)).start().await;
    let (folder, binary) = limited(100);
    let registry = format!("[registries.stub]\nhosts = [\"{}\"]\ncap = 10\nshare = 1\n", stub.address());
    let sidecar = Sidecar::start(binary.to_str().unwrap(), &config(&registry)).await;
    (stub, sidecar, folder)
}

/// More clients than descriptors: all are served, those who come by CONNECT, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_clients_are_served_though_they_are_more_than_there_are_descriptors() {
    let (stub, sidecar, _folder) = stage().await;
    assert!(sidecar.log_text().contains("the limit on open files (100)"), "{}", sidecar.log_text());
    let (proxy, authority) = (sidecar.proxy(), stub.address().to_string());
    let mut clients = Vec::new();
    for number in 0..150 {
        let authority = authority.clone();
        clients.push(tokio::spawn(async move {
            if number % 2 == 0 {
                get_through(proxy, &format!("http://{authority}/v2/"), &["Connection: close"]).await.status()
            } else {
                let mut tunnel = connect_through(proxy, &authority, &[]).await.expect("in its turn");
                tunnel.get("/v2/", &["Connection: close"]).await.unwrap().status()
            }
        }));
    }
    for client in clients {
        let status = tokio::time::timeout(Duration::from_secs(30), client).await.expect("soon").unwrap();
        assert_eq!(status, 200);
    }
    sidecar.until_outcomes("stub", Outcomes { served: 150, ..Outcomes::default() }).await;
    assert!(stub.peak() <= 10);
}

/// Idle connections to the admin listener take the descriptors away for a while: a dial waits for one, and the registry is
/// not called unreachable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_without_a_descriptor_waits_and_is_no_outage() {
    let (stub, sidecar, _folder) = stage().await;
    let mut idle = Vec::new();
    for _ in 0..60 {
        idle.push(Wire::open(sidecar.admin()).await.unwrap());
    }
    let url = format!("http://{}/v2/", stub.address());
    let clients: Vec<_> = (0..40)
        .map(|_| {
            let (proxy, url) = (sidecar.proxy(), url.clone());
            tokio::spawn(async move { get_through(proxy, &url, &["Connection: close"]).await.status() })
        })
        .collect();
    sidecar.until_logged("Too many open files").await;
    drop(idle);
    for client in clients {
        let status = tokio::time::timeout(Duration::from_secs(30), client).await.expect("soon").unwrap();
        assert_eq!(status, 200);
    }
    sidecar.until_outcomes("stub", Outcomes { served: 40, ..Outcomes::default() }).await;
}

#[test]
fn check_says_that_the_limit_is_too_low_for_max_clients() {
    let (folder, binary) = limited(64);
    let file = folder.path().join("sidecar.toml");
    let registry = "[registries.stub]\nhosts = [\"registry.test\"]\ncap = 10\nshare = 1\n";
    fs::write(&file, format!("[listen]\nmax_clients = 20000\n{registry}")).unwrap();
    let run = Command::new(binary).args(["check", "--config"]).arg(&file).output().unwrap();
    let told = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(0));
    assert!(told.contains("listen.max_clients = 20000") && told.contains("open files (64)"), "{told}");
}
