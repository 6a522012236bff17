//! Blobs whose transfer breaks off at the registry: the client gets the exact bytes, or a connection that breaks off, and
//! never a wrong body.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use roadstead_test_support::http::Framing;
use roadstead_test_support::{Random, Sidecar, StubRegistry, Wire, blob_of, config};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

const SOON: Duration = Duration::from_secs(10);
const SLOTS: usize = 4;

/// How the registry answers when the rest of a blob is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// It sends it.
    Exact,
    /// It knows no ranges, and sends all of it again.
    Ignored,
    /// It sends other bytes than those that were asked for, and says so.
    OtherRange,
    /// It says that the blob is longer.
    OtherTotal,
    /// It is another version of the blob.
    OtherTag,
    /// It sends fewer bytes than it says that the range has.
    Shorter,
    /// It sends a hundred bytes of any answer.
    Scraps,
}

/// How often a transfer is resumed at most.
const MAX_RESUMED: usize = 5;

/// A registry that cuts every first transfer of a blob at a random offset, and some of the later ones.
struct Cutting {
    stub: StubRegistry,
    cuts: Arc<AtomicUsize>,
}

fn length_of(path: &str) -> usize {
    1 + path.bytes().fold(7_usize, |sum, byte| (sum * 31 + usize::from(byte)) % 90_001)
}

