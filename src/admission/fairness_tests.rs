//! Shares of the slots, through the whole core in virtual time: clients that always have requests waiting, and
//! hold each slot for a while, against what taking turns would ideally give them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::decision::{Decision, Limits};
use super::moment::Moment;
use super::request::{AdmissionRequest, ClassId, Place, Principal};
use super::slot::{SlotEvent, SlotId, SlotState};

/// A client with so many requests, each of which holds its slot for a time of its own.
struct Load {
    principal: Principal,
    holds: Vec<Duration>,
}

impl Load {
    fn new(class: usize, client: &str, requests: usize, hold: impl Fn(usize) -> Duration) -> Load {
        let principal = Principal { class: ClassId(class), client: client.into() };
        Load { principal, holds: (0..requests).map(hold).collect() }
    }
}

/// One request's time on its slot.
struct Stay {
    load: usize,
    from: Moment,
    to: Moment,
}

/// Runs these loads through a core of so many slots. All requests wait from the beginning, the first load's in front.
fn run(loads: &[Load], slots: usize, weights: &[u32]) -> Vec<Stay> {
    let limits = Limits {
        slots,
        depth: usize::MAX,
        rate: None,
        idle_timeout: Duration::ZERO,
        max_lifetime: Duration::MAX,
        max_connecting: usize::MAX,
        keep_place: Duration::ZERO,
        weights: weights.to_vec(),
    };
    let mut core = Core::new(limits, Moment::default());
    let mut asked: HashMap<Place, (usize, Duration)> = HashMap::new();
    let mut ends: BinaryHeap<Reverse<(Moment, SlotId)>> = BinaryHeap::new();
    let mut stays = Vec::new();
    let mut now = Moment::default();
    let target: Arc<str> = "registry:443".into();
    for (index, load) in loads.iter().enumerate() {
        for hold in &load.holds {
            let (place, _) = core.place(&load.principal.client, &target, now);
            asked.insert(place, (index, *hold));
            core.arrive(ask(place, &load.principal, &target), now);
        }
    }
    loop {
        while let Some(decision) = core.next_decision() {
            let Decision::Dial { place, slot, .. } = decision else { panic!("{decision:?}") };
            let (load, hold) = asked.remove(&place).expect("only who waits is admitted");
            core.tell(slot, SlotEvent::Dialled, now);
            core.tell(slot, SlotEvent::Entered(SlotState::Active), now);
            ends.push(Reverse((now + hold, slot)));
            stays.push(Stay { load, from: now, to: now + hold });
            assert!(ends.len() <= slots, "more open than slots");
        }
        let Some(Reverse((end, slot))) = ends.pop() else { break };
        now = end;
        core.tell(slot, SlotEvent::Released, now);
    }
    assert!(asked.is_empty(), "{} were never served", asked.len());
    stays
}

fn ask(place: Place, principal: &Principal, target: &Arc<str>) -> AdmissionRequest {
    let deadline = Moment(Duration::MAX);
    AdmissionRequest::new(place, deadline, principal.clone(), target.clone())
}

/// The same by one who knows in advance how long each request will hold its slot: a free slot goes to the load that has
/// had the least, what it holds now included.
fn ideal(loads: &[Load], slots: usize) -> Vec<Stay> {
    let mut had = vec![Duration::ZERO; loads.len()];
    let mut next = vec![0; loads.len()];
    let mut free_at: BinaryHeap<Reverse<Moment>> = (0..slots).map(|_| Reverse(Moment::default())).collect();
    let mut stays = Vec::new();
    while let Some(load) =
        (0..loads.len()).filter(|load| next[*load] < loads[*load].holds.len()).min_by_key(|load| had[*load])
    {
        // The first load was there before the others.
        let load = if stays.len() < slots { 0 } else { load };
        let Reverse(from) = free_at.pop().expect("there are slots");
        let hold = loads[load].holds[next[load]];
        next[load] += 1;
        had[load] += hold;
        free_at.push(Reverse(from + hold));
        stays.push(Stay { load, from, to: from + hold });
    }
    stays
}

/// The slot-seconds that each load got between these moments.
fn served(stays: &[Stay], loads: usize, from: Moment, until: Moment) -> Vec<f64> {
    let mut sums = vec![0.0; loads];
    for stay in stays {
        sums[stay.load] += stay.to.min(until).since(stay.from.max(from)).as_secs_f64();
    }
    sums
}

