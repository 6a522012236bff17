//! Names to addresses, through the system's resolver, remembered for a while.
//!
//! One lookup at a time for each name, however many ask. A failing resolver does not take away what was known: the last
//! answer is used until there is a new one.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::target::Host;

/// How long an answer is used without asking again.
const FRESH: Duration = Duration::from_secs(30);
/// How long a failure is passed on, or bridged with an older answer, before asking again.
const FAILED: Duration = Duration::from_secs(1);
/// How long the resolver may take where an older answer could be used.
const PATIENCE_WITH_STALE: Duration = Duration::from_secs(2);
/// Names remembered; beyond it those are forgotten that nobody asked for lately.
const MOST_NAMES: usize = 1024;

/// A caching resolver.
#[derive(Debug, Default)]
pub struct Resolver {
    names: Mutex<HashMap<String, Arc<Name>>>,
}

/// What is known of one name. The lock is held during a lookup: who comes meanwhile waits for its answer.
#[derive(Debug, Default)]
struct Name(tokio::sync::Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    addresses: Vec<IpAddr>,
    failure: Option<String>,
    good_until: Option<Instant>,
}

/// A name that could not be resolved.
#[derive(Clone, Debug, thiserror::Error)]
#[error("resolving {name}: {cause}")]
pub struct ResolveError {
    /// The name.
    pub name: String,
    /// What the resolver said.
    pub cause: String,
}

impl Resolver {
    /// The addresses of a host, in the resolver's order; never empty.
    ///
    /// # Errors
    /// When the resolver fails and nothing is known from before.
    pub async fn resolve(&self, host: &Host) -> Result<Vec<IpAddr>, ResolveError> {
        match host {
            Host::V4(ip) => Ok(vec![IpAddr::V4(*ip)]),
            Host::V6(ip) => Ok(vec![IpAddr::V6(*ip)]),
            Host::Name(name) => self.resolve_name(name, lookup).await,
        }
    }

    async fn resolve_name<F>(&self, name: &str, look_up: impl FnOnce(String) -> F) -> Result<Vec<IpAddr>, ResolveError>
    where
        F: Future<Output = io::Result<Vec<IpAddr>>>,
    {
        let entry = self.entry(name);
        let mut known = entry.0.lock().await;
        if known.good_until.is_none_or(|until| Instant::now() >= until) {
            known.refresh(look_up(name.to_owned())).await;
        }
        match &known.failure {
            Some(cause) if known.addresses.is_empty() => {
                Err(ResolveError { name: name.to_owned(), cause: cause.clone() })
            }
            _ => Ok(known.addresses.clone()),
        }
    }

    fn entry(&self, name: &str) -> Arc<Name> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= MOST_NAMES && !names.contains_key(name) {
            names.retain(|_, entry| Arc::strong_count(entry) > 1 || entry.is_fresh());
            if names.len() >= MOST_NAMES {
                names.clear();
            }
        }
        names.entry(name.to_owned()).or_default().clone()
    }
}

impl Name {
    fn is_fresh(&self) -> bool {
        let known = self.0.try_lock();
        known.is_ok_and(|known| known.good_until.is_some_and(|until| Instant::now() < until))
    }
}

impl Known {
    async fn refresh(&mut self, lookup: impl Future<Output = io::Result<Vec<IpAddr>>>) {
        let answer = if self.addresses.is_empty() {
            lookup.await
        } else {
            timeout(PATIENCE_WITH_STALE, lookup).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        };
        let (failure, good_for) = match answer {
            Ok(addresses) if !addresses.is_empty() => {
                self.addresses = addresses;
                (None, FRESH)
            }
            Ok(_) => (Some("the resolver knows no address".to_owned()), FAILED),
            Err(error) => (Some(error.to_string()), FAILED),
        };
        self.failure = failure;
        self.good_until = Some(Instant::now() + good_for);
    }
}

async fn lookup(name: String) -> io::Result<Vec<IpAddr>> {
    let addresses = tokio::net::lookup_host((name, 0)).await?;
    let mut unique: Vec<IpAddr> = Vec::new();
    for address in addresses {
        if !unique.contains(&address.ip()) {
            unique.push(address.ip());
        }
    }
    Ok(unique)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    fn answer(address: IpAddr) -> std::future::Ready<io::Result<Vec<IpAddr>>> {
        std::future::ready(Ok(vec![address]))
    }

    fn failure() -> std::future::Ready<io::Result<Vec<IpAddr>>> {
        std::future::ready(Err(io::Error::other("no resolver")))
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_used_for_thirty_seconds_and_then_asked_for_anew() {
        let resolver = Resolver::default();
        assert_eq!(resolver.resolve_name("a", |_| answer(FIRST)).await.unwrap(), [FIRST]);
        tokio::time::advance(FRESH.saturating_sub(Duration::from_millis(1))).await;
        assert_eq!(resolver.resolve_name("a", |_| answer(SECOND)).await.unwrap(), [FIRST]);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(resolver.resolve_name("a", |_| answer(SECOND)).await.unwrap(), [SECOND]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_or_silent_resolver_leaves_the_last_answer_in_use() {
        let resolver = Resolver::default();
        assert_eq!(resolver.resolve_name("a", |_| answer(FIRST)).await.unwrap(), [FIRST]);
        tokio::time::advance(FRESH).await;
        assert_eq!(resolver.resolve_name("a", |_| failure()).await.unwrap(), [FIRST]);
        tokio::time::advance(FAILED).await;
        assert_eq!(resolver.resolve_name("a", |_| std::future::pending()).await.unwrap(), [FIRST]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_shared_and_asked_again_after_a_second() {
        let resolver = Resolver::default();
        assert!(resolver.resolve_name("a", |_| failure()).await.is_err());
        assert!(resolver.resolve_name("a", |_| answer(FIRST)).await.is_err());
        tokio::time::advance(FAILED).await;
        assert_eq!(resolver.resolve_name("a", |_| answer(FIRST)).await.unwrap(), [FIRST]);
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_not_remembered_without_bound() {
        let resolver = Resolver::default();
        for number in 0..3 * MOST_NAMES {
            resolver.resolve_name(&format!("host-{number}"), |_| answer(FIRST)).await.unwrap();
        }
        assert!(resolver.names.lock().unwrap().len() <= MOST_NAMES);
    }
}
