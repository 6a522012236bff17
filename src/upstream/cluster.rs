//! The nodes of one registry: which of them the next connection goes to.
//!
//! The one with the fewest open connections is taken. One that takes no connections is left out, and tried again with
//! growing pauses, one connection at a time. Kept connections move, few at a time, to a node that has fewer: without that,
//! one that comes back would get none as long as the others' are reused. Slots bound all of them together; that is the
//! gate's work.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::admission::Moment;
use crate::metrics::MemberGauges;
use crate::target::Origin;

/// The first pause after a node refused.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The pause between two connections that move from one node to another: a move costs a dial and a handshake.
const MOVE_PAUSE: Duration = Duration::from_millis(100);

/// The nodes, in the order of the config.
#[derive(Debug)]
pub struct Cluster {
    origins: Vec<Origin>,
    nodes: Mutex<Vec<Node>>,
    /// When the next connection may move.
    next_move: Mutex<Moment>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// Sockets that stand or are dialled.
    open: usize,
    /// Set while it is left out.
    out: Option<Out>,
}

#[derive(Clone, Copy, Debug)]
struct Out {
    /// When it may be tried again.
    due: Moment,
    /// How long it is left out if that fails.
    pause: Duration,
    /// Whether it is being tried.
    probing: bool,
}

/// A connection to one node, counted while it stands.
#[derive(Debug)]
pub struct Berth {
    cluster: Arc<Cluster>,
    index: usize,
    /// Whether it tries a node that is out.
    probes: bool,
}

impl Cluster {
    /// A cluster of these nodes, none of which was tried yet.
    #[must_use]
    pub fn new(origins: Vec<Origin>) -> Arc<Cluster> {
        let nodes = Mutex::new(vec![Node::default(); origins.len()]);
        Arc::new(Cluster { origins, nodes, next_move: Mutex::default() })
    }

    /// The nodes, in the order of the config.
    #[must_use]
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Takes the node for the next connection from those at `candidates`, which are numbers of nodes: of those that are
    /// in, or are due to be tried, the one with the fewest connections; where all are out, the one that is due first.
    /// `None` when no candidate has fewer connections than `most`.
    #[must_use]
    pub fn pick(self: &Arc<Cluster>, candidates: &[usize], most: Option<usize>, now: Moment) -> Option<Berth> {
        let mut nodes = self.lock();
        let with_room = candidates.iter().copied().filter(|index| most.is_none_or(|most| nodes[*index].open < most));
        let index = with_room.min_by_key(|index| nodes[*index].preference(now))?;
        let node = &mut nodes[index];
        node.open += 1;
        let probes = node.out.as_mut().is_some_and(|out| !std::mem::replace(&mut out.probing, true));
        Some(Berth { cluster: self.clone(), index, probes })
    }

    /// Whether a kept connection to this node should be given up for a new one, because another node has fewer even with
    /// one more. `true` at most once in a while.
    #[must_use]
    pub fn is_due_to_move(&self, index: usize, now: Moment) -> bool {
        let nodes = self.lock();
        let fewest = nodes.iter().filter(|node| node.may_be_dialled(now)).map(|node| node.open).min();
        if fewest.is_none_or(|fewest| nodes[index].open < fewest + 2) {
            return false;
        }
        let mut next = self.next_move.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = *next <= now;
        if is_due {
            *next = now + MOVE_PAUSE;
        }
        is_due
    }

    /// The name of this node cannot be resolved: it is left out. Tells whether it was in until now.
    #[must_use]
    pub fn is_lost(&self, index: usize, now: Moment) -> bool {
        let node = &mut self.lock()[index];
        node.may_be_dialled(now) && node.leave_out(now)
    }

    /// How many nodes are in.
    #[must_use]
    pub fn living(&self) -> usize {
        self.lock().iter().filter(|node| node.out.is_none()).count()
    }

    /// What each node is doing.
    #[must_use]
    pub fn gauges(&self) -> Vec<MemberGauges> {
        let nodes = self.lock();
        let gauge = |(origin, node): (&Origin, &Node)| MemberGauges {
            url: origin.to_string(),
            open: node.open,
            up: node.out.is_none(),
        };
        self.origins.iter().zip(nodes.iter()).map(gauge).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// The least is the best: those that are in or due to be tried, by their connections; then by when they are due.
    fn preference(&self, now: Moment) -> (bool, Moment, usize) {
        match self.out {
            Some(out) if !self.may_be_dialled(now) => (true, out.due, self.open),
            _ => (false, Moment::default(), self.open),
        }
    }

    /// Whether it is in, or due to be tried.
    fn may_be_dialled(&self, now: Moment) -> bool {
        self.out.is_none_or(|out| out.due <= now && !out.probing)
    }

    /// Leaves it out, longer each time. Tells whether it was in until now.
    fn leave_out(&mut self, now: Moment) -> bool {
        let pause = self.out.map_or(FIRST_PAUSE, |out| (out.pause * 2).min(LONGEST_PAUSE));
        self.out.replace(Out { due: now + pause, pause, probing: false }).is_none()
    }
}

impl Berth {
    /// The node.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.cluster.origins[self.index]
    }

