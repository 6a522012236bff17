//! The run of a plan in virtual time: events in their order, each handled by the core of its node and by the registry.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use super::lending::{LeaseEvent, Lending};
use super::node::{Asking, Decided, PlannedNode};
use super::registry::RegistryModel;
use super::scenario::{Pull, Scenario};
use super::tally::{ClassTally, Tally};
use super::timeline::Levels;
use crate::admission::{Lane, Moment, Place, SlotEvent, SlotId, SlotState, SlotUse};

/// Round trips of a dial: one for TCP, two for TLS.
const ROUND_TRIPS_OF_A_DIAL: u32 = 3;
/// The pause before a request that failed is sent again, as the kubelet has it; it doubles up to the longest.
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);
/// Events between two looks at the one who watches.
const EVENTS_A_LOOK: u64 = 1024;

/// Runs the scenario to its end. `watch` is told how many requests were served, and says whether to go on; `None` if not.
pub fn simulate(scenario: &Scenario, watch: &mut dyn FnMut(usize) -> bool) -> Option<Tally> {
    let mut simulation = Simulation::new(scenario);
    let mut events = 0_u64;
    while let Some((now, event)) = simulation.next_event() {
        if now > scenario.horizon || simulation.is_over() {
            break;
        }
        if events.is_multiple_of(EVENTS_A_LOOK) && !watch(simulation.tally.served()) {
            return None;
        }
        events += 1;
        simulation.advance(now);
        simulation.handle(event, now);
    }
    watch(simulation.tally.served());
    simulation.tally.most_open = simulation.registry.most_open();
    Some(simulation.tally)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Start { pull: usize },
    Ask { request: usize },
    LosePatience { request: usize, place: Place },
    Connected { request: usize },
    Answered { request: usize },
    Transferred,
    Closed { node: usize, slot: SlotId },
    Tick { node: usize },
    Lease(LeaseEvent),
}

struct Simulation<'a> {
    scenario: &'a Scenario,
    events: BinaryHeap<Reverse<(Moment, u64, Event)>>,
    sequence: u64,
    nodes: Vec<PlannedNode>,
    lending: Option<Lending>,
    registry: RegistryModel,
    pulls: Vec<PullState>,
    requests: Vec<RequestState>,
    levels: Levels<usize>,
    tally: Tally,
    target: Arc<str>,
}

#[derive(Clone, Copy, Debug)]
struct PullState {
    small_left: usize,
    layers_left: usize,
    unfinished: usize,
}

#[derive(Debug)]
struct RequestState {
    pull: usize,
    lane: Lane,
    arrived: Moment,
    /// From its arrival to its last admission, pauses after refusals included.
    waited: Duration,
    slot: Option<SlotId>,
    backoff: Duration,
    overloaded: bool,
}

impl<'a> Simulation<'a> {
    fn new(scenario: &'a Scenario) -> Simulation<'a> {
        let mut simulation = Simulation {
            scenario,
            events: BinaryHeap::new(),
            sequence: 0,
            nodes: (0..scenario.nodes).map(|_| PlannedNode::new(scenario.limits.clone())).collect(),
            lending: (scenario.lease.as_ref())
                .map(|terms| Lending::new(scenario.nodes, terms, scenario.round_trip / 2)),
            registry: RegistryModel::new(scenario.bandwidth, scenario.stands),
            pulls: scenario.pulls.iter().map(PullState::new).collect(),
            requests: Vec::with_capacity(scenario.requests()),
            levels: Levels::default(),
            tally: Tally::new(scenario.classes.len()),
            target: "registry:443".into(),
        };
        for (pull, planned) in scenario.pulls.iter().enumerate() {
            simulation.at(planned.starts, Event::Start { pull });
        }
        if let Some(lending) = &simulation.lending {
            simulation.nodes.iter_mut().enumerate().for_each(|(at, node)| node.lend(lending.lent(at)));
        }
        simulation.plan_lending();
        simulation
    }

    fn at(&mut self, moment: Moment, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((moment, self.sequence, event)));
    }

    /// The next event; the end of a transfer moves with every other one, so it is asked for each time.
    fn next_event(&mut self) -> Option<(Moment, Event)> {
        let end = self.registry.next_end();
        match self.events.peek() {
            Some(Reverse((moment, _, _))) if end.is_none_or(|end| *moment < end) => {
                self.events.pop().map(|Reverse((moment, _, event))| (moment, event))
            }
            _ => end.map(|end| (end, Event::Transferred)),
        }
    }

