//! A blob whose transfer breaks off is resumed, without the client noticing.
//!
//! A blob is named by its digest, so what is missing can be asked for by Range (RFC 9110, section 14.2), also at another node.
//! Only where the bytes are sure to be the same: no Content-Encoding, a 206 with the very range, the same total, and the
//! same entity tag if there is one. The slot of the broken connection goes back first; the new admission has the old place.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue};
use hyper::{Method, Response, StatusCode};

use super::buffered_body::BufferedBody;
use super::outbound::Outbound;
use super::repairing;
use crate::backoff::{Backoff, chance};
use crate::upstream::request_body::{RequestBody, Upload};
use crate::upstream::{Attempt, Failure, Upstream};

/// How often one transfer is resumed.
const MAX_RESUMED: u32 = 5;
/// The pauses before it, longer each time.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

/// A blob that is on its way, and how to go on with it.
pub struct Resumable {
    upstream: Arc<Upstream>,
    outbound: Outbound,
    attempt: Attempt,
    range: ByteRange,
    etag: Option<HeaderValue>,
    resumed: u32,
}

/// The rest of a blob, how to go on with that, and the client's part in it.
pub type Resumed = (Box<Resumable>, BufferedBody, Upload);

/// Bytes of a blob, and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ByteRange {
    /// The next byte that the client needs.
    next: u64,
    /// The last one.
    last: u64,
    total: u64,
}

impl Resumable {
    /// `None` for an answer that cannot be resumed.
    pub fn of<B>(
        upstream: &Arc<Upstream>,
        outbound: Outbound,
        attempt: &Attempt,
        response: &Response<B>,
    ) -> Option<Resumable> {
        let digest = outbound.uri().path().rsplit_once("/blobs/").map(|(_, digest)| digest);
        let is_blob = outbound.method() == Method::GET && digest.is_some_and(|digest| digest.contains(':'));
        let range = range_of(response.status(), response.headers())?;
        (is_blob && upstream.repair.enabled).then(|| Resumable {
            upstream: upstream.clone(),
            outbound,
            attempt: attempt.again(),
            range,
            etag: response.headers().get(ETAG).cloned(),
            resumed: 0,
        })
    }

    /// The client was sent so many more bytes.
    pub fn sent(&mut self, bytes: usize) {
        self.range.next += bytes as u64;
    }

    /// Gets the rest of the blob, and what its client owes from then on.
    /// Fails with the reason for which the transfer broke off, where it cannot go on.
    pub async fn resume(mut self: Box<Self>, cause: hyper::Error) -> Result<Resumed, hyper::Error> {
        let upstream = self.upstream.clone();
        self.resumed += 1;
        if self.resumed > MAX_RESUMED || self.range.next > self.range.last {
            return Err(cause);
        }
        let deadline = upstream.gate.now() + upstream.terms.stall_timeout;
        let (from, target) = (self.range.next, self.outbound.uri().path());
        let mut tries = self.resumed;
        let (response, upload) = loop {
            upstream.pause_until(upstream.gate.now() + PAUSES.jittered(tries, chance())).await.ok();
            let mut attempt = self.attempt.again();
            attempt.deadline = deadline;
            let outbound = self.outbound.with_range(self.range.next, self.range.last);
            let body = RequestBody::empty();
            let upload = body.upload();
            let exchanged = repairing::exchange((&outbound, body), &upstream, &mut attempt).await;
            // Nobody else can tell the client what is missing: an outage is waited out, as long as any other stall. A 500, a
            // 429 or one that cannot be read is an answer about this blob.
            let is_outage = match &exchanged {
                Ok((response, _)) => matches!(response.status().as_u16(), 502..=504),
                Err(failure) => matches!(failure, Failure::Died(error) if !error.is_parse()),
            };
            tries += 1;
            match exchanged {
                _ if is_outage && upstream.gate.now() < deadline => {}
                Ok((response, _)) => break (response, upload),
                Err(_) => return Err(cause),
            }
        };
        if !self.fits(&response) {
            tracing::info!(registry = upstream.name, target, from, status = %response.status(), "a blob cannot be resumed");
            return Err(cause);
        }
        tracing::info!(registry = upstream.name, target, from, times = self.resumed, "a blob is resumed");
        upstream.metrics.resumed();
        Ok((self, response.into_body(), upload))
    }

    /// Whether this answer goes on where the client is, with bytes of the same blob.
    fn fits<B>(&self, response: &Response<B>) -> bool {
        response.status() == StatusCode::PARTIAL_CONTENT
            && range_of(response.status(), response.headers()) == Some(self.range)
            && response.headers().get(ETAG).is_none_or(|etag| self.etag.as_ref().is_none_or(|before| before == etag))
    }
}

/// The bytes that an answer carries, where they are a part of a known whole, as they are.
fn range_of(status: StatusCode, headers: &HeaderMap) -> Option<ByteRange> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let is_packed = headers.contains_key(CONTENT_ENCODING) && text(CONTENT_ENCODING) != Some("identity");
    let length: u64 = text(CONTENT_LENGTH)?.parse().ok()?;
    let range = match status {
        StatusCode::OK => ByteRange { next: 0, last: length.checked_sub(1)?, total: length },
        StatusCode::PARTIAL_CONTENT => {
            let (range, total) = text(CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?;
            let (first, last) = range.split_once('-')?;
            ByteRange { next: first.parse().ok()?, last: last.parse().ok()?, total: total.parse().ok()? }
        }
        _ => return None,
    };
    let fits = range.last < range.total && range.next.checked_add(length)? == range.last + 1;
    (!is_packed && fits).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(status: u16, headers: &[(&'static str, &'static str)]) -> Option<(u64, u64, u64)> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        let range = range_of(StatusCode::from_u16(status).unwrap(), &headers.collect());
        range.map(|range| (range.next, range.last, range.total))
    }

    #[test]
    fn only_a_part_of_a_known_whole_can_be_resumed() {
        let length = ("content-length", "10");
        for (status, headers, expected) in [
            (200, &[length][..], Some((0, 9, 10))),
            (200, &[], None),
            (200, &[("content-length", "0")], None),
            (200, &[length, ("content-encoding", "gzip")], None),
            (200, &[length, ("content-encoding", "identity")], Some((0, 9, 10))),
            (206, &[length, ("content-range", "bytes 5-14/20")], Some((5, 14, 20))),
            (206, &[length, ("content-range", "bytes 5-14/*")], None),
            (206, &[length, ("content-range", "bytes 5-15/20")], None),
            (206, &[length, ("content-range", "bytes 5-14/14")], None),
            (206, &[length, ("content-range", "items 5-14/20")], None),
            (206, &[length], None),
            (206, &[("content-length", "18446744073709551615"), ("content-range", "bytes 5-14/20")], None),
            (404, &[length], None),
        ] {
            assert_eq!(range(status, headers), expected, "{status} {headers:?}");
        }
    }
}
