//! TLS from the mirror to the registry: whose certificate is taken, what is shown of ourselves, what is resumed, and what is
//! told when it fails.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use roadstead_test_support::real::{Nginx, NginxSettings, TlsVersion};
use roadstead_test_support::{Response, Sidecar, StubRegistry, Wire, config, eventually_is, get_through};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

const SOON: Duration = Duration::from_secs(10);
/// The name that the certificates have, and that nobody can resolve.
const NAME: &str = "registry.test";

/// A mirror of these nodes, each of which is trusted; `tls` goes into the table of that name.
async fn mirror_of(nodes: &[&Nginx], slots: usize, tls: &str) -> (Sidecar, SocketAddr, TempDir) {
    let folder = TempDir::new().unwrap();
    let trusted = folder.path().join("trusted.pem");
    let authorities = nodes.iter().map(|node| fs::read(node.authority()).unwrap());
    fs::write(&trusted, authorities.collect::<Vec<_>>().concat()).unwrap();
    let urls: Vec<String> = nodes.iter().map(|node| format!("\"https://{}\"", node.address())).collect();
    let (sidecar, mirror) =
        start(&urls.join(", "), slots, &format!("ca_file = \"{}\"\n{tls}", trusted.display())).await;
    (sidecar, mirror, folder)
}

async fn start(urls: &str, slots: usize, tls: &str) -> (Sidecar, SocketAddr) {
    start_with(urls, slots, tls, &[]).await
}

async fn start_with(urls: &str, slots: usize, tls: &str, environment: &[(&str, &str)]) -> (Sidecar, SocketAddr) {
    let text = config(&format!(
        "[registries.stub]\nhosts = [\"{NAME}\"]\ncap = {slots}\nshare = 1\n[registries.stub.tls]\n{tls}\n\
         [registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = [{urls}]\n"
    ));
    let sidecar = Sidecar::start_with(env!("CARGO_BIN_EXE_roadstead"), &text, environment).await;
    let mirror = sidecar.listener("mirror").expect("a line for the mirror's listener");
    (sidecar, mirror)
}

async fn get(mirror: SocketAddr, path: &str) -> Response {
    Wire::open(mirror).await.unwrap().get(path, &[]).await.unwrap()
}

/// Nodes that are listed by address and share the certificate of the name that they have in common.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_by_address_prove_to_be_the_one_that_server_name_tells() {
    let stub = StubRegistry::builder().start().await;
    let node = || Nginx::with(stub.address(), NAME, NginxSettings::harbor(TlsVersion::V1_2).of_its_name_alone());
    let nodes = [node(), node()];
    let (_sidecar, mirror, _folder) = mirror_of(&[&nodes[0], &nodes[1]], 2, "").await;
    let refused = get(mirror, "/v2/").await;
    assert!(refused.status() == 502 && refused.text().contains("certificate"), "{}", refused.text());
    assert_eq!(stub.requests(), 0);

    let (sidecar, mirror, _folder) = mirror_of(&[&nodes[0], &nodes[1]], 2, &format!("server_name = \"{NAME}\"")).await;
    stub.hold();
    let asked: Vec<_> = (0..2).map(|_| tokio::spawn(async move { get(mirror, "/v2/").await.status() })).collect();
    eventually_is("a request by each node", SOON, 2, async || stub.requests()).await;
    stub.release();
    for answer in asked {
        assert_eq!(answer.await.unwrap(), 200);
    }
    // An absolute URL of a node leads to the same node.
    let url = format!("https://{}/v2/absolute", nodes[0].address());
    assert_eq!(get_through(sidecar.proxy(), &url, &[]).await.status(), 404);
    for node in &nodes {
        let log = node.log();
        assert!(log.lines().any(|line| line.contains("\"GET /v2/ ")), "{log}");
        assert!(log.lines().all(|line| line.ends_with(NAME)), "asked for by name: {log}");
    }

    let (_sidecar, mirror, _folder) = mirror_of(&[&nodes[0]], 2, "server_name = \"other.test\"").await;
    assert_eq!(get(mirror, "/v2/").await.status(), 502, "that is not who it is");
}

