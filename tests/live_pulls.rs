//! No live pull is cut, however slow its client or its registry is: the pauses are the defaults, requests always wait, and a
//! request that is cut fails the test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use roadstead_test_support::http::{Framing, request};
use roadstead_test_support::real::{Nginx, NginxSettings, TlsVersion};
use roadstead_test_support::{Reclaims, Sidecar, StubRegistry, Wire, blob_of, config, connect_through, scale};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const NAME: &str = "registry.test";
const BLOB: usize = 256 * 1024;
const BLOB_PATH: &str = "/v2/app/blobs/sha256:0";
const VERSIONS: [TlsVersion; 2] = [TlsVersion::V1_2, TlsVersion::V1_3];

/// A registry behind one nginx for each version of TLS, and a sidecar before them.
struct Stage {
    stub: StubRegistry,
    fronts: Vec<Nginx>,
    sidecar: Sidecar,
}

/// The way of a client to its registry.
#[derive(Clone)]
struct Way {
    proxy: SocketAddr,
    registry: SocketAddr,
    tls: TlsConnector,
}

impl Stage {
    /// `relayed` are further addresses that lead to a front.
    async fn set(stub: StubRegistry, fronts: Vec<Nginx>, relayed: &[SocketAddr], slots: usize, reclaim: &str) -> Stage {
        let hosts: Vec<String> =
            fronts.iter().map(Nginx::address).chain(relayed.iter().copied()).map(|host| host.to_string()).collect();
        let registry = format!(
            "[registries.stub]\nhosts = {hosts:?}\ncap = {slots}\nshare = 1\n\
             [registries.stub.queue]\ntunnel_timeout = \"10m\"\n[registries.stub.reclaim]\n{reclaim}\n"
        );
        let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
        Stage { stub, fronts, sidecar }
    }

    /// With both versions of TLS, and nothing but them in front of the registry.
    async fn of_blobs(slots: usize, reclaim: &str) -> Stage {
        let stub = StubRegistry::builder().blob_size(BLOB).start().await;
        let fronts = fronts_of(&stub);
        Stage::set(stub, fronts, &[], slots, reclaim).await
    }

    fn way(&self, front: usize) -> Way {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.fronts[front].authority()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        Way {
            proxy: self.sidecar.proxy(),
            registry: self.fronts[front].address(),
            tls: TlsConnector::from(Arc::new(client)),
        }
    }
}

fn fronts_of(stub: &StubRegistry) -> Vec<Nginx> {
    VERSIONS.map(|version| Nginx::with(stub.address(), NAME, NginxSettings::harbor(version))).into()
}

impl Way {
    /// A tunnel with TLS in it, after this time between the `200` and the first byte.
    async fn open(&self, before_hello: Duration) -> Result<Wire<TlsStream<TcpStream>>, String> {
        let tunnel = self.connect().await?;
        sleep(before_hello).await;
        self.shake_hands(tunnel).await
    }

    async fn connect(&self) -> Result<TcpStream, String> {
        let tunnel = connect_through(self.proxy, &self.registry.to_string(), &[]).await;
        Ok(tunnel.map_err(|answer| answer.text())?.into_parts().0)
    }

    async fn shake_hands(&self, tunnel: TcpStream) -> Result<Wire<TlsStream<TcpStream>>, String> {
        let tls = self.tls.connect(ServerName::try_from(NAME).unwrap(), tunnel).await;
        tls.map(Wire::new).map_err(|error| format!("handshake: {error}"))
    }

    /// One pull over a tunnel of its own, with these pauses of the client's.
    async fn pull(&self, before_hello: Duration, before_request: Duration) -> Result<(), String> {
        let mut tunnel = self.open(before_hello).await?;
        sleep(before_request).await;
        get(&mut tunnel, "0 0").await
    }
}

/// Gets a blob, and checks every byte. The stub stalls as the header says.
async fn get(tunnel: &mut Wire<TlsStream<TcpStream>>, stall: &str) -> Result<(), String> {
    let answer = tunnel.get(BLOB_PATH, &["Host: registry.test", &format!("X-Stall: {stall:>16}")]).await;
    let answer = answer.map_err(|error| format!("request: {error}"))?;
    if answer.body == blob_of(BLOB_PATH, BLOB) { Ok(()) } else { Err(format!("{} bytes", answer.body.len())) }
}

