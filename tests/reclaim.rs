//! Idle tunnels give way to those who wait; tunnels with work do not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use roadstead_test_support::{
    Outcomes, Sidecar, SocketWatch, StubRegistry, Wire, config, connect_through, eventually_is, scale,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn sidecar(stub: &StubRegistry, slots: usize, reclaim: &str) -> Sidecar {
    let registry = format!(
        "[registries.stub]\nhosts = [\"{}\"]\ncap = {slots}\nshare = 1\n[registries.stub.reclaim]\n{reclaim}\n",
        stub.address()
    );
    Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await
}

async fn tunnel(sidecar: &Sidecar, stub: &StubRegistry) -> Wire {
    connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.expect("a tunnel")
}

async fn reclaimed(sidecar: &Sidecar, evidence: &str) -> u64 {
    let labels = [("registry", "stub"), ("evidence", evidence)];
    sidecar.metrics().await.count("roadstead_reclaimed_total", &labels)
}

/// A tunnel in which no byte went either way gives its only slot to the next one within about `idle_after`, not before. Its
/// client does not notice: when it speaks, it has a connection again, before all who wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unused_tunnel_gives_way_after_its_pause() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar(&stub, 1, "idle_after = \"700ms\"").await;
    let watch = SocketWatch::start(stub.address());
    let mut parked = tunnel(&sidecar, &stub).await;
    let began = Instant::now();
    let mut next = tunnel(&sidecar, &stub).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(650) && took < Duration::from_millis(2700), "{took:?}");
    assert!(parked.is_silent(Duration::from_millis(50)).await, "it knows nothing");
    let status = sidecar.status().await["registries"]["stub"].clone();
    assert_eq!((&status["open"], &status["parked"]), (&1.into(), &1.into()));
    let metrics = sidecar.metrics().await;
    let open = ["connecting", "active", "idle", "closing"]
        .map(|state| metrics.count("roadstead_open_connections", &[("registry", "stub"), ("state", state)]));
    assert_eq!((open.iter().sum(), metrics.count("roadstead_parked_tunnels", &[("registry", "stub")])), (1_u64, 1));
    assert_eq!(reclaimed(&sidecar, "unused").await, 1);
    // Others wait already when it speaks.
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (proxy, authority) = (sidecar.proxy(), stub.address().to_string());
            tokio::spawn(async move { connect_through(proxy, &authority, &[]).await.expect("a tunnel") })
        })
        .collect();
    sidecar.until("stub", "waiting", 3).await;
    let speaks = parked.get("/v2/", &["Host: stub"]);
    let asked = &sidecar;
    let (answer, ()) = tokio::join!(speaks, async move {
        asked.until("stub", "waiting", 4).await;
        assert_eq!(next.get("/v2/", &["Host: stub"]).await.unwrap().status(), 200);
        drop(next);
    });
    assert_eq!(answer.unwrap().status(), 200);
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()), "it went first");
    drop((parked, waiting));
    assert!(watch.stop().most <= 1 && stub.peak() <= 1);
}

/// The requests of a client come together: right after a byte in another tunnel of its client, a quiet one is not taken, though
/// it has been quiet for longer than that of a client that does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_of_a_client_that_moves_just_now_is_passed_over() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar(&stub, 3, "idle_after = \"300ms\"\nunused_after = \"300ms\"\nunsure_after = \"300ms\"").await;
    let tunnel_of = async |name: &str| {
        let user = format!("Proxy-Authorization: Basic {}", BASE64_STANDARD.encode(format!("{name}:")));
        let authority = stub.address().to_string();
        let mut tunnel = connect_through(sidecar.proxy(), &authority, &[&user]).await.expect("a tunnel");
        assert_eq!(tunnel.get("/v2/", &["Host: stub"]).await.unwrap().status(), 200);
        tunnel
    };
    // A machine that is too busy may let the lively one rest for the moment that counts.
    for _ in 0..5 {
        let (mut longest, mut lively) = (tunnel_of("lively").await, tunnel_of("lively").await);
        let mut other = tunnel_of("other").await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        let moving = tokio::spawn(async move { while lively.get("/v2/", &["Host: stub"]).await.is_ok() {} });
        let waiting = tunnel_of("waiting").await;
        // Its end comes before the other one is admitted.
        let is_passed_over = !other.is_silent(Duration::ZERO).await;
        moving.abort();
        if is_passed_over {
            assert_eq!(longest.get("/v2/", &["Host: stub"]).await.unwrap().status(), 200);
            return;
        }
        drop((longest, other, waiting));
        sidecar.until("stub", "open", 0).await;
    }
    panic!("the quiet tunnel of the lively client went each time");
}

