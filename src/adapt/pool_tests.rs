//! The slots in force of a whole fleet beside a model of Harbor's database pool, in virtual time: the store's model, the machines and the
//! counts of its nodes, of which some see tunnels only and one may be broken.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use roadstead_test_support::{Random, scale};

use super::limit::Signal;
use super::tally::FleetTally;
use super::{Cause, counts_once};
use crate::lease::message::{LeaseAnswer, LeasePush, LeaseRequest, Process, Times};
use crate::lease::node::{Borrower, FleetTerms, SlotUsage};
use crate::lease::store::{ServerRun, StoreModel};
use crate::metrics::Sign;

/// When the limit of the database changes, and when a run ends.
const CHANGE: u64 = 60_000;
const END: u64 = 150_000;
/// By then the fleet has found a limit that is lower than before, and one that is higher.
const FOUND: u64 = 10_000;
const RISEN: u64 = 60_000;
const DATABASE: Cause = Cause::Answer(Sign::DatabaseError);

enum Event {
    /// A request of a node arrives at the database.
    Arrives {
        node: usize,
    },
    /// A request of a client ends, well or not.
    Ends {
        node: usize,
        took: u64,
        good: bool,
    },
    Asks {
        node: usize,
    },
    Wakes {
        node: usize,
    },
    ToStore {
        node: usize,
        request: LeaseRequest,
    },
    Answered {
        node: usize,
        answer: LeaseAnswer,
    },
    Pushed {
        node: usize,
        push: LeasePush,
    },
    /// Others use the database more, or less.
    Others,
    Sample,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sight {
    All,
    Tunnels,
    /// Each of its requests is answered without the database.
    Cached,
    /// Each of its requests fails, and none reaches the database.
    Broken,
    /// Nobody may pull any more, as Harbor says to everybody.
    Denied,
}

struct Node {
    borrower: Borrower,
    tally: FleetTally,
    sight: Sight,
    busy: u64,
    waiting: u64,
    wakes: u64,
}

/// The number of nodes of each sort, the slots, and what the database can serve before and after the change.
struct Plan {
    nodes: Vec<Sight>,
    cap: u64,
    /// Slots of each node that are not lent, and do not yield. The cap is with them.
    floor: u64,
    limits: [u64; 2],
    /// The part of the limit that others take at most, in percent.
    others: u64,
    /// The part of the answers that are errors of the database without any load, in percent.
    errors: u64,
    /// At each node.
    clients: Vec<u64>,
    answer_times: (u64, u64),
}

struct World {
    random: Random,
    due: BinaryHeap<Reverse<(u64, u64)>>,
    events: std::collections::HashMap<u64, Event>,
    number: u64,
    now: u64,
    plan: Plan,
    store: StoreModel,
    nodes: Vec<Node>,
    others: u64,
    at_database: u64,
    requests: u64,
    /// Slots of the nodes that reach the database, those in force, and the room at the database, every 100 ms.
    samples: Vec<(u64, u64, u64, u64)>,
}

impl World {
    fn new(seed: u64, plan: Plan) -> World {
        let count = plan.nodes.len() as u64;
        let terms = FleetTerms {
            times: Times::default(),
            floor: plan.floor,
            pool: plan.cap - plan.floor * count,
            nodes: count,
        };
        let nodes = plan.nodes.iter().enumerate().map(|(number, sight)| Node {
            borrower: Borrower::new(Process { node: number.to_string(), instance: "i".to_owned() }, terms.clone()),
            tally: FleetTally::default(),
            sight: *sight,
            busy: 0,
            waiting: 0,
            wakes: u64::MAX,
        });
        let mut world = World {
            random: Random::new(seed),
            due: BinaryHeap::new(),
            events: std::collections::HashMap::new(),
            number: 0,
            now: 0,
            store: StoreModel::default(),
            nodes: nodes.collect(),
            others: 0,
            at_database: 0,
            requests: 0,
            samples: Vec::new(),
            plan,
        };
        world.store.init(world.server());
        world
    }

