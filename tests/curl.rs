//! curl through the sidecar to the registry that Harbor runs: what one plain client sees of each kind of request.
//!
//! Contents are put into the registry beforehand and directly; what is asked through the sidecar is compared with
//! them. curl is told its proxy by `-x`, and nothing from this machine's settings.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use roadstead_test_support::real::{DockerRegistry, Nginx, TlsVersion, find_program};
use roadstead_test_support::{Random, Sidecar, config};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Bytes of a blob: many socket buffers.
const BLOB_BYTES: usize = 5 << 20;
/// A request that takes longer has stalled.
const STALLED: &str = "60";

/// A blob asked for in absolute-form arrives as it was stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_by_absolute_form_arrives_byte_for_byte() {
    let stage = Stage::set().await;
    let blob = stage.blob().await;
    let answer = stage.curl(&[&blob.url]).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body == blob.bytes, "{} bytes", answer.body.len());
}

/// A tunnel carries TLS of both versions, and curl sees the registry's own certificate through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_carries_tls_that_the_client_can_verify() {
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let registry = DockerRegistry::start();
        let front = Nginx::tls(registry.address(), "registry.roadstead.test", version);
        let stage = Stage::before(registry, front.address()).await;
        let blob = stage.blob().await;
        let url = format!("https://{}{}", front.address(), blob.path);
        let authority = front.authority().display().to_string();
        let answer = stage.curl(&["--cacert", &authority, &url]).await;
        assert_eq!(answer.status, 200, "{version:?}");
        assert!(answer.body == blob.bytes, "{version:?}");
        assert!(answer.said("* Connected to"), "{}", answer.verbose);
        assert!(answer.said("> CONNECT "), "{}", answer.verbose);
    }
}

/// The answer to HEAD has no body but tells the blob's length.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_head_keeps_its_length() {
    let stage = Stage::set().await;
    let blob = stage.blob().await;
    let answer = stage.curl(&["--head", &blob.url]).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-length"), Some("5242880"));
}

/// A range is asked for and answered as a range: Dragonfly asks for every blob that way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_stays_a_range() {
    let stage = Stage::set().await;
    let blob = stage.blob().await;
    let answer = stage.curl(&["--range", "0-99", &blob.url]).await;
    assert_eq!(answer.status, 206);
    assert_eq!(answer.header("content-range"), Some("bytes 0-99/5242880"));
    assert_eq!(answer.header("content-length"), Some("100"));
    assert_eq!(answer.body, blob.bytes[..100]);
}

/// A client that sends its body only after `100 Continue` gets one, and its upload is stored whole: the registry
/// itself checks the digest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_waits_for_100_continue_is_stored_whole() {
    let stage = Stage::set().await;
    let file = stage.noise_file(7);
    let started = stage.curl(&["--data", "", &stage.uploads()]).await;
    assert_eq!(started.status, 202, "{}", started.verbose);
    let url = upload_url(&started, &digest_of(&file).await);
    let body = file.display().to_string();
    let answer = stage
        .curl(&[
            "--header",
            "Expect: 100-continue",
            // Without an answer curl would send the body unasked, and hide what is tested.
            "--expect100-timeout",
            STALLED,
            "--upload-file",
            &body,
            &url,
        ])
        .await;
    assert_eq!(answer.status, 201, "{}", answer.verbose);
    assert!(answer.said("< HTTP/1.1 100 Continue"), "{}", answer.verbose);
    assert!(!answer.said("Done waiting"), "{}", answer.verbose);

    let stored = format!("{}{}", stage.url(), answer.path_in("location"));
    let answer = stage.curl(&[&stored]).await;
    assert!(answer.body == fs::read(&file).expect("our own file"));
}

/// An upload without a length (chunked, as Go pushes layers) is stored whole, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_of_unknown_length_is_stored_whole() {
    let stage = Stage::set().await;
    let file = stage.noise_file(8);
    let started = stage.curl(&["--data", "", &stage.uploads()]).await;
    let url = upload_url(&started, &digest_of(&file).await);
    let body = file.display().to_string();
    let answer = stage.curl(&["--header", "Transfer-Encoding: chunked", "--upload-file", &body, &url]).await;
    assert!(answer.said("> Transfer-Encoding: chunked"), "{}", answer.verbose);
    assert_eq!(answer.status, 201, "{}", answer.verbose);
}

