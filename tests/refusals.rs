//! Whom the sidecar refuses, when, and in which words; and that every refusal is counted under its reason.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use roadstead_test_support::http::request;
use roadstead_test_support::{
    KEEP_TUNNELS, Outcomes, Response, Sidecar, StubRegistry, Wire, config, connect_through, eventually_is, get_through,
};
use serde_json::Value;

/// Long enough for the slowest machine; nothing waits for it unless it fails.
const SOON: Duration = Duration::from_secs(10);
/// How late a time may be.
const LATE: Duration = Duration::from_secs(2);

/// A sidecar with one slot for a registry with these hosts; `more` goes into the registry's table, and may go on with
/// other tables.
async fn sidecar_for(host: &str, more: &str) -> Sidecar {
    let registry = format!("[registries.stub]\nhosts = [\"{host}\"]\ncap = 1\nshare = 1\n{more}\n{KEEP_TUNNELS}");
    Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await
}

/// A config with keys of its own in `[listen]`.
fn config_with_listen(listen: &str, stub: &StubRegistry) -> String {
    format!(
        "[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{listen}\n[log]\nformat = \"json\"\n\
         [registries.stub]\nhosts = [\"{}\"]\ncap = 1\nshare = 1\n",
        stub.address()
    )
}

fn url(address: impl std::fmt::Display) -> String {
    format!("http://{address}/v2/")
}

/// A tunnel that stands.
async fn holder(sidecar: &Sidecar, stub: &StubRegistry) -> Wire {
    connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.expect("a tunnel")
}

/// The same question both ways: in absolute-form and by CONNECT.
async fn both_ways(sidecar: &Sidecar, authority: &str) -> [Response; 2] {
    let asked = get_through(sidecar.proxy(), &url(authority), &[]).await;
    let tunnel = connect_through(sidecar.proxy(), authority, &[]).await.expect_err("a refusal");
    [asked, tunnel]
}

/// Checks everything that every refusal has in common, and returns the detail.
fn assert_refused(answer: &Response, status: u16, reason: &str, registry: &str) -> Value {
    let error = &answer.json()["errors"][0];
    let shown = answer.head.raw();
    assert_eq!(answer.status(), status, "{shown}");
    assert_eq!(answer.reason(), error["message"].as_str().expect("a message"), "the first line says it all: {shown}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{shown}");
    let proxy_status = answer.header("proxy-status").expect("Proxy-Status");
    assert!(proxy_status.starts_with("roadstead; error="), "{proxy_status}");
    let detail = error["detail"].clone();
    assert_eq!((detail["reason"].as_str(), detail["registry"].as_str()), (Some(reason), Some(registry)), "{detail}");
    for key in ["waited_seconds", "slots", "waiting"] {
        assert!(detail.get(key).is_some(), "no {key}: {detail}");
    }
    let retry_after = answer.header("retry-after").map(|seconds| seconds.parse::<u64>().expect("seconds"));
    if status == 503 {
        assert_eq!(error["code"], "UNAVAILABLE");
        assert!(retry_after.is_some_and(|seconds| (1..=3600).contains(&seconds)), "{shown}");
    }
    detail
}

/// Beyond `queue.depth` nobody waits: refused at once, with the numbers and the name of the setting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_to_a_full_queue_is_refused_at_once() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar_for(&stub.address().to_string(), "[registries.stub.queue]\ndepth = 2").await;
    let holder = holder(&sidecar, &stub).await;
    let mut waiters = Vec::new();
    for number in 1..=2 {
        let mut waiter = Wire::open(sidecar.proxy()).await.unwrap();
        waiter.send(request("GET", &url(stub.address()), &[]).as_bytes()).await.unwrap();
        sidecar.until("stub", "waiting", number).await;
        waiters.push(waiter);
    }
    let started = Instant::now();
    for answer in both_ways(&sidecar, &stub.address().to_string()).await {
        let detail = assert_refused(&answer, 503, "queue_full", "stub");
        assert_eq!((&detail["slots"], &detail["waiting"]), (&1.into(), &2.into()));
        assert!(answer.reason().contains("queue.depth = 2"), "{}", answer.reason());
    }
    assert!(started.elapsed() < LATE, "{:?}", started.elapsed());
    assert_eq!(sidecar.refused("stub", "queue_full").await, 2);
    drop(holder);
    for waiter in &mut waiters {
        assert_eq!(waiter.read_answer().await.unwrap().status(), 200, "those in the queue are served");
    }
    sidecar.until_outcomes("stub", Outcomes { served: 3, refused: 2, ..Outcomes::default() }).await;
}

