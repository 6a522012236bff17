//! The distribution registry, which Harbor runs as well: Debian's `docker-registry` on an empty folder.
//!
//! It picks its own port, so two tests never race for one, and tells it in its log. Upload addresses are absolute
//! and built from the request's Host header, as behind Harbor: a proxy that changes Host breaks every push.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::program::{Program, find_program};
use super::token_service::{ISSUER, SERVICE};

/// The registry logs this when it is ready, followed by its address.
const LISTENING: &str = "listening on ";

/// A running registry, empty at first. Dropping it ends the process and removes its data.
pub struct DockerRegistry {
    address: SocketAddr,
    program: Program,
    _folder: TempDir,
}

impl DockerRegistry {
    /// Starts a registry on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// When it does not come up; the message holds its log.
    #[must_use]
    pub fn start() -> Self {
        Self::start_on(Ipv4Addr::LOCALHOST.into())
    }

    /// Starts a registry that serves nobody without a token from `realm`, signed by the key of `certificate`.
    ///
    /// # Panics
    /// When it does not come up; the message holds its log.
    #[must_use]
    pub fn start_guarded(realm: &str, certificate: &Path) -> Self {
        let auth = format!(
            "auth:\n  token:\n    realm: \"{realm}\"\n    service: {SERVICE}\n    issuer: {ISSUER}\n    \
             rootcertbundle: \"{}\"\n",
            certificate.display()
        );
        Self::start_with(Ipv4Addr::LOCALHOST.into(), &auth)
    }

    /// Starts a registry on a free port of `ip`.
    ///
    /// # Panics
    /// When it does not come up; the message holds its log.
    #[must_use]
    pub fn start_on(ip: IpAddr) -> Self {
        Self::start_with(ip, "")
    }

    fn start_with(ip: IpAddr, more: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let config = folder.path().join("config.yml");
        let data = folder.path().join("data");
        let text = config_text(&data.display().to_string(), SocketAddr::new(ip, 0));
        fs::write(&config, text + more).expect("the folder is ours");
        let mut program = Program::start(
            Command::new(find_program("docker-registry")).arg("serve").arg(&config),
            folder.path().join("log"),
        );
        let address = program
            .await_start(|program| listening_address(&program.log()))
            .unwrap_or_else(|reason| panic!("docker-registry is not up: {reason}"));
        Self { address, program, _folder: folder }
    }

    /// Where it speaks plain HTTP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its log so far: one line for each request, with method, path and status.
    #[must_use]
    pub fn log(&self) -> String {
        self.program.log()
    }
}

/// The registry's configuration: Debian's own file without its accounts, on another folder and port.
fn config_text(data: &str, address: SocketAddr) -> String {
    format!(
        r#"version: 0.1
log:
  level: info
  accesslog:
    disabled: false
storage:
  filesystem:
    rootdirectory: "{data}"
  delete:
    enabled: true
  cache:
    blobdescriptor: inmemory
http:
  addr: "{address}"
  secret: one-registry-one-secret
"#
    )
}

/// The address in the line that says the registry is ready, once that line is there.
fn listening_address(log: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once(LISTENING)?;
    let (address, _) = rest.split_once('"')?;
    address.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_read_once_its_line_is_whole() {
        let line = r#"time="t" level=info msg="listening on 127.0.0.1:15000" version=2.8"#;
        assert_eq!(listening_address(line), Some(SocketAddr::from(([127, 0, 0, 1], 15000))));
        let six = r#"msg="listening on [::1]:80" "#;
        assert_eq!(listening_address(six), "[::1]:80".parse().ok());
        assert_eq!(listening_address(r#"msg="listening on 127.0.0.1:150"#), None);
        assert_eq!(listening_address("Starting upload purge"), None);
    }
}
