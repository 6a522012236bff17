//! The parts that all requests of clients share: the settings in force, the [`route`] to a registry, the [`record`] of each
//! request, and the answers of roadstead itself ([`respond`]).
//!
//! It accepts no connection: `listener` does, and passes each to `tunnel` or to `http`.

pub mod client;
pub mod clients;
pub mod connections;
pub mod credentials;
pub mod head;
pub mod mirror;
pub mod record;
pub mod request_end;
pub mod respond;
pub mod rewrite;
pub mod route;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderValue, VIA};
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::client::Client;
use self::clients::Classes;
use self::connections::{ClientConnections, CountedClient};
use self::mirror::Mirror;
use self::record::{Kind, Record};
use self::respond::Answer;
use self::route::{Route, Routes};
use crate::admission::ClientId;
use crate::target::Target;
use crate::upstream::Upstream;

/// The settings for clients.
#[derive(Clone, Debug)]
pub struct ClientTerms {
    /// Connections of clients at once.
    pub max_clients: usize,
    /// The longest time that the first head of a connection may take.
    pub head_timeout: Duration,
    /// The clients that may connect, beside this machine itself.
    pub allow_clients: Vec<IpNet>,
}

/// The role of a listener.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A forward proxy.
    Proxy,
    /// The registry of this name.
    Mirror(Arc<str>),
}

/// The settings that a reload replaces as a whole.
#[derive(Debug)]
pub struct Settings {
    /// All upstreams.
    pub routes: Routes,
    /// The settings for clients.
    pub terms: ClientTerms,
    /// The class of each client.
    pub classes: Classes,
    /// The mirrors, by the names of their registries.
    pub mirrors: BTreeMap<String, Arc<Mirror>>,
}

/// The proxy: what its connections share.
#[derive(Debug)]
pub struct Proxy {
    settings: RwLock<Arc<Settings>>,
    clients: Arc<ClientConnections>,
    /// The name with which this process signs messages in Via, unlike that of any other; and the signature.
    pseudonym: String,
    signature: HeaderValue,
    draining: CancellationToken,
    cut_short: CancellationToken,
    tasks: TaskTracker,
}

impl Proxy {
    /// A proxy that serves until `draining` is cancelled, and cuts what is left when `cut_short` is.
    pub fn new(
        settings: Settings,
        pseudonym: String,
        draining: CancellationToken,
        cut_short: CancellationToken,
    ) -> Arc<Proxy> {
        let (clients, tasks) = Default::default();
        let settings = RwLock::new(Arc::new(settings));
        let signature = HeaderValue::try_from(format!("1.1 {pseudonym}")).expect("a pseudonym is a token");
        Arc::new(Proxy { settings, clients, pseudonym, signature, draining, cut_short, tasks })
    }

    /// Counts one more connection of a client; `None` when `max_clients` stand already, and none makes room.
    pub(crate) fn count_client(&self, client: &Arc<Client>, max_clients: usize) -> Option<Arc<CountedClient>> {
        let counted = self.clients.count(clients::peer_of(client), client);
        let fits = self.clients.open() <= max_clients;
        (fits || counted.make_room()).then(|| Arc::new(counted))
    }

    /// Closes a connection after its last answer so that the client can read it, whatever it still sends.
    pub(crate) async fn lingering_close(&self, client: &Client, counted: &CountedClient) {
        counted.lingers();
        tokio::select! {
            () = client.lingering_close() => {}
            () = counted.closes() => client.cut(),
            () = self.cut_short() => client.cut(),
        }
    }

    /// Connections of clients that stand.
    pub fn clients(&self) -> usize {
        self.clients.open()
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets other settings hold for every request from now on.
    pub fn replace(&self, settings: Settings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    /// The mirror of this registry, and the registry.
    pub(crate) fn mirror(&self, registry: &str) -> Option<(Arc<Mirror>, Arc<Upstream>)> {
        let mirror = self.settings().mirrors.get(registry)?.clone();
        let upstream = mirror.upstream.clone();
        Some((mirror, upstream))
    }

    /// The tasks that serve clients.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Whether nobody new is accepted any more.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Completes when nobody new is accepted any more.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Completes when what is still under way is cut.
    pub async fn cut_short(&self) {
        self.cut_short.cancelled().await;
    }

    /// The record of a request that has just arrived.
    pub(crate) fn record(&self, client: ClientId, kind: Kind) -> Record {
        let metrics = self.settings().routes.other_hosts().metrics.clone();
        Record::open(metrics, client, kind, self.cut_short.clone())
    }

    /// Where a request goes; otherwise what to answer.
    pub(crate) async fn route(&self, target: &Target, secure: bool) -> Result<Route, Answer> {
        loop {
            let settings = self.settings();
            let found = settings.routes.find(target, secure).await;
            // While a name was looked up, a reload may have given its host to a registry, whose slots bind from then on.
            if Arc::ptr_eq(&settings, &self.settings()) {
                return found;
            }
        }
    }

    /// Signs a message (RFC 9110, section 7.6.3).
    pub(crate) fn sign(&self, headers: &mut HeaderMap) {
        headers.append(VIA, self.signature.clone());
    }

    /// Whether a message was signed here before.
    pub(crate) fn has_signed(&self, headers: &HeaderMap) -> bool {
        let sign = self.pseudonym.as_bytes();
        headers.get_all(VIA).iter().any(|value| value.as_bytes().windows(sign.len()).any(|part| part == sign))
    }
}
