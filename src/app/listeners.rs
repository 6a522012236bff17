//! The listening sockets: inherited, or bound here.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::OwnedFd;

use tokio::net::TcpListener;

use super::StartError;
use super::inherited::Inherited;
use crate::config::Config;

/// Where a running sidecar listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The proxy.
    pub proxy: SocketAddr,
    /// Health, metrics and status.
    pub admin: SocketAddr,
    /// Metrics and probes for others, if configured.
    pub metrics: Option<SocketAddr>,
    /// The mirrors, each with the name of its registry.
    pub mirrors: Vec<(String, SocketAddr)>,
}

impl Addresses {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = SocketAddr> {
        let mirrors = self.mirrors.iter().map(|(_, address)| *address);
        [self.proxy, self.admin].into_iter().chain(self.metrics).chain(mirrors)
    }
}

/// All listeners of this process.
#[derive(Debug)]
pub(super) struct Listeners {
    pub proxy: StdListener,
    pub admin: StdListener,
    pub metrics: Option<StdListener>,
    /// Each with the name of its registry.
    pub mirrors: Vec<(String, StdListener)>,
}

impl Listeners {
    /// Takes those that were inherited, and binds the others.
    ///
    /// # Errors
    /// When one cannot be bound, or an inherited one is none that the config names.
    pub fn open(config: &Config, inherited: &mut Inherited) -> Result<Listeners, StartError> {
        let listen = &config.listen;
        let mut open = |name: &str, key: &str, address: SocketAddr| -> Result<StdListener, StartError> {
            let opened = match inherited.take(name, address) {
                Some(listener) => Ok(listener),
                None => bind(address),
            };
            let ready = opened.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
            ready.map_err(|cause| StartError::Bind { key: key.to_owned(), address, cause })
        };
        let proxy = open("proxy", "listen.proxy", listen.proxy)?;
        let admin = open("admin", "listen.admin", listen.admin)?;
        let metrics = listen.metrics.map(|address| open("metrics", "listen.metrics", address)).transpose()?;
        let mut mirrors = Vec::new();
        for registry in &config.registries {
            let Some(mirror) = &registry.mirror else { continue };
            let name = &registry.name;
            let key = format!("registries.{name}.mirror.listen");
            mirrors.push((name.clone(), open(&format!("mirror-{name}"), &key, mirror.listen)?));
        }
        match inherited.left().first() {
            Some(address) => Err(StartError::Stray(*address)),
            None => Ok(Listeners { proxy, admin, metrics, mirrors }),
        }
    }

    /// Where they listen.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn addresses(&self) -> io::Result<Addresses> {
        let mirrors = self.mirrors.iter().map(|(name, listener)| Ok((name.clone(), listener.local_addr()?)));
        Ok(Addresses {
            proxy: self.proxy.local_addr()?,
            admin: self.admin.local_addr()?,
            metrics: self.metrics.as_ref().map(StdListener::local_addr).transpose()?,
            mirrors: mirrors.collect::<io::Result<_>>()?,
        })
    }

    /// Copies of them, by the names under which a successor looks for them.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn copies(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let fixed = [("proxy", Some(&self.proxy)), ("admin", Some(&self.admin)), ("metrics", self.metrics.as_ref())];
        let fixed = fixed.into_iter().filter_map(|(name, listener)| Some((name.to_owned(), listener?)));
        let mirrors = self.mirrors.iter().map(|(name, listener)| (format!("mirror-{name}"), listener));
        fixed.chain(mirrors).map(|(name, listener)| Ok((name, listener.try_clone()?.into()))).collect()
    }
}

/// A copy of a listener, for the runtime to accept on. Must be called inside a tokio runtime.
///
/// # Errors
/// When there are no descriptors left.
pub(super) fn accepting(listener: &StdListener) -> io::Result<TcpListener> {
    TcpListener::from_std(listener.try_clone()?)
}

/// As tokio binds: an address that a process before had is free at once.
fn bind(address: SocketAddr) -> io::Result<StdListener> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};
    const BACKLOG: i32 = 4096;
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(StdListener::from(socket))
}
