//! A table of raw requests and answers with what RFC 9110, RFC 9112 and RFC 9931 ask of a proxy, asked of the proxy and of
//! the mirror: first on a connection, later on one that is kept, and sent at once with the request before it.

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
/// It ends the connection in words: a request that meets the end of a pooled one may fail.
const OK: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";

/// Requests: the section, the request, the status of the answer, and pieces that the registry was sent; with `!` in front,
/// that it was not. Without pieces it was sent nothing. A request is `METHOD | HEADERS, joined by & | BODY`, or raw; `{t}` is
/// the target, `{h}` a Host header and the row's own, `{x}` the latter alone.
const REQUESTS: &[(&str, &str, u16, &[&str])] = &[
    // Message framing, and the forms that smuggle.
    ("9112 6.1", "POST | Transfer-Encoding: chunked, chunked | 0\r\n\r\n", 400, &[]),
    ("9112 6.1", "POST | Transfer-Encoding: gzip, chunked | 0\r\n\r\n", 400, &[]),
    ("9112 6.1", "POST | Transfer-Encoding: chunked, gzip | 0\r\n\r\n", 400, &[]),
    ("9112 6.1", "POST | Transfer-Encoding: gzip | x", 400, &[]),
    ("9112 6.1", "POST | Transfer-Encoding: identity | x", 400, &[]),
    ("9112 6.1", "POST | Transfer-Encoding: xchunked | 0\r\n\r\n", 400, &[]),
    ("9112 6.1", "POST | Transfer-Encoding: \"chunked\" | 0\r\n\r\n", 400, &[]),
    ("9112 6.1", "POST | Transfer-Encoding: chunked;q=1 | 0\r\n\r\n", 400, &[]),
    ("9112 6.1", "POST | Transfer-Encoding: | x", 400, &[]),
    ("9112 6.1", "POST | Transfer-Encoding: chunked & Transfer-Encoding: chunked | 0\r\n\r\n", 400, &[]),
    ("9112 6.1", "POST | Transfer-Encoding: identity & Transfer-Encoding: chunked | 0\r\n\r\n", 400, &[]),
    ("9112 6.3", "POST | Content-Length: 5 & Transfer-Encoding: chunked | 0\r\n\r\n", 400, &[]),
    ("9112 6.3", "POST | Transfer-Encoding: chunked & Content-Length: 5 | 0\r\n\r\n", 400, &[]),
    ("9112 6.3", "POST | Content-Length: 1 & Content-Length: 2 | xy", 400, &[]),
    ("9112 6.3", "POST | Content-Length: 1, 2 | xy", 400, &[]),
    ("9110 8.6", "POST | Content-Length: -1 | x", 400, &[]),
    ("9110 8.6", "POST | Content-Length: +1 | x", 400, &[]),
    ("9110 8.6", "POST | Content-Length: 0x1 | x", 400, &[]),
    ("9110 8.6", "POST | Content-Length: 1 1 | x", 400, &[]),
    ("9110 8.6", "POST | Content-Length: 99999999999999999999 | x", 400, &[]),
    ("9112 5.1", "POST | Content-Length : 1 | x", 400, &[]),
    ("9112 5.1", "POST | Transfer-Encoding : chunked | 0\r\n\r\n", 400, &[]),
    ("9112 5.2", "GET | X-Fold: a\r\n b |", 400, &[]),
    ("9110 5.5", "GET | X: a\0b |", 400, &[]),
    ("9110 5.5", "GET | X: a\rb |", 400, &[]),
    ("9110 5.1", "GET | X(Y): a |", 400, &[]),
    ("9110 5.1", "GET | : a |", 400, &[]),
    ("9112 3.2", "GET | Host: localhost |", 400, &[]),
    ("9112 3.2", "GET | Host: other.test |", 400, &[]),
    ("9112 6.1", "POST | Content-Length: 0 & Transfer-Encoding: chunked | 0\r\n\r\n", 400, &[]),
    ("9112 6.1", "POST | Content-Length: 3 & Content-Length: 3 & Transfer-Encoding: chunked | 0\r\n\r\n", 400, &[]),
    ("9112 6.1", "POST | transfer-encoding: chunked & CONTENT-LENGTH: 3 | 0\r\n\r\n", 400, &[]),
    ("9112 6.1", "POST | Transfer-Encoding: ,chunked | 0\r\n\r\n", 400, &[]),
    ("9112 6.1", "POST | Transfer-Encoding: chunked, identity | 0\r\n\r\n", 400, &[]),
    ("9112 6.1", "POST | Transfer-Encoding: chunked\u{e9} | 0\r\n\r\n", 400, &[]),
    ("9110 8.6", "POST | Content-Length: | x", 400, &[]),
    ("9110 8.6", "POST | Content-Length: 1,1 | x", 400, &[]),
    ("9110 8.6", "POST | Content-Length: 1.0 | x", 400, &[]),
    ("9110 8.6", "POST | Content-Length: 18446744073709551616 | x", 400, &[]),
    ("9112 7.1", "POST | Transfer-Encoding: chunked | x\r\nabc\r\n0\r\n\r\n", 400, &[]),
    ("9112 7.1", "POST | Transfer-Encoding: chunked | -3\r\nabc\r\n0\r\n\r\n", 400, &[]),
    ("9112 7.1", "POST | Transfer-Encoding: chunked | 0x3\r\nabc\r\n0\r\n\r\n", 400, &[]),
    ("9112 7.1", "POST | Transfer-Encoding: chunked | 3\nabc\r\n0\r\n\r\n", 400, &[]),
    ("9112 7.1", "POST | Transfer-Encoding: chunked | 3\r\nabcd\r\n0\r\n\r\n", 400, &[]),
    ("9112 7.1", "POST | Transfer-Encoding: chunked | 3\r\nabc0\r\n\r\n", 400, &[]),
    ("9112 7.1", "POST | Transfer-Encoding: chunked | 10000000000000003\r\nabc\r\n0\r\n\r\n", 400, &[]),
    ("9112 7.1", "POST | Transfer-Encoding: chunked | \r\n0\r\n\r\n", 400, &[]),
    ("9112 7.1", "POST | Transfer-Encoding: chunked | 3;a\nb\r\nabc\r\n0\r\n\r\n", 400, &[]),
    ("9112 8", "POST | Transfer-Encoding: chunked | 3\r\nab", 400, &[]),
    ("9112 8", "POST | Content-Length: 3 | ab", 400, &[]),
    ("9112 6.1", "POST {t} HTTP/1.0\r\n{h}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, &[]),
    ("9112 2.2", "GET {t} HTTP/1.1\r\n {h}\r\n\r\n", 400, &[]),
    ("9112 3", "G(T {t} HTTP/1.1\r\n{h}\r\n\r\n", 400, &[]),
    ("9112 3", "GET {t} HTTP/1.1 x\r\n{h}\r\n\r\n", 400, &[]),
    ("9112 2.3", "GET {t} HTTP/3.0\r\n{h}\r\n\r\n", 400, &[]),
    ("9112 2.3", "GET {t} HTTP/1.9\r\n{h}\r\n\r\n", 400, &[]),
    ("9112 2.3", "GET {t} http/1.1\r\n{h}\r\n\r\n", 400, &[]),
    ("9112 3.2", "GET {t} HTTP/1.1\r\n\r\n", 400, &[]),
    ("9112 3.2", "GET {t} HTTP/1.0\r\nHost: a.test\r\nHost: b.test\r\n\r\n", 400, &[]),
    ("9112 3.2", "GET v2/ HTTP/1.1\r\n{h}\r\n\r\n", 400, &[]),
    ("9112 3.2", "GET  HTTP/1.1\r\n{h}\r\n\r\n", 400, &[]),
    ("9112 3.2", "GET http://[::1/ HTTP/1.1\r\n{h}\r\n\r\n", 400, &[]),
    ("9112 2.2", "GET {t} HTTP/1.1\r\n{h}\r\n X-Fold: a\r\n\r\n", 400, &[]),
    // Requests that end at this hop.
    ("9110 9.3.7", "OPTIONS * HTTP/1.1\r\n{h}\r\n\r\n", 200, &[]),
    ("9110 7.6.2", "OPTIONS | Max-Forwards: 0 |", 200, &[]),
    ("9110 7.6.2", "TRACE | Max-Forwards: 0 |", 200, &[]),
    // Requests that are relayed.
    ("9112 7.1", "POST | Transfer-Encoding: chunked | 3\r\nabc\r\n0\r\n\r\n", 200, &["chunked", "\r\n\r\nabc"]),
    ("9112 7.1", "POST | Transfer-Encoding: CHUNKED | 3\r\nabc\r\n0\r\n\r\n", 200, &["\r\n\r\nabc"]),
    ("9112 7.1.1", "POST | Transfer-Encoding: chunked | 3;x=y\r\nabc\r\n0\r\n\r\n", 200, &["\r\n\r\nabc", "!x=y"]),
    ("9112 7.1", "POST | Transfer-Encoding: chunked | 003\r\nabc\r\n000\r\n\r\n", 200, &["\r\n\r\nabc"]),
    ("9112 6.2", "POST | Content-Length: 3 | abc", 200, &["content-length: 3", "\r\n\r\nabc"]),
    ("9112 6.3", "POST | Content-Length: 3 & Content-Length: 3 | abc", 200, &["\r\n\r\nabc"]),
    ("9112 6.3", "POST |", 200, &["POST ", "!chunked"]),
    ("9110 9.3.1", "GET | Content-Length: 3 | abc", 200, &["\r\n\r\nabc"]),
    ("9110 9.1", "PURGE |", 200, &["PURGE "]),
    ("9110 9.3.5", "DELETE |", 200, &["DELETE "]),
    ("9110 9.3.4", "PUT | Content-Length: 1 | x", 200, &["PUT ", "\r\n\r\nx"]),
    ("9110 9.3.7", "OPTIONS |", 200, &["OPTIONS "]),
    ("9110 7.6.2", "OPTIONS | Max-Forwards: 5 |", 200, &["max-forwards: 4"]),
    ("9110 7.6.2", "TRACE | Max-Forwards: 1 |", 200, &["TRACE ", "max-forwards: 0"]),
    ("9110 7.6.2", "GET | Max-Forwards: 0 |", 200, &["max-forwards: 0"]),
    ("9110 7.6.1", "GET | Connection: X-Mine & X-Mine: 1 & X-Other: 2 |", 200, &["!x-mine", "x-other: 2"]),
    ("9110 7.6.1", "GET | Connection: x-mine, \u{e9} & X-Mine: 1 |", 200, &["GET ", "!x-mine"]),
    ("9110 7.6.1", "GET | Connection: a & Connection: b & A: 1 & B: 2 |", 200, &["!\r\na: 1", "!\r\nb: 2"]),
    ("9110 7.6.1", "POST | Connection: content-length & Content-Length: 1 | x", 200, &["content-length: 1"]),
    ("9110 7.6.1", "GET | Connection: host |", 200, &["host: "]),
    (
        "9110 7.6.1",
        "GET | Keep-Alive: timeout=5 & Proxy-Connection: keep-alive |",
        200,
        &["!keep-alive", "!proxy-connection"],
    ),
    ("9110 7.8", "GET | Connection: upgrade & Upgrade: h2c |", 200, &["GET ", "!upgrade"]),
    ("9110 10.1.4", "GET | TE: gzip & Connection: te |", 200, &["GET ", "!\r\nte: "]),
    ("9110 10.1.4", "GET | TE: trailers & Connection: te |", 200, &["te: trailers", "connection: te"]),
    ("9110 11.7.2", "GET | Proxy-Authorization: Basic eDp5 |", 200, &["GET ", "!proxy-authorization"]),
    ("9110 11.6.2", "GET | Authorization: Bearer t |", 200, &["authorization: bearer t"]),
    ("9110 7.6.3", "GET | Via: 1.0 a |", 200, &["via: 1.0 a", "via: 1.1 "]),
    ("9110 14.2", "GET | Range: bytes=0-0 |", 200, &["range: bytes=0-0"]),
    ("9112 2.2", "\r\n\r\nGET {t} HTTP/1.1\r\n{h}\r\n\r\n", 200, &["GET "]),
    ("9112 2.2", "GET {t} HTTP/1.1\n{h}\n\n", 200, &["GET "]),
    ("9112 3.2", "GET {t} HTTP/1.0\r\n{x}\r\n\r\n", 200, &["GET ", "host: ", "HTTP/1.1"]),
    ("9112 6.1", "POST | Transfer-Encoding:\tchunked\t | 3\r\nabc\r\n0\r\n\r\n", 200, &["\r\n\r\nabc"]),
    ("9112 6.1", "GET | Transfer_Encoding: chunked |", 200, &["transfer_encoding: chunked"]),
    (
        "9112 7.1.1",
        "POST | Transfer-Encoding: chunked | 3 ;x=\"\u{e9}\"\r\nabc\r\n0;y\r\n\r\n",
        200,
        &["\r\n\r\nabc", "!x="],
    ),
    (
        "9112 7.1.2",
        "POST | TE: trailers & Transfer-Encoding: chunked | 1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n",
        200,
        &["\r\n\r\na"],
    ),
    ("9112 6.2", "POST | Content-Length: 003 | abc", 200, &["\r\n\r\nabc"]),
    ("9110 8.6", "POST | Content-Length: 0 |", 200, &["content-length: 0"]),
    ("9112 6.3", "GET {t} HTTP/1.0\r\n{h}\r\nContent-Length: 3\r\n\r\nabc", 200, &["\r\n\r\nabc"]),
    (
        "9110 10.1.1",
        "POST {t} HTTP/1.0\r\n{h}\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
        200,
        &["\r\n\r\nx"],
    ),
    ("9110 10.1.1", "GET | Expect: 100-continue |", 200, &["GET "]),
    ("9110 5.5", "GET | X-Bytes: \u{e9}\u{fc} |", 200, &["x-bytes: \u{e9}\u{fc}"]),
    ("9110 5.3", "GET | X-Twice: a & X-Twice: b |", 200, &["x-twice: a\r\n", "x-twice: b\r\n"]),
    ("9110 7.6.1", "GET | Connection: close, x-mine & X-Mine: 1 |", 200, &["!x-mine", "!connection: close"]),
    (
        "9110 7.6.1",
        "POST | Connection: transfer-encoding & Transfer-Encoding: chunked | 1\r\na\r\n0\r\n\r\n",
        200,
        &["\r\n\r\na"],
    ),
    // An offer to switch is not passed on: data behind it is the next request, or none.
    ("9931 5", "GET | Connection: upgrade & Upgrade: websocket | \u{81}\u{5}hello", 200, &["!upgrade"]),
    ("9931 5", "GET | Connection: upgrade & Upgrade: connect-udp & Capsule-Protocol: ?1 | \0\0", 200, &["!upgrade: "]),
    ("9931 5", "GET | Connection: upgrade & Upgrade: tls/1.3 | \u{16}\u{3}\u{1}", 200, &["!upgrade: "]),
];

/// Answers: the section, the request, the registry's answer, the first status that the client gets, and pieces of what it
/// gets.
const ANSWERS: &[(&str, &str, &str, u16, &[&str])] = &[
    (
        "9112 6.2",
        "GET |",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        200,
        &["content-length: 3", "\r\n\r\nabc"],
    ),
    (
        "9112 7.1",
        "GET |",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        200,
        &["chunked", "3\r\nabc\r\n0\r\n\r\n"],
    ),
    ("9112 6.3", "GET |", "HTTP/1.1 200 OK\r\n\r\nabc", 200, &["abc"]),
    ("9112 6.3", "GET |", "HTTP/1.0 200 OK\r\n\r\nabc", 200, &["HTTP/1.1 200", "abc"]),
    ("9112 6.3", "GET |", "HTTP/1.1 204 No Content\r\n\r\n", 204, &["!chunked"]),
    ("9112 6.3", "GET |", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", 304, &["etag: \"x\"", "!chunked"]),
    ("9110 9.3.2", "HEAD |", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", 200, &["content-length: 1000"]),
    (
        "9112 6.3",
        "HEAD |",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        200,
        &["content-length: 5", "!content-length: 5\r\ncontent-length"],
    ),
    ("9112 6.3", "HEAD |", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n", 502, &[]),
    ("9112 6.3", "HEAD |", "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", 502, &[]),
    ("9110 9.3.2", "HEAD |", "HTTP/1.1 404 Not Found\r\nContent-Length: 10\r\n\r\n", 404, &["content-length: 10"]),
    ("9112 4", "GET |", "HTTP/1.1 299 Own Words\r\nContent-Length: 0\r\n\r\n", 299, &["299 own words"]),
    ("9112 4", "GET |", "HTTP/1.1 418 \r\nContent-Length: 0\r\n\r\n", 418, &[]),
    (
        "9110 7.6.1",
        "GET |",
        "HTTP/1.1 200 OK\r\nConnection: X-Mine\r\nX-Mine: 1\r\nContent-Length: 0\r\n\r\n",
        200,
        &["!x-mine"],
    ),
    (
        "9110 7.6.1",
        "GET |",
        "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n",
        200,
        &["!keep-alive"],
    ),
    ("9110 7.8", "GET |", "HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n", 200, &["!upgrade"]),
    (
        "9110 11.6.1",
        "GET |",
        "HTTP/1.1 401 U\r\nWWW-Authenticate: Basic realm=\"a\"\r\nContent-Length: 0\r\n\r\n",
        401,
        &["basic realm=\"a\""],
    ),
    ("9112 6.1", "GET |", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 502, &[]),
    ("9112 6.1", "GET |", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 502, &[]),
    ("9112 6.1", "GET |", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502, &[]),
    (
        "9112 6.3",
        "GET |",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        502,
        &[],
    ),
    ("9112 6.3", "GET |", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 502, &[]),
    ("9110 8.6", "GET |", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nab", 502, &[]),
    ("9110 8.6", "GET |", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab", 502, &[]),
    ("9110 8.6", "HEAD |", "HTTP/1.1 200 OK\r\nContent-Length: 2,2\r\n\r\n", 502, &[]),
    ("9112 4", "GET |", "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", 502, &[]),
    ("9112 5.1", "GET |", "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nab", 502, &[]),
    ("9112 4", "GET |", "nonsense\r\n\r\n", 502, &[]),
    ("9112 6.3", "HEAD |", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, &["!\r\n0\r\n"]),
    ("9112 6.3", "GET |", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", 200, &["\r\n\r\nab"]),
    (
        "9112 6.3",
        "GET {t} HTTP/1.0\r\n{h}\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        200,
        &["!chunked", "\r\n\r\na"],
    ),
    (
        "9112 7.1.2",
        "GET | TE: trailers |",
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n",
        200,
        &["x-sum: 1"],
    ),
    (
        "9110 7.6.3",
        "GET |",
        "HTTP/1.1 200 OK\r\nVia: 1.0 a\r\nContent-Length: 0\r\n\r\n",
        200,
        &["via: 1.0 a", "via: 1.1 "],
    ),
    (
        "9110 7.6.1",
        "GET |",
        "HTTP/1.1 200 OK\r\nConnection: \u{e9}, x-mine\r\nX-Mine: 1\r\nContent-Length: 0\r\n\r\n",
        200,
        &["!x-mine"],
    ),
    (
        "9110 15.2",
        "GET |",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        200,
        &["!100 continue"],
    ),
    (
        "9110 15.2",
        "POST | Expect: 100-continue & Content-Length: 1 | x",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        100,
        &["HTTP/1.1 100", "HTTP/1.1 200"],
    ),
    (
        "9110 15.2",
        "GET |",
        "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na",
        102,
        &["via: 1.1 ", "HTTP/1.1 200", "\r\n\r\na"],
    ),
    (
        "8297 2",
        "GET |",
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\nX: 1\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na",
        103,
        &["103 early hints\r\nlink: </a>\r\nvia: ", "!\r\nx: 1", "HTTP/1.1 200", "\r\n\r\na"],
    ),
    (
        "9110 15.2",
        "GET |",
        "HTTP/1.1 103 A\r\nA: 1\r\n\r\nHTTP/1.1 199 B\r\nB: 2\r\n\r\nHTTP/1.1 404 N\r\nContent-Length: 0\r\n\r\n",
        103,
        &["a: 1", "HTTP/1.1 199", "b: 2", "HTTP/1.1 404"],
    ),
    (
        "9110 15.2",
        "GET {t} HTTP/1.0\r\n{h}\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na",
        200,
        &["!link", "\r\n\r\na"],
    ),
    ("9110 15.2.2", "GET |", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 502, &[]),
    (
        "9931 5",
        "GET | Connection: upgrade & Upgrade: x |",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        502,
        &["!101"],
    ),
];

/// CONNECTs that are refused, with what the client sent for the tunnel: the status at the proxy. A mirror has no tunnels.
const CONNECTS: &[(&str, &str, u16)] = &[
    ("9931 4", "CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\nGET {t} HTTP/1.1\r\n{h}\r\n\r\n", 403),
    (
        "9931 4",
        "CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic eDp5\r\n\r\nGET {t} HTTP/1.1\r\n{h}\r\n\r\n",
        403,
    ),
    ("9931 4", "CONNECT 169.254.169.254:80 HTTP/1.0\r\n\r\nGET {t} HTTP/1.1\r\n{h}\r\n\r\n", 403),
    ("9110 9.3.6", "CONNECT x HTTP/1.1\r\nHost: x\r\n\r\nGET {t} HTTP/1.1\r\n{h}\r\n\r\n", 400),
    ("9110 9.3.6", "CONNECT x:0 HTTP/1.1\r\nHost: x\r\n\r\nGET {t} HTTP/1.1\r\n{h}\r\n\r\n", 400),
    ("9110 9.3.6", "CONNECT {t} HTTP/1.1\r\n{h}\r\n\r\nGET {t} HTTP/1.1\r\n{h}\r\n\r\n", 400),
    ("9110 9.3.6", "CONNECT x:80 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nGET {t} HTTP/1.1\r\n{h}\r\n\r\n", 400),
    (
        "9110 9.3.6",
        "CONNECT x:80 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nGET {t} HTTP/1.1\r\n{h}\r\n\r\n",
        400,
    ),
    (
        "9112 6.3",
        "CONNECT x:80 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
        400,
    ),
];

/// One row at one listener.
struct Case {
    section: &'static str,
    request: String,
    status: u16,
    client: &'static [&'static str],
    registry: &'static [&'static str],
    ends: bool,
}

fn case(row: usize, target: &str) -> Case {
    let is_mirror = target.starts_with('/');
    let (section, request, status, client, registry, ends) = match row.checked_sub(REQUESTS.len()) {
        None => {
            let (section, request, status, registry) = REQUESTS[row];
            (section, request, status, &[][..], registry, status == 400)
        }
        Some(row) if row < ANSWERS.len() => {
            let (section, request, _, status, client) = ANSWERS[row];
            (section, request, status, client, &["HTTP/1.1"][..], false)
        }
        Some(row) => {
            let (section, request, status) = CONNECTS[row - ANSWERS.len()];
            (section, request, if is_mirror { 400 } else { status }, &["connection: close"][..], &[][..], true)
        }
    };
    let request = match request.split_once(" |") {
        None => request.to_owned(),
        Some((method, rest)) => {
            let (headers, body) = rest.rsplit_once('|').unwrap_or((rest, ""));
            let headers = headers.trim_matches(' ').split(" & ").filter(|header| !header.is_empty());
            let headers: Vec<String> = headers.map(|header| format!("\r\n{header}")).collect();
            let headers = headers.concat();
            format!("{method} {{t}} HTTP/1.1\r\n{{h}}{headers}\r\n\r\n{}", body.trim_start_matches(' '))
        }
    };
    let own = format!("X-Row: {row}");
    let request = request.replace("{t}", target).replace("{h}", &format!("Host: localhost\r\n{own}"));
    Case { section, request: request.replace("{x}", &own), status, client, registry, ends }
}

/// The requests that the registry was sent, by the row.
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
            // Without a row it is the request before one.
            let row: Option<usize> = head.header("X-Row").map(|row| row.parse().unwrap());
            let Ok(body) = wire.body(Framing::of_request(&head)).collect().await else { return };
            if let Some(row) = row {
                seen.lock().unwrap().insert(row, head.raw().to_owned() + &String::from_utf8_lossy(&body));
            }
            let answer = row.and_then(|row| ANSWERS.get(row.checked_sub(REQUESTS.len())?)).map_or(OK, |row| row.2);
            let _ = wire.send(answer.as_bytes()).await;
        }
    })
    .await;
    (stub, seen)
}

