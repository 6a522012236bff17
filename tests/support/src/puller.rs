//! A puller made as Dragonfly's dfdaemon is: 32 HTTP clients with pools of their own, of which each request takes one at
//! random. They race dials against their pools, finish the loser's TLS handshake, and keep it for later.
//!
//! A request that is cut fails its pull, as dfdaemon's does: hyper does not send it again. A test with pauses far below the
//! defaults lets a puller send it once more, and counts it. An answer that is another one than asked for always fails.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Certificate, Client, Identity, Proxy, StatusCode};
use tokio::sync::Semaphore;

use crate::real::Nginx;
use crate::{Metrics, Random, blob_of};

/// HTTP clients of one daemon.
const CLIENTS: u64 = 32;
/// Longer than any wait in the queue of a test.
const PATIENCE: Duration = Duration::from_secs(60);

/// The load of a pull.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Blobs.
    pub blobs: usize,
    /// Of them at once.
    pub blobs_at_once: usize,
    /// Ranges of each blob.
    pub pieces: usize,
    /// Of them at once.
    pub pieces_at_once: usize,
    /// Bytes of each range.
    pub piece: usize,
    /// How often a request that is cut is sent again.
    pub again: usize,
}

impl Load {
    /// The load of dfdaemon: blobs of 32 MiB, 8 at once, in ranges of 4 MiB, 8 at once.
    pub const DFDAEMON: Load =
        Load { blobs: 8, blobs_at_once: 8, pieces: 8, pieces_at_once: 8, piece: 4 * 1024 * 1024, again: 0 };

    /// Bytes of each blob.
    #[must_use]
    pub fn blob_size(&self) -> usize {
        self.pieces * self.piece
    }
}

/// One daemon.
#[derive(Debug)]
pub struct Puller {
    clients: Vec<Client>,
    random: Mutex<Random>,
    base: String,
    load: Load,
    cut: AtomicU64,
}

impl Puller {
    /// A daemon that asks `front`, through the proxy if there is one, and shows it a certificate if that is wanted.
    ///
    /// # Panics
    /// When the certificates of `front` are none.
    #[must_use]
    pub fn new(front: &Nginx, proxy: Option<SocketAddr>, identity: Option<&[u8]>, load: Load) -> Arc<Puller> {
        let authority = fs::read(front.authority()).expect("openssl has made it");
        let authority = Certificate::from_pem(&authority).expect("an authority");
        let client = || {
            let mut builder = Client::builder()
                .http1_only()
                .pool_max_idle_per_host(1024)
                .add_root_certificate(authority.clone())
                .timeout(PATIENCE);
            builder = match proxy {
                Some(proxy) => builder.proxy(Proxy::all(format!("http://dfdaemon:x@{proxy}")).expect("a URL")),
                None => builder.no_proxy(),
            };
            if let Some(identity) = identity {
                builder = builder.identity(Identity::from_pem(identity).expect("a certificate with its key"));
            }
            builder.build().expect("a client")
        };
        Arc::new(Puller {
            clients: (0..CLIENTS).map(|_| client()).collect(),
            random: Mutex::new(Random::new(7)),
            base: format!("https://{}", front.address()),
            load,
            cut: AtomicU64::new(0),
        })
    }

    /// Requests that were cut so far.
    #[must_use]
    pub fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    /// Pulls all blobs once, checks every byte, and tells which pulls failed, and why.
    ///
    /// # Panics
    /// Never, unless a pull does.
    pub async fn pull_all(self: &Arc<Self>) -> Vec<String> {
        let at_once = Arc::new(Semaphore::new(self.load.blobs_at_once));
        let pulls = (0..self.load.blobs).map(|number| {
            let (puller, at_once) = (self.clone(), at_once.clone());
            tokio::spawn(async move {
                let _turn = at_once.acquire().await.expect("never closed");
                puller.pull(format!("/v2/app/blobs/sha256:{number:064}")).await
            })
        });
        let mut failed = Vec::new();
        for pull in pulls.collect::<Vec<_>>() {
            failed.extend(pull.await.expect("a pull does not panic").err());
        }
        failed
    }