/// `depth = 0` lets nobody wait, and everybody in for whom a slot is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_queue_only_those_who_must_wait_are_refused() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar_for(&stub.address().to_string(), "[registries.stub.queue]\ndepth = 0").await;
    let _holder = holder(&sidecar, &stub).await;
    for answer in both_ways(&sidecar, &stub.address().to_string()).await {
        assert_refused(&answer, 503, "queue_full", "stub");
    }
}

/// A wait ends at its timeout, never before and at most 2 s after; a CONNECT and a visible request each by their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_at_its_own_timeout() {
    let stub = StubRegistry::builder().start().await;
    let queue = "[registries.stub.queue]\ntunnel_timeout = \"900ms\"\nrequest_timeout = \"400ms\"";
    let sidecar = sidecar_for(&stub.address().to_string(), queue).await;
    let _holder = holder(&sidecar, &stub).await;
    let (target, address) = (url(stub.address()), stub.address().to_string());
    for (patience, setting, tunnel) in [(900, "tunnel_timeout", true), (400, "request_timeout", false)] {
        let patience = Duration::from_millis(patience);
        let started = Instant::now();
        let answer = if tunnel {
            connect_through(sidecar.proxy(), &address, &[]).await.expect_err("a refusal")
        } else {
            get_through(sidecar.proxy(), &target, &[]).await
        };
        let waited = started.elapsed();
        assert!(waited >= patience && waited <= patience + LATE, "{waited:?} of {patience:?}");
        let detail = assert_refused(&answer, 503, "queue_timeout", "stub");
        assert!(detail["waited_seconds"].as_f64().unwrap() >= patience.as_secs_f64(), "{detail}");
        assert!(answer.reason().contains(setting), "{}", answer.reason());
    }
    assert_eq!(sidecar.refused("stub", "queue_timeout").await, 2);
    assert_eq!(sidecar.outcomes("stub").await, Outcomes { refused: 2, ..Outcomes::default() });
    assert_eq!(stub.accept_log().len(), 1, "the registry heard only of the holder");
}

/// A class with timeouts of its own waits no longer than these, beside others who go on waiting by the registry's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_class_has_timeouts_of_its_own() {
    // `hasty:x`.
    const HASTY: &str = "Proxy-Authorization: Basic aGFzdHk6eA==";
    let stub = StubRegistry::builder().start().await;
    let queue = "[registries.stub.queue]\ntunnel_timeout = \"50s\"\nrequest_timeout = \"50s\"\n\
                 [classes.hasty]\nusers = [\"hasty\"]\ntunnel_timeout = \"1s\"\nrequest_timeout = \"400ms\"";
    let sidecar = sidecar_for(&stub.address().to_string(), queue).await;
    let holder = holder(&sidecar, &stub).await;
    let (target, address) = (url(stub.address()), stub.address().to_string());
    let mut patient = [Wire::open(sidecar.proxy()).await.unwrap(), Wire::open(sidecar.proxy()).await.unwrap()];
    patient[0].send(request("GET", &target, &[]).as_bytes()).await.unwrap();
    sidecar.until("stub", "waiting", 1).await;
    patient[1].send(request("CONNECT", &address, &[]).as_bytes()).await.unwrap();
    sidecar.until("stub", "waiting", 2).await;
    for (patience, setting, tunnel) in [(1000, "tunnel_timeout = 1s", true), (400, "request_timeout = 400ms", false)] {
        let patience = Duration::from_millis(patience);
        let started = Instant::now();
        let refusal = async {
            if tunnel {
                connect_through(sidecar.proxy(), &address, &[HASTY]).await.expect_err("a refusal")
            } else {
                get_through(sidecar.proxy(), &target, &[HASTY]).await
            }
        };
        let answer = tokio::time::timeout(patience + LATE, refusal).await.expect("a refusal by the time of the class");
        assert!(started.elapsed() >= patience, "{:?} of {patience:?}", started.elapsed());
        assert_refused(&answer, 503, "queue_timeout", "stub");
        assert!(answer.reason().contains(setting), "{}", answer.reason());
        assert_eq!(sidecar.count("stub", "waiting").await, 2, "the others go on waiting");
    }
    assert_eq!(sidecar.refused("stub", "queue_timeout").await, 2);
    drop(holder);
    for wire in &mut patient {
        assert_eq!(wire.read_answer().await.unwrap().status(), 200);
    }
    assert_eq!((stub.seen_requests().len(), stub.peak()), (1, 1), "the registry heard nothing of the class");
}

