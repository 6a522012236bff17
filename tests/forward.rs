//! Requests in absolute-form on the wire: what the registry gets of them, what the client gets of the answer, and
//! which connections carry both.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use roadstead_test_support::http::{Framing, request};
use roadstead_test_support::{
    Head, KEEP_TUNNELS, Outcomes, Random, Response, Sidecar, StubRegistry, Wire, blob_of, config, connect_through,
    eventually_is, get_through,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

/// Long enough for the slowest machine; nothing waits for it unless it fails.
const SOON: Duration = Duration::from_secs(10);
/// The longest time that counts as "at once".
const AT_ONCE: Duration = Duration::from_secs(2);
/// How long nothing must come before it counts as silence.
const A_WHILE: Duration = Duration::from_millis(50);
const BLOB: usize = 200_000;
const BLOB_PATH: &str = "/v2/team/image/blobs/sha256:1";

/// A sidecar with `slots` for one registry; `more` goes into the registry's table.
async fn sidecar_for(hosts: &[SocketAddr], slots: usize, more: &str) -> Sidecar {
    let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let registry = format!("[registries.stub]\nhosts = {hosts:?}\ncap = {slots}\nshare = 1\n{more}\n{KEEP_TUNNELS}");
    Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await
}

/// A registry with blobs and a sidecar before it.
async fn stage(slots: usize) -> (StubRegistry, Sidecar) {
    let stub = StubRegistry::builder().blob_size(BLOB).start().await;
    let sidecar = sidecar_for(&[stub.address()], slots, "").await;
    (stub, sidecar)
}

/// A registry whose first connection is kept after one answer, and closed when the next request is on its way.
async fn closed_at_the_second_request() -> (StubRegistry, Arc<Mutex<Vec<(u64, Head)>>>, Sidecar, Wire) {
    let (stub, seen) = scripted(|number, index| match (number, index) {
        (0, 1..) => None,
        _ => Some(ok("Content-Length: 2\r\n", "{}")),
    })
    .await;
    let sidecar = sidecar_for(&[stub.address()], 1, "").await;
    let mut client = client_of(&sidecar).await;
    assert_eq!(client.get(&url(&stub, "/1"), &[]).await.unwrap().status(), 200);
    sidecar.until("stub", "idle", 1).await;
    (stub, seen, sidecar, client)
}

async fn client_of(sidecar: &Sidecar) -> Wire {
    Wire::open(sidecar.proxy()).await.expect("the proxy accepts")
}

fn url(stub: &StubRegistry, path: &str) -> String {
    format!("http://{}{path}", stub.address())
}

/// Sends a request with a body as it is, and reads the answer whole.
async fn send(wire: &mut Wire, method: &str, url: &str, headers: &[&str], body: &[u8]) -> Response {
    wire.send(&[request(method, url, headers).as_bytes(), body].concat()).await.expect("the proxy reads");
    answer(wire, method).await
}

async fn answer(wire: &mut Wire, method: &str) -> Response {
    let head = wire.read_answer().await.expect("an answer");
    let body = wire.body(Framing::of_answer(&head, method)).collect().await.expect("a whole body");
    Response { head, body }
}

/// A registry that answers each request of the connection `number` with the bytes that `script` gives for its `index`
/// there, and ends the connection where it gives none. Hands out the heads as they came, with the connection's number.
async fn scripted(
    script: impl Fn(u64, usize) -> Option<Vec<u8>> + Send + Sync + 'static,
) -> (StubRegistry, Arc<Mutex<Vec<(u64, Head)>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (script, heads) = (Arc::new(script), seen.clone());
    let stub = StubRegistry::raw(move |connection| {
        let (script, heads) = (script.clone(), heads.clone());
        async move {
            let number = connection.number();
            let mut wire = Wire::new(connection);
            for index in 0.. {
                let Ok(Some(head)) = wire.read_head().await else { return };
                let framing = Framing::of_request(&head);
                heads.lock().unwrap().push((number, head));
                let Some(answer) = script(number, index) else { return };
                let body = wire.body(framing).collect().await;
                if body.is_err() || wire.send(&answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (stub, seen)
}

fn ok(headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{headers}\r\n{body}").into_bytes()
}

/// GET, HEAD, POST, PUT and PATCH in absolute-form reach the registry in origin-form, and their answers come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_method_of_a_pull_or_push_passes() {
    let (stub, sidecar) = stage(2).await;
    let mut client = client_of(&sidecar).await;
    let got = client.get(&url(&stub, BLOB_PATH), &[]).await.unwrap();
    assert_eq!((got.status(), got.body), (200, blob_of(BLOB_PATH, BLOB)));
    let head = client.ask("HEAD", &url(&stub, BLOB_PATH), &[]).await.unwrap();
    assert_eq!((head.status(), head.header("content-length")), (200, Some("200000")));
    for (method, status) in [("POST", 202), ("PATCH", 202), ("PUT", 201)] {
        let target = url(&stub, "/v2/a/blobs/uploads/1?x=y");
        let answer = send(&mut client, method, &target, &["Content-Length: 3"], b"abc").await;
        assert_eq!((answer.status(), answer.header("upload-length")), (status, Some("3")), "{method}");
    }
    let lines: Vec<String> =
        stub.seen_requests().iter().map(|head| head.lines().next().unwrap_or_default().to_owned()).collect();
    assert_eq!(
        lines,
        [
            format!("GET {BLOB_PATH} HTTP/1.1"),
            format!("HEAD {BLOB_PATH} HTTP/1.1"),
            "POST /v2/a/blobs/uploads/1?x=y HTTP/1.1".to_owned(),
            "PATCH /v2/a/blobs/uploads/1?x=y HTTP/1.1".to_owned(),
            "PUT /v2/a/blobs/uploads/1?x=y HTTP/1.1".to_owned(),
        ]
    );
    sidecar.until_outcomes("stub", Outcomes { served: 5, ..Outcomes::default() }).await;
}

/// Hop-by-hop headers stay here; Host is the URL's; the proxy's credentials are never passed on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_one_hop_stay_on_it() {
    let (stub, sidecar) = stage(1).await;
    let mut client = client_of(&sidecar).await;
    let own = [
        "Host: elsewhere.example.com",
        "Connection: keep-alive, X-Mine",
        "X-Mine: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=",
        "Upgrade: h2c",
        "TE: gzip",
    ];
    assert_eq!(client.get(&url(&stub, "/v2/"), &own).await.unwrap().status(), 200);
    let seen = Head::parse(stub.seen_requests()[0].as_bytes()).unwrap();
    for gone in ["Connection", "X-Mine", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Upgrade", "TE"] {
        assert_eq!(seen.header(gone), None, "{}", seen.raw());
    }
    let hosts: Vec<&str> =
        seen.headers().filter(|(name, _)| name.eq_ignore_ascii_case("host")).map(|(_, value)| value).collect();
    assert_eq!(hosts, [stub.address().to_string()]);
}

/// Everything else passes as it is, in its case and its order, both ways.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_other_headers_pass_unchanged() {
    let answer = "Docker-Content-DIGEST: sha256:1\r\nWWW-Authenticate: Bearer realm=\"x\"\r\nX-Odd_Name: a,  b\r\n\
                  Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n";
    let (stub, seen) = scripted(move |_, _| Some(ok(answer, "{}"))).await;
    let sidecar = sidecar_for(&[stub.address()], 1, "").await;
    let mut client = client_of(&sidecar).await;
    let lines = [
        "Range: bytes=0-0",
        "If-None-Match: \"tag\"",
        "Authorization: Bearer a.b.c",
        "X-CuStOm_Header: one",
        "Accept: application/a",
        "Accept: application/b;q=0.5, */*",
        "User-Agent: containerd/2.0",
        "Accept-Encoding: identity",
    ];
    let got = client.get(&url(&stub, "/v2/"), &lines).await.unwrap();
    let (_, head) = seen.lock().unwrap()[0].clone();
    for line in lines {
        assert!(head.raw().contains(&format!("\r\n{line}\r\n")), "{line}:\n{}", head.raw());
    }
    let place = |line| head.raw().find(line).unwrap();
    assert!(place(lines[4]) < place(lines[5]));
    for line in ["Docker-Content-DIGEST: sha256:1", "WWW-Authenticate: Bearer realm=\"x\"", "X-Odd_Name: a,  b"] {
        assert!(got.head.raw().contains(&format!("\r\n{line}\r\n")), "{line}:\n{}", got.head.raw());
    }
    assert_eq!((got.header("X-Hop"), got.header("Keep-Alive")), (None, None), "{}", got.head.raw());
}

/// A length stays a length, and chunks stay chunks, up and down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn length_stays_length_and_chunked_stays_chunked() {
    let (stub, seen) = scripted(|_, index| match index {
        0 => Some(ok("Content-Length: 5\r\n", "whole")),
        _ => Some(ok("Transfer-Encoding: chunked\r\n", "3\r\nin \r\n6\r\npieces\r\n0\r\n\r\n")),
    })
    .await;
    let sidecar = sidecar_for(&[stub.address()], 1, "").await;
    let mut client = client_of(&sidecar).await;
    let framings = |head: &Head| {
        let of = |name| head.header(name).map(str::to_owned);
        (of("content-length"), of("transfer-encoding"))
    };
    let (length, chunked) = ((Some("5".to_owned()), None), (None, Some("chunked".to_owned())));

    let by_length = send(&mut client, "PUT", &url(&stub, "/1"), &["Content-Length: 5"], b"12345").await;
    assert_eq!((framings(&by_length.head), by_length.text()), (length.clone(), "whole".to_owned()));
    let chunks = b"2\r\n12\r\n3\r\n345\r\n0\r\n\r\n";
    let by_chunks = send(&mut client, "PUT", &url(&stub, "/2"), &["Transfer-Encoding: chunked"], chunks).await;
    assert_eq!((framings(&by_chunks.head), by_chunks.text()), (chunked.clone(), "in pieces".to_owned()));

    let heads = seen.lock().unwrap().clone();
    assert_eq!(framings(&heads[0].1), length);
    assert_eq!(framings(&heads[1].1), chunked);
}

/// Chunks come through as they are made, not when the last is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_streamed_piece_by_piece() {
    let (permits, taken) = (Arc::new(tokio::sync::Semaphore::new(0)), Arc::new(Mutex::new(0)));
    let (go_on, count) = (permits.clone(), taken.clone());
    let stub = StubRegistry::raw(move |connection| {
        let (go_on, count) = (go_on.clone(), count.clone());
        async move {
            let mut wire = Wire::new(connection);
            wire.read_head().await.unwrap();
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
            for _ in 0..3 {
                *count.lock().unwrap() += 1;
                wire.send(b"5\r\npiece\r\n").await.unwrap();
                go_on.acquire().await.unwrap().forget();
            }
            wire.send(b"0\r\n\r\n").await.unwrap();
            let _ = wire.read_head().await;
        }
    })
    .await;
    let sidecar = sidecar_for(&[stub.address()], 1, "").await;
    let mut client = client_of(&sidecar).await;
    client.send(request("GET", &url(&stub, "/"), &[]).as_bytes()).await.unwrap();
    let head = client.read_answer().await.unwrap();
    let mut body = client.body(Framing::of_answer(&head, "GET"));
    for number in 1..=3 {
        assert_eq!(body.next().await.unwrap().unwrap(), "piece");
        assert_eq!(*taken.lock().unwrap(), number, "a piece came before it was made");
        permits.add_permits(1);
    }
    assert_eq!(body.next().await.unwrap(), None);
}

/// 32 MiB up and down in one exchange each arrive byte for byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_arrive_byte_for_byte() {
    const SIZE: usize = 32 << 20;
    let stub = StubRegistry::builder().blob_size(SIZE).start().await;
    let sidecar = sidecar_for(&[stub.address()], 1, "").await;
    let mut client = client_of(&sidecar).await;
    let got = client.get(&url(&stub, BLOB_PATH), &[]).await.unwrap();
    assert!(got.body == blob_of(BLOB_PATH, SIZE), "{} bytes", got.body.len());

    let mut random = Random::new(5);
    let body: Vec<u8> = std::iter::repeat_with(|| random.draw().to_le_bytes()).flatten().take(SIZE).collect();
    let length = format!("Content-Length: {SIZE}");
    let direct = send(&mut Wire::open(stub.address()).await.unwrap(), "PUT", "/v2/a", &[&length], &body).await;
    let through = send(&mut client, "PUT", &url(&stub, "/v2/a"), &[&length], &body).await;
    assert_eq!(through.status(), 201);
    assert_eq!(through.header("upload-digest"), direct.header("upload-digest"));
}

