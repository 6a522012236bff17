//! The table `[lease]`: the store that lends, this node, and the times of a lease.

use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::message::Times;
use super::node::FleetTerms;
use super::store_url::StoreUrl;
use crate::config::reader::Section;
use crate::config::table::table;
use crate::config::value::{MAX_COUNT, Parsed, duration, path, seconds, some, text, whole};

/// A node that has not renewed its lease for so much longer than it should is away.
const GRACE: Duration = Duration::from_secs(2);
/// Longest name of a node, in bytes.
const MAX_NODE_ID: usize = 128;

table! {
    /// The part `lease`.
    LeaseConfig {
        /// The URL of the store: `redis://` or `rediss://` (TLS) with the number of the database, of its Sentinels, or of a cluster.
        redis: String = String::new(), value(url) required "\"redis://redis.example.com:6379/0\"";
        /// The user at the store (ACL). Default: that of Redis, `default`.
        user: Option<String> = None, value(some(text));
        /// The file with its password. It is read at each connection to the store.
        password_file: Option<PathBuf> = None, value(some(path));
        /// Certificates of further authorities for `rediss://`, in PEM.
        ca_file: Option<PathBuf> = None, value(some(path));
        /// The name of this node, which no other node has. Default: the name of the host.
        node_id: Option<String> = None, value(some(node_id));
        /// The nodes that are expected.
        nodes: u32 = 1, value(whole(1..=MAX_COUNT)) required "20";
        /// Slots of each registry that are never lent: each node has so many, whatever the store says.
        floor: u32 = 0, value(whole(0..=MAX_COUNT));
        /// The longest time between two requests to the store.
        renew_every: Duration = seconds(5), value(duration);
        /// How long leased slots are given to requests after the store was asked last.
        admit_for: Duration = seconds(60), value(duration);
        /// How long leased connections may stay open after that. Then they are cut.
        close_after: Duration = seconds(60), value(duration);
        /// The time after which the registry drops the connections of a machine that has gone silent.
        registry_gives_up: Duration = seconds(90), value(duration);
    }
}

impl LeaseConfig {
    /// A node that has not renewed its lease for so long is away.
    pub fn away_after(&self) -> Duration {
        self.renew_every + GRACE
    }

    pub fn times(&self) -> Times {
        let (renew, admit, close) = (self.renew_every, self.admit_for, self.close_after);
        Times { renew, admit, close, registry_drops: self.registry_gives_up }
    }

    /// The terms of a registry with this cap.
    pub fn terms(&self, cap: u32) -> FleetTerms {
        let (floor, pool, nodes) = (self.floor.into(), self.pool(cap).into(), self.nodes.into());
        FleetTerms { times: self.times(), floor, pool, nodes }
    }

    /// The slots of a registry that are lent: its cap without the floors of all nodes.
    pub fn pool(&self, cap: u32) -> u32 {
        cap.saturating_sub(self.nodes.saturating_mul(self.floor))
    }
}

fn url(value: &DeValue<'_>) -> Parsed<String> {
    let url = text(value)?;
    StoreUrl::parse(&url).map(|_| url)
}

fn node_id(value: &DeValue<'_>) -> Parsed<String> {
    let id = text(value)?;
    let fits = |char: char| char.is_ascii_alphanumeric() || "._-".contains(char);
    if id.is_empty() || id.len() > MAX_NODE_ID || !id.chars().all(fits) {
        return Err(format!("has 1 to {MAX_NODE_ID} characters, each a letter, a digit, '.', '_' or '-'"));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_the_time_after_which_the_store_lends_again() {
        let hold = format!(" {} s ", LeaseConfig::default().times().hold().as_secs_f64());
        let page = include_str!("../../docs/fleet.md");
        assert_eq!(page.matches(&hold).count(), 2, "{hold}");
    }
}
