//! Whose turn it is: classes share by weight, clients take turns within a class, one client's requests are first in,
//! first out in two lanes.
//!
//! Start-time fair queueing over slot-seconds held. A request is charged in advance when it is admitted, with the time
//! that its client's requests usually take, and the difference is settled when it gives its slot back: what is shared is
//! the time that slots are held, not the number of admissions. Who had nothing to ask for does not save up: whoever comes
//! back starts at the clock, which moves with what was really served. What was only charged in advance does not move it:
//! on many slots that would put a newcomer behind all that the others have just begun.

use std::collections::{BTreeSet, HashMap};

use super::request::{Client, Lane, Place, Principal};

/// How often a blob may be passed over by small requests of the same client.
const MOST_PASSES: u8 = 8;

/// Clients remembered for having been served beyond the clock.
const MOST_AHEAD: usize = 1000;

/// What a request is charged in advance before anything is known, in slot-nanoseconds.
const FIRST_GUESS: u64 = 1_000_000_000;

/// Slot-nanoseconds, divided by the weight where a class is charged; scaled so that weights divide well.
type Service = i128;
const SCALE: Service = 1 << 20;

/// Whether one who is admitted had its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It was this one's turn.
    Own,
    /// It passed those before it, with a connection that none of them could use.
    Passing,
}

/// What somebody was charged in advance for a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Charge {
    slot_nanos: u64,
    /// The same for its class, by the weight that held then.
    weighed: Service,
    turn: Turn,
}

/// The order of turns among all who wait.
#[derive(Debug)]
pub(super) struct FairQueue {
    classes: Vec<ClassQueue>,
    /// What the class had been served that had the last turn.
    clock: Service,
    /// How long slots are held, smoothed over all.
    usual: u64,
}

/// What somebody was served.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// For slots that came back.
    settled: Service,
    /// Charged in advance for slots that are held.
    advance: Service,
}

impl Account {
    /// What decides whose turn it is: the least is next.
    fn level(self) -> Service {
        self.settled + self.advance
    }

    fn raise_to(&mut self, level: Service) {
        self.settled += (level - self.level()).max(0);
    }
}

#[derive(Debug)]
struct ClassQueue {
    weight: u32,
    account: Account,
    waiting: usize,
    clients: HashMap<Client, ClientQueue>,
    /// Clients with somebody waiting, the one least served first.
    order: BTreeSet<(Service, Client)>,
    /// Clients with nobody waiting and nothing held, who were served beyond the clock.
    ahead: BTreeSet<(Service, Client)>,
    /// Clients who wait or hold.
    active: usize,
    /// Where newcomers start: what each active client would have been served, had all got the same.
    clock: Service,
}

#[derive(Debug, Default)]
struct ClientQueue {
    account: Account,
    /// How long its requests hold their slots, smoothed.
    usual: Option<u64>,
    small: BTreeSet<Place>,
    blobs: BTreeSet<Place>,
    passes: u8,
    /// Slots held, which are charged in advance and not settled yet.
    held: usize,
}

/// Where a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It waits for a turn.
    Waiting,
    /// It waits for nothing, and holds slots.
    Holding,
    /// Neither.
    Away,
}

impl ClientQueue {
    fn is_waiting(&self) -> bool {
        !self.small.is_empty() || !self.blobs.is_empty()
    }

    fn standing(&self) -> Standing {
        if self.is_waiting() {
            Standing::Waiting
        } else if self.held > 0 {
            Standing::Holding
        } else {
            Standing::Away
        }
    }

    fn lane(&mut self, lane: Lane) -> &mut BTreeSet<Place> {
        match lane {
            Lane::Small => &mut self.small,
            Lane::Blob => &mut self.blobs,
        }
    }

    fn next(&self) -> Option<Place> {
        let blob_first = self.passes >= MOST_PASSES && !self.blobs.is_empty();
        let (first, second) = if blob_first { (&self.blobs, &self.small) } else { (&self.small, &self.blobs) };
        first.first().or(second.first()).copied()
    }
}

