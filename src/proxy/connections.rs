//! The connections of clients: how many stand, and which one closes to make room for another client.
//!
//! Where no more may stand, one goes first that only lingers after its last answer. Then the client with the most loses the one
//! that has been idle for longest, if the newcomer is another client and has fewer. On an idle connection no request is under
//! way, and no byte of one has come.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use crate::admission::ClientId;
use crate::tcp;

#[derive(Debug, Default)]
pub struct ClientConnections(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    open: usize,
    owners: HashMap<ClientId, Owned>,
    /// The oldest first.
    lingering: BTreeMap<u64, CancellationToken>,
    next: u64,
}

#[derive(Debug, Default)]
struct Owned {
    open: usize,
    /// The longest idle first.
    idle: BTreeMap<u64, (Weak<Client>, CancellationToken)>,
}

/// One connection, counted while it stands.
#[derive(Debug)]
pub struct CountedClient {
    all: Arc<ClientConnections>,
    owner: ClientId,
    client: Weak<Client>,
    /// Its key among the idle or the lingering ones; 0 while a request is under way.
    idle: AtomicU64,
    closes: CancellationToken,
}

impl ClientConnections {
    /// Counts one more. It is busy.
    pub fn count(self: &Arc<Self>, owner: ClientId, client: &Arc<Client>) -> CountedClient {
        let mut book = self.0.lock();
        book.open += 1;
        book.owners.entry(owner.clone()).or_default().open += 1;
        let (idle, closes) = Default::default();
        CountedClient { all: self.clone(), owner, client: Arc::downgrade(client), idle, closes }
    }

    pub fn open(&self) -> usize {
        self.0.lock().open
    }
}

impl CountedClient {
    /// No request is under way, or one is.
    pub fn set_idle(&self, is_idle: bool) {
        let mut book = self.all.0.lock();
        book.next += 1;
        let next = if is_idle { book.next } else { 0 };
        let before = self.idle.swap(next, Ordering::Relaxed);
        let Some(owned) = book.owners.get_mut(&self.owner) else { return };
        owned.idle.remove(&before);
        if is_idle && !self.closes.is_cancelled() {
            owned.idle.insert(next, (self.client.clone(), self.closes.clone()));
        }
    }

    /// Its last answer was sent: it makes room first.
    pub fn lingers(&self) {
        let mut book = self.all.0.lock();
        book.next += 1;
        let next = book.next;
        self.idle.store(next, Ordering::Relaxed);
        book.lingering.insert(next, self.closes.clone());
    }

    /// Completes when the connection is to close for another client.
    pub async fn closes(&self) {
        self.closes.cancelled().await;
    }

    /// Closes one that lingers, or an idle one of the client that has the most, if that is another one with more than this one
    /// has. Whether there was one.
    pub fn make_room(&self) -> bool {
        let mut book = self.all.0.lock();
        if let Some((_, closes)) = book.lingering.pop_first() {
            closes.cancel();
            return true;
        }
        let own = book.owners.get(&self.owner).map_or(0, |owned| owned.open);
        let others = book.owners.iter_mut().filter(|(owner, owned)| **owner != self.owner && owned.open > own);
        let Some((_, greediest)) =
            others.filter(|(_, owned)| !owned.idle.is_empty()).max_by_key(|(_, owned)| owned.open)
        else {
            return false;
        };
        let rests = |client: &Weak<Client>| client.upgrade().is_some_and(|client| !tcp::has_unread(client.stream()));
        let oldest = greediest.idle.iter().find(|(_, (client, _))| rests(client)).map(|(key, _)| *key);
        let Some((_, closes)) = oldest.and_then(|key| greediest.idle.remove(&key)) else { return false };
        closes.cancel();
        true
    }
}

impl Drop for CountedClient {
    fn drop(&mut self) {
        let mut book = self.all.0.lock();
        book.open -= 1;
        book.lingering.remove(self.idle.get_mut());
        let Some(owned) = book.owners.get_mut(&self.owner) else { return };
        owned.open -= 1;
        owned.idle.remove(self.idle.get_mut());
        if owned.open == 0 {
            book.owners.remove(&self.owner);
        }
    }
}
