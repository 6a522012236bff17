//! Answers that come at an odd time or end in an odd way, on the wire: before the request was sent or whole, in HTTP/1.0,
//! with trailers, cut; and clients that half-close. Each body arrives whole, or the client hears that it did not.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use roadstead_test_support::http::{Framing, request};
use roadstead_test_support::{
    Outcomes, Response, Sidecar, StubConnection, StubRegistry, Wire, config, connect_through, eventually_is,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Long enough for the slowest machine; nothing waits for it unless it fails.
const SOON: Duration = Duration::from_secs(10);

/// A registry, a sidecar with `slots`, and the two addresses at which the registry is asked.
async fn stage(stub: &StubRegistry, slots: usize) -> (Sidecar, [(SocketAddr, String); 2]) {
    let address = stub.address();
    let table = format!(
        "[registries.stub]\nhosts = [\"{address}\"]\ncap = {slots}\nshare = 1\n[registries.stub.mirror]\n\
         listen = \"127.0.0.1:0\"\nupstream = \"http://{address}\"\n"
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&table)).await;
    let ways = [
        (sidecar.proxy(), format!("http://{address}/v2/a")),
        (sidecar.listener("mirror").expect("a mirror"), "/v2/a".to_owned()),
    ];
    (sidecar, ways)
}

async fn read_answer(wire: &mut Wire, method: &str) -> std::io::Result<Response> {
    let head = wire.read_answer().await?;
    let body = wire.body(Framing::of_answer(&head, method)).collect().await?;
    Ok(Response { head, body })
}