/// A range comes back as 206 with its Content-Range, and one outside the blob as 416.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_keeps_its_status_and_place() {
    let (stub, sidecar) = stage(1).await;
    let mut client = client_of(&sidecar).await;
    let first = client.get(&url(&stub, BLOB_PATH), &["Range: bytes=0-0"]).await.unwrap();
    assert_eq!((first.status(), first.header("content-range")), (206, Some("bytes 0-0/200000")));
    assert_eq!(first.body, blob_of(BLOB_PATH, BLOB).slice(..1));
    let outside = client.get(&url(&stub, BLOB_PATH), &["Range: bytes=200000-"]).await.unwrap();
    assert_eq!((outside.status(), outside.header("content-range")), (416, Some("bytes */200000")));
}

/// A client of HTTP/1.0 gets the content without chunks, and the end of the connection behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http_1_0_gets_no_chunks_and_the_end_of_the_connection() {
    let (stub, _) =
        scripted(|_, _| Some(ok("Transfer-Encoding: chunked\r\n", "3\r\nin \r\n6\r\npieces\r\n0\r\n\r\n"))).await;
    let sidecar = sidecar_for(&[stub.address()], 1, "").await;
    let mut client = client_of(&sidecar).await;
    client.send(format!("GET {} HTTP/1.0\r\n\r\n", url(&stub, "/")).as_bytes()).await.unwrap();
    let head = client.read_answer().await.unwrap();
    assert_eq!((head.status(), head.header("transfer-encoding")), (200, None), "{}", head.raw());
    let body = client.body(Framing::UntilEnd).collect().await.unwrap();
    assert_eq!(body, "in pieces");
}

