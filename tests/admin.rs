//! The admin listener: health, readiness, the picture of each registry, and the metrics with their labels.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use roadstead_test_support::http::request;
use roadstead_test_support::{
    KEEP_TUNNELS, Metrics, Sidecar, StubRegistry, Wire, config, connect_through, eventually, eventually_is, get_through,
};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

/// The fields of every registry in `/status`.
const KEYS: [&str; 9] =
    ["slots", "open", "connecting", "active", "idle", "closing", "waiting", "oldest_wait_seconds", "paused"];

/// A registry, and a sidecar with `slots` for it, and a second registry that nobody asks for.
async fn stage(slots: usize, queue: &str) -> (StubRegistry, Sidecar) {
    let stub = StubRegistry::builder().start().await;
    let registries = format!(
        "[registries.stub]\nhosts = [\"{}\"]\ncap = {slots}\nshare = 1\n[registries.stub.queue]\n{queue}\n\
         [registries.quiet]\nhosts = [\"quiet.example.com\"]\ncap = 100\nshare = \"5%\"\n{KEEP_TUNNELS}",
        stub.address()
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registries)).await;
    (stub, sidecar)
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}/v2/")
}

/// The number of each state, in the order connecting, active, idle, closing; they add up to `open`.
fn states(picture: &Value) -> [u64; 4] {
    let states = ["connecting", "active", "idle", "closing"].map(|key| picture[key].as_u64().expect("a number"));
    assert_eq!(states.iter().sum::<u64>(), picture["open"].as_u64().expect("a number"), "{picture}");
    states
}

/// Alive and ready.
#[tokio::test]
async fn a_running_sidecar_is_alive_and_ready() {
    let (_stub, sidecar) = stage(1, "").await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(sidecar.ask_admin("GET", path).await.status(), 200, "{path}");
        let head = sidecar.ask_admin("HEAD", path).await;
        assert_eq!((head.status(), head.body.len()), (200, 0), "{path}");
    }
}

/// A client that sends a body nobody asked for reads its answer, though it was not read (RFC 9112, section 9.6).
#[tokio::test]
async fn an_answer_to_a_large_body_is_not_lost_to_a_reset() {
    let (_stub, sidecar) = stage(1, "").await;
    for _ in 0..20 {
        let mut client = Wire::open(sidecar.admin()).await.unwrap();
        let head = request("POST", "/status", &["Content-Length: 200000"]);
        let part = vec![b'x'; 100_000];
        client.send(&[head.as_bytes(), &part].concat()).await.unwrap();
        // The answer is there and was not read, and the client goes on.
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.send(&part).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(client.read_answer().await.unwrap().status(), 405);
        client.finish().await.unwrap();
        while !client.receive().await.expect("no reset").is_empty() {}
    }
}

/// An unknown path is 404. A path that can only be read is 405 for other methods.
#[tokio::test]
async fn unknown_paths_and_methods_are_refused() {
    let (_stub, sidecar) = stage(1, "").await;
    for path in ["/nothing", "/status/", "/metricsx", "//status"] {
        assert_eq!(sidecar.ask_admin("GET", path).await.status(), 404, "{path}");
    }
    for path in ["/healthz", "/readyz", "/metrics", "/status", "/queue", "/history", "/"] {
        for method in ["POST", "PUT", "DELETE"] {
            assert_eq!(sidecar.ask_admin(method, path).await.status(), 405, "{method} {path}");
        }
    }
}

/// `/status` shows the version and every registry with every key, also one that nobody has asked for.
#[tokio::test]
async fn status_shows_every_registry_with_every_key() {
    let (_stub, sidecar) = stage(3, "").await;
    let answer = sidecar.ask_admin("GET", "/status").await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let status = answer.json();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    let registries = status["registries"].as_object().unwrap();
    assert_eq!(registries.keys().collect::<Vec<_>>(), ["quiet", "stub"]);
    for (name, slots) in [("stub", 3), ("quiet", 5)] {
        let picture = &registries[name];
        for key in KEYS {
            assert!(picture.get(key).is_some(), "no {key}: {picture}");
        }
        assert_eq!((&picture["slots"], &picture["paused"]), (&json!(slots), &json!(false)));
        assert_eq!(states(picture), [0; 4]);
    }
}

