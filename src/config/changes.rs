//! The differences between two configurations, setting by setting.
//!
//! Every setting is listed once, with its key as in the file and its value in words, defaults included. A test holds the
//! list against the shipped file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug, Display};
use std::time::Duration;

use humantime::format_duration;

use super::model::{ClassConfig, Config, ListenConfig, MirrorConfig, RegistryConfig};

/// One setting that is different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its key, as in the file: `registries.harbor.cap`.
    pub key: String,
    /// The old value; `None` if the setting is new.
    pub from: Option<String>,
    /// The new value; `None` if the setting is gone.
    pub to: Option<String>,
}

impl Change {
    /// Whether it takes a restart. Listeners are bound once, and the format of the log is chosen once. Connections to a
    /// host of a registry may stand, and count there, so a registry keeps its name and its hosts.
    pub fn needs_restart(&self) -> bool {
        let key = self.key.as_str();
        ["listen.proxy", "listen.admin", "listen.metrics", "log.format"].contains(&key)
            || key.ends_with(".mirror.listen")
            || key.rsplit_once('.').is_some_and(|(_, name)| name == "hosts") && self.loses_some()
    }

    /// Whether something of a list is not there any more.
    fn loses_some(&self) -> bool {
        let items = |list: &Option<String>| list.iter().flat_map(|list| list.split(", ")).map(str::to_owned).collect();
        let (from, to): (BTreeSet<String>, BTreeSet<String>) = (items(&self.from), items(&self.to));
        !from.is_subset(&to)
    }
}

impl Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        write!(f, "{}: {} -> {}", self.key, shown(&self.from), shown(&self.to))
    }
}

/// All differences, in the order of their keys.
pub fn between(old: &Config, new: &Config) -> Vec<Change> {
    let (old, mut new) = (settings(old), settings(new));
    let mut changes = Vec::new();
    for (key, from) in old {
        let to = new.remove(&key);
        if to.as_ref() != Some(&from) {
            changes.push(Change { key, from: Some(from), to });
        }
    }
    changes.extend(new.into_iter().map(|(key, to)| Change { key, from: None, to: Some(to) }));
    changes.sort_by(|one, other| one.key.cmp(&other.key));
    changes
}

/// Every setting that has a value, by its key.
pub fn settings(config: &Config) -> BTreeMap<String, String> {
    let mut all = Listing::default();
    all.span("drain_timeout", config.drain_timeout);
    all.under("listen", |all| listen(all, &config.listen));
    all.under("log", |all| {
        all.debug("format", &config.log.format);
        all.put("level", &config.log.level);
    });
    for each in &config.registries {
        all.under(&format!("registries.{}", each.name), |all| registry(all, each));
    }
    for each in &config.classes {
        all.under(&format!("classes.{}", each.name), |all| class(all, each));
    }
    all.under("other_hosts", |all| all.debug("policy", &config.other_hosts));
    all.values
}

fn listen(all: &mut Listing, listen: &ListenConfig) {
    all.put("proxy", listen.proxy);
    all.put("admin", listen.admin);
    all.maybe("metrics", listen.metrics);
    all.list("allow_clients", &listen.allow_clients);
    all.put("max_clients", listen.max_clients);
    all.span("head_timeout", listen.head_timeout);
}

fn registry(all: &mut Listing, registry: &RegistryConfig) {
    all.list("hosts", &registry.hosts);
    all.put("cap", registry.cap);
    all.put("share", registry.share);
    all.maybe("rate_per_second", registry.rate.map(|rate| format!("one in {}", format_duration(rate.period))));
    all.maybe("burst", registry.rate.map(|rate| rate.burst));
    all.span("connect_timeout", registry.connect_timeout);
    all.span("linger", registry.linger);
    all.put("max_connecting", registry.max_connecting);
    all.span("max_lifetime", registry.max_lifetime);
    all.span("idle_timeout", registry.idle_timeout);
    all.put("queue.depth", registry.queue.depth);
    all.span("queue.tunnel_timeout", registry.queue.tunnel_timeout);
    all.span("queue.request_timeout", registry.queue.request_timeout);
    all.span("queue.keep_place", registry.queue.keep_place);
    all.maybe("queue.least_rate", registry.queue.least_rate.map(|rate| format!("{rate} B/s")));
    all.span("reclaim.idle_after", registry.reclaim.idle_after);
    all.span("reclaim.unused_after", registry.reclaim.unused_after);
    all.span("reclaim.unsure_after", registry.reclaim.unsure_after);
    all.span("reclaim.stall_timeout", registry.reclaim.stall_timeout);
    all.put("reclaim.learn", registry.reclaim.learn);
    let client = registry.tls.client.as_ref();
    all.maybe("tls.ca_file", registry.tls.ca_file.as_ref().map(|path| path.display()));
    all.maybe("tls.client_cert_file", client.map(|(certificate, _)| certificate.display()));
    all.maybe("tls.client_key_file", client.map(|(_, key)| key.display()));
    all.maybe("tls.server_name", registry.tls.server_name.as_ref());
    all.put("tls.insecure_skip_verify", registry.tls.insecure_skip_verify);
    if let Some(each) = &registry.mirror {
        all.under("mirror", |all| mirror(all, each));
    }
    all.put("repair.enabled", registry.repair.enabled);
}

fn mirror(all: &mut Listing, mirror: &MirrorConfig) {
    all.put("listen", mirror.listen);
    all.list("upstream", &mirror.upstream);
    all.list("public_urls", mirror.public_urls.as_deref().unwrap_or_default());
    all.put("rewrite", mirror.rewrite);
    all.put("class", &mirror.class);
    all.put("cap_per_upstream", mirror.cap_per_upstream);
}