/// `100 Continue` is not sent while the request waits for its turn, and comes when it is admitted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_no_100_continue_before_admission() {
    let (stub, sidecar) = stage(1).await;
    let holder = connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.unwrap();
    let mut client = client_of(&sidecar).await;
    let head = request("PUT", &url(&stub, "/v2/a"), &["Content-Length: 3", "Expect: 100-continue"]);
    client.send(head.as_bytes()).await.unwrap();
    sidecar.until("stub", "waiting", 1).await;
    assert!(client.is_silent(A_WHILE).await, "an answer before admission");
    drop(holder);
    assert_eq!(client.read_head().await.unwrap().unwrap().status(), 100);
    client.send(b"abc").await.unwrap();
    let answer = answer(&mut client, "PUT").await;
    assert_eq!((answer.status(), answer.header("upload-length")), (201, Some("3")));
}

/// Nor while the registry does not take the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_no_100_continue_before_the_connection_stands() {
    let stub = StubRegistry::builder().start().await;
    let registry =
        format!("level = \"debug\"\n[registries.stub]\nhosts = [\"{}\"]\ncap = 1\nshare = 1", stub.address());
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
    stub.refuse().await;
    let mut client = client_of(&sidecar).await;
    let head = request("PUT", &url(&stub, "/v2/a"), &["Content-Length: 3", "Expect: 100-continue"]);
    client.send(head.as_bytes()).await.unwrap();
    sidecar.until_logged("will try again").await;
    assert!(client.is_silent(A_WHILE).await, "an answer before the connection stands");
    stub.accept_again().await;
    assert_eq!(client.read_head().await.unwrap().unwrap().status(), 100);
    client.send(b"abc").await.unwrap();
    assert_eq!(answer(&mut client, "PUT").await.status(), 201);
}

