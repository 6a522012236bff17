//! CONNECT on the wire: when the 200 comes, which bytes reach the registry in which order, how ends are handed on, and
//! when a slot is given to the next.
//!
//! The registries here speak a test's own bytes, and keep a diary of what they saw.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use roadstead_test_support::http::Framing;
use roadstead_test_support::{
    KEEP_TUNNELS, Outcomes, Random, Sidecar, SocketWatch, StubConnection, StubRegistry, Wire, config, connect_through,
    eventually, eventually_is,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;

/// Long enough for the slowest machine; nothing waits for it unless it fails.
const SOON: Duration = Duration::from_secs(10);
/// The longest time that counts as "at once".
const AT_ONCE: Duration = Duration::from_secs(2);
/// How long nothing must come before it counts as silence.
const A_WHILE: Duration = Duration::from_millis(50);

/// A sidecar with `slots` for one registry; `more` goes into the registry's table.
async fn sidecar_for(address: SocketAddr, slots: usize, more: &str) -> Sidecar {
    let registry =
        format!("[registries.stub]\nhosts = [\"{address}\"]\ncap = {slots}\nshare = 1\n{more}\n{KEEP_TUNNELS}");
    Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await
}

/// A tunnel that stands.
async fn tunnel(sidecar: &Sidecar, address: SocketAddr) -> Wire {
    connect_through(sidecar.proxy(), &address.to_string(), &[]).await.expect("a tunnel")
}

/// A client that has asked for a tunnel, and sent `early` with its question.
async fn asking(sidecar: &Sidecar, address: SocketAddr, early: &[u8]) -> Wire {
    let mut wire = Wire::open(sidecar.proxy()).await.expect("the proxy accepts");
    let head = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    wire.send(&[head.as_bytes(), early].concat()).await.expect("the proxy reads");
    wire
}

/// The answer to a question that was asked before.
async fn established(wire: &mut Wire) {
    let head = wire.read_answer().await.expect("an answer");
    assert_eq!(head.status(), 200, "{}", head.raw());
}

/// The next `length` bytes.
async fn exactly(wire: &mut Wire, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let piece = wire.receive().await.expect("bytes");
        assert!(!piece.is_empty(), "an end after {} of {length} bytes", bytes.len());
        bytes.extend_from_slice(&piece);
    }
    bytes
}

/// Everything up to the end.
async fn to_the_end(wire: &mut Wire) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        match wire.receive().await.expect("bytes or an end") {
            piece if piece.is_empty() => return bytes,
            piece => bytes.extend_from_slice(&piece),
        }
    }
}

/// Sends back whatever comes, and ends when the peer does.
async fn echo(mut connection: StubConnection) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = connection.read(&mut buffer).await {
        if connection.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// The events at a registry, in order.
#[derive(Clone, Debug, Default)]
struct Diary {
    entries: Arc<Mutex<Vec<(String, Instant)>>>,
}

impl Diary {
    fn note(&self, entry: impl Into<String>) {
        self.entries.lock().unwrap().push((entry.into(), Instant::now()));
    }

    fn entries(&self) -> Vec<String> {
        self.entries.lock().unwrap().iter().map(|(entry, _)| entry.clone()).collect()
    }

    fn time_of(&self, wanted: &str) -> Option<Instant> {
        self.entries.lock().unwrap().iter().find(|(entry, _)| entry == wanted).map(|(_, time)| *time)
    }

    async fn until(&self, wanted: &str) -> Instant {
        eventually(wanted, SOON, async || self.time_of(wanted).ok_or_else(|| self.entries())).await
    }
}

/// A registry that reads and never closes before it is let: its diary tells accepts, ends and closes by number.
async fn slow_to_close(diary: &Diary, may_close: &Arc<Semaphore>) -> StubRegistry {
    let (diary, may_close) = (diary.clone(), may_close.clone());
    StubRegistry::raw(move |mut connection| {
        let (diary, may_close) = (diary.clone(), may_close.clone());
        async move {
            let number = connection.number();
            diary.note(format!("accept {number}"));
            let mut buffer = [0; 1024];
            loop {
                match connection.read(&mut buffer).await {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(_) => return diary.note(format!("reset {number}")),
                }
            }
            diary.note(format!("end {number}"));
            may_close.acquire().await.unwrap().forget();
            diary.note(format!("close {number}"));
        }
    })
    .await
}

/// While a registry takes no connection, there is no 200; it comes when the connection stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_no_200_before_the_connection_to_the_registry_stands() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    // The kernel completes these for a listener that does not accept; the next one waits for its handshake.
    let mut backlog = Vec::new();
    while let Ok(stream) =
        tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(address)).await
    {
        backlog.push(stream.unwrap());
        assert!(backlog.len() < 100, "the backlog does not fill");
    }
    let sidecar = sidecar_for(address, 1, "connect_timeout = \"20s\"").await;
    let mut client = asking(&sidecar, address, b"").await;
    sidecar.until("stub", "connecting", 1).await;
    assert!(client.is_silent(A_WHILE).await, "an answer before the connection stands");

    for _ in &backlog {
        listener.accept().await.unwrap();
    }
    let (_registry, ()) = tokio::join!(async { listener.accept().await.unwrap() }, established(&mut client));
    sidecar.until("stub", "connecting", 0).await;
}

