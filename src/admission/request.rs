//! A request for admission: who asks, for what, and where it stands in the order.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::moment::Moment;

/// A client: a peer that the kernel vouches for, and the user name that it gives, if it gives one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId {
    /// A user of this machine, or an address.
    peer: Arc<str>,
    name: Option<Arc<str>>,
}

impl ClientId {
    /// The user `name` of this peer.
    pub fn named(peer: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> ClientId {
        ClientId { peer: peer.into(), name: Some(name.into()) }
    }

    /// The peer, as the kernel knows it.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// As people know it: by its name, else by its peer.
    pub fn as_str(&self) -> &str {
        self.name.as_ref().unwrap_or(&self.peer)
    }

    pub(super) fn parts(&self) -> (&Arc<str>, &Option<Arc<str>>) {
        (&self.peer, &self.name)
    }
}

impl<T: Into<Arc<str>>> From<T> for ClientId {
    fn from(peer: T) -> ClientId {
        ClientId { peer: peer.into(), name: None }
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A class, by its number in the gate's list; 0 is `default`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub usize);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal {
    /// The class that it shares with others.
    pub class: ClassId,
    pub client: ClientId,
}

/// The lane of a request, for the order among one client's own requests. Lanes are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Small, and others wait for its answer: tokens, manifests, anything that is not a blob.
    Small,
    /// A blob, or a tunnel, in which nothing can be told apart.
    Blob,
}

/// Marks the places that go before all others. No process counts that far.
const AHEAD: u64 = 1 << 63;

/// A place in the order: by arrival, ties by sequence. It names the request for as long as that waits, also across
/// several admissions (a dial that failed gives its slot back and waits again on its old place).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// In nanoseconds: half as wide as a [`Moment`], which shows in the trees of a long queue.
    arrived: u64,
    sequence: u64,
}

impl Place {
    pub(super) const FIRST: Place = Place { arrived: 0, sequence: 0 };
    pub(super) const LAST: Place = Place { arrived: u64::MAX, sequence: u64::MAX };

    pub(crate) fn new(arrived: Moment, sequence: u64) -> Place {
        Place { arrived: arrived.nanos(), sequence }
    }

    /// The same place for a parked tunnel whose client speaks again: it goes before all who wait.
    pub fn ahead(self) -> Place {
        Place { sequence: self.sequence | AHEAD, ..self }
    }

    /// The place that it was before: who comes back goes ahead of nobody.
    pub(super) fn in_turn(self) -> Place {
        Place { sequence: self.sequence & !AHEAD, ..self }
    }

    pub(super) fn is_ahead(self) -> bool {
        self.sequence & AHEAD != 0
    }

    pub fn arrived(self) -> Moment {
        Moment(Duration::from_nanos(self.arrived))
    }
}

/// The key for reuse of a connection: the authority (and later the scheme) that it was opened to.
pub type ReuseKey = Arc<str>;

/// A description of a request for people. It decides nothing.
#[derive(Clone, Debug, Default)]
pub struct RequestLabel {
    /// The repository, and the tag or digest, where that is visible.
    pub wants: Option<Arc<str>>,
    /// The client's socket by its inode, on this machine; else 0.
    pub socket: u32,
}

#[derive(Clone, Debug)]
pub struct AdmissionRequest {
    pub place: Place,
    pub deadline: Moment,
    pub principal: Principal,
    pub lane: Lane,
    /// Where the request wants to go; a ticket is for the same target.
    pub target: Arc<str>,
    /// Pooled connections that would do as well as a new one; `None`: only a new one will do.
    pub reuse: Option<ReuseKey>,
    pub label: RequestLabel,
    /// Whether it is held: it waits, and is not admitted before [`Gate::let_go`](super::Gate::let_go).
    pub held: bool,
}

impl AdmissionRequest {
    /// One that is not held, for a new connection, in the lane of blobs.
    pub fn new(place: Place, deadline: Moment, principal: Principal, target: Arc<str>) -> AdmissionRequest {
        let (reuse, label, held) = Default::default();
        AdmissionRequest { place, deadline, principal, lane: Lane::Blob, target, reuse, label, held }
    }

    /// The kind of the request: a tunnel does not show its authorities, so no pooled connection serves it; every visible
    /// request names the one that it can use.
    pub fn slot_use(&self) -> SlotUse {
        if self.reuse.is_some() { SlotUse::Request } else { SlotUse::Tunnel }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotUse {
    Tunnel,
    Request,
    /// No request: a connection that is pooled for the next one.
    #[serde(rename = "kept")]
    Pooled,
}