/// The second connection goes on with the session of the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_resumed() {
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let stub = StubRegistry::builder().start().await;
        let front = Nginx::tls(stub.address(), NAME, version);
        let (_sidecar, mirror, _folder) = mirror_of(&[&front], 2, "").await;
        assert_eq!(get(mirror, "/v2/").await.status(), 200);
        stub.hold();
        let asked: Vec<_> = (0..2).map(|_| tokio::spawn(async move { get(mirror, "/v2/").await.status() })).collect();
        eventually_is("two at once", SOON, 3, async || stub.requests()).await;
        stub.release();
        for answer in asked {
            assert_eq!(answer.await.unwrap(), 200);
        }
        let reused = || {
            let log = front.log();
            let mut reused: Vec<String> =
                log.lines().filter_map(|line| line.split(' ').nth(5).map(str::to_owned)).collect();
            reused.sort();
            reused
        };
        eventually_is("the log", SOON, 3, async || reused().len()).await;
        assert_eq!(reused(), [".", ".", "r"], "{version:?}: {}", front.log());
    }
}

/// A registry that takes only those who show a certificate of its authority.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mirror_shows_its_certificate() {
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let stub = StubRegistry::builder().start().await;
        let front = Nginx::with(stub.address(), NAME, NginxSettings::harbor(version).verifying_clients());
        let (_sidecar, mirror, folder) = mirror_of(&[&front], 2, "").await;
        let refused = get(mirror, "/v2/").await;
        assert_eq!((refused.status(), stub.requests()), (400, 0), "nginx says it in HTTP: {}", refused.text());
        let stranger = Nginx::tls(stub.address(), NAME, version);
        for (of, told, reached) in [(&stranger, 400, 0), (&front, 200, 1)] {
            let file = identity(of, folder.path());
            let tls = format!("client_cert_file = \"{file}\"\nclient_key_file = \"{file}\"");
            let (_sidecar, mirror, _folder) = mirror_of(&[&front], 2, &tls).await;
            assert_eq!((get(mirror, "/v2/").await.status(), stub.requests()), (told, reached), "{version:?}");
        }
    }
}

/// A file with a certificate for us, and its key.
fn identity(front: &Nginx, folder: &Path) -> String {
    let file = folder.join("client.pem");
    fs::write(&file, front.client_identity()).unwrap();
    file.display().to_string()
}

/// A server that ends TLS by an alert, since we show no certificate, or that of another authority: told as what it is, with the
/// cure, and not dialled again. In TLS 1.3 we have sent the request before we hear of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_turned_away_by_an_alert_is_told_so_at_once() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let stub = demanding(version).await;
        let url = format!("\"https://{}\"", stub.address());
        let (_sidecar, mirror) = start(&url, 2, "insecure_skip_verify = true").await;
        let answer = get(mirror, "/v2/").await;
        let text = answer.text();
        let cure = "set tls.client_cert_file and tls.client_key_file";
        assert!(answer.status() == 502 && text.contains("fatal alert") && text.contains(cure), "{version:?}: {text}");
        assert_eq!(stub.accept_log().len(), 1, "{version:?}");
        // The first has the server's own name for its authority, the second has another.
        for identity in [Identity::new("rcgen self signed cert", None, |_| ()), Identity::authority(NAME, None)] {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), pem(&identity.chain[0]) + &identity.key.serialize_pem()).unwrap();
            let shown = format!("client_cert_file = \"{0}\"\nclient_key_file = \"{0}\"", file.path().display());
            let (_sidecar, mirror) = start(&url, 2, &format!("insecure_skip_verify = true\n{shown}")).await;
            let answer = get(mirror, "/v2/").await;
            let text = answer.text();
            let cure = "does not accept the certificate in tls.client_cert_file";
            assert!(answer.status() == 502 && text.contains(cure), "{version:?}: {text}");
        }
    }
}

/// A server that demands a certificate of its clients.
async fn demanding(version: &'static SupportedProtocolVersion) -> StubRegistry {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certified = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let certificate = certified.cert.der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let mut clients = RootCertStore::empty();
    clients.add(certificate.clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(clients), provider.clone()).build().unwrap();
    let settings = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(settings));
    StubRegistry::raw(move |connection| {
        let acceptor = acceptor.clone();
        async move {
            let Err((_, mut connection)) = acceptor.accept(connection).into_fallible().await else { return };
            // Unread bytes at the end would reset the connection, and the alert would be lost.
            let mut rest = [0; 4096];
            while connection.read(&mut rest).await.is_ok_and(|read| read > 0) {}
        }
    })
    .await
}

/// A certificate with its key and, where it was signed by others, theirs.
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
    params: CertificateParams,
}

