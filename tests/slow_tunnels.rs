//! Registries that are slow behind their TLS: what a tunnel tells of it, and of an answer in the middle of which it was taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use roadstead_test_support::{Sidecar, StubRegistry, config, connect_through, eventually, eventually_is};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const NAME: &str = "registry.test";
const STALL: Duration = Duration::from_millis(400);
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n";
const BODY: &[u8] = &[7; 5000];

const TUNNELS: usize = 12;
const SHORT: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The time before the answer to a commit, and to anything else.
type Pauses = (Duration, Duration);

fn tls(version: &'static SupportedProtocolVersion) -> (TlsConnector, TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[version]).unwrap();
    let server = server.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();
    (Arc::new(client).into(), Arc::new(server).into())
}

/// A registry that stalls between head and body, and goes on whatever its peer does.
async fn stalling_registry(acceptor: TlsAcceptor) -> StubRegistry {
    StubRegistry::raw(move |connection| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut connection) = acceptor.accept(connection).await else { return };
            let mut scratch = [0; 1024];
            while matches!(connection.read(&mut scratch).await, Ok(1..)) {
                let _ = connection.write_all(HEAD).await;
                let _ = connection.flush().await;
                tokio::time::sleep(STALL).await;
                let _ = connection.write_all(BODY).await;
                let _ = connection.flush().await;
            }
        }
    })
    .await
}

/// Asks once; how much of the answer came.
async fn ask(tunnel: &mut TlsStream<TcpStream>) -> usize {
    tunnel.write_all(b"GET /v2/ HTTP/1.1\r\nHost: registry.test\r\n\r\n").await.expect("the tunnel stands");
    let (mut read, mut scratch) = (0, [0; 8192]);
    while read < HEAD.len() + BODY.len() {
        match tunnel.read(&mut scratch).await {
            Ok(length @ 1..) => read += length,
            Ok(0) | Err(_) => break,
        }
    }
    read
}

/// With a pause below the stall the answer is cut; with the default it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_cut_is_no_success() {
    for (version, pause, whole) in [
        (&rustls::version::TLS12, "unsure_after = \"100ms\"", false),
        (&rustls::version::TLS13, "unsure_after = \"100ms\"", false),
        (&rustls::version::TLS12, "", true),
        (&rustls::version::TLS13, "", true),
    ] {
        let (connector, acceptor) = tls(version);
        let stub = stalling_registry(acceptor).await;
        let registry = format!(
            "[registries.stub]\nhosts = [\"{}\"]\ncap = 1\nshare = 1\n[registries.stub.reclaim]\n{pause}\n",
            stub.address()
        );
        let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
        let (proxy, authority) = (sidecar.proxy(), stub.address().to_string());
        let (stream, _) = connect_through(proxy, &authority, &[]).await.expect("a tunnel").into_parts();
        let mut tunnel = connector.connect(ServerName::try_from(NAME).unwrap(), stream).await.expect("TLS");
        // Another client wants the only slot.
        let waiting = tokio::spawn(async move { connect_through(proxy, &authority, &[]).await.expect("a tunnel") });
        let expected = HEAD.len() + if whole { BODY.len() } else { 0 };
        assert_eq!(ask(&mut tunnel).await, expected, "{version:?}, {pause}");
        drop((tunnel, waiting.await.unwrap()));
        let told = async || {
            let metrics = sidecar.metrics().await;
            let cut = metrics.count("roadstead_reclaims_cut_total", &[("registry", "stub"), ("evidence", "unsure")]);
            let failed = [("registry", "stub"), ("outcome", "upstream_failed")];
            (cut, metrics.count("roadstead_outcomes_total", &failed))
        };
        let expected = if whole { (0, 0) } else { (1, 1) };
        eventually_is("the cut to be told", Duration::from_secs(5), expected, told).await;
        assert!(stub.peak() <= 1);
    }
}