/// The four states follow what the connections do, and add up to `open`; who waits is counted with its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_states_follow_the_connections() {
    let (stub, sidecar) = stage(3, "").await;
    let picture = async || sidecar.status().await["registries"]["stub"].take();

    assert_eq!(get_through(sidecar.proxy(), &url(stub.address()), &[]).await.status(), 200);
    sidecar.until("stub", "idle", 1).await;
    assert_eq!(states(&picture().await), [0, 0, 1, 0], "a kept connection is idle");

    let mut tunnel = connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.unwrap();
    assert_eq!(states(&picture().await), [0, 0, 2, 0], "and so is a tunnel that carried nothing");
    assert_eq!(tunnel.get("/v2/", &[]).await.unwrap().status(), 200);
    assert_eq!(states(&picture().await), [0, 1, 1, 0]);

    stub.hold();
    let mut asked = Vec::new();
    for _ in 0..3 {
        let mut client = Wire::open(sidecar.proxy()).await.unwrap();
        client.send(request("GET", &url(stub.address()), &[]).as_bytes()).await.unwrap();
        asked.push(client);
    }
    sidecar.until("stub", "waiting", 1).await;
    sidecar.until("stub", "active", 3).await;
    let full = picture().await;
    assert_eq!(states(&full), [0, 3, 0, 0]);
    eventually_is("the registry to count the same", Duration::from_secs(5), 3, async || stub.open()).await;
    let waited = full["oldest_wait_seconds"].as_f64().unwrap();
    eventually("the wait to grow", Duration::from_secs(5), async || {
        match picture().await["oldest_wait_seconds"].as_f64().unwrap() {
            longer if longer > waited => Ok(()),
            longer => Err((waited, longer)),
        }
    })
    .await;

    stub.release();
    for client in &mut asked {
        assert_eq!(client.read_answer().await.unwrap().status(), 200);
    }
    sidecar.until("stub", "waiting", 0).await;
    assert!(picture().await["oldest_wait_seconds"].as_f64().unwrap().abs() < f64::EPSILON);
}

/// The metrics listener has the metrics and the probes, and nothing that concerns only the operator of the node.
#[tokio::test]
async fn the_metrics_listener_shows_metrics_and_probes_only() {
    let text = "[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nmetrics = \"127.0.0.1:0\"\n\
                [log]\nformat = \"json\"\n[registries.stub]\nhosts = [\"harbor.example.com\"]\ncap = 1\nshare = 1\n";
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), text).await;
    let address = eventually("the metrics listener", Duration::from_secs(5), async || {
        sidecar.listener("metrics").ok_or_else(|| sidecar.log_text())
    })
    .await;
    let mut scraper = Wire::open(address).await.unwrap();
    let metrics = scraper.get("/metrics", &[]).await.unwrap();
    assert_eq!(metrics.status(), 200);
    assert!(Metrics::parse(&metrics.text()).has("roadstead_slots"));
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain"));
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/status", 404), ("/history", 404), ("/", 404)] {
        assert_eq!(scraper.get(path, &[]).await.unwrap().status(), status, "{path}");
    }
    assert_eq!(scraper.ask("POST", "/metrics", &["Content-Length: 0"]).await.unwrap().status(), 405);
}

/// Those who ask and never read do not take the descriptors that the proxy needs, and keep nobody else from asking; after
/// a while they are let go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_reads_takes_few_descriptors_and_not_for_ever() {
    let stub = StubRegistry::builder().start().await;
    let text = config(&format!("[registries.stub]\nhosts = [\"{}\"]\ncap = 1\nshare = 1\n", stub.address())).replacen(
        "[listen]\n",
        "[listen]\nmetrics = \"127.0.0.1:0\"\n",
        1,
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &text).await;
    let open = || std::fs::read_dir(format!("/proc/{}/fd", sidecar.pid())).unwrap().count();
    let (metrics, before) = (sidecar.listener("metrics").unwrap(), open());
    for listener in [metrics, sidecar.admin()] {
        let mut peers = Vec::new();
        for _ in 0..200 {
            let socket = TcpSocket::new_v4().unwrap();
            // Little of an answer goes where nobody reads.
            socket.set_recv_buffer_size(4096).unwrap();
            let mut peer = Wire::new(socket.connect(listener).await.unwrap());
            let asked = request("GET", "/metrics", &["Host: 127.0.0.1"]).repeat(1000);
            // Bytes that do not fit are not needed.
            let _ = tokio::time::timeout(Duration::from_millis(10), peer.send(asked.as_bytes())).await;
            peers.push(peer);
        }
        eventually("few to be left", Duration::from_secs(10), async || match open() - before {
            left if left <= 64 + 8 => Ok(()),
            left => Err(left),
        })
        .await;
        let mut probe = Wire::open(listener).await.unwrap();
        assert_eq!(probe.get("/healthz", &["Host: 127.0.0.1"]).await.unwrap().status(), 200);
        drop(probe);
        assert_eq!(get_through(sidecar.proxy(), &url(stub.address()), &[]).await.status(), 200);
        eventually("all to be let go", Duration::from_secs(45), async || match open().saturating_sub(before) {
            left if left <= 8 => Ok(()),
            left => Err(left),
        })
        .await;
    }
}

