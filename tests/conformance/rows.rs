//! A table of raw requests and answers with what RFC 9110 and RFC 9112 ask of a proxy, asked of the proxy and of the mirror.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use roadstead_test_support::http::Framing;
use roadstead_test_support::{Sidecar, StubConnection, StubRegistry, Wire, config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// One row: `{t}` in a request stands for the target, `{h}` for a Host header and the row's own.
struct Row {
    section: &'static str,
    request: &'static str,
    answer: &'static str,
    status: u16,
    /// Pieces that the client's answer has; with `!` in front, that it lacks.
    client: &'static [&'static str],
    /// The same for what the registry was sent. A row without any never reaches the registry.
    registry: &'static [&'static str],
}

/// The request is refused with this status and goes nowhere.
const fn refused(section: &'static str, request: &'static str, status: u16) -> Row {
    Row { section, request, answer: OK, status, client: &[], registry: &[] }
}

/// The request is relayed, and the registry is sent this.
const fn sent(section: &'static str, request: &'static str, registry: &'static [&'static str]) -> Row {
    Row { section, request, answer: OK, status: 200, client: &[], registry }
}

/// The answer to a plain GET is relayed so.
const fn told(section: &'static str, answer: &'static str, status: u16, client: &'static [&'static str]) -> Row {
    Row { section, request: "GET {t} HTTP/1.1\r\n{h}\r\n\r\n", answer, status, client, registry: &["GET "] }
}

/// The same for a HEAD.
const fn told_of(section: &'static str, answer: &'static str, status: u16, client: &'static [&'static str]) -> Row {
    Row { section, request: "HEAD {t} HTTP/1.1\r\n{h}\r\n\r\n", answer, status, client, registry: &["HEAD "] }
}

