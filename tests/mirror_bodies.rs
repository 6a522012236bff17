//! Bodies at the mirror: what the registry sends and takes passes as it is, however it is framed, and in constant memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use roadstead_test_support::http::{Framing, Head, request};
use roadstead_test_support::real::{Nginx, TlsVersion};
use roadstead_test_support::{
    Random, Response, Sidecar, StubConnection, StubRegistry, Wire, config, digest_of, eventually, scale,
};
use tokio::sync::mpsc;

/// Bodies that stream at once.
const STREAMS: u64 = 8;
/// The size of each of them in a soak.
const STREAM_BYTES: u64 = 2 << 30;
/// Their size in CI, and always through TLS and as uploads: enough to see memory that grows with the bytes.
const LESS_BYTES: u64 = 256 << 20;
/// How much memory may grow while they stream, in KiB. All eight of `LESS_BYTES` are 2 GiB: a leak of one byte in 2,000 is
/// more.
const GROWTH: u64 = 1024;
/// For each part of it.
const PATIENCE: Duration = Duration::from_secs(90);

async fn mirror_of(upstream: SocketAddr) -> (Sidecar, SocketAddr) {
    mirror_at(&format!("http://{upstream}"), "").await
}

/// A mirror of what is at this URL; `more` is a table.
async fn mirror_at(url: &str, more: &str) -> (Sidecar, SocketAddr) {
    let table = format!(
        "[registries.stub]\nhosts = [\"registry.test\"]\ncap = {STREAMS}\nshare = 1\n\
         [registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"{url}\"\n{more}"
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&table)).await;
    let mirror = sidecar.listener("mirror").expect("a line for the mirror's listener");
    (sidecar, mirror)
}

/// A registry that gives these bytes to each request, and shows its heads and bodies. With `then_close` the end of the
/// connection ends the answer.
async fn saying(words: Vec<u8>, then_close: bool) -> (StubRegistry, mpsc::UnboundedReceiver<(Head, bytes::Bytes)>) {
    let (seen, shown) = mpsc::unbounded_channel();
    let words = Arc::new(words);
    let stub = StubRegistry::raw(move |connection: StubConnection| {
        let (seen, words) = (seen.clone(), words.clone());
        async move {
            let mut wire = Wire::new(connection);
            while let Ok(Some(head)) = wire.read_head().await {
                let Ok(body) = wire.body(Framing::of_request(&head)).collect().await else { return };
                // A test that does not look at them drops the receiver.
                let _ = seen.send((head, body));
                if wire.send(&words).await.is_err() || then_close {
                    return;
                }
            }
        }
    })
    .await;
    (stub, shown)
}

/// The answer of the mirror when the registry answers this request so.
async fn relayed(words: &[u8], then_close: bool, method: &str, headers: &[&str]) -> Response {
    let (stub, _seen) = saying(words.to_vec(), then_close).await;
    let (_sidecar, mirror) = mirror_of(stub.address()).await;
    Wire::open(mirror).await.unwrap().ask(method, "/v2/team/image/blobs/sha256:1", headers).await.unwrap()
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    std::iter::repeat_with(|| random.draw().to_le_bytes()).flatten().take(length).collect()
}

#[tokio::test]
async fn each_method_reaches_the_registry_with_its_path_and_body() {
    let (stub, mut seen) = saying(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n".to_vec(), false).await;
    let (_sidecar, mirror) = mirror_of(stub.address()).await;
    let mut wire = Wire::open(mirror).await.unwrap();
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let body: &[u8] = if ["POST", "PUT", "PATCH"].contains(&method) { b"some bytes" } else { b"" };
        let length = format!("Content-Length: {}", body.len());
        let target = "/v2/a%2Fb/blobs/uploads/?x=%20y&z";
        wire.send(&[request(method, target, &[&length]).as_bytes(), body].concat()).await.unwrap();
        assert_eq!(wire.read_answer().await.unwrap().status(), 202, "{method}");
        let (head, received) = seen.recv().await.unwrap();
        assert_eq!((head.method(), head.target(), &received[..]), (method, target, body));
    }
}

