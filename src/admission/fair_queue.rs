//! The order of waiters: classes share by weight, peers share within a class, clients within a peer. One client's
//! requests are first in, first out in two lanes.
//!
//! The kernel vouches for a peer: a user of this machine, or an address. A client is one user name of a peer. So a
//! client that invents names competes with itself. Each of the three levels is a [`FairRound`].

use std::collections::BTreeSet;
use std::sync::Arc;

use super::fair_round::{FairRound, GrantCharge, smooth};
use super::maps::NumberState;
use super::moment::Moment;
use super::request::{ClassId, Lane, Place, Principal};

/// How often a blob may be passed over by small requests of the same client, however short they are.
const MAX_PASSES: u64 = 8;

/// The charges of a request at each level for its slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Charge {
    lane: Lane,
    since: Moment,
    class: GrantCharge,
    peer: GrantCharge,
    client: GrantCharge,
}

/// Whether a request that is admitted was next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AdmittedAs {
    Next,
    /// It passed those before it, with a connection that none of them could use.
    Passing,
}

#[derive(Clone, Debug)]
pub(super) struct FairQueue {
    weights: Vec<u32>,
    classes: FairRound<ClassId, Peers, NumberState>,
    /// The smoothed nanoseconds for which a request of each lane holds its slot.
    holds: [Option<u64>; 2],
}

type Peers = FairRound<Arc<str>, Clients>;
/// By user name; `None`: the peer without one.
type Clients = FairRound<Option<Arc<str>>, Lanes>;

#[derive(Clone, Debug, Default)]
struct Lanes {
    /// By [`Lane`].
    waiting: [BTreeSet<Place>; 2],
    /// How often the first blob was passed over.
    passes: u64,
}

impl Lanes {
    fn is_empty(&self) -> bool {
        self.waiting.iter().all(BTreeSet::is_empty)
    }

    fn of(&mut self, lane: Lane) -> &mut BTreeSet<Place> {
        &mut self.waiting[lane as usize]
    }

    fn next(&self, most_passes: u64) -> Option<Place> {
        let [small, blobs] = &self.waiting;
        let (first, second) = if self.passes >= most_passes { (blobs, small) } else { (small, blobs) };
        first.first().or(second.first()).copied()
    }

    fn count_pass(&mut self, lane: Lane) {
        let passes = lane == Lane::Small && !self.of(Lane::Blob).is_empty();
        self.passes = if passes { self.passes + 1 } else { 0 };
    }
}

impl FairQueue {
    /// An order among classes of these weights.
    pub fn new(weights: &[u32]) -> FairQueue {
        FairQueue { weights: weights.to_vec(), classes: FairRound::default(), holds: [None; 2] }
    }

    /// Classes have these weights from now on. There may be more of them, never fewer.
    pub fn change_weights(&mut self, weights: &[u32]) {
        self.weights = weights.to_vec();
    }

    pub fn push(&mut self, principal: &Principal, lane: Lane, place: Place, now: Moment) {
        let (peer, name) = principal.client.parts();
        let peers = self.classes.inner(&principal.class);
        let clients = peers.inner(peer);
        clients.inner(name).of(lane).insert(place);
        clients.wait(name, now);
        peers.wait(peer, now);
        self.classes.wait(&principal.class, now);
    }

    /// A request waits no more, without having been admitted.
    pub fn remove(&mut self, principal: &Principal, lane: Lane, place: Place, now: Moment) {
        let (peer, name) = principal.client.parts();
        let peers = self.classes.inner(&principal.class);
        let clients = peers.inner(peer);
        let lanes = clients.inner(name);
        lanes.of(lane).remove(&place);
        if lanes.is_empty() {
            clients.rest(name, now);
        }
        if !clients.any_waits() {
            peers.rest(peer, now);
        }
        if !peers.any_waits() {
            self.classes.rest(&principal.class, now);
        }
    }

    /// A request is admitted, and charged in advance.
    pub fn take(&mut self, principal: &Principal, lane: Lane, place: Place, how: AdmittedAs, now: Moment) -> Charge {
        let (peer, name) = principal.client.parts();
        let weight = self.weights.get(principal.class.0).copied().unwrap_or(1);
        let in_turn = how == AdmittedAs::Next;
        let peers = self.classes.inner(&principal.class);
        let clients = peers.inner(peer);
        let client = clients.grant(name, 1, in_turn, now);
        if in_turn {
            clients.inner(name).count_pass(lane);
        }
        let peer = peers.grant(peer, 1, in_turn, now);
        let class = self.classes.grant(&principal.class, weight, in_turn, now);
        self.remove(principal, lane, place, now);
        Charge { lane, since: now, class, peer, client }
    }

