//! Warnings: settings of a valid configuration that are probably mistakes.
//!
//! It looks at a finished [`Config`] and never makes it fail.

use std::time::Duration;

use humantime::format_duration;

use super::model::Config;
use super::problem::Problem;
use super::registry::{MirrorConfig, Mode, ReclaimConfig, RegistryConfig};
use crate::lease::checks::wasted_share;
use crate::target::{Host, HostPattern, Origin};

/// How long Go's HTTP client, and with it most pullers, waits for the answer to a CONNECT.
const CONNECT_PATIENCE: Duration = Duration::from_secs(60);

/// When Harbor's nginx closes an idle connection (`keepalive_timeout`).
const SERVER_IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// The warnings about a configuration, in the order of the file. `line_of` gives the line of a key.
pub(super) fn about(config: &Config, line_of: impl Fn(&str) -> usize) -> Vec<Problem> {
    let mut found = Vec::new();
    found.extend(open_admin(config));
    for registry in &config.registries {
        found.extend(mistakes(registry));
        found.extend(short_pauses(registry));
        found.extend(wasted_share(config, registry));
        if let Some(mirror) = &registry.mirror {
            found.extend(unlisted_upstream(registry, mirror));
            found.extend(unknown_public_url(registry, mirror));
        }
    }
    let mut warnings: Vec<_> =
        found.into_iter().map(|(key, reason)| Problem { line: line_of(&key), key, reason }).collect();
    warnings.sort_by_key(|warning| warning.line);
    warnings
}

/// A key and what to say about it.
type Remark = (String, String);

fn open_admin(config: &Config) -> Option<Remark> {
    let admin = config.listen.admin;
    let reason = format!(
        "{admin} is not a loopback address: the control endpoints are reachable from other machines; for a scraper outside, \
         listen.metrics is enough"
    );
    (!admin.ip().to_canonical().is_loopback()).then(|| ("listen.admin".to_owned(), reason))
}

/// By settings of one registry alone: whether one is a mistake, its key, and what to say about it.
fn mistakes(registry: &RegistryConfig) -> impl Iterator<Item = Remark> {
    let (tunnel, connect) = (registry.queue.tunnel_timeout, registry.connect_timeout);
    let times = [tunnel, connect, tunnel + connect, CONNECT_PATIENCE, SERVER_IDLE_TIMEOUT].map(format_duration);
    let [of_tunnel, of_connect, sum, most, idle] = &times;
    let late = format!(
        "tunnel_timeout {of_tunnel} + connect_timeout {of_connect} = {sum}, but most pullers give up a CONNECT after {most}, \
         before they hear the reason: lower one of the two"
    );
    let idle = format!(
        "Harbor's nginx closes idle connections after {idle}, so a request may meet one just closed: keep idle_timeout below that"
    );
    let blind = "the sidecar accepts any server in the registry's name, and sends it the pullers' credentials: set ca_file instead";
    let leaving = "this setting has no effect, and is an unknown key in the next release: remove it. A 401 that may be a real denial is asked for again while the registry is in distress";
    let observed = "nothing is held and nothing is refused, so connections may exceed cap x share: roadstead counts what would \
                    have waited (/status, roadstead status). \"enforce\" holds the cap, from the next reload on";
    let table = [
        (tunnel + connect >= CONNECT_PATIENCE, "queue.tunnel_timeout", late),
        (registry.idle_timeout >= SERVER_IDLE_TIMEOUT, "idle_timeout", idle),
        (registry.tls.insecure_skip_verify, "tls.insecure_skip_verify", blind.to_owned()),
        (registry.repair.ambiguous_401.is_some(), "repair.ambiguous_401", leaving.to_owned()),
        (registry.mode == Mode::Observe, "mode", observed.to_owned()),
    ];
    let mistakes = table.into_iter().filter(|(is_one, ..)| *is_one);
    mistakes.map(|(_, key, reason)| (format!("registries.{}.{key}", registry.name), reason))
}

fn short_pauses(registry: &RegistryConfig) -> Vec<Remark> {
    let (reclaim, default) = (registry.reclaim, ReclaimConfig::default());
    let pauses = [
        ("idle_after", reclaim.idle_after, default.idle_after),
        ("unused_after", reclaim.unused_after, default.unused_after),
        ("unsure_after", reclaim.unsure_after, default.unsure_after),
    ];
    let short = pauses.into_iter().filter(|(_, pause, default)| pause < default);
    let remark = |(key, pause, default): (&str, Duration, Duration)| {
        let (pause, default) = (format_duration(pause), format_duration(default));
        let reason = format!(
            "{pause} is below the default of {default}: clients that use their tunnel again in that moment lose a request, and the pull with it"
        );
        (format!("registries.{}.reclaim.{key}", registry.name), reason)
    };
    short.map(remark).collect()
}

/// A node of a cluster may be called by its address, as long as it proves a name that is listed.
fn unlisted_upstream(registry: &RegistryConfig, mirror: &MirrorConfig) -> Option<Remark> {
    let proven = |name: &Host| registry.hosts.iter().any(|pattern| pattern.covers_host(name));
    let proven = registry.tls.server_name.as_ref().is_some_and(proven);
    let is_listed = |origin: &&Origin| registry.hosts.iter().any(|pattern| pattern.matches(&origin.target));
    let unlisted = mirror.upstream.iter().find(|origin| !proven && !is_listed(origin))?;
    let of = &unlisted.target;
    let reason = format!(
        "no entry of hosts names {unlisted}: if it is this registry, add \"{of}\" to hosts, else correct the URL"
    );
    Some((format!("registries.{}.mirror.upstream", registry.name), reason))
}

/// A link to a name that `hosts` lists without a port is left alone, unless `upstream` has that name, too.
fn unknown_public_url(registry: &RegistryConfig, mirror: &MirrorConfig) -> Option<Remark> {
    if mirror.public_urls.is_some() || !mirror.rewrite {
        return None;
    }
    let public = registry.public_targets();
    let mut hosts = registry.hosts.iter().filter_map(HostPattern::exact_host);
    let unknown = hosts.find(|host| !public.iter().any(|target| target.host() == *host))?;
    let reason = format!(
        "hosts lists {unknown} without a port, so a realm, Location or Link that names it is not led back to the mirror, \
         and tokens may go around it: write public_urls = [\"https://{unknown}\"] with the URLs by which the registry \
         calls itself (Harbor: external_url)"
    );
    Some((format!("registries.{}.mirror.public_urls", registry.name), reason))
}
