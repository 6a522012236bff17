//! Holders that do nothing with their slot: a client that takes nothing, a registry that sends nothing, a connection that has
//! ended on one side. Each is cut for a waiting request after its own time; a connection that moves is never cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use roadstead_test_support::http::{Framing, request};
use roadstead_test_support::{Sidecar, StubConnection, StubRegistry, Wire, config, connect_through, eventually_is};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::sleep;

/// More than the sockets between a registry and a client hold.
const MUCH: usize = 64 * 1024 * 1024;
const STALL: Duration = Duration::from_millis(1500);
/// Less than the sidecar holds of one direction.
const PIECE: usize = 128 * 1024;
/// A quiet tunnel is told of sooner.
const LOOK: Duration = Duration::from_millis(250);

/// One slot.
async fn sidecar(stub: &StubRegistry, reclaim: &str) -> Sidecar {
    let registry = format!(
        "[registries.stub]\nhosts = [\"{}\"]\ncap = 1\nshare = 1\n[registries.stub.reclaim]\n{reclaim}\n",
        stub.address()
    );
    Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await
}

async fn tunnel(sidecar: &Sidecar, stub: &StubRegistry) -> Wire {
    connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.expect("a tunnel")
}

/// Reads a request, then sends `length` bytes as fast as they are taken.
async fn pour(mut connection: StubConnection, length: usize) -> StubConnection {
    let mut scratch = [0; 1024];
    if matches!(connection.read(&mut scratch).await, Ok(1..)) {
        // It fails when it is cut, which the test is about.
        let _ = connection.write_all(&vec![7; length]).await;
    }
    connection
}

/// A frozen puller, whose kernel goes on acknowledging, keeps its tunnel as long as a request may stall.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_keeps_its_tunnel_no_longer_than_a_stall() {
    let stub = StubRegistry::raw(|connection| async move {
        pour(connection, MUCH).await;
    })
    .await;
    let sidecar = sidecar(&stub, "unsure_after = \"100ms\"\nstall_timeout = \"1500ms\"").await;
    let mut frozen = tunnel(&sidecar, &stub).await;
    frozen.send(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let began = Instant::now();
    let _next = tunnel(&sidecar, &stub).await;
    let took = began.elapsed();
    assert!(took >= STALL && took < STALL + Duration::from_secs(4), "{took:?}");
    let mut read = 0;
    let broken = loop {
        match frozen.receive().await {
            Ok(bytes) if bytes.is_empty() => break false,
            Ok(bytes) => read += bytes.len(),
            Err(_) => break true,
        }
    };
    assert!(broken && read < MUCH, "it must not look like the end of the answer: {read} bytes, broken: {broken}");
    assert!(stub.peak() <= 1);
}

/// Bytes that a client has not taken yet are under way, however long ago the registry sent them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_its_time_gets_all() {
    // Less than the sockets hold: the registry has said all.
    const ANSWER: usize = 2 * 1024 * 1024;
    let stub = StubRegistry::raw(|connection| async move {
        pour(connection, ANSWER).await;
        std::future::pending::<()>().await;
    })
    .await;
    let sidecar = sidecar(&stub, "unsure_after = \"100ms\"").await;
    let mut slow = tunnel(&sidecar, &stub).await;
    slow.send(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let waiting = {
        let (proxy, authority) = (sidecar.proxy(), stub.address().to_string());
        tokio::spawn(async move { connect_through(proxy, &authority, &[]).await })
    };
    sidecar.until("stub", "waiting", 1).await;
    let mut read = 0;
    // Its disk is busy: for far longer than the pause it takes a little at a time.
    for _ in 0..20 {
        read += slow.receive().await.expect("not cut").len();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!waiting.is_finished() && read < ANSWER, "it is not idle");
    while read < ANSWER {
        let bytes = slow.receive().await.expect("not cut");
        assert!(!bytes.is_empty(), "it ended after {read} bytes");
        read += bytes.len();
    }
    assert!(waiting.await.unwrap().is_ok(), "the slot goes on once it was read");
}

