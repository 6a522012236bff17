//! The server of a Redis cluster that has the records of one registry. They are under one hash tag, so one server has them all, and an
//! ordinary connection to it does what one to a single server does. That server is looked for at each new connection: any request
//! that fails, as one whose records have moved, ends the connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::{AsyncConnectionConfig, Client, RedisError};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::lease::store_url::{ClusterSeeds, StoreHost};

/// Redirections that are followed. One leads there, unless the cluster is being changed.
const MAX_REDIRECTIONS: usize = 3;
/// Each server of the URL is asked so much later than the one before it, so that one search ends where all is well.
const HEAD_START: Duration = Duration::from_millis(100);
/// It writes nothing, but could: only a primary that is in touch with its cluster and with its replicas runs it for a key of its own.
const PROBE: &str = "redis.call('HDEL', KEYS[1], '') return redis.call('INFO', 'cluster')";
const FOREIGN: &str = "a server of the URL belongs to no cluster";

/// A search for the server that has what is under this key.
pub(super) struct ClusterSearch<F> {
    pub seeds: ClusterSeeds,
    pub key: String,
    pub config: AsyncConnectionConfig,
    /// How to reach the server with this URL.
    pub client: F,
}

impl<F: Fn(&str) -> Result<Client, RedisError> + Send + Sync + 'static> ClusterSearch<F> {
    /// Asks all servers of the URL. The first way that ends at one that runs scripts for this key wins, so one that is down, or redirects
    /// to one that is, delays little. If there is none, what a server said, or else the last error.
    pub(super) async fn primary(self) -> Result<Client, RedisError> {
        let (search, mut ways, mut delay) = (Arc::new(self), JoinSet::new(), Duration::ZERO);
        for host in search.seeds.hosts.clone() {
            let search = search.clone();
            ways.spawn(async move {
                sleep(delay).await;
                search.follow(host).await
            });
            delay += HEAD_START;
        }
        let mut failed = RedisError::from(io::Error::other("no server of the cluster answers"));
        while let Some(way) = ways.join_next().await {
            match way {
                Ok(Ok(client)) => return Ok(client),
                Ok(Err(error)) if !is_telling(&failed) => failed = error,
                _ => {}
            }
        }
        Err(failed)
    }

    async fn follow(&self, mut at: StoreHost) -> Result<Client, RedisError> {
        let mut redirections = 0..MAX_REDIRECTIONS;
        loop {
            let client = (self.client)(&self.seeds.url_of(&at))?;
            let mut server = client.get_multiplexed_async_connection_with_config(&self.config).await?;
            let probe = redis::cmd("EVAL").arg(PROBE).arg(1).arg(&self.key).query_async::<String>(&mut server).await;
            let error = match probe {
                Ok(told) if told.contains("cluster_enabled:1") => return Ok(client),
                Ok(_) => RedisError::from(io::Error::other(FOREIGN)),
                Err(error) => error,
            };
            let to = error.redirect_node().and_then(|(to, _)| self.seeds.redirected(&at, to));
            at = to.filter(|_| redirections.next().is_some()).ok_or(error)?;
        }
    }
}

/// Whether it comes from a server, not from one that is not reached.
fn is_telling(error: &RedisError) -> bool {
    error.code().is_some() || error.to_string().contains(FOREIGN)
}
