//! Names to addresses, through the system's resolver, remembered for a while.
//!
//! One lookup at a time for each name, however many ask; it goes on when those who asked have left, and what it finds is
//! remembered. A name that was resolved before never waits for long: when its answer is stale and the resolver fails or is
//! silent, the last answer is used. A lookup holds a thread for as long as the resolver is silent, so lookups of names that
//! were never resolved are bounded: for each `*.suffix` of `hosts`, and for all other hosts.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::target::{Host, HostPattern};

/// How long an answer is used without asking again.
const FRESH: Duration = Duration::from_secs(30);
/// How long a failure is passed on, or bridged with an older answer, before asking again.
const FAILED: Duration = Duration::from_secs(1);
/// How long the caller that finds an answer stale waits for a new one. Callers after it do not wait.
const STALE_PATIENCE: Duration = Duration::from_millis(200);
/// How long an address that a name gave is remembered as one of its own.
const LATELY: Duration = Duration::from_secs(60 * 60);
/// Addresses of one name that are remembered so.
const MAX_LATELY: usize = 256;
/// Names remembered beside those of `hosts`; beyond it those are forgotten that nobody asked for lately.
const MAX_NAMES: usize = 1024;
/// Lookups at once of names that were never resolved, for each suffix and for other hosts.
const MAX_LOOKUPS: usize = 32;
/// Lookups at once of names that were resolved before.
const MAX_REFRESHES: usize = 64;

#[derive(Debug)]
pub struct Resolver {
    /// The exact names of `hosts`: never forgotten, never kept waiting for a thread.
    listed: HashMap<String, Arc<Name>>,
    others: Mutex<HashMap<String, Arc<Name>>>,
    /// The suffixes of `hosts`, each with its threads.
    suffixes: Vec<(HostPattern, Arc<Semaphore>)>,
    /// The threads for names that `hosts` does not cover.
    unlisted: Arc<Semaphore>,
    /// The threads for names that were resolved before.
    refreshes: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Name {
    known: Mutex<Known>,
    /// Told at the end of each lookup.
    looked_up: Notify,
}

#[derive(Debug, Default)]
struct Known {
    addresses: Vec<IpAddr>,
    failure: Option<String>,
    good_until: Option<Instant>,
    is_asking: bool,
    /// All addresses that it gave, each with the last time.
    lately: Vec<(IpAddr, Instant)>,
}

#[derive(Clone, Debug, thiserror::Error)]
#[error("resolving {name}: {cause}")]
pub struct ResolveError {
    pub name: String,
    pub cause: String,
}

impl ResolveError {
    /// The resolver did not answer while there was time.
    pub fn silent(host: &Host) -> ResolveError {
        ResolveError { name: host.to_string(), cause: "the resolver did not answer in time".to_owned() }
    }
}

impl Resolver {
    /// A resolver that knows nothing yet, for registries with these `hosts`.
    pub fn new(hosts: impl Iterator<Item = HostPattern>) -> Resolver {
        let (mut listed, mut suffixes) = (HashMap::new(), Vec::new());
        for pattern in hosts {
            match pattern.exact_host() {
                Some(Host::Name(name)) => drop(listed.insert(name.clone(), Arc::default())),
                Some(Host::Ip(_)) => {}
                None => suffixes.push((pattern, Arc::new(Semaphore::new(MAX_LOOKUPS)))),
            }
        }
        Resolver {
            listed,
            others: Mutex::default(),
            suffixes,
            unlisted: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            refreshes: Arc::new(Semaphore::new(MAX_REFRESHES)),
        }
    }

    /// One for other `hosts`, that knows what `self` knows: it may be needed to bridge an outage.
    pub fn followed_by(&self, hosts: impl Iterator<Item = HostPattern>) -> Resolver {
        let mut next = Resolver::new(hosts);
        let mut known = self.others.lock().clone();
        known.extend(self.listed.clone());
        for (name, entry) in &mut next.listed {
            if let Some(before) = known.remove(name) {
                *entry = before;
            }
        }
        Resolver {
            others: Mutex::new(known),
            unlisted: self.unlisted.clone(),
            refreshes: self.refreshes.clone(),
            ..next
        }
    }