impl FairQueue {
    /// Turns among classes of these weights; at least one, and none of them 0.
    pub fn new(weights: &[u32]) -> FairQueue {
        let classes = weights.iter().map(|weight| ClassQueue::new((*weight).max(1)));
        FairQueue { classes: classes.collect(), clock: 0, usual: FIRST_GUESS }
    }

    /// Classes have these weights from now on; there may be more of them, never fewer.
    pub fn change_weights(&mut self, weights: &[u32]) {
        for (class, weight) in self.classes.iter_mut().zip(weights) {
            class.weight = (*weight).max(1);
        }
        let new = weights.iter().skip(self.classes.len()).map(|weight| ClassQueue::new((*weight).max(1)));
        self.classes.extend(new.collect::<Vec<_>>());
    }

    /// Somebody begins to wait.
    pub fn push(&mut self, principal: &Principal, lane: Lane, place: Place) {
        let clock = self.clock;
        let class = self.class(principal);
        if class.waiting == 0 {
            class.account.raise_to(clock);
        }
        class.waiting += 1;
        class.push(&principal.client, lane, place);
    }

    /// Somebody waits no more, without having been admitted.
    pub fn remove(&mut self, principal: &Principal, lane: Lane, place: Place) {
        let class = self.class(principal);
        class.waiting -= 1;
        class.remove(&principal.client, lane, place);
    }

    /// This one is admitted, and charged in advance.
    pub fn take(&mut self, principal: &Principal, lane: Lane, place: Place, turn: Turn) -> Charge {
        if turn == Turn::Own {
            self.clock = self.clock.max(self.class(principal).account.settled);
        }
        let usual = self.usual;
        let class = self.class(principal);
        class.waiting -= 1;
        class.take(&principal.client, lane, place, turn, usual)
    }

    /// The slot came back after `slot_nanos`.
    pub fn settle(&mut self, principal: &Principal, charged: Charge, slot_nanos: u64) {
        self.usual = smooth(self.usual, slot_nanos);
        self.class(principal).settle(&principal.client, charged, slot_nanos);
    }

    /// Whether this client waits, in whatever class.
    pub fn waits(&self, name: &Client) -> bool {
        self.classes.iter().any(|class| class.clients.get(name).is_some_and(ClientQueue::is_waiting))
    }

    /// Whose turn it is now.
    pub fn next(&self) -> Option<Place> {
        let waiting = self.classes.iter().filter(|class| class.waiting > 0);
        waiting.min_by_key(|class| class.account.level()).and_then(ClassQueue::next)
    }

    fn class(&mut self, principal: &Principal) -> &mut ClassQueue {
        &mut self.classes[principal.class.0]
    }
}

impl ClassQueue {
    fn new(weight: u32) -> ClassQueue {
        ClassQueue {
            weight,
            account: Account::default(),
            waiting: 0,
            clients: HashMap::new(),
            order: BTreeSet::new(),
            ahead: BTreeSet::new(),
            active: 0,
            clock: 0,
        }
    }

    fn next(&self) -> Option<Place> {
        let (_, client) = self.order.first()?;
        self.clients[client].next()
    }

    fn push(&mut self, name: &Client, lane: Lane, place: Place) {
        let clock = self.clock;
        self.change(name, |client| {
            if !client.is_waiting() {
                client.account.raise_to(clock);
            }
            client.lane(lane).insert(place);
        });
    }

    fn remove(&mut self, name: &Client, lane: Lane, place: Place) {
        self.change(name, |client| {
            client.lane(lane).remove(&place);
        });
    }

    fn take(&mut self, name: &Client, lane: Lane, place: Place, turn: Turn, usual: u64) -> Charge {
        let slot_nanos = self.clients.get(name).and_then(|client| client.usual).unwrap_or(usual);
        let charge = Charge { slot_nanos, weighed: self.weigh(slot_nanos), turn };
        self.account.advance += charge.weighed;
        let mut clock = self.clock;
        self.change(name, |client| {
            client.lane(lane).remove(&place);
            if turn == Turn::Own {
                clock = clock.max(client.account.settled);
                client.passes = match lane {
                    Lane::Small if !client.blobs.is_empty() => client.passes.saturating_add(1),
                    Lane::Small | Lane::Blob => 0,
                };
            }
            client.account.advance += Service::from(slot_nanos);
            client.held += 1;
        });
        self.clock = clock;
        charge
    }