/// The word of its holder about a tunnel that is quiet now.
async fn doing(sidecar: &Sidecar) -> String {
    let holder = sidecar.ask_admin("GET", "/queue").await.json()["registries"]["stub"]["holders"][0].take();
    holder["doing"].as_str().unwrap_or_default().to_owned()
}

/// Whether the holder comes to say so within this time.
async fn comes_to(sidecar: &Sidecar, is_it: impl Fn(&str) -> bool, within: Duration) -> bool {
    let began = Instant::now();
    while !is_it(&doing(sidecar).await) {
        if began.elapsed() >= within {
            return false;
        }
        sleep(Duration::from_millis(5)).await;
    }
    true
}

/// A client that took nothing and then takes all is not stuck any more: the evidence is that of its records again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_the_rest_late_is_not_stuck_any_more() {
    let (more, pieces) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (told, sent) = (more.clone(), pieces.clone());
    let stub = StubRegistry::raw(move |mut connection| {
        let (told, sent) = (told.clone(), sent.clone());
        async move {
            assert!(connection.read(&mut [0; 1024]).await.unwrap() > 0);
            loop {
                told.notified().await;
                connection.write_all(&vec![7; PIECE]).await.unwrap();
                sent.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let sidecar = sidecar(&stub, "").await;
    let mut late = tunnel(&sidecar, &stub).await;
    late.send(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    // Pieces until the sidecar holds the end of the last one, and the registry has nothing more to say.
    for piece in 1.. {
        more.notify_one();
        eventually_is("a piece", STALL, true, async || pieces.load(Ordering::SeqCst) == piece).await;
        let bytes = [("registry", "stub"), ("direction", "down")];
        let read = async || sidecar.metrics().await.count("roadstead_relayed_bytes_total", &bytes);
        eventually_is("read", STALL, (piece * PIECE) as u64, read).await;
        if comes_to(&sidecar, |doing| doing == "in_flight", LOOK).await {
            break;
        }
    }
    let mut left = pieces.load(Ordering::SeqCst) * PIECE;
    while left > 0 {
        left -= late.receive().await.expect("not cut").len();
    }
    eventually_is("told anew", STALL, "unsure".to_owned(), async || doing(&sidecar).await).await;
}

/// A registry that speaks while it does not take the end of a request has the request before it: that tunnel is not told as quiet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_holds_the_end_of_a_request_is_never_taken() {
    let (speak, take) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (told, goes_on) = (speak.clone(), take.clone());
    let stub = StubRegistry::raw(move |connection| {
        let (told, goes_on) = (told.clone(), goes_on.clone());
        async move {
            let (mut of_client, mut to_client) = tokio::io::split(connection);
            let speaks = async {
                loop {
                    told.notified().await;
                    to_client.write_all(b"!").await.unwrap();
                }
            };
            tokio::select! {
                () = speaks => {}
                () = goes_on.notified() => {}
            }
            tokio::io::copy(&mut of_client, &mut to_client).await.unwrap();
        }
    })
    .await;
    let sidecar = sidecar(&stub, "unsure_after = \"100ms\"").await;
    let mut sending = tunnel(&sidecar, &stub).await;
    let mut pieces = 0;
    // Pieces until the sidecar holds the end of the last one.
    loop {
        sending.send(&vec![7; PIECE]).await.unwrap();
        pieces += 1;
        let bytes = [("registry", "stub"), ("direction", "up")];
        let read = async || sidecar.metrics().await.count("roadstead_relayed_bytes_total", &bytes);
        eventually_is("read", STALL, (pieces * PIECE) as u64, read).await;
        speak.notify_one();
        assert_eq!(sending.receive().await.unwrap(), "!");
        if !comes_to(&sidecar, |doing| !doing.is_empty(), STALL).await {
            break;
        }
    }
    let waiting = {
        let (proxy, authority) = (sidecar.proxy(), stub.address().to_string());
        tokio::spawn(async move { connect_through(proxy, &authority, &[]).await.is_ok() })
    };
    sidecar.until("stub", "waiting", 1).await;
    take.notify_one();
    let mut left = pieces * PIECE;
    while left > 0 {
        left -= sending.receive().await.expect("not cut").len();
    }
    assert!(waiting.await.unwrap());
}

/// A registry that has said all and closed leaves a tunnel that carries nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_whose_registry_has_ended_gives_way_after_its_pause() {
    let stub = StubRegistry::raw(|connection| async move {
        pour(connection, 100).await;
    })
    .await;
    let sidecar = sidecar(&stub, "unsure_after = \"300ms\"").await;
    let mut parked = tunnel(&sidecar, &stub).await;
    parked.send(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let began = Instant::now();
    let _next = tunnel(&sidecar, &stub).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(3), "{took:?}");
    assert_eq!(parked.receive().await.unwrap().len(), 100, "what it said came through");
}

/// The same for requests that are visible: a registry that stops in its answer, and a client that takes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_visible_request_that_does_not_move_keeps_its_slot_no_longer_than_a_stall() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n";
    for sends in [0, MUCH] {
        let stub = StubRegistry::raw(move |mut connection| async move {
            let mut scratch = [0; 1024];
            if matches!(connection.read(&mut scratch).await, Ok(1..)) {
                let _ = connection.write_all(HEAD.as_bytes()).await;
                let _ = connection.write_all(&vec![7; sends]).await;
            }
            // Until it is cut.
            while matches!(connection.read(&mut scratch).await, Ok(1..)) {}
        })
        .await;
        let sidecar = sidecar(&stub, "stall_timeout = \"1500ms\"").await;
        let mut still = Wire::open(sidecar.proxy()).await.unwrap();
        // Before a byte of it moves: the stall counts from the last one, whoever waits.
        let began = Instant::now();
        let get = format!("POST http://{0}/v2/ HTTP/1.1\r\nHost: {0}\r\nContent-Length: 0\r\n\r\n", stub.address());
        still.send(get.as_bytes()).await.unwrap();
        eventually_is("the request to be there", Duration::from_secs(5), 1, async || stub.open()).await;
        let _next = tunnel(&sidecar, &stub).await;
        let took = began.elapsed();
        // A machine that is busy moves many bytes slowly; without the bound nobody is served within 50 s.
        assert!(took >= STALL && took < STALL + Duration::from_secs(15), "{sends} bytes, {took:?}");
        let labels = [("registry", "stub"), ("evidence", "stalled")];
        assert_eq!(sidecar.metrics().await.count("roadstead_reclaimed_total", &labels), 1);
        assert!(stub.peak() <= 1);
    }
}

/// A commit that takes the registry several times as long: it is never cut while its client waits, and the slot is free when
/// that leaves. An upload whose client sends no more is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_visible_request_whose_answer_takes_long_to_begin_is_not_cut() {
    for stays in [true, false] {
        let stub = StubRegistry::builder().start().await;
        stub.hold();
        let sidecar = sidecar(&stub, "stall_timeout = \"500ms\"").await;
        let mut commit = Wire::open(sidecar.proxy()).await.unwrap();
        let put = |content: &str| {
            let host = stub.address();
            format!("PUT http://{host}/v2/a/manifests/1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\n\r\n{content}")
        };
        commit.send(put("abcd").as_bytes()).await.unwrap();
        eventually_is("the request to be there", Duration::from_secs(5), 1, async || stub.requests()).await;
        let (address, proxy) = (stub.address().to_string(), sidecar.proxy());
        let next = tokio::spawn(async move { connect_through(proxy, &address, &[]).await.is_ok() });
        sidecar.until("stub", "waiting", 1).await;
        sleep(Duration::from_secs(3)).await;
        assert!(!next.is_finished() && stub.open() == 1, "it was cut");
        if stays {
            stub.release();
            assert!((200..300).contains(&commit.read_answer().await.unwrap().status()));
        } else {
            drop(commit);
        }
        assert!(next.await.unwrap(), "the next one has the slot");
        sidecar.until("stub", "open", 0).await;
        let mut half = Wire::open(sidecar.proxy()).await.unwrap();
        half.send(put("ab").as_bytes()).await.unwrap();
        sidecar.until("stub", "open", 1).await;
        let _next = tunnel(&sidecar, &stub).await;
    }
}

