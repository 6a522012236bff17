//! The store of leases: Redis, with one script.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind, RedisError,
    Script, TlsCertificates, TlsMode, Value,
};
use tokio::sync::mpsc;

use super::cluster_primary::ClusterSearch;
use super::overview::{FleetRecords, NodeReport};
use crate::lease::message::{FleetOrder, Intent, LeaseAnswer, LeasePush, LeaseRequest, PoolForce, Process};
use crate::lease::settings::LeaseConfig;
use crate::lease::store_url::{Sentinels, StoreUrl};

const SCRIPT: &str = include_str!("../lease/script.lua");
/// A request that is not answered in this time has failed.
const PATIENCE: Duration = Duration::from_secs(1);
/// A connection that does not stand in this time, with TLS and subscriptions, has failed.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// A server of a cluster that is silent for this time is not the one, so that a search ends before its caller gives up.
const SEARCH_PATIENCE: Duration = Duration::from_secs(1);
/// How long an operator waits for one order.
const ORDER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a grant may take until a replica has it, in milliseconds.
const REPLICA_PATIENCE: u64 = 500;

/// Why the store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{key}: cannot read {}: {cause}", path.display())]
    Unreadable { key: &'static str, path: PathBuf, cause: std::io::Error },
    /// The words of a server may hold what it was sent, such as the password.
    #[error("the lease store: {}", said(.0))]
    Redis(#[from] RedisError),
    /// A config with it is refused, so it is never seen.
    #[error("lease.redis: {0}")]
    Url(String),
    #[error("the lease store: no answer within {0:?}")]
    Late(Duration),
    #[error("the lease store: no connection within {CONNECT_PATIENCE:?}")]
    Unconnected,
    /// A grant that no replica has may be lost with the server.
    #[error("the lease store: no replica has confirmed the grant within {REPLICA_PATIENCE} ms")]
    NoReplica,
}

/// The kind of the error and its code; the cause where no server said it.
fn said(error: &RedisError) -> String {
    match error.code() {
        Some("MOVED") => {
            "another server of the cluster has the records (MOVED): lease.redis = \"redis+cluster://...\" follows them"
                .to_owned()
        }
        Some(code) => format!("{} ({code})", error.category()),
        None if error.is_io_error() => error.to_string(),
        None => error.category().to_owned(),
    }
}

/// How to reach the server.
#[derive(Clone, Debug)]
pub struct StoreAddress {
    config: LeaseConfig,
}

impl StoreAddress {
    /// Fails when a file that it names cannot be read.
    pub fn new(config: &LeaseConfig) -> Result<StoreAddress, StoreError> {
        let address = StoreAddress { config: config.clone() };
        address.secrets()?;
        Ok(address)
    }

    /// Whether the server of this registry answers, and lets this user run a script.
    pub async fn try_out(&self, registry: &str) -> Result<(), StoreError> {
        let run = async |mut server| redis::cmd("EVAL").arg("return 1").arg(0).query_async(&mut server).await;
        self.order(registry, run).await
    }

    /// One order of an operator, on a connection of its own.
    async fn order<T>(
        &self,
        registry: &str,
        order: impl AsyncFnOnce(MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, StoreError> {
        let asked = async {
            let client = self.newest_client(registry).await?;
            Ok(order(client.get_multiplexed_async_connection_with_config(&patient(ORDER_PATIENCE)).await?).await?)
        };
        tokio::time::timeout(ORDER_PATIENCE, asked).await.map_err(|_| StoreError::Late(ORDER_PATIENCE))?
    }

    /// Gives an order of an operator for this registry; the answer of the script.
    pub(super) async fn operate(&self, registry: &str, order: &str) -> Result<Vec<i64>, StoreError> {
        let (channel, key) = (channel_of(registry), key_of(registry));
        let script = Script::new(SCRIPT);
        let mut call = script.key(key);
        call.arg("").arg("").arg(channel);
        (4..13).for_each(|_| _ = call.arg(""));
        call.arg(order);
        self.order(registry, async |mut server| call.invoke_async(&mut server).await).await
    }

    /// Orders a pause of all nodes, or its end.
    pub(super) async fn order_all(&self, registry: &str, action: &str) -> Result<FleetOrder, StoreError> {
        let answer = self.operate(registry, action).await?;
        Ok(FleetOrder(answer.get(1).and_then(|order| u64::try_from(*order).ok()).unwrap_or_default()))
    }

    /// All that the store knows of this registry.
    pub async fn records(&self, registry: &str) -> Result<FleetRecords, StoreError> {
        let (key, reports) = (key_of(registry), reports_of(registry));
        let read = async |mut server: MultiplexedConnection| {
            let lent: BTreeMap<String, Vec<u8>> = redis::cmd("HGETALL").arg(key).query_async(&mut server).await?;
            let reports = redis::cmd("HGETALL").arg(reports).query_async(&mut server).await?;
            let (seconds, micros): (f64, f64) = redis::cmd("TIME").query_async(&mut server).await?;
            Ok(FleetRecords { lent, reports, time: seconds + micros / 1e6 })
        };
        self.order(registry, read).await
    }

    /// Of the server that has the records of this registry now. A disk that hangs holds up no other task.
    async fn newest_client(&self, registry: &str) -> Result<Client, StoreError> {
        let address = self.clone();
        let secrets = tokio::task::spawn_blocking(move || address.secrets());
        let secrets = secrets.await.map_err(|_| StoreError::Unconnected)??;
        match StoreUrl::parse(&self.config.redis).map_err(StoreError::Url)? {
            StoreUrl::Server(url) => Ok(self.client(&url, &secrets)?),
            StoreUrl::Cluster(seeds) => {
                let address = self.clone();
                let client = move |url: &str| address.client(url, &secrets);
                Ok(ClusterSearch { seeds, key: key_of(registry), config: patient(SEARCH_PATIENCE), client }
                    .primary()
                    .await?)
            }
            StoreUrl::Sentinels(sentinels) => {
                // They have a password of their own or none: the one that is known is tried where they ask for one.
                let first = self.sentinel_client(&sentinels, &secrets, false)?.async_get_client().await;
                match first {
                    Err(_) if secrets.password.is_some() => {
                        Ok(self.sentinel_client(&sentinels, &secrets, true)?.async_get_client().await?)
                    }
                    client => Ok(client?),
                }
            }
        }
    }

    fn sentinel_client(
        &self,
        sentinels: &Sentinels,
        secrets: &Secrets,
        proves: bool,
    ) -> Result<SentinelClient, RedisError> {
        let address = |(host, port): &(String, u16)| {
            let (host, port) = (host.clone(), *port);
            if sentinels.is_secure {
                ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
            } else {
                ConnectionAddr::Tcp(host, port)
            }
        };
        let hosts = sentinels.hosts.iter().map(address);
        let mut builder = SentinelClientBuilder::new(hosts, &sentinels.primary, SentinelServerType::Master)?
            .set_client_to_redis_protocol(ProtocolVersion::RESP3)
            .set_client_to_redis_db(sentinels.database);
        if sentinels.is_secure {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        }
        if let Some(user) = &self.config.user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = &secrets.password {
            builder = builder.set_client_to_redis_password(password);
        }
        if let Some(certificates) = secrets.certificates().filter(|_| sentinels.is_secure) {
            builder = builder.set_client_to_redis_certificates(certificates.clone());
            builder = builder.set_client_to_sentinel_certificates(certificates);
        }
        if let Some(password) = secrets.password.as_ref().filter(|_| proves) {
            builder = builder.set_client_to_sentinel_password(password);
        }
        builder.build()
    }

    /// The files are read anew: a password may change.
    fn secrets(&self) -> Result<Secrets, StoreError> {
        let LeaseConfig { password_file, ca_file, .. } = &self.config;
        let unreadable = |key, path: &Path, cause| StoreError::Unreadable { key, path: path.to_owned(), cause };
        let password = password_file
            .as_ref()
            .map(|path| fs::read_to_string(path).map_err(|cause| unreadable("lease.password_file", path, cause)));
        let authorities =
            ca_file.as_ref().map(|path| fs::read(path).map_err(|cause| unreadable("lease.ca_file", path, cause)));
        let password = password.transpose()?.map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
        Ok(Secrets { password, authorities: authorities.transpose()? })
    }

    fn client(&self, url: &str, secrets: &Secrets) -> Result<Client, RedisError> {
        let info = url.into_connection_info()?;
        let mut settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        if let Some(user) = &self.config.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &secrets.password {
            settings = settings.set_password(password);
        }
        let info = info.set_redis_settings(settings);
        match secrets.certificates() {
            Some(certificates) => Client::build_with_tls(info, certificates),
            None => Client::open(info),
        }
    }
}

/// The files of a config.
#[derive(Clone)]
struct Secrets {
    password: Option<String>,
    authorities: Option<Vec<u8>>,
}

impl Secrets {
    fn certificates(&self) -> Option<TlsCertificates> {
        self.authorities.as_ref().map(|all| TlsCertificates { client_tls: None, root_cert: Some(all.clone()) })
    }
}

/// The records of one registry at the server.
pub struct Store {
    address: StoreAddress,
    registry: String,
    script: Script,
    key: String,
    reports: String,
    channel: String,
    connection: Option<MultiplexedConnection>,
    pushes: mpsc::UnboundedSender<PushInfo>,
}

impl Store {
    /// The store of this registry, and where its messages come.
    pub fn new(address: StoreAddress, registry: &str) -> (Store, mpsc::UnboundedReceiver<PushInfo>) {
        let (pushes, heard) = mpsc::unbounded_channel();
        let (channel, key, reports) = (channel_of(registry), key_of(registry), reports_of(registry));
        let (registry, script) = (registry.to_owned(), Script::new(SCRIPT));
        (Store { address, registry, script, key, reports, channel, connection: None, pushes }, heard)
    }

    /// The answer; `None` if the store knows a later request, or has no record of this process any more.
    pub(super) async fn ask(
        &mut self,
        request: &LeaseRequest,
        report: &NodeReport,
    ) -> Result<Option<LeaseAnswer>, StoreError> {
        // It is given up when anything fails.
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => tokio::time::timeout(CONNECT_PATIENCE, self.connect(&request.process))
                .await
                .map_err(|_| StoreError::Unconnected)??,
        };
        let asked = self.ask_on(connection, request, report);
        tokio::time::timeout(PATIENCE, asked).await.map_err(|_| StoreError::Late(PATIENCE))?
    }

    async fn ask_on(
        &mut self,
        mut connection: MultiplexedConnection,
        request: &LeaseRequest,
        report: &NodeReport,
    ) -> Result<Option<LeaseAnswer>, StoreError> {
        let intent = match request.intent {
            Intent::Renew => "renew",
            Intent::Leave => "leave",
        };
        let mut call = self.script.key(&self.key);
        call.key(&self.reports);
        // The server says which run it is, and the time of that.
        call.arg("").arg("").arg(&self.channel).arg(&request.process.node).arg(&request.process.instance);
        call.arg(request.number).arg(&request.epoch).arg(request.clock).arg(request.held).arg(request.wished);
        call.arg(request.pool).arg(request.hold).arg(intent).arg(request.order.0).arg(report.packed());
        let seen = &request.evidence;
        call.arg(request.gone.join(" ")).arg(seen.lowered).arg(seen.good).arg(seen.signs).arg(seen.worked);
        call.arg(seen.span).arg(seen.floor).arg(&seen.sign);
        let fields: Vec<Value> = call.invoke_async(&mut connection).await?;
        let answer = answer(&fields);
        let replicas = fields.get(8).and_then(number).unwrap_or(0);
        if answer.is_some() && replicas > 0 {
            let confirmed: u64 = redis::cmd("WAIT").arg(1).arg(REPLICA_PATIENCE).query_async(&mut connection).await?;
            if confirmed == 0 {
                return Err(StoreError::NoReplica);
            }
        }
        self.connection = Some(connection);
        Ok(answer)
    }

    async fn connect(&mut self, process: &Process) -> Result<MultiplexedConnection, StoreError> {
        let config = patient(CONNECT_PATIENCE).set_push_sender(self.pushes.clone());
        let client = self.address.newest_client(&self.registry).await?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        connection.subscribe(vec![self.channel.clone(), format!("{}:{process}", self.channel)]).await?;
        Ok(connection)
    }
}

/// For connections on which nobody waits for longer than this.
fn patient(time: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_response_timeout(Some(time)).set_connection_timeout(Some(time))
}

fn channel_of(registry: &str) -> String {
    format!("roadstead:{{{registry}}}")
}

/// In a cluster, both keys are on the same server.
fn key_of(registry: &str) -> String {
    format!("{}:leases", channel_of(registry))
}

fn reports_of(registry: &str) -> String {
    format!("{}:reports", channel_of(registry))
}

/// A message of the store.
pub(super) enum StoreMessage {
    Lease(LeasePush),
    /// To all nodes.
    Order(FleetOrder),
}

/// A message of the store about this registry.
pub(super) fn message(registry: &str, info: &PushInfo) -> Option<StoreMessage> {
    if info.kind != PushKind::Message {
        return None;
    }
    let [Value::BulkString(channel), Value::BulkString(text)] = &info.data[..] else { return None };
    let (channel, text) = (std::str::from_utf8(channel).ok()?, std::str::from_utf8(text).ok()?);
    let process = channel.strip_prefix(&channel_of(registry))?;
    if process.is_empty() {
        return Some(StoreMessage::Order(FleetOrder(text.parse().ok()?)));
    }
    let (node, instance) = process.strip_prefix(':')?.split_once('/')?;
    let mut words = text.split(' ');
    let epoch = words.next()?.to_owned();
    let mut number = || words.next()?.parse().ok();
    let process = Process { node: node.to_owned(), instance: instance.to_owned() };
    let (number, granted, limit, lowered) = (number()?, number()?, number()?, number().unwrap_or(0));
    let push = LeasePush { process, epoch, number, granted, limit, lowered };
    Some(StoreMessage::Lease(push))
}

fn number(field: &Value) -> Option<u64> {
    redis::from_redis_value(field.clone()).ok()
}

fn answer(fields: &[Value]) -> Option<LeaseAnswer> {
    let at = |at: usize| number(fields.get(at)?);
    Some(LeaseAnswer {
        number: at(1)?,
        epoch: redis::from_redis_value(fields.get(2)?.clone()).ok()?,
        clock: at(3)?,
        granted: at(4)?,
        limit: at(5)?,
        again: at(6)?,
        learning: at(7)?,
        order: FleetOrder(at(9)?),
        twin: at(10)?,
        force: PoolForce {
            slots: at(11)?,
            lowered: at(12)?,
            sign: redis::from_redis_value(fields.get(13)?.clone()).ok()?,
        },
    })
}
