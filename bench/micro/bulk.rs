//! What does bulk cost in a tunnel, in CPU time of the proxy itself?
//!
//! One tunnel and eight at once carry a gibibyte from an origin of this program: plain bytes, and TLS records of the two lengths
//! that a Harbor sends. The handshake is a real one; the records after it are noise of the right shape, so neither end
//! spends its time on encryption. Beside it, if it is installed, `haproxy` does the same in mode tcp with splicing.
//! Prints a table; judges nothing.
//!
//! `cargo bench --bench bulk`

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use roadstead_test_support::load::{cpu_seconds, median};
use roadstead_test_support::{Sidecar, config};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

const NAME: &str = "registry.test";
/// Bytes in all tunnels of one row.
const BYTES: usize = 1 << 30;
const GIB: f64 = 1.0;
const TUNNELS: [usize; 2] = [1, 8];
/// Each row is the median of so many.
const ROUNDS: usize = 3;

#[derive(Clone, Copy)]
enum Kind {
    Plain,
    /// TLS, with records of this many bytes after their headers.
    Records(u16),
}

const KINDS: [(&str, Kind); 3] =
    [("plain", Kind::Plain), ("TLS, 16 KiB", Kind::Records(16_401)), ("TLS, 4 KiB", Kind::Records(4_113))];

/// A proxy, and how to reach the origin through it.
struct Proxy {
    name: &'static str,
    pid: u32,
    address: SocketAddr,
    knows_connect: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (server, client) = tls();
    println!("{:<14}{:>8}{:>12}{:>14}{:>10}", "", "tunnels", "proxy", "CPU s/GiB", "GiB/s");
    for (label, kind) in KINDS {
        let origin = origin(kind, server.clone());
        let settings = format!("[registries.stub]\nhosts = [\"{origin}\"]\ncap = 100\nshare = 1\n");
        let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&settings)).await;
        let peer = Peer::start(origin);
        let ours = Proxy { name: "roadstead", pid: sidecar.pid(), address: sidecar.proxy(), knows_connect: true };
        let proxies: Vec<&Proxy> = [&ours].into_iter().chain(peer.as_ref().map(|peer| &peer.proxy)).collect();
        for tunnels in TUNNELS {
            let mut figures = vec![Vec::new(); proxies.len()];
            for _ in 0..ROUNDS {
                for (proxy, figures) in proxies.iter().zip(&mut figures) {
                    figures.push(carry(proxy, origin, kind, &client, tunnels));
                }
            }
            for (proxy, figures) in proxies.iter().zip(figures) {
                let [cpu, rate] = [0, 1].map(|index| median(figures.iter().map(|figure| figure[index]).collect()));
                println!("{label:<14}{tunnels:>8}{:>12}{cpu:>14.2}{rate:>10.2}", proxy.name);
            }
        }
    }
}

/// CPU seconds of the proxy for each GiB, and GiB a second.
fn carry(proxy: &Proxy, origin: SocketAddr, kind: Kind, client: &Arc<ClientConfig>, tunnels: usize) -> [f64; 2] {
    let (before, began) = (cpu_seconds(proxy.pid), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..tunnels {
            scope.spawn(|| pull(proxy, origin, kind, client, BYTES / tunnels));
        }
    });
    [(cpu_seconds(proxy.pid) - before) / GIB, GIB / began.elapsed().as_secs_f64()]
}

fn pull(proxy: &Proxy, origin: SocketAddr, kind: Kind, client: &Arc<ClientConfig>, bytes: usize) {
    let mut stream = TcpStream::connect(proxy.address).expect("the proxy listens");
    if proxy.knows_connect {
        write!(stream, "CONNECT {origin} HTTP/1.1\r\nHost: {origin}\r\n\r\n").expect("the proxy reads");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("an answer");
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
    }
    if let Kind::Records(_) = kind {
        let name = ServerName::try_from(NAME).expect("a name");
        let mut tls = ClientConnection::new(client.clone(), name).expect("a client");
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).expect("a handshake");
        }
    }
    // A request: its size in a record of the right shape.
    stream.write_all(&[&[23, 3, 3, 0, 100][..], &[7; 92], &bytes.to_be_bytes()].concat()).expect("the origin reads");
    let (mut buffer, mut arrived) = (vec![0; 1 << 20], 0);
    while arrived < bytes {
        let length = stream.read(&mut buffer).expect("bulk");
        assert!(length > 0, "only {arrived} of {bytes} bytes arrived");
        arrived += length;
    }
}

/// Sends as many bytes as it is asked for, or a record more.
fn origin(kind: Kind, server: Arc<ServerConfig>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let server = server.clone();
            std::thread::spawn(move || serve(stream, kind, server));
        }
    });
    address
}

/// Whatever fails here is seen by the client.
fn serve(mut stream: TcpStream, kind: Kind, server: Arc<ServerConfig>) -> Option<()> {
    let mut unit = vec![0xA5; 1 << 17];
    if let Kind::Records(length) = kind {
        let mut tls = ServerConnection::new(server).ok()?;
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).ok()?;
        }
        let [high, low] = length.to_be_bytes();
        let record = [&[23, 3, 3, high, low][..], &vec![0xA5; usize::from(length)]].concat();
        unit = record.repeat(unit.len() / record.len());
    }
    let mut asked = [0; 105];
    stream.read_exact(&mut asked).ok()?;
    let mut left = usize::from_be_bytes(asked[97..].try_into().ok()?);
    while left > 0 {
        stream.write_all(&unit).ok()?;
        left = left.saturating_sub(unit.len());
    }
    // The client leaves first.
    stream.read(&mut asked).ok().map(|_| ())
}

fn tls() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let certified = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
    let certificate: CertificateDer<'static> = certified.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a root");
    let server = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key.into());
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    (Arc::new(server.expect("a server")), Arc::new(client))
}

/// `haproxy`, as one would set it up for this.
struct Peer {
    proxy: Proxy,
    process: Child,
    _folder: tempfile::TempDir,
}

impl Peer {
    fn start(origin: SocketAddr) -> Option<Peer> {
        let folder = tempfile::tempdir().ok()?;
        let address = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?;
        let file = folder.path().join("haproxy.cfg");
        let settings = format!(
            "global\n  maxconn 1000\n  nbthread 1\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n  \
             option splice-request\n  option splice-response\nfrontend in\n  bind {address}\n  default_backend out\nbackend out\n  server origin {origin}\n"
        );
        std::fs::write(&file, settings).ok()?;
        let process = Command::new("haproxy").arg("-f").arg(&file).stderr(Stdio::null()).spawn();
        let Ok(process) = process else {
            println!("(haproxy is not installed)");
            return None;
        };
        while TcpStream::connect(address).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let proxy = Proxy { name: "haproxy", pid: process.id(), address, knows_connect: false };
        Some(Peer { proxy, process, _folder: folder })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
