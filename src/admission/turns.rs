//! Whose turn it is: classes share by weight, clients take turns within a class, one client's requests are first in,
//! first out in two lanes.
//!
//! Start-time fair queueing over slot-seconds held. A request is charged an estimate when it is admitted, and the
//! difference when it gives its slot back, so what is shared is the time that slots are held, not the number of
//! admissions. Who had nothing to ask for does not save up: whoever comes back starts level with the one served last.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::queue::Place;

/// A client: a user name, a uid or an address.
pub type Client = Arc<str>;

/// Which class, by its number in the list that the gate was given; 0 is `default`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub usize);

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Party {
    /// The class that it shares with others.
    pub class: ClassId,
    /// The client itself.
    pub client: Client,
}

/// What is asked for, as far as it matters for the order among one client's own requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Small, and others wait for its answer: tokens, manifests, anything that is not a blob.
    Small,
    /// A blob, or a tunnel, in which nothing can be told apart.
    Blob,
}

impl Lane {
    /// The word in status pages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Small => "small",
            Lane::Blob => "blob",
        }
    }
}

/// How often a blob may be passed over by small requests of the same client.
const MOST_PASSES: u8 = 8;

/// Clients remembered for having been served beyond the clock.
const MOST_AHEAD: usize = 1000;

/// Slot-nanoseconds, divided by the weight where a class is charged; scaled so that weights divide well.
type Service = i128;
const SCALE: Service = 1 << 20;

/// The order of turns among all who wait.
#[derive(Debug)]
pub(super) struct Turns {
    classes: Vec<ClassTurns>,
    /// The service of the class that was served last, when it was.
    clock: Service,
}

#[derive(Debug)]
struct ClassTurns {
    weight: u32,
    served: Service,
    waiting: usize,
    clients: HashMap<Client, ClientTurns>,
    /// Clients with somebody waiting, the one least served first.
    order: BTreeSet<(Service, Client)>,
    /// Clients with nobody waiting and nothing held, who were served beyond the clock.
    ahead: BTreeSet<(Service, Client)>,
    clock: Service,
}

#[derive(Debug, Default)]
struct ClientTurns {
    served: Service,
    small: BTreeSet<Place>,
    blobs: BTreeSet<Place>,
    passes: u8,
    /// Slots held, whose estimates are not settled yet.
    held: usize,
}

impl ClientTurns {
    fn is_waiting(&self) -> bool {
        !self.small.is_empty() || !self.blobs.is_empty()
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

impl Turns {
    /// Turns among classes of these weights; at least one, and none of them 0.
    pub fn new(weights: &[u32]) -> Turns {
        let classes = weights.iter().map(|weight| ClassTurns::new((*weight).max(1)));
        Turns { classes: classes.collect(), clock: 0 }
    }

    /// Classes have these weights from now on; there may be more of them, never fewer.
    pub fn change_weights(&mut self, weights: &[u32]) {
        for (class, weight) in self.classes.iter_mut().zip(weights) {
            class.weight = (*weight).max(1);
        }
        let new = weights.iter().skip(self.classes.len()).map(|weight| ClassTurns::new((*weight).max(1)));
        self.classes.extend(new.collect::<Vec<_>>());
    }

    /// Somebody begins to wait.
    pub fn push(&mut self, party: &Party, lane: Lane, place: Place) {
        let clock = self.clock;
        let class = self.class(party);
        if class.waiting == 0 {
            class.served = class.served.max(clock);
        }
        class.waiting += 1;
        class.push(&party.client, lane, place);
    }

    /// Somebody waits no more, without having had a turn.
    pub fn remove(&mut self, party: &Party, lane: Lane, place: Place) {
        let class = self.class(party);
        class.waiting -= 1;
        class.remove(&party.client, lane, place);
    }

    /// It is this one's turn: it is charged for `slot_nanos` in advance.
    pub fn take(&mut self, party: &Party, lane: Lane, place: Place, slot_nanos: u64) {
        let served = self.class(party).served;
        self.clock = self.clock.max(served);
        let class = self.class(party);
        class.waiting -= 1;
        class.take(&party.client, lane, place);
        class.charge(&party.client, Service::from(slot_nanos), 1);
    }

    /// The slot came back after `slot_nanos`, for which `charged` had been charged.
    pub fn settle(&mut self, party: &Party, charged: u64, slot_nanos: u64) {
        let difference = Service::from(slot_nanos) - Service::from(charged);
        self.class(party).charge(&party.client, difference, -1);
    }

    /// Whose turn it is now.
    pub fn next(&self) -> Option<Place> {
        let waiting = self.classes.iter().filter(|class| class.waiting > 0);
        waiting.min_by_key(|class| class.served).and_then(ClassTurns::next)
    }

    fn class(&mut self, party: &Party) -> &mut ClassTurns {
        &mut self.classes[party.class.0]
    }
}

impl ClassTurns {
    fn new(weight: u32) -> ClassTurns {
        ClassTurns {
            weight,
            served: 0,
            waiting: 0,
            clients: HashMap::new(),
            order: BTreeSet::new(),
            ahead: BTreeSet::new(),
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
                client.served = client.served.max(clock);
            }
            client.lane(lane).insert(place);
        });
    }

    fn remove(&mut self, name: &Client, lane: Lane, place: Place) {
        self.change(name, |client| {
            client.lane(lane).remove(&place);
        });
    }