    /// The slot came back: what was charged in advance is corrected.
    pub fn settle(&mut self, principal: &Principal, charge: Charge, now: Moment) {
        let (peer, name) = principal.client.parts();
        let peers = self.classes.inner(&principal.class);
        peers.inner(peer).settle(name, charge.client, now);
        peers.settle(peer, charge.peer, now);
        self.classes.settle(&principal.class, charge.class, now);
        let holds = &mut self.holds[charge.lane as usize];
        *holds = Some(smooth(*holds, now.nanos().saturating_sub(charge.since.nanos())));
    }

    pub fn next(&self) -> Option<Place> {
        self.classes.next()?.next()?.next()?.next(self.most_passes())
    }

    /// While a blob waits, small requests of its client take about half of the slot time, and no more.
    fn most_passes(&self) -> u64 {
        let [Some(small), Some(blob)] = self.holds else { return MAX_PASSES };
        (blob / small.max(1)).clamp(1, MAX_PASSES)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};
    use std::time::Duration;

    use super::super::fair_round::MAX_REMEMBERED;
    use super::super::request::ClientId;
    use super::*;

    fn principal(class: usize, client: &str) -> Principal {
        Principal { class: ClassId(class), client: client.into() }
    }

    /// A queue and a clock.
    struct Line {
        queue: FairQueue,
        waiting: HashMap<Place, (Principal, Lane)>,
        arrivals: u64,
        now: Moment,
    }

    impl Line {
        fn new(weights: &[u32]) -> Line {
            Line { queue: FairQueue::new(weights), waiting: HashMap::new(), arrivals: 0, now: Moment::default() }
        }

        fn join(&mut self, principal: &Principal, lane: Lane) -> Place {
            self.arrivals += 1;
            let place = Place::new(self.now, self.arrivals);
            self.queue.push(principal, lane, place, self.now);
            self.waiting.insert(place, (principal.clone(), lane));
            place
        }

        fn pass(&mut self, nanos: u64) {
            self.now = self.now + Duration::from_nanos(nanos);
        }

        /// Admits the next request, which holds its slot from now on.
        fn admit(&mut self) -> (Principal, Charge) {
            let place = self.queue.next().expect("a request waits");
            self.admit_this(place, AdmittedAs::Next)
        }

        fn admit_this(&mut self, place: Place, how: AdmittedAs) -> (Principal, Charge) {
            let (principal, lane) = self.waiting.remove(&place).expect("only a request that waits is admitted");
            let charge = self.queue.take(&principal, lane, place, how, self.now);
            (principal, charge)
        }

        /// Serves the next request, which holds its slot for so long.
        fn serve(&mut self, nanos: impl Fn(&Principal) -> u64) -> Option<(Principal, Place)> {
            let place = self.queue.next()?;
            let (principal, charge) = self.admit_this(place, AdmittedAs::Next);
            self.pass(nanos(&principal));
            self.queue.settle(&principal, charge, self.now);
            Some((principal, place))
        }
    }

    #[test]
    fn clients_take_turns_however_many_requests_each_has() {
        let mut line = Line::new(&[1]);
        for _ in 0..100 {
            line.join(&principal(0, "greedy"), Lane::Blob);
        }
        let modest: Vec<Principal> = (0..9).map(|number| principal(0, &format!("modest-{number}"))).collect();
        for client in &modest {
            for _ in 0..2 {
                line.join(client, Lane::Blob);
            }
        }
        let first: Vec<Principal> = (0..20).map(|_| line.serve(|_| 1000).unwrap().0).collect();
        assert_eq!(first.iter().filter(|principal| principal.client == "greedy".into()).count(), 2);
    }

