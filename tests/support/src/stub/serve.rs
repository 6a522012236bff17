//! One connection of the stub, from `accept()` to its end: read a request, wait as told, answer, again.
//!
//! While an answer waits, the connection is still read, as nginx does: a peer that leaves is seen at once.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::answer::{Answer, Upload, answer, too_many_clients};
use super::count::StubConnection;
use super::{Seen, StubBuilder, locked};
use crate::http::{Framing, Head, Wire};

/// Bytes of an answer that go out in the first write, as with a registry written in Go.
const TOGETHER: usize = 4096;
/// Bytes that go out at once where the pace of all connections is bounded.
const PACED: usize = 64 * 1024;

/// Serves until either side ends it. Errors are ends like any other.
pub(super) async fn connection(connection: StubConnection, settings: Arc<StubBuilder>, seen: Arc<Seen>) {
    let mut wire = Wire::new(connection);
    while let Ok(true) = one_request(&mut wire, &settings, &seen).await {}
}

/// Serves one request; whether another may follow.
async fn one_request(wire: &mut Wire<StubConnection>, settings: &StubBuilder, seen: &Seen) -> io::Result<bool> {
    let Some(head) = timeout(settings.drop_silent, wire.read_head()).await?? else {
        return Ok(false);
    };
    locked(&seen.heads).push((Instant::now(), head.raw().to_owned()));
    let upload = timeout(settings.drop_silent, read_upload(wire, &head)).await??;
    if !still_there_after(wire, delay(&head, settings, seen)).await? {
        return Ok(false);
    }
    let surplus = settings.cap.is_some_and(|cap| wire.stream().is_above(cap));
    let answer = if surplus { too_many_clients() } else { answer(&head, &upload, settings.blob_size) };
    let close = settings.close_each || head.lists("Connection", "close") || head.first_line().ends_with("HTTP/1.0");
    timeout(settings.drop_silent, write(wire, &answer, &head, close, settings, seen)).await??;
    Ok(!close)
}

async fn read_upload(wire: &mut Wire<StubConnection>, head: &Head) -> io::Result<Upload> {
    if head.lists("Expect", "100-continue") {
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let (mut length, mut hasher) = (0, Sha256::new());
    let mut body = wire.body(Framing::of_request(head));
    while let Some(piece) = body.next().await? {
        length += piece.len() as u64;
        hasher.update(&piece);
    }
    Ok(Upload { length, digest: format!("sha256:{:x}", hasher.finalize()) })
}

async fn delay(head: &Head, settings: &StubBuilder, seen: &Seen) {
    let is_first = locked(&seen.targets).insert(head.target().to_owned());
    let first_delay = if is_first { settings.first_delay } else { Duration::ZERO };
    tokio::time::sleep(settings.answer_delay.max(first_delay)).await;
    seen.gate.pass().await;
}

/// Waits; `false` when the peer has ended the connection meanwhile.
async fn still_there_after(wire: &mut Wire<StubConnection>, wait: impl Future<Output = ()>) -> io::Result<bool> {
    tokio::pin!(wait);
    loop {
        tokio::select! {
            biased;
            () = &mut wait => return Ok(true),
            more = wire.read_more() => if !more? { return Ok(false) },
        }
    }
}

/// A pause of an answer, before that byte.
#[derive(Clone, Copy, Debug)]
struct Stall {
    before: usize,
    lasts: Duration,
}

/// Where an answer with a head and a body of these lengths stalls, if it does.
fn stall(asked: &Head, head: usize, body: usize, settings: &StubBuilder, seen: &Seen) -> Option<Stall> {
    if let Some(wanted) = asked.header("X-Stall") {
        let (before, millis) =
            wanted.trim().split_once(' ').expect("X-Stall: BYTE MILLISECONDS, or X-Stall: head MILLISECONDS");
        let before = if before == "head" { head } else { before.parse().expect("a byte") };
        let millis = millis.parse().expect("milliseconds");
        return (millis > 0).then_some(Stall { before, lasts: Duration::from_millis(millis) });
    }
    if !settings.steady_stall.is_zero() {
        return Some(Stall { before: head, lasts: settings.steady_stall });
    }
    let longest = u64::try_from(settings.stall.as_micros()).expect("no stall lasts for ages");
    let mut random = locked(&seen.random);
    if longest == 0 || random.below(2) == 0 {
        return None;
    }
    let anywhere = usize::try_from(random.below((head + body) as u64)).expect("a length");
    let before = if random.below(2) == 0 { head } else { anywhere };
    Some(Stall { before, lasts: Duration::from_micros(random.below(longest)) })
}

/// Sends them no faster than the stub as a whole may.
async fn send_paced(
    wire: &mut Wire<StubConnection>,
    bytes: &[u8],
    settings: &StubBuilder,
    seen: &Seen,
) -> io::Result<()> {
    let Some(bytes_per_second) = settings.bytes_per_second else {
        return wire.send(bytes).await;
    };
    for part in bytes.chunks(PACED) {
        seen.pace.turn(part.len(), bytes_per_second).await;
        wire.send(part).await?;
    }
    Ok(())
}

async fn write(
    wire: &mut Wire<StubConnection>,
    answer: &Answer,
    asked: &Head,
    close: bool,
    settings: &StubBuilder,
    seen: &Seen,
) -> io::Result<()> {
    let head = answer.head(close);
    let body = if asked.method() == "HEAD" { Bytes::new() } else { answer.body() };
    let Some(stall) = stall(asked, head.len(), body.len(), settings, seen) else {
        // The head and the first bytes of the body together, as registries do.
        let first = body.len().min(TOGETHER.saturating_sub(head.len()));
        wire.send(&[head.as_bytes(), &body[..first]].concat()).await?;
        return send_paced(wire, &body[first..], settings, seen).await;
    };
    let whole = [head.as_bytes(), &body].concat();
    wire.send(&whole[..stall.before]).await?;
    tokio::time::sleep(stall.lasts).await;
    wire.send(&whole[stall.before..]).await
}
