//! The table `[listen]`, and what all listeners of the file must agree on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::claims::MAX_COUNT;
use super::model::{ListenConfig, OtherHosts};
use super::reader::{Noted, Read, Section};
use super::value::{address, count, duration, network};

/// Where the admin listener is unless the file says otherwise.
pub(super) const DEFAULT_ADMIN: SocketAddr = loopback(4129);

/// The listeners that have been read so far, whatever else was wrong with their tables.
#[derive(Default)]
pub(super) struct Listeners {
    /// The key and the address of each.
    bound: Vec<(String, SocketAddr)>,
    clients_are_listed: bool,
}

impl Listeners {
    pub(super) fn add(&mut self, key: String, address: Read<SocketAddr>) {
        self.bound.extend(address.ok().map(|address| (key, address)));
    }

    /// Notes each listener that cannot be bound beside one before it, or that other machines could use without a list
    /// of clients.
    pub(super) fn check(&self, root: &mut Section<'_>, policy: Read<OtherHosts>) {
        for (index, (key, address)) in self.bound.iter().enumerate() {
            if let Some((other_key, other)) = self.bound[..index].iter().find(|(_, other)| collide(*address, *other)) {
                let reason = format!("{address} cannot be bound beside {other_key} = {other}: choose another port");
                root.problem(key, reason);
            }
            let is_proxy = key == "listen.proxy";
            let serves_pullers = is_proxy || key.ends_with(".mirror.listen");
            if serves_pullers && !self.clients_are_listed && !address.ip().to_canonical().is_loopback() {
                let is_open = is_proxy && matches!(policy, Ok(OtherHosts::Direct));
                let consequence =
                    if is_open { ", and with other_hosts.policy = \"direct\" it would be an open proxy" } else { "" };
                let reason = format!(
                    "{address} is not a loopback address, so listen.allow_clients is required{consequence}: write \
                     allow_clients = [\"10.0.0.0/8\"] with the addresses of your clients"
                );
                root.missing(key, reason);
            }
        }
    }
}

pub(super) fn listen(section: &mut Section<'_>, listeners: &mut Listeners) -> Read<ListenConfig> {
    let proxy = section.optional("proxy", loopback(4128), address);
    let admin = section.optional("admin", DEFAULT_ADMIN, address);
    let metrics = section.maybe("metrics", address);
    let allow_clients = section.list("allow_clients", "[\"10.0.0.0/8\"]", network);
    let max_clients = section.optional("max_clients", 20_000, count(1..=MAX_COUNT));
    let head_timeout = section.optional("head_timeout", Duration::from_secs(10), duration);
    listeners.clients_are_listed = !matches!(allow_clients, Ok(None));
    listeners.add("listen.proxy".to_owned(), proxy);
    listeners.add("listen.admin".to_owned(), admin);
    listeners.add("listen.metrics".to_owned(), metrics.and_then(|address| address.ok_or(Noted)));
    Ok(ListenConfig {
        proxy: proxy?,
        admin: admin?,
        metrics: metrics?,
        allow_clients: allow_clients?.unwrap_or_default(),
        max_clients: max_clients?,
        head_timeout: head_timeout?,
    })
}

/// Can only one of two addresses be bound? Port 0 takes whatever is free, so it meets no other.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && (any || one.ip() == other.ip())
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}