    fn take(&mut self, name: &Client, lane: Lane, place: Place) {
        let served = self.clients.get(name).map_or(0, |client| client.served);
        self.clock = self.clock.max(served);
        self.change(name, |client| {
            client.lane(lane).remove(&place);
            client.passes = match lane {
                Lane::Small if !client.blobs.is_empty() => client.passes.saturating_add(1),
                Lane::Small | Lane::Blob => 0,
            };
        });
    }

    fn charge(&mut self, name: &Client, slot_nanos: Service, held: isize) {
        self.served += slot_nanos * SCALE / Service::from(self.weight);
        self.change(name, |client| {
            client.served += slot_nanos;
            client.held = client.held.saturating_add_signed(held);
        });
    }

    /// The only way a client's state changes: out of the orders, change, into the order where it belongs.
    fn change(&mut self, name: &Client, change: impl FnOnce(&mut ClientTurns)) {
        let mut client = self.clients.remove(name).unwrap_or_default();
        let key = (client.served, name.clone());
        self.order.remove(&key);
        self.ahead.remove(&key);
        change(&mut client);
        let key = (client.served, name.clone());
        if client.is_waiting() {
            self.order.insert(key);
        } else if client.held == 0 {
            self.ahead.insert(key);
        }
        self.clients.insert(name.clone(), client);
        self.forget_who_is_level();
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

#[cfg(test)]
mod tests {
    use super::super::moment::Moment;
    use super::*;

    fn party(class: usize, client: &str) -> Party {
        Party { class: ClassId(class), client: Client::from(client) }
    }

    struct Line {
        turns: Turns,
        waiting: HashMap<Place, (Party, Lane)>,
        arrivals: u64,
    }

    impl Line {
        fn new(weights: &[u32]) -> Line {
            Line { turns: Turns::new(weights), waiting: HashMap::new(), arrivals: 0 }
        }

        fn join(&mut self, party: &Party, lane: Lane) -> Place {
            self.arrivals += 1;
            let place = Place::new(Moment::default(), self.arrivals);
            self.turns.push(party, lane, place);
            self.waiting.insert(place, (party.clone(), lane));
            place
        }

        /// Serves the next one, who holds its slot for so long.
        fn serve(&mut self, estimate: u64, held: impl Fn(&Party) -> u64) -> Option<(Party, Place)> {
            let place = self.turns.next()?;
            let (party, lane) = self.waiting.remove(&place).expect("only who waits is next");
            self.turns.take(&party, lane, place, estimate);
            self.turns.settle(&party, estimate, held(&party));
            Some((party, place))
        }
    }

    #[test]
    fn clients_take_turns_however_many_requests_each_has() {
        let mut line = Line::new(&[1]);
        for _ in 0..100 {
            line.join(&party(0, "greedy"), Lane::Blob);
        }
        let modest: Vec<Party> = (0..9).map(|number| party(0, &format!("modest-{number}"))).collect();
        for client in &modest {
            for _ in 0..2 {
                line.join(client, Lane::Blob);
            }
        }
        let first: Vec<Party> = (0..20).map(|_| line.serve(1000, |_| 1000).unwrap().0).collect();
        assert_eq!(first.iter().filter(|party| &*party.client == "greedy").count(), 2);
    }

    #[test]
    fn who_holds_longer_gets_fewer_turns() {
        let mut line = Line::new(&[1]);
        let (slow, quick) = (party(0, "slow"), party(0, "quick"));
        for _ in 0..1000 {
            line.join(&slow, Lane::Blob);
            line.join(&quick, Lane::Blob);
        }
        let turns: Vec<Party> =
            (0..400).map(|_| line.serve(500, |party| if *party == slow { 900 } else { 100 }).unwrap().0).collect();
        let of_slow = turns.iter().filter(|party| **party == slow).count();
        assert!((39..=41).contains(&of_slow), "a tenth of the turns is half of the time, got {of_slow}");
    }

    #[test]
    fn classes_share_by_weight_and_an_idle_one_saves_nothing_up() {
        let mut line = Line::new(&[1, 8]);
        let (low, high) = (party(0, "low"), party(1, "high"));
        for _ in 0..2000 {
            line.join(&low, Lane::Blob);
        }
        for _ in 0..500 {
            line.serve(1000, |_| 1000);
        }
        for _ in 0..2000 {
            line.join(&high, Lane::Blob);
        }
        let turns: Vec<Party> = (0..900).map(|_| line.serve(1000, |_| 1000).unwrap().0).collect();
        let of_high = turns.iter().filter(|party| **party == high).count();
        assert!((795..=805).contains(&of_high), "8 of 9, got {of_high} of 900");
    }

    #[test]
    fn small_requests_pass_a_blob_eight_times_and_no_more() {
        let mut line = Line::new(&[1]);
        let one = party(0, "one");
        let blob = line.join(&one, Lane::Blob);
        for _ in 0..20 {
            line.join(&one, Lane::Small);
        }
        let order: Vec<Place> = (0..21).map(|_| line.serve(1, |_| 1).unwrap().1).collect();
        assert_eq!(order.iter().position(|place| *place == blob), Some(8));
    }

    #[test]
    fn who_left_is_forgotten() {
        let mut line = Line::new(&[1]);
        for number in 0..3000 {
            let client = party(0, &format!("client-{number}"));
            line.join(&client, Lane::Small);
            line.serve(1000, |_| 1000);
        }
        assert!(line.turns.classes[0].clients.len() <= MOST_AHEAD, "{}", line.turns.classes[0].clients.len());
    }
}