/// Looks at the queue for as long as `work` lasts: of so many looks, how often somebody waited.
async fn watching_the_queue<T>(sidecar: &Sidecar, work: impl Future<Output = T>) -> (T, usize, usize) {
    let (looks, waited) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let look = async {
        loop {
            let waiting = sidecar.status().await["registries"]["stub"]["waiting"].as_u64();
            looks.fetch_add(1, Ordering::Relaxed);
            waited.fetch_add(usize::from(waiting > Some(0)), Ordering::Relaxed);
            sleep(Duration::from_millis(50)).await;
        }
    };
    let done = tokio::select! {
        done = work => done,
        () = look => unreachable!("it looks for ever"),
    };
    (done, looks.into_inner(), waited.into_inner())
}

/// Two threads that do nothing but keep both cores busy, until it is dropped.
struct Spinning(Arc<AtomicBool>);

impl Spinning {
    fn start() -> Spinning {
        let over = Arc::new(AtomicBool::new(false));
        for _ in 0..2 {
            let over = over.clone();
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Spinning(over)
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Clients that take their time before the handshake and before their request, beside twelve that do not and leave at once; or
/// beside three that stay until they are sent away, so that slots come free by reclaims. `rounds` times every pause before every
/// other, with both versions of TLS.
async fn slow_clients_beside_quick_ones(slots: usize, stay: bool, rounds: usize) -> Reclaims {
    const PAUSES: [u64; 5] = [5, 50, 90, 300, 900];
    const AT_ONCE: usize = 10;
    let stage = Stage::of_blobs(slots, "").await;
    let pulls: Vec<_> = (0..rounds * 2 * PAUSES.len().pow(2))
        .map(|number| {
            let pause = |nth: usize| Duration::from_millis(PAUSES[number / 2 / nth % PAUSES.len()]);
            (stage.way(number % 2), pause(1), pause(PAUSES.len()))
        })
        .collect();
    let (mut quick, (over, _)) = (JoinSet::new(), watch::channel(false));
    for number in 0..if stay { 3 } else { 12 } {
        let (way, mut over) = (stage.way(number % 2), over.subscribe());
        quick.spawn(async move {
            while !*over.borrow() {
                let mut tunnel = way.open(Duration::ZERO).await?;
                // Twice where it stays, so that its answers are known to be whole.
                for _ in 0..if stay { 2 } else { 1 } {
                    get(&mut tunnel, "0 0").await?;
                }
                tokio::select! {
                    _ = tunnel.receive(), if stay => {}
                    _ = over.wait_for(|over| *over || !stay) => {}
                }
            }
            Ok::<_, String>(())
        });
    }
    let next = Arc::new(AtomicUsize::new(0));
    let pulls = Arc::new(pulls);
    let (ended, mut so_many) = watch::channel(0);
    let mut slow = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (pulls, next, ended) = (pulls.clone(), next.clone(), ended.clone());
        slow.spawn(async move {
            let mut failed = Vec::new();
            // From the beginning again where all have begun, so that as many wait beside the last ones.
            while *ended.borrow() < pulls.len() {
                let (way, hello, request) = &pulls[next.fetch_add(1, Ordering::Relaxed) % pulls.len()];
                let pulled = way.pull(*hello, *request).await;
                failed.extend(pulled.err().map(|why| format!("{hello:?}, {request:?}: {why}")));
                ended.send_modify(|ended| *ended += 1);
            }
            failed
        });
    }
    let all_ended = async { so_many.wait_for(|ended| *ended >= pulls.len()).await.map(drop) };
    let (all_ended, looks, waited) = watching_the_queue(&stage.sidecar, all_ended).await;
    assert!(all_ended.is_ok());
    let failed = slow.join_all().await.concat();
    over.send_replace(true);
    assert_eq!(failed, [""; 0], "of {} pulls on {slots} slots", pulls.len());
    assert!(quick.join_all().await.into_iter().all(|pulled| pulled.is_ok()), "a quick client failed");
    assert!(waited * 10 >= looks * 9, "somebody waited at {waited} of {looks} looks");
    assert!(stage.stub.requests() >= pulls.len());
    let reclaims = Reclaims::of(&stage.sidecar.metrics().await);
    assert!(!stay || reclaims.idle + reclaims.unsure > 0, "{reclaims:?}");
    reclaims
}

/// 2,000 pulls in a soak beside twelve quick clients, half of them while something else keeps the cores busy; and 1,000 beside clients
/// that stay: where slots come free by themselves none is reclaimed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_take_their_time_before_a_request_are_never_cut() {
    for (busy, stay) in [(false, false), (true, false), (true, true)] {
        let _spinning = busy.then(Spinning::start);
        for slots in [2, 4] {
            let reclaims = slow_clients_beside_quick_ones(slots, stay, scale(1, 10)).await;
            println!("{slots} slots, other work: {busy}, others stay: {stay}: {reclaims:?}");
        }
    }
}

/// Tunnels that were parked in the pause before their handshake serve all the same, when all of their clients speak at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_are_parked_before_their_handshake_are_never_cut() {
    let stage = Stage::of_blobs(2, "idle_after = \"60ms\"").await;
    for _ in 0..scale(2, 20) {
        let (speak, _) = watch::channel(false);
        let mut pulls = JoinSet::new();
        for number in 0..12 {
            let (way, mut told) = (stage.way(number % 2), speak.subscribe());
            pulls.spawn(async move {
                let tunnel = way.connect().await?;
                told.wait_for(|speak| *speak).await.map_err(|error| error.to_string())?;
                get(&mut way.shake_hands(tunnel).await?, "0 0").await
            });
        }
        stage.sidecar.until("stub", "parked", 10).await;
        speak.send_replace(true);
        let failed: Vec<_> = pulls.join_all().await.into_iter().filter_map(Result::err).collect();
        assert_eq!(failed, [""; 0], "of 12");
    }
}