/// Metadata and link-local addresses in all their spellings, and loopback where it is not listed: by CONNECT and in
/// absolute-form, and nothing is dialled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dangerous_addresses_are_denied_in_every_spelling() {
    let (stub, unlisted) = (StubRegistry::builder().start().await, StubRegistry::builder().start().await);
    let sidecar = sidecar_for(&stub.address().to_string(), "").await;
    let port = unlisted.address().port();
    let hosts = [
        "169.254.169.254",
        "169.254.1.1",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::a9fe:a9fe]",
        "[fe80::1]",
        "127.0.0.1",
        "127.1.2.3",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "0.0.0.0",
        "[::]",
        "localhost",
    ];
    for host in hosts {
        for answer in both_ways(&sidecar, &format!("{host}:{port}")).await {
            assert_refused(&answer, 403, "destination_denied", "other_hosts");
            assert_eq!(answer.header("retry-after"), None);
        }
    }
    assert_eq!(unlisted.accept_log().len(), 0);
    let refused = u64::try_from(2 * hosts.len()).unwrap();
    assert_eq!(sidecar.refused("other_hosts", "destination_denied").await, refused);
    assert_eq!(sidecar.outcomes("other_hosts").await, Outcomes { refused, ..Outcomes::default() });
}

/// Listing one port of this machine opens that port and no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loopback_registry_is_reached_by_the_port_that_is_listed_and_no_other() {
    let (stub, other) = (StubRegistry::builder().start().await, StubRegistry::builder().start().await);
    let sidecar = sidecar_for(&stub.address().to_string(), "").await;
    assert_eq!(get_through(sidecar.proxy(), &url(stub.address()), &[]).await.status(), 200);
    let denied = get_through(sidecar.proxy(), &url(other.address()), &[]).await;
    assert_refused(&denied, 403, "destination_denied", "other_hosts");
}

/// With `policy = "deny"`, what no registry lists is refused by name, before anybody is asked where it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_hosts_are_denied_by_policy() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar_for(&stub.address().to_string(), "[other_hosts]\npolicy = \"deny\"").await;
    for host in ["other.example.com:443", "192.0.2.1:443", &format!("localhost:{}", stub.address().port())] {
        for answer in both_ways(&sidecar, host).await {
            assert_refused(&answer, 403, "destination_denied", "other_hosts");
            assert!(answer.reason().contains("other_hosts.policy"), "{}", answer.reason());
        }
    }
    assert_eq!(get_through(sidecar.proxy(), &url(stub.address()), &[]).await.status(), 200);
}