    fn run(mut self, end: u64) -> World {
        for node in 0..self.nodes.len() {
            for _ in 0..self.plan.clients[node] {
                let start = self.random.below(500);
                self.push(start, Event::Asks { node });
            }
        }
        self.push(0, Event::Others);
        self.push(0, Event::Sample);
        while let Some(Reverse((at, number))) = self.due.pop().filter(|next| next.0.0 < end) {
            self.now = at;
            let event = self.events.remove(&number).unwrap();
            self.happen(event);
        }
        self
    }

    fn push(&mut self, pause: u64, event: Event) {
        self.number += 1;
        self.due.push(Reverse((self.now + pause, self.number)));
        self.events.insert(self.number, event);
    }

    fn server(&self) -> ServerRun<'static> {
        ServerRun { run: "run", stamp: "first", time: self.now }
    }

    fn time(&self) -> Duration {
        Duration::from_millis(self.now)
    }

    fn limit(&self) -> u64 {
        self.plan.limits[usize::from(self.now >= CHANGE)]
    }

    fn in_force(&self) -> u64 {
        let (slots, floors) = (self.store.yielding.slots, self.plan.floor * self.nodes.len() as u64);
        if slots == 0 { self.plan.cap } else { (slots + 500) / 1000 + floors }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Asks { node } => {
                self.nodes[node].waiting += 1;
                self.drive(node);
            }
            Event::Ends { node, took, good } => {
                self.end(node, took, good);
                self.drive(node);
            }
            Event::Arrives { node } => self.arrive(node),
            Event::Wakes { node } => self.drive(node),
            Event::ToStore { node, request } => {
                self.requests += 1;
                let (answer, pushes) = self.store.ask(self.server(), &request);
                self.push(1, Event::Answered { node, answer: answer.unwrap() });
                for push in pushes {
                    let node = push.process.node.parse().unwrap();
                    self.push(1, Event::Pushed { node, push });
                }
            }
            Event::Answered { node, answer } => {
                let now = self.time();
                self.nodes[node].borrower.answer(&answer, now);
                self.drive(node);
            }
            Event::Pushed { node, push } => {
                self.nodes[node].borrower.push(&push);
                self.drive(node);
            }
            Event::Others => {
                let most = self.limit() * self.plan.others / 100;
                self.others = self.random.below(most + 1);
                self.push(5_000, Event::Others);
            }
            Event::Sample => {
                let reaches = self.nodes.iter().filter(|node| node.sight != Sight::Broken);
                let slots = reaches.map(|node| node.borrower.slots(self.time())).sum();
                self.samples.push((self.now, slots, self.in_force(), self.limit() - self.others));
                self.push(100, Event::Sample);
            }
        }
    }

    fn end(&mut self, number: usize, took: u64, good: bool) {
        let now = self.time();
        let node = &mut self.nodes[number];
        node.busy -= 1;
        let reaches = matches!(node.sight, Sight::All | Sight::Tunnels);
        self.at_database -= u64::from(good && reaches);
        let observed = match node.sight {
            Sight::Tunnels => None,
            Sight::Denied => counts_once(Cause::Answer(Sign::Ambiguous401)).map(|_| Signal::Sign { subject: None }),
            _ if good => Some(Signal::Good(Some(Duration::from_millis(took)))),
            _ => counts_once(DATABASE).map(|_| Signal::Sign { subject: None }),
        };
        if let Some(observed) = observed {
            node.tally.observe(observed, (!good).then_some(DATABASE), now);
        }
        let pause = if good { 0 } else { 50 + self.random.below(150) };
        self.push(pause, Event::Asks { node: number });
    }

    fn drive(&mut self, number: usize) {
        let now = self.time();
        let node = &mut self.nodes[number];
        let usage = |node: &Node| SlotUsage { open: node.busy, idle: 0, waiting: node.waiting };
        node.borrower.uses(usage(node));
        node.tally.hear(node.borrower.force(), None, now);
        node.borrower.sees(node.tally.signs());
        let slots = node.borrower.slots(now);
        while self.nodes[number].waiting > 0 && self.nodes[number].busy < slots {
            self.admit(number);
        }
        let node = &mut self.nodes[number];
        node.borrower.uses(usage(node));
        if let Some(mut request) = node.borrower.request(now) {
            request.evidence = node.borrower.on_leases(node.tally.take(now));
            request.evidence.floor = 1;
            self.push(1, Event::ToStore { node: number, request });
        }
        let node = &mut self.nodes[number];
        let wakes = u64::try_from(node.borrower.wake_at(now).as_millis()).unwrap_or(u64::MAX).max(self.now + 1);
        if wakes < u64::MAX && (wakes < node.wakes || node.wakes <= self.now) {
            node.wakes = wakes;
            let pause = wakes - self.now;
            self.push(pause, Event::Wakes { node: number });
        }
    }

    /// It is under way for a moment: the node that frees a place at the database is not always the next to have it.
    fn admit(&mut self, node: usize) {
        (self.nodes[node].waiting, self.nodes[node].busy) = (self.nodes[node].waiting - 1, self.nodes[node].busy + 1);
        let pause = 1 + self.random.below(4);
        self.push(pause, Event::Arrives { node });
    }

    fn arrive(&mut self, node: usize) {
        let (least, most) = self.plan.answer_times;
        let has_room = self.at_database + self.others < self.limit();
        let reaches = matches!(self.nodes[node].sight, Sight::All | Sight::Tunnels);
        let good = reaches && has_room && self.random.below(100) >= self.plan.errors;
        self.at_database += u64::from(good);
        let good = good || self.nodes[node].sight == Sight::Cached;
        let took = least + self.random.below(most - least + 1);
        // A refusal takes less time.
        let took = if good { took } else { 1 + self.random.below(took) };
        self.push(took, Event::Ends { node, took, good });
    }

    /// The percent of the samples in `times` that are a fifth too many and too few for the database.
    fn off(&self, times: std::ops::Range<u64>) -> (usize, usize) {
        let samples: Vec<_> = self.samples.iter().filter(|(at, ..)| times.contains(at)).collect();
        let part = |off: &dyn Fn(u64, u64, u64) -> bool| {
            let off = samples.iter().filter(|(_, slots, force, room)| off(*slots, *force, *room));
            off.count() * 100 / samples.len()
        };
        let many = part(&|slots, _, room| slots * 10 > room * 12 + 10);
        let few = part(&|_, force, room| (force + 1) * 10 < room.min(self.plan.cap) * 8);
        (many, few)
    }

    fn picture(&self) -> String {
        let each: Vec<String> =
            self.samples.iter().step_by(10).map(|(_, slots, force, room)| format!("{slots}/{force}/{room}")).collect();
        each.join(" ")
    }
}

