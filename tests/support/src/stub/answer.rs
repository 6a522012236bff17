//! The stub's answer to a request: a pure function of the request, and the bytes of the answer.

use bytes::Bytes;

use super::content::{blob_of, digest_of, manifest_of};
use crate::http::Head;

/// Harbor's words when its database has no connection left: a 401 that is none.
const TOO_MANY: &str =
    r#"{"errors":[{"code":"UNAUTHORIZED","message":"unauthorized: pq: sorry, too many clients already"}]}"#;

/// An answer before it is written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
}

/// A body that came with a request.
#[derive(Debug)]
pub(super) struct Upload {
    /// Its bytes.
    pub(super) length: u64,
    /// Their digest, `sha256:` and hex.
    pub(super) digest: String,
}

impl Answer {
    fn new(status: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The head as it goes out; `close` announces the end of the connection.
    pub(super) fn head(&self, close: bool) -> String {
        let mut head = format!("HTTP/1.1 {}\r\nContent-Length: {}\r\n", self.status, self.body.len());
        for (name, value) in &self.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        head.push_str(if close { "Connection: close\r\n\r\n" } else { "\r\n" });
        head
    }

    pub(super) fn body(&self) -> Bytes {
        self.body.clone()
    }
}

/// The answer above the cap.
pub(super) fn too_many_clients() -> Answer {
    Answer::new("401 Unauthorized", TOO_MANY)
        .with("Content-Type", "application/json; charset=utf-8")
        .with("Www-Authenticate", "")
}

/// The answer of a registry that is well.
pub(super) fn answer(head: &Head, upload: &Upload, blob_size: usize) -> Answer {
    // An absolute target is as good as a path: clients may speak to the stub as to a proxy.
    let target = head.target();
    let path = target.split_once("://").map_or(target, |(_, rest)| rest.find('/').map_or("/", |at| &rest[at..]));
    let path = path.split('?').next().unwrap_or_default();
    match head.method() {
        "GET" | "HEAD" => read(head, path, blob_size),
        "POST" | "PATCH" | "PUT" if path.starts_with("/v2/") => written(head.method(), path, upload),
        _ => not_found(),
    }
}

fn read(head: &Head, path: &str, blob_size: usize) -> Answer {
    if path == "/v2/" {
        return Answer::new("200 OK", "{}").with("Docker-Distribution-Api-Version", "registry/2.0");
    }
    let Some(repository) = path.strip_prefix("/v2/") else {
        return not_found();
    };
    if let Some((name, _)) = repository.split_once("/manifests/") {
        let manifest = manifest_of(name, blob_size);
        let digest = digest_of(&manifest);
        return Answer::new("200 OK", manifest)
            .with("Content-Type", "application/vnd.oci.image.manifest.v1+json")
            .with("Docker-Content-Digest", digest);
    }
    if let Some((_, digest)) = repository.split_once("/blobs/") {
        return ranged(head, blob_of(path, blob_size)).with("Docker-Content-Digest", digest);
    }
    not_found()
}

fn ranged(head: &Head, blob: Bytes) -> Answer {
    let size = blob.len();
    let answer = match head.header("Range").and_then(|range| parse_range(range, size)) {
        None => Answer::new("200 OK", blob),
        Some(Range::Part(first, last)) => Answer::new("206 Partial Content", blob.slice(first..=last))
            .with("Content-Range", format!("bytes {first}-{last}/{size}")),
        Some(Range::Outside) => {
            Answer::new("416 Range Not Satisfiable", Bytes::new()).with("Content-Range", format!("bytes */{size}"))
        }
    };
    answer.with("Content-Type", "application/octet-stream").with("Accept-Ranges", "bytes")
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// The first and the last byte.
    Part(usize, usize),
    Outside,
}

/// One range of RFC 9110; `None` for several, and for what is none: those get everything.
fn parse_range(value: &str, size: usize) -> Option<Range> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = match (first, last) {
        ("", suffix) => (size.saturating_sub(suffix.parse().ok()?), size.checked_sub(1)?),
        (first, "") => (first.parse().ok()?, size.checked_sub(1)?),
        (first, last) => (first.parse().ok()?, last.parse::<usize>().ok()?.min(size.checked_sub(1)?)),
    };
    Some(if first <= last { Range::Part(first, last) } else { Range::Outside })
}

fn written(method: &str, path: &str, upload: &Upload) -> Answer {
    let status = if method == "PUT" { "201 Created" } else { "202 Accepted" };
    Answer::new(status, Bytes::new())
        .with("Location", path)
        .with("Upload-Length", upload.length.to_string())
        .with("Upload-Digest", upload.digest.clone())
}

fn not_found() -> Answer {
    Answer::new("404 Not Found", r#"{"errors":[{"code":"NOT_FOUND","message":"not found"}]}"#)
        .with("Content-Type", "application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_rfc() {
        assert_eq!(parse_range("bytes=0-0", 10), Some(Range::Part(0, 0)));
        assert_eq!(parse_range("bytes=3-", 10), Some(Range::Part(3, 9)));
        assert_eq!(parse_range("bytes=-4", 10), Some(Range::Part(6, 9)));
        assert_eq!(parse_range("bytes=8-99", 10), Some(Range::Part(8, 9)));
        assert_eq!(parse_range("bytes=10-", 10), Some(Range::Outside));
        assert_eq!(parse_range("bytes=0-1,3-4", 10), None);
        assert_eq!(parse_range("lines=0-1", 10), None);
    }
}
