//! How the sidecar goes down: whom it still serves, whom it refuses, what it cuts, and when the process ends.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use roadstead_test_support::http::{Framing, request};
use roadstead_test_support::{
    KEEP_TUNNELS, Response, Sidecar, Signal, StubRegistry, Wire, config, connect_through, eventually_is, get_through,
};

/// Long enough for the slowest machine; nothing waits for it unless it fails.
const SOON: Duration = Duration::from_secs(10);
/// The longest time that counts as "at once".
const AT_ONCE: Duration = Duration::from_secs(2);
/// The longest time of the end beyond `drain_timeout`.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// A registry, and a sidecar with `slots` for it that drains for `drain_timeout`.
async fn stage(slots: usize, drain_timeout: &str) -> (StubRegistry, Sidecar) {
    let stub = StubRegistry::builder().start().await;
    let registry =
        format!("[registries.stub]\nhosts = [\"{}\"]\ncap = {slots}\nshare = 1\n{KEEP_TUNNELS}", stub.address());
    let text = format!("drain_timeout = \"{drain_timeout}\"\n{}", config(&registry));
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &text).await;
    (stub, sidecar)
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}/v2/")
}

async fn tunnel(sidecar: &Sidecar, stub: &StubRegistry) -> Wire {
    connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.expect("a tunnel")
}

/// A client that has asked, and waits for its answer.
async fn asking(sidecar: &Sidecar, method: &str, target: &str) -> Wire {
    let mut wire = Wire::open(sidecar.proxy()).await.expect("the proxy accepts");
    wire.send(request(method, target, &[]).as_bytes()).await.expect("the proxy reads");
    wire
}

async fn answer(wire: &mut Wire) -> Response {
    let head = wire.read_answer().await.expect("an answer");
    let body = wire.body(Framing::of_answer(&head, "GET")).collect().await.expect("a whole body");
    Response { head, body }
}

/// Sends SIGTERM, and waits until the sidecar says that it drains.
async fn begin_to_drain(sidecar: &Sidecar) -> Instant {
    let began = Instant::now();
    sidecar.terminate();
    let ready = async || sidecar.ask_admin("GET", "/readyz").await.status();
    eventually_is("readiness to go down", SOON, 503, ready).await;
    began
}

/// Waits for the end, and tells how long it took since `began`.
async fn end_of(sidecar: &mut Sidecar, began: Instant) -> (ExitStatus, Duration) {
    let status = sidecar.wait().await;
    (status, began.elapsed())
}

/// New connections are refused while draining, and the process is alive but not ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_new_is_accepted_while_draining() {
    let (stub, mut sidecar) = stage(1, "20s").await;
    let mut tunnel = tunnel(&sidecar, &stub).await;
    assert_eq!(sidecar.ask_admin("GET", "/readyz").await.status(), 200);
    let began = begin_to_drain(&sidecar).await;
    assert_eq!(sidecar.ask_admin("GET", "/healthz").await.status(), 200);
    assert_eq!(sidecar.status().await["draining"], true);
    eventually_is("the listener to be closed", SOON, Some(ErrorKind::ConnectionRefused), async || {
        Wire::open(sidecar.proxy()).await.err().map(|error| error.kind())
    })
    .await;
    assert_eq!(tunnel.get("/v2/", &[]).await.unwrap().status(), 200, "a tunnel goes on");
    drop(tunnel);
    let (status, took) = end_of(&mut sidecar, began).await;
    assert_eq!(status.code(), Some(0));
    assert!(took < SOON, "ended {took:?} after the signal");
}

/// Connections that the kernel has taken, and the process has not yet: closing the listener would reset them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_wait_to_be_accepted_are_answered() {
    let (stub, mut sidecar) = stage(10, "20s").await;
    sidecar.signal(Signal::STOP);
    let mut clients = Vec::new();
    for _ in 0..200 {
        clients.push(asking(&sidecar, "GET", &url(stub.address())).await);
    }
    sidecar.terminate();
    sidecar.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(answer(client).await.status(), 200);
    }
    assert_eq!(sidecar.wait().await.code(), Some(0));
    assert_eq!(sidecar.finished().len(), 200);
}

