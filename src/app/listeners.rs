//! The listening sockets: inherited, or bound here.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::OwnedFd;

use tokio::net::TcpListener;

use super::error::StartError;
use super::inherited::Inherited;
use crate::config::{Config, Service};
use crate::tcp;

/// Connections that wait to be accepted, at most.
const BACKLOG: i32 = 4096;

/// The address at which each service of a running sidecar listens.
#[derive(Clone, Debug)]
pub struct ListenAddresses(pub Vec<(Service, SocketAddr)>);

impl ListenAddresses {
    pub fn all(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().map(|(_, address)| *address)
    }

    /// The address of the proxy, which every running sidecar has.
    pub fn proxy(&self) -> SocketAddr {
        self.of(&Service::Proxy).expect("always opened")
    }

    pub(super) fn of(&self, service: &Service) -> Option<SocketAddr> {
        self.0.iter().find(|(of, _)| of == service).map(|(_, address)| *address)
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
    let mut listeners = Vec::new();
    for (service, address) in config.listeners() {
        let taken = inherited.take(&service.name(), address);
        let is_bound_here = taken.is_none();
        let opened = taken.map_or_else(|| bind(address), Ok).and_then(|socket| {
            socket.set_nonblocking(true)?;
            tcp::prepare_listener(&socket)?;
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
    ListenAddresses(listeners.iter().map(|listener| (listener.service.clone(), listener.address)).collect())
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