/// Where it sends what is asked for, it cuts one blob so often at most.
async fn cutting(rest: Rest, most_cuts: usize) -> Cutting {
    let cuts = Arc::new(AtomicUsize::new(0));
    let (random, counted) = (Arc::new(Mutex::new(Random::new(11))), cuts.clone());
    let cuts_of = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let stub = StubRegistry::raw(move |connection| {
        let (random, counted, cuts_of) = (random.clone(), counted.clone(), cuts_of.clone());
        async move {
            let mut wire = Wire::new(connection);
            while let Ok(Some(head)) = wire.read_head().await {
                let _ = wire.body(Framing::of_request(&head)).collect().await;
                let blob = blob_of(head.target(), length_of(head.target()));
                let asked = head.header("Range").and_then(|range| range.strip_prefix("bytes="));
                let asked = asked.and_then(|range| range.split_once('-'));
                let range = asked.map(|(first, last)| {
                    (
                        first.parse::<usize>().unwrap(),
                        last.parse().map_or(blob.len() - 1, |last: usize| last.min(blob.len() - 1)),
                    )
                });
                let is_rest = head.header("X-Part").is_none() && range.is_some()
                    || head
                        .header("X-Part")
                        .is_some_and(|part| range.is_some_and(|(first, _)| first.to_string() != part));
                let (answer, body) = answer(&blob, range, if is_rest { rest } else { Rest::Exact });
                let mut cut = {
                    let mut random = random.lock().unwrap();
                    if is_rest && random.below(3) > 0 {
                        body.len()
                    } else {
                        usize::try_from(random.below(body.len() as u64 + 1)).unwrap()
                    }
                };
                match rest {
                    Rest::Shorter if is_rest => cut = body.len() / 2,
                    Rest::Scraps => cut = body.len().min(100),
                    _ => {}
                }
                if rest == Rest::Exact && cut < body.len() {
                    let mut cuts_of = cuts_of.lock().unwrap();
                    let cuts = cuts_of.entry(head.target().to_owned()).or_default();
                    if *cuts == most_cuts {
                        cut = body.len();
                    } else {
                        *cuts += 1;
                    }
                }
                if wire.send(answer.as_bytes()).await.is_err() || wire.send(&body[..cut]).await.is_err() {
                    return;
                }
                if cut < body.len() {
                    counted.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    })
    .await;
    Cutting { stub, cuts }
}

/// Head and body of the answer to a request for this range, or for all of it.
fn answer(blob: &[u8], range: Option<(usize, usize)>, rest: Rest) -> (String, Vec<u8>) {
    let tag = if rest == Rest::OtherTag { "two" } else { "one" };
    let Some((first, last)) = range.filter(|_| rest != Rest::Ignored) else {
        return (
            format!("HTTP/1.1 200 OK\r\nETag: \"{tag}\"\r\nContent-Length: {}\r\n\r\n", blob.len()),
            blob.to_vec(),
        );
    };
    let first = if rest == Rest::OtherRange { first.saturating_sub(1) } else { first };
    let total = blob.len() + usize::from(rest == Rest::OtherTotal);
    let body = blob[first..=last].to_vec();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nETag: \"{tag}\"\r\nContent-Range: bytes {first}-{last}/{total}\r\nContent-Length: {length}\r\n\r\n"
    );
    (head, body)
}

async fn start(registries: &[SocketAddr]) -> (Sidecar, SocketAddr) {
    let urls: Vec<String> = registries.iter().map(|address| format!("\"http://{address}\"")).collect();
    let registry = format!(
        "[registries.harbor]\nhosts = [\"registry.test\"]\ncap = {SLOTS}\nshare = 1\n\
         [registries.harbor.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = [{}]\n",
        urls.join(", ")
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
    let mirror = sidecar.listener("mirror").unwrap();
    (sidecar, mirror)
}

/// Gets a blob, or a part of it; `None` when the transfer breaks off.
async fn get(mirror: SocketAddr, path: &str, range: Option<(usize, usize)>) -> Option<Vec<u8>> {
    let mut wire = Wire::open(mirror).await.unwrap();
    let headers: Vec<String> = range
        .iter()
        .flat_map(|(first, last)| [format!("Range: bytes={first}-{last}"), format!("X-Part: {first}")])
        .collect();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let answer = timeout(SOON, wire.get(path, &headers)).await.expect("it does not hang").ok()?;
    assert!([200, 206].contains(&answer.status()), "{}", answer.status());
    Some(answer.body.to_vec())
}

/// 1,000 blobs: every one arrives exactly, or its connection breaks off; where the registry sends what is asked for, all arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_is_cut_arrives_exactly_or_breaks_off() {
    let of = |rest| blobs_arrive_exactly_or_break_off(rest, 1_000_usize.div_ceil(6));
    tokio::join!(
        of(Rest::Exact),
        of(Rest::Ignored),
        of(Rest::OtherRange),
        of(Rest::OtherTotal),
        of(Rest::OtherTag),
        of(Rest::Shorter)
    );
}

async fn blobs_arrive_exactly_or_break_off(rest: Rest, blobs: usize) {
    let registry = cutting(rest, MAX_RESUMED).await;
    let (sidecar, mirror) = start(&[registry.stub.address()]).await;
    let clients = (0..SLOTS).map(|first| async move {
        let mut broken = 0;
        for number in (first..blobs).step_by(SLOTS) {
            let path = format!("/v2/app/blobs/sha256:{number:064}");
            let blob = blob_of(&path, length_of(&path));
            let part = (number % 3 == 0 && blob.len() > 20).then(|| (blob.len() / 7, blob.len() - 5));
            let expected = part.map_or(&blob[..], |(first, last)| &blob[first..=last]);
            match get(mirror, &path, part).await {
                Some(body) => assert!(body == expected, "{rest:?}: {path}: {} bytes", body.len()),
                None => broken += 1,
            }
        }
        broken
    });
    let broken: usize = clients.collect::<JoinSet<usize>>().join_all().await.into_iter().sum();
    let (cuts, resumed) = (
        registry.cuts.load(Ordering::Relaxed),
        sidecar.metrics().await.count("roadstead_resumed_total", &[("registry", "harbor")]),
    );
    println!("{rest:?}: {blobs} blobs, {cuts} cuts, {resumed} resumed, {broken} broke off");
    assert!(cuts > blobs / 2, "{cuts} cuts");
    match rest {
        Rest::Exact => assert!(broken == 0 && resumed > 0, "{broken} broke off, {resumed} resumed"),
        Rest::Shorter => assert!(resumed > 0),
        _ => assert!(broken > 0 && resumed == 0, "{broken} broke off, {resumed} resumed"),
    }
    assert!(registry.stub.peak() <= SLOTS, "{}", registry.stub.peak());
}

/// A registry that breaks off again and again is asked six times in all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_is_resumed_five_times_at_most() {
    let registry = cutting(Rest::Scraps, MAX_RESUMED).await;
    let (sidecar, mirror) = start(&[registry.stub.address()]).await;
    let path = format!("/v2/app/blobs/sha256:{:064}", 1);
    assert!(length_of(&path) > 100 * (MAX_RESUMED + 2));
    assert_eq!(get(mirror, &path, None).await, None);
    assert_eq!(registry.cuts.load(Ordering::Relaxed), 1 + MAX_RESUMED);
    let resumed = sidecar.metrics().await.count("roadstead_resumed_total", &[("registry", "harbor")]);
    assert_eq!(resumed, MAX_RESUMED as u64);
}

/// Nothing answers behind the gateway for longer than a request is asked again where the registry is well: the rest of a
/// blob can be had from nobody else, so it is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_breaks_off_in_an_outage_arrives_when_it_is_over() {
    const OUTAGE: Duration = Duration::from_secs(6);
    const BLOB: usize = 5000;
    let began = Arc::new(Mutex::new(None::<Instant>));
    let since = began.clone();
    let stub = StubRegistry::raw(move |connection| {
        let since = since.clone();
        async move {
            let mut wire = Wire::new(connection);
            while let Ok(Some(head)) = wire.read_head().await {
                let blob = blob_of(head.target(), BLOB);
                let began = *since.lock().unwrap();
                let range = head.header("Range").map(|range| {
                    let (first, last) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).unwrap();
                    (first.parse().unwrap(), last.parse().unwrap())
                });
                let (answer, body) = match began {
                    Some(began) if began.elapsed() < OUTAGE => {
                        ("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_owned(), Vec::new())
                    }
                    _ => answer(&blob, range, Rest::Exact),
                };
                let cut = if began.is_none() { BLOB / 2 } else { body.len() };
                let sent = wire.send(&[answer.as_bytes(), &body[..cut]].concat()).await;
                if began.is_none() || sent.is_err() {
                    *since.lock().unwrap() = Some(Instant::now());
                    return;
                }
            }
        }
    })
    .await;
    let (sidecar, mirror) = start(&[stub.address()]).await;
    let path = format!("/v2/app/blobs/sha256:{:064}", 1);
    let body = get(mirror, &path, None).await;
    let took = began.lock().unwrap().expect("it was cut").elapsed();
    assert!(body.is_some_and(|body| body == blob_of(&path, BLOB)), "after {took:?}");
    assert!(took >= OUTAGE, "{took:?}");
    let resumed = sidecar.metrics().await.count("roadstead_resumed_total", &[("registry", "harbor")]);
    assert_eq!(resumed, 1);
}

