//! Names that never resolve, beside one that does.

use std::time::{Duration, Instant};

use roadstead_test_support::real::LoopbackName;
use roadstead_test_support::{Sidecar, StubRegistry, Wire, config, eventually, get_through};

/// More than there are threads for look-ups, by far.
const DEAD_NAMES: usize = 1500;
/// Names that are looked up at once, which the resolver of the system may ask for by two questions each.
const BUSY_THREADS: usize = 32;

/// The dead names are covered by a suffix of `hosts`, or by no registry at all. The known name is answered in its own time, at
/// the first request, too.
#[tokio::test]
async fn a_known_name_never_waits_for_names_that_never_resolve() {
    for suffix in ["roadstead.test", "other.test"] {
        let name = LoopbackName::new().with_silent_name_server();
        let stub = StubRegistry::builder().start().await;
        let registry = format!(
            "[registries.stub]\nhosts = [\"{}\", \"*.roadstead.test\"]\ncap = 4\nshare = 1\n[other_hosts]\npolicy = \"direct\"\n",
            name.name()
        );
        let sidecar = Sidecar::start(&name.program(env!("CARGO_BIN_EXE_roadstead")), &config(&registry)).await;
        let mut dead = Vec::new();
        for number in 0..DEAD_NAMES {
            let mut wire = Wire::open(sidecar.proxy()).await.unwrap();
            let head = format!("CONNECT n{number}.{suffix}:443 HTTP/1.1\r\nHost: n{number}.{suffix}:443\r\n\r\n");
            wire.send(head.as_bytes()).await.unwrap();
            dead.push(wire);
        }
        let mut unanswered = 0;
        eventually("look-ups that get no answer", Duration::from_secs(20), async || {
            unanswered += name.unanswered();
            if unanswered >= BUSY_THREADS { Ok(()) } else { Err(unanswered) }
        })
        .await;
        for _ in 0..3 {
            let began = Instant::now();
            let url = format!("http://{}:{}/v2/", name.name(), stub.address().port());
            assert_eq!(get_through(sidecar.proxy(), &url, &[]).await.status(), 200);
            assert!(began.elapsed() < Duration::from_secs(2), "{suffix}: {:?}", began.elapsed());
        }
        assert_eq!(sidecar.finished().len(), 3, "a name that never resolves has an end already");
    }
}