/// The page lets nothing in but what it is made of, and stands in no frame; the metrics listener has none.
#[tokio::test]
async fn the_page_comes_with_a_strict_policy() {
    let (_stub, sidecar) = stage(1, "").await;
    let page = sidecar.ask_admin("GET", "/").await;
    assert_eq!((page.status(), page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    let policy = page.header("content-security-policy").unwrap();
    let mut directives: Vec<&str> = policy.split("; ").collect();
    directives.retain(|directive| !directive.contains(" 'sha256-"));
    let expected = [
        "default-src 'none'",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ];
    assert_eq!(directives, expected);
    for kind in ["script-src 'sha256-", "style-src 'sha256-"] {
        assert_eq!(policy.matches(kind).count(), 1, "{policy}");
    }
}

/// A page of another site in a browser on this node cannot read under a name of its own.
#[tokio::test]
async fn pages_of_other_sites_are_refused() {
    let (_stub, sidecar) = stage(1, "").await;
    let ask = async |method: &str, path: &str, host: &str, origin: &str| {
        let mut wire = Wire::open(sidecar.admin()).await.unwrap();
        let headers = format!("Host: {host}\r\n{origin}Content-Length: 0\r\n\r\n");
        wire.send(format!("{method} {path} HTTP/1.1\r\n{headers}").as_bytes()).await.unwrap();
        wire.read_answer().await.unwrap().status()
    };
    let address = sidecar.admin().to_string();
    for path in ["/", "/status", "/queue", "/history", "/metrics", "/healthz"] {
        assert_eq!(ask("GET", path, "evil.example.com", "").await, 403, "{path}");
        for host in [address.as_str(), "localhost:4129", "node7", "[::1]"] {
            assert_eq!(ask("GET", path, host, "").await, 200, "{path} at {host}");
        }
    }
}

/// The answer to a misspelt registry lists the known ones.
#[tokio::test]
async fn an_unknown_registry_is_answered_with_the_known_ones() {
    let (_stub, sidecar) = stage(1, "").await;
    let answer = sidecar.order("/registries/stubb/pause").await;
    assert_eq!((answer.status(), answer.text().as_str()), (404, "no such registry; there is quiet, stub\n"));
}

/// `/history` has a sample for each second, with what was admitted in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_grows_by_the_second() {
    let (stub, sidecar) = stage(1, "").await;
    let history = async || sidecar.ask_admin("GET", "/history").await.json()["registries"]["stub"].take();
    let length = |history: &Value| history["admitted"].as_array().map_or(0, Vec::len);
    eventually("a first sample", Duration::from_secs(10), async || match length(&history().await) {
        0 => Err(0),
        samples => Ok(samples),
    })
    .await;
    assert_eq!(get_through(sidecar.proxy(), &url(stub.address()), &[]).await.status(), 200);
    let seen = eventually("the admission to show", Duration::from_secs(10), async || {
        let history = history().await;
        let admitted = history["admitted"].as_array().unwrap().iter().filter_map(Value::as_u64).sum::<u64>();
        if admitted == 1 { Ok(history) } else { Err(history) }
    })
    .await;
    for list in ["open", "waiting", "refused", "wait_p50_seconds", "wait_p99_seconds"] {
        assert_eq!(seen[list].as_array().unwrap().len(), length(&seen), "{list}");
    }
    let last = |list: &str| seen[list].as_array().unwrap().last().unwrap().clone();
    assert_eq!((last("open"), last("waiting")), (json!(1), json!(0)));
    assert!(last("wait_p99_seconds").as_f64().is_some_and(|wait| wait < 1.0), "{seen}");
}

/// Every metric is there from the start, for every registry and for other hosts, with all values of its labels, at
/// zero: an alert can be written before anything has happened. `docs::metrics` has the values of the labels.
#[tokio::test]
async fn every_metric_is_there_from_the_start() {
    let (_stub, sidecar) = stage(3, "").await;
    let text = sidecar.ask_admin("GET", "/metrics").await.text();
    let samples = |registry: &str| -> BTreeMap<String, String> {
        let label = format!("registry=\"{registry}\"");
        let lines = text.lines().filter(|line| line.contains(&label)).filter_map(|line| line.rsplit_once(' '));
        lines.map(|(sample, value)| (sample.replace(&label, ""), value.to_owned())).collect()
    };
    let (stub, quiet, mut others) = (samples("stub"), samples("quiet"), samples("other_hosts"));
    assert_eq!((&stub["roadstead_slots{}"], &quiet["roadstead_slots{}"]), (&"3".to_owned(), &"5".to_owned()));
    assert!(stub.len() > 50, "{stub:?}");
    assert!(
        stub.iter().all(|(sample, value)| value == "0"
            || sample.starts_with("roadstead_slots")
            || sample.starts_with("roadstead_mode")
            || sample == "roadstead_cap{}"),
        "{stub:?}"
    );
    assert_eq!(stub.keys().collect::<Vec<_>>(), quiet.keys().collect::<Vec<_>>());
    // Other hosts have neither slots nor distress, and nothing can go around them.
    let gauges =
        ["slots", "slots_in_force", "cap", "reserved_slots", "distress", "bypass_connections", "audit_excess_sockets"];
    for gauge in gauges {
        assert_eq!(others.insert(format!("roadstead_{gauge}{{}}"), String::new()), None, "{gauge}");
    }
    assert_eq!(others.insert("roadstead_mode{mode=\"enforce\",}".to_owned(), String::new()), None);
    assert_eq!(stub.keys().collect::<Vec<_>>(), others.keys().collect::<Vec<_>>());
}

/// Every sample about requests or sockets carries the registry; the process's own carry none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sample_of_a_registry_names_it() {
    let (stub, sidecar) = stage(1, "").await;
    assert_eq!(get_through(sidecar.proxy(), &url(stub.address()), &[]).await.status(), 200);
    let text = sidecar.ask_admin("GET", "/metrics").await.text();
    let of_the_process = ["roadstead_build_info", "roadstead_client_connections", "roadstead_config_", "process_"];
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let own = of_the_process.iter().any(|start| line.starts_with(start));
        assert_eq!(line.contains("registry=\""), !own, "{line}");
        assert!(!line.contains(&stub.address().to_string()), "a label from a request: {line}");
    }
}

