//! Room for answers that are kept in memory while better ones are asked for.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that may be kept at once.
const MOST: usize = 16 * 1024 * 1024;
/// What an answer takes beside its body: its head, and the buffer that it was read into.
const HEAD: usize = 8 * 1024;

/// The bytes that are kept.
#[derive(Debug, Default)]
pub struct Room {
    taken: AtomicUsize,
}

/// Room for one answer; dropping it gives it back.
#[derive(Debug)]
#[must_use]
pub struct Taken<'a> {
    room: &'a Room,
    bytes: usize,
}

impl Room {
    /// Takes room for an answer with a body of so many bytes, if there is any left.
    pub fn take(&self, body: usize) -> Option<Taken<'_>> {
        let taken = Taken { room: self, bytes: HEAD + body };
        let before = self.taken.fetch_add(taken.bytes, Ordering::Relaxed);
        (before + taken.bytes <= MOST).then_some(taken)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_and_given_back() {
        let room = Room::default();
        let large = room.take(MOST - 3 * HEAD).unwrap();
        let small = room.take(0).unwrap();
        assert!(room.take(1).is_none());
        let last = room.take(0).unwrap();
        assert!(room.take(0).is_none());
        drop((small, last, large));
        assert_eq!(room.taken.load(Ordering::Relaxed), 0);
    }
}
