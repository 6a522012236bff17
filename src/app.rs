//! Wires the parts: opens all listeners, then starts everything, lets it change, and takes it down in order.

mod assembly;
mod elsewhere;
mod handing;
mod heirs;
pub mod inherited;
mod listeners;
mod reload;
pub mod succession;
pub mod systemd;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use self::assembly::{Assembly, LINGER, tls_terms};
use self::elsewhere::Elsewhere;
use self::heirs::Heirs;
use self::inherited::Inherited;
pub use self::listeners::Addresses;
use self::listeners::{Listeners, accepting};
use self::reload::Reloader;
pub use self::reload::SetLevel;
use self::succession::{NoSuccessor, Origin, Successor};
use crate::admin::config_state::ConfigState;
use crate::admin::{Admin, Scope};
use crate::admission::Gate;
use crate::config::{self, Config};
use crate::listener;
use crate::metrics::Metrics;
use crate::proxy::{Entry, Proxy};
use crate::upstream::Upstream;
use crate::upstream::tls::{Tls, TlsError};

/// Time after `drain_timeout` in which the last refusals are written, and again in which cut connections are closed.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How long a process that has handed over serves those who came to it, at the longest.
const LONGEST_HAND_OVER: Duration = Duration::from_secs(60 * 60);

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not be bound.
    #[error("cannot listen on {address} ({key}): {cause}")]
    Bind {
        /// The setting.
        key: String,
        /// Its value.
        address: SocketAddr,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A listener was inherited that the config does not name.
    #[error("a listener on {0} was handed over, and the config has none there")]
    Stray(SocketAddr),
    /// The system does not give what it takes.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
    /// The files that TLS to a registry needs are not usable.
    #[error("registries.{registry}.{error}")]
    Tls {
        /// The registry's name.
        registry: String,
        /// The setting, the file and what is wrong with it.
        error: TlsError,
    },
}

/// A running sidecar.
#[derive(Debug)]
pub struct Running {
    addresses: Addresses,
    /// Kept for whoever takes over; closed with the others when draining begins.
    listeners: Option<Listeners>,
    proxy: Arc<Proxy>,
    admin: Arc<Admin>,
    reloader: Reloader,
    elsewhere: Arc<Elsewhere>,
    draining: CancellationToken,
    ended: CancellationToken,
    cut_short: CancellationToken,
}

/// What a sidecar starts from.
#[derive(Debug)]
pub struct Start<'a> {
    /// The file of the config.
    pub file: &'a Path,
    /// What it says.
    pub config: Config,
    /// What was open before.
    pub inherited: Inherited,
}

