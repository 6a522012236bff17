//! The limit beside a model of Harbor's database pool, in virtual time: many seeded runs with limits that change, others
//! that use the database too, and nodes that are broken.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use roadstead_test_support::{Random, scale};

use super::limit::{Limit, Signal, SlotLoad};
use crate::admission::Moment;

/// When the limit of the database changes, and when a run ends.
const CHANGE: u64 = 40_000;
const END: u64 = 110_000;
/// By then the nodes have found a limit that is lower than before, and one that is higher.
const FOUND: u64 = 10_000;
const RISEN: u64 = 60_000;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A request of a client ends, well or not.
    Ends {
        node: usize,
        client: usize,
        took: u64,
        good: bool,
    },
    /// A client asks again.
    Asks {
        node: usize,
        client: usize,
    },
    /// Others use the database more, or less.
    Others,
    Sample,
}

struct Node {
    limit: Limit,
    slots: usize,
    busy: usize,
    waiting: VecDeque<usize>,
    is_broken: bool,
    failures: Vec<u32>,
}

impl Node {
    fn in_force(&self) -> usize {
        self.limit.in_force().unwrap_or(usize::MAX).min(self.slots)
    }
}

/// One run: what the database can serve before and after the change, what others take of it, and the nodes.
struct World {
    random: Random,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    number: u64,
    now: u64,
    limits: [usize; 2],
    others: usize,
    at_database: usize,
    most_at_database: usize,
    nodes: Vec<Node>,
    answer_times: (u64, u64),
    /// Slots in force of the sound nodes, all together, and what the database had for them, every 100 ms.
    samples: Vec<(u64, usize, usize)>,
    /// Since when each node is at the floor, and the longest time of a sound one, if one was.
    at_floor: Vec<Option<u64>>,
    longest: Option<u64>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random::new(seed);
        let mut below = |end: u64| usize::try_from(random.below(end)).unwrap();
        let nodes = 1 + below(4);
        let limits = [8 * nodes + below(40), 8 * nodes + below(40)];
        let slots = (limits.iter().max().unwrap() * (11 + below(20)) / 10).div_ceil(nodes);
        let broken = below(3) == 0 && nodes > 1;
        let slowest = 20 + below(100) as u64;
        let nodes = (0..nodes).map(|node| Node {
            limit: Limit::new(1),
            slots,
            busy: 0,
            waiting: VecDeque::new(),
            is_broken: broken && node == 0,
            failures: vec![0; slots * 2],
        });
        World {
            at_floor: vec![None; nodes.len()],
            nodes: nodes.collect(),
            random,
            events: BinaryHeap::new(),
            number: 0,
            now: 0,
            limits,
            others: 0,
            at_database: 0,
            most_at_database: 0,
            answer_times: (slowest / 4, slowest),
            samples: Vec::new(),
            longest: None,
        }
    }

    fn run(mut self) -> World {
        for node in 0..self.nodes.len() {
            for client in 0..self.nodes[node].failures.len() {
                self.push(0, Event::Asks { node, client });
            }
        }
        self.push(0, Event::Others);
        self.push(0, Event::Sample);
        while let Some(Reverse((at, _, event))) = self.events.pop().filter(|next| next.0.0 < END) {
            self.now = at;
            self.happen(event);
        }
        self
    }

    fn push(&mut self, pause: u64, event: Event) {
        self.number += 1;
        self.events.push(Reverse((self.now + pause, self.number, event)));
    }

    fn between(&mut self, (least, most): (u64, u64)) -> u64 {
        least + self.random.below(most - least + 1)
    }

    fn limit(&self) -> usize {
        self.limits[usize::from(self.now >= CHANGE)]
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Asks { node, client } => {
                self.nodes[node].waiting.push_back(client);
                self.admit(node);
            }
            Event::Ends { node, client, took, good } => {
                let is_broken = self.nodes[node].is_broken;
                self.at_database -= usize::from(good);
                self.observe(node, took, good);
                self.nodes[node].busy -= 1;
                let failures = &mut self.nodes[node].failures[client];
                *failures = if good { 0 } else { *failures + 1 };
                let longest = 200 << (*failures).min(4);
                let pause = if good { 0 } else { self.between((longest / 4, longest / 2)) };
                self.push(pause, Event::Asks { node, client });
                assert!(!(good && is_broken));
                self.admit(node);
            }
            Event::Others => {
                let most = self.limit() as u64 / 10;
                self.others = usize::try_from(self.random.below(most + 1)).unwrap();
                self.push(5_000, Event::Others);
            }
            Event::Sample => {
                let sound = self.nodes.iter().filter(|node| !node.is_broken);
                let in_force = sound.map(Node::in_force).sum();
                self.samples.push((self.now, in_force, self.limit() - self.others));
                for (node, since) in self.nodes.iter().zip(&mut self.at_floor) {
                    let is_low = !node.is_broken && node.in_force() == 1;
                    *since = is_low.then(|| since.unwrap_or(self.now));
                    self.longest = self.longest.max(since.map(|since| self.now - since));
                }
                self.push(100, Event::Sample);
            }
        }
    }

    fn admit(&mut self, index: usize) {
        while self.nodes[index].busy < self.nodes[index].in_force()
            && let Some(client) = self.nodes[index].waiting.pop_front()
        {
            self.nodes[index].busy += 1;
            let good = !self.nodes[index].is_broken && self.at_database + self.others < self.limit();
            self.at_database += usize::from(good);
            self.most_at_database = self.most_at_database.max(self.at_database);
            let took = self.between(self.answer_times);
            // A refusal takes less time.
            let took = if good { took } else { self.between((1, took.max(1))) };
            self.push(took, Event::Ends { node: index, client, took, good });
        }
    }

    fn observe(&mut self, node: usize, took: u64, good: bool) {
        let now = Moment(Duration::from_millis(self.now));
        let node = &mut self.nodes[node];
        let load = SlotLoad { slots: node.slots, is_full: !node.waiting.is_empty() || node.busy >= node.in_force() };
        let took = Duration::from_millis(took);
        let observed = if good { Signal::Good(Some(took)) } else { Signal::Sign { subject: None } };
        node.limit.observe(observed, load, now);
    }

    fn sound(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| !node.is_broken)
    }

    /// Whether so many slots in force are too many, and too few, for what the database has room for. Each node counts whole slots.
    fn is_off(&self, in_force: usize, room: usize) -> (bool, bool) {
        let (nodes, all) = (self.sound().count(), self.sound().map(|node| node.slots).sum::<usize>());
        (in_force > room + nodes, (in_force + nodes) * 10 < room.min(all) * 8)
    }

    fn samples(&self, times: std::ops::Range<u64>) -> impl Iterator<Item = (u64, (bool, bool))> {
        let within = self.samples.iter().filter(move |(at, ..)| times.contains(at));
        within.map(|(at, in_force, room)| (*at, self.is_off(*in_force, *room)))
    }

    /// The parts of the samples in `times`, in thousandths, that are too many and too few for the database.
    fn off(&self, times: std::ops::Range<u64>) -> [usize; 2] {
        let samples: Vec<_> = self.samples(times).map(|(_, (many, few))| [many, few]).collect();
        [0, 1].map(|side| (samples.iter().filter(|off| off[side]).count() * 1000).div_ceil(samples.len()))
    }

    /// How long it takes from `change` on until the slots in force fit.
    fn found_after(&self, change: u64) -> u64 {
        let fits = self.samples(change..END).find(|(_, off)| *off == (false, false));
        fits.map_or(END, |(at, _)| at) - change
    }
}

