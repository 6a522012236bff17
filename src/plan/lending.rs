//! The leases of all nodes of a plan: the machine of each node, as the sidecar has it, and a model of the store that tests
//! prove equal to its script.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::admission::Moment;
use crate::lease::borrowed::Lent;
use crate::lease::message::{LeaseAnswer, LeasePush, LeaseRequest, Process};
use crate::lease::node::{Borrower, FleetTerms, SlotUsage};
use crate::lease::store::{ServerRun, StoreModel};

/// The store of a plan is never restarted.
fn server(clock: Duration) -> ServerRun<'static> {
    ServerRun { run: "plan", stamp: "0", time: u64::try_from(clock.as_millis()).unwrap_or(u64::MAX) }
}

/// Something that happens between the nodes and the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeaseEvent {
    /// This node has something to do.
    Wake { node: usize },
    /// The message with this number arrives.
    Arrival { message: u64 },
}

#[derive(Debug)]
enum Message {
    Request(usize, LeaseRequest),
    Answer(usize, LeaseAnswer),
    Push(usize, LeasePush),
}

#[derive(Debug)]
pub struct Lending {
    store: StoreModel,
    nodes: Vec<LendingNode>,
    /// Those on their way.
    messages: BTreeMap<u64, Message>,
    sent: u64,
    /// From a node to the store, or back.
    delay: Duration,
    /// The nodes have leases since before the plan begins: their clocks are ahead of it by so much.
    before: Duration,
    /// Events to come, for the one who runs the plan.
    due: Vec<(Moment, LeaseEvent)>,
}

#[derive(Debug)]
struct LendingNode {
    borrower: Borrower,
    lent: Arc<PlannedSlots>,
    wakes: Option<Moment>,
}

/// The slots that a node may use beside its floor. The store of a plan always answers.
#[derive(Debug, Default)]
struct PlannedSlots(AtomicUsize);

impl Lent for PlannedSlots {
    fn slots(&self) -> Option<usize> {
        Some(self.0.load(Ordering::Relaxed))
    }

    fn is_paused(&self) -> bool {
        false
    }
}

impl Lending {
    /// A fleet that has been idle for a while: each node renews its lease, one after the other.
    pub fn new(nodes: usize, terms: &FleetTerms, delay: Duration) -> Lending {
        let before = terms.times.renew;
        let mut store = StoreModel::default();
        store.init(server(Duration::ZERO));
        let mut all = Vec::new();
        for node in 0..nodes {
            let process = Process { node: node.to_string(), instance: "0".to_owned() };
            let mut borrower = Borrower::new(process, terms.clone());
            let now = before.mul_f64(super::timeline::real(node as u128) / super::timeline::real(nodes as u128));
            if let Some(request) = borrower.request(now)
                && let (Some(answer), _) = store.ask(server(now), &request)
            {
                borrower.answer(&answer, now);
            }
            all.push(LendingNode { borrower, lent: Arc::default(), wakes: None });
        }
        let mut lending =
            Lending { store, nodes: all, messages: BTreeMap::new(), sent: 0, delay, before, due: Vec::new() };
        for node in 0..nodes {
            lending.settle(node, SlotUsage::default(), Moment::default());
            lending.speak(node, Moment::default());
        }
        lending
    }

    /// The slots of this node, for its core.
    pub fn lent(&self, node: usize) -> Arc<dyn Lent> {
        self.nodes[node].lent.clone()
    }

    /// The node makes this use of its slots. Whether it may use others than before.
    pub fn settle(&mut self, node: usize, usage: SlotUsage, now: Moment) -> bool {
        let now = self.clock(now);
        let node = &mut self.nodes[node];
        node.borrower.uses(usage);
        node.show(now)
    }

    /// The node says what it has to say.
    pub fn speak(&mut self, node: usize, now: Moment) {
        let clock = self.clock(now);
        if let Some(request) = self.nodes[node].borrower.request(clock) {
            // A promise holds before it is said.
            self.nodes[node].show(clock);
            self.send(Message::Request(node, request), now);
        }
        let wakes = Moment(self.nodes[node].borrower.wake_at(clock).saturating_sub(self.before)).max(now);
        let planned = &mut self.nodes[node].wakes;
        if planned.is_none_or(|planned| planned <= now || wakes < planned) {
            *planned = Some(wakes);
            self.due.push((wakes, LeaseEvent::Wake { node }));
        }
    }

    /// The node at which something has changed by this event, if it is one.
    pub fn happen(&mut self, event: LeaseEvent, now: Moment) -> Option<usize> {
        let message = match event {
            LeaseEvent::Wake { node } => return Some(node),
            LeaseEvent::Arrival { message } => self.messages.remove(&message)?,
        };
        let clock = self.clock(now);
        match message {
            Message::Request(node, request) => {
                let (answer, pushes) = self.store.ask(server(clock), &request);
                if let Some(answer) = answer {
                    self.send(Message::Answer(node, answer), now);
                }
                for push in pushes {
                    if let Ok(node) = push.process.node.parse() {
                        self.send(Message::Push(node, push), now);
                    }
                }
                None
            }
            Message::Answer(node, answer) => {
                self.nodes[node].borrower.answer(&answer, clock);
                Some(node)
            }
            Message::Push(node, push) => {
                self.nodes[node].borrower.push(&push);
                Some(node)
            }
        }
    }

    /// Events that are to happen, since this was asked last.
    pub fn take_due(&mut self) -> Vec<(Moment, LeaseEvent)> {
        std::mem::take(&mut self.due)
    }

    fn send(&mut self, message: Message, now: Moment) {
        self.sent += 1;
        self.messages.insert(self.sent, message);
        self.due.push((now + self.delay, LeaseEvent::Arrival { message: self.sent }));
    }

    fn clock(&self, now: Moment) -> Duration {
        self.before + now.0
    }
}

impl LendingNode {
    /// Whether other slots are lent than before.
    fn show(&self, clock: Duration) -> bool {
        let slots = usize::try_from(self.borrower.leased_slots(clock).0).unwrap_or(usize::MAX);
        self.lent.0.swap(slots, Ordering::Relaxed) != slots
    }
}
