//! The differences between two configurations, setting by setting.

use std::collections::BTreeSet;
use std::fmt::{self, Display};

use super::model::Config;

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
        let once = ["proxy", "admin", "metrics", "control", "control_token_file"];
        key.strip_prefix("listen.").is_some_and(|key| once.contains(&key))
            || ["threads", "log.format"].contains(&key)
            || key.starts_with("lease.")
            || [&self.from, &self.to].into_iter().flatten().any(|value| value == "lease")
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
    let keys: BTreeSet<&String> = old.settings.keys().chain(new.settings.keys()).collect();
    let changes = keys.into_iter().map(|key| Change {
        key: key.clone(),
        from: old.settings.get(key).cloned(),
        to: new.settings.get(key).cloned(),
    });
    changes.filter(|change| change.from != change.to).collect()
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
                "registries.harbor.rate_per_second: nothing -> 50",
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
        let listed = Config::parse(&uncommented.join("\n")).unwrap().settings;
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
