//! A model of `script.lua`, line for line: what the store does with one request. Tests prove it equal to the script, and plans run it.

use super::message::{FleetOrder, Intent, LeaseAnswer, LeasePush, LeaseRequest, PoolForce, Process};
use super::records::{Loan, Records};
use super::yielding::{FleetMoment, Voter, Yielding};

/// The longest turn of a node when more nodes wish than slots exist, and the time in which each should have had one.
const LONGEST_TURN: u64 = 10_000;
const SHORTEST_TURN: u64 = 1_000;
const ROUND: u64 = 20_000;
/// Time of the server that nodes have not told of yet may be told of later, but no more than this.
const UNTOLD: u64 = 1_000;
/// After so long all records are looked at again.
const LONGEST_CALM: u64 = 1_000;
/// For so many processes, a turn or a lease that ends may wait a millisecond for the next look, which takes time for each of them: fleets
/// of any size cost the server about as much.
const PROCESSES_PER_CALM: u64 = 5;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreModel {
    /// The run of the server in which this was written; empty for an empty store.
    pub run: String,
    pub epoch: String,
    pub clock: u64,
    /// The time of the server up to which the clock has been told of.
    pub seen: u64,
    /// The clock when this epoch began.
    pub born: i64,
    /// The longest time for which anything was lent.
    pub longest: u64,
    pub order: FleetOrder,
    /// The slots in force of all nodes together.
    pub yielding: Yielding,
    pub calm: Calm,
    pub records: Records,
    /// Whether records cannot be read: nobody knows what was lent by them.
    pub is_torn: bool,
}

/// Whether anything is to be done about a process that says nothing new.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calm {
    /// Nothing until then.
    pub until: u64,
    /// The slots that each process may have beyond its wish.
    pub spare: u64,
    /// The window in which a process told of signs last.
    pub marked: u64,
    /// Until when a node may have two processes.
    pub twins: u64,
    /// A process that wishes for so many or more lacks slots, and it does not matter for how many it wishes; 0 if all wishes are met.
    pub unmet: u64,
}

/// The server, as it knows itself: its run, a stamp that no other moment has, and its time in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct ServerRun<'a> {
    pub run: &'a str,
    pub stamp: &'a str,
    pub time: u64,
}

/// The part of each process, in the order of the records.
struct Targets {
    of: Vec<u64>,
    /// As in [`Calm`].
    unmet: u64,
    /// How long each has one slot, if they take turns.
    turn: Option<u64>,
}

impl StoreModel {
    /// The operator says that nothing is open: an empty store begins without a learning time.
    pub fn init(&mut self, server: ServerRun<'_>) -> bool {
        if !self.records.is_empty() || self.is_torn {
            return false;
        }
        let epoch = format!("{}:{}", server.run, server.stamp);
        (self.run, self.epoch, self.born, self.seen) = (server.run.to_owned(), epoch, -1_000_000_000, server.time);
        true
    }

    /// An operator pauses all nodes, or lets them go on, at this time of the server in milliseconds. By that, an order that was given
    /// before the store lost its records, and that a node brings back, undoes none that came after it.
    pub fn order(&mut self, is_pause: bool, time: u64) -> FleetOrder {
        let given = (2 * time + u64::from(is_pause)).max(self.order.0 + 1);
        self.order = FleetOrder(given + (given + u64::from(is_pause)) % 2);
        self.order
    }

