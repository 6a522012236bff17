//! The records of one direction, message by message: how long they are, and whether the last one looks like the last.
//!
//! A sender that has more to say fills its records; nginx without buffering fills them up to what it reads at once from
//! behind, which may be any size. So a record of the size that repeats is one of many, and a shorter one may be the
//! last.

/// The most plaintext that a record holds (RFC 8446, section 5.1): always full.
const FULLEST: u16 = 1 << 14;

/// Smaller sizes that repeat within one message are a coincidence to those that come after it.
const BULK: u16 = 1024;

/// Records that must have been seen before a short one is believed to be the last.
const MIN_RECORDS_SEEN: u32 = 32;
/// At most one in so many of them may have been short in the middle of a message.
const SHORT_IN_THE_MIDDLE: u32 = 256;

/// The record sizes seen in one direction.
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
    /// Whether the last record looks like the last of its message.
    ends: bool,
    /// Records of this message.
    records: u32,
    /// Their content together, without what encryption adds.
    content: u32,
    /// The content of the first of them.
    first: u32,
    /// Records of all messages but the first of each.
    seen: u32,
    /// Those of them that looked like the last and were not.
    short: u32,
}

impl Sizes {
    /// A record of this length is sent, of which so much is added by encryption. True when it does not look like the last of
    /// its message.
    pub fn note(&mut self, length: u16, added: u16) -> bool {
        if self.records > 0 {
            self.short += u32::from(self.ends && self.records > 1);
            self.seen += 1;
        }
        if length == self.last || length == self.largest {
            self.repeated = self.repeated.max(length);
        }
        self.last = length;
        self.largest = self.largest.max(length);
        self.records += 1;
        self.content = self.content.saturating_add(u32::from(length.saturating_sub(added)));
        if self.records == 1 {
            self.first = self.content;
        }
        self.ends = length < self.full();
        !self.ends
    }

    /// The next message begins.
    pub fn next(&mut self) {
        let before = if self.repeated >= BULK { self.before.max(self.repeated) } else { self.before };
        *self = Sizes { before, seen: self.seen, short: self.short, ..Sizes::default() };
    }

    /// The content of this message.
    pub fn content(&self) -> u32 {
        self.content
    }

    /// The content of its first record, if others came after it.
    pub fn head(&self) -> Option<u32> {
        (self.records > 1).then_some(self.first)
    }

    /// Whether this message is one record of about this length.
    pub fn is_one_like(&self, length: u16, tolerance: u16) -> bool {
        self.records == 1 && self.last.abs_diff(length) <= tolerance
    }

    /// Whether a short record ended this message, in a tunnel in which few are short in the middle. A server that sends what
    /// it reads from behind, in records below the largest size, runs dry at every hiccup: there a short record tells nothing.
    pub fn ends_short(&self) -> bool {
        let rare = self.seen >= MIN_RECORDS_SEEN && self.short.saturating_mul(SHORT_IN_THE_MIDDLE) <= self.seen;
        self.records > 1 && self.ends && rare && self.full() >= FULLEST
    }

    fn full(&self) -> u16 {
        [self.repeated, self.before].into_iter().find(|size| *size > 0).unwrap_or(FULLEST).min(FULLEST)
    }
}