/// A GET without an answer is cut after a stall, for a waiting request only, and waits again with all its patience: it may be
/// sent twice. That its time to wait was over when it was cut does not matter, nor whether its connection was new, and the cut
/// is no sign of the registry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_whose_answer_does_not_begin_gives_its_slot_up_and_waits_again() {
    for before in [0, 1] {
        let stub = StubRegistry::builder().start().await;
        let settings = "stall_timeout = \"500ms\"\n[registries.stub.queue]\nrequest_timeout = \"200ms\"";
        let sidecar = sidecar(&stub, settings).await;
        let mut get = Wire::open(sidecar.proxy()).await.unwrap();
        let url = format!("http://{}/v2/", stub.address());
        for _ in 0..before {
            assert_eq!(get.get(&url, &[]).await.unwrap().status(), 200, "its connection is kept");
        }
        stub.hold();
        get.send(request("GET", &url, &[]).as_bytes()).await.unwrap();
        eventually_is("the request to be there", Duration::from_secs(5), before + 1, async || stub.requests()).await;
        sleep(2 * STALL).await;
        assert_eq!((stub.open(), stub.requests()), (1, before + 1), "nobody waits");
        let next = tunnel(&sidecar, &stub).await;
        stub.release();
        drop(next);
        assert_eq!(get.read_answer().await.unwrap().status(), 200, "after {before} others");
        assert_eq!((stub.requests(), stub.peak()), (before + 2, 1));
        let distress = sidecar.status().await["registries"]["stub"]["distress"].clone();
        assert_eq!(distress["level"], 0.0, "{distress}");
    }
}