/// Opens every listener, takes over from the process before if there is one, and then starts. Must be called inside a
/// tokio runtime.
///
/// # Errors
/// When a listener cannot be had, or a file of TLS is not usable; nothing runs then, and a process before goes on.
pub async fn start(start: Start<'_>, set_level: SetLevel) -> Result<Running, StartError> {
    let Start { file, config, mut inherited } = start;
    let tls = read_tls(&config)?;
    let listeners = Listeners::open(&config, &mut inherited)?;
    let addresses = listeners.addresses()?;
    let metrics = Arc::new(Metrics::new());
    let (draining, ended, cut_short) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let mut assembly = Assembly::new(metrics.clone(), addresses.clone(), ended.clone());
    let settings = assembly.settings(&config, tls, None);
    let proxy = Proxy::new(settings, pseudonym(), draining.clone(), cut_short.clone());
    let state = Arc::new(ConfigState::new(file));
    let admin = Admin::new(proxy.clone(), state.clone(), metrics, draining.clone());
    let elsewhere = Elsewhere::new(proxy.clone());
    let reloader = Reloader::new(file, config, assembly, elsewhere.clone(), state, set_level);
    // Not a slot is taken before it is known which are free.
    handing::meet(inherited.take_predecessor(), &elsewhere).await?;
    // Who accepts is one of the tasks: while one of them may still accept somebody, nothing is over.
    proxy.tasks().spawn(listener::accept(proxy.clone(), accepting(&listeners.proxy)?, Entry::Proxy));
    for (registry, listener) in &listeners.mirrors {
        proxy.tasks().spawn(listener::accept(
            proxy.clone(),
            accepting(listener)?,
            Entry::Mirror(registry.as_str().into()),
        ));
    }
    tokio::spawn(admin.clone().keep_history());
    tokio::spawn(admin.clone().accept(accepting(&listeners.admin)?, Scope::Admin));
    if let Some(listener) = &listeners.metrics {
        tokio::spawn(admin.clone().accept(accepting(listener)?, Scope::Metrics));
    }
    let listeners = Some(listeners);
    Ok(Running { addresses, listeners, proxy, admin, reloader, elsewhere, draining, ended, cut_short })
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Completes when the config file has changed.
    pub async fn config_changed(&self) {
        self.reloader.changed().await;
    }

    /// Reads the config again; `why` is for the log.
    pub fn reload(&mut self, why: &str) {
        self.reloader.reload(why);
    }

    /// How long requests under way may take when it ends.
    #[must_use]
    pub fn drain_timeout(&self) -> Duration {
        self.reloader.config().drain_timeout
    }

    /// Starts the like of this process to take over. Until it is ready, nothing changes.
    ///
    /// # Errors
    /// When no other process takes over; this one goes on.
    pub async fn find_successor(&self, origin: &Origin) -> Result<Successor, NoSuccessor> {
        let listeners = self.listeners.as_ref().map_or_else(|| Ok(Vec::new()), Listeners::copies);
        let listeners = listeners.map_err(|cause| NoSuccessor::Descriptors { cause })?;
        origin.succeed(listeners).await
    }

    /// Ends in order: accepts nobody any more, serves those who came for up to `drain_timeout`, refuses and cuts the
    /// rest, and waits until every socket toward a registry is gone.
    pub async fn drain(mut self) {
        let deadline = Instant::now() + self.drain_timeout();
        self.accept_nobody();
        let tasks = self.proxy.tasks();
        tasks.close();
        if timeout_at(deadline, tasks.wait()).await.is_err() {
            self.cut_the_rest(deadline).await;
        }
        self.until_sockets_are_gone().await;
    }

    /// The same while another process has taken over: who came here is served to the end, and each slot that is not
    /// needed any more is handed on. Only when the service is to stop, `drain_timeout` counts, from the last one who
    /// waited on. Tells whether another process listens at the end.
    pub async fn hand_over(mut self, successor: Successor, origin: Origin, stop: CancellationToken) -> bool {
        self.admin.accept_nobody();
        let listeners = self.listeners.take();
        self.accept_nobody();
        let tasks = self.proxy.tasks().clone();
        tasks.close();
        let heirs = Arc::new(Heirs::new(origin, listeners, stop.clone()));
        let handing = tokio::spawn(heirs.clone().serve(successor, self.elsewhere.clone()));
        let latest = Instant::now() + LONGEST_HAND_OVER;
        let mut deadline = latest;
        while !tasks.is_empty() || heirs.is_one_sought() {
            let somebody_waits = self.upstreams().iter().any(|upstream| upstream.gate.snapshot().waiting > 0);
            if stop.is_cancelled() && (somebody_waits || deadline == latest) {
                deadline = Instant::now() + self.drain_timeout();
            }
            if Instant::now() >= deadline {
                self.cut_the_rest(deadline).await;
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.until_sockets_are_gone().await;
        // What an older process still holds was counted with ours.
        handing::others_are_gone(&self.elsewhere).await;
        let _ = timeout(LAST_WORDS, handing).await;
        heirs.do_listen()
    }

    fn accept_nobody(&mut self) {
        self.listeners = None;
        self.draining.cancel();
        for upstream in self.upstreams() {
            upstream.gate.drain();
        }
    }

    async fn cut_the_rest(&self, deadline: Instant) {
        let tasks = self.proxy.tasks();
        self.upstreams().iter().map(|upstream| &upstream.gate).for_each(Gate::end);
        self.ended.cancel();
        let _ = timeout_at(deadline + LAST_WORDS, tasks.wait()).await;
        self.cut_short.cancel();
        let _ = timeout_at(deadline + LAST_WORDS * 2, tasks.wait()).await;
    }

    /// Those of the settings, and those of before that still matter.
    fn upstreams(&self) -> Vec<Arc<Upstream>> {
        self.elsewhere.upstreams()
    }

    /// Closing takes no longer than the longest `linger` and the hold that follows it.
    async fn until_sockets_are_gone(&self) {
        let upstreams = self.upstreams();
        let longest_linger = upstreams.iter().map(|upstream| upstream.terms.linger).max().unwrap_or(LINGER);
        let deadline = Instant::now() + longest_linger + LAST_WORDS;
        while Instant::now() < deadline && upstreams.iter().any(|upstream| upstream.gate.snapshot().open.open() > 0) {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// TLS with registries, by their names, made of the files as they were read.
pub type ReadTls = BTreeMap<String, Arc<Tls>>;

/// Reads the files of TLS where the config speaks of it; a wrong one is better known now than with the first pull.
///
/// # Errors
/// What is wrong with the first that is.
pub fn read_tls(config: &Config) -> Result<ReadTls, StartError> {
    let mut read = ReadTls::new();
    for registry in &config.registries {
        let origins = registry.mirror.iter().flat_map(|mirror| &mirror.upstream);
        if origins.into_iter().any(|origin| origin.secure) || registry.tls != config::TlsConfig::default() {
            let tls = Tls::new(tls_terms(&registry.tls));
            tls.check().map_err(|error| StartError::Tls { registry: registry.name.clone(), error })?;
            read.insert(registry.name.clone(), Arc::new(tls));
        }
    }
    Ok(read)
}

/// A name for this process in Via that no other has.
fn pseudonym() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("roadstead-{:08x}", RandomState::new().hash_one(std::process::id()) >> 32)
}
