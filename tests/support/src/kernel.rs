//! The kernel's own list of sockets toward a registry, sampled by a thread: the judge that no process can fool.
//!
//! It sees sockets in every state but `TIME_WAIT`, and those that belong to no process any more. One reading of the list
//! takes a while, so a socket that closes and one that opens meanwhile may both be in it. Only sockets that two
//! readings in a row have in common are counted: they were there, all at once, in the instant between the two.

mod diag;
mod table;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The pause between two readings.
const PAUSE: Duration = Duration::from_millis(1);

/// A thread that watches the sockets whose far end is one address.
///
/// Every connection to that address is counted, also those of the test's own process: tests that watch a registry do not
/// connect to it themselves.
#[derive(Debug)]
pub struct SocketWatch {
    signs: Arc<Signs>,
    thread: JoinHandle<Peak>,
}

/// The state that the watch shares with its thread.
#[derive(Debug, Default)]
struct Signs {
    over: AtomicBool,
    samples: AtomicUsize,
}

/// The largest counts of a watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peak {
    /// The most sockets at one instant.
    pub most: usize,
    /// Readings of the kernel's list; a judge that did not look proves nothing.
    pub samples: usize,
}

/// The kinds of sockets toward a registry that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum States {
    /// In every state but `TIME_WAIT`.
    Open,
    /// Only those whose handshake the registry has not answered.
    Dialling,
}

/// The identities of sockets, to compare two readings of the same list.
type Sockets = HashSet<u64>;

impl SocketWatch {
    /// Starts to watch.
    #[must_use]
    pub fn start(registry: SocketAddr) -> Self {
        Self::of(registry, States::Open)
    }

    /// Starts to watch dials alone: sockets whose handshake the registry has not answered yet.
    #[must_use]
    pub fn of_dials(registry: SocketAddr) -> Self {
        Self::of(registry, States::Dialling)
    }

    fn of(registry: SocketAddr, states: States) -> Self {
        let signs = Arc::new(Signs::default());
        let shared = signs.clone();
        let thread = std::thread::spawn(move || watch(registry, states, &shared));
        Self { signs, thread }
    }

    /// Readings so far.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.signs.samples.load(Ordering::Relaxed)
    }

    /// Ends the watch.
    ///
    /// # Panics
    /// When it never got to look, or the kernel's list could not be read.
    #[must_use]
    pub fn stop(self) -> Peak {
        self.signs.over.store(true, Ordering::Relaxed);
        let peak = self.thread.join().expect("the kernel's list can be read");
        assert!(peak.samples > 0, "the watch never looked");
        peak
    }
}

fn watch(registry: SocketAddr, states: States, signs: &Signs) -> Peak {
    let mut list = list_of(registry, states);
    let mut peak = Peak::default();
    let mut before = Sockets::new();
    // A socket counts when two readings show it. On a busy machine a short test is over before the second one.
    while !signs.over.load(Ordering::Relaxed) || peak.samples < 3 {
        let now = list();
        peak.most = peak.most.max(now.intersection(&before).count());
        peak.samples = signs.samples.fetch_add(1, Ordering::Relaxed) + 1;
        before = now;
        std::thread::sleep(PAUSE);
    }
    peak
}

/// How to read the list: by a question to the kernel, which knows what to leave out, or, where that is not to be had,
/// from the tables of all sockets, which takes ten times as long while a storm is on.
fn list_of(registry: SocketAddr, states: States) -> Box<dyn FnMut() -> Sockets> {
    match diag::Diag::open(registry, states) {
        Ok(mut diag) => Box::new(move || diag.sockets().expect("the kernel answers as before")),
        Err(_) => Box::new(move || table::sockets(registry, states)),
    }
}

/// An address as sockets of IPv6 have it.
fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StubRegistry, Wire, eventually, eventually_is};

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn the_watch_sees_sockets_that_stand_together() {
        let stub = StubRegistry::builder().start().await;
        let watch = SocketWatch::start(stub.address());
        let mut wires = Vec::new();
        for _ in 0..7 {
            wires.push(Wire::open(stub.address()).await.unwrap());
        }
        // One reading may be under way, and two more have all seven in common.
        let enough = watch.samples() + 3;
        eventually("two more readings", SOON, async || match watch.samples() {
            samples if samples >= enough => Ok(()),
            samples => Err(samples),
        })
        .await;
        assert_eq!(watch.stop().most, 7);
    }

    /// An orphan, a socket of IPv6 and one that was only half closed: both ways of reading the list see the same.
    #[tokio::test]
    async fn both_lists_show_the_same_sockets() {
        let stub = StubRegistry::raw(|connection| async move {
            std::future::pending::<()>().await;
            drop(connection);
        })
        .await;
        let address = stub.address();
        let mut half_closed = Wire::open(address).await.unwrap();
        half_closed.finish().await.unwrap();
        drop(Wire::open(address).await.unwrap());
        let mapped = SocketAddr::new(mapped(address.ip()).into(), address.port());
        let _kept = Wire::open(mapped).await.unwrap();
        eventually_is("three in the tables", SOON, 3, async || table::sockets(address, States::Open).len()).await;
        if let Ok(mut diag) = diag::Diag::open(address, States::Open) {
            eventually_is("three by question", SOON, 3, async || diag.sockets().unwrap().len()).await;
        }
        drop(half_closed);
    }
}
