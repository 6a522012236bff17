//! The destination of a request: the host and port of a CONNECT or of an absolute URL, in one normal form, and the
//! patterns with which a registry claims hosts.
//!
//! Pure. It never resolves a name, never decides whether a target may be reached (`address` and the configuration do),
//! and never lets through a spelling that a resolver could read as some other host. The proxy parses every request
//! with it; the configuration parses `hosts` with it.

mod authority;
mod origin;

pub use self::authority::{BadTarget, Host, HostPattern, Target};
pub use self::origin::Origin;