/// And one that moves a little is none that stalls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_visible_request_that_moves_slowly_is_not_cut() {
    const WORDS: usize = 8;
    let go_on = Arc::new(Notify::new());
    let stub = StubRegistry::raw({
        let go_on = go_on.clone();
        move |mut connection| {
            let go_on = go_on.clone();
            async move {
                let mut scratch = [0; 1024];
                if !matches!(connection.read(&mut scratch).await, Ok(1..)) {
                    return;
                }
                go_on.notified().await;
                connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n").await.expect("not cut");
                for _ in 0..WORDS {
                    tokio::time::sleep(STALL / 3).await;
                    connection.write_all(b"word").await.expect("not cut");
                }
            }
        }
    })
    .await;
    let sidecar = sidecar(&stub, "stall_timeout = \"1500ms\"").await;
    let mut slow = Wire::open(sidecar.proxy()).await.unwrap();
    let get = format!("GET http://{0}/v2/ HTTP/1.1\r\nHost: {0}\r\n\r\n", stub.address());
    slow.send(get.as_bytes()).await.unwrap();
    let waiting = {
        let (proxy, authority) = (sidecar.proxy(), stub.address().to_string());
        tokio::spawn(async move { connect_through(proxy, &authority, &[]).await })
    };
    go_on.notify_one();
    let head = slow.read_answer().await.unwrap();
    assert_eq!(head.status(), 200);
    let mut body = Vec::new();
    while body.len() < 4 * WORDS {
        let bytes = slow.receive().await.expect("not cut");
        assert!(!bytes.is_empty(), "it ended after {} bytes", body.len());
        body.extend_from_slice(&bytes);
    }
    assert!(waiting.await.unwrap().is_ok());
}

/// A registry whose storage hangs takes nothing of an upload for longer than it may leave bytes unacknowledged. Its kernel tells
/// that the window is closed, which is a word of one that lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_of_which_the_registry_takes_nothing_for_more_than_a_minute_comes_whole() {
    // More than the sockets hold, and less: then no write has to wait.
    let uploads = [(true, MUCH), (true, 1 << 20), (false, MUCH), (false, 1 << 20)];
    let here = tokio::task::LocalSet::new();
    let all = uploads.map(|(is_tunnel, length)| here.spawn_local(upload_to_one_that_hangs(is_tunnel, length)));
    here.run_until(async {
        for one in all {
            one.await.unwrap();
        }
    })
    .await;
}

