//! The tables `[registries.NAME]`, and what must hold between their keys.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use super::fraction::Fraction;
use super::rate::ConnectRate;
use super::reader::Section;
use super::share::Share;
use super::table::table;
use super::value::{
    MAX_COUNT, address, bytes_per_second, count, decimal, duration, flag, host, loopback, name, origins, path, seconds,
    share, some, text, whole, word,
};
use crate::target::{Host, HostPattern, Origin, Target};

/// The class of every client that no other class lists.
pub const DEFAULT_CLASS: &str = "default";
/// The label of targets without a registry in metrics, so no registry may be called that.
const RESERVED_NAME: &str = "other_hosts";

/// Whether the cap holds, or nothing is held and what would have waited is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Enforce,
    Observe,
}

table! {
    /// One registry: a named upstream with a cap, and how this node uses its share of it.
    RegistryConfig {
        /// The hosts it answers under, at least one; no other registry claims the same.
        hosts: Vec<HostPattern> = Vec::new(), list("[\"harbor.example.com\"]", host) required "[\"harbor.example.com\"]";
        /// Connections that the registry can serve, all sidecars together.
        cap: u32 = 0, value(whole(1..=MAX_COUNT)) required "200";
        /// This node's part of the cap.
        share: Share = Share::WHOLE, value(share) required "\"1/20\"";
        /// Whether cap and rate hold, or are only observed.
        mode: Mode = Mode::Enforce, value(word([("enforce", Mode::Enforce), ("observe", Mode::Observe)]));
        /// New connections a second; `None` for no limit. See `rate`.
        rate_per_second: Option<Fraction> = None, value(some(decimal));
        /// New connections at once after a pause; `None` for those of one second. See `rate`.
        burst: Option<u32> = None, value(some(whole(1..=MAX_COUNT)));
        /// Longest time for one dial.
        connect_timeout: Duration = seconds(5), value(duration);
        /// How long a closed connection may wait for the registry's end of it before it is reset.
        linger: Duration = seconds(1), value(duration);
        /// Slots that may be dialling at once. Default: all of them.
        max_connecting: usize = 0, value(count(1..=MAX_COUNT));
        /// How old a connection may get and still be reused.
        max_lifetime: Duration = seconds(30 * 60), value(duration);
        /// How long a pooled connection may be idle.
        idle_timeout: Duration = seconds(60), value(duration);
        /// How requests wait for a slot.
        queue: QueueConfig = QueueConfig::default(), table(QueueConfig::read);
        /// When idle tunnels are reclaimed for waiters.
        reclaim: ReclaimConfig = ReclaimConfig::default(), table(ReclaimConfig::read);
        /// How TLS is spoken to it, where the sidecar itself does.
        tls: TlsConfig = TlsConfig::default(), table(TlsConfig::read);
        /// The address at which the sidecar is a mirror of it; `None` for no mirror.
        mirror: Option<MirrorConfig> = None, optional_table(MirrorConfig::read);
        /// The answers that are asked for again.
        repair: RepairConfig = RepairConfig::default(), table(RepairConfig::read);
        /// Whether the slots in force yield to its distress.
        adapt: AdaptConfig = AdaptConfig::default(), table(AdaptConfig::read);
    } and {
        /// Its name in the file, in metrics and in messages: up to 63 of `a-z`, `0-9`, `_` and `-`.
        name: String = String::new();
        /// Connections that this node may have open at once: `floor(cap x share)`, at least 1; with
        /// `mirror.cap_per_upstream` that many for each URL of the mirror.
        slots: usize = 0;
        /// The limit on new connections by `rate_per_second` and `burst`.
        rate: Option<ConnectRate> = None;
    }
}

