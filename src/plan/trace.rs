//! A recorded load: the log of a sidecar, one finished request a line, as `log.format = "json"` writes it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

/// One request of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct TracedRequest {
    /// Since 1970.
    pub arrived: Duration,
    pub class: String,
    pub client: String,
    pub is_tunnel: bool,
    pub is_blob: bool,
    /// From its admission to its end, without the dial; `None` for one that was not served.
    pub lasted: Option<Duration>,
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Line {
    timestamp: String,
    fields: Finished,
}

/// The fields as `docs/operations.md` explains them.
#[derive(Deserialize)]
struct Finished {
    message: String,
    registry: String,
    class: String,
    client: String,
    kind: String,
    target: String,
    outcome: String,
    took_ms: f64,
    waited_ms: f64,
    connect_ms: Option<f64>,
    bytes_up: u64,
    bytes_down: u64,
}

/// The requests in this log that belong to the registry of this name, or to the only one there is.
/// Fails for a log without any.
pub fn read(path: &Path, registry: Option<&str>) -> Result<Vec<TracedRequest>, String> {
    let failed = |error: std::io::Error| format!("--trace {}: {error}", path.display());
    let (mut requests, mut seen) = (Vec::new(), None::<String>);
    for line in BufReader::new(File::open(path).map_err(failed)?).lines() {
        // Everything else that the log says is no request.
        let Some((name, request)) = finished(&line.map_err(failed)?) else { continue };
        match (registry, &seen) {
            (Some(registry), _) if registry != name => continue,
            (None, Some(seen)) if *seen != name => {
                return Err(format!("--trace {}: has {seen} and {name}: choose one with --registry", path.display()));
            }
            _ => seen = Some(name),
        }
        requests.push(request);
    }
    if requests.is_empty() {
        let of = registry.map_or(String::new(), |registry| format!(" of registry {registry}"));
        return Err(format!(
            "--trace {}: has no finished request{of}: it takes the log of a sidecar with log.format = \"json\"",
            path.display()
        ));
    }
    Ok(requests)
}

fn finished(line: &str) -> Option<(String, TracedRequest)> {
    let Line { timestamp, fields } = serde_json::from_str(line).ok()?;
    let is_request = fields.message == "finished" && fields.kind != "unknown" && fields.registry != "other_hosts";
    let ended: SystemTime = humantime::parse_rfc3339(&timestamp).ok().filter(|_| is_request)?;
    let millis = |millis: f64| Duration::try_from_secs_f64(millis / 1e3).ok();
    let (took, waited) = (millis(fields.took_ms)?, millis(fields.waited_ms)?);
    let before = waited + millis(fields.connect_ms.unwrap_or(0.0))?;
    let is_tunnel = fields.kind == "tunnel";
    let request = TracedRequest {
        arrived: ended.duration_since(UNIX_EPOCH).ok()?.saturating_sub(took),
        class: fields.class,
        client: fields.client,
        is_tunnel,
        is_blob: is_tunnel || fields.target.contains("/blobs/"),
        lasted: (fields.outcome == "served").then(|| took.saturating_sub(before)),
        bytes: fields.bytes_up + fields.bytes_down,
    };
    Some((fields.registry, request))
}
