//! A Redis cluster: three primaries, each with a replica.

use std::process::Command;
use std::time::Duration;

use super::RedisServer;
use super::program::{find_program, free_address};
use crate::eventually::eventually;

const PRIMARIES: usize = 3;
const TIME_TO_FORM: Duration = Duration::from_secs(30);

/// Its servers. Dropping it ends them.
pub struct RedisCluster {
    pub servers: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts it on free ports of 127.0.0.1. A server that is silent for a second is taken for dead by the others.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start() -> Self {
        let start = |_| {
            let bus = free_address().port().to_string();
            let settings = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "1000"];
            RedisServer::start_with(&settings)
        };
        let servers: Vec<RedisServer> = (0..2 * PRIMARIES).map(start).collect();
        let mut command = Command::new(find_program("redis-cli"));
        command.args(["--cluster", "create"]).args(servers.iter().map(|server| server.address().to_string()));
        command.args(["--cluster-replicas", "1", "--cluster-yes"]);
        let run = command.output().expect("redis-cli runs");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
        let cluster = Self { servers };
        cluster.until_whole().await;
        cluster
    }

    /// Waits until each server knows that the cluster works, and each replica has its primary's data.
    async fn until_whole(&self) {
        eventually("a whole cluster", TIME_TO_FORM, async || {
            let is_well = |server: &&RedisServer| {
                let replication = server.order("INFO replication");
                server.order("CLUSTER INFO").contains("cluster_state:ok")
                    && (replication.contains("connected_slaves:1") || replication.contains("master_link_status:up"))
            };
            let well = self.servers.iter().filter(is_well).count();
            if well == self.servers.len() { Ok(()) } else { Err(well) }
        })
        .await;
    }

    /// The place of the primary that has this key, among the servers.
    #[must_use]
    pub fn primary_of(&self, key: &str) -> Option<usize> {
        self.servers.iter().position(|server| server.order(&format!("EXISTS {key}")).starts_with(':'))
    }

    /// Moves the slot of these keys, which share one hash tag, from one server to another.
    ///
    /// # Panics
    /// When a server does not do it.
    pub fn move_slot(&self, keys: &[&str], from: usize, to: usize) {
        let (from, to) = (&self.servers[from], &self.servers[to]);
        let word = |answer: String| answer.trim_start_matches(':').lines().last().unwrap_or_default().to_owned();
        let slot = word(from.order(&format!("CLUSTER KEYSLOT {}", keys[0])));
        let [source, target] = [from, to].map(|server| word(server.order("CLUSTER MYID")));
        let done = |server: &RedisServer, order: String| assert_eq!(server.order(&order), "+OK\r\n", "{order}");
        done(to, format!("CLUSTER SETSLOT {slot} IMPORTING {source}"));
        done(from, format!("CLUSTER SETSLOT {slot} MIGRATING {target}"));
        done(from, format!("MIGRATE 127.0.0.1 {} \"\" 0 5000 KEYS {}", to.address().port(), keys.join(" ")));
        done(to, format!("CLUSTER SETSLOT {slot} NODE {target}"));
        done(from, format!("CLUSTER SETSLOT {slot} NODE {target}"));
    }
}