fn class(all: &mut Listing, class: &ClassConfig) {
    all.list("users", &class.users);
    all.list("uids", &class.uids);
    all.list("addresses", &class.addresses);
    all.put("weight", class.weight);
    all.maybe("tunnel_timeout", class.tunnel_timeout.map(format_duration));
    all.maybe("request_timeout", class.request_timeout.map(format_duration));
}

/// Values under the path that leads to the table at hand.
#[derive(Default)]
struct Listing {
    path: String,
    values: BTreeMap<String, String>,
}

impl Listing {
    fn under(&mut self, table: &str, fill: impl FnOnce(&mut Listing)) {
        let length = self.path.len();
        self.path.push_str(table);
        self.path.push('.');
        fill(self);
        self.path.truncate(length);
    }

    fn put(&mut self, key: &str, value: impl Display) {
        self.values.insert(format!("{}{key}", self.path), value.to_string());
    }

    fn maybe(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    fn span(&mut self, key: &str, value: Duration) {
        self.put(key, format_duration(value));
    }

    /// A word of a closed set.
    fn debug(&mut self, key: &str, value: &impl Debug) {
        self.put(key, format!("{value:?}").to_ascii_lowercase());
    }

    /// A list; one that is empty was not given.
    fn list(&mut self, key: &str, values: &[impl Display]) {
        let shown: Vec<String> = values.iter().map(ToString::to_string).collect();
        self.maybe(key, (!shown.is_empty()).then(|| shown.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "[registries.harbor]\nhosts = ['harbor.example.com']\ncap = 200\nshare = '1/20'\n";

    fn shown(old: &str, new: &str) -> Vec<String> {
        let parse = |text| Config::parse(text).unwrap();
        between(&parse(old), &parse(new)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_same_file_has_no_changes_and_neither_has_a_default_written_out() {
        assert_eq!(shown(LEAST, LEAST), [""; 0]);
        assert_eq!(shown(LEAST, &format!("{LEAST}[registries.harbor.queue]\ndepth = 10000\n")), [""; 0]);
    }

    #[test]
    fn each_change_is_told_with_both_values() {
        let new = "drain_timeout = '1m'\n[registries.harbor]\nhosts = ['harbor.example.com', '*.b']\ncap = 100\n\
                   share = '1/20'\nrate_per_second = 50\n[classes.bulk]\nusers = ['ci']\n";
        assert_eq!(
            shown(LEAST, new),
            [
                "classes.bulk.users: nothing -> ci",
                "classes.bulk.weight: nothing -> 1",
                "drain_timeout: 30s -> 1m",
                "registries.harbor.burst: nothing -> 50",
                "registries.harbor.cap: 200 -> 100",
                "registries.harbor.hosts: harbor.example.com -> harbor.example.com, *.b",
                "registries.harbor.max_connecting: 10 -> 5",
                "registries.harbor.rate_per_second: nothing -> one in 20ms",
            ]
        );
    }

    /// A registry that is removed or renamed, and one that gives a host away. One that gains a host goes on.
    #[test]
    fn a_registry_keeps_its_name_and_its_hosts() {
        let with = |registry: &str, hosts: &str| {
            let text = format!("[registries.{registry}]\nhosts = [{hosts}]\ncap = 200\nshare = '1/20'\n");
            Config::parse(&text).unwrap()
        };
        let old = with("harbor", "'a.example.com', 'b.example.com'");
        let refused = |new: &Config| -> Vec<String> {
            let changes = between(&old, new);
            changes.iter().filter(|change| change.needs_restart()).map(ToString::to_string).collect()
        };
        assert_eq!(
            refused(&with("renamed", "'a.example.com', 'b.example.com'")),
            ["registries.harbor.hosts: a.example.com, b.example.com -> nothing"]
        );
        assert_eq!(
            refused(&with("harbor", "'a.example.com'")),
            ["registries.harbor.hosts: a.example.com, b.example.com -> a.example.com"]
        );
        assert!(refused(&with("harbor", "'c.example.com', 'b.example.com', 'a.example.com'")).is_empty());
    }

    #[test]
    fn listeners_and_the_shape_of_the_log_take_a_restart() {
        let mirror = "[registries.harbor.mirror]\nlisten = '127.0.0.1:1'\nupstream = 'https://harbor.example.com'\n";
        let new = format!("[listen]\nproxy = '127.0.0.1:2'\n[log]\nformat = 'json'\nlevel = 'debug'\n{LEAST}{mirror}");
        let changes = between(&Config::parse(LEAST).unwrap(), &Config::parse(&new).unwrap());
        let (restart, live): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.needs_restart());
        let keys = |changes: Vec<&Change>| changes.iter().map(|change| change.key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(restart), ["listen.proxy", "log.format", "registries.harbor.mirror.listen"]);
        assert!(keys(live).contains(&"log.level".to_owned()));
    }

    /// So that no setting is forgotten here.
    #[test]
    fn every_setting_of_the_shipped_file_is_listed() {
        let shipped = include_str!("../../sidecar.toml");
        let uncommented: Vec<&str> = shipped
            .lines()
            .map(|line| {
                line.strip_prefix("# ").filter(|rest| rest.contains(" = ") || rest.starts_with('[')).unwrap_or(line)
            })
            .filter(|line| !line.starts_with("A setting"))
            .collect();
        let listed = settings(&Config::parse(&uncommented.join("\n")).unwrap());
        let mut table = String::new();
        for line in &uncommented {
            let line = line.split('#').next().unwrap_or_default().trim();
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                table = format!("{name}.");
            } else if let Some((key, _)) = line.split_once(" = ") {
                let key = format!("{table}{key}");
                assert!(listed.contains_key(&key), "{key}: not among the settings that can change");
            }
        }
        assert!(listed.len() > 40, "{}", listed.len());
    }
}
