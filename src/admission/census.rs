//! Who waits and who holds, counted by class and by client: for people who look, not for decisions.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::queue::Queue;
use super::slots::Ledger;
use super::turns::Party;

/// All who wait or hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Slots that serve a request, by class.
    pub holding_by_class: Vec<usize>,
    /// The clients with the most requests, waiting and served.
    pub clients: Vec<ClientCount>,
    /// Clients beyond those.
    pub left_out: usize,
}

/// One client's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCount {
    /// Who it is.
    pub party: Party,
    /// Requests that wait.
    pub waiting: usize,
    /// Slots that serve its requests.
    pub holding: usize,
}

impl Census {
    /// Counts all, and names at most `most` clients: the greatest, ties by name.
    pub(super) fn take(queue: &Queue, ledger: &Ledger, classes: usize, most: usize) -> Census {
        let mut counts: HashMap<&Party, (usize, usize)> = HashMap::new();
        for waiter in queue.by_arrival() {
            counts.entry(&waiter.ask.party).or_default().0 += 1;
        }
        for tenant in ledger.entries().filter_map(|(_, entry)| entry.tenant.as_ref()) {
            counts.entry(&tenant.party).or_default().1 += 1;
        }
        let mut holding_by_class = vec![0; classes];
        for (party, (_, holding)) in &counts {
            holding_by_class[party.class.0] += holding;
        }
        let mut clients: Vec<ClientCount> = counts
            .into_iter()
            .map(|(party, (waiting, holding))| ClientCount { party: party.clone(), waiting, holding })
            .collect();
        clients.sort_by(|one, other| one.rank().cmp(&other.rank()));
        let left_out = clients.len().saturating_sub(most);
        clients.truncate(most);
        Census { holding_by_class, clients, left_out }
    }
}

impl ClientCount {
    fn rank(&self) -> (Reverse<usize>, &str, usize) {
        (Reverse(self.waiting + self.holding), &self.party.client, self.party.class.0)
    }
}
