//! The memory that waiting requests cost, by the kernel's count of the process.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use roadstead_test_support::http::{Framing, request};
use roadstead_test_support::{Outcomes, Sidecar, StubRegistry, Wire, config, eventually, eventually_is};

/// Clients that wait at once.
const WAITERS: u32 = 2000;

/// The most that a waiter may cost. Measured: 3.3 for a tunnel, 3.7 for a request.
const MOST_KIB: f64 = 4.0;

/// It comes back when they leave. Credentials for the proxy, however long, are not kept.
#[tokio::test]
async fn a_waiter_costs_little_memory() {
    let stub = StubRegistry::builder().start().await;
    stub.hold();
    let registry = format!("[registries.stub]\nhosts = [\"{}\"]\ncap = 1\nshare = 1\n", stub.address());
    let (host, url) = (stub.address().to_string(), format!("http://{}/v2/a/manifests/1", stub.address()));
    // `ci:` and a password, in base64.
    let long = format!("PROXY-authorization: Basic Y2k6{}\r\n", "eHh4".repeat(10_000));
    for (method, target, line) in
        [("CONNECT", &host, ""), ("GET", &url, ""), ("CONNECT", &host, &long), ("GET", &url, &long)]
    {
        let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
        let ask = async || {
            let mut wire = Wire::open(sidecar.proxy()).await.unwrap();
            wire.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{line}\r\n").as_bytes()).await.unwrap();
            wire
        };
        let _holder = ask().await;
        sidecar.until("stub", "open", 1).await;
        let (before, mut waiters) = (sidecar.rss_kib(), Vec::new());
        for _ in 0..WAITERS {
            waiters.push(ask().await);
        }
        sidecar.until("stub", "waiting", WAITERS.into()).await;
        let grown = u32::try_from(sidecar.rss_kib() - before).unwrap();
        let each = f64::from(grown) / f64::from(WAITERS);
        println!("{method}: {each:.1} KiB for each of {WAITERS} waiters");
        assert!(each < MOST_KIB, "{method}: {each:.1} KiB for each");
        drop(waiters);
        eventually("most memory given back", Duration::from_secs(10), async || {
            let left = sidecar.rss_kib().saturating_sub(before);
            if left < u64::from(grown) / 3 { Ok(()) } else { Err(left) }
        })
        .await;
    }
}

/// While a request waits, hyper is not there. It goes out as it was sent all the same, once, and what was sent behind it on the
/// connection is answered after it.
#[tokio::test]
async fn a_request_that_waited_passes_as_it_was_sent() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heads = seen.clone();
    let stub = StubRegistry::raw(move |connection| {
        let heads = heads.clone();
        async move {
            let mut wire = Wire::new(connection);
            while let Ok(Some(head)) = wire.read_head().await {
                let body = if head.raw().starts_with("HEAD") { "" } else { "{}" };
                heads.lock().unwrap().push(head.raw().to_owned());
                let answer = format!("HTTP/1.1 200 OK\r\nX-CaSe: b\r\nContent-Length: 2\r\n\r\n{body}");
                if wire.send(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let registry = format!("[registries.stub]\nhosts = [\"{}\"]\ncap = 1\nshare = 1\n", stub.address());
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
    let url = |path: &str| format!("http://{}/{path}", stub.address());
    let credentials = "Proxy-Authorization: Basic Y2k6eA==";
    let lines =
        ["X-CuStOm_Header: one", "Accept: application/a", "Accept: application/b;q=0.5, */*", "Range: bytes=0-0"];
    for method in ["GET", "HEAD"] {
        assert_eq!(sidecar.order("/registries/stub/pause").await.status(), 200);
        let mut wire = Wire::open(sidecar.proxy()).await.unwrap();
        let both = request(method, &url("first"), &[&[credentials], &lines[..], &[credentials]].concat())
            + &request("GET", &url("second"), &[]);
        // The second one comes in two pieces, of which one is read with the first request.
        let (now, later) = both.split_at(both.len() - 10);
        wire.send(now.as_bytes()).await.unwrap();
        sidecar.until("stub", "waiting", 1).await;
        wire.send(later.as_bytes()).await.unwrap();
        assert_eq!(sidecar.order("/registries/stub/resume").await.status(), 200);
        for (method, body) in [(method, if method == "HEAD" { "" } else { "{}" }), ("GET", "{}")] {
            let head = wire.read_answer().await.unwrap();
            assert!(head.raw().contains("\r\nX-CaSe: b\r\n"), "{}", head.raw());
            assert_eq!(wire.body(Framing::of_answer(&head, method)).collect().await.unwrap(), body);
        }
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert!(matches!(&*seen, [_, second] if second.starts_with("GET /second ")), "{seen:?}");
        assert!(seen[0].starts_with(&format!("{method} /first HTTP/1.1\r\n")), "{}", seen[0]);
        let places: Vec<usize> = lines.iter().map(|line| seen[0].find(&format!("\r\n{line}\r\n")).unwrap()).collect();
        assert!(places[1] < places[2] && !seen[0].contains("roxy"), "{}", seen[0]);
    }
    sidecar.until_outcomes("stub", Outcomes { served: 4, ..Outcomes::default() }).await;
    let waited = async || sidecar.finished().iter().any(|line| line["waited_ms"].as_f64() > Some(0.0));
    eventually_is("the record of one that waited", Duration::from_secs(5), true, waited).await;
}