/// Clients that never ask twice in a tunnel, and stay: the first two answers of a length are believed whole after `unsure_after`, and
/// a third, which lies quiet before the second is known to be; the next ones after `unused_after`. A cold dfdaemon at one slot would
/// wait longer for its turn than a CONNECT may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_stayed_silent_teach_their_length() {
    let stage = Stage::of_blobs(1, "idle_after = \"50ms\"\nunused_after = \"50ms\"\nunsure_after = \"1s\"").await;
    let mut stay = Vec::new();
    for _ in 0..7 {
        let mut tunnel = stage.way(1).open(Duration::ZERO).await.unwrap();
        get(&mut tunnel, "0 0").await.unwrap();
        stay.push(tunnel);
    }
    // Two of each kind are unsure; where nginx puts the head into a record of its own, it is another kind.
    let Reclaims { unsure, idle, crossed, cut, .. } = Reclaims::of(&stage.sidecar.metrics().await);
    assert_eq!((unsure + idle, crossed + cut), (6, 0));
    assert!((2..=4).contains(&unsure), "{unsure}");
}

/// A client that has not read its answer is busy, and not idle: it may ask as soon as it has. Its tunnel is not taken, though it is
/// quiet for much longer than the pause, the answer is known to be whole, and a request waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_yet_to_read_its_answer_is_not_idle() {
    for version in 0..VERSIONS.len() {
        let stage = Stage::of_blobs(1, "idle_after = \"50ms\"\nunused_after = \"50ms\"").await;
        let mut busy = stage.way(version).open(Duration::ZERO).await.unwrap();
        for _ in 0..BEFORE {
            busy.get("/v2/", &["Host: registry.test"]).await.unwrap();
        }
        busy.send(request("GET", "/v2/", &["Host: registry.test"]).as_bytes()).await.unwrap();
        let way = stage.way(version);
        let mut waits = tokio::spawn(async move { way.pull(Duration::ZERO, Duration::ZERO).await });
        assert!(timeout(Duration::from_millis(1500), &mut waits).await.is_err(), "it took the slot");
        let head = busy.read_answer().await.unwrap();
        busy.body(Framing::of_answer(&head, "GET")).collect().await.unwrap();
        busy.get("/v2/", &["Host: registry.test"]).await.unwrap();
        assert_eq!(waits.await.unwrap(), Ok(()), "it gets the slot once the other one is idle");
        let reclaims = Reclaims::of(&stage.sidecar.metrics().await);
        assert_eq!((reclaims.idle, reclaims.all()), (1, 1), "{reclaims:?}");
    }
}

/// Answers with one byte, in one record with their head, teach how long they are. Where the head of a longer one comes alone, and its
/// body stalls, that head looks the same: it is waited for, longer than for the next request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_whose_body_stalls_is_not_taken_for_a_short_answer() {
    for version in 0..VERSIONS.len() {
        let stage = Stage::of_blobs(1, "").await;
        let mut tunnel = stage.way(version).open(Duration::ZERO).await.unwrap();
        let way = stage.way(version);
        let waits = async {
            sleep(Duration::from_millis(50)).await;
            way.pull(Duration::ZERO, Duration::ZERO).await
        };
        let download = async {
            for (range, stall) in [("0-0", "0 0"); 4].into_iter().chain([("0-99999", "head 2000")]) {
                let ask = [
                    "Host: registry.test".to_owned(),
                    format!("Range: bytes={range}"),
                    format!("X-Stall: {stall:>16}"),
                ];
                let answer = tunnel.get(BLOB_PATH, &ask.each_ref().map(String::as_str)).await.unwrap();
                let last: usize = range[2..].parse().unwrap();
                assert_eq!(answer.body.len(), last + 1);
            }
            drop(tunnel);
        };
        let (waited, ()) = tokio::join!(waits, download);
        assert_eq!(waited, Ok(()));
    }
}

