//! The way to one registry: resolve, wait for admission, dial; again, as long as the request's patience lasts.
//!
//! Names are resolved before admission, never on a slot. One address is dialled at a time, each `connect()` with an
//! admission of its own; a dial that failed gives its slot back, and the request waits on in its old place.

pub mod cluster;
pub mod connect;
mod endpoints;
pub mod http;
pub mod resolve;
pub mod socket;
mod stall;
pub mod tls;

use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use self::cluster::{Cluster, NodePermit};
use self::connect::{DialError, Standing, Terms, Undialled};
use self::endpoints::{Addresses, Endpoints};
use self::http::PooledConnection;
use self::resolve::{ResolveError, Resolver};
use self::socket::Socket;
use self::tls::Tls;
use crate::address::{AddressClass, classify};
use crate::admission::{
    Admission, AdmissionRequest, Claim, Gate, Kind, Lane, Moment, Place, Principal, Refusal, ReuseKey, SlotState,
};
use crate::backoff::Backoff;
use crate::metrics::{OTHER_HOSTS, RegistryMetrics};
use crate::repair::Repair;
use crate::target::{Origin, Target};

/// The pauses before a name that could not be resolved is looked up again.
const LOOKUP_PAUSES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
/// The pause of a request that was admitted though its node has no slot left.
const FULL_NODE_PAUSE: Duration = Duration::from_millis(100);
/// The pause between two rounds in which a node took the connection and could not prove itself.
const UNTRUSTED_PAUSE: Duration = Duration::from_millis(500);

/// How long the name of one node of several may take to be resolved.
const NODE_LOOKUP: Duration = Duration::from_secs(1);

/// One registry, or all other hosts, as seen by those who want to reach it.
#[derive(Debug)]
pub struct Upstream {
    /// The registry's name, as in the config.
    pub name: String,
    /// Decides who may open a socket.
    pub gate: Gate<PooledConnection>,
    /// What counts.
    pub metrics: Arc<RegistryMetrics>,
    /// What holds for each connection.
    pub terms: Terms,
    /// Which addresses may be dialled.
    pub addresses: AddressPolicy,
    /// Whether a dial that failed is tried again until the request's patience ends; if not, it is answered at once.
    pub retry_until_deadline: bool,
    /// What its queue promises.
    pub queue: QueueTerms,
    /// The names of the classes, in their order.
    pub classes: Arc<[String]>,
    /// How TLS is spoken to it.
    pub tls: Arc<Tls>,
    /// Which of its answers are asked for again; `None`: none.
    pub repair: Option<Arc<Repair>>,
    /// Slots for each node, where each has its own.
    pub slots_of_each: Option<usize>,
    /// What the number of slots follows from, where each node has its own. Locked while they are counted anew; shared with
    /// the same registry before a reload, whose requests may still be under way.
    pub sized: Arc<Mutex<Option<NodeSlots>>>,
    /// Names to addresses; shared by all.
    pub resolver: Arc<Resolver>,
    /// Cancelled when those who are still on their way are refused as draining.
    pub ended: CancellationToken,
}

/// Slots that each node has for itself.
#[derive(Debug)]
pub struct NodeSlots {
    of_each: usize,
    nodes: Arc<Cluster>,
}

impl NodeSlots {
    /// Those of the nodes that take connections, or of one where none does.
    fn all(&self) -> usize {
        self.of_each * self.nodes.living().max(1)
    }
}

/// What the queue of one registry promises.
#[derive(Clone, Debug)]
pub struct QueueTerms {
    /// Waiters at once.
    pub depth: usize,
    /// The longest wait of a CONNECT, by class.
    pub tunnel_timeout: Vec<Duration>,
    /// The longest wait of a request that is visible as HTTP, by class.
    pub request_timeout: Vec<Duration>,
}