/// A registry that refuses connections is dialled again until the request's time is over, and then told as unreachable:
/// not before that time, and not as a full queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_stays_away_is_told_as_unreachable_at_the_deadline() {
    let stub = StubRegistry::builder().start().await;
    let queue = "[registries.stub.queue]\ntunnel_timeout = \"800ms\"\nrequest_timeout = \"800ms\"";
    let sidecar = sidecar_for(&stub.address().to_string(), queue).await;
    stub.refuse().await;
    for tunnel in [true, false] {
        let started = Instant::now();
        let answer = if tunnel {
            connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.expect_err("a refusal")
        } else {
            get_through(sidecar.proxy(), &url(stub.address()), &[]).await
        };
        let waited = started.elapsed();
        assert!(waited >= Duration::from_millis(800) && waited <= Duration::from_millis(800) + LATE, "{waited:?}");
        assert_refused(&answer, 502, "upstream_unreachable", "stub");
        assert!(answer.reason().contains(&stub.address().to_string()), "{}", answer.reason());
    }
    assert_eq!(sidecar.refused("stub", "upstream_unreachable").await, 2);
    assert_eq!(sidecar.outcomes("stub").await, Outcomes { upstream_failed: 2, ..Outcomes::default() });
}

/// A registry that comes back in time serves those who waited for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_comes_back_serves_those_who_waited() {
    let stub = StubRegistry::builder().start().await;
    let registry =
        format!("level = \"debug\"\n[registries.stub]\nhosts = [\"{}\"]\ncap = 1\nshare = 1", stub.address());
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
    stub.refuse().await;
    let mut asked = Wire::open(sidecar.proxy()).await.unwrap();
    asked.send(request("GET", &url(stub.address()), &[]).as_bytes()).await.unwrap();
    let mut tunnel = Wire::open(sidecar.proxy()).await.unwrap();
    tunnel.send(request("CONNECT", &stub.address().to_string(), &[]).as_bytes()).await.unwrap();
    eventually_is("both to have failed once", SOON, true, async || {
        sidecar.log_text().matches("will try again").count() >= 2
    })
    .await;
    stub.accept_again().await;
    // The first of the two keeps the only slot until its tunnel ends.
    let (first, second) = tokio::join!(asked.read_answer(), async {
        let answer = tunnel.read_answer().await;
        drop(tunnel);
        answer
    });
    assert_eq!((first.unwrap().status(), second.unwrap().status()), (200, 200));
    assert_eq!(stub.peak(), 1);
}

/// This machine's address toward others, if it has one.
fn outward_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the kernel only chooses a route.
    socket.connect("198.51.100.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// For other hosts nobody waits: a dial that fails is answered at once, far from any timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_host_that_cannot_be_reached_is_told_at_once() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar_for(&stub.address().to_string(), "").await;
    // A port where nobody listens; or, on a machine without a network, an address without a route.
    let host = outward_address().unwrap_or([192, 0, 2, 1].into());
    let free = std::net::TcpListener::bind(("0.0.0.0", 0)).unwrap().local_addr().unwrap().port();
    let started = Instant::now();
    for answer in both_ways(&sidecar, &SocketAddr::new(host, free).to_string()).await {
        assert_refused(&answer, 502, "upstream_unreachable", "other_hosts");
    }
    assert!(started.elapsed() < LATE, "{:?}", started.elapsed());
    for answer in both_ways(&sidecar, "no-such-host.invalid:80").await {
        assert_refused(&answer, 502, "upstream_unreachable", "other_hosts");
        assert!(answer.reason().contains("no-such-host.invalid"), "{}", answer.reason());
    }
    assert_eq!(sidecar.refused("other_hosts", "upstream_unreachable").await, 4);
    assert_eq!(sidecar.outcomes("other_hosts").await, Outcomes { upstream_failed: 4, ..Outcomes::default() });
}

/// A head that does not end in time is answered with 408, neither early nor late; a client that says nothing at all is
/// only closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_does_not_end_is_refused_in_time() {
    const PATIENCE: Duration = Duration::from_millis(400);
    let stub = StubRegistry::builder().start().await;
    let text = config_with_listen("head_timeout = \"400ms\"", &stub);
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &text).await;
    let started = Instant::now();
    let (mut slow, mut silent) =
        (Wire::open(sidecar.proxy()).await.unwrap(), Wire::open(sidecar.proxy()).await.unwrap());
    slow.send(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 12").await.unwrap();
    let head = slow.read_answer().await.unwrap();
    let waited = started.elapsed();
    assert!(waited >= PATIENCE && waited <= PATIENCE + LATE, "{waited:?}");
    let body = slow.body(roadstead_test_support::http::Framing::of_answer(&head, "GET")).collect().await.unwrap();
    let answer = Response { head, body };
    assert_refused(&answer, 408, "head_timeout", "other_hosts");
    assert!(answer.reason().contains("listen.head_timeout"), "{}", answer.reason());
    assert_eq!(silent.receive().await.unwrap(), "", "an end without a word");
    assert_eq!(sidecar.refused("other_hosts", "head_timeout").await, 1);
    assert_eq!(sidecar.outcomes("other_hosts").await, Outcomes { refused: 1, ..Outcomes::default() });
}