/// The 200 comes as one piece with nothing behind it and no header that speaks of a body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_200_comes_alone_and_in_one_piece() {
    let stub = StubRegistry::raw(echo).await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    let mut client = asking(&sidecar, stub.address(), b"").await;
    let first = String::from_utf8(client.receive().await.unwrap().to_vec()).unwrap();
    assert!(first.starts_with("HTTP/1.1 200 ") && first.ends_with("\r\n\r\n"), "{first:?}");
    assert_eq!(first.matches("\r\n\r\n").count(), 1, "{first:?}");
    for header in ["content-length", "transfer-encoding"] {
        assert!(!first.to_ascii_lowercase().contains(header), "{first:?}");
    }
}

/// Bytes that came with the CONNECT reach the registry first, and what follows comes behind them; nothing of the head
/// does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_bytes_reach_the_registry_first() {
    let stub = StubRegistry::raw(echo).await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    let mut client = asking(&sidecar, stub.address(), b"early ").await;
    established(&mut client).await;
    client.send(b"late").await.unwrap();
    assert_eq!(exactly(&mut client, 10).await, b"early late");
}

/// The same for a client that waits for its turn, and sends more meanwhile than one buffer of the head holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_sent_while_queued_reach_the_registry_in_order() {
    let stub = StubRegistry::raw(echo).await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    let holder = tunnel(&sidecar, stub.address()).await;
    let mut client = asking(&sidecar, stub.address(), b"first ").await;
    sidecar.until("stub", "waiting", 1).await;
    let bulk = vec![b'x'; 20_000];
    client.send(&bulk).await.unwrap();
    drop(holder);
    established(&mut client).await;
    client.send(b" last").await.unwrap();
    let all = exactly(&mut client, 6 + bulk.len() + 5).await;
    assert_eq!(all, [b"first ", &bulk[..], b" last"].concat());
}

/// The client's FIN reaches the registry, which can still answer; then both have ended, and that counts as served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_clients_fin_the_registry_can_still_answer() {
    let stub = StubRegistry::raw(|mut connection| async move {
        let mut all = Vec::new();
        connection.read_to_end(&mut all).await.unwrap();
        connection.write_all(format!("{} bytes", all.len()).as_bytes()).await.unwrap();
    })
    .await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    let mut client = tunnel(&sidecar, stub.address()).await;
    client.send(b"question").await.unwrap();
    client.finish().await.unwrap();
    assert_eq!(to_the_end(&mut client).await, b"8 bytes");
    sidecar.until_outcomes("stub", Outcomes { served: 1, ..Outcomes::default() }).await;
    sidecar.until("stub", "open", 0).await;
}

/// The registry's FIN reaches the client, which can still send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_registrys_fin_the_client_can_still_send() {
    let diary = Diary::default();
    let notes = diary.clone();
    let stub = StubRegistry::raw(move |mut connection| {
        let diary = notes.clone();
        async move {
            connection.write_all(b"bye").await.unwrap();
            connection.shutdown().await.unwrap();
            let mut all = String::new();
            connection.read_to_string(&mut all).await.unwrap();
            diary.note(all);
        }
    })
    .await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    let mut client = tunnel(&sidecar, stub.address()).await;
    assert_eq!(to_the_end(&mut client).await, b"bye");
    client.send(b"one ").await.unwrap();
    client.send(b"two").await.unwrap();
    client.finish().await.unwrap();
    diary.until("one two").await;
    sidecar.until("stub", "open", 0).await;
}