/// Which addresses may be dialled, beyond those that nothing speaks against.
#[derive(Clone, Debug, Default)]
pub struct AddressPolicy {
    /// Addresses that are fine whatever they are: the operator listed them as such.
    pub listed: Vec<IpAddr>,
    /// Where this very process listens.
    pub own: Arc<[SocketAddr]>,
}

impl AddressPolicy {
    /// Whether this address may be dialled; a loopback address only where the operator listed the very host.
    ///
    /// # Errors
    /// What speaks against it.
    pub fn check(&self, address: SocketAddr, listed_host: bool) -> Result<(), Failure> {
        if self.own.iter().any(|own| is_same(*own, address)) {
            return Err(Failure::Loop(address));
        }
        let class = classify(address.ip());
        let fine = match class {
            AddressClass::Global => true,
            AddressClass::Loopback => listed_host || self.listed.contains(&address.ip()),
            AddressClass::LinkLocal | AddressClass::Metadata => self.listed.contains(&address.ip()),
            AddressClass::Unusable => false,
        };
        if fine { Ok(()) } else { Err(Failure::Denied(address.ip(), class)) }
    }

    /// Those of these addresses that may be dialled; at least one.
    ///
    /// # Errors
    /// What speaks against the first, when none may be.
    pub fn allowed(
        &self,
        addresses: impl Iterator<Item = SocketAddr>,
        listed_host: bool,
    ) -> Result<Vec<SocketAddr>, Failure> {
        let mut denied = None;
        let mut allowed = Vec::new();
        for address in addresses {
            match self.check(address, listed_host) {
                Ok(()) => allowed.push(address),
                Err(failure) => denied = denied.or(Some(failure)),
            }
        }
        match denied {
            Some(failure) if allowed.is_empty() => Err(failure),
            _ => Ok(allowed),
        }
    }
}

/// Whether `address` leads to where we listen. A wildcard listens at every address of this machine, and only those can
/// be bound.
fn is_same(own: SocketAddr, address: SocketAddr) -> bool {
    own == address
        || own.port() == address.port()
            && own.ip().is_unspecified()
            && std::net::UdpSocket::bind((address.ip(), 0)).is_ok()
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The host and port that it names; of the first node, where there are several.
    pub target: Target,
    /// Whether we speak TLS with it.
    pub secure: bool,
    /// The only addresses that may be dialled for it, if they were found before.
    pub pinned: Option<Vec<SocketAddr>>,
    /// Whether the operator listed this very host, and not only a pattern that it matches.
    pub listed_host: bool,
    /// The nodes that can serve it, where the operator named them.
    pub cluster: Option<Arc<Cluster>>,
    /// The only one of them that it goes to, by its number.
    pub node: Option<usize>,
}

impl Destination {
    /// What places are kept for, and outages noted for: the target, or all nodes together.
    fn name(&self) -> Arc<str> {
        match &self.cluster {
            Some(cluster) if cluster.origins().len() > 1 && self.node.is_none() => {
                let nodes: Vec<String> = cluster.origins().iter().map(ToString::to_string).collect();
                nodes.join(" ").into()
            }
            _ => self.target.to_string().into(),
        }
    }
}

/// How long a request waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The longest wait for admission.
    pub limit: Duration,
    /// The setting that says so.
    pub setting: &'static str,
}

/// A request on its way to a registry.
#[derive(Debug)]
pub struct Attempt {
    /// Where it wants to go.
    pub destination: Destination,
    /// Who asks.
    pub principal: Principal,
    /// Whether it is a tunnel or a request.
    pub kind: Kind,
    /// What it asks for.
    pub lane: Lane,
    /// The target as text: what a place is kept for, and what an outage is noted for.
    pub name: Arc<str>,
    /// How long it waits.
    pub patience: Patience,
    /// Where it stands in the order.
    pub place: Place,
    /// Its claim to that place, if it came back to it and did not ask for admission yet.
    pub claim: Option<Claim<PooledConnection>>,
    /// When its patience ends.
    pub deadline: Moment,
    /// Whether its patience may begin anew. One that is asked again, because its answer was spoiled, has no more than it
    /// had.
    pub renewable: bool,
    /// Whether it was admitted before, or came back to its place.
    pub again: bool,
    /// Whether it ever had to wait in the queue. From then on a client that has ended its side has left.
    pub queued: Arc<AtomicBool>,
    /// How long it waited for admission so far.
    pub waited: Duration,
    /// How long the `connect()` took that led to its connection.
    pub connect: Option<Duration>,
}

