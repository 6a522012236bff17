//! The limits change while requests wait and others hold: other limits, slots that another process has, draining.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::decision::{Decision, LimitedBy, Limits, Needs};
use super::moment::Moment;
use super::rate::RateLimit;
use super::request::{AdmissionRequest, ClassId, ClientId, Lane, Place, Principal};
use super::slot::{Evidence, Quiet, SlotEvent, SlotId, SlotState};
use crate::lease::borrowed::Lent;

fn at(millis: u64) -> Moment {
    Moment(Duration::from_millis(millis))
}

fn limits(slots: usize, rate: Option<(u64, u32)>, weights: &[u32]) -> Limits {
    let rate = rate.map(|(millis, burst)| RateLimit {
        period: Duration::from_millis(millis),
        burst: NonZeroU32::new(burst).unwrap(),
    });
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
    let principal = Principal { class: ClassId(class), client: format!("client of {class}").as_str().into() };
    let target: Arc<str> = "registry:443".into();
    let (place, _) = core.place(&principal.client, &target, now);
    let deadline = now + Duration::from_secs(50);
    core.arrive(
        AdmissionRequest { lane: Lane::Small, ..AdmissionRequest::new(place, deadline, principal, target) },
        now,
    );
    given(core)
}

/// The same for a request that its caller holds.
fn arrive_held(core: &mut Core, now: Moment) -> Vec<SlotId> {
    let principal = Principal { class: ClassId(0), client: "one that is held".into() };
    let (place, _) = core.place(&principal.client, "other:443", now);
    let request = AdmissionRequest::new(place, now + Duration::from_secs(50), principal, "other:443".into());
    core.arrive(AdmissionRequest { held: true, ..request }, now);
    given(core)
}

fn given(core: &mut Core) -> Vec<SlotId> {
    let decisions = std::iter::from_fn(|| core.next_decision());
    decisions
        .filter_map(|decision| if let Decision::Dial { slot, .. } = decision { Some(slot) } else { None })
        .collect()
}

/// By an outage, by a node that is full, or by its caller; before the change, and by an old request after it.
#[test]
fn nothing_is_held_where_the_slots_have_no_bound() {
    let bounded = |slots| limits(slots, None, &[1]);
    for event in [SlotEvent::Unreachable, SlotEvent::NodeFull] {
        let mut core = Core::new(bounded(60), at(0));
        let old: Vec<SlotId> = (0..2).flat_map(|_| arrive(&mut core, 0, at(0))).collect();
        core.tell(old[0], event.clone(), at(1));
        assert_eq!((arrive(&mut core, 0, at(2)), arrive_held(&mut core, at(2))), (vec![], vec![]), "{event:?}");
        core.change(bounded(usize::MAX), at(3));
        assert_eq!(given(&mut core).len(), 2, "{event:?}");
        core.tell(old[1], event.clone(), at(4));
        assert_eq!((arrive(&mut core, 0, at(5)).len(), arrive_held(&mut core, at(5)).len()), (1, 1), "{event:?}");
        core.change(bounded(60), at(6));
        assert_eq!(arrive(&mut core, 0, at(6)).len(), 1, "{event:?}: it is forgotten");
    }
}