/// While a slot has been busy for long, there might be none for a parked tunnel when its client speaks: none is parked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_parked_while_a_slot_is_busy_for_long() {
    let stub = StubRegistry::builder().answer_delay(Duration::from_secs(7)).start().await;
    let sidecar = sidecar(&stub, 2, "idle_after = \"100ms\"").await;
    let mut busy = tunnel(&sidecar, &stub).await;
    busy.send(b"GET /v2/ HTTP/1.1\r\nHost: stub\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(5200)).await;
    let mut unused = tunnel(&sidecar, &stub).await;
    let (proxy, authority) = (sidecar.proxy(), stub.address().to_string());
    let waiting = tokio::spawn(async move { connect_through(proxy, &authority, &[]).await });
    sidecar.until("stub", "waiting", 1).await;
    assert!(unused.is_silent(Duration::from_millis(500)).await);
    assert_eq!(reclaimed(&sidecar, "unused").await, 0);
    assert_eq!(busy.read_answer().await.unwrap().status(), 200);
    drop(busy);
    assert!(waiting.await.unwrap().is_ok());
}

/// A parked tunnel counts as a client. It ends in order after 90 s, for which only a soak waits, and not before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_tunnel_counts_as_a_client_and_ends_after_ninety_seconds() {
    let stub = StubRegistry::builder().start().await;
    let registry = format!(
        "[registries.stub]\nhosts = [\"{}\"]\ncap = 1\nshare = 1\n[registries.stub.reclaim]\nidle_after = \"100ms\"\n",
        stub.address()
    );
    let file = config(&registry).replacen("[listen]\n", "[listen]\nmax_clients = 2\n", 1);
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &file).await;
    let mut parked = tunnel(&sidecar, &stub).await;
    let mut busy = tunnel(&sidecar, &stub).await;
    let began = Instant::now();
    assert_eq!(busy.get("/v2/", &["Host: stub"]).await.unwrap().status(), 200);
    sidecar.until("stub", "parked", 1).await;
    let refused = connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.unwrap_err();
    assert!(refused.reason().contains("listen.max_clients = 2"), "{}", refused.reason());
    if !scale(false, true) {
        assert!(parked.is_silent(Duration::from_secs(1)).await);
        return;
    }
    assert_eq!(parked.receive().await.unwrap(), "", "an orderly end");
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(88) && took < Duration::from_secs(95), "{took:?}");
    sidecar.until_outcomes("stub", Outcomes { served: 1, ..Outcomes::default() }).await;
    sidecar.until("stub", "parked", 0).await;
}

/// A parked tunnel whose client speaks and finds no slot within eight seconds is reset, and its outcome says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_tunnel_that_finds_no_slot_is_refused() {
    let stub = StubRegistry::builder().answer_delay(Duration::from_secs(20)).start().await;
    let sidecar = sidecar(&stub, 1, "idle_after = \"100ms\"").await;
    let mut parked = tunnel(&sidecar, &stub).await;
    let mut busy = tunnel(&sidecar, &stub).await;
    busy.send(b"GET /v2/ HTTP/1.1\r\nHost: stub\r\n\r\n").await.unwrap();
    parked.send(b"GET /v2/ HTTP/1.1\r\nHost: stub\r\n\r\n").await.unwrap();
    let began = Instant::now();
    assert!(parked.receive().await.is_err(), "a reset");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(7900) && took < Duration::from_secs(10), "{took:?}");
    sidecar.until_outcomes("stub", Outcomes { refused: 1, ..Outcomes::default() }).await;
    let labels = [("registry", "stub"), ("reason", "queue_timeout")];
    assert_eq!(sidecar.metrics().await.count("roadstead_refused_total", &labels), 1);
}

