//! How many shake hands at once: a server that serves a thousand connections may not survive a thousand new ones.

use std::sync::Arc;
use std::time::Duration;

use roadstead_test_support::{Sidecar, StubRegistry, Wire, config, connect_through, eventually_is};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;

async fn sidecar(stub: &StubRegistry, max_connecting: usize) -> Sidecar {
    let registry = format!(
        "[registries.stub]\nhosts = [\"{}\"]\ncap = 20\nshare = 1\nmax_connecting = {max_connecting}\n",
        stub.address()
    );
    Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await
}

/// The first words of a client's TLS.
fn hello() -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = ServerName::try_from("registry.test").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// A tunnel whose TLS handshake the server has not answered counts as connecting, though its `connect()` is long over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_max_connecting_shake_hands_at_once_in_tunnels() {
    const CLIENTS: usize = 12;
    const AT_ONCE: usize = 3;
    let answers = Arc::new(Semaphore::new(0));
    let stub = StubRegistry::raw({
        let answers = answers.clone();
        move |mut connection| {
            let answers = answers.clone();
            async move {
                let mut scratch = [0; 4096];
                if matches!(connection.read(&mut scratch).await, Ok(1..)) {
                    answers.acquire().await.expect("never closed").forget();
                }
            }
        }
    })
    .await;
    let sidecar = sidecar(&stub, AT_ONCE).await;
    // With the head, so that a busy machine brings no pause between the two.
    let ask = [format!("CONNECT {} HTTP/1.1\r\n\r\n", stub.address()).as_bytes(), &hello()].concat();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Wire::open(sidecar.proxy()).await.unwrap();
        client.send(&ask).await.unwrap();
        clients.push(client);
    }
    let seen = async || {
        let status = sidecar.status().await["registries"]["stub"].clone();
        (status["connecting"].as_u64(), status["waiting"].as_u64(), status["limited_by"].clone())
    };
    let bound = (Some(3), Some(9), "max_connecting".into());
    eventually_is("all others to wait", Duration::from_secs(5), bound, seen).await;
    // A connection stands for the kernel before the stub has accepted it.
    eventually_is("all to stand", Duration::from_secs(5), AT_ONCE, async || stub.open()).await;
    answers.add_permits(CLIENTS);
    for mut client in clients {
        assert_eq!(client.read_answer().await.unwrap().status(), 200);
    }
    assert_eq!(stub.peak(), AT_ONCE, "{CLIENTS} clients");
}

/// A client that opens a tunnel and says nothing shakes no hands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_tunnel_keeps_nobody_from_connecting() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar(&stub, 1).await;
    let mut tunnels = Vec::new();
    for _ in 0..5 {
        tunnels.push(connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.expect("a tunnel"));
    }
    for tunnel in &mut tunnels {
        assert_eq!(tunnel.get("/v2/", &["Host: stub"]).await.unwrap().status(), 200);
    }
    assert_eq!(stub.open(), tunnels.len());
}
