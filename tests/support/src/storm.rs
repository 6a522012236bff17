//! The load: many pulls at once, each a manifest and a blob, every byte checked.
//!
//! Clients that cut their connection on purpose are counted apart: their pulls are no failures. One seed decides which
//! clients cut, where and how.

mod cut;
mod pull;
mod tally;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

pub use cut::Cuts;
pub use tally::Tally;

use pull::Pull;
use tally::End;

/// How the pulls reach the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Without a proxy.
    Direct,
    /// Through the proxy at this address, with whole URLs on one kept-open connection per client.
    AbsoluteForm(SocketAddr),
    /// At the mirror at this address, on one kept-open connection per client.
    Mirror(SocketAddr),
    /// Through the proxy at this address, one tunnel per client, plain HTTP inside.
    Connect(SocketAddr),
}

/// A storm of pulls, to be started with [`Storm::run`].
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    /// Pulls, all at once.
    pub clients: usize,
    /// Bytes of each blob; the registry's [`blob_size`](crate::StubBuilder::blob_size) must be the same.
    pub blob: usize,
    /// How they reach the registry.
    pub way: Destination,
    /// The clients that cut their connection; `None`: no client does.
    pub cut: Option<Cuts>,
    /// How long a client waits for all of its pull before it counts as failed.
    pub patience: Duration,
}

/// How far a storm has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Pulls that have ended, in whatever way.
    pub ended: usize,
    /// All pulls.
    pub clients: usize,
}

impl Storm {
    /// 500 pulls of 1 MiB, nobody cuts, 120 s of patience.
    #[must_use]
    pub fn new(way: Destination) -> Self {
        Self { clients: 500, blob: 1024 * 1024, way, cut: None, patience: Duration::from_secs(120) }
    }

    /// Runs it against the registry at this address, and waits for every client.
    pub async fn run(self, registry: SocketAddr) -> Tally {
        self.run_with(registry, |_| {}).await
    }

    /// The same, with `progress` called after each pull, from the tasks of the clients.
    ///
    /// # Panics
    /// When a client panics.
    pub async fn run_with(self, registry: SocketAddr, progress: impl Fn(Progress) + Send + Sync + 'static) -> Tally {
        allow_many_files();
        let start = Arc::new(Barrier::new(self.clients));
        let ended = Arc::new(AtomicUsize::new(0));
        let progress = Arc::new(progress);
        let mut pulls = JoinSet::new();
        let started = Instant::now();
        for number in 0..self.clients {
            let (start, ended, progress) = (start.clone(), ended.clone(), progress.clone());
            pulls.spawn(async move {
                start.wait().await;
                let end = self.one_pull(number, registry).await;
                let ended = ended.fetch_add(1, Ordering::Relaxed) + 1;
                progress(Progress { ended, clients: self.clients });
                end
            });
        }
        Tally::of(pulls.join_all().await, started.elapsed())
    }

    async fn one_pull(self, number: usize, registry: SocketAddr) -> End {
        let cut = self.cut.and_then(|cuts| cuts.of_client(number, self.blob));
        let started = Instant::now();
        let mut pull = Pull::new(number, registry, self.way, self.blob, cut);
        let result = tokio::time::timeout(self.patience, pull.run()).await;
        End {
            result: result.unwrap_or_else(|_| Err(format!("out of patience after {:?}", self.patience))),
            cut_on_purpose: cut.is_some(),
            completed: pull.completed(),
            time: started.elapsed(),
        }
    }
}

/// Raises the soft limit of file descriptors to the hard one: a storm has two ends in this process.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is not allowed, the storm says so by failing.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[cfg(test)]
mod tests;