async fn upload_to_one_that_hangs(is_tunnel: bool, length: usize) {
    const HANGS: Duration = Duration::from_secs(75);
    let stub = StubRegistry::raw(move |connection| async move {
        let mut wire = Wire::new(connection);
        let Ok(Some(head)) = wire.read_head().await else { return };
        sleep(HANGS).await;
        let mut body = wire.body(Framing::of_request(&head));
        let mut taken = 0;
        while let Ok(Some(piece)) = body.next().await {
            taken += piece.len();
        }
        if taken == length {
            wire.send(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await.expect("not cut");
        }
    })
    .await;
    let sidecar = sidecar(&stub, "").await;
    let mut client = if is_tunnel { tunnel(&sidecar, &stub).await } else { Wire::open(sidecar.proxy()).await.unwrap() };
    let (host, began) = (stub.address(), Instant::now());
    let origin = if is_tunnel { String::new() } else { format!("http://{host}") };
    let put = format!("PUT {origin}/v2/a/blobs/uploads/1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n");
    client.send(put.as_bytes()).await.unwrap();
    client.send(&vec![7; length]).await.unwrap_or_else(|error| {
        panic!("tunnel: {is_tunnel}, {length} bytes, cut after {:?}: {error}", began.elapsed())
    });
    assert_eq!(client.read_answer().await.unwrap().status(), 201, "tunnel: {is_tunnel}, {length} bytes");
    assert!(began.elapsed() >= HANGS);
}

/// While others wait, a client that takes or sends less than `queue.least_rate` gives its slot up: in a tunnel and in a
/// visible request, taking an answer and sending an upload. Without the setting it keeps the slot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_slower_than_the_least_rate_gives_its_slot_up() {
    let cases = ["tunnel down", "request down", "tunnel up", "request up"];
    let all = cases.into_iter().flat_map(|case| [(case, ""), (case, "least_rate = \"100MiB/s\"")]);
    let here = tokio::task::LocalSet::new();
    let all: Vec<_> = all.map(|(case, rate)| here.spawn_local(drip_beside_a_waiter(case, rate))).collect();
    here.run_until(async {
        for one in all {
            one.await.unwrap();
        }
    })
    .await;
}

/// A little again and again, sooner than a stall, so that something moves in the kernel.
async fn drip_beside_a_waiter(case: &'static str, rate: &str) {
    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n";
    let goes_down = case.ends_with("down");
    let stub = StubRegistry::raw(move |mut connection| async move {
        let mut scratch = [0; 1024];
        if goes_down && matches!(connection.read(&mut scratch).await, Ok(1..)) {
            let _ = connection.write_all(HEAD.as_bytes()).await;
            let _ = connection.write_all(&vec![7; MUCH]).await;
        }
        while matches!(connection.read(&mut scratch).await, Ok(1..)) {}
    })
    .await;
    let settings = format!("stall_timeout = \"1500ms\"\n[registries.stub.queue]\n{rate}");
    let sidecar = sidecar(&stub, &settings).await;
    let is_tunnel = case.starts_with("tunnel");
    let mut slow = if is_tunnel { tunnel(&sidecar, &stub).await } else { Wire::open(sidecar.proxy()).await.unwrap() };
    let length = if goes_down { 0 } else { 5000 };
    let post = format!("POST http://{0}/v2/ HTTP/1.1\r\nHost: {0}\r\nContent-Length: {length}\r\n\r\n", stub.address());
    // The beginning of a TLS record of 4096 bytes.
    let first = if case == "tunnel up" { "\x17\x03\x03\x10\x00" } else { &post };
    slow.send(first.as_bytes()).await.unwrap();
    eventually_is("the request to be there", Duration::from_secs(5), 1, async || stub.open()).await;
    let (mut slow, _) = slow.into_parts();
    let dripping = tokio::spawn(async move {
        let mut portion = vec![0; 400_000];
        loop {
            let is_cut = if goes_down {
                !matches!(slow.read(&mut portion).await, Ok(1..))
            } else {
                slow.write_all(b"x").await.is_err()
            };
            if is_cut {
                return;
            }
            tokio::time::sleep(STALL / 10).await;
        }
    });
    let began = Instant::now();
    let next = tokio::time::timeout(STALL * 4, tunnel(&sidecar, &stub)).await;
    let took = began.elapsed();
    assert_eq!(next.is_ok(), !rate.is_empty(), "{case}, {rate:?}: {took:?}");
    if next.is_ok() {
        assert!(took >= STALL / 2, "{case}: {took:?}");
        let of_slow = |line: &serde_json::Value| line["ended_by"] == "reclaim" && line["evidence"] == "slow";
        eventually_is("its record", Duration::from_secs(5), 1, async || {
            sidecar.finished().iter().filter(|line| of_slow(line)).count()
        })
        .await;
        let finished = sidecar.finished();
        let record = finished.iter().find(|line| of_slow(line)).unwrap();
        assert_eq!(record["outcome"], "client_left", "{case}: {record}");
    }
    dripping.abort();
}

