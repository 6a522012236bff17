//! A request for admission: who asks, for what, and where it stands in the order.

use std::sync::Arc;
use std::time::Duration;

use super::moment::Moment;

/// A client: a user name, a uid or an address.
pub type Client = Arc<str>;

/// Which class, by its number in the list that the gate was given; 0 is `default`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub usize);

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal {
    /// The class that it shares with others.
    pub class: ClassId,
    /// The client itself.
    pub client: Client,
}

/// What is asked for, as far as it matters for the order among one client's own requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Small, and others wait for its answer: tokens, manifests, anything that is not a blob.
    Small,
    /// A blob, or a tunnel, in which nothing can be told apart.
    Blob,
}

impl Lane {
    /// The word in status pages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Small => "small",
            Lane::Blob => "blob",
        }
    }
}

/// A place in the order: by arrival, ties by sequence. It names the request for as long as that waits, also across
/// several admissions (a dial that failed gives its slot back and waits again on its old place).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// In nanoseconds: half as wide as a [`Moment`], which shows in the trees of a long queue.
    arrived: u64,
    sequence: u64,
}

impl Place {
    pub(super) fn new(arrived: Moment, sequence: u64) -> Place {
        Place { arrived: arrived.nanos(), sequence }
    }

    /// When the request first arrived.
    #[must_use]
    pub fn arrived(self) -> Moment {
        Moment(Duration::from_nanos(self.arrived))
    }
}

/// What a connection can be reused for: the authority (and later the scheme) that it was opened to.
pub type ReuseKey = Arc<str>;

/// A request for admission.
#[derive(Clone, Debug)]
pub struct AdmissionRequest {
    /// Where the request stands in the order.
    pub place: Place,
    /// When waiting ends with a refusal.
    pub deadline: Moment,
    /// Who asks.
    pub principal: Principal,
    /// What is asked for.
    pub lane: Lane,
    /// Where the request wants to go; what a kept place is kept for.
    pub target: Arc<str>,
    /// Kept connections that would do as well as a new one; `None`: only a new one will do.
    pub reuse: Option<ReuseKey>,
    /// Whether this request was admitted before (its dial failed), or came back to a place that was kept for it. It is
    /// not counted against `depth`.
    pub again: bool,
}

impl AdmissionRequest {
    /// Whom its place is kept for if it leaves.
    pub(super) fn owner(&self) -> Owner {
        (self.principal.client.clone(), self.target.clone())
    }

    /// What kind of request asks: in a tunnel nothing is known of authorities, so no kept connection serves it, while
    /// every visible request names the one it could use.
    #[must_use]
    pub fn kind(&self) -> Kind {
        if self.reuse.is_some() { Kind::Request } else { Kind::Tunnel }
    }
}

/// What a slot is used for, or asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A CONNECT.
    Tunnel,
    /// A request that is visible as HTTP.
    Request,
    /// Nobody's request: a connection that is kept for the next one.
    Kept,
}

impl Kind {
    /// The word in status pages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Tunnel => "tunnel",
            Kind::Request => "request",
            Kind::Kept => "kept",
        }
    }
}

/// Whom a place is kept for, and which target.
pub type Owner = (Client, Arc<str>);