impl RegistryConfig {
    /// The registries, in the order of the file.
    pub(super) fn read_all(registries: &mut Vec<RegistryConfig>, section: &mut Section<'_>) {
        *registries = section.each_table(|name, section| {
            if name == RESERVED_NAME {
                section.problem("", format!("{name} stands for hosts that no registry lists: choose another name"));
            }
            section.check_name("registry", name);
            let mut registry = RegistryConfig { name: name.to_owned(), ..RegistryConfig::default() };
            registry.read(section);
            complete(&mut registry, section);
            registry
        });
        if registries.is_empty() {
            let reason = "at least one registry is required: add a table such as [registries.harbor]";
            section.missing("", reason.to_owned());
        }
    }

    /// Hosts and ports of the public URLs of a registry with a mirror. Unless `public_urls` says so, those of `upstream`,
    /// and each exact entry of `hosts` that has a port: a name without one may be that of another service on that host.
    pub fn public_targets(&self) -> Vec<Target> {
        let Some(mirror) = &self.mirror else { return Vec::new() };
        let targets = |origins: &[Origin]| origins.iter().map(|origin| origin.target.clone()).collect::<Vec<_>>();
        let by_default = || {
            let listed = self.hosts.iter().filter_map(HostPattern::exact_target);
            targets(&mirror.upstream).into_iter().chain(listed).collect()
        };
        mirror.public_urls.as_deref().map_or_else(by_default, targets)
    }
}

table! {
    /// The part `queue` of a registry.
    #[derive(Copy)]
    QueueConfig {
        /// Requests that may wait; with 0 none waits.
        depth: usize = 10_000, value(count(0..=MAX_COUNT));
        /// Longest wait of a tunnel (a CONNECT).
        tunnel_timeout: Duration = seconds(50), value(duration);
        /// Longest wait of a request that the sidecar sees.
        request_timeout: Duration = seconds(25), value(duration);
        /// How long the place of a client that left unserved is reserved for it.
        keep_place: Duration = seconds(30), value(duration);
        /// The bytes a second below which a transfer is stalled while others wait; `None` for no bound.
        least_rate: Option<NonZeroU64> = None, value(some(bytes_per_second));
    }
}

table! {
    /// The part `reclaim` of a registry: how long a tunnel must have been quiet before it is reclaimed for a waiter.
    #[derive(Copy)]
    ReclaimConfig {
        /// One whose last request was answered.
        idle_after: Duration = seconds(1), value(duration);
        /// One that never carried a request.
        unused_after: Duration = seconds(3), value(duration);
        /// One in which an answer may still be under way.
        unsure_after: Duration = seconds(10), value(duration);
        /// One whose request is under way, but does not move.
        stall_timeout: Duration = seconds(5 * 60), value(duration);
        /// Whether a mistaken reclaim doubles the pauses of its client for a while.
        learn: bool = true, value(flag);
    }
}

table! {
    /// The part `tls` of a registry: how TLS is spoken to it, for the mirror and for absolute `https` URLs. The system's
    /// roots are trusted in any case.
    TlsConfig {
        /// Certificates of further authorities, in PEM.
        ca_file: Option<PathBuf> = None, value(some(path));
        /// The certificate chain that the sidecar shows of itself, in PEM; only together with the key.
        client_cert_file: Option<PathBuf> = None, value(some(path));
        /// Its key, in PEM.
        client_key_file: Option<PathBuf> = None, value(some(path));
        /// The name that every URL of the mirror must prove. Default: the host of each.
        server_name: Option<Host> = None, value(some(name));
        /// Whether to accept any certificate.
        insecure_skip_verify: bool = false, value(flag);
    }
}

table! {
    /// The part `mirror` of a registry.
    MirrorConfig {
        /// Address of the mirror listener.
        listen: SocketAddr = loopback(0), value(address) required "\"127.0.0.1:4130\"";
        /// Where requests go, at least one URL; several are the nodes of one cluster.
        upstream: Vec<Origin> = Vec::new(), value(origins) required "\"https://harbor.example.com\"";
        /// The URLs by which the registry calls itself; `None` for what [`RegistryConfig::public_targets`] says.
        public_urls: Option<Vec<Origin>> = None, value(some(origins));
        /// Whether a realm, Location or Link that names one of the public URLs leads back to the mirror.
        rewrite: bool = true, value(flag);
        /// The class of its clients.
        class: String = DEFAULT_CLASS.to_owned(), value(text);
        /// Whether the slots are those of each URL, and not of all together.
        cap_per_upstream: bool = false, value(flag);
    }
}