/// CI runs 300 of the 10,000 seeds, fewer than the usual tenth: they take a few seconds, and all others minutes.
#[test]
fn the_slots_in_force_follow_the_limit_of_the_database() {
    let runs = scale(300, 10_000);
    let (mut bad, mut starved, mut single, mut longest, mut slowest) = (Vec::new(), Vec::new(), 0, 0, [0; 3]);
    for seed in 0..runs {
        let world = World::new(seed).run();
        let rises = usize::from(world.limits[1] > world.limits[0]);
        let bound = [FOUND, RISEN][rises];
        let begun = [(0, 0, FOUND), (1 + rises, CHANGE, bound)];
        for (kind, change, bound) in begun {
            let found = world.found_after(change);
            slowest[kind] = found.max(slowest[kind]);
            bad.extend((found > bound).then(|| format!("seed {seed}: found {found} ms after {change}")));
        }
        for (part, times) in [("before", FOUND..CHANGE), ("after", CHANGE + bound..END)] {
            let [many, few] = world.off(times);
            if many > 100 || few > 100 {
                bad.push(format!("seed {seed}, {part} the change: {many} thousandths too many, {few} too few"));
            }
        }
        starved.extend(world.sound().any(|node| node.in_force() == 1).then_some(seed));
        single += usize::from(world.longest.is_some());
        longest = longest.max(world.longest.unwrap_or(0));
    }
    let [first, lower, higher] = slowest;
    println!(
        "{runs} runs: the first limit is found within {first} ms, a lower one within {lower}, a higher one within {higher}; \
         {single} runs left a node with a single slot for a while, for {longest} ms at most"
    );
    assert!(bad.is_empty(), "{} of {runs} runs\n{}", bad.len(), bad[..bad.len().min(40)].join("\n"));
    // Nodes without a common store share what there is by chance. None of them is left with a single slot.
    assert!(starved.is_empty(), "a sound node is at the floor at the end of these runs: {starved:?}");
    assert!(longest < 30_000, "a sound node was at the floor for {longest} ms");
}

/// A single node, and more room than it and the others can use: it never has a reason.
#[test]
fn a_registry_with_room_for_all_lowers_nothing() {
    for seed in 0..scale(30, 1_000) {
        let mut world = World::new(seed);
        world.nodes.truncate(1);
        world.nodes[0].is_broken = false;
        let slots = world.nodes[0].slots;
        // Others take up to a tenth of the limit.
        world.limits = world.limits.map(|limit| limit + slots * 2);
        let world = world.run();
        let least = world.samples.iter().map(|(_, in_force, _)| *in_force).min();
        assert_eq!((least, world.nodes[0].limit.lowered()), (Some(slots), None), "seed {seed}");
        assert!(world.most_at_database == slots, "seed {seed}: {} at the database", world.most_at_database);
    }
}
