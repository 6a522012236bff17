//! The words between a node and the store, and the times that both go by.

use std::time::Duration;

/// The times of a lease. All nodes of a fleet have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A node asks at least so often.
    pub renew: Duration,
    /// Leased slots are given to requests for so long after a request to the store was sent.
    pub admit: Duration,
    /// After that, leased connections may stay open for so long, then they are cut.
    pub close: Duration,
    /// After so long the registry itself drops a peer that has gone silent.
    pub registry_drops: Duration,
}

impl Default for Times {
    fn default() -> Times {
        let seconds = Duration::from_secs;
        Times { renew: seconds(5), admit: seconds(60), close: seconds(60), registry_drops: seconds(90) }
    }
}

impl Times {
    /// How long the store keeps what it lent to a process that it does not hear of any more. The margin is for clocks that are
    /// off by 1 %: the node's own may be slow, and those that drive the store's clock fast.
    pub fn hold(&self) -> Duration {
        let lease = self.admit + self.close + self.registry_drops;
        lease + lease / 25 + Duration::from_secs(1)
    }

    /// How long a node holds the slot of a connection that is gone here, and that the registry may count. With the same margin.
    pub fn ghost(&self) -> Duration {
        self.registry_drops + self.registry_drops / 25
    }
}

/// A process that holds leases: its node, and a number that no other process of that node has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process {
    pub node: String,
    pub instance: String,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.node, self.instance)
    }
}

/// The order of an operator to all nodes that holds. Each pause and each resume has a higher number than the one before, a pause an odd
/// one. The highest that the store or any node knows holds, so an order is not lost with the records of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FleetOrder(pub u64);

impl FleetOrder {
    pub fn is_pause(self) -> bool {
        self.0 % 2 == 1
    }

    /// Whether it was given more than a second after this time of the server, so by another clock.
    pub fn is_ahead_of(self, seconds: f64) -> bool {
        let given = Duration::from_millis(self.0 / 2);
        given.as_secs_f64() > seconds + 1.0
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Intent {
    #[default]
    Renew,
    /// This process holds nothing any more, and ends.
    Leave,
}

/// A message of a node to the store. Durations are in milliseconds, as the script counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRequest {
    pub process: Process,
    /// Grows with each request of the process.
    pub number: u64,
    /// The life of the store that the node knows; empty if none.
    pub epoch: String,
    /// The clock of that life shows at least this.
    pub clock: u64,
    /// The promise: no more leased slots are in use until this request is answered.
    pub held: u64,
    /// Slots that it could use now.
    pub wished: u64,
    /// The slots that may be lent to all nodes together.
    pub pool: u64,
    /// [`Times::hold`].
    pub hold: u64,
    pub intent: Intent,
    /// Earlier processes of this node that are gone, as are their sockets.
    pub gone: Vec<String>,
    /// The last order that the node knows.
    pub order: FleetOrder,
    pub evidence: FleetEvidence,
}

/// The observations of a node since its last request, by which the slots of all nodes together yield to the distress of the registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetEvidence {
    /// Counted since the node heard of this lowering, and got down to it.
    pub lowered: u64,
    pub good: u64,
    /// Signs of overload.
    pub signs: u64,
    /// The time that good answers took, all together.
    pub worked: u64,
    /// How long was counted; 0 if not at all.
    pub span: u64,
    /// So many slots stay in force in any case.
    pub floor: u64,
    /// The sign that was seen last.
    pub sign: String,
}

/// The slots in force of all nodes together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolForce {
    /// 0: all of the pool.
    pub slots: u64,
    /// When they were lowered last, by the store's clock.
    pub lowered: u64,
    /// The sign that was seen last before.
    pub sign: String,
}

/// The answer of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseAnswer {
    /// The request that is answered; the store passes over one that is older than what it knows.
    pub number: u64,
    pub epoch: String,
    pub clock: u64,
    pub granted: u64,
    /// Below `granted`: the node is to get down to it, and to say so.
    pub limit: u64,
    /// A turn or a lease ends after this time, and its slots may be for this node; 0 for none.
    pub again: u64,
    /// The rest of the learning time, in which nothing new is lent; 0 outside of it.
    pub learning: u64,
    /// The last order that the store knows.
    pub order: FleetOrder,
    /// Until when the store keeps the lease of another process of this node, of several the longest; 0 without one.
    pub twin: u64,
    pub force: PoolForce,
}

/// A message of the store to a node that has not asked: its slots changed since its last request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasePush {
    pub process: Process,
    pub epoch: String,
    /// The last request that the store knew.
    pub number: u64,
    pub granted: u64,
    pub limit: u64,
    /// When the slots in force of all nodes were lowered last, by the store's clock.
    pub lowered: u64,
}
