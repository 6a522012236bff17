//! The pool that yields: a model of the part of `script.lua` that finds how many slots of all nodes together are in force.
//!
//! Nodes send what they saw with each request, and their evidence is counted in one window. Only less is
//! lent than the pool: nothing here can make it more. Whole numbers only, since the script must come to the same.

use super::message::{FleetEvidence, PoolForce};

/// A window is no shorter, and with signs it has so many answers or lasts so long.
const SHORTEST_WINDOW: u64 = 500;
const ENOUGH: u64 = 50;
/// It is not looked at more often: that takes the store a moment in a fleet of hundreds.
const PAUSE: u64 = 100;
const PATIENCE: u64 = 2_000;
/// It ends then, whether the nodes with more than half of the slots of those with answers have said something or not.
const LONGEST_WINDOW: u64 = 30_000;
/// The part of answers that may be signs of overload without an effect, in millionths.
const TOLERATED: u64 = 20_000;
/// With no more than this part the slots rise.
const HARMLESS: u64 = 10_000;
/// After so long without a sign, the slots rise whatever their use.
const QUIET: u64 = 60_000;
/// How long they stay where signs came last.
const STAY: u64 = 10_000;

/// The slots in force, in thousandths, 0 for all; and moments of the store's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Yielding {
    pub slots: u64,
    /// Where signs came last.
    pub knee: u64,
    pub lowered: u64,
    /// The end of the last window with a sign.
    pub signed: u64,
    /// The start of the window.
    pub began: u64,
    /// When it was looked at last.
    pub looked: u64,
    pub sign: String,
}

/// The evidence of one process in the window that began then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tallied {
    pub window: u64,
    pub good: u64,
    pub signs: u64,
    pub worked: u64,
    pub span: u64,
}

/// A process as a voter: its slots, and what it saw.
#[derive(Clone, Copy, Debug)]
pub struct Voter<'a> {
    pub name: &'a str,
    pub granted: u64,
    pub wished: u64,
    pub tallied: Tallied,
}

impl Voter<'_> {
    fn used(&self) -> u64 {
        self.granted.min(self.wished)
    }
}

/// The fleet at this moment, as one request sees it.
#[derive(Clone, Copy, Debug)]
pub struct FleetMoment {
    pub clock: u64,
    pub pool: u64,
    pub wishes: u64,
    pub floor: u64,
}

impl Yielding {
    /// The tally of a process in this window, with this evidence. Answers to requests of before the last lowering say nothing of the slots now.
    pub fn count(&mut self, before: Tallied, evidence: &FleetEvidence) -> Tallied {
        let has_answers = evidence.good + evidence.signs > 0;
        let counts = has_answers || before.window == self.began;
        if evidence.span == 0 || evidence.lowered != self.lowered || !counts {
            return before;
        }
        let mut tallied = if before.window == self.began { before } else { Tallied::default() };
        tallied.window = self.began;
        tallied.good += evidence.good;
        tallied.signs += evidence.signs;
        tallied.worked += evidence.worked;
        tallied.span += evidence.span;
        if evidence.signs > 0 {
            self.sign.clone_from(&evidence.sign);
        }
        tallied
    }

    /// The slots in force, for an answer and for what is lent: 0 for all.
    pub fn force(&self, now: FleetMoment) -> PoolForce {
        let slots = if self.slots > 0 { self.whole(now.floor).min(now.pool) } else { 0 };
        let slots = if slots == now.pool { 0 } else { slots };
        PoolForce { slots, lowered: self.lowered, sign: self.sign.clone() }
    }

    fn whole(&self, floor: u64) -> u64 {
        ((self.slots + 500) / 1000).max(floor.max(1))
    }

    /// Whether a process had answers in this window or not long ago.
    fn knows(&self, tallied: &Tallied, clock: u64) -> bool {
        let is_new = tallied.window == self.began || tallied.window + LONGEST_WINDOW >= clock;
        is_new && tallied.good + tallied.signs > 0
    }