impl Identity {
    /// For this name, changed by `change`, signed by `issuer` or by itself.
    fn new(name: &str, issuer: Option<&Identity>, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let (mut params, key) = (CertificateParams::new([name.to_owned()]).unwrap(), KeyPair::generate().unwrap());
        change(&mut params);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = match issuer {
            Some(issuer) => params.signed_by(&key, &Issuer::from_params(&issuer.params, &issuer.key)).unwrap(),
            None => params.self_signed(&key).unwrap(),
        };
        let above = issuer.map(|issuer| issuer.chain.clone()).unwrap_or_default();
        Identity { chain: [vec![certificate.der().clone()], above].concat(), key, params }
    }

    /// As `openssl req -x509` makes it.
    fn authority(name: &str, issuer: Option<&Identity>) -> Identity {
        Identity::new(name, issuer, |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))
    }

    fn fingerprint(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.chain[0]);
        digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
    }
}

fn pem(der: &CertificateDer<'_>) -> String {
    let body = BASE64_STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

/// Where a mirror finds the certificates that it trusts.
#[derive(Clone, Copy, Debug)]
enum Trust {
    CaFile,
    SystemRoots,
}

/// The answer of a mirror that trusts these certificates, before a registry that shows this chain.
async fn answer_of(
    shown: &[CertificateDer<'static>],
    key: &KeyPair,
    listed: &[&CertificateDer<'_>],
    trust: Trust,
    tls: &str,
) -> Response {
    let settings = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(shown.to_vec(), PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())))
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(settings));
    let stub = StubRegistry::raw(move |connection| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut connection) = acceptor.accept(connection).await else { return };
            let _ = connection.read(&mut [0; 4096]).await;
            let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            let _ = connection.shutdown().await;
        }
    })
    .await;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), listed.iter().map(|der| pem(der)).collect::<String>()).unwrap();
    let url = format!("\"https://{}\"", stub.address());
    let file = file.path().display().to_string();
    let (ca_file, roots) = match trust {
        Trust::CaFile => (format!("ca_file = \"{file}\"\n"), None),
        Trust::SystemRoots => (String::new(), Some(("SSL_CERT_FILE", file.as_str()))),
    };
    let (_sidecar, mirror) = start_with(&url, 2, &format!("{ca_file}{tls}"), roots.as_slice()).await;
    get(mirror, "/v2/").await
}

/// A certificate that `ca_file` or the system's roots list byte for byte is trusted for its names, and so is one that a listed
/// authority signed, with or without the root. All else is rejected, and the answer says which certificate, which name, and
/// what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listed_certificate_is_trusted_for_what_it_says() {
    let own_name = format!("server_name = \"{NAME}\"");
    let own = Identity::authority(NAME, None);
    let plain = Identity::new(NAME, None, |_| ());
    let stranger = Identity::authority(NAME, None);
    let expired = Identity::new(NAME, None, |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    let root = Identity::authority("root.test", None);
    let middle = Identity::authority("middle.test", Some(&root));
    let leaf = Identity::new(NAME, Some(&middle), |_| ());
    let whole = &leaf.chain[..2];
    for (shown, identity, listed) in [
        (&own.chain[..], &own, vec![&own.chain[0]]),
        (&plain.chain[..], &plain, vec![&plain.chain[0]]),
        (&own.chain[..], &own, vec![&stranger.chain[0], &own.chain[0]]),
        (whole, &leaf, vec![&root.chain[0]]),
        (&leaf.chain[..1], &leaf, vec![&middle.chain[0]]),
        (&leaf.chain[..1], &leaf, vec![&leaf.chain[0]]),
    ] {
        for trust in [Trust::CaFile, Trust::SystemRoots] {
            let answer = answer_of(shown, &identity.key, &listed, trust, &own_name).await;
            assert_eq!(answer.status(), 200, "{trust:?}: {}", answer.text());
        }
    }
    for (shown, identity, listed, name, cure) in [
        (&own.chain[..], &own, &stranger.chain[0], NAME, "is self-signed, add it to tls.ca_file"),
        (&own.chain[..], &own, &own.chain[0], "other.test", "Set tls.server_name to a name in it"),
        (&expired.chain[..], &expired, &expired.chain[0], NAME, "Renew it"),
        (&leaf.chain[..1], &leaf, &root.chain[0], NAME, "Add the authority's certificate, or this one, to tls.ca_file"),
    ] {
        let subject = format!("{} is rejected for {name}: ", identity.fingerprint());
        for trust in [Trust::CaFile, Trust::SystemRoots] {
            let own_name = format!("server_name = \"{name}\"");
            let answer = answer_of(shown, &identity.key, &[listed], trust, &own_name).await;
            let text = answer.text();
            assert!(answer.status() == 502 && text.contains(&subject) && text.contains(cure), "{trust:?}: {text}");
        }
    }
}