    #[test]
    fn a_client_that_holds_longer_is_admitted_less_often() {
        let mut line = Line::new(&[1]);
        let (slow, quick) = (principal(0, "slow"), principal(0, "quick"));
        for _ in 0..1000 {
            line.join(&slow, Lane::Blob);
            line.join(&quick, Lane::Blob);
        }
        let served: Vec<Principal> =
            (0..400).map(|_| line.serve(|principal| if *principal == slow { 900 } else { 100 }).unwrap().0).collect();
        let of_slow = served.iter().filter(|principal| **principal == slow).count();
        assert!((39..=41).contains(&of_slow), "a tenth of the turns is half of the time, got {of_slow}");
    }

    #[test]
    fn classes_share_by_weight_and_an_idle_one_saves_nothing_up() {
        let mut line = Line::new(&[1, 8]);
        let (low, high) = (principal(0, "low"), principal(1, "high"));
        for _ in 0..2000 {
            line.join(&low, Lane::Blob);
        }
        for _ in 0..500 {
            line.serve(|_| 1000);
        }
        for _ in 0..2000 {
            line.join(&high, Lane::Blob);
        }
        let served: Vec<Principal> = (0..900).map(|_| line.serve(|_| 1000).unwrap().0).collect();
        let of_high = served.iter().filter(|principal| **principal == high).count();
        assert!((795..=805).contains(&of_high), "8 of 9, got {of_high} of 900");
    }

    #[test]
    fn small_requests_pass_a_blob_eight_times_and_no_more() {
        let mut line = Line::new(&[1]);
        let one = principal(0, "one");
        let blob = line.join(&one, Lane::Blob);
        for _ in 0..20 {
            line.join(&one, Lane::Small);
        }
        let order: Vec<Place> = (0..21).map(|_| line.serve(|_| 1).unwrap().1).collect();
        assert_eq!(order.iter().position(|place| *place == blob), Some(8));
    }

    /// Four small requests always wait, beside twenty blobs, in one slot: a blob waits for no more slot time of theirs than it
    /// needs itself, or for one of them. Twice as long as without them, and not nine times.
    #[test]
    fn small_requests_without_end_take_no_more_time_than_the_blobs() {
        for (small, blob) in [(100, 100), (100, 150), (50, 120), (10, 10_000), (300, 100), (1, 0)] {
            let mut line = Line::new(&[1]);
            let one = principal(0, "one");
            for waiting in [Lane::Small; 4].into_iter().chain([Lane::Blob; 20]) {
                line.join(&one, waiting);
            }
            let (mut of_small, mut of_blobs) = (Vec::new(), Vec::new());
            while of_blobs.len() < 20 {
                if line.waiting[&line.queue.next().unwrap()].1 == Lane::Small {
                    line.serve(|_| small);
                    line.join(&one, Lane::Small);
                    of_small.push(small);
                } else {
                    line.serve(|_| blob);
                    of_blobs.push(blob);
                }
            }
            // How long each holds its slot is known once the first blob is through.
            let most = 8 * small + of_blobs.iter().sum::<u64>().max(20 * small);
            assert!(of_small.iter().sum::<u64>() <= most, "{of_small:?} beside {of_blobs:?}");
            assert!(of_small.len() >= 20, "{of_small:?} beside {of_blobs:?}");
        }
    }

    /// Ten slots are held before anything came back: a newcomer is not behind them, and not ahead by more than one grant.
    #[test]
    fn what_was_only_begun_puts_the_first_client_neither_ahead_nor_behind() {
        let mut line = Line::new(&[1]);
        let (first, next) = (principal(0, "first"), principal(0, "next"));
        for _ in 0..100 {
            line.join(&first, Lane::Blob);
        }
        for _ in 0..10 {
            line.admit();
        }
        for _ in 0..100 {
            line.join(&next, Lane::Blob);
        }
        let admitted: Vec<Principal> = (0..10).map(|_| line.admit().0).collect();
        assert_eq!(admitted[0], next, "{admitted:?}");
        assert!((5..=6).contains(&admitted.iter().filter(|principal| **principal == next).count()), "{admitted:?}");
    }

    #[test]
    fn newcomers_without_end_starve_nobody() {
        let mut line = Line::new(&[1]);
        let old = principal(0, "old");
        for _ in 0..3 {
            line.join(&old, Lane::Blob);
        }
        line.serve(|_| 1000);
        let served = (0..100).filter(|number| {
            line.join(&principal(0, &format!("new-{number}")), Lane::Blob);
            line.serve(|_| 1000).unwrap().0 == old
        });
        assert_eq!(served.count(), 2);
    }