    pub fn ask(&mut self, server: ServerRun<'_>, request: &LeaseRequest) -> (Option<LeaseAnswer>, Vec<LeasePush>) {
        let name = request.process.to_string();
        if let Some(answer) = self.renew_quickly(&name, server, request) {
            return (Some(answer), Vec::new());
        }
        self.begin(server, request.hold);
        self.order = self.order.max(request.order);
        let known = request.epoch == self.epoch;
        // One that came late: its process has sent another since, or has left. A process that knows the epoch had a record.
        if self.records.get(&name).map_or(known, |record| request.number <= record.number) {
            return (None, Vec::new());
        }
        if known {
            (self.clock, self.seen) = self.advanced(request.clock, self.seen, server.time);
        }
        let clock = self.clock;
        self.records.retain(|record| record.until > clock);
        for instance in &request.gone {
            self.records.remove(&format!("{}/{instance}", request.process.node));
        }
        let of_node = format!("{}/", request.process.node);
        let twins = self.others(&name).filter(|(other, _)| other.starts_with(&of_node));
        let twin = twins.map(|(_, loan)| loan.until).max().unwrap_or(0);
        let before: Vec<(u64, u64)> = self.others(&name).map(|(_, loan)| (loan.granted, loan.limit)).collect();
        if twin > 0 && request.intent == Intent::Renew {
            self.calm.twins = self.calm.twins.max(twin).max(clock + request.hold);
        }
        let learning = u64::try_from(self.born + self.longest.cast_signed() - clock.cast_signed()).unwrap_or(0);
        if request.intent == Intent::Leave {
            self.records.remove(&name);
        } else {
            let record = self.renewed(&name, request, learning > 0 && !known);
            self.records.insert(name.clone(), record);
        }
        let force = self.in_force(request);
        let (again, turn) = self.lend(&name, learning > 0, force.slots);
        self.calm.until = if learning > 0 { 0 } else { self.calm_until(turn) };
        let pushes = self.pushes(&name, &before);
        if let Some(own) = self.records.get_mut(&name) {
            own.asks_at = if again > 0 { clock + again } else { 0 };
        }
        let own = self.records.get(&name).cloned().unwrap_or_default();
        let answer = LeaseAnswer {
            number: request.number,
            epoch: self.epoch.clone(),
            clock,
            granted: own.granted,
            limit: own.limit,
            again,
            learning,
            order: self.order,
            twin,
            force,
        };
        (Some(answer), pushes)
    }

    /// Renews a lease without a look at the others, where nothing is to be done about any, and this process says nothing new.
    fn renew_quickly(&mut self, name: &str, server: ServerRun<'_>, request: &LeaseRequest) -> Option<LeaseAnswer> {
        let before = self.records.get(name).filter(|_| self.run == server.run && self.epoch == request.epoch)?.clone();
        let (clock, seen) = self.advanced(request.clock, self.seen.min(server.time), server.time);
        let (wished, unmet) = (request.wished.min(request.pool), self.calm.unmet);
        let wishes_the_same = wished == before.wished || unmet > 0 && wished >= unmet && before.wished >= unmet;
        let says_nothing_new = wishes_the_same
            && request.intent == Intent::Renew
            && request.gone.is_empty()
            && request.evidence.signs == 0
            && request.order <= self.order
            && request.hold <= self.longest
            && (request.held, request.held, request.pool) == (before.granted, before.limit, before.pool);
        // One that lacks slots gets none from a look in which nothing is free, and asks when it was told to. One with some, where none
        // take turns, may not have been told. (One without any that came while the store learned waits for its next full look.)
        let is_served = before.granted >= wished + self.calm.spare || self.calm.spare == 0;
        let lacks_more = 0 < before.granted && before.granted < wished && unmet != 1;
        let is_to_ask = if before.asks_at > 0 { before.asks_at <= clock } else { lacks_more };
        let is_calm = self.yielding.slots == 0 && clock < self.calm.until;
        if !(says_nothing_new && is_served && is_calm) || is_to_ask || request.number <= before.number {
            return None;
        }
        (self.clock, self.seen) = (clock, seen);
        let tallied = self.yielding.count(before.tallied, &request.evidence);
        let (granted, limit) = (before.granted, before.limit);
        let again = before.asks_at.saturating_sub(clock);
        let loan = Loan { wished, until: clock + request.hold, number: request.number, tallied, ..before };
        self.records.insert(name.to_owned(), loan);
        let force = PoolForce { slots: 0, lowered: self.yielding.lowered, sign: self.yielding.sign.clone() };
        let (number, epoch, order) = (request.number, self.epoch.clone(), self.order);
        Some(LeaseAnswer { number, epoch, clock, granted, limit, again, learning: 0, order, twin: 0, force })
    }