/// Requests in turn on one connection of a client use one connection to the registry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_requests_of_one_client_share_one_connection() {
    let (stub, sidecar) = stage(2).await;
    let mut client = client_of(&sidecar).await;
    for _ in 0..3 {
        assert_eq!(client.get(&url(&stub, BLOB_PATH), &[]).await.unwrap().status(), 200);
        sidecar.until("stub", "idle", 1).await;
    }
    assert_eq!(stub.accept_log().len(), 1);
}

/// A kept connection goes to the next client that asks for the same authority.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clients_in_turn_share_one_connection() {
    let (stub, sidecar) = stage(2).await;
    for _ in 0..3 {
        assert_eq!(get_through(sidecar.proxy(), &url(&stub, BLOB_PATH), &[]).await.status(), 200);
        sidecar.until("stub", "idle", 1).await;
    }
    assert_eq!(stub.accept_log().len(), 1);
}

/// With one slot, the connection kept for one authority is closed for a request to another of the same registry, and
/// only then is the other dialled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_slot_serves_two_authorities_in_turn() {
    let (one, two) = (StubRegistry::builder().start().await, StubRegistry::builder().start().await);
    let sidecar = sidecar_for(&[one.address(), two.address()], 1, "").await;
    let mut client = client_of(&sidecar).await;
    for round in 1..=3 {
        for (stub, other) in [(&one, &two), (&two, &one)] {
            assert_eq!(client.get(&url(stub, "/v2/"), &[]).await.unwrap().status(), 200);
            assert_eq!((stub.accept_log().len(), other.open()), (round, 0), "the other was closed before");
            sidecar.until("stub", "idle", 1).await;
        }
    }
    let metrics = sidecar.metrics().await;
    assert_eq!(metrics.count("roadstead_reclaimed_total", &[("registry", "stub")]), 5);
}

/// A tunnel, too, gets the slot of an idle connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_gives_way_to_a_tunnel() {
    let (stub, sidecar) = stage(1).await;
    assert_eq!(get_through(sidecar.proxy(), &url(&stub, "/v2/"), &[]).await.status(), 200);
    sidecar.until("stub", "idle", 1).await;
    let mut tunnel = connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.unwrap();
    assert_eq!(tunnel.get("/v2/", &[]).await.unwrap().status(), 200);
    assert_eq!((stub.accept_log().len(), stub.peak()), (2, 1));
}