/// A registry that reads the head of each request, says this, and reads no more; it keeps the connection open.
async fn refusing(answer: &'static [u8]) -> StubRegistry {
    StubRegistry::raw(move |connection: StubConnection| async move {
        let mut wire = Wire::new(connection);
        while let Ok(Some(_)) = wire.read_head().await {
            if wire.send(answer).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// RFC 9112, section 9.6: a registry refuses an upload early. The client, which goes on sending for seconds, gets the
/// answer whole and no reset; the registry's slot is free at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_refusal_reaches_a_client_that_still_sends() {
    let stub = refusing(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large").await;
    let (sidecar, ways) = stage(&stub, 1).await;
    for (address, target) in ways {
        // The offer of an upgrade, as Java's client makes it, changes nothing.
        let offer: &[&str] = &["Content-Length: 10000000", "Connection: Upgrade", "Upgrade: h2c"];
        for lines in [offer, &["Transfer-Encoding: chunked"]] {
            let mut client = Wire::open(address).await.unwrap();
            client.send(request("PUT", &target, lines).as_bytes()).await.unwrap();
            let piece = ["1000\r\n".to_owned(), "x".repeat(0x1000), "\r\n".to_owned()].concat();
            for number in 0..25 {
                client.send(piece.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
                if number == 15 {
                    assert_eq!(sidecar.count("stub", "open").await, 0, "the slot is free while the client sends");
                }
            }
            let answer = read_answer(&mut client, "PUT").await.unwrap();
            assert_eq!((answer.status(), answer.text()), (413, "too large".to_owned()));
            assert_eq!(answer.header("Connection"), Some("close"));
        }
    }
    sidecar.until_outcomes("stub", Outcomes { served: 4, ..Outcomes::default() }).await;
}

/// The same for a client that writes all of a large body before it reads, and for our own refusals.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_reaches_a_client_that_reads_only_after_it_has_sent_all() {
    let stub = refusing(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno").await;
    let (_sidecar, ways) = stage(&stub, 1).await;
    let body = vec![b'x'; 8 << 20];
    let length = format!("Content-Length: {}", body.len());
    let own = (ways[0].0, "http://169.254.169.254/v2/a".to_owned());
    for ((address, target), status) in ways.into_iter().map(|way| (way, 401)).chain([(own, 403)]) {
        let mut client = Wire::open(address).await.unwrap();
        client.send(request("PUT", &target, &[&length]).as_bytes()).await.unwrap();
        client.send(&body).await.unwrap();
        assert_eq!(read_answer(&mut client, "PUT").await.unwrap().status(), status, "{target}");
    }
}

/// A registry that answers before it has read a byte, and closes: its own words arrive, also for an upload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_before_the_request_is_the_answer() {
    let stub = StubRegistry::raw(|connection: StubConnection| async move {
        let mut wire = Wire::new(connection);
        let _ = wire.send(b"HTTP/1.1 403 Full\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfull").await;
    })
    .await;
    let (_sidecar, ways) = stage(&stub, 4).await;
    let body = vec![b'x'; 1 << 20];
    for _ in 0..20 {
        for (address, target) in &ways {
            for (method, body) in [("GET", &b""[..]), ("PUT", &body)] {
                let mut client = Wire::open(*address).await.unwrap();
                let length = format!("Content-Length: {}", body.len());
                client.send(request(method, target, &[&length]).as_bytes()).await.unwrap();
                client.send(body).await.unwrap();
                let answer = read_answer(&mut client, method).await.unwrap();
                assert_eq!((answer.status(), answer.text()), (403, "full".to_owned()), "{method} {target}");
            }
        }
    }
}

/// A registry that accepts an upload early still gets all of it, however slowly the client sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_was_accepted_early_goes_on() {
    let whole = Arc::new(Mutex::new(Vec::new()));
    let seen = whole.clone();
    let stub = StubRegistry::raw(move |connection: StubConnection| {
        let seen = seen.clone();
        async move {
            let mut wire = Wire::new(connection);
            while let Ok(Some(head)) = wire.read_head().await {
                wire.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                let body = wire.body(Framing::of_request(&head)).collect().await;
                seen.lock().unwrap().push(body.map(|body| body.len()).ok());
            }
        }
    })
    .await;
    let (_sidecar, ways) = stage(&stub, 1).await;
    for (address, target) in ways {
        let mut client = Wire::open(address).await.unwrap();
        client.send(request("PUT", &target, &["Content-Length: 30"]).as_bytes()).await.unwrap();
        assert_eq!(read_answer(&mut client, "PUT").await.unwrap().status(), 202);
        for _ in 0..30 {
            client.send(b"x").await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    eventually_is("both uploads", SOON, vec![Some(30); 2], async || whole.lock().unwrap().clone()).await;
}

/// RFC 9112, section 9.3: no connection is kept after an answer in HTTP/1.0, whatever it says; the next upload, of unknown
/// length, arrives whole. Nor is one that a challenge binds to its user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_forbids_reuse_is_the_last_on_its_connection() {
    for answer in [
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nWWW-Authenticate: Negotiate dG9r\r\nContent-Length: 0\r\n\r\n",
    ] {
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let seen = bodies.clone();
        let stub = StubRegistry::raw(move |connection: StubConnection| {
            let seen = seen.clone();
            async move {
                let mut wire = Wire::new(connection);
                while let Ok(Some(head)) = wire.read_head().await {
                    let Ok(body) = wire.body(Framing::of_request(&head)).collect().await else { return };
                    seen.lock().unwrap().push((head.first_line().ends_with("HTTP/1.1"), body));
                    wire.send(answer.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        let (_sidecar, ways) = stage(&stub, 1).await;
        for (address, target) in ways {
            let mut client = Wire::open(address).await.unwrap();
            for _ in 0..3 {
                let head = request("PUT", &target, &["Transfer-Encoding: chunked"]);
                client.send(format!("{head}4\r\nbody\r\n0\r\n\r\n").as_bytes()).await.unwrap();
                assert_eq!(read_answer(&mut client, "PUT").await.unwrap().status(), 200);
            }
        }
        assert_eq!(*bodies.lock().unwrap(), vec![(true, "body".into()); 6], "{answer}");
        assert_eq!(stub.accept_log().len(), 6, "{answer}");
    }
}

/// A body that the registry cuts ends with a reset for a client of HTTP/1.0, which takes a FIN for the end of the body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_body_resets_a_client_of_http_1_0() {
    let stub = StubRegistry::raw(|connection: StubConnection| async move {
        let mut wire = Wire::new(connection);
        let _ = wire.read_head().await;
        let _ = wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
    })
    .await;
    let (sidecar, ways) = stage(&stub, 1).await;
    for (address, target) in ways {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(format!("GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let error = timeout(SOON, client.read_to_end(&mut answer)).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    sidecar.until_outcomes("stub", Outcomes { upstream_failed: 2, ..Outcomes::default() }).await;
}

/// An answer with trailers is served, and its connection kept on both sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_with_trailers_is_served() {
    let stub = refusing(
        b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 1\r\n\r\n",
    )
    .await;
    let (sidecar, ways) = stage(&stub, 1).await;
    for (address, target) in ways {
        let mut client = Wire::open(address).await.unwrap();
        for headers in [&[][..], &["TE: trailers", "Connection: te"], &[]] {
            let answer = client.get(&target, headers).await.unwrap();
            assert_eq!((answer.status(), answer.text()), (200, "body".to_owned()));
        }
    }
    sidecar.until_outcomes("stub", Outcomes { served: 6, ..Outcomes::default() }).await;
    assert_eq!(stub.accept_log().len(), 1);
}

/// A client that half-closes after its request is answered (`printf ... | nc -N`), also after it has waited in the queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_client_gets_its_answer() {
    let stub = StubRegistry::builder().start().await;
    let (sidecar, ways) = stage(&stub, 1).await;
    for queued in [false, true] {
        for (address, target) in &ways {
            let holder = if queued {
                Some(connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.unwrap())
            } else {
                None
            };
            let mut client = Wire::open(*address).await.unwrap();
            client.send(request("GET", target, &[]).as_bytes()).await.unwrap();
            client.finish().await.unwrap();
            if queued {
                sidecar.until("stub", "waiting", 1).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            drop(holder);
            let answer = timeout(SOON, read_answer(&mut client, "GET")).await.unwrap().unwrap();
            assert_ne!(answer.status(), 503, "{target}");
            assert_eq!(timeout(SOON, client.receive()).await.unwrap().unwrap(), "", "an orderly end");
        }
    }
}

/// A half-close is no leave-taking, and a reset after it is: in the queue, and while the registry works on the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_client_that_resets_later_has_left() {
    let stub = StubRegistry::builder().start().await;
    let (sidecar, ways) = stage(&stub, 1).await;
    let mut outcomes = Outcomes::default();
    for version in ["1.1", "1.0"] {
        for (address, target) in &ways {
            for (state, queued) in [("waiting", true), ("active", false)] {
                let holder = if queued {
                    Some(connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.unwrap())
                } else {
                    stub.hold();
                    None
                };
                let requests = stub.requests();
                let mut client = Wire::open(*address).await.unwrap();
                client
                    .send(format!("GET {target} HTTP/{version}\r\nHost: localhost\r\n\r\n").as_bytes())
                    .await
                    .unwrap();
                client.finish().await.unwrap();
                sidecar.until("stub", state, 1).await;
                tokio::time::sleep(Duration::from_millis(300)).await;
                assert_eq!(sidecar.count("stub", state).await, 1, "{state}: it may still want the answer");
                let went = Instant::now();
                client.reset();
                sidecar.until("stub", state, 0).await;
                assert!(went.elapsed() < Duration::from_secs(2), "{state}: noticed after {:?}", went.elapsed());
                outcomes.client_left += 1;
                sidecar.until_outcomes("stub", outcomes).await;
                if queued {
                    assert_eq!(stub.requests(), requests, "the registry never heard of it");
                }
                // A tunnel that ends is served.
                outcomes.served += u64::from(holder.is_some());
                drop(holder);
                stub.release();
                sidecar.until("stub", "open", 0).await;
            }
        }
    }
}

/// A body that the client breaks is the client's fault, in the answer and in the outcome.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_upload_is_the_clients_own_fault() {
    let stub = StubRegistry::raw(|connection: StubConnection| async move {
        let mut wire = Wire::new(connection);
        while let Ok(Some(head)) = wire.read_head().await {
            if wire.body(Framing::of_request(&head)).collect().await.is_err() {
                return;
            }
        }
    })
    .await;
    let (sidecar, ways) = stage(&stub, 1).await;
    let mut left = 0;
    for (address, target) in ways {
        for (framing, body) in [
            ("Transfer-Encoding: chunked", "4\r\nbody\r\nnonsense\r\n"),
            ("Transfer-Encoding: chunked", "4\r\nbodyX\r\n"),
            ("Transfer-Encoding: chunked", "4\r\nbo"),
            ("Content-Length: 100", "half"),
        ] {
            let mut client = Wire::open(address).await.unwrap();
            client.send((request("PUT", &target, &[framing]) + body).as_bytes()).await.unwrap();
            client.finish().await.unwrap();
            assert_eq!(read_answer(&mut client, "PUT").await.unwrap().status(), 400, "{body:?}");
            left += 1;
            sidecar.until_outcomes("stub", Outcomes { client_left: left, ..Outcomes::default() }).await;
        }
    }
}

/// A client that lingers counts, and gives way where `max_clients` is reached; the end of draining resets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lingering_client_counts_and_gives_way() {
    let stub = refusing(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n").await;
    let address = stub.address();
    let registry = format!("[registries.stub]\nhosts = [\"{address}\"]\ncap = 4\nshare = 1\n");
    let file = config(&registry).replacen("[listen]\n", "[listen]\nmax_clients = 2\n", 1);
    let file = format!("drain_timeout = \"1s\"\n{file}");
    let mut sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &file).await;
    let target = format!("http://{address}/v2/a");
    let mut lingering = Vec::new();
    for _ in 0..3 {
        let mut client = Wire::open(sidecar.proxy()).await.unwrap();
        client.send(request("PUT", &target, &["Content-Length: 1000000"]).as_bytes()).await.unwrap();
        assert_eq!(read_answer(&mut client, "PUT").await.unwrap().status(), 413);
        lingering.push(client);
    }
    let is_reset = async |client: &mut Wire| {
        for _ in 0..200 {
            if client.send(b"x").await.is_err() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    };
    assert!(is_reset(&mut lingering[0]).await, "the oldest gives way");
    assert!(lingering[2].send(b"x").await.is_ok());
    let began = Instant::now();
    sidecar.terminate();
    assert_eq!(sidecar.wait().await.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

/// Framing of an answer that cannot be trusted never reaches a client (RFC 9112, section 6.3).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_with_untrustworthy_framing_is_a_502() {
    for framing in [
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4, 5",
        "Content-Length: x",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n4\r\nbody\r\n0\r\n\r\n");
        let stub = refusing(answer.leak().as_bytes()).await;
        let (sidecar, ways) = stage(&stub, 1).await;
        for (address, target) in ways {
            let answer = Wire::open(address).await.unwrap().get(&target, &[]).await.unwrap();
            assert_eq!(answer.status(), 502, "{framing}");
        }
        sidecar.until_outcomes("stub", Outcomes { upstream_failed: 2, ..Outcomes::default() }).await;
    }
}

/// 150 headers of an answer arrive, each as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_headers_of_an_answer_pass() {
    let headers: String = (0..150).fold(String::new(), |text, number| text + &format!("X-{number}: {number}\r\n"));
    let stub = refusing(format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: 0\r\n\r\n").leak().as_bytes()).await;
    let (_sidecar, ways) = stage(&stub, 1).await;
    for (address, target) in ways {
        let answer = Wire::open(address).await.unwrap().get(&target, &[]).await.unwrap();
        let passed = (0..150).filter(|number| answer.header(&format!("X-{number}")) == Some(&number.to_string()));
        assert_eq!(passed.count(), 150);
    }
}