/// A parked tunnel whose client speaks and then leaves waits for no slot, and nobody dials for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_tunnel_whose_client_leaves_while_it_waits_takes_no_slot() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar(&stub, 1, "idle_after = \"100ms\"").await;
    for resets in [false, true] {
        let mut parked = tunnel(&sidecar, &stub).await;
        let mut busy = tunnel(&sidecar, &stub).await;
        stub.hold();
        busy.send(b"GET /v2/ HTTP/1.1\r\nHost: stub\r\n\r\n").await.unwrap();
        eventually_is("a request", Duration::from_secs(5), true, async || stub.requests() > 0).await;
        parked.send(b"GET /v2/ HTTP/1.1\r\nHost: stub\r\n\r\n").await.unwrap();
        sidecar.until("stub", "waiting", 1).await;
        if resets {
            parked.reset();
        } else {
            drop(parked);
        }
        sidecar.until("stub", "waiting", 0).await;
        stub.release();
        assert_eq!(busy.read_answer().await.unwrap().status(), 200);
        drop(busy);
        sidecar.until("stub", "open", 0).await;
    }
    sidecar.until_outcomes("stub", Outcomes { served: 2, client_left: 2, ..Outcomes::default() }).await;
    assert_eq!(stub.accept_log().len(), 4, "the parked ones were dialled once");
}

/// While nobody waits, quiet tunnels live on, however short their pause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quiet_tunnels_live_on_while_nobody_waits() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar(&stub, 2, "unused_after = \"50ms\"\nidle_after = \"50ms\"").await;
    let mut quiet = tunnel(&sidecar, &stub).await;
    eventually_is("the tunnel to lie idle", Duration::from_secs(5), 1, async || {
        sidecar.status().await["registries"]["stub"]["idle"].as_u64().unwrap()
    })
    .await;
    let _other = tunnel(&sidecar, &stub).await;
    assert_eq!(quiet.get("/v2/", &["Host: stub"]).await.unwrap().status(), 200);
    assert_eq!(reclaimed(&sidecar, "unused").await, 0);
}

/// A tunnel whose request the registry has not answered keeps its slot, whoever waits and however long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_with_a_request_in_flight_is_never_taken() {
    let stub = StubRegistry::builder().answer_delay(Duration::from_millis(1500)).start().await;
    let sidecar = sidecar(&stub, 1, "unused_after = \"50ms\"\nidle_after = \"50ms\"\nunsure_after = \"300ms\"").await;
    let mut busy = tunnel(&sidecar, &stub).await;
    let waiting = {
        let (proxy, authority) = (sidecar.proxy(), stub.address().to_string());
        tokio::spawn(async move { connect_through(proxy, &authority, &[]).await })
    };
    assert_eq!(busy.get("/v2/", &["Host: stub"]).await.unwrap().status(), 200, "answered after 1.5 s, and not cut");
    // Plain HTTP inside the tunnel cannot be read by its records: it is taken when it was quiet for `unsure_after`.
    waiting.await.unwrap().expect("the slot of the tunnel that is quiet now");
    assert_eq!(reclaimed(&sidecar, "unsure").await, 1);
}

/// A client that answers a recall by speaking is not cut: the bytes that were in its socket pass first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tunnels_of_clients_that_park_share_two_slots() {
    let stub = Arc::new(StubRegistry::builder().start().await);
    let sidecar =
        Arc::new(sidecar(&stub, 2, "unused_after = \"100ms\"\nidle_after = \"100ms\"\nunsure_after = \"200ms\"").await);
    let watch = SocketWatch::start(stub.address());
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let (sidecar, stub) = (sidecar.clone(), stub.clone());
            tokio::spawn(async move {
                let mut wire = tunnel(&sidecar, &stub).await;
                let status = wire.get("/v2/", &["Host: stub"]).await.unwrap().status();
                // It keeps its connection, as daemons do.
                (status, wire)
            })
        })
        .collect();
    for client in clients {
        assert_eq!(client.await.unwrap().0, 200);
    }
    assert!(watch.stop().most <= 2 && stub.peak() <= 2);
}