impl Attempt {
    /// What its socket is doing once it stands. In a tunnel, the handshake that burdens the registry is yet to come.
    fn once_connected(&self) -> SlotState {
        match self.kind {
            Kind::Tunnel => SlotState::Idle,
            Kind::Request | Kind::Kept => SlotState::Active,
        }
    }
}

/// A way to the registry.
#[derive(Debug)]
pub enum Connected {
    /// A new connection, which has carried nothing.
    New(Socket),
    /// The same, inside TLS.
    Secured(Box<TlsStream<Socket>>),
    /// A connection that was kept.
    Pooled(PooledConnection),
}

/// Why a request did not get through.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The gate refused it.
    #[error("not admitted")]
    Refused(Refusal),
    /// The name could not be resolved.
    #[error(transparent)]
    Unknown(#[from] ResolveError),
    /// No address took the connection.
    #[error(transparent)]
    Undialled(#[from] DialError),
    /// The connection ended before the answer.
    #[error("the connection ended before the answer: {0}")]
    Died(#[source] hyper::Error),
    /// The registry ended TLS for good, after the handshake was over for us.
    #[error("the registry ended TLS: {0}")]
    TurnedAway(String),
    /// The registry switched protocols, which nobody asked for.
    #[error("the registry switched protocols unasked")]
    Switched,
    /// The address may not be dialled.
    #[error("{0} may not be reached through this proxy")]
    Denied(IpAddr, AddressClass),
    /// The address is one where this process listens.
    #[error("{0} is this proxy itself")]
    Loop(SocketAddr),
    /// The process is going down.
    #[error("draining")]
    Draining,
}

impl Failure {
    /// The connection ended before the answer, and this is what hyper saw.
    #[must_use]
    pub fn of_death(cause: hyper::Error) -> Failure {
        tls::last_word(&cause).map_or(Failure::Died(cause), Failure::TurnedAway)
    }

    /// Whether the same might succeed a moment later.
    fn may_pass(&self) -> bool {
        match self {
            Failure::Unknown(_) => true,
            Failure::Undialled(error) => !error.is_final(),
            _ => false,
        }
    }
}

impl Upstream {
    /// What to call it in a sentence.
    #[must_use]
    pub fn title(&self) -> String {
        if self.name == OTHER_HOSTS { "the other host".to_owned() } else { format!("registry {}", self.name) }
    }

    /// A place in the order for a request that arrives now, or the one that its client left not long ago. Its patience
    /// counts from now in any case.
    #[must_use]
    pub fn attempt(
        &self,
        destination: Destination,
        principal: Principal,
        (kind, lane): (Kind, Lane),
        patience: Patience,
    ) -> Attempt {
        let name = destination.name();
        let (place, claim) = self.gate.place(&principal.client, &name);
        let deadline = self.gate.now() + patience.limit;
        Attempt {
            destination,
            principal,
            kind,
            lane,
            name,
            patience,
            place,
            again: claim.is_some(),
            claim,
            deadline,
            renewable: true,
            queued: Arc::default(),
            waited: Duration::ZERO,
            connect: None,
        }
    }

    /// Lets the request wait once more from now on: it was admitted in time, but what it was given did not serve.
    pub fn renew(&self, attempt: &mut Attempt) {
        if attempt.renewable {
            attempt.deadline = self.gate.now() + attempt.patience.limit;
        }
    }

    /// Gets the request to the registry: on a connection kept for `reuse`, or on a new one. Cancel-safe: a caller whose
    /// client has left drops the future.
    ///
    /// # Errors
    /// When its patience ends, or nothing allowed answers.
    pub async fn reach(&self, attempt: &mut Attempt, reuse: Option<&ReuseKey>) -> Result<Connected, Failure> {
        tokio::select! {
            biased;
            reached = self.reach_in_time(attempt, reuse) => reached,
            () = self.ended.cancelled() => Err(Failure::Draining),
        }
    }

    async fn reach_in_time(&self, attempt: &mut Attempt, reuse: Option<&ReuseKey>) -> Result<Connected, Failure> {
        let mut failures = 0;
        let mut before: Option<Failure> = None;
        loop {
            let failure = match (self.try_each_address(attempt, reuse).await, before) {
                (Err(failure), _) if self.retry_until_deadline && failure.may_pass() => failure,
                // Its patience ended in the queue, but what kept it from being served is the dials that failed.
                (Err(Failure::Refused(_)), Some(before)) => return Err(before),
                (done, _) => return done,
            };
            if self.gate.now() >= attempt.deadline {
                return Err(failure);
            }
            tracing::debug!(registry = self.name, target = %attempt.destination.target, error = %failure, "will try again");
            // Where dials failed, the gate lets it wait until another one is due.
            if matches!(failure, Failure::Unknown(_)) {
                failures += 1;
                let until = attempt.deadline.min(self.gate.now() + LOOKUP_PAUSES.after(failures));
                self.pause_until(until).await?;
                if until == attempt.deadline {
                    return Err(failure);
                }
            }
            before = Some(failure);
        }
    }

    /// One round: each address once.
    async fn try_each_address(&self, attempt: &mut Attempt, reuse: Option<&ReuseKey>) -> Result<Connected, Failure> {
        let mut failed: Option<DialError> = None;
        let mut untrusted = false;
        let mut endpoints = self.endpoints(attempt).await?;
        while endpoints.any_left() {
            let slot = match self.admit(attempt, reuse).await {
                Ok(Admission::New(slot)) => slot,
                Ok(Admission::Kept(kept)) => return Ok(Connected::Pooled(kept)),
                // Its patience ended between two dials: what failed is the dial.
                Err(failure @ Failure::Refused(_)) => return Err(failed.map_or(failure, Failure::from)),
                Err(failure) => return Err(failure),
            };
            let Some(endpoint) = endpoints.next(self.slots_of_each, self.gate.now()) else {
                // Its node has no slot left, though there are others: slot and token go back until that has settled.
                drop(slot);
                if let Some((cluster, node)) = attempt.destination.cluster.as_ref().zip(attempt.destination.node) {
                    self.gate.make_way(&cluster.slots_of(node), &attempt.principal.client);
                }
                self.pause_until(self.gate.now() + FULL_NODE_PAUSE).await?;
                continue;
            };
            let once_connected = attempt.once_connected();
            match connect::dial(slot, endpoint, once_connected, self.terms, &self.tls, &self.metrics).await {
                Ok((standing, took)) => {
                    attempt.connect = Some(took);
                    return Ok(self.stands(standing, &attempt.destination));
                }
                Err(undialled) => {
                    let is_node = undialled.node_permit().is_some();
                    let error = self.failed(undialled, &endpoints, &attempt.destination);
                    untrusted |= error.is_final();
                    // Of nodes, one that may be back is worth another round, whatever the others are.
                    failed = failed.filter(|before| is_node && error.is_final() && !before.is_final()).or(Some(error));
                }
            }
        }
        match failed {
            Some(error) if untrusted && self.retry_until_deadline && !error.is_final() => {
                // Somebody took the connection, so the gate knows of no outage.
                let until = attempt.deadline.min(self.gate.now() + UNTRUSTED_PAUSE);
                self.pause_until(until).await?;
                Err(error.into())
            }
            Some(error) => Err(error.into()),
            None => unreachable!("endpoints are given only with an address"),
        }
    }

    fn stands(&self, standing: Standing, destination: &Destination) -> Connected {
        let socket = match &standing {
            Standing::Plain(socket) => socket,
            Standing::Secured(stream) => stream.get_ref().0,
        };
        if socket.node_permit().is_some_and(NodePermit::stands) {
            self.nodes_changed(destination);
        }
        match standing {
            Standing::Plain(socket) => Connected::New(socket),
            Standing::Secured(stream) => Connected::Secured(stream),
        }
    }

    /// Notes a failed dial, and gives its slot back.
    fn failed(&self, undialled: Undialled, endpoints: &Endpoints, destination: &Destination) -> DialError {
        if let Some(node_permit) = undialled.node_permit()
            && endpoints.is_spent(node_permit)
            && node_permit.failed(self.gate.now())
        {
            self.nodes_changed(destination);
        }
        // Of a registry, the last word counts; other hosts have nothing in common. Who cannot prove who he is takes
        // connections all the same.
        let nobody_left = match &destination.cluster {
            Some(cluster) if destination.node.is_none() => cluster.living() == 0,
            _ => !endpoints.any_left(),
        };
        let tells = self.retry_until_deadline && nobody_left;
        if !undialled.error.is_final() {
            undialled.tell(tells);
        }
        undialled.into_error()
    }

    /// Where each node has slots of its own, those of a node that is out are not there.
    fn nodes_changed(&self, destination: &Destination) {
        let Some(cluster) = &destination.cluster else { return };
        tracing::info!(
            registry = self.name,
            up = cluster.living(),
            of = cluster.origins().len(),
            "nodes that take connections"
        );
        // In order: the last word counts. The nodes may be others now, but what is known of them is the same.
        let sized = self.sized.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sized) = &*sized {
            self.gate.resize(sized.all());
        }
    }

    /// It has so many slots, or as many as these nodes have together that take connections.
    pub fn size(&self, slots: usize, cluster: &Arc<Cluster>) {
        let mut sized = self.sized.lock().unwrap_or_else(PoisonError::into_inner);
        *sized = self.slots_of_each.map(|of_each| NodeSlots { of_each, nodes: cluster.clone() });
        self.gate.resize(sized.as_ref().map_or(slots, NodeSlots::all));
    }

    /// Whether a kept connection should be given up for a new one, because its node has many and another one few, or one is
    /// to be tried.
    #[must_use]
    pub fn is_due_to_move(&self, kept: &PooledConnection, destination: &Destination) -> bool {
        let (Some(cluster), Some(node), None) = (&destination.cluster, kept.node(), destination.node) else {
            return false;
        };
        cluster.is_due_to_move(node, self.slots_of_each, self.gate.now())
    }

    /// The addresses that may be dialled; at least one.
    async fn endpoints(&self, attempt: &Attempt) -> Result<Endpoints, Failure> {
        let Destination { target, secure, pinned, listed_host, cluster, node } = &attempt.destination;
        if let (Some(cluster), None) = (cluster, node) {
            return self.endpoints_of_nodes(cluster, attempt).await;
        }
        let addresses = match pinned {
            Some(pinned) => self.addresses.allowed(pinned.iter().copied(), *listed_host)?,
            None => self.resolve(attempt).await?,
        };
        let secure = secure.then(|| target.host());
        Ok(match cluster.as_ref().zip(*node) {
            Some((cluster, node)) => {
                let mut nodes: Vec<Addresses> = cluster.origins().iter().map(|_| Addresses::default()).collect();
                nodes[node] = Addresses { left: addresses.into(), secure: secure.map(|host| self.tls.name_of(host)) };
                Endpoints::Nodes(cluster.clone(), nodes)
            }
            None => Endpoints::Host(Addresses { left: addresses.into(), secure: secure.cloned() }),
        })
    }

    /// Those of every node whose name can be resolved. One that is left out keeps nobody waiting for its name.
    async fn endpoints_of_nodes(&self, cluster: &Arc<Cluster>, attempt: &Attempt) -> Result<Endpoints, Failure> {
        let wanted = cluster.wanted(self.gate.now());
        // One name that nobody answers for must not keep the others waiting.
        let patience = attempt.deadline.min(self.gate.now() + NODE_LOOKUP);
        let mut lookups = JoinSet::new();
        for index in wanted {
            let (resolver, target) = (self.resolver.clone(), cluster.origins()[index].target.clone());
            let until = self.instant(patience);
            lookups.spawn(async move { (index, resolve(&resolver, &target, until).await) });
        }
        let found = lookups.join_all().await;
        let mut nodes: Vec<Addresses> = cluster.origins().iter().map(|_| Addresses::default()).collect();
        let mut lost = None;
        for (index, addresses) in found {
            let allowed = |addresses: Vec<SocketAddr>| self.addresses.allowed(addresses.into_iter(), true);
            match addresses.map_err(Failure::from).and_then(allowed) {
                Err(failure) => {
                    if cluster.is_lost(index, self.gate.now()) {
                        self.nodes_changed(&attempt.destination);
                    }
                    lost = Some(failure);
                }
                Ok(addresses) => {
                    let Origin { secure, target } = &cluster.origins()[index];
                    let secure = secure.then(|| self.tls.name_of(target.host()));
                    nodes[index] = Addresses { left: addresses.into(), secure };
                }
            }
        }
        let endpoints = Endpoints::Nodes(cluster.clone(), nodes);
        match lost {
            Some(failure) if !endpoints.any_left() => Err(failure),
            _ => Ok(endpoints),
        }
    }

    async fn resolve(&self, attempt: &Attempt) -> Result<Vec<SocketAddr>, Failure> {
        let Destination { target, listed_host, .. } = &attempt.destination;
        let addresses = resolve(&self.resolver, target, self.instant(attempt.deadline)).await?;
        self.addresses.allowed(addresses.into_iter(), *listed_host)
    }

    async fn admit(
        &self,
        attempt: &mut Attempt,
        reuse: Option<&ReuseKey>,
    ) -> Result<Admission<PooledConnection>, Failure> {
        let ask = AdmissionRequest {
            place: attempt.place,
            deadline: attempt.deadline,
            principal: attempt.principal.clone(),
            lane: attempt.lane,
            target: attempt.name.clone(),
            reuse: reuse.cloned(),
            again: attempt.again,
        };
        attempt.again = true;
        if let Some(claim) = attempt.claim.take() {
            claim.used();
        }
        let since = Instant::now();
        let mut admission = pin!(self.gate.admit(ask));
        let admitted = tokio::select! {
            biased;
            admitted = admission.as_mut() => admitted,
            () = ready(()) => {
                attempt.queued.store(true, Ordering::Relaxed);
                admission.await
            }
        };
        attempt.waited += since.elapsed();
        admitted.map_err(Failure::Refused)
    }

    /// Waits, holding nothing.
    ///
    /// # Errors
    /// When the process is going down.
    pub async fn pause_until(&self, moment: Moment) -> Result<(), Failure> {
        tokio::select! {
            () = sleep_until(self.instant(moment)) => Ok(()),
            () = self.ended.cancelled() => Err(Failure::Draining),
        }
    }

    /// The gate's time as tokio's.
    #[must_use]
    pub fn instant(&self, moment: Moment) -> Instant {
        Instant::now() + moment.since(self.gate.now())
    }
}

async fn resolve(resolver: &Resolver, target: &Target, until: Instant) -> Result<Vec<SocketAddr>, ResolveError> {
    let answer = timeout_at(until, resolver.resolve(target.host())).await;
    let ips = answer.unwrap_or_else(|_| Err(ResolveError::silent(target.host())))?;
    Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, target.port())).collect())
}

#[cfg(test)]
pub(crate) mod tests;
