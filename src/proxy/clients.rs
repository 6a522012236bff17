//! The identity of a client, and its class.
//!
//! The client is the user name of the proxy URL; without one, its address. On loopback all addresses are alike, so there
//! it is the user that runs the process, as the kernel knows it.

use std::collections::HashMap;

use super::client::Client;
use super::credentials::user_name;
use crate::admission::{ClassId, Principal};

/// The classes, by the users that they list.
#[derive(Debug, Default)]
pub struct Classes {
    by_user: HashMap<String, ClassId>,
}

impl Classes {
    /// Classes in their order, each with its users; the first is `default`.
    pub fn new<'a>(classes: impl Iterator<Item = &'a [String]>) -> Classes {
        let by_user = classes
            .enumerate()
            .flat_map(|(index, users)| users.iter().map(move |user| (user.clone(), ClassId(index))))
            .collect();
        Classes { by_user }
    }

    /// The client of a request: from its Proxy-Authorization, else from the connection.
    #[must_use]
    pub fn principal(&self, proxy_authorization: Option<&[u8]>, client: &Client) -> Principal {
        let name = proxy_authorization.and_then(user_name).unwrap_or_else(|| anonymous(client));
        let class = self.by_user.get(&name).copied().unwrap_or_default();
        Principal { class, client: name.into() }
    }

    /// The client of a request, where all clients have one class.
    #[must_use]
    pub fn principal_of_class(&self, class: ClassId, client: &Client) -> Principal {
        Principal { class, client: anonymous(client).into() }
    }
}

fn anonymous(client: &Client) -> String {
    let ip = client.peer().ip().to_canonical();
    if ip.is_loopback()
        && let Some(uid) = client.uid()
    {
        return format!("uid:{uid}");
    }
    ip.to_string()
}
