//! The server of a Redis cluster that has the records of one registry. They are under one hash tag, so one server has them all, and an
//! ordinary connection to it does what one to a single server does. That server is looked for at each new connection: any request
//! that fails, as one whose records have moved, ends the connection.

use redis::{Client, RedisError, Value};
use tokio::task::JoinSet;

use crate::lease::store_url::{ClusterSeeds, StoreHost};

/// Redirections that are followed. One leads there, unless the cluster is being changed.
const MAX_REDIRECTIONS: usize = 3;

/// How to open a connection to this URL.
pub(super) trait Opener: Fn(&str) -> Result<Client, RedisError> + Clone + Send + Sync + 'static {}
impl<F: Fn(&str) -> Result<Client, RedisError> + Clone + Send + Sync + 'static> Opener for F {}

/// Asks all servers of the URL at once. The first search that ends at a server that answers for this key wins, so one that is down,
/// or redirects to one that is, delays nothing. The last error if there is none.
pub(super) async fn cluster_primary(seeds: &ClusterSeeds, key: &str, open: impl Opener) -> Result<Client, RedisError> {
    let mut searches = JoinSet::new();
    for host in &seeds.hosts {
        let (seeds, host, key, open) = (seeds.clone(), host.clone(), key.to_owned(), open.clone());
        searches.spawn(async move { search(&seeds, host, &key, open).await });
    }
    let mut found = Err(RedisError::from(std::io::Error::other("no server of the cluster answers")));
    while let Some(search) = searches.join_next().await {
        found = search.unwrap_or(found);
        if found.is_ok() {
            break;
        }
    }
    found
}

async fn search(seeds: &ClusterSeeds, mut at: StoreHost, key: &str, open: impl Opener) -> Result<Client, RedisError> {
    let mut redirections = 0..MAX_REDIRECTIONS;
    loop {
        let client = open(&seeds.url_of(&at))?;
        let mut server = client.get_multiplexed_async_connection().await?;
        let asked: Result<Value, RedisError> = redis::cmd("HMGET").arg(key).arg("run").query_async(&mut server).await;
        let Err(error) = asked else { return Ok(client) };
        let to = error.redirect_node().and_then(|(to, _)| seeds.redirected(&at, to));
        at = to.filter(|_| redirections.next().is_some()).ok_or(error)?;
    }
}
