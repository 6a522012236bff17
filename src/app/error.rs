//! Why nothing was started.

use std::io;
use std::net::SocketAddr;

use crate::upstream::tls::TlsError;

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
        /// The error of the kernel.
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
