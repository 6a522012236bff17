//! What holds changes while some wait and others hold: other limits, slots that another process has, draining.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::core::{Core, Decision, Limits};
use super::moment::Moment;
use super::queue::Ask;
use super::quiet::{Evidence, Quiet};
use super::rate::Rate;
use super::slots::SlotId;
use super::turns::{ClassId, Lane, Party};

fn at(millis: u64) -> Moment {
    Moment(Duration::from_millis(millis))
}

fn limits(slots: usize, rate: Option<(u64, u32)>, weights: &[u32]) -> Limits {
    let rate = rate
        .map(|(millis, burst)| Rate { period: Duration::from_millis(millis), burst: NonZeroU32::new(burst).unwrap() });
    Limits {
        slots,
        depth: 100,
        rate,
        idle_timeout: Duration::from_secs(60),
        max_lifetime: Duration::from_secs(600),
        max_connecting: usize::MAX,
        keep_place: Duration::ZERO,
        weights: weights.to_vec(),
    }
}

/// Somebody of this class asks; tells the slots that are given out by that.
fn arrive(core: &mut Core, class: usize, now: Moment) -> Vec<SlotId> {
    let party = Party { class: ClassId(class), client: format!("client of {class}").as_str().into() };
    let target: Arc<str> = "registry:443".into();
    let (place, _) = core.place(&party.client, &target, now);
    let deadline = now + Duration::from_secs(50);
    core.arrive(Ask { place, deadline, party, lane: Lane::Small, target, reuse: None, again: false }, now);
    given(core)
}

fn given(core: &mut Core) -> Vec<SlotId> {
    let decisions = std::iter::from_fn(|| core.next_decision());
    decisions
        .filter_map(|decision| if let Decision::Dial { slot, .. } = decision { Some(slot) } else { None })
        .collect()
}

#[test]
fn slots_that_another_process_holds_are_left_alone_until_it_gives_them_up() {
    let mut core = Core::new(limits(3, None, &[1]), at(0));
    core.reserve(2, at(0));
    let taken: usize = (0..3).map(|_| arrive(&mut core, 0, at(0)).len()).sum();
    assert_eq!((taken, core.snapshot(at(0)).reserved), (1, 2));
    core.reserve(1, at(1));
    assert_eq!(given(&mut core).len(), 1);
    core.reserve(0, at(2));
    assert_eq!(given(&mut core).len(), 1);
}

#[test]
fn another_rate_makes_no_burst() {
    let mut core = Core::new(limits(100, Some((1000, 5)), &[1]), at(0));
    let taken: usize = (0..8).map(|_| arrive(&mut core, 0, at(0)).len()).sum();
    assert_eq!(taken, 5);
    core.change(limits(100, Some((1000, 50)), &[1]), at(0));
    assert_eq!(given(&mut core).len(), 0, "what was used is used");
    core.tick(at(1000));
    assert_eq!(given(&mut core).len(), 1);
    core.change(limits(100, None, &[1]), at(1001));
    assert_eq!(given(&mut core).len(), 2, "no rate holds the others back any more");
}

#[test]
fn the_same_rate_keeps_what_is_left() {
    let mut core = Core::new(limits(100, Some((1000, 5)), &[1]), at(0));
    assert_eq!(arrive(&mut core, 0, at(0)).len(), 1);
    core.change(limits(200, Some((1000, 5)), &[1]), at(0));
    let taken: usize = (0..8).map(|_| arrive(&mut core, 0, at(0)).len()).sum();
    assert_eq!(taken, 4);
}

#[test]
fn who_waits_keeps_its_place_and_classes_may_be_added() {
    let mut core = Core::new(limits(1, None, &[1]), at(0));
    let first = arrive(&mut core, 0, at(0));
    arrive(&mut core, 0, at(1));
    core.change(limits(1, None, &[1, 9]), at(2));
    arrive(&mut core, 1, at(3));
    assert_eq!(core.snapshot(at(3)).waiting_by_class, [1, 1]);
    core.released(first[0], at(4));
    assert_eq!(given(&mut core).len(), 1);
    core.change(limits(2, None, &[1, 9]), at(5));
    assert_eq!(given(&mut core).len(), 1, "more slots are there at once");
}

#[test]
fn draining_recalls_quiet_tunnels_though_nobody_waits() {
    let mut core = Core::new(limits(2, None, &[1]), at(0));
    let slot = arrive(&mut core, 0, at(0))[0];
    core.established(slot, at(1));
    let quiet = Quiet { evidence: Evidence::Idle, since: at(10), from: at(60), from_for_own: at(60) };
    let mut running = Core::new(limits(2, None, &[1]), at(0));
    let other = arrive(&mut running, 0, at(0))[0];
    running.established(other, at(1));
    running.quiet(other, quiet.clone(), at(20));
    running.tick(at(100));
    assert_eq!(running.next_decision(), None, "nobody waits, and nothing drains");
    core.quiet(slot, quiet, at(20));
    core.drain(at(30));
    assert_eq!((core.next_decision(), core.wake_at()), (None, Some(at(60))), "not before its pause is over");
    core.tick(at(60));
    assert_eq!(core.next_decision(), Some(Decision::Recall { slot, evidence: Evidence::Idle }));
}