    /// The addresses of a host, in the resolver's order; never empty.
    /// Fails when the resolver fails and nothing is known from before.
    pub async fn resolve(&self, host: &Host) -> Result<Vec<IpAddr>, ResolveError> {
        match host {
            Host::Ip(ip) => Ok(vec![*ip]),
            Host::Name(name) => match self.at_hand(name) {
                Some(answer) => answer,
                // On the heap: what waits for a slot does not hold the room of what waits for a name.
                None => Box::pin(self.resolve_name(name, ask_system)).await,
            },
        }
    }

    /// The answer where nobody has to be asked: most requests wait for no name.
    fn at_hand(&self, name: &str) -> Option<Result<Vec<IpAddr>, ResolveError>> {
        let entry = self.listed.get(name).cloned().or_else(|| self.others.lock().get(name).cloned())?;
        let known = entry.known.lock();
        let answer = known.is_good(Instant::now()).then(|| known.answer())?;
        Some(answer.map_err(|cause| ResolveError { name: name.to_owned(), cause }))
    }

    /// The addresses that the names of this pattern gave lately.
    pub fn lately(&self, pattern: &HostPattern) -> Vec<IpAddr> {
        let others = self.others.lock();
        let names = self.listed.iter().chain(others.iter());
        let covered = names.filter(|(name, _)| pattern.covers_host(&Host::Name((*name).clone())));
        let since = Instant::now();
        covered.flat_map(|(_, name)| name.known.lock().lately(since)).collect()
    }

    async fn resolve_name<F>(&self, name: &str, ask: impl FnOnce(String) -> F) -> Result<Vec<IpAddr>, ResolveError>
    where
        F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        let entry = self.entry(name);
        let mut ask = Some(ask);
        loop {
            let mut looked_up = pin!(entry.looked_up.notified());
            looked_up.as_mut().enable();
            let (stale, is_asking) = {
                let known = entry.known.lock();
                if known.is_good(Instant::now()) {
                    return known.answer().map_err(|cause| ResolveError { name: name.to_owned(), cause });
                }
                (known.addresses.clone(), known.is_asking)
            };
            if is_asking && stale.is_empty() {
                looked_up.await;
                continue;
            }
            if is_asking {
                return Ok(stale);
            }
            let permit = tokio::select! {
                biased;
                permit = self.permit(name, &stale) => permit,
                // Another caller had it looked up meanwhile.
                () = looked_up.as_mut() => continue,
            };
            let Some(permit) = permit else { return Ok(stale) };
            if let Some(ask) = ask.take_if(|_| !std::mem::replace(&mut entry.known.lock().is_asking, true)) {
                // A task of its own: this caller may leave, and the answer is for all.
                let (entry, lookup) = (entry.clone(), ask(name.to_owned()));
                tokio::spawn(async move {
                    let answer = lookup.await;
                    drop(permit);
                    entry.known.lock().learn(answer);
                    entry.looked_up.notify_waiters();
                });
            }
            if !stale.is_empty() && timeout(STALE_PATIENCE, looked_up).await.is_err() {
                return Ok(stale);
            }
        }
    }

    /// The right to look up this name, which may have a stale answer. `None` if all threads for such names are busy: the
    /// stale answer is used.
    async fn permit(&self, name: &str, stale: &[IpAddr]) -> Option<Option<OwnedSemaphorePermit>> {
        if self.listed.contains_key(name) {
            return Some(None);
        }
        if !stale.is_empty() {
            return self.refreshes.clone().try_acquire_owned().ok().map(Some);
        }
        let host = Host::Name(name.to_owned());
        let suffix = self.suffixes.iter().find(|(suffix, _)| suffix.covers_host(&host));
        let threads = suffix.map_or(&self.unlisted, |(_, threads)| threads).clone();
        Some(Some(threads.acquire_owned().await.expect("these semaphores are never closed")))
    }

