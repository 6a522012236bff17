//! The size that one direction repeats while much is to be sent.
//!
//! A sender that has more to say fills its records; nginx without buffering fills them up to what it reads at once from
//! behind, which may be any size. So a record of the size that repeats is one of many, and a shorter one may be the
//! last.

/// The most plaintext that a record holds (RFC 8446, section 5.1): always full.
const FULLEST: u16 = 1 << 14;

/// Smaller sizes that repeat within one message are a coincidence to those that come after it.
const BULK: u16 = 1024;

/// What was seen of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sizes {
    /// The last record of this message; 0 before the first.
    last: u16,
    /// The largest of this message.
    largest: u16,
    /// The largest that this message repeated; 0 if none.
    repeated: u16,
    /// The largest that messages before repeated.
    before: u16,
}

impl Sizes {
    /// A record of this length is sent. True when it does not look like the last of its message.
    pub fn note(&mut self, length: u16) -> bool {
        if length == self.last || length == self.largest {
            self.repeated = self.repeated.max(length);
        }
        self.last = length;
        self.largest = self.largest.max(length);
        let full = [self.repeated, self.before].into_iter().find(|size| *size > 0).unwrap_or(FULLEST);
        length >= full.min(FULLEST)
    }

    /// The next message begins.
    pub fn next(&mut self) {
        let before = if self.repeated >= BULK { self.before.max(self.repeated) } else { self.before };
        *self = Sizes { before, ..Sizes::default() };
    }
}
