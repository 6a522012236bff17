//! The mirror listener, and TLS to the registry: what the registry gets, what the client gets, on which connections.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use roadstead_test_support::http::{Framing, request};
use roadstead_test_support::real::{Nginx, TlsVersion};
use roadstead_test_support::{
    Metrics, Response, Sidecar, SocketWatch, StubHarbor, StubRegistry, Wire, blob_of, config, eventually_is,
    get_through,
};

const BLOB: usize = 200_000;
const SOON: Duration = Duration::from_secs(10);
const BLOB_PATH: &str = "/v2/team/image/blobs/sha256:1";

/// The config of one registry with a mirror on a free port; `more` goes after the mirror's own lines.
fn mirror_config(upstream: &str, slots: usize, more: &str) -> String {
    config(&format!(
        "[registries.stub]\nhosts = [\"registry.test\"]\ncap = {slots}\nshare = 1\n\
         [registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = {upstream}\n{more}\n"
    ))
}

async fn start(config: &str) -> (Sidecar, SocketAddr) {
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), config).await;
    let mirror = sidecar.listener("mirror").expect("a line for the mirror's listener");
    (sidecar, mirror)
}

/// A stub registry and a mirror of it, without TLS.
async fn stage(slots: usize) -> (StubRegistry, Sidecar, SocketAddr) {
    let stub = StubRegistry::builder().blob_size(BLOB).start().await;
    let (sidecar, mirror) = start(&mirror_config(&format!("\"http://{}\"", stub.address()), slots, "")).await;
    (stub, sidecar, mirror)
}

async fn get(address: SocketAddr, path: &str, headers: &[&str]) -> Response {
    Wire::open(address).await.unwrap().get(path, headers).await.unwrap()
}

fn requests(metrics: &Metrics, connection: &str) -> u64 {
    metrics.count("roadstead_requests_total", &[("registry", "stub"), ("connection", connection)])
}

#[tokio::test]
async fn the_registry_is_asked_in_its_own_name() {
    let (stub, _sidecar, mirror) = stage(2).await;
    let answer = get(mirror, &format!("{BLOB_PATH}?ns=registry.test"), &["Host: mirror-host:4130", "X-Mine: 1"]).await;
    assert_eq!((answer.status(), &answer.body), (200, &blob_of(BLOB_PATH, BLOB)));
    let seen = stub.seen_requests().remove(0);
    assert!(seen.starts_with(&format!("GET {BLOB_PATH}?ns=registry.test HTTP/1.1\r\n")), "{seen}");
    assert!(
        seen.contains(&format!("\r\nhost: {}\r\n", stub.address()))
            || seen.contains(&format!("\r\nHost: {}\r\n", stub.address())),
        "{seen}"
    );
    assert!(seen.contains("X-Mine: 1\r\n") && !seen.contains("mirror-host"), "{seen}");
}

#[tokio::test]
async fn ranges_heads_and_uploads_pass_unchanged() {
    let (stub, _sidecar, mirror) = stage(2).await;
    let part = get(mirror, BLOB_PATH, &["Range: bytes=5-9"]).await;
    assert_eq!((part.status(), part.header("Content-Range")), (206, Some(format!("bytes 5-9/{BLOB}").as_str())));
    assert_eq!(part.body, blob_of(BLOB_PATH, BLOB).slice(5..=9));
    let head = Wire::open(mirror).await.unwrap().ask("HEAD", "/v2/team/image/manifests/v1", &[]).await.unwrap();
    assert!(head.header("Docker-Content-Digest").is_some() && head.body.is_empty());
    let mut wire = Wire::open(mirror).await.unwrap();
    for piece in 0..3 {
        let text = request("PATCH", "/v2/team/image/blobs/uploads/1", &["Content-Length: 5"]);
        wire.send(format!("{text}pice{piece}").as_bytes()).await.unwrap();
        let head = wire.read_answer().await.unwrap();
        assert_eq!((head.status(), head.header("Upload-Length")), (202, Some("5")));
        wire.body(Framing::of_answer(&head, "PATCH")).collect().await.unwrap();
    }
    assert_eq!(stub.requests(), 5);
}

