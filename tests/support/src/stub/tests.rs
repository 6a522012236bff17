//! The stub must be right before it may judge.

use super::*;
use crate::http::Wire;
use crate::{eventually, eventually_is};

const SOON: Duration = Duration::from_secs(10);

/// Opens `n` connections, each known to the stub before the next.
async fn open(stub: &StubRegistry, n: usize) -> Vec<Wire> {
    let mut wires = Vec::new();
    for _ in 0..n {
        let before = stub.open();
        wires.push(Wire::open(stub.address()).await.unwrap());
        eventually_is("the stub to accept", SOON, before + 1, async || stub.open()).await;
    }
    wires
}

#[tokio::test]
async fn it_counts_what_is_open_and_keeps_the_peak() {
    let stub = StubRegistry::builder().start().await;
    let mut wires = open(&stub, 5).await;
    wires.pop().unwrap().reset();
    drop(wires.split_off(2));
    eventually_is("ends and resets to be seen", SOON, 2, async || stub.open()).await;
    assert_eq!(stub.peak(), 5);
    assert_eq!(stub.accept_log().len(), 5);
    drop(wires);
    eventually_is("all to be gone", SOON, 0, async || stub.open()).await;
}

#[tokio::test]
async fn above_its_cap_the_youngest_are_answered_401_and_the_others_are_served() {
    let stub = StubRegistry::builder().cap(2).start().await;
    let mut wires = open(&stub, 3).await;
    let refused = wires[2].get("/v2/", &[]).await.unwrap();
    assert_eq!((refused.status(), refused.header("www-authenticate")), (401, Some("")));
    assert!(refused.text().contains("pq: sorry, too many clients already"));
    assert_eq!(wires[0].get("/v2/", &[]).await.unwrap().status(), 200);
    assert_eq!(wires[1].get("/v2/", &[]).await.unwrap().status(), 200);
    drop(wires.remove(0));
    eventually_is("room under the cap", SOON, 2, async || stub.open()).await;
    assert_eq!(wires[1].get("/v2/", &[]).await.unwrap().status(), 200);
}

#[tokio::test]
async fn manifests_and_blobs_come_whole_and_in_ranges() {
    let stub = StubRegistry::builder().blob_size(1000).start().await;
    let mut wire = Wire::open(stub.address()).await.unwrap();
    let manifest = wire.get("/v2/library/a/manifests/latest", &[]).await.unwrap();
    assert_eq!(manifest.body, manifest_of("library/a", 1000));
    assert!(manifest.header("docker-content-digest").unwrap().starts_with("sha256:"));
    let path = "/v2/library/a/blobs/sha256:1";
    let whole = blob_of(path, 1000);
    assert_eq!(wire.get(path, &[]).await.unwrap().body, whole);
    let part = wire.get(path, &["Range: bytes=10-19"]).await.unwrap();
    assert_eq!((part.status(), part.header("content-range")), (206, Some("bytes 10-19/1000")));
    assert_eq!(part.body, whole.slice(10..20));
    assert_eq!(wire.get(path, &["Range: bytes=1000-"]).await.unwrap().status(), 416);
    let head = wire.ask("HEAD", path, &[]).await.unwrap();
    assert_eq!((head.header("content-length"), head.body.len()), (Some("1000"), 0));
    assert_eq!(wire.get("/elsewhere", &[]).await.unwrap().status(), 404);
    assert_eq!((stub.requests(), stub.peak()), (6, 1));
    assert!(stub.seen_requests()[2].contains("\r\nRange: bytes=10-19\r\n"));
}

#[tokio::test]
async fn uploads_by_length_and_by_chunks_are_read_whole() {
    let stub = StubRegistry::builder().start().await;
    let mut wire = Wire::open(stub.address()).await.unwrap();
    for (framing, body) in [("Content-Length: 3", "abc"), ("Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n")] {
        let head = crate::http::request("PUT", "/v2/a/blobs/uploads/1", &[framing, "Expect: 100-continue"]);
        wire.send(head.as_bytes()).await.unwrap();
        assert_eq!(wire.read_head().await.unwrap().unwrap().status(), 100);
        wire.send(body.as_bytes()).await.unwrap();
        let head = wire.read_answer().await.unwrap();
        assert_eq!((head.status(), head.header("upload-length")), (201, Some("3")));
        let digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(head.header("upload-digest"), Some(digest));
    }
}