    /// Ends the window if it says enough, and lowers the slots or raises them.
    pub fn judge<'a>(&mut self, all: impl FnOnce() -> Vec<Voter<'a>>, now: FleetMoment) {
        let age = now.clock - self.began;
        if age < SHORTEST_WINDOW || now.clock < self.looked + PAUSE {
            return;
        }
        self.looked = now.clock;
        let all = all();
        let known: Vec<&Voter<'_>> = all.iter().filter(|voter| self.knows(&voter.tallied, now.clock)).collect();
        let (voters, silent): (Vec<&Voter<'_>>, Vec<&Voter<'_>>) =
            known.iter().copied().partition(|voter| voter.tallied.window == self.began);
        let sum = |count: fn(&Tallied) -> u64| voters.iter().map(|voter| count(&voter.tallied)).sum::<u64>();
        let (good, signs) = (sum(|tallied| tallied.good), sum(|tallied| tallied.signs));
        let weight = |voters: &[&Voter<'_>]| voters.iter().map(|voter| voter.granted.max(1)).sum::<u64>();
        let total = weight(&voters);
        let by_all = weight(&known);
        let is_quorum = known.is_empty() || voters.len() > 1 && total * 2 > by_all || total * 4 > by_all * 3;
        let is_enough = signs == 0 || good + signs >= ENOUGH || age >= PATIENCE;
        if !(is_quorum && is_enough) && age < LONGEST_WINDOW {
            return;
        }
        self.began = now.clock;
        let Sound { signs, spoiled, weight: sound, worked, used } = without_the_worst(&voters, by_all);
        // A node that sees signs says so at once: those that are silent saw none.
        let spoiled = spoiled / (sound + weight(&silent)).max(1);
        let is_calm = spoiled <= HARMLESS;
        if !is_calm {
            self.signed = now.clock;
        }
        let pool = now.pool * 1000;
        let force = if self.slots > 0 { self.slots.min(pool) } else { pool };
        if spoiled > TOLERATED && signs > 1 {
            // Signs may come quicker than good answers, which then are few, though as much is worked on as before.
            let elsewhere: u64 = silent.iter().map(|voter| voter.used()).sum();
            let by_all: u64 = all.iter().map(Voter::used).sum();
            let served = (worked + elsewhere * 1000) * by_all / (used + elsewhere).max(1);
            self.knee = served.max(force * (1_000_000 - spoiled) / 1_000_000).max(force * 3 / 4).min(force);
            self.slots = (self.knee * 95 / 100).max(now.floor.max(1) * 1000).min(pool);
            self.lowered = now.clock;
        } else if self.slots > 0 && is_calm {
            let is_quiet = now.clock - self.signed >= QUIET;
            if is_quiet || good > 0 && now.wishes >= self.whole(now.floor) {
                self.raise(force, pool, age, now.clock);
            }
        }
    }

    /// By a sixth at a time, but slowly above the number at which signs came last.
    fn raise(&mut self, force: u64, all: u64, age: u64, clock: u64) {
        let quickly = force + ((all / 32).max(1000) * age.min(5000) / 1000).min((force / 6).max(1000));
        let mut next = quickly;
        if self.knee > 0 && quickly > self.knee {
            let stay = STAY * (force * 4).min(all) / all;
            let stays = clock - self.lowered < stay;
            let slowly = (force + age.min(1000)).max(self.knee);
            next = if stays { force.max(self.knee) } else { slowly };
            if slowly > self.knee * 100 / 95 + 1000 {
                self.knee = 0;
            }
        }
        self.slots = if next < all { next } else { 0 };
    }
}

/// Nodes without the worst.
struct Sound {
    signs: u64,
    /// The parts of answers that are signs, in millionths, each times the weight of its node, and the weights.
    spoiled: u64,
    weight: u64,
    /// The slots in which good answers were worked on all the time, in thousandths, and those that were used.
    worked: u64,
    used: u64,
}

/// The worst are left out, up to a quarter of the slots, and one node at least unless it has most of them: nodes that see signs alone are
/// ill themselves.
fn without_the_worst(voters: &[&Voter<'_>], by_all: u64) -> Sound {
    let spoiled = |voter: &Voter<'_>| {
        let Tallied { good, signs, .. } = voter.tallied;
        signs * 1_000_000 / (good + signs).max(voter.granted)
    };
    let mut voters: Vec<(u64, u64, &Voter<'_>)> =
        voters.iter().map(|voter| (spoiled(voter), voter.granted.max(1), *voter)).collect();
    voters.sort_by(|(a, _, one), (b, _, other)| b.cmp(a).then(one.name.cmp(other.name)));
    let total: u64 = voters.iter().map(|(_, weight, _)| weight).sum();
    let mut bound = match &voters[..] {
        [(_, worst, _), _, ..] if worst * 2 <= by_all => (total / 4).max(*worst),
        _ => total / 4,
    };
    let mut left_out = 0;
    let mut sound = Sound { signs: 0, spoiled: 0, weight: 0, worked: 0, used: 0 };
    for (spoiled, weight, voter) in voters {
        if left_out + weight <= bound {
            left_out += weight;
        } else {
            bound = 0;
            sound.weight += weight;
            sound.signs += voter.tallied.signs;
            sound.spoiled += weight * spoiled;
            sound.worked += voter.tallied.worked * 1000 / voter.tallied.span;
            sound.used += voter.used();
        }
    }
    sound
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three of five nodes speak first, because they see signs: a quarter of their answers, and so an eighth of those of all but the worst.
    #[test]
    fn nodes_that_say_nothing_saw_no_sign() {
        let spoke = Tallied { window: 1_000, good: 45, signs: 15, worked: 3_750, span: 500 };
        let spoke_before = Tallied { window: 500, good: 50, signs: 0, worked: 5_000, span: 500 };
        let all = ["a", "b", "c", "d", "e"].map(|name| {
            let tallied = if name < "d" { spoke } else { spoke_before };
            Voter { name, granted: 10, wished: 10, tallied }
        });
        let mut yielding = Yielding { began: 1_000, ..Yielding::default() };
        yielding.judge(|| all.to_vec(), FleetMoment { clock: 2_000, pool: 50, wishes: 50, floor: 1 });
        assert_eq!((yielding.knee, yielding.slots), (43_750, 41_562));
    }

    /// It may have had an answer a while ago, and none since.
    #[test]
    fn a_node_with_few_slots_that_says_nothing_is_not_waited_for() {
        let heavy = Tallied { window: 1_000, good: 30, signs: 70, worked: 9_000, span: 500 };
        let light = Tallied { window: 500, good: 1, signs: 0, worked: 20, span: 500 };
        let all = [("a", 59, heavy), ("b", 1, light)].map(|(name, granted, tallied)| Voter {
            name,
            granted,
            wished: granted,
            tallied,
        });
        let mut yielding = Yielding { began: 1_000, ..Yielding::default() };
        yielding.judge(|| all.to_vec(), FleetMoment { clock: 1_600, pool: 60, wishes: 60, floor: 1 });
        assert_eq!((yielding.lowered, yielding.slots), (1_600, 42_750));
    }
}