/// Between two requests a client may be silent for longer than a head may take that has begun.
#[tokio::test]
async fn a_kept_connection_may_be_silent_for_longer_than_a_head_may_take() {
    const PATIENCE: Duration = Duration::from_millis(200);
    let stub = StubRegistry::builder().start().await;
    let sidecar =
        Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config_with_listen("head_timeout = \"200ms\"", &stub)).await;
    let (mut wire, host) = (Wire::open(sidecar.proxy()).await.unwrap(), format!("Host: {}", stub.address()));
    let url = format!("http://{}/v2/app/manifests/latest", stub.address());
    assert_eq!(wire.get(&url, &[&host]).await.unwrap().status(), 200);
    tokio::time::sleep(3 * PATIENCE).await;
    assert_eq!(wire.get(&url, &[&host]).await.unwrap().status(), 200);
}

/// Beyond `listen.max_clients` a connection is answered and closed; when another ends, there is room again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_clients_than_allowed_are_refused() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config_with_listen("max_clients = 2", &stub)).await;
    let clients = async || sidecar.status().await["clients"].as_u64().unwrap();
    let (first, _second) = (Wire::open(sidecar.proxy()).await.unwrap(), Wire::open(sidecar.proxy()).await.unwrap());
    eventually_is("two clients", SOON, 2, clients).await;
    let answer = get_through(sidecar.proxy(), &url(stub.address()), &[]).await;
    assert_refused(&answer, 503, "too_many_clients", "other_hosts");
    assert!(answer.reason().contains("listen.max_clients = 2"), "{}", answer.reason());
    assert_eq!(sidecar.refused("other_hosts", "too_many_clients").await, 1);
    drop(first);
    eventually_is("one client", SOON, 1, clients).await;
    assert_eq!(get_through(sidecar.proxy(), &url(stub.address()), &[]).await.status(), 200);
}

/// Another name for a registry's own address takes that registry's slot: nobody goes around the cap.
async fn another_spelling_takes_the_slot(listed: &str, asked: &str) {
    let stub = StubRegistry::builder().start().await;
    let port = stub.address().port();
    let (listed, asked) = (format!("{listed}:{port}"), format!("{asked}:{port}"));
    let queue = "[registries.stub.queue]\ndepth = 0";
    let sidecar = sidecar_for(&listed, queue).await;
    let holder = connect_through(sidecar.proxy(), &asked, &[]).await.expect("a tunnel");
    assert_eq!(sidecar.count("stub", "open").await, 1);
    for answer in both_ways(&sidecar, &asked).await.into_iter().chain(both_ways(&sidecar, &listed).await) {
        assert_refused(&answer, 503, "queue_full", "stub");
    }
    drop(holder);
    sidecar.until("stub", "open", 0).await;
    assert_eq!(get_through(sidecar.proxy(), &url(&asked), &[]).await.status(), 200, "{asked}");
    assert_eq!(stub.peak(), 1);
    let outcomes = sidecar.outcomes("other_hosts").await;
    assert_eq!(outcomes, Outcomes::default(), "nothing went around the registry");
}

/// A registry listed by name, asked for by address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_of_a_listed_name_counts_as_the_registry() {
    another_spelling_takes_the_slot("localhost", "127.0.0.1").await;
    another_spelling_takes_the_slot("localhost", "[::ffff:127.0.0.1]").await;
}

/// A registry listed by address, asked for by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_of_a_listed_address_counts_as_the_registry() {
    another_spelling_takes_the_slot("127.0.0.1", "localhost").await;
}
