//! A puller made as Dragonfly's dfdaemon is, which wants many more connections than there are slots and parks most of
//! them: its pulls end only if idle tunnels are taken back, and end whole only if no others are.
//!
//! A request that crosses our FIN on the wire is cut, which no proxy can rule out. At the defaults none is here, and it would
//! fail its pull. With pauses far below them it happens, on a busy machine more often: it is counted, printed, and sent again.
//! The registry there works longer on each request than a tunnel lies idle before it is reclaimed. So one that is reclaimed
//! with a request in flight fails that request each time, and its pull.

use std::time::{Duration, Instant};

use roadstead_test_support::real::{DockerRegistry, LoopbackName, Nginx, NginxSettings, OciImage, Skopeo, TlsVersion};
use roadstead_test_support::{
    Load, Peak, Puller, Reclaims, Sidecar, SocketWatch, StubBuilder, StubRegistry, config, scale,
};

const NAME: &str = "registry.test";

/// Not a multiple of what nginx reads at once: the last record of an answer is shorter, as behind a real registry, which
/// sends the head of an answer and the first bytes of its body together.
const PIECE: usize = 500_000;

/// Pauses far below the defaults: many reclaims in a short time. A crossing does not lengthen them.
const QUICK: &str = "idle_after = \"50ms\"\nunused_after = \"100ms\"\nunsure_after = \"2s\"\nlearn = false";
/// For so long the registry works on each request: longer than `idle_after`.
const WORK: Duration = Duration::from_millis(100);

/// As dfdaemon, with smaller pieces.
const MANY: Load = Load { blobs: 8, blobs_at_once: 4, pieces: 16, pieces_at_once: 8, piece: PIECE, again: 4 };
/// Small pieces, where one of many settings is tried.
const SOME: Load = Load { pieces: 90, piece: 20_000, ..FEW };
/// Less of it.
const FEW: Load = Load { blobs: 4, pieces: 8, ..MANY };
/// Many requests for little.
const TINY: Load = Load { blobs: 16, pieces: 100, piece: 20_000, ..MANY };

/// A registry behind nginx, with a sidecar before it.
struct Stage {
    stub: StubRegistry,
    front: Nginx,
    sidecar: Sidecar,
}

impl Stage {
    async fn set(stub: StubBuilder, settings: NginxSettings, slots: usize, reclaim: &str) -> Stage {
        let stub = stub.start().await;
        let front = Nginx::with(stub.address(), NAME, settings);
        let registry = registry(&[&front.address().to_string()], slots, reclaim);
        let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
        Stage { stub, front, sidecar }
    }

    /// A daemon pulls all; prints and hands out what came of it.
    async fn pull(&self, what: &str, load: Load, identity: Option<&[u8]>) -> Pulled {
        let before = Reclaims::of(&self.sidecar.metrics().await);
        let asked_before = self.stub.requests();
        let watch = SocketWatch::start(self.front.address());
        let puller = Puller::new(&self.front, Some(self.sidecar.proxy()), identity, load);
        let began = Instant::now();
        let failed = puller.pull_all().await;
        let took = began.elapsed();
        let metrics = self.sidecar.metrics().await;
        let reclaims = Reclaims::of(&metrics).since(before);
        let cut_in_flight = (self.stub.requests() - asked_before).saturating_sub(load.blobs * (1 + load.pieces));
        let refused = metrics.count("roadstead_refused_total", &[("registry", "stub")]);
        let outcome = Pulled { failed, refused, cut: puller.cut(), reclaims, peak: watch.stop() };
        println!(
            "{what}: {} pulls in {took:.1?}; tunnels taken back: {} unused, {} idle, {} unsure; {} requests cut, {cut_in_flight} \
             after they came to the registry, {} seen to cross; slot efficiency {:.2}",
            load.blobs,
            reclaims.unused,
            reclaims.idle,
            reclaims.unsure,
            outcome.cut,
            reclaims.crossed,
            reclaims.efficiency(),
        );
        outcome
    }
}

/// The result of the pulls.
struct Pulled {
    failed: Vec<String>,
    refused: u64,
    cut: u64,
    reclaims: Reclaims,
    peak: Peak,
}

impl Pulled {
    /// Every byte came, within the slots, and each request had its turn.
    fn assert_whole(&self, slots: usize) {
        assert_eq!((&*self.failed, self.refused), (&[][..], 0), "pulls that failed, and requests that were refused");
        assert!(self.reclaims.all() > 0, "slots did not bind");
        assert!((1..=slots).contains(&self.peak.most), "{:?}", self.peak);
    }
}

fn registry(hosts: &[&str], slots: usize, reclaim: &str) -> String {
    format!(
        "[registries.stub]\nhosts = {hosts:?}\ncap = {slots}\nshare = 1\n\
         [registries.stub.queue]\ntunnel_timeout = \"50s\"\n[registries.stub.reclaim]\n{reclaim}\n"
    )
}

