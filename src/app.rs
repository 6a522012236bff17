//! Wires the parts: opens all listeners, starts everything, reloads it, hands it over, and ends it in order.
//!
//! It owns the listeners and the running config. It never reads a request. `cli` calls it.

pub(crate) mod assembly;
pub(crate) mod descriptors;
mod error;
pub mod inherited;
mod listeners;
mod registry_tls;
mod reload;
pub(crate) mod systemd;
pub(crate) mod takeover;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use self::assembly::Assembly;
pub use self::error::StartError;
use self::inherited::Inherited;
pub use self::listeners::ListenAddresses;
use self::listeners::Listener;
pub use self::registry_tls::read_tls;
use self::reload::Reloader;
pub use self::reload::SetLevel;
use self::takeover::hand_over::hand_over;
use self::takeover::process::{NoSuccessor, Program, Successor};
use self::takeover::reservations::Reservations;
use self::takeover::take_over::take_over;
use crate::admin::config_state::ConfigState;
use crate::admin::{Admin, Scope};
use crate::admission::core::Core;
use crate::config::{Config, Service};
use crate::control::socket::{SocketPlace, of_config};
use crate::control::{Control, ReloadAsked};
use crate::fleet::tasks::{Participant, leased_registries};
use crate::listener;
use crate::metrics::Metrics;
use crate::proxy::{Entry, Proxy};

/// Time after `drain_timeout` in which the last refusals are written, and again in which cut connections are closed.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The longest time for which a process that has handed over serves its clients.
const MAX_HAND_OVER: Duration = Duration::from_secs(60 * 60);

/// A running sidecar.
#[derive(Debug)]
pub struct Running {
    addresses: ListenAddresses,
    /// For a process that takes over; closed when draining begins.
    listeners: Vec<Listener>,
    accepting: Vec<JoinHandle<()>>,
    proxy: Arc<Proxy>,
    admin: Arc<Admin>,
    reloader: Reloader,
    reloads: mpsc::Receiver<ReloadAsked>,
    /// The order to reload that is to be answered.
    asked: Option<ReloadAsked>,
    /// Removed with the end of this process.
    control_socket: Option<SocketPlace>,
    reservations: Arc<Reservations>,
    draining: CancellationToken,
    ended: CancellationToken,
    cut_short: CancellationToken,
}

/// The input of a start.
#[derive(Debug)]
pub struct Start<'a> {
    pub file: &'a Path,
    pub config: Config,
    /// Listeners from before the start.
    pub inherited: Inherited,
}

/// Opens every listener, takes over from the process before if there is one, and then starts. Must be called inside a
/// tokio runtime.
/// Fails when a listener cannot be had, or a file of TLS is not usable; nothing runs then, and a process before goes on.
pub async fn start(start: Start<'_>, set_level: SetLevel) -> Result<Running, StartError> {
    let Start { file, config, mut inherited } = start;
    let tls = read_tls(&config)?;
    let participant = Participant::new(&config).map_err(StartError::Control)?;
    let listeners = listeners::open(&config, &mut inherited)?;
    let addresses = listeners::addresses(&listeners);
    let predecessor = inherited.take_predecessor();
    let control_socket = of_config(&config.listen, predecessor.is_some()).map_err(StartError::Control)?;
    let (control, reloads) = Control::new(config.listen.control_token_file.clone());
    let clients = Arc::new(Semaphore::new(descriptors::share_out(&config).min(Semaphore::MAX_PERMITS)));
    let metrics = Arc::new(Metrics::new());
    let (draining, ended, cut_short) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let mut assembly = Assembly::new(metrics.clone(), addresses.clone(), ended.clone());
    let settings = assembly.settings(&config, tls, None);
    let proxy = Proxy::new(settings, pseudonym(), draining.clone(), cut_short.clone());
    let state = Arc::new(ConfigState::new(file, &config));
    let admin = Admin::new(proxy.clone(), state.clone(), control, metrics, draining.clone());
    let reservations = Reservations::new(proxy.clone(), control_socket.as_ref().map(|socket| socket.path().to_owned()));
    reservations.take_part(&participant);
    let reloader = Reloader::new(file, config, assembly, reservations.clone(), state, set_level);
    // Not a slot is taken before it is known which are free.
    take_over(predecessor, &reservations).await?;
    reservations.clone().claim(participant);
    let mut accepting = Vec::new();
    for listener in &listeners {
        let socket = listener.accepting()?;
        if let Some(entry) = entry(&listener.service) {
            // Counted among the tasks that serve: a client may still be accepted.
            let accept = listener::accept(proxy.clone(), socket, entry, clients.clone());
            accepting.push(proxy.tasks().spawn(accept));
        } else {
            let scope = if listener.service == Service::Metrics { Scope::Metrics } else { Scope::Admin };
            tokio::spawn(admin.clone().accept(socket, scope));
        }
    }
    let control_socket = match control_socket {
        Some(socket) => {
            let (listener, place) = socket.publish()?;
            tokio::spawn(admin.clone().accept_orders(listener));
            Some(place)
        }
        None => None,
    };
    tokio::spawn(admin.clone().keep_history());
    Ok(Running {
        addresses,
        listeners,
        accepting,
        proxy,
        admin,
        reloader,
        reloads,
        asked: None,
        control_socket,
        reservations,
        draining,
        ended,
        cut_short,
    })
}