    /// Leases are renewed for ever.
    fn is_over(&self) -> bool {
        self.lending.is_some() && self.tally.pulls.len() == self.scenario.pulls.len()
    }

    fn advance(&mut self, now: Moment) {
        self.levels.open = self.registry.open();
        self.tally.timeline.add(self.levels, now);
    }

    fn handle(&mut self, event: Event, now: Moment) {
        match event {
            Event::Start { pull } => self.start(pull, now),
            Event::Ask { request } => self.ask(request, now),
            Event::LosePatience { request, place } => {
                let node = self.node_of(request);
                if self.nodes[node].leave(place, now) {
                    self.levels.waiting -= 1;
                    self.tally_of(request).left += 1;
                    self.ask_later(request, now);
                    self.settle(node, now);
                }
            }
            Event::Connected { request } => {
                self.tell(request, SlotEvent::Established(SlotState::Active), now);
                self.serve(request, now);
            }
            Event::Answered { request } => {
                let bytes = self.pull(request).part(self.requests[request].lane).bytes;
                if self.requests[request].overloaded || !self.registry.start(request, bytes, now) {
                    self.end(request, now);
                }
            }
            Event::Transferred => {
                if let Some(request) = self.registry.end_next(now) {
                    self.end(request, now);
                }
            }
            Event::Closed { node, slot } => {
                self.registry.close();
                self.nodes[node].tell(slot, SlotEvent::Released, now);
                self.settle(node, now);
            }
            Event::Tick { node } => {
                if self.nodes[node].tick_at == Some(now) {
                    self.nodes[node].tick_at = None;
                    self.nodes[node].tick(now);
                    self.settle(node, now);
                }
            }
            Event::Lease(event) => {
                if let Some(node) = self.lending.as_mut().and_then(|lending| lending.happen(event, now)) {
                    self.settle(node, now);
                }
                self.plan_lending();
            }
        }
    }