    /// One blob: a byte of it, then its ranges.
    async fn pull(self: Arc<Self>, path: String) -> Result<(), String> {
        self.range(&path, 0, 0).await?;
        let at_once = Arc::new(Semaphore::new(self.load.pieces_at_once));
        let pieces = (0..self.load.pieces).map(|piece| {
            let (puller, path, at_once) = (self.clone(), path.clone(), at_once.clone());
            tokio::spawn(async move {
                let _turn = at_once.acquire().await.expect("never closed");
                let size = puller.load.piece;
                puller.range(&path, piece * size, (piece + 1) * size - 1).await
            })
        });
        for piece in pieces.collect::<Vec<_>>() {
            piece.await.expect("a range does not panic")?;
        }
        Ok(())
    }

    async fn range(&self, path: &str, first: usize, last: usize) -> Result<(), String> {
        let failed = |why: String| format!("{path} {first}: {why}");
        let mut again = self.load.again;
        loop {
            match self.try_range(path, first, last).await {
                Ok(()) => return Ok(()),
                Err(NoRange::Cut(why)) => {
                    self.cut.fetch_add(1, Ordering::Relaxed);
                    again = again.checked_sub(1).ok_or_else(|| failed(why))?;
                }
                Err(NoRange::Wrong(why)) => return Err(failed(why)),
            }
        }
    }

    async fn try_range(&self, path: &str, first: usize, last: usize) -> Result<(), NoRange> {
        let cut = |error: reqwest::Error| NoRange::Cut(format!("{error:?}"));
        let pick = self.random.lock().expect("no panic under a lock").below(CLIENTS);
        let client = &self.clients[usize::try_from(pick).expect("a small number")];
        let request = client.get(format!("{}{path}", self.base)).header("Range", format!("bytes={first}-{last}"));
        let answer = request.send().await.map_err(cut)?;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Err(NoRange::Wrong(answer.status().to_string()));
        }
        let bytes = answer.bytes().await.map_err(cut)?;
        let right = bytes == blob_of(path, self.load.blob_size()).slice(first..=last);
        right.then_some(()).ok_or_else(|| NoRange::Wrong("wrong bytes".to_owned()))
    }
}

/// Why there is no range.
enum NoRange {
    /// The connection ended before it was whole.
    Cut(String),
    /// It is another answer.
    Wrong(String),
}

/// The metrics of a sidecar about the tunnels to the registry `stub` that it reclaimed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reclaims {
    /// Without a request so far.
    pub unused: u64,
    /// After an answer.
    pub idle: u64,
    /// In doubt.
    pub unsure: u64,
    /// Requests that crossed the end of the tunnel on their way.
    pub crossed: u64,
    /// Answers that the registry went on with after the end of the tunnel.
    pub cut: u64,
    /// Seconds for which slots were held.
    pub held: f64,
    /// Seconds of them in which they were busy.
    pub busy: f64,
}

impl Reclaims {
    /// Reads them from `/metrics`.
    #[must_use]
    pub fn of(metrics: &Metrics) -> Reclaims {
        let by = |evidence| metrics.count("roadstead_reclaimed_total", &[("registry", "stub"), ("evidence", evidence)]);
        let seconds = |name| metrics.value(name, &[("registry", "stub")]);
        Reclaims {
            unused: by("unused"),
            idle: by("idle"),
            unsure: by("unsure"),
            crossed: metrics.count("roadstead_reclaims_crossed_total", &[("registry", "stub")]),
            cut: metrics.count("roadstead_reclaims_cut_total", &[("registry", "stub")]),
            held: seconds("roadstead_slot_held_seconds_total"),
            busy: seconds("roadstead_slot_busy_seconds_total"),
        }
    }

    /// The difference since `before`.
    #[must_use]
    pub fn since(self, before: Reclaims) -> Reclaims {
        Reclaims {
            unused: self.unused - before.unused,
            idle: self.idle - before.idle,
            unsure: self.unsure - before.unsure,
            crossed: self.crossed - before.crossed,
            cut: self.cut - before.cut,
            held: self.held - before.held,
            busy: self.busy - before.busy,
        }
    }

    /// Of the time for which slots were held, the part in which they were busy.
    #[must_use]
    pub fn efficiency(&self) -> f64 {
        if self.held > 0.0 { self.busy / self.held } else { 0.0 }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.unused + self.idle + self.unsure
    }
}