/// Blobs that are broken in storage: what the registry says of their rest is its real answer. Each is asked for a handful of
/// times, its client hears of it soon, and the registry is not in distress.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_of_a_broken_blob_is_asked_for_a_handful_of_times() {
    const BLOB: usize = 5000;
    for (refusal, most) in [
        ("HTTP/1.1 500 Internal Server Error", 1 + 5),
        ("HTTP/1.1 429 Too Many Requests", 1 + 1),
        ("SSH-2.0-OpenSSH_9.2", 1 + 1),
    ] {
        let asked = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
        let counted = asked.clone();
        let stub = StubRegistry::raw(move |connection| {
            let counted = counted.clone();
            async move {
                let mut wire = Wire::new(connection);
                while let Ok(Some(head)) = wire.read_head().await {
                    *counted.lock().unwrap().entry(head.target().to_owned()).or_default() += 1;
                    if head.header("Range").is_some() {
                        let answer = format!("{refusal}\r\nContent-Length: 0\r\n\r\n");
                        if wire.send(answer.as_bytes()).await.is_ok() {
                            continue;
                        }
                    }
                    let (answer, body) = answer(&blob_of(head.target(), BLOB), None, Rest::Exact);
                    let _ = wire.send(&[answer.as_bytes(), &body[..BLOB / 2]].concat()).await;
                    return;
                }
            }
        })
        .await;
        let (sidecar, mirror) = start(&[stub.address()]).await;
        let paths = [1, 2].map(|number| format!("/v2/app/blobs/sha256:{number:064}"));
        let cut = tokio::join!(get(mirror, &paths[0], None), get(mirror, &paths[1], None));
        assert_eq!(cut, (None, None), "{refusal}");
        let asked = asked.lock().unwrap().clone();
        assert!(paths.iter().all(|path| asked[path] == most), "{refusal}: {asked:?}");
        let harbor = sidecar.status().await["registries"]["harbor"].clone();
        assert_eq!(harbor["distress"]["on"], false, "{refusal}: {harbor}");
        assert_eq!(harbor["slots_in_force"], harbor["slots"], "{refusal}: {harbor}");
    }
}