/// A registry that does not end a reclaimed connection within `linger` gets a reset, and only then is the slot given on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_lingers_is_reset_before_the_slot_is_given_on() {
    let diary = Arc::new(Mutex::new(Vec::new()));
    let notes = diary.clone();
    let stub = StubRegistry::raw(move |mut connection| {
        let diary = notes.clone();
        async move {
            let number = connection.number();
            let note = |entry: &str| diary.lock().unwrap().push((format!("{entry} {number}"), Instant::now()));
            note("accept");
            while let Ok(1..) = connection.read(&mut [0; 1024]).await {
                connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
            note("end");
            let _ = connection.ready(Interest::ERROR).await;
            note("reset");
        }
    })
    .await;
    let sidecar = sidecar_for(&[stub.address()], 1, "linger = \"300ms\"").await;
    assert_eq!(get_through(sidecar.proxy(), &url(&stub, "/"), &[]).await.status(), 200);
    sidecar.until("stub", "idle", 1).await;
    let _tunnel = connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.unwrap();
    let expected = ["accept 0", "end 0", "reset 0", "accept 1"];
    let entries = || diary.lock().unwrap().iter().map(|(entry, _)| entry.clone()).collect::<Vec<_>>();
    eventually_is("four entries", SOON, expected.map(str::to_owned).to_vec(), async || entries()).await;
    let times: Vec<Instant> = diary.lock().unwrap().iter().map(|(_, time)| *time).collect();
    let lingered = times[3] - times[1];
    // Both times are the registry's own, which may have seen the end a little after it was sent.
    assert!(lingered >= Duration::from_millis(250), "{lingered:?}");
    assert!(lingered <= Duration::from_millis(300) + AT_ONCE, "{lingered:?}");
}

/// A kept connection that the registry closes when the next request is on its way: a request that changes nothing is
/// sent once more on a new one, and its client sees nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_that_the_registry_closed_is_replaced_unseen() {
    let (stub, seen, sidecar, mut client) = closed_at_the_second_request().await;
    assert_eq!(client.get(&url(&stub, "/2"), &[]).await.unwrap().status(), 200);
    let targets: Vec<(u64, String)> =
        seen.lock().unwrap().iter().map(|(number, head)| (*number, head.target().to_owned())).collect();
    assert_eq!(targets, [(0, "/1".to_owned()), (0, "/2".to_owned()), (1, "/2".to_owned())]);
    sidecar.until_outcomes("stub", Outcomes { served: 2, ..Outcomes::default() }).await;
}

/// A request that may change something is not sent twice: its client gets an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_is_never_sent_twice() {
    let (stub, seen, sidecar, mut client) = closed_at_the_second_request().await;
    let answer = send(&mut client, "POST", &url(&stub, "/2"), &["Content-Length: 3"], b"abc").await;
    assert_eq!(answer.status(), 502);
    assert_eq!(answer.json()["errors"][0]["detail"]["reason"], "upstream_unreachable");
    assert_eq!(seen.lock().unwrap().len(), 2);
    sidecar.until_outcomes("stub", Outcomes { served: 1, upstream_failed: 1, ..Outcomes::default() }).await;
}

/// A registry that says `Connection: close` gets its connection ended, and the next request a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_the_registry_will_close_is_not_kept() {
    let stub = StubRegistry::builder().close_each(true).start().await;
    let sidecar = sidecar_for(&[stub.address()], 1, "").await;
    let mut client = client_of(&sidecar).await;
    for _ in 0..3 {
        let answer = client.get(&url(&stub, "/v2/"), &[]).await.unwrap();
        assert_eq!((answer.status(), answer.header("connection")), (200, None), "the client's connection is its own");
    }
    assert_eq!((stub.accept_log().len(), stub.peak()), (3, 1));
}