    /// A request that passes the others with a pooled connection is charged, by one grant at most, and puts no client ahead.
    #[test]
    fn a_client_that_passes_the_others_is_charged_and_puts_nobody_ahead() {
        let mut line = Line::new(&[1]);
        let [passing, waiting, newcomer] = ["passing", "waiting", "newcomer"].map(|client| principal(0, client));
        line.join(&waiting, Lane::Blob);
        for _ in 0..50 {
            let place = line.join(&passing, Lane::Small);
            let (_, charge) = line.admit_this(place, AdmittedAs::Passing);
            line.pass(1000);
            line.queue.settle(&passing, charge, line.now);
        }
        for _ in 0..20 {
            line.join(&waiting, Lane::Blob);
            line.join(&newcomer, Lane::Blob);
            line.join(&passing, Lane::Blob);
        }
        let admitted: Vec<Principal> = (0..21).map(|_| line.serve(|_| 1000).unwrap().0).collect();
        let of = |one: &Principal| admitted.iter().filter(|principal| *principal == one).count();
        assert!(admitted[..2].iter().all(|principal| *principal != passing), "{admitted:?}");
        assert!((6..=8).contains(&of(&waiting)) && (6..=8).contains(&of(&newcomer)), "{admitted:?}");
    }

    #[test]
    fn a_weight_that_changes_while_slots_are_held_leaves_nothing_behind() {
        let mut line = Line::new(&[1, 1]);
        let (one, other) = (principal(0, "one"), principal(1, "other"));
        for _ in 0..100 {
            line.join(&one, Lane::Blob);
            line.join(&other, Lane::Blob);
        }
        let held: Vec<(Principal, Charge)> = (0..20).map(|_| line.admit()).collect();
        line.queue.change_weights(&[8, 1]);
        for (principal, charge) in held {
            line.queue.settle(&principal, charge, line.now);
        }
        line.queue.change_weights(&[1, 1]);
        let served: Vec<Principal> = (0..20).map(|_| line.serve(|_| 1000).unwrap().0).collect();
        assert_eq!(served.iter().filter(|principal| **principal == one).count(), 10, "{served:?}");
    }

    #[test]
    fn a_client_that_left_is_forgotten() {
        let mut line = Line::new(&[1]);
        line.join(&principal(0, "patient"), Lane::Blob);
        for number in 0..3000 {
            let place = line.join(&principal(0, &format!("client-{number}")), Lane::Small);
            let (client, charge) = line.admit_this(place, AdmittedAs::Passing);
            line.pass(1000);
            line.queue.settle(&client, charge, line.now);
        }
        let known = |line: &mut Line| line.queue.classes.inner(&ClassId(0)).len();
        assert!(known(&mut line) <= MAX_REMEMBERED + 1, "{}", known(&mut line));
        line.serve(|_| 1000);
        assert_eq!(known(&mut line), 0, "when no request waits, all are level");
    }

    /// One client was charged while another waited. When no request waits any more, both are level: the first to come is next.
    #[test]
    fn all_are_level_when_no_request_waits() {
        let mut line = Line::new(&[1]);
        let [holder, charged, other] = ["holder", "charged", "other"].map(|client| principal(0, client));
        line.join(&holder, Lane::Blob);
        line.admit();
        line.join(&charged, Lane::Blob);
        let place = line.join(&other, Lane::Blob);
        line.serve(|_| 1000);
        line.queue.remove(&other, Lane::Blob, place, line.now);
        line.join(&charged, Lane::Blob);
        line.join(&other, Lane::Blob);
        assert_eq!(line.serve(|_| 1000).unwrap().0, charged);
    }