    /// Its number.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// It took the connection. Tells whether it was out until now.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.cluster.lock()[self.index].out.take().is_some()
    }

    /// It did not take the connection: it is left out. Tells whether it was in until now.
    #[must_use]
    pub fn failed(&self, now: Moment) -> bool {
        let node = &mut self.cluster.lock()[self.index];
        // One outage, however many meet it that were dialled before.
        (node.out.is_none() || self.probes) && node.leave_out(now)
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        let node = &mut self.cluster.lock()[self.index];
        node.open -= 1;
        // Whoever tried it may have given up; then somebody else tries.
        if self.probes
            && let Some(out) = &mut node.out
        {
            out.probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(nodes: usize) -> Arc<Cluster> {
        Cluster::new((0..nodes).map(|node| Origin::parse(&format!("https://node{node}x")).unwrap()).collect())
    }

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    fn pick(cluster: &Arc<Cluster>, now: Moment) -> Berth {
        let all: Vec<usize> = (0..cluster.origins().len()).collect();
        cluster.pick(&all, None, now).unwrap()
    }

    #[test]
    fn connections_go_where_the_fewest_are() {
        let cluster = cluster(3);
        let mut berths: Vec<Berth> = (0..9).map(|_| pick(&cluster, at(0))).collect();
        assert_eq!(cluster.gauges().iter().map(|node| node.open).collect::<Vec<_>>(), [3, 3, 3]);
        berths.retain(|berth| berth.index() != 1);
        assert_eq!(pick(&cluster, at(0)).index(), 1);
    }

    #[test]
    fn one_that_refuses_is_left_out_and_tried_one_at_a_time_with_growing_pauses() {
        let cluster = cluster(2);
        let first = pick(&cluster, at(0));
        assert!(first.failed(at(0)) && first.index() == 0);
        drop(first);
        assert_eq!((cluster.living(), cluster.gauges()[0].up), (1, false));
        let held: Vec<Berth> = (0..5).map(|_| pick(&cluster, at(99))).collect();
        assert!(held.iter().all(|berth| berth.index() == 1));
        let probe = pick(&cluster, at(100));
        assert_eq!(probe.index(), 0, "its pause is over");
        assert_eq!(pick(&cluster, at(100)).index(), 1, "one at a time");
        assert!(!probe.failed(at(100)));
        drop(probe);
        assert_eq!(pick(&cluster, at(299)).index(), 1, "the next pause is twice as long");
        let probe = pick(&cluster, at(300));
        assert!(probe.index() == 0 && probe.stands());
        assert_eq!(cluster.living(), 2);
    }

    #[test]
    fn an_outage_counts_once_however_many_dials_it_meets() {
        let cluster = cluster(2);
        let mut berths: Vec<Berth> = (0..16).map(|_| pick(&cluster, at(0))).collect();
        let changes = berths.iter().filter(|berth| berth.index() == 0 && berth.failed(at(0))).count();
        berths.retain(|berth| berth.index() == 1);
        assert_eq!(changes, 1);
        assert_eq!(pick(&cluster, at(100)).index(), 0, "the first pause is still the first");
    }

    #[test]
    fn no_node_takes_more_than_its_own_slots() {
        let cluster = cluster(2);
        let berths: Vec<Berth> = (0..9).filter_map(|_| cluster.pick(&[0, 1], Some(3), at(0))).collect();
        assert_eq!(berths.len(), 6);
        assert_eq!(cluster.gauges().iter().map(|node| node.open).collect::<Vec<_>>(), [3, 3]);
    }

    #[test]
    fn where_all_are_out_the_one_that_is_due_first_is_tried() {
        let cluster = cluster(2);
        let (one, other) = (pick(&cluster, at(0)), pick(&cluster, at(0)));
        assert!(one.failed(at(50)) && other.failed(at(0)));
        let expected = other.index();
        drop((one, other));
        assert_eq!(pick(&cluster, at(60)).index(), expected);
    }

    #[test]
    fn a_probe_that_is_given_up_lets_another_one_go() {
        let cluster = cluster(2);
        let _ = pick(&cluster, at(0)).failed(at(0));
        drop(pick(&cluster, at(100)));
        assert_eq!(pick(&cluster, at(100)).index(), 0);
    }

    #[test]
    fn kept_connections_move_to_a_node_that_comes_back_one_at_a_time_until_all_are_even() {
        let cluster = cluster(3);
        let first = pick(&cluster, at(0));
        assert!(first.failed(at(0)));
        drop(first);
        let mut berths: Vec<Berth> = (0..6).map(|_| pick(&cluster, at(0))).collect();
        assert!(!cluster.is_due_to_move(1, at(99)), "there is no better place");
        let mut moves = 0;
        for step in 1..100 {
            let now = at(step * 100);
            let Some(leaves) = berths.iter().position(|berth| cluster.is_due_to_move(berth.index(), now)) else {
                break;
            };
            assert!(!berths.iter().any(|berth| cluster.is_due_to_move(berth.index(), now)), "one at a time");
            drop(berths.remove(leaves));
            berths.push(pick(&cluster, now));
            let _ = berths.last().unwrap().stands();
            moves += 1;
        }
        assert_eq!(moves, 2);
        assert_eq!(cluster.gauges().iter().map(|node| node.open).collect::<Vec<_>>(), [2, 2, 2]);
    }

    #[test]
    fn nothing_moves_to_a_node_whose_name_is_lost() {
        let cluster = cluster(2);
        assert!(cluster.is_lost(0, at(0)));
        let _berths: Vec<Berth> = (0..4).map(|_| pick(&cluster, at(0))).collect();
        assert!(!cluster.is_lost(0, at(50)), "its pause does not grow by each who asks");
        assert!(!cluster.is_due_to_move(1, at(99)));
        assert!(cluster.is_due_to_move(1, at(100)), "it is tried again");
    }

    #[test]
    fn without_candidates_there_is_nothing_to_take() {
        assert!(cluster(2).pick(&[], None, at(0)).is_none());
    }
}