/// A byte that is no ASCII beside `close` hides it from neither side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_is_seen_beside_a_token_that_is_no_ascii() {
    let stub = StubRegistry::raw(|connection| async move {
        let mut wire = Wire::new(connection);
        while let Ok(Some(_)) = wire.read_head().await {
            let answer = "HTTP/1.1 200 OK\r\nConnection: \u{e9}, close\r\nContent-Length: 2\r\n\r\nok";
            if wire.send(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    let sidecar = sidecar_for(&[stub.address()], 1, "").await;
    let mut client = client_of(&sidecar).await;
    for (line, connection) in [("X-A: 1", None), ("Connection: close, \u{e9}", Some("close"))] {
        let answer = client.get(&url(&stub, "/v2/"), &[line]).await.unwrap();
        assert_eq!((answer.status(), answer.header("connection")), (200, connection), "{line}");
    }
    assert_eq!(stub.accept_log().len(), 2, "the first connection is not used again");
    assert!(client.read_head().await.unwrap().is_none(), "the client's connection ends");
}

/// The target of OPTIONS goes out as it came, with its query.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_keep_their_target() {
    let (stub, sidecar) = stage(1).await;
    for (target, sent) in [("/", "/"), ("/?x=1", "/?x=1"), ("?x=1", "/?x=1"), ("/v2/?a", "/v2/?a")] {
        let mut client = client_of(&sidecar).await;
        client.ask("OPTIONS", &url(&stub, target), &[]).await.unwrap();
        let seen = stub.seen_requests().pop().unwrap();
        assert!(seen.starts_with(&format!("OPTIONS {sent} HTTP/1.1\r\n")), "{target}: {seen}");
    }
}

/// Requests sent at once on one connection are answered in their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order() {
    let (stub, sidecar) = stage(1).await;
    let mut client = client_of(&sidecar).await;
    let paths: Vec<String> = (0..5).map(|number| format!("/v2/team/image/blobs/sha256:{number}")).collect();
    let all: String = paths.iter().map(|path| request("GET", &url(&stub, path), &[])).collect();
    client.send(all.as_bytes()).await.unwrap();
    for path in &paths {
        let answer = answer(&mut client, "GET").await;
        assert!(answer.body == blob_of(path, BLOB), "{path}");
    }
    assert_eq!(stub.accept_log().len(), 1);
}

/// Every form that is none for a forward proxy gets a 400 that says why in its first line and its body, and is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_forms_are_refused_with_a_reason() {
    let (stub, sidecar) = stage(1).await;
    let address = stub.address();
    let forms: Vec<(Vec<u8>, &str)> = [
        ("GET /v2/ HTTP/1.1\r\nHost: {}\r\n\r\n", "forward proxy"),
        ("GET http://user:secret@{}/v2/ HTTP/1.1\r\nHost: {}\r\n\r\n", "user name"),
        ("GET http://{}/v2/ HTTP/1.1\r\nHost: {}\r\nHost: other\r\n\r\n", "Host"),
        ("GET ftp://{}/v2/ HTTP/1.1\r\nHost: {}\r\n\r\n", "neither http nor https"),
        ("GET http://127.1/v2/ HTTP/1.1\r\nHost: {}\r\n\r\n", "number"),
        ("GET http://[::1/v2/ HTTP/1.1\r\nHost: {}\r\n\r\n", ""),
        ("GET http:///v2/ HTTP/1.1\r\nHost: {}\r\n\r\n", ""),
        ("GET http://{}/v2/ HTTP/1.1\r\nHost: {}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", ""),
        ("CONNECT 127.0.0.1 HTTP/1.1\r\nHost: {}\r\n\r\n", "port"),
        ("CONNECT {}/v2/ HTTP/1.1\r\nHost: {}\r\n\r\n", ""),
        ("CONNECT http://{} HTTP/1.1\r\nHost: {}\r\n\r\n", ""),
        ("CONNECT user:secret@{} HTTP/1.1\r\nHost: {}\r\n\r\n", "user name"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "HTTP"),
        ("\0\0\0\0garbage\r\n\r\n", "HTTP"),
    ]
    .iter()
    .map(|(form, word)| (form.replace("{}", &address.to_string()).into_bytes(), *word))
    .chain([(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), "TLS")])
    .collect();
    let mut silent = Vec::new();
    for (form, word) in &forms {
        let shown = String::from_utf8_lossy(form).into_owned();
        let mut client = client_of(&sidecar).await;
        client.send(form).await.unwrap();
        let answer = answer(&mut client, "GET").await;
        assert_eq!(answer.status(), 400, "{shown:?}");
        if answer.body.is_empty() {
            silent.push(shown);
            continue;
        }
        let error = answer.json()["errors"][0].clone();
        assert_eq!(error["detail"]["reason"], "bad_request", "{shown:?}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(word), "{shown:?}: {message}");
        assert_eq!(answer.reason(), message, "{shown:?}");
        assert!(!message.contains("secret"), "{message}");
    }
    assert_eq!(silent, [""; 0], "refused without a reason");
    assert_eq!(stub.accept_log().len(), 0, "the registry was not bothered");
    let refused = sidecar.refused("other_hosts", "bad_request").await;
    assert_eq!(usize::try_from(refused).unwrap(), forms.len());
    assert_eq!(sidecar.outcomes("other_hosts").await.refused, refused);
}

/// A request to the sidecar itself, or one that came through it before, is a loop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_through_itself_is_refused_as_a_loop() {
    let (stub, sidecar) = stage(1).await;
    for listener in [sidecar.proxy(), sidecar.admin()] {
        let itself = get_through(sidecar.proxy(), &format!("http://{listener}/status"), &[]).await;
        assert_eq!(
            (itself.status(), itself.json()["errors"][0]["detail"]["reason"].as_str()),
            (508, Some("loop_detected"))
        );
        let tunnel = connect_through(sidecar.proxy(), &listener.to_string(), &[]).await.unwrap_err();
        assert_eq!(tunnel.status(), 508);
    }
    assert_eq!(get_through(sidecar.proxy(), &url(&stub, "/v2/"), &[]).await.status(), 200);
    let seen = Head::parse(stub.seen_requests()[0].as_bytes()).unwrap();
    let via = format!("Via: {}", seen.header("via").expect("a signature"));
    assert_eq!(get_through(sidecar.proxy(), &url(&stub, "/v2/"), &[&via]).await.status(), 508);
    let joined = via.replacen("Via: ", "Via: 1.1 \u{e9}, ", 1);
    assert_eq!(get_through(sidecar.proxy(), &url(&stub, "/v2/"), &[&joined]).await.status(), 508);
    assert_eq!(get_through(sidecar.proxy(), &url(&stub, "/v2/"), &["Via: 1.1 other"]).await.status(), 200);
}