#[tokio::test]
async fn a_length_stays_a_length() {
    let body = noise(1, 100_000);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let answer = relayed(&[head.as_bytes(), &body].concat(), false, "GET", &[]).await;
    assert_eq!((answer.header("Content-Length"), answer.header("Transfer-Encoding")), (Some("100000"), None));
    assert!(answer.body == body);
}

#[tokio::test]
async fn chunks_stay_chunks() {
    let words = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n";
    let answer = relayed(words, false, "GET", &[]).await;
    assert_eq!((answer.header("Content-Length"), answer.header("Transfer-Encoding")), (None, Some("chunked")));
    assert_eq!(answer.body, "abcdefg");
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_comes_whole() {
    let body = noise(2, 300_000);
    let words = [b"HTTP/1.1 200 OK\r\nX-Kept: 1\r\n\r\n", &body[..]].concat();
    let answer = relayed(&words, true, "GET", &[]).await;
    assert_eq!((answer.header("Content-Length"), answer.header("X-Kept")), (None, Some("1")));
    // Its end is told, so that a body that was cut cannot be taken for a whole one.
    assert_eq!(answer.header("Transfer-Encoding"), Some("chunked"));
    assert!(answer.body == body, "{} bytes", answer.body.len());
}

#[tokio::test]
async fn a_head_tells_the_length_that_a_get_would_have() {
    let words = b"HTTP/1.1 200 OK\r\nContent-Length: 123456789012\r\nDocker-Content-Digest: sha256:1\r\n\r\n";
    let answer = relayed(words, false, "HEAD", &[]).await;
    assert_eq!(answer.header("Content-Length"), Some("123456789012"));
    assert_eq!(answer.header("Docker-Content-Digest"), Some("sha256:1"));
}

#[tokio::test]
async fn a_part_keeps_its_status_and_place() {
    let words = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-0/9\r\nAccept-Ranges: bytes\r\n\
        ETag: \"sha256:1\"\r\nContent-Length: 1\r\n\r\nx";
    let answer = relayed(words, false, "GET", &["Range: bytes=0-0"]).await;
    assert_eq!((answer.status(), answer.reason()), (206, "Partial Content"));
    assert_eq!(answer.header("Content-Range"), Some("bytes 0-0/9"));
    assert_eq!((answer.header("Accept-Ranges"), answer.header("ETag")), (Some("bytes"), Some("\"sha256:1\"")));
    let words = b"HTTP/1.1 416 Range Not Satisfiable\r\nRange: 0-4\r\nContent-Length: 0\r\n\r\n";
    let answer = relayed(words, false, "PATCH", &["Content-Range: 9-12", "Content-Length: 0"]).await;
    assert_eq!((answer.status(), answer.header("Range")), (416, Some("0-4")));
}

/// Nothing is opened, also what is no gzip at all.
#[tokio::test]
async fn compressed_bodies_are_not_touched() {
    let body = noise(3, 5000);
    for coding in ["gzip", "zstd"] {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {}\r\n\r\n", body.len());
        let answer = relayed(&[head.as_bytes(), &body].concat(), false, "GET", &["Accept-Encoding: gzip"]).await;
        assert_eq!((answer.header("Content-Encoding"), answer.header("Content-Length")), (Some(coding), Some("5000")));
        assert!(answer.body == body);
    }
    let (stub, mut seen) = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(), false).await;
    let (_sidecar, mirror) = mirror_of(stub.address()).await;
    for (accepts, expected) in [(&["Accept-Encoding: identity"][..], Some("identity")), (&[], None)] {
        Wire::open(mirror).await.unwrap().get("/v2/", accepts).await.unwrap();
        let (head, _) = seen.recv().await.unwrap();
        assert_eq!(head.header("Accept-Encoding"), expected, "what the client can read is its own word");
    }
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let words = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Checksum\r\n\r\n3\r\nabc\r\n0\r\n\
        X-Checksum: down\r\n\r\n";
    let (uploaded, mut uploads) = mpsc::unbounded_channel();
    let stub = StubRegistry::raw(move |connection| {
        let uploaded = uploaded.clone();
        async move {
            let mut wire = Wire::new(connection);
            let text = read_until(&mut wire, "x-checksum: up\r\n\r\n").await;
            uploaded.send(text).unwrap();
            wire.send(words).await.unwrap();
        }
    })
    .await;
    let (_sidecar, mirror) = mirror_of(stub.address()).await;
    let mut wire = Wire::open(mirror).await.unwrap();
    let headers = ["Transfer-Encoding: chunked", "Trailer: X-Checksum", "TE: trailers"];
    let head = request("PUT", "/v2/team/image/blobs/uploads/1", &headers);
    wire.send(format!("{head}4\r\nbody\r\n0\r\nX-Checksum: up\r\n\r\n").as_bytes()).await.unwrap();
    let answer = read_until(&mut wire, "x-checksum: down\r\n\r\n").await;
    assert!(answer.contains("trailer: x-checksum\r\n"), "{answer}");
    let upload = uploads.recv().await.unwrap();
    assert!(upload.contains("\r\nbody\r\n") && upload.contains("transfer-encoding: chunked\r\n"), "{upload}");
}

