//! The nodes of one registry, and the choice of the node for the next connection.
//!
//! The node with the fewest open connections is chosen. A node that accepts no connection is left out, and tried again with
//! growing pauses, one connection at a time. Pooled connections move, few at a time, to a node that has fewer or is due for a
//! try: otherwise a node that comes back would get none while the connections to the others are reused. The gate's slots bound
//! all nodes together. The state of a node and its open connections outlive a list of nodes: a new list of the same registry
//! continues with them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use parking_lot::Mutex;

use crate::admission::{Moment, SlotId};
use crate::backoff::Backoff;
use crate::target::{Origin, Target};

/// The pauses before a node that refused is tried again.
const PROBE_PAUSES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

/// The pause between two connections that move from one node to another: a move costs a dial and a handshake.
const MOVE_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Cluster {
    origins: Vec<Origin>,
    /// The state of each, and of those that other lists of the same registry have.
    book: Arc<Mutex<Book>>,
}

#[derive(Debug, Default)]
struct Book {
    nodes: HashMap<Origin, Node>,
    /// When the next connection may move.
    next_move: Moment,
}

impl Book {
    fn node(&mut self, origin: &Origin) -> &mut Node {
        self.nodes.get_mut(origin).expect("a node is never forgotten")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NodePicture {
    /// Its URL, without a path.
    pub url: String,
    /// Sockets that are dialled or open.
    pub open: usize,
    /// Whether it takes connections.
    pub up: bool,
}

#[derive(Debug, Default)]
struct Node {
    open: usize,
    /// The slots of the open ones.
    slots: BTreeSet<SlotId>,
    /// Set while it is left out.
    out: Option<Out>,
    /// How often it was tried while it was out.
    probes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Out {
    /// When it may be tried again.
    due: Moment,
    failures: u32,
    /// The probe that tries it, by its number.
    probe: Option<u64>,
}

/// A connection to one node, counted while it is open.
#[derive(Debug)]
pub struct NodePermit {
    cluster: Arc<Cluster>,
    index: usize,
    /// The number of its probe, if it was taken to try a node that was out. The probe ends with its outcome; the socket
    /// may live on for long, and then others try.
    probe: Option<u64>,
    /// The slot of its socket, once there is one.
    slot: Option<SlotId>,
}

impl Cluster {
    pub fn new(origins: Vec<Origin>) -> Arc<Cluster> {
        Cluster::of(Arc::default(), origins)
    }

    /// A cluster of these nodes, which goes on with what is known of those that `self` has, too.
    pub fn followed_by(&self, origins: Vec<Origin>) -> Arc<Cluster> {
        Cluster::of(self.book.clone(), origins)
    }

    fn of(book: Arc<Mutex<Book>>, origins: Vec<Origin>) -> Arc<Cluster> {
        let cluster = Cluster { origins, book };
        for origin in &cluster.origins {
            cluster.book.lock().nodes.entry(origin.clone()).or_default();
        }
        Arc::new(cluster)
    }

    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Takes the node for the next connection from those at `candidates`, which are numbers of nodes: one that is due to be
    /// tried; of those that are in, the one with the fewest connections; where all are out, the one that is due first.
    /// `None`, and `is_full` is called, when no candidate has fewer connections than `most`.
    pub fn pick(
        self: &Arc<Cluster>,
        candidates: &[usize],
        most: Option<usize>,
        is_full: impl FnOnce(),
        now: Moment,
    ) -> Option<NodePermit> {
        let mut book = self.book.lock();
        let node = |index: usize| &book.nodes[&self.origins[index]];
        let with_room = candidates.iter().copied().filter(|index| most.is_none_or(|most| node(*index).open < most));
        let Some(index) = with_room.min_by_key(|index| node(*index).preference(now)) else {
            // Locked: no slot of a node comes back in between.
            is_full();
            return None;
        };
        let node = book.node(&self.origins[index]);
        node.open += 1;
        let probe = node.begin_probe();
        Some(NodePermit { cluster: self.clone(), index, probe, slot: None })
    }

    /// Whether a pooled connection to this node is to be closed for a new one, and counts that one: another node has fewer even
    /// with one more, or one is due to be tried and has fewer than `most`. `true` at most once in a while.
    pub fn begin_move(&self, index: usize, most: Option<usize>, now: Moment) -> bool {
        let mut book = self.book.lock();
        let node = |index: usize| &book.nodes[&self.origins[index]];
        let has_better = self.all().any(|other| !node(other).is_out() && node(other).open + 2 <= node(index).open);
        // A connection that moves away makes room at its own node.
        let has_room = |other: usize| most.is_none_or(|most| node(other).open < most + usize::from(other == index));
        let tries = self.all().any(|other| node(other).is_due(now) && has_room(other));
        if !has_better && !tries {
            return false;
        }
        let is_due = book.next_move <= now;
        if is_due {
            book.next_move = now + MOVE_PAUSE;
        }
        is_due
    }

    /// The name of this node cannot be resolved: it is left out. Returns whether it was in until now.
    pub fn leave_out(&self, index: usize, now: Moment) -> bool {
        let mut book = self.book.lock();
        let node = book.node(&self.origins[index]);
        node.may_be_dialled(now) && node.leave_out(now)
    }

    pub fn living(&self) -> usize {
        let book = self.book.lock();
        self.origins.iter().filter(|origin| !book.nodes[*origin].is_out()).count()
    }

    /// The nodes whose addresses are wanted: those that are in or due to be tried; where no node is in, all of them.
    pub fn wanted(&self, now: Moment) -> Vec<usize> {
        let book = self.book.lock();
        let node = |index: usize| &book.nodes[&self.origins[index]];
        let none_in = self.all().all(|index| node(index).is_out());
        self.all().filter(|index| none_in || node(*index).may_be_dialled(now)).collect()
    }

    pub fn node_at(&self, target: &Target) -> Option<usize> {
        self.origins.iter().position(|origin| origin.target == *target)
    }

    pub fn slots_of(&self, index: usize) -> Vec<SlotId> {
        self.book.lock().node(&self.origins[index]).slots.iter().copied().collect()
    }

    pub fn nodes(&self) -> Vec<NodePicture> {
        let book = self.book.lock();
        let picture = |origin: &Origin| {
            let node = &book.nodes[origin];
            NodePicture { url: origin.to_string(), open: node.open, up: !node.is_out() }
        };
        self.origins.iter().map(picture).collect()
    }

    fn all(&self) -> Range<usize> {
        0..self.origins.len()
    }
}

impl Node {
    /// The least is the best: one that is due to be tried, since the others' connections would keep it from ever being; then
    /// those that are in, by their connections; then by when they are due.
    fn preference(&self, now: Moment) -> (u8, Moment, usize) {
        match self.out {
            _ if self.is_due(now) => (0, Moment::default(), self.open),
            None => (1, Moment::default(), self.open),
            Some(out) => (2, out.due, self.open),
        }
    }

    fn is_out(&self) -> bool {
        self.out.is_some()
    }

    fn may_be_dialled(&self, now: Moment) -> bool {
        !self.is_out() || self.is_due(now)
    }

    fn is_due(&self, now: Moment) -> bool {
        self.out.is_some_and(|out| out.due <= now && out.probe.is_none())
    }

    /// Tries it, if it is out and nobody else does.
    fn begin_probe(&mut self) -> Option<u64> {
        let out = self.out.as_mut().filter(|out| out.probe.is_none())?;
        self.probes += 1;
        out.probe = Some(self.probes);
        out.probe
    }

    /// The state that this probe ends, while it is the one that tries.
    fn tried_by(&mut self, probe: Option<u64>) -> Option<&mut Out> {
        self.out.as_mut().filter(|out| probe.is_some() && out.probe == probe)
    }

    /// Leaves it out, longer each time. Returns whether it was in until now.
    fn leave_out(&mut self, now: Moment) -> bool {
        let failures = self.out.map_or(1, |out| out.failures.saturating_add(1));
        self.out.replace(Out { due: now + PROBE_PAUSES.after(failures), failures, probe: None }).is_none()
    }
}

impl NodePermit {
    pub fn index(&self) -> usize {
        self.index
    }

    pub fn lives_in(&mut self, slot: SlotId) {
        self.slot = Some(slot);
        self.on_page(|node| node.slots.insert(slot));
    }

    /// It accepted the connection. Returns whether it was out until now.
    pub fn dialled(&self) -> bool {
        self.on_page(|node| node.out.take().is_some())
    }

    /// It did not accept the connection: it is left out. Returns whether it was in until now.
    pub fn failed(&self, now: Moment) -> bool {
        // One outage, however many meet it that were dialled before.
        self.on_page(|node| (!node.is_out() || node.tried_by(self.probe).is_some()) && node.leave_out(now))
    }

    fn on_page<T>(&self, act: impl FnOnce(&mut Node) -> T) -> T {
        act(self.cluster.book.lock().node(&self.cluster.origins[self.index]))
    }
}

impl Drop for NodePermit {
    fn drop(&mut self) {
        self.on_page(|node| {
            node.open -= 1;
            if let Some(slot) = self.slot {
                node.slots.remove(&slot);
            }
            // The attempt may have ended without a result; then another one tries.
            if let Some(out) = node.tried_by(self.probe) {
                out.probe = None;
            }
        });
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

    fn pick(cluster: &Arc<Cluster>, now: Moment) -> NodePermit {
        let all: Vec<usize> = (0..cluster.origins().len()).collect();
        cluster.pick(&all, None, || (), now).unwrap()
    }

    #[test]
    fn connections_go_where_the_fewest_are() {
        let cluster = cluster(3);
        let mut permits: Vec<NodePermit> = (0..9).map(|_| pick(&cluster, at(0))).collect();
        assert_eq!(cluster.nodes().iter().map(|node| node.open).collect::<Vec<_>>(), [3, 3, 3]);
        permits.retain(|node_permit| node_permit.index() != 1);
        assert_eq!(pick(&cluster, at(0)).index(), 1);
    }

    #[test]
    fn one_that_refuses_is_left_out_and_tried_one_at_a_time_with_growing_pauses() {
        let cluster = cluster(2);
        let first = pick(&cluster, at(0));
        assert!(first.failed(at(0)) && first.index() == 0);
        drop(first);
        assert_eq!((cluster.living(), cluster.nodes()[0].up), (1, false));
        let held: Vec<NodePermit> = (0..5).map(|_| pick(&cluster, at(99))).collect();
        assert!(held.iter().all(|node_permit| node_permit.index() == 1));
        let probe = pick(&cluster, at(100));
        assert_eq!(probe.index(), 0, "its pause is over");
        assert_eq!(pick(&cluster, at(100)).index(), 1, "one at a time");
        assert!(!probe.failed(at(100)));
        drop(probe);
        assert_eq!(pick(&cluster, at(299)).index(), 1, "the next pause is twice as long");
        let probe = pick(&cluster, at(300));
        assert!(probe.index() == 0 && probe.dialled());
        assert_eq!(cluster.living(), 2);
    }

    #[test]
    fn an_outage_counts_once_however_many_dials_it_meets() {
        let cluster = cluster(2);
        let mut permits: Vec<NodePermit> = (0..16).map(|_| pick(&cluster, at(0))).collect();
        let changes =
            permits.iter().filter(|node_permit| node_permit.index() == 0 && node_permit.failed(at(0))).count();
        permits.retain(|node_permit| node_permit.index() == 1);
        assert_eq!(changes, 1);
        assert_eq!(pick(&cluster, at(100)).index(), 0, "the first pause is still the first");
    }

    #[test]
    fn no_node_takes_more_than_its_own_slots() {
        let cluster = cluster(2);
        let permits: Vec<NodePermit> = (0..9).filter_map(|_| cluster.pick(&[0, 1], Some(3), || (), at(0))).collect();
        assert_eq!(permits.len(), 6);
        assert_eq!(cluster.nodes().iter().map(|node| node.open).collect::<Vec<_>>(), [3, 3]);
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

    /// A socket lives on after its probe: in use, or held until the registry saw it go. Its end is no word on another probe.
    #[test]
    fn a_probe_that_is_over_lets_no_other_one_go() {
        let cluster = cluster(2);
        let _ = pick(&cluster, at(0)).failed(at(0));
        // One that failed after its connection stood is still held when the next pause is over.
        let held = pick(&cluster, at(100));
        assert!(!held.failed(at(100)));
        let probe = pick(&cluster, at(300));
        drop(held);
        assert!(probe.index() == 0 && pick(&cluster, at(300)).index() == 1, "one at a time");
        // One that succeeded carries requests until the node is gone again.
        assert!(probe.dialled());
        let _other = pick(&cluster, at(1000));
        assert!(pick(&cluster, at(1000)).failed(at(1000)));
        let late = pick(&cluster, at(1100));
        drop(probe);
        assert!(late.index() == 0 && pick(&cluster, at(1100)).index() == 1, "one at a time");
        // A faster probe took its place and was lost again.
        let faster = cluster.pick(&[0], None, || (), at(1100)).unwrap();
        assert!(faster.dialled() && faster.failed(at(1100)));
        let probe = pick(&cluster, at(1200));
        assert!(!late.failed(at(1200)));
        drop(late);
        assert!(probe.index() == 0 && pick(&cluster, at(1200)).index() == 1, "one at a time");
        drop(probe);
        assert_eq!(pick(&cluster, at(1200)).index(), 0, "the pause is that of the probe before");
    }

    #[test]
    fn kept_connections_move_to_a_node_that_comes_back_one_at_a_time_until_all_are_even() {
        let cluster = cluster(3);
        let first = pick(&cluster, at(0));
        assert!(first.failed(at(0)));
        drop(first);
        let mut permits: Vec<NodePermit> = (0..6).map(|_| pick(&cluster, at(0))).collect();
        assert!(!cluster.begin_move(1, None, at(99)), "there is no better place");
        let mut moves = 0;
        for step in 1..100 {
            let now = at(step * 100);
            let Some(leaves) =
                permits.iter().position(|node_permit| cluster.begin_move(node_permit.index(), None, now))
            else {
                break;
            };
            assert!(
                !permits.iter().any(|node_permit| cluster.begin_move(node_permit.index(), None, now)),
                "one at a time"
            );
            drop(permits.remove(leaves));
            permits.push(pick(&cluster, now));
            let _ = permits.last().unwrap().dialled();
            moves += 1;
        }
        assert_eq!(moves, 2);
        assert_eq!(cluster.nodes().iter().map(|node| node.open).collect::<Vec<_>>(), [2, 2, 2]);
    }

    /// One slot each: the only connection is closed to try the node that is out, as soon as a try is due.
    #[test]
    fn a_node_that_is_due_is_tried_though_the_others_have_no_connection_to_spare() {
        let cluster = cluster(2);
        let (held, lost) = (pick(&cluster, at(0)), pick(&cluster, at(0)));
        assert!(lost.index() == 1 && lost.failed(at(0)));
        drop(lost);
        assert!(!cluster.begin_move(0, Some(1), at(99)));
        assert!(cluster.begin_move(0, Some(1), at(100)));
        drop(held);
        let probe = cluster.pick(&[0, 1], Some(1), || (), at(100)).unwrap();
        assert_eq!(probe.index(), 1, "it is the one that is out, though the other one has none either");
        assert!(!probe.failed(at(100)));
        drop(probe);
        let held = cluster.pick(&[0, 1], Some(1), || (), at(100)).unwrap();
        assert_eq!(held.index(), 0);
        assert!(!cluster.begin_move(0, Some(1), at(299)), "its pauses grow, and with them those between moves");
        assert!(cluster.begin_move(0, Some(1), at(300)));
        drop(held);
        assert!(cluster.pick(&[0, 1], Some(1), || (), at(300)).unwrap().dialled());
    }

    /// Open connections at a node that is out fill it: connections of other nodes are not closed for it, its own are.
    #[test]
    fn a_full_node_that_is_due_is_tried_in_place_of_its_own_connection() {
        let cluster = cluster(2);
        let (_held, kept) = (pick(&cluster, at(0)), pick(&cluster, at(0)));
        assert!(kept.failed(at(0)));
        assert!(!cluster.begin_move(0, Some(1), at(100)));
        assert!(cluster.begin_move(1, Some(1), at(100)));
    }

    /// One slot in all moves to each node that comes back, and then stays where it is.
    #[test]
    fn one_connection_does_not_move_back_and_forth() {
        let cluster = cluster(2);
        let lost = pick(&cluster, at(0));
        assert!(lost.failed(at(0)));
        drop(lost);
        drop(pick(&cluster, at(50)));
        assert!(cluster.begin_move(1, None, at(100)));
        let moved = pick(&cluster, at(100));
        assert!(moved.index() == 0 && moved.dialled());
        assert!((2..1000).all(|step| !cluster.begin_move(0, None, at(step * 100))));
    }

    #[test]
    fn nothing_moves_to_a_node_whose_name_is_lost() {
        let cluster = cluster(2);
        assert!(cluster.leave_out(0, at(0)));
        let _permits: Vec<NodePermit> = (0..4).map(|_| pick(&cluster, at(0))).collect();
        assert!(!cluster.leave_out(0, at(50)), "its pause does not grow with each request");
        assert!(!cluster.begin_move(1, None, at(99)));
        assert!(cluster.begin_move(1, None, at(100)), "it is tried again");
    }

    #[test]
    fn another_list_goes_on_with_what_is_known_of_its_nodes() {
        let before = cluster(3);
        let permits: Vec<NodePermit> = (0..3).map(|_| pick(&before, at(0))).collect();
        assert!(permits[1].failed(at(0)));
        let origins = [&before.origins()[2..], &before.origins()[1..2], cluster(4).origins()[3..].as_ref()].concat();
        let after = before.followed_by(origins);
        let nodes = |cluster: &Cluster| cluster.nodes().iter().map(|node| (node.open, node.up)).collect::<Vec<_>>();
        assert_eq!(nodes(&after), [(1, true), (1, false), (0, true)]);
        assert_eq!(pick(&after, at(0)).index(), 2);
        drop(permits);
        assert_eq!(nodes(&after), [(0, true), (0, false), (0, true)]);
        assert!(pick(&after, at(100)).dialled() && before.living() == 3);
    }

    #[test]
    fn without_candidates_there_is_nothing_to_take() {
        assert!(cluster(2).pick(&[], None, || (), at(0)).is_none());
    }
}