#[tokio::test]
async fn challenges_and_locations_lead_back_to_the_mirror() {
    let harbor = StubHarbor::start(&[], 1, 1).await;
    let (_sidecar, mirror) = start(&mirror_config(&format!("\"http://{}\"", harbor.address()), 2, "")).await;
    // In absolute-form the URL decides, as for dfdaemon 0.1.119 to 1.1.17 (RFC 9112, section 3.2.2). A name without a port
    // stands for the port at which it was heard.
    let here = mirror.port();
    for (path, host, base) in [
        ("", "node-7:4130", "node-7:4130".to_owned()),
        ("", "Node-7", format!("node-7:{here}")),
        ("", "localhost", format!("localhost:{here}")),
        ("http://127.0.0.1:9", "127.0.0.1", "127.0.0.1:9".to_owned()),
        ("http://registry.test", "else.test", format!("registry.test:{here}")),
        ("http://localhost", "\u{e4}.test", format!("localhost:{here}")),
    ] {
        let answer = get(mirror, &format!("{path}/v2/app/manifests/v1"), &[&format!("Host: {host}")]).await;
        let expected = format!(
            "Bearer realm=\"http://{base}/service/token\",service=\"harbor-registry\",scope=\"repository:app:pull\""
        );
        assert_eq!(
            (answer.status(), answer.header("Www-Authenticate")),
            (401, Some(expected.as_str())),
            "{path} {host}"
        );
    }

    let stub = StubRegistry::raw(|connection| async move {
        let mut wire = Wire::new(connection);
        while let Ok(Some(head)) = wire.read_head().await {
            let location = head.header("X-Location").unwrap_or_default();
            let answer =
                format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\nLink: <{location}>; rel=next\r\nContent-Length: 0\r\n\r\n");
            wire.send(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let upstream = format!(
        "\"http://{}\"\npublic_urls = [\"https://registry.test\", \"http://{}\"]",
        stub.address(),
        stub.address()
    );
    let (_sidecar, mirror) = start(&mirror_config(&upstream, 2, "")).await;
    let base = format!("http://localhost:{}", mirror.port());
    for (location, expected) in [
        (
            format!("http://{}/v2/a/blobs/uploads/1?_state=x", stub.address()),
            format!("{base}/v2/a/blobs/uploads/1?_state=x"),
        ),
        ("https://registry.test/v2/a".to_owned(), format!("{base}/v2/a")),
        ("/v2/a/blobs/uploads/1".to_owned(), "/v2/a/blobs/uploads/1".to_owned()),
        ("https://storage.test/bucket?X-Sig=1".to_owned(), "https://storage.test/bucket?X-Sig=1".to_owned()),
        ("https://registry.test:9000/bucket".to_owned(), "https://registry.test:9000/bucket".to_owned()),
    ] {
        let answer = get(mirror, "/v2/", &[&format!("X-Location: {location}")]).await;
        assert_eq!(answer.header("Location"), Some(expected.as_str()));
        assert_eq!(answer.header("Link"), Some(format!("<{expected}>; rel=next").as_str()));
    }
    // An http upstream that redirects to https of itself: led back, the client would get the same redirect for ever.
    let itself = format!("http://{}/v2/a?b=c", stub.address());
    let answer = get(mirror, "/v2/a?b=c", &[&format!("X-Location: {itself}")]).await;
    assert_eq!(answer.header("Location"), Some(itself.as_str()));
}

/// The names of `hosts` may be those of other services: without a port they make no public URL.
#[tokio::test]
async fn only_the_public_urls_lead_back() {
    let stub = StubRegistry::raw(|connection| async move {
        let mut wire = Wire::new(connection);
        while let Ok(Some(head)) = wire.read_head().await {
            let realm = head.header("X-Realm").unwrap_or_default();
            let answer = format!(
                "HTTP/1.1 401 Unauthorized\r\nWww-Authenticate: Bearer realm=\"{realm}\",service=\"s\"\r\nContent-Length: 0\r\n\r\n"
            );
            wire.send(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let hosts = "\"registry.test\", \"auth.test\", \"outer.test:30003\", \"*.storage.test:443\"";
    let text = mirror_config(&format!("\"http://{}\"", stub.address()), 2, "").replace("\"registry.test\"", hosts);
    let (_sidecar, mirror) = start(&text).await;
    for (realm, leads_back) in [
        (format!("http://{}/token", stub.address()), true),
        ("https://outer.test:30003/token".to_owned(), true),
        ("https://outer.test/token".to_owned(), false),
        ("https://registry.test/token".to_owned(), false),
        ("https://auth.test/token".to_owned(), false),
        ("https://a.storage.test/token".to_owned(), false),
    ] {
        let answer = get(mirror, "/v2/", &[&format!("X-Realm: {realm}")]).await;
        let led = format!("http://localhost:{}/token", mirror.port());
        let expected = format!("Bearer realm=\"{}\",service=\"s\"", if leads_back { &led } else { &realm });
        assert_eq!(answer.header("Www-Authenticate"), Some(expected.as_str()));
    }
}

#[tokio::test]
async fn with_rewrite_off_nothing_is_led_back() {
    let harbor = StubHarbor::start(&[], 1, 1).await;
    let config = mirror_config(&format!("\"http://{}\"", harbor.address()), 2, "rewrite = false");
    let (_sidecar, mirror) = start(&config).await;
    let answer = get(mirror, "/v2/app/manifests/v1", &[]).await;
    let realm = format!("realm=\"http://{}/service/token\"", harbor.address());
    assert!(answer.header("Www-Authenticate").unwrap().contains(&realm));
}

#[tokio::test]
async fn tls_is_spoken_with_the_registry_by_mirror_and_by_absolute_url() {
    let stub = StubRegistry::builder().blob_size(BLOB).start().await;
    let front = Nginx::tls(stub.address(), "registry.test", TlsVersion::V1_2);
    let tls = format!("[registries.stub.tls]\nca_file = \"{}\"", front.authority().display());
    // With one slot, the second request waits until the connection of the first is kept.
    let (sidecar, mirror) = start(&mirror_config(&format!("\"https://{}\"", front.address()), 1, &tls)).await;
    let answer = get(mirror, BLOB_PATH, &[]).await;
    assert_eq!((answer.status(), &answer.body), (200, &blob_of(BLOB_PATH, BLOB)));
    let answer = get_through(sidecar.proxy(), &format!("https://{}{BLOB_PATH}", front.address()), &[]).await;
    assert_eq!((answer.status(), &answer.body), (200, &blob_of(BLOB_PATH, BLOB)));
    let metrics = sidecar.metrics().await;
    assert_eq!((requests(&metrics, "dialled"), requests(&metrics, "reused")), (1, 1), "both on one connection");
}

#[tokio::test]
async fn a_registry_that_cannot_prove_itself_is_not_talked_to() {
    let stub = StubRegistry::builder().start().await;
    let front = Nginx::tls(stub.address(), "registry.test", TlsVersion::V1_3);
    let (sidecar, mirror) = start(&mirror_config(&format!("\"https://{}\"", front.address()), 2, "")).await;
    let answer = get(mirror, "/v2/", &["Authorization: Basic c2VjcmV0OnNlY3JldA=="]).await;
    assert_eq!(answer.status(), 502);
    let error = &answer.json()["errors"][0];
    assert_eq!(error["detail"]["reason"], "upstream_unreachable");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("TLS with") && message.contains("certificate"), "{message}");
    assert_eq!(stub.requests(), 0, "nothing was sent, and above all no credentials");
    sidecar.until("stub", "open", 0).await;

    let tls = "[registries.stub.tls]\ninsecure_skip_verify = true";
    let (sidecar, mirror) = start(&mirror_config(&format!("\"https://{}\"", front.address()), 2, tls)).await;
    assert_eq!(get(mirror, "/v2/", &[]).await.status(), 200);
    assert!(sidecar.log_text().contains("insecure_skip_verify"), "a warning is logged");
}

#[tokio::test]
async fn a_missing_file_is_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.toml");
    let tls = "[registries.stub.tls]\nca_file = \"/nonexistent/ca.pem\"";
    std::fs::write(&file, mirror_config("\"https://registry.test\"", 2, tls)).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_roadstead"));
    let output = command.arg("--config").arg(&file).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("registries.stub.tls.ca_file: /nonexistent/ca.pem: "), "{error}");
}

/// 50 clients that each ask on a connection of their own, over 8 slots.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_small_requests_take_no_more_dials_than_slots() {
    let stub = StubRegistry::builder().start().await;
    let front = Nginx::tls(stub.address(), "registry.test", TlsVersion::V1_2);
    let tls = format!("[registries.stub.tls]\nca_file = \"{}\"", front.authority().display());
    let (sidecar, mirror) = start(&mirror_config(&format!("\"https://{}\"", front.address()), 8, &tls)).await;
    let watch = SocketWatch::start(front.address());
    let clients = (0..50).map(|client| {
        tokio::spawn(async move {
            let mut wire = Wire::open(mirror).await.unwrap();
            for number in 0..20 {
                let path = format!("/v2/team/image{client}/manifests/{number}");
                assert_eq!(wire.get(&path, &[]).await.unwrap().status(), 200);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let metrics = sidecar.metrics().await;
    let (dialled, reused) = (requests(&metrics, "dialled"), requests(&metrics, "reused"));
    println!("1000 requests: {dialled} on new connections, {reused} on kept ones");
    assert_eq!(dialled + reused, 1000);
    assert!(dialled <= 8, "{dialled} dials");
    assert_eq!(stub.requests(), 1000);
    let peak = watch.stop();
    assert!((1..=8).contains(&peak.most), "{peak:?}");
    // As the registry tells it: a connection, with its handshake, for each port of ours.
    let log = front.log();
    let served: Vec<&str> = log.lines().filter(|line| line.contains("\"GET /v2/")).collect();
    let ports: BTreeSet<&str> = served.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(served.len(), 1000);
    assert!((1..=8).contains(&ports.len()), "{} connections", ports.len());
}

#[tokio::test]
async fn a_connect_at_the_mirror_is_told_where_the_proxy_is() {
    let (_stub, sidecar, mirror) = stage(2).await;
    let answer = Wire::open(mirror).await.unwrap().connect("registry.test:443", &[]).await.unwrap();
    assert_eq!(answer.status(), 400);
    assert!(answer.text().contains("listen.proxy"), "{}", answer.text());
    let answer = get(mirror, "http://elsewhere.test/v2/", &["Host: localhost"]).await;
    assert!(answer.status() == 403 && answer.text().contains("point HTTP_PROXY at listen.proxy"), "{}", answer.text());
    assert_eq!(sidecar.refused("stub", "bad_request").await + sidecar.refused("other_hosts", "bad_request").await, 1);
    let denied = "destination_denied";
    assert_eq!(sidecar.refused("stub", denied).await + sidecar.refused("other_hosts", denied).await, 1);
}

#[tokio::test]
async fn the_clients_of_a_mirror_belong_to_its_class() {
    let stub = StubRegistry::builder().start().await;
    let more = "class = \"bulk\"\n[classes.bulk]\nweight = 2";
    let (sidecar, mirror) = start(&mirror_config(&format!("\"http://{}\"", stub.address()), 2, more)).await;
    assert_eq!(get(mirror, "/v2/", &[]).await.status(), 200);
    let admitted = |class| vec![("registry", "stub"), ("class", class)];
    let metrics = sidecar.metrics().await;
    assert_eq!(metrics.count("roadstead_admitted_total", &admitted("bulk")), 1);
    assert_eq!(metrics.count("roadstead_admitted_total", &admitted("default")), 0);
}

/// A tunnel to the mirror's upstream takes the registry's slots, though only the mirror names that host.
#[tokio::test]
async fn whoever_goes_to_the_upstream_takes_the_registrys_slots() {
    let (stub, sidecar, _mirror) = stage(2).await;
    let answer = get_through(sidecar.proxy(), &format!("http://{}/v2/", stub.address()), &[]).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(requests(&sidecar.metrics().await, "dialled"), 1);
}

/// The registry ends each connection behind its answer, without a word: a push that meets a kept one goes out on a new
/// one, whole. (An end that crosses the push on the wire is another matter: nobody can tell then what was done.)
#[tokio::test]
async fn a_push_never_meets_a_connection_that_has_ended() {
    let (ended, mut end) = tokio::sync::mpsc::unbounded_channel();
    let stub = StubRegistry::raw(move |connection| {
        let ended = ended.clone();
        async move {
            let mut wire = Wire::new(connection);
            let Ok(Some(head)) = wire.read_head().await else { return };
            let body = wire.body(Framing::of_request(&head)).collect().await.unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\nX-Body: {}\r\nContent-Length: 0\r\n\r\n", body.len());
            wire.send(answer.as_bytes()).await.unwrap();
            drop(wire);
            ended.send(()).unwrap();
        }
    })
    .await;
    let (_sidecar, mirror) = start(&mirror_config(&format!("\"http://{}\"", stub.address()), 2, "")).await;
    let mut wire = Wire::open(mirror).await.unwrap();
    for number in 0..200 {
        assert_eq!(wire.get("/v2/", &[]).await.unwrap().status(), 200);
        end.recv().await.unwrap();
        let text = request("PUT", "/v2/team/image/blobs/uploads/1", &["Content-Length: 4"]);
        wire.send(format!("{text}body").as_bytes()).await.unwrap();
        let head = wire.read_answer().await.unwrap();
        assert_eq!((head.status(), head.header("X-Body")), (200, Some("4")), "push {number}");
        end.recv().await.unwrap();
    }
}

/// The registry takes nothing of an upload, and its client leaves: nothing stays behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_a_stalled_upload_takes_its_slot_with_it() {
    let stub = StubRegistry::raw(|connection| async move {
        let mut wire = Wire::new(connection);
        let Ok(Some(_head)) = wire.read_head().await else { return };
        std::future::pending::<()>().await;
    })
    .await;
    let (sidecar, mirror) = start(&mirror_config(&format!("\"http://{}\"", stub.address()), 1, "")).await;
    let mut wire = Wire::open(mirror).await.unwrap();
    let text = request("PATCH", "/v2/team/image/blobs/uploads/1", &["Content-Length: 1000000000"]);
    wire.send(text.as_bytes()).await.unwrap();
    let piece = vec![0; 1 << 20];
    while tokio::time::timeout(std::time::Duration::from_millis(300), wire.send(&piece)).await.is_ok() {}
    assert_eq!(sidecar.count("stub", "active").await, 1);
    wire.reset();
    sidecar.until("stub", "open", 0).await;
}

/// A page in a browser lets its own name lead to this node's loopback: it must not become a client.
#[tokio::test]
async fn a_name_of_the_world_that_leads_here_is_not_answered() {
    let (stub, _sidecar, mirror) = stage(1).await;
    for (host, status) in [("evil.example.com", 403), ("registry.test", 200), ("localhost:4130", 200), ("node-7", 200)]
    {
        assert_eq!(get(mirror, "/v2/", &[&format!("Host: {host}")]).await.status(), status, "{host}");
    }
    assert_eq!(stub.requests(), 3);
}

/// A pattern covers the registry and the storage behind it; only the registry's own names lead back.
#[tokio::test]
async fn a_redirect_to_storage_under_the_same_domain_is_left_alone() {
    let stub = StubRegistry::raw(|connection| async move {
        let mut wire = Wire::new(connection);
        while let Ok(Some(_)) = wire.read_head().await {
            let answer = "HTTP/1.1 307 Temporary Redirect\r\nLocation: https://s3.example.com/x?sig=1\r\nContent-Length: 0\r\n\r\n";
            wire.send(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let config =
        mirror_config(&format!("\"http://{}\"", stub.address()), 1, "").replace("registry.test", "*.example.com");
    let (_sidecar, mirror) = start(&config).await;
    assert_eq!(get(mirror, "/v2/", &[]).await.header("Location"), Some("https://s3.example.com/x?sig=1"));
}

/// A request that makes the registry end the connection is sent on one more, and not on every one that is kept.
#[tokio::test]
async fn a_request_that_kills_its_connection_is_replaced_once() {
    let stub = StubRegistry::raw(|connection| async move {
        let mut wire = Wire::new(connection);
        while let Ok(Some(head)) = wire.read_head().await {
            if head.target() == "/v2/poison" {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let more = "[registries.stub.repair]\nenabled = false";
    let (sidecar, mirror) = start(&mirror_config(&format!("\"http://{}\"", stub.address()), 8, more)).await;
    let asked = (0..8).map(|_| tokio::spawn(async move { get(mirror, "/v2/", &[]).await.status() }));
    for answer in asked.collect::<Vec<_>>() {
        assert_eq!(answer.await.unwrap(), 200);
    }
    sidecar.until("stub", "active", 0).await;
    let kept = sidecar.count("stub", "idle").await;
    assert!(kept > 3, "{kept} kept");
    let sent = requests(&sidecar.metrics().await, "dialled") + requests(&sidecar.metrics().await, "reused");
    assert_eq!(get(mirror, "/v2/poison", &[]).await.status(), 502);
    let again = requests(&sidecar.metrics().await, "dialled") + requests(&sidecar.metrics().await, "reused") - sent;
    assert_eq!(again, 2);
}

/// Slots for each URL: together they are the sum, and neither node ever has more than its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_has_its_own_slots_where_it_says_so() {
    let (one, other) = (StubRegistry::builder().start().await, StubRegistry::builder().start().await);
    one.hold();
    other.hold();
    let urls = format!("[\"http://{}\", \"http://{}\"]", one.address(), other.address());
    let (sidecar, mirror) = start(&mirror_config(&urls, 2, "cap_per_upstream = true")).await;
    assert_eq!(sidecar.count("stub", "slots").await, 4);
    let asked = (0..10).map(|number| {
        tokio::spawn(async move { get(mirror, &format!("/v2/team/image{number}/manifests/1"), &[]).await.status() })
    });
    let asked: Vec<_> = asked.collect();
    sidecar.until("stub", "waiting", 6).await;
    eventually_is("both nodes to be full", SOON, (2, 2), async || (one.open(), other.open())).await;
    one.release();
    other.release();
    for answer in asked {
        assert_eq!(answer.await.unwrap(), 200);
    }
    assert_eq!((one.peak(), other.peak()), (2, 2));
}