/// Reads until the text ends so, in small letters.
async fn read_until<S>(wire: &mut Wire<S>, end: &str) -> String
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut text = String::new();
    while !text.ends_with(end) {
        let piece = tokio::time::timeout(Duration::from_secs(10), wire.receive()).await;
        let piece = piece.unwrap_or_else(|_| panic!("{end:?} does not come: {text}")).unwrap();
        assert!(!piece.is_empty(), "the end instead of {end:?}: {text}");
        text.push_str(&String::from_utf8_lossy(&piece).to_ascii_lowercase());
    }
    text
}

/// 16 requests of 1 MiB each, with a length or in chunks that do not fit any buffer: in their order, to the last byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_of_16_mib_keeps_its_order_and_its_digest() {
    const PIECE: usize = 1 << 20;
    let (stub, mut seen) = saying(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n".to_vec(), false).await;
    let (_sidecar, mirror) = mirror_of(stub.address()).await;
    let blob = noise(4, 16 * PIECE);
    let mut wire = Wire::open(mirror).await.unwrap();
    let mut arrived = Vec::new();
    for (number, piece) in blob.chunks(PIECE).enumerate() {
        let range = format!("Content-Range: {}-{}", number * PIECE, (number + 1) * PIECE - 1);
        let is_chunked = number % 2 == 1;
        let framing = if is_chunked { "Transfer-Encoding: chunked" } else { "Content-Length: 1048576" };
        wire.send(request("PATCH", "/v2/team/image/blobs/uploads/1", &[&range, framing]).as_bytes()).await.unwrap();
        if is_chunked {
            for part in piece.chunks(40_009) {
                let chunk = [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
                wire.send(&chunk).await.unwrap();
            }
            wire.send(b"0\r\n\r\n").await.unwrap();
        } else {
            wire.send(piece).await.unwrap();
        }
        assert_eq!(wire.read_answer().await.unwrap().status(), 202);
        let (head, body) = seen.recv().await.unwrap();
        assert_eq!(head.header("Content-Range"), range.strip_prefix("Content-Range: "));
        assert_eq!(head.header("Content-Length").is_none(), is_chunked, "{}", head.raw());
        assert_eq!(head.lists("Transfer-Encoding", "chunked"), is_chunked, "{}", head.raw());
        arrived.extend_from_slice(&body);
    }
    assert_eq!(digest_of(&arrived), digest_of(&blob));
}

/// Eight large bodies at once, made by the registry and thrown away by the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_flat_while_large_bodies_stream() {
    let bytes = scale(LESS_BYTES, STREAM_BYTES);
    let stub = pouring(bytes).await;
    let (sidecar, mirror) = mirror_of(stub.address()).await;
    assert_flat(&sidecar, bytes, |number, arrived| download(mirror, number, bytes, arrived)).await;
    assert_eq!(stub.peak(), usize::try_from(STREAMS).unwrap(), "all at once");
}

/// The same through TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_flat_while_large_bodies_stream_through_tls() {
    let stub = pouring(LESS_BYTES).await;
    let front = Nginx::tls(stub.address(), "registry.test", TlsVersion::V1_2);
    let tls = format!("[registries.stub.tls]\nca_file = \"{}\"\n", front.authority().display());
    let (sidecar, mirror) = mirror_at(&format!("https://{}", front.address()), &tls).await;
    assert_flat(&sidecar, LESS_BYTES, |number, arrived| download(mirror, number, LESS_BYTES, arrived)).await;
}