/// A registry that says this once it has read a head, and then does nothing until its peer has gone: the diary tells
/// how ("end" or "reset").
async fn saying(words: Vec<u8>, then_close: bool) -> (StubRegistry, Arc<Mutex<Vec<&'static str>>>) {
    let diary = Arc::new(Mutex::new(Vec::new()));
    let notes = diary.clone();
    let stub = StubRegistry::raw(move |connection| {
        let (words, diary) = (words.clone(), notes.clone());
        async move {
            let mut wire = Wire::new(connection);
            if !matches!(wire.read_head().await, Ok(Some(_))) || wire.send(&words).await.is_err() || then_close {
                return;
            }
            let how = loop {
                match wire.receive().await {
                    Ok(bytes) if bytes.is_empty() => break "end",
                    Ok(_) => {}
                    Err(_) => break "reset",
                }
            };
            diary.lock().unwrap().push(how);
        }
    })
    .await;
    (stub, diary)
}

/// A registry that ends in the middle of a body: the client sees a cut body, and it counts as the registry's failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_the_registry_cuts_does_not_look_whole() {
    for framing in ["Content-Length: 1000\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        let (stub, _) = saying(format!("HTTP/1.1 200 OK\r\n{framing}").into_bytes(), true).await;
        let sidecar = sidecar_for(&[stub.address()], 1, "").await;
        let mut client = client_of(&sidecar).await;
        client.send(request("GET", &url(&stub, "/"), &[]).as_bytes()).await.unwrap();
        // The end may overtake the head: hyper writes neither then.
        if let Ok(head) = client.read_answer().await {
            assert_eq!(head.status(), 200);
            let body = tokio::time::timeout(SOON, client.body(Framing::of_answer(&head, "GET")).collect()).await;
            assert!(body.expect("an end").is_err(), "{framing:?} looked whole");
        }
        sidecar.until_outcomes("stub", Outcomes { upstream_failed: 1, ..Outcomes::default() }).await;
        sidecar.until("stub", "open", 0).await;
    }
}

/// How a client goes.
#[derive(Clone, Copy, Debug)]
enum Leaving {
    Close,
    Reset,
}

impl Leaving {
    fn act(self, client: Wire) {
        match self {
            Leaving::Close => drop(client),
            Leaving::Reset => client.reset(),
        }
    }
}

/// A client goes in the middle of an answer that has stopped coming: the registry's connection is cut at once, the
/// slot is free, and the outcome is the client's.
async fn a_client_leaves_mid_body(leaving: Leaving, version: &str) {
    let (stub, diary) = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf".to_vec(), false).await;
    let sidecar = sidecar_for(&[stub.address()], 1, "").await;
    let mut client = client_of(&sidecar).await;
    client.send(format!("GET {} HTTP/{version}\r\nHost: x\r\n\r\n", url(&stub, "/")).as_bytes()).await.unwrap();
    let head = client.read_answer().await.unwrap();
    let mut body = client.body(Framing::of_answer(&head, "GET"));
    assert_eq!(body.next().await.unwrap().unwrap(), "half");
    let went = Instant::now();
    leaving.act(client);
    eventually_is("the registry to see it", SOON, vec!["reset"], async || diary.lock().unwrap().clone()).await;
    assert!(went.elapsed() < AT_ONCE, "noticed after {:?}", went.elapsed());
    sidecar.until("stub", "open", 0).await;
    sidecar.until_outcomes("stub", Outcomes { client_left: 1, ..Outcomes::default() }).await;
}

/// A client that closes in the middle of an answer is noticed although nothing flows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_closes_mid_body_frees_its_slot() {
    a_client_leaves_mid_body(Leaving::Close, "1.1").await;
}

/// And one that resets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_resets_mid_body_frees_its_slot() {
    a_client_leaves_mid_body(Leaving::Reset, "1.1").await;
}

/// The FIN of a client that does not keep its connection may only mean that it said all; a reset is clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http_1_0_that_resets_mid_body_frees_its_slot() {
    a_client_leaves_mid_body(Leaving::Reset, "1.0").await;
}

/// A client goes while the registry streams to it: the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_a_flowing_answer_frees_its_slot() {
    let stub = StubRegistry::builder().blob_size(64 << 20).start().await;
    let sidecar = sidecar_for(&[stub.address()], 1, "").await;
    for (number, leaving) in [(1, Leaving::Close), (2, Leaving::Reset)] {
        let mut client = client_of(&sidecar).await;
        client.send(request("GET", &url(&stub, BLOB_PATH), &[]).as_bytes()).await.unwrap();
        client.read_answer().await.unwrap();
        leaving.act(client);
        sidecar.until("stub", "open", 0).await;
        sidecar.until_outcomes("stub", Outcomes { client_left: number, ..Outcomes::default() }).await;
        eventually_is("the registry to be left alone", SOON, 0, async || stub.open()).await;
    }
}

