//! A configuration that holds together, as plain values.
//!
//! Every field has the name of its key. Nothing here reads a file or checks a value.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::problem::Problem;
use super::rate::ConnectRate;
use super::share::Share;
use crate::target::{Host, HostPattern, Origin, Target};

/// The class of every client that no other class lists.
pub const DEFAULT_CLASS: &str = "default";

/// A whole configuration that holds together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long running requests may go on after the order to stop. Default 30 s.
    pub drain_timeout: Duration,
    /// The addresses of the sidecar, and the clients that may use them.
    pub listen: ListenConfig,
    /// Level and format of the log.
    pub log: LogConfig,
    /// The registries, at least one, in the order of the file.
    pub registries: Vec<RegistryConfig>,
    /// The classes of clients; the first is `default`, which always exists.
    pub classes: Vec<ClassConfig>,
    /// The policy for hosts that no registry lists.
    pub other_hosts: OtherHosts,
    /// Settings that are allowed but probably mistakes, in the order of the file.
    pub warnings: Vec<Problem>,
}

/// The part `listen`: the addresses of the sidecar, and the clients that may use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenConfig {
    /// Address of the proxy itself. Default `127.0.0.1:4128`; port 0 takes any free port.
    pub proxy: SocketAddr,
    /// Address of health, metrics, status and control. Default `127.0.0.1:4129`.
    pub admin: SocketAddr,
    /// A further address with metrics and probes only; `None` (the default) for none.
    pub metrics: Option<SocketAddr>,
    /// The clients that may use the proxy. Empty (the default) only with a loopback proxy
    /// address, where it means every local client.
    pub allow_clients: Vec<IpNet>,
    /// Client connections at one time, 1 to 1000000. Default 20000.
    pub max_clients: usize,
    /// How long a client may take to send the head of its first request. Default 10 s.
    pub head_timeout: Duration,
}

/// The part `log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The shape of a log line. Default text.
    pub format: LogFormat,
    /// The least severe level that is logged: `error`, `warn`, `info` (the default), `debug` or
    /// `trace`.
    pub level: String,
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: `text`.
    Text,
    /// For collectors, one object a line: `json`.
    Json,
}

/// One registry: a named upstream with a cap, and how this node uses its share of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryConfig {
    /// Its name in the file, in metrics and in messages: up to 63 of `a-z`, `0-9`, `_` and `-`.
    pub name: String,
    /// The hosts it answers under, at least one; no other registry claims the same.
    pub hosts: Vec<HostPattern>,
    /// Connections that the registry can serve, all sidecars together; 1 to 1000000.
    pub cap: u32,
    /// This node's part of the cap.
    pub share: Share,
    /// Connections that this node may have open at once: `floor(cap x share)`, at least 1; with
    /// `mirror.cap_per_upstream` that many for each URL of the mirror.
    pub slots: usize,
    /// Limit on new connections in time; `None` (the default) for no limit.
    pub rate: Option<ConnectRate>,
    /// Longest time for one dial. Default 5 s.
    pub connect_timeout: Duration,
    /// How long a closed connection may wait for the registry's end of it before it is reset.
    /// Default 1 s.
    pub linger: Duration,
    /// How long a pooled connection may be idle. Default 60 s.
    pub idle_timeout: Duration,
    /// How old a connection may get and still be reused. Default 30 minutes.
    pub max_lifetime: Duration,
    /// Slots that may be dialling at once, 1 to 1000000. Default: all of them.
    pub max_connecting: usize,
    /// How requests wait for a slot.
    pub queue: QueueConfig,
    /// When idle tunnels are reclaimed for waiters.
    pub reclaim: ReclaimConfig,
    /// How TLS is spoken to it, where the sidecar itself does.
    pub tls: TlsConfig,
    /// The address at which the sidecar is a mirror of it; `None` (the default) for no mirror.
    pub mirror: Option<MirrorConfig>,
    /// The answers that are asked for again.
    pub repair: RepairConfig,
}