fn random_plan(random: &mut Random) -> Plan {
    let count = 3 + random.below(18);
    let limits = [0, 1].map(|_| count + 8 + random.below(40));
    let cap = limits[0].max(limits[1]) * (11 + random.below(20)) / 10;
    let mut nodes = vec![Sight::All; usize::try_from(count).unwrap()];
    // Up to half of them see tunnels only, and one may be broken.
    let tunnels = usize::try_from(random.below(count / 2 + 1)).unwrap();
    nodes[..tunnels].fill(Sight::Tunnels);
    if random.below(3) == 0 {
        *nodes.last_mut().unwrap() = Sight::Broken;
    }
    let slowest = 20 + random.below(100);
    let clients = vec![2 * cap / count + 1; nodes.len()];
    let floor = u64::from(random.below(3) == 0);
    Plan { nodes, cap, floor, limits, others: 10, errors: 0, clients, answer_times: (slowest / 4, slowest) }
}

/// Nodes speak every 5 s, and what others use changes as often: not every run is followed so closely. CI runs 12 of the 10,000 seeds,
/// fewer than the usual tenth: each is a fleet with its store, and takes as long as many of a single node.
#[test]
fn the_pool_follows_the_limit_of_the_database() {
    let runs = scale(12, 10_000);
    let (mut bad, mut collapsed) = (Vec::new(), Vec::new());
    for seed in 0..runs {
        let mut random = Random::new(seed);
        let world = World::new(seed, random_plan(&mut random)).run(END);
        let limits = world.plan.limits;
        let begins = CHANGE + if limits[1] > limits[0] { RISEN } else { FOUND };
        let parts = [FOUND..CHANGE, begins..END].map(|times| world.off(times));
        let about = || format!("seed {seed}, {limits:?} of {}: {parts:?}: {}", world.plan.cap, world.picture());
        if parts.iter().any(|(many, few)| *many > 10 || *few > 10) {
            bad.push(about());
        }
        let least = world.samples.iter().filter(|(at, ..)| *at > FOUND).map(|(_, _, force, _)| *force).min();
        if least.unwrap() * 5 < limits[0].min(limits[1]) * 2 {
            collapsed.push(about());
        }
    }
    println!("{} of {runs} runs are off for more than a tenth of the time", bad.len());
    assert!(collapsed.is_empty(), "{} collapsed\n{}", collapsed.len(), collapsed[..collapsed.len().min(5)].join("\n"));
    assert!(bad.len() as u64 * 100 <= runs, "{} of {runs} runs\n{}", bad.len(), bad[..bad.len().min(5)].join("\n"));
}