/// Waiting requests of either form are still served when the slot comes free; then the process ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_still_served_while_draining() {
    let (stub, mut sidecar) = stage(1, "20s").await;
    let holder = tunnel(&sidecar, &stub).await;
    let mut asked = asking(&sidecar, "GET", &url(stub.address())).await;
    sidecar.until("stub", "waiting", 1).await;
    let mut tunnelled = asking(&sidecar, "CONNECT", &stub.address().to_string()).await;
    sidecar.until("stub", "waiting", 2).await;
    let began = begin_to_drain(&sidecar).await;
    drop(holder);
    let answer = answer(&mut asked).await;
    assert_eq!((answer.status(), answer.text()), (200, "{}".to_owned()));
    assert_eq!(tunnelled.read_answer().await.unwrap().status(), 200);
    assert_eq!(tunnelled.get("/v2/", &[]).await.unwrap().status(), 200);
    drop(tunnelled);
    let (status, took) = end_of(&mut sidecar, began).await;
    assert_eq!(status.code(), Some(0));
    assert!(took < SOON, "ended {took:?} after the signal");
    assert_eq!(stub.peak(), 1);
    let served = sidecar.finished().iter().filter(|fields| fields["outcome"] == "served").count();
    assert_eq!(served, 3, "{}", sidecar.log_text());
}

/// A request whose head was on its way when draining began is answered, and not lost: its connection was accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_half_there_when_draining_begins_is_still_answered() {
    let (stub, mut sidecar) = stage(2, "20s").await;
    // The tunnel keeps the process from ending.
    let holder = tunnel(&sidecar, &stub).await;
    let head = request("GET", &url(stub.address()), &[]);
    let (first_half, second_half) = head.split_at(head.len() / 2);
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = Wire::open(sidecar.proxy()).await.unwrap();
        client.send(first_half.as_bytes()).await.unwrap();
        clients.push(client);
    }
    let accepted = async || sidecar.status().await["clients"].as_u64().unwrap();
    eventually_is("all to be accepted", SOON, 9, accepted).await;
    begin_to_drain(&sidecar).await;
    let mut lost = 0;
    for client in &mut clients {
        client.send(second_half.as_bytes()).await.unwrap();
        match client.read_answer().await {
            Ok(head) => assert_eq!(head.status(), 200),
            Err(_) => lost += 1,
        }
    }
    assert_eq!(lost, 0, "closed without an answer");
    drop((holder, clients));
    assert_eq!(sidecar.wait().await.code(), Some(0));
    assert_eq!(sidecar.finished().len(), 9);
}

/// A request that is being answered when draining begins is answered whole, and its connection ends behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_under_way_is_answered_whole() {
    let (stub, mut sidecar) = stage(1, "20s").await;
    stub.hold();
    let mut asked = asking(&sidecar, "GET", &url(stub.address())).await;
    eventually_is("the request to arrive", SOON, 1, async || stub.requests()).await;
    let began = begin_to_drain(&sidecar).await;
    stub.release();
    assert_eq!(answer(&mut asked).await.status(), 200);
    assert_eq!(asked.receive().await.unwrap(), "", "an orderly end");
    let (status, took) = end_of(&mut sidecar, began).await;
    assert_eq!(status.code(), Some(0));
    assert!(took < SOON, "ended {took:?} after the signal");
}

/// At `drain_timeout`, not before, those who wait are refused as draining, tunnels are cut, and the process ends with
/// status 0 soon after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_drain_timeout_the_rest_is_refused_and_cut() {
    const DRAIN: Duration = Duration::from_millis(800);
    let (stub, mut sidecar) = stage(1, "800ms").await;
    let mut holder = tunnel(&sidecar, &stub).await;
    let mut asked = asking(&sidecar, "GET", &url(stub.address())).await;
    let mut tunnelled = asking(&sidecar, "CONNECT", &stub.address().to_string()).await;
    sidecar.until("stub", "waiting", 2).await;
    let began = begin_to_drain(&sidecar).await;
    for waiter in [&mut asked, &mut tunnelled] {
        let answer = answer(waiter).await;
        assert!(began.elapsed() >= DRAIN, "refused after {:?}", began.elapsed());
        assert_eq!(answer.status(), 503);
        assert!(answer.header("retry-after").is_some());
        let error = &answer.json()["errors"][0];
        assert_eq!(error["detail"]["reason"], "draining", "{error}");
        assert!(answer.reason().contains("drain_timeout"), "{}", answer.reason());
    }
    let cut = holder.receive().await;
    assert!(cut.is_err() || cut.is_ok_and(|bytes| bytes.is_empty()), "the tunnel still carries something");
    let (status, took) = end_of(&mut sidecar, began).await;
    assert_eq!(status.code(), Some(0));
    assert!(took <= DRAIN + LAST_WORDS, "ended {took:?} after the signal");
    eventually_is("the registry to be left alone", SOON, 0, async || stub.open()).await;
    assert_eq!(stub.accept_log().len(), 1);
    assert_eq!(sidecar.finished().len(), 3, "each has its outcome:\n{}", sidecar.log_text());
}