/// The rest may come from another node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_is_resumed_at_another_node() {
    let nodes = [cutting(Rest::Exact, 2).await, cutting(Rest::Exact, 2).await];
    let (_sidecar, mirror) = start(&[nodes[0].stub.address(), nodes[1].stub.address()]).await;
    let exact = async |number: usize| {
        let path = format!("/v2/app/blobs/sha256:{number:064}");
        let blob = blob_of(&path, length_of(&path));
        assert!(get(mirror, &path, None).await.is_some_and(|body| body == blob), "{path}");
    };
    // Two at a time: each new connection goes to the node that has fewer.
    for pair in 0..15 {
        tokio::join!(exact(2 * pair), exact(2 * pair + 1));
    }
    assert!(nodes.iter().all(|node| node.stub.accept_log().len() > 1), "both were used");
}

/// A registry that cuts its first two answers, with this line among their headers, and counts them.
async fn cutting_twice(header: &'static str) -> Cutting {
    let cuts = Arc::new(AtomicUsize::new(0));
    let counted = cuts.clone();
    let stub = StubRegistry::raw(move |connection| {
        let counted = counted.clone();
        async move {
            let mut wire = Wire::new(connection);
            while let Ok(Some(head)) = wire.read_head().await {
                let body = blob_of(head.target(), 5000);
                let answer = format!("HTTP/1.1 200 OK\r\n{header}Content-Length: 5000\r\n\r\n");
                let number = counted.fetch_add(1, Ordering::Relaxed);
                let most = if number < 2 { 1000 + 2000 * number } else { body.len() };
                let sent = wire.send(&[answer.as_bytes(), &body[..most]].concat()).await;
                if number < 2 || sent.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    Cutting { stub, cuts }
}

/// A manifest is read before it is handed on: one that breaks off is asked for again, and the client sees it whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_is_cut_is_asked_for_again() {
    for reference in ["sha256:0123", "latest"] {
        let registry = cutting_twice("").await;
        let (_sidecar, mirror) = start(&[registry.stub.address()]).await;
        let path = format!("/v2/app/manifests/{reference}");
        assert!(get(mirror, &path, None).await.is_some_and(|body| body == blob_of(&path, 5000)), "{path}");
        assert_eq!(registry.cuts.load(Ordering::Relaxed), 3, "{path}");
    }
}

/// Bytes of a compressed answer are not those of the blob: it breaks off. A blob is named by a digest of any algorithm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_blob_that_is_cut_breaks_off() {
    for (header, name, is_resumed) in [
        ("Content-Encoding: gzip\r\n", "sha256:0123", false),
        ("Content-Encoding: identity\r\n", "sha256:0123", true),
        ("", "sha512:0123", true),
        ("", "uploads/0123", false),
    ] {
        let registry = cutting_twice(header).await;
        let (_sidecar, mirror) = start(&[registry.stub.address()]).await;
        let path = format!("/v2/app/blobs/{name}");
        assert_eq!(get(mirror, &path, None).await, None, "{header}: ranges are not known here");
        assert_eq!(registry.cuts.load(Ordering::Relaxed) > 1, is_resumed, "{header}{name}");
    }
}