    /// Nothing is to be done for a second at most, in which no lease and no turn ends, or ends but a moment ago; not while signs are judged.
    fn calm_until(&self, turn: Option<u64>) -> u64 {
        let has_signs = self.yielding.slots > 0 || self.calm.marked == self.yielding.began;
        if has_signs || self.clock < self.calm.twins {
            return 0;
        }
        let leases = self.records.values().map(|record| record.until);
        let holders = self.records.values().filter(|record| record.granted > 0);
        let turns = holders.filter_map(|record| turn.map(|turn| record.since + turn)).filter(|end| *end > self.clock);
        let first = leases.chain(turns).fold(self.clock + LONGEST_CALM, u64::min);
        first.max(self.clock + (self.records.len() as u64 / PROCESSES_PER_CALM).min(LONGEST_CALM))
    }

    /// The clock of this epoch shows what the node says, but it gains no more than 2 % on the clock of the server, and a second: a
    /// machine whose clock jumps ends no lease of others. Steps of the server's clock alone do nothing: a step back is time that
    /// begins anew, and after a step forward the nodes say how much has passed.
    fn advanced(&self, told: u64, seen: u64, time: u64) -> (u64, u64) {
        let passed = time - seen;
        let more = told.saturating_sub(self.clock).min(passed + passed / 50);
        if more == 0 {
            return (self.clock, seen);
        }
        (self.clock + more, (seen + more).max(time.saturating_sub(UNTOLD)).min(time))
    }

    /// The slots in force of all nodes together, with what this process has seen.
    fn in_force(&mut self, request: &LeaseRequest) -> PoolForce {
        let now = FleetMoment {
            clock: self.clock,
            pool: self.records.values().map(|record| record.pool).min().unwrap_or(0),
            wishes: self.records.values().map(|record| record.wished).sum(),
            floor: request.evidence.floor,
        };
        if request.intent == Intent::Renew && now.pool > 0 {
            let voters = self.records.iter().map(|(name, loan)| Voter {
                name,
                granted: loan.granted,
                wished: loan.wished,
                tallied: loan.tallied,
            });
            self.yielding.judge(|| voters.collect(), now);
        }
        self.yielding.force(now)
    }

    /// An empty store, another run of the server, or a record that cannot be read begins an epoch.
    fn begin(&mut self, server: ServerRun<'_>, hold: u64) {
        self.seen = self.seen.min(server.time);
        if self.run != server.run || self.is_torn {
            self.is_torn = false;
            server.run.clone_into(&mut self.run);
            self.epoch = format!("{}:{}", server.run, server.stamp);
            (self.born, self.seen) = (self.clock.cast_signed(), server.time);
        }
        self.longest = self.longest.max(hold);
    }

    /// The slots of the process from now on, before anything is lent: no more than it promised, and than it had. A grant that the
    /// request has crossed is said again, if it is wished for and was not taken back.
    fn renewed(&mut self, name: &str, request: &LeaseRequest, registers: bool) -> Loan {
        let before = self.records.get(name).map(|old| old.tallied).unwrap_or_default();
        if request.evidence.signs > 0 {
            self.calm.marked = self.yielding.began;
        }
        let tallied = self.yielding.count(before, &request.evidence);
        let old = self.records.get(name);
        let mut had = if registers { request.held } else { old.map_or(0, |old| old.granted.min(request.held)) };
        if let Some(old) = old.filter(|_| request.epoch == self.epoch) {
            had = had.max(old.limit.min(request.wished));
        }
        let goes_on = old.is_some_and(|old| if had > 0 { old.granted > 0 } else { old.granted == 0 && old.wished > 0 });
        Loan {
            granted: had,
            wished: request.wished.min(request.pool),
            until: self.clock + request.hold,
            number: request.number,
            limit: had,
            since: old.filter(|_| goes_on).map_or(self.clock, |old| old.since),
            pool: request.pool,
            tallied,
            asks_at: 0,
        }
    }