/// How a queued client goes.
#[derive(Clone, Copy, Debug)]
enum Leaving {
    Close,
    Finish,
    Reset,
}

/// A queued client that goes is out of the queue at once, and the registry never hears of it.
async fn a_leaver_is_forgotten(early: &[u8], later: &[u8], leaving: Leaving) {
    let stub = StubRegistry::raw(echo).await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    let holder = tunnel(&sidecar, stub.address()).await;
    let mut leaver = asking(&sidecar, stub.address(), early).await;
    sidecar.until("stub", "waiting", 1).await;
    if !later.is_empty() {
        leaver.send(later).await.unwrap();
    }
    let went = Instant::now();
    let mut half = None;
    match leaving {
        Leaving::Close => drop(leaver),
        Leaving::Finish => {
            leaver.finish().await.unwrap();
            half = Some(leaver);
        }
        Leaving::Reset => leaver.reset(),
    }
    sidecar.until("stub", "waiting", 0).await;
    assert!(went.elapsed() < AT_ONCE, "noticed after {:?}", went.elapsed());
    sidecar.until_outcomes("stub", Outcomes { client_left: 1, ..Outcomes::default() }).await;
    drop(holder);
    let mut next = tunnel(&sidecar, stub.address()).await;
    next.send(b"next").await.unwrap();
    assert_eq!(exactly(&mut next, 4).await, b"next");
    assert_eq!(stub.accept_log().len(), 2, "the holder and the next, and nobody else");
    drop(half);
}

/// A queued client that closes its connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_client_that_closes_is_gone_at_once() {
    a_leaver_is_forgotten(b"", b"", Leaving::Close).await;
}

/// A queued client that only ends its own side is gone, too: it will not speak TLS any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_client_that_sends_fin_is_gone_at_once() {
    a_leaver_is_forgotten(b"", b"", Leaving::Finish).await;
}

/// A queued client that resets its connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_client_that_resets_is_gone_at_once() {
    a_leaver_is_forgotten(b"", b"", Leaving::Reset).await;
}

/// A reset is seen although bytes that came with the CONNECT, and behind it, were not carried yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_client_that_resets_with_unread_bytes_is_gone_at_once() {
    a_leaver_is_forgotten(b"early", b"more", Leaving::Reset).await;
}

/// A FIN is seen although unread bytes stand before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_client_whose_fin_stands_behind_unread_bytes_is_gone_at_once() {
    a_leaver_is_forgotten(b"early", b"more", Leaving::Close).await;
    a_leaver_is_forgotten(b"", &vec![b'x'; 40_000], Leaving::Finish).await;
}

/// The next connection comes only when the registry has ended the one before it: not at our FIN, and not at its end of
/// reading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_is_given_on_only_when_the_registry_saw_the_end() {
    let (diary, may_close) = (Diary::default(), Arc::new(Semaphore::new(0)));
    let stub = slow_to_close(&diary, &may_close).await;
    let sidecar = sidecar_for(stub.address(), 1, "linger = \"30s\"").await;
    let watch = SocketWatch::start(stub.address());
    let first = tunnel(&sidecar, stub.address()).await;
    let mut second = asking(&sidecar, stub.address(), b"").await;
    sidecar.until("stub", "waiting", 1).await;
    drop(first);
    diary.until("end 0").await;
    sidecar.until("stub", "waiting", 1).await;
    assert!(second.is_silent(A_WHILE).await, "admitted beside a connection that the registry has not ended");
    may_close.add_permits(1);
    established(&mut second).await;
    diary.until("accept 1").await;
    assert_eq!(diary.entries(), ["accept 0", "end 0", "close 0", "accept 1"]);
    assert_eq!(watch.stop().most, 1, "sockets at once, as the kernel lists them");
}

/// A registry that is in the middle of an answer, and waits for the test before each piece.
async fn answering(diary: &Diary) -> StubRegistry {
    let diary = diary.clone();
    StubRegistry::raw(move |mut connection| {
        let diary = diary.clone();
        async move {
            let number = connection.number();
            diary.note(format!("accept {number}"));
            let mut buffer = [0; 1024];
            loop {
                match connection.read(&mut buffer).await {
                    Ok(0) => return diary.note(format!("end {number}")),
                    Ok(_) => connection.write_all(b"the first half of an answer").await.unwrap(),
                    Err(_) => return diary.note(format!("reset {number}")),
                }
            }
        }
    })
    .await
}

