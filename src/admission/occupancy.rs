//! Waiting requests and held slots, counted by class and by client. It is shown, and decides nothing.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::ledger::Ledger;
use super::queue::WaitQueue;
use super::request::{ClientId, Principal};

/// All requests that wait or hold a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Slots that serve a request, by class.
    pub holding_by_class: Vec<usize>,
    /// The clients with the most requests, waiting and served.
    pub clients: Vec<ClientCount>,
    /// Clients beyond those.
    pub left_out: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCount {
    pub principal: Principal,
    pub waiting: usize,
    pub holding: usize,
}

impl Occupancy {
    /// Counts all, and names at most `most` clients: the greatest, ties by name.
    pub(super) fn take(queue: &WaitQueue, ledger: &Ledger, classes: usize, most: usize) -> Occupancy {
        let mut counts: HashMap<&Principal, (usize, usize)> = HashMap::new();
        for waiter in queue.by_arrival() {
            counts.entry(&waiter.request.principal).or_default().0 += 1;
        }
        for occupant in ledger.entries().filter_map(|(_, entry)| entry.occupant.as_ref()) {
            counts.entry(&occupant.principal).or_default().1 += 1;
        }
        let mut holding_by_class = vec![0; classes];
        for (principal, (_, holding)) in &counts {
            holding_by_class[principal.class.0] += holding;
        }
        let mut clients: Vec<ClientCount> = counts
            .into_iter()
            .map(|(principal, (waiting, holding))| ClientCount { principal: principal.clone(), waiting, holding })
            .collect();
        clients.sort_by(|one, other| one.rank().cmp(&other.rank()));
        let left_out = clients.len().saturating_sub(most);
        clients.truncate(most);
        Occupancy { holding_by_class, clients, left_out }
    }
}

impl ClientCount {
    fn rank(&self) -> (Reverse<usize>, &ClientId, usize) {
        (Reverse(self.waiting + self.holding), &self.principal.client, self.principal.class.0)
    }
}