/// Counters and histograms tell what happened, also of those who gave up: their wait is counted as long as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wait_of_those_who_gave_up_is_counted() {
    let (stub, sidecar) = stage(1, "tunnel_timeout = \"300ms\"").await;
    let holder = connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.unwrap();
    let refused = connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.unwrap_err();
    assert_eq!(refused.status(), 503);
    let mut leaver = Wire::open(sidecar.proxy()).await.unwrap();
    leaver.send(request("GET", &url(stub.address()), &[]).as_bytes()).await.unwrap();
    sidecar.until("stub", "waiting", 1).await;
    drop(leaver);
    sidecar.until("stub", "waiting", 0).await;
    drop(holder);
    sidecar.until("stub", "open", 0).await;

    let metrics = sidecar.metrics().await;
    let waits = |part: &str, outcome| {
        metrics.sum(&format!("roadstead_wait_seconds_{part}"), &[("registry", "stub"), ("outcome", outcome)])
    };
    let counts = ["admitted", "refused", "client_left"].map(|outcome| waits("count", outcome));
    assert_eq!(counts.map(|count| count.to_string()), ["1", "1", "1"]);
    assert!((0.3..2.3).contains(&waits("sum", "refused")), "{}", waits("sum", "refused"));
    assert!(waits("sum", "client_left") > 0.0);
    let stub_label = [("registry", "stub")];
    assert_eq!(metrics.count("roadstead_admitted_total", &stub_label), 1);
    assert_eq!(metrics.count("roadstead_connect_seconds_count", &stub_label), 1);
    assert_eq!(metrics.count("roadstead_refused_total", &stub_label), 1);
    assert_eq!(metrics.count("roadstead_outcomes_total", &stub_label), 3);
}

/// The bytes of both directions are counted, and an admission to a kept connection as well as one to a new socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_and_admissions_are_counted() {
    let (stub, sidecar) = stage(1, "").await;
    for _ in 0..2 {
        assert_eq!(get_through(sidecar.proxy(), &url(stub.address()), &[]).await.status(), 200);
        sidecar.until("stub", "idle", 1).await;
    }
    let metrics = sidecar.metrics().await;
    let count = |name: &str, labels: &[(&str, &str)]| metrics.count(name, &[&[("registry", "stub")], labels].concat());
    assert_eq!(count("roadstead_admitted_total", &[]), 2);
    assert_eq!(count("roadstead_connect_seconds_count", &[]), 1);
    assert_eq!(count("roadstead_outcomes_total", &[("outcome", "served")]), 2);
    let heads: usize = stub.seen_requests().iter().map(String::len).sum();
    assert_eq!(count("roadstead_relayed_bytes_total", &[("direction", "up")]), heads as u64);
    assert!(count("roadstead_relayed_bytes_total", &[("direction", "down")]) > 2 * 20);
}