/// In plain HTTP nothing can be told from records; what comes after our end is told all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_cut_in_plain_http_is_no_success() {
    let stub = StubRegistry::raw(|mut connection| async move {
        let mut scratch = [0; 1024];
        if matches!(connection.read(&mut scratch).await, Ok(1..)) {
            let _ = connection.write_all(HEAD).await;
            tokio::time::sleep(STALL).await;
            let _ = connection.write_all(BODY).await;
        }
    })
    .await;
    let registry = format!(
        "[registries.stub]\nhosts = [\"{}\"]\ncap = 1\nshare = 1\n[registries.stub.reclaim]\nunsure_after = \"100ms\"\n",
        stub.address()
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
    let (proxy, authority) = (sidecar.proxy(), stub.address().to_string());
    let mut cut = connect_through(proxy, &authority, &[]).await.expect("a tunnel");
    cut.send(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _rival = connect_through(proxy, &authority, &[]).await.expect("a tunnel");
    let told = async || {
        let metrics = sidecar.metrics().await;
        let cut = metrics.count("roadstead_reclaims_cut_total", &[("registry", "stub"), ("evidence", "unsure")]);
        (cut, metrics.count("roadstead_outcomes_total", &[("registry", "stub"), ("outcome", "upstream_failed")]))
    };
    eventually_is("the cut to be told", Duration::from_secs(5), (1, 1), told).await;
}

/// A request that comes after our end has crossed it: it is lost, told as that, and doubles the pauses of its client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_crosses_our_end_is_told_and_doubles_the_pauses() {
    let stub = StubRegistry::builder().start().await;
    let registry = format!(
        "[registries.stub]\nhosts = [\"{}\"]\ncap = 1\nshare = 1\n[registries.stub.reclaim]\nunsure_after = \"700ms\"\n",
        stub.address()
    );
    let mut sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
    let (proxy, authority) = (sidecar.proxy(), stub.address().to_string());
    let mut took = Vec::new();
    for crosses in [true, false] {
        let mut quiet = connect_through(proxy, &authority, &[]).await.expect("a tunnel");
        assert_eq!(quiet.get("/v2/", &["Host: stub"]).await.unwrap().status(), 200);
        let began = Instant::now();
        let waiting = {
            let authority = authority.clone();
            tokio::spawn(async move { connect_through(proxy, &authority, &[]).await.expect("a tunnel") })
        };
        assert_eq!(quiet.receive().await.unwrap(), "", "our end");
        took.push(began.elapsed());
        if crosses {
            quiet.send(b"GET /v2/ HTTP/1.1\r\nHost: stub\r\n\r\n").await.unwrap();
        }
        let crossed = async || {
            let labels = [("registry", "stub"), ("evidence", "unsure")];
            sidecar.metrics().await.count("roadstead_reclaims_crossed_total", &labels)
        };
        eventually_is("the crossing to be told", Duration::from_secs(5), 1, crossed).await;
        drop((quiet, waiting.await.unwrap()));
        sidecar.until("stub", "open", 0).await;
    }
    let (pause, early) = (Duration::from_millis(700), Duration::from_millis(50));
    assert!(took[0] + early >= pause && took[0] < pause * 2, "{took:?}");
    assert!(took[1] + early >= pause * 2, "{took:?}");
    sidecar.terminate();
    sidecar.wait().await;
    let finished = sidecar.finished();
    let ended = |how: &str, outcome: &str| {
        finished.iter().filter(|fields| fields["ended_by"] == how && fields["outcome"] == outcome).count()
    };
    assert_eq!(ended("reclaim_crossed", "upstream_failed"), 1, "{}", sidecar.log_text());
    assert_eq!(ended("reclaim", "served"), 1);
    assert!(sidecar.log_text().contains("a request crossed the end of its tunnel"));
}

/// A registry that answers a commit and anything else after so long.
async fn registry_with_pauses(acceptor: TlsAcceptor, pauses: watch::Receiver<Pauses>) -> StubRegistry {
    StubRegistry::raw(move |connection| {
        let (acceptor, pauses) = (acceptor.clone(), pauses.clone());
        async move {
            let Ok(mut connection) = acceptor.accept(connection).await else { return };
            let mut request = [0; 1024];
            while matches!(connection.read(&mut request).await, Ok(1..)) {
                let (commit, other) = *pauses.borrow();
                tokio::time::sleep(if request.starts_with(b"PUT") { commit } else { other }).await;
                let _ = connection.write_all(SHORT).await;
                let _ = connection.flush().await;
            }
        }
    })
    .await
}

/// Pushes a layer: two short requests and the commit.
async fn push(tunnel: &mut TlsStream<TcpStream>) {
    for request in ["HEAD /v2/a/blobs/sha256:1", "POST /v2/a/blobs/uploads/", "PUT /v2/a/blobs/uploads/1"] {
        let request = format!("{request} HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
        tunnel.write_all(request.as_bytes()).await.expect("the tunnel stands");
        let mut answer = [0; SHORT.len()];
        tunnel.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(answer, SHORT);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_in_tunnels_that_all_became_slow_lower_the_slots_and_long_commits_do_not() {
    let (connector, acceptor) = tls(&rustls::version::TLS13);
    let quick = Duration::from_millis(10);
    let (pauses, watched) = watch::channel((Duration::from_millis(2_500), quick));
    let (stub, pushes) = (registry_with_pauses(acceptor, watched.clone()).await, Arc::new(AtomicUsize::new(0)));
    let sidecar = Sidecar::start(
        env!("CARGO_BIN_EXE_roadstead"),
        &config(&format!(
            "[registries.harbor]\nhosts = [\"{}\"]\ncap = {TUNNELS}\nshare = 1\nadapt.enabled = true\n",
            stub.address()
        )),
    )
    .await;
    let mut clients = Vec::new();
    for _ in 0..TUNNELS {
        let tunnel = connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.expect("a tunnel");
        let name = ServerName::try_from(NAME).unwrap();
        let mut tunnel = connector.connect(name, tunnel.into_parts().0).await.expect("TLS");
        let (watched, pushes) = (watched.clone(), pushes.clone());
        clients.push(tokio::spawn(async move {
            while watched.has_changed().is_ok() {
                push(&mut tunnel).await;
                pushes.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let state = async || sidecar.status().await["registries"]["harbor"].clone();
    let done = async || pushes.load(Ordering::Relaxed) >= 3 * TUNNELS;
    eventually_is("three pushes of each", Duration::from_secs(20), true, done).await;
    let seen = state().await;
    assert_eq!((&seen["slots_in_force"], &seen["distress"]["level"]), (&12.into(), &0.0.into()), "{seen}");

    pauses.send((Duration::from_millis(2_500), Duration::from_millis(2_500))).unwrap();
    eventually("fewer slots in force", Duration::from_secs(45), async || {
        let seen = state().await;
        let is_lower = seen["slots_in_force"].as_u64() < Some(12) && seen["adapt"]["lowered_by"] == "slow_answer";
        if is_lower { Ok(()) } else { Err(seen) }
    })
    .await;
    drop(pauses);
    for client in clients {
        client.await.expect("no tunnel is cut");
    }
}