/// The entry for clients of the proxy; none for the other services.
fn entry(service: &Service) -> Option<Entry> {
    match service {
        Service::Proxy => Some(Entry::Proxy),
        Service::Mirror(registry) => Some(Entry::Mirror(registry.as_str().into())),
        Service::Admin | Service::Metrics => None,
    }
}

impl Running {
    pub fn addresses(&self) -> &ListenAddresses {
        &self.addresses
    }

    /// Completes when the config is to be read again; why.
    pub async fn config_changed(&mut self) -> &'static str {
        tokio::select! {
            () = self.reloader.changed() => "a file has changed",
            Some(asked) = self.reloads.recv() => {
                self.asked = Some(asked);
                "ordered"
            }
        }
    }

    /// Reads the config again; `why` is for the log.
    pub async fn reload(&mut self, why: &str) {
        let result = self.reloader.reload(why).await;
        // It may not be awaited any more.
        let _ = self.asked.take().map(|asked| asked.send(result));
    }

    /// How long requests under way may take when it ends.
    pub fn drain_timeout(&self) -> Duration {
        self.reloader.config().drain_timeout
    }

    /// Starts another process to take over. Until it is ready, nothing changes.
    /// Fails when no other process takes over; this one goes on.
    pub async fn find_successor(&self, program: &Program) -> Result<Successor, NoSuccessor> {
        let listeners = listeners::copies(&self.listeners).map_err(|cause| NoSuccessor::Descriptors { cause })?;
        let upstreams = self.reservations.upstreams();
        let shares = upstreams.iter().map(|up| (&*up.name, up.lease.is_some()));
        program.start(listeners, &leased_registries(shares)).await
    }

    /// Ends in order: accepts no client any more, serves those that it has for up to `drain_timeout`, refuses and cuts the
    /// rest, and waits until every socket toward a registry is gone.
    pub async fn drain(mut self) {
        let listeners = std::mem::take(&mut self.listeners);
        self.accept_nobody();
        for accepting in std::mem::take(&mut self.accepting) {
            let _ = accepting.await;
        }
        for listener in listeners.iter().filter(|listener| listener.is_bound_here) {
            if let Some(entry) = entry(&listener.service) {
                listener::serve_backlog(&self.proxy, &listener.socket, &entry);
            }
        }
        drop(listeners);
        self.serve_for(self.drain_timeout()).await;
        self.until_sockets_are_gone().await;
    }

    /// The same while another process has taken over: the clients of this one are served to the end, by the slots that the other
    /// process grants. `drain_timeout` counts from the moment in which `stop` is cancelled, or the other process has ended.
    pub async fn hand_over(mut self, successor: Successor, stop: CancellationToken) {
        self.admin.accept_nobody();
        self.accept_nobody();
        let mut handing_over = tokio::spawn(hand_over(successor, self.reservations.clone()));
        let served = async {
            self.proxy.tasks().wait().await;
            // This process counts what an older one still holds.
            self.reservations.until_others_are_gone().await;
        };
        let is_served = tokio::select! {
            () = served => true,
            _ = &mut handing_over => false,
            () = stop.cancelled() => false,
            () = sleep(MAX_HAND_OVER) => false,
        };
        if !is_served {
            self.serve_for(self.drain_timeout()).await;
        }
        self.until_sockets_are_gone().await;
        handing_over.abort();
    }

    fn accept_nobody(&mut self) {
        self.listeners.clear();
        self.draining.cancel();
        self.proxy.tasks().close();
        for upstream in self.reservations.upstreams() {
            upstream.gate.happen(Core::drain);
            upstream.lease.iter().for_each(|lease| lease.drain());
        }
    }

    /// Serves the accepted clients for this long; then it refuses and cuts the rest.
    async fn serve_for(&self, drain_timeout: Duration) {
        let deadline = Instant::now() + drain_timeout;
        let tasks = self.proxy.tasks();
        if timeout_at(deadline, tasks.wait()).await.is_ok() {
            return;
        }
        self.reservations.upstreams().iter().for_each(|upstream| upstream.gate.happen(Core::end));
        self.ended.cancel();
        let _ = timeout_at(deadline + LAST_WORDS, tasks.wait()).await;
        self.cut_short.cancel();
        let _ = timeout_at(deadline + LAST_WORDS * 2, tasks.wait()).await;
    }

    /// Closing takes no longer than the longest `linger` and the hold that follows it. A slot that is held because its registry may count
    /// the connection is not waited for: the process does not leave the store then, and its lease runs out there.
    async fn until_sockets_are_gone(&mut self) {
        let upstreams = self.reservations.upstreams();
        let longest_linger = upstreams.iter().map(|upstream| upstream.terms.linger).max().unwrap_or_default();
        let are_gone = || upstreams.iter().all(|upstream| upstream.gate.snapshot().open.open() == 0);
        let _ = timeout(longest_linger + LAST_WORDS, self.reservations.until(are_gone)).await;
        upstreams.iter().flat_map(|upstream| &upstream.lease).for_each(|lease| lease.end());
        let have_left = || upstreams.iter().all(|upstream| upstream.lease.iter().all(|lease| lease.has_left()));
        let _ = timeout(LAST_WORDS, self.reservations.until(have_left)).await;
        self.control_socket = None;
    }
}

/// A name for this process in Via that no other has.
fn pseudonym() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("roadstead-{:08x}", RandomState::new().hash_one(std::process::id()) >> 32)
}
