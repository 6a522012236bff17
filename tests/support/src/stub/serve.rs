//! One connection of the stub, from `accept()` to its end: read a request, wait as told, answer, again.
//!
//! While an answer waits, the connection is still read, as nginx does: a peer that leaves is seen at once.

use std::io;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::answer::{Answer, Upload, answer, too_many_clients};
use super::count::StubConnection;
use super::{Seen, StubBuilder, locked};
use crate::http::{Framing, Head, Wire};

/// Serves until either side ends it. Errors are ends like any other.
pub(super) async fn connection(connection: StubConnection, settings: Arc<StubBuilder>, seen: Arc<Seen>) {
    let mut wire = Wire::new(connection);
    while let Ok(true) = one_request(&mut wire, &settings, &seen).await {}
}

/// Serves one request; whether another may follow.
async fn one_request(wire: &mut Wire<StubConnection>, settings: &StubBuilder, seen: &Seen) -> io::Result<bool> {
    let Some(head) = wire.read_head().await? else {
        return Ok(false);
    };
    locked(&seen.heads).push(head.raw().to_owned());
    let upload = read_upload(wire, &head).await?;
    if !still_there_after(wire, delay(settings, seen)).await? {
        return Ok(false);
    }
    let surplus = settings.cap.is_some_and(|cap| wire.stream().is_above(cap));
    let answer = if surplus { too_many_clients() } else { answer(&head, &upload, settings.blob_size) };
    let close = settings.close_each || head.lists("Connection", "close") || head.first_line().ends_with("HTTP/1.0");
    write(wire, &answer, head.method() == "HEAD", close).await?;
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

async fn delay(settings: &StubBuilder, seen: &Seen) {
    tokio::time::sleep(settings.answer_delay).await;
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

async fn write(wire: &mut Wire<StubConnection>, answer: &Answer, head_only: bool, close: bool) -> io::Result<()> {
    wire.send(answer.head(close).as_bytes()).await?;
    if !head_only {
        wire.send(&answer.body()).await?;
    }
    Ok(())
}