/// When the slots that the first load took before another one waited have all come back: it owes little for them.
fn head_start(stays: &[Stay], slots: usize) -> Moment {
    stays[..slots].iter().map(|stay| stay.to).max().expect("there are slots")
}

/// The moment from which on somebody has nothing waiting any more: its last request was admitted.
fn backlogged_until(stays: &[Stay], loads: usize) -> Moment {
    let last = |load| stays.iter().filter(|stay| stay.load == load).map(|stay| stay.from).max();
    (0..loads).filter_map(last).min().expect("there are loads")
}

/// 1 where all got the same, 1/n where one got everything.
fn jain(shares: &[f64]) -> f64 {
    let (sum, squares) = shares.iter().fold((0.0, 0.0), |(sum, squares), share| (sum + share, squares + share * share));
    sum * sum / (count(shares.len()) * squares)
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).expect("a small number"))
}

fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// Times between a half and one and a half of `mean`, the same in every run.
fn varied(mean: f64) -> impl Fn(usize) -> Duration {
    move |number| secs(mean * (0.5 + count(number * 7919 % 1000) / 1000.0))
}

fn client(number: usize) -> String {
    format!("client-{number}")
}

/// When the last request of all loads but the first is done.
fn others_done(stays: &[Stay]) -> f64 {
    let ends = stays.iter().filter(|stay| stay.load > 0).map(|stay| stay.to);
    ends.max().expect("there are others").0.as_secs_f64()
}

#[test]
fn nine_modest_clients_finish_beside_a_greedy_one_as_in_ideal_turns() {
    for slots in [1, 2, 10, 20] {
        for mean in [0.2, 1.0, 7.0] {
            for (word, hold) in
                [("each", Box::new(|_| secs(mean)) as Box<dyn Fn(usize) -> _>), ("about", Box::new(varied(mean)))]
            {
                let mut loads = vec![Load::new(0, "greedy", 1000, &hold)];
                let modest = |number| Load::new(0, &client(number), 10, |request| hold(request * 10 + number));
                loads.extend((1..10).map(modest));
                let (done, ideal) = (others_done(&run(&loads, slots, &[1])), others_done(&ideal(&loads, slots)));
                println!("{slots} slots, {word} {mean} s: nine are done after {done:.2} s, ideally {ideal:.2} s");
                assert!(done <= ideal * 1.10, "{:.1} % more than ideal", (done / ideal - 1.0) * 100.0);
            }
        }
    }
}

/// From the whole time in which all have requests waiting down to its tenth part.
#[test]
fn clients_get_the_same_slot_seconds_though_one_holds_ten_times_longer() {
    for (slots, clients) in [(1, 5), (2, 5), (10, 2), (10, 5), (20, 5), (20, 20)] {
        let mut loads = vec![Load::new(0, "slow", 400, varied(10.0))];
        loads.extend((1..clients).map(|number| Load::new(0, &client(number), 4000, varied(1.0))));
        let stays = run(&loads, slots, &[1]);
        let all = backlogged_until(&stays, loads.len());
        for part in [1, 5, 10] {
            let from = head_start(&stays, slots);
            let until = from + (all.since(from) / part);
            let index = jain(&served(&stays, loads.len(), from, until));
            println!("{slots} slots, {clients} clients, {:.0} s: Jain's index {index:.5}", until.0.as_secs_f64());
            assert!(index >= 0.99, "{index}");
        }
    }
}

#[test]
fn a_class_of_eight_times_the_weight_gets_eight_times_the_slot_seconds() {
    for slots in [1, 2, 9, 20] {
        for (light, heavy) in [(1.0, 1.0), (5.0, 1.0), (1.0, 5.0)] {
            let mut loads: Vec<Load> = Vec::new();
            loads.extend((0..3).map(|number| Load::new(0, &client(number), 1000, varied(light))));
            loads.extend((3..5).map(|number| Load::new(1, &client(number), 6000, varied(heavy))));
            let stays = run(&loads, slots, &[1, 8]);
            let until = backlogged_until(&stays, loads.len());
            let shares = served(&stays, loads.len(), head_start(&stays, slots), until);
            let ratio = shares[3..].iter().sum::<f64>() / shares[..3].iter().sum::<f64>();
            println!("{slots} slots, {:.0} s: weights 8 : 1 give {ratio:.3} : 1", until.0.as_secs_f64());
            assert!((7.6..=8.4).contains(&ratio), "{ratio}");
        }
    }
}