/// A client of HTTP/1.0 gets the whole answer, and no chunks, which it could not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http_1_0_gets_the_whole_answer() {
    let stage = Stage::set().await;
    let blob = stage.blob().await;
    let answer = stage.curl(&["--http1.0", &blob.url]).await;
    assert!(answer.said("> GET http://"), "{}", answer.verbose);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("transfer-encoding"), None);
    assert!(answer.body == blob.bytes, "{} bytes", answer.body.len());
}

/// An IPv6 literal works as a target, in absolute-form and in a tunnel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ipv6_literal_is_a_target_like_any_other() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        let interfaces = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
        assert!(!interfaces.contains(" lo"), "::1 is there, but not ours to use");
        eprintln!("NOT RUN: targets on ::1: this machine's loopback has no IPv6 address");
        return;
    }
    let registry = DockerRegistry::start_on(Ipv6Addr::LOCALHOST.into());
    let address = registry.address();
    let stage = Stage::before(registry, address).await;
    let blob = stage.blob().await;
    assert!(blob.url.starts_with("http://[::1]:"), "{}", blob.url);
    let plain = stage.curl(&[&blob.url]).await;
    assert!(plain.status == 200 && plain.body == blob.bytes);
    let tunnelled = stage.curl(&["--proxytunnel", &blob.url]).await;
    assert!(tunnelled.status == 200 && tunnelled.body == blob.bytes);
    assert!(tunnelled.said("> CONNECT [::1]:"), "{}", tunnelled.verbose);
}

/// The reason phrase of a refused CONNECT says what happened: it is all that many clients show.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_connect_says_why_in_its_first_line() {
    let stage = Stage::set().await;
    let answer = stage.curl_that_fails(&["https://169.254.169.254/"]).await;
    let line = answer
        .lines()
        .find_map(|line| line.strip_prefix("< HTTP/1.1 403 "))
        .unwrap_or_else(|| panic!("no 403:\n{answer}"))
        .trim();
    assert!(!line.is_empty() && line != "Forbidden", "{line}");
    assert!(line.contains("169.254.169.254"), "{line}");
}

