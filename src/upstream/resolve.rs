//! Names to addresses, through the system's resolver, remembered for a while.
//!
//! One lookup at a time for each name, however many ask; it goes on when those who asked have left, and what it finds is
//! remembered. A failing resolver does not take away what was known: the last answer is used until there is a new one.
//! Names that no registry lists have a bounded part of the resolver's threads, so that they cannot keep it from those
//! that a registry lists.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, Semaphore};
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

/// Lookups at once of names that no registry lists. A silent resolver holds a thread for each.
const MOST_LOOKUPS: usize = 32;

/// A caching resolver.
#[derive(Debug)]
pub struct Resolver {
    /// Names of registries: never forgotten, never kept waiting for a thread.
    listed: HashMap<String, Name>,
    others: Mutex<HashMap<String, Name>>,
    threads: Arc<Semaphore>,
}

/// What is known of one name. The lock is held during a lookup: who comes meanwhile waits for its answer.
type Name = Arc<tokio::sync::Mutex<Known>>;

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

impl ResolveError {
    /// The resolver did not answer while there was time.
    #[must_use]
    pub fn silent(host: &Host) -> ResolveError {
        ResolveError { name: host.to_string(), cause: "the resolver did not answer in time".to_owned() }
    }
}

impl Resolver {
    /// As if the system's resolver kept silent about this name for as long as the guard lives.
    #[cfg(test)]
    pub(crate) async fn silence(&self, name: &str) -> impl Drop + use<> {
        self.entry(name).lock_owned().await
    }

    /// A resolver that knows nothing yet; `listed` are the names of registries.
    pub fn new(listed: impl Iterator<Item = String>) -> Resolver {
        Resolver {
            listed: listed.map(|name| (name, Name::default())).collect(),
            others: Mutex::default(),
            threads: Arc::new(Semaphore::new(MOST_LOOKUPS)),
        }
    }

    /// One for other `listed` names, that knows what `self` knows: it may be needed to bridge an outage.
    #[must_use]
    pub fn followed_by(&self, listed: impl Iterator<Item = String>) -> Resolver {
        let mut known = self.others.lock().unwrap_or_else(PoisonError::into_inner).clone();
        known.extend(self.listed.clone());
        let listed = listed.map(|name| {
            let entry = known.remove(&name).unwrap_or_default();
            (name, entry)
        });
        let listed = listed.collect();
        Resolver { listed, others: Mutex::new(known), threads: self.threads.clone() }
    }

    /// The addresses of a host, in the resolver's order; never empty.
    ///
    /// # Errors
    /// When the resolver fails and nothing is known from before.
    pub async fn resolve(&self, host: &Host) -> Result<Vec<IpAddr>, ResolveError> {
        match host {
            Host::V4(ip) => Ok(vec![IpAddr::V4(*ip)]),
            Host::V6(ip) => Ok(vec![IpAddr::V6(*ip)]),
            Host::Name(name) => {
                let threads = (!self.listed.contains_key(name)).then(|| self.threads.clone());
                self.resolve_name(name, |name| look_up(name, threads)).await
            }
        }
    }

    async fn resolve_name<F>(&self, name: &str, look_up: impl FnOnce(String) -> F) -> Result<Vec<IpAddr>, ResolveError>
    where
        F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        let mut known = self.entry(name).lock_owned().await;
        if known.good_until.is_none_or(|until| Instant::now() >= until) {
            known = refresh(known, look_up(name.to_owned())).await;
        }
        match &known.failure {
            Some(cause) if known.addresses.is_empty() => {
                Err(ResolveError { name: name.to_owned(), cause: cause.clone() })
            }
            _ => Ok(known.addresses.clone()),
        }
    }

    fn entry(&self, name: &str) -> Name {
        if let Some(listed) = self.listed.get(name) {
            return listed.clone();
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if others.len() >= MOST_NAMES && !others.contains_key(name) {
            others.retain(|_, entry| Arc::strong_count(entry) > 1 || is_fresh(entry));
            if others.len() >= MOST_NAMES {
                others.clear();
            }
        }
        others.entry(name.to_owned()).or_default().clone()
    }
}

fn is_fresh(name: &Name) -> bool {
    let known = name.try_lock();
    known.is_ok_and(|known| known.good_until.is_some_and(|until| Instant::now() < until))
}