/// An answer that does not come, and a registry that never closes, hold the process no longer than the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_registry_does_not_hold_up_the_end() {
    let (stub, mut sidecar) = stage(1, "500ms").await;
    stub.hold();
    let mut asked = asking(&sidecar, "GET", &url(stub.address())).await;
    eventually_is("the request to arrive", SOON, 1, async || stub.requests()).await;
    let began = begin_to_drain(&sidecar).await;
    let (status, took) = end_of(&mut sidecar, began).await;
    assert_eq!(status.code(), Some(0));
    assert!(took >= Duration::from_millis(500) && took <= Duration::from_millis(500) + LAST_WORDS, "{took:?}");
    let head = asked.read_answer().await.unwrap();
    assert_eq!(head.status(), 503, "who was still waiting for an answer is told why there is none");
    assert_eq!(sidecar.finished().len(), 1, "{}", sidecar.log_text());
}

/// Idle connections to the registry are closed as draining begins, also while a tunnel goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_closed_at_once() {
    let (stub, mut sidecar) = stage(2, "20s").await;
    let holder = tunnel(&sidecar, &stub).await;
    assert_eq!(get_through(sidecar.proxy(), &url(stub.address()), &[]).await.status(), 200);
    sidecar.until("stub", "idle", 2).await;
    eventually_is("the registry to count the same", SOON, 2, async || stub.open()).await;
    let began = begin_to_drain(&sidecar).await;
    eventually_is("the registry to see the end of one", SOON, 1, async || stub.open()).await;
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    drop(holder);
    assert_eq!(sidecar.wait().await.code(), Some(0));
}

/// When nothing runs, the process ends at once, with clients that only keep an idle connection, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_nothing_under_way_the_end_comes_at_once() {
    let (stub, mut sidecar) = stage(2, "20s").await;
    let mut client = Wire::open(sidecar.proxy()).await.unwrap();
    assert_eq!(client.get(&url(stub.address()), &[]).await.unwrap().status(), 200);
    let began = Instant::now();
    sidecar.terminate();
    let (status, took) = end_of(&mut sidecar, began).await;
    assert_eq!(status.code(), Some(0));
    assert!(took < AT_ONCE, "ended {took:?} after the signal");
    assert_eq!(client.receive().await.unwrap(), "", "an orderly end");
}

/// A client that uses its connection again in the moment in which draining begins is answered, and told that the
/// connection ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_of_a_client_is_not_closed_before_the_client_is_told() {
    let (stub, mut sidecar) = stage(2, "20s").await;
    let holder = tunnel(&sidecar, &stub).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = Wire::open(sidecar.proxy()).await.unwrap();
        assert_eq!(client.get(&url(stub.address()), &[]).await.unwrap().header("connection"), None);
        clients.push(client);
    }
    begin_to_drain(&sidecar).await;
    for mut client in clients {
        let answer = client.get(&url(stub.address()), &[]).await.expect("an answer");
        assert_eq!((answer.status(), answer.header("connection")), (200, Some("close")));
        assert_eq!(client.receive().await.unwrap(), "", "an orderly end");
    }
    drop(holder);
    assert_eq!(sidecar.wait().await.code(), Some(0));
}

/// A client that connected and never said anything has asked for nothing, and holds nothing up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_client_does_not_hold_up_the_end() {
    let (_stub, mut sidecar) = stage(2, "20s").await;
    let _silent = Wire::open(sidecar.proxy()).await.unwrap();
    let accepted = async || sidecar.status().await["clients"].as_u64().unwrap();
    eventually_is("it to be accepted", SOON, 1, accepted).await;
    let began = Instant::now();
    sidecar.terminate();
    let (status, took) = end_of(&mut sidecar, began).await;
    assert_eq!(status.code(), Some(0));
    assert!(took < AT_ONCE, "ended {took:?} after the signal");
}

/// Ctrl-C drains like SIGTERM.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_drains_too() {
    let (_stub, mut sidecar) = stage(1, "20s").await;
    let began = Instant::now();
    sidecar.signal(Signal::INT);
    let (status, took) = end_of(&mut sidecar, began).await;
    assert_eq!(status.code(), Some(0));
    assert!(took < AT_ONCE, "ended {took:?} after the signal");
}

/// A second signal ends the process at once, and that is no orderly end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_at_once() {
    for second in [Signal::TERM, Signal::INT] {
        let (stub, mut sidecar) = stage(1, "20s").await;
        let _holder = tunnel(&sidecar, &stub).await;
        begin_to_drain(&sidecar).await;
        let began = Instant::now();
        sidecar.signal(second);
        let (status, took) = end_of(&mut sidecar, began).await;
        assert_eq!(status.code(), Some(1));
        assert!(took < AT_ONCE, "ended {took:?} after the signal");
    }
}