/// Prometheus' own checker has nothing to say about `/metrics`, neither at the start nor after requests of each kind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promtool_has_nothing_to_say_about_the_metrics() {
    let stage = Stage::set().await;
    assert_eq!(promtool(&stage.metrics().await).await, "");
    let blob = stage.blob().await;
    stage.curl(&[&blob.url]).await;
    stage.curl(&["--proxytunnel", &blob.url]).await;
    stage.curl_that_fails(&["https://169.254.169.254/"]).await;
    let metrics = stage.metrics().await;
    let text = String::from_utf8_lossy(&metrics);
    assert!(text.contains(r#"outcome="served""#), "{text}");
    assert_eq!(promtool(&metrics).await, "");
}

/// A registry, a sidecar with a few slots for it, and a folder for files.
struct Stage {
    registry: DockerRegistry,
    sidecar: Sidecar,
    folder: TempDir,
}

/// Something stored in the registry.
struct Blob {
    bytes: Vec<u8>,
    /// Its path in the registry.
    path: String,
    /// Its plain HTTP address.
    url: String,
}

/// The answer that curl got, and its messages.
struct Answer {
    status: u16,
    body: Vec<u8>,
    /// The last head, as it came.
    head: String,
    /// The output of `-v`.
    verbose: String,
}

impl Stage {
    /// A registry on 127.0.0.1.
    async fn set() -> Self {
        let registry = DockerRegistry::start();
        let address = registry.address();
        Self::before(registry, address).await
    }

    /// A sidecar that knows a registry by the address of its front.
    async fn before(registry: DockerRegistry, front: SocketAddr) -> Self {
        let text = format!("[registries.stub]\nhosts = [\"{front}\"]\ncap = 2\nshare = 1\n");
        Self {
            registry,
            sidecar: Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&text)).await,
            folder: TempDir::new().expect("a temporary folder"),
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.registry.address())
    }

    /// Where uploads start.
    fn uploads(&self) -> String {
        format!("{}/v2/team/image/blobs/uploads/", self.url())
    }

    /// Stores a blob, not through the sidecar.
    async fn blob(&self) -> Blob {
        let file = self.noise_file(1);
        let digest = digest_of(&file).await;
        let started = curl(&["--data", "", &self.uploads()]).await;
        let url = upload_url(&started, &digest);
        let stored = curl(&["--upload-file", &file.display().to_string(), &url]).await;
        assert_eq!(stored.status, 201, "{}", stored.verbose);
        let path = format!("/v2/team/image/blobs/{digest}");
        Blob { bytes: fs::read(&file).expect("our own file"), url: format!("{}{path}", self.url()), path }
    }

    /// Writes a file of noise.
    fn noise_file(&self, seed: u64) -> PathBuf {
        let mut noise = Random::new(seed);
        let bytes: Vec<u8> = std::iter::repeat_with(|| noise.draw().to_le_bytes()).flatten().take(BLOB_BYTES).collect();
        let path = self.folder.path().join(format!("noise-{seed}"));
        fs::write(&path, bytes).expect("the folder is ours");
        path
    }

    /// Runs curl through the sidecar.
    async fn curl(&self, arguments: &[&str]) -> Answer {
        let proxy = format!("http://{}", self.sidecar.proxy());
        curl(&[&["--proxy", &proxy], arguments].concat()).await
    }

    /// Runs curl through the sidecar, where it must fail, and hands out what `-v` printed.
    async fn curl_that_fails(&self, arguments: &[&str]) -> String {
        let proxy = format!("http://{}", self.sidecar.proxy());
        let output = run_curl(&[&["--proxy", &proxy], arguments].concat()).await;
        assert!(!output.status.success(), "curl {arguments:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// The metrics as a scraper gets them.
    async fn metrics(&self) -> Vec<u8> {
        curl(&[&format!("http://{}/metrics", self.sidecar.admin())]).await.body
    }
}

impl Answer {
    /// Whether `-v` printed a line that starts so.
    fn said(&self, start: &str) -> bool {
        self.verbose.lines().any(|line| line.starts_with(start))
    }

    /// The value of a header of the last head.
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// The path of the address in a header.
    fn path_in(&self, name: &str) -> String {
        let address = self.header(name).unwrap_or_default();
        let (_, after_scheme) = address.split_once("//").unwrap_or_default();
        let slash = after_scheme.find('/').unwrap_or_else(|| panic!("no path: {address:?}"));
        after_scheme[slash..].to_owned()
    }
}

/// Where the body of a started upload goes, to be stored under `digest`.
fn upload_url(started: &Answer, digest: &str) -> String {
    let place = started.header("location");
    let place = place.unwrap_or_else(|| panic!("no upload was started:\n{}", started.verbose));
    format!("{place}&digest={digest}")
}

/// Runs curl to an answer.
async fn curl(arguments: &[&str]) -> Answer {
    let output = run_curl(arguments).await;
    let verbose = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "curl {arguments:?}:\n{verbose}");
    let head = last_head(&verbose);
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status line:\n{verbose}"));
    Answer { status, body: output.stdout, head, verbose }
}

async fn run_curl(arguments: &[&str]) -> std::process::Output {
    Command::new(find_program("curl"))
        .env_clear()
        .args(["--disable", "--silent", "--show-error", "--verbose"])
        .args(["--globoff", "--max-time", STALLED])
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("curl can be started")
}

/// The last head in what `-v` printed: before it there may be the proxy's answer to CONNECT, or a 100.
fn last_head(verbose: &str) -> String {
    let received: Vec<&str> = verbose.lines().filter_map(|line| line.strip_prefix("< ")).collect();
    let start = received.iter().rposition(|line| line.starts_with("HTTP/"));
    received[start.unwrap_or(0)..].join("\n")
}

/// The digest of a file as registries write it, by openssl.
async fn digest_of(file: &Path) -> String {
    let output = Command::new(find_program("openssl"))
        .args(["dgst", "-sha256", "-r"])
        .arg(file)
        .output()
        .await
        .expect("openssl can be started");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let (digest, _) = printed.split_once(' ').unwrap_or_default();
    assert_eq!(digest.len(), 64, "{printed}");
    format!("sha256:{digest}")
}

/// The complaints of the Prometheus checker about these metrics; empty if there are none.
async fn promtool(metrics: &[u8]) -> String {
    let mut checker = Command::new(find_program("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("promtool can be started");
    let mut input = checker.stdin.take().expect("standard input is piped");
    input.write_all(metrics).await.expect("promtool reads");
    drop(input);
    let output = tokio::time::timeout(Duration::from_secs(60), checker.wait_with_output())
        .await
        .expect("promtool ends")
        .expect("promtool can be waited for");
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    assert!(output.status.success(), "{}: {printed}", output.status);
    printed
}