/// A client that resets in the middle of an answer: the registry, silent as it is, gets a reset, and the slot is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_resets_mid_answer_frees_its_slot_and_the_registry_sees_a_reset() {
    let diary = Diary::default();
    let stub = answering(&diary).await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    let mut client = tunnel(&sidecar, stub.address()).await;
    client.send(b"question").await.unwrap();
    exactly(&mut client, 27).await;
    let went = Instant::now();
    client.reset();
    diary.until("reset 0").await;
    sidecar.until("stub", "open", 0).await;
    assert!(went.elapsed() < AT_ONCE, "{:?}", went.elapsed());
    sidecar.until_outcomes("stub", Outcomes { client_left: 1, ..Outcomes::default() }).await;
    tunnel(&sidecar, stub.address()).await;
}

/// The same for a client that had ended its own side before: a killed puller must not keep a slot for as long as the
/// registry is silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_resets_after_its_fin_frees_its_slot() {
    let diary = Diary::default();
    let notes = diary.clone();
    let stub = StubRegistry::raw(move |mut connection| {
        let diary = notes.clone();
        async move {
            let mut all = Vec::new();
            connection.read_to_end(&mut all).await.unwrap();
            diary.note("end");
            // The answer takes for ever.
            let _ = connection.ready(Interest::ERROR).await;
            diary.note("reset");
        }
    })
    .await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    let mut client = tunnel(&sidecar, stub.address()).await;
    client.send(b"question").await.unwrap();
    client.finish().await.unwrap();
    diary.until("end").await;
    client.reset();
    diary.until("reset").await;
    sidecar.until("stub", "open", 0).await;
}

/// A registry that resets in the middle cuts its client, too, and counts as failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_resets_cuts_the_client() {
    let stub = StubRegistry::raw(|mut connection| async move {
        connection.read_exact(&mut [0; 8]).await.unwrap();
        connection.set_zero_linger().unwrap();
    })
    .await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    let mut client = tunnel(&sidecar, stub.address()).await;
    client.send(b"question").await.unwrap();
    let ended = tokio::time::timeout(SOON, client.receive()).await.expect("an end");
    assert!(ended.is_err(), "{ended:?}");
    sidecar.until_outcomes("stub", Outcomes { upstream_failed: 1, ..Outcomes::default() }).await;
    sidecar.until("stub", "open", 0).await;
}

/// The same where the registry does not take what the client sends, so that a write meets the reset first: an answer without a
/// length would look whole. If the registry had ended its side before, it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_that_a_write_meets_first_cuts_the_client() {
    for ends_first in [false, true] {
        let may_reset = Arc::new(Semaphore::new(0));
        let stub = StubRegistry::raw({
            let may_reset = may_reset.clone();
            move |mut connection| {
                let may_reset = may_reset.clone();
                async move {
                    connection.write_all(b"an answer").await.unwrap();
                    if ends_first {
                        connection.shutdown().await.unwrap();
                    }
                    may_reset.acquire().await.unwrap().forget();
                    connection.set_zero_linger().unwrap();
                }
            }
        })
        .await;
        let sidecar = sidecar_for(stub.address(), 1, "").await;
        let mut client = tunnel(&sidecar, stub.address()).await;
        assert_eq!(exactly(&mut client, 9).await, b"an answer");
        let upload = vec![7; 64 * 1024];
        while tokio::time::timeout(10 * A_WHILE, client.send(&upload)).await.is_ok() {}
        may_reset.add_permits(1);
        let ended = tokio::time::timeout(SOON, client.receive()).await.expect("an end");
        assert_eq!(ended.is_ok_and(|bytes| bytes.is_empty()), ends_first);
        let failed = u64::from(!ends_first);
        let outcomes = Outcomes { upstream_failed: failed, served: 1 - failed, ..Outcomes::default() };
        sidecar.until_outcomes("stub", outcomes).await;
        sidecar.until("stub", "open", 0).await;
    }
}