fn stub(load: Load) -> StubBuilder {
    StubRegistry::builder().blob_size(load.blob_size())
}

fn working(load: Load) -> StubBuilder {
    stub(load).answer_delay(WORK)
}

async fn pulls_end_whole(what: &str, settings: NginxSettings, slots: usize, load: Load) -> Pulled {
    let stage = Stage::set(working(load), settings, slots, QUICK).await;
    let pulled = stage.pull(&format!("{what}, {slots} slots"), load, None).await;
    pulled.assert_whole(slots);
    pulled
}

/// At the defaults, as dfdaemon really is: 500 pulls with ten slots and 500 with four in a soak, half of them with TLS 1.3. A
/// request that crosses our FIN fails its pull.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dfdaemons_pulls_never_fail_at_the_defaults() {
    // 64 pulls in CI, fewer where they take longer.
    for (slots, few) in [(10, 24), (4, 8)] {
        let load = Load { blobs: scale(few, 250), ..Load::DFDAEMON };
        for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
            let stage = Stage::set(stub(load), NginxSettings::harbor(version), slots, "").await;
            let pulled = stage.pull(&format!("as dfdaemon, {version:?}, {slots} slots"), load, None).await;
            assert_eq!((pulled.failed, pulled.cut), (Vec::new(), 0), "{:?}", pulled.reclaims);
            assert!(pulled.reclaims.all() > 0, "slots did not bind");
            assert!((1..=slots).contains(&pulled.peak.most), "{:?}", pulled.peak);
        }
    }
}

/// The same with two slots, where more than thirty requests wait for each of them: none waits for longer than a CONNECT may, though
/// the first answers and the first tunnels without a request are held until it is known what they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_dfdaemon_finds_its_turns_on_two_slots() {
    let load = Load { blobs: scale(8, 32), ..Load::DFDAEMON };
    for version in scale(&[TlsVersion::V1_3][..], &[TlsVersion::V1_2, TlsVersion::V1_3]) {
        let stage = Stage::set(stub(load), NginxSettings::harbor(*version), 2, "").await;
        stage.pull(&format!("as dfdaemon, {version:?}, 2 slots"), load, None).await.assert_whole(2);
    }
}

/// With ten slots, TLS 1.2 and Harbor's settings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemons_pulls_end_whole_on_ten_slots() {
    pulls_end_whole("TLS 1.2", NginxSettings::harbor(TlsVersion::V1_2), 10, MANY).await;
}

/// With two slots, where it would want more than sixty connections, and with pieces of its real size. How well the slots are used is printed; the bench judges it, since a busy machine decides it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemons_pulls_end_whole_on_two_slots() {
    let load = Load { piece: Load::DFDAEMON.piece, blobs: 4, ..MANY };
    let stage = Stage::set(working(load), NginxSettings::harbor(TlsVersion::V1_2), 2, QUICK).await;
    stage.pull("2 slots, 4 MiB, at first", Load { pieces: 8, ..load }, None).await.assert_whole(2);
    stage.pull("2 slots, 4 MiB, later", load, None).await.assert_whole(2);
}

/// With a single one. Each pull begins with an answer of one byte, after which the daemon hardly asks again in the same tunnel.
/// That such an answer is whole is known after two: the others do not keep the slot for `unsure_after`. Being of one record, those two
/// must be such that the daemon asked again, and when it does is chance: so the second round is judged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemons_pulls_end_whole_on_one_slot() {
    let load = Load { blobs: 8, blobs_at_once: 8, pieces: 4, ..FEW };
    let stage = Stage::set(working(load), NginxSettings::harbor(TlsVersion::V1_2), 1, QUICK).await;
    stage.pull("1 slot, at first", load, None).await.assert_whole(1);
    let pulled = stage.pull("1 slot, later", load, None).await;
    pulled.assert_whole(1);
    assert!(pulled.reclaims.unsure <= 4, "{:?}", pulled.reclaims);
}

/// Through an nginx that buffers, as it comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemons_pulls_end_whole_through_an_nginx_that_buffers() {
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        pulls_end_whole(&format!("buffering, {version:?}"), NginxSettings::buffering(version), 2, FEW).await;
    }
}

/// Whatever tickets the server sends: in TLS 1.3 they look like answers, and without one no session is resumed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemons_pulls_end_whole_with_any_number_of_tickets() {
    let cases = [(TlsVersion::V1_2, 0..=1), (TlsVersion::V1_3, 0..=2)];
    let mut reclaims = 0;
    for (version, tickets) in
        cases.into_iter().flat_map(|(version, range)| range.map(move |tickets| (version, tickets)))
    {
        let settings = NginxSettings::harbor(version).tickets(tickets);
        let what = format!("{version:?} with {tickets} tickets");
        pulls_end_whole(&what, settings, 2, FEW).await;
        reclaims += pulls_end_whole(&what, settings, 10, SOME).await.reclaims.all();
    }
    assert!(reclaims >= 1000, "only {reclaims}");
}

