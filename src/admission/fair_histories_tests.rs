//! Random histories of the fair queue against a naive model, in virtual time. After each step the same request is next, and
//! the lag of each client that waits is bounded: when it begins to wait, by one grant. Cost is what passed while another client
//! waited, or while its client waited beside another that held a slot, and a client that waits is not passed for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::fair_round::{FairRound, GrantCharge};
use super::history_count;
use super::moment::Moment;

/// Steps of each history.
const STEPS: usize = 120;

const CLIENTS: usize = 5;

#[derive(Clone, Debug)]
enum Step {
    Wait(usize),
    Rest(usize),
    GrantNext,
    /// A grant that passes the others.
    Pass(usize),
    Settle(usize),
    Time(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..CLIENTS).prop_map(Step::Wait),
        1 => (0..CLIENTS).prop_map(Step::Rest),
        5 => Just(Step::GrantNext),
        1 => (0..CLIENTS).prop_map(Step::Pass),
        5 => any::<usize>().prop_map(Step::Settle),
        5 => (1..10_000_000_u64).prop_map(Step::Time),
    ];
    prop::collection::vec(step, STEPS)
}

/// The time that one client used, counted slot by slot and moment by moment.
struct Stay {
    client: usize,
    share: GrantCharge,
    cost: u64,
}

struct World {
    round: FairRound<usize, ()>,
    now: Moment,
    waiting: BTreeSet<usize>,
    stays: Vec<Stay>,
    weights: [u32; CLIENTS],
    /// Grants of each client since this one began to wait, while it waits.
    passed: BTreeMap<usize, BTreeMap<usize, usize>>,
    /// The cost of the dearest grant so far, and the most slots that were held.
    dearest: i128,
    most_held: usize,
}

impl World {
    fn new(weights: [u32; CLIENTS]) -> World {
        let (round, now, waiting, stays, passed) = Default::default();
        World { round, now, waiting, stays, weights, passed, dearest: 0, most_held: 0 }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Wait(client) => {
                self.round.inner(client);
                self.round.wait(client, self.now);
                if self.waiting.insert(*client) {
                    self.passed.insert(*client, BTreeMap::new());
                    assert!(self.round.is_at_most_one_quantum_ahead(client), "ahead by more than one grant");
                }
            }
            Step::Rest(client) if self.waiting.contains(client) => self.rest(*client),
            Step::GrantNext => {
                if let Some(client) = self.round.next_key() {
                    assert!(self.waiting.contains(&client), "one that does not wait is next");
                    self.grant(client, true);
                }
            }
            Step::Pass(client) if self.waiting.contains(client) => self.grant(*client, false),
            Step::Settle(pick) if !self.stays.is_empty() => {
                let stay = self.stays.swap_remove(pick % self.stays.len());
                assert_eq!(self.round.cost(&stay.client, stay.share, self.now), stay.cost, "another cost than counted");
                self.round.settle(&stay.client, stay.share, self.now);
            }
            Step::Time(nanos) => {
                let holders: BTreeSet<usize> = self.stays.iter().map(|stay| stay.client).collect();
                for stay in &mut self.stays {
                    let is_other = |client: &usize| *client != stay.client;
                    let waits_beside = self.waiting.contains(&stay.client) && holders.iter().any(is_other);
                    let is_contended = waits_beside || self.waiting.iter().any(is_other);
                    stay.cost += if is_contended { *nanos } else { 0 };
                }
                self.now = self.now + Duration::from_nanos(*nanos);
            }
            Step::Rest(_) | Step::Pass(_) | Step::Settle(_) => {}
        }
        self.check();
    }

    fn grant(&mut self, client: usize, in_turn: bool) {
        let share = self.round.grant(&client, self.weights[client], in_turn, self.now);
        self.stays.push(Stay { client, share, cost: 0 });
        for passed in self.passed.values_mut() {
            *passed.entry(client).or_default() += usize::from(in_turn);
        }
        self.rest(client);
    }

    fn rest(&mut self, client: usize) {
        self.round.rest(&client, self.now);
        self.waiting.remove(&client);
        self.passed.remove(&client);
    }

    fn check(&mut self) {
        assert_eq!(self.round.next_key().is_some(), !self.waiting.is_empty(), "nobody is next though one waits");
        let least = self.waiting.iter().map(|client| self.round.rank_of(client)).min();
        assert_eq!(self.round.next_key(), least.map(|(.., client)| client), "another one than the least is next");
        self.check_lag();
    }

    /// Nobody who waits stands above the present by more than three grants cost, nor below it by more than the slots of all
    /// that were held at once: their cost is known when they come back.
    fn check_lag(&mut self) {
        self.dearest = self.dearest.max(self.round.greatest_quantum());
        self.most_held = self.most_held.max(self.stays.len());
        let held = i128::try_from(self.most_held).unwrap();
        for client in &self.waiting {
            let lead = self.round.lead(client);
            assert!(lead <= 3 * self.dearest, "{client} is ahead by {lead}, one grant costs {}", self.dearest);
            assert!(
                -lead <= (2 + held) * self.dearest,
                "{client} is behind by {lead}, one grant costs {}",
                self.dearest
            );
        }
    }
}

#[test]
fn random_histories_keep_the_lag_bounded_and_cost_only_what_others_waited_for() {
    let config = ProptestConfig { cases: history_count(), failure_persistence: None, ..ProptestConfig::default() };
    let weights = prop::array::uniform5(prop_oneof![Just(1_u32), Just(8), Just(1000)]);
    let proved = TestRunner::new(config).run(&(weights, steps()), |(weights, steps)| {
        let mut world = World::new(weights);
        for step in &steps {
            world.take(step);
        }
        Ok(())
    });
    proved.unwrap_or_else(|failure| panic!("{failure}"));
}

/// Closed loops of clients that hold for the same time, one of which was alone before: nobody is passed by another client more
/// often than their weights say, and once.
#[test]
fn no_client_that_waits_is_passed_more_often_than_weights_say() {
    for weights in [[1; CLIENTS], [1, 8, 1, 1, 8], [1000, 1, 1, 8, 1]] {
        for slots in [1, 3, 20] {
            let mut world = World::new(weights);
            world.take(&Step::Wait(0));
            (0..slots).for_each(|_| {
                world.take(&Step::Wait(0));
                world.take(&Step::GrantNext);
            });
            world.take(&Step::Time(600_000_000_000));
            for _ in 0..3000 {
                (0..CLIENTS).for_each(|client| world.take(&Step::Wait(client)));
                for (client, passed) in &world.passed {
                    for (other, times) in passed {
                        let ratio = (world.weights[*other] as usize).div_ceil(world.weights[*client] as usize);
                        assert!(*times <= 2 * ratio + 1, "{other} passed {client} {times} times at {weights:?}");
                    }
                }
                world.take(&Step::Time(1_000_000));
                world.take(&Step::Settle(0));
                world.take(&Step::GrantNext);
            }
        }
    }
}