    fn settle(&mut self, name: &Client, charged: Charge, slot_nanos: u64) {
        self.account.advance -= charged.weighed;
        self.account.settled += self.weigh(slot_nanos);
        if charged.turn == Turn::Own {
            self.clock += Service::from(slot_nanos) / Service::try_from(self.active.max(1)).unwrap_or(Service::MAX);
        }
        self.change(name, |client| {
            client.account.advance -= Service::from(charged.slot_nanos);
            client.account.settled += Service::from(slot_nanos);
            client.usual = Some(client.usual.map_or(slot_nanos, |usual| smooth(usual, slot_nanos)));
            client.held = client.held.saturating_sub(1);
        });
    }

    fn weigh(&self, slot_nanos: u64) -> Service {
        Service::from(slot_nanos) * SCALE / Service::from(self.weight)
    }

    /// The only way a client's state changes: out of the orders, change, into the order where it belongs.
    fn change(&mut self, name: &Client, change: impl FnOnce(&mut ClientQueue)) {
        if !self.clients.contains_key(name) {
            self.clients.insert(name.clone(), ClientQueue::default());
        }
        let client = self.clients.get_mut(name).expect("it is there now");
        let before = (client.standing(), client.account.level());
        change(client);
        let after = (client.standing(), client.account.level());
        if before != after {
            self.move_client(name, before, after);
        }
        self.forget_who_is_level();
    }

    fn move_client(&mut self, name: &Client, from: (Standing, Service), to: (Standing, Service)) {
        let key = (from.1, name.clone());
        match from.0 {
            Standing::Waiting => self.order.remove(&key),
            Standing::Holding => false,
            Standing::Away => self.ahead.remove(&key),
        };
        let key = (to.1, name.clone());
        match to.0 {
            Standing::Waiting => self.order.insert(key),
            Standing::Holding => false,
            Standing::Away => self.ahead.insert(key),
        };
        self.active -= usize::from(from.0 != Standing::Away);
        self.active += usize::from(to.0 != Standing::Away);
    }

    /// A client who neither waits nor holds, and who was not served beyond the clock, is as good as unknown. Where too
    /// many are ahead of it, the clock moves on to those who are the least.
    fn forget_who_is_level(&mut self) {
        while let Some((served, _)) = self.ahead.first()
            && (*served <= self.clock || self.ahead.len() > MOST_AHEAD)
        {
            let (served, name) = self.ahead.pop_first().expect("there is a first");
            self.clock = self.clock.max(served);
            self.clients.remove(&name);
        }
    }
}

fn smooth(usual: u64, latest: u64) -> u64 {
    usual - usual / 8 + latest / 8
}

#[cfg(test)]
mod tests {
    use super::super::moment::Moment;
    use super::super::request::ClassId;
    use super::*;

    fn principal(class: usize, client: &str) -> Principal {
        Principal { class: ClassId(class), client: Client::from(client) }
    }

    struct Line {
        turns: FairQueue,
        waiting: HashMap<Place, (Principal, Lane)>,
        arrivals: u64,
    }

    impl Line {
        fn new(weights: &[u32]) -> Line {
            Line { turns: FairQueue::new(weights), waiting: HashMap::new(), arrivals: 0 }
        }

        fn join(&mut self, principal: &Principal, lane: Lane) -> Place {
            self.arrivals += 1;
            let place = Place::new(Moment::default(), self.arrivals);
            self.turns.push(principal, lane, place);
            self.waiting.insert(place, (principal.clone(), lane));
            place
        }

        /// Admits the next one, who holds its slot from now on.
        fn admit(&mut self) -> Principal {
            let place = self.turns.next().expect("somebody waits");
            self.admit_this(place, Turn::Own).0
        }

        fn admit_this(&mut self, place: Place, turn: Turn) -> (Principal, Charge) {
            let (principal, lane) = self.waiting.remove(&place).expect("only who waits is admitted");
            let charged = self.turns.take(&principal, lane, place, turn);
            (principal, charged)
        }