    fn entry(&self, name: &str) -> Arc<Name> {
        if let Some(listed) = self.listed.get(name) {
            return listed.clone();
        }
        let mut others = self.others.lock();
        if others.len() >= MAX_NAMES && !others.contains_key(name) {
            make_room(&mut others);
        }
        others.entry(name.to_owned()).or_default().clone()
    }
}

/// Forgets names that nobody waits for: those that were never resolved, and only if that is not enough, others.
fn make_room(names: &mut HashMap<String, Arc<Name>>) {
    let now = Instant::now();
    let is_used = |name: &Arc<Name>| Arc::strong_count(name) > 1;
    let is_resolved = |name: &Arc<Name>| !name.known.lock().addresses.is_empty();
    let many = names.values().filter(|name| is_resolved(name)).count() >= MAX_NAMES;
    names.retain(|_, name| is_used(name) || name.known.lock().is_good(now) || !many && is_resolved(name));
    if many && names.len() >= MAX_NAMES {
        names.retain(|_, name| is_used(name));
    }
}

impl Known {
    fn is_good(&self, now: Instant) -> bool {
        self.good_until.is_some_and(|until| now < until)
    }

    fn answer(&self) -> Result<Vec<IpAddr>, String> {
        let failed = self.failure.clone().filter(|_| self.addresses.is_empty());
        failed.map_or_else(|| Ok(self.addresses.clone()), Err)
    }

    fn learn(&mut self, answer: io::Result<Vec<IpAddr>>) {
        let now = Instant::now();
        let (failure, good_for) = match answer {
            Ok(addresses) if !addresses.is_empty() => {
                self.lately.retain(|(address, at)| !addresses.contains(address) && now - *at < LATELY);
                self.lately.extend(addresses.iter().map(|address| (*address, now)));
                let beyond = self.lately.len().saturating_sub(MAX_LATELY);
                self.lately.drain(..beyond);
                self.addresses = addresses;
                (None, FRESH)
            }
            Ok(_) => (Some("the resolver knows no address".to_owned()), FAILED),
            Err(error) => (Some(error.to_string()), FAILED),
        };
        self.failure = failure;
        self.good_until = Some(now + good_for);
        self.is_asking = false;
    }

    fn lately(&self, now: Instant) -> Vec<IpAddr> {
        self.lately.iter().filter(|(_, at)| now - *at < LATELY).map(|(address, _)| *address).collect()
    }
}