/// Where a row comes on its connection.
#[derive(Clone, Copy, Debug)]
enum Place {
    First,
    /// After the answer to another request.
    Later,
    /// In one piece with another request.
    Pipelined,
}

/// The answers that the client gets to the row. The connection ends in order.
async fn ask(address: SocketAddr, place: Place, before: &str, request: &[u8]) -> String {
    let mut client = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    if let Place::Later = place {
        client.write_all(before.as_bytes()).await.unwrap();
        while !answer.ends_with(b"\r\n\r\nok") {
            assert_ne!(timeout(SOON, client.read_buf(&mut answer)).await.expect("an answer in time").unwrap(), 0);
        }
        answer.clear();
        client.write_all(request).await.unwrap();
    } else {
        let before = if let Place::Pipelined = place { before } else { "" };
        client.write_all(&[before.as_bytes(), request].concat()).await.unwrap();
    }
    client.shutdown().await.unwrap();
    timeout(SOON, client.read_to_end(&mut answer)).await.expect("an answer in time").unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let Place::Pipelined = place else { return answer };
    let (_, own) = answer.split_once("\r\n\r\nok").expect("the answer to the request before");
    own.to_owned()
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

/// Each row at the proxy, in absolute-form, and at the mirror, in origin-form, at each place of a connection.
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
    let (rows, mut failures) = (REQUESTS.len() + ANSWERS.len() + CONNECTS.len(), Vec::new());
    assert!(rows >= 120, "{rows} rows");
    for row in 0..rows {
        for (way, target) in &ways {
            let case = case(row, target);
            let before = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            for place in [Place::First, Place::Later, Place::Pipelined] {
                seen.lock().unwrap().clear();
                let answer = ask(*way, place, &before, case.request.as_bytes()).await;
                let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
                let got = seen.lock().unwrap().get(&row).cloned();
                let is_where_it_should = got.is_some() != case.registry.is_empty();
                let ends = !case.ends || answer.to_ascii_lowercase().contains("connection: close");
                let client = unmet(&answer, case.client);
                let unmet = [client, unmet(got.as_deref().unwrap_or_default(), case.registry)].concat();
                if status != case.status.to_string() || !is_where_it_should || !ends || !unmet.is_empty() {
                    let (section, request) = (case.section, &case.request);
                    failures.push(format!(
                        "{section} {place:?} {request:?}\nunmet: {unmet:?}\nclient: {answer}\nregistry: {got:?}"
                    ));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n\n"));
}