#[tokio::test]
async fn held_answers_leave_when_let_through_and_a_held_peer_that_leaves_is_seen() {
    let stub = StubRegistry::builder().start().await;
    stub.hold();
    let mut wires = open(&stub, 3).await;
    for wire in &mut wires {
        wire.send(b"GET /v2/ HTTP/1.1\r\n\r\n").await.unwrap();
    }
    eventually_is("three requests", SOON, 3, async || stub.requests()).await;
    drop(wires.pop());
    eventually_is("the leaver to be seen", SOON, 2, async || stub.open()).await;
    stub.let_through(1);
    let (left, right) = wires.split_at_mut(1);
    let first_served = tokio::select! {
        head = left[0].read_answer() => { head.unwrap(); true }
        head = right[0].read_answer() => { head.unwrap(); false }
    };
    stub.release();
    let other = if first_served { &mut right[0] } else { &mut left[0] };
    assert_eq!(other.read_answer().await.unwrap().status(), 200);
}

#[tokio::test]
async fn it_can_go_away_and_come_back_on_its_port() {
    let stub = StubRegistry::builder().start().await;
    let mut wire = open(&stub, 1).await.remove(0);
    stub.refuse().await;
    let refused = Wire::open(stub.address()).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(wire.get("/v2/", &[]).await.unwrap().status(), 200, "open connections live on");
    stub.accept_again().await;
    assert_eq!(Wire::open(stub.address()).await.unwrap().get("/v2/", &[]).await.unwrap().status(), 200);
}

#[tokio::test]
async fn it_closes_after_each_answer_when_told() {
    let stub = StubRegistry::builder().close_each(true).answer_delay(Duration::from_millis(1)).start().await;
    let mut wire = Wire::open(stub.address()).await.unwrap();
    assert_eq!(wire.get("/v2/", &[]).await.unwrap().header("connection"), Some("close"));
    assert!(wire.read_head().await.unwrap().is_none());
    assert_eq!(stub.open(), 0, "its own end counts before the peer sees it");
}

#[tokio::test]
async fn a_silent_peer_is_dropped_when_told_and_one_that_waits_for_its_answer_is_not() {
    let stub = StubRegistry::builder().drop_silent(Duration::from_millis(50)).start().await;
    stub.hold();
    let mut wires = open(&stub, 1).await;
    wires[0].send(b"GET /v2/ HTTP/1.1\r\n\r\n").await.unwrap();
    eventually_is("a request", SOON, 1, async || stub.requests()).await;
    wires.extend(open(&stub, 1).await);
    assert!(wires[1].read_head().await.unwrap().is_none());
    assert_eq!(stub.open(), 1);
    stub.release();
    assert_eq!(wires[0].read_answer().await.unwrap().status(), 200);
    eventually_is("the other one to be dropped, too", SOON, 0, async || stub.open()).await;
}

#[tokio::test]
async fn a_raw_handler_speaks_its_own_bytes_and_is_counted() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let stub = StubRegistry::raw(|mut connection| async move {
        let _ = connection.write_all(b"220 hello\r\n").await;
        while matches!(connection.read(&mut [0; 64]).await, Ok(1..)) {}
        connection.seen_end();
    })
    .await;
    let mut wire = Wire::open(stub.address()).await.unwrap();
    let greeting = eventually("the greeting", SOON, async || match wire.receive().await.unwrap() {
        bytes if bytes.is_empty() => Err("an end"),
        bytes => Ok(bytes),
    });
    assert_eq!(greeting.await, "220 hello\r\n");
    assert_eq!((stub.open(), stub.peak()), (1, 1));
    drop(wire);
    eventually_is("the end to be seen", SOON, 0, async || stub.open()).await;
}