/// The first request is admitted first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_tunnels_are_admitted_in_the_order_of_their_arrival() {
    const CLIENTS: u8 = 12;
    let diary = Diary::default();
    let notes = diary.clone();
    let stub = StubRegistry::raw(move |mut connection| {
        let diary = notes.clone();
        async move {
            let mut all = String::new();
            connection.read_to_string(&mut all).await.unwrap();
            diary.note(all);
        }
    })
    .await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    let mut holder = tunnel(&sidecar, stub.address()).await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        clients.push(asking(&sidecar, stub.address(), number.to_string().as_bytes()).await);
        sidecar.until("stub", "waiting", u64::from(number) + 1).await;
    }
    holder.send(b"holder").await.unwrap();
    drop(holder);
    for client in &mut clients {
        established(client).await;
        client.finish().await.unwrap();
    }
    let expected: Vec<String> =
        std::iter::once("holder".to_owned()).chain((0..CLIENTS).map(|n| n.to_string())).collect();
    eventually_is("the order", SOON, expected, async || diary.entries()).await;
}

/// An IPv6 literal in brackets is a target.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_leads_to_an_ipv6_literal() {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.expect("::1 is there");
    let address = listener.local_addr().unwrap();
    let sidecar = sidecar_for(address, 1, "").await;
    let mut client = asking(&sidecar, address, b"hello").await;
    let (mut registry, _) = listener.accept().await.unwrap();
    established(&mut client).await;
    let mut bytes = [0; 5];
    registry.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"hello");
    registry.write_all(b"world").await.unwrap();
    assert_eq!(exactly(&mut client, 5).await, b"world");
}

/// A connection that carried a request before can become a tunnel, early bytes included, and its end frees the slot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_works_as_the_second_request_of_a_connection() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    let mut client = Wire::open(sidecar.proxy()).await.unwrap();
    let answer = client.get(&format!("http://{}/v2/", stub.address()), &[]).await.unwrap();
    assert_eq!(answer.status(), 200);
    let question = "GET /v2/a/manifests/early HTTP/1.1\r\nHost: x\r\n\r\n";
    client
        .send(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n{question}", stub.address()).as_bytes())
        .await
        .unwrap();
    established(&mut client).await;
    let head = client.read_answer().await.unwrap();
    assert_eq!(head.status(), 200);
    let length = head.header("content-length").unwrap().parse().unwrap();
    exactly(&mut client, length).await;
    assert_eq!(client.get("/v2/", &[]).await.unwrap().status(), 200);
    assert!(stub.seen_requests()[1].starts_with("GET /v2/a/manifests/early "), "{:?}", stub.seen_requests());
    drop(client);
    sidecar.until("stub", "open", 0).await;
    sidecar.until_outcomes("stub", Outcomes { served: 2, ..Outcomes::default() }).await;
}

/// RFC 9931: what a client sent for a tunnel that it did not get is never read as a request. The answer says why, and the
/// connection ends, whether the CONNECT came first or later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_for_a_refused_tunnel_are_no_request() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    for requests_before in [0, 1] {
        let mut client = Wire::open(sidecar.proxy()).await.unwrap();
        for _ in 0..requests_before {
            assert_eq!(client.get(&format!("http://{}/v2/", stub.address()), &[]).await.unwrap().status(), 200);
        }
        let seen = stub.requests();
        let smuggled = format!("GET http://{0}/v2/ HTTP/1.1\r\nHost: {0}\r\n\r\n", stub.address());
        let refused = format!("CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n{smuggled}");
        client.send(refused.as_bytes()).await.unwrap();
        let head = client.read_answer().await.unwrap();
        assert_eq!((head.status(), head.header("connection")), (403, Some("close")));
        assert!(head.reason().contains("169.254.169.254"), "{}", head.reason());
        let body = client.body(Framing::of_answer(&head, "CONNECT")).collect().await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["errors"][0]["detail"]["reason"], "destination_denied");
        assert!(client.receive().await.unwrap().is_empty(), "the connection ends in order");
        assert_eq!(stub.requests(), seen, "nothing more reached the registry");
    }
}

/// Content of a CONNECT has no meaning (RFC 9110, section 9.3.6), and its bytes cannot be told from those of the tunnel: it is
/// refused, whether it comes first or later. A length of zero is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connect_with_content_is_refused_and_loses_nothing() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    for (framing, status) in
        [("Content-Length: 5", 400), ("Transfer-Encoding: chunked", 400), ("Content-Length: 0", 200)]
    {
        for requests_before in [0, 1] {
            let mut client = Wire::open(sidecar.proxy()).await.unwrap();
            for _ in 0..requests_before {
                assert_eq!(client.get(&format!("http://{}/v2/", stub.address()), &[]).await.unwrap().status(), 200);
            }
            let head = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n{framing}\r\n\r\nhello", stub.address());
            client.send(head.as_bytes()).await.unwrap();
            let answer = client.read_answer().await.unwrap();
            let connection = (status == 400).then_some("close");
            assert_eq!((answer.status(), answer.header("connection")), (status, connection), "{framing}");
        }
    }
}