const ROWS: &[Row] = &[
    // Message framing, and the forms that smuggle.
    refused("9112 6.1", "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    refused("9112 6.1", "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    refused("9112 6.1", "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400),
    refused("9112 6.1", "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding: gzip\r\n\r\nx", 400),
    refused("9112 6.1", "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding: identity\r\n\r\nx", 400),
    refused("9112 6.1", "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    refused("9112 6.1", "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 400),
    refused("9112 6.1", "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", 400),
    refused("9112 6.1", "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding:\r\n\r\nx", 400),
    refused(
        "9112 6.1",
        "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    refused(
        "9112 6.1",
        "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    refused(
        "9112 6.3",
        "POST {t} HTTP/1.1\r\n{h}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    refused(
        "9112 6.3",
        "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        400,
    ),
    refused("9112 6.1", "POST {t} HTTP/1.0\r\n{h}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    refused("9112 6.3", "POST {t} HTTP/1.1\r\n{h}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy", 400),
    refused("9112 6.3", "POST {t} HTTP/1.1\r\n{h}\r\nContent-Length: 1, 2\r\n\r\nxy", 400),
    refused("9110 8.6", "POST {t} HTTP/1.1\r\n{h}\r\nContent-Length: -1\r\n\r\nx", 400),
    refused("9110 8.6", "POST {t} HTTP/1.1\r\n{h}\r\nContent-Length: +1\r\n\r\nx", 400),
    refused("9110 8.6", "POST {t} HTTP/1.1\r\n{h}\r\nContent-Length: 0x1\r\n\r\nx", 400),
    refused("9110 8.6", "POST {t} HTTP/1.1\r\n{h}\r\nContent-Length: 1 1\r\n\r\nx", 400),
    refused("9110 8.6", "POST {t} HTTP/1.1\r\n{h}\r\nContent-Length: 99999999999999999999\r\n\r\nx", 400),
    refused("9112 5.1", "POST {t} HTTP/1.1\r\n{h}\r\nContent-Length : 1\r\n\r\nx", 400),
    refused("9112 5.1", "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    refused("9112 5.2", "GET {t} HTTP/1.1\r\n{h}\r\nX-Fold: a\r\n b\r\n\r\n", 400),
    refused("9112 2.2", "GET {t} HTTP/1.1\r\n {h}\r\n\r\n", 400),
    refused("9110 5.5", "GET {t} HTTP/1.1\r\n{h}\r\nX: a\0b\r\n\r\n", 400),
    refused("9110 5.5", "GET {t} HTTP/1.1\r\n{h}\r\nX: a\rb\r\n\r\n", 400),
    refused("9110 5.1", "GET {t} HTTP/1.1\r\n{h}\r\nX(Y): a\r\n\r\n", 400),
    refused("9110 5.1", "GET {t} HTTP/1.1\r\n{h}\r\n: a\r\n\r\n", 400),
    refused("9112 3", "G(T {t} HTTP/1.1\r\n{h}\r\n\r\n", 400),
    refused("9112 3", "GET {t} HTTP/1.1 x\r\n{h}\r\n\r\n", 400),
    refused("9112 2.3", "GET {t} HTTP/3.0\r\n{h}\r\n\r\n", 400),
    refused("9112 2.3", "GET {t} HTTP/1.9\r\n{h}\r\n\r\n", 400),
    refused("9112 2.3", "GET {t} http/1.1\r\n{h}\r\n\r\n", 400),
    sent(
        "9112 7.1",
        "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        &["chunked", "\r\n\r\nabc"],
    ),
    sent(
        "9112 7.1",
        "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding: CHUNKED\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        &["\r\n\r\nabc"],
    ),
    sent(
        "9112 7.1.1",
        "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n",
        &["\r\n\r\nabc", "!x=y"],
    ),
    sent(
        "9112 7.1",
        "POST {t} HTTP/1.1\r\n{h}\r\nTransfer-Encoding: chunked\r\n\r\n003\r\nabc\r\n000\r\n\r\n",
        &["\r\n\r\nabc"],
    ),
    sent("9112 6.2", "POST {t} HTTP/1.1\r\n{h}\r\nContent-Length: 3\r\n\r\nabc", &["content-length: 3", "\r\n\r\nabc"]),
    sent("9112 6.3", "POST {t} HTTP/1.1\r\n{h}\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", &["\r\n\r\nabc"]),
    sent("9112 6.3", "POST {t} HTTP/1.1\r\n{h}\r\n\r\n", &["POST ", "!chunked"]),
    sent("9110 9.3.1", "GET {t} HTTP/1.1\r\n{h}\r\nContent-Length: 3\r\n\r\nabc", &["\r\n\r\nabc"]),
    sent("9112 2.2", "\r\n\r\nGET {t} HTTP/1.1\r\n{h}\r\n\r\n", &["GET "]),
    sent("9112 2.2", "GET {t} HTTP/1.1\n{h}\n\n", &["GET "]),
    // Host and target.
    refused("9112 3.2", "GET {t} HTTP/1.1\r\n\r\n", 400),
    refused("9112 3.2", "GET {t} HTTP/1.1\r\n{h}\r\nHost: localhost\r\n\r\n", 400),
    refused("9112 3.2", "GET {t} HTTP/1.1\r\n{h}\r\nHost: other.test\r\n\r\n", 400),
    refused("9112 3.2", "GET {t} HTTP/1.0\r\nHost: a.test\r\nHost: b.test\r\n\r\n", 400),
    sent("9112 3.2", "GET {t} HTTP/1.0\r\n{x}\r\n\r\n", &["GET ", "host: ", "HTTP/1.1"]),
    refused("9112 3.2", "GET v2/ HTTP/1.1\r\n{h}\r\n\r\n", 400),
    refused("9112 3.2", "GET  HTTP/1.1\r\n{h}\r\n\r\n", 400),
    refused("9112 3.2", "GET http://[::1/ HTTP/1.1\r\n{h}\r\n\r\n", 400),
    // Methods.
    sent("9110 9.1", "PURGE {t} HTTP/1.1\r\n{h}\r\n\r\n", &["PURGE "]),
    sent("9110 9.3.5", "DELETE {t} HTTP/1.1\r\n{h}\r\n\r\n", &["DELETE "]),
    sent("9110 9.3.4", "PUT {t} HTTP/1.1\r\n{h}\r\nContent-Length: 1\r\n\r\nx", &["PUT ", "\r\n\r\nx"]),
    sent("9110 9.3.7", "OPTIONS {t} HTTP/1.1\r\n{h}\r\n\r\n", &["OPTIONS "]),
    sent("9110 7.6.2", "OPTIONS {t} HTTP/1.1\r\n{h}\r\nMax-Forwards: 5\r\n\r\n", &["max-forwards: 4"]),
    sent("9110 7.6.2", "TRACE {t} HTTP/1.1\r\n{h}\r\nMax-Forwards: 1\r\n\r\n", &["TRACE ", "max-forwards: 0"]),
    sent("9110 7.6.2", "GET {t} HTTP/1.1\r\n{h}\r\nMax-Forwards: 0\r\n\r\n", &["max-forwards: 0"]),
    refused("9110 9.3.7", "OPTIONS * HTTP/1.1\r\n{h}\r\n\r\n", 200),
    refused("9110 7.6.2", "OPTIONS {t} HTTP/1.1\r\n{h}\r\nMax-Forwards: 0\r\n\r\n", 200),
    refused("9110 7.6.2", "TRACE {t} HTTP/1.1\r\n{h}\r\nMax-Forwards: 0\r\n\r\n", 200),
    // Headers of one hop.
    sent(
        "9110 7.6.1",
        "GET {t} HTTP/1.1\r\n{h}\r\nConnection: X-Mine\r\nX-Mine: 1\r\nX-Other: 2\r\n\r\n",
        &["!x-mine", "x-other: 2"],
    ),
    sent(
        "9110 7.6.1",
        "GET {t} HTTP/1.1\r\n{h}\r\nConnection: x-mine, \u{e9}\r\nX-Mine: 1\r\n\r\n",
        &["GET ", "!x-mine"],
    ),
    sent(
        "9110 7.6.1",
        "GET {t} HTTP/1.1\r\n{h}\r\nConnection: a\r\nConnection: b\r\nA: 1\r\nB: 2\r\n\r\n",
        &["!\r\na: 1", "!\r\nb: 2"],
    ),
    sent(
        "9110 7.6.1",
        "POST {t} HTTP/1.1\r\n{h}\r\nConnection: content-length\r\nContent-Length: 1\r\n\r\nx",
        &["content-length: 1"],
    ),
    sent("9110 7.6.1", "GET {t} HTTP/1.1\r\n{h}\r\nConnection: host\r\n\r\n", &["host: "]),
    sent(
        "9110 7.6.1",
        "GET {t} HTTP/1.1\r\n{h}\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\r\n",
        &["!keep-alive", "!proxy-connection"],
    ),
    sent("9110 7.8", "GET {t} HTTP/1.1\r\n{h}\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", &["GET ", "!upgrade"]),
    sent("9110 10.1.4", "GET {t} HTTP/1.1\r\n{h}\r\nTE: gzip\r\nConnection: te\r\n\r\n", &["GET ", "!\r\nte: "]),
    sent(
        "9110 10.1.4",
        "GET {t} HTTP/1.1\r\n{h}\r\nTE: trailers\r\nConnection: te\r\n\r\n",
        &["te: trailers", "connection: te"],
    ),
    sent(
        "9110 11.7.2",
        "GET {t} HTTP/1.1\r\n{h}\r\nProxy-Authorization: Basic eDp5\r\n\r\n",
        &["GET ", "!proxy-authorization"],
    ),
    sent("9110 11.6.2", "GET {t} HTTP/1.1\r\n{h}\r\nAuthorization: Bearer t\r\n\r\n", &["authorization: bearer t"]),
    sent("9110 7.6.3", "GET {t} HTTP/1.1\r\n{h}\r\nVia: 1.0 a\r\n\r\n", &["via: 1.0 a", "via: 1.1 "]),
    sent("9110 14.2", "GET {t} HTTP/1.1\r\n{h}\r\nRange: bytes=0-0\r\n\r\n", &["range: bytes=0-0"]),
    // Answers.
    told("9112 6.2", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, &["content-length: 3", "\r\n\r\nabc"]),
    told(
        "9112 7.1",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        200,
        &["chunked", "3\r\nabc\r\n0\r\n\r\n"],
    ),
    told("9112 6.3", "HTTP/1.1 200 OK\r\n\r\nabc", 200, &["abc"]),
    told("9112 6.3", "HTTP/1.0 200 OK\r\n\r\nabc", 200, &["HTTP/1.1 200", "abc"]),
    told("9112 6.3", "HTTP/1.1 204 No Content\r\n\r\n", 204, &["!chunked"]),
    told("9112 6.3", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", 304, &["etag: \"x\"", "!chunked"]),
    told_of("9110 9.3.2", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", 200, &["content-length: 1000"]),
    told_of("9110 9.3.2", "HTTP/1.1 404 Not Found\r\nContent-Length: 10\r\n\r\n", 404, &["content-length: 10"]),
    told("9112 4", "HTTP/1.1 299 Own Words\r\nContent-Length: 0\r\n\r\n", 299, &["299 own words"]),
    told("9112 4", "HTTP/1.1 418 \r\nContent-Length: 0\r\n\r\n", 418, &[]),
    told(
        "9110 7.6.1",
        "HTTP/1.1 200 OK\r\nConnection: X-Mine\r\nX-Mine: 1\r\nContent-Length: 0\r\n\r\n",
        200,
        &["!x-mine"],
    ),
    told("9110 7.6.1", "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n", 200, &["!keep-alive"]),
    told("9110 7.8", "HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n", 200, &["!upgrade"]),
    told(
        "9110 11.6.1",
        "HTTP/1.1 401 U\r\nWWW-Authenticate: Basic realm=\"a\"\r\nContent-Length: 0\r\n\r\n",
        401,
        &["basic realm=\"a\""],
    ),
    told("9110 15.2", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, &[]),
    told("9110 15.2", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 502, &[]),
    told("9112 6.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 502, &[]),
    told("9112 6.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 502, &[]),
    told("9112 6.1", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502, &[]),
    told("9112 6.3", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502, &[]),
    told("9112 6.3", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 502, &[]),
    told("9110 8.6", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nab", 502, &[]),
    told("9112 4", "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", 502, &[]),
    told("9112 5.1", "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nab", 502, &[]),
    told("9112 4", "nonsense\r\n\r\n", 502, &[]),
];

/// The request that the registry was sent, by the row.
type Seen = Arc<Mutex<HashMap<usize, String>>>;

/// A registry that gives each row its answer, and then closes.
async fn registry() -> (StubRegistry, Seen) {
    let seen = Seen::default();
    let shown = seen.clone();
    let stub = StubRegistry::raw(move |connection: StubConnection| {
        let seen = shown.clone();
        async move {
            let mut wire = Wire::new(connection);
            let Ok(Some(head)) = wire.read_head().await else { return };
            let row: usize = head.header("X-Row").expect("every relayed row has one").parse().unwrap();
            let body = wire.body(Framing::of_request(&head)).collect().await.unwrap_or_default();
            seen.lock().unwrap().insert(row, head.raw().to_owned() + &String::from_utf8_lossy(&body));
            let _ = wire.send(ROWS[row].answer.as_bytes()).await;
        }
    })
    .await;
    (stub, seen)
}

async fn ask(address: SocketAddr, bytes: &[u8]) -> String {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(bytes).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = Vec::new();
    timeout(SOON, client.read_to_end(&mut answer)).await.expect("an answer in time").unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// The pieces that a text lacks, or has and should not.
fn unmet(text: &str, pieces: &[&str]) -> Vec<String> {
    let text = text.to_ascii_lowercase();
    let met = |piece: &&&str| match piece.strip_prefix('!') {
        Some(unwanted) => !text.contains(&unwanted.to_ascii_lowercase()),
        None => text.contains(&piece.to_ascii_lowercase()),
    };
    pieces.iter().filter(|piece| !met(piece)).map(ToString::to_string).collect()
}

/// Each row at the proxy, in absolute-form, and at the mirror, in origin-form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_row_is_handled_as_its_section_says() {
    let (stub, seen) = registry().await;
    let address = stub.address();
    let table = format!(
        "[registries.stub]\nhosts = [\"{address}\"]\ncap = 4\nshare = 1\n[registries.stub.mirror]\n\
         listen = \"127.0.0.1:0\"\nupstream = \"http://{address}\"\n[registries.stub.repair]\nenabled = false\n"
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&table)).await;
    let ways = [
        (sidecar.proxy(), format!("http://{address}/v2/a")),
        (sidecar.listener("mirror").unwrap(), "/v2/a".to_owned()),
    ];
    let (mut handled, mut failures) = (0, Vec::new());
    for (number, row) in ROWS.iter().enumerate() {
        for (way, target) in &ways {
            let own = format!("X-Row: {number}");
            let text = row.request.replace("{t}", target).replace("{h}", &format!("Host: localhost\r\n{own}"));
            let text = text.replace("{x}", &own);
            let name = format!("{} {text:?}", row.section);
            seen.lock().unwrap().clear();
            let answer = ask(*way, text.as_bytes()).await;
            let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
            let got = seen.lock().unwrap().get(&number).cloned();
            let is_where_it_should = got.is_some() != row.registry.is_empty();
            let unmet = [unmet(&answer, row.client), unmet(got.as_deref().unwrap_or_default(), row.registry)].concat();
            if status != row.status.to_string() || !is_where_it_should || !unmet.is_empty() {
                failures.push(format!("{name}\nunmet: {unmet:?}\nthe client got: {answer}\nthe registry got: {got:?}"));
            }
            handled += 1;
        }
    }
    assert!(failures.is_empty(), "{} rows:\n{}", failures.len(), failures.join("\n\n"));
    assert!(handled >= 200, "{handled} rows");
}
