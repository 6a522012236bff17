use std::io;
use std::net::SocketAddr;

use crate::upstream::tls::TlsError;

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address} ({key}): {cause}")]
    Bind { key: String, address: SocketAddr, cause: io::Error },
    /// A listener was inherited that the config does not name.
    #[error(
        "a listener on {0} was inherited, and the config has none there: add it to the config, or remove it from the socket unit"
    )]
    Stray(SocketAddr),
    #[error("{0}")]
    Control(String),
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
    /// The files that TLS to a registry needs are not usable: the setting, the file and what is wrong with it.
    #[error("registries.{registry}.{error}")]
    Tls { registry: String, error: TlsError },
}
