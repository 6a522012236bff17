//! The listening sockets: inherited, or bound here.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::OwnedFd;

use tokio::net::TcpListener;

use super::error::StartError;
use super::inherited::Inherited;
use crate::config::Config;

/// Connections that wait to be accepted, at most.
const BACKLOG: i32 = 4096;

/// Where a running sidecar listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddresses {
    pub proxy: SocketAddr,
    /// Health, metrics and status.
    pub admin: SocketAddr,
    /// Metrics and probes for others, if configured.
    pub metrics: Option<SocketAddr>,
    /// The mirrors, each with the name of its registry.
    pub mirrors: Vec<(String, SocketAddr)>,
}

impl ListenAddresses {
    pub fn all(&self) -> impl Iterator<Item = SocketAddr> {
        let mirrors = self.mirrors.iter().map(|(_, address)| *address);
        [self.proxy, self.admin].into_iter().chain(self.metrics).chain(mirrors)
    }
}

/// The service of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Proxy,
    Admin,
    Metrics,
    /// The mirror of the registry of this name.
    Mirror(String),
}

impl Service {
    /// The name under which a successor, or systemd, hands the socket over.
    fn name(&self) -> String {
        match self {
            Service::Proxy => "proxy".to_owned(),
            Service::Admin => "admin".to_owned(),
            Service::Metrics => "metrics".to_owned(),
            Service::Mirror(registry) => format!("mirror-{registry}"),
        }
    }

    fn key(&self) -> String {
        match self {
            Service::Mirror(registry) => format!("registries.{registry}.mirror.listen"),
            _ => format!("listen.{}", self.name()),
        }
    }
}

#[derive(Debug)]
pub(super) struct Listener {
    pub service: Service,
    pub address: SocketAddr,
    pub socket: StdListener,
    /// Whether nobody else has the socket: then what waits there is lost when it is closed.
    pub is_bound_here: bool,
}

impl Listener {
    /// A copy of the socket, for the runtime to accept on. Must be called inside a tokio runtime.
    /// Fails when there are no descriptors left.
    pub fn accepting(&self) -> io::Result<TcpListener> {
        TcpListener::from_std(self.socket.try_clone()?)
    }
}

/// Takes the listeners that were inherited, and binds the others.
/// Fails when one cannot be bound, or an inherited one is none that the config names.
pub(super) fn open(config: &Config, inherited: &mut Inherited) -> Result<Vec<Listener>, StartError> {
    let listen = &config.listen;
    let mut services = vec![(Service::Proxy, listen.proxy), (Service::Admin, listen.admin)];
    services.extend(listen.metrics.map(|address| (Service::Metrics, address)));
    services.extend(
        config
            .registries
            .iter()
            .filter_map(|registry| Some((Service::Mirror(registry.name.clone()), registry.mirror.as_ref()?.listen))),
    );
    let mut listeners = Vec::new();
    for (service, address) in services {
        let taken = inherited.take(&service.name(), address);
        let is_bound_here = taken.is_none();
        let opened = taken.map_or_else(|| bind(address), Ok).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok((socket.local_addr()?, socket))
        });
        let (address, socket) = opened.map_err(|cause| StartError::Bind { key: service.key(), address, cause })?;
        listeners.push(Listener { service, address, socket, is_bound_here });
    }
    match inherited.left().first() {
        Some(address) => Err(StartError::Stray(*address)),
        None => Ok(listeners),
    }
}

pub(super) fn addresses(listeners: &[Listener]) -> ListenAddresses {
    let at = |service: Service| listeners.iter().find(|listener| listener.service == service).map(|one| one.address);
    let mirrors = listeners.iter().filter_map(|listener| match &listener.service {
        Service::Mirror(registry) => Some((registry.clone(), listener.address)),
        _ => None,
    });
    ListenAddresses {
        proxy: at(Service::Proxy).expect("always opened"),
        admin: at(Service::Admin).expect("always opened"),
        metrics: at(Service::Metrics),
        mirrors: mirrors.collect(),
    }
}

/// Copies of them, by the names under which a successor looks for them.
/// Fails when there are no descriptors left.
pub(super) fn copies(listeners: &[Listener]) -> io::Result<Vec<(String, OwnedFd)>> {
    listeners.iter().map(|listener| Ok((listener.service.name(), listener.socket.try_clone()?.into()))).collect()
}

/// As tokio binds: an address that a process before had is free at once.
fn bind(address: SocketAddr) -> io::Result<StdListener> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(StdListener::from(socket))
}