    /// Lends what is free of the slots in force (0: of all) to those that have less than their part, and tells those that have more.
    /// Returns when the process that asks should ask again, because a turn or a lease ends, and the length of turns.
    fn lend(&mut self, name: &str, learning: bool, in_force: u64) -> (u64, Option<u64>) {
        (self.calm.spare, self.calm.unmet) = (0, 0);
        let Some(pool) = self.records.values().map(|record| record.pool).min() else { return (0, None) };
        let pool = if in_force > 0 { in_force } else { pool };
        let targets = self.targets(pool);
        self.calm.unmet = targets.unmet;
        let sum: u64 = self.records.values().map(|record| record.granted).sum();
        let mut free = pool.saturating_sub(sum);
        let mut records: Vec<&mut Loan> = self.records.values_mut().collect();
        for record in &mut records {
            record.limit = record.granted;
        }
        if learning {
            return (0, targets.turn);
        }
        let mut need = sum.saturating_sub(pool);
        for at in lacking(&records, &targets.of) {
            let (record, target) = (&mut records[at], targets.of[at]);
            let more = free.min(target - record.granted);
            if more > 0 {
                record.asks_at = 0;
                record.since = if record.granted == 0 { self.clock } else { record.since };
            }
            record.granted += more;
            record.limit = record.granted;
            free -= more;
            need += target - record.granted;
        }
        if need > 0 {
            shrink(&mut records, &targets.of, need);
        } else if free > 0 && targets.turn.is_none() {
            let wanted: u64 = targets.of.iter().sum();
            let spare = (pool - wanted.min(pool)) / self.records.len() as u64;
            self.calm.spare = spare;
            if let Some(own) = self.records.get_mut(name) {
                own.granted += free.min((own.wished + spare).saturating_sub(own.granted));
                own.limit = own.granted;
            }
        }
        (self.again(name, targets.turn), targets.turn)
    }

    /// Max-min fair parts of the pool; when more processes wish than slots exist, the first in turn have one.
    fn targets(&self, pool: u64) -> Targets {
        let mut of = vec![0; self.records.len()];
        let wishing: Vec<(usize, &Loan)> =
            self.records.values().enumerate().filter(|(_, record)| record.wished > 0).collect();
        let count = wishing.len() as u64;
        if count > pool {
            let turn = (ROUND * pool / count).clamp(SHORTEST_TURN, LONGEST_TURN);
            let mut order: Vec<_> = wishing
                .iter()
                .map(|(at, record)| {
                    let is_over = self.clock - record.since >= turn;
                    match (record.granted > 0, is_over) {
                        (true, false) => (0, record.since.cast_signed(), *at),
                        (false, _) => (1, record.since.cast_signed(), *at),
                        (true, true) => (2, -record.since.cast_signed(), *at),
                    }
                })
                .collect();
            order.sort_unstable();
            let first = usize::try_from(pool).unwrap_or(usize::MAX);
            order.into_iter().take(first).for_each(|(_, _, at)| of[at] = 1);
            return Targets { of, unmet: 1, turn: Some(turn) };
        }
        let mut sorted: Vec<u64> = wishing.iter().map(|(_, record)| record.wished).collect();
        sorted.sort_unstable();
        let (level, mut rest) = water_level(&sorted, pool);
        let mut above: Vec<_> = Vec::new();
        for (at, record) in wishing {
            of[at] = record.wished.min(level);
            if record.wished > level {
                above.push((u64::MAX - record.granted, at));
            }
        }
        above.sort_unstable();
        for (_, at) in above {
            if rest > 0 {
                of[at] += 1;
                rest -= 1;
            }
        }
        Targets { of, unmet: level.checked_add(1).unwrap_or(0), turn: None }
    }