impl RegistryConfig {
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

/// The part `tls` of a registry: how TLS is spoken to it, for the mirror and for absolute `https` URLs. The system's
/// roots are trusted in any case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Certificates of further authorities, in PEM. Default none.
    pub ca_file: Option<PathBuf>,
    /// The certificate chain and the key that the sidecar shows of itself, in PEM. Default none.
    pub client: Option<(PathBuf, PathBuf)>,
    /// The name that every URL of the mirror must prove. Default: the host of each.
    pub server_name: Option<Host>,
    /// Whether to accept any certificate. Default false.
    pub insecure_skip_verify: bool,
}

/// The part `mirror` of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorConfig {
    /// Address of the mirror listener.
    pub listen: SocketAddr,
    /// Where requests go, at least one URL; several are the nodes of one cluster.
    pub upstream: Vec<Origin>,
    /// The URLs by which the registry calls itself; `None` for what [`RegistryConfig::public_targets`] says.
    pub public_urls: Option<Vec<Origin>>,
    /// Whether a realm, Location or Link that names one of the public URLs leads back to the mirror. Default true.
    pub rewrite: bool,
    /// The class of its clients. Default `default`.
    pub class: String,
    /// Whether the slots are those of each URL, and not of all together. Default false.
    pub cap_per_upstream: bool,
}

/// The part `repair` of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairConfig {
    /// Whether answers that show overload are asked for again, where it is safe. Default true.
    pub enabled: bool,
    /// A setting that goes with the next release.
    pub ambiguous_401: Option<u32>,
}

/// The part `queue` of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// Requests that may wait, 0 to 1000000; with 0 none waits. Default 10000.
    pub depth: usize,
    /// Longest wait of a tunnel (a CONNECT). Default 50 s.
    pub tunnel_timeout: Duration,
    /// Longest wait of a request that the sidecar sees. Default 25 s.
    pub request_timeout: Duration,
    /// How long the place of a client that left unserved is reserved for it. Default 30 s.
    pub keep_place: Duration,
    /// The bytes a second below which a transfer is stalled while others wait; `None` (the default) for no bound.
    pub least_rate: Option<NonZeroU64>,
}

/// The part `reclaim` of a registry: how long a tunnel must have been quiet before it is reclaimed for a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReclaimConfig {
    /// One whose last request was answered. Default 1 s.
    pub idle_after: Duration,
    /// One that never carried a request. Default 3 s.
    pub unused_after: Duration,
    /// One in which an answer may still be under way. Default 10 s.
    pub unsure_after: Duration,
    /// One whose request is under way, but does not move. Default 5 minutes.
    pub stall_timeout: Duration,
    /// Without effect: the pauses are fixed. Default true.
    pub learn: bool,
}

impl Default for ReclaimConfig {
    fn default() -> ReclaimConfig {
        ReclaimConfig {
            idle_after: Duration::from_secs(1),
            unused_after: Duration::from_secs(3),
            unsure_after: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(5 * 60),
            learn: true,
        }
    }
}

/// One class of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassConfig {
    /// Its name in the file and in metrics, like a registry's.
    pub name: String,
    /// The user names that belong to it; a name belongs to one class.
    pub users: Vec<String>,
    /// The local users that belong to it, by number. Beside `users` they (and `addresses`) bind the names: such a name
    /// counts only if it comes from one of them. Without `users` they are the class by themselves.
    pub uids: Vec<u32>,
    /// The client addresses that belong to it, like `uids`. Of several classes the one with the longest range decides.
    pub addresses: Vec<IpNet>,
    /// Its part of the slots, against the weights of the other classes that wait; 1 to 1000. Default 1.
    pub weight: u32,
    /// Longest wait of its tunnels, if not the registry's.
    pub tunnel_timeout: Option<Duration>,
    /// Longest wait of its visible requests, if not the registry's.
    pub request_timeout: Option<Duration>,
}

/// The part `other_hosts`: what happens to hosts that no registry lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherHosts {
    /// They are reached without queue or limit: `direct`, the default.
    Direct,
    /// They are refused: `deny`.
    Deny,
}

impl Default for ClassConfig {
    fn default() -> ClassConfig {
        ClassConfig {
            name: DEFAULT_CLASS.to_owned(),
            users: Vec::new(),
            uids: Vec::new(),
            addresses: Vec::new(),
            weight: 1,
            tunnel_timeout: None,
            request_timeout: None,
        }
    }
}