fn twenty(sights: impl Fn(usize) -> Sight, limit: u64) -> Plan {
    let nodes = (0..20).map(sights).collect();
    Plan {
        nodes,
        cap: 60,
        floor: 0,
        limits: [limit; 2],
        others: 0,
        errors: 0,
        clients: vec![6; 20],
        answer_times: (20, 40),
    }
}

/// Each large registry has some.
#[test]
fn errors_without_a_load_do_not_keep_the_slots_low() {
    let world = World::new(1, Plan { limits: [18, 100], errors: 1, ..twenty(|_| Sight::All, 0) }).run(END);
    let risen = world.samples.iter().filter(|(at, ..)| *at > CHANGE + RISEN);
    assert!(risen.clone().count() > 0 && risen.clone().all(|(_, _, force, _)| *force > 50), "{}", world.picture());
}

/// One that has most slots is not the one that is ill.
#[test]
fn a_node_that_has_most_slots_is_heard_beside_one_that_has_few() {
    let nodes = || vec![Sight::All, Sight::Cached];
    let plan = || Plan { nodes: nodes(), clients: vec![120, 1], ..twenty(|_| Sight::All, 18) };
    for seed in 0..5 {
        let world = World::new(seed, plan()).run(CHANGE);
        let (many, few) = world.off(FOUND..CHANGE);
        assert!(many < 10 && few < 10, "{many} % too many, {few} % too few: {}", world.picture());
    }
}

/// They see no sign by themselves.
#[test]
fn nodes_that_see_tunnels_only_get_fewer_slots_with_the_others() {
    let world = World::new(1, twenty(|node| if node < 10 { Sight::Tunnels } else { Sight::All }, 18)).run(CHANGE);
    let tunnels = world.nodes[..10].iter().map(|node| node.borrower.slots(world.time())).sum::<u64>();
    assert!((5..=12).contains(&tunnels), "{tunnels} slots at nodes that see tunnels only");
    let (many, few) = world.off(FOUND..CHANGE);
    assert!(many < 10 && few < 10, "{many} % too many, {few} % too few: {}", world.picture());
}

#[test]
fn one_node_that_sees_signs_alone_lowers_nothing() {
    for seed in 0..5 {
        let world = World::new(seed, twenty(|node| if node == 7 { Sight::Broken } else { Sight::All }, 100)).run(END);
        assert!(world.samples.iter().all(|(_, _, force, _)| *force == 60), "{}", world.picture());
    }
}

/// A project that is gone, for ten minutes and at every node.
#[test]
fn a_denial_to_everybody_leaves_the_whole_pool_in_force() {
    let world = World::new(1, twenty(|_| Sight::Denied, 18)).run(600_000);
    assert!(world.samples.iter().all(|(_, _, force, _)| *force == 60), "{}", world.picture());
    assert!(world.samples.len() > 5_900);
}

/// The store hears of signs at once, and of nothing else more often than before.
#[test]
fn a_fleet_that_is_well_asks_the_store_no_more_often() {
    let well = World::new(1, twenty(|_| Sight::All, 100)).run(CHANGE);
    let requests = well.requests;
    // Each renews every 5 s, and a few times at the start.
    assert!(requests < 20 * (60 / 5 + 8), "{requests} requests to the store");
}