/// The same the other way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_flat_while_large_uploads_stream() {
    let stub = StubRegistry::raw(|connection| async move {
        let mut wire = Wire::new(connection);
        while let Ok(Some(head)) = wire.read_head().await {
            let mut body = wire.body(Framing::of_request(&head));
            while body.next().await.is_ok_and(|piece| piece.is_some()) {}
            if wire.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").await.is_err() {
                return;
            }
        }
    })
    .await;
    let (sidecar, mirror) = mirror_of(stub.address()).await;
    assert_flat(&sidecar, LESS_BYTES, |number, sent| upload(mirror, number, LESS_BYTES, sent)).await;
    assert_eq!(stub.peak(), usize::try_from(STREAMS).unwrap(), "all at once");
}

/// A registry whose every blob is that many zeros.
async fn pouring(bytes: u64) -> StubRegistry {
    StubRegistry::raw(move |connection| async move {
        let mut wire = Wire::new(connection);
        let zeros = vec![0; 256 * 1024];
        while let Ok(Some(_)) = wire.read_head().await {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
            if wire.send(head.as_bytes()).await.is_err() {
                return;
            }
            for _ in 0..bytes / zeros.len() as u64 {
                if wire.send(&zeros).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// Runs all streams, each of so many bytes, which count what they moved: the sidecar is never larger, up to the end, than
/// it was in the first quarter, when all of them flowed.
async fn assert_flat<Stream>(sidecar: &Sidecar, bytes: u64, stream: impl Fn(usize, Moved) -> Stream)
where
    Stream: Future<Output = ()> + Send + 'static,
{
    let moved: Moved = Arc::new((0..STREAMS).map(|_| AtomicU64::new(0)).collect());
    let began = Instant::now();
    let streams: Vec<_> = (0..moved.len()).map(|number| tokio::spawn(stream(number, moved.clone()))).collect();
    let fewest = || moved.iter().map(|bytes| bytes.load(Ordering::Relaxed)).min().unwrap();
    let most_until = async |bytes| {
        let mut most = 0;
        eventually("the bodies to flow", PATIENCE, async || {
            most = most.max(sidecar.rss_kib());
            if fewest() >= bytes { Ok(()) } else { Err(fewest()) }
        })
        .await;
        most
    };
    // All of them flow before memory is measured.
    most_until(bytes / 32).await;
    let warm = most_until(bytes / 4).await;
    let rest = most_until(bytes).await;
    for stream in streams {
        stream.await.unwrap();
    }
    println!("{STREAMS} bodies of {bytes} bytes in {:.1?}: at most {warm} KiB, then {rest}", began.elapsed());
    assert!(rest < warm + GROWTH, "at most {warm} KiB in the first quarter, then {rest}");
}

/// Bytes of each stream.
type Moved = Arc<Vec<AtomicU64>>;

/// Gets one body and throws it away.
async fn download(mirror: SocketAddr, number: usize, bytes: u64, arrived: Moved) {
    let mut wire = Wire::open(mirror).await.unwrap();
    wire.send(request("GET", &format!("/v2/team/image/blobs/sha256:{number}"), &[]).as_bytes()).await.unwrap();
    let head = wire.read_answer().await.unwrap();
    assert_eq!((head.status(), head.header("Content-Length")), (200, Some(bytes.to_string().as_str())));
    let mut body = wire.body(Framing::of_answer(&head, "GET"));
    while let Some(piece) = body.next().await.unwrap() {
        arrived[number].fetch_add(piece.len() as u64, Ordering::Relaxed);
    }
}

/// Sends one body of zeros.
async fn upload(mirror: SocketAddr, number: usize, bytes: u64, sent: Moved) {
    let mut wire = Wire::open(mirror).await.unwrap();
    let length = format!("Content-Length: {bytes}");
    let head = request("PATCH", &format!("/v2/team/image/blobs/uploads/{number}"), &[&length]);
    wire.send(head.as_bytes()).await.unwrap();
    let zeros = vec![0; 256 * 1024];
    for _ in 0..bytes / zeros.len() as u64 {
        wire.send(&zeros).await.unwrap();
        sent[number].fetch_add(zeros.len() as u64, Ordering::Relaxed);
    }
    assert_eq!(wire.read_answer().await.unwrap().status(), 202);
}