/// A client goes while the registry works on its answer.
async fn a_client_leaves_before_the_answer(leaving: Leaving, version: &str) {
    let (stub, diary) = saying(Vec::new(), false).await;
    let sidecar = sidecar_for(&[stub.address()], 1, "").await;
    let mut client = client_of(&sidecar).await;
    client.send(format!("GET {} HTTP/{version}\r\nHost: x\r\n\r\n", url(&stub, "/")).as_bytes()).await.unwrap();
    sidecar.until("stub", "active", 1).await;
    eventually_is("the registry to be reached", SOON, 1, async || stub.open()).await;
    leaving.act(client);
    eventually_is("the registry to see it", SOON, vec!["reset"], async || diary.lock().unwrap().clone()).await;
    sidecar.until("stub", "open", 0).await;
    sidecar.until_outcomes("stub", Outcomes { client_left: 1, ..Outcomes::default() }).await;
}

/// A client that goes before its answer comes takes the connection with it, however it goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_before_the_answer_frees_its_slot() {
    a_client_leaves_before_the_answer(Leaving::Close, "1.1").await;
    a_client_leaves_before_the_answer(Leaving::Reset, "1.1").await;
}

/// A reset is clear also from a client that does not keep its connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http_1_0_that_resets_before_the_answer_frees_its_slot() {
    a_client_leaves_before_the_answer(Leaving::Reset, "1.0").await;
}

/// A client that goes in the middle of its own upload is the one that left; the registry did not fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_mid_upload_counts_as_left() {
    for leaving in [Leaving::Close, Leaving::Reset] {
        let (stub, _) = saying(Vec::new(), false).await;
        let sidecar = sidecar_for(&[stub.address()], 1, "").await;
        let sent = async || sidecar.metrics().await.count("roadstead_relayed_bytes_total", &[("direction", "up")]);
        for number in 1..=5 {
            let before = sent().await;
            let mut client = client_of(&sidecar).await;
            let head = request("PUT", &url(&stub, "/v2/a"), &["Content-Length: 1000"]);
            client.send(format!("{head}half").as_bytes()).await.unwrap();
            eventually_is("the upload to be under way", SOON, true, async || sent().await > before).await;
            leaving.act(client);
            sidecar.until_outcomes("stub", Outcomes { client_left: number, ..Outcomes::default() }).await;
            sidecar.until("stub", "open", 0).await;
            eventually_is("the registry to see it", SOON, 0, async || stub.open()).await;
        }
    }
}

/// A queued request whose client goes is out of the queue at once, and the registry never hears of it: also with a body
/// or a pipelined request unread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_request_leaves_with_its_client() {
    let (stub, sidecar) = stage(1).await;
    let holder = connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.unwrap();
    let get = request("GET", &url(&stub, "/v2/"), &[]);
    let put = request("PUT", &url(&stub, "/v2/a"), &["Content-Length: 100000"]) + &"x".repeat(50_000);
    let mut left = 0;
    for bytes in [get.clone(), put, get.clone() + &get] {
        for leaving in [Leaving::Close, Leaving::Reset] {
            let mut client = client_of(&sidecar).await;
            client.send(bytes.as_bytes()).await.unwrap();
            sidecar.until("stub", "waiting", 1).await;
            let went = Instant::now();
            leaving.act(client);
            sidecar.until("stub", "waiting", 0).await;
            assert!(went.elapsed() < AT_ONCE, "noticed after {:?}", went.elapsed());
            left += 1;
            sidecar.until_outcomes("stub", Outcomes { client_left: left, ..Outcomes::default() }).await;
        }
    }
    drop(holder);
    assert_eq!(get_through(sidecar.proxy(), &url(&stub, "/v2/"), &[]).await.status(), 200);
    assert_eq!((stub.accept_log().len(), stub.requests()), (2, 1));
}

/// A registry that closes before it answers is told as a failure of the registry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_closes_without_an_answer_is_told_as_502() {
    let (stub, _) = scripted(|_, _| None).await;
    let sidecar = sidecar_for(&[stub.address()], 1, "").await;
    let answer = get_through(sidecar.proxy(), &url(&stub, "/"), &[]).await;
    assert_eq!(answer.status(), 502);
    assert_eq!(answer.json()["errors"][0]["detail"]["reason"], "upstream_unreachable");
    sidecar.until_outcomes("stub", Outcomes { upstream_failed: 1, ..Outcomes::default() }).await;
    sidecar.until("stub", "open", 0).await;
}