/// Looks the name up in a task of its own: who asked first may leave, the answer is for all who ask.
async fn refresh(
    mut known: OwnedMutexGuard<Known>,
    lookup: impl Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
) -> OwnedMutexGuard<Known> {
    let task = tokio::spawn(async move {
        known.refresh(lookup).await;
        known
    });
    task.await.expect("a lookup does not panic, and is not aborted")
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

/// Asks the system's resolver, on a thread that may be busy for long: the permit goes with the thread, not with who
/// waits for it.
async fn look_up(name: String, threads: Option<Arc<Semaphore>>) -> io::Result<Vec<IpAddr>> {
    let permit = match threads {
        Some(threads) => Some(threads.acquire_owned().await.map_err(io::Error::other)?),
        None => None,
    };
    let asking = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        (name, 0).to_socket_addrs().map(|addresses| unique(addresses.map(|address| address.ip())))
    });
    asking.await.map_err(io::Error::other)?
}

/// Each address once, in the form in which it is compared: an IPv4 address is not hidden in an IPv6 one.
fn unique(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut unique = Vec::new();
    for address in addresses.map(|address| address.to_canonical()) {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    unique
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
        let resolver = Resolver::new(std::iter::empty());
        assert_eq!(resolver.resolve_name("a", |_| answer(FIRST)).await.unwrap(), [FIRST]);
        tokio::time::advance(FRESH.saturating_sub(Duration::from_millis(1))).await;
        assert_eq!(resolver.resolve_name("a", |_| answer(SECOND)).await.unwrap(), [FIRST]);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(resolver.resolve_name("a", |_| answer(SECOND)).await.unwrap(), [SECOND]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_or_silent_resolver_leaves_the_last_answer_in_use() {
        let resolver = Resolver::new(std::iter::empty());
        assert_eq!(resolver.resolve_name("a", |_| answer(FIRST)).await.unwrap(), [FIRST]);
        tokio::time::advance(FRESH).await;
        assert_eq!(resolver.resolve_name("a", |_| failure()).await.unwrap(), [FIRST]);
        tokio::time::advance(FAILED).await;
        assert_eq!(resolver.resolve_name("a", |_| std::future::pending()).await.unwrap(), [FIRST]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_is_known_to_the_resolver_of_another_config() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>().into_iter();
        let before = Resolver::new(names(&["a", "b"]));
        for name in ["a", "b", "c"] {
            assert_eq!(before.resolve_name(name, |_| answer(FIRST)).await.unwrap(), [FIRST]);
        }
        let after = before.followed_by(names(&["a", "c", "d"]));
        tokio::time::advance(FRESH).await;
        for name in ["a", "b", "c"] {
            assert_eq!(after.resolve_name(name, |_| failure()).await.unwrap(), [FIRST], "{name}");
        }
        assert!(after.resolve_name("d", |_| failure()).await.is_err());
        assert_eq!(after.listed.len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_shared_and_asked_again_after_a_second() {
        let resolver = Resolver::new(std::iter::empty());
        assert!(resolver.resolve_name("a", |_| failure()).await.is_err());
        assert!(resolver.resolve_name("a", |_| answer(FIRST)).await.is_err());
        tokio::time::advance(FAILED).await;
        assert_eq!(resolver.resolve_name("a", |_| answer(FIRST)).await.unwrap(), [FIRST]);
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_not_remembered_without_bound() {
        let resolver = Resolver::new(std::iter::empty());
        for number in 0..3 * MOST_NAMES {
            resolver.resolve_name(&format!("host-{number}"), |_| answer(FIRST)).await.unwrap();
        }
        assert!(resolver.others.lock().unwrap().len() <= MOST_NAMES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_goes_on_when_who_asked_has_left() {
        let resolver = Resolver::new(std::iter::once("a".to_owned()));
        let slow = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok(vec![FIRST])
        };
        assert!(timeout(Duration::from_secs(1), resolver.resolve_name("a", |_| slow)).await.is_err());
        assert_eq!(resolver.resolve_name("a", |_| failure()).await.unwrap(), [FIRST]);
    }

    #[test]
    fn an_ipv4_address_does_not_hide_in_an_ipv6_one() {
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(unique([mapped, FIRST, SECOND].into_iter()), [FIRST, SECOND]);
    }
}