/// A second CONNECT that waits is out of the queue as soon as its client is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_connect_on_a_kept_connection_leaves_with_its_client() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    let mut leaver = Wire::open(sidecar.proxy()).await.unwrap();
    assert_eq!(leaver.get(&format!("http://{}/v2/", stub.address()), &[]).await.unwrap().status(), 200);
    let _holder = tunnel(&sidecar, stub.address()).await;
    let question = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\nearly", stub.address());
    leaver.send(question.as_bytes()).await.unwrap();
    sidecar.until("stub", "waiting", 1).await;
    drop(leaver);
    sidecar.until("stub", "waiting", 0).await;
    sidecar.until_outcomes("stub", Outcomes { served: 1, client_left: 1, ..Outcomes::default() }).await;
}

/// Random bytes, always the same for one seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    std::iter::repeat_with(|| random.draw().to_le_bytes()).flatten().take(length).collect()
}

/// 64 MiB each way, at once, arrive byte for byte, and the counters tell so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transfers_both_ways_arrive_byte_for_byte() {
    const SIZE: usize = 64 << 20;
    let (up, down) = (Arc::new(noise(1, SIZE)), Arc::new(noise(2, SIZE)));
    let arrived = Arc::new(Mutex::new(None));
    let (answer, result) = (down.clone(), arrived.clone());
    let stub = StubRegistry::raw(move |connection| {
        let (answer, result) = (answer.clone(), result.clone());
        async move {
            let (mut reader, mut writer) = tokio::io::split(connection);
            let mut all = Vec::with_capacity(SIZE);
            let (read, wrote) = tokio::join!(reader.read_to_end(&mut all), async {
                writer.write_all(&answer).await?;
                writer.shutdown().await
            });
            read.and(wrote).unwrap();
            *result.lock().unwrap() = Some(all);
        }
    })
    .await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    let client = tunnel(&sidecar, stub.address()).await;
    let (stream, early) = client.into_parts();
    let (mut reader, mut writer) = stream.into_split();
    let mut all = early.to_vec();
    let (read, wrote) = tokio::join!(reader.read_to_end(&mut all), async {
        writer.write_all(&up).await?;
        writer.shutdown().await
    });
    read.and(wrote).unwrap();
    assert!(all == *down, "{} bytes down", all.len());
    let seen = eventually("the registry to have all", SOON, async || arrived.lock().unwrap().take().ok_or("not yet"));
    let seen = seen.await;
    assert!(seen == *up, "{} bytes up", seen.len());
    sidecar.until_outcomes("stub", Outcomes { served: 1, ..Outcomes::default() }).await;
    let metrics = sidecar.metrics().await;
    for direction in ["up", "down"] {
        let labels = [("registry", "stub"), ("direction", direction)];
        assert_eq!(metrics.count("roadstead_relayed_bytes_total", &labels), SIZE as u64, "{direction}");
    }
}

/// A client that does not read holds the registry up, and loses nothing: not even when the registry ends before the
/// client has begun to read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_loses_nothing() {
    const SIZE: usize = 32 << 20;
    let blob = Arc::new(noise(3, SIZE));
    let answer = blob.clone();
    let stub = StubRegistry::raw(move |mut connection| {
        let answer = answer.clone();
        async move {
            connection.write_all(&answer).await.unwrap();
        }
    })
    .await;
    let sidecar = sidecar_for(stub.address(), 1, "").await;
    let mut client = tunnel(&sidecar, stub.address()).await;
    let mut before = u64::MAX;
    eventually("all buffers to be full", SOON, async || {
        let now = sidecar.metrics().await.count("roadstead_relayed_bytes_total", &[("direction", "down")]);
        let last = std::mem::replace(&mut before, now);
        if now > 0 && now == last { Ok(()) } else { Err(now) }
    })
    .await;
    assert!(before < SIZE as u64, "{before} bytes are buffered somewhere");
    let all = to_the_end(&mut client).await;
    assert!(all == *blob, "{} bytes", all.len());
    client.finish().await.unwrap();
    sidecar.until_outcomes("stub", Outcomes { served: 1, ..Outcomes::default() }).await;
}