/// With a certificate of the client's, whose handshake has more records.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemons_pulls_end_whole_with_client_certificates() {
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        for (slots, load) in [(2, FEW), (10, SOME)] {
            let settings = NginxSettings::harbor(version).verifying_clients();
            let stage = Stage::set(working(load), settings, slots, QUICK).await;
            let identity = stage.front.client_identity();
            let what = format!("{version:?} with client certificates, {slots} slots");
            stage.pull(&what, load, Some(&identity)).await.assert_whole(slots);
        }
    }
}

/// A thousand tunnels taken back, and no pull failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_reclaims_fail_no_pull() {
    let pulled = pulls_end_whole("small pieces", NginxSettings::harbor(TlsVersion::V1_2), 10, TINY).await;
    assert!(pulled.reclaims.all() >= 1000, "{:?}", pulled.reclaims);
}

/// A registry that stalls anywhere in its answers, also between head and body, and takes three seconds for the first one
/// about each blob: with the pauses of the defaults, which are above the stalls, nothing is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_stalls_is_waited_for_with_pauses_above_the_stall() {
    let stalling = stub(FEW).first_delay(Duration::from_secs(3)).stall(Duration::from_millis(250));
    let stage = Stage::set(stalling, NginxSettings::harbor(TlsVersion::V1_2), 10, "").await;
    let pulled = stage.pull("stalls below the pauses", Load { again: 0, ..FEW }, None).await;
    pulled.assert_whole(10);
}

/// One slot: a puller that keeps the idle tunnel of its manifest and opens another for a blob has it after about the
/// pause, over real TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_slot_goes_from_an_idle_tunnel_to_the_next_within_the_pause() {
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let stage = Stage::set(stub(FEW), NginxSettings::harbor(version), 1, "unsure_after = \"1s\"").await;
        let one = Load { blobs: 1, pieces: 1, pieces_at_once: 1, piece: FEW.blob_size(), ..FEW };
        // Two daemons: neither may use the other's connections.
        let proxy = Some(stage.sidecar.proxy());
        let [manifest, blob] = [(); 2].map(|()| Puller::new(&stage.front, proxy, None, one));
        assert_eq!(manifest.pull_all().await, [""; 0]);
        let began = Instant::now();
        assert_eq!(blob.pull_all().await, [""; 0]);
        let took = began.elapsed();
        println!("{version:?}: the second puller took {took:.1?}");
        // The idle tunnel of the other, and between its own two requests one more of its own at most.
        assert!(took < Duration::from_secs(4), "{took:?}");
        assert_eq!((manifest.cut(), blob.cut(), stage.stub.peak()), (0, 0, 1));
    }
}

/// A puller written in Go beside it, on the same two slots: it closes what it opened, and gets its turn. It does not send a
/// request again that was the first of its connection, so the pause before that is one that no machine needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_pulls_beside_a_daemon() {
    const SLOTS: usize = 2;
    let name = LoopbackName::new();
    let images = DockerRegistry::start();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = OciImage::make(&folder.path().join("image"), 3, 1 << 20);
    let image_front = Nginx::tls(images.address(), name.name(), TlsVersion::V1_2);
    let stub = stub(FEW).start().await;
    let front = Nginx::tls(stub.address(), NAME, TlsVersion::V1_2);
    let image_host = format!("{}:{}", name.name(), image_front.address().port());
    let pauses = "idle_after = \"100ms\"\nunused_after = \"1s\"\nunsure_after = \"3s\"";
    let registry = registry(&[&front.address().to_string(), &image_host], SLOTS, pauses);
    let sidecar = Sidecar::start(&name.program(env!("CARGO_BIN_EXE_roadstead")), &config(&registry)).await;
    let trusted = image_front.trusted_folder().display().to_string();
    let remote = format!("docker://{image_host}/team/image:latest");
    let skopeo = Skopeo::through(sidecar.proxy());
    skopeo.copy(&["--dest-cert-dir", &trusted], &Skopeo::layout(image.folder()), &remote).await.unwrap();

    let puller = Puller::new(&front, Some(sidecar.proxy()), None, FEW);
    let daemon = tokio::spawn(async move { (puller.pull_all().await, puller.cut()) });
    let mut pulls: usize = 0;
    while !daemon.is_finished() {
        let copy = folder.path().join(format!("copy-{pulls}"));
        skopeo.copy(&["--src-cert-dir", &trusted], &remote, &Skopeo::layout(&copy)).await.unwrap();
        assert!(OciImage::blobs_in(&copy) == OciImage::blobs_in(image.folder()), "other bytes");
        pulls += 1;
    }
    let (failed, cut) = daemon.await.unwrap();
    let reclaims = Reclaims::of(&sidecar.metrics().await);
    println!("{pulls} pulls by skopeo beside a daemon; {cut} of its requests cut; {reclaims:?}");
    assert_eq!(failed, [""; 0], "pulls that failed");
    assert!(pulls > 0 && reclaims.all() > 0, "{pulls} pulls: {reclaims:?}");
}
