//! How well slots are used: the time for which they are held, and the part of it in which they are busy.
//!
//! A slot is held from its grant until it comes back. It is *busy* from the grant until the connection stands; then
//! from the first byte that moves until the last one before a silence that the holder tells of
//! ([`super::slot::Slot::quiet`]), which are silences of 50 ms and more; shorter ones count as busy. A request that
//! waits for its answer is busy, for the registry works on it. Kept connections, unused tunnels and those whose answer
//! seems over are not, nor is a connection on its way out.

use std::time::Duration;

use super::maps::NumberMap;
use super::moment::Moment;
use super::slot::SlotId;

/// A silence is known later than it begins. Busy time counts up to this long ago, so that the sum never has to be reduced.
const KNOWN_AFTER: Duration = Duration::from_secs(1);

/// Time for which slots were held, and in which they were busy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    pub held: Duration,
    /// The part of it in which they were busy.
    pub busy: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Usage {
    settled: Used,
    open: NumberMap<SlotId, Meter>,
}

#[derive(Clone, Copy, Debug)]
struct Meter {
    busy: bool,
    busy_since: Moment,
    /// Up to here it is in the sums.
    settled: Moment,
}

impl Usage {
    pub fn granted(&mut self, slot: SlotId, now: Moment) {
        self.open.insert(slot, Meter { busy: true, busy_since: now, settled: now });
    }

    /// From `since` on the slot is busy, or is not. Late word of what is settled already changes nothing.
    pub fn set_busy(&mut self, slot: SlotId, busy: bool, since: Moment) {
        if let Some(meter) = self.open.get_mut(&slot) {
            self.settled.add(meter.until(since));
            meter.settled = meter.settled.max(since);
            if busy && !meter.busy {
                meter.busy_since = since;
            }
            meter.busy = busy;
        }
    }

    pub fn released(&mut self, slot: SlotId, now: Moment) {
        if let Some(meter) = self.open.remove(&slot) {
            self.settled.add(meter.until(now));
        }
    }

    /// How long the slot that is busy for longest has been so.
    pub fn longest_busy(&self, now: Moment) -> Duration {
        let busy = self.open.values().filter(|meter| meter.busy);
        busy.map(|meter| now.since(meter.busy_since)).max().unwrap_or_default()
    }

    pub fn used(&self, now: Moment) -> Used {
        let mut used = self.settled;
        for meter in self.open.values() {
            used.add(meter.until(if meter.busy { now - KNOWN_AFTER } else { now }));
        }
        used
    }
}

impl Meter {
    /// The amount to add up to `end`.
    fn until(self, end: Moment) -> Used {
        let held = end.since(self.settled);
        Used { held, busy: if self.busy { held } else { Duration::ZERO } }
    }
}

impl Used {
    fn add(&mut self, more: Used) {
        self.held += more.held;
        self.busy += more.busy;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: SlotId = SlotId(1);

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    fn used(held: u64, busy: u64) -> Used {
        Used { held: Duration::from_millis(held), busy: Duration::from_millis(busy) }
    }

    #[test]
    fn silences_count_from_their_beginning_however_late_they_are_told() {
        let mut usage = Usage::default();
        usage.granted(SLOT, at(1000));
        usage.set_busy(SLOT, true, at(1010));
        usage.set_busy(SLOT, false, at(1100));
        usage.set_busy(SLOT, true, at(1400));
        usage.set_busy(SLOT, false, at(1350));
        usage.released(SLOT, at(1500));
        assert_eq!(usage.used(at(9000)), used(500, 100));
    }

    #[test]
    fn what_may_yet_turn_out_to_be_a_silence_is_not_counted_before_it_is_known() {
        let mut usage = Usage::default();
        usage.granted(SLOT, at(0));
        assert_eq!(usage.used(at(900)), used(0, 0));
        assert_eq!(usage.used(at(5000)), used(4000, 4000));
        usage.set_busy(SLOT, false, at(4950));
        assert_eq!(usage.used(at(6000)), used(6000, 4950));
    }

    #[test]
    fn two_slots_add_up() {
        let mut usage = Usage::default();
        usage.granted(SLOT, at(0));
        usage.granted(SlotId(2), at(0));
        usage.set_busy(SLOT, false, at(0));
        usage.released(SLOT, at(100));
        usage.released(SlotId(2), at(100));
        assert_eq!(usage.used(at(100)), used(200, 100));
    }
}