/// A client that is too slow is the cause of the end also where its request was sent more than once: of a blob that was resumed
/// before, and of one whose first connection died.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_is_the_cause_however_often_its_request_was_sent() {
    const BLOB: usize = MUCH + 1;
    for breaks_off in [true, false] {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let stub = StubRegistry::raw(move |connection| {
            let counted = counted.clone();
            async move {
                let mut wire = Wire::new(connection);
                while let Ok(Some(_)) = wire.read_head().await {
                    let all = format!("HTTP/1.1 200 OK\r\nContent-Length: {BLOB}\r\n\r\n");
                    let rest = format!(
                        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 1-{MUCH}/{BLOB}\r\nContent-Length: {MUCH}\r\n\r\n"
                    );
                    let (head, length, goes_on) = match counted.fetch_add(1, Ordering::Relaxed) {
                        0 => ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0, true),
                        1 if breaks_off => (all.as_str(), 1, false),
                        1 => ("", 0, false),
                        2 => (if breaks_off { rest.as_str() } else { all.as_str() }, MUCH, false),
                        _ => ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 0, true),
                    };
                    let sent = wire.send(&[head.as_bytes(), &vec![7; length]].concat()).await;
                    if sent.is_err() || !goes_on {
                        return;
                    }
                }
            }
        })
        .await;
        let settings = "stall_timeout = \"1500ms\"\n[registries.stub.queue]\nleast_rate = \"100MiB/s\"";
        let sidecar = sidecar(&stub, settings).await;
        let mut slow = Wire::open(sidecar.proxy()).await.unwrap();
        let url = format!("http://{}/v2/a/blobs/sha256:0", stub.address());
        assert_eq!(slow.get(&url, &[]).await.unwrap().status(), 200, "its connection is kept");
        slow.send(request("GET", &url, &[]).as_bytes()).await.unwrap();
        eventually_is("the last one", Duration::from_secs(5), 3, async || asked.load(Ordering::Relaxed)).await;
        let (mut slow, _) = slow.into_parts();
        let dripping = tokio::spawn(async move {
            let mut portion = vec![0; 400_000];
            while matches!(slow.read(&mut portion).await, Ok(1..)) {
                sleep(STALL / 10).await;
            }
        });
        let _next = tunnel(&sidecar, &stub).await;
        dripping.await.unwrap();
        let of_blob = |line: &serde_json::Value| line["ended_by"] == "reclaim" && line["outcome"] == "client_left";
        eventually_is("its record", Duration::from_secs(5), 1, async || {
            sidecar.finished().iter().filter(|line| of_blob(line)).count()
        })
        .await;
    }
}
