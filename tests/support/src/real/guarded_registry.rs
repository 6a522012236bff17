//! A registry as Harbor is one: nginx with TLS in front, tokens from a service beside the registry.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::docker_registry::DockerRegistry;
use super::nginx::Nginx;
use super::program::free_address;
use super::token_service::TokenService;

/// How many ports are tried before giving up.
const ATTEMPTS: usize = 5;

/// The three together, on loopback.
pub struct GuardedRegistry {
    /// Signs tokens, and can fall ill.
    pub tokens: TokenService,
    front: Nginx,
    _registry: DockerRegistry,
}

impl GuardedRegistry {
    /// Starts all of it; the certificate is for `name` and 127.0.0.1.
    ///
    /// # Panics
    /// When a part does not come up; the message holds its log.
    pub async fn start(name: &str) -> Self {
        let tokens = TokenService::start().await;
        for _ in 0..ATTEMPTS {
            // The registry has to know where the front will be: the realm of its challenge leads there.
            let address = free_address();
            let realm = format!("https://{address}/service/token");
            let registry = DockerRegistry::start_guarded(&realm, tokens.certificate());
            if let Some(front) = Nginx::harbor(address, registry.address(), tokens.address(), name) {
                return Self { tokens, front, _registry: registry };
            }
        }
        panic!("no free port in {ATTEMPTS} attempts");
    }

    /// Where it speaks HTTPS.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.front.address()
    }

    /// The file with the authority that signed its certificate.
    #[must_use]
    pub fn authority(&self) -> &Path {
        self.front.authority()
    }

    /// A folder that holds nothing but the authority (`skopeo --src-cert-dir`).
    #[must_use]
    pub fn trusted_folder(&self) -> PathBuf {
        self.front.trusted_folder()
    }

    /// The log of the front so far: `PORT REQUEST STATUS` for each request.
    #[must_use]
    pub fn log(&self) -> String {
        self.front.log()
    }
}