table! {
    /// The part `repair` of a registry.
    #[derive(Copy)]
    RepairConfig {
        /// Whether answers that show overload are asked for again, where it is safe.
        enabled: bool = true, value(flag);
        /// Without effect. Accepted for one more release, with a warning, so that an upgrade starts.
        ambiguous_401: Option<u32> = None, value(some(whole(0..=10)));
    }
}

table! {
    /// The part `adapt` of a registry.
    #[derive(Copy)]
    AdaptConfig {
        /// Whether signs of overload lower the slots in force. Default: where there is a mirror, which sees the signs.
        enabled: Option<bool> = None, value(some(flag));
        /// The slots that stay in force in any case.
        floor: usize = 1, value(count(1..=MAX_COUNT));
    }
}

/// Fills in what follows from the keys of a registry.
fn complete(registry: &mut RegistryConfig, section: &mut Section<'_>) {
    if section.is_sound("cap") && section.is_sound("share") {
        registry.slots = slots(registry, section);
    }
    if registry.max_connecting == 0 {
        registry.max_connecting = registry.slots;
        section.record("max_connecting", &registry.slots);
    }
    section.record("adapt.enabled", registry.adapt.enabled.get_or_insert(registry.mirror.is_some()));
    if section.is_sound("rate_per_second") && section.is_sound("burst") {
        registry.rate = rate(registry, section);
    }
    let tls = &registry.tls;
    let (certificate, key) = ("tls.client_cert_file", "tls.client_key_file");
    let half = match (&tls.client_cert_file, &tls.client_key_file) {
        (Some(_), None) => Some((certificate, key)),
        (None, Some(_)) => Some((key, certificate)),
        _ => None,
    };
    if let Some((given, other)) = half.filter(|(_, other)| section.is_sound(other)) {
        let other = other.trim_start_matches("tls.");
        section.missing(given, format!("has no meaning without {other}: set that too, or leave both out"));
    }
    let is_cluster = registry.mirror.as_ref().is_some_and(|mirror| mirror.upstream.len() > 1);
    if is_cluster && section.is_sound("hosts") && registry.hosts.iter().all(|host| host.exact_host().is_none()) {
        let reason = "mirror.upstream has several URLs, and all of them are asked under one name, in the Host header: \
                      add that name, such as \"harbor.example.com\"";
        section.problem("hosts", reason.to_owned());
    }
}

fn slots(registry: &RegistryConfig, section: &mut Section<'_>) -> usize {
    let RegistryConfig { cap, share, .. } = *registry;
    let slots = share.slots(cap);
    if slots == 0 {
        let reason = format!(
            "cap {cap} x share {share} = {}, which is less than one slot: raise {}, or the share to at least 1/{cap}",
            share.of(cap),
            section.path_of("cap"),
        );
        section.problem("share", reason);
    }
    match &registry.mirror {
        Some(mirror) if mirror.cap_per_upstream => slots * mirror.upstream.len(),
        _ => slots,
    }
}

fn rate(registry: &RegistryConfig, section: &mut Section<'_>) -> Option<ConnectRate> {
    let burst = registry.burst.and_then(NonZeroU32::new);
    let Some(per_second) = registry.rate_per_second else {
        if burst.is_some() {
            let reason = "has no meaning without rate_per_second: set that too, or leave both out";
            section.missing("burst", reason.to_owned());
        }
        return None;
    };
    let rate = ConnectRate::new(per_second, burst);
    if let Some(rate) = &rate {
        section.record("burst", &rate.burst.get());
    } else {
        section.problem("rate_per_second", "must be from 0.001 to 1000000; leave it out for no limit".to_owned());
    }
    rate
}
