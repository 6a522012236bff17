//! The checks between the tables of a file: classes, listeners, and things that only one table may have.

use std::fmt::Display;
use std::net::SocketAddr;

use super::model::{Config, OtherHosts, Service};
use super::reader::Section;
use crate::lease;
use crate::target::Origin;

/// Notes what does not hold between the tables.
pub(super) fn check(config: &Config, root: &mut Section<'_>) {
    check_claims_of_registries(config, root);
    check_claims_of_classes(config, root);
    check_listeners(config, root);
    lease::checks::check(config, root);
    for registry in &config.registries {
        let class = registry.mirror.as_ref().map(|mirror| &mirror.class);
        if let Some(class) = class.filter(|name| !config.classes.iter().any(|class| class.name == **name)) {
            let reason = format!("there is no table [classes.{class}]: add it, or name another class");
            root.problem(&format!("registries.{}.mirror.class", registry.name), reason);
        }
    }
}

/// Things that only one table may have, each with the path of its table.
struct Claims<T>(Vec<(T, String)>);

impl<T: PartialEq + Display> Claims<T> {
    /// Gives the things of a key to a table, and notes each that another table has.
    fn claim(&mut self, root: &mut Section<'_>, table: &str, key: &str, things: impl IntoIterator<Item = T>) {
        let key = format!("{table}.{key}");
        if !root.is_sound(&key) {
            return;
        }
        for (index, thing) in things.into_iter().enumerate() {
            if let Some((_, owner)) = self.0.iter().find(|(claimed, owner)| *claimed == thing && owner != table) {
                let reason = format!("{thing} is claimed by {owner} and by {table}: remove it from one of the two");
                root.problem_in(&key, index, reason);
            } else {
                self.0.push((thing, table.to_owned()));
            }
        }
    }
}

fn check_claims_of_registries(config: &Config, root: &mut Section<'_>) {
    let mut claims = Claims(Vec::new());
    for registry in &config.registries {
        let table = format!("registries.{}", registry.name);
        claims.claim(root, &table, "hosts", registry.hosts.iter().cloned());
        if let Some(mirror) = &registry.mirror {
            let public_urls = mirror.public_urls.iter().flatten();
            claims.claim(root, &table, "mirror.upstream", mirror.upstream.iter().map(Origin::pattern));
            claims.claim(root, &table, "mirror.public_urls", public_urls.map(Origin::pattern));
        }
    }
}

fn check_claims_of_classes(config: &Config, root: &mut Section<'_>) {
    let mut claims = Claims(Vec::new());
    for class in &config.classes {
        let table = format!("classes.{}", class.name);
        claims.claim(root, &table, "users", class.users.iter().cloned());
        // Beside `users` they only bind the names, and several classes may list the same ones.
        if class.users.is_empty() {
            claims.claim(root, &table, "uids", class.uids.iter().map(|uid| format!("uid {uid}")));
            claims.claim(
                root,
                &table,
                "addresses",
                class.addresses.iter().map(|range| format!("address range {range}")),
            );
        }
    }
}

/// Notes each listener that cannot be bound beside one before it, or that other machines could use without a list of
/// clients.
fn check_listeners(config: &Config, root: &mut Section<'_>) {
    let mut bound: Vec<_> = config.listeners().into_iter().map(|(service, at)| (service.key(), service, at)).collect();
    bound.retain(|(key, ..)| root.is_sound(key));
    let clients_are_listed = !config.listen.allow_clients.is_empty() || !root.is_sound("listen.allow_clients");
    for (index, (key, service, address)) in bound.iter().enumerate() {
        if let Some((other_key, _, other)) = bound[..index].iter().find(|(.., other)| collide(*address, *other)) {
            let reason = format!("{address} cannot be bound beside {other_key} = {other}: choose another port");
            root.problem(key, reason);
        }
        let serves_pullers = matches!(service, Service::Proxy | Service::Mirror(_));
        if serves_pullers && !clients_are_listed && !address.ip().to_canonical().is_loopback() {
            let is_open = *service == Service::Proxy && config.other_hosts == OtherHosts::Direct;
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

/// Can only one of two addresses be bound? Port 0 takes whatever is free, so it meets no other.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && (any || one.ip() == other.ip())
}
