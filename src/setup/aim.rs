//! Where pullers are led, out of the config, and the plan that comes of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::error::SetupError;
use crate::config::{Config, RegistryConfig};
use crate::target::HostPattern;

/// A file as it should be. The path is that of the node, without the root.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    pub path: PathBuf,
    pub text: String,
}

/// How files should be, and what the operator does besides.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub files: Vec<Wanted>,
    pub notes: Vec<String>,
}

/// Where pullers are led, out of the config.
#[derive(Clone, Debug)]
pub struct Aim {
    pub registries: Vec<Led>,
    /// The forward proxy.
    pub proxy: SocketAddr,
    pub allow_bypass: bool,
}

/// One registry, and the mirror that stands for it.
#[derive(Clone, Debug)]
pub struct Led {
    pub name: String,
    pub hosts: Vec<HostPattern>,
    /// `host:port` of the mirror; `None` without `registries.NAME.mirror`.
    pub mirror: Option<SocketAddr>,
}

impl Aim {
    pub fn of(config: &Config, allow_bypass: bool) -> Aim {
        let led = |registry: &RegistryConfig| Led {
            name: registry.name.clone(),
            hosts: registry.hosts.clone(),
            mirror: registry.mirror.as_ref().map(|mirror| from_this_node(mirror.listen)),
        };
        let registries = config.registries.iter().map(led).collect();
        Aim { registries, proxy: from_this_node(config.listen.proxy), allow_bypass }
    }

    /// Each name that leads to a mirror: the host as images name it, and the mirror. Names that no file can hold are noted.
    /// Fails when no registry has a mirror.
    pub(super) fn mirrored(&self, notes: &mut Vec<String>) -> Result<Vec<(String, SocketAddr)>, SetupError> {
        let mut mirrored = Vec::new();
        for registry in &self.registries {
            let name = &registry.name;
            let Some(mirror) = registry.mirror else {
                notes.push(format!("registries.{name} has no mirror, so nothing leads there"));
                continue;
            };
            for host in &registry.hosts {
                if host.exact_host().is_none() {
                    notes.push(format!("{host} of registries.{name} is a pattern: the puller's files need each name"));
                } else {
                    mirrored.push((host.to_string(), mirror));
                }
            }
        }
        if mirrored.is_empty() {
            let cure = "set registries.NAME.mirror with listen = \"127.0.0.1:4130\" and upstream, and a host in hosts";
            return Err(SetupError::Refused(format!("no registry of the config has a mirror: {cure}")));
        }
        Ok(mirrored)
    }
}

/// The address at which this node reaches a listener.
pub fn from_this_node(listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() { SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), listen.port()) } else { listen }
}