/// Paused, nobody is admitted and who waits stays; resumed, it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_registry_holds_its_queue() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar(&stub, 2, "").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.toml");
    std::fs::write(&file, format!("[listen]\ncontrol = \"{}\"\n", sidecar.control().display())).unwrap();
    let told = |action: &'static str, registry: &'static str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_roadstead"))
            .args([action, registry, "--config"])
            .arg(&file)
            .output()
            .expect("the binary runs")
    };
    assert!(told("pause", "stub").status.success());
    let mut asking = Wire::open(sidecar.proxy()).await.unwrap();
    asking.send(format!("CONNECT {} HTTP/1.1\r\n\r\n", stub.address()).as_bytes()).await.unwrap();
    let waiting = async || sidecar.status().await["registries"]["stub"]["waiting"].as_u64().unwrap();
    eventually_is("the request to wait", Duration::from_secs(5), 1, waiting).await;
    let status = sidecar.status().await["registries"]["stub"].clone();
    assert_eq!((&status["paused"], &status["limited_by"]), (&true.into(), &"paused".into()));
    assert!(stub.accept_log().is_empty());
    let queue = sidecar.ask_admin("GET", "/queue").await.json();
    assert_eq!(queue["registries"]["stub"]["waiting"][0]["target"], stub.address().to_string());
    assert!(told("resume", "stub").status.success());
    assert_eq!(asking.read_answer().await.unwrap().status(), 200);
    assert_eq!(told("pause", "stub").status.code(), Some(0));
    assert_eq!(told("pause", "nobody").status.code(), Some(1));
}

/// A registry that takes no connections for a while costs no request that still has patience, and is not dialled by all
/// of them at once when it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_costs_nobody_and_is_probed_by_one_at_a_time() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar(&stub, 20, "").await;
    stub.refuse().await;
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let (proxy, authority) = (sidecar.proxy(), stub.address().to_string());
            tokio::spawn(async move {
                let mut wire = connect_through(proxy, &authority, &[]).await.ok()?;
                wire.get("/v2/", &["Host: stub", "Connection: close"]).await.ok().map(|answer| answer.status())
            })
        })
        .collect();
    let out = async || {
        let status = sidecar.status().await["registries"]["stub"].clone();
        (status["waiting"].as_u64().unwrap_or(0) >= 49, status["limited_by"] == "unreachable")
    };
    eventually_is("all to wait for the registry", Duration::from_secs(10), (true, true), out).await;
    stub.accept_again().await;
    for client in clients {
        assert_eq!(client.await.unwrap(), Some(200));
    }
}

/// A registry that never ends its side of a connection, whatever its peer does; after the peer's end it sends `words`,
/// each after a pause.
async fn registry_without_end(words: usize, pause: Duration) -> StubRegistry {
    StubRegistry::raw(move |mut connection| async move {
        let mut scratch = [0; 1024];
        while let Ok(1..) = connection.read(&mut scratch).await {}
        for _ in 0..words {
            tokio::time::sleep(pause).await;
            connection.write_all(b"word").await.expect("the tunnel stands");
        }
        std::future::pending::<()>().await;
    })
    .await
}

/// A client that has said all, and whose registry never ends, does not keep its slot from one who waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_silent_tunnel_gives_way() {
    for (said, words, evidence) in [(&b""[..], 0, "unused"), (b"GET / HTTP/1.1\r\n\r\n", 1, "unsure")] {
        let stub = registry_without_end(words, Duration::ZERO).await;
        let sidecar = sidecar(&stub, 1, "unused_after = \"300ms\"\nunsure_after = \"300ms\"").await;
        let mut half_closed = tunnel(&sidecar, &stub).await;
        half_closed.send(said).await.unwrap();
        half_closed.finish().await.unwrap();
        let began = Instant::now();
        let _next = tunnel(&sidecar, &stub).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(reclaimed(&sidecar, evidence).await, 1, "{evidence}");
    }
}

/// Nor does it keep it for ever where nobody waits: it ends when nothing moved for `stall_timeout`, and not while
/// something does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_tunnel_ends_when_nothing_moves_for_long() {
    const WORDS: usize = 5;
    let (pause, stall) = (Duration::from_millis(500), Duration::from_millis(1500));
    let stub = registry_without_end(WORDS, pause).await;
    let sidecar = sidecar(&stub, 1, "stall_timeout = \"1500ms\"").await;
    let mut half_closed = tunnel(&sidecar, &stub).await;
    half_closed.send(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    half_closed.finish().await.unwrap();
    let began = Instant::now();
    let mut heard = Vec::new();
    let hearing = async {
        while let Ok(bytes) = half_closed.receive().await
            && !bytes.is_empty()
        {
            heard.extend_from_slice(&bytes);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), hearing).await.expect("an end");
    let took = began.elapsed();
    assert_eq!(String::from_utf8(heard).unwrap(), "word".repeat(WORDS), "what moved came through");
    let expected = pause * u32::try_from(WORDS).unwrap() + stall;
    assert!(took >= expected && took < expected + Duration::from_secs(5), "{took:?} of {expected:?}");
    sidecar.until("stub", "open", 0).await;
}