    /// At the n-th end of a turn or of a lease, the one that lacks slots in the n-th place asks; a node that was not heard of lately
    /// may be dead, and has no place. One whose turn is over has been told so already, and says when it is done: nobody has to ask
    /// for that, but its lease may end before it does.
    fn again(&self, name: &str, turn: Option<u64>) -> u64 {
        let lacks = |loan: &Loan| loan.granted < turn.map_or(loan.wished, |_| loan.wished.min(1));
        let Some(own) = self.records.get(name).filter(|own| lacks(own)) else { return 0 };
        let lately = self.clock + (own.until - self.clock) / 2;
        let ahead = self.others(name).filter(|(other, loan)| {
            let is_first = (loan.granted, loan.since, other.as_str()) < (own.granted, own.since, name);
            loan.until > lately && lacks(loan) && is_first
        });
        let turn_end = |loan: &Loan| turn.map(|turn| loan.since + turn).filter(|end| *end > self.clock);
        let holders = self.others(name).filter(|(_, loan)| loan.granted > 0);
        let mut ends: Vec<u64> = holders.map(|(_, loan)| loan.until.min(turn_end(loan).unwrap_or(u64::MAX))).collect();
        ends.sort_unstable();
        ends.get(ahead.count()).map_or(0, |end| end - self.clock)
    }

    /// All records but that of this process, in order.
    fn others(&self, name: &str) -> impl Iterator<Item = (&String, &Loan)> {
        self.records.iter().filter(move |(other, _)| *other != name)
    }

    /// The others, of which the grants and limits were these.
    fn pushes(&self, name: &str, before: &[(u64, u64)]) -> Vec<LeasePush> {
        let all = self.others(name).zip(before);
        all.filter(|((_, record), before)| **before != (record.granted, record.limit))
            .map(|((other, record), _)| {
                let (node, instance) = other.split_once('/').expect("a name has both");
                LeasePush {
                    process: Process { node: node.to_owned(), instance: instance.to_owned() },
                    epoch: self.epoch.clone(),
                    number: record.number,
                    granted: record.granted,
                    limit: record.limit,
                    lowered: self.yielding.lowered,
                }
            })
            .collect()
    }
}

/// Those that have less than their part: first those that have least, and have waited longest.
fn lacking(records: &[&mut Loan], targets: &[u64]) -> Vec<usize> {
    let mut lacking: Vec<usize> = (0..records.len()).filter(|at| records[*at].granted < targets[*at]).collect();
    lacking.sort_unstable_by_key(|at| (records[*at].granted, records[*at].since, *at));
    lacking
}

/// Tells those that have more than they can use, and then all that have more than their part, to get down.
fn shrink(records: &mut [&mut Loan], targets: &[u64], need: u64) {
    let mut need = need;
    let mut idle: Vec<(u64, usize)> = Vec::new();
    for (at, record) in records.iter().enumerate() {
        let used = record.wished.max(targets[at]);
        if record.granted > used {
            idle.push((u64::MAX - (record.granted - used), at));
        }
    }
    idle.sort_unstable();
    for (rest, at) in idle {
        let less = need.min(u64::MAX - rest);
        records[at].limit -= less;
        need -= less;
    }
    if need > 0 {
        for (record, target) in records.iter_mut().zip(targets) {
            record.limit = record.limit.min(*target);
        }
    }
}

/// The level up to which all wishes can be met, and the slots that are left for those with more.
fn water_level(sorted: &[u64], pool: u64) -> (u64, u64) {
    let mut left = pool;
    for (at, wish) in sorted.iter().enumerate() {
        let others = (sorted.len() - at) as u64;
        let level = left / others;
        if *wish > level {
            return (level, left - level * others);
        }
        left -= wish;
    }
    (u64::MAX, 0)
}