        /// Serves the next one, who holds its slot for so long.
        fn serve(&mut self, held: impl Fn(&Principal) -> u64) -> Option<(Principal, Place)> {
            let place = self.turns.next()?;
            let (principal, charged) = self.admit_this(place, Turn::Own);
            self.turns.settle(&principal, charged, held(&principal));
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
        assert_eq!(first.iter().filter(|principal| &*principal.client == "greedy").count(), 2);
    }

    #[test]
    fn who_holds_longer_gets_fewer_turns() {
        let mut line = Line::new(&[1]);
        let (slow, quick) = (principal(0, "slow"), principal(0, "quick"));
        for _ in 0..1000 {
            line.join(&slow, Lane::Blob);
            line.join(&quick, Lane::Blob);
        }
        let turns: Vec<Principal> =
            (0..400).map(|_| line.serve(|principal| if *principal == slow { 900 } else { 100 }).unwrap().0).collect();
        let of_slow = turns.iter().filter(|principal| **principal == slow).count();
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
        let turns: Vec<Principal> = (0..900).map(|_| line.serve(|_| 1000).unwrap().0).collect();
        let of_high = turns.iter().filter(|principal| **principal == high).count();
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

    /// Ten slots are given out before anything came back: who comes in that moment is not behind them.
    #[test]
    fn who_comes_first_is_not_ahead_by_what_it_has_only_begun() {
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
        let admitted: Vec<Principal> = (0..10).map(|_| line.admit()).collect();
        assert!(admitted.iter().all(|principal| *principal == next), "{admitted:?}");
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

    /// Newcomers start level with those who have waited all the time, whoever passed these with a kept connection.
    #[test]
    fn who_passes_the_others_is_charged_and_puts_nobody_ahead() {
        let mut line = Line::new(&[1]);
        let (passing, waiting, newcomer) = (principal(0, "passing"), principal(0, "waiting"), principal(0, "newcomer"));
        line.join(&waiting, Lane::Blob);
        for _ in 0..50 {
            let place = line.join(&passing, Lane::Small);
            let (_, charged) = line.admit_this(place, Turn::Passing);
            line.turns.settle(&passing, charged, 1000);
        }
        for _ in 0..20 {
            line.join(&waiting, Lane::Blob);
            line.join(&newcomer, Lane::Blob);
            line.join(&passing, Lane::Blob);
        }
        let admitted: Vec<Principal> = (0..20).map(|_| line.serve(|_| 1000).unwrap().0).collect();
        let of = |one: &Principal| admitted.iter().filter(|principal| *principal == one).count();
        assert_eq!((of(&waiting), of(&newcomer), of(&passing)), (10, 10, 0));
    }

    #[test]
    fn a_weight_that_changes_while_slots_are_held_leaves_nothing_behind() {
        let mut line = Line::new(&[1, 1]);
        let (one, other) = (principal(0, "one"), principal(1, "other"));
        for _ in 0..100 {
            line.join(&one, Lane::Blob);
            line.join(&other, Lane::Blob);
        }
        let mut admit = || {
            let place = line.turns.next().expect("somebody waits");
            line.admit_this(place, Turn::Own)
        };
        let held: Vec<(Principal, Charge)> = (0..20).map(|_| admit()).collect();
        line.turns.change_weights(&[8, 1]);
        for (principal, charge) in held {
            line.turns.settle(&principal, charge, 0);
        }
        line.turns.change_weights(&[1, 1]);
        let turns: Vec<Principal> = (0..20).map(|_| line.serve(|_| 1000).unwrap().0).collect();
        assert_eq!(turns.iter().filter(|principal| **principal == one).count(), 10, "{turns:?}");
    }

    #[test]
    fn who_left_is_forgotten() {
        let mut line = Line::new(&[1]);
        for number in 0..3000 {
            let client = principal(0, &format!("client-{number}"));
            line.join(&client, Lane::Small);
            line.serve(|_| 1000);
        }
        assert!(line.turns.classes[0].clients.len() <= MOST_AHEAD, "{}", line.turns.classes[0].clients.len());
    }
}