/// A connection to `to` whose answers stop for so long in the middle of a record, once.
async fn relay_that_stalls(to: SocketAddr, lasts: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(to).await.unwrap();
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move {
                // Not in the handshake, and not in an answer before the last.
                let mut records = 0;
                let mut record = Vec::new();
                loop {
                    record.resize(5, 0);
                    from_server.read_exact(&mut record).await?;
                    record.resize(5 + usize::from(u16::from_be_bytes([record[3], record[4]])), 0);
                    from_server.read_exact(&mut record[5..]).await?;
                    records += 1;
                    let half = record.len() / 2;
                    to_client.write_all(&record[..half]).await?;
                    if records == STALLING_RECORD {
                        sleep(lasts).await;
                    }
                    to_client.write_all(&record[half..]).await?;
                }
                #[expect(unreachable_code, reason = "it tells the type")]
                Ok::<_, std::io::Error>(())
            });
        }
    });
    address
}

/// Some record of the last answer.
const STALLING_RECORD: usize = 3 * BLOB / 4096 + 20;

/// Answers before the one that stalls: those of the same size that ended have taught their length.
const BEFORE: usize = 3;

/// Downloads stall at short records, at full ones, in the middle of one, and before their first byte. The length of a whole
/// answer is known by then, and requests wait all the time: no slot comes free by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_that_stall_are_never_cut() {
    let stub = StubRegistry::builder().blob_size(BLOB).start().await;
    let fronts = fronts_of(&stub);
    // Before which byte of the answer, and for how many milliseconds. nginx reads 4,096 bytes at once.
    let (short, full) = (20 * 4096 + 1234, 20 * 4096);
    let mut stalls: Vec<(usize, u64)> = [200, 400, 600].map(|lasts| (short, lasts)).into();
    stalls.extend([(short, 1000), (full, 300), (full, 1000), (full, 5000), (0, 2000), (0, 10_000)]);
    stalls.extend(scale(None, Some((0, 60_000))));
    let mut relays = Vec::new();
    for (number, front) in fronts.iter().enumerate() {
        for lasts in [1, 5].map(Duration::from_secs) {
            relays.push((number, relay_that_stalls(front.address(), lasts).await));
        }
    }
    let relayed: Vec<_> = relays.iter().map(|(_, relay)| *relay).collect();
    let slots = 2 * stalls.len() + relays.len();
    let stage = Stage::set(stub, fronts, &relayed, slots, "").await;
    let plain = stalls.iter().flat_map(|stall| [(stage.way(0), *stall), (stage.way(1), *stall)]);
    let middle = relays.iter().map(|(front, relay)| (Way { registry: *relay, ..stage.way(*front) }, (0, 0)));
    let (mut downloads, left) = (JoinSet::new(), Arc::new(AtomicUsize::new(slots)));
    for (way, (before, lasts)) in plain.chain(middle) {
        let mut tunnel = way.open(Duration::ZERO).await.unwrap();
        let left = left.clone();
        downloads.spawn(async move {
            for _ in 0..BEFORE {
                get(&mut tunnel, "0 0").await?;
            }
            let stalled = get(&mut tunnel, &format!("{before} {lasts}")).await;
            left.fetch_sub(1, Ordering::Relaxed);
            stalled.map_err(|why| format!("before byte {before}, {lasts} ms: {why}"))?;
            while left.load(Ordering::Relaxed) > 0 {
                sleep(Duration::from_millis(100)).await;
                get(&mut tunnel, "0 0").await?;
            }
            Ok::<_, String>(())
        });
    }
    let way = stage.way(0);
    let waits = tokio::spawn(async move { way.pull(Duration::ZERO, Duration::ZERO).await });
    let (downloaded, looks, waited) = watching_the_queue(&stage.sidecar, downloads.join_all()).await;
    let failed: Vec<_> = downloaded.into_iter().filter_map(Result::err).collect();
    assert_eq!(failed, [""; 0], "of {slots}");
    assert!(waited * 10 >= looks * 9, "somebody waited at {waited} of {looks} looks");
    assert_eq!(waits.await.unwrap(), Ok(()));
}