/// No change makes a burst: connects that nothing bounds spend the tokens all the same, and none is missed that would be there.
#[test]
fn a_rate_that_bounds_again_begins_with_the_tokens_that_are_left() {
    for (connects, expected) in [(0, 5), (3, 2), (50, 0)] {
        let mut core = Core::new(limits(usize::MAX, Some((1_000, 5)), &[1]), at(0));
        let taken: usize = (0..connects).map(|_| arrive(&mut core, 0, at(0)).len()).sum();
        core.change(limits(60, Some((1_000, 5)), &[1]), at(1));
        let more: usize = (0..10).map(|_| arrive(&mut core, 0, at(2)).len()).sum();
        assert_eq!((taken, more), (connects, expected), "after {connects}");
    }
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

/// Released slots belong to the other process, and waiters are served by the slots that it grants.
#[test]
fn a_process_that_hands_over_uses_no_slot_again_but_what_it_is_granted() {
    let needs = |slots, wanted| Needs { slots, wanted };
    let mut core = Core::new(limits(10, None, &[1]), at(0));
    let slots: Vec<SlotId> = (0..3).flat_map(|_| arrive(&mut core, 0, at(0))).collect();
    assert_eq!(core.hand_over(0, at(1)), needs(3, 0));
    assert_eq!(arrive(&mut core, 0, at(2)), [], "the others are another process's by now");
    assert_eq!(core.hand_over(0, at(3)), needs(3, 1));
    core.tell(slots[0], SlotEvent::Released, at(4));
    assert_eq!((given(&mut core), core.hand_over(0, at(4))), (vec![], needs(2, 1)), "and so is this one");
    assert_eq!(
        (core.hand_over(2, at(5)), given(&mut core).len()),
        (needs(3, 0), 1),
        "more than is needed is given back"
    );
    core.change(limits(20, None, &[1]), at(7));
    assert_eq!(arrive(&mut core, 0, at(7)), [], "whatever the number of slots is");
}

#[test]
fn what_an_older_process_holds_counts_with_what_is_handed_over() {
    let mut core = Core::new(limits(10, None, &[1]), at(0));
    core.reserve(8, at(0));
    let taken: usize = (0..4).map(|_| arrive(&mut core, 0, at(0)).len()).sum();
    assert_eq!((taken, core.hand_over(0, at(1))), (2, Needs { slots: 10, wanted: 2 }));
    core.reserve(5, at(2));
    assert_eq!((given(&mut core), core.hand_over(0, at(2))), (vec![], Needs { slots: 7, wanted: 2 }));
    assert_eq!((core.hand_over(1, at(3)), given(&mut core).len()), (Needs { slots: 8, wanted: 1 }, 1));
}

#[test]
fn more_than_there_should_be_is_told_as_it_is() {
    let mut core = Core::new(limits(4, None, &[1]), at(0));
    let slots: Vec<SlotId> = (0..4).flat_map(|_| arrive(&mut core, 0, at(0))).collect();
    core.change(limits(2, None, &[1]), at(1));
    assert_eq!(core.hand_over(0, at(2)).slots, 4);
    core.tell(slots[0], SlotEvent::Released, at(3));
    assert_eq!(core.hand_over(0, at(3)).slots, 3);
}

#[test]
fn what_is_pooled_while_draining_is_closed() {
    let mut core = Core::new(limits(1, None, &[1]), at(0));
    core.drain(at(0));
    let slot = arrive(&mut core, 0, at(0))[0];
    core.tell(slot, SlotEvent::Pooled("key".into()), at(2));
    assert!(matches!(core.next_decision(), Some(Decision::Close { .. })));
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
    core.tell(first[0], SlotEvent::Released, at(4));
    assert_eq!(given(&mut core).len(), 1);
    core.change(limits(2, None, &[1, 9]), at(5));
    assert_eq!(given(&mut core).len(), 1, "more slots are there at once");
}

/// A quiet tunnel goes for nobody, also while the process drains. It goes for a request that waits here, and for another
/// process that takes over.
#[test]
fn draining_reclaims_quiet_tunnels_for_those_who_can_use_the_slot() {
    let quiet_tunnel = || {
        let mut core = Core::new(limits(1, None, &[1]), at(0));
        let slot = arrive(&mut core, 0, at(0))[0];
        core.tell(slot, SlotEvent::Established(SlotState::Active), at(1));
        core.tell(slot, SlotEvent::Quiet(Quiet { evidence: Evidence::Idle, since: at(10), from: at(60) }), at(20));
        core.drain(at(30));
        (core, slot)
    };
    let (mut alone, _) = quiet_tunnel();
    alone.tick(at(1000));
    assert_eq!((alone.next_decision(), alone.wake_at()), (None, None), "nobody waits");
    let (mut wanted, slot) = quiet_tunnel();
    assert_eq!(arrive(&mut wanted, 0, at(40)), []);
    assert_eq!(wanted.wake_at(), Some(at(60)), "not before its pause is over");
    wanted.tick(at(60));
    assert_eq!(wanted.next_decision(), Some(Decision::Reclaim { slot }));
    let (mut followed, slot) = quiet_tunnel();
    followed.hand_over(0, at(40));
    assert_eq!((followed.next_decision(), followed.wake_at()), (None, Some(at(60))));
    followed.tick(at(60));
    assert_eq!(followed.next_decision(), Some(Decision::Reclaim { slot }));
}

/// Requests for a node that has no slot left wait without a look at the clock. One tries again when a slot comes back or lies
/// idle, and the next one when that is connected.
#[test]
fn a_full_node_is_tried_again_when_a_slot_comes_back_and_not_before() {
    let mut core = Core::new(limits(100, None, &[1]), at(0));
    let ask = |place| {
        let principal = Principal { class: ClassId(0), client: "client".into() };
        AdmissionRequest::new(place, at(50_000), principal, "registry:443".into())
    };
    let arrives = |core: &mut Core| {
        let (place, _) = core.place(&"client".into(), "registry:443", at(0));
        core.arrive(ask(place), at(0));
    };
    let tried = |core: &mut Core| match core.next_decision() {
        Some(Decision::Dial { place, slot, .. }) => Some((place, slot)),
        None => None,
        other => panic!("{other:?}"),
    };
    let is_full = |core: &mut Core, (place, slot), now| {
        core.tell(slot, SlotEvent::NodeFull, now);
        core.tell(slot, SlotEvent::Released, now);
        core.arrive(ask(place), now);
    };
    let established = SlotEvent::Established(SlotState::Active);
    arrives(&mut core);
    let (_, holder) = tried(&mut core).unwrap();
    core.tell(holder, established.clone(), at(0));
    for _ in 0..50 {
        arrives(&mut core);
        while let Some(one) = tried(&mut core) {
            is_full(&mut core, one, at(1));
        }
    }
    let snapshot = core.snapshot(at(1));
    assert_eq!((snapshot.waiting, snapshot.limited_by), (50, Some(LimitedBy::Slots)));
    assert_eq!(core.wake_at(), Some(at(50_000)), "no look before a deadline");
    core.tell(holder, SlotEvent::Released, at(2));
    let (_, second) = tried(&mut core).unwrap();
    assert_eq!(tried(&mut core), None, "one at a time");
    core.tell(second, established, at(2));
    let third = tried(&mut core).unwrap();
    is_full(&mut core, third, at(2));
    assert_eq!((tried(&mut core), core.wake_at()), (None, Some(at(50_000))));
    let quiet = Quiet { evidence: Evidence::Idle, since: at(3), from: at(1000) };
    core.tell(second, SlotEvent::Quiet(quiet), at(3));
    let third = tried(&mut core).unwrap();
    is_full(&mut core, third, at(3));
    core.reclaim_among(&[second], &"registry:443".into(), at(3));
    assert_eq!((tried(&mut core), core.wake_at()), (None, Some(at(1000))), "when it may be reclaimed");
    core.tick(at(1000));
    let third = tried(&mut core).unwrap();
    is_full(&mut core, third, at(1000));
    core.reclaim_among(&[second], &"registry:443".into(), at(1000));
    assert_eq!(core.next_decision(), Some(Decision::Reclaim { slot: second }));
}

/// A request that waits is told of distress only where another slot would be granted without it.
#[test]
fn distress_is_the_cause_only_where_it_binds() {
    let mut core = Core::new(limits(3, None, &[1]), at(0));
    let limited_by = |core: &Core| core.snapshot(at(1)).limited_by;
    core.yield_to(Some(1), at(0));
    let taken: usize = (0..2).map(|_| arrive(&mut core, 0, at(0)).len()).sum();
    assert_eq!((taken, limited_by(&core)), (1, Some(LimitedBy::Distress)));
    assert!(core.load().1, "all slots in force are busy");
    core.reserve(2, at(1));
    assert_eq!(limited_by(&core), Some(LimitedBy::Slots), "another process holds the other two");
    core.reserve(0, at(1));
    assert_eq!(limited_by(&core), Some(LimitedBy::Distress));
    core.yield_to(None, at(1));
    assert_eq!(limited_by(&core), None);
}

/// One leased slot, or none at all, beside other nodes.
#[derive(Debug)]
struct LentOne {
    answers: bool,
    yields: bool,
}

impl Lent for LentOne {
    fn slots(&self) -> Option<usize> {
        self.answers.then_some(1)
    }

    fn is_paused(&self) -> bool {
        false
    }

    fn yields(&self) -> bool {
        self.yields
    }
}

#[test]
fn distress_is_the_cause_where_the_slots_of_all_nodes_yield() {
    let limited_by = |answers, yields| {
        let mut core = Core::new(limits(0, None, &[1]), at(0));
        core.lend(Arc::new(LentOne { answers, yields }));
        let taken: usize = (0..2).map(|_| arrive(&mut core, 0, at(0)).len()).sum();
        assert_eq!(taken, usize::from(answers));
        core.snapshot(at(1)).limited_by
    };
    assert_eq!(limited_by(true, true), Some(LimitedBy::Distress));
    assert_eq!(limited_by(true, false), Some(LimitedBy::Slots));
    assert_eq!(limited_by(false, true), Some(LimitedBy::Slots), "a store that does not answer");
}

/// Parked tunnels whose clients speak go before all who wait, whatever the weights, and among themselves in the order in which
/// they came first. One whose target is out is passed over, and one that leaves is forgotten.
#[test]
fn parked_tunnels_go_before_all_who_wait_in_their_first_order() {
    // Those that speak, in this order; the one that is out; the one that leaves; the order in which they are admitted.
    for (speaking, out, leaving, expected) in [
        (&[0][..], None, None, &[0][..]),
        (&[2, 0, 1], None, None, &[0, 1, 2]),
        (&[1, 2], Some(1), None, &[2]),
        (&[2, 1, 0], None, Some(0), &[1, 2]),
        (&[0, 1, 2], Some(2), Some(1), &[0]),
    ] {
        let mut core = Core::new(limits(1, None, &[1, 1000]), at(0));
        let holder = arrive(&mut core, 0, at(0))[0];
        let target = |parked: usize| -> Arc<str> { format!("registry-{parked}:443").as_str().into() };
        let parked: Vec<Place> = (0..3).map(|number| core.place(&"parked".into(), &target(number), at(1)).0).collect();
        if let Some(out) = out {
            core.books.outages.fail(&target(out), parked[out], at(1));
        }
        assert_eq!([arrive(&mut core, 1, at(2)), arrive(&mut core, 0, at(3))], [[], []]);
        for &number in speaking {
            let principal = Principal { class: ClassId(0), client: "parked".into() };
            let (place, target, deadline) = (parked[number].ahead(), target(number), at(9000));
            core.arrive(AdmissionRequest::new(place, deadline, principal, target), at(4));
        }
        if let Some(leaving) = leaving {
            core.leave(parked[leaving].ahead(), at(5));
        }
        let (mut slot, mut admitted) = (holder, Vec::new());
        for _ in 0..=expected.len() {
            core.tell(slot, SlotEvent::Released, at(6));
            let Some(Decision::Dial { place, slot: next, .. }) = core.next_decision() else {
                panic!("nobody is admitted")
            };
            slot = next;
            admitted.push(parked.iter().position(|parked| parked.ahead() == place));
        }
        let expected: Vec<_> = expected.iter().copied().map(Some).chain([None]).collect();
        assert_eq!(admitted, expected, "{speaking:?}");
    }
}

/// A parked tunnel that speaks and leaves, or finds no slot in time, keeps the place in its turn: its client goes ahead of nobody
/// when it comes back, however often.
#[test]
fn who_left_from_ahead_of_all_comes_back_in_turn() {
    for leaves in [true, false] {
        let mut core = Core::new(Limits { keep_place: Duration::from_secs(60), ..limits(1, None, &[1, 1]) }, at(0));
        let holder = arrive(&mut core, 1, at(0))[0];
        let (client, target): (ClientId, Arc<str>) = ("parked".into(), "registry:443".into());
        let request = |place, until| {
            let principal = Principal { class: ClassId(0), client: client.clone() };
            AdmissionRequest::new(place, until, principal, target.clone())
        };
        let (place, _) = core.place(&client, &target, at(5));
        assert_eq!(arrive(&mut core, 0, at(1)), []);
        core.arrive(request(place.ahead(), at(10)), at(6));
        if leaves {
            core.leave(place.ahead(), at(7));
        } else {
            core.tick(at(10));
            let Some(Decision::Refuse { place, may_return: Some(owner), .. }) = core.next_decision() else {
                panic!("nobody is refused")
            };
            core.keep_place(place, owner, at(10));
        }
        let (kept, owner) = core.place(&client, &target, at(11));
        assert!(kept == place && owner.is_some(), "with its old age");
        core.arrive(request(kept, at(60)), at(11));
        core.tell(holder, SlotEvent::Released, at(12));
        let next = core.next_decision();
        assert!(matches!(next, Some(Decision::Dial { place, .. }) if place != kept), "{leaves}: {next:?}");
    }
}

/// `depth` counts what waits, however it came: also requests that are held back because their target is out.
#[test]
fn what_is_held_back_counts_in_depth() {
    let mut core = Core::new(limits(10, None, &[1]), at(0));
    let slot = arrive(&mut core, 0, at(0))[0];
    core.tell(slot, SlotEvent::Unreachable, at(0));
    core.tell(slot, SlotEvent::Released, at(0));
    let mut refused = 0;
    for _ in 0..103 {
        let principal = Principal { class: ClassId(0), client: "client".into() };
        let (place, _) = core.place(&principal.client, "registry:443", at(1));
        core.arrive(AdmissionRequest::new(place, at(50_000), principal, "registry:443".into()), at(1));
        refused +=
            std::iter::from_fn(|| core.next_decision()).filter(|one| matches!(one, Decision::Refuse { .. })).count();
    }
    assert_eq!((refused, core.snapshot(at(1)).waiting), (3, 100));
}
