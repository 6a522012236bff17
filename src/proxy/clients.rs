//! The identity of a client, and its class.
//!
//! A client is first what the kernel vouches for: on loopback the user that runs the process, else an address. The user name of
//! the proxy URL tells the clients of one such peer apart, and chooses a class where the config says so.

use std::collections::HashMap;
use std::net::IpAddr;

use super::client::Client;
use super::credentials::user_name;
use crate::admission::{ClassId, ClientId, Principal};
use crate::config::ClassConfig;

/// The classes, by whom they list.
#[derive(Debug, Default)]
pub struct Classes {
    all: Vec<ClassConfig>,
    by_user: HashMap<String, ClassId>,
}

/// The kernel's knowledge of a client.
#[derive(Clone, Copy, Debug)]
struct Peer {
    ip: IpAddr,
    /// On loopback, where all addresses are alike.
    uid: Option<u32>,
}

impl Classes {
    /// Classes in their order; the first is `default`.
    pub fn new(classes: impl Iterator<Item = ClassConfig>) -> Classes {
        let all: Vec<ClassConfig> = classes.collect();
        let users = |(index, class): (usize, &ClassConfig)| {
            class.users.iter().map(move |user| (user.clone(), ClassId(index))).collect::<Vec<_>>()
        };
        let by_user = all.iter().enumerate().flat_map(users).collect();
        Classes { all, by_user }
    }

    /// The client of a request: its peer, and the name in its Proxy-Authorization.
    pub fn principal(&self, proxy_authorization: Option<&[u8]>, client: &Client) -> Principal {
        let (peer, name) = (Peer::of(client), proxy_authorization.and_then(user_name));
        let class = self.class(name.as_deref(), peer);
        let of_peer = peer_of(client);
        let client = match name {
            Some(name) => ClientId::named(of_peer.peer(), name),
            None => of_peer,
        };
        Principal { class, client }
    }

    fn class(&self, name: Option<&str>, peer: Peer) -> ClassId {
        let of_name = name.and_then(|name| self.by_user.get(name)).copied();
        let is_free = |class: &ClassConfig| class.uids.is_empty() && class.addresses.is_empty();
        if let Some(class) = of_name
            && (is_free(&self.all[class.0]) || peer.range_in(&self.all[class.0]).is_some())
        {
            return class;
        }
        let without_names = self.all.iter().enumerate().filter(|(_, class)| class.users.is_empty());
        let matching = without_names.filter_map(|(index, class)| Some((peer.range_in(class)?, ClassId(index))));
        matching.max_by_key(|(range, _)| *range).map(|(_, class)| class).unwrap_or_default()
    }
}

/// A client by what the kernel vouches for.
pub fn peer_of(client: &Client) -> ClientId {
    client.identity(|| Peer::of(client).to_string().into())
}

/// A client by its address: it was turned away before anything was asked of the kernel, or cannot be understood.
pub fn by_address(client: &Client) -> ClientId {
    client.peer().ip().to_string().into()
}

impl Peer {
    fn of(client: &Client) -> Peer {
        let ip = client.peer().ip().to_canonical();
        Peer { ip, uid: if ip.is_loopback() { client.uid() } else { None } }
    }

    /// How long the longest range is by which this class lists the peer. A user is the longest.
    fn range_in(self, class: &ClassConfig) -> Option<u8> {
        let by_uid = self.uid.is_some_and(|uid| class.uids.contains(&uid)).then_some(u8::MAX);
        let ranges = class.addresses.iter().filter(|range| range.contains(&self.ip)).map(ipnet::IpNet::prefix_len);
        by_uid.or_else(|| ranges.max())
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.uid {
            Some(uid) => write!(f, "uid:{uid}"),
            None => self.ip.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name, a user or an address chooses a class; a name that is bound counts only from where it is bound to.
    #[test]
    fn the_class_follows_the_name_where_it_is_bound_and_else_the_peer() {
        let class = |users: &[&str], uids: &[u32], addresses: &[&str]| ClassConfig {
            users: users.iter().map(ToString::to_string).collect(),
            uids: uids.to_vec(),
            addresses: addresses.iter().map(|range| range.parse().unwrap()).collect(),
            ..ClassConfig::default()
        };
        let classes = Classes::new(
            [
                class(&[], &[], &[]),
                class(&["free"], &[], &[]),
                class(&["bound"], &[7], &["10.1.0.0/16"]),
                class(&[], &[8], &["10.0.0.0/8"]),
                class(&[], &[], &["10.2.0.0/16"]),
            ]
            .into_iter(),
        );
        let user = |uid| Peer { ip: "127.0.0.1".parse().unwrap(), uid: Some(uid) };
        let at = |ip: &str| Peer { ip: ip.parse().unwrap(), uid: None };
        for (name, peer, expected) in [
            (None, user(0), 0),
            (Some("unknown"), user(0), 0),
            (Some("free"), user(0), 1),
            (Some("free"), at("192.168.0.1"), 1),
            (Some("bound"), user(7), 2),
            (Some("bound"), at("10.1.2.3"), 2),
            (Some("bound"), user(0), 0),
            (Some("bound"), user(8), 3),
            (None, user(7), 0),
            (None, user(8), 3),
            (None, at("10.1.2.3"), 3),
            (None, at("10.2.0.1"), 4),
        ] {
            assert_eq!(classes.class(name, peer), ClassId(expected), "{name:?} {peer:?}");
        }
    }
}
