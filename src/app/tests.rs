//! The start of a sidecar, its config file, and its end.

use std::fs;
use std::net::TcpStream;

use super::*;
use crate::admission::{Admission, AdmissionRequest, ClassId, Gate, Principal, Slot};
use crate::upstream::http::PooledConnection;

const LEAST: &str = "[listen]\nproxy = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n\
                     [registries.stub]\nhosts = ['127.0.0.1:1']\ncap = 1\nshare = 1\n";

/// A slot for a connection toward this target, once the gate grants it.
pub async fn slot_toward(gate: &Gate<PooledConnection>, target: &str) -> Slot {
    let principal = Principal { class: ClassId(0), client: "client".into() };
    let target: Arc<str> = target.into();
    let (place, _) = gate.place(&principal.client, &target);
    let deadline = gate.now() + Duration::from_secs(10);
    match gate.admit(AdmissionRequest::new(place, deadline, principal, target)).await.unwrap() {
        Admission::New(slot) => slot,
        Admission::Kept(_) => unreachable!("nothing is pooled"),
    }
}

async fn started(file: &Path, text: &str) -> Running {
    let config = Config::parse(text).unwrap();
    start(Start { file, config, inherited: Inherited::default() }, Box::new(|_| ())).await.unwrap()
}

/// The validated content is used: the files may be in the middle of a swap by now.
#[tokio::test]
async fn the_files_of_tls_are_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("ca.pem");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(&authority, made.cert.pem()).unwrap();
    let text = format!("{LEAST}[registries.stub.tls]\nca_file = '{}'\n", authority.display());
    let mut running = started(&folder.path().join("sidecar.toml"), &text).await;
    let is_usable = |running: &Running| running.reservations.upstreams()[0].tls.check().is_ok();
    fs::remove_file(&authority).unwrap();
    assert!(is_usable(&running));
    fs::write(&authority, made.cert.pem()).unwrap();
    fs::write(folder.path().join("sidecar.toml"), &text).unwrap();
    running.reload("the test says so").await;
    fs::remove_file(&authority).unwrap();
    assert!(is_usable(&running));
    running.drain().await;
}

/// Connections to a host may stand that count elsewhere: then a registry does not get the host before a restart.
#[tokio::test]
async fn a_registry_does_not_get_a_host_that_may_be_open_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.toml");
    let old = format!("{LEAST}[registries.wide]\nhosts = ['*.example.com', 'one.test:443']\ncap = 1\nshare = 1\n");
    let mut running = started(&file, &old).await;
    let other_hosts = running.reservations.upstreams().last().unwrap().gate.clone();
    let open = slot_toward(&other_hosts, "registry.test:443").await;
    let mut taken = async |hosts: &str| {
        let new = format!("{old}[registries.new]\nhosts = [{hosts}]\ncap = 7\nshare = 1\n");
        fs::write(&file, new).unwrap();
        running.reload("the test says so").await;
        running.reloader.config().registries.iter().any(|registry| registry.name == "new")
    };
    for moved in
        ["'a.example.com'", "'*.b.example.com'", "'free.test', '*.example.com:443'", "'registry.test'", "'*.test:443'"]
    {
        assert!(!taken(moved).await, "{moved}");
    }
    drop(open);
    // A wider pattern takes nothing from one that is narrower.
    assert!(taken("'registry.test', '*.test', '*.com', 'one.test'").await);
    running.drain().await;
}

/// A change of the file during the start is noticed.
#[tokio::test]
async fn a_file_that_changes_during_the_start_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.toml");
    fs::write(&file, LEAST.replace("cap = 1", "cap = 7")).unwrap();
    let mut running = started(&file, LEAST).await;
    tokio::time::timeout(Duration::from_secs(10), running.config_changed()).await.expect("it differs");
    running.reload("the file has changed").await;
    assert_eq!(running.reservations.upstreams()[0].gate.snapshot().slots, 7);
    running.drain().await;
}

/// A swap may leave no file for a moment: that is no change. One that stays away is.
#[tokio::test]
async fn a_file_that_is_away_for_a_moment_is_no_change() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.toml");
    fs::write(&file, LEAST).unwrap();
    let mut running = started(&file, LEAST).await;
    tokio::time::pause();
    let seconds = |seconds: u64| Duration::from_millis(seconds * 1000 + 500);
    {
        let changed = running.config_changed();
        tokio::pin!(changed);
        for _ in 0..2 {
            fs::remove_file(&file).unwrap();
            assert!(timeout(seconds(3), changed.as_mut()).await.is_err());
            fs::write(&file, LEAST).unwrap();
            assert!(timeout(seconds(20), changed.as_mut()).await.is_err());
        }
        fs::remove_file(&file).unwrap();
        timeout(seconds(6), changed).await.expect("it stays away");
    }
    running.reload("the test says so").await;
    assert!(timeout(seconds(60), running.config_changed()).await.is_err(), "told once");
    fs::write(&file, LEAST).unwrap();
    timeout(seconds(3), running.config_changed()).await.expect("it is back");
    tokio::time::resume();
    running.drain().await;
}

/// A connection that is accepted in the last moment must find a process that serves it.
#[tokio::test]
async fn nobody_is_accepted_any_more_when_all_is_drained() {
    let folder = tempfile::tempdir().unwrap();
    let running = started(&folder.path().join("sidecar.toml"), LEAST).await;
    let proxy = running.addresses().proxy();
    running.drain().await;
    // Without giving way to a task that may yet hold the listener.
    assert!(TcpStream::connect(proxy).is_err());
}