    /// Alone for 8, 60 or 600 s, then another client asks without end: the first one's next request waits for one grant.
    #[test]
    fn use_of_an_idle_machine_is_no_debt() {
        for (seconds, weights) in
            [8, 60, 600].into_iter().flat_map(|s| [[1, 1], [1, 8], [1, 1000], [8, 1]].map(|w| (s, w)))
        {
            for class_of_other in [0, 1] {
                let mut line = Line::new(&weights);
                let (alone, other) = (principal(0, "alone"), principal(class_of_other, "other"));
                let held = [0, 0].map(|_| {
                    line.join(&alone, Lane::Blob);
                    line.admit()
                });
                line.pass(seconds * 1_000_000_000);
                line.join(&other, Lane::Blob);
                for (client, charge) in held {
                    line.queue.settle(&client, charge, line.now);
                }
                for _ in 0..3 {
                    line.join(&other, Lane::Blob);
                    line.serve(|_| 100_000_000);
                }
                line.join(&alone, Lane::Blob);
                let passed_by = (0..).take_while(|_| {
                    line.join(&other, Lane::Blob);
                    line.serve(|_| 100_000_000).unwrap().0 == other
                });
                assert!(passed_by.count() <= 1, "{seconds} s, weights {weights:?}");
            }
        }
    }

    /// One client has one slot at a time, for long, and no more than its weight gives it, beside another that always waits for
    /// more: when it asks again, it waits for a turn of the other, not until that one has used as much.
    #[test]
    fn a_client_that_asks_for_little_does_not_pay_alone() {
        for (slots, hold, weights) in [(2, 120, [1, 1]), (10, 600, [1, 1]), (10, 600, [1, 8]), (2, 120, [8, 1])] {
            for class_of_greedy in [0, 1] {
                let mut line = Line::new(&weights);
                let (modest, greedy) = (principal(0, "modest"), principal(class_of_greedy, "greedy"));
                (0..=slots).for_each(|_| _ = line.join(&greedy, Lane::Blob));
                let mut held: VecDeque<(Principal, Charge)> = (0..slots).map(|_| line.admit()).collect();
                // Each second the oldest of its slots comes back, and another request of it is there: it always has one that waits.
                let second = |line: &mut Line, held: &mut VecDeque<(Principal, Charge)>| {
                    line.pass(1_000_000_000);
                    let (client, charge) = held.pop_front().expect("it holds the others");
                    line.queue.settle(&client, charge, line.now);
                    line.join(&greedy, Lane::Blob);
                    line.admit()
                };
                for round in 0..5 {
                    line.join(&modest, Lane::Blob);
                    let (mut waited, mut admitted) = (0, second(&mut line, &mut held));
                    while admitted.0 != modest {
                        waited += 1;
                        held.push_back(admitted);
                        admitted = second(&mut line, &mut held);
                    }
                    let ratio = weights[1].div_ceil(weights[0]);
                    assert!(
                        waited <= ratio,
                        "{slots} slots, {hold} s, {weights:?}: {waited} went ahead, round {round}"
                    );
                    for _ in 0..hold {
                        let next = second(&mut line, &mut held);
                        held.push_back(next);
                    }
                    line.queue.settle(&modest, admitted.1, line.now);
                    held.push_back(line.admit());
                }
            }
        }
    }

    /// Eight peers that invent a name for each request get no more than eight shares, and names of one peer share that peer's.
    #[test]
    fn invented_names_share_what_their_peer_gets() {
        let mut line = Line::new(&[1]);
        let honest = principal(0, "honest");
        let mut names = 0;
        let mut invented = |peer: usize| {
            names += 1;
            Principal { class: ClassId(0), client: ClientId::named(format!("peer-{peer}"), format!("name-{names}")) }
        };
        let mut of_honest = 0;
        for round in 0..900 {
            for peer in 0..8 {
                line.join(&invented(peer), Lane::Blob);
            }
            if round == 0 || of_honest > 0 {
                line.join(&honest, Lane::Blob);
            }
            of_honest += usize::from(line.serve(|_| 1000).unwrap().0 == honest);
        }
        assert!((99..=102).contains(&of_honest), "a ninth, got {of_honest} of 900");
        let mut line = Line::new(&[1]);
        let of_peer = |number| Principal { class: ClassId(0), client: ClientId::named("peer", format!("{number}")) };
        let honest = Principal { class: ClassId(0), client: "peer".into() };
        (0..8).for_each(|number| {
            line.join(&of_peer(number), Lane::Blob);
        });
        line.join(&honest, Lane::Blob);
        let served = (8..908).filter(|number| {
            let served = line.serve(|_| 1000).unwrap().0;
            line.join(&if served == honest { honest.clone() } else { of_peer(*number) }, Lane::Blob);
            served == honest
        });
        let of_honest = served.count();
        assert!((90..=110).contains(&of_honest), "a ninth, got {of_honest} of 900");
    }
}
