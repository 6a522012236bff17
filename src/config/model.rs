//! The tables of the file: each key once, with its meaning, its default and its reader.
//!
//! Outside of the config the tables are plain values that hold together. Every field has the name of its key.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::problem::Problem;
use super::reader::Section;
use super::registry::{DEFAULT_CLASS, Mode, RegistryConfig};
use super::share::Share;
use super::shown::{KeyLines, ShownSettings, shown};
use super::table::table;
use super::value::{
    MAX_COUNT, address, count, duration, loopback, network, path, seconds, socket_path, some, text, whole, word,
};
use crate::lease::settings::LeaseConfig;

table! {
    /// A whole configuration that holds together.
    Config {
        /// How long running requests may go on after the order to stop.
        drain_timeout: Duration = seconds(30), value(duration);
        /// The threads that serve all connections.
        threads: usize = 1, value(count(1..=64));
        /// The addresses of the sidecar, and the clients that may use them.
        listen: ListenConfig = ListenConfig::default(), table(ListenConfig::read);
        /// Level and format of the log.
        log: LogConfig = LogConfig::default(), table(LogConfig::read);
        /// The registries, at least one, in the order of the file.
        registries: Vec<RegistryConfig> = Vec::new(), table(RegistryConfig::read_all);
        /// The classes of clients; the first is `default`, which always exists.
        classes: Vec<ClassConfig> = Vec::new(), table(classes);
        /// The policy for hosts that no registry lists.
        other_hosts: OtherHosts = OtherHosts::Direct, table(OtherHosts::read);
        /// The store that lends slots, where a share is leased.
        lease: Option<LeaseConfig> = None, optional_table(LeaseConfig::read);
    } and {
        /// Settings that are allowed but probably mistakes, in the order of the file.
        warnings: Vec<Problem> = Vec::new();
        /// Every setting that has a value, by its key as in the file, defaults included; the values in words.
        settings: ShownSettings = ShownSettings::new();
        /// The settings that the file has, by their keys, each with its line.
        in_file: KeyLines = KeyLines::default();
        /// The settings that the environment set, by their keys, each with the name of its variable.
        from_environment: BTreeMap<String, String> = BTreeMap::new();
    }
}

/// The service of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// The forward proxy.
    Proxy,
    /// Health, metrics, status and control.
    Admin,
    /// Metrics and probes only.
    Metrics,
    /// The mirror of the registry of this name.
    Mirror(String),
}

impl Service {
    /// The name under which a successor, or systemd, hands the socket over.
    pub fn name(&self) -> String {
        match self {
            Service::Proxy => "proxy".to_owned(),
            Service::Admin => "admin".to_owned(),
            Service::Metrics => "metrics".to_owned(),
            Service::Mirror(registry) => format!("mirror-{registry}"),
        }
    }

    /// The key of its address.
    pub fn key(&self) -> String {
        match self {
            Service::Mirror(registry) => format!("registries.{registry}.mirror.listen"),
            _ => format!("listen.{}", self.name()),
        }
    }
}

impl Config {
    /// The registries whose cap is lent to all nodes.
    pub fn leased(&self) -> impl Iterator<Item = &RegistryConfig> {
        self.registries.iter().filter(|registry| registry.share == Share::LEASED)
    }

    /// The names of the registries, as a sentence lists them.
    pub fn names(&self) -> String {
        self.registries.iter().map(|registry| registry.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// The address of each listener.
    pub fn listeners(&self) -> Vec<(Service, SocketAddr)> {
        let listen = &self.listen;
        let mirrors = self
            .registries
            .iter()
            .filter_map(|registry| Some((Service::Mirror(registry.name.clone()), registry.mirror.as_ref()?.listen)));
        let metrics = listen.metrics.map(|address| (Service::Metrics, address));
        let listeners = [(Service::Proxy, listen.proxy), (Service::Admin, listen.admin)];
        listeners.into_iter().chain(metrics).chain(mirrors).collect()
    }
}

table! {
    /// The addresses of the sidecar, and the clients that may use them.
    ListenConfig {
        /// Address of the proxy itself; port 0 takes any free port.
        proxy: SocketAddr = loopback(4128), value(address);
        /// Address of health, metrics, status and control.
        admin: SocketAddr = loopback(4129), value(address);
        /// A further address with metrics and probes only.
        metrics: Option<SocketAddr> = None, value(some(address));
        /// A Unix socket for `pause`, `resume` and `reload`, for root and the user of the sidecar.
        control: Option<PathBuf> = None, value(some(socket_path));
        /// A file with the token by which orders may come on `admin` as well.
        control_token_file: Option<PathBuf> = None, value(some(path));
        /// The clients that may use the proxy. Empty only with loopback addresses, where it means every local client.
        allow_clients: Vec<IpNet> = Vec::new(), list("[\"10.0.0.0/8\"]", network);
        /// Client connections at one time.
        max_clients: usize = 20_000, value(count(1..=MAX_COUNT));
        /// How long a client may take to send the head of its first request.
        head_timeout: Duration = seconds(10), value(duration);
    }
}

table! {
    /// The part `log`.
    LogConfig {
        /// The shape of a log line.
        format: LogFormat = LogFormat::Text, value(word([("text", LogFormat::Text), ("json", LogFormat::Json)]));
        /// The least severe level that is logged.
        level: &'static str = "info", value(word(LEVELS.map(|level| (level, level))));
    }
}

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors, one object a line.
    Json,
}

table! {
    /// One class of clients.
    ClassConfig {
        /// The user names that belong to it; a name belongs to one class.
        users: Vec<String> = Vec::new(), list("[\"kubelet\"]", text);
        /// The local users that belong to it, by number. Beside `users` they (and `addresses`) bind the names: such a name
        /// counts only if it comes from one of them. Without `users` they are the class by themselves.
        uids: Vec<u32> = Vec::new(), list("[1000]", whole(0..=u32::MAX - 1));
        /// The client addresses that belong to it, like `uids`. Of several classes the one with the longest range decides.
        addresses: Vec<IpNet> = Vec::new(), list("[\"10.0.0.0/8\"]", network);
        /// Its part of the slots, against the weights of the other classes that wait.
        weight: u32 = 1, value(whole(1..=1000));
        /// Longest wait of its tunnels, if not the registry's.
        tunnel_timeout: Option<Duration> = None, value(some(duration));
        /// Longest wait of its visible requests, if not the registry's.
        request_timeout: Option<Duration> = None, value(some(duration));
    } and {
        /// Its name in the file and in metrics, like a registry's.
        name: String = DEFAULT_CLASS.to_owned();
    }
}

/// The policy for hosts that no registry lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherHosts {
    /// They are reached without queue or limit.
    Direct,
    /// They are refused.
    Deny,
}

shown! { OtherHosts, LogFormat, Mode => |word| format!("{word:?}").to_ascii_lowercase(); }

impl OtherHosts {
    fn read(&mut self, section: &mut Section<'_>) {
        section.value("policy", self, word([("direct", OtherHosts::Direct), ("deny", OtherHosts::Deny)]));
    }
}

/// The classes, `default` first, whether the file names it or not.
fn classes(classes: &mut Vec<ClassConfig>, section: &mut Section<'_>) {
    *classes = section.each_table(|name, section| {
        section.check_name("class", name);
        let mut class = ClassConfig { name: name.to_owned(), ..ClassConfig::default() };
        class.read(section);
        class
    });
    match classes.iter().position(|class| class.name == DEFAULT_CLASS) {
        Some(index) => classes[..=index].rotate_right(1),
        None => classes.insert(0, ClassConfig::default()),
    }
}
