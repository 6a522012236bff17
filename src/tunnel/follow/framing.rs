//! One direction's bytes as TLS records: headers, and runs of bytes between them.
//!
//! Bodies are skipped by length and never copied; a header that comes in pieces is put together in five bytes.

use std::time::Duration;

use crate::splice::HEADER;

/// The longest that any version allows: TLS 1.2 lets encryption add 2,048 bytes (RFC 5246, section 6.2.3).
const MAX_RECORD: u16 = (1 << 14) + 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// Where one direction stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Framing {
    /// The header of the record that is passing, or its beginning.
    header: [u8; HEADER],
    /// How many bytes of `header` are there; all, while its body passes.
    have: u8,
    /// Bytes of the body that are still to come.
    left: u16,
    /// The length of the record that is passing, or passed last.
    length: u16,
    /// Whether the one before it had the same.
    alike: bool,
    /// When the first byte of the record passed.
    began: Duration,
}

/// The content of a record header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub content: ContentType,
    /// Of the body; never 0.
    pub length: u16,
}

/// The content types (RFC 8446, section 5.1). After encryption TLS 1.3 calls everything data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentType {
    ChangeCipherSpec,
    Alert,
    Handshake,
    Data,
}

/// The next thing in a direction.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// A record begins.
    Header(RecordHeader),
    /// Some of its body; never empty.
    Body(&'a [u8]),
    /// No record begins here.
    Garbage,
}

impl Framing {
    /// Takes the next piece off `bytes`; none when they are used up.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Piece<'a>> {
        if bytes.is_empty() {
            return None;
        }
        if self.left > 0 {
            let (body, rest) = bytes.split_at(bytes.len().min(usize::from(self.left)));
            *bytes = rest;
            self.pass(body.len());
            return Some(Piece::Body(body));
        }
        let have = usize::from(self.have);
        let (more, rest) = bytes.split_at(bytes.len().min(HEADER - have));
        self.header[have..have + more.len()].copy_from_slice(more);
        *bytes = rest;
        self.have += u8::try_from(more.len()).unwrap_or(0);
        if usize::from(self.have) < HEADER {
            return None;
        }
        let Some(header) = read(self.header) else { return Some(Piece::Garbage) };
        self.alike = self.length == header.length;
        (self.length, self.left) = (header.length, header.length);
        Some(Piece::Header(header))
    }

    /// Bytes of the body that are still to come.
    pub fn left(&self) -> usize {
        usize::from(self.left)
    }

    /// Where a record of data has ended that was as long as the one before: its header.
    pub fn repeats(&self) -> Option<RecordHeader> {
        let is_between = self.have == 0 && self.alike && self.content() == Some(ContentType::Data);
        is_between.then_some(RecordHeader { content: ContentType::Data, length: self.length })
    }

    /// Whether a record like the last one, of any length, can begin with these bytes.
    pub fn can_go_on(&self, next: [u8; HEADER]) -> bool {
        next[..3] == self.header[..3] && read(next).is_some()
    }

    /// Takes so many bytes off the body; no more than are left.
    pub fn pass(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(u16::try_from(bytes).unwrap_or(self.left));
        self.have = if self.left == 0 { 0 } else { self.have };
    }

    /// Notes when a record begins. To be called at its first byte.
    pub fn begin(&mut self, now: Duration) {
        self.began = now;
    }

    /// Whether a record has begun that has not ended.
    pub fn inside(&self) -> bool {
        self.have > 0
    }

    /// When the record began that is passing, or passed last.
    pub fn began(&self) -> Duration {
        self.began
    }

    /// The type of the record that is passing, or passed last.
    pub fn content(&self) -> Option<ContentType> {
        content_type(self.header[0])
    }
}

fn read([content, major, minor, high, low]: [u8; HEADER]) -> Option<RecordHeader> {
    let length = u16::from_be_bytes([high, low]);
    // An empty record cannot be: encryption adds to it, and a plaintext one must not be empty (RFC 8446, section 5.1).
    let sound = major == 3 && minor <= 4 && (1..=MAX_RECORD).contains(&length);
    Some(RecordHeader { content: content_type(content)?, length }).filter(|_| sound)
}

fn content_type(content: u8) -> Option<ContentType> {
    match content {
        20 => Some(ContentType::ChangeCipherSpec),
        21 => Some(ContentType::Alert),
        22 => Some(ContentType::Handshake),
        23 => Some(ContentType::Data),
        _ => None,
    }
}
