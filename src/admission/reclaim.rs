//! The choice of idle connections to reclaim when no slot is free: as many as requests wait for, and no more.

use super::books::{Books, TURNOVER};
use super::decision::CloseCause;
use super::moment::Moment;
use super::slot::{SlotId, SlotState};

/// Reclaims one connection for each request that waits beyond the slots that are on their way back, and none for which no token
/// is there. The first goes for the request that is next. While that is on its way, pooled connections go to those that can use
/// them before more are closed; where it does not come, as from a registry that vanished, one more is closed.
pub(super) fn make_room(books: &mut Books, now: Moment) {
    let tokens = books.bucket.as_ref().map_or(usize::MAX, |bucket| bucket.available(now));
    let excess = books.ledger.open().saturating_sub(books.slots());
    books.room_due = books.room_due.filter(|_| coming(books) > excess);
    loop {
        let due = books.room_due;
        if due > Some(now) {
            books.match_pooled(now);
        }
        let late = usize::from(due.is_some_and(|due| due <= now));
        let Some(slot) = books.pooled.nearest_to_its_end().filter(|_| wanted(books, tokens, late) > 0) else { break };
        books.close(slot, CloseCause::Reclaimed);
        books.room_due = due.filter(|due| *due > now).or((coming(books) > excess).then_some(now + TURNOVER));
    }
    reclaim_quiet(books, tokens, now);
    books.room_due = books.room_due.or((coming(books) > excess).then_some(now + TURNOVER));
    books.wake_no_later(books.room_due.filter(|due| *due > now));
    let bucket = books.bucket.as_ref().filter(|_| books.queue.in_line() > tokens);
    books.wake_no_later(bucket.and_then(|bucket| bucket.next_due(now)));
}

/// Slots that came free by themselves lately are expected to go on doing so: requests that will have one of those need no
/// tunnel.
fn reclaim_quiet(books: &mut Books, tokens: usize, now: Moment) {
    let expected = books.freed_lately(now);
    let most = wanted(books, tokens, 0).saturating_sub(expected);
    books.quiet.due(now).into_iter().take(most).for_each(|slot| books.ask_to_close(slot));
    let left = wanted(books, tokens, 0);
    if left > 0 {
        let fewer = books.fewer_freed_than(left);
        books.wake_no_later(books.quiet.next_due().map(|due| due.max(fewer)));
    }
}

/// Connections that have to go yet: one for each request that waits and may dial then, and before that those that exceed the
/// slots after a reduction; no fewer than `at_least` where a request waits and may dial.
fn wanted(books: &Books, tokens: usize, at_least: usize) -> usize {
    let may_dial = books.limits.max_connecting.saturating_sub(books.ledger.connecting());
    let awaited = books.queue.in_line().min(tokens).min(may_dial);
    if awaited == 0 {
        return 0;
    }
    let excess = books.ledger.open().saturating_sub(books.slots());
    (awaited + excess).saturating_sub(coming(books)).max(at_least)
}

fn coming(books: &Books) -> usize {
    books.ledger.counts().closing + books.quiet.reclaimed()
}

/// Reclaims one of these very slots, though others may be free. If none may be reclaimed yet, tells when one may.
pub(super) fn make_room_among(books: &mut Books, among: &[SlotId], now: Moment) -> Option<Moment> {
    let is_on_its_way = |slot: &SlotId| {
        let is_closing = books.ledger.get(*slot).is_some_and(|entry| entry.state == SlotState::Closing);
        is_closing || books.quiet.is_reclaimed(*slot)
    };
    if among.iter().any(is_on_its_way) {
        return None;
    }
    if let Some(slot) = among.iter().find(|slot| books.pooled.contains(**slot)) {
        books.close(*slot, CloseCause::Reclaimed);
        return None;
    }
    if let Some(slot) = books.quiet.due(now).into_iter().find(|slot| among.contains(slot)) {
        books.ask_to_close(slot);
        return None;
    }
    among.iter().filter_map(|slot| books.quiet.get(*slot)).map(|quiet| quiet.from).min()
}

/// Closes pooled connections that expired or exceed the slots.
pub(super) fn close_surplus(books: &mut Books, now: Moment) {
    while let Some(slot) = books.pooled.expired(now) {
        books.close(slot, CloseCause::Expired);
    }
    while books.ledger.open() - books.ledger.counts().closing > books.slots()
        && let Some(slot) = books.pooled.nearest_to_its_end()
    {
        books.close(slot, CloseCause::Shrunk);
    }
}

/// Where slots are leased, those beyond the lease are wanted by other nodes: quiet tunnels go as if a request waited.
pub(super) fn give_back(books: &mut Books, now: Moment) {
    let open = books.ledger.open() - books.ledger.counts().closing;
    let excess = open.saturating_sub(books.slots_given() + books.quiet.reclaimed());
    reclaim_due(books, if books.lent.is_some() { excess } else { 0 }, now);
}

fn reclaim_due(books: &mut Books, most: usize, now: Moment) {
    if most > 0 {
        books.quiet.due(now).into_iter().take(most).for_each(|slot| books.ask_to_close(slot));
        books.wake_no_later(books.quiet.next_due());
    }
}

/// Closes the pooled connections. Where another process takes over, quiet tunnels go as if a request waited: their slots are
/// of use there.
pub(super) fn drain(books: &mut Books, now: Moment) {
    while let Some(slot) = books.pooled.nearest_to_its_end() {
        books.close(slot, CloseCause::Draining);
    }
    if books.own.is_some() {
        reclaim_due(books, usize::MAX, now);
    }
}
