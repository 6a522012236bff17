//! What does one decision cost when very many wait?
//!
//! Drives the admission core itself, in virtual time, with every slot taken and a queue of a given length: what it costs
//! to sit down, to leave, and to hand a slot that came back to the next one. Once with all requests of one client, and
//! once with a thousand clients. Prints a table; judges nothing.
//!
//! `cargo bench --bench queue`

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use divan::Bencher;
use roadstead::admission::core::Core;
use roadstead::admission::decision::Decision;
use roadstead::admission::{
    AdmissionRequest, ClassId, ClientId, Limits, Moment, Place, Principal, SlotEvent, SlotId, SlotState,
};

const LENGTHS: [usize; 4] = [100, 1_000, 10_000, 100_000];
const SLOTS: usize = 10;

fn main() {
    divan::main();
}

/// A core with a queue that stays as long as it is.
struct Harbor {
    core: Core,
    clients: Vec<ClientId>,
    target: Arc<str>,
    now: Moment,
    arrived: usize,
    /// Slots that are taken, in the order in which they come back.
    held: VecDeque<SlotId>,
    /// Who may leave; the bench of grants does not keep it.
    waiting: Vec<Place>,
}

impl Harbor {
    fn new(waiting: usize, clients: usize) -> Harbor {
        let limits = Limits {
            slots: SLOTS,
            depth: usize::MAX,
            rate: None,
            idle_timeout: Duration::from_secs(60),
            max_lifetime: Duration::from_secs(1800),
            max_connecting: SLOTS,
            keep_place: Duration::from_secs(30),
            weights: vec![1],
        };
        let clients: Vec<ClientId> = (0..clients).map(|number| format!("client-{number}").into()).collect();
        let (core, target) = (Core::new(limits, Moment::default()), "harbor.example.com:443".into());
        let (now, held, places) = (Moment::default(), VecDeque::new(), Vec::new());
        let mut harbor = Harbor { core, clients, target, now, arrived: 0, held, waiting: places };
        for _ in 0..SLOTS + waiting {
            let ask = harbor.ask();
            harbor.arrive(ask);
        }
        harbor.waiting.drain(..SLOTS);
        assert_eq!(harbor.core.snapshot(harbor.now).waiting, waiting);
        harbor
    }

    fn ask(&mut self) -> AdmissionRequest {
        self.now = self.now + Duration::from_micros(10);
        self.arrived += 1;
        let client = self.clients[self.arrived % self.clients.len()].clone();
        let (place, _) = self.core.place(&client, &self.target, self.now);
        let principal = Principal { class: ClassId::default(), client };
        let deadline = self.now + Duration::from_secs(100_000);
        AdmissionRequest::new(place, deadline, principal, self.target.clone())
    }

    fn arrive(&mut self, ask: AdmissionRequest) {
        self.waiting.push(ask.place);
        self.core.arrive(ask, self.now);
        self.carry_out();
    }

    fn leave(&mut self, place: Place) {
        self.core.leave(place, self.now);
    }

    /// Takes somebody from anywhere in the queue off the list.
    fn pick(&mut self) -> Place {
        let index = self.arrived.wrapping_mul(2_654_435_761) % self.waiting.len();
        self.waiting.swap_remove(index)
    }

    /// A slot comes back, and goes to the next one.
    fn hand_on(&mut self, slot: SlotId) {
        self.core.tell(slot, SlotEvent::Released, self.now);
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while let Some(decision) = self.core.next_decision() {
            let Decision::Dial { slot, .. } = decision else { panic!("{decision:?}") };
            self.held.push_back(slot);
        }
    }

    /// The last one who was admitted is connected, and somebody else waits in its stead.
    fn refill(&mut self) -> SlotId {
        let slot = *self.held.back().expect("slots are taken");
        self.core.tell(slot, SlotEvent::Dialled, self.now);
        self.core.tell(slot, SlotEvent::Established(SlotState::Active), self.now);
        let ask = self.ask();
        self.arrive(ask);
        self.held.pop_front().expect("slots are taken")
    }
}

/// Sitting down while no slot is free.
#[divan::bench(args = LENGTHS, consts = [1, 1000], sample_count = 2000, sample_size = 1)]
fn enqueue<const CLIENTS: usize>(bencher: Bencher, waiting: usize) {
    let harbor = RefCell::new(Harbor::new(waiting, CLIENTS));
    let ask = || {
        let mut harbor = harbor.borrow_mut();
        // Never as many as to be a longer queue.
        if harbor.waiting.len() > waiting {
            let place = harbor.pick();
            harbor.leave(place);
        }
        harbor.ask()
    };
    bencher.with_inputs(ask).bench_local_values(|ask| harbor.borrow_mut().arrive(ask));
}

/// A slot comes back and is granted to the next one.
#[divan::bench(args = LENGTHS, consts = [1, 1000], sample_count = 2000, sample_size = 1)]
fn grant<const CLIENTS: usize>(bencher: Bencher, waiting: usize) {
    let harbor = RefCell::new(Harbor::new(waiting, CLIENTS));
    bencher.with_inputs(|| harbor.borrow_mut().refill()).bench_local_values(|slot| harbor.borrow_mut().hand_on(slot));
}

/// Leaving from anywhere in the queue.
#[divan::bench(args = LENGTHS, consts = [1, 1000], sample_count = 2000, sample_size = 1)]
fn cancel<const CLIENTS: usize>(bencher: Bencher, waiting: usize) {
    let harbor = RefCell::new(Harbor::new(waiting, CLIENTS));
    let place = || {
        let mut harbor = harbor.borrow_mut();
        if harbor.waiting.len() <= waiting {
            let ask = harbor.ask();
            harbor.arrive(ask);
        }
        harbor.pick()
    };
    bencher.with_inputs(place).bench_local_values(|place| harbor.borrow_mut().leave(place));
}
