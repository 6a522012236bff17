//! The storm against a registry alone.

use super::*;
use crate::{StubRegistry, eventually_is};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_cap_everybody_gets_every_byte() {
    let stub = StubRegistry::builder().blob_size(100_000).start().await;
    let storm = Storm { clients: 50, blob: 100_000, ..Storm::new(Destination::Direct) };
    let tally = storm.run(stub.address()).await;
    assert_eq!((tally.ok, tally.cut, tally.times.len()), (50, 0, 50), "{tally}");
    assert_eq!(stub.requests(), 100);
    eventually_is("all to be gone", Duration::from_secs(5), 0, async || stub.open()).await;
}

/// The stub takes whole URLs as well, so it can stand where a proxy will.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_absolute_form_each_client_asks_twice_on_one_connection() {
    let stub = StubRegistry::builder().blob_size(1000).start().await;
    let storm = Storm { clients: 20, blob: 1000, ..Storm::new(Destination::AbsoluteForm(stub.address())) };
    let tally = storm.run(stub.address()).await;
    assert_eq!((tally.ok, tally.completed), (20, 40), "{tally}");
    assert_eq!(stub.accept_log().len(), 20);
    let whole = format!("GET http://{}/v2/storm/image-0/manifests/latest HTTP/1.1\r\n", stub.address());
    assert!(stub.seen_requests().iter().any(|head| head.starts_with(&whole)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn above_a_cap_most_fail_and_say_why() {
    let stub = StubRegistry::builder().cap(2).answer_delay(Duration::from_millis(10)).blob_size(1000).start().await;
    let storm = Storm { clients: 50, blob: 1000, ..Storm::new(Destination::Direct) };
    let tally = storm.run(stub.address()).await;
    assert!(tally.failed.len() > 16, "{tally}");
    assert!(tally.failed[0].contains("401 Unauthorized"), "{tally}");
    assert!(tally.failed[0].contains("too many clients"), "{tally}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_of_another_size_is_a_failure() {
    let stub = StubRegistry::builder().blob_size(1000).start().await;
    let storm = Storm { clients: 1, blob: 1001, ..Storm::new(Destination::Direct) };
    assert_eq!(storm.run(stub.address()).await.failed.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cuts_are_counted_apart_and_the_stub_sees_them_go() {
    let stub = StubRegistry::builder().blob_size(1_000_000).start().await;
    let storm = Storm { clients: 60, blob: 1_000_000, cut: Some(Cuts { seed: 3 }), ..Storm::new(Destination::Direct) };
    let tally = storm.run(stub.address()).await;
    assert!(tally.failed.is_empty(), "{tally}");
    assert!(tally.cut > 10, "{tally}");
    assert_eq!(tally.ok + tally.cut, 60);
    eventually_is("all to be gone", Duration::from_secs(5), 0, async || stub.open()).await;
}