/// Asks the system's resolver, on a thread that may be busy for long.
async fn ask_system(name: String) -> io::Result<Vec<IpAddr>> {
    let asking = tokio::task::spawn_blocking(move || {
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

    impl Resolver {
        /// As if the system's resolver kept silent about this name for as long as the guard lives.
        pub(crate) fn silence(&self, name: &str) -> impl Drop + use<> {
            struct Silence(Arc<Name>);
            impl Drop for Silence {
                fn drop(&mut self) {
                    self.0.known.lock().is_asking = false;
                    self.0.looked_up.notify_waiters();
                }
            }
            let name = self.entry(name);
            name.known.lock().is_asking = true;
            Silence(name)
        }
    }

    const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    fn hosts(patterns: &[&str]) -> std::vec::IntoIter<HostPattern> {
        patterns.iter().map(|pattern| HostPattern::parse(pattern).unwrap()).collect::<Vec<_>>().into_iter()
    }

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
        let before = Resolver::new(hosts(&["a", "b"]));
        for name in ["a", "b", "c"] {
            assert_eq!(before.resolve_name(name, |_| answer(FIRST)).await.unwrap(), [FIRST]);
        }
        let after = before.followed_by(hosts(&["a", "c", "d"]));
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
        for number in 0..3 * MAX_NAMES {
            resolver.resolve_name(&format!("host-{number}"), |_| answer(FIRST)).await.unwrap();
        }
        assert!(resolver.others.lock().len() <= MAX_NAMES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_goes_on_when_who_asked_has_left() {
        let resolver = Resolver::new(hosts(&["a"]));
        let slow = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok(vec![FIRST])
        };
        assert!(timeout(Duration::from_secs(1), resolver.resolve_name("a", |_| slow)).await.is_err());
        assert_eq!(resolver.resolve_name("a", |_| failure()).await.unwrap(), [FIRST]);
    }

    /// 1,500 names that the resolver is silent about have a bounded part of its threads; a name that was resolved before
    /// waits behind none of them, and not for the resolver either.
    #[tokio::test(start_paused = true)]
    async fn names_that_never_resolve_keep_no_known_name_waiting() {
        let resolver = Arc::new(Resolver::new(hosts(&["listed.test", "*.suffix.test"])));
        let lookups = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let known = ["known.suffix.test", "known.other.test"];
        for name in known {
            assert_eq!(resolver.resolve_name(name, |_| answer(FIRST)).await.unwrap(), [FIRST]);
        }
        let mut asking = Vec::new();
        for number in 0..1500 {
            // Each is asked for twice.
            for _ in 0..2 {
                let (resolver, lookups) = (resolver.clone(), lookups.clone());
                asking.push(tokio::spawn(async move {
                    let name = format!("{number}.suffix.test");
                    let silent = |_| {
                        lookups.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        std::future::pending()
                    };
                    resolver.resolve_name(&name, silent).await
                }));
            }
        }
        tokio::time::sleep(FRESH).await;
        assert_eq!(lookups.load(std::sync::atomic::Ordering::Relaxed), MAX_LOOKUPS);
        let began = Instant::now();
        assert_eq!(resolver.resolve_name("listed.test", |_| answer(SECOND)).await.unwrap(), [SECOND]);
        assert_eq!(resolver.resolve_name("new.other.test", |_| answer(SECOND)).await.unwrap(), [SECOND]);
        assert_eq!(began.elapsed(), Duration::ZERO);
        // The resolver is silent: who finds the answer stale waits a moment, and those after it do not.
        for (name, patience) in [(known[0], STALE_PATIENCE), (known[0], Duration::ZERO), (known[1], STALE_PATIENCE)] {
            let began = Instant::now();
            assert_eq!(resolver.resolve_name(name, |_| std::future::pending()).await.unwrap(), [FIRST], "{name}");
            assert!(began.elapsed() <= patience + Duration::from_millis(1), "{name}: {:?}", began.elapsed());
        }
        // A lookup that nobody waits for any more is not begun.
        asking.iter().for_each(tokio::task::JoinHandle::abort);
        tokio::time::sleep(FRESH).await;
        assert_eq!(lookups.load(std::sync::atomic::Ordering::Relaxed), MAX_LOOKUPS);
    }

    #[tokio::test(start_paused = true)]
    async fn the_addresses_that_names_gave_lately_are_remembered() {
        let resolver = Resolver::new(hosts(&["a.test", "*.suffix.test"]));
        for (name, address) in [("a.test", FIRST), ("a.test", SECOND), ("b.suffix.test", FIRST)] {
            tokio::time::advance(FRESH).await;
            resolver.resolve_name(name, |_| answer(address)).await.unwrap();
        }
        let lately = |pattern: &str| resolver.lately(&HostPattern::parse(pattern).unwrap());
        assert_eq!(
            (lately("a.test"), lately("*.suffix.test"), lately("b.test")),
            (vec![FIRST, SECOND], vec![FIRST], vec![])
        );
        tokio::time::advance(LATELY).await;
        assert!(lately("a.test").is_empty());
    }

    #[test]
    fn an_ipv4_address_does_not_hide_in_an_ipv6_one() {
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(unique([mapped, FIRST, SECOND].into_iter()), [FIRST, SECOND]);
    }
}