    fn pull(&self, request: usize) -> &'a Pull {
        &self.scenario.pulls[self.requests[request].pull]
    }

    fn node_of(&self, request: usize) -> usize {
        self.pull(request).node
    }

    fn tally_of(&mut self, request: usize) -> &mut ClassTally {
        let pull = self.pull(request);
        self.tally.of(pull.class, pull.slot_use)
    }

    /// Sends the next requests of this pull: one small one, or as many layers as it asks for at once.
    fn start(&mut self, pull: usize, now: Moment) {
        let state = &mut self.pulls[pull];
        let (lane, count) = if state.small_left > 0 {
            state.small_left -= 1;
            (Lane::Small, 1)
        } else {
            let under_way = state.unfinished - state.layers_left;
            let count = self.scenario.pulls[pull].parallel.saturating_sub(under_way).min(state.layers_left);
            state.layers_left -= count;
            (Lane::Blob, count)
        };
        for _ in 0..count {
            self.requests.push(RequestState {
                pull,
                lane,
                arrived: now,
                waited: Duration::ZERO,
                slot: None,
                backoff: FIRST_BACKOFF,
                overloaded: false,
            });
            self.ask(self.requests.len() - 1, now);
        }
    }

    fn ask(&mut self, request: usize, now: Moment) {
        let pull = self.pull(request);
        let class = &self.scenario.classes[pull.class.0];
        let ask = Asking {
            client: pull.client.clone(),
            class: pull.class,
            lane: self.requests[request].lane,
            slot_use: pull.slot_use,
            queue_timeout: class.queue_timeout(pull.slot_use),
        };
        self.levels.waiting += 1;
        let place = self.nodes[pull.node].ask(request, &ask, &self.target, now);
        if let Some(patience) = class.puller.patience(pull.slot_use).filter(|patience| *patience < ask.queue_timeout) {
            self.at(now + patience, Event::LosePatience { request, place });
        }
        self.settle(pull.node, now);
    }

    /// The puller tries again after a pause.
    fn ask_later(&mut self, request: usize, now: Moment) {
        let backoff = self.requests[request].backoff;
        self.requests[request].backoff = (backoff * 2).min(LONGEST_BACKOFF);
        self.at(now + backoff, Event::Ask { request });
    }

    /// Does what the core of this node has decided, with the slots that it is lent, and arranges what comes next.
    fn settle(&mut self, node: usize, now: Moment) {
        self.carry_out(node, now);
        while let Some(lending) = &mut self.lending
            && lending.settle(node, self.nodes[node].usage(now), now)
        {
            self.nodes[node].look_again(now);
            self.carry_out(node, now);
        }
        if let Some(lending) = &mut self.lending {
            lending.speak(node, now);
            self.plan_lending();
        }
        let wake_at = self.nodes[node].wake_at().map(|wake_at| wake_at.max(now));
        if let Some(wake_at) = wake_at
            && self.nodes[node].tick_at.is_none_or(|tick_at| wake_at < tick_at)
        {
            self.nodes[node].tick_at = Some(wake_at);
            self.at(wake_at, Event::Tick { node });
        }
    }

    fn plan_lending(&mut self) {
        for (moment, event) in self.lending.as_mut().map(Lending::take_due).unwrap_or_default() {
            self.at(moment, Event::Lease(event));
        }
    }

    fn carry_out(&mut self, node: usize, now: Moment) {
        while let Some(decided) = self.nodes[node].next_decision(now) {
            match decided {
                Decided::Dial(request, slot) => {
                    self.admit(request, slot, now);
                    self.registry.connect();
                    self.at(now + self.scenario.round_trip * ROUND_TRIPS_OF_A_DIAL, Event::Connected { request });
                }
                Decided::Reuse(request, slot) => {
                    self.admit(request, slot, now);
                    self.serve(request, now);
                }
                Decided::Refuse(request) => {
                    self.levels.waiting -= 1;
                    self.tally_of(request).refused += 1;
                    self.ask_later(request, now);
                }
                Decided::Close(slot) => self.at(now + self.scenario.round_trip, Event::Closed { node, slot }),
            }
        }
    }

    fn admit(&mut self, request: usize, slot: SlotId, now: Moment) {
        self.levels.waiting -= 1;
        self.levels.busy += 1;
        self.requests[request].slot = Some(slot);
        self.requests[request].waited = now.since(self.requests[request].arrived);
    }

    /// The request goes out on an open connection.
    fn serve(&mut self, request: usize, now: Moment) {
        self.requests[request].overloaded = self.registry.is_overloaded();
        let service = self.pull(request).part(self.requests[request].lane).service;
        self.at(now + service, Event::Answered { request });
    }

    /// The answer is over: a connection is kept, a tunnel closes, and the pull goes on.
    fn end(&mut self, request: usize, now: Moment) {
        self.levels.busy -= 1;
        let pull = self.pull(request);
        match pull.slot_use {
            SlotUse::Tunnel => {
                self.tell(request, SlotEvent::Entered(SlotState::Closing), now);
                if let Some(slot) = self.requests[request].slot {
                    self.at(now + self.scenario.round_trip, Event::Closed { node: pull.node, slot });
                }
            }
            SlotUse::Request | SlotUse::Pooled => self.tell(request, SlotEvent::Pooled(self.target.clone()), now),
        }
        if self.requests[request].overloaded {
            self.tally_of(request).overloaded += 1;
            self.ask_later(request, now);
        } else {
            self.finish(request, now);
        }
    }

    fn finish(&mut self, request: usize, now: Moment) {
        let index = self.requests[request].pull;
        let state = &mut self.pulls[index];
        state.unfinished -= 1;
        let is_over = state.unfinished == 0;
        let waited = self.requests[request].waited;
        self.tally_of(request).waits.push(waited);
        self.tally.last_served = now;
        if is_over {
            self.tally.pulls.push(now.since(self.scenario.pulls[index].starts));
        } else {
            self.start(index, now);
        }
    }

    fn tell(&mut self, request: usize, event: SlotEvent, now: Moment) {
        let node = self.node_of(request);
        if let Some(slot) = self.requests[request].slot {
            self.nodes[node].tell(slot, event, now);
            self.settle(node, now);
        }
    }
}

impl PullState {
    fn new(pull: &Pull) -> PullState {
        PullState { small_left: pull.small.count, layers_left: pull.layers.count, unfinished: pull.requests() }
    }
}
